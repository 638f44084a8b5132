"""Assignments against plain formulas, statistics, brute force and optimality conditions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor
from torch.autograd import gradcheck

from gritvq import (
    Assignment,
    CodebookLoss,
    CommitmentLoss,
    ConvexAssignment,
    DecaySchedule,
    DirectionalReparameterization,
    EMAUpdate,
    FreeCodebook,
    LinearSchedule,
    NearestAssignment,
    SampledAssignment,
    SoftAssignment,
    SpaceFillingAssignment,
    VectorQuantizer,
)
from gritvq.quantizers.assignments import convex, soft, space_filling
from gritvq.quantizers.assignments.space_filling import _on_segment
from gritvq.quantizers.functional import nearest_code
from zoo import ASSIGNMENTS


def problem(num: int, size: int, dim: int, seed: int = 0, *, inside: bool = False) -> tuple[Tensor, Tensor]:
    """Vectors and codes in float64; the vectors random, or in the convex hull of the codes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(size, dim, dtype=torch.float64, generator=generator)
    if not inside:
        return torch.randn(num, dim, dtype=torch.float64, generator=generator), codes
    weights = torch.rand(num, size, dtype=torch.float64, generator=generator).log().neg() ** 3
    return weights / weights.sum(1, keepdim=True) @ codes, codes


def gradients(call: Callable[[Tensor, Tensor], Tensor], x: Tensor, codes: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    x, codes = x.clone().requires_grad_(), codes.clone().requires_grad_()
    first, second = torch.autograd.grad((call(x, codes) * g).sum(), (x, codes))
    return first, second


# --- soft -------------------------------------------------------------------------------------------------------------


def plain_mixture(x: Tensor, codes: Tensor, temperature: float, metric: str = "euclidean", noise: float | Tensor = 0.0):
    a, b = (F.normalize(x, dim=1), F.normalize(codes, dim=1)) if metric == "cosine" else (x, codes)
    squared = (a[:, None] - b[None]).square().sum(2)
    return torch.softmax((-squared + noise) / temperature, dim=1) @ codes


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("block", [1 << 22, 40])
def test_soft_is_the_plain_formula(metric: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft, "_BLOCK_PAIRS", block)
    x, codes = problem(23, 9, 4)
    assignment = SoftAssignment(0.7, metric=metric)
    indices, q = assignment(x, codes)
    torch.testing.assert_close(q, plain_mixture(x, codes, 0.7, metric), rtol=1e-12, atol=1e-12)
    assert torch.equal(indices, nearest_code(x, codes, metric))
    g = torch.randn_like(q)
    found = gradients(lambda x, c: assignment(x, c)[1], x, codes, g)
    expected = gradients(lambda x, c: plain_mixture(x, c, 0.7, metric), x, codes, g)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [SoftAssignment, SampledAssignment])
def test_cosine_gives_a_zero_vector_no_gradient(make: Callable[..., Assignment]) -> None:
    x, codes = (part.float() for part in problem(12, 9, 4))
    x[5] = 0
    x.requires_grad_()
    codes.requires_grad_()
    _, q = make(metric="cosine")(x, codes)
    of_x, of_codes = torch.autograd.grad(q.square().sum(), (x, codes))
    assert not of_x[5].any() and bool(of_x[:5].any(1).all()) and bool(of_x[6:].any(1).all())
    assert float(of_x.norm()) < 1e2 and float(of_codes.norm()) < 1e2


def test_soft_gradients_survive_a_common_offset_in_single_precision() -> None:
    x, codes = problem(50, 20, 4)
    g = torch.randn_like(x)
    expected = gradients(lambda x, c: plain_mixture(x, c, 1.0), x, codes, g)
    found = gradients(lambda x, c: SoftAssignment()(x, c)[1], (x + 100).float(), (codes + 100).float(), g.float())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_soft_at_zero_temperature_is_nearest(metric: str) -> None:
    x, codes = problem(200, 16, 4)
    hard = NearestAssignment(metric)(x, codes)
    for temperature in (1e-5, 1e-30, LinearSchedule(0.0, 0.0, num_steps=1)):
        assignment = SoftAssignment(temperature, metric=metric, harden=False)
        indices, q = assignment(x.float(), codes.float())
        assert torch.equal(indices, hard[0])
        torch.testing.assert_close(q, hard[1].float(), rtol=1e-4, atol=1e-4)


