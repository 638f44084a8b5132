"""Schedules: numbers that change during training.

They advance with ``update_codebook``, once per optimizer step. A step without a valid vector on any process does not
count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gritvq.component import Component, check_integer, check_number
from gritvq.distributed import all_reduce_sum
from gritvq.quantizers.functional import transforming, unwrapped

__all__ = ["DecaySchedule", "LinearSchedule", "Schedule", "scheduled"]


class Schedule(Component, ABC):
    """A number that depends on the number of steps.

    Where an argument is ``float | Schedule`` a plain number is a constant. The step is a buffer: it is saved with the
    model, and a compiled graph does not change with it.
    """

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.started = torch.zeros((), dtype=torch.bool)  # no buffer: a parallel wrapper must not broadcast it

    @abstractmethod
    def at(self, step: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The value after ``step`` steps."""

    def forward(self) -> Float[Tensor, ""]:
        """The value now, float32."""
        return self.at(self.step.float())

    def see(self, valid: Bool[Tensor, "*batch"]) -> None:
        """A training batch comes; called by the quantizer in forward."""
        if transforming():  # which refuses writing in place
            self.started = unwrapped(self.started | unwrapped(valid).any())
        else:
            self.started.logical_or_(valid.any())

    def advance(self) -> None:
        """One step on if a vector was seen since the last, on any process; called by ``update_codebook``."""
        self.step.add_(all_reduce_sum(self.started.long()) > 0)
        self.started.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Schedule:
        super()._apply(fn, recurse)
        if self.started.is_meta:
            self.started = torch.zeros_like(self.started, device=self.step.device)
        self.started = self.started.to(self.step.device)
        return self


class DecaySchedule(Schedule):
    """``max(floor, start * factor ** (step / interval))``, smoothly or in stairs.

    Args:
        start: Value at step 0.
        factor: Factor per ``interval`` steps, > 0.
        interval: Steps.
        floor: Smallest value.
        staircase: Whether the value changes in jumps at every ``interval`` instead of continuously.

    Example:
        >>> schedule = DecaySchedule(1.0, factor=0.5, interval=10, floor=0.2)
        >>> for _ in range(10):
        ...     schedule.see(torch.tensor([True]))
        ...     schedule.advance()
        >>> schedule().item()
        0.5
    """

    def __init__(
        self, start: float, *, factor: float, interval: float, floor: float = 0.0, staircase: bool = False
    ) -> None:
        super().__init__()
        self.start, self.factor = (check_number(n, v, inside=True) for n, v in (("start", start), ("factor", factor)))
        self.interval, self.floor = check_number("interval", interval, inside=True), check_number("floor", floor)
        self.staircase = staircase

    def at(self, step: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The formula above."""
        passed = step / self.interval
        exponent = passed.floor() if self.staircase else passed
        return (self.start * self.factor**exponent).clamp_min(self.floor)


class LinearSchedule(Schedule):
    """From ``start`` to ``end`` on a straight line between two steps, constant outside.

    Args:
        start: Value up to ``begin``.
        end: Value from ``begin + num_steps`` on.
        num_steps: Length of the line in steps.
        begin: Step where it begins.

    Example:
        >>> LinearSchedule(1.0, 0.0, num_steps=4).at(torch.tensor(1.0)).item()
        0.75
    """

    def __init__(self, start: float, end: float, *, num_steps: int, begin: int = 0) -> None:
        super().__init__()
        self.start, self.end = float(start), float(end)
        self.num_steps, self.begin = check_integer("num_steps", num_steps), check_integer("begin", begin, 0)

    def at(self, step: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The formula above."""
        return self.start + (self.end - self.start) * ((step - self.begin) / self.num_steps).clamp(0, 1)


def scheduled(value: float | Schedule) -> float | Tensor:
    """The value now of a number or a schedule.

    Example:
        >>> scheduled(0.5)
        0.5
    """
    return value() if isinstance(value, Schedule) else value
