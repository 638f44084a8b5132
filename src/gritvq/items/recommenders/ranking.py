"""Ranks of held-out items over the whole catalogue, and their Recall and NDCG.

There is one target per user and no negative sampling: all items are ranked, also those the user has seen. Ranks start
at 1. Items with equal scores share the mean of their ranks, so ties give no advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.items.interactions import Histories, check_items

__all__ = [
    "rank_in_list",
    "rank_of_target",
    "ranking_metrics",
    "ranks_by_lists",
    "ranks_by_scores",
    "top_items",
    "without_seen",
]

CUTOFFS = (5, 10)


def rank_of_target(scores: Float[Tensor, "B n"], target: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Rank of one item per row, the mean rank for ties: ``1 + #higher + (#equal - 1) / 2``.

    Some published results round halves down; use ``.floor()`` for that.

    Args:
        scores: A score for every item; higher is better, minus infinity means excluded.
        target: The item to rank.

    Returns:
        Ranks from 1 to n, float64, multiples of 1/2.

    Raises:
        ValueError: If shapes differ, a target is out of range, or a score is NaN.

    Example:
        >>> rank_of_target(torch.tensor([[0.1, 0.9, 0.5], [1.0, 1.0, 0.0]]), torch.tensor([2, 0])).tolist()
        [2.0, 1.5]
    """
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            f"expected scores (B, n) and targets (B,), got {tuple(scores.shape)} and {tuple(target.shape)}; give one "
            "target per row."
        )
    check_items(target, scores.shape[1])
    if bool(scores.isnan().any()):
        raise ValueError("expected scores without NaN, got some; use minus infinity for excluded items.")
    own = scores.gather(1, target[:, None])
    higher, equal = (scores > own).sum(1), (scores == own).sum(1)
    return 1 + higher.double() + (equal.double() - 1) / 2


def rank_in_list(
    lists: Int[Tensor, "B k *Q"], target: Int[Tensor, " B *Q"], sizes: Int[Tensor, "B k"] | None = None
) -> Float[Tensor, " B"]:
    """Rank of one item, or of one id, in ranked lists; infinity if it is not listed.

    For lists of items the rank is that of the item. For lists of ids it is that of the target's id. Given ``sizes``,
    the number of items with each listed id, it is that of the item again: items with the same id are tied, so the rank
    is the number of items before them plus their mean position ``(size + 1) / 2``.

    Args:
        lists: Item rows, best first (B, k), or ids (B, k, Q), padded with -1.
        target: The item (B,), or its id (B, Q).
        sizes: Number of items per entry, >= 1 for valid entries.

    Returns:
        Ranks, float64.

    Raises:
        ValueError: If shapes do not fit, or a list contains the target twice.

    Example:
        >>> lists = torch.tensor([[4, 2, 7], [1, 3, -1]])
        >>> rank_in_list(lists, torch.tensor([2, 9])).tolist()
        [2.0, inf]
        >>> rank_in_list(lists, torch.tensor([2, 3]), sizes=torch.tensor([[2, 3, 1], [1, 1, 0]])).tolist()
        [4.0, 2.0]
    """
    if lists.ndim < 2 or target.shape != lists.shape[:1] + lists.shape[2:]:
        raise ValueError(
            f"expected lists (B, k) with targets (B,) or lists (B, k, Q) with targets (B, Q), got "
            f"{tuple(lists.shape)} and {tuple(target.shape)}; give one target per list."
        )
    if target.numel() and int(target.min()) < 0:
        raise ValueError(f"expected targets >= 0, got {int(target.min())}; -1 is the padding of lists.")
    found = (lists == target[:, None]).flatten(2).all(2) if lists.ndim > 2 else lists == target[:, None]
    if bool((found.sum(1) > 1).any()):
        raise ValueError("expected every entry once in a ranked list, got a target twice; remove repeats.")
    sizes = torch.ones_like(found, dtype=torch.int64) if sizes is None else sizes
    before = sizes.cumsum(1) - sizes
    ranks = before.double() + (sizes.double() + 1) / 2
    return torch.where(found, ranks, 0.0).sum(1).masked_fill(~found.any(1), math.inf)


