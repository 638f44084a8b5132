"""Metrics over a whole evaluation set: they accumulate, and reduce over all processes when asked.

Usage and perplexity of single batches understate a codebook, and ring buffers from training misstate it; these count
every token once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.distributed import all_gather_rows, all_reduce_sum
from gritvq.quantizers.functional import check_indices, perplexity

if TYPE_CHECKING:
    from gritvq.quantizers.base import Quantizer

__all__ = ["CodebookUsage", "decoded_codes", "uniform_usage"]

_LARGEST_DENSE = 2**24  # codes up to which one number is kept for each


class CodebookUsage:
    """How a codebook is used: share of codes hit, perplexity, dead codes, per index channel.

    Up to 2^24 codes one number is kept per code; of larger codebooks (lookup-free ones may have 2^63 codes) only the
    codes that were seen are kept, so memory grows with the tokens instead.

    Args:
        codebook_sizes: Codes per index channel.

    Attributes:
        counts: Counts of every channel on this process (K,), int64; sparse where the codebook is large.

    Raises:
        ValueError: If a codebook has no code, or an index to count is out of range.

    Example:
        >>> metric = CodebookUsage((4,))
        >>> metric.update(torch.tensor([[0], [1], [1], [-1]]))
        >>> metric.compute()["usage"], metric.num_tokens
        (0.5, 3)
    """

    counts: list[Tensor]

    def __init__(self, codebook_sizes: tuple[int, ...]) -> None:
        self.codebook_sizes = tuple(codebook_sizes)
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(f"expected codebook sizes >= 1, got {self.codebook_sizes}")
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.counts = [_no_counts(size) for size in self.codebook_sizes]
        self._positions = torch.zeros((), dtype=torch.int64)

    def update(self, indices: Int[Tensor, "*tokens Q"]) -> None:
        """Count a batch of indices; -1 does not count."""
        if indices.shape[-1] != len(self.codebook_sizes):
            raise ValueError(
                f"expected indices with {len(self.codebook_sizes)} channels last, got {tuple(indices.shape)}; use "
                "unsqueeze(-1)"
            )
        check_indices(indices, self.codebook_sizes, "pass the codebook sizes of the quantizer that made them")
        for channel, size in enumerate(self.codebook_sizes):
            index = indices[..., channel].reshape(-1)
            index = index[index >= 0]
            old = self.counts[channel].to(index.device)
            if old.is_sparse:
                self.counts[channel] = _sparse_sum(old, _sparse(index, torch.ones_like(index), size))
            else:
                self.counts[channel] = old + torch.bincount(index, minlength=size)
        positions = (indices >= 0).any(-1).sum()
        self._positions = self._positions.to(positions.device) + positions

    def state(self) -> dict[str, Any]:
        """What was counted over all processes, as plain data and tensors, for a checkpoint."""
        counts = [counts.cpu() for counts in self.histograms()]
        return {
            "counts": [(c.indices()[0], c.values()) if c.is_sparse else c for c in counts],
            "positions": all_reduce_sum(self._positions).cpu(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave; with several processes the first one holds it.

        Raises:
            ValueError: If it was counted for other codebook sizes.
        """
        self.reset()
        counts = [
            _sparse(each[0], each[1], size) if isinstance(each, tuple) else each
            for each, size in zip(state["counts"], self.codebook_sizes, strict=True)
        ]
        if any(new.shape != old.shape for new, old in zip(counts, self.counts, strict=True)):
            raise ValueError(f"expected counts for the codebook sizes {self.codebook_sizes}, got others")
        if not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0:
            self.counts, self._positions = counts, state["positions"]

    @property
    def num_tokens(self) -> int:
        """Token positions counted on this process: those that have a code in any channel."""
        return int(self._positions)

    def histograms(self) -> list[Tensor]:
        """Counts of every channel over all processes (K,), sparse where the codebook is large."""
        return [_summed(counts) for counts in self.counts]

    def compute(self) -> dict[str, float]:
        """Over all processes: mean ``usage`` and ``perplexity`` of the channels, ``dead_codes`` in all, ``tokens``.

        ``uniform_usage`` is the mean usage that as many draws of equally likely codes would show
        (:func:`uniform_usage`).
        """
        histograms = self.histograms()
        counts = [_seen_counts(histogram) for histogram in histograms]
        used = [int((c > 0).sum()) for c in counts]
        num = len(counts)
        return {
            "usage": sum(n / size for n, size in zip(used, self.codebook_sizes, strict=True)) / num,
            "uniform_usage": sum(
                uniform_usage(size, int(c.sum())) for c, size in zip(counts, self.codebook_sizes, strict=True)
            )
            / num,
            "perplexity": sum(float(perplexity(c)) for c in counts) / num,
            "dead_codes": float(sum(size - n for n, size in zip(used, self.codebook_sizes, strict=True))),
            "tokens": float(all_reduce_sum(self._positions)),
        }

    def bits_per_token(self) -> float:
        """Bits at fixed length over all processes, per token position: ``sum_q n_q log2 K_q / n``; NaN without tokens.

        Equal to :func:`gritvq.quantizers.functional.bits_per_token` where every position has a code in every channel.
        """
        positions = float(all_reduce_sum(self._positions))
        if positions == 0:
            return math.nan
        shares = [float(_seen_counts(counts).sum()) / positions for counts in self.histograms()]
        return sum(share * math.log2(size) for share, size in zip(shares, self.codebook_sizes, strict=True))


