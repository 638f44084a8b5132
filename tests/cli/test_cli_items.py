"""The program on a small catalogue: ids, their report, new items, a recommender; and wrong input."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from pyarrow import parquet

from gritvq.cli import main
from gritvq.items import (
    CollaborativeLoss,
    GenerativeRecommender,
    ItemTokenizer,
    MultiViewTokenizer,
    SemanticIds,
    Split,
    code_vectors,
    collaborative_vectors,
    rank_in_list,
    ranking_metrics,
)
from gritvq.items.catalogue import read_item_data
from gritvq.items.text_embeddings import embed_texts
from gritvq.training.task import steps_done
from program import wrong
from shop_files import write_catalogue, write_shop
from test_catalogue import tiny_encoder

NUM_ITEMS, NUM_USERS = 60, 50
KMEANS = ["--tokenizer.codebook_size", "8", "--tokenizer.num_levels", "2"]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a shop."""
    folder = tmp_path_factory.mktemp("shop") / "data"
    write_shop(folder, NUM_ITEMS, NUM_USERS)
    return folder


@pytest.fixture(scope="module")
def run(shop: Path) -> Path:
    """Ids of the catalogue."""
    out = shop.parent / "ids-run"
    assert main(["semantic-ids", "fit", "--data", str(shop), "--categories", "kind", "--out", str(out), *KMEANS]) == 0
    return out


def small(**changes: Any) -> dict[str, Any]:
    """A configuration that trains a recommender in seconds."""
    settings = {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32}
    return {
        "backbone": {"class_path": "gritvq.items.DepthDecoder", "init_args": settings},
        "tokenizer": {
            "class_path": "gritvq.items.ResidualKMeans",
            "init_args": {"codebook_size": 8, "num_levels": 2},
        },
        "batches": {"batch_size": 16, "max_history": 6},
        "task": {"lr": 0.01, "warmup_steps": 2},
        "plan": {"max_steps": 12, "validate_every": 6, "checkpoint_every": 6, "accelerator": "cpu"},
        **changes,
    }


@pytest.fixture(scope="module")
def recommender(shop: Path) -> Path:
    """Folder of a finished run."""
    out = shop.parent / "recommender-run"
    (shop.parent / "small.yaml").write_text(yaml.safe_dump(small()))
    arguments = ["fit", "--config", str(shop.parent / "small.yaml"), "--data.folder", str(shop), "--out", str(out)]
    assert main(arguments) == 0
    return out


