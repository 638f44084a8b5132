"""The verb ``evaluate``: figures with all that they depend on, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from gritvq import vq_vae
from gritvq.cli import main
from gritvq.images import (
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    PerceptualLoss,
    PictureSet,
    compare_pictures,
    open_pictures,
)
from gritvq.images.files import save_png
from program import wrong


class Colors(nn.Module):
    """Means and squares of the channels; the brightest one is the class."""

    name = "colors"

    def __init__(self, least_size: int = 1) -> None:
        super().__init__()
        self.least_size, self.head = least_size, nn.Linear(6, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3, 6))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, images.square()]


pytestmark = pytest.mark.usefixtures("own_folder")


def write(folder: Path, num: int, seed: int, side: int = 8, names: bool = False) -> None:
    generator = torch.Generator().manual_seed(seed)
    for number in range(num):
        color = 0.3 + 0.7 * F.one_hot(torch.tensor(number % 3), 3)[:, None, None]
        name = f"{number:05}-{number % 3 if number % 4 else (number + 1) % 3}.png" if names else f"{number:03}.png"
        save_png(color * torch.rand(3, side, side, generator=generator), folder / name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 train pictures, 40 of test, 40 samples of which every fourth is another color than its name says."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "real" / "train", 60, 0), write(folder / "real" / "test", 40, 1)
    write(folder / "samples", 40, 2, names=True), write(folder / "small", 40, 3, side=6)
    return folder


def evaluated(*words: str) -> dict[str, Any]:
    assert main(["evaluate", *words, "--overwrite", "true"]) == 0
    return json.loads(Path("evaluation.json").read_text())


def test_the_table_and_the_file_say_what_the_figures_depend_on(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, real = str(data / "samples"), str(data / "real")
    found = evaluated(samples, real, "--features", f"{__name__}.Colors")
    said = capsys.readouterr().out
    for part in (
        "gFD, colors features",
        "class accuracy",
        "(floor ",
        "(test), 40 pictures",
        "(train, seed 0), 40 pictures",
    ):
        assert part in said
    assert "8 x 8 pixels" in said and "evaluation: evaluation.json" in said and "rounding" in said
    sets = [PictureSet.of(open_pictures(path), kind, "x") for path, kind in ((samples, "generated"), (real, "real"))]
    sets[1] = PictureSet.of(open_pictures(real, split="test"), "real", "x")
    expected = compare_pictures(sets[0], sets[1], Colors(), floor=None).values
    assert found["values"] == pytest.approx(expected) and expected["class_accuracy"] == 0.75
    assert found["metric"] == "gFD, colors features" and found["num_samples"] == found["num_reference"] == 40
    assert found["floor"]["frechet_distance"] > 0 and "class_accuracy" not in found["floor"]


def test_other_kinds_splits_numbers_and_sizes(data: Path) -> None:
    samples, real, network = str(data / "samples"), str(data / "real"), ("--features", f"{__name__}.Colors")
    assert evaluated(samples, real, *network, "--kind", "reconstructed")["metric"].startswith("rFD")
    found = evaluated(samples, real, *network, "--reference_kind", "reconstructed", "--floor", "none")
    assert found["metric"].startswith("prior-only FD") and found["floor"] is None
    found = evaluated(
        samples, real, *network, "--split", "train", "--unequal", "true", "--floor", str(data / "small"), "--size", "6"
    )
    assert (found["num_samples"], found["num_reference"], found["size"]) == (40, 60, [6, 6])
    assert found["reference"].endswith("(train)") and "resized to 6 x 6" in found["preparation"]["samples"]
    found = evaluated(samples, real, *network, "--split", "train", "--num", "20", "--seed", "3")
    assert (found["num_samples"], found["num_reference"]) == (20, 20)
    assert found["reference"].endswith("(train, seed 3)") and found["floor_pictures"].endswith("(test, seed 3)")


def test_settings_from_a_file(data: Path) -> None:
    network = {"class_path": f"{__name__}.Colors", "init_args": {"least_size": 4}}
    Path("own.yaml").write_text(yaml.safe_dump({"features": network, "neighbors": 2, "floor": "none"}))
    found = evaluated(str(data / "samples"), str(data / "real"), "--config", "own.yaml")
    assert found["neighbors"] == 2 and found["floor"] is None


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "as many pictures in the reference as samples, since the distance depends on the number, got 60 and 40"),
        (
            ("--split", "test", "--name", "gFID"),
            "expected the name 'gFD' for generated against real pictures by colors",
        ),
        (
            ("--split", "test", "--reference_kind", "reconstructed", "--name", "gFD"),
            "expected the name 'prior-only FD'",
        ),
        (("--split", "test", "--num", "41"), "expected 1 to 40 pictures, got num=41"),
        (("--split", "test", "--num", "6"), "expected at least 7 pictures on each side for a Frechet distance of 6"),
        (("--split", "all", "--num", "9"), "expected 9 other pictures for the floor, got none of .*takes all splits"),
        (("--split", "test", "--floor", "{data}/small"), "floor and reference of one size, got 6 x 6 and 8 x 8"),
        (
            ("--split", "test", "--floor", "{data}/real/test"),
            "expected other pictures than the reference's for the floor",
        ),
        (("--split", "test", "--features.least_size", "9"), "pictures of at least 9 x 9 pixels for Colors, got 8 x 8"),
        (("--split", "test", "--neighbors", "0"), "expected neighbors >= 1, got 0"),
        (("--split", "test", "--batch_size", "0"), "expected batch_size >= 1, got 0"),
        (("--split", "test", "--channels", "2"), "expected channels to be 1"),
        (("--split", "test", "--out", "numbers.csv"), "expected --out with the ending .json, got numbers.csv"),
        (("--split", "test", "--device", "nonsense"), "expected a device that this machine has, got 'nonsense'"),
        (("--split", "validation"), "expected validation pictures in .*real', got train, test"),
    ],
)
def test_what_it_refuses(words: tuple[str, ...], message: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--features", f"{__name__}.Colors", *(word.format(data=data) for word in words)]
    if not words:
        arguments += ["--split", "train"]
    said = wrong(["evaluate", str(data / "samples"), str(data / "real"), *arguments], capsys)
    assert re.search(message, said.replace("\n", " ")), said
    assert not any(Path().iterdir())


def test_missing_networks_and_weights(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["evaluate", str(data / "samples"), str(data / "real")]
    assert "features" in wrong(sides, capsys)
    said = wrong([*sides, "--features", "CIFARResNet", "--features.folder", "nowhere"], capsys)
    assert "expected the weights of a CIFAR-10 ResNet in nowhere/model.safetensors, got no file" in said
    assert "torch-fidelity for the FID, got none" in wrong([*sides, "--features", "InceptionFeatures"], capsys)
    assert "is no file" in wrong([*sides, "--features", "FileFeatures", "--features.path", "none.pt"], capsys)
    assert not any(Path().iterdir())


def test_an_existing_file_stays(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("evaluation.json").write_text("mine")
    said = wrong(["evaluate", str(data / "samples"), str(data / "real"), "--features", f"{__name__}.Colors"], capsys)
    assert "--overwrite true" in said and Path("evaluation.json").read_text() == "mine"


def test_a_tokenizer_is_validated_with_a_perceptual_distance(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    tokenizer = ImageTokenizer(ImageEncoder(4, **shape), vq_vae(4, 16), ImageDecoder(4, **shape)).eval()
    tokenizer.save_pretrained("tokenizer")
    words = ["validate", "tokenizer", "--data.path", str(data / "samples"), "--device", "cpu"]
    network = ["--perceptual", "PerceptualLoss", "--perceptual.features", f"{__name__}.Colors"]
    assert main([*words, *network, "--out", "numbers"]) == 0
    assert "perceptual distance" in capsys.readouterr().out
    (_, images), *_ = open_pictures(data / "samples").batches()
    expected = float(PerceptualLoss(Colors())(tokenizer(images).reconstruction.clamp(0, 1), images))
    found = json.loads(Path("numbers/metrics.json").read_text())
    assert found["perceptual_distance"] == pytest.approx(expected, rel=1e-4)
    assert main([*words, "--out", "plain"]) == 0
    assert "perceptual_distance" not in json.loads(Path("plain/metrics.json").read_text())
    small = ["--perceptual.features.least_size", "9", "--out", "small"]
    assert "pictures of at least 9 x 9 pixels for Colors" in wrong([*words, *network, *small], capsys)
    assert not Path("small").exists()
