"""Readers against damaged and made-up files: none may crash, hang or take more than 1 GB of memory.

    python -m benchmarks.reliability.fuzz --minutes 10

Each reader runs in a process of its own. Before each input the process writes down its seed; if it dies, the seed is
counted as a crash; if it takes longer than 30 seconds of a core, or five minutes, it is killed and the seed counted as
a hang. The next process goes on behind it. One input again, with its error:

    python -m benchmarks.reliability.fuzz --readers tokens --input 17
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reliability.figures import Figure, write_figures

if TYPE_CHECKING:
    from benchmarks.reliability.changes import Reader

__all__ = ["Found", "fuzz", "main"]

NAMES = ("config", "tokens", "ids", "pictures", "checkpoints", "yaml")
PATIENCE = 30.0  # seconds of a core after which a reader hangs
WAITING = 300.0  # seconds after which a reader hangs that waits for something
STARTING = 1800.0  # seconds until the first input: a busy machine imports for long
MOST = 1 << 30  # bytes of a process
LIMIT = 12 << 30  # bytes of addresses, so that what asks for all memory of the machine does not get it


class Found:
    """What inputs led to."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.peak = 0  # bytes of the process while it read
        self.seeds: dict[str, list[tuple[int, str]]] = {"crashed": [], "hung": [], "memory": []}

    def add(self, seed: int, kind: str, why: str, peak: int) -> None:
        """Count one input."""
        self.counts[kind] += 1
        self.peak = max(self.peak, peak)
        if kind in self.seeds:
            self.seeds[kind].append((seed, why))
        if peak > MOST:
            self.seeds["memory"].append((seed, f"{peak >> 20} MB"))


def fuzz(name: str, seconds: float, first: int = 0) -> Found:
    """Read inputs for so long, from this seed on; the first imports do not count."""
    found, end, seed = Found(), time.monotonic() + seconds, first
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.jsonl"
        while time.monotonic() < end:
            log.unlink(missing_ok=True)
            line = [sys.executable, "-m", "benchmarks.reliability.fuzz", "--readers", name]
            line += ["--from", str(seed), "--work", scratch, "--seconds", str(max(1.0, end - time.monotonic()))]
            with (Path(scratch) / "errors").open("wb") as errors:
                process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=errors)
                hung = _watched(process, log)
            last, begun = _counted(found, log)
            if hung is None and process.returncode == 0:
                break
            seed = seed if last is None else last + 1
            if last is None:
                raise RuntimeError(f"{name}: no input was read: {(Path(scratch) / 'errors').read_text()[-2000:]}")
            if begun:
                why = "hangs" if hung else f"ends with {process.returncode}"
                found.add(seed - 1, "hung" if hung else "crashed", why, 0)
    return found


def _watched(process: subprocess.Popen[bytes], log: Path) -> bool | None:
    """Wait for the end of a process, and kill it where it stands still: whether it did; None if it is none's fault."""
    changed, used, size = time.monotonic(), 0.0, -1
    while process.poll() is None:
        time.sleep(0.2)
        now = log.stat().st_size if log.exists() else -1
        if now != size:
            changed, used, size = time.monotonic(), _seconds_of(process.pid), now
        hangs = size > 0 and _seconds_of(process.pid) - used > PATIENCE
        if hangs or time.monotonic() - changed > (WAITING if size > 0 else STARTING):
            process.kill()
            process.wait()
            return True
    return None if process.returncode == 0 else False


def _seconds_of(process: int) -> float:
    """Seconds of a core that a process has used."""
    try:
        values = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def _counted(found: Found, log: Path) -> tuple[int | None, bool]:
    """Count what a process wrote down; the last seed or None, and whether it was begun and not ended."""
    last, begun = None, False
    for line in log.read_text().splitlines() if log.exists() else []:
        last, *said = json.loads(line)
        begun = not said
        if said:
            found.add(last, *said)
    return last, begun


