"""Next-scale priors: one scale after another, all positions of a scale at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.distributed import joined_average
from gritvq.priors.base import Prior, Progress
from gritvq.priors.heads import Head, HeadName
from gritvq.priors.sampling import Sampler, place_of
from gritvq.priors.transformer import Transformer
from gritvq.tokens import TokenLayout

__all__ = ["NextScalePrior"]

_MODES = ("linear", "bilinear", "trilinear")


class NextScalePrior(Prior):
    """Next-scale prediction (VAR): ``p(x) = prod_s p(scale s | scales before it, class)``.

    The positions of a scale are independent of each other given the earlier scales. Attention is block-causal: each
    position attends to its own scale and to the earlier ones. The input at scale s is the sum over all earlier scales
    of the embeddings of their tokens, resized to the grid of s by linear interpolation, plus the embeddings of the
    position and of the class. :meth:`log_prob` is exact: :meth:`sample` draws from this distribution at temperature 1
    without guidance and filters.

    In VAR the input is the value that the earlier scales decode to, resized. Here learned embeddings take its place:
    the prior then needs nothing but tokens and works for every quantizer with several scales (residual scales,
    hierarchies, binary codes). A multi-scale quantizer itself sums the decoded scales, so the sum of resized embeddings
    can represent that value up to the interpolation.

    Args:
        layout: Positions and channels of at least two scales, ``"parallel"`` and row by row.
        num_classes: See :class:`Prior`.
        width: See :class:`Prior`.
        depth: See :class:`Prior`.
        num_heads: See :class:`Prior`.
        dropout: See :class:`Prior`.
        class_dropout: See :class:`Prior`.
        head: See :class:`Prior`.

    Raises:
        ValueError: If the layout has one scale, or scales of different or more than three axes.

    Example:
        >>> from gritvq import msvq
        >>> layout = TokenLayout.of(msvq(4, 16, sides=(1, 2, 4)), (4, 4))
        >>> prior = NextScalePrior(layout, width=16, depth=1, num_heads=2)
        >>> prior.sample(2, generator=0).shape
        torch.Size([2, 21, 1])

    References:
        Tian et al., Visual autoregressive modeling, NeurIPS 2024, arXiv 2404.02905.
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
        grids = [scale.grid for scale in layout.scales]
        if len(grids) < 2:
            raise ValueError(f"expected at least two scales, got {grids}; an AutoregressivePrior takes one")
        if len({len(grid) for grid in grids}) > 1 or len(grids[0]) > len(_MODES):
            raise ValueError(f"expected scales of the same 1 to {len(_MODES)} axes, got {grids}")
        if layout.interleaving != "parallel" or not torch.equal(layout.places.cpu(), torch.arange(layout.length)):
            raise ValueError(
                "expected the interleaving 'parallel' and the order 'raster' for a NextScalePrior, got another layout"
            )
        self._sizes = [int((layout.scale_ids == number).sum()) for number in range(len(grids))]
        self.transformer = Transformer(width, depth, num_heads, dropout, layout.length)

    def log_prob(
        self, indices: Int[Tensor, "B *tokens Q"], condition: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        """Log-probability of whole samples in nats, exact."""
        rows = self.rows_of(indices)
        return self._log_probs(rows, self._embedded_classes(self._classes_of(condition, len(rows)))).sum(1)

    def _loss(self, rows: Int[Tensor, "B T Q"], classes: Float[Tensor, "B D"]) -> dict[str, Tensor]:
        found = -self._log_probs(rows, classes).sum() / (len(rows) * self.num_tokens)
        return {"nats_per_token": joined_average(found, len(rows))}

    def _log_probs(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Log-probabilities (B, T) of the positions given the earlier scales."""
        return self.head.log_prob(self._states(rows, classes), rows)

    def _states(self, rows: Tensor, classes: Tensor) -> Tensor:
        embedded = list(self.head.embed(rows).split(self._sizes, 1))
        inputs = [self._inputs(embedded[:number], classes) for number in range(len(embedded))]
        return self.transformer(torch.cat(inputs, 1), self._mask(self.layout.length))

    def _mask(self, length: int) -> Tensor:
        """Block-causal mask (length, length) of the first positions."""
        scales = self.layout.scale_ids[:length]
        return scales[:, None] >= scales

    def _inputs(self, embedded: list[Tensor], classes: Tensor) -> Tensor:
        """Inputs (B, T_s, D) of the scale after those embedded."""
        number = len(embedded)
        first = sum(self._sizes[:number])
        own = self.places.weight[first : first + self._sizes[number]] + classes[:, None]
        grid = self.layout.scales[number].grid
        for before, scale in zip(embedded, self.layout.scales, strict=False):
            cells = before.mT.unflatten(2, scale.grid)
            if scale.grid != grid:
                cells = F.interpolate(cells, grid, mode=_MODES[len(grid) - 1], align_corners=False)
            own = own + cells.flatten(2).mT
        return own

    def _sample(
        self, classes: Float[Tensor, "streams B D"], sampler: Sampler, progress: Progress, cache: bool
    ) -> Int[Tensor, "B T Q"]:
        streams, total = len(classes), len(self._sizes)
        kept = self.transformer.new_cache() if cache else None
        flat = classes.flatten(0, 1)
        rows: list[Tensor] = []
        inputs: list[Tensor] = []
        embedded: list[Tensor] = []
        first = 0
        for number, size in enumerate(self._sizes):
            inputs.append(self._inputs(embedded, flat))
            mask = self._mask(first + size)
            new = inputs[-1] if cache else torch.cat(inputs, 1)
            states = self.transformer(new, mask[-new.shape[1] :], kept)[:, -size:]
            draw = sampler.at(place_of(number, total))
            present = self.present[first : first + size]
            rows.append(self.head.sample(states.unflatten(0, (streams, -1)), draw, present))
            embedded.append(self.head.embed(rows[-1]).repeat(streams, 1, 1))
            first += size
            progress(number + 1, total)
        return torch.cat(rows, 1)
