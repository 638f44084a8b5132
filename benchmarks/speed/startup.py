"""What ``import gritvq`` adds to ``import torch``: fresh interpreters in turn."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from benchmarks.speed.measure import percentile

PROGRAMS = {"import torch": "import torch", "import torch, gritvq": "import torch; import gritvq"}


def measure(quick: bool) -> dict[str, dict[str, Any]]:
    """Wall-clock seconds of both programs, from start to exit; the first round fills the file cache."""
    rounds = 1 if quick else 15
    samples: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds + (not quick)):
        for name, program in PROGRAMS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            if number or quick:
                samples[name].append(time.perf_counter() - started)
    return {
        name: {
            "seconds": percentile(values, 0.5),
            "seconds_p20": percentile(values, 0.2),
            "seconds_p80": percentile(values, 0.8),
            "rounds": rounds,
        }
        for name, values in samples.items()
    }
