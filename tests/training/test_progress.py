"""The time that is left, on a clock of the test's own, and what the bar and the lines show."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gritvq.training import progress
from gritvq.training.progress import Pace, StepProgress, duration, memory_in_use, resident_memory


class Clock:
    """Stands still but for what it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def steps(pace: Pace, clock: Clock, first: int, last: int, seconds: float) -> None:
    for done in range(first, last + 1):
        clock.now += seconds
        pace.step(done)


def test_the_time_left_at_a_steady_pace() -> None:
    clock = Clock()
    pace = Pace(50, clock=clock)
    clock.now += 100  # the first step warms up
    pace.step(1)
    assert pace.left is None
    for done in range(2, 51):
        clock.now += 0.5
        pace.step(done)
        assert pace.left == pytest.approx(0.5 * (50 - done))


def test_a_resumed_run_counts_its_own_steps_alone() -> None:
    clock = Clock()
    pace = Pace(1000, clock=clock)
    steps(pace, clock, 901, 910, 2.0)
    assert pace.left == pytest.approx(180)


def test_validations_are_no_steps_but_will_come() -> None:
    clock = Clock()
    pace = Pace(100, validate_every=10, clock=clock)
    steps(pace, clock, 1, 10, 1.0)
    assert pace.left == pytest.approx(90)  # nobody knows yet what one takes
    pace.rest()
    clock.now += 30
    pace.go_on()
    steps(pace, clock, 11, 15, 1.0)
    assert pace.left == pytest.approx(85 + 9 * 30)  # at steps 20, 30, ... 100
    steps(pace, clock, 16, 20, 1.0)
    pace.rest()
    clock.now += 10
    pace.go_on()
    assert pace.left == pytest.approx(80 + 8 * 20)
    steps(pace, clock, 21, 100, 1.0)
    assert pace.left == 0


def test_a_pace_that_changes_is_followed() -> None:
    clock = Clock()
    pace = Pace(10_000, clock=clock)
    steps(pace, clock, 1, 500, 1.0)
    steps(pace, clock, 501, 700, 0.1)
    assert pace.left == pytest.approx(930)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3599.9, "1:00:00"), (90_000, "25:00:00")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_memory_grows_with_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resident_memory()
    held = torch.ones(100, 2**20)  # 400 MB, written
    after = resident_memory()
    assert before is not None and after is not None and 0.35e9 < after - before < 0.6e9
    assert len(held) == 100
    said = f"memory {after / 2**30:.1f} GiB"
    monkeypatch.setattr(progress, "resident_memory", lambda: after)
    assert memory_in_use(torch.device("cpu")) == [said]
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * 2**29)
    assert memory_in_use(torch.device("cuda")) == [said, "GPU 2.5 GiB"]
    monkeypatch.setattr(progress, "resident_memory", lambda: None)
    assert memory_in_use(torch.device("cpu")) == []


def shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, total: int, start: int, accumulate: int = 1
) -> list[str]:
    """Lines of a run whose steps take two seconds each, with a validation of a minute after every ten."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(Pace.__init__, "__defaults__", (0, clock))
    monkeypatch.setattr(progress, "resident_memory", lambda: 3 * 2**29)
    device, metrics = SimpleNamespace(root_device=torch.device("cpu")), {"train/psnr": torch.tensor(20.0)}
    trainer: Any = SimpleNamespace(
        max_steps=total, is_global_zero=True, callback_metrics=metrics, strategy=device, num_val_batches=[4]
    )
    task: Any = SimpleNamespace(step=start)
    callback = StepProgress(validate_every=10)
    callback.on_validation_start(trainer, task)  # before the training, as Lightning's sanity check
    callback.on_validation_batch_end(trainer, task, None, None, 0)
    callback.on_validation_end(trainer, task)
    callback.on_train_start(trainer, task)
    for batch in range((total - start) * accumulate):
        clock.now += 2 / accumulate
        task.step = start + (batch + 1) // accumulate
        callback.on_train_batch_end(trainer, task, None, None, batch)
        if task.step % 10 == 0 and (batch + 1) % accumulate == 0:
            callback.on_validation_start(trainer, task)
            callback.on_validation_batch_end(trainer, task, None, None, 0)
            clock.now += 60
            callback.on_validation_end(trainer, task)
    callback.on_train_end(trainer, task)
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_lines_without_a_terminal(capsys: Any, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    said = [line for line in shown(capsys, monkeypatch, 100, 60, accumulate) if line.endswith("memory 1.5 GiB")]
    assert [line.split("  ")[0] for line in said] == [f"step {done} of 100" for done in (70, 71, 80, 81, 90, 91, 100)]
    assert said[0] == "step 70 of 100  1:00 left  PSNR 20.00  memory 1.5 GiB"
    assert said[1] == "step 71 of 100  3:58 left  PSNR 20.00  memory 1.5 GiB"  # 29 steps, three validations
    assert said[-1] == "step 100 of 100  PSNR 20.00  memory 1.5 GiB"


def test_the_bar_of_a_terminal(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "\n".join(shown(capsys, monkeypatch, 20, 0)))
    assert "training" in plain and "20/20" in plain and "memory 1.5 GiB" in plain and "step 20" not in plain
