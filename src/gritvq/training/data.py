"""What a run trains on, and the form in which Lightning takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from lightning import LightningDataModule
from torch.utils.data import DataLoader

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
    """Training data for Lightning: batches start at the trainer's step, so a resumed run goes on bitwise.

    Only a trainer of your own needs it, :func:`gritvq.training.train` takes the data themselves.

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
        """Endless batches from the trainer's current step on, or from step 0 without a trainer."""
        return self.data.train_dataloader(self._first_step)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches to measure on."""
        return self.data.val_dataloader()

    def _first_step(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0
