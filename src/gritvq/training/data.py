"""Training data, and its wrapper for Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from gritvq.training.task import Task

__all__ = ["DataModule", "TrainingData"]


class TrainingData(Protocol):
    """Loaders for training and validation: :class:`gritvq.images.ImageData`, :class:`gritvq.items.SequenceData`."""

    def train_dataloader(self, first_step: Callable[[], int] = ...) -> DataLoader[Any]:
        """Endless batches; each iteration starts at the step that ``first_step`` returns."""

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches in a fixed order."""


class DataModule(LightningDataModule):
    """Training data as a Lightning module; batches start at the task's step, so that a run resumes bitwise.

    :func:`gritvq.training.train` applies it to its data; use it to fit a :class:`~gritvq.training.Task` with your own
    ``Trainer``.

    Args:
        data: The training data.

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
        """Endless batches from the task's current step, or from step 0 without a trainer."""
        return self.data.train_dataloader(self._first_step)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches."""
        return self.data.val_dataloader()

    def _first_step(self) -> int:
        if self.trainer is None:
            return 0
        task = cast(Task, self.trainer.lightning_module)
        return task.step * task.accumulate
