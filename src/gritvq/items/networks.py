"""Encoder and decoder for item embeddings: multilayer perceptrons on standardized embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component

__all__ = ["ItemDecoder", "ItemEncoder"]

Activation = Literal["relu", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class _Scaled(Component):
    """A shift and a scale of the embeddings, saved with the weights."""

    shift: Tensor
    scale: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))

    def standardize(self, shift: Float[Tensor, " D"], scale: Float[Tensor, " D"]) -> None:
        """Set the shift and the scale of each component of an embedding.

        Raises:
            ValueError: If a shape is wrong or a scale is not positive.
        """
        if shift.shape != self.shift.shape or scale.shape != self.scale.shape:
            told = f"{tuple(shift.shape)} and {tuple(scale.shape)}; match input_dim"
            raise ValueError(f"expected a shift and a scale of shape {tuple(self.shift.shape)}, got {told}")
        if not bool((scale > 0).all()):
            raise ValueError("expected positive scales, got others; give components without variance the scale 1")
        self.shift.copy_(shift)
        self.scale.copy_(scale)


class ItemEncoder(_Scaled):
    """Maps item embeddings to latents: ``mlp((x - shift) / scale)``.

    Args:
        input_dim: Size D of an embedding.
        dim: Size d of a latent.
        hidden: Widths of the hidden layers.
        activation: Between the layers, ``"relu"`` or ``"silu"``.

    Raises:
        ValueError: If a size is not positive or the activation is unknown.

    Example:
        >>> ItemEncoder(384)(torch.rand(2, 384)).shape
        torch.Size([2, 32])

    References:
        The layers of RQ-VAE in Rajput et al., "Recommender Systems with Generative Retrieval" (TIGER), NeurIPS 2023,
        arXiv 2305.05065.
    """

    def __init__(
        self, input_dim: int, dim: int = 32, *, hidden: Sequence[int] = (512, 256, 128), activation: Activation = "relu"
    ) -> None:
        super().__init__(input_dim)
        self.input_dim, self.dim = input_dim, dim
        self.layers = _mlp([input_dim, *hidden, dim], activation)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch d"]:
        """Latents of embeddings.

        Raises:
            ValueError: If the last axis or the type is wrong.
        """
        _check(x, self.input_dim)
        return self.layers((x - self.shift) / self.scale)


class ItemDecoder(_Scaled):
    """Maps latents back to item embeddings: ``shift + scale * mlp(z)``; the mirror of `ItemEncoder`.

    Args:
        input_dim: Size D of an embedding, the output.
        dim: Size d of a latent.
        hidden: Widths of the encoder's hidden layers, in the encoder's order.
        activation: Between the layers, ``"relu"`` or ``"silu"``.

    Raises:
        ValueError: If a size is not positive or the activation is unknown.

    Example:
        >>> ItemDecoder(384)(torch.randn(2, 32)).shape
        torch.Size([2, 384])
    """

    def __init__(
        self, input_dim: int, dim: int = 32, *, hidden: Sequence[int] = (512, 256, 128), activation: Activation = "relu"
    ) -> None:
        super().__init__(input_dim)
        self.input_dim, self.dim = input_dim, dim
        self.layers = _mlp([dim, *reversed(hidden), input_dim], activation)

    def forward(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch D"]:
        """Embeddings of latents, in the original scale.

        Raises:
            ValueError: If the last axis or the type is wrong.
        """
        _check(z, self.dim)
        return self.shift + self.scale * self.layers(z)


def _mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    if min(sizes) < 1:
        raise ValueError(f"expected layer sizes >= 1, got {list(sizes)}; give larger ones")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"expected activation 'relu' or 'silu', got {activation!r}; choose one")
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(sizes)):
        layers += [_ACTIVATIONS[activation]()] if number else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _check(x: Tensor, size: int) -> None:
    if x.ndim < 1 or x.shape[-1] != size or not x.is_floating_point():
        raise ValueError(f"expected a float tensor (*batch, {size}), got {tuple(x.shape)} of {x.dtype}; convert it")
