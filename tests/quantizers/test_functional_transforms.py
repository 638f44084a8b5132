"""Quantizers under ``torch.func``: gradients are autograd's, ``vmap`` is the loop, or it is refused in our words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gritvq import (
    CodeStatistics,
    ConvexAssignment,
    FreeCodebook,
    Quantizer,
    SoftAssignment,
    VectorQuantizer,
    diveq,
    sf_diveq,
    vq_vae_ema,
)
from test_contract import assert_same, contents, data, made
from zoo import DIM, PRESETS, QUANTIZERS, SIZE, SPECIAL_PRESETS

Make = Callable[[int, int], Quantizer]
ALL: dict[str, Any] = {
    **PRESETS,
    **SPECIAL_PRESETS,
    **{name: make for name, make in QUANTIZERS.items() if name.startswith(("codebook-", "surrogate-", "assignment-"))},
}
each = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def twins(make: Make, training: bool) -> tuple[Quantizer, Quantizer, Tensor]:
    """Two equal quantizers and vectors, in float64: relaxed choices amplify rounding."""
    quantizer = made(make).double().train(training)
    return quantizer, copy.deepcopy(quantizer), data(quantizer, 4, 6).double()


def loss_of(quantizer: Any, x: Tensor, *swapped: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    output = torch.func.functional_call(quantizer, swapped[0], (x,)) if swapped else quantizer(x)
    return output.quantized.square().sum() + output.loss


@each
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_gradients_are_those_of_autograd(make: Make, training: bool) -> None:
    plain, quantizer, x = twins(make, training)
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(
        loss_of(plain, leaf := x.clone().requires_grad_()), [leaf, *trained.values()], allow_unused=True
    )
    found, value = torch.func.grad_and_value(lambda x: loss_of(quantizer, x))(x)
    torch.testing.assert_close(found, torch.zeros_like(x) if wanted[0] is None else wanted[0], **CLOSE)
    torch.testing.assert_close(value, loss_of(copy.deepcopy(quantizer), x).detach(), **CLOSE)
    assert_same(contents(plain), contents(quantizer))  # statistics too: the pass counts once
    if trained:
        own = {name: p.detach().clone() for name, p in trained.items()}
        by_name = torch.func.grad(lambda parameters: loss_of(quantizer, x, parameters))(own)
        for gradient, other in zip(by_name.values(), wanted[1:], strict=True):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient) if other is None else other, **CLOSE)


@each
def test_vmap_in_eval_is_the_loop(make: Make) -> None:
    quantizer, _, x = twins(make, False)
    values, indices = torch.func.vmap(lambda rows: quantizer(rows)[:2], randomness="different")(x)
    for own, index, rows in zip(values, indices, x, strict=True):
        output = quantizer(rows)
        assert torch.equal(index, output.indices)
        torch.testing.assert_close(own, output.quantized, **CLOSE)
    gradients = torch.func.vmap(torch.func.grad(lambda rows: loss_of(quantizer, rows)), randomness="different")(x)
    torch.testing.assert_close(gradients, torch.func.grad(lambda x: loss_of(quantizer, x))(x), **CLOSE)


@each
def test_vmap_in_training_is_refused_where_vectors_are_counted(make: Make) -> None:
    _, quantizer, x = twins(make, True)
    counts = any(isinstance(module, CodeStatistics) for module in quantizer.modules())
    before = contents(quantizer)

    def run() -> Any:
        return torch.func.vmap(lambda rows: quantizer(rows)[:2], randomness="different")(x)

    if counts:
        with pytest.raises(ValueError, match=r"expected a plain call .* under torch.vmap; call quantizer.eval\(\)"):
            run()
    else:
        values, indices = run()
        if quantizer.exact == "always":
            assert torch.equal(quantizer.decode(indices), values)
    assert_same(before, contents(quantizer))


@pytest.mark.parametrize("assignment", [SoftAssignment, ConvexAssignment])
def test_second_derivatives_of_soft_choices_are_refused(assignment: Callable[[], Any]) -> None:
    quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), assignment())

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: loss_of(quantizer, x))(x).square().sum()

    with pytest.raises(RuntimeError, match="expected first derivatives only"):
        torch.func.grad(slope)(torch.randn(5, DIM))
    x = torch.randn(5, DIM, requires_grad=True)
    (first,) = torch.autograd.grad(loss_of(quantizer, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="expected first derivatives only"):
        first.square().sum().backward()


@pytest.mark.parametrize("make", [diveq, sf_diveq])
def test_second_derivatives_at_a_code_are_finite(make: Make) -> None:
    quantizer = make(DIM, SIZE)
    x = torch.randn(9, DIM)
    x[0] = quantizer.codebook.codes()[3].detach()
    x.requires_grad_()
    (first,) = torch.autograd.grad(loss_of(quantizer, x), x, create_graph=True)
    first.square().sum().backward()
    for gradient in (x.grad, *(p.grad for p in quantizer.parameters())):
        assert gradient is not None and gradient.isfinite().all() and gradient.any()


def test_updates_go_on_after_a_functional_pass() -> None:
    first, second = vq_vae_ema(DIM, SIZE), vq_vae_ema(DIM, SIZE)
    second.load_state_dict(first.state_dict())
    x = torch.randn(50, DIM)
    torch.func.grad(lambda x: loss_of(first, x))(x)
    loss_of(second, x)
    for quantizer in (first, second):
        quantizer.update_codebook()
    assert_same(contents(first), contents(second))
