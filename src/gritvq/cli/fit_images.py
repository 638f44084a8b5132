"""``gritvq fit images``: training of tokenizers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from gritvq.cli.output import arguments_of, console, number_rows, report
from gritvq.cli.run_folder import (
    Place,
    check_settings,
    extras_of,
    open_run,
    parts_of_run,
    place_of,
    run_arguments,
    run_training,
    steps_done,
)
from gritvq.quantizers import presets

__all__ = ["arguments", "fit", "spread"]

_PARTS = ("encoder", "quantizer", "decoder")
_SHORT = {
    "codebook_size": "number of codes K of the quantizer",
    "dim": "latent size D of encoder, quantizer and decoder",
    "factor": "pixels per token and side, of encoder and decoder",
    "channels": "color channels of data, encoder and decoder: 1 or 3",
}


class _Preset(argparse.Action):
    """``--preset NAME`` is ``--tokenizer.quantizer gritvq.NAME``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace[self.dest] = values
        quantizer = next(action for action in parser._actions if action.dest == "tokenizer.quantizer")
        quantizer(parser, namespace, f"gritvq.{values}", "--tokenizer.quantizer")


def arguments(parser: Any) -> None:
    """Arguments of tokenizer, data, task and plan, from their constructors."""
    import gritvq.images.discriminators  # noqa: F401  (the parser knows short names of imported classes alone)
    from gritvq.images.data import ImageData
    from gritvq.images.task import TokenizerTask
    from gritvq.images.tokenizer import ImageTokenizer
    from gritvq.training import TrainingPlan

    short = parser.add_argument_group("Common settings", "they set the same arguments of the parts below")
    short.add_argument(
        "--preset",
        action=_Preset,
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
    run_arguments(parser, "tokenizer (folder or Hub name)")


def spread(config: Any, given: Mapping[str, Any]) -> None:
    """Copy the common settings to every part that has them.

    Args:
        config: The whole configuration.
        given: The given settings.

    Raises:
        ValueError: If no part has a setting, or a part has another value.
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
        takers = {
            f"tokenizer.{key}": part.init_args for key, part in parts.items() if name in part.get("init_args", {})
        }
        if not takers or (name == "codebook_size" and "tokenizer.quantizer" not in takers):
            raise ValueError(
                f"expected parts that take {name}, got {', '.join(part.class_path for part in parts.values())}; set it "
                "where their own parts take it"
            )
        if name == "channels":
            takers["data"] = config.data
        for place, own in takers.items():
            other = _given_at(given, place, name)
            if other not in (None, value):
                raise ValueError(
                    f"expected one value of {name}, got {value} and {place}.{name} {other}; leave one of them out"
                )
            own[name] = value
    for name in ("preset", *_SHORT):
        config.pop(name)


def _given_at(given: Mapping[str, Any], place: str, name: str) -> Any:
    for key in place.split("."):
        given = given.get(key, {})
    return given.get("init_args", given).get(name)


def fit(parser: Any, config: Any, given: Mapping[str, Any], note: str = "") -> None:
    """Train a tokenizer of images."""
    from gritvq.images.task import TokenizerTask
    from gritvq.training import TrainingPlan
    from gritvq.training.launch import Launch
    from gritvq.training.run import seed_everything

    spread(config, given)
    launch = Launch(TrainingPlan(**arguments_of(config.plan)))
    place = place_of(config, launch)
    check_settings(parser, config, place)
    seed_everything(config.plan.seed)
    parts = parts_of_run(parser, config)
    parts.data.setup("fit")
    task = TokenizerTask(parts.tokenizer, **arguments_of(parts.task))
    done = steps_done(task, parts.plan, config, place)
    task.check_data(parts.data)  # before an old run is replaced
    open_run(parser, config, place, done, note=note)
    _fit_and_report(task, parts.data, parts.plan, place, done, extras_of(parser, config))


def _fit_and_report(task: Any, data: Any, plan: Any, place: Place, done: int, extras: Mapping[str, Any]) -> None:
    from gritvq.files import write_json
    from gritvq.images import plots as pictures
    from gritvq.images.evaluation import evaluate
    from gritvq.training.callbacks import collapse_advice
    from gritvq.training.data import own_share

    tokenizer, run = task.tokenizer, place.run
    if place.launch.first:
        console().print(f"data: {data.summary()}", markup=False, highlight=False, soft_wrap=True)
        write_json(run.data, data.describe())
    trainer, taken = run_training(task, data, plan, place, done, **extras)
    device = trainer.strategy.root_device  # Lightning has moved the model to the CPU
    numbers, counts = evaluate(tokenizer.eval(), own_share(data.val_dataloader()), device=device)
    if not trainer.is_global_zero:
        return
    images = next(iter(data.val_dataloader()))[:16]
    pictures.reconstruction_grid(images, tokenizer(images.to(device)).reconstruction, run.reconstructions)
    pictures.usage_plot(counts, run.usage)
    pictures.codebook_picture(tokenizer, run.codebook, counts)
    write_json(run.metrics, numbers)
    report(
        "held-out images",
        [*number_rows(numbers), ("training time", taken)],
        {
            "tokenizer": run.tokenizer,
            "originals and reconstructions": run.reconstructions,
            "codebook": run.codebook,
            "usage": run.usage,
            "logs": run.logs,
            "checkpoints": run.checkpoints,
        },
    )
    advice = collapse_advice(numbers["usage"], max(tokenizer.quantizer.codebook_sizes), numbers["tokens"])
    if advice:
        print(advice, file=sys.stderr)
