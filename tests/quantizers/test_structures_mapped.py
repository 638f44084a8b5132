"""Maps without parameters in front of a quantizer: values, gradients, fitted codes, places inside of structures."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gritvq import (
    FSQ,
    BoundedQuantizer,
    CommitmentLoss,
    EMAUpdate,
    FreeCodebook,
    NearestAssignment,
    NormalizedQuantizer,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    ScaledQuantizer,
    VectorQuantizer,
)
from gritvq.quantizers.functional import to_unit_length

DIM, SIZE = 4, 16


def cosine(*learning: EMAUpdate | CommitmentLoss) -> VectorQuantizer:
    return VectorQuantizer(
        FreeCodebook(DIM, SIZE, normalize=True), NearestAssignment("cosine"), learning=list(learning)
    )


def test_values_are_those_of_the_formula() -> None:
    inner, x = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[]), torch.randn(200, DIM)
    scale = [0.5, 1.0, 2.0, 3.0]
    scaled = ScaledQuantizer(inner, scale)(x).quantized
    assert torch.equal(scaled, inner(x / torch.tensor(scale)).quantized * torch.tensor(scale))
    assert torch.equal(ScaledQuantizer(inner, 2.0)(x).quantized, 2 * inner(x / 2).quantized)
    assert torch.equal(BoundedQuantizer(inner, 0.7).encode(x), inner.encode(0.7 * (x / 0.7).tanh()))
    unit = x / x.norm(dim=1, keepdim=True)
    assert torch.equal(NormalizedQuantizer(inner).encode(7 * x), inner.encode(unit))


def test_the_gradient_passes_through_the_map() -> None:
    inner = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[])
    weight = torch.randn(DIM)
    for quantizer, map_of in (
        (ScaledQuantizer(inner, [0.5, 1.0, 2.0, 3.0]), lambda x: x),  # in and out again
        (BoundedQuantizer(inner, 0.7), lambda x: 0.7 * (x / 0.7).tanh()),
        (NormalizedQuantizer(inner), lambda x: x / x.norm(dim=1, keepdim=True)),
    ):
        x = torch.randn(9, DIM, requires_grad=True)
        (quantizer(x).quantized * weight).sum().backward()
        found, x.grad = x.grad, None
        (map_of(x) * weight).sum().backward()
        assert found is not None and torch.allclose(found, x.grad, atol=1e-6)


def test_moving_averages_and_losses_see_unit_vectors() -> None:
    torch.manual_seed(0)
    one, two = NormalizedQuantizer(cosine(EMAUpdate(0.5), CommitmentLoss())), cosine(EMAUpdate(0.5), CommitmentLoss())
    two.load_state_dict(one.quantizer.state_dict())
    x = 5 * torch.rand(300, 1) * torch.randn(300, DIM)
    first, second = one(x), two(x / x.norm(dim=1, keepdim=True))
    assert torch.allclose(first.loss, second.loss)
    one.update_codebook()
    two.update_codebook()
    assert torch.allclose(one.quantizer.codebook.codes(), two.codebook.codes(), atol=1e-6)


@pytest.mark.parametrize(
    ("around", "map_of"),
    [
        (lambda q: ScaledQuantizer(q, 3.0), lambda x: x / 3),
        (lambda q: BoundedQuantizer(q, 1.0), torch.tanh),
        (NormalizedQuantizer, to_unit_length),
    ],
    ids=["scaled", "bounded", "normalized"],
)
def test_codes_are_fitted_to_mapped_data(
    around: Callable[[Quantizer], Quantizer], map_of: Callable[[Tensor], Tensor]
) -> None:
    quantizer, plain = around(VectorQuantizer(FreeCodebook(DIM, SIZE))), VectorQuantizer(FreeCodebook(DIM, SIZE))
    x = 4 * torch.randn(500, DIM)
    quantizer.initialize_codebook(x)
    plain.initialize_codebook(map_of(x))
    assert torch.equal(next(quantizer.parameters()), plain.codebook.weight)
    folded = quantizer.fold()
    assert type(folded) is type(quantizer) and torch.equal(folded.encode(x), quantizer.encode(x))


def test_levels_and_parts_may_have_maps() -> None:
    """A residual FSQ: each level is as much finer as it has values."""
    levels = torch.tensor([5.0, 4.0])
    grids = [ScaledQuantizer(FSQ([5, 4], symmetric=True, bound="clamp"), (levels**-i).tolist()) for i in range(4)]
    quantizer = ResidualQuantizer(grids).eval()
    x = torch.rand(2000, 2) * 2 - 1
    errors = [float((quantizer.decode(quantizer.encode(x)[:, :n]) - x).abs().max()) for n in range(1, 5)]
    assert errors[0] < 1 / 3 + 1e-6 and all(later < 0.5 * earlier for earlier, later in itertools.pairwise(errors))
    product = ProductQuantizer([NormalizedQuantizer(cosine()), grids[0]])
    assert product(torch.randn(3, DIM + 2)).indices.shape == (3, 2)
    with pytest.raises(ValueError, match="put the whole ResidualQuantizer into a ProjectedQuantizer"):
        ResidualQuantizer([ScaledQuantizer(ProjectedQuantizer(FSQ([3, 3]), DIM), 2.0)])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda q: ScaledQuantizer(q, [1.0, 2.0]), "expected one scale, or 4, one per component, got 2"),
        (lambda q: ScaledQuantizer(q, 0.0), "expected scale > 0, got 0.0"),
        (lambda q: BoundedQuantizer(q, [1.0, 1.0, -1.0, 1.0]), "expected limit > 0, got -1.0"),
    ],
)
def test_wrong_numbers_are_said(make: type[ScaledQuantizer], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make(VectorQuantizer(FreeCodebook(DIM, SIZE)))
