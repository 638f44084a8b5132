"""A model with a position per item, and a small one that writes the indices of an id one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from gritvq.items.recommenders.backbones.base import Candidates, Context, PerItemDecoder
from gritvq.priors.transformer import channel_states, gpt2

__all__ = ["DepthDecoder"]


class DepthDecoder(PerItemDecoder):
    """A causal transformer over items, and a small one over the levels of an item; Q times fewer positions.

    The input of the first at an item is the sum of its codes' embeddings. The second starts from its state and predicts
    the indices one after the other, each with a softmax over its level. One pass trains on all prefixes of a history.
    Both are GPT-2 models.

    Args:
        codebook_sizes: Codes per level.
        dim: Width of the model.
        num_layers: Layers over items.
        num_code_layers: Layers over the levels.
        num_heads: Attention heads.
        hidden_dim: Width inside the feed-forward layers.
        dropout: Dropout rate in [0, 1).
        max_items: Largest number of items in a row.

    References:
        Lee et al., Autoregressive image generation using residual quantization (RQ-Transformer), CVPR 2022, arXiv
        2203.01941, section 3.2, with items instead of positions.

    Example:
        >>> import torch
        >>> model = DepthDecoder((4, 4), 8, num_layers=1, num_heads=1, hidden_dim=8)
        >>> context = model.read(torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([2]))
        >>> model.log_probs(context, torch.tensor([[[0], [1], [2]]])).shape
        torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int = 192,
        *,
        num_layers: int = 3,
        num_code_layers: int = 1,
        num_heads: int = 6,
        hidden_dim: int = 768,
        dropout: float = 0.2,
        max_items: int = 21,
    ) -> None:
        super().__init__(codebook_sizes, dim, max_items)
        self.items: Any = gpt2(dim, num_layers, num_heads, hidden_dim, dropout, max_items + 1)
        self.codes: Any = gpt2(dim, num_code_layers, num_heads, hidden_dim, dropout, len(self.codebook_sizes))

    def loss(
        self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"], candidates: Candidates | None = None
    ) -> Float[Tensor, ""]:
        """See the base class. Every item of each row is a target."""
        places, inputs, targets = self._packed(codes, lengths)
        states = self._states(codes)[:, :-1].flatten(0, 1)[places]
        return self._item_loss(self._write(states, inputs[:, :-1]), targets, range(codes.shape[2]))

    def log_probs(self, context: Context, prefixes: Int[Tensor, "B W l"]) -> Float[Tensor, "B W K"]:
        """See the base class."""
        width, level = prefixes.shape[1:]
        states = context.states.expand(-1, width, -1).flatten(0, 1)
        written = self._write(states, prefixes.flatten(0, 1))[:, -1]
        return self._logits(written, level).log_softmax(-1).unflatten(0, (-1, width))

    def _states(self, codes: Tensor) -> Tensor:
        """See the base class."""
        items = self.embedding(self.vocabulary.tokens_of(codes)).sum(2)
        return self.items(inputs_embeds=self._with_start(items)).last_hidden_state

    def _write(self, states: Tensor, codes: Tensor) -> Tensor:
        """States (N, l + 1, D) that predict the indices."""
        embedded = self.embedding(self.vocabulary.tokens_of(codes))
        return channel_states(self.codes, states, embedded)
