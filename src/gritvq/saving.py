"""A component as a folder: ``config.json``, readable, and ``model.safetensors``; no pickle, written atomically."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gritvq.component import Component, from_config, to_config
from gritvq.files import (
    checked_file,
    folder_exists,
    holds_files,
    place_of_file,
    read_header,
    replacing_files,
    write_header,
)
from gritvq.lazy import optional

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "WEIGHTS",
    "allowance",
    "is_extra_state",
    "load_weights",
    "local_folder",
    "read_config",
    "read_tensors",
    "rebuilt",
    "saved_kind",
    "write_folder",
]

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_FORMAT = "gritvq"
_OWN_BYTES, _TIMES = 1 << 28, 8  # a component may make tensors of so many bytes, and so many times those of its file
_LEAST = 1 << 15  # bytes that a tensor counts as at least: a file of nothing explains 8,192 of them
_FEW = 1 << 22  # elements of a result that is counted once it is made
_OLD_KINDS = {"tokenizer": "item_tokenizer"}  # what tokenizers of items said they were until 0.1


def tensors_of(component: Component) -> dict[str, Tensor]:
    """A component's weights on the CPU, contiguous, sharing no memory: its state without statistics of training.

    Example:
        >>> from gritvq import FreeCodebook
        >>> list(tensors_of(FreeCodebook(2, 8)))
        ['weight']
    """
    return {k: v.detach().cpu().contiguous().clone() for k, v in _weights(component).items()}


def is_extra_state(name: str) -> bool:
    """Whether an entry of a state dict is no weight but what a module says of itself, such as statistics of codes.

    Example:
        >>> is_extra_state("quantizer.statistics._extra_state"), is_extra_state("quantizer.codebook.weight")
        (True, False)
    """
    return name.rpartition(".")[2] == "_extra_state"


def _weights(component: Component) -> dict[str, Tensor]:
    state = component.state_dict()
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and not is_extra_state(k)}


def write_folder(
    folder: str | os.PathLike[str],
    kind: str,
    component: Component,
    extra: Mapping[str, Any] | None = None,
    others: Mapping[str, Callable[[Path], object]] | None = None,
) -> Path:
    """Write a component's configuration and weights.

    One that the folder holds already is replaced: whenever the process dies, the folder holds the old one or the new
    one, see :mod:`gritvq.files`. ``config.json`` contains the SHA-256 of every file, including itself.

    Args:
        folder: New, empty, or written by this function for the same kind.
        kind: What it is, the key in ``config.json``.
        component: What to write.
        extra: More plain values for ``config.json``.
        others: More files, or folders, by name: what writes them to a given path.

    Raises:
        ValueError: If the path is a file, or a folder that holds something else.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or holds_files(folder)):
        try:
            read_config(folder, kind)
        except ValueError as error:
            raise ValueError(
                f"expected a new folder or one that holds a gritvq {kind}, got {folder}; choose another name"
            ) from error
    config = {"format": _FORMAT, "format_version": FORMAT_VERSION, kind: to_config(component), **(extra or {})}
    with replacing_files(folder) as scratch:
        save_file(tensors_of(component), scratch / WEIGHTS, metadata={"format": "pt"})
        for name, write in (others or {}).items():
            write(scratch / name)
        write_header(scratch / CONFIG, config)
    return folder


def local_folder(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    what: str = "a tokenizer folder",
    files: Sequence[str] = (CONFIG, WEIGHTS),
) -> Path:
    """The folder itself, or what the Hugging Face Hub has under the name ``owner/name``.

    Args:
        source: The folder, or the name on the Hub.
        revision: Branch, tag or commit on the Hub; the main branch if None.
        what: What is expected, in words.
        files: Files to fetch from the Hub, as patterns.

    Raises:
        ValueError: If it is neither, a folder is given with a revision, the client is missing, or the Hub cannot be
            reached or has no such name or revision.
    """
    folder = Path(source)
    if folder_exists(folder):
        if revision is not None:
            raise ValueError(f"expected no revision for the folder {folder} here, got {revision!r}; leave it out")
        return folder
    name = str(source)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"expected {what} or a Hub name 'owner/name', got {name!r}, which is neither")
    hub = optional("huggingface_hub", "hub", f"to look on the Hub for {name!r}, which is no folder here")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the client's many errors mean one of two things to the caller
        if type(error).__name__ == "RevisionNotFoundError":
            raise ValueError(
                f"expected a branch, tag or commit of {name!r} on the Hub, got {revision!r}, which it does not have"
            ) from error
        raise ValueError(f"expected {what} or a reachable Hub name, got {name!r} ({type(error).__name__})") from error


