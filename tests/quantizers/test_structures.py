"""Structures against their parts and textbook loops; the encoder's gradient; prefixes, dropout, sharing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gritvq import (
    BSQ,
    FSQ,
    LFQ,
    CodebookLoss,
    CommitmentLoss,
    EMAUpdate,
    FreeCodebook,
    HierarchicalQuantizer,
    MahalanobisRadius,
    MultiScaleQuantizer,
    NearestAssignment,
    PerturbedQuantizer,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    QuantizerOutput,
    RadialSurrogate,
    ResidualQuantizer,
    SampledAssignment,
    StochasticQuantizer,
    VariationalLatent,
    VectorQuantizer,
    WrappedQuantizer,
    from_config,
    gm_vq,
    grit_vq,
    rq,
    rsq_vae,
    sq_vae,
    to_config,
    vq_vae,
)
from zoo import DIM, QUANTIZERS, SIZE


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
        with pytest.raises(
            ValueError, match=r"expected parts whose maps .* have no parameters, got ProjectedQuantizer"
        ):
            ResidualQuantizer([vq_vae(5, 8), ProjectedQuantizer(FSQ([5, 5]), 5)])
        with pytest.raises(
            ValueError, match=r"expected parts whose maps .* have no parameters, got ProjectedQuantizer"
        ):
            ProductQuantizer([ProjectedQuantizer(FSQ([5, 5]), 5).fold()])
        with pytest.raises(
            ValueError, match=r"expected levels that take every vector on its own, got ProductQuantizer"
        ):
            ResidualQuantizer([ProductQuantizer([vq_vae(4, 8), vq_vae(4, 8)], split="tokens")])
        with pytest.raises(ValueError, match="expected one surrogate for all parts"):
            ResidualQuantizer([Differentiable(), vq_vae(2, 4)])
        with pytest.raises(ValueError, match=r"vectors as large as they take, got StochasticQuantizer"):
            ResidualQuantizer([StochasticQuantizer(FreeCodebook(2, 4), variance="position")])
        with pytest.raises(ValueError, match=r"made for one objective, got \['reconstruction', 'arelbo'\]"):
            odd = vq_vae(4, 8)
            odd.objective = "arelbo"
            ResidualQuantizer([vq_vae(4, 8), odd])
        with pytest.raises(ValueError, match=r"expected dropout in \[0, 1\], got 2"):
            stack(2, dropout=2)


def test_levels_that_are_differentiable_themselves_have_the_gradient_of_their_sum() -> None:
    quantizer, x = ResidualQuantizer([Differentiable()] * 3), torch.randn(5, 2, requires_grad=True)
    quantized = quantizer(x).quantized  # 2x, then 2 (x - 2x) = -2x, then 2x
    quantized.sum().backward()
    torch.testing.assert_close(quantized, 2 * x)
    assert x.grad is not None and bool((x.grad == 2).all())
    mixtures = ResidualQuantizer([gm_vq(2, 4), gm_vq(2, 4)]).eval()
    x = torch.randn(5, 2, requires_grad=True)
    output = mixtures(x)
    output.quantized.sum().backward()  # straight-through, once
    assert torch.equal(output.quantized, mixtures.decode(output.indices))
    assert x.grad is not None and bool((x.grad == 1).all())


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_sampled_codes_are_summed_as_decoded_whatever_the_type(training: bool, wide: bool) -> None:
    assignment = SampledAssignment(straight_through=True)
    quantizer = ResidualQuantizer([VectorQuantizer(FreeCodebook(DIM, SIZE), assignment) for _ in range(3)])
    quantizer.to(torch.float64 if wide else torch.float32).train(training)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(200, DIM, dtype=dtype, requires_grad=True)
        output = quantizer(x)
        assert quantizer.exact == "always" and output.quantized.dtype == dtype
        assert torch.equal(output.quantized, quantizer.decode(output.indices).to(dtype))
        output.quantized.sum().backward()
        assert x.grad is not None and x.grad.any()


class Differentiable(Quantizer):
    """A quantizer whose values carry a gradient of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.codebook_sizes, self.exact, self.surrogate = 2, (4,), "never", None

    def quantize(self, x: Tensor, valid: Tensor) -> QuantizerOutput:
        return QuantizerOutput(2 * x, torch.where(valid, 0, -1).unsqueeze(-1), {})

    def lookup(self, indices: Tensor) -> Tensor:
        return indices.expand(*indices.shape[:-1], 2).float()

    def fold(self) -> Quantizer:
        return self


