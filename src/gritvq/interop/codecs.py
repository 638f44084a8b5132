"""Residual quantizers of audio codecs: EnCodec, DAC, Mimi.

All of them see latents (B, D, T) and write codes (levels, B, T) or (B, levels, T). Here vectors have their channels
last, and so do indices: latents (B, T, D), indices (B, T, levels). So for their latents ``z`` and their codes::

    indices = quantizer.encode(z.movedim(1, -1))        # (B, T, levels)
    codes = indices.movedim(-1, 0)                      # (levels, B, T): EnCodec
    codes = indices.movedim(-1, 1)                      # (B, levels, T): DAC, Mimi
    z_q = quantizer.decode(indices).movedim(-1, 1)      # (B, D, T)

Indices are the same up to ties: where two codes are equally near to within rounding, any two programs, or one program
on two machines, may choose differently.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gritvq.interop.assembling import Affine, affine_of, between, numbered, table_quantizer
from gritvq.interop.weights import Weights
from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.functional import at_least_float32
from gritvq.quantizers.learning import CodebookLoss, CommitmentLoss, EMAUpdate
from gritvq.quantizers.structures import ProductQuantizer, ProjectedQuantizer, ResidualQuantizer
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["from_dac", "from_encodec", "from_mimi"]


def from_encodec(
    state: Mapping[str, Tensor], prefix: str = "quantizer.", *, decay: float = 0.99, commitment_weight: float = 1.0
) -> ResidualQuantizer:
    """The residual quantizer of an EnCodec model: that of the packages encodec and audiocraft, or of transformers.

    Latents are (B, T, D) here and indices (B, T, levels); theirs are (B, D, T) and (levels, B, T). A bandwidth is a
    number of levels: ``encode(latents, num_levels=n)``, and ``decode`` takes any number of them. Values of equal
    indices are bitwise theirs.

    Args:
        state: State dict of the model, or of its quantizer with ``prefix=""``.
        prefix: Beginning of the names of the quantizer's tensors.
        decay: Of the moving averages if training goes on, per update. They go on from the saved counts.
        commitment_weight: Weight of the commitment loss of every level.

    Returns:
        A quantizer in eval mode. Levels with linear maps of their own (a codebook of another dimension) become
        projected ones.

    Raises:
        ValueError: If a tensor is missing or left over, or the codes were never initialized.

    Example:
        >>> state = {f"quantizer.layers.{i}.codebook.embed": torch.randn(16, 8) for i in range(4)}
        >>> quantizer = from_encodec(state)
        >>> latents = torch.randn(2, 8, 50)
        >>> quantizer.encode(latents.movedim(1, -1), num_levels=2).shape
        torch.Size([2, 50, 2])

    References:
        Défossez et al., "High Fidelity Neural Audio Compression", TMLR 2023, arXiv 2210.13438.
    """
    weights = Weights(state, prefix)
    if any(name.startswith("vq.") for name in weights.names):
        whole, weights = weights, weights.part("vq.")
        whole.finish()
    levels: list[Quantizer] = []
    for layer in numbered(weights, "layers.{}."):
        book = layer.part("_codebook." if any(name.startswith("_codebook.") for name in layer.names) else "codebook.")
        _check_initialized(book, "inited")
        codes = book.take("embed", (None, None))
        counts = book.take("cluster_size", (len(codes),)) if "cluster_size" in book else None
        book.ignore("embed_avg")  # the codes times the counts
        book.finish()
        level: Quantizer = _ema_quantizer(codes, counts, decay, commitment_weight)
        if any(name.startswith("project_in.") for name in layer.names):
            maps = affine_of(layer, "project_in"), affine_of(layer, "project_out")
            level = between(maps[0], level, maps[1], "project_in and project_out", own_surrogate=True)
        layer.finish()
        levels.append(level)
    weights.finish()
    return ResidualQuantizer(levels).eval()


def from_dac(
    state: Mapping[str, Tensor],
    prefix: str = "quantizer.",
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
) -> ResidualQuantizer:
    """The residual quantizer of a Descript Audio Codec: that of the package descript-audio-codec, or of transformers.

    Every level maps the remainder into a small space, takes the code of the nearest direction there, and maps that code
    back. Latents are (B, T, D) here and indices (B, T, levels); theirs are (B, D, T) and (B, levels, T). The first n
    levels are ``encode(latents, num_levels=n)``, and ``decode`` takes any number of them.

    The gradient is theirs, too: straight-through at every level, in the space of its codes. For their dropout of levels
    put the levels into ``ResidualQuantizer(list(quantizer.quantizers), dropout=0.5)``.

    Args:
        state: State dict of the model, or of its quantizer with ``prefix=""``. The 1 x 1 convolutions may be
            normalized by ``weight_norm``, in either form; here they are plain linear maps.
        prefix: Beginning of the names of the quantizer's tensors.
        commitment_weight: Weight of the commitment loss of every level if training goes on.
        codebook_weight: Weight of the codebook loss of every level.

    Returns:
        A quantizer in eval mode.

    Raises:
        ValueError: If a tensor is missing or left over.

    Example:
        >>> state = {"quantizer.quantizers.0.codebook.weight": torch.randn(16, 2)}
        >>> for name, shape in (("in_proj", (2, 8, 1)), ("out_proj", (8, 2, 1))):
        ...     state[f"quantizer.quantizers.0.{name}.weight"] = torch.randn(shape)
        ...     state[f"quantizer.quantizers.0.{name}.bias"] = torch.randn(shape[0])
        >>> from_dac(state)(torch.randn(2, 50, 8)).indices.shape
        torch.Size([2, 50, 1])

    References:
        Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", NeurIPS 2023, arXiv 2306.06546.
    """
    weights = Weights(state, prefix)
    levels: list[Quantizer] = []
    for layer in numbered(weights, "quantizers.{}."):
        rules = [CodebookLoss(codebook_weight), CommitmentLoss(commitment_weight)]
        inner = table_quantizer(layer.take("codebook.weight", (None, None)), rules, metric="cosine")
        maps = affine_of(layer, "in_proj"), affine_of(layer, "out_proj")
        levels.append(between(maps[0], inner, maps[1], "in_proj and out_proj", own_surrogate=True))
        layer.finish()
    weights.finish()
    return ResidualQuantizer(levels).eval()


def from_mimi(
    state: Mapping[str, Tensor], prefix: str = "quantizer.", *, decay: float = 0.99, commitment_weight: float = 1.0
) -> ProjectedQuantizer:
    """The split residual quantizer of a Mimi model: that of transformers, or of the package moshi.

    A semantic and an acoustic residual quantizer both see the latents, each through a map of its own, and their values
    are added after another map each. That is a product of the two between two maps: the rows of the first are those of
    both input maps, the columns of the second those of both output maps.

    Latents are (B, T, D) here and indices (B, T, levels), the semantic ones first; theirs are (B, D, T) and (B, levels,
    T). To decode the first n levels only, set the other channels to -1.

    Args:
        state: State dict of the model, or of its quantizer with ``prefix=""``.
        prefix: Beginning of the names of the quantizer's tensors.
        decay: Of the moving averages if training goes on, per update. They go on from the saved counts.
        commitment_weight: Weight of the commitment loss of every level.

    Returns:
        A quantizer in eval mode.

    Raises:
        ValueError: If a tensor is missing or left over, or the codes were never initialized.

    Example:
        >>> state = {}
        >>> for part, levels in (("semantic", 1), ("acoustic", 3)):
        ...     for i in range(levels):
        ...         name = f"quantizer.{part}_residual_vector_quantizer.layers.{i}.codebook."
        ...         state |= {name + "embed_sum": torch.randn(16, 8), name + "cluster_usage": torch.ones(16)}
        >>> quantizer = from_mimi(state)
        >>> indices = quantizer.encode(torch.randn(2, 50, 8))
        >>> indices.shape
        torch.Size([2, 50, 4])
        >>> indices[..., 2:] = -1
        >>> quantizer.decode(indices).shape
        torch.Size([2, 50, 8])

    References:
        Défossez et al., "Moshi: a speech-text foundation model for real-time dialogue", 2024, arXiv 2410.00037.
    """
    weights = Weights(state, prefix)
    names = ("rvq_first.", "rvq_rest.")
    if not any(name.startswith(names[0]) for name in weights.names):
        names = ("semantic_residual_vector_quantizer.", "acoustic_residual_vector_quantizer.")
    found = [name for name in names if any(other.startswith(name) for other in weights.names)]
    if len(found) < 2:
        raise ValueError(
            f"expected the tensors of {prefix}{names[0][:-1]} and {prefix}{names[1][:-1]}, got those of "
            f"{found or 'neither'}; give the prefix of the quantizer, such as prefix='quantizer.'"
        )
    parts = [_mimi_part(weights.part(name), decay, commitment_weight) for name in names]
    weights.finish()
    quantizer = ProductQuantizer([part for part, _, _ in parts])
    into = Affine(torch.cat([given.weight for _, given, _ in parts], 0), None)
    out_of = Affine(torch.cat([given.weight for _, _, given in parts], 1), None)
    return between(into, quantizer, out_of, "input_proj and output_proj").eval()


def _mimi_part(weights: Weights, decay: float, commitment_weight: float) -> tuple[ResidualQuantizer, Affine, Affine]:
    """One of the two residual quantizers, and the maps into its space and out of it."""
    layers = weights.part("vq.") if any(name.startswith("vq.") for name in weights.names) else weights
    levels: list[Quantizer] = []
    for layer in numbered(layers, "layers.{}."):
        book = layer.part("_codebook." if any(name.startswith("_codebook.") for name in layer.names) else "codebook.")
        _check_initialized(book, "initialized", "_initialized")
        sums = book.take("embedding_sum" if "embedding_sum" in book else "embed_sum", (None, None))
        counts = book.take("cluster_usage", sums.shape[:1])
        book.finish()
        layer.finish()
        sums, counts = at_least_float32(sums), at_least_float32(counts)
        levels.append(_ema_quantizer(sums / counts.clamp(min=1e-5)[:, None], counts, decay, commitment_weight))
    if "input_proj.weight" in weights:
        maps = affine_of(weights, "input_proj"), affine_of(weights, "output_proj")
    else:
        identity = torch.eye(levels[0].dim, dtype=sums.dtype, device=sums.device)
        maps = Affine(identity, None), Affine(identity, None)
    layers.finish()
    weights.finish()
    if any(given.bias is not None for given in maps):
        raise ValueError(
            f"expected {weights.prefix}input_proj and output_proj without a bias, got one; such a model is not a Mimi"
        )
    return ResidualQuantizer(levels), *maps


def _ema_quantizer(codes: Tensor, counts: Tensor | None, decay: float, commitment_weight: float) -> VectorQuantizer:
    return table_quantizer(codes, [EMAUpdate(decay), CommitmentLoss(commitment_weight)], counts=counts)


def _check_initialized(book: Weights, *names: str) -> None:
    """Read the flag that says whether the codes were fitted to data."""
    for name in names:
        if name in book and not bool(book.take(name).all()):
            raise ValueError(
                f"expected codes that were initialized, got {book.prefix}{name} = 0; the first training batch would "
                "replace them: run one with their model, or build a quantizer here and call initialize_codebook"
            )
