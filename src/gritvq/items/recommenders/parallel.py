"""Exact scores of a whole catalogue when the indices of an id are predicted independently of each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer
from gritvq.items.ids import ItemFilter
from gritvq.items.ids.checks import checked_codes, checked_sizes
from gritvq.items.recommenders.backbones import Backbone, Context
from gritvq.quantizers.canonical import ranked

__all__ = ["ParallelScorer", "RankedItems", "channel_log_probs", "check_no_nan"]

_BLOCK_ENTRIES = 1 << 20  # scores per block: 4 MB


class RankedItems(NamedTuple):
    """Items found, best first.

    Attributes:
        items: Rows (B, k); -1 if there are fewer items.
        scores: Their log-probabilities (B, k), of some models up to a constant of each history; minus infinity for -1.
    """

    items: Int[Tensor, "B k"]
    scores: Float[Tensor, "B k"]


class ParallelScorer(nn.Module):
    """Scores all items by sums of looked-up log-probabilities, ``score(i) = sum_q log p_q(c_iq)``, without a search.

    The table of log-probabilities is turned, so that those of one code for all B users are beside each other. The score
    of an item is then a sum of Q rows of B numbers, and only blocks of items are in memory: 4 MB for any catalogue,
    besides one or two bytes per index. Each score is summed in the order of the channels, whatever the block.

    Items that share an id have the same score. Equal scores are sorted by decreasing ``priority``, then by row.

    Args:
        codes: Ids (n, Q), one row per item.
        codebook_sizes: Codes K per channel, Q entries.
        priority: Priority of each item (n,); None keeps the order of the rows.

    Attributes:
        order: Rows of the items by priority (n,).

    Raises:
        ValueError: If there are no rows, shapes are wrong, or an index is out of range.

    Example:
        >>> scorer = ParallelScorer(torch.tensor([[0, 1], [1, 1], [0, 1]]), (2, 3))
        >>> log_probs = torch.tensor([[0.5, 0.5, 0.25, 0.5, 0.25], [0.8, 0.2, 0.1, 0.5, 0.4]]).log()
        >>> scorer.scores(log_probs).exp()
        tensor([[0.2500, 0.2500, 0.2500],
                [0.4000, 0.1000, 0.4000]])
        >>> scorer.best(log_probs, 2).items
        tensor([[0, 1],
                [0, 2]])
    """

    codes: Tensor
    order: Tensor
    first_columns: Tensor

    def __init__(
        self, codes: Int[Tensor, "n Q"], codebook_sizes: Sequence[int], *, priority: Float[Tensor, " n"] | None = None
    ) -> None:
        super().__init__()
        self.codebook_sizes = checked_sizes(codebook_sizes)
        codes = checked_codes(codes, self.codebook_sizes)
        if not len(codes):
            raise ValueError("expected at least one id, got none; pass the ids of items")
        if priority is None:
            priority = torch.zeros(len(codes))
        if priority.shape != codes.shape[:1]:
            raise ValueError(
                f"expected one priority per row, ({len(codes)},), got {tuple(priority.shape)}; pass n of them"
            )
        largest = max(self.codebook_sizes)
        kind = torch.uint8 if largest <= 2**8 else torch.int16 if largest <= 2**15 else torch.int32
        sizes = torch.tensor(self.codebook_sizes, dtype=torch.int32)
        tables = {
            "codes": codes.to(kind),
            "order": priority.detach().cpu().argsort(descending=True, stable=True),
            "first_columns": (sizes.cumsum(0) - sizes).int(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)  # rebuilt from the ids

    @torch.no_grad()
    def scores(self, log_probs: Float[Tensor, "B V"], *, block: int | None = None) -> Float[Tensor, "B n"]:
        """Scores of all items.

        Args:
            log_probs: Log-probabilities of all channels' codes, channel after channel, see :func:`channel_log_probs`;
                V is the sum of the codebook sizes.
            block: Items scored at a time; None for as many as make 4 MB.

        Raises:
            ValueError: If the shape is wrong.
        """
        found = log_probs.new_empty(len(log_probs), len(self.codes))
        start = 0
        for sums in self._sums(log_probs, self.codes, block):
            found[:, start : start + len(sums)] = sums.T
            start += len(sums)
        return found

    @torch.no_grad()
    def best(
        self,
        log_probs: Float[Tensor, "B V"],
        k: int,
        *,
        block: int | None = None,
        item_filter: ItemFilter | None = None,
    ) -> RankedItems:
        """The k items with the highest scores, merged over blocks of items.

        Args:
            log_probs: See :meth:`scores`.
            k: Number of items.
            block: See :meth:`scores`.
            item_filter: Which items each list may have; those that no list may have are not scored. None for all.

        Raises:
            ValueError: If the shape is wrong, a log-probability is NaN, or k is smaller than 1.
        """
        check_integer("k", k, hint="10 is usual")
        check_no_nan(log_probs)
        order, listed = self.order, None
        if item_filter is not None:
            if item_filter.allowed is not None and item_filter.allowed.ndim == 1:
                order = order[item_filter.allowed.to(order.device)[order]]
            listed = item_filter.along(order)
        places = torch.full((len(log_probs), k), -1, device=log_probs.device)
        scores = log_probs.new_full(places.shape, -math.inf)
        start = 0
        for sums in self._sums(log_probs, self.codes[order], block):
            stop = start + len(sums)
            if listed is not None:
                sums = sums.masked_fill(~listed.mask(start, stop).expand(len(log_probs), -1).T, -math.inf)
            users = (sums.amax(0) > scores[:, -1]).nonzero()[:, 0]  # the others keep what they have
            values = torch.cat([scores[users], sums.T[users]], 1)
            here = torch.arange(start, stop, device=places.device).expand(len(users), -1)
            kept = ranked(values, k)
            scores[users], places[users] = values.gather(1, kept), torch.cat([places[users], here], 1).gather(1, kept)
            start = stop
        found = scores > -math.inf
        return RankedItems(torch.where(found, order[places.where(found, 0)] if len(order) else places, -1), scores)

    def check(self, log_probs: Tensor) -> None:
        """Check the shape of log-probabilities.

        Raises:
            ValueError: If it is wrong.
        """
        wanted = sum(self.codebook_sizes)
        if log_probs.ndim != 2 or log_probs.shape[1] != wanted:
            raise ValueError(
                f"expected log-probabilities (B, {wanted}) of {len(self.codebook_sizes)} channels, got "
                f"{tuple(log_probs.shape)}; use a model of the ids' codebook sizes"
            )

    def _sums(self, log_probs: Tensor, codes: Tensor, block: int | None) -> Iterator[Float[Tensor, "m B"]]:
        """Scores of blocks of items, a row per item."""
        self.check(log_probs)
        table = log_probs.T.contiguous()
        if block is None:
            block = max(1, _BLOCK_ENTRIES // max(1, len(log_probs)))
        for some in codes.split(block) if len(codes) else ():
            yield F.embedding_bag(some + self.first_columns, table, mode="sum")


def channel_log_probs(backbone: Backbone, context: Context) -> Float[Tensor, "B V"]:
    """Log-probabilities of the codes of all channels by a parallel model, channel after channel.

    Args:
        backbone: The model, in eval mode.
        context: Its context of B histories.
    """
    channels = len(backbone.codebook_sizes)
    nothing = torch.zeros(context.lengths.shape[0], 1, channels, dtype=torch.int64, device=context.lengths.device)
    return torch.cat([backbone.log_probs(context, nothing[..., :level])[:, 0] for level in range(channels)], 1)


def check_no_nan(log_probs: Tensor) -> None:
    """Check that no log-probability is NaN, which no list could tell from an item that is not allowed.

    Raises:
        ValueError: If one is.
    """
    if bool(log_probs.isnan().any()):
        raise ValueError(
            "expected log-probabilities, got NaN; the model's weights or inputs are not finite: load an earlier "
            "checkpoint, or train it again with a smaller learning rate"
        )
