"""From two CSV files to recommendations, as docs/semantic-ids.md shows it; embeddings of texts in fit items."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from gritvq.cli import main
from gritvq.items import ItemTokenizer, MultiViewTokenizer, SemanticIds, collaborative_vectors
from gritvq.items.catalogue import read_item_data
from gritvq.items.text_embeddings import embed_texts
from program import wrong
from test_catalogue import tiny_encoder

pytest.importorskip("faiss"), pytest.importorskip("sentence_transformers")

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "semantic-ids.md").read_text().partition("## From two CSV files")[2].partition("\n## ")[0]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
COUNT, LENGTH = 40, 8
WORDS = (("red", "blue"), ("soap", "name"), ("with", "long"), ("a", "red"), ("name", "soap", "long"))
TITLES = [" ".join(words) for words in itertools.product(*WORDS)][:COUNT]
# Of a model that trains in seconds.
FEW = [
    *("--tokenizer.codebook_size", "8", "--tokenizer.num_parts", "12", "--collaborative_dim", "8"),
    *("--backbone.dim", "32", "--backbone.num_heads", "2", "--backbone.hidden_dim", "64", "--backbone.dropout", "0"),
    *("--batches.batch_size", "32", "--task.lr", "0.01", "--task.warmup_steps", "5"),
    *("--plan.max_steps", "120", "--plan.validate_every", "60", "--plan.checkpoint_every", "60"),
    *("--plan.accelerator", "cpu"),
]


def shown(language: str) -> list[str]:
    """Blocks of the section in a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    return [content for each, content in blocks if each == language]


def commands() -> list[list[str]]:
    """The words of the section's commands for the program."""
    lines = "".join(shown("")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("gritvq ")]


