"""Assignments that mix all codes: a softmax over distances, or a relaxed sample of one.

Both are a softmax of all N x K pairs. They run in blocks of rows, forward and backward, inside custom operators:
nothing of size N x K is kept, and a compiled graph neither unrolls the blocks nor depends on their number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.component import check_number
from gritvq.quantizers.assignments.operators import with_gradient
from gritvq.quantizers.base import Assignment, Schedule, scheduled
from gritvq.quantizers.functional import (
    Metric,
    at_least_float32,
    nearest_code,
    squared_distance,
    to_unit_length,
)

__all__ = ["SampledAssignment", "SoftAssignment"]

# Pairs of a block: 16 MB in float32. Some six arrays of that size exist at a time.
_BLOCK_PAIRS = 1 << 22
# Smallest temperature: below, float32 distances would overflow the softmax.
_COLDEST = 1e-6


class SoftAssignment(Assignment):
    """The mean of all codes, near ones counting most: ``q = sum_k softmax_k(-|x - c_k|^2 / temperature) c_k``.

    The index is always that of the nearest code. With ``harden`` the mean is for training only and eval takes the
    nearest code (``exact="eval"``): lower the temperature during training, or the decoder gets other values than it was
    trained on; the gradient in eval is straight-through. Without, ``q`` is the mean everywhere (``exact="never"``): do
    not store these indices, they do not reproduce the value.

    Costs O(N K D) time forward and backward; memory beyond inputs and output is that of some blocks of 4 million pairs.

    Args:
        temperature: > 0, in squared latent units (squared lengths of unit vectors for cosine), may be a schedule;
            values below 1e-6 are raised to 1e-6.
        metric: ``"euclidean"``, or ``"cosine"``: distances between unit vectors, ``|x/|x| - c/|c||^2 = 2 - 2 cos``.
            The mean is over the codes as they are.
        harden: Whether eval takes the nearest code.

    Raises:
        ValueError: If the temperature is not positive or the metric is unknown.

    Example:
        >>> codes = torch.tensor([[0.0], [1.0]])
        >>> assignment = SoftAssignment(0.5)
        >>> indices, q = assignment(torch.tensor([[0.5], [0.9]]), codes)
        >>> indices.tolist(), [round(v, 3) for v in q.flatten().tolist()]
        ([0, 1], [0.5, 0.832])
        >>> assignment.eval()(torch.tensor([[0.9]]), codes)[1].item()
        1.0

    References:
        Agustsson et al., "Soft-to-Hard Vector Quantization for End-to-End Learning Compressible Representations",
        NeurIPS 2017, arXiv 1704.00648 (sigma there is 1 / temperature here). Deviations: the paper anneals by a rule of
        its own; here by any :class:`~gritvq.Schedule`. The cosine form is ours.
    """

    differentiable = True

    def __init__(
        self, temperature: float | Schedule = 1.0, *, metric: Metric = "euclidean", harden: bool = True
    ) -> None:
        super().__init__()
        self.temperature = _check_positive("temperature", temperature)
        self.metric = _check_metric(metric)
        self.harden = self.takes_nearest = harden
        self.exact = "eval" if harden else "never"

    def forward(
        self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Nearest indices (N,) and the mean, or hard codes in eval (N, D)."""
        indices = nearest_code(x, codes, self.metric)
        if self.harden and not self.training:
            return indices, _hard(x, codes, indices)
        temperature = _positive(self.temperature, x)
        _, q = _mixture(x, codes, self.metric, 1 / temperature)
        return indices, q


