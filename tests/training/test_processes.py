"""Runs of 2 and 3 processes equal that of one process on the joined batch: losses, codes, usage, metrics, files."""

from __future__ import annotations

import csv
import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset

from gritvq import Quantizer, Tokenizer, grit_vq, vq_vae, vq_vae_ema
from gritvq.distributed import process_number
from gritvq.images import (
    R1,
    AdversarialLoss,
    ImageData,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    LeCam,
    PatchDiscriminator,
    PerceptualLoss,
    TokenizerTask,
)
from gritvq.saving import is_extra_state
from gritvq.training import DataModule, OptimizerSettings, RunFolder, Task, TrainingPlan, train
from gritvq.training.interruption import Interrupted
from gritvq.training.parallel import DataParallel
from gritvq.training.progress import StepProgress
from gritvq.training.run import parts_to_shard, seed_everything, silence
from processes import together

DIM, SIZE, JOINED = 4, 16, 12
STEPS = 10


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures to train with and 7 to validate with, of which 2 and 3 processes get unequal shares; 16 x 16."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(47):
        corners = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        place = folder / ("train" if number < 40 else "val")
        place.mkdir(exist_ok=True)
        Image.fromarray(corners).resize((16, 16), Image.Resampling.BICUBIC).save(place / f"{number:02}.png")
    return folder


class Uneven(IterableDataset[Tensor]):
    """Shares of the joined batches that differ from step to step; the last process has none in every third batch."""

    def __init__(self, whole: Any, first: Callable[[], int]) -> None:
        self.whole, self.first = whole, first

    def __iter__(self) -> Iterator[Tensor]:
        rank, world = process_number()
        for step in itertools.count(self.first()):
            cuts = [0, *(5 + number + step % 2 for number in range(world - 1)), JOINED]
            if step % 3 == 0 and world > 1:
                cuts[-2] = JOINED
            yield self.whole.batch(step)[cuts[rank] : cuts[rank + 1]]


class UnevenData(ImageData):
    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[Tensor]:
        return DataLoader(Uneven(super().train_dataloader().dataset, first_step), batch_size=None)


MODELS: dict[str, Callable[[], Quantizer]] = {
    "moving averages": lambda: vq_vae_ema(DIM, SIZE, revival_interval=3),
    "shared map": lambda: grit_vq(DIM, SIZE, revival_interval=3),
    "discriminator": lambda: vq_vae(DIM, SIZE),
}


def task_for(name: str) -> TokenizerTask:
    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    tokenizer = ImageTokenizer(ImageEncoder(DIM, **shape), MODELS[name](), ImageDecoder(DIM, **shape))
    more: dict[str, Any] = {}
    if name == "discriminator":
        critic = PatchDiscriminator(width=8, num_layers=1)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # a frozen network is the same everywhere
            frozen = nn.Conv2d(3, 8, 3)
        regularizers = [LeCam(0.1), R1(0.1, interval=2)]
        more = {
            "adversarial": AdversarialLoss(critic, kind="non_saturating", start=2, regularizers=regularizers),
            "perceptual": PerceptualLoss(frozen),
        }
    return TokenizerTask(tokenizer, lr=3e-3, warmup_steps=2, **more)


class Held(Callback):
    """Weights that this process holds between steps."""

    held = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        weights = list(pl_module.parameters())
        self.held = sum((each.to_local() if isinstance(each, DTensor) else each).numel() for each in weights)


def fitted(
    name: str,
    uneven: bool,
    pictures: Path,
    folder: Path,
    resume: Path | None = None,
    world: int = 1,
    strategy: Any = "ddp",
) -> tuple[dict[str, Tensor], int]:
    """The state after a run of this many processes, and how often this one saved the model.

    Every process begins with other weights, which must not matter.
    """
    silence()
    seed_everything(int(os.environ["RANK"]) if world > 1 else 0)
    task, saved = task_for(name), []
    finish = task.finish
    task.finish = lambda *about: saved.append(finish(*about))  # type: ignore[method-assign]
    plan = TrainingPlan(
        STEPS,
        accumulate=2,
        validate_every=5,
        checkpoint_every=5,
        accelerator="cpu",
        devices=world,
        gradient_clip=0.5,
        strategy=strategy,
    )
    size = JOINED if uneven else JOINED // world
    data = (UnevenData if uneven else ImageData)(str(pictures), batch_size=size, seed=1)
    trainer = train(task, data, plan, folder=folder, resume=resume, callbacks=[Held()], progress=False)
    if strategy == "fsdp":
        least = sum(weight.numel() for weight in task.tokenizer.quantizer.parameters())
        whole = sum(weight.numel() for weight in task.parameters())
        held = next(each.held for each in trainer.callbacks if isinstance(each, Held))
        assert (
            least < held <= least + 1.1 * (whole - least) / world + 300
        )  # some tensors have fewer rows than processes
    return {key: value for key, value in task.state_dict().items() if not is_extra_state(key)}, len(saved)


