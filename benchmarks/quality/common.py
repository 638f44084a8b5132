"""What every benchmark writes down beside its numbers, and where."""

from __future__ import annotations

import io
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch import Tensor

from gritvq import __version__

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def hardware(device: str = "cuda") -> str:
    """Short name for file names; of the CPU where a benchmark takes no CUDA device, or there is none."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-").lower()
    return f"cpu{os.cpu_count()}"


def results_file(folder: Path, theme: str, machine: str | None = None) -> Path:
    """Where a benchmark that is continued writes: its newest table of this machine, else one of this month."""
    machine = machine or hardware()
    begun = sorted(folder.glob(f"{theme}_{machine}_{'[0-9]' * 6}.csv"))
    return begun[-1] if begun else folder / f"{theme}_{machine}_{date.today():%Y%m}.csv"


def finished(results: Iterable[Mapping[str, Any]], data: str, names: Sequence[str]) -> set[tuple[str, ...]]:
    """What is measured of a data set already: the named columns of its rows, as texts."""
    return {tuple(str(row[name]) for name in names) for row in results if row["data"] == data}


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


def labelled(folder: str | Path, split: str, number: int | None = None) -> tuple[Tensor, Tensor]:
    """The first pictures (n, C, H, W) of a split, bytes, and their classes."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for path in sorted(Path(folder).glob(f"{split}*.parquet")):
        table = parquet.read_table(path, columns=["image", "label"])
        for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
            if number is not None and len(labels) == number:
                break
            pixels = np.asarray(Image.open(io.BytesIO(image["bytes"])))
            images.append(pixels if pixels.ndim == 3 else pixels[..., None])
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def some(images: Tensor, labels: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """So many pictures, drawn at random, or all if there are no more."""
    if num >= len(labels):
        return images, labels
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:num]
    return images[rows], labels[rows]
