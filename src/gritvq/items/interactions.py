"""User-item interactions in time order: storage, k-core filter, leave-one-out split, leakage checks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gritvq.component import check_integer

__all__ = ["Histories", "Interactions", "Key", "Split", "check_items", "check_split"]

Key = int | str
_logger = logging.getLogger(__name__)
_ASCENDING = 0.98  # share of ascending neighboring pairs from which events look sorted by key
_FEWEST_PAIRS = 100  # fewer pairs are not enough to tell


class Histories:
    """Ragged sequences of item rows, oldest item first; sequence b is ``items[offsets[b]:offsets[b + 1]]``.

    A read-only sequence: an integer index returns a tensor, a slice or a tensor of indices returns `Histories`.

    Args:
        offsets: Start of each sequence, and the end (B + 1,), int64.
        items: Concatenated item rows of all sequences (N,), int64.

    Raises:
        ValueError: If the offsets do not start at 0, decrease, or do not end at N.

    Example:
        >>> histories = Histories.of([[5, 2, 7], [], [1]])
        >>> histories[0].tolist(), histories.last().tolist()
        ([5, 2, 7], [7, -1, 1])
        >>> histories.aligned(2).tolist()
        [[2, 7], [-1, -1], [1, -1]]
    """

    def __init__(self, offsets: Int[Tensor, " B+1"], items: Int[Tensor, " N"]) -> None:
        ends = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else (-1, -1)
        if ends != (0, len(items)) or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(
                f"expected offsets rising from 0 to the number of items {len(items)}, got {ends[0]} to {ends[1]}; "
                "use Histories.of for lists."
            )
        self.offsets, self.items = offsets, items

    @classmethod
    def of(cls, sequences: Histories | Sequence[Sequence[int] | Tensor]) -> Histories:
        """Histories from lists or tensors of item rows; `Histories` are returned unchanged."""
        if isinstance(sequences, Histories):
            return sequences
        parts = [torch.as_tensor(each, dtype=torch.int64).reshape(-1) for each in sequences]
        lengths = torch.tensor([len(each) for each in parts], dtype=torch.int64)
        return cls(_offsets(lengths), torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, int):
            number = range(len(self))[which]
            return self.items[int(self.offsets[number]) : int(self.offsets[number + 1])]
        if isinstance(which, slice):
            which = torch.arange(len(self))[which]
        which = torch.as_tensor(which)
        if which.dtype == torch.bool:
            which = which.nonzero().squeeze(1)
        return self.pieces(self.offsets[:-1][which], self.lengths[which])

    def pieces(self, starts: Int[Tensor, " C"], lengths: Int[Tensor, " C"]) -> Histories:
        """Slices of ``items``: ``items[starts[c]:starts[c] + lengths[c]]`` for each c."""
        offsets = _offsets(lengths)
        places = torch.arange(int(offsets[-1])) + (starts - offsets[:-1]).repeat_interleave(lengths)
        return Histories(offsets, self.items[places])

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Length of each sequence."""
        return self.offsets[1:] - self.offsets[:-1]

    def last(self) -> Int[Tensor, " B"]:
        """The newest item of each sequence; -1 if it is empty."""
        if not len(self.items):
            return torch.full((len(self),), -1)
        return torch.where(self.lengths > 0, self.items[(self.offsets[1:] - 1).clamp_min(0)], -1)

    def aligned(self, length: int) -> Int[Tensor, "B T"]:
        """The newest ``length`` items of each sequence, padded on the right with -1 to the longest length T >= 1."""
        counts = self.lengths.clamp_max(length)
        places = torch.arange(max(1, int(counts.max()) if len(counts) else 1)).expand(len(self), -1)
        if not len(self.items):
            return torch.full(places.shape, -1)
        rows = (self.offsets[1:] - counts)[:, None] + places
        found = places < counts[:, None]
        return torch.where(found, self.items[rows.clamp_max(len(self.items) - 1)], -1)

    def joined(self, others: Histories) -> Histories:
        """Each sequence and behind it that of ``others``.

        Raises:
            ValueError: If their numbers differ.

        Example:
            >>> Histories.of([[5, 2], []]).joined(Histories.of([[7], [1]])).items.tolist()
            [5, 2, 7, 1]
        """
        if len(others) != len(self):
            raise ValueError(f"expected {len(self)} sequences to join, got {len(others)}; give one for each")
        owners = [torch.arange(len(self)).repeat_interleave(each.lengths) for each in (self, others)]
        order = torch.cat(owners).sort(stable=True).indices
        return Histories(self.offsets + others.offsets, torch.cat([self.items, others.items])[order])

    def append(self, items: Int[Tensor, " B"]) -> Histories:
        """Append one item to each sequence."""
        offsets = self.offsets + torch.arange(len(self) + 1)
        joined = torch.empty(len(self.items) + len(self), dtype=torch.int64)
        newest = offsets[1:] - 1
        old = torch.ones(len(joined), dtype=torch.bool)
        old[newest] = False
        joined[old], joined[newest] = self.items, items
        return Histories(offsets, joined)


