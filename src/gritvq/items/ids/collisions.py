"""Collision policies: what happens to items with equal indices, also to items that are added later.

Results depend only on indices, vectors and the order of the items. Distances are summed in float64, one component after
the other, so they do not depend on the rest of the batch; ties go to the lowest index.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.items.ids.groups import RowTable, rank_in_group

__all__ = ["UNIQUE", "Policy", "checked_policy", "resolve"]

Policy = Literal["keep", "append", "sinkhorn", "nearest_free"]
UNIQUE = ("append", "nearest_free")  # policies that make ids unique

_BLOCK_ENTRIES, _CACHED_ENTRIES = 1 << 22, 1 << 15
_ROUNDS, _ITERATIONS, _EPSILON, _OWNED = 20, 50, 0.003, 0.9


def checked_policy(policy: Any) -> Policy:
    """Returns the name of a policy; raises a ValueError if it is unknown."""
    if policy not in get_args(Policy):
        raise ValueError(f"expected collisions to be one of {', '.join(get_args(Policy))}, got {policy!r}; choose one")
    return policy


def resolve(
    policy: Policy,
    codes: Int[Tensor, "m L"],
    sizes: tuple[int, ...],
    *,
    vectors: Float[Tensor, "m D"] | None = None,
    table: Float[Tensor, "K D"] | None = None,
    fixed: Int[Tensor, "o Q"] | None = None,
) -> tuple[Int[Tensor, "m Q"], tuple[int, ...]]:
    """Ids of new items under a policy; fixed ids do not change.

    ``keep``: the indices themselves; equal ones stay equal.

    ``append``: one more token, 0, 1, 2, ... within each group of equal indices, in item order. Its codebook size is the
    size of the largest group. For added items the count continues, and the size may grow. Ids are unique.

    ``nearest_free``: in each group of equal indices the first item keeps its id (a fixed one comes before all others).
    Every other item, in item order, takes the nearest last-level code that no item with the same prefix (all indices
    but the last) has. Ids are unique. It is an error if a prefix has more items than the last level has codes.

    ``sinkhorn``: up to 20 rounds and a final pass. A round handles each group of g >= 2 new items with equal indices:
    given the squared distances d (g, K) to all last-level codes, mapped to [-1, 1] by the group's minimum and maximum,
    it computes ``P = argmin <P, d> - .003 H(P)`` over plans with marginals 1/g per item and 1/K per code (50
    iterations, items before codes). With more codes than items many entries reach their bound 1/K, so each item takes
    the nearest of the codes whose entry is at least .9 of its row's maximum. Items that collide again are in the next
    round. Rounds end when nothing changes (items with equal vectors always collide). In the final pass, the first item
    of each remaining group, or the fixed one, keeps its code; each other item takes its second nearest code if that is
    free under its prefix (the earlier item first), and otherwise keeps its own. Duplicates may remain.

    Args:
        policy: The policy.
        codes: A tokenizer's indices.
        sizes: Codebook sizes of the existing ids: of ``codes``, and with fixed ids under ``append`` the size of the
            appended token last.
        vectors: Inputs of the last level, for ``sinkhorn`` and ``nearest_free``.
        table: Codes of the last level, for the same.
        fixed: Ids that must not change.

    Returns:
        The new items' ids and all codebook sizes.

    Raises:
        ValueError: If vectors or table are missing or have wrong shapes, or a prefix is full.

    Example:
        >>> codes = torch.tensor([[0, 1], [0, 1], [2, 2]])
        >>> resolve("append", codes, (4, 4))
        (tensor([[0, 1, 0],
                [0, 1, 1],
                [2, 2, 0]]), (4, 4, 2))
        >>> vectors, table = torch.tensor([[1.0], [1.2], [2.0]]), torch.arange(4.0)[:, None]
        >>> resolve("nearest_free", codes, (4, 4), vectors=vectors, table=table)[0]
        tensor([[0, 1],
                [0, 2],
                [2, 2]])

    References:
        Rajput et al., "Recommender Systems with Generative Retrieval" (TIGER), NeurIPS 2023, arXiv 2305.05065
        (append). Zheng et al., "Adapting Large Language Models by Integrating Collaborative Semantics for
        Recommendation" (LC-Rec), ICDE 2024, arXiv 2311.09049 (sinkhorn; the released code takes the first entry at its
        bound, often a far code, and has no final pass). FORGE, 2025, arXiv 2509.20904 (nearest_free).
    """
    policy = checked_policy(policy)
    if policy == "keep":
        return codes, sizes
    if policy == "append":
        return _append(codes, sizes, fixed)
    vectors, table = _checked(policy, codes, sizes, vectors, table)
    if fixed is None:
        fixed = codes[:0]
    move = _nearest_free if policy == "nearest_free" else _sinkhorn
    return move(codes, sizes, vectors, table, fixed), sizes


def _checked(
    policy: str, codes: Tensor, sizes: tuple[int, ...], vectors: Tensor | None, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    if vectors is None or table is None:
        raise ValueError(
            f"expected vectors and table for collisions={policy!r}, got none; pass the inputs (n, D) and the codes "
            "(K, D) of the last level, or choose 'append' or 'keep'"
        )
    vectors, table = torch.as_tensor(vectors), torch.as_tensor(table)
    fits = vectors.ndim == table.ndim == 2 and vectors.shape[1] == table.shape[1]
    if not fits or len(vectors) != len(codes) or len(table) != sizes[-1]:
        raise ValueError(
            f"expected vectors ({len(codes)}, D) and a table ({sizes[-1]}, D), got {tuple(vectors.shape)} and "
            f"{tuple(table.shape)}; pass those of the last level"
        )
    for name, x in (("vectors", vectors), ("table", table)):
        if not x.isfinite().all():
            bad = int((~x.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"expected finite {name}, got row {bad} with NaN or infinity; remove such items")
    return vectors.detach().cpu().double(), table.detach().cpu().double()


def _append(codes: Tensor, sizes: tuple[int, ...], fixed: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    own = sizes if fixed is None else sizes[:-1]
    old = codes[:0] if fixed is None else fixed[:, :-1]
    table = RowTable(torch.cat([old, codes]), own)
    first = torch.zeros(len(table.counts), dtype=torch.int64)
    if fixed is not None:
        first.scatter_reduce_(0, table.group[: len(old)], fixed[:, -1] + 1, "amax")
    group = table.group[len(old) :]
    token = first[group] + rank_in_group(group)
    size = max(1 if fixed is None else sizes[-1], int(token.max()) + 1 if len(token) else 1)
    return torch.cat([codes, token[:, None]], 1), (*own, size)


def _distances(vectors: Float[Tensor, "n D"], table: Float[Tensor, "K D"]) -> Float[Tensor, "n K"]:
    """Squared distances whose rounding depends only on the two vectors, unlike a matrix product's."""
    total = torch.zeros(len(vectors), len(table), dtype=torch.float64)
    columns = table.T.contiguous()
    rows = max(1, _CACHED_ENTRIES // len(table))
    for some, part in zip(vectors.split(rows), total.split(rows), strict=True):
        difference = torch.empty_like(part)
        for component, column in zip(some.T[:, :, None], columns, strict=True):
            torch.sub(component, column, out=difference)
            part += difference.square_()
    return total


def _followers(codes: Tensor, sizes: tuple[int, ...], num_fixed: int) -> Bool[Tensor, " n"]:
    """Whether an earlier row equals a row; false for fixed rows."""
    follows = rank_in_group(RowTable(codes, sizes).group) > 0
    follows[:num_fixed] = False
    return follows


def _nearest_free(codes: Tensor, sizes: tuple[int, ...], vectors: Tensor, table: Tensor, fixed: Tensor) -> Tensor:
    offset, size = len(fixed), sizes[-1]
    ids = torch.cat([fixed, codes])
    prefix = RowTable(ids[:, :-1], sizes[:-1])
    if int(prefix.counts.max()) > size:
        full = int(prefix.counts.argmax())
        name = tuple(ids[int((prefix.group == full).nonzero()[0]), :-1].tolist())
        raise ValueError(
            f"expected at most {size} items under a prefix, the number of codes of the last level, got "
            f"{int(prefix.counts[full])} under {name}; use more codes or levels, or collisions='append'"
        )
    moves = _followers(ids, sizes, offset)
    movers = moves.nonzero()[:, 0]
    touched, local = torch.unique(prefix.group[movers], return_inverse=True)
    turn = rank_in_group(local)
    number = torch.full((len(prefix.counts),), -1, dtype=torch.int64)
    number[touched] = torch.arange(len(touched))
    stay = ((~moves) & (number[prefix.group] >= 0)).nonzero()[:, 0]
    home = number[prefix.group[stay]]
    per_block = max(1, 4 * _BLOCK_ENTRIES // size)
    for start in range(0, len(touched), per_block):
        stop = min(start + per_block, len(touched))
        taken = torch.zeros(stop - start, size, dtype=torch.bool)
        inside = (home >= start) & (home < stop)
        taken[home[inside] - start, ids[stay[inside], -1]] = True
        inside = (local >= start) & (local < stop)
        rows, places, turns = movers[inside], local[inside] - start, turn[inside]
        order = turns.argsort(stable=True)  # the first mover of every prefix, then the second, ...
        for part in order.split(torch.bincount(turns).tolist()):
            for some in part.split(max(1, _BLOCK_ENTRIES // size)):
                row, place = rows[some], places[some]
                cost = _distances(vectors[row - offset], table).masked_fill_(taken[place], math.inf)
                chosen = cost.argmin(1)
                taken[place, chosen] = True
                ids[row, -1] = chosen
    return ids[offset:]


def _sinkhorn(codes: Tensor, sizes: tuple[int, ...], vectors: Tensor, table: Tensor, fixed: Tensor) -> Tensor:
    codes = codes.clone()
    for _ in range(_ROUNDS):
        rows = RowTable(codes, sizes)
        order, starts, before = rows.order, rows.starts, codes[:, -1].clone()
        for size in rows.counts[rows.counts > 1].unique().tolist():
            first = starts[:-1][rows.counts == size]
            members = order[first[:, None] + torch.arange(size)]
            for some in members.split(max(1, _BLOCK_ENTRIES // (size * len(table)))):
                cost = _distances(vectors[some.flatten()], table).view(*some.shape, -1)
                codes[some, -1] = _balanced_choice(cost)
        if torch.equal(before, codes[:, -1]):
            break
    return _next_nearest(codes, sizes, vectors, table, fixed)


def _balanced_choice(cost: Float[Tensor, "G g K"]) -> Int[Tensor, "G g"]:
    """Last-level indices of G groups of g items by the transport plan in :func:`resolve`."""
    low, high = cost.amin((1, 2), keepdim=True), cost.amax((1, 2), keepdim=True)
    middle = (low + high) / 2
    plan = _log_plan((cost - middle) / (high - middle + 1e-5), _EPSILON, _ITERATIONS)
    largest = plan >= plan.amax(2, keepdim=True) + math.log(_OWNED)
    return cost.masked_fill(~largest, math.inf).argmin(2)


def _log_plan(cost: Float[Tensor, "G g K"], epsilon: float, iterations: int) -> Float[Tensor, "G g K"]:
    """Logarithm of the entropic transport plan from items (1/g each) to codes (1/K each)."""
    score = -cost / epsilon
    per_item, per_code = -math.log(cost.shape[1]), -math.log(cost.shape[2])
    items, codes = torch.zeros_like(score[:, :, :1]), torch.zeros_like(score[:, :1])
    for _ in range(iterations):
        items = per_item - (score + codes).logsumexp(2, keepdim=True)
        codes = per_code - (score + items).logsumexp(1, keepdim=True)
    return score + items + codes


def _next_nearest(codes: Tensor, sizes: tuple[int, ...], vectors: Tensor, table: Tensor, fixed: Tensor) -> Tensor:
    offset = len(fixed)
    ids = torch.cat([fixed, codes])
    movers = _followers(ids, sizes, offset).nonzero()[:, 0]
    if not len(movers) or len(table) == 1:
        return codes
    wanted = ids[movers]
    for some in torch.arange(len(movers)).split(max(1, _BLOCK_ENTRIES // len(table))):
        cost = _distances(vectors[movers[some] - offset], table)
        wanted[some, -1] = cost.scatter_(1, wanted[some, -1:], math.inf).argmin(1)
    free = (RowTable(ids, sizes).find(wanted) < 0) & (rank_in_group(RowTable(wanted, sizes).group) == 0)
    ids[movers[free]] = wanted[free]
    return ids[offset:]