class TestSemanticIds:
    def test_fit_writes_ids_report_and_pictures(self, run: Path) -> None:
        ids = SemanticIds.load(run / "ids")
        assert ids.items == tuple(f"a{i}" for i in range(NUM_ITEMS)) and ids.codebook_sizes[:2] == (8, 8)
        assert len(torch.unique(ids.codes, dim=0)) == NUM_ITEMS
        numbers = json.loads((run / "report.json").read_text())
        assert numbers["items"] == NUM_ITEMS and numbers["uniqueness"] == 1
        assert numbers["level1/purity"] > 0.9  # kinds are far apart
        for name in ("usage.png", "collisions.png", "tree.png"):
            assert (run / name).stat().st_size > 1000

    def test_encode_gives_the_codes_of_the_ids(self, run: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = ["semantic-ids", "encode", str(run), "--embeddings", str(shop / "item_embeddings.npy")]
        expected = SemanticIds.load(run / "ids").codes[:, :2].numpy()
        Path("codes.npy").write_bytes(b"somebody's")
        assert "--overwrite true" in wrong([*told, "--out", "codes.npy"], capsys)
        assert Path("codes.npy").read_bytes() == b"somebody's"
        assert main([*told, "--out", "codes.npy", "--overwrite", "true"]) == 0
        assert np.array_equal(np.load("codes.npy"), expected)

    def test_report_says_the_same_of_saved_ids(self, run: Path, shop: Path) -> None:
        told = ["semantic-ids", "report", str(run), "--data", str(shop), "--categories", "kind", "--out", "judged"]
        assert main(told) == 0
        assert json.loads(Path("judged/report.json").read_text()) == json.loads((run / "report.json").read_text())

    def test_report_of_ids_alone(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["semantic-ids", "report", str(run / "ids"), "--out", "judged"]) == 0
        assert "perplexity per level" in capsys.readouterr().out

    def test_add_keeps_every_id(self, run: Path) -> None:
        write_catalogue(Path("larger"), NUM_ITEMS + 7)
        assert main(["semantic-ids", "add", str(run), "--data", "larger", "--out", "grown"]) == 0
        before, after = SemanticIds.load(run / "ids"), SemanticIds.load("grown")
        assert len(after) == NUM_ITEMS + 7 and torch.equal(after.codes[:NUM_ITEMS], before.codes)
        vectors = np.load("larger/item_embeddings.npy")[NUM_ITEMS:]
        expected = ItemTokenizer.from_pretrained(run / "tokenizer").encode(vectors)
        assert torch.equal(after.codes[NUM_ITEMS:, :2], expected)
        assert len(torch.unique(after.codes, dim=0)) == len(after)

    def test_add_goes_on_with_what_it_extended(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = ["semantic-ids", "add", str(run), "--out", "grown", "--data"]
        for folder, (first, last) in (("monday", (0, 3)), ("tuesday", (3, 7))):
            write_catalogue(Path("all"), NUM_ITEMS + 7)
            table = parquet.read_table("all/items.parquet")
            rows = [*range(NUM_ITEMS + first, NUM_ITEMS + last)]
            Path(folder).mkdir()
            parquet.write_table(table.take(rows), f"{folder}/items.parquet")
            np.save(f"{folder}/item_embeddings.npy", np.load("all/item_embeddings.npy")[rows])
            assert main([*told, folder]) == 0
        assert len(SemanticIds.load("grown")) == NUM_ITEMS + 7 and SemanticIds.load("grown").items[-1] == "a66"
        other = SemanticIds.load(run / "ids")
        SemanticIds(other.codes.flip(0), other.codebook_sizes, other.items, collisions=other.collisions).save("grown")
        assert main(["semantic-ids", "add", str(run), "--data", "all", "--out", "whole"]) == 0
        shutil.copytree(run, "own")
        SemanticIds.load("whole").save("own/ids")  # the run's own have grown further than those in --out
        SemanticIds(other.codes, other.codebook_sizes, other.items, collisions=other.collisions).save("fewer")
        assert main(["semantic-ids", "add", "own", "--data", "all", "--out", "fewer"]) == 0
        assert len(SemanticIds.load("fewer")) == NUM_ITEMS + 7
        said = wrong([*told, "monday"], capsys)
        assert "got grown with others" in said and "--overwrite true" in said and len(SemanticIds.load("grown")) == 60
        assert main([*told, "monday", "--overwrite", "true"]) == 0
        assert len(SemanticIds.load("grown")) == NUM_ITEMS + 3

    @pytest.mark.parametrize("policy", ["nearest_free", "sinkhorn", "keep"])
    def test_policies(self, shop: Path, policy: str) -> None:
        told = ["semantic-ids", "fit", "--data", str(shop), "--out", "out", "--collisions", policy, *KMEANS]
        assert main([*told, "--tokenizer.codebook_size", "16"]) == 0
        ids = SemanticIds.load("out/ids")
        assert ids.codebook_sizes == (16, 16) and ids.collisions == policy
        numbers = json.loads(Path("out/report.json").read_text())
        values = ItemTokenizer.from_pretrained("out/tokenizer").decode(ids.codes).numpy()
        error = ((np.load(shop / "item_embeddings.npy").astype(np.float32) - values) ** 2).mean()
        assert numbers["reconstruction/mse"] == pytest.approx(error, rel=1e-5)
        assert ("perturbed/kept_ids" in numbers) == (policy == "keep")  # the others choose codes themselves

    def test_embeddings_of_texts(self, capsys: pytest.CaptureFixture[str]) -> None:
        model = str(tiny_encoder(Path.cwd()))
        parts = (("red", "blue", "soap"), ("with", "a", "long", "name"), ("red", "blue", "soap", "name", "long"))
        titles = [" ".join(words) for words in itertools.product(*parts)]
        for name, count in (("some.parquet", 57), ("all.parquet", 60)):
            parquet.write_table(pyarrow.table({"item": list(range(count)), "title": titles[:count]}), name)
        told = ["--text_model", model]
        assert main(["semantic-ids", "fit", "--data", "some.parquet", "--out", "out", *told, *KMEANS]) == 0
        ids = SemanticIds.load("out/ids")
        tokenizer = ItemTokenizer.from_pretrained("out/tokenizer")
        assert torch.equal(tokenizer.encode(embed_texts(titles[:57], model)), ids.codes[:, :2])
        assert ids.fingerprint["encoder"] == model
        assert main(["semantic-ids", "add", "out", "--data", "all.parquet", *told, "--out", "grown"]) == 0
        grown = SemanticIds.load("grown")
        assert torch.equal(grown.codes[:57], ids.codes)
        assert torch.equal(grown.codes[57:, :2], tokenizer.encode(embed_texts(titles[57:], model)))
        other = ["--data", "all.parquet", *told, "--fields", "[title,title]", "--out", "no"]
        for job in ("add", "report"):  # texts made of other columns are other vectors
            assert "fields 'title'" in wrong(["semantic-ids", job, "out", *other], capsys)
        assert not Path("no").exists()

    def test_grit_vq_units_between_networks(self, shop: Path) -> None:
        stack = {"dim": 8, "codebook_size": 8, "num_levels": 2}
        parts = {
            "quantizer": {"class_path": "gritvq.items.grit_stack", "init_args": stack},
            "encoder": {"class_path": "gritvq.items.ItemEncoder", "init_args": {"input_dim": 16, "dim": 8}},
            "decoder": {"class_path": "gritvq.items.ItemDecoder", "init_args": {"input_dim": 16, "dim": 8}},
            "steps": 20,
        }
        content = {"tokenizer": {"class_path": "gritvq.items.RQVAE", "init_args": parts}}
        Path("rqvae.yaml").write_text(yaml.safe_dump(content))
        assert main(["semantic-ids", "fit", "--config", "rqvae.yaml", "--data", str(shop), "--out", "out"]) == 0
        assert SemanticIds.load("out/ids").codebook_sizes[:2] == (8, 8)


class TestLayouts:
    """Data as it is downloaded."""

    @pytest.fixture()
    def download(self) -> Path:
        """Users of MovieLens 1M who go from a movie to the next but one."""
        folder = Path("ml-1m")
        folder.mkdir()
        parts = (("Red", "Blue", "Soap"), ("with", "a", "long", "name"), ("Red", "Blue", "Soap", "Name", "Long"))
        titles = [" ".join(words) for words in itertools.product(*parts)]
        movies = [f"{number}::{title} ☺ (1995)::Comedy|Drama" for number, title in enumerate(titles[:50], 1)]
        (folder / "movies.dat").write_text("\n".join(movies), encoding="utf-8")
        events = [f"{u}::{1 + (u + 2 * p) % 60}::5::{p}" for u in range(NUM_USERS) for p in range(6)]
        (folder / "ratings.dat").write_text("\n".join(events))
        (folder / "users.dat").write_text("1::F::1::10::48067\n")
        return folder

    def test_ids_and_a_recommender_of_a_download(self, download: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = str(tiny_encoder(Path.cwd()))
        told = ["semantic-ids", "fit", "--data", str(download), "--text_model", model, "--out", "ids", *KMEANS]
        assert main(told) == 0
        ids = SemanticIds.load("ids/ids")
        data = read_item_data(download)
        assert ids.items == data.catalogue.keys == tuple(range(1, 61)) and ids.fingerprint["fields"] == "item_text"
        texts = data.catalogue.texts(("item_text",))
        assert texts[0] == "Red with Red ☺ (1995); Comedy, Drama" and texts[59] == "60"  # without metadata
        expected = ItemTokenizer.from_pretrained("ids/tokenizer").encode(embed_texts(texts, model))
        assert torch.equal(ids.codes[:, :2], expected)
        Path("small.yaml").write_text(yaml.safe_dump(small()))
        told = ["fit", "--config", "small.yaml", "--data.folder", str(download), "--ids", "ids", "--out", "run"]
        assert main(told) == 0
        capsys.readouterr()
        assert main(["recommend", "run", "--user", "7", "--k", "3"]) == 0
        assert "(1995)" in capsys.readouterr().out

    def test_conversion(self, download: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["semantic-ids", "convert", str(download), "--out", "shop"]) == 0
        said = capsys.readouterr().out
        assert "300" in said and "shop/interactions.parquet" in said
        before, after = read_item_data(download), read_item_data("shop")
        assert before.catalogue == after.catalogue
        assert torch.equal(before.interactions.histories.items, after.interactions.histories.items)
        told = ["--data", "shop", "--text_model", str(tiny_encoder(Path.cwd())), "--out", "ids", *KMEANS]
        assert main(["semantic-ids", "fit", *told]) == 0
        assert SemanticIds.load("ids/ids").fingerprint["fields"] == "item_text"
        again = ["semantic-ids", "convert", str(download / "ratings.dat"), "--out", "shop"]
        assert "--overwrite true" in wrong(again, capsys)
        assert main([*again, "--overwrite", "true", "--items", "movies.dat"]) == 0

    def test_vectors_beside_a_download_are_used_only_if_they_are_named(
        self, download: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
        np.save(download / "item_embeddings.npy", vectors[:50])  # of movies.dat, of which all 50 have events
        for data in (download, download / "ratings.dat", download / "movies.dat"):
            said = wrong(["semantic-ids", "fit", "--data", str(data), "--out", "ids", *KMEANS], capsys)
            assert "without item embeddings, got 'ml-1m/item_embeddings.npy'" in said and "semantic-ids convert" in said
        assert "semantic-ids convert" in wrong(["fit", "items", "--data.folder", str(download), "--out", "run"], capsys)
        assert not Path("ids").exists() and not Path("run").exists()
        np.save("named.npy", vectors)
        (download / "item_embeddings.npy").rename("of-movies.npy")
        for data, name, count in ((download, "named.npy", 60), (download / "movies.dat", "of-movies.npy", 50)):
            told = ["--data", str(data), "--embeddings", name, "--out", f"ids-{count}", *KMEANS]
            assert main(["semantic-ids", "fit", *told]) == 0
            assert len(SemanticIds.load(f"ids-{count}/ids")) == count

    def test_wrong_data(self, download: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with (download / "ratings.dat").open("a") as file:
            file.write("\n1::2::3")
        jobs = (
            ["semantic-ids", "convert", str(download), "--out", "out"],
            ["semantic-ids", "fit", "--data", str(download), "--text_model", "none", "--out", "out"],
            ["fit", "items", "--data.folder", str(download), "--out", "out"],
        )
        for job in jobs:
            said = wrong(job, capsys)
            assert "line 301 of" in said and "got 3 in '1::2::3'; correct or remove the line" in said
        (download / "u.data").write_text("1\t2\t3\t4\n")
        for job in jobs:
            assert "one data set in 'ml-1m', got ratings.dat, u.data; name one file" in wrong(job, capsys).replace(
                str(download.resolve()), "ml-1m"
            )
        assert not Path("out").exists()


class TestRecommender:
    def test_fit_makes_ids_trains_and_tests(self, recommender: Path) -> None:
        numbers = json.loads((recommender / "metrics.json").read_text())
        assert set(numbers) == {"recall@5", "ndcg@5", "recall@10", "ndcg@10"}
        assert 0 <= numbers["ndcg@5"] <= numbers["recall@5"] <= numbers["recall@10"] <= 1
        assert (recommender / "recommender" / "model.safetensors").exists()
        assert len(SemanticIds.load(recommender / "semantic-ids" / "ids")) == NUM_ITEMS

    def test_given_ids_and_its_own_config_repeat_it(self, recommender: Path) -> None:
        ids = str(recommender / "semantic-ids")
        assert main(["fit", "--config", str(recommender / "config.yaml"), "--ids", ids, "--out", "again"]) == 0
        name = "recommender/model.safetensors"
        assert (Path("again") / name).read_bytes() == (recommender / name).read_bytes()

    def test_recommends_to_users_and_after_histories(
        self, recommender: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["recommend", str(recommender), "--user", "u3", "--k", "5"]) == 0
        of_user = capsys.readouterr().out
        assert "after 6 items" in of_user and "thing" in of_user
        history = "[" + ",".join(f"a{3 + 2 * position}" for position in range(6)) + "]"
        assert main(["recommend", str(recommender), "--history", history, "--k", "5"]) == 0
        assert capsys.readouterr().out == of_user and "score" not in of_user
        assert main(["recommend", str(recommender), "--history", history, "--k", "5", "--exact", "true"]) == 0
        assert "score" in capsys.readouterr().out

    def test_new_items_are_shown_as_the_new_catalogue_calls_them(
        self, recommender: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_catalogue(Path("larger"), NUM_ITEMS + 1)
        table = parquet.read_table("larger/items.parquet")
        titles = [f"today's {row}" for row in range(NUM_ITEMS + 1)]
        table = table.set_column(table.column_names.index("title"), "title", pyarrow.array(titles))
        parquet.write_table(table, "larger/items.parquet")
        assert main(["semantic-ids", "add", str(recommender), "--data", "larger", "--out", "grown"]) == 0
        told = ["recommend", str(recommender), "--ids", "grown", "--catalogue", "larger/items.parquet", "--k", "61"]
        for asked in (["--history", "[a60]"], ["--user", "u3"]):
            assert main([*told, *asked]) == 0
            assert "today's 60" in capsys.readouterr().out
        Path("stock.csv").write_text("item,stock\n" + "".join(f"a{row},yes\n" for row in range(NUM_ITEMS)))
        told = ["recommend", str(recommender), "--user", "u3", "--where", "[stock=yes]", "--catalogue", "stock.csv"]
        assert main(told) == 0
        assert "thing" in capsys.readouterr().out  # titles of the data
        assert "expected a column of stock, " in wrong([*told, "--column", "color"], capsys)

    def test_lists_for_users_of_the_data(self, recommender: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("users.csv").write_text("user\nu3\nu7\n")
        told = ["recommend", str(recommender), "--requests", "users.csv", "--id_column", "user", "--k", "5"]
        assert "'history'" in wrong(told, capsys)
        assert main([*told, "--history_from", "data"]) == 0
        found = parquet.read_table("recommendations.parquet").to_pylist()
        events = read_item_data(json.loads((recommender / "data.json").read_text())["data"]).interactions
        Path("histories.jsonl").write_text(
            "".join(
                json.dumps({"id": key, "history": [events.item_keys[row] for row in events.histories[place].tolist()]})
                + "\n"
                for place, key in enumerate(events.user_keys)
                if key in ("u3", "u7")
            )
        )
        told[3:6] = ["histories.jsonl", "--id_column", "id"]
        assert main([*told, "--overwrite", "true"]) == 0
        same = parquet.read_table("recommendations.parquet").to_pylist()
        assert [(row["request"], row["item"]) for row in found] == [(row["request"], row["item"]) for row in same]
        assert len(found) == 10
        for name, write in (
            ("users.parquet", lambda path: parquet.write_table(pyarrow.table({"user": ["u3", "u7"]}), path)),
            ("users.jsonl", lambda path: Path(path).write_text('{"user": "u3"}\n{"user": "u7"}\n')),
        ):
            write(name)
            told[3:6] = [name, "--id_column", "user"]
            assert main([*told, "--history_from", "data", "--overwrite", "true"]) == 0
            assert parquet.read_table("recommendations.parquet").to_pylist() == found
        Path("users.csv").write_text('user,else\n"",x\n')
        told[3:6] = ["users.csv", "--id_column", "user"]
        assert "expected an id" in wrong([*told, "--history_from", "data", "--overwrite", "true"], capsys)
        Path("users.csv").write_text("user\nu3\nnobody\n")
        told[3:6] = ["users.csv", "--id_column", "user"]
        assert "got 'nobody'" in wrong([*told, "--history_from", "data", "--overwrite", "true"], capsys)
        assert "--history_column" in wrong(
            [*told, "--history_from", "data", "--history_column", "x", "--overwrite", "true"], capsys
        )

    def test_filters_by_the_catalogue_of_the_run(self, recommender: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = ["recommend", str(recommender), "--user", "u3", "--where", "[kind=kind 3]", "--exclude_seen", "true"]
        assert main([*told, "--k", str(NUM_ITEMS)]) == 0
        found = re.findall(r"^\W*\d+\W+a(\d+) ", capsys.readouterr().out, flags=re.MULTILINE)
        assert sorted(map(int, found)) == [row for row in range(3, NUM_ITEMS, 6) if row not in range(3, 15, 2)]
        Path("requests.csv").write_text("id,history\nanna,a3\nbert,[]\n")
        told = ["recommend", str(recommender), "--requests", "requests.csv", "--where", "[kind=kind 3]"]
        assert main([*told, "--k", "10"]) == 0
        rows = parquet.read_table("recommendations.parquet").to_pylist()
        assert {row["request"] for row in rows} == {"anna", "bert"} and len(rows) == 20
        assert all(int(row["item"][1:]) % 6 == 3 for row in rows)

    def test_keys_that_are_numbers(self, recommender: Path, capsys: pytest.CaptureFixture[str]) -> None:
        loaded = GenerativeRecommender.from_pretrained(recommender / "recommender")
        ids = SemanticIds(loaded.ids.codes, loaded.ids.codebook_sizes, range(NUM_ITEMS), collisions="append")
        GenerativeRecommender(loaded.backbone, ids, max_history=6).save_pretrained("numbers")
        assert main(["recommend", "numbers", "--history", "[3,5]", "--k", "4"]) == 0
        assert "after 2 items, the last one 5" in capsys.readouterr().out
        assert "999" in wrong(["recommend", "numbers", "--history", "[3,999]"], capsys)
        assert "whole numbers" in wrong(["recommend", "numbers", "--history", "[3,x]"], capsys)

    def test_keys_stay_as_they_are_typed(self, recommender: Path, capsys: pytest.CaptureFixture[str]) -> None:
        loaded = GenerativeRecommender.from_pretrained(recommender / "recommender")
        keys = ["8", "010", "10", "12:30", "null", "a,b", *(f"a{row}" for row in range(6, NUM_ITEMS))]
        ids = SemanticIds(loaded.ids.codes, loaded.ids.codebook_sizes, keys, collisions="append")
        GenerativeRecommender(loaded.backbone, ids, max_history=6).save_pretrained("strings")
        typed = {"[010]": "010", '["010"]': "010", "['8']": "8", "10": "10", "[12:30]": "12:30", "[8, null]": "null"}
        for history, last in {**typed, '[8, "a,b"]': "a,b"}.items():
            assert main(["recommend", "strings", "--history", history]) == 0
            assert f"the last one {last!r}" in capsys.readouterr().out

    def test_items_of_one_id_come_by_priority(self, recommender: Path, capsys: pytest.CaptureFixture[str]) -> None:
        loaded = GenerativeRecommender.from_pretrained(recommender / "recommender")
        codes = loaded.ids.codes.clone()
        codes[:] = codes[0]
        ids = SemanticIds(codes, loaded.ids.codebook_sizes)
        priority = torch.rand(NUM_ITEMS)
        GenerativeRecommender(loaded.backbone, ids, max_history=6, priority=priority).save_pretrained("one")
        for exact in ("false", "true"):
            assert main(["recommend", "one", "--history", "[3]", "--exact", exact, "--k", str(NUM_ITEMS)]) == 0
            lines = re.findall(r"^\W*\d+\W+(\d+) ", capsys.readouterr().out, flags=re.MULTILINE)
            assert [int(row) for row in lines] == priority.argsort(descending=True).tolist()

    def test_data_of_the_same_columns_elsewhere(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for folder in ("one", "two"):
            shutil.copytree(shop, folder)
            for name in ("items", "interactions"):
                table = parquet.read_table(f"{folder}/{name}.parquet")
                renamed = ["asin" if column == "item" else column for column in table.column_names]
                parquet.write_table(table.rename_columns(renamed), f"{folder}/{name}.parquet")
        Path("small.yaml").write_text(yaml.safe_dump(small()))
        told = ["fit", "--config", "small.yaml", "--data.folder", "one", "--data.item", "asin", "--out", "out"]
        assert main(told) == 0
        assert main(["recommend", "out", "--user", "u3", "--data", "two"]) == 0
        assert "after 6 items" in capsys.readouterr().out

    def test_rare_items_are_left_out(self, recommender: Path) -> None:
        config = str(recommender / "config.yaml")
        assert main(["fit", "--config", config, "--k_core", "2", "--num_test", "9", "--out", "core"]) == 0
        ids = SemanticIds.load("core/recommender/ids")
        assert 0 < len(ids) < NUM_ITEMS
        assert main(["recommend", "core", "--user", "u20"]) == 0

    def test_starts_from_the_weights_of_another_run(
        self, recommender: Path, shop: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ids = str(recommender / "semantic-ids")
        told = ["fit", "items", "--config", str(recommender / "config.yaml"), "--plan.max_steps", "1"]
        told += ["--init_from", str(recommender / "recommender"), "--task.lr", "1e-30"]
        assert main([*told, "--ids", ids, "--out", "tuned"]) == 0
        first, second = (
            GenerativeRecommender.from_pretrained(folder / "recommender").state_dict()
            for folder in (recommender, Path("tuned"))
        )
        assert all(torch.equal(first[name], second[name]) for name in first)  # the rate moves nothing
        other = [*told, "--tokenizer.init_args.seed", "5", "--tokenizer.init_args.codebook_size", "9", "--out", "other"]
        assert "expected a recommender of these ids to start from" in wrong(other, capsys)

    def test_parallel_ids_are_fitted_and_every_item_scored(
        self, shop: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shape = {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "temperature": 0.2}
        product = {"codebook_size": 8, "num_parts": 8, "rotate": False}
        config = small(
            backbone={"class_path": "gritvq.items.ParallelDecoder", "init_args": shape},
            tokenizer={"class_path": "gritvq.items.ProductKMeans", "init_args": product},
            collisions="keep",
        )
        Path("small.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "items", "--config", "small.yaml", "--data.folder", str(shop), "--out", "out"]) == 0
        loaded = GenerativeRecommender.from_pretrained("out/recommender")
        assert loaded.ids.codebook_sizes == (8,) * 8 and loaded.backbone.parallel
        numbers = json.loads(Path("out/metrics.json").read_text())
        split = read_item_data(str(shop)).interactions.split()
        ranks = rank_in_list(loaded.recommend(split.test_inputs, 10), split.test)
        assert numbers == pytest.approx(ranking_metrics(ranks))
        wanted = loaded.recommend([[1, 3]], 5)[0].tolist()
        for exact in ("false", "true"):  # the same: there is no search
            assert main(["recommend", "out", "--history", "[a1,a3]", "--k", "5", "--exact", exact]) == 0
            lines = re.findall(r"^\W*\d+\W+a(\d+) ", capsys.readouterr().out, flags=re.MULTILINE)
            assert [int(row) for row in lines] == wanted
        other = ["fit", "items", "--config", "small.yaml", "--data.folder", str(shop), "--out", "other"]
        said = wrong([*other, "--init_from", "out/recommender", "--tokenizer.init_args.seed", "5"], capsys)
        assert "expected a recommender of these ids to start from" in said

    def test_what_items_are_counts_beside_what_is_trained(self, shop: Path) -> None:
        """Content of made ids and of given ones; a run that goes on has what it had."""
        shape = {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "content_dim": 6, "content_weight": 2.5}
        config = small(backbone={"class_path": "gritvq.items.CatalogueDecoder", "init_args": shape}, collisions="keep")
        Path("small.yaml").write_text(yaml.safe_dump({**config, "collaborative_dim": 4}))
        told = ["fit", "items", "--config", "small.yaml", "--data.folder", str(shop)]
        assert main([*told, "--out", "out"]) == 0
        loaded = GenerativeRecommender.from_pretrained("out/recommender")
        data = read_item_data(str(shop))
        texts = data.catalogue.vectors()
        decoded = ItemTokenizer.from_pretrained("out/semantic-ids/tokenizer").decode_joined(loaded.ids.codes)
        wanted = code_vectors(loaded.ids.codes, loaded.ids.codebook_sizes, decoded, 6)
        assert loaded.backbone.content_weight == 2.5
        torch.testing.assert_close(loaded.backbone.content[-16:], torch.cat(wanted))
        half = ["fit", "items", "--config", "out/config.yaml", "--out", "half", "--plan.max_steps", "6"]
        assert main([*half, "--ids", "out/semantic-ids", "--collaborative_dim", "null"]) == 0
        of_texts = GenerativeRecommender.from_pretrained("half/recommender")
        wanted = code_vectors(loaded.ids.codes, loaded.ids.codebook_sizes, texts, 6)
        torch.testing.assert_close(of_texts.backbone.content[-16:], torch.cat(wanted))
        goes_on = ["fit", "items", "--config", "half/config.yaml", "--out", "half", "--resume", "last"]
        assert main([*goes_on, "--plan.max_steps", "12"]) == 0
        again = GenerativeRecommender.from_pretrained("half/recommender")
        assert torch.equal(again.backbone.content, of_texts.backbone.content)

    def test_ids_of_texts_and_buyers(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("small.yaml").write_text(yaml.safe_dump(small(collaborative_dim=4, collaborative_weight=0.5)))
        assert main(["fit", "items", "--config", "small.yaml", "--data.folder", str(shop), "--out", "out"]) == 0
        data = read_item_data(str(shop))
        tokenizer = ItemTokenizer.from_pretrained("out/semantic-ids/tokenizer")
        assert isinstance(tokenizer, MultiViewTokenizer) and tokenizer.weights == (1.0, 0.5)
        split, texts = data.interactions.split(), data.catalogue.vectors()
        both = torch.cat([texts, collaborative_vectors(split.train, split.num_items, 4)], 1)
        ids = SemanticIds.load("out/semantic-ids/ids")
        assert torch.equal(ids.codes[:, : len(tokenizer.codebook_sizes)], tokenizer.encode(both))
        assert not torch.equal(tokenizer.encode(texts), tokenizer.encode(both))
        np.save("new.npy", texts[:3].numpy())  # of new items nobody knows who buys them
        assert main(["semantic-ids", "encode", "out/semantic-ids", "--embeddings", "new.npy"]) == 0
        assert np.array_equal(np.load("codes.npy"), tokenizer.encode(texts[:3]))
        other = ["fit", "items", "--config", "small.yaml", "--data.folder", str(shop), "--out", "other"]
        said = wrong([*other, "--collaborative_dim", "999"], capsys)
        assert "expected at least dim=999 items" in said and not Path("other").exists()
        said = wrong([*other, "--ids", "out/semantic-ids"], capsys)
        assert "expected ids, or collaborative_dim to make them with, got both" in said
        assert main(["semantic-ids", "report", "out/semantic-ids", "--data", str(shop), "--out", "report"]) == 0
        assert "under noise" not in capsys.readouterr().out  # texts alone have other ids, with or without noise
        shutil.copytree(shop, "grown")  # a new item, which nobody has bought yet
        table = parquet.read_table("grown/items.parquet")
        columns = {
            name: [*values, "new" if name == "item" else values[0]] for name, values in table.to_pydict().items()
        }
        parquet.write_table(pyarrow.table(columns), "grown/items.parquet")
        np.save("grown/item_embeddings.npy", np.concatenate([texts.numpy(), texts[:1].numpy() + 0.01]))
        assert main(["semantic-ids", "add", "out/semantic-ids", "--data", "grown", "--out", "more"]) == 0
        more = SemanticIds.load("more")
        assert len(more) == len(ids) + 1 and torch.equal(more.codes[:-1, :-1], ids.codes[:, :-1])

    def test_ids_that_agree_with_buyers(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = ["semantic-ids", "vectors", "--data.folder", str(shop), "--dim", "8", "--out", "buyers.npy"]
        assert main(told) == 0
        assert "items that occur with no other" in capsys.readouterr().out
        split = read_item_data(str(shop)).interactions.split()
        expected = collaborative_vectors(split.train, split.num_items, 8)
        assert np.array_equal(np.load("buyers.npy"), expected, equal_nan=True)
        assert "--overwrite true" in wrong(told, capsys)
        assert "expected a .npy file to write, got buyers.csv" in wrong([*told, "--out", "buyers.csv"], capsys)
        sizes = {"input_dim": 16, "dim": 8, "hidden": []}
        parts = {
            "quantizer": {
                "class_path": "gritvq.items.grit_stack",
                "init_args": {"dim": 8, "codebook_size": 8, "num_levels": 2},
            },
            "encoder": {"class_path": "gritvq.items.ItemEncoder", "init_args": sizes},
            "decoder": {"class_path": "gritvq.items.ItemDecoder", "init_args": sizes},
            "steps": 150,
        }
        vectors, nats = read_item_data(str(shop)).catalogue.vectors(), []
        for weight in (0.0, 5.0):
            init = {"vectors": "buyers.npy", "weight": weight}
            losses = [{"class_path": "gritvq.items.CollaborativeLoss", "init_args": init}]
            content = {"tokenizer": {"class_path": "gritvq.items.RQVAE", "init_args": {**parts, "losses": losses}}}
            Path("letter.yaml").write_text(yaml.safe_dump(content))
            out = ["--data", str(shop), "--out", f"ids-{weight}"]
            assert main(["semantic-ids", "fit", "--config", "letter.yaml", *out]) == 0
            made: Any = ItemTokenizer.from_pretrained(f"ids-{weight}/tokenizer")
            loss = CollaborativeLoss("buyers.npy", weight=1.0)
            loss.check(NUM_ITEMS, made.quantizer)
            with torch.no_grad():
                output = made.quantizer(made.encoder(vectors))
                nats.append(float(loss(torch.arange(NUM_ITEMS), output, made.quantizer)))
        assert nats[1] < nats[0] - 0.1

    def test_held_out_events_change_no_id(self, shop: Path) -> None:
        """The last two events of each user become others; ids of texts and buyers stay."""
        shutil.copytree(shop, "other")
        table = parquet.read_table("other/interactions.parquet").to_pydict()
        histories = read_item_data(str(shop)).interactions
        last: dict[Any, list[int]] = {}
        for row, user in enumerate(table["user"]):
            last.setdefault(user, []).append(row)
        order = "timestamp" if "timestamp" in table else "position"
        moved = 0
        for rows in last.values():
            if len(rows) > 3:
                rows.sort(key=lambda row: table[order][row])
                for row, source in zip(rows[-2:], rows[:2], strict=True):
                    moved += table["item"][row] != table["item"][source]
                    table["item"][row] = table["item"][source]
        assert moved and histories.num_events == len(table["user"])
        parquet.write_table(pyarrow.table(table), "other/interactions.parquet")
        Path("small.yaml").write_text(yaml.safe_dump(small(collaborative_dim=4)))
        for folder in (str(shop), "other"):
            told = ["fit", "items", "--config", "small.yaml", "--data.folder", folder, "--plan.max_steps", "1"]
            assert main([*told, "--out", f"run-{Path(folder).name}"]) == 0
        found = [SemanticIds.load(f"run-{name}/semantic-ids/ids").codes for name in (shop.name, "other")]
        assert torch.equal(*found)

    def test_nothing_is_lost_where_nothing_compiles(
        self, recommender: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(recommender, "kept")
        before = sorted(path.relative_to("kept") for path in Path("kept").rglob("*"))
        told = ["fit", "items", "--config", "kept/config.yaml", "--out", "kept", "--overwrite", "true"]
        assert "expected compile false for a RecommenderTask" in wrong([*told, "--plan.compile", "true"], capsys)
        assert sorted(path.relative_to("kept") for path in Path("kept").rglob("*")) == before

    def test_stops_early(self, recommender: Path) -> None:
        """At a rate that moves nothing the second validation is no better than the first."""
        stopping = {"monitor": "val/ndcg@10", "mode": "max", "patience": 1}
        content = yaml.safe_load((recommender / "config.yaml").read_text())
        content["callbacks"] = [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stopping}]
        content["task"]["lr"], content["plan"]["max_steps"] = 1e-30, 60
        Path("stopping.yaml").write_text(yaml.safe_dump(content))
        told = ["fit", "items", "--config", "stopping.yaml", "--ids", str(recommender / "semantic-ids")]
        assert main([*told, "--out", "run"]) == 0
        assert steps_done(torch.load("run/checkpoints/last.ckpt", weights_only=True)) == 12
        assert json.loads(Path("run/metrics.json").read_text())
        assert main(["fit", "items", "--config", "run/config.yaml", "--out", "run", "--resume", "last"]) == 0
        assert steps_done(torch.load("run/checkpoints/last.ckpt", weights_only=True)) == 18  # still no better

    def test_excludes_what_a_user_has_seen(
        self,
        recommender: Path,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """In the saved recommender as well; a run that began without it is not resumed with it."""
        told = ["fit", "items", "--config", str(recommender / "config.yaml"), "--exclude_seen", "true"]
        told += ["--ids", str(recommender / "semantic-ids")]
        assert main([*told, "--out", "never"]) == 0
        assert GenerativeRecommender.from_pretrained("never/recommender").exclude_seen
        assert "seen before" not in caplog.text
        report = Split.report
        monkeypatch.setattr(Split, "report", lambda split: {**report(split), "repeated_targets": 3})
        assert main([*told, "--out", "repeats"]) == 0
        assert f"3 of {NUM_USERS} test items were seen before by their users and cannot be found" in caplog.text
        last = torch.load(recommender / "checkpoints" / "last.ckpt", weights_only=True)
        del last["settings"]["exclude_seen"]  # as earlier versions wrote it
        torch.save(last, "old.ckpt")
        said = wrong([*told, "--out", "b", "--plan.max_steps", "20", "--resume", "old.ckpt"], capsys)
        assert "expected exclude_seen False as at the start of the resumed run, got True" in said

    def test_resumes_bitwise(self, recommender: Path) -> None:
        checkpoint = str(recommender / "checkpoints" / "step-6.ckpt")
        ids = str(recommender / "semantic-ids")
        told = ["fit", "--config", str(recommender / "config.yaml"), "--ids", ids, "--out", "b", "--resume", checkpoint]
        assert main(told) == 0
        last = [
            torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for folder in (recommender, Path("b"))
        ]
        assert last[0].keys() == last[1].keys()
        assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])

    def test_a_run_goes_on_although_its_ids_have_grown(self, shop: Path) -> None:
        """The usual place of new ids is the folder that the run was given."""
        told = ["semantic-ids", "fit", "--data", str(shop), "--out", "own", *KMEANS]
        assert main(told) == 0
        fit = ["fit", "--config", str(shop.parent / "small.yaml"), "--data.folder", str(shop), "--ids", "own"]
        assert main([*fit, "--out", "b"]) == 0
        write_catalogue(Path("larger"), NUM_ITEMS + 40)
        before = SemanticIds.load("own/ids").codebook_sizes
        assert main(["semantic-ids", "add", "own", "--data", "larger"]) == 0
        assert SemanticIds.load("own/ids").codebook_sizes != before
        assert main([*fit, "--out", "b", "--resume", "last", "--plan.max_steps", "14"]) == 0
        assert main([*fit, "--out", "d", "--resume", "b/checkpoints/step-6.ckpt"]) == 0
        shutil.rmtree("b/checkpoints/ids")  # as in runs of before
        assert main([*fit, "--out", "b", "--resume", "last", "--plan.max_steps", "16"]) == 0
        assert SemanticIds.load("b/checkpoints/ids").codebook_sizes == before
        shutil.move("own", "elsewhere")
        assert main([*fit, "--out", "b", "--resume", "last", "--plan.max_steps", "18"]) == 0
        assert main([*fit[:-2], "--out", "c", "--init_from", "b", "--ids", "b/checkpoints/ids"]) == 0  # a run's folder


class TestWrongInput:
    @pytest.mark.parametrize("job", ["fit", "encode", "report", "add"])
    def test_a_message_names_the_job(self, job: str, capsys: pytest.CaptureFixture[str]) -> None:
        told = {"fit": ["--data", "no"], "encode": ["no", "--embeddings", "no.npy"], "add": ["no", "--data", "no"]}
        said = wrong(["semantic-ids", job, *told.get(job, ["no"])], capsys)
        assert said.startswith(f"gritvq semantic-ids {job}: error: expected ")

    def test_a_domain_is_named_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("small.yaml").write_text(yaml.safe_dump(small()))
        said = wrong(["fit", "items", "--config", "small.yaml", "--data.folder", "nothing"], capsys)
        assert said.startswith("gritvq fit items: error: expected ") and "nothing" in said

    def test_no_catalogue(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("empty").mkdir()
        assert "items.parquet" in wrong(["semantic-ids", "fit", "--data", "empty"], capsys)

    def test_no_embeddings(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("bare").mkdir()
        (Path("bare") / "items.parquet").write_bytes((shop / "items.parquet").read_bytes())
        assert "--text_model" in wrong(["semantic-ids", "fit", "--data", "bare"], capsys)

    def test_more_codes_than_items(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "at least as many items as codes" in wrong(["semantic-ids", "fit", "--data", str(shop)], capsys)
        assert not Path("runs").exists()

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_embeddings_that_are_not_finite(self, shop: Path, bad: float, capsys: pytest.CaptureFixture[str]) -> None:
        vectors = np.load(shop / "item_embeddings.npy")
        vectors[5, 3] = bad
        np.save("bad.npy", vectors)
        said = wrong(["semantic-ids", "fit", "--data", str(shop), "--embeddings", "bad.npy", *KMEANS], capsys)
        assert "a5" in said

    def test_constant_embeddings(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save("flat.npy", np.ones((NUM_ITEMS, 4), dtype=np.float32))
        told = ["semantic-ids", "fit", "--data", str(shop), "--embeddings", "flat.npy", *KMEANS]
        assert "different" in wrong(told, capsys)

    def test_an_unknown_category_column(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = ["semantic-ids", "fit", "--data", str(shop), "--categories", "color", *KMEANS]
        assert "color" in wrong(told, capsys)

    def test_ids_that_lack_an_item(self, run: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_catalogue(Path("smaller"), NUM_ITEMS - 5)
        assert "5" in wrong(["semantic-ids", "report", str(run), "--data", "smaller"], capsys)

    @pytest.mark.parametrize(
        ("events", "said"),
        [
            ("user,item\nu,a\n,b\n,a\n", "expected a value of 'user' in every row of"),
            ("user,item\nu,a\nu,\n", "expected a value of 'item' in every row of"),
            ("user,item,timestamp\n", "expected at least one event, got none"),
            ("User,item\nu,a\n", "--data.user"),
        ],
    )
    def test_events_without_a_key(self, events: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
        Path("shop").mkdir()
        Path("shop/items.csv").write_text("item,title\na,x\nb,y\n")
        Path("shop/interactions.csv").write_text(events)
        Path("shop.yaml").write_text(yaml.safe_dump(small()))
        np.save("shop/item_embeddings.npy", np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32))
        assert said in wrong(["fit", "--config", "shop.yaml", "--data.folder", "shop", "--out", "b"], capsys)

    def test_files_of_other_kinds(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("items.tsv").write_text("item\ttitle\na\tx\n")
        said = wrong(["semantic-ids", "fit", "--data", "items.tsv"], capsys)
        assert "expected a file ending in .parquet or .csv, got 'items.tsv'" in said
        Path("shop").mkdir()
        Path("shop.yaml").write_text(yaml.safe_dump(small()))
        told = ["fit", "--config", "shop.yaml", "--out", "b", "--data.folder"]
        assert "got neither, since it is empty; name the file, or another folder" in wrong([*told, "shop"], capsys)
        Path("shop/items.csv.gz").write_text("")
        assert "got neither, only items.csv.gz; name the file" in wrong([*told, "shop"], capsys)
        assert "no such folder" in wrong([*told, "nowhere"], capsys)

    def test_an_item_twice(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("twice.csv").write_text("item,title\na,x\na,y\n")
        assert "'a'" in wrong(["semantic-ids", "fit", "--data", "twice.csv"], capsys)

    def test_other_embeddings_for_new_items(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_catalogue(Path("larger"), NUM_ITEMS + 1)
        np.save("larger/item_embeddings.npy", np.ones((NUM_ITEMS + 1, 5), dtype=np.float32))
        before = (run / "ids" / "ids.parquet").read_bytes()
        wrong(["semantic-ids", "add", str(run), "--data", "larger"], capsys)
        assert (run / "ids" / "ids.parquet").read_bytes() == before

    def test_the_embeddings_of_yesterday_beside_a_catalogue_of_today(
        self, run: Path, shop: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_catalogue(Path("today"), NUM_ITEMS + 1)
        shutil.copy(shop / "item_embeddings.npy", "today/item_embeddings.npy")
        said = wrong(["semantic-ids", "add", str(run), "--data", "today"], capsys)
        assert f"expected {NUM_ITEMS + 1} vectors in 'today/item_embeddings.npy'" in said and f"got {NUM_ITEMS}" in said
        assert "--embeddings" in said and "--text_model" in said

    def test_a_small_catalogue(self, capsys: pytest.CaptureFixture[str]) -> None:
        write_catalogue(Path("small"), 50)
        said = wrong(["semantic-ids", "fit", "--data", "small", "--out", "out"], capsys)
        assert "50 items for 256 codes; use a smaller codebook_size, such as 12" in said and not Path("out").exists()

    def test_encode_from_nowhere_and_onto_its_own_input(
        self, run: Path, shop: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        vectors = str(shutil.copy(shop / "item_embeddings.npy", "mine.npy"))
        assert "has no tokenizer" in wrong(["semantic-ids", "encode", "nowhere", "--embeddings", vectors], capsys)
        told = ["semantic-ids", "encode", str(run), "--embeddings", vectors, "--out", "./mine.npy"]
        assert "another file" in wrong(told, capsys)
        assert np.array_equal(np.load("mine.npy"), np.load(shop / "item_embeddings.npy"))

    def test_nested_categories(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("nested").mkdir()
        table = parquet.read_table(shop / "items.parquet").append_column("path", [[[["Beauty", "Hair"]]] * NUM_ITEMS])
        parquet.write_table(table, "nested/items.parquet")
        shutil.copy(shop / "item_embeddings.npy", "nested")
        told = ["semantic-ids", "fit", "--data", "nested", "--categories", "path", "--out", "out", *KMEANS]
        assert "flatten" in wrong(told, capsys)
        assert not Path("out").exists()

    def test_longer_histories_than_the_backbone_reads(self, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("small.yaml").write_text(yaml.safe_dump(small(batches={"batch_size": 16, "max_history": 30})))
        told = ["fit", "--config", "small.yaml", "--data.folder", str(shop), "--out", "out"]
        assert "max_items 31" in wrong(told, capsys)
        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            (["--user", "nobody"], "nobody"),
            (["--history", "[a1,zzz]"], "zzz"),
            (["--history", "[]"], "at least one item"),
            (["--user", "u1", "--history", "[a1]"], "either"),
            ([], "either"),
            (["--user", "u1", "--k", "0"], "k >= 1"),
            (["--user", "u1", "--beam", "0"], "beam >= 1"),
            (["--user", "u1", "--column", "color"], "color"),
        ],
    )
    def test_recommend(
        self, recommender: Path, told: list[str], expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert expected in wrong(["recommend", str(recommender), *told], capsys)

    def test_a_run_is_not_replaced_unless_told(
        self, recommender: Path, shop: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (recommender / "recommender" / "model.safetensors").read_bytes()
        Path("small.yaml").write_text(yaml.safe_dump(small()))
        told = ["fit", "--config", "small.yaml", "--data.folder", str(shop), "--out", str(recommender)]
        assert "--overwrite true" in wrong(told, capsys)
        assert (recommender / "recommender" / "model.safetensors").read_bytes() == before

    def test_ids_inside_of_the_run_that_is_replaced(
        self, recommender: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(recommender, "run")
        told = [
            "fit",
            "--config",
            "run/config.yaml",
            "--ids",
            "run/semantic-ids",
            "--out",
            "run",
            "--overwrite",
            "true",
        ]
        assert "outside" in wrong(told, capsys)
        assert len(SemanticIds.load("run/semantic-ids/ids")) == NUM_ITEMS

    def test_a_checkpoint_of_other_ids(self, recommender: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ids = SemanticIds.load(recommender / "semantic-ids" / "ids")
        SemanticIds(ids.codes.flip(0), ids.codebook_sizes, ids.items, collisions="append").save("others")
        checkpoint = str(recommender / "checkpoints" / "step-6.ckpt")
        told = ["fit", "--config", str(recommender / "config.yaml"), "--ids", "others", "--out", "b"]
        assert "other ids" in wrong([*told, "--resume", checkpoint], capsys)
        assert not Path("b").exists()

    def test_the_report_of_another_tokenizer(self, run: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = ["semantic-ids", "fit", "--data", str(shop), "--out", "other", *KMEANS, "--tokenizer.seed", "5"]
        assert main(other) == 0
        shutil.copytree(run / "tokenizer", "other/tokenizer", dirs_exist_ok=True)
        before = Path("other/report.json").read_bytes()
        assert "made the ids" in wrong(["semantic-ids", "report", "other", "--data", str(shop)], capsys)
        assert Path("other/report.json").read_bytes() == before

    @pytest.mark.parametrize("content", [None, b"nonsense"])
    def test_a_damaged_recommender(
        self, recommender: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(recommender / "recommender", "broken")
        Path("broken/priority.safetensors").unlink()
        if content is not None:
            Path("broken/priority.safetensors").write_bytes(content)
        assert "priority" in wrong(["recommend", "broken", "--history", "[a1]"], capsys)

    def test_ids_of_other_items(self, run: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ids = SemanticIds.load(run / "ids")
        SemanticIds(ids.codes[:-3], ids.codebook_sizes, ids.items[:-3], collisions="append").save("fewer")
        Path("small.yaml").write_text(yaml.safe_dump(small(ids="fewer")))
        assert "a57" in wrong(["fit", "--config", "small.yaml", "--data.folder", str(shop), "--out", "out"], capsys)
