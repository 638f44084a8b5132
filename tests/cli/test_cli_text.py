"""``fit text`` on small texts, ``encode``, ``decode`` and ``generate`` for them, and wrong files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gritvq import Tokenizer, fsq, rq
from gritvq.cli import main
from gritvq.items import ResidualKMeans
from gritvq.priors import sample_seeds
from gritvq.text import (
    Corpus,
    Segmentation,
    Subwords,
    TextFormat,
    TextTokenizer,
    TraceModel,
    Writing,
    language_model,
    segment_tokenizer,
    trace,
)
from gritvq.tokens import TokenRow, read_tokens, token_files, write_tokens
from program import wrong
from text_common import lively, toy_documents

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
    told = wrong(words_for("segment_tokenizer"), capsys)
    assert "the following arguments are required: quantizer" in told
    assert "subclass" not in told and "Namespace" not in told  # of the parser's other attempt
    Path("a.txt").write_text("word " * 4000)
    assert main([*words, "--data.path", "a.txt", "--out", "line"]) == 0
    told = wrong(["validate", "line/tokenizer", "--out", "measured"], capsys)
    assert "of a single one the last pieces are held out in training only); give others with --data.path" in told
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
    "width": (b"one. two.\n\nthree.\n", ["--model.width", "17"], "error: expected width to be a multiple"),
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


# --- encode, decode, generate -----------------------------------------------------------------------------------------

SIZES: dict[str, Any] = dict(width=16, depth=1, num_heads=2, length=64)
FORM = TextFormat(Subwords.train([], 256), Segmentation(max_tokens=16, max_segments=4))


def saved_tokenizer(folder: str, seed: int = 0, quantizer: Any = None) -> TextTokenizer:
    torch.manual_seed(seed)
    quantizer = rq(4, 16, num_levels=2) if quantizer is None else quantizer
    tokenizer = segment_tokenizer(quantizer, FORM.vocab_size, **SIZES).use(FORM).eval()
    nn.init.normal_(tokenizer.decoder.memory.weight)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_texts_into_tokens_and_back(ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = saved_tokenizer("codes")
    texts = ["One. Two! Three? Four. Five. Six.", "caf\u00e9\u2028 x", "a line. And more."]
    lines: list[Any] = [*texts, " ", ["its own", "segments"], None]
    Path("a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in lines))
    words = ["encode", "a.jsonl", "--tokenizer", "codes", "--out", f"t.{ending}", "--batch_size", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "bits per character" in said and "8.00" in said
    rows = read_tokens(f"t.{ending}")
    assert [row.name for row in rows] == [f"00000{n}" for n in range(4)]
    for row, text in zip(rows, texts, strict=False):
        assert torch.equal(row.tokens, tokenizer.encode(text))
    assert torch.equal(rows[3].tokens, tokenizer.encode([["its own", "segments"]])[0]) and len(rows[3].tokens) == 2
    assert {row.columns["tokenizer"] for row in rows} == {tokenizer.fingerprint()}
    assert [row.columns["source"] for row in rows] == [f"a.jsonl, row {n}" for n in (1, 2, 3, 5)]
    decoded = tokenizer.decode([row.tokens for row in rows])
    back = ["decode", f"t.{ending}", "--tokenizer", "codes", "--out"]
    assert main([*back, "back.jsonl"]) == 0
    found = [json.loads(line) for line in Path("back.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert found == [{"name": row.name, "text": text} for row, text in zip(rows, decoded, strict=True)]
    assert main([*back, "back.txt"]) == 0
    whole = Path("back.txt").read_text(encoding="utf-8")
    assert whole == "".join(f"{text.strip(chr(10))}\n\n" for text in decoded)
    before = Path("back.txt").read_bytes()
    assert "--overwrite true" in wrong([*back, "back.txt"], capsys) and Path("back.txt").read_bytes() == before
    assert main([*back, "back.txt", "--overwrite", "true"]) == 0


def test_plain_text_in_units_and_shards() -> None:
    saved_tokenizer("codes")
    Path("a.txt").write_bytes("one. two.\nthr\u00e9e.\n\nfour.".encode("latin-1"))
    words = ["encode", "a.txt", "--tokenizer", "codes", "--encoding", "latin-1"]
    assert main([*words, "--unit", "line", "--out", "t", "--rows_per_file", "2"]) == 0
    assert [len(read_tokens(file)) for file in token_files("t")] == [2, 1]
    assert main(["decode", "t", "--tokenizer", "codes", "--out", "back.jsonl"]) == 0
    assert [row["name"] for row in written("back.jsonl")] == ["000000", "000001", "000002"]
    assert main([*words, "--out", "t.npz"]) == 0 and len(read_tokens("t.npz")) == 2
    assert main([*words, "--unit", "file", "--out", "u.npz"]) == 0 and len(read_tokens("u.npz")) == 1


def test_plain_text_where_documents_do_not_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_tokenizer("codes")
    write_tokens("t.npz", [TokenRow(f"{n}", torch.zeros(1, 2, dtype=torch.int64)) for n in range(3)])
    monkeypatch.setattr(TextTokenizer, "decode", lambda *_: ["one\n\ntwo", "", "three\n"])
    for ending, warned in (("txt", 1), ("jsonl", 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main(["decode", "t.npz", "--tokenizer", "codes", "--out", f"back.{ending}"]) == 0
        assert capsys.readouterr().err.count("2 texts are empty or have an empty line within") == warned
    assert Path("back.txt").read_text() == "one\n\ntwo\n\n\n\nthree\n\n"
    assert [row["text"] for row in written("back.jsonl")] == ["one\n\ntwo", "", "three\n"]


def test_the_default_names_of_files() -> None:
    saved_tokenizer("codes", quantizer=fsq(4, 16))
    assert main(["encode", "texts.jsonl", "--tokenizer", "codes"]) == 0 and len(read_tokens("tokens.npz")) == 60
    assert main(["decode", "tokens.npz", "--tokenizer", "codes"]) == 0
    assert len(Path("decoded.jsonl").read_text(encoding="utf-8").split("\n")) == 61


def test_a_pretrained_body_and_its_vocabulary_from_a_folder() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=64, vocab_size=FORM.subwords.size)
    transformers.GPT2Model(config).save_pretrained("gpt2")
    FORM.subwords.save("gpt2/tokenizer.json")
    body = {"class_path": "gritvq.text.TextTransformer.from_folder", "init_args": {"folder": "gpt2"}}
    parts = {
        "decoder": {"class_path": "gritvq.text.SegmentDecoder", "init_args": {"dim": 4, "transformer": body}},
        "encoder": {"class_path": "gritvq.text.SegmentEncoder", "init_args": {"transformer": body}},
        "latents": {"class_path": "gritvq.text.GaussianLatents", "init_args": {"dim": 4, "context_dim": 16}},
    }
    settings = {
        "model": {"class_path": "gritvq.text.TraceModel", "init_args": parts},
        "data": {"path": "texts.jsonl", "vocabulary": "gpt2", "segmentation": {"max_tokens": 8}},
        "plan": {"max_steps": 2, "accelerator": "cpu"},
    }
    Path("settings.yaml").write_text(json.dumps(settings))
    assert main(["fit", "text", "--config", "settings.yaml", "--out", "run"]) == 0
    model = TraceModel.from_pretrained("run/text-model")
    assert model.format is not None and model.format.subwords.fingerprint == FORM.subwords.fingerprint
    assert model.vocab_size == FORM.vocab_size


def save_models() -> None:
    lively(trace(FORM.vocab_size, dim=4, **SIZES)).use(FORM).save_pretrained("run/text-model")
    lively(language_model(FORM.vocab_size, **SIZES)).use(FORM).save_pretrained("lm/text-model")
    saved_tokenizer("codes-run/tokenizer")
    saved_tokenizer("codes")
    ids = ResidualKMeans(codebook_size=2, num_levels=1)
    ids.fit(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    ids.save_pretrained("ids")
    write_tokens("pictures.npz", [TokenRow("a", torch.zeros(2, 2, 2, dtype=torch.int64))])
    write_tokens("large.npz", [TokenRow("a", torch.full((2, 2), 16))])
    write_tokens("none.npz", [TokenRow("a", torch.full((2, 2), -1))])
    write_tokens("other.npz", [TokenRow("a", torch.zeros(2, 2, dtype=torch.int64), {"tokenizer": "f" * 64})])


def written(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def test_texts_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    save_models()
    assert main(["generate", "run", "--num", "5", "--top_p", "0.9", "--batch_size", "2", "--out", "a.jsonl"]) == 0
    assert "top-p 0.9, beam 1, seed 0" in capsys.readouterr().out
    assert main(["generate", "run", "--num", "3", "--top_p", "0.9", "--out", "b.jsonl"]) == 0
    one, other = written("a.jsonl"), written("b.jsonl")
    assert one[:3] == other and len({row["text"] for row in one}) > 1
    assert one[0]["sampling"] == {"temperature": 1.0, "top_k": None, "top_p": 0.9, "beam": 1, "seed": 0}
    model = TraceModel.from_pretrained("run/text-model")
    writing = Writing(top_p=0.9, seeds=sample_seeds(0, 5), max_tokens=16, max_segments=4)
    assert [row["text"] for row in one] == FORM.texts(model.generate(5, writing=writing))
    assert len(list(Corpus("a.jsonl"))) >= 4  # what is written can be read again
    assert main(["generate", "run", "--num", "3", "--top_p", "0.9", "--seed", "1", "--out", "c.jsonl"]) == 0
    assert [row["text"] for row in written("c.jsonl")] != [row["text"] for row in other]


@pytest.mark.parametrize("run", ["run", "lm"])
def test_texts_from_a_prompt(run: str) -> None:
    save_models()
    words = ["generate", run, "--num", "3", "--prompt", "A cat sat. It slept."]
    assert main([*words, "--out", "a.jsonl"]) == 0
    rows = written("a.jsonl")
    assert all(row["text"].startswith(row["prompt"]) and len(row["text"]) > 20 for row in rows)
    assert main([*words, "--beam", "2", "--out", "b.md"]) == 0
    page = Path("b.md").read_text(encoding="utf-8")
    assert page.startswith('## Texts from "A cat sat. It slept." on (beam 2, seed 0)') and page.count("    A cat") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "nowhere.txt", "--tokenizer", "codes"], "expected a file or folder of text, got 'nowhere.txt'"),
        (["encode", "texts.jsonl", "--tokenizer", "codes", "--column", "body"], "expected the column 'body'"),
        (["encode", "texts.jsonl", "--tokenizer", "codes", "--size", "8"], "no --size for a tokenizer of texts, got 8"),
        (["encode", "texts.jsonl", "--tokenizer", "codes", "--encoding", "utf9"], "expected the name of an encoding"),
        (["encode", "texts.jsonl", "--tokenizer", "codes", "--batch_size", "0"], "expected batch_size >= 1, got 0"),
        (["encode", "blank.txt", "--tokenizer", "codes"], "expected text in blank.txt, got none"),
        (["encode", "latin.txt", "--tokenizer", "codes"], "expected text in utf-8, got bytes in latin.txt"),
        (["encode", "texts.jsonl", "--tokenizer", "ids"], "expected vectors of items (.npy, .parquet, .tar) for this"),
        (["decode", "none.npz", "--tokenizer", "ids"], "got a ResidualKMeans; for items use 'gritvq semantic-ids"),
        (["encode", "texts.jsonl", "--tokenizer", "run/text-model"], "run/text-model"),
        (["encode", "texts.jsonl", "--tokenizer", "run"], "got run without one; there is one in run/text-model"),
        (["decode", "nowhere.npz", "--tokenizer", "codes"], "expected a token file, got nowhere.npz"),
        (["decode", "pictures.npz", "--tokenizer", "codes"], "expected indices (T, 2) of a text, none below 0"),
        (["decode", "none.npz", "--tokenizer", "codes"], "expected indices (T, 2) of a text, none below 0"),
        (["decode", "large.npz", "--tokenizer", "codes"], "expected indices below (16, 16)"),
        (["decode", "other.npz", "--tokenizer", "codes"], "got a of another, ffffffffffff; give the tokenizer"),
        (["decode", "none.npz", "--tokenizer", "codes", "--out", "a.csv"], "ending in .jsonl or .txt for texts"),
        (["generate", "codes-run"], "or one of a model by 'gritvq fit text', got codes-run, which has no prior/"),
        (["generate", "run", "--out", "a.txt"], "ending in .jsonl or .md for texts, got 'a.txt'"),
        (["generate", "run", "--classes", "[a]"], "no --classes for a run of 'gritvq fit text'"),
        (["generate", "run", "--top_p", "2"], "top_p"),
        (["generate", "run", "--seed", "-1"], "expected seed >= 0, got -1"),
        (["generate", "run", "--beam", "2", "--top_k", "3"], "expected --beam or settings of drawing, got both"),
        (["generate", "run", "--prompt", " "], "expected a prompt with text, got ' '"),
        (["generate", "run", "--prompt", "caf\udce9"], r"a prompt of characters, got 'caf\udce9', with bytes"),
        (["generate", "run", "--prompt", "One. Two. Three. Four."], "a prompt of fewer than 4 segments"),
        (["generate", "run", "--prompt", "A cat sat. " * 30], "a prompt of fewer than 4 segments"),
        (["generate", "run", "--num", "0"], "expected num >= 1, got 0"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_wrong_input_of_the_verbs(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_models()
    Path("blank.txt").write_text(" \n\n")
    Path("latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    before = sorted(map(str, Path().rglob("*")))
    said = wrong(words, capsys)
    assert message in said.replace("\n", " ") and said.count("error: ") == 1
    assert sorted(map(str, Path().rglob("*"))) == before
