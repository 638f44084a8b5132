"""Base of quantizers of square grids at several resolutions: tokens, prefixes, masks, convolutions."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.quantizers.base import Quantizer, TokenScale
from gritvq.quantizers.functional import at_least_float32

__all__ = ["Pyramid", "convolve", "pooled", "pooled_mask"]


class Pyramid(Quantizer):
    """A quantizer whose tokens describe a square grid at several resolutions, coarse to fine.

    Subclasses say which sides the levels have. A sample whose last levels are all -1 is described by the first ones.
    """

    @abstractmethod
    def _sides(self, num_tokens: int) -> list[int]:
        """Side of every level that so many tokens hold.

        Raises:
            ValueError: If no number of whole levels has so many.
        """

    @abstractmethod
    def _full_side(self, sides: list[int]) -> int:
        """Side of the grid of vectors that belongs to these levels."""

    def token_scales(self, positions: tuple[int, ...]) -> tuple[TokenScale, ...]:
        """One scale per level, coarse to fine."""
        sides = self._sides(self.token_shape(positions)[-1])
        return tuple(TokenScale((side, side), self._channels(level)) for level, side in enumerate(sides))

    def _channels(self, level: int) -> tuple[int, ...]:
        """Index channels of a level; all unless overridden."""
        return tuple(range(len(self.codebook_sizes)))

    def _levels(self, indices: Int[Tensor, "B T Q"]) -> list[Tensor]:
        """Indices (B, p, p, Q) of every level present."""
        sides = self._sides(indices.shape[1])
        parts = indices.split([side**2 for side in sides], dim=1)
        return [part.unflatten(1, (side, side)) for part, side in zip(parts, sides, strict=True)]

    def _zero_masked(self, values: Float[Tensor, "*batch D"], indices: Int[Tensor, "*tokens Q"]) -> Tensor:
        """Zeros at positions where the finest level of a sample is -1."""
        missing = (indices < 0).all(-1)
        sides = self._sides(missing.shape[-1])
        full = self._full_side(sides)
        there = ~missing.reshape(-1, missing.shape[-1])
        shown = torch.zeros(there.shape[0], full, full, dtype=torch.bool, device=missing.device)
        for level, side in zip(there.split([side**2 for side in sides], dim=1), sides, strict=True):
            seen = _covering(level.unflatten(1, (side, side)), full)
            has = level.any(1)[:, None, None]
            shown = (has & seen) | (~has & shown)
        return torch.where(shown.view(*values.shape[:-1], 1), values, 0)

    @torch.no_grad()
    def encode(
        self,
        x: Float[Tensor, "*batch P P D"],
        mask: Bool[Tensor, "*batch P P"] | None = None,
        num_levels: int | None = None,
    ) -> Int[Tensor, "*batch T Q"]:
        """Indices, of the first ``num_levels`` levels where given.

        Raises:
            ValueError: If there are not so many levels.
        """
        indices = super().encode(x, mask)
        sides = self._sides(indices.shape[-2])
        if num_levels is None:
            return indices
        if not 1 <= num_levels <= len(sides):
            raise ValueError(f"expected num_levels in 1 .. {len(sides)}, got {num_levels}")
        return indices[..., : sum(side**2 for side in sides[:num_levels]), :]


def pooled_mask(valid: Bool[Tensor, "B P P"], side: int) -> Bool[Tensor, "B p p"]:
    """Where a cell of a coarser grid holds a real position."""
    return valid if valid.shape[1] == side else F.adaptive_max_pool2d(valid.float(), side) > 0


def pooled(
    x: Float[Tensor, "B P P D"], valid: Bool[Tensor, "B P P"], side: int
) -> tuple[Float[Tensor, "B p p D"], Bool[Tensor, "B p p"]]:
    """Mean over the real positions of every cell of a coarser grid, zeros where there is none, and where there is one.

    Cells are those of adaptive average pooling: they overlap where sides do not divide each other.
    """
    x = torch.where(valid.unsqueeze(-1), x, 0)
    if x.shape[1] == side:
        return x, valid
    share = F.adaptive_avg_pool2d(valid.to(x.dtype).unsqueeze(1), side).permute(0, 2, 3, 1)
    grid = x.permute(0, 3, 1, 2)
    if torch.compiler.is_exporting():  # written out in other operators, the mean comes in another order of memory
        grid = grid.contiguous()
    mean = F.adaptive_avg_pool2d(grid, side).permute(0, 2, 3, 1)
    seen = share > 0
    return torch.where(seen, mean / torch.where(seen, share, 1), 0), seen.squeeze(-1)


def _covering(cells: Bool[Tensor, "B p p"], full: int) -> Bool[Tensor, "B P P"]:
    """Positions of the finer grid that lie in one of these cells."""
    side = cells.shape[1]
    if side == full:
        return cells
    place, cell = torch.arange(full, device=cells.device), torch.arange(side, device=cells.device)[:, None]
    inside = (place >= cell * full // side) & (place < -(-(cell + 1) * full // side))
    return inside.float().T @ cells.float() @ inside.float() > 0


def convolve(x: Float[Tensor, "B H W D"], layer: nn.Conv2d | nn.ConvTranspose2d) -> Float[Tensor, "B h w C"]:
    """A convolution with channels last, in the layer's own precision but at least float32, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = at_least_float32(layer.weight), None if layer.bias is None else at_least_float32(layer.bias)
        y = x.to(weight.dtype).permute(0, 3, 1, 2).contiguous()
        if isinstance(layer, nn.ConvTranspose2d):
            y = F.conv_transpose2d(y, weight, bias, layer.stride)
        else:
            y = F.conv2d(y, weight, bias, layer.stride, layer.padding)  # type: ignore[arg-type]
        return y.permute(0, 2, 3, 1)
