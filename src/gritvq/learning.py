"""Learning rules: what moves or regularises the codes.

Losses average over valid vectors and, where they compare vectors, over the D components too, so that weights keep their
meaning across dimensions. Rules that act after the optimizer's step read reduced :class:`~gritvq.CodeStatistics`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gritvq.base import Codebook, CodeStatistics, Context, LearningRule, differentiable_sum
from gritvq.functional import squared_distance

__all__ = ["CodebookLoss", "CommitmentLoss", "DeadCodeRevival", "EMAUpdate", "EntropyLoss", "OrthogonalityLoss"]


def _check_weight(name: str, weight: float, least: float = 0.0, most: float = math.inf) -> float:
    if not least <= weight <= most:
        raise ValueError(f"expected {name} between {least:g} and {most:g}, got {weight!r}")
    return float(weight)


class CommitmentLoss(LearningRule):
    """Pulls the encoder towards its codes: ``weight * mean |x - sg(q)|^2 / D``.

    Args:
        weight: The paper's beta; 0.25 is its value.

    Example:
        >>> x, q, codes = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)
        >>> context = Context(x, q, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), codes)
        >>> CommitmentLoss(0.5).loss(context)["commitment"].item()
        0.5

    References:
        van den Oord et al., NeurIPS 2017, arXiv 1711.00937, eq. 3, third term.
    """

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__()
        self.weight = _check_weight("weight", weight)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``commitment``."""
        return {"commitment": self.weight * context.mean((context.x - context.q.detach()).square().mean(-1))}


class CodebookLoss(LearningRule):
    """Pulls the chosen codes towards their vectors: ``weight * mean |sg(x) - q|^2 / D``.

    Args:
        weight: 1 in the paper.

    Example:
        >>> CodebookLoss(2.0).weight
        2.0

    References:
        van den Oord et al., NeurIPS 2017, arXiv 1711.00937, eq. 3, second term.
    """

    trains_codes = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = _check_weight("weight", weight)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``codebook``."""
        return {"codebook": self.weight * context.mean((context.x.detach() - context.q).square().mean(-1))}


class EntropyLoss(LearningRule):
    """Confident vectors, balanced codes: ``weight * (mean_n H(p_n) - balance * H(mean_n p_n))``, entropies in nats.

    ``p_n = softmax_k(-|x_n - c_k|^2 / temperature)``. Costs O(N K) time; blocks of 4 million pairs, recomputed in the
    backward pass, keep memory at about 100 MB whatever N. With several processes the mean is over all of them.

    Args:
        weight: Weight of the whole.
        balance: Weight of the batch entropy inside it.
        temperature: Softmax temperature in squared latent units.

    Example:
        >>> EntropyLoss(0.1).balance
        1.0

    References:
        Yu et al., "Language Model Beats Diffusion", ICLR 2024, arXiv 2310.05737 (the loss of LFQ), here over distances
        to a table.
    """

    trains_codes = True

    def __init__(self, weight: float = 0.1, *, balance: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight, self.balance = _check_weight("weight", weight), _check_weight("balance", balance)
        self.temperature = _check_weight("temperature", temperature, least=1e-8)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``entropy``."""
        x, valid = context.x.reshape(-1, context.x.shape[-1]), context.valid.reshape(-1)
        block = max(1, (1 << 22) // len(context.codes))
        each = x.new_zeros(())
        mean = x.new_zeros(len(context.codes))
        for rows, weight in zip(x.split(block), valid.to(x.dtype).split(block), strict=True):
            entropy, probability = checkpoint(self._block, rows, weight, context.codes, use_reentrant=False)
            each, mean = each + entropy, mean + probability
        total = valid.sum()
        total, each, mean = differentiable_sum(total), differentiable_sum(each), differentiable_sum(mean)
        total = total.clamp_min(1)
        mean = mean / total
        batch = -(mean * (mean + 1e-20).log()).sum()
        return {"entropy": self.weight * (each / total - self.balance * batch)}

    def _block(self, rows: Tensor, weight: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(-squared_distance(rows, codes) / self.temperature, dim=1)
        p = log_p.exp() * weight[:, None]
        return -(p * log_p).sum(), p.sum(0)


class OrthogonalityLoss(LearningRule):
    """Pushes code directions apart: ``weight * |A A^T - Id|_F^2 / K^2`` for the unit codes A.

    Computed as ``(|A^T A|_F^2 - K) / K^2``, which needs D x D instead of K x K numbers.

    Args:
        weight: Weight of the loss.

    Example:
        >>> context = Context(*[torch.zeros(1, 2)] * 2, torch.zeros(1).long(), torch.ones(1).bool(), torch.eye(2))
        >>> OrthogonalityLoss(1.0).loss(context)["orthogonality"].item()
        0.0

    References:
        Shin et al., "Exploration into Translation-Equivariant Image Quantization", ICASSP 2023, arXiv 2112.00384.
    """

    trains_codes = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = _check_weight("weight", weight)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``orthogonality``."""
        unit = F.normalize(context.codes, dim=1)
        gram = unit.T @ unit
        return {"orthogonality": self.weight * (gram.square().sum() - len(unit)) / len(unit) ** 2}


class EMAUpdate(LearningRule):
    r"""Codes as moving averages of their vectors; owns the table, no gradient reaches it.

    With the counts ``n_k`` and sums ``s_k`` of the vectors assigned since the last update:
    ``N_k <- decay N_k + (1 - decay) n_k`` and ``c_k <- c_k + (1 - decay) (s_k - n_k c_k) / N_k``. That is the usual
    ratio of two averages, written so that the code itself is the only copy: overwriting a code needs no second
    bookkeeping. ``N`` starts at 0, so a code's first update puts it at the mean of its vectors; a code without any
    stays where it is.

    Args:
        decay: Share kept per update, in [0, 1). 0 is one step of Lloyd's k-means per update.

    Example:
        >>> from gritvq import FreeCodebook, VectorQuantizer
        >>> quantizer = VectorQuantizer(FreeCodebook(1, 1), learning=[EMAUpdate(decay=0.0)])
        >>> _ = quantizer(torch.tensor([[1.0], [3.0]]))
        >>> quantizer.update_codebook()
        >>> quantizer.codebook.codes().item()
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
        statistics.ema_counts = self.decay * statistics.ema_counts + (1 - self.decay) * counts
        rows = (counts > 0).nonzero().squeeze(1)
        n, mass = counts[rows, None], statistics.ema_counts[rows, None]
        old = codes[rows]
        codebook.write(rows, old + (1 - self.decay) * (statistics.sums[rows].to(old) - n * old) / mass)


class DeadCodeRevival(LearningRule):
    """Moves codes that nobody chose onto recent vectors.

    Every ``interval`` updates a code is dead if it got fewer than ``threshold`` times its fair share ``total / K`` of
    the vectors seen since the last look. Dead codes move to distinct vectors from a uniform sample of those seen; if
    there are fewer sampled vectors than dead codes the rest wait. Moving averages and optimizer moments of moved codes
    are reset. Codebooks with a transform solve for the base row; rows that cannot be solved stay.

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
        self.interval, self.threshold = interval, _check_weight("threshold", threshold)

    def update(self, codebook: Codebook, statistics: CodeStatistics) -> Int[Tensor, " M"] | None:
        """Revive at every ``interval``-th update; returns the moved rows."""
        if statistics.step % self.interval:
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
