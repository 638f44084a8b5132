"""A row-wise map whose backward pass recomputes the rows that a gradient reached, instead of keeping K of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["mapped_rows"]

RowMap = Callable[[Tensor], Tensor]

_BLOCK_ROWS = 8192  # so that the map's activations are small compared with the table


def mapped_rows(
    transform: RowMap, base: Float[Tensor, "K D"], parameters: Sequence[nn.Parameter]
) -> Float[Tensor, "K D"]:
    """``T(C)`` for a row-wise map, without storing the graph of K rows.

    The forward pass keeps ``C`` and the parameters alone. The backward pass maps the rows with a gradient again, of
    which there are at most as many as vectors were quantized, unless a loss sees every code. Values and gradients are
    those of ``transform(base)``, up to rounding; second derivatives are not available.

    Args:
        transform: The map T, built on ``parameters``.
        base: Rows C (K, D).
        parameters: All parameters that T depends on.

    Returns:
        Mapped rows (K, D).

    Example:
        >>> weight = nn.Parameter(torch.tensor(3.0))
        >>> codes = mapped_rows(lambda rows: weight * rows, torch.ones(4, 2), [weight])
        >>> codes[1].sum().backward()
        >>> weight.grad
        tensor(2.)
    """
    return _MappedRows.apply(transform, base, *parameters)


def _map_in_blocks(transform: RowMap, base: Tensor) -> Tensor:
    if len(base) <= _BLOCK_ROWS:
        return transform(base)
    return torch.cat([transform(rows) for rows in base.split(_BLOCK_ROWS)])


class _MappedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transform: RowMap, base: Tensor, *parameters: Tensor) -> Tensor:
        ctx.transform = transform
        ctx.save_for_backward(base, *parameters)
        return _map_in_blocks(transform, base)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        base, *parameters = ctx.saved_tensors
        wants_base, *wanted = ctx.needs_input_grad[1:]
        trained = [p for p, wants in zip(parameters, wanted, strict=True) if wants]
        of_base = torch.zeros_like(base) if wants_base else None
        totals = [torch.zeros_like(p) for p in trained]
        reached = (grad != 0).any(1).nonzero().squeeze(1)
        for rows in reached.split(_BLOCK_ROWS) if len(reached) else ():
            with torch.enable_grad(), torch.autocast(base.device.type, enabled=False):
                leaf = base[rows].requires_grad_(wants_base)
                mapped = ctx.transform(leaf)
            own = torch.autograd.grad(mapped, [leaf] * wants_base + trained, grad[rows])
            if of_base is not None:
                of_base[rows] = own[0]
            for total, part in zip(totals, own[int(wants_base) :], strict=True):
                total += part
        given = iter(totals)
        return (None, of_base, *(next(given) if wants else None for wants in wanted))
