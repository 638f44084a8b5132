"""Whole runs: train a model."""

from __future__ import annotations

import logging
import pickle
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

import gritvq
from gritvq.files import check_archive
from gritvq.training.callbacks import RandomState, StepProgress
from gritvq.training.checkpoints import CheckpointFiles
from gritvq.training.data import DataModule, TrainingData
from gritvq.training.interruption import Interrupted, Interruption, Listener, Stop
from gritvq.training.run_folder import RunFolder
from gritvq.training.task import LOG_EVERY, Task, steps_done

__all__ = ["TrainingPlan", "check_checkpoint", "seed_everything", "silence", "train"]

_MANY_LOSSES = "ddp_find_unused_parameters_true"  # no loss depends on all parameters


@dataclass(frozen=True)
class TrainingPlan:
    """How long and on what to train.

    Args:
        max_steps: Optimizer steps.
        seed: Seed of everything random but the data order, which has its own.
        precision: Lightning's name: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        gradient_clip: Largest gradient norm; 0 for none.
        accumulate: Batches per optimizer step.
        validate_every: Steps between validations; 0 for none during training.
        checkpoint_every: Steps between checkpoints; 0 keeps the last one only.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``.
        devices: Devices to use on each node.
        num_nodes: Machines.
    """

    max_steps: int = 2000
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    gradient_clip: float = 1.0
    accumulate: int = 1
    validate_every: int = 500
    checkpoint_every: int = 500
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1

    def __post_init__(self) -> None:
        for name, least in (
            ("max_steps", 1),
            ("accumulate", 1),
            ("devices", 1),
            ("num_nodes", 1),
            ("validate_every", 0),
            ("checkpoint_every", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)}")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        silence()
        yield


