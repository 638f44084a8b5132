"""Quality metrics of semantic ids with their formulas: one function per group of metrics, and :func:`report` for all.

Formulas are for n items and Q levels of K_q codes; the capacity is K_1 ... K_Q; logarithms are natural. Levels and
depths start at 1. With ``append`` the last column is the appended token, so depth Q - 1 has the ids before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.items.ids.checks import checked_codes
from gritvq.items.ids.groups import RowTable
from gritvq.quantizers.canonical import ranked
from gritvq.quantizers.functional import code_sums

if TYPE_CHECKING:
    from gritvq.items.ids.semantic_ids import SemanticIds

__all__ = [
    "category_agreement",
    "changed_codes",
    "cohesion",
    "level_usage",
    "neighbor_recall",
    "prefix_sharing",
    "reconstruction_error",
    "related_recall",
    "report",
    "robustness",
    "uniqueness",
]

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
    """All metrics of this module that can be computed from the given arguments; see each function for its formulas.

    Args:
        ids: The ids; also available as ``ids.report(...)``.
        categories: For :func:`category_agreement`.
        embeddings: For :func:`cohesion` and :func:`neighbor_recall`.
        reconstructions: For :func:`neighbor_recall` and :func:`reconstruction_error`.
        related: For :func:`related_recall` and :func:`neighbor_recall`.
        recoded: For :func:`changed_codes`.
        perturbed: For :func:`robustness`.
        num_neighbours: For :func:`neighbor_recall`.
        num_queries: For :func:`neighbor_recall`.

    Returns:
        Metrics by name.

    Raises:
        ValueError: If shapes are wrong, an embedding is not finite or a perturbed code is out of range.

    Example:
        >>> from gritvq import SemanticIds
        >>> ids = SemanticIds(torch.tensor([[0, 1], [0, 1], [1, 0], [1, 1]]), (2, 2))
        >>> found = report(ids, ["a", "a", "b", "a"])
        >>> found["uniqueness"], found["items_in_collision"], found["level1/perplexity"], found["level1/purity"]
        (0.75, 0.5, 2.0, 0.75)

    References:
        LC-Rec, arXiv 2311.09049; QuaSID, arXiv 2603.00632; S2GR, arXiv 2601.18664; FORGE, arXiv 2509.20904;
        TorchEasyRec. Probabilities in the recalls, for ties, are ours. Cohesion and discrimination are named after
        R3-VAE (arXiv 2604.11440), effective codes after DRQ (arXiv 2606.01844); these formulas are ours and may differ
        from theirs.
    """
    found = level_usage(ids) | uniqueness(ids) | prefix_sharing(ids)
    if categories is not None:
        found |= category_agreement(ids, categories)
    if recoded is not None:
        found |= changed_codes(ids, recoded)
    if perturbed is not None:
        found |= robustness(ids, perturbed)
    if related is not None:
        found |= related_recall(ids, related)
    if embeddings is not None:
        found |= cohesion(ids, embeddings)
        found |= neighbor_recall(
            ids,
            embeddings,
            reconstructions=reconstructions,
            related=related,
            num_neighbours=num_neighbours,
            num_queries=num_queries,
        )
        if reconstructions is not None:
            found |= reconstruction_error(embeddings, reconstructions)
    return found


def level_usage(ids: SemanticIds) -> dict[str, float]:
    """How evenly the codes of each level are used; p_k is the share of items with code k.

    - ``level1/used``: codes with p_k > 0
    - ``level1/coverage``: used / K_q
    - ``level1/entropy``: H = -sum_k p_k ln p_k
    - ``level1/perplexity``: exp(H)
    - ``level1/largest_share``: max_k p_k
    - ``level1/gini``: sum_k (2 k - K - 1) p_(k) / K over all K_q codes, p_(1) <= p_(2) <= ...; 0 is even
    """
    found: dict[str, float] = {}
    for level, size in enumerate(ids.codebook_sizes, 1):
        counts = torch.unique(ids.codes[:, level - 1], return_counts=True)[1]
        entropy = _entropy(counts)
        found |= {
            f"level{level}/used": float(len(counts)),
            f"level{level}/coverage": len(counts) / size,
            f"level{level}/entropy": entropy,
            f"level{level}/perplexity": math.exp(entropy),
            f"level{level}/largest_share": int(counts.max()) / len(ids),
            f"level{level}/gini": _gini(counts, size),
        }
    return found


def uniqueness(ids: SemanticIds) -> dict[str, float]:
    """Collisions of whole ids; n_s is the number of items with id s.

    - ``items``, ``distinct``: n; number of ids with n_s > 0
    - ``uniqueness``: distinct / n
    - ``items_in_collision``: share of items that share their id: sum_{n_s > 1} n_s / n
    - ``collision_rate``: 1 - uniqueness (LC-Rec)
    - ``icr``: 1 - items_in_collision (S2GR, independent coding rate)
    - ``largest_group``: max_s n_s
    - ``entropy``: H = -sum_s n_s/n ln n_s/n
    - ``entropy_over_ln_capacity``: H / ln(K_1 ... K_Q) (TorchEasyRec); NaN if the capacity is 1
    - ``entropy_over_ln_n``: H / ln n (QuaSID); NaN for one item
    - ``bucket_gini``: Gini of n_s over the ids in use (FORGE)
    - ``code_space_use``: distinct / capacity
    """
    counts = ids.prefixes[-1].counts
    n, capacity, sharing = len(ids), math.prod(ids.codebook_sizes), _sharing(counts)
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


def prefix_sharing(ids: SemanticIds) -> dict[str, float]:
    """Branching of the tree of prefixes; depth d is for prefixes of d codes.

    - ``depth1/distinct``: distinct prefixes
    - ``depth1/uniqueness``: distinct / n
    - ``depth1/items_in_collision``: share of items that share the prefix
    - ``depth1/fan_out``: distinct prefixes of d codes / distinct prefixes of d - 1 codes, the children per node
    """
    found: dict[str, float] = {}
    above = 1
    for depth, table in enumerate(ids.prefixes, 1):
        found |= {f"depth{depth}/{name}": value for name, value in _sharing(table.counts).items()}
        found[f"depth{depth}/fan_out"] = len(table.counts) / above
        above = len(table.counts)
    return found


def category_agreement(ids: SemanticIds, categories: Sequence[Any]) -> dict[str, float]:
    """Agreement of first codes with categories, over the n items with a category.

    With n_kc the number of items of category c with first code k:

    - ``level1/purity``: sum_k max_c n_kc / n
    - ``level1/nmi``: 2 I(k; c) / (H(k) + H(c)); an item of m categories counts 1 / m in each; 1 if both are constant
    - ``categories/largest_share``: max_c n_c / n, the purity of a single code for all items

    Args:
        ids: The ids.
        categories: For each item a category (string or number) or a list of them; None, NaN, "" and [] mean none.

    Raises:
        ValueError: If there is not one entry per item, or one is not a category.
    """
    group = ids.prefixes[0].group
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


def changed_codes(ids: SemanticIds, recoded: Int[Tensor, "n L"]) -> dict[str, float]:
    """Changes when the tokenizer encodes all items again.

    - ``recoded/changed_codes``: share of codes that differ
    - ``recoded/changed_items``: share of items with a code that differs

    Args:
        ids: The ids.
        recoded: The tokenizer's indices with another batch size, order or dtype; may have fewer columns than the ids,
            for example no appended token.

    Raises:
        ValueError: If shapes do not fit.
    """
    codes, recoded = ids.codes, torch.as_tensor(recoded).cpu()
    if recoded.ndim != 2 or len(recoded) != len(codes) or not 1 <= recoded.shape[1] <= codes.shape[1]:
        raise ValueError(
            f"expected recoded codes ({len(codes)}, 1 .. {codes.shape[1]}), got {tuple(recoded.shape)}; encode all"
        )
    differ = codes[:, : recoded.shape[1]] != recoded
    return {
        "recoded/changed_codes": float(differ.double().mean()),
        "recoded/changed_items": float(differ.any(1).double().mean()),
    }


def robustness(ids: SemanticIds, perturbed: Int[Tensor, "S n L"]) -> dict[str, float]:
    """Robustness of ids against noise on the embeddings.

    With C_jk the share of noisy versions of items with code j that get code k:

    - ``perturbed/kept_codes``, ``perturbed/kept_ids``: share of codes, and of whole ids, that noise does not change
    - ``level1/effective_codes``: 1 / sum_k (sum_j p_j sqrt(C_jk))^2. The sum is the expected Bhattacharyya overlap
      sum_k sqrt(C_ik C_jk) of two codes i and j drawn with the items' frequencies. The value is 1 / sum_k p_k^2 if
      noise changes nothing, and 1 if the noisy code does not depend on the code

    Args:
        ids: The ids.
        perturbed: S times the indices of all items with noise on their embeddings
            (:meth:`~gritvq.items.ItemTokenizer.perturbed_codes`); may have fewer columns than the ids. Codes that a
            collision policy has replaced count as changed.

    Raises:
        ValueError: If shapes do not fit or a code is out of range.
    """
    codes, sizes, noisy = ids.codes, ids.codebook_sizes, torch.as_tensor(perturbed).cpu()
    n, most = codes.shape
    if noisy.ndim != 3 or not len(noisy) or noisy.shape[1] != n or not 1 <= noisy.shape[2] <= most:
        raise ValueError(
            f"expected perturbed codes (S, {n}, 1 .. {most}), got {tuple(noisy.shape)}; make them with perturbed_codes"
        )
    own = codes[:, : noisy.shape[2]]
    checked_codes(noisy.flatten(0, 1), sizes[: noisy.shape[2]])
    found = {
        "perturbed/kept_codes": float((noisy == own).double().mean()),
        "perturbed/kept_ids": float((noisy == own).all(2).double().mean()),
    }
    for level, size in enumerate(sizes[: noisy.shape[2]]):
        before, after = own[:, level].expand(len(noisy), n), noisy[..., level]
        cells, counts = torch.unique(before * size + after, return_counts=True)  # n p_j S C_jk
        usage = torch.bincount(own[:, level]).double() / n
        # p_j sqrt(C_jk) = sqrt(p_j) sqrt(p_j C_jk)
        terms = (usage[cells // size] * counts.double() / before.numel()).sqrt()
        overlap = torch.zeros(size, dtype=torch.float64).index_add_(0, cells % size, terms).square().sum()
        found[f"level{level + 1}/effective_codes"] = 1 / float(overlap)
    return found


def related_recall(ids: SemanticIds, related: Int[Tensor, "n k"]) -> dict[str, float]:
    """Whether related items share prefixes.

    - ``related/prefix_recall@k``: mean over all given pairs (i, j) of P(j), the probability that j is among the k other
      items with the longest prefix in common with i, ties broken at random

    Args:
        ids: The ids.
        related: Rows of items related to each item, such as items bought together; -1 means none.

    Raises:
        ValueError: If the shape is wrong or a row is out of range.
    """
    rows = _related_rows(ids, related)
    chance = _prefix_chance(ids.prefixes, torch.arange(len(ids)), rows)
    return {f"related/prefix_recall@{rows.shape[1]}": _mean_given(chance, rows)}


def cohesion(ids: SemanticIds, embeddings: Float[Tensor, "n D"]) -> dict[str, float]:
    """Similarity of items that share a prefix.

    - ``depth1/cohesion``: mean cosine of embeddings over all pairs of items that share d codes; NaN without such pairs
    - ``depth1/discrimination``: cohesion minus the mean cosine over all pairs that share exactly d - 1 codes

    Args:
        ids: The ids.
        embeddings: One vector per item.

    Raises:
        ValueError: If the shape is wrong or an embedding is not finite.
    """
    # From sums over groups: the cosines of a group's pairs sum to (|sum u|^2 - sum |u|^2) / 2.
    unit = F.normalize(_checked_vectors("embeddings", embeddings, len(ids)), dim=1)
    found: dict[str, float] = {}
    above, above_pairs = _pair_sum(torch.zeros_like(ids.prefixes[0].group), unit)
    for depth, table in enumerate(ids.prefixes, 1):
        total, pairs = _pair_sum(table.group, unit)
        inside = total / pairs if pairs else math.nan
        apart = (above - total) / (above_pairs - pairs) if above_pairs > pairs else math.nan
        found |= {f"depth{depth}/cohesion": inside, f"depth{depth}/discrimination": inside - apart}
        above, above_pairs = total, pairs
    return found


def neighbor_recall(
    ids: SemanticIds,
    embeddings: Float[Tensor, "n D"],
    *,
    reconstructions: Float[Tensor, "n D"] | None = None,
    related: Int[Tensor, "n r"] | None = None,
    num_neighbours: int = 10,
    num_queries: int = 4096,
) -> dict[str, float]:
    """Whether nearest neighbors share prefixes.

    For N query items i, evenly spaced over the catalogue, E_k(i) are the k nearest other items by the cosine of their
    embeddings.

    - ``neighbours/prefix_recall@10``: 1/(N k) sum_i sum_{j in E_k(i)} P(j), P(j) the probability that j is among the k
      other items with the longest prefix in common with i, ties broken at random
    - ``neighbours/chance@10``: k / (n - 1), the expected value for random ids
    - ``neighbours/quantized_recall@10``: with ``reconstructions``, the same for the k nearest other items by the
      euclidean distance of their reconstructions, ties of equal ids (before an appended token) broken at random
    - ``related/embedding_recall@10``: with ``related``, mean 1[j in E_k(i)] over the related items j of the N queries
      (FORGE's embedding hit rate, if these are the next items)

    Args:
        ids: The ids.
        embeddings: One vector per item.
        reconstructions: The decoded id of each item, in the space of the embeddings; equal for equal ids.
        related: As in :func:`related_recall`.
        num_neighbours: k.
        num_queries: N.

    Raises:
        ValueError: If shapes are wrong, a vector is not finite or a number is below 1.
    """
    n, k, prefixes = len(ids), num_neighbours, ids.prefixes
    x = _checked_vectors("embeddings", embeddings, n)
    values = None if reconstructions is None else _checked_vectors("reconstructions", reconstructions, n)
    if k < 1 or num_queries < 1:
        raise ValueError(f"expected num_neighbours and num_queries >= 1, got {k} and {num_queries}; give larger ones")
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
        decoded = prefixes[-2] if ids.collisions == "append" else prefixes[-1]  # equal ids decode alike
        chance = _quantized_chance(decoded, values, queries, nearest)
        found[f"neighbours/quantized_recall{name}"] = _mean_given(chance, nearest)
    if related is not None:
        wanted = _related_rows(ids, related)[queries]
        hit = (wanted[:, :, None] == nearest[:, None, :]).any(2)
        found[f"related/embedding_recall{name}"] = _mean_given(hit.double(), wanted)
    return found


def reconstruction_error(embeddings: Float[Tensor, "n D"], reconstructions: Float[Tensor, "n D"]) -> dict[str, float]:
    """Errors of reconstructions r of the embeddings x.

    - ``reconstruction/mse``: mean (x - r)^2 over items and components
    - ``reconstruction/relative_error``: sum |x - r|^2 / sum |x - mean x|^2
    - ``reconstruction/cosine``: mean cosine of x and r

    Args:
        embeddings: One vector per item.
        reconstructions: The decoded id of each item.

    Raises:
        ValueError: If shapes differ or a vector is not finite.
    """
    x = _checked_vectors("embeddings", embeddings, len(embeddings))
    values = _checked_vectors("reconstructions", reconstructions, len(embeddings))
    if x.shape != values.shape:
        raise ValueError(
            f"expected reconstructions of the embeddings' shape {tuple(x.shape)}, got {tuple(values.shape)}; decode all"
        )
    error = (x.double() - values.double()).square()
    spread = float((x.double() - x.double().mean(0)).square().sum())
    return {
        "reconstruction/mse": float(error.mean()),
        "reconstruction/relative_error": float(error.sum()) / spread if spread > 0 else math.nan,
        "reconstruction/cosine": float(F.cosine_similarity(x, values).double().mean()),
    }


def category_numbers(categories: Sequence[Any], num_items: int) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Flat pairs (item row, category number), and the categories' names in order of appearance.

    Raises:
        ValueError: If there is not one entry per item, or one is not a category.
    """
    if len(categories) != num_items:
        raise ValueError(f"expected categories of {num_items} items, got {len(categories)}; give one entry per item")
    numbers: dict[Any, int] = {}
    rows, columns = [], []
    for row, entry in enumerate(categories):
        several = isinstance(entry, (list, tuple, set, frozenset, np.ndarray))
        try:
            names = dict.fromkeys(entry if several else [entry])
        except TypeError as error:
            raise ValueError(
                f"expected a category or a list of them per item, got {entry!r} in row {row}; flatten nested lists"
            ) from error
        for name in names:
            if name is None or name == "" or name != name:
                continue
            rows.append(row)
            columns.append(numbers.setdefault(name, len(numbers)))
    return np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64), list(numbers)


