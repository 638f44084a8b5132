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
    Gumbel-softmax sample y of q, normal noise n and ``s_k^2 = |z - c_k|^2 / (2 s^2 D)``: no noise where the latent is
    on its code. Losses, per vector: ``latent``, ``latent_weight * sum_k q_k |z - c_k|^2``, and ``balance``,
    ``balance_weight`` times a Kullback-Leibler divergence from the uniform distribution, in nats: of the mean of q over
    the batch of all processes (``regularizer="batch"``), which asks for balanced use and leaves single vectors free to
    decide, or of every vector's q (``"sample"``), which does not. Train with
    :class:`gritvq.training.objectives.ElboObjective`, ``likelihood="fixed"``.

    The sum of these with the reconstruction error is the method's ALBO. It is an objective, not a guaranteed bound of
    the likelihood: it leaves out the entropy of the latent's posterior, which may be negative.

    The indices are those of eval in training too; the batch estimate makes the batch size matter. In eval the gradient
    of the value is straight-through. Costs O(N K) in training: three arrays N x K are kept for the backward pass, up to
    67 million pairs, beyond which blocks are recomputed.

    Args:
        codebook: The means of the mixture.
        variance: ``s^2``, fixed, in squared latent units.
        temperature: Of the relaxed sample, > 0; annealed in the method.
        latent_weight: The method's gamma.
        balance_weight: The method's beta: 1 there, larger in its "+ Entropy" form.
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
        2410.10180. A reconstruction from public descriptions, as no code is known: the formula of s_k^2 is theirs (eq.
        14 and 15); q as a function of the plain distance, the expectation in the latent term and its weighting, and one
        noise whose variance is the mean of s_k^2 under y, are our choices. Status: contrib.
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
            raise ValueError(f"expected regularizer 'batch', 'sample' or None, got {regularizer!r}")
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
            """Mixtures (n, D + 1), expected logits (n,), and what the regularizer needs."""
            logits = rows @ table.T
            mixed = relaxed_choice(logits, values, now)
            q = logits.softmax(1)
            expected = (q * logits).sum(1)
            if self.regularizer == "batch":
                return mixed, expected, own[None] @ q
            return mixed, expected, negative_entropy(logits)

        mixed, expected, extra = over_blocks(block, [factors, weight.to(z.dtype)], len(codes))
        mean, length = mixed[:, :-1], mixed[:, -1:]
        # |z - c|^2 averaged under y, written so that a choice without doubt on the latent itself gives 0
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
        """Fit the codebook to the data (:meth:`Codebook.fit`); the method starts from k-means."""
        self._check_input(x, None)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.codebook.fit(self._finite_rows(x), "euclidean", generator)

    def fold(self) -> VectorQuantizer:
        """A plain quantizer over the materialized codes."""
        return VectorQuantizer(plain_table(self.codebook.codes()), learning=[]).eval()
