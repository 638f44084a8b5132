"""Tokenizers of item embeddings on the same items and seeds: evenness of the codes, collisions, error, time.

    python -m benchmarks.quality.items --data PATH-TO-AMAZON-BEAUTY

Writes ``benchmarks/results/items_tokenizers_*.csv``. Finished runs are not repeated for the same data and settings,
so an interrupted benchmark goes on where it stopped; delete the file to start over. Runs follow each other, each with
as many threads as torch is given (``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from benchmarks.quality.common import HERE, RESULTS, circumstances, finished, results_file
from benchmarks.quality.peers import SemanticIdKMeans
from rich.progress import track

from gritvq import SemanticIds
from gritvq.items import RQVAE, ItemDecoder, ItemEncoder, ItemTokenizer, ProductKMeans, ResidualKMeans, residual_stack
from gritvq.quantizers import presets
from gritvq.results import read_results, write_results

KMEANS: dict[str, type[ResidualKMeans]] = {"residual": ResidualKMeans, "semantic-id": SemanticIdKMeans}
METRICS = ("uniqueness", "items_in_collision", "largest_group", "reconstruction/relative_error")
METRICS += ("neighbours/prefix_recall@10", "neighbours/quantized_recall@10")
METRICS += ("depth1/cohesion", "depth2/cohesion", "depth3/cohesion", "perturbed/kept_ids")
PER_LEVEL = ("used", "perplexity", "effective_codes")
UNITS = {"fit_seconds": "s", "fit_cpu_seconds": "s", "uniqueness": "share", "items_in_collision": "share"}
UNITS |= {"largest_group": "items"}
UNITS |= {f"level{level}/{name}": "codes" for level in range(1, 5) for name in PER_LEVEL}


def made(entry: dict[str, Any], plan: dict[str, Any], dim: int, seed: int) -> ItemTokenizer:
    """An unfitted tokenizer of the plan."""
    settings, size, levels = entry.get("settings", {}), plan["codebook_size"], plan["levels"]
    if entry["kind"] in KMEANS:
        return KMEANS[entry["kind"]](size, levels, seed=seed, **settings)
    if entry["kind"] == "product":
        return ProductKMeans(size, levels, seed=seed, **settings)
    network, budget = plan["network"] | entry.get("network", {}), plan["plan"] | entry.get("plan", {})
    unit, width = getattr(presets, entry["unit"]), network["dim"]
    if entry["unit"] == "rsq_vae":
        quantizer = unit(width, size, num_levels=levels, **settings)
    else:
        quantizer = residual_stack(lambda: unit(width, size, **settings), levels)
    networks = (ItemEncoder(dim, **network), ItemDecoder(dim, **network))
    return RQVAE(quantizer, encoder=networks[0], decoder=networks[1], seed=seed, **budget)


def measured(tokenizer: ItemTokenizer, x: np.ndarray[Any, Any]) -> dict[str, float]:
    """Fit, encode, and what the ids are like; the error is relative to that of the mean embedding."""
    started = time.perf_counter(), time.process_time()
    codes = tokenizer.fit(x).encode(x)
    seconds, busy = time.perf_counter() - started[0], time.process_time() - started[1]
    rows = torch.from_numpy(x.astype(np.float32))
    ids = SemanticIds(codes, tokenizer.codebook_sizes)
    found = ids.report(embeddings=rows, reconstructions=tokenizer.decode(codes), perturbed=tokenizer.perturbed_codes(x))
    levels = [f"level{level}/{name}" for level in range(1, codes.shape[1] + 1) for name in PER_LEVEL]
    return {name: found[name] for name in (*METRICS, *levels)} | {"fit_seconds": seconds, "fit_cpu_seconds": busy}


def settings_of(entry: dict[str, Any]) -> str:
    """What an entry of the plan changes."""
    own = {k: v for part in ("settings", "network", "plan") for k, v in entry.get(part, {}).items()}
    return " ".join(f"{k}={v}" for k, v in own.items()) or "-"


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with item_embeddings.npy")
    parser.add_argument("--plan", type=Path, default=HERE / "items.yaml", help="tokenizers, settings, seeds")
    parser.add_argument("--tokenizers", nargs="*", help="only these of the plan")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.plan.read_text())
    x = np.load(arguments.data / "item_embeddings.npy")
    path = results_file(RESULTS, "items_tokenizers")
    told = " ".join(f"{k}={v}" for part in ("network", "plan") for k, v in plan[part].items())
    about = circumstances(f"levels={plan['levels']} {told}", arguments.data.resolve().name)
    done = read_results(path) if path.exists() else []
    known = finished(done, about["data"], ("method", "settings", "seed"))
    runs = [(name, seed) for seed in plan["seeds"] for name in arguments.tokenizers or plan["tokenizers"]]
    missing = [each for each in runs if (each[0], settings_of(plan["tokenizers"][each[0]]), str(each[1])) not in known]
    for name, seed in track(missing, description=path.stem):
        entry, own = plan["tokenizers"][name], (name, seed, about["data"])
        done = [row for row in done if (row["method"], row["seed"], row["data"]) != own]
        settings = settings_of(entry)
        numbers = measured(made(entry, plan, x.shape[1], seed), x)
        about_run = {"method": name, "preset": entry.get("unit", "-"), "settings": settings, "seed": seed}
        done.append({**about_run, "codebook_size": plan["codebook_size"], **numbers, **about})
        write_results(path, done, about, units=UNITS)


if __name__ == "__main__":
    main()
