"""A quantizer for channels at axis 1 is the quantizer itself, with the axis declared and not guessed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gritvq import (
    FSQ,
    ChannelsFirst,
    HierarchicalQuantizer,
    MultiScaleQuantizer,
    PerturbedQuantizer,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    VariationalLatent,
    from_config,
    grit_vq,
    to_config,
    vq_vae,
    vq_vae_ema,
)
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.items import RQVAE, ItemDecoder, ItemEncoder
from test_contract import assert_same, contents
from zoo import PRESETS, trained_a_little

D = 8
MAKERS: dict[str, Callable[[], Quantizer]] = {
    **{name: (lambda make=make: make(D, 32)) for name, make in PRESETS.items() if not make(D, 32).layout},
    "fsq": lambda: FSQ([3] * D),
    "projected": lambda: ProjectedQuantizer(grit_vq(3, 32), D),
    "multiscale": lambda: MultiScaleQuantizer(vq_vae(D, 32), [1, 2, 8]),
    "hierarchical": lambda: HierarchicalQuantizer([vq_vae_ema(D, 32), grit_vq(D, 32)], D),
    "variational": lambda: VariationalLatent(vq_vae(D // 2, 32)),
}


def pair(make: Callable[[], Quantizer]) -> tuple[Quantizer, ChannelsFirst]:
    torch.manual_seed(0)
    quantizer = trained_a_little(make())
    return quantizer, ChannelsFirst(copy.deepcopy(quantizer))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_is_the_quantizer_with_moved_channels(make: Callable[[], Quantizer], masked: bool) -> None:
    """Width, height and channels are all 8: only the declared axis is the right one."""
    quantizer, wrapped = pair(make)
    images = torch.randn(2, quantizer.input_dim, D, D, requires_grad=True)
    vectors = images.detach().movedim(1, -1).clone().requires_grad_()
    mask = torch.rand(2, D, D) < 0.7 if masked else None
    found, grads = [], []
    for module, x in ((quantizer, vectors), (wrapped, images)):
        torch.manual_seed(1)
        output = module(x, mask)
        weight = torch.linspace(0, 1, quantizer.dim)
        values = output.quantized if module is quantizer else output.quantized.movedim(1, -1)
        grads.append(torch.autograd.grad((values * weight).square().sum() + output.loss, x, allow_unused=True)[0])
        found.append(output)
        module.update_codebook()
    plain, moved = found
    assert moved.quantized.shape == (2, quantizer.dim, D, D) and moved.quantized.is_contiguous()
    assert torch.equal(moved.quantized.movedim(1, -1), plain.quantized) and torch.equal(moved.indices, plain.indices)
    assert moved.losses.keys() == plain.losses.keys() and moved.loss == plain.loss
    if grads[0] is not None:
        torch.testing.assert_close(grads[1].movedim(1, -1), grads[0], rtol=1e-5, atol=1e-6)
    assert_same(contents(quantizer), contents(wrapped.quantizer))
    indices = wrapped.encode(images, mask)
    assert torch.equal(indices, quantizer.encode(vectors, mask))
    decoded = wrapped.decode(indices)
    assert torch.equal(decoded.movedim(1, -1), quantizer.decode(indices))
    folded = wrapped.fold()
    assert torch.equal(folded.encode(images, mask), indices) and torch.equal(folded.decode(indices), decoded)
    if quantizer.exact != "never":
        assert torch.equal(wrapped.eval()(images, mask).quantized, decoded)


@pytest.mark.parametrize("shape", [(3, D), (3, D, 5), (3, D, 5, 4), (2, D, 3, 4, 2), (0, D, 4, 4)])
def test_any_number_of_spatial_axes(shape: tuple[int, ...]) -> None:
    quantizer = ChannelsFirst(grit_vq(D, 32))
    output = quantizer(torch.randn(shape))
    assert output.quantized.shape == shape and output.indices.shape == (shape[0], *shape[2:], 1)


def test_says_what_its_quantizer_says() -> None:
    quantizer = MultiScaleQuantizer(vq_vae_ema(D, 32), [1, 2, 8])
    wrapped = ChannelsFirst(quantizer)
    assert wrapped.layout == (8, 8) and wrapped.objective == "reconstruction" and wrapped.wants_initialization
    assert wrapped.token_shape((3, 8, 8)) == (3, 69) and wrapped.bits((8, 8)) == 69 * 5
    wrapped.expect_updates()
    assert quantizer.quantizer._passes == quantizer._passes < 0


def test_start_from_data_and_the_memory_layout() -> None:
    first, second = ChannelsFirst(vq_vae_ema(D, 16)), vq_vae_ema(D, 16)
    images = torch.randn(4, D, D, D)
    first.initialize_codebook(images)
    second.initialize_codebook(images.movedim(1, -1))
    assert_same(contents(first.quantizer), contents(second))
    strided = images.to(memory_format=torch.channels_last)
    assert first(strided).quantized.is_contiguous(memory_format=torch.channels_last)


def test_is_saved_with_its_quantizer() -> None:
    _, quantizer = pair(lambda: grit_vq(D, 32))
    again: Any = from_config(to_config(quantizer))
    again.load_state_dict(quantizer.state_dict())
    x = torch.randn(2, D, 4, 4)
    assert torch.equal(again.encode(x), quantizer.encode(x))
    assert to_config(quantizer)["class_path"] == "gritvq.ChannelsFirst"
    assert (again.dim, again.input_dim, again.codebook_sizes, again.exact) == (D, D, (32,), "always")


def test_one_line_of_an_existing_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, D, 4, 4), ChannelsFirst(vq_vae_ema(D, 16)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    quantizer: Any = model[1]
    quantizer.attach(optimizer)
    before = quantizer.quantizer.codebook.codes().clone()
    output = model(torch.randn(2, 3, 32, 32))
    (output.quantized.square().mean() + output.loss).backward()
    optimizer.step()
    assert not torch.equal(quantizer.quantizer.codebook.codes(), before)
    assert quantizer.parameter_groups(1e-3) == []


class TestRefused:
    @pytest.mark.parametrize("shape", [(2, 4, 4, D), (D,), (2, D + 1, D, D), (D, 3)])
    def test_another_axis(self, shape: tuple[int, ...]) -> None:
        quantizer = ChannelsFirst(grit_vq(D, 32))
        for act in (quantizer, quantizer.encode, quantizer.initialize_codebook):
            with pytest.raises(ValueError, match=r"expected vectors \(B, 8, \*spatial\), channels at axis 1, got"):
                act(torch.randn(shape))

    def test_plain_quantizers_name_the_way_out(self) -> None:
        with pytest.raises(ValueError, match=r"channels come last.*ChannelsFirst\(quantizer\)"):
            grit_vq(D, 32)(torch.randn(2, D, 4, 4))

    def test_around_something_else(self) -> None:
        with pytest.raises(ValueError, match="expected a quantizer, got Linear"):
            ChannelsFirst(nn.Linear(2, 2))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected a quantizer, got ChannelsFirst"):
            ChannelsFirst(ChannelsFirst(grit_vq(D, 32)))  # type: ignore[arg-type]

    def test_inside_of_anything(self) -> None:
        part: Any = ChannelsFirst(vq_vae(D, 32))
        into: list[Callable[[], Any]] = [
            lambda: ResidualQuantizer([part, part]),
            lambda: ProductQuantizer([part]),
            lambda: HierarchicalQuantizer([part, part], D),
            lambda: ProjectedQuantizer(part, 3),
            lambda: PerturbedQuantizer(part),
            lambda: MultiScaleQuantizer(part, [1, 2]),
            lambda: VariationalLatent(part),
            lambda: ImageTokenizer(ImageEncoder(D, width=8), part, ImageDecoder(D, width=8)),
            lambda: RQVAE(part, encoder=ItemEncoder(4, D), decoder=ItemDecoder(4, D)),
        ]
        for make in into:
            with pytest.raises(ValueError, match="channels last, got ChannelsFirst"):
                make()


def test_a_masked_place_is_hidden() -> None:
    quantizer = ChannelsFirst(grit_vq(D, 32))
    mask = torch.rand(2, D, D) < 0.5
    output = quantizer(torch.randn(2, D, D, D), mask)
    assert not output.quantized.movedim(1, -1)[~mask].any() and torch.equal(output.indices[..., 0] >= 0, mask)