def logged(folder: Path) -> dict[str, float]:
    """Losses and metrics by name and step."""
    with (folder / "logs" / "run-0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        f"{name} {row['step']}": float(value) for row in rows for name, value in row.items() if value and "/" in name
    }


CASES = [
    pytest.param(name, uneven, world, marks=[] if quick else [pytest.mark.soak])
    for name, uneven, world in itertools.product(MODELS, (False, True), (2, 3))
    for quick in [(name, uneven, world) in {("moving averages", True, 3), ("discriminator", True, 2)}]
]


@pytest.mark.parametrize(("name", "uneven", "world"), CASES)
def test_a_run_of_several_processes_is_that_of_one(
    name: str, uneven: bool, world: int, pictures: Path, tmp_path: Path
) -> None:
    """With accumulation, clipping, initialization, revival; some shares of batches and validations are empty."""
    one, more, again = tmp_path / "one", tmp_path / "more", tmp_path / "again"
    expected, _ = fitted(name, uneven, pictures, one)
    found = together(world, fitted, tmp_path / "out", name, uneven, pictures, more, None, world)
    assert [saved for _, saved in found] == [1, *[0] * (world - 1)]
    for state, _ in found:
        assert all(torch.equal(value, found[0][0][key]) for key, value in state.items())
    for key, value in expected.items():
        torch.testing.assert_close(found[0][0][key], value, rtol=1e-4, atol=1e-4, msg=key)
    losses = logged(one)
    assert {"train/loss 9", "train/usage 9", "val/usage 4", "val/psnr 9", "val/tokens 9"} <= losses.keys()
    assert sorted(set(logged(more)) ^ set(losses)) == []
    assert logged(more) == pytest.approx(losses, rel=1e-5, abs=1e-6)
    images = torch.rand(2, 3, 16, 16)
    left, right = (Tokenizer.from_pretrained(folder / "tokenizer").encode(images) for folder in (one, more))
    assert torch.equal(left, right)
    checkpoint = more / "checkpoints" / "step-5.ckpt"
    resumed = together(world, fitted, tmp_path / "out", name, uneven, pictures, again, checkpoint, world)
    assert all(torch.equal(value, found[0][0][key]) for key, value in resumed[-1][0].items())


@pytest.mark.parametrize(
    ("name", "world"), [("moving averages", 2), pytest.param("shared map", 3, marks=pytest.mark.soak)]
)
def test_a_sharded_run_is_that_of_one_process(name: str, world: int, pictures: Path, tmp_path: Path) -> None:
    """And its checkpoints are those of an unsharded run."""
    one, more, again = tmp_path / "one", tmp_path / "more", tmp_path / "again"
    expected, _ = fitted(name, True, pictures, one)
    found = together(world, fitted, tmp_path / "out", name, True, pictures, more, None, world, "fsdp")
    for key, value in expected.items():
        torch.testing.assert_close(found[-1][0][key], value, rtol=1e-4, atol=1e-4, msg=key)
    assert logged(more) == pytest.approx(logged(one), rel=1e-5, abs=1e-6)
    left, right = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (one, more))
    assert left["state_dict"].keys() == right["state_dict"].keys()
    checkpoint = more / "checkpoints" / "step-5.ckpt"
    resumed = together(world, fitted, tmp_path / "out", name, True, pictures, again, checkpoint, world, "fsdp")
    assert all(torch.equal(value, found[0][0][key]) for key, value in resumed[-1][0].items())
    resumed_alone, _ = fitted(name, True, pictures, tmp_path / "alone", checkpoint)
    for key, value in expected.items():
        torch.testing.assert_close(resumed_alone[key], value, rtol=1e-4, atol=1e-4, msg=key)
    images = torch.rand(2, 3, 16, 16)
    tokens = [Tokenizer.from_pretrained(folder / "tokenizer").encode(images) for folder in (one, more)]
    assert torch.equal(*tokens)


class Means(Task):
    """Validates numbers by their mean."""

    def __init__(self) -> None:
        super().__init__(OptimizerSettings())
        self.model = nn.Linear(1, 1)
        self.register_buffer("changing", torch.zeros(1))  # DDP's forward sends it

    def losses(self, batch: Tensor) -> list[Tensor]:
        return [self.model(batch).square().mean()]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log_validation({"mean": batch.mean()}, len(batch))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        return []

    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None: ...


