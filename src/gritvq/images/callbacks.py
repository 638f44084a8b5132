"""Callbacks for training an image tokenizer."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from gritvq.images import plots
from gritvq.images.tokenizer import ImageTokenizer
from gritvq.training.run_folder import RunFolder
from gritvq.training.task import Task

__all__ = ["ReconstructionPlots"]


class ReconstructionPlots(Callback):
    """Plots originals with reconstructions, and codebook usage, after every validation.

    Args:
        run: Where the plots go; TensorBoard gets the grid too.
        num_images: Pictures shown.
    """

    def __init__(self, run: RunFolder, num_images: int = 8) -> None:
        self.run, self.num_images = run, num_images
        self.images: Tensor | None = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first pictures."""
        if batch_idx == 0:
            self.images = batch[: self.num_images]

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if self.images is None or not trainer.is_global_zero:
            return
        tokenizer = cast(ImageTokenizer, pl_module.tokenizer)
        reconstruction = tokenizer(self.images).reconstruction.float().clamp(0, 1)
        plots.reconstruction_grid(self.images, reconstruction, self.run.reconstructions)
        counts: Any = pl_module.codebook_usage.counts[0]  # type: ignore[union-attr,index]
        plots.usage_plot(counts, self.run.usage)
        both = torch.cat([torch.cat(list(images), 2) for images in (self.images, reconstruction)], 1)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("reconstructions", both.cpu(), cast(Task, pl_module).step)
