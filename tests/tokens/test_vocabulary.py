"""One vocabulary for special tokens and all index channels."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gritvq import Quantizer, grit_vq, msvq, rq, vq_vae_2
from gritvq.tokens import BOS, EOS, PAD, TokenLayout, Vocabulary


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), first=st.integers(3, 7), data=st.data())
def test_every_index_has_a_token_of_its_own(sizes: list[int], first: int, data: st.DataObject) -> None:
    vocabulary = Vocabulary(sizes, first_token=first)
    pairs = [(channel, index) for channel, size in enumerate(sizes) for index in range(size)]  # in the order of tokens
    channels, indices = torch.tensor(pairs).unbind(1)
    tokens = vocabulary.tokens_of(indices, channels)
    assert tokens.tolist() == list(range(first, vocabulary.vocab_size)) and vocabulary.vocab_size == first + sum(sizes)
    assert torch.equal(vocabulary.indices_of(tokens, channels), indices)
    for channel in range(len(sizes)):
        own = tokens[channels == channel].tolist()
        assert torch.arange(vocabulary.vocab_size)[vocabulary.range_of(channel)].tolist() == own
        other = data.draw(st.integers(0, vocabulary.vocab_size + 3))
        found = int(vocabulary.indices_of(torch.tensor([other]), torch.tensor([channel])))
        assert found == (own.index(other) if other in own else -1)


def test_prefixes_of_channels_and_masked_indices() -> None:
    vocabulary = Vocabulary((4, 8, 2))
    assert vocabulary.tokens_of(torch.tensor([[[3, 0], [-1, -1]]])).tolist() == [[[6, 7], [PAD, PAD]]]
    assert vocabulary.tokens_of(torch.zeros(5, 0, dtype=torch.int64)).shape == (5, 0)
    assert vocabulary.indices_of(torch.tensor([[PAD, BOS, EOS]])).tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize("sizes", [(), (4, 0), (-1,)])
def test_sizes_of_nothing(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected at least one codebook size, all >= 1, got"):
        Vocabulary(sizes)


class TestTokenizerOfTransformers:
    """Words of tokens, and the tokenizer that reads them."""

    @pytest.mark.parametrize(
        ("preset", "interleaving"),
        [
            *itertools.product([grit_vq, rq, msvq, vq_vae_2], ["flat", "parallel"]),
            *itertools.product([grit_vq, rq], ["delay"]),  # which is for one scale
        ],
    )
    def test_rows_of_every_layout_come_back(self, preset: Any, interleaving: Any, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        quantizer: Quantizer = preset(8, 16)
        size = quantizer.layout or (4, 4)
        layout = TokenLayout.of(quantizer, size, interleaving=interleaving)
        self.check(transformers, layout, quantizer.encode(torch.randn(3, *size, quantizer.input_dim)), tmp_path)

    @pytest.mark.parametrize("interleaving", ["flat", "parallel"])
    def test_ragged_rows_come_back(self, interleaving: Any, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        layout = TokenLayout((4, 3), (3,), interleaving=interleaving, ragged=True)
        indices = torch.tensor([[[1, 2], [0, 0], [-1, -1]], [[3, 2], [0, 1], [3, 0]]])
        self.check(transformers, layout, indices, tmp_path)

    def check(self, transformers: Any, layout: TokenLayout, indices: torch.Tensor, folder: Path) -> None:
        vocabulary, tokens = layout.vocabulary, layout.to_sequence(indices)
        assert vocabulary.save_pretrained_tokenizer(folder) == folder
        loaded = transformers.AutoTokenizer.from_pretrained(folder)
        assert len(loaded) == vocabulary.vocab_size == len(set(vocabulary.words))
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (PAD, BOS, EOS)
        rows = [vocabulary.text_of(row) for row in tokens]
        found = loaded(rows, return_tensors="pt")["input_ids"]
        assert bool((found[:, 0] == BOS).all() and (found[:, -1] == EOS).all())
        assert torch.equal(layout.from_sequence(found[:, 1:-1].reshape(tokens.shape)), indices)
        plain = loaded(rows, add_special_tokens=False)["input_ids"]
        assert plain == tokens.flatten(1).tolist()
        assert [loaded.decode(row) for row in plain] == rows
        loaded.save_pretrained(folder / "again")
        again = transformers.AutoTokenizer.from_pretrained(folder / "again")
        assert again(rows)["input_ids"] == found.tolist()

    def test_shorter_rows_are_padded_and_special_tokens_may_be_left_out(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        loaded = transformers.AutoTokenizer.from_pretrained(Vocabulary((4, 8)).save_pretrained_tokenizer(tmp_path))
        batch = loaded(["<c0_3> <c1_7>", "<c0_0>"], padding=True)
        assert batch["input_ids"] == [[BOS, 6, 14, EOS], [BOS, 3, EOS, PAD]]
        assert batch["attention_mask"] == [[1, 1, 1, 1], [1, 1, 1, 0]]
        assert loaded.decode(batch["input_ids"][1], skip_special_tokens=True) == "<c0_0>"
        with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
            loaded("<c0_4>")

    def test_more_special_tokens(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        vocabulary = Vocabulary((2,), first_token=5)
        assert vocabulary.words == ["<pad>", "<bos>", "<eos>", "<special_3>", "<special_4>", "<c0_0>", "<c0_1>"]
        loaded = transformers.AutoTokenizer.from_pretrained(vocabulary.save_pretrained_tokenizer(tmp_path))
        assert loaded("<special_4> <c0_1>", add_special_tokens=False)["input_ids"] == [4, 6]

    def test_a_model_beside_it_stays(self, tmp_path: Path) -> None:
        pytest.importorskip("tokenizers")
        (tmp_path / "config.json").write_text("{}")
        for sizes in ((2,), (3,)):
            Vocabulary(sizes).save_pretrained_tokenizer(tmp_path)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"config.json", "tokenizer.json", "tokenizer_config.json"}

    def test_what_is_wrong(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="expected first_token >= 3 for words of PAD, BOS and EOS, got 1"):
            Vocabulary((2,), first_token=1).save_pretrained_tokenizer(tmp_path / "new")
        for token in (-1, 5):
            with pytest.raises(ValueError, match=rf"expected tokens in \[0, 5\), got {token}"):
                Vocabulary((2,)).text_of(torch.tensor([token]))
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(ValueError, match=r"got none; pip install 'gritvq\[text\]'"):
            Vocabulary((2,)).save_pretrained_tokenizer(tmp_path / "new")
        assert not (tmp_path / "new").exists()
