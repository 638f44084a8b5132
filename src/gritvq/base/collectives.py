"""Collectives; the process group is looked up when they are called, never at construction."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_gather_rows", "all_reduce_sum"]

# For each default group the one that carries tensors of the CPU where the default group cannot.
_cpu_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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
