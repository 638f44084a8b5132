"""Another number of codes for a trained quantizer."""

from __future__ import annotations

import copy
import heapq
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.component import check_integer, check_number
from gritvq.quantizers.base import Codebook
from gritvq.quantizers.functional import nearest_codes
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["Resized", "resize_codebook"]


class Resized(NamedTuple):
    """A quantizer with another number of codes.

    Attributes:
        quantizer: The new quantizer; the one that was resized is left as it is.
        new_indices: For every old index the one that its code has now (K_old,), -1 where it is gone.
        parents: For every new index the old one that its code comes from (K_new,): its own, or that of the code that
            was split.
    """

    quantizer: VectorQuantizer
    new_indices: Int[Tensor, " K_old"]
    parents: Int[Tensor, " K_new"]


@torch.no_grad()
def resize_codebook(
    quantizer: VectorQuantizer,
    codebook_size: int,
    counts: Float[Tensor, " K"] | None = None,
    *,
    distance: float = 0.25,
    generator: torch.Generator | None = None,
) -> Resized:
    """A copy of a trained quantizer with more or fewer codes.

    Fewer: the most used codes stay, in their order; of equally used ones those of lower index. More: all codes keep
    their indices, and the new ones behind them split the most used. A split halves the code's count, so that one that
    is used very often is split several times. A new code lies in a random direction from its parent, at a share of the
    distance from there to the nearest other code: vectors nearer to an old code than half of that share of its own
    distance keep their indices.

    Moving averages of counts move over, halved where a code is split; the window of dead-code revival starts anew. The
    state of an optimizer does not: make a new one, or :meth:`~gritvq.Quantizer.attach` again, since the table is
    another parameter. Whatever reads the indices (a decoder's output does not, a prior or stored tokens do) has to
    follow: ``new_indices[tokens]``.

    Args:
        quantizer: With codes that can be selected one by one: a free table, an affine or an MLP codebook.
        codebook_size: New number of codes.
        counts: How often each code is used (K,), such as ``torch.bincount(indices.flatten(), minlength=K)`` on data.
            Left out, the counts of its moving average are taken.
        distance: Where a new code lies, as a share in (0, 0.5) of its parent's distance to the nearest other code.
        generator: CPU generator of the directions; a fixed seed if None.

    Returns:
        The new quantizer, in the mode of the old one, and where codes went.

    Raises:
        ValueError: If the quantizer has no table of its own, takes other codes than the nearest, or has a rule with
            numbers per code; if nothing says how often codes are used, a new code cannot be written, or a number is out
            of range.

    Example:
        >>> from gritvq import FreeCodebook
        >>> quantizer = VectorQuantizer(FreeCodebook(2, 4))
        >>> smaller = resize_codebook(quantizer, 2, counts=torch.tensor([5, 0, 9, 1]))
        >>> smaller.quantizer.codebook_sizes, smaller.new_indices.tolist(), smaller.parents.tolist()
        ((2,), [0, -1, 1, -1], [0, 2])
        >>> larger = resize_codebook(quantizer, 6, counts=torch.tensor([5, 0, 9, 1]))
        >>> larger.new_indices.tolist(), larger.parents.tolist()
        ([0, 1, 2, 3], [0, 1, 2, 3, 2, 0])
    """
    if not isinstance(quantizer, VectorQuantizer):
        raise ValueError(
            f"expected a VectorQuantizer, got {type(quantizer).__name__}; resize the VectorQuantizers inside it one by "
            "one and build the structure again from the new ones"
        )
    _check_parts(quantizer)
    check_integer("codebook_size", codebook_size)
    check_number("distance", distance, most=0.5, inside=True)
    old = quantizer.codebook
    usage = _usage(quantizer, counts).to(old.codes().device)
    num_old = old.codebook_size
    if codebook_size <= num_old:
        order = usage.argsort(descending=True, stable=True)
        parents = order[:codebook_size].sort().values
        halvings = torch.zeros_like(parents)
        codebook = old.selected(parents)
    else:
        split, depths = _splits(usage, codebook_size)
        parents, halvings = split.to(usage.device), depths.to(usage.device)
        codebook = _grown(old, parents, distance, generator)
    new = VectorQuantizer(
        codebook,
        copy.deepcopy(quantizer.assignment),
        copy.deepcopy(quantizer.surrogate),
        [copy.deepcopy(rule) for rule in quantizer._rules()],
    ).train(quantizer.training)
    new = new.to(usage.device)
    if quantizer.statistics is not None and new.statistics is not None:
        past = quantizer.statistics.ema_counts[parents]
        new.statistics.ema_counts = torch.where(past > 0, past / 2.0**halvings, past)
    new_indices = torch.full((num_old,), -1, device=parents.device)
    kept = parents[:num_old]  # behind them are the new ones
    new_indices[kept] = torch.arange(len(kept), device=parents.device)
    return Resized(new, new_indices, parents)


