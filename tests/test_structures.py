"""Structures against their parts and textbook loops; the encoder's gradient; prefixes, dropout, sharing."""

from __future__ import annotations

import itertools

import pytest
import torch

from gritvq import (
    FSQ,
    EMAUpdate,
    FreeCodebook,
    ProductQuantizer,
    ProjectedQuantizer,
    RadialSurrogate,
    ResidualQuantizer,
    VectorQuantizer,
    grit_vq,
    rq,
    vq_vae,
)
from zoo import DIM, SIZE


def stack(num_levels: int, dim: int = DIM, **options: float) -> ResidualQuantizer:
    levels = [VectorQuantizer(FreeCodebook(dim, SIZE), learning=[]) for _ in range(num_levels)]
    return ResidualQuantizer(levels, **options)


@pytest.mark.parametrize("num_levels", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["residual", "product", "product of residuals"])
def test_encoder_gets_exactly_the_upstream_gradient(num_levels: int, kind: str) -> None:
    dim = 2 * num_levels
    if kind == "residual":
        quantizer = stack(num_levels, dim)
    elif kind == "product":
        quantizer = ProductQuantizer([VectorQuantizer(FreeCodebook(2, 8), learning=[]) for _ in range(num_levels)])
    else:
        quantizer = ProductQuantizer([stack(3, 2) for _ in range(num_levels)])
    x, g = torch.randn(20, dim, requires_grad=True), torch.randn(20, dim)
    quantizer(x).quantized.backward(g)
    assert x.grad is not None and torch.equal(x.grad, g)


class TestResidual:
    def test_is_the_textbook_loop(self) -> None:
        quantizer, x = stack(3), torch.randn(100, DIM)
        rest, indices = x.clone(), []
        for level in quantizer.quantizers:
            codes = level.codebook.codes()
            indices.append(torch.cdist(rest.double(), codes.double()).argmin(1))
            rest = rest - codes[indices[-1]]
        output = quantizer(x)
        assert torch.equal(output.indices, torch.stack(indices, 1))
        torch.testing.assert_close(output.quantized, x - rest)

    def test_one_level_is_that_level(self) -> None:
        level, x = grit_vq(DIM, SIZE), torch.randn(50, DIM)
        one, plain = ResidualQuantizer([level])(x), level(x)
        assert torch.equal(one.quantized, plain.quantized) and torch.equal(one.indices, plain.indices)

    def test_error_never_grows_with_a_zero_code(self) -> None:
        quantizer, x = stack(5), torch.randn(300, DIM)
        with torch.no_grad():
            for level in quantizer.quantizers:
                level.codebook.weight[0] = 0
        indices = quantizer.encode(x)
        errors = [(quantizer.decode(indices[:, : n + 1]) - x).norm(dim=1) for n in range(5)]
        for before, after in itertools.pairwise(errors):
            assert bool((after <= before + 1e-5).all())

    def test_prefixes(self) -> None:
        quantizer, x = stack(4), torch.randn(3, 5, DIM)
        whole = quantizer.encode(x)
        for n in (1, 2, 4):
            assert torch.equal(quantizer.encode(x, num_levels=n), whole[..., :n])
            expected = sum(
                level.lookup(whole[..., i : i + 1]) for i, level in enumerate(list(quantizer.quantizers)[:n])
            )
            torch.testing.assert_close(quantizer.decode(whole[..., :n]), expected)
        with pytest.raises(ValueError, match=r"expected num_levels in 1 \.\. 4, got 5"):
            quantizer.encode(x, num_levels=5)
        with pytest.raises(ValueError, match="expected integer indices"):
            quantizer.decode(torch.zeros(3, 5, dtype=torch.int64))

    def test_dropout_keeps_prefixes_per_sample(self) -> None:
        quantizer, x = stack(4, dropout=1.0), torch.randn(200, 3, DIM)
        output = quantizer(x)
        kept = (output.indices >= 0).sum(-1)
        assert bool((kept == kept[:, :1]).all()) and set(kept.unique().tolist()) == {1, 2, 3, 4}
        whole = quantizer.encode(x)
        levels = torch.arange(4)
        assert torch.equal(output.indices, torch.where(levels < kept[..., None], whole, -1))
        assert torch.equal(quantizer.decode(output.indices), output.quantized)
        assert bool((quantizer.eval()(x).indices >= 0).all())

    def test_a_shared_codebook_learns_once_from_all_levels(self) -> None:
        level = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.0)])
        quantizer, x = ResidualQuantizer([level, level, level]), torch.randn(200, DIM)
        quantizer(x)
        assert level.statistics is not None and level.statistics.counts.sum() == 3 * 200
        quantizer.update_codebook()
        assert level.statistics.step == 1
        assert len(list(quantizer.parameters())) == 1

    def test_each_level_starts_from_what_is_left(self) -> None:
        quantizer, x = rq(DIM, SIZE, num_levels=4), 5 + torch.randn(2000, DIM)
        quantizer.initialize_codebook(x)
        indices = quantizer.encode(x)
        errors = [float((quantizer.decode(indices[:, : n + 1]) - x).square().mean()) for n in range(4)]
        assert all(after < 0.8 * before for before, after in itertools.pairwise(errors))
        assert all(indices[:, n].unique().numel() > 0.9 * SIZE for n in range(4))

    def test_every_code_used_gets_the_same_gradient_under_a_radial_surrogate(self) -> None:
        levels = [VectorQuantizer(FreeCodebook(DIM, 1), surrogate=RadialSurrogate()) for _ in range(3)]
        ResidualQuantizer(levels)(torch.randn(1, DIM)).quantized.sum().backward()
        grads = [level.codebook.weight.grad for level in levels]
        assert grads[0] is not None and grads[0].any()
        assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected at least one quantizer"):
            ResidualQuantizer([])
        with pytest.raises(ValueError, match=r"expected levels of one dim, got \[4, 5\]"):
            ResidualQuantizer([vq_vae(4, 8), vq_vae(5, 8)])
        with pytest.raises(ValueError, match="expected one surrogate for all parts"):
            ResidualQuantizer([vq_vae(4, 8), grit_vq(4, 8)])
        with pytest.raises(ValueError, match=r"expected parts that map nothing before or after quantizing, got FSQ"):
            ResidualQuantizer([FSQ([5, 5, 5]), FSQ([5, 5, 5])])
        with pytest.raises(ValueError, match=r"expected dropout in \[0, 1\], got 2"):
            stack(2, dropout=2)


