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
    """A shift and a scale of the embeddings, saved with the weights, and a linear map beside the layers if wanted."""

    shift: Tensor
    scale: Tensor
    layers: nn.Sequential

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.input_dim, self.dim = input_dim, dim
        self.skip: nn.Linear | None = None
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

    def _build(self, sizes: Sequence[int], activation: str, skip: bool) -> None:
        """Make the layers, and the linear map if ``skip``."""
        self.layers = _mlp(sizes, activation)
        if skip:
            self.skip = nn.Linear(sizes[0], sizes[-1], bias=False)

    @torch.no_grad()
    def start_linear(self, weight: Float[Tensor, "o i"]) -> None:
        """Set the linear map, and the last of the layers to zero, so that the output is that of the map.

        Raises:
            ValueError: If there is no such map, or the shape is wrong.
        """
        if self.skip is None or weight.shape != self.skip.weight.shape:
            wanted = "one without skip" if self.skip is None else f"one of {tuple(self.skip.weight.shape)}"
            raise ValueError(
                f"expected a matrix that fits the network, got {tuple(weight.shape)} for {wanted}; set skip"
            )
        self.skip.weight.copy_(weight)
        for parameter in self.layers[-1].parameters():
            parameter.zero_()

    def _mapped(self, x: Tensor) -> Tensor:
        return self.layers(x) if self.skip is None else self.skip(x) + self.layers(x)


class ItemEncoder(_Scaled):
    """Maps item embeddings to latents: ``mlp((x - shift) / scale)``.

    Args:
        input_dim: Size D of an embedding.
        dim: Size d of a latent.
        hidden: Widths of the hidden layers.
        activation: Between the layers, ``"relu"`` or ``"silu"``.
        skip: Whether to add a linear map to the layers. :class:`gritvq.items.RQVAE` starts it at the principal axes of
            the embeddings and the layers at zero, so that training starts from principal component analysis.

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
        self,
        input_dim: int,
        dim: int = 32,
        *,
        hidden: Sequence[int] = (512, 256, 128),
        activation: Activation = "relu",
        skip: bool = False,
    ) -> None:
        super().__init__(input_dim, dim)
        self._build([input_dim, *hidden, dim], activation, skip)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch d"]:
        """Latents of embeddings.

        Raises:
            ValueError: If the last axis or the type is wrong.
        """
        _check(x, self.input_dim)
        return self._mapped((x - self.shift) / self.scale)


class ItemDecoder(_Scaled):
    """Maps latents back to item embeddings: ``shift + scale * mlp(z)``; the mirror of `ItemEncoder`.

    Args:
        input_dim: Size D of an embedding, the output.
        dim: Size d of a latent.
        hidden: Widths of the encoder's hidden layers, in the encoder's order.
        activation: Between the layers, ``"relu"`` or ``"silu"``.
        skip: Whether to add a linear map to the layers. :class:`gritvq.items.RQVAE` starts it at the principal axes of
            the embeddings and the layers at zero, so that training starts from principal component analysis.

    Raises:
        ValueError: If a size is not positive or the activation is unknown.

    Example:
        >>> ItemDecoder(384)(torch.randn(2, 32)).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        input_dim: int,
        dim: int = 32,
        *,
        hidden: Sequence[int] = (512, 256, 128),
        activation: Activation = "relu",
        skip: bool = False,
    ) -> None:
        super().__init__(input_dim, dim)
        self._build([dim, *reversed(hidden), input_dim], activation, skip)

    def forward(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch D"]:
        """Embeddings of latents, in the original scale.

        Raises:
            ValueError: If the last axis or the type is wrong.
        """
        _check(z, self.dim)
        return self.shift + self.scale * self._mapped(z)


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
