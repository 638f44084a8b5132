"""``gritvq fit items``: training of recommenders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.cli.embeddings import check_texts, item_vectors, origin_of, text_arguments
from gritvq.cli.output import arguments_of, report, tracked
from gritvq.cli.run_folder import (
    check_settings,
    extras_of,
    open_run,
    parts_of_run,
    place_of,
    run_arguments,
    run_training,
    steps_done,
)
from gritvq.cli.semantic_ids import make_ids, tokenizer_arguments, write_ids
from gritvq.cli.settings import class_of
from gritvq.files import folder_exists
from gritvq.training.run_folder import RunFolder

__all__ = ["arguments", "fit", "read_data", "recommender_folder"]


def arguments(parser: Any) -> None:
    """Arguments of backbone, ids, data, task and plan."""
    from gritvq.items.catalogue import read_item_data
    from gritvq.items.recommenders import Backbone
    from gritvq.items.sequences import SequenceData
    from gritvq.items.task import RecommenderTask
    from gritvq.training import TrainingPlan

    parser.add_subclass_arguments(Backbone, "backbone", skip={"codebook_sizes"}, instantiate=False)
    parser.add_argument(
        "--ids",
        type=str | None,
        default=None,
        help="folder written by semantic-ids fit, or of ids; if not given, the tokenizer makes them",
    )
    tokenizer_arguments(parser)
    parser.add_argument(
        "--collaborative_dim",
        type=int | None,
        default=None,
        help="size of vectors of who had which items, made of training events; the tokenizer reads them beside the "
        "embeddings",
    )
    parser.add_argument(
        "--collaborative_weight", type=float, default=1.0, help="their weight; that of the embeddings is 1"
    )
    parser.add_function_arguments(read_item_data, "data", skip={"vectors"})
    text_arguments(parser)
    parser.add_argument(
        "--k_core", type=int | None, default=None, help="repeatedly remove users and items with fewer events"
    )
    parser.add_class_arguments(SequenceData, "batches", skip={"split", "every_prefix"}, instantiate=False)
    parser.add_class_arguments(RecommenderTask, "task", skip={"recommender"}, instantiate=False)
    parser.add_class_arguments(TrainingPlan, "plan")
    parser.add_argument(
        "--exclude_seen",
        type=bool,
        default=False,
        help="exclude seen items from lists, in validation, test and use: for data in which nobody takes an item twice",
    )
    parser.add_argument("--beam", type=int, default=50, help="beam size in the test, and of the saved recommender")
    parser.add_argument("--num_test", type=int | None, default=None, help="number of test users; all if not given")
    run_arguments(parser, "recommender")


def fit(parser: Any, config: Any, given: Mapping[str, Any]) -> None:
    """Train a recommender that predicts the semantic id of the next item."""
    from gritvq.files import write_json
    from gritvq.items.recommenders import GenerativeRecommender, Popularity
    from gritvq.items.sequences import SequenceData
    from gritvq.items.task import RecommenderTask
    from gritvq.training import TrainingPlan
    from gritvq.training.launch import Launch
    from gritvq.training.run import seed_everything

    plan = TrainingPlan(**arguments_of(config.plan))
    place = place_of(config, Launch(plan))
    folder = str(Path(config.data.folder).expanduser().resolve())  # `recommend` reads users from it
    changes = {"data.folder": folder}
    check_settings(parser, config, place, changes)
    if config.num_test is not None and config.num_test < 1:
        raise ValueError(f"expected num_test >= 1, got {config.num_test}; leave it out for all users")
    if config.ids is not None and config.collaborative_dim is not None:
        raise ValueError(
            "expected ids, or collaborative_dim to make them with, got both; ids that are made already do not change"
        )
    check_texts(config, config.data.embeddings, "--data.embeddings")
    content_dim = arguments_of(config.backbone.init_args).get("content_dim")
    if config.ids is not None and config.text_model is not None and content_dim is None:
        raise ValueError("expected ids, or text_model to make them with, got both; leave text_model out")
    found = None if config.ids is None else Path(config.ids).resolve()
    if not place.goes_on and found is not None and place.run.path.resolve() in (found, *found.parents):
        raise ValueError(
            f"expected ids outside of the run's own folder {place.run.path}, got {config.ids}; choose another --out"
        )
    seed_everything(config.plan.seed)
    needed = config.ids is None or content_dim is not None
    items = read_data(config.data.as_dict(), config.k_core, needed and config.text_model is None and not place.goes_on)
    split, tokenizer = items.interactions.split(), None

    def made() -> Any:
        nonlocal tokenizer
        texts = item_vectors(items.catalogue, config, "--data.embeddings")
        tokenizer, vectors = _with_views(config, parts_of_run(parser, config).tokenizer, texts, split)
        origin = origin_of(items.catalogue, config, texts)
        ids = make_ids(tokenizer, vectors, items.catalogue.keys, config.collisions, origin)
        decoded = tokenizer.decode_joined(ids.codes[:, : len(tokenizer.codebook_sizes)])
        return ids, _content(ids, decoded, content_dim)

    ids, content = None, None
    if config.ids is None and not place.goes_on:
        ids, content = place.launch.share(made) or (None, None)
    if ids is None:
        source = Path(config.ids) if config.ids is not None else place.run.semantic_ids
        if place.resume is not None:
            source = _before_growing(RunFolder.of_checkpoint(place.resume), source)
        ids = _ids_for(source, items.interactions.item_keys)
        if content_dim is not None and config.ids is not None and not place.goes_on:  # a checkpoint has it
            content = _content(ids, item_vectors(items.catalogue, config, "--data.embeddings"), content_dim)
    repeated = int(split.report()["repeated_targets"])
    if config.exclude_seen and repeated and place.launch.first:
        said = "%d of %d test items were seen before by their users and cannot be found"
        logging.getLogger("gritvq").warning(said, repeated, len(split.users))
    popularity = Popularity(split.train, split.num_items).counts
    backbone = class_of(config.backbone.class_path)(ids.codebook_sizes, **arguments_of(config.backbone.init_args))
    if content is not None:
        backbone.set_content(content)
    settings = arguments_of(config.batches)
    data = SequenceData(split, every_prefix=backbone.every_prefix, **settings)
    told = {"max_history": settings["max_history"], "beam": config.beam, "exclude_seen": config.exclude_seen}
    recommender = GenerativeRecommender(backbone, ids, **told, priority=popularity)
    task = RecommenderTask(recommender, **arguments_of(config.task))
    done = steps_done(task, plan, config, place, lambda source: task.load(recommender_folder(source)))
    open_run(parser, config, place, done, changes)
    if place.launch.first:
        if not folder_exists(place.run.checkpoint_ids):
            ids.save(place.run.checkpoint_ids)
        write_json(place.run.data, {"data": folder, "splits": _splits(split)})
    if tokenizer is not None:
        write_ids(place.run.semantic_ids, tokenizer, ids)
    trainer, taken = run_training(task, data, plan, place, done, **extras_of(parser, config))
    if not trainer.is_global_zero:
        return
    chosen = task.load(place.run.recommender)
    numbers = _tested(chosen.to(trainer.strategy.root_device), split, config.num_test)
    write_json(place.run.metrics, numbers)
    rows = [*((name, f"{value:.4f}") for name, value in numbers.items()), ("training time", taken)]
    files = {"recommender": place.run.recommender, "numbers": place.run.metrics, "logs": place.run.logs}
    users = min(config.num_test or len(split.users), len(split.users))
    report(f"test, {users:,} users, whole catalogue", rows, files)


def _with_views(config: Any, tokenizer: Any, vectors: Any, split: Any) -> tuple[Any, Any]:
    """The tokenizer, and what it is fitted to: the embeddings, beside vectors of the training events if wanted."""
    if config.collaborative_dim is None:
        return tokenizer, vectors
    from gritvq.items import MultiViewTokenizer, collaborative_vectors, joined_views

    others = collaborative_vectors(split.train, split.num_items, config.collaborative_dim, seed=config.plan.seed)
    views = MultiViewTokenizer(
        tokenizer, (vectors.shape[1], config.collaborative_dim), (1.0, config.collaborative_weight)
    )
    return views, joined_views(vectors, others)


def _content(ids: Any, vectors: Any, dim: int | None) -> Any:
    """Vectors of the codes, for a backbone with content."""
    import torch

    from gritvq.items import code_vectors

    return None if dim is None else code_vectors(ids.codes, ids.codebook_sizes, torch.as_tensor(vectors), dim)


def recommender_folder(source: str | Path) -> Path:
    """The folder of the recommender that a run made; what is given if it is no run."""
    run = RunFolder(source)
    return run.recommender if run.recommender.is_dir() else run.path


def _before_growing(trained: RunFolder, source: Path) -> Path:
    """The ids that the checkpoints of a run belong to, where those given are these and more."""
    import torch

    from gritvq.items.ids import SemanticIds

    copies = (trained.checkpoint_ids, trained.recommender / "ids")  # runs of before have the second only
    kept = next((own for own in copies if folder_exists(own)), None)
    if kept is None:
        return source
    place = RunFolder(source).any_ids
    if not SemanticIds.is_saved_in(place):  # they were moved or removed
        return kept
    given, own = SemanticIds.load(place), SemanticIds.load(kept)
    rows = given.rows_of(own.items, unknown="skip")
    return kept if bool((rows >= 0).all()) and torch.equal(given.codes[rows], own.codes) else source


def _ids_for(folder: Path, items: Sequence[Any]) -> Any:
    """Ids with rows in the order of the data's items."""
    from gritvq.items.ids import SemanticIds

    ids = SemanticIds.load(RunFolder(folder).any_ids)
    if ids.items == tuple(items):
        return ids
    codes = ids.ids_of(items)  # raises if an item has none
    return SemanticIds(codes, ids.codebook_sizes, items, collisions=ids.collisions, fingerprint=ids.fingerprint)


