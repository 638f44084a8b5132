"""Residual quantization: a sum of levels, each quantizing the remainder of the levels before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import check_integer, check_number, eval_mode
from gritvq.quantizers.base import Quantizer, QuantizerOutput
from gritvq.quantizers.canonical import ranked
from gritvq.quantizers.functional import at_least_float32
from gritvq.quantizers.structures.stack import Stack, check_hard_part, code_type, drawn_depths, value_of

__all__ = ["ResidualQuantizer"]

_BLOCK_ENTRIES = 1 << 22  # numbers of the largest array of a beam search


class ResidualQuantizer(Stack):
    """Residual quantization: every level quantizes the remainder of the levels before; the value is the sum.

    ``r_1 = x``, ``q_l = Q_l(r_l)``, ``r_{l+1} = r_l - sg(q_l)``, value ``sum_l q_l``. A vector's first n index channels
    are a coarser description of it: channels of -1 add nothing, so ``decode(indices[..., :n])`` works for every n.

    Levels may be of different kinds and themselves be structures. One whose ``before`` and ``after`` hold no parameters
    is asked for its value ``after(Q(before(r)))``; since the one surrogate of the whole works where x lives, the
    encoder gets exactly the upstream gradient, and what ``before`` does to x (the tanh of FSQ, the normalization of
    BSQ) is differentiated by the level's own losses only.

    Levels that are differentiable themselves (all or none) get no gradient cut: ``r_{l+1} = r_l - q_l``, so that the
    gradient is that of the sum as it is written.

    Args:
        quantizers: The levels, all of the same ``dim``; the same object several times shares one codebook.
        dropout: Probability, in training, that a sample (first axis) keeps only its first n levels, n uniform in
            ``1 .. L``; drawn from torch's global generator. The dropped channels are -1.

    Raises:
        ValueError: If the levels do not fit together; if one has trained maps or a layout, or some have no surrogate.

    Example:
        >>> from gritvq import FSQ, FreeCodebook, VectorQuantizer
        >>> quantizer = ResidualQuantizer([VectorQuantizer(FreeCodebook(4, 16)), FSQ([5, 5, 5, 5])])
        >>> quantized, indices, losses = quantizer(torch.randn(2, 5, 4))
        >>> indices.shape, quantizer.codebook_sizes, sorted(losses)
        (torch.Size([2, 5, 2]), (16, 625), ['0/codebook', '0/commitment'])
        >>> quantizer.decode(indices[..., :1]).shape
        torch.Size([2, 5, 4])

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022, arXiv 2203.01941;
        Zeghidour et al., "SoundStream", 2021, arXiv 2107.03312 (dropout of levels). Residuals of different kinds and
        without the gradient of the bound are our choice.
    """

    def __init__(self, quantizers: Sequence[Quantizer], *, dropout: float = 0.0) -> None:
        super().__init__(quantizers)
        for part in quantizers:
            if part.input_dim != part.dim:
                check_hard_part(part, type(self).__name__)  # raises; Stack has checked hard parts
            if part.layout:
                raise ValueError(
                    f"expected levels that take every vector on its own, got {type(part).__name__} with the layout "
                    f"{part.layout}; a ProductQuantizer can hold such parts"
                )
        dims = [part.dim for part in quantizers]
        if len(set(dims)) != 1:
            raise ValueError(f"expected levels of one dim, got {dims}")
        self.dim, self.dropout = dims[0], check_number("dropout", dropout, most=1)
        # A drawn depth gives other indices, and what a level draws in training is what the later ones see.
        self.draws_indices |= dropout > 0 or any(part.exact == "eval" for part in quantizers[:-1])

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Level by level."""
        x = at_least_float32(x)
        total = torch.zeros(x.shape, device=x.device)  # float32 as the codes are; wider if they are
        kept = self._kept(x)
        channels: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        for level, part in enumerate(self._parts()):
            rest, own = x - (total if self.surrogate is None else total.detach()), valid
            if kept is not None:
                own = valid & (kept > level)
                rest = torch.where(own.unsqueeze(-1), rest, 0)
            output = part.quantize(part.before(rest), own)
            value = part.after(output.quantized)
            if self.surrogate is None and (part.exact == "always" or not self.training):
                value = value.to(code_type(part))  # summed as decode does, whatever the input's type
            total = total + torch.where(own.unsqueeze(-1), value, 0)
            channels.append(output.indices)
            losses.update({f"{level}/{name}": loss for name, loss in output.losses.items()})
        return QuantizerOutput(total, torch.cat(channels, dim=-1), losses)

    def _kept(self, x: Tensor) -> Tensor | None:
        """Levels kept by each sample, shaped to broadcast over its vectors."""
        if not self.training or self.dropout == 0:
            return None
        shape = (x.shape[0],) + (1,) * (x.ndim - 2) if x.ndim > 1 else ()
        return drawn_depths(shape, self.dropout, 1, len(self.quantizers), x)

    def lookup(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """Sum of the levels' values."""
        total = torch.zeros(*indices.shape[:-1], self.dim, device=indices.device)
        for part, own in zip(self._parts(), self._channels(indices), strict=True):
            total = total + value_of(part, own)
        return total

    def encode(
        self,
        x: Float[Tensor, "*batch D"],
        mask: Bool[Tensor, "*batch"] | None = None,
        num_levels: int | None = None,
        beam: int = 1,
    ) -> Int[Tensor, "*batch Q"]:
        """Indices, of the first ``num_levels`` levels where given.

        Args:
            x: Vectors (*batch, D).
            mask: True where a vector is real.
            num_levels: How many levels to use; all where None.
            beam: How many partial sums a vector keeps from level to level; each is continued by that many nearest
                codes, and the ones of least squared error stay. 1 takes the nearest code level by level, as
                :meth:`forward` does; ``K^L`` finds the best sum of all. A vector whose greedy sum is nearer than what
                the beam found keeps it, so no error is ever larger than with a beam of 1. Costs ``beam`` times the
                search, in blocks of 16 MB.

        Raises:
            ValueError: If a number is out of range, or ``beam`` > 1 and a level has no table of codes to search.

        References:
            Babenko and Lempitsky, "Additive Quantization", CVPR 2014 (beam search); the residual quantizer of the faiss
            library works alike. The comparison with the greedy sum is our addition.
        """
        levels = len(self.quantizers) if num_levels is None else num_levels
        if not 1 <= levels <= len(self.quantizers):
            raise ValueError(f"expected num_levels in 1 .. {len(self.quantizers)}, got {num_levels}")
        check_integer("beam", beam, hint="1 is the greedy choice")
        indices = torch.cat(self._channels(super().encode(x, mask))[:levels], dim=-1)
        return indices if beam == 1 else self._beam(x, mask, indices, levels, beam)

    @torch.no_grad()
    def _beam(self, x: Tensor, mask: Tensor | None, greedy: Tensor, levels: int, beam: int) -> Tensor:
        with eval_mode(self), torch.autocast(x.device.type, enabled=False):
            y, valid = self._enter(x, mask)
            rows = at_least_float32(y).reshape(-1, self.dim)
            start = greedy.reshape(-1, greedy.shape[-1])
            block = max(1, _BLOCK_ENTRIES // (beam * beam * self.dim))
            parts = self._parts()[:levels]
            found = [start[:0]]
            for own, first in zip(rows.split(block), start.split(block), strict=True) if len(rows) else ():
                paths, error = _search(own, parts, beam)
                before = (own - self.decode(first)).square().sum(-1)
                found.append(torch.where((error < before)[:, None], paths, first))
            chosen = torch.cat(found).view(greedy.shape)
            return torch.where(valid.unsqueeze(-1), chosen, -1)

    def decode(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """Values of indices; fewer channels than there are give the sum of the first levels."""
        missing = len(self.codebook_sizes) - (indices.shape[-1] if indices.ndim else 0)
        if missing > 0 and indices.ndim and indices.shape[-1]:
            indices = F.pad(indices, (0, missing), value=-1)
        return super().decode(indices)

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit each level to the remainder of the levels before."""
        self._check_input(x, None)
        rows = at_least_float32(x.detach()).reshape(-1, self.dim)
        rows = rows[torch.isfinite(rows).all(1)]
        seen: set[Quantizer] = set()
        for part in self._parts():
            if part not in seen:
                part.initialize_codebook(rows, generator)
                seen.add(part)
            with torch.no_grad():
                rows = rows - part.decode(part.encode(rows))
        if self.surrogate is not None:
            self.surrogate.initialize(self._finite_rows(x))

    def level_tables(self) -> list[Tensor] | None:
        """The tables of all levels; None if one has none."""
        found = [part.level_tables() for part in self._parts()]
        return None if None in found else [table for tables in found for table in tables or ()]

    def _rebuilt(self, quantizers: Sequence[Quantizer]) -> ResidualQuantizer:
        return ResidualQuantizer(quantizers)


def _search(x: Tensor, parts: Sequence[Quantizer], beam: int) -> tuple[Tensor, Tensor]:
    """The best paths (N, L) that a beam finds, and their squared errors (N,)."""
    totals = torch.zeros_like(x).unsqueeze(1)
    paths = torch.zeros(len(x), 1, 0, dtype=torch.int64, device=x.device)
    errors = x.square().sum(-1, keepdim=True)
    for part in parts:
        count = min(beam, part.codebook_sizes[0])
        near = part.nearest(part.before(x.unsqueeze(1) - totals), count).unsqueeze(-1)
        sums = (totals.unsqueeze(2) + value_of(part, near)).flatten(1, 2)
        longer = torch.cat([paths.unsqueeze(2).expand(-1, -1, count, -1), near], -1).flatten(1, 2)
        every = (x.unsqueeze(1) - sums).square().sum(-1)
        best = ranked(every, min(beam, every.shape[1]), largest=False)
        errors = every.gather(1, best)
        totals = sums.gather(1, best.unsqueeze(-1).expand(-1, -1, sums.shape[-1]))
        paths = longer.gather(1, best.unsqueeze(-1).expand(-1, -1, longer.shape[-1]))
    least = errors.argmin(1)
    rows = torch.arange(len(x), device=x.device)
    return paths[rows, least], errors[rows, least]
