"""Presets without a codebook: fixed codes, on a grid or a sphere, between two linear maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gritvq.component import check_integer
from gritvq.quantizers.lookup_free import BSQ, FSP, FSQ, LFQ, SphericalLattice
from gritvq.quantizers.lookup_free.lattices import SIZES
from gritvq.quantizers.structures import ProjectedQuantizer

__all__ = ["bsq", "fsp", "fsq", "lfq", "spherical_lattice"]


# Levels of the FSQ paper's table 1 from 240 codes on; the smaller ones are ours.
_FSQ_LEVELS = ([5, 3], [8, 5], [5, 5, 5], [8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5], [8, 8, 8, 5, 5, 5])


def fsq(dim: int, codebook_size: int, *, levels: Sequence[int] | None = None) -> ProjectedQuantizer:
    """Finite scalar quantization between two linear maps; no codebook, no loss.

    K is that of ``levels``; without them, of the recommended levels whose product is closest to ``codebook_size``
    (4375 for 4096).

    Example:
        >>> fsq(16, 4096).codebook_sizes
        (4375,)

    References:
        Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", ICLR 2024, arXiv 2309.15505, table 1.
    """
    return ProjectedQuantizer(FSQ(_levels(codebook_size, levels)), dim)


def fsp(dim: int, codebook_size: int, *, levels: Sequence[int] | None = None) -> ProjectedQuantizer:
    """Finite scalar perturbation between two linear maps: noise as wide as a cell in training, rounding afterwards.

    Levels as in :func:`fsq`.

    Example:
        >>> fsp(16, 4096).codebook_sizes
        (4375,)

    References:
        Zhai et al., "VP-VAE: Rethinking Vector Quantization via Adaptive Vector Perturbation", 2026, arXiv 2602.17133.
    """
    return ProjectedQuantizer(FSP(_levels(codebook_size, levels)), dim)


def _levels(codebook_size: int, levels: Sequence[int] | None) -> Sequence[int]:
    check_integer("codebook_size", codebook_size)
    if levels is not None:
        return levels
    return min(_FSQ_LEVELS, key=lambda each: abs(math.log(math.prod(each) / codebook_size)))


def _bits(codebook_size: int) -> int:
    check_integer("codebook_size", codebook_size)
    if codebook_size < 2 or codebook_size & (codebook_size - 1):
        raise ValueError(f"expected a codebook_size that is a power of two, got {codebook_size}")
    return codebook_size.bit_length() - 1


def lfq(
    dim: int,
    codebook_size: int,
    *,
    entropy_weight: float = 0.1,
    temperature: float = 1.0,
    commitment_weight: float = 0.25,
) -> ProjectedQuantizer:
    """Lookup-free quantization: the signs of log2 K components, between two linear maps.

    Example:
        >>> lfq(16, 1024).quantizer.dim
        10

    References:
        Yu et al., "Language Model Beats Diffusion", ICLR 2024, arXiv 2310.05737.
    """
    quantizer = LFQ(
        _bits(codebook_size),
        entropy_weight=entropy_weight,
        temperature=temperature,
        commitment_weight=commitment_weight,
    )
    return ProjectedQuantizer(quantizer, dim)


def bsq(
    dim: int,
    codebook_size: int,
    *,
    entropy_weight: float = 0.1,
    temperature: float = 0.01,
    commitment_weight: float = 0.25,
) -> ProjectedQuantizer:
    """Binary spherical quantization: the signs of log2 K components at unit length, between two linear maps.

    Example:
        >>> bsq(16, 1024).quantizer.dim
        10

    References:
        Zhao et al., "Image and Video Tokenization with Binary Spherical Quantization", ICLR 2025, arXiv 2406.07548.
    """
    quantizer = BSQ(
        _bits(codebook_size),
        entropy_weight=entropy_weight,
        temperature=temperature,
        commitment_weight=commitment_weight,
    )
    return ProjectedQuantizer(quantizer, dim)


def spherical_lattice(dim: int, codebook_size: int, *, commitment_weight: float = 0.0) -> ProjectedQuantizer:
    """The minimal vectors of a lattice at unit length, between two linear maps; no codebook.

    K is that of the lattice whose number of vectors is closest in ratio: 24, 240, 4,320 or 196,560 (the Leech lattice);
    ``codebook_sizes`` says which.

    Example:
        >>> spherical_lattice(16, 4096).quantizer.lattice
        'BW16'

    References:
        Zhao et al., "Spherical Leech Quantization for Visual Tokenization and Generation", 2025, arXiv 2512.14697; the
        smaller lattices are ours.
    """
    check_integer("codebook_size", codebook_size)
    lattice = min(SIZES, key=lambda name: abs(math.log(SIZES[name] / codebook_size)))
    return ProjectedQuantizer(SphericalLattice(lattice, commitment_weight=commitment_weight), dim)
