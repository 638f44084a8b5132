"""Documents from files, from the Hugging Face Hub, or from Python itself."""

from __future__ import annotations

import ast
import codecs
import csv
import functools
import io
import json
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

from gritvq.files import check_footer, regular_file, tar_samples
from gritvq.lazy import check_hub, optional

__all__ = ["DOCSTRINGS", "Corpus", "Document", "Reading", "docstrings"]

DOCSTRINGS = "docstrings"  # the name of the bundled corpus
Document: TypeAlias = str | list[str]
Unit = Literal["paragraph", "line", "file"]
_SHORTEST = 40  # characters of a bundled documentation string
_OMITTED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "ensurepip"}


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        column: Column of the text in JSON Lines, CSV and Parquet files and in Hub data sets. In all but CSV a value may
            also be a list of texts: the segments of a document.
        unit: What a document is in a file of plain text: a ``"paragraph"`` (up to an empty line), a ``"line"``, or the
            whole ``"file"``.
        encoding: Encoding of text files.

    Raises:
        ValueError: If the unit or the encoding is unknown.
    """

    column: str = "text"
    unit: Unit = "paragraph"
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"expected unit {' or '.join(map(repr, get_args(Unit)))}, got {self.unit!r}; choose one")
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=self.encoding)  # refuses codecs that are not of text
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"expected the name of an encoding, got {self.encoding!r}; 'utf-8' is usual") from error


class Corpus:
    """Documents, read from the start by each iteration; memory holds one at a time.

    ``path`` is one of the following; the first that matches is used:

    - ``"docstrings"``: the documentation strings of Python's standard library as it is installed here, about 1.6
      million characters of English in 6,000 documents. What they are depends on the version of Python.
    - a file: ``.jsonl`` or ``.ndjson`` (JSON Lines), ``.csv``, ``.tsv``, ``.parquet``, ``.tar`` (of WebDataset: a
      document is a file in it that ends with ``.txt``, or with the name of the column, or else a ``.json`` object with
      that column), anything else is plain text.
    - a folder: its files with these endings, ``.txt`` and ``.md``, searched recursively, in the order of their names;
      ``.tar`` only where there are no others.
    - the name of a data set on the Hugging Face Hub, of which the split ``train`` is read.

    A document without a character other than white space is left out, and a null is none. Line ends of plain text
    become a newline, a byte order mark at the start of a file is left out; everything else stays as it is. Text
    files with zero bytes are refused: they are of another encoding, or no text.

    Args:
        path: Where the documents are.
        reading: How files are read.

    Raises:
        ValueError: If there is nothing at ``path``; in the iteration, if a file cannot be read, is damaged, has another
            encoding or lacks the column.

    Example:
        >>> len(next(iter(Corpus("docstrings")))) > 40
        True
    """

    def __init__(self, path: str = DOCSTRINGS, reading: Reading | None = None) -> None:
        self.path, self.reading = str(path), reading or Reading()
        self._hub: Any = None
        self._files: list[Path] | None = None
        place = Path(path)
        if self.path == DOCSTRINGS:
            return
        if place.is_dir():
            found = sorted(
                (file for file in place.rglob("*") if file.suffix.lower() in _ENDINGS and file.is_file()), key=str
            )
            self._files = [file for file in found if file.suffix.lower() != ".tar"] or found
            if not self._files:
                raise ValueError(
                    f"expected text files in the folder {self.path!r}, got none that end with "
                    f"{', '.join(sorted(_ENDINGS))}; rename them, or give a file"
                )
        elif place.exists() or self.path.startswith((".", "/", "~")) or place.suffix.lower() in _ENDINGS:
            self._files = [regular_file(place, "a file or folder of text")]
        else:
            self._hub = _hub_rows(self.path)

    def __iter__(self) -> Iterator[Document]:
        for document, _ in self.with_places():
            yield document

    def with_places(self) -> Iterator[tuple[Document, str]]:
        """Documents, and where each is from, for messages."""
        for document, place in self._all():
            if any(map(str.strip, [document] if isinstance(document, str) else document)):
                yield document, place

    def paths(self) -> list[tuple[str, Path]]:
        """The files that are read, and their names below the folder; see :meth:`origin` where there are none."""
        place = Path(self.path)
        root = place if place.is_dir() else place.parent
        return [(file.relative_to(root).as_posix(), file) for file in self._files or ()]

    def origin(self) -> str:
        """What tells documents that are in no files: Python's version, or name and size of a data set on the Hub."""
        if self.path == DOCSTRINGS:
            return sys.version
        return "" if self._files is not None else f"{self.path} train {len(self._hub)}"

    def _all(self) -> Iterator[tuple[Document, str]]:
        if self.path == DOCSTRINGS:
            yield from ((text, DOCSTRINGS) for text in docstrings())
        elif self._files is None:
            yield from _of_rows(self._hub, self.path, self.reading.column)
        else:
            for file in self._files:
                yield from _ENDINGS.get(file.suffix.lower(), _plain_text)(file, self.reading)


