"""Losses of the standard recipes: codebook, commitment, entropy, orthogonality."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gritvq.component import check_number
from gritvq.distributed import all_reduce_sum
from gritvq.quantizers.base import Context, LearningRule
from gritvq.quantizers.functional import squared_distance

__all__ = ["CodebookLoss", "CommitmentLoss", "EntropyLoss", "OrthogonalityLoss"]


class CommitmentLoss(LearningRule):
    """Pulls the encoder toward its codes: ``weight * mean |x - sg(q)|^2 / D``.

    Args:
        weight: The paper's beta; 0.25 is its value.

    Example:
        >>> import torch
        >>> x, q, codes = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)
        >>> context = Context(x, q, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), codes)
        >>> CommitmentLoss(0.5).loss(context)["commitment"].item()
        0.5

    References:
        van den Oord et al., NeurIPS 2017, arXiv 1711.00937, eq. 3, third term.
    """

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__()
        self.weight = check_number("weight", weight)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``commitment``."""
        return {"commitment": self.weight * context.mean((context.x - context.q.detach()).square().mean(-1))}


class CodebookLoss(LearningRule):
    """Pulls the chosen codes toward their vectors: ``weight * mean |sg(x) - q|^2 / D``.

    Args:
        weight: 1 in the paper.

    Example:
        >>> CodebookLoss(2.0).weight
        2.0

    References:
        van den Oord et al., NeurIPS 2017, arXiv 1711.00937, eq. 3, second term.
    """

    trains_codes = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = check_number("weight", weight)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``codebook``."""
        return {"codebook": self.weight * context.mean((context.x.detach() - context.q).square().mean(-1))}


class EntropyLoss(LearningRule):
    """Confident vectors, balanced codes: ``weight * (mean_n H(p_n) - balance * H(mean_n p_n))``, entropies in nats.

    ``p_n = softmax_k(-|x_n - c_k|^2 / temperature)``. Costs O(N K) time; blocks of 4 million pairs, recomputed in the
    backward pass, keep memory at about 100 MB for any N. With several processes the mean is over all of them.

    Args:
        weight: Weight of the whole.
        balance: Weight of the batch entropy inside it.
        temperature: Softmax temperature in squared latent units.

    Example:
        >>> EntropyLoss(0.1).balance
        1.0

    References:
        Yu et al., "Language Model Beats Diffusion", ICLR 2024, arXiv 2310.05737 (the loss of LFQ), here over distances
        to a table.
    """

    trains_codes = True

    def __init__(self, weight: float = 0.1, *, balance: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight, self.balance = check_number("weight", weight), check_number("balance", balance)
        self.temperature = check_number("temperature", temperature, least=1e-8)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``entropy``."""
        x, valid = context.x.reshape(-1, context.x.shape[-1]), context.valid.reshape(-1)
        block = max(1, (1 << 22) // len(context.codes))
        each = x.new_zeros(())
        mean = x.new_zeros(len(context.codes))
        for rows, weight in zip(x.split(block), valid.to(x.dtype).split(block), strict=True):
            entropy, probability = checkpoint(self._block, rows, weight, context.codes, use_reentrant=False)
            each, mean = each + entropy, mean + probability
        total, each, mean = context.num_valid.clamp_min(1), all_reduce_sum(each), all_reduce_sum(mean)
        mean = mean / total
        batch = -(mean * (mean + 1e-20).log()).sum()
        return {"entropy": self.weight * (each / total - self.balance * batch)}

    def _block(self, rows: Tensor, weight: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(-squared_distance(rows, codes) / self.temperature, dim=1)
        p = log_p.exp() * weight[:, None]
        return -(p * log_p).sum(), p.sum(0)


class OrthogonalityLoss(LearningRule):
    """Pushes code directions apart: ``weight * |A A^T - Id|_F^2 / K^2`` for the unit codes A.

    Computed as ``(|A^T A|_F^2 - K) / K^2``, which needs D x D instead of K x K numbers.

    Args:
        weight: Weight of the loss.

    Example:
        >>> import torch
        >>> context = Context(*[torch.zeros(1, 2)] * 2, torch.zeros(1).long(), torch.ones(1).bool(), torch.eye(2))
        >>> OrthogonalityLoss(1.0).loss(context)["orthogonality"].item()
        0.0

    References:
        Shin et al., "Exploration into Translation-Equivariant Image Quantization", ICASSP 2023, arXiv 2112.00384.
    """

    trains_codes = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = check_number("weight", weight)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``orthogonality``."""
        unit = F.normalize(context.codes, dim=1)
        gram = unit.T @ unit
        loss = (gram.square().sum() - len(unit)) / len(unit) ** 2
        return {"orthogonality": self.weight * context.of_codes(loss)}
