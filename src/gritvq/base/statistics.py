"""Statistics of the codes since the last update: what learning after the step works from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.base.collectives import all_gather_rows, all_reduce_sum

__all__ = ["CodeStatistics"]


@torch.library.custom_op(
    "gritvq::accumulate", mutates_args=("counts", "sums", "samples", "keys", "pending"), device_types=None
)
def _accumulate(
    counts: Tensor,
    sums: Tensor,
    samples: Tensor,
    keys: Tensor,
    pending: Tensor,
    x: Tensor,
    indices: Tensor,
    valid: Tensor,
) -> None:
    """Count, sum and sample one batch. An operator of its own, so that compiled graphs run exactly this code.

    Nothing happens inside a backward pass: that is activation checkpointing running a forward for the second time.
    """
    if torch._C._current_graph_task_id() != -1:
        return
    weight = (valid & torch.isfinite(x).all(1)).to(counts.dtype)
    counts.index_add_(0, indices, weight)
    if len(sums):
        sums.index_add_(0, indices, torch.where(weight[:, None] > 0, x, 0).to(sums.dtype))
    if len(samples):
        # Reservoir by random keys: every vector seen draws a number, the largest ones stay. The numbers are a hash of
        # the vector's place in the stream, so a resumed run draws the same ones.
        place = torch.arange(len(x), device=x.device) + pending.to(x.device)[1]
        key = torch.where(weight > 0, _hash_uniform(place), -1.0)
        kept, order = torch.cat([keys, key]).topk(len(keys))
        samples.copy_(torch.cat([samples, torch.where(weight[:, None] > 0, x, 0).to(samples.dtype)])[order])
        keys.copy_(kept)
    pending[0] += 1
    pending[1] += len(x)
    if pending[0] == 256:
        warnings.warn(
            "256 training forward passes without update_codebook(): moving averages and dead-code revival do nothing. "
            "Call quantizer.update_codebook(optimizer) after optimizer.step().",
            stacklevel=2,
        )


@_accumulate.register_fake
def _(
    counts: Tensor,
    sums: Tensor,
    samples: Tensor,
    keys: Tensor,
    pending: Tensor,
    x: Tensor,
    indices: Tensor,
    valid: Tensor,
) -> None:
    return None


def _hash_uniform(place: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Map integers to numbers in [0, 1) that look independent (the finaliser of splitmix64)."""
    z = place * -7046029254386353131
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return ((z ^ ((z >> 31) & 0x1FFFFFFFF)) & 0xFFFFFF).float() / (1 << 24)


class CodeStatistics(nn.Module):
    """Everything that learning after the step works from; the one owner of these numbers.

    Float32 tensors that are no buffers: neither ``.bfloat16()`` nor a parallel wrapper's broadcast touches them. They
    move with the device and are saved through the module's extra state. Those that replace others are made outside of
    inference mode, where the next training step could not write into them.

    Attributes:
        counts: Vectors per code since the last update (K,).
        sums: Sum of those vectors (K, D); (0, D) if no rule needs it.
        samples: A uniform sample of the vectors seen since :meth:`clear_samples` (R, D).
        keys: Sampling keys of those vectors, -1 where the slot is empty (R,).
        ema_counts: Moving average of ``counts`` (K,), kept by :class:`gritvq.EMAUpdate`.
        window_counts: Vectors per code since a rule last looked (K,), kept by :class:`gritvq.DeadCodeRevival`.
        pending: Forward passes since the last update, and vectors ever seen (2,), int64 on the CPU.
        step: Number of updates so far.
    """

    _NAMES = ("counts", "sums", "samples", "keys", "ema_counts", "window_counts", "pending")

    counts: Tensor
    sums: Tensor
    samples: Tensor
    keys: Tensor
    ema_counts: Tensor
    window_counts: Tensor
    pending: Tensor

    def __init__(self, dim: int, codebook_size: int, needs: frozenset[str], num_samples: int = 16384) -> None:
        super().__init__()
        num_sums = codebook_size if "sums" in needs else 0
        num_samples = min(codebook_size, num_samples) if "samples" in needs else 0
        own = torch.float32  # whatever the default type is
        self.counts = torch.zeros(codebook_size, dtype=own)
        self.sums = torch.zeros(num_sums, dim, dtype=own)
        self.samples = torch.zeros(num_samples, dim, dtype=own)
        self.keys = torch.full((num_samples,), -1.0, dtype=own)
        self.ema_counts = torch.zeros(codebook_size, dtype=own)
        self.window_counts = torch.zeros(codebook_size, dtype=own)
        self.pending = torch.zeros(2, dtype=torch.int64)
        self.step = 0

    def accumulate(self, x: Float[Tensor, "N D"], indices: Int[Tensor, " N"], valid: Bool[Tensor, " N"]) -> None:
        """Add one batch; rows that are invalid or not finite do not count."""
        _accumulate(
            self.counts, self.sums, self.samples, self.keys, self.pending, x.detach(), indices.detach(), valid.detach()
        )

    @torch.inference_mode(False)
    def begin_update(self) -> None:
        """Make the statistics those of all ranks together; called once per update, on every rank."""
        self.counts = all_reduce_sum(self.counts)
        self.sums = all_reduce_sum(self.sums)
        self.window_counts = self.window_counts + self.counts
        self.step += 1

    @torch.inference_mode(False)
    def end_update(self) -> None:
        """Start the next interval."""
        self.counts = torch.zeros_like(self.counts)
        self.sums = torch.zeros_like(self.sums)
        self.pending = self.pending * torch.tensor([0, 1])

    def gathered_samples(self) -> Float[Tensor, "M D"]:
        """The sampled vectors of all ranks, in an order that every rank agrees on."""
        keys, order = all_gather_rows(self.keys).sort(descending=True, stable=True)
        return all_gather_rows(self.samples)[order][keys >= 0]

    @torch.inference_mode(False)
    def clear_samples(self) -> None:
        """Forget the sampled vectors."""
        self.keys = torch.full_like(self.keys, -1.0)

    def reset_rows(self, rows: Int[Tensor, " M"]) -> None:
        """Forget the past of replaced codes, so that a moving average does not pull them back."""
        self.ema_counts[rows] = 0
        self.counts[rows] = 0
        if len(self.sums):
            self.sums[rows] = 0

    @torch.inference_mode(False)
    def reset(self) -> None:
        """Forget everything but the number of updates, because the codebook was filled anew."""
        for name in ("counts", "sums", "ema_counts", "window_counts"):
            setattr(self, name, torch.zeros_like(getattr(self, name)))
        self.clear_samples()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CodeStatistics:
        device = fn(torch.empty(0, device=self.counts.device)).device
        for name in self._NAMES[:-1]:
            setattr(self, name, getattr(self, name).to(device))
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        """All tensors and the step, for ``state_dict``."""
        return {**{name: getattr(self, name) for name in self._NAMES}, "step": self.step}

    @torch.inference_mode(False)
    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        for name in self._NAMES:
            old, new = getattr(self, name), state[name]
            if old.shape != new.shape:
                raise ValueError(
                    f"expected statistics {name!r} of shape {tuple(old.shape)}, got {tuple(new.shape)}; the saved "
                    "quantizer was built with other learning rules or another codebook size"
                )
            setattr(self, name, new.to(old.device, old.dtype).clone())
        self.step = int(state["step"])
