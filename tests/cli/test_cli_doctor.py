"""What ``doctor`` says of runs and tokenizers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from gritvq import Tokenizer
from gritvq.cli import main
from program import wrong
from text_common import toy_documents

SMALL = {
    "tokenizer": {
        "encoder": {"class_path": "gritvq.images.ImageEncoder", "init_args": {"dim": 4, "width": 8, "num_blocks": 1}},
        "quantizer": {"class_path": "gritvq.vq_vae_ema", "init_args": {"dim": 4, "codebook_size": 16}},
        "decoder": {"class_path": "gritvq.images.ImageDecoder", "init_args": {"dim": 4, "width": 8, "num_blocks": 1}},
    },
    "data": {"batch_size": 16},
    "task": {"lr": 0.003, "warmup_steps": 3},
    "plan": {"max_steps": 120, "validate_every": 40, "checkpoint_every": 60, "accelerator": "cpu"},
}


def fit(folder: Path, pictures: Path, *words: str) -> Path:
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    given = ["fit", "images", "--config", str(folder / "small.yaml"), "--data.path", str(pictures)]
    assert main([*given, "--out", str(folder / "run"), *words]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(120):
        corners = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((16, 16), Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A healthy run."""
    return fit(tmp_path_factory.mktemp("made"), pictures)


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "run")
    return Path("run")


def examined(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, dict[str, Any]]:
    """What is printed and what is written."""
    capsys.readouterr()
    assert main(["doctor", *words, "--json", "findings.json", "--overwrite", "true"]) == 0
    said, content = capsys.readouterr(), json.loads(Path("findings.json").read_text())
    assert "Traceback" not in said.err and content["path"] == words[0]
    return said.out, content


def named(content: dict[str, Any]) -> list[str]:
    return [each["name"] for each in content["findings"]]


