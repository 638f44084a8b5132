"""What is wrong with a run, in words: from its logs alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from gritvq.quantizers.diagnosis import Finding, least_usage, most_severe_first

__all__ = ["examine_logs", "read_logs"]

Logs = Mapping[str, Sequence[tuple[int, float]]]

_WINDOW = 100  # steps over which tasks count the codes in use
_LEAST = 10  # logged values to speak of a course


def read_logs(folder: str | Path) -> dict[str, list[tuple[int, float]]]:
    """The CSV logs of a run and its resumed parts: pairs of step and value by name, by step.

    Args:
        folder: ``logs`` of a run, with ``run-0/metrics.csv`` and so on; a later part replaces steps that it repeats.

    Raises:
        ValueError: If a file is no table of numbers.
    """
    found: dict[str, dict[int, float]] = {}
    parts = (path for path in Path(folder).glob("run-*/metrics.csv") if path.parent.name[4:].isdigit())
    for path in sorted(parts, key=lambda path: int(path.parent.name[4:])):
        with path.open(newline="", encoding="utf-8") as file:
            try:
                for row in csv.DictReader(file):
                    step = int(row["step"])
                    for name, value in row.items():
                        if value and name not in ("epoch", "step"):
                            found.setdefault(name, {})[step] = float(value)
            except (KeyError, TypeError, ValueError, csv.Error) as error:
                raise ValueError(
                    f"expected logs as a run writes them, got {path} ({error}); repair or remove it"
                ) from error
    return {name: sorted(values.items()) for name, values in found.items()}


def examine_logs(logs: Logs, codebook_size: int | None = None) -> list[Finding]:
    """What is wrong with a run by its logs; an empty list for a healthy one.

    - *loss is not finite*: logged losses that are NaN or infinite, > 0.
    - *commitment loss explodes*: median of its last tenth over its median in the tenth before half of the run, > 3,
      while the reconstruction loss does not grow as much, and it is the larger of both. It may grow while the encoder
      learns to use its range, in the first half; after that, with a falling learning rate, a healthy one is level.
    - *quantizer's losses vanish*: commitment or codebook loss of all levels over the reconstruction loss in the last
      tenth, < 1e-5: latents so near to their codes carry nothing else, so no gradient says where codes should move.
    - *usage falls*: usage of the last validation (or, without two, of the last 100 steps) over the best before, < 1/2.
    - *dead codes*: usage of the last validation below :func:`gritvq.quantizers.diagnosis.least_usage`; needs
      ``codebook_size``.
    - *latents grow*: the mean norm of the latents, where a task logs ``train/latent_norm``, in the last tenth over
      that of the tenth before half of the run, > 2.

    Args:
        logs: Pairs of step and value by name, as :func:`read_logs` gives them.
        codebook_size: Codes of the largest index channel.

    Returns:
        Findings, causes before what they lead to.

    Example:
        >>> commitment = [(step, 0.1 if step < 500 else 0.1 * 2 ** (step / 100 - 5)) for step in range(0, 1000, 10)]
        >>> logs = {"train/commitment": commitment, "train/reconstruction": [(step, 0.01) for step, _ in commitment]}
        >>> [finding.name for finding in examine_logs(logs)]
        ['commitment loss explodes']
    """
    found = [
        *_of_losses(logs),
        *_of_commitment(logs),
        *_of_usage(logs, codebook_size),
        *_of_norms(logs),
    ]
    return most_severe_first(found)


def _of_losses(logs: Logs) -> Iterator[Finding]:
    bad = [(step, name) for name, values in logs.items() for step, value in values if not math.isfinite(value)]
    bad = [(step, name) for step, name in bad if name.startswith("train/")]
    if bad:
        step, name = min(bad)
        says = f"{name.removeprefix('train/')} is not finite at step {step:,}, the first of {len(bad):,} such values."
        advice = "Lower the learning rate, clip gradients, or look for NaN in the data."
        yield Finding("loss is not finite", says, len(bad), 0, advice, settings=(("lr", "a third of it"),))


def _of_commitment(logs: Logs) -> Iterator[Finding]:
    main = _finite(logs.get("train/reconstruction", ()))
    if len(main) < _LEAST:
        return
    main_middle, main_end = _middle_and_end(main)
    if main_middle <= 0 or main_end <= 0:  # a likelihood, which may be negative
        return
    last: dict[str, float] = {}
    for name, given in logs.items():
        kind, values = name.rpartition("/")[2], _finite(given)
        if not name.startswith("train/") or kind not in ("commitment", "codebook") or len(values) < _LEAST:
            continue
        middle, end = _middle_and_end(values)
        last[kind] = last.get(kind, 0.0) + end
        grown = end / middle if middle > 0 else 1.0
        part = name.removeprefix("train/").rpartition("/")[0]
        where = f" of level {part}" if part else ""
        if kind == "commitment" and grown > max(3.0, 3 * main_end / main_middle) and end > main_end:
            says = (
                f"The commitment loss{where} has grown {grown:.3g} times in the second half of the run, to {end:.3g}; "
                f"the reconstruction loss is {main_end:.3g}: latents run away from the codes."
            )
            advice = "Raise the commitment weight or the codes' learning rate, or lower that of the encoder."
            settings = (("commitment_weight", 1.0), ("lr_scale", 10))
            yield Finding("commitment loss explodes", says, grown, 3, advice, part, settings)
    for kind, end in last.items():
        if end / main_end < 1e-5:
            says = f"The {kind} loss is {end / main_end:.1g} of the reconstruction loss: latents hold their code only."
            advice = "Lower the commitment weight: the encoder obeys the codes and learns nothing from the data."
            weight = (("commitment_weight", 0.25),)
            yield Finding("quantizer's losses vanish", says, end / main_end, 1e-5, advice, settings=weight)
            return


def _of_usage(logs: Logs, codebook_size: int | None) -> Iterator[Finding]:
    settings = (("revival_interval", 20), ("lr_scale", 10), ("initialization", "kmeans"))
    values = _finite(logs.get("val/usage", ()))
    if len(values) < 2:
        whole: dict[int, float] = {}
        for step, usage in _finite(logs.get("train/usage", ())):
            whole[step // _WINDOW] = max(usage, whole.get(step // _WINDOW, 0))
        last = max((step for step, _ in logs.get("train/usage", ())), default=0)
        if (last + 1) % _WINDOW:
            whole.pop(last // _WINDOW, None)  # this one is still counting
        values = sorted((window * _WINDOW, usage) for window, usage in whole.items())
    if len(values) >= 2:
        best_step, best = max(values[:-1], key=lambda each: each[1])
        if values[-1][1] < 0.5 * best:
            says = (
                f"{100 * best:.3g} % of the codes were in use at step {best_step:,}, {100 * values[-1][1]:.3g} % are "
                f"at step {values[-1][0]:,}."
            )
            advice = "Revive codes that are not chosen, give the codes a higher learning rate, or end the run earlier."
            yield Finding("usage falls", says, values[-1][1] / best, 0.5, advice, settings=settings)
    usages, tokens = logs.get("val/usage"), logs.get("val/tokens")
    if usages and tokens and codebook_size:
        usage, num = usages[-1][1], int(tokens[-1][1])
        if usage < (limit := least_usage(codebook_size, num)):
            says = (
                f"{100 * usage:.3g} % of {codebook_size:,} codes were in use in the last validation, of {num:,} tokens."
            )
            advice = (
                "Revive codes that are not chosen, start them from data, give them a higher learning rate, or take a "
                "shared map of the codes (preset grit_vq); or take fewer codes."
            )
            yield Finding("dead codes", says, usage, limit, advice, settings=settings)


def _of_norms(logs: Logs) -> Iterator[Finding]:
    values = _finite(logs.get("train/latent_norm", ()))
    if len(values) >= _LEAST:
        middle, end = _middle_and_end(values)
        if end > 2 * middle:
            says = f"The latents have grown {end / middle:.3g} times in the second half of the run."
            advice = "Give the codes a commitment loss or a larger weight of it, or lower the encoder's learning rate."
            settings = (("commitment_weight", 0.25),)
            yield Finding("latents grow", says, end / middle, 2, advice, settings=settings)


def _finite(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [each for each in values if math.isfinite(each[1])]


def _middle_and_end(values: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Medians of the tenth of the values before the half, and of the last tenth."""
    tenth, half = max(1, len(values) // 10), len(values) // 2
    return median(v for _, v in values[half - tenth : half]), median(v for _, v in values[-tenth:])
