"""Time of the mask that keeps generation on existing ids: ours beside the callback of transformers.

    python -m benchmarks.speed.trie --data FOLDER

The ids are those that LETTER released for the 12,101 items of Amazon Beauty (4 x 256). For 256 users with 50 beams
each, a round masks the scores of the four tokens of an id, as `generate` would ask: the prefixes are those of 12,800
items drawn at random. The model is left out. Contenders take turns; median and percentiles over the rounds. Masks of
both are compared first; a single different entry is an error. The callback looks its tokens up in a dictionary of
sorted lists, the quickest form we know. Our mask changes the scores in place, transformers' makes new ones.

Writes `benchmarks/results/items_trie_*.csv`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from benchmarks.quality.common import RESULTS, circumstances
from benchmarks.speed.__main__ import machine
from benchmarks.speed.measure import alternating, percentile
from torch import Tensor

from gritvq.items import PrefixTrie, TrieLogitsProcessor
from gritvq.results import write_results

USERS, BEAMS, SIZES = 256, 50, (256, 256, 256, 256)
FIRST, END = 3, 2
IDENTITY = ("method", "users", "beams", "items", "token")


def callback(codes: Tensor, starts: Tensor) -> Any:
    """What `prefix_allowed_tokens_fn` is given."""
    table: dict[tuple[int, ...], set[int]] = {}
    for row in (codes + starts).tolist():
        for length in range(len(row)):
            table.setdefault(tuple(row[:length]), set()).add(row[length])
    lists = {prefix: sorted(tokens) for prefix, tokens in table.items()}
    return lambda _, sentence: lists.get(tuple(sentence.tolist()[1:]), [END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with letter_semantic_ids.parquet")
    parser.add_argument("--device", default="cpu", help="where scores and trie are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    from transformers import PrefixConstrainedLogitsProcessor

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    table = pyarrow.parquet.read_table(Path(options.data) / "letter_semantic_ids.parquet").sort_by("item")
    codes = torch.stack([torch.tensor(table[f"c{level}"].to_pylist()) for level in range(4)], 1)
    starts = FIRST + torch.tensor([0, *SIZES[:-1]]).cumsum(0)
    ours = TrieLogitsProcessor(PrefixTrie(codes, SIZES).to(device), prompt_length=1, first_token=FIRST, end_token=END)
    theirs = PrefixConstrainedLogitsProcessor(callback(codes, starts), BEAMS)
    generator = torch.Generator().manual_seed(0)
    drawn = (codes + starts)[torch.randint(0, len(codes), (USERS * BEAMS,), generator=generator)]
    scores = torch.randn(USERS * BEAMS, FIRST + sum(SIZES), generator=generator).to(device)
    inputs = [torch.nn.functional.pad(drawn[:, :length], (1, 0), value=1).to(device) for length in range(4)]
    for tokens in inputs:
        if not torch.equal(theirs(tokens, scores), ours(tokens, scores.clone())):
            raise SystemExit("the masks differ")
    changed = scores.clone()
    calls: dict[str, Any] = {}
    for number, tokens in enumerate(inputs):
        calls[f"ours {number}"] = lambda tokens=tokens: ours(tokens, changed)
        calls[f"theirs {number}"] = lambda tokens=tokens: theirs(tokens, scores)
    samples = alternating(calls, device, options.seconds, quick=False)
    about = circumstances("python -m benchmarks.speed.trie", f"{Path(options.data).name}, ids of LETTER")
    about["versions"] += f", transformers {importlib.metadata.version('transformers')}"
    about |= machine(options.threads)
    if options.device == "cpu":
        about["hardware"] = f"cpu{os.cpu_count()}"
    runs = []
    for name, key in (("PrefixTrie", "ours"), ("prefix_allowed_tokens_fn", "theirs")):
        times = {str(number): samples[f"{key} {number}"] for number in range(4)}
        times["all"] = [sum(parts) for parts in zip(*times.values(), strict=True)]
        for token, seconds in times.items():
            place = {"method": name, "users": USERS, "beams": BEAMS, "items": len(codes), "token": token}
            numbers = {
                "seconds": percentile(seconds, 0.5),
                "seconds_p20": percentile(seconds, 0.2),
                "seconds_p80": percentile(seconds, 0.8),
                "rounds": len(seconds),
            }
            if key == "theirs":
                numbers["ratio"] = numbers["seconds"] / next(
                    run["seconds"] for run in runs if run["token"] == token and run["method"] == "PrefixTrie"
                )
            runs.append({**place, **numbers, **about})
            print(name, token, {k: round(v, 4) for k, v in numbers.items()})
    units = dict.fromkeys(("seconds", "seconds_p20", "seconds_p80"), "s")
    write_results(RESULTS / f"items_trie_{about['hardware']}_{date.today():%Y%m}.csv", runs, about, IDENTITY, units)


if __name__ == "__main__":
    main()
