"""Perturbation: what changes, how often, what does not, and what gradient flows."""

from __future__ import annotations

import pytest
import torch

from gritvq import (
    LFQ,
    FreeCodebook,
    LinearSchedule,
    PerturbedQuantizer,
    ProductQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
    grit_vq,
    vq_vae,
)
from gritvq.quantizers.functional import nearest_codes

DIM, SIZE = 4, 32


def test_values_are_neighbors_and_nothing_else_changes() -> None:
    inner = vq_vae(DIM, SIZE)
    quantizer, x = PerturbedQuantizer(inner, share=1.0, num_neighbors=3), torch.randn(50, 20, DIM, requires_grad=True)
    plain, output = inner(x), quantizer(x)
    assert torch.equal(plain.indices, output.indices) and plain.losses.keys() == output.losses.keys()
    for name in plain.losses:
        assert torch.equal(plain.losses[name], output.losses[name])
    codes = inner.codebook.codes()
    near = codes[nearest_codes(plain.quantized.view(-1, DIM), codes, 3)].view(50, 20, 3, DIM)
    assert torch.equal(near[:, :, 0], plain.quantized)
    hit = (output.quantized.unsqueeze(2) == near).all(-1)
    assert bool((hit.sum(-1) == 1).all())
    assert bool(((hit.float().mean((0, 1)) - 1 / 3).abs() < 0.06).all())
    g = torch.randn_like(x)
    output.quantized.backward(g)
    assert x.grad is not None and torch.equal(x.grad, g)


@pytest.mark.parametrize(("share", "probability"), [(0.25, 1.0), (1.0, 0.5), (0.5, 0.5), (0.0, 1.0)])
def test_shares_of_samples_and_tokens(share: float, probability: float) -> None:
    inner = vq_vae(DIM, SIZE)
    quantizer = PerturbedQuantizer(inner, share=share, probability=probability, num_neighbors=SIZE)
    x = torch.randn(1000, 40, DIM)
    changed = (quantizer(x).quantized != inner(x).quantized).any(-1)
    samples = changed.any(1)
    assert abs(float(samples.float().mean()) - share) < 0.05
    if share:
        expected = probability * (1 - 1 / SIZE)
        assert abs(float(changed[samples].float().mean()) - expected) < 0.03


def test_a_schedule_lets_it_fade() -> None:
    quantizer = PerturbedQuantizer(vq_vae(DIM, SIZE), share=LinearSchedule(1.0, 0.0, num_steps=3))
    x = torch.randn(200, DIM)
    shares = []
    for _ in range(4):
        output = quantizer(x)
        shares.append(float((quantizer.decode(output.indices) != output.quantized).any(-1).float().mean()))
        quantizer.update_codebook()
    assert shares[0] > 0.9 and 0.4 < shares[1] < 0.9 and 0.1 < shares[2] < 0.55 and shares[3] == 0


@pytest.mark.parametrize("make", [vq_vae, grit_vq])
def test_one_neighbor_is_the_plain_quantizer(make: type[Quantizer]) -> None:
    inner = make(DIM, SIZE)
    quantizer, x = PerturbedQuantizer(inner, share=1.0, num_neighbors=1), torch.randn(100, DIM)
    assert torch.equal(quantizer(x).quantized, inner(x).quantized)
    assert torch.equal(quantizer.eval()(x).quantized, inner(x).quantized)
    assert type(quantizer.fold()) is VectorQuantizer


def test_under_a_radial_surrogate_the_code_that_is_seen_learns() -> None:
    inner = grit_vq(DIM, SIZE)
    quantizer = PerturbedQuantizer(inner, share=1.0)
    x = torch.randn(1, DIM)
    codes = inner.codebook.codes()
    inner.codebook.codes = lambda: codes  # type: ignore[method-assign]
    codes.retain_grad()
    torch.manual_seed(0)
    output = quantizer(x)
    seen = int((codes == output.quantized).all(1).nonzero())
    assert seen != int(output.indices)
    output.quantized.sum().backward()
    assert codes.grad is not None and codes.grad.any(1).nonzero().flatten().tolist() == [seen]


def test_in_structures() -> None:
    for quantizer in (
        ProductQuantizer([PerturbedQuantizer(vq_vae(2, 8), share=1.0), PerturbedQuantizer(vq_vae(2, 8), share=1.0)]),
        ResidualQuantizer([PerturbedQuantizer(vq_vae(DIM, 8)), vq_vae(DIM, 8)]),
    ):
        x = torch.randn(30, DIM)
        assert quantizer.exact == "eval"
        output = quantizer.eval()(x)
        assert torch.equal(quantizer.decode(output.indices), output.quantized)
        assert quantizer.fold().exact == "always"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a quantizer with one table of codes to search, got LFQ"):
        PerturbedQuantizer(LFQ(4))
    with pytest.raises(ValueError, match="expected a quantizer with one table of codes to search, got Residual"):
        PerturbedQuantizer(ResidualQuantizer([vq_vae(4, 8)] * 2))
    for name, value in (("share", 1.5), ("probability", -0.1)):
        with pytest.raises(ValueError, match=rf"expected {name} in \[0, 1\]"):
            PerturbedQuantizer(vq_vae(4, 8), **{name: value})
    with pytest.raises(ValueError, match="expected num_neighbors >= 1, got 0"):
        PerturbedQuantizer(VectorQuantizer(FreeCodebook(4, 8)), num_neighbors=0)
