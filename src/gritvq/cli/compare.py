"""The verbs ``compare`` and ``presets``."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.cli.output import arguments_of, console, list_files, table
from gritvq.quantizers import presets
from gritvq.quantizers.base import Quantizer

__all__ = [
    "compare",
    "compare_arguments",
    "comparison_entries",
    "paper_of",
    "preset_named",
    "presets_arguments",
    "show_presets",
]


def compare_arguments(parser: Any) -> None:
    """Arguments of compare."""
    from gritvq.images.comparison import Comparison
    from gritvq.images.data import ImageData

    parser.add_argument("--config", action="config", help="YAML file with any of the arguments below")
    parser.add_argument(
        "--methods",
        type=dict[str, dict[str, Any] | None],
        default={name: {} for name in presets.__all__},
        help="settings by method; a method is the preset of that name, or the one in its setting 'preset'; its setting "
        "'codebook_size' replaces --codebook_sizes",
    )
    parser.add_argument("--codebook_sizes", type=list[int], default=[1024], help="codebook sizes to compare at")
    parser.add_argument("--seeds", type=list[int], default=[0], help="one run per seed")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, each with one thread if > 1")
    parser.add_class_arguments(Comparison, "comparison")
    parser.add_class_arguments(ImageData, "data")
    parser.add_argument(
        "--out", type=str, default="runs/compare", help="folder for the table, the numbers and the plot"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="whether existing results may be replaced")


def compare(parser: Any, config: Any) -> None:
    """Train several methods with the same data, budget and seeds, and compare them in a table and a plot."""
    from rich.progress import track

    from gritvq.images import plots as pictures
    from gritvq.images.comparison import (
        COMPARISON_COLUMNS,
        FailedRuns,
        comparison_rows,
        describe_comparison,
        mean_color_row,
        run_comparison,
    )
    from gritvq.images.data import ImageData
    from gritvq.results import write_results

    out = Path(config.out)
    numbers = out / "results.csv"
    if numbers.exists() and not config.overwrite:
        raise ValueError(
            f"expected a folder without results, got {out}, which holds {numbers.name}; choose another --out, or "
            "replace them with --overwrite true"
        )
    comparison = parser.instantiate(config).comparison
    entries = comparison_entries(config.methods, config.codebook_sizes, config.seeds)
    for entry in entries:
        entry.quantizer(comparison.dim)  # wrong settings raise before anything runs
    make_data = functools.partial(ImageData, **arguments_of(config.data))
    make_data().setup("fit")
    results = [mean_color_row(comparison, make_data)]
    about = {"comparison": describe_comparison(comparison), "data": str(config.data.path)}
    runs = run_comparison(comparison, entries, make_data, jobs=config.jobs)
    failure = None
    try:
        for result in track(runs, total=len(entries), description="comparing", console=console()):
            results.append(result)
            write_results(numbers, results, about)
    except FailedRuns as error:
        if len(results) == 1:  # the baseline only
            raise
        failure = error
    pictures.comparison_plot(results, out / "comparison.png")
    table("comparison", COMPARISON_COLUMNS, comparison_rows(results))
    list_files({"plot": out / "comparison.png", "numbers": numbers})
    if failure is not None:
        raise failure


def comparison_entries(methods: Mapping[str, Any], sizes: Sequence[int], seeds: Sequence[int]) -> list[Any]:
    """Every method at every size and seed; one with the setting ``codebook_size`` runs at that size only.

    Raises:
        ValueError: If a preset or setting is unknown, or there is nothing to run.
    """
    from gritvq.images.comparison import Entry

    entries = []
    for seed in dict.fromkeys(seeds):
        for place, size in enumerate(dict.fromkeys(sizes)):
            for name, settings in methods.items():
                settings = dict(settings or {})
                preset = settings.pop("preset", name)
                make = preset_named(preset)
                own = settings.pop("codebook_size", None)
                if own is None or place == 0:
                    entries.append(Entry(name, make, own or size, seed, settings))
    if not entries:
        raise ValueError("expected at least one method, one codebook size and one seed; one of the lists is empty")
    return entries


def presets_arguments(parser: Any) -> None:
    """Arguments of presets."""
    parser.add_argument("name", nargs="?", type=str | None, default=None, help="a preset, to show its arguments")
    parser.add_argument("--dim", type=int, default=16, help="latent size for the parameter counts")
    parser.add_argument("--codebook_size", type=int, default=1024, help="codebook size for the parameter counts")


def show_presets(parser: Any, config: Any) -> None:
    """List the presets with their papers, or show the arguments of one."""
    if config.name is not None:
        preset = preset_named(config.name)
        print(f"{config.name}: {_first_line(preset)}\n{paper_of(preset)}\n")
        table("arguments", ("argument", "type", "default"), _arguments(preset))
        print(
            f"gritvq fit images --preset {config.name} --codebook_size 1024 --dim 16, and others as "
            "--tokenizer.quantizer.NAME"
        )
        return
    rows = []
    for name in presets.__all__:
        make: Callable[..., Quantizer] = getattr(presets, name)
        size = sum(p.numel() for p in make(config.dim, config.codebook_size).parameters())
        status = "; contrib" if "Status: contrib" in (make.__doc__ or "") else ""  # docs/policy.md says what that is
        rows.append((name, f"{size:,}", _first_line(make), paper_of(make) + status))
    table("presets", ("name", "parameters", "what it is", "paper"), rows)


def preset_named(name: str) -> Callable[..., Quantizer]:
    """The preset of this name; raises a ValueError if there is none."""
    if name not in presets.__all__:
        close = difflib.get_close_matches(name, presets.__all__, 1)
        raise ValueError(
            f"expected a preset out of {', '.join(presets.__all__)}, got {name!r}"
            f"{f'; did you mean {close[0]!r}?' if close else '; see gritvq presets'}"
        )
    preset: Callable[..., Quantizer] = getattr(presets, name)
    return preset


def _first_line(preset: Callable[..., Quantizer]) -> str:
    return (preset.__doc__ or "").strip().splitlines()[0]


def _arguments(preset: Callable[..., Quantizer]) -> list[tuple[str, str, str]]:
    """Name, type and default of a preset's arguments."""
    empty = inspect.Parameter.empty
    return [
        (name, str(found.annotation), "" if found.default is empty else str(found.default))
        for name, found in inspect.signature(preset).parameters.items()
    ]


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
