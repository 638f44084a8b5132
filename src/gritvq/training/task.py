"""How a model learns from batches, as Lightning runs it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule

from gritvq.component import Component
from gritvq.saving import tensors_of

__all__ = ["LOG_EVERY", "Schedule", "Task", "check_schedule", "copy_weights", "rates", "scheduled"]

Schedule = Literal["cosine", "flat_linear"]
LOG_EVERY = 10  # steps between those that are logged


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
