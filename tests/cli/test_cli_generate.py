"""``encode`` for a prior, ``fit prior`` and ``generate`` on small pictures."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gritvq import bulk, vq_vae
from gritvq.cli import main
from gritvq.images import ImageData, ImageDecoder, ImageEncoder, ImageTokenizer, prior_bits_per_pixel, to_uint8
from gritvq.images.crops import ten_crops
from gritvq.images.files import read_images
from gritvq.priors import (
    AutoregressivePrior,
    BitHead,
    DepthHead,
    Head,
    LinearGuidance,
    MaskedPrior,
    PowerCosineGuidance,
    Prior,
    TokenData,
)
from gritvq.tokens import TokenLayout, TokenRow, read_tokens, token_files, write_tokens
from program import wrong


class MeanColors(torch.nn.Module):
    """Features of a picture: its mean color."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


pytestmark = pytest.mark.usefixtures("own_folder")


def new_tokenizer(seed: int) -> ImageTokenizer:
    torch.manual_seed(seed)
    return ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 16), ImageDecoder(4, width=8)).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, 2 x 6 pictures in folders of their classes, tokens, and a run of a prior."""
    folder = tmp_path_factory.mktemp("made")
    new_tokenizer(0).save_pretrained(folder / "tokenizer")
    new_tokenizer(1).save_pretrained(folder / "other")
    random = np.random.default_rng(0)
    for number in range(12):
        path = folder / "pictures" / ("dark", "light")[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 100, (20, 24, 3)) + 150 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"{number:02}.png")
    words = [str(folder / "pictures"), "--tokenizer", str(folder / "tokenizer"), "--classes_from", "folders"]
    words += ["--size", "16", "--ten_crops", "[1.1,1.25]", "--rows_per_file", "100", "--out", str(folder / "tokens")]
    assert main(["encode", *words]) == 0
    words = ["--tokenizer", str(folder / "tokenizer"), "--data.train", str(folder / "tokens"), "--plan.max_steps", "3"]
    words += ["--data.num_validation", "20", "--data.batch_size", "4", "--plan.accelerator", "cpu"]
    words += ["--prior.width", "16", "--prior.depth", "1", "--prior.num_heads", "2", "--out", str(folder / "run")]
    assert main(["fit", "prior", *words]) == 0
    return folder


def test_tokens_of_crops_in_shards(made: Path) -> None:
    files = token_files(made / "tokens")
    rows = [row for file in files for row in read_tokens(file)]
    assert [path.name for path in files] == [f"tokens-0000{n}.parquet" for n in range(3)] and len(rows) == 12 * 20
    tokenizer = ImageTokenizer.from_pretrained(made / "tokenizer")
    name = rows[40].name.partition("#")[0]
    _, picture = next(read_images(made / "pictures" / name))
    crops = torch.cat([ten_crops(picture, 16, scale) for scale in (1.1, 1.25)])
    expected = tokenizer.fold().encode(crops.float() / 255)
    own = [row for row in rows if row.name.startswith(f"{name}#")]
    assert torch.equal(torch.stack([row.tokens for row in own]), expected)
    assert {row.columns["label"] for row in rows} == {"dark", "light"}
    assert {row.columns["tokenizer"] for row in rows} == {tokenizer.fingerprint()}
    assert {(row.columns["height"], row.columns["width"]) for row in rows} == {(16, 16)}
    assert main(["decode", str(made / "tokens"), "--tokenizer", str(made / "tokenizer"), "--out", "decoded"]) == 0
    assert len(list(Path("decoded").rglob("*.png"))) == len(rows)


def test_mirror_images_and_random_squares() -> None:
    new_tokenizer(0).save_pretrained("tokenizer")
    flipped = ["photographs", "--tokenizer", "tokenizer", "--split", "validation", "--flip", "true", "--size", "16"]
    assert main(["encode", *flipped, "--out", "a.npz"]) == 0
    rows = read_tokens("a.npz")
    assert len(rows) == 14 and [row.name.partition("#")[2] for row in rows[:2]] == ["0", "1"]
    words = ["photographs", "--tokenizer", "tokenizer", "--split", "train", "--size", "16", "--random_crops", "3"]
    assert main(["encode", *words, "--classes_from", "names", "--out", "b.npz"]) == 0
    rows = read_tokens("b.npz")
    assert len(rows) == 21 and len({row.columns["label"] for row in rows}) == 7
    words = ["photographs", "--tokenizer", "tokenizer", "--split", "held_out", "--size", "16", "--out", "c.npz"]
    assert main(["encode", *words]) == 0
    TokenData("b.npz", "c.npz", label=None)  # squares outside of those held out are no views of them


def fit_words(made: Path, train: str, validation: str | None, out: str) -> list[str]:
    words = ["fit", "prior", "--tokenizer", str(made / "tokenizer"), "--data.train", train, "--data.batch_size", "4"]
    words += [] if validation is None else ["--data.validation", validation]
    words += ["--prior.width", "16", "--prior.depth", "1", "--prior.num_heads", "2"]
    return [*words, "--plan.max_steps", "1", "--plan.accelerator", "cpu", "--out", out]


def test_held_out_tokens_of_a_plain_folder_are_not_trained_on(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on the page: the one of 12 pictures that ``fit images`` holds out, and views of the others."""
    pictures, tokenizer = str(made / "pictures"), ["--tokenizer", str(made / "tokenizer")]
    common = ["encode", pictures, *tokenizer, "--size", "16", "--classes_from", "folders", "--split"]
    assert main([*common, "train", "--ten_crops", "[1.1]", "--out", "train.npz"]) == 0
    assert "train of 'fit images', since no file or folder name sets one" in capsys.readouterr().out
    assert main([*common, "held_out", "--out", "held.npz"]) == 0
    train, held = read_tokens("train.npz"), read_tokens("held.npz")
    data = ImageData(pictures)
    for rows, split in ((train, "train"), (held, "validation")):
        assert {row.name.partition("#")[0] for row in rows} == {picture.name for picture in data.pictures(split)}
    assert (len(train), len(held)) == (110, 1)
    assert main(fit_words(made, "train.npz", "held.npz", "run")) == 0
    capsys.readouterr()
    for split in ("validation", "test"):
        assert main([*common, split, "--out", "held.npz", "--overwrite", "true"]) == 0
        assert [row.name for row in read_tokens("held.npz")] == [row.name for row in held]
    capsys.readouterr()
    assert main([*common, "all", "--out", "all.npz"]) == 0
    assert len(read_tokens("all.npz")) == 12 and "fit images" not in capsys.readouterr().out
    assert main([*common, "train", "--out", "plain.npz"]) == 0
    before = sorted(map(str, Path().rglob("*")))
    said = wrong(fit_words(made, "plain.npz", "all.npz", "leak"), capsys).replace("\n", " ")
    assert "not in training, got 'dark/00.png' of all.npz in both, with the same tokens, and 10 more; leave" in said
    assert sorted(map(str, Path().rglob("*"))) == before


