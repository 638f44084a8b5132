"""Damaged and made-up pictures; a module of its own, so that a process that reads them imports nothing else."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import torch
from benchmarks.reliability.changes import Files, Reader, changed_table, damaged
from PIL import Image
from pyarrow import parquet

from gritvq.images import open_pictures, read_images

__all__ = ["PICTURES"]

_ENDINGS = ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm", "jp2", "avif"]


def make_pictures(folder: Path) -> None:
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (12, 10, 3), dtype=np.uint8)
    for ending in _ENDINGS:
        Image.fromarray(pixels).save(folder / f"rgb.{ending}")
    Image.fromarray(pixels).save(folder / "progressive.jpg", progressive=True, exif=_turned())
    Image.fromarray(pixels).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(pixels).convert("P").save(folder / "palette.png", transparency=3)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(pixels[..., 0].astype(np.float32) / 255).save(folder / "float.tif")
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4"):
        Image.fromarray(pixels).convert("1" if packing == "group4" else "RGB").save(
            folder / f"{packing}.tif", compression=packing
        )
    frames = [Image.fromarray(np.roll(pixels, n, 0)) for n in range(3)]
    for ending in ("gif", "webp", "png", "tif"):
        frames[0].save(folder / f"frames.{ending}", save_all=True, append_images=frames[1:])
    content = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.glob("rgb.*"))]
    parquet.write_table(pyarrow.table({"image": content, "label": list(range(len(content)))}), folder / "a.parquet")


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def read_pictures(folder: Path) -> None:
    (path,) = folder.iterdir()
    if path.suffix == ".parquet":
        for picture in open_pictures(path):
            assert picture.pixels.dtype == torch.uint8
    else:
        for _, pixels in read_images(path, channels=3):
            assert pixels.dtype == torch.uint8 and pixels.ndim == 3


def change_picture(chance: random.Random, files: Files) -> Files:
    name = chance.choice(sorted(files))
    content = files[name]
    if name.endswith("parquet"):
        return {name: changed_table(chance, content) if chance.random() < 0.5 else damaged(content, chance)}
    sides = [chance.choice([0, 1, 11, 2**13, 8191, 8193, 20000, 65535, 2**31 - 1, 2**32 - 1]) for _ in "hw"]
    if name.endswith("png") and chance.random() < 0.5:
        content = _png_of(chance, content, sides)
    elif name.endswith("jpg") and chance.random() < 0.4:
        place = next(
            (content.find(b"\xff" + bytes([mark])) for mark in (0xC0, 0xC2) if b"\xff" + bytes([mark]) in content), 0
        )
        packed = b"".join((side % 65536).to_bytes(2, "big") for side in sides)
        content = content[: place + 5] + packed + content[place + 9 :]
    elif name.endswith("bmp") and chance.random() < 0.4:
        content = content[:18] + b"".join(side.to_bytes(4, "little") for side in sides) + content[26:]
    elif name.endswith("gif") and chance.random() < 0.4:
        content = content[:6] + b"".join((side % 65536).to_bytes(2, "little") for side in sides) + content[10:]
    elif name.endswith("ppm") and chance.random() < 0.4:
        content = content.replace(b"10 12", f"{sides[0]} {sides[1]}".encode())
    else:
        content = damaged(content, chance)
    other = chance.choice(_ENDINGS) if chance.random() < 0.1 else Path(name).suffix[1:]
    return {f"{Path(name).stem}.{other}": content}


def _png_of(chance: random.Random, content: bytes, sides: list[int]) -> bytes:
    """Chunks changed, with right checksums; pixels of as many zeros as the size asks for, up to 256 MB."""
    parts, place = [], 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        parts.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + length]])
        place += 12 + length
    kind = chance.random()
    header = next(part for part in parts if part[0] == b"IHDR")
    if kind < 0.6:
        header[1] = b"".join(side.to_bytes(4, "big") for side in sides) + header[1][8:]
        if kind < 0.05:
            zeros = zlib.compress(bytes(min(2**28, (3 * sides[0] + 1) * sides[1])), 1)
            parts = [part for part in parts if part[0] != b"IDAT"]
            parts.insert(-1, [b"IDAT", zeros])
    else:
        each = chance.choice(parts)
        each[1] = damaged(each[1], chance)
        if chance.random() < 0.05:
            bomb = zlib.compress(bytes(2**27), 9)
            parts.insert(1, chance.choice([[b"zTXt", b"a\0\0" + bomb], [b"iCCP", b"a\0\0" + bomb], list(each)]))
    chunks = (
        len(body).to_bytes(4, "big") + tag + body + zlib.crc32(tag + body).to_bytes(4, "big") for tag, body in parts
    )
    return content[:8] + b"".join(chunks)


PICTURES = Reader(make_pictures, read_pictures, change_picture)
