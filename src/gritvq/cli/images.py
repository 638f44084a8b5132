"""The jobs of ``validate``, ``inspect``, ``export``, ``encode`` and ``decode`` for pictures."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.machine import device_named
from gritvq.cli.output import console, number_rows, report
from gritvq.cli.run_folder import check_places, own_data
from gritvq.cli.settings import check_positive
from gritvq.cli.tokens import token_rows, warn_of_tokens
from gritvq.training.run_folder import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gritvq.bulk import PictureWork
    from gritvq.images.files import Picture, Pictures
    from gritvq.images.tokenizer import ImageTokenizer
    from gritvq.tokens import TokenRow

__all__ = [
    "decode",
    "encoded",
    "export",
    "inspect",
    "latents",
    "size_of",
    "validate",
    "work",
]


def _batches(pictures: Pictures, batch_size: int, doing: str) -> Iterator[tuple[list[Picture], Tensor]]:
    """Batches of whole pictures, with a progress bar on stderr."""
    from rich.progress import Progress

    check_positive(batch_size=batch_size)
    with Progress(console=console(), transient=True) as progress:
        bar = progress.add_task(doing, total=len(pictures))
        for group, images in pictures.batches(batch_size):
            yield group, images
            progress.advance(bar, len(group))


_SHOWN = 16


def _measure(
    tokenizer: ImageTokenizer, parser: Any, config: Any, *more: str
) -> tuple[Tensor, list[tuple[str, str]], RunFolder]:
    """Evaluate a tokenizer: counts of its codes, rows for a table, and the folder of the plots."""
    import torch

    from gritvq.bulk.pictures import fits
    from gritvq.files import write_json
    from gritvq.images import plots as pictures
    from gritvq.images.evaluation import evaluate

    run = RunFolder(config.out)
    files = [path.name for path in (run.metrics, run.reconstructions, run.usage)]
    check_places(run.path, [*files, *more], config.overwrite)
    device = device_named(config.device)
    tokenizer = tokenizer.to(device)
    perceptual = parser.instantiate(config).perceptual
    measured, about = _pictures_to_measure(config, tokenizer)
    shown: list[Tensor] = []

    def fitting() -> Iterator[Tensor]:
        for group, images in _batches(measured, config.batch_size, "measuring"):
            if fits(tokenizer, group, config.data.strict):
                shown.extend(image.clone() for image in images[: _SHOWN - len(shown)])
                yield images

    numbers, counts = evaluate(tokenizer, fitting(), device=device, perceptual=perceptual)
    if not shown:
        raise ValueError(f"expected at least one readable picture in {about['data']}, got none; nothing was written")
    folded = tokenizer.fold()
    with torch.no_grad():
        decoded = [folded(image[None].to(device)).reconstruction[0] for image in shown]
    pictures.reconstruction_grid(shown, decoded, run.reconstructions)
    pictures.usage_plot(counts, run.usage)
    write_json(run.metrics, {**numbers, **about})
    return counts, [*about.items(), *number_rows(numbers)], run


def _pictures_to_measure(config: Any, tokenizer: ImageTokenizer) -> tuple[Pictures, dict[str, str]]:
    """Whole pictures, and their ``data`` and ``split`` for the report."""
    from gritvq.images.data import ImageData
    from gritvq.images.files import open_pictures

    path = config.data.path
    if path is not None:
        split = None if config.split == "all" else config.split
        reading = {"column": config.data.column or "image", "strict": config.data.strict}
        pictures = open_pictures(path, channels=tokenizer.channels, split=split, **reading)
        said = pictures.describe()["splits"]
        return pictures, {"data": path, "split": ", ".join(f"{key} ({', '.join(said[key])})" for key in said)}
    settings = own_data(tokenizer, config.tokenizer)
    split = "validation" if config.split == "held_out" else config.split
    known = settings.pop("splits", None)
    try:
        data = ImageData(**{**settings, "channels": tokenizer.channels})
        pictures, said = data.pictures(split), data.describe()["splits"]
        if known is not None and known != said:
            raise ValueError(f"other pictures than in training: {data.summary()}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected {split} pictures of the data that {config.tokenizer} was trained on, got none ({error}); give "
            "others with --data.path"
        ) from error
    return pictures, {"data": data.path, "split": f"{split} ({said[split]['from']}) of the tokenizer's own run"}


def validate(tokenizer: ImageTokenizer, parser: Any, config: Any) -> None:
    """Evaluate a tokenizer on whole pictures, see :func:`gritvq.cli.measure.measure_arguments`."""
    _, rows, run = _measure(tokenizer, parser, config)
    report(
        config.tokenizer,
        rows,
        {
            "originals and reconstructions": run.reconstructions,
            "usage": run.usage,
            "numbers": run.metrics,
        },
    )


def inspect(tokenizer: ImageTokenizer, parser: Any, config: Any) -> None:
    """Also plot what the codes decode to."""
    from gritvq.images import plots as pictures
    from gritvq.images.evaluation import token_statistics

    counts, rows, run = _measure(tokenizer, parser, config, RunFolder(config.out).codebook.name)
    pictures.codebook_picture(tokenizer, run.codebook, counts)
    own = token_statistics(tokenizer.cpu())
    report(
        config.tokenizer,
        [
            ("codes x dimensions", f"{own['codes']:.0f} x {own['dim']:.0f}"),
            ("parameters", f"{own['parameters']:,.0f}"),
            ("effective rank of the codes", f"{own['effective_rank']:.1f} of {own['dim']:.0f}"),
            ("pixels per token", f"{own['pixels_per_token']:.0f}"),
            *rows,
        ],
        {"codebook": run.codebook, "usage": run.usage, "reconstructions": run.reconstructions},
    )


def latents(
    tokenizer: ImageTokenizer, config: Any, source: str, settings: Mapping[str, Any] | None
) -> tuple[Tensor, str, float]:
    """Latents of pictures, as training sees them: of the training crops of a run, or of whole pictures that are given.

    Args:
        tokenizer: On its device, in eval mode.
        config: See :func:`gritvq.cli.doctor.doctor_arguments`.
        source: The tokenizer's folder.
        settings: The data of its run; what the tokenizer says itself where None.

    Returns:
        Latents (N, D), or (B, h, w, D) where vectors are quantized together; where they come from; latents per picture
        in training.

    Raises:
        ValueError: If the data is not there, or no picture can be read.
    """
    import torch

    from gritvq.bulk.pictures import fits
    from gritvq.images.data import ImageData
    from gritvq.images.files import open_pictures

    device = next(tokenizer.parameters()).device
    factor, together, most = tokenizer.factor, bool(tokenizer.quantizer.layout), config.num_images
    own = dict(settings) if settings is not None else {}
    size = own.get("size")
    if config.data.path is not None:
        pictures = open_pictures(
            config.data.path,
            channels=tokenizer.channels,
            split=None,
            column=config.data.column or "image",
            strict=config.data.strict,
        )
        groups = (
            images
            for group, images in _batches(pictures, config.batch_size, "encoding")
            if fits(tokenizer, group, False)
        )
        about = f"pictures of {config.data.path}"
    else:
        known = own_data(tokenizer, source) if settings is None else own
        names = ("path", "size", "channels", "column", "num_validation", "seed")
        try:
            data = ImageData(**{k: v for k, v in known.items() if k in names}, batch_size=config.batch_size)
            data.setup("fit")
        except (TypeError, ValueError, OSError) as error:
            raise ValueError(f"the data of the run is not there: {error}") from error
        groups = (images for images in data.train_dataloader())
        about, size = f"training pictures of {data.path}", data.size
    found: list[Tensor] = []
    room = max(1, 2**17 // most)  # of one picture, so that all have a say
    known_ones: set[bytes] = set()
    seen, idle = 0, 0
    for images in groups:
        marks = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
        new = [k for k, mark in enumerate(marks) if mark not in known_ones and mark not in marks[:k]][: most - seen]
        known_ones |= set(marks)
        idle = 0 if new else idle + 1
        if idle > _SHOWN:  # training goes round without end
            break
        if not new:
            continue
        images = images[new]
        grid = tokenizer.latents(images.to(device))
        rows = grid.flatten(1, -2)
        found.append(grid if together else rows[:, :: -(-rows.shape[1] // room)].flatten(0, 1))
        seen += len(images)
        if seen >= most:
            break
    if not found:
        raise ValueError(f"expected at least one readable picture in {config.data.path}, got none; give others")
    side = -(-int(size) // factor) if isinstance(size, int) else None
    per_picture = float(side**2 if side else rows.shape[1])
    if together:
        found = [grid for grid in found if grid.shape[1:] == found[0].shape[1:]]
    return torch.cat(found), f"{seen:,} {about if seen > 1 else about.replace('pictures', 'picture', 1)}", per_picture


def work(tokenizer: ImageTokenizer, config: Any) -> PictureWork:
    """Pictures to encode as tokens, see :func:`gritvq.cli.tokens.encode_arguments`."""
    from gritvq.bulk import PictureWork, Views
    from gritvq.images.files import open_pictures

    photographs = config.data == "photographs" and config.split == "train" and config.random_crops is not None
    views = Views(
        **{name: config[name] for name in ("size", "ten_crops", "random_crops", "seed", "flip")}, outside=photographs
    )
    whole = photographs or config.split == "all"  # their training crops come from what is not held out
    pictures = open_pictures(
        config.data,
        channels=tokenizer.channels,
        split=None if whole else config.split,
        column=config.column or "image",
        label=config.label,
        strict=config.strict,
        max_pixels=config.max_pixels,
        max_bytes=config.max_bytes,
    )
    if _has_parts(config, pictures):
        pictures = pictures.part(_part_of(tokenizer, config))
    own = {"views": views, "classes_from": config.classes_from}
    return PictureWork(tokenizer, pictures, config.data, config.batch_size, **own)


def _has_parts(config: Any, pictures: Pictures) -> bool:
    """Whether a split is asked for of pictures whose names determine none, so that it is a part of them."""
    from gritvq.images.files import ALL

    named = config.data == "photographs" or list(pictures.describe()["splits"]) != [ALL]
    return config.split != "all" and not named


def _part_of(tokenizer: ImageTokenizer, config: Any) -> list[int]:
    """Numbers of the pictures that ``fit images`` trains on, or holds out, if names determine no split.

    As many are held out as in the tokenizer's own run if it was trained on these pictures.

    Raises:
        ValueError: If there is but one picture, of which none is held out.
    """
    from gritvq.images.data import ImageData

    settings: dict[str, Any] = {"channels": tokenizer.channels, "column": config.column or "image"}
    with contextlib.suppress(ValueError):  # no record of a run
        own = own_data(tokenizer, config.tokenizer)
        number = own.get("num_validation")
        if isinstance(number, int) and Path(str(own.get("path"))).resolve() == Path(config.data).resolve():
            settings["num_validation"] = number
    data = ImageData(config.data, **settings)
    return sorted(map(int, data.pictures("train" if config.split == "train" else "validation").numbers))


def encoded(config: Any, work: PictureWork, counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """What was encoded, for the report."""
    from gritvq.bulk import bits_per_token

    what = "samples" if config.size or config.flip else "pictures"
    bits = bits_per_token(counts, work.tokenizer.quantizer.codebook_sizes)
    part = f"{config.split} of 'fit images', since no file or folder name sets one"
    return [
        *([("split", part)] if _has_parts(config, work.pictures) else []),
        (what, f"{counts['samples']:,} of {len(work.pictures):,}{'' if what == 'pictures' else ' pictures'}"),
        ("labels", f"{counts['labels']:,}"),
        ("tokens", f"{counts['positions']:,}"),
        ("bits per token", f"{bits:.2f}"),
        ("bits per pixel", f"{bits * counts['positions'] / counts['pixels']:.3f}"),
    ]


def decode(tokenizer: ImageTokenizer, config: Any, device: torch.device) -> None:
    """Decode tokens to PNG files, see :func:`gritvq.cli.tokens.decode_arguments`."""
    from rich.progress import track

    from gritvq.images.files import picture_paths, save_png

    tokenizer = tokenizer.fold().to(device)  # codes made once
    names = []
    for row in token_rows(config.tokens):  # check all tokens before anything is written
        _check_tokens(tokenizer, row, device)
        names.append(row.name)
    out = Path(config.out or "decoded")
    paths = picture_paths(names)
    check_places(out, paths, config.overwrite)
    rows = track(token_rows(config.tokens), "decoding", len(paths), console=console(), transient=True)
    for row, path in zip(rows, paths, strict=True):
        save_png(tokenizer.decode(row.tokens, size_of(row)), out / path)
    report("decoded", [("pictures", f"{len(paths):,}")], {"pictures": out})


def size_of(row: TokenRow) -> tuple[int, int]:
    """Height and width in pixels of the encoded picture."""
    sides = [side for side in map(row.columns.get, ("height", "width")) if isinstance(side, int) and side > 0]
    if len(sides) != 2:
        raise ValueError(
            f"expected the height and width of {row.name} in pixels among the columns, got {dict(row.columns)}; use "
            "tokens of pictures"
        )
    return sides[0], sides[1]


def _check_tokens(tokenizer: ImageTokenizer, row: TokenRow, device: torch.device) -> None:
    """Check tokens before any picture is written."""
    import torch

    size = size_of(row)
    with torch.no_grad():
        grid = tuple(tokenizer.quantizer.decode(row.tokens[None].to(device)).shape[1:-1])
    expected = tuple(-(-side // tokenizer.factor) for side in size)
    if grid != expected:
        raise ValueError(
            f"expected tokens of a grid {expected} for {row.name}, of {size[0]} x {size[1]} pixels, got {grid}; use "
            "the tokenizer that made them"
        )


def export(tokenizer: ImageTokenizer, config: Any) -> None:
    """Export encoder and decoder, see :func:`gritvq.cli.measure.export_arguments`."""
    from gritvq.images.evaluation import compare_programs

    ending = "onnx" if config.format == "onnx" else "pt2"
    check_places(Path(config.out), [f"{name}.{ending}" for name in ("encoder", "decoder")], config.overwrite)
    warn_of_tokens(tokenizer.quantizer)
    encoder, decoder = tokenizer.export(config.out, config.format, size=config.size)
    identical, difference = compare_programs(tokenizer, encoder, decoder, config.size)
    report(
        "exported",
        [
            ("identical indices of random images", f"{int(identical.sum()):,} of {identical.numel():,}"),
            ("largest difference of decoded pixels", f"{difference:.1e}"),
        ],
        {"encoder": encoder, "decoder": decoder},
    )
