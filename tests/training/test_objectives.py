"""Objectives: bounds against their formulas, and which quantizer gets which."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gritvq import (
    FreeCodebook,
    GaussianMixtureQuantizer,
    ResidualStochasticQuantizer,
    StochasticQuantizer,
    grit_vq,
    vq_vae,
)
from gritvq.component import Component
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer, TokenizerTask, image_losses
from gritvq.items import ItemDecoder, ItemEncoder
from gritvq.items.tokenizers import RQVAE
from gritvq.training.objectives import ElboObjective, ReconstructionObjective, objective_for
from test_stochastic import table


class _Constant(Component):
    """An encoder whose latents are equal everywhere: as many as the image has blocks of 4 x 4."""

    dim, factor, channels = 3, 4, 3

    def forward(self, images: Tensor) -> Tensor:
        latents = torch.tensor([0.3, -0.2, 0.5])
        return latents.expand(len(images), images.shape[2] // 4, images.shape[3] // 4, 3)


class _Gray(Component):
    dim, factor, channels = 3, 4, 3

    def forward(self, values: Tensor) -> Tensor:
        blocks = values.mean(-1)[:, None].detach() * 0 + 0.5
        return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


class TestObjectives:
    def test_four_times_the_image_has_four_times_the_latent_loss(self) -> None:
        quantizer = StochasticQuantizer(table(3, 8), initial_variance=1e-6, floor=0.0)  # certain: no noise in the loss
        tokenizer = ImageTokenizer(_Constant(), quantizer, _Gray())
        sums = []
        for side in (8, 16):
            losses, output = image_losses(ElboObjective(), tokenizer, torch.rand(2, 3, side, side))
            whole = (losses["distance"] + losses["entropy"]) * 3 * side * side
            per_vector = output.quantization.loss
            torch.testing.assert_close(whole, per_vector * (side // 4) ** 2)
            sums.append(float(whole.detach()))
        assert sums[1] == pytest.approx(4 * sums[0], rel=1e-4)

    def test_reconstruction_terms(self) -> None:
        error = torch.rand(4, 3, 8, 8, requires_grad=True)
        mean = float(error.mean().detach())
        assert float(ElboObjective().reconstruction(error).detach()) == pytest.approx(0.5 * math.log(mean), rel=1e-5)
        per_image = error.sum((1, 2, 3)).mean()  # n/2 log SE, but for the constant and the division by n
        (published,) = torch.autograd.grad(96 * per_image.log(), error, retain_graph=True)
        (ours,) = torch.autograd.grad(ElboObjective().reconstruction(error), error)
        torch.testing.assert_close(192 * ours, published)
        fixed = ElboObjective("fixed").reconstruction(error).detach()
        assert float(fixed) == pytest.approx(mean) and float(
            ElboObjective("fixed", variance=0.1).reconstruction(error).detach()
        ) == pytest.approx(5 * mean)

    def test_the_learned_variance_is_the_mean_error_at_its_best(self) -> None:
        error = torch.rand(4, 3, 8, 8)
        objective = ElboObjective("learned")
        assert float(objective.log_variance.exp().detach()) == pytest.approx(0.1)  # type: ignore[union-attr]
        optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = objective.reconstruction(error)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        assert float(objective.log_variance.exp().detach()) == pytest.approx(float(error.mean()), rel=1e-3)  # type: ignore[union-attr]
        gap = objective.reconstruction(error) - ElboObjective().reconstruction(error)
        assert float(gap.detach()) == pytest.approx(0.5, abs=1e-4)
        assert objective.bfloat16().log_variance.dtype == torch.float32  # type: ignore[union-attr]

    def test_the_quantizer_says_which(self) -> None:
        book = FreeCodebook(3, 8)
        assert isinstance(objective_for(grit_vq(3, 8)), ReconstructionObjective)
        arelbo: Any = objective_for(StochasticQuantizer(book))
        assert arelbo.likelihood == "arelbo"
        albo: Any = objective_for(GaussianMixtureQuantizer(book))
        assert albo.likelihood == "fixed" and albo.variance == 0.5
        other = grit_vq(3, 8)
        other.objective = "likelihood"  # type: ignore[assignment]
        with pytest.raises(ValueError, match="got 'likelihood' from VectorQuantizer; pass an objective of your own"):
            objective_for(other)

    @pytest.mark.parametrize(
        "quantizer",
        [vq_vae(3, 8), StochasticQuantizer(table(3, 8)), GaussianMixtureQuantizer(table(3, 8))],
        ids=["reconstruction", "arelbo", "albo"],
    )
    def test_of_vectors_it_is_the_loss_of_rq_vae(self, quantizer: Any) -> None:
        sizes: dict[str, Any] = {"input_dim": 6, "dim": 3, "hidden": (8,)}
        tokenizer = RQVAE(quantizer, encoder=ItemEncoder(**sizes), decoder=ItemDecoder(**sizes)).train()
        rows = torch.randn(20, 6)
        torch.manual_seed(0)
        expected = tokenizer._loss(rows, torch.arange(20), torch.tensor(3.0), plain=False)
        torch.manual_seed(0)
        output = quantizer(tokenizer.encoder(rows))
        error = (tokenizer.decoder(output.quantized) - rows) / math.sqrt(3)
        found = torch.stack(list(objective_for(quantizer)(error, output).values())).sum()
        torch.testing.assert_close(found, expected)

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="expected likelihood 'arelbo', 'learned' or 'fixed', got 'elbo'"):
            ElboObjective("elbo")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="leave it out for 'arelbo'"):
            ElboObjective(variance=0.1)
        with pytest.raises(ValueError, match="expected a variance > 0"):
            ElboObjective("fixed", variance=0.0)

    @pytest.mark.parametrize(
        "quantizer",
        [
            lambda: StochasticQuantizer(table(6, 32), initial_variance=1.0),
            lambda: StochasticQuantizer(table(6, 32), variance="image", initial_variance=1.0),
            lambda: StochasticQuantizer(table(6, 32), variance="channel", initial_variance=1.0),
            lambda: StochasticQuantizer(table(6, 32), distribution="vmf"),
            lambda: ResidualStochasticQuantizer([table(6, 32), table(6, 32)], initial_variance=5.0),
            lambda: GaussianMixtureQuantizer(table(6, 32)),
        ],
        ids=["scalar", "image", "channel", "vmf", "residual", "mixture"],
    )
    def test_tokenizers_learn(self, quantizer: Any) -> None:
        made = quantizer()
        encoder = ImageEncoder(made.input_dim, width=8, num_blocks=1)
        task = TokenizerTask(ImageTokenizer(encoder, made, ImageDecoder(made.dim, width=8, num_blocks=1)))
        images = F.interpolate(torch.rand(16, 3, 4, 4), scale_factor=4, mode="bicubic").clamp(0, 1)
        optimizer = torch.optim.Adam(task.parameters(), 3e-3)
        errors = []
        for _ in range(60):
            losses, output = image_losses(task.objective, task.tokenizer, images)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            norm = nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            assert torch.isfinite(norm)
            optimizer.step()
            made.update_codebook(optimizer)
            errors.append(float((output.reconstruction - images).square().mean().detach()))
        assert errors[-1] < 0.5 * errors[0]
