"""Item data as RecBole, Amazon and MovieLens publish it: values, folders, texts, conversion, bad files."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import DATA
from gritvq.items import convert_item_data, read_catalogue, read_interactions, read_item_data

Event = tuple[int, int, int, float]  # user, item, time, rating


def lines(path: Path, rows: Sequence[str], encoding: str = "utf-8") -> None:
    data = "".join(f"{row}\n" for row in rows).encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


# --- writers of each layout; items are numbers, titles are "Thing 3" --------------------------------------------------


def write_recbole(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    header = ["item_id:token\trating:float\tuser_id:token\ttimestamp:float"]
    lines(folder / "x.inter", header + [f"i{i}\t{rating}\tu{u}\t{time}" for u, i, time, rating in events])
    header = ["item_id:token\ttitle:token_seq\tgenre:token_seq"]
    lines(folder / "x.user", ["user_id:token\tage:float", "u1\t7"])
    lines(folder / "x.item", header + [f"i{i}\tThing {i}\tA B" for i in items])


def write_parts(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    write_recbole(folder, events, items)
    header, *rows = (folder / "x.inter").read_text().splitlines()
    (folder / "x.inter").unlink()
    rows += rows[:1] * 3  # no part may be empty; a repeated event counts once
    for number, part in enumerate(("train", "valid", "test")):
        lines(folder / f"x.{part}.inter", [header, *(rows[:-2] if number == 0 else rows[-3 + number :][:1])])


def write_2014(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    records = [
        {"reviewerID": f"u{u}", "asin": f"i{i}", "helpful": [0, 1], "overall": rating, "unixReviewTime": time}
        for u, i, time, rating in events
    ]
    lines(folder / "reviews_X_5.json.gz", [json.dumps(record) for record in records])
    metadata = [{"asin": f"i{i}", "title": f"Thing {i}", "categories": [["A", "B"], ["A"]]} for i in items]
    lines(folder / "meta_X.json.gz", [repr(record) for record in metadata])


def write_2018(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    records = [
        {"overall": rating, "verified": True, "reviewerID": f"u{u}", "asin": f"i{i}", "unixReviewTime": time}
        for u, i, time, rating in events
    ]
    lines(folder / "X_5.json.gz", [json.dumps(record) for record in records])
    metadata = [{"category": ["A", "B"], "title": f"Thing {i}", "asin": f"i{i}"} for i in items]
    lines(folder / "meta_X.json.gz", [json.dumps(record) for record in metadata])


def write_2023(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    records = [
        {
            "rating": rating,
            "title": "Good",
            "asin": "variant",
            "parent_asin": f"i{i}",
            "user_id": f"u{u}",
            "timestamp": t,
        }
        for u, i, t, rating in events
    ]
    lines(folder / "X.jsonl", [json.dumps(record) for record in records])
    metadata = [{"title": f"Thing {i}", "categories": ["A", "B"], "parent_asin": f"i{i}", "price": None} for i in items]
    lines(folder / "meta_X.jsonl", [json.dumps(record) for record in metadata])


def write_2023_csv(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    write_2023(folder, events, items)
    (folder / "X.jsonl").unlink()
    rows = [f"u{u},i{i},{rating},{time},i1 i2" for u, i, time, rating in events]
    lines(folder / "X.csv.gz", ["user_id,parent_asin,rating,timestamp,history", *rows])


def amazon_key(letter: str, number: int) -> str:
    """Keys as Amazon's, which sort as their numbers do."""
    return f"A{number:012}X" if letter == "u" else f"B{number:09}"


def write_ratings(folder: Path, events: Sequence[Event], items: Sequence[int], name: str = "ratings_X.csv.gz") -> None:
    pairs = [(amazon_key("u", u), amazon_key("i", i), rating, time) for u, i, time, rating in events]
    pairs = pairs if name.startswith("ratings") else [(i, u, *rest) for u, i, *rest in pairs]
    lines(folder / name, [",".join(map(str, pair)) for pair in pairs])
    titles = {amazon_key("i", i): f"Thing {i}" for i in items}
    metadata = [{"category": ["A", "B"], "title": title, "asin": key} for key, title in titles.items()]
    metadata += metadata[:1] * (len(items) - len(titles))
    lines(folder / "meta_X.json.gz", [json.dumps(record) for record in metadata])


