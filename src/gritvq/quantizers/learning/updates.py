"""Rules that act after the optimizer's step: moving averages and revival."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from gritvq.component import check_number
from gritvq.quantizers.base import Codebook, CodeStatistics, LearningRule

__all__ = ["DeadCodeRevival", "EMAUpdate"]


class EMAUpdate(LearningRule):
    r"""Codes as moving averages of their vectors; the table gets no gradient.

    With the counts ``n_k`` and sums ``s_k`` of the vectors assigned since the last update:
    ``N_k <- decay N_k + (1 - decay) n_k`` and ``c_k <- c_k + (1 - decay) (s_k - n_k c_k) / N_k``. That is the usual
    ratio of two averages, written so that the code itself is the only copy: overwriting a code needs no second
    bookkeeping. ``N`` starts at 0, so a code's first update puts it at the mean of its vectors; a code without any
    stays where it is, and an update without a single vector changes nothing. A code that was overwritten
    (:meth:`gritvq.Codebook.write`) goes on from there: with its next vectors ``N = n``, so they enter with the weight
    ``1 - decay``.

    Args:
        decay: Share kept per update, in [0, 1). 0 is one step of Lloyd's k-means per update.

    Example:
        >>> from gritvq import FreeCodebook, VectorQuantizer
        >>> quantizer = VectorQuantizer(FreeCodebook(1, 1), learning=[EMAUpdate(decay=0.0)])
        >>> _ = quantizer(torch.tensor([[1.0], [3.0]]))
        >>> quantizer.update_codebook()
        >>> round(quantizer.codebook.codes().item(), 4)
        2.0

    References:
        van den Oord et al., NeurIPS 2017, arXiv 1711.00937, appendix A.1. Deviations: no Laplace smoothing, start at 0.
    """

    writes_codes = "table"
    needs = frozenset({"sums"})

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"expected decay in [0, 1), got {decay!r}; it is the share kept per update")
        self.decay = float(decay)

    def update(self, codebook: Codebook, statistics: CodeStatistics) -> None:
        """Move every code that has, or had, vectors."""
        counts, codes = statistics.counts, codebook.table()
        past = statistics.ema_counts
        past = torch.where((past < 0) & (counts > 0), counts, past)  # overwritten: as if it always had as many
        moved = torch.where(past < 0, past, self.decay * past + (1 - self.decay) * counts)
        statistics.ema_counts = torch.where(counts.any(), moved, past)
        rows = (counts > 0).nonzero().squeeze(1)
        n, mass = counts[rows, None], statistics.ema_counts[rows, None]
        old = codes[rows]
        codebook.write(rows, old + (1 - self.decay) * (statistics.sums[rows].to(old) - n * old) / mass)


class DeadCodeRevival(LearningRule):
    """Moves codes that are not chosen onto recent vectors.

    Every ``interval`` updates a code is dead if it got fewer than ``threshold`` times its fair share ``total / K`` of
    the vectors seen since the last check. Dead codes move to distinct vectors from a uniform sample of those seen; if
    there are fewer sampled vectors than dead codes the rest wait. Moving averages and optimizer moments of moved codes
    are reset. Codebooks with a transform solve for the base row; rows that cannot be solved stay. Updates without a
    single vector do not count. With several processes the vectors are those that one would have drawn from the joined
    batches.

    Args:
        interval: Updates between two looks.
        threshold: Fraction of the fair share up to which a code counts as dead; with 0 only codes never chosen do.

    Example:
        >>> from gritvq import FreeCodebook, VectorQuantizer
        >>> quantizer = VectorQuantizer(FreeCodebook(1, 4), learning=[EMAUpdate(), DeadCodeRevival(interval=1)])
        >>> _ = quantizer(torch.linspace(5, 6, 100)[:, None])
        >>> quantizer.update_codebook()
        >>> bool((quantizer.codebook.codes() > 4).all())
        True

    References:
        Common practice since Dhariwal et al., "Jukebox", 2020, arXiv 2005.00341 (random restarts).
    """

    writes_codes = "rows"
    needs = frozenset({"samples"})

    def __init__(self, interval: int = 20, *, threshold: float = 0.01) -> None:
        super().__init__()
        if interval < 1:
            raise ValueError(f"expected interval >= 1 update, got {interval!r}")
        self.interval, self.threshold = interval, check_number("threshold", threshold)

    def update(self, codebook: Codebook, statistics: CodeStatistics) -> Int[Tensor, " M"] | None:
        """Revive at every ``interval``-th update; returns the moved rows."""
        if not statistics.due(self.interval):
            return None
        window = statistics.window_counts
        total = window.sum()
        dead = (window <= self.threshold * total / len(window)).nonzero().squeeze(1)
        samples = statistics.gathered_samples()
        statistics.window_counts = torch.zeros_like(window)
        statistics.clear_samples()
        num_moved = min(len(dead), len(samples))
        if total == 0 or num_moved == 0:
            return None
        rows = dead[:num_moved]
        moved = codebook.write(rows, samples[:num_moved])
        return rows[moved]
