"""Made data for benchmarks."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image


def write_pictures(folder: Path, sizes: dict[str, int], pixels: Callable[[int], np.ndarray]) -> Path:
    """A folder of Parquet files, one for each split, of pictures with ten classes in turn."""
    folder.mkdir()
    for split, number in sizes.items():
        rows = []
        for row in range(number):
            file = io.BytesIO()
            Image.fromarray(np.clip(pixels(row % 10), 0, 255).astype(np.uint8)).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"image": rows, "label": [row % 10 for row in range(number)]})
        parquet.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.fixture
def gray_pictures(tmp_path: Path) -> Path:
    """A folder with 1,200 gray pictures for training and 160 for the test; their ten classes are brightnesses."""
    random, sizes = np.random.default_rng(0), {"train": 1200, "test": 160}
    return write_pictures(
        tmp_path / "fashion-mnist", sizes, lambda label: 20 * label + random.integers(0, 60, (28, 28))
    )


@pytest.fixture
def color_pictures(tmp_path: Path) -> Path:
    """A folder with 160 pictures in colors for training and 40 for the test; their ten classes are brightnesses."""
    random, sizes = np.random.default_rng(0), {"train": 160, "test": 40}
    return write_pictures(tmp_path / "cifar10", sizes, lambda label: 20 * label + random.integers(0, 60, (32, 32, 3)))
