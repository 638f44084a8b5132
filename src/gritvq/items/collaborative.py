"""Vectors of items that know who bought what, from training events alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.component import check_integer
from gritvq.items.interactions import Histories, check_items
from gritvq.quantizers.canonical import canonical_eigh

__all__ = ["collaborative_vectors", "neighboring_pairs"]

_OVERSAMPLING, _ITERATIONS = 16, 8  # of the subspace iteration


def neighboring_pairs(
    histories: Histories, distance: int
) -> Iterator[tuple[int, Int[Tensor, " N"], Int[Tensor, " N"]]]:
    """Pairs of a user's events, the earlier and the later item, for each distance from 1 on.

    Args:
        histories: Item rows of all users.
        distance: Largest difference of two places in a history.

    Example:
        >>> [(d, a.tolist(), b.tolist()) for d, a, b in neighboring_pairs(Histories.of([[5, 2, 7], [1, 3]]), 2)]
        [(1, [5, 2, 1], [2, 7, 3]), (2, [5], [7])]
    """
    owner = torch.arange(len(histories)).repeat_interleave(histories.lengths)
    for d in range(1, distance + 1):
        pair = owner[d:] == owner[:-d]
        yield d, histories.items[:-d][pair], histories.items[d:][pair]


def collaborative_vectors(
    train: Histories, num_items: int, dim: int = 128, *, distance: int = 5, seed: int = 0
) -> Float[Tensor, "n D"]:
    """Factors of the items' co-occurrence: the vectors of items that the same users had are similar.

    With ``N_ij``, the sum of 1/d over all pairs of i and j at distances d in the training part of a user, in either
    order, the positive pointwise mutual information is ``M_ij = max(0, log(N_ij N / (N_i N_j)))``, where ``N_i`` and
    ``N`` are sums over a row and over all. With its largest eigenvalues ``w`` and their eigenvectors ``V``, of which
    negative ones count as 0, the vectors are the rows of ``V sqrt(w)``.

    Pass the training part of a split (:attr:`gritvq.items.Split.train`): whatever held-out events say would leak into
    ids that are made of these vectors.

    Args:
        train: Item rows of all users, training events only.
        num_items: Items n in the catalogue.
        dim: Size D of a vector.
        distance: Largest difference of two places in a history.
        seed: Seed of the random subspace that the eigenvectors are searched from.

    Returns:
        Vectors (n, D), float32. Items that occur with no other have NaN: nothing is known of them, see
        :class:`gritvq.items.MultiViewTokenizer`.

    Raises:
        ValueError: If an item row is outside the catalogue, a number is out of range, or fewer than ``dim`` items occur
            with others.

    Example:
        >>> train = Histories.of([[0, 1], [0, 1], [2, 3], [2, 3], [4]])
        >>> vectors = collaborative_vectors(train, 5, dim=2)
        >>> (vectors[:4] @ vectors[:4].T).round(decimals=2) + 0.0
        tensor([[0.6900, 0.6900, 0.0000, 0.0000],
                [0.6900, 0.6900, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.6900, 0.6900],
                [0.0000, 0.0000, 0.6900, 0.6900]])
        >>> vectors[4].isnan().all().item()
        True

    References:
        Levy and Goldberg, "Neural word embedding as implicit matrix factorization", NeurIPS 2014, section 5, with items
        for words. Deviation: eigenvectors of the symmetric matrix instead of singular vectors, so that a product of two
        vectors is their entry.
    """
    check_items(train.items, num_items)
    for name, value in (("dim", dim), ("distance", distance)):
        check_integer(name, value, hint=f"give a larger {name}")
    parts = [
        (first, second, torch.full((len(first),), 1 / d)) for d, first, second in neighboring_pairs(train, distance)
    ]
    first, second, weights = (torch.cat(each) for each in zip(*parts, strict=True))
    other = first != second
    places = torch.stack([torch.cat([first, second]), torch.cat([second, first])])[:, other.repeat(2)]
    counts = torch.sparse_coo_tensor(
        places, weights.double()[other].repeat(2), (num_items, num_items), check_invariants=True
    ).coalesce()
    (row, column), values = counts.indices(), counts.values()
    sums = torch.zeros(num_items, dtype=torch.float64).index_add_(0, row, values)
    known = sums > 0
    if int(known.sum()) < dim:
        raise ValueError(
            f"expected at least dim={dim} items that users had beside others, got {int(known.sum())}; use a smaller dim"
        )
    information = (values * values.sum() / (sums[row] * sums[column])).log().clamp_min(0)
    matrix = torch.sparse_coo_tensor(counts.indices(), information, counts.shape, check_invariants=True).coalesce()
    size = 2 * dim + _OVERSAMPLING
    while True:  # the largest magnitudes; about half of them belong to negative eigenvalues
        size = min(size, num_items)
        start = torch.randn(num_items, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        basis = torch.linalg.qr(matrix @ start).Q
        for _ in range(_ITERATIONS):  # squared, so that negative ones do not alternate
            basis = torch.linalg.qr(matrix @ (matrix @ basis)).Q
        found, turn = canonical_eigh(basis.T @ (matrix @ basis))
        if size == num_items or bool(found[dim - 1] > 0):
            break
        size *= 2
    vectors = (basis @ turn[:, :dim]) * found[:dim].clamp_min(0).sqrt()
    return torch.where(known[:, None], vectors, torch.nan).float()
