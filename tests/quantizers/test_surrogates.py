"""Surrogates against closed-form Jacobians, autograd of the literal definition, and what follows from both."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gritvq import (
    ConstantRadius,
    CosineRadius,
    DirectionalReparameterization,
    DistanceRadius,
    GaussianRadius,
    InputNormRadius,
    LogRadius,
    MahalanobisRadius,
    NoiseSubstitution,
    PowerRadius,
    RadialSurrogate,
    Radius,
    RotationTrick,
    ShiftedRadius,
    SmoothRadius,
    StraightThrough,
    Surrogate,
    TanhRadius,
)
from gritvq.quantizers.functional import rotate_to
from zoo import DIM, DISTANCE_RADII, RADII, SURROGATES

MakeRadius = Callable[[], Radius]
every_radius = pytest.mark.parametrize("make", RADII.values(), ids=RADII.keys())
every_distance_radius = pytest.mark.parametrize("make", DISTANCE_RADII.values(), ids=DISTANCE_RADII.keys())

# The radii as they are written down, for autograd: r(q, z) of rows, float64.
LITERAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "constant": lambda q, z: torch.ones(len(z), 1, dtype=z.dtype) + 0 * (q + z).sum(-1, keepdim=True),
    "power-0.5": lambda q, z: gap(q, z) ** 0.5,
    "power-1": lambda q, z: gap(q, z),
    "power-2": lambda q, z: gap(q, z) ** 2,
    "smooth": lambda q, z: (gap(q, z) ** 2 + 1e-12 * z.detach().square().mean(-1, keepdim=True)).sqrt(),
    "shifted": lambda q, z: gap(q, z) + 0.7,
    "log": lambda q, z: (1 + gap(q, z) / 0.7).log(),
    "saturating": lambda q, z: gap(q, z) / (gap(q, z) + 0.7),
    "tanh": lambda q, z: (gap(q, z) / 0.7).tanh(),
    "clipped": lambda q, z: gap(q, z).clamp_max(2.0),
    "gaussian": lambda q, z: -(-(gap(q, z) ** 2) / (2 * 1.5**2)).expm1(),
    "input-norm": lambda q, z: z.norm(dim=-1, keepdim=True) + 0 * q.sum(-1, keepdim=True),
    "cosine": lambda q, z: 1 - torch.cosine_similarity(z, q, dim=-1, eps=0.0)[:, None],
    "mahalanobis": lambda q, z: ((q - z) @ METRIC * (q - z)).sum(-1, keepdim=True).sqrt(),
}
_root = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
METRIC = _root @ _root.T + torch.eye(DIM, dtype=torch.float64)


def gap(q: Tensor, z: Tensor) -> Tensor:
    return (q - z).norm(dim=-1, keepdim=True)


def ready(radius: Radius) -> Radius:
    if isinstance(radius, MahalanobisRadius):
        radius.double().metric.copy_(METRIC)
    return radius


def pair(num: int = 40, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, codes at gaps spread around ``scale``, upstream gradients."""
    generator = torch.Generator().manual_seed(2)
    z, e, g = (torch.randn(num, DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    lengths = scale * torch.logspace(-0.5, 0.5, num, dtype=torch.float64)[:, None]
    return z, z + lengths * e / e.norm(dim=1, keepdim=True), g


def gradients(surrogate: Surrogate, z: Tensor, q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    z, q = z.clone().requires_grad_(), q.clone().requires_grad_()
    value = surrogate(z, q)
    value.backward(g.to(value.dtype))
    return (torch.zeros_like(z) if z.grad is None else z.grad), (torch.zeros_like(q) if q.grad is None else q.grad)


def jacobians(surrogate: Surrogate, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Per-row Jacobians (N, D, D): entry [n, i, j] is the derivative of output i by input j."""
    rows = [gradients(surrogate, z, q, torch.eye(DIM, dtype=z.dtype)[i].expand_as(z)) for i in range(DIM)]
    return torch.stack([r[0] for r in rows], 1), torch.stack([r[1] for r in rows], 1)


def literal_gradients(name: str, z: Tensor, q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Autograd of ``z + r sg((q - z) / r)``, the definition taken at its word."""
    z, q = z.clone().requires_grad_(), q.clone().requires_grad_()
    r = LITERAL[name](q, z)
    (z + r * ((q - z) / r).detach()).backward(g)
    assert z.grad is not None
    return z.grad, torch.zeros_like(q) if q.grad is None else q.grad


class TestEveryRadius:
    @pytest.mark.parametrize("name", RADII)
    @pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 10.0])
    def test_gradients_are_those_of_the_definition(self, name: str, scale: float) -> None:
        z, q, g = pair(scale=scale)
        found = gradients(RadialSurrogate(ready(RADII[name]())), z, q, g)
        expected = literal_gradients(name, z, q, g)
        tolerance = 1e-10 if name != "cosine" else 1e-16 / (1e-3 * scale) ** 2 + 1e-10  # 1 - cos cancels in the literal
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=max(1e-10, tolerance), atol=max(1e-10, tolerance))

    @pytest.mark.parametrize("name", RADII)
    def test_equal_straight_through_plus_the_implicit_loss(self, name: str) -> None:
        z, q, g = pair()
        found = gradients(RadialSurrogate(ready(RADII[name]())), z, q, g)
        z1, q1 = z.clone().requires_grad_(), q.clone().requires_grad_()
        s = ((q - z) * g).sum(-1, keepdim=True)
        ((z1 * g).sum() + (s * LITERAL[name](q1, z1).log()).sum()).backward()
        assert z1.grad is not None and q1.grad is not None
        torch.testing.assert_close(found[0], z1.grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[1], q1.grad, rtol=1e-10, atol=1e-10)

    @every_radius
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_value_is_bitwise_the_code(self, make: MakeRadius, dtype: torch.dtype) -> None:
        surrogate = RadialSurrogate(make())
        z, q, _ = pair()
        for training in (True, False):
            value = surrogate.train(training)(z.to(dtype), q.float())
            assert value.dtype == dtype and torch.equal(value, q.float().to(dtype))

    @every_radius
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_zero_gap_is_straight_through_and_disturbs_nobody(self, make: MakeRadius, dtype: torch.dtype) -> None:
        surrogate = RadialSurrogate(make())
        z, q, g = (v.to(dtype) for v in pair())
        wide = q.to(torch.float64 if dtype == torch.float64 else torch.float32)
        alone = gradients(surrogate, z[1:], wide[1:], g[1:])
        wide[0] = z[0].to(wide.dtype)
        together = gradients(surrogate, z, wide, g)
        assert torch.equal(together[0][0], g[0]) and not together[1][0].any()
        for a, b in zip(together, alone, strict=True):  # vectorised hyperbolic functions round by position
            torch.testing.assert_close(a[1:], b, rtol=4 * torch.finfo(a.dtype).eps, atol=1e-12)

    @every_radius
    def test_tiny_gap_and_zero_vectors_are_finite(self, make: MakeRadius) -> None:
        surrogate = RadialSurrogate(make())
        for z, q in (
            (torch.zeros(1, DIM), torch.full((1, DIM), 1e-20)),
            (torch.zeros(1, DIM), torch.ones(1, DIM)),
            (torch.ones(1, DIM), torch.zeros(1, DIM)),
            (torch.zeros(1, DIM), torch.zeros(1, DIM)),
            (torch.full((1, DIM), 1e4), torch.full((1, DIM), -1e4)),
        ):
            for grad in gradients(surrogate, z, q, torch.ones(1, DIM)):
                assert bool(torch.isfinite(grad).all())


class TestDistanceRadii:
    @every_distance_radius
    @pytest.mark.parametrize("distance", [1e-6, 1e-3, 0.1, 1.0, 30.0, 1e3])
    def test_jacobians_follow_the_kappa_table(self, make: Callable[[], DistanceRadius], distance: float) -> None:
        radius = make()
        z, q, _ = pair(num=4)
        unit = (q - z) / gap(q, z)
        jz, jq = jacobians(RadialSurrogate(radius), z, z + distance * unit)
        kappa = radius.kappa(torch.tensor([[distance]], dtype=torch.float64)).item()
        if isinstance(radius, SmoothRadius):  # eps 1e-6 of the vector's size
            smoothing = 1e-12 * z.square().mean(-1)[:, None, None]
            outer = distance**2 / (distance**2 + smoothing) * unit[:, :, None] * unit[:, None, :]
        else:
            outer = kappa * unit[:, :, None] * unit[:, None, :]
        tolerance = 1e-10 + 1e-15 / distance
        torch.testing.assert_close(jq, outer, rtol=0, atol=tolerance)
        torch.testing.assert_close(jz, torch.eye(DIM, dtype=z.dtype) - outer, rtol=0, atol=tolerance)

    @every_distance_radius
    def test_kappa_is_the_elasticity_of_the_radius(self, make: Callable[[], DistanceRadius]) -> None:
        name = next(n for n, m in DISTANCE_RADII.items() if m is make)
        log_d = torch.linspace(math.log(0.01), math.log(20), 50, dtype=torch.float64).requires_grad_()
        d = log_d.exp()[:, None]
        z = torch.zeros(50, 1, dtype=torch.float64)
        (elasticity,) = torch.autograd.grad(LITERAL[name](z + d, z).log().sum(), log_d)
        torch.testing.assert_close(make().kappa(d.detach())[:, 0], elasticity, rtol=1e-8, atol=1e-8)

    @every_distance_radius
    def test_gradient_is_conserved_and_never_grows(self, make: Callable[[], DistanceRadius]) -> None:
        z, q, g = pair()
        grad_z, grad_q = gradients(RadialSurrogate(make()), z, q, g)
        torch.testing.assert_close(grad_z + grad_q, g, rtol=1e-12, atol=1e-12)
        for grad in (grad_z, grad_q / 2):
            assert bool((grad.norm(dim=1) <= g.norm(dim=1) + 1e-9).all())

    def test_beyond_elasticity_two_gradients_grow_so_it_is_refused(self) -> None:
        class Steep(DistanceRadius):
            def kappa(self, distance: Tensor) -> Tensor:
                return torch.full_like(distance, 2.5)

        z, q, _ = pair()
        along = (q - z) / gap(q, z)
        grad_z, _ = gradients(RadialSurrogate(Steep()), z, q, along)
        torch.testing.assert_close(grad_z.norm(dim=1), torch.full((40,), 1.5, dtype=torch.float64))
        for alpha in (-0.1, 2.5):
            with pytest.raises(ValueError, match=r"expected alpha in \[0, 2\]"):
                PowerRadius(alpha)
            with pytest.raises(ValueError, match=r"expected alpha in \[0, 2\]"):
                SmoothRadius(alpha)
        for make in (ShiftedRadius, LogRadius, TanhRadius, GaussianRadius):
            with pytest.raises(ValueError, match="> 0"):
                make(0.0)

    def test_scale_of_the_radius_does_not_matter(self) -> None:
        z, q, g = pair()

        def scaled(factor: float) -> tuple[Tensor, Tensor]:
            z1, q1 = z.clone().requires_grad_(), q.clone().requires_grad_()
            r = factor * (1 + gap(q1, z1) / 0.7).log()
            (z1 + r * ((q1 - z1) / r).detach()).backward(g)
            assert z1.grad is not None and q1.grad is not None
            return z1.grad, q1.grad

        ours = gradients(RadialSurrogate(LogRadius(0.7)), z, q, g)
        for a, b, c in zip(scaled(1), scaled(1000), ours, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)

    def test_limits(self) -> None:
        z, q, g = pair()
        constant, straight = (gradients(s, z, q, g) for s in (RadialSurrogate(ConstantRadius()), StraightThrough()))
        assert torch.equal(constant[0], straight[0]) and torch.equal(constant[0], g)
        assert not constant[1].any() and not straight[1].any()
        noiseless = gradients(DirectionalReparameterization(0.0), z, q, g)
        for a, b in zip(noiseless, gradients(RadialSurrogate(PowerRadius(1.0)), z, q, g), strict=True):
            assert torch.equal(a, b)
        q = q * z.norm(dim=1, keepdim=True) / q.norm(dim=1, keepdim=True)  # equal norms: a reflection takes z to q
        jz, _ = jacobians(RadialSurrogate(PowerRadius(2.0)), z, q)
        torch.testing.assert_close((jz @ z[:, :, None])[:, :, 0], q, rtol=1e-10, atol=1e-10)
        eye = torch.eye(DIM, dtype=z.dtype).expand(40, -1, -1)
        torch.testing.assert_close(jz @ jz.mT, eye, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(torch.linalg.det(jz), -torch.ones(40, dtype=z.dtype))


def test_input_norm_takes_the_latent_to_the_code() -> None:
    z, q, _ = pair()
    jz, jq = jacobians(RadialSurrogate(InputNormRadius()), z, q)
    torch.testing.assert_close((jz @ z[:, :, None])[:, :, 0], q, rtol=1e-10, atol=1e-10)
    assert not jq.any()


def test_cosine_radius_does_not_press_on_norms() -> None:
    z, q, g = pair()
    _, grad_q = gradients(RadialSurrogate(CosineRadius()), z, q, g)
    assert bool((grad_q.norm(dim=1) > 1e-3).any())
    torch.testing.assert_close((grad_q * q).sum(-1), torch.zeros(40, dtype=z.dtype), rtol=0, atol=1e-10)


def test_mahalanobis_jacobian_is_a_projection_and_follows_the_data() -> None:
    z, q, _ = pair()
    radius = ready(MahalanobisRadius(DIM))
    _, jq = jacobians(RadialSurrogate(radius), z, q)
    torch.testing.assert_close(jq @ jq, jq, rtol=1e-9, atol=1e-9)
    e = q - z
    expected = e[:, :, None] * (e @ METRIC)[:, None, :] / ((e @ METRIC) * e).sum(-1)[:, None, None]
    torch.testing.assert_close(jq, expected, rtol=1e-10, atol=1e-10)
    spread = torch.tensor([1.0, 3.0, 0.5, 1.0, 1.0, 2.0])
    radius = MahalanobisRadius(DIM)
    RadialSurrogate(radius).initialize(5 + torch.randn(20000, DIM) * spread)
    found = radius.metric.diagonal() * spread**2
    regularized = spread**2 / (spread**2 + 0.01 * spread.square().mean())
    torch.testing.assert_close(found / found.mean(), regularized / regularized.mean(), rtol=0.05, atol=0.0)


class TestRotation:
    def test_is_the_scaled_rotation_in_the_plane_of_both(self) -> None:
        z, q, _ = pair()
        jz, jq = jacobians(RotationTrick(), z, q)
        ratio = (q.norm(dim=1) / z.norm(dim=1))[:, None]
        torch.testing.assert_close((jz @ z[:, :, None])[:, :, 0], q, rtol=1e-10, atol=1e-10)
        gram = ratio[:, :, None] ** 2 * torch.eye(DIM, dtype=z.dtype)
        torch.testing.assert_close(jz @ jz.mT, gram.expand(40, -1, -1), rtol=1e-9, atol=1e-9)
        assert bool((torch.linalg.det(jz) > 0).all())
        outside = torch.randn(40, DIM, dtype=z.dtype)  # what is orthogonal to both is only scaled
        basis, _ = torch.linalg.qr(torch.stack([z, q], 2))
        outside = outside - (basis @ (basis.mT @ outside[:, :, None]))[:, :, 0]
        torch.testing.assert_close((jz @ outside[:, :, None])[:, :, 0], ratio * outside, rtol=1e-9, atol=1e-9)
        assert not jq.any()

    def test_degenerate_rows(self) -> None:
        x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        q = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-3.0, 0.0], [4.0, 0.0]])
        g = torch.tensor([[1.0, 2.0]]).expand(4, 2)
        mapped = rotate_to(x, q, g)
        assert bool(torch.isfinite(mapped).all())
        torch.testing.assert_close(mapped[:2], g[:2])
        torch.testing.assert_close(mapped[3], 2 * g[3])  # already aligned: only the length changes
        torch.testing.assert_close(mapped[2, 0], torch.tensor(-3.0))  # opposite: x still goes to q


