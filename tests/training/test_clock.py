"""The task's clock: steps, accumulation, clipping, schedules, checkpoints and resuming, with one optimizer and two.

The reference is a plain loop of PyTorch's own optimizers.
"""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from gritvq.training import DataModule, OptimizerSettings, RunFolder, Task, TrainingPlan, train
from gritvq.training.run import silence

PLAN = TrainingPlan(
    max_steps=11, accumulate=3, gradient_clip=0.05, validate_every=4, checkpoint_every=4, accelerator="cpu"
)


def batch_of(number: int) -> Tensor:
    return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(number))


class Batches(IterableDataset[Tensor]):
    def __init__(self, first: Callable[[], int]) -> None:
        self.first = first

    def __iter__(self) -> Iterator[Tensor]:
        several = dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        return (batch_of(number)[rank::world] for number in itertools.count(self.first()))


class Data:
    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[Tensor]:
        return DataLoader(Batches(first_step), batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([batch_of(-1)], batch_size=None)  # type: ignore[arg-type]


class Copy(Task):
    """A model learns to copy its input; with a critic, that tells copies from inputs, also to please it."""

    def __init__(self, *, critic: bool, pleases: float = 0.5) -> None:
        super().__init__(OptimizerSettings())
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Linear(3, 3).double()
            self.critic = nn.Linear(3, 1).double() if critic else None
        self.num_optimizers, self.pleases = 1 + critic, pleases
        self.validated: list[int] = []

    def losses(self, batch: Tensor) -> Iterator[Tensor]:
        made = self.model(batch)
        error = (made - batch).square().mean()
        if self.critic is None:
            yield error
            return
        yield error - self.pleases * self.critic(made).tanh().mean()
        yield self.critic(made.detach()).tanh().mean() - self.critic(batch).tanh().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.step)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def configure_optimizers(self) -> Any:
        found = makers(self.model, self.critic)
        return [optimizer for optimizer, _ in found], [schedule for _, schedule in found]

    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        return []

    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None:
        assert training["steps"] == self.step


def makers(model: nn.Module, critic: nn.Module | None) -> list[tuple[torch.optim.Optimizer, LambdaLR]]:
    first = torch.optim.AdamW(model.parameters(), lr=0.1)
    found = [(first, LambdaLR(first, lambda step: 1 / (1 + step)))]
    if critic is not None:
        second = torch.optim.SGD(critic.parameters(), lr=0.3, momentum=0.9)
        found.append((second, LambdaLR(second, lambda step: 0.9**step)))
    return found


def by_hand(task: Copy, plan: TrainingPlan = PLAN) -> list[Tensor]:
    """The weights after the plan: gradients of a whole step at once."""
    model, critic = copy.deepcopy(task.model), copy.deepcopy(task.critic)
    parts = [part for part in (model, critic) if part is not None]
    pairs, numbers = makers(model, critic), itertools.count()
    for _ in range(plan.max_steps):
        batches = [batch_of(number) for number in itertools.islice(numbers, plan.accumulate)]
        made = [model(batch) for batch in batches]
        errors = [(one - batch).square().mean() for one, batch in zip(made, batches, strict=True)]
        losses = [sum(errors)]
        if critic is not None:
            pleased = [critic(one).tanh().mean() for one in made]
            losses[0] = losses[0] - task.pleases * sum(pleased)
            told = [
                critic(one.detach()).tanh().mean() - critic(batch).tanh().mean()
                for one, batch in zip(made, batches, strict=True)
            ]
            losses.append(sum(told))
        for part, loss in zip(parts, losses, strict=True):
            gradients = torch.autograd.grad(loss / plan.accumulate, list(part.parameters()), retain_graph=True)
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            shrink = min(1.0, plan.gradient_clip / (float(norm) + 1e-6)) if plan.gradient_clip else 1.0
            for parameter, gradient in zip(part.parameters(), gradients, strict=True):
                parameter.grad = gradient * shrink
        for optimizer, schedule in pairs:
            optimizer.step()
            schedule.step()
    return [parameter.detach() for part in parts for parameter in part.parameters()]


def weights(task: Task) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in task.parameters()]


@pytest.fixture(autouse=True)
def quiet() -> None:
    silence()


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_a_run_is_the_plain_loop(critic: bool, clip: float, tmp_path: Path) -> None:
    task = Copy(critic=critic)
    plan = TrainingPlan(**{**vars(PLAN), "gradient_clip": clip})
    expected = by_hand(task, plan)
    train(task, Data(), plan, folder=tmp_path, progress=False)
    torch.testing.assert_close(weights(task), expected, rtol=1e-9, atol=1e-12)
    assert task.step == 11 and task.validated == [4, 8]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-4.ckpt", "step-8.ckpt", "last.ckpt"}
    assert torch.load(tmp_path / "checkpoints" / "step-8.ckpt", weights_only=True)["step"] == 8


@pytest.mark.parametrize("critic", [False, True])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(critic: bool, tmp_path: Path) -> None:
    whole, first, second = (Copy(critic=critic) for _ in range(3))
    train(whole, Data(), PLAN, progress=False)
    train(first, Data(), TrainingPlan(**{**vars(PLAN), "max_steps": 5}), folder=tmp_path / "a", progress=False)
    trainer = train(
        second, Data(), PLAN, folder=tmp_path / "b", resume=tmp_path / "a" / "checkpoints" / "last.ckpt", progress=False
    )
    assert first.step == 5 and second.step == 11 and second.validated == [8]
    assert all(map(torch.equal, weights(whole), weights(second)))
    assert [schedule.scheduler.last_epoch for schedule in trainer.lr_scheduler_configs] == [11] * (1 + critic)


