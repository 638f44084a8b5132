"""Which items a list may have: those in stock or of a category, without those that the user has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from gritvq.items.interactions import Histories, check_items

__all__ = ["FilteredOrder", "ItemFilter"]


class FilteredOrder(NamedTuple):
    """An :class:`ItemFilter` along an order of n items: how many of the first items may be listed.

    Attributes:
        sums: Number of allowed items before each place, for all lists (n + 1,) or for each (B, n + 1); int64, eight
            times the memory of the mask that it was made of.
        excluded: Places of the allowed items that each list excludes (B, E), ascending, padded with n; or None.
            E is the length of the longest list of exclusions.
    """

    sums: Int[Tensor, "*B n+1"]
    excluded: Int[Tensor, "B E"] | None

    def num_before(self, places: Int[Tensor, " B *batch"]) -> Int[Tensor, " B *batch"]:
        """Number of items before each place, 0 .. n, that its list may have."""
        flat = places.flatten(1).contiguous()
        found = self.sums[flat] if self.sums.ndim == 1 else self.sums.gather(1, flat)
        if self.excluded is not None:
            found = found - torch.searchsorted(self.excluded, flat)
        return found.reshape(places.shape)

    def mask(self, start: int, stop: int) -> Bool[Tensor, "*B m"]:
        """Which of the items at the places ``start`` .. ``stop - 1`` each list may have; (m,) if equal for all."""
        mask = self.sums[..., start + 1 : stop + 1] > self.sums[..., start:stop]
        if self.excluded is None:
            return mask
        columns, width = self.excluded - start, stop - start
        columns = columns.where((columns >= 0) & (columns < width), torch.full_like(columns, width))
        every = F.pad(mask, (0, 1)).expand(len(columns), -1).clone()
        return every.scatter_(1, columns, False)[:, :width]


class ItemFilter:
    """Which of n items each of B lists may have: ``may(b, i) = allowed(b, i) and i not in exclude(b)``.

    Searches apply it to what they score, not to what they found: a list has k items whenever the filter leaves k.
    Exclusions become a table of B rows as long as the longest of them, int64, whatever n is. Searches count along the
    mask: sums in int64, eight times the memory of the mask, and so B x n x 8 bytes for a mask per list.

    Args:
        num_items: Number n of items.
        batch: Number B of lists.
        allowed: Whether an item may be listed, for all lists (n,) or for each (B, n), bool; None allows all. Such as
            items in stock, or of a category.
        exclude: Item rows that must not be listed, a sequence per list, in any order and with repeats; such as the
            users' histories.

    Raises:
        ValueError: If shapes or types are wrong, or a row is out of range.

    Example:
        >>> stock = torch.tensor([True, True, False, True])
        >>> ItemFilter(4, 2, allowed=stock, exclude=[[1, 1], []]).mask()
        tensor([[ True, False, False,  True],
                [ True,  True, False,  True]])
    """

    allowed: Tensor | None
    excluded: Tensor | None

    def __init__(
        self,
        num_items: int,
        batch: int,
        *,
        allowed: Bool[Tensor, "*B n"] | None = None,
        exclude: Histories | Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.num_items, self.batch, self.allowed, self.excluded = num_items, batch, allowed, None
        if allowed is not None and (
            allowed.dtype != torch.bool or allowed.shape not in ((num_items,), (batch, num_items))
        ):
            raise ValueError(
                f"expected allowed as bool of shape ({num_items},), or ({batch}, {num_items}) with a row per list, got "
                f"{allowed.dtype} of shape {tuple(allowed.shape)}; make a mask of the items"
            )
        if exclude is not None:
            given = Histories.of(exclude)
            if len(given) != batch:
                raise ValueError(
                    f"expected items to exclude for each of {batch} lists, got them for {len(given)}; give an empty "
                    "sequence where there are none"
                )
            check_items(given.items, num_items)
            rows = given.aligned(max(1, len(given.items)))
            rows = rows.where(rows >= 0, torch.full_like(rows, num_items)).sort(dim=1, stable=True).values
            rows[:, 1:] = rows[:, 1:].where(rows[:, 1:] > rows[:, :-1], torch.full_like(rows[:, 1:], num_items))
            self.excluded = rows  # each once, padded with n

    def along(self, order: Int[Tensor, " m"]) -> FilteredOrder:
        """The filter along an order of all or some item rows."""
        device, size = order.device, len(order)
        allowed = torch.ones(self.num_items, dtype=torch.bool) if self.allowed is None else self.allowed
        allowed = allowed.to(device)
        sums = F.pad(allowed[..., order].cumsum(-1, dtype=torch.int64), (1, 0))
        if self.excluded is None:
            return FilteredOrder(sums, None)
        rows = self.excluded.to(device)
        place = torch.full((self.num_items + 1,), size, device=device)  # the last is for the padding
        place[order] = torch.arange(size, device=device)
        known = F.pad(allowed, (0, 1))  # what is not allowed is not counted twice
        known = known[rows] if known.ndim == 1 else known.gather(1, rows)
        places = place[rows].where(known, torch.full_like(rows, size))
        return FilteredOrder(sums, places.sort(dim=1, stable=True).values)

    def mask(self) -> Bool[Tensor, "*B n"]:
        """Which items each list may have; (n,) if they are equal for all lists."""
        return self.along(torch.arange(self.num_items)).mask(0, self.num_items)
