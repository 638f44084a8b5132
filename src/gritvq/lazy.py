"""What is fetched when it is first used: public names of a wing, packages behind an extra, and the Hub's files."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

__all__ = ["check_hub", "hub_in_reach", "lazy_names", "optional"]


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


def hub_in_reach() -> bool:
    """Whether this machine can look up the address of the Hugging Face Hub; without, its clients try for 25 seconds.

    True where a proxy is set, which looks it up itself. ``HF_ENDPOINT`` says what the address is.
    """
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    if host is None or getproxies().keys() & {"http", "https", "all"}:
        return True
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):  # no network, or no such name
        return False
    return True


def check_hub(name: str, cache: str | os.PathLike[str]) -> None:
    """Check before ``datasets`` is asked for a data set by its name on the Hub.

    Args:
        name: Name of the data set.
        cache: Folder of the data sets that were fetched before, which need no Hub.

    Raises:
        ConnectionError: If the Hub is out of reach and the data set was not fetched before.
    """

    def plain(text: str) -> str:
        return text.replace("/", "").replace("_", "").lower()  # the cache has "owner___my_name" for "owner/MyName"

    folder = Path(cache).expanduser()
    known = folder.is_dir() and any(plain(each.name) == plain(name) for each in folder.iterdir())
    if not known and not hub_in_reach():
        raise ConnectionError("the address of the Hub is not known here, as without a network")
