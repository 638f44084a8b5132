"""What every verb shows: tables, the files it wrote, progress on the other stream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["arguments_of", "console", "list_files", "number_rows", "report", "table"]


def arguments_of(namespace: Any) -> dict[str, Any]:
    """Top level of a namespace as keyword arguments."""
    return {name: getattr(namespace, name) for name in vars(namespace)}


def console() -> Any:
    """For progress: the error stream, so that results can be piped."""
    from rich.console import Console

    return Console(stderr=True)


def number_rows(numbers: Mapping[str, float]) -> list[tuple[str, str]]:
    """What evaluation found, as rows of a table."""
    return [
        ("PSNR", f"{numbers['psnr']:.2f} dB ({numbers['psnr_per_image']:.2f} averaged over images)"),
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
    """Print rows; columns of numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    rich_table = Table(title=title, title_justify="left", show_header=columns is not None)
    for number, column in enumerate(columns or [""] * len(rows[0])):
        number_like = number >= 2 and all(re.match(r"[\d<-]", row[number]) for row in rows)
        rich_table.add_column(
            column, justify="right" if number_like else "left", no_wrap=columns is not None and number < 2
        )
    for row in rows:
        rich_table.add_row(*row)
    terminal = Console()
    Console(width=max(terminal.width, 100) if not terminal.is_terminal else None).print(rich_table)


def list_files(files: Mapping[str, Path]) -> None:
    """Print names and paths, one per line."""
    for name, path in files.items():
        print(f"{name}: {path}")