KINDS: dict[str, Callable[[], Quantizer]] = {
    "vq": lambda: VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[]),
    "lfq": lambda: LFQ(DIM, entropy_weight=0, commitment_weight=0),
    "bsq": lambda: BSQ(DIM, entropy_weight=0, commitment_weight=0),
    "fsq": lambda: FSQ([5] * DIM),
}


class TestKinds:
    @pytest.mark.parametrize(("one", "two"), list(itertools.product(KINDS, KINDS)))
    def test_two_levels_are_what_they_say(self, one: str, two: str) -> None:
        first, second, x = KINDS[one](), KINDS[two](), torch.randn(3, 40, DIM)
        quantizer = ResidualQuantizer([first, second])
        assert quantizer.codebook_sizes == first.codebook_sizes + second.codebook_sizes
        indices = quantizer.encode(x)
        assert torch.equal(indices[..., :1], first.encode(x))
        rest = x - first.decode(first.encode(x))
        assert torch.equal(indices[..., 1:], second.encode(rest))
        output = quantizer.eval()(x)
        assert torch.equal(output.quantized, first.decode(indices[..., :1]) + second.decode(indices[..., 1:]))
        assert torch.equal(quantizer.decode(indices), output.quantized)
        assert torch.equal(quantizer.decode(indices[..., :1]), first.decode(indices[..., :1]))

    @pytest.mark.parametrize("kinds", [("vq", "fsq"), ("bsq", "bsq", "bsq"), ("fsq", "lfq", "vq", "bsq")])
    @pytest.mark.parametrize("structure", ["residual", "product", "tokens", "product of residuals", "nested"])
    def test_encoder_gets_exactly_the_upstream_gradient(self, kinds: tuple[str, ...], structure: str) -> None:
        parts = [KINDS[kind]() for kind in kinds]
        quantizer: Quantizer
        if structure == "residual":
            quantizer = ResidualQuantizer(parts)
        elif structure == "product":
            quantizer = ProductQuantizer(parts)
        elif structure == "tokens":
            quantizer = ProductQuantizer(parts, split="tokens")
        elif structure == "product of residuals":
            quantizer = ProductQuantizer([ResidualQuantizer(parts), parts[0]])
        else:
            quantizer = ResidualQuantizer([ResidualQuantizer(parts), ResidualQuantizer(parts[::-1])])
        x = torch.randn(2, 12, quantizer.dim, requires_grad=True)
        g = torch.randn_like(x)
        output = quantizer(x)
        output.quantized.backward(g)
        assert x.grad is not None and torch.equal(x.grad, g)
        assert torch.equal(quantizer.decode(output.indices), output.quantized)
        assert torch.equal(quantizer.eval()(x).indices, output.indices)

    def test_the_bound_is_differentiated_by_the_levels_own_losses_only(self) -> None:
        quantizer = ResidualQuantizer([BSQ(DIM, entropy_weight=0, commitment_weight=1.0)])
        x = torch.randn(20, DIM, requires_grad=True)
        quantizer(x).loss.backward()
        assert x.grad is not None and x.grad.any()
        assert bool(((x.grad * x).sum(-1).abs() < 1e-6).all())  # a normalized vector cannot be moved along itself


