"""The benchmark of exact scores by parallel ids compares, times and weighs both contenders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from benchmarks.speed import parallel

from gritvq.results import read_results


def test_the_command_writes_both_contenders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["parallel", "--quick", "--items", "6000", "--users", "8", "--out", str(tmp_path)])
    parallel.main()
    (path,) = tmp_path.glob("items_parallel_*.csv")
    runs = {run["method"]: run for run in read_results(path, parallel.IDENTITY)}
    assert set(runs) == {"ParallelScorer", "dense gather"} and runs["ParallelScorer"]["ratio"] == 1
    for run in runs.values():
        assert 0 < run["seconds_p20"] <= run["seconds"] <= run["seconds_p80"] and run["peak_bytes"] >= 0


def test_the_baseline_scores_every_item() -> None:
    codes = torch.randint(0, 5, (40, 3))
    log_probs = torch.randn(6, 3, 5).log_softmax(2)
    every = torch.stack([sum(log_probs[:, q, code] for q, code in enumerate(row)) for row in codes.tolist()], 1)
    wanted = every.sort(1, descending=True).values[:, : parallel.LENGTH]
    torch.testing.assert_close(parallel.dense(codes.T.contiguous(), log_probs), wanted)
