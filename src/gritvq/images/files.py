"""Reading and writing pictures; `open_pictures` opens files, folders, tables, Hub data sets and objects in memory."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from gritvq.component import check_integer
from gritvq.files import regular_file, replacing
from gritvq.images.decoding import MAX_PIXELS, check_channels, decode
from gritvq.images.metrics import to_uint8
from gritvq.images.sources import (
    Blocks,
    Source,
    find_files,
    open_files,
    open_hub,
    open_memory,
    open_parquet,
    open_tables,
    open_tars,
    read_footer,
    read_tar,
)
from gritvq.images.splits import SPLITS, looks_held_out, split_of
from gritvq.lazy import optional

__all__ = [
    "Picture",
    "Pictures",
    "Splits",
    "find_images",
    "find_splits",
    "open_photographs",
    "open_pictures",
    "picture_paths",
    "read_images",
    "save_png",
]

_logger = logging.getLogger(__name__)

_LONGEST_NAME = 200  # bytes of a file's name: most systems allow 255, and suffixes and temporary files need some
ALL = "all"  # the only split if no name determines one

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

# Color photographs bundled with scikit-image, each with the top left corner of a square held out from training.
# motorcycle_right.png is left out: it shows the scene of motorcycle_left.png, including the held-out square.
HELD_OUT_SIZE = 160
PHOTOGRAPHS = {
    "astronaut.png": (16, 144),
    "chelsea.png": (40, 90),
    "coffee.png": (170, 290),
    "rocket.jpg": (130, 250),
    "motorcycle_left.png": (220, 300),
    "hubble_deep_field.jpg": (330, 360),
    "ihc.png": (240, 220),
}


def find_images(path: str | Path) -> list[Path]:
    """Lists the non-hidden pictures of a folder and its subfolders.

    Args:
        path: A folder, or a single file of any name.

    Returns:
        Sorted paths; for a file, that file.

    Raises:
        ValueError: If there is no such file or folder, or the folder contains no pictures.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return [regular_file(path, "a picture or a folder of pictures")]
    found = find_files(path, _SUFFIXES)
    if not found:
        raise ValueError(
            f"expected pictures ({', '.join(sorted(_SUFFIXES))}) in {str(path)!r}, got none; give another folder."
        )
    return found


def read_images(
    path: str | Path,
    *,
    channels: int = 3,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int | None = None,
) -> Iterator[tuple[str, UInt8[Tensor, "C H W"]]]:
    """Reads a picture, or the pictures of a folder and its subfolders one by one.

    Args:
        path: A file or a folder.
        channels: 1 for gray or 3 for RGB.
        strict: Whether an unreadable picture in a folder is an error; otherwise it is logged and skipped.
        max_pixels: Pixels of the largest picture that is read, see `open_pictures`.
        max_bytes: Bytes of the largest file of a picture that is read; None for any.

    Returns:
        An iterator of names, relative to the folder with forward slashes, and uint8 tensors (C, H, W) of any size.

    Raises:
        ValueError: If there are no pictures; while iterating, if a single file or (``strict``) any file is unreadable.
    """
    files, folder = find_images(path), Path(path).expanduser()
    check_channels(channels)
    root = folder if folder.is_dir() else folder.parent
    limits: dict[str, Any] = {"max_pixels": max_pixels, "max_bytes": max_bytes}
    pictures = Pictures(open_files(files, root), channels, strict=strict or folder.is_file(), **limits)
    return ((picture.name, picture.pixels) for picture in pictures)


class Picture(NamedTuple):
    """A whole picture.

    Attributes:
        name: Unique name with forward slashes: the path relative to the folder, or a table's name and the row.
        pixels: uint8 tensor (C, H, W) of any size.
        label: Value in the column of labels, or None.
    """

    name: str
    pixels: UInt8[Tensor, "C H W"]
    label: Any = None