def write_ratings_2018(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    write_ratings(folder, events, items, "X.csv")


def write_latest(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    table(
        folder / "ratings.csv", [("userId", "movieId", "rating", "timestamp"), *((u, i, r, t) for u, i, t, r in events)]
    )
    table(folder / "movies.csv", [("movieId", "title", "genres"), *((i, f"Thing {i}", "A|B") for i in items)])
    table(folder / "tags.csv", [("userId", "movieId", "tag", "timestamp"), (1, 2, "dull", 3)])
    table(folder / "links.csv", [("movieId", "imdbId", "tmdbId"), (1, "0114709", 862)])
    table(folder / "genome-scores.csv", [("movieId", "tagId", "relevance"), (1, 1, 0.5)])


def write_1m(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    lines(folder / "users.dat", ["1::F::1::10::48067"])
    lines(folder / "ratings.dat", [f"{u}::{i}::{rating}::{time}" for u, i, time, rating in events])
    lines(folder / "movies.dat", [f"{i}::Thing {i}::A|B" for i in items])


def write_100k(folder: Path, events: Sequence[Event], items: Sequence[int]) -> None:
    lines(folder / "u.user", ["1|24|M|technician|85711"])
    lines(folder / "u1.base", ["1\t2\t3\t4"])
    lines(folder / "u.data", [f"{u}\t{i}\t{rating}\t{time}" for u, i, time, rating in events])
    flags = "|".join("1" if place in (1, 2) else "0" for place in range(19))
    lines(folder / "u.item", [f"{i}|Thing {i}|01-Jan-1995||http://x/?{i}|{flags}" for i in items])


WRITERS: dict[str, Callable[[Path, Sequence[Event], Sequence[int]], None]] = {
    "recbole": write_recbole,
    "recbole parts": write_parts,
    "amazon 2014": write_2014,
    "amazon 2018": write_2018,
    "amazon 2023": write_2023,
    "amazon 2023 csv": write_2023_csv,
    "amazon ratings 2014": write_ratings,
    "amazon ratings 2018": write_ratings_2018,
    "movielens latest": write_latest,
    "movielens 1m": write_1m,
    "movielens 100k": write_100k,
}
GENRES = {"movielens 100k": "Action, Adventure", "recbole": "A B", "recbole parts": "A B"}
EVENTS: list[Event] = [(2, 30, 9, 4.0), (1, 4, 7, 2.5), (2, 4, 8, 5.0), (1, 30, 7, 1.0), (2, 5, 10, 3.0)]


def keys_of(layout: str, numbers: Sequence[int], letter: str) -> list[Any]:
    if layout.startswith("amazon ratings"):
        return sorted(amazon_key(letter, number) for number in numbers)
    return sorted(numbers if layout.startswith("movielens") else [f"{letter}{number}" for number in numbers])


@pytest.mark.parametrize("layout", WRITERS)
class TestEveryLayout:
    @given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5), st.just(4.0)), min_size=1))
    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_written_events_are_read_again(self, layout: str, tmp_path: Path, rows: list[Event]) -> None:
        WRITERS[layout](tmp_path, rows, range(13))
        got = read_item_data(tmp_path).interactions
        users = {keys_of(layout, [number], "u")[0]: number for number in range(13)}
        items = {keys_of(layout, [number], "i")[0]: number for number in range(13)}
        assert list(got.user_keys) == keys_of(layout, list({row[0] for row in rows}), "u")
        assert list(got.item_keys) == keys_of(layout, list({row[1] for row in rows}), "i")
        for place, name in enumerate(got.user_keys):
            mine = dict.fromkeys((time, item) for user, item, time, _ in rows if user == users[name])
            expected = [item for _, item in sorted(mine, key=lambda pair: pair[0])]  # stable: ties as in the file
            assert [items[got.item_keys[row]] for row in got.histories[place].tolist()] == expected

    def test_a_folder_and_its_file_of_events(
        self, layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        WRITERS[layout](tmp_path, EVENTS, [30, 5, 4, 77])
        got = read_item_data(tmp_path)
        assert list(got.catalogue.keys) == keys_of(layout, [4, 5, 30], "i")  # 77 has no events
        thing = {keys_of(layout, [number], "i")[0]: f"Thing {number}" for number in (4, 5, 30)}
        assert got.catalogue.texts() == [thing[key] for key in got.catalogue.keys]
        said = GENRES.get(layout, "A, B")
        assert got.catalogue.texts(("item_text",)) == [f"{thing[key]}; {said}" for key in got.catalogue.keys]
        assert "metadata" not in caplog.text
        assert read_catalogue(tmp_path) == got.catalogue
        if layout != "recbole parts":
            events = next(
                path
                for path in sorted(tmp_path.iterdir())
                if path.name.startswith(("reviews", "ratings", "X", "x.", "u.")) and path.suffix != ".item"
            )
            one = read_item_data(events)
            assert one.interactions.histories.items.tolist() == got.interactions.histories.items.tolist()
            assert one.catalogue.columns == got.catalogue.columns
            assert read_catalogue(events) == one.catalogue
            alone = read_interactions(events, item_keys=got.catalogue.keys)
            assert alone.histories.items.tolist() == got.interactions.histories.items.tolist()
        np.save(tmp_path / "item_embeddings.npy", np.eye(3, dtype=np.float16))
        named = read_item_data(tmp_path, embeddings="item_embeddings.npy")
        assert named.catalogue.vectors().tolist() == np.eye(3).tolist()
        for read in (read_item_data, read_catalogue):  # nobody knows the order of its rows
            with pytest.raises(ValueError, match=r"without item embeddings, got .*semantic-ids convert"):
                read(tmp_path)
        assert read_item_data(tmp_path, vectors=False).catalogue == got.catalogue
        assert read_catalogue(tmp_path, vectors=False) == got.catalogue

    def test_converted_data_are_the_same(self, layout: str, tmp_path: Path) -> None:
        source, out = tmp_path / "source", tmp_path / "out"
        source.mkdir()
        WRITERS[layout](source, EVENTS, [30, 5])
        numbers = convert_item_data(source, out)
        assert numbers["users"] == 2 and numbers["items"] == 3
        assert sorted(path.name for path in out.iterdir()) == ["interactions.parquet", "items.parquet"]
        before, after = read_item_data(source), read_item_data(out)
        assert before.interactions.user_keys == after.interactions.user_keys
        assert before.interactions.histories.items.tolist() == after.interactions.histories.items.tolist()
        assert before.interactions.histories.offsets.tolist() == after.interactions.histories.offsets.tolist()
        assert before.catalogue.keys == after.catalogue.keys and before.catalogue.columns == after.catalogue.columns
        written = pq.read_table(out / "interactions.parquet").to_pydict()
        assert written["rating"][: len(EVENTS)] == [row[3] for row in EVENTS]
        assert written["timestamp"][: len(EVENTS)] == [row[2] for row in EVENTS]

    def test_items_without_metadata_stay_with_their_key(
        self, layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        WRITERS[layout](tmp_path, EVENTS, [30, 5, 30])
        with caplog.at_level(logging.WARNING):
            got = read_item_data(tmp_path).catalogue
        bare = keys_of(layout, [4], "i")[0]
        row = got.keys.index(bare)
        assert got.columns["item_text"][row] == str(bare) and got.columns["title"][row] is None
        assert "1 of 3 have no metadata" in caplog.text and "1 lines of" in caplog.text
        for path in tmp_path.iterdir():
            if path.name.startswith(("meta", "movies", "u.item")) or path.suffix == ".item":
                path.unlink()
        caplog.clear()
        alone = read_item_data(tmp_path).catalogue
        assert alone.columns == {"item_text": [str(key) for key in alone.keys]} and "no metadata" not in caplog.text

    def test_no_events(self, layout: str, tmp_path: Path) -> None:
        WRITERS[layout](tmp_path, EVENTS, [30])
        for path in tmp_path.iterdir():
            if path.suffix in (".inter", ".data") or path.name.startswith(("ratings", "reviews", "X")):
                path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"expected .*(got none|got neither|got '')") as error:
            read_item_data(tmp_path)
        assert len(str(error.value).splitlines()) == 1
        with pytest.raises(ValueError, match="expected"):
            convert_item_data(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_no_items(self, layout: str, tmp_path: Path) -> None:
        WRITERS[layout](tmp_path, EVENTS, [30])
        for path in tmp_path.iterdir():
            if path.name.startswith(("meta", "movies", "u.item")) or path.suffix == ".item":
                path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"expected items in .*, got an empty file; download it again"):
            read_item_data(tmp_path)


class TestAmazon:
    REVIEW = {
        "reviewerID": "A1YJEY40YUW4SE",
        "asin": "7806397051",
        "reviewerName": "Andrea",
        "helpful": [3, 4],
        "reviewText": "Very oily … 100% ☹",
        "overall": 1.0,
        "summary": "Don't",
        "unixReviewTime": 1391040000,
        "reviewTime": "01 30, 2014",
    }

    def test_literals_of_2014(self, tmp_path: Path) -> None:
        lines(tmp_path / "reviews_Beauty_5.json.gz", [json.dumps(self.REVIEW)])
        other = {
            "asin": "7806397051",
            "description": 'An "oily"\tcream,\nwith \\d \U0001f600',
            "title": "WAWO&#39;s  15 &amp; more",
            "price": 3.17,
            "related": {"also_bought": ["B00"]},
            "brand": "",
            "categories": [["Beauty", "Makeup"], ["Beauty", "Tools"]],
        }
        old = "{u'asin': u'0000000000', 'title': None}"
        lines(tmp_path / "meta_Beauty.json.gz", [old, repr(other).replace("\\\\d", "\\d")])
        got = read_item_data(tmp_path)
        assert got.interactions.user_keys == ("A1YJEY40YUW4SE",) and got.catalogue.keys == ("7806397051",)
        assert got.catalogue.columns == {
            "title": ["WAWO's 15 & more"],
            "brand": [""],
            "categories": [["Beauty", "Makeup", "Tools"]],
            "price": ["3.17"],
            "description": ['An "oily" cream, with \\d \U0001f600'],
            "item_text": ["WAWO's 15 & more; Beauty, Makeup, Tools"],
        }
        every = read_catalogue(tmp_path / "meta_Beauty.json.gz")
        assert every.keys == ("0000000000", "7806397051") and every.columns["item_text"][0] == "0000000000"

    def test_reviews_as_literals(self, tmp_path: Path) -> None:
        lines(tmp_path / "reviews_Beauty.json", [repr(self.REVIEW)])
        assert read_item_data(tmp_path).interactions.item_keys == ("7806397051",)

    def test_metadata_of_2018(self, tmp_path: Path) -> None:
        write_2018(tmp_path, [(1, 1, 5, 4.0), (1, 2, 5, 4.0)], [])
        script = "var aPageStart = (new Date()).getTime();"
        items = [
            {"asin": "i1", "title": script, "brand": "Acme", "category": ["A &amp; B"], "description": ["one", "two"]},
            {"asin": "i2", "title": "Soap", "brand": "Acme", "price": "$1.50", "category": []},
        ]
        lines(tmp_path / "meta_X.json.gz", [json.dumps(item) for item in items])
        got = read_item_data(tmp_path).catalogue
        assert got.columns["item_text"] == ["Acme; A & B", "Soap; Acme"]
        assert got.columns["description"] == ["one two", ""] and got.columns["price"] == ["", "$1.50"]

    def test_metadata_of_2023(self, tmp_path: Path) -> None:
        write_2023(tmp_path, [(1, 1, 1588687728923, 4.0)], [])
        item = {"main_category": "All", "title": "Soap", "store": "Acme", "categories": [], "parent_asin": "i1"}
        lines(tmp_path / "meta_X.jsonl", [json.dumps({**item, "price": 1.5, "description": ["a", "b"]})])
        got = read_item_data(tmp_path).catalogue
        assert got.columns["item_text"] == ["Soap; Acme"] and got.columns["price"] == ["1.5"]
        convert_item_data(tmp_path, tmp_path)
        written = pq.read_table(tmp_path / "interactions.parquet")
        assert written["timestamp"].to_pylist() == [1588687728923]  # milliseconds, as they are

    def test_cells_that_are_no_texts(self, tmp_path: Path) -> None:
        deep: Any = "x"
        for _ in range(500):
            deep = [deep]
        item = {"parent_asin": "a", "title": {"x": 1}, "store": ["Acme", None, 7], "categories": [deep, ["A", {}], "B"]}
        lines(tmp_path / "meta_X.jsonl", [json.dumps(item), json.dumps({"asin": "b", "title": "\ud800"})])
        got = read_catalogue(tmp_path / "meta_X.jsonl")
        assert got.columns["title"] == ["", "?"] and got.columns["item_text"] == ["Acme 7; A, B", "?"]

    def test_parts_of_2023(self, tmp_path: Path) -> None:
        header = "user_id,parent_asin,rating,timestamp"
        for part, item, time in (("train", "a", 1), ("valid", "b", 2), ("test", "c", 3)):
            lines(tmp_path / f"X.{part}.csv", [header, f"u,{item},5.0,{time}", f'"v","{item}",5.0,{time}'])
        lines(tmp_path / "meta_X.jsonl", [json.dumps({"parent_asin": "a", "title": "A"})])
        got = read_item_data(tmp_path)
        assert got.interactions.histories.items.tolist() == [0, 1, 2] * 2
        assert got.catalogue.columns["title"] == ["A", None, None]
        one = read_item_data(tmp_path, interactions="X.train.csv")
        assert one.catalogue.keys == ("a",) and one.catalogue.columns["title"] == ["A"]
        (tmp_path / "X.valid.csv").unlink()
        with pytest.raises(
            ValueError, match=r"parts train, valid and test of a .*, got X\.test\.csv, X\.train\.csv; add"
        ):
            read_item_data(tmp_path)
        lines(tmp_path / "X.csv", [header, "w,d,5.0,1"])
        assert read_item_data(tmp_path).interactions.user_keys == ("w",)  # the whole is not split

    def test_histories_longer_than_the_csv_module_reads(self, tmp_path: Path) -> None:
        history = " ".join(["B000000000"] * 20000)
        lines(tmp_path / "X.csv", ["user_id,parent_asin,rating,timestamp,history", f"u,i,5.0,7,{history}"])
        assert read_item_data(tmp_path).interactions.item_keys == ("i",)


class TestMovieLens:
    def test_latin_1(self, tmp_path: Path) -> None:
        write_1m(tmp_path, [(1, 2, 3, 4.0), (1, 3, 4, 4.0)], [])
        lines(tmp_path / "movies.dat", ["2::Léon (1994)::Drama|Children's", '3::It\'s; "so"::'], "latin-1")
        got = read_item_data(tmp_path).catalogue
        assert got.columns["title"] == ["Léon (1994)", 'It\'s; "so"']
        assert got.columns["genres"] == [["Drama", "Children's"], []]
        lines(tmp_path / "movies.dat", ["2::Léon (1994)::Drama"])  # as 10M is
        assert read_item_data(tmp_path).catalogue.columns["title"] == ["Léon (1994)", None]
        (tmp_path / "movies.dat").rename(tmp_path / "x")
        lines(tmp_path / "u.data", ["1\t2\t3\t4"])
        lines(tmp_path / "u.item", [f"2|Misérables, Les (1995)|1995|||{'|'.join(['0'] * 18)}|1"], "latin-1")
        got = read_item_data(tmp_path, interactions="u.data").catalogue
        assert got.columns["item_text"] == ["Misérables, Les (1995); Western"]

    def test_quotes_and_no_genres(self, tmp_path: Path) -> None:
        write_latest(tmp_path, [(1, 2, 3, 0.5), (1, 3, 4, 4.0)], [])
        rows = [("movieId", "title", "genres"), (2, 'A "b", c', "(no genres listed)"), (3, "D", "IMAX|Sci-Fi")]
        table(tmp_path / "movies.csv", rows)
        got = read_item_data(tmp_path).catalogue
        assert got.columns["genres"] == [[], ["IMAX", "Sci-Fi"]]
        assert got.columns["item_text"] == ['A "b", c', "D; IMAX, Sci-Fi"]
        assert read_catalogue(tmp_path / "movies.csv").keys == (2, 3)
        assert read_catalogue(tmp_path / "ratings.csv").keys == (2, 3)  # of events, the items of the set

    def test_columns_asked_for_are_read_as_before(self, tmp_path: Path) -> None:
        write_latest(tmp_path, [(1, 2, 3, 0.5), (1, 3, 2, 4.0)], [2, 3])
        own = {"user": "userId", "item": "movieId"}
        got = read_item_data(tmp_path, interactions="ratings.csv", items="movies.csv", **own)
        assert got.catalogue.columns["genres"] == ["A|B", "A|B"] and got.interactions.histories.items.tolist() == [1, 0]
        assert read_interactions(tmp_path / "ratings.csv", order="rating", **own).histories.items.tolist() == [0, 1]

    def test_the_real_set(self, tmp_path: Path) -> None:
        """Its Parquet form, written as GroupLens does."""
        folder = DATA / "recsys" / "movielens_latest_small"
        if not folder.is_dir():
            pytest.skip(f"the real catalogue movielens_latest_small is not in {DATA}")
        events, items = (pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("interactions", "items"))
        movies = items["movie_id"]
        columns = (events["user"], [movies[i] for i in events["item"]], events["rating"], events["timestamp"])
        table(tmp_path / "ratings.csv", [("userId", "movieId", "rating", "timestamp"), *zip(*columns, strict=True)])
        genres = [text or "(no genres listed)" for text in items["genres"]]
        rows = zip(movies, items["title"], genres, strict=True)
        table(tmp_path / "movies.csv", [("movieId", "title", "genres"), *rows])
        got, expected = read_item_data(tmp_path), read_item_data(folder)
        assert got.interactions.num_events == 100004 and len(got.catalogue) == 9066
        place = {movie: row for row, movie in enumerate(movies)}
        rows_of = np.array([place[key] for key in got.catalogue.keys])
        assert np.array_equal(rows_of[got.interactions.histories.items], expected.interactions.histories.items)
        titles = expected.catalogue.columns["title"]
        assert list(got.catalogue.columns["title"]) == [titles[row].strip() for row in rows_of]


class TestRecBole:
    def test_types_and_other_columns(self, tmp_path: Path) -> None:
        header = "session_id:token\titem_id:token\tlabel:float\ttags:token_seq\tpoint:float_seq"
        lines(tmp_path / "s.inter", [header, "a\t7\t\tx y\t1 2.5", "a\t07\t1\t\t"])
        got = read_interactions(tmp_path / "s.inter")
        assert got.user_keys == ("a",) and got.item_keys == ("07", "7") and got.histories[0].tolist() == [1, 0]
        convert_item_data(tmp_path, tmp_path / "out")
        assert pq.read_table(tmp_path / "out" / "interactions.parquet").to_pydict() == {
            "user": ["a", "a"],
            "item": ["7", "07"],
            "label": [None, 1.0],
            "tags": [["x", "y"], []],
            "point": [[1.0, 2.5], []],
        }

    def test_titles(self, tmp_path: Path) -> None:
        """As RecBole's own ml-100k, and as its Amazon sets."""
        header = "movie_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
        lines(tmp_path / "m.item", [header, "1\tToy Story\t1995\tAnimation Children's Comedy", "2\t\t\t"])
        got = read_catalogue(tmp_path / "m.item")
        assert got.columns["title"] == ["Toy Story", ""] and got.columns["release_year"] == ["1995", None]
        assert got.columns["class"] == [["Animation", "Children's", "Comedy"], []]
        assert got.columns["item_text"] == ["Toy Story; Animation Children's Comedy", "2"]
        header = "item_id:token\ttitle:token\tprice:float\tbrand:token\tcategories:token_seq"
        lines(tmp_path / "a.item", [header, "B1\tSoap  bar\t1.5\tAcme\t'Beauty', 'Hair Care'"])
        got = read_catalogue(tmp_path / "a.item")
        assert got.columns["item_text"] == ["Soap  bar; Acme; 'Beauty', 'Hair Care'"] and got.columns["price"] == [1.5]

    def test_other_columns_may_be_asked_for(self, tmp_path: Path) -> None:
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\tshop:token"
        lines(tmp_path / "m.inter", [header, "a\tx\t2\t1\tp", "a\ty\t1\t2\tp"])
        assert read_item_data(tmp_path, order="rating").interactions.histories[0].tolist() == [1, 0]
        assert read_item_data(tmp_path, user="shop").interactions.user_keys == ("p",)


class TestFolders:
    def test_several_sets(self, tmp_path: Path) -> None:
        write_100k(tmp_path, EVENTS, [30])
        write_recbole(tmp_path, EVENTS, [5])
        with pytest.raises(ValueError, match=r"events of one data set in .*, got u\.data, x\.inter; name one file"):
            read_item_data(tmp_path)
        assert read_item_data(tmp_path / "u.data").catalogue.keys == (4, 5, 30)
        assert read_item_data(tmp_path, interactions="x.inter").catalogue.keys == ("i30", "i4", "i5")
        with pytest.raises(ValueError, match=r"keys such as 4 in .*x\.item', got keys of the type string; take"):
            read_item_data(tmp_path, interactions="u.data", items="x.item")

    def test_our_own_layout_comes_first(self, tmp_path: Path) -> None:
        write_100k(tmp_path, EVENTS, [30])
        pq.write_table(pa.table({"item": [30, 5, 4, 1], "title": list("abcd")}), tmp_path / "items.parquet")
        with pytest.raises(ValueError, match=r"expected interactions\.parquet or interactions\.csv"):
            read_item_data(tmp_path)
        got = read_item_data(tmp_path / "u.data")  # its catalogue is complete, so it is taken as it is
        assert got.catalogue.keys == (30, 5, 4, 1) and got.catalogue.columns == {"title": list("abcd")}
        assert read_catalogue(tmp_path).keys == (30, 5, 4, 1)
        events = pa.table({"user": [1], "item": [30]})
        pq.write_table(events, tmp_path / "interactions.parquet")
        assert read_item_data(tmp_path).interactions.num_events == 1
        assert read_item_data(tmp_path, items="u.item").catalogue.keys == (30,)
        with pytest.raises(ValueError, match="read as they are"):
            convert_item_data(tmp_path, tmp_path / "out")

    def test_metadata_of_another_set(self, tmp_path: Path) -> None:
        write_2014(tmp_path, EVENTS, [30])
        (tmp_path / "meta_X.json.gz").rename(tmp_path / "meta_Y.json.gz")
        with pytest.raises(ValueError, match=r"file such as meta_x\.jsonl, got meta_Y\.json\.gz; name the file"):
            read_item_data(tmp_path)
        assert read_item_data(tmp_path, items="meta_Y.json.gz").catalogue.columns["title"][0] == "Thing 30"

    def test_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("nothing")
        (tmp_path / "settings.json").write_text("{\n}")
        table(tmp_path / "tags.csv", [("userId", "tag"), (1, "x")])
        for read in (read_item_data, read_catalogue):
            with pytest.raises(ValueError, match="or item data of RecBole, Amazon reviews or MovieLens, got neither"):
                read(tmp_path)
        for wrong in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ValueError, match="expected item data of RecBole, Amazon reviews or MovieLens, got"):
                convert_item_data(wrong, tmp_path / "out")
        assert not (tmp_path / "out").exists()


