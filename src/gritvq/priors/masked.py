"""Masked priors: all positions in a few steps, the most confident ones first."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer, check_number
from gritvq.distributed import all_reduce_sum, joined_mean
from gritvq.priors.base import Prior, Progress
from gritvq.priors.heads import Head, HeadName
from gritvq.priors.sampling import Sampler, place_of
from gritvq.priors.transformer import Transformer
from gritvq.tokens import TokenLayout

__all__ = ["MaskedPrior", "UnmaskingOrder", "halton_order"]

UnmaskingOrder: TypeAlias = Literal["confidence", "halton"]


class MaskedPrior(Prior):
    """MaskGIT: a bidirectional transformer predicts masked positions from the others.

    In training, a fraction ``arccos(u) / (pi / 2)`` of the positions is masked, with u uniform in [0, 1]. A sample
    starts with all positions masked; after step n of N a fraction ``arccos(n / N) / (pi / 2)`` is still masked. Each
    step draws tokens for the masked positions and keeps some of them:

    - ``"confidence"``: the tokens with the largest log-probability plus Gumbel noise. The temperature of the tokens and
      the scale of this noise fall linearly to 0 at the last step. Without the noise, samples become uniform areas.
    - ``"halton"``: the next positions of a Halton sequence over the grid, which are evenly spread. The temperature is
      constant.

    ``cache`` of :meth:`sample` has no effect, since all positions are computed anew in each step.

    Args:
        layout: Positions and channels, ``"parallel"``.
        num_classes: See :class:`Prior`.
        width: See :class:`Prior`.
        depth: See :class:`Prior`.
        num_heads: See :class:`Prior`.
        dropout: See :class:`Prior`.
        class_dropout: See :class:`Prior`.
        head: See :class:`Prior`.
        num_steps: Number of sampling steps N; at most one per position is used. This and the next two arguments are
            attributes that may be changed before sampling.
        order: ``"confidence"`` or ``"halton"``, see above.
        confidence_noise: Scale of the noise on log-probabilities at the first step.

    Raises:
        ValueError: If an argument is out of range, or the order is ``"halton"`` and the layout has several scales.

    Example:
        >>> prior = MaskedPrior(TokenLayout((16,), (4, 4)), width=16, depth=1, num_heads=2, num_steps=4)
        >>> prior.sample(2, generator=0).shape
        torch.Size([2, 4, 4, 1])

    References:
        Chang et al., MaskGIT: Masked generative image transformer, CVPR 2022, arXiv 2202.04200. Besnier et al., Halton
        scheduler for masked generative image transformer, ICLR 2025, arXiv 2503.17076. Released variants also smooth
        labels and give unmasked positions a small weight; we do neither.
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
        num_steps: int = 12,
        order: UnmaskingOrder = "confidence",
        confidence_noise: float = 4.5,
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
        if layout.interleaving != "parallel":
            raise ValueError(f"expected the interleaving 'parallel' for a MaskedPrior, got {layout.interleaving!r}")
        self.num_steps, self.confidence_noise = num_steps, confidence_noise
        self.order: UnmaskingOrder = order
        self._check_sampling()
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.transformer = Transformer(width, depth, num_heads, dropout, layout.length)

    def log_prob(
        self,
        indices: Int[Tensor, "B *tokens Q"],
        condition: Int[Tensor, " B"] | None = None,
        *,
        num_draws: int = 8,
        seed: int = 0,
    ) -> Float[Tensor, " B"]:
        """An unbiased estimate of a lower bound of the log-probability in nats.

        The bound is the mean over all orders of positions of ``sum_t log p(x_t | positions before it)``, which is
        ``E_k [T / k sum_{k masked} log p(x_t | unmasked)]`` with k uniform in 1 .. T and k random positions masked. It
        holds for samples drawn one position at a time in random order. The probability of samples drawn in fewer steps
        cannot be computed.

        Args:
            indices: See the base class.
            condition: See the base class.
            num_draws: Number of stratified draws of k and of masks, with one forward pass each.
            seed: Seed of the masks.
        """
        rows = self.rows_of(indices)
        classes = self._embedded_classes(self._classes_of(condition, len(rows)))
        generator = torch.Generator().manual_seed(seed)
        length, total = self.layout.length, torch.zeros(len(rows), device=rows.device)
        for draw in range(check_integer("num_draws", num_draws)):
            uniform = (draw + torch.rand(len(rows), generator=generator)) / num_draws
            count = 1 + (uniform * length).long().clamp(max=length - 1)
            ranks = _ranks_of(torch.rand(len(rows), length, generator=generator))
            masked = (ranks < count[:, None]).to(rows.device)
            weights = (length / count).to(total)
            total += weights * (self._log_probs(rows, masked, classes) * masked).sum(1)
        return total / num_draws

    def _loss(self, rows: Int[Tensor, "B T Q"], classes: Float[Tensor, "B D"]) -> dict[str, Tensor]:
        """``nats_per_masked_token``."""
        batch, length, device = len(rows), self.layout.length, rows.device
        share = torch.rand(batch, device=device).arccos() / (math.pi / 2)
        count = (share * length).round().clamp(min=1)
        masked = _ranks_of(torch.rand(batch, length, device=device)) < count[:, None]
        found = self._log_probs(rows, masked, classes) * masked
        number = all_reduce_sum((self.present.sum(1) * masked).sum())
        return {"nats_per_masked_token": joined_mean(-found.sum(), number)}

    def _log_probs(self, rows: Tensor, masked: Tensor, classes: Tensor) -> Tensor:
        """Log-probabilities (B, T) of the positions given those that are not masked."""
        return self.head.log_prob(self._states(rows.masked_fill(masked[..., None], -1), classes), rows)

    def _states(self, rows: Tensor, classes: Tensor) -> Tensor:
        masked = (rows < 0).all(-1)
        inputs = torch.where(masked[..., None], self.mask, self.head.embed(rows)) + self.places.weight
        everything = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=rows.device)
        return self.transformer(inputs + classes[:, None], everything)

    def _sample(
        self, classes: Float[Tensor, "streams B D"], sampler: Sampler, progress: Progress, cache: bool
    ) -> Int[Tensor, "B T Q"]:
        streams, batch = classes.shape[:2]
        length = self.layout.length
        self._check_sampling()
        steps = min(self.num_steps, length)
        rows = torch.full((batch, *self.present.shape), -1, device=classes.device)
        masked = torch.ones(batch, length, dtype=torch.bool, device=classes.device)
        ranks = self._ranks() if self.order == "halton" else None
        left = length
        for n in range(steps):
            goal = math.floor(length * math.acos((n + 1) / steps) / (math.pi / 2))
            kept, left = left - min(goal, left - 1), min(goal, left - 1)
            cold = place_of(n, steps) if ranks is None else 0.0
            scores: list[Tensor] = []
            draw = sampler.at(place_of(n, steps), 1 - cold, scores)
            states = self._states(rows.repeat(streams, 1, 1), classes.flatten(0, 1))
            drawn = self.head.sample(states.unflatten(0, (streams, -1)), draw, self.present)
            if ranks is None:
                noise = self.confidence_noise * (1 - cold)
                order = torch.stack(scores).sum(0) + noise * sampler.noise.gumbel(length)
            else:
                order = -ranks.expand(batch, -1)
            chosen = order.masked_fill(~masked, -math.inf).argsort(dim=1, descending=True, stable=True)[:, :kept]
            new = torch.zeros_like(masked).scatter_(1, chosen, True)
            rows = torch.where(new[..., None], drawn, rows)
            masked = masked & ~new
            progress(n + 1, steps)
        return rows

    def _check_sampling(self) -> None:
        """Check the attributes that may be changed.

        Raises:
            ValueError: If one is out of range, or the order does not fit the layout.
        """
        if self.order not in get_args(UnmaskingOrder):
            raise ValueError(f"expected order 'confidence' or 'halton', got {self.order!r}; choose one")
        if self.order == "halton" and len(self.layout.scales) > 1:
            raise ValueError(
                f"expected one scale for the order 'halton', got {len(self.layout.scales)}; choose 'confidence'"
            )
        self.num_steps = check_integer("num_steps", self.num_steps)
        self.confidence_noise = check_number("confidence_noise", self.confidence_noise)

    def _ranks(self) -> Tensor:
        """Rank (T,) of each position in the Halton sequence."""
        order = halton_order(self.layout.shape).to(self.present.device)
        return order.argsort(stable=True)[self.layout.places].float()


