"""Reading catalogues and interactions, and embedding item texts. Needs the extra ``items``.

:func:`read_item_data` reads a folder with ``interactions.parquet``, ``items.parquet`` and ``item_embeddings.npy``, or
one in a public layout: RecBole, Amazon reviews, MovieLens; see :mod:`gritvq.items.layouts`. Text encoders never see
interactions, so item embeddings cannot leak targets.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.files import check_footer, regular_file
from gritvq.items.interactions import Histories, Interactions, Key, Split, check_split, rows_of_keys, unique_keys
from gritvq.items.layouts import (
    events_table,
    has_events,
    has_items,
    holds_reviews,
    items_table,
    layout_files,
    own_table,
    text_of,
)
from gritvq.lazy import optional

__all__ = [
    "Catalogue",
    "Histories",
    "Interactions",
    "ItemData",
    "Key",
    "Split",
    "check_split",
    "open_vectors",
    "read_catalogue",
    "read_interactions",
    "read_item_data",
    "vectors_beside",
]

_logger = logging.getLogger(__name__)
_ORDER = ("timestamp", "position")  # default columns to order events by, most important first
_BLOCK = 65536  # embeddings checked at a time


@dataclass(frozen=True)
class Catalogue:
    """Items with their metadata and embeddings; row i of everything belongs to item i.

    Attributes:
        keys: Unique keys of the n items.
        columns: The other columns by name, n values each.
        embeddings: Item vectors (n, D), memory-mapped if read from a file; or None.

    Raises:
        ValueError: If keys repeat, or a column or the embeddings have another length.
    """

    keys: tuple[Key, ...]
    columns: Mapping[str, Sequence[Any]]
    embeddings: np.ndarray[Any, Any] | None = None

    def __post_init__(self) -> None:
        unique_keys(self.keys)
        lengths = {name: len(values) for name, values in self.columns.items()}
        if self.embeddings is not None:
            lengths["embeddings"] = len(self.embeddings)
        wrong = {name: length for name, length in lengths.items() if length != len(self.keys)}
        if wrong:
            raise ValueError(f"expected {len(self.keys)} rows, one per item, got {wrong}; give one row per item.")

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: Int[Tensor, " m"]) -> Catalogue:
        """The catalogue of these rows, in this order."""
        numbers = rows.tolist()
        columns = {name: [values[i] for i in numbers] for name, values in self.columns.items()}
        embeddings = None if self.embeddings is None else self.embeddings[rows.numpy()]
        return Catalogue(tuple(self.keys[i] for i in numbers), columns, embeddings)

    def where(self, column: str, value: str) -> Bool[Tensor, " n"]:
        """Which items have a value in a column, or in a column of lists among its values.

        Values are compared as text; ``"true"`` and ``"false"`` in any spelling, since a CSV file has no booleans.

        Args:
            column: A column.
            value: The value as text.

        Raises:
            ValueError: If there is no such column.

        Example:
            >>> shelf = Catalogue((1, 2), {"kind": ["soap", "comb"], "stock": [True, False], "for": [["hair"], []]})
            >>> shelf.where("kind", "comb").tolist(), shelf.where("stock", "true").tolist()
            ([False, True], [True, False])
            >>> shelf.where("for", "hair").tolist()
            [True, False]
        """
        if column not in self.columns:
            raise ValueError(f"expected a column of {', '.join(self.columns) or 'none'}, got {column!r}; choose one.")

        def fits(found: Any) -> bool:
            if isinstance(found, list | tuple):
                return any(map(fits, found))
            text, wanted = str(found).strip(), value.strip()
            return text == wanted or (wanted.lower() in ("true", "false") and text.lower() == wanted.lower())

        return torch.tensor([found is not None and fits(found) for found in self.columns[column]], dtype=torch.bool)

    def vectors(self) -> Float[Tensor, "n D"]:
        """The embeddings as a float32 tensor in memory.

        Raises:
            ValueError: If there are none, or one is not finite.
        """
        if self.embeddings is None:
            raise ValueError(
                "expected item embeddings, got none; make them with embed_texts (--text_model), or name their file."
            )
        for start in range(0, len(self.embeddings), _BLOCK):
            finite = np.isfinite(self.embeddings[start : start + _BLOCK]).all(axis=1)
            if not finite.all():
                row = start + int(finite.argmin())
                raise ValueError(
                    f"expected finite embeddings, got NaN or infinity for item {self.keys[row]!r}; fix or remove it."
                )
        return torch.from_numpy(np.array(self.embeddings, dtype=np.float32))

    def texts(self, fields: Sequence[str] = ("title",), *, fallback: str | None = None) -> list[str]:
        """One text per item: its non-empty fields, in the given order, joined by ``"; "``.

        White space is trimmed, and lists are joined by commas. The choice and order of fields change results more than
        most quantizers do, so report them with the results.

        Args:
            fields: Columns in order, for example ``("title", "brand", "categories")``.
            fallback: Column to use if all fields are empty.

        Raises:
            ValueError: If no field is named, a column does not exist or an item has no text.

        Example:
            >>> shelf = Catalogue((1, 2), {"title": ["Soap", " "], "brand": ["Acme", None], "kind": ["a", "b"]})
            >>> shelf.texts(("title", "brand"), fallback="kind")
            ['Soap; Acme', 'b']
        """
        if not fields:
            raise ValueError("expected at least one field, got none; name columns such as 'title'.")
        for name in (*fields, *([fallback] if fallback else [])):
            if name not in self.columns:
                raise ValueError(f"expected a column of {', '.join(self.columns) or 'none'}, got {name!r}; choose one.")
        texts = [
            "; ".join(filter(None, parts))
            for parts in zip(*(map(text_of, self.columns[f]) for f in fields), strict=True)
        ]
        if fallback:
            texts = [text or text_of(other) for text, other in zip(texts, self.columns[fallback], strict=True)]
        empty = [key for key, text in zip(self.keys, texts, strict=True) if not text]
        if empty:
            raise ValueError(
                f"expected a text for every item, got {len(empty)} without, such as {empty[0]!r}; name more fields "
                "(--fields, in Python also a fallback), or fill them in."
            )
        return texts


@dataclass(frozen=True)
class ItemData:
    """Interactions and their catalogue, with the same item rows.

    Attributes:
        interactions: Events of users with items.
        catalogue: The items.

    Raises:
        ValueError: If their item keys differ.
    """

    interactions: Interactions
    catalogue: Catalogue

    def __post_init__(self) -> None:
        if self.interactions.item_keys != self.catalogue.keys:
            raise ValueError(
                "expected interactions and catalogue with the same items in the same order, got different keys; read "
                "interactions with item_keys=catalogue.keys."
            )

    def k_core(self, k: int = 5) -> ItemData:
        """Both restricted to the k-core of the interactions; see :meth:`Interactions.k_core`."""
        kept = self.interactions.k_core(k)
        return ItemData(kept, self.catalogue.select(self.interactions.rows_of(kept.item_keys)))


def read_interactions(
    path: str | Path,
    *,
    user: str = "user",
    item: str = "item",
    order: str | Sequence[str] | None = None,
    item_keys: Sequence[Key] | None = None,
) -> Interactions:
    """Reads events from a Parquet or CSV file, one row per event, in any order; or from a file in a public layout.

    Keys in a CSV file are integers if all of them are written as Python writes integers, else strings: ``007`` stays
    ``"007"``. Item keys are strings if ``item_keys`` are. Only the columns of ``order`` are read as numbers or dates.

    Args:
        path: The file; ``.csv`` is read as CSV with a header, files of RecBole, Amazon reviews and MovieLens as they
            are, with the columns ``user``, ``item``, ``timestamp``, ``rating``; everything else as Parquet.
        user: Column of the user key, integers or strings.
        item: Column of the item key, integers or strings.
        order: Columns to sort each user's events by, most important first. None uses ``timestamp`` and ``position`` if
            they exist, else the order of the rows, and a warning says so. **Ties keep the order of the rows.**
        item_keys: Keys of the catalogue in order; None uses the items that occur, sorted by key.

    Returns:
        The interactions; see :meth:`Interactions.from_events` for what is checked.

    Raises:
        ValueError: If the file is missing or damaged, lacks a column, or its events are unusable.
    """
    path = Path(path).expanduser()
    text = item_keys is not None and len(item_keys) > 0 and isinstance(item_keys[0], str)
    columns = (order,) if isinstance(order, str) else order
    if has_events(path, (user, item)):
        table = events_table([path], user, item, columns)
    else:
        table = _read_table(path, {user: False, item: text}, _ORDER if columns is None else columns)
    return _interactions(table, path, user, item, columns, item_keys)


def read_catalogue(
    path: str | Path, *, item: str = "item", embeddings: str | Path | None = None, vectors: bool = True
) -> Catalogue:
    """Reads a catalogue from a Parquet or CSV file, one row per item, or in a public layout; and its embeddings.

    Keys in a CSV file are read as by :func:`read_interactions`. All other cells are read as strings, also if they look
    like numbers, dates or booleans; an empty cell is the empty string. Columns without a name are skipped.

    Args:
        path: The file; ``.csv`` is read as CSV with a header, metadata of RecBole, Amazon reviews and MovieLens as it
            is, with all items in the order of the file; everything else as Parquet. Of a folder or a file of events the
            catalogue of :func:`read_item_data`, which needs no events if there is ``items.parquet`` or ``items.csv``.
        item: Column of the item key, unique integers or strings.
        embeddings: A ``.npy`` file (n, D), memory-mapped; row i belongs to row i of the catalogue.
        vectors: Of a public layout, whether ``item_embeddings.npy`` beside it is taken where ``embeddings`` is None.

    Raises:
        ValueError: If a file is missing or damaged, a column is missing, keys repeat, or lengths differ.
    """
    path = Path(path).expanduser()
    named = None if embeddings is None else Path(embeddings).absolute()  # not a path in the folder of the data
    if path.is_dir():
        if (own := own_table(path, "items")) is None:
            return read_item_data(path, item=item, embeddings=named, vectors=vectors).catalogue
        path = own
    if has_items(path, (item,)) and not holds_reviews(path):
        return _catalogue(items_table(path, None, item), path, item, embeddings)
    if has_events(path, (item,)):
        return read_item_data(path, item=item, embeddings=named, vectors=vectors).catalogue
    return _catalogue(_read_table(path, {item: False}), path, item, embeddings)


def read_item_data(
    folder: str | Path,
    *,
    interactions: str | Path | None = None,
    items: str | Path | None = None,
    embeddings: str | Path | None = None,
    user: str = "user",
    item: str = "item",
    order: str | Sequence[str] | None = None,
    vectors: bool = True,
) -> ItemData:
    """Reads a folder with events, items and optionally item embeddings, in our own or a public layout.

    A folder with ``interactions`` or ``items`` as Parquet or CSV is in our own layout: every event must be about an
    item of the catalogue, and items may be without events.

    Otherwise files of RecBole (``X.inter``, ``X.item``), Amazon reviews (2014, 2018, 2023, with ``meta_X``) or
    MovieLens are read as they are downloaded; :mod:`gritvq.items.layouts` lists them. Then the catalogue has the items
    with events, sorted by key. Other metadata is left out, and an item without metadata stays, with empty columns. The
    column ``item_text`` holds title, brand, and categories or genres, or else the key.
    :func:`gritvq.items.convert_item_data` writes such data in our own layout.

    Args:
        folder: The folder, or the file of events in it.
        interactions: Path of the events in the folder; None finds ``interactions.parquet``, ``interactions.csv`` or the
            events of the one data set in a public layout.
        items: Path of the catalogue in the folder; None finds ``items.parquet``, ``items.csv`` or the metadata that
            belongs to the events.
        embeddings: Path of the item vectors in the folder; None uses ``item_embeddings.npy`` of our own layout if it
            exists. In a public layout vectors are used only if they are named, and row i is that of the i-th item with
            events, sorted by key.
        user: Column of the user key in the events; of RecBole's files, too, if it has no usual name there.
        item: Column of the item key in both files, likewise.
        order: Columns to sort events by; see :func:`read_interactions`.
        vectors: Whether to look for ``item_embeddings.npy`` if ``embeddings`` is None.

    Returns:
        Interactions and catalogue, not filtered; see :meth:`ItemData.k_core`.

    Raises:
        ValueError: If a file is missing or unusable, the folder holds several data sets in public layouts, or one and
            ``item_embeddings.npy``, which is not named; or, in our own layout, an event has an item that is not in the
            catalogue.
    """
    folder = Path(folder).expanduser()
    if interactions is None and folder.is_file():
        folder, interactions = folder.parent, folder.name
    found = None if embeddings is None else folder / embeddings
    files = layout_files(folder, interactions, items, (user, item))
    if files is not None:
        found = found or (_vectors_in(folder, public=True) if vectors else None)
        columns = (order,) if isinstance(order, str) else order
        read = events_table(files.events, user, item, columns)
        events = _interactions(read, files.events[0], user, item, columns)
        table = items_table(files.items, events.item_keys, item)
        return ItemData(events, _catalogue(table, files.items or files.events[0], table.column_names[0], found))
    path = _find(folder, items, "items")
    found = found or (_vectors_in(folder, public=has_items(path, (item,))) if vectors else None)
    catalogue = read_catalogue(path, item=item, embeddings=found)
    path = _find(folder, interactions, "interactions")
    return ItemData(read_interactions(path, user=user, item=item, order=order, item_keys=catalogue.keys), catalogue)


def _catalogue(table: Any, path: Path, item: str, embeddings: str | Path | None) -> Catalogue:
    keys = unique_keys(_plain_column(table, item, path).to_numpy())
    columns = {name: _named(table, name, path).to_pylist() for name in table.column_names if name and name != item}
    vectors = None if embeddings is None else open_vectors(Path(embeddings))
    if vectors is not None and len(vectors) != len(keys):
        raise ValueError(
            f"expected {len(keys)} vectors in {str(embeddings)!r}, one for each item of {str(path)!r}, got "
            f"{len(vectors)}; the file is of another catalogue: give vectors of all items of this one in its order "
            "(--embeddings), or let a text model make them (--text_model), which leaves this file alone."
        )
    return Catalogue(tuple(keys.tolist()), columns, vectors)


def _interactions(
    table: Any, path: Path, user: str, item: str, order: Sequence[str] | None, item_keys: Sequence[Key] | None = None
) -> Interactions:
    """Keys that are strings take part as their ranks, which are smaller and sorted faster."""
    for name in (user, item):
        _named(table, name, path)
    notes: list[str] = []
    columns = [name for name in _ORDER if name in table.column_names] if order is None else order
    if order is None and not columns:
        others = ", ".join(repr(name) for name in table.column_names if name and name not in (user, item)) or "none"
        notes.append(
            f"no column {' or '.join(map(repr, _ORDER))} in {str(path)!r}, so events are taken in the order "
            f"of the file; other columns: {others}; if one holds the time, name it as order (--data.order)."
        )
        _logger.warning("interactions: %s", notes[0])
    times = tuple(_dated(_plain_column(table, name, path)).to_numpy() for name in columns) or None
    users, user_names = _ranked(table, user, path)
    items, item_names = _ranked(table, item, path)
    if item_keys is None or item_names is None:
        found = Interactions.from_events(users, items, times, item_keys=item_keys)
        keys = found.item_keys if item_names is None else tuple(item_names.tolist())
    else:
        known = unique_keys(item_keys)
        rank = np.empty(len(known), dtype=np.int64)
        rank[np.argsort(known, kind="stable")] = np.arange(len(known))
        places = rank[rows_of_keys(known, item_names)]
        found = Interactions.from_events(users, places[items], times, item_keys=rank.tolist())
        keys = tuple(known.tolist())
    names = found.user_keys if user_names is None else tuple(user_names.tolist())
    return replace(found, user_keys=names, item_keys=keys, notes=(*notes, *found.notes))


def _ranked(table: Any, name: str, path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Ranks of a column's strings among the different ones, and these; values of other types as they are, and None."""
    pyarrow = optional("pyarrow", "items")
    column = _plain_column(table, name, path)
    if not pyarrow.types.is_string(column.type):
        return column.to_numpy(), None
    encoded = column.dictionary_encode().combine_chunks()
    names, rank = np.unique(encoded.dictionary.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    return rank[encoded.indices.to_numpy()], names


def _find(folder: Path, name: str | Path | None, stem: str) -> Path:
    if name is not None:
        return folder / name
    found = own_table(folder, stem)
    if found is None:
        raise ValueError(
            f"expected {stem}.parquet or {stem}.csv in {str(folder)!r}, or item data of RecBole, Amazon reviews or "
            f"MovieLens, got neither{_inside(folder)}; name the file, or another folder as the data."
        )
    return found


def _inside(folder: Path) -> str:
    """What a folder has instead, for a message."""
    if not folder.is_dir():
        return ", since there is no such folder"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f", only {', '.join(names[:5])}{' ...' if names[5:] else ''}" if names else ", since it is empty"


def vectors_beside(path: Path, item: str) -> Path | None:
    """``item_embeddings.npy`` beside a catalogue of our own layout, or in its folder; None if there is none.

    Args:
        path: The catalogue, as of :func:`read_catalogue`.
        item: Column of the item key.

    Raises:
        ValueError: If there is such a file beside a catalogue in a public layout.
    """
    if path.is_dir():  # without a table of our own, read_item_data looks for it
        return _vectors_in(path, public=False) if own_table(path, "items") else None
    return _vectors_in(path.parent, public=has_items(path, (item,)) or has_events(path, (item,)))


def _vectors_in(folder: Path, *, public: bool) -> Path | None:
    path = folder / "item_embeddings.npy"
    if not path.is_file():
        return None
    if public:  # rows in the order of the file and those sorted by key are easily confused
        raise ValueError(
            f"expected item data of RecBole, Amazon reviews or MovieLens without item embeddings, got {str(path)!r}, "
            "whose rows may be in any order; convert the data with 'gritvq semantic-ids convert' and write vectors in "
            "the order of its items.parquet, or move the file; name it as embeddings only if its rows are those of the "
            "catalogue that is read."
        )
    return path


def open_vectors(path: Path) -> np.ndarray[Any, Any]:
    """Opens a ``.npy`` file of item vectors (n, D), memory-mapped.

    Raises:
        ValueError: If it cannot be read, or is not a two-dimensional array of floats.
    """
    try:
        regular_file(path)
        vectors = np.lib.format.open_memmap(path, mode="r")  # np.load would also open archives
    except Exception as error:  # headers of damaged files are parsed as Python
        raise ValueError(
            f"expected a .npy file of item embeddings, got {str(path)!r}, which is missing, damaged, an archive or "
            "contains objects; write it with numpy.save."
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise ValueError(
            f"expected embeddings (n, D) of floats in {str(path)!r}, got {vectors.shape} {vectors.dtype}; convert them."
        )
    return vectors


def _read_table(path: Path, keys: Mapping[str, bool], numbers: Sequence[str] = ()) -> Any:
    """A pyarrow table.

    Args:
        path: The file.
        keys: Columns of keys, and whether those of a CSV file stay strings.
        numbers: Columns of a CSV file that are numbers or dates; all others are strings.
    """
    path = regular_file(path.expanduser(), "a Parquet or CSV file")
    pyarrow = optional("pyarrow", "items")
    try:
        if path.suffix.lower() == ".csv":
            return _read_csv(path, keys, numbers)
        with optional("pyarrow.parquet", "items").ParquetFile(path) as file:
            check_footer(file.metadata, path, whole=True)
            table = file.read()
        table.validate(full=True)  # damaged files may contain offsets outside the buffers, and invalid UTF-8
        _ = table.column_names
        return table
    except (pyarrow.ArrowException, OSError, csv.Error, UnicodeDecodeError) as error:
        if path.suffix.lower() not in (".csv", ".parquet"):
            raise ValueError(
                f"expected a file ending in .parquet or .csv, got {path.name!r}; convert or decompress it."
            ) from error
        raise ValueError(f"expected a Parquet or CSV file, got {str(path)!r}: {error}; replace it.") from error


def _read_csv(path: Path, keys: Mapping[str, bool], numbers: Sequence[str]) -> Any:
    pyarrow, reader = optional("pyarrow", "items"), optional("pyarrow.csv", "items")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = next((line for line in csv.reader(file) if line), [])
        texts = set(names) - set(numbers) | keys.keys()
        table = reader.read_csv(
            path,
            parse_options=reader.ParseOptions(newlines_in_values=True),
            convert_options=reader.ConvertOptions(column_types={name: pyarrow.binary() for name in texts}),
        )
        for place, name in enumerate(table.column_names):
            if name in texts:
                column = table.column(place).cast(pyarrow.string())
                if name in keys:  # a CSV file has no other way to leave one out
                    column = _without_empty(column)
                column = column if keys.get(name, True) else _integers(column)
                table = table.set_column(place, name, column)
            elif table.field(place).type == pyarrow.binary():  # not UTF-8: the cast raises
                table.column(place).cast(pyarrow.string())
    except (UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        if isinstance(error, pyarrow.ArrowInvalid) and "UTF8" not in str(error):
            raise
        raise ValueError(
            f"expected text in UTF-8, got other bytes in {str(path)!r}; save the file as UTF-8."
        ) from error
    return table


def _without_empty(keys: Any) -> Any:
    """Strings with null in the place of empty ones."""
    pyarrow, compute = optional("pyarrow", "items"), optional("pyarrow.compute", "items")
    return compute.if_else(compute.equal(keys, ""), pyarrow.scalar(None, pyarrow.string()), keys)


def _integers(keys: Any) -> Any:
    """Strings as integers if that loses nothing; among numbers, pyarrow's null spellings are null."""
    pyarrow, compute = optional("pyarrow", "items"), optional("pyarrow.compute", "items")
    missing = pyarrow.array(optional("pyarrow.csv", "items").ConvertOptions().null_values)
    known = compute.utf8_trim_whitespace(keys)
    known = compute.if_else(compute.is_in(known, value_set=missing), pyarrow.scalar(None, pyarrow.string()), known)
    if _cast(known, pyarrow.float64()) is None:
        return keys
    numbers = _cast(known, pyarrow.int64())
    return known if numbers is None or not numbers.cast(pyarrow.string()).equals(known) else numbers


def _cast(column: Any, kind: Any) -> Any:
    """The column as another pyarrow type, or None if a value does not fit."""
    try:
        return column.cast(kind)
    except optional("pyarrow", "items").ArrowInvalid:
        return None


def _named(table: Any, name: str, path: str | Path) -> Any:
    count = table.column_names.count(name)
    if not count:
        raise ValueError(
            f"expected a column {name!r} in {str(path)!r}, got {', '.join(table.column_names)}; name the right one "
            "(as --data.user, --data.item or --data.order of 'gritvq fit items', --item of other verbs)."
        )
    if count > 1:
        raise ValueError(f"expected one column {name!r} in {str(path)!r}, got {count}; rename or remove the others.")
    return table[name]


def _column(table: Any, name: str, path: str | Path) -> Any:
    column = _named(table, name, path)
    if column.null_count:
        raise ValueError(
            f"expected a value of {name!r} in every row of {str(path)!r}, got {column.null_count} without; fill or "
            "remove these rows."
        )
    return column


def _plain_column(table: Any, name: str, path: str | Path) -> Any:
    column = _column(table, name, path)
    if optional("pyarrow", "items").types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column


def _dated(column: Any) -> Any:
    """Texts as times if they are all numbers or all dates, as in a CSV file."""
    pyarrow = optional("pyarrow", "items")
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        return column
    stamps = [pyarrow.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")]
    kinds = (pyarrow.int64(), pyarrow.float64(), *stamps)
    return next((found for kind in kinds if (found := _cast(column, kind)) is not None), column)
