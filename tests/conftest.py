"""What all tests share: one thread, a fixed seed, the real data sets where they are, kernels without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before anything imports Triton (the
# compiler of PyTorch does). Compilation for the CPU is not affected.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)  # for fixtures of whole modules, which come before those of a test

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def cifar10() -> Path:
    """Folder of CIFAR-10 as Parquet."""
    return _shared("cifar10")


@pytest.fixture
def kodak() -> Path:
    """Folder of the Kodak pictures as Parquet."""
    return _shared("kodak")


def _shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"the real image set {name} is not in ../shared/data")
    return SHARED / name
