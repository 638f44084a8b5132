"""Another quantizer in a model of somebody else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gritvq import FSQ, ChannelsFirst, ProjectedQuantizer, fsq, fvq, grit_vq, rq, vq_vae, vq_vae_ema
from gritvq.interop import QuantizerAdapter, from_dac, from_diffusers, from_encodec, from_mimi, replace_quantizer

D, K = 4, 16


class TheirQuantizer(nn.Module):
    """A quantizer of ten lines, as taming-transformers calls it."""

    def __init__(self, codebook_size: int = K, dim: int = D) -> None:
        super().__init__()
        self.e_dim, self.embedding = dim, nn.Embedding(codebook_size, dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        rows = z.movedim(1, -1).flatten(0, -2)
        indices = torch.cdist(rows, self.embedding.weight).argmin(1)
        q = self.embedding(indices).view(z.movedim(1, -1).shape).movedim(-1, 1)
        loss = F.mse_loss(q.detach(), z) + 0.25 * F.mse_loss(q, z.detach())
        return z + (q - z).detach(), loss, (None, None, indices)


class TheirModel(nn.Module):
    """A VQ-VAE of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, D, 4, stride=4)
        self.quantize = TheirQuantizer()
        self.decoder = nn.ConvTranspose2d(D, 3, 4, stride=4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        quantized, loss, _ = self.quantize(self.encoder(images))
        return self.decoder(quantized), loss


def test_the_converted_quantizer_changes_nothing() -> None:
    model, images = TheirModel().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(images)[0]
        converted = from_diffusers(model.quantize.state_dict())
        adapter = replace_quantizer(model, "quantize", converted, returns="taming")
        after, loss = model(images)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert model.quantize is adapter and float(loss) == 0 and not adapter.quantizer.training


@torch.no_grad()
def test_in_a_model_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.VQModel(
        block_out_channels=(8,), latent_channels=D, num_vq_embeddings=K, norm_num_groups=2, lookup_from_codebook=True
    ).eval()
    nn.init.normal_(model.quantize.embedding.weight)
    images, indices = torch.randn(2, 3, 8, 8), torch.randint(K, (2 * 8 * 8,))
    before, looked_up = model(images).sample, model.decode(indices, force_not_quantize=True, shape=(2, 8, 8, D)).sample
    replace_quantizer(model, "quantize", from_diffusers(model.quantize.state_dict()), returns="diffusers")
    torch.testing.assert_close(model(images).sample, before, rtol=1e-5, atol=1e-5)
    after = model.decode(indices, force_not_quantize=True, shape=(2, 8, 8, D)).sample
    torch.testing.assert_close(after, looked_up, rtol=1e-5, atol=1e-5)


def test_another_quantizer_learns() -> None:
    colors = torch.rand(8, 3)[torch.randint(8, (16, 4, 4))]  # of patches of 4 x 4 pixels
    model, images = TheirModel(), colors.movedim(-1, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    adapter = replace_quantizer(model, "quantize", grit_vq(D, K), returns="taming", start_from=True)
    assert [name for name in model.state_dict() if name.startswith("quantize.quantizer.codebook.")]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    adapter.quantizer.attach(optimizer)
    seen = []
    for _ in range(60):
        optimizer.zero_grad()
        reconstruction, loss = model(images)
        total = F.mse_loss(reconstruction, images) + loss
        total.backward()
        optimizer.step()
        seen.append(float(total.detach()))
    assert seen[-1] < 0.5 * seen[0]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_conventions(layout: Any) -> None:
    quantizer = vq_vae(D, K)
    x = torch.randn(2, 5, 6, D)
    wanted = quantizer(x)
    given = x.movedim(-1, 1) if layout == "channels_first" else x
    values = wanted.quantized.movedim(-1, 1) if layout == "channels_first" else wanted.quantized
    indices = wanted.indices[..., 0]

    def adapter(returns: Any) -> QuantizerAdapter:
        return QuantizerAdapter(quantizer, layout=layout, returns=returns)

    vqp = adapter("vector-quantize-pytorch")
    found = vqp(given)
    assert torch.equal(found[0], values) and torch.equal(found[1], indices) and torch.equal(found[2], wanted.loss)
    assert torch.equal(vqp.get_codes_from_indices(indices), values)
    assert torch.equal(vqp.get_output_from_indices(indices), values)

    taming = adapter("taming")
    quantized, loss, (perplexity, one_hot, flat) = taming(given)
    assert torch.equal(quantized, values) and torch.equal(loss, wanted.loss) and one_hot is None
    assert torch.equal(flat, indices.flatten())
    shares = torch.bincount(flat, minlength=K) / len(flat)
    torch.testing.assert_close(perplexity, (-torch.xlogy(shares, shares).sum()).exp())
    assert torch.equal(taming.get_codebook_entry(flat, (2, 5, 6, D)), values)
    assert torch.equal(taming.get_codebook_entry(flat[:, None], (2, 5, 6, D)), values)
    assert torch.equal(taming.get_codebook_entry(flat), wanted.quantized.flatten(0, -2))

    quantized, _, (perplexity, one_hot, flat) = adapter("diffusers")(given)
    assert torch.equal(quantized, values) and perplexity is None and one_hot is None
    assert torch.equal(flat, indices.flatten())

    tensor = adapter("tensor")
    assert torch.equal(tensor(given), values)
    assert {name: float(loss) for name, loss in tensor.losses.items()} == {
        name: float(loss) for name, loss in wanted.losses.items()
    }
    assert copy.deepcopy(tensor).losses == {}
    own = adapter(lambda output: (output.indices, output.quantized))(given)
    assert torch.equal(own[0], wanted.indices) and torch.equal(own[1], values)
    mask = torch.rand(2, 5, 6) < 0.5
    masked = vqp(given, mask=mask)[1]
    assert torch.equal(masked >= 0, mask)


def test_several_index_channels_and_sequences() -> None:
    quantizer = rq(D, K, num_levels=3).eval()
    x = torch.randn(2, D, 7)
    vqp = QuantizerAdapter(quantizer, returns="vector-quantize-pytorch")
    quantized, indices, loss = vqp(x)
    assert quantized.shape == (2, D, 7) and indices.shape == (2, 7, 3) and float(loss) == 0
    assert torch.equal(vqp.get_codes_from_indices(indices), quantized)
    taming = QuantizerAdapter(quantizer, returns="taming")
    _, _, (perplexity, _, flat) = taming(x)
    assert perplexity is None and flat.shape == (14, 3)
    assert torch.equal(taming.get_codebook_entry(flat, (2, 7, D)), quantized)


@torch.no_grad()
def test_start_from_the_old_codes() -> None:
    codes = TheirModel().quantize.embedding.weight

    def replaced(quantizer: Any, **settings: Any) -> Any:
        model = TheirModel()
        model.quantize.embedding.weight.copy_(codes)
        return replace_quantizer(model, "quantize", quantizer, returns="taming", **settings).quantizer

    for quantizer in (vq_vae(D, K), vq_vae_ema(D, K), grit_vq(D, K)):
        assert torch.equal(replaced(quantizer, start_from=True).codebook.codes(), codes)
    more = replaced(vq_vae(D, 2 * K), start_from=codes)
    assert torch.cdist(codes, more.codebook.codes()).amin(1).max() < 0.2  # fitted to the old ones
    fewer = replaced(vq_vae(D, K // 2), start_from=True)
    assert torch.cdist(codes, fewer.codebook.codes()).amin(1).mean() < codes.norm(dim=1).mean()
    moved = replaced(fvq(D, K), start_from=True).codebook.codes()
    torch.testing.assert_close(moved.mean(0), codes.mean(0), rtol=1e-3, atol=1e-3)  # moments alone
    projected = replaced(ProjectedQuantizer(vq_vae(2, K), D), start_from=True)
    assert torch.cdist(projected.project_in(codes), projected.quantizer.codebook.codes()).amin(1).max() < 1e-4
    untouched = vq_vae(D, K)
    before = untouched.codebook.codes().clone()
    assert torch.equal(replaced(untouched).codebook.codes(), before)


@pytest.mark.parametrize("kind", ["encodec", "dac", "mimi"])
@torch.no_grad()
def test_start_from_the_levels_of_a_codec(kind: str) -> None:
    class Codec(nn.Module):
        def __init__(self, state: dict[str, Tensor]) -> None:
            super().__init__()
            for name, value in state.items():
                self.register_buffer(name.replace(".", "/"), value)

        def state_dict(self, *args: Any, **settings: Any) -> Any:
            return {name.replace("/", "."): value for name, value in super().state_dict(*args, **settings).items()}

    state, read = {}, {"encodec": from_encodec, "dac": from_dac, "mimi": from_mimi}[kind]
    for i in range(2):
        if kind == "encodec":
            state[f"layers.{i}.codebook.embed"] = torch.randn(K, D)
        elif kind == "dac":
            state |= {f"quantizers.{i}.codebook.weight": torch.randn(K, 2)}
            for name, shape in (("in_proj", (2, D, 1)), ("out_proj", (D, 2, 1))):
                state[f"quantizers.{i}.{name}.weight"] = torch.randn(shape)
                state[f"quantizers.{i}.{name}.bias"] = torch.randn(shape[0])
        else:
            own = ("semantic", "acoustic")[i] + "_residual_vector_quantizer.layers.0.codebook."
            state |= {own + "embed_sum": torch.randn(K, D), own + "cluster_usage": torch.ones(K)}
    wanted, x = read(state, prefix=""), torch.randn(3, D, 9)
    other = read({name: torch.randn_like(value) for name, value in state.items()}, prefix="")
    if kind == "encodec":
        other = rq(D, K, num_levels=2)
    model = nn.ModuleDict({"quantizer": Codec(state)}).eval()
    adapter = replace_quantizer(model, "quantizer", other, returns="tensor", start_from=True)
    assert torch.equal(adapter(x), wanted(x.movedim(1, -1)).quantized.movedim(-1, 1))
    model = nn.ModuleDict({"quantizer": Codec(state)})
    with pytest.raises(ValueError, match=r"a quantizer of the levels of quantizer .*, got codes 16 x 4; build"):
        replace_quantizer(model, "quantizer", vq_vae(D, K), returns="tensor", start_from=True)


def test_everywhere_the_module_is() -> None:
    model = nn.ModuleDict({"a": TheirQuantizer(), "layers": nn.Sequential(nn.Identity(), TheirQuantizer())})
    model["b"] = model["a"]
    adapter = replace_quantizer(model, "b", vq_vae(D, K), returns="tensor")
    assert model["a"] is adapter and model["b"] is adapter and model["layers"][1] is not adapter
    other = replace_quantizer(model.double(), "layers.1", vq_vae(D, K), returns="tensor")
    assert model["layers"][1] is other
    assert torch.equal(model["layers"](torch.zeros(1, D, 3)), other(torch.zeros(1, D, 3)))


def test_mistakes_say_what_to_do() -> None:
    def replaced(name: str = "quantize", quantizer: Any = None, **settings: Any) -> Any:
        quantizer = vq_vae(D, K) if quantizer is None else quantizer
        return replace_quantizer(TheirModel(), name, quantizer, **{"returns": "taming", **settings})

    with pytest.raises(ValueError, match=r"submodule of TheirModel, got 'quantise'; quantizers may be quantize$"):
        replaced("quantise")
    with pytest.raises(ValueError, match=r"got ''; quantizers may be quantize"):
        replaced("")
    with pytest.raises(ValueError, match=r"got 'x'; print\(model\) shows the names"):
        replace_quantizer(nn.Sequential(nn.Identity()), "x", vq_vae(D, K), returns="tensor")
    with pytest.raises(ValueError, match=r"size 4, as quantize is, got VectorQuantizer \(5 in, 5 out\); build"):
        replaced(quantizer=vq_vae(5, K))
    with pytest.raises(ValueError, match="expected a quantizer of this library, got ChannelsFirst; pass one"):
        replaced(quantizer=ChannelsFirst(vq_vae(D, K)))
    with pytest.raises(ValueError, match=r"expected a convention among \('vector-quantize-pytorch', .* got 'vqgan'"):
        replaced(returns="vqgan")
    with pytest.raises(ValueError, match=r"expected a layout among .* got 'NCHW'"):
        replaced(layout="NCHW")
    with pytest.raises(ValueError, match=r"size 4 along axis -1 \(channels_last\), got \(2, 4, 5\); give another"):
        replaced(layout="channels_last")(torch.randn(2, D, 5))
    with pytest.raises(ValueError, match=r"expected codes \(K, 4\) to start from, got \(16, 2\)"):
        replaced(start_from=torch.randn(16, 2))
    for without in (fsq(D, K), FSQ([3] * D)):
        with pytest.raises(ValueError, match=r"a codebook to start from codes, got \w+, which has none; pass"):
            replaced(quantizer=without, start_from=True)
    with pytest.raises(ValueError, match="expected one table of codes in encoder, got weight, bias; pass the codes"):
        replaced("encoder", start_from=True)
    with pytest.raises(ValueError, match=r"a shape \(B, \*positions, 4\), channels last, got \(1, 4, 2, 2\)"):
        replaced().get_codebook_entry(torch.zeros(4, dtype=torch.int64), (1, D, 2, 2))
