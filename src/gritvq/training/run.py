"""Training runs: plan, logs, checkpoints and resuming."""

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
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import Strategy
from torch import nn

import gritvq
from gritvq.component import check_integer
from gritvq.files import check_archive
from gritvq.training.callbacks import RandomState, check_callbacks
from gritvq.training.checkpoints import CheckpointFiles, StepCheckpoint
from gritvq.training.data import DataModule, TrainingData
from gritvq.training.interruption import Interrupted, Interruption, Listener, Stop
from gritvq.training.parallel import DataParallel, Sharded
from gritvq.training.progress import StepProgress
from gritvq.training.run_folder import RunFolder
from gritvq.training.task import LOG_EVERY, Task, differing_names, steps_done

__all__ = [
    "TrainingPlan",
    "check_checkpoint",
    "parts_to_compile",
    "parts_to_shard",
    "seed_everything",
    "silence",
    "train",
]


@dataclass(frozen=True)
class TrainingPlan:
    """Length of a run, its precision and its hardware.

    Args:
        max_steps: Optimizer steps.
        seed: Random seed of everything except the data order, which has its own.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        gradient_clip: Largest gradient norm; 0 for none.
        accumulate: Batches per optimizer step.
        validate_every: Steps between validations; 0 for none during training.
        checkpoint_every: Steps between checkpoints; 0 keeps the last one only.
        accelerator: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Number of devices on each node.
        num_nodes: Number of nodes.
        strategy: With several devices: ``"ddp"`` keeps the whole model on each; ``"fsdp"`` shards the
            :attr:`Task.sharded_parts` of the task, for models too large for that.
        compile: Train the :attr:`Task.compiled_parts` of the task through ``torch.compile``, which needs a C++ compiler
            and half a minute at the first step; worth it from some hundred steps on.

    Raises:
        ValueError: If a number is too small, or the strategy does not fit the rest.
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
    strategy: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False

    def __post_init__(self) -> None:
        least = {
            "max_steps": 1,
            "accumulate": 1,
            "devices": 1,
            "num_nodes": 1,
            "validate_every": 0,
            "checkpoint_every": 0,
        }
        for name, smallest in least.items():
            check_integer(name, getattr(self, name), smallest, f"give a larger {name}")
        if self.strategy not in ("ddp", "fsdp"):
            raise ValueError(f"expected strategy 'ddp' or 'fsdp', got {self.strategy!r}; choose one")
        several = self.devices * self.num_nodes > 1
        if self.strategy == "fsdp" and (not several or self.precision == "16-mixed" or self.compile):
            raise ValueError(
                f"expected several devices, no 16-mixed and no compile for strategy 'fsdp', got {self.devices} devices "
                f"on {self.num_nodes} nodes, {self.precision} and compile {self.compile}; change them, or take 'ddp'"
            )


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
    """Train a model; with a folder also write logs, checkpoints and the trained model.

    For reproducible initial weights call :func:`seed_everything` before building the task.

    Args:
        task: The model and its losses.
        data: Training and validation data.
        plan: Length of the run, precision and hardware.
        folder: Where ``logs/``, ``checkpoints/`` and the task's files are written (plots and ``tokenizer/``,
            ``recommender/``, or ``prior/``); None writes nothing and skips validation.
        resume: Checkpoint to resume from; the loss curve continues bitwise on the same machine.
        progress: Whether to show a progress bar, or progress lines if stderr is not a terminal.
        callbacks: Additional Lightning callbacks; they run after the task's own.
        loggers: Additional Lightning loggers; a run with a folder also logs to TensorBoard and CSV.

    Returns:
        The trainer, after its last step.

    Raises:
        ValueError: If the checkpoint does not exist or does not fit, the task has nothing to compile, or a callback
            does not go with the plan's strategy.
        Interrupted: After SIGINT or SIGTERM; a subclass of KeyboardInterrupt. With a folder the last step is saved.
    """
    if resume is not None:
        check_checkpoint(task, plan, resume)
    compiled, strategy = parts_to_compile(task, plan), _strategy_of(task, plan)
    check_callbacks((type(each) for each in callbacks), plan.strategy == "fsdp")
    run = None if folder is None else RunFolder(folder)
    interruption = Interruption(None if run is None else run.last_checkpoint)
    called: list[Callback] = [Listener(interruption), *task.run_callbacks(run), *callbacks, RandomState()]
    called.append(interruption)
    logging_to = list(loggers)
    if progress:
        called.append(StepProgress(plan.validate_every if run is not None else 0))
    if run is not None:
        warnings.filterwarnings("ignore", message=".*ModelCheckpoint with manual optimization")
        checkpointing = StepCheckpoint(
            dirpath=run.checkpoints,
            filename="step-{step}",
            auto_insert_metric_name=False,
            every_n_train_steps=min(plan.checkpoint_every or plan.max_steps, plan.max_steps),
            save_top_k=-1 if plan.checkpoint_every else 1,
            save_last=True,
            enable_version_counter=False,
        )
        called.append(checkpointing)
        version = f"run-{len(list(run.logs.glob('run-*')))}"  # a resumed run logs to a new folder
        logging_to = [*(kind(run.path, run.logs.name, version) for kind in (TensorBoardLogger, CSVLogger)), *loggers]
    task.accumulate, task.gradient_clip = plan.accumulate, plan.gradient_clip
    validates = run is not None and plan.validate_every > 0
    trainer = Trainer(
        max_steps=plan.max_steps,
        max_epochs=-1,
        precision=plan.precision,
        val_check_interval=plan.validate_every * plan.accumulate if validates else None,
        check_val_every_n_epoch=None if validates else 1,
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=0,
        accelerator=plan.accelerator,
        strategy=strategy,
        use_distributed_sampler=False,  # the data give each process its own share
        devices=plan.devices,
        num_nodes=plan.num_nodes,
        plugins=[CheckpointFiles()],
        default_root_dir=None if run is None else run.path,  # for Lightning's checkpoint when SLURM requeues the job
        callbacks=called,
        logger=logging_to or False,
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=run is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    finished = False
    for part in task.children():
        if not part.training:
            part.train()  # a loaded model is in eval mode
    for part in compiled:
        part.compile()
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
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the other processes may wait for this one
    finally:
        interruption.close()
        for part in compiled:
            part.compile(disable=True)
    last = None if run is None else run.last_checkpoint
    if last is not None and finished and not (last.exists() and checkpointing.has_last(trainer)):
        trainer.save_checkpoint(last)
    if interruption.number:
        raise _interrupted(trainer, task.step, interruption.number, last if finished or interruption.saved else None)
    if run is not None and trainer.is_global_zero:
        task.finish(run, {"version": gritvq.__version__, "steps": task.step, "seed": plan.seed})
    return trainer


def _interrupted(trainer: Trainer, done: int, number: int, saved: Path | None) -> Interrupted:
    """The exception; only the first process has a message."""
    if not trainer.is_global_zero:
        return Interrupted("", None)
    if saved is not None:
        return Interrupted(f"saved {saved} after step {done:,}; continue with --resume last", number)
    return Interrupted(f"stopped after step {done:,}, which is not saved" if done else "nothing to save yet", number)


def _strategy_of(task: Task, plan: TrainingPlan) -> Strategy | str:
    """The strategy that the plan asks for."""
    if plan.devices * plan.num_nodes == 1:
        return "auto"
    return Sharded(parts_to_shard(task, plan)) if plan.strategy == "fsdp" else DataParallel()


def parts_to_shard(task: Task, plan: TrainingPlan) -> list[str]:
    """Names of the parts of the task that the plan shards.

    Raises:
        ValueError: If the plan shards, and the task cannot.
    """
    found = task.sharded_parts if plan.strategy == "fsdp" else []
    if plan.strategy == "fsdp" and not found:
        raise ValueError(
            f"expected strategy 'ddp' for a {type(task).__name__}, which has no parts to shard, got 'fsdp'; leave it "
            "out"
        )
    return found


def parts_to_compile(task: Task, plan: TrainingPlan) -> list[nn.Module]:
    """Parts of the task that the plan compiles.

    Raises:
        ValueError: If the plan compiles, and the task has nothing to compile.
    """
    found = task.compiled_parts if plan.compile else []
    if plan.compile and not found:
        raise ValueError(
            f"expected compile false for a {type(task).__name__}, which has no parts to compile, got true; leave it out"
        )
    return found


def check_checkpoint(task: Task, plan: TrainingPlan, path: str | Path) -> int:
    """Check before anything is written that a run can resume from a checkpoint.

    Only tensors and plain data are loaded (``weights_only=True``), so no code in the file can run.

    Returns:
        Number of optimizer steps that the checkpoint has done.

    Raises:
        ValueError: If it does not exist, is damaged, contains more than tensors and plain data, belongs to another
            configuration, or has done more steps than planned.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"expected a checkpoint to resume from, got {path}, which is not a file; see the run's checkpoints/"
        )
    try:
        check_archive(Path(path))
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        saved, done = dict(checkpoint["state_dict"]), steps_done(checkpoint)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"expected a checkpoint of tensors and plain data, got {path}, which contains other objects or is damaged "
            f"({str(error).splitlines()[0][:200]}); use another one, and do not trust this file"
        ) from error
    except Exception as error:  # reading damaged files fails in many ways
        raise ValueError(f"expected a readable checkpoint, got {path} ({error}); use an earlier one") from error
    if differing := differing_names(saved, task.state_dict()):
        raise ValueError(
            f"expected a checkpoint of this configuration, got {path}, which differs at {', '.join(differing[:3])}; "
            "use the run's own config"
        )
    task.check_checkpoint(checkpoint)
    if done > plan.max_steps:
        raise ValueError(
            f"expected max_steps >= {done:,}, the steps that {path} has done, got {plan.max_steps:,}; increase it"
        )
    return done


def seed_everything(seed: int, threads: int | None = None) -> None:
    """Seed Python, NumPy and torch; silence Lightning's hints; ``threads`` sets torch's number of CPU threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    silence()
    lightning.seed_everything(seed, verbose=False)


def silence() -> None:
    """Silence Lightning's log messages, its hints, and warnings about what we do on purpose."""
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
        ".*in eval mode at the start of training.*",  # frozen parts are
        ".*Grad strides do not match bucket view strides.*",  # of convolutions with channels last
        ".*sync_dist=True.*",  # what is logged is reduced already
        ".*callbacks used to create the checkpoint.*",  # a resumed run may have a longer plan
        ".*returned a view tensor.*",  # of sharded parts, whose outputs nobody changes in place
    ):
        warnings.filterwarnings("ignore", message=text)
