"""Standardizing of vectors over a batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gritvq.component import Component, check_integer

__all__ = ["Standardize"]

_MOMENTUM, _LEAST_VARIANCE = 0.1, 1e-8


class Standardize(Component):
    """Mean 0 and variance 1 of each component over the segments of a batch, or by running values in eval mode.

    Batch normalization without an affine map, of those vectors alone that there are.

    Args:
        dim: Size D of the vectors.

    Example:
        >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])
        >>> Standardize(1)(x, torch.tensor([[True, True, False]]))[0, :2, 0].tolist()
        [-1.0, 1.0]

    References:
        Ioffe and Szegedy, Batch normalization, ICML 2015, arXiv 1502.03167.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(
        self, x: Float[Tensor, "*batch D"], present: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch D"]:
        """The vectors, standardized; ``present`` says which there are, all if None."""
        mean, variance = self.mean, self.variance
        if self.training:
            weights = torch.ones(x.shape[:-1], device=x.device) if present is None else present.to(x.dtype)
            count = weights.sum()
            mean = (x * weights[..., None]).flatten(0, -2).sum(0) / count.clamp_min(1)
            variance = ((x - mean).square() * weights[..., None]).flatten(0, -2).sum(0) / count.clamp_min(1)
            with torch.no_grad():
                share = _MOMENTUM * (count > 1)  # one vector has no variance
                self.mean.lerp_(mean.to(self.mean.dtype), share.to(self.mean.dtype))
                self.variance.lerp_(variance.to(self.variance.dtype), share.to(self.variance.dtype))
            mean = torch.where(count > 1, mean, self.mean)
            variance = torch.where(count > 1, variance, self.variance)
        return (x - mean) * (variance + _LEAST_VARIANCE).rsqrt()
