"""Residual quantizers of audio codecs, read from state dicts: the same indices and values as theirs.

Equality of indices is tested in float64, where no two of some random codes are equally near to within rounding; in
float32 a few vectors in ten thousand could be on a border between two codes, and other sums round to the other side.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gritvq import ResidualQuantizer
from gritvq.component import from_config, to_config
from gritvq.interop import from_dac, from_encodec, from_mimi

BATCH, TIME = 10, 1000  # ten thousand latents


def latents(dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(B, D, T), as the codecs have them."""
    return torch.randn(BATCH, dim, TIME, dtype=dtype)


def randomized(module: nn.Module) -> nn.Module:
    """Random codes instead of the zeros that the packages start from, larger for the first levels."""
    for name, buffer in module.named_buffers():
        if name.endswith(("embed", "embed_sum")):
            nn.init.normal_(buffer, std=0.8)
        elif name.endswith("cluster_usage"):
            nn.init.uniform_(buffer, 0.5, 1.5)
        elif name.endswith("cluster_size"):
            nn.init.uniform_(buffer, 0.0, 9.0)
    return module.eval()


def nearly_all(ours: Tensor, theirs: Tensor) -> None:
    """All vectors but those on a border between two codes, three in ten thousand at most."""
    assert int((ours != theirs).any(-1).sum()) <= 3


# --- EnCodec ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encodec() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        num_filters=2, hidden_size=12, codebook_dim=12, codebook_size=32, target_bandwidths=[3.0], num_lstm_layers=1
    )  # four levels
    return randomized(transformers.EncodecModel(config))


@torch.no_grad()
def test_encodec_of_transformers(encodec: Any) -> None:
    levels = encodec.quantizer.num_quantizers
    quantizer = from_encodec(encodec.state_dict())
    assert quantizer.codebook_sizes == (32,) * levels and not quantizer.training

    x = latents(12, torch.float32)
    theirs = encodec.quantizer.encode(x)
    nearly_all(quantizer.encode(x.movedim(1, -1)), theirs.movedim(0, -1))
    # The same codes in the same order of sums: bitwise the same.
    assert torch.equal(quantizer.decode(theirs.movedim(0, -1)).movedim(-1, 1), encodec.quantizer.decode(theirs))
    few = quantizer.encode(x.movedim(1, -1), num_levels=2)
    assert torch.equal(quantizer.decode(few).movedim(-1, 1), encodec.quantizer.decode(few.movedim(-1, 0)))


@torch.no_grad()
def test_encodec_of_transformers_in_float64(encodec: Any) -> None:
    state = {name: value.double() for name, value in encodec.quantizer.state_dict().items()}
    theirs = type(encodec.quantizer)(encodec.config).double()
    theirs.load_state_dict(state)
    x, quantizer = latents(12), from_encodec(state, prefix="")
    codes = theirs.encode(x).movedim(0, -1)
    output = quantizer(x.movedim(1, -1))
    assert torch.equal(output.indices, codes) and output.indices.dtype == torch.int64
    assert torch.equal(output.quantized.movedim(-1, 1), theirs.decode(codes.movedim(-1, 0)))


def encodec_state(levels: int, dim: int, size: int, inner: int | None = None) -> dict[str, Tensor]:
    """A state dict of the packages encodec and audiocraft."""
    state = {}
    for i in range(levels):
        own = f"quantizer.vq.layers.{i}."
        codes = torch.randn(size, inner or dim, dtype=torch.float64)
        counts = torch.rand(size) * 9
        state |= {own + "_codebook.embed": codes, own + "_codebook.embed_avg": codes * counts[:, None]}
        state |= {own + "_codebook.cluster_size": counts, own + "_codebook.inited": torch.ones(1)}
        for name, shape in (("project_in", (inner, dim)), ("project_out", (dim, inner))) if inner else ():
            state[f"{own}{name}.weight"] = torch.randn(shape, dtype=torch.float64) / 3
            state[f"{own}{name}.bias"] = torch.randn(shape[0] or 0, dtype=torch.float64) / 9
    return {"encoder.model.0.conv.weight": torch.zeros(1), **state}


