"""Search by faiss's ``IndexFlatL2`` on a CPU, for comparisons: our own searches are as fast or faster."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.lazy import optional
from gritvq.quantizers.kernels import blocked
from gritvq.quantizers.kernels.blocked import finite_rows

__all__ = ["search"]


def search(
    x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], bias: Float[Tensor, " K"], center: Float[Tensor, " D"]
) -> Int[Tensor, " N"]:
    """The nearest code in float32; float64, other devices and non-finite codes use the blocked search.

    For equal codes faiss returns the lowest index from version 1.15 on, and any of them before.

    Raises:
        ValueError: If faiss is missing.
    """
    if x.device.type != "cpu" or codes.dtype != torch.float32 or not bool(bias.isfinite().all()):
        return blocked.search(x, codes, bias, center)
    faiss = optional("faiss", "search")
    rows, finite = finite_rows(x, center)
    index = faiss.IndexFlatL2(codes.shape[1])
    index.add(codes.contiguous().numpy())
    found = torch.from_numpy(index.search(rows.contiguous().numpy(), 1)[1]).squeeze(1)
    return torch.where(finite, found, 0)
