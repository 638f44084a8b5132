"""Output of all verbs: tables and files on stdout, progress on stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["arguments_of", "console", "list_files", "number_rows", "report", "table", "tracked", "trusted_argument"]


def arguments_of(namespace: Any) -> dict[str, Any]:
    """Top level of a namespace as keyword arguments."""
    return {name: getattr(namespace, name) for name in vars(namespace)}


def trusted_argument(parser: Any) -> None:
    """``--trusted`` of verbs that load models with classes outside gritvq."""
    parser.add_argument(
        "--trusted", type=list[str], default=[], help="modules besides gritvq whose classes may be loaded: [NAME,...]"
    )


def console() -> Any:
    """A console on stderr for progress, so that results can be piped."""
    from rich.console import Console

    return Console(stderr=True)


def tracked(parts: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """Iterate with a progress bar on stderr, or a line after every tenth if it is not a terminal.

    Args:
        parts: What to iterate over.
        what: What is done, in words.
        total: Number of parts of a stream; None for a collection.
    """
    from rich.progress import track

    if total is None:
        parts = list(parts)
        total = len(parts)

    shown = console()
    if shown.is_terminal:
        yield from track(parts, description=what, total=total, console=shown, transient=True)
        return
    for number, part in enumerate(parts, 1):
        yield part
        if number * 10 // total > (number - 1) * 10 // total:
            print(f"{what}: {number:,} of {total:,}", file=sys.stderr, flush=True)


def number_rows(numbers: Mapping[str, float]) -> list[tuple[str, str]]:
    """Metrics of an evaluation as rows of a table."""
    more = {"ssim": "SSIM", "perceptual_distance": "perceptual distance"}
    return [
        ("PSNR", f"{numbers['psnr']:.2f} dB ({numbers['psnr_per_image']:.2f} averaged over images)"),
        *((word, f"{numbers[name]:.4f}") for name, word in more.items() if name in numbers),
        ("codes in use", f"{100 * numbers['usage']:.2f} % ({numbers['dead_codes']:.0f} dead)"),
        ("codes in use if drawn evenly", f"{100 * numbers['uniform_usage']:.2f} %"),
        ("perplexity", f"{numbers['perplexity']:.0f}"),
        ("pictures", f"{numbers['pictures']:,.0f}"),
        ("tokens counted", f"{numbers['tokens']:,.0f}"),
        ("bits per token", f"{numbers['bits_per_token']:.2f}"),
        ("bits per pixel", f"{numbers['bits_per_pixel']:.3f}"),
    ]


def report(title: str, rows: Sequence[tuple[str, str]], files: Mapping[str, Path]) -> None:
    """A table of two columns, then the files."""
    table(title, None, rows)
    list_files(files)


def table(title: str, columns: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    """Print rows; columns of numbers are aligned to the right.

    Text is never interpreted as markup or truncated. In a terminal long text wraps; if names and numbers do not fit
    side by side, the cells of a row are printed below each other. In a file or a pipe each row is one line.
    """
    from rich.console import Console
    from rich.table import Table

    def new() -> Any:
        return Table(title=_plain(title), title_justify="left", show_header=False)

    terminal = Console()
    plain = new()
    needed = 1
    for number, column in enumerate(columns or [""] * len(rows[0])):
        cells = [row[number] for row in rows]
        number_like = number >= 2 and all(re.match(r"[\d<-]", cell) for cell in cells)
        whole = columns is not None and (number < 2 or number_like)
        least = [column, *cells] if whole else column.split()
        width = max((_plain(text).cell_len for text in least), default=1)
        plain.add_column(
            _plain(column),
            justify="right" if number_like else "left",
            no_wrap=whole,
            min_width=width,
            overflow="fold",
        )
        needed += width + 3
    for row in rows:
        plain.add_row(*map(_plain, row))
    plain.show_header = columns is not None
    if not terminal.is_terminal:
        natural = terminal.measure(plain, options=terminal.options.update(width=1_000_000)).maximum
        terminal = Console(width=max(natural, _plain(title).cell_len))
    elif columns is not None and needed > terminal.width:
        plain = new()
        for row in rows:
            for column, cell in zip(columns, row, strict=True):
                plain.add_row(_plain(column), _plain(cell), end_section=column == columns[-1])
        for part in plain.columns:
            part.overflow = "fold"
    terminal.print(plain)


def _plain(text: str) -> Any:
    """Text without markup; control characters become blanks."""
    from rich.text import Text

    return Text(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text))


def list_files(files: Mapping[str, Path]) -> None:
    """Print names and paths, one per line."""
    for name, path in files.items():
        print(f"{name}: {path}")
