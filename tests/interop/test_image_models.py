"""Quantizers of image models, read from state dicts: the same indices and values as theirs.

As for codecs, equality of indices is tested in float64, where no two random codes are equally near to within rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gritvq import ProjectedQuantizer, VectorQuantizer
from gritvq.component import from_config, to_config
from gritvq.images import ImageTokenizer
from gritvq.interop import from_diffusers, from_llamagen, from_taming, tokenizer_from_llamagen

SHAPE = (10, 40, 25)  # batch, height, width: ten thousand latents


def latents(dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(B, C, H, W), as the models have them."""
    return torch.randn(SHAPE[0], dim, *SHAPE[1:], dtype=dtype)


def state_of(dim: int, inner: int, size: int, first: str = "") -> dict[str, Tensor]:
    """The tensors of a VQGAN of taming-transformers around its quantizer."""
    state = {"quantize.embedding.weight": torch.randn(size, inner, dtype=torch.float64) / 2}
    for name, shape in (("quant_conv", (inner, dim, 1, 1)), ("post_quant_conv", (dim, inner, 1, 1))):
        state[f"{name}.weight"] = torch.randn(shape, dtype=torch.float64) / dim**0.5
        state[f"{name}.bias"] = torch.randn(shape[0], dtype=torch.float64) / 9
    return {first + name: value for name, value in state.items()}


# --- diffusers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vqmodel() -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(8,), latent_channels=6, vq_embed_dim=4, num_vq_embeddings=64, norm_num_groups=2
    )
    nn.init.normal_(model.quantize.embedding.weight, std=0.5)
    return model.eval()


@torch.no_grad()
def test_diffusers(vqmodel: Any) -> None:
    model, h = vqmodel.double(), latents(6)
    quantizer = from_diffusers(model.state_dict())
    assert isinstance(quantizer, ProjectedQuantizer) and quantizer.codebook_sizes == (64,) and not quantizer.training
    quant, _, (_, _, indices) = model.quantize(model.quant_conv(h))
    output = quantizer(h.movedim(1, -1))
    assert torch.equal(output.indices.flatten(), indices)
    # Theirs is z + (z_q - z), which is z_q but for rounding, and a convolution adds in another order.
    torch.testing.assert_close(output.quantized.movedim(-1, 1), model.post_quant_conv(quant), rtol=0, atol=1e-12)

    alone = from_diffusers(model.quantize.state_dict())
    assert isinstance(alone, VectorQuantizer)
    z = model.quant_conv(h).movedim(1, -1)
    assert torch.equal(alone.encode(z), output.indices)
    entries = model.quantize.get_codebook_entry(indices, (*SHAPE, 4))
    assert torch.equal(alone.decode(output.indices).movedim(-1, 1), entries)

    single, x = vqmodel.float(), latents(6, torch.float32)
    quant, _, (_, _, theirs) = single.quantize(single.quant_conv(x))
    ours = from_diffusers(single.state_dict()).encode(x.movedim(1, -1)).flatten()
    assert int((ours != theirs).sum()) <= 3  # between two codes


@pytest.mark.parametrize("legacy", [True, False])
def test_diffusers_losses(legacy: bool) -> None:
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    theirs = vae.VectorQuantizer(16, 4, beta=0.25, legacy=legacy).double()
    nn.init.normal_(theirs.embedding.weight)
    ours = from_diffusers(theirs.state_dict(), legacy=legacy).train()
    z = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    loss = theirs(z)[1]
    output = ours(z.movedim(1, -1))
    torch.testing.assert_close(output.loss.double(), loss)
    mine = torch.autograd.grad(output.loss, [z, ours.codebook.weight])
    other = torch.autograd.grad(loss, [z, theirs.embedding.weight])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


