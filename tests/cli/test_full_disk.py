"""A disk that is full or read-only, a program that is killed: what was there stays, or what is new counts.

One message says what to do.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gritvq import files, vq_vae
from gritvq.cli import main
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.items import ItemTokenizer, SemanticIds
from gritvq.tokens import read_tokens, token_files
from gritvq.training import RunFolder
from program import wrong

CATALOGUE = ["--data", "items.csv", "--embeddings", "items.npy"]
LARGER = ["--data", "more.csv", "--embeddings", "more.npy"]
PICTURES = ["--data.path", "pictures"]
MODEL = ["--tokenizer", "model"]
SIZES = ["--codebook_size", "4", "--tokenizer.encoder.width", "8", "--tokenizer.decoder.width", "8"]
SHORT = ["--data.size", "32", "--data.batch_size", "2", "--plan.max_steps", "1", "--plan.accelerator", "cpu"]
AGAIN = ["--overwrite", "true", "--out"]
# In an order in which each finds what it reads. Each is run where there is room, then again where there is none.
JOBS = {
    "encode npz": ["encode", "pictures", *MODEL, *AGAIN, "tokens.npz"],
    "encode parquet": ["encode", "pictures", *MODEL, *AGAIN, "tokens.parquet"],
    "decode": ["decode", "tokens.npz", *MODEL, *AGAIN, "decoded"],
    "inspect": ["inspect", "model", *PICTURES, *AGAIN, "inspected"],
    "fit ids": ["semantic-ids", "fit", *CATALOGUE, "--tokenizer.codebook_size", "8", *AGAIN, "ids"],
    "encode items": ["semantic-ids", "encode", "ids", "--embeddings", "more.npy", *AGAIN, "codes.npy"],
    "report": ["semantic-ids", "report", "ids", *CATALOGUE],
    "add": ["semantic-ids", "add", "ids", *LARGER],
    "fit": ["fit", *PICTURES, "--preset", "vq_vae", *SIZES, *SHORT, *AGAIN, "run"],
}


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes; that is another error than a full disk's, at the same places."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a catalogue and a larger one, and what all jobs make of them."""
    folder = tmp_path_factory.mktemp("disk")
    torch.manual_seed(0)
    ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 8), ImageDecoder(4, width=8)).save_pretrained(folder / "model")
    (folder / "pictures").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(256, size=(64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    for name, count in (("items", 150), ("more", 300)):
        rows = [f"k{number},thing {number}" for number in range(count)]
        (folder / f"{name}.csv").write_text("\n".join(["item,title", *rows]))
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in JOBS.items():
            if name != "add":
                assert main(words) == 0
    return folder


@pytest.mark.parametrize("size", [0, 200])
@pytest.mark.parametrize("job", JOBS)
def test_what_was_there_stays(
    job: str, size: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = contents()
    with room(size):
        said = wrong(JOBS[job], capsys)
    assert said.count("expected room on the disk to write") == 1
    assert contents() == before


def test_of_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """There is room for the configuration of a run, and none for its checkpoint."""
    monkeypatch.chdir(folder)
    words = ["elsewhere" if word == "run" else word for word in JOBS["fit"]]
    with room(6000):
        assert "expected room on the disk to write" in wrong(words, capsys)
    assert not list(Path("elsewhere").rglob("*.ckpt")) and not list(Path("elsewhere").rglob(".writing-*"))
    assert main(words) == 0  # the half-made run may be replaced


# --- a folder that may not be written ---------------------------------------------------------------------------------

_CAPABILITIES = 0x20080522  # the version of this call of Linux
_PASSING = 1 << 1 | 1 << 2  # to pass over permissions, which root may


@contextmanager
def obedient() -> Iterator[None]:
    """Permissions count for root, too."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, inherited
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] = before & ~_PASSING
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """All folders below one, and itself, may be read but not written."""
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    try:
        with obedient():
            yield
    finally:
        for place in places:
            place.chmod(0o755)


@pytest.mark.parametrize("job", JOBS)
def test_a_read_only_folder(
    job: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = contents()
    with read_only(folder):
        with pytest.raises(PermissionError):
            (folder / "new").touch()
        said = wrong(JOBS[job], capsys)
    assert said.count("expected a file or folder that this program may use") == 1
    assert contents() == before


# --- a program that is killed -----------------------------------------------------------------------------------------

IDS = ["semantic-ids", "fit", *CATALOGUE, "--tokenizer.codebook_size", "8", "--out", "new-ids"]
SHARDS = ["encode", "pictures", "--tokenizer", "model", "--rows_per_file", "2", "--out", "shards"]


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that folder, without what other tests have made."""
    monkeypatch.chdir(folder)
    for made in ("new-ids", "shards", "killed", "elsewhere"):
        shutil.rmtree(made, ignore_errors=True)


def dead_scratch(folder: Path) -> Path:
    """The temporary folder of a process that is no more."""
    scratch = folder / f".writing-{files._machine()}-{2**22 + 1}-0"
    (scratch / "tokenizer").mkdir(parents=True)
    (scratch / "half.parquet").write_text("half")
    return scratch


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("words", [IDS, SHARDS], ids=["semantic-ids fit", "encode"])
def test_before_the_new_files_count(words: list[str]) -> None:
    scratch = dead_scratch(Path(words[-1]))
    assert main(words) == 0
    assert not scratch.exists()


def all_but(name: str) -> Callable[[Path], None]:
    """Moves files to their places, but not in the folder of this name, whose writer is killed before it does."""
    move = files._end_moves
    return lambda folder: None if folder.name == name else move(folder)


@pytest.mark.usefixtures("there")
def test_ids_that_count_but_are_not_in_their_places(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "_end_moves", all_but("new-ids"))
        patch.setattr("gritvq.cli.semantic_ids._judge", lambda *arguments: None)
        assert main(IDS) == 0
    run = RunFolder("new-ids")
    assert [path.name for path in run.path.iterdir()] == [".written"] and run.is_run
    assert len(SemanticIds.load(run.ids)) == 150
    assert ItemTokenizer.from_pretrained(run.tokenizer).codebook_sizes[0] == 8
    assert main(["semantic-ids", "report", "new-ids", *CATALOGUE]) == 0
    assert "holds a run, or replace it with --overwrite true" in wrong(IDS, capsys).replace(
        "; choose another --out", ""
    )
    assert main(["semantic-ids", "add", "new-ids", *LARGER]) == 0
    assert len(SemanticIds.load(run.ids)) == 300 and not (run.path / ".written").exists()
    assert main([*IDS, "--overwrite", "true"]) == 0


@pytest.mark.usefixtures("there")
def test_token_files_that_count_but_are_not_in_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "_end_moves", all_but("shards"))
        assert main(SHARDS) == 0
    assert [path.name for path in Path("shards").iterdir()] == [".written"]
    found = [row for path in token_files("shards") for row in read_tokens(path)]
    assert [row.name for row in found] == ["0.png", "1.png", "2.png"]
    assert main(SHARDS) == 0  # all is there, so nothing is encoded again
    again = [row for path in token_files("shards") for row in read_tokens(path)]
    assert all(torch.equal(own.tokens, other.tokens) for own, other in zip(found, again, strict=True))


@pytest.mark.usefixtures("there")
def test_a_run_before_its_first_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("run", "killed")
    RunFolder("killed").clear()
    words = [word for word in JOBS["fit"] if word != "run"]
    said = wrong([*words, "killed", "--resume", "last"], capsys)
    assert "the run ended before its first one, start it again with --overwrite true" in said
    assert main([*words, "killed"]) == 0


@pytest.mark.usefixtures("there")
def test_an_old_run_goes_away_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its parts is ever half there, for example a checkpoint folder without the newest one."""
    shutil.copytree("run", "killed")
    seen: list[str] = []

    def remove(path: Path, **settings: bool) -> None:
        seen.append(Path(path).name)

    monkeypatch.setattr(shutil, "rmtree", remove)
    RunFolder("killed").clear()
    assert seen and all(name.startswith(".writing-") for name in seen)
    assert {path.name for path in Path("killed").iterdir()} == {"config.yaml", *seen}


# --- who may read what was written ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("mask", [0o027, pytest.param(0o077, marks=pytest.mark.soak)])
def test_everything_that_is_written_obeys_the_umask(mask: int) -> None:
    """Runs with their logs, plots and checkpoints; pictures, tokens and ids."""
    before, old = os.umask(mask), set(Path().rglob("*"))
    try:
        for job in ("encode npz", "encode parquet", "decode", "inspect", "fit ids", "encode items", "fit"):
            words = JOBS[job]
            assert main([*words[:-1], f"elsewhere/{Path(words[-1]).name}"]) == 0
    finally:
        os.umask(before)
    new = set(Path().rglob("*")) - old
    assert len(new) > 30
    for path in new:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path
