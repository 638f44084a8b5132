"""Error messages of the program: one message with the cause and, if known, what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from gritvq.quantizers import presets

__all__ = ["check_yaml", "explained", "parser_class", "read_yaml"]

_FULL = re.compile(  # messages of C++ and Rust libraries
    r"No space left|Disk quota|File too large|PytorchStreamWriter failed|iostream error|unexpected pos \d+ vs \d+"
)
_DEEPEST = 500  # nested lists and mappings
_MOST_NODES = 100_000  # values of a configuration with aliases
_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)  # PyTorch, on any device


def explained(error: Exception) -> str | None:
    """The message for an error caused by wrong input or by the machine; None for a bug.

    Example:
        >>> explained(OSError(28, "No space left on device", "runs/a"))[:52]
        'expected room on the disk to write runs/a, got none;'
    """
    text = str(error)
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0]
        return f"expected the package {package}, got none; pip install 'gritvq[train,images]'" if package else text
    if isinstance(error, RecursionError):
        return (
            "expected input nested a few levels deep, got brackets within brackets without end; is it the right file?"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY.search(text)):
        where = "the GPU's memory" if "CUDA" in text or "CUBLAS" in text else "memory"
        return f"expected input that fits into {where}, got more; take smaller batches (batch_size) or fewer rows"
    if isinstance(error, UnicodeError):
        return f"expected text in UTF-8, got bytes that are none ({text}); is it the right file?"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
    from jsonargparse import ArgumentParser, Namespace

    class Parser(ArgumentParser):
        checks = True

        def parse_given(self, words: Sequence[str]) -> Any:
            """The given settings, without defaults and checks, which follow once they are complete."""
            self.checks = False
            try:
                return guarded(super().parse_args, words, defaults=False)
            finally:
                self.checks = True

        def parse_string(self, *arguments: Any, **more: Any) -> Any:
            check_yaml(next(iter((*arguments, *more.values()))))  # the text comes first, whatever its name
            return super().parse_string(*arguments, **more)

        def validate(self, *arguments: Any, **more: Any) -> Any:
            if self.checks:
                super().validate(*arguments, **more)

        def parse_settings(self, settings: dict[str, Any]) -> Any:
            """A whole configuration from settings by name, with the defaults of the others."""
            return self._complete(guarded(self.parse_object, settings))

        def parse_args(self, *arguments: Any, **more: Any) -> Any:
            return self._complete(guarded(super().parse_args, *arguments, **more))

        def _complete(self, config: Any) -> Any:
            """Additional checks to those of jsonargparse."""
            if self._subcommands_action is None:  # subcommands check their own arguments
                try:
                    self.validate(config, skip_required=True)
                except (TypeError, KeyError) as error:
                    self.error(str(error), error)
            for name, value in config.items():
                if value == "":
                    raise ValueError(f"expected a value for {name}, got an empty text; leave it out, or give one")
            for name, value in vars(config).items():
                settings = {action.dest for action in self._actions} - {f"{name}.help"}  # a class in a list has one
                if not isinstance(value, Namespace) and any(other.startswith(f"{name}.") for other in settings):
                    got = "null" if value is None else repr(value)
                    raise ValueError(f"expected settings of {name}, got {got}; leave {name} out for its defaults")
            for action in self._actions:
                if action.dest in config and config[action.dest] is None and not _takes_null(action):
                    raise ValueError(
                        f"expected a value for {action.dest}, got null; leave it out for its default, or give one"
                    )
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
            message = _readable(message)
            close = _suggestion(message, [action.dest for action in parser._actions])
            hint = f"did you mean '{close}'? " if close else ""
            return self.exit(2, f"{program}: error: {message.rstrip()}\n{hint}see '{program} --help'\n")

    return Parser


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        OSError: If it cannot be read.
        yaml.YAMLError: If it is none.
        ValueError: As :func:`check_yaml`, or if it is not UTF-8.
        RecursionError: As :func:`check_yaml`.
    """
    text = path.read_text(encoding="utf-8")
    check_yaml(text)
    return yaml.safe_load(text)


