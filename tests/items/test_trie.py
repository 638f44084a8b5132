"""The prefix trie against sets of tuples, and its adapter against transformers' own callback."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gritvq.items.ids.trie import PrefixTrie, TrieLogitsProcessor


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, ...]]:
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=25))), sizes


def every_prefix(sizes: tuple[int, ...], length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*(range(size) for size in sizes[:length])))).reshape(
        math.prod(sizes[:length]), length
    )


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.booleans())
def test_every_prefix_gets_what_a_set_of_tuples_says(
    catalogue: tuple[torch.Tensor, tuple[int, ...]], one_by_one: bool
) -> None:
    codes, sizes = catalogue
    trie = PrefixTrie(codes, sizes)
    rows = [tuple(row) for row in codes.tolist()]
    for level, size in enumerate(sizes):
        known = {row[: level + 1] for row in rows}
        prefixes = every_prefix(sizes, level)
        nodes = trie.walk(prefixes)
        allowed = (
            trie.allowed(nodes, level) if not one_by_one else torch.cat([trie.allowed(n[None], level) for n in nodes])
        )
        assert allowed.tolist() == [[(*prefix, code) in known for code in range(size)] for prefix in prefixes.tolist()]
        assert trie.offsets[level + 2] - trie.offsets[level + 1] == len(known)
        stepped = trie.step(nodes[:, None].expand(-1, size), torch.arange(size).expand(len(nodes), -1))
        assert torch.equal(stepped >= 0, allowed)
        children, places = trie.children_of(nodes)
        assert torch.equal(children, stepped[allowed]) and torch.equal(places, allowed.nonzero()[:, 0])
    leaves = trie.walk(every_prefix(sizes, len(sizes)))
    wanted = [[n for n, row in enumerate(rows) if row == ids] for ids in itertools.product(*map(range, sizes))]
    assert [trie.rows_of(leaf) for leaf in leaves.tolist()] == wanted
    assert trie.sizes_of(leaves).tolist() == [len(group) for group in wanted]
    flat = list(itertools.chain.from_iterable(wanted))
    for count in (1, 3, len(flat) + 2):
        assert trie.expand(leaves[None], count).tolist() == [(flat + [-1] * count)[:count]]


@given(catalogues(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_rows_of_one_id_come_by_priority_then_by_number(
    catalogue: tuple[torch.Tensor, tuple[int, ...]], random: object
) -> None:
    codes, sizes = catalogue
    priority = torch.tensor([float(random.randint(0, 2)) for _ in codes])  # type: ignore[attr-defined]
    trie = PrefixTrie(codes, sizes, priority=priority)
    for leaf in trie.level(len(sizes)).tolist():
        rows = trie.rows_of(leaf)
        assert rows == sorted(rows, key=lambda row: (-priority[row], row))
    assert sorted(row for leaf in trie.level(len(sizes)).tolist() for row in trie.rows_of(leaf)) == list(
        range(len(codes))
    )


def test_what_is_no_prefix_allows_nothing_and_leads_nowhere() -> None:
    trie = PrefixTrie(torch.tensor([[0, 1], [2, 2]]), (3, 4))
    leaf = trie.walk(torch.tensor([[0, 1]]))
    odd = torch.stack([torch.tensor(-1), *leaf, torch.tensor(trie.num_nodes), torch.tensor(0)])
    assert not trie.allowed(odd, 1).any()  # no prefix, a whole id, no node, a prefix of another length
    assert trie.allowed(odd, 0)[:3].sum() == 0
    assert trie.step(odd, torch.tensor([0, 0, 0, 7])).eq(-1).all() and trie.step(trie.root(1), torch.tensor([-1])) == -1
    assert trie.walk(torch.tensor([[1, 0], [0, 3], [2, -1], [9, 9]])).eq(-1).all()
    assert not len(trie.children_of(odd[:2])[0])
    assert trie.rows_of(-1) == trie.rows_of(0) == [] and trie.sizes_of(odd).tolist() == [0, 1, 0, 0]


def test_moves_and_says_what_is_wrong() -> None:
    trie = PrefixTrie(torch.tensor([[0, 1], [2, 2]]), (3, 4))
    assert not trie.state_dict() and all(buffer.is_meta for buffer in trie.to("meta").buffers())
    for codes, sizes, text in (
        (torch.zeros(0, 2, dtype=torch.int64), (3, 4), "at least one id"),
        (torch.zeros(2, 3, dtype=torch.int64), (3, 4), r"got \(2, 3\)"),
        (torch.tensor([[0, 1], [0, 4]]), (3, 4), r"\[0, 4\) in column 1, got 4 in row 1"),
        (torch.tensor([[-1, 1]]), (3, 4), "got -1 in row 0"),
    ):
        with pytest.raises(ValueError, match=text):
            PrefixTrie(codes, sizes)
    with pytest.raises(ValueError, match="one priority per row"):
        PrefixTrie(torch.tensor([[0], [1]]), (2,), priority=torch.zeros(3))
    with pytest.raises(ValueError, match="level in"):
        trie.allowed(torch.zeros(1, dtype=torch.int64), 2)


def test_masks_equal_those_of_the_callback_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(0)
    sizes, beams = (5, 7, 64), 6  # the last level is sparse
    codes = torch.stack([torch.randint(0, size, (40,), generator=generator) for size in sizes], 1)
    starts = torch.tensor([3, 8, 15])
    vocabulary = 3 + sum(sizes) + 2
    table: dict[tuple[int, ...], set[int]] = {}
    for row in (codes + starts).tolist():
        for length in range(len(sizes)):
            table.setdefault(tuple(row[:length]), set()).add(row[length])
    theirs = transformers.PrefixConstrainedLogitsProcessor(
        lambda _, sentence: sorted(table.get(tuple(sentence.tolist()[2:]), {2})), beams
    )
    ours = TrieLogitsProcessor(PrefixTrie(codes, sizes), prompt_length=2, first_token=3, end_token=2)
    for length in range(len(sizes) + 2):
        tokens = torch.randint(0, vocabulary, (4 * beams, 2 + length), generator=generator)  # mostly no prefixes
        known = (codes + starts)[torch.randint(0, len(codes), (2 * beams,), generator=generator)]
        tokens[: 2 * beams, 2 : 2 + len(sizes)] = known[:, :length]
        scores = torch.randn(4 * beams, vocabulary, generator=generator)
        assert torch.equal(theirs(tokens, scores), ours(tokens, scores.clone()))
    with pytest.raises(ValueError, match="vocabulary of 79, got 2 and 78"):
        ours(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 78))
    masked = ours(torch.tensor([[0, 0, 9999]]), torch.zeros(1, 79)).tolist()
    assert masked == [[-math.inf] * 2 + [0.0] + [-math.inf] * 76]
