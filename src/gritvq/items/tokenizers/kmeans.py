"""K-means for item embeddings: k-means++, Lloyd's algorithm, and a balanced variant."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.quantizers.functional import cluster_means, code_counts, nearest_code

__all__ = ["Clusters", "balanced_kmeans", "kmeans", "lloyd_step", "plus_plus"]


class Clusters(NamedTuple):
    """Result of a clustering.

    Attributes:
        codes: Centroids (K, D).
        prices: Cost of each cluster in addition to half the squared distance (K,), >= 0; None if all are 0.
        steps: Number of Lloyd steps.
    """

    codes: Float[Tensor, "K D"]
    prices: Float[Tensor, " K"] | None
    steps: int

    def table(self) -> Float[Tensor, "K E"]:
        """Codes to search; a price is one more coordinate: ``|x - c|^2 + 2p = |(x, 0) - (c, sqrt 2p)|^2``."""
        if self.prices is None:
            return self.codes
        return torch.cat([self.codes, (2 * self.prices).sqrt()[:, None]], 1)


def plus_plus(
    x: Float[Tensor, "N D"], codebook_size: int, generator: torch.Generator, num_trials: int | None = None
) -> Float[Tensor, "K D"]:
    """Greedy k-means++: each next code is the best of several rows drawn in proportion to their squared distance.

    If there are fewer distinct rows than ``codebook_size``, the remaining codes repeat the first one. No row is
    assigned to them, because ties go to the lowest index.

    Args:
        x: Rows (N, D), finite, N >= 1.
        codebook_size: Number of codes K.
        generator: CPU generator.
        num_trials: Rows drawn for each code; None means ``2 + ln K``, as in scikit-learn.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0]])
        >>> plus_plus(x, 2, torch.Generator().manual_seed(0)).sort(0).values.flatten()
        tensor([0., 9.])

    References:
        Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007, with the greedy choice of
        its section 6.
    """
    num_trials = 2 + int(math.log(codebook_size)) if num_trials is None else num_trials
    rows = x - x.mean(0)
    lengths = rows.square().sum(1)
    chosen = torch.randint(len(x), (1,), generator=generator).to(x.device)
    closest = _distances(rows, lengths, chosen)[0]
    for _ in range(codebook_size - 1):
        cumulative = closest.double().cumsum(0)
        if not float(cumulative[-1]) > 0:
            break
        draws = torch.rand(num_trials, generator=generator, dtype=torch.float64).to(x.device) * cumulative[-1]
        trials = torch.searchsorted(cumulative, draws).clamp_max(len(x) - 1)
        each = torch.minimum(_distances(rows, lengths, trials), closest)
        best = each.sum(1).argmin()
        closest = each[best]
        chosen = torch.cat([chosen, trials[best : best + 1]])
    missing = codebook_size - len(chosen)
    if missing:  # the other rows are repetitions up to rounding: search for any that differ
        distinct = _distinct_rows(x)
        new = distinct[~torch.isin(distinct, chosen)]
        taken = torch.unique(x[chosen], dim=0)
        fresh = [row for row in new.tolist() if not bool((taken == x[row]).all(1).any())][:missing]
        fill = torch.tensor(fresh, dtype=torch.int64, device=x.device)
        chosen = torch.cat([chosen, fill, chosen[:1].expand(missing - len(fresh))])
    return x[chosen].clone()


def _distances(rows: Tensor, lengths: Tensor, chosen: Tensor) -> Tensor:
    """Squared distances (T, N) of all rows from chosen ones; rounding errors are set to 0."""
    both = lengths[chosen][:, None] + lengths
    distances = both - 2 * rows[chosen] @ rows.T
    return torch.where(distances > 1e-6 * both, distances, 0)


def _distinct_rows(x: Tensor) -> Tensor:
    """Indices of the first of each group of equal rows, in order."""
    _, inverse = torch.unique(x, dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(x), device=x.device)
    places = torch.arange(len(x), device=x.device)
    return first.scatter_reduce(0, inverse, places, "amin").sort().values


def lloyd_step(
    x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], indices: Int[Tensor, " N"]
) -> Float[Tensor, "K D"]:
    """Moves each code to the mean of its rows, and each code without rows to a row far from its own code.

    Codes without rows take the farthest rows in order, ties by index. Rows that equal their code are not taken; then
    the code stays.

    Example:
        >>> x, codes = torch.tensor([[0.0], [1.0], [8.0]]), torch.tensor([[0.0], [99.0]])
        >>> lloyd_step(x, codes, torch.zeros(3, dtype=torch.int64))
        tensor([[3.],
                [8.]])
    """
    moved, counts = cluster_means(x, indices, codes)
    empty = (counts == 0).nonzero().squeeze(1)
    if len(empty):
        apart = (x - moved[indices]).square().sum(1)
        far = apart.sort(descending=True, stable=True).indices[: len(empty)]
        far = far[apart[far] > 0]
        moved[empty[: len(far)]] = x[far]
    return moved


def kmeans(
    x: Float[Tensor, "N D"],
    codebook_size: int,
    generator: torch.Generator,
    *,
    iterations: int = 100,
    start: Float[Tensor, "K D"] | None = None,
) -> Clusters:
    """Lloyd's k-means in float32 from a k-means++ start, until no row changes its code.

    For a few hundred codes. :func:`gritvq.quantizers.functional.kmeans` starts from random rows instead, because
    k-means++ takes K sequential steps, too many for thousands of codes.

    Args:
        x: Rows (N, D), finite.
        codebook_size: Number of codes K.
        generator: CPU generator of the start.
        iterations: Largest number of Lloyd steps.
        start: Initial codes instead of k-means++.

    Example:
        >>> x = torch.tensor([[0.0], [0.2], [1.0], [1.2]])
        >>> kmeans(x, 2, torch.Generator().manual_seed(0)).codes.sort(0).values.flatten()
        tensor([0.1000, 1.1000])
    """
    codes = plus_plus(x, codebook_size, generator) if start is None else start
    before, steps = None, 0
    while steps < iterations:
        indices = nearest_code(x, codes)
        if before is not None and torch.equal(indices, before):
            break
        codes, before, steps = lloyd_step(x, codes, indices), indices, steps + 1
    return Clusters(codes, None, steps)


def balanced_kmeans(
    x: Float[Tensor, "N D"], codebook_size: int, generator: torch.Generator, *, iterations: int = 100
) -> Clusters:
    """K-means with clusters of about equal size; each row takes the code of least distance plus price.

    The optimal assignment to clusters of equal size is a power diagram: there are prices ``p_k`` such that every row
    takes ``argmin_k |x - c_k|^2 / 2 + p_k``. They are found by Sinkhorn iterations with decreasing temperature,
    alternating with updates of the codes, and then refined code by code for the hard assignment. New rows are assigned
    by the same rule. Cluster sizes are equal up to some percent; equal rows share a cluster. The refinement needs
    4 N K bytes.

    Args:
        x: Rows (N, D), finite.
        codebook_size: Number of codes K; for K = 1 there are no prices.
        generator: CPU generator of the start.
        iterations: Largest number of Lloyd steps.

    Example:
        >>> x = torch.cat([torch.linspace(0, 1, 12), torch.linspace(9, 10, 4)])[:, None]
        >>> clusters = balanced_kmeans(x, 4, torch.Generator().manual_seed(0))
        >>> placed = nearest_code(torch.cat([x, torch.zeros_like(x)], 1), clusters.table())
        >>> code_counts(placed, 4)
        tensor([4., 4., 4., 4.])

    References:
        Aurenhammer, Hoffmann and Aronov, "Minkowski-Type Theorems and Least-Squares Clustering", Algorithmica 1998
        (the power diagram); Cuturi, "Sinkhorn Distances", NeurIPS 2013.
    """
    plain = kmeans(x, codebook_size, generator, iterations=iterations)
    codes, prices = plain.codes, x.new_zeros(codebook_size)
    spread = float((x - codes[nearest_code(x, codes)]).square().sum(1).mean()) / 2
    if spread <= 0 or codebook_size == 1:
        return plain
    rounds = max(1, min(iterations, 16))
    hot, cold = float((x - x.mean(0)).square().sum(1).mean()) / 2, 5e-4 * spread
    for number in range(rounds):
        temperature = hot * (cold / hot) ** (number / max(1, rounds - 1))
        prices, codes = _sinkhorn(x, codes, prices, temperature)
    prices = _sharpened(x, codes, prices)
    return Clusters(codes, prices, plain.steps + rounds)


def _costs(x: Tensor, codes: Tensor) -> Tensor:
    """Half the squared distances (N, K), up to a constant per row."""
    return torch.addmm(0.5 * codes.square().sum(1), x, codes.T, alpha=-1)


def _blocks(x: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(1, (1 << 22) // len(codes)))


def _sinkhorn(x: Tensor, codes: Tensor, prices: Tensor, temperature: float, steps: int = 10) -> tuple[Tensor, Tensor]:
    """Prices for which soft assignments of this temperature fill all clusters equally, and the clusters' means."""
    capacity = len(x) / len(codes)
    for _ in range(steps):
        mass, sums = x.new_zeros(len(codes)), torch.zeros_like(codes)
        for rows in _blocks(x, codes):
            share = ((-_costs(rows, codes) - prices) / temperature).softmax(1)
            mass += share.sum(0)
            sums += share.T @ rows
        prices = prices + temperature * (mass.clamp_min(1e-6 * capacity) / capacity).log()
    filled = mass > 1e-3 * capacity
    codes = torch.where(filled[:, None], sums / mass.clamp_min(1e-30)[:, None], codes)
    return prices - prices.min(), codes


def _sharpened(x: Tensor, codes: Tensor, prices: Tensor, sweeps: int = 8) -> Tensor:
    """Prices for which hard assignments do, of the most even counts found; needs 4 N K bytes.

    Each code in turn gets the price at which it takes exactly its share, given the other prices.
    """
    share = max(1, round(len(x) / len(codes)))
    costs = torch.cat([_costs(rows, codes) for rows in _blocks(x, codes)])
    prices, best, least = prices.clone(), prices, math.inf
    for sweep in range(sweeps + 1):
        counts = code_counts((costs + prices).argmin(1), len(codes))
        excess = float((counts - share).square().sum())
        if excess < least:
            best, least = prices.clone(), excess
        if sweep == sweeps or len(x) <= share:
            break
        priced = costs + prices
        for code in counts.argsort(descending=True, stable=True).tolist():
            priced[:, code] = torch.inf
            gaps = (priced.amin(1) - costs[:, code]).sort(descending=True).values
            prices[code] = (gaps[share - 1] + gaps[share]) / 2
            priced[:, code] = costs[:, code] + prices[code]
    return best - best.min()
