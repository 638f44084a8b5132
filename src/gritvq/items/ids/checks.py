"""Checks of item keys, indices and codebook sizes; each raises a ValueError that explains what is wrong."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gritvq.items.interactions import Key

__all__ = ["as_codes", "check_distinct", "checked_codes", "checked_keys", "checked_sizes"]


def checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes as Python ints."""
    try:
        found = tuple(operator.index(size) for size in sizes)
    except TypeError as error:
        raise ValueError(f"expected one codebook size per column, got {sizes!r}; pass a tuple of ints") from error
    if not found or min(found) < 1 or max(found) > 2**63 - 1:
        raise ValueError(f"expected codebook sizes >= 1, one per column, got {found}; pass the tokenizer's")
    return found


def as_codes(codes: Any, num_columns: int) -> Int[Tensor, "n Q"]:
    """An int64 copy on the CPU."""
    try:
        found = codes.detach() if isinstance(codes, Tensor) else torch.as_tensor(np.asarray(codes))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected integer codes (n, {num_columns}), got something else ({error})") from error
    if found.ndim in (1, 2) and not len(found):
        found = torch.zeros(0, num_columns, dtype=torch.int64)
    if found.ndim != 2 or found.shape[1] != num_columns:
        raise ValueError(
            f"expected integer codes (n, {num_columns}), one column per codebook size, got {tuple(found.shape)}; pass "
            "a single id as [[...]], and codes for a tokenizer without the appended token"
        )
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"expected integer codes, got {found.dtype}; convert them")
    return found.to("cpu", torch.int64, copy=True)


def checked_codes(codes: Any, sizes: tuple[int, ...]) -> Int[Tensor, "n Q"]:
    """An int64 copy on the CPU; checks that codes are in range."""
    found = as_codes(codes, len(sizes))
    outside = (found < 0) | (found >= torch.tensor(sizes, dtype=torch.int64))
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"expected codes in [0, {sizes[column]}) in column {column}, got {int(found[row, column])} in row {row}; "
            "use codes and codebook sizes of the same tokenizer"
        )
    return found


def checked_keys(items: Any) -> tuple[Key, ...]:
    """Keys as Python ints or strings, all of one type."""
    if isinstance(items, (str, bytes, Mapping)):
        raise ValueError(f"expected a sequence of keys, got {type(items).__name__}; pass a single key as [key]")
    if isinstance(items, (Tensor, np.ndarray)):
        items = items.tolist()
    try:
        keys = tuple(items)
    except TypeError as error:
        raise ValueError(
            f"expected a sequence of keys, got {type(items).__name__}; pass a single key as [key]"
        ) from error
    kinds = set(map(type, keys))
    if not kinds <= {int} and not kinds <= {str}:
        keys = tuple(str(k) if isinstance(k, str) else int(k) if _is_int(k) else k for k in keys)
        kinds = set(map(type, keys))
    if not kinds <= {int} and not kinds <= {str}:
        raise ValueError(
            f"expected keys that are all int or all str, got {', '.join(sorted(k.__name__ for k in kinds))}; convert"
        )
    if kinds == {int} and not (min(keys) >= -(2**63) and max(keys) < 2**63):
        raise ValueError(f"expected int keys of at most 64 bits, got {min(keys)} .. {max(keys)}; use strings")
    if kinds == {str}:
        try:
            "".join(keys).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"expected string keys that are valid Unicode, got {error.object[error.start]!r}; replace it"
            ) from error
    return keys


def _is_int(key: Any) -> bool:
    return isinstance(key, (int, np.integer)) and not isinstance(key, (bool, np.bool_))


def check_distinct(keys: tuple[Key, ...]) -> None:
    """Raises a ValueError if a key is repeated."""
    if len(set(keys)) < len(keys):
        seen: set[Key] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"expected every item once, got {twice!r} twice; drop or merge duplicates")
