"""Several views of an item, such as its text and who bought it, for any tokenizer of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import check_integer, check_number
from gritvq.items.tokenizers.base import Embeddings, ItemTokenizer
from gritvq.quantizers.base import Quantizer

__all__ = ["MultiViewTokenizer", "joined_views"]

_MOST_VIEWS = 4  # of a program, which has a matrix for each of the 2^V - 2 patterns


def joined_views(*views: Embeddings) -> Float[Tensor, "n D"]:
    """The views of n items side by side, as :class:`MultiViewTokenizer` takes them.

    Args:
        views: One row per item in each, in the same order; NaN throughout where an item has no such view.

    Raises:
        ValueError: If there is no view, one is not a matrix, or they have different numbers of rows.

    Example:
        >>> joined_views(torch.zeros(3, 2), torch.ones(3, 1)).shape
        torch.Size([3, 3])
    """
    tensors = [torch.as_tensor(view) for view in views]
    shapes = [tuple(view.shape) for view in tensors]
    if not shapes or any(len(shape) != 2 for shape in shapes) or len({rows for rows, _ in shapes}) > 1:
        raise ValueError(
            f"expected views (n, D) of the same n items, got shapes {shapes}; give every item a row in each, NaN where "
            "it has no such view"
        )
    return torch.cat([view.float() for view in tensors], 1)


class MultiViewTokenizer(ItemTokenizer):
    """Makes indices of several views of an item by any tokenizer; a view that is missing follows from the others.

    An embedding is the concatenation of V views. A view that an item does not have is NaN everywhere; where no item has
    the last views, as new items that nobody bought, :meth:`encode` takes the first ones alone. With the mean ``m_v``
    and the root mean square length ``s_v`` of a view around it, the tokenizer reads the concatenation of
    ``sqrt(w_v) (x_v - m_v) / s_v``, so the weights are the views' shares of the squared error. Missing views are filled
    in by their conditional mean given the others, ``S_mo (S_oo + r I)^-1 y_o``, where S is the covariance of the rows
    that have all views, before weighting. An item without events gets indices of its text this way, and of what those
    who bought similar texts bought. :meth:`decode` returns all views.

    Args:
        tokenizer: The tokenizer.
        sizes: Size of each view, V entries.
        weights: Weight of each view, >= 0; all 1 if None.
        ridge: r above, in units of the mean variance of a component, > 0.

    Raises:
        ValueError: If sizes or weights are out of range; in :meth:`fit`, if the sizes do not add up to that of the
            embeddings, fewer than two rows have all views, or a view is constant; there and in :meth:`encode`, if a
            row has no view, or one that is neither finite nor NaN everywhere.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> text = torch.randn(100, 4, generator=generator)
        >>> buyers = text @ torch.randn(4, 6, generator=generator)
        >>> buyers[90:] = torch.nan
        >>> from gritvq.items import ResidualKMeans
        >>> both = joined_views(text, buyers)
        >>> MultiViewTokenizer(ResidualKMeans(8, 2), (4, 6)).fit(both).encode(both).shape
        torch.Size([100, 2])
    """

    mean: Tensor
    scale: Tensor
    covariance: Tensor

    def __init__(
        self,
        tokenizer: ItemTokenizer,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        *,
        ridge: float = 0.1,
    ) -> None:
        super().__init__()
        self.sizes = tuple(check_integer("each of sizes", size, hint="give the size of each view") for size in sizes)
        if not self.sizes:
            raise ValueError("expected the size of at least one view, got none; give them")
        weights = (1.0,) * len(self.sizes) if weights is None else weights
        self.weights = tuple(check_number("each of weights", weight) for weight in weights)
        if len(weights) != len(self.sizes) or not sum(weights) > 0:
            raise ValueError(
                f"expected one weight per view, {len(self.sizes)}, not all 0, got {list(weights)}; correct them"
            )
        self.ridge = check_number("ridge", ridge, inside=True, hint="0.1 is usual")
        self.tokenizer, self.codebook_sizes = tokenizer, tokenizer.codebook_sizes

    def _allocate(self, dim: int) -> None:
        if dim != sum(self.sizes):
            raise ValueError(
                f"expected embeddings of {sum(self.sizes)} components, views of {list(self.sizes)}, got {dim}; "
                "concatenate the views in this order"
            )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("covariance", torch.eye(dim))
        self.tokenizer._restore({"dim": dim})

    def _usable(self, rows: Float[Tensor, "m D"], good: Bool[Tensor, "m D"]) -> Bool[Tensor, " m"]:
        """Each view is finite or NaN everywhere, and at least one is finite; where views are left out, all are."""
        if rows.shape[1] != sum(self.sizes):
            return good.all(1)
        whole = torch.stack([part.all(1) for part in good.split(self.sizes, 1)], 1)
        missing = torch.stack([part.isnan().all(1) for part in rows.split(self.sizes, 1)], 1)
        return (whole | missing).all(1) & whole.any(1)

    def _chunks(self, x: Embeddings, batch_size: int) -> Iterator[Tensor]:
        """See the base class; views that are left out at the end are missing."""
        missing = self.dim - x.shape[1] if x.ndim == 2 and x.shape[1] in accumulate(self.sizes) else 0
        if not missing:
            return super()._chunks(x, batch_size)
        check_integer("batch_size", batch_size, hint="give a larger one")
        places = range(0, len(x), batch_size)
        return (F.pad(self._rows(x, n, min(n + batch_size, len(x))), (0, missing), value=torch.nan) for n in places)

    def _fit(self, x: Float[Tensor, "n D"], progress: bool) -> None:
        if x.shape[1] != sum(self.sizes):
            self._allocate(x.shape[1])  # raises
        parts = [part[~part.isnan().any(1)].double() for part in x.split(self.sizes, 1)]
        whole = x[~x.isnan().any(1)].double()
        if len(whole) < 2:
            raise ValueError(
                f"expected at least two items with all views, got {len(whole)}; give views that the same items have"
            )
        means = [part.mean(0) for part in parts]
        lengths = torch.stack(
            [(part - mean).square().sum(1).mean().sqrt() for part, mean in zip(parts, means, strict=True)]
        )
        if not bool((lengths > 0).all()):
            raise ValueError(
                f"expected views that differ between items, got root mean square lengths {lengths.tolist()}"
            )
        mean, scale = torch.cat(means), lengths.repeat_interleave(torch.tensor(self.sizes, device=x.device))
        rows = (whole - mean) / scale
        covariance = rows.T @ rows / len(rows)
        found = {"mean": mean.float(), "scale": scale.float(), "covariance": covariance.float()}
        before = {name: self._buffers.get(name) for name in found}
        try:
            for name, value in found.items():
                self.register_buffer(name, value)
            self.tokenizer.fit(self._joined(x), progress=progress)
        except BaseException:  # a failed fit changes nothing
            self._buffers.update(before)
            raise

    def _joined(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """What the tokenizer reads."""
        rows = (x.double() - self.mean.double()) / self.scale.double()
        there = torch.stack([~part.isnan().any(1) for part in rows.split(self.sizes, 1)], 1)
        owner = torch.arange(len(self.sizes), device=x.device).repeat_interleave(
            torch.tensor(self.sizes, device=x.device)
        )
        for pattern in there.unique(dim=0):
            if bool(pattern.all()):
                continue
            which = (there == pattern).all(1).nonzero()[:, 0]
            seen = pattern[owner]
            filled = rows[which]
            filled[:, ~seen] = filled[:, seen] @ self._regression(seen)
            rows[which] = filled
        weights = torch.tensor(self.weights, dtype=torch.float64, device=x.device).sqrt()
        return (rows * weights[owner]).float()

    def _regression(self, seen: Bool[Tensor, " D"]) -> Float[Tensor, "o m"]:
        """The matrix that maps the components there are to the conditional mean of the others."""
        covariance = self.covariance.double()
        own = covariance[seen][:, seen]
        own = own + self.ridge * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype, device=own.device)
        return torch.linalg.solve(own, covariance[seen][:, ~seen])

    @torch.no_grad()
    def perturbed_codes(
        self, x: Embeddings, scale: float = 0.1, num_draws: int = 2, seed: int = 0, batch_size: int = 2048
    ) -> Int[Tensor, "S n L"]:
        """See the base class; the noise is added to what the tokenizer reads, where all views have one unit."""
        joined = torch.cat([self._joined(rows) for rows in self._chunks(x, batch_size)])
        return self.tokenizer.perturbed_codes(joined, scale, num_draws, seed, batch_size)

    def _encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        encode = self.tokenizer._encoder()
        return lambda x: encode(self._joined(x))

    def _program_encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        """See the base class; a program has the matrix of every pattern of missing views."""
        count = len(self.sizes)
        if count > _MOST_VIEWS:
            raise ValueError(f"expected at most {_MOST_VIEWS} views in a program, got {count}; join some of them")
        encode = self.tokenizer._program_encoder()
        owner = torch.arange(count).repeat_interleave(torch.tensor(self.sizes))
        mean, scale = self.mean.double(), self.scale.double()
        weights = torch.tensor(self.weights, dtype=torch.float64).sqrt()[owner]
        patterns, matrices = [], []
        for number in range(1, 2**count - 1):
            pattern = torch.tensor([bool(number >> view & 1) for view in range(count)])
            seen, matrix = pattern[owner], torch.zeros(len(owner), len(owner), dtype=torch.float64)
            matrix[seen.nonzero(), (~seen).nonzero()[:, 0]] = self._regression(seen)
            patterns.append(pattern)
            matrices.append(matrix)

        def of_views(x: Tensor) -> Tensor:
            known = ~x.isnan()
            rows = torch.where(known, (x.double() - mean) / scale, 0.0)
            there, whole = torch.stack([part.all(1) for part in known.split(self.sizes, 1)], 1), rows
            for pattern, matrix in zip(patterns, matrices, strict=True):
                whole = whole + torch.where((there == pattern).all(1, keepdim=True), rows @ matrix, 0.0)
            return encode((whole * weights).float())

        return of_views

    def _decode_joined(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n d"]:
        return self.tokenizer._decode(codes)

    def _decode(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n D"]:
        rows = self.tokenizer._decode(codes)
        weights = [weight for weight, size in zip(self.weights, self.sizes, strict=True) for _ in range(size)]
        shares = torch.tensor(weights, device=rows.device).sqrt()
        return torch.where(shares > 0, rows / shares, 0.0) * self.scale + self.mean

    def _searches(self, x: Float[Tensor, "n D"]) -> dict[str, tuple[Quantizer, Tensor]]:
        return self.tokenizer._searches(self._joined(x))

    def _last_level(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        return self.tokenizer._last_level(self._joined(x))
