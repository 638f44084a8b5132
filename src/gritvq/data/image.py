"""Images from photographs on board, folders, Parquet files or the Hub, as batches for training.

The training stream is a pure function of the seed and the step: the batch of step s is the same in a run that started at
step 0 and in one that was resumed there.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

__all__ = ["ImageData", "find_images", "read_images", "to_tensor"]

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
_CROP = 64  # side of a crop where the pictures themselves suggest none

# Colour photographs inside the scikit-image wheel. Of each, the right quarter is held out and never trained on.
_PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_HELD_OUT = 0.25


def to_tensor(image: Any, channels: int = 3) -> UInt8[Tensor, "C H W"]:
    """Any PIL picture as 8-bit pixels.

    Transparency is laid over white, 16-bit pictures are scaled (not clipped), the EXIF orientation is applied.

    Args:
        image: A ``PIL.Image.Image``.
        channels: 3 for RGB, 1 for grey.

    Example:
        >>> from PIL import Image
        >>> to_tensor(Image.new("L", (4, 2), 7)).shape
        torch.Size([3, 2, 4])
    """
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return torch.from_numpy(pixels if channels == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


def find_images(path: str | Path) -> list[Path]:
    """Picture files at a path: the file itself, or all below a folder, sorted.

    Raises:
        ValueError: If nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"expected a picture or a folder of pictures, got {path}, which does not exist")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
    if not found:
        raise ValueError(f"expected pictures ({', '.join(sorted(_ENDINGS))}) in {path}, found none")
    return found


def read_images(path: str | Path, channels: int = 3, strict: bool = False) -> Iterator[tuple[str, UInt8[Tensor, "C H W"]]]:
    """Names and pixels of all pictures at a path, whatever their sizes.

    A broken file is reported by name and left out, or ends the reading with ``strict``.

    Args:
        path: A picture or a folder; names are relative to it.
        channels: 3 or 1.
        strict: Whether a broken file is an error.

    Raises:
        ValueError: If nothing is there, or a file is broken and ``strict`` is set.
    """
    files = find_images(path)
    for file in files:
        image = _decode(file.read_bytes(), str(file), channels, strict)
        if image is not None:
            yield (file.name if file == Path(path) else file.relative_to(path).as_posix()), image


def _decode(content: bytes | None, name: str, channels: int, strict: bool) -> Tensor | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content or b"")) as image:
            return to_tensor(image, channels)
    except Exception as error:  # broken pictures fail in every way there is
        problem = f"expected a readable picture, got {name} ({type(error).__name__}: {error})"
        if strict:
            raise ValueError(f"{problem}; repair or remove it, or run without strict") from error
        warnings.warn(f"{problem}; it is left out", stacklevel=2)
        return None


class _Pictures:
    """Compressed pictures by number, decoded on demand; a broken one is reported once and gives None."""

    def __init__(self, read: Callable[[int], tuple[str, bytes | None]], length: int, channels: int, strict: bool) -> None:
        self.read, self.length, self.channels, self.strict = read, length, channels, strict
        self.broken: set[int] = set()

    def __len__(self) -> int:
        return self.length

    def get(self, number: int) -> Tensor | None:
        """Pixels (C, H, W), uint8, or None."""
        if number in self.broken:
            return None
        name, content = self.read(number)
        image = _decode(content, name, self.channels, self.strict)
        if image is None:
            self.broken.add(number)
        return image

    def part(self, start: int, stop: int) -> _Pictures:
        """A contiguous range as a set of its own."""
        return _Pictures(lambda number: self.read(start + number), stop - start, self.channels, self.strict)


def photograph_regions() -> list[tuple[str, Tensor, Tensor]]:
    """Name, training region and held-out region of each photograph on board; the regions share no pixel.

    Returns:
        ``(name, (3, H, W1), (3, H, W2))``, uint8; the held-out region is the right quarter.

    Raises:
        ValueError: If scikit-image is missing.
    """
    try:
        import skimage
    except ImportError as error:
        raise ValueError("expected scikit-image for the photographs on board; install 'gritvq[images]'") from error
    folder = Path(skimage.__file__).parent / "data"
    regions = []
    for name in _PHOTOGRAPHS:
        image = _decode((folder / name).read_bytes(), name, 3, strict=True)
        assert image is not None
        border = round((1 - _HELD_OUT) * image.shape[2])
        regions.append((name, image[..., :border], image[..., border:]))
    return regions


