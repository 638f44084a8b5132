"""Other failures than kills: SIGTERM, a full disk, a read-only folder, damaged files, and the umask.

python -m benchmarks.reliability.failures --work /tmp/failures
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.reliability.figures import Figure, write_figures
from benchmarks.reliability.jobs import JOBS, Job, differing, finished, program, result_of, run, slug, whole
from benchmarks.reliability.kills import Ready, ready

from gritvq.cli import main
from gritvq.tokens import read_tokens, token_files

__all__ = ["damage", "full_disk", "permissions", "read_only", "terminated"]

COMMAND = "python -m benchmarks.reliability.failures"
# Without these root has the permissions that files give it.
_OBEDIENT = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if not os.geteuid() else ()


def _named(*names: str) -> list[Job]:
    return [job for job in JOBS if job.name in names]


def _good(problems: list[str], count: int, subject: str, asks: str) -> Figure:
    for problem in problems:
        print(f"{subject}: {problem}", flush=True)
    return Figure(subject, asks, f"{count - len(problems)} of {count}", f"{count} of {count}")


def _one_line(code: int, said: str, wanted: str) -> str | None:
    """What is wrong with the answer of a program that cannot do its job; None if it is right."""
    errors = [line for line in said.splitlines() if "error: " in line]
    if code == 2 and len(errors) == 1 and wanted in errors[0] and "Traceback" not in said:
        return None
    return f"exit code {code}: {said.strip()[-500:]}"


def terminated(there: Ready, seed: int) -> list[Figure]:
    """SIGTERM in the middle of the training: the program saves, exits with 143, and goes on bitwise."""
    folder = there.work / "terminated"
    draw, problems, count = random.Random(seed), [], 0
    for job in _named("fit images", "fit items", "fit prior", "fit text"):
        count += 1
        place = folder / slug(job.name)
        there.prepare(job, place)
        process = program(job.command, place)
        last = place / job.out / "checkpoints" / "last.ckpt"
        while process.poll() is None and not last.exists():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
        if process.returncode != 143 or "continue with --resume last" not in said:
            problems.append(f"{job.name}: exit code {process.returncode}: {said[-300:]}")
            continue
        finished(job.again(place) or job.command, place)
        if names := differing(there.straight[job.name].result, result_of(place / job.out)):
            problems.append(f"{job.name}: {names[:5]}")
    asks = "a training saves, exits with 143, and its end is bitwise that of one run"
    return [_good(problems, count, "SIGTERM", asks)]


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[bool]:
    """A disk of its own of so many bytes in memory; False where this is not allowed."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = not os.geteuid() and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def _size(out: Path) -> int:
    return sum(path.stat().st_size for path in [out, *out.rglob("*")] if path.is_file())


def full_disk(there: Ready) -> list[Figure]:
    """A disk of its own is full from the start, or has a part of the room that is needed; then there is enough."""
    folder = there.work / "disk"
    wrong, changed, unequal, count = [], [], [], 0
    with _small_disk(folder, 16 << 20) as mounted:
        if not mounted:
            return [Figure("full disk", "not tried: no disk can be mounted here; tests/cli/test_full_disk.py", "-")]
        names = ("fit images", "encode over an old file", "encode, several files")
        for job in _named(*names, "semantic-ids fit over old ids", "semantic-ids add"):
            for number, share in enumerate((0.0, 0.02 if job.name.startswith("semantic") else 0.5)):
                count += 1
                place = folder / f"{slug(job.name)}-{number}"
                there.prepare(job, place)
                out = place / job.out
                old = result_of(out) if out.exists() else {}
                needed = _size(there.place(job.name) / job.out)
                with (folder / "filler").open("wb") as filler:
                    disk = os.statvfs(folder)
                    filler.write(bytes(max(0, disk.f_bavail * disk.f_frsize - int(share * needed))))
                code, said = run(job.command, place)
                if problem := _one_line(code, said, "expected room on the disk"):
                    wrong.append(f"{job.name} with room for {share} of it: {problem}")
                (folder / "filler").unlink()
                try:
                    found = whole(out) if out.exists() else []
                    if old and result_of(out) != old:
                        changed.append(f"{job.name} with room for {share} of it: {found}")
                except Exception as error:
                    changed.append(f"{job.name} with room for {share} of it: {error}")
                if command := job.again(place):
                    finished(command, place)
                if names_of := differing(there.straight[job.name].result, result_of(out)):
                    unequal.append(f"{job.name} with room for {share} of it: {names_of[:5]}")
                shutil.rmtree(place)
    return [
        _good(wrong, count, "full disk", "one line says so, exit code 2"),
        _good(changed, count, "full disk", "what was there stays, nothing is half there"),
        _good(unequal, count, "full disk", "once there is room, the end is bitwise that of one run"),
    ]


