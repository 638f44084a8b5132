"""What the scripts of this folder write: ``results/reliability_<name>_<hardware>_<yyyymm>.csv``, a row per figure."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import NamedTuple

from benchmarks.quality.common import RESULTS, circumstances, hardware

from gritvq.files import replacing

__all__ = ["COLUMNS", "Figure", "write_figures"]

COLUMNS = ("subject", "asks", "value", "target", "date", "command", "hardware", "commit", "versions")


class Figure(NamedTuple):
    """One figure: of what, what was asked, what was found with its unit, and what was wanted (empty: nothing)."""

    subject: str
    asks: str
    value: str
    target: str = ""


def write_figures(name: str, figures: Iterable[Figure], command: str, folder: Path = RESULTS) -> Path:
    """Write the figures of one script in place of its earlier ones of this month; all or nothing.

    Args:
        name: Which table of ``docs/reliability.md`` shows them.
        figures: In the order of the table.
        command: What makes them again.
        folder: Where the file goes.
    """
    about = circumstances("", "")
    path = folder / f"reliability_{name}_{hardware()}_{date.today():%Y%m}.csv"
    with replacing(path) as scratch, Path(scratch).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for figure in figures:
            writer.writerow((*figure, f"{date.today()}", command, *(about[key] for key in COLUMNS[-3:])))
    return path
