"""Filters of items inside every search: against brute force over masks, and what is left when they leave little."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gritvq.items import (
    Backbone,
    GenerativeRecommender,
    Histories,
    ItemFilter,
    ParallelScorer,
    PrefixTrie,
    SemanticIds,
    beam_search,
    exact_scores,
)
from test_beam_search import CONTEXT, Table, searches
from test_generative import KINDS, SIZES, backbone, catalogue
from test_parallel import SIZES as CHANNELS
from test_parallel import random_codes, random_log_probs, seeded

Filters = tuple[Tensor | None, list[list[int]] | None]


@st.composite
def filters(draw: st.DrawFn, num_items: int, batch: int) -> Filters:
    """Which items are allowed, to all or to each, and which are excluded for each."""
    row = st.lists(st.booleans(), min_size=num_items, max_size=num_items)
    allowed = draw(st.one_of(st.none(), row, st.lists(row, min_size=batch, max_size=batch)))
    sequence = st.lists(st.integers(0, num_items - 1), max_size=6)
    exclude = draw(st.one_of(st.none(), st.lists(sequence, min_size=batch, max_size=batch)))
    return None if allowed is None else torch.tensor(allowed), exclude


def brute_force(num_items: int, batch: int, chosen: Filters) -> Tensor:
    """The mask (B, n), item by item."""
    allowed, exclude = chosen
    every = [[True] * num_items] * batch if allowed is None else allowed.expand(batch, -1).tolist()
    gone = [set(rows) for rows in exclude] if exclude is not None else [set()] * batch
    return torch.tensor(
        [[may and item not in own for item, may in enumerate(row)] for row, own in zip(every, gone, strict=True)]
    )


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 3))
def test_masks_and_counts_along_any_order(data: st.DataObject, num_items: int, batch: int) -> None:
    chosen = data.draw(filters(num_items, batch))
    made = ItemFilter(num_items, batch, allowed=chosen[0], exclude=chosen[1])
    wanted = brute_force(num_items, batch, chosen)
    assert torch.equal(made.mask().expand(batch, -1), wanted)
    order = torch.tensor(data.draw(st.permutations(range(num_items))))[: data.draw(st.integers(1, num_items))]
    along = made.along(order)
    start = data.draw(st.integers(0, len(order)))
    stop = data.draw(st.integers(start, len(order)))
    assert torch.equal(along.mask(start, stop).expand(batch, -1), wanted[:, order[start:stop]])
    places = torch.arange(len(order) + 1).expand(batch, -1)
    counts = torch.stack([wanted[:, order[:place]].sum(1) for place in range(len(order) + 1)], 1)
    assert torch.equal(along.num_before(places), counts)
    assert torch.equal(along.num_before(places[:, :, None].expand(-1, -1, 2))[..., 1], counts)


@settings(max_examples=100, deadline=None)
@given(searches(), st.data())
def test_a_beam_of_the_catalogue_finds_what_filtered_exact_scores_say(search: Any, data: st.DataObject) -> None:
    codes, sizes, seed, steps = search
    priority = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(codes), max_size=len(codes)))).float()
    chosen = data.draw(filters(len(codes), 2))
    trie, model = PrefixTrie(codes, sizes, priority=priority), Table(sizes, seed, steps)
    listed = ItemFilter(len(codes), 2, allowed=chosen[0], exclude=chosen[1]).along(trie.rows)
    beams = beam_search(model, CONTEXT, trie, len(codes), listed=listed)
    rows, places = trie.expand_places(beams.leaves, len(codes) + 1, listed)
    scores = exact_scores(model, CONTEXT, trie)[:, trie.leaves_of_rows()]
    may = brute_force(len(codes), 2, chosen)
    for user in range(2):  # the best, then lexicographically, then by priority, then by row
        left = [row for row in trie.rows.tolist() if may[user, row]]
        wanted = sorted(left, key=lambda row: -float(scores[user, row]))
        assert rows[user].tolist() == wanted + [-1] * (len(codes) + 1 - len(wanted))
        found = beams.scores[user, places[user, : len(wanted)]]
        assert torch.equal(found, scores[user, rows[user, : len(wanted)]])
        alive = {tuple(codes[row].tolist()) for row in left}
        assert beams.leaves[user].ge(0).sum() == len(alive)  # nothing that leads to no listed item
        assert beams.scores[user, len(alive) :].eq(-math.inf).all()


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 5), st.data())
def test_a_narrow_beam_keeps_only_prefixes_of_listed_items(search: Any, beam: int, data: st.DataObject) -> None:
    codes, sizes, seed, _ = search
    chosen = data.draw(filters(len(codes), 2))
    trie, model = PrefixTrie(codes, sizes), Table(sizes, seed)
    listed = ItemFilter(len(codes), 2, allowed=chosen[0], exclude=chosen[1]).along(trie.rows)
    beams, may = beam_search(model, CONTEXT, trie, beam, listed=listed), brute_force(len(codes), 2, chosen)
    for user in range(2):
        left = codes[may[user]].tolist()
        kept: list[tuple[int, ...]] = [()]
        for level, size in enumerate(sizes):
            known = {tuple(row[: level + 1]) for row in left}
            longer = [(*prefix, code) for prefix in kept for code in range(size) if (*prefix, code) in known]
            kept = sorted(longer, key=lambda prefix: -model.score(user, list(prefix)))[:beam]
        assert beams.leaves[user].tolist()[: len(kept)] == [int(trie.walk(torch.tensor(row))) for row in kept]
        assert beams.leaves[user, len(kept) :].eq(-1).all()
        assert len(kept) == min(beam, len({tuple(row) for row in left})) or not left  # no list is short


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([None, 1, 3, 40]), st.integers(1, 30))
def test_parallel_scores_are_those_of_brute_force_over_the_mask(data: st.DataObject, block: int | None, k: int) -> None:
    codes, log_probs = random_codes(25), random_log_probs(3)
    codes[18:] = codes[:7]  # equal scores in different blocks
    priority = torch.randint(0, 3, (25,), generator=seeded()).float()
    chosen = data.draw(filters(25, 3))
    scorer = ParallelScorer(codes, CHANNELS, priority=priority)
    made = ItemFilter(25, 3, allowed=chosen[0], exclude=chosen[1])
    best = scorer.best(log_probs, k, block=block, item_filter=made)
    scores, may = scorer.scores(log_probs), brute_force(25, 3, chosen)
    for user in range(3):
        left = [row for row in range(25) if may[user, row]]
        wanted = sorted(left, key=lambda row: (-float(scores[user, row]), -float(priority[row]), row))[:k]
        assert best.items[user].tolist() == wanted + [-1] * (k - len(wanted))
        assert torch.equal(best.scores[user, : len(wanted)], scores[user, wanted])
        assert best.scores[user, len(wanted) :].eq(-math.inf).all()


@pytest.mark.parametrize("kind", KINDS)
def test_filtered_lists_of_every_backbone(kind: type[Backbone]) -> None:
    pytest.importorskip("transformers")
    ids = catalogue(60)  # as many ids as there can be, so some are shared
    recommender = GenerativeRecommender(backbone(kind), ids, priority=torch.arange(60).remainder(7).float())
    histories = [[1, 5, 5], [30], []]
    each = torch.rand(3, 60, generator=seeded()) < 0.5
    for allowed, exclude in ((each[0], None), (each, None), (None, histories), (each[0], histories), (each, histories)):
        scores = recommender.scores(histories, allowed=allowed, exclude=exclude)
        may = brute_force(60, 3, (allowed, exclude))
        assert torch.equal(scores > -math.inf, may)
        assert torch.equal(scores[may], recommender.scores(histories)[may])
        found = recommender.best(histories, 60, beam=60, allowed=allowed, exclude=exclude)
        exact = recommender.best(histories, 60, exact=True, allowed=allowed, exclude=exclude)
        assert torch.equal(found.items >= 0, torch.arange(60) < may.sum(1, keepdim=True))  # all that are left
        assert torch.equal(found.items.sort().values, exact.items.sort().values)
        for items, values in ((found.items, found.scores), (exact.items, exact.scores)):
            assert values.isneginf().eq(items < 0).all()
            own = scores.gather(1, items.clamp(min=0)).masked_fill(items < 0, -math.inf)
            torch.testing.assert_close(values, own, rtol=1e-5, atol=1e-5)
        listed = recommender.recommend(histories, 5, beam=60, allowed=allowed, exclude=exclude)
        assert torch.equal(listed, found.items[:, :5])
        assert torch.equal(
            recommender.recommend(histories, 5, exact=True, allowed=allowed, exclude=exclude), exact.items[:, :5]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_leaves_one_item_or_none(kind: type[Backbone]) -> None:
    pytest.importorskip("transformers")
    recommender = GenerativeRecommender(backbone(kind), catalogue(60), beam=2)
    one = torch.zeros(60, dtype=torch.bool)
    one[41] = True
    worst = recommender.recommend([[1, 2]], 60, exact=True)[0, -1]
    alone = torch.arange(60) == worst
    assert recommender.recommend([[1, 2]], 3, beam=1, allowed=alone).tolist() == [[int(worst), -1, -1]]  # found at once
    for exact in (False, True):
        found = recommender.best([[3], [4]], 3, allowed=one, exclude=[[], [41]], exact=exact)
        assert found.items.tolist() == [[41, -1, -1], [-1, -1, -1]]
        assert found.scores[0, 0].isfinite() and found.scores.isneginf().sum() == 5
        nothing = recommender.best([[3], [4]], 3, allowed=~one & one, exact=exact)
        assert nothing.items.eq(-1).all() and nothing.scores.isneginf().all()
        assert recommender.recommend([[3]], 60, exclude=[list(range(60))], exact=exact).eq(-1).all()
    everything = torch.ones(60, dtype=torch.bool)
    assert torch.equal(recommender.recommend([[3]], 9, allowed=everything), recommender.recommend([[3]], 9))
    assert torch.equal(recommender.recommend([[3]], 9, exclude=[[]]), recommender.recommend([[3]], 9))


def test_histories_and_lists_exclude_alike_and_ids_found_are_leaves_with_an_item() -> None:
    pytest.importorskip("transformers")
    recommender = GenerativeRecommender(backbone(KINDS[2]), catalogue(60))
    histories = Histories.of([[1, 5], [30]])
    seen = recommender.recommend(histories, 60, beam=60, exclude=histories)
    assert torch.equal(seen, recommender.recommend([[1, 5], [30]], 60, beam=60, exclude=[[5, 1, 1], [30]]))
    allowed = torch.arange(60) < 10
    leaves = recommender.search(histories, 60, allowed=allowed).leaves
    known = {int(recommender.trie.walk(recommender.ids.codes[row])) for row in range(10)}
    assert all(set(row.tolist()) - {-1} == known for row in leaves)


def test_says_what_does_not_fit() -> None:
    pytest.importorskip("transformers")
    for kind in KINDS:
        recommender = GenerativeRecommender(backbone(kind), SemanticIds(catalogue().codes, SIZES))
        for call in (recommender.recommend, recommender.scores):
            for wrong in (torch.ones(20), torch.ones(19, dtype=torch.bool), torch.ones(3, 20, dtype=torch.bool)):
                with pytest.raises(ValueError, match=r"allowed as bool of shape \(20,\), or \(2, 20\) .*; make a mask"):
                    call([[1], [2]], allowed=wrong)
            with pytest.raises(ValueError, match=r"for each of 2 lists, got them for 1; give an empty sequence"):
                call([[1], [2]], exclude=[[3]])
            with pytest.raises(ValueError, match=r"item rows in \[0, 20\), got 3 to 20"):
                call([[1], [2]], exclude=[[3, 20], []])
