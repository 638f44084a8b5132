"""The shipped configurations of texts: the models as they are, and two steps of small ones by the program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gritvq.cli import main
from gritvq.cli.errors import parser_class
from gritvq.cli.fit import configuration
from gritvq.text import Segmentation, TextTokenizer, TraceModel
from text_common import toy_documents

CONFIGS = Path(__file__).parents[2] / "configs" / "text"
MODELS = {"trace": TraceModel, "segment-tokenizer": TextTokenizer, "language-model": TraceModel}
SMALL = {"model.width": 16, "model.depth": 1, "model.num_heads": 2, "data.vocabulary": 280, "plan.max_steps": 2}


def test_none_is_forgotten() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_complete_runs_can_be_built(name: str) -> None:
    """Models of a common size, on documents that they take, and that they all cut alike."""
    parser, config, _ = configuration(parser_class(), "text", ["--config", str(CONFIGS / f"{name}.yaml")])
    built = parser.instantiate(config)
    model = built.model
    assert isinstance(model, MODELS[name]) and built.data.segmentation == Segmentation(max_tokens=32, max_segments=8)
    assert model.decoder.transformer.length >= built.data.segmentation.max_length
    count = sum(each.numel() for each in model.parameters())
    assert 1e6 < count < 6e6 and built.plan.max_steps == 5000
    if isinstance(model, TextTokenizer):
        assert model.quantizer.codebook_sizes == (512,)
    elif name == "trace":
        assert model.latents is not None and model.latents.dim == 16


def test_another_model_has_the_same_size_and_settings_as_the_default() -> None:
    sizes = dict[str, int]()
    for name in ("trace", "gaussian_vae"):
        words = ["--model", f"gritvq.text.{name}"]
        parser, config, _ = configuration(parser_class(), "text", words)
        built = parser.instantiate(config)
        sizes[name] = sum(each.numel() for each in built.model.decoder.parameters())
        assert built.task["bag_of_words"] == built.task["free_bits"] == 0 and built.model.latents.dim == 16
    assert sizes["trace"] == sizes["gaussian_vae"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in toy_documents(40, 2)))
    arguments = {**SMALL, "data.path": "texts.jsonl", "plan.validate_every": 0, "plan.accelerator": "cpu", "out": "run"}
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    assert main(["fit", "text", "--config", str(CONFIGS / f"{name}.yaml"), *words]) == 0
    settings, began = (yaml.safe_load(path.read_text()) for path in (Path("run/config.yaml"), CONFIGS / f"{name}.yaml"))
    assert settings["model"]["class_path"] == began["model"]["class_path"]
    numbers = json.loads(Path("run/metrics.json").read_text())
    assert numbers["documents"] >= 4 and 0 <= numbers["token_accuracy"] <= 1
