"""Crops of one size, of which tokens for a prior are made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["center_crop", "free_corners", "random_crops", "ten_crops"]


def center_crop(picture: UInt8[Tensor, "C H W"], size: int, scale: float = 1.0) -> UInt8[Tensor, "C size size"]:
    """The center of a picture whose shorter side was resized.

    Args:
        picture: Of any size.
        size: Height and width of the crop.
        scale: The shorter side becomes ``round(scale * size)`` first, by antialiased bicubic interpolation.

    Raises:
        ValueError: If the size is smaller than 1 or the scale smaller than 1.
    """
    resized = _resized(picture, size, scale)
    top, left = ((side - size) // 2 for side in resized.shape[1:])
    return resized[:, top : top + size, left : left + size]


def ten_crops(picture: UInt8[Tensor, "C H W"], size: int, scale: float = 1.1) -> UInt8[Tensor, "10 C size size"]:
    """The four corners and the center of a resized picture, and their mirror images.

    Args:
        picture: Of any size.
        size: Height and width of the crops.
        scale: The shorter side becomes ``round(scale * size)`` first; larger than 1, or square pictures give one crop
            five times.

    Raises:
        ValueError: If the size is smaller than 1 or the scale smaller than 1.

    Example:
        >>> ten_crops(torch.zeros(3, 40, 60, dtype=torch.uint8), 32).shape
        torch.Size([10, 3, 32, 32])

    References:
        Sun et al., LlamaGen, 2024, arXiv 2406.06525, released code: tokens of ten crops at the scales 1.1 and 1.05 are
        the only augmentation of its priors.
    """
    resized = _resized(picture, size, scale)
    height, width = resized.shape[1:]
    down, right = height - size, width - size
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = torch.stack([resized[:, top : top + size, left : left + size] for top, left in corners])
    return torch.cat([crops, crops.flip(-1)])


def random_crops(
    picture: UInt8[Tensor, "C H W"],
    size: int,
    num: int,
    seed: Sequence[int],
    without: tuple[int, int, int] | None = None,
) -> UInt8[Tensor, "num C size size"]:
    """Squares at random places of a picture, which is enlarged first where it is smaller.

    Args:
        picture: Of any size.
        size: Height and width of the crops.
        num: How many.
        seed: Numbers that determine the places.
        without: Top, left and side of a square that no crop may touch.

    Raises:
        ValueError: If the size or number is smaller than 1, or there is no room.

    Example:
        >>> random_crops(torch.zeros(3, 40, 60, dtype=torch.uint8), 32, 5, [0]).shape
        torch.Size([5, 3, 32, 32])
    """
    if num < 1:
        raise ValueError(f"expected at least one random crop, got {num}")
    if min(picture.shape[1:]) < size:
        picture = _resized(picture, size, 1.0)
    corners = free_corners(picture.shape[1], picture.shape[2], size, without)
    if not len(corners):
        raise ValueError(f"expected room for squares of {size} pixels outside of the one held out, got none")
    chosen = corners[np.random.default_rng(seed).integers(len(corners), size=num)]
    return torch.stack([picture[:, top : top + size, left : left + size] for top, left in chosen])


def free_corners(height: int, width: int, size: int, without: tuple[int, int, int] | None = None) -> np.ndarray:
    """Top left corners (n, 2) of all squares of this size that do not touch a square.

    Args:
        height: Of the picture.
        width: Of the picture.
        size: Of the squares.
        without: Top, left and side of the square to keep free.
    """
    free = np.ones((height - size + 1, width - size + 1), dtype=bool)
    if without is not None:
        *corner, side = without
        rows, columns = (slice(max(0, place - size + 1), place + side) for place in corner)
        free[rows, columns] = False
    return np.argwhere(free)


def _resized(picture: Tensor, size: int, scale: float) -> Tensor:
    """A picture whose shorter side has ``round(scale * size)`` pixels."""
    if size < 1 or not 1 <= scale <= 10:
        raise ValueError(f"expected a size >= 1 and scales in [1, 10], got {size} and {scale}")
    shorter = round(scale * size)
    sides = picture.shape[1:]
    wanted = [max(shorter, round(side * shorter / min(sides))) for side in sides]
    if tuple(wanted) == tuple(sides):
        return picture
    resized = F.interpolate(picture[None].float(), size=wanted, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
