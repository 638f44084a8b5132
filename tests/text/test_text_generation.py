"""Writing: caches, seeds, beams, prompts, reconstructions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from gritvq.text import TextBatch, TraceModel, Writing, gaussian_vae, language_model, trace
from text_common import SIZES, lively, random_batch, toy_format

KINDS = {"trace": trace, "gaussian_vae": gaussian_vae, "language_model": language_model}
PROMPTS = random_batch(20, [[3, 2], [4], [2, 2, 3]])


def made(kind: str = "trace", vocab_size: int = 20, **more: Any) -> TraceModel:
    sizes = {name: value for name, value in SIZES.items() if name != "dim" or kind != "language_model"}
    return lively(KINDS[kind](vocab_size, **{**sizes, **more}))


def same(one: TextBatch, other: TextBatch) -> bool:
    return torch.equal(one.segments, other.segments) and bool(((one.tokens == other.tokens) | ~one.valid).all())


def rows(batch: TextBatch) -> list[list[int]]:
    return [row[own].tolist() for row, own in zip(batch.tokens, batch.valid, strict=True)]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beam", [1, 3])
def test_a_cache_changes_nothing(kind: str, architecture: Any, beam: int) -> None:
    model = made(kind, architecture=architecture)
    writing = Writing(seeds=5, max_tokens=6, max_segments=4, beam=beam)
    for given in ({"num": 4}, {"prompts": PROMPTS}):
        kept, again = (model.generate(**given, writing=writing, cache=cache) for cache in (True, False))
        assert same(kept, again) and (beam > 1 or int(kept.num_segments.max()) > 1)
    if kind != "language_model":
        latents = torch.randn(3, 4, 6), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
        kept, again = (model.generate(latents=latents, writing=writing, cache=cache) for cache in (True, False))
        assert same(kept, again) and kept.num_segments.tolist() == [2, 4, 1]


@pytest.mark.parametrize("kind", ["trace", "language_model"])
def test_equal_seeds_give_equal_texts_whatever_the_batch(kind: str) -> None:
    model = made(kind)
    together = rows(model.generate(5, writing=Writing(seeds=[3, 1, 4, 1, 5], max_tokens=6)))
    alone = [rows(model.generate(1, writing=Writing(seeds=[seed], max_tokens=6)))[0] for seed in (3, 1, 4, 1, 5)]
    assert together == alone and together[1] == together[3] and together[0] != together[1]
    assert rows(model.generate(2, writing=Writing(seeds=7))) == rows(model.generate(3, writing=Writing(seeds=7)))[:2]


def test_documents_have_the_form_of_their_training() -> None:
    """Segments end with 17 (more follow), documents with 18 or at the limits; 19 is never written."""
    batch = made().generate(30, writing=Writing(seeds=0, max_tokens=5, max_segments=3, temperature=2.0))
    for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
        own, numbers = tokens[segments >= 0].tolist(), segments[segments >= 0].tolist()
        ends = [place for place, token in enumerate(own) if token >= 17]
        assert 19 not in own and own.count(18) <= 1 and (18 not in own[:-1]) and ends[-1] == len(own) - 1
        assert numbers == [sum(end < place for end in ends) for place in range(len(own))]
        assert max(numbers.count(n) for n in set(numbers)) <= 5 and (own[-1] == 18 or numbers[-1] == 2)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("counts", [[[2], [6, 6, 6]], [[6, 6, 6], [2]]])
def test_no_document_is_longer_than_the_model_takes(counts: list[list[int]], beam: int, cache: bool) -> None:
    model = made(length=24)
    writing = Writing(seeds=0, beam=beam, max_segments=9, max_tokens=8)
    batch = model.generate(prompts=random_batch(20, counts), writing=writing, cache=cache)
    assert batch.tokens.shape[1] <= 24


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("beam", [1, 3])
def test_every_latent_is_written(beam: int, cache: bool) -> None:
    """Also where the first segments could fill the whole document."""
    present = torch.arange(9) < torch.tensor([9, 1, 4])[:, None]
    writing = Writing(seeds=0, beam=beam, max_tokens=30, temperature=3.0)
    batch = made(length=12).generate(latents=(torch.randn(3, 9, 6), present), writing=writing, cache=cache)
    assert batch.num_segments.tolist() == [9, 1, 4] and batch.tokens.shape[1] <= 12


def test_documents_have_the_limits_of_the_models_own() -> None:
    form = toy_format(max_tokens=8, max_segments=4)
    model = made(vocab_size=form.vocab_size, length=32).use(form)
    whole = random_batch(form.vocab_size, [[8, 8, 8, 8], [2, 8]])
    assert model.reconstruct(whole).num_segments.tolist() == [4, 2]
    assert model.interpolate(
        *[TextBatch(part[:1], whole.segments[:1]) for part in 2 * [whole.tokens]], 2
    ).num_segments.tolist() == [4, 4]
    for batch in (model.generate(20, writing=Writing(seeds=0)), model.generate(3)):
        assert int(batch.num_segments.max()) <= 4
        assert max(int(row[row >= 0].bincount().max()) for row in batch.segments) <= 8


def test_frequencies_of_first_tokens_are_the_models() -> None:
    model = made("language_model", vocab_size=8)
    batch = model.generate(3000, writing=Writing(seeds=1, max_segments=1, max_tokens=2))
    found = batch.tokens[:, 0].bincount(minlength=7) / 3000
    alone = TextBatch(torch.arange(7)[:, None], torch.zeros(7, 1, dtype=torch.int64))
    wanted = model(alone).log_probs[:, 0].exp().detach()
    assert float((found - wanted).abs().max()) < 0.03 and float(wanted.max()) < 0.9


def test_filters_and_temperature() -> None:
    model = made("language_model")
    greedy = rows(model.generate(1, writing=Writing(temperature=0.0)))
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0}, {"temperature": 1e-4}):
        assert rows(model.generate(1, writing=Writing(seeds=2, **settings))) == greedy
    wide = model.generate(200, writing=Writing(seeds=2, max_segments=1, max_tokens=2, temperature=3.0))
    narrow = model.generate(200, writing=Writing(seeds=2, max_segments=1, max_tokens=2, temperature=3.0, top_k=3))
    assert len(narrow.tokens[:, 0].unique()) == 3 < len(wide.tokens[:, 0].unique())


def test_enough_beams_find_the_best_segment() -> None:
    """All segments of at most three tokens: 0, 1, 2 are subwords, 3 and 4 end it."""
    model = made("trace", vocab_size=6)
    z = torch.randn(1, 1, 6)
    batch = model.generate(latents=(z, torch.ones(1, 1).bool()), writing=Writing(beam=40, max_tokens=3))
    scores = {}
    for count in range(3):
        for words in itertools.product(range(3), repeat=count):
            one = TextBatch(torch.tensor([[*words, 4]]), torch.zeros(1, count + 1, dtype=torch.int64))
            states = model.decoder.states(one, z)
            logits = model.decoder.logits(states)[0]
            logits[:, 3] = -torch.inf  # the last segment of these latents ends the document
            logits[2:, :3] = -torch.inf  # and has three tokens at most
            found = logits.log_softmax(-1).gather(1, one.tokens.T)[:, 0].double()
            scores[(*words, 4)] = float(found.mean())
    assert tuple(rows(batch)[0]) == max(scores, key=lambda words: scores[words])


def test_prompts_are_continued() -> None:
    model = made()
    batch = model.generate(prompts=PROMPTS, writing=Writing(seeds=0, max_segments=5, max_tokens=4))
    for prompt, whole in zip(rows(PROMPTS), rows(batch), strict=True):
        assert whole[: len(prompt)] == [*prompt[:-1], 17] and len(whole) > len(prompt)
    assert bool((batch.num_segments > PROMPTS.num_segments).all())


def test_reconstructions_and_lines_between_texts() -> None:
    model = made()
    latents, present = model.encode(PROMPTS)
    torch.testing.assert_close(latents, model(PROMPTS, sample=False).latents)
    again = model.reconstruct(PROMPTS, Writing(temperature=0.0, max_tokens=5))
    assert again.num_segments.tolist() == present.sum(1).tolist() == [2, 1, 3]
    ends = [TextBatch(PROMPTS.tokens[row : row + 1], PROMPTS.segments[row : row + 1]) for row in (0, 2)]
    between = model.interpolate(*ends, 4, Writing(temperature=0.0, max_tokens=5))
    assert between.num_segments.tolist() == [2] * 4
    assert rows(between)[0] == rows(again)[0]


def test_what_does_not_fit() -> None:
    model = made()
    for given, message in (
        ({}, "expected the number of documents, got num=None"),
        ({"num": 2, "prompts": PROMPTS}, "got num=2 for 3 prompts"),
        (
            {"prompts": PROMPTS, "latents": (torch.zeros(3, 1, 6), torch.ones(3, 1))},
            "expected prompts or latents, got both",
        ),
        ({"latents": (torch.zeros(3, 1, 5), torch.ones(3, 1))}, "expected latents of size 6, got 5"),
        (
            {"prompts": PROMPTS, "writing": Writing(max_segments=3)},
            "expected prompts of fewer than 3 segments .* got up to 3 and",
        ),
        (
            {"latents": (torch.zeros(1, 65, 6), torch.ones(1, 65))},
            "expected latents of at most 64 segments, .* got 65",
        ),
        (
            {"prompts": random_batch(20, [[60, 3]])},
            "expected prompts of fewer than 8 segments and 63 tokens, .* and 63; shorten",
        ),
        ({"prompts": TextBatch(PROMPTS.tokens, torch.full_like(PROMPTS.segments, -1))}, "expected prompts with text"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**given)
    with pytest.raises(ValueError, match="expected a model with latents, got a language model"):
        made("language_model").encode(PROMPTS)
    with pytest.raises(ValueError, match="expected one document at each end"):
        model.interpolate(PROMPTS, PROMPTS, 3)
    for settings in ({"beam": 0}, {"top_k": 0}, {"top_p": 2.0}, {"temperature": -1.0}, {"max_tokens": 1}):
        with pytest.raises(ValueError, match=f"expected {next(iter(settings))} "):
            Writing(**settings)
    with pytest.raises(ValueError, match="expected num >= 1, got 0"):
        model.generate(0)
