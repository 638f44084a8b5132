"""Comparison of methods: same data, budget and seeds, each with its own settings."""

from __future__ import annotations

import functools
import inspect
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from gritvq.component import Component, check_integer
from gritvq.images.evaluation import evaluate
from gritvq.images.metrics import ReconstructionError
from gritvq.images.networks import ImageDecoder, ImageEncoder, num_parameters
from gritvq.images.task import TokenizerTask
from gritvq.images.tokenizer import ImageTokenizer
from gritvq.quantizers.base import Quantizer
from gritvq.training.data import TrainingData
from gritvq.training.run import TrainingPlan, seed_everything, train

__all__ = [
    "COMPARISON_COLUMNS",
    "Comparison",
    "Entry",
    "FailedRuns",
    "comparison_rows",
    "describe_comparison",
    "mean_color_row",
    "run_comparison",
    "run_entry",
]

log = logging.getLogger("gritvq")


@dataclass(frozen=True)
class Comparison:
    """Settings shared by all entries of a comparison.

    Args:
        dim: Latent size D.
        factor: Pixels per token and side.
        width: Hidden channels of encoder and decoder.
        num_blocks: Residual blocks per resolution.
        lr: Peak learning rate of the encoder.
        warmup_steps: Warm-up.
        max_steps: Budget in optimizer steps.
        split: Images to measure on: ``"test"`` or ``"validation"``.
        num_images: Number of images to measure on, rounded up to whole batches; None for all.
    """

    dim: int = 16
    factor: int = 4
    width: int = 64
    num_blocks: int = 2
    lr: float = 1e-3
    warmup_steps: int = 50
    max_steps: int = 500
    split: str = "test"
    num_images: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("max_steps", 1), ("warmup_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"expected lr > 0, got {self.lr}")
        if self.num_images is not None and self.num_images < 1:
            raise ValueError(f"expected num_images >= 1 or None, got {self.num_images}")
        if self.split not in ("test", "validation"):
            raise ValueError(f"expected split 'test' or 'validation', got {self.split!r}")


@dataclass(frozen=True)
class Entry:
    """One run: a name, a function ``(dim, codebook_size, **settings) -> Quantizer``, its settings, a size, a seed."""

    method: str
    preset: Callable[..., Quantizer]
    codebook_size: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = inspect.signature(self.preset).parameters
        unknown = sorted(set(self.settings) - set(known))
        if unknown:
            raise ValueError(
                f"expected settings that {self.preset.__name__} takes ({', '.join(list(known)[2:])}), got "
                f"{', '.join(unknown)}"
            )

    def quantizer(self, dim: int) -> Quantizer:
        """The quantizer of this entry.

        Raises:
            ValueError: If the preset does not accept its settings.
        """
        try:
            return self.preset(dim, self.codebook_size, **self.settings)
        except TypeError as error:
            raise ValueError(
                f"expected settings that fit {self.method}, got {dict(self.settings)} ({error})"
            ) from error


class FailedRuns(ValueError):
    """Raised after a comparison if runs failed; names them."""


def run_entry(
    comparison: Comparison,
    entry: Entry,
    make_data: Callable[[], TrainingData],
    threads: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train one entry from scratch and measure it.

    Args:
        comparison: The common budget.
        entry: What to train.
        make_data: Builds the data module, whose order depends on its own seed.
        threads: Threads of this process.
        progress: Whether to show a bar.

    Returns:
        The entry's fields and its numbers.
    """
    seed_everything(entry.seed, threads)
    quantizer = entry.quantizer(comparison.dim)
    shape: dict[str, Any] = {
        "width": comparison.width,
        "factor": comparison.factor,
        "num_blocks": comparison.num_blocks,
    }
    data: Any = make_data()
    encoder: Component = ImageEncoder(quantizer.input_dim, channels=data.channels, **shape)
    tokenizer = ImageTokenizer(encoder, quantizer, ImageDecoder(quantizer.dim, channels=data.channels, **shape))
    task = TokenizerTask(tokenizer, lr=comparison.lr, warmup_steps=comparison.warmup_steps)
    plan = TrainingPlan(max_steps=comparison.max_steps, seed=entry.seed, accelerator="cpu" if threads else "auto")
    started = time.perf_counter()
    train(task, data, plan, progress=progress)
    seconds = (time.perf_counter() - started) / comparison.max_steps
    device = "cuda" if torch.cuda.is_available() and not threads else "cpu"
    numbers, _ = evaluate(tokenizer, _measured_images(comparison, data), device=device)
    return {
        "method": entry.method,
        "preset": entry.preset.__name__,
        "settings": " ".join(f"{k}={v}" for k, v in entry.settings.items()) or "-",
        "codebook_size": entry.codebook_size,
        "seed": entry.seed,
        **numbers,
        "parameters": num_parameters(tokenizer),
        "seconds_per_step": seconds,
    }


def mean_color_row(comparison: Comparison, make_data: Callable[[], TrainingData]) -> dict[str, Any]:
    """The baseline of a comparison: every picture replaced by its own mean color, measured on the comparison's images.

    A method near it has learned nothing of the content. It has no codes: its codebook size is 0, and usage, perplexity
    and bits are missing.

    Args:
        comparison: Says which images.
        make_data: Builds the data module.

    Returns:
        The same fields as from :func:`run_entry`, as far as they have a meaning, with the method ``"mean colour"``.
    """
    error = ReconstructionError()
    for images in _measured_images(comparison, make_data()):
        error.update(images.mean((2, 3), keepdim=True).expand_as(images), images)
    floor = {"method": "mean colour", "preset": "-", "settings": "-", "codebook_size": 0, "seed": 0}
    return {**floor, **error.compute()}


def _measured_images(comparison: Comparison, data: Any) -> Iterator[Tensor]:
    seen = 0
    for images in data.test_dataloader() if comparison.split == "test" else data.val_dataloader():
        yield images
        seen += len(images)
        if comparison.num_images is not None and seen >= comparison.num_images:
            return


def run_comparison(
    comparison: Comparison,
    entries: Sequence[Entry],
    make_data: Callable[[], TrainingData],
    *,
    jobs: int = 1,
) -> Iterator[dict[str, Any]]:
    """Run entries and yield each result as it is ready; with several jobs one process and one thread each.

    A run that fails does not end the others.

    Args:
        comparison: The common budget.
        entries: What to run.
        make_data: Builds the data module; must be picklable for several jobs.
        jobs: Runs at once.

    Raises:
        FailedRuns: At the end, if runs failed.
    """
    check_integer("jobs", jobs)
    failed: list[str] = []
    for entry, outcome in _outcomes(comparison, entries, make_data, jobs):
        try:
            result = outcome()
        except Exception as error:  # kept as text: its traceback would hold the run's memory
            name = f"{entry.method} with {entry.codebook_size} codes and seed {entry.seed}"
            failed.append(f"{name} ({type(error).__name__}: {error})")
            log.warning("%s failed", name, exc_info=not isinstance(error, (ValueError, BrokenExecutor)))
        else:
            yield result
    if failed:
        raise FailedRuns(
            f"expected all {len(entries)} runs to finish, got {len(failed)} that failed: {'; '.join(failed)}; correct "
            "or leave out these"
        )


def _outcomes(
    comparison: Comparison, entries: Sequence[Entry], make_data: Callable[[], TrainingData], jobs: int
) -> Iterator[tuple[Entry, Callable[[], dict[str, Any]]]]:
    """Every entry and what returns its result or raises its error; what still waits is canceled when closed."""
    if jobs == 1:
        for entry in entries:
            yield entry, functools.partial(run_entry, comparison, entry, make_data)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = {pool.submit(run_entry, comparison, entry, make_data, 1): entry for entry in entries}
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        pool.shutdown(cancel_futures=True)


def describe_comparison(comparison: Comparison) -> str:
    """One line that says what all runs shared.

    Example:
        >>> describe_comparison(Comparison())[:30]
        'dim=16 factor=4 width=64 num_b'
    """
    return " ".join(f"{name}={value}" for name, value in asdict(comparison).items() if value is not None)


COMPARISON_COLUMNS = (
    "K",
    "method",
    "PSNR (dB)",
    "usage",
    "perplexity",
    "bits/token",
    "bits/pixel",
    "parameters",
    "s/step",
    "seeds",
)


def comparison_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Means over seeds, best PSNR first within a codebook size; a spread is the smallest to the largest.

    What has no codes (:func:`mean_color_row`) comes last; what was not measured is ``-``.
    """
    rows: list[tuple[str, ...]] = []
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["codebook_size"], result["method"]), []).append(result)

    def mean(group: list[Mapping[str, Any]], name: str) -> float:
        return sum(float(result[name]) for result in group) / len(group)

    def told(group: list[Mapping[str, Any]], name: str, style: str) -> str:
        return format(mean(group, name), style) if all(name in result for result in group) else "-"

    def place(item: tuple[tuple[int, str], list[Mapping[str, Any]]]) -> tuple[bool, int, float]:
        (size, _), group = item
        return size == 0, size, -mean(group, "psnr")

    for (size, method), group in sorted(groups.items(), key=place):
        psnr = [float(result["psnr"]) for result in group]
        spread = f" ({min(psnr):.2f}-{max(psnr):.2f})" if len(psnr) > 1 else ""
        rows.append(
            (
                str(size or "-"),
                method,
                f"{mean(group, 'psnr'):.2f}{spread}",
                told(group, "usage", ".3f"),
                told(group, "perplexity", ".0f"),
                told(group, "bits_per_token", ".4g"),
                told(group, "bits_per_pixel", ".3f"),
                told(group, "parameters", ",.0f"),
                told(group, "seconds_per_step", ".3f"),
                str(len(group)),
            )
        )
    return rows
