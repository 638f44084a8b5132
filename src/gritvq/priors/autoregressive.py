"""Autoregressive priors: one position after another."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.distributed import joined_count, joined_mean
from gritvq.priors.base import Prior, Progress
from gritvq.priors.heads import Head, HeadName
from gritvq.priors.sampling import Sampler, place_of
from gritvq.priors.transformer import Transformer
from gritvq.tokens import TokenLayout

__all__ = ["AutoregressivePrior", "PositionOrder"]

PositionOrder: TypeAlias = Literal["raster", "random"]


class AutoregressivePrior(Prior):
    """A causal transformer over the positions of a layout: ``p(x) = prod_t p(x_t | x_1 .. x_{t-1}, class)``.

    The input at position t is the sum of the embeddings of the previous token, of position t, and of the class. The
    head predicts all channels of a position. :meth:`log_prob` is exact: :meth:`sample` draws from this distribution at
    temperature 1 without guidance and filters. In a ragged layout the end of a sample is a code like any other, and the
    last one that is drawn; so the probabilities of the samples of all lengths, the empty one included, sum to 1.

    Args:
        layout: Positions and channels; order and interleaving are the layout's.
        num_classes: See :class:`Prior`.
        width: See :class:`Prior`.
        depth: See :class:`Prior`.
        num_heads: See :class:`Prior`.
        dropout: See :class:`Prior`.
        class_dropout: See :class:`Prior`.
        head: See :class:`Prior`.
        order: ``"raster"``: the order of positions in the layout. ``"random"`` (RAR): in training, a fraction of the
            samples has its positions in random order, and the input also has an embedding of the previous position;
            samples are drawn in the order of the layout.
        annealing: Fractions of the training between which the fraction of random orders falls linearly from 1 to 0.

    Raises:
        ValueError: If an argument is out of range, or the layout is ragged and the order random.

    Example:
        >>> prior = AutoregressivePrior(TokenLayout((16,), (4, 4)), num_classes=3, width=16, depth=1, num_heads=2)
        >>> indices = prior.sample(2, torch.tensor([0, 2]), generator=0)
        >>> indices.shape, prior.log_prob(indices, torch.tensor([0, 2])).shape
        (torch.Size([2, 4, 4, 1]), torch.Size([2]))

    References:
        Sun et al., Autoregressive model beats diffusion (LlamaGen), 2024, arXiv 2406.06525. There positions are rotary
        in two dimensions and the class is the first token; here every position has an embedding of its own besides the
        rotary one of the sequence, and the class is added everywhere. Yu et al., Randomized autoregressive visual
        generation (RAR), ICCV 2025, arXiv 2411.00776 (the random order).
    """

    takes_ragged: ClassVar[bool] = True

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
        order: PositionOrder = "raster",
        annealing: tuple[float, float] = (0.5, 0.75),
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
        if order not in get_args(PositionOrder):
            raise ValueError(f"expected order 'raster' or 'random', got {order!r}")
        if layout.ragged and order == "random":
            raise ValueError("expected order 'raster' for samples that may end early, got 'random'; leave it out")
        if len(annealing) != 2 or not 0 <= annealing[0] <= annealing[1] <= 1:
            raise ValueError(f"expected annealing (begin, end) with 0 <= begin <= end <= 1, got {annealing!r}")
        self.order: PositionOrder = order
        self.annealing = (float(annealing[0]), float(annealing[1]))
        self.transformer = Transformer(width, depth, num_heads, dropout, layout.length)
        if order == "random":
            self.sources = nn.Embedding(layout.length, width)
            nn.init.normal_(self.sources.weight, std=0.02)

    @property
    def random_share(self) -> float:
        """Fraction of samples in random order at this point of the training."""
        begin, end = self.annealing
        if self.order == "raster" or self.training_progress >= end:
            return 0.0
        return 1.0 if self.training_progress <= begin else (end - self.training_progress) / (end - begin)

    def log_prob(
        self,
        indices: Int[Tensor, "B *tokens Q"],
        condition: Int[Tensor, " B"] | None = None,
        *,
        order: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Log-probability of whole samples in nats, exact.

        Args:
            indices: See the base class.
            condition: See the base class.
            order: Order of the positions, for a prior of ``"random"`` order; that of the layout if None. Each order
                defines another distribution.

        Raises:
            ValueError: As in the base class, or if the order is not a permutation, or the prior has ``"raster"`` order.
        """
        rows = self.rows_of(indices)
        if order is not None:
            if self.order == "raster" or sorted(order.tolist()) != list(range(self.layout.length)):
                raise ValueError(
                    f"expected a permutation of 0 .. {self.layout.length - 1} for a prior of order 'random', got "
                    f"{order.tolist()[:8]} for one of order {self.order!r}"
                )
            order = order.to(rows.device).expand(len(rows), -1)
        classes = self._embedded_classes(self._classes_of(condition, len(rows)))
        return self._log_probs(rows, classes, order).sum(1)

    def _loss(self, rows: Int[Tensor, "B T Q"], classes: Float[Tensor, "B D"]) -> dict[str, Tensor]:
        order = None
        if self.training and self.random_share:
            shuffled = torch.rand(len(rows), 1, device=rows.device) < self.random_share
            keys = torch.rand(rows.shape[:2], device=rows.device)
            order = torch.where(
                shuffled, keys.argsort(dim=1, stable=True), torch.arange(rows.shape[1], device=rows.device)
            )
        found = self._log_probs(rows, classes, order)
        return {"nats_per_token": joined_mean(-found.sum(), joined_count(rows >= 0))}

    def _log_probs(self, rows: Tensor, classes: Tensor, order: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, T) of the positions given those before them, in the given order (B, T)."""
        if order is not None:
            rows = rows.gather(1, order[..., None].expand_as(rows))
        return self.head.log_prob(self._states(rows, classes, order), rows)

    def _states(self, rows: Tensor, classes: Tensor, order: Tensor | None = None) -> Tensor:
        before = F.pad(self.head.embed(rows)[:, :-1], (0, 0, 1, 0))
        return self.transformer(before + self._positions(order) + classes[:, None])

    def _positions(self, order: Tensor | None = None) -> Tensor:
        """(..., T, D): embeddings of the position to predict and, if the order is random, of the one before it."""
        targets = self.places.weight if order is None else self.places(order)
        if self.order == "raster":
            return targets
        sources = self.sources.weight if order is None else self.sources(order)
        return targets + F.pad(sources[..., :-1, :], (0, 0, 1, 0))

    def _sample(
        self, classes: Float[Tensor, "streams B D"], sampler: Sampler, progress: Progress, cache: bool
    ) -> Int[Tensor, "B T Q"]:
        length, streams = self.layout.length, len(classes)
        kept = self.transformer.new_cache() if cache else None
        positions = self._positions()
        ended = torch.zeros(classes.shape[1], 1, dtype=torch.bool, device=classes.device)
        rows: list[Tensor] = []
        inputs: list[Tensor] = []
        for t in range(length):
            before = self.head.embed(rows[-1]) if rows else torch.zeros_like(classes[0])
            inputs.append((before + positions[t] + classes).flatten(0, 1)[:, None])
            states = self.transformer(inputs[-1] if cache else torch.cat(inputs, 1), cache=kept)[:, -1]
            draw = sampler.at(place_of(t, length))
            row = self.head.sample(states.unflatten(0, (streams, -1)), draw, self.present[t] & ~ended)
            if self.layout.ragged:
                ended = ended | (row[:, :1] == self.layout.end)
                row[:, 1:] = row[:, 1:].masked_fill(ended, -1)
            rows.append(row)
            progress(t + 1, length)
        return torch.stack(rows, 1)
