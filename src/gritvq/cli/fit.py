"""The verbs ``fit``, with one subcommand per domain, and ``demo``."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gritvq.cli import fit_images, fit_items, fit_prior, fit_text
from gritvq.cli.errors import read_yaml
from gritvq.cli.settings import check_words, combined, given_settings, parts_of, shipped, whole
from gritvq.quantizers import presets
from gritvq.training.run_folder import RunFolder

__all__ = [
    "DOMAINS",
    "configuration",
    "demo",
    "demo_arguments",
    "domain_of",
    "fit",
    "fit_arguments",
    "train",
    "train_with",
]

# What fit trains, each in a module of its own. A prior is trained on the tokens of images or texts.
DOMAINS = {"images": fit_images, "items": fit_items, "text": fit_text, "prior": fit_prior}
_DEMO = "# made by gritvq demo\n"


def fit_arguments(parser: Any) -> None:
    """The domains of fit."""
    domains = parser.add_subcommands(title="domains", metavar="DOMAIN", dest="domain", required=False)
    for name, module in DOMAINS.items():
        domains.add_subcommand(name, domain_parser(type(parser), name), help=_first_line(module))


def domain_of(words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The domain of the arguments of ``fit``, and the arguments after its name.

    Without a name it is ``items`` if the configuration file has the key ``backbone``, ``text`` for ``model``, ``prior``
    for ``prior``, else ``images``. It is None for help, or if the first argument is not a domain.
    """
    if words and words[0] in DOMAINS:
        return words[0], words[1:]
    if not words or not words[0].startswith("-") or words[0] in ("-h", "--help"):
        return None, words
    keys = {"backbone": "items", "model": "text", "prior": "prior"}
    found = [domain for key, domain in keys.items() if key in _configured(words)]
    return found[0] if found else "images", words


def _configured(words: Sequence[str]) -> dict[str, Any]:
    """Content of the configuration file in the arguments; empty if there is no readable one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    check_words(words)
    path = parser.parse_known_args(list(words))[0].config
    content: Any = None
    with contextlib.suppress(OSError, yaml.YAMLError, UnicodeError):  # the parser reports it
        content = None if path is None else read_yaml(Path(path))
    return content if isinstance(content, dict) else {}


def fit(parser: Any, config: Any) -> None:
    """Train a model: a tokenizer of images, a recommender of items, a model of text, or a prior of tokens."""
    raise ValueError(f"expected what to train, got nothing; say 'gritvq fit {' or '.join(DOMAINS)}'")


def train(parser_class: Any, domain: str, words: Sequence[str]) -> None:
    """Train a model of a domain."""
    DOMAINS[domain].fit(*configuration(parser_class, domain, words))


def configuration(parser_class: Any, domain: str, words: Sequence[str]) -> tuple[Any, Any, dict[str, Any]]:
    """The parser of a domain, the complete configuration, and the given settings."""
    parser, defaults = domain_parser(parser_class, domain), shipped(domain)
    if domain == "images" and (preset := _configured(words).get("preset")) in presets.__all__:
        quantizer = {"class_path": f"gritvq.{preset}"}  # without the default quantizer's arguments
        parser.set_defaults({"tokenizer.quantizer": quantizer})
        defaults = combined(defaults, {"tokenizer": {"quantizer": quantizer}})
    given = given_settings(parser, words)
    return parser, whole(parser, combined(defaults, given), shipped(domain)), given


def demo_arguments(parser: Any) -> None:
    """Arguments of demo."""
    settings = shipped("demo")
    size = settings["tokenizer"]["quantizer"]["init_args"]["codebook_size"]
    parser.add_argument("--out", type=str, default=settings["out"], help="folder; replaced if it holds a demo")
    parser.add_argument("--steps", type=int, default=settings["plan"]["max_steps"], help="optimizer steps")
    parser.add_argument("--codebook_size", type=int, default=size, help="number of codes K")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")


def demo(parser: Any, config: Any) -> None:
    """Train a small tokenizer on bundled photographs and plot reconstructions; no data needed."""
    path = RunFolder(config.out).config
    if path.is_file() and not path.read_text(encoding="utf-8").startswith(_DEMO):
        raise ValueError(
            f"expected a new folder or that of a demo, got {config.out}, a run of fit; choose another --out"
        )
    plan = {"max_steps": config.steps, "seed": config.seed}
    chosen: dict[str, Any] = {"plan": plan, "codebook_size": config.codebook_size}
    chosen |= {"data": {"seed": config.seed}, "out": config.out, "overwrite": path.is_file()}
    train_with(type(parser), "images", combined(shipped("demo"), chosen), note=_DEMO)


def train_with(parser_class: Any, domain: str, settings: dict[str, Any], **more: Any) -> None:
    """Train a model of a domain with these settings, completed by the shipped ones."""
    own, defaults = domain_parser(parser_class, domain), shipped(domain)
    DOMAINS[domain].fit(own, whole(own, combined(defaults, settings), defaults), {}, **more)


def domain_parser(parser_class: Any, domain: str) -> Any:
    """The parser of a domain; its help shows the shipped defaults."""
    module = DOMAINS[domain]
    parser = parser_class(prog=f"gritvq fit {domain}", description=module.fit.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    module.arguments(parser)
    defaults = shipped(domain)
    parser.set_defaults({**parts_of(defaults), "out": defaults["out"]})
    return parser


def _first_line(module: Any) -> str:
    return (module.fit.__doc__ or "").splitlines()[0]
