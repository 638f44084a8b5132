"""Losses of texts, tokens and items: shares of several processes are together that of the joined batch."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from gritvq.distributed import joined_mean, process_number
from gritvq.items import DepthDecoder, TokenDecoder
from gritvq.priors import AutoregressivePrior, MaskedPrior
from gritvq.text import Standardize, TextBatch, TextTask, trace
from gritvq.training.data import own_share
from priors_common import prior_of
from processes import together
from text_common import SIZES, lively, random_batch

pytest.importorskip("transformers")
ROWS = 5


def own_rows() -> slice:
    """2 rows and 3; 2, 1 and 2; all of one process."""
    rank, world = process_number()
    cuts = {1: (0, ROWS), 2: (0, 2, ROWS), 3: (0, 2, 3, ROWS)}[world]
    return slice(cuts[rank], cuts[rank + 1])


def text() -> tuple[nn.Module, Tensor]:
    task = TextTask(lively(trace(20, **SIZES)), free_bits=0.05)
    batch = random_batch(20, [[3, 2, 4], [5], [2, 2, 2], [1], [6, 2]])
    terms, _ = task.terms(TextBatch(batch.tokens[own_rows()], batch.segments[own_rows()]))
    return task.model.latents.posterior_head, terms["kl"]  # type: ignore[union-attr,return-value]


def prior() -> tuple[nn.Module, Tensor]:
    made = prior_of(AutoregressivePrior, "ragged", num_classes=None)
    samples = torch.tensor([[[0], [1], [1]], [[1], [-1], [-1]], [[0], [0], [-1]], [[1], [1], [1]], [[-1], [-1], [-1]]])
    return made, made.loss(samples[own_rows()], None)["nats_per_token"]


def masked_prior() -> tuple[nn.Module, Tensor]:
    made = prior_of(MaskedPrior, "grid", num_classes=None)
    drawn, rand = torch.rand(ROWS, 4, generator=torch.Generator().manual_seed(1)), torch.rand
    torch.rand = lambda *size, **_: drawn[own_rows()][:, 0] if len(size) == 1 else drawn[own_rows()]  # type: ignore[assignment]
    try:
        return made, made.loss(torch.tensor([0, 1, 2, 0] * ROWS).view(ROWS, 2, 2, 1)[own_rows()], None)[
            "nats_per_masked_token"
        ]
    finally:
        torch.rand = rand


def items(kind: type) -> Callable[[], tuple[nn.Module, Tensor]]:
    def job() -> tuple[nn.Module, Tensor]:
        made = kind((4, 5, 3), 16, num_layers=1, num_heads=2, hidden_dim=16, dropout=0.0)
        codes = torch.randint(0, 3, (ROWS, 6, 3), generator=torch.Generator().manual_seed(1))
        return made, made.loss(codes[own_rows()], torch.tensor([6, 2, 3, 2, 5])[own_rows()])

    return job


def standardized(*, whitened: bool) -> Callable[[], tuple[nn.Module, Tensor]]:
    def job() -> tuple[nn.Module, Tensor]:
        made, x = nn.Linear(3, 2), torch.randn(ROWS, 4, 3, generator=torch.Generator().manual_seed(1))
        standardize, present = Standardize(2, whitened=whitened), x[..., 0] > -0.5
        found = standardize(made(x[own_rows()]), present[own_rows()])
        total = (found.exp().sum(-1) * present[own_rows()]).sum()
        running = {name: value for name, value in standardize.named_buffers() if value.is_floating_point()}
        for name, value in running.items():  # in the comparison as if they were gradients
            made.register_parameter(name, nn.Parameter(value.clone()))
            made.get_parameter(name).grad = value.clone()
        return made, joined_mean(total, present.sum())

    return job


JOBS = {
    "text": text,
    "standardized": standardized(whitened=False),
    "whitened": standardized(whitened=True),
    "prior": prior,
    "masked prior": masked_prior,
    "items": items(TokenDecoder),
    "items by depth": items(DepthDecoder),
}


def shares() -> dict[str, dict[str, Tensor]]:
    """Losses and gradients."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    found = {}
    for name, job in JOBS.items():
        torch.manual_seed(0)
        module, loss = job()
        loss.backward()
        gradients = {key: weight.grad for key, weight in module.named_parameters() if weight.grad is not None}
        found[name] = {"loss": loss.detach(), **gradients}
    return found


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_shares_are_together_the_loss_of_the_joined_batch(world: int, tmp_path: Path) -> None:
    expected, found = shares(), together(world, shares, tmp_path)
    for name, values in expected.items():
        assert len(values) > 1
        for key, value in values.items():
            mean = torch.stack([own[name][key] for own in found]).mean(0)
            torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")


def loaders() -> list[DataLoader[Tensor]]:
    numbers: Any = range(7)
    batches: Any = [torch.tensor([3, 4]), torch.tensor([5])]
    return [
        DataLoader(numbers, batch_size=2),
        DataLoader(batches, batch_size=None),
        DataLoader(numbers, batch_sampler=BatchSampler(SequentialSampler(numbers), 4, False)),
    ]


def shared_batches() -> list[list[list[int]]]:
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    return [[batch.tolist() for batch in own_share(loader)] for loader in loaders()]


def test_shares_of_a_validation_repeat_nothing(tmp_path: Path) -> None:
    assert together(3, shared_batches, tmp_path) == [
        [[[0, 3], [6]], [[3, 4]], [[0, 1, 2, 3]]],
        [[[1, 4]], [[5]], [[4, 5, 6]]],
        [[[2, 5]], [], []],
    ]


def test_lightning_does_not_divide_shares_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    divides = trainer._data_connector._requires_distributed_sampler
    assert [divides(loader) for loader in loaders()] == [True] * 3
    monkeypatch.setattr("gritvq.training.data.process_number", lambda: (1, 2))
    assert [divides(own_share(loader)) for loader in loaders()] == [False] * 3
