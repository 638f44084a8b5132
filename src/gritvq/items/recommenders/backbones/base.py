"""What every sequence model of ids does, and what the causal ones share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import Component
from gritvq.distributed import masked_mean
from gritvq.tokens import BOS, Vocabulary

__all__ = [
    "NO_TARGET",
    "Backbone",
    "Candidates",
    "CausalDecoder",
    "Context",
    "PerItemDecoder",
    "mask_items_before",
    "mean_cross_entropy",
]

_ROWS = 64  # the number of rows in a product is a multiple of this
NO_TARGET = -100  # what cross_entropy takes for no target


class Context(NamedTuple):
    """Encoded histories of B users; the first axis of both is B.

    Attributes:
        states: Hidden states or tokens, depending on the backbone.
        lengths: Number of valid entries per user.
    """

    states: Tensor
    lengths: Tensor


class Candidates(NamedTuple):
    """What a softmax over items chooses from.

    Attributes:
        codes: Ids of all items (n, Q).
        seen: Item rows of the histories (B, T), padded with -1, if each item is a choice only until a user has it;
            None if it stays one.
    """

    codes: Tensor
    seen: Tensor | None = None


class Backbone(Component, ABC):
    """Maps histories of ids to probabilities of the next id, level by level.

    Args:
        codebook_sizes: Codes per level, Q entries.
        dim: Width of the model.

    Attributes:
        vocabulary: The tokens of the model.
        every_prefix: Whether training needs one row per prefix of a history, whose last item is the target; otherwise
            one row per user, in which every item is a target.
        mean_over_levels: Whether the loss is a mean over the levels instead of a sum.
        parallel: Whether the indices of an id are independent given the history, so that :meth:`log_probs` depends on
            the length of a prefix alone. Then the whole catalogue is scored by :class:`gritvq.items.ParallelScorer`.
    """

    every_prefix: bool
    parallel = False
    mean_over_levels = False

    def __init__(self, codebook_sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.vocabulary, self.dim = Vocabulary(codebook_sizes), dim
        self.codebook_sizes = self.vocabulary.codebook_sizes

    @abstractmethod
    def loss(
        self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"], candidates: Candidates | None = None
    ) -> Float[Tensor, ""]:
        """Mean negative log-likelihood per item in nats, summed over the levels; see ``mean_over_levels``.

        Args:
            codes: Ids of items in time order; entries beyond ``lengths`` are ignored.
            lengths: Number of items per row, >= 1.
            candidates: For a model with a softmax over items; the others do not read it.
        """

    @abstractmethod
    def read(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Context:
        """Encode histories, once for all calls of :meth:`log_probs`; they may be empty."""

    @abstractmethod
    def log_probs(self, context: Context, prefixes: Int[Tensor, "B W l"]) -> Float[Tensor, "B W K"]:
        """Log-probabilities of the index after each of W prefixes of length l < Q, in float32.

        They are not renormalized over existing ids, so the score of an id does not depend on the catalogue.
        """


class CausalDecoder(Backbone):
    """Base of the causal models: tied input and output embeddings, a softmax per level, a loss at every item."""

    every_prefix = False

    def __init__(self, codebook_sizes: Sequence[int], dim: int, max_items: int) -> None:
        super().__init__(codebook_sizes, dim)
        self.max_items = max_items
        self.embedding = nn.Embedding(self.vocabulary.vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)  # as in GPT-2

    def _logits(self, states: Tensor, level: int) -> Tensor:
        """Logits of a level in float32: products with its embeddings."""
        return self._products(F.linear, states, self.embedding.weight[self.vocabulary.range_of(level)])

    def _products(self, multiply: Callable[[Tensor, Tensor], Tensor], states: Tensor, codes: Tensor) -> Tensor:
        """Logits in float32 of states and code embeddings."""
        return multiply(states, codes).float()

    @staticmethod
    def _packed(codes: Tensor, lengths: Tensor) -> tuple[Int[Tensor, " N"], Int[Tensor, "N Q"], Int[Tensor, "N Q"]]:
        """Places in the flattened rows that are not padding, the codes there, and the targets.

        The number N is rounded up to a multiple of 64 by places that are no target: programs of oneDNN are made and
        kept for each shape, so that memory would grow with every new one.
        """
        valid = torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]
        places = valid.flatten().nonzero()[:, 0]
        filled = F.pad(places, (0, -len(places) % _ROWS))
        inputs = codes.flatten(0, 1)[filled]
        targets = inputs.masked_fill(
            (torch.arange(len(filled), device=codes.device) >= len(places))[:, None], NO_TARGET
        )
        return filled, inputs, targets

    def _item_loss(
        self, states: Float[Tensor, "N q D"], codes: Int[Tensor, "N q"], levels: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Cross-entropy, a mean over targets and a sum over these levels; those of one size are one product."""
        if len({self.codebook_sizes[level] for level in levels}) > 1:
            pairs = [(self._logits(states[:, i], level), codes[:, i]) for i, level in enumerate(levels)]
            return torch.stack([mean_cross_entropy(*pair) for pair in pairs]).sum()
        tables = torch.stack([self.embedding.weight[self.vocabulary.range_of(level)] for level in levels])
        logits = self._products(lambda a, b: a @ b.transpose(1, 2), states.transpose(0, 1), tables)
        return mean_cross_entropy(logits.flatten(0, 1), codes.T.flatten()) * len(levels)

    def _with_start(self, items: Tensor) -> Tensor:
        """BOS and embedded items (B, T + 1, D)."""
        self._check_length(items.shape[1])
        return torch.cat([self.embedding.weight[BOS].expand(items.shape[0], 1, -1), items], 1)

    def _check_length(self, items: int) -> None:
        if items > self.max_items:
            raise ValueError(
                f"expected at most {self.max_items} items in a row, got {items}; keep the newest, or increase the "
                "model's max_items"
            )


class PerItemDecoder(CausalDecoder):
    """Base of the causal models with one position per item."""

    def read(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Context:
        """See the base class. States are those after the last item (B, 1, D)."""
        states = self._states(codes)
        return Context(states[torch.arange(codes.shape[0]), lengths][:, None], torch.ones_like(lengths))

    @abstractmethod
    def _states(self, codes: Tensor) -> Tensor:
        """States (B, T + 1, D) after BOS and after each item."""


def mask_items_before(logits: Float[Tensor, "N n"], rows: Int[Tensor, "B T"], places: Int[Tensor, " N"]) -> Tensor:
    """Logits of all items, in place with minus infinity for the items before each place, but not for the item there.

    Args:
        logits: Of each place.
        rows: Item rows of the histories, padded with -1 behind the newest.
        places: Places in ``rows.flatten()``.

    Example:
        >>> mask_items_before(torch.zeros(2, 4), torch.tensor([[3, 2, 3]]), torch.tensor([1, 2]))
        tensor([[0., 0., 0., -inf],
                [0., 0., -inf, 0.]])
    """
    lines, column = rows[places // rows.shape[1]], places[:, None] % rows.shape[1]
    later = torch.arange(rows.shape[1], device=rows.device) >= column
    before = (lines >= 0) & ~later & (lines != lines.gather(1, column))
    logits[before.nonzero()[:, 0], lines[before]] = -math.inf
    return logits


def mean_cross_entropy(logits: Float[Tensor, "N K"], targets: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean over the targets of the joined batch; ``NO_TARGET`` is none."""
    return masked_mean(F.cross_entropy(logits, targets, reduction="none"), targets != NO_TARGET)
