"""Events and items of public layouts as pyarrow tables."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.items.layouts import amazon, movielens, recbole
from gritvq.items.layouts.files import bare_name
from gritvq.items.layouts.lines import Items, Rows, csv_header, lines
from gritvq.lazy import optional

__all__ = ["event_batches", "events_table", "items_table"]

_logger = logging.getLogger(__name__)
_ROWS = 65536  # events held as Python objects at a time


def event_batches(
    paths: Sequence[Path], user: str = "user", item: str = "item", order: Sequence[str] | None = None
) -> Iterator[Any]:
    """Events of files in a public layout as pyarrow record batches, one file after the other.

    Args:
        paths: The files, all of one layout.
        user: Column of users; only RecBole has others, see :func:`gritvq.items.layouts.recbole.events`.
        item: Column of items.
        order: Columns of times.

    Yields:
        Batches with the columns ``user``, ``item``, ``timestamp`` (in the layout's unit: seconds, of Amazon 2023
        milliseconds), ``rating``; of RecBole all columns of the file.

    Raises:
        ValueError: If a line is no event, a file is damaged or has none, or columns of files differ.
    """
    first: dict[str, Any] = {}
    for path in paths:
        found = _events(path, user, item, order or ())
        first = first or found.types
        if list(found.types.items()) != list(first.items()):
            raise ValueError(
                f"expected the columns {', '.join(first)} of {paths[0].name} in {str(path)!r}, got "
                f"{', '.join(found.types)}; name one file."
            )
        empty = True
        while rows := list(itertools.islice(found.rows, _ROWS)):
            empty = False
            yield optional("pyarrow", "items").record_batch(_arrays(found.types, rows), names=list(found.types))
        if empty:
            raise ValueError(f"expected events in {str(path)!r}, got none; the file is empty, download it again.")


def events_table(
    paths: Sequence[Path], user: str = "user", item: str = "item", order: Sequence[str] | None = None
) -> Any:
    """All events of :func:`event_batches` as one pyarrow table."""
    return optional("pyarrow", "items").Table.from_batches(event_batches(paths, user, item, order))


def items_table(path: Path | None, keys: Sequence[Any] | None = None, item: str = "item") -> Any:
    """Metadata of items in a public layout as a pyarrow table.

    It has the column ``item`` first, those of the layout and ``item_text``. That is what an item is called: its title,
    brand, and categories or genres, those that it has, joined by ``"; "``; or else its key.

    Args:
        path: The file; None for nothing but keys.
        keys: Keys of the items to read, in the order of the result, all integers or all strings; None reads all items
            in the order of the file. Only the metadata of these is held in memory. An item without any stays, with
            empty columns. Of several lines about one item the first counts.
        item: Column of items of RecBole; called so if the file has it.

    Raises:
        ValueError: If a line is no item, or the file is empty, damaged, or of items with keys of another type.
    """
    pyarrow = optional("pyarrow", "items")
    kind = pyarrow.int64() if keys is not None and isinstance(next(iter(keys), ""), int) else pyarrow.string()
    wanted = None if keys is None else frozenset(keys)
    found = Items({"item": kind}, iter(()), lambda row: "") if path is None else _items(path, wanted, item)
    own = next(iter(found.types.values()))
    if keys is not None and own != kind:
        raise ValueError(
            f"expected items with keys such as {keys[0]!r} in {str(path)!r}, got keys of the type "
            f"{own}; take the metadata of the same data set."
        )
    rows: dict[Any, Sequence[Any]] = {}
    repeated = 0
    for row in found.rows:
        if wanted is None or row[0] in wanted:
            repeated += row[0] in rows
            rows.setdefault(row[0], row)
    order = list(rows) if keys is None else list(keys)
    bare = sum(key not in rows for key in order)
    if path is not None and bare:
        _logger.warning("items: %d of %d have no metadata in %s; their text is their key.", bare, len(order), path.name)
    if path is not None and repeated:
        _logger.warning("items: %d lines of %s are about an item that came before; ignored.", repeated, path.name)
    filled = [rows.get(key) or [key, *[None] * (len(found.types) - 1)] for key in order]
    columns = dict(zip(found.types, _arrays(found.types, filled), strict=True))
    texts = [found.text(dict(zip(found.types, row, strict=True))) or str(row[0]) for row in filled]
    columns.setdefault("item_text", pyarrow.array(texts, pyarrow.string()))
    return pyarrow.table(columns)


def _arrays(types: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> list[Any]:
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    return [
        optional("pyarrow", "items").array(values, kind) for values, kind in zip(columns, types.values(), strict=True)
    ]


def _events(path: Path, user: str, item: str, order: Sequence[str]) -> Rows:
    name = bare_name(path)
    if name.endswith(".inter"):
        return recbole.events(path, user, item, order)
    if name.endswith((".json", ".jsonl")):
        return amazon.events(path)
    if name.endswith(".csv") and not set(movielens.CSV_FIELDS[:2]) <= set(csv_header(path)):
        return amazon.csv_events(path)
    return movielens.events(path, name)


def _items(path: Path, wanted: frozenset[Any] | None, item: str) -> Items:
    name = bare_name(path)
    if next(lines(path), None) is None:
        raise ValueError(f"expected items in {str(path)!r}, got an empty file; download it again.")
    if name.endswith((".json", ".jsonl")):
        return amazon.items(path, wanted)
    if name.endswith(".item") and name != "u.item":
        return recbole.items(path, item)
    return movielens.items(path, name)
