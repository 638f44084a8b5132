"""The verbs ``validate``, ``inspect`` and ``export``: what they measure and write is the tokenizer's."""

from __future__ import annotations

from typing import Any

from gritvq.cli.machine import device_named, machine_arguments
from gritvq.cli.output import trusted_argument
from gritvq.cli.priors import export_prior, is_prior
from gritvq.cli.recommend import export_recommender, is_recommender
from gritvq.cli.run_folder import overwrite_argument
from gritvq.cli.settings import check_positive, check_unused
from gritvq.cli.tokens import document_arguments, loaded, split_argument

__all__ = ["export", "export_arguments", "inspect", "measure_arguments", "validate"]

_OF_PICTURES, _OF_TEXTS = ["split", "perceptual", "data.strict"], ["data.unit", "data.encoding"]


def measure_arguments(parser: Any, out: str) -> None:
    """Arguments of validate and inspect: a tokenizer, and pictures or texts."""
    from gritvq.images import features  # noqa: F401  (its classes can be named without the module)
    from gritvq.images.losses import PerceptualDistance

    parser.add_argument("tokenizer", type=str, help="tokenizer folder or Hub name")
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_argument(
        "--data.path",
        type=str | None,
        default=None,
        help="what 'gritvq encode' takes; default: the held-out pictures or documents of the tokenizer's run",
    )
    document_arguments(parser, "data.")
    parser.add_argument("--data.strict", type=bool, default=False, help="whether an unreadable picture is an error")
    split_argument(parser, "held_out")
    parser.add_argument(
        "--perceptual",
        type=PerceptualDistance | None,
        default=None,
        help="distance to measure as well: LPIPSLoss, or PerceptualLoss with --perceptual.features VGG16Features",
    )
    machine_arguments(parser)
    parser.add_argument("--out", type=str, default=out, help="folder for plots, pages and metrics")
    overwrite_argument(parser)


def validate(parser: Any, config: Any) -> None:
    """Evaluate a tokenizer on whole pictures or texts: PSNR or nats per token, usage, perplexity."""
    tokenizer, jobs = _measured(parser, config)
    jobs.validate(tokenizer, parser, config)


def inspect(parser: Any, config: Any) -> None:
    """Inspect a tokenizer: its codes, their usage, and what they decode to."""
    tokenizer, jobs = _measured(parser, config)
    jobs.inspect(tokenizer, parser, config)


def export_arguments(parser: Any) -> None:
    """Arguments of export."""
    parser.add_argument(
        "tokenizer", type=str, help="tokenizer folder or Hub name; or folder of a recommender or prior, or of its run"
    )
    parser.add_argument("--out", type=str, default="exported", help="folder for the files")
    overwrite_argument(parser)
    parser.add_argument("--format", default="onnx", choices=["onnx", "torch"], help=".onnx or .pt2 files")
    parser.add_argument("--size", type=tuple[int, int], default=None, help="[H,W] of all images; default: any size")
    parser.add_argument("--k", type=int, default=10, help="of a recommender: number of items to recommend")
    parser.add_argument("--beam", type=int | None, default=None, help="of a recommender: beam size; its own by default")
    parser.add_argument(
        "--ids", type=str | None, default=None, help="of a recommender: folder of its ids with items added"
    )
    trusted_argument(parser)


def export(parser: Any, config: Any) -> None:
    """Export a tokenizer, a recommender or a prior as programs that run without gritvq; check them."""
    if is_recommender(config.tokenizer):
        check_unused(parser, config, ["size"], "a recommender")
        export_recommender(config)
        return
    if is_prior(config.tokenizer):
        check_unused(parser, config, ["size", "k", "beam", "ids"], "a prior")
        export_prior(config)
        return
    tokenizer, jobs, what = loaded(config.tokenizer, config.trusted, items=True)
    check_unused(parser, config, ["k", "beam", "ids"] + ["size"] * (what != "pictures"), f"a tokenizer of {what}")
    jobs.export(tokenizer, config)


def _measured(parser: Any, config: Any) -> tuple[Any, Any]:
    """The tokenizer, and the module with the jobs of its domain.

    Raises:
        ValueError: If there is no tokenizer, one of something else, or an argument is not for it.
    """
    check_positive(batch_size=config.batch_size)
    device_named(config.device)
    tokenizer, jobs, what = loaded(config.tokenizer, config.trusted)
    check_unused(parser, config, _OF_TEXTS if what == "pictures" else _OF_PICTURES, f"a tokenizer of {what}")
    return tokenizer, jobs
