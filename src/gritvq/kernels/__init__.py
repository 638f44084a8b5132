"""Searches for the nearest code, one per kind of machine; :func:`gritvq.functional.nearest_code` calls them.

All of them compute ``argmin_k bias_k - <x_n - center, codes_k>`` with ties to the lowest index, for codes that are
centred already and ``bias_k = |codes_k|^2 / 2``, and none holds an N x K array. The choice is made in :func:`search`;
:func:`using` forces one, for tests and comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float, Int
from torch import Tensor

from gritvq.kernels import blocked, two_stage

__all__ = ["BACKENDS", "chosen", "search", "using"]

BACKENDS = {"blocked": blocked.search, "two_stage": two_stage.search}
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
        raise ValueError(f"expected a backend among {sorted(BACKENDS)}, got {backend!r}")
    _forced.append(backend)
    try:
        yield
    finally:
        _forced.pop()


def chosen(device_type: str) -> str:
    """Name of the backend that a search on such a device takes."""
    return _forced[-1] if _forced else "blocked"


def search(
    x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], bias: Float[Tensor, " K"], center: Float[Tensor, " D"]
) -> Int[Tensor, " N"]:
    """``argmin_k bias_k - <x_n - center, codes_k>``, the lowest index among equals; 0 for a row that is not finite."""
    return BACKENDS[chosen(x.device.type)](x, codes, bias, center)
