"""Folders of runs: where one may be written, what it goes on from, the configuration that repeats it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Place", "check_folder", "check_rates", "fresh_folder", "open_run", "place_of"]


class Place(NamedTuple):
    """Where a training run goes.

    Attributes:
        out: Its folder.
        resume: Checkpoint that it goes on from.
        first: Whether this is the process that a person started, not one of those it starts for other devices.
        goes_on: Whether the checkpoint is one of the folder's own.
    """

    out: Path
    resume: str | None
    first: bool
    goes_on: bool

    @property
    def fresh(self) -> bool:
        """Whether this process has to make the folder."""
        return self.first and not self.goes_on


_INSTEAD = "go on with --resume last, "


def place_of(config: Any) -> Place:
    """What ``--out``, ``--resume`` and ``--overwrite`` say; wrong ones are refused before any work.

    Raises:
        ValueError: If the checkpoint is no file, or the folder is taken.
    """
    out, resume = Path(config.out), config.resume
    if resume == "last":
        resume = str(out / "checkpoints" / "last.ckpt")
    if resume is not None and not Path(resume).is_file():
        raise ValueError(
            f"expected a checkpoint to resume from, got {resume}, which is no file; see the run's checkpoints/"
        )
    goes_on = resume is not None and out.resolve() in Path(resume).resolve().parents
    place = Place(out, resume, os.environ.get("LOCAL_RANK", "0") == "0", goes_on)
    if place.fresh:
        check_folder(config.out, config.overwrite, _INSTEAD)
    return place


def check_rates(config: Any, place: Place) -> None:
    """Refuse rates that a checkpoint would silently overrule.

    Raises:
        ValueError: If the run went on with other rates than it began with.
    """
    import yaml

    path = place.out / "config.yaml"
    if not place.goes_on or not path.is_file():
        return
    began = yaml.safe_load(path.read_text(encoding="utf-8")).get("task", {})
    for name in ("lr", "betas", "weight_decay"):
        wanted = config.task.get(name)
        wanted = list(wanted) if isinstance(wanted, tuple) else wanted
        if name in began and began[name] != wanted:
            raise ValueError(
                f"expected --task.{name} {began[name]} as the run began with, since the optimizer goes on with it, got "
                f"{wanted}; leave it, or start another run"
            )


def open_run(parser: Any, config: Any, place: Place, changes: Mapping[str, str] | None = None) -> None:
    """Make the folder and write the configuration that repeats the run; nothing in processes but the first.

    Args:
        parser: Knows how to write its configurations.
        config: As it was parsed.
        place: Of the run.
        changes: Settings to write instead, by their dotted names.
    """
    from gritvq.files import replacing

    if not place.first:
        return
    if place.fresh:
        fresh_folder(config.out, config.overwrite, _INSTEAD)
    saved = config.clone()
    for name in ("config", "resume", "overwrite"):
        saved.pop(name, None)
    for name, value in (changes or {}).items():
        saved[name] = value
    with replacing(place.out / "config.yaml") as scratch:
        scratch.write_text(parser.dump(saved, skip_validation=True, skip_none=False), encoding="utf-8")


def check_folder(path: str, overwrite: bool, instead: str = "") -> Path:
    """Say before any work that a run cannot be written there; ``instead`` is what else could be done."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder for the run, got the file {folder}; choose another --out")
    if folder.exists() and any(folder.iterdir()):
        run = (folder / "checkpoints").exists() or (folder / "tokenizer").exists() or (folder / "config.yaml").exists()
        if not (overwrite and run):
            raise ValueError(
                f"expected a new or empty folder, got {folder}, which holds files; choose another --out, {instead}or "
                "replace a run with --overwrite true"
            )
    return folder


def fresh_folder(path: str, overwrite: bool, instead: str = "") -> Path:
    """A folder for a new run; an old run there is an error unless it may be replaced."""
    folder = check_folder(path, overwrite, instead)
    if folder.exists():
        for name in ("logs", "checkpoints", "tokenizer", "recommender", "semantic-ids", "ids"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("metrics.json", "report.json", "tree.png"):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
