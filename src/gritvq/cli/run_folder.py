"""Folders of runs: checks before training, resuming, and the configuration that repeats a run."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from gritvq.cli.errors import read_yaml
from gritvq.cli.settings import class_of
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
    "own_data",
    "parts_of_run",
    "place_of",
    "run_arguments",
    "run_training",
    "steps_done",
]


class Place(NamedTuple):
    """Folder and checkpoint of a training run.

    Attributes:
        run: Folder of the run.
        resume: Checkpoint to resume from, or None.
        launch: The run's processes.
        goes_on: Whether the checkpoint is in this folder.
    """

    run: RunFolder
    resume: str | None
    launch: Launch
    goes_on: bool


# What to do about an existing run, for the message of RunFolder.check.
_INSTEAD = "continue with --resume last, "

# Settings that a resumed run may change.
_MAY_CHANGE = {
    *("out", "ids", "num_test", "callbacks", "loggers", "data.num_workers"),
    *("plan.max_steps", "plan.accelerator", "plan.checkpoint_every", "plan.strategy"),
}


def place_of(config: Any, launch: Launch) -> Place:
    """The place given by ``--out``, ``--resume`` and ``--overwrite``, checked before any work in all processes.

    Raises:
        ValueError: If the checkpoint is not a file, or the folder contains files.
    """
    run, resume = RunFolder(config.out), config.resume
    if resume == "last":
        resume = str(run.last_checkpoint)
    goes_on = resume is not None and run.path.resolve() in Path(resume).resolve().parents

    def check() -> None:
        if resume is not None and not Path(resume).is_file():
            instead = "see the run's checkpoints/"
            if config.resume == "last" and run.config.is_file() and not any(run.path.glob("checkpoints/*.ckpt")):
                instead = "the run ended before its first one, start it again with --overwrite true"
            raise ValueError(f"expected a checkpoint to resume from, got {resume}, which is not a file; {instead}")
        if not goes_on:
            run.check(config.overwrite, _INSTEAD)

    launch.agree(check)
    return Place(run, resume, launch, goes_on)


def check_settings(parser: Any, config: Any, place: Place, changes: Mapping[str, str] | None = None) -> None:
    """Check that a resumed run has the settings in the ``config.yaml`` of the checkpoint's run.

    Without that file only the checkpoint is checked, see :func:`gritvq.training.run.check_checkpoint`.

    Raises:
        ValueError: If a setting differs that must not change.
    """
    if place.resume is None:
        return
    earlier = _earlier_settings(place.resume)
    now = _flat(yaml.safe_load(_dumped(parser, config, changes)))
    differing = [name for name in earlier if name not in _MAY_CHANGE and _differs(name, earlier, now)]
    if differing:
        each = ", ".join(f"--{name} {earlier[name]} (got {now.get(name, 'another form')})" for name in differing[:5])
        raise ValueError(
            f"expected the settings of the resumed run: {each}{' ...' if len(differing) > 5 else ''}; give its "
            "config.yaml with --config, or start a new run from its weights with --init_from"
        )


def _differs(name: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a setting has changed, also from a value to a class or back; settings of other versions are ignored."""
    if name in now:
        return bool(earlier[name] != now[name])
    outer = itertools.accumulate(name.split(".")[:-1], "{}.{}".format)
    return any(each in now for each in outer) or any(each.startswith(f"{name}.") for each in now)


