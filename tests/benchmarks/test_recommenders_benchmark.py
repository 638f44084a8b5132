"""The benchmark of recommenders: every run of its plan is a command that the program understands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from benchmarks.quality import recommenders

from gritvq.cli.errors import parser_class
from gritvq.cli.fit import configuration
from gritvq.items import SemanticIds

STUDIES = yaml.safe_load((recommenders.HERE / "recommenders.yaml").read_text())["studies"]


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_is_a_command(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommenders, "random_ids", lambda *_: tmp_path)
    for name, entry in STUDIES[study]["recommenders"].items():
        words = recommenders.command(entry, 3, tmp_path, tmp_path / "run", True)
        parser, config, _ = configuration(parser_class(), "items", words[2:])
        assert config.plan.seed == config.tokenizer.init_args.seed == 3, name
        for key, value in entry.get("changes", {}).items():
            if key.startswith("plan."):
                assert str(config[key]) == str(value), name
        if "tokenizer" in entry:
            tokenizer = parser.instantiate(config).tokenizer
            assert tokenizer.codebook_sizes == (256,) * 8, name


def test_random_ids_say_nothing_and_depend_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Catalogue:
        keys = [f"item {n}" for n in range(500)]

    monkeypatch.setattr(recommenders, "read_item_data", lambda _: type("Data", (), {"catalogue": Catalogue})())
    first, again, other = (
        SemanticIds.load(recommenders.random_ids([16, 8], seed, tmp_path, tmp_path / name))
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert torch.equal(first.codes, again.codes) and not torch.equal(first.codes, other.codes)
    assert first.codebook_sizes == (16, 8) and list(first.items) == Catalogue.keys
    assert [len(each.unique()) for each in first.codes.unbind(1)] == [16, 8]


def test_what_makes_the_ids_is_in_the_settings() -> None:
    entries = STUDIES["units"]["recommenders"]
    told = [recommenders._ids_of(entry) + json.dumps(entry.get("changes")) for entry in entries.values()]
    assert len(set(told)) == len(told)
    assert recommenders._ids_of(entries["grit_vq"]).startswith("tokenizer=RQVAE/grit_stack")
