"""Codes of a million item embeddings from a memory-mapped file: items per second, and memory beyond the map.

    python -m benchmarks.speed.encode --data FOLDER

The embeddings of the folder (`item_embeddings.npy`) are repeated, with a little noise of a fixed seed, to 1,000,000
rows of float16 in a temporary file. Tokenizers are fitted on the folder's own embeddings. Each is measured in a process
of its own: seconds of `encode` in its second run over all rows, and growth of the peak of anonymous memory over what
was there before, so that pages of the map itself do not count. Writes `benchmarks/results/items_encode_*.csv`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from benchmarks.quality.common import RESULTS, circumstances, hardware
from benchmarks.speed.memory import resident

from gritvq.items import RQVAE, ItemDecoder, ItemEncoder, ItemTokenizer, ResidualKMeans, grit_stack
from gritvq.results import write_results

ROWS = 1_000_000
UNITS = {"items_per_second": "items/s", "seconds": "s", "peak_bytes": "bytes"}


def tokenizers(dim: int) -> dict[str, ItemTokenizer]:
    """Unfitted; the RQ-VAE trains briefly, since encoding takes as long whatever it learned."""
    sizes = {"input_dim": dim, "dim": 32, "activation": "silu"}
    networks = {"encoder": ItemEncoder(**sizes), "decoder": ItemDecoder(**sizes)}
    return {
        "residual_kmeans": ResidualKMeans(),
        "residual_kmeans_normalized": ResidualKMeans(normalize_residuals=True),
        "rqvae_grit_vq": RQVAE(grit_stack(), **networks, steps=200, lr=2e-3),
    }


def enlarge(source: Path, target: Path, rows: int) -> None:
    """The same vectors over and over, with noise."""
    vectors = np.load(source)
    out = np.lib.format.open_memmap(target, "w+", np.float16, (rows, vectors.shape[1]))
    noise = np.random.default_rng(0)
    for start in range(0, rows, len(vectors)):
        part = vectors[: rows - start].astype(np.float32)
        out[start : start + len(part)] = part + 0.01 * noise.standard_normal(part.shape, dtype=np.float32)
    out.flush()


def measure(folder: str, path: str, threads: int) -> None:
    """In a process of its own; prints the numbers."""
    torch.set_num_threads(threads)
    tokenizer, vectors = ItemTokenizer.from_pretrained(folder), np.load(path, mmap_mode="r")
    tokenizer.encode(vectors[:20000])
    before, peak, done = resident("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, resident("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        started = time.perf_counter()
        codes = tokenizer.encode(vectors)
        seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(
        json.dumps({"seconds": seconds, "items_per_second": len(codes) / seconds, "peak_bytes": max(0, peak - before)})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(*options.child, options.threads)
        return
    torch.set_num_threads(options.threads)
    source = options.data / "item_embeddings.npy"
    vectors = np.load(source)
    about = circumstances("python -m benchmarks.speed.encode", options.data.resolve().name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.npy"
        enlarge(source, path, options.rows)
        for name, tokenizer in tokenizers(vectors.shape[1]).items():
            started = time.perf_counter()
            tokenizer.fit(vectors)
            tokenizer.encode(vectors)
            fit_seconds = time.perf_counter() - started
            tokenizer.save_pretrained(Path(folder) / name)
            command = [sys.executable, "-m", "benchmarks.speed.encode", "--data", str(options.data)]
            command += ["--threads", str(options.threads), "--child", str(Path(folder) / name), str(path)]
            numbers = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            settings = f"rows={options.rows} threads={options.threads}"
            row = {"method": name, "preset": "-", "settings": settings, "codebook_size": 256, "seed": 0, **numbers}
            rows.append({**row, "fit_and_encode_seconds": fit_seconds, **about})
            print(rows[-1], flush=True)
    units = {**UNITS, "fit_and_encode_seconds": "s"}
    write_results(RESULTS / f"items_encode_{hardware()}_{date.today():%Y%m}.csv", rows, about, units=units)


if __name__ == "__main__":
    main()
