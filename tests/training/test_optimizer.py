"""Rates against PyTorch's own schedulers, and the plain loop against one written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR

from gritvq.training import OptimizerSettings
from gritvq.training.optimizer import take_steps

WARM_UP, STEPS = 5, 40


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_rates_are_pytorchs(schedule: str) -> None:
    ours, own = OptimizerSettings(lr=0.3, warmup_steps=WARM_UP, schedule=schedule), nn.Linear(2, 2)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(own.parameters(), lr=0.3)
    after = {"cosine": CosineAnnealingLR(optimizer, STEPS - WARM_UP), "constant": ConstantLR(optimizer, 1.0)}[schedule]
    warm = LinearLR(optimizer, 1 / WARM_UP, total_iters=WARM_UP - 1)
    expected = SequentialLR(optimizer, [warm, after], milestones=[WARM_UP])
    for step in range(STEPS):
        assert 0.3 * ours.rate(step, STEPS) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        expected.step()


def test_a_cosine_from_the_start_is_multiplied_with_the_warm_up() -> None:
    ours = OptimizerSettings(warmup_steps=WARM_UP, schedule="cosine_from_start")
    for step in range(STEPS + 1):
        expected = min(1.0, (step + 1) / WARM_UP) * math.cos(math.pi * step / STEPS / 2) ** 2
        assert ours.rate(step, STEPS) == pytest.approx(expected)


def test_the_loop_is_the_plain_one() -> None:
    torch.manual_seed(0)
    ours, x = nn.Linear(3, 3), torch.randn(12, 4, 3)
    theirs = copy.deepcopy(ours)
    settings = OptimizerSettings(lr=0.1, warmup_steps=3, betas=(0.8, 0.9), weight_decay=0.1)
    optimizer, schedule = settings.optimizer([{"params": list(ours.parameters())}], len(x))

    def losses() -> Iterator[Tensor]:
        for rows in x:
            yield (ours(rows) - rows).square().mean()

    values = list(take_steps(losses(), optimizer, schedule, gradient_clip=0.5))
    second = torch.optim.AdamW(theirs.parameters(), betas=(0.8, 0.9), weight_decay=0.1)
    for step, rows in enumerate(x):
        loss = (theirs(rows) - rows).square().mean()
        assert values[step] == pytest.approx(float(loss.detach()))
        second.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in theirs.parameters() if p.grad is not None]).norm()
        for parameter in theirs.parameters():
            assert parameter.grad is not None
            parameter.grad *= min(1.0, 0.5 / float(norm))
        second.param_groups[0]["lr"] = 0.1 * settings.rate(step, len(x))
        second.step()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_bad_settings_and_losses() -> None:
    with pytest.raises(ValueError, match="expected lr > 0, warmup_steps >= 0 and weight_decay >= 0, got 0"):
        OptimizerSettings(lr=0)
    with pytest.raises(ValueError, match=r"expected schedule 'cosine' or .*, got 'linear'"):
        OptimizerSettings(schedule="linear")  # type: ignore[arg-type]
    x = nn.Parameter(torch.ones(()))
    optimizer, schedule = OptimizerSettings(lr=0.5).optimizer([{"params": [x]}], 9)
    with pytest.raises(ValueError, match=r"finite loss, got nan at step 2; lower lr=0\.5"):
        list(take_steps((x * (math.nan if step == 2 else 1) for step in range(4)), optimizer, schedule))
