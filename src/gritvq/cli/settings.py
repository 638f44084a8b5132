"""Settings of a run: what was given, completed by a shipped configuration."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gritvq.cli.errors import guarded
from gritvq.files import regular_file

__all__ = ["check_words", "combined", "given_settings", "parts_of", "shipped", "whole"]


def shipped(domain: str) -> dict[str, Any]:
    """The configuration that ``gritvq fit`` completes a domain's settings with."""
    path = Path(__file__).parent / "defaults" / f"{domain}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def given_settings(parser: Any, words: Sequence[str]) -> dict[str, Any]:
    """What arguments and the files that they name say, as plain values by name.

    Raises:
        ValueError: If a file is a pipe or a device.
    """
    check_words(words)
    given = _plain(parser.parse_given(words).as_dict())
    given.pop("config", None)
    return dict(given)


def whole(parser: Any, settings: dict[str, Any], defaults: Mapping[str, Any]) -> Any:
    """A configuration of these settings, the parser's own defaults for the rest; checked.

    Args:
        parser: Of a domain.
        settings: By name.
        defaults: The domain's shipped configuration, which names its parts.

    Raises:
        ValueError: If settings do not fit.
    """
    given, parts = parts_of(settings), parts_of(defaults)
    # Else the parser hands the arguments of its default classes on to others.
    guarded(parser.set_defaults, {name: given.get(name, part) for name, part in parts.items()})
    return parser.parse_settings(settings)


def parts_of(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The parts of settings that are classes with arguments, by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "class_path" in value:
            found[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            found |= parts_of(value, f"{prefix}{name}.")
    return found


def check_words(words: Sequence[str]) -> None:
    """Refuse pipes and devices where files are named: a configuration may be read twice.

    Raises:
        ValueError: If one of the arguments is such.
    """
    for word in words:
        path = Path(word.partition("=")[2] or word)
        try:
            special = path.exists() and not (path.is_file() or path.is_dir())
        except (OSError, ValueError):  # no name of a file at all
            continue
        if special:
            regular_file(path, "a file or folder")


def _plain(value: Any) -> Any:
    """Without the names of the files that settings came from."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if name != "__path__"}
    return value


def combined(default: Any, given: Any, name: str = "") -> Any:
    """Settings by name: those given, and the defaults of what was not.

    A part of another class than the default's gets that class's own defaults; of these defaults it takes only what it
    cannot do without, such as its ``dim``.

    Raises:
        ValueError: If a part is given as null.
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


def _find(path: Any) -> Any:
    """A class or function by its path; None if there is none, which the parser says."""
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception:  # a named module may raise anything
        return None


def _required(found: Any) -> set[str]:
    """Names of the arguments that have no default."""
    try:
        parameters = inspect.signature(found).parameters.items()
    except (TypeError, ValueError):  # None, or nothing that can be called
        return set()
    return {name for name, parameter in parameters if parameter.default is inspect.Parameter.empty}
