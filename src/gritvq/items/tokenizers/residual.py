"""Residual k-means: the baseline that every trained tokenizer of items has to beat."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.items.tokenizers.base import ItemTokenizer, tracked
from gritvq.items.tokenizers.kmeans import balanced_kmeans, kmeans, plus_plus
from gritvq.items.tokenizers.search import CodeTable, lengths
from gritvq.quantizers.functional import code_counts, code_sums

__all__ = ["ResidualKMeans"]

_NOTHING_LEFT = 1e-5  # of the length before: what rounding leaves of a row that is its own code


class ResidualKMeans(ItemTokenizer):
    """Residual k-means (RQ-k-means): every level clusters what the levels before left over.

    ``r_1 = x``, ``k_l = argmin_k |r_l - c_lk|``, ``r_{l+1} = r_l - c_{l,k_l}``; decoded as ``sum_l c_{l,k_l}``. Each
    level is k-means++ with greedy trials and Lloyd's steps in float32; the same seed gives the same codes.

    With ``normalize_residuals`` every residual is scaled to length 1 before its level looks at it, which keeps the
    later levels' codes evenly used. The lengths are not part of the codes, so the sum of the centroids says nothing
    about x. Decoding then uses a second table: ``v_lk``, the mean over the training rows with code k at level l of what
    ``x`` lacks after the values of the levels before. ``sum_l v_{l,k_l}`` is an approximation of x in the original
    scale, each level the best constant given the ones before; rows with another length than their cluster's mean are
    off by that. A code that no training row has adds zeros. A residual below 1e-5 of the length before counts as zero
    and stays zero, as the direction of rounding errors means nothing.

    With ``balanced`` the clusters of each level hold about equally many training rows: each code has a price, and a row
    takes ``argmin_k |r - c_k|^2 / 2 + p_k`` (:func:`~gritvq.items.tokenizers.kmeans.balanced_kmeans`). New items
    follow the same prices.

    Equal rows get equal codes. Where a later level has fewer different residuals than codes, the surplus codes are
    never used.

    Args:
        codebook_size: Number of codes K of each level.
        num_levels: Number of levels L.
        normalize_residuals: Scale residuals to length 1.
        balanced: Clusters of about equal size.
        iterations: Lloyd steps of a level at most; it ends where no row changes its code.
        seed: Of the starts.

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
        2507.22224; their decoding of normalized residuals is not described, ours is above.
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
        for name, value in (("codebook_size", codebook_size), ("num_levels", num_levels), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"expected {name} >= 1, got {value}")
        self.codebook_sizes = (codebook_size,) * num_levels
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
                "take a smaller codebook, and see why the rows are equal"
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
        """What a level leaves over, and its codes."""
        indices = table.nearest(self._searched(rest))
        return rest - table.codes[indices, : rest.shape[1]], indices

    def _searched(self, rest: Tensor) -> Tensor:
        return F.pad(rest, (0, 1)) if self.balanced else rest

    def _encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        tables = [CodeTable(table) for table in self.tables]

        def encode(x: Tensor) -> Tensor:
            found = []
            for level, table in enumerate(tables):
                x, indices = self._step(self._scaled(x, level), table)
                found.append(indices)
            return torch.stack(found, 1)

        return encode

    def _decode(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n D"]:
        tables = self.tables[..., : self.dim] if self.values is None else self.values
        total = torch.zeros(len(codes), self.dim, device=codes.device)
        for own, table in zip(codes.unbind(1), tables, strict=True):
            total = total + table[own]
        return total

    def _last_level(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        for level, table in enumerate(self.tables[:-1]):
            x, _ = self._step(self._scaled(x, level), CodeTable(table))
        return self._searched(self._scaled(x, len(self.tables) - 1)), self.tables[-1]
