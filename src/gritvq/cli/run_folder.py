"""Folders of runs: where one may be written, what it goes on from, the configuration that repeats it."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from gritvq.files import replacing
from gritvq.training.run_folder import RunFolder

if TYPE_CHECKING:
    from gritvq.training.launch import Launch

__all__ = [
    "Place",
    "check_places",
    "check_settings",
    "extras_of",
    "open_run",
    "overwrite_argument",
    "parts_of_run",
    "place_of",
    "run_arguments",
    "run_training",
]


class Place(NamedTuple):
    """Where a training run goes.

    Attributes:
        run: Its folder.
        resume: Checkpoint that it goes on from.
        launch: The run's processes.
        goes_on: Whether the checkpoint is one of the folder's own.
    """

    run: RunFolder
    resume: str | None
    launch: Launch
    goes_on: bool

    @property
    def fresh(self) -> bool:
        """Whether this process has to make the folder."""
        return self.launch.first and not self.goes_on


_INSTEAD = "go on with --resume last, "

# What may change when a run goes on: where it goes and runs, how long, how often it saves, and what it is tested on.
_MAY_CHANGE = {
    *("out", "ids", "num_test", "callbacks", "loggers", "data.num_workers"),
    *("plan.max_steps", "plan.accelerator", "plan.checkpoint_every"),
}


def place_of(config: Any, launch: Launch) -> Place:
    """What ``--out``, ``--resume`` and ``--overwrite`` say; wrong ones are refused before any work, in all processes.

    Raises:
        ValueError: If the checkpoint is no file, or the folder is taken.
    """
    run, resume = RunFolder(config.out), config.resume
    if resume == "last":
        resume = str(run.last_checkpoint)
    goes_on = resume is not None and run.path.resolve() in Path(resume).resolve().parents

    def check() -> None:
        if resume is not None and not Path(resume).is_file():
            raise ValueError(
                f"expected a checkpoint to resume from, got {resume}, which is no file; see the run's checkpoints/"
            )
        if not goes_on:
            run.check(config.overwrite, _INSTEAD)

    launch.agree(check)
    return Place(run, resume, launch, goes_on)


def check_settings(parser: Any, config: Any, place: Place, changes: Mapping[str, str] | None = None) -> None:
    """Refuse settings that differ from those of the run that a checkpoint belongs to: resuming is the same run.

    The settings are in the ``config.yaml`` of that run, in the folder around the checkpoint's; without one only what
    the checkpoint itself holds is compared, see :func:`gritvq.training.run.check_checkpoint`.

    Raises:
        ValueError: If one differs that may not; the message names it.
    """
    if place.resume is None:
        return
    began = _began(place.resume)
    now = _flat(yaml.safe_load(_dumped(parser, config, changes)))
    differing = [name for name in began if name not in _MAY_CHANGE and _differs(name, began, now)]
    if differing:
        each = ", ".join(f"--{name} {began[name]} (got {now.get(name, 'another form')})" for name in differing[:5])
        raise ValueError(
            f"expected the settings as the run began with, since resuming is the same run: {each}"
            f"{' ...' if len(differing) > 5 else ''}; give its config.yaml with --config, or start another run "
            "from its weights with --init_from"
        )


def _differs(name: str, began: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a setting is another one now; one that versions before or after do not have is none.

    Where it was a value and is a class with settings of its own, or the other way round, its name is gone.
    """
    if name in now:
        return bool(began[name] != now[name])
    outer = itertools.accumulate(name.split(".")[:-1], "{}.{}".format)
    return any(each in now for each in outer) or any(each.startswith(f"{name}.") for each in now)


def _began(checkpoint: str) -> dict[str, Any]:
    """The settings of the run that a checkpoint belongs to, by their dotted names."""
    path = RunFolder.of_checkpoint(checkpoint).config
    try:
        return _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"expected the readable configuration of a run, got {path} ({error})") from error


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings} if prefix else {}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def _dumped(parser: Any, config: Any, changes: Mapping[str, str] | None) -> str:
    saved = config.clone()
    for name in ("config", "resume", "overwrite"):
        saved.pop(name, None)
    for name, value in (changes or {}).items():
        saved[name] = value
    return str(parser.dump(saved, skip_validation=True, skip_none=False))


def open_run(
    parser: Any,
    config: Any,
    place: Place,
    done: int = 0,
    changes: Mapping[str, str] | None = None,
    note: str = "",
) -> None:
    """Make the folder and write the configuration that repeats the run; the first process does, for all.

    A run that goes on for longer than it was planned does not repeat itself from the last plan alone, since the
    schedule spans it. So the configuration says in a comment where which plan ended.

    Args:
        parser: Knows how to write its configurations.
        config: As it was parsed.
        place: Of the run.
        done: Steps that the checkpoint has done.
        changes: Settings to write instead, by their dotted names.
        note: Comment at the top of the configuration.
    """

    def make() -> None:
        notes, path = note, place.run.config
        if place.resume is not None:
            planned = _began(place.resume).get("plan.max_steps", config.plan.max_steps)
            notes = "".join(line for line in _lines(RunFolder.of_checkpoint(place.resume).config))
            if planned != config.plan.max_steps:
                notes += f"# the first {done} steps were done with plan.max_steps {planned}\n"
        with replacing(path) as scratch:
            scratch.write_text(notes + _dumped(parser, config, changes), encoding="utf-8")
            if not place.goes_on:  # an old run stays where there is no room for a new one's first file
                place.run.replace(config.overwrite, _INSTEAD)

    place.launch.agree(make)


