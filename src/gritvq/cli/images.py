"""The verbs on pictures and their tokens: ``validate``, ``inspect``, ``encode``, ``decode``, ``export``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gritvq.base import Quantizer
from gritvq.cli.printing import console, number_rows, report

__all__ = [
    "decode",
    "decode_arguments",
    "encode",
    "encode_arguments",
    "export",
    "export_arguments",
    "inspect",
    "measure_arguments",
    "validate",
]


def measure_arguments(parser: Any, out: str) -> None:
    """A tokenizer, and the images to measure it on."""
    from gritvq.data import ImageData

    parser.add_argument("tokenizer", type=str, help="tokenizer folder or Hub name")
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_class_arguments(ImageData, "data")
    parser.add_argument(
        "--split", type=str, default="validation", choices=["validation", "test"], help="images to measure on"
    )
    parser.add_argument("--out", type=str, default=out, help="folder for pictures and numbers")
    _overwrite_argument(parser)


def _overwrite_argument(parser: Any) -> None:
    parser.add_argument("--overwrite", type=bool, default=False, help="whether existing files may be replaced")


_MEASURED = ("metrics.json", "reconstructions.png", "usage.png")


def _measure(parser: Any, config: Any, files: Sequence[str]) -> tuple[Any, dict[str, float], Any, Any, Path]:
    from rich.progress import track

    from gritvq.files import write_json
    from gritvq.tokenizer import Tokenizer
    from gritvq.training import evaluate, pictures
    from gritvq.training.runs import prepare

    _check_places(Path(config.out), files, config.overwrite)
    prepare(0)
    tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    data = parser.instantiate(config).data
    data.setup("fit")
    loader = data.val_dataloader() if config.split == "validation" else data.test_dataloader()
    numbers, counts = evaluate(tokenizer, track(loader, description="measuring", console=console(), transient=True))
    out = Path(config.out)
    images = next(iter(loader))[:16]
    pictures.reconstruction_grid(images, tokenizer(images).reconstruction.detach(), out / "reconstructions.png")
    pictures.usage_plot(counts, out / "usage.png")
    write_json(out / "metrics.json", numbers)
    return tokenizer, numbers, counts, loader, out


def validate(parser: Any, config: Any) -> None:
    """Measure a tokenizer on images: PSNR, usage, perplexity."""
    _, numbers, _, _, out = _measure(parser, config, _MEASURED)
    report(
        f"{config.split} images of {config.data.path}",
        number_rows(numbers),
        {
            "originals and reconstructions": out / "reconstructions.png",
            "usage": out / "usage.png",
            "numbers": out / "metrics.json",
        },
    )


def inspect(parser: Any, config: Any) -> None:
    """Look into a tokenizer: its codes, how they are used, what they look like."""
    from gritvq.training import pictures
    from gritvq.training.runs import token_statistics

    tokenizer, numbers, counts, _, out = _measure(parser, config, [*_MEASURED, "codebook.png"])
    pictures.codebook_picture(tokenizer, out / "codebook.png", counts)
    own = token_statistics(tokenizer)
    report(
        config.tokenizer,
        [
            ("codes x dimensions", f"{own['codes']:.0f} x {own['dim']:.0f}"),
            ("parameters", f"{own['parameters']:,.0f}"),
            ("effective rank of the codes", f"{own['effective_rank']:.1f} of {own['dim']:.0f}"),
            ("pixels per token", f"{own['pixels_per_token']:.0f}"),
            *number_rows(numbers),
        ],
        {"codebook": out / "codebook.png", "usage": out / "usage.png", "reconstructions": out / "reconstructions.png"},
    )


def _check_places(out: Path, paths: Iterable[str | Path], overwrite: bool) -> None:
    """Say before any work that files cannot be written below a folder.

    Raises:
        ValueError: If the folder is a file, one of them is there and may not be replaced or is no file, or the way to
            it is no folder or leads through a link out of ``out``.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder, got the file {out}; choose another --out")
    whole = out.resolve()
    taken: list[str | Path] = []
    checked: set[Path] = set()
    for path in paths:
        place = out / path
        if place.is_dir() and not place.is_symlink():
            raise ValueError(f"expected to write the file {place}, got a folder of that name; choose another --out")
        if os.path.lexists(place):
            taken.append(path)
        for folder in Path(path).parents:
            inside = out / folder
            if folder in checked or not os.path.lexists(inside):
                continue
            checked.add(folder)
            if not inside.is_dir():
                raise ValueError(f"expected a folder {inside} to write into, got something else; choose another --out")
            if not inside.resolve().is_relative_to(whole):
                raise ValueError(
                    f"expected folders inside of {out}, got {inside}, a link to {inside.resolve()}; remove the link or "
                    "choose another --out"
                )
    if taken and not overwrite:
        raise ValueError(
            f"expected a folder without the files to write, got {out}, which holds {taken[0]}"
            f"{' and others' if len(taken) > 1 else ''}; choose another --out, or replace files with --overwrite true"
        )


def encode_arguments(parser: Any) -> None:
    """Pictures and where their tokens go."""
    parser.add_argument(
        "images", type=str, help="picture or folder of pictures; of any sizes, unless the tokenizer wants one"
    )
    parser.add_argument("--tokenizer", type=str, required=True, help="tokenizer folder or Hub name")
    parser.add_argument("--out", type=str, default="tokens.npz", help="file to write: .npz or .parquet")
    parser.add_argument("--strict", type=bool, default=False, help="whether a broken file ends the run")
    _overwrite_argument(parser)


