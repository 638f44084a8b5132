"""``validate``, ``inspect`` and ``export`` of text tokenizers, and what they refuse."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from gritvq.cli import main
from gritvq.export import load_program
from gritvq.text import Corpus, TextBatch, TextTokenizer, evaluate_text
from program import wrong
from text_common import toy_documents

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on 60 documents, 6 of them held out."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in toy_documents(60, 2)))
    words = ["fit", "text", "--data.path", str(folder / "texts.jsonl"), "--model", "gritvq.text.segment_tokenizer"]
    for name, value in {"width": 16, "depth": 1, "num_heads": 2, "length": 64}.items():
        words += [f"--model.{name}", f"{value}"]
    words += ["--model.quantizer", "gritvq.rq", "--model.quantizer.dim", "4", "--model.quantizer.codebook_size", "16"]
    words += ["--model.quantizer.num_levels", "2", "--data.vocabulary", "280", "--data.segmentation.max_tokens", "8"]
    words += ["--plan.max_steps", "2", "--plan.accelerator", "cpu", "--out", str(folder / "run")]
    assert main(words) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def numbers_of(folder: str | Path) -> dict[str, float]:
    return dict(json.loads(Path(folder, "metrics.json").read_text()))


def test_the_held_out_documents_of_its_own_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``fit text`` measured, again."""
    assert main(["validate", str(run / "tokenizer"), "--out", "v", "--batch_size", "4"]) == 0
    assert "held out by the tokenizer's own run" in capsys.readouterr().out
    found, before = numbers_of("v"), numbers_of(run)
    assert before["draws_of_latents"] == 0 and before["documents"] >= 6
    for name in set(before) - {"draws_of_latents"}:
        assert found[name] == pytest.approx(before[name], rel=1e-5), name
    assert {path.name for path in Path("v").iterdir()} == {"metrics.json", "texts.md", "usage.png"}
    assert Path("v/texts.md").read_text().count("codes [[") == 6


def test_halves_of_surrogate_pairs(run: Path) -> None:
    Path("a.jsonl").write_text(json.dumps({"text": "cat \ud83d eats."}))
    assert main(["inspect", str(run / "tokenizer"), "--data.path", "a.jsonl", "--out", "v"]) == 0
    assert "cat \ufffd eats." in Path("v/texts.md").read_text() and numbers_of("v")["documents"] == 1


def test_documents_of_a_file(run: Path) -> None:
    Path("a.txt").write_text("cat eats corn.\n\ndog sees mice. hen likes hats. cow finds rain.\n\n\nfish!")
    words = ["validate", str(run / "tokenizer"), "--data.path", "a.txt", "--out"]
    assert main([*words, "v", "--batch_size", "2"]) == 0
    tokenizer = TextTokenizer.from_pretrained(run / "tokenizer")
    form = tokenizer.format
    assert form is not None
    documents = list(Corpus("a.txt"))
    expected = evaluate_text(tokenizer, [form.batch_of([row]) for own in form.tokens(documents) for row in own])
    found = numbers_of("v")
    for name, value in expected.values.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["bits_per_segment"] == 8 and found["segments"] == expected.num_segments > 5
    assert found["characters"] == sum(map(len, documents))  # type: ignore[arg-type]
    assert found["bits_per_character"] == pytest.approx(8 * expected.num_segments / found["characters"])
    assert main([*words, "w", "--data.unit", "file"]) == 0 and numbers_of("w")["segments"] > found["segments"] - 3


def test_what_single_codes_stand_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run / "tokenizer"), "--out", "i"]) == 0
    said = capsys.readouterr().out
    assert "effective rank of the codes" in said and "32 x 4" in said
    tokenizer = TextTokenizer.from_pretrained(run / "tokenizer")
    page = Path("i/codes.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## Code (\d+), (\d+) segments: .* with 0 in the other channels, then", page, re.MULTILINE)
    counts = [int(count) for _, count in titles]
    assert counts == sorted(counts, reverse=True) and sum(counts) == numbers_of("i")["segments"]
    code = int(titles[0][0])
    sections = page.split("## ")[1].split("\n\n    ")[1:]
    alone = tokenizer.decode(torch.tensor([[code, 0]]))
    assert sections[0].split("\n\n")[0].replace("\n    ", "\n") == "\n".join(alone.splitlines()) or not alone
    assert len(sections) == 1 + min(5, counts[0])