@dataclass(frozen=True)
class Split:
    """Leave-one-out split: a user's newest event is for test, the one before for validation, the rest for training.

    The U users with at least three events are evaluated. All events of the others are for training.

    Attributes:
        train: Training part of all users.
        users: Rows of the evaluated users (U,).
        validation: Their second newest item (U,).
        test: Their newest item (U,).
        num_items: Number of items in the catalogue.
        num_short: Number of users with fewer than three events.
    """

    train: Histories
    users: Int[Tensor, " U"]
    validation: Int[Tensor, " U"]
    test: Int[Tensor, " U"]
    num_items: int
    num_short: int

    @property
    def validation_inputs(self) -> Histories:
        """Inputs for predicting `validation`: the training part of the evaluated users."""
        return self.train[self.users]

    @property
    def test_inputs(self) -> Histories:
        """Inputs for predicting `test`: the training part and the validation item."""
        return self.train[self.users].append(self.validation)

    def report(self) -> dict[str, int]:
        """Counts to check before training.

        Returns:
            ``users``, ``items``, ``train_events``, ``evaluated_users``, ``short_users``; ``cold_targets``: test targets
            that are in no training part; ``repeated_targets``: test targets that the same user has had before.
        """
        seen = torch.zeros(self.num_items, dtype=torch.bool)
        seen[self.train.items] = True
        inputs = self.test_inputs
        repeated = inputs.items == self.test.repeat_interleave(inputs.lengths)
        owners = torch.arange(len(inputs)).repeat_interleave(inputs.lengths)
        return {
            "users": len(self.train),
            "items": self.num_items,
            "train_events": len(self.train.items),
            "evaluated_users": len(self.users),
            "short_users": self.num_short,
            "cold_targets": int((~seen[self.test]).sum()),
            "repeated_targets": len(owners[repeated].unique()),
        }


