"""What a run trains on, and the form in which Lightning takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from gritvq.training.task import Task

__all__ = ["DataModule", "TrainingData"]


class TrainingData(Protocol):
    """Batches to train on, endless, and batches to measure on.

    :class:`gritvq.images.ImageData` and :class:`gritvq.items.sequences.SequenceData` are such.
    """

    def train_dataloader(self, first_step: Callable[[], int] = ...) -> DataLoader[Any]:
        """Endless batches, each iteration from the step on that ``first_step`` says."""

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches to measure on, in a fixed order."""


class DataModule(LightningDataModule):
    """Training data for Lightning: batches start at the task's step, so a resumed run goes on bitwise.

    Only a trainer of your own needs it, to fit a :class:`~gritvq.training.Task`; :func:`gritvq.training.train` takes
    the data themselves.

    Args:
        data: What to train on.

    Example:
        >>> from gritvq.images import ImageData
        >>> module = DataModule(ImageData("photographs", size=16, batch_size=2))
        >>> next(iter(module.train_dataloader())).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, data: TrainingData) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless batches from the task's current step on, or from step 0 without a trainer."""
        return self.data.train_dataloader(self._first_step)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches to measure on."""
        return self.data.val_dataloader()

    def _first_step(self) -> int:
        if self.trainer is None:
            return 0
        task = cast(Task, self.trainer.lightning_module)
        return task.step * task.accumulate
