"""The section on defaults: how far each is from the best method of a cell, as a table, a plot, and cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.report.tables import circumstances, markdown_table

from gritvq.plotting import new_figure, save_figure
from gritvq.results import read_results

DEFAULT = """
## Is the default the best?

    python -m benchmarks.quality.default --data PATH-TO-CIFAR10 PATH-TO-FASHION-MNIST ... --network PATH-TO-RESNET56

Small problems, cells, that differ in data, networks, number and size of codes, tokens per step and steps
(`benchmarks/quality/default.yaml`). In each, presets run with their defaults and with settings that were best on
CIFAR-10 with our networks; candidates for the default of `grit_vq` run beside them. Regret is the quality of the best
of all presets in a cell, with defaults or settings, minus that of the method, in dB (PSNR; of vectors variance over
squared error); a candidate that beats them all has a negative one. "Least usage" is that of the worst cell, over what
as many draws of equally likely codes would show. Only cells in which all presets ran are counted.
"""
ROUNDS = {
    "choosing": "Measured on held-out training data; what is chosen is chosen here.",
    "last": "The last word: test data, other seeds, and two data sets that had no part in the choice.",
}
IDENTITY = ("round", "cell", "kind", "method", "settings", "codebook_size", "seed")
_KINDS = {"default": "defaults", "tuned": "tuned", "candidate": "candidate"}
_COLORS = {"default": "#1f77b4", "tuned": "#999999", "candidate": "#d95f02"}
_LEAST = 0.25  # share of the plan's cells that are shown
_WIDEST = 3.0  # dB; regrets beyond are drawn at the edge

Name = tuple[str, str, str]  # kind, method, settings
Means = dict[Name, dict[str, float]]


def default_section(folder: Path, images: Path, plan: Mapping[str, Any]) -> str:
    """Tables and plots of rounds with at least a quarter of the plan's cells: fewer would say nothing of a default."""
    parts = list[str]()
    for path in sorted(folder.glob("default_*.csv")):
        rows = read_results(path, IDENTITY)
        for name, said in ROUNDS.items():
            own = [row for row in rows if row["round"] == name]
            cells = complete_cells(own, plan)
            if len(cells) < _LEAST * len(plan["cells"]):
                continue
            plot = images / f"default_{name}_{own[0]['hardware']}.png"
            draw(cells, plot)
            parts += [
                f"### {name}, {path.stem.removeprefix('default_')}",
                f"{said} Cells so far: {len(cells)} of {len(plan['cells'])} in the plan.",
            ]
            parts += [f"![Regret of each method, a dot for each cell](images/{plot.name})", circumstances(own)]
            parts += [_summary(cells), _by_cell(cells)]
    return "\n\n".join([DEFAULT, *parts]) + "\n" if parts else ""


