"""The verb ``recommend``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from gritvq.cli.fit_items import read_data
from gritvq.cli.output import table, trusted_argument
from gritvq.cli.settings import check_positive
from gritvq.training.run_folder import RunFolder

__all__ = ["recommend", "recommend_arguments"]


def recommend_arguments(parser: Any) -> None:
    """Arguments of recommend."""
    parser.add_argument("run", type=str, help="folder of a run of 'fit items', or of a recommender")
    parser.add_argument("--user", type=str | None, default=None, help="key of a user in the data")
    parser.add_argument(
        "--history", type=str | None, default=None, help='items, oldest first: [KEY,KEY,...]; "quote" keys with a comma'
    )
    parser.add_argument("--data", type=str | None, default=None, help="data folder; the run's own if not given")
    parser.add_argument("--k", type=int, default=10, help="number of items to recommend")
    parser.add_argument("--beam", type=int | None, default=None, help="beam size; the recommender's if not given")
    parser.add_argument("--exact", type=bool, default=False, help="score the whole catalogue instead of beam search")
    parser.add_argument("--column", type=str, default="title", help="column of the catalogue to show")
    trusted_argument(parser)


def recommend(parser: Any, config: Any) -> None:
    """Recommend items to a user, or for a history of items."""
    from gritvq.items.recommenders import GenerativeRecommender, top_items

    if (config.user is None) == (config.history is None):
        raise ValueError("expected either --user or --history, got both or neither; give one")
    check_positive(k=config.k)
    run = RunFolder(config.run)
    folder = run.recommender if run.recommender.is_dir() else run.path
    recommender = GenerativeRecommender.from_pretrained(folder, trusted=config.trusted)
    ids = recommender.ids
    items = _items_of(run, config.data, needed=config.user is not None)
    if config.history is not None:
        history = ids.rows_of(_keys(_listed(config.history), ids.items))
        if not len(history):
            raise ValueError("expected at least one item in --history, got none; give [KEY,...]")
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
        order = recommender.order.to(exact.device)  # items of one id by priority
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


def _items_of(run: RunFolder, data: str | None, needed: bool) -> Any:
    """The given data or the run's; None if there is none and it is not needed."""
    import yaml

    try:
        saved = yaml.safe_load(run.config.read_text(encoding="utf-8"))
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


def _listed(text: str) -> list[str]:
    """Keys as typed: [a, 007, "b, c"]."""
    inside = text.strip()
    if inside.startswith("[") and inside.endswith("]"):
        inside = inside[1:-1].strip()
    quote = "'" if inside.startswith("'") else '"'
    return [key.strip() for key in next(csv.reader([inside], skipinitialspace=True, quotechar=quote), [])]


def _keys(given: Sequence[int | str], known: Sequence[Any]) -> list[Any]:
    """Keys of the command line, with the type of the data's keys."""
    if not isinstance(known[0], int):
        return [str(key) for key in given]
    try:
        return [int(key) for key in given]
    except ValueError as error:
        raise ValueError(f"expected whole numbers as keys, as in the data, got {list(given)}; correct them") from error


def _shown(items: Any, column: str) -> dict[Any, str]:
    from gritvq.items.layouts import text_of

    if items is None:
        return {}
    columns = items.catalogue.columns
    if column not in columns:
        if column == "title":  # the default
            return {}
        raise ValueError(f"expected a column of {', '.join(columns) or 'none'}, got {column!r}; choose one")
    return {key: text_of(text)[:60] for key, text in zip(items.catalogue.keys, columns[column], strict=True)}
