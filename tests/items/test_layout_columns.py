"""Which column of published item data is which: ratings of Amazon without a header, other names in RecBole's files."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gritvq.items import convert_item_data, read_catalogue, read_interactions, read_item_data
from test_layouts import EVENTS, amazon_key, lines, write_100k, write_ratings


class TestRatingsWithoutHeader:
    """Of Amazon, 2014 and 2018."""

    def test_books_and_lines_that_do_not_tell(self, tmp_path: Path) -> None:
        rows = ["anonymous,x,3.0,5", "A39HTATAQ9V7YF,020561646X,5.0,7", "A39HTATAQ9V7YF,B00LORWRJA,1.0,6"]
        lines(tmp_path / "ratings_Books.csv", [*rows, "AZ,9780205616466,2.0,1405382400"])
        got = read_interactions(tmp_path / "ratings_Books.csv")
        assert got.user_keys == ("A39HTATAQ9V7YF", "AZ", "anonymous")
        assert got.item_keys == ("020561646X", "9780205616466", "B00LORWRJA", "x")
        assert [row.tolist() for row in got.histories] == [[2, 0], [1], [3]]
        swapped = [",".join([row.split(",")[1], row.split(",")[0], *row.split(",")[2:]]) for row in rows]
        lines(tmp_path / "Books.csv", [f'"{swapped[2].replace(",", chr(34) + "," + chr(34))}"', *swapped[:2]])
        got = read_interactions(tmp_path / "Books.csv")
        assert got.user_keys == ("A39HTATAQ9V7YF", "anonymous") and got.item_keys == ("020561646X", "B00LORWRJA", "x")

    def test_metadata_of_either_edition_belongs_to_it(self, tmp_path: Path) -> None:
        write_ratings(tmp_path, EVENTS, [30], "ratings_X.csv")
        convert_item_data(tmp_path, tmp_path / "out")
        written = pq.read_table(tmp_path / "out" / "interactions.parquet")
        assert written["user"].to_pylist()[:2] == [amazon_key("u", 2), amazon_key("u", 1)]
        assert written["timestamp"].to_pylist()[:2] == [9, 7] and written["rating"].to_pylist()[:2] == [4.0, 2.5]
        assert pq.read_table(tmp_path / "out" / "items.parquet")["title"].to_pylist() == [None, None, "Thing 30"]
        write_ratings(tmp_path, EVENTS, [30], "X.csv")
        with pytest.raises(ValueError, match=r"one data set in .*, got X\.csv, ratings_X\.csv; name one file"):
            read_item_data(tmp_path)

    @pytest.mark.parametrize(
        ("rows", "found"),
        [
            (["1,2,5.0,7", "3,4,1.0,8"], "neither in '1,2,5.0,7'"),
            (["B00LORWRJA,B00LORWRJB,5.0,7"], "neither in 'B00LORWRJA,B00LORWRJB,5.0,7'"),
            (["A39HTATAQ9V7YF,x,5.0,7", "B00LORWRJA,x,5.0,7"], "some of both"),
        ],
    )
    def test_undecided(self, rows: list[str], found: str, tmp_path: Path) -> None:
        lines(tmp_path / "ratings_X.csv", rows)
        for read in (read_item_data, read_interactions):
            with pytest.raises(ValueError, match="expected lines that begin with a user") as error:
                read(tmp_path / "ratings_X.csv")
            assert f"which has no header, got {found}; add the header user_id,parent_asin," in str(error.value)
        for header, users in (("user_id,parent_asin", 0), ("parent_asin,user_id", 1)):  # as the message says
            lines(tmp_path / "ratings_X.csv", [f"{header},rating,timestamp", *rows])
            got = read_interactions(tmp_path / "ratings_X.csv")
            assert set(got.user_keys) == {row.split(",")[users] for row in rows}

    def test_other_tables_without_header_are_left_alone(self, tmp_path: Path) -> None:
        write_100k(tmp_path, EVENTS, [30])
        lines(tmp_path / "prices.csv", ["1,2,3.5,4", "2,3,4.5,5"])
        lines(tmp_path / "stock.csv", ["B00LORWRJA,7,4"])
        lines(tmp_path / "events.csv", ["1500000000,23,4.5,7"])  # a time may look like the number of a book
        lines(tmp_path / "names.csv", ["B00LORWRJA,A39HTATAQ9V7YF,soap,4"])
        assert read_item_data(tmp_path).catalogue.keys == (4, 5, 30)
        with pytest.raises(ValueError, match=r"expected a column 'user' in .*prices"):
            read_interactions(tmp_path / "prices.csv")

    def test_bad_lines(self, tmp_path: Path) -> None:
        for line, message in (
            ("A39HTATAQ9V7YF,B00LORWRJA,5.0", "4 cells separated by ',' in line 2 of .*got 3 in"),
            (",B00LORWRJA,5.0,7", "a text as 'user_id' in line 2 of .*got ''"),
            ("A39HTATAQ9V7YF,B00LORWRJA,good,7", "a number as 'rating' in line 2 of .*got 'good'"),
            ("A39HTATAQ9V7YF,B00LORWRJA,5.0,7.5", "a whole number as 'timestamp' in line 2 of"),
        ):
            lines(tmp_path / "X.csv", ["A39HTATAQ9V7YF,B00LORWRJA,5.0,7", line])
            with pytest.raises(ValueError, match=message):
                read_interactions(tmp_path / "X.csv")


class TestRecBole:
    @pytest.mark.parametrize(
        ("user", "item", "time"),
        [
            ("uid:token", "iid:token", "time:float"),
            ("session_id:token", "product_id:token", "ts:float"),
            ("userID:token", "itemID:token", "Time:float"),
            ("user:token", "item:token", "timestamp:float"),
        ],
    )
    def test_usual_names(self, user: str, item: str, time: str, tmp_path: Path) -> None:
        lines(tmp_path / "m.inter", ["\t".join((time, user, item)), "2\ta\ty", "1\ta\tx"])
        lines(tmp_path / "m.item", [f"name:token\t{item}", "Thing\ty"])
        got = read_item_data(tmp_path)
        assert got.interactions.user_keys == ("a",) and got.interactions.histories[0].tolist() == [0, 1]
        assert got.catalogue.keys == ("x", "y") and got.catalogue.columns["title"] == [None, "Thing"]
        convert_item_data(tmp_path, tmp_path / "out")
        assert pq.read_table(tmp_path / "out" / "interactions.parquet").to_pydict() == {
            "timestamp": [2.0, 1.0],
            "user": ["a", "a"],
            "item": ["y", "x"],
        }

    def test_names_that_are_asked_for(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """As RecBole's own configuration names them; of .item files, too."""
        rows = ["listener:token\ttrack:token\theard:float\tday:float", "a\ty\t1\t9", "a\tx\t2\t8"]
        lines(tmp_path / "m.inter", rows)
        lines(tmp_path / "m.item", ["name:token\ttrack:token", "Song\tx", "Unheard\tz"])
        with pytest.raises(ValueError, match=r"one column 'user_id' in line 1 of .*got 0 in .*column as user, or"):
            read_item_data(tmp_path)
        with pytest.raises(ValueError, match=r"one column 'item_id' in line 1 of .*column as item, or correct"):
            read_item_data(tmp_path, user="listener")
        names = {"user": "listener", "item": "track"}
        got = read_item_data(tmp_path, **names, order="heard")
        assert "no column" not in caplog.text and got.interactions.user_keys == ("a",)
        assert got.catalogue.keys == ("x", "y") and got.interactions.histories[0].tolist() == [1, 0]
        assert got.catalogue.columns == {
            "name": ["Song", None],
            "title": ["Song", None],
            "item_text": ["Song", "y"],
        }
        alone = read_interactions(tmp_path / "m.inter", **names, order=("day",))
        assert alone.histories[0].tolist() == [0, 1]
        assert read_item_data(tmp_path, **names).interactions.notes[0].startswith("no column 'timestamp'")
        assert read_catalogue(tmp_path / "m.item", item="track").keys == ("x", "z")
        assert convert_item_data(tmp_path, tmp_path / "out", **names) == {"events": 2, "users": 1, "items": 2}
        again = read_item_data(tmp_path / "out", order="heard")  # no more names to give
        assert again.interactions.user_keys == ("a",) and again.catalogue == got.catalogue
        assert again.interactions.histories[0].tolist() == [1, 0]
        with pytest.raises(ValueError, match=r"expected a column 'heart' in .*; name the right one"):
            read_item_data(tmp_path, **names, order="heart")

    def test_a_name_that_is_taken(self, tmp_path: Path) -> None:
        lines(tmp_path / "m.inter", ["listener:token\tuser:token\titem_id:token", "a\tb\ty"])
        with pytest.raises(ValueError, match=r"no column 'user' beside .*got listener, user, item; rename it"):
            convert_item_data(tmp_path, tmp_path / "out", user="listener")
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

    def test_own_names_come_before_usual_ones(self, tmp_path: Path) -> None:
        header = "session_id:token\tuser_id:token\tproduct_id:token\titem_id:token\ttime:float\ttimestamp:float"
        lines(tmp_path / "m.inter", [header, "s\ta\tp\tx\t1\t2", "t\ta\tp\ty\t2\t1"])
        got = read_interactions(tmp_path / "m.inter")
        assert got.user_keys == ("a",) and got.item_keys == ("x", "y") and got.histories[0].tolist() == [1, 0]
        got = read_interactions(tmp_path / "m.inter", user="session_id", item="product_id")
        assert got.user_keys == ("s", "t") and got.item_keys == ("p",)
        assert read_interactions(tmp_path / "m.inter", user="user_id", order="time").histories[0].tolist() == [0, 1]
        lines(tmp_path / "m.inter", ["uid:token\tsession_id:token\titem_id:token", "a\ts\tx"])
        with pytest.raises(ValueError, match=r"one column 'user_id' .*got 2 in .*; give .* column as user"):
            read_interactions(tmp_path / "m.inter")
        assert read_interactions(tmp_path / "m.inter", user="uid").user_keys == ("a",)
        lines(tmp_path / "m.inter", ["user_id:token\titem_id:token\ttime:token", "a\tx\tMonday"])
        assert read_interactions(tmp_path / "m.inter").notes[0].startswith("no column 'timestamp'")
