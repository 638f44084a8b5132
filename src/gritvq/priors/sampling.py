"""Sampling from logits: guidance, temperature, filters, and a random generator for each sample."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import Component, check_integer, check_number

__all__ = [
    "ConstantGuidance",
    "Draw",
    "Guidance",
    "LinearGuidance",
    "Noise",
    "PowerCosineGuidance",
    "Sampler",
    "Seeds",
    "filtered",
    "sample_seeds",
]

Seeds: TypeAlias = torch.Generator | int | Sequence[int] | None
Draw: TypeAlias = Callable[[Float[Tensor, "streams *batch K"], Bool[Tensor, "*positions"]], Int[Tensor, "*batch"]]


class Guidance(Component, ABC):
    """Scale s of classifier-free guidance ``u + s (c - u)`` over the course of a sample; s = 1 is none."""

    @abstractmethod
    def at(self, place: float) -> float:
        """The scale at a place.

        Args:
            place: 0 at the first position (autoregressive), scale (next-scale) or step (masked), 1 at the last.
        """


class ConstantGuidance(Guidance):
    """The same scale everywhere.

    Args:
        scale: 1 is none, 0 ignores the class.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = check_number("scale", scale)

    def at(self, place: float) -> float:
        """The scale."""
        return self.scale


class LinearGuidance(Guidance):
    """From one scale to another in equal steps.

    Args:
        start: Scale at the first place.
        end: Scale at the last place.

    Example:
        >>> LinearGuidance(1.0, 3.0).at(0.5)
        2.0
    """

    def __init__(self, start: float = 1.0, end: float = 3.0) -> None:
        super().__init__()
        self.start, self.end = check_number("start", start), check_number("end", end)

    def at(self, place: float) -> float:
        """``start + place (end - start)``."""
        return self.start + place * (self.end - self.start)


class PowerCosineGuidance(Guidance):
    """Guidance that grows from none: ``1 + (scale - 1) (1 - cos(pi place^power)) / 2``.

    Args:
        scale: At the last place.
        power: The larger, the later it grows.

    Example:
        >>> schedule = PowerCosineGuidance(16.0, 2.75)
        >>> [round(schedule.at(place), 2) for place in (0.0, 0.5, 1.0)]
        [1.0, 1.8, 16.0]

    References:
        Yu et al., Randomized autoregressive visual generation (RAR), ICCV 2025, arXiv 2411.00776, released code, whose
        last place is one step short of 1.
    """

    def __init__(self, scale: float, power: float = 2.75) -> None:
        super().__init__()
        self.scale = check_number("scale", scale)
        self.power = check_number("power", power, inside=True)

    def at(self, place: float) -> float:
        """See the class."""
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * place**self.power)) / 2


def sample_seeds(seed: int, num: int, first: int = 0) -> list[int]:
    """Seeds of single samples, for sampling in batches: sample n does not depend on the batch it is in.

    Args:
        seed: Seed of all samples, >= 0.
        num: Number of samples in this batch.
        first: Number of the first sample in this batch.

    Example:
        >>> sample_seeds(0, 4)[2:] == sample_seeds(0, 2, first=2)
        True
    """
    check_integer("seed", seed, 0)
    return [int(np.random.SeedSequence([seed, first + n]).generate_state(1, np.uint64)[0]) for n in range(num)]


def seeds_of(seeds: Seeds, num: int) -> list[int]:
    """One seed per sample.

    Args:
        seeds: A seed of all samples, one for each, or what the former is drawn from: a generator, or PyTorch's own.
        num: Samples.

    Raises:
        ValueError: If they are no integers, too few or too many, or negative.
    """
    if seeds is None or isinstance(seeds, torch.Generator):
        device = "cpu" if seeds is None else seeds.device
        seeds = int(torch.randint(2**62, (), generator=seeds, device=device))
    if isinstance(seeds, Integral):
        return sample_seeds(int(seeds), num)
    try:
        found = [operator.index(seed) for seed in seeds]  # type: ignore[union-attr]
    except TypeError as error:
        raise ValueError(
            f"expected a seed, one for each of {num} samples, or a generator, got {seeds!r}; see sample_seeds"
        ) from error
    if len(found) != num or min(found, default=0) < 0:
        raise ValueError(f"expected one seed >= 0 for each of {num} samples, got {len(found)}; see sample_seeds")
    return found


