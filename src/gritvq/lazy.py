"""What is imported when it is first used: public names of a wing, and packages behind an extra."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazy_names", "optional"]


def lazy_names(
    package: str, modules: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported when first asked for.

    Args:
        package: The package's ``__name__``.
        modules: Names by the module below the package that defines them.

    Example:
        >>> find, names, public = lazy_names("gritvq", {"files": ["write_json"]})
        >>> find("write_json").__name__, names(), public
        ('write_json', ['files', 'write_json'], ['write_json'])
    """
    places = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    return find, lambda: sorted({*modules, *places}), sorted(places)


def optional(module: str, extra: str, purpose: str = "") -> Any:
    """Import a module of an optional package.

    Args:
        module: Such as ``"pyarrow.parquet"``.
        extra: The extra of gritvq that installs it.
        purpose: What it is needed for, such as ``"to draw"``, where the caller did not ask for it in so many words.

    Raises:
        ValueError: If the package is missing; the message names the extra.

    Example:
        >>> optional("no_such_package", "train")
        Traceback (most recent call last):
        ValueError: expected the package no_such_package, got none; pip install 'gritvq[train]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = f"{module.partition('.')[0]} {purpose}".rstrip()
        raise ValueError(f"expected the package {package}, got none; pip install 'gritvq[{extra}]'") from error
