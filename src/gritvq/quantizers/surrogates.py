r"""Surrogates: what gradient flows through the hard choice.

With ``e = q - z``, ``d = |e|`` and the upstream gradient ``g``, the radial surrogate ``z_q = z + r sg((q - z) / r)``
has the value q and the gradients ``grad_z = g + <g,e> grad_z ln r`` and ``grad_q = <g,e> grad_q ln r``: only the
logarithm of the radius matters, its scale does not. If r depends on the distance alone, one number decides everything,
the elasticity ``kappa = d r'(d) / r(d)``: ``grad_q = (kappa / d^2) <g,e> e`` and ``grad_z = g - grad_q``. kappa 0 is
straight-through, 1 the noiseless DiVeQ, 2 a reflection; outside [0, 2] gradients are amplified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gritvq.component import Component, check_number
from gritvq.quantizers.base import Surrogate
from gritvq.quantizers.functional import gap_length, rotate_to, straight_through

__all__ = [
    "ClippedRadius",
    "ConstantRadius",
    "CosineRadius",
    "DirectionalReparameterization",
    "DistanceRadius",
    "GaussianRadius",
    "InputNormRadius",
    "LogRadius",
    "MahalanobisRadius",
    "NoiseSubstitution",
    "PowerRadius",
    "RadialSurrogate",
    "Radius",
    "RotationTrick",
    "SaturatingRadius",
    "ShiftedRadius",
    "SmoothRadius",
    "StraightThrough",
    "TanhRadius",
]

_AMPLIFIES = "outside, the surrogate amplifies gradients"


class StraightThrough(Surrogate):
    """The identity gradient: ``dz_q/dz = Id``, ``dz_q/dq = 0``, value bitwise q.

    Example:
        >>> z = torch.zeros(1, 2, requires_grad=True)
        >>> StraightThrough()(z, torch.ones(1, 2)).sum().backward()
        >>> z.grad
        tensor([[1., 1.]])

    References:
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013, arXiv 1308.3432.
    """

    def forward(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The value of ``q`` with the gradient of ``x``."""
        return straight_through(x, q)


# --- radii ------------------------------------------------------------------------------------------------------------


