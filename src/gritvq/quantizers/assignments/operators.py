"""Operators with a gradient of their own, under ``torch.func`` too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gritvq.quantizers.functional import transforming

__all__ = ["with_gradient"]


_Pick = Callable[[tuple[Any, ...], tuple[Tensor, Tensor]], tuple[tuple[Any, ...], tuple[Any, ...]]]


def with_gradient(name: str, operator: Any, pick: _Pick) -> Callable[..., tuple[Tensor, Tensor]]:
    """A custom operator as a function that can be differentiated in its first output.

    The gradient is what the operator ``<name>_backward`` returns; it cannot be differentiated again. ``torch.func``
    does not take the gradients that operators register, so the function has a second form for it.

    Args:
        name: Of the operator, in ``torch.ops.gritvq``.
        operator: What ``torch.library.custom_op`` made, with two outputs.
        pick: From inputs and outputs, the tensors and the constants that the backward operator takes after the
            gradient. It returns gradients of the operator's first inputs.
    """
    forward = getattr(torch.ops.gritvq, name)
    backward = getattr(torch.ops.gritvq, f"{name}_backward")

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        tensors, ctx.constants = pick(inputs, output)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[1])

    def gradients(ctx: Any, found: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        return (*found, *[None] * (len(ctx.needs_input_grad) - len(found)))

    def differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, backward(grad, *ctx.saved_tensors, *ctx.constants))

    operator.register_autograd(differentiate, setup_context=keep)
    torch.library.register_autograd(f"gritvq::{name}_backward", _refuse)

    class ForTransforms(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
            return forward(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            keep(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
            return gradients(ctx, _Once.apply(backward, grad, *ctx.saved_tensors, *ctx.constants))

    return lambda *inputs: (ForTransforms.apply if transforming() else forward)(*inputs)


def _refuse(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError("expected first derivatives only through a soft choice of code, got a second one; detach it")


class _Once(torch.autograd.Function):
    """The result of an operator that cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator: Callable[..., Any], *inputs: Any) -> Any:
        return operator(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _refuse(ctx, *gradients)
