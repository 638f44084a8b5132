"""The verb ``generate``: new pictures from a prior, new texts from a model of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.machine import device_argument, device_named
from gritvq.cli.output import console, report, trusted_argument
from gritvq.cli.run_folder import check_places, overwrite_argument
from gritvq.cli.settings import check_positive, check_unused
from gritvq.training.run_folder import RunFolder

if TYPE_CHECKING:
    from gritvq.priors import Prior
    from gritvq.priors.sampling import Guidance

__all__ = ["generate", "generate_arguments"]

_GRID, _PICTURES, _SHOWN = "grid.png", "pictures", 64
_OF_PICTURES, _OF_TEXTS = ["classes", "guidance", "guidance_schedule"], ["prompt", "beam"]


def generate_arguments(parser: Any) -> None:
    """Arguments of generate."""
    parser.add_argument("run", type=str, help="folder of a run of 'gritvq fit prior' or 'gritvq fit text'")
    parser.add_argument("--num", type=int, default=64, help="pictures or texts")
    parser.add_argument("--prompt", type=str | None, default=None, help="whole sentences that each text goes on from")
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
        help="how the scale grows from 1 over the positions of a sample",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits")
    parser.add_argument(
        "--top_k", type=int | None, default=None, help="draw from the k most probable codes or subwords only"
    )
    parser.add_argument(
        "--top_p", type=float | None, default=None, help="draw from the fewest of this probability together"
    )
    parser.add_argument(
        "--beam",
        type=int,
        default=1,
        help="for texts: the most probable sentences that so many beams find, in place of drawing",
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
    """Generate pictures, of which a prior draws the tokens, or texts."""
    run = RunFolder(config.run)
    check_positive(num=config.num, batch_size=config.batch_size)
    if run.prior.is_dir():
        check_unused(parser, config, _OF_TEXTS, "a run of 'gritvq fit prior'")
        _generate_pictures(config, run)
    elif run.text_model.is_dir():
        from gritvq.cli import text

        check_unused(parser, config, _OF_PICTURES, "a run of 'gritvq fit text'")
        text.generate(config, run)
    else:
        raise ValueError(
            f"expected a run of 'gritvq fit prior', or one of a model by 'gritvq fit text', got {run.path}, which has "
            f"no {run.prior.name}/ and no {run.text_model.name}/; give its folder"
        )


def _generate_pictures(config: Any, run: RunFolder) -> None:
    """A prior draws tokens, the tokenizer decodes them."""
    import torch
    from rich.progress import Progress

    from gritvq.images.files import picture_paths, save_png
    from gritvq.images.plots import picture_grid
    from gritvq.images.tokenizer import ImageTokenizer
    from gritvq.priors import Prior, sample_seeds

    out = Path(config.out or "samples")
    device = device_named(config.device)
    tokenizer = ImageTokenizer.from_pretrained(run.tokenizer, config.trusted)
    prior = Prior.from_pretrained(run.prior, fingerprint=tokenizer.fingerprint(), trusted=config.trusted).to(device)
    known = prior.trained.get("classes") or range(prior.num_classes or 0)
    sides = [side for side in map(prior.trained.get, ("height", "width")) if isinstance(side, int)]
    if len(sides) != 2:
        raise ValueError(
            f"expected a prior of 'gritvq fit prior', got {run.prior}, which does not say how large its pictures are; "
            "sample and decode it from Python"
        )
    size = (sides[0], sides[1])
    condition = _condition(prior, known, config.classes, config.num)
    names = [f"{number:05}" for number in range(config.num)]
    if condition is not None:
        names = [f"{name}-{known[own]}" for name, own in zip(names, condition, strict=True)]
    paths = [Path(_PICTURES) / path for path in picture_paths(names)]
    check_places(out, [*paths, _GRID], config.overwrite)
    settings = {name: config[name] for name in ("temperature", "top_k", "top_p")}
    settings["guidance"] = _guidance(config.guidance, config.guidance_schedule)
    folded, shown = tokenizer.fold().to(device), list[Any]()
    with Progress(console=console(), transient=True) as progress:
        bar = progress.add_task("generating", total=config.num)
        for start in range(0, config.num, config.batch_size):
            own = paths[start : start + config.batch_size]
            wanted = None if condition is None else torch.tensor(condition[start : start + len(own)])

            def done(step: int, steps: int, before: int = start, count: int = len(own)) -> None:
                progress.update(bar, completed=before + count * step / steps)

            seeds = sample_seeds(config.seed, len(own), first=start)
            indices = prior.sample(len(own), wanted, generator=seeds, progress=done, **settings)
            for picture, path in zip(folded.decode(indices, size).cpu(), own, strict=True):
                save_png(picture, out / path)
                if len(shown) < _SHOWN:
                    shown.append(picture)
    picture_grid(shown, out / _GRID)
    classes_said = "none" if condition is None else f"{len(set(condition)):,}"
    report(
        "generated",
        [("pictures", f"{config.num:,}"), ("classes", classes_said), ("guidance", f"{config.guidance:g}")],
        {"pictures": out / _PICTURES, "grid": out / _GRID},
    )


def _condition(
    prior: Prior, names: Sequence[str | int], wanted: Sequence[str | int] | None, num: int
) -> list[int] | None:
    """The class of each picture.

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
            raise ValueError(f"expected classes among {shown}, or numbers below {len(names)}, got {name!r}")
        chosen.append(found[0] if found else int(name))
    return [chosen[number % len(chosen)] for number in range(num)]


def _guidance(scale: float, schedule: str) -> float | Guidance:
    """The scale, or its schedule."""
    from gritvq.priors import LinearGuidance, PowerCosineGuidance

    if schedule == "constant" or scale == 1:
        return scale
    return LinearGuidance(1.0, scale) if schedule == "linear" else PowerCosineGuidance(scale)
