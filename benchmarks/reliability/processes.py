"""Training with several processes: how much faster two are than one, and that they find what one would find.

Every process is pinned to a core of its own and has one thread. Speed: the same batch for each process, so two of them
see twice the pictures per step; medians of alternating repeats, in steps after a few to warm up. Equality: the same
joined batches, once by one process and once by 2 and 3 with a share each, with accumulation, a codebook that follows
the data and a discriminator.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.reliability.figures import Figure, write_figures
from lightning import Callback, LightningModule, Trainer

from gritvq import vq_vae_ema
from gritvq.images import (
    AdversarialLoss,
    ImageData,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    LeCam,
    PatchDiscriminator,
    TokenizerTask,
)
from gritvq.training import TrainingPlan, train
from gritvq.training.run import seed_everything, silence

COMMAND = "python -m benchmarks.reliability.processes"
BATCH, WARM = 64, 3  # pictures per process and step; steps before the clock starts
JOINED, STEPS = 12, 30  # of the comparison


class Watch(Callback):
    """Seconds, and seconds of processor time, of the steps after the first ones; the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.began = self.ended = (0.0, 0.0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note time and loss."""
        self.losses.append(float(trainer.callback_metrics["train/loss"]))  # with several processes of the last tenth
        self.ended = time.perf_counter(), time.process_time()
        if len(self.losses) == WARM:
            self.began = self.ended


def speed(world: int, steps: int) -> tuple[float, float]:
    """Pictures per second of all processes, and per second of this process's processor time."""
    seed_everything(0)
    tokenizer = ImageTokenizer(
        ImageEncoder(16),
        vq_vae_ema(16, 512, revival_interval=20),
        ImageDecoder(16),  # of the default width
    )
    watch = Watch()
    plan = TrainingPlan(WARM + steps, validate_every=0, accelerator="cpu", devices=world)
    data = ImageData("photographs", size=32, batch_size=BATCH)
    train(TokenizerTask(tokenizer), data, plan, callbacks=[watch], progress=False)
    clock, processor = (end - start for start, end in zip(watch.began, watch.ended, strict=True))
    return world * BATCH * steps / clock, world * BATCH * steps / processor


def learned(world: int) -> tuple[list[float], list[list[float]], list[list[int]]]:
    """Losses, codes, and the tokens of four pictures after a run on joined batches of a fixed size."""
    seed_everything(dist.get_rank() if dist.is_initialized() else 0)
    tokenizer = ImageTokenizer(
        ImageEncoder(8, width=16, num_blocks=1), vq_vae_ema(8, 64, revival_interval=5), ImageDecoder(8, width=16)
    )
    critic = AdversarialLoss(PatchDiscriminator(width=8, num_layers=1), start=5, regularizers=[LeCam(0.1)])
    watch = Watch()
    plan = TrainingPlan(STEPS, accumulate=2, validate_every=0, accelerator="cpu", devices=world)
    data = ImageData("photographs", size=32, batch_size=JOINED // world)
    train(TokenizerTask(tokenizer, adversarial=critic), data, plan, callbacks=[watch], progress=False)
    quantizer: Any = tokenizer.quantizer
    images = next(iter(data.val_dataloader()))[:4]
    return watch.losses, quantizer.codebook.codes().tolist(), tokenizer.encode(images).flatten(1).tolist()


def _serve(rank: int, jobs: Any, done: Any) -> None:
    os.sched_setaffinity(0, {rank % (os.cpu_count() or 1)})
    torch.set_num_threads(1)
    silence()
    while True:
        job, world, port, arguments = jobs.get()
        for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
            os.environ.pop(name, None)
        if world > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
            os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        found = job(world, *arguments)
        if dist.is_initialized():
            dist.destroy_process_group()
        done.put((rank, found))


class Processes:
    """Three processes that wait for jobs."""

    def __init__(self) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["lightning", "gritvq.images", "gritvq.training"])
        self.jobs, self.done = [context.Queue() for _ in range(3)], context.Queue()
        for rank, own in enumerate(self.jobs):
            context.Process(target=_serve, args=(rank, own, self.done), daemon=True).start()

    def run(self, job: Callable[..., Any], world: int, *arguments: Any) -> Any:
        """What the first of ``world`` processes finds."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for own in self.jobs[:world]:
            own.put((job, world, port, arguments))
        return dict(self.done.get(timeout=300) for _ in range(world))[0]


def speed_figures(processes: Processes, repeats: int, steps: int) -> list[Figure]:
    """Two processes against one, in turn."""
    rates: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(repeats):
        for world, found in rates.items():
            found.append(processes.run(speed, world, steps))
            print(f"{world} process{'es' * (world > 1)}: {found[-1][0]:.0f} pictures/s", file=sys.stderr, flush=True)
    (one, own), (two, both) = (
        [statistics.median(each) for each in zip(*found, strict=True)] for found in rates.values()
    )
    fastest = max(rates[2])[0] / max(rates[1])[0]
    subject = f"training, {BATCH} pictures per process and step"
    return [
        Figure(subject, "one process on one core", f"{one:.0f} pictures/s"),
        Figure(subject, "two processes on a core each", f"{two:.0f} pictures/s"),
        Figure(subject, f"two over one, medians of {repeats}", f"{two / one:.2f} times", ">= 1.6 times"),
        Figure(subject, f"two over one, fastest of {repeats}", f"{fastest:.2f} times"),
        Figure(subject, "two over one, per second of a process's processor time", f"{both / own:.2f} times"),
    ]


def equality_figures(processes: Processes) -> list[Figure]:
    """2 and 3 processes against one on the joined batches."""
    losses, codes, tokens = processes.run(learned, 1)
    figures = []
    for world in (2, 3):
        other_losses, other_codes, other_tokens = processes.run(learned, world)
        subject = f"{world} processes against one, {STEPS} steps on the joined batches"
        pairs = list(zip(losses, other_losses, strict=True))
        loss = max(abs(a - b) / abs(a) for a, b in [pairs[1], *pairs[19::20]])  # a step is two batches
        code = (torch.tensor(codes) - torch.tensor(other_codes)).abs().max() / torch.tensor(codes).abs().max()
        same = (torch.tensor(tokens) == torch.tensor(other_tokens)).double().mean()
        figures += [
            Figure(subject, "largest relative difference of the losses that are logged", f"{loss:.1e}", "<= 1e-04"),
            Figure(subject, "largest difference of a code, over the largest", f"{float(code):.1e}", "<= 1e-04"),
            Figure(subject, "equal tokens of 4 pictures", f"{100 * float(same):.1f} %", "100 %"),
        ]
    return figures


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    asked = parser.parse_args()
    processes = Processes()
    figures = [*equality_figures(processes), *speed_figures(processes, asked.repeats, asked.steps)]
    for figure in figures:
        print(*figure, sep=" | ")
    if not asked.dry:
        print(write_figures("processes", figures, COMMAND))


if __name__ == "__main__":
    main()
