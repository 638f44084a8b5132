"""Encoding in shards: the same tokens as at once, whoever makes them, however often it is interrupted."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from bulk_parts import KINDS, NUM, of_pictures, picture_tokenizer, pictures, png, tar
from gritvq.bulk import (
    ItemVectors,
    PictureWork,
    Shard,
    ShardFolder,
    Views,
    Work,
    bits_per_token,
    encode_here,
    encode_rows,
    encode_shards,
)
from gritvq.bulk import folder as folders
from gritvq.cli import main
from gritvq.images import open_pictures
from gritvq.tokens import TokenRow, read_tokens, token_files
from program import wrong


class Stopped(Exception):
    """What ends a run in the middle."""


def rows_in(folder: Path) -> list[TokenRow]:
    return [row for path in token_files(folder) for row in read_tokens(path)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupted(after: int, made: list[int]) -> Any:
    """An engine that ends after so many shards; ``made`` gets their numbers."""

    def engine(work: Work, folder: ShardFolder, shards: Iterator[Shard], progress: Callable[[int], object]) -> Any:
        def some() -> Iterator[Shard]:
            for shard in shards:
                if len(made) == after:
                    raise Stopped
                made.append(shard.number)
                yield shard

        yield from encode_here(work, folder, some(), progress)

    return engine


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    @pytest.mark.parametrize("rows", [1, 4, 7, 100])
    def test_shards_are_a_partition(self, kind: str, rows: int, tmp_path: Path) -> None:
        shards = list(KINDS[kind](tmp_path).shards(rows))
        assert [shard.number for shard in shards] == list(range(-(-NUM // rows)))
        assert [shard.first for shard in shards] == list(range(0, NUM, rows))
        assert sum(len(shard.samples) for shard in shards) == NUM

    def test_rows_are_those_of_one_file(self, kind: str, tmp_path: Path) -> None:
        """And those that the tokenizer makes of each sample alone."""
        work, counts = KINDS[kind](tmp_path), Counter[str]()
        whole = list(encode_rows(work, counts))
        done: list[int] = []
        totals = encode_shards(work, tmp_path / "out", 8, progress=done.append)
        found = rows_in(tmp_path / "out")
        assert totals == counts and sum(done) == NUM == counts["samples"] == len({row.name for row in found})
        for row, own in zip(found, whole, strict=True):
            assert row.name == own.name and row.tokens.equal(own.tokens)
            assert row.columns == {name: value for name, value in own.columns.items() if value is not None}
        sizes = [len(read_tokens(file)) for file in token_files(tmp_path / "out")]
        assert sizes == [8, 8, 4]

    def test_a_pickled_copy_makes_the_same_files(self, kind: str, tmp_path: Path) -> None:
        """As a worker does, which gets the work and its shards from another process."""
        work = KINDS[kind](tmp_path)
        encode_shards(work, tmp_path / "one", 6)
        copied = pickle.loads(pickle.dumps(work))
        sent = pickle.loads(pickle.dumps(list(work.shards(6))))

        def engine(_: Work, folder: ShardFolder, shards: Iterator[Shard], progress: Any) -> Any:
            wanted = [shard.number for shard in shards]
            folder = pickle.loads(pickle.dumps(folder))
            for shard in reversed(sent):  # in any order, and once more, as after a death behind the writing
                assert shard.number in wanted
                folder.write(shard.number, copied.rows(shard))
                yield shard.number, folder.write(shard.number, copied.rows(shard))

        encode_shards(work, tmp_path / "two", 6, engine)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def test_an_interrupted_run_goes_on(self, kind: str, tmp_path: Path) -> None:
        work, out = KINDS[kind](tmp_path), tmp_path / "out"
        encode_shards(work, tmp_path / "whole", 3)
        made: list[int] = []
        with pytest.raises(Stopped):
            encode_shards(work, out, 3, interrupted(2, made))
        with pytest.raises(ValueError, match="got an unfinished encoding; run the same 'gritvq encode' again"):
            token_files(out)  # nothing reads half of the tokens
        with pytest.raises(Stopped):
            encode_shards(work, out, 3, interrupted(5, made))
        totals = encode_shards(work, out, 3, interrupted(100, made))
        assert made == list(range(7))  # each once
        assert contents(out) == contents(tmp_path / "whole") and totals["samples"] == NUM
        assert encode_shards(work, out, 3, interrupted(0, [])) == totals  # nothing to do
        assert contents(out) == contents(tmp_path / "whole")


class TestFolder:
    def test_a_damaged_shard_is_made_again(self, tmp_path: Path) -> None:
        work, out, made = of_pictures(pictures(tmp_path / "shards")), tmp_path / "out", list[int]()
        encode_shards(work, tmp_path / "whole", 4)
        with pytest.raises(Stopped):
            encode_shards(work, out, 4, interrupted(3, made))
        one = out / ".unfinished" / "tokens-00001.parquet"
        one.write_bytes(one.read_bytes()[:-40])
        encode_shards(work, out, 4, interrupted(100, made))
        assert made == [0, 1, 2, 1, 3, 4] and contents(out) == contents(tmp_path / "whole")

    @pytest.mark.parametrize("step", ["_say", "_put", "_end_moves"])
    def test_killed_while_all_moves_to_its_place(
        self, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work, out = of_pictures(pictures(tmp_path / "shards")), tmp_path / "out"
        whole = encode_shards(work, tmp_path / "whole", 4)

        def stop(*_: Any) -> None:
            raise Stopped

        with monkeypatch.context() as patched:
            if step == "_say":  # the second time, after the plan
                kept, times = ShardFolder._say, iter(range(9))
                patched.setattr(ShardFolder, step, lambda *more: stop() if next(times) else kept(*more))
            elif step == "_put":
                patched.setattr(ShardFolder, step, stop)
            else:
                patched.setattr(f"gritvq.files.{step}", stop)
            with pytest.raises(Stopped):
                encode_shards(work, out, 4)
        if step != "_end_moves":
            with pytest.raises(ValueError, match="unfinished"):
                token_files(out)
        assert encode_shards(work, out, 4, interrupted(0, [])) == whole  # nothing is made again
        assert contents(out) == contents(tmp_path / "whole")

    def test_every_file_of_the_manifest_must_be_there(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        encode_shards(of_pictures(pictures(tmp_path / "shards")), out, 4)
        (out / "tokens-00003.parquet").unlink()
        with pytest.raises(ValueError, match=r"expected the 5 token files .* got none called tokens-00003"):
            token_files(out)
        content = (out / "manifest.json").read_text()
        (out / "manifest.json").write_text(content.replace("tokens-00003", "tokens-00002"))
        with pytest.raises(ValueError, match="does not fit its checksum"):
            token_files(out)

    @pytest.mark.parametrize("finished", [False, True])
    def test_another_plan_is_refused(self, finished: bool, tmp_path: Path) -> None:
        data, out = pictures(tmp_path / "shards"), tmp_path / "out"
        made: list[int] = []
        if finished:
            encode_shards(of_pictures(data), out, 4)
        else:
            with pytest.raises(Stopped):
                encode_shards(of_pictures(data), out, 4, interrupted(2, made))
        before = contents(out)
        with pytest.raises(ValueError, match=r"expected tokens of this tokenizer, fingerprint .* got some of another"):
            encode_shards(of_pictures(data, seed=1), out, 4)
        with pytest.raises(ValueError, match=r"--batch_size 4 \(got 8\)"):
            encode_shards(of_pictures(data, batch_size=8), out, 4)
        with pytest.raises(ValueError, match=r"--rows_per_file 4 \(got 5\)"):
            encode_shards(of_pictures(data), out, 5)
        os.utime(data / "1.tar", ns=(0, 0))
        with pytest.raises(ValueError, match="expected tokens of this data"):
            encode_shards(of_pictures(data), out, 4)
        assert contents(out) == before

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        work = of_pictures(pictures(tmp_path / "shards"))
        with pytest.raises(ValueError, match="expected a new or empty folder for token files"):
            encode_shards(work, out)
        with pytest.raises(ValueError, match="expected a folder for token files, got the file"):
            encode_shards(work, out / "mine.txt")
        assert contents(out) == {"mine.txt": b"mine"}

    def test_shards_without_a_readable_picture(self, tmp_path: Path) -> None:
        """Leave a gap in the numbers, and are not made again."""
        tar(tmp_path / "a.tar", {f"{n}.png": b"no picture" if n in (2, 3) else png(n) for n in range(6)})
        work, made = of_pictures(tmp_path / "a.tar"), list[int]()
        with pytest.raises(Stopped):
            encode_shards(work, tmp_path / "out", 2, interrupted(2, made))
        assert encode_shards(work, tmp_path / "out", 2, interrupted(9, made))["samples"] == 4 and made == [0, 1, 2]
        assert [file.name for file in token_files(tmp_path / "out")] == [f"tokens-0000{n}.parquet" for n in (0, 2)]
        tar(tmp_path / "b.tar", {"0.png": b"no picture"})
        with pytest.raises(ValueError, match=r"expected at least one readable picture in .*b.tar, got none"):
            encode_shards(of_pictures(tmp_path / "b.tar"), tmp_path / "none", 2)
        assert not (tmp_path / "none").exists()


def test_views_of_pictures_do_not_overflow_their_file(tmp_path: Path) -> None:
    views = Views(size=8, ten_crops=[1.25])
    work = PictureWork(picture_tokenizer(), open_pictures(pictures(tmp_path / "shards")), "data", views=views)
    encode_shards(work, tmp_path / "out", 45)
    assert [len(read_tokens(file)) for file in token_files(tmp_path / "out")] == [40] * 5
    assert len({row.name for row in rows_in(tmp_path / "out")}) == 10 * NUM


def test_long_texts_make_smaller_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of texts is in memory, so it has an end in characters too."""
    work = KINDS["texts"](tmp_path)
    monkeypatch.setattr("gritvq.bulk.texts._CHARACTERS", 60)
    shards = list(work.shards(100))
    assert [len(shard.samples) for shard in shards] == [3] * 6 + [2]
    assert [shard.first for shard in shards] == list(range(0, NUM, 3))


