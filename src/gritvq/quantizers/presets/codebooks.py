"""Presets that change where codes come from: a shared map of a base table."""

from __future__ import annotations

from typing import Literal

from gritvq.quantizers.base import LearningRule
from gritvq.quantizers.codebooks import AffineCodebook, BridgeCodebook, MLPCodebook, TransformerCodebook
from gritvq.quantizers.codebooks.rowwise import Initialization
from gritvq.quantizers.learning import CodebookLoss, CommitmentLoss
from gritvq.quantizers.presets.learning import revival
from gritvq.quantizers.surrogates import RadialSurrogate, Radius, StraightThrough
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["fvq", "grit_vq", "simvq", "transvq"]


def grit_vq(
    dim: int,
    codebook_size: int,
    *,
    radius: Radius | None = None,
    hidden_dim: int | None = None,
    base: Literal["trained", "frozen"] = "trained",
    lr_scale: float | tuple[float, float] = 10.0,
    initialization: Initialization = "normal",
    revival_interval: int | None = None,
    commitment_weight: float = 0.0,
) -> VectorQuantizer:
    """GRIT-VQ: a radial surrogate and one shared residual transform of the codebook. The default of `gritvq fit`.

    Radius ``sqrt(d^2 + s^2)`` (kappa 1), codes ``C + f(C) + b`` over a trained base, codebook learning rate 10 times
    the encoder's; no auxiliary loss, no data initialization, no revival. Train with ``parameter_groups``: without the
    multiplier the transform does not keep codes in use. Where vectors turn quickly in the first steps, as those of
    texts do, it may carry unused codes away from all vectors; a slower one, ``lr_scale=(1, 10)``, and revival help.

    When not to use it: with a start from data, revival and a tuned rate plain tables reach the same error; moving
    averages make tokens of CIFAR-10 that a prior predicts better; embeddings that do not move need no more
    than k-means. The page on choosing has the measurements. An elasticity below 1, ``SmoothRadius(alpha=0.8)``, gives
    up a little squared error for pictures that a classifier recognizes more often (CIFAR-10, two seeds; see the log).

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        radius: The surrogate's radius.
        hidden_dim: Width of the transform's hidden layer, 4 D unless given.
        base: Whether the base table is trained.
        lr_scale: Codebook learning rate over the encoder's; two numbers give transform and base table their own.
        initialization: Start of the codes.
        revival_interval: Updates between two revivals of dead codes; None for none.
        commitment_weight: Weight of a loss that draws vectors to their codes, which the surrogate does not need.

    Example:
        >>> grit_vq(16, 1024).codebook_sizes
        (1024,)

    References:
        After You et al., CPAL 2026, arXiv 2602.01140. The paper's radius, transform and losses are not public; these
        are ours, so its tables are not reproduced by this.
    """
    codebook = MLPCodebook(
        dim, codebook_size, hidden_dim=hidden_dim, base=base, lr_scale=lr_scale, initialization=initialization
    )
    learning = revival(revival_interval)
    if commitment_weight:
        learning.append(CommitmentLoss(commitment_weight))
    return VectorQuantizer(codebook, surrogate=RadialSurrogate(radius), learning=learning)


def simvq(
    dim: int,
    codebook_size: int,
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
) -> VectorQuantizer:
    """SimVQ: a frozen random table under one trained linear layer; better with ``lr_scale=10``.

    Example:
        >>> simvq(16, 1024).codebook.base.requires_grad
        False

    References:
        Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer", ICCV 2025,
        arXiv 2411.02038. Deviation: the layer starts as the identity.
    """
    codebook = AffineCodebook(dim, codebook_size, base="frozen", lr_scale=lr_scale, initialization=initialization)
    losses: list[LearningRule] = [CodebookLoss(codebook_weight), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, surrogate=StraightThrough(), learning=losses)


def transvq(
    dim: int,
    codebook_size: int,
    *,
    width: int = 256,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    lr_scale: float = 1.0,
    initialization: Initialization = "normal",
) -> VectorQuantizer:
    """TransVQ: one transformer block maps a frozen random table to all codes.

    Example:
        >>> transvq(16, 64, width=8).codebook.base.requires_grad
        False

    References:
        Lu et al., "Beyond Stationarity: Rethinking Codebook Collapse in Vector Quantization", 2026, arXiv 2602.18896,
        after the released code.
    """
    codebook = TransformerCodebook(dim, codebook_size, width=width, lr_scale=lr_scale, initialization=initialization)
    losses: list[LearningRule] = [CodebookLoss(codebook_weight), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, surrogate=StraightThrough(), learning=losses)


def fvq(
    dim: int,
    codebook_size: int,
    *,
    codes_per_token: int | None = None,
    width: int = 256,
    depth: int = 2,
    num_registers: int = 0,
    commitment_weight: float = 0.25,
    lr_scale: float = 1.0,
) -> VectorQuantizer:
    """FVQ: a small transformer (VQBridge) maps a base table to all codes, so that none goes unused.

    Train with a warm-up and ``TokenizerTask(schedule="flat_linear")``, as the authors do.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.
        codes_per_token: Codes g that make one token of the bridge; by default such that there are about 1024 tokens
            (inferred from the published settings).
        width: Width of the bridge; the authors' best is D for their D of 256.
        depth: Transformer blocks.
        num_registers: Extra tokens.
        commitment_weight: Weight of the commitment loss.
        lr_scale: Codebook learning rate over the encoder's.

    Example:
        >>> fvq(16, 4096, width=8).codebook.codes_per_token
        4

    References:
        Chang et al., "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization", ICLR 2026, arXiv
        2509.10140, after the released code.
    """
    codebook = BridgeCodebook(
        dim,
        codebook_size,
        codes_per_token=max(1, codebook_size // 1024) if codes_per_token is None else codes_per_token,
        width=width,
        depth=depth,
        num_registers=num_registers,
        lr_scale=lr_scale,
    )
    losses: list[LearningRule] = [CodebookLoss(), CommitmentLoss(commitment_weight)]
    return VectorQuantizer(codebook, surrogate=StraightThrough(), learning=losses)
