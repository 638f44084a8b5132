"""The program: every verb on small pictures, and every kind of wrong input."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from PIL import Image

import gritvq
from gritvq import Tokenizer, VectorQuantizer, msvq, vq_vae
from gritvq.cli import comparison_entries, main
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer, read_images
from gritvq.tokens import TokenRow, read_tokens, write_tokens
from program import wrong
from test_image_tokenizer import Own

pytestmark = pytest.mark.usefixtures("own_folder")


def picture(height: int, width: int, seed: int) -> Image.Image:
    corners = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of 16 x 16 to train on."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        picture(16, 16, number).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of all kinds and sizes."""
    folder = tmp_path_factory.mktemp("odd")
    picture(37, 50, 1).save(folder / "a.png")
    picture(16, 9, 2).convert("L").save(folder / "gray.png")
    picture(8, 8, 3).convert("RGBA").save(folder / "alpha.png")
    (folder / "deep").mkdir()
    picture(21, 20, 4).save(folder / "deep" / "b.jpg")
    return folder


SMALL = {
    "tokenizer": {
        "encoder": {"class_path": "gritvq.images.ImageEncoder", "init_args": {"dim": 6, "width": 8, "num_blocks": 1}},
        "quantizer": {"class_path": "gritvq.grit_vq", "init_args": {"dim": 6, "codebook_size": 32}},
        "decoder": {"class_path": "gritvq.images.ImageDecoder", "init_args": {"dim": 6, "width": 8, "num_blocks": 1}},
    },
    "data": {"batch_size": 8},
    "task": {"lr": 0.003, "warmup_steps": 3},
    "plan": {"max_steps": 20, "validate_every": 10, "checkpoint_every": 10, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished small run."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    assert (
        main(
            ["fit", "--config", str(folder / "small.yaml"), "--data.path", str(pictures), "--out", str(folder / "run")]
        )
        == 0
    )
    return folder / "run"


def lines(text: str) -> dict[str, str]:
    """The ``name: path`` lines that end every verb."""
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and "│" not in line)


