"""Collectives; the process group is looked up when they are called, never at construction."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable_dist
from torch import Tensor

__all__ = ["all_gather_rows", "all_reduce_sum", "differentiable_sum"]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of a tensor over all ranks; the tensor itself where there is one process.

    Example:
        >>> all_reduce_sum(torch.ones(2))
        tensor([1., 1.])
    """
    if not _distributed() or x.numel() == 0:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def differentiable_sum(x: Tensor) -> Tensor:
    """Sum of a tensor over all ranks for losses of the joined batch; gradients flow back to every rank's part.

    Every rank then holds the same loss, so each part's gradient is that of the loss times the number of ranks, which
    the averaging of data parallelism undoes.

    Example:
        >>> differentiable_sum(torch.ones(2))
        tensor([1., 1.])
    """
    if not _distributed():
        return x
    return differentiable_dist.all_reduce(x) if x.is_floating_point() else all_reduce_sum(x)


def all_gather_rows(x: Tensor) -> Tensor:
    """Rows of all ranks, in rank order; ranks may hold different numbers of rows, also none.

    Example:
        >>> all_gather_rows(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if not _distributed():
        return x
    sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    most = max(int(size) for size in sizes)
    if most == 0:
        return x
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[: int(size)] for rows, size in zip(gathered, sizes, strict=True)])
