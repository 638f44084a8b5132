"""Feature networks: what they compute, what they are called, and what is said where weights are missing."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from conftest import DATA
from gritvq.images import (
    CIFARResNet,
    FeatureVectors,
    FileFeatures,
    InceptionFeatures,
    PerceptualLoss,
    open_pictures,
    to_uint8,
)
from gritvq.images import features as module
from gritvq.images.decoding import to_tensor
from gritvq.images.files import save_png


def resnet_weights(blocks: int = 1) -> dict[str, Tensor]:
    """Random weights under the keys of the file; statistics of normalization that are not those of the start."""
    generator, weights = torch.Generator().manual_seed(2), {}

    def convolution(name: str, inputs: int, width: int) -> None:
        weights[name] = torch.randn(width, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{name}.{part}"] = torch.rand(width, generator=generator) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(0)

    convolution("conv1.weight", 3, 16)
    norm("bn1", 16)
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            inputs = width // 2 if stage > 1 and block == 0 else width
            convolution(f"layer{stage}.{block}.conv1.weight", inputs, width)
            convolution(f"layer{stage}.{block}.conv2.weight", width, width)
            norm(f"layer{stage}.{block}.bn1", width), norm(f"layer{stage}.{block}.bn2", width)
    weights["linear.weight"] = torch.randn(10, 64, generator=generator)
    weights["linear.bias"] = torch.randn(10, generator=generator)
    return weights


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    save_file(resnet_weights(2), tmp_path / "model.safetensors")
    return tmp_path


def test_the_resnet_by_hand(resnet: Path) -> None:
    network, weights = CIFARResNet(str(resnet)), resnet_weights(2)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def norm(x: Tensor, name: str) -> Tensor:
        shift, scale, mean, var = (
            weights[f"{name}.{part}"][:, None, None] for part in ("bias", "weight", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = (images / 255 - mean[:, None, None]) / std[:, None, None]
    x = norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1").relu()
    for stage in (1, 2, 3):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
            y = norm(F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                zeros = torch.zeros(3, x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = (x + y).relu()
    vectors = FeatureVectors(network)
    assert (vectors.name, vectors.distance) == ("CIFAR-10 ResNet-14", "FD, CIFAR-10 ResNet-14 features")
    found = vectors(images)
    torch.testing.assert_close(found, x.mean((2, 3)).double(), rtol=1e-4, atol=1e-5)
    expected = x.mean((2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]
    torch.testing.assert_close(vectors.scores(found), expected, rtol=1e-4, atol=1e-4)
    assert PerceptualLoss(network)(images / 255, images.flip(0) / 255) > 0


def test_the_real_resnet_recognizes_test_pictures(cifar10: Path) -> None:
    folder = DATA / "networks" / "cifar10-resnet56"
    if not folder.is_dir():
        pytest.skip(f"the network is not in {folder}; GRITVQ_DATA says where")
    vectors = FeatureVectors(CIFARResNet(str(folder)))
    group, images = next(open_pictures(cifar10, split="test").batches(128))
    scores = vectors.scores(vectors(images))
    assert vectors.name == "CIFAR-10 ResNet-56" and scores is not None
    right = scores.argmax(1) == torch.tensor([picture.label for picture in group])
    assert float(right.double().mean()) > 0.87  # 93.39 % of all; three standard errors of 128 are 6.6 %


def test_vectors_of_maps_and_of_several_outputs() -> None:
    class Several(nn.Module):
        name = "two maps and a vector"

        def forward(self, images: Tensor) -> list[Tensor]:
            return [images, 2 * images[:, :1], images.sum((1, 2, 3))[:, None]]

    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    x = images.double() / 255
    expected = torch.cat([x.mean((2, 3)), 2 * x[:, :1].mean((2, 3)), x.sum((1, 2, 3))[:, None]], 1)
    vectors = FeatureVectors(Several())
    torch.testing.assert_close(vectors(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vectors(images.float() / 255 + 0.001), expected, rtol=1e-5, atol=1e-5)  # it is rounded
    assert vectors.distance == "FD, two maps and a vector features" and vectors.scores(expected) is None
    with pytest.raises(ValueError, match=r"expected vectors \(B, d\) or .* from Flatten .* got \[\(12,\)\]"):
        FeatureVectors(nn.Flatten(0))(images[:1, :, :2, :2])


def test_one_rounding_for_files_and_evaluations(tmp_path: Path) -> None:
    from PIL import Image

    images = 1.4 * torch.rand(3, 40, 40) - 0.2
    save_png(images, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        assert torch.equal(to_tensor(file), to_uint8(images))
    exact = np.clip(np.round(255 * images.numpy()), 0, 255).astype(np.uint8)
    assert np.array_equal(to_uint8(images).numpy(), exact)


def test_missing_and_other_weights_of_the_resnet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights of a CIFAR-10 ResNet in .*model.safetensors, got no file"):
        CIFARResNet(str(tmp_path))
    save_file({"layer1.0.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights of a CIFAR-10 ResNet in .* got others \(Missing .*; correct"):
        CIFARResNet(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"expected readable tensors in .*model.safetensors, got a .*; copy it"):
        CIFARResNet(str(tmp_path))


def test_pictures_of_another_size_than_the_resnet_takes(resnet: Path) -> None:
    vectors = FeatureVectors(CIFARResNet(str(resnet)))
    for side, message in ((28, "at least 32 x 32 pixels for CIFARResNet, got 28 x 28"), (64, "32 x 32 .* got 64 x 64")):
        with pytest.raises(ValueError, match=message):
            vectors(torch.zeros(1, 3, side, side))


def test_inception_is_called_fid_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package that stands in for torch-fidelity, and a file of another checksum."""

    class Extractor(nn.Module):
        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert features == ["2048"] and Path(feature_extractor_weights_path).is_file()

        def forward(self, images: Tensor) -> tuple[Tensor]:
            assert images.dtype == torch.uint8 and images.shape[1] == 3
            return (images.float().flatten(1),)

    with pytest.raises(ValueError, match="expected the package torch-fidelity for the FID, got none"):
        InceptionFeatures()
    package: Any = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", package)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"weights of Inception in .*checkpoints/weights-inception.*no file"):
        InceptionFeatures()
    file = tmp_path / "inception.pth"
    file.write_bytes(b"weights")
    with pytest.raises(ValueError, match="a distance of other weights is no FID"):
        InceptionFeatures(str(file))
    monkeypatch.setattr(module, "_INCEPTION_FILE", f"weights-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth")
    vectors = FeatureVectors(InceptionFeatures(str(file)))
    assert vectors.distance == "FID" and vectors.name.startswith("Inception v3")
    gray = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(vectors(gray), gray.repeat(1, 3, 1, 1).double().flatten(1))