def test_bits_count_each_channel_by_its_size() -> None:
    """Against the sum over all codes that are there."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.randint(-1, size, (50,), generator=generator) for size in (5, 9)], -1)
    counts: Counter[str] = Counter()
    list(folders.count([TokenRow("a", tokens[:20]), TokenRow("b", tokens[20:])], counts))
    bits = float(((tokens >= 0) * torch.tensor([5.0, 9.0]).log2()).sum() / (tokens >= 0).any(-1).sum())
    assert bits_per_token(counts, (5, 9)) == pytest.approx(bits, rel=1e-6)


class TestItemVectors:
    def test_every_kind_of_file_has_the_same_vectors(self, tmp_path: Path) -> None:
        vectors = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
        keys = [f"item {n}" for n in range(11)]
        np.save(tmp_path / "a.npy", vectors)
        table = pa.table({"item": keys, "own": vectors.tolist()})
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
        files = {}
        for key, vector in zip(keys, vectors, strict=True):
            np.save(tmp_path / "one.npy", vector)
            files |= {f"{key}.npy": (tmp_path / "one.npy").read_bytes(), f"{key}.json": b"{}"}
        (tmp_path / "one.npy").unlink()
        tar(tmp_path / "a.tar", files)
        (tmp_path / "parts").mkdir()
        for number, (start, stop) in enumerate([(0, 6), (6, 11)]):
            np.save(tmp_path / "parts" / f"{number}.npy", vectors[start:stop])
        numbers = [f"{n:02}" for n in range(11)]
        folder = [f"{n // 6}/{n % 6}" for n in range(11)]
        for name, expected in (("a.npy", numbers), ("a.parquet", keys), ("a.tar", keys), ("parts", folder)):
            found = ItemVectors(tmp_path / name, "own")
            assert len(found) == 11
            for start, stop in ((0, 11), (3, 9), (8, 11), (5, 6)):
                blocks = list(found.read(start, stop))
                assert [own for names, _ in blocks for own in names] == expected[start:stop], name
                np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), vectors[start:stop])

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.npy", b"no array", "expected a .npy file of item embeddings"),
            ("a.parquet", b"no table", "expected a Parquet file"),
            ("a.tar", b"no tar", "expected an uncompressed tar file"),
            ("a.txt", b"", "expected vectors of items"),
        ],
    )
    def test_what_is_none(self, name: str, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        for path in (tmp_path / name, tmp_path):
            with pytest.raises(ValueError, match=message):
                ItemVectors(path)

    def test_wrong_vectors(self, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"embedding": ["a"]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="expected a column 'embedding' of lists of floats"):
            ItemVectors(tmp_path / "a.parquet")
        parquet.write_table(pa.table({"embedding": [[0.5], [0.5, 1.0]]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="expected vectors of one length"):
            list(ItemVectors(tmp_path / "a.parquet").read(0, 2))
        np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
        tar(tmp_path / "a.tar", {"x.npy": (tmp_path / "a.npy").read_bytes()})
        with pytest.raises(ValueError, match="got a damaged file or objects"):
            list(ItemVectors(tmp_path / "a.tar").read(0, 1))
        tar(tmp_path / "a.tar", {"x.txt": b""})
        with pytest.raises(ValueError, match=r"expected files that end with .npy"):
            ItemVectors(tmp_path / "a.tar")


class TestProgram:
    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_pictures_in_tar_files(self, capsys: pytest.CaptureFixture[str]) -> None:
        pictures(Path("shards"))
        picture_tokenizer().save_pretrained("tokenizer")
        picture_tokenizer(1).save_pretrained("other")
        words = ["encode", "shards", "--tokenizer", "tokenizer"]
        assert main([*words, "--rows_per_file", "8", "--out", "tokens"]) == 0
        assert "20 of 20" in capsys.readouterr().out
        rows = rows_in(Path("tokens"))
        assert [row.name for row in rows] == [f"{n // 10}/{n:02}" for n in range(20)]
        assert [row.columns["label"] for row in rows] == list(range(20))
        before = contents(Path("tokens"))
        assert main([*words, "--rows_per_file", "8", "--out", "tokens"]) == 0 and contents(Path("tokens")) == before
        words[-1] = "other"
        said = wrong([*words, "--rows_per_file", "8", "--out", "tokens"], capsys)
        assert "expected tokens of this tokenizer" in said and said.count("\n") == 1
        assert contents(Path("tokens")) == before
        assert main(["decode", "tokens", "--tokenizer", "tokenizer", "--out", "back"]) == 0
        assert len(list(Path("back").rglob("*.png"))) == 20
        shutil.rmtree("back")

    def test_vectors_of_items(self, capsys: pytest.CaptureFixture[str]) -> None:
        work = KINDS["vectors"](Path())
        tokenizer = copy.deepcopy(work.tokenizer)
        tokenizer.save_pretrained("run/tokenizer")
        assert main(["encode", "vectors.npy", "--tokenizer", "run/tokenizer", "--out", "tokens.parquet"]) == 0
        assert "4.00" in capsys.readouterr().out  # two indices below 4
        codes = tokenizer.encode(np.load("vectors.npy"))
        assert torch.stack([row.tokens for row in read_tokens("tokens.parquet")]).equal(codes)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--engine", "ray", "--out", "a.parquet"], "expected a folder for files of --engine ray, got a.parquet"),
            (["--num_workers", "2"], "expected no --num_workers for --engine local, got 2"),
            (["--engine", "ray", "--num_workers", "0"], "expected num_workers >= 1, got 0"),
            (["--engine", "spark"], "invalid choice"),
            (["--engine", "ray"], "expected the package ray, got none; pip install 'gritvq[distributed]'"),
            (["--rows_per_file", "0"], "expected rows_per_file >= 1, got 0"),
            (["--rows_per_file", "4", "--column", "gif"], "expected pictures that end with 'gif'"),
            (["--rows_per_file", "4", "--strict", "true"], "broken.tar"),
        ],
    )
    def test_wrong_input(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "ray", None)
        tar(pictures(Path("shards")) / "broken.tar", {"0.png": b"no picture"})
        picture_tokenizer().save_pretrained("tokenizer")
        before = sorted(Path().rglob("*"))
        said = wrong(["encode", "shards", "--tokenizer", "tokenizer", *words], capsys)
        assert message in said and said.count("error: ") == 1
        left = [path for path in sorted(Path().rglob("*")) if path not in before]
        assert not left or words[-1] == "true"  # what comes before the broken picture is kept
