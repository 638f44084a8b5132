"""Quantizers of vector-quantize-pytorch give the same indices and values when they are read as ours."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gritvq import ChannelsFirst, Quantizer
from gritvq.component import from_config, to_config
from gritvq.interop import from_vector_quantize_pytorch
from gritvq.interop.vector_quantize_pytorch.kinds import KINDS
from gritvq.saving import tensors_of

vqp = pytest.importorskip("vector_quantize_pytorch")

DIM, SIZE = 6, 24
VQ = {"dim": DIM, "codebook_size": SIZE}
RVQ = {**VQ, "num_quantizers": 3}
FSQ = {"levels": [5, 4, 3]}

# Name of the case: their class and its arguments.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vq": ("VectorQuantize", VQ),
    "vq-one-component": ("VectorQuantize", {"dim": 1, "codebook_size": 5}),
    "vq-straight-through": ("VectorQuantize", {**VQ, "rotation_trick": False, "decay": 0.99, "eps": 1e-6}),
    "vq-cosine": ("VectorQuantize", {**VQ, "use_cosine_sim": True}),
    "vq-projected": ("VectorQuantize", {**VQ, "codebook_dim": 3}),
    "vq-projected-cosine": ("VectorQuantize", {**VQ, "codebook_dim": 3, "use_cosine_sim": True}),
    "vq-heads": ("VectorQuantize", {**VQ, "heads": 3, "codebook_dim": 2}),
    "vq-heads-projected": ("VectorQuantize", {**VQ, "heads": 2}),
    "vq-heads-apart": ("VectorQuantize", {**VQ, "heads": 3, "codebook_dim": 2, "separate_codebook_per_head": True}),
    "vq-heads-apart-cosine": (
        "VectorQuantize",
        {**VQ, "heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True, "use_cosine_sim": True},
    ),
    "vq-learned": ("VectorQuantize", {**VQ, "learnable_codebook": True, "ema_update": False}),
    "vq-learned-orthogonal": (
        "VectorQuantize",
        {**VQ, "learnable_codebook": True, "ema_update": False, "orthogonal_reg_weight": 0.5},
    ),
    "vq-directional": ("VectorQuantize", {**VQ, "directional_reparam": True, "threshold_ema_dead_code": 2}),
    "vq-frozen": ("VectorQuantize", {**VQ, "freeze_codebook": True, "threshold_ema_dead_code": 2}),
    "rvq": ("ResidualVQ", RVQ),
    "rvq-cosine": ("ResidualVQ", {**RVQ, "use_cosine_sim": True}),
    "rvq-sizes": ("ResidualVQ", {"dim": DIM, "codebook_size": (24, 8, 4)}),
    "rvq-shared": ("ResidualVQ", {**RVQ, "shared_codebook": True}),
    "rvq-projected": ("ResidualVQ", {**RVQ, "codebook_dim": 3, "quantize_dropout": True}),
    "grouped": ("GroupedResidualVQ", {**RVQ, "groups": 2}),
    "grouped-cosine": ("GroupedResidualVQ", {**RVQ, "groups": 3, "use_cosine_sim": True}),
    "simvq": ("SimVQ", VQ),
    "simvq-straight-through": ("SimVQ", {**VQ, "rotation_trick": False, "commitment_weight": 2.0}),
    "simvq-bias": ("SimVQ", {**VQ, "codebook_transform": nn.Linear(DIM, DIM)}),
    "residual-simvq": ("ResidualSimVQ", RVQ),
    "fsq": ("FSQ", FSQ),
    "fsq-projected": ("FSQ", {**FSQ, "dim": DIM}),
    "fsq-projected-without-bias": ("FSQ", {**FSQ, "dim": DIM, "projection_has_bias": False}),
    "fsq-symmetric": ("FSQ", {"levels": [5, 4, 2, 7], "preserve_symmetry": True}),
    "fsq-clamped": ("FSQ", {**FSQ, "bound_hard_clamp": True}),
    "fsq-symmetric-clamped": ("FSQ", {**FSQ, "preserve_symmetry": True, "bound_hard_clamp": True}),
    "fsq-codebooks": ("FSQ", {**FSQ, "num_codebooks": 2}),
    "fsq-codebooks-projected": ("FSQ", {**FSQ, "num_codebooks": 3, "dim": 4}),
    "fsq-rotated": ("FSQ", {"levels": [5, 5, 5], "orthogonal_rotation": True, "preserve_symmetry": True}),
    "fsq-rotated-projected": (
        "FSQ",
        {"levels": [5, 5], "orthogonal_rotation": True, "num_codebooks": 2, "dim": DIM},
    ),
    "residual-fsq": ("ResidualFSQ", {"levels": [5, 4, 3], "num_quantizers": 3}),
    "residual-fsq-projected": ("ResidualFSQ", {"levels": [8, 5], "num_quantizers": 2, "dim": DIM}),
    "residual-fsq-tanh": (
        "ResidualFSQ",
        {
            "levels": [5, 4, 3],
            "num_quantizers": 3,
            "bound_hard_clamp": False,
            "soft_clamp_input_value": [2.0, 1.5, 1.2],
        },
    ),
    "lfq": ("LFQ", {"dim": 6}),
    "lfq-projected": ("LFQ", {"dim": DIM, "codebook_size": 16}),
    "lfq-projected-without-bias": ("LFQ", {"dim": DIM, "codebook_size": 16, "projection_has_bias": False}),
    "lfq-scaled": ("LFQ", {"dim": 6, "codebook_scale": 0.5, "soft_clamp_input_value": 3.0}),
    "lfq-codebooks": ("LFQ", {"dim": DIM, "codebook_size": 8, "num_codebooks": 2}),
    "lfq-rotated": ("LFQ", {"dim": 6, "orthogonal_rotation": True}),
    "bsq": ("LFQ", {"dim": 6, "spherical": True}),
    "bsq-projected": ("LFQ", {"dim": DIM, "codebook_size": 32, "spherical": True, "codebook_scale": 2.0}),
    "bsq-codebooks": ("LFQ", {"dim": DIM, "codebook_size": 8, "num_codebooks": 2, "spherical": True}),
    "residual-lfq": ("ResidualLFQ", {"dim": 6, "codebook_size": 64, "num_quantizers": 4}),
    "residual-lfq-projected": (
        "ResidualLFQ",
        {"dim": DIM, "codebook_size": 16, "num_quantizers": 3, "soft_clamp_input_value": 2.0},
    ),
}
# Values that are computed in another order there: a product of the codes with a matrix, the gradient's rotation also in
# eval (SimVQ), a length divided by (BSQ). All others are bitwise equal.
ROUNDED = {name for name in CASES if any(word in name for word in ("projected", "rotated", "simvq", "bsq"))}


def theirs_of(name: str, seed: int = 0) -> nn.Module:
    """Their module with random numbers in all of its tensors, in eval mode."""
    kind, arguments = CASES[name]
    torch.manual_seed(seed)
    module = getattr(vqp, kind)(**arguments)
    for part in module.modules():
        if hasattr(part, "cluster_size"):
            with torch.no_grad():
                part.cluster_size.uniform_(1.0, 9.0)
                part.embed_avg.copy_(torch.randn_like(part.embed) * part.cluster_size.unsqueeze(-1))
                part.update_ema()  # the codes that belong to these averages
    return module.eval()


def ours_of(name: str, module: nn.Module, **more: Any) -> Quantizer:
    kind, arguments = CASES[name]
    return from_vector_quantize_pytorch(module.state_dict(), kind, **arguments, **more)


def run(kind: str, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Their values, and their indices as ours are: the channels in the last axis."""
    with torch.no_grad():
        values, indices = module(x)[:2]
    if kind.startswith("Grouped"):
        return values, indices.movedim(0, -2).flatten(-2)
    single = indices.ndim == x.ndim - 1
    return values, (indices.unsqueeze(-1) if single else indices).long()


