"""Variational latents in closed form: coherence loss, both gradients, one draw for both paths; a toy that learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gritvq import (
    BSQ,
    CodebookLoss,
    CommitmentLoss,
    DistributionConsistencyLoss,
    FreeCodebook,
    MahalanobisRadius,
    MultiScaleQuantizer,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    RadialSurrogate,
    RepresentationCoherenceLoss,
    ResidualQuantizer,
    Tokenizer,
    VariationalLatent,
    VectorQuantizer,
    fsq,
    vq_vae,
)
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer, TokenizerTask, image_losses
from gritvq.training import ReconstructionObjective, TwoPathObjective
from zoo import SEEDS

D, K, N = 3, 32, 40


def plain(dim: int = D, size: int = K) -> VectorQuantizer:
    return VectorQuantizer(FreeCodebook(dim, size), learning=[])


def gaussian(*shape: int, log_variance: float = -1.0) -> Tensor:
    """Means and log variances side by side."""
    spread = log_variance + 0.3 * torch.randn(*shape, D)
    return torch.cat([torch.randn(*shape, D), spread], -1).requires_grad_()


def grads_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the means and of the log variances."""
    assert x.grad is not None
    return x.grad[..., :D], x.grad[..., D:]


class TestCoherenceLoss:
    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_is_half_the_squared_distance_in_deviations(self, reduction: str) -> None:
        loss = RepresentationCoherenceLoss(0.7, reduction=reduction)
        mean, q, log_variance = torch.randn(3, 5, 4, D).double()
        valid = torch.rand(5, 4) < 0.5
        likelihood = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        per_component = likelihood.log_prob(mean) - likelihood.log_prob(q)
        each = getattr(per_component, reduction)(-1)
        torch.testing.assert_close(loss(mean, log_variance, q, valid), 0.7 * each[valid].mean())

    @pytest.mark.parametrize("detach", [True, False])
    def test_gradients(self, detach: bool) -> None:
        mean, q, log_variance = (torch.randn(N, D).double().requires_grad_() for _ in range(3))
        loss = RepresentationCoherenceLoss(detach_deviation=detach)
        loss(mean, log_variance, q, torch.ones(N, dtype=torch.bool)).backward()
        pull = ((mean - q) / log_variance.exp()).detach() / N
        torch.testing.assert_close(mean.grad, pull)
        torch.testing.assert_close(q.grad, -pull)
        if detach:
            assert log_variance.grad is None
        else:
            torch.testing.assert_close(
                log_variance.grad, (-0.5 * (mean - q).square() / log_variance.exp() / N).detach()
            )

    def test_halving_sigma_quadruples_it(self) -> None:
        loss, valid = RepresentationCoherenceLoss(), torch.ones(N, dtype=torch.bool)
        mean, q, log_variance = torch.randn(3, N, D).double()
        narrow = log_variance + 2 * torch.tensor(0.5).double().log()
        torch.testing.assert_close(loss(mean, narrow, q, valid), 4 * loss(mean, log_variance, q, valid))

    def test_bad_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match="expected weight >= 0"):
            RepresentationCoherenceLoss(-1.0)
        with pytest.raises(ValueError, match="expected reduction"):
            RepresentationCoherenceLoss(reduction="none")  # type: ignore[arg-type]