def test_soft_hardens_in_eval_unless_told() -> None:
    x, codes = problem(30, 8, 4)
    x, codes = x.float(), codes.float()
    hard, kept = SoftAssignment(0.5), SoftAssignment(0.5, harden=False)
    assert (hard.exact, kept.exact) == ("eval", "never")
    trained = kept(x, codes)[1]
    assert torch.equal(hard(x, codes)[1], trained)
    assert torch.equal(kept.eval()(x, codes)[1], trained)
    indices, q = hard.eval()(x, codes)
    assert torch.equal(q, codes[indices])
    g = torch.randn_like(x)
    of_x, of_codes = gradients(lambda x, c: hard(x, c)[1], x, codes, g)
    assert torch.equal(of_x, g) and torch.equal(of_codes, torch.zeros_like(codes).index_add_(0, indices, g))


def test_schedule_moves_with_the_updates() -> None:
    quantizer = VectorQuantizer(FreeCodebook(4, 8), SoftAssignment(DecaySchedule(2.0, factor=0.5, interval=1)))
    x = torch.randn(10, 4)
    codes = quantizer.codebook.codes()
    for temperature in (2.0, 1.0, 0.5):
        torch.testing.assert_close(quantizer(x).quantized, plain_mixture(x, codes, temperature))
        quantizer.update_codebook()
    sampled = SampledAssignment(LinearSchedule(1.0, 0.1, num_steps=1), scale=LinearSchedule(1.0, 2.0, num_steps=1))
    quantizer = VectorQuantizer(FreeCodebook(4, 8), sampled)
    assert quantizer.assignment.temperature() == 1.0
    quantizer(x)
    quantizer.update_codebook()
    torch.testing.assert_close(sampled.temperature(), torch.tensor(0.1))
    assert sampled.scale() == 2.0


# --- sampled ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.2, 3.0])
@pytest.mark.parametrize("straight_through", [False, True])
def test_sampled_frequencies_are_the_softmax(seed: int, temperature: float, straight_through: bool) -> None:
    torch.manual_seed(seed)
    x, codes = problem(1, 8, 2, seed)
    num = 40000
    assignment = SampledAssignment(temperature, scale=2.5, straight_through=straight_through)
    indices, _ = assignment(x.expand(num, 2).float(), codes.float())
    expected = num * torch.softmax(-(x - codes).square().sum(1) / 2.5, dim=0)
    observed = torch.bincount(indices, minlength=8)
    large = expected > 5
    statistic = ((observed - expected).square() / expected)[large].sum()
    assert statistic < 32, "chi-squared with at most 7 degrees of freedom passes that once in 25,000 times"


def own_noise(num: int, size: int) -> Tensor:
    """The Gumbel noise that the next pass will draw; leaves the global generator where it was."""
    state = torch.get_rng_state()
    seed = int(torch.randint(1 << 62, ()))
    torch.set_rng_state(state)
    uniform = torch.rand(num, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return -(-uniform.log()).log()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_sampled_is_the_plain_formula_on_its_noise(metric: str) -> None:
    x, codes = problem(30, 8, 4)
    g = torch.randn_like(x)
    noise = own_noise(30, 8)
    relaxed, hard = (
        SampledAssignment(0.6, scale=2.0, metric=metric, straight_through=through) for through in (False, True)
    )
    state = torch.get_rng_state()

    def run(assignment: Assignment) -> Callable[[Tensor, Tensor], Tensor]:
        def call(x: Tensor, codes: Tensor) -> Tensor:
            torch.set_rng_state(state)
            return assignment(x, codes)[1]

        return call

    def plain(x: Tensor, codes: Tensor) -> Tensor:
        return plain_mixture(x, codes, 1.2, metric, 2.0 * noise)

    torch.testing.assert_close(run(relaxed)(x, codes), plain(x, codes), rtol=1e-10, atol=1e-12)
    expected = gradients(plain, x, codes, g)
    torch.testing.assert_close(gradients(run(relaxed), x, codes, g), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradients(run(hard), x, codes, g), expected, rtol=1e-9, atol=1e-11)
    torch.set_rng_state(state)
    indices, q = hard(x, codes)
    assert torch.equal(q, codes[indices])
    a, b = (F.normalize(x, dim=1), F.normalize(codes, dim=1)) if metric == "cosine" else (x, codes)
    assert torch.equal(indices, (noise - torch.cdist(a, b).square() / 2.0).argmax(1))


def test_sampled_blocks_see_the_same_noise_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft, "_BLOCK_PAIRS", 16)
    x, codes = problem(5, 6, 3)
    assignment = SampledAssignment(0.9)

    def call(x: Tensor, codes: Tensor) -> Tensor:
        torch.manual_seed(4)
        return assignment(x, codes)[1]

    assert gradcheck(call, (x.requires_grad_(), codes.requires_grad_()), atol=1e-6, rtol=1e-5)


