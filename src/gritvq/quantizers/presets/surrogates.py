"""Presets that change the gradient through the hard choice: rotation trick, DiVeQ."""

from __future__ import annotations

from gritvq.quantizers.base import LearningRule
from gritvq.quantizers.codebooks import FreeCodebook
from gritvq.quantizers.codebooks.rowwise import Initialization
from gritvq.quantizers.learning import CommitmentLoss, EMAUpdate
from gritvq.quantizers.presets.learning import revival
from gritvq.quantizers.surrogates import DirectionalReparameterization, RotationTrick
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["diveq", "rotation_vq"]


def rotation_vq(
    dim: int,
    codebook_size: int,
    *,
    decay: float = 0.99,
    commitment_weight: float = 1.0,
    initialization: Initialization = "kmeans",
    revival_interval: int | None = 20,
) -> VectorQuantizer:
    """Rotation trick: moving-average codes, and a gradient that rotates from the code to the vector.

    Example:
        >>> type(rotation_vq(16, 1024).surrogate).__name__
        'RotationTrick'

    References:
        Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", ICLR 2025, arXiv 2410.06424.
    """
    codebook = FreeCodebook(dim, codebook_size, initialization=initialization)
    rules: list[LearningRule] = [EMAUpdate(decay), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, surrogate=RotationTrick(), learning=rules + revival(revival_interval))


def diveq(
    dim: int,
    codebook_size: int,
    *,
    noise_std: float = 1e-3,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
    revival_interval: int | None = 100,
) -> VectorQuantizer:
    """DiVeQ: a free table trained by the task alone, along a noisy direction; dead codes are replaced.

    Example:
        >>> diveq(16, 1024).exact
        'eval'

    References:
        Vali et al., "DiVeQ", ICLR 2026, arXiv 2509.26469; the standard deviation of the noise and the replacement
        interval follow the authors' code. Deviation: codes start from N(0, 1/D).
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    surrogate = DirectionalReparameterization(noise_std)
    return VectorQuantizer(codebook, surrogate=surrogate, learning=revival(revival_interval))