def ranking_metrics(ranks: Float[Tensor, " U"], cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Means over users of ``Recall@K = 1[rank <= K]`` and ``NDCG@K = 1[rank <= K] / log2(rank + 1)``.

    With one target per user Recall@K is also called HitRate@K.

    Args:
        ranks: Rank of each user's target, >= 1; infinity if it was not found.
        cutoffs: Values of K.

    Returns:
        ``recall@K`` and ``ndcg@K`` for each K.

    Raises:
        ValueError: If there are no ranks or one is below 1.

    Example:
        >>> ranking_metrics(torch.tensor([1.0, 3.0, float("inf")]), cutoffs=(2, 3))
        {'recall@2': 0.333..., 'ndcg@2': 0.333..., 'recall@3': 0.666..., 'ndcg@3': 0.5}
    """
    if not len(ranks) or not bool((ranks >= 1).all()):
        raise ValueError(f"expected at least one rank, all >= 1, got {ranks.tolist()[:5]}; ranks start at 1.")
    ranks = ranks.double()
    metrics: dict[str, float] = {}
    for cutoff in cutoffs:
        hit = (ranks <= cutoff).double()
        metrics[f"recall@{cutoff}"] = float(hit.mean())
        metrics[f"ndcg@{cutoff}"] = float((hit / (ranks + 1).log2()).mean())
    return metrics


def ranks_by_scores(
    scores: Callable[[Histories], Tensor],
    histories: Histories,
    targets: Int[Tensor, " U"],
    *,
    batch_size: int = 256,
    exclude_seen: bool = False,
) -> Float[Tensor, " U"]:
    """Ranks of the targets by a model that scores all items, in batches of users.

    Args:
        scores: Maps B histories to scores (B, n).
        histories: Histories of U users.
        targets: Their held-out items.
        batch_size: Users per batch; memory grows with this times n.
        exclude_seen: Whether to rank without the items of each history; a target among them shares the last ranks.

    Returns:
        Ranks, for :func:`ranking_metrics`.
    """
    _check_users(histories, targets, batch_size)
    parts = []
    for i in range(0, len(targets), batch_size):
        some = histories[i : i + batch_size]
        found = scores(some).cpu()
        found = without_seen(found, some) if exclude_seen else found
        parts.append(rank_of_target(found, targets[i : i + batch_size]))
    return torch.cat(parts)


def ranks_by_lists(
    recommend: Callable[[Histories, int], Tensor],
    histories: Histories,
    targets: Int[Tensor, " U"],
    *,
    k: int = max(CUTOFFS),
    batch_size: int = 256,
) -> Float[Tensor, " U"]:
    """Ranks of the targets in a model's lists, in batches of users; infinity if they are not listed.

    Args:
        recommend: Maps B histories and k to item rows (B, k), best first, padded with -1.
        histories: Histories of U users.
        targets: Their held-out items.
        k: Length of the lists; cutoffs must not be larger.
        batch_size: Users per batch.

    Returns:
        Ranks, for :func:`ranking_metrics`.
    """
    _check_users(histories, targets, batch_size)
    parts = [
        rank_in_list(recommend(histories[i : i + batch_size], k).cpu(), targets[i : i + batch_size])
        for i in range(0, len(targets), batch_size)
    ]
    return torch.cat(parts)


def without_seen(scores: Float[Tensor, "B n"], histories: Histories) -> Float[Tensor, "B n"]:
    """Scores with minus infinity for the items of each history.

    Args:
        scores: Of all items.
        histories: Item rows of B users.

    Raises:
        ValueError: If there are not B histories, or an item row is out of range.

    Example:
        >>> without_seen(torch.zeros(2, 3), Histories.of([[1, 1], [0, 2]])).tolist()
        [[0.0, -inf, 0.0], [-inf, 0.0, -inf]]
    """
    if len(histories) != len(scores):
        raise ValueError(f"expected a history for each of {len(scores)} rows of scores, got {len(histories)}")
    check_items(histories.items, scores.shape[1])
    lines = torch.arange(len(histories), device=histories.items.device).repeat_interleave(histories.lengths)
    return scores.index_put((lines.to(scores.device), histories.items.to(scores.device)), scores.new_tensor(-math.inf))


def top_items(scores: Float[Tensor, "B n"], k: int) -> Int[Tensor, "B k"]:
    """The k best items, best first, padded with -1; equal scores are sorted by row.

    Args:
        scores: Higher is better, minus infinity means excluded.
        k: Length of the lists.

    Example:
        >>> top_items(torch.tensor([[0.5, 2.0, 0.5, float("-inf")]]), 4).tolist()
        [[1, 0, 2, -1]]
    """
    values, rows = scores.sort(dim=1, descending=True, stable=True)
    rows = torch.where(values[:, :k] > -math.inf, rows[:, :k], -1)
    return torch.nn.functional.pad(rows, (0, k - rows.shape[1]), value=-1)


def _check_users(histories: Histories, targets: Tensor, batch_size: int) -> None:
    if len(histories) != len(targets) or not len(targets) or batch_size < 1:
        raise ValueError(
            f"expected as many histories as targets, at least one, and batch_size >= 1, got {len(histories)}, "
            f"{len(targets)} and {batch_size}; make them fit."
        )