class SampledAssignment(Assignment):
    """A random code, relaxed so that gradients flow (Gumbel-softmax); the nearest code in eval.

    In training ``y = softmax_k((logit_k + g_k) / temperature)`` with ``logit_k = -|x - c_k|^2 / scale`` and Gumbel
    noise g. The index is ``argmax_k y_k``, a sample of ``softmax(logits)`` at every temperature, and ``q = sum_k y_k
    c_k``. With ``straight_through`` the value is the sampled code itself, bitwise, under the gradient of that sum; then
    ``quantized`` is what the returned index decodes to in training too (``exact="always"`` instead of ``"eval"``). The
    index itself is drawn (``draws_indices``): the same vector gets another one in the next pass. In eval the gradient
    is straight-through.

    Noise comes from torch's global generator: one seed per pass, from which each block draws, and again in the backward
    pass. Costs O(N K D) time forward and backward; memory beyond inputs and output is that of some blocks of 4 million
    pairs.

    Args:
        temperature: > 0, of the relaxation: near 0 the sample is hard and its gradient large and rare. May be a
            schedule; values below 1e-6 count as that.
        scale: > 0, in squared latent units: spread of the samples around the nearest code. ``2 v`` makes the logits
            Gaussian log-densities of variance v. May be a schedule.
        straight_through: Whether the value in training is the sampled code.
        metric: ``"euclidean"``, or ``"cosine"`` for distances between unit vectors.

    Raises:
        ValueError: If temperature or scale are not positive or the metric is unknown.

    Example:
        >>> codes = torch.tensor([[0.0], [1.0]])
        >>> indices, q = SampledAssignment(straight_through=True)(torch.full((8, 1), 0.5), codes)
        >>> torch.equal(q, codes[indices]), SampledAssignment().exact
        (True, 'eval')

    References:
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017, arXiv 1611.01144; Maddison et al.,
        "The Concrete Distribution", ICLR 2017, arXiv 1611.00712. Distances as logits, and their scale, are our choice.
        Deviation: with ``straight_through`` the codes, too, get the gradient of the relaxed value, ``sum_n y_nk g_n``;
        straight-through on the one-hot sample would hand ``g_n`` to the sampled code alone.
    """

    differentiable = True
    draws_indices = True
    takes_nearest = True

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        scale: float | Schedule = 1.0,
        straight_through: bool = False,
        metric: Metric = "euclidean",
    ) -> None:
        super().__init__()
        self.temperature = _check_positive("temperature", temperature)
        self.scale = _check_positive("scale", scale)
        self.straight_through = straight_through
        self.metric = _check_metric(metric)
        self.exact = "always" if straight_through else "eval"

    def forward(
        self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Sampled indices (N,) and relaxed or sampled values (N, D); nearest codes in eval."""
        if not self.training:
            indices = nearest_code(x, codes, self.metric)
            return indices, _hard(x, codes, indices)
        seed = torch.randint(1 << 62, (), dtype=torch.int64, device="cpu")
        loudness = 1 / _positive(self.temperature, x)
        indices, q = _mixture(x, codes, self.metric, loudness / _positive(self.scale, x), loudness, seed)
        if self.straight_through:
            q = F.embedding(indices, codes.detach()) + (q - q.detach())  # the second term is 0, exactly
        return indices, q


def _check_positive(name: str, value: float | Schedule) -> float | Schedule:
    if isinstance(value, Schedule):
        return value
    return check_number(name, value, inside=True, hint="for hard codes use NearestAssignment")


def _check_metric(metric: Metric) -> Metric:
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"expected metric 'euclidean' or 'cosine', got {metric!r}; choose one of the two")
    return metric


def _hard(x: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
    """Rows of the table, bitwise, with the straight-through gradient to ``x``: what is added is 0, exactly."""
    return F.embedding(indices, codes) + (x - x.detach())


def _positive(value: float | Schedule, x: Tensor) -> Tensor:
    """The value now, as a scalar of at least float32 beside ``x``, away from 0."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.as_tensor(scheduled(value), dtype=dtype, device=x.device).detach().clamp_min(_COLDEST)


def _mixture(
    x: Tensor,
    codes: Tensor,
    metric: Metric,
    sharpness: Tensor,
    loudness: Tensor | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Index of the largest weight, and the weighted mean of the codes; differentiable in ``x`` and ``codes``."""
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(at_least_float32(x).dtype, at_least_float32(codes).dtype)
        x, values = x.to(dtype), codes.to(dtype)
        keys = values
        if metric == "cosine":
            x, keys = to_unit_length(x), to_unit_length(keys)
        loudness = torch.zeros_like(sharpness) if loudness is None else loudness
        if torch.compiler.is_exporting() and seed is None:  # an exported program carries plain operators only
            weights = torch.softmax(-squared_distance(x, keys) * sharpness, dim=1)
            return weights.argmax(1), weights @ values
        q, indices = _mixed(x, keys, values, sharpness, loudness, seed)
        return indices, q


class _Weights:
    """``softmax_k(-sharpness |x - key_k|^2 + loudness g_k)``, block after block in a fixed order."""

    def __init__(self, keys: Tensor, sharpness: Tensor, loudness: Tensor, seed: Tensor | None) -> None:
        self.keys, self.sharpness, self.loudness = keys, sharpness, loudness
        self.generator = None if seed is None else torch.Generator(keys.device).manual_seed(int(seed))
        self.rows = max(1, _BLOCK_PAIRS // len(keys))

    def __call__(self, x: Tensor) -> Tensor:
        scores = squared_distance(x, self.keys).mul_(-self.sharpness)
        if self.generator is not None:
            noise = torch.rand(scores.shape, dtype=scores.dtype, device=scores.device, generator=self.generator)
            scores.add_(noise.log_().neg_().log_().mul_(-self.loudness))
        return scores.softmax(1)


@torch.library.custom_op("gritvq::mixture", mutates_args=())
def _mixture_op(
    x: Tensor, keys: Tensor, values: Tensor, sharpness: Tensor, loudness: Tensor, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        weights_of = _Weights(keys, sharpness, loudness, seed)
        q = torch.empty(len(x), values.shape[1], dtype=x.dtype, device=x.device)
        indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
        for start in range(0, len(x), weights_of.rows):
            block = slice(start, start + weights_of.rows)
            weights = weights_of(x[block])
            q[block] = weights @ values
            indices[block] = weights.argmax(1)
        return q, indices


@_mixture_op.register_fake
def _(
    x: Tensor, keys: Tensor, values: Tensor, sharpness: Tensor, loudness: Tensor, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], values.shape[1]), x.new_empty(x.shape[0], dtype=torch.int64)


@torch.library.custom_op("gritvq::mixture_backward", mutates_args=())
def _mixture_backward(
    grad: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    sharpness: Tensor,
    loudness: Tensor,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        weights_of = _Weights(keys, sharpness, loudness, seed)
        of_x, of_keys, of_values = torch.empty_like(x), torch.zeros_like(keys), torch.zeros_like(values)
        totals = keys.new_zeros(len(keys), 1)
        for start in range(0, len(x), weights_of.rows):
            block = slice(start, start + weights_of.rows)
            weights, g = weights_of(x[block]), grad[block]
            of_values.addmm_(weights.T, g)
            slope = g @ values.T  # from here on: the gradient of the scores
            slope = slope.sub_((slope * weights).sum(1, keepdim=True)).mul_(weights)
            of_x[block] = slope @ keys - slope.sum(1, keepdim=True) * x[block]
            of_keys.addmm_(slope.T, x[block])
            totals += slope.sum(0).unsqueeze(1)
        factor = 2 * sharpness
        return of_x.mul_(factor), of_keys.sub_(totals * keys).mul_(factor), of_values


@_mixture_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    sharpness: Tensor,
    loudness: Tensor,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(keys), torch.empty_like(values)


_mixed = with_gradient("mixture", _mixture_op, lambda inputs, output: (inputs, ()))
