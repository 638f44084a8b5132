"""Files of tokens: what ``gritvq encode`` writes and ``gritvq decode`` reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gritvq.files import replacing

__all__ = [
    "TokenizedImage",
    "check_token_path",
    "read_tokens",
    "write_tokens",
]

_SUM = "sha256"


class TokenizedImage(NamedTuple):
    """A picture's name, its size (height, width) in pixels, its tokens (h, w, Q) or (T, Q), int64, and its label."""

    name: str
    size: tuple[int, int]
    tokens: Int[Tensor, "*tokens Q"]
    label: str | int | float | None = None


def check_token_path(path: str | os.PathLike[str]) -> Path:
    """The path, if its ending is one we write.

    Raises:
        ValueError: Otherwise.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"expected a file name ending in .npz or .parquet, got {path.name!r}")
    if path.is_dir():
        raise ValueError(f"expected a file, got the folder {path}")
    return path


def write_tokens(path: str | os.PathLike[str], items: Sequence[TokenizedImage]) -> Path:
    """Write tokens, whole or not at all.

    ``.npz`` holds ``tokens/NAME`` (h, w, Q) or (T, Q) and ``size/NAME`` (height, width) for every picture; ``.parquet``
    one row per picture with ``name, height, width, token_height, token_width, channels`` and the flat list ``tokens``.
    For a sequence ``token_height`` is T and ``token_width`` is empty. Pictures with labels have ``label/NAME`` beside
    them, or the column ``label``. Both hold the SHA-256 of what they say, which
    :func:`read_tokens` compares: ``.npz`` as ``sha256``, ``.parquet`` among the schema's metadata.
    """
    path = check_token_path(path)
    with replacing(path) as scratch:
        if path.suffix == ".npz":
            arrays: dict[str, np.ndarray] = {_SUM: np.array(_sum(items))}
            for item in items:
                arrays[f"tokens/{item.name}"] = item.tokens.numpy()
                arrays[f"size/{item.name}"] = np.array(item.size)
                if item.label is not None:
                    arrays[f"label/{item.name}"] = np.array(item.label)
            with scratch.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        else:
            import pyarrow as pa
            import pyarrow.parquet as parquet

            labels = [item.label for item in items]
            labeled = {} if all(label is None for label in labels) else {"label": labels}
            table = pa.table(
                {
                    "name": [item.name for item in items],
                    "height": [item.size[0] for item in items],
                    "width": [item.size[1] for item in items],
                    "token_height": [item.tokens.shape[0] for item in items],
                    "token_width": pa.array(
                        [item.tokens.shape[1] if item.tokens.ndim == 3 else None for item in items], pa.int64()
                    ),
                    "channels": [item.tokens.shape[-1] for item in items],
                    "tokens": [item.tokens.flatten().numpy() for item in items],
                    **labeled,
                },
                metadata={_SUM: _sum(items)},
            )
            parquet.write_table(table, scratch)
    return path


def read_tokens(path: str | os.PathLike[str]) -> list[TokenizedImage]:
    """Read what :func:`write_tokens` wrote.

    Raises:
        ValueError: If the file is missing, damaged or something else.
    """
    path = check_token_path(path)
    if not path.is_file():
        there = "no regular file" if path.exists() else "which does not exist"
        raise ValueError(f"expected a token file, got {path}, {there}; make one with 'gritvq encode'")
    try:
        rows, told = _npz_rows(path) if path.suffix == ".npz" else _parquet_rows(path)
        items = [_tokenized(*row) for row in rows]
        if told is not None and told != _sum(items):
            raise ValueError("the checksum is that of others")
        return items
    except Exception as error:  # on damaged files NumPy, zipfile and pyarrow raise nearly everything
        raise ValueError(
            f"expected tokens written by 'gritvq encode' in {path}, got something else or a damaged file "
            f"({type(error).__name__}: {error}); make it again"
        ) from error


_Rows = list[tuple[Any, Any, Any, Any]]  # name, size, tokens and label of every picture, as they are in the file


def _npz_rows(path: Path) -> tuple[_Rows, str | None]:
    with np.load(path, allow_pickle=False) as file:
        names = [key.removeprefix("tokens/") for key in file.files if key.startswith("tokens/")]
        if not names:
            raise ValueError("no arrays called tokens/NAME")
        labels = {name: file[f"label/{name}"].tolist() for name in names if f"label/{name}" in file.files}
        rows = [(name, file[f"size/{name}"].tolist(), file[f"tokens/{name}"], labels.get(name)) for name in names]
        return rows, str(file[_SUM]) if _SUM in file.files else None


def _parquet_rows(path: Path) -> tuple[_Rows, str | None]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    table.validate(full=True)  # damaged files may hold places outside of them
    told = (table.schema.metadata or {}).get(_SUM.encode())
    rows = []
    for row in table.to_pylist():
        sides = [side for side in (row["token_height"], row["token_width"]) if side is not None]
        tokens = np.array(row["tokens"]).reshape(*sides, row["channels"])
        rows.append((row["name"], (row["height"], row["width"]), tokens, row.get("label")))
    return rows, None if told is None else told.decode()


def _tokenized(name: Any, size: Any, tokens: Any, label: Any) -> TokenizedImage:
    sides = [side for side in size if isinstance(side, int) and side > 0]
    if not isinstance(name, str) or len(size) != 2 or len(sides) != 2:
        raise ValueError(f"expected a name and a size (height, width) in pixels, got {name!r} and {size!r}")
    if tokens.ndim not in (2, 3) or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
        raise ValueError(
            f"expected integers (h, w, Q) or (T, Q) for {name!r}, got an array {tokens.shape} of {tokens.dtype}"
        )
    if not (label is None or isinstance(label, str | int | float)):
        raise ValueError(f"expected a label of text or a number for {name!r}, got {label!r}")
    return TokenizedImage(name, (sides[0], sides[1]), torch.from_numpy(tokens.astype(np.int64)), label)


def _sum(items: Sequence[TokenizedImage]) -> str:
    """SHA-256 of names, sizes, tokens and labels."""
    digest = hashlib.sha256()
    for item in items:
        label = () if item.label is None else (item.label,)
        digest.update(repr((item.name, *item.size, *item.tokens.shape, *label)).encode())
        digest.update(item.tokens.to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()
