"""Files of tokens: written as a stream, whole or not at all; what is read, what is refused."""

from __future__ import annotations

import os
import struct
import weakref
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from gritvq.tokens import TokenRow, iter_tokens, read_tokens, write_tokens

OLD = Path(__file__).parents[1] / "artefacts" / "0.1.0"  # written before there were columns
ENDINGS = ["npz", "parquet"]
ITEMS = [
    TokenRow("a.png", torch.arange(6).view(2, 3, 1), {"height": 8, "width": 12}),
    TokenRow("deep/b", torch.arange(4).view(2, 2), {"height": 4, "width": 4}),
]


def assert_same(rows: Iterable[TokenRow], expected: Iterable[TokenRow]) -> None:
    for row, own in zip(rows, expected, strict=True):
        assert row.name == own.name and torch.equal(row.tokens, own.tokens) and row.tokens.dtype == torch.int64
        assert row.columns == {name: value for name, value in own.columns.items() if value is not None}


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=r"expected (a token file|tokens written by)") as error:
        read_tokens(path)
    return str(error.value)


@pytest.mark.parametrize("ending", ENDINGS)
class TestDamagedFiles:
    def test_any_byte_may_be_another(self, ending: str, tmp_path: Path) -> None:
        path = write_tokens(tmp_path / f"t.{ending}", ITEMS)
        whole = path.read_bytes()
        chosen = np.random.default_rng(0)
        for trial in range(150):
            content = bytearray(whole)
            for place in chosen.integers(len(whole), size=1 + trial % 3):
                content[place] = chosen.integers(256)
            path.write_bytes(content[: len(whole) if trial % 2 else chosen.integers(len(whole))])
            try:
                items = read_tokens(path)
            except ValueError:
                continue
            assert_same(items, ITEMS)  # what is accepted is what was written

    def test_what_is_no_file(self, ending: str, tmp_path: Path) -> None:
        path = tmp_path / f"t.{ending}"
        os.mkfifo(path)
        assert "not a regular file" in refused(path)  # and does not wait for a writer
        path.unlink()
        path.symlink_to("/dev/zero")
        assert "not a regular file" in refused(path)

    @pytest.mark.parametrize(
        ("name", "size", "tokens"),
        [
            ("a", (8, 0), np.zeros((2, 2, 1), np.int64)),
            ("a", (8, -4), np.zeros((2, 2, 1), np.int64)),
            ("a", (8, 8), np.zeros((2, 2, 1), np.float32)),
            ("a", (8, 8), np.zeros((2, 0, 1), np.int64)),
            ("a", (8, 8), np.zeros(4, np.int64)),
            ("a", (8, None), np.zeros((2, 2, 1), np.int64)),
            (None, (8, 8), np.zeros((2, 2, 1), np.int64)),
        ],
    )
    def test_other_content(self, name: Any, size: Any, tokens: np.ndarray, ending: str, tmp_path: Path) -> None:
        path = tmp_path / f"t.{ending}"
        if ending == "npz":
            sides = np.array([float("nan") if side is None else side for side in size])
            np.savez(path, **{f"tokens/{name}" if name else "other": tokens, f"size/{name}": sides})
        else:
            shape = (*tokens.shape, 1, 1)[:3]
            row = dict(zip(("token_height", "token_width", "channels"), shape, strict=True), name=name)
            row |= {"height": size[0], "width": size[1], "tokens": tokens.flatten().tolist() or [None]}
            parquet.write_table(pa.Table.from_pylist([row if tokens.ndim > 1 else {**row, "channels": None}]), path)
        refused(path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("labels", [(3, None), ("a cat", "b"), (0.5, 2.0), (None, None), (True, False), (2**60, 1)])
def test_labels_stay_beside_their_tokens(labels: tuple[Any, Any], ending: str, tmp_path: Path) -> None:
    items = [row._replace(columns={**row.columns, "label": n}) for row, n in zip(ITEMS, labels, strict=True)]
    again = read_tokens(write_tokens(tmp_path / f"t.{ending}", items))
    assert_same(again, items)
    assert [type(row.columns.get("label")) for row in again] == [type(label) for label in labels]


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_number_of_axes_and_any_plain_columns(ending: str, tmp_path: Path) -> None:
    shapes = [(4,), (5, 2), (2, 3, 1), (2, 1, 3, 2), (1, 1, 1, 1, 1)]
    rows = [TokenRow(f"{n}", torch.randint(-1, 2**50, shape), {f"own {n}": "ä"}) for n, shape in enumerate(shapes)]
    assert_same(iter_tokens(write_tokens(tmp_path / f"t.{ending}", rows)), rows)


@pytest.mark.parametrize("ending", ENDINGS)
def test_neither_writing_nor_reading_holds_all_rows(ending: str, tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def held() -> int:
        return sum(each() is not None for each in alive)

    def rows() -> Iterator[TokenRow]:
        nonlocal most
        for number in range(12):
            tokens = torch.full((512, 512, 1), number)
            alive.append(weakref.ref(tokens))
            yield TokenRow(f"{number}", tokens)
            most = max(most, held())

    path = write_tokens(tmp_path / f"t.{ending}", rows())
    assert most <= 5  # four make a row group
    alive.clear()
    for number, row in enumerate(iter_tokens(path)):
        alive.append(weakref.ref(row.tokens))
        assert held() <= 2 and row.tokens.eq(number).all()
    assert len(alive) == 12
    if ending == "parquet":
        assert parquet.ParquetFile(path).num_row_groups == 3


def test_columns_that_turn_up_or_become_wider_after_the_first_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gritvq.tokens.files._TOKENS", 1)  # every row is a group of its own
    tokens = torch.arange(6).view(2, 3, 1)
    columns: list[dict[str, Any]] = [{"n": 1}, {"n": 2, "label": "a"}, {"n": 0.5}, {"label": "b"}]
    rows = [TokenRow(f"{number}", tokens, own) for number, own in enumerate(columns)]
    path = write_tokens(tmp_path / "t.parquet", iter(rows))
    assert_same(iter_tokens(path), rows)
    table = parquet.read_table(path, columns=["n", "label"])
    assert table.to_pydict() == {"n": [1.0, 2.0, 0.5, None], "label": [None, "a", None, "b"]}
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
    rows.append(TokenRow("4", tokens, {"n": "text"}))
    with pytest.raises(ValueError, match="got several kinds in one column"):
        write_tokens(path, rows)
    assert_same(iter_tokens(path), rows[:4])
    assert_same(iter_tokens(write_tokens(tmp_path / "t.npz", rows)), rows)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_ends_half_way_leaves_the_old_file(error: type[BaseException], ending: str, tmp_path: Path) -> None:
    path = write_tokens(tmp_path / f"t.{ending}", ITEMS)

    def rows() -> Iterator[TokenRow]:
        yield TokenRow("new", torch.zeros(2**20, 1).long())
        yield TokenRow("newer", torch.zeros(2**20, 1).long(), {"label": 3})
        raise error

    with pytest.raises(error):
        write_tokens(path, rows())
    assert_same(iter_tokens(path), ITEMS)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ENDINGS)
def test_damage_is_noticed_before_the_row_is_handed_out(ending: str, tmp_path: Path) -> None:
    """A file that is whole as far as its format knows, with the tokens of one row changed."""
    rows = [TokenRow(f"{number}", torch.full((3, 1), number)) for number in range(5)]
    path = write_tokens(tmp_path / f"t.{ending}", rows)
    if ending == "parquet":
        table = parquet.read_table(path)
        tokens = [[7, 7, 7] if number == 3 else own for number, own in enumerate(table["tokens"].to_pylist())]
        parquet.write_table(table.set_column(table.schema.get_field_index("tokens"), "tokens", [tokens]), path)
    else:
        with np.load(path) as file:
            np.savez(path, **{**file, "tokens/3": np.full((3, 1), 7)})
    found = iter_tokens(path)
    assert [next(found).name for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="the checksum of '3' differs"):
        next(found)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 1, 3], [1, 2, 3], [0, 2, 1, 3], []])
