"""A quantizer's tokens as sequences for a generative model, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from gritvq.component import Component
from gritvq.quantizers.base import TokenScale
from gritvq.tokens.vocabulary import PAD, Vocabulary

if TYPE_CHECKING:
    from gritvq.quantizers.base import Quantizer

__all__ = ["Interleaving", "Order", "TokenLayout"]

Interleaving: TypeAlias = Literal["parallel", "flat", "delay"]
Order: TypeAlias = Literal["raster", "snake"]


class TokenLayout(Component):
    """Where each token of a sample stands in a sequence: positions x channels.

    Scales follow each other, coarse to fine; within a scale the positions come in the given order. The channels of a
    position are interleaved in one of three ways:

    - ``"parallel"``: side by side, sequences (B, T, Q);
    - ``"flat"``: one after the other, sequences (B, T) of all tokens;
    - ``"delay"``: channel q is q positions later than channel 0, sequences (B, T + Q - 1, Q), so that a model that
      predicts all channels of a position at once still knows the earlier channels of each.

    A sequence holds tokens of one :class:`Vocabulary`. PAD stands for a masked index, and for what a position does not
    have: channels of other scales, and both ends of a delay.

    Args:
        codebook_sizes: Codes of each index channel, Q entries.
        shape: Axes of one sample's tokens, such as (h, w) or (T,).
        scales: Grid and channels of each scale; the tokens of all grids together are those of ``shape``. One scale of
            this shape where None.
        interleaving: See above.
        order: Of positions within a grid: ``"raster"`` row by row, or ``"snake"`` with every second row reversed.

    Attributes:
        vocabulary: Special tokens and all channels.
        scales: Grid and channels of each scale.
        scale_ids: (T,) scale of each position of the sequence.
        channel_ids: (T, C), or (T,) if flat: the channel of each token of the sequence, -1 where it always is PAD.

    Raises:
        ValueError: If sizes, grids or channels do not fit together, or a delay meets several scales.

    Example:
        >>> from gritvq import rq
        >>> layout = TokenLayout.of(rq(4, 16, num_levels=2), (2, 3), interleaving="flat")
        >>> tokens = layout.to_sequence(torch.zeros(5, 2, 3, 2, dtype=torch.int64))
        >>> tokens.shape, tokens[0, :4].tolist(), layout.vocabulary.vocab_size
        (torch.Size([5, 12]), [3, 19, 3, 19], 35)
        >>> layout.from_sequence(tokens).shape
        torch.Size([5, 2, 3, 2])

    References:
        Copet et al., Simple and controllable music generation (MusicGen), NeurIPS 2023, arXiv 2306.05284, section 2.2
        (the three ways). Tian et al., Visual autoregressive modeling, NeurIPS 2024, arXiv 2404.02905 (coarse to fine).
    """

    scale_ids: Tensor
    channel_ids: Tensor
    _source: Tensor

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        shape: Sequence[int],
        *,
        scales: Sequence[TokenScale] | None = None,
        interleaving: Interleaving = "parallel",
        order: Order = "raster",
    ) -> None:
        super().__init__()
        self.vocabulary, self.shape = Vocabulary(codebook_sizes), tuple(shape)
        num_channels = len(self.vocabulary.codebook_sizes)
        given = [TokenScale(self.shape, tuple(range(num_channels)))] if scales is None else scales
        self.scales = tuple(TokenScale(tuple(grid), tuple(channels)) for grid, channels in given)
        grids, channels = [scale.grid for scale in self.scales], {q for scale in self.scales for q in scale.channels}
        if min((1, *self.shape, *(side for grid in grids for side in grid))) < 1 or (
            sum(math.prod(grid) for grid in grids) != math.prod(self.shape)
        ):
            raise ValueError(f"expected grids with as many tokens as {self.shape} together, got {grids}")
        if channels != {*range(num_channels)}:
            raise ValueError(
                f"expected scales that have the channels 0 .. {num_channels - 1} between them, got {sorted(channels)}"
            )
        if interleaving not in ("parallel", "flat", "delay") or order not in ("raster", "snake"):
            raise ValueError(
                "expected interleaving 'parallel', 'flat' or 'delay' and order 'raster' or 'snake', got "
                f"{interleaving!r} and {order!r}"
            )
        if interleaving == "delay" and len(grids) > 1:
            raise ValueError(f"expected one scale for a delay, got {len(grids)}; choose 'parallel' or 'flat'")
        self.interleaving = interleaving
        places, scale_ids, channel_ids = self._positions(order)
        source = (places[:, None] * num_channels + channel_ids).masked_fill_(channel_ids < 0, -1)
        if interleaving == "flat":
            kept = channel_ids >= 0
            source, channel_ids, scale_ids = source[kept], channel_ids[kept], scale_ids.repeat_interleave(kept.sum(1))
        elif interleaving == "delay":
            source, channel_ids = _delayed(source), _delayed(channel_ids)
            scale_ids = F.pad(scale_ids, (0, num_channels - 1))
        for name, table in (("scale_ids", scale_ids), ("channel_ids", channel_ids), ("_source", source)):
            self.register_buffer(name, table, persistent=False)  # made anew from the arguments

    @classmethod
    def of(
        cls,
        quantizer: Quantizer,
        positions: Sequence[int],
        *,
        interleaving: Interleaving = "parallel",
        order: Order = "raster",
    ) -> TokenLayout:
        """The layout of a quantizer's tokens.

        Args:
            quantizer: Any.
            positions: Leading shape of one sample's vectors, such as (h, w).
            interleaving: As for the constructor.
            order: As for the constructor.

        Raises:
            ValueError: If the positions do not fit the quantizer's layout.
        """
        shape = quantizer.token_shape(tuple(positions))
        scales = quantizer.token_scales(tuple(positions))
        return cls(quantizer.codebook_sizes, shape, scales=scales, interleaving=interleaving, order=order)

    @property
    def length(self) -> int:
        """Positions T of a sequence."""
        return len(self.scale_ids)

    @property
    def places(self) -> Int[Tensor, " T"]:
        """(T,) place of each position's channel 0, or its only one, among the tokens of ``shape``, row by row."""
        source = self._source if self._source.ndim == 1 else self._source.amax(1)
        return source // len(self.vocabulary.codebook_sizes)

    def to_sequence(self, indices: Int[Tensor, "*batch tokens Q"]) -> Int[Tensor, "*batch T C"]:
        """Tokens in the order of a sequence.

        Args:
            indices: (*batch, *shape, Q), as a quantizer's or a tokenizer's ``encode`` gives them; -1 where masked.

        Returns:
            Tokens of ``vocabulary``, (*batch, T, C), or (*batch, T) if flat.

        Raises:
            ValueError: If the shape is wrong, an index is out of range, or a position has a channel of another scale.
        """
        sizes = self.vocabulary.codebook_sizes
        expected = (*self.shape, len(sizes))
        batch = self._batch(indices, expected)
        if bool(((indices < -1) | (indices >= torch.tensor(sizes, device=indices.device))).any()):
            raise ValueError(
                f"expected indices below {sizes}, or -1 for masked ones, got others; was another tokenizer used?"
            )
        flat = indices.reshape(*batch, math.prod(expected))
        found = flat[..., self._source.clamp(min=0)].masked_fill(self._source < 0, -1)
        if int((found >= 0).sum()) != int((flat >= 0).sum()):
            raise ValueError("expected -1 in the channels that a scale does not have, got indices; see `scales`")
        return self.vocabulary.tokens_of(found, self.channel_ids.clamp(min=0))

    def from_sequence(self, tokens: Int[Tensor, "*batch T C"]) -> Int[Tensor, "*batch tokens Q"]:
        """Indices of a sequence, the inverse of :meth:`to_sequence`.

        Args:
            tokens: (*batch, T, C), or (*batch, T) if flat, without BOS and EOS.

        Returns:
            Indices (*batch, *shape, Q), -1 for PAD.

        Raises:
            ValueError: If the shape is wrong, or a token is not one of :meth:`allowed` or PAD.
        """
        batch = self._batch(tokens, tuple(self.channel_ids.shape))
        found = self.vocabulary.indices_of(tokens, self.channel_ids.clamp(min=0)).masked_fill(self.channel_ids < 0, -1)
        wrong = (found < 0) & (tokens != PAD)
        if bool(wrong.any()):
            place = wrong.nonzero()[0, len(batch) :].tolist()
            raise ValueError(
                f"expected tokens of the channels of each position, or PAD, got {int(tokens[wrong][0])} at {place}; "
                "drop BOS and EOS, and sample only from what `allowed` says"
            )
        shape = (*self.shape, len(self.vocabulary.codebook_sizes))
        flat = torch.full((*batch, math.prod(shape)), -1, dtype=torch.int64, device=tokens.device)
        flat[..., self._source[self._source >= 0]] = found[..., self._source >= 0]
        return flat.view(*batch, *shape)

    def allowed(self, position: int) -> Bool[Tensor, "*C V"]:
        """Which tokens of the vocabulary may stand at a position of the sequence, for each of its channels.

        Args:
            position: 0 .. T - 1.

        Returns:
            (C, V), or (V,) if flat.
        """
        channels = self.channel_ids[position].unsqueeze(-1)
        tokens = torch.arange(self.vocabulary.vocab_size, device=channels.device)
        own = self.vocabulary.indices_of(tokens, channels.clamp(min=0)) >= 0
        return torch.where(channels < 0, tokens == PAD, own)

    def _positions(self, order: Order) -> tuple[Tensor, Tensor, Tensor]:
        """Number among the tokens (P,), scale (P,) and channels (P, Q), -1 for those it lacks, of each position."""
        places, scale_ids, channel_ids = [], [], []
        first = 0
        for number, (grid, channels) in enumerate(self.scales):
            size = math.prod(grid)
            own = first + torch.arange(size).view(grid)
            if order == "snake" and len(grid) > 1:
                rows = own.view(-1, grid[-1])
                rows[1::2] = rows[1::2].flip(-1)
            every = torch.arange(len(self.vocabulary.codebook_sizes))
            has = torch.isin(every, torch.tensor(channels))
            places.append(own.flatten())
            scale_ids.append(torch.full((size,), number))
            channel_ids.append(every.where(has, -1).expand(size, -1))
            first += size
        return torch.cat(places), torch.cat(scale_ids), torch.cat(channel_ids)

    def _batch(self, values: Tensor, expected: tuple[int, ...]) -> tuple[int, ...]:
        """Leading axes before those expected."""
        axes = values.ndim - len(expected)
        if axes < 0 or tuple(values.shape[axes:]) != expected or values.is_floating_point():
            raise ValueError(
                f"expected integers (*batch, {', '.join(map(str, expected))}), got {values.dtype} "
                f"{tuple(values.shape)}; a layout belongs to one size of grid"
            )
        return tuple(values.shape[:axes])


def _delayed(table: Tensor) -> Tensor:
    """Column q of (T, Q) moved down by q rows, -1 where nothing is left."""
    last = table.shape[1] - 1
    return torch.stack([F.pad(column, (q, last - q), value=-1) for q, column in enumerate(table.unbind(1))], 1)