def write_files(folder: Path, time: str = "timestamp") -> None:
    """Files with the columns that are shown: the users go around the items, each from a place of their own."""
    events, items = ([line.split(",") for line in block.splitlines()] for block in shown("csv"))
    header = [*events[0][:2], time]
    known = [row[0] for row in items[1:]]
    keys = [*known, *(f"item-{number}" for number in range(COUNT - len(known)))]
    rows = [[keys[n], title, ("Acme", "Lune")[n % 2]] for n, title in enumerate(TITLES)]
    names = [f"user-{number}" for number in range(COUNT)] + ["ann"]
    dates = [f"2026-03-{1 + place:02} 18:30:00" for place in range(LENGTH)]
    history = [(name, keys[(n + p) % COUNT], dates[p]) for n, name in enumerate(names) for p in range(LENGTH)]
    folder.mkdir()
    for name, table in (("interactions", [header, *reversed(history)]), ("items", [items[0], *rows])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(table)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a text model."""
    return str(tiny_encoder(tmp_path_factory.mktemp("model")))


pytestmark = pytest.mark.usefixtures("own_folder")


def listed(said: str) -> list[str]:
    """Keys of the items in a printed list."""
    return re.findall(r"^│ +\d+ +│ (\S+)", said, re.MULTILINE)


def test_the_page_goes_from_two_files_to_recommendations(
    model: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_files(Path("shop"))
    Path("shop.yaml").write_text(shown("yaml")[0])
    fit, *lists = commands()
    assert fit[:2] == ["fit", "items"] and [each[0] for each in lists] == ["recommend", "recommend"]
    assert main([model if word == MODEL else word for word in fit] + FEW) == 0
    said = capsys.readouterr()
    assert f"test, {COUNT + 1} users, whole catalogue" in said.out and "no column" not in caplog.text
    numbers = json.loads(Path("runs/shop/metrics.json").read_text())
    assert numbers["recall@10"] > 0.9  # users go around the items
    ids = SemanticIds.load("runs/shop/semantic-ids/ids")
    assert ids.fingerprint["encoder"] == model and ids.fingerprint["fields"] == "title, brand"
    data = read_item_data("shop")
    ann = data.interactions.histories[data.interactions.user_keys.index("ann")].tolist()
    seen, following = {data.catalogue.keys[row] for row in ann}, data.catalogue.keys[ann[-1] + 1]
    assert main(lists[0]) == 0
    said = capsys.readouterr()
    keys = listed(said.out)
    assert len(set(keys)) == 10 and not seen & set(keys) and set(keys) <= set(data.catalogue.keys)
    assert following in keys[:3] and " ... " in said.out  # of twelve codes
    assert all(data.catalogue.columns["title"][data.catalogue.keys.index(key)] in said.out for key in keys)
    assert main(lists[1]) == 0
    keys = listed(capsys.readouterr().out)
    brands = dict(zip(data.catalogue.keys, data.catalogue.columns["brand"], strict=True))
    assert len(keys) == 10 and {brands[key] for key in keys} == {"Lune"} and not {"comb-3", "soap-1"} & set(keys)


def test_the_page_has_the_settings_of_the_best_row() -> None:
    ours = yaml.safe_load(shown("yaml")[0])
    shipped = yaml.safe_load((ROOT / "configs" / "items" / "beauty-catalogue.yaml").read_text())
    shipped["plan"].pop("accelerator")
    assert ours == {name: value for name, value in shipped.items() if name not in ("data", "out")}
    plan = yaml.safe_load((ROOT / "benchmarks" / "quality" / "recommenders.yaml").read_text())
    first = re.search(r"^\| --- .*\n\| (.*?) \|", (ROOT / "docs" / "semantic-ids.md").read_text(), re.MULTILINE)
    assert first is not None
    assert plan["studies"]["headline"]["recommenders"][first[1]] == {"config": "beauty-catalogue.yaml"}


def small(**changes: Any) -> str:
    """A configuration without a text model."""
    backbone = {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32}
    tokenizer = {"codebook_size": 8, "num_parts": 2, "rotate": False}
    content = {
        "backbone": {"class_path": "gritvq.items.CatalogueDecoder", "init_args": {**backbone, **changes}},
        "tokenizer": {"class_path": "gritvq.items.ProductKMeans", "init_args": tokenizer},
        "collisions": "keep",
        "plan": {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2, "accelerator": "cpu"},
    }
    Path("small.yaml").write_text(yaml.safe_dump(content))
    return "small.yaml"


FIT = ["fit", "items", "--config", "small.yaml", "--data.folder", "shop"]


class TestTextModel:
    def test_ids_are_those_of_the_texts_and_know_where_they_come_from(
        self, model: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_files(Path("shop"))
        small(content_dim=4)
        texts = ["--text_model", model]
        assert main([*FIT, *texts, "--collaborative_dim", "8", "--out", "run"]) == 0
        data = read_item_data("shop")
        buyers = collaborative_vectors(data.interactions.split().train, COUNT, 8)
        tokenizer = ItemTokenizer.from_pretrained("run/semantic-ids/tokenizer")
        vectors = embed_texts(TITLES, model)
        ids = SemanticIds.load("run/semantic-ids/ids")
        assert isinstance(tokenizer, MultiViewTokenizer) and ids.fingerprint["fields"] == "title"
        assert torch.equal(tokenizer.encode(torch.cat([vectors, buyers], 1)), ids.codes)
        with Path("shop/items.csv").open("a") as file:
            file.write("new,red soap,Lune\n")
        add = ["semantic-ids", "add", "run/semantic-ids", "--data", "shop/items.csv", "--out", "grown"]
        assert "fields 'title'" in wrong([*add, *texts, "--fields", "[brand]"], capsys)
        assert main([*add, *texts]) == 0
        assert SemanticIds.load("grown").items[-1] == "new"

    def test_a_run_is_repeated_by_its_configuration_and_by_its_ids(self, model: str) -> None:
        write_files(Path("shop"))
        small()
        assert main([*FIT, "--text_model", model, "--out", "a"]) == 0
        assert main(["fit", "--config", "a/config.yaml", "--out", "b"]) == 0
        assert main([*FIT, "--ids", "a/semantic-ids", "--out", "c"]) == 0
        weights = [Path(run, "recommender", "model.safetensors").read_bytes() for run in "abc"]
        assert weights[0] == weights[1] == weights[2]
        assert main(["fit", "--config", "a/config.yaml", "--resume", "last", "--out", "a"]) == 0

    def test_content_of_ids_that_are_made_already(self, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        write_files(Path("shop"))
        small(content_dim=4)
        assert main([*FIT, "--text_model", model, "--out", "a"]) == 0
        told = [*FIT, "--ids", "a/semantic-ids", "--out", "b"]
        assert "expected item embeddings, got none" in wrong(told, capsys)
        assert main([*told, "--text_model", model]) == 0

    def test_vectors_of_an_older_catalogue_stop_nothing_that_does_not_need_them(
        self, model: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_files(Path("shop"))
        small()
        stale = Path("shop/item_embeddings.npy")
        np.save(stale, np.ones((COUNT - 1, 4), dtype=np.float32))
        before = stale.read_bytes()
        said = wrong([*FIT, "--out", "a"], capsys)
        assert f"expected {COUNT} vectors" in said and f"got {COUNT - 1}" in said and "(--text_model)" in said
        assert main([*FIT, "--text_model", model, "--out", "a"]) == 0
        ids = SemanticIds.load("a/semantic-ids/ids")
        tokenizer = ItemTokenizer.from_pretrained("a/semantic-ids/tokenizer")
        assert torch.equal(tokenizer.encode(embed_texts(TITLES, model)), ids.codes)
        assert main(["fit", "--config", "a/config.yaml", "--resume", "last", "--out", "a"]) == 0
        assert main([*FIT, "--ids", "a/semantic-ids", "--out", "b"]) == 0
        assert main(["recommend", "b", "--user", "ann"]) == 0
        assert main(["semantic-ids", "vectors", "--data.folder", "shop", "--dim", "4"]) == 0
        assert stale.read_bytes() == before
        small(content_dim=4)  # content is made of vectors
        assert f"got {COUNT - 1}" in wrong([*FIT, "--ids", "a/semantic-ids", "--out", "c"], capsys)

    def test_messages(self, model: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        write_files(Path("shop"), time="when")
        small()
        said = wrong([*FIT, "--out", "run"], capsys)
        assert "expected item embeddings, got none" in said and "--text_model" in said and "--data.embeddings" in said
        assert "no column 'timestamp' or 'position' in" in caplog.text and "other columns: 'when'" in caplog.text
        caplog.clear()
        wrong([*FIT, "--data.order", "when", "--out", "run"], capsys)
        assert "no column" not in caplog.text
        told = ["--text_model", model, "--out", "run"]
        assert "got both" in wrong([*FIT, *told, "--ids", "somewhere"], capsys)
        said = wrong([*FIT, *told, "--data.embeddings", "a.npy"], capsys)
        assert "--text_model or --data.embeddings, got both" in said and "leave one out" in said
        assert "expected --text_model to read the columns title" in wrong([*FIT, "--fields", "[title]"], capsys)
        assert "got 'color'; choose one" in wrong([*FIT, *told, "--fields", "[color]"], capsys)
        assert "expected a sentence-transformers model, got './no'" in wrong([*FIT, "--text_model", "./no"], capsys)
        path = Path("shop/items.csv")
        path.write_text(path.read_text().replace("item,title", "item,name", 1))
        assert "got name, brand; name columns with --fields" in wrong([*FIT, *told], capsys)
        ids = ["semantic-ids", "fit", "--data", "shop", *told]
        assert "--text_model or --embeddings, got both" in wrong([*ids, "--embeddings", "a.npy"], capsys)
        assert not Path("run").exists() and not Path("runs").exists()
