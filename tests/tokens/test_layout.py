"""Tokens in sequences: nothing is lost, and everything is where the layout says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gritvq import (
    FreeCodebook,
    HierarchicalQuantizer,
    MultiScaleQuantizer,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    VectorQuantizer,
    from_config,
    rq,
    to_config,
    vq_vae,
)
from gritvq.tokens import PAD, TokenLayout
from gritvq.tokens.layout import Interleaving
from zoo import DIM, PRESETS, QUANTIZERS, SIZE, SPECIAL_PRESETS

STRUCTURES = ["residual-of-kinds", "product-tokens", "product-of-multiscales", "product-of-residuals", "multiscale"]
STRUCTURES += ["hierarchical-of-kinds", "projected-residual", "variational-latent-radial-residual"]
EVERY: tuple[Interleaving, ...] = ("parallel", "flat", "delay")


def positions_of(quantizer: Quantizer) -> tuple[int, ...]:
    """Of a small sample that fits."""
    return (3, *quantizer.layout) if len(quantizer.layout) == 1 else quantizer.layout or (3, 4)


@pytest.mark.parametrize("name", [*PRESETS, *SPECIAL_PRESETS, *STRUCTURES])
def test_from_sequence_undoes_to_sequence(name: str) -> None:
    """What every kind of quantizer says of vectors, some of them masked, in every order and interleaving."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](DIM, SIZE)
    positions = positions_of(quantizer)
    x = torch.randn(2, *positions, quantizer.input_dim)

    @settings(max_examples=3, deadline=None)
    @given(seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.4, 1.0]))
    def check(seed: int, share: float) -> None:
        mask = torch.rand(2, *positions, generator=torch.Generator().manual_seed(seed)) >= share
        indices = quantizer.encode(x, mask)
        for interleaving, order in itertools.product(EVERY, ("raster", "snake")):
            if interleaving == "delay" and len(quantizer.token_scales(positions)) > 1:
                continue
            layout = TokenLayout.of(quantizer, positions, interleaving=interleaving, order=order)  # type: ignore[arg-type]
            tokens = layout.to_sequence(indices)
            assert torch.equal(layout.from_sequence(tokens), indices)
            assert torch.equal(layout.from_sequence(layout.to_sequence(indices[0])), indices[0])
            assert int(tokens.ne(PAD).sum()) == int(indices.ge(0).sum())
            assert tokens.shape == (2, *layout.channel_ids.shape) and len(layout.scale_ids) == layout.length
            assert tokens[:, layout.channel_ids < 0].eq(PAD).all()

    check()


def numbered(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape)


def test_channels_of_a_grid_written_out() -> None:
    quantizer = rq(4, 100, num_levels=2)  # index i of channel 0 is token 3 + i, of channel 1 token 103 + i
    indices = numbered(1, 2, 2, 2)
    layouts = [TokenLayout.of(quantizer, (2, 2), interleaving=each) for each in EVERY]
    assert [layout.to_sequence(indices)[0].tolist() for layout in layouts] == [
        [[3, 104], [5, 106], [7, 108], [9, 110]],
        [3, 104, 5, 106, 7, 108, 9, 110],
        [[3, PAD], [5, 104], [7, 106], [9, 108], [PAD, 110]],
    ]
    assert layouts[1].channel_ids.tolist() == [0, 1] * 4
    assert layouts[2].channel_ids.tolist() == [[0, -1], [0, 1], [0, 1], [0, 1], [-1, 1]]
    snake = TokenLayout.of(quantizer, (2, 2), order="snake")
    assert snake.to_sequence(indices)[0].tolist() == [[3, 104], [5, 106], [9, 110], [7, 108]]
    solid = TokenLayout.of(vq_vae(4, 12), (2, 2, 3), order="snake")  # every second row, whatever the axes before it
    assert solid.to_sequence(numbered(1, 2, 2, 3, 1))[0, :, 0].tolist() == [3, 4, 5, 8, 7, 6, 9, 10, 11, 14, 13, 12]


def test_a_hierarchy_has_only_its_levels_channels() -> None:
    quantizer = HierarchicalQuantizer([vq_vae(4, 9), rq(4, 7, num_levels=2)], 4)
    assert quantizer.codebook_sizes == (9, 7, 7)
    layout = TokenLayout.of(quantizer, (4, 4), interleaving="flat")
    assert [(scale.grid, scale.channels) for scale in layout.scales] == [((2, 2), (0,)), ((4, 4), (1, 2))]
    assert layout.channel_ids.tolist() == [0] * 4 + [1, 2] * 16 and layout.scale_ids.tolist() == [0] * 4 + [1] * 32
    side_by_side = TokenLayout.of(quantizer, (4, 4))
    assert side_by_side.channel_ids.tolist() == [[0, -1, -1]] * 4 + [[-1, 1, 2]] * 16
    wrong = quantizer.encode(torch.randn(1, 4, 4, 4))
    wrong[0, 0, 1] = 3
    with pytest.raises(ValueError, match="expected -1 in the channels that a scale does not have"):
        layout.to_sequence(wrong)