@torch.no_grad()
def decoded_codes(quantizer: Quantizer, most: int = 65536) -> Float[Tensor, "K D"]:
    """What the codes of the first channel decode to, with 0 in the other channels.

    Args:
        quantizer: One whose vectors are decoded one by one.
        most: Codes, the first ones.
    """
    codes = torch.zeros(min(quantizer.codebook_sizes[0], most), len(quantizer.codebook_sizes), dtype=torch.int64)
    codes[:, 0] = torch.arange(len(codes))
    return quantizer.decode(codes)


def uniform_usage(codebook_size: int, num_tokens: int) -> float:
    r"""Share of the codes that so many draws of equally likely codes hit in the mean: ``1 - (1 - 1/K)^n``.

    What a measured usage is to be compared with, since few tokens cannot show many codes. Tokens of a picture resemble
    each other, so a healthy codebook may stay below it on few pictures.

    Args:
        codebook_size: Codes K, >= 1.
        num_tokens: Draws n, >= 0.

    Example:
        >>> round(uniform_usage(4, 1), 3), round(uniform_usage(4096, 4096), 3)
        (0.25, 0.632)
    """
    if codebook_size == 1:
        return float(num_tokens > 0)
    return -math.expm1(num_tokens * math.log1p(-1 / codebook_size))


def _no_counts(size: int) -> Tensor:
    none = torch.zeros(0, dtype=torch.int64)
    return torch.zeros(size, dtype=torch.int64) if size <= _LARGEST_DENSE else _sparse(none, none, size)


def _sparse(codes: Tensor, counts: Tensor, size: int) -> Tensor:
    """Counts by code; of exactly 2^63 codes the last two count as one, because a tensor cannot be longer."""
    size = min(size, 2**63 - 1)
    places = codes.clamp_max(size - 1)[None]
    return torch.sparse_coo_tensor(places, counts, (size,), check_invariants=False).coalesce()  # valid by construction


def _sparse_sum(*each: Tensor) -> Tensor:
    codes, counts = (torch.cat(parts) for parts in ([e.indices()[0] for e in each], [e.values() for e in each]))
    return _sparse(codes, counts, each[0].shape[0])


def _summed(counts: Tensor) -> Tensor:
    """Counts over all processes."""
    if not counts.is_sparse:
        return all_reduce_sum(counts)
    return _sparse(all_gather_rows(counts.indices()[0]), all_gather_rows(counts.values()), counts.shape[0])


def _seen_counts(counts: Tensor) -> Tensor:
    """The numbers that are kept."""
    return counts.values() if counts.is_sparse else counts
