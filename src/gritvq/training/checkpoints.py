"""Checkpoints on the disk: whole or not at all, with a checksum, and nothing but tensors and plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from gritvq.files import check_archive, replacing, seal_archive

__all__ = ["CheckpointFiles"]


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints, with the one order of writing and the one checksum of all files.

    Lightning's own way writes them into the system's folder for temporary files first; moved from there to another
    disk they are copied, and a process that dies meanwhile leaves half of one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; an old one of the same name is replaced."""
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