def decoded(kind: str, module: nn.Module, indices: Tensor) -> Tensor:
    """What their module makes of our indices."""
    if kind.startswith("Grouped"):
        indices = indices.unflatten(-1, (len(module.rvqs), -1)).movedim(-2, 0)
    elif indices.shape[-1] == 1 and not kind.startswith("Residual"):
        indices = indices.squeeze(-1)
    decode = getattr(module, "get_output_from_indices", None) or module.indices_to_codes
    with torch.no_grad():
        if kind == "VectorQuantize" and module.heads > 1 and not module.separate_codebook_per_head:
            return module.project_out(module.codebook[indices].flatten(-2))  # theirs leaves the heads' axis there
        return decode(indices)


def latents(kind: str, module: nn.Module, dim: int, number: int = 10_000) -> Tensor:
    """Vectors, without the few that are so near to a border that rounding decides: theirs change if they move a bit."""
    x = torch.randn(4, number // 4, dim, generator=torch.Generator().manual_seed(3))
    first = run(kind, module, x)[1]
    clear = torch.ones(x.shape[:2], dtype=torch.bool)
    for seed in (4, 5):
        step = 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        clear &= (run(kind, module, x + step)[1] == first).all(-1) & (run(kind, module, x - step)[1] == first).all(-1)
    assert clear.float().mean() > 0.97
    return x[clear].unsqueeze(0)


@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "fixed"])
@pytest.mark.parametrize("name", CASES)
def test_indices_and_values_are_theirs(name: str, trainable: bool) -> None:
    kind, module = CASES[name][0], theirs_of(name)
    quantizer = ours_of(name, module, trainable=trainable)
    assert quantizer.training == trainable
    quantizer.eval()
    x = latents(kind, module, quantizer.input_dim)
    values, indices = run(kind, module, x)
    with torch.no_grad():
        found = quantizer(x)
    assert torch.equal(found.indices, indices)
    assert len(indices.flatten(0, 1).unique(dim=0)) > 4
    back = quantizer.decode(indices)
    assert torch.equal(back, found.quantized)
    if name in ROUNDED or (trainable and "cosine" in name):
        assert (found.quantized - values).abs().max() < (1e-5 if "simvq" in name else 1e-6)
        assert (back - decoded(kind, module, indices)).abs().max() < 1e-6
    else:
        assert torch.equal(found.quantized, values)
        assert torch.equal(back, decoded(kind, module, indices))


