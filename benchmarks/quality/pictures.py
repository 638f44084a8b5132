"""Rows of pictures: kept as small files beside the results, and drawn below each other for a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from gritvq.files import replacing
from gritvq.plotting import new_figure, save_figure


def keep_row(pictures: np.ndarray, path: Path) -> None:
    """Write pictures (N, C, H, W) of 8 bits side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.concatenate([picture.transpose(1, 2, 0) for picture in pictures], 1)
    with replacing(path) as scratch:
        Image.fromarray(row if row.shape[2] == 3 else row[..., 0]).save(scratch, format="png")


def kept_row(path: Path, number: int) -> np.ndarray:
    """Read the ``number`` pictures (N, C, H, W) that :func:`keep_row` wrote."""
    with Image.open(path) as image:
        row = np.asarray(image)
    row = row.reshape(*row.shape[:2], -1).transpose(2, 0, 1)
    return np.stack(np.split(row, number, 2))


def draw_rows(rows: Mapping[str, np.ndarray], path: Path) -> None:
    """One row of pictures (N, C, H, W) below the other, with their names."""
    number = len(next(iter(rows.values())))
    figure, axes = new_figure(9, 0.85 * len(rows), len(rows), number, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(np.repeat(picture, 3 // len(picture), 0).transpose(1, 2, 0), interpolation="nearest")
            axis.set(xticks=[], yticks=[], frame_on=False)
    figure.tight_layout(pad=0.3)
    save_figure(figure, path)
