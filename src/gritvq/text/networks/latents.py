"""Distributions of latents: what is expected of a segment before it is read, and after."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gritvq.component import Component, check_integer
from gritvq.text.networks.recurrence import IdempotentRecurrence
from gritvq.text.networks.standardize import Standardize

__all__ = ["Gaussian", "GaussianLatents", "LatentSample", "layer_normalized", "residual_kl"]

Posterior = Literal["residual", "gaussian"]
_RANGE = 4.0  # of log deviations


class Gaussian(NamedTuple):
    """Independent normal distributions.

    Attributes:
        mean: (*batch, D).
        log_scale: Logarithm of the standard deviation (*batch, D).
    """

    mean: Float[Tensor, "*batch D"]
    log_scale: Float[Tensor, "*batch D"]

    def kl(self, other: Gaussian) -> Float[Tensor, "*batch D"]:
        """``KL(self || other)`` of each component, in nats."""
        gap = (self.mean - other.mean) * (-other.log_scale).exp()
        ratio = 2 * (self.log_scale - other.log_scale)
        return 0.5 * (gap.square() + torch.expm1(ratio) - ratio)


class LatentSample(NamedTuple):
    """Latents of a batch.

    Attributes:
        latents: z (B, T, D).
        kl: KL divergence of posterior from prior of each component (B, T, D), in nats.
    """

    latents: Float[Tensor, "B T D"]
    kl: Float[Tensor, "B T D"]


def layer_normalized(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """``sqrt(D) (x - mean) / |x - mean|``: layer normalization without an affine map, of length sqrt(D) exactly.

    The usual one adds a small number to the variance and is shorter by it, so that the bound on the divergence would
    not hold. A constant vector, which has no direction, becomes 1, -1, 1, ... (for odd D the last is 0) at that length.

    Example:
        >>> layer_normalized(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).round(decimals=4).tolist()
        [[-1.0, 1.0], [1.0, -1.0]]
    """
    dim = x.shape[-1]
    centered = x - x.mean(-1, keepdim=True)
    length = torch.linalg.vector_norm(centered, dim=-1, keepdim=True)
    signs = torch.ones(dim, device=x.device, dtype=x.dtype)
    signs[1::2] = -1
    if dim % 2:
        signs[-1] = 0
    direction = torch.where(length > 1e-12, centered / length.clamp_min(1e-12), signs / signs.norm())
    return dim**0.5 * direction


def residual_kl(delta: Float[Tensor, "*batch D"], log_ratio: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """``(delta^2 + rho^2 - log rho^2 - 1) / 2``: KL of ``N(mu + s delta, (s rho)^2)`` from ``N(mu, s^2)``, in nats.

    Args:
        delta: Shift of the mean in standard deviations of the prior.
        log_ratio: ``log rho``.
    """
    return 0.5 * (delta.square() + torch.expm1(2 * log_ratio) - 2 * log_ratio)


class GaussianLatents(Component):
    """A Gaussian latent per segment: ``z_t = W z_{t-1} + u_t``, prior and posterior of u_t, and their divergence.

    - Prior: ``u_t ~ N(mu_p, s_p^2)``, both functions of the text so far, x_<t. So
      ``p(z_t | z_<t, x_<t) = N(W z_{t-1} + mu_p, s_p^2)``.
    - Posterior ``"residual"``: ``u_t ~ N(mu_p + s_p delta, (s_p rho)^2)`` with delta layer-normalized without an
      affine map and rho > 0, both functions of x_<=t. ``KL = 1/2 sum(delta^2 + rho^2 - log rho^2 - 1) >= D/2``,
      whatever the parameters are: the posterior cannot become the prior.
    - Posterior ``"gaussian"``: ``u_t ~ N(mu_q, s_q^2)`` without ties, the plain variational autoencoder.

    W z_{t-1} is a part of both means and cancels in the divergence. So the latents of all segments are drawn at once,
    see :class:`IdempotentRecurrence`.

    The bound alone does not make latents say anything: delta may be the same for every text, which costs D/2 nats for
    nothing, and with large vocabularies a short training ends there. With ``standardized`` the numbers that are
    layer-normalized have mean 0 and variance 1 over the segments of a batch (over running means in eval mode). Then
    delta differs between texts from the first step on, at the same price, and the bound holds as before.

    Args:
        dim: Size D of a latent; the residual posterior needs at least 2.
        context_dim: Size C of the encoder's vectors.
        rank: Rank of W, 0 .. D; half of D if None.
        posterior: See above.
        standardized: See above; for the residual posterior.
        whitened: Whether the numbers that are layer-normalized are also uncorrelated, see :class:`Standardize`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> latents = GaussianLatents(8, 16)
        >>> sample = latents(torch.randn(2, 3, 16))
        >>> sample.latents.shape, bool((sample.kl.sum(-1) > 4 - 1e-5).all())
        (torch.Size([2, 3, 8]), True)

    References:
        TRACE (Findings of EMNLP 2022, arXiv 2210.12409): the conditions of prior and posterior, the residual form, the
        layer normalization and the bound above zero. What is normalized, that s_p scales the shift, that the text alone
        and not z_<t decides mu_p and s_p, and the rank of W are our reading. Log deviations stay within 4 of 0 by a
        hyperbolic tangent. Standardizing is ours here; it is known from plain variational autoencoders (Zhu et al., A
        batch normalized inference network keeps the KL vanishing away, ACL 2020, arXiv 2004.12585).
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        rank: int | None = None,
        posterior: Posterior = "residual",
        standardized: bool = True,
        whitened: bool = False,
    ) -> None:
        super().__init__()
        if posterior not in get_args(Posterior):
            raise ValueError(f"expected posterior 'residual' or 'gaussian', got {posterior!r}; choose one")
        self.dim = check_integer("dim", dim, 2 if posterior == "residual" else 1)
        self.context_dim = check_integer("context_dim", context_dim)
        self.posterior_kind: Posterior = posterior
        standardized = (standardized or whitened) and posterior == "residual"
        self.standardize = Standardize(dim, whitened=whitened) if standardized else None
        self.recurrence = IdempotentRecurrence(dim, dim // 2 if rank is None else rank)
        self.start = nn.Parameter(torch.zeros(context_dim))  # the text before the first segment
        self.prior_head = _head(context_dim, 2 * dim)
        self.posterior_head = _head(2 * context_dim, 2 * dim)

    @property
    def least_kl(self) -> float:
        """Smallest divergence of a segment in nats: D/2 or 0."""
        return self.dim / 2 if self.posterior_kind == "residual" else 0.0

    def forward(
        self, context: Float[Tensor, "B T C"], present: Bool[Tensor, "B T"] | None = None, *, sample: bool = True
    ) -> LatentSample:
        """Latents and divergences of all segments, given the encoder's vectors.

        Args:
            context: ``c_t``, a function of x_<=t.
            present: Which segments there are, for means over a batch; all if None.
            sample: Whether to draw u from the posterior, by torch's global generator; else its mean.
        """
        with torch.autocast(context.device.type, enabled=False):
            context = context.float()
            before = self.before(context)
            posterior, kl = self.posterior(context, before, self.prior(before), present)
            noise = torch.randn_like(posterior.mean) if sample else torch.zeros_like(posterior.mean)
            return LatentSample(self.recurrence(posterior.mean + posterior.log_scale.exp() * noise), kl)

    def before(self, context: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """``c_{t-1}`` of each segment; a learned vector for the first."""
        first = self.start.expand(len(context), 1, -1)
        return torch.cat([first, context[:, :-1]], 1)

    def prior(self, before: Float[Tensor, "*batch C"]) -> Gaussian:
        """Of u_t, given ``c_{t-1}``."""
        return _gaussian(self.prior_head(before))

    def posterior(
        self,
        context: Float[Tensor, "*batch C"],
        before: Float[Tensor, "*batch C"],
        prior: Gaussian,
        present: Bool[Tensor, "*batch"] | None = None,
    ) -> tuple[Gaussian, Float[Tensor, "*batch D"]]:
        """Of u_t, given ``c_t`` and ``c_{t-1}``, and its divergence from the prior."""
        raw = _gaussian(self.posterior_head(torch.cat([context, before], -1)))
        if self.posterior_kind == "gaussian":
            return raw, raw.kl(prior)
        delta = layer_normalized(raw.mean if self.standardize is None else self.standardize(raw.mean, present))
        shifted = Gaussian(prior.mean + prior.log_scale.exp() * delta, prior.log_scale + raw.log_scale)
        return shifted, residual_kl(delta, raw.log_scale)


def _head(inputs: int, outputs: int) -> nn.Sequential:
    head = nn.Sequential(nn.Linear(inputs, inputs), nn.GELU(), nn.Linear(inputs, outputs))
    nn.init.normal_(head[2].weight, std=0.02)  # type: ignore[arg-type]
    nn.init.zeros_(head[2].bias)  # type: ignore[arg-type]
    return head


def _gaussian(raw: Tensor) -> Gaussian:
    mean, log_scale = raw.chunk(2, -1)
    return Gaussian(mean, _RANGE * torch.tanh(log_scale / _RANGE))
