"""Metrics of pictures."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gritvq.distributed import all_reduce_sum

__all__ = ["ReconstructionError"]


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
        total, psnr, pixels, images = all_reduce_sum(self.sums).tolist()
        if images == 0:
            return {"mse": math.nan, "psnr": math.nan, "psnr_per_image": math.nan}
        mse = total / pixels
        return {"mse": mse, "psnr": -10 * math.log10(max(mse, 1e-10)), "psnr_per_image": psnr / images}
