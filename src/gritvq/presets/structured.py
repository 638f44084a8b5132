"""Presets of several codebooks: residual, product, multi-scale, hierarchical."""

from __future__ import annotations

from typing import Any

from gritvq.presets.tables import vq_vae_ema
from gritvq.structures import ProductQuantizer, ResidualQuantizer

__all__ = ["pq", "rq"]


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
    """Residual quantization: levels of moving-average codes, each fitted to what the levels before left over.

    Example:
        >>> rq(16, 256, num_levels=3).codebook_sizes
        (256, 256, 256)

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022, arXiv 2203.01941.
        Deviations: one straight-through for the sum, a codebook per level, start from data and revival.
    """
    if num_levels < 1:
        raise ValueError(f"expected num_levels >= 1, got {num_levels}")
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
    """Product quantization: the components split among moving-average codebooks of equal dimension.

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
