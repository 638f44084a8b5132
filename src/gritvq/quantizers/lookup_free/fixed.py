"""What quantizers with fixed codes share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gritvq.distributed import joined_count, joined_mean
from gritvq.quantizers.base import Quantizer

__all__ = ["FixedCodes", "commitment"]


class FixedCodes(Quantizer):
    """A quantizer whose codes follow from its arguments; no state dict holds them."""

    @abstractmethod
    def _constants(self) -> dict[str, Tensor]:
        """Buffers of integers, which no conversion to half precision can round."""

    def _write_constants(self, device: torch.device | None) -> None:
        """Make the buffers, on the default device if None."""
        for name, value in self._constants().items():
            place = torch.get_default_device() if device is None else device
            self.register_buffer(name, value.to(place), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedCodes:
        super()._apply(fn, recurse)
        self._write_constants(next(self.buffers(recurse=False)).device)  # `to_empty` leaves them undefined
        return self


def commitment(
    y: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """``mean |y - q|^2 / D`` over the valid vectors of all processes."""
    error = ((y - q).square() * valid.to(y.dtype).unsqueeze(-1)).sum() / y.shape[-1]
    return joined_mean(error, joined_count(valid))
