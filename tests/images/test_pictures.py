"""Opening pictures: names of splits, folders with links, row groups of Parquet files, whole pictures in batches."""

from __future__ import annotations

import io
import itertools
import logging
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from gritvq.images import ImageData, find_images, open_pictures, read_images, sources
from gritvq.images.decoding import _is_transparent
from gritvq.images.splits import folder_looks_held_out, looks_held_out, split_of


def flat(value: int, height: int = 8, width: int = 8) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), value, np.uint8))


def png(value: int, height: int = 8, width: int = 8) -> bytes:
    stream = io.BytesIO()
    flat(value, height, width).save(stream, "PNG")
    return stream.getvalue()


def write(place: Path, values: Sequence[int], group: int = 4) -> Path:
    """Flat pictures of these values: files of a folder, or rows of a Parquet file with their values as labels."""
    if place.suffix == ".parquet":
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"bytes": png(value), "path": None} for value in values]
        pq.write_table(pa.table({"image": rows, "label": list(values)}), place, row_group_size=group)
        return place
    place.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        flat(value).save(place / f"{number:03}.png")
    return place


def values(loader: object) -> list[int]:
    """The values of flat pictures in batches."""
    return [int(value) for batch in loader for value in (batch[:, 0, 0, 0] * 255).round()]  # type: ignore[attr-defined]


def trained_on(data: ImageData, batches: int = 1) -> list[int]:
    return values(itertools.islice(data.train_dataloader(), batches))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in map(logging.LogRecord.getMessage, caplog.records) if "held out" in text]


