"""Grids against brute force: nearest points, exact indices up to 2^63 codes, entropies over all codes, memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from gritvq import BSQ, FSP, FSQ, LFQ, Quantizer, fsp
from gritvq.quantizers.functional import nearest_code


def all_codes(dim: int, value: float) -> Tensor:
    """Rows of ``{-value, value}^dim``, bit j with weight 2^j."""
    bits = torch.tensor(list(itertools.product([0, 1], repeat=dim))).flip(1)
    return value * (2.0 * bits - 1)


class TestIndices:
    @pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 3, 4], [7], [2, 2]])
    def test_every_index_of_a_grid_comes_back(self, levels: list[int]) -> None:
        quantizer = FSQ(levels)
        index = torch.arange(math.prod(levels))[:, None]
        values = quantizer.decode(index)
        assert values.unique(dim=0).shape == values.shape
        digits = quantizer.digits(values)
        weights = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        assert torch.equal((digits * weights).sum(1), index[:, 0])

    @pytest.mark.parametrize("make", [lambda: LFQ(63), lambda: BSQ(63), lambda: FSQ([8] * 21)])
    def test_exact_with_2_to_the_63_codes(self, make: type) -> None:
        quantizer = make()
        assert quantizer.codebook_sizes == (2**63,)
        x = 3 * torch.randn(2000, quantizer.dim)
        output = quantizer.eval()(x)
        assert torch.equal(quantizer.decode(output.indices), output.quantized)
        assert int(output.indices.min()) >= 0 and output.indices.unique().numel() == 2000

    def test_more_are_refused(self) -> None:
        for make in (lambda: LFQ(64), lambda: BSQ(64), lambda: FSQ([8] * 22)):
            with pytest.raises(ValueError, match=r"expected at most 2\^63 codes, so that an index fits an int64"):
                make()

    def test_memory_does_not_depend_on_the_number_of_codes(self) -> None:
        x = torch.randn(4096, 40, requires_grad=True)
        quantizer = LFQ(40)
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            quantizer(x).loss.backward()
        live = peak = 0
        for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        assert 0 < peak < 50 * 2**20


class TestBinary:
    @pytest.mark.parametrize("dim", [1, 4, 10])
    def test_index_is_the_nearest_of_all_codes(self, dim: int) -> None:
        x = torch.randn(500, dim)
        for quantizer, value in ((LFQ(dim), 1.0), (BSQ(dim), dim**-0.5)):
            codes = all_codes(dim, value)
            assert torch.equal(quantizer.decode(torch.arange(2**dim)[:, None]), codes)
            assert torch.equal(quantizer.encode(x)[:, 0], nearest_code(x, codes))

    @pytest.mark.parametrize("temperature", [0.3, 1.0])
    def test_entropies_against_the_softmax_over_all_codes(self, temperature: float) -> None:
        dim, x = 6, torch.randn(50, 6, dtype=torch.float64)
        p = (-(torch.cdist(x, all_codes(dim, 1.0).double()) ** 2) / temperature).softmax(1)
        each = -(p * p.log()).sum(1).mean()
        options = {"temperature": temperature, "commitment_weight": 0.0, "entropy_weight": 1.0}
        loss = LFQ(dim, balance=0.0, **options)(x).losses["entropy"]
        torch.testing.assert_close(loss, each, rtol=1e-9, atol=1e-9)
        joint = -(p.mean(0) * p.mean(0).log()).sum()
        bound = loss - LFQ(dim, balance=1.0, **options)(x).losses["entropy"]
        assert float(bound) >= float(joint) - 1e-9
        bits = torch.sigmoid(4 * x / temperature).mean(0)
        marginals = -(bits * bits.log() + (1 - bits) * (1 - bits).log()).sum()
        torch.testing.assert_close(bound, marginals, rtol=1e-9, atol=1e-9)

    def test_entropy_is_finite_for_sure_bits(self) -> None:
        x = torch.full((4, 8), 1e4, requires_grad=True)
        loss = LFQ(8)(x).losses["entropy"]
        loss.backward()
        assert bool(torch.isfinite(loss)) and x.grad is not None and bool(torch.isfinite(x.grad).all())

    def test_bsq_codes_are_on_the_sphere_and_close(self) -> None:
        x = torch.randn(1000, 16)
        q = BSQ(16)(x).quantized
        torch.testing.assert_close(q.norm(dim=1), torch.ones(1000))
        unit = torch.nn.functional.normalize(x, dim=1)
        assert float((q - unit).norm(dim=1).max()) < math.sqrt(2 - 2 / math.sqrt(16))

    def test_a_zero_vector_gets_no_gradient_and_leaves_the_others_theirs(self) -> None:
        x, g = torch.randn(6, 8), torch.randn(6, 8)
        x[2:4] = torch.tensor([[0.0], [1e-8]])
        x.requires_grad_()
        (found,) = torch.autograd.grad(BSQ(8)(x).quantized, x, g)
        (expected,) = torch.autograd.grad(torch.nn.functional.normalize(x, dim=1), x, g)
        assert not found[2:4].any() and float(expected[2].norm()) > 1e11
        for rows in (slice(0, 2), slice(4, 6)):
            assert torch.equal(found[rows], expected[rows])

    def test_gradient_is_that_of_the_unit_vector(self) -> None:
        x, g = torch.randn(5, 8, dtype=torch.float64, requires_grad=True), torch.randn(5, 8, dtype=torch.float64)
        quantizer = BSQ(8, entropy_weight=0.0, commitment_weight=0.0)
        (found,) = torch.autograd.grad(quantizer(x).quantized, x, g)
        (expected,) = torch.autograd.grad(torch.nn.functional.normalize(x, dim=1), x, g)
        torch.testing.assert_close(found, expected)

    def test_bad_arguments(self) -> None:
        for make in (LFQ, BSQ):
            with pytest.raises(ValueError, match="expected dim >= 1, got 0"):
                make(0)
            with pytest.raises(ValueError, match="expected temperature > 0, got 0"):
                make(4, temperature=0)
            with pytest.raises(ValueError, match="commitment_weight >= 0"):
                make(4, commitment_weight=-1.0)


class TestFSQ:
    def test_bounds_rounds_and_passes_the_gradient_of_the_bound(self) -> None:
        levels = [8, 5, 2]
        x = (4 * torch.randn(300, 3, dtype=torch.float64)).requires_grad_()
        count = torch.tensor(levels, dtype=torch.float64)
        scale = (count - 1) * 1.001 / 2
        offset = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
        bounded = torch.tanh(x + torch.atanh(offset / scale)) * scale - offset
        output = FSQ(levels)(x)
        torch.testing.assert_close(output.quantized, bounded.round() / (count // 2), rtol=0, atol=1e-6)
        found, expected = (torch.autograd.grad(v.sum(), x)[0] for v in (output.quantized, bounded / (count // 2)))
        torch.testing.assert_close(found, expected)

    def test_reaches_every_level(self) -> None:
        levels = [2, 3, 4, 5, 8]
        x = torch.linspace(-6, 6, 4000)[:, None].expand(-1, 5)
        values = FSQ(levels)(x).quantized
        assert [values[:, i].unique().numel() for i in range(5)] == levels

    @pytest.mark.parametrize("size", [1000, 1001, 1002, 1024, 4096, 65535])
    def test_many_levels_stay_on_the_grid(self, size: int) -> None:
        quantizer = FSQ([size, 8])
        x = torch.cat([torch.linspace(-20, 20, 5000), torch.linspace(-0.5, 0.5, 5000)])
        x = torch.stack([x, x.flip(0)], 1)
        quantized, indices, _ = quantizer(x)
        digits = torch.cat([indices % size, indices // size], 1)
        assert digits.amin(0).tolist() == [0, 0] and digits.amax(0).tolist() == [size - 1, 7]
        half = torch.tensor([size // 2, 4])
        assert torch.equal(quantized, (digits - half) / half)
        assert torch.equal(quantizer.decode(indices), quantized)
        assert torch.equal(quantizer.encode(x), indices)

    def test_half_precision_loses_no_code(self) -> None:
        quantizer = FSQ([8, 8, 8]).bfloat16()
        x = 2 * torch.randn(5000, 3)
        assert torch.equal(quantizer.encode(x.bfloat16()), FSQ([8, 8, 8]).encode(x.bfloat16().float()))

    def test_bad_levels(self) -> None:
        for levels in ([], [1, 4], [4, 2.5]):
            with pytest.raises(ValueError, match="expected at least one level count, each an integer >= 2"):
                FSQ(levels)


class TestFSP:
    CDFS: ClassVar = {
        "logistic": lambda x: torch.sigmoid(2 * x),
        "normal": torch.distributions.Normal(0.0, 1.0).cdf,
        "laplace": torch.distributions.Laplace(0.0, 1.0).cdf,
        "cauchy": torch.distributions.Cauchy(0.0, 1.0).cdf,
    }

    @pytest.mark.parametrize("name", CDFS)
    def test_cells_are_quantiles_and_their_values_have_variance_1(self, name: str) -> None:
        levels, x = [8, 5, 2], 2 * torch.randn(4000, 3)
        quantizer = FSP(levels, distribution=name).eval()
        count = torch.tensor(levels)
        cell = (self.CDFS[name](x) * count).floor().clamp_max(count - 1)
        quantized, indices, losses = quantizer(x)
        torch.testing.assert_close(quantized, ((cell + 0.5) / count - 0.5) * math.sqrt(12))
        assert torch.equal(indices[:, 0], (cell.long() * torch.tensor([1, 8, 40])).sum(1)) and not losses
        values = FSP([1000]).decode(torch.arange(1000)[:, None])
        torch.testing.assert_close(values.square().mean(), torch.tensor(1.0), atol=1e-4, rtol=0)

    def test_training_adds_noise_as_wide_as_a_cell_and_none_at_the_ends(self) -> None:
        quantizer, x = FSP([5, 2]), torch.tensor([0.3, -0.1]).repeat(20000, 1)
        u = torch.sigmoid(2 * x[0])
        noise = quantizer(x).quantized / math.sqrt(12) + 0.5 - u
        widths = torch.tensor([0.1, 0.25])
        assert bool((noise.abs() <= widths + 1e-6).all())
        torch.testing.assert_close(noise.std(0), widths / math.sqrt(3), rtol=0.03, atol=0)
        ends = torch.tensor([6.0, -6.0]).repeat(2000, 1)
        values = quantizer(ends).quantized
        assert float(values.abs().max()) < math.sqrt(3) + 1e-6
        still = (values == quantizer.before(ends)).float().mean(0)
        assert bool((still - 0.5).abs().max() < 0.05)  # half of the noise would leave the range

    def test_gradients_are_those_of_the_value_and_indices_are_rounded(self) -> None:
        quantizer, x = FSP([8, 5], rounding=0.5), torch.randn(50, 2, requires_grad=True)
        quantized, indices, _ = quantizer(x)
        (found,) = torch.autograd.grad(quantized.sum(), x)
        (expected,) = torch.autograd.grad(math.sqrt(3) * torch.tanh(x).sum(), x)
        torch.testing.assert_close(found, expected)
        hard = quantizer.decode(indices)
        assert torch.equal(indices, quantizer.encode(x)) and quantizer.exact == "eval"
        share = (quantized == hard).float().mean()
        assert 0.3 < float(share) < 0.7
        assert torch.equal(FSP([8, 5], rounding=1.0)(x).quantized, hard)
        assert torch.equal(quantizer.fold()(x).quantized, hard)

    def test_wrong_arguments(self) -> None:
        with pytest.raises(ValueError, match="expected a distribution of logistic, normal, laplace, cauchy, got 't'"):
            FSP([4], distribution="t")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="rounding"):
            FSP([4], rounding=1.5)
        assert fsp(6, 64, levels=[4, 4, 4]).codebook_sizes == (64,)


@pytest.mark.parametrize(
    "make",
    [lambda: FSQ([8, 5, 3]), lambda: LFQ(6), lambda: BSQ(6), lambda: FSP([8, 5, 3]).eval()],
    ids=["fsq", "lfq", "bsq", "fsp"],
)
def test_constants_survive_the_way_over_the_meta_device(make: Callable[[], Quantizer]) -> None:
    expected = make()
    with torch.device("meta"):
        found = make()
    found.to_empty(device="cpu")
    assert found.training == expected.training
    found.load_state_dict(expected.state_dict())
    for (name, buffer), own in zip(found.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(buffer, own), name
    x = torch.randn(200, expected.dim)
    output = found(x)
    assert torch.equal(output.indices, expected(x).indices)
    assert torch.equal(found.decode(output.indices), expected(x).quantized)
    assert not found.state_dict() and len(list(found.buffers())) == 2


class TestSymmetricGrid:
    def test_codes_are_evenly_spaced_and_symmetric(self) -> None:
        for bound in ("tanh", "clamp"):
            quantizer = FSQ([4], symmetric=True, bound=bound).eval()
            values = quantizer.decode(torch.arange(4)[:, None])
            assert torch.allclose(values[:, 0], torch.linspace(-1, 1, 4))
            x = torch.randn(500, 1)
            assert torch.allclose(quantizer(-x).quantized, -quantizer(x).quantized)
            inside = x.tanh() if bound == "tanh" else x.clamp(-1, 1)
            assert torch.equal(quantizer.encode(x)[:, 0], nearest_code(inside, values))

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_a_clamp_passes_the_gradient_inside_only(self, symmetric: bool) -> None:
        x = torch.tensor([[-7.0, -0.3, 0.4, 7.0]], requires_grad=True)
        FSQ([5, 5, 5, 5], symmetric=symmetric, bound="clamp")(x).quantized.sum().backward()
        assert x.grad is not None
        assert torch.allclose(x.grad, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), atol=1e-2)  # the plain one widens by 1e-3

    def test_an_unknown_bound_is_said(self) -> None:
        with pytest.raises(ValueError, match="expected bound 'tanh' or 'clamp', got 'soft'"):
            FSQ([3, 3], bound="soft")  # type: ignore[arg-type]

    def test_folding_keeps_the_form(self) -> None:
        quantizer = FSQ([4, 3], symmetric=True, bound="clamp")
        x = torch.randn(50, 2)
        assert torch.equal(quantizer.fold()(x).quantized, quantizer(x).quantized)


class TestFirstBit:
    @pytest.mark.parametrize("make", [LFQ, BSQ])
    def test_the_highest_bit_is_the_first_component(self, make: type[LFQ] | type[BSQ]) -> None:
        quantizer, plain = make(5, first_bit="highest").eval(), make(5).eval()
        x = torch.randn(100, 5)
        assert torch.equal(quantizer.encode(x), plain.encode(x.flip(1)))
        assert torch.equal(quantizer(x).quantized, plain(x).quantized)
        assert torch.equal(quantizer.decode(quantizer.encode(x)), plain(x).quantized)
        assert torch.equal(quantizer.fold().encode(x), quantizer.encode(x))
        assert int(quantizer.encode(torch.tensor([[1.0, -1.0, -1.0, -1.0, -1.0]]))) == 16

    def test_another_place_is_said(self) -> None:
        with pytest.raises(ValueError, match="expected first_bit 'lowest' or 'highest', got 'last'"):
            LFQ(3, first_bit="last")  # type: ignore[arg-type]
