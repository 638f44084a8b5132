"""Presets of one codebook trained by gradients or moving averages."""

from __future__ import annotations

from typing import Literal

from gritvq.assignments import NearestAssignment
from gritvq.base import LearningRule
from gritvq.codebooks import AffineCodebook, FreeCodebook, Initialization, MLPCodebook
from gritvq.learning import CodebookLoss, CommitmentLoss, DeadCodeRevival, EMAUpdate
from gritvq.surrogates import (
    DirectionalReparameterization,
    RadialSurrogate,
    Radius,
    RotationTrick,
    StraightThrough,
)
from gritvq.vector_quantizer import VectorQuantizer

__all__ = ["diveq", "grit_vq", "rotation_vq", "simvq", "vq_vae", "vq_vae_ema"]


def _revival(interval: int | None) -> list[LearningRule]:
    return [] if interval is None else [DeadCodeRevival(interval)]


def grit_vq(
    dim: int,
    codebook_size: int,
    *,
    radius: Radius | None = None,
    hidden_dim: int | None = None,
    base: Literal["trained", "frozen"] = "trained",
    lr_scale: float | tuple[float, float] = 10.0,
    initialization: Initialization = "normal",
    revival_interval: int | None = None,
) -> VectorQuantizer:
    """GRIT-VQ: radial surrogate, shared residual transform of the codebook, nothing else. The program's default.

    Radius ``sqrt(d^2 + s^2)`` (kappa 1), codes ``C + f(C) + b`` over a trained base, codebook learning rate 10 times
    the encoder's; no auxiliary loss, no data initialisation, no revival. Train with ``parameter_groups``: without the
    multiplier the transform does not keep codes alive.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        radius: The surrogate's radius.
        hidden_dim: Width of the transform's hidden layer, 4 D unless given.
        base: Whether the base table is trained.
        lr_scale: Codebook learning rate over the encoder's; two numbers give transform and base table their own.
        initialization: Start of the codes.
        revival_interval: Updates between two revivals of dead codes; None for none.

    Example:
        >>> grit_vq(16, 1024).codebook_sizes
        (1024,)

    References:
        After You et al., CPAL 2026, arXiv 2602.01140. The paper's radius, transform and losses are not public; these
        are ours, so its tables are not reproduced by this.
    """
    codebook = MLPCodebook(
        dim, codebook_size, hidden_dim=hidden_dim, base=base, lr_scale=lr_scale, initialization=initialization
    )
    return VectorQuantizer(codebook, surrogate=RadialSurrogate(radius), learning=_revival(revival_interval))


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
    """VQ-VAE: a free table under a codebook loss, straight-through gradients, a commitment loss.

    Example:
        >>> type(vq_vae(16, 1024).surrogate).__name__
        'StraightThrough'

    References:
        van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, arXiv 1711.00937.
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    losses = [CodebookLoss(codebook_weight), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, surrogate=StraightThrough(), learning=losses + _revival(revival_interval))


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
    """VQ-VAE with codes as moving averages, started from data, dead codes revived: the strong plain baseline.

    Example:
        >>> vq_vae_ema(16, 1024).wants_initialization
        True

    References:
        van den Oord et al., arXiv 1711.00937, appendix A.1; initialisation and revival are common practice, not the
        paper's.
    """
    codebook = FreeCodebook(dim, codebook_size, normalize=metric == "cosine", initialization=initialization)
    rules: list[LearningRule] = [EMAUpdate(decay), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, NearestAssignment(metric), StraightThrough(), rules + _revival(revival_interval))


def rotation_vq(
    dim: int,
    codebook_size: int,
    *,
    decay: float = 0.99,
    commitment_weight: float = 1.0,
    initialization: Initialization = "kmeans",
    revival_interval: int | None = 20,
) -> VectorQuantizer:
    """VQ with moving-average codes under the rotation trick.

    Example:
        >>> type(rotation_vq(16, 1024).surrogate).__name__
        'RotationTrick'

    References:
        Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", ICLR 2025, arXiv 2410.06424.
    """
    codebook = FreeCodebook(dim, codebook_size, initialization=initialization)
    rules: list[LearningRule] = [EMAUpdate(decay), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, surrogate=RotationTrick(), learning=rules + _revival(revival_interval))


def simvq(
    dim: int,
    codebook_size: int,
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
) -> VectorQuantizer:
    """SimVQ: a frozen random table under one trained linear layer. A tenfold ``lr_scale`` lifts it markedly.

    Example:
        >>> simvq(16, 1024).codebook.base.requires_grad
        False

    References:
        Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer", ICCV 2025,
        arXiv 2411.02038. Deviation: the layer starts as the identity.
    """
    codebook = AffineCodebook(dim, codebook_size, base="frozen", lr_scale=lr_scale, initialization=initialization)
    losses: list[LearningRule] = [CodebookLoss(codebook_weight), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, surrogate=StraightThrough(), learning=losses)


def diveq(
    dim: int,
    codebook_size: int,
    *,
    noise_std: float = 1e-3,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
    revival_interval: int | None = 100,
) -> VectorQuantizer:
    """DiVeQ: a free table trained by the task through a noisy direction, dead codes replaced now and then.

    Example:
        >>> diveq(16, 1024).exact
        'eval'

    References:
        Vali et al., "DiVeQ", ICLR 2026, arXiv 2509.26469; the standard deviation of the noise and the replacement
        interval follow the authors' code. Deviation: codes start from N(0, 1/D).
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    surrogate = DirectionalReparameterization(noise_std)
    return VectorQuantizer(codebook, surrogate=surrogate, learning=_revival(revival_interval))