def test_values_of_a_shared_codebook_of_levels_are_one_table() -> None:
    quantizer = ours_of("rvq-shared", theirs_of("rvq-shared"))
    assert quantizer.quantizers[0] is quantizer.quantizers[2]
    assert len(list(quantizer.parameters())) == 1


@pytest.mark.parametrize(
    ("kind", "arguments", "shape"),
    [
        ("VectorQuantize", {**VQ, "channel_last": False}, (2, DIM, 9)),
        ("VectorQuantize", {**VQ, "accept_image_fmap": True, "codebook_dim": 3}, (2, DIM, 4, 5)),
        ("VectorQuantize", {**VQ, "accept_3d_fmap": True, "heads": 2, "codebook_dim": 3}, (2, DIM, 2, 3, 4)),
        ("SimVQ", {**VQ, "channel_first": True}, (2, DIM, 4, 5)),
        ("ResidualSimVQ", {**RVQ, "channel_first": True}, (2, DIM, 4, 5)),
        ("ResidualVQ", {**RVQ, "accept_image_fmap": True}, (2, DIM, DIM, DIM)),  # theirs takes no other shape
        ("GroupedResidualVQ", {**RVQ, "dim": 2 * DIM, "groups": 2, "accept_image_fmap": True}, (2, 2 * DIM, DIM, DIM)),
        ("FSQ", {**FSQ, "channel_first": True, "dim": DIM}, (2, DIM, 9)),
        ("LFQ", {"dim": DIM, "channel_first": True}, (2, DIM, 4, 5)),
        ("ResidualFSQ", {**FSQ, "num_quantizers": 2, "is_channel_first": True}, (2, 3, 4, 5)),
    ],
)
def test_channels_first_is_a_wrapper(kind: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    module = getattr(vqp, kind)(**arguments).eval()
    quantizer = from_vector_quantize_pytorch(module.state_dict(), kind, **arguments).eval()
    assert isinstance(quantizer, ChannelsFirst)
    x = torch.randn(shape)
    with torch.no_grad():
        values, indices = module(x)[:2]
        found = quantizer(x)
    if kind == "GroupedResidualVQ":
        indices = indices.movedim(0, -2).flatten(-2)
    if kind == "ResidualFSQ":
        indices = indices.movedim(1, -1)  # theirs has the levels where the channels are
    assert torch.equal(found.indices, indices.long().view(found.indices.shape))
    assert (found.quantized - values).abs().max() < 1e-5


@pytest.mark.parametrize(
    "name", ["vq", "vq-cosine", "vq-heads-apart-cosine", "rvq", "rvq-projected", "lfq", "residual-fsq"]
)
def test_what_was_read_is_saved_like_any_other(name: str) -> None:
    quantizer = ours_of(name, theirs_of(name)).eval()
    other = from_config(to_config(quantizer)).eval()
    other.load_state_dict(tensors_of(quantizer), strict=False)
    x = torch.randn(50, quantizer.input_dim)
    assert torch.equal(other(x).quantized, quantizer(x).quantized)
    folded = quantizer.fold()
    assert torch.equal(folded.encode(x), quantizer.encode(x))
    again = from_config(to_config(quantizer))
    again.load_state_dict(quantizer.state_dict())  # with the moving averages
    for one, two in zip(again.modules(), quantizer.modules(), strict=True):
        if hasattr(two, "ema_counts"):
            assert torch.equal(one.ema_counts, two.ema_counts)
            assert (two.ema_counts > 0).all()


@pytest.mark.parametrize(
    "name",
    [
        "vq",
        "vq-straight-through",
        "vq-cosine",
        "vq-projected",
        "vq-projected-cosine",
        "vq-heads",
        "vq-heads-apart",
        "vq-heads-apart-cosine",
        "rvq",
        "rvq-cosine",
        "grouped",
    ],
)
def test_moving_averages_go_on_from_theirs(name: str) -> None:
    """Steps in training give the same codes and losses, up to their smoothing of small counts by 1e-5."""
    kind, module = CASES[name][0], theirs_of(name).train()
    quantizer = ours_of(name, module)
    quantizer.expect_updates()
    for seed in range(3):
        x = latents(kind, module.eval(), quantizer.input_dim, 800)
        x = x + 0.01 * seed
        theirs = module.train()(x)
        ours = quantizer(x)
        quantizer.update_codebook()
        assert float(ours.loss.detach()) == pytest.approx(float(theirs[2].detach().sum()), rel=1e-4)
        codes = [part.embed for part in module.modules() if hasattr(part, "embed_avg")]
        books = [part.codebook.codes() for part in quantizer.modules() if hasattr(part, "statistics")]
        found = torch.cat([rows.flatten() for rows in books])
        assert (found - torch.cat([rows.flatten() for rows in codes])).abs().max() < 1e-5 * (1 + seed)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("VectorQuantize", {**VQ, "threshold_ema_dead_code": 2}),
        ("VectorQuantize", {**VQ, "use_cosine_sim": True, "decay": 0.9}),
        ("VectorQuantize", {**VQ, "heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True}),
        ("ResidualVQ", {**RVQ, "codebook_dim": 4}),
    ],
)
def test_what_was_trained_there_goes_on_here(kind: str, arguments: dict[str, Any]) -> None:
    """Codes made by their k-means from the first batch, and moved by ten more."""
    torch.manual_seed(0)
    module = getattr(vqp, kind)(**arguments, kmeans_init=True)
    with pytest.raises(ValueError, match="run one through their module and save it again"):
        from_vector_quantize_pytorch(module.state_dict(), kind, **arguments)
    for _ in range(11):
        module.train()(torch.randn(2, 400, DIM))
    quantizer = from_vector_quantize_pytorch(module.state_dict(), kind, **arguments, kmeans_init=True).eval()
    x = latents(kind, module.eval(), DIM)
    values, indices = run(kind, module, x)
    found = quantizer(x)
    assert torch.equal(found.indices, indices) and (found.quantized - values).abs().max() < 1e-6
    if "threshold_ema_dead_code" not in arguments:  # revival draws from the batch
        module.train()(x)
        quantizer.train()(x)
        quantizer.update_codebook()
        again = quantizer.eval()(x)
        assert (again.quantized - run(kind, module.eval(), x)[0]).abs().amax(-1).median() < 1e-5


def test_learned_codes_take_the_same_gradient() -> None:
    module = theirs_of("vq-learned").train()
    quantizer = ours_of("vq-learned", module)
    x = latents("VectorQuantize", module.eval(), DIM, 400).requires_grad_()
    module.train()(x)[2].backward()
    grad, x.grad = x.grad, None
    ours = quantizer(x)
    ours.loss.backward()
    assert sorted(ours.losses) == ["codebook", "commitment"]
    assert torch.allclose(x.grad, grad, atol=1e-8)
    assert torch.allclose(quantizer.codebook.weight.grad, module._codebook.embed.grad[0], atol=1e-7)


def test_a_frozen_codebook_stays() -> None:
    quantizer = ours_of("vq-frozen", theirs_of("vq-frozen"))
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())
    assert sorted(quantizer(torch.randn(5, DIM)).losses) == ["commitment"]


