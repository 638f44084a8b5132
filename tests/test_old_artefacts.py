"""Artefacts that earlier versions wrote: they load, and give the indices that they gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gritvq import Tokenizer
from gritvq.images import ImageTokenizer
from gritvq.items import RQVAE, GenerativeRecommender, ItemTokenizer, ResidualKMeans, SemanticIds

# Written by 0.1.0 before its files moved into wings: configurations name places of that time, and only what was given.
OLD = Path(__file__).parent / "artefacts" / "0.1.0"
FOUND = json.loads((OLD / "found.json").read_text())
EMBEDDINGS = np.sin(np.arange(60 * 8, dtype=np.float32)).reshape(60, 8)


@pytest.mark.parametrize("name", ["grit_vq", "rq", "sq_vae"])
def test_a_tokenizer_of_images_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    images = torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16).remainder(251).to(torch.uint8)
    tokenizer = Tokenizer.from_pretrained(OLD / name)
    assert isinstance(tokenizer, ImageTokenizer)
    assert tokenizer.encode(images).tolist() == FOUND[name]
    config = json.loads((tokenizer.save_pretrained(tmp_path / "new") / "config.json").read_text())
    assert config["tokenizer"]["class_path"] == "gritvq.images.ImageTokenizer"
    assert ImageTokenizer.from_pretrained(tmp_path / "new").encode(images).tolist() == FOUND[name]


@pytest.mark.parametrize(("cls", "place"), [(ResidualKMeans, 0), (RQVAE, 1)])
def test_an_item_tokenizer_gives_the_same_codes_and_the_same_fingerprint(
    cls: type[ItemTokenizer], place: int, tmp_path: Path
) -> None:
    name = cls.__name__.replace("KMeans", "_KMeans").lower()
    for asked in (Tokenizer, ItemTokenizer, cls):
        tokenizer = asked.from_pretrained(OLD / name)
        assert type(tokenizer) is cls
        assert tokenizer.encode(EMBEDDINGS).tolist() == FOUND[name]
        assert tokenizer.fingerprint() == FOUND["fingerprints"][place]  # ids that it made still know it
    shutil.copytree(OLD / name, tmp_path / name)  # the old one is replaced by the new one
    config = json.loads((tokenizer.save_pretrained(tmp_path / name) / "config.json").read_text())
    assert config["tokenizer"]["class_path"] == f"gritvq.items.{cls.__name__}" and "item_tokenizer" not in config
    assert cls.from_pretrained(tmp_path / name).encode(EMBEDDINGS).tolist() == FOUND[name]
    with pytest.raises(ValueError, match=f"expected a saved ImageTokenizer in .*, got {cls.__name__}"):
        ImageTokenizer.from_pretrained(OLD / name)


def test_ids_and_a_recommender_of_them() -> None:
    ids = SemanticIds.load(OLD / "ids")
    assert ids.codes.tolist() == FOUND["ids"] and ids.fingerprint == {"quantizer": FOUND["fingerprints"][0]}
    recommender = GenerativeRecommender.from_pretrained(OLD / "recommender")
    assert recommender.recommend([[0, 1, 2], [5]], 3).tolist() == FOUND["recommended"]


def test_what_a_tokenizer_says_of_its_training_is_kept(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(OLD / "grit_vq")
    assert tokenizer.trained is None
    tokenizer.save_pretrained(tmp_path / "a", {"steps": 3})
    Tokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert Tokenizer.from_pretrained(tmp_path / "b").trained == {"steps": 3}


def test_a_damaged_old_artefact_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(OLD / "grit_vq", folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="checksum"):
        Tokenizer.from_pretrained(folder)
