"""Kills the program at random moments, and starts it again: what is there is whole, and the end is that of one run.

python -m benchmarks.reliability.kills --work /tmp/kills
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.reliability.figures import Figure, write_figures
from benchmarks.reliability.jobs import JOBS, Job, differing, finished, make_data, program, result_of, slug, whole

from gritvq.files import write_json

__all__ = ["Ready", "Reference", "Trial", "figures_of", "prepared", "ready", "reference", "trial"]

COMMAND = "python -m benchmarks.reliability.kills"
TRIALS = {"fit images": 6, "fit items": 6, "fit prior": 5}  # 3 of the others


@dataclass(frozen=True)
class Reference:
    """A run that nobody stopped: how long it took, how many temporary names were seen, and what came out."""

    seconds: float
    names: int
    result: dict[str, str]


@dataclass
class Trial:
    """What was seen of one run that was killed and started again, perhaps several times."""

    job: str
    sent: int = 0
    while_running: int = 0
    faults: list[str] = field(default_factory=list)  # something is damaged
    differences: list[str] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)


class Watch:
    """Counts the temporary names that come and go below a folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.seen = out, set[str]()

    def look(self) -> int:
        """How many there have been so far."""
        places = [self.out.parent] if self.out.suffix else [self.out, *_folders_in(self.out)]
        for place in places:
            try:
                self.seen |= {entry.path for entry in os.scandir(place) if entry.name.startswith(".wr")}
            except OSError:  # gone, or not there yet
                continue
        return len(self.seen)


def _folders_in(folder: Path) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".wr")]
    except OSError:
        return []


def prepared(job: Job, data: Path, folder: Path, before: dict[str, Path]) -> None:
    """A folder with the data, and what an earlier command has written."""
    folder.mkdir(parents=True)
    (folder / "data").symlink_to(data / "data")
    if job.before is not None:
        old = before[job.before] / job.out
        (shutil.copytree if old.is_dir() else shutil.copy)(old, folder / job.out)


def reference(job: Job, folder: Path) -> Reference:
    """Run the job without a kill, watching what comes and goes."""
    watch, started = Watch(folder / job.out), time.perf_counter()
    process = program(job.command, folder)
    reader = threading.Thread(target=process.communicate, daemon=True)
    reader.start()
    while process.poll() is None:
        watch.look()
        time.sleep(0.0005)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode} of gritvq {job.command} in {folder}")
    whole(folder / job.out)
    return Reference(time.perf_counter() - started, len(watch.seen), result_of(folder / job.out))


def killed(command: str, out: Path, moment: Callable[[float, int], bool], trial: Trial) -> None:
    """Start a command, and kill its whole group at a moment that depends on the time and on what was seen."""
    process, watch = program(command, out.parent), Watch(out)
    threading.Thread(target=process.communicate, daemon=True).start()
    started = time.perf_counter()
    while process.poll() is None and not moment(time.perf_counter() - started, watch.look()):
        time.sleep(0.0005)
    trial.sent += 1
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    trial.while_running += process.returncode == -signal.SIGKILL
    if process.returncode not in (0, -signal.SIGKILL):
        trial.faults.append(f"exit code {process.returncode} of gritvq {command}")


def trial(job: Job, number: int, folder: Path, straight: Reference, seed: int) -> Trial:
    """Kill the job one or three times, look at what is there each time, let it end, and compare."""
    draw, found, out = random.Random(f"{seed} {job.name} {number}"), Trial(job.name), folder / job.out
    old = result_of(out) if out.is_file() else {}
    command: str | None = job.command
    for _ in range(3 if number % 3 == 2 else 1):
        if command is None:
            break
        if number % 2 and straight.names:
            wanted, delay = draw.randint(1, straight.names), draw.choice((0.0, draw.uniform(0, 0.01)))
            found.moments.append(f"name {wanted} + {1000 * delay:.1f} ms")
            seen: list[float] = []

            def moment(now: float, names: int, wanted: int = wanted, delay: float = delay, seen: list = seen) -> bool:
                if names >= wanted and not seen:
                    seen.append(now)
                return bool(seen) and now - seen[0] >= delay
        else:
            at = draw.uniform(0, straight.seconds)
            found.moments.append(f"{at:.2f} s")

            def moment(now: float, names: int, at: float = at) -> bool:
                return now >= at

        killed(command, out, moment, found)
        try:
            whole(out) if out.exists() else None
            if out.is_file() and result_of(out) not in (old, straight.result):
                raise ValueError(f"{out.name} is neither the old nor the new one")
        except Exception as error:
            found.faults.append(f"{type(error).__name__}: {error}")
        command = job.again(folder)
    try:
        while command is not None:
            finished(command, folder)
            command = None
        whole(out)
        found.differences = differing(straight.result, result_of(out))
    except Exception as error:
        found.differences.append(f"{type(error).__name__}: {error}")
    return found


