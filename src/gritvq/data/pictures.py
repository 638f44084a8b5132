"""Reading pictures: one decoder for every kind, and those of folders, Parquet files and Hub data sets by number.

Pictures stay compressed until one is asked for.
"""

from __future__ import annotations

import importlib
import io
import logging
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = [
    "Pictures",
    "Source",
    "check_channels",
    "decode",
    "find_files",
    "find_images",
    "open_files",
    "open_hub",
    "open_parquet",
    "read_images",
    "to_tensor",
]

_logger = logging.getLogger(__name__)

_SUFFIXES = [
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jp2",
    ".avif",
]


def to_tensor(image: Image.Image, channels: int = 3) -> UInt8[Tensor, "C H W"]:
    """Turns any Pillow image into bytes of grey or RGB, the right way up.

    The orientation in the EXIF data is applied, transparency lies over white, and values of more than 8 bits are scaled
    to 0..255, never clipped: white is 65535 for integers and, for floats, the least of 1, 255 and 65535 that is no
    smaller than the largest value; beyond these it is the largest value. Of an animation it takes the current frame.

    Args:
        image: The image; it stays as it is.
        channels: 1 for grey or 3 for RGB.

    Returns:
        Bytes (C, H, W) in memory of their own.

    Raises:
        ValueError: If ``channels`` is neither 1 nor 3, or Pillow knows no conversion from the image's mode.

    Example:
        >>> to_tensor(Image.new("RGBA", (3, 2), (255, 0, 0, 0)), channels=1).tolist()
        [[[255, 255, 255], [255, 255, 255]]]
    """
    check_channels(channels)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if isinstance(image.info.get("transparency"), int):
            values[values == image.info["transparency"]] = 65535  # a PNG names one value that is transparent
        whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
        white = next((white for white in whites if values.max() <= white), values.max())
        image = Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    return (pixels[None] if channels == 1 else pixels.permute(2, 0, 1)).contiguous()


