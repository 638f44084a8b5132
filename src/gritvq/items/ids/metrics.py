"""Quality metrics of semantic ids, each with its formula: a function per group of them, and their union.

Written for n items and Q levels of K_q codes, K_1 ... K_Q the capacity; logarithms are natural. Levels and depths count
from 1. Under ``append`` the last column is the appended token, so depth Q - 1 shows the ids before the policy.
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
    """All metrics of this module that what is given allows; each function has the formulas.

    Args:
        ids: The ids; as ``ids.report(...)`` too.
        categories: For :func:`category_agreement`.
        embeddings: For :func:`cohesion` and :func:`neighbor_recall`.
        reconstructions: For :func:`neighbor_recall` and :func:`reconstruction_error`.
        related: For :func:`related_recall` and :func:`neighbor_recall`.
        recoded: For :func:`changed_codes`.
        perturbed: For :func:`robustness`.
        num_neighbours: For :func:`neighbor_recall`.
        num_queries: For :func:`neighbor_recall`.

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
        formulas are ours and may differ from theirs.
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
    """How evenly the codes of each level are used; p_k is the share of items that have code k there.

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
    """How well whole ids tell items apart; n_s is the number of items that have id s.

    - ``items``, ``distinct``: n; number of ids with n_s > 0
    - ``uniqueness``: distinct / n
    - ``items_in_collision``: share of items that share their id: sum of n_s over n_s > 1, / n
    - ``collision_rate``: 1 - uniqueness (LC-Rec)
    - ``icr``: 1 - items_in_collision (S2GR, independent coding rate)
    - ``largest_group``: max_s n_s
    - ``entropy``: H = -sum_s n_s/n ln n_s/n
    - ``entropy_over_ln_capacity``: H / ln(K_1 ... K_Q) (TorchEasyRec); NaN where there is one id only
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
    """How the tree of prefixes of d codes branches.

    - ``depth1/distinct``: distinct prefixes
    - ``depth1/uniqueness``: distinct / n
    - ``depth1/items_in_collision``: share of items that share the prefix
    - ``depth1/fan_out``: distinct prefixes of d codes / of d - 1 codes: children per node of the tree
    """
    found: dict[str, float] = {}
    above = 1
    for depth, table in enumerate(ids.prefixes, 1):
        found |= {f"depth{depth}/{name}": value for name, value in _sharing(table.counts).items()}
        found[f"depth{depth}/fan_out"] = len(table.counts) / above
        above = len(table.counts)
    return found


