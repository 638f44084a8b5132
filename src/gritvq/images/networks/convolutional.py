"""Convolutional encoder and decoder for images that train fast on a CPU.

Convolutions are memory-bound with few channels and many pixels, so nothing is computed at full resolution: the encoder
first folds patches of 4 x 4 pixels into channels (space to depth), and the decoder ends with the inverse (pixel
shuffle). In parallel to the deep path there is one linear map per patch. The encoder's is initialized to the whitening
transform of a classical image prior (:func:`patch_prior`), so that initial latents spread evenly in all directions,
like initial codes, and the codebook needs no initialization from data. The residual blocks start as the identity.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component
from gritvq.quantizers.canonical import canonical_eigh

_Layer = TypeVar("_Layer", bound=nn.Module)
_GROUP = 8  # channels per normalization group
_MAX_PATCH = 4  # pixels per side folded into channels at first; larger factors need strided stages


class PatchesToChannels(nn.PixelUnshuffle):
    """Folds patches into channels; also those of no images, which PyTorch's module returns unfolded."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_f_f h w"]:
        """See the class."""
        if torch.compiler.is_compiling() or len(input):
            return super().forward(input)
        f, (_, channels, height, width) = self.downscale_factor, input.shape
        return input.reshape(0, channels * f * f, height // f, width // f)


class ChannelsToPatches(nn.PixelShuffle):
    """The inverse; also of no images, for which PyTorch's module has a gradient of another shape."""

    def forward(self, input: Float[Tensor, "B C_f_f h w"]) -> Float[Tensor, "B C H W"]:
        """See the class."""
        if torch.compiler.is_compiling() or len(input):
            return super().forward(input)
        f, (_, channels, height, width) = self.upscale_factor, input.shape
        return input.reshape(0, channels // (f * f), height * f, width * f)


class ImageEncoder(Component):
    """Maps images to a grid of continuous vectors, one per patch of ``factor`` x ``factor`` pixels.

    ``z = deep(x) + linear(x)``: a residual convolutional network plus a linear map of each patch, which starts as a
    whitening transform. Initially vectors have a norm of about 1, as initial codes have, for all ``dim`` and
    ``factor``.

    Args:
        dim: Size D of an output vector.
        channels: Color channels C of the images.
        width: Channels of the hidden layers, a multiple of 8. Time and parameters grow with its square.
        factor: Pixels per token and side: 2, 4, 8 or 16.
        num_blocks: Residual blocks per resolution: one resolution for factors 2 and 4, two for 8, three for 16.
        attention: Whether to add one self-attention layer at the lowest resolution. Its cost grows with the square of
            the number of positions.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> encoder = ImageEncoder(16, factor=4)
        >>> encoder(torch.rand(2, 3, 32, 48)).shape
        torch.Size([2, 8, 12, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 3,
        width: int = 64,
        factor: int = 4,
        num_blocks: int = 2,
        attention: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(dim, channels, width, factor, num_blocks)
        self.dim, self.channels, self.factor = dim, channels, factor
        patch = min(factor, _MAX_PATCH)
        layers: list[nn.Module] = [PatchesToChannels(patch), nn.Conv2d(channels * patch**2, width, 3, padding=1)]
        layers += [_ResidualBlock(width) for _ in range(num_blocks)]
        for _ in range(_num_strides(factor)):
            layers += [nn.Conv2d(width, width, 2, stride=2), *(_ResidualBlock(width) for _ in range(num_blocks))]
        layers += [_SelfAttention(width)] if attention else []
        # SiLU of a unit normal number has a mean square of .36.
        last = _initialized(nn.Conv2d(width, dim, 1), 0.5 / math.sqrt(0.36 * width * dim))
        self.deep = nn.Sequential(*layers, _norm(width), nn.SiLU(), last)
        self.linear = _initialized(nn.Conv2d(channels, dim, factor, stride=factor))
        basis, deviation = patch_prior(channels, factor, dim)
        with torch.no_grad():
            self.linear.weight[: len(basis)] = basis / (deviation * math.sqrt(len(basis)))[:, None, None, None]

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        """Encodes a batch of images.

        Args:
            images: Images with values in [0, 1]; H and W are multiples of ``factor``.

        Returns:
            One vector of size D per patch, channels last: (B, H / factor, W / factor, D).

        Raises:
            ValueError: If the shape or the type does not fit.
        """
        batch = f"a float tensor (B, {self.channels}, H, W) with values in [0, 1]"
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise ValueError(
                f"expected {batch}, got {tuple(images.shape)} of {images.dtype}; put the channels second, divide bytes "
                "by 255, or build the encoder with another `channels`."
            )
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ValueError(
                f"expected H and W to be multiples of {self.factor}, got {images.shape[2]} x {images.shape[3]}; pad or "
                "crop the images."
            )
        x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        return (self.deep(x) + self.linear(x)).permute(0, 2, 3, 1)


class ImageDecoder(Component):
    """Maps a grid of vectors back to images; the mirror of `ImageEncoder`.

    Args:
        dim: Size D of an input vector.
        channels: Color channels C of the images.
        width: Channels of the hidden layers, a multiple of 8.
        factor: Pixels per token and side: 2, 4, 8 or 16.
        num_blocks: Residual blocks per resolution.
        attention: Whether to add one self-attention layer at the lowest resolution.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> decoder = ImageDecoder(16, factor=4)
        >>> decoder(torch.randn(2, 8, 12, 16)).shape
        torch.Size([2, 3, 32, 48])
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 3,
        width: int = 64,
        factor: int = 4,
        num_blocks: int = 2,
        attention: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(dim, channels, width, factor, num_blocks)
        self.dim, self.channels, self.factor = dim, channels, factor
        patch = min(factor, _MAX_PATCH)
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1)]
        layers += [_SelfAttention(width)] if attention else []
        for _ in range(_num_strides(factor)):
            layers += [_ResidualBlock(width) for _ in range(num_blocks)]
            layers += [nn.ConvTranspose2d(width, width, 2, stride=2)]
        layers += [_ResidualBlock(width) for _ in range(num_blocks)]
        last = _initialized(nn.Conv2d(width, channels * patch**2, 3, padding=1))
        self.deep = nn.Sequential(*layers, _norm(width), nn.SiLU(), last, ChannelsToPatches(patch))
        self.linear = nn.ConvTranspose2d(dim, channels, factor, stride=factor)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where adversarial losses are weighed."""
        weight: Tensor = self.deep[-2].weight  # type: ignore[assignment]
        return weight

    def forward(self, vectors: Float[Tensor, "B h w D"]) -> Float[Tensor, "B C H W"]:
        """Decodes a batch of vector grids.

        Args:
            vectors: One vector of size D per patch, channels last.

        Returns:
            Images (B, C, factor h, factor w) with values about [0, 1], not clamped.

        Raises:
            ValueError: If the shape or the type does not fit.
        """
        if vectors.ndim != 4 or vectors.shape[3] != self.dim or not vectors.is_floating_point():
            raise ValueError(
                f"expected a float tensor (B, h, w, {self.dim}), got {tuple(vectors.shape)} of {vectors.dtype}; put "
                "the vector's components last, or build the decoder with another `dim`."
            )
        z = vectors.permute(0, 3, 1, 2)
        return (self.deep(z) + self.linear(z) + 1) / 2


def patch_prior(
    channels: int, factor: int, num_components: int
) -> tuple[Float[Tensor, "n C f f"], Float[Tensor, " n"]]:
    """Principal components of image patches under a fixed prior that resembles photographs.

    Pixels in [-1, 1] have standard deviation 1/2; two of them correlate by 0.95 to the power of their euclidean
    distance, two color channels by 0.9.

    Args:
        channels: Color channels C.
        factor: Side f of a patch in pixels.
        num_components: Largest number of components n; there are ``C f^2``.

    Returns:
        Unit components by decreasing variance, and the standard deviation along each. Within the eigenspaces of equal
        variance they are those of :func:`~gritvq.quantizers.canonical.canonical_eigh`, the same on every machine.

    Example:
        >>> basis, deviation = patch_prior(1, 2, 4)
        >>> basis[0, 0].abs(), bool((deviation[:-1] >= deviation[1:]).all())
        (tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]]), True)

    References:
        The isotropic first-order Markov model of Jain, "Fundamentals of Digital Image Processing", 1989.
    """
    place = torch.cartesian_prod(torch.arange(factor), torch.arange(factor)).double()
    space_values, space = canonical_eigh(0.95 ** torch.cdist(place, place))
    color_values, color = canonical_eigh(0.9 + 0.1 * torch.eye(channels, dtype=torch.float64))
    values = 0.25 * torch.outer(color_values, space_values).flatten()
    order = values.argsort(descending=True, stable=True)[:num_components]
    basis = torch.einsum("dc,ps->csdp", color, space).reshape(-1, channels, factor, factor)
    return basis[order].float(), values[order].sqrt().float()


def num_parameters(module: nn.Module) -> int:
    """Number of trainable scalars of a module; a shared parameter counts once.

    Example:
        >>> num_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


