"""Collectives; the process group is looked up when they are called, never at construction."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "EndlessOrder",
    "all_gather_rows",
    "all_reduce_sum",
    "all_reduce_sums",
    "batch_mean",
    "joined_average",
    "joined_count",
    "joined_mean",
    "joined_place",
    "masked_mean",
    "mean_of_shares",
    "process_number",
]

# For each default group the one that carries tensors of the CPU where the default group cannot.
_cpu_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_number() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are; ``(0, 1)`` before they are joined.

    Example:
        >>> process_number()
        (0, 1)
    """
    return (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)


class EndlessOrder:
    """Rows in random order without end, all of them in every epoch; the same in each process.

    A pure function of the seed and the place. The order of the current epoch is kept: 8 bytes per row.

    Args:
        count: Number of rows.
        seed: Seed.

    Example:
        >>> order = EndlessOrder(3, seed=0)
        >>> sorted(order[0:3].tolist()), len(order[2:9])
        ([0, 1, 2], 7)
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._rows = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, places: slice) -> np.ndarray:
        """Rows at these places."""
        start, stop, parts = places.start, places.stop, []
        while start < stop:
            epoch, place = divmod(start, self.count)
            if epoch != self._epoch:
                self._epoch, self._rows = epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(self.count)
            parts.append(self._rows[place : place + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)


def _sendable(x: Tensor) -> tuple[Tensor, dist.ProcessGroup]:
    """The tensor on a device that a group of all processes serves, and that group.

    That is the default group where it serves the tensor's own device. Otherwise the tensor travels over the CPU: a
    group made for GPUs alone (NCCL) gets a companion for it at the first such call, which every process makes.
    """
    default = dist.group.WORLD
    assert default is not None
    served = {entry.split(":")[0] for entry in dist.get_backend_config(default).split(",")}
    if x.device.type in served:
        return x, default
    if "cpu" in served:
        return x.cpu(), default
    if default not in _cpu_groups:
        _cpu_groups[default] = dist.new_group(backend="gloo")
    return x.cpu(), _cpu_groups[default]


@torch.library.custom_op("gritvq::all_reduce_sum", mutates_args=())
def _all_reduce_sum(x: Tensor) -> Tensor:
    """An operator of its own, so that compiled graphs stay whole."""
    sent, group = _sendable(x)
    sent = sent.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(sent, group=group)
    return sent.to(x.device)


@_all_reduce_sum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_all_reduce_sum.register_autograd(lambda ctx, gradient: _all_reduce_sum(gradient))


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of a tensor over all processes, on any device; the tensor itself where there is one process.

    Gradients flow back to the part of every process. A loss made of such sums is the same on each, so the gradient of
    each part is that of the loss times the number of processes, which the averaging of data parallelism undoes.

    Example:
        >>> all_reduce_sum(torch.ones(2))
        tensor([1., 1.])
    """
    return _all_reduce_sum(x) if _distributed() and x.numel() > 0 else x


def all_reduce_sums(*parts: Tensor) -> tuple[Tensor, ...]:
    """Sums of several tensors of one type over all processes, which wait for each other only once.

    Example:
        >>> all_reduce_sums(torch.ones(2), torch.zeros(0, 3))
        (tensor([1., 1.]), tensor([], size=(0, 3)))
    """
    if not _distributed():
        return parts
    joined = all_reduce_sum(torch.cat([part.reshape(-1) for part in parts]))
    pieces = joined.split([part.numel() for part in parts])
    return tuple(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True))


@torch.no_grad()
def all_gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, on any device; numbers of rows may differ, also be 0.

    Example:
        >>> all_gather_rows(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if not _distributed():
        return x
    sent, group = _sendable(x)
    sizes = [torch.zeros(1, dtype=torch.int64, device=sent.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(sent)], device=sent.device), group=group)
    most = max(int(size) for size in sizes)
    if most == 0:
        return x
    padded = torch.cat([sent, sent.new_zeros(most - len(sent), *sent.shape[1:])])
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded, group=group)
    return torch.cat([rows[: int(size)] for rows, size in zip(gathered, sizes, strict=True)]).to(x.device)


def joined_count(valid: Bool[Tensor, "*batch"]) -> Int[Tensor, ""]:
    """Number of valid vectors in the batches of all processes.

    Example:
        >>> joined_count(torch.tensor([True, False, True])).item()
        2
    """
    return all_reduce_sum(valid.sum())


def joined_place(valid: Bool[Tensor, "*batch"]) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
    """Place of this process's first valid vector among those of all, in the order of the ranks; and their number.

    Example:
        >>> [number.item() for number in joined_place(torch.tensor([True, False, True]))]
        [0, 2]
    """
    own = valid.sum()
    if not _distributed():
        return torch.zeros_like(own), own
    ranks = torch.arange(dist.get_world_size(), device=own.device)
    counts = all_reduce_sum(torch.where(ranks == dist.get_rank(), own, 0))
    return torch.where(ranks < dist.get_rank(), counts, 0).sum(), counts.sum()


def joined_average(mean: Float[Tensor, ""], number: int) -> Float[Tensor, ""]:
    """A mean over samples of this process as its share of the mean over the joined batch, see :func:`joined_mean`.

    Args:
        mean: The mean; NaN where there is no sample.
        number: Samples of this process.

    Example:
        >>> joined_average(torch.tensor(2.0), 3).item()
        2.0
    """
    if not _distributed():
        return mean
    own = torch.tensor(number, device=mean.device)
    return joined_mean(torch.where(own > 0, mean, 0) * own, all_reduce_sum(own))


def joined_mean(total: Float[Tensor, ""], count: Int[Tensor, ""]) -> Float[Tensor, ""]:
    """A sum over this process's vectors as its share of the mean over the joined batch: ``total * R / count``.

    R is the number of processes, so that the average over them, which data parallelism takes of the gradients, is the
    mean that one process would have with all vectors. A process without vectors gives 0, as all do if none has any.

    Args:
        total: Sum over the valid vectors of this process.
        count: Valid vectors of all processes (:func:`joined_count`).

    Example:
        >>> joined_mean(torch.tensor(6.0), torch.tensor(3)).item()
        2.0
    """
    count = count.clamp_min(1)
    return total / (count / dist.get_world_size() if _distributed() else count)


def mean_of_shares(share: Tensor) -> Tensor:
    """The value of the joined batch, from what :func:`joined_mean` gave to each process.

    Example:
        >>> mean_of_shares(torch.tensor(2.0)).item()
        2.0
    """
    return all_reduce_sum(share) / dist.get_world_size() if _distributed() else share


def masked_mean(
    per_vector: Float[Tensor, "*batch"], valid: Bool[Tensor, "*batch"], count: Int[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Mean over the valid vectors of the joined batch, as :func:`joined_mean` shares it; 0 where there is none.

    Args:
        per_vector: One number per vector; what masked ones hold does not matter.
        valid: True where a vector is real.
        count: Valid vectors of all processes, if they are counted already.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])).item()
        2.0
    """
    total = torch.where(valid, per_vector, 0).sum()
    return joined_mean(total, joined_count(valid) if count is None else count)


def batch_mean(x: Float[Tensor, ...]) -> Float[Tensor, ""]:
    """Mean of all numbers of the joined batch, as :func:`joined_mean` shares it.

    Processes may have different numbers of them, also none; then their own means would be weighted wrongly, or NaN.

    Example:
        >>> batch_mean(torch.tensor([[1.0, 3.0]])).item()
        2.0
    """
    if not _distributed():
        return x.mean()
    return joined_mean(x.sum(), all_reduce_sum(torch.tensor(x.numel(), device=x.device)))
