"""Models with a position per item that score all indices of an id at once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer, check_number
from gritvq.distributed import masked_mean
from gritvq.items.recommenders.backbones.base import NO_TARGET, Candidates, Context, PerItemDecoder, mask_items_before
from gritvq.priors.transformer import gpt2
from gritvq.tokens import EOS

__all__ = ["CatalogueDecoder", "LookupDecoder", "ParallelDecoder"]


class LookupDecoder(PerItemDecoder):
    """Base of the models whose score of an item is a sum of looked-up numbers, one for each index of its id.

    Outside of training the scores can have a part that is not trained: with a vector ``a_qk`` for each code
    (:meth:`set_content`) and ``a_i = sum_q a_{q, c_iq}``, ``content_weight <a_last / |a_last|, a_i>`` for the last item
    of the history is added: the cosine between what the codes of two items stand for, nearly. So the score of an item
    that nobody had in training depends on what it is. Sums are then no log-probabilities any more.

    Args:
        codebook_sizes: Codes per channel.
        dim: Width of the model.
        max_items: Largest number of items in a row.
        content_dim: Size of the code vectors; None for scores of what is trained alone.
        content_weight: See above, >= 0.

    References:
        The content is ours.
    """

    parallel = True
    content: Tensor

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int,
        max_items: int,
        content_dim: int | None = None,
        content_weight: float = 15.0,
    ) -> None:
        super().__init__(codebook_sizes, dim, max_items)
        self.content_dim = None if content_dim is None else check_integer("content_dim", content_dim)
        self.content_weight = check_number("content_weight", content_weight, hint="15 is usual")
        if content_dim is not None:
            self.register_buffer("content", torch.zeros(self.vocabulary.vocab_size, content_dim))

    @torch.no_grad()
    def set_content(self, vectors: Sequence[Float[Tensor, "K content_dim"]]) -> None:
        """Set the vectors of the codes of each channel, see :func:`gritvq.items.code_vectors`.

        Raises:
            ValueError: If the model has no place for them, or their shapes are others.
        """
        wanted = [(size, self.content_dim) for size in self.codebook_sizes]
        if self.content_dim is None or [tuple(part.shape) for part in vectors] != wanted:
            raise ValueError(
                f"expected code vectors {wanted[:3]} ... for a model with content_dim, got "
                f"{[tuple(part.shape) for part in vectors][:3]} ...; make it with their size as content_dim"
            )
        for level, part in enumerate(vectors):
            self.content[self.vocabulary.range_of(level)] = part.to(self.content)

    def read(self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"]) -> Context:
        """See the base class. Behind the states is the direction of the last item's code vectors."""
        context = super().read(codes, lengths)
        if self.content_dim is None:
            return context
        direction = context.states.new_zeros(codes.shape[0], self.content_dim)
        if codes.shape[1]:
            last = codes[torch.arange(codes.shape[0], device=codes.device), (lengths - 1).clamp(min=0)]
            found = _sums(self.content, self.vocabulary.tokens_of(last)) * (lengths > 0)[:, None]
            direction = F.normalize(found, dim=1).to(direction)
        return Context(torch.cat([context.states, direction[:, None]], 2), context.lengths)

    def log_probs(self, context: Context, prefixes: Int[Tensor, "B W l"]) -> Float[Tensor, "B W K"]:
        """See the base class. The indices of the prefixes are not read."""
        width, level = prefixes.shape[1:]
        states = context.states[:, 0]
        found = self._scores(states[:, : self.dim], level)
        if self.content_dim is not None:
            codes = self.content[self.vocabulary.range_of(level)]
            found = found + self.content_weight * F.linear(states[:, self.dim :], codes.to(states)).float()
        return found[:, None].expand(-1, width, -1)

    @abstractmethod
    def _scores(self, states: Float[Tensor, "B D"], level: int) -> Float[Tensor, "B K"]:
        """Summands of the scores that a level's codes have after these states, as far as they are trained."""

    def tables(self) -> list[Float[Tensor, "K D"]]:
        """Embeddings of the codes of each channel, for :class:`gritvq.items.ItemGraph`."""
        return [self.embedding.weight[self.vocabulary.range_of(level)] for level in range(len(self.codebook_sizes))]


