"""Beam search along the trie, and exact scores of all ids."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.items.ids import FilteredOrder, PrefixTrie
from gritvq.items.recommenders.backbones import Backbone, Context
from gritvq.quantizers.canonical import ranked

__all__ = ["Beams", "beam_search", "exact_scores"]


class Beams(NamedTuple):
    """Ids found, best first.

    Attributes:
        leaves: Nodes of the trie (B, W); -1 if there are fewer ids.
        scores: Their log-probabilities (B, W), summed over the levels; minus infinity for -1.
    """

    leaves: Int[Tensor, "B W"]
    scores: Float[Tensor, "B W"]


def beam_search(
    backbone: Backbone, context: Context, trie: PrefixTrie, beam: int, *, listed: FilteredOrder | None = None
) -> Beams:
    """The most probable existing ids, by beam search.

    ``score(c_1 .. c_Q) = sum_l log p(c_l | history, c_1 .. c_{l-1})``; at each level the ``beam`` best prefixes are
    kept. It is exact if ``beam`` is at least the number of prefixes of every level but the last. Equal scores are
    sorted lexicographically; which of them is dropped at the end of the beam is undefined.

    A filter of rows acts at every level: a prefix that leads to no listed row takes no place in the beam.

    Args:
        backbone: The model, in eval mode.
        context: Its context of B histories.
        trie: Trie of the ids.
        beam: Number of prefixes kept, at least the number of ids wanted.
        listed: The rows that may be found for each history, along ``trie.rows``, see
            :meth:`gritvq.items.ItemFilter.along`; None for all.

    Returns:
        At most ``beam`` ids per history.

    Raises:
        ValueError: If the beam is smaller than 1.
    """
    if beam < 1:
        raise ValueError(f"expected a beam >= 1, got {beam}; 50 is usual, and at least the length of the list")
    batch, device = context.lengths.shape[0], context.lengths.device
    nodes = trie.root(batch)[:, None]
    scores = torch.zeros(batch, 1, device=device)
    prefixes = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
    for level in range(trie.num_levels):
        children = trie.padded_children(nodes, level)
        if listed is not None:
            children = children.where(trie.reaches(children, listed), torch.full_like(children, -1))
        codes = trie.code[children.clamp(min=0)]
        totals = scores[..., None] + backbone.log_probs(context, prefixes).gather(2, codes)
        totals = totals.masked_fill(children < 0, -math.inf).flatten(1)
        places = ranked(totals, min(beam, totals.shape[1]))
        nodes, scores = children.flatten(1).gather(1, places), totals.gather(1, places)
        order = ranked(nodes, nodes.shape[1], largest=False)  # lexicographic
        order = order.gather(1, ranked(scores.gather(1, order), nodes.shape[1]))
        nodes, scores, places = nodes.gather(1, order), scores.gather(1, order), places.gather(1, order)
        parents = (places // children.shape[2])[..., None].expand(-1, -1, level)
        prefixes = torch.cat([prefixes.gather(1, parents), codes.flatten(1).gather(1, places)[..., None]], 2)
    return Beams(nodes, scores)


def exact_scores(
    backbone: Backbone, context: Context, trie: PrefixTrie, *, block: int = 512
) -> Float[Tensor, "B leaves"]:
    """Exact log-probabilities of all ids, level by level along the trie.

    Time grows with the number of prefixes, memory with B x block x K.

    Args:
        backbone: The model, in eval mode.
        context: Its context of B histories.
        trie: Trie of the ids.
        block: Prefixes scored at a time.

    Returns:
        Scores (B, number of distinct ids), in the trie's order.
    """
    batch = len(context.lengths)
    scores = torch.zeros(batch, 1, device=context.lengths.device)
    for level in range(trie.num_levels):
        nodes, parts = trie.level(level), []
        for start in range(0, len(nodes), block):
            some = nodes[start : start + block]
            given = backbone.log_probs(context, trie.prefixes_of(some, level).expand(batch, -1, -1))
            children, places = trie.children_of(some)
            parts.append(scores[:, start + places] + given[:, places, trie.code[children]])
        scores = torch.cat(parts, 1)
    return scores
