"""The benchmark of VQRAE: its words, and two steps of each of its trainings on few small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.quality import vqrae

from gritvq.results import read_results


def test_a_quick_look_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vqrae, "runs", lambda *_: [])
    monkeypatch.setattr(vqrae, "RESULTS", tmp_path)
    words = ["--data", "cifar10", "--seeds", "0", "--steps", "2"]
    with pytest.raises(SystemExit, match="2"):
        vqrae.main(words)
    assert "expected --out with --steps" in capsys.readouterr().err
    vqrae.main([*words, "--out", str(tmp_path / "look.csv")])
    vqrae.main(words[:4])


def test_two_steps_of_everything(color_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"WIDTH": 16, "CODES": 32, "NUM_PROBED": 40, "CODE_WIDTHS": (8, 24), "WEIGHTS": (0.0, 1.0)}
    for name, size in sizes.items():
        monkeypatch.setattr(vqrae, name, size)
    monkeypatch.setattr(vqrae, "MODEL", {**vqrae.MODEL, "hidden_size": 16, "num_hidden_layers": 1})
    started, start_from = [], vqrae.TokenizerTask.start_from

    def spied(task: Any, tokenizer: Any) -> None:
        started.append(tokenizer.quantizer.quantizer.dim)
        start_from(task, tokenizer)

    monkeypatch.setattr(vqrae.TokenizerTask, "start_from", spied)
    words = ["--data", str(color_pictures), "--seeds", "3", "--steps", "2", "--out", str(tmp_path / "look.csv")]
    vqrae.main(words)
    rows = read_results(tmp_path / "look.csv")
    first, second = rows[:2], rows[2:]
    assert [row["settings"] for row in first] == ["stage=1 code_dim=8", "stage=1 code_dim=24"]
    assert [row["settings"] for row in second] == ["stage=2 code_dim=24 distill=0", "stage=2 code_dim=24 distill=1"]
    assert {(row["data"], row["seed"], row["codebook_size"]) for row in rows} == {("cifar10", 3, 32)}
    (before,) = {row["probe_before"] for row in rows}
    assert started == [24, 24]  # both of stage 2 begin with the widest of stage 1
    assert before > 0.1  # chance, with ten classes
    assert all(row["feature_shift"] == 0 and row["probe"] == before for row in first)
    shifts = [row["feature_shift"] for row in second]
    assert min(shifts) > 0 and shifts[0] != shifts[1]  # the distillation's weight is another one
    monkeypatch.setattr(vqrae, "runs", None)
    vqrae.main(words)  # nothing is missing
    assert read_results(tmp_path / "look.csv") == rows