# --- taming-transformers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["", "first_stage_model."])
def test_taming(first: str) -> None:
    state, h = state_of(8, 4, 64, first), latents(8)
    own = {name.removeprefix(first): value for name, value in state.items()}
    z = F.conv2d(h, own["quant_conv.weight"], own["quant_conv.bias"]).movedim(1, -1)
    table = own["quantize.embedding.weight"]
    chosen = (z.flatten(0, -2).unsqueeze(1) - table).square().sum(-1).argmin(1)
    quant = table[chosen].view(z.shape).movedim(-1, 1)
    values = F.conv2d(quant, own["post_quant_conv.weight"], own["post_quant_conv.bias"])

    more = {first + "encoder.conv_in.weight": torch.zeros(1), first + "loss.discriminator.main.0.weight": torch.ones(1)}
    quantizer = from_taming({**more, **state, "model.other": torch.zeros(1)} if first else {**more, **state}, first)
    output = quantizer(h.movedim(1, -1))
    assert torch.equal(output.indices.flatten(), chosen)
    torch.testing.assert_close(output.quantized.movedim(-1, 1), values, rtol=0, atol=1e-12)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)
    rules = {type(rule).__name__: rule.weight for rule in quantizer.quantizer.learning}
    assert rules == {"CodebookLoss": 0.25, "CommitmentLoss": 1.0}


def test_gumbel_of_taming_without_its_noise() -> None:
    state, h = state_of(8, 4, 64), latents(8)
    del state["quantize.embedding.weight"]
    table, proj = torch.randn(64, 4, dtype=torch.float64), torch.randn(64, 4, 1, 1, dtype=torch.float64)
    bias = torch.randn(64, dtype=torch.float64)
    state |= {"quantize.embed.weight": table, "quantize.proj.weight": proj, "quantize.proj.bias": bias}
    logits = F.conv2d(F.conv2d(h, state["quant_conv.weight"], state["quant_conv.bias"]), proj, bias)
    chosen = logits.argmax(1)
    values = F.conv2d(table[chosen].movedim(-1, 1), state["post_quant_conv.weight"], state["post_quant_conv.bias"])
    quantizer = from_taming(state)
    output = quantizer(h.movedim(1, -1))
    assert torch.equal(output.indices[..., 0], chosen)
    torch.testing.assert_close(output.quantized.movedim(-1, 1), values, rtol=0, atol=1e-12)
    assert torch.equal(quantizer.fold().encode(h.movedim(1, -1)), output.indices)
    rebuilt = from_config(to_config(quantizer))
    rebuilt.load_state_dict(quantizer.state_dict())
    assert torch.equal(rebuilt.double().encode(h.movedim(1, -1)), output.indices)


def test_what_cannot_be_read() -> None:
    state = state_of(8, 4, 16)
    with pytest.raises(ValueError, match=r"expected no quantize\.used, got one; their indices are remapped"):
        from_taming({**state, "quantize.used": torch.arange(4)})
    with pytest.raises(ValueError, match=r"expected no quantize\.used, got one; their indices are remapped"):
        from_diffusers({**state, "quantize.used": torch.arange(4)})
    gumbel = {"quantize.embed.weight": torch.randn(16, 4), "quantize.proj.weight": torch.randn(16, 6, 1, 1)}
    with pytest.raises(ValueError, match=r"logits with weights \(16, 4\), as the codes, .* got \(16, 6\); a quantizer"):
        from_taming({**gumbel, "quantize.proj.bias": torch.zeros(16)})
    with pytest.raises(ValueError, match=r"expected no quantize\.used, got one; their indices are remapped"):
        from_taming({**gumbel, "quantize.used": torch.arange(4)})
    with pytest.raises(ValueError, match=r"expected no other tensors, got quantize\.embedding\.cluster_size; the"):
        from_taming({**state, "quantize.embedding.cluster_size": torch.ones(16)})
    with pytest.raises(ValueError, match=r"a tensor post_quant_conv\.weight, got none left"):
        from_taming({name: value for name, value in state.items() if not name.startswith("post")})
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(8, 4\), got \(4, 8\) and \(6, 4\); maps of other sizes"):
        from_taming({**state, "post_quant_conv.weight": torch.ones(6, 4, 1, 1), "post_quant_conv.bias": torch.ones(6)})
    with pytest.raises(ValueError, match=r"quant_conv to be .* kernel size 1, got weights \(4, 8, 3, 3\)"):
        from_taming({**state, "quant_conv.weight": torch.ones(4, 8, 3, 3)})
    with pytest.raises(ValueError, match=r"expected a tensor quantize\.embedding\.weight, got codes"):
        from_llamagen({"quantize.codes": torch.ones(2, 2)})


