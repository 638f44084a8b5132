"""Semantic ids: both look-ups, saving bit by bit, the policies against plain loops, every metric against others."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import ot
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import DATA
from gritvq import SemanticIds
from gritvq.items.ids import collisions as policies
from gritvq.items.ids.collisions import Policy, resolve
from gritvq.items.ids.groups import RowTable, rank_in_group

BEAUTY = DATA / "recsys" / "amazon_beauty"
POLICIES: tuple[Policy, ...] = ("keep", "append", "sinkhorn", "nearest_free")
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def catalogues(draw: Any, unique_fits: bool = False) -> tuple[Tensor, tuple[int, ...], dict[str, Tensor]]:
    """Random codes, sizes, and vectors and table of whole numbers: distances are exact and have ties."""
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=0, max_size=3)))
    n = draw(st.integers(1, 24))
    sizes = (*sizes, draw(st.integers(n, n + 6) if unique_fits else st.integers(1, 6)))
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    high = [min(size, 3) for size in sizes]
    codes = torch.from_numpy(random.integers(0, high, (n, len(sizes))))
    vectors = torch.from_numpy(random.integers(-2, 3, (n, 2))).float()
    table = torch.from_numpy(random.integers(-2, 3, (sizes[-1], 2))).float()
    return codes, sizes, {"vectors": vectors, "table": table}


keys = st.one_of(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=24, max_size=24, unique=True),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=24, max_size=24, unique=True),
)


# --- rows -------------------------------------------------------------------------------------------------------------


@quick
@given(catalogues())
def test_rows_are_numbered_as_numpy_does(catalogue: Any) -> None:
    codes, sizes, _ = catalogue
    table = RowTable(codes, sizes)
    values, group, counts = np.unique(codes.numpy(), axis=0, return_inverse=True, return_counts=True)
    assert table.group.tolist() == group.ravel().tolist() and table.counts.tolist() == counts.tolist()
    assert torch.equal(table.find(torch.from_numpy(values)), torch.arange(len(values)))
    assert torch.equal(table.find(codes), table.group)


def test_rows_of_many_columns_and_large_codebooks() -> None:
    sizes = (2**62, 3, 2**40, 2**40, 2**63 - 1, *[256] * 20)
    few = torch.stack([torch.randint(0, min(size, 2**62), (50,)) for size in sizes], 1)
    codes = few[torch.randint(0, 50, (400,))]
    codes[:, -1] = torch.randint(0, 3, (400,))
    table = RowTable(codes, sizes)
    _, group = np.unique(codes.numpy(), axis=0, return_inverse=True)
    assert table.group.tolist() == group.ravel().tolist() and torch.equal(table.find(codes), table.group)
    for column in range(len(sizes)):
        other = codes.clone()
        other[:, column] = (other[:, column] + 7) % sizes[column]
        known = {tuple(row) for row in codes.tolist()}
        assert (table.find(other) >= 0).tolist() == [tuple(row) in known for row in other.tolist()]


@quick
@given(st.lists(st.integers(0, 3), max_size=20))
def test_rank_in_group(group: list[int]) -> None:
    assert rank_in_group(torch.tensor(group, dtype=torch.int64)).tolist() == [
        group[:row].count(value) for row, value in enumerate(group)
    ]


# --- the artefact -----------------------------------------------------------------------------------------------------


@quick
@given(catalogue=catalogues(unique_fits=True), names=keys, policy=st.sampled_from(POLICIES))
def test_look_up_both_ways_saved_and_loaded(catalogue: Any, names: Any, policy: Policy, tmp_path: Path) -> None:
    codes, sizes, last = catalogue
    items = names[: len(codes)]
    ids = SemanticIds.assign(codes, sizes, items, collisions=policy, fingerprint={"encoder": "e"}, **last)
    assert torch.equal(ids.ids_of(items), ids.codes) and torch.equal(
        ids.rows_of(items[::-1]).flip(0), ids.rows_of(items)
    )
    found = ids.items_of(ids.codes)
    assert all(item in group for item, group in zip(items, found, strict=True))
    if policy in ("append", "nearest_free"):
        assert found == [[item] for item in items]
    by_id: dict[tuple[int, ...], list[Any]] = {}
    for item, row in zip(items, ids.codes.tolist(), strict=True):
        by_id.setdefault(tuple(row), []).append(item)
    assert found == [by_id[tuple(row)] for row in ids.codes.tolist()]
    loaded = SemanticIds.load(ids.save(tmp_path / "ids"))
    assert loaded == ids and loaded.items == ids.items and torch.equal(loaded.codes, ids.codes)
    assert list(map(type, loaded.items)) == list(map(type, items)) and loaded.collisions == policy
    assert loaded.codebook_sizes == ids.codebook_sizes and loaded.fingerprint == {"encoder": "e"}
    assert loaded.codes.dtype == torch.int64


@quick
@given(catalogues(unique_fits=True), st.integers(0, 24), st.sampled_from(POLICIES))
def test_new_items_change_no_id(catalogue: Any, first: int, policy: Policy) -> None:
    codes, sizes, last = catalogue
    n = len(codes)
    first = max(1, min(first, n))
    vectors, table = last["vectors"], last["table"]
    old = SemanticIds.assign(codes[:first], sizes, collisions=policy, vectors=vectors[:first], table=table)
    new = old.add(codes[first:], range(first, n), vectors=vectors[first:], table=table)
    assert torch.equal(new.codes[:first], old.codes) and new.items == tuple(range(n))
    assert new.collisions == policy and len(old) == first
    if policy in ("append", "nearest_free"):
        assert new.items_of(new.codes) == [[item] for item in range(n)]
    levels = codes.shape[1]
    assert torch.equal(new.codes[:, : levels - 1], codes[:, : levels - 1])
    if policy in ("keep", "append"):
        one_by_one = old
        for row in range(first, n):
            one_by_one = one_by_one.add(codes[row : row + 1], [row])
        assert one_by_one == new == SemanticIds.assign(codes, sizes, collisions=policy)


def test_unknown_items_are_found_at_no_row_if_that_is_asked() -> None:
    ids = SemanticIds(torch.tensor([[0], [1]]), (2,), ["a", "b"])
    assert ids.rows_of(["b", "x", "a", "x"], unknown="skip").tolist() == [1, -1, 0, -1]
    assert ids.rows_of([], unknown="skip").tolist() == [] and ids.rows_of([7], unknown="skip").tolist() == [-1]
    with pytest.raises(ValueError, match="got 'x' and 1 more"):
        ids.rows_of(["b", "x", "a", "x"])


def test_an_id_that_is_no_item_and_an_item_that_has_no_id() -> None:
    ids = SemanticIds([[0, 1], [2, 3], [0, 1]], (4, 4), ["a", "b", "c"])
    # The last two are (2, 3) and (0, 1) as mixed-radix numbers.
    assert ids.items_of([[0, 1], [1, 1], [4, 0], [-1, -1], [0, 11], [1, -3]]) == [["a", "c"], [], [], [], [], []]
    assert ids.items_of(torch.zeros(0, 2, dtype=torch.int32)) == [] and ids.ids_of([]).shape == (0, 2)
    for unknown in (["d"], ["a", "d", "e"], [0], [""]):
        with pytest.raises(ValueError, match="expected items that have an id"):
            ids.ids_of(unknown)
    with pytest.raises(ValueError, match="a single key"):
        ids.ids_of("a")
    numbered = SemanticIds([[0], [1]], (2,))
    assert numbered.ids_of(np.array([1])).tolist() == numbered.ids_of(torch.tensor([1])).tolist() == [[1]]
    for wrong in ([True], [1.0], ["1"], [None], 1):
        with pytest.raises(ValueError, match="expected"):
            numbered.ids_of(wrong)  # type: ignore[arg-type]
    for shape in ([0, 1], [[]], [[0, 1, 2]], [[0.0, 1.0]], [[[0, 1]]]):
        with pytest.raises(ValueError, match="expected integer codes"):
            ids.items_of(shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("got 'a' twice", {"items": ["a", "b", "a"]}),
        ("got 2 keys", {"items": ["a", "b"]}),
        ("all int or all str", {"items": ["a", 1, "b"]}),
        ("all int or all str", {"items": [0, True, 2]}),
        ("all int or all str", {"items": [0.0, 1.0, 2.0]}),
        ("64 bits", {"items": [0, 1, 2**63]}),
        ("valid Unicode", {"items": ["a", "b", "\ud800"]}),
        ("sequence of keys", {"items": "abc"}),
        (r"expected codes in \[0, 3\) in column 1, got 3 in row 2", {"codebook_sizes": (4, 3)}),
        ("one column per codebook size", {"codebook_sizes": (4,)}),
        ("codebook sizes >= 1", {"codebook_sizes": (4, 0)}),
        ("one codebook size per column", {"codebook_sizes": (4, 1.5)}),
        ("got -1 in row 1", {"codes": [[0, 1], [-1, 0], [0, 0]]}),
        ("integer codes", {"codes": [[0, 1.0], [0, 0], [1, 0]]}),
        ("integer codes", {"codes": [[True, False]] * 3}),
        ("at least one item", {"codes": torch.zeros(0, 2, dtype=torch.int64)}),
        ("to be one of keep, append", {"collisions": "drop"}),
        ("unique ids .*for 0 and 1", {"collisions": "append"}),
        ("fingerprint of strings", {"fingerprint": {"encoder": 3}}),
    ],
)
def test_bad_input_is_refused(message: str, change: dict[str, Any]) -> None:
    good = {"codes": [[1, 1], [1, 1], [2, 3]], "codebook_sizes": (4, 4)}
    assert len(SemanticIds(**good)) == 3  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        SemanticIds(**(good | change))


def test_adding_is_checked() -> None:
    ids = SemanticIds.assign([[1, 1], [1, 1]], (4, 4), ["a", "b"], fingerprint={"quantizer": "1"})
    assert ids.add([], []) is ids and ids.add([[1, 1]], ["c"], fingerprint={"quantizer": "1"}).codebook_sizes == (
        4,
        4,
        3,
    )
    for message, arguments in [
        ("got 'b' twice", ([[0, 0]], ["b"])),
        ("got 2 keys", ([[0, 0]], ["c", "d"])),
        ("one column per codebook size", ([[0, 0, 0]], ["c"])),
        ("all int or all str", ([[0, 0]], [2])),
        ("column 0, got 4", ([[4, 0]], ["c"])),
    ]:
        with pytest.raises(ValueError, match=message):
            ids.add(*arguments)
    with pytest.raises(ValueError, match="expected codes made by"):
        ids.add([[0, 0]], ["c"], fingerprint={"quantizer": "2"})


def test_it_cannot_be_changed_from_outside() -> None:
    codes = torch.tensor([[0, 1]])
    ids = SemanticIds(codes, (2, 2), fingerprint={"a": "b"})
    codes[0, 0] = 1
    ids.fingerprint["a"] = "c"
    assert ids.codes.tolist() == [[0, 1]] and ids.fingerprint == {"a": "b"}
    with pytest.raises(AttributeError):
        ids.codes = codes  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(ids)) == ids == copy.deepcopy(ids)
    assert ids != SemanticIds(codes, (2, 2), fingerprint={"a": "b"}) and ids != SemanticIds([[0, 1]], (2, 2))


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return SemanticIds.assign(torch.randint(0, 9, (30, 2)), (9, 300), fingerprint={"encoder": "e"}).save(
            tmp_path / "a"
        )

    def test_what_is_written(self, folder: Path) -> None:
        import pyarrow.parquet as parquet

        assert sorted(path.name for path in folder.iterdir()) == ["ids.parquet", "semantic_ids.json"]
        table = parquet.read_table(folder / "ids.parquet")
        assert table.column_names == ["item", "c0", "c1", "c2"] and str(table.schema.field("c1").type) == "uint16"
        header = json.loads((folder / "semantic_ids.json").read_text())
        assert header["format_version"] == 2 and header["collisions"] == "append"
        loaded = SemanticIds.load(folder)
        assert loaded.save(folder) == folder and SemanticIds.load(folder) == loaded

    @pytest.mark.parametrize("value", [None, 0.5, "x"])
    def test_codes_that_are_none(self, value: Any, folder: Path) -> None:
        """In a table of another program's, with a header that says so."""
        import pyarrow
        import pyarrow.parquet as parquet

        path, header = folder / "ids.parquet", folder / "semantic_ids.json"
        table = parquet.read_table(path)
        column = table.column("c1").to_pylist()
        column = [value, *(column[1:] if value is None else map(type(value), column[1:]))]
        parquet.write_table(table.set_column(2, "c1", pyarrow.array(column)), path)
        described = json.loads(header.read_text())
        described["sha256"] = {"ids.parquet": hashlib.sha256(path.read_bytes()).hexdigest()}
        header.write_text(json.dumps(described))
        with pytest.raises(ValueError, match="expected a table with the columns"):
            SemanticIds.load(folder)

    def test_damaged_foreign_and_newer(self, folder: Path, tmp_path: Path) -> None:
        path, header = folder / "ids.parquet", folder / "semantic_ids.json"
        header.write_text(header.read_text().replace('"collisions": "append"', '"collisions": "keep"'))
        with pytest.raises(ValueError, match="does not fit its checksum; it is damaged or was edited"):
            SemanticIds.load(folder)
        content = json.loads(header.read_text().replace('"collisions": "keep"', '"collisions": "append"'))
        content |= {"format_version": 1, "sha256": content["sha256"]["ids.parquet"]}  # as it was before
        header.write_text(json.dumps(content))
        assert len(SemanticIds.load(folder)) == 30
        whole, text = path.read_bytes(), header.read_text()
        for damaged in (whole[:-9], b"", whole.replace(b"PAR1", b"PAR2", 1), whole + b" "):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged or of another artifact"):
                SemanticIds.load(folder)
        path.unlink()
        with pytest.raises(ValueError, match="found none"):
            SemanticIds.load(folder)
        path.write_bytes(whole)
        for message, content in [
            ("damaged file", text[:40]),
            ("something else", "[]"),
            ("something else", '{"format": "gritvq", "format_version": 1}'),
            ("update gritvq", text.replace('"format_version": 1', '"format_version": 3')),
            ("incomplete", text.replace('"fingerprint"', '"fingers"')),
            ("damaged or of another", text.replace('"sha256": "', '"sha256": "0')),
            ("one of keep", text.replace('"append"', '"burn"')),
            ("sizes >= 1, one per column", json.dumps({**json.loads(text), "codebook_sizes": []})),
            ("expected codes in", text.replace("300", "8")),
        ]:
            assert content != text
            header.write_text(content)
            with pytest.raises(ValueError, match=message):
                SemanticIds.load(folder)
        header.write_text(text)
        assert len(SemanticIds.load(folder)) == 30
        for other in (tmp_path / "none", path):
            with pytest.raises(ValueError, match="expected a folder of semantic ids"):
                SemanticIds.load(other)

    def test_interrupted_saving_gives_no_wrong_id(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = SemanticIds.load(folder)
        other = SemanticIds.assign(old.codes[:, :2].flip(0), old.codebook_sizes[:2])

        def full(*_: Any, **__: Any) -> None:
            raise OSError("disk full")

        for step in ("pyarrow.parquet.write_table", "pathlib.Path.write_text"):
            with monkeypatch.context() as patch:
                patch.setattr(step, full)
                with pytest.raises(OSError, match="disk full"):
                    other.save(folder)
            assert SemanticIds.load(folder) == old and len(list(folder.iterdir())) == 2
        replace, calls = os.replace, []

        def stop_between(source: Any, target: Any) -> None:
            calls.append(target)
            (replace if len(calls) == 1 else full)(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop_between)
            with pytest.raises(OSError, match="disk full"):
                other.save(folder)
        assert SemanticIds.load(folder) == other  # both files were written, one of them has still to move
        assert SemanticIds.load(other.save(folder)) == other and len(list(folder.iterdir())) == 2

    def test_without_pyarrow(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        for attempt in (lambda: SemanticIds.load(folder), lambda: SemanticIds([[0]], (1,)).save(folder)):
            with pytest.raises(ValueError, match=r"the package pyarrow, got none; pip install 'gritvq\[items\]'"):
                attempt()

    def test_nothing_foreign_is_overwritten(self, folder: Path, tmp_path: Path) -> None:
        ids = SemanticIds.load(folder)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "notes.txt").write_text("mine")
        for other in (tmp_path / "b", tmp_path / "b" / "notes.txt"):
            with pytest.raises(ValueError, match="expected a new folder"):
                ids.save(other)
        assert (tmp_path / "b" / "notes.txt").read_text() == "mine"


# --- policies ---------------------------------------------------------------------------------------------------------


def loop_append(codes: Tensor, fixed: Tensor) -> list[list[int]]:
    seen = {tuple(row[:-1]): 0 for row in fixed.tolist()}
    for row in fixed.tolist():
        seen[tuple(row[:-1])] = max(seen[tuple(row[:-1])], row[-1] + 1)
    ids = []
    for row in codes.tolist():
        ids.append([*row, seen.setdefault(tuple(row), 0)])
        seen[tuple(row)] += 1
    return ids


def loop_nearest_free(codes: Tensor, vectors: Tensor, table: Tensor, fixed: Tensor) -> list[list[int]]:
    taken = {tuple(row) for row in fixed.tolist()}
    movers = []
    for number, row in enumerate(codes.tolist()):
        movers += [number] * (tuple(row) in taken)
        taken.add(tuple(row))
    ids = codes.tolist()
    for number in movers:
        distance = [((vectors[number] - code) ** 2).sum().item() for code in table]
        for code in sorted(range(len(table)), key=lambda k: (distance[k], k)):
            if (*ids[number][:-1], code) not in taken:
                ids[number][-1] = code
                taken.add(tuple(ids[number]))
                break
        else:
            raise AssertionError("full")
    return ids


@quick
@given(catalogues(unique_fits=True), st.integers(0, 10))
def test_append_and_nearest_free_as_a_plain_loop(catalogue: Any, num_fixed: int) -> None:
    codes, sizes, last = catalogue
    old, new = codes[:num_fixed], codes[num_fixed:]
    fixed, grown = resolve("append", old, sizes)
    assert fixed.tolist() == loop_append(old, fixed[:0])
    ids, final = resolve("append", new, grown, fixed=fixed)
    assert ids.tolist() == loop_append(new, fixed)
    every = torch.cat([fixed, ids])
    assert final == (*sizes, int(every[:, -1].max()) + 1)
    early, late = (
        {"vectors": part, "table": last["table"]} for part in last["vectors"].split_with_sizes([len(old), len(new)])
    )
    if len(old):
        fixed, _ = resolve("nearest_free", old, sizes, **early)
        assert fixed.tolist() == loop_nearest_free(old, early["vectors"], early["table"], old[:0])
    else:
        fixed = old
    ids, _ = resolve("nearest_free", new, sizes, fixed=fixed, **late) if len(new) else (new, sizes)
    assert ids.tolist() == loop_nearest_free(new, late["vectors"], late["table"], fixed)


@quick
@given(catalogues())
def test_sinkhorn_moves_only_items_under_a_prefix_with_collisions(catalogue: Any) -> None:
    codes, sizes, last = catalogue
    ids, _ = resolve("sinkhorn", codes, sizes, **last)
    group, prefixes = (Counter(map(tuple, rows.tolist())) for rows in (codes, codes[:, :-1]))
    collide = {row[:-1] for row, count in group.items() if count > 1}
    for before, after in zip(codes.tolist(), ids.tolist(), strict=True):
        assert before[:-1] == after[:-1] and (before == after or tuple(before[:-1]) in collide)
    distinct = len(set(map(tuple, ids.tolist())))
    assert distinct <= sum(min(count, sizes[-1]) for count in prefixes.values())


def test_sinkhorn_separates_what_can_be_told_apart_and_passes_equal_ones_on() -> None:
    table = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    codes = torch.tensor([[0, 1], [0, 1], [1, 1], [1, 1], [1, 1]])
    vectors = torch.tensor([[0.6], [1.4], [1.2], [1.2], [1.2]])
    ids, _ = resolve("sinkhorn", codes, (2, 4), vectors=vectors, table=table)
    # Of two items the one on the right gets the right code. Of three equal ones the first stays, the second takes its
    # next nearest code, the third wants the same and stays: a duplicate is left.
    assert ids.tolist() == [[0, 1], [0, 2], [1, 1], [1, 2], [1, 1]]
    later, _ = resolve("sinkhorn", codes[4:], (2, 4), vectors=vectors[4:], table=table, fixed=ids[:3])
    assert later.tolist() == [[1, 2]]


@pytest.mark.parametrize("shape", [(1, 2, 5), (3, 4, 4), (2, 6, 3)])
def test_transport_plan_against_an_independent_solver(shape: tuple[int, int, int]) -> None:
    cost = torch.rand(shape, dtype=torch.float64)
    plans = policies._log_plan(cost, 0.05, 3000).exp()
    for plan, matrix in zip(plans, cost, strict=True):
        uniform = [np.full(size, 1 / size) for size in matrix.shape]
        expected = ot.sinkhorn(*uniform, matrix.numpy(), 0.05, numItermax=10000, stopThr=1e-12)
        np.testing.assert_allclose(plan.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("policy", ["sinkhorn", "nearest_free"])
class TestChoosingAnotherCode:
    sizes = (3, 4, 64)

    def crowd(self, n: int = 300) -> dict[str, Tensor]:
        vectors = torch.randn(n, 8).to(torch.bfloat16)
        vectors[4] = vectors[3]
        table = torch.randn(64, 8).to(torch.bfloat16)
        table[40] = table[20]
        last = torch.cdist(vectors.float(), table.float()).argmin(1) // 4 * 4
        return {"codes": torch.cat([torch.randint(0, 3, (n, 2)), last[:, None]], 1), "vectors": vectors, "table": table}

    def test_blocks_and_types_do_not_matter(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        crowd = self.crowd()
        ids, _ = resolve(policy, sizes=self.sizes, **crowd)
        assert not torch.equal(ids, crowd["codes"])
        for dtype in (torch.float32, torch.float64):
            other = crowd | {name: crowd[name].to(dtype) for name in ("vectors", "table")}
            assert torch.equal(resolve(policy, sizes=self.sizes, **other)[0], ids)
        monkeypatch.setattr(policies, "_BLOCK_ENTRIES", 1000)
        monkeypatch.setattr(policies, "_CACHED_ENTRIES", 1)
        assert torch.equal(resolve(policy, sizes=self.sizes, **crowd)[0], ids)

    def test_other_prefixes_do_not_matter(self, policy: Policy) -> None:
        crowd = self.crowd()
        ids, _ = resolve(policy, sizes=self.sizes, **crowd)
        chosen = crowd["codes"][:, 0] == 1
        part = crowd | {name: crowd[name][chosen] for name in ("codes", "vectors")}
        assert torch.equal(resolve(policy, sizes=self.sizes, **part)[0], ids[chosen])

    def test_what_is_missing_or_does_not_fit(self, policy: Policy) -> None:
        crowd = self.crowd(5)
        for change in ({"vectors": None}, {"table": None}):
            with pytest.raises(ValueError, match="expected vectors and table"):
                resolve(policy, sizes=self.sizes, **(crowd | change))
        vectors, table = crowd["vectors"], crowd["table"]
        for change in (
            {"vectors": vectors[:4]},
            {"vectors": vectors[:, :3]},
            {"table": table[:9]},
            {"table": table[0]},
        ):
            with pytest.raises(ValueError, match="those of the last level"):
                resolve(policy, sizes=self.sizes, **(crowd | change))
        vectors[3, 2] = math.nan
        with pytest.raises(ValueError, match="row 3 with NaN"):
            resolve(policy, sizes=self.sizes, **crowd)


def test_a_full_prefix_is_an_error_not_a_wrong_id() -> None:
    codes, table = torch.tensor([[1, 0], [0, 0], [1, 0], [1, 1]]), torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"at most 2 items under a prefix.*got 3 under \(1,\)"):
        SemanticIds.assign(codes, (2, 2), collisions="nearest_free", vectors=torch.zeros(4, 1), table=table)
    ids = SemanticIds.assign(codes[1:], (2, 2), collisions="nearest_free", vectors=torch.zeros(3, 1), table=table)
    with pytest.raises(ValueError, match="at most 2 items"):
        ids.add([[1, 0]], [9], vectors=torch.zeros(1, 1), table=table)
    assert ids.add([[0, 0]], [9], vectors=torch.zeros(1, 1), table=table).codes[-1].tolist() == [0, 1]