def test_as_many_are_held_out_as_in_the_run_of_the_tokenizer(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "pictures", "pictures")
    for number in range(12, 24):
        shutil.copy("pictures/dark/00.png", f"pictures/dark/{number}.png")
    tokenizer = new_tokenizer(0)
    tokenizer.save_pretrained("own", {"data": ImageData("pictures", num_validation=1).settings()})
    tokenizer.save_pretrained("another", {"data": ImageData("elsewhere", num_validation=1).settings()})
    for name, count in (("own", 1), ("another", 2)):  # a tenth of 24 where it was trained on something else
        words = ["encode", "pictures", "--tokenizer", name, "--split", "held_out", "--out", f"{name}.npz"]
        assert main(words) == 0 and len(read_tokens(f"{name}.npz")) == count
    Path("one").mkdir()
    shutil.copy("pictures/dark/00.png", "one/00.png")
    said = wrong(["encode", "one", "--tokenizer", "own", "--split", "held_out", "--out", "one.npz"], capsys)
    assert "expected validation pictures in 'one', got train" in said and not Path("one.npz").exists()


@torch.no_grad()
def test_metrics_are_those_of_the_held_out_tokens(made: Path) -> None:
    """Of 30 rows in batches of 4, against the probabilities of all at once."""
    rows = [row for file in token_files(made / "tokens") for row in read_tokens(file)]
    rows, held = [*rows[:105], *rows[135:]], rows[105:135]  # of both classes
    write_tokens("train.npz", rows)
    write_tokens("held.npz", [row._replace(name=f"held/{row.name}") for row in held])
    assert main(fit_words(made, "train.npz", "held.npz", "run")) == 0
    prior = Prior.from_pretrained("run/prior")
    classes = torch.tensor([prior.trained["classes"].index(row.columns["label"]) for row in held])
    log_prob = prior.log_prob(torch.stack([row.tokens for row in held]), classes)
    numbers = json.loads(Path("run/metrics.json").read_text())
    assert numbers["bits_per_pixel"] == pytest.approx(prior_bits_per_pixel(log_prob, 16 * 16), rel=1e-5)
    assert numbers["nats_per_token"] == pytest.approx(-float(log_prob.mean()) / (4 * 4), rel=1e-5)
    assert len({*classes.tolist()}) == 2 and len(numbers) == 2


