"""Pictures as work: whole, or crops and mirror images of each."""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor

from gritvq.bulk.work import Shard, Work, digest_of, numbered
from gritvq.images.crops import center_crop, random_crops, ten_crops
from gritvq.images.files import HELD_OUT_SIZE, PHOTOGRAPHS, Picture, Pictures
from gritvq.images.tokenizer import ImageTokenizer
from gritvq.tokens import TokenRow

__all__ = ["PictureWork", "Views", "fits"]


@dataclass(frozen=True)
class Views:
    """What is encoded of each picture; by default the whole of it.

    Args:
        size: Pixels per side of the square that is cut from each picture; from the center, unless crops are given.
        ten_crops: Corners, center and their mirror images of pictures whose shorter side is resized to these multiples
            of ``size``.
        random_crops: So many squares at random places.
        seed: Of the random places, which depend on it and on the picture's name.
        flip: Whether there are mirror images too; ten crops have them.
        outside: Whether random squares of the photographs lie outside of those held out from training.

    Raises:
        ValueError: If there are crops without a size, or of both kinds.
    """

    size: int | None = None
    ten_crops: Sequence[float] | None = None
    random_crops: int | None = None
    seed: int = 0
    flip: bool = False
    outside: bool = False

    def __post_init__(self) -> None:
        if self.ten_crops == [] or (self.size is None and (self.ten_crops or self.random_crops)):
            raise ValueError("expected --size, and a scale for --ten_crops, got none; give both")
        if self.ten_crops and self.random_crops:
            raise ValueError("expected --ten_crops or --random_crops, got both; leave one of them out")

    def __len__(self) -> int:
        """Views of one picture."""
        if self.ten_crops is not None:
            return 10 * len(self.ten_crops)
        return (self.random_crops or 1) * (2 if self.flip else 1)

    def of(self, picture: Picture) -> list[Picture]:
        """The views of a picture; if there are several, with ``#`` and their number behind its name.

        Squares outside of those held out have names of their own, which begin with ``train/``: they are no views of
        what is held out.
        """
        if self.ten_crops is not None:
            assert self.size is not None
            pixels = torch.cat([ten_crops(picture.pixels, self.size, scale) for scale in self.ten_crops])
        elif self.random_crops is not None:
            assert self.size is not None
            seed = [self.seed, zlib.crc32(picture.name.encode(errors="surrogatepass"))]
            without = (*PHOTOGRAPHS[picture.name], HELD_OUT_SIZE) if self.outside else None
            pixels = random_crops(picture.pixels, self.size, self.random_crops, seed, without)
            pixels = torch.cat([pixels, pixels.flip(-1)]) if self.flip else pixels
        else:
            whole = picture.pixels if self.size is None else center_crop(picture.pixels, self.size)
            pixels = torch.stack([whole, whole.flip(-1)] if self.flip else [whole])
        name = f"train/{picture.name}" if self.outside else picture.name
        names = [name] if len(pixels) == 1 else [f"{name}#{number}" for number in range(len(pixels))]
        return [picture._replace(name=name, pixels=own) for name, own in zip(names, pixels, strict=True)]


class PictureWork(Work):
    """Pictures, which are read where they are encoded.

    Args:
        tokenizer: The tokenizer.
        pictures: The pictures, whose ``strict`` also says whether one that does not fit the tokenizer is an error.
        data: What they are called in messages.
        batch_size: Pictures of one size that are computed together, at most.
        views: What is encoded of each.
        classes_from: What is stored as label: the label, the name of the picture's folder, or its own name.
    """

    wanted = "at least one readable picture", "none"

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        pictures: Pictures,
        data: str,
        batch_size: int = 64,
        *,
        views: Views | None = None,
        classes_from: Literal["labels", "folders", "names"] = "labels",
    ) -> None:
        super().__init__(tokenizer, data, batch_size)
        self.pictures, self.views, self.classes_from = pictures, views or Views(), classes_from
        self.num_samples = len(pictures)

    def shards(self, rows: int) -> Iterator[Shard]:
        """Numbers of pictures; fewer if each has several views."""
        return numbered(len(self.pictures), max(1, rows // len(self.views)))

    def settings(self) -> Mapping[str, Any]:
        """The views, the columns, where labels come from, and which pictures count as unreadable or are an error."""
        column, label, *_ = *self.pictures.source.columns(), None, None
        limits = {"max_pixels": self.pictures.max_pixels, "max_bytes": self.pictures.max_bytes}
        read = {"column": column, "label": label, **limits}
        return {**asdict(self.views), **read, "classes_from": self.classes_from, "strict": self.pictures.strict}

    def digest(self) -> str:
        """Of splits and numbers, and of the files, or the pixels in memory; of a Hub data set else only of its name."""
        source, numbers = self.pictures.source, self.pictures.numbers
        files = source.paths()
        origin = {name: value for name, value in self.pictures.describe().items() if not files or name != "data"}
        chosen = str(numbers) if isinstance(numbers, range) else list(map(int, numbers))
        pixels = map(_content_of, self.pictures) if source.in_memory else ()
        return digest_of(files, origin, chosen, list(pixels))

    def rows(self, shard: Shard, progress: Callable[[int], object] = int) -> Iterator[TokenRow]:
        """A row for each view of a readable picture that fits the tokenizer."""
        chosen = self.pictures.part([self.pictures.numbers[number] for number in shard.samples])
        device = next(self.tokenizer.parameters()).device
        for group, images in chosen.batches(self.batch_size):
            group = [picture._replace(label=self._class_of(picture)) for picture in group]
            for views, values in self._batches(group, images):
                if not fits(self.tokenizer, views, self.pictures.strict):
                    continue
                tokens = self.tokenizer.encode(values.to(device)).cpu()
                for view, found in zip(views, tokens, strict=True):
                    _, height, width = view.pixels.shape
                    label = _plain(view.label)
                    columns = {"height": height, "width": width, "label": label, "tokenizer": self.fingerprint}
                    yield TokenRow(view.name, found, columns)
            progress(len(group))

    def _batches(self, group: list[Picture], images: Tensor) -> Iterator[tuple[list[Picture], Tensor]]:
        """What is encoded of pictures of one size."""
        if self.views.size is None and not self.views.flip:
            yield group, images
            return
        views = [view for picture in group for view in self.views.of(picture)]
        for start in range(0, len(views), self.batch_size):
            part = views[start : start + self.batch_size]
            yield part, torch.stack([view.pixels for view in part]).float().div_(255)

    def _class_of(self, picture: Picture) -> Any:
        path = PurePosixPath(picture.name)
        if self.classes_from == "labels":
            return picture.label
        return path.stem if self.classes_from == "names" else path.parent.name or None


def fits(tokenizer: ImageTokenizer, group: Sequence[Picture], strict: bool) -> bool:
    """Whether pictures of one size fit the quantizer's layout; if not, warns about each, or raises if strict."""
    try:
        tokenizer.check_size(*group[0].pixels.shape[1:])
    except ValueError as error:
        if strict:
            raise
        for picture in group:
            warnings.warn(f"skipped {picture.name}: {error}", stacklevel=1)
        return False
    return True


def _content_of(picture: Picture) -> str:
    """What tells a picture from any other."""
    start = repr((picture.name, tuple(picture.pixels.shape))).encode()
    return hashlib.sha256(start + picture.pixels.numpy().tobytes()).hexdigest()


def _plain(label: Any) -> str | int | float | None:
    """A label as a number or text."""
    return label if label is None or isinstance(label, str | int | float) else json.dumps(label, default=str)
