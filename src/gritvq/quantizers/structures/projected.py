"""A quantizer between two linear maps."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer
from gritvq.quantizers.base import Quantizer, QuantizerOutput, WrappedQuantizer
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
        own_surrogate: Whether the inner quantizer's surrogate acts between the two maps even where this quantizer is a
            level of a :class:`ResidualQuantizer`. That structure refuses trained maps under its own surrogate, since
            they would get no gradient; with this setting it takes them, as levels that are differentiable themselves.

    Example:
        >>> from gritvq import FSQ, ResidualQuantizer, vq_vae
        >>> quantizer = ProjectedQuantizer(FSQ([8, 5, 5, 5]), 64)
        >>> quantizer(torch.randn(3, 64)).quantized.shape
        torch.Size([3, 64])
        >>> levels = [ProjectedQuantizer(vq_vae(8, 32), 64, own_surrogate=True) for _ in range(3)]
        >>> ResidualQuantizer(levels)(torch.randn(3, 64)).indices.shape
        torch.Size([3, 3])

    References:
        Levels with maps of their own: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN" (DAC),
        NeurIPS 2023, arXiv 2306.06546.
    """

    def __init__(self, quantizer: Quantizer, dim: int, *, own_surrogate: bool = False) -> None:
        check_integer("dim", dim)
        super().__init__(quantizer)
        self.dim, self.own_surrogate = dim, own_surrogate
        if own_surrogate:
            self.surrogate = None
        self.project_in, self.project_out = nn.Linear(dim, quantizer.input_dim), nn.Linear(quantizer.dim, dim)
        for layer in (self.project_in, self.project_out):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def input_dim(self) -> int:
        """Size of the vectors outside."""
        return self.dim

    def before(self, x: Float[Tensor, "*batch D"]) -> Tensor:
        """Into the inner space, unless :meth:`quantize` does that."""
        return x if self.own_surrogate else self._into(x)

    def after(self, q: Tensor) -> Float[Tensor, "*batch D"]:
        """Back out of it, unless :meth:`quantize` does that."""
        return q if self.own_surrogate else self._out_of(q)

    def _into(self, x: Float[Tensor, "*batch D"]) -> Tensor:
        return super().before(_linear(x, self.project_in))

    def _out_of(self, q: Tensor) -> Float[Tensor, "*batch D"]:
        return _linear(super().after(q), self.project_out)

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """The inner quantizer's; with ``own_surrogate`` from outside to outside, differentiable in ``x``."""
        if not self.own_surrogate:
            return super().quantize(x, valid)
        y, surrogate = self._into(x), self.quantizer.surrogate
        output = super().quantize(y, valid)
        values = output.quantized if surrogate is None else surrogate(y, output.quantized)
        return output._replace(quantized=self._out_of(values))

    def lookup(self, indices: Int[Tensor, "*tokens Q"]) -> Float[Tensor, "*batch D"]:
        """The inner quantizer's; with ``own_surrogate`` mapped outside."""
        values = super().lookup(indices)
        return self._out_of(values) if self.own_surrogate else values

    def nearest(self, y: Float[Tensor, "*batch D"], num_codes: int) -> Int[Tensor, "*batch n"]:
        """The inner quantizer's, of what :meth:`before` returns."""
        return super().nearest(self._into(y) if self.own_surrogate else y, num_codes)

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit the inner codes to the projected data."""
        self._check_input(x, None)
        with torch.no_grad():
            self.quantizer.initialize_codebook(_linear(x, self.project_in), generator)

    def fold(self) -> ProjectedQuantizer:
        """The same maps around the folded quantizer."""
        folded = ProjectedQuantizer(self.quantizer.fold(), self.dim, own_surrogate=self.own_surrogate)
        folded.project_in, folded.project_out = copy.deepcopy(self.project_in), copy.deepcopy(self.project_out)
        return folded.requires_grad_(False).eval()


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer in its own precision, but at least float32."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = at_least_float32(layer.weight), at_least_float32(layer.bias)
        return F.linear(x.to(weight.dtype), weight, bias)