@functools.lru_cache(maxsize=1)
def docstrings() -> tuple[str, ...]:
    """Documentation strings of Python's standard library: each once, of 40 characters or more, in the order of files.

    Raises:
        ValueError: If this Python comes without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for file in _sources(root):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in old strings
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError):  # a few files of the library are wrong on purpose
            continue
        for text in _docstrings_of(tree):
            if len(text) >= _SHORTEST:
                found[text] = None
    if not found:
        raise ValueError(f"expected the sources of Python's library in {root}, got none; give a path of your own text")
    return tuple(found)


def _docstrings_of(node: ast.AST) -> Iterator[str]:
    """Of a module, class or function and of all within."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for name in ("body", "orelse", "handlers", "finalbody"):  # statements; expressions have none
        for inner in getattr(node, name, None) or ():
            yield from _docstrings_of(inner)


def _sources(folder: Path) -> Iterator[Path]:
    """Python files below a folder, without tests and what is no part of the library, in a fixed order."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix == ".py":
            yield path
        elif path.name not in _OMITTED and not path.name.startswith(("_", "config-")) and path.is_dir():
            yield from _sources(path)


# --- files ------------------------------------------------------------------------------------------------------------


def _lines(file: IO[str], path: Path, encoding: str) -> Iterator[str]:
    try:
        for line in file:
            if "\0" in line:  # text in UTF-16 without a byte order mark is UTF-8, too, with a zero byte in every pair
                raise ValueError(
                    f"expected text in {encoding}, got zero bytes in {path}, which text has none of; give its "
                    "encoding, such as utf-16-le, or remove them"
                )
            yield line
    except UnicodeError as error:
        raise ValueError(
            f"expected text in {encoding}, got bytes in {path} that are none ({error}); give its encoding, such as "
            "latin-1 or utf-16, or convert the file"
        ) from error


def _opened(path: Path, reading: Reading, newline: str | None = None) -> IO[str]:
    return regular_file(path, "a file of text").open(encoding=_encoding(reading), newline=newline)


def _encoding(reading: Reading) -> str:
    """That of files, which may have a byte order mark."""
    return "utf-8-sig" if codecs.lookup(reading.encoding).name == "utf-8" else reading.encoding


def _plain_text(path: Path, reading: Reading) -> Iterator[tuple[Document, str]]:
    with _opened(path, reading) as file:
        lines, first = list[str](), 1
        for number, line in enumerate(_lines(file, path, reading.encoding), 1):
            if reading.unit == "line":
                yield line.removesuffix("\n"), f"{path}, line {number}"
            elif reading.unit == "file" or line.strip():
                lines.append(line)
            else:
                yield "".join(lines).removesuffix("\n"), f"{path}, line {first}"
                lines, first = [], number + 1
        yield "".join(lines) if reading.unit == "file" else "".join(lines).removesuffix("\n"), f"{path}, line {first}"


def _json_lines(path: Path, reading: Reading) -> Iterator[tuple[Document, str]]:
    def rows() -> Iterator[Any]:
        with _opened(path, reading) as file:
            for number, line in enumerate(_lines(file, path, reading.encoding), 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise ValueError(
                            f"expected JSON in line {number} of {path}, got something else ({error}); each line is an "
                            'object such as {"text": "..."}'
                        ) from error
                    if not isinstance(row, dict):
                        raise ValueError(
                            f"expected an object in line {number} of {path}, got {type(row).__name__}; write "
                            '{"text": "..."}'
                        )
                    yield row

    yield from _of_rows(rows(), str(path), reading.column)


def _separated(path: Path, reading: Reading, delimiter: str = ",") -> Iterator[tuple[Document, str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _opened(path, reading, newline="") as file:
        rows = csv.DictReader(_lines(file, path, reading.encoding), delimiter=delimiter, strict=True)
        try:
            yield from _of_rows(_whole(rows, path), str(path), reading.column)
        except csv.Error as error:
            raise ValueError(
                f"expected a table in {path}, got something else up to line {rows.reader.line_num} ({error}); put a "
                "text with quotes between quotes and double those within, or give JSON Lines"
            ) from error


def _whole(rows: csv.DictReader[str], path: Path) -> Iterator[dict[str, Any]]:
    for row in rows:
        if None in row:  # what is behind the last column would be lost
            count = len(rows.fieldnames or ())
            raise ValueError(
                f"expected {count} columns in {path} as in its first line, got {count + len(row[None])} in line "
                f"{rows.line_num}; put a text with the delimiter between quotes"
            )
        yield row


def _parquet(path: Path, reading: Reading) -> Iterator[tuple[Document, str]]:
    arrow, parquet = optional("pyarrow", "text"), optional("pyarrow.parquet", "text")
    try:
        file = parquet.ParquetFile(regular_file(path, "a Parquet file"))
        check_footer(file.metadata, path)
        names = file.schema_arrow.names
        if reading.column not in names:
            raise ValueError(_without_column(str(path), reading.column, names))
        blocks = file.iter_batches(columns=[reading.column], batch_size=1024)
        yield from _of_rows((row for block in blocks for row in block.to_pylist()), str(path), reading.column)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"expected a Parquet file, got {path}, which is damaged ({error}); copy it again") from error


def _tar(path: Path, reading: Reading) -> Iterator[tuple[Document, str]]:
    ending, found = "txt" if reading.column == "text" else reading.column, False
    with path.open("rb") as file:
        for key, parts in tar_samples(path):
            name = ending if ending in parts else "json"
            if name not in parts:
                continue
            found = True
            file.seek(parts[name][0])
            content, place = file.read(parts[name][1]), f"{path}, {key}.{name}"
            if name == ending:
                yield (
                    "".join(_lines(io.TextIOWrapper(io.BytesIO(content), _encoding(reading)), path, reading.encoding)),
                    place,
                )
                continue
            try:
                row = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"expected JSON in {place}, got something else ({error}); correct the file") from error
            yield from _of_rows([row] if isinstance(row, dict) else [{}], place, reading.column)
    if not found:
        raise ValueError(
            f"expected files that end with .{ending} or .json in {path}, got none; name the ending of the texts as the "
            "column"
        )


def _of_rows(rows: Any, source: str, column: str) -> Iterator[tuple[Document, str]]:
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise ValueError(_without_column(f"row {number} of {source}", column, list(row)))
        value, place = row[column], f"{source}, row {number}"
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            yield value, place
        elif value is not None:
            raise ValueError(
                f"expected text or a list of texts under {column!r}, got {type(value).__name__} in {place}; give "
                "another column"
            )


def _without_column(source: str, column: str, names: list[Any]) -> str:
    shown = ", ".join(map(str, names[:8]))
    return f"expected the column {column!r} in {source}, got {shown or 'none'}; name the column of the text"


def _hub_rows(name: str) -> Any:
    datasets = optional("datasets", "text", f"to look on the Hub for {name!r}, which is no file here")
    try:
        check_hub(name, datasets.config.HF_DATASETS_CACHE)
        return datasets.load_dataset(name, split="train")
    except Exception as error:  # the package's many errors all mean the same to the caller
        raise ValueError(
            f"expected a file, a folder, {DOCSTRINGS!r} or a data set on the Hub, got {name!r} "
            f"({type(error).__name__}); write ./ before the name of a file"
        ) from error


_ENDINGS: dict[str, Callable[[Path, Reading], Iterator[tuple[Document, str]]]] = {
    ".txt": _plain_text,
    ".md": _plain_text,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated,
    ".tsv": functools.partial(_separated, delimiter="\t"),
    ".parquet": _parquet,
    ".tar": _tar,
}
