"""Processes that SLURM, torchrun or the run itself starts: one decides, all know, all stop together."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from gritvq.cli import main
from gritvq.items import GenerativeRecommender, RecommenderTask
from gritvq.training import TrainingPlan
from gritvq.training.launch import Launch
from processes import together
from shop_files import write_shop

PLAN = TrainingPlan(accelerator="cpu", devices=2)


def by_slurm(rank: int) -> dict[str, str]:
    return {
        **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7"},
        **{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NNODES": "1"},
    }


def by_torchrun(rank: int) -> dict[str, str]:
    return {
        **{"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"},
        "TORCHELASTIC_RUN_ID": "x",
    }


def put(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("environment", [by_slurm, by_torchrun])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_is_the_first(environment: Any, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put(environment(rank), monkeypatch)
    assert Launch(PLAN).first == (rank == 0)


def test_an_interactive_job_starts_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    put({**by_slurm(0), "SLURM_JOB_NAME": "bash"}, monkeypatch)
    done: list[int] = []
    Launch(PLAN).agree(lambda: done.append(1))  # waits for nobody
    assert done == [1]


def test_a_process_of_ours_waits_for_nobody_and_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    put({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "GRITVQ_STARTED_BY": str(os.getppid())}, monkeypatch)
    Launch(PLAN).agree(lambda: pytest.fail("a second decision"))


def shared() -> int:
    """What processes get that each would make of its own number; torchrun is around them."""
    os.environ.pop("GRITVQ_STARTED_BY", None)
    rank = int(os.environ["RANK"])
    return Launch(PLAN).share(lambda: rank + 5) or 0


def fit_items(shop: str, run: str) -> list[str]:
    """Digests of the ids that a process trained with."""
    os.environ.pop("GRITVQ_STARTED_BY", None)
    found: list[str] = []
    losses = RecommenderTask.losses

    def noted(self: RecommenderTask, histories: Any) -> Any:
        found.append(self.recommender.ids_digest)
        return losses(self, histories)

    RecommenderTask.losses = noted  # type: ignore[method-assign]
    sizes = ["--tokenizer.codebook_size", "8", "--tokenizer.num_levels", "2", "--backbone.dim", "16"]
    told = ["fit", "items", *sizes, "--backbone.num_heads", "2", "--plan.accelerator", "cpu", "--plan.devices", "2"]
    told += ["--plan.max_steps", "2", "--plan.validate_every", "0", "--batches.batch_size", "8", "--out", run]
    try:
        assert main([*told, "--data.folder", shop]) == 0
    finally:
        RecommenderTask.losses = losses  # type: ignore[method-assign]
    return found


def test_the_others_get_what_the_first_one_made(tmp_path: Path) -> None:
    assert together(2, shared, tmp_path) == [5, 5]


def test_processes_of_torchrun_make_ids_once(tmp_path: Path) -> None:
    write_shop(tmp_path / "shop", 60, 50)
    digests = together(2, fit_items, tmp_path / "out", str(tmp_path / "shop"), str(tmp_path / "run"))
    saved = GenerativeRecommender.from_pretrained(tmp_path / "run" / "recommender")
    assert digests == [[saved.ids_digest] * 2] * 2 and len(saved.codes.unique()) > 4


@pytest.mark.parametrize("environment", [by_slurm, by_torchrun])
def test_processes_that_nobody_planned_are_refused(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(environment(1), monkeypatch)
    with pytest.raises(ValueError, match=r"give --plan.devices"):
        Launch(TrainingPlan(accelerator="cpu"))


def test_other_numbers_of_nodes_than_slurm_has(monkeypatch: pytest.MonkeyPatch) -> None:
    put(by_slurm(0), monkeypatch)
    with pytest.raises(ValueError, match="num_nodes=1"):
        Launch(TrainingPlan(accelerator="cpu", devices=2, num_nodes=2))


def fit(rank: int, folder: str, port: str) -> None:
    """Refused, stopped by a signal that only the second process gets, and resumed; as one of two tasks of SLURM."""
    os.environ |= {**by_slurm(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    os.environ.pop("GRITVQ_STARTED_BY", None)  # of the tests before
    os.chdir(folder)
    torch.set_num_threads(1)

    def said(*words: str) -> tuple[int, str]:
        parts = [word for part in ("encoder", "decoder") for word in (f"--tokenizer.{part}.width", "8")]
        told = ["fit", *parts, "--tokenizer.quantizer.codebook_size", "16", "--data.path", "pictures"]
        told += [
            "--data.batch_size",
            "2",
            "--plan.accelerator",
            "cpu",
            "--plan.devices",
            "2",
            "--plan.validate_every",
            "0",
        ]
        text = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(text):
            try:
                code = main([*told, *words])
            except SystemExit as stop:
                code = int(stop.code or 0)
        return code, text.getvalue()

    code, text = said("--plan.max_steps", "2", "--out", "taken")
    assert code == 2 and "expected a new or empty folder, got taken" in text, text
    if rank == 1:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        watch_for(Path("run/logs"))
    code, text = said("--plan.max_steps", "100000", "--out", "run")
    assert code == (143, 0)[rank] and ("saved run/checkpoints/last.ckpt" in text) == (rank == 0), (code, text)
    done = torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    code, text = said("--plan.max_steps", str(done + 1), "--out", "run", "--resume", "last")
    assert code == 0, text
    Path(f"{rank}.done").touch()


def watch_for(path: Path) -> None:
    """Raise an alarm once training has begun."""
    import threading
    import time

    def watch() -> None:
        while not path.exists():
            time.sleep(0.1)
        time.sleep(1)
        signal.alarm(1)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.soak
def test_two_tasks_of_slurm(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for number in range(24):
        colors = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(colors).save(tmp_path / "pictures" / f"{number:02}.png")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    mp.spawn(fit, (str(tmp_path), port), nprocs=2)
    assert (tmp_path / "0.done").exists() and (tmp_path / "1.done").exists()
