"""Stateless mathematics against brute force in float64, scikit-learn and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

import gritvq.quantizers.functional as F


def brute_force(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and squared distances in float64, by differences."""
    best = torch.full((len(x),), math.inf, dtype=torch.float64)
    index = torch.zeros(len(x), dtype=torch.int64)
    for k, code in enumerate(codes.double()):
        distance = (x.double() - code).square().sum(1)
        index = torch.where(distance < best, k, index)
        best = torch.minimum(best, distance)
    return index, best


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestNearestCode:
    @pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 5, 3), (300, 1025, 16), (1100, 64, 2), (65, 2049, 7)])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_equals_brute_force_on_odd_shapes(self, n: int, k: int, d: int, dtype: torch.dtype) -> None:
        x, codes = torch.randn(n, d).to(dtype), torch.randn(k, d)
        assert torch.equal(F.nearest_code(x, codes), brute_force(x, codes)[0])

    @pytest.mark.parametrize("mean", [0.0, 100.0, 1000.0])
    def test_right_far_from_the_origin(self, mean: float) -> None:
        x, codes = torch.randn(500, 64) + mean, torch.randn(1024, 64) + mean
        found = F.nearest_code(x, codes)
        expected, best = brute_force(x, codes)
        distance = (x.double() - codes[found].double()).square().sum(1)
        assert float((found != expected).float().mean()) <= 0.002  # ties within rounding only:
        assert bool(((distance - best) <= 1e-5 * best).all())

    @pytest.mark.parametrize("size", [1e3, 1e5, 1e6])
    @pytest.mark.parametrize("k", [64, 3000])
    def test_one_runaway_code_misleads_nobody(self, size: float, k: int) -> None:
        x, codes = torch.randn(500, 16), torch.randn(k, 16)
        codes[k // 2] = size
        assert torch.equal(F.nearest_code(x, codes), brute_force(x, codes)[0])

    def test_ties_go_to_the_lowest_index_also_across_blocks(self) -> None:
        codes = torch.randn(8, 4).repeat(600, 1)  # blocks hold 1024 codes
        x = torch.randn(50, 4)
        found = F.nearest_code(x, codes)
        assert int(found.max()) < 8 and torch.equal(found, F.nearest_code(x, codes[:8]))

    def test_cosine_compares_directions(self) -> None:
        x, codes = torch.randn(200, 5), torch.randn(64, 5) * torch.rand(64, 1)
        unit_x, unit_codes = (torch.nn.functional.normalize(v.double(), dim=1) for v in (x, codes))
        assert torch.equal(F.nearest_code(x, codes, "cosine"), (unit_x @ unit_codes.T).argmax(1))

    def test_autocast_changes_nothing(self) -> None:
        x, codes = torch.randn(400, 16), torch.randn(128, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(F.nearest_code(x, codes), brute_force(x, codes)[0])

    def test_non_finite_rows_get_index_0_and_leave_the_others(self) -> None:
        x, codes = torch.randn(10, 3), torch.randn(5, 3)
        expected = F.nearest_code(x, codes)
        x[4] = float("nan")
        found = F.nearest_code(x, codes)
        assert found[4] == 0 and torch.equal(found[:4], expected[:4]) and torch.equal(found[5:], expected[5:])

    def test_never_holds_all_pairs(self) -> None:
        n = k = 16384  # all pairs in float32 would be a gigabyte
        x, codes = torch.randn(n, 4), torch.randn(k, 4)
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            F.nearest_code(x, codes)
        live = peak = 0
        for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        assert 0 < peak <= 64 * 2**20

    def test_empty(self) -> None:
        assert F.nearest_code(torch.zeros(0, 3), torch.randn(5, 3)).shape == (0,)

    def test_bad_arguments(self) -> None:
        for x, codes in (
            (torch.zeros(2, 3), torch.zeros(4, 2)),
            (torch.zeros(3), torch.zeros(4, 3)),
            (torch.zeros(2, 3), torch.zeros(0, 3)),
        ):
            with pytest.raises(ValueError, match="expected vectors"):
                F.nearest_code(x, codes)
        with pytest.raises(ValueError, match="expected metric"):
            F.nearest_code(torch.zeros(2, 3), torch.zeros(4, 3), "manhattan")  # type: ignore[arg-type]


class TestKMeans:
    def test_as_good_as_scikit_learn(self) -> None:
        x = torch.cat([torch.randn(200, 4) * 0.3 + center for center in 3 * torch.randn(12, 4)])
        reference = KMeans(40, n_init=1, init="random", max_iter=10, random_state=0).fit(x.numpy()).inertia_
        inertia = [
            float(brute_force(x, F.kmeans(x, 40, generator=torch.Generator().manual_seed(s)))[1].sum())
            for s in range(5)
        ]
        assert sorted(inertia)[2] <= 1.05 * reference

    def test_one_iteration_is_one_lloyd_step(self) -> None:
        x = torch.randn(500, 3, dtype=torch.float64)
        start = F.sample_rows(x, 8, seeded(0))
        found = F.kmeans(x, 8, num_iterations=1, generator=seeded(0))
        reference = KMeans(8, init=start.numpy(), n_init=1, max_iter=1).fit(x.numpy())
        np.testing.assert_allclose(found.numpy(), reference.cluster_centers_, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(("n", "k"), [(100, 256), (1, 16), (300, 256)])
    def test_no_code_is_zero_or_twice(self, n: int, k: int) -> None:
        x = torch.randn(n, 8) + 3
        codes = F.kmeans(x, k, generator=seeded(0))
        assert codes.shape == (k, 8) and bool((codes.norm(dim=1) > 1).all())
        assert float(torch.pdist(codes).min()) > 0

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("n", [1, 5, 100])
    def test_identical_rows_give_codes_apart(self, n: int, metric: F.Metric) -> None:
        x = torch.tensor([[3.0, 4.0]]).expand(n, 2)
        codes = F.kmeans(x, 16, generator=seeded(0), metric=metric)
        assert codes.unique(dim=0).shape == (16, 2)
        center = x[0] / 5 if metric == "cosine" else x[0]
        assert float((codes - center).norm(dim=1).max()) < 0.1

    def test_fills_empty_clusters(self) -> None:
        x = torch.cat([torch.zeros(1000, 2) + 1e-3 * torch.randn(1000, 2), 10 + torch.randn(24, 2)])
        codes = F.kmeans(x, 64, num_iterations=20, generator=seeded(0))
        assert F.nearest_code(x, codes).unique().numel() == 64

    def test_non_finite_rows_are_left_out_and_cosine_gives_unit_codes(self) -> None:
        x = torch.randn(200, 4)
        x[3, 1] = float("inf")
        codes = F.kmeans(x, 16, metric="cosine", generator=seeded(0))
        torch.testing.assert_close(codes.norm(dim=1), torch.ones(16))
        with pytest.raises(ValueError, match="at least one finite vector"):
            F.kmeans(torch.full((3, 2), float("nan")), 2)


def test_sample_rows_draws_distinct_rows() -> None:
    x = torch.arange(20.0)[:, None]
    drawn = F.sample_rows(x, 20, seeded(0))
    assert torch.equal(drawn.sort(dim=0).values, x) and not torch.equal(drawn, x)
    more = F.sample_rows(x, 50, seeded(0))
    assert torch.equal(more[:20].sort(dim=0).values, x) and more.unique(dim=0).shape == (50, 1)
    assert float((more.round() - more).abs().max()) < 0.5  # jitter is 1 % of the spread


counts = st.lists(st.integers(0, 50), min_size=1, max_size=20)


@given(counts)
@settings(max_examples=50, deadline=None)
def test_perplexity_against_numpy(histogram: list[int]) -> None:
    values = np.array(histogram, dtype=float)
    found = float(F.perplexity(torch.tensor(histogram)))
    if values.sum() == 0:
        assert found == 0
    else:
        p = values[values > 0] / values.sum()
        assert found == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
        assert 1 - 1e-5 <= found <= len(values) * (1 + 1e-5)


def test_perplexity_does_not_depend_on_the_scale_of_the_counts() -> None:
    counts = torch.tensor([[1.0, 1.0, 0.0], [1.0, 3.0, 4.0], [0.0, 0.0, 0.0]])
    p = np.array([1, 3, 4]) / 8
    expected = torch.tensor([2.0, float(np.exp(-(p * np.log(p)).sum())), 0.0])
    for scale in (1e-9, 0.1, 1.0, 1e4):
        torch.testing.assert_close(F.perplexity(scale * counts), expected)


@given(st.lists(st.integers(0, 6), max_size=40))
@settings(max_examples=50, deadline=None)
def test_counts_and_sums_against_numpy(indices: list[int]) -> None:
    index = torch.tensor(indices, dtype=torch.int64)
    x = torch.arange(2.0 * len(indices)).view(-1, 2)
    expected = np.zeros((7, 2))
    np.add.at(expected, np.array(indices, dtype=int), x.numpy())
    assert np.array_equal(F.code_counts(index, 7).numpy(), np.bincount(indices, minlength=7))
    assert np.array_equal(F.code_sums(x, index, 7).numpy(), expected)


def test_squared_distance_against_differences() -> None:
    x, codes = torch.randn(30, 5) + 100, torch.randn(20, 5) + 100
    expected = (x.double()[:, None] - codes.double()).square().sum(-1)
    torch.testing.assert_close(F.squared_distance(x, codes).double(), expected, rtol=1e-4, atol=1e-4)
    assert F.squared_distance(x.double(), codes).dtype == torch.float64


def test_half_precision_changes_no_distance() -> None:
    x, codes = (30 + torch.randn(40, 16)).bfloat16(), (30 + torch.randn(64, 16)).bfloat16()
    assert torch.equal(F.squared_distance(x, codes), F.squared_distance(x.float(), codes.float()))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_autocast_changes_no_distance(metric: F.Metric) -> None:
    x, codes = torch.randn(40, 16), torch.randn(64, 16)
    squared, nearest = F.squared_distance(x, codes), F.nearest_codes(x, codes, 5, metric)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = F.squared_distance(x, codes), F.nearest_codes(x, codes, 5, metric)
    assert torch.equal(found[1], nearest)
    assert torch.equal(found[0], squared)


def test_unit_length_is_normalize_but_for_the_gradient_of_short_vectors() -> None:
    x = torch.randn(5, 3, 4)
    x[1, 1:] = torch.tensor([[0.0], [2e-7]])
    x.requires_grad_()
    unit, plain = F.to_unit_length(x), torch.nn.functional.normalize(x, dim=-1)
    assert torch.equal(unit, plain)
    g = torch.randn_like(x)
    (found,), (expected,) = torch.autograd.grad(unit, x, g), torch.autograd.grad(plain, x, g)
    assert float(expected[1, 1].norm()) > 1e11 and not found[1, 1:].any()
    found[1, 1:] = expected[1, 1:]
    assert torch.equal(found, expected)


def test_effective_rank_and_bits() -> None:
    flat = torch.zeros(50, 8)
    flat[:, 0] = torch.randn(50)
    assert F.effective_rank(flat) == pytest.approx(1.0)
    assert F.effective_rank(torch.randn(20000, 8)) == pytest.approx(8.0, rel=1e-2)
    assert F.effective_rank(torch.ones(5, 3)) == 0
    assert F.bits_per_token((4096,)) == 12 and F.bits_per_token((8, 8, 2)) == 7


def test_a_crowded_code_is_split_in_proportion_to_its_members_beyond_one() -> None:
    generator, codes, counts = torch.Generator().manual_seed(0), torch.zeros(4, 1), torch.tensor([0, 2, 3, 6])
    split = torch.zeros(4)
    for _ in range(2000):
        moved = F._split_crowded(codes, counts, torch.ones(1), generator)
        assert torch.equal(moved.nonzero()[0], torch.tensor([0, 0]))  # the empty one goes beside it
        split += (moved != 0)[:, 0]
    share = torch.tensor([8.0, 1.0, 2.0, 5.0]) / 8
    # Four standard errors of a share of 2000 draws.
    torch.testing.assert_close(split / 2000, share, rtol=0, atol=4 * 0.5 / math.sqrt(2000))
