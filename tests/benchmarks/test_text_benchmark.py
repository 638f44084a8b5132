"""The benchmark of text, on a few made sentences."""

from __future__ import annotations

import json
import math
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from benchmarks.quality import text
from benchmarks.report.text import _figure, text_section, with_navigation, with_text

from gritvq.results import read_results

ANIMALS, DEEDS = ("cat", "dog", "bird", "cow"), ("sat", "ran", "slept", "sang", "ate")


def sentence(number: int) -> str:
    return f"A {ANIMALS[number % 4]} {DEEDS[number % 5]} for {number % 7} days ."


@pytest.fixture
def multi30k(tmp_path: Path) -> Path:
    """Five files of each split."""
    folder = tmp_path / "multi30k"
    folder.mkdir()
    for name, count in (("train", 24), ("val", 4), ("test_2016", 4)):
        for n in range(1, 6):
            lines = [f"{n} : {sentence(row + n)}" for row in range(count)]
            (folder / f"{name}.{n}.en").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def brown(tmp_path: Path) -> Path:
    """One file of twenty documents."""
    folder = tmp_path / "brown"
    folder.mkdir()
    lines = [line for row in range(20) for line in (f"# d{row}", *(sentence(row + n) for n in range(3 + row % 9)))]
    (folder / "brown.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def plan() -> dict[str, Any]:
    """A tiny plan."""
    own = {"segmentation": {"max_tokens": 24, "max_segments": 5}, "batch_size": 4}
    return {
        "vocabulary": 280,
        "dim": 4,
        "codebook_size": 8,
        "layouts": {"multi30k": own, "brown": own},
        "num_validation": 4,
        "network": {"width": 16, "depth": 1, "num_heads": 2},
        "task": {},
        "annealing": 0.5,
        "max_steps": 2,
        "prior": {
            "network": {"width": 16, "depth": 1, "num_heads": 2},
            "task": {},
            "batch_size": 4,
            "max_steps": 2,
        },
        "num_samples": 2,
        "writing": {"num": 6, "top_p": 0.95},
        "studies": {
            "models": {
                "seeds": [0],
                "methods": {
                    "trace, free": {"model": "trace", "task": {"free_bits": 0.1}},
                    "vq_vae_ema": {"decay": 0.9},
                },
            }
        },
        "recurrence": {"segments": 4, "dim": 4, "rank": 2, "batches": [2], "seconds": 0},
    }


class Here:
    """A pool that runs in this process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Any:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


@pytest.mark.parametrize("layout", ["multi30k", "brown"])
def test_one_command_does_everything_once(
    layout: str, plan: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "ProcessPoolExecutor", Here)
    data, page, docs = request.getfixturevalue(layout), tmp_path / "docs" / "text-samples.md", tmp_path / "docs"
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    docs.mkdir()
    words = ["--data", str(data), "--plan", str(tmp_path / "plan.yaml"), "--work", str(tmp_path / "work")]
    words += ["--results", str(tmp_path), "--page", str(page)]
    assert text_section(tmp_path, docs) == "Not measured yet."
    threads = torch.get_num_threads()
    try:
        text.main(words)
        [path] = tmp_path.glob("text_*.csv")
        rows = {row["method"]: row for row in read_results(path, text.IDENTITY)}
        assert set(rows) == {"parallel", "scan", "trace, free", "vq_vae_ema"}
        for row in rows.values():
            assert all(math.isfinite(value) for value in row.values() if not isinstance(value, str)), row
        model, tokenizer = rows["trace, free"], rows["vq_vae_ema"]
        assert model["settings"] == "free_bits=0.1" and tokenizer["settings"] == "decay=0.9"
        assert model["kl_per_segment"] >= model["least_kl_per_segment"] == 2.0
        assert 4 < model["nats_per_token"] < 8 and 0 <= model["token_accuracy"] <= 1  # ln 283 = 5.6
        assert tokenizer["bits_per_segment"] == 3 and 0 < tokenizer["usage"] <= 1
        assert 2 < tokenizer["prior_bits_per_segment"] < 5  # 3 bits, and the ends: an untrained prior
        extra = (tokenizer["prior_bits_per_segment"] - 3) * math.log(2) * tokenizer["test_segments"]
        both = tokenizer["nats_per_token_with_prior"] - tokenizer["nats_per_token_bound"]
        assert both == pytest.approx(extra / tokenizer["test_tokens"], abs=2e-5)  # six digits in the file
        assert model["comparison"] == "python -m benchmarks.quality.text, 2 steps" and model["data"] == layout
        assert model["test_segments"] == tokenizer["test_segments"] and model["parameters"] < 50_000

        shown = page.read_text()
        assert shown.count("### ") == 2 and "~~~~text" in shown
        quoted = 2 * (layout == "brown")  # captions of Multi30k are not ours to print
        assert shown.count("\nOriginal:") == shown.count("Another original, reconstructed:") == quoted
        for row in rows.values():
            if row["study"] != "recurrence":
                assert 0 < row["sentence_words"] <= row["words"]
        section = text_section(tmp_path, docs)
        assert "trace, free" in section and "times faster" in section and "(text-samples.md)" in section
        assert section in with_text("a\n<!-- table text -->\nold\n<!-- end -->\nb", tmp_path, docs)

        before = path.read_text()
        monkeypatch.setattr(text, "run", lambda *_: pytest.fail("ran again"))
        text.main(words)
        assert path.read_text() == before and page.read_text() == shown
        monkeypatch.undo()
        monkeypatch.setattr(text, "ProcessPoolExecutor", Here)
        monkeypatch.setattr(text, "train", lambda *_, **__: pytest.fail("trained again"))
        path.unlink()
        text.main(words)
        again = {row["method"]: row for row in read_results(path, text.IDENTITY)}
        for method in ("trace, free", "vq_vae_ema"):
            assert again[method] == rows[method]

        plan["studies"]["models"]["methods"]["vq_vae_ema"] = {"decay": 0.8}  # rows of other settings are replaced
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
        monkeypatch.setattr(text, "run", lambda job: {**rows[job.method], "settings": job.words})
        text.main(words)
        now = read_results(path, text.IDENTITY)
        assert [row["settings"] for row in now if row["method"] == "vq_vae_ema"] == ["decay=0.8"]
        assert len(now) == len(rows)
    finally:
        torch.set_num_threads(threads)


def test_documents_are_whole_and_no_split_shares_one(multi30k: Path, brown: Path, tmp_path: Path) -> None:
    found = text.documents_of(multi30k)
    assert {split: len(own) for split, own in found.items()} == {"train": 24, "validation": 4, "test": 4}
    for row, document in enumerate(found["train"]):
        assert sorted(document) == [f"{n} : {sentence(row + n)}" for n in range(1, 6)]
    assert len({tuple(each[0] for each in document) for document in found["train"]}) > 5  # shuffled
    assert found == text.documents_of(multi30k)
    parts = text.documents_of(brown)
    assert {split: len(own) for split, own in parts.items()} == {"train": 16, "validation": 2, "test": 2}
    every = [document for own in parts.values() for document in own]
    wanted = [[sentence(row + n) for n in range(3 + row % 9)] for row in range(20)]
    assert sorted(every) == sorted(wanted)
    files = text.prepared(brown, tmp_path / "work", 280)
    assert [json.loads(line)["text"] for line in (files / "test.jsonl").read_text().splitlines()] == parts["test"]
    with pytest.raises(ValueError, match="got neither"):
        text.layout_of(tmp_path)


def test_the_plan_has_contenders_of_equal_bits_and_at_most_8_million_parameters() -> None:
    plan = yaml.safe_load((text.HERE / "text.yaml").read_text())
    for layout in plan["layouts"]:
        for method, settings in plan["studies"]["models"]["methods"].items():
            job = text.Job(Path("files"), layout, plan, "models", method, settings, 0, Path("work"))
            task = text.task_of(job, plan["vocabulary"] + 3)
            model = task.tokenizer if isinstance(task, text.TextTokenizerTask) else task.model
            assert 5e5 < text.num_parameters(model) <= 8e6, method
            if isinstance(model, text.TextTokenizer):
                assert model.quantizer.codebook_sizes == (512,), method
            elif model.latents is not None:
                assert task.kl_weight_at(0) == 0 and task.kl_weight_at(round(plan["max_steps"] / 3) + 1) == 1


def test_the_page_of_texts_keeps_other_data_and_is_in_the_navigation_once_it_exists(tmp_path: Path) -> None:
    first = text.page_with("", "a", {"trace": {"Texts": ["One."]}})
    both = text.page_with(first, "b", {"fsq": {"Texts": [""]}})
    again = text.page_with(both, "a", {"trace": {"Texts": ["Two."]}})
    assert "One." in both and "(empty)" in both and "One." not in again and again.count("<!-- end -->") == 2
    more = text.page_with(again, "a", {"fsq": {"Texts": ["Three."]}}, ["fsq", "trace"])  # texts of others stay
    assert "Two." in more and more.index("Three.") < more.index("Two.") and "(empty)" in more
    assert text.page_with(more, "a", {}, ["fsq", "trace"]) == more
    assert "Two." not in text.page_with(more, "a", {}, ["fsq"])  # but of those that the plan has no more
    navigation = "nav:\n  - Text: text.md\n  - Log: log.md\n"
    assert with_navigation(navigation, tmp_path) == navigation
    (tmp_path / "text-samples.md").touch()
    told = with_navigation(navigation, tmp_path)
    assert "  - Text samples: text-samples.md\n" in told and with_navigation(told, tmp_path) == told


def test_pieces_that_begin_or_end_within_a_sentence_are_not_shown_first() -> None:
    assert text.whole(" It rains. We stay. Go. Stop.\n", 4)
    for piece, count in (("it rains. We stay.", 4), ("It rains. We", 4), ("It rains. We stay. Go.", 3), ("", 0)):
        assert not text.whole(piece, count)


def test_codes_of_one_text_give_way_to_those_of_another() -> None:
    first, second = torch.zeros(5, 1, dtype=torch.int64), torch.ones(6, 1, dtype=torch.int64)
    mixed = text._mixed(first, second)
    assert [int(each.sum()) for each in mixed] == [0, 1, 2, 4, 5] and np.all([len(each) == 5 for each in mixed])


def test_figures_say_how_many_seeds_have_them() -> None:
    runs = [{"words": 10.0, "usage": 0.5}, {"words": 14.0}, {"words": 12.0}]
    assert _figure(runs, "words", ".1f") == "12.0 (10.0-14.0)"
    assert _figure(runs, "usage", ".2f") == "0.50 (1 of 3 seeds)"
    assert _figure([*runs[1:], {"usage": 1.0}], "words", ".1f") == "13.0 (12.0-14.0, 2 of 3 seeds)"
    assert _figure(runs, "other", ".1f") == "-"
