"""Stochastic quantization over several levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.distributed import joined_count, masked_mean
from gritvq.quantizers.base import Codebook, Quantizer, QuantizerOutput, Schedule, keeping_precision
from gritvq.quantizers.codebooks.rowwise import plain_table
from gritvq.quantizers.functional import at_least_float32, nearest_code, rows_or_zeros
from gritvq.quantizers.stochastic.gaussian import (
    checked_temperature,
    initial_log_variance,
    sample_codes,
)
from gritvq.quantizers.stochastic.relaxations import centered, gaussian_factors

__all__ = ["ResidualStochasticQuantizer"]


class ResidualStochasticQuantizer(Quantizer):
    """Residual stochastic quantization (RSQ-VAE): each level samples a code for the residual of the previous levels.

    ``r_1 = x``, ``z_l`` is a relaxed sample for ``r_l`` with variance ``v_l = exp(theta_l)``, ``r_{l+1} = r_l - z_l``
    without detaching, and the value is ``sum_l z_l``. Losses in nats per vector: ``l/entropy``, ``sum_k q_k log q_k``
    of each level, and one ``distance``, ``|x - sum_l z_l|^2 / (2 sum_l v_l)``. In eval each level takes the nearest
    code, and the first n index channels give a coarser value: ``decode(indices[..., :n])``. Train with
    :class:`gritvq.training.objectives.ElboObjective`. With one level it is :class:`StochasticQuantizer` without floor.

    Indices in training are those of eval. Training costs O(L N K): the backward pass keeps two N x K arrays per level
    for up to 67 million pairs, and beyond that recomputes blocks.

    Args:
        codebooks: One codebook per level; repeat an object to share it.
        temperature: Temperature of the relaxed samples, > 0.
        initial_variance: Initial ``v_l`` of all levels. 60 is from a published derivative of the code, for codes from
            N(0, Id); the original value is not known.

    Raises:
        ValueError: If there is no codebook, their dims differ, or a number is out of range.

    Example:
        >>> from gritvq import FreeCodebook
        >>> quantizer = ResidualStochasticQuantizer([FreeCodebook(4, 16) for _ in range(3)])
        >>> quantized, indices, losses = quantizer(torch.randn(2, 5, 4))
        >>> indices.shape, sorted(losses)
        (torch.Size([2, 5, 3]), ['0/entropy', '1/entropy', '2/entropy', 'distance'])
        >>> quantizer.decode(indices[..., :1]).shape
        torch.Size([2, 5, 4])

    References:
        Takida et al., "HQ-VAE: Hierarchical Discrete Representation Learning with Variational Bayes", TMLR 2024, arXiv
        2401.00365 (RSQ-VAE). The formulas follow a third party's public code with the authors' structure.
    """

    exact = "eval"
    objective = "arelbo"
    surrogate = None

    def __init__(
        self,
        codebooks: Sequence[Codebook],
        *,
        temperature: float | Schedule = 1.0,
        initial_variance: float = 60.0,
    ) -> None:
        super().__init__()
        dims = [book.dim for book in codebooks]
        if not dims or len(set(dims)) != 1:
            raise ValueError(f"expected at least one codebook, all of one dim, got dims {dims}; make them equal")
        self.codebooks = nn.ModuleList(codebooks)
        self.temperature = checked_temperature(temperature)
        self.log_variances = nn.Parameter(torch.full((len(dims),), initial_log_variance(initial_variance)))
        self.initial_variance = float(initial_variance)
        self.dim, self.codebook_sizes = dims[0], tuple(book.codebook_size for book in codebooks)

    def _books(self) -> list[Codebook]:
        return cast("list[Codebook]", list(self.codebooks))

    def codes(self) -> list[Tensor]:
        """Codes of every level; a shared codebook is materialized once."""
        books = self._books()
        made = {book: book.codes() for book in books}
        return [made[book] for book in books]

    def level_tables(self) -> list[Tensor]:
        """Same as :meth:`codes`."""
        return self.codes()

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Relaxed samples and their losses in training, nearest codes in eval."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            flat, tables = x.reshape(-1, self.dim), self.codes()
            value, indices = self._nearest_codes(flat, tables)
            losses: dict[str, Tensor] = {}
            if self.training:
                value, losses = self._sample(flat, tables, valid.reshape(-1))
            else:
                value = value + (flat - flat.detach())
            indices = torch.where(valid.unsqueeze(-1), indices.view(*valid.shape, len(tables)), -1)
            return QuantizerOutput(value.view(x.shape), indices, losses)

    def _nearest_codes(self, flat: Tensor, tables: list[Tensor]) -> tuple[Tensor, Tensor]:
        total = torch.zeros(flat.shape, device=flat.device)  # float32 as the codes are; wider if they are
        found = []
        for codes in tables:
            found.append(nearest_code(flat - total, codes))
            total = total + F.embedding(found[-1], codes)
        return total, torch.stack(found, dim=-1)

    def _sample(self, flat: Tensor, tables: list[Tensor], weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        variances = self.log_variances.clamp(-30, 30).exp()
        rest, losses, count = flat, {}, joined_count(weight)
        for level, codes in enumerate(tables):
            factors, table = gaussian_factors(*centered(rest, codes), variances[level])
            rows, entropy = sample_codes(factors, table, codes, self.temperature)
            losses[f"{level}/entropy"] = masked_mean(entropy, weight, count)
            rest = rest - rows
        losses["distance"] = masked_mean(0.5 * rest.square().sum(1) / variances.sum(), weight, count)
        return flat - rest, losses

    def lookup(self, indices: Int[Tensor, "*batch L"]) -> Float[Tensor, "*batch D"]:
        """Sum of the levels' codes."""
        total = torch.zeros(*indices.shape[:-1], self.dim, device=indices.device)
        for own, codes in zip(indices.split(1, dim=-1), self.codes(), strict=True):
            total = total + rows_or_zeros(own, codes)
        return total

    def encode(
        self,
        x: Float[Tensor, "*batch D"],
        mask: Bool[Tensor, "*batch"] | None = None,
        num_levels: int | None = None,
    ) -> Int[Tensor, "*batch L"]:
        """Indices of the first ``num_levels`` levels, or of all."""
        indices = super().encode(x, mask)
        if num_levels is not None and not 1 <= num_levels <= len(self.codebooks):
            raise ValueError(f"expected num_levels in 1 .. {len(self.codebooks)}, got {num_levels}; choose another one")
        return indices[..., :num_levels]

    def decode(self, indices: Int[Tensor, "*batch L"]) -> Float[Tensor, "*batch D"]:
        """Values of indices; with fewer channels than levels, sums of the first levels."""
        missing = len(self.codebooks) - (indices.shape[-1] if indices.ndim else 0)
        if missing > 0 and indices.ndim and indices.shape[-1]:
            indices = F.pad(indices, (0, missing), value=-1)
        return super().decode(indices)

    @torch.no_grad()
    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit each level's codebook to the residuals of the previous levels; variances are not changed."""
        self._check_input(x, None)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        rows = self._finite_rows(x)
        fitted: set[Codebook] = set()
        for book in self._books():
            if book not in fitted:
                book.fit(rows, "euclidean", generator)
                fitted.add(book)
            codes = book.codes()
            rows = rows - codes[nearest_code(rows, codes)]

    def fold(self) -> ResidualStochasticQuantizer:
        """The same levels over plain tables."""
        made = {book: plain_table(book.codes()) for book in self._books()}
        folded = ResidualStochasticQuantizer([made[book] for book in self._books()])
        folded.log_variances = nn.Parameter(self.log_variances.detach().clone())
        return folded.requires_grad_(False).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ResidualStochasticQuantizer:
        return super()._apply(keeping_precision(fn), recurse)
