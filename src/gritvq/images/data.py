"""Images for training: photographs bundled with scikit-image, a folder, Parquet files or a Hub data set.

Training batches are a pure function of (seed, step): the order of an epoch follows from (seed, epoch), the crops from
(seed, step), so a run resumes bitwise from any step, with any number of worker processes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from gritvq.images.files import (
    ALL,
    HELD_OUT_SIZE,
    PHOTOGRAPHS,
    Pictures,
    check_channels,
    find_splits,
    open_photographs,
    open_pictures,
)
from gritvq.images.sources import Blocks
from gritvq.images.splits import folder_looks_held_out

__all__ = ["ImageData"]

_logger = logging.getLogger(__name__)

_EVALUATION_BATCH = 64
_DEFAULT_CROP = 64  # pixels per side, where the native sizes differ
_LARGEST_NATIVE = 256  # pixels per side; larger pictures are cropped unless a size is asked for
_PROBES = 256  # pictures looked at to learn whether all have one size
_PROBED_BLOCKS = 4  # where pictures are read in blocks, the probes lie in so many
_CENTER = (0.5, 0.5)


class ImageData:
    """Batches of pictures for training, validation and test: float32 tensors (B, C, H, W) in [0, 1].

    ``path`` is one of, the first that fits:

    - ``"photographs"``: random crops of color photographs inside the scikit-image wheel. Validation crops come from
      one square per photograph that no training crop overlaps.
    - a folder of pictures, searched recursively, through links too. The name of a folder says the split of what it
      holds, at any level and with other words beside it (``val``, ``images/val2017``, ``cats/test``,
      ``DIV2K_valid_HR``, ``dev``, ``holdout``); what no name says is for training. Training pictures are ordered by a
      hash of their names so that the end is a fair sample.
    - a Parquet file, or a folder of them, as Hugging Face ``datasets`` writes it; the name of a file or of a folder
      around it says the split in the same way (``test-00000-of-00001.parquet``).
    - the name of a data set on the Hugging Face Hub.

    `describe` says which splits were found, and by which names. Where training pictures have names that look held out,
    a warning says so. Without a validation split the last ``num_validation`` training pictures are held out; without
    a test split the validation pictures serve as test.

    The training loader is endless and starts at the run's step; under several processes each takes its own part of
    one global order. Pictures larger than the batch's size are cropped, at random in training and at the center in
    `val_dataloader` and `test_dataloader`, which watch a training run; smaller ones are enlarged until they fill it.
    What measures a set takes whole pictures from `pictures`. No picture is mirrored. An unreadable picture is logged
    by name once and the next readable one takes its place.

    Parquet files are read by row group. More than 128 MB of pictures in a split are shuffled in two steps, so that few
    row groups have to be in memory: the groups, then the pictures of as many groups as fit into 64 MB.

    Args:
        path: Where the pictures are.
        size: Height and width in pixels; None keeps the native size where all pictures share one of at most 256 pixels
            per side, and means 64 elsewhere. At most 160 for the photographs.
        batch_size: Pictures B per training step and process; evaluation takes 64 at a time.
        channels: Color channels C: 1 for gray or 3 for RGB.
        column: Column of the pictures in Parquet files and Hub data sets.
        num_validation: Pictures held out where there is no validation split; at most a tenth of the training split.
        seed: Seed of order and crops, >= 0.
        strict: Whether an unreadable picture stops the run.
        num_workers: Processes per loader that read ahead; 0 reads in the main process. The batches are the same.

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
    ) -> None:
        for name, value, least in (
            ("size", 1 if size is None else size, 1),
            ("batch_size", batch_size, 1),
            ("num_validation", num_validation, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"expected {name} >= {least}, got {value}; give a larger {name}.")
        check_channels(channels)
        self.path, self.size, self.batch_size, self.channels = str(path), size, batch_size, channels
        self.column, self.num_validation, self.seed, self.strict = column, num_validation, seed, strict
        self.num_workers = num_workers
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

        No training split is needed. To evaluate on a whole data set use `open_pictures`.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``; of the photographs the latter two are the squares that
                training never sees.

        Raises:
            ValueError: If there are no such pictures.
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
        """The splits, how many pictures they have and which names say so: plain values for tables and JSON.

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
        crops = "random for training, at the center to watch it; measured is on whole pictures"
        return {"data": self.path, "splits": splits, "crops": crops}

    def settings(self) -> dict[str, Any]:
        """The arguments that say which pictures these are and how they are split, as plain values.

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
        """Channels, height and width of a picture in a batch."""
        return (self.channels, *self._ready().shape)

    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[Tensor]:
        """Endless batches (B, C, H, W), each iteration from the step on that ``first_step`` says."""
        views = self._ready()
        stream = _Stream(views.num_train, views.train, self.batch_size, self.seed, views.blocks)
        loader = _Endless(stream, batch_size=None, num_workers=self.num_workers, generator=torch.Generator())
        loader.first_step = first_step
        return loader

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Center crops of the validation pictures in a fixed order, up to 64 in a batch; whole ones: `pictures`."""
        return _in_order(self._ready().validation, self.num_workers)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """The same of the test pictures, or of the validation pictures without a test split."""
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
        pictures = {name: splits.open([name], self.channels, self.strict) for name in splits.names}
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
                "rename what is called test or validation."
            )
        if found.doubtful:
            _logger.warning(
                "training on what looks held out: %d of %d training pictures in %r have names like %r; put those for "
                "validation or test into a folder of that name, beside one called train",
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
        allowed = [_training_corners(picture, corner, size) for picture, corner in zip(pictures, corners, strict=True)]
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
    """The pictures of every split, what says so, and training pictures whose names look held out."""

    pictures: dict[str, Pictures]
    said: dict[str, str]
    num_train: int  # with those held out of them
    doubtful: Sequence[str]


class _Stream(IterableDataset[Tensor]):
    """Endless training batches; batch s is a pure function of seed, s, rank and number of ranks.

    Args:
        count: Number n of pictures.
        crop: Picture number and two uniform numbers in [0, 1) to bytes (C, H, W).
        batch_size: Pictures per batch and rank.
        seed: Seed of order and crops.
        blocks: What has to be read together, as numbers of pictures.
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
        """Takes down, in the main process, where the next iteration starts."""
        several = dist.is_available() and dist.is_initialized()
        self.first_step, self.rank, self.world = (
            step,
            *((dist.get_rank(), dist.get_world_size()) if several else (0, 1)),
        )

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()  # the loader takes a batch of each worker in turn
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.first_step + number
        while True:
            yield self.batch(step)
            step += count

    def batch(self, step: int) -> Float[Tensor, "B C H W"]:
        """This rank's part of batch ``step``; all ranks' parts joined are the one-process batch of that size."""
        rank, world = self.rank, self.world
        places = np.random.default_rng([self.seed, 1, step]).random((world * self.batch_size, 2))
        own = range(rank * self.batch_size, (rank + 1) * self.batch_size)
        start = step * world * self.batch_size
        crops = [self.crop(self.picture(start + row), places[row].tolist()) for row in own]
        return torch.stack(crops).float().div_(255)

    def picture(self, position: int) -> int:
        """Which picture stands at a position of the endless order, in which every n places hold each picture once."""
        epoch, place = divmod(position, self.count)
        if epoch != self.epoch:
            self.epoch, self.order = (
                epoch,
                _shuffled(self.count, self.blocks, np.random.default_rng([self.seed, 0, epoch])),
            )
        return int(self.order[place])


class _Endless(DataLoader[Tensor]):
    """A loader of `_Stream` that asks for the number of the first batch whenever an iteration starts."""

    dataset: _Stream
    first_step: Callable[[], int] = staticmethod(int)

    def __iter__(self) -> Any:
        self.dataset.begin(self.first_step())
        return super().__iter__()


class _Fixed(Dataset[Tensor]):
    """Evaluation pictures: bytes by number, given out as float32 in [0, 1]."""

    def __init__(self, count: int, get: Callable[[int], Tensor]) -> None:
        self.count, self.get = count, get

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Float[Tensor, "C H W"]:
        return self.get(index).float().div_(255)


class _Views(NamedTuple):
    """What the loaders need."""

    shape: tuple[int, int]
    num_train: int
    train: Callable[[int, Sequence[float]], Tensor]
    blocks: Blocks | None
    validation: _Fixed
    test: _Fixed


def _in_order(pictures: _Fixed, num_workers: int) -> DataLoader[Tensor]:
    # A generator of its own: starting an iteration draws a number, which must not come from torch's global stream.
    generator = torch.Generator()
    return DataLoader(pictures, batch_size=_EVALUATION_BATCH, num_workers=num_workers, generator=generator)


def _shuffled(count: int, blocks: Blocks | None, generator: np.random.Generator) -> np.ndarray:
    """All of ``count`` numbers in random order; with ``blocks`` so that few of these are in use at a time."""
    if blocks is None:
        return generator.permutation(count)
    order = generator.permutation(len(blocks.ranges))
    windows = [order[start : start + blocks.held] for start in range(0, len(order), blocks.held)]
    joined = (np.concatenate([np.asarray(blocks.ranges[block]) for block in window]) for window in windows)
    return np.concatenate([generator.permutation(numbers) for numbers in joined])


def _crop(pictures: Pictures, shape: tuple[int, int], index: int, at: Sequence[float]) -> Tensor:
    return _window(pictures.readable(index), shape, at)


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


def _window(picture: Tensor, shape: tuple[int, int], at: Sequence[float]) -> Tensor:
    """Cuts a window of ``shape`` out of (C, H, W), or of its proportions, enlarged, where the picture is too small.

    Args:
        picture: Bytes.
        shape: Height and width of the result.
        at: Position in [0, 1), vertical and horizontal; .5 is the center.
    """
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
    """Height and width if a sample of the pictures agrees on them and they are not too large for whole batches."""
    shapes: set[tuple[int, int]] = set()
    for index in _probes(pictures):
        _, height, width = pictures.readable(index).shape
        shapes.add((height, width))
        if len(shapes) > 1 or max(height, width) > _LARGEST_NATIVE:
            return None
    return shapes.pop()


def _probes(pictures: Pictures) -> Sequence[int]:
    """Indices of a sample, evenly spaced; where pictures are read in blocks, within a few of these."""
    blocks = pictures.blocks()
    if blocks is None:
        return range(0, len(pictures), max(1, len(pictures) // _PROBES))
    chosen = blocks.ranges[:: max(1, len(blocks.ranges) // _PROBED_BLOCKS)][:_PROBED_BLOCKS]
    return [index for block in chosen for index in block[: _PROBES // _PROBED_BLOCKS]]


def _read_photographs(channels: int) -> list[Tensor]:
    """The photographs, in the order of `PHOTOGRAPHS`."""
    return [picture.pixels for picture in open_photographs(channels)]


def _training_corners(picture: Tensor, held_out: tuple[int, int], size: int) -> np.ndarray:
    """Top left corners (n, 2) of all crops that do not overlap the held-out square."""
    _, height, width = picture.shape
    free = np.ones((height - size + 1, width - size + 1), dtype=bool)
    rows, columns = (slice(max(0, corner - size + 1), corner + HELD_OUT_SIZE) for corner in held_out)
    free[rows, columns] = False
    return np.argwhere(free)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()
