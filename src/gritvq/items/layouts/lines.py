"""Lines of a file with item data, and the values in them. Errors name the line."""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gritvq.files import regular_file

__all__ = [
    "Fault",
    "Items",
    "Rows",
    "cells",
    "clean",
    "csv_header",
    "csv_rows",
    "event",
    "integer",
    "joined",
    "key",
    "lines",
    "number",
    "parsed",
    "shown",
    "text_of",
    "texts",
]

_LONGEST = 1 << 24  # bytes of a line


class Rows(NamedTuple):
    """Rows of a file.

    Attributes:
        types: pyarrow type of each column.
        rows: A value of each column per row.
    """

    types: dict[str, Any]
    rows: Iterator[Sequence[Any]]


class Items(NamedTuple):
    """Rows of a file of items.

    Attributes:
        types: pyarrow type of each column; the first is the key, ``item`` unless another column is asked for.
        rows: A value of each column per row.
        text: What an item is called, from its row by column; empty if it has no name.
    """

    types: dict[str, Any]
    rows: Iterator[Sequence[Any]]
    text: Callable[[Mapping[str, Any]], str]


class Fault(Exception):
    """What is wrong with a line: what was expected, and what was found."""

    def __init__(self, expected: str, got: object) -> None:
        super().__init__(expected, got)
        self.expected, self.got = expected, got


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; of a gzip file, whatever its name, those inside.

    Raises:
        ValueError: If there is no such file, a line is too long, or a gzip file ends early or is damaged.
    """
    number = 0
    with regular_file(path, "a file of item data").open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            while line := file.readline(_LONGEST):
                number += 1
                if len(line) == _LONGEST:
                    raise ValueError(
                        f"expected lines below {_LONGEST >> 20} MB in {str(path)!r}, got a longer one in line "
                        f"{number:,}; is it the right file?"
                    )
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"expected a whole gzip file, got {str(path)!r}, which ends or is damaged after line {number:,} ({error}); "
            "download it again."
        ) from error


def texts(path: Path, latin: bool = False) -> Iterator[tuple[int, str]]:
    """Lines as text without line breaks, with their numbers.

    Args:
        path: The file, UTF-8.
        latin: Whether lines that are not UTF-8 are taken for Latin-1.

    Raises:
        ValueError: As :func:`lines` does, or if a line is not UTF-8.
    """
    for number, line in lines(path):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            if not latin:
                raise ValueError(
                    f"expected text in UTF-8, got other bytes in line {number:,} of {str(path)!r}; save the file as "
                    "UTF-8."
                ) from error
            text = line.decode("latin-1")
        yield number, text.rstrip("\r\n")


def parsed(
    path: Path, numbered: Iterable[tuple[int, str]], parse: Callable[[str], Sequence[Any] | None]
) -> Iterator[Sequence[Any]]:
    """Rows of lines, without those that are None.

    Raises:
        ValueError: If ``parse`` raises a :class:`Fault`.
    """
    for number, line in numbered:
        try:
            row = parse(line)
        except Fault as fault:
            raise ValueError(
                f"expected {fault.expected} in line {number:,} of {str(path)!r}, got {fault.got}; correct or remove "
                "the line, or download the file again."
            ) from fault
        if row is not None:
            yield row


def cells(text: str, separator: str, names: str, count: int) -> list[str]:
    """Cells of a line without quotes.

    Raises:
        Fault: If there are more or fewer.
    """
    found = text.split(separator)
    if len(found) != count:
        raise Fault(f"{names} ({count} cells separated by {separator!r})", f"{len(found)} in {shown(text)}")
    return found


def csv_header(path: Path) -> list[str]:
    """Names of a CSV file's columns; empty if its first line is none.

    Raises:
        ValueError: If the file's name ends in ``.gz``, and it cannot be read.
    """
    try:
        return next(csv.reader([text for _, text in itertools.islice(texts(path), 1)]), [])
    except csv.Error:
        return []
    except (OSError, ValueError):
        if path.name.lower().endswith(".gz"):  # no other reader takes it
            raise
        return []


def csv_rows(
    path: Path,
    fields: Sequence[str],
    make: Callable[[list[str]], Sequence[Any]],
    columns: Sequence[str] | None = None,
) -> Iterator[Sequence[Any]]:
    """Rows made of some cells of each line below the header; cells are without line breaks.

    Args:
        path: The file.
        fields: Names of the columns of these cells.
        make: Makes a row of them.
        columns: Names of all columns of a file without a header; None reads the header.

    Raises:
        ValueError: If a column is missing or there twice, or a line has another number of cells than the header.
    """
    header = csv_header(path) if columns is None else columns
    wrong = [field for field in fields if header.count(field) != 1]
    if wrong:
        raise ValueError(
            f"expected one column {wrong[0]!r} in {str(path)!r}, got {', '.join(header)}; take the file as it is "
            "published."
        )
    places = [header.index(field) for field in fields]

    def parse(text: str) -> Sequence[Any]:
        # Most lines have no quotes, and cells of histories are longer than the csv module reads.
        try:
            found = next(csv.reader([text], strict=True)) if '"' in text else text.split(",")
        except csv.Error as error:
            raise Fault("a line of CSV", f"{shown(text)} ({error})") from error
        if len(found) != len(header):
            raise Fault(f"{len(header)} cells separated by ','", f"{len(found)} in {shown(text)}")
        return make([found[place] for place in places])

    yield from parsed(path, itertools.islice(texts(path), 1 if columns is None else 0, None), parse)


# --- values -----------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_of(value: Any) -> str:
    """Text of a cell: trimmed, entries of lists joined by commas, empty for None and NaN.

    Example:
        >>> text_of([" soap ", ["red"], None]), text_of(float("nan"))
        ('soap, red', '')
    """
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(text_of, value)))
    return "" if value is None or value != value else str(value).strip()  # NaN differs from itself


def joined(*values: Any) -> str:
    """Texts of those values that have one.

    Example:
        >>> joined("Soap", None, ["red", "blue"])
        'Soap; red, blue'
    """
    return "; ".join(filter(None, map(text_of, values)))


def clean(value: Any) -> str:
    """Text with single blanks and without what UTF-8 cannot write."""
    return " ".join(str(value).encode("utf-8", "replace").decode().split())


def number(value: Any, name: str) -> float:
    """A finite number.

    Raises:
        Fault: If it is none.
    """
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if isinstance(value, bool) or not math.isfinite(result):
        raise Fault(f"a number as {name!r}", shown(value))
    return result


def integer(value: str, name: str) -> int:
    """A key that is a number.

    Raises:
        Fault: If it is none.
    """
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise Fault(f"a whole number as {name!r}", shown(value))
    return int(value)


def key(value: Any, name: str) -> str:
    """A key that is a text.

    Raises:
        Fault: If it is none, or empty or with blanks around it.
    """
    if not isinstance(value, str) or not value or clean(value) != value:
        raise Fault(f"a text as {name!r}", shown(value))
    return value


def event(fields: Sequence[str], values: Sequence[Any], make_key: Callable[[Any, str], Any]) -> Sequence[Any]:
    """User, item, time and rating of an event, checked.

    Args:
        fields: Their names in the layout.
        values: Their values.
        make_key: Checks and converts a key.

    Raises:
        Fault: If one is unusable.
    """
    user, item, time, rating = values
    moment = number(time, fields[2])
    if moment != int(moment) or abs(moment) >= 2**53:
        raise Fault(f"a whole number as {fields[2]!r}", shown(time))
    return make_key(user, fields[0]), make_key(item, fields[1]), int(moment), number(rating, fields[3])
