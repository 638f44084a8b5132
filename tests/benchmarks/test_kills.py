"""The trials of killed programs: a few of them, and what the table says of all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from benchmarks.reliability.jobs import JOBS, finished, make_data, whole
from benchmarks.reliability.kills import Trial, figures_of, prepared, reference, trial


def test_the_table_counts_what_failed() -> None:
    good, bad = Trial("fit", 3, 2), Trial("fit", 1, 1, faults=["half a file"], differences=["model.safetensors"])
    rows = {(each.subject, each.asks.split()[0]): (each.value, each.target) for each in figures_of([good, bad, good])}
    assert rows["fit", "kills"] == ("5 of 7 in 3 trials", "")
    assert rows["fit", "what"] == rows["all", "started"] == ("2 of 3", "3 of 3")


def test_a_damaged_artifact_is_not_whole(tmp_path: Path) -> None:
    """Nothing is not whole either if a name of it is there, and what a writer leaves behind is no artifact."""
    (tmp_path / ".writing-1-2-3").mkdir()
    (tmp_path / ".writing-1-2-3" / "last.ckpt").write_text("half")
    assert whole(tmp_path) == []
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "model.safetensors").write_text("half")
    with pytest.raises(ValueError, match="expected"):
        whole(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    (tmp_path / "last.ckpt").write_text("half")
    with pytest.raises(ValueError, match="expected a whole file"):
        whole(tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["fit images", "encode over an old file", "semantic-ids fit", "semantic-ids add"])
def test_killed_and_started_again(name: str, tmp_path: Path) -> None:
    make_data(tmp_path)
    job = next(each for each in JOBS if each.name == name)
    before = {}
    if job.before is not None:
        before[job.before] = tmp_path / "before"
        prepared(job._replace(before=None), tmp_path, tmp_path / "before", {})
        finished(job.before, tmp_path / "before")
    prepared(job, tmp_path, tmp_path / "straight", before)
    straight = reference(job, tmp_path / "straight")
    for number in range(3):
        prepared(job, tmp_path, tmp_path / str(number), before)
        found = trial(job, number, tmp_path / str(number), straight, seed=1)
        assert not found.faults and not found.differences, found
