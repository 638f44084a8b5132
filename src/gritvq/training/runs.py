"""Whole runs: train a model, evaluate a tokenizer, compare methods."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

import gritvq
from gritvq.base import all_reduce_sum, evaluating
from gritvq.functional import effective_rank
from gritvq.metrics import CodebookUsage, ReconstructionError
from gritvq.tokenizer import Tokenizer
from gritvq.training.callbacks import RandomState, StepProgress
from gritvq.training.tasks import Task
from gritvq.training.tokens import constant_tokens

__all__ = ["TrainingPlan", "check_checkpoint", "evaluate", "prepare", "token_statistics", "train"]


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
        devices: Devices to use.
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

    def __post_init__(self) -> None:
        for name, least in (
            ("max_steps", 1),
            ("accumulate", 1),
            ("devices", 1),
            ("validate_every", 0),
            ("checkpoint_every", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)}")


def train(
    task: Task,
    data: LightningDataModule,
    plan: TrainingPlan,
    *,
    folder: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
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
        progress: Whether to show a bar.

    Returns:
        The trainer, after its last step.

    Raises:
        ValueError: If the checkpoint does not exist or does not fit.
    """
    if resume is not None:
        check_checkpoint(task, resume)
    folder = None if folder is None else Path(folder)
    callbacks: list[Callback] = [*task.run_callbacks(folder), RandomState()]
    loggers: Any = False
    if progress:
        callbacks.append(StepProgress())
    if folder is not None:
        callbacks += [
            ModelCheckpoint(
                dirpath=folder / "checkpoints",
                filename="step-{step}",
                auto_insert_metric_name=False,
                every_n_train_steps=min(plan.checkpoint_every or plan.max_steps, plan.max_steps),
                save_top_k=-1 if plan.checkpoint_every else 1,
                save_last=True,
                enable_version_counter=False,
            ),
        ]
        version = f"run-{len(list((folder / 'logs').glob('run-*')))}"  # a resumed run logs beside the one it continues
        loggers = [TensorBoardLogger(folder, "logs", version), CSVLogger(folder, "logs", version)]
    trainer = Trainer(
        max_steps=plan.max_steps,
        max_epochs=-1,
        precision=plan.precision,
        gradient_clip_val=plan.gradient_clip or None,
        accumulate_grad_batches=plan.accumulate,
        val_check_interval=plan.validate_every * plan.accumulate
        if folder is not None and plan.validate_every
        else None,
        check_val_every_n_epoch=None if folder is not None and plan.validate_every else 1,
        limit_val_batches=1.0 if folder is not None and plan.validate_every else 0,
        num_sanity_val_steps=0,
        accelerator=plan.accelerator,
        devices=plan.devices,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=10,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(task, datamodule=data, ckpt_path=None if resume is None else str(resume))
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    if folder is not None and not trainer.interrupted:
        trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    if folder is not None and trainer.is_global_zero:
        said = {"version": gritvq.__version__, "steps": trainer.global_step, "seed": plan.seed}
        task.write_model(folder, said)
    return trainer


def check_plan(plan: TrainingPlan) -> None:
    """Say before anything is written that this machine cannot follow a plan.

    Raises:
        ValueError: If it lacks the accelerator or the devices.
    """
    try:
        Trainer(
            accelerator=plan.accelerator,
            devices=plan.devices,
            precision=plan.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ImportError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"expected an accelerator, devices and a precision that this machine has, got {plan.accelerator!r}, "
            f"{plan.devices} and {plan.precision!r} ({error}); try --plan.accelerator auto"
        ) from error


def check_checkpoint(task: Task, path: str | Path) -> None:
    """Say before anything is written that a checkpoint cannot be resumed.

    Raises:
        ValueError: If it does not exist, is damaged, or belongs to another configuration.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"expected a checkpoint to resume from, got {path}, which is no file; see the run's checkpoints/"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        saved = checkpoint["state_dict"]
    except Exception as error:  # unpickling damaged files fails in many ways
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


@torch.no_grad()
def evaluate(
    tokenizer: Tokenizer, batches: Iterable[Tensor], *, device: str | torch.device = "cpu"
) -> tuple[dict[str, float], Tensor]:
    """Reconstruction error and code usage over a whole set, every token counted once.

    Args:
        tokenizer: Measured in eval mode, and left in the mode it was in.
        batches: Images (B, C, H, W) in [0, 1]; with several processes, this one's share of them.
        device: Where to run.

    Returns:
        Numbers by name (``psnr``, ``mse``, ``psnr_per_image``, ``usage``, ``uniform_usage``, ``perplexity``,
        ``dead_codes``, ``pictures``, ``tokens``, ``bits_per_token``, ``bits_per_pixel``) and the first channel's code
        counts (K,), sparse for large codebooks.
        Bits are those of the tokens there are, so a channel that is open at some positions counts less.
    """
    tokenizer = tokenizer.to(device)
    used, error = CodebookUsage(tokenizer.quantizer.codebook_sizes), ReconstructionError()
    pixels = pictures = 0
    with evaluating(tokenizer):
        folded = Tokenizer(tokenizer.encoder, tokenizer.quantizer.fold(), tokenizer.decoder)  # the codes made once
        for images in batches:
            images = images.to(device)
            output = folded(images)
            used.update(output.quantization.indices)
            error.update(output.reconstruction.float(), images)
            pictures += len(images)
            pixels += images.shape[0] * images.shape[-2] * images.shape[-1]
    numbers = {**error.compute(), **used.compute()}
    bits = used.bits_per_token()
    total, seen = all_reduce_sum(torch.tensor([pixels, pictures])).tolist()
    numbers |= {"pictures": float(seen), "bits_per_token": bits}
    numbers["bits_per_pixel"] = bits * numbers["tokens"] / total if total else math.nan
    return numbers, used.histograms()[0]


@torch.no_grad()
def token_statistics(tokenizer: Tokenizer) -> dict[str, float]:
    """Numbers of a tokenizer that need no data: sizes, bits, effective rank of the decoded codes.

    The rank is that of the first channel's codes with 0 in the others; where vectors are quantized together, that of
    the middle vectors of grids that hold one code throughout (of 4,096 codes at most).
    """
    quantizer = tokenizer.quantizer
    grid = (1, *(1, 1, *quantizer.layout)[-2:])
    positions, vectors, bits = math.prod(quantizer.token_shape(grid)), math.prod(grid), quantizer.bits(grid)
    size = min(quantizer.codebook_sizes[0], 4096 if quantizer.layout else 65536)
    if quantizer.layout:
        folded = quantizer.fold()  # the codes made once
        fields = [folded.decode(constant_tokens(folded, part)) for part in torch.arange(size).split(64)]
        values = torch.cat([field[:, field.shape[1] // 2, field.shape[2] // 2] for field in fields])
    else:
        codes = torch.zeros(size, len(quantizer.codebook_sizes), dtype=torch.int64)
        codes[:, 0] = torch.arange(size)
        values = quantizer.decode(codes)
    return {
        "codes": float(sum(quantizer.codebook_sizes)),
        "dim": float(quantizer.dim),
        "parameters": float(sum(p.numel() for p in tokenizer.parameters())),
        "pixels_per_token": vectors * tokenizer.factor**2 / positions,
        "bits_per_token": bits / positions,
        "bits_per_pixel": bits / (vectors * tokenizer.factor**2),
        "effective_rank": effective_rank(values),
    }


def prepare(seed: int, threads: int | None = None) -> None:
    """Seed everything and silence Lightning's own chatter."""
    import logging
    import warnings

    if threads is not None:
        torch.set_num_threads(threads)
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
        ".*IterableDataset.*",
    ):
        warnings.filterwarnings("ignore", message=text)
    seed_everything(seed, verbose=False)
