"""The hyperbolic quantizer against the published formula, geoopt, its flat limit and its symmetries."""

from __future__ import annotations

import math
from typing import Any

import geoopt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gritvq import HyperbolicQuantizer, LinearSchedule
from gritvq.quantizers.functional import code_counts


def made(dim: int = 4, size: int = 12, **settings: Any) -> HyperbolicQuantizer:
    """In float64, with offsets of both signs."""
    quantizer = HyperbolicQuantizer(dim, size, **settings).double()
    with torch.no_grad():
        quantizer.offsets.copy_(0.8 * torch.randn(size))
        quantizer.directions.mul_(torch.rand(size, 1) + 0.5)
    return quantizer


def in_the_ball(v: Tensor, c: float, clip: float = 1e-3) -> Tensor:
    """``exp_0`` as it is usually written, kept inside."""
    length = v.norm(dim=-1, keepdim=True)
    x = torch.tanh(math.sqrt(c) * length) * v / (math.sqrt(c) * length)
    most = (1 - clip) / math.sqrt(c)
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > most, x / norm * most, x)


def published_logits(v: Tensor, directions: Tensor, offsets: Tensor, c: float) -> Tensor:
    """The formula of HNN++, point by point and plane by plane."""
    x, root = in_the_ball(v, c), math.sqrt(c)
    factor = 2 / (1 - c * x.square().sum(1, keepdim=True))
    inner = x @ F.normalize(directions, dim=1).T
    argument = factor * root * inner * torch.cosh(2 * root * offsets) - (factor - 1) * torch.sinh(2 * root * offsets)
    return 2 * directions.norm(dim=1) / root * torch.asinh(argument)


@pytest.mark.parametrize("c", [0.1, 1.0, 2.5])
def test_logits_are_the_published_formula(c: float) -> None:
    quantizer = made(curvature=c)
    for scale in (0.01, 1.0, 20.0):
        v = scale * torch.randn(30, 4, dtype=torch.float64)
        expected = published_logits(v, quantizer.directions, quantizer.offsets, c)
        torch.testing.assert_close(quantizer.logits(v), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("c", [0.3, 1.0])
def test_logits_are_signed_distances_to_the_hyperplanes(c: float) -> None:
    """An independent library; the plane goes through the representative and is normal to the direction."""
    quantizer = made(curvature=c)
    v = torch.randn(20, 4, dtype=torch.float64)
    ball = geoopt.PoincareBall(c=torch.tensor(c, dtype=torch.float64))
    points, representatives = ball.expmap0(v), ball.expmap0(quantizer.codes().detach())
    for k in range(12):
        expected = ball.dist2plane(
            points, representatives[k].expand(20, 4), quantizer.directions[k].detach().expand(20, 4), signed=True
        )
        got = quantizer.logits(v)[:, k] / (2 * quantizer.directions[k].norm())
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ball.logmap0(representatives), quantizer.codes())


@pytest.mark.parametrize("c", [0.3, 1.0])
def test_a_representative_lies_on_its_own_boundary(c: float) -> None:
    quantizer = made(curvature=c)
    logits = quantizer.logits(quantizer.codes()).diagonal().detach()
    assert float((logits / (2 * quantizer.directions.norm(dim=1))).abs().max()) < 1e-13


def test_without_curvature_it_is_flat() -> None:
    quantizer = made(curvature=1e-10)
    v = torch.randn(30, 4, dtype=torch.float64)
    length = quantizer.directions.norm(dim=1)
    expected = 4 * (v @ quantizer.directions.T - length * quantizer.offsets)
    torch.testing.assert_close(quantizer.logits(v), expected, rtol=1e-5, atol=1e-5)


def test_nothing_leaves_the_ball_and_gradients_stay_finite() -> None:
    quantizer = HyperbolicQuantizer(4, 12, curvature=2.0, clip=1e-2)
    assert math.tanh(math.sqrt(2) * quantizer.radius) == pytest.approx(0.99)
    with torch.no_grad():
        quantizer.offsets[:3] = torch.tensor([50.0, -50.0, 1e8])
        quantizer.directions[5] = 0
    assert float(quantizer.codes().detach().norm(dim=1).max()) == pytest.approx(quantizer.radius)
    for scale in (0.0, 1e-20, 1e-3, 1.0, quantizer.radius, 1e4, 1e18):
        x = (scale * F.normalize(torch.randn(30, 4), dim=1)).requires_grad_()
        output = quantizer(x)
        output.quantized.square().sum().backward()
        for tensor in (output.quantized, x.grad, *(p.grad for p in quantizer.parameters())):
            assert tensor is not None and bool(torch.isfinite(tensor).all())