class ImageData(LightningDataModule):
    """Batches of images (B, C, size, size), float32 in [0, 1].

    Args:
        path: ``"photographs"`` (on board, for a first try), a folder of pictures, a Parquet file or a folder of them as
            Hugging Face ``datasets`` writes them, or a data-set name on its Hub. Folders and Parquet files named after
            a split (train, validation, test) are used as that split.
        size: Side of the crops in pixels. None keeps equal pictures whole and crops 64 pixels from others.
        batch_size: Images per training batch and process.
        channels: 3 for RGB, 1 for grey.
        column: Column of the pictures in Parquet files and Hub data sets.
        num_validation: Images held out from the end of the training split where there is no validation split, at most a
            tenth of it.
        seed: Seed of order and crops.
        strict: Whether a broken picture ends the run; otherwise it is reported by name and replaced.

    Raises:
        ValueError: If an argument is out of range, or there are no pictures.

    Example:
        >>> data = ImageData("photographs", size=32, batch_size=4)
        >>> data.setup("fit")
        >>> data.train_batch(0).shape, torch.equal(data.train_batch(7), data.train_batch(7))
        (torch.Size([4, 3, 32, 32]), True)
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
        for name, value, least in (("batch_size", batch_size, 1), ("size", size, 1), ("num_validation", num_validation, 1)):
            if value is not None and value < least:
                raise ValueError(f"expected {name} >= {least}, got {value}")
        if channels not in (1, 3):
            raise ValueError(f"expected 1 or 3 channels, got {channels}")
        self.path, self.size, self.batch_size, self.channels = str(path), size, batch_size, channels
        self.column, self.num_validation, self.seed, self.strict = column, num_validation, seed, strict
        self.splits: dict[str, _Pictures] = {}
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    # --- what Lightning calls -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures and split them; nothing is decoded but a few to learn their size."""
        if self.splits:
            return
        path = Path(self.path)
        if self.path == "photographs":
            self.size = self.size or _CROP
            self.splits = self._photographs(self.size)
            return
        if path.is_file() and path.suffix == ".parquet":
            splits = self._parquet({"train": [path]})
        elif path.is_dir() and any(path.rglob("*.parquet")):
            splits = self._parquet(_by_split(sorted(path.rglob("*.parquet")), path))
        elif path.exists():
            splits = {
                split: _Pictures(_file_reader(files), len(files), self.channels, self.strict)
                for split, files in _by_split(find_images(path), path).items()
            }
        else:
            splits = self._hub()
        self.splits = _complete(splits, self.num_validation)
        if self.size is None:
            train = self.splits["train"]
            shapes = {tuple(image.shape) for image in map(train.get, range(min(100, len(train)))) if image is not None}
            height, width = next(iter(shapes))[1:] if len(shapes) == 1 else (0, 1)
            self.size = height if height == width else _CROP

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Endless batches from the trainer's current step on."""
        trainer = self.trainer
        start = 0 if trainer is None else trainer.global_step * trainer.accumulate_grad_batches
        return DataLoader(_Stream(self, start), batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Held-out images in their order, in batches of 100."""
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Test images in their order, in batches of 100; the validation images where there is no test split."""
        return self._held_out("test")

    def train_batch(self, step: int) -> Float[Tensor, "B C S S"]:
        """The batch of a step: a pure function of seed and step (and of rank and number of ranks)."""
        self.setup()
        train, size = self.splits["train"], self._size()
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
        rows = []
        for row in range(self.batch_size):
            place = (step * world + rank) * self.batch_size + row
            epoch, number = divmod(place, len(train))
            generator = torch.Generator().manual_seed(_mix(self.seed, place))
            for shift in range(len(train)):  # a broken picture is replaced by the next readable one
                image = train.get(int(self._permutation(epoch)[(number + shift) % len(train)]))
                if image is not None:
                    break
            else:
                raise ValueError(f"expected at least one readable picture in {self.path}, got none")
            rows.append(_crop(image, size, generator))
        return torch.stack(rows).float() / 255

    # --- where pictures come from -------------------------------------------------------------------------------------

    def _photographs(self, size: int) -> dict[str, _Pictures]:
        train: list[Tensor] = []
        held_out: list[Tensor] = []
        for _, region, other in photograph_regions():
            if min(region.shape[1], other.shape[2]) < size:
                continue
            train += [region] * max(1, region[0].numel() // size**2)
            held_out += [
                other[:, top : top + size, left : left + size]
                for top in range(0, other.shape[1] - size + 1, size)
                for left in range(0, other.shape[2] - size + 1, size)
            ]
        if not held_out:
            raise ValueError(f"expected size <= 100 for the photographs on board, got {size}; take a folder of larger pictures")
        if self.channels == 1:
            train, held_out = ([image.float().mean(0, keepdim=True).to(torch.uint8) for image in part] for part in (train, held_out))
        held = _InMemory(held_out)
        return {"train": _InMemory(train), "validation": held, "test": held}

    def _parquet(self, files: dict[str, list[Path]]) -> dict[str, _Pictures]:
        datasets = _datasets()
        splits = {}
        for split, paths in files.items():
            try:
                table = datasets.Dataset.from_parquet([str(p) for p in paths], keep_in_memory=False)
            except Exception as error:
                raise ValueError(f"expected readable Parquet files, got {paths[0]} ... ({type(error).__name__})") from error
            splits[split] = self._table(table, str(paths[0].parent))
        return splits

    def _hub(self) -> dict[str, _Pictures]:
        datasets = _datasets()
        try:
            loaded = datasets.load_dataset(self.path)
        except Exception as error:  # the client has many errors; they all mean the same here
            raise ValueError(
                f"expected 'photographs', an existing path or a reachable Hub data set, got {self.path!r} ({type(error).__name__})"
            ) from error
        return {_SPLITS[name]: self._table(table, self.path) for name, table in loaded.items() if name in _SPLITS}

    def _table(self, table: Any, where: str) -> _Pictures:
        datasets = _datasets()
        if self.column not in table.column_names:
            raise ValueError(
                f"expected a column {self.column!r} in {where}, got {', '.join(table.column_names)}; name the pictures' column "
                "with `column`"
            )
        rows = table.select_columns([self.column]).cast_column(self.column, datasets.Image(decode=False))

        def read(number: int) -> tuple[str, bytes | None]:
            cell = rows[number][self.column]
            content = cell["bytes"]
            if content is None and cell["path"]:
                content = Path(cell["path"]).read_bytes()
            return f"{cell['path'] or 'row'} (row {number} of {where})", content

        return _Pictures(read, len(rows), self.channels, self.strict)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _held_out(self, split: str) -> DataLoader[Tensor]:
        self.setup()
        return DataLoader(_HeldOut(self.splits[split], self._size()), batch_size=None)

    def _size(self) -> int:
        assert self.size is not None
        return self.size

    def _permutation(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self.seed, -1 - epoch))
            self._order = epoch, torch.randperm(len(self.splits["train"]), generator=generator)
        return self._order[1]


class _InMemory(_Pictures):
    """Decoded pictures."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        super().__init__(lambda number: ("", None), len(images), 3, False)
        self.images = images

    def get(self, number: int) -> Tensor:
        return self.images[number]


class _Stream(IterableDataset[Tensor]):
    def __init__(self, data: ImageData, start: int) -> None:
        self.data, self.start = data, start

    def __iter__(self) -> Iterator[Tensor]:
        step = self.start
        while True:
            yield self.data.train_batch(step)
            step += 1


class _HeldOut(Dataset[Tensor]):
    """Batches of centre crops; broken pictures are left out."""

    def __init__(self, pictures: _Pictures, size: int, batch_size: int = 100) -> None:
        self.pictures, self.size, self.batch_size = pictures, size, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.pictures) / self.batch_size)

    def __getitem__(self, batch: int) -> Tensor:
        if batch >= len(self):
            raise IndexError(batch)
        numbers = range(batch * self.batch_size, min(len(self.pictures), (batch + 1) * self.batch_size))
        images = [image for image in map(self.pictures.get, numbers) if image is not None]
        crops = [_crop(image, self.size, None) for image in images]
        channels = self.pictures.channels
        return (torch.stack(crops) if crops else torch.zeros(0, channels, self.size, self.size)).float() / 255


def _crop(image: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """A square of side ``size``: random with a generator, else from the centre; smaller pictures are enlarged first."""
    height, width = image.shape[1:]
    if min(height, width) < size:
        scale = size / min(height, width)
        target = (max(size, round(height * scale)), max(size, round(width * scale)))
        enlarged = F.interpolate(image[None].float(), target, mode="bicubic", align_corners=False)[0]
        image = enlarged.round().clamp(0, 255).to(torch.uint8)
        height, width = target
    if generator is None:
        top, left = (height - size) // 2, (width - size) // 2
    else:
        top = int(torch.randint(height - size + 1, (), generator=generator))
        left = int(torch.randint(width - size + 1, (), generator=generator))
    return image[:, top : top + size, left : left + size]


def _mix(seed: int, number: int) -> int:
    """One seed out of two numbers, well spread."""
    return hash((seed, number, 0x9E3779B97F4A7C15)) % (1 << 63)


def _file_reader(files: Sequence[Path]) -> Callable[[int], tuple[str, bytes | None]]:
    return lambda number: (str(files[number]), files[number].read_bytes())


def _by_split(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Group files by the split that a folder, or the start of the file's name, names; files that name none train."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        names = [*file.relative_to(root).parts[:-1], file.stem.split("-")[0].split("_")[0]]
        split = next((_SPLITS[name.lower()] for name in names if name.lower() in _SPLITS), "train")
        groups.setdefault(split, []).append(file)
    return groups


def _complete(splits: dict[str, _Pictures], num_validation: int) -> dict[str, _Pictures]:
    """Every split there has to be: validation from the end of train if missing, test from validation."""
    splits = dict(splits)
    if not splits:
        raise ValueError("expected pictures in a split train, validation or test, got none of these")
    train = splits.setdefault("train", next(iter(splits.values())))
    if len(train) < 2:
        raise ValueError(f"expected at least 2 training pictures, one of them to hold out, got {len(train)}")
    if "validation" not in splits:
        held_out = min(num_validation, max(1, len(train) // 10))
        splits["validation"] = train.part(len(train) - held_out, len(train))
        splits["train"] = train.part(0, len(train) - held_out)
    splits.setdefault("test", splits["validation"])
    return splits


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("expected the package 'datasets' for Parquet files and Hub names; install 'gritvq[images]'") from error
    return datasets
