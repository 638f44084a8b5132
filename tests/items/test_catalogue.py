"""Reading events and catalogues, order and ties, k-core against networkx, splits without leakage, text embeddings."""

from __future__ import annotations

import csv
import logging
import tempfile
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import DATA
from gritvq.items.catalogue import Catalogue, ItemData, read_catalogue, read_interactions, read_item_data
from gritvq.items.interactions import Histories, Interactions, Split, check_split
from gritvq.items.text_embeddings import embed_texts

SHARED = DATA / "recsys"
EVENTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(0, 5)), min_size=1, max_size=60)


def events(rows: list[tuple[Any, Any, Any]], **settings: Any) -> Interactions:
    return Interactions.from_events(*(list(column) for column in zip(*rows, strict=True)), **settings)


def write(path: Path, columns: dict[str, Any]) -> Path:
    table = pa.table(columns)
    pa.csv.write_csv(table, path) if path.suffix == ".csv" else pq.write_table(table, path)
    return path


class TestHistories:
    @given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6), st.integers(1, 5))
    @settings(deadline=None, max_examples=50)
    def test_against_lists(self, sequences: list[list[int]], length: int) -> None:
        histories = Histories.of(sequences)
        assert [histories[i].tolist() for i in range(len(histories))] == sequences
        assert [each.tolist() for each in histories[1:]] == sequences[1:]
        assert histories.last().tolist() == [each[-1] if each else -1 for each in sequences]
        longest = max([1, *(min(len(each), length) for each in sequences)])
        aligned = [(each[-length:] + [-1] * length)[:longest] for each in sequences]
        assert histories.aligned(length).tolist() == aligned
        starts, lengths = histories.offsets[:-1], histories.lengths.clamp_max(length)
        assert [each.tolist() for each in histories.pieces(starts, lengths)] == [each[:length] for each in sequences]
        longer = histories.append(torch.arange(len(sequences)))
        assert [each.tolist() for each in longer] == [[*each, i] for i, each in enumerate(sequences)]

    def test_selection_by_number_and_mask(self) -> None:
        histories = Histories.of([[1, 2], [], [3]])
        assert [each.tolist() for each in histories[torch.tensor([2, 0, 2])]] == [[3], [1, 2], [3]]
        assert [each.tolist() for each in histories[torch.tensor([False, True, True])]] == [[], [3]]
        assert [each.tolist() for each in histories[[-1, -3]]] == [[3], [1, 2]] and histories[-1].tolist() == [3]
        for outside in (3, -4):
            with pytest.raises(IndexError):
                histories[[outside]]

    def test_bad_offsets(self) -> None:
        for offsets in ([0, 3], [1, 2], [0, 2, 1, 2], []):
            with pytest.raises(ValueError, match="expected offsets rising from 0"):
                Histories(torch.tensor(offsets, dtype=torch.int64), torch.tensor([1, 2]))


