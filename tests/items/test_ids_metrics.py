"""The report of semantic ids against other libraries and plain loops, and what its plots show."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import entropy
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from conftest import DATA
from gritvq import SemanticIds
from gritvq.items.ids import metrics, plots
from gritvq.items.ids.metrics import report

BEAUTY = DATA / "recsys" / "amazon_beauty"
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def coded(draw: Any) -> tuple[Tensor, tuple[int, ...]]:
    """Random codes of few values and their sizes."""
    sizes = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    n, random = draw(st.integers(1, 24)), np.random.default_rng(draw(st.integers(0, 2**16)))
    return torch.from_numpy(random.integers(0, [min(size, 3) for size in sizes], (n, len(sizes)))), sizes


def mean_difference_gini(x: np.ndarray) -> float:
    return float(np.abs(x[:, None] - x).mean() / (2 * x.mean()))


@quick
@given(coded())
def test_usage_and_collisions_against_other_libraries(catalogue: Any) -> None:
    codes, sizes = catalogue
    found, n = report(SemanticIds(codes, sizes)), len(codes)
    for level, size in enumerate(sizes):
        counts = np.bincount(codes[:, level].numpy(), minlength=size)
        expected = {
            "used": (counts > 0).sum(),
            "coverage": (counts > 0).mean(),
            "entropy": entropy(counts),
            "perplexity": math.exp(entropy(counts)),
            "largest_share": counts.max() / n,
            "gini": mean_difference_gini(counts),
        }
        assert {k: found[f"level{level + 1}/{k}"] for k in expected} == pytest.approx(expected)
    groups = np.array(list(Counter(map(tuple, codes.tolist())).values()))
    sharing = groups[groups > 1].sum() / n
    capacity = math.prod(sizes)
    expected = {
        "items": n,
        "distinct": len(groups),
        "uniqueness": len(groups) / n,
        "collision_rate": 1 - len(groups) / n,
        "items_in_collision": sharing,
        "icr": 1 - sharing,
        "largest_group": groups.max(),
        "entropy": entropy(groups),
        "entropy_over_ln_capacity": entropy(groups) / math.log(capacity) if capacity > 1 else math.nan,
        "entropy_over_ln_n": entropy(groups) / math.log(n) if n > 1 else math.nan,
        "bucket_gini": mean_difference_gini(groups),
        "code_space_use": len(groups) / capacity,
    }
    assert {k: found[k] for k in expected} == pytest.approx(expected, nan_ok=True, abs=1e-12)
    above = 1
    for depth in range(1, len(sizes) + 1):
        prefixes = Counter(map(tuple, codes[:, :depth].tolist()))
        shared = sum(count for count in prefixes.values() if count > 1) / n
        expected = {"distinct": len(prefixes), "fan_out": len(prefixes) / above, "items_in_collision": shared}
        assert {k: found[f"depth{depth}/{k}"] for k in expected} == pytest.approx(expected)
        above = len(prefixes)


@pytest.mark.parametrize("num_categories", [1, 3, 8])
def test_categories_against_scikit_learn(num_categories: int) -> None:
    codes = torch.randint(0, 6, (200, 2))
    labels = (codes[:, 0] // 2 + torch.randint(0, 2, (200,))).clamp_max(num_categories - 1)
    ids = SemanticIds(codes, (9, 6))
    names = [f"category {label}" for label in labels.tolist()]
    found = ids.report(names)
    assert found["level1/nmi"] == pytest.approx(normalized_mutual_info_score(labels, codes[:, 0]), abs=1e-12)
    by_code = [Counter(labels[codes[:, 0] == k].tolist()).most_common(1)[0][1] for k in range(6)]
    assert found["level1/purity"] == pytest.approx(sum(by_code) / 200)
    assert found["categories/largest_share"] == pytest.approx(Counter(names).most_common(1)[0][1] / 200)
    assert ids.report([[name] for name in names]) == found == ids.report(labels.tolist())
    # Items without a category are left out.
    known = [name if row % 3 else None for row, name in enumerate(names)]
    part = SemanticIds(codes[[row % 3 > 0 for row in range(200)]], (9, 6)).report([k for k in known if k])
    for missing in (None, math.nan, "", []):
        fewer = ids.report([k if k else missing for k in known])
        assert {k: fewer[k] for k in ("level1/nmi", "level1/purity")} == pytest.approx(
            {k: part[k] for k in ("level1/nmi", "level1/purity")}
        )
    assert math.isnan(ids.report([None] * 200)["level1/purity"])
    with pytest.raises(ValueError, match="expected categories of 200 items, got 3"):
        ids.report(["a", "b", "c"])
    with pytest.raises(ValueError, match="flatten nested lists"):
        ids.report([[["a", "b"]]] * 200)


def test_several_categories_per_item() -> None:
    codes = torch.randint(0, 4, (60, 1))
    several = [np.random.default_rng(row).choice(5, 1 + row % 3, replace=False).tolist() for row in range(60)]
    found = SemanticIds(codes, (4,)).report(several)
    # An item of m categories is 6 / m copies of one in each.
    copies = [(int(codes[row]), c) for row, each in enumerate(several) for c in each for _ in range(6 // len(each))]
    assert found["level1/nmi"] == pytest.approx(normalized_mutual_info_score(*zip(*copies, strict=True)))
    best = [max(sum(c in several[row] for row in range(60) if codes[row] == k) for c in range(5)) for k in range(4)]
    assert found["level1/purity"] == pytest.approx(sum(best) / 60)


def loop_recall(closeness: np.ndarray, near: np.ndarray) -> float:
    """Expected share of ``near`` among the k closest others, equally close ones drawn by lot."""
    n, k = near.shape
    total = 0.0
    for query in range(n):
        others = np.delete(np.arange(n), query)
        for value in np.unique(closeness[query, others]):
            tied = others[closeness[query, others] == value]
            before = (closeness[query, others] > value).sum()
            total += np.isin(near[query], tied).sum() * min(1.0, max(0.0, (k - before) / len(tied)))
    return total / near.size


@pytest.mark.parametrize("k", [1, 4, 10])
def test_neighbors_against_a_plain_loop(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(90, 5, dtype=torch.float64)
    codes = torch.stack([(x[:, 0] > 0) * 2 + (x[:, 1] > 0), (x[:, 2] > 0) + 0, (x[:, 3] > 0.5) + 0], 1)
    centers = torch.randn(8 * 4, 5)
    values = centers[codes[:, 0] * 4 + codes[:, 1] * 2 + codes[:, 2]]
    ids = SemanticIds(codes, (4, 2, 2))
    monkeypatch.setattr("gritvq.items.ids.metrics._BLOCK_ENTRIES", 1000)
    found = ids.report(embeddings=x, reconstructions=values, num_neighbours=k)
    near = (
        NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(x).kneighbors(return_distance=True, n_neighbors=k)[1]
    )
    shared = (codes[:, None] == codes).long().cumprod(2).sum(2).numpy()
    assert found[f"neighbours/prefix_recall@{k}"] == pytest.approx(loop_recall(shared, near))
    distance = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    assert found[f"neighbours/quantized_recall@{k}"] == pytest.approx(loop_recall(-distance, near))
    appended = SemanticIds.assign(codes, (4, 2, 2), collisions="append")
    again = appended.report(embeddings=x, reconstructions=values, num_neighbours=k)
    assert again[f"neighbours/quantized_recall@{k}"] == pytest.approx(found[f"neighbours/quantized_recall@{k}"])
    assert found[f"neighbours/chance@{k}"] == pytest.approx(k / 89)
    given = ids.report(related=torch.from_numpy(near))
    assert given[f"related/prefix_recall@{k}"] == found[f"neighbours/prefix_recall@{k}"]
    both = ids.report(embeddings=x, related=torch.from_numpy(near[:, ::-1].copy()), num_neighbours=1)
    assert both["related/embedding_recall@1"] == pytest.approx(1 / k)
    error = ((x - values) ** 2).sum().item()
    assert found["reconstruction/mse"] == pytest.approx(error / x.numel())
    assert found["reconstruction/relative_error"] == pytest.approx(error / ((x - x.mean(0)) ** 2).sum().item())


def test_neighbors_at_the_ends() -> None:
    x = torch.randn(40, 3)
    perfect = SemanticIds(torch.arange(40)[:, None] // 4, (10,))
    blobs = torch.eye(10).repeat_interleave(4, 0) + 0.01 * torch.randn(40, 10)
    assert perfect.report(embeddings=blobs, num_neighbours=3)["neighbours/prefix_recall@3"] == 1
    same = SemanticIds(torch.zeros(40, 2, dtype=torch.int64), (2, 2)).report(embeddings=x)
    assert same["neighbours/prefix_recall@10"] == pytest.approx(same["neighbours/chance@10"])
    assert math.isnan(SemanticIds([[0]], (1,)).report(embeddings=x[:1])["neighbours/prefix_recall@10"])
    few = perfect.report(embeddings=blobs, num_neighbours=3, num_queries=7)
    assert few["neighbours/prefix_recall@3"] == 1
    related = torch.full((40, 2), -1)
    assert math.isnan(perfect.report(related=related)["related/prefix_recall@2"])
    related[5] = torch.tensor([6, 5])  # itself does not count
    assert perfect.report(related=related)["related/prefix_recall@2"] == pytest.approx(2 / 3)
    x[3, 1] = math.inf
    for message, bad in [("row 3", {"embeddings": x}), ("expected embeddings", {"embeddings": x[:5]})]:
        with pytest.raises(ValueError, match=message):
            perfect.report(**bad)
    for bad in ({"num_neighbours": 0}, {"num_queries": 0}):
        with pytest.raises(ValueError, match=">= 1"):
            perfect.report(embeddings=blobs, **bad)
    with pytest.raises(ValueError, match="expected rows of related items"):
        perfect.report(related=torch.full((40, 2), 40))


def test_codes_that_change_when_encoded_again() -> None:
    ids = SemanticIds.assign([[0, 1], [0, 1], [2, 0], [1, 1]], (3, 2))
    found = ids.report(recoded=[[0, 1], [1, 0], [2, 1], [1, 1]])
    assert (found["recoded/changed_codes"], found["recoded/changed_items"]) == (3 / 8, 2 / 4)
    assert ids.report(recoded=ids.codes)["recoded/changed_items"] == 0
    with pytest.raises(ValueError, match="expected recoded codes"):
        ids.report(recoded=[[0, 1]])


@quick
@given(coded(), st.integers(1, 3))
def test_effective_codes_against_overlaps_of_all_pairs(catalogue: Any, draws: int) -> None:
    codes, sizes = catalogue
    n, random = len(codes), np.random.default_rng(7)
    drawn = random.integers(0, sizes, (draws, *codes.shape))
    noisy = np.where(random.random(drawn.shape) < 0.3, drawn, codes)
    found = report(SemanticIds(codes, sizes), perturbed=torch.from_numpy(noisy))
    assert found["perturbed/kept_codes"] == pytest.approx((noisy == codes.numpy()).mean())
    assert found["perturbed/kept_ids"] == pytest.approx((noisy == codes.numpy()).all(2).mean())
    for level, size in enumerate(sizes):
        own = codes[:, level].numpy()
        given = [
            [(noisy[:, own == j, level] == k).mean() if (own == j).any() else 0 for k in range(size)]
            for j in range(size)
        ]
        share = np.bincount(own, minlength=size) / n
        overlap = sum(
            share[i] * share[j] * np.sqrt(np.multiply(given[i], given[j])).sum()
            for i in range(size)
            for j in range(size)
        )
        assert found[f"level{level + 1}/effective_codes"] == pytest.approx(1 / overlap)


def test_effective_codes_at_the_ends() -> None:
    codes = torch.arange(12)[:, None].repeat(1, 2) % 4
    ids = SemanticIds(codes, (4, 6))
    firm = ids.report(perturbed=codes[None])
    assert firm["level1/effective_codes"] == firm["level2/effective_codes"] == pytest.approx(4)
    lost = ids.report(perturbed=torch.full((2, 12, 1), 3))
    assert lost["level1/effective_codes"] == pytest.approx(1)
    assert "level2/effective_codes" not in lost
    for bad in (codes, codes[None, :5], codes[None].repeat(1, 1, 2), codes[None][:0]):
        with pytest.raises(ValueError, match="expected perturbed codes"):
            ids.report(perturbed=bad)
    for code in (-1, 4):
        with pytest.raises(ValueError, match=rf"codes in \[0, 4\) in column 0, got {code}"):
            ids.report(perturbed=torch.full((1, 12, 1), code))


@quick
@given(coded())
def test_cohesion_against_a_plain_loop(catalogue: Any) -> None:
    codes, sizes = catalogue
    n = len(codes)
    x = torch.randn(n, 40, generator=torch.Generator().manual_seed(n))
    found = report(SemanticIds(codes, sizes), embeddings=x)
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2).numpy()
    shared = (codes[:, None] == codes).long().cumprod(2).sum(2).numpy()
    pair = np.triu(np.ones((n, n), dtype=bool), 1)
    for depth in range(1, len(sizes) + 1):
        inside, apart = pair & (shared >= depth), pair & (shared == depth - 1)
        near = cosine[inside].mean() if inside.any() else math.nan
        far = cosine[apart].mean() if apart.any() else math.nan
        assert found[f"depth{depth}/cohesion"] == pytest.approx(near, nan_ok=True, abs=1e-5)
        assert found[f"depth{depth}/discrimination"] == pytest.approx(near - far, nan_ok=True, abs=1e-5)


@pytest.fixture(scope="module")
def letter() -> SemanticIds:
    """The ids that LETTER released for Amazon Beauty."""
    if not BEAUTY.is_dir():
        pytest.skip("the real data set amazon_beauty is not in ../shared/data")
    import pyarrow.parquet as parquet

    table = parquet.read_table(BEAUTY / "letter_semantic_ids.parquet")
    codes = np.stack([table.column(f"c{level}").to_numpy() for level in range(4)], 1)
    names = parquet.read_table(BEAUTY / "items.parquet").column("asin").to_pylist()
    return SemanticIds(codes, (256,) * 4, names)  # type: ignore[arg-type]


class TestReleasedIds:
    def test_reference_row(self, letter: SemanticIds) -> None:
        found = letter.report()
        assert [found[f"level{level}/used"] for level in (1, 2, 3, 4)] == [197, 256, 256, 256]
        assert [round(found[f"level{level}/perplexity"], 1) for level in (1, 2, 3, 4)] == [82.7, 248.6, 247.6, 246.6]
        assert (found["items"], found["distinct"], round(found["uniqueness"], 4)) == (12101, 12088, 0.9989)
        assert (round(found["items_in_collision"], 4), found["largest_group"]) == (0.0020, 3)
        assert (found["depth3/distinct"], round(found["depth3/items_in_collision"], 4)) == (11696, 0.0557)

    def test_round_trips(self, letter: SemanticIds, tmp_path: Path) -> None:
        assert SemanticIds.load(letter.save(tmp_path)) == letter
        assert torch.equal(letter.ids_of(letter.items), letter.codes)
        unique = SemanticIds.assign(letter.codes, letter.codebook_sizes, letter.items)
        assert unique.codebook_sizes[-1] == 3 and unique.items_of(unique.codes) == [[item] for item in letter.items]


# --- plots ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, before they are written."""
    figures: list[Any] = []
    real = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), real(figure, path))[1])
    return figures


