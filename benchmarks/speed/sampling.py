"""Sampling from priors: with the cache and without it; and what a head for 2^18 codes needs.

    python -m benchmarks.speed.sampling

Run it from the root of the repository on a machine that does nothing else. The priors have one size and random weights,
which does not change how long sampling takes. The ways to sample take turns in one process; seconds are medians over
the rounds. With and without the cache the autoregressive prior must give equal samples. Memory: what a training step of
a head over 256 positions adds to the peak of a fresh process: its parameters, gradients and activations.
Writes `benchmarks/results/sampling_*.csv`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.quality.common import RESULTS, circumstances, results_file
from benchmarks.speed.measure import alternating, percentile
from benchmarks.speed.memory import resident

from gritvq.priors import AutoregressivePrior, BitHead, Head, MaskedPrior, SoftmaxHead
from gritvq.results import write_results
from gritvq.tokens import TokenLayout

SIDE, CODES, CLASSES = 16, 1024, 10
LARGE, POSITIONS = 2**18, 256
HEADS: dict[str, Callable[[int], Head]] = {
    "softmax head": lambda width: SoftmaxHead((LARGE,), width),
    "bit head, 3 digits of 64": lambda width: BitHead((LARGE,), width),
    "bit head, 18 bits": lambda width: BitHead((LARGE,), width, levels=[[2] * 18]),
    "bit head, 18 bits at once": lambda width: BitHead((LARGE,), width, levels=[[2] * 18], autoregressive=False),
}


def times(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of each way to sample.

    Raises:
        RuntimeError: If the cache changes samples.
    """
    layout = TokenLayout((CODES,), (options.side, options.side))
    size = {"num_classes": CLASSES, "width": options.width, "depth": options.depth, "num_heads": 4}
    torch.manual_seed(0)
    prior, masked = AutoregressivePrior(layout, **size).eval(), MaskedPrior(layout, **size).eval()
    drawn = [prior.sample(2, 3, generator=0, cache=cache) for cache in (True, False)]
    if not torch.equal(*drawn):
        raise RuntimeError("the cache changes samples")
    calls = {
        "autoregressive, cache": lambda: prior.sample(options.samples, 3, generator=0),
        "autoregressive, no cache": lambda: prior.sample(options.samples, 3, generator=0, cache=False),
        f"masked, {masked.num_steps} steps": lambda: masked.sample(options.samples, 3, generator=0),
    }
    samples = alternating(calls, torch.device("cpu"), options.seconds, quick=options.quick)
    return {
        name: {
            "seconds": percentile(found, 0.5),
            "seconds_p20": percentile(found, 0.2),
            "seconds_p80": percentile(found, 0.8),
            "rounds": len(found),
            "samples_per_second": options.samples / percentile(found, 0.5),
        }
        for name, found in samples.items()
    }


def memory(name: str, width: int) -> float:
    """Bytes by which a training step of a head raises the peak of this process, which must be fresh."""
    states = torch.randn(POSITIONS, width)
    indices = torch.randint(LARGE, (POSITIONS, 1))

    def step(head: Head) -> None:
        head.loss(states + head.embed(indices), indices).backward()

    step(BitHead((LARGE,), width))  # loaded code does not count
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    step(HEADS[name](width))
    return float(resident("VmHWM") - before)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="for the rounds, if 5 rounds take less")
    parser.add_argument("--quick", action="store_true", help="two rounds, and no memory: does it run?")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--head", choices=list(HEADS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.head:
        print(json.dumps(memory(options.head, options.width)))
        return
    if options.quick and options.out == RESULTS:
        parser.error("--quick measures nothing worth keeping; give it a folder with --out")
    about = circumstances("python -m benchmarks.speed.sampling", "random weights")
    settings = f"tokens={options.side**2} samples={options.samples} width={options.width} depth={options.depth}"
    settings += f" threads={options.threads}"
    common = {"preset": "-", "seed": 0, **about}
    rows = [
        {
            "method": name,
            "settings": settings,
            "codebook_size": CODES,
            **common,
            **numbers,
        }
        for name, numbers in times(options).items()
    ]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # large blocks straight from the system
    for name in [] if options.quick else HEADS:
        command = [sys.executable, "-m", "benchmarks.speed.sampling", "--head", name, "--width", str(options.width)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        place = {"settings": f"positions={POSITIONS} width={options.width}", "codebook_size": LARGE}
        rows.append({"method": name, **place, **common, "peak_bytes": json.loads(done.stdout)})
    for row in rows:
        print({key: value for key, value in row.items() if key not in about}, flush=True)
    units = dict.fromkeys(("seconds", "seconds_p20", "seconds_p80"), "s")
    units |= {"peak_bytes": "bytes", "samples_per_second": "samples/s"}
    write_results(results_file(options.out, "sampling"), rows, about, units=units)


if __name__ == "__main__":
    main()
