"""A small catalogue with users, as files, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

__all__ = ["write_catalogue", "write_shop"]


def write_catalogue(folder: Path, count: int) -> None:
    """Items a0, a1, ... of six kinds, whose vectors lie around their kind's."""
    generator = np.random.default_rng(0)
    kinds = np.arange(count) % 6
    vectors = generator.normal(size=(6, 16))[kinds] + 0.3 * np.random.default_rng(1).normal(size=(count, 16))
    table = {"item": [f"a{i}" for i in range(count)], "title": [f"thing {i}" for i in range(count)]}
    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({**table, "kind": [f"kind {k}" for k in kinds]}), folder / "items.parquet")
    np.save(folder / "item_embeddings.npy", vectors.astype(np.float16))


def write_shop(folder: Path, num_items: int, num_users: int) -> None:
    """A catalogue, and users who go from an item to the next but one."""
    write_catalogue(folder, num_items)
    users, items, positions = [], [], []
    for user in range(num_users):
        for position in range(6):
            users.append(f"u{user}")
            items.append(f"a{(user + 2 * position) % num_items}")
            positions.append(position)
    events = pyarrow.table({"user": users, "item": items, "position": positions})
    parquet.write_table(events, folder / "interactions.parquet")
