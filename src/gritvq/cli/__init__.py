"""The program ``gritvq``: one verb per job, with arguments from the constructors.

Each verb prints a table of results and the paths of its files. Wrong input ends with one message and exit code 2, and
existing files are not changed.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gritvq import __version__
from gritvq.cli import compare as comparing
from gritvq.cli import doctor as examining
from gritvq.cli import errors, tokens
from gritvq.cli import evaluate as evaluating
from gritvq.cli import fit as fitting
from gritvq.cli import generate as generating
from gritvq.cli import images_from as chaining
from gritvq.cli import measure as measuring
from gritvq.cli import push as pushing
from gritvq.cli import recommend as recommending
from gritvq.cli import semantic_ids as semantic
from gritvq.cli.compare import comparison_entries, paper_of
from gritvq.cli.errors import parser_class
from gritvq.lazy import optional

__all__ = ["comparison_entries", "main", "paper_of"]

Verb = Callable[[Any, Any], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code: 0 done, 2 wrong input, 130 or 143 interrupted, 141 closed pipe."""
    words = sys.argv[1:] if argv is None else list(argv)
    program = _named(words)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("huggingface_hub", "datasets"):  # they log retries; our message has the error
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.showwarning = _show_warning
    warnings.filterwarnings("ignore", category=FutureWarning)  # meant for developers
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be invalid UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(words)
        sys.stdout.flush()
    except SystemExit as stop:  # help, version, or wrong arguments
        return _flushed(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return _flushed(130)
    except BrokenPipeError:  # the reader has closed the pipe, for example `| head`
        return _flushed(141)
    except Exception as error:
        said = errors.explained(error)
        if said is None:
            raise
        print(f"{program}: error: {said}", file=sys.stderr)
        return _flushed(2)
    return 0


def _named(words: Sequence[str]) -> str:
    """Name of the program with the given verb and job or domain, for messages."""
    verb, job = [*words, "", ""][:2]
    jobs: Mapping[str, Mapping[str, Any]] = {"fit": fitting.DOMAINS, "semantic-ids": semantic.JOBS}
    known = verb in _VERBS, job in jobs.get(verb, {})
    return " ".join(["gritvq", *(word for word, is_one in zip((verb, job), known, strict=True) if is_one)])


def _run(words: Sequence[str]) -> None:
    """Parse the arguments and run the verb."""
    if words[:1] == ["fit"]:
        domain, rest = fitting.domain_of(words[1:])
        if domain is not None:
            return fitting.train(parser_class(), domain, rest)
    parser, jobs = _program(words)
    config = parser.parse_args(words)
    own, job = jobs[config.verb]
    job(own, config[config.verb])


def completion_arguments(parser: Any) -> None:
    """Arguments of completion."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="name of the shell")


def completion(parser: Any, config: Any) -> None:
    """Print a completion script for the shell."""
    print(optional("shtab", "train").complete(_program([], whole=True)[0], config.shell))


def _flushed(code: int) -> int:
    """Flush stdout; returns the exit code, which changes if nobody reads the output."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # avoids an error message at exit
        return 141 if isinstance(error, BrokenPipeError) else code or 2
    return code


def _program(words: Sequence[str], whole: bool = False) -> tuple[Any, dict[str, tuple[Any, Verb]]]:
    """The parser of all verbs, and each verb's parser and job; only the given verb gets its arguments."""
    ArgumentParser = parser_class()
    parser = ArgumentParser(prog="gritvq", description="Train, use and inspect tokenizers.", version=__version__)
    verbs = parser.add_subcommands(title="verbs", metavar="VERB", dest="verb")
    jobs: dict[str, tuple[Any, Verb]] = {}
    for name, (describe_arguments, job) in _VERBS.items():
        own = ArgumentParser(description=job.__doc__)
        verbs.add_subcommand(name, own, help=(job.__doc__ or "").splitlines()[0])
        if whole or words[:1] == [name]:
            describe_arguments(own)  # after add_subcommand, since it may add subcommands
        jobs[name] = own, job
    return parser, jobs


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """Print a warning as one line, without its source line."""
    print(f"warning: {message}", file=sys.stderr)


_VERBS: dict[str, tuple[Callable[[Any], None], Verb]] = {
    "demo": (fitting.demo_arguments, fitting.demo),
    "fit": (fitting.fit_arguments, fitting.fit),
    "validate": (functools.partial(measuring.measure_arguments, out="runs/validate"), measuring.validate),
    "evaluate": (evaluating.evaluate_arguments, evaluating.evaluate),
    "inspect": (functools.partial(measuring.measure_arguments, out="runs/inspect"), measuring.inspect),
    "doctor": (examining.doctor_arguments, examining.doctor),
    "encode": (tokens.encode_arguments, tokens.encode),
    "decode": (tokens.decode_arguments, tokens.decode),
    "images-from": (chaining.images_from_arguments, chaining.images_from),
    "generate": (generating.generate_arguments, generating.generate),
    "export": (measuring.export_arguments, measuring.export),
    "compare": (comparing.compare_arguments, comparing.compare),
    "presets": (comparing.presets_arguments, comparing.show_presets),
    "push": (pushing.push_arguments, pushing.push),
    "recommend": (recommending.recommend_arguments, recommending.recommend),
    "semantic-ids": (semantic.semantic_ids_arguments, semantic.semantic_ids),
    "completion": (completion_arguments, completion),
}