class TestOrder:
    @given(EVENTS)
    @settings(deadline=None, max_examples=60)
    def test_against_a_stable_sort_of_each_user(self, rows: list[tuple[int, int, int]]) -> None:
        rows = list(dict.fromkeys(rows))  # equal rows are one event
        got = events(rows)
        for number, user in enumerate(got.user_keys):
            expected = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])
            assert [got.item_keys[i] for i in got.histories[number].tolist()] == [row[1] for row in expected]
        assert list(got.user_keys) == sorted({row[0] for row in rows})

    def test_ties_keep_the_order_of_rows_or_go_by_position(self, tmp_path: Path) -> None:
        columns = {"user": [1] * 4, "item": [9, 3, 5, 4], "timestamp": [7, 7, 6, 7]}
        path = write(tmp_path / "a.parquet", columns)
        got = read_interactions(path)
        assert [got.item_keys[i] for i in got.histories[0].tolist()] == [5, 9, 3, 4]
        path = write(tmp_path / "b.csv", {**columns, "position": [2, 1, 3, 0]})
        got = read_interactions(path)
        assert [got.item_keys[i] for i in got.histories[0].tolist()] == [5, 4, 3, 9]
        got = read_interactions(path, order="position")
        assert [got.item_keys[i] for i in got.histories[0].tolist()] == [4, 3, 9, 5]
        got = read_interactions(path, order=())  # rows as they stand
        assert [got.item_keys[i] for i in got.histories[0].tolist()] == [9, 3, 5, 4]

    def test_unsorted_times_are_sorted_and_noted(self, caplog: pytest.LogCaptureFixture) -> None:
        got = events([("b", 1, 2.5), ("a", 1, 9), ("b", 2, 1.5)])
        assert [note for note in got.notes if "not in order of time" in note]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert got.histories[1].tolist() == [1, 0]
        assert not events([("b", 1, 1), ("a", 1, 9), ("b", 2, 2)]).notes  # users may come in any order

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_the_order_of_the_file_is_noted(
        self, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        table = {"user": ["u", "u", "u"], "item": ["c", "b", "a"], "time": [3, 1, 2], "price": [1, 1, 1]}
        path = write(tmp_path / f"events{suffix}", table)
        got = read_interactions(path)
        assert [got.item_keys[row] for row in got.histories[0].tolist()] == ["c", "b", "a"]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        said = caplog.messages[0].removeprefix("interactions: ")
        assert got.notes == (said,) == got.k_core(1).notes
        assert said.startswith(f"no column 'timestamp' or 'position' in {str(path)!r}, so ")
        assert "order of the file; other columns: 'time', 'price'; if one holds the time, name it as order" in said
        caplog.clear()
        named = read_interactions(path, order="time")
        assert [named.item_keys[row] for row in named.histories[0].tolist()] == ["b", "a", "c"]
        assert not any("no column" in note for note in named.notes)
        path = write(tmp_path / f"bare{suffix}", {"user": ["u"], "item": ["a"]})
        assert "other columns: none;" in read_interactions(path).notes[0]
        for name in ("timestamp", "position"):
            told = {"user": ["u", "u"], "item": ["a", "b"], name: [1, 2]}
            assert read_interactions(write(tmp_path / f"{name}{suffix}", told)).notes == ()

    def test_repeated_rows_are_dropped_once_and_counted(self) -> None:
        got = events([(0, 1, 5), (0, 2, 5), (0, 1, 5), (0, 1, 6)])
        assert got.histories[0].tolist() == [0, 1, 0]
        assert [note for note in got.notes if note.startswith("1 repeated rows")]
        without_times = Interactions.from_events([0, 0], [1, 1])
        assert without_times.histories[0].tolist() == [0, 0] and not without_times.notes

    @pytest.mark.parametrize("unit", ["s", "D", "us"])
    def test_dates_beyond_nanoseconds(self, unit: str) -> None:
        days = np.array(["9999-12-31", "2020-01-01", "1500-01-01"], dtype=f"datetime64[{unit}]")
        assert Interactions.from_events([0] * 3, [5, 6, 7], days).histories[0].tolist() == [2, 1, 0]
        days[1] = "NaT"
        with pytest.raises(ValueError, match="a time for every event, got 1 without"):
            Interactions.from_events([0] * 3, [5, 6, 7], days)

    def test_a_file_sorted_by_key_is_noticed(self) -> None:
        generator = np.random.default_rng(0)
        rows = [(user, item, 0) for user in range(60) for item in generator.permutation(500)[:6].tolist()]
        fair = Interactions.from_events([r[0] for r in rows], [r[1] for r in rows])
        assert not fair.notes and 0.4 < fair.ascending_share() < 0.6
        by_key = sorted(rows)
        trap = Interactions.from_events([r[0] for r in by_key], [f"B{r[1]:04}" for r in by_key])
        assert trap.ascending_share() == 1 and "sorted by key and not by time" in trap.notes[0]
        assert trap.ascending_share([f"{999 - i:03}" for i in range(trap.num_items)]) == 0


class TestKeys:
    def test_items_of_a_catalogue_keep_its_rows(self) -> None:
        got = events([(0, "z", 1), (0, "b", 2)], item_keys=["z", "a", "b"])
        assert got.histories[0].tolist() == [0, 2] and got.num_items == 3
        assert got.rows_of(["b", "z"]).tolist() == [2, 0]

    @pytest.mark.parametrize(
        ("users", "items", "settings", "message"),
        [
            ([], [], {}, "at least one event, got none"),
            ([1, 2], [1], {}, "arrays of \\[1, 2\\] entries"),
            ([1.5], [1], {}, "user keys that are all integers or all strings, got float64"),
            ([1], [None], {}, "item keys that are all integers or all strings, got object"),
            ([1, "a"], [1, 2], {}, "got both"),
            ([1], [2**63], {}, r"integer item keys below 2\^63, got 9223372036854775808; use strings"),
            ([1], [1], {"times": [float("nan")]}, "1 without"),
            ([1], [1], {"times": ["May"]}, "times as numbers or dates, .* got \\['May'\\]; convert"),
            ([1, 1], [5, 7], {"item_keys": [7, 8]}, "1 unknown ones such as 5"),
            ([1], ["5"], {"item_keys": [5]}, "integers as in the catalogue, got strings such as '5'"),
            ([1], [5], {"item_keys": [5, 6, 5]}, "1 repeated keys such as 5"),
        ],
    )
    def test_errors(self, users: list[Any], items: list[Any], settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Interactions.from_events(users, items, **settings)

    def test_the_largest_integer(self) -> None:
        assert Interactions.from_events([1], np.array([2**63 - 1], dtype=np.uint64)).item_keys == (2**63 - 1,)

    def test_unknown_items_of_a_history(self) -> None:
        with pytest.raises(ValueError, match="unknown ones such as 4"):
            events([(0, 3, 1)]).rows_of([3, 4])


class TestKCore:
    @given(EVENTS, st.integers(1, 3))
    @settings(deadline=None, max_examples=60)
    def test_against_networkx(self, rows: list[tuple[int, int, int]], k: int) -> None:
        rows = list({row[:2]: row for row in rows}.values())  # a graph has no repeated edges
        graph = networkx.Graph([(("u", user), ("i", item)) for user, item, _ in rows])
        core = set(networkx.k_core(graph, k))
        expected = [row for row in rows if ("u", row[0]) in core and ("i", row[1]) in core]
        if not expected:
            with pytest.raises(ValueError, match="lower k"):
                events(rows).k_core(k)
            return
        got, wanted = events(rows).k_core(k), events(expected)
        assert (got.user_keys, got.item_keys) == (wanted.user_keys, wanted.item_keys)
        assert torch.equal(got.histories.items, wanted.histories.items)
        assert torch.equal(got.histories.offsets, wanted.histories.offsets)

    def test_needs_several_rounds(self) -> None:
        chain = [(0, 0, 0), (0, 1, 1), (1, 1, 0), (1, 2, 1), (2, 2, 0), (2, 3, 1)]
        block = [(u, i, i) for u in (7, 8) for i in (20, 21)]
        got = events(chain + block).k_core(2)  # the chain falls from both ends inwards
        assert got.user_keys == (7, 8) and got.item_keys == (20, 21)
        with pytest.raises(ValueError, match="k >= 1"):
            got.k_core(0)

    def test_the_catalogue_goes_along(self) -> None:
        shelf = Catalogue((5, 6, 7), {"title": ["a", "b", "c"]}, np.arange(6, dtype=np.float16).reshape(3, 2))
        data = ItemData(events([(0, 5, 0), (0, 7, 1), (1, 5, 0), (1, 7, 1), (1, 6, 2)], item_keys=shelf.keys), shelf)
        kept = data.k_core(2)
        assert kept.catalogue.keys == (5, 7) and kept.catalogue.columns["title"] == ["a", "c"]
        assert kept.catalogue.vectors().tolist() == [[0, 1], [4, 5]]
        with pytest.raises(ValueError, match="same items in the same order"):
            ItemData(data.interactions, kept.catalogue)


class TestSplit:
    @given(EVENTS)
    @settings(deadline=None, max_examples=60)
    def test_parts_join_to_the_whole(self, rows: list[tuple[int, int, int]]) -> None:
        whole = events(rows)
        lengths = whole.histories.lengths.tolist()
        if max(lengths) < 3:
            with pytest.raises(ValueError, match="at least three events"):
                whole.split()
            return
        split = whole.split()
        assert split.users.tolist() == [i for i, length in enumerate(lengths) if length >= 3]
        assert split.num_short == sum(length < 3 for length in lengths)
        for place, user in enumerate(split.users.tolist()):
            *train, validation, test = whole.histories[user].tolist()
            assert split.train[user].tolist() == split.validation_inputs[place].tolist() == train
            assert (int(split.validation[place]), int(split.test[place])) == (validation, test)
            assert split.test_inputs[place].tolist() == [*train, validation]
        for user in set(range(len(lengths))) - set(split.users.tolist()):
            assert split.train[user].tolist() == whole.histories[user].tolist()

    def test_report(self) -> None:
        got = events([(0, 1, 0), (0, 2, 1), (0, 1, 2), (1, 1, 0), (1, 2, 1), (1, 3, 2), (2, 2, 0)]).split().report()
        assert got == {
            "users": 3,
            "items": 3,
            "train_events": 3,
            "evaluated_users": 2,
            "short_users": 1,
            "cold_targets": 1,  # item 3
            "repeated_targets": 1,  # user 0 has item 1 before
        }

    def test_leaks_are_found(self) -> None:
        whole = events([(0, i, i) for i in range(5)] + [(1, 0, 0)])
        good = whole.split()
        check_split(whole, good)
        leaks = {
            "test item in the training part": Histories.of([[0, 1, 4], [0]]),
            "an event in two parts": Histories.of([[0, 1, 2, 3], [0]]),
            "a missing event": Histories.of([[0, 1], [0]]),
            "another short user": Histories.of([[0, 1, 2], [1]]),
        }
        for train in leaks.values():
            with pytest.raises(ValueError, match="join to the user's events"):
                check_split(whole, Split(train, good.users, good.validation, good.test, 5, 1))
        swapped = Split(good.train, good.users, good.test, good.validation, 5, 1)
        with pytest.raises(ValueError, match="join to the user's events"):
            check_split(whole, swapped)


class TestFiles:
    @pytest.mark.parametrize("suffix", ["parquet", "csv"])
    def test_a_folder_in_one_call(self, tmp_path: Path, suffix: str) -> None:
        write(tmp_path / f"items.{suffix}", {"item": ["y", "x"], "title": ["A", "B"]})
        write(tmp_path / f"interactions.{suffix}", {"user": [4, 4, 3], "item": ["x", "y", "x"], "timestamp": [2, 1, 1]})
        got = read_item_data(tmp_path)
        assert got.catalogue.keys == ("y", "x") and got.catalogue.embeddings is None
        assert got.interactions.user_keys == (3, 4) and got.interactions.histories[1].tolist() == [0, 1]
        np.save(tmp_path / "item_embeddings.npy", np.eye(2, 3, dtype=np.float16))
        found = read_item_data(tmp_path).catalogue
        assert isinstance(found.embeddings, np.memmap) and torch.equal(found.vectors(), torch.eye(2, 3))
        assert read_item_data(tmp_path, vectors=False).catalogue.embeddings is None
        named = read_item_data(tmp_path, embeddings="item_embeddings.npy", vectors=False).catalogue
        assert torch.equal(named.vectors(), torch.eye(2, 3))

    def test_other_names(self, tmp_path: Path) -> None:
        write(tmp_path / "books.csv", {"isbn": [10, 11], "name": ["A", "B"]})
        write(tmp_path / "loans.parquet", {"who": ["p", "p"], "isbn": [11, 10], "day": [1, 2], "item": [0, 0]})
        got = read_item_data(
            tmp_path, interactions="loans.parquet", items="books.csv", user="who", item="isbn", order="day"
        )
        assert got.interactions.histories[0].tolist() == [1, 0]

    @given(st.lists(st.tuples(st.text(max_size=2), st.text(max_size=2), st.integers(0, 3)), min_size=1, max_size=30))
    @settings(deadline=None, max_examples=50)
    def test_any_strings_are_keys(self, rows: list[tuple[str, str, int]]) -> None:
        """As events that never were in a file."""
        rows = [(user.rstrip("\0"), item.rstrip("\0"), time) for user, item, time in rows]  # as numpy keeps them
        catalogue = list(dict.fromkeys([*(row[1] for row in rows[::-1]), "another"]))
        columns = dict(zip(("user", "item", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))
        for item_keys in (None, catalogue):
            with tempfile.TemporaryDirectory() as folder:
                got = read_interactions(write(Path(folder) / "a.parquet", columns), item_keys=item_keys)
            expected = events(rows, item_keys=item_keys)
            assert (got.user_keys, got.item_keys, got.notes) == (expected.user_keys, expected.item_keys, expected.notes)
            assert torch.equal(got.histories.items, expected.histories.items)
            assert torch.equal(got.histories.offsets, expected.histories.offsets)

    def test_no_rows(self, tmp_path: Path) -> None:
        columns = {name: pa.array([], pa.string()) for name in ("user", "item")}
        with pytest.raises(ValueError, match="at least one event, got none"):
            read_interactions(write(tmp_path / "a.parquet", columns))

    def test_dates_and_dictionaries(self, tmp_path: Path) -> None:
        days = pa.array([3, 1], type=pa.int32()).cast(pa.date32())
        names = pa.array(["a", "b"]).dictionary_encode()
        path = write(tmp_path / "a.parquet", {"user": names, "item": [1, 2], "timestamp": days})
        assert read_interactions(path).user_keys == ("a", "b")

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"expected items.parquet or items.csv .* got neither"):
            read_item_data(tmp_path)
        with pytest.raises(ValueError, match="does not exist"):
            read_interactions(tmp_path / "a.parquet")
        (tmp_path / "a.parquet").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="expected a Parquet or CSV file"):
            read_interactions(tmp_path / "a.parquet")
        path = write(tmp_path / "b.parquet", {"user": [1, None], "item": [1, 2]})
        with pytest.raises(ValueError, match=r"value of 'user' in every row of .*, got 1 without"):
            read_interactions(path)
        path = write(tmp_path / "c.parquet", {"user": [1], "item": [1]})
        with pytest.raises(ValueError, match=r"expected a column 'asin' in .* got user, item"):
            read_interactions(path, item="asin")
        path = write(tmp_path / "items.parquet", {"item": [1, 2, 1]})
        with pytest.raises(ValueError, match="repeated keys such as 1"):
            read_catalogue(path)

    def test_bad_embeddings(self, tmp_path: Path) -> None:
        path = write(tmp_path / "items.parquet", {"item": [1, 2]})
        for array, message in (
            (
                np.zeros((3, 2), np.float32),
                r"2 vectors in '.*e\.npy', one for each item of '.*items\.parquet', got 3; the file is of another",
            ),
            (np.zeros(2, np.float32), r"embeddings \(n, D\) of floats"),
            (np.zeros((2, 2), np.int64), r"embeddings \(n, D\) of floats"),
        ):
            np.save(tmp_path / "e.npy", array)
            with pytest.raises(ValueError, match=message):
                read_catalogue(path, embeddings=tmp_path / "e.npy")
        np.save(tmp_path / "e.npy", np.array([[1.0, 2], [np.nan, 0]]))
        with pytest.raises(ValueError, match="NaN or infinity for item 2"):
            read_catalogue(path, embeddings=tmp_path / "e.npy").vectors()
        np.savez(tmp_path / "e.npz", np.eye(2))
        for content in (b"nonsense", b"", (tmp_path / "e.npz").read_bytes()):
            (tmp_path / "e.npy").write_bytes(content)
            with pytest.raises(ValueError, match=r"expected a \.npy file .* write it with numpy\.save"):
                read_catalogue(path, embeddings=tmp_path / "e.npy")
        with pytest.raises(ValueError, match="expected item embeddings, got none"):
            read_catalogue(path).vectors()


class TestCsv:
    @pytest.mark.parametrize(
        ("written", "keys"),
        [
            (["007", "8"], ("007", "8")),
            (["-7", "0", " 8"], (-7, 0, 8)),
            (["-0", "8"], ("-0", "8")),
            (["0x1F", "8"], ("0x1F", "8")),
            (["1.50", "2"], ("1.50", "2")),
            (["9223372036854775807"], (2**63 - 1,)),
            (["9223372036854775808"], ("9223372036854775808",)),
            (["NA", "a"], ("NA", "a")),
        ],
    )
    def test_keys_are_integers_only_if_nothing_is_lost(
        self, tmp_path: Path, written: list[str], keys: tuple[Any, ...]
    ) -> None:
        path = tmp_path / "a.csv"
        path.write_text("item,user\n" + "".join(f"{key},{key}\n" for key in written))
        assert read_catalogue(path).keys == keys
        got = read_interactions(path, item_keys=keys)
        assert got.user_keys == tuple(sorted(keys))
        assert [got.item_keys[i] for i in got.histories.items.tolist()] == sorted(keys)

    @pytest.mark.parametrize("written", [["1", ""], ["NA", "1"], ["007", ""], ["1.0", ""]])
    def test_missing_numbers_are_refused(self, tmp_path: Path, written: list[str]) -> None:
        path = tmp_path / "a.csv"
        path.write_text("item,title\n" + "".join(f"{key},x\n" for key in written))
        with pytest.raises(ValueError, match=r"value of 'item' in every row of .*, got 1 without"):
            read_catalogue(path)

    @pytest.mark.parametrize(
        "cells",
        [
            ["0306406152", "0198526636"],
            ["1.10", "1.1", "2.50"],
            ["12345678901234567890", "12345678901234567891"],
            ["1e5", "100000", "1E5"],
            ["true", "FALSE", "True"],
            ["2020-01-02T03:04:05Z", "2020-01-02 03:04:05", "2020-01-02"],
            ["12:30", "12:30:00"],
            ["soap", "NA", "null", "", "nan", "#N/A"],
            ["7", "", "NULL"],
            [" 7", "7 ", "+7", "0x7"],
        ],
    )
    def test_a_text_is_the_text(self, cells: list[str], tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("item", "title", "other"), *((f"k{i}", c, c) for i, c in enumerate(cells))])
        got = read_catalogue(path)
        assert got.columns == {"title": cells, "other": cells}

    @pytest.mark.parametrize(
        "times", [["10", "9", "1e1"], ["2020-01-10", "2020-01-09", "2020-01-10"], ["1", ".5", "1"]]
    )
    def test_times_are_numbers(self, times: list[str], tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("user,item,timestamp,size\n" + "".join(f"1,k{i},{t},1.10\n" for i, t in enumerate(times)))
        got = read_interactions(path)
        assert [got.item_keys[i] for i in got.histories[0].tolist()] == ["k1", "k0", "k2"]

    def test_both_files_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "items.csv").write_text("item,title\n007,a\n10,b\n")
        (tmp_path / "interactions.csv").write_text("user,item\n1,10\n1,10\n")  # integers, but for the catalogue
        got = read_item_data(tmp_path)
        assert got.catalogue.keys == ("007", "10") and got.interactions.histories[0].tolist() == [1, 1]
        assert got.interactions.user_keys == (1,)
        (tmp_path / "items.csv").write_text("item,title\n7,a\n10,b\n")
        (tmp_path / "interactions.csv").write_text("user,item\n1,007\n")
        with pytest.raises(ValueError, match="integers as in the catalogue, got strings such as '007'"):
            read_item_data(tmp_path)

    def test_names_of_columns(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("item,title,,\n1,a,,\n")
        assert read_catalogue(path).columns == {"title": ["a"]}
        path.write_text("item,title,title\n1,a,b\n")
        with pytest.raises(ValueError, match=r"one column 'title' in .* got 2; rename or remove"):
            read_catalogue(path)
        path.write_text("user,item,item,x,x\n1,a,b,0,0\n")
        with pytest.raises(ValueError, match=r"one column 'item' in .* got 2"):
            read_interactions(path)
        path.write_text("user,item,x,x\n1,a,0,0\n")  # what is not read may be there twice
        assert read_interactions(path).item_keys == ("a",)

    @pytest.mark.parametrize("text", ["item,title\n1,Café\n", "item,Café\n1,a\n", "item,title\n1,a\nCafé,b\n"])
    def test_other_encodings_are_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "a.csv"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"text in UTF-8, got other bytes in .*; save the file as UTF-8"):
            read_catalogue(path)
        for encoding in ("utf-8", "utf-8-sig"):
            path.write_text(text, encoding=encoding)
            got = read_catalogue(path)
            assert "Café" in (*got.keys, *got.columns, *got.columns.get("title", ()))

    def test_long_files_with_line_breaks_in_cells(self, tmp_path: Path) -> None:
        title = "a" * 300 + "\nb"
        path = write(tmp_path / "a.csv", {"item": list(range(8000)), "title": [title] * 8000})
        assert path.stat().st_size > 2 << 20  # more than two blocks
        got = read_catalogue(path)
        assert got.keys == tuple(range(8000)) and set(got.columns["title"]) == {title}


