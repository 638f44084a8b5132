"""Presets whose choice of a code, or whose latent, is random in training."""

from __future__ import annotations

import math
from typing import Any

from gritvq.component import check_integer
from gritvq.quantizers.base import DecaySchedule
from gritvq.quantizers.codebooks import AffineCodebook, FreeCodebook
from gritvq.quantizers.codebooks.rowwise import Initialization
from gritvq.quantizers.learning import DistributionConsistencyLoss
from gritvq.quantizers.stochastic import (
    GaussianMixtureQuantizer,
    RepresentationCoherenceLoss,
    ResidualStochasticQuantizer,
    StochasticQuantizer,
    VariationalLatent,
)
from gritvq.quantizers.stochastic.hyperbolic import HyperbolicQuantizer
from gritvq.quantizers.structures import HierarchicalQuantizer
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["gm_vq", "hyper_vq", "rsq_vae", "sq_vae", "sq_vae_2", "vaevq_paper", "vaevq_released"]

# Published variances are for codes from N(0, Id) in 64 dimensions, whose squared length is 64; codes here start at 1.
_UNIT = 1 / 64


def _cooling(interval: float) -> DecaySchedule:
    """Temperature of relaxed samples: from 1, to 1/e every ``interval`` steps."""
    return DecaySchedule(1.0, factor=math.exp(-1), interval=interval)


def sq_vae(
    dim: int,
    codebook_size: int,
    *,
    initial_variance: float = 20 * _UNIT,
    floor: float = _UNIT,
    cooling_interval: float = 1e5,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
) -> StochasticQuantizer:
    """SQ-VAE: a relaxed random code whose learned variance shrinks by itself; the nearest code in evaluation.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        initial_variance: Variance at the start, above the floor; the published 20, in units of a code's squared length.
        floor: Smallest variance; the published 1 in the same units.
        cooling_interval: Steps after which the temperature of the samples has fallen to 1/e.
        lr_scale: Codebook learning rate over the encoder's.
        initialization: Start of the codes.

    Example:
        >>> sq_vae(16, 64).objective
        'arelbo'

    References:
        Takida et al., "SQ-VAE: Variational Bayes on Discrete Representation with Self-annealed Stochastic
        Quantization", ICML 2022, arXiv 2205.07547, Gaussian type I. Deviation: codes of squared length 1 and variances
        in that unit.
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    return StochasticQuantizer(
        codebook, temperature=_cooling(cooling_interval), initial_variance=initial_variance, floor=floor
    )


def rsq_vae(
    dim: int,
    codebook_size: int,
    *,
    num_levels: int = 2,
    initial_variance: float = 60 * _UNIT,
    cooling_interval: float = 1e5,
    lr_scale: float = 1.0,
) -> ResidualStochasticQuantizer:
    """RSQ-VAE: stochastic residual levels with one continuous term for their sum, so that no level collapses.

    Example:
        >>> rsq_vae(16, 64).codebook_sizes
        (64, 64)

    References:
        Takida et al., "HQ-VAE: Hierarchical Discrete Representation Learning with Variational Bayes", TMLR 2024, arXiv
        2401.00365. The start of the variance is that of a derivative of the authors' code, in units of a code's
        squared length; the number of levels is ours.
    """
    check_integer("num_levels", num_levels)
    codebooks = [FreeCodebook(dim, codebook_size, lr_scale=lr_scale) for _ in range(num_levels)]
    return ResidualStochasticQuantizer(
        codebooks, temperature=_cooling(cooling_interval), initial_variance=initial_variance
    )


def sq_vae_2(
    dim: int,
    codebook_size: int,
    *,
    num_levels: int = 2,
    initial_variance: float = 20 * _UNIT,
    floor: float = _UNIT,
    cooling_interval: float = 1e5,
    lr_scale: float = 1.0,
) -> HierarchicalQuantizer:
    """SQ-VAE-2: stochastic levels from coarse to fine, each at twice the resolution of the previous one.

    Example:
        >>> sq_vae_2(16, 64).token_shape((4, 8, 8))
        (4, 80)

    References:
        Takida et al., "HQ-VAE: Hierarchical Discrete Representation Learning with Variational Bayes", TMLR 2024, arXiv
        2401.00365. The authors' configuration is not public; the networks between the levels are ours.
    """
    check_integer("num_levels", num_levels)
    settings: dict[str, Any] = {"initial_variance": initial_variance, "floor": floor, "lr_scale": lr_scale}
    levels = [sq_vae(dim, codebook_size, cooling_interval=cooling_interval, **settings) for _ in range(num_levels)]
    return HierarchicalQuantizer(levels, dim)


def gm_vq(
    dim: int,
    codebook_size: int,
    *,
    variance: float = 0.1,
    latent_weight: float = 0.5,
    balance_weight: float = 1.0,
    cooling_interval: float = 1e5,
    lr_scale: float = 1.0,
    initialization: Initialization = "kmeans",
) -> GaussianMixtureQuantizer:
    """GM-VQ: a noisy mixture of codes in training, balanced over the batch; the nearest code in evaluation.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        variance: Variance of the mixture's components.
        latent_weight: The paper's gamma.
        balance_weight: The paper's beta; larger in its "+ Entropy" form.
        cooling_interval: Steps after which the temperature of the samples has fallen to 1/e.
        lr_scale: Codebook learning rate over the encoder's.
        initialization: Start of the codes, k-means in the paper.

    Example:
        >>> gm_vq(16, 64).objective
        'albo'

    References:
        Yan et al., "Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior", 2024, arXiv
        2410.10180; a reconstruction from public descriptions, weights and variance inferred. Status: contrib.
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    return GaussianMixtureQuantizer(
        codebook,
        variance=variance,
        temperature=_cooling(cooling_interval),
        latent_weight=latent_weight,
        balance_weight=balance_weight,
    )