@pytest.mark.parametrize(
    ("head", "settings"), [(BitHead, {"levels": [[4, 2, 2]]}), (DepthHead, {"depth": 2, "depth_width": 8})]
)
def test_a_head_with_arguments(
    head: type[Head], settings: dict[str, Any], made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"codebook_sizes": [16], "width": 16, **settings}
    config = {"class_path": f"gritvq.priors.{head.__name__}", "init_args": own}
    prior: dict[str, Any] = {"class_path": "gritvq.priors.MaskedPrior", "init_args": {"head": config}}
    Path("head.yaml").write_text(yaml.safe_dump({"prior": prior}))
    words = ["fit", "prior", "--config", "head.yaml", *fit_words(made, str(made / "tokens"), None, "run")[2:]]
    assert main(words) == 0, capsys.readouterr().err
    found = Prior.from_pretrained("run/prior").head
    assert type(found) is head and found.width == 16 and found.codebook_sizes == (16,)
    if isinstance(found, BitHead):
        assert found.levels == ((4, 2, 2),)
    if isinstance(found, DepthHead):
        assert len(found.channels.h) == 2 and found.output.in_features == 8
    assert main(["generate", "run", "--num", "1", "--out", "samples"]) == 0
    assert main(["fit", "prior", "--config", "run/config.yaml", "--out", "again"]) == 0
    weights = [Path(run, "prior", "model.safetensors").read_bytes() for run in ("run", "again")]
    assert weights[0] == weights[1]
    for wrong_ones, message in (
        ({"codebook_sizes": [8]}, "[8]"),  # of the levels, or of the prior's layout
        ({"codebook_sizes": [16], "width": 8, **({"levels": None} if head is BitHead else {})}, "width 16, got one"),
    ):
        config["init_args"] = {**own, **wrong_ones}
        Path("head.yaml").write_text(yaml.safe_dump({"prior": prior}))
        said = wrong([*words[:-1], "wrong"], capsys).replace("\n", " ")
        assert message in said and "expected" in said and not Path("wrong").exists()


