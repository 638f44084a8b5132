"""Lists for files of requests: what is written is what the recommender says, and wrong input writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from gritvq.cli import main
from gritvq.export import load_program
from gritvq.items import DepthDecoder, GenerativeRecommender, ParallelDecoder, SemanticIds, iter_requests
from program import wrong
from test_full_disk import contents, room

pytest.importorskip("transformers")

COUNT, SIZES = 40, (5, 6)
KEYS = [f"a{row}" for row in range(COUNT)]
HISTORIES = {f"r{n}": [KEYS[(3 * n + t) % COUNT] for t in range(n % 4)] for n in range(11)}


pytestmark = pytest.mark.usefixtures("own_folder")


def made(kind: Any = DepthDecoder, keys: Any = KEYS) -> GenerativeRecommender:
    torch.manual_seed(0)
    codes = torch.stack([torch.randint(0, size, (COUNT,)) for size in SIZES], 1)
    backbone = kind(SIZES, 8, num_layers=1, num_heads=1, hidden_dim=8)
    return GenerativeRecommender(backbone, SemanticIds(codes, SIZES, keys), priority=torch.rand(COUNT)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained recommender and its catalogue."""
    place = tmp_path_factory.mktemp("model")
    made().save_pretrained(place / "model")
    table = {
        "item": KEYS[::-1],  # in another order than the ids
        "kind": [f"kind {row % 4}" for row in range(COUNT)][::-1],
        "stock": [row % 3 > 0 for row in range(COUNT)][::-1],
    }
    parquet.write_table(pyarrow.table(table), place / "items.parquet")
    return place


def write_requests(path: str, histories: dict[Any, Any] = HISTORIES, names: tuple[str, str] = ("id", "history")) -> str:
    rows = [dict(zip(names, row, strict=True)) for row in histories.items()]
    if path.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.endswith(".jsonl"):
        Path(path).write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        lines = [f'{row[names[0]]},"[{", ".join(map(str, row[names[1]]))}]"' for row in rows]
        Path(path).write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


def lists(path: str = "recommendations.parquet") -> dict[Any, list[tuple[int, Any, float]]]:
    found: dict[Any, list[tuple[int, Any, float]]] = {}
    for row in parquet.read_table(path).to_pylist():
        found.setdefault(row["request"], []).append((row["rank"], row["item"], row["score"]))
    return found


def wanted(recommender: GenerativeRecommender, histories: dict[Any, Any], k: int = 10, **more: Any) -> dict[Any, Any]:
    """One request at a time."""
    found = {}
    for name, history in histories.items():
        rows = recommender.ids.rows_of(history).tolist()
        seen = {"exclude": [rows]} if more.pop("seen", False) else {}
        best = recommender.best([rows], k, **more, **seen)
        more |= {"seen": True} if seen else {}
        keys = [recommender.ids.items[row] for row in best.items[0].tolist() if row >= 0]
        found[name] = [(rank, key, float(best.scores[0, rank - 1])) for rank, key in enumerate(keys, 1)]
    return {name: line for name, line in found.items() if line}


def check(found: dict[Any, Any], expected: dict[Any, Any]) -> None:
    assert list(found) == list(expected)  # in the order of the requests
    for name, line in expected.items():
        assert [entry[:2] for entry in found[name]] == [entry[:2] for entry in line]
        assert [entry[2] for entry in found[name]] == pytest.approx([entry[2] for entry in line], abs=1e-4)


