"""The verb ``evaluate``: how good generated or reconstructed pictures are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.machine import device_argument, device_named
from gritvq.cli.output import console, report
from gritvq.cli.run_folder import check_places, overwrite_argument

if TYPE_CHECKING:
    from gritvq.images import PictureSet

__all__ = ["check_evaluation", "evaluate", "evaluate_arguments"]

_SPLITS = ["held_out", "validation", "test", "train", "all"]


def evaluate_arguments(parser: Any) -> None:
    """Arguments of evaluate."""
    from torch import nn

    from gritvq.images import features  # noqa: F401  (its classes can be named without the module)

    what = "picture, folder, Parquet file or folder, or Hub data set"
    parser.add_argument("samples", type=str, help=f"pictures that are judged: {what}")
    parser.add_argument("reference", type=str, help=f"pictures that they are compared with: {what}")
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_argument(
        "--features",
        type=nn.Module,
        required=True,
        help="network: CIFARResNet, VGG16Features, InceptionFeatures, FileFeatures, or a class of yours",
    )
    parser.add_argument(
        "--kind",
        default="generated",
        choices=["generated", "reconstructed", "real"],
        help="what the samples are; reconstructed: decoded from the tokens of real pictures",
    )
    parser.add_argument(
        "--split", default="held_out", choices=_SPLITS, help="split of the reference, if names define one"
    )
    parser.add_argument(
        "--reference_kind",
        default="real",
        choices=["real", "reconstructed"],
        help="reconstructed: the distance then judges the prior alone and is called so",
    )
    parser.add_argument(
        "--floor",
        type=str,
        default="auto",
        help="other pictures of the reference's kind; auto: another split of the reference; none: no floor",
    )
    parser.add_argument(
        "--floor_split", default="auto", choices=["auto", *_SPLITS], help="split of the floor's pictures"
    )
    parser.add_argument(
        "--num", type=int | None, default=None, help="pictures of each side, drawn at random; all if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument(
        "--unequal", type=bool, default=False, help="whether all of the reference is taken, whatever its number"
    )
    parser.add_argument(
        "--size", type=int | None, default=None, help="side of the square that all pictures are cropped and resized to"
    )
    parser.add_argument(
        "--name", type=str | None, default=None, help="what you call the distance; refused if it is another"
    )
    parser.add_argument("--neighbors", type=int, default=3, help="for precision and recall")
    parser.add_argument("--channels", type=int, default=3, help="1 for gray, 3 for RGB")
    parser.add_argument("--column", type=str, default="image", help="column of the pictures in tables")
    parser.add_argument(
        "--label", type=str, default="label", help="column of the classes in tables, for class accuracy"
    )
    parser.add_argument("--strict", type=bool, default=False, help="whether a broken picture ends the run")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures per batch, at most")
    device_argument(parser)
    parser.add_argument("--out", type=str, default="evaluation.json", help="file to write")
    overwrite_argument(parser)


def evaluate(parser: Any, config: Any) -> None:
    """Compare generated or decoded pictures with real ones: Frechet distance, precision, recall, and the floor."""
    from gritvq.files import write_json
    from gritvq.images import compare_pictures

    out = Path(config.out)
    if out.suffix != ".json":
        raise ValueError(f"expected --out with the ending .json, got {config.out}; rename it")
    check_places(out.parent, [out.name], config.overwrite)
    device = device_named(config.device)
    network = parser.instantiate(config).features
    samples = _pictures(config, config.samples, "all", config.kind, config.num)
    num = None if config.unequal else config.num
    reference = _pictures(config, config.reference, config.split, config.reference_kind, num)
    floor = _floor(config, reference, samples.num or 0)
    found = compare_pictures(
        _tracked(samples, "samples"),
        _tracked(reference, "reference"),
        network,
        floor=None if floor is None else _tracked(floor, "floor"),
        name=config.name,
        neighbors=config.neighbors,
        unequal=config.unequal,
        device=device,
    )
    write_json(out, found.to_dict())
    report(found.metric, found.rows(), {"evaluation": out})


def check_evaluation(parser: Any, config: Any, num: int) -> None:
    """Check, before there are samples, what can be checked of an evaluation: network, reference, floor, and numbers.

    Args:
        parser: As for :func:`evaluate`.
        config: As for :func:`evaluate`; the samples need not exist.
        num: How many samples there will be.

    Raises:
        ValueError: If weights are missing, or the two sides cannot have equal numbers where they have to.
    """
    parser.instantiate(config)
    own = num if config.num is None else config.num
    if own > num:
        raise ValueError(
            f"expected at most as many pictures for the evaluation (num) as there will be samples, got {own:,} of "
            f"{num:,}; draw more samples, or evaluate fewer"
        )
    wanted = None if config.unequal else config.num
    reference = _pictures(config, config.reference, config.split, config.reference_kind, wanted)
    if reference.num is not None and reference.num != own and not config.unequal:
        raise ValueError(
            f"expected as many samples as pictures in the reference {reference.name}, got {own:,} and "
            f"{reference.num:,}; give the evaluation a num, draw as many samples, or set unequal"
        )
    _floor(config, reference, own)


def _pictures(config: Any, path: str, split: str, kind: Any, num: int | None) -> PictureSet:
    from gritvq.images import PictureSet, open_pictures

    pictures = open_pictures(
        path,
        channels=config.channels,
        split=None if split == "all" else split,
        column=config.column,
        label=config.label,
        strict=config.strict,
    )
    splits = ", ".join(pictures.describe()["splits"])
    name = f"{path} ({splits})" if num is None or num == len(pictures) else f"{path} ({splits}, seed {config.seed})"
    settings = {"size": config.size, "num": num, "seed": config.seed, "batch_size": config.batch_size}
    return PictureSet.of(pictures, kind, name, **settings)


def _floor(config: Any, reference: PictureSet, num: int) -> PictureSet | None:
    """As many pictures as there are samples, of another split than the reference's.

    Raises:
        ValueError: If there are none.
    """
    if config.floor == "none":
        return None
    own = config.floor == "auto"
    path, split = (config.reference if own else config.floor), config.floor_split
    if split == "auto":
        split = "all" if not own else "held_out" if config.split == "train" else "train"
    try:
        if own and (config.split == "all" or "(all" in reference.name):
            raise ValueError("the reference takes all splits")
        return _pictures(config, path, split, config.reference_kind, num)
    except ValueError as error:
        raise ValueError(
            f"expected {num:,} other pictures for the floor, got none of {path} ({error}); name others with --floor, "
            "or give --floor none"
        ) from error


def _tracked(pictures: PictureSet, what: str) -> PictureSet:
    """The same with a bar on the error stream."""

    def batches() -> Iterator[Any]:
        from rich.progress import Progress

        with Progress(console=console(), transient=True) as progress:
            bar = progress.add_task(what, total=pictures.num)
            for batch in pictures.batches:
                yield batch
                progress.advance(bar, len(batch[0] if isinstance(batch, tuple) else batch))

    return pictures._replace(batches=batches())