class TestSplits:
    @pytest.mark.parametrize(
        ("split", "names"),
        [
            ("train", "train TRAIN Training training_set train2017 trainA DIV2K_train_HR cifar10-train partial-train"),
            ("train", "trainset trainimages traindata"),
            ("validation", "val Valid validation validate val2017 valB DIV2K_valid_HR dev eval imagenet_validation_0"),
            ("validation", "valimages ValImages devset evalset evaldata valimgs"),
            ("test", "test tests Testing test_set testset test2017 testA test-00000-of-00001 hold-out HeldOut holdout"),
            ("test", "testimages testdata test_images testingset"),
        ],
    )
    def test_words_that_say_a_split(self, split: str, names: str) -> None:
        for name in names.split():
            assert split_of([name]) == (split, name), name
            assert split_of(["images", name, "class"]) == (split, name), name
            assert looks_held_out([name]) == (split != "train"), name

    @pytest.mark.parametrize(
        "name",
        ["latest", "comparison", "value", "invalid", "device", "developer", "restrain", "testimony", "other", "2017"],
    )
    def test_words_that_only_look_alike(self, name: str) -> None:
        assert split_of([name]) is None and not looks_held_out([name])

    def test_a_folder_with_a_name_that_says_nothing_is_what_is_around_it(self) -> None:
        for folder in ("coco/val2017", "yolo/valid/images", "data/test/2014", "images/val", "dev.parquet"):
            assert folder_looks_held_out(Path(folder)), folder
        for folder in ("yolo/train/images", "test_project/images", "test/cats", "images", "/", "owner/name"):
            assert not folder_looks_held_out(Path(folder)), folder

    def test_a_plain_name_counts_more_than_one_among_other_words_and_outside_more_than_inside(self) -> None:
        assert split_of(["test_project", "train"]) == ("train", "train")
        assert split_of(["train", "test_tube"]) == ("train", "train")
        assert split_of(["test", "train"]) == ("test", "test")
        assert split_of(["cats-test", "dogs-train"]) == ("test", "cats-test")

    @pytest.mark.parametrize(
        "layout",
        [
            ("train", "val", "test"),
            ("train2017", "val2017", "test2017"),  # COCO
            ("Training", None, "Testing"),  # Kaggle
            ("training_set", None, "test_set"),
            ("DIV2K_train_HR", "DIV2K_valid_HR", None),
            ("images/train", "images/val", "images/test"),  # YOLO
            ("cats/train", None, "cats/test"),
            ("train", "dev", "holdout"),
            ("data/train-00000-of-00001.parquet", "data/dev-0.parquet", "data/test-0.parquet"),
            ("cifar10-train.parquet", None, "cifar10-test.parquet"),
        ],
    )
    def test_what_is_held_out_by_name_is_not_trained_on(
        self, tmp_path: Path, layout: tuple[str, str | None, str | None], caplog: pytest.LogCaptureFixture
    ) -> None:
        for value, name in enumerate(layout, 1):
            if name:
                write(tmp_path / name, [value] * 12)
        data = ImageData(str(tmp_path), batch_size=24)
        assert set(trained_on(data)) == {1}
        assert set(values(data.val_dataloader())) == ({2} if layout[1] else {1})
        assert set(values(data.test_dataloader())) == ({3} if layout[2] else {2})
        assert not warnings_of(caplog)

    def test_a_folder_that_names_nothing_is_for_training_beside_one_that_does(self, tmp_path: Path) -> None:
        for name, value in (("extra", 1), ("train", 2), ("val", 3)):
            write(tmp_path / name, [value] * 4)
        data = ImageData(str(tmp_path), batch_size=8)
        assert sorted(trained_on(data)) == [1] * 4 + [2] * 4
        assert data.describe() == {
            "data": str(tmp_path),
            "splits": {
                "train": {"pictures": 8, "from": "no name of a split, train"},
                "validation": {"pictures": 4, "from": "val"},
                "test": {"pictures": 4, "from": "as validation"},
            },
            "crops": "random for training, at the center for validation during it; evaluation uses whole pictures",
        }
        said = "train 8 (no name of a split, train), validation 4 (val), test 4 (as validation)"
        assert data.summary() == f"{tmp_path}: {said}"

    def test_the_held_out_end_is_described(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", range(30))
        described = ImageData(str(tmp_path)).describe()["splits"]
        assert described["train"]["pictures"] == 27
        assert described["validation"] == {"pictures": 3, "from": "the last 3 of train"}

    def test_training_on_files_called_after_a_split_is_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in range(6):
            flat(number).save(tmp_path / f"COCO_{'val' if number < 2 else 'train'}2014_{number:012}.png")
        ImageData(str(tmp_path)).setup()
        (told,) = warnings_of(caplog)
        assert "2 of 6 training pictures" in told and "COCO_val2014_000000000000.png" in told

    @pytest.mark.parametrize("name", ["DIV2K_valid_HR", "test.parquet", "test"])
    def test_training_on_a_path_called_after_a_split_is_told(
        self, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = ImageData(str(write(tmp_path / name, range(6))))
        data.describe(), data.pictures("validation")
        assert not warnings_of(caplog)  # only training is
        data.setup()
        (told,) = warnings_of(caplog)
        assert "6 of 6 training pictures" in told and name in told

    def test_names_below_a_training_folder_and_plain_ones_are_not_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(tmp_path / "a" / "train" / "test_tube", range(4))
        write(tmp_path / "b" / "cats", range(4))
        for folder in ("a", "b"):
            ImageData(str(tmp_path / folder)).setup()
        assert not warnings_of(caplog)

    @pytest.mark.usefixtures("hub_in_reach")
    def test_splits_of_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})

        def rows(value: int) -> object:
            pictures = [{"bytes": png(value), "path": None}] * 4
            return datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features=features)

        names = {"train_small": 1, "dev": 2, "eval_hard": 2, "holdout": 3, "unlabeled": 4}
        loaded = datasets.DatasetDict({name: rows(value) for name, value in names.items()})
        monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
        data = ImageData("someone/pictures", batch_size=8)
        assert set(trained_on(data)) == {1}
        assert (values(data.val_dataloader()), values(data.test_dataloader())) == ([2] * 8, [3] * 4)
        first = open_pictures("someone/pictures", split="test")[1]
        assert (first.name, first.label) == ("holdout/1", 1)


