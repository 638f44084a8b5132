"""The process that measures one row: times of all contenders in turn, or the peak memory of one of them.

    python -m benchmarks.speed.measure SUITE NxDxK DEVICE time THREADS SECONDS NAME...
    python -m benchmarks.speed.measure SUITE NxDxK DEVICE memory THREADS SECONDS NAME

Memory needs a process of its own, or one contender would use what another left behind. Times need one process for
all, in which contenders take turns, so that a slow minute of the machine slows all of them. The last line printed is
the result as JSON: numbers of every contender by name, or why there are none under ``"skipped"``.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from benchmarks.speed import search, step, tokenizer
from benchmarks.speed.cases import Call, Contender, Row, gaussian, vectors_and_codes
from benchmarks.speed.memory import peak_growth
from torch import Tensor

GROWING = ("nearest_code", "ours: blocked")
SUITES: dict[str, Callable[[torch.device], list[Contender]]] = {
    "tokenizer": tokenizer.contenders,
    "encode": tokenizer.encoding_contenders,
    "search": search.contenders,
    "step": step.contenders,
    "residual": step.residual_contenders,
    "growth": lambda device: [c for c in search.contenders(device) if c.name in GROWING] + [step.AFFINE],
}
SHORTEST = 0.05  # seconds of a sample: short calls are repeated within it
REST = 0.02  # seconds before every sample, for the waiting threads of the contender before to fall asleep


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sample(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds of one call, a mean over ``repeats`` calls in a row."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def alternating(calls: Mapping[str, Call], device: torch.device, seconds: float, quick: bool) -> dict[str, list[float]]:
    """Samples of all calls, taken in rounds: 5 to 25 of them, as many as the seconds allow; 2 if it must be quick."""
    repeats = {}
    for name, call in calls.items():  # the first call warms up, the second says how long one takes
        sample(call, 1, device)
        repeats[name] = 1 if quick else max(1, math.ceil(SHORTEST / sample(call, 1, device)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    started, rounds = time.perf_counter(), 0
    while rounds < (2 if quick else 5) or (
        not quick and rounds < 25 and (time.perf_counter() - started) * (rounds + 1) / rounds < seconds
    ):
        for name, call in calls.items():
            time.sleep(REST)
            samples[name].append(sample(call, repeats[name], device))
        rounds += 1
    return samples


def percentile(values: Sequence[float], share: float) -> float:
    """Interpolated between neighbors."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def worse_choices(row: Row, device: torch.device, indices: Mapping[str, Tensor]) -> dict[str, int]:
    """How many vectors got a code that another contender's choice beats by more than rounding, in float64."""
    x, codes = (part.double() for part in vectors_and_codes(row, device))
    distances = {name: (x - codes[index.to(device)]).square().sum(1) for name, index in indices.items()}
    best = torch.stack(list(distances.values())).amin(0)
    return {name: int((distance > best * (1 + 1e-6)).sum()) for name, distance in distances.items()}


def measure_times(
    suite: str, row: Row, device: torch.device, names: Sequence[str], seconds: float, quick: bool
) -> dict[str, dict[str, Any]]:
    """Median and percentiles of every contender; in the search also its rate and its errors."""
    results: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    for contender in SUITES[suite](device):
        if contender.name not in names:
            continue
        reason = contender.refusal(row, device)
        if not reason:
            try:
                calls[contender.name] = contender.make(row, device)
                calls[contender.name]()
            except Exception as error:  # whatever keeps a contender from running here; the others go on
                calls.pop(contender.name, None)
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        results[contender.name] = {"skipped": reason} if reason else {}
    for name, samples in alternating(calls, device, seconds, quick).items():
        median = percentile(samples, 0.5)
        results[name] |= {
            "seconds": median,
            "seconds_p20": percentile(samples, 0.2),
            "seconds_p80": percentile(samples, 0.8),
            "rounds": len(samples),
        }
    if suite == "search":
        for name in calls:
            results[name]["tflops"] = 2e-12 * row.n * row.dim * row.codebook_size / results[name]["seconds"]
        found = {name: index for name, call in calls.items() if isinstance(index := call(), Tensor)}
        for name, worse in worse_choices(row, device, found).items():
            results[name]["worse_choices"] = worse
    return results


def measure_memory(suite: str, row: Row, device: torch.device, name: str) -> dict[str, Any]:
    """Growth of the peak over what is there once inputs and parameters are, in two calls; needs a fresh process.

    A tiny row warms up first, so that loaded code does not count.
    """
    contender = next(c for c in SUITES[suite](device) if c.name == name)
    contender.make(Row(min(64, row.n), row.dim, min(64, row.codebook_size)), device)()
    call = contender.make(row, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        peak = functools.partial(torch.cuda.max_memory_allocated, device)
    else:
        before, peak = 0, peak_growth()
    for _ in range(2):
        call()
    synchronize(device)
    return {"peak_bytes": max(0, peak() - before)}


def main(arguments: Sequence[str]) -> None:
    """Measure what the command line says."""
    suite, text, place, what, threads, seconds, *names = arguments
    torch.set_num_threads(int(threads))
    row, device = Row.parse(text), torch.device(place)
    gaussian(1, 1, device, 0)  # starts the device
    if what == "time":
        limit = float(seconds)
        result: dict[str, Any] = measure_times(suite, row, device, names, limit, quick=limit == 0)
    else:
        result = measure_memory(suite, row, device, names[0])
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
