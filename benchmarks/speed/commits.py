"""Our searches and training steps at two commits, in turn: is the new code slower?

    python -m benchmarks.speed.commits --old 45f7220

Run it from the root of the repository on a machine that does nothing else. The old commit is checked out into a
temporary folder. Two processes, one per commit, build the same contender and take turns, each first in every second
round, so that a slow minute of the machine slows both. A process may be a tenth faster than its twin for as long as it
lives, by where its memory lies: so there are several pairs, started in turn. What counts is the median over the pairs
of their median of new / old; the least and the largest say how far that can be trusted. Writes
`benchmarks/results/commits_*.csv`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CASES = {
    "step": ("grit_vq", "affine + radial", "simvq", "vq_vae", "vq_vae_ema"),
    "residual": ("1 level", "8 levels"),
    "search": ("nearest_code",),
}
ROWS = {
    "step": ("4096x64x1024", "16384x256x1024", "4096x64x16384"),
    "residual": ("4096x64x1024", "4096x64x16384"),
    "search": ("4096x64x1024", "16384x256x1024", "4096x64x16384"),
}


class Worker:
    """A process that imports the library of one checkout."""

    def __init__(self, checkout: Path, threads: int) -> None:
        path = os.pathsep.join([str(checkout / "src"), str(checkout)])
        environment = os.environ | {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--worker", str(threads)],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *question: Any) -> Any:
        """Send a question, wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a worker ended; its error stands above")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(threads: int) -> None:
    """Answer ``["make", suite, row, name]`` and ``["sample", repeats]`` until the input ends; both with seconds."""
    import torch
    from benchmarks.speed.cases import Row
    from benchmarks.speed.measure import SUITES, sample

    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    call: Any = None
    for line in sys.stdin:
        job, *rest = json.loads(line)
        if job == "make":
            suite, row, name = rest
            call = next(c for c in SUITES[suite](cpu) if c.name == name).make(Row.parse(row), cpu)
            for _ in range(3):
                call()
        repeats = rest[0] if job == "sample" else 1
        print(json.dumps(sample(call, repeats, cpu)), flush=True)


def compare(old: Worker, new: Worker, suite: str, row: str, name: str, rounds: int) -> tuple[float, float, float]:
    """Medians over the rounds of the old seconds, the new ones, and their ratio."""
    from benchmarks.speed.measure import SHORTEST, percentile

    seconds = max(worker.ask("make", suite, row, name) for worker in (old, new))
    repeats = max(1, math.ceil(SHORTEST / seconds))
    pairs = []
    for number in range(rounds):
        order = (old, new) if number % 2 else (new, old)
        found = {worker: worker.ask("sample", repeats) for worker in order}
        pairs.append((found[old], found[new]))
    before, after = zip(*pairs, strict=True)
    return percentile(before, 0.5), percentile(after, 0.5), percentile([n / o for o, n in pairs], 0.5)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare all cases and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.commits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--old", help="commit to compare with")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of processes")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each pair")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker is not None:
        work(options.worker)
        return 0
    if options.old is None:
        parser.error("expected --old COMMIT, got none")

    from benchmarks.quality.common import RESULTS, circumstances
    from benchmarks.speed.__main__ import IDENTITY, machine
    from benchmarks.speed.measure import percentile

    from gritvq.results import write_results

    about = circumstances(f"python -m benchmarks.speed.commits --old {options.old}", "gaussian")
    about |= machine(options.threads) | {"hardware": f"cpu{os.cpu_count()}"}
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        checkout = Path(name) / "old"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(checkout), options.old], check=True)
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        try:
            for pair in range(options.pairs):
                places = (checkout, ROOT) if pair % 2 else (ROOT, checkout)
                workers = {place: Worker(place, options.threads) for place in places}
                for suite, methods in CASES.items():
                    for row, method in itertools.product(ROWS[suite], methods):
                        medians = compare(workers[checkout], workers[ROOT], suite, row, method, options.rounds)
                        found.setdefault((row, method), []).append(medians)
                        print(f"{suite} {row} {method}: {medians[2]:.3f}", file=sys.stderr, flush=True)
                for worker in workers.values():
                    worker.close()
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=True)
    for (row, method), several in found.items():
        n, dim, codebook_size = map(int, row.split("x"))
        before, after, ratios = (sorted(each) for each in zip(*several, strict=True))
        numbers = {"seconds_old": percentile(before, 0.5), "seconds_new": percentile(after, 0.5)}
        numbers |= {"ratio": percentile(ratios, 0.5), "ratio_least": ratios[0], "ratio_largest": ratios[-1]}
        place = {"n": n, "dim": dim, "codebook_size": codebook_size, "seed": 0}
        runs.append({"method": method, **place, **numbers, **about})
    path = RESULTS / f"commits_{about['hardware']}_{date.today():%Y%m}.csv"
    write_results(path, runs, about, IDENTITY, {"seconds_old": "s", "seconds_new": "s"})
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
