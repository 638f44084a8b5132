"""The harness of the speed benchmark: contenders do what they say, memory is real, results and page add up."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.report import speed_targets as targets
from benchmarks.report.speed import page
from benchmarks.speed import __main__ as program
from benchmarks.speed import fit, search, step, tokenizer
from benchmarks.speed.cases import Contender, Row, vectors_and_codes
from benchmarks.speed.measure import alternating, measure_times, worse_choices
from torch.utils.flop_counter import FlopCounterMode

from gritvq.results import read_results

CPU = torch.device("cpu")
ODD = Row(1100, 7, 2100)  # more than a block of both, and no multiple of one
ABOUT = dict.fromkeys(("comparison", "data", "hardware", "commit", "versions", "threads", "cpu"), "made up")


def test_every_search_names_the_nearest_code() -> None:
    x, codes = (part.double() for part in vectors_and_codes(ODD, CPU))
    distances = torch.cdist(x, codes, compute_mode="donot_use_mm_for_euclid_dist")
    two = distances.topk(2, largest=False).values
    clear = two[:, 1] - two[:, 0] > 1e-5
    assert clear.float().mean() > 0.99
    ran = []
    for contender in search.contenders(CPU):
        if contender.name != "gemm" and not contender.refusal(ODD, CPU):
            found = contender.make(ODD, CPU)()
            torch.testing.assert_close(found[clear], distances.argmin(1)[clear], msg=contender.name)
            ran.append(contender.name)
    assert {"nearest_code", "ours: blocked", "bound", "torch.cdist"} <= set(ran)


@pytest.mark.parametrize("function", [search.bound, search.blocked_product])
def test_bounds_multiply_everything_once(function: Any) -> None:
    with FlopCounterMode(display=False) as counter:
        function(*vectors_and_codes(ODD, CPU))
    assert counter.get_total_flops() == 2 * ODD.n * ODD.dim * ODD.codebook_size


def test_worse_choices_are_counted() -> None:
    nearest = search.bound(*vectors_and_codes(ODD, CPU))
    wrong = nearest.clone()
    wrong[:3] = (wrong[:3] + 1) % ODD.codebook_size
    assert worse_choices(ODD, CPU, {"right": nearest, "wrong": wrong}) == {"right": 0, "wrong": 3}


@pytest.mark.parametrize("contender", [*step.contenders(CPU), *step.residual_contenders(CPU)], ids=lambda c: c.name)
def test_steps_run_again_and_again(contender: Contender) -> None:
    row = Row(33, 8, 16)
    if contender.refusal(row, CPU):
        pytest.skip(contender.refusal(row, CPU))
    call = contender.make(row, CPU)
    for _ in range(3):
        output = call()
    if not contender.name.startswith("bound"):
        assert output.shape == (row.n, row.dim) and output.requires_grad and torch.isfinite(output).all()


def test_contenders_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = alternating(calls, CPU, seconds=0, quick=True)
    assert "".join(order) == "abc" * 3  # the first round warms up
    assert {name: len(values) for name, values in samples.items()} == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("abilities", "kind"),
    [({"amx_tile", "vnni"}, "amx"), ({"vnni"}, "vnni"), (set(), torch.backends.cpu.get_cpu_capability().lower())],
)
def test_processors_of_other_kinds_are_other_machines(
    abilities: set[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("amx_tile", "vnni"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in abilities)
    assert program.kind_of_processor() == kind


@pytest.mark.parametrize("there", [False, True])
def test_the_search_in_two_stages_is_measured_where_it_is_chosen(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.kernels.two_stage, "available", lambda: there)
    assert ("two_stage" in search.backends(CPU)) == there and "blocked" in search.backends(CPU)


def test_what_does_not_fit_or_is_missing_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(row: Row, device: torch.device) -> Any:
        raise RuntimeError("no such instruction")

    contenders = [
        Contender("large", broken, memory=lambda row: 1e15),
        Contender("missing", broken, package="no_such_package"),
        Contender("broken", broken),
        Contender("fine", lambda row, device: lambda: None),
    ]
    monkeypatch.setitem(program.SUITES, "step", lambda device: contenders)
    names = [contender.name for contender in contenders]
    found = measure_times("step", Row(2, 2, 2), CPU, names, seconds=0, quick=True)
    assert "GB" in found["large"]["skipped"] and "pip install" in found["missing"]["skipped"]
    assert "no such instruction" in found["broken"]["skipped"] and "seconds" in found["fine"]


@pytest.mark.soak  # two interpreters load everything; the command below starts such ones too
def test_memory_is_that_of_the_scores_and_of_nothing_else() -> None:
    row = Row(2048, 16, 8192)  # 64 MB of scores
    options = argparse.Namespace(quick=True, threads=1, device="cpu")
    peaks = {
        name: program.in_fresh_process("search", row, "memory", [name], options)["peak_bytes"]
        for name in ("torch.cdist", "bound")
    }
    assert row.scores <= peaks["torch.cdist"] < 1.5 * row.scores
    assert peaks["bound"] < 0.3 * row.scores


@pytest.mark.soak
def test_the_command_writes_results_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--quick", "--threads", "1", "--device", "cpu", "--out", str(tmp_path), "--suite", "residual"]
    assert program.main(command) == 0
    (path,) = tmp_path.glob("speed_residual_*.csv")
    runs = {run["method"]: run for run in read_results(path, program.IDENTITY)}
    assert set(runs) == {"1 level", "8 levels"}
    for run in runs.values():
        assert (run["n"], run["dim"], run["codebook_size"]) == ("256", "16", 512)
        assert 0 < run["seconds_p20"] <= run["seconds"] <= run["seconds_p80"] < 10
        assert 0 <= run["peak_bytes"] < 1e8
        assert run["threads"] == "1" and run["commit"] and "torch" in run["versions"] and run["cpu"]
    monkeypatch.setattr(program, "measure_row", lambda *_: pytest.fail("measured again"))
    assert program.main(command) == 0


def test_a_quick_run_keeps_off_the_results() -> None:
    with pytest.raises(SystemExit):
        program.main(["--quick", "--suite", "imports"])


def test_parts_of_a_training_step_add_up(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    sizes = "init_args: {dim: 8, factor: 4, width: 8}"
    config.write_text(
        f"tokenizer:\n  encoder: {{class_path: gritvq.images.ImageEncoder, {sizes}}}\n"
        f"  decoder: {{class_path: gritvq.images.ImageDecoder, {sizes}}}\ndata: {{size: 16, batch_size: 4}}\n"
    )
    row, numbers = fit.measure(config, "photographs", "vq_vae_ema", 32, steps=4, threads=torch.get_num_threads())
    assert row == Row(64, 8, 32)
    parts = {name: value for name, value in numbers.items() if name.endswith("_seconds")}
    assert set(parts) == {f"{part}_seconds" for part in fit.PARTS} and min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(numbers["seconds"], rel=0.5)  # medians of parts, median of sums
    assert 0 < numbers["quantizer_share"] < 1


def test_a_stopwatch_leaves_no_moment_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(fit.time, "perf_counter", lambda: next(clock))
    watch = fit.Stopwatch()
    assert watch.enter("data") == "loop"
    assert watch.enter("optimizer") == "data"
    watch.end_step()
    watch.end_step()
    assert watch.steps == [{"loop": 1.0, "data": 2.0, "optimizer": 3.0}, {"loop": 4.0}]


def times(seconds: float, **more: float) -> dict[str, float]:
    return {"seconds": seconds, "seconds_p20": seconds, "seconds_p80": seconds, "rounds": 5.0, **more}


def test_the_page_says_which_targets_are_met(tmp_path: Path) -> None:
    assert "Nothing has been measured yet" in page(tmp_path, tmp_path)
    results = program.Results(tmp_path / "speed_search_cpu9_203001.csv", ABOUT)
    small, large, larger = Row(64, 4, 1024), Row(64, 4, 16384), Row(64, 4, 65536)
    for row, ours in ((small, 9.0), (large, 1.1), (larger, 1.15)):  # the first has too few codes to count
        results.replace(row, {"ours: blocked": times(ours), "gemm": times(1.0), "faiss": times(0.5)})
    results.replace(larger, {"faiss": {"skipped": "not here"}}, keep_others=True)
    text = page(tmp_path, tmp_path)
    assert "| float32 search / blocked product, K >= 16384 | <= 1.2 | 1.15 (64 x 4 x 65536) | yes |" in text
    assert "| float32 search / faiss, K >= 16384 | <= 1.2 | 2.2 (64 x 4 x 16384) | **no** |" in text
    assert "| two-stage search / faiss, K >= 16384 | <= 0.6 | not measured | - |" in text
    assert "not here" in text
    assert (tmp_path / "speed_search_cpu9_203001.png").stat().st_size > 0


def test_a_whole_step_comes_first_with_its_ratios_to_the_same_circumstances(tmp_path: Path) -> None:
    row = Row(4096, 64, 16384)
    found = {
        "grit_vq": 0.1,
        "vq_vae_ema": 0.08,
        "simvq": 0.1,
        "VQP EMA": 1.0,
        "VQP SimVQ": 0.3,
        "VQP SimVQ flat": 0.2,
        "grit_vq, compiled": 0.05,
    }
    single = {f"{name}, one thread": 2 * value for name, value in found.items() if "compiled" not in name}
    single["grit_vq, one thread"] = 0.5  # a fourth of its peer's 2 seconds: the worst
    every = {name: times(value, peak_bytes=1e6) for name, value in (found | single).items()}
    program.Results(tmp_path / "speed_tokenizer_cpu9_203002.csv", ABOUT).replace(row, every)
    program.Results(tmp_path / "speed_search_cpu9_203001.csv", ABOUT).replace(row, {"gemm": times(1.0)})
    older = {"grit_vq": times(9.0)}
    program.Results(tmp_path / "speed_tokenizer_cpu9_203001.csv", ABOUT).replace(row, older)
    text = page(tmp_path, tmp_path)
    assert text.count("## cpu9\n") == 1
    assert text.index("### A whole step of a tokenizer") < text.index("### Targets") < text.index("### Search")
    assert "| whole step of a tokenizer / with VQP EMA | <= 0.125 | 0.25 (grit_vq, one thread) | **no** |" in text
    assert "| whole step of a tokenizer / with VQP SimVQ | <= 0.25 | 0.833 (grit_vq, one thread) | **no** |" in text
    assert "| 4096 x 64 x 16384 | grit_vq | 0.1 (0.1-0.1) | 10.00 | 3.00 | 2.00 | 1 |" in text
    assert "|  | grit_vq, compiled | 0.05 (0.05-0.05) | 20.00 | 6.00 | 4.00 | 1 |" in text
    assert "|  | vq_vae_ema, one thread | 0.16 (0.16-0.16) | 12.50 | 3.75 | 2.50 | 1 |" in text
    assert (tmp_path / "speed_tokenizer_cpu9_203002.png").stat().st_size > 0


def test_a_whole_step_trains() -> None:
    row, device = Row(256, 8, 64), torch.device("cpu")
    threads = torch.get_num_threads()
    for contender in tokenizer.contenders(device):
        if "," in contender.name and contender.name != "grit_vq, one thread":
            continue  # the same steps
        call = contender.make(row, device)
        losses = [float(call()) for _ in range(40)]
        again = losses[2 * tokenizer.BATCHES :]  # the first batches for the third time
        assert sum(again) < 0.9 * sum(losses[: len(again)]), (contender.name, losses)
    assert torch.get_num_threads() == threads


@pytest.mark.soak  # exports twice
def test_every_way_of_encoding_finds_the_same_indices() -> None:
    row, device = Row(256, 8, 64), torch.device("cpu")
    ways = {each.name: each for each in tokenizer.encoding_contenders(device) if each.name != "encode, compiled"}
    found = {name: way.make(row, device)().flatten() for name, way in ways.items() if not way.refusal(row, device)}
    assert found["encode"].unique().numel() > 8
    for name, indices in found.items():
        assert (indices == found["encode"]).float().mean() > 0.99, name


def test_memory_and_growth_targets() -> None:
    row = (1000, 10, 3000)
    allowed = 80e6 + 6 * 4 * (1000 * 10 + 3000 * 10)
    assert targets.allowance(row) == allowed
    found = targets.step_memory(
        {"step": {row: {"simvq": {"peak_bytes": 2 * allowed}, "VQP EMA": {"peak_bytes": 1e15}}}}
    )
    assert found is not None and found.value == pytest.approx(2) and "simvq" in found.where
    rows = {(10, 2, size): {"nearest_code": times(size * slower)} for size, slower in ((8, 1.0), (64, 1.5), (512, 1.2))}
    ratio = targets.growth("nearest_code")({"growth": rows})
    assert ratio is not None and ratio.value == pytest.approx(1.5)
    levels = {"1 level": {"peak_bytes": 1e6}, "8 levels": {"peak_bytes": 1e6 + 8 * 4 * 40000}}
    memory = targets.residual_memory({"residual": {row: levels}})
    assert memory is not None and memory.value == pytest.approx(1)
