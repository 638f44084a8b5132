"""Networks of ONNX files as differentiable modules, so that a loss can send gradients through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gritvq.lazy import optional

__all__ = ["OnnxNetwork"]


class OnnxNetwork(nn.Module):
    """The graph of an ONNX file, computed with PyTorch's operators; its weights are buffers.

    It knows the operators of convolutional networks and vision transformers in inference.

    Args:
        path: The file.
        outputs: Names of the tensors to return; the graph's outputs if empty.

    Raises:
        ValueError: If the file is unreadable, has not one input, or has an unknown operator or output.
    """

    def __init__(self, path: str | Path, outputs: Sequence[str] = ()) -> None:
        super().__init__()
        onnx = optional("onnx", "export", "to read an ONNX file")
        try:
            graph = onnx.load(str(path)).graph
        except Exception as error:  # damaged files fail in many ways
            raise ValueError(f"expected a readable ONNX file, got {path} ({str(error)[:200]})") from error
        self._weights: dict[str, str] = {}  # names of buffers by names of tensors

        def keep(name: str, array: Any) -> None:
            self._weights[name] = f"weight_{len(self._weights)}"
            self.register_buffer(self._weights[name], torch.from_numpy(onnx.numpy_helper.to_array(array).copy()))

        for array in graph.initializer:
            keep(array.name, array)
        self._nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        for node in graph.node:
            settings = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            if node.op_type == "Constant" and "value" in settings:
                keep(node.output[0], settings["value"])
                continue
            self._nodes.append((node.op_type, list(node.input), list(node.output), settings))
        inputs = [each.name for each in graph.input if each.name not in self._weights]
        if len(inputs) != 1:
            raise ValueError(f"expected an ONNX network with one input, got {inputs} in {path}")
        self._input, self.outputs = inputs[0], list(outputs) or [each.name for each in graph.output]
        made = {name for _, _, names, _ in self._nodes for name in names}
        missing = [name for name in self.outputs if name not in made]
        if missing:
            raise ValueError(f"expected outputs that are tensors of {path}, got {missing}; see its graph")
        self._nodes = self._needed()
        unknown = sorted({kind for kind, *_ in self._nodes if kind not in _OPERATORS})
        if unknown:
            raise ValueError(
                f"expected operators of {', '.join(sorted(_OPERATORS))}, got {', '.join(unknown)} in {path}; convert "
                "the network to TorchScript or torch.export"
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The tensors that were asked for."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self._weights.items()}
        values[self._input], values[""] = x, None
        for kind, inputs, outputs, settings in self._nodes:
            found = _OPERATORS[kind](settings, *(values[name] for name in inputs))
            values[outputs[0]] = found
        return [values[name] for name in self.outputs]

    def _needed(self) -> list[tuple[str, list[str], list[str], dict[str, Any]]]:
        """The nodes that the outputs depend on."""
        wanted, kept = set(self.outputs), []
        for node in reversed(self._nodes):
            if wanted & set(node[2]):
                wanted |= set(node[1])
                kept.append(node)
        return kept[::-1]


def _pads(settings: dict[str, Any], size: int) -> list[int]:
    """Padding as F.pad takes it: the last axis first, begin and end."""
    if settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError(f"expected explicit padding, got auto_pad {settings['auto_pad']!r}; export the network again")
    pads = settings.get("pads", [0] * 2 * size)
    return [pad for axis in reversed(range(size)) for pad in (pads[axis], pads[axis + size])]


def _conv(s: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    size = weight.ndim - 2
    settings = {"stride": s.get("strides", [1] * size), "dilation": s.get("dilations", [1] * size)}
    convolution: Any = (F.conv1d, F.conv2d, F.conv3d)[size - 1]
    return convolution(F.pad(x, _pads(s, size)), weight, bias, groups=s.get("group", 1), **settings)


def _max_pool(s: dict[str, Any], x: Tensor) -> Tensor:
    sides = s["kernel_shape"]
    padded = F.pad(x, _pads(s, len(sides)), value=-torch.inf)
    strides, dilations = s.get("strides", [1] * len(sides)), s.get("dilations", [1] * len(sides))
    return F.max_pool2d(padded, sides, strides, dilation=dilations, ceil_mode=bool(s.get("ceil_mode", 0)))


def _average_pool(s: dict[str, Any], x: Tensor) -> Tensor:
    sides = s["kernel_shape"]
    pads, strides = _pads(s, len(sides)), s.get("strides", [1] * len(sides))
    sums = F.avg_pool2d(F.pad(x, pads), sides, strides, ceil_mode=bool(s.get("ceil_mode", 0)))
    if s.get("count_include_pad", 0) or not any(pads):
        return sums
    return sums / F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), pads), sides, strides)


def _gemm(s: dict[str, Any], a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = s.get("alpha", 1.0) * (a.T if s.get("transA") else a) @ (b.T if s.get("transB") else b)
    return product if c is None else product + s.get("beta", 1.0) * c


def _batch_norm(s: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, eps=s.get("epsilon", 1e-5))


def _layer_norm(s: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[s.get("axis", -1) :], weight, bias, s.get("epsilon", 1e-5))


def _reshape(s: dict[str, Any], x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[axis] if side == 0 else side for axis, side in enumerate(shape.tolist())])


def _axes(s: dict[str, Any], axes: Tensor | None) -> list[int]:
    return s["axes"] if axes is None else axes.tolist()


def _unsqueeze(s: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    places = _axes(s, axes)
    ndim = x.ndim + len(places)
    for axis in sorted(place % ndim for place in places):
        x = x.unsqueeze(axis)
    return x


def _reduce_mean(s: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    places = s.get("axes") if axes is None else axes.tolist()
    return x.mean(tuple(range(x.ndim)) if places is None else tuple(places), keepdim=bool(s.get("keepdims", 1)))


def _slice(s: dict[str, Any], x: Tensor, *bounds: Tensor) -> Tensor:
    given: list[list[int]] = [each.tolist() for each in bounds]
    axes = given[2] if len(given) > 2 else list(range(len(given[0])))
    steps = given[3] if len(given) > 3 else [1] * len(axes)
    for start, end, axis, step in zip(given[0], given[1], axes, steps, strict=True):
        if step < 0:
            raise ValueError(f"expected slices with a step > 0, got {step}; export the network again")
        x = x[(slice(None),) * (axis % x.ndim) + (slice(start, min(end, x.shape[axis]), step),)]
    return x


def _gather(s: dict[str, Any], x: Tensor, indices: Tensor) -> Tensor:
    axis = s.get("axis", 0) % x.ndim
    found = x.index_select(axis, (indices % x.shape[axis]).flatten())
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _clip(s: dict[str, Any], x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least = s.get("min") if low is None else float(low)
    most = s.get("max") if high is None else float(high)
    return x if least is None and most is None else x.clamp(least, most)


def _gelu(s: dict[str, Any], x: Tensor) -> Tensor:
    return F.gelu(x, approximate=s.get("approximate", b"none").decode())


def _div(s: dict[str, Any], a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda s, a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda s, *parts: torch.cat(parts, s["axis"]),
    "Conv": _conv,
    "Div": _div,
    "Dropout": lambda s, x, *rest: x,
    "Erf": lambda s, x: torch.erf(x),
    "Exp": lambda s, x: x.exp(),
    "Flatten": lambda s, x: x.flatten(s.get("axis", 1)),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda s, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "Identity": lambda s, x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda s, x: F.leaky_relu(x, s.get("alpha", 0.01)),
    "MatMul": lambda s, a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda s, a, b: a * b,
    "Neg": lambda s, x: -x,
    "Pow": lambda s, a, b: a**b,
    "ReduceMean": _reduce_mean,
    "Relu": lambda s, x: F.relu(x),
    "Reshape": _reshape,
    "Shape": lambda s, x: torch.tensor(x.shape, device=x.device),
    "Sigmoid": lambda s, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda s, x: x.softmax(s.get("axis", -1)),
    "Sqrt": lambda s, x: x.sqrt(),
    "Squeeze": lambda s, x, axes=None: x.squeeze(tuple(_axes(s, axes))),
    "Sub": lambda s, a, b: a - b,
    "Tanh": lambda s, x: x.tanh(),
    "Transpose": lambda s, x: x.permute(s.get("perm", list(range(x.ndim))[::-1])),
    "Unsqueeze": _unsqueeze,
}
