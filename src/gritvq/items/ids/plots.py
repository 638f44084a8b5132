"""Plots of semantic ids: code usage per level, collisions, and the tree of prefixes by category."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gritvq.items.ids.groups import RowTable
from gritvq.items.ids.metrics import category_agreement, category_numbers, level_usage, prefix_sharing
from gritvq.items.ids.semantic_ids import SemanticIds
from gritvq.plotting import new_figure, save_figure

__all__ = ["collisions_plot", "level_usage_plot", "tree_plot"]

_BLUE, _RED, _GRAY = "#2a6f97", "#c1121f", "#d9d9d9"
_MOST_LEVELS = 12
_COLORS = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11)  # of Set3, without its gray


def _level_name(ids: SemanticIds, level: int) -> str:
    appended = ids.collisions == "append" and level == len(ids.codebook_sizes) - 1
    return "appended token" if appended else f"level {level + 1}"


def level_usage_plot(
    ids: SemanticIds, path: str | os.PathLike[str], numbers: Mapping[str, float] | None = None
) -> Path:
    """Share of items per code, most frequent first, and the uniform share; one panel per level, at most 12.

    Args:
        ids: The ids.
        path: PNG to write.
        numbers: Output of ``ids.report()``, to avoid computing it again.
    """
    found, levels = numbers or level_usage(ids), min(len(ids.codebook_sizes), _MOST_LEVELS)
    columns = min(4, levels)
    rows = math.ceil(levels / columns)
    figure, axes = new_figure(3.0 * columns + 0.6, 2.7 * rows, rows, columns, squeeze=False, sharey=True)
    for level, axis in enumerate(axes.flat):
        if level >= levels:
            axis.set_axis_off()
            continue
        size, name = ids.codebook_sizes[level], f"level{level + 1}"
        counts = torch.unique(ids.codes[:, level], return_counts=True)[1].sort(descending=True).values
        x = np.arange(len(counts) + 1) + 0.5
        axis.stairs(counts.numpy() / len(ids), x, fill=True, color=_BLUE, alpha=0.85, baseline=0)
        axis.axhline(1 / size, color=_RED, linewidth=1, linestyle="--", label="every code equally often")
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter("")
        axis.set_xlim(0.5, size + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(
            f"{_level_name(ids, level)}: {found[f'{name}/used']:.0f} of {size} codes\n"
            f"perplexity {found[f'{name}/perplexity']:.1f}, Gini {found[f'{name}/gini']:.2f}",
            fontsize=9,
        )
        axis.set_xlabel("codes, most frequent first", fontsize=8)
        axis.tick_params(labelsize=8)
    for row in axes:
        row[0].set_ylabel("share of items", fontsize=8)
    top = max(found[f"level{level + 1}/largest_share"] for level in range(levels))
    axes[0, 0].set_ylim(0.7 * min(1 / len(ids), 1 / max(ids.codebook_sizes), top / 10), 3 * top)
    if levels < len(ids.codebook_sizes):
        figure.suptitle(f"the first {levels} of {len(ids.codebook_sizes)} levels", fontsize=10)
    axes[0, 0].legend(frameon=False, fontsize=7, loc="upper right")
    figure.tight_layout()
    return save_figure(figure, path)


def collisions_plot(ids: SemanticIds, path: str | os.PathLike[str], numbers: Mapping[str, float] | None = None) -> Path:
    """Left: items by the number of items with the same id. Right: distinct prefixes, and items with a unique one.

    With ``append`` the left plot shows the ids before the appended token.

    Args:
        ids: The ids.
        path: PNG to write.
        numbers: Output of ``ids.report()``, to avoid computing it again.
    """
    found, depths = numbers or prefix_sharing(ids), range(1, len(ids.codebook_sizes) + 1)
    figure, (left, right) = new_figure(9.6, 3.6, 1, 2)
    appended = ids.collisions == "append"
    shown = len(depths) - appended
    sharing = ids.prefixes[shown - 1].counts
    sizes, groups = (x.numpy() for x in torch.unique(sharing, return_counts=True))
    edges = _size_edges(int(sizes.max()))
    items = np.histogram(sizes, [*edges, math.inf], weights=sizes * groups)[0]
    ends = [*edges[1:], int(sizes.max()) + 1]
    names = [f"{a}" if b - a == 1 else f"{a}-{b - 1}" for a, b in zip(edges, ends, strict=True)]
    bars = left.bar(range(len(items)), items, color=[_BLUE, *[_RED] * (len(items) - 1)], alpha=0.85, width=0.8)
    left.bar_label(bars, [f"{int(n):,}" if n else "" for n in items], fontsize=8, padding=1)
    left.set_xticks(range(len(items)), names, fontsize=8)
    left.set_xlim(-0.6, max(len(items), 4) - 0.4)
    left.set_yscale("log")
    left.yaxis.set_minor_formatter("")
    left.set_ylim(0.7, 3 * max(items.max(), 5))
    left.set_xlabel(f"items with the same id{', before the appended token' if appended else ''}")
    left.set_ylabel("items")
    collide = 100 * found[f"depth{shown}/items_in_collision"]
    left.set_title(f"{len(sharing):,} ids for {len(ids):,} items, {collide:.3g} % in a collision", fontsize=10)
    for name, label, color, shift in (
        ("uniqueness", "distinct prefixes / items", _BLUE, (0, 7)),
        ("items_in_collision", "items with a prefix of their own", _RED, (0, -13)),
    ):
        values = [100 * found[f"depth{depth}/{name}"] for depth in depths]
        values = values if name == "uniqueness" else [100 - value for value in values]
        right.plot(depths, values, marker="o", markersize=5, color=color, label=label)
        for depth, value in zip(depths, values, strict=True):
            if len(depths) <= 8 or depth == len(depths):
                text = {"ha": "center", "fontsize": 7, "color": color}
                right.annotate(f"{value:.3g}", (depth, value), shift, textcoords="offset points", **text)
    right.set_xlim(0.6, len(depths) + 0.4)
    right.set_ylim(-14, 114)
    right.set_yticks(range(0, 101, 25))
    right.set_xticks(list(depths)[:: math.ceil(len(depths) / 8)])
    right.set_xlabel("codes of the id, from the first")
    right.set_ylabel("%")
    sizes_text = " x ".join(map(str, ids.codebook_sizes)) if len(depths) <= 6 else f"{len(depths)} codes per id"
    right.set_title(f"{sizes_text}, policy {ids.collisions}", fontsize=10)
    right.grid(alpha=0.3)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    return save_figure(figure, path)


def _size_edges(largest: int) -> list[int]:
    """Smallest group size of each bar: 1, 2, ..., 8, then powers of two."""
    edges = list(range(1, min(largest, 8) + 1))
    while edges[-1] >= 8 and 2 * edges[-1] <= largest:
        edges.append(2 * edges[-1])
    return edges


def tree_plot(
    ids: SemanticIds,
    categories: Sequence[Any],
    path: str | os.PathLike[str],
    numbers: Mapping[str, float] | None = None,
    *,
    depth: int = 2,
    most_named: int = 11,
) -> Path:
    """The tree of ids from the root down; each prefix is as wide as its items and colored by category purity.

    The top band shows the most common category of each first code; first codes are sorted by it. Purity is the share
    of a prefix's items in its most common category. Prefixes of a single item, whose purity is always 1, are gray.
    Items without a category are left out.

    Args:
        ids: The ids.
        categories: A category, or a list of them, per item; see :func:`gritvq.items.ids.metrics.category_agreement`.
        path: PNG to write.
        numbers: Output of ``ids.report(categories)``, to avoid computing it again.
        depth: Number of levels to show.
        most_named: Number of categories with a color.

    Raises:
        ValueError: If no item has a category.
    """
    rows, columns, names = category_numbers(categories, len(ids))
    if not names:
        raise ValueError("expected categories of some items, got none; use another plot")
    kept = np.unique(rows)
    codes, rows = ids.codes[torch.from_numpy(kept)], np.searchsorted(kept, rows)
    depth = min(depth, len(ids.codebook_sizes))
    tables = [RowTable(codes[:, :d], ids.codebook_sizes[:d]) for d in range(1, depth + 1)]
    nodes = [_commonest(table, rows, columns, len(names)) for table in tables]

    # Sort items by the category of their first code (largest first), then by the sizes of their prefixes.
    first, top = tables[0].group.numpy(), nodes[0][0]
    weight = np.bincount(top[first], minlength=len(names))
    order_keys: list[np.ndarray] = [-weight[top[first]], top[first]]
    for table in tables:
        order_keys += [-table.counts.numpy()[table.group.numpy()], table.group.numpy()]
    order = np.lexsort(order_keys[::-1])

    figure, axis = new_figure(11.5, 1.3 + 1.05 * depth)
    from matplotlib import colormaps

    shades = colormaps["YlGnBu"].with_extremes(bad=_GRAY)
    labels = ["most common\ncategory"]
    for level, (table, (_, purity)) in enumerate(zip(tables, nodes, strict=True)):
        group = table.group.numpy()[order]
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        values = np.ma.masked_where(table.counts.numpy() == 1, purity)[group[starts]]
        edges = np.r_[starts, len(order)]
        mesh = axis.pcolormesh(edges, [-level - 1, -level], values[None], cmap=shades, vmin=0, vmax=1)
        wide = starts[np.diff(edges) > 0.004 * len(order)]
        axis.vlines(wide, -level - 1, -level, color="white", linewidth=0.5)
        labels.append(f"{_level_name(ids, level)}\n{len(starts):,} prefixes")
    axis.hlines(range(1 - depth, 1), 0, len(order), color="white", linewidth=1)
    _category_band(axis, top[first[order]], names, most_named)
    axis.set_yticks([0.35, *(-level - 0.5 for level in range(depth))], labels, fontsize=8)
    axis.set_ylim(-depth, 0.65)
    axis.set_xlim(0, len(order))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.get_major_locator().set_params(integer=True)
    alone = 100 * int((tables[-1].counts == 1).sum()) / len(order)
    axis.set_xlabel(f"items; gray: the only one of its prefix ({alone:.0f} % of the items in the last row)", fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    for spine in axis.spines.values():
        spine.set_visible(False)
    found = numbers or category_agreement(ids, categories)
    axis.set_title(
        f"purity of level 1 {found['level1/purity']:.3f} (one code for all: {found['categories/largest_share']:.3f}), "
        f"NMI {found['level1/nmi']:.3f}",
        fontsize=10,
    )
    bar = figure.colorbar(mesh, ax=axis, pad=0.01, fraction=0.025)
    bar.set_label("share of the most common category", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return save_figure(figure, path)


def _commonest(
    table: RowTable, rows: np.ndarray, columns: np.ndarray, num_categories: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most common category of each prefix (the first of equal ones), and its share of the prefix's items."""
    cells, counts = np.unique(table.group.numpy()[rows] * num_categories + columns, return_counts=True)
    node, category = cells // num_categories, cells % num_categories
    order = np.lexsort([category, -counts, node])
    at = order[np.flatnonzero(np.r_[True, node[order][1:] != node[order][:-1]])]
    return category[at], counts[at] / table.counts.numpy()


def _category_band(axis: Any, category: np.ndarray, names: Sequence[Any], most_named: int) -> None:
    """Runs of one category as colored blocks, with their names if there is space."""
    from matplotlib import colormaps

    starts = np.flatnonzero(np.r_[True, category[1:] != category[:-1]])
    ends = np.r_[starts[1:], len(category)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        color = colormaps["Set3"](_COLORS[number % len(_COLORS)]) if number < most_named else _GRAY
        axis.barh(0.35, end - start, left=start, height=0.5, color=[color], edgecolor="white", linewidth=0.5)
        name, room = str(names[category[start]]), int(130 * (end - start) / len(category))
        if number < most_named and room > min(len(name), 6):
            short = name if len(name) <= room else f"{name[: room - 1]}."
            axis.text((start + end) / 2, 0.35, short, ha="center", va="center", fontsize=8)