@_quiet()
def train(
    task: Task,
    data: TrainingData,
    plan: TrainingPlan,
    *,
    folder: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """Run a training; with a folder also logs, checkpoints and what the task writes, the model itself among it.

    The caller seeds before building the task, so that initial weights are reproducible too.

    Args:
        task: What to train.
        data: On what.
        plan: For how long.
        folder: Where ``logs/``, ``checkpoints/`` and the task's own files go (a tokenizer's: pictures and
            ``tokenizer/``; a recommender's: ``recommender/``); nothing is written where None.
        resume: Checkpoint to go on from; the loss curve continues bitwise on the same machine.
        progress: Whether to show a bar, or a line now and then where there is no terminal.
        callbacks: Lightning's callbacks besides those that the task needs; they come after them.
        loggers: Lightning's loggers besides TensorBoard and CSV, which a run with a folder has.

    Returns:
        The trainer, after its last step.

    Raises:
        ValueError: If the checkpoint does not exist or does not fit.
        Interrupted: After SIGINT or SIGTERM, a KeyboardInterrupt; with a folder, the last step is saved.
    """
    if resume is not None:
        check_checkpoint(task, plan, resume)
    run = None if folder is None else RunFolder(folder)
    interruption = Interruption(None if run is None else run.last_checkpoint)
    called: list[Callback] = [Listener(interruption), *task.run_callbacks(run), *callbacks, RandomState()]
    called.append(interruption)
    logging_to = list(loggers)
    if progress:
        called.append(StepProgress())
    if run is not None:
        # It saves after the step, which is meant.
        warnings.filterwarnings("ignore", message=".*ModelCheckpoint with manual optimization")
        called += [
            ModelCheckpoint(
                dirpath=run.checkpoints,
                filename="step-{step}",
                auto_insert_metric_name=False,
                every_n_train_steps=min(plan.checkpoint_every or plan.max_steps, plan.max_steps),
                save_top_k=-1 if plan.checkpoint_every else 1,
                save_last=True,
                enable_version_counter=False,
            ),
        ]
        version = f"run-{len(list(run.logs.glob('run-*')))}"  # a resumed run logs beside the one it continues
        logging_to = [*(kind(run.path, run.logs.name, version) for kind in (TensorBoardLogger, CSVLogger)), *loggers]
    task.accumulate, task.gradient_clip = plan.accumulate, plan.gradient_clip
    trainer = Trainer(
        max_steps=plan.max_steps,
        max_epochs=-1,
        precision=plan.precision,
        val_check_interval=plan.validate_every * plan.accumulate if run is not None and plan.validate_every else None,
        check_val_every_n_epoch=None if run is not None and plan.validate_every else 1,
        limit_val_batches=1.0 if run is not None and plan.validate_every else 0,
        num_sanity_val_steps=0,
        accelerator=plan.accelerator,
        strategy=_MANY_LOSSES if task.num_optimizers > 1 and plan.devices * plan.num_nodes > 1 else "auto",
        devices=plan.devices,
        num_nodes=plan.num_nodes,
        plugins=[CheckpointFiles()],
        default_root_dir=None
        if run is None
        else run.path,  # where Lightning keeps the checkpoint of a job that SLURM puts back into its queue
        callbacks=called,
        logger=logging_to or False,
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=run is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    finished = False
    try:
        trainer.fit(
            task, datamodule=DataModule(data), ckpt_path=None if resume is None else str(resume), weights_only=True
        )
        finished = True
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    except Stop:
        if not interruption.saved and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the others may be waiting for this process
    finally:
        interruption.close()
    last = None if run is None else run.last_checkpoint
    if last is not None and finished:
        trainer.save_checkpoint(last)
    if interruption.number:
        raise _interrupted(trainer, task.step, interruption.number, last if finished or interruption.saved else None)
    if run is not None and trainer.is_global_zero:
        said = {"version": gritvq.__version__, "steps": task.step, "seed": plan.seed}
        task.finish(run, said)
    return trainer


def _interrupted(trainer: Trainer, done: int, number: int, saved: Path | None) -> Interrupted:
    """What there is to say; one process says it."""
    if not trainer.is_global_zero:
        return Interrupted("", None)
    if saved is not None:
        return Interrupted(f"saved {saved} after step {done:,}; go on with --resume last", number)
    return Interrupted(f"stopped after step {done:,}, which is not saved" if done else "nothing to save yet", number)


def check_checkpoint(task: Task, plan: TrainingPlan, path: str | Path) -> int:
    """Say before anything is written that a checkpoint cannot be resumed.

    Only tensors and plain data are read from it: a file that holds anything else, such as code, is refused unread.

    Returns:
        The optimizer steps that it has done.

    Raises:
        ValueError: If it does not exist, is damaged, holds more than tensors and plain data, belongs to another
            configuration, or has done more steps than planned.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"expected a checkpoint to resume from, got {path}, which is no file; see the run's checkpoints/"
        )
    try:
        check_archive(Path(path))
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        saved, done = dict(checkpoint["state_dict"]), steps_done(checkpoint)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"expected a checkpoint of tensors and plain data, got {path}, which holds something else or is damaged "
            f"({str(error).splitlines()[0][:200]}); take another one, and trust no such file"
        ) from error
    except Exception as error:  # reading damaged files fails in many ways
        raise ValueError(f"expected a readable checkpoint, got {path} ({error}); take an earlier one") from error
    own = task.state_dict()
    differing = sorted(
        name
        for name in saved.keys() | own.keys()
        if name not in saved or name not in own or getattr(saved[name], "shape", 0) != getattr(own[name], "shape", 0)
    )
    if differing:
        raise ValueError(
            f"expected a checkpoint of this configuration, got {path}, which differs at {', '.join(differing[:3])}; "
            "use the run's own config"
        )
    task.check_checkpoint(checkpoint)
    if done > plan.max_steps:
        raise ValueError(
            f"expected max_steps of at least the {done:,} steps that {path} has done, got {plan.max_steps:,}; plan "
            "more steps"
        )
    return done


def seed_everything(seed: int, threads: int | None = None) -> None:
    """Seed everything and silence Lightning's own chatter."""
    if threads is not None:
        torch.set_num_threads(threads)
    silence()
    lightning.seed_everything(seed, verbose=False)


def silence() -> None:
    """Keep out what Lightning says about itself, its hints, and warnings about what is meant to be so."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for text in (
        ".*treespec.*",
        ".*log directory.*",
        ".*logs directory.*",
        ".*does not have many workers.*",
        ".*`LightningModule.*",
        ".*Checkpoint directory.*",
        ".*dirpath has changed.*",
        ".*IterableDataset.*",
        ".*callbacks used to create the checkpoint.*",  # how often it writes follows the plan, which may grow
    ):
        warnings.filterwarnings("ignore", message=text)
