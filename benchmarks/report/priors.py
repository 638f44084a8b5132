"""The table of sampling in the page about generation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.tables import circumstances, markdown_table

from gritvq.results import read_results

MARK = re.compile(r"<!-- table sampling -->.*?<!-- end -->", re.DOTALL)


def sampling(folder: Path) -> str:
    """Seconds of every way to sample, and memory of every head, each beside its baseline."""
    parts = []
    for path in sorted(folder.glob("sampling_*.csv")):
        results = read_results(path)
        timed = [row for row in results if "seconds" in row]
        heads = [row for row in results if "peak_bytes" in row]
        parts.append(circumstances(results, ("hardware", "versions", "commit", "comparison")))
        rows = [[r["method"], r["settings"], f"{r['seconds']:.2f}", _times(timed, r, "seconds")] for r in timed]
        parts.append(markdown_table(("sampling", "settings", "seconds", "times faster than no cache"), rows))
        rows = [
            [r["method"], r["settings"], f"{r['peak_bytes'] / 1e6:,.0f}", _times(heads, r, "peak_bytes")] for r in heads
        ]
        if heads:
            parts.append(markdown_table(("head for 2^18 codes", "settings", "MB", "times less than softmax"), rows))
    return "\n\n".join(parts)


def _times(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], metric: str) -> str:
    baseline = next(r for r in rows if r["method"] in ("autoregressive, no cache", "softmax head"))
    return f"{baseline[metric] / row[metric]:.1f}"


def with_sampling(text: str, folder: Path) -> str:
    """The page with the table between its marks made again."""
    return MARK.sub(lambda _: f"<!-- table sampling -->\n\n{sampling(folder)}\n\n<!-- end -->", text)