class TestNoisySurrogates:
    @pytest.mark.parametrize("make", [NoiseSubstitution, lambda: DirectionalReparameterization(0.05)])
    def test_step_has_the_length_of_the_gap_and_its_gradient(self, make: Callable[[], Surrogate]) -> None:
        surrogate = make()
        z, q, g = pair()
        z1, q1 = z.clone().requires_grad_(), q.clone().requires_grad_()
        value = surrogate(z1, q1)
        step = value.detach() - z
        torch.testing.assert_close(step.norm(dim=1), (q - z).norm(dim=1))
        value.backward(g)
        unit, toward = step / step.norm(dim=1, keepdim=True), (q - z) / gap(q, z)
        grad_q = (g * unit).sum(-1, keepdim=True) * toward  # d|q - z| / dq is the direction to q
        assert z1.grad is not None and q1.grad is not None
        torch.testing.assert_close(q1.grad, grad_q, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(z1.grad, g - grad_q, rtol=1e-9, atol=1e-9)
        surrogate.eval()
        assert torch.equal(surrogate(z, q), q)

    def test_little_noise_points_at_the_code_and_much_noise_anywhere(self) -> None:
        z, q, _ = pair(num=2000)

        def alignment(noise_std: float) -> float:
            step = DirectionalReparameterization(noise_std)(z, q) - z
            return float(torch.cosine_similarity(step, q - z, dim=1).mean())

        assert alignment(1e-4) > 0.999 and abs(alignment(1e4)) < 0.05
        anywhere = NoiseSubstitution()(z, q) - z
        assert abs(float(torch.cosine_similarity(anywhere, q - z, dim=1).mean())) < 0.05

    def test_zero_gap_has_finite_gradients(self) -> None:
        z = torch.randn(3, DIM)
        for make in (NoiseSubstitution, DirectionalReparameterization):
            for grad in gradients(make(), z, z.clone(), torch.ones(3, DIM)):
                assert bool(torch.isfinite(grad).all())

    def test_bad_noise(self) -> None:
        with pytest.raises(ValueError, match="expected noise_std >= 0, got -1"):
            DirectionalReparameterization(-1)


@pytest.mark.parametrize("make", SURROGATES.values(), ids=SURROGATES.keys())
def test_declares_whether_codes_are_moved(make: Callable[[], Surrogate]) -> None:
    surrogate = make()
    z, q, g = (v.float() for v in pair())
    _, grad_q = gradients(surrogate, z, q, g)
    assert bool(grad_q.any()) == surrogate.moves_codes