def test_the_simvq_losses_are_theirs() -> None:
    module = theirs_of("simvq-straight-through").train()
    quantizer = ours_of("simvq-straight-through", module)
    x = latents("SimVQ", module, DIM, 400)
    assert float(quantizer(x).loss.detach()) == pytest.approx(float(module(x)[2].detach()), rel=1e-5)
    assert not quantizer.codebook.base.requires_grad and quantizer.codebook.weight.requires_grad


def test_the_prefix_picks_the_module_out_of_a_model() -> None:
    module = theirs_of("rvq-projected")
    state = {f"model.vq.{name}": value for name, value in module.state_dict().items()} | {"other": torch.zeros(1)}
    quantizer = from_vector_quantize_pytorch(state, "ResidualVQ", prefix="model.vq.", **CASES["rvq-projected"][1])
    x = torch.randn(20, DIM)
    assert torch.equal(quantizer.encode(x), ours_of("rvq-projected", module).encode(x))
    assert quantizer.quantizer.dropout == 1.0
    grid = from_vector_quantize_pytorch(state, "FSQ", prefix="fsq.", **FSQ)  # without parameters, so without tensors
    assert grid.codebook_sizes == (60,)


def test_half_precision_is_read_as_float32() -> None:
    module = theirs_of("vq-projected").half()
    quantizer = ours_of("vq-projected", module)
    assert {parameter.dtype for parameter in quantizer.parameters()} == {torch.float32}
    again = ours_of("vq-projected", module.float())
    x = torch.randn(30, DIM)
    assert torch.equal(quantizer.encode(x), again.encode(x))


