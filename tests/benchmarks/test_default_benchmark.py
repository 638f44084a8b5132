"""The benchmark of defaults, on made data, and its page."""

from __future__ import annotations

import math
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from benchmarks.quality import default
from benchmarks.report.default import complete_cells, default_section, regrets

from gritvq import fsq, vq_vae
from gritvq.results import read_results, write_results

PLAN = default.HERE / "default.yaml"


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Embeddings of 400 items."""
    folder = tmp_path / "amazon_beauty"
    folder.mkdir()
    np.save(folder / "item_embeddings.npy", np.random.default_rng(0).normal(size=(400, 12)).astype(np.float16))
    return folder


@pytest.fixture
def plan() -> dict[str, Any]:
    """A tiny plan."""
    cell = {"codebook_size": 8, "dim": 4, "tokens": 98, "steps": 3}
    return {
        "networks": {
            "ours": {"width": 8, "num_blocks": 1, "factor": 4},
            "vqgan": {"width": 4, "multipliers": [1, 1, 2], "num_blocks": 1, "hidden_dim": 8, "num_groups": 2},
            "mlp": {"hidden": [8]},
        },
        "task": {"lr": 0.001, "warmup_steps": 1},
        "num_measured": 120,
        "num_vectors": 300,
        "held_back": ["photographs"],
        "rounds": {
            "choosing": {"seeds": [100, 101], "split": "validation"},
            "last": {"seeds": [0, 1], "split": "test"},
        },
        "prior": {
            "num_pictures": 40,
            "network": {"width": 16, "depth": 1, "num_heads": 2},
            "task": {},
            "batch_size": 8,
            "max_steps": 2,
        },
        "defaults": ["grit_vq", "fsq"],
        "tuned": {"grit_vq": {"lr_scale": [10, 60]}},
        "candidates": {"revival": {"preset": "grit_vq", "revival_interval": 2}},
        "cells": [
            {"data": "fashion-mnist", "network": "vqgan", **cell, "prior": True},
            {"data": "photographs", "network": "ours", **cell},
            {"data": "amazon_beauty", "network": "mlp", **cell, "seeds": 2},
        ],
    }


class Pool:
    """Runs in this process, and remembers what ran."""

    ran: list[default.Job] = []

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, run: Any, job: default.Job) -> Future[Any]:
        future = Future[Any]()
        type(self).ran.append(job)
        try:
            future.set_result(run(job))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs in this process, one thread as they set it."""
    monkeypatch.setattr(default, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(Pool, "ran", [])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def measured(results: Path) -> list[dict[str, Any]]:
    (path,) = results.glob("default_*.csv")
    return read_results(path, default.IDENTITY)


def test_all_kinds_of_cells_run_and_are_not_repeated(
    gray_pictures: Path, items: Path, plan: dict[str, Any], here: None, tmp_path: Path
) -> None:
    file, results = tmp_path / "plan.yaml", tmp_path / "results"
    results.mkdir()
    file.write_text(yaml.safe_dump(plan))
    words = ["--data", str(gray_pictures), str(items), "--plan", str(file), "--results", str(results)]
    default.main(words)
    rows = measured(results)
    pictures = [row for row in rows if row["data"] == "fashion-mnist"]
    vectors = [row for row in rows if row["data"] == "amazon_beauty"]
    assert len(pictures) == 4 and len(vectors) == 8 and len(rows) == 12  # photographs are held back
    assert {row["kind"] for row in pictures} == {"default", "tuned", "candidate"}
    assert all(0 < row["nats_per_token"] < 4 and row["rfd"] > 0 and 0 <= row["accuracy"] <= 1 for row in pictures)
    for row in rows:
        assert row["usage"] <= 1 and 0 <= row["entropy_bits"] <= math.log2(row["codebook_size"] + 1)
        assert row["peak_bytes"] >= 0 and row["seconds_per_step"] > 0 and row["parameters"] > 0
    default.main(words)
    assert len(Pool.ran) == 12
    default.main([*words, "--round", "last", "--methods", "fsq", "--cells", "photographs"])
    assert [job.cell.data for job in Pool.ran[12:]] == ["photographs"]
    assert Pool.ran[-1].seed == 0 and Pool.ran[-1].split == "test"
    file.write_text(yaml.safe_dump({**plan, "task": {"lr": 0.002, "warmup_steps": 1}}))
    default.main([*words, "--methods", "fsq"])
    assert {row["method"] for row in measured(results)} == {"fsq"}  # rows of another rate are gone


def test_a_run_that_fails_costs_no_other_one(
    items: Path, plan: dict[str, Any], here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan["tuned"] = {"grit_vq": {"lr_scale": -1}}
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    with pytest.raises(SystemExit, match="2 of 8 runs failed"):
        default.main(["--data", str(items), "--plan", str(file), "--results", str(tmp_path)])
    assert "grit_vq, seed 100" in capsys.readouterr().err
    assert len(measured(tmp_path)) == 6


def test_nothing_to_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--cells", "nothing"], "expected data, methods and cells of the plan"),
        (["--round", "first"], "expected a round of choosing, last, got first"),
    ):
        with pytest.raises(SystemExit):
            default.main([*words, "--results", str(tmp_path)])
        assert said in capsys.readouterr().err


def test_parts_of_vectors_are_disjoint_and_the_same_each_time(items: Path) -> None:
    parts = default.vectors_of(str(items), 300)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [240, 30, 30]
    rows = torch.cat(list(parts.values()))
    assert len(rows.unique(dim=0)) == 300
    default.vectors_of.cache_clear()
    again = default.vectors_of(str(items), 300)
    assert all(torch.equal(again[name], part) for name, part in parts.items())


def test_sentences_become_components(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(200)]
    random = np.random.default_rng(0)
    lines = [f"# {d}\n" + "\n".join(" ".join(random.choice(words, 8)) for _ in range(40)) for d in range(20)]
    (tmp_path / "brown.txt").write_text("\n".join(lines) + "\n")
    parts = default.vectors_of(str(tmp_path), 500)
    assert parts["train"].shape == (400, default.COMPONENTS) and parts["test"].shape[0] == 50
    assert parts["train"].norm(dim=1).min() > 0.1


def test_the_bits_of_equally_and_unequally_frequent_codes() -> None:
    quantizer = vq_vae(2, 4)
    found = default.of_codes(quantizer, [torch.tensor([[0], [1]]), torch.tensor([[2], [3]])])
    assert found["entropy_bits"] == pytest.approx(2) and found["usage"] == 1
    found = default.of_codes(quantizer, [torch.tensor([[0], [0], [0], [2]])])
    assert found["entropy_bits"] == pytest.approx(-0.75 * math.log2(0.75) + 0.5) and found["usage"] == 0.5
    assert default.of_codes(fsq(4, 8), [torch.tensor([[3]])])["entropy_bits"] == 0


def test_validation_pictures_are_those_that_training_leaves_out(gray_pictures: Path, plan: dict[str, Any]) -> None:
    cell = default.Cell(**plan["cells"][0])
    job = default.Job(cell, "default", "fsq", {}, 100, "validation", plan, str(gray_pictures))
    images, labels = default.labelled_part(str(gray_pictures), "validation", 120)
    batches = torch.cat(list(default.measured_pictures(job, default.image_data(job))))
    assert torch.equal((batches * 255).round().byte(), images) and labels.tolist() == list(range(10)) * 12


def test_the_plan_is_sound() -> None:
    plan = yaml.safe_load(PLAN.read_text())
    cells = [default.Cell(**each) for each in plan["cells"]]
    assert len({cell.name for cell in cells}) == len(cells) == 60
    rounds = plan["rounds"]
    assert not set(rounds["choosing"]["seeds"]) & set(rounds["last"]["seeds"])
    assert all(cell.seeds <= 3 and (cell.network == "mlp") == (cell.data not in default.SHAPES) for cell in cells)
    assert {cell.codebook_size for cell in cells} == {256, 1024, 4096, 16384, 65536, 262144}
    assert {cell.dim for cell in cells} == {8, 16, 64, 256} and {cell.tokens for cell in cells} == {64, 4096}
    assert set(plan["held_back"]) < {cell.data for cell in cells}
    names = [(kind, name) for kind, name, _ in default.methods_of(plan)]
    assert len(set(names)) == len(names) and set(plan["tuned"]) <= set(plan["defaults"])
    small = default.Cell("cifar10", "ours", 256, 8, 64, 300)
    for kind, name, settings in default.methods_of(plan):
        job = default.Job(small, kind, name, settings, 0, "test", plan, None)
        for network, data in (("ours", {"channels": 3}), ("vqgan", {"channels": 1}), ("mlp", {"input_dim": 12})):
            own = job._replace(cell=small._replace(network=network))
            quantizer = own.quantizer()
            encoder, decoder = own.pair(quantizer, **data)
            assert getattr(encoder, "factor", 4) == getattr(decoder, "factor", 4) == 4


# --- the page ---------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "cells": [{}, {}, {}],
    "defaults": ["grit_vq", "vq_vae"],
    "tuned": {"vq_vae": {"x": 1}},
    "candidates": {"better": {"preset": "grit_vq", "x": 1}},
}
ABOUT = {"comparison": "c", "data": "d", "hardware": "cpu2", "commit": "abc", "versions": "v"}


