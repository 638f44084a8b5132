"""Ranks, Recall and NDCG against torchmetrics, sorting, and averages over orders of ties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg

from gritvq.items import (
    rank_in_list,
    rank_of_target,
    ranking_metrics,
    ranks_by_lists,
    ranks_by_scores,
    top_items,
    without_seen,
)
from gritvq.items.interactions import Histories


def test_metrics_against_torchmetrics() -> None:
    scores, target = torch.randn(40, 30), torch.randint(30, (40,))
    got = ranking_metrics(rank_of_target(scores, target), cutoffs=(1, 5, 10, 30))
    relevant = torch.nn.functional.one_hot(target, 30)
    for k in (1, 5, 10, 30):
        pairs = list(zip(scores, relevant, strict=True))
        recall = sum(float(retrieval_hit_rate(s, r, top_k=k)) for s, r in pairs) / len(pairs)
        ndcg = sum(float(retrieval_normalized_dcg(s, r, top_k=k)) for s, r in pairs) / len(pairs)
        assert got[f"recall@{k}"] == pytest.approx(recall) and got[f"ndcg@{k}"] == pytest.approx(ndcg, rel=1e-5)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.data())
@settings(deadline=None, max_examples=50)
def test_tied_ranks_are_means_over_all_orders(values: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(values) - 1))
    orders = [
        o for o in itertools.permutations(range(len(values))) if sorted(values, reverse=True) == [values[i] for i in o]
    ]
    expected = sum(order.index(target) + 1 for order in orders) / len(orders)
    got = rank_of_target(torch.tensor([values], dtype=torch.float32), torch.tensor([target]))
    assert got.item() == pytest.approx(expected)


def test_a_constant_model_ranks_in_the_middle() -> None:
    assert rank_of_target(torch.zeros(1, 101), torch.tensor([7])).tolist() == [51.0]
    excluded = torch.full((1, 4), -math.inf)
    excluded[0, 1] = 0
    assert rank_of_target(excluded, torch.tensor([3])).tolist() == [3.0]  # behind the one that is not excluded


@given(st.integers(1, 8), st.integers(1, 10), st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_lists_of_the_best_items_give_the_same_ranks(n: int, k: int, seed: int) -> None:
    scores = torch.randn(5, n, generator=torch.Generator().manual_seed(seed))
    target = torch.arange(5) % n
    ranks = rank_of_target(scores, target)
    lists = top_items(scores, k)
    assert lists.shape == (5, k)
    assert torch.equal(rank_in_list(lists, target), ranks.masked_fill(ranks > k, math.inf))


def test_best_items_with_ties_exclusions_and_short_catalogues() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, -math.inf]])
    assert top_items(scores, 6).tolist() == [[1, 2, 0, -1, -1, -1]]
    assert top_items(scores, 1).tolist() == [[1]]


def test_lists_of_ids_at_both_levels() -> None:
    """Three ids, the second shared by three items: item-level ranks are those of scores that tie within an id."""
    ids = torch.tensor([[0, 1], [0, 2], [0, 2], [1, 1], [0, 2]])  # of five items
    lists = torch.tensor([[[1, 1], [0, 2], [0, 1]]]).expand(5, -1, -1)
    sizes = torch.tensor([[1, 3, 1]]).expand(5, -1)
    assert rank_in_list(lists, ids).tolist() == [3, 2, 2, 1, 2]
    scores = torch.tensor([[0.0, 1.0, 1.0, 2.0, 1.0]]).expand(5, -1)
    assert torch.equal(rank_in_list(lists, ids, sizes), rank_of_target(scores, torch.arange(5)))
    assert rank_in_list(lists[:1], torch.tensor([[1, 2]])).item() == math.inf  # both codes must fit


def test_short_lists_and_lists_of_nothing() -> None:
    lists = torch.tensor([[-1, -1], [3, -1]])
    assert rank_in_list(lists, torch.tensor([3, 3])).tolist() == [math.inf, 1.0]
    assert rank_in_list(torch.zeros(2, 0, dtype=torch.int64), torch.tensor([3, 3])).tolist() == [math.inf] * 2
    got = ranking_metrics(torch.tensor([math.inf, math.inf]))
    assert set(got) == {"recall@5", "ndcg@5", "recall@10", "ndcg@10"} and set(got.values()) == {0.0}


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_blocks_of_users_change_nothing(batch_size: int) -> None:
    table = torch.randn(12, 12)
    histories, targets = Histories.of([[i, (5 * i) % 12] for i in range(11)]), torch.arange(1, 12)
    widths = []

    def scores(block: Histories) -> torch.Tensor:
        widths.append(len(block))
        return table[block.last()]

    whole = rank_of_target(table[histories.last()], targets)
    assert torch.equal(ranks_by_scores(scores, histories, targets, batch_size=batch_size), whole)
    fewer = ranks_by_scores(scores, histories, targets, batch_size=batch_size, exclude_seen=True)
    masked = table[histories.last()].clone()
    for line in range(len(histories)):
        masked[line, histories[line]] = -torch.inf
    assert torch.equal(fewer, rank_of_target(masked, targets))
    with pytest.raises(ValueError, match="expected a history for each of"):
        without_seen(masked, histories[1:])
    assert max(widths) <= batch_size
    lists = ranks_by_lists(lambda h, k: top_items(scores(h), k), histories, targets, k=4, batch_size=batch_size)
    assert torch.equal(lists, whole.masked_fill(whole > 4, math.inf))


def test_errors() -> None:
    scores = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"expected scores \(B, n\)"):
        rank_of_target(scores, torch.tensor([1]))
    with pytest.raises(ValueError, match=r"item rows in \[0, 3\), got 0 to 3"):
        rank_of_target(scores, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="without NaN"):
        rank_of_target(torch.tensor([[float("nan"), 1.0]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="got a target twice"):
        rank_in_list(torch.tensor([[1, 1]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="targets >= 0, got -1"):
        rank_in_list(torch.tensor([[1, -1]]), torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"expected lists \(B, k\)"):
        rank_in_list(torch.tensor([[[1, 1]]]), torch.tensor([1]))
    for ranks in ([], [0.5]):
        with pytest.raises(ValueError, match="at least one rank, all >= 1"):
            ranking_metrics(torch.tensor(ranks))
    with pytest.raises(ValueError, match="as many histories as targets"):
        ranks_by_scores(lambda h: scores, Histories.of([[1]]), torch.tensor([1, 2]))