class TestBeam:
    def best(self, quantizer: ResidualQuantizer, x: Tensor) -> Tensor:
        """Least squared error over all sums of codes."""
        sizes = quantizer.codebook_sizes
        every = torch.cartesian_prod(*[torch.arange(size) for size in sizes]).view(-1, len(sizes))
        return torch.cdist(x.double(), quantizer.decode(every).double()).square().amin(1)

    def error(self, quantizer: ResidualQuantizer, x: Tensor, indices: Tensor) -> Tensor:
        return (quantizer.decode(indices) - x).double().square().sum(-1)

    @pytest.mark.parametrize(("num_levels", "size"), [(1, 5), (2, 6), (3, 4), (4, 3)])
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_a_full_beam_finds_the_best_sum(self, num_levels: int, size: int, metric: str) -> None:
        levels = [
            VectorQuantizer(FreeCodebook(3, size), NearestAssignment(metric), learning=[]) for _ in range(num_levels)
        ]
        quantizer, x = ResidualQuantizer(levels), torch.randn(200, 3)
        found = self.error(quantizer, x, quantizer.encode(x, beam=size**num_levels))
        torch.testing.assert_close(found, self.best(quantizer, x), rtol=1e-5, atol=1e-6)

    def test_a_wider_beam_is_nearer_and_never_farther_than_greedy(self) -> None:
        quantizer, x = stack(4), torch.randn(2, 300, DIM)
        greedy = quantizer.encode(x)
        assert torch.equal(quantizer.encode(x, beam=1), greedy)
        means = []
        for beam in (1, 2, 4, 16):
            indices = quantizer.encode(x, beam=beam)
            error = self.error(quantizer, x, indices)
            assert indices.shape == greedy.shape
            assert bool((error <= self.error(quantizer, x, greedy) + 1e-6).all())
            means.append(error.mean().item())
        assert means[1] < 0.95 * means[0] and means[2] < means[1] and means[3] < means[2]

    def test_prefixes_masks_and_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        quantizer, x = stack(3), torch.randn(4, 25, DIM)
        mask = torch.rand(4, 25) < 0.7
        whole = quantizer.encode(x, mask, beam=5)
        assert bool((whole[~mask] == -1).all())
        assert torch.equal(whole[mask], quantizer.encode(x, beam=5)[mask])
        two = quantizer.encode(x, num_levels=2, beam=5)
        assert torch.equal(two, ResidualQuantizer(list(quantizer.quantizers)[:2]).encode(x, beam=5))
        monkeypatch.setattr("gritvq.quantizers.structures.residual._BLOCK_ENTRIES", 7 * 25 * DIM)
        assert torch.equal(quantizer.encode(x, mask, beam=5), whole)
        assert quantizer.encode(x[:0], beam=5).shape == (0, 25, 3)
        assert quantizer.training

    def test_what_cannot_be_searched_is_refused(self) -> None:
        x = torch.randn(5, DIM)
        with pytest.raises(ValueError, match="expected a quantizer with a table of codes to search, got LFQ"):
            ResidualQuantizer([KINDS["vq"](), LFQ(DIM)]).encode(x, beam=2)
        assert ResidualQuantizer([KINDS["vq"](), LFQ(DIM)]).encode(x, num_levels=1, beam=2).shape == (5, 1)
        with pytest.raises(ValueError, match="expected beam >= 1, got 0"):
            stack(2).encode(x, beam=0)


