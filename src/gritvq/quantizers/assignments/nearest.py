"""The plain assignment: the nearest code."""

from __future__ import annotations

from typing import get_args

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.quantizers.base import Assignment
from gritvq.quantizers.functional import Metric, Precision, nearest_code

__all__ = ["NearestAssignment"]


class NearestAssignment(Assignment):
    """The nearest code, ``argmin_k |x - c_k|`` or ``argmax_k cos(x, c_k)``; ties go to the lowest index.

    Never builds the N x K matrix; always at least float32, also under autocast.

    Args:
        metric: ``"euclidean"`` or ``"cosine"``. The value is the code itself either way; use a codebook with
            ``normalize=True`` for unit-length values.
        precision: Minimum precision of a search on a GPU: ``"float32"``, ``"tf32"`` or ``"bf16"``, as in
            :func:`gritvq.quantizers.functional.nearest_code`. A lower one is faster and may confuse codes at
            nearly equal distances.

    Raises:
        ValueError: If metric or precision is unknown.

    Example:
        >>> import torch
        >>> indices, q = NearestAssignment()(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]]))
        >>> indices.item(), q.item()
        (1, 1.0)
    """

    takes_nearest = True

    def __init__(self, metric: Metric = "euclidean", precision: Precision = "float32") -> None:
        super().__init__()
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"expected metric 'euclidean' or 'cosine', got {metric!r}")
        if precision not in get_args(Precision):
            raise ValueError(f"expected a precision among {get_args(Precision)}, got {precision!r}")
        self.metric, self.precision = metric, precision

    def forward(
        self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Indices (N,) and the rows of ``codes`` they name (N, D)."""
        indices = nearest_code(x, codes, self.metric, self.precision)
        return indices, F.embedding(indices, codes)