def read_only(there: Ready) -> list[Figure]:
    """Nothing below the folder may be written; root has no more permissions than files give it."""
    folder = there.work / "read-only"
    wrong, changed, count = [], [], 0
    if not os.geteuid() and shutil.which("setpriv") is None:
        return [Figure("read-only folder", "not tried: this is root, and there is no setpriv", "-")]
    names = ("fit images", "fit images over an old run", "encode over an old file", "encode, several files")
    for job in _named(*names, "semantic-ids fit over old ids", "semantic-ids add"):
        count += 1
        place = folder / slug(job.name)
        there.prepare(job, place)
        old = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        places = [place, *(path for path in place.rglob("*") if path.is_dir() and not path.is_symlink())]
        for each in places:
            each.chmod(0o555)
        code, said = run(job.command, place, _OBEDIENT)
        for each in places:
            each.chmod(0o755)
        if problem := _one_line(code, said, "expected a file or folder that this program may use"):
            wrong.append(f"{job.name}: {problem}")
        if {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} != old:
            changed.append(job.name)
    return [
        _good(wrong, count, "read-only folder", "one line says so, exit code 2"),
        _good(changed, count, "read-only folder", "nothing has changed"),
    ]


def damage(there: Ready, seed: int) -> list[Figure]:
    """Files of every kind that are cut short, emptied, or have one bit flipped, given to the program."""
    folder = there.work / "damaged"
    images, items = there.place("fit images"), there.place("fit items")
    data = images / "data"
    recommend = "recommend IT --data data/shop --history [a1,a3] --k 3"
    kinds = {
        "tokenizer": (images / "run/tokenizer", "encode data/pictures --size 16 --overwrite true --tokenizer IT"),
        "checkpoint": (images / "run", "fit images --config IT/config.yaml --out IT --resume IT/checkpoints/last.ckpt"),
        "recommender": (items / "run/recommender", recommend),
        "prior": (there.place("fit prior") / "run", "generate IT --num 2 --overwrite true --out generated"),
        "model of text": (there.place("fit text") / "run", "generate IT --num 2 --overwrite true --out texts.jsonl"),
        "semantic ids": (there.place("semantic-ids fit") / "run", "semantic-ids report IT"),
        "tokens, npz": (
            there.place("encode, one file") / "out.npz",
            "decode IT --tokenizer data/tokenizer --overwrite true",
        ),
        "tokens, Parquet": (
            there.place("encode, several files") / "run",
            "decode IT --tokenizer data/tokenizer --overwrite true",
        ),
    }
    draw, figures = random.Random(seed), []
    for kind, (source, command) in kinds.items():
        problems, count, unchanged = [], 0, 0
        copy = folder / slug(kind) / source.name
        copy.parent.mkdir(parents=True)
        (copy.parent / "data").symlink_to(data)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
        code, said = _in_process(command.replace("IT", str(copy)), copy.parent)
        if code:  # then the refusals below would mean nothing
            raise RuntimeError(f"exit code {code} of gritvq {command}: {said}")
        whole_tokens = _tokens(kind, copy)
        for path in _read_by(kind, copy):
            content = path.read_bytes()
            for how, damaged in _damaged(content, draw, text=path.suffix == ".json"):
                path.write_bytes(damaged)
                count += 1
                code, said = _in_process(command.replace("IT", str(copy)), copy.parent)
                if code == 0 and _tokens(kind, copy) == whole_tokens:  # in what nobody reads, such as a date
                    unchanged += 1
                elif problem := _one_line(code, said, "expected"):
                    problems.append(f"{kind} {path.name} {how}: {problem}")
            path.write_bytes(content)
        asks = "refused in one line, exit code 2"
        if unchanged:
            asks += f"; {unchanged} of them read as they were, the bit being one that means nothing"
        figures.append(_good(problems, count, f"damaged files: {kind}", asks))
    return figures


