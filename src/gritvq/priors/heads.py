"""Heads: the probabilities of the indices of a position, given its state.

The head depends on what the tokens are, not on the quantizer that made them.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import Component, check_integer
from gritvq.priors.sampling import Draw
from gritvq.priors.transformer import channel_states, gpt2

__all__ = ["BitHead", "DepthHead", "Head", "HeadName", "SoftmaxHead", "head_for"]

HeadName: TypeAlias = Literal["softmax", "depth", "bits", "parallel_bits"]


class Head(Component, ABC):
    """Predicts the indices of a position from its state, and embeds them.

    Args:
        codebook_sizes: Number of codes K of each channel, Q entries.
        width: Width D of the states.
    """

    def __init__(self, codebook_sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.codebook_sizes = tuple(check_integer("codebook size", size) for size in codebook_sizes)
        self.width = check_integer("width", width)

    @abstractmethod
    def log_prob(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch"]:
        """Log-probability of the indices of each position in nats, summed over its channels; -1 counts nothing."""

    @abstractmethod
    def logits(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch V"]:
        """Logits of all that may be drawn at each position, V = sum(:attr:`sizes`), one softmax after the other.

        Args:
            states: Of the positions.
            indices: What a softmax that depends on those before it is given; others ignore them.
        """

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Number of logits of each softmax: codes of each channel, or levels of each of its digits."""

    @abstractmethod
    def sample(
        self, states: Float[Tensor, "streams *batch D"], draw: Draw, present: Bool[Tensor, "*positions Q"]
    ) -> Int[Tensor, "*batch Q"]:
        """Draw the indices of positions.

        Args:
            states: One stream, or two for guidance: with the class and without.
            draw: Makes indices (*batch) of logits (streams, *batch, K), -1 where a position has none.
            present: Channels that the positions have; the others become -1.
        """

    @abstractmethod
    def embed(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """One vector per position, a sum over its channels; -1 adds nothing."""

    def loss(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, ""]:
        """Mean nats per index; -1 counts nothing."""
        return -self.log_prob(states, indices).sum() / (indices >= 0).sum().clamp(min=1)


class _TableHead(Head):
    """A head with an input and an output embedding of every index."""

    def __init__(self, codebook_sizes: Sequence[int], width: int, output_width: int) -> None:
        super().__init__(codebook_sizes, width)
        ends = list(itertools.accumulate(self.codebook_sizes))
        self._ranges = [slice(end - size, end) for end, size in zip(ends, self.codebook_sizes, strict=True)]
        self.embedding = nn.Embedding(ends[-1], width)
        self.output = nn.Linear(output_width, ends[-1], bias=False)
        for weight in (self.embedding.weight, self.output.weight):
            nn.init.normal_(weight, std=0.02)

    @property
    def sizes(self) -> tuple[int, ...]:
        """See the base class."""
        return self.codebook_sizes

    def embed(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """See the base class."""
        return self._embedded(indices).sum(-2)

    def _embedded(self, indices: Tensor) -> Tensor:
        """(*batch, l, D) of the first l channels."""
        starts = torch.tensor([rows.start for rows in self._ranges], device=indices.device)[: indices.shape[-1]]
        return self.embedding(indices.clamp(min=0) + starts) * (indices >= 0)[..., None]

    def _logits(self, states: Tensor, channel: int) -> Tensor:
        return F.linear(states, self.output.weight[self._ranges[channel]]).float()

    def _channel_log_prob(self, states: Tensor, indices: Tensor, channel: int) -> Tensor:
        logits, wanted = self._logits(states, channel), indices[..., channel]
        found = F.cross_entropy(logits.flatten(0, -2), wanted.flatten(), ignore_index=-1, reduction="none")
        return -found.view(wanted.shape)


class SoftmaxHead(_TableHead):
    """A softmax over the codes of each channel: ``p(i_1 .. i_Q) = prod_q p(i_q | state)``.

    Several channels of a position are independent given the state; if they are not, use a :class:`DepthHead` or a
    layout that is ``"flat"`` or ``"delay"``. It has 2 D sum(K) parameters.

    Args:
        codebook_sizes: Number of codes of each channel.
        width: Width of the states.

    Example:
        >>> head = SoftmaxHead((4, 8), 16)
        >>> head.log_prob(torch.randn(2, 3, 16), torch.ones(2, 3, 2, dtype=torch.int64)).shape
        torch.Size([2, 3])
    """

    def __init__(self, codebook_sizes: Sequence[int], width: int) -> None:
        super().__init__(codebook_sizes, width, width)

    def log_prob(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch"]:
        """See the base class."""
        found = [self._channel_log_prob(states, indices, q) for q in range(len(self.codebook_sizes))]
        return torch.stack(found).sum(0)

    def logits(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch V"]:
        """See the base class."""
        return self.output(states).float()

    def sample(
        self, states: Float[Tensor, "streams *batch D"], draw: Draw, present: Bool[Tensor, "*positions Q"]
    ) -> Int[Tensor, "*batch Q"]:
        """See the base class."""
        found = torch.full((*states.shape[1:-1], len(self.codebook_sizes)), -1, device=states.device)
        for q in range(len(self.codebook_sizes)):
            if present[..., q].any():
                found[..., q] = draw(self._logits(states, q), present[..., q])
        return found


class DepthHead(_TableHead):
    """One channel after the other, by a small causal transformer: ``p(i_1 .. i_Q) = prod_q p(i_q | i_1 .. i_{q-1})``.

    For residual and product tokens, whose channels depend on each other. The transformer (GPT-2's) reads the position's
    state, then the embeddings of the channels. It is the one that :class:`gritvq.items.DepthDecoder` uses for the
    indices of an item.

    Args:
        codebook_sizes: Codes of each channel.
        width: Width D of the states.
        depth: Layers of the transformer over channels.
        depth_width: Width of the transformer over channels; ``width`` if None.
        dropout: Dropout of the transformer over channels.

    Example:
        >>> head = DepthHead((4, 8), 16)
        >>> head.log_prob(torch.randn(2, 3, 16), torch.ones(2, 3, 2, dtype=torch.int64)).shape
        torch.Size([2, 3])

    References:
        Lee et al., Autoregressive image generation using residual quantization (RQ-Transformer), CVPR 2022, arXiv
        2203.01941, section 3.2. There a channel's input is the sum of the code vectors so far; here it is an embedding
        of the last index, and attention reads the others.
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        width: int,
        *,
        depth: int = 1,
        depth_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        inner = width if depth_width is None else check_integer("depth_width", depth_width)
        super().__init__(codebook_sizes, width, inner)
        self.narrow = nn.Identity() if inner == width else nn.Linear(width, inner, bias=False)
        num_heads = math.gcd(inner, max(1, inner // 64))
        check_integer("depth", depth)
        self.channels: Any = gpt2(inner, depth, num_heads, 4 * inner, dropout, len(self.codebook_sizes))

    def log_prob(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch"]:
        """See the base class."""
        rows = indices.flatten(0, -2)
        hidden = self._states(states.reshape(len(rows), -1), rows[:, :-1])
        found = [self._channel_log_prob(hidden[:, q], rows, q) for q in range(rows.shape[1])]
        return torch.stack(found).sum(0).view(indices.shape[:-1])

    def logits(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch V"]:
        """See the base class."""
        hidden = self._states(states.flatten(0, -2), indices.flatten(0, -2)[:, :-1])
        found = [self._logits(hidden[:, q], q) for q in range(len(self.codebook_sizes))]
        return torch.cat(found, 1).unflatten(0, states.shape[:-1])

    def sample(
        self, states: Float[Tensor, "streams *batch D"], draw: Draw, present: Bool[Tensor, "*positions Q"]
    ) -> Int[Tensor, "*batch Q"]:
        """See the base class."""
        streams, *batch = states.shape[:-1]
        flat = states.flatten(0, -2)
        found = torch.full((*batch, len(self.codebook_sizes)), -1, device=states.device)
        for q in range(len(self.codebook_sizes)):
            if present[..., q].any():
                before = found[..., :q].flatten(0, -2).repeat(streams, 1)
                logits = self._logits(self._states(flat, before)[:, -1], q).view(streams, *batch, -1)
                found[..., q] = draw(logits, present[..., q])
        return found

    def _states(self, states: Tensor, indices: Tensor) -> Tensor:
        """States (N, l + 1, D) after the position's state and after each of l channels."""
        return channel_states(self.channels, self.narrow(states), self.narrow(self._embedded(indices)))


class BitHead(Head):
    """Indices as digits, so that no softmax is as large as a codebook: for binary and grid codes of any size.

    Index i of a channel with ``K = prod(levels)`` codes has the digits ``i // prod(levels[:n]) % levels[n]``: the bits
    of LFQ and BSQ for levels 2, 2, ..., and the levels of FSQ for its own. Digits are predicted one after the other by
    a :class:`DepthHead`, which is exact for any distribution, or all at once and independently. Fewer, larger digits
    are faster: three of 64 instead of 18 bits.

    Args:
        codebook_sizes: Codes of each channel.
        width: Width D of the states.
        levels: Levels of each channel, least significant first; the prime factors of its size, multiplied to at most 64
            each, if None.
        autoregressive: Whether a digit depends on the digits before it.
        depth: Layers of the transformer over digits.
        depth_width: Width of the transformer over digits; at most 128 if None.
        dropout: Dropout of the transformer over digits.

    Raises:
        ValueError: If the levels of a channel do not multiply to its size.

    Example:
        >>> head = BitHead((2**18,), 16)
        >>> head.levels, head.digits_of(torch.tensor([[2**17 + 1]])).tolist()
        (((64, 64, 64),), [[1, 0, 32]])

    References:
        Yu et al., Language model beats diffusion (MAGVIT-v2), ICLR 2024, arXiv 2310.05737 (factorized prediction); BAR,
        2026, arXiv 2602.09024, predicts masked bits instead.
    """

    weights: Tensor
    bases: Tensor
    channel_of: Tensor

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        width: int,
        *,
        levels: Sequence[Sequence[int]] | None = None,
        autoregressive: bool = True,
        depth: int = 1,
        depth_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(codebook_sizes, width)
        given = [_factors(size) for size in self.codebook_sizes] if levels is None else levels
        self.levels = tuple(tuple(check_integer("level", level) for level in each) for each in given)
        if tuple(math.prod(each) for each in self.levels) != self.codebook_sizes:
            raise ValueError(
                f"expected levels of each channel whose product is its codebook size {list(self.codebook_sizes)}, got "
                f"{[list(each) for each in self.levels]}; leave them out for the prime factors"
            )
        flat = [level for each in self.levels for level in each]
        self.digits: Head = SoftmaxHead(flat, width)
        if autoregressive:
            inner = min(width, 128) if depth_width is None else depth_width
            self.digits = DepthHead(flat, width, depth=depth, depth_width=inner, dropout=dropout)
        weights = [math.prod(each[:n]) for each in self.levels for n in range(len(each))]
        channels = [q for q, each in enumerate(self.levels) for _ in each]
        for name, value in (("weights", weights), ("bases", flat), ("channel_of", channels)):
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def log_prob(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch"]:
        """See the base class."""
        return self.digits.log_prob(states, self.digits_of(indices))

    def logits(self, states: Float[Tensor, "*batch D"], indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch V"]:
        """See the base class: of each digit."""
        return self.digits.logits(states, self.digits_of(indices))

    @property
    def sizes(self) -> tuple[int, ...]:
        """See the base class."""
        return self.digits.sizes

    def sample(
        self, states: Float[Tensor, "streams *batch D"], draw: Draw, present: Bool[Tensor, "*positions Q"]
    ) -> Int[Tensor, "*batch Q"]:
        """See the base class; temperature and filters act on each digit."""
        digits = self.digits.sample(states, draw, present[..., self.channel_of])
        parts = (digits.clamp(min=0) * self.weights).split([len(each) for each in self.levels], -1)
        return torch.stack([part.sum(-1) for part in parts], -1).masked_fill(~present, -1)

    def embed(self, indices: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
        """See the base class: a sum over digits."""
        return self.digits.embed(self.digits_of(indices))

    def digits_of(self, indices: Int[Tensor, "*batch Q"]) -> Int[Tensor, "*batch digits"]:
        """Digits of all channels, -1 for those of an index -1."""
        each = indices[..., self.channel_of]
        return (each // self.weights % self.bases).masked_fill(each < 0, -1)


def head_for(
    name: HeadName | None, codebook_sizes: Sequence[int], width: int, channels_at_once: int, dropout: float = 0.0
) -> Head:
    """A head by name, or by what the tokens are.

    Args:
        name: ``"softmax"``, ``"depth"``, ``"bits"`` (:class:`BitHead`) or ``"parallel_bits"`` (the same, all digits at
            once). If None: bits for more than 2^16 codes, else depth for several channels at a position, else softmax.
        codebook_sizes: Codes of each channel.
        width: Width of the states.
        channels_at_once: Most channels of a position.
        dropout: Dropout of transformers over channels or digits.

    Raises:
        ValueError: If there is no head of that name.
    """
    if name is None:
        name = "bits" if max(codebook_sizes) > 2**16 else "depth" if channels_at_once > 1 else "softmax"
    if name == "softmax":
        return SoftmaxHead(codebook_sizes, width)
    if name == "depth":
        return DepthHead(codebook_sizes, width, dropout=dropout)
    if name in ("bits", "parallel_bits"):
        levels = [_factors(size) for size in codebook_sizes]  # given, so that a saved head does not depend on a default
        chain = name == "bits"
        return BitHead(
            codebook_sizes,
            width,
            levels=levels,
            autoregressive=chain,
            depth_width=min(width, 128),
            dropout=dropout,
        )
    raise ValueError(f"expected head {', '.join(map(repr, get_args(HeadName)))}, got {name!r}")


def _factors(size: int, largest: int = 64) -> list[int]:
    """Prime factors, ascending, multiplied while they stay within ``largest``; a larger prime stays whole."""
    found, rest, prime = [1], size, 2
    while rest > 1:
        if prime * prime > rest:
            prime = rest
        if rest % prime:
            prime += 1
            continue
        rest //= prime
        if found[-1] * prime <= largest:
            found[-1] *= prime
        else:
            found.append(prime)
    return found
