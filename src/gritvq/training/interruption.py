"""Stopping a run on SIGINT or SIGTERM with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from gritvq.distributed import all_reduce_sum
from gritvq.training.parallel import Sharded
from gritvq.training.task import Task

__all__ = ["Interrupted", "Interruption", "Listener", "Stop"]


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C (SIGINT) or by SIGTERM.

    Args:
        message: What was saved; empty in all processes but the first.
        number: Number of the signal; None in all processes but the first.

    Attributes:
        exit_code: Exit code of the program: 128 plus the number of the signal, 0 without one.
    """

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        self.exit_code = 0 if number is None else 128 + number


class Stop(BaseException):
    """Ends Lightning's loops; on a KeyboardInterrupt Lightning would kill its processes and exit."""


class Listener(Callback):
    """Installs the signal handlers of an :class:`Interruption` early; must be the first callback of a run."""

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install them before worker processes start, which inherit them and leave Ctrl-C to this process."""
        self.interruption.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install them again: Lightning has put in its own, which would end the run without saving."""
        self.interruption.listen()


class Interruption(Callback):
    """Stops a run at the next step after SIGINT or SIGTERM, with a checkpoint from which it resumes bitwise.

    All processes stop after the same step, whichever received the signal. A validation in progress is finished first.
    A second signal stops at once; so does the first one during codebook initialization, when there is nothing to
    save. SLURM's requeue signal is left to Lightning.

    Args:
        path: Path of the checkpoint; None for a run without a folder.

    Attributes:
        number: Number of the signal; 0 if there was none.
        saved: Whether the run has stopped after a complete step.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.number, self.saved = path, 0, False
        self._process, self._steps, self._can_wait, self._saving = os.getpid(), 0, False, False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Install handlers of both signals, which only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._told)
                self._before.setdefault(number, before)

    def close(self) -> None:
        """Restore the previous handlers."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the first step, which is not 0 in a resumed run."""
        self._steps = cast(Task, pl_module).step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop once the previous step is saved; its logs are complete now."""
        if self.saved:
            if isinstance(trainer.strategy, Sharded):
                trainer.strategy.make_whole()  # all processes are here
            raise Stop
        self._can_wait = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a complete optimizer step if a signal has arrived."""
        if cast(Task, pl_module).step != self._steps:
            self._steps = cast(Task, pl_module).step
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save again, with the results of the validation."""
        if self._can_wait:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not int(all_reduce_sum(torch.tensor(self.number))):
            return
        self.number = self.number or signal.SIGTERM  # another process received the signal
        self._saving = True
        if self.path is not None:
            trainer.save_checkpoint(self.path)
        self._saving, self.saved = False, True

    def _told(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loader's worker
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._saving:
            return
        again, self.number = self.number != 0, number
        if again or not self._can_wait:
            raise Stop