class TestLatent:
    @pytest.mark.parametrize("choose_by", ["sample", "mean"])
    def test_the_code_is_nearest_to_the_sample_or_to_the_mean(self, choose_by: Any) -> None:
        latent, x = VariationalLatent(plain(), choose_by=choose_by), gaussian(N, log_variance=0.0)
        torch.manual_seed(1)
        z, output = latent.sample(x)
        torch.manual_seed(1)
        drawn = x[:, :D] + (0.5 * x[:, D:]).exp() * torch.randn(N, D)
        assert torch.equal(z, drawn)
        expected = {"sample": z, "mean": x[:, :D]}
        codes = latent.quantizer.codebook.codes()
        found = {name: torch.cdist(y.detach(), codes).argmin(1) for name, y in expected.items()}
        assert torch.equal(output.indices[:, 0], found[choose_by])
        assert not torch.equal(found["sample"], found["mean"])
        assert torch.equal(output.quantized, latent.decode(output.indices))
        torch.manual_seed(1)
        assert torch.equal(latent(x).indices, output.indices)
        assert latent.draws_indices == (choose_by == "sample")
        dropped = ResidualQuantizer([plain(), plain()], dropout=0.5)
        assert VariationalLatent(dropped, choose_by=choose_by).draws_indices

    @pytest.mark.parametrize("choose_by", ["sample", "mean"])
    def test_eval_takes_the_mean(self, choose_by: Any) -> None:
        latent, x = VariationalLatent(plain(), choose_by=choose_by).eval(), gaussian(N)
        z, output = latent.sample(x)
        assert torch.equal(z, x[:, :D]) and output.losses == {}
        assert torch.equal(output.indices, latent.quantizer.encode(x[:, :D]))
        assert torch.equal(output.indices, latent.train().encode(x))

    def test_straight_through_gradient(self) -> None:
        latent, x, g = VariationalLatent(plain()), gaussian(N), torch.randn(N, D)
        z, output = latent.sample(x)
        output.quantized.backward(g)
        mean_grad, spread_grad = grads_of(x)
        eps = ((z - x[:, :D]) / (0.5 * x[:, D:]).exp()).detach()
        assert torch.equal(mean_grad, g)
        torch.testing.assert_close(spread_grad, g * eps * 0.5 * (0.5 * x[:, D:]).exp().detach(), rtol=1e-4, atol=1e-6)
        assert all(p.grad is None for p in latent.parameters())

    def test_straight_through_to_the_mean_leaves_the_variance_alone(self) -> None:
        latent, x, g = VariationalLatent(plain(), choose_by="mean"), gaussian(N), torch.randn(N, D)
        latent(x).quantized.backward(g)
        assert torch.equal(grads_of(x)[0], g) and not grads_of(x)[1].any()

    def test_another_surrogate_acts_on_the_vector_that_was_looked_up(self) -> None:
        inner = VectorQuantizer(FreeCodebook(D, K), surrogate=RadialSurrogate())
        for choose_by in ("sample", "mean"):
            latent, x, g = VariationalLatent(copy.deepcopy(inner), choose_by=choose_by), gaussian(N), torch.randn(N, D)
            z, output = latent.sample(x)
            output.quantized.backward(g)
            y = (z if choose_by == "sample" else x[:, :D]).detach().requires_grad_()
            alone = copy.deepcopy(inner)
            alone(y).quantized.backward(g)
            torch.testing.assert_close(grads_of(x)[0], y.grad)
            torch.testing.assert_close(latent.quantizer.codebook.table().grad, alone.codebook.table().grad)

    @pytest.mark.parametrize("choose_by", ["sample", "mean"])
    def test_reparameterized_gradient(self, choose_by: Any) -> None:
        latent = VariationalLatent(plain(), choose_by=choose_by, gradient="reparameterized")
        x, g = gaussian(N), torch.randn(N, D)
        _, output = latent.sample(x)
        output.quantized.backward(g)
        q, mean = output.quantized.detach(), x[:, :D].detach()
        mean_grad, spread_grad = grads_of(x)
        assert torch.equal(mean_grad, g)
        # (q - mu) / sigma to sigma, and d sigma / d log variance = sigma / 2
        torch.testing.assert_close(spread_grad, 0.5 * g * (q - mean), rtol=1e-4, atol=1e-6)
        sums = torch.zeros(K, D).index_add_(0, output.indices[:, 0], g)
        torch.testing.assert_close(latent.quantizer.codebook.table().grad, sums)
        assert torch.equal(output.quantized, latent.decode(output.indices))

    def test_divergence_is_that_of_the_gaussians(self) -> None:
        x, mask = gaussian(4, 10), torch.rand(4, 10) < 0.6
        latent = VariationalLatent(plain(), kl_weight=0.3, initial_log_variance=-1.5)
        losses = latent(x, mask).losses
        posterior = torch.distributions.Normal(x[..., :D], (0.5 * (x[..., D:] - 1.5)).exp())
        each = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean(-1)
        assert list(losses) == ["kl"]
        torch.testing.assert_close(losses["kl"], 0.3 * each[mask].mean())

    def test_coherence_compares_the_chosen_code_with_the_posterior(self) -> None:
        coherence = RepresentationCoherenceLoss(0.2)
        latent = VariationalLatent(
            VectorQuantizer(FreeCodebook(D, K), learning=[CommitmentLoss()]), coherence=coherence
        )
        x, mask = gaussian(4, 10), torch.rand(4, 10) < 0.6
        output = latent(x, mask)
        assert sorted(output.losses) == ["coherence", "commitment"]
        q = latent.decode(output.indices)
        torch.testing.assert_close(output.losses["coherence"], coherence(x[..., :D], x[..., D:], q, mask))
        output.losses["coherence"].backward()
        mean_grad, spread_grad = grads_of(x)
        assert bool(mean_grad[mask].any(-1).all()) and not mean_grad[~mask].any() and not spread_grad.any()
        used = torch.zeros(K, dtype=torch.bool)
        used[output.indices[mask][:, 0]] = True
        grad = latent.quantizer.codebook.table().grad
        assert bool((grad.any(-1) == used).all())

    def test_extreme_variances_stay_finite(self) -> None:
        latent = VariationalLatent(plain(), gradient="reparameterized", coherence=RepresentationCoherenceLoss())
        for extreme in (-1e30, -100.0, 100.0, 1e30):
            x = torch.cat([torch.randn(N, D), torch.full((N, D), extreme)], -1).requires_grad_()
            output = latent(x)
            (output.quantized.sum() + output.loss).backward()
            assert x.grad is not None and bool(torch.isfinite(x.grad).all()) and bool(torch.isfinite(output.loss))

    def test_initial_log_variance_is_where_a_zero_starts(self) -> None:
        latent = VariationalLatent(plain(), initial_log_variance=-4.0)
        z, _ = latent.sample(torch.zeros(20000, 2 * D))
        torch.testing.assert_close(z.std(), torch.tensor(-2.0).exp(), rtol=0.02, atol=0)

    def test_initialization_sees_the_means_also_in_the_surrogate(self) -> None:
        inner = VectorQuantizer(FreeCodebook(D, 8), surrogate=RadialSurrogate(MahalanobisRadius(D)))
        alone = copy.deepcopy(inner)
        latent, x = VariationalLatent(inner), gaussian(200).detach()
        x[3, D + 1] = float("nan")
        latent.initialize_codebook(x)
        alone.initialize_codebook(torch.cat([x[:3, :D], x[4:, :D]]))
        assert torch.equal(latent.quantizer.codebook.codes(), alone.codebook.codes())
        assert torch.equal(latent.surrogate.surrogate.radius.metric, alone.surrogate.radius.metric)

    def test_inner_quantizers_with_a_layout(self) -> None:
        levels = MultiScaleQuantizer(plain(), [1, 2, 4])
        products = ProductQuantizer([plain(), plain()], split="tokens")
        for inner, mask in ((levels, torch.rand(2, 4, 4) < 0.5), (products, torch.rand(2, 6) < 0.5)):
            latent = VariationalLatent(inner)
            for training in (True, False):
                output = latent.train(training)(gaussian(*mask.shape), mask)
                assert torch.equal(latent.decode(output.indices), output.quantized)
                assert not output.quantized[~mask].any() and bool(output.quantized[mask].any(-1).all())
            assert latent.bits(tuple(mask.shape)) == inner.bits(tuple(mask.shape))

    def test_what_does_not_fit_is_refused(self) -> None:
        for inner in (fsq(D, K), ProjectedQuantizer(plain(), 6), BSQ(D)):
            with pytest.raises(ValueError, match="expected a quantizer that maps nothing"):
                VariationalLatent(inner)
        inner = plain()
        inner.surrogate = None
        with pytest.raises(ValueError, match="expected a quantizer with a surrogate"):
            VariationalLatent(inner)
        for arguments, message in (
            ({"choose_by": "median"}, "expected choose_by"),
            ({"gradient": "none"}, "expected gradient"),
            ({"kl_weight": -1.0}, "expected kl_weight >= 0"),
            ({"initial_log_variance": float("nan")}, "expected a finite initial_log_variance"),
        ):
            with pytest.raises(ValueError, match=message):
                VariationalLatent(plain(), **arguments)
        with pytest.raises(ValueError, match="expected parts that return vectors as large as they take"):
            ResidualQuantizer([VariationalLatent(plain())])


