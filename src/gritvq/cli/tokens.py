"""The verbs ``encode`` and ``decode``: data into tokens and back; what they read and write is the tokenizer's."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.machine import device_argument, device_named, machine_arguments
from gritvq.cli.output import console, report, trusted_argument
from gritvq.cli.run_folder import check_places, overwrite_argument
from gritvq.cli.settings import check_positive, check_unused
from gritvq.quantizers.base import Quantizer

if TYPE_CHECKING:
    from gritvq.tokens import TokenRow

__all__ = [
    "decode",
    "decode_arguments",
    "document_arguments",
    "encode",
    "encode_arguments",
    "loaded",
    "split_argument",
    "token_rows",
    "warn_of_tokens",
]

_OF_PICTURES = [
    "label",
    "classes_from",
    "split",
    "size",
    "ten_crops",
    "random_crops",
    "seed",
    "flip",
    "strict",
    "max_pixels",
    "max_bytes",
]
_OF_TEXTS = ["unit", "encoding"]
_BATCH = {"pictures": 64, "texts": 64, "items": 2048}  # samples computed together, if the caller does not say
_UNUSED = {"pictures": _OF_TEXTS, "texts": _OF_PICTURES, "items": [*_OF_PICTURES, *_OF_TEXTS]}


def encode_arguments(parser: Any) -> None:
    """Arguments of encode."""
    parser.add_argument(
        "data",
        type=str,
        help="for a tokenizer of pictures: picture, folder, Parquet or tar file or a folder of them, Hub data set or "
        "'photographs', of any size unless the tokenizer has a layout; for one of texts: a file of text, JSON Lines, "
        "CSV, TSV, Parquet or tar, a folder of them, Hub data set or 'docstrings'; for one of items: vectors in a "
        ".npy, Parquet or tar file, or a folder of them",
    )
    parser.add_argument("--tokenizer", type=str, required=True, help="tokenizer folder or Hub name")
    document_arguments(parser)
    parser.add_argument("--label", type=str, default="label", help="column of the labels, stored with the tokens")
    parser.add_argument(
        "--classes_from",
        default="labels",
        choices=["labels", "folders", "names"],
        help="what is stored as label: the label, the name of the picture's folder, or its own name",
    )
    split_argument(
        parser,
        "all",
        "; of a folder or file without such names, train is the part that 'fit images' trains on, and the others but "
        "all are the part that it holds out",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="file to write, .npz or .parquet, tokens.npz if not given; or a folder for several files, tokens if not "
        "given, where a run that was interrupted goes on",
    )
    parser.add_argument(
        "--size", type=int | None, default=None, help="pixels per side of the square that is cut from each picture"
    )
    parser.add_argument(
        "--ten_crops",
        type=list[float] | None,
        default=None,
        help="in place of the center, corners, center and their mirror images of pictures whose shorter side is "
        "resized to these multiples of size, such as [1.1,1.05]",
    )
    parser.add_argument(
        "--random_crops",
        type=int | None,
        default=None,
        help="in place of the center, so many squares at random places of each picture; of the photographs' training "
        "split outside of the held-out squares",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random places")
    parser.add_argument("--flip", type=bool, default=False, help="encode mirror images too; ten crops have them")
    parser.add_argument(
        "--rows_per_file",
        type=int | None,
        default=None,
        help="write a folder of Parquet files of so many rows each, at most; 1024 with Ray if not given",
    )
    parser.add_argument(
        "--engine", default="local", choices=["local", "ray"], help="encode in this process, or in workers on Ray"
    )
    parser.add_argument(
        "--num_workers",
        type=int | None,
        default=None,
        help="worker processes on Ray; as many as there are CPUs, or GPUs, if not given",
    )
    parser.add_argument("--strict", type=bool, default=False, help="whether an unreadable picture is an error")
    parser.add_argument(
        "--max_pixels", type=int, default=2**26, help="pixels of the largest picture that is read, as its header says"
    )
    parser.add_argument("--max_bytes", type=int | None, default=None, help="bytes of the largest file that is decoded")
    machine_arguments(parser, _BATCH["items"])
    overwrite_argument(parser)


def document_arguments(parser: Any, prefix: str = "") -> None:
    """The column of pictures or texts, and what only texts have."""
    parser.add_argument(
        f"--{prefix}column",
        type=str | None,
        default=None,
        help="column in tables; image, text or embedding if not given",
    )
    parser.add_argument(
        f"--{prefix}unit",
        default="paragraph",
        choices=["paragraph", "line", "file"],
        help="what a document is in a file of plain text",
    )
    parser.add_argument(f"--{prefix}encoding", type=str, default="utf-8", help="of files of text")


def encode(parser: Any, config: Any) -> None:
    """Encode pictures, texts or vectors of items as tokens."""
    from rich.progress import Progress

    from gritvq.bulk import encode_here, encode_on_ray, encode_rows, encode_shards
    from gritvq.bulk.work import ROWS
    from gritvq.tokens import write_tokens

    out, rows_per_file = _token_place(config), config.rows_per_file
    given = {name: config[name] for name in ("batch_size", "rows_per_file", "num_workers")}
    check_positive(**{name: value for name, value in given.items() if value is not None})
    if config.engine == "local":
        check_unused(parser, config, ["num_workers"], "--engine local")
    device = device_named(config.device)
    tokenizer, jobs, what = loaded(config.tokenizer, config.trusted, items=True)
    check_unused(parser, config, _UNUSED[what], f"a tokenizer of {what}")
    config.batch_size = config.batch_size or _BATCH[what]
    work = jobs.work(tokenizer, config)
    counts: Counter[str] = Counter()
    seen = console()
    with Progress(console=seen, transient=True, disable=not seen.is_terminal) as shown:
        progress = functools.partial(shown.advance, shown.add_task("encoding", total=work.num_samples))
        if config.engine == "ray":
            engine = functools.partial(encode_on_ray, num_workers=config.num_workers, device=device.type)
            counts = encode_shards(work, out, rows_per_file or ROWS, engine, progress)
        elif rows_per_file is not None:
            counts = encode_shards(work.to(device), out, rows_per_file, encode_here, progress)
        else:
            write_tokens(out, encode_rows(work.to(device), counts, progress))
    report("encoded", [("data", config.data), *jobs.encoded(config, work, counts)], {"tokens": out})
    if what != "items":
        warn_of_tokens(tokenizer.quantizer)


def loaded(source: Any, trusted: Sequence[str], items: bool = False) -> tuple[Any, Any, str]:
    """The tokenizer, the module with the jobs of its domain, and what it takes.

    Args:
        source: Folder or Hub name.
        trusted: Modules that its classes may come from.
        items: Whether the verb has a job for tokenizers of items.

    Raises:
        ValueError: If there is no tokenizer, or one of something else.
    """
    from gritvq import Tokenizer
    from gritvq.images.tokenizer import ImageTokenizer

    tokenizer = Tokenizer.from_pretrained(source, trusted)
    if isinstance(tokenizer, ImageTokenizer):
        from gritvq.cli import images

        return tokenizer, images, "pictures"
    from gritvq.text.tokenizer import TextTokenizer

    if isinstance(tokenizer, TextTokenizer):
        from gritvq.cli import text

        return tokenizer, text, "texts"
    from gritvq.items.tokenizers import ItemTokenizer

    if items and isinstance(tokenizer, ItemTokenizer):
        from gritvq.cli import items as jobs

        return tokenizer, jobs, "items"
    raise ValueError(
        f"expected a tokenizer of pictures or texts in {source}, got a {type(tokenizer).__name__}; for items "
        "use 'gritvq semantic-ids'"
    )


def _token_place(config: Any) -> Path:
    """Where encode may write: a file, or a folder for files, which is checked when its plan is known.

    Raises:
        ValueError: If a file is there, or the name does not fit.
    """
    from gritvq.tokens.files import check_token_path

    if config.rows_per_file is None and config.engine == "local":
        out = check_token_path(config.out or "tokens.npz")
        check_places(out.parent, [out.name], config.overwrite)
        return out
    out = Path(config.out or "tokens")
    if out.suffix in (".npz", ".parquet"):
        several = "--rows_per_file" if config.rows_per_file is not None else "--engine ray"
        raise ValueError(f"expected a folder for files of {several}, got {out}; leave one of them out")
    return out


def split_argument(parser: Any, default: str, more: str = "") -> None:
    """``--split`` of verbs that read pictures, with more behind its help."""
    parser.add_argument(
        "--split",
        default=default,
        choices=["held_out", "validation", "test", "train", "all"],
        help=f"split, if names determine one; held_out is validation, or test if there is none{more}",
    )


def warn_of_tokens(quantizer: Quantizer) -> None:
    """Warn if a quantizer's indices are not worth storing."""
    if quantizer.exact == "never":
        warnings.warn(
            "exact='never': these indices do not reproduce the quantizer's output; do not store them", stacklevel=1
        )


def decode_arguments(parser: Any) -> None:
    """Arguments of decode."""
    parser.add_argument("tokens", type=str, help="what encode has written: .npz, .parquet or a folder of them")
    parser.add_argument("--tokenizer", type=str, required=True, help="tokenizer folder or Hub name")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="folder for the PNG files, 'decoded' if not given; or file for the texts, .jsonl or .txt, 'decoded.jsonl' "
        "if not given",
    )
    device_argument(parser)
    trusted_argument(parser)
    overwrite_argument(parser)


def token_rows(path: str) -> Iterator[TokenRow]:
    """The rows of a token file, or of those of a folder."""
    from gritvq.tokens import iter_tokens, token_files

    return itertools.chain.from_iterable(map(iter_tokens, token_files(path)))


def decode(parser: Any, config: Any) -> None:
    """Decode tokens to pictures or texts."""
    device = device_named(config.device)
    tokenizer, jobs, _ = loaded(config.tokenizer, config.trusted)
    jobs.decode(tokenizer, config, device)
