"""Sources of pictures: files, samples in tar files, rows of Parquet files or of a Hub data set, objects in memory.

A source returns compressed pictures by number and reads each only when asked for it.
"""

from __future__ import annotations

import io
import logging
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
from PIL import Image
from torch import Tensor

from gritvq.files import check_footer, tar_samples
from gritvq.lazy import check_hub, optional

__all__ = [
    "Blocks",
    "Footer",
    "Source",
    "Table",
    "TarShard",
    "find_files",
    "open_files",
    "open_hub",
    "open_memory",
    "open_parquet",
    "open_tables",
    "open_tars",
    "read_footer",
    "read_tar",
]

_logger = logging.getLogger(__name__)

# What is decoded, whatever the file's name: pictures made of pixels. Pillow knows more, and starts programs for some.
_FORMATS = "AVIF BMP DIB GIF JPEG JPEG2000 MPO PCX PNG PPM QOI SGI TGA TIFF WEBP"
_SMALL = 128 * 2**20  # bytes; a split of at most this size stays in memory once read
_WINDOW = 64 * 2**20  # bytes of a larger split that stay in memory
_TARS = 4  # tar files of which it stays in memory where the pictures are


def open_picture(file: Path | io.BytesIO) -> Image.Image:
    """A picture of one of the usual formats, not yet decoded."""
    Image.init()
    return Image.open(file, formats=[name for name in _FORMATS.split() if name in Image.OPEN])


class Source(ABC):
    """Pictures by number, still compressed.

    Attributes:
        in_memory: Whether they are objects of the caller, whom nothing but their pixels tells apart.
    """

    in_memory = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def open(self, number: int) -> Image.Image:
        """Picture ``number``, not yet decoded."""

    @abstractmethod
    def name(self, number: int) -> str:
        """Unique name of a picture, with forward slashes; names sort like numbers."""

    @abstractmethod
    def place(self, number: int) -> str:
        """The picture's place, for messages."""

    def label(self, number: int) -> Any:
        """The picture's label, or None."""
        return None

    def blocks(self) -> Blocks | None:
        """Ranges of pictures that are read together; None if every picture is read alone."""
        return None

    def columns(self) -> Sequence[str | None]:
        """Column, or ending in tar files, of the pictures and, if there is one, of the labels; () without tables."""
        return ()

    def paths(self) -> Sequence[tuple[str, Path]]:
        """The files that the pictures are in, with their unique names; none of a Hub data set and of memory."""
        return ()


class Blocks(NamedTuple):
    """Ranges of pictures that are read together, and how many of these ranges fit into memory at a time."""

    ranges: Sequence[range]
    held: int


def open_files(files: Sequence[Path], root: Path) -> Source:
    """One picture per file, named by its path relative to ``root``."""
    return _Files(files, root)


class _Files(Source):
    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self.files, self.root = files, root

    def __len__(self) -> int:
        return len(self.files)

    def open(self, number: int) -> Image.Image:
        return open_picture(self.files[number])

    def name(self, number: int) -> str:
        return self.files[number].relative_to(self.root).as_posix()

    def place(self, number: int) -> str:
        return str(self.files[number])

    def paths(self) -> Sequence[tuple[str, Path]]:
        return [(self.name(number), file) for number, file in enumerate(self.files)]


def open_memory(pictures: Sequence[Image.Image | Tensor | np.ndarray], names: Sequence[str] = ()) -> Source:
    """Pictures in memory: Pillow images, uint8 tensors (C, H, W), or uint8 arrays (H, W) or (H, W, C)."""
    return _Memory(pictures, names)


class _Memory(Source):
    in_memory = True

    def __init__(self, pictures: Sequence[Image.Image | Tensor | np.ndarray], names: Sequence[str] = ()) -> None:
        self.pictures, self.names = pictures, names

    def __len__(self) -> int:
        return len(self.pictures)

    def open(self, number: int) -> Image.Image:
        picture = self.pictures[number]
        if isinstance(picture, Tensor):
            picture = picture.cpu().permute(1, 2, 0).numpy()
            picture = picture[..., 0] if picture.shape[2] == 1 else picture
        return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture.copy()

    def name(self, number: int) -> str:
        return self.names[number] if self.names else _padded(number, len(self))

    def place(self, number: int) -> str:
        return f"picture {self.name(number)}"