def test_nothing_is_found_in_a_healthy_run(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, content = examined(capsys, str(run))
    assert content["findings"] == [] and said.splitlines()[0] == "run: nothing found"
    assert f"1,728 latents of 108 training pictures of {pictures}; logs up to step 120" in said
    said, content = examined(capsys, str(run), "--data.path", str(pictures / "000.png"))
    assert content["findings"] == [] and "16 latents of 1 picture of" in said
    said, content = examined(capsys, str(run / "tokenizer"), "--num_images", "70")
    assert content["findings"] == [] and "1,120 latents of 70 training pictures" in said and "logs" not in said


def test_spoiled_codes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer: Any = Tokenizer.from_pretrained(run / "tokenizer")
    tokenizer.quantizer.codebook.weight.data[4:] = 50.0
    tokenizer.save_pretrained(run / "tokenizer")
    said, content = examined(capsys, str(run))
    assert named(content) == ["codes are duplicates", "dead codes"]
    first = content["findings"][0]
    assert first["number"] == 0.75 and first["limit"] == 0.25 and first["arguments"] == []  # it has all of these
    assert said.splitlines()[:1] == ["run: 2 findings"] and "Number 0.75, limit 0.25." in said
    tokenizer.quantizer.codebook.weight.data[0] = float("inf")
    tokenizer.save_pretrained(run / "tokenizer")
    assert named(examined(capsys, str(run))[1]) == ["codes are not finite"]


def test_settings_that_cannot_work(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, pictures, "--tokenizer.quantizer.decay", "0.9999", "--plan.max_steps", "60")
    said, content = examined(capsys, "run")
    assert named(content)[0] == "moving average is too slow"
    assert content["findings"][0]["arguments"] == ["--tokenizer.quantizer.decay 0.833"]
    assert "In a new run: --tokenizer.quantizer.decay 0.833" in said


@pytest.mark.soak
@pytest.mark.parametrize(
    ("words", "expected", "argument"),
    [
        (["gritvq.vq_vae", "codebook_size=256", "commitment_weight=50"], "dead codes", "lr_scale 10"),
        (["gritvq.vq_vae_ema", "codebook_size=512", "revival_interval=1"], "too few vectors per step", "revival"),
        (["gritvq.simvq", "commitment_weight=300"], "latents have low rank", "--dim 2"),
    ],
)
def test_larger_sabotage(
    words: list[str], expected: str, argument: str, pictures: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [word for each in words[1:] for word in (f"--tokenizer.quantizer.{each}".split("="))]
    fit(tmp_path, pictures, "--tokenizer.quantizer", words[0], *given, "--plan.max_steps", "400")
    _, content = examined(capsys, "run")
    assert expected in named(content), named(content)
    own = next(each for each in content["findings"] if each["name"] == expected)
    assert any(argument in each for each in own["arguments"]), own


def test_a_run_that_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checkpoint, then its logs, then nothing."""
    shutil.rmtree(run / "tokenizer")
    said, content = examined(capsys, str(run))
    assert content["findings"] == [] and "the checkpoint of step 120; 1,728 latents" in said
    (run / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    assert "expected a readable checkpoint" in wrong(["doctor", str(run)], capsys)
    shutil.rmtree(run / "checkpoints")
    said, content = examined(capsys, str(run))
    assert content["examined"] == ["logs up to step 120"]
    assert "has no tokenizer yet" in wrong(["doctor", str(run), "--data.path", "photographs"], capsys)
    shutil.rmtree(run / "logs")
    assert "wait for its first steps" in wrong(["doctor", str(run)], capsys)


def test_data_that_is_gone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["path"] = "./gone"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    said, content = examined(capsys, str(run))
    assert content["findings"] == [] and "no data (the data of the run is not there: " in said
    logs = run / "logs" / "run-0" / "metrics.csv"
    lines = logs.read_text().splitlines()
    place = lines[0].split(",").index("train/loss")
    row = lines[-3].split(",")
    row[1], row[place] = "500", "nan"
    logs.write_text("\n".join([*lines, ",".join(row)]) + "\n")
    assert named(examined(capsys, str(run))[1]) == ["loss is not finite"]
    assert "nowhere" in wrong(["doctor", str(run), "--data.path", "./nowhere"], capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prior: {class_path: x}", "which trained something else"),
        ("ids: x", "which trained something else"),
        ("[", "expected the configuration of a run"),
        ("3", "without settings"),
    ],
)
def test_runs_of_something_else(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(content)
    assert message in wrong(["doctor", "run"], capsys)


def test_files_that_must_not_be_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.json").write_text("mine")
    assert "--overwrite true" in wrong(["doctor", str(run), "--json", "a.json"], capsys)
    assert Path("a.json").read_text() == "mine"
    assert "leave it out" in wrong(["doctor", str(run), "--data.unit", "line"], capsys)


def test_lines_wrap_in_a_terminal(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    tokenizer: Any = Tokenizer.from_pretrained(run / "tokenizer")
    tokenizer.quantizer.codebook.weight.data[4:] = 50.0
    tokenizer.save_pretrained(run / "tokenizer")
    capsys.readouterr()
    assert main(["doctor", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 60 for line in lines if "/" not in line) and len(lines) > 12


def test_a_tokenizer_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in toy_documents(60, 2)))
    words = ["fit", "text", "--data.path", "texts.jsonl", "--model", "gritvq.text.segment_tokenizer"]
    for name, value in {"width": 16, "depth": 1, "num_heads": 2, "length": 64}.items():
        words += [f"--model.{name}", f"{value}"]
    words += ["--model.quantizer", "gritvq.vq_vae_ema", "--model.quantizer.dim", "4"]
    words += ["--model.quantizer.codebook_size", "16", "--model.quantizer.decay", "0.999"]
    words += ["--data.vocabulary", "280", "--data.segmentation.max_tokens", "8"]
    assert main([*words, "--plan.max_steps", "20", "--plan.accelerator", "cpu", "--out", "run"]) == 0
    said, content = examined(capsys, "run")
    assert named(content)[0] == "moving average is too slow" and "documents of" in said
    assert content["findings"][0]["arguments"][0].startswith("--model.quantizer.decay 0.")
    said, content = examined(capsys, "run/tokenizer", "--data.path", "texts.jsonl", "--data.column", "text")
    assert "60 documents of texts.jsonl" in said
    assert "--data.strict" in wrong(["doctor", "run", "--data.strict", "true"], capsys)
