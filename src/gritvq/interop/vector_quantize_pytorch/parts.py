"""Linear maps, rotations and bounds around a quantizer, and repeated parts of a state dict."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gritvq.interop.vector_quantize_pytorch.settings import Settings
from gritvq.interop.weights import Weights
from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.functional import at_least_float32
from gritvq.quantizers.structures import BoundedQuantizer, ProductQuantizer, ProjectedQuantizer

__all__ = ["Maps", "bounded", "maps_around", "numbered_parts", "projected", "repeated", "rotated"]


class Maps(NamedTuple):
    """Two linear maps; a bias may be missing."""

    weight_in: Tensor
    bias_in: Tensor | None
    weight_out: Tensor
    bias_out: Tensor | None


def maps_around(weights: Weights, inner: int, dim: int | None) -> Maps | None:
    """Their projections into and out of ``inner`` components, if there are any."""
    if "project_in.weight" not in weights and dim in (None, inner):
        return None
    weight_in = at_least_float32(weights.take("project_in.weight", (inner, dim)))
    outer = weight_in.shape[1]
    bias_in = weights.take("project_in.bias", (inner,)) if "project_in.bias" in weights else None
    weight_out = at_least_float32(weights.take("project_out.weight", (outer, inner)))
    bias_out = weights.take("project_out.bias", (outer,)) if "project_out.bias" in weights else None
    return Maps(weight_in, bias_in, weight_out, bias_out)


def projected(quantizer: Quantizer, maps: Maps | None, trained: bool = True) -> Quantizer:
    """A quantizer between these maps; a bias that they lack stays zero."""
    if maps is None:
        return quantizer
    around = ProjectedQuantizer(quantizer, maps.weight_in.shape[1])
    pairs = [(around.project_in, maps.weight_in, maps.bias_in), (around.project_out, maps.weight_out, maps.bias_out)]
    for layer, weight, bias in pairs:
        zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        layer.weight = nn.Parameter(weight.clone(), requires_grad=trained)
        layer.bias = nn.Parameter(zeros if bias is None else bias.to(zeros), requires_grad=trained and bias is not None)
    return around


def rotated(quantizer: Quantizer, weights: Weights, settings: Settings, count: int) -> Quantizer:
    """A quantizer in rotated coordinates, the same rotation for each of ``count`` blocks of components."""
    if not settings["orthogonal_rotation"]:
        return quantizer
    size = quantizer.dim // count
    rotation = torch.block_diag(*[at_least_float32(weights.take("orthogonal_rot", (size, size)))] * count)
    return projected(quantizer, Maps(rotation.T.contiguous(), None, rotation, None), trained=False)


def bounded(quantizer: Quantizer, limit: Any) -> Quantizer:
    """A quantizer behind a soft bound, if there is one."""
    if limit is None:
        return quantizer
    return BoundedQuantizer(quantizer, limit.tolist() if isinstance(limit, Tensor) else limit)


def repeated(quantizer: Quantizer, count: int) -> Quantizer:
    """``count`` times the same quantizer, each for its own components."""
    return quantizer if count == 1 else ProductQuantizer([quantizer] * count)


def numbered_parts(weights: Weights, name: str, count: int | None) -> list[Weights]:
    """The tensors of ``name.0``, ``name.1`` and so on.

    Raises:
        ValueError: If there are none, or not as many as said.
    """
    numbers = {part.split(".")[1] for part in weights.names if part.startswith(f"{name}.")}
    if count is not None and len(numbers) != count:
        raise ValueError(f"expected {count} {name}, got tensors of {len(numbers)}; check the arguments and the prefix")
    parts = [weights.part(f"{name}.{number}.") for number in range(max(1, len(numbers)))]
    return parts