def test_masked_positions_are_zeros_as_there() -> None:
    module = theirs_of("vq")
    quantizer = ours_of("vq", module).eval()
    x, mask = torch.randn(2, 9, DIM), torch.rand(2, 9) < 0.5
    values, indices, _ = module(x, mask=mask)
    found = quantizer(x, mask)
    assert torch.equal(found.indices.squeeze(-1), indices) and torch.equal(found.quantized, values)


def test_groups_with_projections_are_joined() -> None:
    torch.manual_seed(0)
    arguments = {**RVQ, "groups": 2, "codebook_dim": 2}
    module = vqp.GroupedResidualVQ(**arguments).eval()
    with pytest.raises(ValueError, match="trainable=False"):
        from_vector_quantize_pytorch(module.state_dict(), "GroupedResidualVQ", **arguments)
    quantizer = from_vector_quantize_pytorch(module.state_dict(), "GroupedResidualVQ", trainable=False, **arguments)
    x = latents("GroupedResidualVQ", module, DIM)
    values, indices = run("GroupedResidualVQ", module, x)
    assert torch.equal(quantizer.encode(x), indices)
    assert (quantizer.decode(indices) - values).abs().max() < 1e-6


def test_a_frozen_table_of_another_size_is_for_decoding() -> None:
    torch.manual_seed(0)
    arguments = {**VQ, "frozen_codebook_dim": 3}
    module = vqp.SimVQ(**arguments).eval()
    with pytest.raises(ValueError, match="expected frozen_codebook_dim=6 to go on training, got 3"):
        from_vector_quantize_pytorch(module.state_dict(), "SimVQ", **arguments)
    quantizer = from_vector_quantize_pytorch(module.state_dict(), "SimVQ", trainable=False, **arguments)
    x = latents("SimVQ", module, DIM)
    values, indices = run("SimVQ", module, x)
    assert torch.equal(quantizer.encode(x), indices)
    assert (quantizer.decode(indices) - values).abs().max() < 1e-5


