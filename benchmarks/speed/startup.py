"""What ``import gritvq`` and the program's start add to ``import torch``: fresh interpreters in turn.

Seconds of the clock say what a person waits for; ``cpu_seconds`` are those of the processor, which other work on the
machine stretches less.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.speed.measure import percentile

PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "import torch, gritvq": ["-c", "import torch; import gritvq"],
    "gritvq --version": ["-m", "gritvq", "--version"],
    "gritvq --help": ["-m", "gritvq", "--help"],
    "gritvq validate --help": ["-m", "gritvq", "validate", "--help"],
}


def measure(quick: bool) -> dict[str, dict[str, Any]]:
    """Seconds of each program, from start to exit; the first round fills the file cache."""
    rounds = 1 if quick else 15
    samples: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    of_processor: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds + (not quick)):
        for name, words in PROGRAMS.items():
            started, before = time.perf_counter(), os.times()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            if number or quick:
                samples[name].append(time.perf_counter() - started)
                used = after.children_user + after.children_system - before.children_user - before.children_system
                of_processor[name].append(used)
    return {
        name: {
            "seconds": percentile(values, 0.5),
            "seconds_p20": percentile(values, 0.2),
            "seconds_p80": percentile(values, 0.8),
            "cpu_seconds": percentile(of_processor[name], 0.5),
            "rounds": rounds,
        }
        for name, values in samples.items()
    }
