"""One vocabulary for special tokens and all index channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gritvq.tokens import BOS, EOS, PAD, Vocabulary


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