class TestTwoPaths:
    def tokenizer(self, quantizer: Quantizer | None = None) -> Tokenizer:
        latent = VariationalLatent(vq_vae(4, K)) if quantizer is None else quantizer
        return ImageTokenizer(ImageEncoder(latent.input_dim, width=8), latent, ImageDecoder(latent.dim, width=8))

    @pytest.mark.parametrize("norm", ["l2", "l1"])
    def test_both_decodings_come_from_one_draw(self, norm: str) -> None:
        tokenizer, images = self.tokenizer(), torch.rand(3, 3, 14, 9)
        torch.manual_seed(1)
        losses, output = image_losses(TwoPathObjective(norm, weight=0.5), tokenizer, images)
        torch.manual_seed(1)
        z, quantization = tokenizer.quantizer.sample(output.latents)
        power = 2 if norm == "l2" else 1
        for name, latent in (("reconstruction", quantization.quantized), ("continuous_reconstruction", z)):
            decoded = tokenizer.decoder(latent)[..., :14, :9]
            torch.testing.assert_close(losses[name], 0.5 * (2 * decoded - 2 * images).abs().pow(power).mean())
        assert output.reconstruction.shape == images.shape
        assert losses.keys() == {"reconstruction", "continuous_reconstruction", "codebook", "commitment"}
        torch.manual_seed(1)
        same = tokenizer(images)
        torch.testing.assert_close(output.reconstruction, same.reconstruction)
        assert torch.equal(output.quantization.indices, same.quantization.indices)

    def test_eval_decodes_once(self) -> None:
        tokenizer, images = self.tokenizer().eval(), torch.rand(3, 3, 8, 8)
        losses, output = image_losses(TwoPathObjective(), tokenizer, images)
        plain_losses, _ = image_losses(ReconstructionObjective(), tokenizer, images)
        assert torch.equal(output.reconstruction, tokenizer(images).reconstruction)
        assert losses == plain_losses

    def test_variance_learns_from_the_continuous_path(self) -> None:
        quantizer = VariationalLatent(vq_vae(4, K), choose_by="mean")
        tokenizer = self.tokenizer(quantizer)
        losses, output = image_losses(TwoPathObjective(), tokenizer, torch.rand(3, 3, 8, 8))
        for name, reaches in (("reconstruction", False), ("continuous_reconstruction", True)):
            (grad,) = torch.autograd.grad(losses[name], output.latents, retain_graph=True)
            assert bool(grad[..., :4].any()) and bool(grad[..., 4:].any()) == reaches

    def test_other_quantizers_and_norms_are_refused(self) -> None:
        with pytest.raises(ValueError, match="expected a quantizer with a continuous latent"):
            image_losses(TwoPathObjective(), self.tokenizer(vq_vae(4, K)), torch.rand(3, 3, 8, 8))
        with pytest.raises(ValueError, match="expected norm"):
            TwoPathObjective("l3")

    def test_task_takes_it_and_the_tokenizer_is_saved(self, tmp_path: Any) -> None:
        task = TokenizerTask(self.tokenizer(), objective=TwoPathObjective())
        assert VariationalLatent.objective == "two_path"
        losses, _ = image_losses(task.objective, task.tokenizer, torch.rand(2, 3, 8, 8))
        assert "continuous_reconstruction" in losses
        tokenizer, images = task.tokenizer, torch.rand(2, 3, 8, 8)
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        loaded = Tokenizer.from_pretrained(tmp_path / "tokenizer")
        assert torch.equal(loaded.encode(images), tokenizer.encode(images))
        assert torch.equal(tokenizer.fold().encode(images), tokenizer.encode(images))


