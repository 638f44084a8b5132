"""Item data in a public layout, written in our own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gritvq.files import replacing_files
from gritvq.items.layouts.files import layout_files
from gritvq.items.layouts.tables import event_batches, items_table
from gritvq.lazy import optional

__all__ = ["convert_item_data"]


def convert_item_data(
    source: str | Path,
    folder: str | Path,
    *,
    user: str = "user",
    item: str = "item",
    interactions: str | Path | None = None,
    items: str | Path | None = None,
) -> dict[str, int]:
    r"""Writes item data in a public layout as ``interactions.parquet`` and ``items.parquet``.

    :func:`gritvq.items.read_item_data` reads the same from both. Parquet files are read several times faster, any tool
    can filter them, and the folder is the place for ``item_embeddings.npy``. Events are written while they are read,
    with their ratings; only keys of users and items, and the metadata of items with events, are held in memory.

    Args:
        source: Folder with one data set, or the file of events in it.
        folder: Folder to write into; existing files of these names are replaced.
        user: Column of users of RecBole's files, if it has no usual name there; called ``user`` in what is written.
        item: Column of items, likewise.
        interactions: Path of the events in the source; None finds them.
        items: Path of the metadata in the source; None finds it.

    Returns:
        Numbers of ``events``, ``users`` and ``items``.

    Raises:
        ValueError: If the source holds no data set in a public layout, or several, or is damaged, or has another column
            called ``user`` or ``item`` beside those named; nothing is written.

    Example:
        >>> import tempfile
        >>> from gritvq.items import read_item_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "u.data").write_text("7\t12\t4\t880000000\n")
        ...     numbers = convert_item_data(folder, folder)
        ...     numbers, read_item_data(folder).catalogue.columns
        ({'events': 1, 'users': 1, 'items': 1}, {'item_text': ['12']})
    """
    parquet = optional("pyarrow.parquet", "items")
    path = Path(source).expanduser()
    if interactions is None and path.is_file():
        path, interactions = path.parent, path.name
    files = layout_files(path, interactions, items)
    if files is None:
        raise ValueError(
            f"expected item data of RecBole, Amazon reviews or MovieLens, got {str(source)!r}; Parquet and CSV files "
            "with columns of your own are read as they are."
        )
    users: set[Any] = set()
    keys: set[Any] = set()
    events, writer = 0, None
    with replacing_files(folder) as scratch, contextlib.ExitStack() as stack:
        for found in event_batches(files.events, user, item):
            batch = _renamed(found, {user: "user", item: "item"})
            if writer is None:
                place = scratch / "interactions.parquet"
                writer = stack.enter_context(parquet.ParquetWriter(place, batch.schema, compression="zstd"))
            writer.write_batch(batch)
            users.update(batch.column("user").unique().to_pylist())
            keys.update(batch.column("item").unique().to_pylist())
            events += len(batch)
        table = _renamed(items_table(files.items, sorted(keys), item), {item: "item"})
        parquet.write_table(table, scratch / "items.parquet", compression="zstd")
    return {"events": events, "users": len(users), "items": len(keys)}


def _renamed(table: Any, names: Mapping[str, str]) -> Any:
    """With these columns called otherwise, where it has them."""
    new = [names.get(name, name) for name in table.schema.names]
    if len(set(new)) < len(new):
        twice = next(name for name in new if new.count(name) > 1)
        raise ValueError(
            f"expected no column {twice!r} beside the one that is to be called so, got "
            f"{', '.join(table.schema.names)}; rename it in the file."
        )
    return table.rename_columns(new)
