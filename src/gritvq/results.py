"""Results of runs as CSV in long form: one line per run and metric."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.files import replacing

__all__ = ["IDENTITY", "UNITS", "read_results", "write_results"]

UNITS = {"psnr": "dB", "psnr_per_image": "dB", "usage": "share", "seconds_per_step": "s", "perplexity": "codes"}
IDENTITY = ("method", "preset", "settings", "codebook_size", "seed")


def write_results(
    path: str | Path,
    results: Sequence[Mapping[str, Any]],
    about: Mapping[str, str],
    identity: Sequence[str] = IDENTITY,
    units: Mapping[str, str] = UNITS,
) -> Path:
    """Write results in long form: one line per run and metric, with the columns that identify the run and its settings.

    Args:
        path: CSV to write, whole or not at all.
        results: One mapping per run: identity and metrics by name.
        about: Columns equal in all lines, for example comparison, hardware, commit and versions.
        identity: Columns that together name a run.
        units: Units by metric; 1 for the others.
    """
    columns = [*identity, "metric", "unit", "value", *about]
    with replacing(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for result in results:
            circumstances = [result.get(name, value) for name, value in about.items()]
            for metric in (k for k in result if k not in identity and k not in about):
                value = f"{result[metric]:.6g}"
                writer.writerow([*(result[k] for k in identity), metric, units.get(metric, "1"), value, *circumstances])
    return Path(path)


def read_results(path: str | Path, identity: Sequence[str] = IDENTITY) -> list[dict[str, Any]]:
    """Read what :func:`write_results` wrote: one dict per run, numbers as numbers, ``about`` columns included."""
    runs: dict[tuple[str, ...], dict[str, Any]] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            about = {k: v for k, v in line.items() if k not in (*identity, "metric", "unit", "value")}
            key = tuple(line[k] for k in identity) + tuple(about.values())
            run = runs.setdefault(key, {**{k: line[k] for k in identity}, **about})
            run |= {name: int(line[name]) for name in ("codebook_size", "seed") if name in line}
            run[line["metric"]] = float(line["value"])
    return list(runs.values())
