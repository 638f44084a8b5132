"""Product quantization of embeddings by k-means, optionally after a learned rotation (OPQ)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.component import check_integer
from gritvq.items.tokenizers.base import ItemTokenizer, equal_sizes, tracked
from gritvq.items.tokenizers.kmeans import kmeans, plus_plus
from gritvq.items.tokenizers.search import CodeTable, quantizer_of
from gritvq.lazy import optional
from gritvq.quantizers.base import Quantizer

__all__ = ["ProductKMeans"]

_ROTATION_TOLERANCE = 5e-6  # of |x|: about twenty times the error of a float32 rotation


class ProductKMeans(ItemTokenizer):
    """Product quantization by k-means: the components are split into P parts, each with its own K codes.

    With ``rotate`` the embeddings are rotated first (optimized product quantization, OPQ), so that the parts have
    similar variance and little correlation: ``y = R x`` with an orthogonal matrix R learned by faiss. Indices are
    unordered: none is a refinement of another. Decoding concatenates the parts' codes and rotates them back.

    Args:
        codebook_size: Number of codes K of each part.
        num_parts: Number of parts P, a divisor of the embeddings' size.
        rotate: Whether to learn a rotation; needs faiss, the extra ``search``.
        iterations: Largest number of Lloyd steps per part.
        seed: Random seed.

    Raises:
        ValueError: If a number is out of range; in :meth:`fit`, if the size of the embeddings is not a multiple of
            ``num_parts`` or faiss is missing.

    Example:
        >>> x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> tokenizer = ProductKMeans(16, 2, rotate=False).fit(x)
        >>> tokenizer.decode(tokenizer.encode(x)).shape
        torch.Size([100, 8])

    References:
        Jegou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011; Ge et al., "Optimized Product
        Quantization", CVPR 2013. As unordered semantic ids: Hou et al., "Generating Long Semantic IDs in Parallel for
        Recommendation" (RPG), KDD 2025, arXiv 2506.05781.
    """

    def __init__(
        self,
        codebook_size: int = 256,
        num_parts: int = 4,
        *,
        rotate: bool = True,
        iterations: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integer("iterations", iterations, hint="give a larger iterations")
        self.codebook_sizes = equal_sizes(codebook_size, "num_parts", num_parts)
        self.rotate, self.iterations, self.seed = rotate, iterations, seed

    def _allocate(self, dim: int) -> None:
        num_parts, size = len(self.codebook_sizes), self.codebook_sizes[0]
        self.register_buffer("tables", torch.zeros(num_parts, size, dim // num_parts))
        self.register_buffer("rotation", torch.zeros(dim, dim) if self.rotate else None)

    def _fit(self, x: Float[Tensor, "n D"], progress: bool) -> None:
        num_parts, size = len(self.codebook_sizes), self.codebook_sizes[0]
        if x.shape[1] % num_parts:
            raise ValueError(
                f"expected embeddings whose size is a multiple of num_parts={num_parts}, got {x.shape[1]}; use another "
                "num_parts"
            )
        rotation = _rotation(x, num_parts, size, self.seed) if self.rotate else None
        generator = torch.Generator().manual_seed(self.seed)
        turned = x if rotation is None else x @ rotation.T
        tables = []
        for part in tracked(turned.chunk(num_parts, 1), "product k-means", progress):
            part = part.contiguous()
            start = plus_plus(part, size, generator)
            different = len(torch.unique(start, dim=0))
            if different < size:
                raise ValueError(
                    f"expected at least {size} different vectors in every part, got {different} among {len(x)} rows; "
                    "use a smaller codebook or fewer parts"
                )
            tables.append(kmeans(part, size, generator, iterations=self.iterations, start=start).codes)
        self._allocate(x.shape[1])
        self.tables = torch.stack(tables)
        if rotation is not None:
            self.rotation = rotation

    def _encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n P"]]:
        tables = [CodeTable(table.clone()) for table in self.tables]  # a program saves each alone

        def decided(x: Tensor) -> Tensor:
            parts = x.chunk(len(tables), 1)
            return torch.stack([table.nearest(part) for part, table in zip(parts, tables, strict=True)], 1)

        def rotated(x: Tensor) -> Tensor:
            if torch.compiler.is_exporting():
                return decided(x.double() @ self.rotation.double().T)
            length = x.norm(dim=1)
            parts = (x @ self.rotation.T).chunk(len(tables), 1)
            found = [
                table.nearest_and_doubt(part, _ROTATION_TOLERANCE, length)
                for part, table in zip(parts, tables, strict=True)
            ]
            codes = torch.stack([indices for indices, _ in found], 1)
            rows = torch.stack([doubt for _, doubt in found], 1).any(1).nonzero().squeeze(1)
            if len(rows):  # ties up to rounding are decided in float64
                codes[rows] = decided(x[rows].double() @ self.rotation.double().T)
            return codes

        return decided if self.rotation is None else rotated

    def _decode(self, codes: Int[Tensor, "n P"]) -> Float[Tensor, "n D"]:
        values = torch.cat([table[own] for own, table in zip(codes.unbind(1), self.tables, strict=True)], 1)
        return values if self.rotation is None else values @ self.rotation

    def _searches(self, x: Float[Tensor, "n D"]) -> dict[str, tuple[Quantizer, Tensor]]:
        turned = x if self.rotation is None else x @ self.rotation.T
        parts = enumerate(zip(self.tables, turned.chunk(len(self.tables), 1), strict=True), 1)
        return {f"part{number}": (quantizer_of(table), part) for number, (table, part) in parts}

    def _last_level(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        turned = x if self.rotation is None else x @ self.rotation.T
        return turned.chunk(len(self.tables), 1)[-1], self.tables[-1]


def _rotation(x: Tensor, num_parts: int, codebook_size: int, seed: int) -> Float[Tensor, "D D"]:
    """The rotation of optimized product quantization."""
    faiss = optional("faiss", "search", "to learn a rotation (rotate=False needs none)")
    size = x.shape[1]
    bits = min((codebook_size - 1).bit_length(), len(x).bit_length() - 1)  # faiss needs one row per centroid
    inner = faiss.ProductQuantizer(size, num_parts, max(1, bits))
    inner.cp.seed = seed
    inner.cp.min_points_per_centroid = 1
    learner = faiss.OPQMatrix(size, num_parts)
    learner.pq, learner.verbose = inner, False
    rows = x.repeat(-(-size // len(x)), 1)  # with fewer rows than components faiss writes beyond its memory
    learner.train(rows.cpu().numpy())
    return torch.from_numpy(faiss.vector_to_array(learner.A).reshape(size, size).copy()).to(x)
