"""Vision transformers as encoder and decoder of images, without convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component, check_integer
from gritvq.images.networks.convolutional import ChannelsToPatches, PatchesToChannels

__all__ = ["ViTDecoder", "ViTEncoder"]


class ViTEncoder(Component):
    """A vision transformer: linear map of each patch, positions, pre-norm blocks, linear map to ``dim``.

    Positions are sines and cosines of rows and columns, so that pictures may have any size.

    Args:
        dim: Size D of an output vector.
        channels: Color channels C of the pictures.
        width: Size of a token between the blocks, a multiple of 4 and of ``num_heads``.
        factor: Pixels per token and side.
        depth: Blocks.
        num_heads: Attention heads.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> ViTEncoder(8, width=16, factor=4, depth=1, num_heads=2)(torch.rand(2, 3, 16, 8)).shape
        torch.Size([2, 4, 2, 8])

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929; positions as in He et al.,
        "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377.
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 3,
        width: int = 384,
        factor: int = 16,
        depth: int = 6,
        num_heads: int = 6,
    ) -> None:
        super().__init__()
        _check_arguments(dim, channels, width, factor, depth, num_heads)
        self.dim, self.channels, self.factor = dim, channels, factor
        self.from_pixels = nn.Linear(channels * factor**2, width)
        self.trunk = _Trunk(width, depth, num_heads)
        self.to_codes = nn.Linear(width, dim)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        """Encodes a batch of pictures.

        Args:
            images: Pictures with values in [0, 1]; H and W are multiples of ``factor``.

        Raises:
            ValueError: If the shape does not fit.
        """
        f = self.factor
        if images.ndim != 4 or images.shape[1] != self.channels or images.shape[2] % f or images.shape[3] % f:
            raise ValueError(
                f"expected pictures (B, {self.channels}, H, W) with sides that are multiples of {f}, got "
                f"{tuple(images.shape)}; pad or crop them"
            )
        patches = PatchesToChannels(f)(2 * images - 1).permute(0, 2, 3, 1)
        return self.to_codes(self.trunk(self.from_pixels(patches)))


class ViTDecoder(Component):
    """The mirror of :class:`ViTEncoder`: linear map of each vector, positions, blocks, linear map to pixels.

    Args:
        dim: Size D of an input vector.
        channels: Color channels C of the pictures.
        width: Size of a token between the blocks, a multiple of 4 and of ``num_heads``.
        factor: Pixels per token and side.
        depth: Blocks.
        num_heads: Attention heads.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> ViTDecoder(8, width=16, factor=4, depth=1, num_heads=2)(torch.randn(2, 4, 2, 8)).shape
        torch.Size([2, 3, 16, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 3,
        width: int = 384,
        factor: int = 16,
        depth: int = 6,
        num_heads: int = 6,
    ) -> None:
        super().__init__()
        _check_arguments(dim, channels, width, factor, depth, num_heads)
        self.dim, self.channels, self.factor = dim, channels, factor
        self.from_codes = nn.Linear(dim, width)
        self.trunk = _Trunk(width, depth, num_heads)
        self.to_pixels = nn.Linear(width, channels * factor**2)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the map to pixels, where adversarial losses are weighed."""
        return self.to_pixels.weight

    def forward(self, vectors: Float[Tensor, "B h w D"]) -> Float[Tensor, "B C H W"]:
        """Decodes a batch of vector grids.

        Returns:
            Pictures (B, C, factor h, factor w) with values about [0, 1], not clamped.

        Raises:
            ValueError: If the shape does not fit.
        """
        if vectors.ndim != 4 or vectors.shape[3] != self.dim:
            raise ValueError(f"expected vectors (B, h, w, {self.dim}), got {tuple(vectors.shape)}; put components last")
        patches = self.to_pixels(self.trunk(self.from_codes(vectors)))
        return (ChannelsToPatches(self.factor)(patches.permute(0, 3, 1, 2)) + 1) / 2


class _Trunk(nn.Module):
    """Positions, blocks and a last normalization; keeps the shape (B, h, w, width)."""

    def __init__(self, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        height, width = tokens.shape[1:3]
        x = (tokens + _positions(height, width, tokens.shape[3], tokens)).flatten(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).unflatten(1, (height, width))


class _Block(nn.Module):
    """Attention and a feed-forward network of four times the width, each after a normalization and residual."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project_in(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.project_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def _positions(height: int, width: int, dim: int, like: Tensor) -> Tensor:
    """Sines and cosines of rows, then of columns, a quarter of ``dim`` each: (height, width, dim)."""
    rates = 10000 ** (-torch.arange(dim // 4, device=like.device, dtype=torch.float32) / (dim // 4))
    waves = [torch.arange(side, device=like.device, dtype=torch.float32)[:, None] * rates for side in (height, width)]
    rows, columns = (torch.cat([each.sin(), each.cos()], 1) for each in waves)
    both = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
    return torch.cat(both, 2).to(like.dtype)


def _check_arguments(dim: int, channels: int, width: int, factor: int, depth: int, num_heads: int) -> None:
    for name, value in (
        ("dim", dim),
        ("channels", channels),
        ("factor", factor),
        ("depth", depth),
        ("num_heads", num_heads),
    ):
        check_integer(name, value)
    if width < 1 or width % 4 or width % num_heads:
        raise ValueError(f"expected width to be a multiple of 4 and of num_heads {num_heads}, got {width}; round it up")
