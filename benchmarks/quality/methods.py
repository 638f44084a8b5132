"""All presets on the same pictures, steps and seeds: what each is like with its defaults.

    python -m benchmarks.quality.methods --data PATH-TO-CIFAR10

Writes ``benchmarks/results/methods_<table>_*.csv``, one per table of ``methods.yaml``. Finished runs are not repeated,
so an interrupted benchmark goes on where it stopped; delete the files to start over.
"""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path

import yaml
from benchmarks.quality.common import HERE, RESULTS, circumstances, results_file
from benchmarks.quality.image import complete

from gritvq.cli import comparison_entries
from gritvq.images import ImageData
from gritvq.images.comparison import Comparison, describe_comparison, mean_color_row
from gritvq.results import read_results, write_results


def main() -> None:
    """Run what is missing of every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--plan", type=Path, default=HERE / "methods.yaml", help="methods, settings, budget")
    parser.add_argument("--tables", nargs="*", help="only these tables of the plan")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at once, one thread each")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.plan.read_text())
    make_data = functools.partial(ImageData, arguments.data, **plan["data"])
    comparison, data = Comparison(**plan["comparison"]), Path(arguments.data).name
    about = circumstances(describe_comparison(comparison), data)
    floor = mean_color_row(comparison, make_data)
    for name in arguments.tables or plan["tables"]:
        table = plan["tables"][name]
        entries = comparison_entries(table["methods"], [table["codebook_size"]], plan["seeds"])
        path = results_file(RESULTS, f"methods_{name}")
        results = complete(path, comparison, entries, make_data, data, arguments.jobs)
        key = (about["comparison"], data)
        others = [row for row in read_results(path) if (row["comparison"], row["data"]) != key]
        write_results(path, [*others, {**floor, **about}, *results], about)


if __name__ == "__main__":
    main()