def test_a_second_optimizer_changes_nothing_of_the_first() -> None:
    alone, beside = Copy(critic=False), Copy(critic=True, pleases=0.0)
    for task in (alone, beside):
        train(task, Data(), PLAN, progress=False)
    assert all(map(torch.equal, alone.model.parameters(), beside.model.parameters()))


def test_a_scale_that_changes_at_every_step_changes_no_weight() -> None:
    """In 16-bit runs gradients are scaled; in float64 autocast does nothing, and powers of two round nothing."""
    task, scaler = Copy(critic=True), torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1)
    expected = by_hand(task)
    task.accumulate, task.gradient_clip = PLAN.accumulate, PLAN.gradient_clip
    trainer = Trainer(
        max_steps=PLAN.max_steps,
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(task, datamodule=DataModule(Data()))
    torch.testing.assert_close(weights(task), expected, rtol=1e-9, atol=1e-12)
    assert scaler.get_scale() == 2.0 ** (1 + PLAN.max_steps)


@pytest.mark.parametrize("scaled", [False, True])
def test_an_optimizer_whose_loss_needs_no_parameter_does_not_step(scaled: bool) -> None:
    """No weight decay, no step counted; a scaler, which refuses an optimizer without gradients, is not asked."""

    class Late(Copy):
        def losses(self, batch: Tensor) -> Iterator[Tensor]:
            found = super().losses(batch)
            yield next(found)
            yield next(found) if self.step >= 2 else torch.zeros((), requires_grad=True)

        def configure_optimizers(self) -> Any:
            assert self.critic is not None
            optimizers, schedules = super().configure_optimizers()
            return [optimizers[0], torch.optim.AdamW(self.critic.parameters(), weight_decay=0.5)], schedules[:1]

    for steps in (2, 3):
        task = Late(critic=True, pleases=0.0)
        assert task.critic is not None
        before = [weight.clone() for weight in task.critic.parameters()]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            plugins=[MixedPrecision("16-mixed", "cpu", scaler)] if scaled else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(task, datamodule=DataModule(Data()))
        assert all(map(torch.equal, before, task.critic.parameters())) == (steps == 2)
        assert (trainer.optimizers[1].state_dict()["state"] == {}) == (steps == 2) and task.step == steps


def test_a_checkpoint_without_a_clock_still_resumes(tmp_path: Path) -> None:
    """Earlier versions left stepping to Lightning, which counted the steps in another place."""
    whole, first, second = (Copy(critic=False) for _ in range(3))
    train(whole, Data(), PLAN, progress=False)
    train(first, Data(), TrainingPlan(**{**vars(PLAN), "max_steps": 5}), folder=tmp_path, progress=False)
    old = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    del old["step"]
    loops = old["loops"]["fit_loop"]
    counted = loops["epoch_loop.manual_optimization.optim_step_progress"]
    loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"] = copy.deepcopy(counted)
    for counts in counted.values():
        counts.update(ready=0, completed=0)
    torch.save(old, tmp_path / "old.ckpt")
    train(second, Data(), PLAN, resume=tmp_path / "old.ckpt", progress=False)
    assert second.step == 11 and all(map(torch.equal, weights(whole), weights(second)))


def test_a_second_run_of_a_task_counts_anew() -> None:
    task = Copy(critic=False)
    for _ in range(2):
        train(task, Data(), TrainingPlan(max_steps=3, accelerator="cpu"), progress=False)
        assert task.step == 3


def test_fewer_losses_than_optimizers() -> None:
    class Forgetful(Copy):
        def losses(self, batch: Tensor) -> Iterator[Tensor]:
            yield self.model(batch).square().mean()

    with pytest.raises(ValueError, match="expected 2 losses, one per optimizer, got 1"):
        train(Forgetful(critic=True), Data(), PLAN, progress=False)


def test_nothing_to_compile() -> None:
    with pytest.raises(ValueError, match="expected compile false for a Copy, which has no parts to compile"):
        train(Copy(critic=False), Data(), replace(PLAN, compile=True), progress=False)


def test_more_losses_than_optimizers_and_what_follows_the_last() -> None:
    done = []

    class Generous(Copy):
        def losses(self, batch: Tensor) -> Iterator[Tensor]:
            yield self.model(batch).square().mean()
            done.append(next(self.model.parameters()).grad is not None)
            if len(done) == 2:
                yield self.model(batch).square().mean()

    with pytest.raises(ValueError, match="expected 1 losses, one per optimizer, got more"):
        train(Generous(critic=False), Data(), PLAN, progress=False)
    assert done == [True, True]


@pytest.mark.soak
def test_two_processes_are_one_with_the_joined_batch(tmp_path: Path) -> None:
    subprocess.run([sys.executable, __file__, str(tmp_path / "weights.pt")], check=True, timeout=300)
    expected = by_hand(Copy(critic=True))
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), expected, rtol=1e-9, atol=1e-12)


if __name__ == "__main__":  # one of the two processes
    own = Copy(critic=True)
    if train(own, Data(), TrainingPlan(**{**vars(PLAN), "devices": 2}), progress=False).is_global_zero:
        torch.save(weights(own), sys.argv[1])