def figures_of(trials: Iterable[Trial]) -> list[Figure]:
    """Rows of the table: one kind of job after the other, then all."""
    trials = list(trials)
    figures = []
    for name in [*dict.fromkeys(each.job for each in trials), "all"]:
        own = [each for each in trials if name in (each.job, "all")]
        count = len(own)
        good, equal = sum(not each.faults for each in own), sum(not each.differences for each in own)
        hits, sent = sum(each.while_running for each in own), sum(each.sent for each in own)
        figures += [
            Figure(name, "kills that hit it while it ran", f"{hits} of {sent} in {count} trials"),
            Figure(name, "what is there is whole", f"{good} of {count}", f"{count} of {count}"),
            Figure(
                name, "started again, the end is bitwise that of one run", f"{equal} of {count}", f"{count} of {count}"
            ),
        ]
    return figures


class Ready(NamedTuple):
    """Data, what earlier commands have written, and undisturbed runs, all below one folder."""

    work: Path
    before: dict[str, Path]
    straight: dict[str, Reference]

    def prepare(self, job: Job, folder: Path) -> None:
        """A folder in which the job can start."""
        prepared(job, self.work, folder, self.before)

    def place(self, name: str) -> Path:
        """Where the undisturbed run of a job was."""
        return self.work / slug(name) / "straight"


def ready(work: Path, jobs: Iterable[Job], parallel: int) -> Ready:
    """Make everything that the trials need and that is not there yet."""
    jobs = list(jobs)
    work.mkdir(parents=True, exist_ok=True)
    found = Ready(work, {}, {})
    if not (work / "made.json").exists():
        shutil.rmtree(work / "data", ignore_errors=True)
        make_data(work)
        write_json(work / "made.json", True)
    for number, command in enumerate(sorted({job.before for job in JOBS if job.before})):
        found.before[command] = place = work / f"before-{number}"
        if not (place / "made.json").exists() and any(job.before == command for job in jobs):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            (place / "data").symlink_to(work / "data")
            finished(command, place)
            write_json(place / "made.json", True)

    def one(job: Job) -> Reference:
        place = found.place(job.name)
        if not (place / "made.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            found.prepare(job, place)
            seen = reference(job, place)
            write_json(place / "made.json", {"seconds": seen.seconds, "names": seen.names})
        return Reference(**json.loads((place / "made.json").read_text()), result=result_of(place / job.out))

    with ThreadPoolExecutor(parallel) as pool:
        found.straight.update(zip((job.name for job in jobs), pool.map(one, jobs), strict=True))
    for name, straight in found.straight.items():
        print(f"{name}: {straight.seconds:.1f} s, {straight.names} names", flush=True)
    return found


def main() -> None:
    """Run all trials and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder; what it holds is not done again; default: a temporary one")
    parser.add_argument("--jobs", nargs="*", help="names of jobs; default: all")
    parser.add_argument("--trials", type=int, help="trials of each job; default: 41 in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", default="true", choices=["true", "false"], help="whether to write the table")
    parser.add_argument("--parallel", type=int, default=2, help="trials at a time")
    options = parser.parse_args()
    started = time.perf_counter()
    chosen = [job for job in JOBS if not options.jobs or job.name in options.jobs]
    there = ready(Path(options.work or tempfile.mkdtemp()), chosen, options.parallel)

    def one(job: Job, number: int) -> Trial:
        folder = there.work / slug(job.name) / f"{options.seed}-{number}"
        if (folder / "trial.json").exists():
            return Trial(**json.loads((folder / "trial.json").read_text()))
        shutil.rmtree(folder, ignore_errors=True)
        there.prepare(job, folder)
        found = trial(job, number, folder, there.straight[job.name], options.seed)
        write_json(folder / "trial.json", asdict(found))
        told = "; ".join([*found.faults[:2], *found.differences[:6]]) or "good"
        print(f"{job.name} {number}: {', '.join(found.moments)}: {told}", flush=True)
        return found

    with ThreadPoolExecutor(options.parallel) as pool:
        counts = {job: options.trials or TRIALS.get(job.name, 3) for job in chosen}
        asked = [(job, number) for number in range(max(counts.values())) for job in chosen if number < counts[job]]
        done = dict(zip(asked, pool.map(lambda each: one(*each), asked), strict=True))
    trials = [done[each] for each in sorted(done, key=lambda each: (chosen.index(each[0]), each[1]))]
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    figures = figures_of(trials)
    for figure in figures:
        print(*figure, sep=" | ")
    if options.write == "true":
        print(write_figures("kills", figures, COMMAND))
    sys.exit(any(figure.target and figure.value != figure.target for figure in figures))


if __name__ == "__main__":
    main()
