"""Networks of ONNX files as differentiable modules, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gritvq.images import FileFeatures, PerceptualLoss
from gritvq.images.onnx_network import OnnxNetwork


def onnx_file(path: Path) -> None:
    """A convolutional stem, a block of attention over its places, and a map of features again."""
    onnx = pytest.importorskip("onnx")
    helper, generator = onnx.helper, np.random.default_rng(0)
    weights = {
        name: generator.normal(size=shape, scale=0.3).astype(np.float32)
        for name, shape in {
            **{"conv": (8, 3, 3, 3), "depthwise": (8, 1, 2, 2), "key": (8, 8), "gemm": (8, 8), "half": ()},
            **dict.fromkeys(("conv_bias", "scale", "shift", "mean", "norm", "norm_bias", "gemm_bias"), (8,)),
        }.items()
    }
    weights["variance"] = generator.uniform(0.5, 2, 8).astype(np.float32)
    weights |= {name: np.array(value, np.float32) for name, value in {"six": 6, "zero": 0}.items()}
    integers: dict[str, Any] = {"rows": [0, 8, -1], "one": [1], "two": [2], "pair": [2, 3], "first": 0}
    integers |= {"start": [0], "end": [2**62]}
    weights |= {name: np.array(value, np.int64) for name, value in integers.items()}
    nodes = [
        helper.make_node("Conv", ["x", "conv", "conv_bias"], ["a"], strides=[2, 1], pads=[0, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"], epsilon=1e-3),
        helper.make_node("Clip", ["b", "zero", "six"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 0]),
        helper.make_node("Conv", ["d", "depthwise"], ["e"], group=8, pads=[0, 0, 1, 1]),
        helper.make_node("AveragePool", ["e"], ["f"], kernel_shape=[2, 2], pads=[1, 0, 0, 0], count_include_pad=0),
        helper.make_node("LeakyRelu", ["f"], ["stem"], alpha=0.2),
        helper.make_node("Shape", ["stem"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "end", "start"], ["places"]),
        helper.make_node("Reshape", ["stem", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["tokens", "norm", "norm_bias"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "key"], ["keys"]),
        helper.make_node("Transpose", ["keys"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["normed", "turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "normed"], ["mixed"]),
        helper.make_node("Erf", ["mixed"], ["erf"]),
        helper.make_node("Mul", ["erf", "half"], ["halved"]),
        helper.make_node("Add", ["tokens", "halved"], ["sum"]),
        helper.make_node("ReduceMean", ["sum", "one"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "gemm", "gemm_bias"], ["gemmed"], transB=1, alpha=0.5),
        helper.make_node("Unsqueeze", ["gemmed", "pair"], ["wide"]),
        helper.make_node("Sigmoid", ["wide"], ["gate"]),
        helper.make_node("Sub", ["stem", "gate"], ["lower"]),
        helper.make_node("Concat", ["lower", "stem"], ["y"], axis=1),
        helper.make_node("Gather", ["places", "first"], ["unused"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 3, "H", "W"])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list("BCHW")) for name in ("y", "stem")],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def test_an_onnx_network_is_what_onnxruntime_makes_of_it(tmp_path: Path) -> None:
    onnx_file(tmp_path / "network.onnx")
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    network = OnnxNetwork(tmp_path / "network.onnx")
    for shape in ((2, 3, 12, 10), (1, 3, 9, 16)):
        images = torch.rand(*shape)
        wanted = [torch.from_numpy(each) for each in session.run(None, {"x": images.numpy()})]
        torch.testing.assert_close(network(images), wanted, rtol=1e-4, atol=1e-5)
    (one,) = OnnxNetwork(tmp_path / "network.onnx", ["lower"])(images)
    torch.testing.assert_close(one, wanted[0][:, :8], rtol=1e-4, atol=1e-5)


def test_an_onnx_file_is_a_loss(tmp_path: Path) -> None:
    onnx_file(tmp_path / "network.onnx")
    pytest.importorskip("onnxruntime")
    loss = PerceptualLoss(FileFeatures(str(tmp_path / "network.onnx"), output="stem"))
    x, y = torch.rand(2, 1, 3, 12, 10)
    x.requires_grad_()
    loss(x, y).backward()
    plain = PerceptualLoss(OnnxNetwork(tmp_path / "network.onnx", ["stem"]))
    (gradient,) = torch.autograd.grad(plain(x, y), x)
    assert x.grad is not None and torch.equal(x.grad, gradient) and gradient.abs().sum() > 0
    assert loss.state_dict() == {} and float(loss(y, y)) == 0


def test_onnx_files_that_do_not_fit(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    onnx_file(tmp_path / "network.onnx")
    with pytest.raises(ValueError, match=r"expected outputs that are tensors of .*network.onnx, got \['no'\]"):
        OnnxNetwork(tmp_path / "network.onnx", ["no"])
    model = onnx.load(str(tmp_path / "network.onnx"))
    model.graph.node[0].op_type = "Loop"
    onnx.save(model, str(tmp_path / "loop.onnx"))
    with pytest.raises(ValueError, match=r"expected operators of Add, .* got Loop in .*loop.onnx"):
        OnnxNetwork(tmp_path / "loop.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"expected a readable ONNX file, got .*bad.onnx"):
        OnnxNetwork(tmp_path / "bad.onnx")
