"""Writing documents: one segment after the other, each from its latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gritvq.component import check_integer, check_number
from gritvq.priors.sampling import Seeds, filtered, seeds_of
from gritvq.quantizers.canonical import ranked
from gritvq.text.segments import Segmentation, TextBatch, TextFormat

if TYPE_CHECKING:
    from gritvq.text.networks.latents import GaussianLatents
    from gritvq.text.networks.parts import SegmentDecoder, SegmentEncoder

__all__ = ["Writing", "write_documents"]


@dataclass(frozen=True)
class Writing:
    """How documents are written.

    Args:
        temperature: Divides the logits, >= 0; 0 takes the most probable token.
        top_k: Draw from the k most probable tokens.
        top_p: Draw from the smallest set of most probable tokens whose probabilities sum to at least this.
        beam: Number of beams, 1 for none. With more, each segment is the most probable one, per token, that the beams
            find given its latent and the text so far; the three settings above do not count then.
        latent_scale: Multiplies the standard deviation of latents that are drawn from the prior; 0 takes the mean.
        max_segments: Most segments of a document, those of a prompt included; None for as many as the model's own
            segmentation has, see :class:`gritvq.text.Segmentation`.
        max_tokens: Most tokens of a segment, its last one included; at least 2, and None likewise.
        seeds: Seed of all documents, a seed for each (see :func:`gritvq.priors.sample_seeds`), or a generator to draw
            the seed from; PyTorch's global generator if None.

    Raises:
        ValueError: If a number is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    beam: int = 1
    latent_scale: float = 1.0
    max_segments: int | None = None
    max_tokens: int | None = None
    seeds: Seeds = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature)
        check_number("latent_scale", self.latent_scale)
        for name, value, least in (
            ("beam", self.beam, 1),
            ("max_segments", self.max_segments, 1),
            ("max_tokens", self.max_tokens, 2),
            ("top_k", self.top_k, 1),
        ):
            if value is not None:
                check_integer(name, value, least)
        if self.top_p is not None:
            check_number("top_p", self.top_p, most=1.0)

    def limits(self, form: TextFormat | None) -> Segmentation:
        """The most segments and tokens, where the model has this format."""
        own = Segmentation() if form is None else form.segmentation
        return Segmentation(
            max_tokens=self.max_tokens or own.max_tokens, max_segments=self.max_segments or own.max_segments
        )


class Writer(Protocol):
    """What can write: a decoder, and for latents an encoder and their distribution."""

    decoder: SegmentDecoder
    encoder: SegmentEncoder | None
    latents: GaussianLatents | None
    format: TextFormat | None


