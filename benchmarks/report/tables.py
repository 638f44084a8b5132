"""Helpers of generated pages: Markdown tables, and hardware and versions of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 2) -> str:
    """A Markdown table; columns after the first ``texts`` are numbers, aligned to the right."""
    rule = ["---" if number < texts else "---:" for number in range(len(columns))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rule, *rows))


def circumstances(
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str] = ("data", "hardware", "versions", "commit", "comparison"),
) -> str:
    """Hardware and versions of the rows."""
    told = {name: sorted({str(r[name]) for r in results}) for name in names}
    return "\n".join(f"- {name}: {', '.join(values)}" for name, values in told.items())
