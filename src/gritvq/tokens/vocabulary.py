"""A vocabulary for sequence models: special tokens, then the indices of all channels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["BOS", "EOS", "PAD", "Vocabulary"]

PAD, BOS, EOS = 0, 1, 2


class Vocabulary:
    """Tokens of all index channels in one range: PAD 0, BOS 1, EOS 2, then channel by channel.

    Index i of channel q is token ``first_tokens[q] + i`` with ``first_tokens[q] = first_token + sum(K_0 .. K_{q-1})``;
    -1, a masked index, is PAD.

    Args:
        codebook_sizes: Codes K of each channel, Q entries.
        first_token: Token of index 0 of channel 0; the tokens below it are special.

    Attributes:
        first_tokens: First token of each channel, then ``vocab_size``; Q + 1 entries.
        vocab_size: Number of tokens, including special ones.

    Raises:
        ValueError: If there is no channel, or a size is smaller than 1.

    Example:
        >>> vocabulary = Vocabulary((4, 8))
        >>> tokens = vocabulary.tokens_of(torch.tensor([[0, 7], [3, -1]]))
        >>> tokens.tolist(), vocabulary.vocab_size
        ([[3, 14], [6, 0]], 15)
        >>> vocabulary.indices_of(tokens).tolist()
        [[0, 7], [3, -1]]
    """

    def __init__(self, codebook_sizes: Sequence[int], *, first_token: int = EOS + 1) -> None:
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(
                f"expected at least one codebook size, all >= 1, got {list(codebook_sizes)}; pass the quantizer's"
            )
        self.first_tokens = tuple(itertools.accumulate(self.codebook_sizes, initial=first_token))
        self.vocab_size = self.first_tokens[-1]

    def tokens_of(
        self, indices: Int[Tensor, "*batch l"], channels: Int[Tensor, "*#batch l"] | None = None
    ) -> Int[Tensor, "*batch l"]:
        """Tokens of indices.

        Args:
            indices: Indices of the first l channels or of ``channels``; -1 if masked.
            channels: Channel of each index, broadcastable; None means 0 .. l - 1 along the last axis.
        """
        return (indices + self._of(self.first_tokens, indices, channels)).masked_fill_(indices < 0, PAD)

    def indices_of(
        self, tokens: Int[Tensor, "*batch l"], channels: Int[Tensor, "*#batch l"] | None = None
    ) -> Int[Tensor, "*batch l"]:
        """Indices of tokens; -1 for special tokens and tokens of another channel.

        Args:
            tokens: Tokens of the first l channels or of ``channels``.
            channels: As in :meth:`tokens_of`.
        """
        indices = tokens - self._of(self.first_tokens, tokens, channels)
        return indices.masked_fill_(indices >= self._of(self.codebook_sizes, tokens, channels), -1).clamp_(min=-1)

    def range_of(self, channel: int) -> slice:
        """Tokens of a channel: a slice of the last axis of logits, or of the rows of an embedding.

        Example:
            >>> torch.arange(15)[Vocabulary((4, 8)).range_of(0)]
            tensor([3, 4, 5, 6])
        """
        return slice(self.first_tokens[channel], self.first_tokens[channel + 1])

    @staticmethod
    def _of(numbers: Sequence[int], values: Tensor, channels: Tensor | None) -> Tensor:
        """The number of each value's channel."""
        if channels is None:
            return torch.tensor(numbers[: values.shape[-1]], dtype=torch.int64, device=values.device)
        return torch.tensor(numbers, device=values.device)[channels]