class TestProduct:
    def test_is_its_parts_side_by_side(self) -> None:
        parts = [vq_vae(2, 8), vq_vae(4, 16)]
        quantizer, x = ProductQuantizer(parts), torch.randn(3, 7, 6)
        output = quantizer(x)
        alone = [part(own) for part, own in zip(parts, x.split([2, 4], -1), strict=True)]
        assert quantizer.codebook_sizes == (8, 16)
        assert torch.equal(output.quantized, torch.cat([a.quantized for a in alone], -1))
        assert torch.equal(output.indices, torch.cat([a.indices for a in alone], -1))
        torch.testing.assert_close(output.loss, alone[0].loss + alone[1].loss)


class TestProjected:
    def test_maps_get_their_gradients(self) -> None:
        quantizer = ProjectedQuantizer(FSQ([5, 5, 5]), DIM)
        quantizer(torch.randn(30, DIM)).quantized.square().sum().backward()
        for parameter in quantizer.parameters():
            assert parameter.grad is not None and parameter.grad.any()

    def test_identity_maps_change_nothing(self) -> None:
        inner, x = vq_vae(DIM, SIZE), torch.randn(50, DIM)
        quantizer = ProjectedQuantizer(inner, DIM)
        with torch.no_grad():
            for layer in (quantizer.project_in, quantizer.project_out):
                layer.weight.copy_(torch.eye(DIM))
                layer.bias.zero_()
        torch.testing.assert_close(quantizer(x).quantized, inner(x).quantized)
        with pytest.raises(ValueError, match="expected dim >= 1, got 0"):
            ProjectedQuantizer(inner, 0)
