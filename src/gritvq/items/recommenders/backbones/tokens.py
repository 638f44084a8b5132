"""Models with a position for each index of an id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.items.recommenders.backbones.base import Backbone, Candidates, CausalDecoder, Context, mean_cross_entropy
from gritvq.lazy import optional
from gritvq.priors.transformer import gpt2
from gritvq.tokens import BOS, EOS, PAD

__all__ = ["EncoderDecoder", "TokenDecoder"]

_PREFIXES = 64  # in one sequence: memory grows with the square


class EncoderDecoder(Backbone):
    """T5 with random initial weights, as in TIGER: the encoder reads the history, the decoder predicts the next id.

    The softmax is over the whole vocabulary. In :meth:`log_probs` up to 64 prefixes stand in one sequence, and the
    attention mask separates them, so that keys and values of the cross-attention are computed once for all of them.
    Positions are relative, so each prefix is read as if it were alone.

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

    def loss(
        self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"], candidates: Candidates | None = None
    ) -> Float[Tensor, ""]:
        """See the base class. The last item of each row is the target."""
        levels = codes.shape[2]
        targets = self.vocabulary.tokens_of(codes[torch.arange(len(codes)), lengths - 1])
        context = self.read(codes[:, : max(1, codes.shape[1] - 1)], lengths - 1)
        before = F.pad(targets[:, :-1], (1, 0), value=BOS)
        logits = self._logits(context.states, self._mask(context), before)
        return mean_cross_entropy(logits.float().flatten(0, 1), targets.flatten()) * levels

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
        batch, width, level = prefixes.shape
        times = -(-width // _PREFIXES)  # sequences of one history
        count = -(-width // times)
        rows = F.pad(prefixes, (0, 0, 0, times * count - width)).flatten(0, 1)  # what is added is dropped below
        tokens = rows.new_full((rows.shape[0], 1), BOS)
        if level:
            tokens = torch.cat([tokens, self.vocabulary.tokens_of(rows)], 1)
        tokens = tokens.reshape(-1, count * (level + 1))
        place = torch.arange(tokens.shape[1], device=tokens.device)
        sees = (place[:, None] // (level + 1) == place // (level + 1)) & (place[:, None] >= place)
        states, mask = (part.repeat_interleave(times, 0) for part in (context.states, self._mask(context)))
        logits = self._logits(states, mask, tokens, sees.expand(tokens.shape[0], 1, -1, -1))
        logits = logits.view(batch, -1, level + 1, logits.shape[-1])[:, :width, -1]
        return logits.float().log_softmax(-1)[..., self.vocabulary.range_of(level)]

    def _logits(self, states: Tensor, mask: Tensor, tokens: Tensor, sees: Tensor | None = None) -> Tensor:
        """Logits (N, l, V) after each token, which sees all before it where ``sees`` (N, 1, l, l) says nothing else."""
        if sees is not None:
            sees = torch.zeros_like(sees, dtype=states.dtype).masked_fill(~sees, torch.finfo(states.dtype).min)
        return self.model(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=tokens, decoder_attention_mask=sees
        ).logits

    @staticmethod
    def _mask(context: Context) -> Tensor:
        places = torch.arange(context.states.shape[1], device=context.lengths.device)
        return (places < context.lengths[:, None]).long()


class TokenDecoder(CausalDecoder):
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

    def loss(
        self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"], candidates: Candidates | None = None
    ) -> Float[Tensor, ""]:
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
