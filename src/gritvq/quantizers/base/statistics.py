"""Statistics of the codes since the last update: what learning after the step works from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.distributed import all_gather_rows, all_reduce_sums
from gritvq.quantizers.functional import vectorizing

__all__ = ["CodeStatistics"]


@torch.library.custom_op(
    "gritvq::accumulate",
    mutates_args=("counts", "sums", "samples", "keys", "num_seen", "pending"),
    device_types=None,
)
def _accumulate(
    counts: Tensor,
    sums: Tensor,
    samples: Tensor,
    keys: Tensor,
    num_seen: Tensor,
    pending: Tensor,
    x: Tensor,
    indices: Tensor,
    valid: Tensor,
    first: Tensor,
    count: Tensor,
    watch: bool,
) -> None:
    """Count, sum and sample one batch. An operator of its own, so that compiled graphs run exactly this code.

    Nothing happens inside a backward pass: that is activation checkpointing running a forward for the second time.
    ``watch`` says whether a missing update is to be told here, because no Python runs around the graph.
    """
    if torch._C._current_graph_task_id() != -1:
        return
    weight = (valid & torch.isfinite(x).all(1)).to(counts.dtype)
    counts.index_add_(0, indices, weight)
    if len(sums):
        sums.index_add_(0, indices, torch.where(weight[:, None] > 0, x, 0).to(sums.dtype))
    if len(samples) and len(x):
        # Reservoir by random keys: every vector seen draws a number, the largest ones stay. The numbers are a hash of
        # the vector's place among the valid ones of all processes, so masks, ranks and resuming change no draw.
        place = num_seen + first + valid.cumsum(0) - 1
        key = torch.where(weight > 0, _scrambled(place), -1)
        kept, order = torch.cat([keys, key]).topk(len(keys))
        old, new = samples[order.clamp_max(len(keys) - 1)], x[(order - len(keys)).clamp_min(0)].to(samples.dtype)
        chosen = torch.where((order < len(keys))[:, None], old, new)
        samples.copy_(torch.where(kept[:, None] < 0, 0, chosen))
        keys.copy_(kept)
    num_seen += count
    pending[0] += 1
    if watch and pending[0] == 256:
        warnings.warn(
            "256 batches without update_codebook(): moving averages and dead-code revival do nothing. Call "
            "quantizer.attach(optimizer) once before training.",
            stacklevel=2,
        )


@_accumulate.register_fake
def _(
    counts: Tensor,
    sums: Tensor,
    samples: Tensor,
    keys: Tensor,
    num_seen: Tensor,
    pending: Tensor,
    x: Tensor,
    indices: Tensor,
    valid: Tensor,
    first: Tensor,
    count: Tensor,
    watch: bool,
) -> None:
    return None


def _scrambled(place: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Map integers one to one to numbers >= 0 that look independent (the finaliser of splitmix64, less one bit)."""
    z = place * -7046029254386353131
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    z = z ^ ((z >> 31) & 0x1FFFFFFFF)
    return (z & 0xFFFFFF) << 39 | (z >> 25) & 0x7FFFFFFFFF


