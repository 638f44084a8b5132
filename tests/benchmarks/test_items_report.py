"""Tables of the page on semantic ids, from made rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.report import items

from gritvq.results import write_results

ABOUT = {"comparison": "c", "data": "beauty", "hardware": "cpu2", "commit": "abc", "versions": "v"}


def rows(method: str, recalls: Sequence[float], data: str = "beauty", **more: Any) -> list[dict[str, Any]]:
    """A run per seed whose figures are all its recall."""
    about = {"method": method, "settings": "-", "data": data, "minutes": 7.0, "users": 9.0} | more
    return [{**about, "seed": seed, **dict.fromkeys(items.RANKING, recall)} for seed, recall in enumerate(recalls)]


def without_settings(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a benchmark that has no such column."""
    return {name: value for name, value in row.items() if name != "settings"}


def headline_of(folder: Path, own: list[dict[str, Any]], known: list[dict[str, Any]]) -> str:
    """The first table of these recommenders and baselines."""
    write_results(folder / "items_headline_cpu2_202611.csv", own, ABOUT, items.HEADLINED)
    known = [{**row, "codebook_size": 0} for row in known]
    write_results(folder / "items_baselines_cpu2_202611.csv", known, ABOUT, items.RUN)
    return " ".join(items.headline(folder).split())


def test_units_are_on_the_page_once_measured(tmp_path: Path) -> None:
    page = "before\n\n<!-- table units -->\n\nold\n\n<!-- end -->\n\nafter"
    empty = items.with_tables(page, tmp_path, tmp_path)
    assert "Not measured yet." in empty and "--study units" in empty and "old" not in empty
    runs = rows("random codes", (0.02, 0.04)) + rows("grit_vq", (0.08,)) + rows("opq", (0.05,), "films")
    write_results(tmp_path / "items_units_cpu2_202611.csv", runs, ABOUT, items.HEADLINED)
    made = items.with_tables(page, tmp_path, tmp_path)
    lines = [line for line in made.splitlines() if line.startswith(("| r", "| g", "| o"))]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == ["grit_vq", "random codes", "opq"]
    assert cells[1] == ["random codes", *["0.0300 (0.0200-0.0400)"] * 4, "7", "2"]
    assert "Not measured yet." not in made and made.index("- data: beauty") < made.index("- data: films")
    assert made.startswith("before") and made.endswith("after")


def test_the_page_has_a_place_for_units() -> None:
    page = (Path(__file__).parents[2] / "docs" / "semantic-ids.md").read_text()
    assert page.count("<!-- table units -->") == 1


def test_a_data_set_has_its_own_baselines(tmp_path: Path) -> None:
    own = rows("catalogue softmax", (0.3,)) + rows("catalogue softmax", (0.5,), "films")
    known = rows("co-occurrence", (0.2,)) + rows("co-occurrence", (0.6,), "films")
    made = headline_of(tmp_path, own, known)
    first, second = made.split("- data: ")[1:]
    assert first.startswith("beauty") and "0.3000" in first and "0.2000" in first and "0.6000" not in first
    assert second.startswith("films") and "0.5000" in second and "0.6000" in second and "0.2000" not in second
    assert "semantic ids win by R@10" in first and "semantic ids lose by R@10" in second


def test_where_ids_win_and_lose_is_computed(tmp_path: Path) -> None:
    own = rows("catalogue softmax, titles", (0.30, 0.32)) + rows("parallel, seen kept", (0.1,))
    own += rows("sequential, titles", (0.24,)) + rows("sequential, other", (0.05,))
    known = rows("sasrec, seen excluded", (0.25, 0.27)) + rows("popularity", (0.01,))
    known += rows("co-occurrence", (0.2,)) + rows("text cosine", (0.15,))
    known += rows("co-occurrence, seen excluded", (0.25,)) + rows("text cosine, seen excluded", (0.2,))
    made = headline_of(tmp_path, own, known)
    assert 'best with semantic ids is "catalogue softmax, titles", seen items excluded, 0.3100; ' in made
    assert 'best without, "SASRec, ours", seen items excluded, 0.2600; their seeds do not overlap. ' in made
    assert "Where a model learns the codes of an id, they win and lose against rules without training: " in made
    assert '"parallel", seen items kept, 0.1000, loses to co-occurrence (0.2000) and cosine of titles (0.1500)' in made
    assert '"sequential, titles", seen items excluded, 0.2400, loses to co-occurrence (0.2500) and beats cosine' in made
    alone = items.verdict(own, [])
    assert alone == [] and items.verdict([], known) == []


@pytest.mark.parametrize(("other", "told"), [((0.25, 0.31), "overlap"), ((0.25, 0.29), "do not overlap")])
def test_seeds_that_overlap_are_told(other: tuple[float, float], told: str) -> None:
    made = " ".join(items.verdict(rows("catalogue softmax", (0.3, 0.5)), rows("sasrec", other)))
    assert made.endswith(f"; their seeds {told}.")


def test_equal_rows_are_a_draw() -> None:
    known = rows("sasrec, seen excluded", (0.3,)) + rows("co-occurrence", (0.1,))
    own = rows("catalogue softmax", (0.3,)) + rows("parallel, seen kept", (0.1,))
    made = " ".join(items.verdict(own, known)[0].split())
    assert "semantic ids draw by R@10" in made and "they draw against rules without training" in made
    assert "0.1000, equals co-occurrence (0.1000)" in made


def test_tables_of_new_items_and_tokenizers_keep_data_sets_apart(tmp_path: Path) -> None:
    added = [
        {**without_settings(row), "ranked": "new items", "steps": 2}
        for data, recall in (("beauty", 0.1), ("films", 0.9))
        for row in rows("cosine of titles", (recall,), data)
    ]
    write_results(tmp_path / "items_new_cpu2_202611.csv", added, ABOUT, items.ADDED)
    made = items.added(tmp_path)
    assert made.count("| cosine of titles |") == 2 and "(0.1000-0.9000)" not in made
    trained = [
        {**without_settings(row), "steps": "5", "beam": "3", "uniqueness": 0.5}
        for data, recall in (("beauty", 0.1), ("films", 0.9))
        for row in rows("opq", (recall,), data)
    ]
    write_results(tmp_path / "items_recommenders_cpu2_202611.csv", trained, ABOUT, items.RECOMMENDER)
    made = items.recommenders(tmp_path, tmp_path)
    assert "(0.1000-0.9000)" not in made
    for data in ("beauty", "films"):
        assert f"(images/items_recommenders_cpu2_202611_{data}.png)" in made
        assert (tmp_path / f"items_recommenders_cpu2_202611_{data}.png").exists()
