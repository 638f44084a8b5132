"""Items that were not there in training: a tenth of Amazon Beauty is held out, gets ids later, and is recommended.

    python -m benchmarks.quality.new_items --data PATH-TO-AMAZON-BEAUTY

A random tenth of the items is taken out of all training histories. Tokenizer, vectors of buyers and recommender (that
of ``configs/items/beauty-catalogue.yaml``, fewer steps, no copy chosen) see the others only. Then the new items get ids
from their titles alone (``SemanticIds.add``), which must not change an old id, and the recommender is loaded with all
ids. Ranked are the test items of those users whose test item is new, once in the whole catalogue and once among the new
items, without what a user has. One training is measured as it is, and with the content of codes added to its scores
(``content_dim``), which training does not see. The baseline is the cosine of titles with the user's last item, on the
same users and items. Size and weight of the content were chosen on validation items, with half of the steps.

Writes ``benchmarks/results/items_new_*.csv``. A seed that has all its rows of these data there is not repeated;
one that lacks some is run again, and its new rows take the place of the old ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.quality.common import RESULTS, circumstances, finished, results_file
from benchmarks.quality.recommenders import CONFIGS
from torch import Tensor

from gritvq.items import (
    CatalogueDecoder,
    GenerativeRecommender,
    Histories,
    MultiViewTokenizer,
    ProductKMeans,
    RecommenderTask,
    SemanticIds,
    Split,
    TextCosine,
    code_vectors,
    collaborative_vectors,
    rank_of_target,
    ranking_metrics,
    without_seen,
)
from gritvq.items.catalogue import read_item_data
from gritvq.items.sequences import SequenceData
from gritvq.results import read_results, write_results
from gritvq.training import TrainingPlan, train
from gritvq.training.run import seed_everything

IDENTITY = ("method", "ranked", "steps", "seed")
UNITS = {"users": "users", "new_items": "items", "minutes": "min", "seconds_per_1000_items": "s"}
WITHOUT, WITH, COSINE = METHODS = (
    "catalogue softmax, ids of titles",
    "catalogue softmax and content, ids of titles",
    "cosine of titles",
)
RANKED = ALL, NEW = ("the whole catalogue", "new items")
ADDED = 1000  # items whose ids are timed
CONTENT: dict[str, Any] = {"content_dim": 512, "content_weight": 15.0}


def known_only(split: Split, new: Tensor) -> tuple[Split, Tensor]:
    """The split of the items that are not new, renumbered, and their old rows; users keep one known validation item."""
    old = (~new).nonzero()[:, 0]
    place = torch.full((split.num_items,), -1)
    place[old] = torch.arange(len(old))
    rows = [place[history] for history in split.train]
    train_part = Histories.of([row[row >= 0] for row in rows])
    validation, test = place[split.validation], place[split.test]
    kept = (validation >= 0) & (test >= 0) & (train_part.lengths[split.users] > 0)
    users = split.users[kept]
    return Split(train_part, users, validation[kept], test[kept], len(old), split.num_short), old


def run(data_folder: Path, steps: int, seed: int) -> list[dict[str, Any]]:
    """Ids, a recommender, new items, and the ranks of those that users took."""
    config = yaml.safe_load((CONFIGS / "beauty-catalogue.yaml").read_text())
    seed_everything(seed, 1)
    begun = time.process_time()
    data = read_item_data(data_folder)
    split, texts = data.interactions.split(), data.catalogue.vectors()
    new = torch.zeros(split.num_items, dtype=torch.bool)
    new[torch.randperm(split.num_items)[: split.num_items // 10]] = True
    known, old = known_only(split, new)

    dim = config["collaborative_dim"]
    buyers = collaborative_vectors(known.train, len(old), dim, seed=seed)
    tokenizer = MultiViewTokenizer(
        ProductKMeans(**config["tokenizer"]["init_args"], seed=seed), (texts.shape[1], dim), (1.0, 1.0)
    )
    views = torch.cat([texts[old], buyers], 1)
    tokenizer.fit(views)
    ids = SemanticIds.assign(tokenizer.encode(views), tokenizer.codebook_sizes, old.tolist(), collisions="keep")

    backbone = CatalogueDecoder(ids.codebook_sizes, **{**config["backbone"]["init_args"], **CONTENT})
    decoded = tokenizer.decode_joined(ids.codes)
    backbone.set_content(code_vectors(ids.codes, ids.codebook_sizes, decoded, CONTENT["content_dim"]))
    max_history = config["batches"]["max_history"]
    recommender = GenerativeRecommender(backbone, ids, max_history=max_history, exclude_seen=True)
    batches = {name: config["batches"][name] for name in ("batch_size", "max_history")}
    train(
        RecommenderTask(recommender, **config["task"]),
        SequenceData(known, every_prefix=False, seed=seed, **batches),
        TrainingPlan(max_steps=steps, validate_every=0, seed=seed, accelerator="cpu"),
        progress=False,
    )

    rows = new.nonzero()[:, 0]
    clock = time.perf_counter()
    some = ids.add(tokenizer.encode(texts[rows[:ADDED]]), rows[:ADDED].tolist())
    seconds = time.perf_counter() - clock
    if not torch.equal(some.codes[: len(ids)], ids.codes):
        raise RuntimeError("expected unchanged ids of old items, got others")
    grown = some.add(tokenizer.encode(texts[rows[ADDED:]]), rows[ADDED:].tolist())
    with tempfile.TemporaryDirectory() as folder:
        recommender.save_pretrained(folder)
        recommender = GenerativeRecommender.from_pretrained(folder, grown)
    minutes = (time.process_time() - begun) / 60

    own_row = torch.empty(split.num_items, dtype=torch.int64)  # of the recommender, whose new items are the last
    own_row[torch.tensor(grown.items)] = torch.arange(split.num_items)
    asked = new[split.test].nonzero()[:, 0]
    histories, targets = split.test_inputs[asked], split.test[asked]
    own = Histories(histories.offsets, own_row[histories.items])
    cosine = TextCosine(texts)
    results = []

    def of_ids(part: Tensor, weight: float) -> Tensor:
        recommender.backbone.content_weight = weight  # type: ignore[assignment]
        return recommender.scores(own[part])[:, own_row]

    for method, scores in (
        (WITHOUT, lambda part: of_ids(part, 0.0)),
        (WITH, lambda part: of_ids(part, CONTENT["content_weight"])),
        (COSINE, lambda part: cosine.scores(histories[part])),
    ):
        found: dict[str, list[Tensor]] = {ranked: [] for ranked in RANKED}
        for part in torch.arange(len(asked)).split(256):
            each = without_seen(scores(part), histories[part])
            found[ALL].append(rank_of_target(each, targets[part]))
            found[NEW].append(rank_of_target(each.masked_fill(~new, -torch.inf), targets[part]))
        for ranked, ranks in found.items():
            about = {"users": len(asked), "new_items": len(rows)}
            if method != COSINE:
                about |= {"minutes": minutes, "seconds_per_1000_items": seconds}
            numbers = ranking_metrics(torch.cat(ranks))
            results.append({"method": method, "ranked": ranked, "steps": steps, "seed": seed, **numbers, **about})
    return results


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions, items and embeddings")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    path = results_file(RESULTS, "items_new")
    about = circumstances("items held out of training, seen excluded", options.data.resolve().name)
    done = read_results(path, IDENTITY) if path.exists() else []
    for seed in options.seeds:
        own = (about["data"], str(options.steps), str(seed))
        known = finished(done, about["data"], IDENTITY)
        if {(method, ranked, *own[1:]) for method in METHODS for ranked in RANKED} <= known:
            continue
        done = [row for row in done if (row["data"], str(row["steps"]), str(row["seed"])) != own]
        for result in run(options.data, options.steps, seed):
            done.append({**result, **about})
            print({k: round(v, 5) if isinstance(v, float) else v for k, v in result.items()}, flush=True)
        write_results(path, done, about, IDENTITY, UNITS)


if __name__ == "__main__":
    main()