class TestProduct:
    def test_tokens_are_shared_out_in_chunks(self) -> None:
        parts = [vq_vae(3, 8), vq_vae(3, 16)]
        quantizer, x = ProductQuantizer(parts, split="tokens"), torch.randn(2, 10, 3)
        mask = torch.rand(2, 10) < 0.7
        output = quantizer(x, mask)
        alone = [part(own, m) for part, own, m in zip(parts, x.chunk(2, 1), mask.chunk(2, 1), strict=True)]
        assert quantizer.codebook_sizes == (8, 16) and quantizer.layout == (2,)
        assert output.indices.shape == (2, 5, 2) == (*quantizer.token_shape((2, 10)), 2)
        assert torch.equal(output.quantized, torch.cat([a.quantized for a in alone], 1))
        assert torch.equal(output.indices, torch.cat([a.indices for a in alone], -1))
        assert torch.equal(quantizer.decode(output.indices), output.quantized)
        assert quantizer.bits((2, 10)) == 2 * 5 * (3 + 4)
        with pytest.raises(ValueError, match="T a multiple of 2, one chunk per part, got the leading shape"):
            quantizer(torch.randn(2, 7, 3))
        with pytest.raises(ValueError, match="expected parts of equal dim to split tokens"):
            ProductQuantizer([vq_vae(3, 8), vq_vae(4, 8)], split="tokens")
        with pytest.raises(ValueError, match="expected parts that take every vector on its own"):
            ProductQuantizer([quantizer, quantizer], split="tokens")
        with pytest.raises(ValueError, match="expected split 'channels' or 'tokens', got 'heads'"):
            ProductQuantizer(parts, split="heads")  # type: ignore[arg-type]

    def test_parts_that_are_differentiable_themselves_may_lie_side_by_side(self) -> None:
        quantizer, x = ProductQuantizer([Differentiable(), Differentiable()]), torch.randn(5, 4, requires_grad=True)
        quantizer(x).quantized.sum().backward()
        assert quantizer.surrogate is None and x.grad is not None and bool((x.grad == 2).all())
        with pytest.raises(ValueError, match="expected one surrogate for all parts"):
            ProductQuantizer([Differentiable(), vq_vae(2, 4)])

    def test_is_its_parts_side_by_side(self) -> None:
        parts = [vq_vae(2, 8), vq_vae(4, 16)]
        quantizer, x = ProductQuantizer(parts), torch.randn(3, 7, 6)
        output = quantizer(x)
        alone = [part(own) for part, own in zip(parts, x.split([2, 4], -1), strict=True)]
        assert quantizer.codebook_sizes == (8, 16)
        assert torch.equal(output.quantized, torch.cat([a.quantized for a in alone], -1))
        assert torch.equal(output.indices, torch.cat([a.indices for a in alone], -1))
        torch.testing.assert_close(output.loss, alone[0].loss + alone[1].loss)

    def test_bits_are_those_of_the_parts(self) -> None:
        levels = [HierarchicalQuantizer([vq_vae(2, 16), vq_vae(2, 64)], 2) for _ in range(2)]
        assert levels[0].bits((8, 8)) == 16 * 4 + 64 * 6 == 448
        assert ProductQuantizer(levels).bits((8, 8)) == 2 * 448 and ProductQuantizer(levels).bits((3, 8, 8)) == 6 * 448
        parts = [rq(2, 16, num_levels=3), vq_vae(2, 64)]
        assert ProductQuantizer(parts).bits((5,)) == 5 * (3 * 4 + 6)
        assert ProductQuantizer(parts, split="tokens").bits((3, 8)) == 3 * 4 * (3 * 4 + 6)

    def test_soft_parts_of_which_only_some_fold_to_hard_ones(self) -> None:
        def soft(variance: Any = "scalar") -> Quantizer:
            return StochasticQuantizer(FreeCodebook(2, SIZE), variance=variance)

        for quantizer, shape in (
            (ProductQuantizer([soft(), soft("channel")]), (50, 6)),
            (ProductQuantizer([rsq_vae(2, SIZE), sq_vae(2, SIZE)]), (50, 4)),
            (ResidualQuantizer([sq_vae(2, SIZE), rsq_vae(2, SIZE)]), (50, 2)),
            (HierarchicalQuantizer([soft(), soft("channel")], 2), (3, 4, 4, 2)),
        ):
            folded, x = quantizer.eval().fold(), torch.randn(*shape)
            output = folded(x)
            assert torch.equal(output.indices, quantizer(x).indices)
            assert torch.equal(output.quantized, quantizer(x).quantized)
            assert torch.equal(output.quantized, folded.decode(output.indices))
            assert not folded.training and not any(p.requires_grad for p in folded.parameters())
            assert all(p.requires_grad for p in quantizer.parameters())
            rebuilt = from_config(to_config(folded))
            rebuilt.load_state_dict(folded.state_dict())
            assert torch.equal(rebuilt.eval()(x).quantized, output.quantized)
        both = ProductQuantizer([soft(), soft()]).fold()
        assert all(type(part) is VectorQuantizer for part in both.quantizers)  # type: ignore[union-attr]


