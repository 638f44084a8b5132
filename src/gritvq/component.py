"""Components record how they were made, so that a saved tokenizer can rebuild itself."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import nn

__all__ = ["Component", "check_integer", "check_number", "eval_mode", "from_config", "packages_of", "to_config"]


class Component(nn.Module):
    """A module that remembers the arguments it was constructed with, so that a saved tokenizer can rebuild itself.

    Arguments must be plain values (None, bool, int, float, str, lists, dicts) or components; a ``torch.Generator`` is
    remembered as None, because a rebuilt component gets its numbers from a state dict.

    Attributes:
        reads_files: Whether the constructor opens files that its arguments name. A description, which may be from
            somebody else, cannot build such a component.

    Example:
        >>> from gritvq import CommitmentLoss
        >>> to_config(CommitmentLoss(0.25))
        {'class_path': 'gritvq.CommitmentLoss', 'init_args': {'weight': 0.25}}
    """

    reads_files: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember the arguments, then construct as usual."""
        component = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(component, *args, **kwargs)
        except TypeError:  # __init__ reports the same mistake better; copy and pickle come here without arguments
            return component
        bound.apply_defaults()  # all settings are saved, so that a default that changes later breaks no old file
        variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        named = [name for name, each in bound.signature.parameters.items() if each.kind not in variable][1:]
        arguments = {name: bound.arguments[name] for name in named}
        object.__setattr__(component, "_arguments", arguments)
        return component


def check_integer(name: str, value: int, least: int = 1, hint: str = "") -> int:
    """An argument that has to be an integer of at least this size.

    Raises:
        ValueError: If it is not; ``hint`` says what to do.

    Example:
        >>> check_integer("dim", 4)
        4
    """
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"expected {name} >= {least}, got {value!r}{hint and '; ' + hint}")
    return int(value)


def check_number(
    name: str, value: float, least: float = 0.0, most: float = math.inf, *, inside: bool = False, hint: str = ""
) -> float:
    """An argument that has to be a finite number in a range, as float.

    Args:
        name: For the message.
        value: The argument.
        least: Lower end.
        most: Upper end.
        inside: Whether the ends do not belong to the range.
        hint: What to do, for the message.

    Raises:
        ValueError: If it is outside, or NaN.

    Example:
        >>> check_number("weight", 1)
        1.0
    """
    if not (least < value < most if inside else least <= value <= most and value < math.inf):
        low, high, sign = ("(", ")", ">") if inside else ("[", "]", ">=")
        told = f"{sign} {least:g}" if most == math.inf else f"in {low}{least:g}, {most:g}{high}"
        raise ValueError(f"expected {name} {told}, got {value!r}{hint and '; ' + hint}")
    return float(value)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Everything in eval mode inside the block; afterwards each submodule is in the mode it was in.

    Example:
        >>> part = nn.Sequential(nn.Dropout().eval(), nn.Dropout())
        >>> with eval_mode(part):
        ...     part[1].training
        False
        >>> part[0].training, part[1].training
        (False, True)
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


# Where the classes of artifacts that were written before the wings are now.
_AT_THE_TOP = (
    "assignments base codebooks hyperbolic learning lookup_free structures surrogates variational vector_quantizer"
)
_OLD_PLACES = {
    **{f"gritvq.{module}": "gritvq" for module in _AT_THE_TOP.split()},
    "gritvq.models.Image": "gritvq.images",
    "gritvq.models.Item": "gritvq.items",
    "gritvq.item_tokenizers": "gritvq.items",
    "gritvq.recommend": "gritvq.items",
}
_OLD_NAMES = {"gritvq.tokenizer.Tokenizer": "gritvq.images.ImageTokenizer"}


def public_name(cls: type) -> str:
    """The name by which users know a class: ``gritvq.FSQ``, ``gritvq.images.ImageEncoder``; never a file's place.

    Example:
        >>> from gritvq.images.networks import ImageEncoder
        >>> public_name(ImageEncoder)
        'gritvq.images.ImageEncoder'
    """
    parts = cls.__module__.split(".")
    if parts[0] == "gritvq":
        for package in ("gritvq", ".".join(parts[:2])):
            if getattr(importlib.import_module(package), cls.__qualname__, None) is cls:
                return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def current_name(path: str) -> str:
    """The public name of a class that a file of an earlier version names by its place then.

    Example:
        >>> current_name("gritvq.codebooks.FreeCodebook"), current_name("gritvq.models.ItemEncoder")
        ('gritvq.FreeCodebook', 'gritvq.items.ItemEncoder')
    """
    module, _, name = path.rpartition(".")
    for old in (module, f"{module}.{name[:5]}", f"{module}.{name[:4]}"):
        if old in _OLD_PLACES:
            return f"{_OLD_PLACES[old]}.{name}"
    return _OLD_NAMES.get(path, path)