@dataclass(frozen=True)
class Interactions:
    """Events of each user in time order; made by :meth:`from_events` or `read_interactions`.

    Attributes:
        histories: The items of each user, oldest first.
        user_keys: Key of each user row.
        item_keys: Key of each item row.
        notes: Warnings about the data, which were also logged.

    Raises:
        ValueError: If there is not one key per user, or an item row is out of range.
    """

    histories: Histories
    user_keys: tuple[Key, ...]
    item_keys: tuple[Key, ...]
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.histories) != len(self.user_keys):
            raise ValueError(
                f"expected one key per user, got {len(self.user_keys)} keys for {len(self.histories)} users; make them "
                "equal."
            )
        check_items(self.histories.items, len(self.item_keys))

    @classmethod
    def from_events(
        cls,
        users: Any,
        items: Any,
        times: Any | None = None,
        *,
        item_keys: Sequence[Key] | None = None,
    ) -> Interactions:
        """Sorts events by user and time, and numbers users and items.

        Users are numbered in the order of their keys; items in the order of ``item_keys``, or of their keys. **Ties**:
        events of one user with equal times keep their order. Of rows with equal user, item and time only the first is
        kept. Without times the rows are taken to be in time order, and repeats are kept. A warning is logged if rows
        were dropped or out of order, and if nearly all neighboring events ascend by item key: then the file is sorted
        by key and not by time, and results on it are meaningless.

        Args:
            users: User key of each event (N,), integers or strings.
            items: Item key of each event (N,), integers or strings.
            times: Time or position of each event (N,), numbers or dates, in any unit; or a tuple of such arrays, most
                important first.
            item_keys: Keys of the catalogue in order; None uses the items that occur.

        Raises:
            ValueError: If there are no events, lengths differ, keys are missing or neither integers nor strings, a time
                is missing, the catalogue has a key twice, or an event has an item that is not in it.

        Example:
            >>> events = Interactions.from_events(["b", "a", "b"], [7, 9, 3], times=[1, 1, 0])
            >>> events.user_keys, events.item_keys, events.histories[1].tolist()
            (('a', 'b'), (3, 7, 9), [0, 1])
        """
        if not len(users) and not len(items):
            raise ValueError("expected at least one event, got none; check the file.")
        user_names, item_names = _keys(users, "user"), _keys(items, "item")
        several = isinstance(times, tuple) and len(times) > 0 and np.ndim(times[0]) == 1
        orders = [] if times is None else [_times(each) for each in (times if several else (times,))]
        lengths = {len(each) for each in (user_names, item_names, *orders)}
        if len(lengths) > 1:
            raise ValueError(
                f"expected one user, item and time per event, got arrays of {sorted(lengths)} entries; make them equal."
            )
        user_keys, user = np.unique(user_names, return_inverse=True)
        if item_keys is None:
            known, item = np.unique(item_names, return_inverse=True)
        else:
            known = unique_keys(item_keys)
            item = rows_of_keys(known, item_names)
        notes = []
        order = np.lexsort((*reversed(orders), user)) if orders else np.argsort(user, kind="stable")
        # Only the order within each user matters.
        if orders and (order != np.argsort(user, kind="stable")).any():
            notes.append("events were not in order of time within each user and have been sorted.")
        user, item = user[order], item[order]
        if orders:
            new = _first_of_equal([user, *(each[order] for each in orders), item])
            if not new.all():
                notes.append(f"{int((~new).sum())} repeated rows (same user, item and time) have been dropped.")
            user, item = user[new], item[new]
        counts = torch.from_numpy(np.bincount(user, minlength=len(user_keys)))
        histories = Histories(_offsets(counts), torch.from_numpy(item.astype(np.int64)))
        result = cls(histories, tuple(user_keys.tolist()), tuple(known.tolist()))
        share, pairs = result.ascending_share(), int((counts - 1).clamp_min(0).sum())
        if share >= _ASCENDING and pairs >= _FEWEST_PAIRS:
            notes.append(
                f"{100 * share:.1f} % of neighboring events ascend by item key: the file seems to be sorted by key "
                "and not by time, so results on it are meaningless; use a file with times."
            )
        for note in notes:
            _logger.warning("interactions: %s", note)
        return cls(histories, result.user_keys, result.item_keys, tuple(notes))

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_keys)

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue, including items without events."""
        return len(self.item_keys)

    @property
    def num_events(self) -> int:
        """Number of events."""
        return len(self.histories.items)

    def ascending_share(self, keys: Sequence[Key] | None = None) -> float:
        """Share of a user's neighboring events whose item keys ascend: about 1/2 in time order, 1 in key order.

        Args:
            keys: Keys to compare, one per item row; None uses `item_keys`.

        Returns:
            The share; NaN without neighboring events.
        """
        names = np.asarray(self.item_keys if keys is None else list(keys))
        rank = np.empty(len(names), dtype=np.int64)
        rank[np.argsort(names, kind="stable")] = np.arange(len(names))
        ranks = torch.from_numpy(rank)[self.histories.items]
        owner = torch.arange(self.num_users).repeat_interleave(self.histories.lengths)
        pair = owner[1:] == owner[:-1]
        return float((ranks[1:] > ranks[:-1])[pair].double().mean())

    def k_core(self, k: int = 5) -> Interactions:
        """Repeatedly removes users and items with fewer than k events, until all have at least k.

        Args:
            k: Smallest number of events, >= 1. Repeated items of a user count each time.

        Returns:
            The remaining interactions, with users and items renumbered in the same order.

        Raises:
            ValueError: If k < 1 or nothing is left.
        """
        check_integer("k", k, hint="5 is usual")
        items = self.histories.items
        users = torch.arange(self.num_users).repeat_interleave(self.histories.lengths)
        while True:
            user_counts = torch.bincount(users, minlength=self.num_users)
            item_counts = torch.bincount(items, minlength=self.num_items)
            stays = (user_counts[users] >= k) & (item_counts[items] >= k)
            if bool(stays.all()):
                break
            users, items = users[stays], items[stays]
        if not len(items):
            raise ValueError(f"expected users and items with at least {k} events each, got none; lower k.")
        users_kept, items_kept = user_counts > 0, item_counts > 0
        new_rows = items_kept.cumsum(0) - 1
        return Interactions(
            Histories(_offsets(user_counts[users_kept]), new_rows[items]),
            tuple(key for key, kept in zip(self.user_keys, users_kept.tolist(), strict=True) if kept),
            tuple(key for key, kept in zip(self.item_keys, items_kept.tolist(), strict=True) if kept),
            self.notes,
        )

    def rows_of(self, keys: Sequence[Key]) -> Int[Tensor, " M"]:
        """Rows of these items.

        Raises:
            ValueError: If one of them is not in the catalogue.
        """
        return torch.from_numpy(rows_of_keys(np.asarray(self.item_keys), _keys(keys, "item")))

    def split(self) -> Split:
        """The leave-one-out `Split`.

        Raises:
            ValueError: If no user has three events.
        """
        lengths = self.histories.lengths
        long = lengths >= 3
        if not bool(long.any()):
            raise ValueError(
                f"expected a user with at least three events, got at most {int(lengths.max())}; use more events."
            )
        users = long.nonzero().squeeze(1)
        ends = self.histories.offsets[1:][users]
        events = self.histories.items
        held_out = torch.zeros(len(events), dtype=torch.bool)
        held_out[ends - 1] = held_out[ends - 2] = True
        train = Histories(_offsets(lengths - 2 * long.long()), events[~held_out])
        split = Split(train, users, events[ends - 2], events[ends - 1], self.num_items, int((~long).sum()))
        check_split(self, split)
        return split


def check_items(items: Tensor, num_items: int) -> None:
    """Raises a ValueError unless all of these are item rows in ``[0, num_items)``."""
    if items.numel() and not 0 <= int(items.min()) <= int(items.max()) < num_items:
        raise ValueError(
            f"expected item rows in [0, {num_items}), got {int(items.min())} to {int(items.max())}; find the rows of "
            "keys with Interactions.rows_of, and add ids of new items with SemanticIds.add"
        )


def check_split(interactions: Interactions, split: Split) -> None:
    """Checks that training part, validation item and test item of each user concatenate to the user's events in order.

    So no event is in two parts, and no input contains events after its target. `Interactions.split` calls it; call it
    on your own splits.

    Raises:
        ValueError: If events are missing, out of order, or in two parts.
    """
    whole, parts = interactions.histories, split.train
    joined = split.test_inputs.append(split.test)
    expected = whole[split.users]
    short = torch.ones(len(whole), dtype=torch.bool)
    short[split.users] = False
    for got, wanted in ((joined, expected), (parts[short], whole[short])):
        if not torch.equal(got.offsets, wanted.offsets) or not torch.equal(got.items, wanted.items):
            raise ValueError(
                "expected every user's training part, validation item and test item to join to the user's events in "
                "time order, got other events; split with Interactions.split, or sort by time before splitting."
            )


def unique_keys(keys: Sequence[Key] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The keys of a catalogue as an array.

    Raises:
        ValueError: If a key is repeated or missing.
    """
    names = _keys(keys, "item")
    found, counts = np.unique(names, return_counts=True)
    if len(found) < len(names):
        twice = found[counts > 1]
        raise ValueError(
            f"expected every item once in the catalogue, got {len(twice)} repeated keys such as "
            f"{', '.join(map(repr, twice[:3].tolist()))}; remove the repeats."
        )
    return names


