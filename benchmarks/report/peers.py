"""The table of probes in the page beside other libraries."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.report.tables import circumstances, markdown_table

_MARK = re.compile(r"<!-- table probes -->.*?<!-- end -->", re.DOTALL)
_OURS = "gritvq"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


def with_probes(page: str, folder: Path) -> str:
    """The page with the table between its marks made again."""
    return _MARK.sub(lambda _: f"<!-- table probes -->\n\n{probes(folder)}\n\n<!-- end -->", page)


def probes(folder: Path) -> str:
    """Every probe beside every library, of all hardware with results."""
    parts = []
    for path in sorted(folder.glob("probes_*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        libraries = {row["library"]: row["version"] for row in rows}
        ordered = sorted(libraries, key=lambda name: (name != _OURS, name))
        found = {(row["probe"], row["library"]): row for row in rows}
        asked = {row["probe"]: row["asks"] for row in rows}
        lines = [[_plain(asks), *(_cell(found[name, each]) for each in ordered)] for name, asks in asked.items()]
        parts += [
            circumstances(rows, ("date", "hardware", "versions", "commit", "command")),
            markdown_table(("asked", *(f"{each} {libraries[each]}" for each in ordered)), lines, len(ordered) + 1),
        ]
    return "\n\n".join(parts) or "Not run yet."


def _cell(row: Mapping[str, str]) -> str:
    return f"{row['passes']}: {_plain(row['result'])}"


def _plain(text: str) -> str:
    """Text as it is, whatever Markdown makes of its characters."""
    return _SPECIAL.sub(r"\\\1", text)
