"""The folder of a run: what may be replaced, and what goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gritvq.training import RunFolder


def written(run: RunFolder) -> None:
    """Every file and folder that a run has a name for."""
    for name, part in vars(run).items():
        if name != "path" and not part.exists():
            part.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir() if not part.suffix else part.write_text("old")


def test_a_run_makes_way_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    written(run)
    (run.path / "mine.txt").write_text("mine")
    run.replace(overwrite=True)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.yaml",
        "mine.txt",
    ]  # the next run writes over it
    written(run)
    run.clear(but=(run.tokenizer,))
    assert run.tokenizer.is_dir() and not run.ids.exists()


@pytest.mark.parametrize("name", ["checkpoints", "tokenizer", "logs", "model.pt"])
def test_what_is_no_run_stays(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path / "mine")
    (run.path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"which holds files that are not a run; choose another --out$"):
        run.replace(overwrite=True)
    assert (run.path / name).exists()


def test_a_run_stays_unless_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.replace(overwrite=False)
    run.config.write_text("{}")
    with pytest.raises(ValueError, match="which holds a run; choose another --out, go on, or replace it with"):
        run.check(overwrite=False, instead="go on, ")
    with pytest.raises(ValueError, match=r"got the file .*config.yaml; choose another --out"):
        RunFolder(run.config).check(overwrite=True)


def test_the_model_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.model is None and not run.is_run
    for folder in (run.tokenizer, run.text_model, run.prior, run.recommender):  # what is trained hides what it needs
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert run.model == folder and run.is_run
    assert {path.suffix for path in run.plots} == {".png"}
