"""Made data for benchmarks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image


@pytest.fixture
def gray_pictures(tmp_path: Path) -> Path:
    """A folder with 1,200 gray pictures for training and 160 for the test; their ten classes are brightnesses."""
    random, folder = np.random.default_rng(0), tmp_path / "fashion-mnist"
    folder.mkdir()
    for split, number in (("train", 1200), ("test", 160)):
        rows = []
        for row in range(number):
            file = io.BytesIO()
            pixels = np.clip(20 * (row % 10) + random.integers(0, 60, (28, 28)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"image": rows, "label": [row % 10 for row in range(number)]})
        parquet.write_table(table, folder / f"{split}.parquet")
    return folder