class TestFiles:
    @pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_lists_are_those_of_the_recommender_whatever_the_batches(
        self, folder: Path, ending: str, batch_size: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_requests(f"requests.{ending}")
        told = ["recommend", str(folder / "model"), "--requests", path, "--k", "7", "--batch_size", str(batch_size)]
        assert main(told) == 0
        said = capsys.readouterr()
        check(lists(), wanted(made(), HISTORIES, 7))
        assert "recommendations.parquet" in said.out and "77" in said.out and "recommending" in said.err
        schema = parquet.read_schema("recommendations.parquet")
        assert schema.names == ["request", "rank", "item", "score"]
        assert [str(kind) for kind in schema.types] == ["string", "int32", "string", "float"]
        assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []  # nothing left over
        assert "--overwrite true" in wrong(told, capsys)
        assert main([*told, "--overwrite", "true", "--exact", "true"]) == 0
        check(lists(), wanted(made(), HISTORIES, 7, exact=True))

    def test_keys_and_ids_that_are_numbers_and_columns_of_other_names(self) -> None:
        recommender = made(ParallelDecoder, range(100, 100 + COUNT))
        recommender.save_pretrained("numbers")
        histories = {3: [101, 139], 1: [], 2: [120]}
        for ending in ("parquet", "jsonl", "csv"):
            path = write_requests(f"asked.{ending}", histories, ("user", "items"))
            told = ["recommend", "numbers", "--requests", path, "--id_column", "user", "--history_column", "items"]
            assert main([*told, "--out", f"{ending}.parquet"]) == 0
            expected = wanted(recommender, histories)
            if ending == "csv":  # ids of a CSV file stay text
                expected = {str(name): line for name, line in expected.items()}
            check(lists(f"{ending}.parquet"), expected)

    def test_one_batch_and_one_group_are_in_memory(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gritvq.cli.requests._GROUP", 20)
        path = write_requests("requests.jsonl")
        assert main(["recommend", str(folder / "model"), "--requests", path, "--batch_size", "2", "--k", "10"]) == 0
        groups = parquet.ParquetFile("recommendations.parquet").metadata
        assert groups.num_row_groups == 6 and groups.num_rows == 110
        check(lists(), wanted(made(), HISTORIES))


class TestFilters:
    def test_seen_items_stock_category_and_lists_of_items(self, folder: Path) -> None:
        recommender, model = made(), str(folder / "model")
        path = write_requests("requests.parquet")
        stock, kind = (
            torch.tensor([test(row) for row in range(COUNT)]) for test in (lambda r: r % 3 > 0, lambda r: r % 4 == 2)
        )
        Path("few.txt").write_text("a7\n a9 \n\na30\nunknown\n")
        parquet.write_table(pyarrow.table({"item": ["a7", "a9", "a30"]}), "few.parquet")
        few = torch.isin(torch.arange(COUNT), torch.tensor([7, 9, 30]))
        catalogue = ["--catalogue", str(folder / "items.parquet")]
        for told, expected in (
            (["--exclude_seen", "true"], {"seen": True}),
            ([*catalogue, "--where", "[stock=true]"], {"allowed": stock}),
            ([*catalogue, "--where", "[stock=true,kind=kind 2]"], {"allowed": stock & kind}),
            (["--only", "few.txt"], {"allowed": few}),
            ([*catalogue, "--only", "few.parquet", "--where", "[stock=TRUE]"], {"allowed": few & stock}),
            ([*catalogue, "--where", "[kind=kind 2]", "--exclude_seen", "true"], {"allowed": kind, "seen": True}),
        ):
            for exact in ("false", "true"):
                words = [
                    "recommend",
                    model,
                    "--requests",
                    path,
                    "--overwrite",
                    "true",
                    "--exact",
                    exact,
                    "--beam",
                    "40",
                ]
                assert main([*words, *told]) == 0
                check(lists(), wanted(recommender, HISTORIES, **expected, beam=40))

    def test_a_user_is_filtered_too(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["recommend", str(folder / "model"), "--history", "[a1,a2]", "--k", "40"]
        assert main(words) == 0
        assert " a1 " in capsys.readouterr().out
        assert main([*words, "--exclude_seen", "true"]) == 0
        assert " a1 " not in capsys.readouterr().out
        Path("one.txt").write_text("a7\n")
        assert main([*words, "--only", "one.txt"]) == 0
        told = capsys.readouterr().out
        assert " a7 " in told and " a8 " not in told
        Path("one.txt").write_text("a2\n")
        assert "leave an item" in wrong([*words, "--only", "one.txt", "--exclude_seen", "true"], capsys)

    def test_a_request_that_nothing_is_left_for_has_no_rows(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("one.txt").write_text("a3\n")
        path = write_requests("requests.jsonl", {"x": ["a3"], "y": ["a4"]})
        words = ["recommend", str(folder / "model"), "--requests", path, "--only", "one.txt", "--exclude_seen", "true"]
        assert main(words) == 0
        assert {name: [entry[1] for entry in line] for name, line in lists().items()} == {"y": ["a3"]}
        assert "fewer than 10 items" in capsys.readouterr().out


class TestNewItems:
    @pytest.mark.parametrize("kind", [DepthDecoder, ParallelDecoder])
    def test_added_items_are_asked_about_and_found(self, kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
        recommender = made(kind)
        recommender.save_pretrained("model")
        grown = recommender.ids.add(recommender.ids.codes[:3], ["new0", "new1", "new2"])
        grown.save("grown/ids")
        path = write_requests("requests.jsonl", {"x": ["a3", "new1"], "y": ["a4"]})
        assert "'new1' in the history of request 'x'" in wrong(["recommend", "model", "--requests", path], capsys)
        for ids in ("grown", "grown/ids"):
            told = ["recommend", "model", "--requests", path, "--ids", ids, "--k", "43", "--overwrite", "true"]
            assert main(told) == 0
            assert all({"new0", "new1", "new2"} < {entry[1] for entry in line} for line in lists().values())
        assert main(["recommend", "model", "--history", "[new1]", "--ids", "grown"]) == 0
        other = SemanticIds(recommender.ids.codes.flip(0), SIZES, KEYS)
        other.save("other")
        told = ["recommend", "model", "--requests", path, "--ids", "other", "--out", "no.parquet"]
        assert "was trained on" in wrong(told, capsys) and not Path("no.parquet").exists()


class TestExport:
    def test_a_recommender_becomes_a_program_that_is_checked(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
        recommender = made(ParallelDecoder)
        recommender.save_pretrained("run/recommender")
        recommender.ids.add(recommender.ids.codes[:1], ["new"]).save("grown")
        told = ["export", "run", "--out", "programs", "--k", "4", "--ids", "grown"]
        assert main(told) == 0
        said = capsys.readouterr().out
        assert "41" in said and "256 of 256" in said and "programs/recommender.onnx" in said
        histories = torch.full((1, 20), -1)
        histories[0, :2] = torch.tensor([40, 3])
        items, _ = load_program("programs/recommender.onnx")(histories, torch.arange(41)[None] >= 38)
        assert sorted(items[0].tolist()) == [-1, 38, 39, 40]
        assert "--overwrite true" in wrong(told, capsys)
        assert "no --size for a recommender" in wrong([*told, "--size", "[8,8]"], capsys)
        assert "k >= 1" in wrong(["export", str(folder / "model"), "--k", "0"], capsys)
        SemanticIds(recommender.ids.codes.flip(0), SIZES, KEYS).save("other")
        assert "was trained on" in wrong(["export", str(folder / "model"), "--ids", "other"], capsys)
        assert not Path("exported").exists()


class TestWrongInput:
    @pytest.fixture
    def asks(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
        def asks(path: str, *more: str) -> str:
            before = sorted(Path().iterdir())
            said = wrong(["recommend", str(folder / "model"), "--requests", path, *more], capsys)
            assert sorted(Path().iterdir()) == before and said.startswith("gritvq recommend: error: expected ")
            return said

        return asks

    @pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
    def test_an_unknown_item_is_an_error_or_left_out(
        self, folder: Path, asks: Any, ending: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        histories = {**HISTORIES, "odd": ["a1", "zzz", "a2", "yyy"], "odder": ["zzz"]}
        path = write_requests(f"requests.{ending}", histories)
        said = asks(path, "--batch_size", "3")
        assert "got 'zzz' in the history of request 'odd'" in said and "--unknown skip" in said
        assert main(["recommend", str(folder / "model"), "--requests", path, "--unknown", "skip"]) == 0
        check(lists(), wanted(made(), {**HISTORIES, "odd": ["a1", "a2"], "odder": []}))
        assert "unknown items left out" in (told := capsys.readouterr().out) and "3" in told

    @pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
    def test_columns_that_are_missing(self, asks: Any, ending: str) -> None:
        path = write_requests(f"requests.{ending}", HISTORIES, ("user", "history"))
        assert f"expected one column 'id' in 'requests.{ending}', got user, history" in asks(path)
        assert "'items'" in asks(path, "--id_column", "user", "--history_column", "items")

    @pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
    def test_an_id_twice(self, asks: Any, ending: str) -> None:
        path = f"requests.{ending}"
        rows = [{"id": f"r{n}", "history": ["a1"]} for n in (0, 1, 2, 3, 1)]
        if ending == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif ending == "jsonl":
            Path(path).write_text("\n".join(map(json.dumps, rows)))
        else:
            Path(path).write_text("\n".join(["id,history", *(f"{row['id']},a1" for row in rows)]))
        assert "expected every request once" in (said := asks(path, "--batch_size", "2")) and "got the id 'r1'" in said

    def test_files_without_a_request(self, asks: Any) -> None:
        empty = pyarrow.table(
            {"id": pyarrow.array([], "string"), "history": pyarrow.array([], pyarrow.list_(pyarrow.string()))}
        )
        parquet.write_table(empty, "none.parquet")
        Path("none.csv").write_text("id,history\n")
        Path("none.jsonl").write_text("\n")
        for name in ("none.parquet", "none.csv", "none.jsonl"):
            assert f"at least one request in {name}, got none" in asks(name)
        Path("zero.csv").write_text(""), Path("zero.parquet").write_bytes(b"")
        assert "expected one column 'id' in 'zero.csv', got none" in asks("zero.csv")
        assert "expected a file of requests, got 'zero.parquet'" in asks("zero.parquet")

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("{", "expected a file of requests, got 'bad.jsonl'"),
            ("[1]", "expected a file of requests, got 'bad.jsonl'"),
            ('{"id": null, "history": []}', "got None in row 2"),
            ('{"id": true, "history": []}', "got True in row 2"),
            ('{"id": "b", "history": "a1"}', "history of request 'b' in 'bad.jsonl', got a1"),
            ('{"id": "b", "history": ["a1", null]}', "history of request 'b'"),
            ('{"id": "b", "history": [1.5]}', "history of request 'b'"),
            ('{"id": 7, "history": []}', "all text or all whole numbers, got both"),
        ],
    )
    def test_rows_that_are_no_requests(self, asks: Any, line: str, said: str) -> None:
        Path("bad.jsonl").write_text('{"id": "a", "history": ["a1"]}\n' + line)
        assert said in asks("bad.jsonl")

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (
                "anna,a1,a2",
                "expected 2 cells, one per column, in line 4 of 'bad.csv', got 3; write a history with comma",
            ),
            ("bert", "expected 2 cells, one per column, in line 4 of 'bad.csv', got 1"),
            ("bert,", "expected a history in line 4 of 'bad.csv', got an empty cell; write [] if"),
            ('bert,"  "', "expected a history in line 4 of 'bad.csv', got an empty cell"),
        ],
    )
    def test_lines_of_csv_files_that_are_no_requests(self, asks: Any, line: str, said: str) -> None:
        Path("bad.csv").write_text(f'id,history\n\ncarl,"[a1, a2]"\n{line}\n')
        assert said in asks("bad.csv")

    def test_arguments_that_do_not_fit(self, folder: Path, asks: Any, capsys: pytest.CaptureFixture[str]) -> None:
        path = write_requests("requests.jsonl")
        Path("items.csv").write_text("item,kind\na1,x\n")
        Path("none.txt").write_text("unknown\n")
        Path("requests.txt").write_text("x")
        for more, said in (
            (["--user", "u1"], "either --user, --history or --requests, got user and requests"),
            (["--out", "lists.csv"], "expected a .parquet file to write"),
            (["--column", "kind"], "no --column for a file of requests"),
            (["--batch_size", "0"], "batch_size >= 1"),
            (["--k", "0"], "k >= 1"),
            (["--beam", "0"], "beam >= 1"),
            (["--where", "[kind=x]"], "expected --catalogue"),
            (["--catalogue", "items.csv"], "no --catalogue for a file of requests without --where, got 'items.csv'"),
            (["--item", "key"], "no --item for lists without --only and --catalogue, got 'key'"),
            (["--where", "[kind]", "--catalogue", "items.csv"], "as [COLUMN=VALUE,...], got 'kind'"),
            (["--where", "[color=x]", "--catalogue", "items.csv"], "expected a column of kind, got 'color'"),
            (["--where", "[kind=y]", "--catalogue", "items.csv"], "leave an item to recommend, got --where"),
            (["--only", "none.txt"], "leave an item to recommend, got --only"),
            (["--only", "nowhere.txt"], "nowhere.txt"),
            (["--ids", "nowhere"], "nowhere"),
            (["--device", "nothing"], "expected a device"),
        ):
            assert said in asks(path, *more)
        assert "ending in .parquet, .csv, .jsonl, got 'requests.txt'" in asks("requests.txt")
        assert "does not exist" in asks("nowhere.csv")
        shutil.copy(write_requests("mine.parquet"), "again.parquet")
        assert "another file to write" in asks("again.parquet", "--out", "./again.parquet", "--overwrite", "true")
        said = wrong(["recommend", str(folder / "model"), "--history", "[a1]", "--unknown", "skip"], capsys)
        assert "no --unknown for a single user" in said

    @pytest.mark.parametrize("size", [0, 200, 1000])
    def test_a_full_disk_keeps_the_old_lists(self, folder: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
        path = write_requests("requests.jsonl")
        told = ["recommend", str(folder / "model"), "--requests", path, "--overwrite", "true"]
        assert main(told) == 0
        before = contents()
        capsys.readouterr()
        with room(size):
            assert "expected room on the disk to write" in wrong([*told, "--k", "20"], capsys)
        assert contents() == before

    def test_a_recommender_of_numbers_takes_no_words(self, asks: Any, capsys: pytest.CaptureFixture[str]) -> None:
        made(keys=range(COUNT)).save_pretrained("numbers")
        path = write_requests("requests.jsonl", {"x": ["one"]})
        assert "whole numbers as keys, as in the data, got 'one'" in wrong(
            ["recommend", "numbers", "--requests", path], capsys
        )


def test_requests_are_read_as_a_stream() -> None:
    path = write_requests("requests.jsonl")
    with Path(path).open("a") as file:
        file.write("no json")
    rows = iter_requests(path)
    assert [next(rows).id for _ in HISTORIES] == list(HISTORIES)
    with pytest.raises(ValueError, match="expected a file of requests"):
        next(rows)
