"""A prior of texts: ``encode``, ``fit prior`` and ``generate``, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gritvq import rq
from gritvq.cli import main
from gritvq.priors import Prior, TokenData, sample_seeds
from gritvq.text import Corpus, Segmentation, Subwords, TextFormat, TextTokenizer, segment_tokenizer
from gritvq.tokens import TokenRow, read_tokens, write_tokens
from program import wrong
from text_common import toy_documents

pytestmark = pytest.mark.filterwarnings("ignore")
FORM = TextFormat(Subwords.train([], 256), Segmentation(max_tokens=16, max_segments=2))
SMALL = ["--prior.width", "16", "--prior.depth", "1", "--prior.num_heads", "2", "--data.batch_size", "8"]
SMALL += ["--plan.max_steps", "3", "--plan.accelerator", "cpu"]


def new_tokenizer(seed: int) -> TextTokenizer:
    torch.manual_seed(seed)
    tokenizer = segment_tokenizer(rq(4, 16, num_levels=2), FORM.vocab_size, width=16, depth=1, num_heads=2, length=64)
    nn.init.normal_(tokenizer.decoder.memory.weight)
    return tokenizer.use(FORM).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers, 60 documents of one to three sentences, their tokens, and a run of a prior."""
    folder = tmp_path_factory.mktemp("made")
    new_tokenizer(0).save_pretrained(folder / "tokenizer")
    new_tokenizer(1).save_pretrained(folder / "other")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in toy_documents(60, 2)))
    tokenizer, tokens = str(folder / "tokenizer"), str(folder / "tokens.npz")
    assert main(["encode", str(folder / "texts.jsonl"), "--tokenizer", tokenizer, "--out", tokens]) == 0
    words = ["fit", "prior", "--tokenizer", tokenizer, "--data.train", tokens, *SMALL]
    assert main([*words, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


@torch.no_grad()
def test_metrics_are_those_of_held_out_documents(made: Path) -> None:
    numbers = json.loads((made / "run" / "metrics.json").read_text())
    prior = Prior.from_pretrained(made / "run" / "prior")
    data = TokenData(made / "tokens.npz", batch_size=8, length=2)
    held = torch.cat([batch.indices for batch in data.val_dataloader()])
    nats, segments = -float(prior.log_prob(held).sum()), int((held[..., 0] >= 0).sum())
    assert prior.layout.ragged and prior.layout.shape == (2,) and prior.layout.vocabulary.codebook_sizes == (17, 16)
    documents = [n for n, row in enumerate(read_tokens(made / "tokens.npz")) for _ in row.tokens.split(2)]
    count = len({documents[row] for row in data._held_rows})  # those of three sentences are two rows
    assert numbers["documents"] == count < len(held) and numbers["segments"] == segments
    assert numbers["nats_per_document"] == pytest.approx(nats / count, rel=1e-5)
    assert numbers["bits_per_segment"] == pytest.approx(nats / math.log(2) / segments, rel=1e-5)
    assert numbers["bits_per_segment_at_fixed_length"] == 8
    ends = int((held[:, -1, 0] < 0).sum())
    assert numbers["nats_per_token"] == pytest.approx(nats / (2 * segments + ends), rel=1e-5)
    parts = sum(math.ceil(len(row.tokens) / 2) for row in read_tokens(made / "tokens.npz"))
    rows = json.loads((made / "run" / "data.json").read_text())["rows"]
    assert rows + len(held) == parts > 60  # documents of three sentences are two samples
    page = (made / "run" / "texts.md").read_text()
    assert page.startswith("## Samples (codes drawn from the prior") and page.count("\n12.\n") == 1


def test_equal_seeds_give_equal_texts_whatever_the_batch_size(made: Path) -> None:
    words = ["generate", str(made / "run"), "--top_p", "0.9"]
    assert main([*words, "--num", "7", "--batch_size", "3", "--out", "a.jsonl"]) == 0
    assert main([*words, "--num", "4", "--out", "b.jsonl"]) == 0
    rows = written("a.jsonl")
    assert rows[:4] == written("b.jsonl") and [row["number"] for row in rows] == list(range(7))
    assert rows[0]["sampling"] == {"temperature": 1.0, "top_k": None, "top_p": 0.9, "seed": 0}
    prior, tokenizer = Prior.from_pretrained(made / "run" / "prior"), new_tokenizer(0)
    samples = prior.sample(7, top_p=0.9, generator=sample_seeds(0, 7))
    lengths = (samples[..., 0] >= 0).sum(1).tolist()
    texts = [tokenizer.decode(own[:length]) for own, length in zip(samples, lengths, strict=True)]
    assert [row["text"] for row in rows] == texts and len({*lengths}) > 1 and len({*texts}) > 1
    assert len(list(Corpus("a.jsonl"))) == sum(bool(text.strip()) for text in texts)
    assert main([*words, "--num", "4", "--seed", "1", "--out", "c.md"]) == 0
    page = Path("c.md").read_text(encoding="utf-8")
    assert page.startswith("## Texts (temperature 1.0, top-p 0.9, seed 1)") and page.count("\n4.\n") == 1


def test_a_document_without_a_segment_is_an_empty_text(made: Path) -> None:
    nothing = torch.full((2, 2), -1)
    assert new_tokenizer(0).decode([nothing, nothing]) == ["", ""]
    alone = torch.tensor([[3, 5], [-1, -1]])
    assert new_tokenizer(0).decode([nothing, alone]) == ["", new_tokenizer(0).decode(alone[:1])]


def test_texts_of_classes(made: Path) -> None:
    rows = [
        row._replace(columns={"label": ("cat", "dog")[n % 2]}) for n, row in enumerate(read_tokens(made / "tokens.npz"))
    ]
    write_tokens("tokens.parquet", rows)
    words = ["fit", "prior", "--tokenizer", str(made / "tokenizer"), "--data.train", "tokens.parquet", *SMALL]
    assert main([*words, "--interleaving", "flat", "--out", "run"]) == 0
    assert main(["generate", "run", "--num", "3", "--guidance", "2", "--out", "a.jsonl"]) == 0
    found = written("a.jsonl")
    assert [row["class"] for row in found] == ["cat", "dog", "cat"] and found[0]["sampling"]["guidance"] == 2
    assert main(["generate", "run", "--num", "2", "--classes", "[dog]", "--out", "b.jsonl"]) == 0
    assert [row["class"] for row in written("b.jsonl")] == ["dog", "dog"]


FIT = ["fit", "prior", "--tokenizer", "{made}/tokenizer", "--data.train"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*FIT[:3], "{made}/other", "--data.train", "{made}/tokens.npz"], "encode the texts again"),
        ([*FIT, "pictures.npz"], "expected indices (T, 2) of a text"),
        ([*FIT, "large.npz"], "expected indices below (16, 16)"),
        ([*FIT, "later.npz"], "expected indices below (16, 16) and -1 for masked ones, got 16; 8 was made with"),
        ([*FIT, "{made}/tokens.npz", "--interleaving", "delay"], "no delay"),
        ([*FIT, "{made}/tokens.npz", "--prior", "gritvq.priors.MaskedPrior"], "got MaskedPrior"),
        ([*FIT, "{made}/tokens.npz", "--prior.order", "random"], "expected order 'raster'"),
        ([*FIT[:3], "no-vocabulary", "--data.train", "{made}/tokens.npz"], "expected a tokenizer with a vocabulary"),
        (["generate", "{made}/run", "--prompt", "A cat."], "no --prompt for a run of 'gritvq fit prior'"),
        (["generate", "{made}/run", "--out", "texts"], "ending in .jsonl or .md for texts, got 'texts'"),
        (["generate", "{made}/run", "--classes", "[cat]"], "no --classes for an unconditional prior"),
        (["generate", "{made}/run", "--guidance", "2"], "expected guidance 1"),
        (["generate", "mixed"], "expected the tokenizer that the prior mixed/prior was trained with"),
    ],
    ids=lambda value: " ".join(value[3:])[:60] if isinstance(value, list) else "",
)
def test_wrong_input(words: list[str], message: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokens("pictures.npz", [TokenRow("a", torch.zeros(2, 2, 2, dtype=torch.int64))])
    write_tokens("large.npz", [TokenRow("a", torch.full((2, 2), 16))])
    rows = [TokenRow(f"{n}", torch.tensor([[3, 15 + (n == 8)]])) for n in range(9)]
    write_tokens("later.npz", rows)
    new_tokenizer(0).use(None).save_pretrained("no-vocabulary")
    new_tokenizer(1).save_pretrained("mixed/tokenizer")
    Prior.from_pretrained(made / "run" / "prior").save_pretrained("mixed/prior")
    before = sorted(map(str, Path().rglob("*")))
    said = wrong([word.format(made=made) for word in words], capsys)
    assert message in said.replace("\n", " ") and said.count("error: ") == 1
    assert sorted(map(str, Path().rglob("*"))) == before