def onnx_file(path: Path) -> Tensor:
    """A program that takes (B, H, W, 3) and gives sums of pooled features; its convolution is returned."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    kernel = torch.randn(4, 3, 3, 3)
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["inside:0"]),
        helper.make_node("ReduceMax", ["inside:0"], ["largest"], keepdims=0, axes=[2, 3]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", "H", "W", 3])
    got = helper.make_tensor_value_info("largest", TensorProto.FLOAT, ["B", 4])
    held = helper.make_tensor("kernel", TensorProto.FLOAT, kernel.shape, kernel.flatten().tolist())
    graph = helper.make_graph(nodes, "features", [given], [got], [held])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return kernel


def test_onnx_programs_with_their_layout(tmp_path: Path) -> None:
    kernel, images = onnx_file(tmp_path / "blue.onnx"), torch.rand(2, 3, 6, 6)
    settings: dict[str, Any] = dict(mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.125], layout="NHWC", order="BGR")
    x = images[:, [2, 1, 0]] - torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    maps = F.conv2d(x * torch.tensor([2.0, 4.0, 8.0])[:, None, None], kernel)
    features = FileFeatures(str(tmp_path / "blue.onnx"), **settings)
    torch.testing.assert_close(features(images), maps.amax((2, 3)), rtol=1e-4, atol=1e-4)
    inside = FileFeatures(str(tmp_path / "blue.onnx"), output="inside:0", name="mine", **settings)
    torch.testing.assert_close(inside(images), maps, rtol=1e-4, atol=1e-4)
    assert (FeatureVectors(features).name, FeatureVectors(inside).name) == ("blue", "mine")
    PerceptualLoss(inside)(images.requires_grad_(), torch.rand(2, 3, 6, 6)).backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"got .*blue.onnx \(it has no tensor 'outside'; its outputs are largest\)"):
        FileFeatures(str(tmp_path / "blue.onnx"), output="outside")
    (tmp_path / "bad.onnx").write_bytes(b"no program")
    with pytest.raises(ValueError, match=r"expected a TorchScript, .* program, got .*bad.onnx .*; export it"):
        FileFeatures(str(tmp_path / "bad.onnx"))
    for wrong in ({"layout": "HWC"}, {"order": "RBG"}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} .*, got '.*'; take one of them"):
            FileFeatures(str(tmp_path / "blue.onnx"), **wrong)  # type: ignore[arg-type]