def _read_by(kind: str, copy: Path) -> list[Path]:
    """The files that the command reads."""
    if copy.is_file():
        return [copy]
    inner = {"checkpoint": "checkpoints/last.ckpt", "prior": "prior/*", "model of text": "text-model/*"}
    patterns = {"semantic ids": ["ids/*", "tokenizer/*"]}.get(kind, [inner.get(kind, "*")])
    return sorted(path for pattern in patterns for path in copy.glob(pattern) if path.is_file())


def _tokens(kind: str, copy: Path) -> object:
    """What the token files say; another object each time for other kinds, whose every bit counts."""
    if not kind.startswith("tokens"):
        return object()
    rows = [row for path in token_files(copy) for row in read_tokens(path)]
    return [(row.name, row.tokens.tolist(), row.columns) for row in rows]


def _damaged(content: bytes, draw: random.Random, text: bool) -> Iterator[tuple[str, bytes]]:
    """Cut short, emptied, and with a flipped bit at some places."""
    yield "cut in the middle", content[: len(content) // 2]
    yield "cut by the last byte of its content", content.rstrip()[:-1]
    yield "emptied", b""
    for _ in range(4):
        place = draw.randrange(len(content))
        while text and not content[place : place + 1].isalnum():  # spaces of JSON mean nothing
            place = draw.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        yield f"with a flipped bit at {place}", bytes(changed)


def _in_process(command: str, folder: Path) -> tuple[int, str]:
    """Exit code and output of the program, without starting another process."""
    said, before = io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                code = main(command.split())
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else -1
            except Exception as error:
                return -1, f"Traceback: {type(error).__name__}: {error}"
    finally:
        os.chdir(before)
    return code, said.getvalue()


def permissions(there: Ready) -> list[Figure]:
    """Every file and folder that the program makes has the permissions that the umask leaves."""
    folder = there.work / "umask"
    figures = []
    groups = {
        0o027: ("fit images", "semantic-ids fit"),
        0o077: ("fit items", "encode, several files"),
    }
    for mask, names in groups.items():
        problems, count = [], 0
        for job in _named(*names):
            place = folder / f"{slug(job.name)}-{mask:o}"
            there.prepare(job, place)
            finished(job.command, place, mask)
            out = place / job.out
            for path in [out, *(out.rglob("*") if out.is_dir() else ())]:
                count += 1
                found = stat.S_IMODE(path.stat().st_mode)
                if found != (0o777 if path.is_dir() else 0o666) & ~mask:
                    problems.append(f"{path} has {found:o}")
        figures.append(_good(problems, count, f"umask {mask:03o}", "files and folders that obey it"))
    return figures


def run_all() -> None:
    """Run all of it and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder, such as that of kills; default: a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2, help="trials at a time")
    options = parser.parse_args()
    if options.work is not None:
        for name in ("disk", "terminated", "read-only", "umask", "damaged"):
            shutil.rmtree(options.work / name, ignore_errors=True)
    there = ready(Path(options.work or tempfile.mkdtemp()), JOBS, options.parallel)
    with ThreadPoolExecutor(options.parallel) as pool:
        parts = [
            pool.submit(full_disk, there),
            pool.submit(terminated, there, options.seed),
            pool.submit(read_only, there),
            pool.submit(permissions, there),
        ]
    terminations = parts.pop(1)
    figures = [figure for part in (terminations, *parts) for figure in part.result()] + damage(there, options.seed)
    for figure in figures:
        print(*figure, sep=" | ")
    print(write_figures("failures", figures, COMMAND))
    sys.exit(any(figure.target and figure.value != figure.target for figure in figures))


if __name__ == "__main__":
    run_all()