def encode(parser: Any, config: Any) -> None:
    """Turn pictures into tokens."""
    from rich.progress import track

    from gritvq.data import find_images, read_images
    from gritvq.metrics import CodebookUsage
    from gritvq.tokenizer import Tokenizer
    from gritvq.training.tokens import TokenizedImage, check_token_path, write_tokens

    out = check_token_path(config.out)
    _check_places(out.parent, [out.name], config.overwrite)
    tokenizer = Tokenizer.from_pretrained(config.tokenizer).fold()  # the codes made once for all pictures
    total = len(find_images(config.images))
    pictures = read_images(config.images, channels=tokenizer.channels, strict=config.strict)
    done: list[TokenizedImage] = []
    for name, image in track(pictures, total=total, description="encoding", console=console(), transient=True):
        try:
            tokens = tokenizer.encode(image)
        except ValueError as error:  # a size that the quantizer's layout does not take
            if config.strict:
                raise
            warnings.warn(f"left out {name}: {error}", stacklevel=1)
            continue
        done.append(TokenizedImage(name, (image.shape[1], image.shape[2]), tokens.cpu()))
    if not done:
        raise ValueError(f"expected at least one readable picture in {config.images}, got none; nothing was written")
    write_tokens(out, done)
    _warn_of_tokens(tokenizer.quantizer)
    used = CodebookUsage(tokenizer.quantizer.codebook_sizes)
    for item in done:
        used.update(item.tokens)
    num_tokens, bits = used.num_tokens, used.bits_per_token()
    pixels = sum(item.size[0] * item.size[1] for item in done)
    report(
        "encoded",
        [
            ("pictures", f"{len(done):,} of {total:,}"),
            ("tokens", f"{num_tokens:,}"),
            ("bits per token", f"{bits:.2f}"),
            ("bits per pixel", f"{bits * num_tokens / pixels:.3f}"),
        ],
        {"tokens": out},
    )


def _warn_of_tokens(quantizer: Quantizer) -> None:
    if quantizer.exact == "never":
        warnings.warn(
            "this quantizer's tokens do not reproduce its output: it is no tokenizer, see its page", stacklevel=1
        )


def decode_arguments(parser: Any) -> None:
    """Tokens and where their pictures go."""
    parser.add_argument("tokens", type=str, help="file written by encode: .npz or .parquet")
    parser.add_argument("--tokenizer", type=str, required=True, help="tokenizer folder or Hub name")
    parser.add_argument("--out", type=str, default="decoded", help="folder for the PNG files")
    _overwrite_argument(parser)


def decode(parser: Any, config: Any) -> None:
    """Turn tokens back into pictures."""
    from rich.progress import track

    from gritvq.tokenizer import Tokenizer
    from gritvq.training.tokens import picture_paths, read_tokens, save_png

    tokenizer = Tokenizer.from_pretrained(config.tokenizer).fold()  # the codes made once for all pictures
    items = read_tokens(config.tokens)
    out = Path(config.out)
    paths = picture_paths([item.name for item in items])
    _check_places(out, paths, config.overwrite)
    for item in items:
        _check_tokens(tokenizer, item)
    for item, path in zip(track(items, description="decoding", console=console(), transient=True), paths, strict=True):
        save_png(tokenizer.decode(item.tokens, item.size), out / path)
    report("decoded", [("pictures", f"{len(items):,}")], {"pictures": out})


def _check_tokens(tokenizer: Any, item: Any) -> None:
    """Say what does not fit before any picture is written."""
    import torch

    with torch.no_grad():
        grid = tuple(tokenizer.quantizer.decode(item.tokens[None]).shape[1:-1])
    expected = tuple(-(-side // tokenizer.factor) for side in item.size)
    if grid != expected:
        raise ValueError(
            f"expected tokens of a grid {expected} for {item.name}, of {item.size[0]} x {item.size[1]} pixels, got "
            f"{grid}; were they made with another tokenizer?"
        )


def export_arguments(parser: Any) -> None:
    """A tokenizer, and the form of its programs."""
    parser.add_argument("tokenizer", type=str, help="tokenizer folder or Hub name")
    parser.add_argument("--out", type=str, default="exported", help="folder for the two files")
    _overwrite_argument(parser)
    parser.add_argument("--format", type=str, default="onnx", choices=["onnx", "torch"], help=".onnx or .pt2 files")
    parser.add_argument("--size", type=tuple[int, int], default=None, help="[H,W] of all images; any if not given")


def export(parser: Any, config: Any) -> None:
    """Write encoder and decoder as programs that run without gritvq, and check them."""
    import torch

    from gritvq.export import load_program
    from gritvq.tokenizer import Tokenizer

    ending = "onnx" if config.format == "onnx" else "pt2"
    _check_places(Path(config.out), [f"{name}.{ending}" for name in ("encoder", "decoder")], config.overwrite)
    tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    _warn_of_tokens(tokenizer.quantizer)
    encoder, decoder = tokenizer.export(config.out, config.format, size=config.size)
    height, width = config.size or (8 * tokenizer.factor, 8 * tokenizer.factor)
    images = torch.rand(3, tokenizer.channels, height, width, generator=torch.Generator().manual_seed(0))
    tokens = tokenizer.encode(images)
    identical = load_program(encoder)(images) == tokens
    difference = (load_program(decoder)(tokens) - tokenizer.decode(tokens)).abs().max()
    report(
        "exported",
        [
            ("identical indices of random images", f"{int(identical.sum()):,} of {identical.numel():,}"),
            ("largest difference of decoded pixels", f"{float(difference):.1e}"),
        ],
        {"encoder": encoder, "decoder": decoder},
    )
