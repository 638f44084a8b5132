"""Tar files of WebDataset: pictures and texts in them, and what is no such file."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bulk_parts import png, tar
from gritvq.files import tar_samples
from gritvq.images import ImageData, open_pictures
from gritvq.text import Corpus, Reading


def test_samples_are_what_tarfile_finds(tmp_path: Path) -> None:
    """With names of any length, in either format; links and hidden files are passed over."""
    contents = {"a.png": b"1", "a.cls": b"22", "b.seg.png": b"", f"deep/{'x' * 180}.txt": b"y" * 1000, "./c.JPG": b"5"}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            for name, content in contents.items():
                if form == tarfile.USTAR_FORMAT and len(name) > 100:
                    name = name.replace("x" * 100, "")
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("z.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            archive.addfile(tarfile.TarInfo(".hidden.png"))
        found = dict(tar_samples(path))
        raw = path.read_bytes()
        read = {k: {e: raw[at : at + n] for e, (at, n) in parts.items()} for k, parts in found.items()}
        long = f"deep/{'x' * (80 if form == tarfile.USTAR_FORMAT else 180)}"
        assert read == {
            "a": {"png": b"1", "cls": b"22"},
            "b": {"seg.png": b""},
            long: {"txt": b"y" * 1000},
            "c": {"jpg": b"5"},
        }


@pytest.mark.parametrize("damage", ["cut", "end", "gz", "text", "twice", "apart", "header"])
def test_what_is_no_such_file(damage: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": png(0), "b.png": png(1), "c.png": png(2)})
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:1000])
    elif damage == "end":
        path.write_bytes(content[: 3 * 1024])
    elif damage == "gz":
        path.write_bytes(gzip.compress(bytes(content)))
    elif damage == "text":
        path.write_bytes(b"no tar file" * 100)
    elif damage == "header":
        content[1024 + 100] ^= 255
        path.write_bytes(content)
    else:
        with tarfile.open(path, "a") as archive:
            archive.addfile(tarfile.TarInfo("a.png" if damage == "twice" else "a.cls"))
    with pytest.raises(ValueError, match="expected an uncompressed tar file"):
        open_pictures(path)


class TestPictures:
    def test_in_order_with_labels_and_splits(self, tmp_path: Path) -> None:
        for split, numbers in (("train", (0, 1, 2)), ("val", (3, 4))):
            files = {"readme.txt": b"no picture"}
            for number in numbers:
                files |= {f"{number}.png": png(number), f"{number}.cls": f"{number}\n".encode()}
                files |= {f"{number}.caption": b"a cat", f"{number}.mask.png": png(9)}
            tar(tmp_path / split / "000.tar", files)
        pictures = pickle.loads(pickle.dumps(open_pictures(tmp_path)))
        assert [picture.name for picture in pictures] == [
            *(f"train/000/{n}" for n in range(3)),
            "val/000/3",
            "val/000/4",
        ]
        assert [picture.label for picture in pictures] == list(range(5))
        for number, picture in enumerate(pictures):
            expected = np.asarray(Image.open(io.BytesIO(png(number))))
            np.testing.assert_array_equal(picture.pixels.permute(1, 2, 0), expected)
        held_out = open_pictures(tmp_path, split="validation", label="caption")
        assert [picture.label for picture in held_out] == ["a cat", "a cat"]
        masks = list(open_pictures(tmp_path, column="mask.png"))
        assert len(masks) == 5 and all(mask.pixels.equal(masks[0].pixels) for mask in masks)
        batch = next(iter(ImageData(str(tmp_path), batch_size=3).train_dataloader()))
        assert batch.shape == (3, 3, 8, 8)

    def test_more_files_than_are_remembered(self, tmp_path: Path) -> None:
        for number in range(7):
            tar(tmp_path / f"{number}.tar", {f"{n}.png": png(10 * number + n) for n in range(3)})
        pictures = open_pictures(tmp_path)
        for index in (0, 20, 1, 19, 5, 0, 11):
            expected = np.asarray(Image.open(io.BytesIO(png(10 * (index // 3) + index % 3))))
            np.testing.assert_array_equal(pictures[index].pixels.permute(1, 2, 0), expected)
        assert len(pictures.source.tables[0][1].index.held) == 4  # type: ignore[attr-defined]

    def test_pictures_that_are_files_come_first(self, tmp_path: Path) -> None:
        tar(tmp_path / "backup.tar", {"a.png": png(0)})
        (tmp_path / "b.png").write_bytes(png(1))
        assert [picture.name for picture in open_pictures(tmp_path)] == ["b.png"]

    def test_none(self, tmp_path: Path) -> None:
        tar(tmp_path / "a.tar", {"a.txt": b""})
        with pytest.raises(ValueError, match=r"expected pictures in .*, got none in 1 tar files"):
            open_pictures(tmp_path)

    def test_a_file_that_changes_meanwhile(self, tmp_path: Path) -> None:
        pictures = open_pictures(tar(tmp_path / "a.tar", {"a.png": png(0)}), strict=True)
        tar(tmp_path / "a.tar", {"a.png": png(0), "b.png": png(1)})
        with pytest.raises(ValueError, match="leave the file as it is"):
            list(pictures)


class TestTexts:
    def test_as_files_or_objects(self, tmp_path: Path) -> None:
        files = {"a.txt": "caf\u00e9\r\nb".encode(), "b.json": json.dumps({"text": "two", "own": "2"}).encode()}
        tar(tmp_path / "a.tar", {**files, "c.cls": b"1", "d.txt": b" ", "e.json": b'{"text": null}'})
        assert list(Corpus(str(tmp_path))) == ["caf\u00e9\nb", "two"]
        places = [place for _, place in Corpus(str(tmp_path / "a.tar")).with_places()]
        assert places[0].endswith("a.tar, a.txt") and places[1].endswith("a.tar, b.json, row 1")
        tar(tmp_path / "a.tar", {"a.txt": b"one", "a.caption": b"two"})
        assert list(Corpus(str(tmp_path), Reading(column="caption"))) == ["two"]
        (tmp_path / "b.txt").write_text("three")
        assert list(Corpus(str(tmp_path))) == ["three"]  # files that are no archive come first

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"a.png": b""}, "expected files that end with"),
            ({"a.txt": b"\xff"}, "expected text in utf-8"),
            ({"a.json": b"{"}, "expected JSON in"),
            ({"a.json": b"[]"}, "expected the column 'text'"),
        ],
    )
    def test_wrong(self, files: dict[str, bytes], message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            list(Corpus(str(tar(tmp_path / "a.tar", files))))
