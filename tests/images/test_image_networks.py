"""Image encoder and decoder: shapes, value ranges, who depends on whom, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gritvq.component import from_config, to_config
from gritvq.images import ImageDecoder, ImageEncoder, num_parameters


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(factor: int, channels: int) -> None:
    shape: dict[str, Any] = dict(channels=channels, width=16, factor=factor, num_blocks=1)
    encoder, decoder = ImageEncoder(5, **shape), ImageDecoder(5, **shape)
    images = torch.rand(2, channels, 2 * factor, 3 * factor)
    latents = encoder(images)
    assert latents.shape == (2, 2, 3, 5)
    assert decoder(latents).shape == images.shape
    assert (encoder.dim, encoder.channels, encoder.factor) == (5, channels, factor)
    assert (decoder.dim, decoder.channels, decoder.factor) == (5, channels, factor)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pictures_do_not_depend_on_their_neighbors_in_the_batch_or_on_layout(
    memory_format: torch.memory_format,
) -> None:
    encoder, decoder = ImageEncoder(6, width=16, attention=True), ImageDecoder(6, width=16, attention=True)
    images = torch.rand(3, 3, 16, 16)
    joint = decoder(encoder(images.contiguous(memory_format=memory_format)))
    alone = torch.cat([decoder(encoder(image[None])) for image in images])
    torch.testing.assert_close(joint, alone, rtol=1e-4, atol=1e-5)


def test_the_linear_path_sees_exactly_its_own_patch() -> None:
    encoder = ImageEncoder(4, width=8, factor=4)
    images = torch.full((1, 3, 12, 12), 0.5)
    for parameter in encoder.deep.parameters():
        nn.init.zeros_(parameter)
    before = encoder(images)
    images[:, :, 4:8, 8:12] = 0.9
    changed = (encoder(images) != before).any(-1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("attention", [False, True])
def test_attention_reaches_everywhere_and_convolutions_do_not(attention: bool) -> None:
    encoder = ImageEncoder(4, width=32, num_blocks=0, attention=attention).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    for module in encoder.modules():  # group normalization sees all positions; switch it off
        if isinstance(module, nn.GroupNorm):
            setattr(module, "forward", lambda x: x)  # noqa: B010
    images = torch.rand(1, 3, 40, 40)
    images.requires_grad_()
    encoder(images)[0, 0, 0].sum().backward()
    assert images.grad is not None
    assert (images.grad[0, :, -4:, -4:].abs().max() > 0) == attention


def test_values_are_about_zero_to_one_and_not_clamped() -> None:
    decoder = ImageDecoder(8, width=16)
    assert decoder(torch.zeros(1, 2, 2, 8)).sub(0.5).abs().max() < 0.2
    assert decoder(100 * torch.randn(1, 2, 2, 8)).max() > 1


def test_the_quantizer_in_between_gets_a_gradient_at_the_first_step() -> None:
    encoder, decoder = ImageEncoder(16), ImageDecoder(16)
    images = torch.rand(4, 3, 16, 16)
    latents = encoder(images)
    latents.retain_grad()
    (decoder(latents) - images).square().mean().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_it_learns() -> None:
    encoder, decoder = ImageEncoder(16, width=16, num_blocks=1), ImageDecoder(16, width=16, num_blocks=1)
    images = torch.rand(8, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (decoder(encoder(images)) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_defaults_stay_small() -> None:
    assert num_parameters(ImageEncoder(16)) + num_parameters(ImageDecoder(16)) < 400_000
    widest: dict[str, Any] = dict(factor=16, attention=True)
    assert num_parameters(ImageEncoder(16, **widest)) + num_parameters(ImageDecoder(16, **widest)) < 1_200_000


def test_num_parameters_counts_shared_once_and_frozen_not_at_all() -> None:
    shared = nn.Linear(3, 2)
    assert num_parameters(nn.Sequential(shared, shared)) == 8
    shared.bias.requires_grad_(False)
    assert num_parameters(shared) == 6


def test_rebuilds_from_its_description() -> None:
    encoder = ImageEncoder(6, width=16, factor=8, attention=True)
    again = from_config(to_config(encoder))
    assert isinstance(again, ImageEncoder)
    again.load_state_dict(encoder.state_dict())
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(again(images), encoder(images))


@pytest.mark.parametrize("cls", [ImageEncoder, ImageDecoder])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dim=0), "dim >= 1, got 0"),
        (dict(dim=4, channels=0), "channels >= 1, got 0"),
        (dict(dim=4, num_blocks=-1), "num_blocks >= 0, got -1"),
        (dict(dim=4, width=12), "multiple of 8, got 12"),
        (dict(dim=4, width=0), "multiple of 8, got 0"),
        (dict(dim=4, factor=1), "2, 4, 8 or 16, got 1"),
        (dict(dim=4, factor=6), "2, 4, 8 or 16, got 6"),
        (dict(dim=4, factor=32), "2, 4, 8 or 16, got 32"),
    ],
)
def test_bad_arguments(cls: type[nn.Module], arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 8, 8), r"got \(3, 8, 8\)"),
        (torch.rand(1, 1, 8, 8), r"\(B, 3, H, W\).*got \(1, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "torch.uint8; .*divide bytes by 255"),
        (torch.rand(1, 3, 8, 10), "multiples of 4, got 8 x 10; pad or crop"),
    ],
)
def test_bad_pictures(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEncoder(4, width=8)(images)


@pytest.mark.parametrize("vectors", [torch.rand(1, 4, 2, 2), torch.rand(2, 2, 4), torch.zeros(1, 2, 2, 4).long()])
def test_bad_vectors(vectors: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(B, h, w, 4\)"):
        ImageDecoder(4, width=8)(vectors)
