"""A perceptual loss where it is used: among the losses of a batch, in the adaptive weight, in whole trainings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import smooth_pictures
from gritvq import vq_vae
from gritvq.images import (
    AdversarialLoss,
    ImageData,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    PatchDiscriminator,
    PerceptualLoss,
    TokenizerTask,
    image_losses,
)
from gritvq.training import TrainingPlan, train
from gritvq.training.objectives import ReconstructionObjective
from gritvq.training.run import seed_everything

WEIGHT = 0.3


def network() -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Conv2d(3, 5, 3)


def tokenizer() -> ImageTokenizer:
    seed_everything(0)
    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    return ImageTokenizer(ImageEncoder(4, **shape), vq_vae(4, 16), ImageDecoder(4, **shape))


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Twice one minus the cosine of the features of a place, on average: the square of the difference of two units."""
    u, v = (network().requires_grad_(False)(each) for each in (x, y))
    return (2 - 2 * (u * v).sum(1) / (u.square().sum(1) * v.square().sum(1)).sqrt()).mean()


def test_the_loss_of_a_batch_is_the_weighted_distance() -> None:
    own, images = tokenizer(), torch.rand(2, 3, 8, 8)
    objective, perceptual = ReconstructionObjective(), PerceptualLoss(network(), weight=WEIGHT)
    losses, output = image_losses(objective, own, images, perceptual=perceptual)
    expected = WEIGHT * distance(output.reconstruction, images)
    torch.testing.assert_close(losses["perceptual"], expected, rtol=1e-4, atol=1e-6)  # 2 - 2 cos cancels digits
    assert losses["perceptual"] > 0.01
    plain, _ = image_losses(objective, own, images)
    assert losses.keys() - plain.keys() == {"perceptual"}
    assert all(torch.equal(losses[name], plain[name]) for name in plain)


def test_the_adaptive_weight_compares_with_the_perceptual_loss_too() -> None:
    own, images = tokenizer(), torch.rand(2, 3, 8, 8)
    adversarial = AdversarialLoss(PatchDiscriminator(width=8, num_layers=1), weight=0.7)
    perceptual = PerceptualLoss(network(), weight=WEIGHT)
    losses, output = image_losses(
        ReconstructionObjective(), own, images, perceptual=perceptual, adversarial=adversarial
    )

    def pull(loss: Tensor) -> Tensor:
        """The norm of the gradient at the last layer."""
        (gradient,) = torch.autograd.grad(loss, own.decoder.last_layer, retain_graph=True)
        return gradient.square().sum().sqrt()

    deceived = -adversarial.discriminator(output.reconstruction).mean()
    error = (2 * (output.reconstruction - images)).square().mean()  # of pixels in [-1, 1]
    both = pull(error + WEIGHT * distance(output.reconstruction, images))
    torch.testing.assert_close(losses["adversarial"], 0.7 * both / (pull(deceived) + 1e-4) * deceived)
    assert abs(both / pull(error) - 1) > 0.01  # so that the perceptual loss is told from none


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 24 smooth pictures, 16 x 16."""
    return smooth_pictures(tmp_path_factory.mktemp("pictures"), 24)


def trained(folder: str, weight: float | None) -> ImageTokenizer:
    """A tokenizer after three steps with a perceptual loss of this weight, or without one."""
    perceptual = None if weight is None else PerceptualLoss(network(), weight=weight)
    task = TokenizerTask(tokenizer(), lr=3e-3, warmup_steps=0, perceptual=perceptual)
    data = ImageData(folder, batch_size=8, num_validation=8)
    train(task, data, TrainingPlan(max_steps=3, validate_every=0, accelerator="cpu"), progress=False)
    return task.tokenizer


def test_trainings_end_elsewhere_with_another_weight(pictures: str) -> None:
    found = {weight: trained(pictures, weight).decoder.state_dict() for weight in (None, 0.0, 1.0, 2.0)}

    def same(one: float | None, other: float | None) -> bool:
        return all(torch.equal(found[one][name], found[other][name]) for name in found[one])

    assert same(None, 0.0)
    assert not same(0.0, 1.0) and not same(1.0, 2.0)
