"""Quantizers without tables: FSQ and LFQ, alone and in levels."""

from __future__ import annotations

import math

import torch

from gritvq.interop.vector_quantize_pytorch.parts import (
    bounded,
    maps_around,
    numbered_parts,
    projected,
    repeated,
    rotated,
)
from gritvq.interop.vector_quantize_pytorch.settings import Settings
from gritvq.interop.weights import Weights
from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.lookup_free import BSQ, FSQ, LFQ
from gritvq.quantizers.structures import ResidualQuantizer, ScaledQuantizer

__all__ = ["fsq", "lfq", "residual_fsq", "residual_lfq"]


def fsq(weights: Weights, settings: Settings) -> Quantizer:
    """Their FSQ: components rounded to ``levels``, one index per codebook."""
    count = settings["num_codebooks"]
    grid = repeated(_grid(settings, bool(settings["preserve_symmetry"])), count)
    turned = rotated(grid, weights, settings, count)
    return projected(turned, maps_around(weights, turned.dim, settings["dim"]))


def _grid(settings: Settings, symmetric: bool) -> FSQ:
    levels = [int(level) for level in settings.required("levels")]
    if math.prod(levels) > 2**24:
        raise ValueError(
            f"expected at most 2^24 codes, got 2^{math.log2(math.prod(levels)):.1f}: their index is summed in float32, "
            "which holds no larger integers, so theirs are wrong; use FSQ(levels) and encode anew"
        )
    return FSQ(levels, symmetric=symmetric, bound="clamp" if settings["bound_hard_clamp"] else "tanh")


def residual_fsq(weights: Weights, settings: Settings) -> Quantizer:
    """Their ResidualFSQ: symmetric grids, each finer by its level counts than the one before."""
    levels = torch.tensor(list(settings.required("levels")))
    count = settings.required("num_quantizers")
    steps = [(levels.float() ** -level).tolist() for level in range(count)]
    parts = [ScaledQuantizer(_grid(settings, True), scale) for scale in steps]
    limit = settings["soft_clamp_input_value"]
    if settings["bound_hard_clamp"]:
        if limit is not None:
            raise ValueError(f"expected soft_clamp_input_value=None with bound_hard_clamp, got {limit!r}; leave it out")
        limit = 1 + 1 / (levels - 1)
    stack = bounded(ResidualQuantizer(parts, dropout=settings.dropout(count)), limit)
    return projected(stack, maps_around(weights, len(levels), settings["dim"]))


def lfq(weights: Weights, settings: Settings) -> Quantizer:
    """Their LFQ, and binary spherical quantization with ``spherical=True``."""
    count = settings["num_codebooks"]
    bits = repeated(_bits(weights, settings, settings["codebook_scale"], count), count)
    inner = bounded(rotated(bits, weights, settings, count), settings["soft_clamp_input_value"])
    return projected(inner, maps_around(weights, inner.dim, settings["dim"]))


def _bits(weights: Weights, settings: Settings, scale: float, num_parts: int = 1) -> Quantizer:
    """Signs with values of this size, the first component being the highest bit."""
    dim = len(weights.take("mask", (None,)))
    settings.check("codebook_size", 2**dim)
    share = 1 / num_parts if settings.trainable else 0.0
    binary = (BSQ if settings["spherical"] else LFQ)(
        dim,
        entropy_weight=settings["entropy_loss_weight"] * share,
        balance=settings["diversity_gamma"],
        temperature=0.01 / scale**2,  # theirs is a factor of 100 on scalar products; here codes have scale 1
        commitment_weight=settings["commitment_loss_weight"] * share * scale**2,
        first_bit="highest",
    )
    return binary if scale == 1 else ScaledQuantizer(binary, scale)


def residual_lfq(weights: Weights, settings: Settings) -> Quantizer:
    """Their ResidualLFQ: signs, each half as large as those before."""
    parts = numbered_parts(weights, "layers", settings["num_quantizers"])
    limit = settings["soft_clamp_input_value"]
    levels = []
    for number, part in enumerate(parts):
        scale = 2.0**-number
        levels.append(bounded(_bits(part, settings, scale), None if limit is None else limit * scale))
        part.finish()
    stack = ResidualQuantizer(levels, dropout=settings.dropout(len(levels)))
    return projected(stack, maps_around(weights, stack.dim, settings["dim"]))