# --- LlamaGen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2_norm", [True, False])
def test_llamagen(l2_norm: bool) -> None:
    state, h = state_of(8, 4, 64), latents(8)
    z = F.conv2d(h, state["quant_conv.weight"], state["quant_conv.bias"]).movedim(1, -1)
    table = state["quantize.embedding.weight"]
    if l2_norm:
        z, table = F.normalize(z, dim=-1), F.normalize(table, dim=-1)
    chosen = (z.flatten(0, -2).unsqueeze(1) - table).square().sum(-1).argmin(1)
    quant = table[chosen].view(z.shape).movedim(-1, 1)
    values = F.conv2d(quant, state["post_quant_conv.weight"], state["post_quant_conv.bias"])
    quantizer = from_llamagen({**state, "quantize.codebook_used": torch.zeros(65536)}, l2_norm=l2_norm)
    output = quantizer(h.movedim(1, -1))
    assert torch.equal(output.indices.flatten(), chosen)
    torch.testing.assert_close(output.quantized.movedim(-1, 1), values, rtol=0, atol=1e-12)


def test_llamagen_trains_as_theirs() -> None:
    """Losses and gradients: with l2_norm both see vectors of unit length."""
    table = torch.randn(16, 4, dtype=torch.float64, requires_grad=True)
    ours = from_llamagen({"embedding.weight": table}).train()
    x, upstream = torch.randn(50, 4, dtype=torch.float64, requires_grad=True), torch.randn(50, 4, dtype=torch.float64)
    output = ours(x)
    z, codes = F.normalize(x, dim=-1), F.normalize(table, dim=-1)
    q = codes[output.indices[:, 0]]
    loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(q.detach(), z)
    torch.testing.assert_close(output.loss.double(), loss)
    book = ours.quantizer.codebook.weight
    mine = torch.autograd.grad((output.quantized * upstream).sum() + output.loss, [x, book])
    other = torch.autograd.grad(((z + (q - z).detach()) * upstream).sum() + loss, [x, table])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    ours.initialize_codebook(5 * x.detach())
    assert F.mse_loss(ours(x).quantized, z) < F.mse_loss(q, z)
    assert torch.equal(ours.fold().encode(x), ours.encode(x))


