"""Objectives: what a tokenizer is trained for."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gritvq.base import Component
from gritvq.tokenizer import Tokenizer, TokenizerOutput

__all__ = ["Objective", "ReconstructionObjective"]


class Objective(Component, ABC):
    """Named, weighted losses of one batch; the task minimises their sum."""

    @abstractmethod
    def forward(
        self, tokenizer: Tokenizer, images: Float[Tensor, "B C H W"]
    ) -> tuple[dict[str, Tensor], TokenizerOutput]:
        """Return the losses by name and the tokenizer's output."""


class ReconstructionObjective(Objective):
    """Pixel error plus whatever the quantizer asks for.

    ``weight * mean |x - y|^p`` for pixels scaled to [-1, 1], the field's usual range, with p = 2 or 1.

    Args:
        norm: ``"l2"`` gives the best PSNR, ``"l1"`` sharper edges.
        weight: Weight of the pixel error.

    Raises:
        ValueError: If the norm is unknown.

    Example:
        >>> ReconstructionObjective().norm
        'l2'
    """

    def __init__(self, norm: str = "l2", *, weight: float = 1.0) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise ValueError(f"expected norm 'l1' or 'l2', got {norm!r}")
        self.norm, self.weight = norm, float(weight)

    def forward(
        self, tokenizer: Tokenizer, images: Float[Tensor, "B C H W"]
    ) -> tuple[dict[str, Tensor], TokenizerOutput]:
        """Losses ``reconstruction`` and those of the quantizer."""
        output = tokenizer(images)
        loss = F.mse_loss if self.norm == "l2" else F.l1_loss
        pixels = loss(2 * output.reconstruction.float(), 2 * images.float())
        return {"reconstruction": self.weight * pixels, **output.quantization.losses}, output
