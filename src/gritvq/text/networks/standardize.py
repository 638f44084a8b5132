"""Standardizing of vectors over a batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gritvq.component import Component, check_integer
from gritvq.distributed import all_reduce_sum, all_reduce_sums
from gritvq.quantizers.canonical import inverse_root

__all__ = ["Standardize"]

_MOMENTUM, _LEAST_VARIANCE = 0.1, 1e-8
_LEAST_SHARE = 1e-4  # of the mean variance, in directions in which vectors hardly differ


class Standardize(Component):
    r"""Mean 0 and variance 1 of each component over the segments of a batch, or by running values in eval mode.

    Batch normalization without an affine map, of those vectors alone that there are; the batch is that of all processes
    together.

    Each component can have variance 1 while all say the same: then vectors lie near a line, and codes away from it are
    never used. ``whitened`` makes components uncorrelated, too: ``y = C^{-1/2} (x - mean)`` with the covariance
    ``C = Cov(x) + 1e-4 tr(Cov(x)) / D I``. Of all maps to covariance I this one moves the vectors least, so that codes
    keep their meaning from batch to batch. Its gradient is exact, also where eigenvalues are equal.

    Batches in which this is not determined (of one vector, or whitened of D or fewer) take the running values, which
    every batch of two vectors or more changes. Variances have 1e-8 added. In training a vector depends on the others of
    its batch. Numbers that are not finite give NaN and leave the running values as they are.

    Args:
        dim: Size D of the vectors.
        whitened: See above.

    Example:
        >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])
        >>> Standardize(1)(x, torch.tensor([[True, True, False]]))[0, :2, 0].tolist()
        [-1.0, 1.0]
        >>> x = torch.randn(500, 1) + 0.1 * torch.randn(500, 2)
        >>> x.T.corrcoef()[0, 1] > 0.9, Standardize(2, whitened=True)(x).T.cov().round(decimals=1).abs().tolist()
        (tensor(True), [[1.0, 0.0], [0.0, 1.0]])

    References:
        Ioffe and Szegedy, Batch normalization, ICML 2015, arXiv 1502.03167. Whitened: Huang et al., Decorrelated batch
        normalization, CVPR 2018, arXiv 1804.08450; ours has no groups, and running covariances instead of running
        matrices.
    """

    mean: Tensor
    variance: Tensor
    covariance: Tensor
    root: Tensor

    def __init__(self, dim: int, *, whitened: bool = False) -> None:
        super().__init__()
        self.dim, self.whitened = check_integer("dim", dim), bool(whitened)
        self.register_buffer("mean", torch.zeros(dim))
        if whitened:
            self.register_buffer("covariance", torch.eye(dim))
            self.register_buffer("root", torch.eye(dim))  # of the running covariance, inverse
        else:
            self.register_buffer("variance", torch.ones(dim))

    def forward(
        self, x: Float[Tensor, "*batch D"], present: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch D"]:
        """The vectors, standardized; ``present`` says which there are, all if None."""
        if self.whitened:
            with torch.autocast(x.device.type, enabled=False):
                return self._whitened(x.to(self.mean.dtype), present)
        mean, variance = self.mean, self.variance
        if self.training:
            mean, centered, weights, count = _centered(x, present)
            variance = all_reduce_sum((centered.square() * weights).sum(0)) / count.clamp_min(1)
            self._follow(count, mean=mean, variance=variance)
            mean = torch.where(count > 1, mean, self.mean)
            variance = torch.where(count > 1, variance, self.variance)
        return (x - mean) * (variance + _LEAST_VARIANCE).rsqrt()

    def _whitened(self, x: Tensor, present: Tensor | None) -> Tensor:
        if not self.training:
            return (x - self.mean) @ self.root
        mean, centered, weights, count = _centered(x, present)
        covariance = all_reduce_sum((centered * weights).T @ centered) / count.clamp_min(1)
        self._follow(count, mean=mean, covariance=covariance)
        with torch.no_grad():
            self.root.copy_(inverse_root(_regular(self.covariance)))
        enough = count > self.dim
        mean = torch.where(enough, mean, self.mean)
        return (x - mean) @ inverse_root(_regular(torch.where(enough, covariance, self.covariance)))

    @torch.no_grad()
    def _follow(self, count: Tensor, **found: Tensor) -> None:
        """Move the running values towards those of a batch; one vector has no variance."""
        usable = (count > 1) & torch.stack([value.isfinite().all() for value in found.values()]).all()
        for name, value in found.items():
            running = self.get_buffer(name)
            running.copy_(torch.where(usable, running.lerp(value.to(running.dtype), _MOMENTUM), running))


def _centered(x: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, the N vectors less their mean, which there are (N, 1), and how many."""
    weights = torch.ones(x.shape[:-1], device=x.device) if present is None else present
    weights = weights.to(x.dtype).flatten()[:, None]
    rows = torch.where(weights > 0, x.flatten(0, -2), 0)
    count, total = all_reduce_sums(weights.sum(), (rows * weights).sum(0))
    mean = total / count.clamp_min(1)
    return mean, rows - mean, weights, count


def _regular(covariance: Tensor) -> Tensor:
    least = _LEAST_SHARE * covariance.diagonal().mean() + _LEAST_VARIANCE
    return covariance + least * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
