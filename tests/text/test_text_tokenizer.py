"""The tokenizer of text: indices of segments, saving, training, programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gritvq import Tokenizer, fsq, gm_vq, grit_vq, msvq, rq, sq_vae, vaevq_paper, vq_vae
from gritvq.export import load_program
from gritvq.priors import sample_seeds
from gritvq.text import (
    Segmentation,
    SegmentDecoder,
    SegmentEncoder,
    TextData,
    TextTokenizer,
    TextTokenizerTask,
    TextTransformer,
    Writing,
    segment_tokenizer,
)
from gritvq.training import RunFolder, TrainingPlan, train
from gritvq.training.run import check_checkpoint
from text_common import toy_documents, toy_format

FORM = toy_format(max_tokens=8, max_segments=3)
SIZES: dict[str, Any] = dict(width=16, depth=1, num_heads=2, length=64, dropout=0.0)
TEXTS = ["One. Two! And three? Four. Five.", "", "a long line without any end of a sentence", "x", " \n"]


def made(quantizer: Any = None, form: Any = FORM, **more: Any) -> TextTokenizer:
    torch.manual_seed(0)
    quantizer = vq_vae(4, 16) if quantizer is None else quantizer
    tokenizer = segment_tokenizer(quantizer, form.vocab_size, **{**SIZES, **more}).eval()
    return tokenizer.use(form)


@pytest.mark.parametrize("make", [lambda: vq_vae(4, 16), lambda: rq(4, 16, num_levels=3), lambda: fsq(4, 16)])
def test_texts_have_indices_for_each_segment_and_any_indices_are_a_text(make: Any) -> None:
    tokenizer = made(make())
    tokens = tokenizer.encode(TEXTS)
    segments = [sum(int(FORM.batch_of([piece]).num_segments[0]) for piece in own) for own in FORM.tokens(TEXTS)]
    channels = len(tokenizer.quantizer.codebook_sizes)
    assert [tuple(each.shape) for each in tokens] == [(count, channels) for count in segments]
    assert segments[0] > 3 and segments[1] == segments[4] == 0 and int(torch.cat(tokens).min()) >= 0
    written = tokenizer.decode(tokens)
    assert written[1] == written[4] == "" and all(isinstance(text, str) for text in written)
    for text, own, again in zip(TEXTS, tokens, written, strict=True):
        assert torch.equal(tokenizer.encode(text), own) and tokenizer.decode(own) == again


def test_texts_do_not_depend_on_those_beside_them() -> None:
    tokenizer = made(vq_vae(4, 64))
    torch.nn.init.normal_(tokenizer.decoder.memory.weight)
    tokens = [torch.randint(64, (count, 1)) for count in (5, 1, 3, 7)]
    assert tokenizer.decode(tokens) == [tokenizer.decode(own) for own in tokens]
    assert tokenizer.decode(tokens, Writing(seeds=1, temperature=2.0)) != tokenizer.decode(tokens)
    assert len({tokenizer.decode(torch.full((1, 1), code)) for code in range(64)}) > 4


def test_drawn_texts_do_not_depend_on_those_beside_them() -> None:
    tokenizer, drawn = made(vq_vae(4, 64)), Writing(temperature=2.0, seeds=7)
    tokens = [torch.zeros(1, 1).long()] * 64 + [torch.zeros(7, 1).long()] * 2  # more than are decoded at once
    texts = tokenizer.decode(tokens, drawn)
    assert len(set(texts[:2] + texts[62:])) == 6 and texts == tokenizer.decode(tokens, drawn)
    seeds = sample_seeds(7, 66)
    assert texts == tokenizer.decode(tokens, replace(drawn, seeds=seeds))
    for number in (1, 63, 65):
        assert tokenizer.decode(tokens[number], replace(drawn, seeds=[seeds[number]])) == texts[number]


def test_texts_from_a_stream_and_indices_behind_the_end() -> None:
    tokenizer = made()
    assert [own.tolist() for own in tokenizer.encode(iter(TEXTS))] == [own.tolist() for own in tokenizer.encode(TEXTS)]  # type: ignore[call-overload]
    tokens = torch.tensor([[3], [5], [-1], [-1]])
    assert tokenizer.decode(tokens) == tokenizer.decode(tokens[:2]) and tokenizer.decode(tokens[2:]) == ""


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = made(grit_vq(4, 32))
    tokenizer.save_pretrained(tmp_path / "tokenizer", {"steps": 1})
    loaded = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert isinstance(loaded, TextTokenizer) and loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.trained == {"steps": 1} and loaded.format is not None
    assert loaded.format.settings() == FORM.settings()
    folded = loaded.fold()
    for one in (loaded, folded):
        assert all(map(torch.equal, one.encode(TEXTS), tokenizer.encode(TEXTS)))
        assert one.decode(one.encode(TEXTS)) == tokenizer.decode(tokenizer.encode(TEXTS))
    other = made(grit_vq(4, 32), toy_format(max_tokens=9, max_segments=3))
    other.load_state_dict(tokenizer.state_dict())
    assert other.fingerprint() != tokenizer.fingerprint()  # other segments are other tokens
    config = json.loads((tmp_path / "tokenizer" / "config.json").read_text())
    assert config["text"]["segmentation"] == {"by": "sentence", "max_tokens": 8, "max_segments": 3}


@pytest.mark.parametrize(
    (
        "architecture",
        "format",
    ),  # the program gritvq export writes GPT-2's as ONNX, in tests/cli/test_cli_text_measure.py
    [
        ("gpt2", "torch"),
        pytest.param("llama", "torch", marks=pytest.mark.soak),
        pytest.param("llama", "onnx", marks=pytest.mark.soak),
    ],
)
def test_the_encoder_as_a_program(architecture: Any, format: Any, tmp_path: Path) -> None:
    tokenizer = made(rq(4, 16, num_levels=2), architecture=architecture)
    program = load_program(tokenizer.export(tmp_path, format))
    for texts in (["One. Two.", "x", "One. Two. Three."], ["abc d"]):
        batch = FORM.batch(texts)
        found = program(batch.tokens.masked_fill(~batch.valid, -1))
        assert found.shape == (len(texts), 3, 2)
        for text, indices in zip(texts, found, strict=True):
            own = tokenizer.encode(text)
            assert torch.equal(indices[: len(own)], own) and bool((indices[len(own) :] == -1).all())


def test_what_does_not_fit() -> None:
    body = TextTransformer(20, width=16, depth=1, num_heads=2)
    for parts, message in (
        ((SegmentEncoder(body, 3), vq_vae(4, 8), SegmentDecoder(body, 4)), "expected encoder.dim=4 .* got 3"),
        ((SegmentEncoder(body, 4), vq_vae(4, 8), SegmentDecoder(body, 3)), "expected decoder.dim=4 .* got 3"),
        ((SegmentEncoder(body, 4), msvq(4, 8), SegmentDecoder(body, 4)), "a quantizer of single vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            TextTokenizer(*parts)
    tokenizer = made()
    for wrong, message in (
        (lambda: tokenizer.encode([3]), "expected text, got int"),  # type: ignore[list-item]
        (lambda: tokenizer.decode(torch.zeros(3, 2).long()), r"expected indices \(T, 1\) of a text, got \(3, 2\)"),
        (lambda: tokenizer.decode(torch.full((3, 1), 16)), "16"),
        (lambda: tokenizer.decode(torch.tensor([[3], [-1], [5]])), "expected -1 from the end of a text on"),
        (lambda: segment_tokenizer(vq_vae(4, 8), 20, **SIZES).encode("a"), "expected a tokenizer with a vocabulary"),
        (lambda: tokenizer.use(toy_format(max_segments=9)), "expected documents of at most 64 tokens"),
        (lambda: TextTokenizerTask(made(vaevq_paper(4, 8))), "a quantizer with the objective .* got 'two_path'"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.fixture
def data(tmp_path: Path) -> TextData:
    lines = (json.dumps({"text": document}) for document in toy_documents(60, 2))
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    return TextData(
        str(tmp_path / "texts.jsonl"), vocabulary=280, batch_size=8, segmentation=Segmentation(max_tokens=8)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [lambda: grit_vq(4, 16), lambda: sq_vae(4, 16), lambda: gm_vq(4, 16)])
def test_training_goes_on_bitwise(make: Any, data: TextData, tmp_path: Path) -> None:
    def task() -> TextTokenizerTask:  # of a model in eval mode, as loaded ones are
        found = TextTokenizerTask(made(make(), data.format), warmup_steps=2)
        found.check_data(data)
        return found

    plan = TrainingPlan(max_steps=12, validate_every=6, checkpoint_every=6, accelerator="cpu")
    whole, again = task(), task()
    train(whole, data, plan, folder=tmp_path / "run", progress=False)
    run = RunFolder(tmp_path / "run")
    train(again, data, plan, resume=run.checkpoints / "step-6.ckpt", progress=False)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    loaded = TextTokenizer.from_pretrained(run.tokenizer)
    assert loaded.trained is not None and loaded.trained["steps"] == 12
    assert whole.tokenizer.training and int(whole.tokenizer.encoder.standardize.mean.count_nonzero())  # type: ignore[union-attr,operator]
    assert all(map(torch.equal, loaded.encode(["cat."]), whole.tokenizer.eval().encode(["cat."])))
    logged = next(run.logs.glob("*/metrics.csv")).read_text()
    assert "val/nats_per_token" in logged and "val/usage" in logged and "train/perplexity" in logged
    whole.tokenizer.format = toy_format()
    with pytest.raises(ValueError, match="expected a checkpoint of this vocabulary"):
        check_checkpoint(whole, plan, run.last_checkpoint)
    groups = whole.parameter_groups()
    assert sum(len(group["params"]) for group in groups) == len({id(p) for p in whole.parameters() if p.requires_grad})
