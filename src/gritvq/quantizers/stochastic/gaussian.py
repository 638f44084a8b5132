"""Stochastic quantization with Gaussian or von Mises-Fisher posteriors over the codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import check_number
from gritvq.distributed import joined_count, masked_mean
from gritvq.quantizers.assignments import NearestAssignment
from gritvq.quantizers.base import Codebook, Quantizer, QuantizerOutput, Schedule, keeping_precision, scheduled
from gritvq.quantizers.codebooks.rowwise import plain_table
from gritvq.quantizers.functional import at_least_float32, nearest_code, nearest_codes, rows_or_zeros, to_unit_length
from gritvq.quantizers.stochastic.relaxations import (
    centered,
    gaussian_factors,
    negative_entropy,
    over_blocks,
    relaxed_choice,
)
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["StochasticQuantizer"]

_LIMIT = 30.0  # of log variances, so that neither a variance nor its inverse overflows float32


class StochasticQuantizer(Quantizer):
    """Stochastic quantization (SQ-VAE): a relaxed random code in training, the nearest code in eval.

    ``q_k = softmax_k(-sum_d (z_d - c_kd)^2 / (2 v_d))``; training returns ``sum_k y_k c_k`` with the Gumbel-softmax
    sample y of q, differentiable in latents and codes (no straight-through). As the learned variance v decreases, the
    choice becomes hard. Losses in nats per vector: ``entropy``, ``sum_k q_k log q_k`` (without the constant log K), and
    ``distance``, ``sum_d (z_d - value_d)^2 / (2 v_d)``. They are relative to a log-likelihood summed over pixels, so
    train with :class:`gritvq.training.objectives.ElboObjective`.

    ``variance`` selects v, with a learned scalar theta and log variances ``l`` from additional input channels:

    - ``"scalar"``: ``floor + exp(theta)``, input D channels;
    - ``"image"``: ``floor + exp(mean l) + exp(theta)``, input D + 1; the mean is over the positions of a sample (index
      of the first axis), and for an input (N, D + 1) each row is a sample;
    - ``"position"``: ``floor + exp(l) + exp(theta)``, input D + 1;
    - ``"channel"``: the same for every component, input 2 D.

    ``distribution="vmf"`` compares directions (von Mises-Fisher): latents and codes have unit length, ``q =
    softmax_k(kappa <z, c_k>)`` with ``kappa = floor + exp(theta)``, and ``distance`` is ``kappa <z, z - value>``.

    Indices in training are those of eval: the most probable code, not the sampled one. In eval the gradient of the
    value is straight-through. Training costs O(N K): the backward pass keeps two N x K arrays for up to 67 million
    pairs, and beyond that recomputes blocks.

    Args:
        codebook: The codebook.
        variance: Kind of variance.
        distribution: ``"gaussian"`` or ``"vmf"``; the latter has a scalar concentration only.
        temperature: Temperature of the relaxed sample, > 0. Published: ``exp(-1e-5 step)``.
        initial_variance: Initial ``exp(theta)``; for vMF that of the concentration. Published: 20 (CIFAR-10, CelebA)
            and 10 (MNIST) with codes from N(0, Id), whose squared length is D.
        floor: Constant added to it. None means the released values: 1 for ``"scalar"`` and vMF, 0 for the others.

    Raises:
        ValueError: If a number is out of range, or vMF is combined with another variance than the scalar one.

    Example:
        >>> from gritvq import FreeCodebook
        >>> quantizer = StochasticQuantizer(FreeCodebook(4, 16))
        >>> quantized, indices, losses = quantizer(torch.randn(2, 5, 4))
        >>> quantized.shape, indices.shape, sorted(losses)
        (torch.Size([2, 5, 4]), torch.Size([2, 5, 1]), ['distance', 'entropy'])
        >>> StochasticQuantizer(FreeCodebook(4, 16), variance="channel").input_dim
        8

    References:
        Takida et al., "SQ-VAE: Variational Bayes on Discrete Representation with Self-annealed Stochastic
        Quantization", ICML 2022, arXiv 2205.07547; formulas and floors are those of the released code (sony/sqvae).
        Deviations: log variances are clamped to [-30, 30]; sampled evaluation is not supported.
    """

    exact = "eval"
    objective = "arelbo"
    surrogate = None

    def __init__(
        self,
        codebook: Codebook,
        *,
        variance: Literal["scalar", "image", "position", "channel"] = "scalar",
        distribution: Literal["gaussian", "vmf"] = "gaussian",
        temperature: float | Schedule = 1.0,
        initial_variance: float = 20.0,
        floor: float | None = None,
    ) -> None:
        super().__init__()
        if variance not in ("scalar", "image", "position", "channel"):
            raise ValueError(f"expected variance 'scalar', 'image', 'position' or 'channel', got {variance!r}; use one")
        if distribution not in ("gaussian", "vmf"):
            raise ValueError(f"expected distribution 'gaussian' or 'vmf', got {distribution!r}; choose one")
        if distribution == "vmf" and variance != "scalar":
            raise ValueError(f"expected variance 'scalar' with distribution 'vmf', got {variance!r}; leave it out")
        self.codebook, self.variance, self.distribution = codebook, variance, distribution
        self.temperature = checked_temperature(temperature)
        self.log_variance = nn.Parameter(torch.tensor(initial_log_variance(initial_variance)))
        self.initial_variance = float(initial_variance)
        self.floor = check_number("floor", float(variance == "scalar") if floor is None else floor)
        self.dim, self.codebook_sizes = codebook.dim, (codebook.codebook_size,)

    @property
    def input_dim(self) -> int:
        """D plus the number of channels of log variances."""
        return self.dim + {"scalar": 0, "image": 1, "position": 1, "channel": self.dim}[self.variance]

    def codes(self) -> Float[Tensor, "K D"]:
        """The codes (K, D), with unit length for vMF."""
        codes = self.codebook.codes()
        return to_unit_length(codes) if self.distribution == "vmf" else codes

    def quantize(self, x: Float[Tensor, "*batch C"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """A relaxed sample and its losses in training, the most probable code in eval."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            z, extra = x[..., : self.dim], x[..., self.dim :]
            z = to_unit_length(z) if self.distribution == "vmf" else z
            flat, codes = z.reshape(-1, self.dim), self.codes()
            variance = self._variances(extra, valid)
            indices = self._most_probable(flat, codes, variance)
            losses: dict[str, Tensor] = {}
            if self.training:
                rows, entropy = self._sample(flat, codes, variance)
                weight = valid.reshape(-1)
                count = joined_count(weight)
                losses["entropy"] = masked_mean(entropy, weight, count)
                losses["distance"] = masked_mean(self._distance(flat, rows, variance), weight, count)
                value = rows.view(z.shape)
            else:
                value = F.embedding(indices, codes).view(z.shape) + (z - z.detach())
            return QuantizerOutput(value, torch.where(valid, indices.view(valid.shape), -1).unsqueeze(-1), losses)

    def _variances(self, extra: Tensor, valid: Tensor) -> Tensor:
        """Variance, a scalar, (N, 1) or (N, D); for vMF the concentration."""
        own = self.floor + self.log_variance.clamp(-_LIMIT, _LIMIT).exp()
        if self.variance == "scalar":
            return own
        if self.variance == "image" and extra.ndim > 2:
            inner = tuple(range(1, extra.ndim - 1))
            total = torch.where(valid.unsqueeze(-1), extra, 0).sum(inner, keepdim=True)
            count = valid.unsqueeze(-1).sum(inner, keepdim=True).clamp_min(1)
            extra = (total / count).expand(extra.shape)
        return own + extra.reshape(-1, extra.shape[-1]).clamp(-_LIMIT, _LIMIT).exp()

    def _most_probable(self, flat: Tensor, codes: Tensor, variance: Tensor) -> Int[Tensor, " N"]:
        """The nearest code; only a variance per component changes the distance."""
        if self.variance != "channel":
            return nearest_code(flat, codes, self._metric)
        flat, codes, variance = flat.detach(), codes.detach(), variance.detach()
        relative = variance / variance.amin(1, keepdim=True)  # the same order without overflow
        factors, table = gaussian_factors(*centered(flat, codes), relative)
        return most_probable(factors, table)

    def _sample(self, flat: Tensor, codes: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        """Relaxed samples and negative entropies of all vectors."""
        if self.distribution == "vmf":
            factors, table = flat * variance, codes.to(flat.dtype)
        else:
            factors, table = gaussian_factors(*centered(flat, codes), variance)
        return sample_codes(factors, table, codes, self.temperature)

    def _distance(self, flat: Tensor, rows: Tensor, variance: Tensor) -> Float[Tensor, " N"]:
        if self.distribution == "vmf":
            return variance * (flat * (flat - rows)).sum(1)
        return 0.5 * ((flat - rows).square() / variance).sum(1)

    @property
    def _metric(self) -> Literal["euclidean", "cosine"]:
        return "cosine" if self.distribution == "vmf" else "euclidean"

    def lookup(self, indices: Int[Tensor, "*batch 1"]) -> Float[Tensor, "*batch D"]:
        """Rows of the table; zeros for -1."""
        return rows_or_zeros(indices, self.codes())

    def nearest(self, y: Float[Tensor, "*batch D"], num_codes: int) -> Int[Tensor, "*batch n"]:
        """The nearest codes, by direction for vMF; a variance per component is ignored."""
        found = nearest_codes(y.reshape(-1, self.dim), self.codes(), num_codes, self._metric)
        return found.view(*y.shape[:-1], num_codes)

    def level_tables(self) -> list[Tensor] | None:
        """The codes, if the input has no variances and the metric is euclidean; else None."""
        return [self.codes()] if self.variance == "scalar" and self._metric == "euclidean" else None

    @torch.no_grad()
    def initialize_codebook(self, x: Float[Tensor, "*batch C"], generator: torch.Generator | None = None) -> None:
        """Fit the codebook to the latents (:meth:`Codebook.fit`); variances are not changed."""
        self._check_input(x, None)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.codebook.fit(self._finite_rows(x)[:, : self.dim], self._metric, generator)

    def fold(self) -> Quantizer:
        """A plain :class:`gritvq.VectorQuantizer`; if the input has variances, this class over a plain table."""
        table = plain_table(self.codes())
        if self.variance == "scalar":
            return VectorQuantizer(table, NearestAssignment(self._metric), learning=[]).eval()
        folded = StochasticQuantizer(table, variance=self.variance, floor=self.floor)
        folded.log_variance = nn.Parameter(self.log_variance.detach().clone())
        return folded.requires_grad_(False).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StochasticQuantizer:
        return super()._apply(keeping_precision(fn), recurse)


# --- shared by the quantizers of this package -------------------------------------------------------------------------


def checked_temperature(temperature: float | Schedule) -> float | Schedule:
    """The temperature; raises a ValueError if it is not positive."""
    return temperature if isinstance(temperature, Schedule) else check_number("temperature", temperature, inside=True)


def initial_log_variance(initial_variance: float) -> float:
    """Logarithm of the initial value of a learned variance."""
    return math.log(check_number("initial_variance", initial_variance, inside=True))


def clamped_temperature(temperature: float | Schedule) -> float | Tensor:
    """The current temperature; schedules are clamped to at least 1e-6."""
    now = scheduled(temperature)
    return now.clamp_min(1e-6) if isinstance(now, Tensor) else now


def sample_codes(
    factors: Float[Tensor, "N F"],
    table: Float[Tensor, "K F"],
    codes: Float[Tensor, "K D"],
    temperature: float | Schedule,
) -> tuple[Tensor, ...]:
    """Relaxed samples (N, D) from ``softmax(factors @ table.T)``, and the negative entropies (N,)."""
    now = clamped_temperature(temperature)

    def block(rows: Tensor) -> tuple[Tensor, ...]:
        logits = rows @ table.T
        return relaxed_choice(logits, codes, now), negative_entropy(logits)

    return over_blocks(block, [factors], len(codes))


def most_probable(factors: Float[Tensor, "N F"], table: Float[Tensor, "K F"]) -> Int[Tensor, " N"]:
    """``argmax_k factors @ table.T`` in blocks, or in an exported program all rows at once."""
    if torch.compiler.is_exporting():
        return (factors @ table.T).argmax(1)
    return over_blocks(lambda rows: ((rows @ table.T).argmax(1),), [factors], len(table))[0]
