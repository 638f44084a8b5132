"""Groups of equal rows of indices, found by sorting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["RowTable", "rank_in_group"]

_LARGEST_WORD = 2**62


class RowTable:
    """The distinct rows of a matrix of indices, numbered in lexicographic order.

    Neighboring columns whose sizes multiply to at most 2^62 become one mixed-radix number,
    ``word = ((c_1 K_2 + c_2) K_3 + c_3) ...``; further words are joined by rank, so any number of columns works.

    Args:
        codes: Indices (n, Q) in ``[0, K_q)``. If Q is 0, all rows are equal.
        sizes: K_q of each column.

    Attributes:
        group: Number of each row's value (n,).
        counts: Number of rows with each value (G,).

    Example:
        >>> table = RowTable(torch.tensor([[1, 0], [0, 3], [1, 0]]), (2, 4))
        >>> table.group, table.counts, table.find(torch.tensor([[1, 0], [0, 0]]))
        (tensor([1, 0, 1]), tensor([1, 2]), tensor([ 1, -1]))
    """

    def __init__(self, codes: Int[Tensor, "n Q"], sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._spans = _spans(self.sizes)
        self._words: list[Tensor] = []
        self._joints: list[Tensor] = []
        group = torch.zeros(len(codes), dtype=torch.int64)
        for number, (start, stop) in enumerate(self._spans):
            words, rank = torch.unique(_word(codes[:, start:stop], self.sizes[start:stop]), return_inverse=True)
            self._words.append(words)
            if number:
                joint, rank = torch.unique(group * len(words) + rank, return_inverse=True)
                self._joints.append(joint)
            group = rank
        self.group = group
        self.counts = torch.bincount(group)

    @property
    def starts(self) -> Int[Tensor, " G1"]:
        """Start of each value in :attr:`order`, and n at the end (G + 1,)."""
        return torch.cat([torch.zeros(1, dtype=torch.int64), self.counts.cumsum(0)])

    @property
    def order(self) -> Int[Tensor, " n"]:
        """Rows sorted by value, stable (n,)."""
        return self.group.argsort(stable=True)

    def find(self, rows: Int[Tensor, "m Q"]) -> Int[Tensor, " m"]:
        """Number of the value that each row equals; -1 if there is none, or an index is out of range."""
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        known = ((rows >= 0) & (rows < sizes)).all(1) & bool(len(self.counts))
        rows = torch.where(known[:, None], rows, 0)
        group = torch.zeros(len(rows), dtype=torch.int64)
        for number, (start, stop) in enumerate(self._spans):
            words = self._words[number]
            rank, found = _search(words, _word(rows[:, start:stop], self.sizes[start:stop]))
            known &= found
            if number:
                rank, found = _search(self._joints[number - 1], group * len(words) + rank)
                known &= found
            group = rank
        return torch.where(known, group, -1)


def rank_in_group(group: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Number of earlier entries with the same value.

    Example:
        >>> rank_in_group(torch.tensor([7, 3, 7, 7]))
        tensor([0, 0, 1, 2])
    """
    order = group.argsort(stable=True)
    _, counts = torch.unique_consecutive(group[order], return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group)) - starts
    return rank


def _spans(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Runs of columns that fit one word."""
    spans, start, product = [], 0, 1
    for column, size in enumerate(sizes):
        if column > start and product * size > _LARGEST_WORD:
            spans.append((start, column))
            start, product = column, 1
        product *= size
    return [*spans, (start, len(sizes))] if sizes else []


def _word(codes: Int[Tensor, "n q"], sizes: Sequence[int]) -> Int[Tensor, " n"]:
    word = codes[:, 0].clone()
    for column, size in enumerate(sizes[1:], 1):
        word = word * size + codes[:, column]
    return word


def _search(table: Int[Tensor, " T"], wanted: Int[Tensor, " m"]) -> tuple[Tensor, Tensor]:
    """Position of each wanted value in a sorted table, and whether the table contains it."""
    if not len(table):
        return torch.zeros_like(wanted), torch.zeros(len(wanted), dtype=torch.bool)
    position = torch.searchsorted(table, wanted.contiguous()).clamp_max(len(table) - 1)
    return position, table[position] == wanted