def check_yaml(text: str) -> None:
    """Check that YAML can be read in little time and memory; texts within it, too, which the parser reads again.

    Raises:
        RecursionError: If it is nested so deep that the reader in C would crash.
        ValueError: If aliases make it far larger than it is, or endless.
    """
    if "*" not in text and len(text) < _DEEPEST:
        return
    sizes, open_nodes, total = dict[str, int](), list[tuple[str | None, int]](), 0
    with contextlib.suppress(yaml.YAMLError):  # which the reader reports
        for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((anchor, total))
                if len(open_nodes) > _DEEPEST:
                    raise RecursionError("nested too deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = total - before
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == outer for outer, _ in open_nodes):
                    raise ValueError(
                        f"expected a configuration that ends, got *{anchor} within &{anchor}; write it out"
                    )
                total += sizes.get(anchor or "", 1)
            elif isinstance(event, yaml.ScalarEvent) and event.value != text:
                digits = event.value.strip("+-").replace("_", "")
                if not event.style and len(digits) > sys.get_int_max_str_digits() > 0 and digits.isdecimal():
                    raise ValueError(f"expected numbers, got one of {len(digits):,} digits; write a shorter one")
                check_yaml(event.value)
            total += 1
            if sizes and total > _MOST_NODES:
                raise ValueError(f"expected aliases of at most {_MOST_NODES:,} values, got more; write fewer")


def _takes_null(action: Any) -> bool:
    """Whether null is allowed; jsonargparse does not check it."""
    return action.default is None or type(None) in get_args(getattr(action, "_typehint", action.type))


def guarded(call: Any, *arguments: Any, **more: Any) -> Any:
    """Result of a call that depends only on arguments; any exception becomes a ValueError about them."""
    try:
        return call(*arguments, **more)
    except Exception as error:
        said = explained(error)
        if own := _OURS.search(said or ""):
            raise ValueError(own[1]) from error
        if said is not None and (not isinstance(error, ValueError) or "expected" in said):
            raise
        kind = "" if said else f"{type(error).__name__}: "
        raise ValueError(
            f"expected arguments that fit together, got some that do not ({kind}{_readable(str(error))}); see --help"
        ) from error


_OURS = re.compile(r"^ *- (expected .*)", re.MULTILINE)  # our message for one class of several
_NO_SETTINGS = re.compile(r"'\w+' object has no attribute 'keys'")
_NO_CLASS = re.compile(r"argument of type '\w+' is not iterable")
_NOISE = re.compile(
    r"\s*(?:- )?(Does not validate against any|Subtypes:|Errors:|Given value type:|Expected a .*NoneType"
    r"|Given value: Namespace)"
)
_OTHER_CLASS = re.compile(r"\s*(?:- )?Import path \S+ does not correspond to a subclass of \w+$")


def _readable(message: str) -> str:
    """The parser's message without its internal terms.

    Example:
        >>> _readable("Expected a <class 'str'>. Got value: 3")
        'Expected a str. Got value: 3'
    """
    message = re.sub(r'Parser key "([^"]*)":\s*(- )?', r"\1: ", message)
    named = re.match(r"[\w.]+: ", message)
    name = named[0] if named else ""
    lines = message.removeprefix(name).splitlines()
    told = [line for line in lines if not _NOISE.match(line)] or lines
    several = len(told) < len(lines)  # of the classes that an argument may be
    message = name + "\n".join(_reasons(told) if several else told)
    message = _NO_SETTINGS.sub("expected settings by name under init_args, got something else", message)
    message = _NO_CLASS.sub("expected the name of a class under class_path, got something else", message)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message)


def _reasons(lines: Sequence[str]) -> list[str]:
    """Each reason once, and why a class does not fit only if no other reason is given.

    Example:
        >>> _reasons(["Import path a.B does not correspond to a subclass of C", "  - no option x", "  - no option x"])
        ['no option x']
    """
    once = dict[str, str]()
    for line in [line for line in lines if not _OTHER_CLASS.match(line)] or lines:
        once.setdefault(line.strip().removeprefix("- "), line)
    first, *others = once.values()
    return [first.strip().removeprefix("- "), *others]


def _suggestion(message: str, known: Sequence[str]) -> str | None:
    """A known word close to the unknown one in the message, if there is one.

    Example:
        >>> _suggestion("unrecognized arguments: --plan.max_stepz 3", ["plan.seed", "plan.max_steps"])
        '--plan.max_steps'
        >>> _suggestion("argument VERB: invalid choice: 'fitt' (choose from 'fit', 'decode')", [])
        'fit'
    """
    if found := re.search(r"class_path '([\w.]+)':\s+Option '([^']+)' is not accepted", message):
        return _closest(found[2], _arguments_of(found[1]))
    if found := re.search(r"not accept option '([^']+)'|Option '([^']+)' is not accepted$", message):
        return _closest(found[1] or found[2], known)
    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return _closest(found[1], re.findall(r"[\w-]+", found[2]))
    if found := re.search(r"'([^']*)' not among choices \[(.*)\]", message):
        return _closest(found[1], re.findall(r"[\w-]+", found[2]))
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
