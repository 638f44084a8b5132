"""The verb ``images-from``: from a folder of pictures to tokenizer, tokens, prior and samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gritvq.cli.errors import parser_class, read_yaml
from gritvq.cli.evaluate import check_evaluation, evaluate, evaluate_arguments
from gritvq.cli.fit import train_with
from gritvq.cli.generate import generate, generate_arguments
from gritvq.cli.output import report
from gritvq.cli.settings import combined, shipped
from gritvq.cli.tokens import encode, encode_arguments
from gritvq.lazy import optional
from gritvq.tokens.files import MANIFEST
from gritvq.training.run_folder import RunFolder

__all__ = ["images_from", "images_from_arguments"]

_STAGES = ("tokenizer", "tokens", "prior", "samples", "evaluation")
_OF_TRAINING = ("flip", "ten_crops")  # arguments of encode
_CROPS = 300  # random squares of each photograph


def images_from_arguments(parser: Any) -> None:
    """Arguments of images-from."""
    parser.add_argument(
        "images", type=str, help="folder of pictures, Parquet file or folder, Hub data set, or 'photographs'"
    )
    parser.add_argument(
        "--config",
        type=str | None,
        default=None,
        help="YAML file with settings of the stages: tokenizer (of fit images), tokens (of encode), prior (of fit "
        "prior), samples (of generate) and evaluation (of evaluate)",
    )
    parser.add_argument("--size", type=int | None, default=None, help="height and width of the pictures, in pixels")
    parser.add_argument(
        "--classes_from",
        default=None,
        choices=["labels", "folders", "names"],
        help="classes of the pictures, see encode; 'labels' if not given, of the photographs 'names'",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--out", type=str, default="runs/images-from", help="folder of all results")


def images_from(parser: Any, config: Any) -> None:
    """Train a tokenizer and a prior on pictures, and generate new ones.

    If it is interrupted, the same command continues it: finished stages are not repeated.
    """
    optional("transformers", "priors")  # before hours of training a tokenizer
    out, settings, splits = Path(config.out), _settings(config), _splits(config.images)
    samples, evaluation = out / "samples", out / "evaluation.json"
    judged = {**(settings["evaluation"] or {}), "out": str(evaluation)}
    words = [str(samples / "pictures"), config.images]
    _, drawn = _parsed(generate_arguments, [str(out / "prior")], settings["samples"])  # before hours of training
    if settings["evaluation"] and not evaluation.is_file():
        check_evaluation(*_parsed(evaluate_arguments, words, judged), drawn.num)
    _begin(out, settings)
    tokenizer, prior = RunFolder(out / "tokenizer"), RunFolder(out / "prior")
    _fit("images", tokenizer, settings["tokenizer"])
    held_out = _encode(config.images, splits, tokenizer, out, settings["tokens"])
    data = {"train": str(out / "tokens"), "validation": held_out}
    _fit("prior", prior, combined({"tokenizer": str(tokenizer.tokenizer), "data": data}, settings["prior"]))
    if not (samples / "grid.png").is_file():
        given = {**settings["samples"], "out": str(samples), "overwrite": True}  # of those that were interrupted
        _run(generate_arguments, generate, [str(prior.path)], given)
    if settings["evaluation"] and not evaluation.is_file():
        _run(evaluate_arguments, evaluate, words, judged)
    numbers = {name: json.loads(run.metrics.read_text()) for name, run in (("tokenizer", tokenizer), ("prior", prior))}
    report(
        "from pictures to pictures",
        [
            ("PSNR of reconstructions", f"{numbers['tokenizer']['psnr']:.2f} dB"),
            ("codes in use", f"{100 * numbers['tokenizer']['usage']:.1f} %"),
            ("bits per pixel at fixed length", f"{numbers['tokenizer']['bits_per_pixel']:.3f}"),
            ("bits per pixel under the prior", f"{numbers['prior']['bits_per_pixel']:.3f}"),
        ],
        {
            "tokenizer": tokenizer.path,
            "tokens": out / "tokens",
            "prior": prior.path,
            "reconstructions": tokenizer.reconstructions,
            "samples": samples / "grid.png",
        },
    )


def _settings(config: Any) -> dict[str, Any]:
    """Settings of all stages: those of the file and the arguments, completed by the shipped ones.

    Raises:
        ValueError: If the file is not readable or has other keys.
    """
    given: Any = {}
    if config.config is not None:
        try:
            given = read_yaml(Path(config.config))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"expected a YAML file, got {config.config} ({error}); give another") from error
    default = shipped("images_from")
    if not isinstance(given, dict) or not set(given) <= set(default):
        raise ValueError(
            f"expected settings by name among {', '.join(default)}, got others in {config.config}; correct their names"
        )
    settings = combined(default, given)
    size = settings.pop("size") if config.size is None else config.size
    photographs = config.images == "photographs"
    classes_from = config.classes_from or ("names" if photographs else "labels")
    where = {"path": config.images, "size": size, "seed": config.seed}
    plan = {"seed": config.seed}
    settings["tokenizer"] = combined({"data": where, "plan": plan}, settings["tokenizer"])
    crops = {"random_crops": _CROPS, "seed": config.seed} if photographs else {}
    settings["tokens"] = {"size": size, "classes_from": classes_from, **crops, **settings["tokens"]}
    settings["prior"] = combined({"data": {"seed": config.seed}, "plan": plan}, settings["prior"])
    settings["samples"] = {"seed": config.seed, **settings["samples"]}
    return {stage: settings[stage] for stage in _STAGES}


def _begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or check that it was begun with these settings.

    Raises:
        ValueError: If it holds something else.
    """
    from gritvq.files import holds_files, replacing

    kept = out / "images-from.yaml"
    if kept.is_file():
        if read_yaml(kept) != settings:
            raise ValueError(f"expected the settings that {kept} has, got others; choose another --out")
        return
    if out.exists() and (not out.is_dir() or holds_files(out)):
        raise ValueError(f"expected a new or empty folder, got {out}; choose another --out")
    with replacing(kept) as scratch:
        scratch.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")


