"""Choices that mathematics leaves open, made the same way on every machine.

Eigenvectors have no sign, equal eigenvalues no basis, equal scores no order. What a library returns there depends on
the processor, the number of threads and the version. Whatever such a choice decides goes through this module; then
results agree across machines up to rounding.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["canonical_basis", "canonical_eigh", "inverse_root", "ranked"]

# Eigenvalues closer than this, over the largest, count as equal. Further apart, double precision gives a vector to
# about 1e-16 / 1e-9 = 1e-7, the rounding of float32.
_SAME_VALUE = 1e-9
# Squared lengths within this share of the longest count as equal. Equal ones differ by 1e-7 at most, by the same sum.
_SAME_LENGTH = 1e-3
_LEAST_SHARE = 1e-12  # of the mean eigenvalue, below which rounding decides


def canonical_eigh(
    matrix: Float[Tensor, "D D"],
) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
    """Eigenvalues of a symmetric matrix, the largest first, and eigenvectors that depend on nothing but the matrix.

    Eigenvalues that differ by less than 1e-9 of the largest magnitude from their neighbor count as equal: all of the
    group get their mean, and the basis of their space is that of :func:`canonical_basis`. Then vectors agree to about
    1e-7 between any two correct solvers, whatever signs and bases these return, and ``A v - w v`` is at most about 1e-9
    of the largest magnitude per member of the group.

    The one exception is a matrix where rounding decides a threshold: two eigenvalues whose distance is 1e-9 up to
    rounding, or two axes whose squared lengths differ by 1e-3 up to rounding. Symmetry makes values equal, never that.

    Args:
        matrix: A symmetric matrix (D, D); only its lower triangle is read.

    Returns:
        Values (D,) and vectors (D, D), one per column, in float64.

    Example:
        >>> values, vectors = canonical_eigh(0.9 + 0.1 * torch.eye(3))
        >>> values.float(), vectors[:, :2].float()
        (tensor([2.8000, 0.1000, 0.1000]), tensor([[ 0.5774,  0.8165],
                [ 0.5774, -0.4082],
                [ 0.5774, -0.4082]]))
    """
    values, vectors = (each.flip(-1) for each in torch.linalg.eigh(matrix.double()))
    apart = values[:-1] - values[1:] > _SAME_VALUE * values.abs().max()
    for start, stop in pairwise([0, *(apart.nonzero()[:, 0] + 1).tolist(), len(values)]):
        values[start:stop] = values[start:stop].mean()
        vectors[:, start:stop] = canonical_basis(vectors[:, start:stop])
    return values, vectors


def canonical_basis(basis: Float[Tensor, "D n"]) -> Float[Tensor, "D n"]:
    """The orthonormal basis of a space that depends on the space alone, not on the basis it is given by.

    Gram-Schmidt on the projections of the coordinate axes. Each next axis is the first whose squared projection, less
    what the earlier ones span, is at least 0.999 of the longest. Its own component is positive, which fixes the sign.

    Args:
        basis: Any orthonormal basis of the space, one vector per column.

    Example:
        >>> canonical_basis(torch.tensor([[0.0, -0.6], [0.0, -0.8], [1.0, 0.0]]))
        tensor([[0.0000, 0.6000],
                [0.0000, 0.8000],
                [1.0000, 0.0000]])
    """
    found: list[Tensor] = []
    for _ in range(basis.shape[1]):
        lengths = basis.square().sum(1)
        axis = int((lengths >= (1 - _SAME_LENGTH) * lengths.max()).int().argmax())
        found.append(basis @ basis[axis] / lengths[axis].sqrt())
        basis = basis - torch.outer(found[-1], found[-1] @ basis)  # spans what is left
    return torch.stack(found, 1) if found else basis


def inverse_root(matrix: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """``A^{-1/2}`` of a symmetric positive definite matrix, in double precision, and its gradient.

    It is ``V diag(a^{-1/2}) V^T`` for any eigenvectors V, so that it depends on nothing but the matrix; and so does the
    gradient: with ``r = sqrt(a)``, in the basis V that of the output times ``-1 / (r_i r_j (r_i + r_j))``, the divided
    differences of ``a^{-1/2}``. They are finite for equal eigenvalues, the gradients of eigenvectors are not.

    Args:
        matrix: The matrix. One that is not finite gives NaN.

    Example:
        >>> inverse_root(torch.tensor([[4.0, 0.0], [0.0, 0.25]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]])
    """
    found: Tensor = _InverseRoot.apply(matrix)
    return found


class _InverseRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        good = matrix.isfinite().all()
        known = torch.where(good, matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
        values, vectors = torch.linalg.eigh(known.double())
        roots = values.clamp_min(_LEAST_SHARE * values.mean()).sqrt()
        ctx.save_for_backward(roots, vectors)
        found = ((vectors / roots) @ vectors.T).to(matrix.dtype)
        return torch.where(good, found, torch.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        roots, vectors = ctx.saved_tensors
        slopes = -1 / (roots[:, None] * roots * (roots[:, None] + roots))
        inside = vectors.T @ gradient.double() @ vectors
        return (vectors @ (slopes * inside) @ vectors.T).to(gradient.dtype)


def ranked(values: Float[Tensor, "*batch K"], count: int, *, largest: bool = True) -> Int[Tensor, "*batch n"]:
    """Places of the best ``count`` values along the last axis, best first; among equal ones the lowest place first.

    ``torch.topk`` promises nothing about equal values, neither which are taken nor their order. Infinite values are
    left as it gives them: they stand for what cannot be chosen.

    Args:
        values: What to rank.
        count: How many, 1 to K.
        largest: Whether large values are best.

    Example:
        >>> ranked(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 2)
        tensor([1, 2])
    """
    compiling = torch.compiler.is_compiling()  # one graph, whatever the values are
    if (compiling or count == values.shape[-1]) and not torch.compiler.is_exporting():
        return values.argsort(dim=-1, descending=largest, stable=True)[..., :count]
    found, places = values.topk(count, dim=-1, largest=largest)
    if torch.compiler.is_exporting():  # an exported program cannot look at its values
        return places
    rest = values.scatter(-1, places, -torch.inf if largest else torch.inf)
    found = torch.cat([found, (rest.amax(-1) if largest else rest.amin(-1)).unsqueeze(-1)], -1)
    equal = ((found[..., 1:] == found[..., :-1]) & found[..., 1:].isfinite()).any(-1)
    if bool(equal.any()):
        places[equal] = values[equal].argsort(dim=-1, descending=largest, stable=True)[..., :count]
    return places