def _earlier_settings(checkpoint: str) -> dict[str, Any]:
    """Settings of the checkpoint's run, by their dotted names."""
    path = RunFolder.of_checkpoint(checkpoint).config
    try:
        return _flat(read_yaml(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"expected the configuration of a run, got {path} ({error}); repair or remove it") from error


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
    """Make the folder and write the configuration that repeats the run, in the first process.

    The schedule depends on ``max_steps``, so if a resumed run changes it, a comment in the configuration says how many
    steps were done with which value.

    Args:
        parser: Parser of the configuration.
        config: The configuration.
        place: Folder and checkpoint of the run.
        done: Steps that the checkpoint has done.
        changes: Other values to write, by their dotted names.
        note: Comment at the top of the configuration.
    """

    def make() -> None:
        notes, path = note, place.run.config
        if place.resume is not None:
            planned = _earlier_settings(place.resume).get("plan.max_steps", config.plan.max_steps)
            notes = "".join(_leading_comments(RunFolder.of_checkpoint(place.resume).config))
            if planned != config.plan.max_steps:
                notes += f"# the first {done} steps were done with plan.max_steps {planned}\n"
        with replacing(path) as scratch:
            scratch.write_text(notes + _dumped(parser, config, changes), encoding="utf-8")
            if not place.goes_on:  # only now, so that an old run is kept if the disk is full
                place.run.replace(config.overwrite, _INSTEAD)

    place.launch.agree(make)


def _leading_comments(path: Path) -> list[str]:
    """The comments at the top of a run's configuration."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def run_arguments(parser: Any, model: str) -> None:
    """Arguments of the run's folder, of resuming, and of Lightning's callbacks and loggers.

    Args:
        parser: Parser of a domain of ``fit``.
        model: What ``--init_from`` takes, for its help.
    """
    extra_arguments(parser)
    parser.add_argument("--out", type=str, help="folder of the run")
    parser.add_argument(
        "--resume", type=str | None, default=None, help="checkpoint to resume from, or 'last' for the newest in --out"
    )
    parser.add_argument(
        "--init_from", type=str | None, default=None, help=f"{model} whose weights a new run starts from"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="whether an existing run may be replaced")


def extra_arguments(parser: Any) -> None:
    """Lightning's callbacks and loggers, by class and arguments."""
    from lightning import Callback
    from lightning.pytorch.loggers import Logger

    parser.add_argument("--callbacks", type=list[Callback] | None, default=None, help="additional Lightning callbacks")
    parser.add_argument(
        "--loggers", type=list[Logger] | None, default=None, help="Lightning loggers besides TensorBoard and CSV"
    )


def extras_of(parser: Any, config: Any) -> dict[str, Any]:
    """The given callbacks and loggers, made without changing the run's random state; loggers get the settings."""
    import torch

    asked = {name: config[name] for name in ("callbacks", "loggers") if config[name]}
    if not asked:
        return {}
    own = type(parser)()
    extra_arguments(own)
    with torch.random.fork_rng():
        made = own.instantiate(own.parse_settings(asked))
        settings = yaml.safe_load(_dumped(parser, config, None))
        for logger in made.loggers or ():
            logger.log_hyperparams(settings)
    return {name: made[name] for name in asked}


def parts_of_run(parser: Any, config: Any) -> Any:
    """The objects that a configuration describes, without callbacks and loggers (:func:`extras_of`)."""
    bare = config.clone()
    bare.callbacks = bare.loggers = None
    return parser.instantiate(bare)


def steps_done(task: Any, plan: Any, config: Any, place: Place, load: Callable[[str], Any] = str) -> int:
    """Check plan and checkpoint before anything is written; start from the weights of ``--init_from``.

    Args:
        task: The task.
        plan: Plan of the training.
        config: The configuration.
        place: Folder and checkpoint of the run.
        load: Reads what ``task.start_from`` takes from ``--init_from``.

    Returns:
        Steps that the checkpoint has done; 0 for a new run.
    """
    from gritvq.training.callbacks import check_callbacks
    from gritvq.training.run import check_checkpoint, parts_to_compile, parts_to_shard

    parts_to_compile(task, plan)
    parts_to_shard(task, plan)
    check_callbacks((class_of(each.class_path) for each in config.callbacks or ()), plan.strategy == "fsdp")
    if place.resume is not None:
        return check_checkpoint(task, plan, place.resume)
    if config.init_from is not None:
        task.start_from(load(config.init_from))
    return 0


def run_training(task: Any, data: Any, plan: Any, place: Place, done: int = 0, **more: Any) -> tuple[Any, str]:
    """Announce and run the training; exit the program if it is interrupted. Returns the trainer and the time taken."""
    from gritvq.images.networks import num_parameters
    from gritvq.training import train
    from gritvq.training.interruption import Interrupted

    if place.launch.first:
        steps = f"for {plan.max_steps:,} steps" if not done else f"from step {done:,} to {plan.max_steps:,}"
        if done == plan.max_steps:
            steps = f"for no more steps: all {done:,} are done"
        print(f"training {num_parameters(task):,} parameters {steps}", file=sys.stderr)
    started = time.perf_counter()
    try:
        trainer = train(task, data, plan, folder=place.run.path, resume=place.resume, **more)
    except Interrupted as stop:
        if str(stop):
            print(f"gritvq: interrupted: {stop}", file=sys.stderr)
        raise SystemExit(stop.exit_code) from None
    return trainer, f"{(time.perf_counter() - started) / 60:.1f} minutes"


def own_data(tokenizer: Any, source: str) -> dict[str, Any]:
    """Data settings of a tokenizer's run, from the tokenizer (with its splits) or from the run's ``config.yaml``.

    Raises:
        ValueError: If neither has them.
    """
    folder = Path(source).resolve()
    found = (tokenizer.trained or {}).get("data")
    settings = RunFolder(folder.parent).config
    if found is None and folder.is_dir() and settings.is_file():  # tokenizers of early versions
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
            found = read_yaml(settings)["data"]
    if not isinstance(found, dict):
        raise ValueError(f"expected --data.path, since {source} has no record of its training data, got none; give it")
    return dict(found)


def overwrite_argument(parser: Any) -> None:
    """``--overwrite`` of verbs that write files, for :func:`check_places`."""
    parser.add_argument("--overwrite", type=bool, default=False, help="whether existing files may be replaced")


def check_places(out: Path, paths: Iterable[str | Path], overwrite: bool) -> None:
    """Check before any work that files can be written below a folder.

    Raises:
        ValueError: If the folder is a file, a path exists and must not be replaced or is a folder, or one of its
            parents is not a folder or is a link to outside of ``out``.
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
