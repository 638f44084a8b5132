"""Quantizers of square grids: multi-scale and hierarchical ones against their parts, textbook loops and invariants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gritvq import (
    BSQ,
    FSQ,
    LFQ,
    CodebookUsage,
    EMAUpdate,
    FreeCodebook,
    HierarchicalQuantizer,
    MultiScaleQuantizer,
    NearestAssignment,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    QuantizerOutput,
    RadialSurrogate,
    ResidualQuantizer,
    VectorQuantizer,
    grit_vq,
    sq_vae,
    vq_vae,
)
from gritvq.quantizers.functional import bits_per_sample

DIM, SIZE = 4, 16


def unit(k: int = SIZE, d: int = DIM) -> VectorQuantizer:
    return VectorQuantizer(FreeCodebook(d, k), learning=[])


UNITS: dict[str, Callable[[], Quantizer]] = {
    "vq": unit,
    "cosine": lambda: VectorQuantizer(FreeCodebook(DIM, SIZE), NearestAssignment("cosine"), learning=[]),
    "lfq": lambda: LFQ(DIM),
    "bsq": lambda: BSQ(DIM),
    "fsq": lambda: FSQ([5] * DIM),
    "residual": lambda: ResidualQuantizer([unit(), LFQ(DIM)]),
    "product": lambda: ProductQuantizer([unit(8, 2), unit(16, 2)]),
}
each_unit = pytest.mark.parametrize("make", UNITS.values(), ids=UNITS.keys())


def grid(quantizer: Quantizer, num: int = 3) -> Tensor:
    return torch.randn(num, *quantizer.layout, quantizer.input_dim)


class TestMultiScale:
    @each_unit
    @pytest.mark.parametrize("sides", [[1], [4], [1, 2, 4], [1, 2, 3, 5], [3, 1, 3], [4, 4]])
    def test_index_round_trip(self, make: Callable[[], Quantizer], sides: Sequence[int]) -> None:
        quantizer = MultiScaleQuantizer(make(), sides)
        x = grid(quantizer)
        for training in (True, False):
            output = quantizer.train(training)(x)
            assert (
                output.indices.shape[:-1] == (3, sum(side**2 for side in sides)) == quantizer.token_shape(x.shape[:-1])
            )
            assert torch.equal(quantizer.decode(output.indices), output.quantized)
        assert torch.equal(quantizer.encode(x), output.indices)
        assert torch.equal(quantizer.encode(x[0]), output.indices[0])
        assert quantizer(x[0]).quantized.shape == x[0].shape

    def test_one_scale_without_filter_is_the_plain_quantizer(self) -> None:
        inner = vq_vae(DIM, SIZE)
        x = torch.randn(5, 3, 3, DIM)
        quantizer = MultiScaleQuantizer(VectorQuantizer(inner.codebook, learning=[]), [3], ratio=0.0)
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        a, b = inner(one), quantizer(two)
        assert torch.equal(a.quantized, b.quantized) and torch.equal(a.indices.flatten(1, 2), b.indices)
        assert a.losses.keys() == b.losses.keys()
        grads = []
        for x_own, output in ((one, a), (two, b)):
            inner.codebook.weight.grad = None
            (output.quantized.sum() + output.loss).backward()
            grads.append((x_own.grad, inner.codebook.weight.grad, *output.losses.values()))
        for left, right in zip(*grads, strict=True):
            torch.testing.assert_close(left, right)

    @each_unit
    def test_equal_sides_without_filter_are_the_textbook_residual(self, make: Callable[[], Quantizer]) -> None:
        inner = make()
        quantizer, plain = MultiScaleQuantizer(inner, [3] * 4, ratio=0.0), ResidualQuantizer([inner] * 4)
        x = grid(quantizer)
        output, expected = quantizer.eval()(x), plain.eval()(x)
        assert torch.equal(output.quantized, expected.quantized)
        levels = torch.cat(output.indices.split(9, 1), -1).view(expected.indices.shape)
        assert torch.equal(levels, expected.indices)

    def test_is_the_textbook_loop(self) -> None:
        quantizer, sides = MultiScaleQuantizer(unit(), [1, 2, 3, 5], num_filters=2), [1, 2, 3, 5]
        x = grid(quantizer)
        total, indices = torch.zeros(3, DIM, 5, 5), []
        image = x.permute(0, 3, 1, 2)
        for level, side in enumerate(sides):
            y = F.adaptive_avg_pool2d(image - total, side).permute(0, 2, 3, 1)
            found = torch.cdist(y.flatten(0, -2).double(), quantizer.quantizer.codebook.codes().double()).argmin(1)
            indices.append(found.view(3, -1))
            q = quantizer.quantizer.codebook.codes()[found].view(3, side, side, DIM).permute(0, 3, 1, 2)
            u = F.interpolate(q, size=(5, 5), mode="bicubic")
            total = total + 0.5 * u + 0.5 * quantizer.filters[(0, 0, 1, 1)[level]](u)
        output = quantizer(x)
        assert torch.equal(output.indices[..., 0], torch.cat(indices, 1))
        torch.testing.assert_close(output.quantized, total.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("sides", [[1, 2, 4], [1, 2], [4], [1, 2, 3, 4], [1, 1, 2, 2, 4]])
    def test_every_trained_filter_has_a_level(self, sides: list[int]) -> None:
        """Or a gradient of 0: several processes would wait for one that never comes."""
        quantizer = MultiScaleQuantizer(vq_vae(DIM, 16), sides)
        output = quantizer(torch.randn(2, sides[-1], sides[-1], DIM))
        (output.quantized.square().sum() + output.loss).backward()
        trained = [p for p in quantizer.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)
        assert len(trained) == 1 + 2 * 4
        moved = [any(bool(p.grad.any()) for p in layer.parameters()) for layer in quantizer.filters]
        assert sum(moved) == min(len(sides), 4)

    def test_losses_compare_what_has_accumulated(self) -> None:
        quantizer = MultiScaleQuantizer(LFQ(DIM), [1, 2, 4], codebook_weight=0.7, commitment_weight=0.3)
        x = grid(quantizer)
        output = quantizer(x)
        parts = [quantizer.decode(output.indices[:, :n]) for n in (1, 5, 21)]
        errors = torch.stack([F.mse_loss(part, x) for part in parts])
        torch.testing.assert_close(output.losses["codebook"], 0.7 * errors.mean())
        torch.testing.assert_close(output.losses["commitment"], 0.3 * errors.sum())
        assert sorted(output.losses) == ["codebook", "commitment", "unit/commitment", "unit/entropy"]
        rest, expected = x, []
        for part, side in zip(parts, (1, 2, 4), strict=True):
            y = F.adaptive_avg_pool2d(rest.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
            expected.append(LFQ(DIM)(y).losses["entropy"])
            rest = x - part
        torch.testing.assert_close(output.losses["unit/entropy"], torch.stack(expected).mean())
        assert MultiScaleQuantizer(unit(), [2], codebook_weight=0, commitment_weight=0)(x[:, :2, :2]).losses == {}

    def test_who_learns_from_what(self) -> None:
        quantizer = MultiScaleQuantizer(unit(), [1, 2, 4])
        x = grid(quantizer).requires_grad_()
        losses = quantizer(x).losses
        losses["commitment"].backward(retain_graph=True)
        assert x.grad is not None and x.grad.any() and all(p.grad is None for p in quantizer.parameters())
        x.grad = None
        losses["codebook"].backward()
        assert x.grad is None and all(p.grad is not None for p in quantizer.quantizer.parameters())
        trained = [bool(layer.weight.grad.any()) for layer in quantizer.filters]
        assert trained == [True, False, True, True]  # numbers 0, 2 and 3 belong to the three levels

    @each_unit
    def test_encoder_gets_exactly_the_upstream_gradient(self, make: Callable[[], Quantizer]) -> None:
        for quantizer in (
            MultiScaleQuantizer(make(), [1, 2, 4]),
            ProductQuantizer([MultiScaleQuantizer(make(), [1, 3, 4]), MultiScaleQuantizer(make(), [1, 3, 4])]),
        ):
            x = grid(quantizer).requires_grad_()
            g = torch.randn_like(x)
            quantizer(x).quantized.backward(g)
            assert x.grad is not None and torch.equal(x.grad, g)

    def test_codes_of_a_radial_unit_learn_from_the_task(self) -> None:
        quantizer = MultiScaleQuantizer(
            VectorQuantizer(FreeCodebook(DIM, SIZE), surrogate=RadialSurrogate()), [1, 2, 4]
        )
        quantizer(grid(quantizer)).quantized.sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in quantizer.quantizer.parameters())
        assert quantizer.filters[0].weight.grad is not None

    @pytest.mark.parametrize("make", [LFQ, BSQ])
    def test_levels_of_a_binary_unit_have_their_values(self, make: Callable[[int], Quantizer]) -> None:
        quantizer = MultiScaleQuantizer(make(DIM), [4] * 3, ratio=0.0, level_scale=0.5)
        output = quantizer(grid(quantizer))
        before = torch.zeros(3, 4, 4, DIM)
        for level in range(3):
            value = quantizer.decode(output.indices[:, : 16 * (level + 1)]) - before
            expected = 0.5**level * (1.0 if make is LFQ else DIM**-0.5)
            torch.testing.assert_close(value.abs(), torch.full_like(value, expected))
            if level == 0 and make is BSQ:
                torch.testing.assert_close(value.norm(dim=-1), torch.ones(3, 4, 4))
            before = before + value

    def test_a_cosine_unit_adds_the_code_as_it_is(self) -> None:
        quantizer = MultiScaleQuantizer(UNITS["cosine"](), [2], ratio=0.0)
        with torch.no_grad():
            quantizer.quantizer.codebook.weight.mul_(3)
        x = grid(quantizer)
        output, codes = quantizer(x), quantizer.quantizer.codebook.codes()
        cosine = F.normalize(x, dim=-1) @ F.normalize(codes, dim=1).T
        assert torch.equal(output.indices.view(3, 2, 2), cosine.argmax(-1))
        assert torch.equal(output.quantized, codes[cosine.argmax(-1)])

    @each_unit
    def test_prefixes_are_what_dropout_trains(self, make: Callable[[], Quantizer]) -> None:
        quantizer = MultiScaleQuantizer(make(), [1, 2, 3, 4], dropout=1.0)
        x = grid(quantizer, 64)
        output = quantizer(x)
        whole = quantizer.encode(x)
        ends = torch.tensor([0, 1, 5, 14, 30])
        depth = (output.indices >= 0).any(-1).sum(1)
        assert set(depth.tolist()) == {1, 5, 14, 30}
        place = torch.arange(30)
        assert torch.equal(output.indices, torch.where((place < depth[:, None]).unsqueeze(-1), whole, -1))
        assert torch.equal(quantizer.decode(output.indices), output.quantized)
        for level in range(1, 5):
            rows = depth == ends[level]
            prefix = quantizer.encode(x, num_levels=level)
            assert torch.equal(prefix, whole[:, : int(ends[level])])
            torch.testing.assert_close(quantizer.decode(prefix)[rows], output.quantized[rows])
        assert bool((quantizer.eval()(x).indices >= 0).all())
        with pytest.raises(ValueError, match=r"expected num_levels in 1 \.\. 4, got 5"):
            quantizer.encode(x, num_levels=5)
        with pytest.raises(ValueError, match="expected the tokens of whole levels, 1, 5, 14, 30 of them, got 7"):
            quantizer.decode(whole[:, :7])

    def test_dropped_levels_do_not_count_for_the_losses(self) -> None:
        torch.manual_seed(0)
        quantizer = MultiScaleQuantizer(unit(), [1, 2, 4], dropout=1.0, commitment_weight=1.0)
        x = grid(quantizer, 40)
        output = quantizer(x)
        expected = torch.zeros(())
        for end, start in ((1, 0), (5, 1), (21, 5)):
            rows = (output.indices[:, start] >= 0).squeeze(-1)
            expected = expected + F.mse_loss(quantizer.decode(output.indices[rows, :end]), x[rows])
        torch.testing.assert_close(output.losses["commitment"], expected)

    def test_share_of_samples_that_drop_levels(self) -> None:
        quantizer = MultiScaleQuantizer(unit(), [1] * 10, dropout=0.3)
        depth = (quantizer(torch.randn(4000, 1, 1, DIM)).indices >= 0).sum((1, 2))
        assert int(depth.min()) == 3
        assert abs(float((depth < 10).float().mean()) - 0.3 * 7 / 8) < 0.03

    @pytest.mark.parametrize("sides", [[4], [1, 2, 4], [1, 3, 4]])
    def test_masks_are_weights(self, sides: list[int]) -> None:
        quantizer = MultiScaleQuantizer(unit(), sides, ratio=0.0)
        x, mask = torch.randn(6, 4, 4, DIM), torch.rand(6, 4, 4) < 0.5
        mask[0], mask[1], mask[2, :2] = True, False, False
        output = quantizer(x, mask)
        assert torch.equal(output.indices[0], quantizer(x[:1]).indices[0])
        assert bool((output.indices[1] == -1).all()) and bool((output.quantized[~mask] == 0).all())
        assert torch.equal(quantizer.decode(output.indices), output.quantized)
        start = 0
        for side in sides:
            cells = F.adaptive_max_pool2d(mask[:, None].float(), side).flatten(1) > 0
            assert torch.equal(output.indices[:, start : start + side**2, 0] >= 0, cells)
            start += side**2
        if sides[0] == 1:
            mean = (x * mask[..., None]).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)[:, None]
            seen = mask.flatten(1).any(1)
            assert torch.equal(output.indices[seen, 0], quantizer.quantizer.encode(mean)[seen])
        error = (output.quantized - x)[mask].square().mean()
        assert sides != [4] or torch.allclose(output.losses["commitment"], 0.25 * error)

    def test_one_moving_average_learns_from_all_levels(self) -> None:
        inner = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.5)])
        quantizer = MultiScaleQuantizer(inner, [1, 2, 4])
        quantizer(grid(quantizer))
        assert inner.statistics is not None and inner.statistics.counts.sum() == 3 * 21
        before = inner.codebook.codes().clone()
        quantizer.update_codebook()
        assert not torch.equal(before, inner.codebook.codes())

    def test_a_start_from_data_serves_all_levels(self) -> None:
        base = torch.randn(64, 1, 1, DIM) * 3 + 5
        x = (
            base
            + torch.randn(64, 2, 2, DIM).repeat_interleave(2, 1).repeat_interleave(2, 2)
            + 0.3 * torch.randn(64, 4, 4, DIM)
        )
        quantizer = MultiScaleQuantizer(unit(256), [1, 2, 4], ratio=0.0)
        quantizer.initialize_codebook(x)
        indices = quantizer.encode(x)
        errors = [float((quantizer.decode(indices[:, :n]) - x).detach().square().mean()) for n in (1, 5, 21)]
        assert errors[0] < 0.5 * float((x - x.mean((0, 1, 2))).square().mean())
        assert errors[1] < 0.8 * errors[0] and errors[2] < 0.8 * errors[1]
        assert indices.unique().numel() > 0.9 * 256

    def test_what_does_not_fit_is_refused(self) -> None:
        for arguments, message in (
            ({"sides": []}, "expected sides >= 1, the last one the largest"),
            ({"sides": [2, 1]}, "expected sides >= 1, the last one the largest"),
            ({"ratio": 2.0}, r"expected ratio in \[0, 1\], got 2"),
            ({"dropout": -1.0}, r"expected dropout in \[0, 1\]"),
            ({"num_filters": 0}, "expected num_filters >= 1"),
            ({"level_scale": 0.0}, "expected level_scale > 0"),
            ({"codebook_weight": -1.0}, "expected codebook_weight >= 0"),
            ({"quantizer": ProjectedQuantizer(unit(), 8)}, "have no parameters, got ProjectedQuantizer"),
            (
                {"quantizer": MultiScaleQuantizer(unit(), [2])},
                "expected a quantizer that takes every vector on its own",
            ),
        ):
            given: dict[str, Any] = {"quantizer": unit(), "sides": [1, 2], **arguments}
            with pytest.raises(ValueError, match=message):
                MultiScaleQuantizer(**given)
        quantizer = MultiScaleQuantizer(unit(), [1, 2])
        with pytest.raises(ValueError, match="expected a grid of 2 x 2 vectors"):
            quantizer(torch.randn(1, 4, 4, DIM))
        with pytest.raises(ValueError, match="expected parts of one layout"):
            ProductQuantizer([quantizer, MultiScaleQuantizer(unit(), [2])])

    def test_bits_and_tokens(self) -> None:
        branches = [MultiScaleQuantizer(unit(4096, 2), [1, 1, 2, 3, 3, 4, 5, 6, 8, 11]) for _ in range(2)]
        quantizer = ProductQuantizer(branches)
        tokens = quantizer.token_shape((11, 11))
        assert tokens == (286,) and quantizer.bits((11, 11)) == 6864  # MSVR10P2-4096 of the publication
        assert quantizer.bits((3, 11, 11)) == 3 * 6864


class Wide(Quantizer):
    """Takes twice as many components as it returns, and is differentiable itself, as stochastic quantizers are."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.codebook_sizes, self.exact, self.surrogate = DIM, (2,), "never", None

    @property
    def input_dim(self) -> int:
        return 2 * DIM

    def quantize(self, x: Tensor, valid: Tensor) -> QuantizerOutput:
        index = torch.where(valid, (x[..., 0] > 0).long(), -1).unsqueeze(-1)
        return QuantizerOutput(x[..., :DIM] + x[..., DIM:], index, {"own": x[..., DIM:].square().sum()})

    def lookup(self, indices: Tensor) -> Tensor:
        return indices.expand(*indices.shape[:-1], DIM).float()

    def fold(self) -> Quantizer:
        return self


