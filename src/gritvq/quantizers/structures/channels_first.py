"""A quantizer for models whose channels come right after the batch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import Component
from gritvq.quantizers.base import Attachment, Exactness, Quantizer, QuantizerOutput

__all__ = ["ChannelsFirst"]


class ChannelsFirst(Component):
    """A quantizer of (B, D, *spatial), as convolutions make them: values have their channels at axis 1.

    ``ChannelsFirst(quantizer)(x)`` is ``quantizer(x.movedim(1, -1))`` with the values moved back. Which axis holds the
    channels is declared, not guessed from sizes, so it is the right one also where W equals D. Indices and masks have
    no channels to move: they are (B, *spatial, Q) and (B, *spatial).

    Wrap a whole quantizer in it. Structures and tokenizers require channels-last quantizers and do not accept it.

    Args:
        quantizer: The quantizer inside, with all its parameters.

    Raises:
        ValueError: If there is no quantizer inside.

    Example:
        >>> from gritvq import grit_vq
        >>> quantizer = ChannelsFirst(grit_vq(16, 64))
        >>> quantized, indices, losses = quantizer(torch.randn(2, 16, 8, 8))
        >>> quantized.shape, indices.shape, quantizer.decode(indices).shape
        (torch.Size([2, 16, 8, 8]), torch.Size([2, 8, 8, 1]), torch.Size([2, 16, 8, 8]))
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        if not isinstance(quantizer, Quantizer):
            raise ValueError(f"expected a quantizer, got {type(quantizer).__name__}; pass one, such as grit_vq(16, 64)")
        self.quantizer = quantizer

    @property
    def dim(self) -> int:
        """Channels that come out."""
        return self.quantizer.dim

    @property
    def input_dim(self) -> int:
        """Channels that go in."""
        return self.quantizer.input_dim

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each index channel."""
        return self.quantizer.codebook_sizes

    @property
    def exact(self) -> Exactness:
        """Where ``quantized`` is bitwise ``decode(indices)``."""
        return self.quantizer.exact

    @property
    def layout(self) -> tuple[int, ...]:
        """Sizes of the last spatial axes that it takes; () for any."""
        return self.quantizer.layout

    @property
    def objective(self) -> str:
        """What the losses belong to."""
        return self.quantizer.objective

    @property
    def wants_initialization(self) -> bool:
        """As :attr:`gritvq.Quantizer.wants_initialization`."""
        return self.quantizer.wants_initialization

    def token_shape(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of the tokens of vectors with these axes, (B, *spatial), as :meth:`gritvq.Quantizer.token_shape`."""
        return self.quantizer.token_shape(batch)

    def bits(self, batch: tuple[int, ...]) -> float:
        """As :meth:`gritvq.Quantizer.bits`, for the axes (B, *spatial)."""
        return self.quantizer.bits(batch)

    def forward(
        self, x: Float[Tensor, "B D *spatial"], mask: Bool[Tensor, " B *spatial"] | None = None
    ) -> QuantizerOutput:
        """Quantize, as :meth:`gritvq.Quantizer.forward`; values of a contiguous input are contiguous.

        Raises:
            ValueError: If axis 1 does not hold the channels, or something else does not fit.
        """
        output = self.quantizer(self._last(x), mask)
        values = output.quantized.movedim(-1, 1)
        return output._replace(quantized=values.contiguous() if x.is_contiguous() else values)

    def encode(
        self, x: Float[Tensor, "B D *spatial"], mask: Bool[Tensor, " B *spatial"] | None = None
    ) -> Int[Tensor, "B *tokens Q"]:
        """Indices, as :meth:`gritvq.Quantizer.encode`."""
        return self.quantizer.encode(self._last(x), mask)

    def decode(self, indices: Int[Tensor, "B *tokens Q"]) -> Float[Tensor, "B D *spatial"]:
        """Values, as :meth:`gritvq.Quantizer.decode`."""
        return self.quantizer.decode(indices).movedim(-1, 1).contiguous()

    @torch.no_grad()
    def initialize_codebook(self, x: Float[Tensor, "B D *spatial"], generator: torch.Generator | None = None) -> None:
        """Fit the codes to data, as :meth:`gritvq.Quantizer.initialize_codebook`."""
        self.quantizer.initialize_codebook(self._last(x), generator)

    def attach(self, optimizer: torch.optim.Optimizer, lr: float | None = None) -> Attachment:
        """As :meth:`gritvq.Quantizer.attach`."""
        return self.quantizer.attach(optimizer, lr)

    def expect_updates(self) -> None:
        """As :meth:`gritvq.Quantizer.expect_updates`."""
        self.quantizer.expect_updates()

    def update_codebook(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """As :meth:`gritvq.Quantizer.update_codebook`."""
        self.quantizer.update_codebook(optimizer)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """As :meth:`gritvq.Quantizer.parameter_groups`."""
        return self.quantizer.parameter_groups(lr)

    def fold(self) -> ChannelsFirst:
        """The same around the folded quantizer."""
        return ChannelsFirst(self.quantizer.fold()).eval()

    def _last(self, x: Tensor) -> Tensor:
        """The input with its channels last."""
        if x.ndim < 2 or x.shape[1] != self.input_dim:
            raise ValueError(
                f"expected vectors (B, {self.input_dim}, *spatial), channels at axis 1, got {tuple(x.shape)}; vectors "
                "with their channels last go to the quantizer without ChannelsFirst"
            )
        return x.movedim(1, -1)
