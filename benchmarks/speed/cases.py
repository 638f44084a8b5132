"""What is measured: a size, and a contender that makes something to call at that size."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GIGABYTE = 1 << 30
LARGEST = 16 * GIGABYTE  # what a contender may need on a CPU


@dataclass(frozen=True, order=True)
class Row:
    """N vectors of D components against K codes."""

    n: int
    dim: int
    codebook_size: int

    @classmethod
    def parse(cls, text: str) -> Row:
        """From ``"4096x64x1024"``.

        Raises:
            ValueError: If it is no such text.
        """
        try:
            n, dim, codebook_size = (int(part) for part in text.split("x"))
        except ValueError as error:
            raise ValueError(f"expected N x D x K like 4096x64x1024, got {text!r}") from error
        return cls(n, dim, codebook_size)

    def __str__(self) -> str:
        return f"{self.n}x{self.dim}x{self.codebook_size}"

    @property
    def scores(self) -> float:
        """Bytes of an N x K array in float32."""
        return 4.0 * self.n * self.codebook_size


Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """A method by name.

    Args:
        name: As in the results.
        make: Builds it for a row on a device, inputs included, and returns what is timed.
        memory: Estimate of its peak in bytes, for those that may not fit.
        package: What has to be importable.
        install: How to get that.
    """

    name: str
    make: Callable[[Row, torch.device], Call]
    memory: Callable[[Row], float] = lambda row: 0.0
    package: str | None = None
    install: str = "gritvq[bench]"

    def refusal(self, row: Row, device: torch.device) -> str:
        """Why it does not run here; empty if it does."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed (pip install '{self.install}')"
        needed, there = self.memory(row), available_memory(device)
        if needed > there:
            return f"needs about {needed / GIGABYTE:.0f} GB, allowed are {there / GIGABYTE:.0f} GB"
        return ""


def available_memory(device: torch.device) -> float:
    """Bytes that a contender may take: what is free, on a CPU at most 16 GB."""
    if device.type == "cuda":
        return 0.9 * torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    return min(LARGEST, 0.9 * free)


def gaussian(rows: int, dim: int, device: torch.device, seed: int) -> Tensor:
    """Vectors from N(0, 1/D), where the codes of a new codebook lie too."""
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) / math.sqrt(dim)
    return x.to(device)


def vectors_and_codes(row: Row, device: torch.device) -> tuple[Tensor, Tensor]:
    """x (N, D) and codes (K, D), independent."""
    return gaussian(row.n, row.dim, device, 0), gaussian(row.codebook_size, row.dim, device, 1)
