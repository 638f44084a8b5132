"""The verb ``recommend``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gritvq.cli.errors import read_yaml
from gritvq.cli.fit_items import read_data, recommender_folder
from gritvq.cli.machine import device_argument, device_named
from gritvq.cli.output import report, table, trusted_argument
from gritvq.cli.requests import check_request_place, keys_like, recommend_requests
from gritvq.cli.run_folder import check_places, overwrite_argument
from gritvq.cli.settings import check_positive, check_unused
from gritvq.training.run_folder import RunFolder

__all__ = ["export_recommender", "is_recommender", "recommend", "recommend_arguments"]

_CODES = 8  # of an id are shown at most
_OF_FILES = ["id_column", "history_column", "history_from", "unknown", "batch_size", "out", "overwrite"]


def recommend_arguments(parser: Any) -> None:
    """Arguments of recommend."""
    parser.add_argument("run", type=str, help="folder of a run of 'fit items', or a recommender's folder or Hub name")
    parser.add_argument("--user", type=str | None, default=None, help="key of a user in the data")
    parser.add_argument(
        "--history", type=str | None, default=None, help='items, oldest first: [KEY,KEY,...]; "quote" keys with a comma'
    )
    parser.add_argument(
        "--requests",
        type=str | None,
        default=None,
        help="file with an id and a history per row, .parquet, .csv or .jsonl; writes the lists to --out",
    )
    parser.add_argument("--id_column", type=str, default="id", help="column of the requests' ids, which must differ")
    parser.add_argument(
        "--history_column", type=str, default="history", help="column of the histories: lists of items, oldest first"
    )
    parser.add_argument(
        "--history_from",
        default="file",
        choices=["file", "data"],
        help="where histories of the requests are: in the file, or in the data, whose users the ids name then",
    )
    parser.add_argument(
        "--unknown",
        default="error",
        choices=["error", "skip"],
        help="what to do about items of the requests that have no id",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="requests that are computed together, at most")
    parser.add_argument(
        "--out", type=str, default="recommendations.parquet", help="file for the lists of --requests: .parquet"
    )
    overwrite_argument(parser)
    parser.add_argument(
        "--ids",
        type=str | None,
        default=None,
        help="folder of the ids with items added by semantic-ids add; the recommender's own if not given",
    )
    parser.add_argument("--data", type=str | None, default=None, help="data folder; the run's own if not given")
    parser.add_argument("--k", type=int, default=10, help="number of items to recommend")
    parser.add_argument("--beam", type=int | None, default=None, help="beam size; the recommender's if not given")
    parser.add_argument("--exact", type=bool, default=False, help="score the whole catalogue instead of beam search")
    parser.add_argument(
        "--exclude_seen",
        type=bool,
        default=False,
        help="recommend no item of the history; a recommender made so never does",
    )
    parser.add_argument(
        "--only",
        type=str | None,
        default=None,
        help="recommend only items of this file: .txt with a key per line, or .parquet or .csv with the column --item",
    )
    parser.add_argument(
        "--where",
        type=list[str],
        default=[],
        help="recommend only items of the catalogue with all of these values: [COLUMN=VALUE,...]",
    )
    parser.add_argument(
        "--catalogue",
        type=str | None,
        default=None,
        help="file with the columns of --where and --column; the data's if not given",
    )
    parser.add_argument("--item", type=str, default="item", help="column of the keys in --only and --catalogue")
    parser.add_argument("--column", type=str, default="title", help="column of the catalogue to show")
    device_argument(parser)
    trusted_argument(parser)


def recommend(parser: Any, config: Any) -> None:
    """Recommend items to a user, for a history of items, or for all requests of a file."""
    from gritvq.items import read_catalogue

    given = [name for name in ("user", "history", "requests") if config[name] is not None]
    if len(given) != 1:
        raise ValueError(
            f"expected either --user, --history or --requests, got {' and '.join(given) or 'none'}; give one"
        )
    check_positive(k=config.k, batch_size=config.batch_size)
    if given == ["requests"]:
        check_unused(parser, config, ["column"], "a file of requests")
        check_request_place(config)
    else:
        check_unused(parser, config, _OF_FILES, "a single user")
    if given == ["requests"] and not config.where:
        check_unused(parser, config, ["catalogue"], "a file of requests without --where")
    if config.history_from == "data":
        check_unused(parser, config, ["history_column"], "histories of the data")
    if config.only is None and config.catalogue is None:
        check_unused(parser, config, ["item"], "lists without --only and --catalogue")
    device = device_named(config.device)
    run = RunFolder(config.run)
    recommender = _loaded(config.run, config.trusted, config.ids).to(device)
    told = config.user is not None or config.history_from == "data"
    needed = told or (config.where and config.catalogue is None)
    items = _items_of(run, config.data, needed) if needed or config.requests is None else None
    known = [] if items is None else [items.catalogue]
    if config.catalogue is not None:
        known.insert(0, read_catalogue(config.catalogue, item=config.item, vectors=False))
    allowed = _allowed(config, recommender.ids, known[0] if known else None)
    if told and items is None:
        raise ValueError("expected --data with the users' events, got none, and the run names none")
    if config.requests is not None:
        recommend_requests(recommender, config, allowed, items.interactions if items is not None and told else None)
    else:
        _show(recommender, config, items, _shown(known, config.column), allowed)


def is_recommender(source: str) -> bool:
    """Whether this is the folder of a recommender, or of a run that made one."""
    from gritvq.items import GenerativeRecommender

    return RunFolder(source).recommender.is_dir() or GenerativeRecommender.is_saved_in(source)


def export_recommender(config: Any) -> None:
    """Export a recommender, see :func:`gritvq.cli.measure.export_arguments`."""
    from gritvq.items.recommenders.program import compare_recommender

    name = f"recommender.{'onnx' if config.format == 'onnx' else 'pt2'}"
    check_places(Path(config.out), [name], config.overwrite)
    recommender = _loaded(config.tokenizer, config.trusted, config.ids)
    path = recommender.export(config.out, config.format, k=config.k, beam=config.beam)
    identical, difference = compare_recommender(recommender, path, config.k, config.beam)
    rows = [
        ("items", f"{recommender.num_items:,}"),
        ("identical items in lists for random histories", f"{int(identical.sum()):,} of {identical.numel():,}"),
        ("largest difference of their scores", f"{difference:.1e}"),
    ]
    report("exported", rows, {"recommender": path})


def _loaded(source: str, trusted: Sequence[str], ids: str | None) -> Any:
    """The recommender of a run or in a folder, with these ids instead of its own if given."""
    from gritvq.items import GenerativeRecommender, SemanticIds

    folder = recommender_folder(source)
    if ids is None:
        return GenerativeRecommender.from_pretrained(folder, trusted=trusted)
    found = SemanticIds.load(RunFolder(ids).any_ids)
    return GenerativeRecommender.from_pretrained(folder, found, trusted)


def _show(recommender: Any, config: Any, items: Any, names: dict[Any, str], allowed: Any) -> None:
    """Print the items for one user or history, with their names."""
    ids = recommender.ids
    if config.history is not None:
        from gritvq.items import listed_keys

        history = ids.rows_of(keys_like(listed_keys(config.history), ids.items))
        if not len(history):
            raise ValueError("expected at least one item in --history, got none; give [KEY,...]")
    else:
        user = keys_like([config.user], items.interactions.user_keys)[0]
        if user not in items.interactions.user_keys:
            known = items.interactions.user_keys
            raise ValueError(
                f"expected one of the data's {len(known):,} users, such as {known[0]!r}, got {user!r}; give new users "
                "as --history"
            )
        events = items.interactions.histories[items.interactions.user_keys.index(user)]
        history = ids.rows_of([items.interactions.item_keys[row] for row in events.tolist()])
    rows = history.tolist()
    exclude = [rows] if config.exclude_seen else None
    best = recommender.best(
        [rows], min(config.k, len(ids)), beam=config.beam, exact=config.exact, allowed=allowed, exclude=exclude
    )
    found, scores = best.items[0][best.items[0] >= 0], best.scores[0]
    columns = ["rank", "item", "id"]
    columns += ["score"] if config.exact else []
    columns += [config.column] if names else []
    lines = []
    for rank, row in enumerate(found.tolist(), 1):
        key = ids.items[row]
        codes = ids.codes[row].tolist()
        line = [str(rank), str(key), " ".join(map(str, codes[:_CODES])) + (" ..." if len(codes) > _CODES else "")]
        line += [f"{float(scores[rank - 1]):.2f}"] if config.exact else []
        lines.append([*line, *([names.get(key, "")] if names else [])])
    if not lines:
        raise ValueError("expected filters that leave an item to recommend, got ones that leave none; relax them")
    last = ids.items[rows[-1]]
    print(f"after {len(rows)} items, the last one {last!r}{': ' + names[last] if names and last in names else ''}")
    table("recommended", columns, lines)


def _allowed(config: Any, ids: Any, catalogue: Any) -> Any:
    """Which items with an id pass --only and --where; None if neither is given.

    Raises:
        ValueError: If a condition has no column or value, or no item with an id passes.
    """
    import torch

    if config.only is None and not config.where:
        return None
    allowed = torch.ones(len(ids), dtype=torch.bool)
    if config.only is not None:
        allowed &= _rows_among(ids, _keys_of(config.only, config.item))
    if config.where:
        if catalogue is None:
            raise ValueError("expected --catalogue with the columns of --where, got none, and the run names no data")
        for condition in config.where:
            column, sign, value = condition.partition("=")
            if not sign:
                raise ValueError(f"expected --where as [COLUMN=VALUE,...], got {condition!r}; write it so")
            passing = catalogue.where(column.strip(), value)
            allowed &= _rows_among(ids, [key for key, one in zip(catalogue.keys, passing.tolist(), strict=True) if one])
    if not bool(allowed.any()):
        told = [*(["--only"] if config.only is not None else []), *(["--where"] if config.where else [])]
        raise ValueError(
            f"expected filters that leave an item to recommend, got {' and '.join(told)} that none of the {len(ids):,} "
            "items with an id passes; correct them"
        )
    return allowed


def _rows_among(ids: Any, keys: Sequence[Any]) -> Any:
    """Which items are among these keys; keys without an id are ignored."""
    import torch

    mask = torch.zeros(len(ids), dtype=torch.bool)
    rows = ids.rows_of(keys_like(keys, ids.items), unknown="skip")
    mask[rows[rows >= 0]] = True
    return mask


def _keys_of(path: str, item: str) -> Sequence[Any]:
    """The keys in a file of items."""
    from gritvq.files import regular_file
    from gritvq.items import read_catalogue

    if Path(path).suffix != ".txt":
        return read_catalogue(path, item=item, vectors=False).keys
    lines = regular_file(Path(path).expanduser(), "a file of item keys").read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _items_of(run: RunFolder, data: str | None, needed: bool) -> Any:
    """The given data or the run's; None if there is none and it is not needed."""
    import yaml

    try:
        saved = read_yaml(run.config)
        settings, k_core = dict(saved["data"]), saved.get("k_core")
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None if data is None else read_data({"folder": data}, None)
    if data is not None:
        return read_data({**settings, "folder": data}, k_core)
    try:
        return read_data(settings, k_core)
    except ValueError:
        if needed:
            raise
        return None


def _shown(catalogues: Sequence[Any], column: str) -> dict[Any, str]:
    """What to call the items: a column of these catalogues, the first one's words first."""
    from gritvq.items.layouts import text_of

    having = [catalogue for catalogue in catalogues if column in catalogue.columns]
    if catalogues and not having and column != "title":  # the default
        names = ", ".join(dict.fromkeys(name for catalogue in catalogues for name in catalogue.columns))
        raise ValueError(f"expected a column of {names or 'none'}, got {column!r}; choose one")
    return {
        key: text_of(text)[:60]
        for catalogue in reversed(having)
        for key, text in zip(catalogue.keys, catalogue.columns[column], strict=True)
    }
