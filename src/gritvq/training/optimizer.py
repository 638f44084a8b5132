"""AdamW, its learning rate schedules, and a training loop for models that train without Lightning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["OptimizerSettings", "RateSchedule", "take_steps"]

RateSchedule = Literal["cosine", "flat_linear", "constant", "cosine_from_start"]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Settings of AdamW and of its learning rate schedule.

    Args:
        lr: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        schedule: Schedule after the warm-up. ``"cosine"``: cosine decay to zero. ``"flat_linear"``: constant for 30 %
            of the remaining steps, then linear decay to 1 % (FVQ's schedule, with a warm-up of a tenth of the run).
            ``"constant"``. ``"cosine_from_start"``: a cosine over the whole run, multiplied by the warm-up.
        betas: Decay rates of the moments.
        weight_decay: Weight decay of parameter groups without their own.
        gradient_clip: Largest gradient norm; 0 for none.

    Raises:
        ValueError: If a number is out of range or the schedule is unknown.

    Example:
        >>> settings = OptimizerSettings(warmup_steps=2)
        >>> [round(settings.rate(step, 10), 2) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    lr: float = 1e-3
    warmup_steps: int = 0
    schedule: RateSchedule = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    gradient_clip: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"expected lr > 0, warmup_steps >= 0 and weight_decay >= 0, got {self.lr!r}, {self.warmup_steps!r}, "
                f"{self.weight_decay!r}; change the one that is out of range"
            )
        if self.schedule not in get_args(RateSchedule):
            known = " or ".join(map(repr, get_args(RateSchedule)))
            raise ValueError(f"expected schedule {known}, got {self.schedule!r}; choose one")

    def rate(self, step: int, total_steps: int) -> float:
        """Learning rate at a step as a fraction of ``lr``.

        Args:
            step: Number of steps already taken.
            total_steps: Steps of the run; -1 (no end) keeps the peak rate after the warm-up.

        Example:
            >>> settings = OptimizerSettings(schedule="flat_linear")
            >>> [round(settings.rate(step, 100), 3) for step in (0, 30, 65, 100)]
            [1.0, 1.0, 0.505, 0.01]
        """
        warm = 1.0 if step >= self.warmup_steps else (step + 1) / self.warmup_steps
        if self.schedule == "cosine_from_start":
            return warm * 0.5 * (1 + math.cos(math.pi * step / total_steps))
        if step < self.warmup_steps or total_steps <= self.warmup_steps or self.schedule == "constant":
            return warm
        passed = min(1.0, (step - self.warmup_steps) / (total_steps - self.warmup_steps))
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * passed))
        return 1 - 0.99 * max(0.0, passed - 0.3) / 0.7

    def optimizer(self, groups: list[dict[str, Any]], total_steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
        """The optimizer of the parameter groups and its schedule; step both together."""
        made = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)
        return made, LambdaLR(made, lambda step: self.rate(step, total_steps))


def take_steps(
    losses: Iterable[Tensor], optimizer: torch.optim.Optimizer, schedule: LambdaLR, *, gradient_clip: float = 0.0
) -> Iterator[float]:
    """Take one optimizer step for each loss, and yield the loss's value after the step.

    Args:
        losses: Generator of scalar losses; each is computed after the step of the previous one.
        optimizer: The optimizer.
        schedule: Its schedule.
        gradient_clip: Largest gradient norm; 0 for none.

    Raises:
        ValueError: If a loss is not finite.

    Example:
        >>> x = nn.Parameter(torch.tensor(1.0))
        >>> optimizer, schedule = OptimizerSettings(lr=0.1, schedule="constant").optimizer([{"params": [x]}], -1)
        >>> [round(value, 2) for value in take_steps((x.square() for _ in range(3)), optimizer, schedule)]
        [1.0, 0.81, 0.64]
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for loss in losses:
        value = loss.item()
        if not math.isfinite(value):
            rate = optimizer.param_groups[0]["initial_lr"]
            raise ValueError(
                f"expected a finite loss, got {value} at step {schedule.last_epoch}; lower lr={rate:g} or look for "
                "extreme values in the data"
            )
        optimizer.zero_grad()
        loss.backward()
        if gradient_clip:
            nn.utils.clip_grad_norm_(parameters, gradient_clip)
        optimizer.step()
        schedule.step()
        yield value