def saved_kind(folder: Path, kinds: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Which of these kinds of artifact a folder holds, and its ``config.json``.

    Raises:
        ValueError: If it is missing, damaged, foreign, of a newer version, or of none of these kinds.
    """
    config = read_header(folder, CONFIG, "a folder", _FORMAT, FORMAT_VERSION)
    for kind in kinds:
        if kind in config or _OLD_KINDS.get(kind) in config:
            return kind, read_config(folder, kind)
    raise ValueError(f"expected one of {', '.join(kinds)} in {folder / CONFIG}, got {sorted(config)}; update gritvq")


def read_config(folder: Path, kind: str, wanted: Mapping[str, type] | None = None) -> dict[str, Any]:
    """What ``config.json`` says.

    Args:
        folder: The artifact.
        kind: What it is, a key that must be there.
        wanted: Other keys that must be there, and their types.

    Raises:
        ValueError: If it is missing, damaged, foreign, of a newer version, or of another kind.
    """
    config = read_header(folder, CONFIG, "a tokenizer folder", _FORMAT, FORMAT_VERSION, wanted)
    if kind not in config and _OLD_KINDS.get(kind) in config:
        config[kind] = config.pop(_OLD_KINDS[kind])
    if kind not in config:
        raise ValueError(f"expected the key {kind!r} in {folder / CONFIG}, got {sorted(config)}; it holds another kind")
    return config


def read_tensors(folder: Path, name: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a safetensors file of an artifact, checked against the checksum in its ``config.json``.

    Raises:
        ValueError: If it is missing or damaged.
    """
    path = checked_file(folder, name, config)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"expected readable tensors in {path}, got a damaged file ({error}); copy it again") from error


def rebuilt(description: Any, folder: Path, trusted: Iterable[str] = ()) -> Component:
    """Make the component that an artifact describes, see :func:`gritvq.component.from_config`.

    A description of a few bytes can ask for any number of codes or layers. While it is built, tensors may have 256 MB
    and eight times the bytes of the file of the weights in all; the tensor that would be too much is not made.

    Args:
        description: From ``config.json``.
        folder: The artifact.
        trusted: Top-level modules besides ``gritvq`` whose classes may be imported.

    Raises:
        ValueError: As :func:`gritvq.component.from_config`, or if it asks for more.
    """
    with allowance(folder):
        return from_config(description, trusted)


def allowance(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """A context that limits the tensors made in it as :func:`rebuilt` does, by the weights of the artifact."""
    path = place_of_file(folder, WEIGHTS)
    return _Allowance(_OWN_BYTES + _TIMES * (path.stat().st_size if path.is_file() else 0), folder)


class _Allowance(TorchDispatchMode):
    """Counts the bytes of tensors as they are made; refuses the operator whose result would be too much."""

    def __init__(self, allowed: int, folder: Path) -> None:
        super().__init__()
        self.allowed, self.left, self.folder = allowed, allowed, folder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether PyTorch imports its compiler, which takes seconds, to keep away from this class."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(each.alias_info for each in func._schema.returns):  # it changes, or shows, what is there
            return func(*args, **kwargs)
        self._check(_elements(func, args, kwargs) * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize)
        made = func(*args, **kwargs)
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self.left -= max(_LEAST, each.untyped_storage().nbytes())
        self._check(0)
        return made

    def _check(self, wanted: int) -> None:
        if wanted > self.left:
            raise ValueError(
                f"expected a description of what is in {self.folder}, got one that asks for more than "
                f"{self.allowed >> 20:,} MB of memory, far more than {WEIGHTS} has; do not trust these files"
            )


def _elements(func: Any, args: Any, kwargs: Any) -> int:
    """Elements of an operator's result before it is made; 0 where they follow from values, or are few anyway."""
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    if not given and args and isinstance(args[0], (list, tuple)):  # such as zeros(shape)
        return math.prod(args[0])
    largest = max((abs(each) for each in args if isinstance(each, (int, float))), default=0)
    if math.prod(each.numel() for each in given) <= _FEW and (given or largest <= _FEW):
        return 0
    with contextlib.suppress(RuntimeError):
        if given and (shape := torch.broadcast_shapes(*(each.shape for each in given))).numel() <= _FEW:
            return shape.numel()
    on_meta = tree_map(lambda each: each.to("meta") if isinstance(each, Tensor) else each, (args, kwargs))
    try:
        made = func(*on_meta[0], **on_meta[1] | ({} if given else {"device": "meta"}))
    except (RuntimeError, NotImplementedError, TypeError):  # the operator itself says what is wrong
        return 0
    return sum(each.numel() for each in tree_leaves(made) if isinstance(each, Tensor))


def load_weights(component: Component, folder: Path, config: Mapping[str, Any]) -> None:
    """Give a rebuilt component the weights that were written with it.

    Raises:
        ValueError: If they are missing, damaged or another component's.
    """
    tensors = read_tensors(folder, WEIGHTS, config)
    expected = _weights(component)
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