class ParallelDecoder(LookupDecoder):
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
        content_dim: See :class:`LookupDecoder`.
        content_weight: See :class:`LookupDecoder`.

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

    mean_over_levels = True

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
        content_dim: int | None = None,
        content_weight: float = 15.0,
    ) -> None:
        super().__init__(codebook_sizes, dim, max_items, content_dim, content_weight)
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

    def loss(
        self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"], candidates: Candidates | None = None
    ) -> Float[Tensor, ""]:
        """See the base class. Every item of each row is a target; in training the mean is over the drawn channels."""
        places, _, targets = self._packed(codes, lengths)
        channels = list(range(len(self.codebook_sizes)))
        if self.training and self.channels_per_step is not None:
            channels = torch.randperm(len(channels))[: self.channels_per_step].sort().values.tolist()
        states = self._heads(self._states(codes)[:, :-1].flatten(0, 1)[places], channels)
        return self._item_loss(states, targets[:, channels], channels) / len(channels)

    def _scores(self, states: Float[Tensor, "B D"], level: int) -> Float[Tensor, "B K"]:
        """See the base class: log-probabilities."""
        return self._logits(self._heads(states, [level])[:, 0], level).log_softmax(-1)

    def _states(self, codes: Tensor) -> Tensor:
        """See the base class."""
        items = _sums(self.embedding.weight, self.vocabulary.tokens_of(codes)) / codes.shape[2]
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


