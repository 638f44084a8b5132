"""A codebook loss that also moves codes that were not chosen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import check_number
from gritvq.distributed import all_reduce_sum
from gritvq.quantizers.base import Context, LearningRule, Schedule, scheduled
from gritvq.quantizers.functional import at_least_float32, squared_distance

__all__ = ["DriftLoss"]

_BLOCK_PAIRS = 1 << 22


class DriftLoss(LearningRule):
    r"""Codebook loss over all codes, so that codes that were not chosen follow drifting latents.

    ``weight * (1/N) sum_n sum_k w_nk |sg(x_n) - c_k|^2 / D`` with constant weights ``w_nk``: 1 for the chosen code and
    ``min(1, strength * K * softmax_k(-|x_n - c_k|^2 / temperature))`` for every other. It takes the place of
    :class:`CodebookLoss`, whose value and gradients it has at ``strength`` 0 and in the limit of temperature 0.

    The temperature decides which codes follow, so it must match the latents' scale: far below the squared distances
    between codes only the chosen one does, far above them all codes are pulled to the mean of the batch. A constant one
    fits as long as the cloud only moves; where it shrinks, ``relative`` keeps it in step. The published
    schedule halves it every epoch, which turns the rule into the plain codebook loss, and is of use only if the drift
    ends before the decay does. The reach is bounded by ``strength * K``, the sum of one vector's kernel before it is
    cut off at 1: the same strength reaches less far in a smaller codebook.

    Costs O(N K) time, and no backward pass through pairs: three sums over blocks of 4 million pairs are enough, so
    memory is about 100 MB for any N.

    Args:
        weight: The paper's alpha; 1 in the released code, together with ``CommitmentLoss(0.25)``.
        strength: The kernel's height lambda, >= 0.
        temperature: Kernel width tau in squared latent units, > 0 (a schedule may fall to 0). The released code's is
            ``DecaySchedule(1.0, factor=0.5, interval=steps_per_epoch, floor=1e-8, staircase=True)``.
        relative: Multiply the temperature by the variance of the valid latents of the batch (mean over components, all
            processes together, no gradient); on a toy cloud in the plane that moves or shrinks, 0.5 kept 94 % of the
            codes in use or more, 0.2 kept 73 %.

    Example:
        >>> x, codes = torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0]])
        >>> context = Context(x, codes[:1], torch.tensor([0]), torch.tensor([True]), codes)
        >>> round(DriftLoss(strength=0.0).loss(context)["drift"].item(), 3)
        1.0
        >>> round(DriftLoss(strength=1.0).loss(context)["drift"].item(), 3)  # 1 + 4 * 2 / (1 + e^3)
        1.379

    References:
        Lu et al., "Beyond Stationarity: Rethinking Codebook Collapse in Vector Quantization" (NS-VQ), 2026, arXiv
        2602.18896, after the released code, whose kernel, strength and schedule these are; that the paper's
        ``2 sigma^2`` is the temperature is our reading. Deviations: ``relative`` is ours, and the variants that also
        send the task's gradient to the codes are left out.
    """

    trains_codes = True

    def __init__(
        self,
        weight: float = 1.0,
        *,
        strength: float = 0.01,
        temperature: float | Schedule = 1.0,
        relative: bool = False,
    ) -> None:
        super().__init__()
        self.weight, self.strength = check_number("weight", weight), check_number("strength", strength)
        if not isinstance(temperature, Schedule):
            hint = "strength=0 switches the kernel off instead"
            check_number("temperature", temperature, inside=True, hint=hint)
        self.temperature, self.relative = temperature, relative

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss as ``drift``."""
        codes = context.codes
        x, valid = at_least_float32(context.x.detach()).reshape(-1, codes.shape[1]), context.valid.reshape(-1)
        indices = context.indices.reshape(-1).clamp_min(0)
        temperature = torch.as_tensor(scheduled(self.temperature), dtype=x.dtype, device=x.device)
        if self.relative:
            temperature = temperature * _variance(x, valid, context.num_valid)
        mass, offsets, spread = torch.ops.gritvq.kernel_sums(
            x, codes.detach(), indices, valid, temperature, self.strength * len(codes)
        )
        # As a function of the codes the kernel's part is sum_k [sum_n w_nk |x_n - sg(c_k)|^2 + mass_k |step_k|^2
        # - 2 <step_k, offsets_k>] with step = codes - sg(codes).
        step = codes - codes.detach()
        others = spread + (mass[:, None] * step.square() - 2 * step * offsets).sum()
        chosen = (x - F.embedding(indices, codes)).square().mean(-1)
        total = torch.where(valid, chosen, 0).sum() + others / codes.shape[1]
        return {"drift": self.weight * context.mean_of_total(total)}


def _variance(x: Float[Tensor, "N D"], valid: Bool[Tensor, " N"], count: Int[Tensor, ""]) -> Float[Tensor, ""]:
    """Variance of the valid rows of all processes, mean over components; 0 where there is none."""
    weight = valid.to(x.dtype)[:, None]
    total = count.clamp_min(1)
    mean = all_reduce_sum((weight * x).sum(0)) / total
    return all_reduce_sum((weight * (x - mean).square()).sum()) / (total * x.shape[1])


@torch.library.custom_op("gritvq::kernel_sums", mutates_args=())
def _kernel_sums(
    x: Tensor, codes: Tensor, indices: Tensor, valid: Tensor, temperature: Tensor, height: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over n of the kernel's weights ``w_nk``, of ``w_nk (x_n - c_k)`` and, over k too, ``w_nk |x_n - c_k|^2``.

    The chosen code's weight is left out. Opaque to the compiler, so that a graph does not unroll the blocks.
    """
    temperature = temperature.clamp_min(torch.finfo(x.dtype).tiny)
    center = codes.mean(0)
    mass, moments, spread = torch.zeros_like(codes[:, 0]), torch.zeros_like(codes), x.new_zeros(())
    block = max(1, _BLOCK_PAIRS // len(codes))
    for rows, chosen, real in zip(x.split(block), indices.split(block), valid.split(block), strict=True):
        distance = squared_distance(rows, codes)
        nearest = distance.amin(1, keepdim=True)
        # Distances over the nearest one's: a temperature next to 0 leaves it with 0 and the others with infinity.
        weight = distance.sub(nearest).div_(temperature).neg_().softmax(1).mul_(height).clamp_max_(1)
        weight.mul_(real[:, None]).scatter_(1, chosen[:, None], 0)
        mass += weight.sum(0)
        moments += weight.T @ (rows - center)
        spread += torch.linalg.vecdot(weight.flatten(), distance.flatten())
    return mass, moments - mass[:, None] * (codes - center), spread


@_kernel_sums.register_fake
def _(
    x: Tensor, codes: Tensor, indices: Int[Tensor, " N"], valid: Tensor, temperature: Tensor, height: float
) -> tuple[Tensor, Tensor, Tensor]:
    return codes.new_empty(codes.shape[0]), torch.empty_like(codes), x.new_empty(())