def halton_order(shape: tuple[int, ...]) -> Int[Tensor, " cells"]:
    """Cells of a grid, numbered row by row, in the order in which a Halton sequence first reaches them.

    Args:
        shape: Shape of the grid.

    Raises:
        ValueError: If the grid has more than 6 axes.

    Example:
        >>> halton_order((2, 2)).tolist()
        [2, 1, 0, 3]
    """
    bases = (2, 3, 5, 7, 11, 13)[: len(shape)]
    if len(bases) < len(shape):
        raise ValueError(f"expected at most 6 axes for a Halton order, got {len(shape)}; choose 'confidence'")
    size, first, found = math.prod(shape), 1, dict[int, None]()
    while len(found) < size:
        numbers = np.arange(first, first + size)
        cells = [_mirrored(numbers, base, side) for base, side in zip(bases, shape, strict=True)]
        found.update(dict.fromkeys(np.ravel_multi_index(cells, shape).tolist()))
        first += size
    return torch.tensor(list(found))


def _mirrored(numbers: np.ndarray, base: int, side: int) -> np.ndarray:
    """Radical inverses of numbers in a base, as the index of one of ``side`` equal parts of [0, 1); exact."""
    mirrored, scale = np.zeros_like(numbers), 1
    while numbers.any():
        mirrored, numbers, scale = mirrored * base + numbers % base, numbers // base, scale * base
    return mirrored * side // scale


def _ranks_of(keys: Tensor) -> Tensor:
    """Rank 0, 1, ... of each value of a row; among equal ones the first place first."""
    return keys.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
