"""The benchmark of VQRAE: its words."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.quality import vqrae


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
