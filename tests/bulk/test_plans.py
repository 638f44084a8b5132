"""Whose tokens are in a folder: plans that tell data and settings apart, files that are lost or of nobody."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from bulk_parts import KINDS, NUM, of_pictures, picture_tokenizer, pictures, png, tar
from gritvq.bulk import ItemVectors, PictureWork, TextWork, VectorWork, Work, encode_shards
from gritvq.bulk import vectors as vectors_module
from gritvq.cli import main
from gritvq.images import open_pictures
from gritvq.items import ResidualKMeans
from gritvq.text import Corpus
from gritvq.tokens import read_tokens, token_files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def differs(one: Work, other: Work, *names: str) -> None:
    """The digest of the data, or else exactly these settings."""
    first, second = one.plan(4), other.plan(4)
    assert first["tokenizer"] == second["tokenizer"]
    assert (first["data"] == second["data"]) is bool(names)
    own, others = first["settings"], second["settings"]
    assert own.keys() == others.keys() and {name for name in own if own[name] != others[name]} == set(names)


class TestPictures:
    @pytest.fixture
    def opened(self) -> Callable[..., Work]:
        """Pictures as work, with one tokenizer."""
        tokenizer = picture_tokenizer()
        return lambda path, **how: PictureWork(tokenizer, open_pictures(path, **how), "data")

    @pytest.mark.parametrize("kind", ["parquet", "tar"])
    def test_columns_and_limits_are_settings(self, kind: str, opened: Callable[..., Work], tmp_path: Path) -> None:
        path = tmp_path / f"a.{kind}"
        if kind == "tar":
            tar(path, {f"0.{name}": png(seed) for seed, name in enumerate(("png", "other.png", "cls", "second"))})
        else:
            own = {"image": [png(0)], "other.png": [png(1)], "label": [1], "second": [2]}
            parquet.write_table(pa.table(own), path)
        whole = opened(path)
        differs(whole, opened(path, column="other.png"), "column")
        differs(whole, opened(path, label="second"), "label")
        differs(whole, opened(path, max_pixels=10), "max_pixels")
        differs(whole, opened(path, max_bytes=10), "max_bytes")
        assert opened(path).plan(4) == whole.plan(4)

    @pytest.mark.usefixtures("hub_in_reach")
    def test_data_sets_of_the_hub_have_names(
        self, opened: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = pytest.importorskip("datasets", reason="the extra images is not installed")
        rows = datasets.Dataset.from_dict({"image": [png(0)] * 3, "label": [1] * 3}).cast_column(
            "image", datasets.Image()
        )
        monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=rows))
        differs(opened("one/cats"), opened("one/dogs"))
        differs(opened("one/cats"), opened("one/cats", label="none"), "label")
        assert opened("one/cats").plan(4) == opened("one/cats").plan(4)

    def test_pictures_in_memory_have_pixels(self, opened: Callable[..., Work]) -> None:
        generator = torch.Generator().manual_seed(0)
        one = [torch.randint(256, (3, 8, 8), generator=generator, dtype=torch.uint8) for _ in range(3)]
        other = [own.clone() for own in one]
        assert opened(one).plan(4) == opened(other).plan(4)
        other[2][0, 7, 7] ^= 1
        differs(opened(one), opened(other))

    def test_parts_of_the_same_length(self, tmp_path: Path) -> None:
        whole, tokenizer = open_pictures(pictures(tmp_path)), picture_tokenizer()
        parts = [
            PictureWork(tokenizer, whole.part(numbers), "data") for numbers in ([0, 1], [2, 3], range(2), range(2, 4))
        ]
        differs(parts[0], parts[1])
        differs(parts[2], parts[3])

    def test_folders_of_files_count(self, opened: Callable[..., Work], tmp_path: Path) -> None:
        for name in ("data/cat/a.png", "data/cat/b.png", "data/dog/c.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(png(0))
        before = opened(tmp_path / "data").plan(4)
        shutil.move(tmp_path / "data", tmp_path / "moved")  # the whole may move
        assert opened(tmp_path / "moved").plan(4) == before
        os.replace(tmp_path / "moved/cat/b.png", tmp_path / "moved/dog/b.png")  # in the same order
        assert opened(tmp_path / "moved").plan(4)["data"] != before["data"]


def test_texts_have_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS["texts"](tmp_path).tokenizer
    monkeypatch.setattr("gritvq.text.corpus._hub_rows", lambda name: [{"text": name}] * len(name))
    works = [TextWork(tokenizer, Corpus(name)) for name in ("one/cats", "one/dogs", "one/cats")]
    differs(works[0], works[1])
    assert works[0].plan(4) == works[2].plan(4)
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "x.txt").write_text("text")
    first = TextWork(tokenizer, Corpus(str(tmp_path / "data"))).digest()
    os.replace(tmp_path / "data" / "a", tmp_path / "data" / "b")
    assert TextWork(tokenizer, Corpus(str(tmp_path / "data"))).digest() != first


def test_vectors_have_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "a" / "x.npy", np.eye(4, dtype=np.float32))
    tokenizer = ResidualKMeans(codebook_size=2, num_levels=1).fit(np.eye(4, dtype=np.float32))
    first = VectorWork(tokenizer, ItemVectors(tmp_path)).digest()
    os.replace(tmp_path / "a" / "x.npy", tmp_path / "b" / "x.npy")
    assert VectorWork(tokenizer, ItemVectors(tmp_path)).digest() != first


class TestFolder:
    @pytest.mark.parametrize("damaged", [False, True])
    def test_lost_files_are_made_again(self, damaged: bool, tmp_path: Path) -> None:
        """As the messages of readers say, and the others are kept."""
        work, out = of_pictures(pictures(tmp_path / "shards")), tmp_path / "out"
        totals = encode_shards(work, out, 4)
        whole, times = contents(out), {path.name: path.stat().st_mtime_ns for path in token_files(out)}
        lost = out / "tokens-00003.parquet"
        if damaged:
            lost.write_bytes(lost.read_bytes()[:-40])
            assert encode_shards(work, out, 4) == totals  # which reads no file
            with pytest.raises(ValueError, match="remove it and run the same 'gritvq encode' again"):
                read_tokens(lost)
        lost.unlink()
        with pytest.raises(ValueError, match=r"got none called tokens-00003.parquet; .* run the same 'gritvq encode'"):
            token_files(out)
        assert encode_shards(work, out, 4) == totals and contents(out) == whole
        again = {path.name: path.stat().st_mtime_ns for path in token_files(out)}
        assert [name for name in times if again[name] != times[name]] == ["tokens-00003.parquet"]

    @pytest.mark.parametrize("moved", range(5))
    def test_killed_while_files_are_taken_back(
        self, moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work, out = of_pictures(pictures(tmp_path / "shards")), tmp_path / "out"
        totals = encode_shards(work, out, 4)
        whole, left = contents(out), iter(range(moved))
        (out / "tokens-00001.parquet").unlink()
        (out / "tokens-99999.parquet").write_bytes(b"mine")  # is not in the manifest and stays
        replace, held = os.replace, out / ".unfinished"

        def stopping(source: Any, target: Any) -> None:
            if Path(source).parent == out and next(left, None) is None:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr("gritvq.bulk.folder.os.replace", stopping)
            patched.setattr("gritvq.bulk.folder.ShardFolder.clear", lambda self: None)  # as after kill -9
            if moved < 4:
                with pytest.raises(KeyboardInterrupt):
                    encode_shards(work, out, 4)
                assert len(list(held.glob("tokens-*"))) == moved
                with pytest.raises(ValueError, match="run the same 'gritvq encode' again"):
                    token_files(out)
        assert encode_shards(work, out, 4) == totals
        (out / "tokens-99999.parquet").unlink()
        assert contents(out) == whole

    def test_files_without_a_plan_are_nobodys(self, tmp_path: Path) -> None:
        """A worker wrote one, of another tokenizer, after its run had failed and was cleared."""
        data, out = pictures(tmp_path / "shards"), tmp_path / "out"
        encode_shards(of_pictures(data, seed=1), tmp_path / "others", 4)
        encode_shards(of_pictures(data), tmp_path / "whole", 4)
        (out / ".unfinished").mkdir(parents=True)
        shutil.copy(tmp_path / "others" / "tokens-00002.parquet", out / ".unfinished")
        encode_shards(of_pictures(data), out, 4)
        assert contents(out) == contents(tmp_path / "whole")


class TestVectorsAreReadInPart:
    def test_of_a_group_of_rows(self, tmp_path: Path) -> None:
        """Memory is that of the rows that are asked for; a group alone has 10 MB."""
        vectors = np.random.default_rng(0).standard_normal((40_000, 64)).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 64)
        parquet.write_table(
            pa.table({"embedding": column}), tmp_path / "a.parquet", compression="none", use_dictionary=False
        )
        found, usual = ItemVectors(tmp_path / "a.parquet"), pa.default_memory_pool()
        pool = pa.proxy_memory_pool(usual)
        pa.set_memory_pool(pool)
        try:
            ((names, block),) = found.read(30_000, 30_010)
        finally:
            pa.set_memory_pool(usual)
        assert names == [str(number) for number in range(30_000, 30_010)]
        np.testing.assert_array_equal(block, vectors[30_000:30_010])
        assert pool.max_memory() < vectors.nbytes / 4

    def test_headers_of_a_tar_file_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {}
        for number in range(NUM):
            np.save(tmp_path / "one.npy", np.full(3, number, dtype=np.float32))
            files[f"{number:02}.npy"] = (tmp_path / "one.npy").read_bytes()
        tar(tmp_path / "a.tar", files)
        read, scans = vectors_module.tar_samples, list[Any]()
        monkeypatch.setattr(vectors_module, "tar_samples", lambda path: scans.append(path) or read(path))  # type: ignore[func-returns-value]
        found = ItemVectors(tmp_path / "a.tar")
        for start in range(0, NUM, 4):
            ((names, block),) = found.read(start, start + 4)
            assert names == [f"{n:02}" for n in range(start, start + 4)] and block[:, 0].tolist() == list(
                range(start, start + 4)
            )
        assert len(scans) == 1
        tar(tmp_path / "a.tar", dict(list(files.items())[:3]))
        with pytest.raises(ValueError, match=r"expected the 20 vectors .* got 3; leave the file as it is"):
            list(found.read(0, 4))


def test_size_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the tokenizer's kind unless it is given."""
    monkeypatch.chdir(tmp_path)
    for kind, data in (("vectors", "vectors.npy"), ("pictures", "shards")):
        KINDS[kind](tmp_path).tokenizer.save_pretrained(kind)
        for given, expected in (([], 2048 if kind == "vectors" else 64), (["--batch_size", "5"], 5)):
            words = ["encode", data, "--tokenizer", kind, "--rows_per_file", "8", "--out", f"{kind}-{expected}", *given]
            assert main(words) == 0
            said = json.loads((tmp_path / words[7] / "manifest.json").read_text())
            assert said["plan"]["settings"]["batch_size"] == expected
