"""The verbs ``demo`` and ``fit``: training."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.cli.output import arguments_of, console, number_rows, report
from gritvq.cli.run_folder import (
    Place,
    check_settings,
    extra_arguments,
    extras_of,
    fresh_folder,
    open_run,
    place_of,
    run_training,
)
from gritvq.files import regular_file
from gritvq.quantizers import presets

__all__ = ["demo", "demo_arguments", "fit", "fit_arguments"]


def demo_arguments(parser: Any) -> None:
    """What little a first try needs."""
    parser.add_argument("--out", type=str, default="runs/demo", help="folder of the run; replaced if it holds a demo")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps")
    parser.add_argument("--codebook_size", type=int, default=1024, help="number of codes K")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")


def demo(parser: Any, config: Any) -> None:
    """Train a small tokenizer on photographs and show what it does; no data needed."""
    from gritvq.images.data import ImageData
    from gritvq.images.networks import ImageDecoder, ImageEncoder
    from gritvq.images.task import TokenizerTask
    from gritvq.images.tokenizer import ImageTokenizer
    from gritvq.training import TrainingPlan
    from gritvq.training.launch import Launch
    from gritvq.training.run import seed_everything

    if (Path(config.out) / "config.yaml").exists():
        raise ValueError(
            f"expected a new folder or that of a demo, got {config.out}, a run of fit; choose another --out"
        )
    plan = TrainingPlan(max_steps=config.steps, seed=config.seed, validate_every=0, checkpoint_every=0)
    launch = Launch(plan)
    seed_everything(config.seed)
    quantizer = presets.grit_vq(16, config.codebook_size)
    task = TokenizerTask(ImageTokenizer(ImageEncoder(16), quantizer, ImageDecoder(16)))
    data = ImageData("photographs", batch_size=16)
    _fit_and_report(task, data, plan, Place(fresh_folder(config.out, overwrite=True), None, launch, False))


_PARTS: dict[str, tuple[str, dict[str, int]]] = {
    "encoder": ("gritvq.images.ImageEncoder", {"dim": 16}),
    "quantizer": ("gritvq.grit_vq", {"dim": 16, "codebook_size": 4096}),
    "decoder": ("gritvq.images.ImageDecoder", {"dim": 16}),
}


_SHORT = {
    "codebook_size": "codes K of the quantizer",
    "dim": "latent size D of encoder, quantizer and decoder",
    "factor": "pixels per token and side, of encoder and decoder",
    "channels": "colour channels of data, encoder and decoder: 1 or 3",
}


def fit_arguments(parser: Any, words: Sequence[str] = ()) -> None:
    """ImageTokenizer, data, task and plan, straight from their constructors.

    A parser that knows another class for a part than the one that ``words`` name would hand its settings on to that
    class wherever they have the same name. So the defaults are those of the classes that are named.
    """
    from gritvq.images.data import ImageData
    from gritvq.images.task import TokenizerTask
    from gritvq.images.tokenizer import ImageTokenizer
    from gritvq.training import TrainingPlan

    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    short = parser.add_argument_group("What people choose", "short for the same settings of the parts below")
    short.add_argument(
        "--preset",
        default=None,
        choices=presets.__all__,
        help="published recipe of the quantizer; 'gritvq presets NAME' shows its arguments, which "
        "--tokenizer.quantizer.ARGUMENT sets",
    )
    for name, said in _SHORT.items():
        short.add_argument(f"--{name}", type=int | None, default=None, help=said)
    parser.add_class_arguments(ImageTokenizer, "tokenizer")
    parser.add_class_arguments(ImageData, "data")
    parser.add_class_arguments(TokenizerTask, "task", skip={"tokenizer"}, instantiate=False)
    parser.add_class_arguments(TrainingPlan, "plan")
    extra_arguments(parser)
    parser.add_argument("--out", type=str, default="runs/fit", help="folder of the run")
    parser.add_argument(
        "--resume", type=str | None, default=None, help="checkpoint to go on from, or 'last' for the run's own"
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        default=None,
        help="tokenizer (folder or Hub name) whose weights a new run starts from",
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="whether an existing run may be replaced")
    try:
        named = _named_parts(words)
    except ValueError as error:
        parser.error(str(error))
    for part, (default, sizes) in _PARTS.items():
        path = named.get(part, default)
        wanted = _required(path)
        if wanted is not None:
            given = {name: size for name, size in sizes.items() if name in wanted}
            parser.set_defaults({f"tokenizer.{part}": {"class_path": path, "init_args": given}})


def _named_parts(words: Sequence[str]) -> dict[str, str]:
    """The class that the arguments of ``fit`` give each part of the tokenizer in the end.

    Raises:
        ValueError: If a configuration is no regular file.
    """
    import yaml

    named: dict[str, str] = {}

    def note(part: str, value: Any) -> None:
        value = value.get("class_path") if isinstance(value, dict) else value
        if part in _PARTS and isinstance(value, str):
            named[part] = value

    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        value = value if equals else "".join(words[place + 1 : place + 2])
        if name == "--preset":
            note("quantizer", f"gritvq.{value}")
            continue
        if name in ("--config", "--tokenizer") and Path(value).exists():
            regular_file(value, "a configuration file")  # it is read twice, which a pipe does not allow
        try:
            if name in ("--config", "--tokenizer"):
                content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
                parts = content.get("tokenizer", {}) if name == "--config" else content
                if name == "--config" and isinstance(content.get("preset"), str):
                    note("quantizer", f"gritvq.{content['preset']}")
                for part, each in parts.items():
                    note(part, each)
            elif name.startswith("--tokenizer."):
                part, _, rest = name.removeprefix("--tokenizer.").partition(".")
                if rest in ("", "class_path"):
                    note(part, yaml.safe_load(value))
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            continue  # the parser says what is wrong with it
    return named


def _required(path: str) -> list[str] | None:
    """Names of the arguments that a class or function has to be given; None if there is no such class."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    parameters = inspect.signature(found).parameters.items()
    return [name for name, parameter in parameters if parameter.default is inspect.Parameter.empty]


