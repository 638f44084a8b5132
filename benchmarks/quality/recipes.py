"""The shipped configurations, whole: ``gritvq fit`` on every file of ``configs/methods``.

    python -m benchmarks.quality.recipes --data PATH-TO-CIFAR10

Writes ``benchmarks/results/recipes_*.csv``: what each run reports on its held-out images, and the same images with
every picture replaced by its mean color. Finished runs are not repeated; delete the file to start over.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
from benchmarks.quality.common import RESULTS, circumstances, finished, results_file
from rich.progress import track

from gritvq.images import ImageData
from gritvq.quantizers import presets
from gritvq.quantizers.metrics import ReconstructionError
from gritvq.results import read_results, write_results

CONFIGS = Path(__file__).parents[2] / "configs" / "methods"


def fit(name: str, data: Path) -> dict[str, Any]:
    """One run of the command line, one thread, validated once at its end."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    settings = config["tokenizer"]["quantizer"]["init_args"]
    steps = config["plan"]["max_steps"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = {"config": CONFIGS / f"{name}.yaml", "data.path": data, "out": out, "plan.validate_every": 0}
        options["plan.checkpoint_every"] = 0
        command = [sys.executable, "-m", "gritvq", "fit"]
        started = time.perf_counter()
        subprocess.run(
            command + [str(word) for option, value in options.items() for word in (f"--{option}", value)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        numbers = json.loads((out / "metrics.json").read_text())
    return {
        **run_of(name, settings.get("codebook_size", 0), f"max_steps={steps}"),
        **{metric: numbers[metric] for metric in ("psnr", "usage", "perplexity", "bits_per_token", "bits_per_pixel")},
        "minutes": (time.perf_counter() - started) / 60,
    }


def run_of(name: str, size: int, settings: str) -> dict[str, Any]:
    """What identifies a run."""
    return {"method": name, "preset": name, "settings": settings, "codebook_size": size, "seed": 0}


def mean_colors(data: Path) -> dict[str, Any]:
    """PSNR of the held-out images against their own mean colors."""
    images, error = ImageData(str(data)), ReconstructionError()
    images.setup("fit")
    for batch in images.val_dataloader():
        error.update(batch.mean((-2, -1), keepdim=True).expand_as(batch), batch)
    return {**run_of("mean colour", 0, "-"), "preset": "-", "psnr": error.compute()["psnr"]}


def runs(names: list[str], data: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """Results as they come."""
    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(fit, name, data) for name in names]):
            yield future.result()


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--methods", nargs="*", default=list(presets.__all__), help="only these presets")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at once, one thread each")
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    path = results_file(RESULTS, "recipes")
    about = circumstances("gritvq fit --config configs/methods/PRESET.yaml", data.name)
    done = read_results(path) if path.exists() else [{**mean_colors(data), **about}]
    known = finished(done, data.name, ("method",))
    missing = [name for name in arguments.methods if (name,) not in known]
    for result in track(runs(missing, data, arguments.jobs), total=len(missing), description=path.stem):
        done.append({**result, **about})
        write_results(path, done, about)


if __name__ == "__main__":
    main()
