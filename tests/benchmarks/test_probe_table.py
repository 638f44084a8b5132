"""The command behind the table of probes: our answers, errors as answers, and the page made from them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from benchmarks.quality.probes import COLUMNS, PROBES, Found, Library, Ours, Probe, asked, said
from benchmarks.report.peers import probes

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TWO = {"two_processes_built_before_the_group", "two_processes_built_after_the_group"}
TWO |= {"one_process_with_everything_masked"}  # each starts two processes; tests/test_probes.py asks the same


@pytest.mark.parametrize(
    "each", [pytest.param(p, id=p.name, marks=pytest.mark.soak if p.name in TWO else ()) for p in PROBES]
)
def test_our_answer_is_the_one_asked_for(each: Probe) -> None:
    found = asked(each, Ours())
    assert found.passes and found.result, found.result


def test_an_error_is_an_answer() -> None:
    def fails(library: Library) -> Found:
        raise RuntimeError("cannot load:\n  this key\n  that key")

    assert asked(Probe("fails", "fails", fails), Ours()) == Found("RuntimeError: cannot load: this key", False)
    assert said(AssertionError()) == "AssertionError: no message" and len(said(ValueError("long " * 99))) < 140


def test_the_results_are_those_of_these_probes() -> None:
    for path in RESULTS.glob("probes_*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for library in {row["library"] for row in rows}:
            own = [(row["probe"], row["asks"]) for row in rows if row["library"] == library]
            assert own == [(each.name, each.asks) for each in PROBES], f"{path.name}: run the command again"
        assert all(row["passes"] == "yes" for row in rows if row["library"] == "gritvq")


def test_the_page_tells_answers_as_they_are(tmp_path: Path) -> None:
    lines = [
        ("one", "Is it?", "other", "2.0", "Error: (*batch, 8) | `x`", "no", "today", "run", "cpu", "abc", "torch"),
        ("one", "Is it?", "gritvq", "1.0", "works", "yes", "today", "run", "cpu", "abc", "torch"),
    ]
    with (tmp_path / "probes_cpu_209901.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *lines])
    table = probes(tmp_path).splitlines()
    assert table[-3:] == [
        "| asked | gritvq 1.0 | other 2.0 |",
        "| --- | --- | --- |",
        r"| Is it? | yes: works | no: Error: (\*batch, 8) \| \`x\` |",
    ]
