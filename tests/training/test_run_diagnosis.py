"""What is said of a run by its logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gritvq.training.diagnosis import examine_logs, read_logs

STEPS = range(9, 1000, 10)
Course = Callable[[float], float]


def logs(**courses: Course) -> dict[str, list[tuple[int, float]]]:
    """Logs of a healthy run, whose courses over the done share of the run these replace."""
    healthy: dict[str, Course] = {
        "train/reconstruction": lambda done: 0.1 * 0.1**done,
        "train/codebook": lambda done: 0.2 * 0.5**done,
        "train/commitment": lambda done: min(0.05, 0.001 + done / 4),
        "train/loss": lambda done: 0.4 * 0.5**done,
        "train/usage": lambda done: min(0.9, 0.1 + 3 * done) * (0.7 + 0.3 * (1000 * done % 100) / 99),
    }
    chosen = {**healthy, **{name.replace("_", "/", 1): course for name, course in courses.items()}}
    return {name: [(step, course(step / 1000)) for step in STEPS] for name, course in chosen.items()}


def test_nothing_is_said_of_a_healthy_run() -> None:
    healthy = logs(train_latent_norm=lambda done: 1 + done)
    healthy |= {"val/usage": [(499, 0.8), (999, 0.7)], "val/tokens": [(499, 4096.0), (999, 4096.0)]}
    assert examine_logs(healthy, 64) == []
    assert examine_logs({}) == examine_logs({name: values[:5] for name, values in healthy.items()}, 64) == []


@pytest.mark.parametrize(
    ("name", "course", "expected"),
    [
        ("train_loss", lambda done: float("nan") if done > 0.9 else 1.0, "loss is not finite"),
        ("train_codebook", lambda done: float("inf") if done > 0.95 else 0.1, "loss is not finite"),
        ("train_commitment", lambda done: 0.05 * 100 ** max(0.0, done - 0.5), "commitment loss explodes"),
        ("train_2/commitment", lambda done: 0.05 * 100 ** max(0.0, done - 0.5), "commitment loss explodes"),
        ("train_commitment", lambda done: 1e-2 * 1e-8 ** min(1.0, 2 * done), "quantizer's losses vanish"),
        ("train_codebook", lambda done: 0.0, "quantizer's losses vanish"),
        ("train_usage", lambda done: 0.9 - 0.8 * done, "usage falls"),
        ("val_usage", lambda done: 0.8 if done < 0.6 else 0.3, "usage falls"),
        ("train_latent_norm", lambda done: 100**done, "latents grow"),
    ],
)
def test_a_planted_fault_is_named(name: str, course: Course, expected: str) -> None:
    said = examine_logs(logs(**{name: course}))
    assert [each.name for each in said] == [expected]
    assert (said[0].number < said[0].limit) == (expected in ("usage falls", "quantizer's losses vanish"))


def test_late_levels_may_have_little_left() -> None:
    levels = {f"train_{level}/commitment": lambda done, level=level: 0.02 * 0.3**level for level in range(12)}
    assert examine_logs(logs(**levels)) == []


def test_dead_codes_of_the_last_validation() -> None:
    dead = {"val/usage": [(999, 0.1)], "val/tokens": [(999, 4096.0)]}
    said = examine_logs(dead, 64)
    assert [each.name for each in said] == ["dead codes"] and said[0].number == 0.1 and said[0].limit == 0.5
    assert examine_logs(dead) == []
    assert examine_logs({**dead, "val/tokens": [(999, 4.0)]}, 64) == []  # 4 tokens cannot use more


def test_reading_the_logs_of_a_resumed_run(tmp_path: Path) -> None:
    for part, content in (("run-0", "epoch,step,a,b\n0,9,1.0,\n0,19,2.0,nan\n"), ("run-10", "step,a\n19,4\n29,5\n")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "metrics.csv").write_text(content)
    (tmp_path / "run-x").mkdir()
    (tmp_path / "run-x" / "metrics.csv").write_text("nothing")
    found = read_logs(tmp_path)
    assert found["a"] == [(9, 1.0), (19, 4.0), (29, 5.0)] and len(found["b"]) == 1
    assert read_logs(tmp_path / "nowhere") == {}
    (tmp_path / "run-0" / "metrics.csv").write_text("step,a\n1,x\n")
    with pytest.raises(ValueError, match="expected logs as a run writes them"):
        read_logs(tmp_path)
