"""What ``fit`` and ``demo`` make of a configuration, and what they leave alone."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from lightning import Callback
from PIL import Image
from safetensors.torch import load_file

from gritvq.cli import fit as fitting
from gritvq.cli import main
from gritvq.cli.errors import parser_class
from gritvq.cli.fit_images import spread
from gritvq.cli.output import tracked
from program import wrong

CONFIGS = sorted(
    path for kind in ("methods", "images") for path in (Path(__file__).parents[2] / "configs" / kind).iterdir()
)


pytestmark = pytest.mark.usefixtures("own_folder")


def parsed(*words: str) -> Any:
    """The quantizer that arguments of ``fit`` ask for."""
    return completed_images(words)[1].tokenizer.quantizer


def completed_images(words: Sequence[str]) -> tuple[Any, Any]:
    """The parser of ``fit images``, and the configuration that arguments make."""
    parser, config, given = fitting.configuration(parser_class(), "images", words)
    spread(config, given)
    return parser, config


def defaults(path: str) -> dict[str, Any]:
    module, _, name = path.rpartition(".")
    found = inspect.signature(getattr(importlib.import_module(module), name)).parameters.items()
    return {key: parameter.default for key, parameter in found if parameter.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_configuration_gives_what_it_says_and_the_presets_defaults(path: Path) -> None:
    said = yaml.safe_load(path.read_text())["tokenizer"]["quantizer"]
    found = parsed("--config", str(path))
    assert found.class_path == said["class_path"]
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in found.init_args.items()}
    expected = {**defaults(said["class_path"]), **said["init_args"]}
    assert {name: given[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "path", "expected"),
    [
        (["--tokenizer.quantizer", "gritvq.vq_vae"], "gritvq.vq_vae", {"dim": 16, "codebook_size": 4096}),
        (["--tokenizer.quantizer=gritvq.rotation_vq"], "gritvq.rotation_vq", {"dim": 16, "codebook_size": 4096}),
        (["--tokenizer.quantizer.codebook_size", "64"], "gritvq.grit_vq", {"codebook_size": 64}),
        (["--tokenizer.quantizer.class_path", "gritvq.diveq"], "gritvq.diveq", {}),
        (["--config", "vq.yaml", "--tokenizer.quantizer", "gritvq.rotation_vq"], "gritvq.rotation_vq", {"dim": 8}),
        (["--tokenizer", "tokenizer.yaml"], "gritvq.vq_vae", {"dim": 8, "codebook_size": 32}),
        ([], "gritvq.grit_vq", {"dim": 16, "codebook_size": 4096}),
    ],
)
def test_another_class_brings_its_own_defaults(words: list[str], path: str, expected: dict[str, Any]) -> None:
    part = {"quantizer": {"class_path": "gritvq.vq_vae", "init_args": {"dim": 8, "codebook_size": 32}}}
    Path("vq.yaml").write_text(yaml.safe_dump({"tokenizer": part}))
    Path("tokenizer.yaml").write_text(yaml.safe_dump(part))
    found = parsed(*words)
    wanted = {**defaults(path), **expected}
    assert found.class_path == path and {name: found.init_args[name] for name in wanted} == wanted


def test_short_settings_reach_every_part() -> None:
    words = ["--preset", "rq", "--codebook_size", "32", "--dim", "8", "--factor", "8", "--channels", "1"]
    Path("short.yaml").write_text(yaml.safe_dump({"preset": "rq", "codebook_size": 32, "dim": 8, "factor": 8}))
    settings = {"init_args": {"num_levels": 3}}
    levels = ["--tokenizer.quantizer.num_levels", "3"]
    own = {"preset": "rq", "codebook_size": 32, "dim": 8, "factor": 8, "tokenizer": {"quantizer": settings}}
    Path("own.yaml").write_text(yaml.safe_dump(own))
    for given in (
        [*words, *levels],
        ["--config", "short.yaml", "--channels", "1"],
        ["--config", "short.yaml", "--channels", "1", *levels],
        ["--config", "own.yaml", "--channels", "1"],
    ):
        parser, config = completed_images(given)
        encoder, quantizer, decoder = (config.tokenizer[part] for part in ("encoder", "quantizer", "decoder"))
        expected = {**defaults("gritvq.rq"), "dim": 8, "codebook_size": 32}
        expected["num_levels"] = 3 if levels[0] in given or "own.yaml" in given else 4
        assert quantizer.class_path == "gritvq.rq" and quantizer.init_args.as_dict() == expected
        for part in (encoder, decoder):
            assert (part.init_args.dim, part.init_args.factor, part.init_args.channels) == (8, 8, 1)
        assert config.data.channels == 1
        assert not {"preset", "codebook_size", "dim", "factor", "channels"} & set(vars(config))
        parts = parser.instantiate(config)
        assert parts.tokenizer.quantizer.codebook_sizes == (32,) * expected["num_levels"]


def test_parts_of_losses_have_short_names() -> None:
    """In a process of its own: in this one, tests have imported everything that the parser could know."""
    parts = {"adversarial": "AdversarialLoss", "perceptual": "PerceptualLoss"}
    parts |= {"adversarial.discriminator": "PatchDiscriminator", "perceptual.features": "VGG16Features"}
    words = [word for name, part in parts.items() for word in (f"--task.{name}", part)]
    command = [sys.executable, "-m", "gritvq", "fit", "images", *words, "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    task = yaml.safe_load(done.stdout)["task"]
    adversarial, perceptual = (task[name]["init_args"] for name in ("adversarial", "perceptual"))
    assert adversarial["discriminator"]["class_path"] == "gritvq.images.PatchDiscriminator"
    assert perceptual["features"]["class_path"] == "gritvq.images.VGG16Features"


def test_a_run_of_short_settings_is_written_down_in_full() -> None:
    short = ["--preset", "fsq", "--codebook_size", "64", "--dim", "4", "--factor", "2", "--channels", "1"]
    small()  # makes the pictures
    sizes = ["--tokenizer.encoder.width", "8", "--tokenizer.decoder.width", "8", "--plan.max_steps", "1"]
    data = ["--data.path", "pictures", "--data.batch_size", "4", "--plan.accelerator", "cpu"]
    assert main(["fit", "images", *short, *sizes, *data, "--out", "run"]) == 0
    assert "preset" not in yaml.safe_load(Path("run/config.yaml").read_text())
    assert main(["fit", "--config", "run/config.yaml", "--out", "again"]) == 0
    name = "tokenizer/model.safetensors"
    assert Path("run", name).read_bytes() == Path("again", name).read_bytes()
    assert (
        json.loads(Path("run/tokenizer/config.json").read_text())["tokenizer"]["init_args"]["encoder"]["init_args"][
            "channels"
        ]
        == 1
    )


def small(*words: str, out: str = "run") -> list[str]:
    """Two steps of something small."""
    if not Path("pictures").exists():
        Path("pictures").mkdir()
        for number in range(24):
            colors = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(colors).save(f"pictures/{number:02}.png")
    parts: dict[str, Any] = {
        "encoder": {"class_path": "gritvq.images.ImageEncoder", "init_args": {"dim": 4, "width": 8}},
        "quantizer": {
            "class_path": "gritvq.ns_vq",
            "init_args": {"dim": 4, "codebook_size": 8, "halving_interval": None},
        },
        "decoder": {"class_path": "gritvq.images.ImageDecoder", "init_args": {"dim": 4, "width": 8}},
    }
    content = {"tokenizer": parts, "data": {"path": "pictures", "batch_size": 4}, "plan": {"max_steps": 2}}
    Path("small.yaml").write_text(yaml.safe_dump(content))
    return ["fit", "images", "--config", "small.yaml", "--plan.accelerator", "cpu", "--out", out, *words]


def test_settings_of_none_are_written_down(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small()) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data: ")]
    count = len(list(Path("pictures").iterdir()))
    held = count // 10
    said = f"validation {held} (the last {held} of train), test {held} (as validation)"
    assert told == [f"data: pictures: train {count - held} (no name of a split), {said}"]
    assert main(["fit", "--config", "run/config.yaml", "--out", "again"]) == 0
    configs = [json.loads(Path(f"{run}/tokenizer/config.json").read_text()) for run in ("run", "again")]
    assert configs[0] == configs[1]
    name = "tokenizer/model.safetensors"
    assert Path("run", name).read_bytes() == Path("again", name).read_bytes()


def test_a_run_stays_where_the_next_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small()) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    for words, expected in (
        (["--data.channels", "1"], "expected data.channels=3 as the tokenizer's encoder has, got 1; make them equal"),
        (["--tokenizer.decoder.factor", "2"], "expected the decoder to have factor=4 as the encoder has, got 2"),
        (["--data.size", "18", "--tokenizer.quantizer", "gritvq.msvq"], "18"),
        (["--plan.accelerator", "nonsense"], "nonsense"),
        (["--plan.accelerator", "tpu"], "tpu"),
    ):
        assert expected in wrong(small("--overwrite", "true", *words), capsys)
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
        wrong(small(*words, out="other"), capsys)
        assert not Path("other").exists()


@pytest.mark.parametrize("words", [["--config", "pipe.yaml"], ["--config=pipe.yaml"], ["--tokenizer", "pipe.yaml"]])
def test_a_pipe_is_no_configuration(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.yaml")
    assert "expected a file or folder, got 'pipe.yaml', which is a pipe" in wrong(["fit", "images", *words], capsys)


def test_a_demo_replaces_no_run_of_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small()) == 0
    before = Path("run/tokenizer/model.safetensors").read_bytes()
    capsys.readouterr()
    assert "run of fit" in wrong(["demo", "--out", "run", "--steps", "2"], capsys)
    assert Path("run/tokenizer/model.safetensors").read_bytes() == before


def test_a_run_goes_on_with_the_rates_it_began_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small("--task.betas", "[0.8,0.9]")) == 0
    capsys.readouterr()
    before = Path("run/config.yaml").read_bytes()
    more = ["--plan.max_steps", "3", "--resume", "last"]
    for rates in (["--task.betas", "[0.8,0.9]", "--task.lr", "0.5"], ["--task.weight_decay", "0.3"], []):
        assert "expected the settings of the resumed run: --task" in wrong(small(*rates, *more), capsys)
        assert Path("run/config.yaml").read_bytes() == before
    same = ["--task.betas", "[0.8,0.9]", "--plan.max_steps", "3"]
    elsewhere = ["--resume", "run/checkpoints/last.ckpt"]
    for name, value in (
        ("task.lr", "0.5"),
        ("data.seed", "1"),
        ("data.batch_size", "3"),
        ("plan.precision", "bf16-mixed"),
        ("task.objective", "gritvq.training.ReconstructionObjective"),  # a class in the place of null
    ):
        assert f"--{name} " in wrong(small(*same, f"--{name}", value, *elsewhere, out="other"), capsys)
        assert not Path("other").exists()
    assert "3 steps" not in wrong(
        small("--task.betas", "[0.8,0.9]", "--plan.max_steps", "1", "--resume", "last"), capsys
    )
    assert main(small("--task.betas", "[0.8,0.9]", *more)) == 0


def test_a_new_run_starts_from_the_weights_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = ["--tokenizer.quantizer.class_path", "gritvq.vq_vae_ema"]
    assert main(small(*fitted)) == 0
    said = "--init_from", "run/tokenizer", "--task.lr", "1e-30", "--plan.max_steps", "1", *fitted
    assert (
        main(small(*said, out="tuned")) == 0
    )  # a rate at which nothing moves, other than by fitting the codes to data
    began, tuned = (load_file(f"{folder}/tokenizer/model.safetensors") for folder in ("run", "tuned"))
    assert all(
        torch.allclose(value, tuned[name], rtol=0, atol=1e-20)
        for name, value in began.items()
        if name.startswith(("encoder", "decoder"))
    )
    assert yaml.safe_load(Path("tuned/config.yaml").read_text())["init_from"] == "run/tokenizer"
    capsys.readouterr()
    text = wrong(small(*said, "--tokenizer.quantizer.codebook_size", "9", out="other"), capsys)
    assert "quantizer.codebook.weight ((9, 4) here, (8, 4) there)" in text
    assert not Path("other").exists()


def test_callbacks_loggers_and_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    csv_logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "mine", "name": "more"},
    }
    monitor = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    told = small("--plan.max_steps", "30")
    content = yaml.safe_load(Path("small.yaml").read_text())
    Path("small.yaml").write_text(yaml.safe_dump({**content, "callbacks": [monitor], "loggers": [csv_logger]}))
    assert main(told) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in said if line.startswith("step")] == [
        f"step {step} of 30" for step in range(3, 31, 3)
    ]
    assert not [line for line in said if "GPU" in line or "Tip" in line or "warning" in line]
    described = json.loads(Path("run/data.json").read_text())
    assert described["splits"]["train"]["pictures"] == 22 and described["splits"]["validation"]["pictures"] == 2
    assert any("22" in line and "2" in line and "pictures" in line for line in said)
    with next(Path("mine/more").glob("*/metrics.csv")).open() as file:
        assert "lr-AdamW/pg1" in file.readline()
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    assert saved["callbacks"][0]["class_path"] == monitor["class_path"]


_OWN_LOGGER = """
import json
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class Lines(Logger):
    def __init__(self, path: str, project: str = "none"):
        super().__init__()
        self.path, self.name, self.version = path, project, 0

    name = version = None

    def _write(self, **what):
        with open(self.path, "a") as file:
            file.write(json.dumps(what) + "\\n")

    @rank_zero_only
    def log_hyperparams(self, params, *args, **kwargs):
        self._write(settings=params)

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        self._write(step=step, metrics=metrics)

    @rank_zero_only
    def finalize(self, status):
        self._write(ended=status)
