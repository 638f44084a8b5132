"""Figures of matplotlib: made without a screen, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gritvq.files import replacing
from gritvq.lazy import optional

__all__ = ["new_figure", "save_figure"]


def new_figure(width: float, height: float, *args: Any, **kwargs: Any) -> Any:
    """A figure and its axes, as ``pyplot.subplots`` makes them, without pyplot: no window, no change of the backend.

    Args:
        width: In inches.
        height: In inches.
        *args: Of ``matplotlib.figure.Figure.subplots``, as ``**kwargs`` are.
        **kwargs: See there.

    Raises:
        ValueError: If matplotlib is missing.
    """
    figure = optional("matplotlib.figure", "train").Figure(figsize=(width, height))
    return figure, figure.subplots(*args, **kwargs)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure, whole or not at all."""
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=120, bbox_inches="tight", facecolor="white")
    return Path(path)
