"""``fit text`` on small texts: models, tokenizers, resuming, wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gritvq import Tokenizer
from gritvq.cli import main
from gritvq.text import TextTokenizer, TraceModel
from program import wrong
from text_common import toy_documents

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = ["width=16", "depth=1", "num_heads=2", "length=64"]
COMMON = ["--data.vocabulary", "280", "--data.batch_size", "8", "--data.segmentation.max_tokens", "8"]
COMMON += ["--plan.accelerator", "cpu"]


def words_for(model: str, *more: str) -> list[str]:
    sizes = [word for size in (*SMALL, *more) for word in (f"--model.{size.split('=')[0]}", size.split("=")[1])]
    return ["fit", "text", "--data.path", "texts.jsonl", "--model", f"gritvq.text.{model}", *sizes, *COMMON]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = (json.dumps({"text": document}) for document in toy_documents(60, 2))
    Path("texts.jsonl").write_text("\n".join(lines))


def test_a_model_and_the_run_that_goes_on() -> None:
    words = [*words_for("trace", "dim=4"), "--plan.checkpoint_every", "2"]
    assert main([*words, "--plan.max_steps", "4", "--out", "whole"]) == 0
    numbers = json.loads(Path("whole/metrics.json").read_text())
    assert numbers["least_kl_per_segment"] == 2 <= numbers["kl_per_segment"] < 10 < numbers["tokens"]
    total = numbers["reconstruction_nats_per_token"] * numbers["tokens"]
    assert numbers["nats_per_token"] * numbers["tokens"] > total
    page = Path("whole/texts.md").read_text()
    assert page.count("## ") == 3 and "temperature 1, top-p 0.95, seed 0" in page
    model = TraceModel.from_pretrained("whole/text-model")
    assert model.format is not None and model.vocab_size == model.format.vocab_size == 283
    described = json.loads(Path("whole/data.json").read_text())
    assert described["vocabulary"] == 280 and described["splits"]["train"]["documents"] == 54
    resumed = ["--resume", "whole/checkpoints/step-2.ckpt", "--out", "again"]
    assert main(["fit", "--config", "whole/config.yaml", *resumed]) == 0  # the domain follows from the file
    weights = [Path(run, "text-model", "model.safetensors").read_bytes() for run in ("whole", "again")]
    assert weights[0] == weights[1]


def test_a_tokenizer_and_a_language_model(capsys: pytest.CaptureFixture[str]) -> None:
    quantizer = [
        "--model.quantizer",
        "gritvq.fsq",
        "--model.quantizer.dim",
        "4",
        "--model.quantizer.codebook_size",
        "16",
    ]
    words = [*words_for("segment_tokenizer"), *quantizer, "--plan.max_steps", "2"]
    assert main([*words, "--out", "codes"]) == 0
    numbers = json.loads(Path("codes/metrics.json").read_text())
    assert 0 < numbers["usage"] <= 1 and numbers["nats_per_token_given_codes"] > 0
    tokenizer = Tokenizer.from_pretrained("codes/tokenizer")
    assert isinstance(tokenizer, TextTokenizer) and len(tokenizer.encode("cat eats corn.")) >= 1
    assert "codes [[" in Path("codes/texts.md").read_text()
    assert "expected no settings of continuous latents" in wrong(
        [*words, "--task.free_bits", "1", "--out", "x"], capsys
    )
    assert main([*words_for("language_model"), "--plan.max_steps", "2", "--out", "lm"]) == 0
    assert "kl_per_segment" not in json.loads(Path("lm/metrics.json").read_text())
    assert Path("lm/texts.md").read_text().count("## ") == 1


WRONG: dict[str, tuple[bytes, list[str], str]] = {
    "empty": (b"", [], "expected text in 'a.txt', got none"),
    "blank": (b" \n\n\t\n", [], "got none or white space alone"),
    "latin": ("café\n\nnaïve\n".encode("latin-1"), [], "expected text in utf-8, got bytes in a.txt"),
    "one": (b"one document", [], "expected a document to hold out"),
    "long": (
        b"one. two.\n\nthree.\n",
        ["--data.segmentation.max_segments", "9"],
        "expected documents of at most 64 tokens as the transformer takes, got 72",
    ),
    "size": (b"one. two.\n\nthree.\n", ["--model.vocab_size", "300"], "expected vocab_size 259, the subwords"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_text_is_one_message(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, more, message = WRONG[name]
    Path("a.txt").write_bytes(content)
    words = [*words_for("trace", "dim=4"), "--data.path", "a.txt", "--data.vocabulary", "256", *more]
    assert message in wrong([*words, "--out", "run"], capsys)
    assert not Path("run").exists()


def test_a_checkpoint_of_another_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*words_for("trace", "dim=4"), "--plan.max_steps", "2"]
    assert main([*words, "--out", "run"]) == 0
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": "zebra zebra quill. " * n}) for n in range(1, 40)))
    more: list[Any] = ["--data.vocabulary", "280", "--out", "other"]
    said = wrong([*words, *more, "--resume", "run/checkpoints/last.ckpt"], capsys)
    assert "vocab" in said
    said = wrong([*words, *more, "--init_from", "run/text-model"], capsys)
    assert "vocabulary" in said or "same architecture" in said
