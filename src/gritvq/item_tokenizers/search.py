"""The nearest code of every row, decided the same way whatever rows lie beside it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.functional import central_code

__all__ = ["decided_codes", "lengths", "nearest_and_doubt"]

_BLOCK_ENTRIES = 1 << 20  # of scores: 4 MB, which stay in the cache between the passes over them
TOLERANCE = 1e-5  # of |x| |c|: what float32 products of some hundred terms may be off by, several times over


def nearest_and_doubt(
    x: Float[Tensor, "N D"],
    codes: Float[Tensor, "K D"],
    tolerance: float = TOLERANCE,
    size: Float[Tensor, " N"] | None = None,
) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"]]:
    """Nearest codes in float32, and the rows where another code is as near up to rounding.

    The products of a matrix multiplication may differ in their last digits with the number of rows and a row's place
    among them. Where no doubt is left they cannot change the choice.

    Args:
        x: Rows (N, D), float32.
        codes: Codes (K, D).
        tolerance: What products may be off by, as a share of the lengths of their factors.
        size: Lengths (N,) that the error of a row goes with, where these are not the row's.

    Returns:
        Indices (N,) and doubt (N,).

    Example:
        >>> x = torch.tensor([[0.0], [0.5], [0.9]])
        >>> nearest_and_doubt(x, torch.tensor([[0.0], [1.0]]))
        (tensor([0, 0, 1]), tensor([False,  True, False]))
    """
    center = central_code(codes)
    codes = codes - center
    bias = 0.5 * (codes * codes).sum(1)
    reach = codes.norm(dim=1).max()
    indices = [torch.empty(0, dtype=torch.int64, device=x.device)]
    doubt = [torch.empty(0, dtype=torch.bool, device=x.device)]
    block = max(1, _BLOCK_ENTRIES // len(codes))
    for number, rows in enumerate(x.split(block) if len(x) else ()):
        rows = rows - center
        scores = torch.addmm(bias, rows, codes.T, alpha=-1)
        best, index = scores.min(1)
        length = rows.norm(dim=1) if size is None else size[number * block : number * block + len(rows)]
        slack = tolerance * reach * (length + reach)
        indices.append(index)
        doubt.append((scores <= (best + slack)[:, None]).sum(1) > 1)
    return torch.cat(indices), torch.cat(doubt)


def decided_codes(x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]) -> Int[Tensor, " N"]:
    """Nearest codes of float32 or float64 rows, independent of the other rows; ties go to the lowest index.

    Rows in doubt (:func:`nearest_and_doubt`) are decided in float64, and what is a tie even there, up to 1e-12 of the
    lengths, by the lower index.

    Example:
        >>> decided_codes(torch.tensor([[0.5], [0.9]]), torch.tensor([[0.0], [1.0]]))
        tensor([0, 1])
    """
    if x.dtype == torch.float64:
        return _exact(x, codes.double())
    indices, doubt = nearest_and_doubt(x, codes)
    rows = doubt.nonzero().squeeze(1)
    if len(rows):
        indices[rows] = _exact(x[rows].double(), codes.double())
    return indices


def _exact(x: Tensor, codes: Tensor) -> Tensor:
    center = central_code(codes)
    codes = codes - center
    bias = 0.5 * (codes * codes).sum(1)
    reach = codes.norm(dim=1).max()
    indices = [torch.empty(0, dtype=torch.int64, device=x.device)]
    for rows in x.split(max(1, _BLOCK_ENTRIES // len(codes))) if len(x) else ():
        rows = rows - center
        scores = torch.addmm(bias, rows, codes.T, alpha=-1)
        slack = 1e-12 * reach * (rows.norm(dim=1) + reach)
        indices.append((scores <= (scores.amin(1) + slack)[:, None]).int().argmax(1))
    return torch.cat(indices)


def lengths(x: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
    """Euclidean lengths of rows, computed in float64, so that a row's is the same in every batch.

    Example:
        >>> lengths(torch.tensor([[3.0, 4.0]]))
        tensor([[5.]])
    """
    return x.double().square().sum(1, keepdim=True).sqrt().to(x.dtype)
