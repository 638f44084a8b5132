"""Lightning tasks: how a model learns from batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule
from torch import Tensor

from gritvq.base import Component
from gritvq.metrics import CodebookUsage, ReconstructionError
from gritvq.saving import tensors_of
from gritvq.tokenizer import Tokenizer
from gritvq.training.callbacks import CodebookInitialization, CodebookUpdate, CollapseWarning, Pictures
from gritvq.training.data import DataModule
from gritvq.training.losses import Objective, objective_for

__all__ = ["Schedule", "Task", "TokenizerTask", "scheduled"]

Schedule = Literal["cosine", "flat_linear"]
LOG_EVERY = 10  # steps between those that are logged
_WINDOW = 100  # steps over which the codes in use are counted


class Task(LightningModule, ABC):
    """What a run (:func:`gritvq.training.train`) asks of the thing it trains, besides Lightning's own hooks."""

    @abstractmethod
    def run_callbacks(self, folder: Path | None) -> list[Callback]:
        """Callbacks of a run that writes into ``folder``, or nothing where None."""

    @property
    def measures_now(self) -> bool:
        """Whether this step measures what costs time: the steps that are written to the logs, and the first."""
        return self.global_step == 0 or (self.global_step + 1) % LOG_EVERY == 0

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain values that a run has to go on with: a checkpoint keeps them, and another value is refused."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the settings; extended by tasks that keep more."""
        checkpoint["settings"] = self.settings

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other settings; extended by tasks whose weights may mean something else.

        Raises:
            ValueError: If a setting differs; the message names it.
        """
        began = checkpoint.get("settings", {})
        if not isinstance(began, dict):
            raise ValueError(f"expected settings by name in the checkpoint, got {began!r}; take another one")
        for name, value in self.settings.items():
            if name in began and began[name] != value:
                raise ValueError(
                    f"expected {name} {began[name]!r} as the run began with, since resuming is the same run, got "
                    f"{value!r}; leave it, or start another run from the weights of this one"
                )

    @abstractmethod
    def write_model(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write the model, as it is loaded again, somewhere in the folder of the run; called once at its end.

        Args:
            folder: The run's.
            training: What the model may say of the run: plain values by name.
        """


class TokenizerTask(Task):
    """Trains a tokenizer with AdamW and a warm-up; evaluates it by PSNR, usage and perplexity.

    The quantizer says which learning rates its parameters want (``parameter_groups``); codebook updates after the step
    are the callback's (:class:`gritvq.training.CodebookUpdate`).

    Args:
        tokenizer: What to train.
        lr: Peak learning rate of encoder and decoder.
        warmup_steps: Steps of linear warm-up.
        schedule: After the warm-up a ``"cosine"`` to zero, or ``"flat_linear"``: flat for 30 % of the rest, then linear
            to 1 % (the annealing of FVQ, whose warm-up takes a tenth of the run).
        betas: AdamW's decay rates.
        weight_decay: For encoder and decoder; codebooks get none.
        objective: The loss; what the quantizer's losses are made for (:func:`objective_for`) unless given: mostly the
            squared pixel error plus those losses.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from gritvq import grit_vq
        >>> from gritvq.models import ImageDecoder, ImageEncoder
        >>> task = TokenizerTask(Tokenizer(ImageEncoder(8, width=16), grit_vq(8, 64), ImageDecoder(8, width=16)))
        >>> sorted(task.objective(task.tokenizer, torch.rand(2, 3, 8, 8))[0])
        ['reconstruction']
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        lr: float = 1e-3,
        warmup_steps: int = 50,
        schedule: Schedule = "cosine",
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        if not lr > 0 or warmup_steps < 0 or weight_decay < 0:
            raise ValueError(
                f"expected lr > 0, warmup_steps >= 0 and weight_decay >= 0, got {lr!r}, {warmup_steps!r}, "
                f"{weight_decay!r}"
            )
        check_schedule(schedule)
        self.tokenizer = tokenizer
        self.lr, self.warmup_steps, self.betas, self.weight_decay = lr, warmup_steps, betas, weight_decay
        self.schedule = schedule
        self.objective = objective_for(tokenizer.quantizer) if objective is None else objective
        self.codebook_usage = CodebookUsage(tokenizer.quantizer.codebook_sizes)
        self.reconstruction_error = ReconstructionError()
        self.window_usage = CodebookUsage(tokenizer.quantizer.codebook_sizes)
        self._keeps_codes, self._window = False, 0

    def start_from(self, tokenizer: Tokenizer) -> None:
        """Take the weights of a tokenizer of the same architecture; its codes are not fitted to data again.

        Raises:
            ValueError: If a part differs; the message names it.
        """
        copy_weights(self.tokenizer, tokenizer)
        self._keeps_codes = True

    def run_callbacks(self, folder: Path | None) -> list[Callback]:
        """Fitting and moving the codes; with a folder also a warning of collapse, and pictures."""
        fitting: list[Callback] = [] if self._keeps_codes else [CodebookInitialization()]
        needed: list[Callback] = [*fitting, CodebookUpdate()]
        return needed if folder is None else [*needed, CollapseWarning(), Pictures(folder)]

    @property
    def settings(self) -> dict[str, Any]:
        """Rates and schedule."""
        return rates(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep also the counts of the window whose usage is logged."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["window_usage"] = {"window": self._window, **self.window_usage.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting; checkpoints of earlier versions hold no counts."""
        if "window_usage" in checkpoint:
            self._window = checkpoint["window_usage"]["window"]
            self.window_usage.restore(checkpoint["window_usage"])

    def write_model(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write ``tokenizer/``; its ``config.json`` also says which pictures of an ``ImageData`` it has seen."""
        from gritvq.data import ImageData

        module = self.trainer.datamodule  # type: ignore[attr-defined]
        data = module.data if isinstance(module, DataModule) else module
        if isinstance(data, ImageData):
            training = {**training, "data": {**data.settings(), "splits": data.describe()["splits"]}}
        self.tokenizer.save_pretrained(folder / "tokenizer", training)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct."""
        return self.tokenizer(images).reconstruction

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        """One batch: the sum of the objective's losses; logs each, and PSNR and usage of the recent batches."""
        losses, output = self.objective(self.tokenizer, images)
        loss = torch.stack(list(losses.values())).sum()
        if self._window != self.global_step // _WINDOW:
            self._window = self.global_step // _WINDOW
            self.window_usage.reset()
        self.window_usage.update(output.quantization.indices)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        self.log("train/loss", loss.detach())
        if self.measures_now:
            if not torch.isfinite(loss):
                raise ValueError(
                    f"expected a finite loss, got {float(loss.detach())} at step {self.global_step}; lower the "
                    "learning rate, clip gradients, or look for pictures with NaN"
                )
            lost = int((~torch.isfinite(output.latents)).any(-1).sum())
            if lost:
                raise ValueError(
                    f"expected finite latents, got {lost} vectors that are not at step {self.global_step}; lower the "
                    "learning rate, clip gradients, or look for pictures with NaN"
                )
            error = (output.reconstruction.detach().float().clamp(0, 1) - images).square().mean()
            counts = self.window_usage.compute()
            self.log("train/psnr", -10 * error.clamp_min(1e-10).log10())
            self.log("train/usage", counts["usage"])
            self.log("train/perplexity", counts["perplexity"])
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.codebook_usage.reset()
        self.reconstruction_error.reset()

    def validation_step(self, images: Tensor, batch_idx: int) -> None:
        """Count one batch."""
        output = self.tokenizer(images)
        self.codebook_usage.update(output.quantization.indices)
        self.reconstruction_error.update(output.reconstruction, images)

    def on_validation_epoch_end(self) -> None:
        """Log the totals, which are reduced over all processes already."""
        totals = {**self.reconstruction_error.compute(), **self.codebook_usage.compute()}
        self.log_dict({f"val/{name}": value for name, value in totals.items()})

    def configure_optimizers(self) -> Any:
        """AdamW over the groups, and the schedule."""
        quantizer = self.tokenizer.quantizer
        owned = set(quantizer.parameters())
        rest = [p for p in self.parameters() if p.requires_grad and p not in owned]
        groups = [
            {"params": rest, "lr": self.lr, "weight_decay": self.weight_decay},
            *quantizer.parameter_groups(self.lr),
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, weight_decay=0.0)
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer.max_steps)


