"""A quantizer between two linear maps."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import check_integer
from gritvq.quantizers.base import Quantizer, WrappedQuantizer
from gritvq.quantizers.functional import at_least_float32

__all__ = ["ProjectedQuantizer"]


class ProjectedQuantizer(WrappedQuantizer):
    """A quantizer in a space of another size, between two linear maps.

    ``value = W_out Q(W_in x + b_in) + b_out``, in float32 also under autocast. The maps get their gradients through the
    quantizer's own surrogate. They start orthogonal and without bias: a bias comparable to the latents would fix the
    sign of every component, and with it all bits of a binary quantizer.

    Args:
        quantizer: The quantizer inside.
        dim: Size of the vectors outside.

    Example:
        >>> from gritvq import FSQ
        >>> quantizer = ProjectedQuantizer(FSQ([8, 5, 5, 5]), 64)
        >>> quantizer(torch.randn(3, 64)).quantized.shape
        torch.Size([3, 64])
    """

    def __init__(self, quantizer: Quantizer, dim: int) -> None:
        check_integer("dim", dim)
        super().__init__(quantizer)
        self.dim = dim
        self.project_in, self.project_out = nn.Linear(dim, quantizer.input_dim), nn.Linear(quantizer.dim, dim)
        for layer in (self.project_in, self.project_out):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def input_dim(self) -> int:
        """Size of the vectors outside."""
        return self.dim

    def before(self, x: Float[Tensor, "*batch D"]) -> Tensor:
        """Into the inner space."""
        return super().before(_linear(x, self.project_in))

    def after(self, q: Tensor) -> Float[Tensor, "*batch D"]:
        """Back out of it."""
        return _linear(super().after(q), self.project_out)

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit the inner codes to the projected data."""
        self._check_input(x, None)
        with torch.no_grad():
            self.quantizer.initialize_codebook(_linear(x, self.project_in), generator)

    def fold(self) -> ProjectedQuantizer:
        """The same maps around the folded quantizer."""
        folded = ProjectedQuantizer(self.quantizer.fold(), self.dim)
        folded.project_in, folded.project_out = copy.deepcopy(self.project_in), copy.deepcopy(self.project_out)
        return folded.requires_grad_(False).eval()


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer in its own precision, but at least float32."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = at_least_float32(layer.weight), at_least_float32(layer.bias)
        return F.linear(x.to(weight.dtype), weight, bias)