def test_decoding_a_residual_sum_with_noise_is_decoding() -> None:
    """Their ResidualVQ with diveq adds noise in eval, too; its indices and what it decodes are ours."""
    torch.manual_seed(0)
    module = vqp.ResidualVQ(**RVQ, diveq=True).eval()
    quantizer = from_vector_quantize_pytorch(module.state_dict(), "ResidualVQ", diveq=True, **RVQ)
    x = latents("ResidualVQ", module, DIM)
    indices = run("ResidualVQ", module, x)[1]
    assert torch.equal(quantizer.encode(x), indices)
    assert torch.equal(quantizer.decode(indices), decoded("ResidualVQ", module, indices))


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    def remove(state: dict[str, Tensor]) -> None:
        del state[name]

    return remove


def with_tensor(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    def add(state: dict[str, Tensor]) -> None:
        state[name] = value

    return add


@pytest.mark.parametrize(
    ("changes", "change", "told"),
    [
        ({"radius": 2}, None, "expected arguments that VectorQuantize takes, got 'radius'; known are accept_3d_fmap"),
        ({"affine_param": True}, None, "expected affine_param=False, got True: what it computes has no counterpart"),
        ({"layernorm_after_project_in": True}, None, "expected layernorm_after_project_in=False, got True"),
        ({"sync_update_v": 0.5}, None, "expected sync_update_v=0.0 to go on training, got 0.5, which has no"),
        ({"orthogonal_reg_weight": 0.5}, None, "two owners would write the same codes"),
        ({"dim": 7}, None, r"expected _codebook.embed of shape \(1, 'any', 7\), got \(1, 24, 6\)"),
        ({"codebook_size": 25}, None, "expected codebook_size=25 as given, got tensors of 24"),
        ({"heads": 2}, None, "expected a tensor project_in.weight, got none left"),
        ({"heads": 2, "separate_codebook_per_head": True}, None, "_codebook.embed of shape"),
        ({"use_cosine_sim": True}, None, "expected codes of unit length with use_cosine_sim=True, got lengths from"),
        ({}, without("_codebook.embed_avg"), "expected a tensor _codebook.embed_avg"),
        ({}, with_tensor("_codebook.batch_mean", torch.zeros(1, 1, 6)), "no other tensors, got _codebook.batch_mean"),
        ({}, with_tensor("_codebook.initted", torch.tensor(False)), "run one through their module and save it again"),
        ({}, with_tensor("_codebook.embed", torch.full((1, 24, 6), torch.nan)), "expected finite codes"),
        ({"prefix": "vq."}, None, "expected tensors whose names begin with 'vq.'"),
    ],
)
def test_what_does_not_fit_is_said(
    changes: dict[str, Any], change: Callable[[dict[str, Tensor]], None] | None, told: str
) -> None:
    state = dict(theirs_of("vq").state_dict())
    if change is not None:
        change(state)
    with pytest.raises(ValueError, match=told):
        from_vector_quantize_pytorch(state, "VectorQuantize", **{**VQ, **changes})


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        ("HierarchicalVQ", {}, "expected a class among VectorQuantize, .*, got 'HierarchicalVQ'"),
        ("ResidualVQ", {**RVQ, "num_quantizers": 4}, "expected 4 layers, got tensors of 3"),
        ("ResidualVQ", {**RVQ, "codebook_size": (24, 24, 8)}, r"got tensors of \[24, 24, 24\]"),
        ("ResidualVQ", {**RVQ, "shared_codebook": True}, "expected one codebook in all layers"),
        ("ResidualVQ", {**RVQ, "implicit_neural_codebook": True}, "expected implicit_neural_codebook=False"),
        ("ResidualVQ", {**RVQ, "beam_size": 4}, "their beam search adds up"),
        (
            "ResidualVQ",
            {**RVQ, "quantize_dropout": True, "quantize_dropout_cutoff_index": 1},
            "expected quantize_dropout_cutoff_index=0 to go on training",
        ),
        ("ResidualFSQ", {"num_quantizers": 2}, "expected levels for ResidualFSQ, got none"),
        ("FSQ", {"levels": [8] * 9}, r"expected at most 2\^24 codes, got 2\^27.0"),
        ("LFQ", {"dim": 6, "cosine_sim_project_in": True}, "expected cosine_sim_project_in=False"),
    ],
)
def test_what_other_classes_cannot_be_is_said(kind: str, arguments: dict[str, Any], told: str) -> None:
    state = {} if kind.endswith("FSQ") else theirs_of("lfq" if kind == "LFQ" else "rvq").state_dict()
    with pytest.raises(ValueError, match=told):
        from_vector_quantize_pytorch(state, kind, **arguments)


