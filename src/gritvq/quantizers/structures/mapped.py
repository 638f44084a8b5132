"""Quantizers behind a fixed map without parameters: unit length, a scale, a bound."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gritvq.component import check_number
from gritvq.quantizers.base import Quantizer, WrappedQuantizer
from gritvq.quantizers.functional import at_least_float32, to_unit_length

__all__ = ["BoundedQuantizer", "NormalizedQuantizer", "ScaledQuantizer"]


class _MappedQuantizer(WrappedQuantizer):
    """A quantizer behind a map that has no parameters, so that it can also be a level or a part of a structure."""

    @abstractmethod
    def enter(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The map of the input, float32 or wider."""

    @abstractmethod
    def _around(self, quantizer: Quantizer) -> _MappedQuantizer:
        """The same map around another quantizer."""

    def before(self, x: Float[Tensor, "*batch D"]) -> Tensor:
        """The mapped input, into the code space of the quantizer inside."""
        with torch.autocast(x.device.type, enabled=False):
            x = self.enter(at_least_float32(x))
        return super().before(x)

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit the inner codes to the mapped data."""
        self._check_input(x, None)
        with torch.no_grad():
            self.quantizer.initialize_codebook(self.enter(at_least_float32(x)), generator)

    def fold(self) -> Quantizer:
        """The same map around the folded quantizer."""
        return self._around(self.quantizer.fold()).eval()


class NormalizedQuantizer(_MappedQuantizer):
    """A quantizer of the vectors' directions: ``Q(x / |x|)``.

    Its losses and moving averages see vectors of unit length, and the gradient passes through the normalization. That
    is the usual form of a cosine codebook; without it, long vectors count more.

    Args:
        quantizer: The quantizer inside, such as one with a normalized table and a cosine assignment.

    Example:
        >>> from gritvq import FreeCodebook, NearestAssignment, VectorQuantizer
        >>> inner = VectorQuantizer(FreeCodebook(4, 16, normalize=True), NearestAssignment("cosine"))
        >>> NormalizedQuantizer(inner)(torch.randn(3, 4)).quantized.detach().norm(dim=1).round(decimals=5)
        tensor([1., 1., 1.])
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__(quantizer)

    def enter(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The vector at unit length; a vector of zeros stays one."""
        return to_unit_length(x)

    def _around(self, quantizer: Quantizer) -> NormalizedQuantizer:
        return NormalizedQuantizer(quantizer)


class ScaledQuantizer(_MappedQuantizer):
    """A quantizer whose codes are stretched: ``s Q(x / s)``, component by component.

    It gives a grid another spacing, such as the levels of a residual FSQ, each finer than the one before.

    Args:
        quantizer: The quantizer inside.
        scale: Positive factor of all components, or one for each.

    Raises:
        ValueError: If a scale is not positive, or their number is not that of the components.

    Example:
        >>> from gritvq import FSQ
        >>> quantizer = ScaledQuantizer(FSQ([3, 3]), [2.0, 0.5])
        >>> quantizer(torch.tensor([[9.0, 9.0]])).quantized
        tensor([[2.0000, 0.5000]])
    """

    def __init__(self, quantizer: Quantizer, scale: float | Sequence[float]) -> None:
        super().__init__(quantizer)
        self.scale = _per_component("scale", scale, self.input_dim)
        if self.dim != self.input_dim and len(self.scale) > 1:
            raise ValueError(
                f"expected one scale for a quantizer of {self.input_dim} components in and {self.dim} out, got "
                f"{len(self.scale)}; give a single number"
            )

    def enter(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The vector over the scale."""
        return x / _factor(self.scale, x)

    def after(self, q: Tensor) -> Float[Tensor, "*batch D"]:
        """The value times the scale."""
        q = super().after(q)
        return q * _factor(self.scale, q)

    def _around(self, quantizer: Quantizer) -> ScaledQuantizer:
        return ScaledQuantizer(quantizer, self.scale)


class BoundedQuantizer(_MappedQuantizer):
    """A quantizer of softly bounded vectors: ``Q(c tanh(x / c))``, component by component.

    Args:
        quantizer: The quantizer inside.
        limit: Bound c of all components, or one for each.

    Raises:
        ValueError: If a limit is not positive, or their number is not that of the components.

    Example:
        >>> from gritvq import FreeCodebook, VectorQuantizer
        >>> quantizer = BoundedQuantizer(VectorQuantizer(FreeCodebook(2, 8)), 1.5)
        >>> quantizer.before(torch.tensor([[100.0, 0.0]]))
        tensor([[1.5000, 0.0000]])
    """

    def __init__(self, quantizer: Quantizer, limit: float | Sequence[float]) -> None:
        super().__init__(quantizer)
        self.limit = _per_component("limit", limit, self.input_dim)

    def enter(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The bounded vector."""
        limit = _factor(self.limit, x)
        return (x / limit).tanh() * limit

    def _around(self, quantizer: Quantizer) -> BoundedQuantizer:
        return BoundedQuantizer(quantizer, self.limit)


def _factor(numbers: list[float], x: Tensor) -> float | Tensor:
    """What a vector is multiplied with: a number, or one per component."""
    return numbers[0] if len(numbers) == 1 else x.new_tensor(numbers)


def _per_component(name: str, value: float | Sequence[float], dim: int) -> list[float]:
    """One number, or one per component."""
    numbers = [float(each) for each in value] if isinstance(value, Sequence) else [float(value)]
    if len(numbers) not in (1, dim):
        raise ValueError(f"expected one {name}, or {dim}, one per component, got {len(numbers)}; give one number")
    for number in numbers:
        check_number(name, number, inside=True)
    return numbers
