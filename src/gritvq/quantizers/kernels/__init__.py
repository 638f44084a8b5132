"""Searches for the nearest code, one per kind of machine; :func:`gritvq.quantizers.functional.nearest_code` calls them.

All of them compute ``argmin_k bias_k - <x_n - center, codes_k>`` with ties to the lowest index, for codes that are
centered and ``bias_k = |codes_k|^2 / 2``, and none builds the N x K matrix. The choice is made in :func:`chosen`,
by type of device and size; :func:`using` forces another, for tests and comparisons. A CUDA device without Triton takes
the blocked search as it is: what ``torch.compile`` could fuse there, it fuses by way of Triton.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.quantizers.kernels import blocked, flat, fused, two_stage

__all__ = ["BACKENDS", "PRECISIONS", "chosen", "code_sums", "search", "using"]

BACKENDS = {"blocked": blocked.search, "two_stage": two_stage.search, "fused": fused.search, "faiss": flat.search}
PRECISIONS = ("float32", "tf32", "bf16")
_forced: list[str] = []


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Search with this backend inside the block.

    Raises:
        ValueError: If there is no such backend.

    Example:
        >>> with using("blocked"):
        ...     chosen("cuda")
        'blocked'
    """
    if backend not in BACKENDS:
        raise ValueError(f"expected a backend among {sorted(BACKENDS)}, got {backend!r}; choose one")
    _forced.append(backend)
    try:
        yield
    finally:
        _forced.pop()


def chosen(device_type: str, num_rows: int = 0, dim: int = 0, codebook_size: int = 0) -> str:
    """Name of the backend for a search of this size on this type of device."""
    if _forced:
        return _forced[-1]
    if device_type == "cpu" and two_stage.worthwhile(num_rows, dim, codebook_size) and two_stage.available():
        return "two_stage"
    return _best(device_type)


@functools.cache
def _best(device_type: str) -> str:
    return "fused" if device_type == "cuda" and fused.supported() else "blocked"


def search(
    x: Float[Tensor, "N D"],
    codes: Float[Tensor, "K D"],
    bias: Float[Tensor, " K"],
    center: Float[Tensor, " D"],
    precision: str = "float32",
) -> Int[Tensor, " N"]:
    """``argmin_k bias_k - <x_n - center, codes_k>``, the lowest index among equals; 0 for a row that is not finite.

    Args:
        x: Vectors (N, D), any floating type.
        codes: Centered codes (K, D), float32 or float64.
        bias: Half their squared lengths (K,), of the same type.
        center: What was subtracted from the codes (D,), of the same type.
        precision: Least precision of the products, ``"float32"``, ``"tf32"`` or ``"bf16"``; the sums are float32.
    """
    backend = chosen(x.device.type, x.shape[0], x.shape[1], len(codes))
    if backend == "fused":
        return fused.search(x, codes, bias, center, precision)
    return BACKENDS[backend](x, codes, bias, center)


def code_sums(x: Float[Tensor, "N D"], indices: Int[Tensor, " N"], codebook_size: int) -> Float[Tensor, "K D"]:
    """Sum of the vectors assigned to each code, float32 or float64 as ``x`` is."""
    if chosen(x.device.type) == "fused" and x.dtype == torch.float32:
        return fused.code_sums(x, indices, codebook_size)
    return torch.zeros(codebook_size, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, indices, x)