@pytest.mark.parametrize("inner", [None, 4])
def test_encodec_of_its_own_package(inner: int | None) -> None:
    state = encodec_state(3, 6, 32, inner)
    x, rest, codes, total = latents(6), latents(6)[:0], [], 0
    rest = x.movedim(1, -1)
    for i in range(3):
        own = {name.split(f"layers.{i}.")[1]: t for name, t in state.items() if f"layers.{i}." in name}
        y, table = rest, own["_codebook.embed"]
        if inner:
            y = F.linear(y, own["project_in.weight"], own["project_in.bias"])
        chosen = torch.cdist(y, table.expand(BATCH, -1, -1), compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
        value = table[chosen]
        if inner:
            value = F.linear(value, own["project_out.weight"], own["project_out.bias"])
        rest, total = rest - value, total + value
        codes.append(chosen)
    quantizer = from_encodec(state)
    output = quantizer(x.movedim(1, -1))
    assert torch.equal(output.indices, torch.stack(codes, -1))
    torch.testing.assert_close(output.quantized, total, rtol=0, atol=1e-12)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)


def test_encodec_goes_on_from_its_counts() -> None:
    state = encodec_state(1, 2, 4)
    quantizer = from_encodec(state, decay=0.9).train()
    level = quantizer.quantizers[0]
    book = "quantizer.vq.layers.0._codebook."
    before, counts = state[book + "embed"], state[book + "cluster_size"]
    x = before[:1].expand(10, -1) + 0.1
    quantizer(x)
    quantizer.update_codebook()
    moved = 0.9 * counts[0] * before[0] + 0.1 * x.sum(0)
    torch.testing.assert_close(level.codebook.codes()[0], moved / (0.9 * counts[0] + 0.1 * 10), rtol=1e-5, atol=1e-6)
    assert torch.equal(level.codebook.codes()[1:], before[1:])


