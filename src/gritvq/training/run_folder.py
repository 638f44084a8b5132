"""The folder of a run: the names in it, whether it may be written, and what is found there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from gritvq.files import holds_files
from gritvq.saving import CONFIG

__all__ = ["RunFolder"]


class RunFolder:
    """Where a run lives: everything that is written into it has its name here, and nowhere else.

    Args:
        path: The folder; it need not exist.

    Attributes:
        path: The folder.
        config: Settings that repeat the run, YAML.
        data: Which data it was, JSON.
        logs: Of TensorBoard and as CSV, below ``run-0``, ``run-1``, ...
        checkpoints: Of training.
        last_checkpoint: The newest of them.
        metrics: Numbers measured on held-out data, JSON.
        tokenizer: The trained tokenizer.
        recommender: The trained recommender.
        semantic_ids: The ids that a recommender was trained on.
        ids: Ids, where the folder is one of ids.
        report: Metrics of these ids, JSON.
        tree: Plot of them.
        collisions: Plot of items with equal codes.
        reconstructions: Plot of originals above their reconstructions.
        usage: Plot of how often each code is used.
        codebook: Plot of the codes.

    Example:
        >>> run = RunFolder("runs/fit")
        >>> str(run.last_checkpoint)
        'runs/fit/checkpoints/last.ckpt'
        >>> RunFolder.of_checkpoint(run.last_checkpoint).path == run.path.resolve()
        True
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.data, self.metrics = (
            self.path / name for name in ("config.yaml", "data.json", "metrics.json")
        )
        self.logs, self.checkpoints = self.path / "logs", self.path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.tokenizer, self.recommender = self.path / "tokenizer", self.path / "recommender"
        self.semantic_ids, self.ids = self.path / "semantic-ids", self.path / "ids"
        self.report, self.tree = self.path / "report.json", self.path / "tree.png"
        self.collisions = self.path / "collisions.png"
        self.reconstructions, self.usage = self.path / "reconstructions.png", self.path / "usage.png"
        self.codebook = self.path / "codebook.png"

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> RunFolder:
        """The run that a checkpoint belongs to."""
        return cls(Path(checkpoint).resolve().parent.parent)

    @property
    def is_run(self) -> bool:
        """Whether there is a run in the folder: its settings, or a tokenizer that it has written."""
        return self.config.is_file() or (self.tokenizer / CONFIG).is_file()

    def check(self, overwrite: bool, instead: str = "") -> None:
        """Say before any work that a run cannot be written here.

        Args:
            overwrite: Whether a run may be replaced.
            instead: What else could be done, in words.

        Raises:
            ValueError: If the path is a file, or a folder that holds files and is not to be replaced, or no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"expected a folder for the run, got the file {self.path}; choose another --out")
        if self.path.exists() and holds_files(self.path) and not (overwrite and self.is_run):
            holds, others = "files that are no run", ""
            if self.is_run:
                holds, others = "a run", f", {instead}or replace it with --overwrite true"
            raise ValueError(
                f"expected a new or empty folder, got {self.path}, which holds {holds}; choose another --out{others}"
            )

    def replace(self, overwrite: bool, instead: str = "") -> None:
        """Make the folder for a new run; an old one there goes, where it may.

        Raises:
            ValueError: As :meth:`check` does.
        """
        self.check(overwrite, instead)
        self.clear()
        self.path.mkdir(parents=True, exist_ok=True)

    def clear(self, but: Sequence[Path] = ()) -> None:
        """Remove what a run has written, but not these, which are the new run's already."""
        for part in (self.logs, self.checkpoints, self.tokenizer, self.recommender, self.semantic_ids, self.ids):
            if part not in but:
                shutil.rmtree(part, ignore_errors=True)
        plots = self.reconstructions, self.usage, self.codebook, self.collisions, self.tree
        for part in (self.data, self.metrics, self.report, *plots):
            part.unlink(missing_ok=True)
