"""Checkpoint files: written atomically, with a checksum, and read without unpickling code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from gritvq.files import check_archive, replacing, seal_archive

__all__ = ["CheckpointFiles"]


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
