"""Image reconstruction: tune every preset on held-out training images, then measure the winners on the test images.

    python -m benchmarks.quality.image --data PATH-TO-CIFAR10

Writes ``benchmarks/results/image_tuning_*.csv`` and ``benchmarks/results/image_*.csv``. A run that is in them already
is not repeated, so an interrupted benchmark goes on where it stopped; delete the files to start over.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from benchmarks.quality.common import HERE, RESULTS, circumstances, results_file
from rich.progress import track

from gritvq.images import ImageData
from gritvq.images.comparison import Comparison, Entry, describe_comparison, run_comparison
from gritvq.quantizers import presets
from gritvq.results import read_results, write_results


def key(result: Any) -> tuple[str, str, int, int]:
    """What identifies a run within one comparison."""
    return result["method"], result["settings"], result["codebook_size"], result["seed"]


def settings_text(entry: Entry) -> str:
    """As in the results."""
    return " ".join(f"{k}={v}" for k, v in entry.settings.items()) or "-"


def complete(
    path: Path, comparison: Comparison, entries: Sequence[Entry], data: ImageData | Any, name: str, jobs: int
) -> list[dict[str, Any]]:
    """Run what a results file lacks, drop what is no longer asked for, return all results of this comparison."""
    about = circumstances(describe_comparison(comparison), name)
    results = read_results(path) if path.exists() else []
    others = [r for r in results if (r["comparison"], r["data"]) != (about["comparison"], name)]
    wanted = {(e.method, settings_text(e), e.codebook_size, e.seed): e for e in entries}
    done = [r for r in results if (r["comparison"], r["data"]) == (about["comparison"], name) and key(r) in wanted]
    have = {key(r) for r in done}
    missing = [entry for k, entry in wanted.items() if k not in have]
    for result in track(
        run_comparison(comparison, missing, data, jobs=jobs), total=len(missing), description=path.stem
    ):
        done.append({**result, **about})
        write_results(path, others + done, about)
    write_results(path, others + done, about)
    return done


def main() -> None:
    """Tune, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--plan", type=Path, default=HERE / "image.yaml", help="methods, grids, budget")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at once, one thread each")
    parser.add_argument("--stop-after-tuning", action="store_true")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.plan.read_text())
    comparison = Comparison(**plan["comparison"])
    make_data = functools.partial(ImageData, arguments.data, **plan["data"])
    name = Path(arguments.data).name

    grid = [
        Entry(method, getattr(presets, method), int(size), plan["tuning_seed"], settings)
        for size, methods in plan["grid"].items()
        for method, choices in methods.items()
        for settings in choices
    ]
    tuning = replace(comparison, split="validation")
    tuned = complete(results_file(RESULTS, "image_tuning"), tuning, grid, make_data, name, arguments.jobs)
    if arguments.stop_after_tuning:
        return
    found = {key(result): result["psnr"] for result in tuned}
    best: dict[tuple[int, str], Entry] = {}
    for entry in grid:
        place = entry.codebook_size, entry.method

        def score(e: Entry) -> float:
            return found[e.method, settings_text(e), e.codebook_size, e.seed]

        if place not in best or score(entry) > score(best[place]):
            best[place] = entry
    finals = [replace(entry, seed=seed) for seed in plan["seeds"] for entry in best.values()]
    complete(results_file(RESULTS, "image"), comparison, finals, make_data, name, arguments.jobs)


if __name__ == "__main__":
    main()
