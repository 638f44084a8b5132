"""The product of parts: every combination works, or is refused when it is put together; none fails later."""

from __future__ import annotations

import itertools

import pytest
import torch

from gritvq import VectorQuantizer
from zoo import ASSIGNMENTS, CODEBOOKS, RULES, SURROGATES

DIM, SIZE = 6, 8


def check(quantizer: VectorQuantizer, where: str) -> None:
    """One training step, then what eval promises."""
    x = torch.randn(12, DIM, requires_grad=True)
    output = quantizer(x)
    assert bool(torch.isfinite(output.quantized).all()) and bool(torch.isfinite(output.loss)), where
    total = output.quantized.square().sum() + output.loss
    if total.requires_grad:
        total.backward()
    quantizer.update_codebook()
    for parameter in quantizer.parameters():
        assert bool(torch.isfinite(parameter).all()), where
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), where
    quantizer.eval()
    output = quantizer(x)
    assert output.losses == {} and torch.equal(quantizer.encode(x), output.indices), where
    if quantizer.exact != "never":
        assert torch.equal(quantizer.decode(output.indices), output.quantized), where
    folded = quantizer.fold()
    assert torch.equal(folded.encode(x), output.indices), where


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_every_combination_works_or_is_refused_at_once(codebook: str, assignment: str) -> None:
    worked = 0
    for surrogate, rule in itertools.product((None, *SURROGATES), (None, *RULES)):
        where = f"{codebook}, {assignment}, {surrogate}, {rule}"
        torch.manual_seed(0)
        try:
            quantizer = VectorQuantizer(
                CODEBOOKS[codebook](DIM, SIZE),
                ASSIGNMENTS[assignment](),
                None if surrogate is None else SURROGATES[surrogate](),
                None if rule is None else [RULES[rule](DIM, SIZE)],
            )
        except ValueError as refusal:
            assert str(refusal).startswith("expected") and ", got " in str(refusal), where
            continue
        check(quantizer, where)
        worked += 1
    assert worked > 0