class Noise:
    """Random numbers from one generator per sample. They are drawn on the CPU and equal on every device.

    Args:
        seeds: One seed per sample.
        device: Device of the numbers.

    Example:
        >>> together, alone = Noise([3, 4]), Noise([4])
        >>> bool((together.gumbel(2, 5)[1] == alone.gumbel(2, 5)[0]).all())
        True
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators, self._device = [np.random.default_rng(seed) for seed in seeds], device

    def gumbel(self, *shape: int) -> Tensor:
        """Gumbel noise (num, *shape): the largest of logits + noise is a draw from their softmax."""
        found = torch.empty(len(self._generators), *shape)
        for row, generator in zip(found, self._generators, strict=True):
            uniform = torch.from_numpy(generator.random(shape)).clamp_(min=2.0**-54)  # 53 bits: the tail matters
            row.copy_(uniform.log_().neg_().log_().neg_())
        return found.to(self._device)


def filtered(
    logits: Float[Tensor, "*batch K"], top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "*batch K"]:
    """Logits with minus infinity for what is not to be drawn.

    Args:
        logits: Any.
        top_k: Keep the k largest; of values equal to the k-th all.
        top_p: Keep the most probable, as few as have this probability together; at least one.

    Example:
        >>> filtered(torch.tensor([0.0, 2.0, 1.0]), top_k=2).tolist()
        [-inf, 2.0, 1.0]
        >>> filtered(torch.tensor([0.0, 2.0, 1.0]), top_p=0.0).tolist()
        [-inf, 2.0, -inf]
    """
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -math.inf)
    if top_p is not None and top_p < 1:
        values, places = logits.sort(dim=-1, descending=True, stable=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        out = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, places, (before >= top_p) & (before > 0))
        logits = logits.masked_fill(out, -math.inf)
    return logits


class Sampler:
    """How tokens are drawn from logits.

    Args:
        noise: Of each sample.
        guidance: Scale s of ``u + s (c - u)``, or a schedule of it; 1 is none.
        temperature: Divides the logits, >= 0; 0 takes the most probable token.
        top_k: See :func:`filtered`.
        top_p: See :func:`filtered`.

    Attributes:
        is_guided: Whether logits come in two streams: with the class and without.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        noise: Noise,
        *,
        guidance: float | Guidance = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        self.noise = noise
        self.guidance = guidance if isinstance(guidance, Guidance) else ConstantGuidance(guidance)
        self.is_guided = not (isinstance(self.guidance, ConstantGuidance) and self.guidance.scale == 1)
        self.temperature = check_number("temperature", temperature)
        self.top_k = None if top_k is None else check_integer("top_k", top_k)
        self.top_p = None if top_p is None else check_number("top_p", top_p, most=1.0)

    def at(self, place: float, temperature_factor: float = 1.0, scores: list[Tensor] | None = None) -> Draw:
        """How to draw at a place.

        Args:
            place: In [0, 1], see :class:`Guidance`.
            temperature_factor: Multiplies the temperature.
            scores: Where the log-probabilities (*batch) of what is drawn go, one tensor per draw; at temperature 1,
                before filters, 0 where absent.

        Returns:
            A function of logits (streams, *batch, K) and of which positions have a token here; the others get -1.
        """
        scale = self.guidance.at(place)

        def draw(logits: Tensor, present: Tensor) -> Tensor:
            logits = logits.float()
            mixed = logits[0] if len(logits) == 1 else logits[1] + scale * (logits[0] - logits[1])
            temperature = self.temperature * temperature_factor
            if temperature == 0:
                chosen = mixed.argmax(-1)
            else:
                kept = filtered(mixed / temperature, self.top_k, self.top_p)
                chosen = (kept + self.noise.gumbel(*kept.shape[1:])).argmax(-1)
            if scores is not None:
                scores.append(mixed.log_softmax(-1).gather(-1, chosen[..., None])[..., 0] * present)
            return chosen.masked_fill(~present, -1)

        return draw


def place_of(number: int, total: int) -> float:
    """Number 0 .. total - 1 as a place 0 .. 1."""
    return number / max(1, total - 1)