def losses(run: Path, number: int) -> dict[int, float]:
    with (run / "logs" / f"run-{number}" / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")}


class TestFit:
    def test_says_where_everything_is(self, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("small.yaml").write_text(yaml.safe_dump(SMALL))
        assert main(["fit", "--config", "small.yaml", "--data.path", str(pictures), "--out", "run"]) == 0
        said = capsys.readouterr()
        for word in ("PSNR", "codes in use", "perplexity", "bits per pixel"):
            assert word in said.out
        for path in lines(said.out).values():
            assert Path(path).exists()
        assert "parameters for 20 steps" in said.err
        numbers = json.loads(Path("run/metrics.json").read_text())
        assert numbers["psnr"] > 8 and 0 < numbers["usage"] <= 1

    def test_its_own_config_repeats_it_bitwise(self, run: Path) -> None:
        assert main(["fit", "--config", str(run / "config.yaml"), "--out", "again"]) == 0
        assert (Path("again/tokenizer/model.safetensors")).read_bytes() == (
            run / "tokenizer" / "model.safetensors"
        ).read_bytes()

    def test_the_tokenizer_says_how_it_was_trained(self, run: Path, pictures: Path) -> None:
        said = json.loads((run / "tokenizer" / "config.json").read_text())["training"]
        assert (said["steps"], said["seed"], said["version"]) == (20, 0, gritvq.__version__)
        assert said["data"]["path"] == str(pictures) and said["data"]["num_validation"] == 2000
        counts = {split: found["pictures"] for split, found in said["data"]["splits"].items()}
        assert counts == {"train": 36, "validation": 4, "test": 4}

    def test_resumes_bitwise(self, run: Path) -> None:
        checkpoint = run / "checkpoints" / "step-10.ckpt"
        assert main(["fit", "--config", str(run / "config.yaml"), "--out", "b", "--resume", str(checkpoint)]) == 0
        whole, resumed = losses(run, 0), losses(Path("b"), 0)
        assert resumed and all(whole[step] == value for step, value in resumed.items())
        assert (Path("b/tokenizer/model.safetensors")).read_bytes() == (
            run / "tokenizer" / "model.safetensors"
        ).read_bytes()

    def test_does_not_overwrite_unless_told(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["fit", "--config", str(run / "config.yaml"), "--plan.max_steps", "2", "--out", "run"]
        assert main(arguments) == 0
        before = Path("run/tokenizer/model.safetensors").read_bytes()
        assert main(arguments) == 2
        assert "--overwrite true" in capsys.readouterr().err
        assert Path("run/tokenizer/model.safetensors").read_bytes() == before
        assert main([*arguments, "--overwrite", "true", "--plan.max_steps", "3"]) == 0
        assert Path("run/tokenizer/model.safetensors").read_bytes() != before

    def test_goes_on_with_the_last_checkpoint(self, run: Path) -> None:
        arguments = ["fit", "--config", str(run / "config.yaml"), "--out", "run"]
        assert main([*arguments, "--plan.max_steps", "10"]) == 0
        assert main([*arguments, "--plan.max_steps", "9", "--resume", "last"]) == 2  # fewer than are done
        assert main([*arguments, "--plan.max_steps", "15", "--resume", "last"]) == 0
        assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 15
        said = Path("run/config.yaml").read_text()
        assert said.startswith("# the first 10 steps were done with plan.max_steps 10\n")
        assert yaml.safe_load(said)["plan"]["max_steps"] == 15

    def test_resuming_leaves_other_runs_and_refused_ones_alone(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["fit", "--config", str(run / "config.yaml"), "--plan.max_steps", "2", "--out", "other"]
        assert main(arguments) == 0
        before = {path: path.read_bytes() for path in Path("other").rglob("*") if path.is_file()}
        assert main([*arguments, "--resume", str(run / "checkpoints" / "step-10.ckpt")]) == 2
        assert main([*arguments, "--resume", "last", "--tokenizer.quantizer.codebook_size", "16"]) == 2
        assert "codebook_size 32 (got 16)" in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in Path("other").rglob("*") if path.is_file()}

    @pytest.mark.soak  # two interpreters load everything; what processes exchange is in test_distributed.py
    def test_two_processes(self, run: Path, tmp_path: Path) -> None:
        arguments = ["--config", str(run / "config.yaml"), "--plan.devices", "2", "--out", "two"]
        code = "import sys; from gritvq.cli import main; sys.exit(main())"
        Path("program.py").write_text(code)
        done = subprocess.run(
            [sys.executable, "program.py", "fit", *arguments], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("bits per pixel") == 1
        assert json.loads(Path("two/metrics.json").read_text())["bits_per_pixel"] == 5 / 16
        assert json.loads(Path("two/metrics.json").read_text())["tokens"] == 64
        assert Tokenizer.from_pretrained("two/tokenizer").factor == 4


def test_demo_trains_on_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "2", "--codebook_size", "64", "--out", "demo"]) == 0
    files = lines(capsys.readouterr().out)
    assert {"tokenizer", "codebook", "usage", "originals and reconstructions"} <= files.keys()
    for name in ("reconstructions", "usage", "codebook"):
        assert np.asarray(Image.open(f"demo/{name}.png")).std() > 5
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("words")
    Path("thesis/checkpoints").mkdir()
    assert main(["demo", "--steps", "2", "--out", "thesis"]) == 2
    assert sorted(path.name for path in Path("thesis").iterdir()) == ["chapter.tex", "checkpoints"]


@pytest.mark.soak
def test_a_demo_may_be_repeated_and_is_a_run_like_any_other() -> None:
    for steps in ("2", "1"):
        assert main(["demo", "--steps", steps, "--codebook_size", "64", "--out", "demo"]) == 0
    assert main(["fit", "images", "--config", "demo/config.yaml", "--out", "again"]) == 0
    weights = "tokenizer/model.safetensors"
    assert Path("demo", weights).read_bytes() == Path("again", weights).read_bytes()


class TestEncodeDecode:
    @pytest.mark.parametrize("ending", ["npz", "parquet"])
    def test_pictures_of_any_size_come_back(
        self, run: Path, odd: Path, ending: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tokenizer = str(run / "tokenizer")
        assert main(["encode", str(odd), "--tokenizer", tokenizer, "--out", f"t.{ending}"]) == 0
        assert "4 of 4" in capsys.readouterr().out
        assert main(["decode", f"t.{ending}", "--tokenizer", tokenizer, "--out", "back"]) == 0
        model = Tokenizer.from_pretrained(tokenizer)
        for name, size in {"a": (50, 37), "gray": (9, 16), "alpha": (8, 8), "deep/b": (20, 21)}.items():
            with Image.open(f"back/{name}.png") as image:
                assert image.size == size
        original = torch.from_numpy(np.asarray(Image.open(odd / "a.png")).copy()).permute(2, 0, 1)
        expected = model.decode(model.encode(original), (37, 50))
        decoded = np.asarray(Image.open("back/a.png"))
        np.testing.assert_array_equal(decoded, (expected * 255).round().byte().permute(1, 2, 0).numpy())

    def test_what_the_files_hold(self, run: Path, odd: Path) -> None:
        for ending in ("npz", "parquet"):
            assert main(["encode", str(odd), "--tokenizer", str(run / "tokenizer"), "--out", f"t.{ending}"]) == 0
        with np.load("t.npz") as file:
            assert file["tokens/a.png"].shape == (10, 13, 1) and file["tokens/a.png"].dtype == np.int64
            rows = {row["name"]: row for row in parquet.read_table("t.parquet").to_pylist()}
            assert rows.keys() == {"a.png", "gray.png", "alpha.png", "deep/b.jpg"}
            assert rows["a.png"]["tokens"] == file["tokens/a.png"].flatten().tolist()
            assert (rows["a.png"]["height"], rows["a.png"]["width"]) == (37, 50)

    def test_tables_with_labels(self, run: Path, odd: Path) -> None:
        tokenizer, labels = str(run / "tokenizer"), ["cat", None, "dog", "cat"]
        table_of(odd, Path("some.parquet"), labels)
        for source, out in ((str(odd), "a.npz"), ("some.parquet", "b.npz"), ("some.parquet", "c.parquet")):
            batch = [] if source == str(odd) else ["--batch_size", "1"]
            assert main(["encode", source, "--tokenizer", tokenizer, "--out", out, *batch]) == 0
        expected = read_tokens("a.npz")
        for found in (read_tokens("b.npz"), read_tokens("c.parquet")):
            assert [item.columns.get("label") for item in found] == labels
            assert [item.name for item in found] == [f"some/{number}" for number in range(4)]
            assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(found, expected, strict=True))

    def test_pictures_of_equal_size_are_encoded_together(
        self, run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        whole = ImageTokenizer.encode

        def encode(self: ImageTokenizer, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return whole(self, images)

        monkeypatch.setattr(ImageTokenizer, "encode", encode)
        arguments = ["encode", str(pictures), "--tokenizer", str(run / "tokenizer"), "--out"]
        assert main([*arguments, "a.npz", "--batch_size", "16"]) == 0 and sizes == [16, 16, 8]
        assert main([*arguments, "b.npz", "--batch_size", "1"]) == 0
        for x, y in zip(read_tokens("a.npz"), read_tokens("b.npz"), strict=True):
            assert x.name == y.name and torch.equal(x.tokens, y.tokens)

    def test_classes_of_other_modules_need_trust(self, odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
        quantizer = VectorQuantizer(Own(4, 16))
        ImageTokenizer(ImageEncoder(4, width=8), quantizer, ImageDecoder(4, width=8)).save_pretrained("own")
        for verb in (
            ["encode", str(odd), "--tokenizer", "own", "--out", "t.npz"],
            ["decode", "t.npz", "--tokenizer", "own"],
            ["validate", "own", "--data.path", str(odd), "--out", "numbers"],
        ):
            assert "pass trusted=['test_image_tokenizer']" in wrong(verb, capsys)
            assert main([*verb, "--trusted", "[test_image_tokenizer]"]) == 0

    def test_broken_pictures(self, run: Path, odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("some").mkdir()
        picture(8, 8, 0).save("some/good.png")
        Path("some/bad.png").write_bytes(b"not a picture")
        arguments = ["encode", "some", "--tokenizer", str(run / "tokenizer"), "--out", "t.npz"]
        assert main(arguments) == 0
        assert "1 of 2" in capsys.readouterr().out
        Path("t.npz").unlink()
        assert main([*arguments, "--strict", "true"]) == 2
        assert "bad.png" in capsys.readouterr().err and not Path("t.npz").exists()

    def test_kodak(self, run: Path, kodak: Path) -> None:
        names = [path.name for path in sorted(kodak.glob("*.png"))[:2]]
        Path("kodak").mkdir()
        for name in names:
            Path("kodak", name).symlink_to(kodak / name)
        tokenizer = str(run / "tokenizer")
        assert main(["encode", "kodak", "--tokenizer", tokenizer, "--out", "t.npz"]) == 0
        assert main(["decode", "t.npz", "--tokenizer", tokenizer, "--out", "back"]) == 0
        for name in names:
            with Image.open(f"back/{name}") as decoded, Image.open(f"kodak/{name}") as original:
                assert decoded.size == original.size


class TestExport:
    @pytest.mark.soak  # what the programs say is in test_export.py
    def test_writes_programs_and_compares_them(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["export", str(run / "tokenizer"), "--out", "programs", "--format", "torch"]) == 0
        said = capsys.readouterr()
        assert f"{3 * 8 * 8} of {3 * 8 * 8}" in said.out and "warning" not in said.err
        assert lines(said.out) == {"encoder": "programs/encoder.pt2", "decoder": "programs/decoder.pt2"}
        assert sorted(path.name for path in Path("programs").iterdir()) == ["decoder.pt2", "encoder.pt2"]

    def test_programs_that_disagree_are_told(
        self, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def export(self: ImageTokenizer, folder: str, format: str, *, size: tuple[int, int]) -> tuple[Path, Path]:
            assert (folder, format, size) == ("programs", "onnx", (16, 8))
            return Path("encoder"), Path("decoder")

        def load_program(path: Path) -> Any:
            return {
                "encoder": lambda x: torch.full((3, 4, 2, 1), -1),
                "decoder": lambda x: torch.full((3, 3, 16, 8), 2),
            }[str(path)]

        monkeypatch.setattr(ImageTokenizer, "export", export)
        monkeypatch.setattr("gritvq.images.evaluation.load_program", load_program)
        assert main(["export", str(run / "tokenizer"), "--out", "programs", "--size", "[16, 8]"]) == 0
        said = capsys.readouterr().out
        assert "0 of 24" in said
        assert 1 <= float(said.split("decoded pixels")[1].split("│")[1]) <= 2


def test_module_passes_the_exit_code_on() -> None:
    done = subprocess.run([sys.executable, "-m", "gritvq", "inspect", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2 and "expected a tokenizer folder" in done.stderr


def numbers_of(folder: str | Path) -> dict[str, float]:
    found = json.loads(Path(folder, "metrics.json").read_text())
    return {name: value for name, value in found.items() if isinstance(value, float)}


def table_of(pictures: Path, path: Path, labels: list[Any] | None = None) -> Path:
    """A Parquet file as Hugging Face ``datasets`` writes it."""
    rows = [{"bytes": file.read_bytes(), "path": None} for file in sorted(pictures.rglob("*.*")) if file.is_file()]
    parquet.write_table(pa.table({"image": rows, **({} if labels is None else {"label": labels})}), path)
    return path


class TestMeasuring:
    def test_what_the_verbs_say_and_leave(self, run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for verb, count in (("validate", 40), ("inspect", 4)):
            more = ["--data.path", str(pictures)] if verb == "validate" else []
            assert main([verb, str(run / "tokenizer"), "--out", verb, *more]) == 0
            said = capsys.readouterr().out
            for word in ("PSNR", "perplexity", "codes in use if drawn evenly", f"{count * 16:,}", pictures.name):
                assert word in said
            assert all(Path(path).exists() for path in lines(said).values())
            assert numbers_of(verb)["pictures"] == count and numbers_of(verb)["tokens"] == count * 16
        assert "effective rank of the codes" in said and Path("inspect/codebook.png").exists()
        assert "the last 4 of train" in said  # of the tokenizer's own run, which measured the same
        assert numbers_of("inspect") == pytest.approx(numbers_of(run), rel=1e-5)
        assert json.loads(Path("inspect/metrics.json").read_text())["data"] == str(pictures)

    def test_other_pictures_in_the_place_of_the_runs_own(
        self, run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(pictures, "moved")
        said = json.loads((run / "tokenizer" / "config.json").read_text())["training"]
        said["data"]["path"] = "moved"
        Tokenizer.from_pretrained(run / "tokenizer").save_pretrained("again", said)
        assert main(["validate", "again", "--out", "same"]) == 0 and numbers_of("same")["pictures"] == 4
        next(path for path in Path("moved").rglob("*.*") if path.is_file()).unlink()
        assert main(["validate", "again", "--out", "other"]) == 2 and not Path("other").exists()
        assert "other pictures than in training: moved: train 36" in capsys.readouterr().err

    def test_whole_pictures_of_any_size(self, run: Path, odd: Path) -> None:
        assert main(["validate", str(run / "tokenizer"), "--data.path", str(odd), "--out", "whole"]) == 0
        model, errors, tokens = Tokenizer.from_pretrained(run / "tokenizer"), [], 0
        for _, pixels in read_images(odd):
            with torch.no_grad():
                output = model(pixels[None].float() / 255)
            errors.append((output.reconstruction.clamp(0, 1) - pixels / 255).square().flatten())
            tokens += output.quantization.indices.numel()
        found = numbers_of("whole")
        assert (found["pictures"], found["tokens"]) == (4, tokens) and tokens == 10 * 13 + 4 * 3 + 2 * 2 + 6 * 5
        assert found["mse"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)
        assert main(["validate", str(run / "tokenizer"), "--data.path", str(odd / "a.png"), "--out", "one"]) == 0
        assert (numbers_of("one")["pictures"], numbers_of("one")["tokens"]) == (1, 130)

    @pytest.mark.parametrize("split", [[], ["--split", "test"], ["--split", "all"]])
    def test_a_test_set_alone(self, run: Path, odd: Path, split: list[str]) -> None:
        shutil.copytree(odd, "alone/test")
        data = {"folder": "alone", "table": str(table_of(odd, Path("test.parquet")))}
        for out, path in data.items():
            assert main(["validate", str(run / "tokenizer"), "--data.path", path, "--out", out, *split]) == 0
        assert numbers_of("folder")["pictures"] == 4
        assert numbers_of("folder") == pytest.approx(numbers_of("table"), rel=1e-5)

    def test_data_of_tokenizers_that_moved_or_do_not_say(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copytree(run / "tokenizer", "moved")  # its own config.json says what its data were
        assert main(["validate", "moved", "--out", "first"]) == 0
        plain = Tokenizer.from_pretrained("moved")
        plain.trained = None
        plain.save_pretrained("plain/tokenizer")
        arguments = ["validate", "plain/tokenizer", "--out", "second"]
        assert "expected --data.path, since plain/tokenizer has no record" in wrong(arguments, capsys)
        for strange in ("data: [[[", "[" * 100_000, "data: 3", "- data", "other: {}"):
            Path("plain/config.yaml").write_text(strange)
            assert "expected --data.path, since plain/tokenizer has no record" in wrong(arguments, capsys)
        shutil.copy(run / "config.yaml", "plain")
        assert main(arguments) == 0
        assert numbers_of("first") == numbers_of("second") == pytest.approx(numbers_of(run), rel=1e-5)
        content = yaml.safe_load(Path("plain/config.yaml").read_text())
        for changed, message in (({"path": "./gone"}, "'./gone', which does not exist"), ({"x": 1}, "'x'")):
            Path("plain/config.yaml").write_text(yaml.safe_dump({"data": {**content["data"], **changed}}))
            assert message in wrong([*arguments, "--overwrite", "true"], capsys)
        assert numbers_of("second") == numbers_of("first")

    def test_the_tokenizer_says_how_many_channels(self, odd: Path) -> None:
        shape: dict[str, Any] = {"channels": 1, "width": 8, "num_blocks": 1}
        ImageTokenizer(ImageEncoder(4, **shape), vq_vae(4, 16), ImageDecoder(4, **shape)).save_pretrained("gray")
        assert main(["validate", "gray", "--data.path", str(odd), "--out", "out"]) == 0
        assert numbers_of("out")["pictures"] == 4


def test_compare(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {
        "methods": {"grit_vq": {}, "faster": {"preset": "vq_vae", "lr_scale": 3.0}},
        "codebook_sizes": [16, 32],
        "seeds": [1],
        "comparison": {"dim": 6, "width": 8, "num_blocks": 1, "max_steps": 3, "split": "validation"},
        "data": {"path": str(pictures), "batch_size": 8},
    }
    Path("compare.yaml").write_text(yaml.safe_dump(settings))
    assert main(["compare", "--config", "compare.yaml", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "faster" in said and "grit_vq" in said and "mean colour" in said
    with Path("out/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({(r["method"], r["codebook_size"], r["seed"]) for r in rows}) == 4 + 1
    assert {r["metric"] for r in rows if r["method"] == "mean colour"} == {"mse", "psnr", "psnr_per_image"}
    assert {"psnr", "usage", "perplexity"} <= {r["metric"] for r in rows}
    with Image.open("out/comparison.png") as plot:
        assert plot.size[0] > 300


class TestCompareInAFolder:
    """Small runs of two presets, one result or more in ``out``."""

    ARGUMENTS = (
        "compare",
        "--comparison.dim",
        "6",
        "--comparison.width",
        "8",
        "--comparison.max_steps",
        "2",
        "--out",
        "out",
    )

    def compare(self, pictures: Path, *more: str) -> int:
        data = ("--data.path", str(pictures), "--data.batch_size", "8", "--comparison.split", "validation")
        return main([*self.ARGUMENTS, "--codebook_sizes", "[16]", *data, *more])

    def test_does_not_overwrite_unless_told(self, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.compare(pictures, "--methods", "{grit_vq: {}}") == 0
        before = Path("out/results.csv").read_text()
        assert self.compare(pictures, "--methods", "{vq_vae: {}}") == 2
        assert "--overwrite true" in capsys.readouterr().err and Path("out/results.csv").read_text() == before
        assert self.compare(pictures, "--methods", "{vq_vae: {}}", "--overwrite", "true") == 0
        assert Path("out/results.csv").read_text() != before

    def test_a_failing_run_is_named_at_the_end(
        self, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from gritvq.images import comparison as compare

        whole = compare.run_entry

        def run_entry(comparison: Any, entry: Any, *arguments: Any) -> dict[str, Any]:
            if entry.method == "vq_vae":
                raise ValueError("expected luck, got none")
            return whole(comparison, entry, *arguments)

        monkeypatch.setattr(compare, "run_entry", run_entry)
        assert self.compare(pictures, "--methods", "{vq_vae: {}, grit_vq: {}}") == 2
        said = capsys.readouterr()
        assert "vq_vae with 16 codes and seed 0 (ValueError: expected luck, got none)" in said.err
        assert "grit_vq" in said.out and Path("out/comparison.png").exists()
        assert "grit_vq" in Path("out/results.csv").read_text()
        Path("out/results.csv").unlink()
        assert self.compare(pictures, "--methods", "{vq_vae: {}}") == 2
        assert not Path("out/results.csv").exists()

    def test_equal_seeds_and_sizes_run_once(self) -> None:
        entries = comparison_entries({"vq_vae": {}, "fsq": {"codebook_size": 64}}, [32, 16, 32], [1, 0, 1])
        found = [(entry.seed, entry.codebook_size, entry.method) for entry in entries]
        one = [(32, "vq_vae"), (64, "fsq"), (16, "vq_vae")]
        assert found == [(seed, *run) for seed in (1, 0) for run in one]


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    said = capsys.readouterr().out
    for name in ("grit_vq", "vq_vae", "vq_vae_ema", "rotation_vq", "simvq", "diveq"):
        assert name in said


class TestWrongInput:
    """One message that says what was wrong, exit code 2, nothing written."""

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        before = sorted(path.name for path in Path().iterdir())
        try:
            code: Any = main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err
        assert code == 2 and "error:" in said and "Traceback" not in said
        assert len(said.splitlines()) <= 6
        assert sorted(path.name for path in Path().iterdir()) == before
        return said

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["fit", "--data.path", "./nowhere"], "expected an existing file or folder, got './nowhere'"),
            (["fit", "--data.path", "empty"], "in 'empty', got none; give another folder"),
            (["fit", "--plan.max_steps", "0"], "expected max_steps >= 1, got 0"),
            (["fit", "--plan.max_steps", "many"], "plan.max_steps"),
            (["fit", "--task.lr", "-1"], "expected lr > 0"),
            (["fit", "--data.batch_size", "0"], "expected batch_size >= 1, got 0"),
            (["fit", "--resume", "last"], "expected a checkpoint to resume from"),
            (["fit", "--config", "none.yaml"], "File does not exist"),
            (
                ["fit", "--tokenizer.quantizer.dim", "5"],
                "expected the encoder to have dim=5 as the quantizer has, got 16",
            ),
            (["fit", "--tokenizer.quantizer.codebook_size", "0"], "expected codebook_size >= 1, got 0"),
            (["demo", "--codebook_size", "-4"], "expected codebook_size >= 1, got -4"),
            (["inspect", "nowhere"], "expected a tokenizer folder or a Hub name"),
            (["inspect", "empty"], "expected a tokenizer folder with config.json"),
            (["validate", "empty"], "expected a tokenizer folder with config.json"),
            (["encode", "empty", "--tokenizer", "empty"], "expected a tokenizer folder with config.json"),
            (["encode", "empty", "--tokenizer", "x", "--out", "t.csv"], "ending in .npz or .parquet"),
            (["decode", "t.npz", "--tokenizer", "empty"], "expected a tokenizer folder with config.json"),
            (["encode", "empty", "--tokenizer", "x", "--device", "toaster"], "expected a device that this machine has"),
            (["validate", "empty", "--device", "meta"], "expected a device that this machine has"),
            (["export", "empty"], "expected a tokenizer folder with config.json"),
            (["export", "empty", "--format", "keras"], "invalid choice: 'keras'"),
            (["export", "empty", "--size", "8"], "size"),
            (["compare", "--methods", "{nothing: {}}"], "expected a preset out of"),
            (["compare", "--methods", "{grit_vq: {speed: 3}}"], "expected settings that grit_vq takes"),
            (["compare", "--methods", "{grit_vq: {lr_scale: fast}}"], "expected settings that fit grit_vq"),
            (["compare", "--codebook_sizes", "[16, 0]"], "expected codebook_size >= 1, got 0"),
            (["compare", "--comparison.max_steps", "0"], "expected max_steps >= 1, got 0"),
            (["compare", "--seeds", "[]"], "expected at least one method"),
            (["fly"], "invalid choice: 'fly'"),
            ([], 'expected "verb" to be one of {demo,fit,'),
        ],
    )
    def test_messages(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        Path("empty").mkdir()
        assert message in self.refused(capsys, *arguments)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"plan": {"max_stepz": 3}}, "did you mean 'plan.max_steps'?"),
            ({"color": "red"}, "Option 'color' is not accepted"),
            (
                {"tokenizer": {"quantizer": {"class_path": "gritvq.grit_vq", "init_args": {"dim": 4, "size": 9}}}},
                "Option 'size' is not accepted",
            ),
            ({"tokenizer": {"quantizer": {"class_path": "gritvq.no_vq"}}}, "gritvq.no_vq"),
        ],
    )
    def test_configurations(self, config: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        Path("bad.yaml").write_text(yaml.safe_dump(config))
        assert message in self.refused(capsys, "fit", "--config", "bad.yaml")

    def test_damaged_files(self, run: Path, odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("bad.yaml").write_text("tokenizer: [unclosed")
        assert "parsing" in self.refused(capsys, "fit", "--config", "bad.yaml")
        Path("bad.npz").write_bytes(b"zip")
        tokenizer = str(run / "tokenizer")
        assert "expected tokens written by" in self.refused(capsys, "decode", "bad.npz", "--tokenizer", tokenizer)
        Path("folder").mkdir()
        Path("folder/a.png").write_bytes(b"zip")
        said = self.refused(capsys, "encode", "folder", "--tokenizer", tokenizer)
        assert "expected at least one readable picture in folder" in said

    def test_names_that_lead_out_of_the_folder(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("/tmp/x.png", "../x.png"):
            np.savez("t.npz", **{f"tokens/{name}": np.zeros((2, 2, 1), int), f"size/{name}": np.array([8, 8])})
            said = self.refused(capsys, "decode", "t.npz", "--tokenizer", str(run / "tokenizer"), "--out", "back")
            assert "expected picture names below the folder" in said

    def test_exports(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tokenizer = str(run / "tokenizer")
        said = self.refused(capsys, "export", tokenizer, "--size", "[10, 12]")
        assert "expected a size (H, W) of multiples of 4, got (10, 12)" in said
        Path("file").write_text("mine")
        assert "got the file file; choose another --out" in self.refused(capsys, "export", tokenizer, "--out", "file")

    def test_tokens_of_another_tokenizer(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.savez("t.npz", **{"tokens/a.png": np.full((2, 2, 1), 4000), "size/a.png": np.array([8, 8])})
        said = self.refused(capsys, "decode", "t.npz", "--tokenizer", str(run / "tokenizer"), "--out", "back")
        assert "expected indices below (32,)" in said and "made with another tokenizer" in said

    def test_the_second_picture_does_not_fit(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        good = {"tokens/a.png": np.zeros((2, 2, 1), int), "size/a.png": np.array([8, 8])}
        arguments = ("decode", "t.npz", "--tokenizer", str(run / "tokenizer"), "--out", "back")
        for tokens, size, message in (
            (np.full((2, 2, 1), 4000), (8, 8), "expected indices below (32,)"),
            (np.zeros((2, 2, 1), int), (8, 9), "expected tokens of a grid (2, 3) for b.png, of 8 x 9 pixels"),
            (np.zeros((4, 1), int), (8, 8), "expected tokens of a grid (2, 2) for b.png"),
        ):
            np.savez("t.npz", **good, **{"tokens/b.png": tokens, "size/b.png": np.array(size)})
            assert message in self.refused(capsys, *arguments)

    def test_decode_leaves_files_alone_unless_told(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("originals").mkdir()
        picture(8, 8, 1).save("originals/a.png")
        before, tokenizer = Path("originals/a.png").read_bytes(), str(run / "tokenizer")
        assert main(["encode", "originals", "--tokenizer", tokenizer, "--out", "t.npz"]) == 0
        arguments = ["decode", "t.npz", "--tokenizer", tokenizer, "--out", "originals"]
        assert "originals, which holds a.png; choose another --out" in self.refused(capsys, *arguments)
        assert Path("originals/a.png").read_bytes() == before
        assert main([*arguments, "--overwrite", "true"]) == 0
        assert Path("originals/a.png").read_bytes() != before


class TestWhatIsThereStays:
    """Verbs on pictures replace files only when told, and write below their output folder only."""

    def test_results_are_replaced_when_told(
        self, run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tokenizer = str(run / "tokenizer")
        for verb, name in (("validate", "metrics.json"), ("inspect", "codebook.png"), ("export", "decoder.pt2")):
            Path(verb).mkdir()
            Path(verb, name).write_bytes(b"another tokenizer's")
            more = ["--format", "torch"] if verb == "export" else ["--data.path", str(pictures)]
            arguments = [verb, tokenizer, "--out", verb, *more]
            assert f"got {verb}, which holds {name}; choose another --out" in wrong(arguments, capsys)
            assert [path.read_bytes() for path in Path(verb).iterdir()] == [b"another tokenizer's"]
            if verb != "export":  # which is slow
                assert main([*arguments, "--overwrite", "true"]) == 0
                assert Path(verb, name).read_bytes() != b"another tokenizer's"

    def test_encode_asks_too(self, run: Path, odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("mine.npz").write_bytes(b"a thesis")
        arguments = ["encode", str(odd), "--tokenizer", str(run / "tokenizer"), "--out", "mine.npz"]
        assert "which holds mine.npz; choose another --out" in wrong(arguments, capsys)
        assert Path("mine.npz").read_bytes() == b"a thesis"
        assert main([*arguments, "--overwrite", "true"]) == 0 and len(read_tokens("mine.npz")) == 4

    @pytest.fixture
    def tokens(self, run: Path) -> list[str]:
        """Arguments that decode the pictures a.png, a.png/b and deep/c.png."""
        names = ("a.png", "a.png/b", "deep/c.png")
        items = [TokenRow(name, torch.zeros(2, 2, 1).long(), {"height": 8, "width": 8}) for name in names]
        write_tokens("t.parquet", items)
        return ["decode", "t.parquet", "--tokenizer", str(run / "tokenizer"), "--out", "back"]

    def test_a_picture_called_like_a_folder(self, tokens: list[str]) -> None:
        assert main(tokens) == 0
        found = sorted(str(path.relative_to("back")) for path in Path("back").rglob("*") if path.is_file())
        assert found == ["a.png.png", "a.png/b.png", "deep/c.png"]

    @pytest.mark.parametrize("overwrite", ["false", "true"])
    def test_no_way_out_through_links(
        self, tokens: list[str], overwrite: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("elsewhere").mkdir()
        Path("back").mkdir()
        Path("back/deep").symlink_to(Path("elsewhere").resolve())
        assert "got back/deep, a link to " in wrong([*tokens, "--overwrite", overwrite], capsys)
        assert not list(Path("elsewhere").iterdir()) and len(list(Path("back").iterdir())) == 1
        Path("back/deep").unlink()
        Path("link").symlink_to("elsewhere")  # the output folder itself may be one
        assert main([*tokens[:-1], "link"]) == 0 and Path("elsewhere/deep/c.png").is_file()

    def test_links_and_folders_in_a_pictures_place(self, tokens: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        Path("back").mkdir()
        Path("back/a.png.png").symlink_to(Path("outside.png").resolve())  # to nothing yet
        assert "which holds a.png.png" in wrong(tokens, capsys)
        assert main([*tokens, "--overwrite", "true"]) == 0
        assert not Path("outside.png").exists() and not Path("back/a.png.png").is_symlink()
        Path("back/deep/c.png").unlink()
        Path("back/deep/c.png").mkdir()
        assert "got a folder of that name" in wrong([*tokens, "--overwrite", "true"], capsys)
        Path("back/deep/c.png").rmdir()
        Path("back/deep").rmdir()
        Path("back/deep").write_text("a file")
        assert "expected a folder back/deep to write into" in wrong([*tokens, "--overwrite", "true"], capsys)


@pytest.mark.filterwarnings("default:skipped:UserWarning")  # the program shows it
def test_encode_leaves_out_sizes_that_a_layout_does_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantizer = msvq(8, 16, sides=(1, 2, 4))
    tokenizer = ImageTokenizer(ImageEncoder(8, width=8), quantizer, ImageDecoder(8, width=8))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "pictures").mkdir()
    picture(16, 16, 1).save(tmp_path / "pictures" / "fits.png")
    picture(20, 16, 2).save(tmp_path / "pictures" / "other.png")
    arguments = [
        str(tmp_path / "pictures"),
        "--tokenizer",
        str(tmp_path / "tokenizer"),
        "--out",
        str(tmp_path / "t.npz"),
    ]
    assert main(["encode", *arguments]) == 0
    said = capsys.readouterr()
    assert "1 of 2" in said.out and "other.png" in said.err
    assert (
        main(["decode", str(tmp_path / "t.npz"), "--tokenizer", str(tmp_path / "tokenizer"), "--out", "decoded"]) == 0
    )
    assert main(["encode", *arguments, "--strict", "true"]) == 2
