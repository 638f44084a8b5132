"""The shipped configurations of images, large ones scaled down by arguments: two steps of each by the program."""

from __future__ import annotations

import io
import itertools
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from benchmarks.gpu.sizes import SMALL as TINY
from benchmarks.gpu.sizes import make_vgg
from PIL import Image

from gritvq import Tokenizer, rq
from gritvq.cli import main
from gritvq.images import ImageTokenizer

CONFIGS = Path(__file__).parents[2] / "configs" / "images"
LARGE = {**TINY, "data.num_workers": 0, "plan.devices": 1}
SMALL = {
    **{f"tokenizer.{part}.{name}": 8 for part in ("encoder", "decoder") for name in ("dim", "width")},
    "tokenizer.quantizer.dim": 8,
    "tokenizer.quantizer.codebook_size": 64,
}
GAN = {
    "task.adversarial.start": 1,
    "task.adversarial.discriminator.width": 8,
    "task.adversarial.discriminator.num_layers": 1,
    "task.perceptual.features.path": "vgg.h5",
}
SCALED = {
    "perceptual": SMALL | GAN,
    "vqgan-256-16384": LARGE | GAN,
    "vqgan-256-262144": LARGE | GAN,
    "staged": SMALL,
    "vit": {
        **{f"tokenizer.{part}.{name}": 8 for part in ("encoder", "decoder") for name in ("dim", "width")},
        **{f"tokenizer.{part}.{name}": 1 for part in ("encoder", "decoder") for name in ("depth", "num_heads")},
        "tokenizer.quantizer.dim": 8,
        "tokenizer.quantizer.codebook_size": 64,
        "task.adversarial.start": 1,
        "task.adversarial.discriminator.width": 8,
        "task.adversarial.discriminator.features.path": "vgg.h5",
        "task.perceptual.features.path": "vgg.h5",
    },
    "vqrae-stage-1": {},
    "vqrae-stage-2": {},
    **dict.fromkeys(("photographs", "flat", "hierarchical", "dropout"), SMALL),
}
SLOW = {"flat", "hierarchical"}  # what they have is in configurations of methods, which test_methods.py trains


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        corners = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


def test_every_configuration_is_tried_here_or_with_the_methods() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == {*SCALED, "flat", "hierarchical", "photographs"}


def test_none_is_forgotten() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == SCALED.keys()


def fitted(name: str, path: Path, capsys: pytest.CaptureFixture[str], *more: str, out: str = "run") -> ImageTokenizer:
    """The tokenizer after two steps of a configuration on pictures."""
    arguments = {
        **SCALED[name],
        **{"data.path": path, "data.size": 32, "data.batch_size": 2, "data.num_validation": 2},
        **{"plan.max_steps": 2, "plan.validate_every": 0, "plan.accelerator": "cpu", "out": out},
    }
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    assert main(["fit", "images", "--config", str(CONFIGS / f"{name}.yaml"), *more, *words]) == 0, (
        capsys.readouterr().err
    )
    tokenizer = Tokenizer.from_pretrained(f"{out}/tokenizer")
    assert isinstance(tokenizer, ImageTokenizer)
    return tokenizer


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak if name in SLOW else ()) for name in SCALED]
)
def test_two_steps(name: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name.startswith("vqrae"):
        pytest.importorskip("transformers")
    else:
        make_vgg(4)
    tokenizer = fitted(name, pictures, capsys)
    side = 32 // tokenizer.factor
    assert tokenizer.encode(torch.rand(1, 3, 32, 32)).shape[:-1] == tokenizer.quantizer.token_shape((1, side, side))
    settings, began = (
        yaml.safe_load(Path("run/config.yaml").read_text()),
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()),
    )
    assert settings["plan"]["precision"] == began["plan"].get("precision", "32-true")
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["step"] == 2 and len(checkpoint["optimizer_states"]) == 1 + (
        "adversarial" in began.get("task", {})
    )
    averages = [each for key, each in checkpoint["callbacks"].items() if "WeightAverage" in key]
    assert [each["num_updates"] for each in averages] == [2] * ("WeightAverage" in str(began.get("callbacks")))


