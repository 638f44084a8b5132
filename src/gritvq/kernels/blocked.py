"""Search in blocks by PyTorch's own matrix product, on any device."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["search", "search_rows"]

# Entries of the largest block of scores. A CPU works fastest while a block stays in its cache (4 MB); elsewhere the
# block is as large as the promise of 64 MB allows.
_CPU_BLOCK_ENTRIES = 1 << 20
_BLOCK_ENTRIES = 1 << 24


def search(
    x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], bias: Float[Tensor, " K"], center: Float[Tensor, " D"]
) -> Int[Tensor, " N"]:
    """Blocks over rows and codes with a running best."""
    on_cpu = x.device.type == "cpu"
    block = min(len(codes), 1024 if on_cpu else 16384)
    rows = max(1, (_CPU_BLOCK_ENTRIES if on_cpu else _BLOCK_ENTRIES) // block)
    return torch.cat([search_rows(part.to(codes.dtype) - center, codes, bias, block) for part in x.split(rows)])


def search_rows(
    rows: Float[Tensor, "n D"], codes: Float[Tensor, "K D"], bias: Float[Tensor, " K"], block_codes: int = 1024
) -> Int[Tensor, " n"]:
    """All centred rows at once, blocks over the codes alone: plain operators, for exported programs too."""
    best = index = None
    for start in range(0, len(codes), block_codes):
        block = slice(start, start + block_codes)
        value, position = torch.addmm(bias[block], rows, codes[block].T, alpha=-1).min(1)
        if best is None or index is None:
            best, index = value, position
        else:
            better = value < best
            best = torch.where(better, value, best)
            index = torch.where(better, position + start, index)
    assert index is not None
    return index
