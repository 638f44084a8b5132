"""What the program says when something is wrong: one message, with the cause and the remedy where they are known."""

from __future__ import annotations

import difflib
import errno
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

from gritvq import presets

__all__ = ["explained", "parser_class"]

_FULL = re.compile(r"No space left|Disk quota|PytorchStreamWriter failed")  # what writers in C++ and Rust say


def explained(error: Exception) -> str | None:
    """The message for an error that wrong input or the machine causes; None for a fault of the program.

    Example:
        >>> explained(OSError(28, "No space left on device", "runs/a"))[:52]
        'expected room on the disk to write runs/a, got none;'
    """
    text = str(error)
    if isinstance(error, ImportError):
        return f"this needs {error.name}; install 'gritvq[train,images]'" if error.name else text
    if isinstance(error, RecursionError):
        return (
            "expected input nested a few levels deep, got brackets within brackets without end; is it the right file?"
        )
    if isinstance(error, MemoryError):
        return "expected input that fits into memory, got more; take smaller batches or fewer rows"
    if isinstance(error, UnicodeError):
        return f"expected text in UTF-8, got bytes that are none ({text}); is it the right file?"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or _FULL.search(text):
        where = f" {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"expected room on the disk to write{where}, got none; free some, or write elsewhere with --out"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return (
            f"expected a file or folder that this program may use, got {error.filename!r}: {error.strerror}; correct "
            "the name or its permissions"
        )
    return text or type(error).__name__ if isinstance(error, (ValueError, OSError)) else None


def parser_class() -> Any:
    """The argument parser, with errors of one message instead of a page of usage."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def parse_args(self, *arguments: Any, **more: Any) -> Any:
            config = guarded(super().parse_args, *arguments, **more)
            for name, value in config.items():
                if value == "":
                    raise ValueError(f"expected a value for {name}, got an empty text; leave it out, or give one")
            for name, value in vars(config).items():
                settings = {action.dest for action in self._actions} - {f"{name}.help"}  # a class in a list has one
                if value is None and any(other.startswith(f"{name}.") for other in settings):
                    raise ValueError(f"expected settings of {name}, got null; leave {name} out for its defaults")
            return config

        def instantiate(self, *arguments: Any, **more: Any) -> Any:
            return guarded(super().instantiate, *arguments, **more)

        def error(self, message: str, ex: Exception | None = None) -> Any:
            if not self.exit_on_error:
                return super().error(message, ex)
            parser = getattr(ex, "subcommand_parser", None) or self
            while parser._subcommands_action is not None:
                verbs = parser._subcommands_action.choices
                wanted = [verb for verb, own in verbs.items() if len(own._actions) > 1 and f"{verb}." in message]
                filled = wanted or [verb for verb, own in verbs.items() if len(own._actions) > 1]
                if len(filled) != 1 or "invalid choice" in message:
                    break
                parser = verbs[filled[0]]
                if message.startswith("the following arguments are required"):
                    message = message.replace(f"{filled[0]}.", "")
            program = parser.prog.replace(" [options]", "")
            message = _NO_SETTINGS.sub("expected settings by name under init_args, got something else", message)
            close = _suggestion(message, [action.dest for action in parser._actions])
            hint = f"did you mean '{close}'? " if close else ""
            return self.exit(2, f"{program}: error: {message.rstrip()}\n{hint}see '{program} --help'\n")

    return Parser


def guarded(call: Any, *arguments: Any, **more: Any) -> Any:
    """What a call gives that depends on arguments alone; whatever it raises, the arguments are wrong.

    Raises:
        ValueError: Then.
    """
    try:
        return call(*arguments, **more)
    except Exception as error:
        if explained(error) is not None:
            raise
        raise ValueError(
            f"expected arguments that fit together, got some that do not ({type(error).__name__}: {error}); see --help"
        ) from error


_NO_SETTINGS = re.compile(r"'\w+' object has no attribute 'keys'")


def _suggestion(message: str, known: Sequence[str]) -> str | None:
    """What was meant by a word that a parser does not know, as far as another one is close.

    Example:
        >>> _suggestion("unrecognized arguments: --plan.max_stepz 3", ["plan.seed", "plan.max_steps"])
        '--plan.max_steps'
        >>> _suggestion("argument VERB: invalid choice: 'fitt' (choose from 'fit', 'decode')", [])
        'fit'
    """
    if found := re.search(r"not accept option '([^']+)'", message):
        return _closest(found[1], known)
    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return _closest(found[1], re.findall(r"[\w-]+", found[2]))
    if found := re.search(r"class_path '([\w.]+)':\s+Option '([^']+)' is not accepted", message):
        return _closest(found[2], _arguments_of(found[1]))
    if found := re.search(r"module 'gritvq' has no attribute '(\w+)'", message):
        return _closest(found[1], presets.__all__)
    if "unrecognized arguments:" in message:
        for word in message.split("unrecognized arguments:")[1].split():
            if word.startswith("--"):
                close = _closest(word.removeprefix("--").split("=")[0], known)
                return close and f"--{close}"
    return None


def _closest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), 1)), None)


def _arguments_of(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
