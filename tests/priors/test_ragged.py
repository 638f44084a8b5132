"""Samples of any length: where they end in a sequence, what they cost, how they are drawn and read from files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gritvq import vq_vae
from gritvq.priors import AutoregressivePrior, MaskedPrior, Prior, PriorTask, TokenData
from gritvq.tokens import PAD, TokenLayout, TokenRow, write_tokens
from gritvq.training import TrainingPlan, train
from priors_common import LAYOUTS, all_samples, prior_of, same_class

NAMES = ["ragged", "ragged channels", "ragged flat"]


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_has_one_sequence(name: str) -> None:
    layout = LAYOUTS[name]
    every = all_samples(layout)
    sequences = layout.to_sequence(every)
    assert torch.equal(layout.from_sequence(sequences), every)
    assert torch.equal(layout.to_sequence(every[5]), sequences[5])
    assert len(sequences.flatten(1).unique(dim=0)) == len(every)
    end = layout.vocabulary.first_tokens[1] - 1  # behind the codes of channel 0
    full = (every >= 0).flatten(1).all(1)
    assert torch.equal((sequences == end).flatten(1).sum(1), (~full).long())
    assert torch.equal((sequences != PAD).flatten(1).sum(1), (every >= 0).flatten(1).sum(1) + (~full).long())


def test_a_layout_of_a_quantizer_may_be_ragged() -> None:
    layout = TokenLayout.of(vq_vae(4, 8), (5,), ragged=True)
    assert layout.end == 8 and layout.vocabulary.codebook_sizes == (9,) and TokenLayout((8,), (5,)).end is None
    cut = torch.tensor([[3], [1], [-1], [-1], [-1]])
    assert layout.to_sequence(cut)[:, 0].tolist() == [6, 4, 11, PAD, PAD]
    assert torch.equal(layout.from_sequence(torch.tensor([[6], [4], [PAD], [PAD], [PAD]])), cut)  # without the code
    assert layout.allowed(0)[0, 11] and not layout.allowed(0)[0, PAD]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layout: layout.to_sequence(torch.tensor([[0, 0], [2, 0]])), "expected indices below"),  # the end itself
        (lambda layout: layout.to_sequence(torch.tensor([[-1, -1], [0, 0]])), "nothing from there on"),
        (lambda layout: layout.to_sequence(torch.tensor([[0, -1], [-1, -1]])), "all channels up to their end"),
        (lambda layout: layout.from_sequence(torch.tensor([[5, PAD], [3, 6]])), "nothing from there on"),
        (lambda layout: layout.from_sequence(torch.tensor([[5, 6], [PAD, PAD]])), "all channels up to their end"),
        (lambda _: TokenLayout((2,), (2, 2), ragged=True), "expected one axis"),
        (lambda _: TokenLayout((2, 2), (2,), interleaving="delay", ragged=True), "no delay"),
        (lambda _: TokenLayout((2,), (3,), scales=[((1,), (0,)), ((2,), (0,))], ragged=True), "one scale"),
        (lambda layout: MaskedPrior(layout, width=8, depth=1, num_heads=1), "got MaskedPrior"),
        (lambda layout: AutoregressivePrior(layout, width=8, depth=1, num_heads=1, order="random"), "got 'random'"),
    ],
)
def test_what_is_no_ragged_sample(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(LAYOUTS["ragged channels"])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_nothing_follows_an_end(name: str) -> None:
    """What is drawn has the probability that the prior says, and the loss counts what was drawn, ends included."""
    prior = prior_of(AutoregressivePrior, name, num_classes=None)
    samples = prior.sample(200, generator=0)
    assert len((samples >= 0).flatten(1).sum(1).unique()) > 2  # of several lengths
    full = (samples >= 0).flatten(1).all(1)
    assert prior.count(samples) == int((samples >= 0).sum()) + int((~full).sum())
    nats = -prior.log_prob(samples).sum()
    torch.testing.assert_close(prior.loss(samples, None)["nats_per_token"], nats / prior.count(samples))
    alone = [prior.sample(1, generator=[seed]) for seed in range(20)]
    assert torch.equal(prior.sample(20, generator=list(range(20))), torch.cat(alone))


def test_a_saved_prior_knows_whether_its_samples_end(tmp_path: Path) -> None:
    prior = prior_of(AutoregressivePrior, "ragged")
    prior.save_pretrained(tmp_path)
    again = Prior.from_pretrained(tmp_path, layout=LAYOUTS["ragged"])
    every = all_samples(again.layout)
    assert again.layout.ragged and torch.equal(
        again.log_prob(every, same_class(every, 0)), prior.log_prob(every, same_class(every, 0))
    )
    with pytest.raises(ValueError, match=r"code that ends a sample 3 .* got None"):
        Prior.from_pretrained(tmp_path, layout=TokenLayout((4,), (3,)))


def rows_of(*lengths: int) -> list[TokenRow]:
    return [TokenRow(f"{n}", torch.arange(length)[:, None], {"label": n % 2}) for n, length in enumerate(lengths)]


def test_rows_of_any_length_become_samples(tmp_path: Path) -> None:
    """Shorter rows are filled up, longer ones become several samples; there are no empty ones."""
    train, held = (write_tokens(tmp_path / name, rows_of(2, 3, 7, 1)) for name in ("a.npz", "b.parquet"))
    data = TokenData(train, held, batch_size=6, length=3)
    batch = data.batch(0)
    found = sorted(zip(batch.indices[..., 0].tolist(), batch.condition.tolist(), strict=True))  # type: ignore[union-attr]
    expected = [([0, 1, -1], 0), ([0, 1, 2], 1), ([0, 1, 2], 0), ([3, 4, 5], 0), ([6, -1, -1], 0), ([0, -1, -1], 1)]
    assert found == sorted(expected) and data.num_rows == 6 and data.shape == (3, 1)
    (validation,) = data.val_dataloader()
    assert validation.indices[..., 0].tolist() == [own for own, _ in expected]
    with pytest.raises(ValueError, match=r"got an array \(0, 1\)"):
        write_tokens(tmp_path / "c.npz", rows_of(2, 0))
    for number in range(8):  # parts of one row are never on both sides
        parted = TokenData(write_tokens(tmp_path / "c.npz", rows_of(*[5] * 10)), batch_size=18, length=3, seed=number)
        assert parted.num_rows == 18 and sum(len(batch.indices) for batch in parted.val_dataloader()) == 2


def test_files_that_are_no_sequences(tmp_path: Path) -> None:
    grid = TokenRow("grid", torch.zeros(2, 2, 1, dtype=torch.int64))
    other = TokenRow("two", torch.zeros(2, 2, dtype=torch.int64), {"label": 0})
    masked = TokenRow("masked", torch.tensor([[1], [-1]]), {"label": 0})
    for rows, message in (
        ([grid], r"expected samples \(T, Q\) of one number Q of channels, got \(2, 2, 1\) of 'grid'"),
        ([*rows_of(3), other], r"got \(2, 2\) of 'two'"),
        ([masked], "leave out masked samples"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenData(write_tokens(tmp_path / "a.npz", rows), length=3)
    with pytest.raises(ValueError, match="length >= 1"):
        TokenData(write_tokens(tmp_path / "a.npz", rows_of(3)), length=0)


def constant_texts(num: int, seed: int) -> list[Tensor]:
    """Sequences of one code of three, again and again; as long as 1 .. 3 by chance: 2 log 3 nats."""
    draw = torch.Generator().manual_seed(seed)
    codes, lengths = torch.randint(3, (num,), generator=draw), torch.randint(1, 4, (num,), generator=draw)
    return [code.expand(int(length), 1) for code, length in zip(codes, lengths, strict=True)]


def test_a_prior_learns_where_samples_end(tmp_path: Path) -> None:
    files = []
    for seed, num in enumerate((2000, 500)):
        rows = (TokenRow(f"{n}", own) for n, own in enumerate(constant_texts(num, seed)))
        files.append(write_tokens(tmp_path / f"{seed}.npz", rows))
    data = TokenData(*files, length=4)
    layout = TokenLayout((3,), (4,), ragged=True)
    prior = AutoregressivePrior(layout, width=16, depth=1, num_heads=2, dropout=0.0)
    task = PriorTask(prior, lr=1e-2, warmup_steps=10)
    task.check_data(data)
    plan = TrainingPlan(max_steps=120, validate_every=120, accelerator="cpu")
    trainer = train(task, data, plan, folder=tmp_path / "run", progress=False)
    held = torch.cat([batch.indices for batch in data.val_dataloader()])
    nats = -float(prior.eval().log_prob(held).detach().mean())
    assert 2 * math.log(3) - 0.05 < nats < 2 * math.log(3) + 0.1  # uniform codes and ends: 4.1 nats
    measured = float(trainer.callback_metrics["val/nats_per_token"])
    assert measured == pytest.approx(nats * len(held) / prior.count(held), rel=1e-4)
    bits = float(trainer.callback_metrics["val/bits_per_element"])
    assert bits == pytest.approx(measured / math.log(2), rel=1e-5)
    drawn = prior.sample(300, generator=0)[..., 0]
    lengths = (drawn >= 0).sum(1).bincount(minlength=5).tolist()
    assert lengths[0] + lengths[4] < 15 and min(lengths[1:4]) > 60