GOOD = {
    "x.inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float", "a\tx\t1\t2"],
    "X.jsonl": [json.dumps({"user_id": "a", "parent_asin": "x", "rating": 1, "timestamp": 2})],
    "X_5.json.gz": [json.dumps({"reviewerID": "a", "asin": "x", "overall": 1, "unixReviewTime": 2})],
    "X.csv": ["user_id,parent_asin,rating,timestamp", "a,x,1,2"],
    "ratings.csv": ["userId,movieId,rating,timestamp", "1,2,3,4"],
    "ratings.dat": ["1::2::3::4"],
    "u.data": ["1\t2\t3\t4"],
}
ITEMS = {
    "x.item": ["item_id:token\ttitle:token", "x\tThing"],
    "meta_X.jsonl": [json.dumps({"parent_asin": "x", "title": "Thing"})],
    "meta_X.json.gz": ["{'asin': 'x', 'title': 'Thing'}"],
    "movies.csv": ["movieId,title,genres", "1,Thing,A"],
    "movies.dat": ["1::Thing::A|B"],
    "u.item": ["1|Thing|1995|||" + "|".join(["0"] * 19)],
}


class TestBadFiles:
    def refuse(self, path: Path, message: str) -> None:
        read: Any = read_catalogue if path.name in ITEMS else read_interactions
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        said = str(error.value)
        assert said.startswith("expected ") and ", got " in said and "; " in said and "\n" not in said

    @pytest.mark.parametrize(
        ("name", "line", "message"),
        [
            ("x.inter", "a\tx\t1", "a value of each column .4 cells separated by '.t'. in line 3 of .*got 3 in"),
            ("x.inter", "a\tx\tgood\t2", "a number as 'rating' in line 3 of .*got 'good'; correct or remove the line"),
            ("x.inter", "\tx\t1\t2", "a value of 'user' in line 3 of .*got an empty cell"),
            ("x.inter", "a\tx\t1\t", "a value of 'timestamp' in line 3 of .*got an empty cell"),
            ("x.inter", "a\tx\t1\tinf", "a number as 'timestamp' in line 3 of .*got 'inf'"),
            (
                "X.jsonl",
                '{"user_id": "a"',
                'a JSON object or a literal of Python in line 2 of .*got \'{"user_id": "a"\'',
            ),
            ("X.jsonl", "[1, 2]", r"a JSON object or a literal of Python in line 2 of .*got '\[1, 2\]'"),
            ("X.jsonl", "__import__('os').getcwd()", "a JSON object or a literal of Python in line 2"),
            ("X.jsonl", "{'a': " * 5000, "a JSON object or a literal of Python in line 2"),
            ("X.jsonl", '{"a":' * 50000, "a JSON object or a literal of Python in line 2"),
            (
                "X.jsonl",
                '{"parent_asin": "x", "timestamp": 3}',
                "'user_id', .*'rating' in line 2 .*without user_id, rating",
            ),
            (
                "X.jsonl",
                '{"user_id": 7, "parent_asin": "x", "rating": 1, "timestamp": 2}',
                "a text as 'user_id' .*got 7",
            ),
            (
                "X.jsonl",
                '{"user_id": "\\ud800", "parent_asin": "x", "rating": 1, "timestamp": 2}',
                "a text as 'user_id'",
            ),
            (
                "X.jsonl",
                '{"user_id": "b", "parent_asin": "x", "rating": 1, "timestamp": 2.5}',
                "a whole number .*got 2.5",
            ),
            ("X.jsonl", '{"user_id": "b", "parent_asin": "x", "rating": true, "timestamp": 2}', "'rating' .*got True"),
            ("X.jsonl", '{"user_id": "b", "parent_asin": "x", "rating": NaN, "timestamp": 2}', "'rating' .*got nan"),
            ("X.jsonl", f'{{"user_id": "b", "parent_asin": "x", "rating": 1{"0" * 400}, "timestamp": 2}}', "'rating'"),
            ("X_5.json.gz", '{"reviewerID": "a", "asin": "x", "unixReviewTime": 2}', "a line without overall; correct"),
            ("X.csv", "a,x,1", "4 cells separated by ',' in line 3 of .*got 3 in 'a,x,1'"),
            ("X.csv", "a,x,,2", "a number as 'rating' in line 3 of .*got ''"),
            ("X.csv", 'a,"x,1,2', "a line of CSV in line 3 of"),
            ("ratings.csv", "1,2,3,4,5", "4 cells separated by ',' in line 3 of .*got 5"),
            ("ratings.csv", "a,2,3,4", "a whole number as 'userId' in line 3 of .*got 'a'"),
            ("ratings.csv", "1,2,3,2020-01-01", "a number as 'timestamp' in line 3 of .*got '2020-01-01'"),
            ("ratings.dat", "1::2::3", "user, item, rating and time .4 cells separated by '::'. in line 2 of .*got 3"),
            ("ratings.dat", "1::2::::4", "a number as 'rating' in line 2 of .*got ''"),
            ("u.data", "1 2 3 4", "4 cells separated by '.t'. in line 2 of .*got 1"),
            ("x.item", "x", "2 cells separated by '.t'. in line 3 of .*got 1"),
            ("x.item", "\tThing", "a value of 'item' in line 3"),
            ("meta_X.jsonl", '{"title": "Thing"}', "'asin' or 'parent_asin' in line 2 of .*title"),
            ("meta_X.jsonl", '{"user_id": "a", "parent_asin": "x"}', "an item in line 2 of .*got a review"),
            ("meta_X.json.gz", "{'asin': 'y', 'title':", "a JSON object or a literal of Python in line 2"),
            ("movies.csv", "x,Thing,A", "a whole number as 'movie' in line 3 of .*got 'x'"),
            ("movies.csv", "1,Thing", "3 cells separated by ',' in line 3"),
            ("movies.dat", "1:Thing:A", "number, title and genres .3 cells separated by '::'. in line 2"),
            ("u.item", "1|Thing", "24 cells separated by '.'. in line 2 of .*got 2"),
        ],
    )
    def test_a_line_that_is_no_record(self, name: str, line: str, message: str, tmp_path: Path) -> None:
        lines(tmp_path / name, [*{**GOOD, **ITEMS}[name], line])
        self.refuse(tmp_path / name, message)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (
                "user_id:token\titem_id:int",
                "types of token, float, token_seq, float_seq in line 1 of .*got 'item_id:int'",
            ),
            ("user_id\titem_id", "columns such as user_id:token .*got 'user_id'; correct the header"),
            ("user_id:token\tname:token", "one column 'item_id' in line 1 of .*got 0 in"),
            ("user_id:token\tuser_id:token\titem_id:token", "one column 'user_id' in line 1 of .*got 2 in"),
            ("user_id:float\titem_id:token", "a token as user in line 1 of"),
            ("user_id:token\titem_id:token\ttimestamp:token", "a float as timestamp in line 1 of"),
            ("user_id:token\titem_id_list:token_seq\titem_id:token", "one event per line in .*got histories"),
        ],
    )
    def test_headers_of_recbole(self, header: str, message: str, tmp_path: Path) -> None:
        lines(tmp_path / "x.inter", [header, "\t".join("1" * len(header.split("\t")))])
        self.refuse(tmp_path / "x.inter", message)

    def test_missing_columns(self, tmp_path: Path) -> None:
        lines(tmp_path / "ratings.csv", ["userId,movieId,rating", "1,2,3"])
        self.refuse(tmp_path / "ratings.csv", "one column 'timestamp' in .*got userId, movieId, rating; take the file")
        lines(tmp_path / "X.csv", ["user_id,parent_asin,timestamp", "1,2,3"])
        self.refuse(tmp_path / "X.csv", "one column 'rating' in .*got user_id, parent_asin, timestamp")
        lines(tmp_path / "movies.csv", ["movieId,title", "1,2"])
        self.refuse(tmp_path / "movies.csv", "one column 'genres' in .*got movieId, title")

    def test_parts_with_other_columns(self, tmp_path: Path) -> None:
        write_parts(tmp_path, EVENTS, [30])
        lines(tmp_path / "x.test.inter", ["user_id:token\titem_id:token", "u1\ti4"])
        with pytest.raises(
            ValueError, match=r"the columns item, rating, user, timestamp of x\.train\.inter in .*, got user"
        ):
            read_item_data(tmp_path)

    @pytest.mark.parametrize("name", [*GOOD, *ITEMS])
    def test_a_file_cut_in_the_middle_of_gzip(self, name: str, tmp_path: Path) -> None:
        rows = {**GOOD, **ITEMS}[name]
        rows = [*rows, *rows[-1:] * 3000] if name in GOOD else rows
        packed = gzip.compress("".join(f"{row}\n" for row in rows).encode())
        path = tmp_path / (name if name.endswith(".gz") else f"{name}.gz")
        read: Any = read_catalogue if name in ITEMS else read_interactions
        path.write_bytes(packed)
        read(path)
        path.write_bytes(packed[:20] + b"\xff" * 9 + packed[29:])
        with pytest.raises(ValueError, match=r"expected .*, got "):  # what is unpacked may be anything
            read(path)
        for cut in (packed[: len(packed) // 2], packed[:-4]):
            path.write_bytes(cut)
            with pytest.raises(ValueError, match=r"expected a whole gzip file, got .*, which ends or is damaged after"):
                read(path)

    @pytest.mark.parametrize(
        "name", ["x.inter", "X.jsonl", "X.csv", "ratings.csv", "x.item", "meta_X.jsonl", "movies.csv"]
    )
    def test_other_encodings(self, name: str, tmp_path: Path) -> None:
        rows = {**GOOD, **ITEMS}[name]
        content = "".join(f"{row}\n" for row in [*rows, rows[-1].replace("x", "é").replace("Thing", "é")])
        if name == "ratings.csv":
            content = content[:-1] + "é\n"
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        self.refuse(tmp_path / name, f"expected text in UTF-8, got other bytes in line {len(rows) + 1} of .*; save")
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "".join(f"{row}\r\n" for row in rows).encode())
        read: Any = read_catalogue if name in ITEMS else read_interactions
        read(tmp_path / name)  # marked as UTF-8, with the line breaks of Windows

    def test_a_line_without_end(self, tmp_path: Path) -> None:
        (tmp_path / "X.jsonl").write_bytes(b"x" * (1 << 24))
        self.refuse(tmp_path / "X.jsonl", "lines below 16 MB in .*got a longer one in line 1; is it the right file")

    def test_reviews_in_the_place_of_items(self, tmp_path: Path) -> None:
        lines(tmp_path / "X_5.json.gz", GOOD["X_5.json.gz"])
        assert read_catalogue(tmp_path / "X_5.json.gz").keys == ("x",)  # the items of the set
        with pytest.raises(ValueError, match=r"expected an item in line 1 .* got a review"):
            read_item_data(tmp_path, items="X_5.json.gz")

    def test_repeated_events_are_dropped_and_noted(self, tmp_path: Path) -> None:
        lines(tmp_path / "u.data", ["1\t2\t3\t4", "1\t3\t3\t4", "1\t2\t5\t4"])
        got = read_item_data(tmp_path).interactions
        assert got.histories[0].tolist() == [0, 1] and got.notes[0].startswith("1 repeated rows")
