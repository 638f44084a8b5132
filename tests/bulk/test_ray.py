"""Encoding on Ray: a real cluster of this machine, with workers that are killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.reliability.bulk import processes_below

from bulk_parts import KINDS, picture_tokenizer, png, tar
from gritvq.bulk import PictureWork, encode_on_ray, encode_shards
from gritvq.images import open_pictures
from gritvq.tokens import read_tokens, token_files

pytestmark = [
    pytest.mark.soak,  # Ray starts in 10 to 20 seconds
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster for several tests, as a caller starts one."""
    ray = pytest.importorskip("ray", reason="the extra distributed is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_workers_write_the_files_of_one_process(kind: str, ray: Any, tmp_path: Path) -> None:
    work = KINDS[kind](tmp_path)
    totals = encode_shards(work, tmp_path / "one", 3)
    for number in (1, 2):
        out, done = tmp_path / f"workers {number}", list[int]()
        engine = partial(encode_on_ray, num_workers=number)
        assert encode_shards(work, out, 3, engine, done.append) == totals and sum(done) == totals["samples"]
        assert contents(out) == contents(tmp_path / "one")


def test_errors_and_warnings_of_workers(ray: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar(tmp_path / "a.tar", {f"{n}.png": b"no picture" if n == 3 else png(n) for n in range(6)})
    for strict in (False, True):
        pictures = open_pictures(tmp_path / "a.tar", strict=strict)
        work = PictureWork(picture_tokenizer(), pictures, "data")
        engine = partial(encode_on_ray, num_workers=2)
        if strict:
            with pytest.raises(ValueError, match=r"a.tar row 3 \(3.png\)"):
                encode_shards(work, tmp_path / "strict", 2, engine)
        else:
            assert encode_shards(work, tmp_path / "out", 2, engine)["samples"] == 5
            assert sum("3.png" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(ValueError, match="expected a CPU for each worker, got 3 workers and 2"):
        encode_shards(work, tmp_path / "three", 2, partial(encode_on_ray, num_workers=3))


@pytest.fixture
def many(tmp_path: Path) -> PictureWork:
    """Pictures that take two workers some seconds."""
    tar(tmp_path / "a.tar", {f"{n:04}.png": png(n, 64) for n in range(1500)})
    return PictureWork(picture_tokenizer(), open_pictures(tmp_path / "a.tar"), "data", 16)


def killing(when: Callable[[], bool], done: list[int]) -> None:
    """Kill one worker as soon as ``when`` says so."""

    def watch() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if when():
                victims = processes_below(os.getpid(), "ray::_Worker.encode")
                if victims:
                    os.kill(victims[len(done) % len(victims)], signal.SIGKILL)
                    done.append(victims[0])
                    return
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()


def test_a_killed_worker_loses_nothing_and_writes_nothing_twice(many: PictureWork, ray: Any, tmp_path: Path) -> None:
    encode_shards(many, tmp_path / "whole", 50)
    killed: list[int] = []
    held = tmp_path / "out" / ".unfinished"
    killing(lambda: sum(1 for _ in held.glob("tokens-*")) >= 6, killed)
    totals = encode_shards(many, tmp_path / "out", 50, partial(encode_on_ray, num_workers=2))
    assert len(killed) == 1 and totals["samples"] == 1500
    names = [row.name for file in token_files(tmp_path / "out") for row in read_tokens(file)]
    assert len(names) == len(set(names)) == 1500
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")  # no scratch file is left either


def test_workers_end_with_their_run(many: PictureWork, ray: Any, tmp_path: Path) -> None:
    """Else they would write shards into the folder of the next run."""

    def failing(samples: int) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        encode_shards(many, tmp_path / "out", 100, partial(encode_on_ray, num_workers=2), failing)
    time.sleep(1)  # what was on its way
    before = set((tmp_path / "out" / ".unfinished").glob("tokens-*"))
    assert 1 <= len(before) < 15
    time.sleep(3)
    assert set((tmp_path / "out" / ".unfinished").glob("tokens-*")) == before


PROGRAM = """
import sys
from gritvq.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_program_killed_and_started_again(many: PictureWork, tmp_path: Path) -> None:
    """kill -9 of the program itself: no process of Ray is left, and the second run makes only what is missing."""
    pytest.importorskip("ray", reason="the extra distributed is not installed")
    picture_tokenizer().save_pretrained(tmp_path / "tokenizer")
    words = ["encode", "a.tar", "--tokenizer", "tokenizer", "--batch_size", "16", "--rows_per_file", "50"]
    command = [sys.executable, "-c", PROGRAM, *words, "--engine", "ray", "--num_workers", "2", "--out", "out"]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    held, end = tmp_path / "out" / ".unfinished", time.monotonic() + 120
    while sum(1 for _ in held.glob("tokens-*")) < 6 and time.monotonic() < end:
        time.sleep(0.01)
    started.kill()
    assert started.communicate()[1] == ""
    kept = {path: path.stat().st_mtime_ns for path in held.glob("tokens-*.parquet")}
    assert 6 <= len(kept) < 30
    for path in list(kept)[:1]:
        assert np.all([row.tokens.numel() for row in read_tokens(path)])
    killed: list[int] = []
    killing(lambda: sum(1 for _ in held.glob("tokens-*")) >= len(kept) + 6, killed)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and again.stderr == "" and len(killed) == 1
    assert "1,500 of 1,500" in again.stdout and "raylet" not in again.stdout
    for path, time_of in kept.items():
        assert (tmp_path / "out" / path.name).stat().st_mtime_ns == time_of
    assert main_of([*words, "--out", "one"], tmp_path) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def main_of(words: list[str], place: Path) -> int:
    return subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=place, capture_output=True).returncode
