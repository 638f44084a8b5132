"""Drift toy: 128 codes cover a 2-D Gaussian cloud; the cloud moves, shrinks or grows; how many codes are in use after?

    python -m benchmarks.quality.drift

There is no encoder: latents are data. Over 600 steps the cloud translates by 10 standard deviations, shrinks to a tenth
or grows tenfold (both by the same factor per step), 256 fresh latents per step. The loss is the quantizer's own plus
``|z_q - z|^2 / 2`` per latent, which reaches the codes only where the surrogate lets it. Usage (codes chosen / 128) and
error (mean squared error over the variance per component) are those of 20,000 fresh latents of the last cloud.

Start: every codebook holds the same k-means codes of the first cloud, which all are in use. Where codes cannot be
written one by one (``writes`` None), the codebook first takes mean and spread of the cloud and is then regressed on
those codes, with optimizers of its own, until the mean squared distance to them is below 1e-7.

Learning rates: Adam, no schedule. ``lr_scale`` is not read, because it says how much faster than an encoder codes
should learn. One table has every trained parameter of every method at .02. The other has for each method the best of
``RATES``, and where a map has a trained base table, of that table at the same rate or at one of ``TABLE_RATES``. Best
is the largest mean usage after translation and shrinking (then the smallest error) with a seed of its own.

Writes ``benchmarks/results/drift_tuning_*.csv`` and ``benchmarks/results/drift_*.csv``. A run that is in them already
is not repeated, so an interrupted benchmark goes on where it stopped; delete the files to start over.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.common import RESULTS, circumstances, results_file
from rich.progress import track
from torch import Tensor

from gritvq import (
    AffineCodebook,
    BridgeCodebook,
    Codebook,
    FreeCodebook,
    MLPCodebook,
    RadialSurrogate,
    VectorQuantizer,
    diveq,
    grit_vq,
    ns_vq,
    simvq,
    transvq,
    vq_vae,
    vq_vae_ema,
    vq_wae,
)
from gritvq.results import read_results, write_results

DIM, SIZE = 2, 128
NUM_STEPS, NUM_LATENTS, NUM_MEASURED = 600, 256, 20_000
SEEDS, TUNING_SEED = (0, 1, 2), 100
_ROUNDS = 10  # of a regression of codes, before it is given up
START_ERROR = 1e-7  # mean squared distance: every code within sqrt(SIZE * 1e-7) = .0036, a fortieth of their spacing
FIXED: dict[str, float] = {"rate": 0.02}
RATES, TABLE_RATES = (0.0005, 0.001, 0.002, 0.005, 0.02, 0.05, 0.1), (0.01, 0.02)
IDENTITY = ("method", "drift", "settings", "codebook_size", "seed")

# Mean and standard deviation of the cloud after a share t of the way.
DRIFTS: dict[str, Callable[[float], tuple[tuple[float, float], float]]] = {
    "translate": lambda t: ((6.0 * t, 8.0 * t), 1.0),
    "shrink": lambda t: ((0.0, 0.0), 10.0**-t),
    "expand": lambda t: ((0.0, 0.0), 10.0**t),
}


def under_codebook_loss(make: Callable[[int, int], Codebook]) -> Callable[[int, int], VectorQuantizer]:
    """A codebook with the usual losses."""
    return lambda dim, size: VectorQuantizer(make(dim, size))


def affine(**settings: Any) -> Callable[[int, int], VectorQuantizer]:
    """An affine map of a trained base table."""
    return under_codebook_loss(lambda dim, size: AffineCodebook(dim, size, **settings))


# Name -> function (dim, codebook_size) -> VectorQuantizer. A method that should be in the tables adds a row.
METHODS: dict[str, Callable[[int, int], VectorQuantizer]] = {
    "table": vq_vae,
    "table, radial surrogate": lambda d, k: VectorQuantizer(FreeCodebook(d, k), surrogate=RadialSurrogate()),
    "table, noisy direction": lambda d, k: diveq(d, k, revival_interval=None),
    "table, revival": lambda d, k: vq_vae(d, k, revival_interval=20),
    "table, average .99": lambda d, k: vq_vae_ema(d, k, revival_interval=None),
    "table, average .9": lambda d, k: vq_vae_ema(d, k, decay=0.9, revival_interval=None),
    "table, average .99, revival": vq_vae_ema,
    "table, average .9, revival": lambda d, k: vq_vae_ema(d, k, decay=0.9),
    "drift loss, temperature 1": lambda d, k: ns_vq(d, k, halving_interval=None),
    "drift loss, halved every 30 steps": lambda d, k: ns_vq(d, k, halving_interval=30),
    "drift loss, relative .2": lambda d, k: ns_vq(d, k, temperature=0.2, relative=True, halving_interval=None),
    "transport loss": vq_wae,
    "affine": affine(),
    "affine, no bias": affine(bias=False),
    "affine, diagonal": affine(structure="diagonal"),
    "affine, low rank": affine(structure="low_rank"),
    "simvq": simvq,
    "network": under_codebook_loss(MLPCodebook),
    "grit_vq": grit_vq,
    "grit_vq, revival": lambda d, k: grit_vq(d, k, revival_interval=20),
    "grit_vq, hidden_dim 128": lambda d, k: grit_vq(d, k, hidden_dim=128),
    "grit_vq, hidden_dim 256": lambda d, k: grit_vq(d, k, hidden_dim=256),
    "transvq": transvq,
    "bridge, 8 codes per token": under_codebook_loss(
        lambda d, k: BridgeCodebook(d, k, codes_per_token=8, width=64, depth=2)
    ),
    "bridge, 1 code per token": under_codebook_loss(
        lambda d, k: BridgeCodebook(d, k, codes_per_token=1, width=64, depth=2)
    ),
}


def cloud(drift: str, progress: float, count: int, generator: torch.Generator) -> Tensor:
    """Latents (count, 2) when a share ``progress`` of the drift is over."""
    mean, std = DRIFTS[drift](progress)
    return std * torch.randn(count, DIM, generator=generator) + torch.tensor(mean)


def start(quantizer: VectorQuantizer, seed: int) -> VectorQuantizer:
    """Put the codes on the first cloud: k-means codes, written or regressed."""
    generator = torch.Generator().manual_seed(seed)
    first = cloud("translate", 0.0, 4096, generator)
    wanted = FreeCodebook(DIM, SIZE)
    wanted.fit(first, generator=generator)
    codes, book = wanted.codes().detach(), quantizer.codebook
    if book.writes is not None:
        book.write(torch.arange(SIZE), codes)
        return quantizer
    book.fit(first)
    _regress(book, codes)
    return quantizer


def _regress(book: Codebook, codes: Tensor) -> None:
    """Train the codebook until its codes are the wanted ones: Adam, whose rate falls to 0 and starts again.

    How many rounds it takes depends on the initial weights and on rounding: one mostly, sometimes several.
    """
    trained = [p for p in book.parameters() if p.requires_grad]
    for _ in range(_ROUNDS):
        optimizer = torch.optim.Adam(trained, lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
        for _ in range(1000):
            error = (book.codes() - codes).square().sum(1).mean()
            if float(error.detach()) < START_ERROR:
                return
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            schedule.step()
    raise RuntimeError(f"expected a start within {START_ERROR:g} of the wanted codes, got {float(error.detach()):.1e}")


def optimizer_for(quantizer: VectorQuantizer, settings: Mapping[str, float]) -> torch.optim.Optimizer | None:
    """Adam with the rates of the settings; None where nothing is trained by gradients."""
    trained = {name: p for name, p in quantizer.named_parameters() if p.requires_grad}
    if not trained:
        return None
    rates = dict.fromkeys(trained, settings["rate"])
    if "table_rate" in settings:
        rates["codebook.base"] = settings["table_rate"]
    return torch.optim.Adam([{"params": [p], "lr": rates[name]} for name, p in trained.items()])


def measured(quantizer: VectorQuantizer, latents: Tensor) -> dict[str, float]:
    """Usage and error on these latents."""
    indices = quantizer.encode(latents)
    error = (quantizer.decode(indices) - latents).square().mean() / latents.var(0).mean()
    return {"usage": indices.unique().numel() / SIZE, "error": error.item()}


def follow(
    quantizer: VectorQuantizer, drift: str, settings: Mapping[str, float], seed: int, num_steps: int = NUM_STEPS
) -> dict[str, float]:
    """Train a started quantizer while the cloud drifts, and measure it."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    before = measured(quantizer, cloud(drift, 0.0, NUM_MEASURED, generator))
    optimizer = optimizer_for(quantizer, settings)
    begun = time.perf_counter()
    for step in range(1, num_steps + 1):
        latents = cloud(drift, step / num_steps, NUM_LATENTS, generator)
        output = quantizer(latents)
        if optimizer is not None:
            loss = 0.5 * (output.quantized - latents).square().sum(1).mean() + output.loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        quantizer.update_codebook(optimizer)
    seconds = (time.perf_counter() - begun) / num_steps
    after = measured(quantizer, cloud(drift, 1.0, NUM_MEASURED, generator))
    return {**after, "usage_before": before["usage"], "error_before": before["error"], "seconds_per_step": seconds}


