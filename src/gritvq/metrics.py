"""Metrics over a whole evaluation set: they accumulate, and reduce over all processes when asked.

Usage and perplexity of single batches understate a codebook, and ring buffers from training misstate it; these count
every token once.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.functional import perplexity, usage

__all__ = ["CodebookUsage", "ReconstructionError"]


def _reduced(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


class CodebookUsage:
    """How a codebook is used: share of codes hit, perplexity, dead codes, per index channel.

    Args:
        codebook_sizes: Codes per index channel, at most 2^28 each: one number is kept per code.

    Raises:
        ValueError: If a codebook is larger.

    Example:
        >>> metric = CodebookUsage((4,))
        >>> metric.update(torch.tensor([[0], [1], [1], [-1]]))
        >>> metric.compute()["usage"], metric.num_tokens
        (0.5, 3)
    """

    def __init__(self, codebook_sizes: tuple[int, ...]) -> None:
        self.codebook_sizes = tuple(codebook_sizes)
        if max(self.codebook_sizes) > 2**28:
            raise ValueError(
                f"expected codebook sizes up to 2^28 to count codes, got {self.codebook_sizes}; count the digits of "
                "such a grid instead"
            )
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.counts = [torch.zeros(size, dtype=torch.int64) for size in self.codebook_sizes]

    def update(self, indices: Int[Tensor, "*tokens Q"]) -> None:
        """Count a batch of indices; -1 does not count."""
        if indices.shape[-1] != len(self.codebook_sizes):
            raise ValueError(
                f"expected indices with {len(self.codebook_sizes)} channels last, got {tuple(indices.shape)}; use "
                "unsqueeze(-1)"
            )
        for channel, size in enumerate(self.codebook_sizes):
            index = indices[..., channel].reshape(-1)
            counted = torch.bincount(index[index >= 0], minlength=size)
            self.counts[channel] = self.counts[channel].to(counted.device) + counted

    @property
    def num_tokens(self) -> int:
        """Token positions counted on this process."""
        return int(self.counts[0].sum())

    def histograms(self) -> list[Tensor]:
        """Counts of every channel over all processes."""
        return [_reduced(counts) for counts in self.counts]

    def compute(self) -> dict[str, float]:
        """Over all processes: mean ``usage`` and ``perplexity`` of the channels, ``dead_codes`` in all, ``tokens``."""
        counts = self.histograms()
        num = len(counts)
        return {
            "usage": sum(float(usage(c)) for c in counts) / num,
            "perplexity": sum(float(perplexity(c)) for c in counts) / num,
            "dead_codes": float(sum(int((c == 0).sum()) for c in counts)),
            "tokens": float(counts[0].sum()),
        }


class ReconstructionError:
    """Mean squared error and peak signal-to-noise ratio of images with values in [0, 1]; reconstructions are clamped.

    ``psnr = -10 log10(MSE)`` with the mean over all pixels of all images; ``psnr_per_image`` averages the images' own
    values, which is never smaller.

    Example:
        >>> metric = ReconstructionError()
        >>> metric.update(torch.full((2, 1, 4, 4), 0.1), torch.zeros(2, 1, 4, 4))
        >>> round(metric.compute()["psnr"], 3)
        20.0
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums = torch.zeros(4, dtype=torch.float64)

    def update(self, reconstruction: Float[Tensor, "B C H W"], images: Float[Tensor, "B C H W"]) -> None:
        """Add a batch; shapes must agree."""
        if reconstruction.shape != images.shape:
            raise ValueError(f"expected equal shapes, got {tuple(reconstruction.shape)} and {tuple(images.shape)}")
        error = (reconstruction.detach().double().clamp(0, 1) - images.detach().double()).square().flatten(1)
        per_image = error.mean(1)
        psnr = -10 * per_image.clamp_min(1e-10).log10()
        added = torch.stack([error.sum(), psnr.sum(), error.new_tensor(error.numel()), error.new_tensor(len(error))])
        self.sums = self.sums.to(added.device) + added

    def compute(self) -> dict[str, float]:
        """``mse``, ``psnr`` and ``psnr_per_image`` (decibels) over all processes; NaN where nothing was counted."""
        total, psnr, pixels, images = _reduced(self.sums).tolist()
        if images == 0:
            return {"mse": math.nan, "psnr": math.nan, "psnr_per_image": math.nan}
        mse = total / pixels
        return {"mse": mse, "psnr": -10 * math.log10(max(mse, 1e-10)), "psnr_per_image": psnr / images}