def _lines(path: Path) -> list[str]:
    """The comments at the top of a run's configuration."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def run_arguments(parser: Any, model: str) -> None:
    """Where a run goes and what it goes on from; Lightning's callbacks and loggers, by class and arguments.

    Args:
        parser: Of a domain of ``fit``.
        model: What a new run may start from, in words.
    """
    extra_arguments(parser)
    parser.add_argument("--out", type=str, help="folder of the run")
    parser.add_argument(
        "--resume", type=str | None, default=None, help="checkpoint to go on from, or 'last' for the run's own"
    )
    parser.add_argument(
        "--init_from", type=str | None, default=None, help=f"{model} whose weights a new run starts from"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="whether an existing run may be replaced")


def extra_arguments(parser: Any) -> None:
    """Lightning's callbacks and loggers, by class and arguments."""
    from lightning import Callback
    from lightning.pytorch.loggers import Logger

    parser.add_argument("--callbacks", type=list[Callback] | None, default=None, help="more callbacks of Lightning")
    parser.add_argument(
        "--loggers", type=list[Logger] | None, default=None, help="loggers of Lightning besides TensorBoard and CSV"
    )


def extras_of(parser: Any, config: Any) -> dict[str, Any]:
    """The callbacks and loggers that are asked for, made without drawing random numbers of the run's."""
    import torch

    asked = {name: config[name] for name in ("callbacks", "loggers") if config[name]}
    if not asked:
        return {}
    own = type(parser)()
    extra_arguments(own)
    with torch.random.fork_rng():
        made = own.instantiate(own.parse_settings(asked))
    return {name: made[name] for name in asked}


def parts_of_run(parser: Any, config: Any) -> Any:
    """What a configuration describes, made; but for callbacks and loggers, see :func:`extras_of`."""
    bare = config.clone()
    bare.callbacks = bare.loggers = None
    return parser.instantiate(bare)


def run_training(task: Any, data: Any, plan: Any, place: Place, done: int = 0, **more: Any) -> Any:
    """Train, say what begins, and end the program where it was told to stop.

    Returns:
        The trainer.
    """
    from gritvq.images.networks import num_parameters
    from gritvq.training import train
    from gritvq.training.interruption import Interrupted

    if place.launch.first:
        steps = f"for {plan.max_steps:,} steps" if not done else f"from step {done:,} to {plan.max_steps:,}"
        if done == plan.max_steps:
            steps = f"no further: all {done:,} steps are done"
        print(f"training {num_parameters(task):,} parameters {steps}", file=sys.stderr)
    try:
        return train(task, data, plan, folder=place.run.path, resume=place.resume, **more)
    except Interrupted as stop:
        if str(stop):
            print(f"gritvq: interrupted: {stop}", file=sys.stderr)
        raise SystemExit(stop.exit_code) from None


def overwrite_argument(parser: Any) -> None:
    """``--overwrite`` of verbs that write files, for :func:`check_places`."""
    parser.add_argument("--overwrite", type=bool, default=False, help="whether existing files may be replaced")


def check_places(out: Path, paths: Iterable[str | Path], overwrite: bool) -> None:
    """Say before any work that files cannot be written below a folder.

    Raises:
        ValueError: If the folder is a file, one of them is there and may not be replaced or is no file, or the way to
            it is no folder or leads through a link out of ``out``.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder, got the file {out}; choose another --out")
    whole = out.resolve()
    taken: list[str | Path] = []
    checked: set[Path] = set()
    for path in paths:
        place = out / path
        if place.is_dir() and not place.is_symlink():
            raise ValueError(f"expected to write the file {place}, got a folder of that name; choose another --out")
        if os.path.lexists(place):
            taken.append(path)
        for folder in Path(path).parents:
            inside = out / folder
            if folder in checked or not os.path.lexists(inside):
                continue
            checked.add(folder)
            if not inside.is_dir():
                raise ValueError(f"expected a folder {inside} to write into, got something else; choose another --out")
            if not inside.resolve().is_relative_to(whole):
                raise ValueError(
                    f"expected folders inside of {out}, got {inside}, a link to {inside.resolve()}; remove the link or "
                    "choose another --out"
                )
    if taken and not overwrite:
        raise ValueError(
            f"expected a folder without the files to write, got {out}, which holds {taken[0]}"
            f"{' and others' if len(taken) > 1 else ''}; choose another --out, or replace files with --overwrite true"
        )
