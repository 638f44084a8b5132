"""Structures: quantizers made of quantizers.

A sum (residual) or a concatenation (product) asks its parts for hard values only and applies one surrogate to the
whole. So the encoder gets the upstream gradient once, whatever the number of parts.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.base import Quantizer, QuantizerOutput, describe, least_exact
from gritvq.functional import wide

__all__ = ["ProductQuantizer", "ProjectedQuantizer", "ResidualQuantizer"]


class _Stack(Quantizer):
    """Several quantizers under one surrogate; subclasses say how vectors are shared out and put together."""

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        super().__init__()
        if len(quantizers) < 1:
            raise ValueError("expected at least one quantizer, got none")
        for part in quantizers:
            if type(part).before is not Quantizer.before or type(part).after is not Quantizer.after:
                raise ValueError(
                    f"expected parts that map nothing before or after quantizing, got {type(part).__name__}; put the "
                    f"whole {type(self).__name__} into a ProjectedQuantizer instead"
                )
        surrogates = [None if part.surrogate is None else describe(part.surrogate) for part in quantizers]
        if any(surrogate != surrogates[0] for surrogate in surrogates):
            names = [type(part.surrogate).__name__ for part in quantizers]
            raise ValueError(f"expected one surrogate for all parts, got {names}; give every part the same one")
        self.quantizers = nn.ModuleList(quantizers)
        self.surrogate = copy.deepcopy(quantizers[0].surrogate)
        self.codebook_sizes = tuple(size for part in quantizers for size in part.codebook_sizes)
        self.exact = least_exact(*(part.exact for part in quantizers))
        self.draws_indices = any(part.draws_indices for part in quantizers)

    def _parts(self) -> list[Quantizer]:
        return cast("list[Quantizer]", list(self.quantizers))

    def _channels(self, indices: Int[Tensor, "*tokens Q"]) -> list[Tensor]:
        """The index channels of each part."""
        return list(indices.split([len(part.codebook_sizes) for part in self._parts()], dim=-1))

    def fold(self) -> Quantizer:
        """The same structure of folded parts."""
        return self._rebuilt([part.fold() for part in self._parts()]).eval()

    @abstractmethod
    def _rebuilt(self, quantizers: Sequence[Quantizer]) -> Quantizer:
        """The same structure of other parts."""


class ResidualQuantizer(_Stack):
    """Residual quantization: every level quantizes what the levels before left over; the value is the sum.

    ``r_1 = x``, ``q_l = Q_l(r_l)``, ``r_{l+1} = r_l - sg(q_l)``, value ``sum_l q_l``. A vector's first n index channels
    are a coarser description of it: channels of -1 add nothing, so ``decode(indices[..., :n])`` works for every n.

    Args:
        quantizers: The levels, all of the same ``dim``; the same object several times shares one codebook.
        dropout: Probability, in training, that a sample (first axis) keeps only its first n levels, n uniform in
            ``1 .. L``; drawn from torch's global generator. The dropped channels are -1.

    Raises:
        ValueError: If the levels do not fit together.

    Example:
        >>> from gritvq import FreeCodebook, VectorQuantizer
        >>> quantizer = ResidualQuantizer([VectorQuantizer(FreeCodebook(4, 16)) for _ in range(3)])
        >>> quantized, indices, losses = quantizer(torch.randn(2, 5, 4))
        >>> indices.shape, sorted(losses)[:2]
        (torch.Size([2, 5, 3]), ['0/codebook', '0/commitment'])
        >>> quantizer.decode(indices[..., :1]).shape
        torch.Size([2, 5, 4])

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022, arXiv 2203.01941;
        Zeghidour et al., "SoundStream", 2021, arXiv 2107.03312 (dropout of levels).
    """

    def __init__(self, quantizers: Sequence[Quantizer], *, dropout: float = 0.0) -> None:
        super().__init__(quantizers)
        dims = [part.dim for part in quantizers]
        if len(set(dims)) != 1:
            raise ValueError(f"expected levels of one dim, got {dims}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"expected dropout in [0, 1], got {dropout!r}")
        self.dim, self.dropout = dims[0], float(dropout)

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Level by level."""
        x = wide(x)
        total = torch.zeros(x.shape, device=x.device)  # float32 as the codes are; wider if they are
        kept = self._kept(x)
        channels: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        for level, part in enumerate(self._parts()):
            own = valid if kept is None else valid & (kept > level)
            output = part.quantize(x - total.detach(), own)
            total = total + torch.where(own.unsqueeze(-1), output.quantized, 0)
            channels.append(output.indices)
            losses.update({f"{level}/{name}": loss for name, loss in output.losses.items()})
        return QuantizerOutput(total, torch.cat(channels, dim=-1), losses)

    def _kept(self, x: Tensor) -> Tensor | None:
        """Levels kept by each sample, shaped to broadcast over its vectors."""
        if not self.training or self.dropout == 0:
            return None
        shape = (x.shape[0],) + (1,) * (x.ndim - 2) if x.ndim > 1 else ()
        levels = len(self.quantizers)
        some = torch.randint(1, levels + 1, shape, device=x.device)
        return torch.where(torch.rand(shape, device=x.device) < self.dropout, some, levels)

    def lookup(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """Sum of the levels' values."""
        total = torch.zeros(*indices.shape[:-1], self.dim, device=indices.device)
        for part, own in zip(self._parts(), self._channels(indices), strict=True):
            total = total + part.lookup(own)
        return total

    def encode(
        self,
        x: Float[Tensor, "*batch D"],
        mask: Bool[Tensor, "*batch"] | None = None,
        num_levels: int | None = None,
    ) -> Int[Tensor, "*batch Q"]:
        """Indices, of the first ``num_levels`` levels where given."""
        indices = super().encode(x, mask)
        if num_levels is None:
            return indices
        if not 1 <= num_levels <= len(self.quantizers):
            raise ValueError(f"expected num_levels in 1 .. {len(self.quantizers)}, got {num_levels}")
        return torch.cat(self._channels(indices)[:num_levels], dim=-1)

    def decode(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """Values of indices; fewer channels than there are give the sum of the first levels."""
        missing = len(self.codebook_sizes) - (indices.shape[-1] if indices.ndim else 0)
        if missing > 0 and indices.ndim and indices.shape[-1]:
            indices = F.pad(indices, (0, missing), value=-1)
        return super().decode(indices)

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit each level to what the levels before leave over."""
        self._check_input(x, None)
        rows = wide(x.detach()).reshape(-1, self.dim)
        rows = rows[torch.isfinite(rows).all(1)]
        seen: set[Quantizer] = set()
        for part in self._parts():
            if part not in seen:
                part.initialize_codebook(rows, generator)
                seen.add(part)
            with torch.no_grad():
                rows = rows - part.decode(part.encode(rows))

    def _rebuilt(self, quantizers: Sequence[Quantizer]) -> ResidualQuantizer:
        return ResidualQuantizer(quantizers)


class ProductQuantizer(_Stack):
    """Product quantization: the components are split among several quantizers, the values are concatenated.

    Args:
        quantizers: The parts; the vector's size is the sum of theirs.

    Raises:
        ValueError: If the parts do not fit together.

    Example:
        >>> from gritvq import FreeCodebook, VectorQuantizer
        >>> quantizer = ProductQuantizer([VectorQuantizer(FreeCodebook(2, 16)) for _ in range(3)])
        >>> quantizer.dim, quantizer.codebook_sizes, quantizer(torch.randn(5, 6)).indices.shape
        (6, (16, 16, 16), torch.Size([5, 3]))

    References:
        Jegou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011.
    """

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        super().__init__(quantizers)
        self.dims = [part.dim for part in quantizers]
        self.dim = sum(self.dims)

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Part by part."""
        outputs = [part.quantize(own, valid) for part, own in zip(self._parts(), x.split(self.dims, -1), strict=True)]
        losses = {f"{n}/{name}": loss for n, output in enumerate(outputs) for name, loss in output.losses.items()}
        values, channels = ([getattr(output, name) for output in outputs] for name in ("quantized", "indices"))
        return QuantizerOutput(torch.cat(values, -1), torch.cat(channels, -1), losses)

    def lookup(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """The parts' values side by side."""
        pairs = zip(self._parts(), self._channels(indices), strict=True)
        return torch.cat([part.lookup(own) for part, own in pairs], -1)

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit each part to its components."""
        self._check_input(x, None)
        for part, own in zip(self._parts(), x.split(self.dims, -1), strict=True):
            part.initialize_codebook(own, generator)

    def _rebuilt(self, quantizers: Sequence[Quantizer]) -> ProductQuantizer:
        return ProductQuantizer(quantizers)


class ProjectedQuantizer(Quantizer):
    """A quantizer in a space of another size: a linear map in front of it and one behind.

    ``value = W_out Q(W_in x + b_in) + b_out``, in float32 also under autocast. The maps get their gradients through the
    quantizer's own surrogate. They start orthogonal and without bias: a bias comparable to the latents would fix the
    sign of every component, and with it all bits of a binary quantizer.

    Args:
        quantizer: The quantizer inside.
        dim: Size of the vectors outside.

    Example:
        >>> from gritvq import FSQ
        >>> quantizer = ProjectedQuantizer(FSQ([8, 5, 5, 5]), 64)
        >>> quantizer(torch.randn(3, 64)).quantized.shape
        torch.Size([3, 64])
    """

    def __init__(self, quantizer: Quantizer, dim: int) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"expected dim >= 1, got {dim!r}")
        self.quantizer = quantizer
        self.dim, self.codebook_sizes = dim, quantizer.codebook_sizes
        self.exact, self.surrogate = quantizer.exact, quantizer.surrogate
        self.draws_indices = quantizer.draws_indices
        self.project_in, self.project_out = nn.Linear(dim, quantizer.input_dim), nn.Linear(quantizer.dim, dim)
        for layer in (self.project_in, self.project_out):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def before(self, x: Float[Tensor, "*batch D"]) -> Tensor:
        """Into the inner space."""
        return self.quantizer.before(_linear(x, self.project_in))

    def after(self, q: Tensor) -> Float[Tensor, "*batch D"]:
        """Back out of it."""
        return _linear(self.quantizer.after(q), self.project_out)

    def quantize(self, x: Tensor, valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """The inner quantizer's."""
        return self.quantizer.quantize(x, valid)

    def lookup(self, indices: Int[Tensor, "*tokens Q"]) -> Tensor:
        """The inner quantizer's."""
        return self.quantizer.lookup(indices)

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit the inner codes to the projected data."""
        self._check_input(x, None)
        with torch.no_grad():
            self.quantizer.initialize_codebook(_linear(x, self.project_in), generator)

    def fold(self) -> ProjectedQuantizer:
        """The same maps around the folded quantizer."""
        folded = ProjectedQuantizer(self.quantizer.fold(), self.dim)
        folded.project_in, folded.project_out = copy.deepcopy(self.project_in), copy.deepcopy(self.project_out)
        return folded.requires_grad_(False).eval()


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer in its own precision, but at least float32."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = wide(layer.weight), wide(layer.bias)
        return F.linear(x.to(weight.dtype), weight, bias)
