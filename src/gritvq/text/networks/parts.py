"""Encoder and decoder of segments."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component, check_integer
from gritvq.text.networks.standardize import Standardize
from gritvq.text.networks.transformer import TextTransformer, positions_of
from gritvq.text.segments import TextBatch

__all__ = ["SegmentDecoder", "SegmentEncoder"]


class SegmentEncoder(Component):
    """A vector for each segment, of the segment and those before it: ``c_t = f(x_<=t)``.

    Tokens attend to all of their own segment and of earlier ones, never to later ones. The vector is a weighted mean of
    the states of the segment's tokens, with learned weights for each of as many parts as there are heads.

    Args:
        transformer: The body.
        dim: Size D of the vectors; None for the width of the body.
        standardized: Whether the vectors have mean 0 and variance 1 over the segments of a batch, see
            :class:`Standardize`. Vectors of an encoder that has not learned are almost the same for all texts, and so
            would their codes be.
        whitened: Whether components are also uncorrelated.

    Example:
        >>> encoder = SegmentEncoder(TextTransformer(300, width=16, depth=1, num_heads=2), 4)
        >>> batch = TextBatch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0, 0, 1]]))
        >>> encoder(batch).shape
        torch.Size([1, 2, 4])

    References:
        TRACE (arXiv 2210.12409): the condition of the posterior, x_<=t. The network is our reading.
    """

    def __init__(
        self,
        transformer: TextTransformer,
        dim: int | None = None,
        *,
        standardized: bool = False,
        whitened: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        width = transformer.width
        self.dim = width if dim is None else check_integer("dim", dim)
        self.score = nn.Linear(width, transformer.num_heads)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, self.dim)
        self.standardize = Standardize(self.dim, whitened=whitened) if standardized or whitened else None

    def forward(
        self, batch: TextBatch, cache: Any = None, *, num_segments: int | None = None
    ) -> Float[Tensor, "B T D"]:
        """Vectors of the segments; those that a document does not have are zero.

        Args:
            batch: Documents.
            cache: A new cache, which is filled.
            num_segments: T; the most segments of a document if None.

        Raises:
            ValueError: If a document is longer than the transformer takes.
        """
        segments, valid = batch.segments, batch.valid
        self.transformer.check_length(segments.shape[1])
        seen = (segments[:, None] <= segments[:, :, None]) & valid[:, None]
        seen = seen | torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
        states = self.transformer(self.transformer.embed(batch.tokens), positions_of(valid), seen, cache)
        most = batch.present.shape[1] if num_segments is None else num_segments
        numbers = torch.arange(most, device=segments.device)
        return self.pooled(states, segments[:, None] == numbers[:, None])

    def pooled(self, states: Float[Tensor, "B L W"], members: Tensor) -> Float[Tensor, "B T D"]:
        """Vectors of the segments whose members (B, T, L) are given; zero for those without any."""
        scores = self.score(states).transpose(1, 2)[:, :, None]  # (B, heads, 1, L)
        some = members.any(2)
        scores = scores.masked_fill(~members[:, None], -torch.inf).masked_fill(~some[:, None, :, None], 0.0)
        parts = states.unflatten(2, (self.transformer.num_heads, -1)).transpose(1, 2)
        mean = (scores.softmax(-1) @ parts).transpose(1, 2).flatten(2)
        vectors = self.output(self.norm(mean))
        if self.standardize is not None:
            vectors = self.standardize(vectors, some)
        return vectors * some[..., None]

    def extend(
        self, cache: Any, seen: Tensor, tokens: Tensor, valid: Tensor, positions: Tensor
    ) -> tuple[Float[Tensor, "B D"], Tensor]:
        """The vector of one more segment of each document.

        Args:
            cache: Of the segments before; it grows by S.
            seen: Which keys in the cache are tokens (B, P).
            tokens: Of the segment (B, S).
            valid: Which of them are there (B, S).
            positions: Of the first of them (B).

        Returns:
            The vectors, and which keys in the cache are tokens now.
        """
        count = tokens.shape[1]
        now = torch.cat([seen, valid], 1)
        own = torch.eye(count, dtype=torch.bool, device=valid.device)
        mask = now[:, None].repeat(1, count, 1)
        mask[:, :, -count:] |= own
        places = (positions[:, None] + positions_of(valid)).clamp(max=self.transformer.length - 1)
        states = self.transformer(self.transformer.embed(tokens), places, mask, cache)
        return self.pooled(states, valid[:, None])[:, 0], now


class SegmentDecoder(Component):
    """Tokens one after the other, given latents: ``p(x_t | z_<=t, x_<t) = prod_i p(x_ti | x_t<i, x_<t, z_<=t)``.

    Each latent is a memory of the attention: a linear map of the layer-normalized latent gives a key and a value in
    every layer and head, which the tokens of its segment and of later ones see like those of one more token. Inputs
    and outputs share their embeddings.

    Args:
        transformer: The body; its last token is the one that a document starts with, which is never an output.
        dim: Size D of the latents; None for a language model without any.

    Example:
        >>> decoder = SegmentDecoder(TextTransformer(300, width=16, depth=1, num_heads=2), 4)
        >>> batch = TextBatch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0, 0, 1]]))
        >>> decoder(batch, torch.zeros(1, 2, 4)).shape
        torch.Size([1, 3])

    References:
        TRACE (arXiv 2210.12409) has one latent per segment. How latents enter the attention is not established; keys
        and values from a linear map are those of Optimus (Li et al., EMNLP 2020, arXiv 2004.04092, "memory"). That a
        segment sees the latents of all earlier ones, and their text, is our reading.
    """

    def __init__(self, transformer: TextTransformer, dim: int | None = None) -> None:
        super().__init__()
        self.transformer, self.dim = transformer, dim
        size = torch.Size(transformer.memory_size).numel()
        if dim is not None:
            check_integer("dim", dim)
            self.norm, self.memory = nn.LayerNorm(dim), nn.Linear(dim, size)
        self.start = transformer.vocab_size - 1

    def forward(self, batch: TextBatch, latents: Float[Tensor, "B T D"] | None = None) -> Float[Tensor, "B L"]:
        """Log-probability of each token in nats; zero where there is none."""
        states = self.states(batch, latents)[batch.valid]
        found = -F.cross_entropy(self.logits(states).float(), batch.tokens[batch.valid], reduction="none")
        return torch.zeros(batch.tokens.shape, device=found.device).masked_scatter(batch.valid, found)

    def states(
        self, batch: TextBatch, latents: Float[Tensor, "B T D"] | None = None, cache: Any = None
    ) -> Float[Tensor, "B L W"]:
        """States from which the tokens follow; with a new cache it holds the memories, then the inputs."""
        segments, length = batch.segments, batch.tokens.shape[1]
        self.transformer.check_length(length)
        inputs = F.pad(batch.tokens[:, :-1], (1, 0), value=self.start)
        mask = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril().expand(len(segments), -1, -1)
        memories = self.memories(latents)
        if memories is not None:
            cache = self.transformer.new_cache() if cache is None else cache
            self.transformer.remember(cache, memories)
            numbers = torch.arange(memories.shape[1], device=segments.device)
            mask = torch.cat([numbers <= segments[:, :, None], mask], 2)
        return self.transformer(self.transformer.embed(inputs), positions_of(torch.ones_like(segments)), mask, cache)

    def memories(self, latents: Float[Tensor, "B T D"] | None) -> Float[Tensor, "B T layers 2 heads size"] | None:
        """A key and a value of each latent for each layer and head; None for a language model.

        Raises:
            ValueError: If latents are missing or superfluous.
        """
        if (latents is None) != (self.dim is None):
            got = "none" if latents is None else "some"
            raise ValueError(f"expected {'no ' if self.dim is None else ''}latents of size {self.dim}, got {got}")
        if latents is None:
            return None
        return self.memory(self.norm(latents)).unflatten(-1, self.transformer.memory_size)

    def logits(self, states: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch V-1"]:
        """Logits of all tokens but the one that documents start with."""
        return states @ self.transformer.embeddings[:-1].T
