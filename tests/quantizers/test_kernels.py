"""The fused kernels against brute force in float64 and plain PyTorch: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gritvq.quantizers.functional as G
from gritvq import NearestAssignment
from gritvq.quantizers import kernels
from gritvq.quantizers.kernels import fused

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed; pip install gritvq[gpu]", allow_module_level=True)
if torch.cuda.is_available() and not fused.supported():
    pytest.skip("the GPU of this machine runs no fused kernels", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 2.0**-24


@pytest.fixture(autouse=True)
def _fused() -> Iterator[None]:
    with kernels.using("fused"):
        yield


@pytest.fixture(params=[1, 6], ids=["whole", "split"])
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Forces the search to give its codes to one program or to several."""
    monkeypatch.setattr(fused, "_programs", lambda device: request.param)
    return request.param


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def check(x: Tensor, codes: Tensor, found: Tensor, bits: int = 24) -> None:
    """Indices are those of brute force wherever the best two scores are further apart than rounding, else near them."""
    x, codes, found = x.double().cpu(), codes.double().cpu(), found.cpu()
    distance = (x[:, None] - codes).square().sum(2)
    size = torch.cat([x, codes]).sub(G.central_code(codes)).square().sum(1).max()  # bounds sum_d |x_d c_d|
    rounding = (x.shape[1] * EPS + 4 * 2.0**-bits) * size
    expected = distance.argmin(1)
    best = distance.topk(min(2, len(codes)), largest=False).values
    clear = best[:, -1] - best[:, 0] > 4 * rounding if len(codes) > 1 else torch.ones(len(x), dtype=torch.bool)
    assert torch.equal(found[clear], expected[clear])
    assert bool((distance[torch.arange(len(x)), found] - best[:, 0] <= 4 * rounding).all())
    if bits == 24:
        assert float(clear.float().mean()) > 0.9  # else this checked little


@pytest.mark.parametrize(
    ("n", "k", "d"), [(1, 1, 1), (1, 300, 5), (70, 1, 16), (3, 129, 33), (65, 140, 30), (9, 130, 200), (2, 40, 1030)]
)
@pytest.mark.parametrize("mean", [pytest.param(0.0, marks=pytest.mark.soak), 1000.0])  # the interpreter is slow
def test_equals_brute_force_on_odd_shapes(n: int, k: int, d: int, mean: float, programs: int) -> None:
    x, codes = randn(n, d) + mean, randn(k, d) + mean
    check(x, codes, G.nearest_code(x, codes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codes_dtype", [torch.float64, torch.float32, torch.float16])
def test_takes_all_types(dtype: torch.dtype, codes_dtype: torch.dtype) -> None:
    x, codes = randn(40, 7, dtype=dtype), randn(90, 7, dtype=codes_dtype)
    check(x, codes, G.nearest_code(x, codes))


def test_products_keep_all_bits_of_float32() -> None:
    """Codes at almost one distance from the vector, in very different places: products of 16 bits confuse them."""
    for _ in range(15):
        x, directions = randn(1, 4), F.normalize(randn(120, 4).abs(), dim=1)
        codes = x + directions * (1 + 2e-6 * torch.randperm(120, device=DEVICE)[:, None])
        check(x, codes, G.nearest_code(x, codes))


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 10), ("bf16", 8)])
@pytest.mark.parametrize("d", [24, pytest.param(150, marks=pytest.mark.soak), 270])
def test_lower_precisions_are_as_good_as_their_bits(precision: Any, bits: int, d: int, programs: int) -> None:
    x, codes = randn(20, d) + 1000, randn(140, d) + 1000
    check(x, codes, G.nearest_code(x, codes, precision=precision), bits)


def test_ties_go_to_the_lowest_index(programs: int) -> None:
    codes = randn(8, 4).repeat(80, 1)
    x = randn(50, 4)
    found = G.nearest_code(x, codes)
    assert int(found.max()) < 8 and torch.equal(found, G.nearest_code(x, codes[:8]))
    assert not G.nearest_code(x, codes[:1].expand(700, 4)).any()


def test_splits_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes = 3 * randn(70, 6), randn(600, 6)  # scores of both signs
    results = []
    for number in (1, 2, 3, 100):
        monkeypatch.setattr(fused, "_programs", lambda device, number=number: number)
        results.append(G.nearest_code(x, codes))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("d", "value"),
    [(3, float("nan")), (300, float("-inf"))]
    + [pytest.param(d, value, marks=pytest.mark.soak) for d, value in ((300, float("nan")), (3, float("-inf")))],
)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_rows_that_are_not_finite_get_index_0(d: int, value: float, precision: Any, programs: int) -> None:
    x, codes = randn(4, d), randn(140, d)
    expected = G.nearest_code(x, codes, precision=precision)
    x[1, 0] = x[3, d - 1] = value
    expected[[1, 3]] = 0
    assert torch.equal(G.nearest_code(x, codes, precision=precision), expected)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e20])
def test_one_runaway_code_misleads_nobody(size: float) -> None:
    x, codes = randn(50, 16), randn(260, 16)
    codes[130] = size
    expected = (x[:, None].double() - codes.double()).square().sum(2).argmin(1)
    assert torch.equal(G.nearest_code(x, codes), expected)