class _Draws:
    """Random numbers of each document, from a generator of its own: they do not depend on the others."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.of_tokens = [np.random.default_rng([seed, 0]) for seed in seeds]
        self.of_latents = [np.random.default_rng([seed, 1]) for seed in seeds]
        self.device = device

    def normal(self, size: int) -> Tensor:
        found = np.stack([generator.standard_normal(size) for generator in self.of_latents])
        return torch.from_numpy(found).float().to(self.device)

    def gumbel(self, rows: Sequence[int], size: int) -> Tensor:
        """Gumbel noise for these documents: the largest of logits + noise is a draw from their softmax."""
        uniform = torch.from_numpy(np.stack([self.of_tokens[row].random(size) for row in rows])).clamp_(min=2.0**-54)
        return uniform.log_().neg_().log_().neg_().float().to(self.device)


class _Read:
    """Documents as far as they are written: what the next token and the next latent depend on.

    Args:
        model: Decoder and encoder.
        num: Documents B.
        cache: Whether keys and values are kept; else everything is computed again for every token.
    """

    def __init__(self, model: Writer, num: int, cache: bool, device: torch.device) -> None:
        self.decoder, self.encoder, self.device, self.cached = model.decoder, model.encoder, device, cache
        self.rows: list[list[int]] = [[] for _ in range(num)]
        self.segments: list[list[int]] = [[] for _ in range(num)]
        self.number = [-1] * num  # of the segment that is being written
        self.latents: list[list[Tensor]] = [[] for _ in range(num)]
        if cache:
            self.past = self.decoder.transformer.new_cache()
            self.seen = torch.zeros(num, 0, dtype=torch.bool, device=device)
            self.past_of_encoder = None if self.encoder is None else self.encoder.transformer.new_cache()
            self.seen_by_encoder = self.seen

    def batch(self, more: int = 0) -> TextBatch:
        """All documents, with this many tokens behind, which stand for the next one; none behind a full document."""
        length = min(max(map(len, self.rows)) + more, self.decoder.transformer.length)
        tokens = torch.zeros(len(self.rows), length, dtype=torch.int64, device=self.device)
        segments = torch.full_like(tokens, -1)
        for target, numbers, row, own, number in zip(
            tokens, segments, self.rows, self.segments, self.number, strict=True
        ):
            target[: len(row)] = torch.tensor(row, dtype=torch.int64)
            numbers[: len(row)] = torch.tensor(own, dtype=torch.int64)
            numbers[len(row) : len(row) + more] = max(0, number)
        return TextBatch(tokens, segments)

    def begin(self, active: Sequence[int], latents: Tensor | None) -> None:
        """Begin a segment of these documents, each with its latent (B, D)."""
        for row in active:
            self.number[row] += 1
            if latents is not None:
                self.latents[row].append(latents[row])
        if self.cached and latents is not None:
            memory = self.decoder.memories(latents[:, None])
            assert memory is not None
            self.decoder.transformer.remember(self.past, memory)
            self.seen = torch.cat([self.seen, self._flags(active)[:, None]], 1)

    def logits(self, active: Sequence[int]) -> Float[Tensor, "N V-1"]:
        """Logits of the next token of these documents."""
        if not self.cached:
            batch = self.batch(more=1)
            states = self.decoder.states(batch, self._all_latents())
            ends = torch.tensor([len(self.rows[row]) for row in active], device=self.device)
            return self.decoder.logits(states[torch.tensor(active, device=self.device), ends]).float()
        before = [row[-1] if row else self.decoder.start for row in self.rows]
        last = self.decoder.transformer.length - 1
        positions = torch.tensor([min(last, len(row)) for row in self.rows], device=self.device)
        self.seen = torch.cat([self.seen, self._flags(active)[:, None]], 1)
        mask = self.seen.clone()
        mask[:, -1] = True  # what is not active sees itself, and nobody sees it
        inputs = self.decoder.transformer.embed(torch.tensor(before, device=self.device)[:, None])
        states = self.decoder.transformer(inputs, positions[:, None], mask[:, None], self.past)[:, 0]
        return self.decoder.logits(states[torch.tensor(active, device=self.device)]).float()

    def write(self, active: Sequence[int], tokens: Sequence[int]) -> None:
        """Add a token to each of these documents."""
        for row, token in zip(active, tokens, strict=True):
            self.rows[row].append(token)
            self.segments[row].append(self.number[row])

    def contexts(self) -> Float[Tensor, "B C"]:
        """The encoder's vector of the last segment of each document."""
        assert self.encoder is not None
        lasts = [
            [token for token, own in zip(row, numbers, strict=True) if own == number]
            for row, numbers, number in zip(self.rows, self.segments, self.number, strict=True)
        ]
        if not self.cached:
            vectors = self.encoder(self.batch())
            return vectors[torch.arange(len(vectors)), torch.tensor(self.number, device=self.device)]
        lengths = torch.tensor(list(map(len, lasts)), device=self.device)
        tokens = torch.zeros(len(lasts), int(lengths.max()), dtype=torch.int64, device=self.device)
        for target, own in zip(tokens, lasts, strict=True):
            target[: len(own)] = torch.tensor(own, dtype=torch.int64)
        valid = torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]
        before = torch.tensor([len(row) for row in self.rows], device=self.device) - lengths
        vectors, self.seen_by_encoder = self.encoder.extend(
            self.past_of_encoder, self.seen_by_encoder, tokens, valid, before
        )
        return vectors

    def select(self, rows: Sequence[int]) -> None:
        """Keep these documents, in this order; one may be there more than once."""
        for name in ("rows", "segments", "latents"):
            setattr(self, name, [list(getattr(self, name)[row]) for row in rows])
        self.number = [self.number[row] for row in rows]
        if self.cached:
            index = torch.tensor(rows, device=self.device)
            self.seen = self.seen[index]
            if self.past.get_seq_length():
                self.decoder.transformer.select(self.past, index)

    def _flags(self, active: Sequence[int]) -> Bool[Tensor, " B"]:
        flags = torch.zeros(len(self.rows), dtype=torch.bool)
        flags[list(active)] = True
        return flags.to(self.device)

    def _all_latents(self) -> Tensor | None:
        if not any(self.latents):
            return None
        found = torch.zeros(len(self.rows), max(map(len, self.latents)), self.decoder.dim or 0, device=self.device)
        for target, own in zip(found, self.latents, strict=True):
            for place, latent in enumerate(own):
                target[place] = latent
        return found


