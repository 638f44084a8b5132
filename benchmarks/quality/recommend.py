"""Next-item recommendation: what models have to beat, on Amazon Beauty and MovieLens latest-small.

    python -m benchmarks.quality.recommend --data ../shared/data/recsys
    python -m benchmarks.quality.recommend --methods sasrec "cornac sasrec" --seeds 0 1 2

Leave-one-out by time, ranks over the whole catalogue, ties at their mean rank; once with the items that a user has had,
and once ("seen excluded") without: nobody has an item twice in these data, so a list need not show them. In the second
case SASRec is trained without them, too. Baselines are exact and have no seed. Popularity stands there a second time
with half ranks rounded down, and text cosine with 5,000 sampled users, as the reference values have it. SASRec is
trained on the training part, with its settings chosen and its training stopped by NDCG@10 on the validation items; the
test items are ranked once per seed. SASRec of cornac (extra ``bench``), which is only run if it is named, has the epoch
chosen on 2,000 of the validation users.

Writes ``benchmarks/results/items_baselines_*.csv``. A run that is in it already is not repeated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.common import RESULTS, circumstances, results_file
from benchmarks.quality.peers import cornac_sasrec

from gritvq.items import CoOccurrence, Popularity, SASRec, TextCosine, ranking_metrics, ranks_by_scores
from gritvq.items.catalogue import ItemData, read_item_data
from gritvq.items.interactions import Split
from gritvq.results import read_results, write_results

DATA = ("amazon_beauty", "movielens_latest_small")
UNSEEN = ", seen excluded"
BASICS = ("popularity", "co-occurrence", "text cosine", "sasrec")
METHODS = (*BASICS, *(name + UNSEEN for name in BASICS))
PEERS = ("cornac sasrec",)
TRAINED = ("sasrec", "sasrec" + UNSEEN, *PEERS)
TRAINED_DATA = ("amazon_beauty",)  # MovieLens has 671 users
SASREC: dict[str, Any] = {"dim": 64, "dropout": 0.4, "lr": 2e-3, "batch_size": 128, "max_epochs": 30, "patience": 3}
CORNAC: dict[str, Any] = {"embedding_dim": 64, "loss": "ce", "num_heads": 2, "dropout": 0.5, "n_epochs": 40}
SAMPLED = 5000
IDENTITY = ("method", "settings", "codebook_size", "seed")
UNITS = {"seconds": "s", "users": "users", "epochs": "epochs", "parameters": "parameters"}
CONTEST = "leave-one-out by time, whole catalogue, mean rank of ties"

Row = dict[str, Any]


def row(method: str, ranks: torch.Tensor, seed: int = 0, settings: str = "-", **more: float) -> Row:
    """One run as it stands in the results."""
    identity = dict(zip(IDENTITY, (method, settings, 0, seed), strict=True))
    return {**identity, **ranking_metrics(ranks), "users": len(ranks), **more}


def popularity(data: ItemData, split: Split, seeds: list[int]) -> Iterator[Row]:
    """Exact, and as the reference rounds."""
    ranks = test_ranks(Popularity(split.train, split.num_items).scores, split)
    yield row("popularity", ranks)
    yield row("popularity, half ranks rounded down", ranks.floor())


def co_occurrence(data: ItemData, split: Split, seeds: list[int]) -> Iterator[Row]:
    """Exact."""
    yield row("co-occurrence", test_ranks(CoOccurrence(split.train, split.num_items).scores, split))


def text_cosine(data: ItemData, split: Split, seeds: list[int]) -> Iterator[Row]:
    """All users, and samples of the size of the reference."""
    ranks = test_ranks(TextCosine(data.catalogue.vectors()).scores, split)
    yield row("text cosine", ranks)
    for seed in seeds if len(ranks) > SAMPLED else []:
        chosen = torch.randperm(len(ranks), generator=torch.Generator().manual_seed(seed))[:SAMPLED]
        yield row("text cosine, sampled users", ranks[chosen], seed)


def unseen(method: str, data: ItemData, split: Split, seeds: list[int]) -> Iterator[Row]:
    """Exact, without what a user has seen."""
    made: dict[str, Callable[[], Any]] = {
        "popularity": lambda: Popularity(split.train, split.num_items),
        "co-occurrence": lambda: CoOccurrence(split.train, split.num_items),
        "text cosine": lambda: TextCosine(data.catalogue.vectors()),
    }
    ranks = ranks_by_scores(made[method]().scores, split.test_inputs, split.test, exclude_seen=True)
    yield row(method + UNSEEN, ranks)


def sasrec(data: ItemData, split: Split, seeds: list[int], exclude_seen: bool = False) -> Iterator[Row]:
    """One training per seed."""
    settings = " ".join(f"{name}={value}" for name, value in SASREC.items())
    for seed in seeds:
        torch.manual_seed(seed)
        training = {name: value for name, value in SASREC.items() if name not in ("dim", "dropout")}
        model = SASRec(split.num_items, SASREC["dim"], dropout=SASREC["dropout"], exclude_seen=exclude_seen)
        begun = time.perf_counter()
        log = model.fit(split, **training, seed=seed, progress=True)
        best = max(log, key=lambda line: line["ndcg@10"])
        yield row(
            "sasrec" + UNSEEN * exclude_seen,
            test_ranks(model.scores, split),
            seed,
            settings,
            **{f"validation_{name}": best[name] for name in ("recall@10", "ndcg@10")},
            epochs=best["epoch"],
            seconds=time.perf_counter() - begun,
            parameters=sum(p.numel() for p in model.parameters()),
        )


def of_cornac(data: ItemData, split: Split, seeds: list[int]) -> Iterator[Row]:
    """One training per seed."""
    settings = " ".join(f"{name}={value}" for name, value in CORNAC.items())
    for seed in seeds:
        begun = time.perf_counter()
        scores, parameters = cornac_sasrec(split, seed, CORNAC)
        seconds = time.perf_counter() - begun
        ranks = test_ranks(scores, split)
        yield row("cornac sasrec", ranks, seed, settings, seconds=seconds, parameters=parameters)


MAKERS: dict[str, Callable[[ItemData, Split, list[int]], Iterator[Row]]] = {
    **dict(zip((*BASICS, *PEERS), (popularity, co_occurrence, text_cosine, sasrec, of_cornac), strict=True)),
    **{name + UNSEEN: partial(unseen, name) for name in BASICS[:-1]},
    "sasrec" + UNSEEN: partial(sasrec, exclude_seen=True),
}


def test_ranks(scores: Callable[..., torch.Tensor], split: Split) -> torch.Tensor:
    """Ranks of the test items."""
    return ranks_by_scores(scores, split.test_inputs, split.test)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/recsys"), help="folder of the data sets")
    parser.add_argument("--methods", nargs="+", choices=MAKERS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    path = results_file(RESULTS, "items_baselines")
    about = circumstances(CONTEST, "-")
    for name in DATA:
        data = read_item_data(arguments.data / name)
        split = data.interactions.split()
        for method in arguments.methods:
            if method in TRAINED and name not in TRAINED_DATA:
                continue
            found = read_results(path, IDENTITY) if path.exists() else []
            done = {r["seed"] for r in found if r["data"] == name and r["method"] == method}
            missing = [seed for seed in arguments.seeds if seed not in done] if method in TRAINED else arguments.seeds
            if method not in TRAINED and done:
                continue
            for result in MAKERS[method](data, split, missing):
                found.append({**result, **about, "data": name})
                write_results(path, found, about, IDENTITY, UNITS)
                print(name, {k: round(v, 5) if isinstance(v, float) else v for k, v in result.items()}, flush=True)


if __name__ == "__main__":
    main()
