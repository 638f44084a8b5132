"""Amazon reviews of 2014, 2018 and 2023, and the metadata of their products.

References:
    He and McAuley, "Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class Collaborative
    Filtering", WWW 2016, arXiv 1602.01585 (2014). Ni, Li and McAuley, "Justifying Recommendations using
    Distantly-Labeled Reviews and Fine-Grained Aspects", EMNLP 2019 (2018). Hou et al., "Bridging Language and Items for
    Retrieval and Recommendation", 2024, arXiv 2403.03952 (2023).
"""

from __future__ import annotations

import ast
import html
import itertools
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.items.layouts.lines import (
    Fault,
    Items,
    Rows,
    clean,
    csv_header,
    csv_rows,
    event,
    joined,
    key,
    number,
    parsed,
    shown,
    texts,
)
from gritvq.lazy import optional

__all__ = ["CSV_FIELDS", "csv_events", "events", "holds_ratings", "holds_reviews", "items"]

# User, item, time and rating of a review.
CSV_FIELDS = ("user_id", "parent_asin", "timestamp", "rating")  # 2023, JSON too
_FIELDS = ("reviewerID", "asin", "unixReviewTime", "overall")  # 2014 and 2018
_ASIN_FIRST = re.compile(r"\{u?'asin': u?'(\w+)'")  # as all lines of 2014 begin
_JSON = re.compile(r'\{\s*["}]')  # Python writes {'
_USER = re.compile(r"A[0-9A-Z]{9,}")
_ITEM = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")  # of a book its ISBN
_FIRST = 1000  # lines that tell users from items


def holds_reviews(path: Path) -> bool:
    """Whether a JSON file is one of reviews, by its first line."""
    if not path.name.lower().removesuffix(".gz").endswith((".json", ".jsonl")):
        return False
    try:
        return _is_review(_record(next((text for _, text in texts(path)), "")))
    except (Fault, OSError, ValueError):
        return False


def holds_ratings(path: Path) -> bool:
    """Whether a CSV file is one of ratings without a header, as of 2014 and 2018, by its first line.

    It has four cells, the last two of them numbers, and the others look like a user and an item, unless the file's name
    begins with ``ratings_``.
    """
    first = csv_header(path)
    try:
        numbers = [number(cell, "") for cell in first[2:]]
    except Fault:
        return False
    if len(first) != 4 or len(numbers) != 2:
        return False
    pair = any(_USER.fullmatch(cell) for cell in first[:2]) and any(_ITEM.fullmatch(cell) for cell in first[:2])
    return path.name.lower().startswith("ratings_") or pair


def _is_review(record: Mapping[str, Any]) -> bool:
    return bool(record.get("reviewerID") or record.get("user_id"))


def events(path: Path) -> Rows:
    """Reviews, a JSON object per line, of the edition that the first line is of.

    Raises:
        ValueError: Later, if a line is no review with user, item, time and rating.
    """
    edition: list[Sequence[str]] = []

    def parse(text: str) -> Sequence[Any]:
        record = _record(text)
        if not edition:
            edition.append(CSV_FIELDS if "user_id" in record else _FIELDS)
        fields = edition[0]
        lacking = [field for field in fields if record.get(field) is None]
        if lacking:
            raise Fault(f"a review with {', '.join(map(repr, fields))}", f"a line without {', '.join(lacking)}")
        return event(fields, [record[field] for field in fields], key)

    return Rows(_event_types(), parsed(path, texts(path), parse))


def csv_events(path: Path) -> Rows:
    """Events without texts.

    Those of 2023 have a header, and a column ``history`` is ignored. Those of 2014 and 2018 have none: a line is user,
    item, rating and time in 2014, and item, user, rating and time in 2018. Which of the two it is, cells tell: a user
    is an A and at least nine more capitals and digits, an item a B and nine more, or an ISBN of ten. The first 1000
    lines count, and those in which nothing looks like that, or all, do not.

    Raises:
        ValueError: If lines do not tell users from items, or contradict each other; later, if a column is missing or a
            line is no event.
    """
    columns = _rating_columns(path) if holds_ratings(path) else None
    return Rows(_event_types(), csv_rows(path, CSV_FIELDS, lambda values: event(CSV_FIELDS, values, key), columns))