class TestOpening:
    def test_a_folder(self, tmp_path: Path) -> None:
        flat(1, 3, 5).save(write(tmp_path / "sub", [2]) / "b.png")
        flat(3).save(tmp_path / "z.png")
        pictures = open_pictures(tmp_path, channels=1)
        assert [picture.name for picture in pictures] == ["sub/000.png", "sub/b.png", "z.png"]
        assert [tuple(picture.pixels.shape) for picture in pictures] == [(1, 8, 8), (1, 3, 5), (1, 8, 8)]
        assert [int(pictures[index].pixels[0, 0, 0]) for index in range(3)] == [2, 1, 3]
        assert pictures.describe() == {
            "data": str(tmp_path),
            "splits": {"all": {"no name of a split": 3}},
            "pictures": 3,
        }

    def test_a_single_picture(self, tmp_path: Path) -> None:
        (picture,) = open_pictures(write(tmp_path / "test", [7]) / "000.png", split="test")
        assert (picture.name, int(picture.pixels[2, 7, 7]), picture.label) == ("000.png", 7, None)
        (tmp_path / "broken.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match="expected a readable picture"):
            list(open_pictures(tmp_path / "broken.png"))

    def test_parquet_with_labels(self, tmp_path: Path) -> None:
        write(tmp_path / "test-0.parquet", range(11))
        write(tmp_path / "test-1.parquet", [50])
        pictures = open_pictures(tmp_path, split="test")
        assert [picture.name for picture in pictures] == [*(f"test-0/{n:02}" for n in range(11)), "test-1/0"]
        assert [picture.label for picture in pictures] == [*range(11), 50]
        assert [int(picture.pixels[0, 0, 0]) for picture in pictures] == [*range(11), 50]
        assert open_pictures(tmp_path, label="none")[3].label is None

    def test_names_sort_as_they_are_read(self, tmp_path: Path) -> None:
        write(tmp_path / "train", range(12))
        write(tmp_path / "test" / "b", range(3))
        write(tmp_path / "rows" / "x.parquet", range(102))
        for place in (tmp_path / "train", tmp_path / "test", tmp_path / "rows"):
            names = [picture.name for picture in open_pictures(place)]
            assert names == sorted(set(names))

    def test_pictures_in_memory(self) -> None:
        gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
        color = torch.arange(18, dtype=torch.uint8).reshape(3, 2, 3)
        pictures = open_pictures([Image.fromarray(gray), gray, color, color.permute(1, 2, 0).numpy(), color[:1]])
        assert [picture.name for picture in pictures] == list("01234")
        for index in (0, 1):
            assert torch.equal(pictures[index].pixels, torch.from_numpy(gray).expand(3, 2, 3))
        assert torch.equal(pictures[2].pixels, color) and torch.equal(pictures[3].pixels, color)
        assert torch.equal(pictures[4].pixels, color[:1].expand(3, 2, 3))

    def test_the_photographs_and_their_squares(self) -> None:
        whole, squares = open_pictures("photographs"), open_pictures("photographs", split="held_out")
        assert [picture.name for picture in squares] == [picture.name for picture in whole]
        assert torch.equal(squares[0].pixels, whole[0].pixels[:, 16:176, 144:304])
        assert {tuple(picture.pixels.shape) for picture in squares} == {(3, 160, 160)}
        with pytest.raises(ValueError, match=r"got 'train'; .*ImageData"):
            open_pictures("photographs", split="train")

    def test_which_split(self, tmp_path: Path) -> None:
        for number, name in enumerate(("train", "val", "test")):
            write(tmp_path / "three" / name, [number] * (number + 2))
        expected = {None: 9, "train": 2, "validation": 3, "test": 4, "held_out": 3}
        assert {split: len(open_pictures(tmp_path / "three", split=split)) for split in expected} == expected
        for split in ("test", "held_out", None):
            assert len(open_pictures(write(tmp_path / "one" / "test", range(5)).parent, split=split)) == 5
        with pytest.raises(ValueError, match=r"expected validation pictures in .*got test; choose one"):
            open_pictures(tmp_path / "one", split="validation")
        for split in ("train", "validation", "test", "held_out"):  # it stands alone
            assert len(open_pictures(tmp_path / "one" / "test", split=split)) == 5
        with pytest.raises(ValueError, match=r"expected split to be train, .*got 'val'"):
            open_pictures(tmp_path, split="val")

    def test_the_pictures_of_a_run(self, tmp_path: Path) -> None:
        flat(20, 5, 9).save(write(tmp_path / "train", range(20)) / "x.png")
        data = ImageData(str(tmp_path), size=4, batch_size=19)
        held_out, rest = (
            {int(picture.pixels[0, 0, 0]) for picture in data.pictures(split)} for split in ("validation", "train")
        )
        assert held_out == set(values(data.val_dataloader())) and rest == set(trained_on(data))
        assert len(held_out) == 2 and held_out | rest == set(range(21))
        assert {tuple(p.pixels.shape[1:]) for s in ("train", "test") for p in data.pictures(s)} == {(8, 8), (5, 9)}
        only = ImageData(str(write(tmp_path / "only" / "test", [1]).parent))
        assert len(only.pictures("test")) == 1  # no training pictures are needed
        with pytest.raises(ValueError, match=r"expected validation pictures in .*got test"):
            only.pictures("validation")

    def test_whole_pictures_in_batches_of_equal_size(self, tmp_path: Path) -> None:
        sizes = [(8, 8)] * 5 + [(8, 9)] * 2 + [(8, 8)] + [(100, 100)]
        for number, size in enumerate(sizes):
            flat(number, *size).save(tmp_path / f"{number}.png")
        batches = list(open_pictures(tmp_path).batches(batch_size=3, max_pixels=8 * 8 * 2))
        assert [[picture.name[0] for picture in batch] for batch, _ in batches] == [
            *(["0", "1"], ["2", "3"], ["4"], ["5"], ["6"], ["7"], ["8"])
        ]
        assert [len(batch) for batch, _ in open_pictures(tmp_path).batches(batch_size=3)] == [3, 2, 2, 1, 1]
        for batch, images in batches:
            assert images.dtype == torch.float32
            assert torch.equal((images * 255).round().byte(), torch.stack([picture.pixels for picture in batch]))

    def test_unreadable_pictures_are_left_out_and_named_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (write(tmp_path, range(3)) / "001.png").write_bytes(b"no picture")
        pictures = open_pictures(tmp_path)
        for _ in range(2):
            assert [picture.name for picture in pictures] == ["000.png", "002.png"]
        assert [batch[1].name for batch, _ in pictures.batches()] == ["002.png"]
        assert caplog.text.count("001.png") == 1
        with pytest.raises(ValueError, match=r"001\.png"):
            pictures[1]


class TestLinks:
    def test_folders_put_together_from_links(self, tmp_path: Path) -> None:
        for name, value in (("a", 1), ("b", 2)):
            write(tmp_path / "store" / name, [value] * 3)
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "a").symlink_to(tmp_path / "store" / "a")
        (tmp_path / "links" / "more").symlink_to("../store")
        found = [path.relative_to(tmp_path / "links").as_posix() for path in find_images(tmp_path / "links")]
        assert found == [f"{place}/{n:03}.png" for place in ("a", "more/b") for n in range(3)]
        (tmp_path / "store" / "a" / "loop").symlink_to(tmp_path / "store")
        assert len(find_images(tmp_path / "store")) == len(find_images(tmp_path / "links")) == 6

    def test_a_linked_split(self, tmp_path: Path) -> None:
        write(tmp_path / "set" / "train", [1] * 20)
        (tmp_path / "set" / "validation").symlink_to(write(tmp_path / "elsewhere", [2] * 5))
        data = ImageData(str(tmp_path / "set"), batch_size=20)
        assert set(trained_on(data)) == {1} and values(data.val_dataloader()) == [2] * 5

    def test_what_is_linked_within_goes_by_its_own_name(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "z", range(2))
        (tmp_path / "a").symlink_to(folder)
        (tmp_path / "0.png").symlink_to(folder / "000.png")
        (tmp_path / "1.png").symlink_to(write(tmp_path.parent / "outside", [9]) / "000.png")
        found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
        assert found == ["1.png", "z/000.png", "z/001.png"]

    def test_broken_links_pipes_and_devices_are_no_pictures(self, tmp_path: Path) -> None:
        write(tmp_path, [1])
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "nothing.png").symlink_to(tmp_path / "gone.png")
        (tmp_path / "device.png").symlink_to("/dev/zero")
        assert [name for name, _ in read_images(tmp_path)] == ["000.png"]
        os.mkfifo(tmp_path / "rows.parquet")
        for name in ("pipe.png", "device.png", "rows.parquet"):
            for opened in (open_pictures, lambda path: ImageData(str(path)).setup()):
                with pytest.raises(ValueError, match=f"got .*{name}', which is a pipe, a socket or a device"):
                    opened(tmp_path / name)


