"""Perturbed codes: the decoder sometimes sees a neighbor of the code that was chosen."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gritvq.component import check_integer, check_number
from gritvq.quantizers.base import Quantizer, QuantizerOutput, Schedule, WrappedQuantizer, least_exact, scheduled
from gritvq.quantizers.structures.stack import check_hard_part

__all__ = ["PerturbedQuantizer"]


class PerturbedQuantizer(WrappedQuantizer):
    """Trains the decoder for tokens that are nearly right, as a generator's are.

    In training a share of the samples (first axis) is perturbed: every token of such a sample is, with a probability,
    replaced by a uniformly drawn one of the ``num_neighbors`` codes nearest to its code (which is one of them). Only
    the value changes; indices, losses and statistics are those of the codes that were chosen. In eval nothing happens.

    The surrogate is the quantizer's, taken toward the code that the decoder sees: under straight-through the encoder
    gets the upstream gradient as usual; under a radial surrogate the neighbor's gap takes the place of the chosen
    code's, and the neighbor gets the code's gradient, as if it had been chosen. Draws come from torch's global
    generator. The search costs O(N K) time in training, in blocks of 64 MB.

    Args:
        quantizer: With a table of codes and one index channel (:class:`gritvq.VectorQuantizer`).
        share: Share of samples perturbed, in [0, 1]; may be a schedule.
        probability: Probability that a token of such a sample is replaced, in [0, 1].
        num_neighbors: Number of nearest codes to sample from; all codes if there are fewer.

    Raises:
        ValueError: If an argument is out of its range or the quantizer has no table.

    Example:
        >>> from gritvq import grit_vq
        >>> quantizer = PerturbedQuantizer(grit_vq(4, 16), share=1.0, num_neighbors=8)
        >>> x = torch.randn(20, 4)
        >>> quantized, indices, _ = quantizer(x)
        >>> torch.equal(indices, quantizer.encode(x)), torch.equal(quantizer.decode(indices), quantized)
        (True, False)

    References:
        Qiu et al., "Robust Latent Matters: Boosting Image Generation with Sampling Error Synthesis" (RobustTok), 2025,
        arXiv 2503.08354. Li et al., "XQ-GAN", 2024, arXiv 2412.01762, released code: share 0.1, probability 1, 100
        neighbors, the share annealed over epochs 40 to 120. That neighbors are those of the code follows second-hand
        descriptions; independent draws per sample and token, and what happens under other surrogates, are our choice.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        share: float | Schedule = 0.1,
        probability: float = 1.0,
        num_neighbors: int = 100,
    ) -> None:
        check_hard_part(quantizer, type(self).__name__)
        one_channel = len(quantizer.codebook_sizes) == 1 and not quantizer.layout
        if type(quantizer).nearest is Quantizer.nearest or not one_channel:
            raise ValueError(
                f"expected a quantizer with one table of codes to search, got {type(quantizer).__name__}; perturb the "
                "VectorQuantizers inside it"
            )
        if not isinstance(share, Schedule):
            check_number("share", share, most=1)
        super().__init__(quantizer)
        self.share, self.probability = share, check_number("probability", probability, most=1)
        self.num_neighbors = check_integer("num_neighbors", num_neighbors)
        self.exact = least_exact("eval", quantizer.exact)

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """The inner quantizer's output, with other values for some tokens in training."""
        output = super().quantize(x, valid)
        if not self.training:
            return output
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            count = min(self.num_neighbors, self.codebook_sizes[0])
            near = self.nearest(output.quantized, count)
            drawn = torch.randint(count, (*near.shape[:-1], 1), device=x.device)
            samples = (x.shape[0],) + (1,) * (x.ndim - 2) if x.ndim > 1 else ()
            chosen = torch.rand(samples, device=x.device) < scheduled(self.share)
            chosen = chosen & (torch.rand(near.shape[:-1], device=x.device) < self.probability)
        others = self.lookup(near.gather(-1, drawn))
        return output._replace(quantized=torch.where(chosen.unsqueeze(-1), others, output.quantized))

    def level_tables(self) -> list[Tensor] | None:
        """Delegates to the inner quantizer: nothing is perturbed outside of training."""
        return self.quantizer.level_tables()