def test_plots_show_the_numbers(drawn: list[Any], tmp_path: Path) -> None:
    codes = torch.stack([torch.randint(0, 7, (300,)), torch.randint(0, 3, (300,))], 1)
    labels = [f"category {code // 2}" if row % 5 else "rare" for row, code in enumerate(codes[:, 0].tolist())]
    ids = SemanticIds.assign(codes, (9, 4))
    found = ids.report(labels)
    shown = [
        plots.level_usage_plot(ids, tmp_path / "deep" / "usage.png"),
        plots.collisions_plot(ids, tmp_path / "collisions.png"),
        plots.tree_plot(ids, labels, tmp_path / "tree.png"),
    ]
    for path in shown:
        assert np.asarray(Image.open(path).convert("L")).std() > 10
    usage, collisions, tree = drawn
    titles = [axis.get_title() for axis in usage.axes]
    assert titles[0].startswith("level 1: 7 of 9 codes") and titles[2].startswith("appended token")
    for level, axis in enumerate(usage.axes):
        counts = np.bincount(ids.codes[:, level])
        expected = sorted(counts[counts > 0] / 300, reverse=True)
        assert axis.patches[0].get_data().values == pytest.approx(expected)
    left, right = collisions.axes
    assert sum(bar.get_height() for bar in left.patches) == 300 and left.get_title().startswith("21 ids for 300 items")
    depths = [found[f"depth{depth}/uniqueness"] * 100 for depth in (1, 2, 3)]
    assert right.lines[0].get_ydata().tolist() == pytest.approx(depths)
    meshes = tree.axes[0].collections
    purity = meshes[0].get_array().ravel()
    widths = np.diff(meshes[0].get_coordinates()[0, :, 0])
    assert len(purity) == 7 and (purity * widths).sum() / 300 == pytest.approx(found["level1/purity"])
    assert {text.get_text() for text in tree.axes[0].texts} <= set(labels)
    other = {**found, "level1/used": 5.0, "depth2/items_in_collision": 0.125, "level1/purity": 0.25}
    plots.level_usage_plot(ids, tmp_path / "usage.png", other)  # what is at hand is not computed again
    plots.collisions_plot(ids, tmp_path / "collisions.png", other)
    plots.tree_plot(ids, labels, tmp_path / "tree.png", other)
    titles = [figure.axes[0].get_title() for figure in drawn[3:]]
    assert titles[0].startswith("level 1: 5 of 9") and "12.5 % in" in titles[1] and "level 1 0.250" in titles[2]


