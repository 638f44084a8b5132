"""The jobs that the scripts on failures start, stop, and start again: small data, commands, and what must be whole."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from gritvq import Tokenizer
from gritvq.files import check_archive, folder_exists, holds_files, place_of_file
from gritvq.items import GenerativeRecommender, ItemTokenizer, SemanticIds
from gritvq.priors import Prior
from gritvq.text import TraceModel
from gritvq.tokens import read_tokens
from gritvq.training import RunFolder

__all__ = ["JOBS", "Job", "differing", "finished", "make_data", "program", "result_of", "run", "slug", "whole"]

# What the trainings have in common: a checkpoint and a validation every few steps, some of them at the same step.
_PLAN = (
    "--plan.accelerator cpu --plan.max_steps {steps} --plan.validate_every {validate} --plan.checkpoint_every {save}"
)
_PICTURES = (
    "fit images --data.path data/pictures --preset vq_vae_ema --codebook_size 16 --tokenizer.encoder.width 8 "
    "--tokenizer.decoder.width 8 --data.size 16 --data.batch_size 4 --out run "
    f"{_PLAN.format(steps=40, validate=20, save=10)}"
)
_ITEMS = (
    "fit items --data.folder data/shop --backbone.dim 16 --backbone.num_layers 1 --backbone.num_heads 2 "
    "--backbone.hidden_dim 32 --tokenizer.codebook_size 8 --tokenizer.num_levels 2 --batches.batch_size 16 "
    "--batches.max_history 6 --task.lr 0.01 --task.warmup_steps 2 --task.beam 10 --beam 10 --out run "
    f"{_PLAN.format(steps=40, validate=20, save=10)}"
)
_PRIOR = (
    "fit prior --tokenizer data/tokenizer --data.train data/tokens.npz --data.batch_size 4 --prior.width 16 "
    f"--prior.depth 1 --prior.num_heads 2 --out run {_PLAN.format(steps=40, validate=20, save=10)}"
)
_TEXT = (
    "fit text --data.path data/texts.jsonl --model gritvq.text.trace --model.width 16 --model.depth 1 "
    "--model.num_heads 2 --model.length 64 --model.dim 4 --data.vocabulary 280 --data.batch_size 8 "
    f"--data.segmentation.max_tokens 8 --out run {_PLAN.format(steps=40, validate=20, save=10)}"
)
_ENCODE = "encode data/pictures --tokenizer data/tokenizer --random_crops 20 --size 16 --batch_size 4"
_IDS = "semantic-ids fit --data data/shop --tokenizer.codebook_size 8 --categories kind --out run"


class Job(NamedTuple):
    """A command that writes something.

    Attributes:
        name: In the tables.
        command: Its words, run in a folder that has ``data``.
        out: What it writes.
        before: The command that has written there before; None if nothing is there.
    """

    name: str
    command: str
    out: str
    before: str | None = None

    def again(self, folder: Path) -> str | None:
        """What a user says after a kill; None if all is there."""
        out = folder / self.out
        if not self.command.startswith(("fit ", "semantic-ids fit")):  # these replace nothing, or all
            done = out.is_file()  # a folder of token files is gone on with, or found to be whole
            return None if done and self.before is None else self.command
        settings = RunFolder(out).config
        if self.command.startswith("fit ") and RunFolder(out).last_checkpoint.exists() and self._begun(settings):
            return f"{self.command.replace(' --overwrite true', '')} --resume last"
        if out.exists() and holds_files(out):
            return f"{self.command.replace(' --overwrite true', '')} --overwrite true"
        return self.command

    def _begun(self, settings: Path) -> bool:
        """Whether the settings are of this run, not of the one before it."""
        seed = yaml.safe_load(settings.read_text())["plan"]["seed"] if settings.exists() else None
        return str(seed) == ("1" if "--plan.seed 1" in self.command else "0")


JOBS = (
    Job("fit images", _PICTURES, "run"),
    Job("fit images over an old run", f"{_PICTURES} --plan.seed 1 --overwrite true", "run", _PICTURES),
    Job("fit items", _ITEMS, "run"),
    Job("fit prior", _PRIOR, "run"),
    Job("fit text", _TEXT, "run"),
    Job("encode, one file", f"{_ENCODE} --out out.npz", "out.npz"),
    Job(
        "encode over an old file",
        f"{_ENCODE} --seed 1 --overwrite true --out out.parquet",
        "out.parquet",
        f"{_ENCODE} --out out.parquet",
    ),
    Job("encode, several files", f"{_ENCODE} --rows_per_file 300 --out run", "run"),
    Job("semantic-ids fit", _IDS, "run"),
    Job(
        "semantic-ids fit over old ids",
        f"{_IDS} --tokenizer.num_levels 2 --overwrite true",
        "run",
        _IDS,
    ),
    Job("semantic-ids add", "semantic-ids add run --data data/more", "run", _IDS),
)


def environment() -> dict[str, str]:
    """One thread, and this copy of the package."""
    source = str(Path(__file__).resolve().parents[2] / "src")
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONPATH": source, "CUDA_VISIBLE_DEVICES": ""}


def program(command: str, folder: Path, before: tuple[str, ...] = (), umask: int = -1) -> subprocess.Popen[str]:
    """Start the program in a folder, in a process group of its own; ``before`` stands before its words."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "gritvq", *command.split()],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        umask=umask,
    )


def run(command: str, folder: Path, before: tuple[str, ...] = (), umask: int = -1) -> tuple[int, str]:
    """Exit code and output of the program."""
    process = program(command, folder, before, umask)
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def finished(command: str, folder: Path, umask: int = -1) -> str:
    """Output of the program, which must end well."""
    code, said = run(command, folder, umask=umask)
    if code:
        raise RuntimeError(f"exit code {code} of gritvq {command} in {folder}:\n{said[-2000:]}")
    return said


