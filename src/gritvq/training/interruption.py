"""What an interrupt or a request to end does to a run: it saves, says so, and stops."""

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
from gritvq.training.task import Task

__all__ = ["Interrupted", "Interruption", "Listener", "Stop"]


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, by Ctrl-C (SIGINT) or by SIGTERM.

    Args:
        message: What it left; empty in all processes of a run but the first.
        number: The signal; None in all processes but the first.

    Attributes:
        exit_code: What a shell expects of the program: 128 and the number of the signal, 0 without one.
    """

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        self.exit_code = 0 if number is None else 128 + number


class Stop(BaseException):
    """Ends Lightning's loops; no KeyboardInterrupt, which Lightning answers by killing and exiting itself."""


class Listener(Callback):
    """Listens from before the codebook is fitted, see :class:`Interruption`; the first callback of a run."""

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Already here, so that processes that read data inherit it and leave Ctrl-C to this one."""
        self.interruption.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In the place of Lightning, which has begun to listen and would end the run without saving."""
        self.interruption.listen()


class Interruption(Callback):
    """Ends a run at the next step after SIGINT or SIGTERM with a checkpoint from which it goes on bitwise.

    All processes stop after the same step, whichever of them was told to. A validation that has begun is finished. A
    second signal stops at once, and so does the first while the codebook is being fitted, when there is nothing to
    save. SLURM's signal for requeueing stays Lightning's.

    Args:
        path: Where the checkpoint goes; None where the run writes nothing.

    Attributes:
        number: The signal; 0 before there is one.
        saved: Whether the run has come to its end at a whole step.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.number, self.saved = path, 0, False
        self._process, self._steps, self._can_wait, self._saving = os.getpid(), 0, False, False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over both signals; threads cannot."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._told)
                self._before.setdefault(number, before)

    def close(self) -> None:
        """Give the signals back."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where a resumed run starts."""
        self._steps = cast(Task, pl_module).step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop if the step before was the last; by now everything about it is logged."""
        if self.saved:
            raise Stop
        self._can_wait = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if asked to stop, after a whole step of the optimizer."""
        if cast(Task, pl_module).step != self._steps:
            self._steps = cast(Task, pl_module).step
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save again what the validation changed: that it is done, and the best so far."""
        if self._can_wait:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not int(all_reduce_sum(torch.tensor(self.number))):
            return
        self.number = self.number or signal.SIGTERM  # another process was told
        self._saving = True
        if self.path is not None:
            trainer.save_checkpoint(self.path)
        self._saving, self.saved = False, True

    def _told(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # one that reads data for this process
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._saving:
            return
        again, self.number = self.number != 0, number
        if again or not self._can_wait:
            raise Stop
