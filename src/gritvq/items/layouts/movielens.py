"""MovieLens: 100K (``u.data``), 1M and 10M (``.dat``), latest, 25M and 32M (``.csv``).

References:
    Harper and Konstan, "The MovieLens Datasets: History and Context", TiiS 2015, doi 10.1145/2827872.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gritvq.items.layouts.lines import Items, Rows, cells, csv_rows, event, integer, joined, parsed, texts
from gritvq.lazy import optional

__all__ = ["CSV_FIELDS", "events", "items"]

CSV_FIELDS = ("userId", "movieId", "timestamp", "rating")
_GENRES = (  # flags of 100K, in order
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def events(path: Path, form: str) -> Rows:
    """Ratings; users and movies are numbers.

    Args:
        path: The file.
        form: Name of the form: ``u.data``, ``ratings.dat`` or ``ratings.csv``.

    Raises:
        ValueError: Later, if a line has no user, movie, rating and time.
    """
    pyarrow = optional("pyarrow", "items")
    separator = "::" if form.endswith(".dat") else "\t"

    def parse(text: str) -> Sequence[Any]:
        user, item, rating, time = cells(text, separator, "user, item, rating and time", 4)
        return event(CSV_FIELDS, (user, item, time, rating), integer)

    if form.endswith(".csv"):
        rows = csv_rows(path, CSV_FIELDS, lambda values: event(CSV_FIELDS, values, integer))
    else:
        rows = parsed(path, texts(path), parse)
    whole = pyarrow.int64()
    return Rows({"user": whole, "item": whole, "timestamp": whole, "rating": pyarrow.float32()}, rows)


def items(path: Path, form: str) -> Items:
    """Movies: ``title`` (with the year) and ``genres``, which make up the text; ``.dat`` and ``u.item`` may be Latin-1.

    Args:
        path: The file.
        form: Name of the form: ``u.item``, ``movies.dat`` or ``movies.csv``.

    Raises:
        ValueError: Later, if a line has no number, title and genres.
    """
    pyarrow = optional("pyarrow", "items")

    def flagged(text: str) -> Sequence[Any]:
        item, title, *_ = found = cells(text, "|", "number, title, dates, address and genres", 5 + len(_GENRES))
        genres = [genre for genre, flag in zip(_GENRES, found[5:], strict=True) if flag == "1"]
        return integer(item, "movie"), title.strip(), genres

    def named(values: Sequence[str]) -> Sequence[Any]:
        item, title, genres = values
        listed = [] if genres.startswith("(no genres") else [genre for genre in genres.split("|") if genre]
        return integer(item, "movie"), title.strip(), listed

    if form.endswith(".csv"):
        rows = csv_rows(path, ("movieId", "title", "genres"), named)
    elif form.endswith(".dat"):
        parts = "number, title and genres"
        rows = parsed(path, texts(path, latin=True), lambda text: named(cells(text, "::", parts, 3)))
    else:
        rows = parsed(path, texts(path, latin=True), flagged)
    types = {"item": pyarrow.int64(), "title": pyarrow.string(), "genres": pyarrow.list_(pyarrow.string())}
    return Items(types, rows, lambda row: joined(row["title"], row["genres"]))