class Table(Protocol):
    """Pictures and labels by row; ``place`` names the table in messages, ``columns`` are as in `Source.columns`."""

    place: str
    columns: Sequence[str | None]

    def __len__(self) -> int: ...

    def row(self, row: int) -> tuple[Any, Any]:
        """The picture, as ``{"bytes": ..., "path": ...}`` or bytes, and its label or None."""
        ...


def open_tables(tables: Sequence[tuple[str, Table]]) -> Source:
    """Pictures of named tables, one table after the other."""
    return _Rows(tables)


class _Rows(Source):
    def __init__(
        self, tables: Sequence[tuple[str, Table]], blocks: Blocks | None = None, files: Sequence[Path] = ()
    ) -> None:
        self.tables, self._blocks, self.files = tables, blocks, files
        self.ends = list(accumulate(len(table) for _, table in tables))

    def __len__(self) -> int:
        return self.ends[-1]

    def open(self, number: int) -> Image.Image:
        content = self._content(number)["bytes"]
        if content is None:
            raise ValueError("the row contains no bytes")
        return open_picture(io.BytesIO(content))

    def name(self, number: int) -> str:
        name, table, row = self._locate(number)
        return f"{name}/{_padded(row, len(table))}"

    def place(self, number: int) -> str:
        _, table, row = self._locate(number)
        try:
            path = self._content(number).get("path")
        except ValueError:
            path = None
        return f"{table.place} row {row}" + (f" ({path})" if path else "")

    def label(self, number: int) -> Any:
        _, table, row = self._locate(number)
        return table.row(row)[1]

    def blocks(self) -> Blocks | None:
        return self._blocks

    def columns(self) -> Sequence[str | None]:
        return max((table.columns for _, table in self.tables), key=len)

    def paths(self) -> Sequence[tuple[str, Path]]:
        return [(name, file) for (name, _), file in zip(self.tables, self.files, strict=False)]

    def _content(self, number: int) -> Mapping[str, Any]:
        _, table, row = self._locate(number)
        value = table.row(row)[0]
        return value if isinstance(value, dict) else {"bytes": value}

    def _locate(self, number: int) -> tuple[str, Table, int]:
        part = bisect_right(self.ends, number)
        return *self.tables[part], number - (self.ends[part - 1] if part else 0)


class Footer(NamedTuple):
    """Metadata of a Parquet file of pictures.

    Attributes:
        file: The file.
        name: Prefix of its pictures' names.
        columns: Column of the pictures and, if it exists, of the labels.
        length: Number of rows.
        firsts: First row of every row group.
        sizes: Bytes of every row group, other columns with them.
    """

    file: Path
    name: str
    columns: list[str]
    length: int
    firsts: list[int]
    sizes: list[int]


