"""Requests for recommendations: a file of ids and histories, read as a stream. Needs the extra ``items``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gritvq.files import check_footer, regular_file
from gritvq.items.interactions import Key
from gritvq.lazy import optional

__all__ = ["Request", "iter_requests", "listed_keys"]

_READ = 1024  # rows of a Parquet file read at a time
_SUFFIXES = (".parquet", ".csv", ".jsonl")


class Request(NamedTuple):
    """A request for recommendations.

    Attributes:
        id: Its id.
        history: Keys of the items, oldest first; may be empty.
    """

    id: Key
    history: list[Key]


def iter_requests(path: str | Path, *, id: str = "id", history: str | None = "history") -> Iterator[Request]:
    r"""Read requests row by row.

    In a Parquet file (``.parquet``) the histories are lists; in JSON Lines (``.jsonl``) each line is an object with the
    two keys; in a CSV file (``.csv``) a history is text, see :func:`listed_keys`, in quotes if it has a comma, and
    ``[]`` if it has no items; ids and keys are strings.

    Args:
        path: The file, by its ending.
        id: Column of the ids.
        history: Column of the histories; None leaves them empty.

    Raises:
        ValueError: If the file is missing or has another ending; while iterating, if it is damaged, a column is
            missing, a row has no id or no history, or a line of a CSV file has more or fewer cells than its header.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "requests.csv"
        ...     _ = path.write_text('id,history\nanna,"[soap, comb]"\nbert,[]\n')
        ...     [(each.id, each.history) for each in iter_requests(path)]
        [('anna', ['soap', 'comb']), ('bert', [])]
    """
    path = regular_file(Path(path).expanduser(), "a file of requests")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"expected a file of requests ending in {', '.join(_SUFFIXES)}, got {path.name!r}; convert it")
    rows = {".parquet": _parquet_rows, ".csv": _csv_rows, ".jsonl": _json_rows}[path.suffix]
    return _checked(rows(path, (id,) if history is None else (id, history)), path)


def listed_keys(text: str) -> list[str]:
    """Keys as typed in a line, with or without brackets; keys with a comma in quotes.

    Example:
        >>> listed_keys('[a, 007, "b, c"]')
        ['a', '007', 'b, c']
    """
    inside = text.strip()
    if inside.startswith("[") and inside.endswith("]"):
        inside = inside[1:-1].strip()
    quote = "'" if inside.startswith("'") else '"'
    return [key.strip() for key in next(csv.reader([inside], skipinitialspace=True, quotechar=quote), [])]


def _checked(rows: Iterator[tuple[Any, Any]], path: Path) -> Iterator[Request]:
    try:
        for number, (own, history) in enumerate(rows, 1):
            if not _is_key(own):
                raise ValueError(
                    f"expected an id, text or a whole number, in every row of {str(path)!r}, got {own!r} in row "
                    f"{number:,}; fill it, or remove the row"
                )
            if not isinstance(history, list) or not all(map(_is_key, history)):
                raise ValueError(
                    f"expected a list of item keys, text or whole numbers, as history of request {own!r} in "
                    f"{str(path)!r}, got {str(history)[:60]}; give an empty list if there are none"
                )
            yield Request(own, history)
    except (OSError, csv.Error, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"expected a file of requests, got {str(path)!r}: {error}; replace it") from error


def _is_key(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _check_columns(found: Any, wanted: tuple[str, ...], path: Path) -> None:
    missing = [name for name in wanted if list(found).count(name) != 1]
    if missing:
        names = ", ".join(map(str, found)) or "none"
        raise ValueError(
            f"expected one column {missing[0]!r} in {str(path)!r}, got {names}; name the columns of ids and histories"
        )


def _parquet_rows(path: Path, names: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    pyarrow = optional("pyarrow", "items")
    try:
        with optional("pyarrow.parquet", "items").ParquetFile(path) as file:
            check_footer(file.metadata, path)
            _check_columns(file.schema_arrow.names, names, path)
            for batch in file.iter_batches(_READ, columns=list(names)):
                batch.validate(full=True)  # damaged files may contain offsets outside the buffers
                columns = [batch.column(name).to_pylist() for name in names]
                yield from zip(columns[0], columns[1] if columns[1:] else ([] for _ in columns[0]), strict=True)
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


def _csv_rows(path: Path, names: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        _check_columns(header, names, path)
        own, *histories = map(header.index, names)
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"expected {len(header)} cells, one per column, in line {lines.line_num:,} of {str(path)!r}, got "
                    f'{len(cells)}; write a history with commas in quotes, as "[soap, comb]"'
                )
            text = cells[histories[0]] if histories else "[]"
            if not text.strip():
                raise ValueError(
                    f"expected a history in line {lines.line_num:,} of {str(path)!r}, got an empty cell; write [] if "
                    "there are no items"
                )
            yield cells[own] or None, listed_keys(text)


def _json_rows(path: Path, names: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise OSError(f"a line is no object with the keys {' and '.join(names)}")
            _check_columns(row, names, path)
            yield row[names[0]], row[names[1]] if names[1:] else []