def spread(config: Any) -> None:
    """Write the short settings where they belong: into every part that takes them.

    Raises:
        ValueError: If a preset or setting has no place.
    """
    parts = {name: config.tokenizer[name] for name in _PARTS}
    if config.preset is not None and parts["quantizer"].class_path != f"gritvq.{config.preset}":
        raise ValueError(
            f"expected one quantizer, got the preset {config.preset!r} and {parts['quantizer'].class_path}; leave one "
            "of them out"
        )
    for name in _SHORT:
        value = config[name]
        if value is None:
            continue
        takers = [part for part in parts.values() if name in part.get("init_args", {})]
        if not takers or (name == "codebook_size" and parts["quantizer"] not in takers):
            raise ValueError(
                f"expected parts that take {name}, got {', '.join(part.class_path for part in parts.values())}; set it "
                "where their own parts take it"
            )
        for part in takers:
            part.init_args[name] = value
        if name == "channels":
            config.data.channels = value
    for name in ("preset", *_SHORT):
        config.pop(name)  # the parts say it now


def fit(parser: Any, config: Any) -> None:
    """Train a tokenizer."""
    from gritvq.images.task import TokenizerTask
    from gritvq.images.tokenizer import ImageTokenizer
    from gritvq.training import TrainingPlan
    from gritvq.training.launch import Launch
    from gritvq.training.run import check_checkpoint, seed_everything

    spread(config)
    launch = Launch(TrainingPlan(**arguments_of(config.plan)))
    place = place_of(config, launch)
    check_settings(parser, config, place)
    seed_everything(config.plan.seed)
    parts = parser.instantiate(config)
    parts.data.setup("fit")
    task = TokenizerTask(parts.tokenizer, **arguments_of(parts.task))
    done = 0
    if place.resume is not None:
        done = check_checkpoint(task, parts.plan, place.resume)
    elif config.init_from is not None:
        task.start_from(ImageTokenizer.from_pretrained(config.init_from))
    _check_picture(task.tokenizer, parts.data.shape)
    open_run(parser, config, place, done)
    _fit_and_report(task, parts.data, parts.plan, place, done, extras_of(parser, config))


def _check_picture(tokenizer: Any, shape: tuple[int, int, int]) -> None:
    """Refuse pictures that the tokenizer cannot take, before an old run makes way."""
    import torch

    from gritvq.component import eval_mode

    if shape[0] != tokenizer.channels:
        raise ValueError(
            f"expected data.channels={tokenizer.channels} as the tokenizer's encoder has, got {shape[0]}; make them "
            "equal"
        )
    with torch.no_grad(), torch.random.fork_rng(), eval_mode(tokenizer):
        tokenizer(torch.zeros(1, *shape))


def _fit_and_report(
    task: Any, data: Any, plan: Any, place: Place, done: int = 0, extras: Mapping[str, Any] | None = None
) -> None:
    from gritvq.files import write_json
    from gritvq.images import plots as pictures
    from gritvq.images.evaluation import evaluate
    from gritvq.training.callbacks import collapse_advice

    tokenizer, out = task.tokenizer, place.out
    if place.launch.first:
        console().print(f"data: {data.summary()}", markup=False, highlight=False, soft_wrap=True)
        write_json(out / "data.json", data.describe())
    started = time.perf_counter()
    trainer = run_training(task, data, plan, place, done, **(extras or {}))
    minutes = (time.perf_counter() - started) / 60
    share = itertools.islice(data.val_dataloader(), trainer.global_rank, None, trainer.world_size)
    device = trainer.strategy.root_device  # Lightning has taken the model off it
    numbers, counts = evaluate(tokenizer.eval(), share, device=device)
    if not trainer.is_global_zero:
        return
    images = next(iter(data.val_dataloader()))[:16]
    pictures.reconstruction_grid(images, tokenizer(images.to(device)).reconstruction, out / "reconstructions.png")
    pictures.usage_plot(counts, out / "usage.png")
    pictures.codebook_picture(tokenizer, out / "codebook.png", counts)
    write_json(out / "metrics.json", numbers)
    report(
        "held-out images",
        [*number_rows(numbers), ("training time", f"{minutes:.1f} minutes")],
        {
            "tokenizer": out / "tokenizer",
            "originals and reconstructions": out / "reconstructions.png",
            "codebook": out / "codebook.png",
            "usage": out / "usage.png",
            "logs": out / "logs",
            "checkpoints": out / "checkpoints",
        },
    )
    advice = collapse_advice(numbers["usage"], max(tokenizer.quantizer.codebook_sizes), numbers["tokens"])
    if advice:
        print(advice, file=sys.stderr)
