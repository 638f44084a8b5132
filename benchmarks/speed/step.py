"""Contenders that take a training step: forward, backward, ``update_codebook()``; no optimizer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmarks.speed.cases import Call, Contender, Row, gaussian, vectors_and_codes
from benchmarks.speed.search import bound
from torch import Tensor, nn

from gritvq import AffineCodebook, MLPCodebook, RadialSurrogate, VectorQuantizer
from gritvq.quantizers import presets
from gritvq.quantizers.base import Quantizer


def _step(
    module: nn.Module, batches: Sequence[Tensor], forward: Callable[[Tensor], tuple[Tensor, list[Tensor]]]
) -> Call:
    """Forward and backward from a fixed gradient of the output, batch by batch; old gradients are dropped first."""
    module.to(batches[0].device).train()
    upstream = gaussian(*batches[0].shape, batches[0].device, 2)
    turn = itertools.cycle([batch.requires_grad_() for batch in batches])

    def run() -> Tensor:
        x = next(turn)
        x.grad = None
        module.zero_grad(set_to_none=True)
        quantized, losses = forward(x)
        ends = [quantized, *(loss.sum() for loss in losses if loss.requires_grad)]
        torch.autograd.backward(ends, [upstream, *(torch.ones_like(loss) for loss in ends[1:])])
        if isinstance(module, Quantizer):
            module.update_codebook()
        return quantized

    return run


def _ours(make: Callable[[int, int], Quantizer], row: Row, device: torch.device, seeds: Sequence[int] = (0,)) -> Call:
    torch.manual_seed(1)
    quantizer = make(row.dim, row.codebook_size)

    def forward(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        output = quantizer(x)
        return output.quantized, list(output.losses.values())

    return _step(quantizer, [gaussian(row.n, row.dim, device, seed) for seed in seeds], forward)


def _peer(name: str, settings: dict[str, Any], row: Row, device: torch.device) -> Call:
    import vector_quantize_pytorch

    torch.manual_seed(1)
    module = getattr(vector_quantize_pytorch, name)(dim=row.dim, codebook_size=row.codebook_size, **settings)

    def forward(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        quantized, _, loss = module(x[None])
        return quantized[0], [loss]

    return _step(module, [gaussian(row.n, row.dim, device, 0)], forward)


def _bound(row: Row, device: torch.device) -> Call:
    return functools.partial(bound, *vectors_and_codes(row, device))


def _bound_and_transform(row: Row, device: torch.device) -> Call:
    x, codes = vectors_and_codes(row, device)
    codebook = MLPCodebook(row.dim, row.codebook_size).to(device)

    @torch.no_grad()
    def run() -> Tensor:
        codebook.transform(codebook.base)
        return bound(x, codes)

    return run


def affine_radial(dim: int, codebook_size: int) -> VectorQuantizer:
    """A trained affine map of a trained table under the radial surrogate."""
    return VectorQuantizer(AffineCodebook(dim, codebook_size), surrogate=RadialSurrogate())


def moving_average(dim: int, codebook_size: int) -> VectorQuantizer:
    """The preset; it says that it wants a start from data, which costs a step nothing."""
    return presets.vq_vae_ema(dim, codebook_size)


AFFINE = Contender("affine + radial", functools.partial(_ours, affine_radial))


def _learnable() -> dict[str, Any]:
    return {"learnable_codebook": True, "ema_update": False, "rotation_trick": True}


def contenders(device: torch.device) -> list[Contender]:
    """Ours, vector-quantize-pytorch (VQP) and the bounds."""
    several = {"package": "vector_quantize_pytorch", "memory": lambda row: 6 * row.scores}
    return [
        Contender("grit_vq", functools.partial(_ours, presets.grit_vq)),
        AFFINE,
        Contender("simvq", functools.partial(_ours, presets.simvq)),
        Contender("vq_vae", functools.partial(_ours, presets.vq_vae)),
        Contender("vq_vae_ema", functools.partial(_ours, moving_average)),
        Contender("VQP EMA", functools.partial(_peer, "VectorQuantize", {}), **several),
        Contender("VQP learnable", functools.partial(_peer, "VectorQuantize", _learnable()), **several),
        Contender(
            "VQP SimVQ",
            functools.partial(_peer, "SimVQ", {}),
            package="vector_quantize_pytorch",
            memory=lambda row: 1.3 * row.scores,
        ),
        Contender("bound", _bound),
        Contender("bound + transform", _bound_and_transform),
    ]


def residual_contenders(device: torch.device) -> list[Contender]:
    """Eight levels against one, on 64 batches in turn: the first level would learn a single one by heart."""
    seeds = range(10, 74)
    return [
        Contender(name, functools.partial(_ours, functools.partial(presets.rq, num_levels=levels), seeds=seeds))
        for name, levels in (("1 level", 1), ("8 levels", 8))
    ]