def _entropy(counts: Tensor) -> float:
    p = counts[counts > 0].double()
    p = p / p.sum()
    return max(0.0, float(-(p * p.log()).sum()))


def _gini(counts: Tensor, size: int) -> float:
    """Gini coefficient of ``size`` counts; missing ones are 0."""
    x = counts[counts > 0].double().sort().values
    rank = torch.arange(size - len(x) + 1, size + 1, dtype=torch.float64)
    return float(((2 * rank - size - 1) * x).sum() / (size * x.sum()))


def _sharing(counts: Int[Tensor, " G"]) -> dict[str, float]:
    n = int(counts.sum())
    return {
        "distinct": float(len(counts)),
        "uniqueness": len(counts) / n,
        "items_in_collision": int(counts[counts > 1].sum()) / n,
    }


def _checked_vectors(name: str, vectors: Any, num_items: int) -> Float[Tensor, "n D"]:
    x = torch.as_tensor(vectors).detach().cpu().float()
    if x.ndim != 2 or len(x) != num_items:
        raise ValueError(f"expected {name} ({num_items}, D), got {tuple(x.shape)}; give one row per item")
    if not x.isfinite().all():
        raise ValueError(
            f"expected finite {name}, got NaN or infinity in row {int((~x.isfinite().all(1)).nonzero()[0])}; fix it"
        )
    return x


