"""Objectives: what a tokenizer is trained for, as functions of its errors and its quantizer's output, in any domain."""

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
from gritvq.quantizers.base import Quantizer, QuantizerOutput, keeping_precision

__all__ = ["ElboObjective", "Objective", "ReconstructionObjective", "TwoPathObjective", "objective_for"]


class Objective(Component, ABC):
    """Named, weighted losses of one batch; the task minimizes their sum.

    Attributes:
        value_scale: What differences of values in [0, 1], such as pixels, are multiplied by: 2 where they are meant to
            be of values in [-1, 1], the field's usual range.
        continuous: Whether the continuous latent is decoded too, see :class:`TwoPathObjective`.
    """

    value_scale = 1.0
    continuous = False

    @abstractmethod
    def forward(self, error: Float[Tensor, "B ..."], output: QuantizerOutput) -> dict[str, Tensor]:
        """Losses by name.

        Args:
            error: What was decoded minus what was encoded, float32.
            output: The quantizer's.
        """


class ReconstructionObjective(Objective):
    """Mean error plus whatever the quantizer asks for.

    ``weight * mean |error|^p`` with p = 2 or 1; pixels are scaled to [-1, 1].

    Args:
        norm: ``"l2"`` gives the best PSNR, ``"l1"`` sharper edges.
        weight: Weight of the error.

    Raises:
        ValueError: If the norm is unknown.

    Example:
        >>> ReconstructionObjective().norm
        'l2'
    """

    value_scale = 2.0

    def __init__(self, norm: str = "l2", *, weight: float = 1.0) -> None:
        super().__init__()
        self.norm, self.weight = _check_norm(norm), float(weight)

    def forward(self, error: Float[Tensor, "B ..."], output: QuantizerOutput) -> dict[str, Tensor]:
        """Losses ``reconstruction`` and those of the quantizer."""
        return {"reconstruction": self.weight * _mean_error(self.norm, error), **output.losses}


class ElboObjective(Objective):
    """A variational bound per component: a Gaussian log-likelihood of what is decoded, and latent losses.

    With SE the squared error of a sample, n its components (C H W of an image) and T its token positions, the sum over
    a sample is the reconstruction term below plus T times the quantizer's losses, which are means per vector. All of it
    is then divided by n ("nats per component"): the minimum is the same, and learning rates and gradient clipping
    mean what they do for the other objectives.

    - ``"arelbo"``: ``n/2 log(mean SE over the batch)``, the likelihood's variance at its best value;
    - ``"learned"``: ``SE / (2 s) + n/2 log s`` with a learned variance s per component;
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

    def forward(self, error: Float[Tensor, "B ..."], output: QuantizerOutput) -> dict[str, Tensor]:
        """Losses ``reconstruction`` and, scaled to a sample, those of the quantizer."""
        share = output.quantized.shape[1:-1].numel() / error[0].numel()
        losses = {name: loss * share for name, loss in output.losses.items()}
        return {"reconstruction": self.reconstruction(error.square()), **losses}

    def reconstruction(self, error: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The reconstruction term per component, from squared errors."""
        if self.likelihood == "arelbo":  # the logarithm of a batch mean is that of all processes
            total, count = all_reduce_sum(error.sum()), all_reduce_sum(error.new_tensor(error.numel()))
            return 0.5 * (total / count).clamp_min(1e-12).log()
        if self.log_variance is None:
            return error.mean() / (2 * self.variance)
        return 0.5 * (error.mean() * (-self.log_variance).exp() + self.log_variance)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ElboObjective:
        return super()._apply(keeping_precision(fn), recurse)


class TwoPathObjective(Objective):
    """Errors of two decodings, of the quantized and of the continuous latent, plus the quantizer's losses.

    ``weight * (mean |x - D(q)|^p + mean |x - D(z)|^p)`` with p = 2 or 1, for pixels scaled to [-1, 1]; q and z come
    from one draw. A training step decodes twice as many latents as one of :class:`ReconstructionObjective`. In eval
    only q is decoded.

    Args:
        norm: ``"l2"`` (paper) or ``"l1"`` (released code).
        weight: Weight of each error: 1 in the paper, 0.5 in the released code.

    Raises:
        ValueError: If the norm is unknown.

    Example:
        >>> from gritvq import VariationalLatent, vq_vae
        >>> continuous, output = VariationalLatent(vq_vae(8, 64)).sample(torch.randn(5, 16))
        >>> x = torch.randn(5, 8)
        >>> sorted(TwoPathObjective()(torch.stack([output.quantized - x, continuous - x]), output))
        ['codebook', 'commitment', 'continuous_reconstruction', 'reconstruction']

    References:
        VAEVQ, AAAI 2026, arXiv 2511.06863. That errors are means over pixels in [-1, 1] is our choice.
    """

    value_scale = 2.0
    continuous = True

    def __init__(self, norm: str = "l2", *, weight: float = 1.0) -> None:
        super().__init__()
        self.norm, self.weight = _check_norm(norm), float(weight)

    def forward(self, error: Float[Tensor, "P B ..."], output: QuantizerOutput) -> dict[str, Tensor]:
        """Losses ``reconstruction``, with two errors ``continuous_reconstruction``, and those of the quantizer.

        Args:
            error: Of the quantized latent, then of the continuous one; in eval the first alone.
            output: The quantizer's.
        """
        names = ("reconstruction", "continuous_reconstruction")
        errors = {name: self.weight * _mean_error(self.norm, each) for name, each in zip(names, error, strict=False)}
        return {**errors, **output.losses}


def objective_for(quantizer: Quantizer) -> Objective:
    """The objective that a quantizer's losses are made for, with its default settings.

    Raises:
        ValueError: If there is none for what the quantizer declares.

    Example:
        >>> from gritvq import grit_vq
        >>> type(objective_for(grit_vq(4, 16))).__name__
        'ReconstructionObjective'
    """
    match quantizer.objective:
        case "reconstruction":
            return ReconstructionObjective()
        case "two_path":
            return TwoPathObjective()
        case "arelbo":
            return ElboObjective("arelbo")
        case "albo":
            return ElboObjective("fixed")
    raise ValueError(
        f"expected a quantizer made for 'reconstruction', 'two_path', 'arelbo' or 'albo', got {quantizer.objective!r} "
        f"from {type(quantizer).__name__}; pass an objective of your own"
    )


def _check_norm(norm: str) -> str:
    if norm not in ("l1", "l2"):
        raise ValueError(f"expected norm 'l1' or 'l2', got {norm!r}")
    return norm


def _mean_error(norm: str, error: Tensor) -> Tensor:
    return (F.mse_loss if norm == "l2" else F.l1_loss)(error, error.new_zeros(()).expand_as(error))