"""


def test_a_logger_of_another_package_gets_settings_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """As W&B, MLflow and others come: a class that the configuration names, resumed runs included."""
    Path("others").mkdir()
    Path("others/others_logger.py").write_text(_OWN_LOGGER)
    monkeypatch.syspath_prepend("others")
    told = small("--plan.max_steps", "20", "--plan.validate_every", "10")
    named = {"class_path": "others_logger.Lines", "init_args": {"path": "lines.jsonl", "project": "tokens"}}
    content = yaml.safe_load(Path("small.yaml").read_text())
    Path("small.yaml").write_text(yaml.safe_dump({**content, "loggers": [named]}))
    assert main(told) == 0
    lines = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
    settings = lines[0]["settings"]
    assert settings["plan"]["max_steps"] == 20 and settings["tokenizer"]["quantizer"]["init_args"]["dim"] == 4
    assert settings == yaml.safe_load(Path("run/config.yaml").read_text())
    measured = [line for line in lines if "metrics" in line]
    assert {line["step"] for line in measured if "val/psnr" in line["metrics"]} == {9, 19}
    assert {line["step"] for line in measured if "train/psnr" in line["metrics"]} == {9, 19}
    assert lines[-1] == {"ended": "success"}
    assert list(Path("run/logs").glob("run-0/metrics.csv")) and list(Path("run/logs").glob("run-0/events*"))
    assert main(["fit", "images", "--config", "run/config.yaml", "--resume", "last", "--plan.max_steps", "30"]) == 0
    lines = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
    assert max(line.get("step", 0) for line in lines) >= 29 and lines[-1] == {"ended": "success"}
    assert sum("settings" in line for line in lines) == 2


class Counted(Callback):
    """Counts how often it is made, and what it draws."""

    made: ClassVar[list[float]] = []

    def __init__(self) -> None:
        self.made.append(float(torch.rand(())))


def test_a_callback_is_made_once_and_draws_nothing_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "made", [])
    assert main(small()) == 0
    assert main(small("--callbacks", "[test_cli_fit.Counted]", out="other")) == 0
    assert len(Counted.made) == 1
    name = "tokenizer/model.safetensors"
    assert Path("run", name).read_bytes() == Path("other", name).read_bytes()


def test_long_tests_say_how_far_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(25), "testing")) == list(range(25))
    assert capsys.readouterr().err.splitlines() == [
        f"testing: {n} of 25" for n in (3, 5, 8, 10, 13, 15, 18, 20, 23, 25)
    ]