def row(cell: str, kind: str, method: str, quality: float, seed: int = 100, **others: float) -> dict[str, Any]:
    settings = "-" if kind == "default" else "x=1"
    told = dict(zip(default.IDENTITY, ("choosing", cell, kind, method, settings, 8, seed), strict=True))
    return {**told, "quality": quality, "usage": 0.5, "uniform_usage": 0.8, "entropy_bits": 2.5, **others}


def test_regret_is_the_distance_to_the_best_preset_of_the_cell(tmp_path: Path) -> None:
    rows = [
        row("one", "default", "grit_vq", 20.0),
        row("one", "default", "grit_vq", 21.0, seed=101),
        row("one", "default", "vq_vae", 19.0),
        row("one", "tuned", "vq_vae", 21.25),
        row("one", "candidate", "better", 22.0),
        row("two", "default", "grit_vq", 10.0, rfd=3.0),
        row("two", "default", "vq_vae", 9.0, rfd=4.0),
        row("two", "tuned", "vq_vae", 9.5, rfd=5.0),
        row("three", "default", "grit_vq", 1.0),  # others are still to be measured
        {**row("one", "tuned", "vq_vae", 99.0), "settings": "x=0"},  # of an earlier plan
    ]
    cells = complete_cells(rows, SMALL)
    assert list(cells) == ["one", "two"]
    assert regrets(cells, ("default", "grit_vq", "-")) == {"one": 0.75, "two": 0.0}
    assert regrets(cells, ("candidate", "better", "x=1")) == {"one": -0.75}
    write_results(tmp_path / "default_cpu2_202611.csv", rows, ABOUT, default.IDENTITY, default.UNITS)
    page = default_section(tmp_path, tmp_path, SMALL)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    mine = next(line for line in lines if line[:2] == ["`grit_vq`", "defaults"])
    assert mine[2:] == ["-", "2", "0.38", "0.75", "one", "0.62"]
    one, two = (next(line for line in lines if line[0] == name) for name in ("one", "two"))
    assert one[1:5] == ["`vq_vae`, tuned", "20.50", "0.75", "1.50"] and one[7] == "-"
    assert two[1:5] == ["`grit_vq`, defaults", "10.00", "0.00", "1.00"] and two[7] == "3.0 / 3.0"
    assert (tmp_path / "default_choosing_cpu2.png").stat().st_size > 5000
    assert "Cells so far: 2 of 3 in the plan." in page and "### last" not in page


def test_without_results_or_with_few_there_is_no_section(tmp_path: Path) -> None:
    assert default_section(tmp_path, tmp_path, SMALL) == ""
    methods = (("default", "grit_vq"), ("default", "vq_vae"), ("tuned", "vq_vae"))
    rows = [row("one", kind, method, 20.0) for kind, method in methods]
    write_results(tmp_path / "default_cpu2_202611.csv", rows, ABOUT, default.IDENTITY, default.UNITS)
    assert "Cells so far: 1 of 3" in default_section(tmp_path, tmp_path, SMALL)
    assert default_section(tmp_path, tmp_path, {**SMALL, "cells": 5 * [{}]}) == ""
