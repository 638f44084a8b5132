"""Beam search and exact scores against brute force, and against generate of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gritvq.items import (
    Backbone,
    DepthDecoder,
    EncoderDecoder,
    PrefixTrie,
    TokenDecoder,
    TrieLogitsProcessor,
    beam_search,
    exact_scores,
)
from gritvq.items.recommenders.backbones import Context
from gritvq.tokens import BOS

pytest.importorskip("transformers")


class Table(Backbone):
    """Log-probabilities from a fixed random table per prefix: what search sees of a model, and nothing else."""

    every_prefix = False

    def __init__(self, codebook_sizes: tuple[int, ...], seed: int, steps: int | None = None) -> None:
        super().__init__(codebook_sizes, 1)
        generator = torch.Generator().manual_seed(seed)
        self.tables = []
        for level, size in enumerate(codebook_sizes):
            values = torch.randn(2, math.prod(codebook_sizes[:level]), size, generator=generator)
            if steps is not None:  # few different values, so that scores tie
                values = (values * steps).round() / steps
            self.tables.append(values)

    def loss(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a search asks for no loss")

    def read(self, codes: torch.Tensor, lengths: torch.Tensor) -> Context:
        return Context(codes, lengths)

    def log_probs(self, context: Context, prefixes: torch.Tensor) -> torch.Tensor:
        places = torch.zeros(prefixes.shape[:2], dtype=torch.int64)
        for level in range(prefixes.shape[2]):
            places = places * self.codebook_sizes[level] + prefixes[..., level]
        return self.tables[prefixes.shape[2]][torch.arange(2)[:, None], places]

    def score(self, user: int, row: list[int]) -> float:
        place, total = 0, 0.0
        for level, code in enumerate(row):
            total += float(self.tables[level][user, place, code])
            place = place * self.codebook_sizes[level] + code
        return total


@st.composite
def searches(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, ...], int, int | None]:
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    codes = torch.tensor(draw(st.lists(row, min_size=1, max_size=30)))
    return codes, sizes, draw(st.integers(0, 1000)), draw(st.sampled_from([None, 1]))


CONTEXT = Context(torch.zeros(2, 1, 1), torch.ones(2, dtype=torch.int64))


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 7))
def test_exact_scores_are_the_sums_along_every_id(
    search: tuple[torch.Tensor, tuple[int, ...], int, int | None], block: int
) -> None:
    codes, sizes, seed, steps = search
    trie, model = PrefixTrie(codes, sizes), Table(sizes, seed, steps)
    scores = exact_scores(model, CONTEXT, trie, block=block)
    ids = codes.unique(dim=0)
    assert torch.equal(trie.prefixes_of(trie.level(len(sizes)), len(sizes)), ids)
    wanted = torch.tensor([[model.score(user, row) for row in ids.tolist()] for user in range(2)])
    torch.testing.assert_close(scores, wanted)


@settings(max_examples=60, deadline=None)
@given(searches())
def test_a_beam_of_the_catalogue_finds_what_exact_scores_say(
    search: tuple[torch.Tensor, tuple[int, ...], int, int | None],
) -> None:
    codes, sizes, seed, steps = search
    trie, model = PrefixTrie(codes, sizes), Table(sizes, seed, steps)
    exact = exact_scores(model, CONTEXT, trie)
    beams = beam_search(model, CONTEXT, trie, beam=len(codes))
    found = trie.num_leaves
    order = exact.sort(dim=1, descending=True, stable=True)  # of equal scores the lexicographically first
    assert torch.equal(beams.leaves[:, :found], order.indices + trie.offsets[-2])
    assert torch.equal(beams.scores[:, :found], order.values)
    assert beams.leaves[:, found:].eq(-1).all() and beams.scores[:, found:].eq(-math.inf).all()


@settings(max_examples=40, deadline=None)
@given(searches(), st.integers(1, 5))
def test_a_narrow_beam_is_the_textbook_loop(
    search: tuple[torch.Tensor, tuple[int, ...], int, int | None], beam: int
) -> None:
    codes, sizes, seed, _ = search
    trie, model = PrefixTrie(codes, sizes), Table(sizes, seed)
    rows = {tuple(row) for row in codes.tolist()}
    beams = beam_search(model, CONTEXT, trie, beam)
    for user in range(2):
        kept: list[tuple[int, ...]] = [()]
        for level, size in enumerate(sizes):
            known = {row[: level + 1] for row in rows}
            longer = [(*prefix, code) for prefix in kept for code in range(size) if (*prefix, code) in known]
            kept = sorted(longer, key=lambda prefix: -model.score(user, list(prefix)))[:beam]
        wanted = trie.walk(torch.tensor(kept))
        assert torch.equal(beams.leaves[user, : len(kept)], wanted) and beams.leaves[user, len(kept) :].eq(-1).all()


def small(kind: type[Backbone], sizes: tuple[int, ...]) -> Backbone:
    torch.manual_seed(0)
    shape = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
    backbone = kind(sizes, 16, **shape, **({"head_dim": 8} if kind is EncoderDecoder else {})).eval()
    for parameter in backbone.parameters():
        parameter.data.mul_(2.0)  # away from even probabilities
    return backbone


@pytest.mark.parametrize("kind", [EncoderDecoder, TokenDecoder, DepthDecoder])
def test_exact_and_beam_agree_for_real_models(kind: type[Backbone]) -> None:
    sizes = (4, 5, 3)
    generator = torch.Generator().manual_seed(1)
    codes = torch.stack([torch.randint(0, size, (30,), generator=generator) for size in sizes], 1)
    trie, model = PrefixTrie(codes, sizes), small(kind, sizes)
    with torch.no_grad():
        context = model.read(codes[torch.randint(0, 30, (3, 6), generator=generator)], torch.tensor([6, 0, 2]))
        exact = exact_scores(model, context, trie, block=4)
        beams = beam_search(model, context, trie, beam=trie.num_leaves)
    wanted = exact.topk(10)
    assert exact.std(1).gt(0.01).all()  # the models do not say the same of all ids
    torch.testing.assert_close(beams.scores[:, :10], wanted.values)
    assert torch.equal(beams.leaves[:, :10], wanted.indices + trie.offsets[-2])


def test_beam_search_equals_generate_of_transformers() -> None:
    sizes, beam = (4, 5, 3), 6
    generator = torch.Generator().manual_seed(2)
    codes = torch.stack([torch.randint(0, size, (25,), generator=generator) for size in sizes], 1)
    trie, model = PrefixTrie(codes, sizes), small(EncoderDecoder, sizes)
    histories, lengths = codes[torch.randint(0, 25, (4, 3), generator=generator)], torch.tensor([3, 1, 2, 0])
    with torch.no_grad():
        context = model.read(histories, lengths)
        beams = beam_search(model, context, trie, beam)
        generated = model.model.generate(
            encoder_outputs=context.states if isinstance(context.states, tuple) else _output(context.states),
            attention_mask=model._mask(context),
            num_beams=beam,
            num_return_sequences=beam,
            max_new_tokens=len(sizes),
            length_penalty=0.0,
            early_stopping=False,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=[TrieLogitsProcessor(trie, prompt_length=1)],
        )
    assert generated.sequences[:, 0].eq(BOS).all()
    leaves = trie.walk(model.vocabulary.indices_of(generated.sequences[:, 1 : 1 + len(sizes)]))
    assert torch.equal(leaves.view(4, beam), beams.leaves)
    torch.testing.assert_close(generated.sequences_scores.view(4, beam), beams.scores)


def test_prefixes_of_one_sequence_do_not_see_each_other() -> None:
    sizes, generator = (4, 5, 3), torch.Generator().manual_seed(3)
    model = small(EncoderDecoder, sizes)
    with torch.no_grad():
        context = model.read(torch.randint(0, 3, (2, 4, 3), generator=generator), torch.tensor([4, 1]))
        for level in range(3):
            prefixes = torch.randint(0, 3, (2, 150, level), generator=generator)  # three sequences, the last padded
            found = model.log_probs(context, prefixes)
            for place in (0, 63, 64, 149):
                tokens = torch.full((2, 1), BOS)
                if level:
                    tokens = torch.cat([tokens, model.vocabulary.tokens_of(prefixes[:, place])], 1)
                alone = model.model(
                    encoder_outputs=_output(context.states),
                    attention_mask=model._mask(context),
                    decoder_input_ids=tokens,
                ).logits[:, -1]
                wanted = alone.log_softmax(-1)[:, model.vocabulary.range_of(level)]
                torch.testing.assert_close(found[:, place], wanted)


def _output(states: torch.Tensor) -> object:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=states)


def test_a_beam_needs_a_width() -> None:
    with pytest.raises(ValueError, match="beam >= 1, got 0"):
        beam_search(Table((2,), 0), CONTEXT, PrefixTrie(torch.tensor([[0]]), (2,)), 0)
