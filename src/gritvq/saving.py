"""A component as a folder: ``config.json``, readable, and ``model.safetensors``; no pickle, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gritvq.base import Component, describe

__all__ = ["CONFIG", "FORMAT_VERSION", "WEIGHTS", "load_weights", "local_folder", "read_config", "write_folder"]

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def tensors_of(component: Component) -> dict[str, Tensor]:
    """All tensors of a component's state on the CPU, contiguous, sharing no memory.

    Example:
        >>> from gritvq import FreeCodebook
        >>> list(tensors_of(FreeCodebook(2, 8)))
        ['weight']
    """
    state = component.state_dict()
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items() if isinstance(v, Tensor)}


def write_folder(
    folder: str | os.PathLike[str], kind: str, component: Component, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write a component's configuration and weights.

    The folder is written beside its final name and moved there when complete. One that holds a component already is
    replaced.

    Args:
        folder: New, empty, or written by this function for the same kind.
        kind: What it is, the key in ``config.json``.
        component: What to write.
        extra: More plain values for ``config.json``.

    Raises:
        ValueError: If the path is a file, or a folder that holds something else.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        try:
            read_config(folder, kind)
        except ValueError as error:
            raise ValueError(
                f"expected a new folder or one that holds a gritvq {kind}, got {folder}; choose another name"
            ) from error
    config = {"format": "gritvq", "format_version": FORMAT_VERSION, kind: describe(component), **(extra or {})}
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors_of(component), scratch / WEIGHTS, metadata={"format": "pt"})
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        folder.mkdir(exist_ok=True)
        for name in (WEIGHTS, CONFIG):
            os.replace(scratch / name, folder / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def local_folder(source: str | os.PathLike[str]) -> Path:
    """The folder itself, or what the Hugging Face Hub has under the name ``owner/name``.

    Raises:
        ValueError: If it is neither, the client is missing or the Hub cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"expected a tokenizer folder or a Hub name 'owner/name', got {name!r}, which is neither")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"expected a tokenizer folder, got {name!r}, which does not exist here; to load it from the Hub install "
            "'gritvq[images]'"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the client's many errors all mean the same to the caller
        raise ValueError(
            f"expected a tokenizer folder or a reachable Hub name, got {name!r} ({type(error).__name__})"
        ) from error


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """What ``config.json`` says.

    Raises:
        ValueError: If it is missing, damaged, foreign, of a newer version, or of another kind.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"expected a tokenizer folder with {CONFIG}, got {folder} without one") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"expected readable JSON in {path}, got a damaged file ({error}); copy it again") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(config, dict) or config.get("format") != "gritvq" or not isinstance(version, int):
        raise ValueError(f"expected a gritvq tokenizer in {path}, got something else; is it another library's?")
    if version > FORMAT_VERSION:
        raise ValueError(f"expected format version {FORMAT_VERSION} or older in {path}, got {version}; update gritvq")
    if kind not in config:
        raise ValueError(f"expected the key {kind!r} in {path}, got {sorted(config)}; the file is incomplete")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``model.safetensors``.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise ValueError(f"expected weights in {folder / WEIGHTS}, found none; copy the whole folder") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"expected readable weights in {folder / WEIGHTS}, got a damaged file ({error}); copy it again"
        ) from error


def load_weights(component: Component, folder: Path) -> None:
    """Give a rebuilt component the weights that were written with it.

    Raises:
        ValueError: If they are missing, damaged or another component's.
    """
    tensors = read_weights(folder)
    expected = {k: v for k, v in component.state_dict().items() if isinstance(v, Tensor)}
    differing = sorted(
        k
        for k in expected.keys() | tensors.keys()
        if k not in expected or k not in tensors or expected[k].shape != tensors[k].shape
    )
    if differing:
        raise ValueError(
            f"expected the weights that {folder / CONFIG} describes, got others at "
            f"{', '.join(differing[:3])}{' ...' if len(differing) > 3 else ''}; config.json and model.safetensors "
            "are not from the same tokenizer"
        )
    component.load_state_dict(tensors, strict=False)
