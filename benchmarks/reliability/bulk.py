"""Encoding on Ray with one worker and with two, a worker that is killed, and memory as the data grows.

    python -m benchmarks.reliability.bulk

Pictures are squares of the bundled photographs, in tar files of WebDataset, the tokenizer is untrained. Processes have
one thread each. Pictures per second count from when every worker has written its first shards; the seconds of the whole
call, with the start of the workers but not of Ray, stand beside them. It takes some minutes and wants an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from benchmarks.reliability.figures import Figure, write_figures
from PIL import Image

from gritvq import vq_vae
from gritvq.bulk import PictureWork, encode_here, encode_on_ray, encode_shards
from gritvq.bulk.engines import cluster, quiet_ray
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer, open_pictures
from gritvq.tokens import read_tokens, token_files

os.environ.setdefault("RAY_worker_niceness", "0")  # else 15, and others on the machine come first
COMMAND = "python -m benchmarks.reliability.bulk"
SIDE, ROWS = 64, 64  # pixels per side; pictures per shard


def processes_below(process: int, name: str) -> list[int]:
    """Processes of this name that a process has started, or that those have."""
    parents, found = dict[int, int](), list[int]()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, parent = (place / "stat").read_text().rpartition(")")[2].partition(" ")[2].partition(" ")
            parents[int(place.name)] = int(parent.split()[0])
            if (place / "cmdline").read_text().startswith(name) and state != "Z":
                found.append(int(place.name))

    def below(each: int) -> bool:
        return each == process or (each in parents and below(parents[each]))

    return sorted(each for each in found if below(each))


def peak_memory(process: int) -> int:
    """Most bytes that a process has held; 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def write_tars(folder: Path, count: int, per_file: int = 500) -> Path:
    """Squares of the bundled photographs as PNG in tar files."""
    photographs = [picture.pixels.permute(1, 2, 0).numpy() for picture in open_pictures("photographs")]
    random = np.random.default_rng(0)
    folder.mkdir()
    for start in range(0, count, per_file):
        with tarfile.open(folder / f"{start // per_file:04}.tar", "w") as archive:
            for number in range(start, min(start + per_file, count)):
                whole = photographs[number % len(photographs)]
                top, left = (int(random.integers(side - SIDE + 1)) for side in whole.shape[:2])
                file = io.BytesIO()
                Image.fromarray(whole[top : top + SIDE, left : left + SIDE]).save(file, "PNG")
                member = tarfile.TarInfo(f"{number:06}.png")
                member.size = len(file.getvalue())
                archive.addfile(member, io.BytesIO(file.getvalue()))
    return folder


class Run(NamedTuple):
    """What was measured of a run: whole seconds, pictures per second once all work, peak memory of the workers."""

    seconds: float
    rate: float
    memory: int


