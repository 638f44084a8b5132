"""The drift toy benchmark: its start, its drifts, its bookkeeping, and the claims that must hold."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.quality import drift

from gritvq import Codebook, transvq
from gritvq.results import read_results, write_results
from zoo import SEEDS, quick

# Half a minute and four seconds of regression; the bridge of 8 codes per token is of their kind.
SLOW = {"bridge, 1 code per token", "transvq"}


@pytest.mark.parametrize("name", quick(*(drift.METHODS.keys() - SLOW), of={name: name for name in drift.METHODS}))
def test_every_method_starts_from_the_same_codes_in_full_use(name: str) -> None:
    codes = drift.start(drift.METHODS["table"](2, 128), 0).codebook.codes()
    quantizer = drift.METHODS[name](2, 128)
    book: Codebook = drift.start(quantizer, 0).codebook
    # A regression ends below its error, not after so many steps: else rounding decides how near it comes. The largest
    # distance is at most the root of their sum of squares; codes that can be written differ by rounding.
    distance = (book.codes() - codes).detach().norm(dim=1)
    assert float(distance.max()) <= (1e-4 if book.writes else math.sqrt(128 * drift.START_ERROR))
    assert torch.pdist(codes).min() > 20 * math.sqrt(128 * drift.START_ERROR)
    latents = drift.cloud("expand", 0.0, 20_000, torch.Generator().manual_seed(7))
    assert drift.measured(quantizer, latents)["usage"] == 1.0
    settings = drift.grid(name)
    optimizer = drift.optimizer_for(quantizer, settings[-1])
    trained = {p for p in quantizer.parameters() if p.requires_grad}
    assert (optimizer is None) == (not trained) == (settings == [{}])
    if optimizer is not None:
        rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert set(rates) == trained and len(rates) == len(optimizer.param_groups)
        table = dict(quantizer.named_parameters()).get("codebook.base")
        for p, rate in rates.items():
            assert rate == (settings[-1]["table_rate"] if p is table and trained & {p} else settings[-1]["rate"])


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("translate", (6.0, 8.0), 1.0), ("shrink", (0.0, 0.0), 0.1), ("expand", (0.0, 0.0), 10.0)],
)
def test_clouds(name: str, mean: tuple[float, float], std: float) -> None:
    for progress, center, spread in ((0.0, (0.0, 0.0), 1.0), (1.0, mean, std)):
        latents = drift.cloud(name, progress, 50_000, torch.Generator().manual_seed(0))
        # Standard errors of 50,000 draws: .0045 of the spread for a mean, .0032 for a spread.
        torch.testing.assert_close(latents.mean(0), torch.tensor(center), rtol=0, atol=0.02 * spread)
        torch.testing.assert_close(latents.std(0), torch.full((2,), spread), rtol=0.02, atol=0)
    assert math.hypot(*drift.DRIFTS["translate"](1.0)[0]) == 10.0


def outcomes(quantizer: Any, settings: dict[str, float], seed: int) -> list[float]:
    """Usage after translation and after shrinking."""
    torch.manual_seed(seed)
    started = drift.start(quantizer(2, 128), seed)
    return [drift.follow(copy.deepcopy(started), name, settings, seed)["usage"] for name in ("translate", "shrink")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("grit_vq, hidden_dim 256", {"rate": 0.001, "table_rate": 0.02}),  # by its map alone
        ("grit_vq, revival", {"rate": 0.005}),
    ],
)
def test_grit_vq_keeps_its_codes(name: str, settings: dict[str, float], seed: int) -> None:
    assert settings in drift.grid(name)
    # Each code of 128 is .0078: two may be lost to rounding, one was in such trials.
    used = outcomes(drift.METHODS[name], settings, seed)
    assert min(used) >= 0.98, used


@pytest.mark.soak  # half a minute a seed
@pytest.mark.parametrize("seed", range(3))
def test_transvq_keeps_nearly_every_code(seed: int) -> None:
    # Five codes of 128 may be lost; at most two were when draws were changed by rounding.
    used = outcomes(lambda d, k: transvq(d, k, width=32), {"rate": 0.005}, seed)
    assert min(used) >= 0.96, used


def test_a_plain_table_is_left_behind() -> None:
    used = outcomes(drift.METHODS["table"], drift.FIXED, 0)  # .18 and .50 with draws changed by rounding
    assert used[0] < 0.3 and used[1] < 0.6, used


def test_the_best_settings_have_the_largest_usage_then_the_smallest_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "RATES", (0.002, 0.005, 0.02, 0.05))
    numbers = {"rate=0.002": (0.5, 0.1), "rate=0.005": (0.9, 0.3), "rate=0.02": (0.9, 0.2), "rate=0.05": (0.4, 0.0)}
    tuned = [
        {"method": "table", "settings": settings, "usage": usage, "error": error}
        for settings, (usage, error) in numbers.items()
    ]
    assert drift.best_settings(tuned, "table") == {"rate": 0.02}
    assert drift.best_settings([], "table, average .9") == {}


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    runs = [
        {"method": "a, b", "drift": name, "settings": "-", "codebook_size": 128, "seed": 1, "usage": 0.5, "error": 2.0}
        for name in drift.DRIFTS
    ]
    about = drift.circumstances("dim=2", "cloud")
    read = read_results(write_results(tmp_path / "r.csv", runs, about, drift.IDENTITY), drift.IDENTITY)
    assert read == [{**run, **about} for run in runs]