def write_documents(
    model: Writer,
    num: int | None,
    prompts: TextBatch | None,
    latents: tuple[Tensor, Tensor] | None,
    writing: Writing,
    cache: bool,
) -> TextBatch:
    """See :meth:`gritvq.text.TraceModel.generate`.

    Raises:
        ValueError: If prompts or latents do not fit.
    """
    given = len(prompts.tokens) if prompts is not None else None if latents is None else len(latents[0])
    if prompts is not None and latents is not None:
        raise ValueError("expected prompts or latents, got both; give one of them")
    if (num is None and given is None) or (num is not None and given not in (None, num)):
        raise ValueError(f"expected the number of documents, got num={num} for {given} prompts or latents; give num")
    num = check_integer("num", num or given or 0, hint="give num")
    device = model.decoder.transformer.embeddings.device
    if latents is not None and latents[0].shape[2] != model.decoder.dim:
        raise ValueError(
            f"expected latents of size {model.decoder.dim}, got {latents[0].shape[2]}; are they this model's?"
        )
    draws = _Draws(seeds_of(writing.seeds, num), device)
    read, limits = _Read(model, num, cache, device), writing.limits(model.format)
    context = None if model.latents is None else model.latents.start.expand(num, -1)
    state = None if model.decoder.dim is None else torch.zeros(num, model.decoder.dim, device=device)
    if prompts is not None:
        context, state = _read_prompts(model, read, prompts.to(device), limits.max_segments)
    active = [row for row in range(num) if latents is None or bool(latents[1][row].any())]
    counts = None if latents is None else list(map(int, latents[1].sum(1).tolist()))
    if counts is not None and max(counts) > model.decoder.transformer.length:
        raise ValueError(
            f"expected latents of at most {model.decoder.transformer.length} segments, which the transformer's length "
            f"has room for, got {max(counts)}; give fewer"
        )
    while active:
        state = _next_latents(model, read, latents, state, context, draws, writing)
        read.begin(active, state)
        rest = None if counts is None else {row: counts[row] - read.number[row] - 1 for row in active}
        allowed = _Allowed(read, model.decoder, limits.max_tokens, rest)
        (_draw_segment if writing.beam == 1 else _beam_segment)(read, active, allowed, draws, writing)
        active = [
            row
            for row in active
            if read.rows[row][-1] != model.decoder.start - 1
            and read.number[row] + 1 < (limits.max_segments if counts is None else counts[row])
            and (counts is not None or len(read.rows[row]) + 1 < model.decoder.transformer.length)
        ]
        if active and model.latents is not None and latents is None:
            context = read.contexts()
    return read.batch()


def _next_latents(
    model: Writer,
    read: _Read,
    latents: tuple[Tensor, Tensor] | None,
    state: Tensor | None,
    context: Tensor | None,
    draws: _Draws,
    writing: Writing,
) -> Tensor | None:
    """Latents (B, D) of the next segment; of documents that have ended they do not matter."""
    if latents is not None:
        numbers = torch.tensor(read.number, device=read.device) + 1
        places = numbers.clamp(max=latents[0].shape[1] - 1)
        return latents[0].to(read.device)[torch.arange(len(numbers)), places]
    if model.latents is None:
        return None
    assert state is not None and context is not None
    prior = model.latents.prior(context.float())
    noise = writing.latent_scale * draws.normal(model.latents.dim)
    return model.latents.recurrence.step(state, prior.mean + prior.log_scale.exp() * noise)


