"""Search in two stages on processors with int8 products: approximate scores with an error bound, then exact ones.

Stage 1 rounds vectors and codes to eight bits, ``x = x' + e``, ``c = c' + f``, and computes the scores
``|c|^2 / 2 - <x', c'>`` from exact integer products. Since ``<x, c> - <x', c'> = <e, c> + <x', f>``, the true score is
within ``|e| |c| + |x'| |f|`` of the approximate one (Cauchy-Schwarz with the actual rounding errors). For each group of
neighboring codes the smallest score is kept. A group whose smallest score minus its error is above another's plus its
error cannot contain the nearest code. Stage 2 computes float32 scores of the remaining groups, a few out of hundreds,
so indices are those of a float32 search.

If too many groups remain, as with few dimensions, the remaining rows are searched in float32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.quantizers.kernels import blocked
from gritvq.quantizers.kernels.blocked import Groups, finite_rows

__all__ = ["available", "search", "worthwhile"]

_PROBE = 256  # rows of the first block, after which we decide whether the second stage pays off
_SHARE = 0.15  # share of the float32 work from which the second stage does not pay off
_FAR = 2.0**30  # score, in steps, of codes that pad a group
_SLACK = 2.0**-18  # of |x| |c|, for float32 rounding in scores and bounds


@functools.cache
def available() -> bool:
    """Whether this processor has fast int8 products and PyTorch supports them; tried once on a small example."""
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        generator = torch.Generator().manual_seed(0)
        x, codes = torch.randn(8, 32, generator=generator), torch.randn(64, 32, generator=generator)
        rough = _RoughCodes(Groups(codes, torch.ones(64)))
        found = rough._least(_Rounded.of(x), 0)[:, 0]
        return torch.allclose(found, (1 - x @ codes.T).amin(1), atol=0.3)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


def worthwhile(num_rows: int, dim: int, codebook_size: int) -> bool:
    """Whether a search is large enough to gain; below 32 dimensions the product is too small a part of the time."""
    return num_rows >= 1024 and codebook_size >= 4096 and dim >= 32


class _Rounded(NamedTuple):
    """Rows rounded to int8 with one scale, and the lengths of the rounded rows and of their errors."""

    levels: Int[Tensor, "n D"]
    scale: float
    lengths: Float[Tensor, " n"]
    errors: Float[Tensor, " n"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n D"]) -> _Rounded:
        scale = max(float(rows.abs().amax()) / 127, 1e-30)
        levels = (rows / scale).round_()
        errors = torch.sub(rows, levels, alpha=scale).norm(dim=1)
        return cls(levels.to(torch.int8), scale, levels.norm(dim=1).mul_(scale), errors)


class _RoughCodes:
    """Codes rounded to int8 with a scale per block, and error bounds per group."""

    def __init__(self, groups: Groups) -> None:
        self.size, self.room = groups.size, groups.room.view(torch.int32)
        self.blocks = [(_Rounded.of(codes), bias) for codes, bias in groups.blocks()]
        lengths = torch.cat([rounded.lengths + rounded.errors for rounded, _ in self.blocks])  # at least |c|
        errors = torch.cat([rounded.errors for rounded, _ in self.blocks])
        scales = torch.tensor([rounded.scale for rounded, _ in self.blocks]).repeat_interleave(len(self.blocks[0][1]))
        bounds = torch.stack([lengths, errors, _SLACK * lengths.square(), scales])
        self.bounds = bounds.unflatten(1, (-1, self.size)).amax(2)

    def possible(self, rows: Float[Tensor, "n D"]) -> Tensor:
        """Which groups (n, G) may contain the nearest code of each row."""
        rough = _Rounded.of(rows)
        least = torch.cat([self._least(rough, block) for block in range(len(self.blocks))], 1)
        ones = torch.ones_like(rough.lengths)  # the last bound: half a step of the rounded bias
        error = torch.stack([rough.errors + _SLACK * rough.lengths, rough.lengths, ones, rough.scale * ones], 1)
        error = error @ self.bounds
        bound = (least + error).amin(1, keepdim=True)
        return least.sub_(error) <= bound

    def _least(self, rows: _Rounded, block: int) -> Float[Tensor, "n g"]:
        """Smallest approximate score of each group of a block; all blocks reuse the same memory."""
        codes, bias = self.blocks[block]
        step, scores = rows.scale * codes.scale, self.room[: len(rows.levels)]
        torch._int_mm(rows.levels, codes.levels.T, out=scores)
        scores -= (bias / step).clamp(max=_FAR).round().int()
        return scores.unflatten(1, (-1, self.size)).amax(2) * -step


def search(
    x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], bias: Float[Tensor, " K"], center: Float[Tensor, " D"]
) -> Int[Tensor, " N"]:
    """Search in two stages, or by blocks from the first rows that would not gain."""
    fits = codes.dtype == torch.float32 and codes.shape[1] >= 2  # PyTorch's int8 product is wrong for D = 1
    if not fits or not bool(bias.isfinite().all()):
        return blocked.search(x, codes, bias, center)
    groups, found = Groups(codes, bias), []
    rough = _RoughCodes(groups)
    start, size = 0, _PROBE
    while start < len(x):
        rows, finite = finite_rows(x[start : start + size], center)
        possible = torch.cat([rough.possible(part) for part in rows.split(blocked._CPU_ROWS)])
        group, owner = possible.T.nonzero(as_tuple=True)
        if len(group) > _SHARE * possible.numel():
            found.append(blocked.search(x[start:], codes, bias, center))
            break
        found.append(torch.where(finite, groups.nearest(rows, group, owner), 0))
        start, size = start + size, groups.rows_at_once()
    return torch.cat(found)