def hierarchy(*sizes: int, moved: bool = True) -> HierarchicalQuantizer:
    quantizer = HierarchicalQuantizer([vq_vae(DIM, size) for size in sizes], DIM)
    if moved:
        for name, parameter in quantizer.named_parameters():
            if not name.startswith("quantizers"):
                torch.nn.init.normal_(parameter, std=0.2)
    return quantizer


class TestHierarchical:
    @pytest.mark.parametrize("num_levels", [1, 2, 3])
    @pytest.mark.parametrize("scale", [1, 3])
    def test_index_round_trip(self, num_levels: int, scale: int) -> None:
        quantizer = hierarchy(*[8, 16, 32][:num_levels])
        side = scale * 2 ** (num_levels - 1)
        x = torch.randn(3, side, side, DIM)
        for training in (True, False):
            output = quantizer.train(training)(x)
            assert torch.equal(quantizer.decode(output.indices), output.quantized)
            assert output.indices.shape[:-1] == quantizer.token_shape((3, side, side))
        assert torch.equal(quantizer.encode(x[0]), output.indices[0])
        start = 0
        for level in range(num_levels):
            own = output.indices[:, start : start + (scale << level) ** 2]
            assert bool((own[..., level] >= 0).all())
            assert bool((own[..., [c for c in range(num_levels) if c != level]] == -1).all())
            start += (scale << level) ** 2
        assert start == output.indices.shape[1]

    def test_starts_as_a_residual_over_resolutions(self) -> None:
        quantizer, x = hierarchy(8, 16, moved=False), torch.randn(3, 6, 6, DIM, requires_grad=True)
        coarse, fine = (part.eval() for part in quantizer.quantizers)
        output = quantizer(x)
        mean = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        state = coarse(mean).quantized.repeat_interleave(2, 1).repeat_interleave(2, 2)
        expected = state + fine(x - state).quantized
        torch.testing.assert_close(output.quantized, expected)
        g = torch.randn_like(x)
        output.quantized.backward(g)
        torch.testing.assert_close(x.grad, g, rtol=1e-4, atol=1e-5)

    def test_every_level_keeps_its_own_surrogate_and_all_networks_learn(self) -> None:
        levels = [grit_vq(DIM, 8), vq_vae(DIM, 16), ProjectedQuantizer(FSQ([5, 5]), DIM)]
        quantizer, x = HierarchicalQuantizer(levels, DIM), torch.randn(2, 8, 8, DIM)
        for _ in range(2):  # the second convolutions start at zero, so the first ones learn one step later
            optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
            optimizer.zero_grad()
            output = quantizer(x)
            ((output.quantized - x).square().mean() + output.loss).backward()
            optimizer.step()
        for name, parameter in quantizer.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
        assert sorted(output.losses) == ["1/codebook", "1/commitment"]

    def test_prefixes(self) -> None:
        quantizer, x = hierarchy(8, 16, 32), torch.randn(3, 8, 8, DIM)
        whole = quantizer.encode(x)
        for level, end in ((1, 4), (2, 20), (3, 84)):
            prefix = quantizer.encode(x, num_levels=level)
            assert torch.equal(prefix, whole[:, :end])
            dropped = torch.where((torch.arange(84) < end)[:, None], whole, -1)
            assert torch.equal(quantizer.decode(prefix), quantizer.decode(dropped))
            assert quantizer.decode(prefix).shape == x.shape
        with pytest.raises(ValueError, match=r"expected num_levels in 1 \.\. 3, got 4"):
            quantizer.encode(x, num_levels=4)
        with pytest.raises(ValueError, match="expected the tokens of whole levels of a square grid"):
            quantizer.decode(whole[:, :-1])

    @pytest.mark.parametrize("num_levels", [1, 2, 3, 4, 5])
    def test_token_counts_tell_sides_and_levels_apart(self, num_levels: int) -> None:
        quantizer = hierarchy(*[4] * num_levels, moved=False)
        for least in (1, 2, 3, 7, 16):
            sides = [least << level for level in range(num_levels)]
            for n in range(1, num_levels + 1):
                assert quantizer._sides(sum(side**2 for side in sides[:n])) == sides[:n]

    def test_masks(self) -> None:
        quantizer, x = hierarchy(8, 16), torch.randn(3, 4, 4, DIM)
        mask = torch.rand(3, 4, 4) < 0.6
        mask[0], mask[1, :2, :2], mask[2] = True, False, False
        output = quantizer(x, mask)
        assert torch.equal(output.indices[0], quantizer(x[:1]).indices[0])
        cells = F.max_pool2d(mask.float(), 2) > 0
        assert torch.equal(output.indices[:, :4, 0] >= 0, cells.flatten(1))
        assert torch.equal(output.indices[:, 4:, 1] >= 0, mask.flatten(1))
        assert bool((output.quantized[~mask] == 0).all()) and bool((output.indices[2] == -1).all())
        assert torch.equal(quantizer.decode(output.indices), output.quantized)

    @pytest.mark.parametrize("mask_kind", ["none", "one per cell", "random", "nothing"])
    def test_losses_in_nats_count_per_real_vector_of_the_finest_level(self, mask_kind: str) -> None:
        levels = [sq_vae(DIM, SIZE) for _ in range(3)]
        quantizer, x, mask = HierarchicalQuantizer(levels, DIM), torch.randn(3, 8, 8, DIM), torch.ones(3, 8, 8) > 0
        if mask_kind == "one per cell":
            mask[:, 1::2], mask[:, :, 1::2] = False, False
        elif mask_kind != "none":
            mask = torch.rand(3, 8, 8) < (0.2 if mask_kind == "random" else 0.0)
        alone: list[dict[str, Tensor]] = []
        for level in levels:
            level.register_forward_hook(lambda _, arguments, output: alone.append(output.losses))
        losses = quantizer(x, mask).losses
        assert len(losses) == 6 and len(alone) == 3
        for level, own in enumerate(alone):
            cells = F.max_pool2d(mask.float(), 4 >> level).sum()
            share = 0.25 ** (2 - level) if mask_kind == "none" else float(cells / mask.sum().clamp_min(1))
            assert mask_kind != "one per cell" or share == (0.25, 1, 1)[level]
            for name, loss in own.items():
                if mask_kind == "none":
                    assert torch.equal(losses[f"{level}/{name}"], share * loss)
                torch.testing.assert_close(losses[f"{level}/{name}"], share * loss)
                assert bool(loss == 0) == (mask_kind == "nothing")

    def test_levels_that_take_more_than_they_return(self) -> None:
        quantizer, x = HierarchicalQuantizer([Wide(), Wide()], DIM), torch.randn(2, 4, 4, DIM, requires_grad=True)
        output = quantizer(x)
        assert quantizer.exact == "never" and sorted(output.losses) == ["0/own", "1/own"]
        torch.testing.assert_close(output.quantized, x)  # the further components start at zero
        output.quantized.sum().backward()
        assert x.grad is not None and x.grad.any()
        assert quantizer.eval()(x).losses == {}

    def test_bits_are_those_of_the_levels(self) -> None:
        two, one = hierarchy(512, 512), hierarchy(2048)
        assert two.token_shape((64, 64)) == (5120,)
        assert two.bits((64, 64)) == bits_per_sample((512, 512), (32**2, 64**2)) == 46080
        assert 46080 / 64**2 == 11.25
        assert one.bits((64, 64)) < 46080 < hierarchy(4096).bits((64, 64))
        assert two.bits((5, 64, 64)) == 5 * 46080 == ProjectedQuantizer(two, 9).bits((5, 64, 64))
        metric = CodebookUsage(two.codebook_sizes)
        metric.update(two.encode(torch.randn(2, 16, 16, DIM)))
        assert metric.num_tokens == 2 * (64 + 256) and metric.bits_per_token() == 9
        assert [int(c.sum()) for c in metric.counts] == [2 * 64, 2 * 256]

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("initialization", ["samples", "kmeans"])
    def test_a_start_from_data_uses_every_code(self, seed: int, initialization: Any) -> None:
        torch.manual_seed(seed)
        levels = [VectorQuantizer(FreeCodebook(DIM, 64, initialization=initialization)) for _ in range(2)]
        quantizer, x = HierarchicalQuantizer(levels, DIM), 4 + torch.randn(4, 8, 8, DIM)  # 64 and 256 distinct vectors
        assert quantizer.wants_initialization
        quantizer.initialize_codebook(x)
        metric = CodebookUsage(quantizer.codebook_sizes)
        metric.update(quantizer.encode(x))
        shares = [float((counts > 0).float().mean()) for counts in metric.counts]
        assert shares[0] == 1.0  # as many codes as distinct vectors
        assert shares[1] == 1.0 or (initialization == "kmeans" and shares[1] > 0.95)

    def test_what_does_not_fit_is_refused(self) -> None:
        for arguments, message in (
            ({"quantizers": []}, "expected at least one quantizer"),
            ({"dim": 0}, "expected dim >= 1"),
            (
                {"dim": 3},
                "expected levels with values of size 3 made of vectors at least as large, got 4 of 4 at level 0",
            ),
            ({"width": 0}, "expected width >= 1"),
            ({"quantizers": [MultiScaleQuantizer(unit(), [2])]}, "expected levels that take every vector on its own"),
        ):
            given: dict[str, Any] = {"quantizers": [unit(), unit()], "dim": DIM, **arguments}
            with pytest.raises(ValueError, match=message):
                HierarchicalQuantizer(**given)
        for shape in ((4, 6), (3, 3), (4,)):
            with pytest.raises(ValueError, match=r"expected a square grid .* with H a multiple of 2"):
                hierarchy(8, 8)(torch.randn(1, *shape, DIM))
