"""Callbacks for training tokenizers."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from gritvq.distributed import all_gather_rows
from gritvq.tokenizer import Autoencoder
from gritvq.training.task import Task

__all__ = [
    "CodebookInitialization",
    "CodebookUpdate",
    "CollapseWarning",
    "RandomState",
    "StepProgress",
    "collapse_advice",
]

log = logging.getLogger("gritvq")
_QUIET = 60.0  # seconds between progress lines


def _tokenizer(task: LightningModule) -> Autoencoder:
    return cast(Autoencoder, task.tokenizer)


class CodebookInitialization(Callback):
    """Initializes the codebook from the latents of the first batches, if ``quantizer.wants_initialization``.

    Args:
        vectors_per_code: Latents collected per code.
        max_batches: Largest number of batches read.
    """

    def __init__(self, vectors_per_code: int = 4, max_batches: int = 64) -> None:
        self.vectors_per_code, self.max_batches = vectors_per_code, max_batches

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect latents and initialize; a resumed run skips this."""
        tokenizer = _tokenizer(pl_module)
        if cast(Task, pl_module).step > 0 or not tokenizer.quantizer.wants_initialization:
            return
        wanted = self.vectors_per_code * max(tokenizer.quantizer.codebook_sizes)
        latents: list[Tensor] = []
        assert trainer.train_dataloader is not None
        for number, images in enumerate(trainer.train_dataloader):
            found = tokenizer.latents(images.to(pl_module.device))
            latents.append(found if tokenizer.quantizer.layout else found.flatten(0, -2))  # grids stay whole
            vectors = sum(part.numel() // part.shape[-1] for part in latents)
            if number + 1 >= self.max_batches or vectors * trainer.world_size >= wanted:
                break
        tokenizer.quantizer.initialize_codebook(torch.cat(latents))


class CodebookUpdate(Callback):
    """Calls ``update_codebook`` once after every optimizer step, also with gradient accumulation."""

    def __init__(self) -> None:
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the first step, which is not 0 in a resumed run."""
        self.step = cast(Task, pl_module).step
        _tokenizer(pl_module).quantizer.expect_updates()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the codebook if the optimizer has stepped."""
        if cast(Task, pl_module).step != self.step:
            self.step = cast(Task, pl_module).step
            _tokenizer(pl_module).quantizer.update_codebook(trainer.optimizers[0])


class RandomState(Callback):
    """Saves torch's random state of every process in the checkpoint, so that a resumed run draws the same noise."""

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The current states, one row per process."""
        states = {"torch": all_gather_rows(torch.get_rng_state()[None])}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["cuda"] = all_gather_rows(torch.cuda.get_rng_state()[None])
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the states until training starts."""
        self.states = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states, after other callbacks may have drawn random numbers."""
        for name, setter in (("torch", torch.set_rng_state), ("cuda", torch.cuda.set_rng_state)):
            if name in self.states and (name == "torch" or torch.cuda.is_available()):
                rows = self.states[name].reshape(-1, self.states[name].shape[-1])  # earlier versions saved one row
                setter(rows[trainer.global_rank % len(rows)].clone())  # a view of a row crashes PyTorch


def collapse_advice(usage: float, codebook_size: int, num_tokens: float) -> str | None:
    """Advice on how to fix a collapsed codebook, or None if it has not collapsed.

    A codebook counts as collapsed if fewer than a fifth of the codes that so many tokens can use are in use.

    Args:
        usage: Fraction of codes in use.
        codebook_size: Number of codes K.
        num_tokens: Number of tokens that usage was measured on.

    Example:
        >>> collapse_advice(0.9, 1024, 1e6) is None
        True
        >>> collapse_advice(0.01, 1024, 1e6)[:40]
        'The codebook has collapsed: 1.0 % of 102'
    """
    reachable = min(1.0, num_tokens / codebook_size)
    if usage >= 0.2 * reachable:
        return None
    return (
        f"The codebook has collapsed: {100 * usage:.1f} % of {codebook_size} codes are in use. What to change, in this "
        "order: give the codebook a higher learning rate (lr_scale=10), use a shared transform (preset grit_vq or "
        "simvq), start from data (initialization='kmeans'), add DeadCodeRevival(20), or take a smaller codebook."
    )


class CollapseWarning(Callback):
    """Logs a warning after validation if the codebook has collapsed."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the usage that the validation measured."""
        values = trainer.callback_metrics
        if "val/usage" not in values or not trainer.is_global_zero:
            return
        size = max(_tokenizer(pl_module).quantizer.codebook_sizes)
        advice = collapse_advice(float(values["val/usage"]), size, float(values["val/tokens"]))
        if advice is not None:
            log.warning("%s", advice)


class StepProgress(Callback):
    """A progress bar over the steps with the task's recent metrics.

    If stderr is not a terminal, it prints a line after every tenth of the run and at least once a minute.
    """

    def __init__(self) -> None:
        self.bar: Any = None
        self.said, self.when = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.said, self.when = cast(Task, pl_module).step, time.monotonic()
        console = Console(stderr=True)
        if not trainer.is_global_zero or not console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[live]}"),
            console=console,
        )
        self.bar.start()
        self.task = self.bar.add_task("training", total=trainer.max_steps, completed=self.said, live="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar, or print a line."""
        done, total = cast(Task, pl_module).step, trainer.max_steps
        if self.bar is not None:
            self.bar.update(self.task, completed=done, live=_live(trainer))
        elif trainer.is_global_zero and done > self.said:
            tenth = done * 10 // total > self.said * 10 // total
            if tenth or time.monotonic() > self.when + _QUIET:
                self.said, self.when = done, time.monotonic()
                print(f"step {done:,} of {total:,}  {_live(trainer)}".rstrip(), file=sys.stderr, flush=True)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Show the progress of a validation."""
        if self.bar is not None:
            self.bar.update(self.task, live=f"validating {batch_idx + 1} of {trainer.num_val_batches[0]}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar before the error is printed."""
        self.on_train_end(trainer, pl_module)


def _live(trainer: Trainer) -> str:
    values = trainer.callback_metrics
    return "  ".join(
        f"{name} {float(values[key]):.{digits}f}"
        for name, key, digits in (
            ("PSNR", "train/psnr", 2),
            ("usage", "train/usage", 3),
            ("perplexity", "train/perplexity", 0),
            ("nats per item", "train/nats_per_item", 3),
            ("NDCG@10", "val/ndcg@10", 4),
        )
        if key in values
    )