def _work(name: str, first: int, seconds: float, work: Path) -> None:
    """Read inputs and write down what happens."""
    from benchmarks.reliability.changes import changed_files, outcome

    reader, files = _reader(name), _whole(name)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    folder, end, seed = work / "input", time.monotonic() + seconds, first
    with (work / "log.jsonl").open("w") as log:
        while time.monotonic() < end:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if seed % 50 == 0:
                gc.collect()
            if changed_files(reader, files, seed, folder):
                print(json.dumps([seed]), file=log, flush=True)
                _reset_peak()
                kind, why = outcome(reader, folder)
                print(json.dumps([seed, kind, why, _peak()]), file=log, flush=True)
            seed += 1


def _reader(name: str) -> Reader:
    """A reader; that of pictures alone, whose packages are few."""
    if name == "pictures":
        from benchmarks.reliability.pictures import PICTURES

        return PICTURES
    from benchmarks.reliability.hostile import READERS

    return READERS[name]


def _whole(name: str) -> dict[str, bytes]:
    """Whole files of a reader, which it reads."""
    import torch

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _reader(name).make(folder)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


def _reset_peak() -> None:
    """Forget the most memory so far."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Most bytes of this process since then."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def _again(name: str, seed: int) -> None:
    """One input, with its error."""
    from benchmarks.reliability.changes import changed_files

    with tempfile.TemporaryDirectory() as scratch:
        changed_files(_reader(name), _whole(name), seed, Path(scratch))
        print(
            *(f"{path.relative_to(scratch)}: {path.stat().st_size:,} bytes" for path in Path(scratch).rglob("*")),
            sep="\n",
        )
        if kept := os.environ.get("KEEP_INPUT"):
            shutil.copytree(scratch, kept, dirs_exist_ok=True)
        _reset_peak()
        began = time.monotonic()
        try:
            _reader(name).read(Path(scratch))
            print("accepted")
        except BaseException:
            traceback.print_exc()
        print(f"{time.monotonic() - began:.2f} s, {_peak() >> 20} MB")


def main(words: Sequence[str] | None = None) -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for each reader")
    parser.add_argument("--readers", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed")
    parser.add_argument("--input", type=int, help="read this one again, of one reader")
    parser.add_argument("--together", type=int, default=1, help="readers that run at the same time")
    parser.add_argument("--json", type=Path, help="keep what was found here; readers of an earlier run there count")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.work is not None:
        _work(given.readers[0], given.first, given.seconds, given.work)
    elif given.input is not None:
        _again(given.readers[0], given.input)
    else:
        _all(given)


def _all(given: Any) -> None:
    """All readers, and their figures."""
    with ThreadPoolExecutor(given.together) as pool:
        every = list(pool.map(lambda name: fuzz(name, 60 * given.minutes, given.first), given.readers))
    kept = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    for name, found in zip(given.readers, every, strict=True):
        kept[name] = {"minutes": given.minutes, "counts": dict(found.counts), "peak": found.peak, **found.seeds}
        print(f"{name}: {dict(found.counts)}, {found.peak >> 20} MB", *found.seeds.items(), sep="\n  ", flush=True)
    if given.json:
        given.json.write_text(json.dumps(kept, indent=1))
    if set(kept) == set(NAMES):
        write_figures("fuzz", _figures(kept), "python -m benchmarks.reliability.fuzz")


def _figures(kept: dict[str, Any]) -> Iterator[Figure]:
    for name in NAMES:
        found, counts = kept[name], Counter[str](kept[name]["counts"])
        yield Figure(name, f"inputs in {found['minutes']:g} minutes", f"{sum(counts.values()):,}")
        yield Figure(name, "accepted", f"{counts['accepted']:,}")
        yield Figure(name, "refused in words", f"{counts['refused']:,}")
        yield Figure(name, "crashes, or other errors", f"{counts['crashed']:,}", "0")
        yield Figure(name, "hangs (30 s of a core)", f"{counts['hung']:,}", "0")
        yield Figure(name, "most memory of the process", f"{found['peak'] / 1e6:,.0f} MB", "at most 1,074 MB")


if __name__ == "__main__":
    main()
