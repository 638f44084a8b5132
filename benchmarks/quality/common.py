"""What every benchmark writes down beside its numbers, and where."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from gritvq import __version__

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def hardware() -> str:
    """Short name for file names."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-").lower()
    return f"cpu{os.cpu_count()}"


def circumstances(comparison: str, data: str) -> dict[str, str]:
    """Columns that every line of the results carries."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    return {
        "comparison": comparison,
        "data": data,
        "hardware": hardware(),
        "commit": commit or "none",
        "versions": f"gritvq {__version__}, torch {torch.__version__}, python {platform.python_version()}",
    }