def test_cosine_compares_directions(programs: int) -> None:
    x, codes = 5 * randn(60, 5), randn(200, 5) * torch.rand(200, 1, device=DEVICE)
    unit_x, unit_codes = F.normalize(x.double(), dim=1), F.normalize(codes.double(), dim=1)
    check(unit_x, unit_codes, G.nearest_code(x, codes, "cosine"))


def test_reads_views() -> None:
    codes = randn(40, 5)
    for x in (randn(5, 30).T, randn(30, 9)[:, 2:7], randn(60, 5)[::2], randn(1, 5).expand(30, 5)):
        assert torch.equal(G.nearest_code(x, codes.T.contiguous().T), G.nearest_code(x.contiguous(), codes))


def test_empty() -> None:
    x, codes = randn(0, 3).bfloat16(), randn(5, 3)
    assert G.nearest_code(x, codes).shape == (0,)
    assert not G.code_sums(x, G.nearest_code(x, codes), 4).any()


def test_every_configuration_of_the_tuning_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes = randn(130, 16), randn(150, 16)
    results = []
    torch.use_deterministic_algorithms(True)  # takes the fixed configuration on a GPU too
    try:
        for config in fused._kernels().tuned_search.configs:
            options = {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages}
            monkeypatch.setattr(fused, "_fixed_options", lambda block_d, options=options: options)
            results.append(G.nearest_code(x, codes))
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(results) > 3
    for result in results:
        check(x, codes, result)
        assert torch.equal(result, results[0])


# --- sums per code ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (300, 7, 5), (40, 20, 150)])
def test_code_sums_are_sums(n: int, k: int, d: int) -> None:
    x, indices = randn(n, d), torch.randint(k, (n,), device=DEVICE)
    expected = torch.zeros(k, d, dtype=torch.float64, device=DEVICE).index_add_(0, indices, x.double())
    torch.testing.assert_close(G.code_sums(x, indices, k).double(), expected, rtol=1e-5, atol=1e-5)
    whole = x.mul(8).round()  # whole numbers add up without rounding
    assert torch.equal(G.code_sums(whole, indices, k), torch.zeros(k, d, device=DEVICE).index_add_(0, indices, whole))
    assert torch.equal(G.code_sums(whole.T.contiguous().T, indices, k), G.code_sums(whole, indices, k))


@pytest.mark.parametrize("backend", ["fused", "blocked"])
def test_code_sums_and_counts_where_determinism_is_asked_for(backend: str) -> None:
    x, indices = randn(500, 3), torch.randint(4, (500,), device=DEVICE)
    weight = torch.rand(500, device=DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        with kernels.using(backend):
            first, second = ((G.code_sums(x, indices, 4), G.code_counts(indices, 4, weight)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_code_sums_have_a_gradient() -> None:
    x, indices, g = randn(9, 2).requires_grad_(), torch.randint(4, (9,), device=DEVICE), randn(4, 2)
    (found,) = torch.autograd.grad(G.code_sums(x, indices, 4), x, g)
    assert torch.equal(found, g[indices])


# --- the choice -------------------------------------------------------------------------------------------------------


def test_the_choice_of_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.chosen("cpu") == "fused"
    monkeypatch.setattr(kernels, "_forced", [])
    assert kernels.chosen("cpu") == "blocked"
    assert kernels.chosen("cuda") == ("fused" if torch.cuda.is_available() else "blocked")
    with pytest.raises(ValueError, match="expected a backend among"), kernels.using("quantum"):
        pass


def test_without_triton_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(kernels, "_triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)  # type: ignore[arg-type]
    monkeypatch.setattr(fused, "_kernels", fused._kernels.__wrapped__)
    with pytest.raises(ValueError, match=r"the package triton, got none; pip install 'gritvq\[gpu\]'"):
        G.nearest_code(randn(2, 2), randn(2, 2))


def test_an_assignment_passes_its_precision_on() -> None:
    x, codes = randn(60, 16), 1 + 1e-3 * randn(100, 16)
    codes[50:] -= 2
    for precision in ("float32", "bf16"):
        found, _ = NearestAssignment(precision=precision)(x, codes)  # type: ignore[arg-type]
        assert torch.equal(found, G.nearest_code(x, codes, precision=precision))  # type: ignore[arg-type]
    assert not torch.equal(NearestAssignment()(x, codes)[0], found)
    for call in (lambda: NearestAssignment(precision="int4"), lambda: G.nearest_code(x, codes, precision="int4")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected a precision among"):
            call()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nearest_code", lambda: (randn(6, 3), randn(4, 3), False, "float32")),
        ("nearest_code", lambda: (randn(6, 3).bfloat16(), randn(4, 3), True, "bf16")),
        ("code_sums", lambda: (randn(6, 3).requires_grad_(), torch.arange(6, device=DEVICE) % 4, 4)),
    ],
)
def test_operators_are_what_they_tell_the_compiler(name: str, arguments: Any) -> None:
    torch.library.opcheck(getattr(torch.ops.gritvq, name).default, arguments())
