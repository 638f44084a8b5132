"""The losses of a batch of images: which differences of pixels an objective gets, and what looks at pictures."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gritvq.distributed import joined_average
from gritvq.images.foundation import SelfDistillation
from gritvq.images.losses import AdversarialLoss, PerceptualDistance
from gritvq.images.tokenizer import ImageTokenizer
from gritvq.quantizers.stochastic import VariationalLatent
from gritvq.tokenizer import TokenizerOutput
from gritvq.training.objectives import Objective

__all__ = ["image_losses"]


def image_losses(
    objective: Objective,
    tokenizer: ImageTokenizer,
    images: Float[Tensor, "B C H W"],
    *,
    perceptual: PerceptualDistance | None = None,
    adversarial: AdversarialLoss | None = None,
    distillation: SelfDistillation | None = None,
) -> tuple[dict[str, Tensor], TokenizerOutput]:
    """Losses of a batch by name, and the tokenizer's output.

    Args:
        objective: What to minimize. Where it is ``continuous``, training compares two decodings of one draw and decodes
            twice as many latents; eval only that of the quantized latent.
        tokenizer: What is trained.
        images: Pixels in [0, 1].
        perceptual: Adds the weighted loss ``perceptual`` of the reconstruction.
        adversarial: Adds the tokenizer's weighted loss ``adversarial``; its adaptive weight compares it with all losses
            of the reconstruction.
        distillation: Adds the weighted loss ``distillation`` of the latents.

    Raises:
        ValueError: If the objective needs a continuous latent and the quantizer has none, or pictures are too small for
            a network.

    Example:
        >>> from gritvq import grit_vq
        >>> from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
        >>> from gritvq.training import ReconstructionObjective
        >>> tokenizer = ImageTokenizer(ImageEncoder(8, width=16), grit_vq(8, 64), ImageDecoder(8, width=16))
        >>> sorted(image_losses(ReconstructionObjective(), tokenizer, torch.rand(2, 3, 8, 8))[0])
        ['reconstruction']
    """
    quantizer = tokenizer.quantizer
    if objective.continuous and not isinstance(quantizer, VariationalLatent):
        raise ValueError(
            "expected a quantizer with a continuous latent to decode, got "
            f"{type(quantizer).__name__}; use VariationalLatent, or ReconstructionObjective"
        )
    if isinstance(quantizer, VariationalLatent) and objective.continuous and quantizer.training:
        latents = tokenizer.latents(images)
        continuous, quantization = quantizer.sample(latents)
        both = tokenizer.decoder(torch.cat([quantization.quantized, continuous]))
        decoded = both[..., : images.shape[-2], : images.shape[-1]].unflatten(0, (2, -1))
        output = TokenizerOutput(decoded[0], quantization, latents)
    else:
        output = tokenizer(images)
        decoded = output.reconstruction[None] if objective.continuous else output.reconstruction
    losses = objective(objective.value_scale * (decoded.float() - images.float()), output.quantization)
    if perceptual is not None:
        losses["perceptual"] = perceptual.weight * joined_average(
            perceptual(output.reconstruction, images), len(images)
        )
    if adversarial is not None:
        own, weight = adversarial.generator(output.reconstruction), adversarial.weight
        if adversarial.adaptive:
            others = [loss for name, loss in losses.items() if name not in output.quantization.losses]
            last: Any = tokenizer.decoder.last_layer
            own = own * adversarial.adaptive_weight(torch.stack(others).sum(), own, last)
        losses["adversarial"] = weight * own
    if distillation is not None:
        losses["distillation"] = distillation.weight * distillation(output.latents, tokenizer.padded(images))
    return losses, output