class Pictures:
    """Whole pictures of any size by index, decoded on access.

    Iteration skips unreadable pictures and logs each once.

    Args:
        source: Where the pictures are read from.
        channels: 1 for gray or 3 for RGB.
        numbers: Numbers of the pictures in ``source``, in order; None for all.
        strict: Whether an unreadable picture is an error when iterating.
        origin: Description of the data for `describe`.
        max_pixels: Pixels of the largest picture that is read; larger ones count as unreadable.
        max_bytes: Bytes of the largest file of a picture, as it is stored, likewise; None for any.

    Example:
        >>> pictures = open_pictures("photographs")
        >>> len(pictures), pictures[0].name, tuple(pictures[0].pixels.shape)
        (7, 'astronaut.png', (3, 512, 512))
    """

    def __init__(
        self,
        source: Source,
        channels: int = 3,
        *,
        numbers: Sequence[int] | None = None,
        strict: bool = False,
        origin: dict[str, Any] | None = None,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int | None = None,
    ) -> None:
        self.max_pixels = check_integer("max_pixels", max_pixels)
        self.max_bytes = None if max_bytes is None else check_integer("max_bytes", max_bytes)
        self.source, self.channels, self.strict, self.origin = source, channels, strict, origin or {}
        self.numbers = range(len(source)) if numbers is None else numbers
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Picture:
        """Picture ``index``; raises a ValueError if it is unreadable."""
        number = self.numbers[index]
        pixels = self._decode(number, strict=True)
        assert pixels is not None
        return Picture(self.source.name(number), pixels, self.source.label(number))

    def __iter__(self) -> Iterator[Picture]:
        for number in self.numbers:
            pixels = self._decode(number, self.strict)
            if pixels is not None:
                yield Picture(self.source.name(number), pixels, self.source.label(number))

    def readable(self, index: int) -> UInt8[Tensor, "C H W"]:
        """Picture ``index``, or the next readable one if it is unreadable; raises a ValueError if none is readable."""
        for step in range(len(self)):
            pixels = self._decode(self.numbers[(index + step) % len(self)], self.strict)
            if pixels is not None:
                return pixels
        raise ValueError(
            f"expected a readable picture, got {len(self)} unreadable ones; replace these files, which the log lists."
        )

    def part(self, numbers: Sequence[int]) -> Pictures:
        """Pictures of the same source with these numbers."""
        settings: dict[str, Any] = {"strict": self.strict, "origin": self.origin}
        limits: dict[str, Any] = {"max_pixels": self.max_pixels, "max_bytes": self.max_bytes}
        return Pictures(self.source, self.channels, numbers=numbers, **settings, **limits)

    def batches(self, batch_size: int = 64, max_pixels: int = 2**22) -> Iterator[tuple[list[Picture], Tensor]]:
        """Batches of readable whole pictures, in order; consecutive pictures of equal size share a batch.

        Args:
            batch_size: Largest number of pictures per batch.
            max_pixels: Largest number of pixels per batch; a larger picture is a batch of its own.

        Returns:
            An iterator of pictures and of their float32 values (B, C, H, W) in [0, 1].
        """

        def joined(batch: list[Picture]) -> tuple[list[Picture], Tensor]:
            return batch, torch.stack([picture.pixels for picture in batch]).float().div_(255)

        batch: list[Picture] = []
        for picture in self:
            shape = picture.pixels.shape
            room = min(batch_size, max_pixels // (shape[1] * shape[2]))
            if batch and (batch[0].pixels.shape != shape or len(batch) >= room):
                yield joined(batch)
                batch = []
            batch.append(picture)
        if batch:
            yield joined(batch)

    def blocks(self) -> Blocks | None:
        """Ranges of indices that are read together; None if every picture is read alone."""
        blocks, numbers = self.source.blocks(), self.numbers
        if blocks is None or not isinstance(numbers, range):
            return None
        cut = [range(max(block.start, numbers.start), min(block.stop, numbers.stop)) for block in blocks.ranges]
        own = [range(block.start - numbers.start, block.stop - numbers.start) for block in cut if block]
        return Blocks(own, blocks.held)

    def describe(self) -> dict[str, Any]:
        """Origin and number of the pictures, as plain values."""
        return {**self.origin, "pictures": len(self)}

    def _decode(self, number: int, strict: bool) -> UInt8[Tensor, "C H W"] | None:
        if number in self._broken and not strict:
            return None
        opener, place = partial(self.source.open, number), partial(self.source.place, number)
        pixels = decode(opener, place, self.channels, strict, self.max_pixels, self.max_bytes)
        if pixels is None:
            self._broken.add(number)
        return pixels


def open_pictures(
    path: str | Path | Sequence[Image.Image | Tensor | np.ndarray],
    *,
    channels: int = 3,
    split: str | None = None,
    column: str = "image",
    label: str = "label",
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int | None = None,
) -> Pictures:
    """Opens pictures from any source, in the order of their names, without decoding them yet.

    Args:
        path: A picture; a folder of pictures, with its subfolders; a Parquet file, or a folder of them; a tar file of
            WebDataset (``0001.jpg``, ``0001.cls``, ``0002.jpg``, ...), or a folder of them; the name of a data set on
            the Hugging Face Hub; ``"photographs"`` for those bundled with scikit-image; or a sequence of Pillow images,
            uint8 tensors (C, H, W) or uint8 arrays (H, W) or (H, W, C).
        channels: 1 for gray or 3 for RGB.
        split: ``"train"``, ``"validation"``, ``"test"``; ``"held_out"`` for the validation pictures, or the test
            pictures if there are none; None for all. If no name determines a split, every split is all the data. The
            validation and test pictures of the photographs are the squares held out from training.
        column: Column of the pictures in Parquet files and Hub data sets; in tar files their ending, any of pictures
            for ``"image"``.
        label: Column of the labels there; need not exist. In tar files the ending, ``cls`` for ``"label"``.
        strict: Whether an unreadable picture is an error when iterating; otherwise it is logged and skipped. For a
            path of a single picture it is always an error.
        max_pixels: Pixels of the largest picture of a file that is read, as its header says, so that a file of a few
            bytes cannot ask for gigabytes; half of them where the decoder needs more memory (WebP, AVIF, JPEG 2000,
            TIFF, progressive JPEG). Larger ones count as unreadable. Pillow's own limit,
            ``PIL.Image.MAX_IMAGE_PIXELS``, stays.
        max_bytes: Bytes of the largest file of a picture that is decoded, also of one in a table or an archive; larger
            ones count as unreadable. None for any.

    Raises:
        ValueError: If nothing is found, it cannot be read, or there is no such split.
    """
    check_channels(channels)
    if split not in (*SPLITS, "held_out", None):
        raise ValueError(f"expected split to be train, validation, test, held_out or None, got {split!r}; choose one.")
    if not isinstance(path, str | Path):
        origin = {"data": "pictures in memory", "splits": {ALL: {"no name of a split": len(path)}}}
        return Pictures(open_memory(path), channels, strict=strict, origin=origin, max_pixels=max_pixels)
    if str(path) == "photographs":
        if split == "train":
            raise ValueError(
                "expected split to be validation, test, held_out or None for 'photographs', got 'train'; use "
                "ImageData('photographs') for crops outside the held-out squares."
            )
        return open_photographs(channels, held_out=split is not None)
    splits = find_splits(path, column=column, label=label)
    chosen = list(splits.names)
    if split is not None and chosen != [ALL]:
        wanted = ("validation", "test") if split == "held_out" else (split,)
        chosen = [name for name in wanted if name in splits.names][:1]
        if not chosen:
            raise ValueError(
                f"expected {' or '.join(wanted)} pictures in {str(path)!r}, got {', '.join(splits.names)}; choose one "
                "of these splits, or rename the folders or files."
            )
    return splits.open(chosen, channels, strict or splits.is_picture, max_pixels, max_bytes)


class Splits:
    """The pictures of a path by split. If no name determines a split, the only split is ``"all"``.

    Args:
        path: Where the pictures are.
        items: A split and the word that determined it (or None), a file or table, and the number of its pictures; in
            the order of their names.
        build: Maps files or tables to a source.
        is_picture: Whether the path is a single picture.

    Attributes:
        in_files: Whether every picture is a file of its own.
        doubtful: Names of training pictures, or of their tables, that look held out; one per picture.
        said: For each split, the names that determined it, with their numbers of pictures.
    """

    def __init__(
        self,
        path: str,
        items: Sequence[tuple[tuple[str, str] | None, Any, int]],
        build: Callable[[list[Any]], Source],
        is_picture: bool = False,
    ) -> None:
        self.path, self.build, self.is_picture = path, build, is_picture
        self.in_files = all(isinstance(item, Path) for _, item, _ in items)
        rest = "train" if any(said for said, _, _ in items) else ALL
        self.said: dict[str, dict[str, int]] = {}
        self.items: list[tuple[str, Any]] = []
        self.doubtful: list[str] = []
        for said, item, count in items:
            split, word = said or (rest, "no name of a split")
            name = said[1] if said else item.name if self.in_files else ""
            if split in ("train", ALL) and looks_held_out([name]):
                self.doubtful += [name] * count
            words = self.said.setdefault(split, {})
            words[word] = words.get(word, 0) + count
            self.items.append((split, item))

    @property
    def names(self) -> list[str]:
        """Names of the existing splits."""
        return [name for name in (*SPLITS, ALL) if name in self.said]

    def open(
        self,
        names: Sequence[str],
        channels: int,
        strict: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int | None = None,
    ) -> Pictures:
        """The pictures of these splits, in the order of their names."""
        source = self.build([item for split, item in self.items if split in names])
        said = {name: self.said[name] for name in names}
        origin = {"data": self.path, "splits": said}
        limits: dict[str, Any] = {"max_pixels": max_pixels, "max_bytes": max_bytes}
        return Pictures(source, channels, strict=strict, origin=origin, **limits)


def find_splits(path: str | Path, *, column: str = "image", label: str = "label") -> Splits:
    """Finds the pictures of a file, folder, Parquet file or Hub data set, and their splits.

    Args:
        path: As in `open_pictures`.
        column: Column of the pictures in tables.
        label: Column of the labels in tables; need not exist.

    Raises:
        ValueError: If nothing is found, or it cannot be read.
    """
    name, path = str(path), Path(path).expanduser()
    if not path.exists():
        if path.suffix or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ValueError(
                f"expected an existing file or folder, got {name!r}, which does not exist; correct the path."
            )
        hub = open_hub(name, column, label)
        known = {split: table for split, table in hub.items() if split_of([split])} or hub
        return Splits(
            name, [(split_of([split]), (split, table), len(table)) for split, table in known.items()], open_tables
        )
    root = path if path.is_dir() else regular_file(path, "a folder, a picture, a Parquet or a tar file").parent
    tables = find_files(path, {".parquet"}) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if tables:
        items: list[tuple[tuple[str, str] | None, Any, int]] = []
        for table in tables:
            below = table.relative_to(root).with_suffix("")
            footer = read_footer(table, below.as_posix(), column, label)
            items.append((split_of(below.parts) if path.is_dir() else None, footer, footer.length))
        return Splits(name, items, open_parquet)
    tars = find_files(path, {".tar"}) if path.is_dir() else [path] if path.suffix == ".tar" else []
    if tars and not (path.is_dir() and find_files(path, _SUFFIXES)):
        endings = None if column == "image" else column, "cls" if label == "label" else label, set(_SUFFIXES)
        belows = [tar.relative_to(root).with_suffix("") for tar in tars]
        shards = [read_tar(tar, below.as_posix(), *endings) for tar, below in zip(tars, belows, strict=True)]
        if not sum(shard.length for shard in shards):
            raise ValueError(
                f"expected pictures{'' if column == 'image' else f' that end with {column!r}'} in {name!r}, got none "
                f"in {len(shards):,} tar files; name their ending with `column`, or give others."
            )
        said = [split_of(below.parts) if path.is_dir() else None for below in belows]
        return Splits(name, [(own, s, s.length) for own, s in zip(said, shards, strict=True)], open_tars)
    files = find_images(path)
    named = [(split_of(file.relative_to(root).parts[:-1]), file, 1) for file in files]
    return Splits(name, named, partial(open_files, root=root), is_picture=path.is_file())


def open_photographs(channels: int, held_out: bool = False) -> Pictures:
    """The photographs in the order of `PHOTOGRAPHS`: whole, or only the squares held out from training.

    Raises:
        ValueError: If scikit-image is not installed.
    """
    folder = Path(optional("skimage", "images").__file__).parent / "data"
    origin = {"data": "photographs", "splits": {"validation" if held_out else ALL: {"photographs": len(PHOTOGRAPHS)}}}
    whole = Pictures(open_files([folder / name for name in PHOTOGRAPHS], folder), channels, strict=True, origin=origin)
    if not held_out:
        return whole
    squares = [
        picture.pixels[:, top : top + HELD_OUT_SIZE, left : left + HELD_OUT_SIZE]
        for picture, (top, left) in zip(whole, PHOTOGRAPHS.values(), strict=True)
    ]
    return Pictures(open_memory(squares, list(PHOTOGRAPHS)), channels, strict=True, origin=origin)


def save_png(image: Float[Tensor, "C H W"], path: str | os.PathLike[str]) -> Path:
    """Writes an image with values in [0, 1] as an 8-bit PNG."""
    pixels = to_uint8(image).cpu().permute(1, 2, 0).numpy()
    with replacing(path) as scratch:
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(scratch, format="PNG")
    return Path(path)


def picture_paths(names: Sequence[str]) -> list[Path]:
    """Unique relative paths of decoded pictures: their names with the suffix ``.png``.

    If a path is used by an earlier name or by a folder, another ``.png`` is appended.

    Raises:
        ValueError: If a name leads outside the folder or is not a valid file name.

    Example:
        >>> [str(path) for path in picture_paths(["a.jpg", "b.jpg", "b.png"])]
        ['a.png', 'b.jpg.png', 'b.png.png']
        >>> [str(path) for path in picture_paths(["a.png", "a.png/b"])]
        ['a.png.png', 'a.png/b.png']
    """
    stems = Counter(Path(name).with_suffix("") for name in names if Path(name).name)
    folders = {folder for name in names for folder in Path(name).parents}
    paths: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"expected picture names below the folder, got {name!r}; do not trust this token file")
        if "\0" in name or max(len(os.fsencode(part)) for part in path.parts) > _LONGEST_NAME:
            raise ValueError(
                f"expected picture names of at most {_LONGEST_NAME} bytes without zeros, got {name[:80]!r}; rename it"
            )
        single = stems[path.with_suffix("")] == 1
        path = path.with_suffix(".png") if single else path.with_name(path.name + ".png")
        while path in paths or path in folders:
            path = path.with_name(path.name + ".png")
        paths[path] = None
    return list(paths)
