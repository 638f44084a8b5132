"""What items are, as far as their codes say it: a vector for each code, whose sums are near the items' vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.component import check_integer, check_number
from gritvq.quantizers.canonical import canonical_eigh

__all__ = ["code_vectors"]

_STEPS = 60  # of conjugate gradients, at most


@torch.no_grad()
def code_vectors(
    codes: Int[Tensor, "n Q"],
    codebook_sizes: Sequence[int],
    vectors: Float[Tensor, "n D"],
    dim: int,
    *,
    ridge: float = 1.0,
) -> list[Float[Tensor, "K dim"]]:
    r"""A vector for each code, such that the sum over an item's codes is near the item's own vector.

    With x_i the vectors less their mean on their first ``dim`` principal axes, of length 1 each, the minimum over all e
    of ``sum_i |x_i - sum_q e_{q, c_iq}|^2 + ridge sum_qk |e_qk|^2``, by conjugate gradients. So inner products of sums
    are nearly cosines. Codes without items get zeros.

    Args:
        codes: Ids of the items.
        codebook_sizes: Number of codes of each channel.
        vectors: Vectors of the items: what the tokenizer of the ids decodes
            (:meth:`gritvq.items.ItemTokenizer.decode_joined`), or else their text embeddings. Of vectors that say more
            than the codes, codes learn the items by heart, and new items get less.
        dim: Size of the code vectors; those of smaller ``vectors`` are filled up with zeros.
        ridge: Items that each code is worth as evidence for zero, > 0.

    Returns:
        A matrix for each channel, float32.

    Raises:
        ValueError: If the numbers of items differ, a vector is not finite, or a number is out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> found = code_vectors(torch.tensor([[0], [1], [2], [3]]), (4,), x, 2, ridge=1e-6)
        >>> (found[0] @ found[0].T).round(decimals=3).abs().tolist()[0]
        [1.0, 1.0, 0.0, 0.0]
    """
    check_integer("dim", dim)
    check_number("ridge", ridge, inside=True, hint="1 is usual")
    if vectors.ndim != 2 or len(vectors) != len(codes) or not bool(vectors.isfinite().all()):
        raise ValueError(
            f"expected finite vectors ({len(codes)}, D), one for each item, got {tuple(vectors.shape)}; give a row for "
            "each"
        )
    x = vectors.double() - vectors.double().mean(0)
    x = x @ canonical_eigh(x.T @ x)[1][:, :dim]
    x = F.pad(F.normalize(x, dim=1), (0, dim - x.shape[1]))
    sizes = torch.tensor(codebook_sizes)
    places = codes + (sizes.cumsum(0) - sizes).to(codes)

    def summed(e: Tensor) -> Tensor:
        return F.embedding_bag(places, e, mode="sum")

    def gathered(rows: Tensor) -> Tensor:
        found = rows.new_zeros(int(sizes.sum()), rows.shape[1])
        for channel in places.unbind(1):
            found.index_add_(0, channel, rows)
        return found

    found = _solved(lambda e: gathered(summed(e)) + ridge * e, gathered(x))
    return [part.float() for part in found.split(list(codebook_sizes))]


def _solved(apply: Callable[[Tensor], Tensor], right: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
    """Solutions for each column of a positive definite system, by conjugate gradients."""
    found, rest = torch.zeros_like(right), right.clone()
    direction, squares = rest.clone(), rest.square().sum(0)
    least = 1e-12 * squares
    for _ in range(_STEPS):
        if bool((squares <= least).all()):
            break
        image = apply(direction)
        step = squares / (direction * image).sum(0).clamp_min(1e-300)
        found += step * direction
        rest -= step * image
        before, squares = squares, rest.square().sum(0)
        direction = rest + squares / before.clamp_min(1e-300) * direction
    return found
