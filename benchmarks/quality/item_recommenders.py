"""Tokenizers of items by what a recommender makes of their ids: recall of the next item on Amazon Beauty.

    python -m benchmarks.quality.item_recommenders --data PATH-TO-AMAZON-BEAUTY

Ids come from the tokenizers of ``items.yaml`` with an appended token for equal ones, and from chance: distinct random
codes, which say nothing about an item. Every tokenizer gets the model, optimizer and number of steps of
``next_item.py``, only fewer steps; nothing is tuned, no copy is chosen, and the test items are ranked once, after the
last step. A seed is that of the tokenizer and of the recommender.

Writes ``benchmarks/results/items_recommenders_*.csv``. Finished runs are not repeated for the same data.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.quality.common import HERE, RESULTS, circumstances, finished, results_file
from benchmarks.quality.items import made
from benchmarks.quality.next_item import recommender_of, test_metrics
from rich.progress import track

from gritvq.items import RecommenderTask, SemanticIds
from gritvq.items.catalogue import read_item_data
from gritvq.items.sequences import SequenceData
from gritvq.results import read_results, write_results
from gritvq.training import TrainingPlan, train
from gritvq.training.run import seed_everything

RANDOM = "random codes"
TOKENIZERS = ("residual_kmeans", "residual_kmeans_normalized", "rqvae_vq_vae", "rqvae_rotation_vq", "rqvae_simvq")
TOKENIZERS += ("rqvae_grit_vq", RANDOM)
IDENTITY = ("method", "steps", "beam", "seed")
UNITS = {"minutes": "min", "uniqueness": "share", "parameters": "parameters", "users": "users"}
SETTINGS = {"batch_size": 128, "max_history": 20}


def random_codes(num_items: int, size: int, levels: int, seed: int) -> torch.Tensor:
    """Codes (num_items, levels) that chance gives, all distinct."""
    numbers = torch.randperm(size**levels, generator=torch.Generator().manual_seed(seed))[:num_items]
    return torch.stack([numbers // size**level % size for level in reversed(range(levels))], dim=1)


def run(name: str, seed: int, data_folder: Path, plan: dict[str, Any], steps: int, beam: int) -> dict[str, Any]:
    """Ids, a recommender trained on them, and the ranks of the test items."""
    seed_everything(seed, 1)
    data = read_item_data(data_folder)
    split = data.interactions.split()
    vectors = data.catalogue.vectors()
    if name == RANDOM:
        sizes = (plan["codebook_size"],) * plan["levels"]
        codes = random_codes(len(vectors), plan["codebook_size"], plan["levels"], seed)
    else:
        tokenizer = made(plan["tokenizers"][name], plan, vectors.shape[1], seed).fit(vectors)
        sizes, codes = tokenizer.codebook_sizes, tokenizer.encode(vectors)
    ids = SemanticIds.assign(codes, sizes, collisions="append")
    seed_everything(seed, 1)  # the same draws for every tokenizer
    recommender = recommender_of(ids, split)
    begun = time.process_time()
    train(
        RecommenderTask(recommender, beam=beam),
        SequenceData(split, every_prefix=False, seed=seed, **SETTINGS),
        TrainingPlan(max_steps=steps, seed=seed, precision="bf16-mixed", accelerator="cpu"),
        progress=False,
    )
    minutes = (time.process_time() - begun) / 60
    recommender.eval()
    numbers = test_metrics(recommender, split, torch.arange(len(split.users)), beam, "item")
    about = {
        "minutes": minutes,
        "users": len(split.users),
        "uniqueness": SemanticIds(codes, sizes).report()["uniqueness"],
        "parameters": sum(p.numel() for p in recommender.parameters()),
    }
    return {"method": name, "steps": steps, "beam": beam, "seed": seed, **numbers, **about}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions, items and embeddings")
    parser.add_argument("--tokenizers", nargs="+", default=list(TOKENIZERS), help="of items.yaml, or 'random codes'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2100)
    parser.add_argument("--beam", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    options = parser.parse_args()
    plan = yaml.safe_load((HERE / "items.yaml").read_text())
    unknown = sorted({*options.tokenizers} - {*plan["tokenizers"], RANDOM})
    if unknown:
        parser.error(f"expected tokenizers of items.yaml or {RANDOM!r}, got {', '.join(unknown)}")
    path = results_file(RESULTS, "items_recommenders")
    about = circumstances("depth decoder, 3 + 1 layers", options.data.resolve().name)
    done = read_results(path, IDENTITY) if path.exists() else []
    known = finished(done, about["data"], IDENTITY)
    tasks = [(name, seed) for seed in options.seeds for name in options.tokenizers]
    missing = [t for t in tasks if (t[0], str(options.steps), str(options.beam), str(t[1])) not in known]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, *task, options.data, plan, options.steps, options.beam) for task in missing]
        for future in track(as_completed(futures), total=len(futures), description=path.stem):
            done.append({**future.result(), **about})
            write_results(path, done, about, IDENTITY, UNITS)


if __name__ == "__main__":
    main()
