"""One position after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.priors.base import Prior, Progress
from gritvq.priors.heads import Head, HeadName
from gritvq.priors.sampling import Sampler, place_of
from gritvq.priors.transformer import Transformer
from gritvq.tokens import TokenLayout

__all__ = ["AutoregressivePrior"]


class AutoregressivePrior(Prior):
    """A causal transformer over the positions of a layout: ``p(x) = prod_t p(x_t | x_1 .. x_{t-1}, class)``.

    The input at position t is the embedding of the token before it, plus that of position t, plus that of the class.
    All channels of a position are the head's. Exact: :meth:`log_prob` is that of what :meth:`sample` draws at
    temperature 1 without guidance and filters.

    Args:
        layout: Positions and channels; order and interleaving are the layout's.
        num_classes: See :class:`Prior`, as for all arguments.
        width: Of the states.
        depth: Layers.
        num_heads: Attention heads.
        dropout: In [0, 1).
        class_dropout: Share of classes forgotten in training.
        head: Of a position.

    Example:
        >>> prior = AutoregressivePrior(TokenLayout((16,), (4, 4)), num_classes=3, width=16, depth=1, num_heads=2)
        >>> indices = prior.sample(2, torch.tensor([0, 2]), generator=0)
        >>> indices.shape, prior.log_prob(indices, torch.tensor([0, 2])).shape
        (torch.Size([2, 4, 4, 1]), torch.Size([2]))

    References:
        Sun et al., Autoregressive model beats diffusion (LlamaGen), 2024, arXiv 2406.06525. There positions are rotary
        in two dimensions and the class is the first token; here every position has an embedding of its own besides the
        rotary one of the sequence, and the class is added everywhere.
    """

    def __init__(
        self,
        layout: TokenLayout,
        *,
        num_classes: int | None = None,
        width: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        dropout: float = 0.1,
        class_dropout: float = 0.1,
        head: Head | HeadName | None = None,
    ) -> None:
        super().__init__(
            layout,
            num_classes=num_classes,
            width=width,
            depth=depth,
            num_heads=num_heads,
            dropout=dropout,
            class_dropout=class_dropout,
            head=head,
        )
        self.transformer = Transformer(width, depth, num_heads, dropout, layout.length)

    def log_prob(
        self, indices: Int[Tensor, "B *tokens Q"], condition: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        """Log-probability of whole samples in nats, exact."""
        rows = self.rows_of(indices)
        return self._log_probs(rows, self._embedded_classes(self._classes_of(condition, len(rows)))).sum(1)

    def _loss(self, rows: Int[Tensor, "B T Q"], classes: Float[Tensor, "B D"]) -> dict[str, Tensor]:
        found = self._log_probs(rows, classes)
        return {"nats_per_token": -found.sum() / (len(rows) * self.num_tokens)}

    def _log_probs(self, rows: Tensor, classes: Tensor) -> Tensor:
        """(B, T) of each position given those before it."""
        return self.head.log_prob(self.transformer(self._inputs(rows, classes)), rows)

    def _inputs(self, rows: Tensor, classes: Tensor) -> Tensor:
        before = F.pad(self.head.embed(rows)[:, :-1], (0, 0, 1, 0))
        return before + self.places.weight + classes[:, None]

    def _sample(
        self, classes: Float[Tensor, "streams B D"], sampler: Sampler, progress: Progress, cache: bool
    ) -> Int[Tensor, "B T Q"]:
        length, streams = self.layout.length, len(classes)
        kept = self.transformer.new_cache() if cache else None
        rows: list[Tensor] = []
        inputs: list[Tensor] = []
        for t in range(length):
            before = self.head.embed(rows[-1]) if rows else torch.zeros_like(classes[0])
            inputs.append((before + self.places.weight[t] + classes).flatten(0, 1)[:, None])
            states = self.transformer(inputs[-1] if cache else torch.cat(inputs, 1), cache=kept)[:, -1]
            draw = sampler.at(place_of(t, length))
            rows.append(self.head.sample(states.unflatten(0, (streams, -1)), draw, self.present[t]))
            progress(t + 1, length)
        return torch.stack(rows, 1)