def test_sampled_declares_what_it_does() -> None:
    relaxed, hard = SampledAssignment(), SampledAssignment(straight_through=True)
    assert (relaxed.exact, hard.exact) == ("eval", "always") and relaxed.draws_indices
    x, codes = torch.randn(500, 4), torch.randn(8, 4)
    assert not torch.equal(hard(x, codes)[0], hard(x, codes)[0])
    indices, q = relaxed.eval()(x, codes)
    assert torch.equal(indices, nearest_code(x, codes)) and torch.equal(q, codes[indices])
    quantizer = VectorQuantizer(FreeCodebook(4, 8), hard)
    assert quantizer.draws_indices and quantizer.exact == "always"
    with pytest.raises(ValueError, match="one source of changes to the codes"):
        VectorQuantizer(FreeCodebook(4, 8), relaxed, learning=[EMAUpdate()])


def test_nothing_of_size_pairs_is_kept() -> None:
    x, codes = torch.randn(2000, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    for assignment in (SoftAssignment(), SampledAssignment(), SpaceFillingAssignment()):
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):  # noqa: B023
            assignment(x, codes)
        assert max(saved) <= x.numel(), type(assignment).__name__


# --- space-filling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0, 1])
def test_space_filling_at_an_end_is_noiseless_diveq(end: int) -> None:
    x, codes = problem(20, 40, 3)
    corners = codes[:20], codes[20:]
    g = torch.randn_like(x)
    position = torch.full((20, 1), float(end), dtype=torch.float64)
    straight = DirectionalReparameterization(0.0)
    x = x.requires_grad_()
    first, second = (c.clone().requires_grad_() for c in corners)
    value = _on_segment(x, first, second, position)
    assert torch.equal(value, corners[end])
    found = torch.autograd.grad((value * g).sum(), (x, first, second))
    target = corners[end].clone().requires_grad_()
    expected = torch.autograd.grad((straight(x, target) * g).sum(), (x, target))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1 + end], expected[1])
    torch.testing.assert_close(found[2 - end], torch.zeros_like(x))


