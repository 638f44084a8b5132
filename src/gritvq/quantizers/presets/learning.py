"""Presets that change what moves the codes: losses, moving averages, a kernel, optimal transport."""

from __future__ import annotations

from typing import Literal

from gritvq.quantizers.assignments import NearestAssignment
from gritvq.quantizers.base import DecaySchedule, LearningRule, Schedule
from gritvq.quantizers.codebooks import FreeCodebook
from gritvq.quantizers.codebooks.rowwise import Initialization
from gritvq.quantizers.learning import (
    CodebookLoss,
    CommitmentLoss,
    DeadCodeRevival,
    DriftLoss,
    EMAUpdate,
    WassersteinLoss,
)
from gritvq.quantizers.surrogates import StraightThrough
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["ns_vq", "revival", "vq_vae", "vq_vae_ema", "vq_wae"]


def revival(interval: int | None) -> list[LearningRule]:
    """Revival of dead codes every so many updates, or nothing."""
    return [] if interval is None else [DeadCodeRevival(interval)]


def vq_vae(
    dim: int,
    codebook_size: int,
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
    revival_interval: int | None = None,
) -> VectorQuantizer:
    """VQ-VAE: a free table with a codebook loss, a commitment loss and straight-through gradients.

    Example:
        >>> type(vq_vae(16, 1024).surrogate).__name__
        'StraightThrough'

    References:
        van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, arXiv 1711.00937.
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    losses = [CodebookLoss(codebook_weight), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, surrogate=StraightThrough(), learning=losses + revival(revival_interval))


def vq_vae_ema(
    dim: int,
    codebook_size: int,
    *,
    decay: float = 0.99,
    commitment_weight: float = 0.25,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    initialization: Initialization = "kmeans",
    revival_interval: int | None = 20,
) -> VectorQuantizer:
    """VQ-VAE with moving-average codes, k-means initialization and revival of dead codes: the strong plain baseline.

    Example:
        >>> vq_vae_ema(16, 1024).wants_initialization
        True

    References:
        van den Oord et al., arXiv 1711.00937, appendix A.1; initialization and revival are common practice, not the
        paper's.
    """
    codebook = FreeCodebook(dim, codebook_size, normalize=metric == "cosine", initialization=initialization)
    rules: list[LearningRule] = [EMAUpdate(decay), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, NearestAssignment(metric), StraightThrough(), rules + revival(revival_interval))


def ns_vq(
    dim: int,
    codebook_size: int,
    *,
    strength: float = 0.01,
    temperature: float = 1.0,
    halving_interval: int | None = 1000,
    relative: bool = False,
    commitment_weight: float = 0.25,
    lr_scale: float = 1.0,
) -> VectorQuantizer:
    """NS-VQ: a free table whose unchosen codes follow the latents, by a kernel over distances.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        strength: The kernel's height.
        temperature: The kernel's width at the start, in squared latent units.
        halving_interval: Steps after which the temperature halves, an epoch in the released code; None keeps it.
        relative: Measure the temperature in variances of the latents, which keeps it in step with them (our extension;
            with it 0.5 and no halving are good values).
        commitment_weight: Weight of the commitment loss.
        lr_scale: Codebook learning rate over the encoder's.

    Example:
        >>> import torch
        >>> ns_vq(16, 1024)(torch.randn(4, 16)).losses.keys()
        dict_keys(['drift', 'commitment'])

    References:
        Lu et al., "Beyond Stationarity: Rethinking Codebook Collapse in Vector Quantization", 2026, arXiv 2602.18896,
        after the released code.
    """
    width: float | Schedule = temperature
    if halving_interval is not None:
        width = DecaySchedule(temperature, factor=0.5, interval=halving_interval, floor=1e-8, staircase=True)
    rules = [DriftLoss(strength=strength, temperature=width, relative=relative), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(FreeCodebook(dim, codebook_size, lr_scale=lr_scale), learning=rules)


def vq_wae(
    dim: int,
    codebook_size: int,
    *,
    weight: float = 1.0,
    num_samples: int | None = 512,
    regularization: float | None = None,
    lr_scale: float = 1.0,
) -> VectorQuantizer:
    """VQ-WAE: a free table matched to the latents by optimal transport, no other loss.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        weight: Weight of the squared Wasserstein distance, summed over components.
        num_samples: Latents that enter the transport problem of a step.
        regularization: None for the exact problem, else the entropic one's epsilon.
        lr_scale: Codebook learning rate over the encoder's.

    Example:
        >>> import torch
        >>> vq_wae(16, 64)(torch.randn(100, 16)).losses.keys()
        dict_keys(['wasserstein'])

    References:
        Vuong et al., "Vector Quantized Wasserstein Auto-Encoder", ICML 2023, arXiv 2302.05917, the form with uniform
        weights and one problem per batch. Deviation: a sample of the latents enters.
    """
    rule = WassersteinLoss(weight, num_samples=num_samples, regularization=regularization)
    return VectorQuantizer(FreeCodebook(dim, codebook_size, lr_scale=lr_scale), learning=[rule])
