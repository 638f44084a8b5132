"""Our parts with the numbers of another library's module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gritvq.interop.weights import Weights
from gritvq.quantizers.assignments import NearestAssignment
from gritvq.quantizers.base import LearningRule, Quantizer
from gritvq.quantizers.codebooks import FreeCodebook
from gritvq.quantizers.functional import Metric, at_least_float32
from gritvq.quantizers.structures import ProjectedQuantizer
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["Affine", "affine_of", "between", "numbered", "table_quantizer"]


class Affine(NamedTuple):
    """An affine map of vectors, ``x @ weight.T + bias``.

    Attributes:
        weight: (out, in).
        bias: (out,), or None.
    """

    weight: Tensor
    bias: Tensor | None


def affine_of(weights: Weights, name: str) -> Affine:
    """A linear layer or a convolution of kernel size 1, as it is or normalized by ``weight_norm``.

    Raises:
        ValueError: If it is missing, or is a convolution of another size.

    Example:
        >>> weights = Weights({"proj.weight": torch.ones(2, 3, 1), "proj.bias": torch.zeros(2)})
        >>> affine_of(weights, "proj").weight.shape
        torch.Size([2, 3])
    """
    normalized = [
        (f"{name}.weight_g", f"{name}.weight_v"),
        (f"{name}.parametrizations.weight.original0", f"{name}.parametrizations.weight.original1"),
    ]
    given = next((pair for pair in normalized if pair[0] in weights), None)
    if given is None:
        weight = at_least_float32(weights.take(f"{name}.weight"))
    else:
        lengths, directions = (at_least_float32(weights.take(part)) for part in given)
        weight = torch._weight_norm(directions, lengths, 0)
    if weight.ndim < 2 or weight.shape[2:].numel() != 1:
        raise ValueError(
            f"expected {weights.prefix}{name} to be a linear layer or a convolution of kernel size 1, got weights "
            f"{tuple(weight.shape)}; it mixes positions, which a quantizer of single vectors does not"
        )
    bias = at_least_float32(weights.take(f"{name}.bias", weight.shape[:1])) if f"{name}.bias" in weights else None
    return Affine(weight.flatten(1), bias)


def numbered(weights: Weights, pattern: str) -> list[Weights]:
    """The parts ``0, 1, ...`` of a list of modules.

    Args:
        weights: What holds them.
        pattern: Beginning of the names of part ``{}``, such as ``"layers.{}."``.

    Raises:
        ValueError: If there is none.

    Example:
        >>> parts = numbered(Weights({"layers.0.x": torch.ones(1), "layers.1.x": torch.ones(1)}), "layers.{}.")
        >>> [part.prefix for part in parts]
        ['layers.0.', 'layers.1.']
    """
    parts: list[Weights] = []
    while any(name.startswith(pattern.format(len(parts))) for name in weights.names):
        parts.append(weights.part(pattern.format(len(parts))))
    if not parts:
        found = ", ".join(weights.names[:3]) or "none left"
        raise ValueError(
            f"expected tensors whose names begin with {weights.prefix}{pattern.format(0)}, got {found}; give the "
            "prefix of the quantizer, such as prefix='quantizer.'"
        )
    return parts


def table_quantizer(
    codes: Tensor,
    learning: Sequence[LearningRule],
    *,
    metric: Metric = "euclidean",
    normalize: bool = False,
    counts: Tensor | None = None,
) -> VectorQuantizer:
    """A quantizer of exactly these codes, on their device.

    Args:
        codes: (K, D).
        learning: What moves them in training.
        metric: Of the search.
        normalize: Whether codes are scaled to unit length when they are used.
        counts: Vectors per code (K,) that a moving average goes on from.

    Example:
        >>> table_quantizer(torch.eye(2), [])(torch.tensor([[0.2, 0.9]])).quantized.tolist()
        [[0.0, 1.0]]
    """
    codes = at_least_float32(codes)
    book = FreeCodebook(codes.shape[1], codes.shape[0], normalize=normalize).to(codes.device, codes.dtype)
    quantizer = VectorQuantizer(book, NearestAssignment(metric), learning=list(learning)).to(codes.device)
    book.write(torch.arange(len(codes), device=codes.device), codes)
    if counts is not None and quantizer.statistics is not None:
        quantizer.statistics.ema_counts = counts.detach().float().clone()
    return quantizer


@torch.no_grad()
def between(
    into: Affine, quantizer: Quantizer, out_of: Affine, where: str, *, own_surrogate: bool = False
) -> ProjectedQuantizer:
    """A quantizer between two affine maps; a missing bias becomes one of zeros that is not trained.

    Args:
        into: Into the space of the codes.
        quantizer: The quantizer there.
        out_of: Out of it.
        where: What the maps are called, for the message.
        own_surrogate: As in :class:`gritvq.ProjectedQuantizer`.

    Raises:
        ValueError: If the sizes do not fit.

    Example:
        >>> inner = table_quantizer(torch.eye(2), [])
        >>> doubled = Affine(2 * torch.eye(2), None)
        >>> between(doubled, inner, doubled, "maps")(torch.tensor([[0.2, 0.9]])).quantized.tolist()
        [[0.0, 2.0]]
    """
    dim = into.weight.shape[1]
    wanted = [(quantizer.input_dim, dim), (dim, quantizer.dim)]
    if [tuple(each.weight.shape) for each in (into, out_of)] != wanted:
        raise ValueError(
            f"expected {where} with weights {wanted[0]} and {wanted[1]}, got {tuple(into.weight.shape)} and "
            f"{tuple(out_of.weight.shape)}; maps of other sizes belong to the encoder and the decoder: read the "
            "quantizer alone"
        )
    projected = ProjectedQuantizer(quantizer, dim, own_surrogate=own_surrogate).to(into.weight.device)
    for layer, given in ((projected.project_in, into), (projected.project_out, out_of)):
        layer.weight = nn.Parameter(given.weight.clone())
        bias = torch.zeros_like(given.weight[:, 0]) if given.bias is None else given.bias.clone()
        layer.bias = nn.Parameter(bias, requires_grad=given.bias is not None)
    return projected


def refuse(weights: Weights, pattern: str, why: str) -> None:
    """Refuse a state dict that has such a tensor.

    Raises:
        ValueError: If a name matches the pattern as a whole; ``why`` says what it means and what to do.
    """
    for name in weights.names:
        if re.fullmatch(pattern, name):
            raise ValueError(f"expected no {weights.prefix}{name}, got one; {why}")
