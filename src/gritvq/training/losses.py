"""Objectives: what a tokenizer is trained for."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gritvq.base import Component
from gritvq.tokenizer import Tokenizer, TokenizerOutput
from gritvq.variational import VariationalLatent

__all__ = ["Objective", "ReconstructionObjective", "TwoPathObjective"]


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
        self.norm, self.weight = _check_norm(norm), float(weight)

    def forward(
        self, tokenizer: Tokenizer, images: Float[Tensor, "B C H W"]
    ) -> tuple[dict[str, Tensor], TokenizerOutput]:
        """Losses ``reconstruction`` and those of the quantizer."""
        output = tokenizer(images)
        pixels = _pixel_error(self.norm, output.reconstruction, images)
        return {"reconstruction": self.weight * pixels, **output.quantization.losses}, output


class TwoPathObjective(Objective):
    """Pixel errors of two decodings, of the quantized and of the continuous latent, plus the quantizer's losses.

    ``weight * (mean |x - D(q)|^p + mean |x - D(z)|^p)`` for pixels scaled to [-1, 1], with p = 2 or 1; q and z come
    from one draw. A training step decodes twice as many latents as one of :class:`ReconstructionObjective`. In eval
    only q is decoded.

    Args:
        norm: ``"l2"`` (paper) or ``"l1"`` (released code).
        weight: Weight of each error: 1 in the paper, 0.5 in the released code.

    Raises:
        ValueError: If the norm is unknown, or, in training, the quantizer has no continuous latent.

    Example:
        >>> from gritvq import VariationalLatent, vq_vae
        >>> from gritvq.models import ImageDecoder, ImageEncoder
        >>> quantizer = VariationalLatent(vq_vae(8, 64))
        >>> tokenizer = Tokenizer(ImageEncoder(16, width=16), quantizer, ImageDecoder(8, width=16))
        >>> sorted(TwoPathObjective()(tokenizer, torch.rand(2, 3, 8, 8))[0])
        ['codebook', 'commitment', 'continuous_reconstruction', 'reconstruction']

    References:
        VAEVQ, AAAI 2026, arXiv 2511.06863. That errors are means over pixels in [-1, 1] is our choice.
    """

    def __init__(self, norm: str = "l2", *, weight: float = 1.0) -> None:
        super().__init__()
        self.norm, self.weight = _check_norm(norm), float(weight)

    def forward(
        self, tokenizer: Tokenizer, images: Float[Tensor, "B C H W"]
    ) -> tuple[dict[str, Tensor], TokenizerOutput]:
        """Losses ``reconstruction``, in training ``continuous_reconstruction``, and those of the quantizer."""
        quantizer = tokenizer.quantizer
        if not isinstance(quantizer, VariationalLatent):
            raise ValueError(
                "expected a quantizer with a continuous latent to decode, got "
                f"{type(quantizer).__name__}; use VariationalLatent, or ReconstructionObjective"
            )
        if not quantizer.training:
            output = tokenizer(images)
            pixels = _pixel_error(self.norm, output.reconstruction, images)
            return {"reconstruction": self.weight * pixels}, output
        latents = tokenizer.encoder(tokenizer.pad(images))
        continuous, quantization = quantizer.sample(latents)
        both = tokenizer.decoder(torch.cat([quantization.quantized, continuous]))
        decoded, other = both[..., : images.shape[-2], : images.shape[-1]].chunk(2)
        losses = {
            "reconstruction": self.weight * _pixel_error(self.norm, decoded, images),
            "continuous_reconstruction": self.weight * _pixel_error(self.norm, other, images),
        }
        return {**losses, **quantization.losses}, TokenizerOutput(decoded, quantization, latents)


def _check_norm(norm: str) -> str:
    if norm not in ("l1", "l2"):
        raise ValueError(f"expected norm 'l1' or 'l2', got {norm!r}")
    return norm


def _pixel_error(norm: str, decoded: Tensor, images: Tensor) -> Tensor:
    """Mean error of pixels scaled to [-1, 1]."""
    loss = F.mse_loss if norm == "l2" else F.l1_loss
    return loss(2 * decoded.float(), 2 * images.float())
