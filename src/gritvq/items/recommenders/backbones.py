"""Sequence models, built with transformers, that predict the next item's semantic id.

All of them use the tokens of a :class:`gritvq.tokens.Vocabulary`. They have no key-value cache: what is computed once
per history is in the ``context``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import Component, check_number
from gritvq.lazy import optional
from gritvq.priors.transformer import channel_states, gpt2
from gritvq.tokens import BOS, EOS, PAD, Vocabulary

__all__ = ["Backbone", "Context", "DepthDecoder", "EncoderDecoder", "ParallelDecoder", "TokenDecoder"]

_ROWS = 64  # the number of rows in a product is a multiple of this
_NONE = -100  # what cross_entropy takes for no target


class Context(NamedTuple):
    """Encoded histories of B users; the first axis of both is B.

    Attributes:
        states: Hidden states or tokens, depending on the backbone.
        lengths: Number of valid entries per user.
    """

    states: Tensor
    lengths: Tensor


class Backbone(Component, ABC):
    """Maps histories of ids to probabilities of the next id, level by level.

    Args:
        codebook_sizes: Codes per level, Q entries.
        dim: Width of the model.

    Attributes:
        vocabulary: The tokens of the model.
        every_prefix: Whether training needs one row per prefix of a history, whose last item is the target; otherwise
            one row per user, in which every item is a target.
        parallel: Whether the indices of an id are independent given the history, so that :meth:`log_probs` depends on
            the length of a prefix alone. Then the whole catalogue is scored by :class:`gritvq.items.ParallelScorer`.
    """

    every_prefix: bool
    parallel = False

    def __init__(self, codebook_sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.vocabulary, self.dim = Vocabulary(codebook_sizes), dim
        self.codebook_sizes = self.vocabulary.codebook_sizes

    @abstractmethod
    def loss(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood per item in nats, summed over the levels (a mean over them if ``parallel``).

        Args:
            codes: Ids of items in time order; entries beyond ``lengths`` are ignored.
            lengths: Number of items per row, >= 1.
        """

    @abstractmethod
    def read(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Context:
        """Encode histories, once for all calls of :meth:`log_probs`; they may be empty."""

    @abstractmethod
    def log_probs(self, context: Context, prefixes: Int[Tensor, "B W l"]) -> Float[Tensor, "B W K"]:
        """Log-probabilities of the index after each of W prefixes of length l < Q, in float32.

        They are not renormalized over existing ids, so the score of an id does not depend on the catalogue.
        """


class EncoderDecoder(Backbone):
    """T5 with random initial weights, as in TIGER: the encoder reads the history, the decoder predicts the next id.

    The softmax is over the whole vocabulary. Keys and values of the cross-attention are computed again for each prefix.

    Args:
        codebook_sizes: Codes per level.
        dim: Width of the model.
        num_layers: Layers of the encoder, and of the decoder.
        num_heads: Attention heads.
        head_dim: Width of a head.
        hidden_dim: Width inside the feed-forward layers.
        dropout: Dropout rate in [0, 1).

    References:
        Rajput et al., Recommender systems with generative retrieval (TIGER), NeurIPS 2023, arXiv 2305.05065, section 4;
        without the user token, which is better according to GRID (arXiv 2507.22224).

    Example:
        >>> model = EncoderDecoder((4, 4), 8, num_layers=1, num_heads=1, head_dim=8, hidden_dim=8)
        >>> context = model.read(torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([2]))
        >>> model.log_probs(context, torch.tensor([[[0], [1], [2]]])).shape
        torch.Size([1, 3, 4])
    """

    every_prefix = True

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int = 128,
        *,
        num_layers: int = 4,
        num_heads: int = 6,
        head_dim: int = 64,
        hidden_dim: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(codebook_sizes, dim)
        transformers = optional("transformers", "items")
        self.model: Any = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=self.vocabulary.vocab_size,
                d_model=dim,
                d_kv=head_dim,
                d_ff=hidden_dim,
                num_layers=num_layers,
                num_heads=num_heads,
                dropout_rate=dropout,
                feed_forward_proj="relu",
                pad_token_id=PAD,
                eos_token_id=EOS,
                decoder_start_token_id=BOS,
                use_cache=False,
            )
        )

    def loss(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """See the base class. The last item of each row is the target."""
        levels = codes.shape[2]
        targets = self.vocabulary.tokens_of(codes[torch.arange(len(codes)), lengths - 1])
        context = self.read(codes[:, : max(1, codes.shape[1] - 1)], lengths - 1)
        before = F.pad(targets[:, :-1], (1, 0), value=BOS)
        logits = self._logits(context.states, self._mask(context), before)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()) * levels

    def read(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Context:
        """See the base class. States are the encoder's (B, T Q + 1, D); EOS follows the history."""
        tokens = F.pad(self.vocabulary.tokens_of(codes).flatten(1), (0, 1))
        ends = lengths[:, None] * codes.shape[2]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        tokens = tokens.masked_fill(places > ends, PAD).masked_fill(places == ends, EOS)
        context = Context(tokens, lengths * codes.shape[2] + 1)
        states = self.model.encoder(input_ids=tokens, attention_mask=self._mask(context)).last_hidden_state
        return Context(states, context.lengths)

    def log_probs(self, context: Context, prefixes: Int[Tensor, "B W l"]) -> Float[Tensor, "B W K"]:
        """See the base class."""
        width, level = prefixes.shape[1:]
        states, mask = (part.repeat_interleave(width, 0) for part in (context.states, self._mask(context)))
        tokens = prefixes.new_full((prefixes.shape[0] * width, 1), BOS)
        if level:
            tokens = torch.cat([tokens, self.vocabulary.tokens_of(prefixes.flatten(0, 1))], 1)
        logits = self._logits(states, mask, tokens)[:, -1]
        return logits.float().log_softmax(-1)[:, self.vocabulary.range_of(level)].unflatten(0, (-1, width))

    def _logits(self, states: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Logits (N, l, V) after each token, of which the first is BOS."""
        return self.model(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=tokens).logits

    @staticmethod
    def _mask(context: Context) -> Tensor:
        places = torch.arange(context.states.shape[1], device=context.lengths.device)
        return (places < context.lengths[:, None]).long()


class _CausalDecoder(Backbone):
    """Base of the causal models: tied input and output embeddings, a softmax per level, a loss at every item."""

    every_prefix = False

    def __init__(self, codebook_sizes: Sequence[int], dim: int, max_items: int) -> None:
        super().__init__(codebook_sizes, dim)
        self.max_items = max_items
        self.embedding = nn.Embedding(self.vocabulary.vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)  # as in GPT-2

    def _logits(self, states: Tensor, level: int) -> Tensor:
        """Logits of a level in float32: products with its embeddings."""
        return self._products(F.linear, states, self.embedding.weight[self.vocabulary.range_of(level)])

    def _products(self, multiply: Callable[[Tensor, Tensor], Tensor], states: Tensor, codes: Tensor) -> Tensor:
        """Logits in float32 of states and code embeddings."""
        return multiply(states, codes).float()

    @staticmethod
    def _packed(codes: Tensor, lengths: Tensor) -> tuple[Int[Tensor, " N"], Int[Tensor, "N Q"], Int[Tensor, "N Q"]]:
        """Places in the flattened rows that are not padding, the codes there, and the targets.

        The number N is rounded up to a multiple of 64 by places that are no target: programs of oneDNN are made and
        kept for each shape, so that memory would grow with every new one.
        """
        valid = torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]
        places = valid.flatten().nonzero()[:, 0]
        filled = F.pad(places, (0, -len(places) % _ROWS))
        inputs = codes.flatten(0, 1)[filled]
        targets = inputs.masked_fill((torch.arange(len(filled), device=codes.device) >= len(places))[:, None], _NONE)
        return filled, inputs, targets

    def _item_loss(
        self, states: Float[Tensor, "N q D"], codes: Int[Tensor, "N q"], levels: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Cross-entropy, a mean over targets and a sum over these levels; those of one size are one product."""
        if len({self.codebook_sizes[level] for level in levels}) > 1:
            each = [F.cross_entropy(self._logits(states[:, i], level), codes[:, i]) for i, level in enumerate(levels)]
            return torch.stack(each).sum()
        tables = torch.stack([self.embedding.weight[self.vocabulary.range_of(level)] for level in levels])
        logits = self._products(lambda a, b: a @ b.transpose(1, 2), states.transpose(0, 1), tables)
        return F.cross_entropy(logits.flatten(0, 1), codes.T.flatten()) * len(levels)

    def _with_start(self, items: Tensor) -> Tensor:
        """BOS and embedded items (B, T + 1, D)."""
        self._check_length(items.shape[1])
        return torch.cat([self.embedding.weight[BOS].expand(items.shape[0], 1, -1), items], 1)

    def _check_length(self, items: int) -> None:
        if items > self.max_items:
            raise ValueError(
                f"expected at most {self.max_items} items in a row, got {items}; keep the newest, or increase the "
                "model's max_items"
            )


class TokenDecoder(_CausalDecoder):
    """A causal transformer (GPT-2) over the tokens of the whole history; one pass trains on all of its prefixes.

    The softmax at each position is over the codes of its level. In :meth:`log_probs` all prefixes follow the history in
    one sequence, and the attention mask separates them.

    Args:
        codebook_sizes: Codes per level.
        dim: Width of the model.
        num_layers: Layers.
        num_heads: Attention heads.
        hidden_dim: Width inside the feed-forward layers.
        dropout: Dropout rate in [0, 1).
        max_items: Largest number of items in a row.

    Example:
        >>> model = TokenDecoder((4, 4), 8, num_layers=1, num_heads=1, hidden_dim=8)
        >>> context = model.read(torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([2]))
        >>> model.log_probs(context, torch.tensor([[[0], [1], [2]]])).shape
        torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int = 128,
        *,
        num_layers: int = 4,
        num_heads: int = 4,
        hidden_dim: int = 512,
        dropout: float = 0.2,
        max_items: int = 21,
    ) -> None:
        super().__init__(codebook_sizes, dim, max_items)
        positions = (max_items + 1) * len(self.codebook_sizes)  # BOS, the items, and all but the last index of the next
        self.model: Any = gpt2(dim, num_layers, num_heads, hidden_dim, dropout, positions)

    def loss(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """See the base class. Every item of each row is a target."""
        context = self.read(codes, lengths)
        states = self.model(inputs_embeds=self.embedding(context.states[:, :-1])).last_hidden_state
        places, _, targets = self._packed(codes, lengths)
        levels = range(codes.shape[2])
        return self._item_loss(states.unflatten(1, (-1, len(levels))).flatten(0, 1)[places], targets, levels)

    def read(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Context:
        """See the base class. States are BOS and the history's tokens (B, T Q + 1), read by :meth:`log_probs`."""
        self._check_length(codes.shape[1])
        tokens = F.pad(self.vocabulary.tokens_of(codes).flatten(1), (1, 0), value=BOS)
        return Context(tokens, lengths * codes.shape[2] + 1)

    def log_probs(self, context: Context, prefixes: Int[Tensor, "B W l"]) -> Float[Tensor, "B W K"]:
        """See the base class."""
        batch, width, level = prefixes.shape
        history, past = context.states, context.states.shape[1]
        places = torch.arange(past, device=history.device)
        known = places < context.lengths[:, None]
        tokens = torch.where(known, history, PAD)
        if level == 0:
            states = self.model(inputs_embeds=self.embedding(tokens)).last_hidden_state
            last = states[torch.arange(batch), context.lengths - 1]
            return self._logits(last, 0).log_softmax(-1)[:, None].expand(-1, width, -1)
        branch = torch.arange(width * level, device=history.device)
        own = (branch[:, None] // level == branch // level) & (branch[:, None] >= branch)
        above = torch.cat([places[:, None] >= places, places.new_zeros(past, width * level, dtype=torch.bool)], 1)
        below = torch.cat([known[:, None].expand(-1, width * level, -1), own.expand(batch, -1, -1)], 2)
        sees = torch.cat([above.expand(batch, -1, -1), below], 1)[:, None]
        positions = torch.cat([places.expand(batch, -1), context.lengths[:, None] + branch % level], 1)
        states = self.model(
            inputs_embeds=self.embedding(torch.cat([tokens, self.vocabulary.tokens_of(prefixes).flatten(1)], 1)),
            attention_mask=torch.zeros_like(sees, dtype=torch.float32).masked_fill(~sees, torch.finfo().min),
            position_ids=positions,
        ).last_hidden_state
        return self._logits(states[:, past:].unflatten(1, (width, level))[:, :, -1], level).log_softmax(-1)


class _ItemDecoder(_CausalDecoder):
    """Base of the causal models with one position per item."""

    def read(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Context:
        """See the base class. States are those after the last item (B, 1, D)."""
        states = self._states(codes)
        return Context(states[torch.arange(codes.shape[0]), lengths][:, None], torch.ones_like(lengths))

    @abstractmethod
    def _states(self, codes: Tensor) -> Tensor:
        """States (B, T + 1, D) after BOS and after each item."""


class DepthDecoder(_ItemDecoder):
    """A causal transformer over items, and a small one over the levels of an item; Q times fewer positions.

    The input of the first at an item is the sum of its codes' embeddings. The second starts from its state and predicts
    the indices one after the other, each with a softmax over its level. One pass trains on all prefixes of a history.
    Both are GPT-2 models.

    Args:
        codebook_sizes: Codes per level.
        dim: Width of the model.
        num_layers: Layers over items.
        num_code_layers: Layers over the levels.
        num_heads: Attention heads.
        hidden_dim: Width inside the feed-forward layers.
        dropout: Dropout rate in [0, 1).
        max_items: Largest number of items in a row.

    References:
        Lee et al., Autoregressive image generation using residual quantization (RQ-Transformer), CVPR 2022, arXiv
        2203.01941, section 3.2, with items instead of positions.

    Example:
        >>> model = DepthDecoder((4, 4), 8, num_layers=1, num_heads=1, hidden_dim=8)
        >>> context = model.read(torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([2]))
        >>> model.log_probs(context, torch.tensor([[[0], [1], [2]]])).shape
        torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int = 192,
        *,
        num_layers: int = 3,
        num_code_layers: int = 1,
        num_heads: int = 6,
        hidden_dim: int = 768,
        dropout: float = 0.2,
        max_items: int = 21,
    ) -> None:
        super().__init__(codebook_sizes, dim, max_items)
        self.items: Any = gpt2(dim, num_layers, num_heads, hidden_dim, dropout, max_items + 1)
        self.codes: Any = gpt2(dim, num_code_layers, num_heads, hidden_dim, dropout, len(self.codebook_sizes))

    def loss(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """See the base class. Every item of each row is a target."""
        places, inputs, targets = self._packed(codes, lengths)
        states = self._states(codes)[:, :-1].flatten(0, 1)[places]
        return self._item_loss(self._write(states, inputs[:, :-1]), targets, range(codes.shape[2]))

    def log_probs(self, context: Context, prefixes: Int[Tensor, "B W l"]) -> Float[Tensor, "B W K"]:
        """See the base class."""
        width, level = prefixes.shape[1:]
        states = context.states.expand(-1, width, -1).flatten(0, 1)
        written = self._write(states, prefixes.flatten(0, 1))[:, -1]
        return self._logits(written, level).log_softmax(-1).unflatten(0, (-1, width))

    def _states(self, codes: Tensor) -> Tensor:
        """See the base class."""
        items = self.embedding(self.vocabulary.tokens_of(codes)).sum(2)
        return self.items(inputs_embeds=self._with_start(items)).last_hidden_state

    def _write(self, states: Tensor, codes: Tensor) -> Tensor:
        """States (N, l + 1, D) that predict the indices."""
        embedded = self.embedding(self.vocabulary.tokens_of(codes))
        return channel_states(self.codes, states, embedded)


class ParallelDecoder(_ItemDecoder):
    """A causal transformer over items that predicts all indices of the next id at once, for long unordered ids (RPG).

    With one table of code embeddings ``e_qk``, the input at an item is their mean, ``x = 1/Q sum_q e_{q, c_q}``. From
    the state s after an item each channel has its own head,

        ``h_q = s + SiLU(W_q s + b_q)``, ``p_q = softmax_k(cos(h_q, e_qk) / temperature)``,

    and the indices are independent given the history: ``log p(c) = sum_q log p_q(c_q)``. The loss is the mean
    cross-entropy over channels and items. The transformer is GPT-2; one pass trains on all prefixes of a history.

    Args:
        codebook_sizes: Codes per channel; 16 to 64 channels are usual.
        dim: Width of the model and of the code embeddings.
        num_layers: Layers.
        num_heads: Attention heads.
        hidden_dim: Width inside the feed-forward layers.
        dropout: Dropout rate in [0, 1).
        temperature: Of the softmax over cosines, > 0.
        max_items: Largest number of items in a row.
        input_dropout: Dropout rate of the embedded items, in [0, 1); ``dropout`` if None.
        channels_per_step: Channels whose cross-entropy is the loss of a training step, drawn anew in each; None for
            all. Its expectation is the loss of all channels, and heads and softmax, most of the work of a step, take
            as many times less as there are fewer.

    Raises:
        ValueError: If a number is out of range.

    References:
        Hou et al., Generating long semantic IDs in parallel for recommendation (RPG), KDD 2025, arXiv 2506.05781,
        sections 3.1 and 3.2. Deviations: every item is scored exactly unless an :class:`gritvq.items.ItemGraph` is
        given; the first item of a history is a target, too, predicted from BOS; code embeddings start with a standard
        deviation of ``.02 sqrt(Q)`` instead of ``.02``, so that an item's is ``.02``; attention has no dropout.
        ``channels_per_step`` is ours.

    Example:
        >>> model = ParallelDecoder((4, 4), 8, num_layers=1, num_heads=1, hidden_dim=8)
        >>> context = model.read(torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([2]))
        >>> model.log_probs(context, torch.tensor([[[0], [1], [2]]])).shape
        torch.Size([1, 3, 4])
    """

    parallel = True

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int = 192,
        *,
        num_layers: int = 2,
        num_heads: int = 4,
        hidden_dim: int = 768,
        dropout: float = 0.2,
        temperature: float = 0.05,
        max_items: int = 21,
        input_dropout: float | None = None,
        channels_per_step: int | None = None,
    ) -> None:
        super().__init__(codebook_sizes, dim, max_items)
        self.temperature = check_number("temperature", temperature, inside=True, hint="0.05 is usual")
        num_channels = len(self.codebook_sizes)
        if channels_per_step is not None and not 1 <= channels_per_step <= num_channels:
            raise ValueError(
                f"expected channels_per_step from 1 to the {num_channels} channels of the ids, got "
                f"{channels_per_step!r}; leave it out for all"
            )
        self.channels_per_step = channels_per_step
        self.items: Any = gpt2(dim, num_layers, num_heads, hidden_dim, dropout, max_items + 1, input_dropout)
        self.heads = nn.Linear(dim, num_channels * dim)
        with torch.no_grad():
            self.embedding.weight[EOS + 1 :] *= num_channels**0.5
            for parameter in self.heads.parameters():
                parameter.zero_()  # as in the released code: all heads start as the identity

    def loss(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """See the base class. Every item of each row is a target; in training the mean is over the drawn channels."""
        places, _, targets = self._packed(codes, lengths)
        channels = list(range(len(self.codebook_sizes)))
        if self.training and self.channels_per_step is not None:
            channels = torch.randperm(len(channels))[: self.channels_per_step].sort().values.tolist()
        states = self._heads(self._states(codes)[:, :-1].flatten(0, 1)[places], channels)
        return self._item_loss(states, targets[:, channels], channels) / len(channels)

    def log_probs(self, context: Context, prefixes: Int[Tensor, "B W l"]) -> Float[Tensor, "B W K"]:
        """See the base class. The indices of the prefixes are not read."""
        width, level = prefixes.shape[1:]
        logits = self._logits(self._heads(context.states[:, 0], [level])[:, 0], level)
        return logits.log_softmax(-1)[:, None].expand(-1, width, -1)

    def tables(self) -> list[Float[Tensor, "K D"]]:
        """Embeddings of the codes of each channel, for :class:`gritvq.items.ItemGraph`."""
        return [self.embedding.weight[self.vocabulary.range_of(level)] for level in range(len(self.codebook_sizes))]

    def _states(self, codes: Tensor) -> Tensor:
        """See the base class."""
        tokens = self.vocabulary.tokens_of(codes)
        if torch.compiler.is_exporting():  # ONNX has no bags
            items = self.embedding(tokens).sum(2) / tokens.shape[2]
        else:
            items = F.embedding_bag(tokens.flatten(0, 1), self.embedding.weight, mode="sum") / tokens.shape[2]
            items = items.unflatten(0, tokens.shape[:2])
        return self.items(inputs_embeds=self._with_start(items)).last_hidden_state

    def _heads(self, states: Tensor, channels: list[int]) -> Tensor:
        """Outputs (*batch, len(channels), D) of the heads of some channels."""
        weight, bias = self.heads.weight, self.heads.bias
        if len(channels) < len(self.codebook_sizes):
            rows = torch.tensor(channels, device=weight.device)
            weight, bias = (
                part.unflatten(0, (-1, self.dim))[rows].flatten(0, 1) for part in (self.heads.weight, self.heads.bias)
            )
        turned = F.linear(states, weight, bias)
        return states[..., None, :] + F.silu(turned).unflatten(-1, (-1, self.dim))

    def _products(self, multiply: Callable[[Tensor, Tensor], Tensor], states: Tensor, codes: Tensor) -> Tensor:
        """Cosines over the temperature."""
        return multiply(F.normalize(states, dim=-1), F.normalize(codes, dim=-1)).float() / self.temperature
