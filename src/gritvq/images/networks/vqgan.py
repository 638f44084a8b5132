"""VQGAN's convolutional encoder and decoder, with parameters named and shaped as in LlamaGen's tokenizers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component, check_integer

__all__ = ["VQGANDecoder", "VQGANEncoder"]


class VQGANEncoder(Component):
    """VQGAN's encoder: residual blocks at full resolution and at every halving of it, attention at the lowest.

    The defaults are those of LlamaGen's VQ-16: 16 x 16 pixels per token. The parameters have the names and shapes of
    that model's ``encoder``; ``quant_conv`` is its 1 x 1 convolution to the codes.

    Args:
        dim: Size D of an output vector.
        channels: Color channels C of the pictures.
        width: Channels of the first layer, a multiple of ``num_groups``.
        multipliers: Channels at each resolution over ``width``; each but the first halves the resolution.
        num_blocks: Residual blocks per resolution.
        hidden_dim: Channels before the map to ``dim``.
        num_groups: Groups of the normalization.

    Attributes:
        factor: Pixels per token and side, ``2**(len(multipliers) - 1)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> encoder = VQGANEncoder(8, width=8, multipliers=[1, 2], num_blocks=1, hidden_dim=16, num_groups=4)
        >>> encoder(torch.rand(2, 3, 16, 8)).shape
        torch.Size([2, 8, 4, 8])

    References:
        Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (VQGAN), CVPR 2021, arXiv 2012.09841;
        the layout is that of Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
        2024, arXiv 2406.06525, as released. Pictures have values in [0, 1] here; the networks see [-1, 1].
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        hidden_dim: int = 256,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        _check_arguments(dim, channels, width, multipliers, num_blocks, hidden_dim, num_groups)
        self.dim, self.channels, self.factor = dim, channels, 2 ** (len(multipliers) - 1)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        now = width
        for level, multiplier in enumerate(multipliers):
            lowest = level == len(multipliers) - 1
            self.conv_blocks.append(
                _Stage(
                    now,
                    width * multiplier,
                    num_blocks,
                    num_groups,
                    attention=lowest,
                    resampling=None if lowest else "downsample",
                )
            )
            now = width * multiplier
        self.mid = _middle(now, num_groups)
        self.norm_out = _norm(now, num_groups)
        self.conv_out = nn.Conv2d(now, hidden_dim, 3, padding=1)
        self.quant_conv = nn.Conv2d(hidden_dim, dim, 1)

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
        h = self.conv_in(2 * images - 1)
        for part in (*self.conv_blocks, *self.mid):
            h = part(h)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(h)))).permute(0, 2, 3, 1)


class VQGANDecoder(Component):
    """VQGAN's decoder, the mirror of :class:`VQGANEncoder` with one more residual block per resolution.

    The parameters have the names and shapes of LlamaGen's ``decoder``; ``post_quant_conv`` is its 1 x 1 convolution
    from the codes.

    Args:
        dim: Size D of an input vector.
        channels: Color channels C of the pictures.
        width: Channels at full resolution, a multiple of ``num_groups``.
        multipliers: Channels at each resolution over ``width``, from the full resolution down.
        num_blocks: Residual blocks per resolution of the encoder.
        hidden_dim: Channels after the map from ``dim``.
        num_groups: Groups of the normalization.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> decoder = VQGANDecoder(8, width=8, multipliers=[1, 2], num_blocks=1, hidden_dim=16, num_groups=4)
        >>> decoder(torch.randn(2, 8, 4, 8)).shape
        torch.Size([2, 3, 16, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        hidden_dim: int = 256,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        _check_arguments(dim, channels, width, multipliers, num_blocks, hidden_dim, num_groups)
        self.dim, self.channels, self.factor = dim, channels, 2 ** (len(multipliers) - 1)
        now = width * multipliers[-1]
        self.post_quant_conv = nn.Conv2d(dim, hidden_dim, 1)
        self.conv_in = nn.Conv2d(hidden_dim, now, 3, padding=1)
        self.mid = _middle(now, num_groups)
        self.conv_blocks = nn.ModuleList()
        for level in reversed(range(len(multipliers))):
            wanted = width * multipliers[level]
            self.conv_blocks.append(
                _Stage(
                    now,
                    wanted,
                    num_blocks + 1,
                    num_groups,
                    attention=level == len(multipliers) - 1,
                    resampling="upsample" if level else None,
                )
            )
            now = wanted
        self.norm_out = _norm(now, num_groups)
        self.conv_out = nn.Conv2d(now, channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where adversarial losses are weighed."""
        return self.conv_out.weight

    def forward(self, vectors: Float[Tensor, "B h w D"]) -> Float[Tensor, "B C H W"]:
        """Decodes a batch of vector grids.

        Returns:
            Pictures (B, C, factor h, factor w) with values about [0, 1], not clamped.

        Raises:
            ValueError: If the shape does not fit.
        """
        if vectors.ndim != 4 or vectors.shape[3] != self.dim:
            raise ValueError(f"expected vectors (B, h, w, {self.dim}), got {tuple(vectors.shape)}; put components last")
        h = self.conv_in(self.post_quant_conv(vectors.permute(0, 3, 1, 2)))
        for part in (*self.mid, *self.conv_blocks):
            h = part(h)
        return (self.conv_out(F.silu(self.norm_out(h))) + 1) / 2


class _Stage(nn.Module):
    """Blocks of one resolution, each followed by attention or not, and the way to the next resolution."""

    def __init__(
        self, given: int, wanted: int, num_blocks: int, num_groups: int, *, attention: bool, resampling: str | None
    ) -> None:
        super().__init__()
        widths = [given, *[wanted] * num_blocks]
        self.res = nn.ModuleList(_Residual(a, b, num_groups) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(_Attention(wanted, num_groups) for _ in range(num_blocks if attention else 0))
        if resampling == "downsample":
            self.downsample = _Resampling(wanted, down=True)
        elif resampling == "upsample":
            self.upsample = _Resampling(wanted, down=False)

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                x = self.get_submodule(name)(x)
        return x


class _Residual(nn.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``."""

    def __init__(self, given: int, wanted: int, num_groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(given, num_groups), nn.Conv2d(given, wanted, 3, padding=1)
        self.norm2, self.conv2 = _norm(wanted, num_groups), nn.Conv2d(wanted, wanted, 3, padding=1)
        self.nin_shortcut = nn.Identity() if given == wanted else nn.Conv2d(given, wanted, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class _Attention(nn.Module):
    """Attention with one head over all positions, residual."""

    def __init__(self, width: int, num_groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, num_groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class _Resampling(nn.Module):
    """Half the resolution by a strided convolution, zeros at the right and below; or twice, repeated and convolved."""

    def __init__(self, width: int, *, down: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(width: int, num_groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [_Residual(width, width, num_groups), _Attention(width, num_groups), _Residual(width, width, num_groups)]
    )


def _norm(width: int, num_groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups, width, eps=1e-6)


def _check_arguments(
    dim: int, channels: int, width: int, multipliers: Sequence[int], num_blocks: int, hidden_dim: int, num_groups: int
) -> None:
    for name, value in (
        ("dim", dim),
        ("channels", channels),
        ("num_blocks", num_blocks),
        ("hidden_dim", hidden_dim),
        ("num_groups", num_groups),
    ):
        check_integer(name, value)
    if width < 1 or width % num_groups:
        raise ValueError(f"expected width to be a multiple of num_groups {num_groups}, got {width}; change one of them")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"expected multipliers >= 1, one per resolution, got {list(multipliers)}")
