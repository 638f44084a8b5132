"""Small data and tokenizers of every kind of work."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gritvq import rq, vq_vae
from gritvq.bulk import ItemVectors, PictureWork, TextWork, VectorWork, Work
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer, open_pictures
from gritvq.items import ResidualKMeans
from gritvq.text import Corpus, Segmentation, Subwords, TextFormat, segment_tokenizer

NUM = 20  # samples of each kind


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(seed: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture_tokenizer(seed: int = 0) -> ImageTokenizer:
    torch.manual_seed(seed)
    return ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 16), ImageDecoder(4, width=8)).eval()


def pictures(folder: Path) -> Path:
    """Two tar files of ten pictures, each with its number as label."""
    for part in range(2):
        files = {}
        for number in range(10 * part, 10 * part + 10):
            files |= {f"{number:02}.png": png(number), f"{number:02}.cls": str(number).encode()}
        tar(folder / f"{part}.tar", files)
    return folder


def of_pictures(folder: Path, seed: int = 0, batch_size: int = 4) -> Work:
    return PictureWork(picture_tokenizer(seed), open_pictures(folder), str(folder), batch_size)


def of_texts(folder: Path) -> Work:
    torch.manual_seed(0)
    form = TextFormat(Subwords.train([], 256), Segmentation(max_tokens=16, max_segments=4))
    sizes = {"width": 16, "depth": 1, "num_heads": 2, "length": 64}
    tokenizer = segment_tokenizer(rq(4, 16, num_levels=2), form.vocab_size, **sizes).use(form)
    lines = [json.dumps({"text": f"Sentence {n}. And another one."}) for n in range(NUM)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:7], json.dumps({"text": " "}), *lines[7:]]))
    return TextWork(tokenizer.eval(), Corpus(str(folder / "a.jsonl")), batch_size=4)


def of_vectors(folder: Path) -> Work:
    vectors = np.random.default_rng(0).standard_normal((NUM, 6), dtype=np.float32)
    np.save(folder / "vectors.npy", vectors)
    tokenizer = ResidualKMeans(codebook_size=4, num_levels=2).fit(vectors)
    return VectorWork(tokenizer, ItemVectors(folder / "vectors.npy"), batch_size=4)


KINDS: dict[str, Callable[[Path], Work]] = {
    "pictures": lambda folder: of_pictures(pictures(folder / "shards")),
    "texts": of_texts,
    "vectors": of_vectors,
}
