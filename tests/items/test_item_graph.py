"""The graph of similar ids: its edges by brute force, what a search along it finds and how much it looks at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gritvq.items import (
    DepthDecoder,
    GenerativeRecommender,
    ItemFilter,
    ItemGraph,
    ParallelDecoder,
    ParallelScorer,
    SemanticIds,
)

SIZES = (5, 3, 7)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tables(sizes: tuple[int, ...] = SIZES, dim: int = 6) -> list[Tensor]:
    return [torch.randn(size, dim, generator=seeded(10 + place)) for place, size in enumerate(sizes)]


def scorer(count: int = 40, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> ParallelScorer:
    codes = torch.stack([torch.randint(size, (count,), generator=seeded(seed + n)) for n, size in enumerate(sizes)], 1)
    return ParallelScorer(codes, sizes, priority=torch.rand(count, generator=seeded(seed)))


def log_probs(users: int, sizes: tuple[int, ...] = SIZES, seed: int = 5) -> Tensor:
    return torch.cat([torch.randn(users, size, generator=seeded(seed + size)).log_softmax(1) for size in sizes], 1)


def test_edges_lead_to_the_most_similar_ids() -> None:
    items, rows = scorer(), tables()
    found = ItemGraph.of(items, rows, 6)
    codes = items.codes[items.order].long()
    embedded = torch.cat([F.normalize(table, dim=1)[codes[:, q]] for q, table in enumerate(rows)], 1)
    similar = embedded @ embedded.T
    for place, near in enumerate(found.neighbors.long()):
        assert place not in near.tolist() and len(near.unique()) == 6
        others = torch.cat([similar[place, :place], similar[place, place + 1 :]])
        torch.testing.assert_close(similar[place, near], others.sort(descending=True).values[:6])


@given(count=st.integers(1, 30), users=st.integers(1, 4), k=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_with_edges_to_all_items_the_list_is_exact(count: int, users: int, k: int, seed: int) -> None:
    items, given_probs = scorer(count, seed=seed), log_probs(users, seed=seed)
    graph = ItemGraph.of(items, tables(), 99)
    found, wanted = graph.best(given_probs, k, beam=k, steps=3, seed=seed), items.best(given_probs, k)
    assert torch.equal(found.items, wanted.items)
    torch.testing.assert_close(found.scores, wanted.scores)


def test_scores_are_exact_and_each_item_is_listed_once() -> None:
    items, given_probs = scorer(300), log_probs(20)
    found = ItemGraph.of(items, tables(), 3).best(given_probs, 10, beam=10, steps=2)
    torch.testing.assert_close(found.scores, items.scores(given_probs).gather(1, found.items))
    assert all(len(set(row)) == 10 for row in found.items.tolist())
    assert bool((found.scores[:, :-1] >= found.scores[:, 1:]).all())


def test_more_steps_and_wider_beams_lose_nothing_and_find_most() -> None:
    """Users of whom each likes codes near one item's: a fifth of 2,000 items is scored at most."""
    sizes, count = (16,) * 6, 2000
    rows, items = tables(sizes, 4), scorer(count, sizes)
    wanted = items.codes[:50].long()
    given_probs = torch.cat(
        [
            (4 * F.normalize(t, dim=1)[wanted[:, q]] @ F.normalize(t, dim=1).T).log_softmax(1)
            for q, t in enumerate(rows)
        ],
        1,
    )
    graph, exact = ItemGraph.of(items, rows, 15), items.best(given_probs, 10)
    worst = torch.full((50,), -torch.inf)
    for steps in (1, 2, 5):
        found = graph.best(given_probs, 10, beam=20, steps=steps)
        assert bool((found.scores[:, -1] >= worst).all())
        worst = found.scores[:, -1]
    hits = (found.items[:, :, None] == exact.items[:, None]).any(1).float().mean()
    assert float(hits) > 0.9
    assert torch.equal(graph.best(given_probs[:7], 10, beam=20, steps=5).items, found.items[:7])  # of a user alone


def test_filters_act_inside_the_search() -> None:
    items, given_probs = scorer(60), log_probs(5)
    graph = ItemGraph.of(items, tables(), 99)
    allowed = torch.rand(60, generator=seeded(3)) < 0.3
    exclude = [items.best(given_probs, 4, item_filter=ItemFilter(60, 5, allowed=allowed)).items[n] for n in range(5)]
    for chosen in (ItemFilter(60, 5, allowed=allowed), ItemFilter(60, 5, allowed=allowed, exclude=exclude)):
        found, wanted = (
            graph.best(given_probs, 6, beam=6, item_filter=chosen),
            items.best(given_probs, 6, item_filter=chosen),
        )
        assert torch.equal(found.items, wanted.items)
    nothing = graph.best(given_probs, 3, item_filter=ItemFilter(60, 5, allowed=torch.zeros(60, dtype=torch.bool)))
    assert bool((nothing.items == -1).all()) and bool((nothing.scores == -torch.inf).all())


def test_a_recommender_searches_along_its_graph() -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    ids = SemanticIds(scorer(50).codes.long(), SIZES)
    backbone = ParallelDecoder(SIZES, 8, num_layers=1, num_heads=1, hidden_dim=8)
    recommender = GenerativeRecommender(backbone, ids, priority=torch.rand(50, generator=seeded()))
    graph, histories = recommender.graph(49), [[3, 7], [1], []]
    wanted = recommender.best(histories, 5, exclude=histories)
    found = recommender.best(histories, 5, exclude=histories, graph=graph)
    assert torch.equal(found.items, wanted.items)
    with pytest.raises(ValueError, match="expected a graph of this recommender, got another one"):
        recommender.recommend(histories, graph=ItemGraph.of(scorer(50, seed=4), tables(), 3))
    depth = GenerativeRecommender(DepthDecoder(SIZES, 8, num_layers=1, num_heads=1, hidden_dim=8), ids)
    with pytest.raises(ValueError, match="expected a ParallelDecoder or CatalogueDecoder, got DepthDecoder"):
        depth.graph()


def test_the_model_says_how_similar_codes_are() -> None:
    pytest.importorskip("transformers")
    model = ParallelDecoder(SIZES, 8, num_layers=1, num_heads=1, hidden_dim=8)
    found = model.tables()
    assert [len(table) for table in found] == list(SIZES)
    assert torch.equal(found[1], model.embedding.weight[model.vocabulary.range_of(1)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: ItemGraph(g.scorer, torch.zeros(3, 2)), "expected neighbors .n, k. of 40 items, got .3, 2."),
        (lambda g: ItemGraph(g.scorer, torch.full((40, 1), 40)), "expected places in .0, 40."),
        (lambda g: ItemGraph.of(g.scorer, tables((5, 3, 8))), r"expected tables of \[5, 3, 7\] codes"),
        (lambda g: ItemGraph.of(g.scorer, tables(), 0), "num_neighbors"),
        (lambda g: g.best(log_probs(2)[:, 1:], 3), "expected log-probabilities"),
        (lambda g: g.best(log_probs(2), 0), "expected k"),
        (lambda g: g.best(log_probs(2), 9, beam=8), "expected beam"),
        (lambda g: g.best(log_probs(2), 9, steps=0), "expected steps"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(ItemGraph.of(scorer(), tables(), 4))
