"""One picture of a file: what is refused undecoded, and its pixels as gray or RGB."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["MAX_PIXELS", "check_channels", "decode", "to_tensor"]

_logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # tag of EXIF
MAX_PIXELS = 2**26  # of a picture: 8192 x 8192
_BY_ROWS = {"BMP", "DIB", "GIF", "JPEG", "PNG", "PPM"}  # formats whose decoders hold few rows besides the picture
_STRIP = 2**18  # pixels that are converted together


def to_tensor(image: Image.Image, channels: int = 3) -> UInt8[Tensor, "C H W"]:
    """Converts any Pillow image to uint8 gray or RGB.

    The EXIF orientation is applied, and transparency is composited over white. Values of more than 8 bits are scaled
    to 0..255: white is 65535 for integers; for floats it is the least of 1, 255, 65535 and the largest value that is
    no smaller than the largest value. Of an animation it converts the current frame.

    Args:
        image: The image; it is not changed.
        channels: 1 for gray or 3 for RGB.

    Returns:
        A new uint8 tensor (C, H, W).

    Raises:
        ValueError: If ``channels`` is neither 1 nor 3, or Pillow cannot convert the image's mode.

    Example:
        >>> to_tensor(Image.new("RGBA", (3, 2), (255, 0, 0, 0)), channels=1).tolist()
        [[[255, 255, 255], [255, 255, 255]]]
    """
    check_channels(channels)
    if image.getexif().get(_ORIENTATION, 1) != 1:  # else it would be copied
        image = ImageOps.exif_transpose(image)
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    part_of = _deep_parts(image) if deep else lambda top, bottom: image.crop((0, top, image.width, bottom))
    pixels = torch.empty(channels, image.height, image.width, dtype=torch.uint8)
    step = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        pixels[:, top:bottom] = _flat_pixels(part_of(top, bottom), channels)
    return pixels


def _deep_parts(image: Image.Image) -> Callable[[int, int], Image.Image]:
    """Rows of a picture of more than 8 bits, scaled to 8."""
    whole, transparent = np.asarray(image), image.info.get("transparency")

    def values(top: int, bottom: int) -> np.ndarray:
        found = np.nan_to_num(whole[top:bottom].astype(np.float64))
        if isinstance(transparent, int):
            found[found == transparent] = 65535  # the one transparent value of a PNG
        return found

    step = max(1, _STRIP // max(1, image.width))
    largest = max((values(top, top + step).max() for top in range(0, image.height, step)), default=0.0)
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((white for white in whites if largest <= white), largest)
    return lambda top, bottom: Image.fromarray(
        (values(top, bottom) * (255 / white)).round().clip(0, 255).astype(np.uint8)
    )


def _flat_pixels(image: Image.Image, channels: int) -> UInt8[Tensor, "C H W"]:
    """Pixels of 8 bits without transparency."""
    if _is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _is_transparent(image: Image.Image) -> bool:
    """Whether an image has transparency data; ``Image.has_transparency_data`` needs Pillow 10.1."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def decode(
    opener: Callable[[], Image.Image],
    name: Callable[[], str],
    channels: int,
    strict: bool,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int | None = None,
) -> UInt8[Tensor, "C H W"] | None:
    """Opens and decodes one picture. If it is unreadable, raises a ValueError (``strict``), or logs it: None."""
    try:
        with opener() as image:
            _check_bytes(image, max_bytes)
            _check_pixels(image, max_pixels)
            return to_tensor(image, channels)
    except Exception as error:  # on damaged files Pillow raises nearly everything
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is the file or a buffer's address
        reason = "in no known format" if unknown else str(error) or type(error).__name__
        if strict:
            raise ValueError(
                f"expected a readable picture, got {name()}: {reason}; replace or remove it, or read without `strict` "
                "to skip such pictures of a collection."
            ) from error
        _logger.warning("skipped an unreadable picture: %s: %s", name(), reason)
        return None


def _check_bytes(image: Image.Image, max_bytes: int | None) -> None:
    """Raises a ValueError if the file of a picture, not yet decoded, is larger."""
    file = getattr(image, "fp", None)  # pictures in memory have none
    if max_bytes is None or file is None:
        return
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    if size > max_bytes:
        raise ValueError(f"its file has {size:,} bytes, more than {max_bytes:,}; set a larger max_bytes")


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Raises a ValueError if a picture of a file, not yet decoded, is larger."""
    by_rows = image.format in _BY_ROWS and "progressive" not in image.info
    most = max_pixels if by_rows else max_pixels // 2
    if image.format is not None and image.width * image.height > most:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, more than {most:,}; set a larger max_pixels if you trust it"
        )


def check_channels(channels: int) -> None:
    """Raises a ValueError unless the number of channels is 1 or 3."""
    if channels not in (1, 3):
        raise ValueError(f"expected channels to be 1 (gray) or 3 (RGB), got {channels}; choose one of these.")
