"""Token files, which ``gritvq encode`` writes and ``gritvq decode`` reads, as a stream."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gritvq.files import check_footer, check_unpacked, names_in, place_of_file, read_header, replacing, replacing_files
from gritvq.lazy import optional

__all__ = [
    "MANIFEST",
    "UNFINISHED",
    "TokenRow",
    "check_token_path",
    "iter_tokens",
    "read_manifest",
    "read_tokens",
    "token_files",
    "write_shards",
    "write_tokens",
]

Plain: TypeAlias = str | bool | int | float | None

_TOKENS, _ROWS = 2**20, 2**14  # size of a row group
_READ = 256  # rows read at a time
_OWN = ("name", "shape", "tokens", "checksum")
MANIFEST = "manifest.json"  # what encode says of a folder of token files
UNFINISHED = ".unfinished"  # folder inside of it, where its files are until all are there
FORMAT, FORMAT_VERSION = "gritvq-tokens", 1
_DIGITS = 16  # hexadecimal digits of a checksum


class TokenRow(NamedTuple):
    """Tokens of one sample.

    Attributes:
        name: Name of the sample.
        tokens: Indices (*axes, Q), int64: (h, w, Q) of a grid, (T, Q) of a sequence, (Q,) of an item.
        columns: Other values, text or numbers, such as an image's size or a label; None is the same as absent.
    """

    name: str
    tokens: Int[Tensor, "*axes Q"]
    columns: Mapping[str, Plain] = {}


def check_token_path(path: str | os.PathLike[str]) -> Path:
    """The path; raises a ValueError unless it ends in .npz or .parquet and is not a folder."""
    path = Path(path)
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"expected a file name ending in .npz or .parquet, got {path.name!r}; rename it")
    if path.is_dir():
        raise ValueError(f"expected a file, got the folder {path}; choose another name")
    return path


def write_tokens(path: str | os.PathLike[str], rows: Iterable[TokenRow]) -> Path:
    """Write a stream of tokens to a file, atomically; about 2^20 tokens are in memory at a time.

    ``.parquet`` has one row per sample with ``name``, the list ``shape``, the flat list ``tokens``, a ``checksum``, and
    the other columns; ``.npz`` has ``tokens/NAME`` (*axes, Q) and, as JSON, ``columns/NAME`` with columns and checksum.
    The checksum is the start of the SHA-256 of all rows so far; for the last row, its end.

    Args:
        path: Path ending in ``.npz`` or ``.parquet``; an existing file is replaced once all rows are written.
        rows: The rows, for example a generator that encodes.

    Raises:
        ValueError: If there is no row, a row is invalid, or a column has both text and numbers (Parquet).

    Example:
        >>> import tempfile
        >>> rows = (TokenRow(f"{n}", torch.full((2, 3, 1), n), {"label": "cat"}) for n in range(5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_tokens(f"{folder}/tokens.parquet", rows)
        ...     [(row.name, row.tokens.shape, row.columns) for row in iter_tokens(path)][0]
        ('0', torch.Size([2, 3, 1]), {'label': 'cat'})
    """
    path = check_token_path(path)
    with replacing(path) as scratch:
        (_write_npz if path.suffix == ".npz" else _write_parquet)(scratch, _sealed(rows))
    return path


def write_shards(folder: str | os.PathLike[str], rows: Iterable[TokenRow], rows_per_file: int = 10_000) -> list[Path]:
    """Write tokens as they come into files ``tokens-00000.parquet``, ..., all of them or none.

    Args:
        folder: New, or one that holds no token files, which this would mix with its own.
        rows: Any number, such as a generator that encodes.
        rows_per_file: Rows of each file but the last.

    Raises:
        ValueError: As :func:`write_tokens`, or if the folder is a file or holds token files.

    Example:
        >>> import tempfile
        >>> rows = (TokenRow(f"{n}", torch.full((2, 1), n)) for n in range(5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_shards(f"{folder}/tokens", rows, rows_per_file=3)]
        ['tokens-00000.parquet', 'tokens-00001.parquet']
    """
    folder = Path(folder)
    if rows_per_file < 1:
        raise ValueError(f"expected rows_per_file >= 1, got {rows_per_file}; give a larger one")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder for the token files, got the file {folder}; choose another")
    if folder.is_dir() and _inside(folder):
        raise ValueError(f"expected a folder without token files, got {folder}; remove them, or choose another")
    names, rest = list[str](), iter(rows)
    with replacing_files(folder) as scratch:
        while first := list(itertools.islice(rest, 1)):
            names.append(f"tokens-{len(names):05}.parquet")
            write_tokens(scratch / names[-1], itertools.chain(first, itertools.islice(rest, rows_per_file - 1)))
        if not names:
            raise ValueError("expected tokens of at least one sample, got none; pass some rows")
    return [folder / name for name in names]


def token_files(path: str | os.PathLike[str]) -> list[Path]:
    """A token file, or those of a folder by name.

    Raises:
        ValueError: If a folder has none, or not those that its ``manifest.json`` lists.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = _inside(path)
    if place_of_file(path, MANIFEST).exists():
        said = read_manifest(path)["files"]
        if lost := sorted(said.keys() - {file.name for file in found}):
            raise ValueError(
                f"expected the {len(said):,} token files that {path / MANIFEST} lists, got none called {lost[0]}"
                f"{f' and {len(lost) - 1:,} more missing' if lost[1:] else ''}; copy the whole folder, or run the same "
                "'gritvq encode' again"
            )
    if not found:
        begun = (path / UNFINISHED).is_dir()
        raise ValueError(
            f"expected token files in {path}, got {'an unfinished encoding' if begun else 'none'}; "
            f"{'run the same ' if begun else 'make them with '}'gritvq encode'{' again' if begun else ''}"
        )
    return found


def read_manifest(folder: Path, finished: bool = True) -> dict[str, Any]:
    """What ``gritvq encode`` says of a folder of token files, see :mod:`gritvq.bulk.folder`.

    Args:
        folder: The folder.
        finished: Whether all of its files must be named.

    Raises:
        ValueError: If there is none, it is damaged, incomplete, or of a newer version.
    """
    wanted: dict[str, Any] = {"plan": dict, "files": dict, "totals": dict} if finished else {"plan": dict}
    return read_header(folder, MANIFEST, "a folder of token files", FORMAT, FORMAT_VERSION, wanted)


def _inside(folder: Path) -> list[Path]:
    names = (name for name in names_in(folder) if Path(name).suffix in (".npz", ".parquet"))
    return [place_of_file(folder, name) for name in names]


def iter_tokens(path: str | os.PathLike[str]) -> Iterator[TokenRow]:
    """Read a file of :func:`write_tokens` row by row, and check each row's checksum.

    It also reads files of version 0.1.0, in which damage may be detected only after the last row.

    Raises:
        ValueError: If the file is missing; while iterating, if it is damaged or not a token file.
    """
    path = check_token_path(path)
    if not path.is_file():
        there = "which is not a regular file" if path.exists() else "which does not exist"
        raise ValueError(f"expected a token file, got {path}, {there}; make one with 'gritvq encode'")
    return _read(path)


def read_tokens(path: str | os.PathLike[str]) -> list[TokenRow]:
    """All rows of a file at once, see :func:`iter_tokens`.

    Raises:
        ValueError: If the file is missing, damaged or not a token file.
    """
    return list(iter_tokens(path))


# --- writing ----------------------------------------------------------------------------------------------------------


def _sealed(rows: Iterable[TokenRow]) -> Iterator[tuple[TokenRow, str]]:
    """Rows as they are written, and the checksum of each."""
    digest, row = hashlib.sha256(), None
    for name, tokens, columns in rows:
        if row is not None:
            yield row, digest.hexdigest()[:_DIGITS]
        given = {column: value for column, value in columns.items() if value is not None}
        row = _row(name, tokens.detach().to("cpu").numpy(), given)
        digest.update(_content(row))
    if row is None:
        raise ValueError("expected tokens of at least one sample, got none; pass some rows")
    yield row, digest.hexdigest()[-_DIGITS:]


def _write_npz(path: Path, rows: Iterable[tuple[TokenRow, str]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for row, checksum in rows:
            said = json.dumps({"columns": row.columns, "checksum": checksum})
            if f"tokens/{row.name}.npy" in archive.NameToInfo:
                raise ValueError(f"expected names that differ, got {row.name!r} twice; write a .parquet file instead")
            for key, array in (("tokens", row.tokens.numpy()), ("columns", np.array(said))):
                entry = zipfile.ZipInfo(f"{key}/{row.name}.npy")
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)


def _write_parquet(path: Path, rows: Iterable[tuple[TokenRow, str]]) -> None:
    """Write row groups; if columns appear or their types become wider, to several parts that are joined at the end."""
    pa, parquet = optional("pyarrow", "images"), optional("pyarrow.parquet", "images")
    schema, parts = pa.schema([]), list[Path]()
    with ExitStack() as stack:
        writer: Any = None
        for held in _groups(rows):
            table = _table(schema, held)
            if table.schema != schema:
                if writer is not None:
                    writer.close()
                schema = table.schema
                parts.append(path.with_name(f"{path.name}.{len(parts)}"))
                stack.callback(parts[-1].unlink, missing_ok=True)
                writer = stack.enter_context(parquet.ParquetWriter(parts[-1], schema))
            writer.write_table(table)
        writer.close()
        if len(parts) == 1:
            os.replace(parts[0], path)
            return
        with parquet.ParquetWriter(path, schema) as whole:
            for part in parts:
                with parquet.ParquetFile(part) as file:
                    for number in range(file.num_row_groups):
                        whole.write_table(_widened(schema, file.read_row_group(number)))


def _groups(rows: Iterable[tuple[TokenRow, str]]) -> Iterator[list[tuple[TokenRow, str]]]:
    """Rows in groups of limited size."""
    held: list[tuple[TokenRow, str]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += row[0].tokens.numel()
        if size >= _TOKENS or len(held) >= _ROWS:
            yield held
            held, size = [], 0
    if held:
        yield held


def _table(schema: Any, rows: list[tuple[TokenRow, str]]) -> Any:
    """Rows as a table of this schema, extended if necessary."""
    pa = optional("pyarrow", "images")
    names = dict.fromkeys(name for row, _ in rows for name in row.columns)
    own = {
        "name": [row.name for row, _ in rows],
        "shape": [list(row.tokens.shape) for row, _ in rows],
        "tokens": [row.tokens.flatten().numpy() for row, _ in rows],
        "checksum": [checksum for _, checksum in rows],
    }
    try:
        return _widened(schema, pa.table({**own, **{n: [row.columns.get(n) for row, _ in rows] for n in names}}))
    except pa.ArrowException as error:
        raise ValueError(
            f"expected columns of text or of numbers, got several kinds in one column ({error}); write a .npz file, or "
            "make all of them text"
        ) from error


def _widened(schema: Any, table: Any) -> Any:
    """The table with the schema's columns, and wider types if its values need them."""
    return optional("pyarrow", "images").concat_tables([schema.empty_table(), table], promote_options="permissive")


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Iterator[TokenRow]:
    try:
        yield from _npz_rows(path) if path.suffix == ".npz" else _parquet_rows(path)
    except Exception as error:  # on damaged files NumPy, zipfile and pyarrow raise nearly everything
        raise ValueError(
            f"expected tokens written by 'gritvq encode' in {path}, got something else or a damaged file "
            f"({type(error).__name__}: {error}); if it is damaged, remove it and run the same 'gritvq encode' again"
        ) from error


def _npz_rows(path: Path) -> Iterator[TokenRow]:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # closes damaged files, too
        for record in file.zip.infolist():
            check_unpacked("an array", record.file_size, record.compress_size)
        keys = dict.fromkeys(file.files)
        names = [key.removeprefix("tokens/") for key in keys if key.startswith("tokens/")]
        if not names:
            raise ValueError("no arrays called tokens/NAME")
        if any(key.startswith("columns/") for key in keys):
            texts = ((name, json.loads(_text(file[f"columns/{name}"]))) for name in names)
            yield from _verified((n, file[f"tokens/{n}"], said["columns"], said["checksum"]) for n, said in texts)
        else:
            labels = {name: file[f"label/{name}"].tolist() for name in names if f"label/{name}" in keys}
            checksum_of_all = _text(file["sha256"]) if "sha256" in keys else None
            yield from _old_rows(
                ((n, file[f"tokens/{n}"], file[f"size/{n}"].tolist(), labels.get(n)) for n in names), checksum_of_all
            )


def _text(record: Any) -> str:
    """Text of an array; a record that is none comes as bytes."""
    if not isinstance(record, np.ndarray) or record.dtype.kind != "U" or record.ndim:
        raise ValueError("a record that is no text")
    return str(record)


def _parquet_rows(path: Path) -> Iterator[TokenRow]:
    with optional("pyarrow.parquet", "images").ParquetFile(path) as file:
        check_footer(file.metadata, path)
        rows = _parquet_values(file)
        if "shape" in file.schema_arrow.names:
            yield from _verified(
                (r.pop("name"), flat.reshape(r.pop("shape")), r, r.pop("checksum")) for r, flat in rows
            )
        else:
            checksum_of_all = (file.schema_arrow.metadata or {}).get(b"sha256")
            old = ((r, [r[side] for side in ("token_height", "token_width") if side in r], flat) for r, flat in rows)
            parts = (
                (r["name"], flat.reshape(*sides, r["channels"]), (r["height"], r["width"]), r.get("label"))
                for r, sides, flat in old
            )
            yield from _old_rows(parts, None if checksum_of_all is None else checksum_of_all.decode())


def _parquet_values(file: Any) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Values of each row's columns, and its flat tokens."""
    for batch in file.iter_batches(_READ):
        batch.validate(full=True)  # damaged files may contain offsets outside the buffers
        flat, names = batch.column("tokens"), [name for name in batch.schema.names if name != "tokens"]
        for number, row in enumerate(batch.select(names).to_pylist()):
            yield {n: value for n, value in row.items() if value is not None}, flat[number].values.to_numpy()


def _verified(rows: Iterable[tuple[Any, Any, Any, Any]]) -> Iterator[TokenRow]:
    """Rows of names, tokens, columns and checksums, which are checked; the last must be that of a last row."""
    digest, whole = hashlib.sha256(), False
    for name, tokens, columns, checksum in rows:
        row = _row(name, tokens, columns)
        digest.update(_content(row))
        whole = checksum == digest.hexdigest()[-_DIGITS:]
        if not whole and checksum != digest.hexdigest()[:_DIGITS]:
            raise ValueError(f"the checksum of {name!r} differs")
        yield row
    if not whole:
        raise ValueError("the last rows are missing")


def _old_rows(rows: Iterable[tuple[Any, Any, Any, Any]], checksum_of_all: str | None) -> Iterator[TokenRow]:
    """Rows of version 0.1.0: names, tokens, sizes and labels of pictures, and at most one checksum of all of them."""
    digest = hashlib.sha256()
    for name, tokens, size, label in rows:
        sides = [side for side in size if isinstance(side, int) and side > 0]
        if len(size) != 2 or len(sides) != 2 or tokens.ndim not in (2, 3):
            raise ValueError(
                f"expected a size (height, width) and tokens (h, w, Q) or (T, Q), got {size} {tokens.shape}"
            )
        labels = () if label is None else (label,)
        row = _row(name, tokens, dict(zip(("height", "width", "label"), (*sides, *labels), strict=False)))
        digest.update(repr((name, *sides, *tokens.shape, *labels)).encode() + row.tokens.numpy().tobytes())
        yield row
    if checksum_of_all not in (None, digest.hexdigest()):
        raise ValueError("the checksum differs")


def _row(name: Any, tokens: Any, columns: Any) -> TokenRow:
    """A row of checked parts."""
    if not isinstance(name, str):
        raise ValueError(f"expected a name, got {name!r}")
    if not tokens.ndim or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
        raise ValueError(f"expected integers (*axes, Q) for {name!r}, got an array {tokens.shape} of {tokens.dtype}")
    for column, value in columns.items():
        if not isinstance(column, str) or column in _OWN or not isinstance(value, str | int | float):
            raise ValueError(f"expected columns of text or numbers not named {_OWN}, got {column!r}: {value!r}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"expected integers of 64 bits, got {value} in {column!r}; make it text")
    return TokenRow(name, torch.from_numpy(tokens.astype(np.int64)), columns)


def _content(row: TokenRow) -> bytes:
    """Content for the checksum, with numbers as floats, since a column of both stores integers as floats."""
    columns = sorted(
        (name, float(value) if isinstance(value, int | float) else value) for name, value in row.columns.items()
    )
    return json.dumps([row.name, row.tokens.shape, columns]).encode() + row.tokens.numpy().tobytes()
