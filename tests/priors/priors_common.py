"""Tiny layouts, of which every sample can be listed, and priors for them that are far from uniform."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from gritvq.priors import BitHead, Prior
from gritvq.tokens import TokenLayout

AnyPrior = TypeVar("AnyPrior", bound=Prior)

LAYOUTS: dict[str, TokenLayout] = {
    "grid": TokenLayout((3,), (2, 2)),
    "snake": TokenLayout((3,), (2, 2), order="snake"),
    "channels": TokenLayout((2, 3), (2,)),
    "flat": TokenLayout((2, 3), (2,), interleaving="flat"),
    "delay": TokenLayout((2, 3), (2,), interleaving="delay"),
    "pyramid": TokenLayout((3,), (5,), scales=[((1, 1), (0,)), ((2, 2), (0,))]),
    "channel pyramid": TokenLayout((2, 3), (3,), scales=[((1,), (0, 1)), ((2,), (0, 1))]),
    "hierarchy": TokenLayout((4, 2), (5,), scales=[((1,), (0,)), ((4,), (1,))]),
    "large": TokenLayout((12,), (2,)),
    "wide": TokenLayout((2,), (100,)),
    "ragged": TokenLayout((3,), (3,), ragged=True),
    "ragged channels": TokenLayout((2, 3), (2,), ragged=True),
    "ragged flat": TokenLayout((2, 3), (2,), interleaving="flat", ragged=True),
}
NUM_CLASSES = 2


def scrambled(module: AnyPrior, scale: float = 0.35) -> AnyPrior:
    """Weights as far from their start as training would take them; eval mode."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=scale)
    return module.eval()


def prior_of(cls: type[AnyPrior], layout: str, **settings: Any) -> AnyPrior:
    if settings.get("head") in ("bits", "parallel_bits"):  # digits of 2 and 3, not one digit that is the index
        sizes, chain = LAYOUTS[layout].vocabulary.codebook_sizes, settings["head"] == "bits"
        levels = [{12: [2, 3, 2]}.get(size, [size]) for size in sizes]
        settings["head"] = BitHead(sizes, 16, levels=levels, autoregressive=chain)
    settings = {"width": 16, "depth": 2, "num_heads": 2, "num_classes": NUM_CLASSES, **settings}
    return scrambled(cls(LAYOUTS[layout], **settings))


def all_samples(layout: TokenLayout) -> Tensor:
    """Every sample of a layout."""
    sizes = layout.vocabulary.codebook_sizes
    if layout.ragged:
        (most,), nothing = layout.shape, (-1,) * len(sizes)
        codes = list(itertools.product(range(sizes[0] - 1), *map(range, sizes[1:])))
        each = [(own, n) for n in range(most + 1) for own in itertools.product(codes, repeat=n)]
        return torch.tensor([[*own, *[nothing] * (most - n)] for own, n in each])
    ranges: list[Iterable[int]] = []
    for scale in layout.scales:
        channels = [range(size) if q in scale.channels else [-1] for q, size in enumerate(sizes)]
        ranges += channels * math.prod(scale.grid)
    return torch.tensor(list(itertools.product(*ranges))).view(-1, *layout.shape, len(sizes))


def same_class(indices: Tensor, number: int) -> Tensor:
    return torch.full((len(indices),), number)


def frequencies_fit(found: Tensor, every: Tensor, probabilities: Tensor) -> float:
    """p-value of a chi-square test; rare samples (fewer than 5 expected) are taken together."""
    places = {tuple(row.tolist()): place for place, row in enumerate(every.flatten(1))}
    counts = torch.zeros(len(every), dtype=torch.float64)
    for row in found.flatten(1).tolist():
        counts[places[tuple(row)]] += 1
    expected = probabilities.double() / probabilities.double().sum() * len(found)
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    keep = wanted > 0
    return float(chisquare(observed[keep], wanted[keep]).pvalue)