def tables(pictures: Path) -> tuple[Path, Path]:
    """The same pictures in a Parquet file, and in a tar file as WebDataset writes them."""
    files = sorted(pictures.iterdir())
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    parquet.write_table(pa.table({"image": rows}), "all.parquet", row_group_size=5)
    with tarfile.open("all.tar", "w") as tar:
        for file in files:
            for name, content in ((file.name, file.read_bytes()), (f"{file.stem}.cls", b"3")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return Path("all.parquet"), Path("all.tar")


def test_256_pixels_from_a_parquet_and_from_a_tar_file(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same pictures in the same order make the same tokenizer, to the bit; a folder holds out other ones."""
    make_vgg(4)
    found = []
    for path in tables(pictures):
        found.append(fitted("vqgan-256-16384", path, capsys, out=path.suffix[1:]).state_dict())
        assert f"data: {path}: train 11 " in capsys.readouterr().err
    one, other = found
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["vqrae-stage-1", "vqrae-stage-2"])
def test_the_losses_of_the_page_in_vqrae(name: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/training.md adds to both stages, as a second file behind the shipped one, which it leaves as it is."""
    pytest.importorskip("transformers")
    make_vgg(4)
    section = (CONFIGS.parents[1] / "docs" / "training.md").read_text().partition("## A vision model as encoder")[2]
    (block,) = re.findall(r"^```yaml\n(.*?)^```", section.partition("\n## ")[0], re.DOTALL | re.MULTILINE)
    Path("losses.yaml").write_text(block)
    words = [word for key, value in GAN.items() for word in (f"--{key}", str(value))]
    fitted(name, pictures, capsys, "--config", "losses.yaml", *words)
    began = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).get("task", {})
    task = yaml.safe_load(Path("run/config.yaml").read_text())["task"]
    assert {key: task[key] for key in began} == began
    assert [task[key]["class_path"] for key in ("perceptual", "adversarial")] == [
        "gritvq.images.PerceptualLoss",
        "gritvq.images.AdversarialLoss",
    ]
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    tokenizers, discriminators = (states["state"] for states in checkpoint["optimizer_states"])
    assert {int(state["step"]) for state in tokenizers.values()} == {2}
    assert {int(state["step"]) for state in discriminators.values()} == {1}  # which starts at the second step


def test_dropout_keeps_one_to_four_levels_and_their_prefixes_decode() -> None:
    described = yaml.safe_load((CONFIGS / "dropout.yaml").read_text())["tokenizer"]["quantizer"]
    assert described["class_path"] == "gritvq.rq"
    quantizer = rq(**described["init_args"])
    indices = quantizer.train()(torch.randn(128, 3, 16)).indices
    kept = (indices >= 0).sum(-1)
    assert torch.equal(kept, kept[:, :1].expand(-1, 3)) and set(kept[:, 0].tolist()) == {1, 2, 3, 4}
    # half of all, and a quarter of the others, keep four: 5/8 with a standard error of 0.043; here within three of them
    assert abs(float((kept[:, 0] == 4).float().mean()) - 5 / 8) < 0.13
    whole = quantizer.eval().encode(torch.randn(5, 16))
    values = [quantizer.decode(whole[:, :levels]) for levels in (1, 2, 3, 4)]
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(values))


def test_the_large_ones_are_large() -> None:
    """As they are, but for weights that nobody draws: the size of VQ-16, and the codes that their names say."""
    from gritvq.component import from_config
    from gritvq.quantizers.presets import grit_vq

    for size in (16384, 262144):
        settings = yaml.safe_load((CONFIGS / f"vqgan-256-{size}.yaml").read_text())
        with torch.device("meta"):
            encoder, decoder = (from_config(settings["tokenizer"][part]) for part in ("encoder", "decoder"))
        quantizer = settings["tokenizer"]["quantizer"]
        assert (
            quantizer["class_path"] == f"gritvq.{grit_vq.__name__}" and quantizer["init_args"]["codebook_size"] == size
        )
        assert encoder.factor == decoder.factor == 16 and encoder.dim == decoder.dim == quantizer["init_args"]["dim"]
        millions = sum(each.numel() for part in (encoder, decoder) for each in part.parameters()) / 1e6
        assert 71 < millions < 73
        assert settings["data"]["size"] == 256 and settings["plan"]["devices"] == 8
