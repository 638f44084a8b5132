r"""Codes that are the points of a fixed grid, so that there is no table, no search and no dead code.

A vector is bounded, every component is rounded on its own, and the digits are read as one integer: digit i has weight
``prod_{j<i} L_j``, unless the first one is declared to be the highest. Nothing grows with the number of codes K: 2^40
of them cost as much as 2^10.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import check_integer, check_number
from gritvq.distributed import all_reduce_sum, joined_count
from gritvq.quantizers.base import QuantizerOutput, Surrogate
from gritvq.quantizers.functional import at_least_float32, straight_through, to_unit_length
from gritvq.quantizers.lookup_free.fixed import FixedCodes, commitment
from gritvq.quantizers.surrogates import StraightThrough

__all__ = ["BSQ", "FSP", "FSQ", "LFQ"]

BitPlace = Literal["lowest", "highest"]
Distribution = Literal["logistic", "normal", "laplace", "cauchy"]
_ROOT_3 = math.sqrt(3)


class _Grid(FixedCodes):
    """Codes on a grid with ``levels[i]`` values in component i; subclasses say how values and digits correspond.

    Args:
        levels: Number of values of each component.
        surrogate: Gradient rule through the rounding.
        descending: Whether the first digit has the largest weight.
    """

    counts: Tensor
    weights: Tensor

    def __init__(self, levels: Sequence[int], surrogate: Surrogate, descending: bool = False) -> None:
        super().__init__()
        self._descending = descending
        if len(levels) < 1 or any(not isinstance(level, int) or level < 2 for level in levels):
            raise ValueError(f"expected at least one level count, each an integer >= 2, got {list(levels)!r}")
        size = math.prod(levels)
        if size > 2**63:
            raise ValueError(
                f"expected at most 2^63 codes, so that an index fits an int64, got 2^{math.log2(size):.1f}; use fewer "
                "components or put two such quantizers into a ProductQuantizer"
            )
        self.levels = tuple(levels)
        self.dim, self.codebook_sizes = len(levels), (size,)
        self.exact = surrogate.exact
        self.surrogate = surrogate
        self._write_constants(None)

    def _constants(self) -> dict[str, Tensor]:
        """Level counts and weights of the digits."""
        places = [self.levels[i + 1 :] if self._descending else self.levels[:i] for i in range(self.dim)]
        weights = [math.prod(lower) for lower in places]
        found = {"counts": self.levels, "weights": weights}
        return {name: torch.tensor(value, dtype=torch.int64) for name, value in found.items()}

    @abstractmethod
    def digits(self, y: Float[Tensor, "*batch D"]) -> Int[Tensor, "*batch D"]:
        """Digits in ``[0, levels[i])`` of the nearest grid point."""

    @abstractmethod
    def values(self, digits: Int[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The grid point of the digits, float32."""

    def losses(self, y: Float[Tensor, "*batch D"], q: Tensor, valid: Bool[Tensor, "*batch"]) -> dict[str, Tensor]:
        """Weighted losses of training; none unless overridden."""
        return {}

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Round to the grid."""
        with torch.autocast(x.device.type, enabled=False):
            y = at_least_float32(x)
            digits = self.digits(y.detach())
            q = self.values(digits)
            losses = self.losses(y, q, valid) if self.training else {}
            index = (digits * self.weights).sum(-1)
            return QuantizerOutput(q, torch.where(valid, index, -1).unsqueeze(-1), losses)

    def lookup(self, indices: Int[Tensor, "*batch 1"]) -> Float[Tensor, "*batch D"]:
        """Values from the digits of the index; zeros for -1."""
        values = self.values(indices.clamp_min(0) // self.weights % self.counts)
        return torch.where(indices < 0, 0, values)

    def fold(self) -> _Grid:
        """The same grid without training parts."""
        return self._plain().eval()

    @abstractmethod
    def _plain(self) -> _Grid:
        """The same grid with no losses."""


class FSQ(_Grid):
    """Finite scalar quantization: bound every component with a tanh, round it to one of ``levels[i]`` values.

    ``b_i = h_i tanh(x_i + s_i) - o_i`` with ``h = (L - 1)(1 + eps) / 2``, ``o = 1/2`` for even L and 0 for odd,
    ``s = atanh(o / h)``; the code is ``round(b_i) / floor(L_i / 2)``, in [-1, 1]. The gradient is that of the bounded
    value (straight-through). There is no loss and nothing to initialize.

    The symmetric form is ``b_i = tanh(x_i)`` with the code ``2 floor((L - 1)(b_i + 1) / 2 + 1/2) / (L - 1) - 1``:
    evenly spaced from -1 to 1 also for even L, so that -x has the code -q.

    Args:
        levels: Values per component, each at least 2; 5 or more work best, as the authors say. D is their number, K
            their product.
        symmetric: Whether codes lie symmetrically around 0 also for even level counts.
        bound: ``"tanh"``, or ``"clamp"`` for a hard clamp to [-1, 1] in its place, which keeps the spacing of latents
            that are in range already and gives no gradient beyond it.

    Raises:
        ValueError: If a level is below 2, K exceeds 2^63, or the bound is unknown.

    Example:
        >>> quantizer = FSQ([8, 5, 5, 5])
        >>> quantized, indices, losses = quantizer(torch.randn(2, 7, 4))
        >>> quantizer.codebook_sizes, indices.shape, losses
        ((1000,), torch.Size([2, 7, 1]), {})

    References:
        Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", ICLR 2024, arXiv 2309.15505, section 3. The
        symmetric form: Parker et al., "Scaling Transformers for Low-Bitrate High-Quality Speech Coding", ICLR 2025,
        arXiv 2411.19842, section 3.2, without its noise.
    """

    def __init__(
        self, levels: Sequence[int], *, symmetric: bool = False, bound: Literal["tanh", "clamp"] = "tanh"
    ) -> None:
        if bound not in ("tanh", "clamp"):
            raise ValueError(f"expected bound 'tanh' or 'clamp', got {bound!r}; choose one")
        super().__init__(levels, StraightThrough())
        self.symmetric, self.bound = symmetric, bound

    def before(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The bounded value, scaled as the codes are; float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            if self.symmetric:
                return x.tanh() if self.bound == "tanh" else x.clamp(-1, 1)
            counts = self.counts.to(x.dtype)
            scale = (counts - 1) * (1 + 1e-3) / 2
            offset = torch.where(self.counts % 2 == 0, 0.5, 0.0).to(x.dtype)
            if self.bound == "clamp":
                return ((x + offset / scale).clamp(-1, 1) * scale - offset) / (self.counts // 2)
            return (torch.tanh(x + torch.atanh(offset / scale)) * scale - offset) / (self.counts // 2)

    def digits(self, y: Float[Tensor, "*batch D"]) -> Int[Tensor, "*batch D"]:
        """Rounded to the grid; from 1001 levels on the widened bound reaches beyond its ends."""
        if self.symmetric:
            return ((self.counts - 1) * (y + 1) / 2 + 0.5).floor().long()
        half = self.counts // 2
        return ((y * half).round().long() + half).clamp_min(0).minimum(self.counts - 1)

    def values(self, digits: Int[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """``(digit - floor(L/2)) / floor(L/2)``; of the symmetric form ``2 digit / (L - 1) - 1``."""
        if self.symmetric:
            return digits.float() * (2.0 / (self.counts - 1)) - 1.0
        half = self.counts // 2
        return (digits - half).float() / half

    def _plain(self) -> FSQ:
        return FSQ(self.levels, symmetric=self.symmetric, bound=self.bound)


class FSP(_Grid):
    r"""Finite scalar perturbation: a grid that training never rounds to; it adds noise as wide as a cell instead.

    ``u_i = F(x_i)`` with the cumulative distribution function F of what components are taken to be distributed like, so
    that u is about uniform in (0, 1) and all codes are used alike. Digit i is ``floor(L_i u_i)``, and its value is the
    middle of the cell, ``sqrt(12) ((digit + 1/2) / L_i - 1/2)``: variance 1 where u is uniform. In training the value
    is ``sqrt(12) (u_i + n_i - 1/2)`` with ``n_i`` uniform in ``(-1, 1) / (2 L_i)``, and no noise where that would leave
    (0, 1), so that the gradient is exact and no straight-through estimate. There is no loss and nothing to initialize.
    Indices are those of rounding, in training too; there values are not what they decode to (``exact`` is ``"eval"``).

    Args:
        levels: Values per component, each at least 2. D is their number, K their product.
        distribution: F: ``"logistic"`` is ``(tanh(x) + 1) / 2``, the others are those of scale 1.
        rounding: Share of the components that are rounded in training as well, with a straight-through gradient.

    Raises:
        ValueError: If a level is below 2, K exceeds 2^63, the distribution is unknown, or the share is not in [0, 1].

    Example:
        >>> quantizer = FSP([8, 5, 5, 5]).eval()
        >>> quantized, indices, losses = quantizer(torch.randn(2, 7, 4))
        >>> torch.equal(quantizer.decode(indices), quantized), quantizer.codebook_sizes, losses
        (True, (1000,), {})

    References:
        Zhai et al., "VP-VAE: Rethinking Vector Quantization via Adaptive Vector Perturbation", 2026, arXiv 2602.17133;
        details (cells, noise that is left out at the ends, unit variance, F) after the authors' released code.
    """

    def __init__(
        self, levels: Sequence[int], *, distribution: Distribution = "logistic", rounding: float = 0.0
    ) -> None:
        if distribution not in get_args(Distribution):
            known = ", ".join(get_args(Distribution))
            raise ValueError(f"expected a distribution of {known}, got {distribution!r}; choose one")
        super().__init__(levels, _CellNoise(tuple(levels), check_number("rounding", rounding, most=1.0)))
        self.distribution, self.rounding = distribution, rounding

    def before(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """``sqrt(12) (F(x) - 1/2)``; float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            if self.distribution == "logistic":
                centered = x.tanh()
            elif self.distribution == "normal":
                centered = torch.erf(x / math.sqrt(2))
            elif self.distribution == "laplace":
                centered = -x.sign() * torch.expm1(-x.abs())
            else:
                centered = x.atan() * (2 / math.pi)
            return _ROOT_3 * centered

    def digits(self, y: Float[Tensor, "*batch D"]) -> Int[Tensor, "*batch D"]:
        """The cell."""
        return ((y / (2 * _ROOT_3) + 0.5) * self.counts).floor().long().clamp_min(0).minimum(self.counts - 1)

    def values(self, digits: Int[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The middle of the cell."""
        return (2 * _ROOT_3) * ((digits.float() + 0.5) / self.counts - 0.5)

    def _plain(self) -> FSP:
        return FSP(self.levels, distribution=self.distribution)


class _CellNoise(Surrogate):
    """Uniform noise as wide as a cell in training, the straight-through value otherwise."""

    exact = "eval"

    def __init__(self, levels: tuple[int, ...], rounding: float) -> None:
        super().__init__()
        self.levels, self.rounding = levels, rounding

    def forward(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The vector and noise."""
        rounded = straight_through(x, q)
        if not self.training:
            return rounded
        moved = x + (2 * torch.rand_like(x) - 1) * (_ROOT_3 / torch.tensor(self.levels, dtype=x.dtype, device=x.device))
        moved = torch.where(moved.abs() < _ROOT_3, moved, x)
        if not self.rounding:
            return moved
        return torch.where(torch.rand_like(x) < self.rounding, rounded, moved)


class _Binary(_Grid):
    """Two values ``+-value`` per component, with a commitment loss and an entropy loss in analytic form.

    With ``softmax_c(-|y - c|^2 / temperature)`` over all 2^D codes the components are independent, and component i is
    positive with ``p_i = sigmoid(4 value y_i / temperature)``. So the entropy of a vector's distribution is exactly the
    sum of D binary entropies. The entropy of the batch's mean distribution is replaced by its bound, the sum of the
    entropies of the mean ``p_i``. No sum over codes is ever formed.
    """

    def __init__(
        self,
        dim: int,
        value: float,
        entropy_weight: float,
        balance: float,
        temperature: float,
        commitment_weight: float,
        first_bit: BitPlace,
    ) -> None:
        check_integer("dim", dim, hint="it is the number of bits")
        if first_bit not in ("lowest", "highest"):
            raise ValueError(f"expected first_bit 'lowest' or 'highest', got {first_bit!r}; choose one")
        weights = {"entropy_weight": entropy_weight, "balance": balance, "commitment_weight": commitment_weight}
        for name, weight in weights.items():
            check_number(name, weight)
        check_number("temperature", temperature, inside=True)
        if dim > 63:  # before there is a list of them
            raise ValueError(f"expected at most 2^63 codes, so that an index fits an int64, got 2^{dim}; reduce dim")
        super().__init__([2] * dim, StraightThrough(), descending=first_bit == "highest")
        self.value, self.first_bit = value, first_bit
        self.entropy_weight, self.balance, self.temperature = entropy_weight, balance, temperature
        self.commitment_weight = commitment_weight

    def digits(self, y: Float[Tensor, "*batch D"]) -> Int[Tensor, "*batch D"]:
        """1 where positive."""
        return (y > 0).long()

    def values(self, digits: Int[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """``+-value``."""
        return (2 * digits - 1).float() * self.value

    def losses(self, y: Float[Tensor, "*batch D"], q: Tensor, valid: Bool[Tensor, "*batch"]) -> dict[str, Tensor]:
        """``commitment`` and ``entropy``, where their weights are not zero."""
        losses: dict[str, Tensor] = {}
        if self.commitment_weight:
            losses["commitment"] = self.commitment_weight * commitment(y, q, valid)
        if self.entropy_weight:
            weight, total = valid.to(y.dtype).unsqueeze(-1), joined_count(valid)
            logits = 4 * self.value / self.temperature * y
            each = (_binary_entropy(logits) * weight).sum()
            mean = (torch.sigmoid(logits) * weight).reshape(-1, self.dim).sum(0)
            total, each, mean = total.clamp_min(1), all_reduce_sum(each), all_reduce_sum(mean)
            mean = mean / total
            batch = -(mean * mean.clamp_min(1e-20).log() + (1 - mean) * (1 - mean).clamp_min(1e-20).log()).sum()
            losses["entropy"] = self.entropy_weight * (each / total - self.balance * batch)
        return losses


def _binary_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of a coin with these log odds, without loss of digits at either end."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)


class LFQ(_Binary):
    """Lookup-free quantization: the sign of every component, codes ``{-1, 1}^D``, K = 2^D.

    Losses: ``commitment_weight * mean |x - q|^2 / D`` and ``entropy_weight * (mean_n H(p_n) - balance H(mean_n p_n))``
    in nats, analytic per bit; the second entropy is the sum over bits, a bound.

    Args:
        dim: Number of bits D, at most 63.
        entropy_weight: Weight of the entropy loss.
        balance: Weight of the batch entropy inside it.
        temperature: Softmax temperature in squared latent units.
        commitment_weight: Weight of the commitment loss.
        first_bit: Whether component 0 is the ``"lowest"`` or the ``"highest"`` bit of the index.

    Example:
        >>> quantizer = LFQ(10)
        >>> quantizer.codebook_sizes, sorted(quantizer(torch.randn(3, 10)).losses)
        ((1024,), ['commitment', 'entropy'])

    References:
        Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", ICLR 2024, arXiv 2310.05737.
        Deviation: the batch entropy per bit; temperature 1 is our choice.
    """

    def __init__(
        self,
        dim: int,
        *,
        entropy_weight: float = 0.1,
        balance: float = 1.0,
        temperature: float = 1.0,
        commitment_weight: float = 0.25,
        first_bit: BitPlace = "lowest",
    ) -> None:
        super().__init__(dim, 1.0, entropy_weight, balance, temperature, commitment_weight, first_bit)

    def _plain(self) -> LFQ:
        return LFQ(self.dim, entropy_weight=0.0, commitment_weight=0.0, first_bit=self.first_bit)


class BSQ(_Binary):
    """Binary spherical quantization: the sign of every component of the vector at unit length.

    Codes are ``{-1, 1}^D / sqrt(D)``, K = 2^D. They have unit length, so the error of a vector on the sphere has a
    bound. Losses as in :class:`LFQ`.

    Args:
        dim: Number of bits D, at most 63.
        entropy_weight: Weight of the entropy loss.
        balance: Weight of the batch entropy inside it.
        temperature: Softmax temperature in squared latent units; components on the sphere are small, so it is too.
        commitment_weight: Weight of the commitment loss.
        first_bit: Whether component 0 is the ``"lowest"`` or the ``"highest"`` bit of the index.

    Example:
        >>> BSQ(16)(torch.randn(3, 16)).quantized.norm(dim=1).round(decimals=5)
        tensor([1., 1., 1.])

    References:
        Zhao et al., "Image and Video Tokenization with Binary Spherical Quantization", ICLR 2025, arXiv 2406.07548.
    """

    def __init__(
        self,
        dim: int,
        *,
        entropy_weight: float = 0.1,
        balance: float = 1.0,
        temperature: float = 0.01,
        commitment_weight: float = 0.25,
        first_bit: BitPlace = "lowest",
    ) -> None:
        super().__init__(
            dim, 1 / math.sqrt(max(1, dim)), entropy_weight, balance, temperature, commitment_weight, first_bit
        )

    def before(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The vector at unit length, float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            return to_unit_length(at_least_float32(x))

    def _plain(self) -> BSQ:
        return BSQ(self.dim, entropy_weight=0.0, commitment_weight=0.0, first_bit=self.first_bit)
