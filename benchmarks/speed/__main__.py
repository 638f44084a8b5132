"""Time and memory of whole steps of a tokenizer, of encoding, searches and training steps, ours beside others.

    python -m benchmarks.speed                                    all suites but fit
    python -m benchmarks.speed --suite fit --data PATH-TO-CIFAR10
    python -m benchmarks.speed --suite search --rows 4096x64x1024 --fresh

Run it from the root of the repository on a machine that does nothing else. Peers come with `gritvq[bench]`, the suites
tokenizer and encode need `gritvq[images,export]` as well; one that is missing, or needs too much memory, is in the
results as skipped.

A row names N vectors of D components against K codes. Times: one process per row, in which contenders take turns;
medians and percentiles over 5 to 25 rounds. Memory: a fresh process per contender, growth of the peak over inputs and
parameters. Writes `benchmarks/results/speed_<suite>_*.csv`, the newest of this machine if there is one; a row with all
its contenders in there is not repeated, so an interrupted benchmark goes on where it stopped. Processors with matrix
units for int8, with int8 products, and others are different machines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.common import RESULTS, circumstances, results_file
from benchmarks.speed import fit, startup
from benchmarks.speed.cases import Row
from benchmarks.speed.measure import SUITES

from gritvq.results import read_results, write_results

ROOT = Path(__file__).parents[2]
IDENTITY = ("method", "n", "dim", "codebook_size", "seed")
TABLE = (
    "4096x64x1024",
    "16384x256x1024",
    "4096x64x16384",
    "16384x256x16384",
    "4096x256x65536",
    "16384x64x65536",
    "4096x64x262144",
)
GROWTH = tuple(f"4096x64x{1024 * 4**power}" for power in range(6)) + tuple(
    f"{1024 * 4**power}x64x16384" for power in (0, 2, 3)
)
ROWS = {
    "tokenizer": ("4096x64x16384",),
    "encode": ("4096x64x1024", "4096x64x16384"),
    "search": TABLE,
    "step": TABLE,
    "residual": ("4096x64x1024", "4096x64x16384"),
    "growth": GROWTH,
}
GPU_TABLE = (*TABLE, "65536x64x65536", "65536x128x65536", "65536x256x65536", "65536x64x1048576")
QUICK = ("256x16x512",)
OTHER_SUITES = ("imports", "fit")


def kind_of_processor() -> str:
    """What searches on a CPU depend on: int8 products (``"amx"``, ``"vnni"``), else the width of its vectors."""
    for name, short in (("amx_tile", "amx"), ("vnni", "vnni")):
        supported = getattr(torch.cpu, f"_is_{name}_supported", None)
        if supported is not None and supported():
            return short
    return torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")


def machine(threads: int) -> dict[str, str]:
    """What the numbers depend on besides the code."""
    abilities = [torch.backends.cpu.get_cpu_capability()]
    for name in ("avx512_bf16", "vnni", "amx_tile"):
        supported = getattr(torch.cpu, f"_is_{name}_supported", None)
        abilities += [name] if supported is not None and supported() else []
    return {"threads": str(threads), "cpu": " ".join(abilities)}


def versions_of_peers() -> str:
    """Versions of what is compared with, as far as installed."""
    found = []
    for name in ("vector-quantize-pytorch", "faiss-cpu", "flash-kmeans", "triton"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "".join(f", {each}" for each in found)


class Results:
    """One file of results; everything in it stays but what is measured again."""

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        self.path, self.about = path, about
        self.runs = read_results(path, IDENTITY) if path.exists() else []

    def done(self, row: Row, names: Sequence[str]) -> bool:
        """Whether all of these are there."""
        return set(names) <= {run["method"] for run in self.runs if self._row(run) == row}

    def replace(self, row: Row, found: dict[str, dict[str, Any]], keep_others: bool = False) -> None:
        """Results of a row in place of all there were, or of those of the same methods."""
        self.runs = [run for run in self.runs if self._row(run) != row or (keep_others and run["method"] not in found)]
        place = {"n": row.n, "dim": row.dim, "codebook_size": row.codebook_size, "seed": 0}
        for name, numbers in found.items():
            note = str(numbers.get("skipped", ""))
            numbers = {"skipped": 1.0} if note else numbers
            self.runs.append({"method": name, **place, **numbers, **self.about, "note": note})
        units = {m: "s" for run in self.runs for m in run if m.startswith("seconds") or m.endswith("_seconds")}
        units |= {"peak_bytes": "bytes", "tflops": "TFLOP/s", "quantizer_share": "share", "data_share": "share"}
        write_results(self.path, self.runs, {**self.about, "note": ""}, IDENTITY, units)

    @staticmethod
    def _row(run: dict[str, Any]) -> Row:
        return Row(int(run["n"]), int(run["dim"]), int(run["codebook_size"]))


def in_fresh_process(suite: str, row: Row, what: str, names: Sequence[str], options: argparse.Namespace) -> Any:
    """What :mod:`benchmarks.speed.measure` prints last."""
    seconds = 0 if options.quick else options.seconds
    command = [sys.executable, "-m", "benchmarks.speed.measure", suite, str(row), options.device, what]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    if what == "memory":  # large blocks straight from and to the system: no gaps in a heap, the same peak every time
        environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
    done = subprocess.run(
        [*command, str(options.threads), str(seconds), *names],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_row(suite: str, row: Row, names: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Times of all, then the memory of each that ran."""
    results = in_fresh_process(suite, row, "time", names, options)
    for name, numbers in results.items():
        if "skipped" not in numbers:
            numbers |= in_fresh_process(suite, row, "memory", [name], options)
    return results