class Radius(Component, ABC):
    """A positive scalar ``r(q, z)`` whose logarithm's gradient shapes the surrogate.

    Attributes:
        moves_codes: Whether ``r`` depends on ``q``, that is whether codes receive a gradient.
    """

    moves_codes: bool = True

    def initialize(self, x: Float[Tensor, "N D"]) -> None:
        """Take statistics of sample latents; most radii need none."""

    @abstractmethod
    def attach(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """``x + r sg((q - x) / r)`` with the exact value of ``q``, in ``x``'s type."""


class DistanceRadius(Radius):
    """A radius of the distance alone, given by its elasticity ``kappa(d) = d r'(d) / r(d)``."""

    @abstractmethod
    def kappa(self, distance: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
        """Elasticity at a positive distance."""

    def coefficient(
        self, x: Float[Tensor, "*batch D"], squared: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch 1"]:
        """``kappa / d^2``, and 0 where the gap vanishes or its square underflows."""
        positive = squared > torch.finfo(squared.dtype).tiny
        safe = torch.where(positive, squared, 1.0)
        return torch.where(positive, self.kappa(safe.sqrt()) / safe, 0.0)

    def attach(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """One backward for all radii of the distance: O(N D), nothing stored but ``e`` and one number per vector."""
        with torch.no_grad():
            z = x.to(q.dtype)
            e = q - z
            coefficient = self.coefficient(z, e.square().sum(-1, keepdim=True))
        return _Radial.apply(x, q, e, coefficient)


class _Radial(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, q: Tensor, e: Tensor, coefficient: Tensor) -> Tensor:
        return q.to(x.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        e, coefficient = ctx.saved_tensors
        g = grad.to(e.dtype)
        grad_q = (coefficient * (g * e).sum(-1, keepdim=True)) * e
        return (g - grad_q).to(grad.dtype), grad_q, None, None


class _General(torch.autograd.Function):
    """Gradients ``g + <g,e> a`` and ``<g,e> b`` for given vectors ``a = grad_z ln r`` and ``b = grad_q ln r``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, q: Tensor, e: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return q.to(x.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        e, a, b = ctx.saved_tensors
        g = grad.to(e.dtype)
        s = (g * e).sum(-1, keepdim=True)
        return (g + s * a).to(grad.dtype), s * b, None, None, None


class ConstantRadius(DistanceRadius):
    """``r = 1``, kappa 0: straight-through, bit for bit."""

    moves_codes = False

    def kappa(self, distance: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(distance)


class PowerRadius(DistanceRadius):
    """``r = d^alpha``, kappa alpha: a dial from straight-through (0) over noiseless DiVeQ (1) to reflection (2).

    Args:
        alpha: Elasticity in [0, 2]; outside, gradients grow.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, most=2, hint=_AMPLIFIES)

    def kappa(self, distance: Tensor) -> Tensor:
        """``alpha``."""
        return torch.full_like(distance, self.alpha)


class SmoothRadius(DistanceRadius):
    """``r = (d^2 + s^2)^(alpha/2)``, kappa ``alpha d^2 / (d^2 + s^2)``: a power radius without a kink at zero gap.

    ``s = eps * rms(z)`` is relative to each vector, so it neither underflows in small latents nor turns the surrogate
    into straight-through at ordinary gaps. The default radius of the program.

    Args:
        alpha: Elasticity at large gaps, in [0, 2].
        eps: Smoothing length over the root mean square of the vector's entries.
    """

    def __init__(self, alpha: float = 1.0, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, most=2, hint=_AMPLIFIES)
        self.eps = check_number("eps", eps, inside=True)

    def kappa(self, distance: Tensor) -> Tensor:
        """``alpha``, the limit at gaps well above the smoothing length."""
        return torch.full_like(distance, self.alpha)

    def coefficient(self, x: Tensor, squared: Tensor) -> Tensor:
        """``alpha / (d^2 + s^2)``."""
        smoothing = self.eps**2 * x.square().mean(-1, keepdim=True)
        return self.alpha / (squared + smoothing).clamp_min(torch.finfo(squared.dtype).tiny)


class ShiftedRadius(DistanceRadius):
    """``r = d + c``, kappa ``d / (d + c)``: straight-through near a code, DiVeQ far from it.

    Args:
        offset: c > 0, in latent units.
    """

    def __init__(self, offset: float = 1.0) -> None:
        super().__init__()
        self.offset = check_number("offset", offset, inside=True)

    def kappa(self, distance: Tensor) -> Tensor:
        """``d / (d + c)``."""
        return distance / (distance + self.offset)


class _ScaledRadius(DistanceRadius):
    """A radius with a length scale.

    Args:
        scale: tau > 0, in latent units.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = check_number("scale", scale, inside=True)


class LogRadius(_ScaledRadius):
    """``r = log(1 + d/tau)``, kappa ``x / ((1 + x) log(1 + x))`` with ``x = d/tau``: 1 near a code, slowly to 0."""

    def kappa(self, distance: Tensor) -> Tensor:
        """The closed form; 1 in the limit of no gap."""
        x = distance / self.scale
        return torch.where(x > 0, x / ((1 + x) * x.log1p().clamp_min(torch.finfo(x.dtype).tiny)), 1.0)


class SaturatingRadius(_ScaledRadius):
    """``r = d / (d + tau)``, kappa ``tau / (d + tau)``: DiVeQ near a code, straight-through far from it."""

    def kappa(self, distance: Tensor) -> Tensor:
        """``tau / (d + tau)``."""
        return self.scale / (distance + self.scale)


class TanhRadius(_ScaledRadius):
    """``r = tanh(d/tau)``, kappa ``2x / sinh(2x)`` with ``x = d/tau``: saturating, with an exponential tail."""

    def kappa(self, distance: Tensor) -> Tensor:
        """The closed form; 1 in the limit of no gap, 0 where sinh overflows."""
        x = 2 * distance / self.scale
        return torch.where(x > 0, x / torch.sinh(x).clamp_min(torch.finfo(x.dtype).tiny), 1.0)


class ClippedRadius(_ScaledRadius):
    """``r = min(d, tau)``, kappa 1 below tau and 0 above: a hard switch."""

    def kappa(self, distance: Tensor) -> Tensor:
        """1 or 0."""
        return (distance < self.scale).to(distance.dtype)


class GaussianRadius(_ScaledRadius):
    """``r = 1 - exp(-y)``, ``y = d^2 / 2 tau^2``, kappa ``2y / (e^y - 1)``: from reflection to straight-through."""

    def kappa(self, distance: Tensor) -> Tensor:
        """The closed form; 2 in the limit of no gap."""
        y = 0.5 * (distance / self.scale).square()
        return torch.where(y > 0, 2 * y / torch.expm1(y).clamp_min(torch.finfo(y.dtype).tiny), 2.0)


class InputNormRadius(Radius):
    """``r = |z|``: the Jacobian takes z to q, ``J_z z = q``, and codes receive no gradient."""

    moves_codes = False

    def attach(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """``grad_z ln r = z / |z|^2``; 0 at z = 0."""
        with torch.no_grad():
            z = x.to(q.dtype)
            squared = z.square().sum(-1, keepdim=True)
            a = torch.where(squared > torch.finfo(q.dtype).tiny, z / squared, 0.0)
        return _General.apply(x, q, (q - z).detach(), a, torch.zeros_like(a))


class CosineRadius(Radius):
    """``r = 1 - cos(z, q)``: the code's gradient is orthogonal to the code, so nothing presses on norms.

    Suits unit-length codes. Vectors within 1e-6 of a code's direction get the straight-through gradient.
    """

    def attach(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """``1 - cos`` is taken as ``|z/|z| - q/|q||^2 / 2``, which keeps its digits for small angles."""
        with torch.no_grad():
            z = x.to(q.dtype)
            norm_z, norm_q = (v.norm(dim=-1, keepdim=True).clamp_min(1e-12) for v in (z, q))
            unit_z, unit_q = z / norm_z, q / norm_q
            r = 0.5 * (unit_z - unit_q).square().sum(-1, keepdim=True)
            scale = torch.where(r > 0.5e-12, -1 / r.clamp_min(0.5e-12), 0.0)
            a = scale * (unit_q - (1 - r) * unit_z) / norm_z
            b = scale * (unit_z - (1 - r) * unit_q) / norm_q
        return _General.apply(x, q, (q - z).detach(), a, b)


class MahalanobisRadius(Radius):
    """``r = sqrt(e^T M e)``: gaps are measured in the data's own metric; ``dz_q/dq = e (M e)^T / (e^T M e)``.

    M starts as the identity (then this is ``PowerRadius(1)``) and becomes the regularised inverse covariance of the
    latents handed to :meth:`initialize`, which ``quantizer.initialize_codebook`` calls; a training loop does that only
    for a codebook that asks for a start from data (``initialization="kmeans"``). It is not trained: a learnable
    metric would minimise ``<g,e> ln r``, which is no objective.

    Args:
        dim: Size D of the vectors.
    """

    metric: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("metric", torch.eye(dim))

    def initialize(self, x: Float[Tensor, "N D"]) -> None:
        """Set M to the inverse covariance, with 1 % of the mean variance added to the diagonal."""
        centered = (x - x.mean(0)).double()
        covariance = centered.T @ centered / max(1, len(x) - 1)
        variance = covariance.diagonal().mean().clamp_min(1e-12)
        covariance += 0.01 * variance * torch.eye(len(covariance), dtype=covariance.dtype, device=x.device)
        self.metric.copy_(variance * torch.linalg.inv(covariance))

    def attach(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """``grad_q ln r = M e / (e^T M e)``, its negative for z; 0 at zero gap."""
        with torch.no_grad():
            e = q - x.to(q.dtype)
            mapped = e @ self.metric.to(q.dtype)
            squared = (e * mapped).sum(-1, keepdim=True)
            b = torch.where(squared > torch.finfo(q.dtype).tiny, mapped / squared, 0.0)
        return _General.apply(x, q, e, -b, b)


class RadialSurrogate(Surrogate):
    """The GRIT surrogate ``z_q = z + r sg((q - z) / r)`` with the exact value q.

    Args:
        radius: The scalar r; ``SmoothRadius()`` unless given, that is ``sqrt(d^2 + s^2)`` with kappa 1.

    Example:
        >>> z, q = torch.zeros(1, 2, requires_grad=True), torch.tensor([[2.0, 0.0]], requires_grad=True)
        >>> RadialSurrogate()(z, q).sum().backward()
        >>> z.grad.round(decimals=3) + 0.0, q.grad.round(decimals=3)
        (tensor([[0., 1.]]), tensor([[1., 0.]]))

    References:
        After You et al., "Generalized Radius and Integrated Codebook Transforms for Differentiable Vector Quantization"
        (GRIT-VQ), CPAL 2026, arXiv 2602.01140. The paper's radius families are not public; these are ours.
    """

    def __init__(self, radius: Radius | None = None) -> None:
        super().__init__()
        self.radius = SmoothRadius() if radius is None else radius
        self.moves_codes = self.radius.moves_codes

    def initialize(self, x: Float[Tensor, "N D"]) -> None:
        """Hand the sample to the radius."""
        self.radius.initialize(x)

    def forward(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The value of ``q`` with the radial gradients."""
        return self.radius.attach(x, q)


class RotationTrick(Surrogate):
    """The gradient of the rotation and scaling that takes z to q: ``z_q = sg(lambda R) z``; codes receive none.

    ``lambda = |q| / |z|``; see :func:`gritvq.quantizers.functional.rotate_to` for R and for the degenerate
    rows. The value is bitwise q.

    Example:
        >>> z = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> RotationTrick()(z, torch.tensor([[0.0, 2.0]]))[0, 1].backward()
        >>> z.grad.round(decimals=5)
        tensor([[2., 0.]])

    References:
        Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", ICLR 2025, arXiv 2410.06424.
    """

    def forward(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The value of ``q`` with the rotated gradient."""
        return _Rotation.apply(x, q)


class _Rotation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, q: Tensor) -> Tensor:
        return q.to(x.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, q = ctx.saved_tensors
        return rotate_to(x.to(q.dtype), q, grad.to(q.dtype)).to(grad.dtype), None


class DirectionalReparameterization(Surrogate):
    """DiVeQ: ``z_q = z + |q - z| sg(v / |v|)`` with ``v = q - z + noise``; the true value in eval.

    The distance keeps its gradient, so codes learn from the task. With ``noise_std=0`` the value is exact in training
    too (``exact`` becomes ``"always"``) and the gradient that of ``PowerRadius(1)``. The noise is absolute: once gaps
    fall below ``noise_std * sqrt(D)`` its direction is mostly chance.

    Args:
        noise_std: Standard deviation of the noise per entry, drawn from torch's global generator as dropout is. The
            authors' code passes 1e-3 here; other implementations pass variances.

    Example:
        >>> DirectionalReparameterization(0.0).exact, DirectionalReparameterization().exact
        ('always', 'eval')

    References:
        Vali et al., "DiVeQ", ICLR 2026, arXiv 2509.26469.
    """

    moves_codes = True

    def __init__(self, noise_std: float = 1e-3) -> None:
        super().__init__()
        self.noise_std = check_number("noise_std", noise_std)
        self.exact = "eval" if noise_std > 0 else "always"
        self.noiseless = PowerRadius(1.0)

    def forward(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Noisy in training, exact otherwise."""
        if not self.training or self.noise_std == 0:
            return self.noiseless.attach(x, q)
        z = x.to(q.dtype)
        direction = (q - z).detach() + self.noise_std * torch.randn_like(q)
        return _step(z, q, direction).to(x.dtype)


class NoiseSubstitution(Surrogate):
    """NSVQ: the error is replaced by noise of its length, ``z_q = z + |q - z| n / |n|``; the true value in eval.

    Example:
        >>> z, q = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> round(NoiseSubstitution()(z, q).norm().item(), 4)
        2.0

    References:
        Vali and Backstrom, "NSVQ: Noise Substitution in Vector Quantization for Machine Learning", IEEE Access 2022.
    """

    exact = "eval"
    moves_codes = True

    def forward(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Noise in training, the straight-through value otherwise."""
        if not self.training:
            return straight_through(x, q)
        return _step(x.to(q.dtype), q, torch.randn_like(q)).to(x.dtype)


def _step(z: Tensor, q: Tensor, direction: Tensor) -> Tensor:
    """``z`` plus a step of length ``|q - z|`` along a detached direction; no step where either vanishes."""
    distance = gap_length(q - z)
    length = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    unit = torch.where(length > 0, direction / length, 0.0)
    return z + distance * unit.detach()
