"""Objectives: training losses as functions of the reconstruction error and the quantizer's output, for any domain."""

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
from gritvq.distributed import all_reduce_sum, batch_mean
from gritvq.quantizers.base import Quantizer, QuantizerOutput, keeping_precision

__all__ = ["ElboObjective", "Objective", "ReconstructionObjective", "TwoPathObjective", "objective_for"]


class Objective(Component, ABC):
    """Named, weighted losses of one batch; the task minimizes their sum.

    Attributes:
        value_scale: Factor for errors of values in [0, 1], such as pixels; 2 gives errors of values in [-1, 1].
        continuous: Whether the continuous latent is decoded too, see :class:`TwoPathObjective`.
    """

    value_scale = 1.0
    continuous = False

    @abstractmethod
    def forward(self, error: Float[Tensor, "B ..."], output: QuantizerOutput) -> dict[str, Tensor]:
        """Losses by name.

        Args:
            error: Reconstruction minus input, float32.
            output: Output of the quantizer.
        """


class ReconstructionObjective(Objective):
    """Mean reconstruction error plus the quantizer's losses.

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
        """Loss ``reconstruction`` and the quantizer's losses."""
        return {"reconstruction": self.weight * _mean_error(self.norm, error), **output.losses}


class ElboObjective(Objective):
    """Negative variational bound in nats per component: Gaussian reconstruction term plus latent losses.

    Let SE be the squared error of a sample, n its number of components (C H W of an image) and T its number of token
    positions. The bound of a sample is the reconstruction term below plus T times the quantizer's losses, which are
    means per vector. It is divided by n, so that learning rates and gradient clipping mean the same as for the other
    objectives.

    - ``"arelbo"``: ``n/2 log(mean SE over the batch)``, the likelihood's variance at its best value;
    - ``"learned"``: ``SE / (2 s) + n/2 log s`` with a learned variance s per component;
    - ``"fixed"``: ``SE / (2 s)``.

    Pixels are in [0, 1] here, as in the papers. This scale changes the first two by a constant only; in the third it
    sets the relative weight of the latent losses.

    Args:
        likelihood: ``"arelbo"``, ``"learned"`` or ``"fixed"``.
        variance: s: initial value for ``"learned"`` (None: 0.1), or the value for ``"fixed"`` (None: 0.5, the plain
            squared error). Must be None for ``"arelbo"``.

    Raises:
        ValueError: If the likelihood is unknown, or the variance is not positive or not used.

    Example:
        >>> ElboObjective().likelihood
        'arelbo'

    References:
        Takida et al., "Preventing Oversmoothing in VAE via Generalized Variance Parameterization", Neurocomputing 2022,
        arXiv 2102.08663 (ARELBO); Takida et al., SQ-VAE, ICML 2022, arXiv 2205.07547. We divide by n, and leave out
        the constant ``-1/2 log n`` of the first form.
    """

    def __init__(
        self, likelihood: Literal["arelbo", "learned", "fixed"] = "arelbo", *, variance: float | None = None
    ) -> None:
        super().__init__()
        if likelihood not in ("arelbo", "learned", "fixed"):
            raise ValueError(f"expected likelihood 'arelbo', 'learned' or 'fixed', got {likelihood!r}; choose one")
        if variance is not None and (likelihood == "arelbo" or not 0 < variance < math.inf):
            raise ValueError(
                f"expected a variance > 0 with likelihood 'learned' or 'fixed', got {variance!r} with {likelihood!r}; "
                "leave it out for 'arelbo', which estimates it"
            )
        self.likelihood = likelihood
        self.variance = (0.1 if likelihood == "learned" else 0.5) if variance is None else float(variance)
        self.log_variance = nn.Parameter(torch.tensor(math.log(self.variance))) if likelihood == "learned" else None

    def forward(self, error: Float[Tensor, "B ..."], output: QuantizerOutput) -> dict[str, Tensor]:
        """Loss ``reconstruction`` and the quantizer's losses, all in nats per component."""
        share = output.quantized.shape[1:-1].numel() / error[0].numel()
        losses = {name: loss * share for name, loss in output.losses.items()}
        return {"reconstruction": self.reconstruction(error.square()), **losses}

    def reconstruction(self, error: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The reconstruction term per component, given squared errors."""
        if self.likelihood == "arelbo":  # the mean inside the logarithm is over the batches of all processes
            total, count = all_reduce_sum(error.sum()), all_reduce_sum(error.new_tensor(error.numel()))
            return 0.5 * (total / count).clamp_min(1e-12).log()
        if self.log_variance is None:
            return batch_mean(error) / (2 * self.variance)
        return 0.5 * (batch_mean(error) * (-self.log_variance).exp() + self.log_variance)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ElboObjective:
        return super()._apply(keeping_precision(fn), recurse)


class TwoPathObjective(Objective):
    """Reconstruction errors of the quantized and of the continuous latent, plus the quantizer's losses.

    ``weight * (mean |x - D(q)|^p + mean |x - D(z)|^p)`` with p = 2 or 1, for pixels scaled to [-1, 1]; q and z come
    from the same sample. Training decodes twice as many latents as with :class:`ReconstructionObjective`; in eval mode
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
        VAEVQ, AAAI 2026, arXiv 2511.06863. Errors are means over pixels in [-1, 1], which is our choice.
    """

    value_scale = 2.0
    continuous = True

    def __init__(self, norm: str = "l2", *, weight: float = 1.0) -> None:
        super().__init__()
        self.norm, self.weight = _check_norm(norm), float(weight)

    def forward(self, error: Float[Tensor, "P B ..."], output: QuantizerOutput) -> dict[str, Tensor]:
        """Losses ``reconstruction``, ``continuous_reconstruction`` (in training) and those of the quantizer.

        Args:
            error: Errors of the quantized latent (P = 1, eval mode) and of the continuous one (P = 2, training).
            output: Output of the quantizer.
        """
        names = ("reconstruction", "continuous_reconstruction")
        errors = {name: self.weight * _mean_error(self.norm, each) for name, each in zip(names, error, strict=False)}
        return {**errors, **output.losses}


def objective_for(quantizer: Quantizer) -> Objective:
    """The objective that ``quantizer.objective`` names, with its default settings.

    Raises:
        ValueError: If the name is unknown.

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
        f"expected quantizer.objective 'reconstruction', 'two_path', 'arelbo' or 'albo', got {quantizer.objective!r} "
        f"from {type(quantizer).__name__}; pass an objective of your own"
    )


def _check_norm(norm: str) -> str:
    if norm not in ("l1", "l2"):
        raise ValueError(f"expected norm 'l1' or 'l2', got {norm!r}; choose one")
    return norm


def _mean_error(norm: str, error: Tensor) -> Tensor:
    each = F.mse_loss if norm == "l2" else F.l1_loss
    return batch_mean(each(error, error.new_zeros(()).expand_as(error), reduction="none"))
