"""Ranks of held-out items over the whole catalogue, and Recall and NDCG of them.

One target per user and no sampled negatives: every item of the catalogue competes, also those the user has seen. Ranks
start at 1. Items with equal scores share the mean of their ranks, so a model that gives one score to all ranks every
target in the middle and cannot win by ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.items.interactions import Histories, check_items

__all__ = ["rank_in_list", "rank_of_target", "ranking_metrics", "ranks_by_lists", "ranks_by_scores", "top_items"]

CUTOFFS = (5, 10)


def rank_of_target(scores: Float[Tensor, "B n"], target: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Rank of one item per row, ties at their mean rank: ``1 + #higher + (#equal - 1) / 2``.

    Some published figures round halves down; ``.floor()`` of the result does that.

    Args:
        scores: A score for every item; higher is better, minus infinity means excluded.
        target: The item whose rank is wanted.

    Returns:
        Ranks from 1 to n, float64; halves are possible.

    Raises:
        ValueError: If shapes differ, a target is no item, or a score is NaN.

    Example:
        >>> rank_of_target(torch.tensor([[0.1, 0.9, 0.5], [1.0, 1.0, 0.0]]), torch.tensor([2, 0])).tolist()
        [2.0, 1.5]
    """
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            f"expected scores (B, n) and targets (B,), got {tuple(scores.shape)} and {tuple(target.shape)}."
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
    """Rank of one item, or of one id tuple, in ranked lists; infinity where it is not listed.

    Of lists of items the result is item-level. Of lists of semantic ids it is SID-level: any item with the target's id
    counts. With ``sizes``, the number of items that share each listed id, it is item-level again: the items of an id
    tie, so the rank is the number of items before them plus their mean place ``(size + 1) / 2``.

    Args:
        lists: Item rows, best first (B, k), or id tuples (B, k, Q); -1 where a list is shorter.
        target: The item (B,), or its id (B, Q).
        sizes: Items per entry, >= 1 where an entry is valid.

    Returns:
        Ranks, float64.

    Raises:
        ValueError: If shapes do not fit, or a list names the target twice.

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
            f"{tuple(lists.shape)} and {tuple(target.shape)}."
        )
    if target.numel() and int(target.min()) < 0:
        raise ValueError(f"expected targets >= 0, got {int(target.min())}; -1 marks the end of a list.")
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
        ranks: Rank of each user's target from 1, infinity where it was not found.
        cutoffs: The K.

    Returns:
        ``recall@K`` and ``ndcg@K`` for every cutoff.

    Raises:
        ValueError: If there are no ranks or one is below 1.

    Example:
        >>> ranking_metrics(torch.tensor([1.0, 3.0, float("inf")]), cutoffs=(2, 3))
        {'recall@2': 0.333..., 'ndcg@2': 0.333..., 'recall@3': 0.666..., 'ndcg@3': 0.5}
    """
    if not len(ranks) or not bool((ranks >= 1).all()):
        raise ValueError(f"expected at least one rank, all >= 1, got {ranks.tolist()[:5]}.")
    ranks = ranks.double()
    metrics: dict[str, float] = {}
    for cutoff in cutoffs:
        hit = (ranks <= cutoff).double()
        metrics[f"recall@{cutoff}"] = float(hit.mean())
        metrics[f"ndcg@{cutoff}"] = float((hit / (ranks + 1).log2()).mean())
    return metrics


def ranks_by_scores(
    scores: Callable[[Histories], Tensor], histories: Histories, targets: Int[Tensor, " U"], *, batch_size: int = 256
) -> Float[Tensor, " U"]:
    """Ranks of the targets by a model that scores all items, a block of users at a time.

    Args:
        scores: From B histories to scores (B, n).
        histories: What the model may see of U users.
        targets: Their held-out items.
        batch_size: Users per block; memory grows with this times n, never with U times n.

    Returns:
        Ranks, for :func:`ranking_metrics`.
    """
    _check_users(histories, targets, batch_size)
    parts = [
        rank_of_target(scores(histories[i : i + batch_size]).cpu(), targets[i : i + batch_size])
        for i in range(0, len(targets), batch_size)
    ]
    return torch.cat(parts)


def ranks_by_lists(
    recommend: Callable[[Histories, int], Tensor],
    histories: Histories,
    targets: Int[Tensor, " U"],
    *,
    k: int = max(CUTOFFS),
    batch_size: int = 256,
) -> Float[Tensor, " U"]:
    """Ranks of the targets in the lists of a model, a block of users at a time; infinity where they are not listed.

    Args:
        recommend: From B histories and k to item rows (B, k), best first, -1 where there are fewer.
        histories: What the model may see of U users.
        targets: Their held-out items.
        k: Length of the lists; cutoffs must not be larger.
        batch_size: Users per block.

    Returns:
        Ranks, for :func:`ranking_metrics`.
    """
    _check_users(histories, targets, batch_size)
    parts = [
        rank_in_list(recommend(histories[i : i + batch_size], k).cpu(), targets[i : i + batch_size])
        for i in range(0, len(targets), batch_size)
    ]
    return torch.cat(parts)


def top_items(scores: Float[Tensor, "B n"], k: int) -> Int[Tensor, "B k"]:
    """The k best items, best first; of equal scores the lower row first, -1 where only excluded items are left.

    Args:
        scores: Higher is better, minus infinity means excluded.
        k: Length of the lists; beyond n they are filled with -1.

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
            f"expected as many histories as targets, at least one, in blocks of at least one, got {len(histories)}, "
            f"{len(targets)} and batch_size {batch_size}."
        )