class Numbers:
    """Endless training; two batches to validate with, of different sizes."""

    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[Tensor]:
        return DataLoader([torch.ones(2, 1)] * 100, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Tensor]:
        batches = [torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[7.0]])]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def validated(folder: Path) -> tuple[float, Tensor, float]:
    seed_everything(0)  # an earlier job may have left other seeds
    plan = TrainingPlan(2, validate_every=1, accelerator="cpu", devices=3)
    trainer = train(Means(), Numbers(), plan, folder=folder, progress=False)
    drawn = torch.rand(1)
    bare: dict[str, Any] = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False)
    own = Trainer(accelerator="cpu", devices=3, strategy=DataParallel(), callbacks=[StepProgress()], **bare)
    (found,) = own.validate(Means(), datamodule=DataModule(Numbers()), verbose=False)
    return float(trainer.callback_metrics["val/mean"]), drawn, found["val/mean"]


def test_a_process_without_validation_waits_for_nobody(tmp_path: Path) -> None:
    """And every process draws other numbers, or noise would be the same in all shares of a batch.

    A trainer of one's own finds the same mean.
    """
    found = together(3, validated, tmp_path / "out", tmp_path / "run")
    assert [mean for mean, _, _ in found] == [own for _, _, own in found] == [4.0] * 3
    assert len({float(drawn) for _, drawn, _ in found}) == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_of_some_steps_is_joined_whenever_it_occurs(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of every step only where they are written, and where they begin; a step may log in two calls."""
    monkeypatch.setattr("gritvq.training.task.process_number", lambda: (0, 2))
    task, joined = Means(), dict[str, list[int]]()
    monkeypatch.setattr(
        task, "log_dict", lambda found: [joined.setdefault(name, []).append(task.step) for name in found]
    )
    for step in range(40):
        task.step = step
        for _ in range(accumulate):
            names = ["loss", *(["late"] if step >= 5 else []), *(["r1"] if step % 16 == 0 else [])]
            task.log_losses(dict.fromkeys(names, torch.ones(())))
            task.log_losses({"of another optimizer": torch.ones(())})
    every = [0, 9, 19, 29, 39]
    steps = {"loss": every, "of another optimizer": every, "late": [5, 9, 19, 29, 39], "r1": [0, 16, 32]}
    assert joined == {f"train/{name}": [step for step in own for _ in range(accumulate)] for name, own in steps.items()}


class Ends(Callback):
    """Ends the third step of the second process, by a signal or an error."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGTERM)


def ended(pictures: Path, folder: Path) -> None:
    """A run that ends by a signal, after which weights are whole, and one that ends by an error, which is written."""
    silence()
    plan = TrainingPlan(6, validate_every=0, accelerator="cpu", devices=2, strategy="fsdp")
    data, task = ImageData(str(pictures), batch_size=4), task_for("moving averages")
    with pytest.raises(Interrupted), warnings.catch_warnings(action="error", category=UserWarning):
        train(task, data, plan, folder=folder, callbacks=[Ends(None)], progress=False)
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["step"] == 3
    assert all(torch.equal(saved["state_dict"][name], weight) for name, weight in task.named_parameters())
    try:
        train(task_for("moving averages"), data, plan, callbacks=[Ends(OSError("no space left"))], progress=False)
    except Exception as error:
        (folder / os.environ["RANK"]).write_text(f"{type(error).__name__}: {error}")
        raise


def test_how_a_sharded_run_ends(pictures: Path, tmp_path: Path) -> None:
    """A signal to one process stops both after the same step; an error of one is what that one says."""
    with pytest.raises(AssertionError, match="OSError: no space left"):
        together(2, ended, tmp_path / "out", pictures, tmp_path / "run")
    assert (tmp_path / "run" / "1").read_text() == "OSError: no space left"
    assert "by peer" in (tmp_path / "run" / "0").read_text()


def test_what_cannot_be_sharded() -> None:
    for settings in ({"devices": 1}, {"devices": 2, "precision": "16-mixed"}, {"devices": 2, "compile": True}):
        with pytest.raises(
            ValueError, match="expected several devices, no 16-mixed and no compile for strategy 'fsdp'"
        ):
            TrainingPlan(strategy="fsdp", **settings)
    with pytest.raises(ValueError, match="expected strategy 'ddp' or 'fsdp', got 'deepspeed'; choose one"):
        TrainingPlan(strategy="deepspeed")  # type: ignore[arg-type]
    plan = TrainingPlan(strategy="fsdp", devices=2)
    with pytest.raises(ValueError, match="expected strategy 'ddp' for a Means, which has no parts to shard"):
        parts_to_shard(Means(), plan)
    with pytest.raises(ValueError, match="expected adaptive=False in AdversarialLoss with strategy 'fsdp'"):
        parts_to_shard(task_for("discriminator"), plan)
