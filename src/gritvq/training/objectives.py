"""Objectives: what a tokenizer is trained for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component
from gritvq.distributed import all_reduce_sum
from gritvq.quantizers.base import Quantizer, keeping_precision
from gritvq.quantizers.stochastic import VariationalLatent
from gritvq.tokenizer import Autoencoder, TokenizerOutput

__all__ = ["ElboObjective", "Objective", "ReconstructionObjective", "TwoPathObjective", "objective_for"]


class Objective(Component, ABC):
    """Named, weighted losses of one batch; the task minimizes their sum."""

    @abstractmethod
    def forward(
        self, tokenizer: Autoencoder, images: Float[Tensor, "B C H W"]
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
        self, tokenizer: Autoencoder, images: Float[Tensor, "B C H W"]
    ) -> tuple[dict[str, Tensor], TokenizerOutput]:
        """Losses ``reconstruction`` and those of the quantizer."""
        output = tokenizer(images)
        pixels = _pixel_error(self.norm, output.reconstruction, images)
        return {"reconstruction": self.weight * pixels, **output.quantization.losses}, output


class ElboObjective(Objective):
    """A variational bound per pixel component: a Gaussian log-likelihood of the image, and latent losses.

    With SE the squared error of an image, n = C H W its pixel components and T its token positions, the sum over an
    image is the reconstruction term below plus T times the quantizer's losses, which are means per vector. Everything
    is then divided by n ("nats per pixel component"): the minimum is the same, and learning rates and gradient clipping
    mean what they do for the other objectives.

    - ``"arelbo"``: ``n/2 log(mean SE over the batch)``, the likelihood's variance at its best value;
    - ``"learned"``: ``SE / (2 s) + n/2 log s`` with a learned variance s per pixel component;
    - ``"fixed"``: ``SE / (2 s)``.

    Pixels are compared in [0, 1] here, as the methods' authors do. The first two do not depend on that but for a
    constant (and the start of s); in the third it decides how much the latent losses weigh.

    Args:
        likelihood: One of the three.
        variance: s: the start of ``"learned"`` (None: 0.1) or the value of ``"fixed"`` (None: 0.5, the plain squared
            error). Unused by ``"arelbo"``.

    Raises:
        ValueError: If the likelihood is unknown, or the variance is not positive or not used.

    Example:
        >>> ElboObjective().likelihood
        'arelbo'

    References:
        Takida et al., "Preventing Oversmoothing in VAE via Generalized Variance Parameterization", Neurocomputing 2022,
        arXiv 2102.08663 (ARELBO); Takida et al., SQ-VAE, ICML 2022, arXiv 2205.07547. The division by n is our choice;
        its constant ``-1/2 log n`` in the first form is left out.
    """

    def __init__(
        self, likelihood: Literal["arelbo", "learned", "fixed"] = "arelbo", *, variance: float | None = None
    ) -> None:
        super().__init__()
        if likelihood not in ("arelbo", "learned", "fixed"):
            raise ValueError(f"expected likelihood 'arelbo', 'learned' or 'fixed', got {likelihood!r}")
        if variance is not None and (likelihood == "arelbo" or not 0 < variance < math.inf):
            raise ValueError(
                f"expected a variance > 0 with likelihood 'learned' or 'fixed', got {variance!r} with {likelihood!r}; "
                "'arelbo' finds its own"
            )
        self.likelihood = likelihood
        self.variance = (0.1 if likelihood == "learned" else 0.5) if variance is None else float(variance)
        self.log_variance = nn.Parameter(torch.tensor(math.log(self.variance))) if likelihood == "learned" else None

    def forward(
        self, tokenizer: Autoencoder, images: Float[Tensor, "B C H W"]
    ) -> tuple[dict[str, Tensor], TokenizerOutput]:
        """Losses ``reconstruction`` and, scaled to the image, those of the quantizer."""
        output = tokenizer(images)
        error = (output.reconstruction.float() - images.float()).square()
        components = images[0].numel()
        tokens = output.latents.shape[1:-1].numel()
        losses = {name: loss * (tokens / components) for name, loss in output.quantization.losses.items()}
        return {"reconstruction": self.reconstruction(error), **losses}, output

    def reconstruction(self, error: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The reconstruction term per pixel component, from squared errors."""
        if self.likelihood == "arelbo":  # the logarithm of a batch mean is that of all processes
            total, count = all_reduce_sum(error.sum()), all_reduce_sum(error.new_tensor(error.numel()))
            return 0.5 * (total / count).clamp_min(1e-12).log()
        if self.log_variance is None:
            return error.mean() / (2 * self.variance)
        return 0.5 * (error.mean() * (-self.log_variance).exp() + self.log_variance)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ElboObjective:
        return super()._apply(keeping_precision(fn), recurse)


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
        >>> from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
        >>> quantizer = VariationalLatent(vq_vae(8, 64))
        >>> tokenizer = ImageTokenizer(ImageEncoder(16, width=16), quantizer, ImageDecoder(8, width=16))
        >>> sorted(TwoPathObjective()(tokenizer, torch.rand(2, 3, 8, 8))[0])
        ['codebook', 'commitment', 'continuous_reconstruction', 'reconstruction']

    References:
        VAEVQ, AAAI 2026, arXiv 2511.06863. That errors are means over pixels in [-1, 1] is our choice.
    """

    def __init__(self, norm: str = "l2", *, weight: float = 1.0) -> None:
        super().__init__()
        self.norm, self.weight = _check_norm(norm), float(weight)

    def forward(
        self, tokenizer: Autoencoder, images: Float[Tensor, "B C H W"]
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
        latents = tokenizer.latents(images)
        continuous, quantization = quantizer.sample(latents)
        both = tokenizer.decoder(torch.cat([quantization.quantized, continuous]))
        decoded, other = both[..., : images.shape[-2], : images.shape[-1]].chunk(2)
        losses = {
            "reconstruction": self.weight * _pixel_error(self.norm, decoded, images),
            "continuous_reconstruction": self.weight * _pixel_error(self.norm, other, images),
        }
        return {**losses, **quantization.losses}, TokenizerOutput(decoded, quantization, latents)


# What the losses of a quantizer are made for -> the objective that supplies the rest.
_OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "reconstruction": ReconstructionObjective,
    "arelbo": ElboObjective,
    "albo": lambda: ElboObjective("fixed"),
    "two_path": TwoPathObjective,
}


def objective_for(quantizer: Quantizer) -> Objective:
    """The objective that a quantizer's losses are made for, with its default settings.

    Raises:
        ValueError: If there is none for what the quantizer declares.

    Example:
        >>> from gritvq import grit_vq
        >>> type(objective_for(grit_vq(4, 16))).__name__
        'ReconstructionObjective'
    """
    if quantizer.objective not in _OBJECTIVES:
        raise ValueError(
            f"expected a quantizer made for one of {sorted(_OBJECTIVES)}, got {quantizer.objective!r} from "
            f"{type(quantizer).__name__}; pass an objective of your own"
        )
    return _OBJECTIVES[quantizer.objective]()


def _check_norm(norm: str) -> str:
    if norm not in ("l1", "l2"):
        raise ValueError(f"expected norm 'l1' or 'l2', got {norm!r}")
    return norm


def _pixel_error(norm: str, decoded: Tensor, images: Tensor) -> Tensor:
    """Mean error of pixels scaled to [-1, 1]."""
    loss = F.mse_loss if norm == "l2" else F.l1_loss
    return loss(2 * decoded.float(), 2 * images.float())
