"""What one sees of a run while it goes on: steps, time left, recent metrics and memory."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from gritvq.training.task import Task

__all__ = ["Pace", "StepProgress", "duration", "memory_in_use", "resident_memory"]

_QUIET = 60.0  # seconds between progress lines
_WINDOW = 100  # steps that the pace is measured on
_STATM = Path("/proc/self/statm")  # of Linux: sizes of this process in pages


class Pace:
    """How long the rest of a run takes: its steps at the pace of the last hundred, and its validations.

    ``left = (total - done) s + (number of validations to come) v``, with s the seconds of a step, time in validations
    left out, and v the mean seconds of a validation. The first step, which warms up or compiles, and what an earlier
    part of a resumed run took do not count.

    Args:
        total: Steps of the whole run.
        validate_every: Steps between validations; 0 for none.
        clock: Seconds since any moment.

    Example:
        >>> now = iter([0.0, 9.0, 11.0, 13.0])
        >>> pace = Pace(10, clock=lambda: next(now))
        >>> for done in (1, 2, 3):
        ...     pace.step(done)
        >>> pace.left
        14.0
    """

    def __init__(self, total: int, validate_every: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.validate_every, self._clock = total, validate_every, clock
        self._steps = deque[tuple[int, float]](maxlen=_WINDOW + 1)  # done, and when, rests left out
        self._rested, self._validations, self._since = 0.0, 0, clock()

    def step(self, done: int) -> None:
        """So many steps are done now."""
        self._steps.append((done, self._clock() - self._rested))

    def rest(self) -> None:
        """A validation begins."""
        self._since = self._clock()

    def go_on(self) -> None:
        """It has ended."""
        self._rested += self._clock() - self._since
        self._validations += 1

    @property
    def left(self) -> float | None:
        """Seconds to the end; None before two steps are done."""
        if len(self._steps) < 2:
            return None
        (first, begun), (done, now) = self._steps[0], self._steps[-1]
        found = (self.total - done) * (now - begun) / (done - first)
        if self.validate_every and self._validations:
            coming = self.total // self.validate_every - done // self.validate_every
            found += coming * self._rested / self._validations
        return found


class StepProgress(Callback):
    """A progress bar over the steps with the time left, the task's recent metrics and the memory in use.

    If stderr is not a terminal, it prints a line after every tenth of the run and at least once a minute.

    Args:
        validate_every: Steps between validations; 0 for none.
    """

    def __init__(self, validate_every: int = 0) -> None:
        self.validate_every = validate_every
        self.bar: Any = None
        self.said, self.when, self.done = 0, 0.0, 0
        self.pace = Pace(0)  # of no run yet: a trainer of one's own may validate before it trains

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.said, self.when = cast(Task, pl_module).step, time.monotonic()
        self.pace, self.done = Pace(trainer.max_steps, self.validate_every), self.said
        console = Console(stderr=True)
        if not trainer.is_global_zero or not console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}"),
            console=console,
        )
        self.bar.start()
        self.task = self.bar.add_task("training", total=trainer.max_steps, completed=self.said, live="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar, or print a line."""
        done, total = cast(Task, pl_module).step, trainer.max_steps
        if done == self.done or not trainer.is_global_zero:  # gradients accumulate
            return
        self.done = done
        self.pace.step(done)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, live=self._live(trainer))
            return
        tenth = done * 10 // total > self.said * 10 // total
        if tenth or time.monotonic() > self.when + _QUIET:
            self.said, self.when = done, time.monotonic()
            print(f"step {done:,} of {total:,}  {self._live(trainer)}".rstrip(), file=sys.stderr, flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time in validations is not that of steps."""
        self.pace.rest()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Show the progress of a validation."""
        if self.bar is not None:
            self.bar.update(self.task, live=f"validating {batch_idx + 1} of {trainer.num_val_batches[0]:g}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps go on."""
        self.pace.go_on()
        if self.bar is not None:
            self.bar.update(self.task, live=self._live(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar before the error is printed."""
        self.on_train_end(trainer, pl_module)

    def _live(self, trainer: Trainer) -> str:
        left = self.pace.left if self.done < trainer.max_steps else None
        said = [] if left is None else [f"{duration(left)} left"]
        return "  ".join([*said, *_metrics(trainer), *memory_in_use(trainer.strategy.root_device)])


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(7.4), duration(751), duration(3600 * 30 + 62)
        ('0:07', '12:31', '30:01:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def resident_memory() -> int | None:
    """Bytes of memory that this process holds (its resident set, without that of worker processes).

    Where the system does not say (only Linux does), the most that it has held; None where it does not say that either.
    """
    if _STATM.is_file():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_in_use(device: torch.device) -> list[str]:
    """Memory of this process, and what PyTorch has reserved of its GPU's, to be shown."""
    held = resident_memory()
    said = [] if held is None else [f"memory {held / 2**30:.1f} GiB"]
    if device.type == "cuda":
        said.append(f"GPU {torch.cuda.memory_reserved(device) / 2**30:.1f} GiB")
    return said


def _metrics(trainer: Trainer) -> list[str]:
    values = trainer.callback_metrics
    return [
        f"{name} {float(values[key]):.{digits}f}"
        for name, key, digits in (
            ("PSNR", "train/psnr", 2),
            ("usage", "train/usage", 3),
            ("perplexity", "train/perplexity", 0),
            ("nats per item", "train/nats_per_item", 3),
            ("NDCG@10", "val/ndcg@10", 4),
        )
        if key in values
    ]
