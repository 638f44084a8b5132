"""Quantization of Gaussian latents, for which the encoder predicts a mean and a variance (VAEVQ)."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gritvq.component import Component, check_number
from gritvq.distributed import masked_mean
from gritvq.quantizers.base import Quantizer, QuantizerOutput, Surrogate, WrappedQuantizer, check_quantizer
from gritvq.quantizers.functional import at_least_float32

__all__ = ["RepresentationCoherenceLoss", "VariationalLatent"]

_LOG_VARIANCE = (-30.0, 20.0)


class RepresentationCoherenceLoss(Component):
    """Aligns codes with the posterior: ``weight * mean_n 1/2 sum_d ((q - mu) / sg(sigma))^2``.

    Up to constants this is the negative log-likelihood of the code under ``N(mu, sigma^2)``: a code must be close where
    sigma is small and may be far where it is large. Both the code and the mean get gradients.

    Args:
        weight: Weight of the loss.
        reduction: ``"sum"`` over the D components (paper) or ``"mean"`` (released code). Over vectors it is the mean of
            the valid ones, which for the paper is our choice.
        detach_deviation: Whether sigma gets no gradient (paper). With False (released code) the loss also increases
            sigma.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> loss = RepresentationCoherenceLoss()
        >>> zeros, valid = torch.zeros(1, 2), torch.ones(1, dtype=torch.bool)
        >>> loss(zeros, zeros, torch.ones(1, 2), valid).item()
        1.0

    References:
        VAEVQ, AAAI 2026, arXiv 2511.06863 ("representation coherence strategy"). Paper: sum, sigma detached. Released
        code: mean, sigma not detached.
    """

    def __init__(
        self, weight: float = 1.0, *, reduction: Literal["sum", "mean"] = "sum", detach_deviation: bool = True
    ) -> None:
        super().__init__()
        self.weight = check_number("weight", weight)
        if reduction not in ("sum", "mean"):
            raise ValueError(f"expected reduction 'sum' or 'mean' over the components, got {reduction!r}; choose one")
        self.reduction, self.detach_deviation = reduction, detach_deviation

    def forward(
        self,
        mean: Float[Tensor, "*batch D"],
        log_variance: Float[Tensor, "*batch D"],
        q: Float[Tensor, "*batch D"],
        valid: Bool[Tensor, "*batch"],
    ) -> Float[Tensor, ""]:
        """The weighted loss of means, log variances and codes."""
        precision = (-(log_variance.detach() if self.detach_deviation else log_variance)).exp()
        each = 0.5 * (q - mean).square() * precision
        return self.weight * masked_mean(each.sum(-1) if self.reduction == "sum" else each.mean(-1), valid)


class VariationalLatent(WrappedQuantizer):
    """A quantizer of Gaussian latents: the inner quantizer quantizes ``z = mu + sigma * eps``.

    The input has the mean and the log variance of D components, so the encoder needs twice the decoder's size:
    ``ImageEncoder(2 * dim)`` or, for any quantizer, ``ImageEncoder(quantizer.input_dim)``. In training z is drawn once
    per forward pass from torch's global generator; in eval ``z = mu``. Train with
    :class:`gritvq.training.TwoPathObjective`, which decodes z, too: no other loss of the method limits sigma.

    Losses are those of the inner quantizer, ``coherence`` if given, and for ``kl_weight > 0`` also ``kl``:
    ``kl_weight`` times the mean over valid vectors and components of ``KL(N(mu, sigma^2) || N(0, 1))``.

    Weights are relative to the reconstruction error. If that is a mean over pixels and the paper's a sum, the paper's
    weight w is about ``w / (pixels * channels per token)`` here: 0.02 for w = 1 at 4 x 4 pixels in color.

    Use a KL weight with the coherence loss. With ``detach_deviation`` nothing else increases sigma, and reconstruction
    from z decreases it, until the latent is deterministic and the coherence loss diverges.

    Args:
        quantizer: The inner quantizer, of vectors of size D; its ``before`` and ``after`` must be the identity. The
            method has no codebook and no commitment loss: use :class:`gritvq.VectorQuantizer` with ``learning=[]``.
        choose_by: Whether to choose the code nearest to the ``"sample"`` z (paper) or to the ``"mean"`` (released
            code). In eval they are equal.
        gradient: ``"straight_through"``: the inner surrogate's gradient for the vector that the code was chosen by.
            ``"reparameterized"``: that of the released code, 1 for the code and for mu, and ``(q - mu) / sigma`` for
            sigma, as if q had been sampled.
        coherence: Loss between codes and posterior.
        kl_weight: Weight of the divergence from the unit Gaussian; 0 for none. The paper mentions this term; weight and
            reduction are ours.
        initial_log_variance: Added to the log variances of the input, before they are clamped to [-30, 20]. An encoder
            with outputs near 0, such as a new ``ImageEncoder``, starts with ``sigma = exp(initial_log_variance / 2)``
            and means of standard deviation ``1 / sqrt(2 D)``. -2 is a good value then. At 0 the noise dominates the
            means, from which slow codes do not recover; from -6 the coherence loss dominates.

    Attributes:
        objective: ``"two_path"``.

    Raises:
        ValueError: If the inner quantizer maps before or after quantizing, has no surrogate or another objective than
            ``"reconstruction"``, or an argument is out of range.

    Example:
        >>> from gritvq import vq_vae
        >>> latent = VariationalLatent(vq_vae(4, 16), coherence=RepresentationCoherenceLoss(0.1), kl_weight=1e-3)
        >>> quantized, indices, losses = latent(torch.randn(5, 8))
        >>> quantized.shape, indices.shape, sorted(losses)
        (torch.Size([5, 4]), torch.Size([5, 1]), ['codebook', 'coherence', 'commitment', 'kl'])

    References:
        VAEVQ, AAAI 2026, arXiv 2511.06863 ("variational latent quantization"). Paper: ``choose_by="sample"``,
        straight-through. Released code: ``choose_by="mean"``, ``gradient="reparameterized"``, log variances clamped to
        [-30, 20]. The initial log variance is ours.
    """

    objective = "two_path"

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        choose_by: Literal["sample", "mean"] = "sample",
        gradient: Literal["straight_through", "reparameterized"] = "straight_through",
        coherence: RepresentationCoherenceLoss | None = None,
        kl_weight: float = 0.0,
        initial_log_variance: float = 0.0,
    ) -> None:
        check_quantizer(quantizer)
        kind = type(quantizer)
        if kind.before is not Quantizer.before or kind.after is not Quantizer.after:
            raise ValueError(
                f"expected a quantizer that maps nothing before or after quantizing, got {kind.__name__}; pass its "
                "inner quantizer, and move the maps to encoder and decoder"
            )
        if quantizer.surrogate is None or quantizer.objective != "reconstruction":
            raise ValueError(
                "expected a quantizer with a surrogate and the objective 'reconstruction', got "
                f"{kind.__name__} (surrogate={quantizer.surrogate}, objective={quantizer.objective!r}); use a hard "
                "quantizer such as VectorQuantizer"
            )
        if choose_by not in ("sample", "mean"):
            raise ValueError(f"expected choose_by 'sample' or 'mean', got {choose_by!r}; choose one")
        if gradient not in ("straight_through", "reparameterized"):
            raise ValueError(f"expected gradient 'straight_through' or 'reparameterized', got {gradient!r}; choose one")
        if not math.isfinite(initial_log_variance):
            raise ValueError(f"expected a finite initial_log_variance, got {initial_log_variance!r}; -2 is usual")
        super().__init__(quantizer)
        self.choose_by, self.gradient, self.coherence = choose_by, gradient, coherence
        self.kl_weight = check_number("kl_weight", kl_weight)
        self.initial_log_variance = float(initial_log_variance)
        self.objective = type(self).objective
        self.draws_indices = quantizer.draws_indices or choose_by == "sample"
        inner = copy.deepcopy(quantizer.surrogate)
        self.surrogate = _StraightThroughSample(inner, choose_by) if gradient == "straight_through" else _AsIfDrawn()

    @property
    def input_dim(self) -> int:
        """2 D: mean and log variance."""
        return 2 * self.dim

    def before(self, x: Float[Tensor, "*batch 2D"]) -> Float[Tensor, "*batch 3D"]:
        """Sample z, and concatenate z, mean and log variance."""
        with torch.autocast(x.device.type, enabled=False):
            mean, raw = at_least_float32(x).chunk(2, -1)
            log_variance = (raw + self.initial_log_variance).clamp(*_LOG_VARIANCE)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
            return torch.cat([z, mean, log_variance], -1)

    def quantize(self, x: Float[Tensor, "*batch 3D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Quantize z or the mean by the inner quantizer; in training also its losses and those of the latent."""
        z, mean, log_variance = x.chunk(3, -1)
        chosen_by = z if self.choose_by == "sample" else mean
        output = super().quantize(torch.where(valid.unsqueeze(-1), chosen_by, 0), valid)
        if not self.training:
            return output
        with torch.autocast(x.device.type, enabled=False):
            own: dict[str, Tensor] = {}
            if self.coherence is not None:
                own["coherence"] = self.coherence(mean, log_variance, output.quantized, valid)
            if self.kl_weight > 0:
                divergence = 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance).mean(-1)
                own["kl"] = self.kl_weight * masked_mean(divergence, valid)
        return output._replace(losses={**output.losses, **own})

    def sample(
        self, x: Float[Tensor, "*batch 2D"], mask: Bool[Tensor, "*batch"] | None = None
    ) -> tuple[Float[Tensor, "*batch D"], QuantizerOutput]:
        """The continuous latent (zero where masked) and the output of :meth:`forward` for the same sample."""
        y, valid = self._enter(x, mask)
        z = torch.where(valid.unsqueeze(-1), y[..., : self.dim], 0).to(x.dtype)
        return z, self._leave(y, valid, x.dtype)

    def initialize_codebook(self, x: Float[Tensor, "*batch 2D"], generator: torch.Generator | None = None) -> None:
        """Initialize the inner quantizer and the surrogate from the means."""
        self._check_input(x, None)
        finite = torch.isfinite(x).all(-1, keepdim=True)
        mean = torch.where(finite, x[..., : self.dim], math.nan)
        self.quantizer.initialize_codebook(mean, generator)
        if self.surrogate is not None:
            with torch.no_grad():
                self.surrogate.initialize(self._finite_rows(mean))

    def fold(self) -> VariationalLatent:
        """The same with the inner quantizer folded."""
        return VariationalLatent(
            self.quantizer.fold(),
            choose_by=self.choose_by,
            gradient=self.gradient,
            initial_log_variance=self.initial_log_variance,
        ).eval()


class _StraightThroughSample(Surrogate):
    """The inner surrogate, applied to the vector that the code was chosen by."""

    def __init__(self, surrogate: Surrogate, choose_by: Literal["sample", "mean"]) -> None:
        super().__init__()
        self.surrogate, self.choose_by = surrogate, choose_by
        self.exact, self.moves_codes = surrogate.exact, surrogate.moves_codes

    def initialize(self, x: Float[Tensor, "N D"]) -> None:
        self.surrogate.initialize(x)

    def forward(self, x: Float[Tensor, "*batch 3D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        z, mean, _ = x.chunk(3, -1)
        return self.surrogate(z if self.choose_by == "sample" else mean, q)


class _AsIfDrawn(Surrogate):
    """The gradient of ``mu + sigma * eps`` for the noise eps that gives q."""

    moves_codes = True

    def forward(self, x: Float[Tensor, "*batch 3D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        _, mean, log_variance = x.chunk(3, -1)
        return _Drawn.apply(mean, (0.5 * log_variance).exp(), q)


class _Drawn(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, deviation: Tensor, q: Tensor) -> Tensor:
        return q.to(mean.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, deviation, q = ctx.saved_tensors
        return grad, grad * ((q - mean) / deviation), grad.to(q.dtype)
