"""Search of the best items along a graph of similar ids, for catalogues that are too large to score whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer
from gritvq.items.ids import ItemFilter
from gritvq.items.recommenders.parallel import ParallelScorer, RankedItems
from gritvq.items.tokenizers.base import tracked
from gritvq.quantizers.canonical import ranked

__all__ = ["ItemGraph"]

_BLOCK = 256  # items whose neighbors are found at a time


class ItemGraph(nn.Module):
    """Items with edges to those of the most similar ids, along which the best items of a user are found.

    The similarity of two ids is the sum over channels of the cosine between the embeddings of their codes,
    ``s(i, j) = sum_q cos(e_q[c_iq], e_q[c_jq])``. :meth:`best` starts from ``beam`` items and, in each of ``steps``
    steps, keeps the best ``beam`` of them and their neighbors. So ``beam (1 + steps num_neighbors)`` items at most are
    scored for each user, whatever the size of the catalogue. Scores of what is found are exact; something better may be
    missed. Making the graph takes n^2 Q look-ups, once.

    With one core, :class:`gritvq.items.ParallelScorer` scores a million items for 256 users in seconds; measure before
    giving up its exact lists.

    Args:
        scorer: Codes and order of the n items.
        neighbors: Places in the scorer's order of each place's neighbors (n, k), most similar first.

    Attributes:
        neighbors: As given.

    Raises:
        ValueError: If the shape is wrong or a place is out of range.

    Example:
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 1]])
        >>> table = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> graph = ItemGraph.of(ParallelScorer(codes, (3, 3)), [table, table], num_neighbors=2)
        >>> graph.neighbors.tolist()
        [[1, 2], [0, 2], [3, 1], [2, 1]]
        >>> log_probs = torch.tensor([[0.1, 0.1, 0.8, 0.2, 0.7, 0.1]]).log()
        >>> graph.best(log_probs, 1, beam=2, steps=3).items.tolist()
        [[3]]

    References:
        Hou et al., Generating long semantic IDs in parallel for recommendation (RPG), KDD 2025, arXiv 2506.05781,
        section 3.3. Deviations: all users start from the same items, half of them the first in the scorer's order and
        half at random; the beam keeps its own items beside their neighbors, so that no step loses a better item; the
        search ends when no beam changes.
    """

    neighbors: Tensor

    def __init__(self, scorer: ParallelScorer, neighbors: Int[Tensor, "n k"]) -> None:
        super().__init__()
        if neighbors.ndim != 2 or len(neighbors) != len(scorer.codes) or not neighbors.shape[1]:
            raise ValueError(
                f"expected neighbors (n, k) of {len(scorer.codes)} items, got {tuple(neighbors.shape)}; make them with "
                "ItemGraph.of"
            )
        if not 0 <= int(neighbors.min()) <= int(neighbors.max()) < len(neighbors):
            raise ValueError(f"expected places in [0, {len(neighbors)}), got others; make them with ItemGraph.of")
        self.scorer = scorer
        self.register_buffer("neighbors", neighbors.int())

    @classmethod
    def of(
        cls,
        scorer: ParallelScorer,
        tables: Sequence[Float[Tensor, "K D"]],
        num_neighbors: int = 50,
        progress: bool = False,
    ) -> ItemGraph:
        """The graph of given ids.

        Args:
            scorer: Codes and order of the items.
            tables: Embeddings of the codes of each channel, such as :meth:`gritvq.items.ParallelDecoder.tables`.
            num_neighbors: Edges k of an item; all others if there are fewer.
            progress: Whether to show a progress bar; needs the extra ``train``.

        Raises:
            ValueError: If there is not one table per channel, of its number of codes, or a number is out of range.
        """
        sizes = tuple(len(table) for table in tables)
        if sizes != scorer.codebook_sizes:
            raise ValueError(
                f"expected tables of {list(scorer.codebook_sizes)} codes, one per channel, got {list(sizes)}; take "
                "those of the model of these ids"
            )
        check_integer("num_neighbors", num_neighbors, hint="50 is usual")
        rows = [F.normalize(table.detach().float(), dim=1) for table in tables]
        similarities = [table @ table.T for table in rows]
        count = min(num_neighbors, len(scorer.codes) - 1) or 1
        codes, places = scorer.codes[scorer.order].long(), torch.empty_like(scorer.order)
        places[scorer.order] = torch.arange(len(places), device=places.device)
        found = torch.empty(len(codes), count, dtype=torch.int64, device=codes.device)
        blocks = torch.arange(len(codes), device=codes.device).split(_BLOCK)
        for own in tracked(blocks, "finding similar ids", progress):
            looked = torch.cat([s[codes[own, q]] for q, s in enumerate(similarities)], 1)
            near = places[scorer.best(looked, min(count + 1, len(codes))).items]
            other = (near != own[:, None]).int()
            kept = other.argsort(dim=1, descending=True, stable=True)[:, :count]  # all but the item itself
            found[own] = near.gather(1, kept)
        return cls(scorer, found)

    @torch.no_grad()
    def best(
        self,
        log_probs: Float[Tensor, "B V"],
        k: int,
        *,
        beam: int = 100,
        steps: int = 5,
        seed: int = 0,
        item_filter: ItemFilter | None = None,
    ) -> RankedItems:
        """The best items that are found, best first; -1 if there are fewer.

        Args:
            log_probs: See :meth:`gritvq.items.ParallelScorer.scores`.
            k: Number of items, at most ``beam``.
            beam: Items kept in each step.
            steps: Largest number of steps.
            seed: Seed of the random ones of the items to start from.
            item_filter: Which items each list may have; the search still goes through the others. None for all. Takes
                a mask of users x items.

        Raises:
            ValueError: If a shape is wrong, a number is out of range, or the beam is smaller than k.
        """
        for name, value in (("k", k), ("steps", steps)):
            check_integer(name, value, hint=f"give a larger {name}")
        check_integer("beam", beam, k, "keep at least the k items wanted")
        self.scorer.check(log_probs)
        size = len(self.neighbors)
        beam = min(beam, size)
        first = torch.arange(beam - beam // 2)
        rest = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        start = torch.cat([first, rest[rest >= len(first)][: beam - len(first)]]).sort().values
        kept = start.to(log_probs.device).expand(len(log_probs), -1)
        scores = self._scores(log_probs, kept)
        may = None if item_filter is None else item_filter.mask().to(kept.device)[..., self.scorer.order]
        found = self._listed(kept, scores, k, may)
        for _ in range(steps):
            before = kept
            near = self.neighbors[kept].flatten(1).long()
            kept, scores = _distinct(torch.cat([kept, near], 1), torch.cat([scores, self._scores(log_probs, near)], 1))
            found = self._listed(torch.cat([found[0], kept], 1), torch.cat([found[1], scores], 1), k, may)
            chosen = ranked(scores, beam)
            kept, scores = kept.gather(1, chosen), scores.gather(1, chosen)
            if torch.equal(kept.sort(dim=1).values, before.sort(dim=1).values):
                break
        places, values = found
        return RankedItems(torch.where(values > -torch.inf, self.scorer.order[places], -1), values)

    @staticmethod
    def _listed(places: Tensor, scores: Tensor, k: int, may: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best k places that may be listed, and their scores; minus infinity if there are fewer."""
        if may is not None:
            scores = scores.where(may.expand(len(places), -1).gather(1, places), -torch.inf)
        places, scores = _distinct(places, scores)
        chosen = ranked(scores, min(k, scores.shape[1]))
        missing = k - chosen.shape[1]
        return F.pad(places.gather(1, chosen), (0, missing)), F.pad(
            scores.gather(1, chosen), (0, missing), value=-torch.inf
        )

    def _scores(self, log_probs: Tensor, places: Tensor) -> Float[Tensor, "B C"]:
        """Scores of places, in the order of the channels."""
        columns = self.scorer.codes[self.scorer.order[places]].long() + self.scorer.first_columns
        found = log_probs.gather(1, columns.flatten(1))
        return found.unflatten(1, (places.shape[1], -1)).sum(2)


def _distinct(places: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Both, by place; of places that are there twice all but the best have minus infinity."""
    best = scores.sort(dim=1, descending=True, stable=True).indices
    places, scores = places.gather(1, best), scores.gather(1, best)
    places, order = places.sort(dim=1, stable=True)
    scores = scores.gather(1, order)
    again = F.pad(places[:, 1:] == places[:, :-1], (1, 0))
    return places, scores.masked_fill(again, -torch.inf)
