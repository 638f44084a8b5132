"""The verb ``generate``: new pictures and texts from a prior, new texts from a model of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gritvq.cli.machine import device_argument, device_named
from gritvq.cli.output import console, trusted_argument
from gritvq.cli.run_folder import overwrite_argument
from gritvq.cli.settings import check_positive, check_unused
from gritvq.training.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from gritvq.priors import Prior
    from gritvq.priors.sampling import Guidance

__all__ = ["generate", "generate_arguments"]

_OF_MASKED = ["num_steps", "order"]
_OF_PRIORS, _OF_MODELS = ["classes", "guidance", "guidance_schedule", "guidance_power", *_OF_MASKED], ["prompt", "beam"]


def generate_arguments(parser: Any) -> None:
    """Arguments of generate."""
    parser.add_argument("run", type=str, help="folder of a run of 'gritvq fit prior' or 'gritvq fit text'")
    parser.add_argument("--num", type=int, default=64, help="pictures or texts")
    parser.add_argument(
        "--prompt", type=str | None, default=None, help="whole sentences that a model's texts go on from"
    )
    parser.add_argument(
        "--classes",
        type=list[str | int] | None,
        default=None,
        help="names or numbers of the classes, [NAME,...], which take turns; all if not given",
    )
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="scale s of u + s (c - u), with and without the class: 1 is none"
    )
    parser.add_argument(
        "--guidance_schedule",
        default="constant",
        choices=["constant", "linear", "power_cosine"],
        help="how the scale grows from 1 over the positions, scales or steps of a sample: not at all, in equal steps, "
        "or along 1 + (s - 1) (1 - cos(pi t^power)) / 2 from t = 0 to 1",
    )
    parser.add_argument(
        "--guidance_power",
        type=float | None,
        default=None,
        help="of power_cosine: the larger, the later the scale grows; 2.75 if not given",
    )
    parser.add_argument(
        "--num_steps", type=int | None, default=None, help="of a masked prior, in place of the number it was made with"
    )
    parser.add_argument(
        "--order",
        default=None,
        choices=["confidence", "halton"],
        help="of a masked prior: which positions are kept first, in place of the order it was made with",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits")
    parser.add_argument(
        "--top_k", type=int | None, default=None, help="draw from the k most probable codes (priors) or subwords only"
    )
    parser.add_argument(
        "--top_p", type=float | None, default=None, help="draw from the fewest of this probability together"
    )
    parser.add_argument(
        "--beam",
        type=int,
        default=1,
        help="for texts of a model: the most probable sentences that so many beams find, in place of drawing",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all samples; each has its own, whatever the batch size")
    parser.add_argument("--batch_size", type=int, default=64, help="samples that are made together")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="folder for pictures/ and grid.png, 'samples' if not given; or file for the texts, .jsonl or .md, "
        "'samples.jsonl' if not given",
    )
    device_argument(parser)
    trusted_argument(parser)
    overwrite_argument(parser)


def generate(parser: Any, config: Any) -> None:
    """Generate pictures or texts, of which a prior draws the tokens, or texts by a model of text."""
    run = RunFolder(config.run)
    check_positive(num=config.num, batch_size=config.batch_size)
    if run.prior.is_dir():
        check_unused(parser, config, _OF_MODELS, "a run of 'gritvq fit prior'")
        _generate_from_prior(parser, config, run)
    elif run.text_model.is_dir():
        from gritvq.cli import text

        check_unused(parser, config, _OF_PRIORS, "a run of 'gritvq fit text'")
        text.generate(config, run)
    else:
        raise ValueError(
            f"expected a run of 'gritvq fit prior', or one of a model by 'gritvq fit text', got {run.path}, which has "
            f"no {run.prior.name}/ and no {run.text_model.name}/; give its folder"
        )


def _generate_from_prior(parser: Any, config: Any, run: RunFolder) -> None:
    """A prior draws tokens, the tokenizer decodes them."""
    import torch
    from rich.progress import Progress

    from gritvq.cli.priors import domain_of
    from gritvq.priors import MaskedPrior, Prior, sample_seeds

    device = device_named(config.device)
    domain = domain_of(str(run.tokenizer), config.trusted)
    fingerprint = domain.tokenizer.fingerprint()
    prior = Prior.from_pretrained(run.prior, fingerprint=fingerprint, trusted=config.trusted).to(device)
    if isinstance(prior, MaskedPrior):
        for name in _OF_MASKED:
            setattr(prior, name, getattr(prior, name) if config[name] is None else config[name])
    else:
        check_unused(parser, config, _OF_MASKED, f"a prior of the kind {type(prior).__name__}")
    known = prior.trained.get("classes") or range(prior.num_classes or 0)
    condition = _condition(prior, known, config.classes, config.num)
    settings = {name: config[name] for name in ("temperature", "top_k", "top_p")}
    settings["guidance"] = _guidance(parser, config)

    def drawn() -> Iterator[Tensor]:
        with Progress(console=console(), transient=True) as progress:
            bar = progress.add_task("generating", total=config.num)
            for start in range(0, config.num, config.batch_size):
                count = min(config.batch_size, config.num - start)
                wanted = None if condition is None else torch.tensor(condition[start : start + count])

                def done(step: int, steps: int, before: int = start, count: int = count) -> None:
                    progress.update(bar, completed=before + count * step / steps)

                seeds = sample_seeds(config.seed, count, first=start)
                yield prior.sample(count, wanted, generator=seeds, progress=done, **settings)

    labels = None if condition is None else [known[own] for own in condition]
    domain.generate(config, prior, device, labels, drawn())


def _condition(
    prior: Prior, names: Sequence[str | int], wanted: Sequence[str | int] | None, num: int
) -> list[int] | None:
    """The class of each sample.

    Raises:
        ValueError: If there is none of a name or number, or the prior has no classes.
    """
    if prior.num_classes is None:
        if wanted is not None:
            raise ValueError("expected no --classes for an unconditional prior, got some; leave them out")
        return None
    if wanted is not None and not wanted:
        raise ValueError("expected at least one class, got []; leave --classes out for all of them")
    chosen = []
    for name in range(len(names)) if wanted is None else wanted:
        found = [own for own, known in enumerate(names) if wanted is not None and str(known) == str(name)]
        if not found and (not isinstance(name, int) or not 0 <= name < len(names)):
            shown = ", ".join(map(str, names[:10])) + (", ..." if len(names) > 10 else "")
            raise ValueError(
                f"expected classes among {shown}, or numbers below {len(names)}, got {name!r}; choose some of these, "
                "or leave --classes out for all"
            )
        chosen.append(found[0] if found else int(name))
    return [chosen[number % len(chosen)] for number in range(num)]


def _guidance(parser: Any, config: Any) -> float | Guidance:
    """The scale, or its schedule.

    Raises:
        ValueError: If there is a power without a schedule that has one, or a number is out of range.
    """
    from gritvq.priors import LinearGuidance, PowerCosineGuidance

    scale, schedule, power = config.guidance, config.guidance_schedule, config.guidance_power
    if schedule != "power_cosine":
        check_unused(parser, config, ["guidance_power"], f"--guidance_schedule {schedule}")
    if schedule == "linear" and scale != 1:
        return LinearGuidance(1.0, scale)
    if schedule == "power_cosine":
        grown = PowerCosineGuidance(scale) if power is None else PowerCosineGuidance(scale, power)
        return scale if scale == 1 else grown
    return float(scale)
