"""Product quantization: components, or tokens, split among several quantizers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.quantizers.base import Quantizer, QuantizerOutput, TokenScale
from gritvq.quantizers.structures.stack import Stack, value_of

__all__ = ["ProductQuantizer"]


class ProductQuantizer(Stack):
    """Product quantization: the components are split among several quantizers, the values are concatenated.

    With ``split="tokens"`` it is not a vector's components that are split but the tokens of a sequence: axis -2 falls
    into P contiguous chunks, part p quantizes chunk p, and the index channels of the P chunks are concatenated,
    ``(*batch, T / P, Q)``; the value has the input's shape.

    Parts may see a layout of their own if it is the same for all (a product of multi-scale quantizers); token shape and
    layout are then theirs. Parts with dropout draw on their own, so one sample may keep different numbers of levels in
    different parts.

    Args:
        quantizers: The parts; the vector's size is the sum of theirs, or theirs under a split of tokens.
        split: What is split: ``"channels"`` or ``"tokens"``.

    Raises:
        ValueError: If the parts do not fit together.

    Example:
        >>> from gritvq import FreeCodebook, VectorQuantizer
        >>> parts = [VectorQuantizer(FreeCodebook(2, 16)) for _ in range(3)]
        >>> quantizer = ProductQuantizer(parts)
        >>> quantizer.dim, quantizer.codebook_sizes, quantizer(torch.randn(5, 6)).indices.shape
        (6, (16, 16, 16), torch.Size([5, 3]))
        >>> ProductQuantizer(parts, split="tokens")(torch.randn(5, 12, 2)).indices.shape
        torch.Size([5, 4, 3])

    References:
        Jegou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011. Li et al., "XQ-GAN", 2024, arXiv
        2412.01762, released code (split of tokens, and products of multi-scale quantizers; there all parts drop the
        same levels).
    """

    def __init__(self, quantizers: Sequence[Quantizer], *, split: Literal["channels", "tokens"] = "channels") -> None:
        super().__init__(quantizers)
        if split not in ("channels", "tokens"):
            raise ValueError(f"expected split 'channels' or 'tokens', got {split!r}")
        layouts = [part.layout for part in quantizers]
        self.split, self.dims = split, [part.input_dim for part in quantizers]
        if split == "tokens":
            outer = [part.dim for part in quantizers]
            if len({*self.dims}) != 1 or len({*outer}) != 1:
                raise ValueError(f"expected parts of equal dim to split tokens, got {outer}")
            if any(layouts):
                raise ValueError(
                    f"expected parts that take every vector on its own, got the layouts {layouts}; split channels "
                    "instead, or give them sequences of their own"
                )
            self.dim, self._input_dim, self.layout = outer[0], self.dims[0], (len(quantizers),)
            return
        if self.surrogate is not None and any(True for _ in self.surrogate.buffers()):
            raise ValueError(
                f"expected a surrogate that fits vectors of any size, got {type(self.surrogate).__name__} with numbers "
                "of the parts' size; use another radius"
            )
        grids = [part.token_shape(part.layout) for part in quantizers]
        if len({*layouts}) != 1 or len({*grids}) != 1:
            raise ValueError(f"expected parts of one layout, got {layouts} with tokens {grids}; make them equal")
        self.dim, self._input_dim, self.layout = sum(part.dim for part in quantizers), sum(self.dims), layouts[0]

    @property
    def input_dim(self) -> int:
        """Size of the input vectors."""
        return self._input_dim

    def token_shape(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """The parts'; a P-th of the last axis under a split of tokens.

        Raises:
            ValueError: If the last axis cannot be split.
        """
        if self.split == "channels":
            return self._parts()[0].token_shape(batch)
        num = len(self.quantizers)
        if len(batch) < 1 or batch[-1] % num:
            raise ValueError(
                f"expected sequences (*batch, T, {self.input_dim}) with T a multiple of {num}, one chunk per part, got "
                f"the leading shape {tuple(batch)}; pad the sequence or split channels"
            )
        return (*batch[:-1], batch[-1] // num)

    def token_scales(self, positions: tuple[int, ...]) -> tuple[TokenScale, ...]:
        """The parts', their channels side by side; one scale under a split of tokens, or where the parts differ."""
        each = [part.token_scales(positions) for part in self._parts()] if self.split == "channels" else []
        if len({tuple(scale.grid for scale in scales) for scales in each}) != 1:
            return super().token_scales(positions)
        starts = itertools.accumulate((len(part.codebook_sizes) for part in self._parts()), initial=0)
        shifts = list(zip(starts, each, strict=False))
        return tuple(
            TokenScale(scale.grid, tuple(first + q for first, own in shifts for q in own[level].channels))
            for level, scale in enumerate(each[0])
        )

    def bits(self, batch: tuple[int, ...]) -> float:
        """Sum of the parts' bits."""
        tokens = self.token_shape(batch)
        own = batch if self.split == "channels" else tokens
        return sum(part.bits(own) for part in self._parts())

    def _shares(self, x: Tensor) -> list[Tensor]:
        """What each part gets of the vectors."""
        if self.split == "channels":
            return list(x.split(self.dims, -1))
        return list(x.chunk(len(self.quantizers), -2))

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Part by part."""
        parts = self._parts()
        masks = [valid] * len(parts) if self.split == "channels" else list(valid.chunk(len(parts), -1))
        values: list[Tensor] = []
        channels: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        for number, (part, own, mask) in enumerate(zip(parts, self._shares(x), masks, strict=True)):
            output = part.quantize(part.before(own), mask)
            values.append(part.after(output.quantized))
            channels.append(output.indices)
            losses.update({f"{number}/{name}": loss for name, loss in output.losses.items()})
        return QuantizerOutput(self._joined(values), torch.cat(channels, -1), losses)

    def _joined(self, values: list[Tensor]) -> Tensor:
        return torch.cat(values, -1 if self.split == "channels" else -2)

    def lookup(self, indices: Int[Tensor, "*tokens Q"]) -> Float[Tensor, "*batch D"]:
        """The parts' values side by side."""
        pairs = zip(self._parts(), self._channels(indices), strict=True)
        return self._joined([value_of(part, own) for part, own in pairs])

    def _zero_masked(self, values: Float[Tensor, "*batch D"], indices: Int[Tensor, "*tokens Q"]) -> Tensor:
        if not self.layout:
            return super()._zero_masked(values, indices)
        pairs = list(zip(self._parts(), self._channels(indices), strict=True))
        if self.split == "tokens":
            chunks = values.chunk(len(pairs), -2)
            return torch.cat(
                [part._zero_masked(chunk, own) for (part, own), chunk in zip(pairs, chunks, strict=True)], -2
            )
        ones = torch.ones_like(values[..., :1])
        shown = torch.stack([part._zero_masked(ones, own) for part, own in pairs]).amax(0) > 0
        return torch.where(shown, values, 0)

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit each part to its share; a part that appears several times to the first of them."""
        self._check_input(x, None)
        seen: set[Quantizer] = set()
        for part, own in zip(self._parts(), self._shares(x), strict=True):
            if part not in seen:
                part.initialize_codebook(own, generator)
                seen.add(part)

    def _rebuilt(self, quantizers: Sequence[Quantizer]) -> ProductQuantizer:
        return ProductQuantizer(quantizers, split=self.split)