@pytest.mark.parametrize("seed", SEEDS)
def test_codes_aligned_to_the_unit_gaussian_are_used_three_times_as_much(seed: int) -> None:
    """An autoencoder of perceptrons, K = 256, D = 4, 500 steps, codes that start close together."""
    plain_usage, plain_error = _train(vq_vae(4, 256), seed)
    ordinary = [CodebookLoss(), CommitmentLoss(), DistributionConsistencyLoss(0.1)]
    beside = VariationalLatent(VectorQuantizer(FreeCodebook(4, 256), learning=ordinary), kl_weight=1e-3)
    alone = VariationalLatent(
        VectorQuantizer(FreeCodebook(4, 256), learning=[DistributionConsistencyLoss(0.1)]),
        coherence=RepresentationCoherenceLoss(0.01),
        kl_weight=0.2,
    )
    for latent in (beside, alone):
        usage, error = _train(latent, seed)
        assert usage >= 3 * plain_usage and error < plain_error


def _train(quantizer: Quantizer, seed: int) -> tuple[float, float]:
    """Usage and relative error on fresh points of a curved sheet of 4 dimensions in 16, after 500 steps."""
    torch.manual_seed(seed)
    for parameter in quantizer.parameters():
        nn.init.uniform_(parameter, -1 / 256, 1 / 256)
    first, second = torch.randn(4, 32), torch.randn(32, 16) / 32**0.5

    def points(number: int) -> Tensor:
        return torch.tanh(torch.randn(number, 4) @ first) @ second

    encoder = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, quantizer.input_dim))
    decoder = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()], 5e-3)
    for _ in range(500):
        x = points(128)
        if isinstance(quantizer, VariationalLatent):
            z, output = quantizer.sample(encoder(x))
            loss = (decoder(z) - x).square().mean() + (decoder(output.quantized) - x).square().mean() + output.loss
        else:
            output = quantizer(encoder(x))
            loss = (decoder(output.quantized) - x).square().mean() + output.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quantizer.eval()
    with torch.no_grad():
        x = points(8192)
        output = quantizer(encoder(x))
        error = (decoder(output.quantized) - x).square().mean() / x.var()
    return len(output.indices.unique()) / 256, float(error)
