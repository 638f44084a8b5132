"""Presets whose choice of a code is random in training. Their losses are terms of a likelihood bound."""

from __future__ import annotations

import math

from gritvq.base import DecaySchedule
from gritvq.codebooks import FreeCodebook, Initialization
from gritvq.hyperbolic import HyperbolicQuantizer
from gritvq.variational import GaussianMixtureQuantizer, ResidualStochasticQuantizer, StochasticQuantizer

__all__ = ["gm_vq", "hyper_vq", "rsq_vae", "sq_vae"]

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
    """SQ-VAE: a relaxed random code at a learned variance that anneals itself; the nearest code in evaluation.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        initial_variance: Variance at the start, above the floor; the published 20 in units of a code's squared length.
        floor: Smallest variance, the published 1 likewise.
        cooling_interval: Steps in which the temperature of the samples falls to 1/e.
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
    """RSQ-VAE: stochastic residual levels with one continuous term for their sum, against collapsing layers.

    Example:
        >>> rsq_vae(16, 64).codebook_sizes
        (64, 64)

    References:
        Takida et al., "HQ-VAE: Hierarchical Discrete Representation Learning with Variational Bayes", TMLR 2024, arXiv
        2401.00365. The start of the variance is that of a derivative of the authors' code, in units of a code's
        squared length; the number of levels is ours.
    """
    if num_levels < 1:
        raise ValueError(f"expected num_levels >= 1, got {num_levels}")
    codebooks = [FreeCodebook(dim, codebook_size, lr_scale=lr_scale) for _ in range(num_levels)]
    return ResidualStochasticQuantizer(
        codebooks, temperature=_cooling(cooling_interval), initial_variance=initial_variance
    )


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
        cooling_interval: Steps in which the temperature of the samples falls to 1/e.
        lr_scale: Codebook learning rate over the encoder's.
        initialization: Start of the codes, k-means in the paper.

    Example:
        >>> gm_vq(16, 64).objective
        'albo'

    References:
        Yan et al., "Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior", 2024, arXiv
        2410.10180; a reconstruction from public descriptions, weights and variance inferred.
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
        curvature, temperature and start are ours.
    """
    return HyperbolicQuantizer(dim, codebook_size, curvature=curvature, temperature=temperature)
