"""Recommenders as users train them: ``gritvq fit items`` with shipped configurations, on Amazon Beauty or other data.

    python -m benchmarks.quality.recommenders --data PATH-TO-AMAZON-BEAUTY

Each run is the program's own command on one thread: ids, training, the checkpoint with the best NDCG@10 on validation
users, and the rank of every test user's item in the whole catalogue. A seed is that of ids, order and model. Minutes
are the processor time of the whole command. A study with ``test: false`` ranks no test users; such studies choose
settings.

Writes ``benchmarks/results/items_headline_*.csv``, or the name of another study. Runs that are finished for the data
set, which has the name of its folder, are not repeated, those of other settings are replaced, and interrupted ones go
on from their last checkpoint, as long as their folders lie in ``--work``. ``--recommenders NAME`` makes the rows of
one method alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.quality.common import HERE, RESULTS, circumstances, finished, results_file
from rich.progress import track

from gritvq.items import SemanticIds
from gritvq.items.catalogue import read_item_data
from gritvq.results import read_results, write_results
from gritvq.training.run_folder import RunFolder

CONFIGS = HERE.parents[1] / "configs" / "items"
IDENTITY = ("method", "settings", "seed")
UNITS = {"minutes": "min", "step": "steps"}
SELECTED_BY = "val/ndcg@10"


def command(entry: dict[str, Any], seed: int, data: Path, folder: Path, tested: bool) -> list[str]:
    """Arguments of ``gritvq``: a new run, or the rest of one."""
    run = RunFolder(folder)
    if run.last_checkpoint.exists():
        return ["fit", "items", "--config", str(run.config), "--out", str(folder), "--resume", "last"]
    seeds = dict.fromkeys(("plan.seed", "batches.seed", "tokenizer.init_args.seed"), seed)
    told = {"data.folder": data, "out": folder, "overwrite": "true"}
    if "tokenizer" in entry:
        told["tokenizer"] = json.dumps(entry["tokenizer"])
    told |= {**seeds, **entry.get("changes", {})}
    if "random_ids" in entry:
        told |= {"ids": random_ids(entry["random_ids"], seed, data, folder), "collaborative_dim": "null"}
    if not tested:
        told["num_test"] = 1
    words = ["fit", "items", "--config", str(CONFIGS / entry["config"])]
    return words + [word for name, value in told.items() for word in (f"--{name}", str(value))]


def random_ids(sizes: list[int], seed: int, data: Path, folder: Path) -> Path:
    """Where ids are whose codes say nothing of the items."""
    keys, path = read_item_data(data).catalogue.keys, folder.with_name(f"{folder.name}-ids")
    generator = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(size, (len(keys),), generator=generator) for size in sizes], 1)
    SemanticIds.assign(codes, sizes, keys, collisions="keep").save(path)
    return path


def validations(run: RunFolder) -> Iterator[dict[str, float]]:
    """What each validation found, also before an interruption."""
    for path in sorted(run.logs.glob("*/metrics.csv")):
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                if line.get(SELECTED_BY):
                    yield {name: float(line[name]) for name in ("step", SELECTED_BY, "val/recall@10")}


def run(name: str, entry: dict[str, Any], seed: int, data: Path, work: Path, tested: bool) -> dict[str, Any]:
    """One run of the program."""
    folder = work / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}"
    spent = folder.with_suffix(".json")  # minutes of processor time before an interruption
    minutes = json.loads(spent.read_text()) if folder.exists() and spent.exists() else 0.0
    program = [sys.executable, "-m", "gritvq", *command(entry, seed, data, folder, tested)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with folder.with_suffix(".log").open("a") as log:
        child = subprocess.Popen(program, stdout=log, stderr=log, env={**os.environ, **threads})
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    minutes += (usage.ru_utime + usage.ru_stime) / 60
    spent.write_text(json.dumps(minutes))
    if child.returncode:
        raise RuntimeError(f"{' '.join(program)} ended with {child.returncode}; see {log.name}")
    found = RunFolder(folder)
    best = max(validations(found), key=lambda line: line[SELECTED_BY])
    numbers = {f"validation_{key.removeprefix('val/')}": value for key, value in best.items() if key != "step"}
    if tested:
        numbers |= json.loads(found.metrics.read_text())
    identity = {"method": name, "settings": settings_of(entry), "seed": seed}
    return {**identity, **numbers, "step": best["step"] + 1, "minutes": minutes}


def settings_of(entry: dict[str, Any]) -> str:
    """An entry's configuration, what makes its ids, and what else it changes."""
    changes = " ".join(f"{key}={value}" for key, value in entry.get("changes", {}).items()) or "-"
    return " ".join(part for part in (entry["config"].removesuffix(".yaml"), _ids_of(entry), changes) if part)


def _ids_of(entry: dict[str, Any]) -> str:
    """What makes the ids, if it is not the configuration's own."""
    if "random_ids" in entry:
        return f"random_ids={entry['random_ids']}"
    if "tokenizer" not in entry:
        return ""
    named = re.findall(r'"class_path": "gritvq\.(?:items\.)?(\w+)"', json.dumps(entry["tokenizer"]))
    return "tokenizer=" + "/".join(dict.fromkeys(named))


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions, items and embeddings")
    parser.add_argument("--plan", type=Path, default=HERE / "recommenders.yaml", help="studies")
    parser.add_argument("--study", default="headline", help="study of the plan")
    parser.add_argument("--recommenders", nargs="+", help="only these of the study")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the study's")
    parser.add_argument("--work", type=Path, default=Path("runs/recommenders"), help="folder for the runs")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at once, one thread each")
    options = parser.parse_args()
    study = yaml.safe_load(options.plan.read_text())["studies"][options.study]
    tested, entries = study.get("test", True), study["recommenders"]
    if unknown := sorted({*(options.recommenders or ())} - {*entries}):
        parser.error(f"expected recommenders of the study, {', '.join(entries)}, got {', '.join(unknown)}")
    data = options.data.resolve()
    work = options.work / options.study / data.name
    work.mkdir(parents=True, exist_ok=True)
    path = results_file(RESULTS, f"items_{options.study}")
    about = circumstances("gritvq fit items, all test users, whole catalogue", data.name)
    done = read_results(path, IDENTITY) if path.exists() else []
    known = finished(done, data.name, IDENTITY)
    tasks = [
        (name, entries[name], seed, data, work, tested)
        for seed in options.seeds or study["seeds"]
        for name in options.recommenders or entries
        if (name, settings_of(entries[name]), str(seed)) not in known
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(run, *task) for task in tasks]
        for future in track(as_completed(futures), total=len(futures), description=path.stem):
            found = {**future.result(), **about}
            own = [found[name] for name in ("method", "seed", "data")]
            done = [row for row in done if [row[name] for name in ("method", "seed", "data")] != own]
            done.append(found)
            write_results(path, done, about, IDENTITY, UNITS)


if __name__ == "__main__":
    main()
