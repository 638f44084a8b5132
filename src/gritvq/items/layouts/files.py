"""Which files of a folder hold item data, and in what layout."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from gritvq.items.layouts import amazon, movielens
from gritvq.items.layouts.lines import csv_header

__all__ = ["LayoutFiles", "bare_name", "find_layout", "has_events", "has_items", "layout_files", "own_table"]

_PARTS = ("train", "valid", "test")
_REVIEWS = re.compile(r"(?!meta_)(reviews_.+|.+_\d+)\.json|(?!meta_).+\.(json\.gz|jsonl|jsonl\.gz)")
_BESIDE = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}


class LayoutFiles(NamedTuple):
    """Files of one data set in a public layout.

    Attributes:
        events: The file of events, or its parts for training, validation and test in this order.
        items: The file of metadata, or None.
    """

    events: tuple[Path, ...]
    items: Path | None


def bare_name(path: Path) -> str:
    """Name of a file in lower case, without ``.gz``.

    Example:
        >>> bare_name(Path("data/X.CSV.gz"))
        'x.csv'
    """
    return path.name.lower().removesuffix(".gz")


def own_table(folder: Path, stem: str) -> Path | None:
    """The Parquet or CSV file of this name in a folder, such as ``items.parquet``; None if there is none."""
    paths = (folder / f"{stem}{suffix}" for suffix in (".parquet", ".csv"))
    return next((path for path in paths if path.is_file()), None)


def has_events(path: Path, columns: Collection[str] = ()) -> bool:
    """Whether a file is one of events in a public layout, by its name, or of a CSV file by its first line.

    Args:
        path: The file.
        columns: A CSV file with all of these columns is not, if there are any.
    """
    name = bare_name(path)
    if name.endswith(".csv"):
        header = set(csv_header(path))
        own = "tag" in header or (bool(columns) and header.issuperset(columns))  # MovieLens has tags, too
        known = any(header.issuperset(each.CSV_FIELDS[:2]) for each in (amazon, movielens))
        return not own and (known or amazon.holds_ratings(path))
    return name in _BESIDE or name.endswith((".inter", ".json", ".jsonl"))


def has_items(path: Path, columns: Collection[str] = ()) -> bool:
    """Whether a file is one of items in a public layout; arguments as of :func:`has_events`."""
    name = bare_name(path)
    if name.endswith(".csv"):
        header = set(csv_header(path))
        own = bool(columns) and header.issuperset(columns)
        return not own and header.issuperset(("movieId", "title"))
    return name == "movies.dat" or name.endswith((".item", ".json", ".jsonl"))


def find_layout(folder: Path, items: str | Path | None = None) -> LayoutFiles | None:
    """The files of the one data set in a public layout in a folder; None if there is none.

    Files of events decide: ``*.inter``, ``ratings.dat``, ``u.data``, reviews (``reviews_X_5.json.gz``,
    ``X_5.json.gz``, ``X.jsonl`` and the like), or a CSV file with the columns of MovieLens or of Amazon 2023, or of
    Amazon's ratings without a header. Parts named ``X.train``, ``X.valid`` and ``X.test`` are one data set, and are
    left aside if ``X`` itself is there.

    Args:
        folder: The folder.
        items: Path of the metadata in it; None finds what belongs to the events.

    Raises:
        ValueError: If there are several data sets, not all parts of one, or only metadata of another one.
    """
    sets: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = path.name.lower()
        json_like = bare_name(path).endswith((".json", ".jsonl"))
        if path.is_file() and (_REVIEWS.fullmatch(name) if json_like else has_events(path)):
            part = next((each for each in _PARTS if f".{each}." in name), "")
            sets.setdefault(name.replace(f".{part}.", ".") if part else name, {})[part] = path
    if not sets:
        return None
    if len(sets) > 1:
        names = [path.name for files in sets.values() for path in list(files.values())[:1]]
        raise ValueError(
            f"expected the events of one data set in {str(folder)!r}, got {', '.join(names)}; name one file, or move "
            "the others to another folder."
        )
    _, files = sets.popitem()
    if "" not in files and len(files) < len(_PARTS):
        raise ValueError(
            f"expected the parts train, valid and test of a data set in {str(folder)!r}, got "
            f"{', '.join(path.name for path in files.values())}; add the others, or name one file."
        )
    events = (files[""],) if "" in files else tuple(files[part] for part in _PARTS)
    return LayoutFiles(events, folder / items if items else _items_beside(events[0]))


def layout_files(
    folder: Path,
    interactions: str | Path | None = None,
    items: str | Path | None = None,
    columns: Collection[str] = ("user", "item"),
) -> LayoutFiles | None:
    """The files of a folder to read together, if they are in a public layout.

    Args:
        folder: The folder.
        interactions: Path of the events in it; None finds them with :func:`find_layout`, unless the folder holds
            ``interactions`` or ``items`` as Parquet or CSV.
        items: Path of the metadata in it; None finds what belongs to the events.
        columns: Columns of events to read; see :func:`has_events`.

    Returns:
        The files; None if events or items are in a table of our own layout.

    Raises:
        ValueError: As :func:`find_layout` does.
    """
    found: LayoutFiles | None
    if interactions is None:
        if own_table(folder, "interactions") or (items is None and own_table(folder, "items")):
            return None
        found = find_layout(folder, items)
    else:
        path = folder / interactions
        if not has_events(path, columns) or (items is None and own_table(folder, "items")):
            return None
        found = LayoutFiles((path,), folder / items if items else _items_beside(path))
    return found if items is None or has_items(folder / items) else None


def _items_beside(events: Path) -> Path | None:
    """The file of metadata that belongs to a file of events in the same folder, if there is one."""
    name = bare_name(events)
    stem = re.sub(r"(\.(train|valid|test))?\.\w+$", "", name)
    if name in _BESIDE:
        wanted = [_BESIDE[name]]
    elif name.endswith(".inter"):
        wanted = [f"{stem}.item"]
    else:
        stem = re.sub(r"^(reviews|ratings)_|_\d+$", "", stem)
        wanted = [f"meta_{stem}.jsonl", f"meta_{stem}.json"]
    folder = events.parent
    beside = {bare_name(path): path for path in sorted(folder.iterdir(), reverse=True)} if folder.is_dir() else {}
    found = [beside[each] for each in wanted if each in beside]
    others = [path.name for each, path in beside.items() if each.startswith("meta_")]
    if others and not found and wanted[0].startswith("meta_"):
        raise ValueError(
            f"expected metadata of {events.name} in a file such as {wanted[0]}, got {', '.join(sorted(others))}; name "
            "the file of items, or move it to another folder."
        )
    return found[0] if found else None
