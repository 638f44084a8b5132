"""Benchmarks of items run what is missing for a data set, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from benchmarks.quality import item_recommenders, new_items, recommenders
from benchmarks.quality import items as item_tokenizers
from benchmarks.quality.common import finished

from gritvq.results import read_results, write_results


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a benchmark's program on a data set of this name, with results in the temporary folder."""

    def run(module: Any, data: str, *words: str) -> None:
        folder = tmp_path / data
        folder.mkdir(exist_ok=True)
        np.save(folder / "item_embeddings.npy", np.zeros((2, 2), np.float16))
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        monkeypatch.setattr(sys, "argv", [module.__name__, "--data", str(folder), *words])
        module.main()

    return run


def test_finished_is_a_matter_of_the_data() -> None:
    rows = [{"method": "a", "seed": 0, "data": "beauty"}, {"method": "a", "seed": "1", "data": "films"}]
    assert finished(rows, "beauty", ("method", "seed")) == {("a", "0")}
    assert finished(rows, "films", ("method", "seed")) == {("a", "1")}
    assert not finished(rows, "books", ("method", "seed"))


def test_recommenders_run_once_per_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[..., None]
) -> None:
    ran: list[tuple[str, int, str]] = []
    folders: set[Path] = set()

    def run(name: str, entry: Any, seed: int, data: Path, work: Path, tested: bool) -> dict[str, Any]:
        assert work.is_dir()
        ran.append((name, seed, data.name))
        folders.add(work)
        settings = recommenders.settings_of(entry)
        return {"method": name, "settings": settings, "seed": seed, "recall@10": 0.5, "minutes": 1.0}

    monkeypatch.setattr(recommenders, "run", run)
    words = ("--study", "units", "--recommenders", "opq", "--seeds", "0", "--work", str(tmp_path / "work"))
    for data in ("beauty", "beauty", "films", "beauty", "films"):
        told(recommenders, data, *words)
    assert ran == [("opq", 0, "beauty"), ("opq", 0, "films")]
    assert folders == {tmp_path / "work" / "units" / data for data in ("beauty", "films")}
    (path,) = tmp_path.glob("items_units_*.csv")
    found = read_results(path, recommenders.IDENTITY)
    assert [row["data"] for row in found] == ["beauty", "films"] and all(row["recall@10"] == 0.5 for row in found)
    changed = yaml.safe_load((recommenders.HERE / "recommenders.yaml").read_text())
    changed["studies"]["units"]["recommenders"]["opq"]["changes"]["plan.max_steps"] = 7
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(changed))
    told(recommenders, "beauty", *words, "--plan", str(tmp_path / "plan.yaml"))
    found = read_results(path, recommenders.IDENTITY)  # the row of the old settings is gone
    assert ["plan.max_steps=7" in row["settings"] for row in found] == [False, True] and len(ran) == 3


def test_tokenizers_and_recommenders_of_their_ids_run_once_per_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[..., None]
) -> None:
    ran: list[str] = []

    def run(name: str, seed: int, data: Path, plan: Any, steps: int, beam: int) -> dict[str, Any]:
        ran.append(data.name)
        return {"method": name, "steps": steps, "beam": beam, "seed": seed, "recall@10": 0.5}

    monkeypatch.setattr(item_recommenders, "run", run)
    monkeypatch.setattr(item_recommenders, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    for data in ("beauty", "films", "beauty", "films"):
        told(item_recommenders, data, "--tokenizers", "opq", "--seeds", "0")
    assert ran == ["beauty", "films"]

    def measured(tokenizer: Any, x: Any) -> dict[str, float]:
        ran.append("tokenizer")
        return {"uniqueness": 0.5}

    ran.clear()
    monkeypatch.setattr(item_tokenizers, "measured", measured)
    for data in ("beauty", "films", "beauty", "films"):
        told(item_tokenizers, data, "--tokenizers", "residual_kmeans")
    assert len(ran) == 2 * 3  # seeds
    (path,) = tmp_path.glob("items_tokenizers_*.csv")
    assert {row["data"] for row in read_results(path)} == {"beauty", "films"}


def test_new_items_run_a_seed_again_that_lacks_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[..., None]
) -> None:
    ran: list[tuple[str, int]] = []

    def rows(seed: int, recall: float, methods: tuple[str, ...] = new_items.METHODS) -> list[dict[str, Any]]:
        about = {"steps": 4, "seed": seed, "recall@10": recall}
        return [{"method": method, "ranked": ranked, **about} for method in methods for ranked in new_items.RANKED]

    def run(data: Path, steps: int, seed: int) -> list[dict[str, Any]]:
        ran.append((data.name, seed))
        return rows(seed, 0.5)

    about = dict.fromkeys(("comparison", "hardware", "commit", "versions"), "old") | {"data": "beauty"}
    path = new_items.results_file(tmp_path, "items_new")
    write_results(path, [*rows(0, 0.25, new_items.METHODS[:2]), *rows(1, 0.25)], about, new_items.IDENTITY)
    monkeypatch.setattr(new_items, "run", run)
    for data in ("beauty", "films", "beauty"):
        told(new_items, data, "--steps", "4", "--seeds", "0", "1")
    assert ran == [("beauty", 0), ("films", 0), ("films", 1)]
    found = read_results(path, new_items.IDENTITY)
    recalls = {(row["data"], row["seed"], row["recall@10"]) for row in found}
    assert recalls == {("beauty", 0, 0.5), ("beauty", 1, 0.25), ("films", 0, 0.5), ("films", 1, 0.5)}
    assert len(found) == 4 * len(new_items.METHODS) * len(new_items.RANKED)