def run_suite(suite: str, options: argparse.Namespace) -> None:
    """All rows of a suite that are not there yet."""
    about = circumstances(f"python -m benchmarks.speed --suite {suite}", "gaussian")
    about["versions"] += versions_of_peers()
    about |= machine(options.threads)
    if options.device == "cpu":
        about["hardware"] = f"cpu{os.cpu_count()}-{kind_of_processor()}"
    if suite == "fit":
        about["data"] = Path(options.data).name
    elif suite in ("tokenizer", "encode"):
        about["data"] = "photographs"
    path = results_file(options.out, f"speed_{suite}", about["hardware"])
    if options.fresh and options.rows is None:
        path.unlink(missing_ok=True)
    results = Results(path, about)
    if suite == "imports":
        row = Row(0, 0, 0)
        if options.fresh or not results.done(row, list(startup.PROGRAMS)):
            results.replace(row, startup.measure(options.quick))
    elif suite == "fit":
        run_fit(results, options)
    else:
        names = [contender.name for contender in SUITES[suite](torch.device(options.device))]
        rows = QUICK if options.quick else ROWS[suite]
        if options.device == "cuda" and not options.quick and suite in ("search", "step"):
            rows = GPU_TABLE
        for row in map(Row.parse, options.rows or rows):
            if options.fresh or not results.done(row, names):
                print(f"{suite} {row}", file=sys.stderr, flush=True)
                results.replace(row, measure_row(suite, row, names, options))
    print(f"{suite}: {path}")


def run_fit(results: Results, options: argparse.Namespace) -> None:
    """Each quantizer once, in this process, where the training loop is."""
    codebook_size = 64 if options.quick else fit.CODEBOOK_SIZE
    for name in fit.QUANTIZERS:
        there = any(run["method"] == name and run["codebook_size"] == codebook_size for run in results.runs)
        if options.fresh or not there:
            print(f"fit {name}", file=sys.stderr, flush=True)
            steps = 4 if options.quick else 100
            row, numbers = fit.measure(options.config, options.data, name, codebook_size, steps, options.threads)
            results.replace(row, {name: numbers}, keep_others=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", nargs="+", choices=[*SUITES, *OTHER_SUITES], help="which; all but fit unless given")
    parser.add_argument("--rows", nargs="+", metavar="NxDxK", help="these rows instead of the suite's own")
    parser.add_argument("--data", help="folder of CIFAR-10 as Parquet, for the suite fit")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "images" / "flat.yaml", help="for fit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the rounds of a row, if 5 rounds take less")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds: does it run?")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    suites = options.suite or [*SUITES, "imports"]
    if "fit" in suites and not (options.data and (options.data == "photographs" or Path(options.data).exists())):
        parser.error(f"the suite fit needs --data with the pictures, got {options.data}")
    if options.quick and options.out == RESULTS:
        parser.error("--quick measures nothing worth keeping; give it a folder with --out")
    load = os.getloadavg()[0]
    if load > 0.5 and not options.quick:
        print(f"warning: other work is running here (load {load:.1f}); times will be wrong", file=sys.stderr)
    for suite in suites:
        run_suite(suite, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
