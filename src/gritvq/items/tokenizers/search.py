"""Nearest-code search whose result for a row does not depend on the other rows of the batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.codebooks import FreeCodebook
from gritvq.quantizers.functional import central_code
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["CodeTable", "lengths", "quantizer_of"]

_BLOCK_ENTRIES = 1 << 20  # scores per block: 4 MB, which stay in the cache
_BLOCK_ROWS = 256
TOLERANCE = 1e-5  # of |x| |c|: several times the error of float32 products of some hundred terms


class CodeTable:
    """Codes prepared for any number of searches.

    The last digits of a matrix product may depend on the number of rows and on a row's position. So rows for which
    another code is equally near up to rounding are decided in float64.

    Args:
        codes: Codes (K, D), float32 or float64; must not be changed later.

    Attributes:
        codes: The codes.

    Example:
        >>> table = CodeTable(torch.tensor([[0.0], [1.0]]))
        >>> table.nearest(torch.tensor([[0.5], [0.9]]))
        tensor([0, 1])
    """

    def __init__(self, codes: Float[Tensor, "K D"]) -> None:
        self.codes = codes
        self._center = central_code(codes)
        self._shifted = codes - self._center
        self._bias = 0.5 * (self._shifted * self._shifted).sum(1)
        self._reach = self._shifted.norm(dim=1).max()
        self._wide = self if codes.dtype == torch.float64 else None

    def double(self) -> CodeTable:
        """The same codes in float64."""
        if self._wide is None:
            self._wide = CodeTable(self.codes.double())
        return self._wide

    def nearest(self, x: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        """Indices of the nearest codes of float32 or float64 rows; ties up to 1e-12 go to the lowest index."""
        if x.dtype == torch.float64 or torch.compiler.is_exporting():  # a program does not look at doubts
            return self.double()._decide(x.double())
        indices, doubt = self.nearest_and_doubt(x)
        rows = doubt.nonzero().squeeze(1)
        if len(rows):
            indices[rows] = self.double()._decide(x[rows].double())
        return indices

    def nearest_and_doubt(
        self, x: Float[Tensor, "N D"], tolerance: float = TOLERANCE, size: Float[Tensor, " N"] | None = None
    ) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"]]:
        """Nearest codes in the rows' own precision, and the rows for which another code is as near up to rounding.

        Args:
            x: Rows (N, D).
            tolerance: Error of products, relative to the lengths of their factors.
            size: Lengths (N,) that errors are relative to; None means the lengths of the rows.

        Example:
            >>> CodeTable(torch.tensor([[0.0], [1.0]])).nearest_and_doubt(torch.tensor([[0.0], [0.5], [0.9]]))
            (tensor([0, 0, 1]), tensor([False,  True, False]))
        """
        indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
        doubt = torch.empty(len(x), dtype=torch.bool, device=x.device)
        for place in self._blocks(x):
            rows = x[place] - self._center
            scores = self._scores(rows)
            best, index = scores.min(1)
            length = rows.norm(dim=1) if size is None else size[place]
            slack = tolerance * self._reach * (length + self._reach)
            indices[place] = index
            doubt[place] = (scores <= (best + slack)[:, None]).sum(1) > 1
        return indices, doubt

    def _decide(self, x: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        if torch.compiler.is_exporting():
            return self._decided(x)
        indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
        for place in self._blocks(x):
            indices[place] = self._decided(x[place])
        return indices

    def _decided(self, x: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        rows = x - self._center
        scores = self._scores(rows)
        slack = 1e-12 * self._reach * (rows.norm(dim=1) + self._reach)
        return (scores <= (scores.amin(1) + slack)[:, None]).int().argmax(1)

    def _scores(self, rows: Tensor) -> Tensor:
        """Half the squared distances minus half the squared length of the row."""
        return torch.addmm(self._bias, rows, self._shifted.T, alpha=-1)

    def _blocks(self, x: Tensor) -> list[slice]:
        step = max(1, _BLOCK_ENTRIES // len(self.codes))
        return [slice(start, start + step) for start in range(0, len(x), step)]


def quantizer_of(codes: Float[Tensor, "K D"]) -> Quantizer:
    """A quantizer that takes the nearest of these codes, to be examined.

    Example:
        >>> quantizer_of(torch.tensor([[0.0], [1.0]])).encode(torch.tensor([[0.9]]))
        tensor([[1]])
    """
    book = FreeCodebook(codes.shape[1], len(codes))
    book.weight.data.copy_(codes)
    return VectorQuantizer(book).to(codes.device).eval()


def lengths(x: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
    """Euclidean lengths of rows, computed in float64 so that they do not depend on the batch.

    Example:
        >>> lengths(torch.tensor([[3.0, 4.0]]))
        tensor([[5.]])
    """
    if torch.compiler.is_exporting():
        return x.double().square().sum(1, keepdim=True).sqrt().float()
    found = x.new_empty(len(x), 1)
    for place, rows in zip(found.split(_BLOCK_ROWS), x.split(_BLOCK_ROWS), strict=True):  # blocks fit into the cache
        place.copy_(rows.double().square_().sum(1, keepdim=True).sqrt_())
    return found
