"""Every quality metric of semantic ids in one function, each with its formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.items.ids.groups import RowTable
from gritvq.quantizers.canonical import ranked
from gritvq.quantizers.functional import code_sums

if TYPE_CHECKING:
    from gritvq.items.ids.semantic_ids import SemanticIds

__all__ = ["report"]

_BLOCK_ENTRIES = 1 << 23


def report(
    ids: SemanticIds,
    categories: Sequence[Any] | None = None,
    embeddings: Float[Tensor, "n D"] | None = None,
    *,
    reconstructions: Float[Tensor, "n D"] | None = None,
    related: Int[Tensor, "n k"] | None = None,
    recoded: Int[Tensor, "n L"] | None = None,
    perturbed: Int[Tensor, "S n L"] | None = None,
    num_neighbours: int = 10,
    num_queries: int = 4096,
) -> dict[str, float]:
    """Quality of ids: n items, Q levels of K_q codes, K_1 ... K_Q the capacity; logarithms are natural.

    Levels and depths count from 1. Under ``append`` the last column is the appended token, so depth Q - 1 shows the
    ids before the policy.

    Per level q, with p_k the share of items that have code k there:

    - ``level1/used``: codes with p_k > 0
    - ``level1/coverage``: used / K_q
    - ``level1/entropy``: H = -sum_k p_k ln p_k
    - ``level1/perplexity``: exp(H)
    - ``level1/largest_share``: max_k p_k
    - ``level1/gini``: sum_k (2 k - K - 1) p_(k) / K over all K_q codes, p_(1) <= p_(2) <= ...; 0 is even

    Whole ids, with n_s the items that have id s:

    - ``items``, ``distinct``: n; number of ids with n_s > 0
    - ``uniqueness``: distinct / n
    - ``collision_rate``: 1 - uniqueness (LC-Rec)
    - ``items_in_collision``: share of items that share their id: sum of n_s over n_s > 1, / n
    - ``icr``: 1 - items_in_collision (S2GR, independent coding rate)
    - ``largest_group``: max_s n_s
    - ``entropy``: H = -sum_s n_s/n ln n_s/n
    - ``entropy_over_ln_capacity``: H / ln(K_1 ... K_Q) (TorchEasyRec); NaN where there is one id only
    - ``entropy_over_ln_n``: H / ln n (QuaSID); NaN for one item
    - ``bucket_gini``: Gini of n_s over the ids in use (FORGE)
    - ``code_space_use``: distinct / capacity

    Prefixes of d codes:

    - ``depth1/distinct``: distinct prefixes
    - ``depth1/fan_out``: distinct prefixes of d codes / of d - 1 codes: children per node of the tree
    - ``depth1/uniqueness``: distinct / n
    - ``depth1/items_in_collision``: share of items that share the prefix
    - ``level1/purity``: with ``categories``: sum_k max_c n_kc / n, n_kc the items of category c with first code k, over
      the n items that have a category
    - ``level1/nmi``: 2 I(k; c) / (H(k) + H(c)); an item of several categories counts in each with weight 1 / their
      number; 1 where both are constant
    - ``categories/largest_share``: max_c n_c / n: the purity of a single code for all

    Neighbors, with ``embeddings``, of N = ``num_queries`` items evenly spaced over the catalogue (all where there are
    no more): E_k(i) are the k nearest other items by the cosine of their embeddings.

    - ``neighbours/prefix_recall@10``: 1/(N k) sum_i sum_{j in E_k(i)} P(j), P(j) the chance that j is among the k other
      items that share the longest prefix with i, equal lengths drawn by lot
    - ``neighbours/quantized_recall@10``: with ``reconstructions``: likewise, for the k nearest other items by the
      euclidean distance of their ids' reconstructions, equal ones (before an appended token) drawn by lot
    - ``neighbours/chance@10``: k / (n - 1): what ids without meaning reach
    - ``related/prefix_recall@k``: with ``related``: the same for given neighbors, a mean over all that are given
    - ``related/embedding_recall@10``: with both: mean 1[j in E_k(i)] over the given neighbors j of the N items
      (FORGE's embedding hit rate, where they are the next items)
    - ``depth1/cohesion``: mean cosine of the embeddings of two items, over all pairs that share d codes; NaN if none do
    - ``depth1/discrimination``: that, less the mean over all pairs that share d - 1 codes and no more
    - ``reconstruction/mse``: mean (x - r)^2 over all numbers, with both
    - ``reconstruction/relative_error``: sum |x - r|^2 / sum |x - mean x|^2
    - ``reconstruction/cosine``: mean cosine of x and r

    With ``recoded``: ``recoded/changed_codes`` is the share of codes that differ, ``recoded/changed_items`` the share
    of items with such a code.

    With ``perturbed``, codes of noisy embeddings (:meth:`~gritvq.items.ItemTokenizer.perturbed_codes`), C_jk
    the share of the noisy versions of the items with code j that get code k:

    - ``level1/effective_codes``: 1 / sum_k (sum_j p_j sqrt(C_jk))^2. The sum is what two codes i and j, drawn with the
      items' frequencies, are expected to overlap, sum_k sqrt(C_ik C_jk) (Bhattacharyya). It gives 1 / sum_k p_k^2 where
      noise changes nothing, and 1 where it leaves no trace of a code
    - ``perturbed/kept_codes``, ``perturbed/kept_ids``: share of codes, and of whole ids, that noise leaves as they are

    Args:
        ids: The ids; as ``ids.report(...)`` too.
        categories: Per item one category (string or number) or a list of them; None, NaN, "" and [] are none.
        embeddings: Per item a vector, to compare neighbors.
        reconstructions: Per item what its id decodes to (equal ids, equal vectors), in the space of the embeddings.
        related: Rows of items that belong to each item, such as what is bought together; -1 is none.
        recoded: What the tokenizer gives once more, in another batch size, order or dtype; may have fewer columns than
            the ids, such as no appended token.
        perturbed: S times the codes of all items with noise on their embeddings; may have fewer columns, too. Of little
            use under policies that choose other codes than the tokenizer's, which count as changed.
        num_neighbours: k.
        num_queries: Items whose neighbors are compared.

    Returns:
        Value by name, as floats.

    Raises:
        ValueError: If shapes do not fit, an embedding is not finite or a perturbed code is out of range.

    Example:
        >>> from gritvq import SemanticIds
        >>> ids = SemanticIds(torch.tensor([[0, 1], [0, 1], [1, 0], [1, 1]]), (2, 2))
        >>> found = report(ids, ["a", "a", "b", "a"])
        >>> found["uniqueness"], found["items_in_collision"], found["level1/perplexity"], found["level1/purity"]
        (0.75, 0.5, 2.0, 0.75)

    References:
        LC-Rec, arXiv 2311.09049; QuaSID, arXiv 2603.00632; S2GR, arXiv 2601.18664; FORGE, arXiv 2509.20904;
        TorchEasyRec. The chance in the recalls is ours: ids have many ties. Cohesion and discrimination are named after
        R3-VAE (arXiv 2604.11440), effective codes after DRQ (arXiv 2606.01844), which say what they measure; the
        formulas above are ours and may differ from theirs.
    """
    codes, sizes = ids.codes, ids.codebook_sizes
    prefixes = [RowTable(codes[:, :depth], sizes[:depth]) for depth in range(1, len(sizes) + 1)]
    found: dict[str, float] = {}
    for level, size in enumerate(sizes):
        found |= {f"level{level + 1}/{name}": value for name, value in _usage(codes[:, level], size).items()}
    found |= _whole(prefixes[-1].counts, sizes)
    above = 1
    for depth, table in enumerate(prefixes, 1):
        found |= {f"depth{depth}/{name}": value for name, value in _sharing(table.counts).items()}
        found[f"depth{depth}/fan_out"] = len(table.counts) / above
        above = len(table.counts)
    if categories is not None:
        found |= _categories(prefixes[0].group, categories)
    if recoded is not None:
        found |= _changes(codes, torch.as_tensor(recoded).cpu())
    if perturbed is not None:
        found |= _robustness(codes, sizes, torch.as_tensor(perturbed).cpu())
    if related is not None:
        queries = torch.arange(len(codes))
        rows = torch.as_tensor(related).cpu().long()
        if rows.ndim != 2 or len(rows) != len(codes) or not rows.shape[1] or int(rows.max()) >= len(codes):
            raise ValueError(f"expected related rows ({len(codes)}, k) of items, -1 for none, got {tuple(rows.shape)}")
        rows = torch.where(rows == queries[:, None], -1, rows)
        found[f"related/prefix_recall@{rows.shape[1]}"] = _mean_given(_prefix_chance(prefixes, queries, rows), rows)
    if embeddings is not None:
        vectors = _checked_vectors("embeddings", embeddings, len(codes))
        values = None if reconstructions is None else _checked_vectors("reconstructions", reconstructions, len(codes))
        given = None if related is None else rows
        found |= _cohesion(prefixes, F.normalize(vectors, dim=1))
        decoded = prefixes[-2] if ids.collisions == "append" else prefixes[-1]  # equal ids decode alike
        found |= _neighbors(prefixes, decoded, vectors, values, given, num_neighbours, num_queries)
        if values is not None:
            found |= _errors(vectors, values)
    return found


def _entropy(counts: Tensor) -> float:
    p = counts[counts > 0].double()
    p = p / p.sum()
    return max(0.0, float(-(p * p.log()).sum()))


def _gini(counts: Tensor, size: int) -> float:
    """Of ``size`` numbers, those not given being 0."""
    x = counts[counts > 0].double().sort().values
    rank = torch.arange(size - len(x) + 1, size + 1, dtype=torch.float64)
    return float(((2 * rank - size - 1) * x).sum() / (size * x.sum()))


def _usage(codes: Int[Tensor, " n"], size: int) -> dict[str, float]:
    counts = torch.unique(codes, return_counts=True)[1]
    entropy = _entropy(counts)
    return {
        "used": float(len(counts)),
        "coverage": len(counts) / size,
        "entropy": entropy,
        "perplexity": math.exp(entropy),
        "largest_share": int(counts.max()) / len(codes),
        "gini": _gini(counts, size),
    }


def _sharing(counts: Int[Tensor, " G"]) -> dict[str, float]:
    n = int(counts.sum())
    return {
        "distinct": float(len(counts)),
        "uniqueness": len(counts) / n,
        "items_in_collision": int(counts[counts > 1].sum()) / n,
    }


def _whole(counts: Int[Tensor, " G"], sizes: tuple[int, ...]) -> dict[str, float]:
    n, capacity, sharing = int(counts.sum()), math.prod(sizes), _sharing(counts)
    entropy = _entropy(counts)
    return {
        "items": float(n),
        **sharing,
        "collision_rate": 1 - sharing["uniqueness"],
        "icr": 1 - sharing["items_in_collision"],
        "largest_group": float(counts.max()),
        "entropy": entropy,
        "entropy_over_ln_capacity": entropy / math.log(capacity) if capacity > 1 else math.nan,
        "entropy_over_ln_n": entropy / math.log(n) if n > 1 else math.nan,
        "bucket_gini": _gini(counts, len(counts)),
        "code_space_use": len(counts) / capacity,
    }


def category_numbers(categories: Sequence[Any], num_items: int) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Flat pairs (item row, category number) and the categories' names, in order of appearance.

    Raises:
        ValueError: If there is not one entry per item, or one is no category.
    """
    if len(categories) != num_items:
        raise ValueError(f"expected categories of {num_items} items, got {len(categories)}")
    numbers: dict[Any, int] = {}
    rows, columns = [], []
    for row, entry in enumerate(categories):
        several = isinstance(entry, (list, tuple, set, frozenset, np.ndarray))
        try:
            names = dict.fromkeys(entry if several else [entry])
        except TypeError as error:
            raise ValueError(
                f"expected per item a category or a list of them, got {entry!r} in row {row}; flatten nested lists"
            ) from error
        for name in names:
            if name is None or name == "" or name != name:
                continue
            rows.append(row)
            columns.append(numbers.setdefault(name, len(numbers)))
    return np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64), list(numbers)


