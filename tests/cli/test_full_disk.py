"""A disk that fills up while the program writes: what was there stays, and one message says what to do."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gritvq import vq_vae
from gritvq.cli import main
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
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
