"""Multi-scale residual quantization: every level describes the whole grid at another resolution."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer, check_number, eval_mode
from gritvq.distributed import joined_count, masked_mean
from gritvq.quantizers.base import Quantizer, QuantizerOutput, least_exact
from gritvq.quantizers.functional import at_least_float32
from gritvq.quantizers.structures.pyramid import Pyramid, convolve, pooled
from gritvq.quantizers.structures.stack import check_hard_part, drawn_depths, value_of

__all__ = ["MultiScaleQuantizer"]


class MultiScaleQuantizer(Pyramid):
    """Multi-scale residual quantization of a square grid by one shared quantizer.

    With ``f_0 = 0`` and a grid of side P: for every level s the residual ``r = x - sg(f_s)`` is averaged over the cells
    of a ``p_s`` x ``p_s`` grid, quantized, brought back to P x P by bicubic interpolation, filtered by
    ``phi_s(u) = (1 - ratio) u + ratio conv3x3(u)``, and added: ``f_{s+1} = f_s + phi_s(up(Q(down(r))))``. The value is
    ``f_S`` under one surrogate, the shared quantizer's. Tokens lie coarse to fine, ``(*batch, sum p_s^2, Q)``, each
    level row by row; a prefix of whole levels decodes to the accumulated value of these levels.

    Losses compare what has accumulated with x, as means over real positions and components: ``codebook``, the mean over
    levels of ``|f_s - sg(x)|^2``, and ``commitment``, the sum over levels of ``|sg(f_s) - x|^2``. The shared quantizer
    should therefore bring no such losses of its own (``learning=[]``, or rules that only update); whatever losses it
    brings are averaged over the levels as ``unit/...``. Only ``codebook`` trains the filters under a straight-through
    surrogate, so keep it if the codes are a moving average. For a mean over levels instead of the sum set
    ``commitment_weight=0.25 / S``.

    A token is real if its cell holds a real position; averages are over real positions only.

    Args:
        quantizer: The shared unit; row by row, with maps that hold no parameters.
        sides: Side p_s of every level, coarse to fine; the last is the grid's, and none is larger.
        ratio: Share of the convolution in the filters, in [0, 1]; 0 for no filters.
        num_filters: Filters; level s of S takes number ``floor(num_filters s / (S - 1))``, at most the last.
        dropout: Probability, in training, that a sample (first axis) keeps only its first n levels, n uniform in
            ``max(1, round(0.3 S)) .. S``. The dropped tokens are -1; levels count for the losses where they are kept.
        level_scale: Level s quantizes its residual divided by ``level_scale ** s`` and multiplies the value by it.
        codebook_weight: Weight of the codebook loss.
        commitment_weight: Weight of the commitment loss.

    Raises:
        ValueError: If an argument is out of its range or the quantizer does not fit.

    Example:
        >>> from gritvq import FreeCodebook, VectorQuantizer
        >>> quantizer = MultiScaleQuantizer(VectorQuantizer(FreeCodebook(4, 16), learning=[]), [1, 2, 4])
        >>> quantized, indices, losses = quantizer(torch.randn(2, 4, 4, 4))
        >>> quantized.shape, indices.shape, sorted(losses)
        (torch.Size([2, 4, 4, 4]), torch.Size([2, 21, 1]), ['codebook', 'commitment'])
        >>> quantizer.decode(indices[:, : 1 + 4]).shape
        torch.Size([2, 4, 4, 4])

    References:
        Tian et al., "Visual Autoregressive Modeling", NeurIPS 2024, arXiv 2404.02905; Li et al., "XQ-GAN", 2024, arXiv
        2412.01762, released code: ratio 0.5, four filters picked by s / (S - 1), loss weights 1 and 0.25, cosine lookup
        that adds the un-normalized code (``NearestAssignment("cosine")`` over a plain ``FreeCodebook``), level values
        ``scale^s`` of LFQ and BSQ. There 10 % of a batch drops levels, all to the same n in 3 .. 10; here every sample
        draws on its own, and the least n for other S is our choice, as are the exact pick of the filters and the
        treatment of masks. There a latent is put to unit length once before BSQ; here the residual of every level is.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        sides: Sequence[int],
        *,
        ratio: float = 0.5,
        num_filters: int = 4,
        dropout: float = 0.0,
        level_scale: float = 1.0,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__()
        check_hard_part(quantizer, type(self).__name__)
        if quantizer.layout:
            raise ValueError(
                f"expected a quantizer that takes every vector on its own, got {type(quantizer).__name__} with the "
                f"layout {quantizer.layout}"
            )
        if len(sides) < 1 or any(not isinstance(side, int) or side < 1 for side in sides) or max(sides) != sides[-1]:
            raise ValueError(
                f"expected sides >= 1, the last one the largest, got {list(sides)!r}; the last is the side of the grid "
                "of latents"
            )
        self.quantizer, self.sides = quantizer, list(sides)
        self.ratio, self.dropout = check_number("ratio", ratio, most=1), check_number("dropout", dropout, most=1)
        self.level_scale = check_number("level_scale", level_scale, inside=True, hint="1 scales nothing")
        self.codebook_weight = check_number("codebook_weight", codebook_weight)
        self.commitment_weight = check_number("commitment_weight", commitment_weight)
        self.num_filters = check_integer("num_filters", num_filters, hint="for no filters set ratio=0")
        self.dim, self.codebook_sizes = quantizer.dim, quantizer.codebook_sizes
        # With dropout a coarse token may be all that is left of masked positions, which decode to what it says.
        self.exact = least_exact("eval", quantizer.exact) if dropout else quantizer.exact
        self.objective = quantizer.objective
        self.draws_indices = quantizer.draws_indices or dropout > 0
        self.surrogate = copy.deepcopy(quantizer.surrogate)
        self.layout = (sides[-1], sides[-1])
        filters = [nn.Conv2d(self.dim, self.dim, 3, padding=1) for _ in range(num_filters if ratio else 0)]
        self.filters = nn.ModuleList(filters)

    # --- tokens -------------------------------------------------------------------------------------------------------

    def token_shape(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """``(*batch, P, P)`` becomes ``(*batch, sum p_s^2)``.

        Raises:
            ValueError: If the grid has another size.
        """
        side = self.sides[-1]
        if len(batch) < 2 or tuple(batch[-2:]) != (side, side):
            raise ValueError(
                f"expected a grid of {side} x {side} vectors (*batch, {side}, {side}, {self.dim}), got the leading "
                f"shape {tuple(batch)}; the last of `sides` is the grid's"
            )
        return (*batch[:-2], sum(side**2 for side in self.sides))

    def _sides(self, num_tokens: int) -> list[int]:
        ends = list(itertools.accumulate(side**2 for side in self.sides))
        if num_tokens not in ends:
            raise ValueError(
                f"expected the tokens of whole levels, {', '.join(map(str, ends))} of them, got {num_tokens}; the "
                f"sides are {self.sides}"
            )
        return self.sides[: ends.index(num_tokens) + 1]

    def _full_side(self, sides: list[int]) -> int:
        return self.sides[-1]

    # --- levels -------------------------------------------------------------------------------------------------------

    def _scale(self, level: int) -> float:
        return self.level_scale**level

    def _place(self, level: int) -> int:
        """Which filter a level takes."""
        return min(level * self.num_filters // max(1, len(self.sides) - 1), self.num_filters - 1)

    def _spare(self) -> list[nn.Module]:
        """Filters that no level takes, as of fewer scales than filters."""
        taken = {self._place(level) for level in range(len(self.sides))}
        return [layer for place, layer in enumerate(self.filters) if place not in taken]

    def _spread(self, q: Float[Tensor, "B p p D"], seen: Bool[Tensor, "B p p"], level: int) -> Tensor:
        """What a level's codes add to the grid; nothing to a sample that has none of its tokens."""
        q = torch.where(seen.unsqueeze(-1), q * self._scale(level), 0)
        full = self.sides[-1]
        with torch.autocast(q.device.type, enabled=False):
            if q.shape[1] != full:
                grid = q.permute(0, 3, 1, 2).contiguous()
                q = F.interpolate(grid, size=(full, full), mode="bicubic").permute(0, 2, 3, 1)
            if self.ratio:
                layer = self.filters[self._place(level)]
                q = (1 - self.ratio) * q + self.ratio * convolve(q, cast("nn.Conv2d", layer)).to(q.dtype)
        return torch.where(seen.any((1, 2))[:, None, None, None], q, 0)

    def quantize(self, x: Float[Tensor, "*batch P P D"], valid: Bool[Tensor, "*batch P P"]) -> QuantizerOutput:
        """Level by level, coarse to fine."""
        shape, side = x.shape, self.sides[-1]
        x, valid = at_least_float32(x).reshape(-1, side, side, self.dim), valid.reshape(-1, side, side)
        total = torch.zeros(x.shape, device=x.device)
        for layer in self._spare() if self.training else ():  # else processes would wait for gradients that never come
            total = total + 0 * sum(parameter.sum() for parameter in layer.parameters())
        kept = None
        if self.training and self.dropout:
            num = len(self.sides)
            samples = drawn_depths((shape[0],) if len(shape) > 3 else (1,), self.dropout, _least(num), num, x)
            kept = samples.repeat_interleave(len(x) // max(1, len(samples)))
        tokens: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        for level, side in enumerate(self.sides):
            y, seen = pooled((x - total.detach()) / self._scale(level), valid, side)
            own = valid
            if kept is not None:
                drops = (kept > level)[:, None, None]
                seen, own = seen & drops, own & drops
                y = torch.where(seen.unsqueeze(-1), y, 0)
            output = self.quantizer.quantize(self.quantizer.before(y), seen)
            total = total + self._spread(self.quantizer.after(output.quantized), seen, level)
            tokens.append(output.indices.flatten(1, 2))
            if self.training:
                self._add_losses(losses, output.losses, x, total, own)
        indices = torch.cat(tokens, 1)
        return QuantizerOutput(total.view(shape), indices.view(*shape[:-3], *indices.shape[1:]), losses)

    def _add_losses(
        self, losses: dict[str, Tensor], unit: dict[str, Tensor], x: Tensor, f: Tensor, own: Tensor
    ) -> None:
        """Add one level's share to the losses."""
        num = len(self.sides)
        weighted = self.codebook_weight or self.commitment_weight
        count = joined_count(own) if weighted else None
        terms = {f"unit/{name}": loss / num for name, loss in unit.items()}
        for name, weight, error in (
            ("codebook", self.codebook_weight / num, f - x.detach()),
            ("commitment", self.commitment_weight, f.detach() - x),
        ):
            if weight:
                terms[name] = weight * masked_mean(error.square().mean(-1), own, count)
        for name, term in terms.items():
            losses[name] = losses[name] + term if name in losses else term

    def lookup(self, indices: Int[Tensor, "*batch T Q"]) -> Float[Tensor, "*batch P P D"]:
        """Sum of the levels present."""
        batch, side = indices.shape[:-2], self.sides[-1]
        flat = indices.reshape(-1, *indices.shape[-2:])
        total = torch.zeros(flat.shape[0], side, side, self.dim, device=indices.device)
        for level, own in enumerate(self._levels(flat)):
            total = total + self._spread(value_of(self.quantizer, own), (own >= 0).any(-1), level)
        return total.view(*batch, side, side, self.dim)

    @torch.no_grad()
    def initialize_codebook(self, x: Float[Tensor, "*batch P P D"], generator: torch.Generator | None = None) -> None:
        """Fit the shared codes to the residuals of all levels together.

        Twice: to what would be left if every level were exact, then to what these codes leave.
        """
        self._check_input(x, None)
        side = self.sides[-1]
        x = at_least_float32(x.detach()).reshape(-1, side, side, self.dim)
        valid = torch.isfinite(x).all(-1)
        x = torch.where(valid.unsqueeze(-1), x, 0)
        for exact in (True, False):
            total, found = torch.zeros_like(x), []
            with eval_mode(self):
                for level, side in enumerate(self.sides):
                    y, seen = pooled((x - total) / self._scale(level), valid, side)
                    found.append(y[seen])
                    q = y if exact else self.quantizer(y, seen).quantized
                    total = total + self._spread(q, seen, level)
            self.quantizer.initialize_codebook(torch.cat(found), generator)
        if self.surrogate is not None:
            self.surrogate.initialize(self._finite_rows(x))

    def fold(self) -> MultiScaleQuantizer:
        """The same filters around the folded quantizer, without losses."""
        folded = MultiScaleQuantizer(
            self.quantizer.fold(),
            self.sides,
            ratio=self.ratio,
            num_filters=self.num_filters,
            level_scale=self.level_scale,
            codebook_weight=0.0,
            commitment_weight=0.0,
        )
        folded.filters = copy.deepcopy(self.filters)
        return folded.requires_grad_(False).eval()


def _least(num_levels: int) -> int:
    """Levels that dropout always keeps: three of ten, as published, and in proportion."""
    return max(1, round(0.3 * num_levels))