def rates(task: Any) -> dict[str, Any]:
    """What the optimizer and its schedule were made of."""
    names = ("lr", "warmup_steps", "schedule", "betas", "weight_decay")
    return {name: list(value) if isinstance(value := getattr(task, name), tuple) else value for name in names}


def copy_weights(target: Component, source: Component) -> None:
    """Give a component the weights of another one of the same architecture.

    Raises:
        ValueError: If their tensors differ in name or shape; the message names the parts.
    """
    given, own = tensors_of(source), tensors_of(target)
    differing = sorted(
        name
        for name in given.keys() | own.keys()
        if name not in given or name not in own or given[name].shape != own[name].shape
    )
    if differing:
        shapes = [
            f"{name} ({tuple(own[name].shape) if name in own else 'missing'} here, "
            f"{tuple(given[name].shape) if name in given else 'missing'} there)"
            for name in differing[:3]
        ]
        raise ValueError(
            f"expected weights of the same architecture, got others at {', '.join(shapes)}"
            f"{' ...' if len(differing) > 3 else ''}; give the settings of the tokenizer that they come from"
        )
    target.load_state_dict(given, strict=False)


def check_schedule(schedule: str) -> None:
    """Say which schedules there are.

    Raises:
        ValueError: If this is none.
    """
    if schedule not in _SCHEDULES:
        raise ValueError(f"expected schedule {' or '.join(map(repr, _SCHEDULES))}, got {schedule!r}")


def scheduled(
    optimizer: torch.optim.Optimizer, schedule: Schedule, warmup_steps: int, total_steps: int
) -> dict[str, Any]:
    """The optimizer with a linear warm-up and what follows it, in Lightning's form."""
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _multiplier(step, warmup_steps, total_steps, _SCHEDULES[schedule])
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


def _multiplier(step: int, warmup_steps: int, total_steps: int, decay: Callable[[float], float]) -> float:
    """Linear to 1 over the warm-up, then ``decay`` of the share of the rest that has passed (1 where that is unknown).

    Example:
        >>> [round(_multiplier(step, 2, 10, _cosine), 2) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if total_steps <= warmup_steps:
        return 1.0
    return decay(min(1.0, (step - warmup_steps) / (total_steps - warmup_steps)))


def _cosine(passed: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * passed))


def _flat_linear(passed: float) -> float:
    """1 for 30 % of the way, then linear to .01.

    Example:
        >>> [round(_flat_linear(passed), 3) for passed in (0.0, 0.3, 0.65, 1.0)]
        [1.0, 1.0, 0.505, 0.01]
    """
    return 1 - 0.99 * max(0.0, passed - 0.3) / 0.7


_SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "flat_linear": _flat_linear}
