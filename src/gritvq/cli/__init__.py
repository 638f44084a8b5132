"""The program ``gritvq``: one verb per job, arguments straight from the constructors.

Every verb ends in a table of what came out and where its files lie. Wrong input ends with one message and exit code 2;
what was there before stays.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from gritvq import __version__
from gritvq.cli import comparing, fitting, images, recommending, semantic
from gritvq.cli.comparing import contest_entries, paper_of

__all__ = ["contest_entries", "main", "paper_of"]

Verb = Callable[[Any, Any], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code: 0 done, 2 wrong input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else list(argv)
    program = " ".join(["gritvq", *(word for word in words[:1] if word in _VERBS)])
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("huggingface_hub", "datasets"):  # their retries; what went wrong is in our message
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.showwarning = _show_warning
    warnings.filterwarnings("ignore", category=FutureWarning)  # for those who write code
    try:
        parser, jobs = _program(words)
        config = parser.parse_args(words)
        own, job = jobs[config.verb]
        job(own, config[config.verb])
    except ImportError as error:
        print(f"{program}: error: this needs {error.name}; install 'gritvq[train,images]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    return 0


def _program(words: Sequence[str]) -> tuple[Any, dict[str, tuple[Any, Verb]]]:
    """The parser of all verbs, and each one's own parser and job; only the verb that is wanted gets its arguments."""
    ArgumentParser = _parser_class()
    parser = ArgumentParser(prog="gritvq", description="Train, use and look at tokenizers.", version=__version__)
    verbs = parser.add_subcommands(title="verbs", metavar="VERB", dest="verb")
    jobs: dict[str, tuple[Any, Verb]] = {}
    known = dict(_VERBS)
    known["fit"] = functools.partial(fitting.fit_arguments, words=words[1:]), fitting.fit
    if words[:1] == ["fit"] and recommending.trains_recommender(words):
        known["fit"] = recommending.fit_recommender_arguments, recommending.fit_recommender
    for name, (describe_arguments, job) in known.items():
        own = ArgumentParser(description=job.__doc__)
        verbs.add_subcommand(name, own, help=(job.__doc__ or "").splitlines()[0])
        if words[:1] == [name]:
            describe_arguments(own)  # in this order, since it may add subcommands itself
        jobs[name] = own, job
    return parser, jobs


def _parser_class() -> Any:
    """The argument parser, with errors of one message instead of a page of usage."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            if not self.exit_on_error:
                return super().error(message, ex)
            parser = getattr(ex, "subcommand_parser", None) or self
            program = parser.prog.replace(" [options]", "")
            unknown = re.search(r"not accept option '([^']+)'", message)
            known = [action.dest for action in parser._actions]
            close = difflib.get_close_matches(unknown[1], known, 1) if unknown else []
            hint = f"did you mean '{close[0]}'? " if close else ""
            return self.exit(2, f"{program}: error: {message}\n{hint}see '{program} --help'\n")

    return Parser


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """Warnings as one line, without the source line that raised them."""
    print(f"warning: {message}", file=sys.stderr)


_VERBS: dict[str, tuple[Callable[[Any], None], Verb]] = {
    "demo": (fitting.demo_arguments, fitting.demo),
    "fit": (fitting.fit_arguments, fitting.fit),
    "validate": (functools.partial(images.measure_arguments, out="runs/validate"), images.validate),
    "inspect": (functools.partial(images.measure_arguments, out="runs/inspect"), images.inspect),
    "encode": (images.encode_arguments, images.encode),
    "decode": (images.decode_arguments, images.decode),
    "export": (images.export_arguments, images.export),
    "compare": (comparing.compare_arguments, comparing.compare),
    "presets": (comparing.presets_arguments, comparing.show_presets),
    "recommend": (recommending.recommend_arguments, recommending.recommend),
    "semantic-ids": (semantic.semantic_ids_arguments, semantic.semantic_ids),
}
