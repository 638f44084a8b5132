"""Pictures for training: photographs that ship with scikit-image, a folder, Parquet files or a Hub data set.

Training batches are a pure function of (seed, step): the order of an epoch follows from (seed, epoch), the crops from
(seed, step), so a run resumes bitwise from any step.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gritvq.data.pictures import (
    Pictures,
    Source,
    check_channels,
    find_files,
    find_images,
    open_files,
    open_hub,
    open_parquet,
    read_images,
    to_tensor,
)

__all__ = ["ImageData", "find_images", "read_images", "to_tensor"]

_SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
_EVALUATION_BATCH = 64
_DEFAULT_CROP = 64  # pixels per side, where the native sizes differ
_LARGEST_NATIVE = 256  # pixels per side; larger pictures are cropped unless a size is asked for
_PROBES = 256  # pictures looked at to learn whether all have one size
_CENTRE = (0.5, 0.5)

# Colour photographs inside the scikit-image wheel, each with the top left corner of a square that training never sees.
# motorcycle_right.png shows the scene of motorcycle_left.png, so it would show training what is held out.
_HELD_OUT_SIZE = 160
_PHOTOGRAPHS = {
    "astronaut.png": (16, 144),
    "chelsea.png": (40, 90),
    "coffee.png": (170, 290),
    "rocket.jpg": (130, 250),
    "motorcycle_left.png": (220, 300),
    "hubble_deep_field.jpg": (330, 360),
    "ihc.png": (240, 220),
}


class ImageData(LightningDataModule):
    """Batches of pictures for training, validation and test: float32 tensors (B, C, H, W) in [0, 1].

    ``path`` is one of, the first that fits:

    - ``"photographs"``: random crops of colour photographs inside the scikit-image wheel. Validation crops come from
      one square per photograph that no training crop overlaps.
    - a folder of pictures, searched recursively. Pictures in its subfolders ``validation`` and ``test`` are those
      splits, all others are for training, ordered by a hash of their names so that the end is a fair sample.
    - a Parquet file, or a folder of them, as Hugging Face ``datasets`` writes it; the name of a file or of a folder
      around it says the split (``test-00000-of-00001.parquet``), and without one it is for training.
    - the name of a data set on the Hugging Face Hub.

    Without a validation split the last ``num_validation`` training pictures are held out; without a test split the
    validation pictures serve as test. The training loader is endless and starts at the trainer's step; under several
    processes each takes its own part of one global order. Pictures larger than the batch's size are cropped, at random
    in training and at the centre elsewhere; smaller ones are enlarged until they fill it. No picture is mirrored. An
    unreadable picture is logged by name once and the next readable one takes its place.

    Args:
        path: Where the pictures are.
        size: Height and width in pixels; None keeps the native size where all pictures share one of at most 256 pixels
            per side, and means 64 elsewhere. At most 160 for the photographs.
        batch_size: Pictures B per training step and process; evaluation takes 64 at a time.
        channels: Colour channels C: 1 for grey or 3 for RGB.
        column: Column of the pictures in Parquet files and Hub data sets.
        num_validation: Pictures held out where there is no validation split; at most a tenth of the training split.
        seed: Seed of order and crops, >= 0.
        strict: Whether an unreadable picture stops the run.

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
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("size", 1 if size is None else size, 1),
            ("batch_size", batch_size, 1),
            ("num_validation", num_validation, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"expected {name} >= {least}, got {value}; give a larger {name}.")
        check_channels(channels)
        self.path, self.size, self.batch_size, self.channels = str(path), size, batch_size, channels
        self.column, self.num_validation, self.seed, self.strict = column, num_validation, seed, strict
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture in a batch."""
        return (self.channels, *self._ready().shape)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Endless batches (B, C, H, W) from the trainer's current step on, or from step 0 without a trainer."""
        views = self._ready()
        stream = _Stream(views.num_train, views.train, self.batch_size, self.seed, self._first_step)
        return DataLoader(stream, batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The validation pictures in a fixed order, up to 64 in a batch."""
        return _in_order(self._ready().validation)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """The test pictures, or the validation pictures without a test split; in a fixed order, up to 64 in a batch."""
        return _in_order(self._ready().test)

    def _ready(self) -> _Views:
        self.setup()
        assert self._views is not None
        return self._views

    def _first_step(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def _collection(self) -> _Views:
        splits = {
            split: Pictures(source, range(source.length), self.channels, self.strict)
            for split, source in self._sources().items()
        }
        train = splits.get("train")
        if train is None or len(train) < 2:
            raise ValueError(
                f"expected at least 2 training pictures in {self.path!r}, got {len(train or ())}; add pictures, or "
                "rename what is called test or validation."
            )
        validation = splits.get("validation")
        if validation is None:
            train, validation = train.hold_out(max(1, min(self.num_validation, len(train) // 10)))
        test = splits.get("test", validation)
        shape = (self.size, self.size) if self.size else _common_shape(train) or (_DEFAULT_CROP, _DEFAULT_CROP)

        def crop(index: int, at: Sequence[float]) -> Tensor:
            return _window(train[index], shape, at)

        def centred(pictures: Pictures) -> _Fixed:
            return _Fixed(len(pictures), lambda index: _window(pictures[index], shape, _CENTRE))

        return _Views(shape, len(train), crop, centred(validation), centred(test))

    def _photographs(self) -> _Views:
        size = self.size or _DEFAULT_CROP
        if size > _HELD_OUT_SIZE:
            raise ValueError(
                f"expected a size of at most {_HELD_OUT_SIZE} for 'photographs', got {size}; give a smaller one."
            )
        pictures, corners = _read_photographs(self.channels), list(_PHOTOGRAPHS.values())
        allowed = [_training_corners(picture, corner, size) for picture, corner in zip(pictures, corners, strict=True)]
        offsets = range(0, _HELD_OUT_SIZE - size + 1, max(1, size // 4))
        fixed = [
            (index, top + down, left + right)
            for down in offsets
            for right in offsets
            for index, (top, left) in enumerate(corners)
        ]

        def cut(index: int, top: int, left: int) -> Tensor:
            return pictures[index][:, top : top + size, left : left + size]

        def crop(index: int, at: Sequence[float]) -> Tensor:
            top, left = allowed[index][int(at[0] * len(allowed[index]))]
            return cut(index, top, left)

        validation = _Fixed(len(fixed), lambda number: cut(*fixed[number]))
        return _Views((size, size), len(pictures), crop, validation, validation)

    def _sources(self) -> dict[str, Source]:
        """What the path holds, by split; only splits that are there."""
        path = Path(self.path).expanduser()
        if not path.exists():
            if path.suffix or path.is_absolute() or self.path.startswith((".", "~")) or self.path.count("/") > 1:
                raise ValueError(
                    f"expected an existing file or folder, got {self.path!r}, which does not exist; correct the path."
                )
            splits: dict[str, Source] = {}
            for name, source in open_hub(self.path, self.column).items():
                splits.setdefault(_SPLITS.get(name, name), source)
            return splits
        if path.is_file() and path.suffix != ".parquet":
            raise ValueError(f"expected a folder or a Parquet file, got {self.path!r}; give the pictures' folder.")
        tables = [path] if path.is_file() else find_files(path, {".parquet"})
        grouped: dict[str, list[Path]] = {}
        if tables:
            for table in tables:
                parts = () if table == path else table.relative_to(path).parts
                grouped.setdefault(_split_of(parts, prefix=True), []).append(table)
            return {split: open_parquet(files, self.column) for split, files in grouped.items()}
        for picture in find_images(path):
            grouped.setdefault(_split_of(picture.relative_to(path).parts[:-1][:1]), []).append(picture)
        if "train" in grouped:
            grouped["train"].sort(key=lambda picture: _hash(picture.relative_to(path)))
        return {split: open_files(files) for split, files in grouped.items()}


class _Stream(IterableDataset[Tensor]):
    """Endless training batches; batch s is a pure function of seed, s, rank and number of ranks.

    Args:
        count: Number n of pictures.
        crop: Picture number and two uniform numbers in [0, 1) to bytes (C, H, W).
        batch_size: Pictures per batch and rank.
        seed: Seed of order and crops.
        first_step: Asked for the number of the first batch whenever an iteration starts.
    """

    def __init__(
        self,
        count: int,
        crop: Callable[[int, Sequence[float]], Tensor],
        batch_size: int,
        seed: int,
        first_step: Callable[[], int],
    ) -> None:
        self.count, self.crop, self.batch_size, self.seed, self.first_step = count, crop, batch_size, seed, first_step
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[Tensor]:
        step = self.first_step()
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Float[Tensor, "B C H W"]:
        """This rank's part of batch ``step``; all ranks' parts joined are the one-process batch of that size."""
        several = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        places = np.random.default_rng([self.seed, 1, step]).random((world * self.batch_size, 2))
        own = range(rank * self.batch_size, (rank + 1) * self.batch_size)
        start = step * world * self.batch_size
        crops = [self.crop(self.picture(start + row), places[row].tolist()) for row in own]
        return torch.stack(crops).float().div_(255)

    def picture(self, position: int) -> int:
        """Which picture stands at a position of the endless order, in which every n places hold each picture once."""
        epoch, place = divmod(position, self.count)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(self.count)
        return int(self.order[place])


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
    validation: _Fixed
    test: _Fixed


def _in_order(pictures: _Fixed) -> DataLoader[Tensor]:
    # A generator of its own: starting an iteration draws a number, which must not come from torch's global stream.
    return DataLoader(pictures, batch_size=_EVALUATION_BATCH, generator=torch.Generator())


def _window(picture: Tensor, shape: tuple[int, int], at: Sequence[float]) -> Tensor:
    """Cuts a window of ``shape`` out of (C, H, W), or of its proportions, enlarged, where the picture is too small.

    Args:
        picture: Bytes.
        shape: Height and width of the result.
        at: Position in [0, 1), vertical and horizontal; .5 is the centre.
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
    stride = max(1, len(pictures) // _PROBES)
    shapes: set[tuple[int, int]] = set()
    for index in range(0, len(pictures), stride):
        _, height, width = pictures[index].shape
        shapes.add((height, width))
        if len(shapes) > 1 or max(height, width) > _LARGEST_NATIVE:
            return None
    return shapes.pop()


def _read_photographs(channels: int) -> list[Tensor]:
    """The photographs, in the order of `_PHOTOGRAPHS`."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError("expected scikit-image for 'photographs', got none; pip install 'gritvq[images]'.")
    folder = Path(spec.origin).parent / "data"
    source = open_files([folder / name for name in _PHOTOGRAPHS])
    return list(Pictures(source, range(source.length), channels, strict=True))


def _training_corners(picture: Tensor, held_out: tuple[int, int], size: int) -> np.ndarray:
    """Top left corners (n, 2) of all crops that do not overlap the held-out square."""
    _, height, width = picture.shape
    free = np.ones((height - size + 1, width - size + 1), dtype=bool)
    rows, columns = (slice(max(0, corner - size + 1), corner + _HELD_OUT_SIZE) for corner in held_out)
    free[rows, columns] = False
    return np.argwhere(free)


def _split_of(parts: Sequence[str], prefix: bool = False) -> str:
    """Which split the parts of a relative path name, the last first; "train" where none does."""
    pattern = re.compile(rf"({'|'.join(_SPLITS)}){'(?![a-z])' if prefix else '$'}")
    for part in reversed(parts):
        if match := pattern.match(part.lower()):
            return _SPLITS[match[1]]
    return "train"


def _hash(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode(errors="surrogatepass")).digest()