def _fit(domain: str, run: RunFolder, settings: dict[str, Any]) -> None:
    """Train, or continue, unless it is done."""
    if run.metrics.is_file():
        return
    run.path.mkdir(parents=True, exist_ok=True)
    given = {**settings, "out": str(run.path)}
    given |= {"resume": "last"} if run.last_checkpoint.is_file() else {"overwrite": True}
    train_with(parser_class(), domain, given)


def _splits(images: str) -> list[str]:
    """Names of the splits of pictures.

    Raises:
        ValueError: If there are no pictures.
    """
    from gritvq.images.files import find_splits

    return ["train", "validation"] if images == "photographs" else list(find_splits(images).names)


def _encode(
    images: str, splits: Sequence[str], tokenizer: RunFolder, out: Path, settings: Mapping[str, Any]
) -> str | None:
    """Write the tokens of the training pictures, and of held-out ones where names or squares determine them.

    Mirror images and ten crops are for training only: what is held out is measured as it is.

    Returns:
        The folder of the latter.
    """
    parts = (
        {"tokens": "train", "tokens-held-out": "held_out"} if "train" in splits and splits[1:] else {"tokens": "all"}
    )
    for folder, split in parts.items():
        if not (out / folder / MANIFEST).is_file():  # encode goes on with what was interrupted
            where = {"tokenizer": str(tokenizer.tokenizer), "split": split, "out": str(out / folder)}
            left_out = _OF_TRAINING if split == "held_out" else ()
            own = {name: value for name, value in settings.items() if name not in left_out}
            _run(encode_arguments, encode, [images], {"rows_per_file": 10_000, **own, **where})
    return str(out / "tokens-held-out") if len(parts) > 1 else None


def _run(arguments: Callable[[Any], None], job: Callable[[Any, Any], None], words: Sequence[str], given: Any) -> None:
    """A verb with these settings."""
    job(*_parsed(arguments, words, given))


def _parsed(arguments: Callable[[Any], None], words: Sequence[str], given: Any) -> tuple[Any, Any]:
    """The parser of a verb, and these settings of it."""
    own = parser_class()()
    arguments(own)
    return own, own.parse_args([*words, *(f"--{name}={_word(value)}" for name, value in given.items())])


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