def read_footer(file: Path, name: str, column: str, label: str) -> Footer:
    """Reads a Parquet file's metadata without reading a picture.

    Args:
        file: The file.
        name: Prefix of its pictures' names.
        column: A column of ``{"bytes": ..., "path": ...}``, as Hugging Face ``datasets`` writes it, or of bytes.
        label: Column of the labels; need not exist.

    Raises:
        ValueError: If the file is damaged or has no such column of pictures.
    """
    pyarrow, parquet = optional("pyarrow", "images"), optional("pyarrow.parquet", "images")
    try:
        with parquet.ParquetFile(file) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
            check_footer(metadata, file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"expected a Parquet file, got {str(file)!r}: {error}; replace or remove it.") from error
    kind: Any = schema.field(column).type if schema.names.count(column) == 1 else pyarrow.null()
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise _wrong_column(column, schema.names, repr(str(file)))
    columns = [column, label] if label in schema.names and label != column else [column]
    firsts, sizes, first = [], [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        firsts.append(first)
        sizes.append(group.total_byte_size)
        first += group.num_rows
    return Footer(file, name, columns, metadata.num_rows, firsts, sizes)


def open_parquet(footers: Sequence[Footer]) -> Source:
    """The pictures of Parquet files, one file after the other, read by row group.

    Up to 128 MB of groups, all columns counted, stay in memory once read; of more, the 64 MB used last, but at least
    one group.
    """
    ranges, begin = [], 0
    for footer in footers:
        ends = [*footer.firsts[1:], footer.length]
        ranges += [range(begin + first, begin + end) for first, end in zip(footer.firsts, ends, strict=True)]
        begin += footer.length
    sizes = [size for footer in footers for size in footer.sizes]
    cache = _Cache(None if sum(sizes) <= _SMALL else max(1, _WINDOW // max(sizes)))
    tables = [(footer.name, _ParquetTable(footer, cache)) for footer in footers]
    return _Rows(tables, Blocks(ranges, cache.held) if cache.held else None, [footer.file for footer in footers])


class _Cache:
    """The ``held`` row groups used last, or all."""

    def __init__(self, held: int | None) -> None:
        self.held = held
        self.groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"held": self.held, "groups": OrderedDict()}  # a worker process fills its own cache

    def get(self, footer: Footer, group: int) -> Any:
        """The table of a row group."""
        key = (footer.file, group)
        if key not in self.groups:
            pyarrow = optional("pyarrow", "images")
            while self.held and len(self.groups) >= self.held:
                self.groups.popitem(last=False)
            try:
                with optional("pyarrow.parquet", "images").ParquetFile(footer.file) as opened:
                    self.groups[key] = opened.read_row_group(group, columns=footer.columns, use_threads=False)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"row group {group} cannot be read: {error}") from error
            if self.held:
                pyarrow.default_memory_pool().release_unused()  # else Arrow keeps tens of MB
        self.groups.move_to_end(key)
        return self.groups[key]


class _ParquetTable:
    """The rows of a Parquet file."""

    def __init__(self, footer: Footer, cache: _Cache) -> None:
        self.footer, self.cache, self.place = footer, cache, str(footer.file)
        self.columns: Sequence[str | None] = footer.columns

    def __len__(self) -> int:
        return self.footer.length

    def row(self, row: int) -> tuple[Any, Any]:
        group = bisect_right(self.footer.firsts, row) - 1
        table = self.cache.get(self.footer, group)
        values = [table[name][row - self.footer.firsts[group]].as_py() for name in self.footer.columns]
        return values[0], values[1] if len(values) > 1 else None


class TarShard(NamedTuple):
    """A tar file of pictures, as WebDataset has them.

    Attributes:
        file: The file.
        name: Prefix of its pictures' names.
        column: Ending of the pictures; None for any of ``endings``.
        label: Ending of the labels.
        endings: Endings of pictures, with the dot.
        length: Number of samples with a picture.
    """

    file: Path
    name: str
    column: str | None
    label: str
    endings: Collection[str]
    length: int


def read_tar(file: Path, name: str, column: str | None, label: str, endings: Collection[str]) -> TarShard:
    """Counts a tar file's pictures without reading one, see :class:`TarShard`.

    Raises:
        ValueError: If the file is damaged.
    """
    shard = TarShard(file, name, column, label, endings, 0)
    return shard._replace(length=len(_tar_index(shard)))


def open_tars(shards: Sequence[TarShard]) -> Source:
    """The pictures of tar files, one file after the other; of four files it is in memory where the pictures are."""
    index = _TarIndex()
    return _Tars([(s.name, _TarTable(s, index)) for s in shards], files=[s.file for s in shards])


class _Tars(_Rows):
    """Pictures that have names of their own: the keys of their samples."""

    def name(self, number: int) -> str:
        name, table, row = self._locate(number)
        return f"{name}/{cast(_TarTable, table).key(row)}"


Place: TypeAlias = tuple[int, int]  # offset and size


def _tar_index(shard: TarShard) -> list[tuple[str, str, Place, Place | None]]:
    """Key, ending and place of every picture, and the place of its label."""
    found = []
    for key, parts in tar_samples(shard.file):
        endings = [e for e in parts if (e == shard.column if shard.column else f".{e}" in shard.endings)]
        if endings:
            found.append((key, endings[0], parts[endings[0]], parts.get(shard.label)))
    return found


class _TarIndex:
    """Where the pictures of the files used last are."""

    def __init__(self) -> None:
        self.held: OrderedDict[Path, list[tuple[str, str, Place, Place | None]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"held": OrderedDict()}  # a worker process reads its own

    def get(self, shard: TarShard) -> list[tuple[str, str, Place, Place | None]]:
        if shard.file not in self.held:
            while len(self.held) >= _TARS:
                self.held.popitem(last=False)
            found = _tar_index(shard)
            if len(found) != shard.length:
                raise ValueError(
                    f"expected the {shard.length:,} pictures that were in {shard.file}, got {len(found):,}; leave the "
                    "file as it is while it is read"
                )
            self.held[shard.file] = found
        self.held.move_to_end(shard.file)
        return self.held[shard.file]


class _TarTable:
    """The samples of a tar file."""

    def __init__(self, shard: TarShard, index: _TarIndex) -> None:
        self.shard, self.index, self.place = shard, index, str(shard.file)
        self.columns: Sequence[str | None] = (shard.column, shard.label)

    def __len__(self) -> int:
        return self.shard.length

    def key(self, row: int) -> str:
        return self.index.get(self.shard)[row][0]

    def row(self, row: int) -> tuple[Any, Any]:
        key, ending, place, label = self.index.get(self.shard)[row]
        with self.shard.file.open("rb") as file:
            content, said = (_bytes_at(file, at) if at else None for at in (place, label))
        return {"bytes": content, "path": f"{key}.{ending}"}, None if said is None else _class_in(said)


def _bytes_at(file: BinaryIO, place: Place) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def _class_in(content: bytes) -> int | str:
    """A label, which WebDataset writes as text."""
    text = content.decode(errors="replace").strip()
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 19 else text


def open_hub(name: str, column: str, label: str) -> dict[str, Table]:
    """The splits of a data set on the Hugging Face Hub by name.

    Raises:
        ValueError: If the data set cannot be loaded or has no such column of pictures.
    """
    datasets = optional("datasets", "images")
    try:
        check_hub(name, datasets.config.HF_DATASETS_CACHE)
        loaded = datasets.load_dataset(name)
    except Exception as error:  # network, authentication, naming and script errors share no class
        raise ValueError(
            f"expected 'photographs', an existing path or a data set on the Hub, got {name!r}: {error}; correct the "
            "name, or download the data set to a folder."
        ) from error
    splits: dict[str, Table] = {}
    for split, rows in loaded.items():
        if column not in rows.column_names or not isinstance(rows.features[column], datasets.Image):
            raise _wrong_column(column, rows.column_names, f"{name!r} on the Hub")
        columns = [column, label] if label in rows.column_names and label != column else [column]
        undecoded = rows.select_columns(columns).cast_column(column, datasets.Image(decode=False))
        splits[split] = _HubTable(undecoded, columns, f"{name} {split}")
    return splits


class _HubTable:
    """The rows of one split of a Hub data set."""

    def __init__(self, rows: Any, names: Sequence[str], place: str) -> None:
        self.rows, self.names, self.place = rows, names, place
        self.columns: Sequence[str | None] = names

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, row: int) -> tuple[Any, Any]:
        values = self.rows[row]
        return values[self.names[0]], values[self.names[1]] if len(self.names) > 1 else None


def find_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """All regular, non-hidden files below a folder with one of these suffixes, sorted.

    Links are followed. A file that can be reached in several ways is found once, preferably not through a link.
    """
    found: list[Path] = []
    folders, files = [(folder, os.path.realpath(folder))], []
    seen = {folders[0][1]}
    linked: list[Path] = []
    real_files: set[str] = set()
    while folders or linked:
        if not folders:  # links come last, so that folders keep their own names
            link = linked.pop(0)
            real = os.path.realpath(link)
            if real in seen:
                continue
            seen.add(real)
            folders.append((link, real))
        place, real = folders.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            _logger.warning("skipped an unreadable folder: %s", error)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = place / entry.name
            if entry.is_dir():
                if entry.is_symlink():
                    linked.append(path)
                elif (inside := os.path.join(real, entry.name)) not in seen:
                    seen.add(inside)
                    folders.append((path, inside))
            elif path.suffix.lower() in suffixes and entry.is_file():
                if entry.is_symlink():
                    files.append(path)
                else:
                    real_files.add(os.path.join(real, entry.name))
                    found.append(path)
    for path in sorted(files):
        if (real := os.path.realpath(path)) not in real_files:
            real_files.add(real)
            found.append(path)
    return sorted(found)


def _padded(number: int, length: int) -> str:
    return f"{number:0{len(str(max(0, length - 1)))}}"


def _wrong_column(column: str, names: Sequence[str], where: str) -> ValueError:
    return ValueError(
        f"expected a column of pictures {column!r} in {where}, got {', '.join(names)}; name the right one with "
        "`column`."
    )
