"""Quantization with a mixture of Gaussians as the prior."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import check_number
from gritvq.distributed import all_reduce_sum, joined_count, masked_mean
from gritvq.quantizers.base import Codebook, Quantizer, QuantizerOutput, Schedule
from gritvq.quantizers.codebooks.rowwise import plain_table
from gritvq.quantizers.functional import at_least_float32, nearest_code, nearest_codes, rows_or_zeros
from gritvq.quantizers.stochastic.gaussian import checked_temperature, clamped_temperature
from gritvq.quantizers.stochastic.relaxations import (
    centered,
    gaussian_factors,
    negative_entropy,
    over_blocks,
    relaxed_choice,
)
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["GaussianMixtureQuantizer"]


class GaussianMixtureQuantizer(Quantizer):
    """Gaussian-mixture quantization (GM-VQ): a noisy mixture of codes in training, the nearest code in eval.

    ``q_k = softmax_k(-|z - c_k|^2 / (2 s^2))``. Training returns ``sum_k y_k c_k + sqrt(sum_k y_k s_k^2) n`` with the
    Gumbel-softmax sample y of q, normal noise n and ``s_k^2 = |z - c_k|^2 / (2 s^2 D)``, which is zero for a latent
    that equals its code. Losses per vector: ``latent``, ``latent_weight * sum_k q_k |z - c_k|^2``, and ``balance``,
    ``balance_weight`` times a Kullback-Leibler divergence from the uniform distribution in nats. The divergence is that
    of the mean of q over the batch of all processes (``regularizer="batch"``), which balances usage without restricting
    single vectors, or of each vector's q (``"sample"``). Train with
    :class:`gritvq.training.objectives.ElboObjective`, ``likelihood="fixed"``.

    The sum of these losses and the reconstruction error is the method's ALBO. It is not a guaranteed bound of the
    likelihood: it omits the entropy of the latent's posterior, which may be negative.

    Indices in training are those of eval; the result depends on the batch size. In eval the gradient of the value is
    straight-through. Training costs O(N K): the backward pass keeps three N x K arrays for up to 67 million pairs, and
    beyond that recomputes blocks.

    Args:
        codebook: The means of the mixture.
        variance: ``s^2``, fixed, in squared latent units.
        temperature: Temperature of the relaxed sample, > 0; the method anneals it.
        latent_weight: The method's gamma.
        balance_weight: The method's beta: 1, or larger in its "+ Entropy" variant.
        regularizer: ``"batch"``, ``"sample"`` (the usual ELBO, for comparison) or None.

    Raises:
        ValueError: If a number is out of range or the regularizer is unknown.

    Example:
        >>> from gritvq import FreeCodebook
        >>> quantizer = GaussianMixtureQuantizer(FreeCodebook(4, 16))
        >>> quantized, indices, losses = quantizer(torch.randn(2, 5, 4))
        >>> quantized.shape, indices.shape, sorted(losses)
        (torch.Size([2, 5, 4]), torch.Size([2, 5, 1]), ['balance', 'latent'])

    References:
        Yan et al., "Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior", 2024, arXiv
        2410.10180. No public code is known; this follows the paper's description. s_k^2 is theirs (eq. 14 and 15); q as
        a function of the plain distance, the expectation in the latent term and its weight, and a single noise whose
        variance is the mean of s_k^2 under y, are our choices. Status: contrib.
    """

    exact = "eval"
    objective = "albo"
    surrogate = None

    def __init__(
        self,
        codebook: Codebook,
        *,
        variance: float = 0.1,
        temperature: float | Schedule = 1.0,
        latent_weight: float = 0.5,
        balance_weight: float = 1.0,
        regularizer: Literal["batch", "sample"] | None = "batch",
    ) -> None:
        super().__init__()
        if regularizer not in ("batch", "sample", None):
            raise ValueError(f"expected regularizer 'batch', 'sample' or None, got {regularizer!r}; choose one")
        self.codebook, self.temperature = codebook, checked_temperature(temperature)
        self.variance, self.regularizer = check_number("variance", variance, inside=True), regularizer
        self.latent_weight = check_number("latent_weight", latent_weight)
        self.balance_weight = check_number("balance_weight", balance_weight)
        self.dim, self.codebook_sizes = codebook.dim, (codebook.codebook_size,)

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """A noisy relaxed sample and its losses in training, the nearest code in eval."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            flat, codes = x.reshape(-1, self.dim), self.codebook.codes()
            indices = nearest_code(flat, codes)
            losses: dict[str, Tensor] = {}
            if self.training:
                rows, losses = self._sample(flat, codes, valid.reshape(-1))
                value = rows.view(x.shape)
            else:
                value = F.embedding(indices, codes).view(x.shape) + (x - x.detach())
            return QuantizerOutput(value, torch.where(valid, indices.view(valid.shape), -1).unsqueeze(-1), losses)

    def _sample(self, flat: Tensor, codes: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z, means = centered(flat, codes)
        means = means.to(z.dtype)
        lengths = means.square().sum(1, keepdim=True)
        values = torch.cat([means, lengths], 1)
        factors, table = gaussian_factors(z, means, z.new_tensor(self.variance))
        now = clamped_temperature(self.temperature)

        def block(rows: Tensor, own: Tensor) -> tuple[Tensor, ...]:
            """Mixtures (n, D + 1), expected logits (n,), and the regularizer's statistics."""
            logits = rows @ table.T
            mixed = relaxed_choice(logits, values, now)
            q = logits.softmax(1)
            expected = (q * logits).sum(1)
            if self.regularizer == "batch":
                return mixed, expected, own[None] @ q
            return mixed, expected, negative_entropy(logits)

        mixed, expected, extra = over_blocks(block, [factors, weight.to(z.dtype)], len(codes))
        mean, length = mixed[:, :-1], mixed[:, -1:]
        # |z - c|^2 averaged under y; exactly 0 if y chooses a code that equals the latent
        gap = (z - mean).square().sum(1, keepdim=True) + (length - mean.square().sum(1, keepdim=True)).clamp_min(0)
        spread = gap / (2 * self.variance * self.dim)
        deviation = torch.where(spread > 0, torch.where(spread > 0, spread, 1.0).sqrt(), 0.0)
        rows = flat - (z - mean) + deviation * torch.randn_like(mean)
        squared = z.square().sum(1) - 2 * self.variance * expected  # sum_k q_k |z - c_k|^2
        count = joined_count(weight)
        losses = {"latent": self.latent_weight * masked_mean(squared, weight, count)}
        if self.regularizer is not None:
            losses["balance"] = self.balance_weight * self._divergence(extra, weight, count, len(codes))
        return rows, losses

    def _divergence(self, extra: Tensor, weight: Tensor, count: Tensor, codebook_size: int) -> Tensor:
        """KL from the uniform distribution, of the batch's mean or of single vectors."""
        if self.regularizer == "sample":
            return masked_mean(extra + math.log(codebook_size), weight, count)
        mean = all_reduce_sum(extra.sum(0)) / count.clamp_min(1)
        return (mean * (mean * codebook_size + 1e-20).log()).sum()

    def lookup(self, indices: Int[Tensor, "*batch 1"]) -> Float[Tensor, "*batch D"]:
        """Rows of the table; zeros for -1."""
        return rows_or_zeros(indices, self.codebook.codes())

    def nearest(self, y: Float[Tensor, "*batch D"], num_codes: int) -> Int[Tensor, "*batch n"]:
        """The nearest codes."""
        found = nearest_codes(y.reshape(-1, self.dim), self.codebook.codes(), num_codes)
        return found.view(*y.shape[:-1], num_codes)

    def level_tables(self) -> list[Tensor]:
        """The codes."""
        return [self.codebook.codes()]

    @torch.no_grad()
    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit the codebook to the data (:meth:`Codebook.fit`), as the method does by k-means."""
        self._check_input(x, None)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.codebook.fit(self._finite_rows(x), "euclidean", generator)

    def fold(self) -> VectorQuantizer:
        """A plain quantizer over the materialized codes."""
        return VectorQuantizer(plain_table(self.codebook.codes()), learning=[]).eval()
