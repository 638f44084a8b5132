"""Files of tokens: what ``gritvq encode`` writes and ``gritvq decode`` reads."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.training.files import replacing

__all__ = ["TokenizedImage", "check_token_path", "read_tokens", "save_png", "write_tokens"]


class TokenizedImage(NamedTuple):
    """A picture's name, its size (height, width) in pixels, and its tokens (h, w, Q), int64."""

    name: str
    size: tuple[int, int]
    tokens: Int[Tensor, "h w Q"]


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

    ``.npz`` holds ``tokens/NAME`` (h, w, Q) and ``size/NAME`` (height, width) for every picture; ``.parquet`` one row
    per picture with ``name, height, width, token_height, token_width, channels`` and the flat list ``tokens``.
    """
    path = check_token_path(path)
    with replacing(path) as scratch:
        if path.suffix == ".npz":
            arrays: dict[str, np.ndarray] = {}
            for item in items:
                arrays[f"tokens/{item.name}"] = item.tokens.numpy()
                arrays[f"size/{item.name}"] = np.array(item.size)
            with scratch.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        else:
            import pyarrow as pa
            import pyarrow.parquet as parquet

            table = pa.table(
                {
                    "name": [item.name for item in items],
                    "height": [item.size[0] for item in items],
                    "width": [item.size[1] for item in items],
                    "token_height": [item.tokens.shape[0] for item in items],
                    "token_width": [item.tokens.shape[1] for item in items],
                    "channels": [item.tokens.shape[2] for item in items],
                    "tokens": [item.tokens.flatten().numpy() for item in items],
                }
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
        raise ValueError(f"expected a token file, got {path}, which does not exist; make one with 'gritvq encode'")
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    except (KeyError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"expected tokens written by 'gritvq encode' in {path}, got something else or a damaged file"
        ) from error


def _read_npz(path: Path) -> list[TokenizedImage]:
    with np.load(path, allow_pickle=False) as file:
        names = [key.removeprefix("tokens/") for key in file.files if key.startswith("tokens/")]
        if not names:
            raise KeyError("tokens/")
        items = []
        for name in names:
            height, width = (int(side) for side in file[f"size/{name}"])
            items.append(TokenizedImage(name, (height, width), torch.from_numpy(file[f"tokens/{name}"])))
        return items


def _read_parquet(path: Path) -> list[TokenizedImage]:
    import pyarrow.parquet as parquet

    return [
        TokenizedImage(
            row["name"],
            (row["height"], row["width"]),
            torch.tensor(row["tokens"], dtype=torch.int64).view(
                row["token_height"], row["token_width"], row["channels"]
            ),
        )
        for row in parquet.read_table(path).to_pylist()
    ]


def save_png(image: Float[Tensor, "C H W"], path: str | os.PathLike[str]) -> Path:
    """Write a picture with values in [0, 1] as an 8-bit PNG."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    with replacing(path) as scratch:
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(scratch, format="PNG")
    return Path(path)
