"""Baselines for recommenders: popularity, co-occurrence with the last item, similarity of texts.

Co-occurrence beats published generative models, so report these baselines in every comparison.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gritvq.component import check_integer
from gritvq.items.collaborative import neighboring_pairs
from gritvq.items.interactions import Histories, check_items

__all__ = ["CoOccurrence", "Popularity", "TextCosine"]


class Popularity:
    """Scores an item by its number of training events, the same for every user.

    Args:
        train: Training part of all users.
        num_items: Items n in the catalogue.

    Raises:
        ValueError: If an item row is outside the catalogue.

    Example:
        >>> Popularity(Histories.of([[0, 2], [2]]), 3).scores(Histories.of([[1]])).tolist()
        [[1.0, 0.0, 2.0]]
    """

    def __init__(self, train: Histories, num_items: int) -> None:
        check_items(train.items, num_items)
        self.num_items = num_items
        self.counts = torch.bincount(train.items, minlength=num_items).float()

    def scores(self, histories: Histories) -> Float[Tensor, "B n"]:
        """Scores of all items."""
        check_items(histories.items, self.num_items)
        return self.counts.expand(len(histories), -1)


class CoOccurrence:
    """Scores an item by how often it was near the user's last item in training.

    ``W[a, b]`` sums over all training pairs at distances d up to ``distance``: 1/d if b comes after a, 1/(2d) if it
    comes before. The scores are the row of the last item plus a popularity prior that is smaller than any difference
    between entries, so it only breaks ties.

    Args:
        train: Training part of all users.
        num_items: Items n in the catalogue.
        distance: Largest distance d.

    Raises:
        ValueError: If an item row is outside the catalogue or the distance is below 1.

    Example:
        >>> baseline = CoOccurrence(Histories.of([[0, 1, 2]]), 4)
        >>> baseline.scores(Histories.of([[3, 1]])).mul(10).round().tolist()
        [[5.0, 0.0, 10.0, 0.0]]
    """

    def __init__(self, train: Histories, num_items: int, *, distance: int = 3) -> None:
        check_integer("distance", distance, hint="3 is usual")
        check_items(train.items, num_items)
        self.num_items = num_items
        counts = torch.bincount(train.items, minlength=num_items).double()
        # Entries are multiples of 1 / (2 lcm). A prior of at most half of that keeps their order; float64, because
        # float32 would lose it beside large entries.
        step = 1 / (2 * math.lcm(*range(1, distance + 1)))
        self.prior = counts * (0.5 * step / counts.max().clamp_min(1))
        places, weights = [], []
        for d, first, second in neighboring_pairs(train, distance):
            places += [torch.stack([first, second]), torch.stack([second, first])]
            weights += [torch.full((len(first),), each, dtype=torch.float64) for each in (1 / d, 0.5 / d)]
        (first, second), each = torch.cat(places, 1), torch.cat(weights)
        entries, inverse = (first * num_items + second).unique(return_inverse=True)
        self._columns = entries % num_items
        self._weights = torch.zeros(len(entries), dtype=torch.float64).index_add_(0, inverse, each)
        row = entries // num_items
        self._starts = torch.cat([torch.zeros(1, dtype=torch.int64), row.bincount(minlength=num_items).cumsum(0)])

    def scores(self, histories: Histories) -> Float[Tensor, "B n"]:
        """Scores of all items; for an empty history the prior."""
        check_items(histories.items, self.num_items)
        last = histories.last()
        begin = self._starts[last.clamp_min(0)]
        lengths = torch.where(last >= 0, self._starts[last.clamp_min(0) + 1] - begin, 0)
        ends = lengths.cumsum(0)
        places = torch.arange(int(ends[-1]) if len(ends) else 0) + (begin - ends + lengths).repeat_interleave(lengths)
        owner = torch.arange(len(last)).repeat_interleave(lengths)
        result = self.prior.repeat(len(last), 1)
        return result.index_put_((owner, self._columns[places]), self._weights[places], accumulate=True)


class TextCosine:
    """Scores an item by the cosine between its embedding and that of the user's last item, which is excluded.

    Args:
        embeddings: Item embeddings (n, D).

    Raises:
        ValueError: If the embeddings are not a matrix or not finite.

    Example:
        >>> baseline = TextCosine(torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 1.0]]))
        >>> baseline.scores(Histories.of([[2, 0]]))
        tensor([[  -inf, 0.7071, 0.0000]])
    """

    def __init__(self, embeddings: Float[Tensor, "n D"]) -> None:
        if embeddings.ndim != 2 or not bool(embeddings.isfinite().all()):
            raise ValueError(f"expected finite embeddings (n, D), got {tuple(embeddings.shape)}; fix or remove items.")
        self.vectors = F.normalize(embeddings.float(), dim=1)

    def scores(self, histories: Histories) -> Float[Tensor, "B n"]:
        """Scores of all items; for an empty history zeros."""
        check_items(histories.items, len(self.vectors))
        last = histories.last()
        known = (last >= 0)[:, None]
        scores = self.vectors[last.clamp_min(0)] @ self.vectors.T
        scores.scatter_(1, last.clamp_min(0)[:, None], -math.inf)
        return torch.where(known, scores, 0.0)
