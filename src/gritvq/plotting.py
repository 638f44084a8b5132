"""Figures of matplotlib: made without a screen, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gritvq.files import replacing

__all__ = ["new_figure", "save_figure"]


def new_figure(width: float, height: float, *args: Any, **kwargs: Any) -> Any:
    """Figure and axes of ``pyplot.subplots``, width and height in inches.

    Raises:
        ValueError: If matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("expected matplotlib for pictures, got none; install 'gritvq[train]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(*args, figsize=(width, height), **kwargs)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a picture, whole or not at all, and close the figure."""
    from matplotlib import pyplot

    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=120, bbox_inches="tight", facecolor="white")
    pyplot.close(figure)
    return Path(path)
