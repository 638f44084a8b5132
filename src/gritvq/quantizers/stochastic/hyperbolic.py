"""Quantization by hyperbolic multinomial logistic regression in the Poincare ball."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer, check_number
from gritvq.quantizers.base import Quantizer, QuantizerOutput, Schedule, keeping_precision
from gritvq.quantizers.canonical import ranked
from gritvq.quantizers.functional import at_least_float32, rows_or_zeros, transforming
from gritvq.quantizers.stochastic.gaussian import checked_temperature, clamped_temperature
from gritvq.quantizers.stochastic.relaxations import over_blocks, relaxed_choice

__all__ = ["HyperbolicQuantizer"]


class HyperbolicQuantizer(Quantizer):
    """Hyperbolic quantization (HyperVQ): each code is a hyperplane in the Poincare ball, chosen by logistic regression.

    Code k has a direction ``a_k`` and an offset ``r_k``. With curvature -c, ``x = exp_0(v)`` of the input v and ``lam =
    2 / (1 - c |x|^2)``::

        logit_k = 2 |a_k| / sqrt(c) * asinh(lam sqrt(c) <x, a_k / |a_k|> cosh(2 sqrt(c) r_k)
                                            - (lam - 1) sinh(2 sqrt(c) r_k))

    Its representative is the point of the hyperplane nearest to the origin, ``exp_0(r_k a_k / |a_k|)``. Values are
    representatives in the tangent space (``log_0``), which are ``r_k a_k / |a_k|`` exactly. Since
    ``lam sqrt(c) x = sinh(2 sqrt(c) |v|) v / |v|`` and ``lam - 1 = cosh(2 sqrt(c) |v|)``, all logits are one matrix
    product and one asinh, and points of the ball are never computed.

    In training the value is the representative of a code drawn from ``softmax(logits)``, with the gradient of the
    Gumbel-softmax mixture; in eval it is that of the largest logit, with a straight-through gradient. There is no
    codebook loss. The code with the largest logit need not have the nearest representative, and encoding a
    representative may give another code: a representative lies on its own hyperplane, ``logit_k = 0``.

    Indices in training are those of eval (the largest logit), not the drawn ones. Training and eval cost O(N K); the
    backward pass keeps three N x K arrays for up to 67 million pairs, and beyond that recomputes blocks.
    :meth:`initialize_codebook` does nothing.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        curvature: c > 0; in the limit 0 the logits are ``4 (<a_k, v> - |a_k| r_k)``.
        temperature: Temperature of the mixture whose gradient is used, > 0.
        clip: Latents and representatives are kept within ``(1 - clip) / sqrt(c)`` of the ball's center.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> quantizer = HyperbolicQuantizer(4, 16)
        >>> quantized, indices, losses = quantizer(torch.randn(2, 5, 4))
        >>> quantized.shape, indices.shape, losses
        (torch.Size([2, 5, 4]), torch.Size([2, 5, 1]), {})

    References:
        Goswami et al., "HyperVQ: MLR-based Vector Quantization in Hyperbolic Space", TMLR 2025, arXiv 2403.13015;
        Shimizu et al., "Hyperbolic Neural Networks++", ICLR 2021, arXiv 2006.08210 (the logit). This form of the logit,
        the straight-through sample and the absence of a codebook loss are inferred. Curvature, temperature and the
        initial values (random directions, |a_k| = 4, r_k = 1/2) are our choices: with equal offsets the initial choice
        depends only on the direction and uses all codes; with representatives from N(0, Id / D) it uses only a few.
        Status: contrib.
    """

    exact = "eval"
    surrogate = None

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        curvature: float = 1.0,
        temperature: float | Schedule = 1.0,
        clip: float = 1e-3,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("codebook_size", codebook_size)):
            check_integer(name, value, hint="arguments are (dim, codebook_size)")
        self.dim, self.codebook_sizes = dim, (codebook_size,)
        self.curvature = check_number("curvature", curvature, inside=True)
        self.temperature = checked_temperature(temperature)
        self.clip = check_number("clip", clip, most=1, inside=True)
        self.directions = nn.Parameter(4 * F.normalize(torch.randn(codebook_size, dim), dim=1))
        self.offsets = nn.Parameter(torch.full((codebook_size,), 0.5))

    @property
    def radius(self) -> float:
        """Length in the tangent space at which vectors are clipped."""
        return math.atanh(1 - self.clip) / math.sqrt(self.curvature)

    def codes(self) -> Float[Tensor, "K D"]:
        """Representatives in the tangent space, ``r_k a_k / |a_k|``."""
        with torch.autocast(self.directions.device.type, enabled=False):
            offsets = at_least_float32(self.offsets).clamp(-self.radius, self.radius)
            return offsets[:, None] * F.normalize(at_least_float32(self.directions), dim=1)

    def logits(self, v: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """All N x K logits of tangent vectors, in the wider type of input and parameters."""
        with torch.autocast(v.device.type, enabled=False):
            return self._scores(self._points(at_least_float32(v)), self._planes())

    def _points(self, v: Tensor) -> Float[Tensor, "N F"]:
        """``(sinh(2s) v / |v|, -cosh(2s))`` with ``s = sqrt(c) |v|``, clipped."""
        root = math.sqrt(self.curvature)
        length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        double = 2 * root * length.clamp_max(self.radius)
        return torch.cat([torch.sinh(double) * (v / length.clamp_min(1e-12)), -torch.cosh(double)], 1)

    def _planes(self) -> tuple[Float[Tensor, "K F"], Float[Tensor, " K"]]:
        """``(cosh(2 sqrt(c) r) a / |a|, sinh(2 sqrt(c) r))`` and the factor ``2 |a| / sqrt(c)``."""
        root = math.sqrt(self.curvature)
        directions, offsets = at_least_float32(self.directions), at_least_float32(self.offsets)
        double = 2 * root * offsets.clamp(-self.radius, self.radius)[:, None]
        planes = torch.cat([torch.cosh(double) * F.normalize(directions, dim=1), torch.sinh(double)], 1)
        return planes, 2 / root * torch.linalg.vector_norm(directions, dim=1)

    def _scores(self, points: Tensor, planes: tuple[Tensor, Tensor]) -> Float[Tensor, "N K"]:
        table, scale = planes
        dtype = torch.promote_types(points.dtype, table.dtype)
        products = points.to(dtype) @ table.to(dtype).T
        return (products.asinh() if transforming() else _Asinh.apply(products)) * scale.to(dtype)

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """The representative of a drawn code in training, of the most probable one in eval."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            codes = self.codes()
            if self.training:
                points, planes = self._points(x.reshape(-1, self.dim)), self._planes()
                now = clamped_temperature(self.temperature)

                def block(rows: Tensor) -> tuple[Tensor, ...]:
                    scores = self._scores(rows, planes)
                    return relaxed_choice(scores, codes, now, hard=True), scores.argmax(1)

                rows, indices = over_blocks(block, [points], len(codes))
                value = rows.view(x.shape)
            else:
                indices = self.nearest(x, 1)
                value = F.embedding(indices.squeeze(-1), codes) + (x - x.detach())
            return QuantizerOutput(value, torch.where(valid, indices.view(valid.shape), -1).unsqueeze(-1), {})

    def lookup(self, indices: Int[Tensor, "*batch 1"]) -> Float[Tensor, "*batch D"]:
        """Representatives in the tangent space; zeros for -1."""
        return rows_or_zeros(indices, self.codes())

    @torch.no_grad()
    def nearest(self, y: Float[Tensor, "*batch D"], num_codes: int) -> Int[Tensor, "*batch n"]:
        """The codes of the largest logits, most probable first."""
        size = self.codebook_sizes[0]
        if not 1 <= num_codes <= size:
            raise ValueError(f"expected num_codes in 1 .. {size}, got {num_codes}; choose another number")
        with torch.autocast(y.device.type, enabled=False):
            planes = self._planes()

            def block(rows: Tensor) -> tuple[Tensor, ...]:
                scores = self._scores(rows, planes)
                return (scores.argmax(1, keepdim=True) if num_codes == 1 else ranked(scores, num_codes),)

            points = self._points(at_least_float32(y).reshape(-1, self.dim))
            found = block(points) if torch.compiler.is_exporting() else over_blocks(block, [points], size)
            return found[0].view(*y.shape[:-1], num_codes)

    def fold(self) -> HyperbolicQuantizer:
        """A frozen copy; it keeps the hyperplanes, which the logits need."""
        folded = HyperbolicQuantizer(self.dim, self.codebook_sizes[0], curvature=self.curvature, clip=self.clip)
        folded.directions = nn.Parameter(self.directions.detach().clone())
        folded.offsets = nn.Parameter(self.offsets.detach().clone())
        return folded.requires_grad_(False).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HyperbolicQuantizer:
        return super()._apply(keeping_precision(fn), recurse)


class _Asinh(torch.autograd.Function):
    """``asinh`` as ``sign(x) log(|x| + sqrt(1 + x^2))``, several times faster than PyTorch's on a CPU.

    Near zero its absolute error is a rounding error of 1, as is that of the logits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        size = (x * x).add_(1).sqrt_().add_(x.abs()).log_()
        if torch.compiler.is_exporting():  # not all formats have copysign
            return torch.where(x < 0, -size, size)
        return size.copysign_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (x * x).add_(1).rsqrt_().mul_(gradient)
