"""Stochastic quantizers: samples, losses and gradients against plain formulas; limits; published behavior."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gritvq.quantizers.stochastic.relaxations as relaxations
from gritvq import (
    DecaySchedule,
    FreeCodebook,
    GaussianMixtureQuantizer,
    MLPCodebook,
    Quantizer,
    ResidualQuantizer,
    ResidualStochasticQuantizer,
    StochasticQuantizer,
    VectorQuantizer,
)
from gritvq.quantizers.functional import code_counts, nearest_code, perplexity
from gritvq.quantizers.stochastic.relaxations import (
    centered,
    gaussian_factors,
    negative_entropy,
    over_blocks,
    relaxed_choice,
)
from gritvq.training.objectives import ElboObjective
from test_distributed import on_one, on_two
from zoo import SEEDS

EXTRA = {"scalar": 0, "image": 1, "position": 1, "channel": 3}


def table(dim: int, size: int, scale: float = 1.0) -> FreeCodebook:
    """A table drawn from N(0, scale^2)."""
    book = FreeCodebook(dim, size)
    nn.init.normal_(book.weight, std=scale)
    return book


class TestRelaxedChoice:
    @pytest.mark.parametrize("temperature", [1.0, 0.5])
    def test_value_and_gradients_are_those_of_the_formula(self, temperature: float) -> None:
        logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
        values = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(7, 3, dtype=torch.float64)
        torch.manual_seed(1)
        got = relaxed_choice(logits, values, torch.tensor(temperature))
        torch.manual_seed(1)
        noise = -(-torch.rand_like(logits).log()).log()
        y = ((logits + noise) / temperature).softmax(1)
        torch.testing.assert_close(got, y @ values)
        expected = torch.autograd.grad((y @ values * weight).sum(), (logits, values))
        for a, b in zip(torch.autograd.grad((got * weight).sum(), (logits, values)), expected, strict=True):
            torch.testing.assert_close(a, b)

        torch.manual_seed(1)
        hard = relaxed_choice(logits, values, temperature, hard=True)
        assert torch.equal(hard, values[y.argmax(1)])
        of_logits, of_values = torch.autograd.grad((hard * weight).sum(), (logits, values))
        torch.testing.assert_close(of_logits, expected[0])
        torch.testing.assert_close(of_values, F.one_hot(y.argmax(1), 5).double().T @ weight)

    def test_a_second_derivative_is_refused(self) -> None:
        logits, values = torch.randn(4, 3, requires_grad=True), torch.randn(3, 2)
        for made in (
            relaxed_choice(logits, values).square(),
            relaxed_choice(logits, values, hard=True),
            negative_entropy(logits),  # what comes back from a sum is constant; its derivative is not
        ):
            with pytest.raises(RuntimeError, match="expected a backward pass without create_graph"):
                torch.autograd.grad(made.sum(), logits, create_graph=True)
            assert torch.autograd.grad(made.sum(), logits)[0].any()

    def test_hard_choices_are_samples_of_the_softmax(self) -> None:
        logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
        drawn = relaxed_choice(logits.expand(40000, 4), torch.arange(4.0)[:, None], hard=True)
        frequency = code_counts(drawn.squeeze(1).long(), 4) / 40000
        assert (frequency - logits.softmax(0)).abs().max() < 0.01  # four standard deviations

    def test_negative_entropy(self) -> None:
        logits = (3 * torch.randn(6, 9, dtype=torch.float64)).requires_grad_()
        log_p = logits.log_softmax(1)
        torch.testing.assert_close(negative_entropy(logits), (log_p.exp() * log_p).sum(1))
        assert torch.autograd.gradcheck(negative_entropy, (logits,))
        far = torch.tensor([[0.0, 5000.0], [-4000.0, -4000.0]], requires_grad=True)
        entropy = negative_entropy(far)
        torch.testing.assert_close(entropy, torch.tensor([0.0, -math.log(2)]))
        entropy.sum().backward()
        assert far.grad is not None and float(far.grad.abs().max()) < 1e-6

    @pytest.mark.parametrize("shape", [(), (6, 1), (6, 3)])
    def test_factors_give_differences_of_log_densities(self, shape: tuple[int, ...]) -> None:
        x, codes = 100 + torch.randn(6, 3), 100 + torch.randn(8, 3)
        variance = torch.rand(shape) + 0.1
        a, b = gaussian_factors(*centered(x, codes), variance)
        gap = (x[:, None] - codes).double().square() / (2 * (variance[:, None] if shape else variance))
        expected = -gap.sum(-1)
        logits = (a @ b.T).double()
        torch.testing.assert_close(
            logits - logits[:, :1], expected - expected[:, :1], rtol=1e-4, atol=1e-4, check_dtype=False
        )

    def test_recomputing_blocks_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        results = []
        monkeypatch.setattr(relaxations, "_CPU_BLOCK", 64)
        for kept in (1 << 26, 0):
            monkeypatch.setattr(relaxations, "_KEPT", kept)
            torch.manual_seed(0)
            quantizer = ResidualStochasticQuantizer([table(4, 16), table(4, 16)])
            x = torch.randn(30, 4, requires_grad=True)
            output = quantizer(x)
            (output.quantized.square().sum() + output.loss).backward()
            results.append([output.quantized, x.grad, *(p.grad for p in quantizer.parameters())])
        for left, right in zip(*results, strict=True):
            assert torch.equal(left, right)
        parts: list[int] = []
        over_blocks(lambda rows: (parts.append(len(rows)), rows)[1:], [torch.ones(10, 2)], 16)
        assert parts == [4, 4, 2]


class TestStochastic:
    @pytest.mark.parametrize("variance", EXTRA)
    def test_losses_are_those_of_the_formula(self, variance: Any) -> None:
        quantizer = StochasticQuantizer(table(3, 8), variance=variance, initial_variance=0.7, floor=0.2).double()
        x = torch.randn(2, 5, 3 + EXTRA[variance], dtype=torch.float64)
        mask = torch.rand(2, 5) < 0.7
        output = quantizer(x, mask)
        z, extra, codes = x[..., :3], x[..., 3:], quantizer.codes()
        v = torch.full_like(z, 0.9)
        if variance == "image":
            each = (extra * mask.unsqueeze(-1)).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
            v = v + each.exp()
        elif variance != "scalar":
            v = v + extra.exp()
        log_q = (-(z.unsqueeze(-2) - codes).square() / (2 * v.unsqueeze(-2))).sum(-1).log_softmax(-1)
        torch.testing.assert_close(output.losses["entropy"], (log_q.exp() * log_q).sum(-1)[mask].mean())
        gap = (z - output.quantized).square() / (2 * v)
        torch.testing.assert_close(output.losses["distance"], gap.sum(-1)[mask].mean())
        assert torch.equal(output.indices[mask].squeeze(-1), log_q.argmax(-1)[mask])
        assert torch.equal(quantizer.encode(x, mask), output.indices)

    def test_vmf_compares_directions(self) -> None:
        quantizer = StochasticQuantizer(table(3, 8), distribution="vmf", initial_variance=4.0).double()
        x = torch.randn(40, 3, dtype=torch.float64)
        output = quantizer(x)
        z, codes = F.normalize(x, dim=1), F.normalize(quantizer.codebook.codes(), dim=1)
        log_q = (5 * z @ codes.T).log_softmax(1)
        torch.testing.assert_close(output.losses["entropy"], (log_q.exp() * log_q).sum(1).mean())
        expected = 5 * (z * (z - output.quantized)).sum(1).mean()
        torch.testing.assert_close(output.losses["distance"], expected)
        hard = quantizer.eval()(7 * x)
        assert torch.equal(hard.indices, output.indices) and torch.equal(hard.quantized, codes[hard.indices[:, 0]])

    @pytest.mark.parametrize("variance", ["scalar", "image", "position", "channel"])
    def test_small_variance_gives_the_nearest_code(self, variance: Any) -> None:
        quantizer = StochasticQuantizer(table(3, 8), variance=variance, initial_variance=1e-6, floor=0)
        z = torch.randn(50, 3)
        output = quantizer(torch.cat([z, torch.full((50, EXTRA[variance]), -14.0)], 1))
        codes = quantizer.codes()
        torch.testing.assert_close(output.quantized, codes[nearest_code(z, codes)], rtol=1e-3, atol=1e-3)
        assert abs(float(output.losses["entropy"].detach())) < 0.02

    def test_one_code_has_no_entropy(self) -> None:
        quantizer = StochasticQuantizer(table(3, 1))
        assert quantizer(torch.randn(9, 3)).losses["entropy"] == 0

    def test_rows_are_images_of_their_own(self) -> None:
        torch.manual_seed(1)
        x = torch.randn(20, 4)
        outputs = []
        for variance in ("image", "position"):
            torch.manual_seed(2)
            quantizer = StochasticQuantizer(table(3, 8), variance=variance)  # type: ignore[arg-type]
            outputs.append(quantizer(x))
        assert torch.equal(outputs[0].quantized, outputs[1].quantized)
        assert outputs[0].losses == outputs[1].losses

    def test_variance_of_an_image_sees_its_valid_positions_only(self) -> None:
        results = []
        for filling in (0.0, 9.0):
            torch.manual_seed(0)
            quantizer = StochasticQuantizer(table(3, 8), variance="image")
            x = torch.randn(2, 4, 4, 4)
            mask = torch.rand(2, 4, 4) < 0.5
            x = torch.where(mask.unsqueeze(-1), x, filling).requires_grad_()
            output = quantizer(x, mask)
            output.loss.backward()
            assert x.grad is not None and not x.grad[~mask].any() and bool((x.grad[mask][:, 3] != 0).all())
            results.append(output)
        assert torch.equal(results[0].quantized, results[1].quantized) and results[0].losses == results[1].losses

    def test_channel_variances_change_what_near_means(self) -> None:
        quantizer = StochasticQuantizer(table(2, 16), variance="channel", initial_variance=1e-3).eval()
        x = torch.randn(200, 4) * torch.tensor([1.0, 1.0, 3.0, 3.0])
        v = x[:, 2:].exp() + 1e-3
        gap = ((x[:, None, :2] - quantizer.codes()).square() / v[:, None]).sum(-1)
        assert torch.equal(quantizer.encode(x).squeeze(1), gap.argmin(1))
        assert not torch.equal(gap.argmin(1), nearest_code(x[:, :2], quantizer.codes()))
        assert torch.equal(quantizer.fold().encode(x), quantizer.encode(x))

    @pytest.mark.parametrize("variance", ["position", "channel"])
    @pytest.mark.parametrize("value", [-1e4, -80.0, 80.0, 1e4])
    def test_no_log_variance_breaks_it(self, variance: Any, value: float) -> None:
        quantizer = StochasticQuantizer(table(3, 8), variance=variance, floor=0, initial_variance=1e-9)
        x = torch.cat([torch.randn(20, 3), torch.full((20, EXTRA[variance]), value)], 1).requires_grad_()
        output = quantizer(x)
        (output.quantized.sum() + output.loss).backward()
        assert torch.isfinite(output.loss) and x.grad is not None and bool(torch.isfinite(x.grad).all())
        assert bool((quantizer.encode(x) >= 0).all())

    def test_the_entropy_widens_and_the_task_hardens(self) -> None:
        """Why v anneals itself: the entropy asks for more of it, keeping the value near the latent for less."""
        quantizer = StochasticQuantizer(table(4, 16, 2.0), initial_variance=1.0)
        x = quantizer.codes().detach().repeat(50, 1)
        output = quantizer(x)
        task = (output.quantized - x).square().sum()
        signs = []
        for loss in (output.losses["entropy"], task):
            (gradient,) = torch.autograd.grad(loss, quantizer.log_variance, retain_graph=True)
            signs.append(float(gradient.sign()))
        assert signs == [-1, 1]

    def test_temperature_follows_its_schedule(self) -> None:
        quantizer = StochasticQuantizer(table(3, 8), temperature=DecaySchedule(1.0, factor=1e-4, interval=1))
        x, codes = torch.randn(50, 3), quantizer.codes().detach()
        soft = torch.cdist(quantizer(x).quantized.detach(), codes).amin(1).mean()
        quantizer.update_codebook()
        hard = torch.cdist(quantizer(x).quantized.detach(), codes).amin(1).mean()
        assert soft > 0.2 and hard < 0.01

    def test_vmf_gives_a_zero_vector_no_gradient(self) -> None:
        quantizer = StochasticQuantizer(table(3, 8), distribution="vmf")
        x = torch.randn(20, 3)
        x[4] = 0
        x.requires_grad_()
        output = quantizer(x)
        (output.quantized.square().sum() + output.quantized.sum() + output.loss).backward()
        assert x.grad is not None and not x.grad[4].any() and bool(x.grad[:4].any(1).all())
        assert float(x.grad.norm()) < 1e3

    def test_learned_scalars_stay_wide(self) -> None:
        for quantizer in (StochasticQuantizer(table(3, 8)), ResidualStochasticQuantizer([table(3, 8)])):
            assert all(p.dtype == torch.float32 for p in quantizer.bfloat16().parameters())

    def test_initialization_fits_the_vectors_and_not_the_variances(self) -> None:
        quantizer = StochasticQuantizer(FreeCodebook(3, 8), variance="channel")
        x = torch.cat([5 + torch.randn(200, 3), -9 * torch.ones(200, 3)], 1)
        quantizer.initialize_codebook(x)
        assert (quantizer.codes().mean(0) - 5).abs().max() < 0.7
        assert len(quantizer.encode(x).unique()) == 8
        near = quantizer.nearest(x[:, :3], 3)
        assert near.shape == (200, 3) and torch.equal(near[:, 0], nearest_code(x[:, :3], quantizer.codes()))

    def test_folded_kinds(self) -> None:
        for distribution, metric in (("gaussian", "euclidean"), ("vmf", "cosine")):
            folded: Any = StochasticQuantizer(MLPCodebook(3, 8), distribution=distribution).fold()  # type: ignore[arg-type]
            assert type(folded) is VectorQuantizer and folded.assignment.metric == metric
        folded = StochasticQuantizer(MLPCodebook(3, 8), variance="image", floor=0.5).fold()
        assert type(folded) is StochasticQuantizer and folded.floor == 0.5

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(variance="vector"), "expected variance 'scalar', 'image'"),
            (dict(distribution="normal"), "expected distribution 'gaussian' or 'vmf', got 'normal'"),
            (dict(distribution="vmf", variance="image"), "expected variance 'scalar' with distribution 'vmf'"),
            (dict(temperature=0.0), "expected temperature > 0, got 0.0"),
            (dict(initial_variance=0.0), "expected initial_variance > 0, got 0.0"),
            (dict(floor=-1.0), "expected floor >= 0, got -1.0"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            StochasticQuantizer(FreeCodebook(2, 4), **arguments)


class TestResidual:
    def test_one_level_is_the_single_quantizer(self) -> None:
        book = table(4, 16)
        x, results = torch.randn(3, 10, 4), []
        for quantizer in (
            ResidualStochasticQuantizer([book], initial_variance=3.0),
            StochasticQuantizer(book, floor=0.0, initial_variance=3.0),
        ):
            torch.manual_seed(5)
            y = x.clone().requires_grad_()
            output = quantizer(y)
            loss = output.quantized.square().sum() + output.loss
            results.append((output, torch.autograd.grad(loss, (y, *quantizer.parameters()))))
        (left, left_grads), (right, right_grads) = results
        torch.testing.assert_close(left.quantized, right.quantized)
        assert torch.equal(left.indices, right.indices)
        for ours, theirs in (("0/entropy", "entropy"), ("distance", "distance")):
            torch.testing.assert_close(left.losses[ours], right.losses[theirs])
        by_shape = {g.numel(): g.flatten() for g in right_grads}
        for grad in left_grads:
            torch.testing.assert_close(grad.flatten(), by_shape[grad.numel()], rtol=1e-4, atol=1e-5)

    def test_losses_are_those_of_the_formula(self) -> None:
        """One code per level: the samples are certain, so everything is known."""
        books = [table(3, 1), table(3, 1), table(3, 1)]
        quantizer = ResidualStochasticQuantizer(books, initial_variance=2.0)
        x = torch.randn(20, 3)
        output = quantizer(x)
        total = sum(book.weight[0] for book in books)
        torch.testing.assert_close(output.quantized, total.expand(20, 3))
        torch.testing.assert_close(output.losses["distance"], (x - total).square().sum(1).mean() / (2 * 6.0))
        assert all(output.losses[f"{level}/entropy"] == 0 for level in range(3))

    def test_gradients_pass_through_the_residuals(self) -> None:
        """The second level's entropy depends on the first level's codes, and so does its gradient."""
        books = [table(3, 8), table(3, 8)]
        quantizer = ResidualStochasticQuantizer(books, initial_variance=1.0)
        quantizer(torch.randn(50, 3)).losses["1/entropy"].backward()
        assert books[0].weight.grad is not None and bool(books[0].weight.grad.any())

    def test_prefixes_decode(self) -> None:
        quantizer = ResidualStochasticQuantizer([table(3, 32, 0.5**level) for level in range(3)])
        x = torch.randn(200, 3)
        indices = quantizer.encode(x)
        errors = [(x - quantizer.decode(indices[:, :n])).square().mean() for n in (1, 2, 3)]
        assert errors[0] > errors[1] > errors[2]
        assert torch.equal(quantizer.encode(x, num_levels=2), indices[:, :2])
        with pytest.raises(ValueError, match=r"expected num_levels in 1 \.\. 3, got 4"):
            quantizer.encode(x, num_levels=4)

    def test_a_shared_codebook_stays_shared(self) -> None:
        quantizer = ResidualStochasticQuantizer([table(3, 8)] * 3)
        assert len(list(quantizer.parameters())) == 2
        assert len({id(book) for book in quantizer.fold().codebooks}) == 1
        quantizer.initialize_codebook(torch.randn(100, 3))

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match=r"expected at least one codebook, all of one dim, got dims \[2, 3\]"):
            ResidualStochasticQuantizer([FreeCodebook(2, 4), FreeCodebook(3, 4)])
        with pytest.raises(ValueError, match=r"got dims \[\]"):
            ResidualStochasticQuantizer([])

    @pytest.mark.parametrize("seed", SEEDS)
    def test_layers_do_not_collapse(self, seed: int) -> None:
        """Five factors, bent into eight numbers; three layers of 16 codes from N(0, Id)."""
        stochastic, deterministic = (self._trained(seed, relaxed) for relaxed in (True, False))
        assert min(stochastic["perplexity"]) > 0.85 * 16
        assert all(a > b for a, b in zip(stochastic["perplexity"], deterministic["perplexity"], strict=True))
        one, two, three = stochastic["rmse"]
        assert one > two > three
        first, last = stochastic["entropy"]
        assert last < 0.75 * first and stochastic["variance"][-1] < 1.0  # from 5, by itself

    @staticmethod
    def _trained(seed: int, relaxed: bool, steps: int = 900) -> dict[str, list[float]]:
        torch.manual_seed(seed)
        mixing = torch.randn(5, 8)
        encoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
        decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
        books = [table(8, 16) for _ in range(3)]
        quantizer: Quantizer
        if relaxed:
            quantizer = ResidualStochasticQuantizer(books, initial_variance=5.0)
        else:
            quantizer = ResidualQuantizer([VectorQuantizer(book) for book in books])
        parameters = [*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()]
        optimizer = torch.optim.Adam(parameters, 3e-3)
        entropies = []
        for _ in range(steps):
            x = torch.tanh(torch.randn(128, 5) @ mixing)
            output = quantizer(encoder(x))
            error = (decoder(output.quantized) - x).square().sum(1).mean()
            optimizer.zero_grad()
            ((4 * error.log() if relaxed else error) + output.loss).backward()
            optimizer.step()
            entropies.append(-sum(float(v.detach()) for k, v in output.losses.items() if k.endswith("entropy")))
        x = torch.tanh(torch.randn(4096, 5) @ mixing)
        with torch.no_grad():
            indices = quantizer.encode(encoder(x))
            decoded = [decoder(quantizer.decode(indices[:, :n])) for n in (1, 2, 3)]
        return {
            "perplexity": [float(perplexity(code_counts(channel, 16))) for channel in indices.unbind(1)],
            "rmse": [float((y - x).square().mean().sqrt()) for y in decoded],
            "entropy": [entropies[0], entropies[-1]],
            "variance": quantizer.log_variances.exp().tolist() if relaxed else [],  # type: ignore[operator, union-attr]
        }


class TestMixture:
    def test_no_noise_on_the_code(self) -> None:
        book = table(3, 8)
        x = book.codes().detach().clone()
        output = GaussianMixtureQuantizer(book, variance=1e-4)(x)
        torch.testing.assert_close(output.quantized, x)
        torch.testing.assert_close(output.losses["latent"].detach(), torch.tensor(0.0), atol=1e-5, rtol=0)

    def test_the_noise_has_the_papers_variance(self) -> None:
        quantizer = GaussianMixtureQuantizer(table(4, 1), variance=0.3)
        x = torch.randn(1, 4).expand(20000, 4)
        values = quantizer(x).quantized.detach()
        mean, gap = quantizer.codebook.codes().detach()[0], (x[0] - quantizer.codebook.codes()[0]).detach()
        expected = float(gap.square().sum() / (2 * 0.3 * 4))
        assert (values.mean(0) - mean).abs().max() < 5 * math.sqrt(expected / 20000)
        assert float(values.var(0).mean()) == pytest.approx(expected, rel=0.03)

    def test_gradient_reaches_the_means_through_value_and_noise(self) -> None:
        quantizer = GaussianMixtureQuantizer(table(4, 1), variance=0.3)
        x = torch.randn(30, 4)
        torch.manual_seed(3)
        values = quantizer(x).quantized
        mean = quantizer.codebook.codes()
        scale = (x - mean).norm(dim=1, keepdim=True) / math.sqrt(2 * 0.3 * 4)
        noise = ((values - mean) / scale).detach()
        torch.testing.assert_close(values, mean + scale * noise)
        weight = torch.randn(30, 4)
        (got,) = torch.autograd.grad((values * weight).sum(), quantizer.codebook.weight, retain_graph=True)
        (expected,) = torch.autograd.grad(((mean + scale * noise) * weight).sum(), quantizer.codebook.weight)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("regularizer", ["batch", "sample", None])
    def test_losses_are_those_of_the_formula(self, regularizer: Any) -> None:
        quantizer = GaussianMixtureQuantizer(
            table(3, 8), variance=0.4, latent_weight=0.6, balance_weight=2.0, regularizer=regularizer
        ).double()
        x, mask = 3 + torch.randn(60, 3, dtype=torch.float64), torch.rand(60) < 0.7
        losses = quantizer(x, mask).losses
        gap = torch.cdist(x, quantizer.codebook.codes())[mask].square()
        q = (-gap / 0.8).softmax(1)
        torch.testing.assert_close(losses["latent"], 0.6 * (q * gap).sum(1).mean())
        expected = {"batch": (q.mean(0) * (8 * q.mean(0)).log()).sum(), "sample": (q * (8 * q).log()).sum(1).mean()}
        if regularizer is None:
            assert "balance" not in losses
        else:
            torch.testing.assert_close(losses["balance"], 2 * expected[regularizer])

    def test_balanced_certain_choices_cost_nothing_in_the_batch_alone(self) -> None:
        book = table(3, 8)
        x = book.codes().detach().repeat(5, 1)
        for regularizer, expected in (("batch", 0.0), ("sample", math.log(8))):
            quantizer = GaussianMixtureQuantizer(book, variance=1e-4, regularizer=regularizer)  # type: ignore[arg-type]
            assert float(quantizer(x).losses["balance"].detach()) == pytest.approx(expected, abs=1e-5)

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="expected regularizer 'batch', 'sample' or None, got 'both'"):
            GaussianMixtureQuantizer(FreeCodebook(2, 4), regularizer="both")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected variance > 0"):
            GaussianMixtureQuantizer(FreeCodebook(2, 4), variance=0.0)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_only_the_batch_regularizer_keeps_codes_and_decides(self, seed: int) -> None:
        """16 blobs in 8-D, latent 4, K = 32."""
        batch, sample, none = (self._trained(seed, regularizer) for regularizer in ("batch", "sample", None))
        assert batch["perplexity"] > sample["perplexity"] and batch["perplexity"] > none["perplexity"]
        assert batch["entropy"] < sample["entropy"]
        assert batch["mse"] < sample["mse"]

    @staticmethod
    def _trained(seed: int, regularizer: Any, steps: int = 400) -> dict[str, float]:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        centers = 3 * torch.randn(16, 8, generator=generator)

        def draw(num: int) -> Tensor:
            chosen = torch.randint(0, 16, (num,), generator=generator)
            return centers[chosen] + 0.5 * torch.randn(num, 8, generator=generator)

        encoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
        decoder = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 8))
        quantizer = GaussianMixtureQuantizer(
            FreeCodebook(4, 32), variance=0.1, latent_weight=0.5, balance_weight=3.0, regularizer=regularizer
        )
        parameters = [*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()]
        optimizer = torch.optim.Adam(parameters, 3e-3)
        for _ in range(steps):
            x = draw(256)
            output = quantizer(encoder(x))
            optimizer.zero_grad()
            ((decoder(output.quantized) - x).square().sum(1).mean() + output.loss).backward()
            optimizer.step()
        x = draw(4096)
        with torch.no_grad():
            z = encoder(x)
            indices = quantizer.encode(z)
            log_q = (-torch.cdist(z, quantizer.codebook.codes()).square() / 0.2).log_softmax(1)
            error = (decoder(quantizer.decode(indices)) - x).square().mean()
        return {
            "perplexity": float(perplexity(code_counts(indices[:, 0], 32))),
            "entropy": -float((log_q.exp() * log_q).sum(1).mean()),
            "mse": float(error),
        }


def balance_and_bound(x: Tensor) -> dict[str, Tensor]:
    """Losses of the joined batch, and the gradient that data parallelism would average."""
    quantizer = GaussianMixtureQuantizer(table(4, 16), latent_weight=0.0)
    loss = quantizer(x).losses["balance"]
    bound = ElboObjective().reconstruction(x.square())
    (gradient,) = torch.autograd.grad(loss, quantizer.codebook.weight)
    return {"balance": loss.detach(), "bound": bound, "gradient": gradient}


def test_two_processes_equal_one(tmp_path: Path) -> None:
    left, right = on_two(balance_and_bound, tmp_path, (0, 50, 120))
    joined = on_one(balance_and_bound)
    for name in ("balance", "bound"):
        torch.testing.assert_close(left[name], joined[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(right[name], joined[name], rtol=1e-4, atol=1e-5)
    average = (left["gradient"] + right["gradient"]) / 2
    torch.testing.assert_close(average, joined["gradient"], rtol=1e-3, atol=1e-5)
