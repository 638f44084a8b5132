"""Discriminators: networks that score places of a picture, high where it looks real."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component, check_integer
from gritvq.images.features import Frozen

__all__ = ["FeatureDiscriminator", "PatchDiscriminator"]

_GROUP = 8  # channels per normalization group
_PROBE = 32  # least side of the picture that tells how many channels feature maps have


class PatchDiscriminator(Component):
    """PatchGAN: convolutions that score overlapping patches.

    With three layers a score sees 70 x 70 pixels, with two 34, with one 16.

    Args:
        channels: Color channels C.
        width: Channels of the first layer, a multiple of 8; every further one has twice as many, at most 8 times.
        num_layers: Layers that halve the resolution.

    Attributes:
        least_size: Least height and width of pictures in pixels: ``3 * 2**num_layers``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> PatchDiscriminator(width=8, num_layers=2)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 36])

    References:
        Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, arXiv 1611.07004.
        Deviation: normalization is by groups of channels, not over the batch, so that a picture's score depends on no
        other one; several devices and accumulated batches then give what one large batch gives.
    """

    def __init__(self, channels: int = 3, *, width: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        check_integer("channels", channels), check_integer("num_layers", num_layers)
        if width < _GROUP or width % _GROUP:
            raise ValueError(f"expected width to be a positive multiple of {_GROUP}, got {width}; round it up or down")
        self.channels, self.least_size = channels, 3 * 2**num_layers
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        now = width
        for number in range(1, num_layers + 1):
            wider = width * min(2**number, 8)
            layers += [
                nn.Conv2d(now, wider, 4, stride=2 if number < num_layers else 1, padding=1, bias=False),
                nn.GroupNorm(wider // _GROUP, wider),
                nn.LeakyReLU(0.2),
            ]
            now = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(now, 1, 4, padding=1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n"]:
        """Scores of all patches.

        Args:
            images: In [0, 1].

        Raises:
            ValueError: If the pictures are too small or have other channels.
        """
        if images.shape[1] != self.channels or min(images.shape[-2:]) < self.least_size:
            raise ValueError(
                f"expected pictures of {self.channels} channels and at least {self.least_size} x {self.least_size} "
                f"pixels for PatchDiscriminator, got {tuple(images.shape[1:])}; take fewer layers or other channels"
            )
        return self.layers(2 * images - 1).flatten(1)


class FeatureDiscriminator(Component):
    """Heads on a frozen network: each scores the places of one of its feature maps.

    Features are normalised to unit length at each place and averaged to the grid of the coarsest map, so that every
    layer has the same say. Only the heads learn. The network is float32, in eval mode and no part of the checkpoint.

    Args:
        features: What :class:`gritvq.images.Frozen` takes, such as ``VGG16Features()``.
        channels: Color channels of the pictures.
        width: Channels of a head's hidden layer.

    Raises:
        ValueError: If the network gives no feature maps.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
        >>> FeatureDiscriminator(network, width=16)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 64])

    References:
        After Sauer et al., "Projected GANs Converge Faster", NeurIPS 2021, arXiv 2111.01007, without their random
        mixing of channels and scales; that features are normalised is ours.
    """

    def __init__(self, features: nn.Module, *, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        check_integer("width", width)
        self.channels, self.frozen = channels, Frozen(features)
        side = max(_PROBE, int(getattr(features, "least_size", 1)))
        with torch.no_grad():
            maps = self.frozen(torch.zeros(1, channels, side, side))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(each.shape[1], width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))
            for each in maps
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n"]:
        """Scores of all places in all layers.

        Args:
            images: In [0, 1].

        Raises:
            ValueError: If the pictures are too small for the network.
        """
        maps = self.frozen(images)
        height, width = min((each.shape[-2:] for each in maps), key=lambda shape: shape[0] * shape[1])
        scores = []
        for head, each in zip(self.heads, maps, strict=True):
            unit = F.normalize(each, dim=1) * each.shape[1] ** 0.5
            scores.append(head(F.adaptive_avg_pool2d(unit, (height, width))).flatten(1))
        return torch.cat(scores, 1)
