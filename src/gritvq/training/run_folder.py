"""The folder of a run: names of its files, and checks before a new run replaces it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gritvq.files import folder_exists, holds_files, place_of_file, remove_folder
from gritvq.saving import CONFIG

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of a run; all names of files in it are defined here.

    Args:
        path: The folder; it need not exist.

    Attributes:
        path: The folder.
        config: All settings of the run, to repeat it (YAML).
        data: Description of the data (JSON).
        logs: TensorBoard and CSV logs, in ``run-0``, ``run-1``, ...
        checkpoints: Folder of checkpoints.
        last_checkpoint: The newest checkpoint.
        metrics: Metrics on held-out data (JSON).
        tokenizer: The trained tokenizer.
        recommender: The trained recommender.
        prior: The trained prior.
        text_model: The trained model of text.
        semantic_ids: The semantic ids that a recommender's run made, with those added since.
        ids: Semantic ids written by ``gritvq semantic-ids fit``.
        checkpoint_ids: A copy of the ids that the checkpoints of a recommender belong to, since ids may grow.
        report: Metrics of these ids (JSON).
        tree: Plot of their tree.
        collisions: Plot of items with equal indices.
        reconstructions: Plot of originals above their reconstructions.
        usage: Plot of how often each code is used.
        codebook: Plot of the codes.
        samples: Pictures that a prior generated.
        texts: Texts that a model wrote, with reconstructions (Markdown).
        codes: What single codes of a text tokenizer stand for (Markdown).

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
        self.prior, self.text_model = self.path / "prior", self.path / "text-model"
        self.semantic_ids, self.ids = self.path / "semantic-ids", self.path / "ids"
        self.checkpoint_ids = self.checkpoints / "ids"
        self.report, self.tree = self.path / "report.json", self.path / "tree.png"
        self.collisions = self.path / "collisions.png"
        self.reconstructions, self.usage = self.path / "reconstructions.png", self.path / "usage.png"
        self.codebook, self.samples = self.path / "codebook.png", self.path / "samples.png"
        self.texts, self.codes = self.path / "texts.md", self.path / "codes.md"

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> RunFolder:
        """The run that a checkpoint belongs to."""
        return cls(Path(checkpoint).resolve().parent.parent)

    @property
    def is_run(self) -> bool:
        """Whether the folder contains a run: its settings or its model."""
        return self.config.is_file() or self.model is not None

    @property
    def model(self) -> Path | None:
        """The folder of what the run trained: a recommender, a prior, a model of text or a tokenizer; or None."""
        models = self.recommender, self.prior, self.text_model, self.tokenizer
        return next((model for model in models if place_of_file(model, CONFIG).is_file()), None)

    @property
    def any_ids(self) -> Path:
        """The folder of ids here: those of ``semantic-ids fit``, those of a recommender's run, or the folder itself."""
        places = self.ids, self.semantic_ids / "ids", self.checkpoint_ids
        return next((own for own in places if folder_exists(own)), self.path)

    @property
    def plots(self) -> tuple[Path, ...]:
        """Places of all plots that a run may write."""
        return self.reconstructions, self.usage, self.codebook, self.samples, self.collisions, self.tree

    def check(self, overwrite: bool, instead: str = "") -> None:
        """Check that a new run can be written here.

        Args:
            overwrite: Whether an existing run may be replaced.
            instead: Another suggestion for the error message, such as ``"resume it, "``.

        Raises:
            ValueError: If the path is a file, or a folder with files that is not a run or must not be replaced.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"expected a folder for the run, got the file {self.path}; choose another --out")
        if self.path.exists() and holds_files(self.path) and not (overwrite and self.is_run):
            holds, others = "files that are not a run", ""
            if self.is_run:
                holds, others = "a run", f", {instead}or replace it with --overwrite true"
            raise ValueError(
                f"expected a new or empty folder, got {self.path}, which holds {holds}; choose another --out{others}"
            )

    def replace(self, overwrite: bool, instead: str = "") -> None:
        """Make the folder of a new run; with ``overwrite`` an existing run is removed. Raises as :meth:`check`."""
        self.check(overwrite, instead)
        self.clear()
        self.path.mkdir(parents=True, exist_ok=True)

    def clear(self, but: Sequence[Path] = ()) -> None:
        """Remove the files of a run, except ``config.yaml`` and the folders in ``but``."""
        models = self.tokenizer, self.recommender, self.prior, self.text_model
        for part in (self.logs, self.checkpoints, *models, self.semantic_ids, self.ids):
            if part not in but:
                remove_folder(part)
        for part in (self.data, self.metrics, self.report, self.texts, self.codes, *self.plots):
            part.unlink(missing_ok=True)
