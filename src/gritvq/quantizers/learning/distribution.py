"""A loss that gives the codebook the mean and the covariance of a standard normal distribution."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gritvq.component import check_number
from gritvq.quantizers.base import Context, LearningRule
from gritvq.quantizers.functional import at_least_float32

__all__ = ["DistributionConsistencyLoss"]


class DistributionConsistencyLoss(LearningRule):
    r"""Pulls the cloud of codes toward N(0, Id): ``weight * (|m|^2 + Tr S - 2 Tr S^(1/2) + D)``.

    ``m`` and ``S`` are mean and covariance (with ``1/(K-1)``) of the rows of the codebook. The bracket is the squared
    2-Wasserstein distance between N(m, S) and N(0, Id): 0 for white codes, ``D (c - 1)^2`` for white codes scaled by c,
    ``|v|^2`` for white codes shifted by v. It depends on the codes only, not on the batch.

    With the singular values ``s_i`` of the centered codes over ``sqrt(K-1)`` it is ``|m|^2 + sum_i (1 - s_i)^2`` (i = 1
    .. D; those beyond K are 0). That never takes the root of a matrix, whose gradient is not finite where codes
    coincide. Costs O(K D^2). Useful if the latents are pulled toward N(0, Id) as well; unit-length codes cannot
    reach it.

    Args:
        weight: 0.1 in the paper.

    Example:
        >>> codes = torch.tensor([[1.0], [-1.0]]) / 2**0.5
        >>> context = Context(codes, codes, torch.arange(2), torch.ones(2).bool(), codes + 3)
        >>> round(DistributionConsistencyLoss(1.0).loss(context)["distribution"].item(), 4)
        9.0

    References:
        Yang et al., "VAEVQ: Enhancing Discrete Visual Tokenization through Variational Modeling", AAAI 2026, arXiv
        2511.06863, the distribution consistency regularization. Deviation: the paper leaves out the constant D, which
        makes it a true squared distance, never negative; gradients are the same. In the released code the root term is
        0, so that its loss would only shrink the codes, and it is computed but not added to the total.
    """

    trains_codes = True

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = check_number("weight", weight)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``distribution``."""
        codes = at_least_float32(context.codes)
        size, dim = codes.shape
        mean = codes.mean(0)
        values = torch.linalg.svdvals((codes - mean) / math.sqrt(max(1, size - 1)))
        missing = dim - len(values)
        distance = mean.square().sum() + (values - 1).square().sum() + missing
        return {"distribution": self.weight * context.of_codes(distance)}
