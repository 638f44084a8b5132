"""Presets that change the choice of a code: soft, sampled, convex, space-filling."""

from __future__ import annotations

from gritvq.quantizers.assignments import ConvexAssignment, SampledAssignment, SoftAssignment, SpaceFillingAssignment
from gritvq.quantizers.base import DecaySchedule
from gritvq.quantizers.codebooks import FreeCodebook
from gritvq.quantizers.codebooks.rowwise import Initialization
from gritvq.quantizers.learning import CodebookLoss, CommitmentLoss
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["gumbel_vq", "scq", "sf_diveq", "soft_vq"]


def soft_vq(
    dim: int,
    codebook_size: int,
    *,
    temperature: float = 0.5,
    halving_interval: float = 100,
    floor: float = 0.02,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
) -> VectorQuantizer:
    """Soft-to-hard quantization: a weighted mean of codes that sharpens in training; the nearest code in evaluation.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        temperature: Temperature at the start, in squared latent units.
        halving_interval: Steps after which it halves.
        floor: Its smallest value.
        lr_scale: Codebook learning rate over the encoder's.
        initialization: Start of the codes.

    Example:
        >>> soft_vq(16, 64).exact
        'eval'

    References:
        Agustsson et al., "Soft-to-Hard Vector Quantization for End-to-End Learning Compressible Representations",
        NeurIPS 2017, arXiv 1704.00648. The temperature and its schedule are ours.
    """
    cooling = DecaySchedule(temperature, factor=0.5, interval=halving_interval, floor=floor)
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    return VectorQuantizer(codebook, SoftAssignment(cooling), learning=[CodebookLoss(), CommitmentLoss()])


def gumbel_vq(
    dim: int,
    codebook_size: int,
    *,
    temperature: float = 1.0,
    halving_interval: float = 500,
    floor: float = 0.1,
    scale: float = 0.1,
    straight_through: bool = True,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
) -> VectorQuantizer:
    """Gumbel-softmax quantization: a sampled code forward, the gradient of the relaxed sample backward.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        temperature: Temperature of the relaxation at the start.
        halving_interval: Steps after which it halves.
        floor: Its smallest value.
        scale: How far from the nearest code samples reach, in squared latent units.
        straight_through: Whether the decoder sees the sampled code itself in training.
        lr_scale: Codebook learning rate over the encoder's.
        initialization: Start of the codes.

    Example:
        >>> gumbel_vq(16, 64).exact
        'always'

    References:
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017, arXiv 1611.01144; distances as
        logits, scale and temperatures are ours.
    """
    cooling = DecaySchedule(temperature, factor=0.5, interval=halving_interval, floor=floor)
    assignment = SampledAssignment(cooling, scale=scale, straight_through=straight_through)
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    return VectorQuantizer(codebook, assignment, learning=[CommitmentLoss()])


def scq(
    dim: int,
    codebook_size: int,
    *,
    penalty: float = 0.1,
    relaxed: bool = False,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
) -> VectorQuantizer:
    """SCQ: the best convex combination of codes; the output carries K weights per vector, so it is not a token.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K; hundreds, since the cost of the exact solution grows with it.
        penalty: lambda, the pull toward the nearest code alone, in squared latent units.
        relaxed: Take the published linear-solve relaxation, which is poor where K > D.
        lr_scale: Codebook learning rate over the encoder's.
        initialization: Start of the codes.

    Example:
        >>> scq(16, 64).exact
        'never'

    References:
        Gautam et al., "Soft Convex Quantization: Revisiting Vector Quantization with Convex Optimization", L4DC 2024,
        arXiv 2310.03004. The penalty and the loss ``|x - q|^2`` without stop-gradient follow third-party code.
        Status: contrib.
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    return VectorQuantizer(
        codebook, ConvexAssignment(penalty, relaxed=relaxed), learning=[CodebookLoss(), CommitmentLoss(1.0)]
    )


def sf_diveq(
    dim: int,
    codebook_size: int,
    *,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
) -> VectorQuantizer:
    """SF-DiVeQ: codes are the corners of a curve and values lie on it, so an index does not give the value back.

    Example:
        >>> sf_diveq(16, 64).exact
        'never'

    References:
        Vali et al., "DiVeQ: Differentiable Vector Quantization Using the Reparameterization Trick", ICLR 2026, arXiv
        2509.26469. Deviation: the authors train 1,000 steps without quantizing and start from block means.
    """
    codebook = FreeCodebook(dim, codebook_size, lr_scale=lr_scale, initialization=initialization)
    return VectorQuantizer(codebook, SpaceFillingAssignment())
