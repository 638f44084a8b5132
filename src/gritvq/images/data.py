"""Image data for training: photographs bundled with scikit-image, a folder, Parquet files or a Hub data set.

Training batches are a pure function of (seed, step): the order of an epoch follows from (seed, epoch), the crops from
(seed, step). So a run resumes bitwise from any step, with any number of worker processes.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from gritvq.component import check_integer
from gritvq.distributed import process_number
from gritvq.images.crops import free_corners
from gritvq.images.decoding import MAX_PIXELS, check_channels
from gritvq.images.files import (
    ALL,
    HELD_OUT_SIZE,
    PHOTOGRAPHS,
    Pictures,
    find_splits,
    open_photographs,
    open_pictures,
)
from gritvq.images.sources import Blocks
from gritvq.images.splits import folder_looks_held_out

__all__ = ["ImageData"]

_logger = logging.getLogger(__name__)

_EVALUATION_BATCH = 64
_DEFAULT_CROP = 64  # pixels per side if native sizes differ
_LARGEST_NATIVE = 256  # pixels per side; larger pictures are cropped by default
_PROBES = 256  # pictures sampled to check whether all have one size
_PROBED_BLOCKS = 4  # blocks that the sample comes from
_CENTER = (0.5, 0.5)


class ImageData:
    """Batches of pictures for training, validation and test: float32 tensors (B, C, H, W) in [0, 1].

    ``path`` is one of the following; the first that matches is used:

    - ``"photographs"``: random crops of color photographs bundled with scikit-image. Validation crops come from one
      square per photograph that no training crop overlaps.
    - a folder of pictures, searched recursively, following links. Folder names at any level determine the split, also
      with other words in the name (``val``, ``images/val2017``, ``cats/test``, ``DIV2K_valid_HR``, ``dev``,
      ``holdout``); all others are training pictures. These are ordered by a hash of their names, so that the last
      ones are a random sample.
    - a Parquet file, or a folder of them, as written by Hugging Face ``datasets``. File and folder names determine
      the split in the same way (``test-00000-of-00001.parquet``).
    - the name of a data set on the Hugging Face Hub.

    `describe` lists the splits and the names that determined them. A warning is logged if names of training pictures
    look held out. Without a validation split the last ``num_validation`` training pictures are held out; without a
    test split the validation pictures are also the test pictures.

    The training loader is endless and starts at the run's step; with several processes each takes its part of one
    global order. Pictures larger than the batch's size are cropped: at random in training, at the center in
    `val_dataloader` and `test_dataloader`. Smaller ones are enlarged. No picture is mirrored. An unreadable picture is
    logged once and replaced by the next readable one. For evaluation on whole pictures use `pictures`.

    Parquet files are read by row group. If a split has more than 128 MB, all columns counted, first the groups are
    shuffled, then the pictures within as many groups as fit into 64 MB.

    Args:
        path: Where the pictures are.
        size: Height and width in pixels. None keeps the native size if all pictures share one of at most 256 pixels
            per side, and otherwise means 64. At most 160 for the photographs.
        batch_size: Pictures B per training step and process; evaluation batches have 64.
        channels: Color channels C: 1 for gray or 3 for RGB.
        column: Column of the pictures in Parquet files and Hub data sets.
        num_validation: Pictures held out if there is no validation split; at most a tenth of the training split.
        seed: Seed of order and crops, >= 0.
        strict: Whether an unreadable picture is an error.
        num_workers: Worker processes per loader; 0 reads in the main process. The batches do not depend on it.
        max_pixels: Pixels of the largest picture that is read, see `open_pictures`; larger ones count as unreadable.

    Raises:
        ValueError: If an argument is out of range; from `setup`, if no usable pictures are found.

    Example:
        >>> batch = next(iter(ImageData("photographs", size=32, batch_size=4).train_dataloader()))
        >>> batch.shape, batch.dtype
        (torch.Size([4, 3, 32, 32]), torch.float32)
    """

    def __init__(
        self,
        path: str = "photographs",
        *,
        size: int | None = None,
        batch_size: int = 64,
        channels: int = 3,
        column: str = "image",
        num_validation: int = 2000,
        seed: int = 0,
        strict: bool = False,
        num_workers: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        for name, value, least in (
            ("size", 1 if size is None else size, 1),
            ("batch_size", batch_size, 1),
            ("num_validation", num_validation, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
            ("max_pixels", max_pixels, 1),
        ):
            check_integer(name, value, least, f"give a larger {name}")
        check_channels(channels)
        self.path, self.size, self.batch_size, self.channels = str(path), size, batch_size, channels
        self.column, self.num_validation, self.seed, self.strict = column, num_validation, seed, strict
        self.num_workers, self.max_pixels = num_workers, max_pixels
        self._found: _Found | None = None
        self._views: _Views | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds the pictures and their splits; the second call does nothing.

        Args:
            stage: Ignored; all splits are found at once.

        Raises:
            ValueError: If nothing is found at ``path``, it cannot be read, or it holds no training pictures.
        """
        if self._views is None:
            self._views = self._photographs() if self.path == "photographs" else self._collection()

    def pictures(self, split: str = "validation") -> Pictures:
        """The whole pictures of a split, of any size, in a fixed order, for evaluation.

        For all pictures of a data set use `open_pictures`.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``; for the photographs the latter two are the squares that
                are held out from training.

        Raises:
            ValueError: If there is no such split.
        """
        if self.path == "photographs":
            return open_pictures("photographs", channels=self.channels, split=split)
        found = self._find()
        if split not in found.pictures:
            raise ValueError(
                f"expected {split} pictures in {self.path!r}, got {', '.join(found.pictures) or 'too few'}; choose one "
                "of these splits, or another path."
            )
        return found.pictures[split]

    def describe(self) -> dict[str, Any]:
        """The splits, their numbers of pictures and the names that determined them, as plain values.

        Example:
            >>> ImageData("photographs").describe()["data"]
            'photographs'
        """
        if self.path == "photographs":
            count = len(PHOTOGRAPHS)
            parts = {"train": "all but a square", "validation": "the squares", "test": "the squares"}
            splits = {key: {"pictures": count, "from": said} for key, said in parts.items()}
        else:
            found = self._find()
            splits = {key: {"pictures": len(part), "from": found.said[key]} for key, part in found.pictures.items()}
        crops = "random for training, at the center for validation during it; evaluation uses whole pictures"
        return {"data": self.path, "splits": splits, "crops": crops}

    def settings(self) -> dict[str, Any]:
        """The arguments that determine the pictures and their splits, as plain values.

        Example:
            >>> ImageData("photographs").settings()["num_validation"]
            2000
        """
        names = ("path", "size", "channels", "column", "num_validation", "seed")
        return {name: getattr(self, name) for name in names}

    def summary(self) -> str:
        """`describe` in one line.

        Example:
            >>> ImageData("photographs").summary()
            'photographs: train 7 (all but a square), validation 7 (the squares), test 7 (the squares)'
        """
        described = self.describe()
        parts = [f"{key} {part['pictures']:,} ({part['from']})" for key, part in described["splits"].items()]
        return f"{described['data']}: {', '.join(parts)}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the pictures in a batch."""
        return (self.channels, *self._ready().shape)

    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[Tensor]:
        """Endless batches (B, C, H, W); each iteration starts at the step that ``first_step`` returns."""
        views = self._ready()
        stream = _Stream(views.num_train, views.train, self.batch_size, self.seed, views.blocks)
        loader = _Endless(stream, batch_size=None, num_workers=self.num_workers, generator=torch.Generator())
        loader.first_step = first_step
        return loader

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Center crops of the validation pictures in a fixed order, up to 64 per batch; whole ones: `pictures`."""
        return _in_order(self._ready().validation, self.num_workers)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Center crops of the test pictures, or of the validation pictures if there is no test split."""
        return _in_order(self._ready().test, self.num_workers)

    def _ready(self) -> _Views:
        self.setup()
        assert self._views is not None
        return self._views

    def _find(self) -> _Found:
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> _Found:
        splits = find_splits(self.path, column=self.column)
        pictures = {name: splits.open([name], self.channels, self.strict, self.max_pixels) for name in splits.names}
        said = {name: ", ".join(words) for name, words in splits.said.items()}
        doubtful = splits.doubtful
        if not doubtful and splits.names == [ALL] and folder_looks_held_out(Path(self.path)):
            doubtful = [self.path] * len(pictures[ALL])
        key = ALL if ALL in pictures else "train"
        if key not in pictures:
            return _Found(pictures, said, 0, [])
        train, said["train"] = pictures.pop(key), said[key]
        num_train = len(train)
        if splits.in_files:
            train = train.part(sorted(train.numbers, key=lambda number: _hash(train.source.name(number))))
        if "validation" not in pictures and num_train > 1:
            held_out = max(1, min(self.num_validation, num_train // 10))
            pictures["validation"] = train.part(train.numbers[-held_out:])
            said["validation"] = f"the last {held_out:,} of train"
            train = train.part(train.numbers[:-held_out])
        if "test" not in pictures and "validation" in pictures:
            pictures["test"], said["test"] = pictures["validation"], "as validation"
        ordered = [("train", train), *((name, pictures[name]) for name in ("validation", "test") if name in pictures)]
        return _Found(dict(ordered), said, num_train, doubtful)

    def _collection(self) -> _Views:
        found = self._find()
        if found.num_train < 2:
            raise ValueError(
                f"expected at least 2 training pictures in {self.path!r}, got {found.num_train}; add pictures, or "
                "rename folders or files that are called test or validation."
            )
        if found.doubtful:
            _logger.warning(
                "training pictures look held out: %d of %d training pictures in %r have names like %r; move pictures "
                "for validation or test to a folder of that name, beside one called train",
                len(found.doubtful),
                found.num_train,
                self.path,
                found.doubtful[0],
            )
        train, validation, test = found.pictures.values()
        shape = (self.size, self.size) if self.size else _common_shape(train) or (_DEFAULT_CROP, _DEFAULT_CROP)
        centered = [_Fixed(len(part), partial(_crop, part, shape, at=_CENTER)) for part in (validation, test)]
        return _Views(shape, len(train), partial(_crop, train, shape), train.blocks(), *centered)

    def _photographs(self) -> _Views:
        size = self.size or _DEFAULT_CROP
        if size > HELD_OUT_SIZE:
            raise ValueError(
                f"expected a size of at most {HELD_OUT_SIZE} for 'photographs', got {size}; give a smaller one."
            )
        pictures, corners = _read_photographs(self.channels), list(PHOTOGRAPHS.values())
        allowed = [
            free_corners(picture.shape[1], picture.shape[2], size, (*corner, HELD_OUT_SIZE))
            for picture, corner in zip(pictures, corners, strict=True)
        ]
        offsets = range(0, HELD_OUT_SIZE - size + 1, max(1, size // 4))
        fixed = [
            (index, top + down, left + right)
            for down in offsets
            for right in offsets
            for index, (top, left) in enumerate(corners)
        ]
        validation = _Fixed(len(fixed), partial(_fixed_square, pictures, fixed, size))
        crop = partial(_free_square, pictures, allowed, size)
        return _Views((size, size), len(pictures), crop, None, validation, validation)


class _Found(NamedTuple):
    pictures: dict[str, Pictures]  # by split
    said: dict[str, str]  # the names that determined each split
    num_train: int  # before holding out validation pictures
    doubtful: Sequence[str]  # names of training pictures that look held out


class _Stream(IterableDataset[Tensor]):
    """Endless training batches; batch s is a pure function of seed, s, rank and number of ranks.

    Args:
        count: Number n of pictures.
        crop: Maps a picture's number and two uniform numbers in [0, 1) to uint8 (C, H, W).
        batch_size: Pictures per batch and rank.
        seed: Seed of order and crops.
        blocks: Ranges of pictures that are read together.
    """

    def __init__(
        self,
        count: int,
        crop: Callable[[int, Sequence[float]], Tensor],
        batch_size: int,
        seed: int,
        blocks: Blocks | None,
    ) -> None:
        self.count, self.crop, self.batch_size, self.seed, self.blocks = count, crop, batch_size, seed, blocks
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)
        self.first_step, self.rank, self.world = 0, 0, 1

    def begin(self, step: int) -> None:
        """Sets, in the main process, the step at which the next iteration starts."""
        self.first_step = step
        self.rank, self.world = process_number()

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()  # the loader takes a batch of each worker in turn
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from map(self.batch, itertools.count(self.first_step + number, stride))

    def batch(self, step: int) -> Float[Tensor, "B C H W"]:
        """This rank's part of batch ``step``; all parts together equal the batch of one process."""
        rank, world = self.rank, self.world
        places = np.random.default_rng([self.seed, 1, step]).random((world * self.batch_size, 2))
        own = range(rank * self.batch_size, (rank + 1) * self.batch_size)
        start = step * world * self.batch_size
        crops = [self.crop(self.picture(start + row), places[row].tolist()) for row in own]
        return torch.stack(crops).float().div_(255)

    def picture(self, position: int) -> int:
        """Number of the picture at a position of the endless order, which permutes all n pictures in every epoch."""
        epoch, place = divmod(position, self.count)
        if epoch != self.epoch:
            self.order = _shuffled(self.count, self.blocks, np.random.default_rng([self.seed, 0, epoch]))
            self.epoch = epoch
        return int(self.order[place])


class _Endless(DataLoader[Tensor]):
    """A loader of `_Stream` that calls ``first_step`` at the start of every iteration."""

    dataset: _Stream
    first_step: Callable[[], int] = staticmethod(int)

    def __iter__(self) -> Any:
        self.dataset.begin(self.first_step())
        return super().__iter__()


class _Fixed(Dataset[Tensor]):
    """Evaluation pictures as float32 in [0, 1]."""

    def __init__(self, count: int, get: Callable[[int], Tensor]) -> None:
        self.count, self.get = count, get

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Float[Tensor, "C H W"]:
        return self.get(index).float().div_(255)


class _Views(NamedTuple):
    shape: tuple[int, int]
    num_train: int
    train: Callable[[int, Sequence[float]], Tensor]
    blocks: Blocks | None
    validation: _Fixed
    test: _Fixed


def _in_order(pictures: _Fixed, num_workers: int) -> DataLoader[Tensor]:
    # Starting an iteration draws a number, which must not change torch's global random state.
    generator = torch.Generator()
    return DataLoader(pictures, batch_size=_EVALUATION_BATCH, num_workers=num_workers, generator=generator)


def _shuffled(count: int, blocks: Blocks | None, generator: np.random.Generator) -> np.ndarray:
    """Random permutation of ``count`` numbers; with ``blocks`` so that few blocks are in use at a time."""
    if blocks is None:
        return generator.permutation(count)
    order = generator.permutation(len(blocks.ranges))
    windows = [order[start : start + blocks.held] for start in range(0, len(order), blocks.held)]
    joined = (np.concatenate([np.asarray(blocks.ranges[block]) for block in window]) for window in windows)
    return np.concatenate([generator.permutation(numbers) for numbers in joined])


def _square(picture: Tensor, top: int, left: int, size: int) -> Tensor:
    return picture[:, top : top + size, left : left + size]


def _fixed_square(pictures: Sequence[Tensor], places: Sequence[tuple[int, int, int]], size: int, number: int) -> Tensor:
    index, top, left = places[number]
    return _square(pictures[index], top, left, size)


def _free_square(
    pictures: Sequence[Tensor], corners: Sequence[np.ndarray], size: int, index: int, at: Sequence[float]
) -> Tensor:
    top, left = corners[index][int(at[0] * len(corners[index]))]
    return _square(pictures[index], top, left, size)


def _crop(pictures: Pictures, shape: tuple[int, int], index: int, at: Sequence[float]) -> Tensor:
    """A crop (C, *shape) of a picture; if that is too small, the largest crop of these proportions, enlarged.

    ``at`` is the position in [0, 1), vertical and horizontal; .5 is the center.
    """
    picture = pictures.readable(index)
    sides = picture.shape[1:]
    scale = max(1.0, *(wanted / side for wanted, side in zip(shape, sides, strict=True)))
    height, width = (min(side, max(1, round(wanted / scale))) for wanted, side in zip(shape, sides, strict=True))
    top, left = int(at[0] * (sides[0] - height + 1)), int(at[1] * (sides[1] - width + 1))
    window = picture[:, top : top + height, left : left + width]
    if (height, width) == shape:
        return window
    enlarged = F.interpolate(window[None].float(), size=shape, mode="bicubic", align_corners=False)
    return enlarged[0].round().clamp(0, 255).to(torch.uint8)


def _common_shape(pictures: Pictures) -> tuple[int, int] | None:
    """Height and width if all pictures of a sample share them and they are not too large; else None."""
    shapes: set[tuple[int, int]] = set()
    for index in _probes(pictures):
        _, height, width = pictures.readable(index).shape
        shapes.add((height, width))
        if len(shapes) > 1 or max(height, width) > _LARGEST_NATIVE:
            return None
    return shapes.pop()


def _probes(pictures: Pictures) -> Sequence[int]:
    """Indices of an evenly spaced sample; if pictures are read in blocks, of a few blocks."""
    blocks = pictures.blocks()
    if blocks is None:
        return range(0, len(pictures), max(1, len(pictures) // _PROBES))
    chosen = blocks.ranges[:: max(1, len(blocks.ranges) // _PROBED_BLOCKS)][:_PROBED_BLOCKS]
    return [index for block in chosen for index in block[: _PROBES // _PROBED_BLOCKS]]


def _read_photographs(channels: int) -> list[Tensor]:
    return [picture.pixels for picture in open_photographs(channels)]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()