class CatalogueDecoder(LookupDecoder):
    """A causal transformer over items with one softmax over the whole catalogue; codes are all it knows of an item.

    With one table of code embeddings, an item is their sum, ``v_i = sum_q e_{q, c_iq}``, where it is read and where it
    is predicted. From the state s after the items so far,

        ``score(i) = <s, v_i> = sum_q <s, e_{q, c_iq}>``, ``p(i) = exp(score(i)) / sum_j exp(score(j))``,

    where j runs over the catalogue, in training without the earlier items among those it reads if the recommender
    excludes seen items (``exclude_seen``): the state may then be similar to them. Scores are sums over channels,
    as those of :class:`ParallelDecoder` are, so the same look-up, graph and program serve them; an item that was not
    there in training has a score by its codes. The loss is the mean cross-entropy over items. The transformer is GPT-2;
    one pass trains on all prefixes of a history.

    Args:
        codebook_sizes: Codes per channel; 16 to 64 channels are usual.
        dim: Width of the model and of the code embeddings.
        num_layers: Layers.
        num_heads: Attention heads.
        hidden_dim: Width inside the feed-forward layers.
        dropout: Dropout rate in [0, 1).
        max_items: Largest number of items in a row.
        num_negatives: Items drawn anew in each step as the others of the softmax, for catalogues whose scores (items
            of a batch times items of the catalogue) are too many; None for all.
        content_dim: See :class:`LookupDecoder`.
        content_weight: See :class:`LookupDecoder`.

    Raises:
        ValueError: If a number is out of range.

    References:
        Hou et al., Learning vector-quantized item representation for transferable sequential recommenders (VQ-Rec), WWW
        2023, arXiv 2210.12316, sections 3.1 and 3.2. Deviations: one table for inputs and outputs, products instead of
        cosines, a loss at every item instead of the last, no pre-training on other catalogues. With ``num_negatives``
        m of n items, the sum of ``exp(score(j))`` over items of other ids is estimated by ``n / m`` times that over
        those drawn.

    Example:
        >>> model = CatalogueDecoder((4, 4), 8, num_layers=1, num_heads=1, hidden_dim=8)
        >>> catalogue = torch.tensor([[0, 1], [2, 3], [1, 1]])
        >>> loss = model.loss(catalogue[None], torch.tensor([3]), Candidates(catalogue))
        >>> bool((loss - torch.tensor(3.0).log()).abs() < 0.2)  # untrained: about log 3
        True
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int = 64,
        *,
        num_layers: int = 2,
        num_heads: int = 2,
        hidden_dim: int = 256,
        dropout: float = 0.4,
        max_items: int = 21,
        num_negatives: int | None = None,
        content_dim: int | None = None,
        content_weight: float = 15.0,
    ) -> None:
        super().__init__(codebook_sizes, dim, max_items, content_dim, content_weight)
        if num_negatives is not None:
            check_integer("num_negatives", num_negatives, hint="leave it out for the whole catalogue")
        self.num_negatives = num_negatives
        self.items: Any = gpt2(dim, num_layers, num_heads, hidden_dim, dropout, max_items + 1)
        with torch.no_grad():
            self.embedding.weight[EOS + 1 :] /= len(self.codebook_sizes) ** 0.5  # so that an item's vector has .02

    def loss(
        self, codes: Int[Tensor, "B T Q"], lengths: Int[Tensor, " B"], candidates: Candidates | None = None
    ) -> Float[Tensor, ""]:
        """See the base class. Every item of each row is a target.

        Raises:
            ValueError: If the catalogue is missing.
        """
        if candidates is None:
            raise ValueError("expected the ids of the catalogue, got none; pass all of them, one row per item")
        catalogue = candidates.codes
        places, inputs, targets = self._packed(codes, lengths)
        states = self._states(codes)[:, :-1].flatten(0, 1)[places]
        wanted = (states * self._vectors(inputs)).sum(1).float()
        if self.training and self.num_negatives is not None:
            rows = torch.randint(len(catalogue), (self.num_negatives,), device=codes.device)
            drawn = catalogue[rows]
            left_out = (inputs[:, None] == drawn).all(2)
            if candidates.seen is not None:
                left_out |= _drawn_before(candidates.seen, places, rows)
            logits = (states @ self._vectors(drawn).T).float().masked_fill(left_out, -math.inf)
            others = logits + math.log(len(catalogue) / self.num_negatives)
            total = torch.cat([wanted[:, None], others], 1).logsumexp(1)
        else:
            logits = (states @ self._vectors(catalogue).T).float()
            if candidates.seen is not None:
                logits = mask_items_before(logits, candidates.seen, places)
            total = logits.logsumexp(1)
        real = targets[:, 0] != NO_TARGET
        return masked_mean(total - wanted, real)

    def _scores(self, states: Float[Tensor, "B D"], level: int) -> Float[Tensor, "B K"]:
        """See the base class: ``<s, e_qk>``; sums are log-probabilities up to a constant of each history."""
        return self._logits(states, level)

    def _vectors(self, codes: Int[Tensor, "n Q"]) -> Float[Tensor, "n D"]:
        """Vectors of items."""
        return _sums(self.embedding.weight, self.vocabulary.tokens_of(codes))

    def _states(self, codes: Tensor) -> Tensor:
        """See the base class."""
        return self.items(inputs_embeds=self._with_start(self._vectors(codes)) * self.dim**0.5).last_hidden_state


def _drawn_before(seen: Int[Tensor, "B T"], places: Int[Tensor, " N"], drawn: Int[Tensor, " m"]) -> Bool[Tensor, "N m"]:
    """Whether each drawn item is before each place of the flattened histories and not the item there."""
    length = seen.shape[1]
    first = torch.stack([F.pad(line[:, None] == drawn, (0, 0, 0, 1), value=True).int().argmax(0) for line in seen])
    return (first[places // length] < places[:, None] % length) & (seen.flatten()[places][:, None] != drawn)


def _sums(table: Float[Tensor, "V D"], tokens: Int[Tensor, "*batch Q"]) -> Float[Tensor, "*batch D"]:
    """Sums over the rows of tokens."""
    if torch.compiler.is_exporting():  # ONNX has no bags
        return F.embedding(tokens, table).sum(-2)
    return F.embedding_bag(tokens.flatten(0, -2), table, mode="sum").unflatten(0, tokens.shape[:-1])