class CodeStatistics(nn.Module):
    """Everything that learning after the step works from; the one owner of these numbers.

    Float32 tensors that are no buffers: neither ``.bfloat16()`` nor a parallel wrapper's broadcast touches them. They
    move with the device and are saved through the module's extra state, as one tensor of bytes: files of safetensors
    hold nothing else, and nobody rounds or averages it. Those that replace others are made outside of inference mode,
    where the next training step could not write into them.

    Attributes:
        counts: Vectors per code since the last update (K,).
        sums: Sum of those vectors (K, D); (0, D) if no rule needs it.
        samples: A uniform sample of the vectors seen since :meth:`clear_samples` (R, D).
        keys: Sampling keys of those vectors (R,), int64, -1 where the slot is empty.
        num_seen: Valid vectors ever seen, by all processes; int64.
        ema_counts: Moving average of ``counts`` (K,), kept by :class:`gritvq.EMAUpdate`; -1 for a code that was
            overwritten and has had no vectors since.
        window_counts: Vectors per code since a rule last looked (K,), kept by :class:`gritvq.DeadCodeRevival`.
        step: Number of updates so far that had a vector, on any process; int64.
        pending: Batches since the last update (1,), int64 on the CPU.
        updating: Whether rules are at work on the codes.
    """

    _NAMES = ("counts", "sums", "samples", "keys", "num_seen", "ema_counts", "window_counts", "step", "pending")

    counts: Tensor
    sums: Tensor
    samples: Tensor
    keys: Tensor
    num_seen: Tensor
    ema_counts: Tensor
    window_counts: Tensor
    step: Tensor
    pending: Tensor

    def __init__(self, dim: int, codebook_size: int, needs: frozenset[str], num_samples: int = 16384) -> None:
        super().__init__()
        num_sums = codebook_size if "sums" in needs else 0
        num_samples = min(codebook_size, num_samples) if "samples" in needs else 0
        own = torch.float32  # whatever the default type is
        self.counts = torch.zeros(codebook_size, dtype=own)
        self.sums = torch.zeros(num_sums, dim, dtype=own)
        self.samples = torch.zeros(num_samples, dim, dtype=own)
        self.keys = torch.full((num_samples,), -1)
        self.num_seen = torch.zeros((), dtype=torch.int64)
        self.ema_counts = torch.zeros(codebook_size, dtype=own)
        self.window_counts = torch.zeros(codebook_size, dtype=own)
        self.step = torch.zeros((), dtype=torch.int64)
        self.pending = torch.zeros(1, dtype=torch.int64)
        self.updating = False
        self._most = 0  # no fewer than `step`
        self._known: int | None = 0  # `step` as it was read at this update, None if it was not

    def accumulate(
        self,
        x: Float[Tensor, "N D"],
        indices: Int[Tensor, " N"],
        valid: Bool[Tensor, " N"],
        first: Int[Tensor, ""],
        count: Int[Tensor, ""],
    ) -> None:
        """Add one batch; rows that are invalid or not finite do not count.

        Args:
            x: Vectors.
            indices: Their codes.
            valid: True where a vector is real.
            first: Place of the first valid one among those of all processes.
            count: Valid vectors of all processes.

        Raises:
            ValueError: Under ``torch.vmap``, whose calls have no order and cannot write what they share.
        """
        if vectorizing():
            raise ValueError(
                "expected a plain call of a quantizer that counts its vectors in training, got one under torch.vmap; "
                "call quantizer.eval(), or give the quantizer all vectors at once: it takes any leading shape"
            )
        mutable = (self.counts, self.sums, self.samples, self.keys, self.num_seen, self.pending)
        watch = torch.compiler.is_compiling()  # elsewhere the quantizer counts its passes
        _accumulate(*mutable, x.detach(), indices.detach(), valid.detach(), first, count, watch)

    @torch.inference_mode(False)
    def begin_update(self) -> None:
        """Make the statistics those of all ranks together; called once per update, on every rank."""
        self.counts, self.sums = all_reduce_sums(self.counts, self.sums)
        self.window_counts = self.window_counts + self.counts
        self.step = self.step + self.counts.any()
        self.updating = True
        self._most, self._known = (self._most if self._known is None else self._known) + 1, None

    def due(self, interval: int) -> bool:
        """Whether this update is one in ``interval``, those without a vector left out.

        The number of updates is read from the device only where it may have come so far.
        """
        if self._most % interval:
            return False
        self._known = int(self.step)
        return self._known == self._most

    @torch.inference_mode(False)
    def end_update(self) -> None:
        """Start the next interval."""
        self.counts = torch.zeros_like(self.counts)
        self.sums = torch.zeros_like(self.sums)
        self.pending = torch.zeros_like(self.pending)
        self.updating = False

    def gathered_samples(self) -> Float[Tensor, "M D"]:
        """The sample of the vectors of all ranks, which one process would have drawn; in the order of the keys."""
        keys, order = all_gather_rows(self.keys).topk(len(self.keys))
        return all_gather_rows(self.samples)[order][keys >= 0]

    @torch.inference_mode(False)
    def clear_samples(self) -> None:
        """Forget the sampled vectors."""
        self.keys = torch.full_like(self.keys, -1)
        self.samples = torch.zeros_like(self.samples)

    def reset_rows(self, rows: Int[Tensor, " M"]) -> None:
        """Forget the past of replaced codes, so that a moving average does not pull them back."""
        self.ema_counts[rows] = 0
        self.counts[rows] = 0
        if len(self.sums):
            self.sums[rows] = 0

    def overwritten(self, rows: Int[Tensor, " M"]) -> None:
        """Forget the past of codes that somebody else wrote: they count as settled where they are now.

        The next vectors enter a moving average at its usual rate, whatever counts there were, and revival takes the
        codes to have had their fair share so far.
        """
        rows = rows.to(self.counts.device)
        self.reset_rows(rows)
        self.ema_counts[rows] = -1
        self.window_counts[rows] = torch.maximum(self.window_counts[rows], self.window_counts.mean())

    @torch.inference_mode(False)
    def reset(self) -> None:
        """Forget everything but the number of updates, because the codebook was filled anew."""
        for name in ("counts", "sums", "ema_counts", "window_counts"):
            setattr(self, name, torch.zeros_like(getattr(self, name)))
        self.clear_samples()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CodeStatistics:
        device = fn(torch.empty(0, device=self.counts.device)).device
        for name in self._NAMES:
            old, place = getattr(self, name), torch.device("cpu") if name == "pending" else device
            if old.is_meta and device.type != "meta":  # the numbers before the first batch
                setattr(self, name, torch.full_like(old, -1 if name == "keys" else 0, device=place))
            elif name != "pending":
                setattr(self, name, old.to(place))
        return super()._apply(fn, recurse)

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {name: getattr(self, name) for name in self._NAMES}

    def get_extra_state(self) -> Tensor:
        """All tensors for ``state_dict``: the bytes of one after the other, uint8."""
        place = self.counts.device
        return torch.cat([_bytes(tensor.to(place)) for tensor in self.tensors().values()])

    @torch.inference_mode(False)
    def set_extra_state(self, state: Tensor | dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave, or in older versions a dictionary of tensors.

        Statistics on the meta device go to the device of the new ones.

        Raises:
            ValueError: If they are those of another quantizer.
        """
        state = self._unpacked(state) if isinstance(state, Tensor) else state
        state = {**state, "step": torch.as_tensor(state["step"])}
        if "num_seen" not in state:  # saved by a version in which every process counted for itself
            state |= {"num_seen": state["pending"][1], "pending": state["pending"][:1]}
        for name in self._NAMES:
            old, new = getattr(self, name), state[name]
            if old.shape != new.shape:
                raise ValueError(
                    f"expected statistics {name!r} of shape {tuple(old.shape)}, got {tuple(new.shape)}; the saved "
                    "quantizer was built with other learning rules or another codebook size"
                )
            place = new.device if old.is_meta or new.is_meta else old.device
            place = torch.device("cpu") if name == "pending" and not new.is_meta else place
            setattr(self, name, new.to(place, old.dtype).clone())
        self._most = self._known = 0 if self.step.is_meta else int(self.step)

    def _unpacked(self, state: Tensor) -> dict[str, Tensor]:
        own = self.tensors()
        sizes = [tensor.numel() * tensor.element_size() for tensor in own.values()]
        if state.dtype != torch.uint8 or state.shape != (sum(sizes),):
            raise ValueError(
                f"expected statistics of {sum(sizes):,} bytes, got {state.numel():,} numbers of {state.dtype}; the "
                "saved quantizer was built with other learning rules or another codebook size"
            )
        parts = zip(own.items(), state.split(sizes), strict=True)
        return {name: part.clone().view(old.dtype).view(old.shape) for (name, old), part in parts}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