def planned_methods(plan: Mapping[str, Any]) -> set[Name]:
    """Kind, name and settings of all that is compared."""
    found: set[Name] = {("default", name, "-") for name in plan["defaults"]}
    for kind, part in (("tuned", "tuned"), ("candidate", "candidates")):
        found |= {(kind, name, settings_text(settings)) for name, settings in plan[part].items()}
    return found


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as in the results."""
    return " ".join(f"{name}={value}" for name, value in settings.items() if name != "preset") or "-"


def complete_cells(rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> dict[str, Means]:
    """Means over seeds by cell and method, of the cells in which all presets of the plan ran.

    What the plan has no more, such as earlier settings, does not count.
    """
    runs: dict[str, dict[Name, list[Mapping[str, Any]]]] = {}
    planned = planned_methods(plan)
    for row in rows:
        name = (row["kind"], row["method"], row["settings"])
        if name in planned:
            runs.setdefault(row["cell"], {}).setdefault(name, []).append(row)
    presets = {cell: {name for name in own if name[0] != "candidate"} for cell, own in runs.items()}
    wanted = {name for name in planned if name[0] != "candidate"}
    return {
        cell: {name: _means(own) for name, own in methods.items()}
        for cell, methods in runs.items()
        if presets[cell] == wanted
    }


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = [name for name, value in runs[0].items() if isinstance(value, float) and name not in IDENTITY]
    return {name: sum(run[name] for run in runs) / len(runs) for name in names if all(name in run for run in runs)}


def best_of(cell: Means) -> Name:
    """The preset with the best quality, with defaults or settings."""
    return max((name for name in cell if name[0] != "candidate"), key=lambda name: cell[name]["quality"])


def regrets(cells: Mapping[str, Means], name: Name) -> dict[str, float]:
    """Regret of a method in the cells where it ran."""
    return {cell: own[best_of(own)]["quality"] - own[name]["quality"] for cell, own in cells.items() if name in own}


def _names(cells: Mapping[str, Means]) -> list[Name]:
    """All methods, least mean regret first; those that ran in few cells last."""
    names = {name for own in cells.values() for name in own}

    def place(name: Name) -> tuple[int, float]:
        found = regrets(cells, name)
        return -len(found), sum(found.values()) / len(found)

    return sorted(names, key=place)


def _summary(cells: Mapping[str, Means]) -> str:
    lines = []
    for name in _names(cells):
        found = regrets(cells, name)
        worst = max(found, key=lambda cell: found[cell])
        own = [cells[cell][name] for cell in found]
        least = min(each["usage"] / each["uniform_usage"] for each in own)
        kind, method, settings = name
        mean = f"{sum(found.values()) / len(found):.2f}"
        lines.append([f"`{method}`", _KINDS[kind], settings, str(len(found)), mean, f"{found[worst]:.2f}", worst])
        lines[-1].append(f"{least:.2f}")
    header = ("method", "with", "settings", "cells", "mean regret (dB)", "worst (dB)", "worst cell", "least usage")
    return markdown_table(header, lines, texts=3)


def _by_cell(cells: Mapping[str, Means]) -> str:
    lines, default = [], ("default", "grit_vq", "-")
    for cell, own in cells.items():
        best, mine = best_of(own), own[default]
        other = max(each["quality"] for name, each in own.items() if name[0] == "default" and name != default)
        pairs = [f"{mine[key]:{style}} / {own[best][key]:{style}}" if key in mine else "-" for key, style in _BESIDE]
        told = [f"{mine['quality']:.2f}", f"{own[best]['quality'] - mine['quality']:.2f}"]
        told += [f"{mine['quality'] - other:.2f}"]
        lines.append([cell, f"`{best[1]}`, {_KINDS[best[0]]}", *told, *pairs])
    header = ["cell", "best", "quality of `grit_vq` (dB)", "regret", "ahead of the other defaults"]
    return markdown_table((*header, *(f"{_WORDS[key]}: `grit_vq` / best" for key, _ in _BESIDE)), lines)


_BESIDE = (("usage", ".2f"), ("entropy_bits", ".1f"), ("rfd", ".1f"), ("accuracy", ".2f"), ("nats_per_token", ".2f"))
_WORDS = {"usage": "usage", "entropy_bits": "bits", "rfd": "rFD", "accuracy": "recognized", "nats_per_token": "nats"}


def draw(cells: Mapping[str, Means], path: Path) -> None:
    """A dot for the regret of every method in every cell, with a bar at the mean."""
    names = _names(cells)
    figure, axis = new_figure(8.5, 0.34 * len(names) + 1.0)
    for place, name in enumerate(names):
        values = np.array(list(regrets(cells, name).values()))
        jitter = np.random.default_rng(place).uniform(-0.22, 0.22, len(values))
        axis.scatter(values.clip(max=_WIDEST), place + jitter, s=12, alpha=0.55, color=_COLORS[name[0]], linewidth=0)
        axis.plot([min(values.mean(), _WIDEST)] * 2, [place - 0.36, place + 0.36], color="black", linewidth=2)
    labels = [f"{method}, {_KINDS[kind]}" for kind, method, _ in names]
    axis.set_yticks(range(len(names)), labels=labels, fontsize=9)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_xlim(right=_WIDEST + 0.1)
    axis.set_xlabel(f"regret (dB), {_WIDEST:g} and more at the edge; bar: mean of the cells")
    axis.set_title("How far from the best method of each cell", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
