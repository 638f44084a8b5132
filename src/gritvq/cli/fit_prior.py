"""``gritvq fit prior``: training of generative models of a tokenizer's tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
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
from gritvq.cli.settings import built, class_of

if TYPE_CHECKING:
    from gritvq.cli.priors import Held, PriorDomain
    from gritvq.priors import Prior, TokenData
    from gritvq.tokens import TokenRow

__all__ = ["arguments", "fit"]


def arguments(parser: Any) -> None:
    """Prior, tokenizer, tokens, task and plan."""
    from gritvq.priors import (
        Prior,
        PriorTask,
        TokenData,
        masked,  # noqa: F401  (its class can be named without the module, like that of the next line)
        next_scale,  # noqa: F401
    )
    from gritvq.training import TrainingPlan

    parser.add_argument("--tokenizer", type=str, required=True, help="tokenizer folder or Hub name; the run keeps it")
    parser.add_subclass_arguments(Prior, "prior", skip={"layout", "num_classes"}, instantiate=False)
    layout = parser.add_argument_group("Sequences", "how tokens follow each other, see gritvq.tokens.TokenLayout")
    layout.add_argument(
        "--interleaving", default="parallel", choices=["parallel", "flat", "delay"], help="channels of a position"
    )
    layout.add_argument("--order", default="raster", choices=["raster", "snake"], help="positions within a grid")
    parser.add_class_arguments(TokenData, "data", skip={"length", "check"}, instantiate=False)
    parser.add_class_arguments(PriorTask, "task", skip={"prior", "num_elements"}, instantiate=False)
    parser.add_class_arguments(TrainingPlan, "plan")
    trusted_argument(parser)
    run_arguments(parser, "prior (folder)")


def fit(parser: Any, config: Any, given: Mapping[str, Any]) -> None:
    """Train a prior: a generative model of the tokens of pictures or texts."""
    from gritvq.cli.priors import domain_of
    from gritvq.files import write_json
    from gritvq.priors import Prior, PriorTask, TokenData
    from gritvq.training import TrainingPlan
    from gritvq.training.launch import Launch
    from gritvq.training.run import seed_everything

    plan = TrainingPlan(**arguments_of(config.plan))
    place = place_of(config, Launch(plan))
    run = place.run
    check_settings(parser, config, place)
    seed_everything(config.plan.seed)
    domain = domain_of(config.tokenizer, config.trusted)
    fingerprint = domain.tokenizer.fingerprint()
    check = functools.partial(_check_row, domain, fingerprint)
    _check_first(config.data, check)
    data = TokenData(**arguments_of(config.data), length=domain.length, check=check)
    layout = domain.layout(interleaving=config.interleaving, order=config.order)
    settings = {name: built(each) for name, each in arguments_of(config.prior.get("init_args", {})).items()}
    prior = class_of(config.prior.class_path)(layout, num_classes=data.num_classes, **settings)
    prior.fingerprint = fingerprint
    task = PriorTask(prior, num_elements=domain.num_elements, **arguments_of(config.task))
    task.about = {"classes": data.classes, **domain.about}
    task.check_data(data)
    load = functools.partial(Prior.from_pretrained, layout=layout, fingerprint=fingerprint, trusted=config.trusted)
    done = steps_done(task, plan, config, place, load)
    open_run(parser, config, place, done)
    if place.launch.first:
        domain.tokenizer.save_pretrained(run.tokenizer)
        write_json(run.data, {**task.about, "rows": data.num_rows})
    trainer, taken = run_training(task, data, plan, place, done, **extras_of(parser, config))
    if not trainer.is_global_zero:
        return
    prior = prior.to(trainer.strategy.root_device).eval()
    held = _measured(prior, data)
    numbers, rows = domain.measured(held)
    numbers = {"nats_per_token": held.nats / held.tokens, **numbers}
    write_json(run.metrics, numbers)
    report(
        "held-out tokens",
        [
            ("nats per token", f"{numbers['nats_per_token']:.3f}"),
            *rows,
            ("classes", "none" if data.classes is None else f"{len(data.classes):,}"),
            ("training time", taken),
        ],
        {"prior": run.prior, "tokenizer": run.tokenizer, "samples": domain.show(prior, run), "logs": run.logs},
    )


def _check_first(data: Any, check: Callable[[TokenRow, Path], None]) -> None:
    """Check the first row of each file, before all are read."""
    from gritvq.tokens import iter_tokens, token_files

    for paths in (data.train, data.validation):
        for path in [] if paths is None else [paths] if isinstance(paths, str) else paths:
            for file in token_files(path):
                check(next(iter_tokens(file)), file)


def _check_row(domain: PriorDomain, fingerprint: str, row: TokenRow, file: Path) -> None:
    """Check where a row comes from.

    Raises:
        ValueError: If its tokens are those of another tokenizer, or not of its domain like the rows before.
    """
    made_by = row.columns.get("tokenizer", fingerprint)
    if made_by != fingerprint:
        raise ValueError(
            f"expected tokens of this tokenizer, fingerprint {fingerprint[:12]}, got {file} of another, "
            f"{str(made_by)[:12]}; encode the {domain.what} again, or give the tokenizer that made them"
        )
    domain.check(row)


def _measured(prior: Prior, data: TokenData) -> Held:
    """What the held-out rows cost."""
    import torch

    from gritvq.cli.priors import Held

    nats, rows, positions, tokens = 0.0, 0, 0, 0
    device = prior.present.device
    with torch.no_grad():
        for indices, condition in tracked(list(data.val_dataloader()), "measuring, block"):
            classes = None if condition is None else condition.to(device)
            nats -= float(prior.log_prob(indices.to(device), classes).double().sum())
            rows += len(indices)
            positions += int((indices >= 0).any(-1).sum())
            tokens += prior.count(indices)
    return Held(nats, rows, data.num_held_out, positions, tokens)