@contextlib.contextmanager
def watched(kill_at: Callable[[], bool] | None = None) -> Iterator[dict[str, int]]:
    """Peak memory of any worker, and whether one was killed."""
    seen, over = {"memory": 0, "killed": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.25):  # seldom: the workers need the processors
            workers = processes_below(os.getpid(), "ray::_Worker")
            seen["memory"] = max([seen["memory"], *map(peak_memory, workers)])
            if kill_at is not None and not seen["killed"] and workers and kill_at():
                os.kill(workers[0], signal.SIGKILL)
                seen["killed"] = 1

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def on_ray(work: PictureWork, out: Path, workers: int, kill: bool = False) -> Run:
    """Encode with so many workers."""
    times: list[float] = []
    held = out / ".unfinished"
    third = -(-len(work.pictures) // ROWS) // 3
    with watched((lambda: sum(1 for _ in held.glob("tokens-*")) >= third) if kill else None) as seen:
        start = time.perf_counter()
        engine = partial(encode_on_ray, num_workers=workers)
        encode_shards(work, out, ROWS, engine, lambda _: times.append(time.perf_counter()))
        seconds = time.perf_counter() - start
    if kill and not seen["killed"]:
        raise RuntimeError("no worker was killed: give more pictures")
    first = 2 * workers - 1  # by then every worker has written a shard
    rate = (len(times) - 1 - first) * ROWS / (times[-1] - times[first])
    print(f"{workers} workers, {len(times)} shards: {rate:.0f} pictures/s, {seconds:.0f} s in all", flush=True)
    return Run(seconds, rate, seen["memory"])


def different(folder: Path, other: Path) -> tuple[int, int, int]:
    """Rows of the other folder that are lost, that are there twice, and files that differ in a byte."""
    names, wanted = ([row.name for f in token_files(each) for row in read_tokens(f)] for each in (folder, other))
    files = {path.name for each in (folder, other) for path in token_files(each)}
    differ = sum(
        not all((each / name).is_file() for each in (folder, other))
        or (folder / name).read_bytes() != (other / name).read_bytes()
        for name in files
    )
    return len(set(wanted) - set(names)), len(names) - len(set(names)), differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3072, help="of the largest set")
    parser.add_argument("--width", type=int, default=32, help="channels of the tokenizer's first layer")
    parser.add_argument("--rounds", type=int, default=2, help="of one worker and two in turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = ImageEncoder(8, width=given.width), vq_vae(8, 1024), ImageDecoder(8, width=given.width)
    tokenizer = ImageTokenizer(*parts).eval()
    with tempfile.TemporaryDirectory() as place, cluster(quiet_ray(), 2):
        folder = Path(place)
        work, small = (
            PictureWork(tokenizer, open_pictures(write_tars(folder / name, count)), name)
            for name, count in (("data", given.pictures), ("quarter", given.pictures // 4))
        )
        start = time.perf_counter()
        encode_shards(work, folder / "here", ROWS, encode_here)
        here = len(work.pictures) / (time.perf_counter() - start)
        runs: dict[int, list[Run]] = {1: [], 2: []}
        for number in range(given.rounds):
            for workers in runs:
                runs[workers].append(on_ray(work, folder / f"{workers} workers {number}", workers))
        less = on_ray(small, folder / "small", 2)
        on_ray(work, folder / "killed", 2, kill=True)
        lost, twice, differ = different(folder / "killed", folder / "here")
        other = [different(folder / f"{workers} workers 0", folder / "here")[2] for workers in runs]
        files = len(token_files(folder / "here"))
    best = {workers: max(run.rate for run in own) for workers, own in runs.items()}
    ratio = best[2] / best[1]
    memory = max(run.memory for run in runs[2])
    size = f"{given.pictures:,} pictures of {SIDE} x {SIDE}"
    wall = {workers: min(run.seconds for run in own) for workers, own in runs.items()}
    write_figures(
        "bulk",
        [
            Figure(f"this process, {size}", "pictures/s, one thread", f"{here:.0f}"),
            *(
                Figure(f"Ray, {workers} worker{'s' * (workers > 1)}", "pictures/s, without start-up", f"{rate:.0f}")
                for workers, rate in best.items()
            ),
            Figure("Ray, 2 workers beside 1", "pictures/s, without start-up", f"{ratio:.2f} x", ">= 1.6 x"),
            Figure(
                "Ray, 1 and 2 workers",
                "whole call, with the start of the workers",
                f"{wall[1]:.0f} s and {wall[2]:.0f} s",
            ),
            Figure("Ray, 1 and 2 workers", "files unlike those of one process", f"{sum(other)} of {2 * files}", "0"),
            Figure("a worker killed (SIGKILL) after a third", "pictures lost", f"{lost}", "0"),
            Figure("a worker killed (SIGKILL) after a third", "pictures there twice", f"{twice}", "0"),
            Figure("a worker killed (SIGKILL) after a third", "files unlike those of one process", f"{differ}", "0"),
            Figure(
                f"a worker's peak memory, {given.pictures // 4:,} and {given.pictures:,} pictures",
                "MB, four times the data",
                f"{less.memory / 2**20:.0f} and {memory / 2**20:.0f}",
                "flat",
            ),
        ],
        COMMAND,
    )


if __name__ == "__main__":
    main()
