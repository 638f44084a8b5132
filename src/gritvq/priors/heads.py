"""What a prior predicts at a position: the indices of all its channels, given the position's state.

A head is chosen by what the tokens are, never by which quantizer made them.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import Component, check_integer
from gritvq.priors.sampling import Draw

__all__ = ["Head", "HeadName", "SoftmaxHead", "head_for"]

HeadName: TypeAlias = Literal["softmax"]


class Head(Component, ABC):
    """Probabilities of a position's indices, and what these are to the next position.

    Args:
        codebook_sizes: Codes K of each channel, Q entries.
        width: Of the states, D.
    """

    def __init__(self, codebook_sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.codebook_sizes = tuple(check_integer("codebook size", size) for size in codebook_sizes)
        self.width = check_integer("width", width)

    @abstractmethod
    def log_prob(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch"]:
        """Log-probability of the indices of each position in nats, summed over its channels; -1 counts nothing."""

    @abstractmethod
    def sample(
        self, states: Float[Tensor, "streams *batch D"], draw: Draw, present: Bool[Tensor, "*positions Q"]
    ) -> Int[Tensor, "*batch Q"]:
        """Draw the indices of positions.

        Args:
            states: One stream, or two for guidance: with the class and without.
            draw: Makes indices (*batch) of logits (streams, *batch, K).
            present: Channels that the positions have; the others become -1.
        """

    @abstractmethod
    def embed(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """One vector per position, a sum over its channels; -1 adds nothing."""

    def loss(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, ""]:
        """Mean nats per index; -1 counts nothing."""
        return -self.log_prob(states, indices).sum() / (indices >= 0).sum().clamp(min=1)


class _TableHead(Head):
    """A head with a row per index and channel, read and written."""

    def __init__(self, codebook_sizes: Sequence[int], width: int, output_width: int) -> None:
        super().__init__(codebook_sizes, width)
        ends = list(itertools.accumulate(self.codebook_sizes))
        self._ranges = [slice(end - size, end) for end, size in zip(ends, self.codebook_sizes, strict=True)]
        self.embedding = nn.Embedding(ends[-1], width)
        self.output = nn.Linear(output_width, ends[-1], bias=False)
        for weight in (self.embedding.weight, self.output.weight):
            nn.init.normal_(weight, std=0.02)

    def embed(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """See the base class."""
        return self._embedded(indices).sum(-2)

    def _embedded(self, indices: Tensor) -> Tensor:
        """(*batch, l, D) of the first l channels."""
        starts = torch.tensor([rows.start for rows in self._ranges[: indices.shape[-1]]], device=indices.device)
        return self.embedding(indices.clamp(min=0) + starts) * (indices >= 0)[..., None]

    def _logits(self, states: Tensor, channel: int) -> Tensor:
        return F.linear(states, self.output.weight[self._ranges[channel]]).float()

    def _channel_log_prob(self, states: Tensor, indices: Tensor, channel: int) -> Tensor:
        logits = self._logits(states, channel).movedim(-1, 1 if states.ndim > 1 else 0)
        return -F.cross_entropy(logits, indices[..., channel], ignore_index=-1, reduction="none")


class SoftmaxHead(_TableHead):
    """A softmax over the codes of each channel, all channels at once: ``p(i_1 .. i_Q) = prod_q p(i_q | state)``.

    With several channels per position these are independent given the state; :class:`DepthHead` knows better, and
    so do layouts that are ``"flat"`` or a ``"delay"``. Parameters: 2 D sum(K).

    Args:
        codebook_sizes: Codes of each channel.
        width: Of the states.

    Example:
        >>> head = SoftmaxHead((4, 8), 16)
        >>> head.log_prob(torch.randn(2, 3, 16), torch.ones(2, 3, 2, dtype=torch.int64)).shape
        torch.Size([2, 3])
    """

    def __init__(self, codebook_sizes: Sequence[int], width: int) -> None:
        super().__init__(codebook_sizes, width, width)

    def log_prob(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch"]:
        """See the base class."""
        found = [self._channel_log_prob(states, indices, q) for q in range(len(self.codebook_sizes))]
        return torch.stack(found).sum(0)

    def sample(
        self, states: Float[Tensor, "streams *batch D"], draw: Draw, present: Bool[Tensor, "*positions Q"]
    ) -> Int[Tensor, "*batch Q"]:
        """See the base class."""
        found = torch.full((*states.shape[1:-1], len(self.codebook_sizes)), -1, device=states.device)
        for q in range(len(self.codebook_sizes)):
            if present[..., q].any():
                found[..., q] = draw(self._logits(states, q)).masked_fill(~present[..., q], -1)
        return found


def head_for(
    name: HeadName | None, codebook_sizes: Sequence[int], width: int, channels_at_once: int, dropout: float = 0.0
) -> Head:
    """A head by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name in (None, "softmax"):
        return SoftmaxHead(codebook_sizes, width)
    raise ValueError(f"expected head 'softmax', got {name!r}")
