"""Residual and product quantizers for semantic ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gritvq.component import check_integer
from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.learning import CodebookLoss, CommitmentLoss
from gritvq.quantizers.presets import grit_vq
from gritvq.quantizers.structures import ProductQuantizer, ResidualQuantizer

__all__ = ["grit_product", "grit_stack", "residual_stack"]


def residual_stack(unit: Callable[[], Quantizer], num_levels: int = 3) -> ResidualQuantizer:
    """A residual quantizer of ``num_levels`` units whose prefixes are trained, too.

    With one surrogate for the whole sum, the codes of all levels get the same gradient, so prefixes are not trained to
    approximate the input. Units whose codes get their gradient from the surrogate alone therefore get a codebook loss
    of weight 1 and a commitment loss of weight 0.25 at each level, unless they have losses.

    Args:
        unit: Function that makes one level.
        num_levels: Number of levels L.

    Raises:
        ValueError: If ``num_levels`` is below 1, or the levels do not fit together.

    Example:
        >>> import torch
        >>> from gritvq import grit_vq
        >>> stack = residual_stack(lambda: grit_vq(32, 256, initialization="kmeans"))
        >>> stack.codebook_sizes, sorted(stack(torch.randn(2, 32)).losses)[:2]
        ((256, 256, 256), ['0/codebook', '0/commitment'])
    """
    check_integer("num_levels", num_levels)
    return ResidualQuantizer([_with_codebook_loss(unit()) for _ in range(num_levels)])


def grit_stack(
    dim: int = 32,
    codebook_size: int = 256,
    *,
    num_levels: int = 3,
    lr_scale: float = 5.0,
    revival_interval: int | None = 20,
) -> ResidualQuantizer:
    """A residual stack of GRIT-VQ for item embeddings: k-means initialization, revival, losses at each level.

    Args:
        dim: Size D of a latent.
        codebook_size: Number of codes K of each level.
        num_levels: Number of levels L.
        lr_scale: Learning rate of the codebook relative to the encoder's.
        revival_interval: Updates between revivals of dead codes; None for none.

    Example:
        >>> grit_stack().codebook_sizes
        (256, 256, 256)
    """
    settings: dict[str, Any] = {"lr_scale": lr_scale, "revival_interval": revival_interval}
    return residual_stack(lambda: grit_vq(dim, codebook_size, initialization="kmeans", **settings), num_levels)


def grit_product(
    dim: int = 128,
    codebook_size: int = 256,
    *,
    num_parts: int = 32,
    lr_scale: float = 5.0,
    revival_interval: int | None = 20,
) -> ProductQuantizer:
    """A product of GRIT-VQ units, for long unordered ids: part p quantizes the p-th share of a latent.

    Between the networks of :class:`~gritvq.items.RQVAE` it is a trained counterpart of optimized product quantization:
    the encoder takes the place of the rotation. The surrogate alone moves the codes: there are no prefixes to train,
    and the losses of :func:`grit_stack` made the error of a short run on real items a quarter larger. For other units
    use ``ProductQuantizer([unit() for _ in range(num_parts)])``.

    Args:
        dim: Size D of a latent, a multiple of ``num_parts``.
        codebook_size: Number of codes K of each part.
        num_parts: Number of parts P, the length of an id.
        lr_scale: Learning rate of the codebook relative to the encoder's.
        revival_interval: Updates between revivals of dead codes; None for none.

    Raises:
        ValueError: If ``num_parts`` is no divisor of ``dim``.

    Example:
        >>> grit_product(8, 256, num_parts=4).codebook_sizes
        (256, 256, 256, 256)
    """
    check_integer("num_parts", num_parts)
    if dim % num_parts:
        raise ValueError(f"expected dim to be a multiple of num_parts, got {dim} and {num_parts}; change one of them")
    settings: dict[str, Any] = {"lr_scale": lr_scale, "revival_interval": revival_interval}
    size = dim // num_parts
    return ProductQuantizer(
        [grit_vq(size, codebook_size, initialization="kmeans", **settings) for _ in range(num_parts)]
    )


def _with_codebook_loss(unit: Quantizer) -> Quantizer:
    if unit.surrogate is None or not unit.surrogate.moves_codes:
        return unit
    return unit.with_learning([CodebookLoss(), CommitmentLoss()])
