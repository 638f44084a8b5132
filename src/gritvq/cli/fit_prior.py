"""``gritvq fit prior``: training of generative models of an image tokenizer's tokens."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gritvq.cli.output import arguments_of, report, tracked, trusted_argument
from gritvq.cli.run_folder import (
    check_settings,
    extras_of,
    open_run,
    place_of,
    run_arguments,
    run_training,
    steps_done,
)
from gritvq.cli.settings import class_of

if TYPE_CHECKING:
    from gritvq.images.tokenizer import ImageTokenizer
    from gritvq.priors import Prior, TokenData

__all__ = ["arguments", "fit"]

_SHOWN = 64


def arguments(parser: Any) -> None:
    """Prior, tokenizer, tokens, task and plan."""
    from gritvq.priors import Prior, PriorTask, TokenData
    from gritvq.training import TrainingPlan

    parser.add_argument("--tokenizer", type=str, required=True, help="tokenizer folder or Hub name; the run keeps it")
    parser.add_subclass_arguments(Prior, "prior", skip={"layout", "num_classes"}, instantiate=False)
    layout = parser.add_argument_group("Sequences", "how tokens follow each other, see gritvq.tokens.TokenLayout")
    layout.add_argument(
        "--interleaving", default="parallel", choices=["parallel", "flat", "delay"], help="channels of a position"
    )
    layout.add_argument("--order", default="raster", choices=["raster", "snake"], help="positions within a grid")
    parser.add_class_arguments(TokenData, "data", instantiate=False)
    parser.add_class_arguments(PriorTask, "task", skip={"prior", "num_elements"}, instantiate=False)
    parser.add_class_arguments(TrainingPlan, "plan")
    trusted_argument(parser)
    run_arguments(parser, "prior (folder)")


def fit(parser: Any, config: Any, given: Mapping[str, Any]) -> None:
    """Train a prior: a generative model of an image tokenizer's tokens."""
    from gritvq.files import write_json
    from gritvq.images.tokenizer import ImageTokenizer
    from gritvq.priors import Prior, PriorTask, TokenData
    from gritvq.tokens import TokenLayout
    from gritvq.training import TrainingPlan
    from gritvq.training.launch import Launch
    from gritvq.training.run import seed_everything

    plan = TrainingPlan(**arguments_of(config.plan))
    place = place_of(config, Launch(plan))
    run = place.run
    check_settings(parser, config, place)
    seed_everything(config.plan.seed)
    tokenizer = ImageTokenizer.from_pretrained(config.tokenizer, config.trusted)
    fingerprint = tokenizer.fingerprint()
    height, width = _check_origin(config.data, tokenizer, fingerprint)
    data = TokenData(**arguments_of(config.data))
    grid = (-(-height // tokenizer.factor), -(-width // tokenizer.factor))
    layout = TokenLayout.of(tokenizer.quantizer, grid, interleaving=config.interleaving, order=config.order)
    settings = arguments_of(config.prior.get("init_args", {}))
    prior = class_of(config.prior.class_path)(layout, num_classes=data.num_classes, **settings)
    prior.fingerprint = fingerprint
    task = PriorTask(prior, num_elements=height * width, **arguments_of(config.task))
    task.about = {"classes": data.classes, "height": height, "width": width}
    task.check_data(data)
    load = functools.partial(Prior.from_pretrained, layout=layout, fingerprint=fingerprint, trusted=config.trusted)
    done = steps_done(task, plan, config, place, load)
    open_run(parser, config, place, done)
    if place.launch.first:
        tokenizer.save_pretrained(run.tokenizer)
        write_json(run.data, {**task.about, "rows": data.num_rows})
    trainer, taken = run_training(task, data, plan, place, done, **extras_of(parser, config))
    if not trainer.is_global_zero:
        return
    prior = prior.to(trainer.strategy.root_device).eval()
    nats = _nats_per_sample(prior, data)
    numbers = {"nats_per_token": nats / prior.num_tokens, "bits_per_pixel": nats / (math.log(2) * height * width)}
    write_json(run.metrics, numbers)
    _draw_samples(prior, tokenizer, (height, width), run.samples)
    report(
        "held-out tokens",
        [
            ("nats per token", f"{numbers['nats_per_token']:.3f}"),
            ("bits per pixel", f"{numbers['bits_per_pixel']:.4f}"),
            ("classes", "none" if data.classes is None else f"{len(data.classes):,}"),
            ("training time", taken),
        ],
        {"prior": run.prior, "tokenizer": run.tokenizer, "samples": run.samples, "logs": run.logs},
    )


def _check_origin(data: Any, tokenizer: ImageTokenizer, fingerprint: str) -> tuple[int, int]:
    """Height and width of the pictures that the tokens are of, in pixels, from the first row of each file.

    Raises:
        ValueError: If the tokens are those of another tokenizer, or not of pictures.
    """
    from gritvq.cli.images import size_of
    from gritvq.tokens import iter_tokens, token_files

    sizes = set()
    for paths in (data.train, data.validation):
        for path in [] if paths is None else [paths] if isinstance(paths, str) else paths:
            for file in token_files(path):
                row = next(iter_tokens(file))
                made_by = row.columns.get("tokenizer", fingerprint)
                if made_by != fingerprint:
                    raise ValueError(
                        f"expected tokens of this tokenizer, fingerprint {fingerprint[:12]}, got {file} of another, "
                        f"{str(made_by)[:12]}; encode the pictures again, or give the tokenizer that made them"
                    )
                sizes.add(size_of(row))
    if len(sizes) > 1:
        raise ValueError(f"expected pictures of one size, got {sorted(sizes)}; encode them with --size")
    return sizes.pop()


def _nats_per_sample(prior: Prior, data: TokenData) -> float:
    """Mean negative log-probability of the held-out rows."""
    import torch

    total, count = 0.0, 0
    device = prior.present.device
    with torch.no_grad():
        for indices, condition in tracked(list(data.val_dataloader()), "measuring, block"):
            classes = None if condition is None else condition.to(device)
            total -= float(prior.log_prob(indices.to(device), classes).double().sum())
            count += len(indices)
    return total / count


def _draw_samples(prior: Prior, tokenizer: ImageTokenizer, size: tuple[int, int], path: Any) -> None:
    """A grid of samples, of all classes in turn."""
    import torch

    from gritvq.images.plots import picture_grid

    condition = None if prior.num_classes is None else torch.arange(_SHOWN) % prior.num_classes
    indices = prior.sample(_SHOWN, condition, generator=0)
    picture_grid(tokenizer.fold().decode(indices.cpu(), size), path)
