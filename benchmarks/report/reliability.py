"""The tables of the page on reliability: one for each script of ``benchmarks/reliability``."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from benchmarks.report.tables import circumstances, markdown_table

_MARK = re.compile(r"<!-- table reliability (?P<name>\w+) -->.*?<!-- end -->", re.DOTALL)


def with_reliability(page: str, folder: Path) -> str:
    """The page with the tables between its marks made again."""
    return _MARK.sub(
        lambda mark: f"{mark[0].partition('-->')[0]}-->\n\n{figures(folder, mark['name'])}\n\n<!-- end -->", page
    )


def figures(folder: Path, name: str) -> str:
    """Every figure of one script, of all hardware with results."""
    parts = []
    for path in sorted(folder.glob(f"reliability_{name}_*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lines = [[row["subject"], row["asks"], row["value"], row["target"] or "-"] for row in rows]
        parts += [
            circumstances(rows, ("date", "hardware", "versions", "commit", "command")),
            markdown_table(("of", "asked", "found", "wanted"), lines, 2),
        ]
    return "\n\n".join(parts) or "Not run yet."