class TestProjected:
    @pytest.mark.parametrize("kind", ["tokens", "channels", "multi-scale", "tokens side by side", "twice", "latent"])
    def test_masked_positions_get_no_bias(self, kind: str) -> None:
        def tokens() -> ProductQuantizer:
            return ProductQuantizer([vq_vae(2, 8), vq_vae(2, 8)], split="tokens")

        def multi_scale() -> Quantizer:
            return MultiScaleQuantizer(VectorQuantizer(FreeCodebook(2, 8), learning=[]), [1, 2, 4])

        inner: Quantizer
        if kind == "multi-scale":
            inner, mask = ProductQuantizer([multi_scale(), multi_scale()]), torch.rand(3, 4, 4) < 0.5
        else:
            mask = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4])
            if kind == "tokens":
                inner = tokens()
            elif kind == "channels":
                inner = ProductQuantizer([vq_vae(2, 8), vq_vae(2, 8)])
            elif kind == "tokens side by side":
                inner = ProductQuantizer([tokens(), tokens()])
            elif kind == "twice":
                inner = ProjectedQuantizer(tokens(), 3)
            else:
                inner = VariationalLatent(tokens())
        quantizer = ProjectedQuantizer(inner, 4).eval()
        torch.nn.init.constant_(quantizer.project_out.bias, 5.0)
        output = quantizer(torch.randn(*mask.shape, 4), mask)
        values = quantizer.decode(output.indices)
        assert torch.equal(values, output.quantized)
        assert not values[~mask].any() and bool(values[mask].any(-1).all())

    def test_maps_get_their_gradients(self) -> None:
        quantizer = ProjectedQuantizer(FSQ([5, 5, 5]), DIM)
        quantizer(torch.randn(30, DIM)).quantized.square().sum().backward()
        for parameter in quantizer.parameters():
            assert parameter.grad is not None and parameter.grad.any()

    def test_levels_with_maps_of_their_own(self) -> None:
        """Levels of own_surrogate: the sum as it is written, with the gradient that belongs to it."""
        levels = [ProjectedQuantizer(vq_vae(2, SIZE), DIM, own_surrogate=True) for _ in range(3)]
        for level in levels:
            torch.nn.init.normal_(level.project_out.bias)
        quantizer, x = ResidualQuantizer(levels), torch.randn(20, DIM, requires_grad=True)
        output = quantizer(x)
        rest, total, chosen = x, torch.zeros(20, DIM), []
        for level in levels:
            y = level.project_in(rest)
            codes = level.quantizer.codebook.codes()
            nearest = torch.cdist(y, codes).argmin(1)
            value = level.project_out(y + (codes[nearest] - y).detach())
            rest, total = rest - value, total + value
            chosen.append(nearest)
        assert torch.equal(output.indices, torch.stack(chosen, 1))
        torch.testing.assert_close(output.quantized, total)
        parameters = [x, *(p for level in levels for p in (*level.project_in.parameters(), level.project_out.weight))]
        upstream = torch.randn(20, DIM)
        for ours, theirs in zip(
            torch.autograd.grad(output.quantized, parameters, upstream),
            torch.autograd.grad(total, parameters, upstream),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert sorted(output.losses)[:2] == ["0/codebook", "0/commitment"]
        quantizer.eval()
        assert torch.equal(quantizer.decode(output.indices), quantizer(x).quantized)
        folded = quantizer.fold()
        assert torch.equal(folded.encode(x), output.indices)
        assert torch.equal(folded(x).quantized, quantizer(x).quantized)
        error = [(quantizer.decode(quantizer.encode(x, beam=b)) - x).square().sum() for b in (1, 4)]
        assert error[1] < error[0]
        alone = levels[0].eval()
        assert torch.equal(alone.decode(alone.encode(x)), alone(x).quantized) and alone.surrogate is None

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


@pytest.mark.parametrize("kind", ["cosine", "bsq", "multiscale", "hierarchical", "stochastic-channel"])
def test_a_wrapper_that_changes_nothing_is_the_inner_quantizer(kind: str) -> None:
    inner = QUANTIZERS[kind](DIM, SIZE).eval()
    outer = WrappedQuantizer(inner).eval()
    x = torch.randn(3, 4, 4, inner.input_dim) if len(inner.layout) == 2 else torch.randn(3, 12, inner.input_dim)
    mask = torch.rand(x.shape[:-1]) < 0.8
    mask[0] = False
    assert all(torch.equal(a, b) for a, b in zip(outer(x, mask)[:2], inner(x, mask)[:2], strict=True))
    assert torch.equal(outer.decode(inner.encode(x, mask)), inner.decode(inner.encode(x, mask)))
    assert outer.input_dim == inner.input_dim and outer.bits(x.shape[:-1]) == inner.bits(x.shape[:-1])
    assert outer.wants_initialization == inner.wants_initialization and torch.equal(outer.fold()(x)[1], inner(x)[1])
    outer.initialize_codebook(x)
    assert torch.equal(outer.encode(x), inner.encode(x))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_level_tables_are_searched_one_after_the_other(kind: str) -> None:
    quantizer = QUANTIZERS[kind](DIM, SIZE)
    tables = quantizer.level_tables()
    if tables is None:
        assert kind not in ("vq_vae", "rq", "rsq_vae", "residual-mixture", "perturbed", "soft_vq", "sq_vae", "vq_wae")
        return
    rest = torch.randn(50, DIM)
    for own, table in zip(quantizer.encode(rest).unbind(1), tables, strict=True):
        assert torch.equal(own, torch.cdist(rest.double(), table.double()).argmin(1))
        rest = rest - table[own]


def test_rules_are_added_to_those_of_other_kinds() -> None:
    quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), surrogate=RadialSurrogate(), learning=[CommitmentLoss(0.7)])
    more = quantizer.with_learning([CodebookLoss(), CommitmentLoss()])
    x = torch.randn(9, DIM)
    assert torch.equal(more(x).losses["commitment"], quantizer(x).losses["commitment"])
    assert list(more(x).losses) == ["codebook", "commitment"] and more.codebook is quantizer.codebook
    fsq = FSQ([3, 3])
    assert fsq.with_learning([CodebookLoss()]) is fsq


