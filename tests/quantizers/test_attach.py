"""One line that trains a quantizer as it wants to be trained, and what is said when it is forgotten."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gritvq import (
    AffineCodebook,
    HierarchicalQuantizer,
    LinearSchedule,
    PerturbedQuantizer,
    ProjectedQuantizer,
    Quantizer,
    RadialSurrogate,
    ResidualQuantizer,
    VectorQuantizer,
    grit_vq,
    simvq,
    vq_vae,
    vq_vae_ema,
)
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from test_contract import assert_same, contents, data
from zoo import DIM, SIZE

Make = Callable[[int, int], Quantizer]
MAKERS: dict[str, Make] = {
    "ema": vq_vae_ema,
    "grit": lambda d, k: grit_vq(d, k, revival_interval=2),
    "two rates": lambda d, k: VectorQuantizer(AffineCodebook(d, k, lr_scale=(2.0, 10.0)), surrogate=RadialSurrogate()),
    "residual": lambda d, k: ResidualQuantizer([vq_vae_ema(d, k), vq_vae_ema(d, k)]),
    "shared": lambda d, k: ResidualQuantizer([grit_vq(d, k, revival_interval=2)] * 3),
    "projected": lambda d, k: ProjectedQuantizer(grit_vq(4, k), d),
    "hierarchical": lambda d, k: HierarchicalQuantizer([vq_vae_ema(d, k), vq_vae_ema(d, k)], d),
    "scheduled": lambda d, k: PerturbedQuantizer(vq_vae(d, k), share=LinearSchedule(0.9, 0.1, num_steps=4)),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


class Model(nn.Module):
    def __init__(self, make: Make) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quantizer = make(DIM, SIZE)
        self.encoder = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        output = self.quantizer(self.encoder(x))
        return output.quantized.square().mean() + output.loss


def step(model: Model, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(data(model.quantizer, 40, seed=seed)).backward()
    optimizer.step()


def rates(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, tuple[float, float]]:
    return {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"] if p.requires_grad}


@each
@pytest.mark.parametrize("given", ["all", "encoder", "groups", "named"])
def test_is_what_groups_and_updates_by_hand_are(make: Make, given: str) -> None:
    by_hand, attached = Model(make), Model(make)
    q = by_hand.quantizer
    plain = {"params": list(by_hand.encoder.parameters()), "lr": 1e-3}
    first = torch.optim.AdamW([plain, *q.parameter_groups(1e-3)])
    for group in first.param_groups:  # what is no code has the decay of the whole in the second optimizer
        group["weight_decay"] = 0.0 if group.get("name") == "codebook" else 0.1
    if given == "all":
        second = torch.optim.AdamW(attached.parameters(), lr=1e-3, weight_decay=0.1)
    elif given == "named":
        second = torch.optim.AdamW(attached.named_parameters(), lr=1e-3, weight_decay=0.1)
    elif given == "encoder":
        second = torch.optim.AdamW(attached.encoder.parameters(), lr=1e-3, weight_decay=0.1)
    else:
        own = [{"params": attached.encoder.parameters()}, *attached.quantizer.parameter_groups(1e-3)]
        second = torch.optim.AdamW(own, lr=1e-3, weight_decay=0.1)
    attached.quantizer.attach(second)
    assert list(rates(first).values()) == [rates(second)[p] for p in _same_order(by_hand, attached, first)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(6):
            step(by_hand, first, seed)
            q.update_codebook(first)
            step(attached, second, seed)
    assert_same(contents(by_hand), contents(attached))


def _same_order(left: nn.Module, right: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    twin = dict(zip(left.parameters(), right.parameters(), strict=True))
    return [twin[p] for p in rates(optimizer)]


def counted(quantizer: Quantizer, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(type(quantizer), "update", lambda self, optimizer: calls.append(self))
    return calls


class TestAttachment:
    def test_twice_is_once_and_removing_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = Model(vq_vae_ema)
        calls = counted(model.quantizer, monkeypatch)
        optimizer = torch.optim.AdamW(model.parameters())
        attachment = model.quantizer.attach(optimizer)
        groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
        assert model.quantizer.attach(optimizer) is attachment and optimizer.param_groups == groups
        step(model, optimizer, 0)
        assert len(calls) == 1
        attachment.remove()
        attachment.remove()
        step(model, optimizer, 1)
        assert len(calls) == 1
        model.quantizer.attach(optimizer)
        step(model, optimizer, 2)
        assert len(calls) == 2

    @pytest.mark.parametrize("inner_first", [True, False])
    def test_a_part_of_an_attached_whole_is_updated_once(
        self, inner_first: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = Model(MAKERS["residual"])
        whole, part = model.quantizer, model.quantizer.quantizers[1]  # type: ignore[index,union-attr]
        calls = counted(part, monkeypatch)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(model.parameters())
        for quantizer in (part, whole) if inner_first else (whole, part):
            quantizer.attach(optimizer)  # type: ignore[operator]
        step(model, optimizer, 0)
        assert len(calls) == 2 and calls.count(part) == 1

    @pytest.mark.parametrize("fused", [False, True])
    def test_a_step_that_a_scaler_skips_is_no_step(self, fused: bool) -> None:
        model = Model(vq_vae_ema)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
        model.quantizer.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        statistics: Any = model.quantizer.statistics
        for number, factor in enumerate((1.0, float("inf"), 1.0)):
            before = statistics.step
            optimizer.zero_grad()
            scaler.scale(factor * model(torch.randn(40, DIM))).backward()
            scaler.step(optimizer)
            scaler.update()
            assert statistics.step == before + (number != 1)

    def test_copies_and_files_are_free_of_it(self) -> None:
        model = Model(vq_vae_ema)
        optimizer = torch.optim.AdamW(model.parameters())
        model.quantizer.attach(optimizer)
        step(model, optimizer, 0)
        other: Any = copy.deepcopy(model.quantizer)
        again: Any = pickle.loads(pickle.dumps(model.quantizer))
        before = contents(other)
        step(model, optimizer, 1)
        assert_same(before, contents(other))
        assert_same(before, contents(again))
        for copied in (other, again):
            copied.codebook.write(torch.tensor([1]), torch.ones(1, DIM))
            assert copied.statistics.ema_counts[1] == -1
        assert model.quantizer.statistics.ema_counts[1] >= 0

    def test_a_saved_optimizer_goes_on(self) -> None:
        torch.manual_seed(0)
        model = Model(MAKERS["grit"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model.quantizer.attach(optimizer)
        step(model, optimizer, 0)
        other = Model(MAKERS["grit"])
        again = torch.optim.AdamW(other.parameters(), lr=1e-3)
        other.quantizer.attach(again)
        other.load_state_dict(model.state_dict())
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        other.quantizer.attach(again)
        for seed in (1, 2):
            step(model, optimizer, seed)
            step(other, again, seed)
        assert_same(contents(model), contents(other))
        assert list(rates(again).values()) == list(rates(optimizer).values())

    def test_a_schedule_moves_all_groups_and_comes_afterwards(self) -> None:
        model = Model(grit_vq)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        with pytest.raises(ValueError, match="expected an optimizer without a learning rate schedule"):
            model.quantizer.attach(optimizer)
        assert len(optimizer.param_groups) == 1
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model.quantizer.attach(optimizer)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        model.quantizer.attach(optimizer)  # nothing to change any more
        assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([5e-4, 5e-3])

    def test_rates_by_themselves_given_or_made_by_hand(self) -> None:
        quantizer = grit_vq(DIM, SIZE)
        alone = torch.optim.AdamW(quantizer.parameters(), lr=1e-3)
        quantizer.attach(alone)
        assert set(rates(alone).values()) == {(1e-2, 0.0)} and len(alone.param_groups) == 1
        told = torch.optim.SGD(quantizer.parameters(), lr=7.0)
        quantizer.attach(told, lr=1e-3)
        assert {rate for rate, _ in rates(told).values()} == {1e-2}
        encoder = nn.Linear(2, 2)
        right = [{"params": encoder.parameters(), "lr": 1e-4}, {"params": quantizer.parameters(), "lr": 1e-3}]
        by_hand = torch.optim.Adam(right)
        quantizer.attach(by_hand)
        assert [group["lr"] for group in by_hand.param_groups] == [1e-4, 1e-3]

    def test_a_whole_tokenizer(self) -> None:
        tokenizer = ImageTokenizer(ImageEncoder(4, width=8), grit_vq(4, 16), ImageDecoder(4, width=8))
        optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-3)
        tokenizer.quantizer.attach(optimizer)
        found = rates(optimizer)
        codes = set(tokenizer.quantizer.parameters())
        assert all(found[p] == ((1e-2, 0.0) if p in codes else (1e-3, 1e-2)) for p in tokenizer.parameters())


def told(act: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(w.message) for w in caught if "attach" in str(w.message)]


class TestForgotten:
    @each
    def test_is_said_early_and_once(self, make: Make) -> None:
        quantizer = make(DIM, SIZE)

        def passes(number: int) -> list[str]:
            return told(lambda: [quantizer(data(quantizer, 4)) for _ in range(number)])

        assert passes(7) == []  # shared levels count once per pass
        (text,) = passes(1)
        assert "Call quantizer.attach(optimizer)" in text
        assert passes(300 if make is vq_vae_ema else 20) == []  # beyond the second threshold, 256

    def test_says_what(self) -> None:
        cases: list[tuple[Quantizer, bool, bool]] = [
            (vq_vae_ema(DIM, SIZE), True, False),
            (grit_vq(DIM, SIZE), False, True),
            (grit_vq(DIM, SIZE, revival_interval=2), True, True),
        ]
        for quantizer, still, slow in cases:
            (text,) = told(lambda quantizer=quantizer: [quantizer(torch.randn(4, DIM)) for _ in range(8)])  # type: ignore[misc]
            assert ("do not advance" in text) == still and ("10 times the encoder's learning rate" in text) == slow

    def test_nothing_before_the_first_step_of_many_passes(self) -> None:
        quantizer, encoder = vq_vae_ema(DIM, SIZE), torch.nn.Linear(DIM, DIM)
        optimizer = torch.optim.AdamW(encoder.parameters())
        quantizer.attach(optimizer)

        def accumulate(number: int) -> list[str]:
            return told(
                lambda: [quantizer(encoder(torch.randn(4, DIM))).quantized.sum().backward() for _ in range(number)]
            )

        assert accumulate(64) == []
        optimizer.step()
        assert quantizer.statistics is not None and quantizer.statistics.step == 1
        assert accumulate(255) == []
        assert len(accumulate(1)) == 1  # by now the steps must have ended

    def test_nothing_where_nothing_was_forgotten(self) -> None:
        first, plain = grit_vq(DIM, SIZE), vq_vae(DIM, SIZE)
        second, third = vq_vae_ema(DIM, SIZE), vq_vae_ema(DIM, SIZE)
        optimizer = torch.optim.AdamW(first.parameter_groups(1e-3))

        def act() -> None:
            for number in range(20):
                first(torch.randn(4, DIM)).quantized.sum().backward()
                optimizer.step()
                second(torch.randn(4, DIM))
                second.update_codebook()
                third(torch.randn(4, DIM))
                plain(torch.randn(4, DIM))
                if number % 5 == 4:  # gradients of several batches
                    third.update_codebook()
            for _ in range(40):  # and of more of them, later
                third(torch.randn(4, DIM))
            vq_vae_ema(DIM, SIZE).eval()(torch.randn(4, DIM))

        assert told(act) == []

    @pytest.mark.parametrize("make", [grit_vq, MAKERS["two rates"]])
    def test_an_optimizer_that_ignores_the_scale_is_told_once(self, make: Make) -> None:
        model = Model(make)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def act() -> None:
            for seed in range(12):
                step(model, optimizer, seed)
                model.quantizer.update_codebook(optimizer)

        (text,) = told(act)
        asked = "10 times" if make is grit_vq else "2 times or 10 times"
        assert f"at the encoder's learning rate, although they need {asked} that (lr_scale)" in text

    @pytest.mark.parametrize("lr", [1e-3, 1e-4])  # 10 times the smaller one is the optimizer's default
    def test_an_optimizer_with_the_right_groups_is_not(self, lr: float) -> None:
        for make in (grit_vq, simvq):
            model = Model(make)
            own = model.quantizer.parameter_groups(lr)
            optimizer = torch.optim.AdamW([{"params": model.encoder.parameters(), "lr": lr}, *own])
            model.quantizer._rates_are_known = False
            assert told(lambda optimizer=optimizer, q=model.quantizer: q.update_codebook(optimizer)) == []  # type: ignore[misc]


def test_an_optimizer_that_accelerate_wraps() -> None:
    accelerate = pytest.importorskip("accelerate")
    found = []
    for late in (False, True):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        quantizer = vq_vae_ema(DIM, SIZE)
        model = nn.Sequential(nn.Linear(DIM, DIM), quantizer)
        optimizer = torch.optim.AdamW(model[0].parameters(), lr=1e-3)
        if not late:
            quantizer.attach(optimizer)
        model, optimizer = accelerator.prepare(model, optimizer)
        if late:
            quantizer.attach(optimizer)
        for x in torch.randn(4, 20, DIM):
            with accelerator.accumulate(model):
                accelerator.backward(model(x).quantized.square().mean())
                optimizer.step()
                optimizer.zero_grad()
        assert quantizer.statistics is not None and quantizer.statistics.step == 2
        found.append(contents(model))
    assert_same(*found)
