"""What all tests share: one thread, a fixed seed, the real data sets where they are, kernels without a GPU."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

# Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before anything imports Triton (the
# compiler of PyTorch does). Compilation for the CPU is not affected.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# PyTorch keeps compiled programs between processes, also when ATEN_CPU_CAPABILITY says that vectors are narrower: with
# those of wider vectors it then reads beyond the end of a buffer.
capability = torch.backends.cpu.get_cpu_capability().replace(" ", "-").lower()
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor-{os.getuid()}-{capability}")

THREADS = int(os.environ.get("TEST_THREADS", "1"))  # 2 in `make capabilities`
torch.set_num_threads(THREADS)  # for fixtures of whole modules, which come before those of a test

# Real data sets, which the project does not hold; tests that want them skip where they are absent.
DATA = Path(os.environ.get("GRITVQ_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


@pytest.fixture
def other_lapack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decompositions as correct as the real ones, with other signs and, for equal values, another basis."""
    eigh, svd, qr = torch.linalg.eigh, torch.linalg.svd, torch.linalg.qr
    generator = torch.Generator().manual_seed(1)

    def turns(values: Tensor) -> Tensor:
        """Block-diagonal, orthogonal: a random rotation for every run of equal values; the sign for one alone."""
        equal = (values[1:] - values[:-1]).abs() <= 1e-12 * values.abs().max()
        sizes = torch.unique_consecutive(torch.cat([equal.new_zeros(1), ~equal]).cumsum(0), return_counts=True)[1]
        blocks = [qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in sizes.tolist()]
        return -torch.block_diag(*blocks).to(values)

    def other_eigh(matrix: Tensor, *args: Any, **settings: Any) -> Any:
        values, vectors = eigh(matrix, *args, **settings)
        return torch.return_types.linalg_eigh((values, vectors @ turns(values)))

    def other_svd(matrix: Tensor, *args: Any, **settings: Any) -> Any:
        left, values, right = svd(matrix, *args, **settings)
        turn, size = turns(values), len(values)
        left = torch.cat([left[:, :size] @ turn, left[:, size:]], 1)
        return torch.return_types.linalg_svd((left, values, torch.cat([turn.T @ right[:size], right[size:]])))

    def other_qr(matrix: Tensor, *args: Any, **settings: Any) -> Any:
        q, r = qr(matrix, *args, **settings)
        signs = 2.0 * torch.randint(2, (q.shape[-1],), generator=generator).to(q) - 1
        return torch.return_types.linalg_qr((q * signs, signs[: r.shape[-2], None] * r))

    for name, other in (("eigh", other_eigh), ("svd", other_svd), ("qr", other_qr)):
        monkeypatch.setattr(torch.linalg, name, other)


@pytest.fixture
def cifar10() -> Path:
    """Folder of CIFAR-10 as Parquet."""
    return _shared("cifar10")


@pytest.fixture
def kodak() -> Path:
    """Folder of the Kodak pictures as Parquet."""
    return _shared("kodak")


def _shared(name: str) -> Path:
    if not (DATA / "images" / name).is_dir():
        pytest.skip(f"the real image set {name} is not in {DATA}; GRITVQ_DATA says where")
    return DATA / "images" / name


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a test of the program in an empty folder; put back what the program sets for its whole process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    levels = {name: logging.getLogger(name).level for name in ("huggingface_hub", "datasets")}
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def hub_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's address is known, for tests that put something in the place of its client."""
    monkeypatch.setattr("gritvq.lazy.hub_in_reach", lambda: True)


def _write_pictures(folder: Path, sizes: dict[str, int], pixels: Callable[[int], np.ndarray]) -> Path:
    """A folder of Parquet files, one for each split, of pictures with ten classes in turn."""
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

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
    return _write_pictures(
        tmp_path / "fashion-mnist", sizes, lambda label: 20 * label + random.integers(0, 60, (28, 28))
    )


@pytest.fixture
def color_pictures(tmp_path: Path) -> Path:
    """A folder with 160 pictures in colors for training and 40 for the test; their ten classes are brightnesses."""
    random, sizes = np.random.default_rng(0), {"train": 160, "test": 40}
    return _write_pictures(tmp_path / "cifar10", sizes, lambda label: 20 * label + random.integers(0, 60, (32, 32, 3)))


def smooth_pictures(folder: Path, number: int) -> str:
    """A folder with so many smooth pictures, 16 x 16."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for name in range(number):
        corners = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((16, 16), Image.Resampling.BICUBIC).save(folder / f"{name:02}.png")
    return str(folder)