def test_encodec_that_is_something_else() -> None:
    state = encodec_state(2, 4, 8)
    with pytest.raises(ValueError, match=r"expected no other tensors, got quantizer\.vq\.extra; the module has parts"):
        from_encodec({**state, "quantizer.vq.extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"begin with 'quantiser\.', got"):
        from_encodec(state, prefix="quantiser.")
    with pytest.raises(ValueError, match=r"begin with layers\.0\., got encoder\.model"):
        from_encodec(state, prefix="")
    with pytest.raises(ValueError, match=r"were initialized, got quantizer\.vq\.layers\.1\._codebook\.inited = 0; the"):
        from_encodec({**state, "quantizer.vq.layers.1._codebook.inited": torch.zeros(1)})


# --- DAC --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dac() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=8,
        downsampling_ratios=[2, 2],
        upsampling_ratios=[2, 2],
        n_codebooks=4,
        codebook_size=64,
        codebook_dim=4,
    )
    model = transformers.DacModel(config)
    for parameter in model.quantizer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dac_of_transformers(dac: Any, dtype: torch.dtype) -> None:
    module = dac.quantizer.to(dtype)
    quantizer, x = from_dac(dac.state_dict()), latents(16, dtype)
    values, codes = module(x)[:2]
    output = quantizer(x.movedim(1, -1))
    if dtype == torch.float64:
        assert torch.equal(output.indices, codes.movedim(1, -1))
        torch.testing.assert_close(output.quantized.movedim(-1, 1), values, rtol=0, atol=1e-12)
    else:
        nearly_all(output.indices, codes.movedim(1, -1))
    # A convolution and a linear layer add the same products in another order, so values are not bitwise theirs.
    tolerance = {"rtol": 0, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 2e-6}
    decoded = quantizer.decode(codes.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(decoded, module.from_codes(codes)[0], **tolerance)
    fewer = module(x, n_quantizers=2)[0]
    ours = quantizer.decode(codes.movedim(1, -1)[..., :2]).movedim(-1, 1)
    torch.testing.assert_close(ours, fewer, **tolerance)


def test_dac_trains_as_theirs(dac: Any) -> None:
    """Losses and gradients, of the latents and of all parameters."""
    module = dac.quantizer.double().train()
    module.quantizer_dropout = 0
    x = torch.randn(3, 16, 20, dtype=torch.float64, requires_grad=True)
    values, _, _, commitment, codebook = module(x)
    quantizer = from_dac(dac.state_dict()).train()
    output = quantizer(x.movedim(1, -1))
    torch.testing.assert_close(output.loss, (0.25 * commitment + codebook).mean(), rtol=1e-6, atol=1e-6)
    upstream = torch.randn_like(values)
    pairs = [(x, x)]
    for ours, theirs in zip(quantizer.quantizers, module.quantizers, strict=True):
        pairs += [(ours.project_in.weight, theirs.in_proj.weight), (ours.project_out.bias, theirs.out_proj.bias)]
        pairs += [(ours.quantizer.codebook.weight, theirs.codebook.weight)]
    mine = torch.autograd.grad(
        (output.quantized.movedim(-1, 1) * upstream).sum() + output.loss, [pair[0] for pair in pairs]
    )
    other = torch.autograd.grad(
        (values * upstream).sum() + (0.25 * commitment + codebook).mean(), [pair[1] for pair in pairs]
    )
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b.view(a.shape), rtol=1e-5, atol=1e-6)
    module.eval()


@pytest.mark.parametrize("form", ["weight_g", "parametrizations"])
def test_dac_of_its_own_package(form: str) -> None:
    """Convolutions under weight_norm, and codes that are looked up by direction."""
    dim, inner, size, state = 6, 3, 32, {}
    rest = x = latents(dim)
    total, codes = 0, []
    for i in range(3):
        maps = []
        for name, shape in (("in_proj", (inner, dim, 1)), ("out_proj", (dim, inner, 1))):
            direction = torch.randn(shape, dtype=torch.float64)
            length = torch.rand(shape[0], 1, 1, dtype=torch.float64) + 0.5
            bias = torch.randn(shape[0], dtype=torch.float64) / 3
            own = f"quantizer.quantizers.{i}.{name}."
            names = ("weight_g", "weight_v")
            if form == "parametrizations":
                names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
            state |= {own + names[0]: length, own + names[1]: direction, own + "bias": bias}
            maps.append((length * direction / direction.norm(dim=(1, 2), keepdim=True), bias))
        table = torch.randn(size, inner, dtype=torch.float64)
        state[f"quantizer.quantizers.{i}.codebook.weight"] = table
        y = F.conv1d(rest, *maps[0])
        cosine = F.normalize(y.movedim(1, -1), dim=-1) @ F.normalize(table, dim=-1).T
        codes.append(cosine.argmax(-1))
        value = F.conv1d(table[codes[-1]].movedim(-1, 1), *maps[1])
        rest, total = rest - value, total + value
    quantizer = from_dac({"encoder.block.0.bias": torch.zeros(1), **state})
    output = quantizer(x.movedim(1, -1))
    assert torch.equal(output.indices, torch.stack(codes, -1))
    torch.testing.assert_close(output.quantized.movedim(-1, 1), total, rtol=0, atol=1e-12)
    assert isinstance(quantizer, ResidualQuantizer)
    folded = quantizer.fold()
    assert torch.equal(folded.encode(x.movedim(1, -1)), output.indices)


def test_dac_that_is_something_else() -> None:
    state = {"quantizer.quantizers.0.codebook.weight": torch.randn(8, 2)}
    state["quantizer.quantizers.0.in_proj.weight"] = torch.randn(2, 4, 3)
    state["quantizer.quantizers.0.in_proj.bias"] = torch.randn(2)
    with pytest.raises(ValueError, match=r"quantizers\.0\.in_proj to be .* got weights \(2, 4, 3\); it mixes"):
        from_dac(state)
    state["quantizer.quantizers.0.in_proj.weight"] = torch.randn(2, 4, 1)
    with pytest.raises(ValueError, match=r"a tensor quantizer\.quantizers\.0\.out_proj\.weight, got none left"):
        from_dac(state)
    state |= {"quantizer.quantizers.0.out_proj.weight": torch.randn(5, 2, 1)}
    with pytest.raises(ValueError, match=r"weights \(2, 4\) and \(4, 2\), got \(2, 4\) and \(5, 2\)"):
        from_dac(state)


@torch.no_grad()
def test_what_was_read_can_be_saved(encodec: Any, dac: Any, mimi: Any) -> None:
    for quantizer, dim in (
        (from_encodec(encodec.state_dict()), 12),
        (from_dac(dac.float().state_dict()), 16),
        (from_mimi(mimi.state_dict(), prefix=""), 12),
    ):
        rebuilt = from_config(to_config(quantizer))
        rebuilt.load_state_dict(quantizer.state_dict())
        x = torch.randn(100, dim)
        ours, theirs = rebuilt.eval()(x), quantizer(x)
        assert torch.equal(ours.indices, theirs.indices) and torch.equal(ours.quantized, theirs.quantized)


# --- Mimi -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[6, 12], ids=["projected", "plain"])
def mimi(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip("transformers")
    from transformers import MimiConfig
    from transformers.models.mimi.modeling_mimi import MimiSplitResidualVectorQuantizer

    torch.manual_seed(0)
    config = MimiConfig(
        hidden_size=12,
        vector_quantization_hidden_dimension=request.param,
        codebook_dim=request.param,
        codebook_size=32,
        num_quantizers=5,
        num_semantic_quantizers=2,
    )
    return randomized(MimiSplitResidualVectorQuantizer(config))


@torch.no_grad()
def test_mimi_of_transformers(mimi: Any) -> None:
    x, quantizer = latents(12, torch.float32), from_mimi(mimi.state_dict(), prefix="")
    assert quantizer.codebook_sizes == (32,) * 5
    codes = mimi.encode(x)
    nearly_all(quantizer.encode(x.movedim(1, -1)), codes.movedim(0, -1))
    # One product with both output maps side by side adds in another order than two products do.
    theirs = mimi.decode(codes.movedim(0, 1))
    ours = quantizer.decode(codes.movedim(0, -1))
    torch.testing.assert_close(ours.movedim(-1, 1), theirs, rtol=1e-6, atol=2e-6)
    few = mimi.encode(x, num_quantizers=3)
    indices = F.pad(few.movedim(0, -1), (0, 2), value=-1)
    torch.testing.assert_close(
        quantizer.decode(indices).movedim(-1, 1), mimi.decode(few.movedim(0, 1)), rtol=1e-6, atol=2e-6
    )


@torch.no_grad()
def test_mimi_in_float64(mimi: Any) -> None:
    """Their search is in float32 whatever the type, so this one is written out."""
    state = {name: value.double() for name, value in mimi.state_dict().items()}
    x, codes, total = latents(12), [], 0
    for part, levels in (("semantic", 2), ("acoustic", 3)):
        own = f"{part}_residual_vector_quantizer."
        projected = own + "input_proj.weight" in state
        rest, value = F.conv1d(x, state[own + "input_proj.weight"]) if projected else x, 0
        rest = rest.movedim(1, -1)
        for i in range(levels):
            book = own + f"layers.{i}.codebook."
            table = state[book + "embed_sum"] / state[book + "cluster_usage"][:, None]
            chosen = (rest.unsqueeze(-2) - table).square().sum(-1).argmin(-1)
            rest, value = rest - table[chosen], value + table[chosen]
            codes.append(chosen)
        value = value.movedim(-1, 1)
        total = total + (F.conv1d(value, state[own + "output_proj.weight"]) if projected else value)
    output = from_mimi(state, prefix="")(x.movedim(1, -1))
    assert torch.equal(output.indices, torch.stack(codes, -1))
    torch.testing.assert_close(output.quantized.movedim(-1, 1), total, rtol=0, atol=1e-12)


def test_mimi_of_its_own_package(mimi: Any) -> None:
    """The same tensors under the names that moshi gives them."""
    state = {}
    for name, value in mimi.state_dict().items():
        for old, new in (
            ("semantic_residual_vector_quantizer.", "rvq_first."),
            ("acoustic_residual_vector_quantizer.", "rvq_rest."),
            ("layers.", "vq.layers."),
            (".codebook.", "._codebook."),
            (".initialized", "._initialized"),
            ("embed_sum", "embedding_sum"),
        ):
            name = name.replace(old, new)
        state["quantizer." + name] = value
    x = torch.randn(50, 12)
    theirs, ours = from_mimi(mimi.state_dict(), prefix="")(x), from_mimi(state)(x)
    assert torch.equal(ours.indices, theirs.indices) and torch.equal(ours.quantized, theirs.quantized)


def test_mimi_that_is_something_else(mimi: Any) -> None:
    state = mimi.state_dict()
    with pytest.raises(ValueError, match=r"acoustic_residual_vector_quantizer, got those of \['semantic_residual"):
        from_mimi({name: value for name, value in state.items() if "acoustic" not in name}, prefix="")
    name = "acoustic_residual_vector_quantizer.layers.1.codebook.initialized"
    with pytest.raises(ValueError, match=rf"were initialized, got {name} = 0"):
        from_mimi({**state, name: torch.zeros(1)}, prefix="")
    missing = "acoustic_residual_vector_quantizer.layers.0.codebook.cluster_usage"
    with pytest.raises(ValueError, match=f"expected a tensor {missing}, got none left"):
        from_mimi({name: value for name, value in state.items() if name != missing}, prefix="")
