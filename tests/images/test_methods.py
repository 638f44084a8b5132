"""Every preset as people meet it: listed with its paper, described in the documentation, trained from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gritvq import Tokenizer
from gritvq.cli import main, paper_of
from gritvq.component import from_config, to_config
from gritvq.images import ImageTokenizer
from gritvq.quantizers import presets

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "methods"
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs" / "methods").glob("*.md")}


def configured(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a configuration."""
    parts = content["tokenizer"]
    preset = parts["quantizer"]
    quantizer = getattr(presets, preset["class_path"].removeprefix("gritvq."))(**preset["init_args"])
    encoder, decoder = (from_config(parts[name]) for name in ("encoder", "decoder"))
    return ImageTokenizer(encoder, quantizer, decoder)


def test_every_preset_has_a_configuration_and_every_configuration_a_preset() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(presets.__all__)


@pytest.mark.parametrize("name", presets.__all__)
def test_every_preset_has_a_paper_and_a_section(name: str) -> None:
    assert re.search(r"\d{4}", paper_of(getattr(presets, name)))
    marks = {page: " ".join(re.findall(r"<!-- measured ([^>]*?) -->", text)).split() for page, text in PAGES.items()}
    described = [page for page, names in marks.items() for each in names if each == name]
    assert described == [getattr(presets, name).__module__.rpartition(".")[2]]  # the page has the name of the file
    assert f"`{name}`" in PAGES[described[0]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 smooth pictures of 32 x 32."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        corners = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.parametrize("name", presets.__all__)
def test_every_configuration_is_read_and_gives_a_tokenizer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = CONFIGS / f"{name}.yaml"
    small = ["--tokenizer.encoder.init_args.width", "8", "--tokenizer.decoder.init_args.width", "8"]
    assert main(["fit", "--config", str(path), *small, "--print_config"]) == 0
    whole = yaml.safe_load(capsys.readouterr().out)
    tokenizer = configured(whole)
    assert to_config(tokenizer.quantizer) == to_config(configured(yaml.safe_load(path.read_text())).quantizer)
    check(tokenizer.eval())


def check(tokenizer: Any) -> None:
    images = torch.rand(2, 3, 32, 32)
    decoded = tokenizer.decode(tokenizer.encode(images))
    assert decoded.shape == images.shape
    if tokenizer.quantizer.exact != "never":
        assert torch.equal(decoded, tokenizer(images).reconstruction.detach().clamp(0, 1))


# One of each kind of tokens, of losses and of updates; that each part learns is in the contract of all quantizers.
TRAINED = {"grit_vq", "vq_vae_ema", "fsq", "soft_vq", "xq", "vq_vae_2", "msvq", "sq_vae", "vaevq_released"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in TRAINED else pytest.mark.soak) for name in presets.__all__]
)
def test_every_configuration_trains(
    name: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten steps of the real thing on small pictures: nothing diverges, and the tokenizer written can be used."""
    arguments = ["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--data.path", str(pictures)]
    arguments += ["--data.num_validation", "8", "--data.batch_size", "4", "--plan.max_steps", "10"]
    arguments += ["--plan.validate_every", "0"]
    arguments += ["--tokenizer.encoder.init_args.width", "8", "--tokenizer.decoder.init_args.width", "8"]
    arguments += ["--tokenizer.quantizer.init_args.codebook_size", "64", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert "PSNR" in capsys.readouterr().out
    check(Tokenizer.from_pretrained(tmp_path / "run" / "tokenizer"))


def test_hierarchical_and_flat_have_equal_bits_and_parameters() -> None:
    two, one = (
        configured(yaml.safe_load((ROOT / "configs" / "images" / f"{name}.yaml").read_text()))
        for name in ("hierarchical", "flat")
    )
    assert two.quantizer.bits((8, 8)) == 720
    assert one.quantizer.bits((8, 8)) == pytest.approx(720, rel=1e-3)
    sizes = [sum(p.numel() for p in tokenizer.parameters()) for tokenizer in (two, one)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


@pytest.mark.soak  # every preset trains in the test above; how runs are compared is in test_training.py
def test_compare_runs_all_presets(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smoke version of the comparison in the documentation: 20 steps each, small."""
    plan: dict[str, Any] = {
        "codebook_sizes": [64],
        "comparison": {"max_steps": 20, "width": 8, "warmup_steps": 2, "split": "validation"},
        "data": {"path": str(pictures), "batch_size": 4, "num_validation": 8},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["compare", "--config", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in presets.__all__) and "mean colour" in shown
    assert (tmp_path / "out" / "comparison.png").exists()