def test_rows_that_are_missing_or_in_another_order(kept: list[int], ending: str, tmp_path: Path) -> None:
    path = write_tokens(tmp_path / f"t.{ending}", [TokenRow(f"{n}", torch.full((3, 1), n)) for n in range(4)])
    if ending == "parquet":
        parquet.write_table(parquet.read_table(path).take(pa.array(kept, pa.int64())), path)
    else:
        with np.load(path) as file:
            np.savez(path, **{f"{key}/{n}": file[f"{key}/{n}"] for n in kept for key in ("tokens", "columns")})
    refused(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_of_the_first_version_are_read(ending: str, tmp_path: Path) -> None:
    expected = [
        TokenRow("a.png", torch.arange(6).view(2, 3, 1), {"height": 8, "width": 12, "label": "cat"}),
        TokenRow("deep/b.jpg", torch.arange(4).view(2, 2), {"height": 7, "width": 4}),
        TokenRow("c", torch.arange(32).view(4, 4, 2) - 1, {"height": 16, "width": 16, "label": "dog"}),
    ]
    assert_same(iter_tokens(OLD / f"tokens.{ending}"), expected)
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        table = parquet.read_table(OLD / "tokens.parquet")
        changed = table.set_column(table.schema.get_field_index("height"), "height", [[8, 7, 17]])
        parquet.write_table(changed, path)
    else:
        with np.load(OLD / "tokens.npz") as file:
            np.savez(path, **{**file, "size/c": np.array([17, 16])})
    assert "the checksum differs" in refused(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (TokenRow("a", torch.zeros(2, 1)), r"expected integers \(\*axes, Q\) for 'a'"),
        (TokenRow("a", torch.zeros(2, 0).long()), r"expected integers \(\*axes, Q\) for 'a'"),
        (TokenRow("a", torch.tensor(3)), r"expected integers \(\*axes, Q\) for 'a'"),
        (TokenRow(3, torch.zeros(2, 1).long()), "expected a name, got 3"),  # type: ignore[arg-type]
        (TokenRow("a", torch.zeros(2, 1).long(), {"tokens": 3}), "expected columns of text or numbers"),
        (TokenRow("a", torch.zeros(2, 1).long(), {"size": (3, 4)}), "expected columns of text or numbers"),  # type: ignore[dict-item]
        (TokenRow("a", torch.zeros(2, 1).long(), {"n": 2**63}), "expected integers of 64 bits"),
    ],
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_that_cannot_be_written(row: TokenRow, message: str, ending: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_tokens(tmp_path / f"t.{ending}", [*ITEMS, row])
    with pytest.raises(ValueError, match="expected tokens of at least one sample, got none"):
        write_tokens(tmp_path / f"t.{ending}", [])
    assert not list(tmp_path.iterdir())


def test_two_rows_of_one_name(tmp_path: Path) -> None:
    assert_same(read_tokens(write_tokens(tmp_path / "t.parquet", [ITEMS[0]] * 2)), [ITEMS[0]] * 2)
    with pytest.raises(ValueError, match=r"got 'a\.png' twice; write a \.parquet file"):
        write_tokens(tmp_path / "t.npz", [ITEMS[0]] * 2)


def test_zip_files_that_cannot_be_unpacked(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "t.npz", ITEMS)
    whole = path.read_bytes()
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):  # rare, but right
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "u.npz", "w", kind) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert [item.name for item in read_tokens(tmp_path / "u.npz")] == ["a.png", "deep/b"]
    start = whole.index(b"PK\x01\x02")
    for offset, value in ((10, 9), (10, 99), (8, 1)):  # deflate64, a method that does not exist, a password
        content = bytearray(whole)
        struct.pack_into("<H", content, start + offset, value)
        path.write_bytes(content)
        assert "(" in refused(path)