def _related_rows(ids: SemanticIds, related: Any) -> Int[Tensor, "n k"]:
    """Rows of related items, without the item itself."""
    rows = torch.as_tensor(related).cpu().long()
    if rows.ndim != 2 or len(rows) != len(ids) or not rows.shape[1] or int(rows.max()) >= len(ids):
        raise ValueError(
            f"expected rows of related items ({len(ids)}, k) below {len(ids)}, got {tuple(rows.shape)}; use -1 for none"
        )
    return torch.where(rows == torch.arange(len(ids))[:, None], -1, rows)


def _pair_sum(group: Int[Tensor, " n"], unit: Float[Tensor, "n D"]) -> tuple[float, int]:
    """Sum of the cosines over all pairs within groups, and the number of these pairs."""
    counts = torch.bincount(group)
    pairs = int((counts * (counts - 1) // 2).sum())
    total = 0.0
    for columns in unit.split(32, dim=1):
        part = columns.double()
        total += float(code_sums(part, group, len(counts)).square().sum() - part.square().sum()) / 2
    return (total if pairs else 0.0), pairs


def _mean_given(chance: Float[Tensor, "N k"], rows: Int[Tensor, "N k"]) -> float:
    given = rows >= 0
    return float(chance[given].mean()) if given.any() else math.nan


def _prefix_chance(prefixes: Sequence[RowTable], queries: Int[Tensor, " N"], rows: Int[Tensor, "N k"]) -> Tensor:
    """Probability of each row to be among the k items with the longest prefix in common with the query (N, k)."""
    k = rows.shape[1]
    chance = torch.zeros(rows.shape, dtype=torch.float64)
    closer = torch.zeros(len(queries), dtype=torch.float64)  # number of other items with a longer prefix in common
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
    """The same for the k items whose reconstructions are nearest; items with equal ids are tied (N, k)."""
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
