"""Presets of several codebooks: residual, product, multi-scale, hierarchical."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gritvq.component import check_integer
from gritvq.quantizers.codebooks import FreeCodebook
from gritvq.quantizers.learning import EMAUpdate
from gritvq.quantizers.presets.learning import revival, vq_vae_ema
from gritvq.quantizers.structures import HierarchicalQuantizer, MultiScaleQuantizer, ProductQuantizer, ResidualQuantizer
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["msvq", "pq", "rq", "vq_vae_2", "xq"]


def rq(
    dim: int,
    codebook_size: int,
    *,
    num_levels: int = 4,
    decay: float = 0.99,
    commitment_weight: float = 0.25,
    dropout: float = 0.0,
    revival_interval: int | None = 20,
) -> ResidualQuantizer:
    """Residual quantization: levels of moving-average codes, each quantizing the remainder of the levels before.

    Example:
        >>> rq(16, 256, num_levels=3).codebook_sizes
        (256, 256, 256)

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022, arXiv 2203.01941.
        Deviations: one straight-through for the sum, a codebook per level, start from data and revival.
    """
    check_integer("num_levels", num_levels)
    settings: dict[str, Any] = {"commitment_weight": commitment_weight, "revival_interval": revival_interval}
    levels = [vq_vae_ema(dim, codebook_size, decay=decay, **settings) for _ in range(num_levels)]
    return ResidualQuantizer(levels, dropout=dropout)


def pq(
    dim: int,
    codebook_size: int,
    *,
    num_parts: int = 2,
    decay: float = 0.99,
    commitment_weight: float = 0.25,
    revival_interval: int | None = 20,
) -> ProductQuantizer:
    """Product quantization: components split among moving-average codebooks of equal dimension.

    Example:
        >>> pq(16, 256).codebook_sizes
        (256, 256)

    References:
        Jegou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011; trained end to end as in XQ-GAN,
        Li et al., 2024, arXiv 2412.01762, which splits tokens instead of components.
    """
    if num_parts < 1 or dim % num_parts:
        raise ValueError(f"expected num_parts >= 1 that divides dim={dim}, got {num_parts}")
    settings: dict[str, Any] = {"commitment_weight": commitment_weight, "revival_interval": revival_interval}
    return ProductQuantizer(
        [vq_vae_ema(dim // num_parts, codebook_size, decay=decay, **settings) for _ in range(num_parts)]
    )


def msvq(
    dim: int,
    codebook_size: int,
    *,
    sides: Sequence[int] = (1, 2, 4, 8),
    ratio: float = 0.5,
    num_filters: int = 4,
    decay: float = 0.99,
    commitment_weight: float = 0.25,
    dropout: float = 0.0,
    revival_interval: int | None = 20,
) -> MultiScaleQuantizer:
    """Multi-scale residual quantization: one shared codebook, from one token per image to one per position.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        sides: Sides of the grids, coarse to fine; the last is the side of the grid of latents, 8 for images of 32
            pixels and 4 pixels per token.
        ratio: Weight of the convolution in each filter.
        num_filters: Filters, divided among the levels.
        decay: Decay of the moving averages, per update.
        commitment_weight: Weight of the commitment loss.
        dropout: Share of samples that keep only their first levels in training.
        revival_interval: Updates between two revivals of dead codes; None for none.

    Example:
        >>> msvq(16, 256).token_shape((4, 8, 8))
        (4, 85)

    References:
        Tian et al., "Visual Autoregressive Modeling", NeurIPS 2024, arXiv 2404.02905; XQ-GAN, Li et al., 2024, arXiv
        2412.01762. Deviations: moving averages, start from data, revival; sides for a grid of 8 x 8.
    """
    codebook = FreeCodebook(dim, codebook_size, initialization="kmeans")
    unit = VectorQuantizer(codebook, learning=[EMAUpdate(decay), *revival(revival_interval)])
    return MultiScaleQuantizer(
        unit,
        list(sides),
        ratio=ratio,
        num_filters=num_filters,
        dropout=dropout,
        commitment_weight=commitment_weight,
    )


def xq(
    dim: int,
    codebook_size: int,
    *,
    num_parts: int = 2,
    num_levels: int = 2,
    decay: float = 0.99,
    commitment_weight: float = 0.25,
    dropout: float = 0.0,
    revival_interval: int | None = 20,
) -> ProductQuantizer:
    """XQ: a product of residual quantizers, as in XQ-GAN; components are split.

    Example:
        >>> xq(16, 256).codebook_sizes
        (256, 256, 256, 256)

    References:
        Li et al., "XQ-GAN: An Open-source Image Tokenization Framework for Autoregressive Generation", 2024, arXiv
        2412.01762. Deviations: components instead of tokens are split, levels have codebooks of their own.
    """
    if num_parts < 1 or dim % num_parts:
        raise ValueError(f"expected num_parts >= 1 that divides dim={dim}, got {num_parts}")
    settings: dict[str, Any] = {"num_levels": num_levels, "decay": decay, "commitment_weight": commitment_weight}
    settings |= {"dropout": dropout, "revival_interval": revival_interval}
    return ProductQuantizer([rq(dim // num_parts, codebook_size, **settings) for _ in range(num_parts)])


def vq_vae_2(
    dim: int,
    codebook_size: int,
    *,
    num_levels: int = 2,
    decay: float = 0.99,
    commitment_weight: float = 0.25,
    revival_interval: int | None = 20,
) -> HierarchicalQuantizer:
    """VQ-VAE-2: a coarse grid of tokens and a finer one conditioned on it, both with moving-average codes.

    Example:
        >>> vq_vae_2(16, 512).bits((64, 64))
        46080.0

    References:
        Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2", NeurIPS 2019, arXiv 1906.00446.
        Deviations: levels are added, not concatenated; start from data and revival.
    """
    check_integer("num_levels", num_levels)
    settings: dict[str, Any] = {"commitment_weight": commitment_weight, "revival_interval": revival_interval}
    levels = [vq_vae_ema(dim, codebook_size, decay=decay, **settings) for _ in range(num_levels)]
    return HierarchicalQuantizer(levels, dim)