def test_space_filling_trains_by_its_formula() -> None:
    x, codes = problem(200, 12, 3)
    assignment = SpaceFillingAssignment()
    state = torch.get_rng_state()
    share = torch.rand(11, 1, dtype=torch.float64)
    g = torch.randn_like(x)
    torch.set_rng_state(state)
    indices, q = assignment(x, codes)
    points = codes[:-1] + share * (codes[1:] - codes[:-1])
    assert torch.equal(indices, torch.cdist(x, points).argmin(1)) and int(indices.max()) <= 10
    torch.testing.assert_close(q, points[indices], rtol=1e-12, atol=1e-12)

    def plain(x: Tensor, codes: Tensor) -> Tensor:
        first, second, part = codes[indices], codes[indices + 1], share[indices]
        d, e = ((c - x).norm(dim=1, keepdim=True) for c in (first, second))
        return x + d * ((1 - part) * (first - x) / d).detach() + e * (part * (second - x) / e).detach()

    def run(x: Tensor, codes: Tensor) -> Tensor:
        torch.set_rng_state(state)
        return assignment(x, codes)[1]

    torch.testing.assert_close(gradients(run, x, codes, g), gradients(plain, x, codes, g), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("entries", [1 << 19, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_space_filling_eval_projects_onto_the_polyline(
    entries: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space_filling, "_CPU_BLOCK_ENTRIES", entries)
    x, codes = problem(300, 12, 3)
    codes[5] = codes[4]  # a segment without length
    indices, q = SpaceFillingAssignment().eval()(x.to(dtype), codes.to(dtype))
    best = torch.full((300,), math.inf, dtype=torch.float64)
    nearest = torch.zeros_like(x)
    for first, second in itertools.pairwise(codes):
        edge = second - first
        t = ((x - first) @ edge / edge.dot(edge).clamp_min(1e-300)).clamp(0, 1)
        point = first + t[:, None] * edge
        distance = (x - point).norm(dim=1)
        nearest = torch.where((distance < best)[:, None], point, nearest)
        best = torch.minimum(best, distance)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close((x - q).norm(dim=1), best, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(q.double(), nearest, rtol=10 * tolerance, atol=10 * tolerance)
    assert int(indices.max()) <= 10
    assert bool((best <= (x - NearestAssignment()(x, codes)[1]).norm(dim=1) + 1e-12).all())


def test_space_filling_stays_finite_where_distances_vanish() -> None:
    codes = torch.zeros(4, 3, requires_grad=True)
    x = torch.zeros(5, 3, requires_grad=True)
    for training in (True, False):
        _, q = SpaceFillingAssignment().train(training)(x, codes)
        for gradient in torch.autograd.grad(q.sum(), (x, codes)):
            assert bool(torch.isfinite(gradient).all())
    with pytest.raises(ValueError, match="expected at least 2 codes"):
        VectorQuantizer(FreeCodebook(3, 1), SpaceFillingAssignment())(x)


def test_space_filling_gives_a_corner_its_own_index() -> None:
    codes = torch.randn(30, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = 40 * torch.nn.functional.normalize(torch.randn(400, 3, dtype=torch.float64), dim=1)
    indices, q = SpaceFillingAssignment().eval()(x, codes)
    to_corners = torch.cdist(q, codes)
    on_corner = to_corners.amin(1) < 1e-12
    assert int(on_corner.sum()) > 200 and len(indices[on_corner].unique()) > 5
    assert torch.equal(indices[on_corner], to_corners.argmin(1)[on_corner].clamp_max(28))
    for start in (0, 7):  # whatever else is in the batch
        assert torch.equal(SpaceFillingAssignment().eval()(x[start:].float(), codes.float())[0], indices[start:])


# --- convex -----------------------------------------------------------------------------------------------------------


def objective(x: Tensor, codes: Tensor, p: Tensor, penalty: float) -> Tensor:
    start = F.one_hot(nearest_code(x, codes), len(codes)).to(p)
    return (x - p @ codes).square().sum(1) + penalty * (p - start).square().sum(1)


def slacks(x: Tensor, codes: Tensor, penalty: float) -> Tensor:
    """By how much each code's slope exceeds the mean one: at an optimum none is negative, and 0 where weights are."""
    p = ConvexAssignment(penalty).weights(x, codes)
    slope = (p @ codes - x) @ codes.T + penalty * (p - F.one_hot(nearest_code(x, codes), len(codes)))
    return slope - (p * slope).sum(1, keepdim=True)


def relative_error(x: Tensor, q: Tensor) -> float:
    return float((q - x).norm() / x.norm())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("size", "dim"), [(128, 8), (128, 64), (256, 16)])
def test_convex_reconstructs_what_lies_in_the_hull(size: int, dim: int, seed: int) -> None:
    x, codes = problem(48, size, dim, seed, inside=True)
    _, q = ConvexAssignment(1e-3)(x.float(), codes.float())
    error, of_vq = relative_error(x, q), relative_error(x, NearestAssignment()(x, codes)[1])
    assert error < 1e-2 and 100 * error < of_vq


@pytest.mark.parametrize("penalty", [1e-6, 1e-3, 0.1, 1.0, 1e3, 1e6])
@pytest.mark.parametrize(("size", "dim"), [(40, 3), (40, 12), (10, 24), (1, 4)])
@pytest.mark.parametrize("inside", [False, True])
def test_convex_weights_are_optimal(penalty: float, size: int, dim: int, inside: bool) -> None:
    x, codes = problem(60, size, dim, inside=inside)
    exact = ConvexAssignment(penalty)
    p = exact.weights(x, codes)
    assert bool((p >= 0).all()) and float((p.sum(1) - 1).abs().max()) < 1e-12
    torch.testing.assert_close(exact(x, codes)[1], p @ codes)
    start = F.one_hot(nearest_code(x, codes), size).to(p)
    slack, scale = slacks(x, codes, penalty), float(codes.square().sum(1).mean()) + penalty
    assert float(slack.min()) > -1e-6 * scale
    assert float((p * slack).abs().max()) < (1e-10 if penalty >= 1e-3 else 1e-7) * scale
    found = objective(x, codes, p, penalty)
    assert bool((found <= objective(x, codes, start, penalty) * (1 + 1e-9) + 1e-12).all())
    relaxed = ConvexAssignment(penalty, relaxed=True).weights(x, codes)
    assert bool((relaxed >= 0).all()) and float((relaxed.sum(1) - 1).abs().max()) < 1e-6
    assert bool((found <= objective(x, codes, relaxed, penalty) * (1 + 1e-9) + 1e-12).all())


def test_convex_agrees_with_an_independent_solver() -> None:
    penalty, force = 0.1, 1e5
    x, codes = problem(20, 24, 4)
    nearest = nearest_code(x, codes)
    _, q = ConvexAssignment(penalty)(x, codes)
    matrix = np.vstack([codes.T.numpy(), math.sqrt(penalty) * np.eye(24), force * np.ones((1, 24))])
    for row, index, value in zip(x, nearest, q, strict=True):
        start = np.eye(24)[int(index)]
        p, _ = nnls(matrix, np.concatenate([row.numpy(), math.sqrt(penalty) * start, [force]]))
        torch.testing.assert_close(value, torch.from_numpy(p) @ codes, rtol=1e-6, atol=1e-6)


def test_convex_with_a_huge_penalty_is_nearest() -> None:
    x, codes = problem(500, 64, 8)
    for relaxed in (False, True):
        _, q = ConvexAssignment(1e6, relaxed=relaxed)(x.float(), codes.float())
        assert relative_error(NearestAssignment()(x, codes)[1], q) < 1e-4


@pytest.mark.parametrize(("size", "dim"), [(9, 3), (4, 6), (6, 6), (1, 2)])
@pytest.mark.parametrize("penalty", [1e-2, 1.0])
@pytest.mark.parametrize("inside", [False, True])
def test_convex_gradient_is_that_of_finite_differences(size: int, dim: int, penalty: float, inside: bool) -> None:
    x, codes = problem(40, size, dim, inside=inside)
    assignment = ConvexAssignment(penalty)
    p, slack = assignment.weights(x, codes), slacks(x, codes, penalty)
    x = x[(torch.maximum(p, slack) > 1e-3).all(1)][:3]  # differences must not reach across a change of support
    assert len(x) == 3
    inputs = (x.requires_grad_(), codes.requires_grad_())
    random_direction = size != 9  # one shape entry by entry
    tolerance = dict(eps=1e-6, atol=1e-6, rtol=0.0, nondet_tol=0.0)
    assert gradcheck(lambda x, c: assignment(x, c)[1], inputs, fast_mode=random_direction, **tolerance)


def test_convex_gradient_in_a_larger_problem_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convex, "_CPU_BLOCK_ENTRIES", 1 << 12)
    x, codes = problem(100, 256, 16, inside=True)
    assignment = ConvexAssignment(1e-2)
    torch.manual_seed(0)
    g, dx, dc = torch.randn_like(x), torch.randn_like(x), torch.randn_like(codes)
    of_x, of_codes = gradients(lambda x, c: assignment(x, c)[1], x, codes, g)
    step = 1e-6
    up, down = (assignment(x + s * dx, codes + s * dc)[1] for s in (step, -step))
    slope = float((((up - down) / (2 * step)) * g).sum())
    analytic = float((of_x * dx).sum() + (of_codes * dc).sum())
    assert abs(slope - analytic) < 1e-6 * abs(analytic) + 1e-6


def test_convex_survives_degenerate_problems() -> None:
    x, codes = problem(30, 16, 4)
    codes[8:] = codes[:8]  # every code twice
    x[:16] = codes  # vectors on codes
    for penalty in (1e-8, 0.1, 1e8):
        for relaxed in (False, True):
            assignment = ConvexAssignment(penalty, relaxed=relaxed)
            assert float((assignment.weights(x, codes).sum(1) - 1).abs().max()) < 1e-6
            for gradient in gradients(lambda x, c: assignment(x, c)[1], x, codes, torch.ones_like(x)):  # noqa: B023
                assert bool(torch.isfinite(gradient).all())
    same = torch.ones(4, 3)
    assert torch.equal(ConvexAssignment()(same, same)[1], same)
    assert ConvexAssignment()(x[:0], codes)[1].shape == (0, 4)


def test_convex_stopped_early_still_returns_weights() -> None:
    x, codes = problem(30, 64, 4)
    p = ConvexAssignment(0.01, num_iterations=1).weights(x, codes)
    assert bool((p >= 0).all()) and float((p.sum(1) - 1).abs().max()) < 1e-6


def simplex(v: np.ndarray) -> np.ndarray:
    """Nearest point of the simplex by bisection on the threshold."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - low, 0)


@pytest.mark.parametrize(("size", "dim"), [(9, 3), (4, 6)])
def test_relaxed_is_the_linear_system_and_the_projection(size: int, dim: int) -> None:
    x, codes = problem(12, size, dim)
    start = F.one_hot(nearest_code(x, codes), size).double()
    matrix = codes @ codes.T + 0.3 * torch.eye(size, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, codes @ x.T + 0.3 * start.T).T
    projected = torch.from_numpy(np.stack([simplex(row) for row in expected.numpy()]))
    assignment = ConvexAssignment(0.3, relaxed=True)
    torch.testing.assert_close(assignment.weights(x, codes), projected, rtol=1e-9, atol=1e-9)
    _, q = assignment(x, codes)
    torch.testing.assert_close(q, projected @ codes, rtol=1e-9, atol=1e-9)
    inputs = (x.requires_grad_(), codes.requires_grad_())
    assert gradcheck(lambda x, c: assignment(x, c)[1], inputs, atol=1e-6, rtol=1e-5)


def test_relaxed_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes = problem(50, 10, 4)
    assignment, g = ConvexAssignment(relaxed=True), torch.randn(50, 4, dtype=torch.float64)
    whole = gradients(lambda x, c: assignment(x, c)[1], x, codes, g)
    monkeypatch.setattr(convex, "_BLOCK_ENTRIES", 60)
    torch.testing.assert_close(gradients(lambda x, c: assignment(x, c)[1], x, codes, g), whole)


def test_two_losses_have_the_gradient_of_the_loss_without_stop() -> None:
    """What soft convex quantization trains with: ``mean |x - q|^2 / D``, through the combination."""
    x = torch.randn(20, 4, requires_grad=True)
    quantizer = VectorQuantizer(FreeCodebook(4, 8), ConvexAssignment(), learning=[CodebookLoss(1.0), CommitmentLoss(1)])
    output = quantizer(x)
    found = torch.autograd.grad(output.loss, (x, *quantizer.parameters()), retain_graph=True)
    expected = torch.autograd.grad((x - output.quantized).square().mean(), (x, *quantizer.parameters()))
    torch.testing.assert_close(found, expected)


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_masked_vectors_add_nothing_to_the_codes(name: str) -> None:
    quantizer = VectorQuantizer(FreeCodebook(4, 8), ASSIGNMENTS[name](), learning=[CodebookLoss(), CommitmentLoss()])
    quantizer.eval()  # the same draws are not needed
    x, mask = torch.randn(20, 4), torch.arange(20) < 12
    results = []
    for vectors, valid in ((x, mask), (x[:12], None)):
        quantizer.zero_grad()
        quantizer(vectors, valid).quantized.square().sum().backward()
        (parameter,) = quantizer.parameters()
        results.append(torch.zeros(8, 4) if parameter.grad is None else parameter.grad.clone())
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftAssignment(0.0), "expected temperature > 0, got 0.0; for hard codes"),
        (lambda: SoftAssignment(metric="l1"), "expected metric 'euclidean' or 'cosine', got 'l1'"),  # type: ignore
        (lambda: SampledAssignment(float("nan")), "expected temperature > 0, got nan"),
        (lambda: SampledAssignment(scale=-1.0), "expected scale > 0, got -1.0"),
        (lambda: ConvexAssignment(0.0), "expected penalty > 0, got 0.0"),
        (lambda: ConvexAssignment(num_iterations=0), "expected num_iterations >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], Assignment], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
