"""The base of quantizers that are made of one other quantizer."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.quantizers.base.quantizer import Quantizer, QuantizerOutput, TokenScale, check_quantizer

__all__ = ["WrappedQuantizer"]


class WrappedQuantizer(Quantizer):
    """A quantizer around another one: everything that a subclass does not override is the inner quantizer's.

    The attributes are copied at construction; a subclass changes those that differ. :meth:`level_tables` is not
    forwarded, since a subclass that maps its input searches no table of the inner quantizer.

    Args:
        quantizer: The quantizer inside.

    Raises:
        ValueError: If it is no quantizer of vectors with their channels last.

    Example:
        >>> import torch
        >>> from gritvq import FSQ
        >>> class Halved(WrappedQuantizer):
        ...     def before(self, x):
        ...         return super().before(x / 2)
        ...
        ...     def after(self, q):
        ...         return 2 * super().after(q)
        ...
        ...     def fold(self):
        ...         return Halved(self.quantizer.fold())
        >>> quantizer = Halved(FSQ([3, 3]))
        >>> quantizer.codebook_sizes, quantizer(torch.tensor([[0.5, 9.0]])).quantized
        ((9,), tensor([[0., 2.]]))
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        check_quantizer(quantizer)
        self.quantizer = quantizer
        self.dim, self.codebook_sizes, self.layout = quantizer.dim, quantizer.codebook_sizes, quantizer.layout
        self.exact, self.surrogate = quantizer.exact, quantizer.surrogate
        self.draws_indices, self.objective = quantizer.draws_indices, quantizer.objective

    @property
    def input_dim(self) -> int:
        """Size of the inner quantizer's input."""
        return self.quantizer.input_dim

    def before(self, x: Tensor) -> Tensor:
        """Delegates to the inner quantizer."""
        return self.quantizer.before(x)

    def after(self, q: Tensor) -> Tensor:
        """Delegates to the inner quantizer."""
        return self.quantizer.after(q)

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Delegates to the inner quantizer."""
        return self.quantizer.quantize(x, valid)

    def lookup(self, indices: Int[Tensor, "*tokens Q"]) -> Float[Tensor, "*batch D"]:
        """Delegates to the inner quantizer."""
        return self.quantizer.lookup(indices)

    def nearest(self, y: Float[Tensor, "*batch D"], num_codes: int) -> Int[Tensor, "*batch n"]:
        """Delegates to the inner quantizer."""
        return self.quantizer.nearest(y, num_codes)

    def token_shape(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """Delegates to the inner quantizer."""
        return self.quantizer.token_shape(batch)

    def token_scales(self, positions: tuple[int, ...]) -> tuple[TokenScale, ...]:
        """Delegates to the inner quantizer."""
        return self.quantizer.token_scales(positions)

    def bits(self, batch: tuple[int, ...]) -> float:
        """Delegates to the inner quantizer."""
        return self.quantizer.bits(batch)

    def _zero_masked(self, values: Float[Tensor, "*batch D"], indices: Int[Tensor, "*tokens Q"]) -> Tensor:
        return self.quantizer._zero_masked(values, indices)

    def fold(self) -> Quantizer:
        """The folded inner quantizer, for subclasses that differ in training only."""
        return self.quantizer.fold()
