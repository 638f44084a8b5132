"""``images-from photographs`` with the settings that are shipped, but for the width of the networks and the steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gritvq import Tokenizer
from gritvq.cli import main
from gritvq.images.files import open_pictures, read_images
from gritvq.priors import Prior
from gritvq.tokens import read_tokens, token_files
from program import wrong

pytestmark = pytest.mark.usefixtures("own_folder")

NUM_CROPS = 5  # of each photograph; the shipped 300 take longer and no other way
SMALL = {
    "tokenizer": {
        "tokenizer": {part: {"init_args": {"width": 16}} for part in ("encoder", "decoder")},
        "plan": {"max_steps": 2, "accelerator": "cpu"},
    },
    "prior": {"prior": {"init_args": {"width": 16}}, "plan": {"max_steps": 2, "accelerator": "cpu"}},
}


def test_the_photographs_with_what_is_shipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gritvq.cli.images_from._CROPS", NUM_CROPS)
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    assert main(["images-from", "photographs", "--config", "small.yaml", "--out", "all"]) == 0
    assert "bits per pixel under the prior" in capsys.readouterr().out

    names = {Path(picture.name).stem for picture in open_pictures("photographs")}
    training, held_out = (
        [row for file in token_files(f"all/{folder}") for row in read_tokens(file)]
        for folder in ("tokens", "tokens-held-out")
    )
    assert {row.columns["label"] for row in training} == {row.columns["label"] for row in held_out} == names
    assert (len(training), len(held_out)) == (len(names) * NUM_CROPS * 2, len(names) * NUM_CROPS)  # mirror images
    assert all(row.tokens.shape == (8, 8, 1) and row.columns["height"] == 32 for row in (*training, *held_out))

    tokenizer = Tokenizer.from_pretrained("all/tokenizer/tokenizer")
    assert tuple(tokenizer.quantizer.codebook_sizes) == (512,)
    prior = Prior.from_pretrained("all/prior/prior", fingerprint=tokenizer.fingerprint())
    assert prior.num_classes == len(names)
    numbers = json.loads(Path("all/prior/metrics.json").read_text())
    assert 0 < numbers["bits_per_pixel"] < 1  # measured on what is held out; 9/16 for codes that are all as probable

    pictures = sorted(Path("all/samples/pictures").iterdir())
    classes = [path.stem.partition("-")[2] for path in pictures]
    assert len(pictures) == 64 and set(classes) == names
    assert {picture.shape for _, picture in read_images("all/samples/pictures")} == {(3, 32, 32)}
    ((_, grid),) = read_images("all/samples/grid.png")
    assert min(grid.shape[1:]) >= 8 * 32


def test_settings_of_no_stage(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("tokeniser: {}")
    said = wrong(["images-from", "photographs", "--config", "bad.yaml"], capsys)
    assert "got others in bad.yaml; correct their names" in said and not Path("runs").exists()