def llamagen_state(width: int, multipliers: list[int], num_blocks: int, hidden: int, dim: int) -> dict[str, Tensor]:
    """Names and shapes of all tensors of such a model."""
    state: dict[str, Tensor] = {"quantize.embedding.weight": torch.randn(32, dim)}
    state["quantize.codebook_used"] = torch.zeros(65536)

    def convolution(name: str, given: int, wanted: int, kernel: int = 3) -> None:
        state[f"{name}.weight"] = torch.randn(wanted, given, kernel, kernel) / (given * kernel**2) ** 0.5
        state[f"{name}.bias"] = torch.randn(wanted) / 9

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels) / 9

    def block(name: str, given: int, wanted: int) -> None:
        norm(f"{name}.norm1", given)
        convolution(f"{name}.conv1", given, wanted)
        norm(f"{name}.norm2", wanted)
        convolution(f"{name}.conv2", wanted, wanted)
        if given != wanted:
            convolution(f"{name}.nin_shortcut", given, wanted, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{part}", channels, channels, 1)

    def middle(part: str, channels: int) -> None:
        block(f"{part}.mid.0", channels, channels)
        attention(f"{part}.mid.1", channels)
        block(f"{part}.mid.2", channels, channels)

    def stages(part: str, now: int, factors: list[int], blocks: int, lowest: int, resampling: str) -> int:
        for level, factor in enumerate(factors):
            for i in range(blocks):
                block(f"{part}.conv_blocks.{level}.res.{i}", now, width * factor)
                now = width * factor
                if level == lowest:
                    attention(f"{part}.conv_blocks.{level}.attn.{i}", now)
            if level != len(factors) - 1:
                convolution(f"{part}.conv_blocks.{level}.{resampling}.conv", now, now)
        return now

    convolution("encoder.conv_in", 3, width)
    now = stages("encoder", width, multipliers, num_blocks, len(multipliers) - 1, "downsample")
    middle("encoder", now)
    norm("encoder.norm_out", now)
    convolution("encoder.conv_out", now, hidden)
    convolution("quant_conv", hidden, dim, 1)
    convolution("post_quant_conv", dim, hidden, 1)
    convolution("decoder.conv_in", hidden, now)
    middle("decoder", now)
    now = stages("decoder", now, multipliers[::-1], num_blocks + 1, 0, "upsample")
    norm("decoder.norm_out", now)
    convolution("decoder.conv_out", now, 3)
    return state


class Reference:
    """The model as its names say, in plain functions."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def convolution(self, name: str, x: Tensor, **settings: int) -> Tensor:
        weight = self.state[f"{name}.weight"]
        settings.setdefault("padding", weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.state[f"{name}.bias"], **settings)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def block(self, name: str, x: Tensor) -> Tensor:
        h = self.convolution(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        h = self.convolution(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        return h + (self.convolution(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.convolution(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = ((q.transpose(1, 2) @ k) / q.shape[1] ** 0.5).softmax(-1)
        return x + self.convolution(f"{name}.proj_out", (v @ weights.transpose(1, 2)).view(x.shape))

    def middle(self, part: str, x: Tensor) -> Tensor:
        return self.block(f"{part}.mid.2", self.attention(f"{part}.mid.1", self.block(f"{part}.mid.0", x)))

    def stages(self, part: str, x: Tensor) -> Tensor:
        level = 0
        while f"{part}.conv_blocks.{level}.res.0.conv1.weight" in self.state:
            own, i = f"{part}.conv_blocks.{level}", 0
            while f"{own}.res.{i}.conv1.weight" in self.state:
                x = self.block(f"{own}.res.{i}", x)
                if f"{own}.attn.{i}.q.weight" in self.state:
                    x = self.attention(f"{own}.attn.{i}", x)
                i += 1
            if f"{own}.downsample.conv.weight" in self.state:
                x = self.convolution(f"{own}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
            if f"{own}.upsample.conv.weight" in self.state:
                x = self.convolution(f"{own}.upsample.conv", F.interpolate(x, scale_factor=2.0, mode="nearest"))
            level += 1
        return x

    def encoded(self, x: Tensor) -> Tensor:
        h = self.middle("encoder", self.stages("encoder", self.convolution("encoder.conv_in", x)))
        h = self.convolution("encoder.conv_out", F.silu(self.norm("encoder.norm_out", h)))
        z = F.normalize(self.convolution("quant_conv", h).movedim(1, -1), dim=-1)
        table = F.normalize(self.state["quantize.embedding.weight"], dim=-1)
        return (z @ table.T).argmax(-1)

    def decoded(self, indices: Tensor) -> Tensor:
        quant = F.normalize(self.state["quantize.embedding.weight"], dim=-1)[indices].movedim(-1, 1)
        h = self.convolution("decoder.conv_in", self.convolution("post_quant_conv", quant))
        h = self.stages("decoder", self.middle("decoder", h))
        return self.convolution("decoder.conv_out", F.silu(self.norm("decoder.norm_out", h)))


@torch.no_grad()
@pytest.mark.parametrize("multipliers", [[1, 2], [1, 1, 2]])
def test_tokenizer_of_llamagen(multipliers: list[int], tmp_path: Path) -> None:
    state = llamagen_state(32, multipliers, 2, 16, 4)
    tokenizer, reference = tokenizer_from_llamagen(state), Reference(state)
    assert tokenizer.factor == 2 ** (len(multipliers) - 1) and not tokenizer.training
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = ImageTokenizer.from_pretrained(tmp_path / "tokenizer")
    images = torch.rand(4, 3, 32, 16)
    tokens = tokenizer.encode(images)
    theirs = reference.encoded(2 * images - 1)
    assert int((tokens[..., 0] != theirs).sum()) <= 1  # of 128 or more, between two codes
    decoded = reference.decoded(tokens[..., 0])
    torch.testing.assert_close(tokenizer.decode(tokens), ((decoded + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_tokenizer_of_llamagen_that_is_another() -> None:
    state = llamagen_state(32, [1, 2], 1, 16, 4)
    with pytest.raises(ValueError, match=r"expected the tensors of LlamaGen's encoder, got others .*mid\.3"):
        tokenizer_from_llamagen({**state, "encoder.mid.3.conv1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"expected the tensors of LlamaGen's decoder, got others"):
        tokenizer_from_llamagen({k: v for k, v in state.items() if not k.startswith("decoder.conv_blocks")})
    with pytest.raises(ValueError, match=r"expected no other tensors, got discriminator"):
        tokenizer_from_llamagen({**state, "discriminator": torch.ones(1)})
    with pytest.raises(ValueError, match=r"expected a tensor decoder\.conv_in\.weight"):
        tokenizer_from_llamagen({k: v for k, v in state.items() if not k.startswith("decoder")})