class _ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``, initially the identity; keeps the shape (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(_norm(width), nn.SiLU(), first, _norm(width), nn.SiLU(), _initialized(last))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _SelfAttention(nn.Module):
    """Residual multi-head self-attention over all positions, initially the identity; keeps the shape (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = width // 32 if width % 32 == 0 else 1
        self.norm = _norm(width)
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = _initialized(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        query, key, value = self.project_in(rows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.project_out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // _GROUP, width)


def _initialized(layer: _Layer, std: float = 0.0) -> _Layer:
    """Draws the layer's weights from N(0, std^2) and zeroes its bias."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=std if parameter.ndim > 1 else 0.0)
    return layer


def _num_strides(factor: int) -> int:
    """Number of halvings after the patches."""
    return max(0, (factor // _MAX_PATCH).bit_length() - 1)


def _check_arguments(dim: int, channels: int, width: int, factor: int, num_blocks: int) -> None:
    for name, value, least in (("dim", dim, 1), ("channels", channels, 1), ("num_blocks", num_blocks, 0)):
        if value < least:
            raise ValueError(f"expected {name} >= {least}, got {value}; give a larger {name}.")
    if width < _GROUP or width % _GROUP:
        raise ValueError(f"expected width to be a positive multiple of {_GROUP}, got {width}; round it up or down.")
    if factor not in (2, 4, 8, 16):
        raise ValueError(f"expected factor to be 2, 4, 8 or 16, got {factor}; choose one of these.")
