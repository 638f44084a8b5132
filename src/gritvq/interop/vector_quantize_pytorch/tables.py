"""Quantizers with tables: VectorQuantize, its residual forms and SimVQ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gritvq.interop.vector_quantize_pytorch.parts import Maps, maps_around, numbered_parts, projected, repeated
from gritvq.interop.vector_quantize_pytorch.settings import Settings
from gritvq.interop.weights import Weights
from gritvq.quantizers.assignments import NearestAssignment
from gritvq.quantizers.base import LearningRule, Quantizer, Surrogate
from gritvq.quantizers.codebooks import AffineCodebook, FreeCodebook
from gritvq.quantizers.codebooks.rowwise import plain_table
from gritvq.quantizers.functional import Metric, at_least_float32
from gritvq.quantizers.learning import CodebookLoss, CommitmentLoss, DeadCodeRevival, EMAUpdate, OrthogonalityLoss
from gritvq.quantizers.structures import NormalizedQuantizer, ProductQuantizer, ResidualQuantizer
from gritvq.quantizers.surrogates import DirectionalReparameterization, RotationTrick, StraightThrough
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["grouped_residual_vq", "residual_sim_vq", "residual_vq", "sim_vq", "vector_quantize"]


class _Tables(NamedTuple):
    """Tables of one VectorQuantize: codes (H, K, D), moving averages of counts (H, K) and sums (H, K, D)."""

    codes: Tensor
    counts: Tensor
    sums: Tensor


def _tables(weights: Weights, settings: Settings, num_tables: int, dim: int | None) -> _Tables:
    if not bool(weights.take("_codebook.initted").all()):  # of shape () or, in old versions, (1,)
        raise ValueError(
            f"expected a codebook that has seen data, got {weights.prefix}_codebook.initted = False: with kmeans_init "
            "the codes are made from the first batch; run one through their module and save it again"
        )
    codes = at_least_float32(weights.take("_codebook.embed", (num_tables, None, dim)))
    counts = at_least_float32(weights.take("_codebook.cluster_size", codes.shape[:2]))
    sums = at_least_float32(weights.take("_codebook.embed_avg", codes.shape))
    if not bool(torch.isfinite(codes).all()):
        raise ValueError(f"expected finite codes, got others in {weights.prefix}_codebook.embed; use an earlier state")
    if settings["use_cosine_sim"]:
        lengths = codes.norm(dim=-1)
        if not bool(((lengths - 1).abs() < 1e-3).all()):
            raise ValueError(
                f"expected codes of unit length with use_cosine_sim=True, got lengths from {float(lengths.min()):g} to "
                f"{float(lengths.max()):g}; their search does not normalize codes, so indices would differ"
            )
    return _Tables(codes, counts, sums)


def _one_table(tables: _Tables, head: int, settings: Settings, num_parts: int = 1) -> Quantizer:
    """The quantizer of one table; its losses are shared among ``num_parts`` that are summed."""
    codes, counts, sums = tables.codes[head], tables.counts[head], tables.sums[head]
    cosine = bool(settings["use_cosine_sim"])
    metric: Metric = "cosine" if cosine else "euclidean"
    if not settings.trainable:
        return VectorQuantizer(plain_table(codes), NearestAssignment(metric), learning=[])
    surrogate, rules = _learning(settings, codes.shape[1], num_parts)
    averaged = any(rule.writes_codes == "table" for rule in rules)
    if cosine:  # the length of a row is what their average of sums has, its direction the code
        lengths = sums.norm(dim=-1) / counts
        codes = codes * torch.where(torch.isfinite(lengths) & (lengths > 0), lengths, 1).unsqueeze(-1)
    else:  # the mass that makes the code the ratio of their two averages
        total = counts.sum()
        counts = (counts + settings["eps"]) * total / (total + len(counts) * settings["eps"])
    codebook = FreeCodebook(codes.shape[1], len(codes), normalize=cosine).to(codes.device, codes.dtype)
    codebook.write(torch.arange(len(codes), device=codes.device), codes)
    if settings["freeze_codebook"] or not (
        averaged or any(rule.trains_codes for rule in rules) or surrogate.moves_codes
    ):
        codebook.freeze()
    quantizer = VectorQuantizer(codebook, NearestAssignment(metric), surrogate, rules)
    if averaged and quantizer.statistics is not None:
        quantizer.statistics.ema_counts = counts.to(quantizer.statistics.ema_counts).clone()
    return NormalizedQuantizer(quantizer) if cosine else quantizer


def _learning(settings: Settings, dim: int, num_parts: int) -> tuple[Surrogate, list[LearningRule]]:
    """Surrogate and rules of their settings."""
    directional, frozen = bool(settings["directional_reparam"]), bool(settings["freeze_codebook"])
    averaged = not directional if settings["ema_update"] is None else bool(settings["ema_update"])
    learned = directional if settings["learnable_codebook"] is None else bool(settings["learnable_codebook"])
    orthogonal, weight = settings["orthogonal_reg_weight"], settings["commitment_weight"] / num_parts
    rules: list[LearningRule] = []
    if not frozen:
        if averaged and orthogonal:
            raise ValueError(
                f"expected orthogonal_reg_weight=0 with moving averages to go on training, got {orthogonal!r}: two "
                "owners would write the same codes; pass trainable=False, or ema_update=False"
            )
        if averaged:
            rules.append(EMAUpdate(settings["decay"]))
        elif learned and weight > 0 and not directional:
            rules.append(CodebookLoss(weight))
        if orthogonal:
            rules.append(OrthogonalityLoss(orthogonal / num_parts))
        if settings["threshold_ema_dead_code"] > 0:
            rules.append(DeadCodeRevival())
    if weight > 0 and not directional:
        rules.append(CommitmentLoss(weight))
    if directional:
        noise = math.sqrt(settings["directional_reparam_variance"])
        return DirectionalReparameterization(noise), rules
    rotate = settings["rotation_trick"]
    return (RotationTrick() if (dim > 1 if rotate is None else rotate) else StraightThrough()), rules


def vector_quantize(weights: Weights, settings: Settings) -> Quantizer:
    """Their VectorQuantize: one table for all heads, or one for each, between projections."""
    heads, separate = settings["heads"], settings["separate_codebook_per_head"]
    dim, inner = settings["dim"], settings["codebook_dim"]
    tables = _tables(weights, settings, heads if separate else 1, dim if inner is None else inner)
    settings.check("codebook_size", tables.codes.shape[1])
    maps = maps_around(weights, heads * tables.codes.shape[2], dim)
    if heads == 1 or not separate:
        return projected(repeated(_one_table(tables, 0, settings, heads), heads), maps)
    return projected(ProductQuantizer([_one_table(tables, h, settings, heads) for h in range(heads)]), maps)


def _residual_levels(weights: Weights, settings: Settings, dim: int | None) -> tuple[Quantizer, Maps | None]:
    """The levels of one ResidualVQ and the maps around them."""
    for name in ("eval_beam_size", "beam_size"):
        searched = settings[name] is not None and settings[name] > 1
        if searched and (name == "eval_beam_size" or settings["eval_beam_size"] is None or settings.trainable):
            raise ValueError(
                f"expected {name}=None, got {settings[name]!r}: their beam search adds up the errors of all levels, "
                "ours compares those of the sums; leave it out for greedy indices, or use encode(..., beam=) here"
            )
    if settings["diveq"]:
        noise: dict[str, Any] = {"directional_reparam": True, "directional_reparam_variance": 5e-3}
        settings = settings.replaced(ema_update=False, learnable_codebook=True, **noise)
    inner = dim if settings["codebook_dim"] is None else settings["codebook_dim"]
    parts = numbered_parts(weights, "layers", settings["num_quantizers"])
    tables = [_tables(part, settings, 1, inner) for part in parts]
    for part in parts:
        part.finish()
    sizes = [table.codes.shape[1] for table in tables]
    wanted = settings["codebook_size"]
    if wanted is not None and (list(wanted) if isinstance(wanted, Sequence) else [wanted] * len(sizes)) != sizes:
        raise ValueError(f"expected codebook_size={wanted!r} as given, got tensors of {sizes}; check the arguments")
    if settings["shared_codebook"]:
        if any(not torch.equal(one, first) for table in tables for one, first in zip(table, tables[0], strict=True)):
            raise ValueError("expected one codebook in all layers with shared_codebook=True, got others; leave it out")
        levels = [_one_table(tables[0], 0, settings)] * len(tables)
    else:
        levels = [_one_table(table, 0, settings) for table in tables]
    maps = maps_around(weights, tables[0].codes.shape[2], dim)
    if maps is not None and settings.channels_first():
        raise ValueError(
            "expected no codebook_dim with channels first, got one: their module projects the last axis, which is not "
            "that of the channels then; move the channels last"
        )
    return ResidualQuantizer(levels, dropout=settings.dropout(len(levels))), maps


def residual_vq(weights: Weights, settings: Settings) -> Quantizer:
    """Their ResidualVQ."""
    return projected(*_residual_levels(weights, settings, settings["dim"]))


def grouped_residual_vq(weights: Weights, settings: Settings) -> Quantizer:
    """Their GroupedResidualVQ: a ResidualVQ for each group of components."""
    parts = numbered_parts(weights, "rvqs", settings["groups"])
    dim = settings["dim"]
    if dim is not None and dim % len(parts):
        raise ValueError(f"expected dim divisible by {len(parts)} groups, got {dim}; check the arguments")
    found = [_residual_levels(part, settings, None if dim is None else dim // len(parts)) for part in parts]
    for part in parts:
        part.finish()
    groups, maps = ProductQuantizer([group for group, _ in found]), [own for _, own in found if own is not None]
    if not maps:
        return groups
    if settings.trainable:
        raise ValueError(
            "expected groups without codebook_dim to go on training, got projections in every group: a product here "
            "has its maps around the whole, which would start to mix groups; pass trainable=False"
        )
    joined = [torch.block_diag(*each) for each in ([m.weight_in for m in maps], [m.weight_out for m in maps])]
    biases = [
        torch.cat([b for b in each if b is not None])
        for each in ([m.bias_in for m in maps], [m.bias_out for m in maps])
    ]
    return projected(groups, Maps(joined[0], biases[0], joined[1], biases[1]))


def sim_vq(weights: Weights, settings: Settings) -> Quantizer:
    """Their SimVQ: a frozen table under a linear map."""
    base = at_least_float32(weights.take("frozen_codebook", (None, settings["frozen_codebook_dim"])))
    if "code_transform.weight" not in weights:
        raise ValueError(
            f"expected a linear code_transform, got {', '.join(weights.names[:3])}; with a codebook_transform of your "
            "own, give the rows of their `codebook` to a FreeCodebook"
        )
    matrix = at_least_float32(weights.take("code_transform.weight", (settings["dim"], base.shape[1])))
    dim = len(matrix)
    bias = weights.take("code_transform.bias", (dim,)).to(matrix) if "code_transform.bias" in weights else None
    settings.check("codebook_size", len(base))
    if not settings.trainable:
        return VectorQuantizer(plain_table(F.linear(base, matrix, bias)), learning=[])
    if base.shape[1] != dim:
        raise ValueError(
            f"expected frozen_codebook_dim={dim} to go on training, got {base.shape[1]}: a shared map here has as many "
            "components in as out; pass trainable=False for a quantizer to encode and decode with"
        )
    codebook = AffineCodebook(dim, len(base), base="frozen", bias=bias is not None).to(base.device, base.dtype)
    with torch.no_grad():
        codebook.base.copy_(base)
        codebook.weight.copy_(matrix.T)
        if codebook.bias is not None and bias is not None:
            codebook.bias.copy_(bias)
    weight = settings["commitment_weight"]
    rules = [CodebookLoss(weight), CommitmentLoss(weight * settings["input_to_quantize_commit_loss_weight"])]
    surrogate = RotationTrick() if settings["rotation_trick"] else StraightThrough()
    return VectorQuantizer(codebook, surrogate=surrogate, learning=rules)


def residual_sim_vq(weights: Weights, settings: Settings) -> Quantizer:
    """Their ResidualSimVQ."""
    parts = numbered_parts(weights, "layers", settings["num_quantizers"])
    levels = [sim_vq(part, settings) for part in parts]
    for part in parts:
        part.finish()
    return ResidualQuantizer(levels, dropout=settings.dropout(len(levels)))