class _Allowed:
    """What may follow in a segment, the last token of a segment at its limit being one that ends it.

    Args:
        read: The documents.
        decoder: For the special tokens.
        max_tokens: Most tokens of a segment.
        rest: Segments of each document still to come behind this one, where their number is given. There is room left
            for each, ``end`` ends the last one, and ``separator`` all others. None if the model decides.
    """

    def __init__(self, read: _Read, decoder: SegmentDecoder, max_tokens: int, rest: Mapping[int, int] | None) -> None:
        self.read, self.max_tokens, self.rest = read, max_tokens, rest
        self.separator, self.end, self.length = decoder.start - 2, decoder.start - 1, decoder.transformer.length

    def __call__(self, logits: Tensor, rows: Sequence[int], number: int, beam: int = 1) -> Tensor:
        """Logits of these rows for the token of this number in the segment; a document has ``beam`` rows."""
        logits = logits.clone()
        rest = [0 if self.rest is None else self.rest[row // beam] for row in rows]
        room = [self.length - len(self.read.rows[row]) - later for row, later in zip(rows, rest, strict=True)]
        full = [number + 1 >= self.max_tokens or left <= 1 for left in room]
        logits[torch.tensor(full, device=logits.device), : self.separator] = -torch.inf
        if self.rest is not None:
            for place, later in enumerate(rest):
                logits[place, self.end if later else self.separator] = -torch.inf
        return logits


def _draw_segment(read: _Read, active: list[int], allowed: _Allowed, draws: _Draws, writing: Writing) -> None:
    """Draw one segment of each active document."""
    writers, number = list(active), 0
    while writers:
        logits = allowed(read.logits(writers), writers, number)
        if writing.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            kept = filtered(logits / writing.temperature, writing.top_k, writing.top_p)
            chosen = (kept + draws.gumbel(writers, kept.shape[1])).argmax(-1)
        tokens = chosen.tolist()
        read.write(writers, tokens)
        writers = [row for row, token in zip(writers, tokens, strict=True) if token < allowed.separator]
        number += 1


def _beam_segment(read: _Read, active: list[int], allowed: _Allowed, draws: _Draws, writing: Writing) -> None:
    """The most probable segment per token that the beams find, of each active document."""
    num, width = len(read.rows), writing.beam
    read.select([row for row in range(num) for _ in range(width)])
    begun = [len(row) for row in read.rows]
    # The first beam of each document is alone in the first step: all are equal.
    scores = torch.full((num, width), -torch.inf, dtype=torch.float64)
    scores[:, 0] = 0.0
    writers, number = [row * width + n for row in active for n in range(width)], 0
    while writers:
        logits = allowed(read.logits(writers), writers, number, width).double().log_softmax(-1).cpu()
        size = logits.shape[1]
        of_writer = dict(zip(writers, logits, strict=True))
        order, tokens = list(range(num * width)), [-1] * (num * width)
        for row in active:
            beams = range(row * width, (row + 1) * width)
            # A finished beam goes on as itself, in a column of its own behind the tokens.
            table = torch.full((width, size + 1), -torch.inf, dtype=torch.float64)
            for place, one in enumerate(beams):
                if one in of_writer:
                    table[place, :size] = scores[row, place] + of_writer[one]
                else:
                    table[place, size] = scores[row, place]
            best = ranked(table.reshape(1, -1), width)[0]
            scores[row] = table.reshape(-1)[best]
            for one, flat in zip(beams, best.tolist(), strict=True):
                order[one], token = beams[flat // (size + 1)], flat % (size + 1)
                tokens[one] = token if token < size and scores[row, one % width] > -torch.inf else -1
        read.select(order)
        grown = [one for one in range(num * width) if tokens[one] >= 0]
        read.write(grown, [tokens[one] for one in grown])
        writers = [one for one in grown if tokens[one] < allowed.separator]
        number += 1
    kept = []
    for row in range(num):
        beams = range(row * width, (row + 1) * width)
        written = torch.tensor([max(1, len(read.rows[one]) - begun[one]) for one in beams], dtype=torch.float64)
        kept.append(row * width + int((scores[row] / written).argmax()) if row in set(active) else row * width)
    read.select(kept)


def _read_prompts(
    model: Writer, read: _Read, prompts: TextBatch, max_segments: int
) -> tuple[Tensor | None, Tensor | None]:
    """Take prompts in; returns the encoder's vectors and the latents of their last segments."""
    separator, end = model.decoder.start - 2, model.decoder.start - 1
    counts = prompts.num_segments
    if bool((counts < 1).any()):
        raise ValueError("expected prompts with text, got an empty one; leave it out, or give num instead")
    most, longest = int(counts.max()), int(prompts.valid.sum(1).max())
    if most >= max_segments or longest + 1 >= model.decoder.transformer.length:
        raise ValueError(
            f"expected prompts of fewer than {max_segments} segments and {model.decoder.transformer.length - 1} "
            f"tokens, so that something is left to write, got up to {most} and {longest}; shorten them"
        )
    tokens = prompts.tokens.masked_fill(prompts.tokens == end, separator)  # they go on
    prompts = TextBatch(tokens, prompts.segments)
    rows = torch.arange(len(counts), device=counts.device)
    context = state = latents = None
    if model.encoder is not None and model.latents is not None:
        vectors = model.encoder(prompts)
        latents = model.latents(vectors, sample=False).latents
        context, state = vectors[rows, counts - 1], latents[rows, counts - 1]
    lengths = prompts.valid.sum(1).tolist()
    for row, length in enumerate(lengths):
        read.rows[row] = tokens[row, :length].tolist()
        read.segments[row] = prompts.segments[row, :length].tolist()
        read.number[row] = int(counts[row]) - 1
        if latents is not None:
            read.latents[row] = list(latents[row, : int(counts[row])])
    if read.cached:
        model.decoder.states(prompts, latents, read.past)
        memory = prompts.present if latents is not None else prompts.present[:, :0]
        read.seen = torch.cat([memory, prompts.valid], 1)
        if model.encoder is not None:
            _fill_encoder(read, model.encoder, prompts)
    return context, state


def _fill_encoder(read: _Read, encoder: SegmentEncoder, prompts: TextBatch) -> None:
    """Put the prompts into the encoder's cache, with the masks of the whole batch."""
    encoder.forward(prompts, read.past_of_encoder)
    read.seen_by_encoder = prompts.valid
