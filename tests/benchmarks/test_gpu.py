"""What is prepared for a machine with a GPU, tried without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.gpu import sizes
from benchmarks.report.priors import large

from gritvq.results import read_results, write_results

SCRIPT = Path(sizes.__file__).with_name("run.sh")


def test_the_parts_fit_into_nine_minutes() -> None:
    first, _, rest = SCRIPT.read_text().partition('if [ "$SMALL" = small ]')
    parts = re.findall(r"^ *part \w+ (\d+) ", first + rest.partition("\nelse\n")[2], re.MULTILINE)
    assert len(parts) == 5 and sum(map(int, parts)) <= 540


def test_the_table_says_hours_and_devices(tmp_path: Path) -> None:
    assert large(tmp_path) == "Not measured yet."
    row = {"method": "images/x", "settings": "32 per step", "seconds_per_step": 0.5, "samples_per_second": 64.0}
    row |= {"peak_bytes": 2e9, "steps": 24, "devices": 8, "hours": 27.8}
    about = {"comparison": "c", "data": "d", "hardware": "h", "commit": "0", "versions": "v"}
    write_results(tmp_path / "large_h_202611.csv", [row], about, sizes.IDENTITY, sizes.UNITS)
    assert "| `images/x` | 32 per step | 0.500 | 64 | 2.0 | 28 on 8 |" in large(tmp_path)


@pytest.mark.soak
def test_tiny_copies_of_all_configurations_are_measured(tmp_path: Path) -> None:
    sizes.main(["--small", "--steps", "8", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("large_*.csv")
    found = read_results(path, sizes.IDENTITY)
    assert [row["method"] for row in found] == list(sizes.NAMES)
    assert all(row["steps"] == 8 - 1 - sizes.FIRST and row["seconds_per_step"] > 0 for row in found)