def _check_parts(quantizer: VectorQuantizer) -> None:
    """Check that no part but the codebook knows of single codes."""
    if not quantizer.assignment.takes_nearest:
        raise ValueError(
            f"expected an assignment that takes the nearest code, got {type(quantizer.assignment).__name__}, for which "
            "old indices would not stay; train a new quantizer"
        )
    size = quantizer.codebook.codebook_size
    for rule in quantizer._rules():
        if any(isinstance(value, Tensor) and size in value.shape for value in rule.state_dict().values()):
            raise ValueError(
                f"expected rules without numbers per code, got {type(rule).__name__}; build the quantizer without it"
            )


def _usage(quantizer: VectorQuantizer, counts: Tensor | None) -> Tensor:
    """How often each code is used, in float64."""
    size = quantizer.codebook.codebook_size
    if counts is not None:
        if counts.shape != (size,) or not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
            raise ValueError(
                f"expected counts ({size},) that are finite and not negative, got {tuple(counts.shape)}; count with "
                f"torch.bincount(indices.flatten(), minlength={size})"
            )
        return counts.double()
    found = None if quantizer.statistics is None else quantizer.statistics.ema_counts
    if found is None or not bool((found > 0).any()):
        raise ValueError(
            "expected counts, or a quantizer that was trained with EMAUpdate, got neither; count indices of data: "
            f"torch.bincount(indices.flatten(), minlength={size})"
        )
    return found.clamp_min(0).double()


def _splits(usage: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """For every new code the old one that it comes from, and how many times its count was halved."""
    parents, depths = list(range(len(usage))), [0] * len(usage)
    waiting = [(-count, index) for index, count in enumerate(usage.tolist())]  # ties go to the lowest index
    heapq.heapify(waiting)
    while len(parents) < codebook_size:
        count, index = heapq.heappop(waiting)
        depths[index] += 1
        heapq.heappush(waiting, (count / 2, index))
        heapq.heappush(waiting, (count / 2, len(parents)))
        parents.append(parents[index])
        depths.append(depths[index])
    return torch.tensor(parents), torch.tensor(depths)


def _grown(old: Codebook, parents: Tensor, distance: float, generator: torch.Generator | None) -> Codebook:
    """A codebook of these codes, those behind the old ones a step away from their parents."""
    codes = old.codes()
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    rows = torch.arange(len(codes), len(parents), device=codes.device)
    new = old.selected(parents)
    starts = codes[parents[rows]]
    if len(codes) > 1:
        neighbors = codes[nearest_codes(starts, codes, 2)]  # one of the two is the code itself
        gap = (starts.unsqueeze(1) - neighbors).norm(dim=2).amax(1)
    else:
        gap = torch.zeros_like(starts[:, 0])
    lengths = torch.where(gap > 0, gap, starts.norm(dim=1))  # alone, or twice there: as far as from the origin
    lengths = torch.where(lengths > 0, lengths, 1)
    direction = torch.randn(len(rows), codes.shape[1], generator=generator).to(codes)
    direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
    vectors = starts + distance * lengths.unsqueeze(1) * direction
    if old.normalize:
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
    written = new.write(rows, vectors)
    if not bool(written.all()):
        raise ValueError(
            f"expected to write {len(rows)} new codes, wrote {int(written.sum())}: the map of {type(old).__name__} "
            "cannot be inverted there; fold the quantizer first, or use a smaller distance"
        )
    return new
