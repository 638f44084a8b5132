"""Conversion between a quantizer's indices and token sequences for generative models."""

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
    """Maps the indices of a sample to a sequence of tokens, positions x channels, and back.

    Scales follow each other from coarse to fine; within a scale, positions are in the given order. The channels of a
    position are interleaved in one of three ways:

    - ``"parallel"``: all channels at each position, sequences (B, T, Q);
    - ``"flat"``: one channel after the other, sequences (B, T) of all tokens;
    - ``"delay"``: channel q is delayed by q positions, sequences (B, T + Q - 1, Q), so that a model that predicts all
      channels of a position at once knows the earlier channels of each.

    Tokens are those of one :class:`Vocabulary`. PAD is used for masked indices and for missing tokens: channels that a
    scale does not have, and both ends of a delay.

    Samples of a ragged layout, such as texts, have at most as many positions as ``shape`` says: their indices are -1
    from their end on. In the sequence one more code of channel 0, ``end``, follows the last position, and then PAD; a
    sample of as many positions as there can be has no ``end``. So each sample has one sequence.

    Args:
        codebook_sizes: Codes of each index channel, Q entries.
        shape: Axes of one sample's tokens, such as (h, w) or (T,).
        scales: Grid and channels of each scale, whose grids have as many tokens together as ``shape``; None means one
            scale of this shape.
        interleaving: ``"parallel"``, ``"flat"`` or ``"delay"``.
        order: Order of positions within a grid: ``"raster"``, row by row, or ``"snake"``, every second row reversed.
        ragged: Whether samples may have fewer positions than ``shape``, which then has one axis.

    Attributes:
        codebook_sizes: As given, without ``end``.
        vocabulary: Special tokens and all channels, with ``end``.
        end: Index of the code in channel 0 that ends a sample, the last one; None unless the layout is ragged.
        scales: Grid and channels of each scale.
        scale_ids: Scale of each position of the sequence (T,).
        channel_ids: Channel of each token of the sequence, (T, C), or (T,) if flat; -1 if it is always PAD.

    Raises:
        ValueError: If sizes, grids or channels do not fit together, a delay is used with several scales, or a ragged
            layout has several axes or scales, or a delay.

    Example:
        >>> from gritvq import rq
        >>> layout = TokenLayout.of(rq(4, 16, num_levels=2), (2, 3), interleaving="flat")
        >>> tokens = layout.to_sequence(torch.zeros(5, 2, 3, 2, dtype=torch.int64))
        >>> tokens.shape, tokens[0, :4].tolist(), layout.vocabulary.vocab_size
        (torch.Size([5, 12]), [3, 19, 3, 19], 35)
        >>> layout.from_sequence(tokens).shape
        torch.Size([5, 2, 3, 2])
        >>> ragged = TokenLayout((4,), (3,), ragged=True)
        >>> ragged.to_sequence(torch.tensor([[[1], [0], [-1]], [[1], [0], [3]]]))[..., 0].tolist()
        [[4, 3, 7], [4, 3, 6]]

    References:
        Copet et al., Simple and controllable music generation (MusicGen), NeurIPS 2023, arXiv 2306.05284, section 2.2
        (interleaving). Tian et al., Visual autoregressive modeling, NeurIPS 2024, arXiv 2404.02905 (coarse to fine).
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
        ragged: bool = False,
    ) -> None:
        super().__init__()
        self.ragged, self.codebook_sizes = ragged, Vocabulary(codebook_sizes).codebook_sizes
        self.end = self.codebook_sizes[0] if ragged else None
        self.vocabulary = Vocabulary(
            (self.codebook_sizes[0] + 1, *self.codebook_sizes[1:]) if ragged else self.codebook_sizes
        )
        self.shape = tuple(shape)
        num_channels = len(self.vocabulary.codebook_sizes)
        given = [TokenScale(self.shape, tuple(range(num_channels)))] if scales is None else scales
        self.scales = tuple(TokenScale(tuple(grid), tuple(channels)) for grid, channels in given)
        grids, channels = [scale.grid for scale in self.scales], {q for scale in self.scales for q in scale.channels}
        if min((1, *self.shape, *(side for grid in grids for side in grid))) < 1 or (
            sum(math.prod(grid) for grid in grids) != math.prod(self.shape)
        ):
            raise ValueError(f"expected grids with as many tokens together as {self.shape}, got {grids}; fix scales")
        if channels != {*range(num_channels)}:
            raise ValueError(
                f"expected scales that have all channels 0 .. {num_channels - 1}, got {sorted(channels)}; fix `scales`"
            )
        if interleaving not in ("parallel", "flat", "delay") or order not in ("raster", "snake"):
            raise ValueError(
                "expected interleaving 'parallel', 'flat' or 'delay' and order 'raster' or 'snake', got "
                f"{interleaving!r} and {order!r}; choose one of each"
            )
        if interleaving == "delay" and len(grids) > 1:
            raise ValueError(f"expected one scale for a delay, got {len(grids)}; choose 'parallel' or 'flat'")
        if ragged and (len(self.shape) != 1 or len(grids) > 1 or interleaving == "delay"):
            raise ValueError(
                f"expected one axis, one scale and no delay for samples that may end early, got shape {self.shape}, "
                f"{len(grids)} scales and {interleaving!r}; leave ragged out, or choose 'parallel' or 'flat'"
            )
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
            self.register_buffer(name, table, persistent=False)  # rebuilt from the arguments

    @classmethod
    def of(
        cls,
        quantizer: Quantizer,
        positions: Sequence[int],
        *,
        interleaving: Interleaving = "parallel",
        order: Order = "raster",
        ragged: bool = False,
    ) -> TokenLayout:
        """The layout of a quantizer's tokens.

        Args:
            quantizer: Any quantizer.
            positions: Leading shape of one sample's vectors, such as (h, w).
            interleaving: As in the constructor.
            order: As in the constructor.
            ragged: As in the constructor.

        Raises:
            ValueError: If the positions do not fit the quantizer's layout.
        """
        shape = quantizer.token_shape(tuple(positions))
        scales = quantizer.token_scales(tuple(positions))
        return cls(
            quantizer.codebook_sizes, shape, scales=scales, interleaving=interleaving, order=order, ragged=ragged
        )

    @property
    def length(self) -> int:
        """Number T of positions of a sequence."""
        return len(self.scale_ids)

    @property
    def places(self) -> Int[Tensor, " T"]:
        """(T,) place of each position's first channel among the tokens of ``shape``, row by row."""
        source = self._source
        if source.ndim > 1:
            source = source.gather(1, (source >= 0).int().argmax(1, keepdim=True))[:, 0]
        return source // len(self.vocabulary.codebook_sizes)

    def to_sequence(self, indices: Int[Tensor, "*batch tokens Q"]) -> Int[Tensor, "*batch T C"]:
        """Tokens of indices, in the order of the sequence.

        Args:
            indices: Indices (*batch, *shape, Q) from a quantizer's or tokenizer's ``encode``; -1 if masked, or, in a
                ragged layout, behind the end.

        Returns:
            Tokens of ``vocabulary``, (*batch, T, C), or (*batch, T) if flat.

        Raises:
            ValueError: If the shape is wrong, an index is out of range, a position has a channel of another scale, or
                something follows the end of a ragged sample.
        """
        sizes = self.codebook_sizes
        expected = (*self.shape, len(sizes))
        batch = self._batch(indices, expected)
        if bool(((indices < -1) | (indices >= torch.tensor(sizes, device=indices.device))).any()):
            raise ValueError(
                f"expected indices below {sizes}, or -1 for masked ones, got others; use the layout's own tokenizer"
            )
        if self.ragged:
            ended, numbers = self._lengths(indices)[..., None], torch.arange(self.shape[0], device=indices.device)
            first = indices[..., 0].masked_fill(numbers == ended, self.codebook_sizes[0])
            indices = torch.cat([first[..., None], indices[..., 1:]], -1)
        flat = indices.reshape(*batch, math.prod(expected))
        found = flat[..., self._source.clamp(min=0)].masked_fill(self._source < 0, -1)
        if int((found >= 0).sum()) != int((flat >= 0).sum()):
            raise ValueError("expected -1 in the channels that a scale does not have, got indices; see `scales`")
        return self.vocabulary.tokens_of(found, self.channel_ids.clamp(min=0))

    def from_sequence(self, tokens: Int[Tensor, "*batch T C"]) -> Int[Tensor, "*batch tokens Q"]:
        """Indices of a sequence, the inverse of :meth:`to_sequence`.

        Args:
            tokens: Tokens (*batch, T, C), or (*batch, T) if flat, without BOS and EOS.

        Returns:
            Indices (*batch, *shape, Q), -1 for PAD, and from the end of a ragged sample on.

        Raises:
            ValueError: If the shape is wrong, a token is not one of :meth:`allowed` or PAD, or something follows the
                end of a ragged sample.
        """
        batch = self._batch(tokens, tuple(self.channel_ids.shape))
        found = self.vocabulary.indices_of(tokens, self.channel_ids.clamp(min=0)).masked_fill(self.channel_ids < 0, -1)
        wrong = (found < 0) & (tokens != PAD)
        if bool(wrong.any()):
            place = wrong.nonzero()[0, len(batch) :].tolist()
            raise ValueError(
                f"expected tokens of the channels of each position, or PAD, got {int(tokens[wrong][0])} at {place}; "
                "drop BOS and EOS, and sample only tokens that `allowed` returns"
            )
        shape = (*self.shape, len(self.vocabulary.codebook_sizes))
        flat = torch.full((*batch, math.prod(shape)), -1, dtype=torch.int64, device=tokens.device)
        flat[..., self._source[self._source >= 0]] = found[..., self._source >= 0]
        indices = flat.view(*batch, *shape)
        if self.ragged:
            indices[..., 0] = indices[..., 0].where(indices[..., 0] < self.codebook_sizes[0], -1)
            self._lengths(indices)
        return indices

    def allowed(self, position: int) -> Bool[Tensor, "*C V"]:
        """Which tokens of the vocabulary are allowed at a position of the sequence, for each channel.

        Args:
            position: 0 .. T - 1.

        Returns:
            A mask (C, V), or (V,) if flat. Behind the end of a ragged sample there is PAD, which it does not name.
        """
        channels = self.channel_ids[position].unsqueeze(-1)
        tokens = torch.arange(self.vocabulary.vocab_size, device=channels.device)
        own = self.vocabulary.indices_of(tokens, channels.clamp(min=0)) >= 0
        return torch.where(channels < 0, tokens == PAD, own)

    def _positions(self, order: Order) -> tuple[Tensor, Tensor, Tensor]:
        """Token number (P,), scale (P,) and channels (P, Q) of each position; -1 for missing channels."""
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

    def _lengths(self, indices: Tensor) -> Int[Tensor, " *batch"]:
        """Positions of ragged samples.

        Raises:
            ValueError: If something follows an end, or a position lacks a channel.
        """
        there = indices >= 0
        lengths = there.any(-1).sum(-1)
        numbers = torch.arange(self.shape[0], device=indices.device)
        if bool((there != (numbers < lengths[..., None])[..., None]).any()):
            raise ValueError(
                "expected samples with all channels up to their end and nothing from there on, got others; shift the "
                "positions that are there to the front"
            )
        return lengths

    def _batch(self, values: Tensor, expected: tuple[int, ...]) -> tuple[int, ...]:
        """Leading axes before the expected ones."""
        axes = values.ndim - len(expected)
        if axes < 0 or tuple(values.shape[axes:]) != expected or values.is_floating_point():
            raise ValueError(
                f"expected integers (*batch, {', '.join(map(str, expected))}), got {values.dtype} "
                f"{tuple(values.shape)}; make a layout for this size"
            )
        return tuple(values.shape[:axes])


def _delayed(table: Tensor) -> Tensor:
    """Column q of (T, Q) moved down by q rows, padded with -1."""
    last = table.shape[1] - 1
    return torch.stack([F.pad(column, (q, last - q), value=-1) for q, column in enumerate(table.unbind(1))], 1)