def settings_text(settings: Mapping[str, float]) -> str:
    """As in the results."""
    return " ".join(f"{name}={value:g}" for name, value in settings.items()) or "-"


def grid(method: str) -> list[dict[str, float]]:
    """Settings to try; one empty one where there is nothing to train."""
    trained = [n for n, p in METHODS[method](DIM, SIZE).named_parameters() if p.requires_grad]
    if not trained:
        return [{}]
    tables = [{}, *({"table_rate": rate} for rate in TABLE_RATES)] if "codebook.base" in trained else [{}]
    return [{"rate": rate, **table} for rate in RATES for table in tables]


Task = tuple[str, int, list[tuple[str, dict[str, float]]]]


def run(method: str, seed: int, wanted: Sequence[tuple[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Drifts and settings of one method and seed from one start, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    started = start(METHODS[method](DIM, SIZE), seed)
    return [
        {
            **dict(zip(IDENTITY, (method, drift, settings_text(settings), SIZE, seed), strict=True)),
            **follow(copy.deepcopy(started), drift, settings, seed),
        }
        for drift, settings in wanted
    ]


def complete(path: Path, tasks: Sequence[Task], jobs: int) -> list[dict[str, Any]]:
    """Run what is missing in a results file, drop what is no longer asked for, return all results."""
    comparison = f"dim={DIM} codebook_size={SIZE} num_steps={NUM_STEPS} num_latents={NUM_LATENTS} optimizer=Adam"
    about = circumstances(comparison, "Gaussian cloud")
    order = {
        (method, drift, settings_text(settings), seed): None
        for method, seed, wanted in tasks
        for drift, settings in wanted
    }
    found = read_results(path, IDENTITY) if path.exists() else []
    keyed = {(r["method"], r["drift"], r["settings"], r["seed"]): r for r in found if r["comparison"] == comparison}
    missing: list[Task] = []
    for method, seed, wanted in tasks:
        rest = [(d, each) for d, each in wanted if (method, d, settings_text(each), seed) not in keyed]
        missing += [(method, seed, rest)] if rest else []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, *task) for task in missing]
        for future in track(as_completed(futures), total=len(futures), description=path.stem):
            for r in future.result():
                keyed[r["method"], r["drift"], r["settings"], r["seed"]] = {**r, **about}
            write_results(path, [keyed[key] for key in order if key in keyed], about, IDENTITY)
    results = [keyed[key] for key in order]
    write_results(path, results, about, IDENTITY)
    return results


def best_settings(tuned: Sequence[Mapping[str, Any]], method: str) -> dict[str, float]:
    """The settings with the largest mean usage, then the smallest mean error."""

    def score(settings: Mapping[str, float]) -> tuple[float, float]:
        runs = [r for r in tuned if (r["method"], r["settings"]) == (method, settings_text(settings))]
        return sum(r["usage"] for r in runs), -sum(r["error"] for r in runs)

    return max(grid(method), key=score)


def main() -> None:
    """Tune, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at once, one thread each")
    jobs = parser.parse_args().jobs

    tasks = [
        (name, TUNING_SEED, [(drift, settings) for settings in grid(name) for drift in ("translate", "shrink")])
        for name in METHODS
    ]
    tuned = complete(results_file(RESULTS, "drift_tuning"), tasks, jobs)
    best = {name: best_settings(tuned, name) for name in METHODS}
    choices = {name: [each] if each in ({}, FIXED) else [FIXED, each] for name, each in best.items()}
    tasks = [
        (name, seed, [(drift, settings) for settings in choices[name] for drift in DRIFTS])
        for seed in SEEDS
        for name in METHODS
    ]
    complete(results_file(RESULTS, "drift"), tasks, jobs)


if __name__ == "__main__":
    main()
