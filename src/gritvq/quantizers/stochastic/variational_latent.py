"""A Gaussian latent in front of a quantizer: the encoder gives a mean and a variance, codes are aligned to both."""

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
    """Aligns codes to the posterior they stand for: ``weight * mean_n 1/2 sum_d ((q - mu) / sg(sigma))^2``.

    Up to constants the negative log-likelihood of the code under ``N(mu, sigma^2)``: a code must lie close where the
    encoder is certain and may lie apart where it is not. Both the code and the mean get its gradient.

    Args:
        weight: Weight of the loss.
        reduction: ``"sum"`` over the D components (the paper's formula) or ``"mean"`` (the released code). Over vectors
            it is always the mean of the valid ones, which for the paper is our choice.
        detach_deviation: Whether sigma gets no gradient (paper). With False (released code) the loss also widens
            sigma, as far as nothing else holds it.

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
            raise ValueError(f"expected reduction 'sum' or 'mean' over the components, got {reduction!r}")
        self.reduction, self.detach_deviation = reduction, detach_deviation

    def forward(
        self,
        mean: Float[Tensor, "*batch D"],
        log_variance: Float[Tensor, "*batch D"],
        q: Float[Tensor, "*batch D"],
        valid: Bool[Tensor, "*batch"],
    ) -> Float[Tensor, ""]:
        """The weighted loss of means and log variances with their codes."""
        precision = (-(log_variance.detach() if self.detach_deviation else log_variance)).exp()
        each = 0.5 * (q - mean).square() * precision
        return self.weight * masked_mean(each.sum(-1) if self.reduction == "sum" else each.mean(-1), valid)


class VariationalLatent(WrappedQuantizer):
    """A quantizer of Gaussian latents: ``z = mu + sigma * eps`` goes to the nearest code of the quantizer inside.

    The input holds the mean and the log variance of D components, so the encoder must have twice the size of the
    decoder: ``ImageEncoder(2 * dim)`` or, for any quantizer, ``ImageEncoder(quantizer.input_dim)``. In training z is
    drawn from torch's global generator, once per forward pass; in eval ``z = mu``. Train it with
    :class:`gritvq.training.TwoPathObjective`, which decodes z too: nothing else in the method tells sigma how small it
    should be.

    Losses are those of the quantizer inside, ``coherence`` if that is given, and for ``kl_weight > 0`` also ``kl``:
    ``kl_weight`` times the mean over valid vectors and components of ``KL(N(mu, sigma^2) || N(0, 1))``.

    Weights are relative to the reconstruction error. If that is a mean over pixels while the paper's is a sum, then a
    weight of w there is about ``w / (pixels * channels per token)`` here: 0.02 for 1 at 4 x 4 pixels in color.

    The coherence loss alone lets sigma sink: with ``detach_deviation`` nothing pushes sigma up, and the reconstruction
    from z pushes it down, toward an ordinary autoencoder whose coherence loss explodes. Give it a KL weight.

    Args:
        quantizer: The quantizer inside, of vectors of size D; it maps nothing before or after quantizing. The method
            has no codebook and no commitment loss: give a :class:`gritvq.VectorQuantizer` ``learning=[]``.
        choose_by: Whether the code nearest to ``"sample"`` z is taken (paper) or the one nearest to the ``"mean"``
            (released code). In eval the two are the same.
        gradient: ``"straight_through"`` is the inner surrogate's gradient, to the vector the code was chosen by.
            ``"reparameterized"`` replaces it by that of the released code: 1 to the code, so that codes learn from the
            task, 1 to mu, and ``(q - mu) / sigma`` to sigma, as if q had been drawn with that noise.
        coherence: Loss between codes and posterior.
        kl_weight: Weight of the divergence from the unit Gaussian; 0 for none. That the paper has such a term is
            stated, its weight and reduction are not established: ours.
        initial_log_variance: Added to the log variances of the input, before they are clamped to [-30, 20]. An encoder
            whose outputs start about 0, as ``ImageEncoder``'s do, begins with ``sigma = exp(initial_log_variance / 2)``
            while its means spread by ``1 / sqrt(2 D)``. -2 is a safe start there. At 0 noise drowns the means first,
            which slow codes do not recover from; from -6 on the coherence loss, with its ``1 / sigma^2``, takes over.

    Attributes:
        objective: ``"two_path"``.

    Raises:
        ValueError: If the quantizer inside maps before or after quantizing, has no surrogate or an objective of its
            own, or an argument is out of its range.

    Example:
        >>> from gritvq import vq_vae
        >>> latent = VariationalLatent(vq_vae(4, 16), coherence=RepresentationCoherenceLoss(0.1), kl_weight=1e-3)
        >>> quantized, indices, losses = latent(torch.randn(5, 8))
        >>> quantized.shape, indices.shape, sorted(losses)
        (torch.Size([5, 4]), torch.Size([5, 1]), ['codebook', 'coherence', 'commitment', 'kl'])

    References:
        VAEVQ, AAAI 2026, arXiv 2511.06863 ("variational latent quantization"). Paper: chosen by the sample,
        straight-through. Released code: chosen by the mean, the gradient named ``"reparameterized"`` here, log
        variances clamped to [-30, 20]. The initial log variance is ours.
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
                f"expected a quantizer that maps nothing before or after quantizing, got {kind.__name__}; put what is "
                "inside it here, and the maps into encoder and decoder"
            )
        if quantizer.surrogate is None or quantizer.objective != "reconstruction":
            raise ValueError(
                "expected a quantizer with a surrogate, trained beside a reconstruction error, got "
                f"{kind.__name__} (surrogate={quantizer.surrogate}, objective={quantizer.objective!r}); use a hard "
                "quantizer such as VectorQuantizer"
            )
        if choose_by not in ("sample", "mean"):
            raise ValueError(f"expected choose_by 'sample' or 'mean', got {choose_by!r}")
        if gradient not in ("straight_through", "reparameterized"):
            raise ValueError(f"expected gradient 'straight_through' or 'reparameterized', got {gradient!r}")
        if not math.isfinite(initial_log_variance):
            raise ValueError(f"expected a finite initial_log_variance, got {initial_log_variance!r}")
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
        """Draw z; z, mean and log variance side by side, so that one draw serves everything."""
        with torch.autocast(x.device.type, enabled=False):
            mean, raw = at_least_float32(x).chunk(2, -1)
            log_variance = (raw + self.initial_log_variance).clamp(*_LOG_VARIANCE)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
            return torch.cat([z, mean, log_variance], -1)

    def quantize(self, x: Float[Tensor, "*batch 3D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """The inner quantizer's choice for z or the mean; in training also its losses and those of the latent."""
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
        """The continuous latent, zero where masked, and what :meth:`forward` gives, from one and the same draw."""
        y, valid = self._enter(x, mask)
        z = torch.where(valid.unsqueeze(-1), y[..., : self.dim], 0).to(x.dtype)
        return z, self._leave(y, valid, x.dtype)

    def initialize_codebook(self, x: Float[Tensor, "*batch 2D"], generator: torch.Generator | None = None) -> None:
        """Fit the inner codes to the means; the surrogate sees them too."""
        self._check_input(x, None)
        finite = torch.isfinite(x).all(-1, keepdim=True)
        mean = torch.where(finite, x[..., : self.dim], math.nan)
        self.quantizer.initialize_codebook(mean, generator)
        if self.surrogate is not None:
            with torch.no_grad():
                self.surrogate.initialize(self._finite_rows(mean))

    def fold(self) -> VariationalLatent:
        """The same latent around the folded quantizer."""
        return VariationalLatent(
            self.quantizer.fold(),
            choose_by=self.choose_by,
            gradient=self.gradient,
            initial_log_variance=self.initial_log_variance,
        ).eval()


class _StraightThroughSample(Surrogate):
    """A surrogate between the code and the vector it was chosen by, out of z, mean and log variance."""

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
    """The gradient of ``mu + sigma * eps`` with the noise that would have given q."""

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
