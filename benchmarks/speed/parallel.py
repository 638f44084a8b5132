"""Time to score a million items by parallel ids and to list the best ten: ours beside a dense gather.

    python -m benchmarks.speed.parallel

Ids and log-probabilities are random: the work does not depend on their values, and the model is left out. Ours turns
the table of log-probabilities, so that an item adds Q rows of one number per user, and merges lists over blocks of
items. The baseline gathers, for each channel, the log-probability of every item for every user, adds them up, and takes
`topk` of the scores, also in blocks of items, without which it would need a gigabyte for the scores alone. The lists of
both are compared first: equal items, or equal scores up to rounding. Contenders take turns; median and percentiles over
the rounds. Memory is the growth of anonymous memory during a call, in a process of its own for each.

Writes `benchmarks/results/items_parallel_*.csv`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from benchmarks.quality.common import RESULTS, circumstances
from benchmarks.speed.__main__ import machine
from benchmarks.speed.measure import alternating, percentile
from benchmarks.speed.memory import resident
from torch import Tensor

from gritvq.items import ParallelScorer
from gritvq.results import write_results

ITEMS, USERS, CHANNELS, SIZE, LENGTH = 1_000_000, 256, 32, 256, 10
BLOCK = 4096  # items
IDENTITY = ("method", "items", "users", "channels", "codebook_size")


def dense(codes: Tensor, log_probs: Tensor) -> Tensor:
    """Scores (B, k) of the best items: a gather per channel of ids (Q, n), int64, in log-probabilities (B, Q, K)."""
    best = log_probs.new_full((len(log_probs), LENGTH), -torch.inf)
    for some in codes.split(BLOCK, 1):
        scores = log_probs.new_zeros(len(log_probs), some.shape[1])
        for channel, own in enumerate(some):
            scores += log_probs[:, channel].index_select(1, own)
        best = torch.cat([best, scores], 1).topk(LENGTH).values
    return best


def peak(call: Callable[[], object]) -> int:
    """Bytes by which anonymous memory grew during the call, looked at every few milliseconds."""
    before, most, done = resident("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.003):
            most = max(most, resident("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(0, most - before)


def contenders(items: int, users: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """What is timed; each returns the scores of the best items."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, SIZE, (items, CHANNELS), generator=generator)
    log_probs = torch.randn(users, CHANNELS, SIZE, generator=generator).log_softmax(2).to(device)
    scorer = ParallelScorer(codes, (SIZE,) * CHANNELS).to(device)
    turned, side_by_side = codes.T.contiguous().to(device), log_probs.flatten(1)
    return {
        "ParallelScorer": lambda: scorer.best(side_by_side, LENGTH).scores,
        "dense gather": lambda: dense(turned, log_probs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    calls = contenders(options.items, options.users, device)
    if options.memory:
        print(peak(calls[options.memory]))
        return
    found, wanted = (call() for call in calls.values())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    samples = alternating(calls, device, options.seconds, quick=options.quick)
    about = circumstances("python -m benchmarks.speed.parallel", "random ids") | machine(options.threads)
    if options.device == "cpu":
        about["hardware"] = f"cpu{os.cpu_count()}"
    command = [sys.executable, "-m", "benchmarks.speed.parallel", "--items", str(options.items)]
    command += ["--users", str(options.users), "--threads", str(options.threads), "--memory"]
    runs = []
    for name, seconds in samples.items():
        numbers = {
            "seconds": percentile(seconds, 0.5),
            "seconds_p20": percentile(seconds, 0.2),
            "seconds_p80": percentile(seconds, 0.8),
            "rounds": len(seconds),
            "ratio": percentile(seconds, 0.5) / percentile(samples["ParallelScorer"], 0.5),
        }
        if options.device == "cpu":
            told = subprocess.run([*command, name], capture_output=True, text=True, check=True).stdout
            numbers["peak_bytes"] = int(told)
        sizes = {"items": options.items, "users": options.users, "channels": CHANNELS, "codebook_size": SIZE}
        runs.append({"method": name, **sizes, **numbers, **about})
        print(name, {key: round(value, 4) for key, value in numbers.items()})
    units = {**dict.fromkeys(("seconds", "seconds_p20", "seconds_p80"), "s"), "peak_bytes": "bytes"}
    path = options.out / f"items_parallel_{about['hardware']}_{date.today():%Y%m}.csv"
    write_results(path, runs, about, IDENTITY, units)


if __name__ == "__main__":
    main()
