"""Processes that train together, for tests: started once, they wait for jobs."""

from __future__ import annotations

import atexit
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["together"]

_LEAST = 3  # processes that are started; starting them takes longer than any job
_started: list[tuple[list[Any], Any]] = []


def _serve(rank: int, jobs: Any, done: Any) -> None:
    torch.set_num_threads(1)
    while True:
        job, arguments, world, folder, port = jobs.get()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            torch.manual_seed(0)
            torch.save(job(*arguments), f"{folder}/{rank}.pt")
            if dist.is_initialized():
                dist.barrier()  # the first to end must not leave while others still connect
        except BaseException:
            done.put(traceback.format_exc())
            return
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        done.put(None)


def _start() -> tuple[list[Any], Any]:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["lightning", "gritvq.images", "gritvq.training", "processes"])
    jobs, done = [context.Queue() for _ in range(_LEAST)], context.Queue()
    for rank, own in enumerate(jobs):
        process = context.Process(target=_serve, args=(rank, own, done), daemon=True)
        process.start()
        atexit.register(process.kill)  # one that hangs ignores SIGTERM
    return jobs, done


def together(world: int, job: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What each of 2 or 3 processes returns from a job, as ``torchrun`` would start it; an error of one is raised."""
    jobs, done = _started.pop() if _started else _start()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    for own in jobs[:world]:
        own.put((job, arguments, world, str(folder), port))
    errors = [error for error in (done.get(timeout=120) for _ in range(world)) if error is not None]
    assert not errors, min(errors, key=lambda error: "by peer" in error)
    _started.append((jobs, done))  # those that failed are not used again
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
