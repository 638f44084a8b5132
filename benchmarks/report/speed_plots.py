"""Plots of speed: against the number of codes, on log axes with labeled lines; and bars of whole steps."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from benchmarks.report.speed_targets import Measured

from gritvq.plotting import new_figure, save_figure

# Okabe and Ito's colors, told apart with any color vision; lines differ in marker and dash too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#999999")
MARKERS, DASHES = "osD^vPX*<>hp", ("-", "--", "-.", ":")
PANELS = (("seconds", 1.0, "time (s)"), ("peak_bytes", 1e-6, "peak memory (MB)"))


def look(place: int) -> dict[str, Any]:
    """Color, marker and dash of a line."""
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[place // len(COLORS) % len(DASHES)],
    }


def spread(heights: list[float], gap: float) -> list[float]:
    """Move labels apart, keeping their order and their mean, and into the panel."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    shift = (sum(placed) - sum(heights)) / max(1, len(heights))
    placed = [height - shift for height in placed]
    ceiling = 0.98
    for place in reversed(order):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - gap
    return placed


def against_codebook_size(rows: Measured, path: Path) -> None:
    """Two panels; rows share N and D."""
    methods = list(dict.fromkeys(method for each in rows.values() for method in each))
    figure, axes = new_figure(13, 4.8, 1, 2)
    for axis, (metric, scale, title) in zip(axes, PANELS, strict=True):
        ends: list[tuple[str, float, float, str]] = []
        for place, method in enumerate(methods):
            points = sorted(
                (row[2], max(each[method][metric] * scale, 1e-6))
                for row, each in rows.items()
                if metric in each.get(method, {})
            )
            if points:
                style = look(place)
                axis.plot(*zip(*points, strict=True), markersize=5, linewidth=1.6, **style)
                ends.append((method, *points[-1], style["color"]))
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        sizes = sorted({row[2] for row in rows})
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
        axis.set_xlabel("number of codes K")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        _label(axis, ends)
    n, dim = next(iter(rows))[:2]
    figure.suptitle(f"N = {n:,} vectors, D = {dim}", fontsize=11)
    figure.tight_layout(w_pad=2.5)
    save_figure(figure, path)


def bars_of_steps(rows: Measured, path: Path) -> None:
    """A panel for each autoencoder and number of threads; the slowest quantizer on top."""
    row, methods = max(rows.items())
    groups: dict[str, dict[str, float]] = {}
    for method, run in methods.items():
        name, _, group = method.partition(", ")
        if "seconds" in run and group != "compiled":
            groups.setdefault(group, {})[name] = 1e3 * run["seconds"]
    if not groups:
        return
    figure, axes = new_figure(
        4.4 * len(groups), 0.9 + 0.4 * max(map(len, groups.values())), 1, len(groups), squeeze=False
    )
    for axis, (group, times) in zip(axes[0], groups.items(), strict=True):
        names = sorted(times, key=times.__getitem__)
        colors = [COLORS[1] if name.startswith("VQP") else COLORS[0] for name in names]
        bars = axis.barh(names, [times[name] for name in names], color=colors)
        axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
        axis.margins(x=0.15)
        axis.set_xlabel("ms per step")
        axis.set_title(group or "small autoencoder, all threads", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    n, dim, codebook_size = row
    figure.suptitle(f"{n:,} tokens per step, D = {dim}, K = {codebook_size:,}", fontsize=11)
    figure.tight_layout(w_pad=2)
    save_figure(figure, path)


def _label(axis: Any, ends: list[tuple[str, float, float, str]]) -> None:
    """Names right of the panel, a thin line from each to the end of its curve."""
    low, high = (math.log10(limit) for limit in axis.get_ylim())
    heights = [(math.log10(y) - low) / (high - low) for _, _, y, _ in ends]
    for (name, x, y, color), height in zip(ends, spread(heights, 0.055), strict=True):
        axis.annotate(
            name,
            (x, y),
            xytext=(1.06, height),
            textcoords="axes fraction",
            fontsize=9,
            color=color,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.6, "relpos": (0, 0.5)},
        )