def test_the_report_is_the_union_of_the_groups() -> None:
    ids = SemanticIds(torch.randint(0, 4, (30, 2)), (4, 4))
    x, values, near = torch.randn(30, 5), torch.randn(30, 5), torch.randint(0, 30, (30, 2))
    labels, noisy = [row % 3 for row in range(30)], torch.randint(0, 4, (2, 30, 2))
    groups = [
        metrics.level_usage(ids),
        metrics.uniqueness(ids),
        metrics.prefix_sharing(ids),
        metrics.category_agreement(ids, labels),
        metrics.changed_codes(ids, noisy[0]),
        metrics.robustness(ids, noisy),
        metrics.related_recall(ids, near),
        metrics.cohesion(ids, x),
        metrics.neighbor_recall(ids, x, reconstructions=values, related=near, num_neighbours=3),
        metrics.reconstruction_error(x, values),
    ]
    given: dict[str, Any] = {"reconstructions": values, "related": near, "recoded": noisy[0], "perturbed": noisy}
    whole = ids.report(labels, x, num_neighbours=3, **given)
    assert list(whole.items()) == [pair for group in groups for pair in group.items()]


@pytest.mark.parametrize(("sizes", "n"), [((1,), 1), ((3, 2), 2), ((2,) * 14, 200)])
def test_plots_of_little_and_of_many_levels(sizes: tuple[int, ...], n: int, tmp_path: Path) -> None:
    ids = SemanticIds(torch.stack([torch.randint(0, size, (n,)) for size in sizes], 1), sizes)
    labels = [None if row % 3 else [row % 40, "a"] for row in range(n)]
    assert plots.level_usage_plot(ids, tmp_path / "a.png").stat().st_size > 1000
    assert plots.collisions_plot(ids, tmp_path / "b.png").stat().st_size > 1000
    assert plots.tree_plot(ids, labels, tmp_path / "c.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="expected categories of some items"):
        plots.tree_plot(ids, [None] * n, tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()