def _categories(group: Int[Tensor, " n"], categories: Sequence[Any]) -> dict[str, float]:
    rows, columns, names = category_numbers(categories, len(group))
    if not names:
        return {"level1/purity": math.nan, "level1/nmi": math.nan, "categories/largest_share": math.nan}
    codes, shape = group.numpy()[rows], (int(group.max()) + 1, len(names))
    items = len(np.unique(rows))
    cells, at, counts = np.unique(codes * len(names) + columns, return_inverse=True, return_counts=True)
    best = np.zeros(shape[0])
    np.maximum.at(best, cells // len(names), counts)
    joint = np.bincount(at, weights=1 / np.bincount(rows, minlength=len(group))[rows]) / items
    of_code = np.bincount(cells // len(names), weights=joint, minlength=shape[0])
    of_category = np.bincount(cells % len(names), weights=joint, minlength=shape[1])
    entropies = [float(-(p[p > 0] * np.log(p[p > 0])).sum()) for p in (of_code, of_category)]
    expected = of_code[cells // len(names)] * of_category[cells % len(names)]
    shared = max(0.0, float((joint * np.log(joint / expected)).sum()))
    return {
        "level1/purity": float(best.sum()) / items,
        "level1/nmi": 2 * shared / sum(entropies) if sum(entropies) > 1e-12 else 1.0,
        "categories/largest_share": int(np.bincount(columns).max()) / items,
    }


def _checked_vectors(name: str, vectors: Any, num_items: int) -> Float[Tensor, "n D"]:
    x = torch.as_tensor(vectors).detach().cpu().float()
    if x.ndim != 2 or len(x) != num_items:
        raise ValueError(f"expected {name} ({num_items}, D), got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(
            f"expected finite {name}, got NaN or infinity in row {int((~x.isfinite().all(1)).nonzero()[0])}"
        )
    return x


def _changes(codes: Int[Tensor, "n Q"], recoded: Int[Tensor, "n L"]) -> dict[str, float]:
    if recoded.ndim != 2 or len(recoded) != len(codes) or not 1 <= recoded.shape[1] <= codes.shape[1]:
        raise ValueError(f"expected recoded codes ({len(codes)}, 1 .. {codes.shape[1]}), got {tuple(recoded.shape)}")
    differ = codes[:, : recoded.shape[1]] != recoded
    return {
        "recoded/changed_codes": float(differ.double().mean()),
        "recoded/changed_items": float(differ.any(1).double().mean()),
    }


def _robustness(codes: Int[Tensor, "n Q"], sizes: tuple[int, ...], noisy: Int[Tensor, "S n L"]) -> dict[str, float]:
    n, most = codes.shape
    if noisy.ndim != 3 or not len(noisy) or noisy.shape[1] != n or not 1 <= noisy.shape[2] <= most:
        raise ValueError(f"expected perturbed codes (S, {n}, 1 .. {most}), got {tuple(noisy.shape)}")
    own = codes[:, : noisy.shape[2]]
    wrong = (noisy < 0) | (noisy >= torch.tensor(sizes[: noisy.shape[2]]))
    if wrong.any():
        raise ValueError(f"expected perturbed codes in 0 .. K-1 for K = {sizes}, got {int(noisy[wrong][0])}")
    found = {
        "perturbed/kept_codes": float((noisy == own).double().mean()),
        "perturbed/kept_ids": float((noisy == own).all(2).double().mean()),
    }
    for level, size in enumerate(sizes[: noisy.shape[2]]):
        before, after = own[:, level].expand(len(noisy), n), noisy[..., level]
        cells, counts = torch.unique(before * size + after, return_counts=True)  # n p_j S C_jk, no empty cells
        usage = torch.bincount(own[:, level]).double() / n
        # p_j sqrt(C_jk) = sqrt(p_j) sqrt(p_j C_jk)
        terms = (usage[cells // size] * counts.double() / before.numel()).sqrt()
        overlap = torch.zeros(size, dtype=torch.float64).index_add_(0, cells % size, terms).square().sum()
        found[f"level{level + 1}/effective_codes"] = 1 / float(overlap)
    return found


def _cohesion(prefixes: list[RowTable], unit: Float[Tensor, "n D"]) -> dict[str, float]:
    """From sums over groups: the cosines of a group's pairs sum to (|sum u|^2 - sum |u|^2) / 2."""
    found: dict[str, float] = {}
    above, above_pairs = _pair_sum(torch.zeros_like(prefixes[0].group), unit)
    for depth, table in enumerate(prefixes, 1):
        total, pairs = _pair_sum(table.group, unit)
        inside = total / pairs if pairs else math.nan
        apart = (above - total) / (above_pairs - pairs) if above_pairs > pairs else math.nan
        found |= {f"depth{depth}/cohesion": inside, f"depth{depth}/discrimination": inside - apart}
        above, above_pairs = total, pairs
    return found


def _pair_sum(group: Int[Tensor, " n"], unit: Float[Tensor, "n D"]) -> tuple[float, int]:
    """Sum of the cosines over pairs of one group, and the number of such pairs."""
    counts = torch.bincount(group)
    pairs = int((counts * (counts - 1) // 2).sum())
    total = 0.0
    for columns in unit.split(32, dim=1):
        part = columns.double()
        total += float(code_sums(part, group, len(counts)).square().sum() - part.square().sum()) / 2
    return (total if pairs else 0.0), pairs


def _neighbors(
    prefixes: list[RowTable],
    decoded: RowTable,
    x: Float[Tensor, "n D"],
    values: Float[Tensor, "n D"] | None,
    related: Int[Tensor, "n r"] | None,
    k: int,
    num_queries: int,
) -> dict[str, float]:
    n = len(x)
    if k < 1 or num_queries < 1:
        raise ValueError(f"expected num_neighbours and num_queries >= 1, got {k} and {num_queries}")
    name, k = f"@{k}", min(k, n - 1)
    if k == 0:
        return {f"neighbours/prefix_recall{name}": math.nan, f"neighbours/chance{name}": math.nan}
    queries = torch.linspace(0, n - 1, min(n, num_queries), dtype=torch.float64).round().long()
    unit = F.normalize(x, dim=1)
    near = []
    for rows in queries.split(max(1, _BLOCK_ENTRIES // n)):
        similarity = unit[rows] @ unit.T
        similarity[torch.arange(len(rows)), rows] = -math.inf
        near.append(ranked(similarity, k))
    nearest = torch.cat(near)
    found = {
        f"neighbours/prefix_recall{name}": _mean_given(_prefix_chance(prefixes, queries, nearest), nearest),
        f"neighbours/chance{name}": k / (n - 1),
    }
    if values is not None:
        chance = _quantized_chance(decoded, values, queries, nearest)
        found[f"neighbours/quantized_recall{name}"] = _mean_given(chance, nearest)
    if related is not None:
        hit = (related[queries][:, :, None] == nearest[:, None, :]).any(2)
        found[f"related/embedding_recall{name}"] = _mean_given(hit.double(), related[queries])
    return found


def _mean_given(chance: Float[Tensor, "N k"], rows: Int[Tensor, "N k"]) -> float:
    given = rows >= 0
    return float(chance[given].mean()) if given.any() else math.nan


def _prefix_chance(prefixes: list[RowTable], queries: Int[Tensor, " N"], rows: Int[Tensor, "N k"]) -> Tensor:
    """For each given row the chance to be among the k items that share the longest prefix with the query (N, k)."""
    k = rows.shape[1]
    chance = torch.zeros(rows.shape, dtype=torch.float64)
    closer = torch.zeros(len(queries), dtype=torch.float64)  # others that share a longer prefix
    undecided = rows >= 0
    for table in reversed([None, *prefixes]):
        if table is None:  # all items share the empty prefix
            sharing = torch.full_like(closer, len(prefixes[0].group) - 1)
            same = undecided
        else:
            sharing = table.counts[table.group[queries]].double() - 1
            same = undecided & (table.group[rows.clamp_min(0)] == table.group[queries][:, None])
        share = ((k - closer) / (sharing - closer).clamp_min(1)).clamp(0, 1)
        chance = torch.where(same, share[:, None], chance)
        undecided, closer = undecided & ~same, sharing
    return chance


def _quantized_chance(
    ids: RowTable, values: Float[Tensor, "n D"], queries: Int[Tensor, " N"], rows: Int[Tensor, "N k"]
) -> Tensor:
    """The same for the k items whose ids' values are nearest; items of one id are equally near (N, k)."""
    k = rows.shape[1]
    centers = values[ids.order[ids.starts[:-1]]]
    square = centers.square().sum(1)
    parts = []
    step = max(1, _BLOCK_ENTRIES // len(centers))
    for some, wanted in zip(queries.split(step), rows.split(step), strict=True):
        own = ids.group[some]
        distance = square - 2 * centers[own] @ centers.T
        distance[torch.arange(len(some)), own] = -math.inf  # its own id is nearest
        nearest = ranked(distance, min(k + 1, len(centers)), largest=False)
        size = ids.counts[nearest].double()
        size[:, 0] -= 1  # without itself
        share = ((k - (size.cumsum(1) - size)) / size.clamp_min(1)).clamp(0, 1)
        hit = ids.group[wanted][:, :, None] == nearest[:, None, :]
        parts.append((hit * share[:, None, :]).sum(2))
    return torch.cat(parts)


def _errors(x: Float[Tensor, "n D"], values: Float[Tensor, "n D"]) -> dict[str, float]:
    if x.shape != values.shape:
        raise ValueError(
            f"expected reconstructions of the embeddings' shape {tuple(x.shape)}, got {tuple(values.shape)}"
        )
    error = (x.double() - values.double()).square()
    spread = float((x.double() - x.double().mean(0)).square().sum())
    return {
        "reconstruction/mse": float(error.mean()),
        "reconstruction/relative_error": float(error.sum()) / spread if spread > 0 else math.nan,
        "reconstruction/cosine": float(F.cosine_similarity(x, values).double().mean()),
    }