def test_each_schedule_of_guidance_has_its_own_samples(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that Python draws: constant at the scale, linear and power cosine from 1 to the scale."""
    words = ["generate", str(made / "run"), "--num", "6", "--guidance", "30", "--guidance_schedule"]
    prior = Prior.from_pretrained(made / "run" / "prior")
    tokenizer = ImageTokenizer.from_pretrained(made / "tokenizer").fold()
    seen: list[torch.Tensor] = []
    for number, (given, guidance) in enumerate(
        {
            "constant": 30.0,
            "linear": LinearGuidance(1.0, 30.0),
            "power_cosine": PowerCosineGuidance(30.0, 2.75),
            "power_cosine --guidance_power 0.5": PowerCosineGuidance(30.0, 0.5),
        }.items()
    ):
        out = Path(f"samples-{number}")
        assert main([*words, *given.split(), "--out", str(out)]) == 0
        seen.append(torch.stack([next(read_images(path))[1] for path in sorted((out / "pictures").iterdir())]))
        drawn = prior.sample(6, torch.arange(6) % 2, guidance=guidance, generator=0)
        assert torch.equal(seen[-1], to_uint8(tokenizer.decode(drawn, (16, 16))))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(seen, 2))
    for schedule in ("constant", "linear"):
        said = wrong([*words, schedule, "--guidance_power", "2", "--out", "no"], capsys).replace("\n", " ")
        assert f"expected no --guidance_power for --guidance_schedule {schedule}, got 2.0; leave it out" in said
    said = wrong([*words, "power_cosine", "--guidance_power", "0", "--out", "no"], capsys)
    assert "expected power > 0" in said and not Path("no").exists()


def test_equal_seeds_give_equal_pictures_whatever_the_batch_size(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(made / "run")
    assert main(["generate", run, "--num", "5", "--out", "a"]) == 0
    assert main(["generate", run, "--num", "4", "--batch_size", "3", "--out", "b"]) == 0
    names = sorted(path.name for path in Path("a/pictures").iterdir())
    assert names == [f"0000{n}-{('dark', 'light')[n % 2]}.png" for n in range(5)]
    for name in names[:4]:
        assert Path("a/pictures", name).read_bytes() == Path("b/pictures", name).read_bytes()
    shapes = [next(read_images(path))[1].shape for path in ("a/grid.png", f"a/pictures/{names[0]}")]
    assert shapes == [(3, 100, 5 * 100), (3, 16, 16)]  # each pixel six times as wide, and a frame of 2
    assert main(["generate", run, "--num", "2", "--classes", "[light]", "--seed", "1", "--out", "c"]) == 0
    assert [path.name for path in sorted(Path("c/pictures").iterdir())] == ["00000-light.png", "00001-light.png"]
    guided = ["--guidance", "30", "--guidance_schedule", "linear"]
    assert main(["generate", run, "--num", "5", *guided, "--out", "d"]) == 0
    assert any(Path("a/pictures", name).read_bytes() != Path("d/pictures", name).read_bytes() for name in names)


def test_steps_and_order_of_a_masked_prior(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "run" / "tokenizer", "run/tokenizer")
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(num_classes=2, width=16, depth=1, num_heads=2)
    prior = MaskedPrior(TokenLayout((16,), (4, 4)), num_steps=8, order="confidence", **settings)
    prior.save_pretrained("run/prior", {"height": 16, "width": 16})
    tokenizer = ImageTokenizer.from_pretrained("run/tokenizer").fold()
    prior.eval().num_steps, prior.order = 3, "halton"
    expected = tokenizer.decode(prior.sample(2, torch.tensor([0, 1]), generator=0), (16, 16))
    assert main(["generate", "run", "--num", "2", "--num_steps", "3", "--order", "halton", "--out", "a"]) == 0
    assert main(["generate", "run", "--num", "2", "--out", "b"]) == 0
    found = [[read_images(path) for path in sorted(Path(out, "pictures").iterdir())] for out in ("a", "b")]
    own, other = (torch.stack([next(each)[1] for each in pictures]) for pictures in found)
    assert torch.equal(own, to_uint8(expected)) and not torch.equal(own, other)
    said = wrong(["generate", str(made / "run"), "--num_steps", "3", "--out", "c"], capsys)
    assert "expected no --num_steps for a prior of the kind AutoregressivePrior, got 3" in said.replace("\n", " ")
    assert "num_steps >= 1, got 0" in wrong(["generate", "run", "--num_steps", "0", "--out", "c"], capsys)
    assert not Path("c").exists()


def test_a_run_that_goes_on_is_the_same_run(made: Path) -> None:
    words = ["fit", "prior", "--config", str(made / "run" / "config.yaml"), "--out", "whole", "--plan.max_steps", "4"]
    assert main([*words, "--plan.checkpoint_every", "2", "--plan.validate_every", "0"]) == 0
    resumed = ["--resume", "whole/checkpoints/step-2.ckpt", "--out", "again"]
    assert main(["fit", "prior", "--config", "whole/config.yaml", *resumed]) == 0
    weights = [Path(run, "prior", "model.safetensors").read_bytes() for run in ("whole", "again")]
    assert weights[0] == weights[1]


def test_a_prior_that_does_not_know_its_pictures(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "run" / "tokenizer", "run/tokenizer")
    prior = Prior.from_pretrained(made / "run" / "prior")
    prior.save_pretrained("run/prior", {"height": 16, "width": 16})
    assert main(["generate", "run", "--num", "2", "--classes", "[1]", "--out", "a"]) == 0
    assert [path.name for path in sorted(Path("a/pictures").iterdir())] == ["00000-1.png", "00001-1.png"]
    prior.save_pretrained("run/prior", {})
    assert "how large its pictures are" in wrong(["generate", "run", "--out", "b"], capsys) and not Path("b").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["generate", "{run}", "--classes", "[cat]"],
            "expected classes among dark, light, or numbers below 2, got 'cat'; ch",
        ),
        (["generate", "{run}", "--classes", "[7]"], "numbers below 2, got 7; choose some of these, or"),
        (["generate", "{run}", "--classes", "[]"], "at least one class"),
        (["generate", "{run}", "--num", "0"], "num >= 1"),
        (["generate", "{run}", "--top_p", "2"], "top_p"),
        (["generate", "{made}/tokenizer"], "which has no prior"),
        (["generate", "{run}", "--prompt", "A cat."], "no --prompt for a run of 'gritvq fit prior', got 'A cat.'"),
        (["encode", "{made}/pictures", "--tokenizer", "{made}/tokenizer", "--unit", "line"], "no --unit for a tokeniz"),
        (["fit", "prior", "--tokenizer", "{made}/other", "--data.train", "{made}/tokens"], "got {made}/tokens/tokens"),
        (["fit", "prior", "--tokenizer", "{made}/tokenizer", "--data.train", "nowhere.npz"], "expected a token file"),
        (["encode", "{made}/pictures", "--tokenizer", "{made}/tokenizer", "--ten_crops", "[1.1]"], "expected --size"),
        (
            ["encode", "{made}/pictures", "--tokenizer", "{made}/tokenizer", "--rows_per_file", "5", "--out", "a.npz"],
            "expected a folder for files",
        ),
    ],
)
def test_wrong_input(words: list[str], message: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"made": str(made), "run": str(made / "run")}
    said = wrong([word.format(**names) for word in words], capsys)
    assert message.format(**names) in said.replace("\n", " ")
    assert not any(Path().iterdir())


def test_rows_of_another_size_or_tokenizer_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for file in token_files(made / "tokens") for row in read_tokens(file)][:30]
    words = [
        "fit",
        "prior",
        "--tokenizer",
        str(made / "tokenizer"),
        "--data.train",
        "some.npz",
        "--plan.max_steps",
        "1",
    ]
    for column, value, message in (
        ("height", 15, "expected pictures of one size"),  # of as many tokens
        ("tokenizer", "0" * 64, "got some.npz of another, 000000000000"),
    ):
        changed = [*rows[:20], rows[20]._replace(columns={**rows[20].columns, column: value}), *rows[21:]]
        write_tokens("some.npz", iter(changed))
        assert message in wrong(words, capsys).replace("\n", " ") and not Path("runs").exists()


def test_tokens_and_priors_of_another_kind_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "run" / "prior", "mixed/prior")
    shutil.copytree(made / "other", "mixed/tokenizer")
    shutil.copytree(made / "run" / "tokenizer", "plain/tokenizer")
    prior = AutoregressivePrior(TokenLayout((16,), (4, 4)), width=16, depth=1, num_heads=2)
    prior.save_pretrained("plain/prior", {"height": 16, "width": 16})
    rows = [TokenRow(f"{n}", torch.full((4, 4, 1), n), {"height": 16, "width": 16}) for n in range(17)]
    write_tokens("larger.npz", rows)
    write_tokens("grid.npz", [row._replace(tokens=row.tokens[:3]) for row in rows[:16]])
    write_tokens("channels.npz", [row._replace(tokens=row.tokens.expand(-1, -1, 2)) for row in rows[:16]])
    fit = ["fit", "prior", "--tokenizer", str(made / "tokenizer"), "--data.train"]
    before = sorted(map(str, Path().rglob("*")))
    for words, message in (
        (["generate", "plain", "--guidance", "2"], "guidance 1, which is none, for an unconditional prior, got 2"),
        (["generate", "plain", "--guidance", "2", "--guidance_schedule", "linear"], "for an unconditional prior, got"),
        (["generate", "plain", "--classes", "[dark]"], "expected no --classes for an unconditional prior"),
        (["generate", "mixed"], "expected the tokenizer that the prior mixed/prior was trained with, fingerprint"),
        ([*fit, "larger.npz"], "expected indices below (16,) as in the prior's layout, got up to [16]; use"),
        ([*fit, "grid.npz"], "expected tokens (4, 4, 1) of a sample as in the prior's layout, got (3, 4, 1); make"),
        ([*fit, "channels.npz"], "expected tokens (4, 4, 1) of a sample as in the prior's layout, got (4, 4, 2); make"),
    ):
        assert message in wrong(words, capsys).replace("\n", " ")
        assert sorted(map(str, Path().rglob("*"))) == before


def test_priors_by_their_names() -> None:
    """In a program of its own, where nothing else has imported their modules."""
    code = """
from gritvq.cli import main
for name in ("MaskedPrior", "NextScalePrior"):
    main(["fit", "prior", "--prior", name, "--tokenizer", "./nowhere", "--data.train", "x.npz"])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert said.count("nowhere") >= 2 and "Expected a path" not in said, said


class TestImagesFrom:
    SETTINGS: ClassVar[dict[str, Any]] = {
        "tokenizer": {
            "tokenizer": {
                "encoder": {"class_path": "gritvq.images.ImageEncoder", "init_args": {"width": 8, "num_blocks": 1}},
                "quantizer": {"class_path": "gritvq.vq_vae", "init_args": {"codebook_size": 16}},
                "decoder": {"class_path": "gritvq.images.ImageDecoder", "init_args": {"width": 8, "num_blocks": 1}},
            },
            "data": {"batch_size": 4},
            "plan": {"max_steps": 2, "accelerator": "cpu"},
        },
        "prior": {
            "prior": {"init_args": {"width": 16, "depth": 1, "num_heads": 2}},
            "plan": {"max_steps": 2, "accelerator": "cpu"},
        },
        "samples": {"num": 3},
    }

    def command(self, made: Path, *more: str) -> list[str]:
        Path("settings.yaml").write_text(yaml.safe_dump(self.SETTINGS))
        words = ["images-from", str(made / "pictures"), "--classes_from", "folders", "--size", "16", "--out", "all"]
        return [*words, "--config", "settings.yaml", *more]

    def test_all_stages_once(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(self.command(made)) == 0
        said = capsys.readouterr().out
        assert "bits per pixel under the prior" in said and "samples: all/samples/grid.png" in said
        assert sorted(path.name for path in Path("all/samples/pictures").iterdir()) == [
            f"0000{n}-{name}.png" for n, name in enumerate(("dark", "light", "dark"))
        ]
        rows = [row for file in token_files("all/tokens") for row in read_tokens(file)]
        assert len(rows) == 12 * 2  # mirror images
        times = {path: path.stat().st_mtime_ns for path in Path("all").rglob("*") if path.is_file()}
        assert main(self.command(made)) == 0
        assert times == {path: path.stat().st_mtime_ns for path in Path("all").rglob("*") if path.is_file()}
        grid = Path("all/samples/grid.png")
        whole = grid.read_bytes()
        grid.unlink()  # as if interrupted while generating
        assert main(self.command(made)) == 0 and grid.read_bytes() == whole

    def test_the_same_command_goes_on_with_tokens_that_were_interrupted(
        self, made: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: Any, **more: Any) -> Iterator[Any]:
            yield next(encode_here(*arguments, **more))
            raise KeyboardInterrupt

        encode_here = bulk.encode_here
        words = self.command(made)
        Path("settings.yaml").write_text(yaml.safe_dump({**self.SETTINGS, "tokens": {"rows_per_file": 8}}))
        monkeypatch.setattr(bulk, "encode_here", broken)
        with contextlib.suppress(KeyboardInterrupt):
            assert main(words) != 0
        (kept,) = Path("all/tokens/.unfinished").glob("*.parquet")
        before = kept.stat().st_mtime_ns
        monkeypatch.setattr(bulk, "encode_here", encode_here)
        assert main(words) == 0
        files = token_files("all/tokens")
        assert [len(read_tokens(file)) for file in files] == [8, 8, 8] and files[0].stat().st_mtime_ns == before

    def test_what_is_held_out_has_no_mirror_images(self, made: Path) -> None:
        folder = Path("split")
        for place, number in (("train", 10), ("test", 2)):
            (folder / place).mkdir(parents=True)
            for path in sorted((made / "pictures").rglob("*.png"))[:number]:
                shutil.copy(path, folder / place)
        words = [str(folder) if word == str(made / "pictures") else word for word in self.command(made)]
        words = [word for word in words if word not in ("--classes_from", "folders")]
        assert main(words) == 0
        counts = [
            sum(len(read_tokens(f)) for f in token_files(f"all/{name}")) for name in ("tokens", "tokens-held-out")
        ]
        assert counts == [2 * 10, 2]

    def test_samples_are_evaluated_where_asked(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        judged = {"features": {"class_path": f"{__name__}.MeanColors"}, "split": "all", "floor": "none"}
        settings = {**self.SETTINGS, "samples": {"num": 12}, "evaluation": {**judged, "size": 16, "num": 12}}
        Path("judged.yaml").write_text(yaml.safe_dump(settings))
        words = [*self.command(made)[:-1], "judged.yaml"]
        assert main(words) == 0
        assert "gFD, MeanColors features" in capsys.readouterr().out
        found = json.loads(Path("all/evaluation.json").read_text())
        assert found["num_samples"] == found["num_reference"] == 12 and found["values"]["frechet_distance"] > 0
        for evaluation, message in (
            ({"num": 13}, "got 13 of 12"),
            ({"num": None}, None),
            ({"features": {"class_path": "VGG16Features", "init_args": {"path": "none.h5"}}}, "none.h5"),
        ):
            settings["evaluation"] = {**judged, "size": 16, "num": 12, **evaluation}
            settings["samples"] = {"num": 12 if message else 11}
            Path("judged.yaml").write_text(yaml.safe_dump(settings))
            said = wrong([*words[:-3], "other", *words[-2:]], capsys).replace("\n", " ")
            assert (message or "got 11 and 12") in said and not Path("other").exists()
        settings["evaluation"] = {"num": 12}  # without a network: found out before anything is trained
        Path("judged.yaml").write_text(yaml.safe_dump(settings))
        assert "features" in wrong([*words[:-3], "other", *words[-2:]], capsys) and not Path("other").exists()

    def test_wrong_input(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("bad.yaml").write_text("tokeniser: {}")
        assert "settings by name among size" in wrong(
            ["images-from", str(made / "pictures"), "--config", "bad.yaml"], capsys
        )
        assert "expected a YAML file" in wrong(["images-from", str(made / "pictures"), "--config", "none.yaml"], capsys)
        Path("taken").mkdir()
        Path("taken/notes.txt").touch()
        assert "new or empty folder" in wrong(self.command(made, "--out", "taken"), capsys)
        assert "nowhere" in wrong(["images-from", "./nowhere"], capsys) and not Path("runs").exists()


class TestLargePrior:
    """The shipped configuration of a prior for 256 pixels."""

    config = Path(__file__).parents[2] / "configs" / "priors" / "raster-256-16384.yaml"

    def test_two_steps_of_a_small_one(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        small = {
            **{"tokenizer": made / "tokenizer", "data.train": made / "tokens", "data.batch_size": 2},
            **{"prior.width": 16, "prior.depth": 1, "prior.num_heads": 2, "data.num_validation": 20},
            **{"plan.max_steps": 2, "plan.validate_every": 0, "plan.accelerator": "cpu", "plan.devices": 1},
        }
        words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
        assert main(["fit", "prior", "--config", str(self.config), *words, "--out", "run"]) == 0, (
            capsys.readouterr().err
        )
        settings = yaml.safe_load(Path("run/config.yaml").read_text())
        assert settings["plan"]["precision"] == "bf16-mixed" and settings["task"]["schedule"] == "constant"
        assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["step"] == 2

    def test_its_size_is_that_of_llamagen_b(self) -> None:
        settings = yaml.safe_load(self.config.read_text())
        assert settings["prior"]["class_path"] == "gritvq.priors.AutoregressivePrior"
        layout = TokenLayout((16384,), (16, 16))
        prior = AutoregressivePrior(layout, num_classes=1000, **settings["prior"]["init_args"])
        assert 110e6 < sum(each.numel() for each in prior.parameters()) < 113e6