def slug(name: str) -> str:
    """A folder's name, which stays one word of a command."""
    return name.replace(",", "").replace(" ", "-")


def make_data(folder: Path) -> None:
    """Pictures, a shop with two catalogues, texts; a tokenizer of the pictures and their tokens."""
    import pyarrow
    from pyarrow import parquet

    (folder / "data" / "pictures").mkdir(parents=True)
    for number in range(48):
        pixels = np.random.default_rng(number).integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "data" / "pictures" / f"{number:02}.png")
    for name, count in (("shop", 400), ("more", 800)):
        (folder / "data" / name).mkdir()
        kinds = np.arange(count) % 6
        vectors = np.random.default_rng(0).normal(size=(6, 16))[kinds]
        vectors = vectors + 0.3 * np.random.default_rng(1).normal(size=(count, 16))
        rows = {"item": [f"a{row}" for row in range(count)], "kind": [f"kind {kind}" for kind in kinds]}
        parquet.write_table(pyarrow.table(rows), folder / "data" / name / "items.parquet")
        np.save(folder / "data" / name / "item_embeddings.npy", vectors.astype(np.float32))
    events = [(f"u{user}", f"a{(user + 2 * place) % 400}", place) for user in range(200) for place in range(6)]
    table = dict(zip(("user", "item", "position"), map(list, zip(*events, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(table), folder / "data" / "shop" / "interactions.parquet")
    draw = np.random.default_rng(0)
    words = ["red", "blue", "green", "bird", "stone", "river", "sees", "moves", "holds", "a", "the", "one"]
    texts = [" ".join(" ".join(draw.choice(words, 5)) + "." for _ in range(1 + n % 3)) for n in range(80)]
    lines = "\n".join(json.dumps({"text": text.capitalize()}) for text in texts)
    (folder / "data" / "texts.jsonl").write_text(lines)
    steps = "--plan.max_steps 40", "--plan.max_steps 10"
    finished(_PICTURES.replace(*steps), folder)
    shutil.move(folder / "run" / "tokenizer", folder / "data" / "tokenizer")
    shutil.rmtree(folder / "run")
    finished("encode data/pictures --tokenizer data/tokenizer --size 16 --out data/tokens.npz", folder)


# --- what is there ----------------------------------------------------------------------------------------------------

_LOADERS: dict[str, Callable[[Path], object]] = {
    "tokenizer": lambda path: Tokenizer.from_pretrained(path),
    "item tokenizer": lambda path: ItemTokenizer.from_pretrained(path),
    "ids": lambda path: SemanticIds.load(path),
    "recommender": lambda path: GenerativeRecommender.from_pretrained(path),
    "prior": lambda path: Prior.from_pretrained(path),
    "text-model": lambda path: TraceModel.from_pretrained(path),
}


def whole(out: Path) -> list[str]:
    """The artifacts below a path, all of them read with their checksums.

    Raises:
        ValueError: If one is damaged.
    """
    if out.is_file():
        read_tokens(out)
        return [out.name]
    found = []
    for folder in _folders(out):
        kind = "item tokenizer" if folder.name == "tokenizer" and _is_of_items(folder) else folder.name
        header = "semantic_ids.json" if kind == "ids" else "config.json"
        if folder_exists(folder) and (place_of_file(folder, header).exists() or holds_files(folder)):
            _LOADERS[kind](folder)
            found.append(kind)
    for path in sorted(out.rglob("*")):
        if any(part.startswith(".writing-") for part in path.parts):
            continue
        if path.suffix == ".ckpt":
            check_archive(path)
            torch.load(path, weights_only=True)
        elif path.suffix in (".parquet", ".npz") and path.name.startswith("tokens-"):
            read_tokens(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "config.yaml":
            yaml.safe_load(path.read_text())
        elif path.suffix == ".png":
            Image.open(path).load()
        else:
            continue
        found.append(path.name)
    return found


def _folders(out: Path) -> Iterator[Path]:
    """Places of artifacts in the folder of a run, whether they are there or not."""
    for inner in (out, out / "semantic-ids"):
        yield from (inner / name for name in ("tokenizer", "ids", "recommender", "prior", "text-model"))


def _is_of_items(folder: Path) -> bool:
    path = place_of_file(folder, "config.json")
    return path.exists() and "item_tokenizer" in json.loads(path.read_text())


# --- what came out ----------------------------------------------------------------------------------------------------


def result_of(out: Path) -> dict[str, str]:
    """Everything that was written, by name: bytes, or for checkpoints every value, and the rows of all logs."""
    if out.is_file():
        return {out.name: _digest(out.read_bytes())}
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix().removeprefix(".written/")  # these files count
        if path.is_dir() or name.startswith("logs/"):
            continue
        if path.suffix == ".ckpt":
            found |= {f"{name}: {key}": value for key, value in _flat(torch.load(path, weights_only=True))}
        else:
            found[name] = _digest(path.read_bytes())
    return found | logged(out)


def logged(out: Path) -> dict[str, str]:
    """Every value that a run and those that go on from it have logged, by step and name."""
    found = {}
    for path in sorted(out.glob("logs/run-*/metrics.csv"), key=lambda path: int(path.parent.name[4:])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found |= {f"log {row['step']} {name}": value for name, value in row.items() if value}
    return found


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names with other values, or that only one has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a checkpoint but the paths of Lightning's own bookkeeping."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if "Checkpoint" not in str(key):
                yield from _flat(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{key}")
    elif isinstance(value, Tensor):
        yield name, _digest(value.contiguous().flatten().view(torch.uint8).numpy().tobytes()) if value.numel() else ""
    else:
        yield name, repr(value)
