"""Pictures of every kind against Pillow and numpy; splits; training batches as a pure function of seed and step."""

from __future__ import annotations

import io
import itertools
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning import Callback, Trainer
from PIL import Image

import gritvq.images.data as module
from conftest import DATA
from gritvq.images import ImageData, find_images, read_images, to_tensor
from gritvq.training import DataModule, OptimizerSettings, RunFolder, Task

SHARED = DATA / "images"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real image sets are not in ../shared/data")


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def flat(number: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), number, dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def png_of_16_bits(values: np.ndarray, transparent: int | None = None) -> bytes:
    """What Pillow cannot write: gray (H, W), with a transparent value, or RGB (H, W, 3), big-endian."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    color = 2 if values.ndim == 3 else 0
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    if transparent is not None:
        content += chunk(b"tRNS", struct.pack(">H", transparent))
    content += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in values)))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def write_parquet(path: Path, contents: list[bytes | None], column: str = "image", struct_rows: bool = True) -> Path:
    rows = [{"bytes": content, "path": f"p{i}.png"} for i, content in enumerate(contents)] if struct_rows else contents
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: rows, "label": list(range(len(rows)))}), path, row_group_size=7)
    return path


def make_flat(folder: Path, count: int, side: int = 8) -> None:
    for number in range(count):
        save(folder / f"{number:03}.png", flat(number, side))


def train_batches(data: ImageData, count: int) -> list[torch.Tensor]:
    return list(itertools.islice(data.train_dataloader(), count))


def numbers(batch: torch.Tensor) -> list[int]:
    """Which flat pictures a batch holds."""
    return (batch[:, 0, 0, 0] * 255).round().int().tolist()


def all_numbers(loader: object) -> list[int]:
    return [number for batch in loader for number in numbers(batch)]  # type: ignore[attr-defined]


class TestToTensor:
    def test_rgb_and_gray(self) -> None:
        pixels, gray = noise(5, 7), noise(5, 7, channels=1)
        assert np.array_equal(to_tensor(Image.fromarray(pixels), 3).numpy(), pixels.transpose(2, 0, 1))
        assert np.array_equal(to_tensor(Image.fromarray(gray), 1).numpy(), gray[None])
        assert np.array_equal(to_tensor(Image.fromarray(gray), 3).numpy(), np.stack([gray] * 3))
        luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
        assert np.abs(to_tensor(Image.fromarray(pixels), 1)[0].numpy() - luma).max() <= 1

    def test_result_is_writable_contiguous_and_its_own(self) -> None:
        image = Image.fromarray(noise(4, 4))
        tensor = to_tensor(image, 3)
        before = tensor.clone()
        tensor.zero_()
        assert tensor.is_contiguous() and tensor.dtype == torch.uint8
        assert torch.equal(to_tensor(image, 3), before)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_over_white(self, mode: str) -> None:
        pixels = np.random.default_rng(1).integers(0, 256, (6, 6, len(mode)), dtype=np.uint8)
        assert Image.fromarray(pixels).mode == mode
        alpha = pixels[..., -1:] / 255
        expected = (pixels[..., :-1] * alpha + 255 * (1 - alpha)).transpose(2, 0, 1)
        got = to_tensor(Image.fromarray(pixels), 3).numpy()
        assert np.abs(got - expected).max() <= 1

    def test_palette_with_and_without_transparency(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.putdata([0, 1])
        assert to_tensor(image, 3).permute(1, 2, 0).tolist() == [[[255, 0, 0], [0, 0, 255]]]
        image.info["transparency"] = 1
        assert to_tensor(image, 3).permute(1, 2, 0).tolist() == [[[255, 0, 0], [255, 255, 255]]]

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_16_bit_gray_is_scaled_not_clipped(self, tmp_path: Path, suffix: str) -> None:
        values = np.array([[0, 1, 128, 255], [256, 32768, 60000, 65535]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        with Image.open(tmp_path / f"a.{suffix}") as image:
            assert np.array_equal(to_tensor(image, 1)[0].numpy(), np.round(values / 257.0).astype(np.uint8))

    def test_dark_16_bit_pictures_stay_dark(self) -> None:
        assert to_tensor(Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)), 1).max() == 1

    def test_16_bit_gray_with_a_transparent_value(self) -> None:
        values = np.array([[0, 1, 32768, 65535]], dtype=">u2")
        with Image.open(io.BytesIO(png_of_16_bits(values, transparent=0))) as image:
            assert to_tensor(image, 1).tolist() == [[[255, 0, 128, 255]]]

    def test_16_bit_rgb(self) -> None:
        values = np.array([[[0, 257, 32768], [65535, 60000, 1000]]], dtype=">u2")
        with Image.open(io.BytesIO(png_of_16_bits(values))) as image:
            got = to_tensor(image, 3).permute(1, 2, 0).numpy()
        assert np.abs(got - values / 257.0).max() <= 1

    @pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e6])
    def test_floats(self, white: float) -> None:
        values = np.array([[0, 0.25, 1]]) * white
        assert to_tensor(Image.fromarray(values.astype(np.float32)), 1).tolist() == [[[0, 64, 255]]]

    def test_cmyk(self) -> None:
        image = Image.fromarray(noise(4, 4)).convert("CMYK")
        assert np.array_equal(to_tensor(image, 3).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))

    def test_bilevel(self) -> None:
        assert to_tensor(Image.fromarray(np.array([[True, False]])), 1).tolist() == [[[255, 0]]]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation: int) -> None:
        upright = noise(3, 5)
        stored = {  # what a camera stores so that a viewer obeying the tag shows `upright`
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(stored)).save(buffer, "png", exif=exif)
        with Image.open(buffer) as image:
            assert np.array_equal(to_tensor(image, 3).permute(1, 2, 0).numpy(), upright)

    @pytest.mark.parametrize("channels", [0, 2, 4])
    def test_bad_channels(self, channels: int) -> None:
        with pytest.raises(ValueError, match=f"1 .gray. or 3 .RGB., got {channels}"):
            to_tensor(Image.new("RGB", (1, 1)), channels)


class TestReading:
    def test_finds_all_kinds_sorted_without_hidden_ones(self, tmp_path: Path) -> None:
        for name in ("b.PNG", "sub/a.jpeg", "sub/deep/c.webp", "a.bmp", ".hidden.png", ".cache/x.png", "sub/._a.jpg"):
            save(tmp_path / name, noise(4, 4))
        (tmp_path / "notes.txt").write_text("no picture")
        found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
        assert found == ["a.bmp", "b.PNG", "sub/a.jpeg", "sub/deep/c.webp"]
        assert find_images(str(tmp_path / "b.PNG")) == [tmp_path / "b.PNG"]

    def test_reads_a_folder_and_a_file_of_any_size(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", noise(3, 5))
        save(tmp_path / "sub" / "b.png", noise(9, 2))
        got = dict(read_images(tmp_path))
        assert {name: tuple(tensor.shape) for name, tensor in got.items()} == {
            "a.png": (3, 3, 5),
            "sub/b.png": (3, 9, 2),
        }
        assert np.array_equal(got["a.png"].permute(1, 2, 0).numpy(), noise(3, 5))
        ((name, gray),) = read_images(tmp_path / "sub" / "b.png", channels=1)
        assert (name, tuple(gray.shape)) == ("b.png", (1, 9, 2))

    def test_a_broken_file_is_named_and_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        make_flat(tmp_path, 3)
        (tmp_path / "001.png").write_bytes(b"nonsense")
        assert [name for name, _ in read_images(tmp_path)] == ["000.png", "002.png"]
        assert [record.levelno for record in caplog.records] == [logging.WARNING] and "001.png" in caplog.text
        with pytest.raises(ValueError, match=r"expected a readable picture, got .*001\.png"):
            list(read_images(tmp_path, strict=True))
        with pytest.raises(ValueError, match=r"001\.png"):  # asked for by name, so nothing is left to read
            list(read_images(tmp_path / "001.png"))

    def test_missing_and_empty(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="does not exist"):
            read_images(tmp_path / "none")  # before the first picture is asked for
        with pytest.raises(ValueError, match="got none; give another folder"):
            find_images(tmp_path)


class TestCollections:
    def test_holds_out_at_most_a_tenth(self, tmp_path: Path) -> None:
        make_flat(tmp_path, 30)
        data = ImageData(str(tmp_path), batch_size=27)
        validation, test = all_numbers(data.val_dataloader()), all_numbers(data.test_dataloader())
        (epoch,) = train_batches(data, 1)
        assert len(validation) == 3 and test == validation
        assert sorted(numbers(epoch) + validation) == list(range(30))

    def test_num_validation_and_the_end_of_parquet(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "rows.parquet", [png(flat(number)) for number in range(40)])
        data = ImageData(str(tmp_path / "rows.parquet"), num_validation=3, batch_size=37)
        assert all_numbers(data.val_dataloader()) == [37, 38, 39]
        assert sorted(numbers(train_batches(data, 1)[0])) == list(range(37))

    @pytest.mark.parametrize("name", ["validation", "val", "Valid"])
    def test_folders_named_after_splits(self, tmp_path: Path, name: str) -> None:
        for number, split in enumerate(["train", "train", "train", name, "test", "test", "other"]):
            save(tmp_path / split / "class" / f"{number}.png", flat(number))
        data = ImageData(str(tmp_path), batch_size=4)
        assert sorted(numbers(train_batches(data, 1)[0])) == [0, 1, 2, 6]
        assert all_numbers(data.val_dataloader()) == [3]
        assert all_numbers(data.test_dataloader()) == [4, 5]

    def test_parquet_files_named_after_splits(self, tmp_path: Path) -> None:
        for start, name in (
            (0, "train-00000-of-00002"),
            (10, "train-00001-of-00002"),
            (20, "validation"),
            (30, "test-0"),
        ):
            write_parquet(tmp_path / "data" / f"{name}.parquet", [png(flat(start + i)) for i in range(10)])
        data = ImageData(str(tmp_path), batch_size=20)
        assert sorted(numbers(train_batches(data, 1)[0])) == list(range(20))
        assert all_numbers(data.val_dataloader()) == list(range(20, 30))
        assert all_numbers(data.test_dataloader()) == list(range(30, 40))

    def test_parquet_folders_named_after_splits(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "default" / "train" / "0000.parquet", [png(flat(i)) for i in range(4)])
        write_parquet(tmp_path / "default" / "test" / "0000.parquet", [png(flat(i)) for i in range(4, 6)])
        assert all_numbers(ImageData(str(tmp_path)).test_dataloader()) == [4, 5]

    def test_plain_bytes_and_another_column(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", [png(flat(i)) for i in range(4)], column="picture", struct_rows=False)
        data = ImageData(str(tmp_path), column="picture", batch_size=3)
        assert sorted(numbers(train_batches(data, 1)[0]) + all_numbers(data.val_dataloader())) == [0, 1, 2, 3]

    @pytest.mark.usefixtures("hub_in_reach")
    def test_hub_data_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})

        def rows(start: int, count: int) -> object:
            pictures = [{"bytes": png(flat(start + i)), "path": None} for i in range(count)]
            return datasets.Dataset.from_dict({"image": pictures, "label": [0] * count}, features=features)

        loaded = datasets.DatasetDict({"train": rows(0, 20), "valid": rows(20, 2), "test": rows(22, 3)})
        monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
        data = ImageData("someone/pictures", batch_size=20)
        assert sorted(numbers(train_batches(data, 1)[0])) == list(range(20))
        assert (all_numbers(data.val_dataloader()), all_numbers(data.test_dataloader())) == ([20, 21], [22, 23, 24])
        with pytest.raises(ValueError, match="column of pictures 'label'"):
            ImageData("someone/pictures", column="label").setup()

    @pytest.mark.usefixtures("hub_in_reach")
    def test_hub_failure_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")

        def fail(name: str) -> None:
            raise ConnectionError("no network")

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(ValueError, match="or a data set on the Hub, got 'no-such-set': no network"):
            ImageData("no-such-set").setup()

    def test_native_size_where_all_agree_else_64(self, tmp_path: Path) -> None:
        make_flat(tmp_path / "same", 4, side=12)
        assert ImageData(str(tmp_path / "same")).shape == (3, 12, 12)
        assert ImageData(str(tmp_path / "same"), size=8, channels=1).shape == (1, 8, 8)
        save(tmp_path / "same" / "z.png", noise(12, 13))
        assert ImageData(str(tmp_path / "same")).shape == (3, 64, 64)
        make_flat(tmp_path / "large", 3, side=300)
        assert ImageData(str(tmp_path / "large")).shape == (3, 64, 64)

    def test_crops(self, tmp_path: Path) -> None:
        pixels = np.stack([*np.meshgrid(np.arange(20), np.arange(30), indexing="ij"), np.zeros((20, 30))], -1)
        for name in ("a", "b"):
            save(tmp_path / f"{name}.png", pixels.astype(np.uint8))
        data = ImageData(str(tmp_path), size=16, batch_size=64)
        (evaluated,) = data.val_dataloader()
        assert torch.equal((evaluated[0, :2, 0, 0] * 255).round().int(), torch.tensor([2, 7], dtype=torch.int32))
        corners = {tuple(c) for b in train_batches(data, 8) for c in (b[:, :2, 0, 0] * 255).round().int().tolist()}
        assert corners == set(itertools.product(range(5), range(15)))
        crop = (train_batches(data, 1)[0][0] * 255).round().int()
        assert torch.equal(crop[0] - crop[0, 0, 0], torch.arange(16)[:, None].expand(16, 16).int())  # not mirrored

    @pytest.mark.parametrize("shape", [(6, 10), (10, 6), (1, 300), (300, 1), (15, 40)])
    def test_small_and_odd_pictures_are_enlarged(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        ramp = np.broadcast_to(np.linspace(0, 255, shape[1])[None, :, None], (*shape, 3)).astype(np.uint8)
        for name in ("a", "b"):
            save(tmp_path / f"{name}.png", ramp)
        data = ImageData(str(tmp_path), size=16, batch_size=4)
        (evaluated,) = data.val_dataloader()
        assert evaluated.shape == (1, 3, 16, 16) and train_batches(data, 1)[0].shape == (4, 3, 16, 16)
        assert evaluated.min() >= 0 and evaluated.max() <= 1
        if shape == (6, 10):  # the center 6 x 6 of the picture, enlarged: compare with Pillow
            window = Image.fromarray(np.ascontiguousarray(ramp[:, 2:8])).resize((16, 16), Image.Resampling.BICUBIC)
            assert np.abs(evaluated[0].permute(1, 2, 0).numpy() * 255 - np.asarray(window)).mean() < 4

    def test_broken_pictures_are_replaced_by_the_next_and_named_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        contents: list[bytes | None] = [png(flat(number)) for number in range(20)]
        contents[3], contents[4], contents[5] = b"broken", None, png(flat(5))[:45]
        write_parquet(tmp_path / "a.parquet", contents)
        data = ImageData(str(tmp_path), num_validation=1, batch_size=19)
        seen = [sorted(numbers(batch)) for batch in train_batches(data, 3)]
        assert seen == [sorted([0, 1, 2, 6, 6, 6, *range(6, 19)])] * 3
        named = [text for text in map(logging.LogRecord.getMessage, caplog.records) if "unreadable" in text]
        assert len(named) == 3 and all(f"p{i}.png" in "".join(named) for i in (3, 4, 5))
        with pytest.raises(ValueError, match=r"a.parquet row [345] \(p[345].png\)"):
            train_batches(ImageData(str(tmp_path), num_validation=1, strict=True, size=8), 3)

    def test_nothing_readable(self, tmp_path: Path) -> None:
        for name in "abc":
            (tmp_path / f"{name}.png").write_bytes(b"")
        with pytest.raises(ValueError, match="expected a readable picture, got 2 unreadable ones"):
            ImageData(str(tmp_path)).setup()

    @pytest.mark.parametrize(
        ("prepare", "message"),
        [
            (lambda path: path / "missing.parquet", "which does not exist"),
            (lambda path: path / "a" / "b", "which does not exist"),
            (lambda path: path, "got none; give another folder"),
            (lambda path: save(path / "a.png", flat(0)).parent, "at least 2 training pictures"),
            (lambda path: save(path / "a.png", flat(0)), "at least 2 training pictures in .*got 1"),
            (lambda path: save(path / "test" / "a.png", flat(0)).parents[1], "got 0; add pictures, or rename"),
            (
                lambda path: (path / "x.parquet").write_bytes(b"PAR?") and path,
                "expected a Parquet file, got .*x.parquet",
            ),
            (lambda path: write_parquet(path / "x.parquet", [b""], "img"), "'image'.* got img, label"),
        ],
    )
    def test_bad_paths(self, tmp_path: Path, prepare: Callable[[Path], Path], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ImageData(str(prepare(tmp_path))).setup()

    def test_a_column_of_something_else(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "x.parquet", [png(flat(0))])
        with pytest.raises(ValueError, match=r"column of pictures 'label' in .*got image, label"):
            ImageData(str(tmp_path), column="label").setup()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(size=0), "size >= 1, got 0"),
            (dict(batch_size=0), "batch_size >= 1"),
            (dict(num_validation=0), "num_validation >= 1"),
            (dict(seed=-1), "seed >= 0"),
            (dict(channels=4), "1 .gray. or 3 .RGB., got 4"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ImageData(**arguments)  # type: ignore[arg-type]


class TestStream:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        for number in range(12):
            save(tmp_path / f"{number:02}.png", noise(12, 14, seed=number))
        return str(tmp_path)

    def test_every_epoch_holds_every_picture_once_in_another_order(self, tmp_path: Path) -> None:
        make_flat(tmp_path, 11)
        order = [n for batch in train_batches(ImageData(str(tmp_path), batch_size=4), 10) for n in numbers(batch)]
        epochs = [order[start : start + 10] for start in range(0, 40, 10)]
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs) and len(set(epochs[0])) == 10
        assert len({tuple(epoch) for epoch in epochs}) == 4

    def test_starts_at_the_tasks_step_bitwise(self, folder: str) -> None:
        full = train_batches(ImageData(folder, size=8, batch_size=5), 9)
        for steps, every, start in ((0, 1, 0), (4, 1, 4), (3, 2, 6)):
            resumed = DataModule(ImageData(folder, size=8, batch_size=5))
            task = SimpleNamespace(step=steps, accumulate=every)
            resumed.trainer = SimpleNamespace(lightning_module=task)  # type: ignore[assignment]
            assert torch.equal(next(iter(resumed.train_dataloader())), full[start])

    def test_seed_decides(self, folder: str) -> None:
        first, again, other = (train_batches(ImageData(folder, size=8, seed=seed), 1)[0] for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_ranks_share_the_one_process_batch(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = train_batches(ImageData(folder, size=8, batch_size=6), 3)
        parts = []
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
        for rank in range(3):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            parts.append(train_batches(ImageData(folder, size=8, batch_size=2), 3))
        for step, batch in enumerate(whole):
            assert torch.equal(torch.cat([part[step] for part in parts]), batch)

    def test_leaves_the_global_random_state_alone(self, folder: str) -> None:
        data = ImageData(folder, size=8)
        before = torch.get_rng_state()
        train_batches(data, 2), list(data.val_dataloader()), list(data.test_dataloader())
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.filterwarnings("ignore:::lightning")  # its hints, which `train` turns off
    def test_resumes_under_lightning_and_goes_on_from_epoch_to_epoch(self, folder: str, tmp_path: Path) -> None:
        class Recorder(Task):
            def __init__(self) -> None:
                super().__init__(OptimizerSettings())
                self.weight = torch.nn.Parameter(torch.zeros(()))
                self.seen: list[torch.Tensor] = []

            def losses(self, batch: torch.Tensor) -> list[torch.Tensor]:
                self.seen.append(batch.clone())
                return [self.weight * batch.mean()]

            def parameter_groups(self) -> list[dict[str, object]]:
                return [{"params": [self.weight]}]

            def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
                return []

            def finish(self, run: RunFolder, training: object) -> None:
                raise AssertionError("a trainer of one's own writes nothing")

        quiet = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)

        def fit(steps: int, checkpoint: str | None = None, **more: object) -> tuple[Recorder, Trainer]:
            recorder = Recorder()
            trainer = Trainer(max_steps=steps, enable_checkpointing=False, **quiet, **more)  # type: ignore[arg-type]
            trainer.fit(recorder, datamodule=DataModule(ImageData(folder, size=8, batch_size=3)), ckpt_path=checkpoint)
            return recorder, trainer

        full, _ = fit(7)
        first, trainer = fit(4)
        trainer.save_checkpoint(tmp_path / "c.ckpt")
        second, _ = fit(7, str(tmp_path / "c.ckpt"))
        assert torch.equal(torch.stack(full.seen), torch.stack(first.seen + second.seen))
        short_epochs, _ = fit(7, limit_train_batches=3)
        assert torch.equal(torch.stack(full.seen), torch.stack(short_epochs.seen))


class TestPhotographs:
    def test_batches(self) -> None:
        data = ImageData(batch_size=7)
        (batch,) = train_batches(data, 1)
        assert batch.shape == (7, 3, 64, 64) and batch.dtype == torch.float32
        assert batch.min() >= 0 and batch.max() <= 1 and batch.std() > 0.1
        evaluated = torch.cat(list(data.val_dataloader()))
        assert len(evaluated) >= 100 and evaluated.shape[1:] == (3, 64, 64)
        assert torch.equal(evaluated, torch.cat(list(data.test_dataloader())))
        assert ImageData(size=32, channels=1).shape == (1, 32, 32)

    @pytest.mark.parametrize("size", [16, 64, 160])
    def test_training_never_sees_what_is_held_out(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        marked = []
        side = module.HELD_OUT_SIZE
        for picture, (top, left) in zip(module._read_photographs(3), module.PHOTOGRAPHS.values(), strict=True):
            assert 0 <= top <= picture.shape[1] - side and 0 <= left <= picture.shape[2] - side
            marks = torch.zeros_like(picture)
            marks[:, top : top + side, left : left + side] = 255
            marked.append(marks)
        monkeypatch.setattr(module, "_read_photographs", lambda channels: marked)
        data = ImageData(size=size)
        assert max(batch.max().item() for batch in train_batches(data, 20)) == 0
        assert min(batch.min().item() for batch in data.val_dataloader()) == 1

    def test_every_allowed_place_and_no_other_is_used(self) -> None:
        assert module.HELD_OUT_SIZE == 160
        corners = {tuple(corner) for corner in module.free_corners(170, 200, 8, (5, 30, 160)).tolist()}
        places = itertools.product(range(170 - 8 + 1), range(200 - 8 + 1))
        apart = {(t, c) for t, c in places if t + 8 <= 5 or t >= 5 + 160 or c + 8 <= 30 or c >= 30 + 160}
        assert corners == apart and corners

    def test_size_is_limited(self) -> None:
        with pytest.raises(ValueError, match="at most 160 for 'photographs', got 161"):
            ImageData(size=161).setup()


@needs_shared
class TestRealSets:
    def test_cifar10(self) -> None:
        folder = SHARED / "cifar10"
        data = ImageData(str(folder))
        assert data.shape == (3, 32, 32)
        validation = next(iter(data.val_dataloader()))
        rows = pq.read_table(folder / "train-00002-of-00003.parquet", columns=["image"])["image"]
        expected = np.asarray(Image.open(io.BytesIO(rows[len(rows) - 2000].as_py()["bytes"])))
        assert np.array_equal((validation[0] * 255).round().permute(1, 2, 0).numpy(), expected)
        assert sum(map(len, data.val_dataloader())) == 2000 and sum(map(len, data.test_dataloader())) == 10000

    def test_fashion_mnist_is_gray(self) -> None:
        data = ImageData(str(SHARED / "fashion-mnist"), channels=1)
        (batch,) = train_batches(data, 1)
        assert batch.shape == (64, 1, 28, 28) and batch.mean() > 0.1

    def test_kodak(self) -> None:
        data = ImageData(str(SHARED / "kodak"))
        assert data.shape == (3, 64, 64) and train_batches(data, 1)[0].std() > 0.1
        name, tensor = next(read_images(SHARED / "kodak"))
        assert (name, tuple(tensor.shape)) == ("kodim01.png", (3, 512, 768))
