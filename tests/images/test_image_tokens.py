"""Files of tokens: what is read, what is refused, where decoded pictures go."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from gritvq.images.files import picture_paths
from gritvq.tokens.files import TokenizedImage, read_tokens, write_tokens

ITEMS = [
    TokenizedImage("a.png", (8, 12), torch.arange(6).view(2, 3, 1)),
    TokenizedImage("deep/b", (4, 4), torch.arange(4).view(2, 2)),
]


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=r"expected (a token file|tokens written by)") as error:
        read_tokens(path)
    return str(error.value)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
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
            for item in items:  # what is accepted is well formed
                assert isinstance(item.name, str) and min(item.size) > 0 and len(item.size) == 2
                assert item.tokens.dtype == torch.int64 and item.tokens.ndim in (2, 3)

    def test_what_is_no_file(self, ending: str, tmp_path: Path) -> None:
        path = tmp_path / f"t.{ending}"
        os.mkfifo(path)
        assert "no regular file" in refused(path)  # and does not wait for a writer
        path.unlink()
        path.symlink_to("/dev/zero")
        assert "no regular file" in refused(path)

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


@pytest.mark.parametrize("ending", ["npz", "parquet"])
@pytest.mark.parametrize("labels", [(3, None), ("a cat", "b"), (0.5, 2.0), (None, None)])
def test_labels_stay_beside_their_tokens(labels: tuple[Any, Any], ending: str, tmp_path: Path) -> None:
    items = [item._replace(label=label) for item, label in zip(ITEMS, labels, strict=True)]
    again = read_tokens(write_tokens(tmp_path / f"t.{ending}", items))
    assert [(item.name, item.label) for item in again] == list(zip(("a.png", "deep/b"), labels, strict=True))
    assert all(torch.equal(item.tokens, own.tokens) for item, own in zip(again, ITEMS, strict=True))


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


@pytest.mark.parametrize(
    "name", ["/a", "../a", "a/../../b", "", ".", "a\0b", "x" * 300, "deep/" + "x" * 201, f"{'x' * 201}/a"]
)
def test_names_that_can_be_no_file_below_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="expected picture names"):
        picture_paths(["good.png", name])


def test_every_picture_has_a_file_of_its_own() -> None:
    """Any names from few letters: no two paths are equal, none is a folder of another."""
    chosen = np.random.default_rng(0)
    parts = ["a", "a.png", "a.png.png", "b.jpg", "a.", ".a"]
    for _ in range(300):
        names = ["/".join(chosen.choice(parts, chosen.integers(1, 4))) for _ in range(6)]
        paths = picture_paths(names)
        assert len(set(paths)) == len(names) and all(path.suffix == ".png" for path in paths)
        assert not set(paths) & {folder for path in paths for folder in path.parents}