def _splits(split: Any) -> dict[str, dict[str, int]]:
    """Numbers of users and events."""
    counts = split.report()
    held_out = {"users": counts["evaluated_users"], "events": counts["evaluated_users"]}
    return {
        "train": {"users": counts["users"], "events": counts["train_events"]},
        **dict.fromkeys(("validation", "test"), held_out),
    }


def _tested(recommender: Any, split: Any, num_users: int | None) -> dict[str, float]:
    """Metrics of test targets in lists found by beam search."""
    import torch

    from gritvq.items.recommenders import rank_in_list, ranking_metrics

    inputs, targets = split.test_inputs, split.test
    users = torch.arange(len(targets))
    if num_users is not None and num_users < len(users):
        users = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))[:num_users].sort().values
    ranks = []
    for block in tracked(users.split(64), f"testing {len(users):,} users, block"):
        ranks.append(rank_in_list(recommender.recommend(inputs[block], 10).cpu(), targets[block]))
    return ranking_metrics(torch.cat(ranks))


def read_data(settings: dict[str, Any], k_core: int | None, vectors: bool = False) -> Any:
    """Interactions and catalogue, restricted to the k-core if given; ``vectors`` are looked for if they are needed."""
    from gritvq.items.catalogue import read_item_data

    items = read_item_data(**settings, vectors=vectors)
    return items if k_core is None else items.k_core(k_core)
