"""The product of parts: every combination works, or is refused when it is put together; none fails later."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from gritvq import Assignment, FreeCodebook, Surrogate, VectorQuantizer
from gritvq.quantizers.functional import straight_through
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


CELLS = list(itertools.product(CODEBOOKS, ASSIGNMENTS))
OTHERS = list(itertools.product((None, *SURROGATES), (None, *RULES)))


def tried(codebook: str, assignment: str, others: Iterable[tuple[str | None, str | None]]) -> int:
    """How many of the combinations with these work; the others are refused."""
    worked = 0
    for surrogate, rule in others:
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
    return worked


def partners(codebook: str, assignment: str) -> Iterable[tuple[str | None, str | None]]:
    """Surrogates and rules such that over all cells every pair of two parts that can work does."""
    plain = (codebook == "free") + (assignment == "nearest-euclidean")
    if plain == 2:
        return OTHERS
    return [pair for pair in OTHERS if None in pair] if plain else [(None, None)]


@pytest.mark.parametrize(("codebook", "assignment"), CELLS)
def test_every_pair_works_or_is_refused_at_once(codebook: str, assignment: str) -> None:
    assert tried(codebook, assignment, partners(codebook, assignment)) > 0


@pytest.mark.soak
@pytest.mark.parametrize(("codebook", "assignment"), CELLS)
def test_every_combination_works_or_is_refused_at_once(codebook: str, assignment: str) -> None:
    assert tried(codebook, assignment, OTHERS) > 0


class Shifted(Surrogate):
    """Straight-through to a value that is not the code, in training or everywhere."""

    def __init__(self, everywhere: bool, exact: Any) -> None:
        super().__init__()
        self.everywhere, self.exact = everywhere, exact

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        return straight_through(x, q + 1e-3 if self.training or self.everywhere else q)


class Last(Assignment):
    """Always the last code, or in training the one before."""

    exact = "always"

    def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        indices = torch.full((len(x),), len(codes) - 1)
        return indices, codes[indices - 1 if self.training else indices]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("exact", ["always", "eval", "never", "sometimes"])
def test_what_is_declared_exact_is_compared_at_construction(everywhere: bool, exact: str) -> None:
    def make() -> VectorQuantizer:
        return VectorQuantizer(FreeCodebook(DIM, SIZE), surrogate=Shifted(everywhere, exact))

    if exact == "never" or (exact == "eval" and not everywhere):
        torch.manual_seed(0)
        quantizer, drawn = make(), torch.rand(())
        torch.manual_seed(0)
        assert torch.equal(FreeCodebook(DIM, SIZE).codes(), quantizer.codebook.codes())
        assert torch.equal(torch.rand(()), drawn) and quantizer.training
        return
    told = "'sometimes' in Shifted" if exact == "sometimes" else "got one 0.001 away"
    with pytest.raises(ValueError, match=f"expected .*{told}"):
        make()


def test_what_an_assignment_declares_exact_is_compared_too() -> None:
    with pytest.raises(ValueError, match="expected the value of Last to be bitwise the code"):
        VectorQuantizer(FreeCodebook(DIM, SIZE), Last())
    right = Last()
    right.exact = "eval"
    assert VectorQuantizer(FreeCodebook(DIM, SIZE), right).exact == "eval"
    with torch.device("meta"):
        assert VectorQuantizer(FreeCodebook(DIM, SIZE)).exact == "always"