def hyper_vq(
    dim: int,
    codebook_size: int,
    *,
    curvature: float = 1.0,
    temperature: float = 1.0,
) -> HyperbolicQuantizer:
    """HyperVQ: codes as hyperplanes of the Poincare ball, chosen by hyperbolic logistic regression.

    Example:
        >>> hyper_vq(16, 64).codebook_sizes
        (64,)

    References:
        Goswami et al., "HyperVQ: MLR-based Vector Quantization in Hyperbolic Space", TMLR 2025, arXiv 2403.13015;
        curvature, temperature and start are ours. Status: contrib.
    """
    return HyperbolicQuantizer(dim, codebook_size, curvature=curvature, temperature=temperature)


def vaevq_paper(
    dim: int,
    codebook_size: int,
    *,
    coherence_weight: float = 0.02,
    distribution_weight: float = 0.002,
    kl_weight: float = 0.005,
    initial_log_variance: float = -2.0,
    lr_scale: float = 1.0,
) -> VariationalLatent:
    """VAEVQ as in the paper: a Gaussian latent, the code nearest to its sample, two decodings, normal codes.

    Takes 2 D channels, means and log variances. The paper's weights, 1 and 0.1, probably belong to a squared error
    that is summed over pixels; the defaults here are those divided by 48, the pixel components per token at a factor of
    4, for an error that is a mean over pixels.

    Args:
        dim: Size D of a code.
        codebook_size: Number of codes K.
        coherence_weight: Weight of the coherence of code and posterior.
        distribution_weight: Weight of the distance of the codes from a standard normal.
        kl_weight: Weight of the latent's divergence from the standard normal; not public, ours.
        initial_log_variance: Added to the log variances.
        lr_scale: Codebook learning rate over the encoder's.

    Example:
        >>> vaevq_paper(16, 64).input_dim
        32

    References:
        Yang et al., "VAEVQ: Enhancing Discrete Visual Tokenization through Variational Modeling", AAAI 2026, arXiv
        2511.06863. Deviation: the scale of the weights.
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale)
    return VariationalLatent(
        VectorQuantizer(codebook, learning=[DistributionConsistencyLoss(distribution_weight)]),
        coherence=RepresentationCoherenceLoss(coherence_weight),
        kl_weight=kl_weight,
        initial_log_variance=initial_log_variance,
    )


def vaevq_released(
    dim: int,
    codebook_size: int,
    *,
    coherence_weight: float = 1.0,
    initial_log_variance: float = 0.0,
    lr_scale: float = 1.0,
) -> VariationalLatent:
    """VAEVQ as in the released code: codes under a linear map, the code nearest to the mean, coherence loss only.

    Takes 2 D channels, means and log variances. The authors train it with ``TwoPathObjective("l1", weight=0.5)``.

    Example:
        >>> vaevq_released(16, 64).choose_by
        'mean'

    References:
        Yang et al., AAAI 2026, arXiv 2511.06863, released code. Deviation: the linear map starts as the identity.
    """
    codebook = AffineCodebook(dim, codebook_size, lr_scale=lr_scale)
    return VariationalLatent(
        VectorQuantizer(codebook, learning=[]),
        choose_by="mean",
        gradient="reparameterized",
        coherence=RepresentationCoherenceLoss(coherence_weight, reduction="mean", detach_deviation=False),
        initial_log_variance=initial_log_variance,
    )