def test_longer_vectors_than_the_clip_are_not_told_apart() -> None:
    quantizer = made()
    v = F.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1)
    torch.testing.assert_close(quantizer.logits(quantizer.radius * v), quantizer.logits(100 * v))


def test_rotating_everything_rotates_the_values() -> None:
    quantizer, turned = made(), made()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    turned.load_state_dict(quantizer.state_dict())
    with torch.no_grad():
        turned.directions.copy_(quantizer.directions @ rotation)
    x = torch.randn(200, 4, dtype=torch.float64)
    torch.testing.assert_close(turned.logits(x @ rotation), quantizer.logits(x))
    left, right = quantizer.eval()(x), turned.eval()(x @ rotation)
    assert torch.equal(left.indices, right.indices)
    torch.testing.assert_close(left.quantized @ rotation, right.quantized)


def test_training_draws_representatives_and_its_gradient_is_the_mixtures() -> None:
    quantizer = made(temperature=LinearSchedule(0.7, 0.5, num_steps=3))
    x = torch.randn(50, 4, dtype=torch.float64).requires_grad_()
    weight = torch.randn(50, 4, dtype=torch.float64)
    torch.manual_seed(3)
    output = quantizer(x)
    torch.manual_seed(3)
    logits, codes = quantizer.logits(x), quantizer.codes()
    noise = -(-torch.rand_like(logits).log()).log()
    y = ((logits + noise) / quantizer.temperature()).softmax(1)  # type: ignore[operator]
    assert torch.equal(output.quantized, codes[y.argmax(1)])
    assert torch.equal(output.indices.squeeze(1), logits.argmax(1)) and output.losses == {}
    (got,) = torch.autograd.grad((output.quantized * weight).sum(), x)
    (expected,) = torch.autograd.grad((y @ codes.detach() * weight).sum(), x)
    torch.testing.assert_close(got, expected)

    many = quantizer(x[:1].expand(40000, 4)).quantized
    drawn = torch.cdist(many.detach(), codes.detach()).argmin(1)
    assert (code_counts(drawn, 12) / 40000 - logits[0].softmax(0)).abs().max() < 0.01


def test_every_parameter_learns() -> None:
    quantizer = HyperbolicQuantizer(4, 12)
    quantizer(torch.randn(500, 4)).quantized.square().sum().backward()
    for parameter in quantizer.parameters():
        assert parameter.grad is not None and bool((parameter.grad.flatten() != 0).any())


def test_nearest_ranks_by_logits() -> None:
    quantizer = made()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    near = quantizer.nearest(x, 4)
    assert near.shape == (3, 5, 4) and torch.equal(near[..., :1], quantizer.encode(x))
    values = quantizer.logits(x.flatten(0, 1)).gather(1, near.flatten(0, 1))
    assert bool((values.diff(dim=1) <= 0).all())
    with pytest.raises(ValueError, match=r"expected num_codes in 1 \.\. 12, got 13"):
        quantizer.nearest(x, 13)


def test_nearest_is_the_same_under_autocast() -> None:
    quantizer = HyperbolicQuantizer(4, 12)
    x = torch.randn(500, 4)
    expected = [quantizer.nearest(x, num) for num in (1, 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [quantizer.nearest(x, num) for num in (1, 5)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_parameters_stay_wide_and_folding_freezes_a_copy() -> None:
    quantizer = HyperbolicQuantizer(4, 12).bfloat16()
    assert all(p.dtype == torch.float32 for p in quantizer.parameters())
    folded = quantizer.fold()
    assert folded.directions is not quantizer.directions and not folded.directions.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dim=0, codebook_size=4), "expected dim >= 1, got 0"),
        (dict(dim=2, codebook_size=4, curvature=0.0), "expected curvature > 0"),
        (dict(dim=2, codebook_size=4, clip=1.0), r"clip in \(0, 1\), got 1.0"),
        (dict(dim=2, codebook_size=4, temperature=-1.0), "expected temperature > 0, got -1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperbolicQuantizer(**arguments)
