"""A hierarchy of quantizers: coarse tokens first, finer ones conditioned on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer, eval_mode
from gritvq.distributed import joined_count
from gritvq.quantizers.base import Quantizer, QuantizerOutput, check_quantizer, least_exact
from gritvq.quantizers.functional import at_least_float32, bits_per_sample
from gritvq.quantizers.structures.pyramid import Pyramid, convolve, pooled_mask
from gritvq.quantizers.structures.stack import folded_parts

__all__ = ["HierarchicalQuantizer"]


class HierarchicalQuantizer(Pyramid):
    """A top-down hierarchy over a square grid: L quantizers, each at twice the resolution of the one before.

    Bottom-up features ``f_L = x``, ``f_l = down(f_{l+1})``. Then, coarse to fine and from a state of 0:
    ``state <- up(state)``, ``z_l = combine(f_l, state)``, ``state <- state + Q_l(z_l)``; the last state is the value.
    ``down`` is a strided convolution with a residual block, ``up`` a transposed convolution, ``combine`` is
    ``f_l - state`` plus a small network that sees both. They start as mean over 2 x 2, copy to 2 x 2, and with nothing
    added: so at first every level quantizes the remainder of the coarser ones.

    Networks lie between the levels, so each level keeps its own surrogate where its codes live, and its losses as
    ``l/...``; losses in nats per vector are counted per vector of the finest level. Under straight-through levels the
    encoder gets the upstream gradient at the start of training.

    Tokens lie coarse to fine, ``(*batch, sum h_l w_l, Q)``, each level row by row. Every level has index channels of
    its own, and -1 in those of the others, so that usage and bits are counted per level. A prefix of whole levels
    decodes to the state these levels reach, brought up to full size.

    Args:
        quantizers: The levels, coarse to fine, with values of size ``dim``; row by row. A level may take larger
            vectors than it returns (such as means and variances): then the additional components start at 0.
        dim: Size D of the vectors.
        width: Hidden channels of the networks; 2 D where None.

    Raises:
        ValueError: If the levels do not fit together.

    Example:
        >>> from gritvq import vq_vae
        >>> quantizer = HierarchicalQuantizer([vq_vae(4, 16), vq_vae(4, 64)], 4)
        >>> quantized, indices, losses = quantizer(torch.randn(2, 8, 8, 4))
        >>> quantized.shape, indices.shape, quantizer.codebook_sizes
        (torch.Size([2, 8, 8, 4]), torch.Size([2, 80, 2]), (16, 64))
        >>> indices[0, [0, -1]].ge(0)
        tensor([[ True, False],
                [False,  True]])
        >>> quantizer.bits((8, 8))
        448.0

    References:
        Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2", NeurIPS 2019, arXiv 1906.00446
        (conditioning of finer levels; there the decoder sees the levels concatenated, here they are added). Takida et
        al., "HQ-VAE", TMLR 2024, arXiv 2401.00365 (injected layers of SQ-VAE-2, which add to a state; with stochastic
        levels this is their form). The networks and their start are our choice.
    """

    def __init__(self, quantizers: Sequence[Quantizer], dim: int, *, width: int | None = None) -> None:
        super().__init__()
        if len(quantizers) < 1:
            raise ValueError("expected at least one quantizer, got none")
        check_integer("dim", dim)
        width = check_integer("width", 2 * dim if width is None else width)
        for level, part in enumerate(quantizers):
            check_quantizer(part)
            if part.dim != dim or part.input_dim < dim:
                raise ValueError(
                    f"expected levels with values of size {dim} made of vectors at least as large, got {part.dim} of "
                    f"{part.input_dim} at level {level}; put it into a ProjectedQuantizer"
                )
            if part.layout:
                raise ValueError(
                    f"expected levels that take every vector on its own, got {type(part).__name__} with the layout "
                    f"{part.layout} at level {level}"
                )
        if any(part.objective != quantizers[0].objective for part in quantizers):
            kinds = [part.objective for part in quantizers]
            raise ValueError(
                f"expected levels whose losses are made for one objective, got {kinds}; their losses cannot be added"
            )
        self.quantizers, self.dim, self.width = nn.ModuleList(quantizers), dim, width
        self.codebook_sizes = tuple(size for part in quantizers for size in part.codebook_sizes)
        self.exact, self.surrogate = least_exact(*(part.exact for part in quantizers)), None
        self.objective = quantizers[0].objective
        # What a coarser level draws in training is what the finer ones see.
        self.draws_indices = any(p.draws_indices for p in quantizers) or any(p.exact == "eval" for p in quantizers[:-1])
        self.layout = (2 ** (len(quantizers) - 1),) * 2
        steps = len(quantizers) - 1
        self.down = nn.ModuleList(_Down(dim, width) for _ in range(steps))  # the first leads to the coarsest level
        self.up = nn.ModuleList(_up(dim) for _ in range(steps))
        self.combine = nn.ModuleList(_Combine(dim, width, part.input_dim) for part in quantizers)

    def _parts(self) -> list[Quantizer]:
        return cast("list[Quantizer]", list(self.quantizers))

    def _dtype(self) -> torch.dtype:
        """The networks' precision, but at least float32: that of features and states."""
        return at_least_float32(cast("_Combine", self.combine[0]).block[0].weight[:0]).dtype  # type: ignore[union-attr,index]

    # --- tokens -------------------------------------------------------------------------------------------------------

    def token_shape(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """``(*batch, H, H)`` becomes ``(*batch, sum h_l^2)``.

        Raises:
            ValueError: If the grid is not square or cannot be halved so often.
        """
        least = self.layout[0]
        if len(batch) < 2 or batch[-1] != batch[-2] or batch[-1] < least or batch[-1] % least:
            raise ValueError(
                f"expected a square grid (*batch, H, H, {self.dim}) with H a multiple of {least}, got the leading "
                f"shape {tuple(batch)}; crop the images or use fewer levels"
            )
        return (*batch[:-2], sum(side**2 for side in self._sides_of(batch[-1])))

    def _sides_of(self, full: int) -> list[int]:
        last = len(self.quantizers) - 1
        return [full >> (last - level) for level in range(last + 1)]

    def _sides(self, num_tokens: int) -> list[int]:
        for levels in range(len(self.quantizers), 0, -1):
            least, rest = divmod(3 * num_tokens, 4**levels - 1)  # h^2 (4^l - 1) / 3 tokens
            side = math.isqrt(least)
            if rest == 0 and side > 0 and side**2 == least:
                return [side << level for level in range(levels)]
        raise ValueError(
            f"expected the tokens of whole levels of a square grid, h^2 + (2h)^2 + ..., got {num_tokens}; the "
            f"hierarchy has {len(self.quantizers)} levels"
        )

    def _full_side(self, sides: list[int]) -> int:
        return sides[0] * self.layout[0]

    def _channels(self, level: int) -> tuple[int, ...]:
        counts = [len(part.codebook_sizes) for part in self._parts()]
        return tuple(range(sum(counts[:level]), sum(counts[: level + 1])))

    def bits(self, batch: tuple[int, ...]) -> float:
        """Every level's tokens times the bits of its own channels."""
        self.token_shape(batch)
        counts: list[int] = []
        for part, side in zip(self._parts(), self._sides_of(batch[-1]), strict=True):
            counts += [math.prod(batch[:-2]) * side**2] * len(part.codebook_sizes)
        return bits_per_sample(self.codebook_sizes, counts)

    # --- levels -------------------------------------------------------------------------------------------------------

    def _features(self, x: Float[Tensor, "B H H D"], valid: Bool[Tensor, "B H H"]) -> list[tuple[Tensor, Tensor]]:
        """Bottom-up features and where they are real, coarse to fine."""
        found = [(x, valid)]
        for level in reversed(range(len(self.down))):
            feature = self.down[level](found[-1][0])
            found.append((feature, pooled_mask(valid, feature.shape[1])))
        return found[::-1]

    def _raised(self, state: Tensor, level: int) -> Tensor:
        """The state at the resolution of a level, from that of the one before."""
        return convolve(state, cast("nn.ConvTranspose2d", self.up[level - 1])) if level else state

    def quantize(self, x: Float[Tensor, "*batch H H D"], valid: Bool[Tensor, "*batch H H"]) -> QuantizerOutput:
        """Level by level, coarse to fine; the value is differentiable in ``x`` through the levels' surrogates."""
        batch, side = x.shape[:-3], x.shape[-2]
        x, valid = x.to(self._dtype()).reshape(-1, side, side, self.dim), valid.reshape(-1, side, side)
        features = self._features(x, valid)
        state = torch.zeros_like(features[0][0])
        tokens: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        before = 0
        for level, (part, (feature, seen)) in enumerate(zip(self._parts(), features, strict=True)):
            state = self._raised(state, level)
            output = part(self.combine[level](feature, state), seen)
            state = state + output.quantized
            channels = len(part.codebook_sizes)
            after = len(self.codebook_sizes) - before - channels
            tokens.append(F.pad(output.indices.flatten(1, 2), (before, after), value=-1))
            losses.update({f"{level}/{name}": loss * self._share(seen, valid) for name, loss in output.losses.items()})
            before += channels
        indices = torch.cat(tokens, 1)
        return QuantizerOutput(state.view(*batch, *state.shape[1:]), indices.view(*batch, *indices.shape[1:]), losses)

    def _share(self, seen: Bool[Tensor, "B h h"], valid: Bool[Tensor, "B H H"]) -> Tensor | float:
        """What a level's losses count for: 1, but for nats per vector its vectors per vector of the finest level."""
        if self.objective not in ("arelbo", "albo"):
            return 1.0
        return joined_count(seen) / joined_count(valid).clamp_min(1)

    def lookup(self, indices: Int[Tensor, "*batch T Q"]) -> Float[Tensor, "*batch H H D"]:
        """The top-down pass again, from the codes alone."""
        batch, flat = indices.shape[:-2], indices.reshape(-1, *indices.shape[-2:])
        levels = self._levels(flat)
        state = torch.zeros(*levels[0].shape[:-1], self.dim, dtype=self._dtype(), device=indices.device)
        before = 0
        for level, part in enumerate(self._parts()):
            state = self._raised(state, level)
            if level < len(levels):
                own = levels[level][..., before : before + len(part.codebook_sizes)]
                state = state + part.decode(own)
            before += len(part.codebook_sizes)
        return state.view(*batch, *state.shape[1:])

    @torch.no_grad()
    def initialize_codebook(self, x: Float[Tensor, "*batch H H D"], generator: torch.Generator | None = None) -> None:
        """Fit level after level to what the networks, as they are, hand to it."""
        self._check_input(x, None)
        side = x.shape[-2]
        x = x.detach().to(self._dtype()).reshape(-1, side, side, self.dim)
        valid = torch.isfinite(x).all(-1)
        with eval_mode(self):
            features = self._features(torch.where(valid.unsqueeze(-1), x, 0), valid)
            state = torch.zeros_like(features[0][0])
            started: set[Quantizer] = set()
            for level, (part, (feature, seen)) in enumerate(zip(self._parts(), features, strict=True)):
                state = self._raised(state, level)
                z = self.combine[level](feature, state)
                if part not in started:
                    part.initialize_codebook(z[seen], generator)
                    started.add(part)
                state = state + part(z, seen).quantized

    def fold(self) -> HierarchicalQuantizer:
        """The same networks around the folded levels; a level that appears several times is folded once."""
        folded = HierarchicalQuantizer(folded_parts(self._parts()), self.dim, width=self.width)
        folded.down, folded.up = copy.deepcopy(self.down), copy.deepcopy(self.up)
        folded.combine = copy.deepcopy(self.combine)
        return folded.requires_grad_(False).eval()


class _Down(nn.Module):
    """Half the resolution: a strided convolution, at first the mean, and a residual block, at first nothing."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, dim, 2, stride=2)
        self.block = _network(dim, width, dim)
        with torch.no_grad():
            self.reduce.weight.copy_(torch.eye(dim)[:, :, None, None].expand(-1, -1, 2, 2) / 4)
            self.reduce.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Float[Tensor, "B H H D"]) -> Float[Tensor, "B h h D"]:
        y = convolve(x, self.reduce)
        return y + _through(y, self.block)


def _up(dim: int) -> nn.ConvTranspose2d:
    """Twice the resolution, at first by copies."""
    layer = nn.ConvTranspose2d(dim, dim, 2, stride=2)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(dim)[:, :, None, None].expand(-1, -1, 2, 2))
        layer.bias.zero_()  # type: ignore[union-attr]
    return layer


class _Combine(nn.Module):
    """Feature and state into what a level quantizes: at first their difference."""

    def __init__(self, dim: int, width: int, output_dim: int) -> None:
        super().__init__()
        self.extra = output_dim - dim
        self.block = _network(2 * dim, width, output_dim)

    def forward(self, feature: Float[Tensor, "B H H D"], state: Float[Tensor, "B H H D"]) -> Tensor:
        return F.pad(feature - state, (0, self.extra)) + _through(torch.cat([feature, state], -1), self.block)


def _network(dim: int, width: int, output_dim: int) -> nn.ModuleList:
    """Two convolutions, the last one 0 at first."""
    last = nn.Conv2d(width, output_dim, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.ModuleList([nn.Conv2d(dim, width, 3, padding=1), last])


def _through(x: Tensor, network: nn.ModuleList) -> Tensor:
    first, last = (cast("nn.Conv2d", layer) for layer in network)
    return convolve(F.silu(convolve(x, first)), last)
