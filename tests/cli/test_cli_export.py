"""``export`` and ``doctor`` of item tokenizers, and ``export`` of priors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gritvq.cli import main
from gritvq.export import load_program
from gritvq.items import ItemTokenizer, ResidualKMeans
from gritvq.priors import AutoregressivePrior, Prior
from gritvq.tokens import TokenLayout
from program import wrong


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Vectors of items, and a tokenizer of them."""
    monkeypatch.chdir(tmp_path)
    vectors = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    np.save("item_embeddings.npy", vectors)
    ResidualKMeans(16, 2).fit(vectors).save_pretrained("run/tokenizer")
    return tmp_path


def test_an_item_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run/tokenizer", "--format", "torch", "--out", "programs"]) == 0
    said = capsys.readouterr().out
    assert "2,000 of 2,000" in said and "programs/decoder.pt2" in said
    vectors = torch.from_numpy(np.load("item_embeddings.npy"))
    tokenizer = ItemTokenizer.from_pretrained("run/tokenizer")
    assert torch.equal(load_program("programs/encoder.pt2")(vectors), tokenizer.encode(vectors))
    assert "--overwrite true" in wrong(["export", "run/tokenizer", "--format", "torch", "--out", "programs"], capsys)
    assert "no --size for a tokenizer of items" in wrong(["export", "run/tokenizer", "--size", "[8,8]"], capsys)
    assert "no --k for a tokenizer of items" in wrong(["export", "run/tokenizer", "--k", "3"], capsys)
    assert "got 'x'; give such a file" in wrong(["encode", "x", "--tokenizer", "run/tokenizer"], capsys)


def test_a_prior(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_classes": 2, "width": 16, "depth": 1, "num_heads": 2}
    AutoregressivePrior(TokenLayout((8,), (2, 3)), **settings).save_pretrained("prior-run/prior")
    assert main(["export", "prior-run", "--format", "torch", "--out", "programs"]) == 0
    said = capsys.readouterr().out
    assert "96 of 96" in said and "programs/prior.pt2" in said
    rows, classes = torch.tensor([[[3], [1], [-1], [-1], [-1], [-1]]]), torch.tensor([1])
    logits = load_program("programs/prior.pt2")(rows, classes)
    wanted = Prior.from_pretrained("prior-run/prior").logits(rows, classes)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert "no --k for a prior" in wrong(["export", "prior-run/prior", "--k", "3"], capsys)
    assert "--overwrite true" in wrong(["export", "prior-run", "--format", "torch", "--out", "programs"], capsys)


def test_doctor_of_an_item_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("run", "run/tokenizer"):
        assert main(["doctor", source, "--data.path", "item_embeddings.npy", "--num_images", "500"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{source}: nothing found") and "500 items of item_embeddings.npy" in said
    assert main(["doctor", "run"]) == 0
    assert "no data (give item embeddings with --data.path)" in capsys.readouterr().out
    tokenizer = ItemTokenizer.from_pretrained("run/tokenizer")
    tokenizer.tables[1, 4:] = 50.0  # type: ignore[index]
    tokenizer.save_pretrained("run/tokenizer")
    words = ["doctor", "run", "--data.path", "item_embeddings.npy", "--json", "found.json"]
    assert main(words) == 0
    assert "Codes are duplicates. level2: " in capsys.readouterr().out
    findings = json.loads(Path("found.json").read_text())["findings"]
    assert [(each["name"], each["part"]) for each in findings] == [
        ("codes are duplicates", "level2"),
        ("dead codes", "level2"),
    ]
    tokenizer.tables[0, :3] = torch.nan  # type: ignore[index]
    tokenizer.save_pretrained("run/tokenizer")
    assert main([*words, "--overwrite", "true"]) == 0
    findings = json.loads(Path("found.json").read_text())["findings"]
    assert [(each["name"], each["part"]) for each in findings] == [("codes are not finite", "level1")]
    assert "no --data.column for a tokenizer of items" in wrong(["doctor", "run", "--data.column", "x"], capsys)
    assert "expected a .npy file of item embeddings" in wrong(["doctor", "run", "--data.path", "none.npy"], capsys)
    np.save("others.npy", np.zeros((4, 3), np.float32))
    assert "expected embeddings (n, 8), got (4, 3)" in wrong(["doctor", "run", "--data.path", "others.npy"], capsys)
