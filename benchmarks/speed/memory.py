"""Memory of this process as the system counts it."""

from __future__ import annotations

import ctypes
import functools
import resource
import sys
from collections.abc import Callable

__all__ = ["peak_growth", "resident"]


def resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))


def peak_growth() -> Callable[[], int]:
    """A function that says by how many bytes the peak of this process has grown over what is resident now.

    Linux lets the recorded peak be set back to what is resident now; elsewhere ``ru_maxrss`` stands in, which a larger
    peak before would hide.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        before, peak = resident("VmRSS"), functools.partial(resident, "VmHWM")
    except (OSError, AttributeError):
        unit = 1 if sys.platform == "darwin" else 1024

        def peak() -> int:
            return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before = peak()
    return lambda: max(0, peak() - before)