def to_config(component: Component) -> dict[str, Any]:
    """Class and constructor arguments of a component as plain data, nested components included.

    Returns:
        ``{"class_path": ..., "init_args": {...}}``, the form of the configuration files.

    Raises:
        ValueError: If an argument is neither plain data nor a component.
    """
    cls = type(component)
    where = public_name(cls)
    arguments: dict[str, Any] = dict(getattr(component, "_arguments", {}))
    kinds = {parameter.kind for parameter in inspect.signature(cls.__init__).parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} and "__init__" in vars(cls):
        raise ValueError(
            f"expected a constructor with named arguments, got *args or **kwargs in {where}; spell them out so that "
            "it can be saved"
        )
    for name in inspect.signature(cls.__init__).parameters:  # a replaced part is described as it is now
        current = getattr(component, name, None)
        if isinstance(current, (Component, nn.ModuleList)):
            arguments[name] = current
    return {"class_path": where, "init_args": {k: _to_plain(v, f"{where}({k}=...)") for k, v in arguments.items()}}


def _to_plain(value: Any, where: str) -> Any:
    if isinstance(value, Component):
        return to_config(value)
    if isinstance(value, torch.Generator):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return [_to_plain(v, where) for v in value]
    if isinstance(value, dict):
        return {str(k): _to_plain(v, where) for k, v in value.items()}
    raise ValueError(
        f"expected plain values or gritvq components as constructor arguments, got {type(value).__name__} for {where}; "
        "derive its class from gritvq.component.Component so that it can be saved"
    )


def from_config(description: dict[str, Any], trusted: Iterable[str] = ()) -> Component:
    """Make a component from its description; the inverse of :func:`to_config`.

    Args:
        description: ``{"class_path": ..., "init_args": {...}}``.
        trusted: Top-level modules besides ``gritvq`` whose classes may be imported. A description from somebody else
            can name any class on the machine, so nothing else is imported.

    Raises:
        ValueError: If the class is unknown, not trusted, not a component, one that reads files, or does not accept the
            arguments.

    Example:
        >>> from gritvq import FreeCodebook
        >>> from_config(to_config(FreeCodebook(2, 8))).codes().shape
        torch.Size([8, 2])
    """
    path = description.get("class_path") if isinstance(description, dict) else None
    if not isinstance(path, str) or "." not in path:
        raise ValueError(f"expected a description with a 'class_path' like 'gritvq.FreeCodebook', got {description!r}")
    path = current_name(path)
    module, _, name = path.rpartition(".")
    allowed = {"gritvq", *trusted}
    if module.split(".")[0] not in allowed:
        hint = f"if you trust that module, pass trusted=[{module.split('.')[0]!r}]"
        hint = "put the class of the script into a file of its own, and save again" if module == "__main__" else hint
        raise ValueError(f"expected a class of {sorted(allowed)}, got {path!r}; {hint}")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        hint = "is gritvq too old for this file?" if path.startswith("gritvq.") else "is its folder in PYTHONPATH?"
        raise ValueError(f"expected a class that exists, got {path!r} ({error}); {hint}") from error
    if not (isinstance(cls, type) and issubclass(cls, Component)):
        raise ValueError(f"expected a gritvq component, got {path!r}; only components can be rebuilt")
    if cls.reads_files:
        raise ValueError(
            f"expected components that read no files, got {path!r}; build it yourself, whoever wrote the description "
            "chose its file"
        )
    given = description.get("init_args", {})
    if not isinstance(given, dict):
        raise ValueError(f"expected 'init_args' by name for {path}, got {given!r}; write {{}} for none")
    arguments = {k: _from_plain(v, trusted) for k, v in given.items()}
    try:
        return cls(**arguments)
    except Exception as error:  # values of other kinds than a constructor expects fail in many ways
        if isinstance(error, ValueError) and "expected" in str(error):
            raise
        raise ValueError(f"expected arguments that {path} takes, got {sorted(arguments)} ({error})") from error


def packages_of(module: nn.Module) -> set[str]:
    """Top-level packages of all classes inside: what to trust for a file of the same model, whose classes run already.

    Example:
        >>> from gritvq import FreeCodebook
        >>> packages_of(FreeCodebook(2, 8))
        {'gritvq'}
    """
    return {type(part).__module__.split(".")[0] for part in module.modules()}


def _from_plain(value: Any, trusted: Iterable[str]) -> Any:
    if isinstance(value, dict):
        if "class_path" in value:
            return from_config(value, trusted)
        return {k: _from_plain(v, trusted) for k, v in value.items()}
    if isinstance(value, list):
        return [_from_plain(v, trusted) for v in value]
    return value