@pytest.mark.parametrize("ending", ["onnx", pytest.param("pt2", marks=pytest.mark.soak)])
def test_the_encoder_as_a_program_gives_the_same_codes(
    ending: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run / "tokenizer"), "--format", "onnx" if ending == "onnx" else "torch", "--out", "p"]
    assert main(words) == 0
    identical = re.search(r"identical indices of random documents\W+([\d,]+) of ([\d,]+)", capsys.readouterr().out)
    assert identical is not None and identical[1] == identical[2] and int(identical[1]) == 2 * sum(range(9))
    assert [path.name for path in Path("p").iterdir()] == [f"encoder.{ending}"]
    tokenizer = TextTokenizer.from_pretrained(run / "tokenizer")
    form, program = tokenizer.format, load_program(f"p/encoder.{ending}")
    assert form is not None
    texts = ["cat eats corn.", "x", "dog sees mice. hen likes hats. Cow finds rain.", "caf\u00e9"]
    for some in (texts, texts[:1], texts[2:]):
        batch: TextBatch = form.batch(some)
        found = program(batch.tokens.masked_fill(~batch.valid, -1))
        for text, indices in zip(some, found, strict=True):
            own = tokenizer.encode(text)
            assert torch.equal(indices[: len(own)], own) and bool((indices[len(own) :] == -1).all())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validate", "{run}/tokenizer", "--split", "train"], "no --split for a tokenizer of texts, got 'train'"),
        (["validate", "{run}/tokenizer", "--data.strict", "true"], "no --data.strict for a tokenizer of texts"),
        (["validate", "{run}/tokenizer", "--data.path", "nowhere.txt"], "expected a file or folder of text"),
        (["validate", "{run}/tokenizer", "--data.path", "blank.txt"], "expected text in blank.txt, got none"),
        (["validate", "{run}/tokenizer", "--batch_size", "0"], "expected batch_size >= 1"),
        (["inspect", "copy"], "expected --data.path, since copy has no record of its training data"),
        (["validate", "moved"], "expected the held-out documents of the data that moved was trained on"),
        (["validate", "changed"], "texts.jsonl has changed; give others with --data.path"),
        (["validate", "none", "--data.path", "blank.txt"], "expected a tokenizer with a vocabulary in none"),
        (["export", "{run}/tokenizer", "--size", "[8,8]"], "no --size for a tokenizer of texts"),
        (["export", "none"], "expected a tokenizer with a vocabulary"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_wrong_input(words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("blank.txt").write_text(" \n\n")
    tokenizer = TextTokenizer.from_pretrained(run / "tokenizer")
    trained = tokenizer.trained
    assert trained is not None
    tokenizer.save_pretrained("copy", {})
    tokenizer.save_pretrained("moved", {**trained, "data": {**trained["data"], "path": "./gone.jsonl"}})
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in toy_documents(60, 3)))
    tokenizer.save_pretrained("changed", {**trained, "data": {**trained["data"], "path": "texts.jsonl"}})
    tokenizer.use(None).save_pretrained("none")
    before = sorted(map(str, Path().rglob("*")))
    said = wrong([word.format(run=run) for word in words], capsys)
    assert message in said.replace("\n", " ") and said.count("error: ") == 1
    assert sorted(map(str, Path().rglob("*"))) == before


def test_figures_of_a_model_with_latents() -> None:
    """``fit text`` measures by importance sampling, which is at most the bound."""
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in toy_documents(60, 2)))
    words = ["fit", "text", "--data.path", "texts.jsonl", "--model", "gritvq.text.trace", "--model.dim", "4"]
    for name, value in {"width": 16, "depth": 1, "num_heads": 2, "length": 64}.items():
        words += [f"--model.{name}", f"{value}"]
    words += ["--data.vocabulary", "280", "--data.segmentation.max_tokens", "8", "--plan.accelerator", "cpu"]
    assert main([*words, "--plan.max_steps", "2", "--out", "run"]) == 0
    found = numbers_of("run")
    assert found["draws_of_latents"] == 8 and 1 <= found["effective_samples"] <= 8 and found["units"] == 4
    assert found["nats_per_token"] < found["elbo_nats_per_token"]
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]))
    total = found["reconstruction_nats_per_token"] * found["tokens"] + found["kl_per_segment"] * found["segments"]
    assert found["elbo_nats_per_token"] == pytest.approx(total / found["tokens"])
