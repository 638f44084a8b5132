"""The benchmark of sampling measures every way to sample."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks.speed import sampling

from gritvq.results import read_results


def test_the_command_writes_every_way_to_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--quick", "--out", str(tmp_path), "--side", "3", "--width", "16", "--depth", "1", "--samples", "2"]
    monkeypatch.setattr(sys, "argv", ["sampling", *options])
    sampling.main()
    (path,) = tmp_path.glob("sampling_*.csv")
    runs = {run["method"]: run for run in read_results(path)}
    assert set(runs) == {"autoregressive, cache", "autoregressive, no cache", "masked, 12 steps"}
    for run in runs.values():
        assert 0 < run["seconds_p20"] <= run["seconds"] <= run["seconds_p80"] and "tokens=9" in run["settings"]
        assert run["samples_per_second"] == pytest.approx(2 / run["seconds"], rel=1e-4)
    monkeypatch.setattr(sys, "argv", ["sampling", "--quick"])
    with pytest.raises(SystemExit):
        sampling.main()
