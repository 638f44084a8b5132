"""Checkpoint files: written atomically, with a checksum, of whole steps, and read without unpickling code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from gritvq.files import check_archive, replacing, seal_archive
from gritvq.training.task import Task

__all__ = ["CheckpointFiles", "StepCheckpoint"]


class CheckpointFiles(TorchCheckpointIO):
    """Writes and reads Lightning's checkpoints atomically, with the checksum that all files of gritvq have.

    Lightning's own plugin writes to the system's temporary folder first. If that is on another disk, the file is
    copied from there, and a process that is killed meanwhile leaves a truncated checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; an existing file of that name is replaced."""
        with replacing(path) as scratch:
            torch.save(checkpoint, scratch)
            seal_archive(scratch)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **settings: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            ValueError: If it is damaged.
        """
        check_archive(Path(path))
        return super().load_checkpoint(path, *arguments, **settings)


class StepCheckpoint(ModelCheckpoint):
    """Writes the checkpoint of a step once all of this step is logged, and validated if that is due.

    Lightning's own writes it before. A run that is killed in between and resumed then lacks that step's metrics and
    that validation, and whatever depends on it, such as which weights are the best so far.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._waits = False  # for a validation
        self._begun = False

    def has_last(self, trainer: Trainer) -> bool:
        """Whether the newest file is of the last step: written in this run, or before it where no step was left."""
        return not self._begun or self._last_global_step_saved == trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that there are steps to do."""
        super().on_train_start(trainer, pl_module)
        self._begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write it if it is due, unless a validation comes first."""
        task = cast(Task, pl_module)
        if task.ends_step and trainer.global_step % self._every_n_train_steps == 0:
            self._waits = _validates(trainer, task)
            if not self._waits:
                task.log_now()
                super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the one that has waited."""
        if self._waits:
            self._waits = False
            super().on_train_batch_end(trainer, pl_module, None, None, 0)


def _validates(trainer: Trainer, task: Task) -> bool:
    """Whether there is a validation after this step."""
    every = trainer.val_check_batch  # in batches
    if not trainer.enable_validation or not every or not sum(trainer.num_val_batches):
        return False
    return task.step * task.accumulate % every == 0
