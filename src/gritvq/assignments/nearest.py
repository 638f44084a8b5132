"""The plain assignment: the nearest code."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.base import Assignment
from gritvq.functional import nearest_code

__all__ = ["NearestAssignment"]


class NearestAssignment(Assignment):
    """The nearest code, ``argmin_k |x - c_k|`` or ``argmax_k cos(x, c_k)``; ties go to the lowest index.

    Never holds N x K; always at least float32, also under autocast.

    Args:
        metric: ``"euclidean"`` or ``"cosine"``. The value is the code itself either way; use a codebook with
            ``normalize=True`` for unit-length values.

    Raises:
        ValueError: If the metric is unknown.

    Example:
        >>> import torch
        >>> indices, q = NearestAssignment()(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]]))
        >>> indices.item(), q.item()
        (1, 1.0)
    """

    def __init__(self, metric: Literal["euclidean", "cosine"] = "euclidean") -> None:
        super().__init__()
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"expected metric 'euclidean' or 'cosine', got {metric!r}")
        self.metric = metric

    def forward(
        self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Indices (N,) and the rows of ``codes`` they name (N, D)."""
        indices = nearest_code(x, codes, self.metric)
        return indices, F.embedding(indices, codes)
