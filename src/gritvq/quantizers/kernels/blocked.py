"""Search in blocks by PyTorch's matrix product, on any device.

On a CPU an argmin over all scores costs as much as the product, a minimum a tenth of it. So we compute the minima of
groups of neighboring codes while a block of scores is in the cache, and then the argmin in the best group of each row:
one more product for all rows with the same best group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Groups", "search", "search_rows"]

_BLOCK_ENTRIES = 1 << 24  # scores per block: 64 MB
_CPU_ROWS, _CPU_CODES = 1024, 1024  # size of a block of scores that stays in the cache: 4 MB
_SUPER_ROWS, _MINIMA = 8192, 1 << 23  # most rows decided together, and most entries of their minima: 32 MB
_GROUPED_FROM = 1024  # codes; with 512, groups are not faster


class Groups:
    """Centered codes in groups of neighbors, padded with codes of infinite bias.

    The size of a group grows with K, to balance the number of groups and their sizes.
    """

    def __init__(self, codes: Float[Tensor, "K D"], bias: Float[Tensor, " K"]) -> None:
        few = len(codes) < (65536 if codes.shape[1] > 128 else 16384)
        self.size = 64 if few else 128 if len(codes) <= 131072 else 256
        extra = -len(codes) % _CPU_CODES
        if extra:
            codes, bias = F.pad(codes, (0, 0, 0, extra)), F.pad(bias, (0, extra), value=float("inf"))
        self.codes, self.bias = codes, bias
        self.room = codes.new_empty(_CPU_ROWS, _CPU_CODES)  # for scores; allocating it again is slow
        self.count = len(codes) // self.size
        self._codes, self._bias = codes.view(self.count, self.size, -1).unbind(), bias.view(self.count, -1).unbind()

    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """Codes and biases of one product each."""
        return list(zip(self.codes.split(_CPU_CODES), self.bias.split(_CPU_CODES), strict=True))

    def rows_at_once(self) -> int:
        """Largest number of rows decided together; all of them may have the same group."""
        return min(self.room.numel() // self.size, max(256, min(_SUPER_ROWS, _MINIMA // self.count)))

    def nearest(
        self, rows: Float[Tensor, "n D"], groups: Int[Tensor, " P"], owners: Int[Tensor, " P"]
    ) -> Int[Tensor, " n"]:
        """Nearest code of each row among those of its groups; pairs are sorted by group.

        Each row has at least one group, there are at most :meth:`rows_at_once`, and ``room`` is overwritten.
        """
        present, counts = (part.tolist() for part in groups.unique_consecutive(return_counts=True))
        room = self.room.view(-1, self.size)
        values, indices = [], []
        first = start = 0
        while first < len(present):
            last, end = first, start
            while last < len(present) and (last == first or end + counts[last] <= start + len(room)):
                end += counts[last]
                last += 1
            scores = room[: end - start]
            parts = zip(
                present[first:last],
                rows[owners[start:end]].split(counts[first:last]),
                scores.split(counts[first:last]),
                strict=True,
            )
            for group, own, out in parts:
                torch.addmm(self._bias[group], own, self._codes[group].T, alpha=-1, out=out)
            value, position = scores.min(1)
            values.append(value)
            indices.append(position + self.size * groups[start:end])
            first, start = last, end
        value, index = torch.cat(values), torch.cat(indices)
        if len(owners) == len(rows):
            return index.new_empty(len(rows)).scatter_(0, owners, index)
        least = value.new_full((len(rows),), float("inf")).scatter_reduce_(0, owners, value, "amin")
        index = torch.where(value == least[owners], index, len(self.codes))
        return index.new_full((len(rows),), len(self.codes)).scatter_reduce_(0, owners, index, "amin")


def search(
    x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], bias: Float[Tensor, " K"], center: Float[Tensor, " D"]
) -> Int[Tensor, " N"]:
    """``argmin_k bias_k - <x_n - center, codes_k>`` in blocks; ties to the lowest index, 0 for non-finite rows.

    On a CPU with at least 1024 codes in groups, else with a running best over blocks.
    """
    if x.device.type == "cpu" and len(codes) >= _GROUPED_FROM:
        return _search_groups(x, codes, bias, center)
    block = min(len(codes), 1024 if x.device.type == "cpu" else 16384)
    size = max(1, (1 << 20 if x.device.type == "cpu" else _BLOCK_ENTRIES) // block)
    found = []
    for part in x.split(size):
        rows, finite = finite_rows(part, center)
        found.append(torch.where(finite, search_rows(rows, codes, bias, block), 0))
    return torch.cat(found)


def finite_rows(x: Float[Tensor, "n D"], center: Float[Tensor, " D"]) -> tuple[Float[Tensor, "n D"], Tensor]:
    """Centered rows, zeros for non-finite ones, and which rows are finite."""
    rows = x.to(center.dtype) - center
    finite = rows.abs().amax(1).isfinite()
    if rows.device.type == "cpu" and bool(finite.all()):
        return rows, finite
    return torch.where(finite[:, None], rows, 0), finite


def _search_groups(x: Tensor, codes: Tensor, bias: Tensor, center: Tensor) -> Int[Tensor, " N"]:
    groups, found = Groups(codes, bias), []
    blocks = groups.blocks()
    for part in x.split(groups.rows_at_once()):
        rows, finite = finite_rows(part, center)
        best = []
        for own in rows.split(_CPU_ROWS):
            scores = (torch.addmm(b, own, c.T, alpha=-1, out=groups.room[: len(own)]) for c, b in blocks)
            minima = torch.cat([block.unflatten(1, (-1, groups.size)).amin(2) for block in scores], 1)
            best.append(minima.min(1).indices)
        ordered, owners = torch.cat(best).sort()
        found.append(torch.where(finite, groups.nearest(rows, ordered, owners), 0))
    return torch.cat(found)


def search_rows(
    rows: Float[Tensor, "n D"], codes: Float[Tensor, "K D"], bias: Float[Tensor, " K"], block_codes: int = 1024
) -> Int[Tensor, " n"]:
    """Search for all centered rows at once in blocks of codes; plain operators only, so that it can be exported."""
    best = index = None
    for start in range(0, len(codes), block_codes):
        block = slice(start, start + block_codes)
        value, position = torch.addmm(bias[block], rows, codes[block].T, alpha=-1).min(1)
        if best is None or index is None:
            best, index = value, position
        else:
            better = value < best
            best = torch.where(better, value, best)
            index = torch.where(better, position + start, index)
    assert index is not None
    return index
