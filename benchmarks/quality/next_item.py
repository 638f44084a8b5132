"""The next item on Amazon Beauty: recall of a small generative model against the time it was trained.

    python -m benchmarks.quality.next_item train --data FOLDER --run RUN
    python -m benchmarks.quality.next_item measure --data FOLDER --run RUN

``train`` gives the items ids (residual k-means 3 x 256 and one more token for equal ones), trains the model of
``configs/items/beauty-small.yaml`` on the training part, and keeps a copy at every validation; started again with the
same folder it goes on where it stopped. ``measure`` ranks the test items with the copies: some of them on a sample of
users for the curve, and the one with the best validation NDCG@10 on all users. It writes
``benchmarks/results/items_next_*.csv``.

Time is the processor time of the training process (``minutes``), which other programs on the machine do not change, and
what a clock showed (``wall_minutes``); validation is not in it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.common import RESULTS, circumstances, finished, results_file
from lightning import Callback, LightningModule, Trainer

from gritvq.items import (
    DepthDecoder,
    GenerativeRecommender,
    RecommenderTask,
    ResidualKMeans,
    SemanticIds,
    rank_in_list,
    ranking_metrics,
    ranks_by_lists,
)
from gritvq.items.catalogue import read_item_data
from gritvq.items.interactions import Split
from gritvq.items.sequences import SequenceData
from gritvq.results import read_results, write_results
from gritvq.training import TrainingPlan, train
from gritvq.training.run import seed_everything

IDENTITY = ("method", "level", "split", "users", "beam", "step", "seed")
SAMPLE = 4000
EVERY = 4  # copies between two that are measured on the test sample


class Copies(Callback):
    """Keeps the recommender, the numbers and the time at every validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spent = {"minutes": 0.0, "wall_minutes": 0.0}
        self.started = {"minutes": 0.0, "wall_minutes": 0.0}

    def state_dict(self) -> dict[str, Any]:
        return {"spent": dict(self.spent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spent = dict(state_dict["spent"])

    def start(self) -> None:
        self.started = {"minutes": time.process_time() / 60, "wall_minutes": time.perf_counter() / 60}

    def stop(self) -> None:
        now = {"minutes": time.process_time() / 60, "wall_minutes": time.perf_counter() / 60}
        self.spent = {name: self.spent[name] + now[name] - self.started[name] for name in now}
        self.started = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start()

    def on_train_batch_end(self, *_: Any) -> None:
        self.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        name = f"step-{task.step:06d}"
        task.recommender.save_pretrained(self.folder / name)
        numbers = {
            k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")
        }
        line = {"step": task.step, **self.spent, **numbers}
        (self.folder / f"{name}.json").write_text(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        self.start()


def catalogue(data: Any) -> SemanticIds:
    """Ids of the items' text embeddings."""
    vectors = data.catalogue.vectors()
    tokenizer = ResidualKMeans(256, 3, seed=0).fit(vectors)
    fingerprint = {"encoder": "all-MiniLM-L6-v2, titles", "quantizer": tokenizer.fingerprint()}
    return SemanticIds.assign(
        tokenizer.encode(vectors), tokenizer.codebook_sizes, collisions="append", fingerprint=fingerprint
    )


def recommender_of(ids: SemanticIds, split: Split) -> GenerativeRecommender:
    """An untrained recommender; items with one id come in order of popularity."""
    popularity = torch.bincount(split.train.items, minlength=len(ids.codes)).float()
    return GenerativeRecommender(DepthDecoder(ids.codebook_sizes), ids, priority=popularity)


def run(options: argparse.Namespace, data: Any, split: Split) -> None:
    """Train, or go on."""
    folder = Path(options.run)
    if not (folder / "ids").exists():
        catalogue(data).save(folder / "ids")
    ids = SemanticIds.load(folder / "ids")
    seed_everything(options.seed, options.threads)
    recommender = recommender_of(ids, split)
    copies = Copies(folder / "copies")
    task = RecommenderTask(recommender, beam=20)
    task.run_callbacks = lambda _: [copies]  # type: ignore[method-assign]
    plan = TrainingPlan(
        max_steps=options.steps,
        seed=options.seed,
        precision="bf16-mixed",
        validate_every=options.every,
        checkpoint_every=options.every,
        accelerator="cpu",
    )
    last = folder / "checkpoints" / "last.ckpt"
    sequences = SequenceData(split, every_prefix=False, batch_size=128)
    train(task, sequences, plan, folder=folder, resume=last if last.exists() else None, progress=False)


def measure(options: argparse.Namespace, split: Split) -> None:
    """Rank the test items."""
    seed_everything(0, options.threads)
    folder = Path(options.run) / "copies"
    lines = [json.loads(path.read_text()) for path in sorted(folder.glob("step-*.json"))]
    about = circumstances("python -m benchmarks.quality.next_item", Path(options.data).name)
    path = results_file(RESULTS, "items_next")
    rows = read_results(path, IDENTITY) if path.exists() else []
    known = finished(rows, about["data"], IDENTITY)
    best = max(lines, key=lambda line: line["ndcg@10"])
    sample = torch.randperm(len(split.users), generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values
    for number, line in enumerate(lines):
        spent = {name: line[name] for name in ("minutes", "wall_minutes")}
        validation = {name: value for name, value in line.items() if "@" in name}
        jobs = [("validation", 2000, 20, validation)]
        jobs += [("test", SAMPLE, 20, None)] if number % EVERY == 0 or line in (best, lines[-1]) else []
        jobs += [("test", len(split.users), 50, None)] if line is best else []
        for part, users, beam, numbers in jobs:
            place = {"split": part, "users": users, "beam": beam, "step": line["step"], "seed": options.seed}
            for level in ("item", "id"):
                row = {"method": "depth decoder, 3 + 1 layers", "level": level, **place}
                if tuple(str(row[name]) for name in IDENTITY) in known or (users < len(split.users) and level == "id"):
                    continue
                if numbers is None or level == "id":
                    recommender = GenerativeRecommender.from_pretrained(folder / f"step-{line['step']:06d}")
                    chosen = torch.arange(users) if users == len(split.users) else sample
                    numbers = test_metrics(recommender, split, chosen, beam, level)
                selected = {"selected": 1.0} if line is best else {}
                rows.append({**row, **spent, **numbers, **selected, **about})
                numbers = None if part == "test" else numbers
                write_results(path, rows, about, IDENTITY, {"minutes": "min", "wall_minutes": "min"})
                print(json.dumps(rows[-1]), flush=True)


def test_metrics(
    recommender: GenerativeRecommender, split: Split, users: torch.Tensor, beam: int, level: str
) -> dict[str, float]:
    """Recall and NDCG of items, or of their ids."""
    histories, targets = split.test_inputs[users], split.test[users]
    with torch.autocast("cpu", torch.bfloat16):
        if level == "item":
            return ranking_metrics(
                ranks_by_lists(lambda h, k: recommender.recommend(h, k, beam=beam), histories, targets)
            )
        leaves = recommender.trie.walk(recommender.codes[targets])
        found = torch.cat(
            [recommender.search(histories[i : i + 256], beam).leaves for i in range(0, len(targets), 256)]
        )
    return ranking_metrics(rank_in_list(found, leaves))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("--data", required=True, help="folder with interactions, items and embeddings")
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=8750)
    parser.add_argument("--every", type=int, default=350)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    data = read_item_data(options.data)
    split = data.interactions.split()
    if options.what == "train":
        run(options, data, split)
    else:
        measure(options, split)


if __name__ == "__main__":
    main()
