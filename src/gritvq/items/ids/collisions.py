"""What happens to items whose codes are the same: the four policies, and the same for items that come later.

All of them depend on nothing but codes, vectors and the order of the items. Distances are sums over components in
float64, one component after the other, so they are the same bit by bit whatever else is in the batch; ties go to the
lowest code.
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
UNIQUE = ("append", "nearest_free")  # policies under which no two items have the same id

_BLOCK_ENTRIES, _CACHED_ENTRIES = 1 << 22, 1 << 15
_ROUNDS, _ITERATIONS, _EPSILON, _OWNED = 20, 50, 0.003, 0.9


def checked_policy(policy: Any) -> Policy:
    """The name of a policy.

    Raises:
        ValueError: If it is something else.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"expected collisions to be one of {', '.join(get_args(Policy))}, got {policy!r}")
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
    """Ids of new items under a policy; the ids that are fixed already stay as they are.

    ``keep``: the codes themselves; equal ones stay equal.

    ``append``: one more token, 0, 1, 2, ... within each group of equal codes, in item order. Its size is the largest
    group. Items that come later go on counting, and the size grows where needed. Always unique.

    ``nearest_free``: in each group of equal codes the first item keeps its code (a fixed one comes before all others).
    Every other item, in item order, takes the nearest last-level code that no item under the same prefix (all codes
    but the last) has, those that keep theirs included. Always unique; an error where a prefix has more items than the
    last level has codes.

    ``sinkhorn``: up to 20 rounds, and one pass. In a round every group of g >= 2 new items with equal codes is treated
    on its own: squared distances d (g, K) to all last-level codes, mapped to [-1, 1] by the group's least and largest
    one, ``P = argmin <P, d> - .003 H(P)`` over plans that give every item 1/g and every code 1/K (50 iterations, items
    then codes). With more codes than items many entries reach their bound 1/K: every item takes the nearest of the
    codes whose entry is at least .9 of the largest of its row. Where it meets another item there, both are in the next
    round. Rounds end when nothing changes (equal vectors cannot be told apart). The pass: in each group that is still
    there the first item, or the fixed one, keeps its code; every other takes its nearest other code if that is free
    under its prefix (the earlier of two items that want it), else it stays. So duplicates may be left.

    Args:
        policy: One of the four.
        codes: What the tokenizer gave.
        sizes: Codes per column of the ids before these items came: of ``codes``, or, where ids are fixed under
            ``append``, with the size of the appended token last.
        vectors: What the last level quantizes, for ``sinkhorn`` and ``nearest_free``.
        table: The codes of the last level.
        fixed: Ids that must not change.

    Returns:
        The new items' ids and all sizes.

    Raises:
        ValueError: If vectors or table are missing or do not fit, or a prefix is full.

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
        Recommendation" (LC-Rec), ICDE 2024, arXiv 2311.09049 (sinkhorn; the released code takes the first of the
        entries at their bound, often a far code, and has no pass). FORGE, 2025, arXiv 2509.20904 (nearest_free).
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
            f"expected vectors and table for collisions={policy!r}, got none; pass what the last level quantizes "
            "(n, D) and its codes (K, D), or choose 'append' or 'keep'"
        )
    vectors, table = torch.as_tensor(vectors), torch.as_tensor(table)
    fits = vectors.ndim == table.ndim == 2 and vectors.shape[1] == table.shape[1]
    if not fits or len(vectors) != len(codes) or len(table) != sizes[-1]:
        raise ValueError(
            f"expected vectors ({len(codes)}, D) and a table ({sizes[-1]}, D), got {tuple(vectors.shape)} and "
            f"{tuple(table.shape)}; they belong to the last level"
        )
    for name, x in (("vectors", vectors), ("table", table)):
        if not x.isfinite().all():
            bad = int((~x.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"expected finite {name}, got row {bad} with NaN or infinity; leave such items out")
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
    """Squared distances whose rounding depends on the two vectors alone (a matrix product's does not)."""
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
    """Rows that an earlier row equals; of the first, fixed ones none."""
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
            f"expected at most {size} items under a prefix, as the last level has codes, got "
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
    """For each of G groups of g items the codes that the transport plan of the docstring above gives them."""
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
