"""The program ``gritvq``: one verb per job, arguments straight from the constructors.

Every verb ends in a table of what came out and where its files lie. Wrong input ends with one message and exit code 2;
what was there before stays.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq import __version__, presets
from gritvq.base import Quantizer

__all__ = ["main"]

Verb = Callable[[Any, Any], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code: 0 done, 2 wrong input, 130 interrupted."""
    try:
        ArgumentParser = _parser_class()
        from lightning import Trainer  # noqa: F401
        from rich import print as _  # noqa: F401
    except ImportError as error:
        print(f"gritvq: error: this program needs {error.name}; install 'gritvq[train,images]'", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("huggingface_hub", "datasets"):  # their retries; what went wrong is in our message
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.showwarning = _show_warning
    parser = ArgumentParser(prog="gritvq", description="Train, use and look at tokenizers.", version=__version__)
    verbs = parser.add_subcommands(title="verbs", metavar="VERB", dest="verb")
    jobs: dict[str, tuple[Any, Verb]] = {}
    for name, (describe_arguments, job) in _VERBS.items():
        own = ArgumentParser(description=job.__doc__)
        describe_arguments(own)
        verbs.add_subcommand(name, own, help=(job.__doc__ or "").splitlines()[0])
        jobs[name] = own, job
    config = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    own, job = jobs[config.verb]
    try:
        job(own, config[config.verb])
    except (ValueError, OSError) as error:
        print(f"gritvq {config.verb}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"gritvq {config.verb}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser_class() -> Any:
    """The argument parser, with errors of one message instead of a page of usage."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            if not self.exit_on_error:
                return super().error(message, ex)
            parser = getattr(ex, "subcommand_parser", None) or self
            program = parser.prog.replace(" [options]", "")
            unknown = re.search(r"not accept option '([^']+)'", message)
            known = [action.dest for action in parser._actions]
            close = difflib.get_close_matches(unknown[1], known, 1) if unknown else []
            hint = f"did you mean '{close[0]}'? " if close else ""
            return self.exit(2, f"{program}: error: {message}\n{hint}see '{program} --help'\n")

    return Parser


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """Warnings as one line, without the source line that raised them."""
    print(f"warning: {message}", file=sys.stderr)


# --- demo, fit --------------------------------------------------------------------------------------------------------


def _demo_arguments(parser: Any) -> None:
    parser.add_argument("--out", type=str, default="runs/demo", help="folder of the run; replaced if it holds a demo")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps")
    parser.add_argument("--codebook_size", type=int, default=1024, help="number of codes K")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")


def _demo(parser: Any, config: Any) -> None:
    """Train a small tokenizer on photographs and show what it does; no data needed."""
    from gritvq.data import ImageData
    from gritvq.models import ImageDecoder, ImageEncoder
    from gritvq.tokenizer import Tokenizer
    from gritvq.training import TokenizerTask, TrainingPlan
    from gritvq.training.runs import prepare

    plan = TrainingPlan(max_steps=config.steps, seed=config.seed, validate_every=0, checkpoint_every=0)
    prepare(config.seed)
    quantizer = presets.grit_vq(16, config.codebook_size)
    task = TokenizerTask(Tokenizer(ImageEncoder(16), quantizer, ImageDecoder(16)))
    data = ImageData("photographs", batch_size=16)
    _fit_and_report(task, data, plan, _fresh_folder(config.out, overwrite=True), None)


def _fit_arguments(parser: Any) -> None:
    from gritvq.data import ImageData
    from gritvq.tokenizer import Tokenizer
    from gritvq.training import TokenizerTask, TrainingPlan

    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_class_arguments(Tokenizer, "tokenizer")
    parser.add_class_arguments(ImageData, "data")
    parser.add_class_arguments(TokenizerTask, "task", skip={"tokenizer"}, instantiate=False)
    parser.add_class_arguments(TrainingPlan, "plan")
    parser.add_argument("--out", type=str, default="runs/fit", help="folder of the run")
    parser.add_argument(
        "--resume", type=str | None, default=None, help="checkpoint to go on from, or 'last' for the run's own"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="whether an existing run may be replaced")
    parser.set_defaults(
        {
            "tokenizer.encoder": {"class_path": "gritvq.models.ImageEncoder", "init_args": {"dim": 16}},
            "tokenizer.quantizer": {"class_path": "gritvq.grit_vq", "init_args": {"dim": 16, "codebook_size": 4096}},
            "tokenizer.decoder": {"class_path": "gritvq.models.ImageDecoder", "init_args": {"dim": 16}},
        }
    )


def _fit(parser: Any, config: Any) -> None:
    """Train a tokenizer."""
    from gritvq.training import TokenizerTask
    from gritvq.training.files import replacing
    from gritvq.training.runs import check_checkpoint, prepare

    resume = config.resume
    if resume == "last":
        resume = str(Path(config.out) / "checkpoints" / "last.ckpt")
    if resume is not None and not Path(resume).is_file():
        raise ValueError(
            f"expected a checkpoint to resume from, got {resume}, which is no file; see the run's checkpoints/"
        )
    prepare(config.plan.seed)
    parts = parser.instantiate(config)
    parts.data.setup("fit")
    task = TokenizerTask(parts.tokenizer, **arguments_of(parts.task))
    out = Path(config.out)
    if resume is not None:
        check_checkpoint(task, resume)
    if not _is_main_process():  # started by the first one, which has made the folder
        _fit_and_report(task, parts.data, parts.plan, out, resume)
        return
    if resume is None or out.resolve() not in Path(resume).resolve().parents:
        _fresh_folder(config.out, config.overwrite)
    saved = config.clone()
    for name in ("config", "resume", "overwrite"):
        saved.pop(name, None)
    with replacing(out / "config.yaml") as scratch:
        scratch.write_text(parser.dump(saved, skip_validation=True), encoding="utf-8")
    _fit_and_report(task, parts.data, parts.plan, out, resume)


def _is_main_process() -> bool:
    """Whether this is the process that a person started, not one of those it started for other devices."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def arguments_of(namespace: Any) -> dict[str, Any]:
    """Top level of a namespace as keyword arguments."""
    return {name: getattr(namespace, name) for name in vars(namespace)}


def _fit_and_report(task: Any, data: Any, plan: Any, out: Path, resume: str | None) -> None:
    from gritvq.models import num_parameters
    from gritvq.training import evaluate, pictures, train
    from gritvq.training.callbacks import collapse_advice
    from gritvq.training.files import write_json

    tokenizer = task.tokenizer
    print(f"training {num_parameters(tokenizer):,} parameters for {plan.max_steps:,} steps", file=sys.stderr)
    started = time.perf_counter()
    trainer = train(task, data, plan, folder=out, resume=resume)
    if trainer.interrupted:
        raise KeyboardInterrupt
    minutes = (time.perf_counter() - started) / 60
    share = itertools.islice(data.val_dataloader(), trainer.global_rank, None, trainer.world_size)
    numbers, counts = evaluate(tokenizer.eval(), share, device=task.device)
    if not trainer.is_global_zero:
        return
    images = next(iter(data.val_dataloader()))[:16]
    pictures.reconstruction_grid(images, tokenizer(images.to(task.device)).reconstruction, out / "reconstructions.png")
    pictures.usage_plot(counts, out / "usage.png")
    pictures.codebook_picture(tokenizer, out / "codebook.png", counts)
    write_json(out / "metrics.json", numbers)
    _report(
        "held-out images",
        [*_number_rows(numbers), ("training time", f"{minutes:.1f} minutes")],
        {
            "tokenizer": out / "tokenizer",
            "originals and reconstructions": out / "reconstructions.png",
            "codebook": out / "codebook.png",
            "usage": out / "usage.png",
            "logs": out / "logs",
            "checkpoints": out / "checkpoints",
        },
    )
    advice = collapse_advice(numbers["usage"], max(tokenizer.quantizer.codebook_sizes), numbers["tokens"])
    if advice:
        print(advice, file=sys.stderr)


# --- validate, inspect ------------------------------------------------------------------------------------------------


def _measure_arguments(parser: Any, out: str) -> None:
    from gritvq.data import ImageData

    parser.add_argument("tokenizer", type=str, help="tokenizer folder or Hub name")
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_class_arguments(ImageData, "data")
    parser.add_argument(
        "--split", type=str, default="validation", choices=["validation", "test"], help="images to measure on"
    )
    parser.add_argument("--out", type=str, default=out, help="folder for pictures and numbers")


def _measure(parser: Any, config: Any) -> tuple[Any, dict[str, float], Any, Any, Path]:
    from rich.progress import track

    from gritvq.tokenizer import Tokenizer
    from gritvq.training import evaluate, pictures
    from gritvq.training.files import write_json
    from gritvq.training.runs import prepare

    prepare(0)
    tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    data = parser.instantiate(config).data
    data.setup("fit")
    loader = data.val_dataloader() if config.split == "validation" else data.test_dataloader()
    numbers, counts = evaluate(tokenizer, track(loader, description="measuring", console=_console(), transient=True))
    out = Path(config.out)
    images = next(iter(loader))[:16]
    pictures.reconstruction_grid(images, tokenizer(images).reconstruction.detach(), out / "reconstructions.png")
    pictures.usage_plot(counts, out / "usage.png")
    write_json(out / "metrics.json", numbers)
    return tokenizer, numbers, counts, loader, out


def _validate(parser: Any, config: Any) -> None:
    """Measure a tokenizer on images: PSNR, usage, perplexity."""
    _, numbers, _, _, out = _measure(parser, config)
    _report(
        f"{config.split} images of {config.data.path}",
        _number_rows(numbers),
        {
            "originals and reconstructions": out / "reconstructions.png",
            "usage": out / "usage.png",
            "numbers": out / "metrics.json",
        },
    )


def _inspect(parser: Any, config: Any) -> None:
    """Look into a tokenizer: its codes, how they are used, what they look like."""
    from gritvq.training import pictures
    from gritvq.training.runs import token_statistics

    tokenizer, numbers, counts, _, out = _measure(parser, config)
    pictures.codebook_picture(tokenizer, out / "codebook.png", counts)
    own = token_statistics(tokenizer)
    _report(
        config.tokenizer,
        [
            ("codes x dimensions", f"{own['codes']:.0f} x {own['dim']:.0f}"),
            ("parameters", f"{own['parameters']:,.0f}"),
            ("effective rank of the codes", f"{own['effective_rank']:.1f} of {own['dim']:.0f}"),
            ("pixels per token", f"{own['pixels_per_token']:.0f}"),
            *_number_rows(numbers),
        ],
        {"codebook": out / "codebook.png", "usage": out / "usage.png", "reconstructions": out / "reconstructions.png"},
    )


# --- encode, decode ---------------------------------------------------------------------------------------------------


def _encode_arguments(parser: Any) -> None:
    parser.add_argument(
        "images", type=str, help="picture or folder of pictures; of any sizes, unless the tokenizer wants one"
    )
    parser.add_argument("--tokenizer", type=str, required=True, help="tokenizer folder or Hub name")
    parser.add_argument("--out", type=str, default="tokens.npz", help="file to write: .npz or .parquet")
    parser.add_argument("--strict", type=bool, default=False, help="whether a broken file ends the run")


def _encode(parser: Any, config: Any) -> None:
    """Turn pictures into tokens."""
    from rich.progress import track

    from gritvq.data import find_images, read_images
    from gritvq.metrics import CodebookUsage
    from gritvq.tokenizer import Tokenizer
    from gritvq.training.tokens import TokenizedImage, check_token_path, write_tokens

    check_token_path(config.out)
    tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    total = len(find_images(config.images))
    pictures = read_images(config.images, channels=tokenizer.channels, strict=config.strict)
    done: list[TokenizedImage] = []
    for name, image in track(pictures, total=total, description="encoding", console=_console(), transient=True):
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
    write_tokens(config.out, done)
    _warn_of_tokens(tokenizer.quantizer)
    used = CodebookUsage(tokenizer.quantizer.codebook_sizes)
    for item in done:
        used.update(item.tokens)
    num_tokens, bits = used.num_tokens, used.bits_per_token()
    pixels = sum(item.size[0] * item.size[1] for item in done)
    _report(
        "encoded",
        [
            ("pictures", f"{len(done):,} of {total:,}"),
            ("tokens", f"{num_tokens:,}"),
            ("bits per token", f"{bits:.2f}"),
            ("bits per pixel", f"{bits * num_tokens / pixels:.3f}"),
        ],
        {"tokens": Path(config.out)},
    )


def _warn_of_tokens(quantizer: Quantizer) -> None:
    if quantizer.exact == "never":
        warnings.warn(
            "this quantizer's tokens do not reproduce its output: it is no tokenizer, see its page", stacklevel=1
        )


def _decode_arguments(parser: Any) -> None:
    parser.add_argument("tokens", type=str, help="file written by encode: .npz or .parquet")
    parser.add_argument("--tokenizer", type=str, required=True, help="tokenizer folder or Hub name")
    parser.add_argument("--out", type=str, default="decoded", help="folder for the PNG files")


def _decode(parser: Any, config: Any) -> None:
    """Turn tokens back into pictures."""
    from rich.progress import track

    from gritvq.tokenizer import Tokenizer
    from gritvq.training.tokens import picture_paths, read_tokens, save_png

    tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    items = read_tokens(config.tokens)
    out = Path(config.out)
    paths = picture_paths([item.name for item in items])
    for item, path in zip(track(items, description="decoding", console=_console(), transient=True), paths, strict=True):
        save_png(tokenizer.decode(item.tokens, item.size), out / path)
    _report("decoded", [("pictures", f"{len(items):,}")], {"pictures": out})


# --- export -----------------------------------------------------------------------------------------------------------


def _export_arguments(parser: Any) -> None:
    parser.add_argument("tokenizer", type=str, help="tokenizer folder or Hub name")
    parser.add_argument("--out", type=str, default="exported", help="folder for the two files")
    parser.add_argument("--format", type=str, default="onnx", choices=["onnx", "torch"], help=".onnx or .pt2 files")
    parser.add_argument("--size", type=tuple[int, int], default=None, help="[H,W] of all images; any if not given")


def _export(parser: Any, config: Any) -> None:
    """Write encoder and decoder as programs that run without gritvq, and check them."""
    import torch

    from gritvq.export import load_program
    from gritvq.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    _warn_of_tokens(tokenizer.quantizer)
    encoder, decoder = tokenizer.export(config.out, config.format, size=config.size)
    height, width = config.size or (8 * tokenizer.factor, 8 * tokenizer.factor)
    images = torch.rand(3, tokenizer.channels, height, width, generator=torch.Generator().manual_seed(0))
    tokens = tokenizer.encode(images)
    identical = load_program(encoder)(images) == tokens
    difference = (load_program(decoder)(tokens) - tokenizer.decode(tokens)).abs().max()
    _report(
        "exported",
        [
            ("identical indices of random images", f"{int(identical.sum()):,} of {identical.numel():,}"),
            ("largest difference of decoded pixels", f"{float(difference):.1e}"),
        ],
        {"encoder": encoder, "decoder": decoder},
    )


# --- compare, presets -------------------------------------------------------------------------------------------------


def _compare_arguments(parser: Any) -> None:
    from gritvq.data import ImageData
    from gritvq.training.compare import Contest

    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_argument(
        "--methods",
        type=dict[str, dict[str, Any] | None],
        default={name: {} for name in presets.__all__},
        help="settings by name; a name is a preset's unless the settings say which with 'preset'; 'codebook_size' in "
        "them gives a method its own",
    )
    parser.add_argument("--codebook_sizes", type=list[int], default=[1024], help="codebook sizes to compare at")
    parser.add_argument("--seeds", type=list[int], default=[0], help="one run per seed")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each with one thread if more than one")
    parser.add_class_arguments(Contest, "contest")
    parser.add_class_arguments(ImageData, "data")
    parser.add_argument(
        "--out", type=str, default="runs/compare", help="folder for the table, the numbers and the plot"
    )


def _compare(parser: Any, config: Any) -> None:
    """Train several methods on the same data, budget and seeds: one table, one plot."""
    from rich.progress import track

    from gritvq.data import ImageData
    from gritvq.training import pictures
    from gritvq.training.compare import (
        COMPARISON_COLUMNS,
        comparison_rows,
        describe_contest,
        mean_colour_row,
        run_contest,
        write_results,
    )

    contest = parser.instantiate(config).contest
    entries = contest_entries(config.methods, config.codebook_sizes, config.seeds)
    for entry in entries:
        entry.quantizer(contest.dim)  # what does not fit is said before anything runs
    make_data = functools.partial(ImageData, **arguments_of(config.data))
    make_data().setup("fit")
    out = Path(config.out)
    results = [mean_colour_row(contest, make_data)]
    about = {"contest": describe_contest(contest), "data": str(config.data.path)}
    runs = run_contest(contest, entries, make_data, jobs=config.jobs)
    for result in track(runs, total=len(entries), description="comparing", console=_console()):
        results.append(result)
        write_results(out / "results.csv", results, about)
    pictures.comparison_plot(results, out / "comparison.png")
    _table("comparison", COMPARISON_COLUMNS, comparison_rows(results))
    _files({"plot": out / "comparison.png", "numbers": out / "results.csv"})


def contest_entries(methods: Mapping[str, Any], sizes: Sequence[int], seeds: Sequence[int]) -> list[Any]:
    """Every method at every size and seed; a method whose settings name a ``codebook_size`` runs at that one alone.

    Raises:
        ValueError: For an unknown preset or setting, or where nothing is left to run.
    """
    from gritvq.training.compare import Entry

    entries = []
    for seed in seeds:
        for place, size in enumerate(sizes):
            for name, settings in methods.items():
                settings = dict(settings or {})
                preset = settings.pop("preset", name)
                if preset not in presets.__all__:
                    raise ValueError(f"expected a preset out of {', '.join(presets.__all__)}, got {preset!r}")
                own = settings.pop("codebook_size", None)
                if own is None or place == 0:
                    entries.append(Entry(name, getattr(presets, preset), own or size, seed, settings))
    if not entries:
        raise ValueError("expected at least one method, one codebook size and one seed; one of the lists is empty")
    return entries


def _presets_arguments(parser: Any) -> None:
    parser.add_argument("--dim", type=int, default=16, help="latent size for the parameter counts")
    parser.add_argument("--codebook_size", type=int, default=1024, help="codebook size for the parameter counts")


def _presets(parser: Any, config: Any) -> None:
    """List the published recipes, one line each, with their papers."""
    rows = []
    for name in presets.__all__:
        make: Callable[..., Quantizer] = getattr(presets, name)
        line = (make.__doc__ or "").strip().splitlines()[0]
        size = sum(p.numel() for p in make(config.dim, config.codebook_size).parameters())
        rows.append((name, f"{size:,}", line, paper_of(make)))
    _table("presets", ("name", "parameters", "what it is", "paper"), rows)


def paper_of(preset: Callable[..., Quantizer]) -> str:
    """First source of a preset, from its docstring: authors, venue and arXiv id, without the title.

    Example:
        >>> paper_of(presets.vq_vae)
        'van den Oord et al., NeurIPS 2017, arXiv 1711.00937'
    """
    text = " ".join((preset.__doc__ or "").partition("References:")[2].split())
    text = re.sub(r'"[^"]*",?\s*', "", text.removeprefix("After "))
    identified = re.match(r".*?arXiv \d{4}\.\d{5}", text)
    return identified[0] if identified else re.split(r"[.;] ", text + " ")[0].rstrip(".")


# --- printing ---------------------------------------------------------------------------------------------------------


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _number_rows(numbers: Mapping[str, float]) -> list[tuple[str, str]]:
    return [
        ("PSNR", f"{numbers['psnr']:.2f} dB ({numbers['psnr_per_image']:.2f} averaged over images)"),
        ("codes in use", f"{100 * numbers['usage']:.2f} % ({numbers['dead_codes']:.0f} dead)"),
        ("perplexity", f"{numbers['perplexity']:.0f}"),
        ("tokens counted", f"{numbers['tokens']:,.0f}"),
        ("bits per token", f"{numbers['bits_per_token']:.2f}"),
        ("bits per pixel", f"{numbers['bits_per_pixel']:.3f}"),
    ]


def _report(title: str, rows: Sequence[tuple[str, str]], files: Mapping[str, Path]) -> None:
    _table(title, None, rows)
    _files(files)


def _table(title: str, columns: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=columns is not None)
    for number, column in enumerate(columns or [""] * len(rows[0])):
        number_like = number >= 2 and all(re.match(r"[\d<-]", row[number]) for row in rows)
        table.add_column(column, justify="right" if number_like else "left", no_wrap=columns is not None and number < 2)
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=max(console.width, 100) if not console.is_terminal else None).print(table)


def _files(files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        print(f"{name}: {path}")


def _fresh_folder(path: str, overwrite: bool) -> Path:
    """A folder for a new run; an old run there is an error unless it may be replaced."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder for the run, got the file {folder}; choose another --out")
    if folder.exists() and any(folder.iterdir()):
        run = (folder / "checkpoints").exists() or (folder / "tokenizer").exists() or (folder / "config.yaml").exists()
        if not (overwrite and run):
            raise ValueError(
                f"expected a new or empty folder, got {folder}, which holds files; choose another --out, go on with "
                "--resume last, or replace a run with --overwrite true"
            )
        import shutil

        for name in ("logs", "checkpoints", "tokenizer"):
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_VERBS: dict[str, tuple[Callable[[Any], None], Verb]] = {
    "demo": (_demo_arguments, _demo),
    "fit": (_fit_arguments, _fit),
    "validate": (functools.partial(_measure_arguments, out="runs/validate"), _validate),
    "inspect": (functools.partial(_measure_arguments, out="runs/inspect"), _inspect),
    "encode": (_encode_arguments, _encode),
    "decode": (_decode_arguments, _decode),
    "export": (_export_arguments, _export),
    "compare": (_compare_arguments, _compare),
    "presets": (_presets_arguments, _presets),
}
