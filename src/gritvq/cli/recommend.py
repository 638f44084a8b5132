"""Recommenders of items: ``fit`` where a backbone is given, and ``recommend``."""

from __future__ import annotations

import csv
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gritvq.cli.output import arguments_of, report, table, tracked, trusted_argument
from gritvq.cli.run_folder import check_settings, extra_arguments, extras_of, open_run, place_of, run_training
from gritvq.cli.semantic_ids import make_ids, tokenizer_arguments, write_ids
from gritvq.files import regular_file

__all__ = ["fit_recommender", "fit_recommender_arguments", "recommend", "recommend_arguments", "trains_recommender"]


def trains_recommender(argv: Sequence[str]) -> bool:
    """Whether these arguments of ``fit`` give a backbone, themselves or in their configuration file."""
    import yaml

    if any(word.split("=")[0].split(".")[0] == "--backbone" for word in argv):
        return True
    for place, word in enumerate(argv):
        name, _, path = word.partition("=")
        if name == "--config":
            path = path or "".join(argv[place + 1 : place + 2])
            try:
                content = yaml.safe_load(regular_file(path).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                return False  # the parser says what is wrong with it
            return isinstance(content, dict) and "backbone" in content
    return False


def fit_recommender_arguments(parser: Any) -> None:
    """Backbone, ids, data, task and plan."""
    from gritvq.items.catalogue import read_item_data
    from gritvq.items.recommenders import Backbone
    from gritvq.items.sequences import SequenceData
    from gritvq.items.task import RecommenderTask
    from gritvq.training import TrainingPlan

    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_subclass_arguments(Backbone, "backbone", skip={"codebook_sizes"}, instantiate=False, required=True)
    parser.add_argument(
        "--ids",
        type=str | None,
        default=None,
        help="folder written by semantic-ids fit, or ids themselves; made by the tokenizer if not given",
    )
    tokenizer_arguments(parser)
    parser.add_function_arguments(read_item_data, "data")
    parser.add_argument(
        "--k_core", type=int | None, default=None, help="leave out users and items with fewer events, repeatedly"
    )
    parser.add_class_arguments(SequenceData, "batches", skip={"split", "every_prefix"}, instantiate=False)
    parser.add_class_arguments(RecommenderTask, "task", skip={"recommender"}, instantiate=False)
    parser.add_class_arguments(TrainingPlan, "plan")
    extra_arguments(parser)
    parser.add_argument("--beam", type=int, default=50, help="prefixes kept when the test is made and later on")
    parser.add_argument("--num_test", type=int | None, default=None, help="users of the test; all if not given")
    parser.add_argument("--out", type=str, default="runs/recommender", help="folder of the run")
    parser.add_argument(
        "--resume", type=str | None, default=None, help="checkpoint to go on from, or 'last' for the run's own"
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        default=None,
        help="recommender whose weights a new run starts from",
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="whether an existing run may be replaced")


def fit_recommender(parser: Any, config: Any) -> None:
    """Train a recommender that writes the id of the next item."""
    from gritvq.files import write_json
    from gritvq.items.recommenders import GenerativeRecommender, Popularity
    from gritvq.items.sequences import SequenceData
    from gritvq.items.task import RecommenderTask
    from gritvq.training import TrainingPlan
    from gritvq.training.launch import Launch
    from gritvq.training.run import check_checkpoint, seed_everything

    plan = TrainingPlan(**arguments_of(config.plan))
    place = place_of(config, Launch(plan))
    folder = str(Path(config.data.folder).expanduser().resolve())  # where `recommend` looks for users
    changes = {"data.folder": folder}
    check_settings(parser, config, place, changes)
    if config.num_test is not None and config.num_test < 1:
        raise ValueError(f"expected num_test >= 1, got {config.num_test}")
    given = None if config.ids is None else Path(config.ids).resolve()
    if place.fresh and given is not None and place.out.resolve() in (given, *given.parents):
        raise ValueError(
            f"expected ids outside of the run's own folder {place.out}, got {config.ids}; choose another --out"
        )
    seed_everything(config.plan.seed)
    items = _data(config.data.as_dict(), config.k_core)
    tokenizer = None
    if config.ids is None and place.fresh:
        tokenizer = parser.instantiate(config).tokenizer
        ids = make_ids(tokenizer, items.catalogue.vectors(), items.catalogue.keys, config.collisions)
    else:
        ids = _ids_for(config.ids or str(place.out / "semantic-ids"), items.interactions.item_keys)
    split = items.interactions.split()
    popularity = Popularity(split.train, split.num_items).counts
    backbone = _class(config.backbone.class_path)(ids.codebook_sizes, **arguments_of(config.backbone.init_args))
    settings = arguments_of(config.batches)
    data = SequenceData(split, every_prefix=backbone.every_prefix, **settings)
    recommender = GenerativeRecommender(
        backbone, ids, max_history=settings["max_history"], beam=config.beam, priority=popularity
    )
    task = RecommenderTask(recommender, **arguments_of(config.task))
    done = 0
    if place.resume is not None:
        done = check_checkpoint(task, plan, place.resume)
    elif config.init_from is not None:
        task.start_from(GenerativeRecommender.from_pretrained(config.init_from))
    open_run(parser, config, place, done, changes)
    if tokenizer is not None:
        write_ids(place.out / "semantic-ids", tokenizer, ids)
    out = place.out
    started = time.perf_counter()
    extras = extras_of(parser, config)
    trainer = run_training(task, data, plan, place, done, **extras)
    minutes = (time.perf_counter() - started) / 60
    if not trainer.is_global_zero:
        return
    chosen = GenerativeRecommender.from_pretrained(out / "recommender")
    numbers = _tested(chosen.to(trainer.strategy.root_device), split, config.num_test)
    write_json(out / "metrics.json", numbers)
    rows = [(name, f"{value:.4f}") for name, value in numbers.items()]
    rows.append(("training time", f"{minutes:.1f} minutes"))
    files = {"recommender": out / "recommender", "numbers": out / "metrics.json", "logs": out / "logs"}
    users = min(config.num_test or len(split.users), len(split.users))
    report(f"test, {users:,} users, whole catalogue", rows, files)


def _ids_for(folder: str, items: Sequence[Any]) -> Any:
    """Ids, their rows in the order of the data's items."""
    from gritvq.items.ids import SemanticIds

    path = Path(folder)
    ids = SemanticIds.load(path / "ids" if (path / "ids").is_dir() else path)
    if ids.items == tuple(items):
        return ids
    codes = ids.ids_of(items)  # says which item has none
    return SemanticIds(codes, ids.codebook_sizes, items, collisions=ids.collisions, fingerprint=ids.fingerprint)


def _class(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def _tested(recommender: Any, split: Any, num_users: int | None) -> dict[str, float]:
    """Item-level metrics of test targets, found by beam search."""
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


# --- recommend --------------------------------------------------------------------------------------------------------


def recommend_arguments(parser: Any) -> None:
    """A recommender, and whom it is to recommend to."""
    parser.add_argument("run", type=str, help="folder of a run of fit with a backbone, or the recommender itself")
    parser.add_argument("--user", type=str | None, default=None, help="key of a user of the run's data")
    parser.add_argument(
        "--history", type=str | None, default=None, help='[KEY,KEY,...]: items, oldest first; "quoted" with a comma'
    )
    parser.add_argument("--data", type=str | None, default=None, help="data folder; the run's own if not given")
    parser.add_argument("--k", type=int, default=10, help="items to recommend")
    parser.add_argument("--beam", type=int | None, default=None, help="prefixes kept; the recommender's if not given")
    parser.add_argument("--exact", type=bool, default=False, help="score the whole catalogue instead of searching")
    parser.add_argument("--column", type=str, default="title", help="column of the catalogue to show")
    trusted_argument(parser)


def recommend(parser: Any, config: Any) -> None:
    """Recommend items to a user, or after a history."""
    from gritvq.items.recommenders import GenerativeRecommender, top_items

    if (config.user is None) == (config.history is None):
        raise ValueError("expected either --user or --history, got both or neither")
    if config.k < 1:
        raise ValueError(f"expected k >= 1, got {config.k}")
    run = Path(config.run)
    folder = run / "recommender" if (run / "recommender").is_dir() else run
    recommender = GenerativeRecommender.from_pretrained(folder, trusted=config.trusted)
    ids = recommender.ids
    items = _items_of(run, config.data, needed=config.user is not None)
    if config.history is not None:
        history = ids.rows_of(_keys(_listed(config.history), ids.items))
        if not len(history):
            raise ValueError("expected at least one item in --history, got none")
    else:
        if items is None:
            raise ValueError("expected --data with the user's events, got none, and the run names none")
        user = _keys([config.user], items.interactions.user_keys)[0]
        if user not in items.interactions.user_keys:
            known = items.interactions.user_keys
            raise ValueError(
                f"expected one of the data's {len(known):,} users, such as {known[0]!r}, got {user!r}; give new users "
                "as --history"
            )
        events = items.interactions.histories[items.interactions.user_keys.index(user)]
        history = ids.rows_of([items.interactions.item_keys[row] for row in events.tolist()])
    rows = history.tolist()
    scores = None
    if config.exact:
        exact = recommender.scores([rows])
        order = recommender.trie.rows.to(exact.device)  # items of one id by priority
        found = order[top_items(exact[:, order], min(config.k, len(ids)))[0]]
        scores = exact[0, found]
    else:
        found = recommender.recommend([rows], config.k, beam=config.beam)[0]
    found = found[found >= 0]
    names = _shown(items, config.column)
    columns = ["rank", "item", "id"]
    columns += ["log-probability"] if scores is not None else []
    columns += [config.column] if names else []
    lines = []
    for rank, row in enumerate(found.tolist(), 1):
        key = ids.items[row]
        line = [str(rank), str(key), " ".join(map(str, ids.codes[row].tolist()))]
        line += [f"{float(scores[rank - 1]):.2f}"] if scores is not None else []
        lines.append([*line, *([names.get(key, "")] if names else [])])
    last = ids.items[rows[-1]]
    print(f"after {len(rows)} items, the last one {last!r}{': ' + names[last] if names and last in names else ''}")
    table("recommended", columns, lines)


def _items_of(run: Path, data: str | None, needed: bool) -> Any:
    """The data named, or that of the run; None where there is none and it is only for show."""
    import yaml

    try:
        saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        settings, k_core = dict(saved["data"]), saved.get("k_core")
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None if data is None else _data({"folder": data}, None)
    if data is not None:
        return _data({**settings, "folder": data}, k_core)
    try:
        return _data(settings, k_core)
    except ValueError:
        if needed:
            raise
        return None


def _data(settings: dict[str, Any], k_core: int | None) -> Any:
    from gritvq.items.catalogue import read_item_data

    items = read_item_data(**settings)
    return items if k_core is None else items.k_core(k_core)


def _listed(text: str) -> list[str]:
    """Keys as they were typed: [a, 007, "b, c"]."""
    inside = text.strip()
    if inside.startswith("[") and inside.endswith("]"):
        inside = inside[1:-1].strip()
    quote = "'" if inside.startswith("'") else '"'
    return [key.strip() for key in next(csv.reader([inside], skipinitialspace=True, quotechar=quote), [])]


def _keys(given: Sequence[int | str], known: Sequence[Any]) -> list[Any]:
    """Keys of the command line as the type that keys have."""
    if not isinstance(known[0], int):
        return [str(key) for key in given]
    try:
        return [int(key) for key in given]
    except ValueError as error:
        raise ValueError(f"expected whole numbers as keys, as the data has, got {list(given)}") from error


def _shown(items: Any, column: str) -> dict[Any, str]:
    if items is None:
        return {}
    columns = items.catalogue.columns
    if column not in columns:
        if column == "title":  # nobody asked for it
            return {}
        raise ValueError(f"expected a column of {', '.join(columns) or 'none'}, got {column!r}")
    return {key: str(text)[:60] for key, text in zip(items.catalogue.keys, columns[column], strict=True)}
