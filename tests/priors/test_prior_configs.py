"""The shipped configurations of priors, scaled down by arguments: two steps of each by the program, and a sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from gritvq import grit_vq, msvq
from gritvq.cli import main
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.priors import Prior
from gritvq.tokens import TokenRow, write_tokens

CONFIGS = Path(__file__).parents[2] / "configs" / "priors"
PRESETS = {"runs/grit_vq/tokenizer": grit_vq, "runs/msvq/tokenizer": msvq}
ELSEWHERE = {"raster-256-16384"}  # with the large ones, in the tests of the program


@pytest.mark.parametrize("name", sorted({path.stem for path in CONFIGS.glob("*.yaml")} - ELSEWHERE))
def test_two_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    shape = {"width": 8, "num_blocks": 1}
    quantizer = PRESETS[settings["tokenizer"]](4, 16)
    tokenizer = ImageTokenizer(ImageEncoder(4, **shape), quantizer, ImageDecoder(4, **shape)).eval()
    tokenizer.save_pretrained(settings["tokenizer"])
    about = {"height": 32, "width": 32, "tokenizer": tokenizer.fingerprint()}
    indices = tokenizer.encode(torch.rand(12, 3, 32, 32))
    rows = (TokenRow(f"{n}", tokens, {**about, "label": n % 2}) for n, tokens in enumerate(indices))
    write_tokens(f"{settings['data']['train']}/tokens.parquet", rows)
    small = {"prior.width": 16, "prior.depth": 1, "prior.num_heads": 2, "data.batch_size": 4}
    small |= {"plan.max_steps": 2, "plan.validate_every": 0, "plan.accelerator": "cpu"}
    words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    assert main(["fit", "prior", "--config", str(CONFIGS / f"{name}.yaml"), *words]) == 0, capsys.readouterr().err
    assert torch.load(f"{settings['out']}/checkpoints/last.ckpt", weights_only=True)["step"] == 2
    prior = Prior.from_pretrained(f"{settings['out']}/prior")
    assert type(prior).__name__ == settings["prior"]["class_path"].rpartition(".")[2] and prior.num_classes == 2
    kept = {key: value for key, value in settings["prior"]["init_args"].items() if key in ("order", "num_steps")}
    assert all(getattr(prior, key) == value for key, value in kept.items())
    assert main(["generate", settings["out"], "--num", "2", "--guidance", "2", "--out", "samples"]) == 0
    assert len(list(Path("samples/pictures").iterdir())) == 2
