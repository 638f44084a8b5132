"""Metrics of pictures and their reconstructions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from gritvq.distributed import all_reduce_sum

__all__ = ["ReconstructionError", "StructuralSimilarity", "prior_bits_per_pixel", "to_uint8"]

_WINDOW, _SIGMA = 11, 1.5  # of SSIM, pixels


def to_uint8(images: Tensor) -> UInt8[Tensor, "*batch C H W"]:
    """Pictures with values in [0, 1] as 8 bits: ``round(255 x)``, clamped to 0..255; uint8 stays as it is.

    The one rounding of files and evaluations.

    Example:
        >>> to_uint8(torch.tensor([-0.1, 0.5, 1.2])).tolist()
        [0, 128, 255]
    """
    return images if images.dtype == torch.uint8 else (255 * images).round().clamp(0, 255).to(torch.uint8)


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


class StructuralSimilarity:
    r"""Structural similarity (SSIM) of pictures with values in [0, 1].

    The mean over all places, channels and pictures of

    .. math:: \frac{(2 \mu_x \mu_y + .01^2) (2 \sigma_{xy} + .03^2)}
        {(\mu_x^2 + \mu_y^2 + .01^2) (\sigma_x^2 + \sigma_y^2 + .03^2)}

    with moments in a Gaussian window of 11 x 11 pixels (standard deviation 1.5) that lies inside of the picture.
    Reconstructions are clamped. Smaller pictures have no window, so they do not count.

    Example:
        >>> metric, x = StructuralSimilarity(), torch.rand(2, 1, 16, 16)
        >>> metric.update(x, x)
        >>> metric.compute()
        {'ssim': 1.0}

    References:
        Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE Transactions on
        Image Processing 2004, equation 13; per channel.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, reconstruction: Float[Tensor, "B C H W"], images: Float[Tensor, "B C H W"]) -> None:
        """Add a batch; shapes must agree."""
        if reconstruction.shape != images.shape:
            raise ValueError(f"expected equal shapes, got {tuple(reconstruction.shape)} and {tuple(images.shape)}")
        if min(images.shape[-2:]) < _WINDOW:
            return
        x, y = reconstruction.detach().double().clamp(0, 1).flatten(0, 1), images.detach().double().flatten(0, 1)
        offsets = torch.arange(_WINDOW, device=x.device, dtype=x.dtype) - _WINDOW // 2
        window = (-0.5 * (offsets / _SIGMA).square()).exp()
        window = window / window.sum()
        moments = torch.cat([x, y, x * x, y * y, x * y])[:, None]
        moments = F.conv2d(F.conv2d(moments, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
        mx, my, xx, yy, xy = moments.chunk(5)
        likeness = (2 * mx * my + 0.01**2) * (2 * (xy - mx * my) + 0.03**2)
        likeness /= (mx * mx + my * my + 0.01**2) * (xx - mx * mx + yy - my * my + 0.03**2)
        per_picture = likeness.mean((1, 2, 3)).view(len(images), -1).mean(1)
        self.sums = self.sums.to(x.device) + torch.stack([per_picture.sum(), per_picture.new_tensor(len(images))])

    def compute(self) -> dict[str, float]:
        """``ssim`` over all processes; nothing where no picture counted."""
        total, pictures = all_reduce_sum(self.sums).tolist()
        return {"ssim": total / pictures} if pictures else {}


def prior_bits_per_pixel(log_prob: Float[Tensor, " n"], num_pixels: int) -> float:
    """Bits per pixel of pictures whose tokens a prior encodes: ``-mean(log_prob) / (ln 2 * num_pixels)``.

    Args:
        log_prob: Log-likelihood of each picture's tokens in nats, as ``prior.log_prob(tokens)`` gives it.
        num_pixels: Pixels H W of a picture; its channels do not count.

    Example:
        >>> nats = 64 * math.log(1024)  # 64 tokens, all codes equally likely
        >>> round(prior_bits_per_pixel(torch.tensor([-nats, -nats]), 32 * 32), 6)
        0.625
    """
    if num_pixels < 1 or log_prob.numel() == 0:
        raise ValueError(f"expected pictures of at least 1 pixel, got {log_prob.numel()} of {num_pixels} pixels")
    return -float(log_prob.double().mean()) / (math.log(2) * num_pixels)