def rows_of_keys(known: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Index of each wanted key among the known keys.

    Raises:
        ValueError: If one is not among them, or they are of another type.
    """
    if len(wanted) and known.dtype.kind != wanted.dtype.kind:
        kinds = {"i": "integers", "U": "strings"}
        raise ValueError(
            f"expected item keys that are {kinds[known.dtype.kind]} as in the catalogue, got "
            f"{kinds[wanted.dtype.kind]} such as {wanted[0].item()!r}; convert one of them."
        )
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)
    rows = order[place] if len(known) else np.zeros(0, dtype=np.int64)
    unknown = np.unique(wanted[known[rows] != wanted]) if len(known) else np.unique(wanted)
    if len(unknown):
        raise ValueError(
            f"expected items of the catalogue, got {len(unknown)} unknown ones such as "
            f"{', '.join(map(repr, unknown[:3].tolist()))}; add them to the catalogue or remove their events."
        )
    return rows


def _keys(values: Any, name: str) -> np.ndarray[Any, Any]:
    """Keys as an array of int64 or strings."""
    if isinstance(values, Tensor):
        values = values.numpy()
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"expected one {name} key per row, got an array of shape {array.shape}; flatten it.")
    if array.dtype.kind == "O" and all(isinstance(each, str) for each in array):
        array = array.astype(str)
    if not len(array):
        array = array.astype(np.int64)
    if array.dtype.kind in "iu":
        if array.dtype.kind == "u" and len(array) and int(array.max()) >= 2**63:
            raise ValueError(f"expected integer {name} keys below 2^63, got {array.max()}; use strings.")
        return array.astype(np.int64)
    mixed = array.dtype.kind == "U" and isinstance(values, list | tuple) and not all(isinstance(v, str) for v in values)
    if array.dtype.kind != "U" or mixed:
        raise ValueError(
            f"expected {name} keys that are all integers or all strings, got {'both' if mixed else array.dtype}; fill "
            "missing ones and convert them."
        )
    return array


def _times(values: Any) -> np.ndarray[Any, Any]:
    """Times as numbers that can be compared exactly."""
    array = np.asarray(values)
    if array.dtype.kind == "M":
        missing = np.isnat(array)
        array = array.astype(np.int64)  # in the array's own unit; nanoseconds end in 2262
    elif array.dtype.kind in "iuf":
        missing = np.isnan(array) if array.dtype.kind == "f" else np.zeros(len(array), dtype=bool)
    else:
        raise ValueError(
            f"expected times as numbers or dates, such as 2026-03-01 or 2026-03-01 18:30:00, got {array[:1].tolist()}; "
            "convert them."
        )
    if missing.any():
        raise ValueError(f"expected a time for every event, got {int(missing.sum())} without; remove these events.")
    return array


def _first_of_equal(columns: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """True at the first of equal rows."""
    order = np.lexsort(tuple(reversed(columns)))  # stable, so the first of equal rows stays the first
    same = np.logical_and.reduce([each[order[1:]] == each[order[:-1]] for each in columns])
    first = np.ones(len(order), dtype=bool)
    first[order[1:]] = ~same
    return first


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