def test_settings_that_act_in_training_only_are_taken_without_it() -> None:
    arguments = {**VQ, "stochastic_sample_codes": True, "codebook_diversity_loss_weight": 0.1}
    module = theirs_of("vq")
    quantizer = from_vector_quantize_pytorch(module.state_dict(), "VectorQuantize", trainable=False, **arguments)
    assert not quantizer.training and not any(parameter.requires_grad for parameter in quantizer.parameters())


LEVELS_OF = {  # which of their classes the levels of others are
    "ResidualVQ": ["VectorQuantize"],
    "GroupedResidualVQ": ["ResidualVQ", "VectorQuantize"],
    "ResidualSimVQ": ["SimVQ"],
    "ResidualFSQ": ["FSQ"],
    "ResidualLFQ": ["LFQ"],
}


@pytest.mark.parametrize("name", KINDS)
def test_every_argument_of_their_constructors_is_known_and_described(name: str) -> None:
    """One that a later version adds has to be looked at, and named on the page."""
    kind = KINDS[name]
    known = {*kind.read, *kind.unused, *kind.training, *kind.fixed}
    signatures = [inspect.signature(getattr(vqp, each).__init__) for each in [name, *LEVELS_OF.get(name, [])]]
    theirs = {argument for signature in signatures for argument in signature.parameters}
    theirs -= {"self", "kwargs", "vq_kwargs", "sim_vq_kwargs"}
    asked = {"heads", "separate_codebook_per_head", "preserve_symmetry", "channel_first", "codebook_scale"}
    assert known <= theirs and theirs - known <= (
        asked if name in LEVELS_OF else set()
    )  # levels decide some themselves
    page = (Path(__file__).parents[2] / "docs" / "moving.md").read_text()
    section = page.partition("## From vector-quantize-pytorch")[2].partition("\n## ")[0]
    described = {word for code in re.findall(r"`([^`\n]+)`", section) for word in re.findall(r"\w+", code)}
    assert known <= described, sorted(known - described)
