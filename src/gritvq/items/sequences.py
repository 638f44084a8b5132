"""Batches of histories for training recommenders, a pure function of (seed, step)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gritvq.component import check_integer
from gritvq.distributed import EndlessOrder, process_number
from gritvq.items.interactions import Histories, Split

__all__ = ["SequenceData"]

_POOL = 32  # batches that are sorted by length together


class SequenceData:
    """Training and validation batches for a recommender, from a leave-one-out split.

    A training batch is B `Histories`, which the model pads. With ``every_prefix`` there is one history per event except
    a user's first: the event and up to ``max_history`` events before it (sliding-window augmentation, as in TIGER).
    Without it there is one per user: a random window of ``max_history`` + 1 events. The loader is endless and starts at
    the run's step; with several processes each takes its part of one global order. Histories of similar length share a
    batch. Validation batches are pairs of histories and targets (B,).

    Args:
        split: The data.
        every_prefix: The backbone's attribute of that name.
        batch_size: Histories B per step and process.
        max_history: Largest number of items before the last one.
        num_validation: Users in validation, a fixed sample; all if there are fewer.
        seed: Seed of order, windows and sample, >= 0.

    Raises:
        ValueError: If a number is out of range, or no user has two events to train on.

    Example:
        >>> histories = Histories.of([[1, 2, 3], [4, 5]])
        >>> split = Split(histories, torch.tensor([0]), torch.tensor([6]), torch.tensor([7]), 8, 1)
        >>> data = SequenceData(split, every_prefix=True, batch_size=3)
        >>> data.rows_per_epoch, [history.tolist() for history in data.batch(0)]
        (3, [[4, 5], [4, 5], [1, 2]])
    """

    def __init__(
        self,
        split: Split,
        *,
        every_prefix: bool,
        batch_size: int = 256,
        max_history: int = 20,
        num_validation: int = 2000,
        seed: int = 0,
    ) -> None:
        for name, got in (("batch_size", batch_size), ("max_history", max_history), ("num_validation", num_validation)):
            check_integer(name, got, hint=f"give a larger {name}")
        check_integer("seed", seed, 0, "give another one")
        self.split, self.every_prefix, self.batch_size, self.seed = split, every_prefix, batch_size, seed
        self.max_history, self.num_validation = max_history, num_validation
        lengths = split.train.lengths
        owners = torch.arange(len(lengths)).repeat_interleave(lengths)
        places = torch.arange(len(owners)) - split.train.offsets[:-1][owners]
        if every_prefix:
            ends = (places > 0).nonzero()[:, 0]
            starts = torch.maximum(ends - max_history, split.train.offsets[:-1][owners[ends]])
            self._first, self._last = starts, starts
            self._count = ends - starts + 1
        else:
            users = (lengths > 1).nonzero()[:, 0]
            self._count = lengths[users].clamp(max=max_history + 1)
            self._first = split.train.offsets[:-1][users]
            self._last = self._first + lengths[users] - self._count
        self._sorted = ((-1, 0), np.empty(0, dtype=np.int64))  # the current pool
        if not len(self._count):
            raise ValueError("expected a user with at least 2 training events, got none; collect more events")
        self._order = EndlessOrder(len(self._count), seed)

    @property
    def rows_per_epoch(self) -> int:
        """Number of training histories in an epoch."""
        return len(self._count)

    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[Histories]:
        """Endless batches; each iteration starts at the step that ``first_step`` returns."""
        return DataLoader(_Stream(self.batch, first_step), batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[tuple[Histories, Tensor]]:
        """Histories and targets (B,) of the sampled users, in a fixed order."""
        users = torch.from_numpy(np.random.default_rng([self.seed, 3]).permutation(len(self.split.users)))
        users = users[: self.num_validation].sort().values
        pairs = _Fixed(self.split.validation_inputs[users], self.split.validation[users])
        return DataLoader(pairs, batch_size=None, generator=torch.Generator())

    def batch(self, step: int) -> Histories:
        """This rank's histories of batch ``step``."""
        rank, world = process_number()
        size = world * self.batch_size
        pool, place = divmod(step, _POOL)
        if self._sorted[0] != (pool, size):
            rows = self._order[pool * _POOL * size : (pool + 1) * _POOL * size]
            self._sorted = ((pool, size), rows[np.argsort(self._count.numpy()[rows], kind="stable")])
        rows = self._sorted[1]
        start = int(np.random.default_rng([self.seed, 2, pool]).permutation(_POOL)[place]) * size
        own = torch.from_numpy(rows[start + rank : start + size : world])
        share = torch.from_numpy(np.random.default_rng([self.seed, 1, step]).random(size)[rank::world])
        first = self._first[own] + (share * (self._last[own] - self._first[own] + 1)).long()
        return self.split.train.pieces(first, self._count[own])


class _Stream(IterableDataset[Histories]):
    """Endless batches from a step on."""

    def __init__(self, batch: Callable[[int], Histories], first_step: Callable[[], int]) -> None:
        self.batch, self.first_step = batch, first_step

    def __iter__(self) -> Iterator[Histories]:
        return map(self.batch, itertools.count(self.first_step()))


class _Fixed(Dataset[tuple[Histories, Tensor]]):
    """Blocks of users with their targets."""

    def __init__(self, histories: Histories, targets: Tensor, block: int = 128) -> None:
        self.histories, self.targets, self.block = histories, targets, block

    def __len__(self) -> int:
        return -(-len(self.targets) // self.block)

    def __getitem__(self, number: int) -> tuple[Histories, Tensor]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        some = slice(number * self.block, (number + 1) * self.block)
        return self.histories[some], self.targets[some]
