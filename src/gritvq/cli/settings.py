"""Settings of a run: the given ones, completed by a shipped configuration."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gritvq.cli.errors import guarded
from gritvq.files import regular_file

__all__ = [
    "built",
    "check_positive",
    "check_unused",
    "check_words",
    "class_of",
    "combined",
    "given_settings",
    "parts_of",
    "shipped",
    "whole",
]


def shipped(domain: str) -> dict[str, Any]:
    """The default configuration of a domain of ``fit``, or of ``demo``."""
    path = Path(__file__).parent / "defaults" / f"{domain}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def given_settings(parser: Any, words: Sequence[str]) -> dict[str, Any]:
    """Settings in the arguments and their configuration files, as plain values by name."""
    check_words(words)
    given = _plain(parser.parse_given(words).as_dict())
    given.pop("config", None)
    return dict(given)


def whole(parser: Any, settings: dict[str, Any], defaults: Mapping[str, Any]) -> Any:
    """A checked configuration of these settings and the parser's defaults.

    Args:
        parser: Parser of a domain.
        settings: Settings by name.
        defaults: The domain's shipped configuration, which names its parts.
    """
    given, parts = parts_of(settings), parts_of(defaults)
    # Otherwise the parser passes the arguments of its default classes to other classes.
    guarded(parser.set_defaults, {name: given.get(name, part) for name, part in parts.items()})
    return parser.parse_settings(settings)


def parts_of(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings that are classes with arguments, by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "class_path" in value:
            found[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            found |= parts_of(value, f"{prefix}{name}.")
    return found


def check_positive(**settings: int) -> None:
    """Raises a ValueError if one of these settings is below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}; give a larger one")


def check_unused(parser: Any, config: Any, names: Sequence[str], what: str) -> None:
    """Raises a ValueError if one of these settings, which ``what`` does not have, is not its default."""
    defaults = {action.dest: action.default for action in parser._actions}
    for name in names:
        if config[name] != defaults[name]:
            raise ValueError(f"expected no --{name} for {what}, got {config[name]!r}; leave it out")


def check_words(words: Sequence[str]) -> None:
    """Raises a ValueError if an argument is a pipe or a device: a configuration may be read twice."""
    for word in words:
        path = Path(word.partition("=")[2] or word)
        try:
            special = path.exists() and not (path.is_file() or path.is_dir())
        except (OSError, ValueError):  # not a file name
            continue
        if special:
            regular_file(path, "a file or folder")


def _plain(value: Any) -> Any:
    """Settings without the names of their files."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if name != "__path__"}
    return value


def combined(default: Any, given: Any, name: str = "") -> Any:
    """The given settings, completed by defaults.

    A part of another class than the default's has that class's defaults; only its required arguments, such as ``dim``,
    are taken from ``default``.

    Raises:
        ValueError: If a part is null.
    """
    if given is None and isinstance(default, dict):
        raise ValueError(f"expected a value for {name}, got null; leave it out for its default, or give one")
    if not (isinstance(default, dict) and isinstance(given, dict)):
        return given
    if "class_path" in default and "class_path" in given:
        wanted = _find(given["class_path"])
        arguments = default.get("init_args", {})
        if wanted is not _find(default["class_path"]):
            arguments = {name: value for name, value in arguments.items() if name in _required(wanted)}
        settings = given.get("init_args", {})
        if isinstance(settings, dict) and (arguments or settings):
            return {**given, "init_args": {**arguments, **settings}}
        return given
    return {
        **default,
        **{key: combined(default.get(key), value, f"{name}.{key}".strip(".")) for key, value in given.items()},
    }


def class_of(path: str) -> Any:
    """A class or function by its path, which the parser has checked."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def built(value: Any) -> Any:
    """A checked setting of which each class with arguments, at any depth, is an object of it.

    Example:
        >>> from argparse import Namespace
        >>> head = Namespace(class_path="gritvq.priors.SoftmaxHead", init_args=Namespace(codebook_sizes=[8], width=4))
        >>> built([head, 3])[0].codebook_sizes
        (8,)
    """
    if isinstance(value, list | tuple):
        return type(value)(map(built, value))
    if isinstance(value, Mapping):
        return {name: built(each) for name, each in value.items()}
    if not hasattr(value, "class_path"):
        return value
    arguments = vars(getattr(value, "init_args", None) or argparse.Namespace())
    return guarded(class_of(value.class_path), **{name: built(each) for name, each in arguments.items()})


def _find(path: Any) -> Any:
    """A class or function by its path; None if there is none, which the parser reports."""
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception:  # a named module may raise anything
        return None


def _required(found: Any) -> set[str]:
    """Names of the arguments without a default."""
    try:
        parameters = inspect.signature(found).parameters.items()
    except (TypeError, ValueError):  # None, or nothing that can be called
        return set()
    return {name for name, parameter in parameters if parameter.default is inspect.Parameter.empty}
