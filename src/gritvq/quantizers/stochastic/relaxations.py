"""Differentiable random choices of codes: stateless functions of stochastic quantizers, all of O(N K) time.

They make few passes over the pairs and keep few N x K arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gritvq.quantizers.functional import central_code, transforming

__all__ = ["centered", "gaussian_factors", "negative_entropy", "over_blocks", "relaxed_choice"]

_CPU_BLOCK = 1 << 20  # pairs per block, which stay in the cache
_BLOCK = 1 << 24  # the same on other devices: 64 MB
_KEPT = 1 << 26  # up to so many pairs (256 MB per array) are kept for the backward pass; beyond, they are recomputed


def centered(x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]) -> tuple[Tensor, Tensor]:
    """Vectors and codes minus a median code, so that a common offset costs no precision.

    Example:
        >>> x, codes = centered(torch.tensor([[9.0]]), torch.tensor([[7.0], [8.0], [9.0]]))
        >>> x.tolist(), codes.tolist()
        ([[1.0]], [[-1.0], [0.0], [1.0]])
    """
    center = central_code(codes.detach())
    return x - center.to(x.dtype), codes - center


def gaussian_factors(
    x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], variance: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "N F"], Float[Tensor, "K F"]]:
    """Two factors whose product ``a @ b.T`` is ``-sum_d (x_d - c_d)^2 / (2 v_d)`` up to a constant per row.

    So Gaussian log-densities cost one matrix product for any kind of variance. Differentiable in all arguments.

    Args:
        x: Vectors, best from :func:`centered`.
        codes: Codes with the same shift.
        variance: A scalar, one per vector (N, 1), or one per component (N, D).

    Example:
        >>> a, b = gaussian_factors(torch.tensor([[1.0]]), torch.tensor([[0.0], [2.0], [3.0]]), torch.tensor(0.5))
        >>> logits = a @ b.T
        >>> (logits - logits[0, 0]).tolist()
        [[0.0, 0.0, -3.0]]
    """
    precision = 1 / variance.to(x.dtype)
    codes = codes.to(x.dtype)
    if precision.ndim == 2 and precision.shape[1] == x.shape[1]:
        return torch.cat([x * precision, -0.5 * precision], 1), torch.cat([codes, codes.square()], 1)
    half = (-0.5 * precision).expand(len(x), 1)
    return torch.cat([x * precision, half], 1), torch.cat([codes, codes.square().sum(1, keepdim=True)], 1)


def over_blocks(
    block: Callable[..., tuple[Tensor, ...]], rows: Sequence[Tensor], codebook_size: int
) -> tuple[Tensor, ...]:
    """Run an all-pairs computation on blocks of rows and concatenate the results along the first axis.

    A block has about a million pairs on a CPU, so that it stays in the cache, and 16 million elsewhere. Beyond 67
    million pairs in total, blocks are recomputed in the backward pass, which then needs the memory of one block.

    Args:
        block: Maps slices of all ``rows`` to tensors that are concatenated.
        rows: Tensors of the same length N.
        codebook_size: Number of codes K.

    Example:
        >>> over_blocks(lambda a, b: (a + b,), [torch.ones(3), torch.ones(3)], 4)
        (tensor([2., 2., 2.]),)
    """
    entries = _CPU_BLOCK if rows[0].device.type == "cpu" else _BLOCK
    size = max(1, entries // codebook_size)
    run: Any = block
    if torch.is_grad_enabled() and len(rows[0]) * codebook_size > _KEPT and not transforming():
        run = partial(checkpoint, block, use_reentrant=False)
    results = [run(*parts) for parts in zip(*(own.split(size) for own in rows), strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def relaxed_choice(
    logits: Float[Tensor, "N K"],
    values: Float[Tensor, "K V"],
    temperature: float | Tensor = 1.0,
    *,
    hard: bool = False,
) -> Float[Tensor, "N V"]:
    """Values of a differentiable random choice of codes (Gumbel-softmax).

    ``y = softmax((logits + g) / temperature)`` with Gumbel noise g from torch's global generator; the result is
    ``y @ values``. With ``hard`` it is the row of the largest ``y``, a sample of ``softmax(logits)``, and the gradient
    of the logits is that of the soft value. Keeps one N x K array for the backward pass.

    Args:
        logits: Unnormalized log-probabilities.
        values: Value of each code.
        temperature: Temperature > 0.
        hard: Whether to return rows instead of mixtures.

    Example:
        >>> relaxed_choice(torch.tensor([[0.0, 80.0]]), torch.tensor([[1.0], [2.0]]))
        tensor([[2.]])

    References:
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017, arXiv 1611.01144; Maddison et al.,
        "The Concrete Distribution", ICLR 2017, arXiv 1611.00712.
    """
    values = values.to(logits.dtype)
    if not transforming():
        return _RelaxedChoice.apply(logits, values, temperature, hard)
    y = ((logits - (-torch.rand_like(logits).log()).log()) / temperature).softmax(1)
    if not hard:
        return y @ values
    soft = y @ values.detach()
    return values[y.argmax(1)] + (soft - soft.detach())


class _RelaxedChoice(torch.autograd.Function):
    """Allocates one random array and one softmax; the backward pass needs only the softmax."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, temperature: float | Tensor, hard: bool) -> Tensor:
        noisy = torch.rand_like(logits).log_().neg_().log_().neg_().add_(logits)  # ten times faster than exponential_
        y = noisy.div_(temperature).softmax(1)
        index = y.argmax(1) if hard else None
        chosen = y @ values if index is None else values[index]
        ctx.temperature = temperature
        ctx.save_for_backward(y, values, *([] if index is None else [index]))
        return chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        y, values, *index = ctx.saved_tensors
        slope = gradient @ values.T
        slope = (slope - (slope * y).sum(1, keepdim=True)).mul_(y).div_(ctx.temperature)
        if index:
            of_values = torch.zeros_like(values).index_add_(0, index[0], gradient)
        else:
            of_values = (gradient.T @ y).T
        return slope, of_values, None, None


def negative_entropy(logits: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """``sum_k p_k log p_k`` in nats of each row, ``p = softmax(logits)``; keeps one N x K array for the backward pass.

    Example:
        >>> negative_entropy(torch.zeros(1, 4)).exp()
        tensor([0.2500])
    """
    if transforming():
        return (logits.softmax(1) * logits.log_softmax(1)).sum(1)
    return _NegativeEntropy.apply(logits)


class _NegativeEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        p = logits.softmax(1)
        largest, likeliest = logits.amax(1), p.amax(1).log()  # log p = logits - largest + likeliest
        total = p.mul_(logits - largest[:, None]).sum(1) + likeliest
        ctx.save_for_backward(logits, largest, likeliest, total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        _refuse_second_derivatives()
        logits, largest, likeliest, total = ctx.saved_tensors
        log_p = (logits - largest[:, None]).add_(likeliest[:, None])
        p = log_p.exp()
        return log_p.sub_(total[:, None]).mul_(gradient[:, None]).mul_(p)


def _refuse_second_derivatives() -> None:
    """Tensors saved above count as constant in the backward passes, which `once_differentiable` does not detect."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "expected a backward pass without create_graph through a relaxed choice or its entropy, got one with it; "
            "take first derivatives only, or detach the quantizer's input and output"
        )