def test_the_surrogate_of_a_stack_sees_the_data_it_starts_from() -> None:
    levels = [VectorQuantizer(FreeCodebook(4, 8), surrogate=RadialSurrogate(MahalanobisRadius(4))) for _ in range(2)]
    quantizer = ResidualQuantizer(levels)
    quantizer.initialize_codebook(torch.randn(200, 4) * torch.tensor([1.0, 5.0, 0.2, 2.0]))
    metric = quantizer.get_buffer("surrogate.radius.metric")
    assert not torch.allclose(metric, torch.eye(4)) and metric[2, 2] > 10 * metric[1, 1]
    parts = [VectorQuantizer(FreeCodebook(4, 8), surrogate=RadialSurrogate(MahalanobisRadius(4))) for _ in range(2)]
    with pytest.raises(ValueError, match="expected a surrogate that fits vectors of any size"):
        ProductQuantizer(parts)


@pytest.mark.parametrize("around", [PerturbedQuantizer, lambda q: MultiScaleQuantizer(q, [1, 2])])
def test_what_takes_more_than_it_returns_is_refused(around: Any) -> None:
    latent = VariationalLatent(VectorQuantizer(FreeCodebook(4, 8)))
    with pytest.raises(ValueError, match="expected parts that return vectors as large as they take"):
        around(latent)
