"""Residual k-means, the baseline for trained item tokenizers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.component import check_integer
from gritvq.items.tokenizers.base import ItemTokenizer, equal_sizes, tracked
from gritvq.items.tokenizers.kmeans import balanced_kmeans, kmeans, plus_plus
from gritvq.items.tokenizers.search import CodeTable, lengths, quantizer_of
from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.functional import code_counts, code_sums

__all__ = ["ResidualKMeans"]

_NOTHING_LEFT = 1e-5  # residuals shorter than this share of the previous one are rounding errors


class ResidualKMeans(ItemTokenizer):
    """Residual k-means (RQ-k-means): each level clusters the residuals of the previous levels.

    ``r_1 = x``, ``k_l = argmin_k |r_l - c_lk|``, ``r_{l+1} = r_l - c_{l,k_l}``; decoded as ``sum_l c_{l,k_l}``. Each
    level is greedy k-means++ followed by Lloyd's algorithm in float32. The same seed gives the same codes.

    With ``normalize_residuals`` residuals are scaled to length 1 before each level, which makes the usage of later
    levels more even. As their lengths are lost, decoding uses a second table: ``v_lk`` is the mean of
    ``x - sum_{m<l} v_{m,k_m}`` over the training rows with index k at level l (zero if there are none), and
    ``sum_l v_{l,k_l}`` approximates x in its original scale. A residual shorter than 1e-5 of the previous one is a
    rounding error and is set to zero.

    With ``balanced`` the clusters of each level have about equal sizes: each code has a price, and a row takes
    ``argmin_k |r - c_k|^2 / 2 + p_k`` (:func:`~gritvq.items.tokenizers.kmeans.balanced_kmeans`), as do new items.

    Equal rows get equal indices. If a later level has fewer distinct residuals than codes, the other codes are not
    used.

    Args:
        codebook_size: Number of codes K of each level.
        num_levels: Number of levels L.
        normalize_residuals: Whether to scale residuals to length 1.
        balanced: Whether to make clusters of about equal size.
        iterations: Largest number of Lloyd steps per level; it stops once no row changes its code.
        seed: Random seed.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> tokenizer = ResidualKMeans(16, 3).fit(x)
        >>> codes = tokenizer.encode(x)
        >>> codes.shape, tokenizer.decode(codes).shape
        (torch.Size([100, 3]), torch.Size([100, 8]))

    References:
        Residual vector quantization: Chen et al., "Approximate Nearest Neighbor Search by Residual Vector
        Quantization", Sensors 2010. As semantic ids, with normalized residuals: Ju et al., "GRID", 2025, arXiv
        2507.22224, which does not describe how to decode normalized residuals.
    """

    def __init__(
        self,
        codebook_size: int = 256,
        num_levels: int = 3,
        *,
        normalize_residuals: bool = False,
        balanced: bool = False,
        iterations: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integer("iterations", iterations, hint="give a larger iterations")
        self.codebook_sizes = equal_sizes(codebook_size, "num_levels", num_levels)
        self.normalize_residuals, self.balanced = normalize_residuals, balanced
        self.iterations, self.seed = iterations, seed

    def _allocate(self, dim: int) -> None:
        num_levels, size = len(self.codebook_sizes), self.codebook_sizes[0]
        # a price is one more coordinate of a code
        self.register_buffer("tables", torch.zeros(num_levels, size, dim + self.balanced))
        self.register_buffer("values", torch.zeros(num_levels, size, dim) if self.normalize_residuals else None)

    def _fit(self, x: Float[Tensor, "n D"], progress: bool) -> None:
        size, generator = self.codebook_sizes[0], torch.Generator().manual_seed(self.seed)
        start = plus_plus(x, size, generator)
        different = len(torch.unique(start, dim=0))
        if different < size:
            raise ValueError(
                f"expected at least {size} different embeddings for {size} codes, got {different} among {len(x)} rows; "
                "use a smaller codebook, and check why rows are equal"
            )
        tables, values = [], []
        rest, missing = x, x
        for level in tracked(range(len(self.codebook_sizes)), "residual k-means", progress):
            rest = self._scaled(rest, level)
            if self.balanced:
                clusters = balanced_kmeans(rest, size, generator, iterations=self.iterations)
            else:
                clusters = kmeans(
                    rest, size, generator, iterations=self.iterations, start=start if level == 0 else None
                )
            table = F.pad(clusters.codes, (0, 1)) if self.balanced and clusters.prices is None else clusters.table()
            tables.append(table)
            rest, indices = self._step(rest, CodeTable(table))
            if self.normalize_residuals:
                counts = code_counts(indices, size)[:, None]
                values.append(code_sums(missing, indices, size) / counts.clamp_min(1))
                missing = missing - values[-1][indices]
        self._allocate(x.shape[1])
        self.tables = torch.stack(tables)
        if values:
            self.values = torch.stack(values)

    def _scaled(self, rest: Tensor, level: int) -> Tensor:
        if not self.normalize_residuals:
            return rest
        length = lengths(rest)
        return torch.where(length > (_NOTHING_LEFT if level else 0), rest / length.clamp_min(1e-30), 0)

    def _step(self, rest: Tensor, table: CodeTable) -> tuple[Tensor, Tensor]:
        """Residual of a level, and its indices."""
        indices = table.nearest(self._searched(rest))
        return rest - table.codes[indices, : rest.shape[1]], indices

    def _searched(self, rest: Tensor) -> Tensor:
        return F.pad(rest, (0, 1)) if self.balanced else rest

    def _encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        tables = [CodeTable(table.clone()) for table in self.tables]  # a program saves each alone

        def encode(x: Tensor) -> Tensor:
            found = []
            for level, table in enumerate(tables):
                x, indices = self._step(self._scaled(x, level), table)
                found.append(indices)
            return torch.stack(found, 1)

        return encode

    def _decode(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n D"]:
        tables = self.tables[..., : self.dim] if self.values is None else self.values
        total = torch.zeros(codes.shape[0], self.dim, device=codes.device)
        for own, table in zip(codes.unbind(1), tables, strict=True):
            total = total + table[own]
        return total

    def _searches(self, x: Float[Tensor, "n D"]) -> dict[str, tuple[Quantizer, Tensor]]:
        found: dict[str, tuple[Quantizer, Tensor]] = {}
        for level, table in enumerate(self.tables):
            x = self._scaled(x, level)
            found[f"level{level + 1}"] = quantizer_of(table[:, : x.shape[1]]), x  # prices left out
            x, _ = self._step(x, CodeTable(table))
        return found

    def _last_level(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        for level, table in enumerate(self.tables[:-1]):
            x, _ = self._step(self._scaled(x, level), CodeTable(table))
        return self._searched(self._scaled(x, len(self.tables) - 1)), self.tables[-1]
