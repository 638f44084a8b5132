"""Networks whose layout is another library's, and transformers, against independent computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gritvq import fsq
from gritvq.component import from_config, to_config
from gritvq.images import ImageTokenizer, ViTDecoder, ViTEncoder, VQGANDecoder, VQGANEncoder
from gritvq.images.networks.vit import _positions

TINY: dict[str, Any] = dict(width=8, multipliers=[1, 2, 2], num_blocks=1, hidden_dim=12, num_groups=4)
SMALL: dict[str, Any] = dict(width=16, factor=4, depth=2, num_heads=2)


class Reference:
    """VQGAN from its parameters by name."""

    def __init__(self, state: dict[str, Tensor], num_groups: int) -> None:
        self.state, self.num_groups = state, num_groups

    def conv(self, x: Tensor, name: str, **settings: Any) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **settings)

    def norm(self, x: Tensor, name: str) -> Tensor:
        groups = x.unflatten(1, (self.num_groups, -1))
        mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), correction=0, keepdim=True)
        flat = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return flat * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def swish(self, x: Tensor, name: str) -> Tensor:
        normed = self.norm(x, name)
        return normed * torch.sigmoid(normed)

    def residual(self, x: Tensor, name: str) -> Tensor:
        h = self.conv(self.swish(x, f"{name}.norm1"), f"{name}.conv1", padding=1)
        h = self.conv(self.swish(h, f"{name}.norm2"), f"{name}.conv2", padding=1)
        return h + (self.conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, x: Tensor, name: str) -> Tensor:
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        share = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(2)
        return x + self.conv(torch.einsum("bij,bcj->bci", share, v).view_as(x), f"{name}.proj_out")

    def middle(self, x: Tensor) -> Tensor:
        return self.residual(self.attention(self.residual(x, "mid.0"), "mid.1"), "mid.2")

    def level(self, x: Tensor, number: int, num_blocks: int, attention: bool) -> Tensor:
        for block in range(num_blocks):
            x = self.residual(x, f"conv_blocks.{number}.res.{block}")
            x = self.attention(x, f"conv_blocks.{number}.attn.{block}") if attention else x
        return x

    def encoder(self, images: Tensor) -> Tensor:
        x = self.conv(2 * images - 1, "conv_in", padding=1)
        for number in range(3):
            x = self.level(x, number, 1, number == 2)
            if number < 2:
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"conv_blocks.{number}.downsample.conv", stride=2)
        x = self.conv(self.swish(self.middle(x), "norm_out"), "conv_out", padding=1)
        return self.conv(x, "quant_conv").permute(0, 2, 3, 1)

    def decoder(self, vectors: Tensor) -> Tensor:
        x = self.conv(self.conv(vectors.permute(0, 3, 1, 2), "post_quant_conv"), "conv_in", padding=1)
        x = self.middle(x)
        for number in range(3):
            x = self.level(x, number, 2, number == 0)
            if number < 2:
                twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(twice, f"conv_blocks.{number}.upsample.conv", padding=1)
        return (self.conv(self.swish(x, "norm_out"), "conv_out", padding=1) + 1) / 2


def test_vqgan_from_its_parameters_by_name() -> None:
    encoder, decoder = VQGANEncoder(4, **TINY), VQGANDecoder(4, **TINY)
    images, vectors = torch.rand(2, 3, 8, 16), torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(encoder(images), Reference(encoder.state_dict(), 4).encoder(images))
    torch.testing.assert_close(decoder(vectors), Reference(decoder.state_dict(), 4).decoder(vectors))


def test_vqgan_has_the_layout_of_vq_16() -> None:
    with torch.device("meta"):
        encoder, decoder = VQGANEncoder(8), VQGANDecoder(8)
    assert encoder.factor == decoder.factor == 16
    shapes = [{name: tuple(each.shape) for name, each in part.state_dict().items()} for part in (encoder, decoder)]
    for found, wanted in zip(
        shapes,
        (
            {
                "conv_in.weight": (128, 3, 3, 3),
                "conv_blocks.0.downsample.conv.weight": (128, 128, 3, 3),
                "conv_blocks.2.res.0.nin_shortcut.weight": (256, 128, 1, 1),
                "conv_blocks.4.res.1.conv2.weight": (512, 512, 3, 3),
                "conv_blocks.4.attn.1.proj_out.weight": (512, 512, 1, 1),
                "mid.1.q.weight": (512, 512, 1, 1),
                "conv_out.weight": (256, 512, 3, 3),
                "quant_conv.weight": (8, 256, 1, 1),
            },
            {
                "post_quant_conv.weight": (256, 8, 1, 1),
                "conv_in.weight": (512, 256, 3, 3),
                "conv_blocks.0.attn.2.norm.weight": (512,),
                "conv_blocks.0.upsample.conv.weight": (512, 512, 3, 3),
                "conv_blocks.1.res.0.nin_shortcut.weight": (256, 512, 1, 1),
                "conv_blocks.3.upsample.conv.weight": (128, 128, 3, 3),
                "conv_blocks.4.res.2.norm1.weight": (128,),
                "conv_out.weight": (3, 128, 3, 3),
            },
        ),
        strict=True,
    ):
        assert wanted.items() <= found.items()
    names = {name for found in shapes for name in found}
    assert "conv_blocks.4.downsample.conv.weight" not in names and "conv_blocks.4.upsample.conv.weight" not in names
    numbers = [sum(torch.Size(shape).numel() for shape in found.values()) for found in shapes]
    assert round(sum(numbers) / 1e6) == 72  # millions, as its authors say; the table of 16,384 x 8 codes is 0.1 of them


@pytest.mark.parametrize("pair", [(VQGANEncoder, VQGANDecoder, TINY), (ViTEncoder, ViTDecoder, SMALL)])
def test_a_tokenizer_of_each_pair(pair: Any) -> None:
    encode, decode, settings = pair
    tokenizer = ImageTokenizer(encode(4, **settings), fsq(4, 16), decode(4, **settings))
    images = torch.rand(2, 3, 14, 18)  # no multiples of the factor
    output = tokenizer(images)
    assert output.reconstruction.shape == images.shape
    output.reconstruction.square().mean().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())
    assert tokenizer.decoder.last_layer.grad is not None
    for part in (tokenizer.encoder, tokenizer.decoder):
        again = from_config(to_config(part))
        assert {name: each.shape for name, each in again.state_dict().items()} == {
            name: each.shape for name, each in part.state_dict().items()
        }
    with pytest.raises(ValueError, match="sides that are multiples of 4"):
        tokenizer.encoder(images)
    with pytest.raises(ValueError, match=r"expected vectors \(B, h, w, 4\)"):
        tokenizer.decoder(torch.rand(2, 4, 4, 3))


def test_a_transformer_block_is_pytorchs_own() -> None:
    block = ViTDecoder(4, **SMALL).trunk.blocks[0]
    own = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        for part in block.parameters():
            part.copy_(0.3 * torch.randn_like(part))
    own.self_attn.in_proj_weight, own.self_attn.in_proj_bias = block.project_in.weight, block.project_in.bias
    own.self_attn.out_proj, own.norm1, own.norm2 = block.project_out, block.norm1, block.norm2
    own.linear1, own.linear2 = block.mlp[0], block.mlp[2]
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(block(x), own(x))


def test_positions_are_those_of_rows_and_columns() -> None:
    """The product of two places' codes depends on their distances alone; places are told apart."""
    codes = _positions(5, 7, 32, torch.zeros(()))
    products = torch.einsum("abd,ced->abce", codes, codes)
    torch.testing.assert_close(products[0, 0, :4, :5], products[1, 2, 1:, 2:])
    assert float((products - 16).abs()[torch.ones(35, 35).triu(1).view(5, 7, 5, 7).bool()].min()) > 0.1
    assert torch.equal(_positions(5, 7, 32, torch.zeros(()))[:3, :4], _positions(3, 4, 32, torch.zeros(())))


def test_a_patch_is_a_token() -> None:
    """Without blocks, a vector is a linear map of its own patch, normalized."""
    encoder = ViTEncoder(4, **{**SMALL, "depth": 0 + 1})
    encoder.trunk.blocks = nn.ModuleList()
    images = torch.rand(1, 3, 8, 8)
    changed = images.clone()
    changed[:, :, 4:, :4] = 1 - changed[:, :, 4:, :4]
    differs = (encoder(images) != encoder(changed)).any(-1)[0]
    assert differs.tolist() == [[False, False], [True, False]]
    flat = (2 * images - 1).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    rows = encoder.from_pixels(flat) + _positions(2, 2, 16, images)
    torch.testing.assert_close(encoder(images), encoder.to_codes(F.layer_norm(rows, (16,))))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: VQGANEncoder(4, width=12, num_groups=8), "expected width to be a multiple of num_groups 8, got 12"),
        (lambda: VQGANDecoder(4, multipliers=[]), "expected multipliers >= 1"),
        (lambda: ViTEncoder(4, width=18), "expected width to be a multiple of 4 and of num_heads 6, got 18"),
        (lambda: ViTDecoder(0), "expected dim >= 1, got 0"),
    ],
)
def test_wrong_settings(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
