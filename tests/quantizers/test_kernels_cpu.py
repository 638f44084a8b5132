"""The searches of a CPU against brute force in float64: blocks, groups and the two stages."""

from __future__ import annotations

import importlib.metadata
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gritvq.quantizers.functional as F
from gritvq.quantizers.kernels import BACKENDS, blocked, two_stage

SEARCHES = ("blocked", "two_stage", "faiss")
searches = pytest.mark.parametrize("name", SEARCHES)
SHAPES = [(1, 1, 1), (7, 5, 3), (300, 1025, 16), (65, 2049, 7), (700, 4097, 30), (1100, 2048, 64), (40, 20000, 33)]


def found_by(name: str, x: Tensor, codes: Tensor, cosine: bool = False) -> Tensor:
    return BACKENDS[name](*F._prepared(x, codes, cosine))


def distances(x: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(x.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")


@searches
class TestAgainstBruteForce:
    @pytest.mark.parametrize(("n", "k", "d"), SHAPES)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_odd_shapes(self, name: str, n: int, k: int, d: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        x, codes = torch.randn(n, d).to(dtype), torch.randn(k, d)
        assert torch.equal(found_by(name, x, codes), distances(x, codes).argmin(1))

    @pytest.mark.parametrize("mean", [0.0, 1000.0])
    def test_far_from_the_origin(self, name: str, mean: float) -> None:
        torch.manual_seed(0)
        x, codes = torch.randn(1500, 64) + mean, torch.randn(5000, 64) + mean
        all_distances = distances(x, codes)
        taken = all_distances.gather(1, found_by(name, x, codes)[:, None]).squeeze(1)
        least, second = all_distances.topk(2, largest=False).values.T
        assert bool((taken <= least * (1 + 1e-5)).all())
        assert torch.equal(taken[second > least * (1 + 1e-5)], least[second > least * (1 + 1e-5)])

    @pytest.mark.parametrize("size", [1e3, 1e6, 1e15])
    def test_one_runaway_code(self, name: str, size: float) -> None:
        torch.manual_seed(0)
        x, codes = torch.randn(500, 16), torch.randn(3000, 16)
        codes[1500] = size
        others = torch.arange(3000) != 1500
        expected = others.nonzero().squeeze(1)[distances(x, codes[others]).argmin(1)]
        assert torch.equal(found_by(name, x, codes), expected)

    @pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
    def test_vectors_near_codes(self, name: str, noise: float) -> None:
        torch.manual_seed(0)
        codes = torch.randn(4096, 48)
        own = torch.randint(4096, (1200,))
        assert torch.equal(found_by(name, codes[own] + noise * torch.randn(1200, 48), codes), own)

    def test_ties_go_to_the_lowest_index_also_across_groups(self, name: str) -> None:
        if name == "faiss" and tuple(map(int, importlib.metadata.version("faiss-cpu").split(".")[:2])) < (1, 15):
            pytest.skip("faiss before 1.15 takes any of equal codes, as its docstring says")
        torch.manual_seed(0)
        codes = torch.randn(37, 24).repeat(120, 1)
        x = torch.randn(600, 24)
        assert torch.equal(found_by(name, x, codes), found_by(name, x, codes[:37]))

    @pytest.mark.parametrize("k", [100, 4096])
    def test_rows_that_are_not_finite_get_0_and_disturb_nobody(self, name: str, k: int) -> None:
        torch.manual_seed(0)
        x, codes = torch.randn(300, 20), torch.randn(k, 20)
        expected = found_by(name, x, codes)
        for row, value in ((4, math.nan), (5, math.inf), (299, -math.inf)):
            x[row, row % 20] = value
            expected[row] = 0
        assert torch.equal(found_by(name, x, codes), expected)

    def test_cosine(self, name: str) -> None:
        torch.manual_seed(0)
        x, codes = torch.randn(600, 32) * torch.rand(600, 1), torch.randn(4100, 32) * torch.rand(4100, 1)
        unit_x, unit_codes = (torch.nn.functional.normalize(v.double(), dim=1) for v in (x, codes))
        assert torch.equal(found_by(name, x, codes, cosine=True), (unit_x @ unit_codes.T).argmax(1))

    def test_one_code_many_times(self, name: str) -> None:
        assert not found_by(name, torch.randn(300, 16), torch.ones(5000, 16)).any()

    def test_scales_that_float32_barely_holds(self, name: str) -> None:
        torch.manual_seed(0)
        x, codes = torch.randn(400, 32), torch.randn(4096, 32)
        expected = distances(x, codes).argmin(1)
        for scale in (2.0**-50, 2.0**50):
            assert torch.equal(found_by(name, x * scale, codes * scale), expected)


def a_cloud(kind: str, n: int, d: int) -> Tensor:
    """Vectors of distributions that rounding treats differently."""
    if kind == "gaussian":
        return torch.randn(n, d)
    if kind == "heavy tails":
        return torch.distributions.StudentT(2.0).sample((n, d))
    if kind == "one large component":
        return torch.randn(n, d) * torch.cat([torch.tensor([100.0]), torch.ones(d - 1)])
    if kind == "unequal lengths":
        return torch.randn(n, d) * torch.logspace(-3, 1, n)[torch.randperm(n), None]
    return torch.randn(n, 3) @ torch.randn(3, d)  # few dimensions


@pytest.mark.parametrize("kind", ["gaussian", "heavy tails", "one large component", "unequal lengths", "flat"])
@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_code_is_always_in_a_group_that_is_left(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    x, codes = a_cloud(kind, 200, 24), a_cloud(kind, 3000, 24)
    _, centered, bias, center = F._prepared(x, codes, False)
    groups = blocked.Groups(centered, bias)
    left = two_stage._RoughCodes(groups).possible(x - center)
    nearest = distances(x, codes).argmin(1)
    assert bool(left.gather(1, nearest[:, None] // groups.size).all())
    if kind == "gaussian":  # and it is a choice: most groups are out
        assert float(left.float().mean()) < 0.3


def test_rough_scores_are_within_their_bound() -> None:
    torch.manual_seed(0)
    x, codes = torch.randn(50, 16), torch.randn(1024, 16)
    groups = blocked.Groups(codes, codes.square().sum(1) / 2)
    rough, rows = two_stage._RoughCodes(groups), two_stage._Rounded.of(x)
    least = rough._least(rows, 0)
    true = codes.double().square().sum(1) / 2 - x.double() @ codes.double().T
    error = (least - true.unflatten(1, (-1, groups.size)).amin(2)).abs()
    step = rows.scale * rough.blocks[0][0].scale
    bound = rows.errors[:, None] * rough.bounds[0] + rows.lengths[:, None] * rough.bounds[1] + step
    assert bool((error <= bound).all()) and float(error.max()) > 0.02 * float(bound.min())


@pytest.mark.parametrize("reason", ["few dimensions", "float64", "a code is not finite"])
def test_two_stages_leave_to_one_what_they_cannot_gain_on(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plane = torch.randn(2, 32)
    x, codes = torch.randn(1000, 2) @ plane, torch.randn(8192, 2) @ plane
    if reason == "float64":
        x = x.double()
    if reason == "a code is not finite":
        codes[7] = math.nan
    expected = found_by("blocked", x, codes)
    given: list[int] = []

    def spy(x: Tensor, *rest: Any) -> Tensor:
        given.append(len(x))
        return blocked_search(x, *rest)

    blocked_search = blocked.search
    monkeypatch.setattr(blocked, "search", spy)
    assert torch.equal(found_by("two_stage", x, codes), expected)
    assert given == [1000]


def test_many_pairs_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, codes = torch.randn(500, 16), torch.randn(3000, 16)
    expected = found_by("blocked", x, codes)
    monkeypatch.setattr(blocked, "_CPU_ROWS", 32)  # room for the scores of 512 pairs
    assert torch.equal(found_by("blocked", x, codes), expected)
    assert torch.equal(found_by("two_stage", x, codes), expected)