@pytest.mark.parametrize("order", ["raster", "snake"])
def test_scales_are_what_a_prefix_decodes(order: Any) -> None:
    """The positions up to the end of a scale are the tokens that ``encode`` gives for so many levels."""
    quantizer = MultiScaleQuantizer(VectorQuantizer(FreeCodebook(4, 8), learning=[]), [1, 2, 4])
    x = torch.randn(2, 4, 4, 4)
    layout = TokenLayout.of(quantizer, (4, 4), order=order)
    tokens = layout.to_sequence(quantizer.encode(x))
    for level in range(3):
        first = quantizer.encode(x, num_levels=level + 1)
        kept = tokens.where((layout.scale_ids <= level)[:, None], PAD)
        assert torch.equal(layout.from_sequence(kept)[:, : first.shape[1]], first)
        assert torch.equal(quantizer.decode(layout.from_sequence(kept)), quantizer.decode(first))


def test_structures_say_the_scales_of_their_parts() -> None:
    def pyramid(*sides: int, dim: int = 2) -> Quantizer:
        return MultiScaleQuantizer(VectorQuantizer(FreeCodebook(dim, 8), learning=[]), list(sides))

    scales = ProductQuantizer([pyramid(1, 2, 4), pyramid(1, 2, 4)]).token_scales((4, 4))
    assert scales == tuple(((side, side), (0, 1)) for side in (1, 2, 4))
    other = ProductQuantizer([pyramid(1, 2, 2, 4), pyramid(3, 4)])  # 25 tokens each, of other grids
    assert other.token_scales((4, 4)) == (((25,), (0, 1)),)
    split = ProductQuantizer([vq_vae(2, 8), vq_vae(2, 8)], split="tokens")
    assert split.token_scales((3, 4)) == (((3, 2), (0, 1)),)
    assert ProjectedQuantizer(pyramid(1, 4), 5).token_scales((4, 4)) == pyramid(1, 4).token_scales((4, 4))


def test_allowed_tokens_are_those_that_come_back() -> None:
    quantizer = HierarchicalQuantizer([vq_vae(4, 5), vq_vae(4, 3)], 4)
    for interleaving in ("parallel", "flat"):
        layout = TokenLayout.of(quantizer, (2, 2), interleaving=interleaving)  # type: ignore[arg-type]
        for position in range(layout.length):
            allowed = layout.allowed(position).view(-1, layout.vocabulary.vocab_size)
            for channel, token in itertools.product(range(len(allowed)), range(1, layout.vocabulary.vocab_size)):
                tokens = torch.full((layout.length, len(allowed)), PAD)
                tokens[position, channel] = token
                sequence = tokens.view(layout.channel_ids.shape)
                if allowed[channel, token]:
                    assert torch.equal(layout.to_sequence(layout.from_sequence(sequence)), sequence)
                else:
                    with pytest.raises(ValueError, match=f"got {token} at"):
                        layout.from_sequence(sequence)


def test_a_layout_is_saved_with_what_uses_it() -> None:
    layout = TokenLayout.of(QUANTIZERS["hierarchical"](DIM, SIZE), (4, 4), interleaving="flat", order="snake")
    config = to_config(layout)
    assert config["class_path"] == "gritvq.tokens.TokenLayout"
    again = from_config(config)
    assert isinstance(again, TokenLayout) and torch.equal(again._source, layout._source)
    assert not layout.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (4, 4), "scales": [((2, 2), (0, 1))]}, "as many tokens together as"),
        ({"shape": (0, 4)}, "as many tokens together as"),
        ({"shape": (4,), "scales": [((2, 2), (0,))]}, "channels 0 .. 1"),
        ({"shape": (4,), "scales": [((2, 2), (0, 2))]}, "channels 0 .. 1"),
        ({"shape": (2,), "scales": [((1,), (0,)), ((1,), (1,))], "interleaving": "delay"}, "one scale for a delay"),
        ({"shape": (2,), "order": "random"}, "expected interleaving"),
        ({"shape": (2,), "interleaving": "none"}, "expected interleaving"),
    ],
)
def test_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenLayout((4, 4), **arguments)


def test_other_tokens_than_the_layouts() -> None:
    layout = TokenLayout((4, 8), (2, 3))
    for indices in (torch.zeros(2, 3, 1).long(), torch.zeros(5, 3, 2, 2).long(), torch.zeros(2, 3, 2)):
        with pytest.raises(ValueError, match=r"expected integers \(\*batch, 2, 3, 2\)"):
            layout.to_sequence(indices)
    for index in (-2, 4):
        with pytest.raises(ValueError, match="expected indices below"):
            layout.to_sequence(torch.full((2, 3, 2), index))
    with pytest.raises(ValueError, match=r"expected integers \(\*batch, 6, 2\)"):
        layout.from_sequence(torch.zeros(1, 12).long())


def test_places_are_those_of_the_first_channel_that_a_position_has() -> None:
    layout = TokenLayout((4, 4), (2, 3), interleaving="delay", order="snake")
    assert layout.places.tolist() == [0, 1, 2, 5, 4, 3, 3]  # the last position has channel 1 of the one before
    assert TokenLayout((4, 4), (2, 2), interleaving="flat").places.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