def test_items_with_a_value_in_a_column_from_either_kind_of_file(tmp_path: Path) -> None:
    table = pa.table({"item": [3, 1, 2, 4], "stock": [True, False, None, True], "size": [1, 2, 1, 10]})
    pq.write_table(table, tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text("item,stock,size\n3,True,1\n1,false,2\n2,,1\n4,TRUE,10\n")
    for name in ("items.parquet", "items.csv"):
        shelf = read_catalogue(tmp_path / name)
        assert shelf.where("stock", "true").tolist() == [True, False, False, True]
        assert shelf.where("stock", " False").tolist() == [False, True, False, False]
        assert shelf.where("size", "1").tolist() == [True, False, True, False]
    lists = Catalogue((1, 2, 3), {"kinds": [["Hair", "Care"], [], [["Hair"]]], "name": ["hair", "Hair", None]})
    assert lists.where("kinds", "Hair").tolist() == [True, False, True]
    assert lists.where("name", "Hair").tolist() == [False, True, False]
    with pytest.raises(ValueError, match="expected a column of kinds, name, got 'color'; choose one"):
        lists.where("color", "red")


class TestTexts:
    def test_fields_in_fixed_order(self) -> None:
        shelf = Catalogue((1, 2), {"title": [" Soap ", ""], "tags": [["a", "b"], []], "price": [1.5, float("nan")]})
        only = shelf.select(torch.tensor([0]))
        assert only.texts(("price", "title", "tags")) == ["1.5; Soap; a, b"]
        assert only.texts(("tags", "title")) == ["a, b; Soap"]
        with pytest.raises(ValueError, match="got 1 without, such as 2"):
            shelf.texts(("title", "price"))
        with pytest.raises(ValueError, match="expected a column of title, tags, price, got 'brand'"):
            shelf.texts(("brand",))
        for fallback in (None, "title"):
            with pytest.raises(ValueError, match="at least one field, got none"):
                shelf.texts((), fallback=fallback)

    @pytest.mark.filterwarnings(
        "ignore:Importing from 'sentence_transformers.models'"
    )  # older ones have no other place
    def test_embeddings_of_a_model_in_a_folder(self, tmp_path: Path) -> None:
        folder = tiny_encoder(tmp_path)
        texts = ["red soap", "blue soap with a long name", "red soap"]
        got = embed_texts(texts, folder)
        assert got.shape == (3, 16) and got.dtype == torch.float32
        assert torch.equal(got[0], got[2])
        torch.testing.assert_close(got.norm(dim=1), torch.ones(3))
        from sentence_transformers import SentenceTransformer

        raw = torch.from_numpy(SentenceTransformer(str(folder)).encode(texts))
        torch.testing.assert_close(embed_texts(texts, folder, normalize=False, batch_size=1), raw, rtol=1e-4, atol=1e-5)

    def test_embedding_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected at least one text, all strings, got none"):
            embed_texts([], tmp_path)
        with pytest.raises(ValueError, match="all strings, got \\[None\\]"):
            embed_texts(["a", None], tmp_path)  # type: ignore[list-item]
        with pytest.raises(ValueError, match="expected a sentence-transformers model"):
            embed_texts(["a"], tmp_path / "none")

    @pytest.mark.parametrize("reached", [True, False])
    def test_without_a_network_only_files_here_are_looked_for(
        self, reached: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked = list[tuple[str, bool]]()

        class Stub:
            def __init__(self, name: str, *, local_files_only: bool, **_: Any) -> None:
                asked.append((name, local_files_only))
                raise OSError("no model")

        monkeypatch.setattr("sentence_transformers.SentenceTransformer", Stub)
        monkeypatch.setattr("gritvq.items.text_embeddings.hub_in_reach", lambda: reached)
        for name in ("owner/name", str(tmp_path)):
            with pytest.raises(ValueError, match="expected a sentence-transformers model"):
                embed_texts(["a"], name)
        assert asked == [("owner/name", not reached), (str(tmp_path), True)]


def tiny_encoder(folder: Path) -> Path:
    """A randomly initialized BERT with mean pooling, saved as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizer

    bert, result = folder / "bert", folder / "encoder"
    bert.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "soap", "with", "a", "long", "name"]
    (bert / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(bert)
    BertTokenizer(str(bert / "vocab.txt")).save_pretrained(bert)
    transformer = models.Transformer(str(bert))
    SentenceTransformer(modules=[transformer, models.Pooling(16)], device="cpu").save(str(result))
    return result


@pytest.mark.parametrize(
    ("name", "expected", "core"),
    [
        ("amazon_beauty", (22363, 12101, 153776, 138), (22363, 12101)),
        ("movielens_latest_small", (671, 9125, 98662, 35), (671, 3496)),
    ],
)
def test_the_real_sets(name: str, expected: tuple[int, ...], core: tuple[int, int]) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"the real catalogue {name} is not in ../shared/data")
    data = read_item_data(SHARED / name)
    got = data.interactions.split().report()
    assert (got["users"], got["items"], got["train_events"], got["cold_targets"]) == expected
    assert got["repeated_targets"] == got["short_users"] == 0 and not data.interactions.notes
    kept = data.interactions.k_core(5)
    assert (kept.num_users, kept.num_items) == core
    vectors = data.catalogue.vectors()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)), rtol=0, atol=2e-3)
    if name == "amazon_beauty":  # days are times, and ties within a day keep the order of ASINs
        asins = list(data.catalogue.columns["asin"])
        assert 0.68 < data.interactions.ascending_share(asins) < 0.72
        assert len(set(data.catalogue.texts(("title",), fallback="short_text"))) > 12067


@pytest.mark.parametrize(
    "times",
    [
        ["2026-03-01T18:30:00", "2026-02-28T07:00:01", "2026-03-02T00:00:00"],
        ["2026-03-01 18:30:00Z", "2026-02-28 07:00:01Z", "2026-03-02 00:00:00Z"],
        ["2026-03-01", "2026-02-28", "2026-03-02"],
        ["1000", "999", "1001"],
        ["10.5", "9.75", "100.25"],
    ],
)
def test_times_in_words_are_times(times: list[str], tmp_path: Path) -> None:
    """As text they would be sorted otherwise, or refused: 1000 < 999."""
    table = pa.table({"user": ["u"] * 3, "item": ["b", "a", "c"], "timestamp": times})
    pq.write_table(table, tmp_path / "interactions.parquet")
    found = read_interactions(tmp_path / "interactions.parquet")
    assert [found.item_keys[row] for row in found.histories[0].tolist()] == ["a", "b", "c"]