def _rating_columns(path: Path) -> Sequence[str]:
    """Names of the columns of ratings without a header."""
    lines = [text.replace('"', "").split(",") for _, text in itertools.islice(texts(path), _FIRST)]
    orders = {_users_first(*line[:2]) for line in lines if len(line) == 4} - {None}
    header = {True: ("user_id", "parent_asin"), False: ("parent_asin", "user_id")}
    if len(orders) != 1:
        found = "some of both" if orders else f"neither in {shown(','.join(lines[0]))}"
        first, second = (",".join((*keys, "rating", "timestamp")) for keys in header.values())
        raise ValueError(
            "expected lines that begin with a user (A and nine or more capitals and digits) and an item (B and nine "
            f"more, or an ISBN), or all with an item and a user, in {str(path)!r}, which has no header, got {found}; "
            f"add the header {first}, or {second}, whichever it is."
        )
    return (*header[orders == {True}], "rating", "timestamp")


def _users_first(first: str, second: str) -> bool | None:
    """Whether a line begins with a user and an item, or the other way round; None if its cells do not tell."""
    forth = bool(_USER.fullmatch(first) or _ITEM.fullmatch(second))
    back = bool(_ITEM.fullmatch(first) or _USER.fullmatch(second))
    return None if forth == back else forth


def _event_types() -> dict[str, Any]:
    pyarrow = optional("pyarrow", "items")
    text = pyarrow.string()
    return {"user": text, "item": text, "timestamp": pyarrow.int64(), "rating": pyarrow.float32()}


def items(path: Path, wanted: Collection[Any] | None = None) -> Items:
    """Metadata of products, per line a JSON object, or a literal of Python as in 2014; of 2023 by ``parent_asin``.

    The columns are ``title``, ``brand`` (of 2023 the store), ``categories`` (each once, in order), ``price`` and
    ``description``. Character references such as ``&amp;`` are resolved, and a title that is a script of the page, as
    some of 2018 are, is left out. The text of an item is its title, brand and categories.

    Args:
        path: The file.
        wanted: Items to read; other lines may be skipped without being checked. None reads all.

    Raises:
        ValueError: Later, if a line is no product.
    """
    pyarrow = optional("pyarrow", "items")
    text = pyarrow.string()

    def parse(line: str) -> Sequence[Any] | None:
        if wanted is not None and (found := _ASIN_FIRST.match(line)) and found[1] not in wanted:
            return None  # literals of Python take long to read
        record = _record(line)
        if _is_review(record):
            raise Fault("an item", "a review, which belongs to a file of events")
        name = "parent_asin" if "parent_asin" in record else "asin"
        if record.get(name) is None:
            raise Fault("an item with 'asin' or 'parent_asin'", f"one with {shown(sorted(map(str, record)))}")
        title = " ".join(_plain(record.get("title")))
        return (
            key(record[name], name),
            "" if "getTime" in title else title,
            " ".join(_plain(record.get("brand") or record.get("store"))),
            list(dict.fromkeys(_plain(record.get("categories") or record.get("category")))),
            " ".join(_plain(record.get("price"))),
            " ".join(_plain(record.get("description"))),
        )

    types = {"item": text, "title": text, "brand": text, "categories": pyarrow.list_(text)}
    return Items(
        {**types, "price": text, "description": text},
        parsed(path, texts(path), parse),
        lambda row: joined(row["title"], row["brand"], row["categories"]),
    )


def _record(text: str) -> dict[str, Any]:
    """The object of a line."""
    text, record = text.strip(), None
    try:
        if _JSON.match(text):
            record = json.loads(text)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown escapes in texts
                record = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    if not isinstance(record, dict):
        raise Fault("a JSON object or a literal of Python", shown(text))
    return record


def _plain(value: Any) -> list[str]:
    """Texts and numbers in a list or a list of lists, without character references."""
    lists = value if isinstance(value, list | tuple) else [value]
    cells = itertools.chain.from_iterable(each if isinstance(each, list | tuple) else [each] for each in lists)
    found = (clean(html.unescape(str(cell))) for cell in cells if isinstance(cell, str | int | float))
    return [text for text in found if text]
