"""Saved artifacts of every kind, opened and checked: what a model card and an upload are made of."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from gritvq.component import packages_of
from gritvq.files import checked_file, place_of_file, regular_file
from gritvq.items.ids import SemanticIds
from gritvq.items.recommenders import GenerativeRecommender
from gritvq.priors.base import Prior
from gritvq.saving import CONFIG, WEIGHTS, saved_kind
from gritvq.text.networks.model import TraceModel
from gritvq.tokenizer import Tokenizer
from gritvq.training.run_folder import RunFolder

__all__ = ["Artifact", "Shareable", "check_run", "modules_of", "opened"]

Shareable: TypeAlias = Tokenizer | Prior | GenerativeRecommender | TraceModel | SemanticIds
_IDS, _IDS_HEADER, _IDS_TABLE = "semantic_ids", "semantic_ids.json", "ids.parquet"
_CLASSES: dict[str, Any] = {
    "tokenizer": Tokenizer,
    "recommender": GenerativeRecommender,
    "prior": Prior,
    "text_model": TraceModel,
}


class Artifact(NamedTuple):
    """A whole artifact in a folder.

    Attributes:
        kind: ``"tokenizer"``, ``"recommender"``, ``"prior"``, ``"text_model"`` or ``"semantic_ids"``.
        folder: Where its files are.
        loaded: The artifact.
        config: Content of its readable file.
        files: Names of its files, sorted.
        run: The run that wrote it, or None.
    """

    kind: str
    folder: Path
    loaded: Any
    config: Mapping[str, Any]
    files: tuple[str, ...]
    run: RunFolder | None

    def place(self, name: str) -> Path:
        """Where one of its files is."""
        return place_of_file(self.folder, name)

    def checksum(self) -> str:
        """SHA-256 of its largest file: the weights, or the table of the ids."""
        return _sum_of(self.place(_IDS_TABLE if self.kind == _IDS else WEIGHTS))


@contextmanager
def opened(source: Any, run: str | Path | None = None, trusted: Iterable[str] = ()) -> Iterator[Artifact]:
    """Open and load an artifact, its folder, or the folder of a run that trained it.

    Args:
        source: An artifact, or a folder.
        run: The run that wrote the artifact; the folder itself where that is one of a run.
        trusted: Modules besides ``gritvq`` that its classes may come from; all of those of an artifact in memory are.

    Raises:
        ValueError: If there is no artifact, it is damaged, or the run wrote another one.
    """
    if not isinstance(source, (str, Path)):
        with tempfile.TemporaryDirectory() as scratch:
            folder, trusted = _saved(source, Path(scratch) / "artifact", trusted)
            yield _open(folder, None if run is None else RunFolder(run), trusted)
        return
    folder, own = Path(source), RunFolder(source)
    is_artifact = (folder / CONFIG).is_file() or (folder / _IDS_HEADER).is_file()
    found = folder if is_artifact or not folder.is_dir() else own.model or _ids_of(own)
    if not folder.is_dir() or found is None:
        told = "which has neither" if folder.is_dir() else "which is not a folder"
        raise ValueError(
            f"expected the folder of an artifact, with {CONFIG} or {_IDS_HEADER}, or of a run, got {str(source)!r}, "
            f"{told}; give the folder that save_pretrained or a run has written"
        )
    yield _open(found, RunFolder(run) if run is not None else own if found is not folder else None, trusted)


def _saved(source: Any, folder: Path, trusted: Iterable[str]) -> tuple[Path, set[str]]:
    """Write an artifact in memory; where, and the modules of its classes."""
    if isinstance(source, SemanticIds):
        return source.save(folder), set(trusted)
    if not isinstance(source, (Tokenizer, Prior, GenerativeRecommender, TraceModel)):
        raise ValueError(
            "expected a tokenizer, prior, recommender, model of text, semantic ids, or the folder of one, got "
            f"{type(source).__name__}; save other models with their own library"
        )
    return source.save_pretrained(folder), {*trusted, *packages_of(source)}


def _open(folder: Path, run: RunFolder | None, trusted: Iterable[str]) -> Artifact:
    if (folder / _IDS_HEADER).is_file():
        ids = SemanticIds.load(folder)  # which compares its checksums
        content = {"fingerprint": ids.fingerprint, "collisions": ids.collisions}
        artifact = Artifact(_IDS, folder, ids, content, (_IDS_TABLE, _IDS_HEADER), run)
    else:
        kind, config = saved_kind(folder, list(_CLASSES))
        loaded = _CLASSES[kind].from_pretrained(folder, trusted=trusted)
        artifact = Artifact(kind, folder, loaded, config, _files_of(folder, config), run)
    if run is not None:
        check_run(artifact, run)
    return artifact


def _files_of(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of all files that belong together, each compared with its checksum."""
    sums = config.get("sha256")
    sums = sums if isinstance(sums, dict) else {}  # the first versions wrote no checksums
    names = {CONFIG, WEIGHTS, *sums}
    for name in names - {CONFIG}:
        if not isinstance(sums.get(name, ""), str):  # its content would not be compared, and it may be a link
            raise ValueError(f"expected the checksum of {name!r} in {folder / CONFIG}, got none; it is no artifact")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"expected files inside of {folder}, got {name!r} in its {CONFIG}; it is no artifact")
        checked_file(folder, name, config)
    return tuple(sorted(names))


def check_run(artifact: Artifact, run: RunFolder) -> None:
    """Check that a run wrote this artifact: that its metrics and plots are about it.

    Raises:
        ValueError: If it wrote another one, or none.
    """
    own = _ids_of(run) if artifact.kind == _IDS else run.model
    name = _IDS_TABLE if artifact.kind == _IDS else WEIGHTS
    if own is None or not place_of_file(own, name).is_file():
        raise ValueError(f"expected the folder of the run that made it, got {run.path}, which has none like it")
    if _sum_of(place_of_file(own, name)) != artifact.checksum():
        raise ValueError(
            f"expected the folder of the run that made it, got {run.path}, whose {own.name}/ has another {name}; its "
            "metrics and plots are about that one, so leave the run out or give the right one"
        )


def modules_of(config: Any) -> list[str]:
    """Top-level modules besides ``gritvq`` of the classes that a description names.

    Example:
        >>> modules_of({"class_path": "my_module.Encoder", "init_args": {"x": [{"class_path": "gritvq.FSQ"}]}})
        ['my_module']
    """
    found: set[str] = set()
    stack = [config]
    while stack:
        each = stack.pop()
        if isinstance(each, Mapping):
            if isinstance(each.get("class_path"), str):
                found.add(each["class_path"].split(".")[0])
            stack += each.values()
        elif isinstance(each, list):
            stack += each
    return sorted(found - {"gritvq"})


def _ids_of(run: RunFolder) -> Path | None:
    return run.ids if (run.ids / _IDS_HEADER).is_file() else None


def _sum_of(path: Path) -> str:
    digest = hashlib.sha256()
    with regular_file(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