def category_agreement(ids: SemanticIds, categories: Sequence[Any]) -> dict[str, float]:
    """How well the first codes agree with categories, over the n items that have one.

    With n_kc the items of category c with first code k:

    - ``level1/purity``: sum_k max_c n_kc / n
    - ``level1/nmi``: 2 I(k; c) / (H(k) + H(c)); an item of several categories counts in each with weight 1 / their
      number; 1 where both are constant
    - ``categories/largest_share``: max_c n_c / n: the purity of a single code for all

    Args:
        ids: The ids.
        categories: Per item one category (string or number) or a list of them; None, NaN, "" and [] are none.

    Raises:
        ValueError: If there is not one entry per item, or one is no category.
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
    """What changes when the tokenizer encodes all items again.

    - ``recoded/changed_codes``: share of codes that differ
    - ``recoded/changed_items``: share of items with such a code

    Args:
        ids: The ids.
        recoded: What the tokenizer gives in another batch size, order or dtype; may have fewer columns than the ids,
            such as no appended token.

    Raises:
        ValueError: If shapes do not fit.
    """
    codes, recoded = ids.codes, torch.as_tensor(recoded).cpu()
    if recoded.ndim != 2 or len(recoded) != len(codes) or not 1 <= recoded.shape[1] <= codes.shape[1]:
        raise ValueError(f"expected recoded codes ({len(codes)}, 1 .. {codes.shape[1]}), got {tuple(recoded.shape)}")
    differ = codes[:, : recoded.shape[1]] != recoded
    return {
        "recoded/changed_codes": float(differ.double().mean()),
        "recoded/changed_items": float(differ.any(1).double().mean()),
    }


def robustness(ids: SemanticIds, perturbed: Int[Tensor, "S n L"]) -> dict[str, float]:
    """How firm ids are against noise on the embeddings.

    With C_jk the share of the noisy versions of the items with code j that get code k:

    - ``perturbed/kept_codes``, ``perturbed/kept_ids``: share of codes, and of whole ids, that noise leaves as they are
    - ``level1/effective_codes``: 1 / sum_k (sum_j p_j sqrt(C_jk))^2. The sum is what two codes i and j, drawn with the
      items' frequencies, are expected to overlap, sum_k sqrt(C_ik C_jk) (Bhattacharyya). It gives 1 / sum_k p_k^2 where
      noise changes nothing, and 1 where it leaves no trace of a code

    Args:
        ids: The ids.
        perturbed: S times the codes of all items with noise on their embeddings
            (:meth:`~gritvq.items.ItemTokenizer.perturbed_codes`); may have fewer columns than the ids. Of little use
            under policies that choose other codes than the tokenizer's, which count as changed.

    Raises:
        ValueError: If shapes do not fit or a code is out of range.
    """
    codes, sizes, noisy = ids.codes, ids.codebook_sizes, torch.as_tensor(perturbed).cpu()
    n, most = codes.shape
    if noisy.ndim != 3 or not len(noisy) or noisy.shape[1] != n or not 1 <= noisy.shape[2] <= most:
        raise ValueError(f"expected perturbed codes (S, {n}, 1 .. {most}), got {tuple(noisy.shape)}")
    own = codes[:, : noisy.shape[2]]
    checked_codes(noisy.flatten(0, 1), sizes[: noisy.shape[2]])
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


def related_recall(ids: SemanticIds, related: Int[Tensor, "n k"]) -> dict[str, float]:
    """Whether items that belong together share prefixes.

    - ``related/prefix_recall@k``: mean over all given pairs (i, j) of P(j), the chance that j is among the k other
      items that share the longest prefix with i, equal lengths drawn by lot

    Args:
        ids: The ids.
        related: Rows of items that belong to each item, such as what is bought together; -1 is none.

    Raises:
        ValueError: If the shape does not fit or a row is no item.
    """
    rows = _related_rows(ids, related)
    chance = _prefix_chance(ids.prefixes, torch.arange(len(ids)), rows)
    return {f"related/prefix_recall@{rows.shape[1]}": _mean_given(chance, rows)}


def cohesion(ids: SemanticIds, embeddings: Float[Tensor, "n D"]) -> dict[str, float]:
    """Whether items that share a prefix are similar.

    - ``depth1/cohesion``: mean cosine of the embeddings of two items, over all pairs that share d codes; NaN if none do
    - ``depth1/discrimination``: that, less the mean over all pairs that share d - 1 codes and no more

    Args:
        ids: The ids.
        embeddings: Per item a vector.

    Raises:
        ValueError: If the shape does not fit or an embedding is not finite.
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
    """Whether the nearest items share prefixes.

    Of N items evenly spaced over the catalogue (all where there are no more), E_k(i) are the k nearest other items by
    the cosine of their embeddings.

    - ``neighbours/prefix_recall@10``: 1/(N k) sum_i sum_{j in E_k(i)} P(j), P(j) the chance that j is among the k other
      items that share the longest prefix with i, equal lengths drawn by lot
    - ``neighbours/chance@10``: k / (n - 1): what ids without meaning reach
    - ``neighbours/quantized_recall@10``: with ``reconstructions``: as the first, for the k nearest other items by the
      euclidean distance of their ids' reconstructions, equal ones (before an appended token) drawn by lot
    - ``related/embedding_recall@10``: with ``related``: mean 1[j in E_k(i)] over the given neighbors j of the N items
      (FORGE's embedding hit rate, where they are the next items)

    Args:
        ids: The ids.
        embeddings: Per item a vector.
        reconstructions: Per item what its id decodes to (equal ids, equal vectors), in the space of the embeddings.
        related: As in :func:`related_recall`.
        num_neighbours: k.
        num_queries: N.

    Raises:
        ValueError: If shapes do not fit, a vector is not finite or a number is below 1.
    """
    n, k, prefixes = len(ids), num_neighbours, ids.prefixes
    x = _checked_vectors("embeddings", embeddings, n)
    values = None if reconstructions is None else _checked_vectors("reconstructions", reconstructions, n)
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
        decoded = prefixes[-2] if ids.collisions == "append" else prefixes[-1]  # equal ids decode alike
        chance = _quantized_chance(decoded, values, queries, nearest)
        found[f"neighbours/quantized_recall{name}"] = _mean_given(chance, nearest)
    if related is not None:
        wanted = _related_rows(ids, related)[queries]
        hit = (wanted[:, :, None] == nearest[:, None, :]).any(2)
        found[f"related/embedding_recall{name}"] = _mean_given(hit.double(), wanted)
    return found


def reconstruction_error(embeddings: Float[Tensor, "n D"], reconstructions: Float[Tensor, "n D"]) -> dict[str, float]:
    """How far reconstructions r are from the embeddings x.

    - ``reconstruction/mse``: mean (x - r)^2 over all numbers
    - ``reconstruction/relative_error``: sum |x - r|^2 / sum |x - mean x|^2
    - ``reconstruction/cosine``: mean cosine of x and r

    Args:
        embeddings: Per item a vector.
        reconstructions: Per item what its id decodes to.

    Raises:
        ValueError: If shapes differ or a vector is not finite.
    """
    x = _checked_vectors("embeddings", embeddings, len(embeddings))
    values = _checked_vectors("reconstructions", reconstructions, len(embeddings))
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


def _entropy(counts: Tensor) -> float:
    p = counts[counts > 0].double()
    p = p / p.sum()
    return max(0.0, float(-(p * p.log()).sum()))


def _gini(counts: Tensor, size: int) -> float:
    """Of ``size`` numbers, those not given being 0."""
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
        raise ValueError(f"expected {name} ({num_items}, D), got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(
            f"expected finite {name}, got NaN or infinity in row {int((~x.isfinite().all(1)).nonzero()[0])}"
        )
    return x


def _related_rows(ids: SemanticIds, related: Any) -> Int[Tensor, "n k"]:
    """Rows of related items; an item is not its own."""
    rows = torch.as_tensor(related).cpu().long()
    if rows.ndim != 2 or len(rows) != len(ids) or not rows.shape[1] or int(rows.max()) >= len(ids):
        raise ValueError(f"expected related rows ({len(ids)}, k) of items, -1 for none, got {tuple(rows.shape)}")
    return torch.where(rows == torch.arange(len(ids))[:, None], -1, rows)


def _pair_sum(group: Int[Tensor, " n"], unit: Float[Tensor, "n D"]) -> tuple[float, int]:
    """Sum of the cosines over pairs of one group, and the number of such pairs."""
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