class TestParquet:
    @pytest.fixture
    def large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Two files of 20 and 12 noise pictures of about 12 KB, five to a group, of which two fit into memory."""
        monkeypatch.setattr(sources, "_SMALL", 100_000)
        monkeypatch.setattr(sources, "_WINDOW", 130_000)
        rng, number = np.random.default_rng(0), 0
        for name, count in (("a", 20), ("b", 12)):
            rows = []
            for _ in range(count):
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                pixels[0, 0] = number
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
                rows.append({"bytes": stream.getvalue(), "path": None})
                number += 1
            pq.write_table(pa.table({"image": rows}), tmp_path / f"{name}.parquet", row_group_size=5)
        return tmp_path

    def numbers(self, batch: torch.Tensor) -> list[int]:
        return (batch[:, 0, 0, 0] * 255).round().int().tolist()

    def data(self, folder: Path, **more: int) -> ImageData:
        return ImageData(str(folder), size=64, batch_size=4, num_validation=4, **more)

    def test_small_sets_are_shuffled_as_a_whole(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", range(40))
        got = trained_on(ImageData(str(tmp_path), batch_size=36, num_validation=4, seed=5), 3)
        orders = [np.random.default_rng([5, 0, epoch]).permutation(36) for epoch in range(3)]
        assert got == np.concatenate(orders).tolist()

    def test_large_sets_are_shuffled_group_by_group(self, large: Path) -> None:
        batches = itertools.islice(self.data(large).train_dataloader(), 15)
        order = [number for batch in batches for number in self.numbers(batch)]
        groups = [range(0, 5), range(5, 10), range(10, 15), range(15, 20), range(20, 25), range(25, 29)]
        for epoch, start in enumerate((0, 29)):  # 32 pictures without a tenth
            seen = order[start : start + 29]
            assert sorted(seen) == list(range(29))
            shuffled = np.random.default_rng([0, 0, epoch]).permutation(6)
            for pair in (shuffled[:2], shuffled[2:4], shuffled[4:]):  # two groups at a time, mixed
                together = [*groups[pair[0]], *groups[pair[1]]]
                window, seen = seen[: len(together)], seen[len(together) :]
                assert sorted(window) == sorted(together) and window != together
        assert order[:29] != order[29:58]

    def test_resumes_in_the_middle(self, large: Path) -> None:
        full = list(itertools.islice(self.data(large).train_dataloader(), 20))
        loader = self.data(large).train_dataloader()
        loader.first_step = lambda: 13  # type: ignore[attr-defined]
        for batch, expected in zip(loader, full[13:], strict=False):
            assert torch.equal(batch, expected)

    def test_reads_each_group_once_an_epoch_and_holds_two(self, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[int] = []
        original = pq.ParquetFile.read_row_group

        def counted(file: pq.ParquetFile, group: int, *more: object, **others: object) -> pa.Table:
            read.append(group)
            return original(file, group, *more, **others)

        monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
        data = self.data(large)
        data.setup()
        data.describe()
        assert read == []  # nothing is read before a picture is asked for
        before = pa.total_allocated_bytes()
        held = []
        batches = iter(data.train_dataloader())
        for _ in range(7):  # 28 of 29 pictures
            next(batches)
            held.append(pa.total_allocated_bytes() - before)
        assert len(read) == 6  # groups with training pictures
        size = sum(file.stat().st_size for file in large.iterdir())
        assert max(held) < 0.45 * size  # two of seven groups

    def test_a_damaged_row_group_is_told_not_raised(self, large: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = large / "b.parquet"
        content = bytearray(path.read_bytes())
        content[4:200] = b"x" * 196  # in the first row group, not in the footer
        path.write_bytes(bytes(content))
        names = [picture.name for picture in open_pictures(large)]
        assert len(names) >= 27 and "a/00" in names and "b/11" in names
        assert "b.parquet row 0" in caplog.text


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on machines of fewer cores
class TestWorkers:
    @pytest.mark.parametrize("place", ["folder", "a.parquet"])
    def test_batches_are_the_same_with_any_number_of_workers(self, tmp_path: Path, place: str) -> None:
        write(tmp_path / place, range(30))
        alone, several = (ImageData(str(tmp_path / place), size=4, batch_size=4, num_workers=n) for n in (0, 3))
        expected = list(itertools.islice(alone.train_dataloader(), 11))
        loaders = [several.train_dataloader() for _ in range(2)]
        loaders[1].first_step = lambda: 5  # type: ignore[attr-defined]
        for loader, start in zip(loaders, (0, 5), strict=True):
            got = list(itertools.islice(loader, 11 - start))
            assert torch.equal(torch.stack(got), torch.stack(expected[start:]))
        assert values(several.val_dataloader()) == values(alone.val_dataloader())

    @pytest.mark.parametrize("place", ["folder", "a.parquet", "photographs"])
    def test_loaders_go_to_processes_that_start_afresh(self, tmp_path: Path, place: str) -> None:
        path = place if place == "photographs" else str(write(tmp_path / place, range(30)))
        data = ImageData(path, size=4, batch_size=4)
        stream = data.train_dataloader().dataset
        again = pickle.loads(pickle.dumps(stream))
        assert torch.equal(again.batch(3), stream.batch(3))  # type: ignore[attr-defined]
        fixed = data.val_dataloader().dataset
        assert torch.equal(pickle.loads(pickle.dumps(fixed))[1], fixed[1])

    def test_bad_number(self) -> None:
        with pytest.raises(ValueError, match="num_workers >= 0, got -1"):
            ImageData(num_workers=-1)


class TestOldPillow:
    @pytest.mark.skipif(
        not hasattr(Image.Image, "has_transparency_data"), reason="the reference is a property that Pillow 10.0 lacks"
    )
    def test_transparency_as_pillow_says_it(self) -> None:
        palette = Image.new("P", (2, 2))
        palette.putpalette([1, 2, 3, 4] * 2, "RGBA")
        marked = Image.new("RGB", (2, 2))
        marked.info["transparency"] = (0, 0, 0)
        modes = (
            "1",
            "L",
            "LA",
            "La",
            "P",
            "PA",
            "RGB",
            "RGBA",
            "RGBa",
            "CMYK",
            "YCbCr",
            "HSV",
            "LAB",
            "I",
            "F",
            "I;16",
        )
        images = [*(Image.new(mode, (2, 2)) for mode in modes), palette, marked]
        said = [_is_transparent(image) for image in images]
        assert said == [image.has_transparency_data for image in images] and sum(said) == 7

    def test_reads_without_what_pillow_10_0_lacks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(Image.Image, "has_transparency_data", raising=False)
        for mode in ("RGB", "L", "RGBA", "P"):
            Image.new(mode, (4, 4)).save(tmp_path / f"{mode}.png")
        got = {name: int(pixels.max()) for name, pixels in read_images(tmp_path)}
        assert got == {"RGB.png": 0, "L.png": 0, "RGBA.png": 255, "P.png": 0}
