"""Documents, vocabularies, segments and batches of text."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from gritvq.text import Corpus, Reading, Segmentation, Subwords, TextData, TextFormat
from gritvq.text.corpus import docstrings
from gritvq.text.segments import sentences

TEXTS = ["One cat. Two cats?", "A line,\nand another.", 'Quotes "and", commas; ünï\u2028cödé 😀.', "- last\ttab"]
SUBWORDS = Subwords.train([*TEXTS, "one two three. one two. three three."] * 3, 300)


def written(folder: Path, kind: str, texts: list[Any]) -> Path:
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({"id": 1, "text": text}) for text in texts) + "\n\n")
    elif kind == "parquet":
        pq.write_table(pa.table({"id": [1] * len(texts), "text": texts}), path, row_group_size=2)
    elif kind == "txt":
        path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([["id", "text"], *(["1", text] for text in texts)])
    return path


class TestCorpus:
    @pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv", "parquet"])
    def test_every_format_gives_the_same_documents_each_time(self, tmp_path: Path, kind: str) -> None:
        corpus = Corpus(str(written(tmp_path, kind, [TEXTS[0], " ", *TEXTS[1:]])))
        assert list(corpus) == TEXTS == list(corpus)
        assert list(Corpus(str(tmp_path))) == TEXTS

    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_documents_may_bring_their_segments(self, tmp_path: Path, kind: str) -> None:
        rows = [["a.", "b. c."], None, [" "], ["d"]]
        assert list(Corpus(str(written(tmp_path, kind, rows)))) == [["a.", "b. c."], ["d"]]

    @pytest.mark.parametrize(
        ("unit", "expected"),
        [
            ("line", ["a", "b", " c", "d "]),
            ("paragraph", ["a\nb", " c\nd "]),
            ("file", ["\n\na\nb\n  \n\n c\nd \n"]),
        ],
    )
    def test_units_of_plain_text(self, tmp_path: Path, unit: Any, expected: list[str]) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\n\r\na\nb\r\n  \n\n c\nd \n")
        assert list(Corpus(str(tmp_path / "a.txt"), Reading(unit=unit))) == expected

    def test_other_encodings(self, tmp_path: Path) -> None:
        for encoding in ("latin-1", "utf-16", "cp1252"):
            (tmp_path / "a.txt").write_text("naïve café\n", encoding=encoding)
            assert list(Corpus(str(tmp_path / "a.txt"), Reading(encoding=encoding))) == ["naïve café"]

    def test_the_bundled_corpus_is_there_and_each_text_once(self) -> None:
        texts = docstrings()
        assert len(texts) > 3000 and sum(map(len, texts)) > 800_000 and len(set(texts)) == len(texts)
        assert min(map(len, texts)) >= 40 and json.__doc__ is not None and any("JSON" in text for text in texts)
        assert texts == tuple(Corpus())

    @pytest.mark.parametrize(
        ("name", "content", "reading", "message"),
        [
            ("a.txt", b"caf\xe9 au lait\n", {}, "expected text in utf-8, got bytes in .*a.txt"),
            ("a.txt", b"\xff\xfea\x00", {}, "expected text in utf-8"),
            (
                "a.txt",
                "no mark".encode("utf-16-le"),
                {},
                "expected text in utf-8, got zero bytes in .*such as utf-16-le",
            ),
            ("a.csv", "text\nno mark\n".encode("utf-16-le"), {}, "expected text in utf-8, got zero bytes in"),
            ("a.jsonl", b'{"text": "a"}\n{"text": \n', {}, "expected JSON in line 2"),
            ("a.jsonl", b"[1]\n", {}, "expected an object in line 1 of .*got list"),
            ("a.jsonl", b'{"txt": "a"}\n', {}, "expected the column 'text' in row 1 of .*got txt; name"),
            ("a.jsonl", b'{"text": 3}\n', {}, "expected text or a list of texts under 'text', got int"),
            ("a.csv", b"a,b\n1,2\n", {"column": "c"}, "expected the column 'c' in row 1 of .*got a, b"),
            ("a.csv", b"text,id\nA cat, a dog,3\n", {}, "expected 2 columns in .*a.csv .* got 3 in line 2; put a text"),
            ("a.csv", b'text\n"a\nb\n', {}, "expected a table in .*unexpected end of data"),
            (
                "a.tsv",
                b'id\ttext\n1\t"No" she said\n',
                {},
                "expected a table in .* up to line 2 .* double those within",
            ),
            ("a.parquet", b"no table", {}, "expected a Parquet file, got .*damaged"),
        ],
    )
    def test_wrong_files(
        self, tmp_path: Path, name: str, content: bytes, reading: dict[str, Any], message: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(Corpus(str(tmp_path / name), Reading(**reading)))

    @pytest.mark.usefixtures("hub_in_reach")
    def test_data_sets_of_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_dict({"text": ["One. Two.", None, " ", "Three."], "body": [["a.", "b."]] * 4})
        asked = []
        monkeypatch.setattr(datasets, "load_dataset", lambda *given, **more: asked.append((given, more)) or rows)
        assert list(Corpus("someone/texts")) == ["One. Two.", "Three."]
        assert list(Corpus("someone/texts", Reading(column="body"))) == [["a.", "b."]] * 4
        assert asked == [(("someone/texts",), {"split": "train"})] * 2
        with pytest.raises(ValueError, match="expected the column 'title' in row 1 of someone/texts, got text, body"):
            list(Corpus("someone/texts", Reading(column="title")))
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.no_such_name)
        with pytest.raises(ValueError, match="or a data set on the Hub, got 'nobody/nothing'"):
            Corpus("nobody/nothing")

    def test_wrong_places_and_settings(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"expected text files in the folder .*got none that end with"):
            Corpus(str(tmp_path))
        for path in ("./nowhere", "nowhere.txt", "/dev/zero"):
            with pytest.raises(ValueError, match="expected a file or folder of text, got"):
                Corpus(path)
        with pytest.raises(ValueError, match="expected unit 'paragraph' or"):
            Reading(unit="word")  # type: ignore[arg-type]
        for encoding in ("utf-9", "hex", "rot13"):
            with pytest.raises(ValueError, match=f"expected the name of an encoding, got '{encoding}'"):
                Reading(encoding=encoding)


class TestSubwords:
    @given(st.text())
    @settings(max_examples=100, deadline=None)
    def test_any_text_comes_back(self, text: str) -> None:
        assert SUBWORDS.decode(SUBWORDS.encode([text])[0]) == text

    def test_training_gives_the_same_vocabulary_in_another_process(self) -> None:
        code = (
            f"from gritvq.text import Subwords; print(Subwords.train({[*TEXTS, 'aa ab ba bb'] * 9!r}, 300).fingerprint)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.split() == [Subwords.train([*TEXTS, "aa ab ba bb"] * 9, 300).fingerprint]

    def test_words_that_repeat_become_one_subword(self) -> None:
        assert SUBWORDS.size == 300 and len(SUBWORDS.encode([" three three"])[0]) == 2
        assert Subwords.train(["ab"], 300).size == 256  # no pair occurs twice

    def test_loading(self, tmp_path: Path) -> None:
        for source in (SUBWORDS.save(tmp_path / "tokenizer.json"), tmp_path):
            assert Subwords.load(source).fingerprint == SUBWORDS.fingerprint
        files = tmp_path / "vocabulary"  # as transformers wrote them before there was tokenizer.json
        files.mkdir()
        model = json.loads(SUBWORDS.definition)["model"]
        merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
        (files / "vocab.json").write_text(json.dumps({**model["vocab"], "<|endoftext|>": len(model["vocab"])}))
        (files / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        (files / "config.json").write_text('{"model_type": "gpt2"}')
        (files / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        assert Subwords.load(files).encode(TEXTS) == SUBWORDS.encode(TEXTS)
        (tmp_path / "empty").mkdir()
        (tmp_path / "a.json").write_text('{"model": 3}')
        for wrong in (tmp_path / "empty", tmp_path / "a.json", tmp_path / "nowhere"):
            with pytest.raises(ValueError, match=r"expected a vocabulary in .*got none that can be read"):
                Subwords.load(wrong)

    def test_vocabularies_that_lose_text_are_refused(self, tmp_path: Path) -> None:
        """One that drops unknown characters, one that fails at them; one with a token for them is taken."""
        models = tokenizers.models
        letters = {"a": 0, "b": 1, "[UNK]": 2}
        path = tmp_path / "vocabulary.json"
        for model, told in ((models.BPE(letters, []), "drops them"), (models.WordLevel({"a": 0}), "[UNK]")):
            path.write_text(tokenizers.Tokenizer(model).to_str())
            with pytest.raises(ValueError, match="text would be lost, so give another one") as caught:
                Subwords.load(path)
            assert told in str(caught.value)
        with pytest.raises(ValueError, match="take a vocabulary of bytes"):
            Subwords(path.read_text()).encode(["zebra"])
        path.write_text(tokenizers.Tokenizer(models.BPE(letters, [], unk_token="[UNK]")).to_str())
        assert Subwords.load(path).encode(["ab?"]) == [[0, 1, 2]]

    def test_a_name_of_a_file_that_is_not_there_is_not_asked_for_elsewhere(self) -> None:
        with pytest.raises(ValueError, match="no such file or folder"):
            Subwords.load("nowhere.json")

    def test_an_endless_word_is_cut_in_training(self) -> None:
        """Merges double the length of a run of equal letters, so 44 of them would reach far above a cut at 1,000."""
        subwords = Subwords.train(["a" * 5000], 300)
        longest = max(map(len, tokenizers.Tokenizer.from_str(subwords.definition).get_vocab()))
        assert 500 < longest <= 1000 and subwords.decode(subwords.encode(["a" * 5000])[0]) == "a" * 5000

    def test_ids_that_a_vocabulary_leaves_out(self) -> None:
        definition = json.loads(SUBWORDS.definition)
        definition["pre_tokenizer"] = definition["decoder"] = None
        definition["model"] = {"type": "WordLevel", "vocab": {"?": 0, "a": 1, "b": 7}, "unk_token": "?"}
        form = TextFormat(Subwords(json.dumps(definition)), Segmentation("line"))
        assert form.subwords.size == 8 and form.subwords.decode([0, 3, 7]) == "? b"
        assert form.batch(["b"]).tokens.tolist() == [[7, 9]] and form.texts(form.batch(["b"])) == ["b"]

    def test_half_a_surrogate_pair_and_wrong_ids(self) -> None:
        assert SUBWORDS.decode(SUBWORDS.encode(["a\ud800b"])[0]) == "a\ufffdb"
        with pytest.raises(ValueError, match=r"expected ids 0 \.\. 299, got 300; are they of another vocabulary"):
            SUBWORDS.decode([0, 300])
        with pytest.raises(ValueError, match="expected vocab_size >= 256, got 255"):
            Subwords.train(["a"], 255)


class TestSegments:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("One. Two! Three?", ["One.", " Two!", " Three?"]),
            ('He said "no." Then he left.', ['He said "no."', " Then he left."]),
            (
                "See e.g. Fig. 3 by Dr. Smith, i.e. J. Smith. Next.",
                ["See e.g. Fig. 3 by Dr. Smith, i.e. J. Smith.", " Next."],
            ),
            (
                "Version 3.11 is out... or not. It is. 2 follows.",
                ["Version 3.11 is out... or not.", " It is.", " 2 follows."],
            ),
            ("A title\n\nA text. More", ["A title", "\n\nA text.", " More"]),
            ("\n\n  lead", ["\n\n  lead"]),
            ("trail.  \n", ["trail.  \n"]),
            ("一。二。三", ["一。", "二。", "三"]),
            ("一。「二。。」三。。", ["一。", "「二。。」", "三。。"]),
            ("no end", ["no end"]),
            ("So am I. You are.", ["So am I.", " You are."]),
        ],
    )
    def test_sentences(self, text: str, expected: list[str]) -> None:
        assert sentences(text) == expected

    @pytest.mark.parametrize("mark", [".", "?", "\u3002"])
    def test_long_rows_of_marks_take_no_longer_than_other_text(self, mark: str) -> None:
        begin = time.perf_counter()
        assert sentences("a" + 60_000 * mark) == ["a" + 60_000 * mark]
        assert time.perf_counter() - begin < 10  # a time that grows with the square would be minutes

    @given(st.text(alphabet=" \n.!aB?\"'日。\t\r\u2028é1"), st.sampled_from(["sentence", "line", "length"]))
    @settings(max_examples=150, deadline=None)
    def test_nothing_of_a_text_is_lost(self, text: str, by: Any) -> None:
        form = TextFormat(SUBWORDS, Segmentation(by, max_tokens=4, max_segments=3))
        assert "".join(form.segments(text)) == (text if text.strip() else "")
        (pieces,) = form.tokens([text])
        assert form.text([token for piece in pieces for token in piece]) == (text if text.strip() else "")
        for number, piece in enumerate(pieces):
            batch = form.batch_of([piece])
            sizes = batch.segments[0].bincount()
            assert int(sizes.min()) >= 2 and int(sizes.max()) <= 4 and len(sizes) <= 3
            assert piece[-1] == (form.end if number == len(pieces) - 1 else form.separator)
            assert form.start not in piece and piece[:-1].count(form.end) == 0

    def test_lists_have_their_own_segments(self) -> None:
        form = TextFormat(SUBWORDS, Segmentation())
        batch = form.batch([["One. Two.", " ", "Three."]])
        assert batch.num_segments.tolist() == [2] and form.texts(batch) == ["One. Two.\nThree."]

    def test_batches_and_their_settings(self) -> None:
        form = TextFormat(SUBWORDS, Segmentation("line", max_tokens=64, max_segments=4))
        again = TextFormat.from_settings(json.loads(json.dumps(form.settings())))
        batch = again.batch(["a\nb\nc", "d"])
        assert torch.equal(batch.tokens, form.batch(["a\nb\nc", "d"]).tokens)
        assert batch.present.tolist() == [[True] * 3, [True, False, False]]
        assert batch.valid[1].tolist() == [True] * 2 + [False] * 6
        assert again.vocab_size == SUBWORDS.size + 3
        with pytest.raises(ValueError, match=r"expected a document of 1 \.\. 4 segments .* got more as number 1; cut"):
            form.batch(["a", "a\nb\nc\nd\ne"])
        with pytest.raises(ValueError, match="got an empty one as number 0; leave it out"):
            form.batch([" \n"])
        with pytest.raises(ValueError, match="expected subwords and segmentation of a text format"):
            TextFormat.from_settings({"subwords": SUBWORDS.definition})
        with pytest.raises(ValueError, match="expected segments by 'sentence' or 'line' or 'length', got 'word'"):
            Segmentation("word")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected max_tokens >= 2, got 1"):
            Segmentation(max_tokens=1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """50 documents of 1 .. 5 sentences, each with a number of its own."""
    texts = [" ".join(f"Text {n} says {k}." for k in range(1 + n % 5)) for n in range(50)]
    return written(tmp_path, "jsonl", texts)


class TestTextData:
    def texts(self, data: TextData, steps: range) -> list[str]:
        return [text for step in steps for text in data.format.texts(data.batch(step))]

    def test_an_epoch_has_every_document_once_and_no_held_out_one(self, corpus: Path) -> None:
        data = TextData(str(corpus), vocabulary=300, batch_size=3, num_validation=5, seed=1)
        held = [text for batch in data.val_dataloader() for text in data.format.texts(batch)]
        assert len(held) == 5 and data.num_documents == 45 and set(held) < set(Corpus(str(corpus)))
        several = self.texts(data, range(32 * 15))  # 32 whole epochs of 15 batches, in whole pools
        assert set(several) == set(Corpus(str(corpus))) - set(held)
        assert {several.count(text) for text in set(several)} == {32}
        assert data.describe()["splits"]["train"] == {"documents": 45, "tokens": data.num_tokens}
        assert data.summary().startswith(f"{corpus}: train 45 (")

    def test_batches_are_a_function_of_seed_and_step(self, corpus: Path) -> None:
        one, two = (TextData(str(corpus), vocabulary=300, batch_size=4) for _ in range(2))
        stream = iter(two.train_dataloader(lambda: 40))
        for step in (40, 41, 42):
            assert torch.equal(one.batch(step).tokens, next(stream).tokens)
        assert torch.equal(one.batch(7).tokens, two.batch(7).tokens)
        other = TextData(str(corpus), vocabulary=300, batch_size=4, seed=3)
        assert self.texts(one, range(4)) != self.texts(other, range(4))

    def test_processes_share_one_order(self, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        alone = self.texts(TextData(str(corpus), vocabulary=300, batch_size=8), range(5))
        data = TextData(str(corpus), vocabulary=300, batch_size=4)
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        parts = []
        for rank in (0, 1):
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            parts.append(self.texts(data, range(5)))
        assert sorted(parts[0] + parts[1]) == sorted(alone)

    def test_batches_have_documents_of_similar_length(self, corpus: Path) -> None:
        data = TextData(str(corpus), vocabulary=300, batch_size=4)
        shares = [float(data.batch(step).valid.float().mean()) for step in range(32)]
        assert sum(shares) / 32 > 0.9

    def test_files_of_held_out_text_and_a_saved_vocabulary(self, corpus: Path, tmp_path: Path) -> None:
        SUBWORDS.save(tmp_path / "tokenizer.json")
        (tmp_path / "held.txt").write_text("Held one.\n\nHeld two. Again.\n")
        data = TextData(str(corpus), validation=str(tmp_path / "held.txt"), vocabulary=str(tmp_path / "tokenizer.json"))
        held = [text for batch in data.val_dataloader() for text in data.format.texts(batch)]
        assert held == ["Held one.", "Held two. Again."] and data.num_documents == 50
        assert data.format.subwords.fingerprint == SUBWORDS.fingerprint

    def test_one_endless_line_is_many_documents(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("word " * 4000)
        data = TextData(str(tmp_path), vocabulary=256, segmentation=Segmentation(max_tokens=8, max_segments=4))
        held = [row for batch in data.val_dataloader() for row in batch.tokens]
        total = data.num_documents + len(held)
        assert 20000 / 28 <= total < 20000 / 28 + 1 and len(held) == total // 10
        assert data.batch(0).tokens.shape[1] <= 32
        with pytest.raises(ValueError, match=r"expected two documents or more in .*, to hold whole ones out"):
            data.held_out()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "expected text in .* got none"),
            (" \n\n\t\n", "got none or white space alone"),
            ("one\n", "to hold out, got none in /.*; give two"),
        ],
    )
    def test_too_little_text(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "a.txt").write_text(content)
        with pytest.raises(ValueError, match=message):
            TextData(str(tmp_path), vocabulary=256).setup()

    def test_wrong_numbers(self) -> None:
        for name, value in (("batch_size", 0), ("num_validation", 0), ("seed", -1), ("vocabulary", 255)):
            with pytest.raises(ValueError, match=f"expected {name} >= "):
                TextData(**{name: value})