def find_images(path: str | Path) -> list[Path]:
    """Lists the pictures of a folder and its subfolders by name; hidden ones are left out.

    Args:
        path: A folder, or a single file of any name.

    Returns:
        Their paths, sorted; for a file that file alone.

    Raises:
        ValueError: If there is no such file or folder, or the folder holds no pictures.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"expected a picture or a folder of pictures, got {str(path)!r}, which does not exist.")
    found = find_files(path, _SUFFIXES)
    if not found:
        raise ValueError(
            f"expected pictures ({', '.join(sorted(_SUFFIXES))}) in {str(path)!r}, got none; give another folder."
        )
    return found


def read_images(
    path: str | Path, *, channels: int = 3, strict: bool = False
) -> Iterator[tuple[str, UInt8[Tensor, "C H W"]]]:
    """Reads a picture, or the pictures of a folder and its subfolders one after the other.

    Args:
        path: A file or a folder.
        channels: 1 for grey or 3 for RGB.
        strict: Whether an unreadable picture in a folder is an error; otherwise it is logged by name and left out.

    Returns:
        An iterator of names, relative to the folder with forward slashes, and bytes (C, H, W) of any size.

    Raises:
        ValueError: If there are no pictures; while iterating, if a single file or (``strict``) any file is unreadable.
    """
    files, folder = find_images(path), Path(path).expanduser()
    check_channels(channels)
    strict = strict or folder.is_file()

    def read() -> Iterator[tuple[str, Tensor]]:
        for file in files:
            tensor = decode(partial(Image.open, file), partial(str, file), channels, strict)
            if tensor is not None:
                yield (file.name if file == folder else file.relative_to(folder).as_posix()), tensor

    return read()


class Source(NamedTuple):
    """Pictures by number, still compressed.

    Attributes:
        length: How many there are.
        open: Number to Pillow image.
        name: Number to what a message calls it.
    """

    length: int
    open: Callable[[int], Image.Image]
    name: Callable[[int], str]


class Pictures:
    """Decoded pictures of a source by index; in the place of an unreadable one stands the next readable one.

    Args:
        source: Where they come from.
        numbers: Which of them.
        channels: 1 for grey or 3 for RGB.
        strict: Whether an unreadable picture is an error; otherwise it is logged by name, once.
    """

    def __init__(self, source: Source, numbers: range, channels: int, strict: bool) -> None:
        self.source, self.numbers, self.channels, self.strict = source, numbers, channels, strict
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> UInt8[Tensor, "C H W"]:
        for step in range(len(self)):
            number = self.numbers[(index + step) % len(self)]
            if number not in self._broken:
                opener, name = partial(self.source.open, number), partial(self.source.name, number)
                picture = decode(opener, name, self.channels, self.strict)
                if picture is not None:
                    return picture
                self._broken.add(number)
        raise ValueError(
            f"expected a readable picture, got {len(self)} unreadable ones; the log names them, replace these files."
        )

    def hold_out(self, count: int) -> tuple[Pictures, Pictures]:
        """All but the last ``count`` pictures, and these."""
        parts = self.numbers[:-count], self.numbers[-count:]
        first, last = (Pictures(self.source, part, self.channels, self.strict) for part in parts)
        return first, last


def decode(
    opener: Callable[[], Image.Image], name: Callable[[], str], channels: int, strict: bool
) -> UInt8[Tensor, "C H W"] | None:
    """Opens and decodes one picture; None and a line in the log where it is unreadable, an error if ``strict``."""
    try:
        with opener() as image:
            return to_tensor(image, channels)
    except Exception as error:  # on damaged files Pillow raises nearly everything
        unknown = isinstance(error, UnidentifiedImageError)  # its text names the file, or a buffer's address
        reason = "in no known format" if unknown else str(error) or type(error).__name__
        if strict:
            raise ValueError(
                f"expected a readable picture, got {name()}: {reason}; replace or remove it, or read without `strict` "
                "to leave such pictures out of a collection."
            ) from error
        _logger.warning("left out an unreadable picture: %s: %s", name(), reason)
        return None


def open_files(files: Sequence[Path]) -> Source:
    """The pictures of these files."""
    return Source(len(files), lambda number: Image.open(files[number]), lambda number: str(files[number]))


def open_parquet(files: Sequence[Path], column: str) -> Source:
    """The pictures in one column of Parquet files, one file after the other.

    Args:
        files: At least one file.
        column: A column of ``{"bytes": ..., "path": ...}``, as Hugging Face ``datasets`` writes it, or of bytes.

    Raises:
        ValueError: If a file is damaged or lacks the column.
    """
    pyarrow, parquet = _require("pyarrow"), _require("pyarrow.parquet")
    parts: list[tuple[str, _Rows]] = []
    for file in files:
        try:
            schema = parquet.read_schema(file)
            kind: Any = schema.field(column).type if column in schema.names else pyarrow.null()
            if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
                rows = parquet.read_table(file, columns=[column])[column]
            else:
                rows = None
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"expected a Parquet file, got {str(file)!r}: {error}; replace or remove it.") from error
        if rows is None:
            raise _wrong_column(column, schema.names, repr(str(file)))
        parts.append((str(file), rows))
    return _rows(parts)


def open_hub(name: str, column: str) -> dict[str, Source]:
    """The pictures in one column of every split of a data set on the Hugging Face Hub.

    Raises:
        ValueError: If the data set cannot be loaded or lacks the column.
    """
    datasets = _require("datasets")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # network, authentication, naming and script errors share no class
        raise ValueError(
            f"expected 'photographs', an existing path or a data set on the Hub, got {name!r}: {error}; correct the "
            "name, or download it to a folder."
        ) from error
    sources = {}
    for split, rows in loaded.items():
        if column not in rows.column_names or not isinstance(rows.features[column], datasets.Image):
            raise _wrong_column(column, rows.column_names, f"{name!r} on the Hub")
        undecoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        sources[split] = _rows([(f"{name} {split}", _Column(undecoded, column))])
    return sources


class _Rows(Protocol):
    """What `_rows` needs of a column."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class _Column:
    """One column of a Hub data set, row by row."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Any:
        return self.rows[index][self.column]


def _rows(parts: Sequence[tuple[str, _Rows]]) -> Source:
    """Rows ``{"bytes": ..., "path": ...}`` or bytes (or Arrow scalars of these), part after part."""
    ends = list(accumulate(len(rows) for _, rows in parts))

    def locate(number: int) -> tuple[str, int, dict[str, Any]]:
        part = bisect_right(ends, number)
        name, rows = parts[part]
        place = number - (ends[part - 1] if part else 0)
        row = rows[place]
        value = row if isinstance(row, dict) else row.as_py()
        return name, place, value if isinstance(value, dict) else {"bytes": value}

    def opener(number: int) -> Image.Image:
        content = locate(number)[2]["bytes"]
        if content is None:
            raise ValueError("the row holds no bytes")
        return Image.open(io.BytesIO(content))

    def name(number: int) -> str:
        part, place, value = locate(number)
        return f"{part} row {place}" + (f" ({value['path']})" if value.get("path") else "")

    return Source(ends[-1], opener, name)


def find_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """All files below a folder with one of these suffixes, sorted; nothing hidden."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def check_channels(channels: int) -> None:
    """Raises a ValueError unless there is a conversion to this number of channels."""
    if channels not in (1, 3):
        raise ValueError(f"expected channels to be 1 (grey) or 3 (RGB), got {channels}; choose one of these.")


def _wrong_column(column: str, names: Sequence[str], where: str) -> ValueError:
    return ValueError(
        f"expected a column of pictures {column!r} in {where}, got {', '.join(names)}; name the right one with "
        "`column`."
    )


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"expected the package {module}, got none; pip install 'gritvq[images]'.") from error
