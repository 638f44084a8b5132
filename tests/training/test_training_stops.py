"""Runs that are stopped, and what goes on from them; checkpoints that are not what they seem."""

from __future__ import annotations

import csv
import dataclasses
import os
import pickle
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from gritvq import vq_vae_ema
from gritvq.images import ImageData, ImageDecoder, ImageEncoder, ImageTokenizer, TokenizerTask
from gritvq.training import RunFolder, TrainingPlan, train
from gritvq.training.interruption import Interrupted
from gritvq.training.run import seed_everything


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        colors = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(colors).save(folder / f"{number:02}.png")
    return str(folder)


class Told(TokenizerTask):
    """Gets signals during the training step or validation after so many steps; -1 is before the first step."""

    def __init__(self, signals: Sequence[signal.Signals] = (), step: int = 0, *, validating: bool = False) -> None:
        seed_everything(0)
        shape: dict[str, Any] = dict(width=8, num_blocks=1)
        super().__init__(ImageTokenizer(ImageEncoder(4, **shape), vq_vae_ema(4, 16), ImageDecoder(4, **shape)), lr=3e-3)
        self.signals, self.at, self.validating = list(signals), step, validating

    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        early: list[Callback] = [Early(self)] if self.at < 0 else []
        return [*early, *super().run_callbacks(run)]

    def tell(self) -> None:
        while self.signals:
            os.kill(os.getpid(), self.signals.pop(0))

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == self.at and not self.validating:
            self.tell()
        return super().training_step(images, batch_idx)

    def validation_step(self, images: Tensor, batch_idx: int) -> None:
        if self.global_step == self.at and self.validating:
            self.tell()
        super().validation_step(images, batch_idx)


class Early(Callback):
    def __init__(self, task: Told) -> None:
        self.told = task

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.told.tell()


def go(
    task: Told,
    pictures: str,
    folder: Path,
    resume: Path | None = None,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> None:
    plan = TrainingPlan(
        **{"max_steps": 13, "validate_every": 4, "checkpoint_every": 50, "accelerator": "cpu", **changes}
    )
    data = ImageData(pictures, batch_size=4)
    train(task, data, plan, folder=folder, resume=resume, progress=False, callbacks=callbacks)


def logged(folder: Path) -> dict[tuple[int, str], str]:
    """Every value that was logged, by step and name."""
    found = {}
    for path in sorted(folder.glob("logs/run-*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                found |= {(int(row["step"]), name): value for name, value in row.items() if value and name != "epoch"}
    return found


@pytest.fixture(scope="module")
def straight(pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    go(Told(), pictures, folder)
    return folder


@pytest.mark.parametrize(
    ("number", "step", "validating", "done"),
    [
        (signal.SIGINT, 5, False, 6),
        (signal.SIGTERM, 3, False, 4),  # a validation is due
        (signal.SIGTERM, 8, True, 8),
        (signal.SIGINT, 12, False, 13),  # the last step
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    number: signal.Signals, step: int, validating: bool, done: int, pictures: str, straight: Path, tmp_path: Path
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=f"last.ckpt after step {done}; continue with --resume last") as stop:
        go(Told([number], step, validating=validating), pictures, tmp_path)
    assert stop.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == done
    go(Told(), pictures, tmp_path, resume=last)
    assert logged(tmp_path) == logged(straight)
    name = "tokenizer/model.safetensors"
    assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()


def test_a_step_of_several_batches_is_finished_first(pictures: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    go(Told(), pictures, one, accumulate=3, max_steps=6)
    with pytest.raises(Interrupted, match="after step 4;"):
        go(Told([signal.SIGTERM], 3), pictures, two, accumulate=3, max_steps=6)
    go(Told(), pictures, two, resume=two / "checkpoints" / "last.ckpt", accumulate=3, max_steps=6)
    assert logged(one) == logged(two)


@pytest.mark.parametrize(
    ("signals", "step", "said"),
    [
        ([signal.SIGTERM], -1, "nothing to save yet"),
        ([signal.SIGINT, signal.SIGINT], 5, "stopped after step 5, which is not saved"),
    ],
)
def test_a_stop_at_once_saves_nothing(
    signals: list[signal.Signals], step: int, said: str, pictures: str, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted, match=said):
        go(Told(signals, step), pictures, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*")) and not (tmp_path / "tokenizer").exists()


def test_a_checkpoint_runs_no_code(pictures: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    task = Told()
    trap = tmp_path / "trap.ckpt"
    torch.save({"state_dict": task.state_dict(), "global_step": 1, "more": Trap()}, trap)
    plain = tmp_path / "plain.ckpt"
    plain.write_bytes(pickle.dumps(Trap(), protocol=2))
    for path, said in ((trap, "a checkpoint of tensors and plain data"), (plain, "a readable checkpoint")):
        with pytest.raises(ValueError, match=f"expected {said}"):
            go(task, pictures, tmp_path / "run", resume=path)
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "run").exists()


def test_rates_of_a_checkpoint_are_kept_or_refused(pictures: str, straight: Path, tmp_path: Path) -> None:
    task = Told()
    task.optimizer_settings = dataclasses.replace(task.optimizer_settings, lr=1e-5)
    with pytest.raises(ValueError, match=r"expected lr 0.003 as at the start of the resumed run, got 1e-05"):
        go(task, pictures, tmp_path / "run", resume=straight / "checkpoints" / "last.ckpt", max_steps=20)
    with pytest.raises(ValueError, match=r"expected max_steps >= 13, the steps that .* got 12; increase it"):
        go(Told(), pictures, tmp_path / "run", resume=straight / "checkpoints" / "last.ckpt", max_steps=12)
    assert not (tmp_path / "run").exists()


class Died(BaseException):
    """Nobody catches this, so what is on the disk is what a killed process leaves."""


class Dies(Callback):
    """Ends the run once the checkpoint of a step is written, or in the validation after a step."""

    def __init__(self, step: int, *, validating: bool) -> None:
        self.at, self.validating = step, validating

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validating and trainer.global_step == self.at:
            raise Died

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        write = trainer.strategy.checkpoint_io.save_checkpoint

        def then_die(checkpoint: dict[str, Any], path: str, **more: Any) -> None:
            write(checkpoint, path, **more)
            if not self.validating and checkpoint["step"] == self.at and str(path).endswith("last.ckpt"):
                raise Died

        trainer.strategy.checkpoint_io.save_checkpoint = then_die  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("step", "validating", "goes_on_from", "accumulate"),
    [
        (8, True, 4, 1),  # the checkpoint of step 8 waits for the validation
        (8, False, 8, 2),
        (10, False, 10, 2),  # whose metrics are logged before the checkpoint is written
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    step: int, validating: bool, goes_on_from: int, accumulate: int, pictures: str, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"checkpoint_every": 2 if step == 10 else 4, "accumulate": accumulate, "max_steps": 11}
    go(Told(), pictures, tmp_path / "straight", **more)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    with pytest.raises(Died):
        go(Told(), pictures, tmp_path / "killed", callbacks=[Dies(step, validating=validating)], **more)
    assert torch.load(last, weights_only=True)["step"] == goes_on_from
    go(Told(), pictures, tmp_path / "killed", resume=last, **more)
    assert logged(tmp_path / "killed") == logged(tmp_path / "straight")
    assert {step for step, name in logged(tmp_path / "killed") if name == "train/psnr"} == {9}
    name = "tokenizer/model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
