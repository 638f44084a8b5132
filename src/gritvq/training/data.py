"""Training data, and its wrapper for Lightning."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from gritvq.distributed import process_number
from gritvq.training.task import Task

__all__ = ["DataModule", "TrainingData", "own_share"]


class TrainingData(Protocol):
    """Loaders for training and validation: :class:`gritvq.images.ImageData`, :class:`gritvq.items.SequenceData`."""

    def train_dataloader(self, first_step: Callable[[], int] = ...) -> DataLoader[Any]:
        """Endless batches; each iteration starts at the step that ``first_step`` returns."""

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches in a fixed order."""


class DataModule(LightningDataModule):
    """Training data as a Lightning module; batches start at the task's step, so that a run resumes bitwise.

    :func:`gritvq.training.train` applies it to its data; use it to fit a :class:`~gritvq.training.Task` with your own
    ``Trainer``.

    Args:
        data: The training data.

    Example:
        >>> from gritvq.images import ImageData
        >>> module = DataModule(ImageData("photographs", size=16, batch_size=2))
        >>> next(iter(module.train_dataloader())).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, data: TrainingData) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless batches from the task's current step, or from step 0 without a trainer."""
        return self.data.train_dataloader(self._first_step)

    def val_dataloader(self) -> DataLoader[Any]:
        """This process's share of the validation batches (:func:`own_share`)."""
        return own_share(self.data.val_dataloader())

    def _first_step(self) -> int:
        if self.trainer is None:
            return 0
        task = cast(Task, self.trainer.lightning_module)
        return task.step * task.accumulate


def own_share(loader: DataLoader[Any]) -> DataLoader[Any]:
    """This process's share of a loader with a fixed order: with R processes every R-th sample.

    Where the data set makes whole batches, every R-th batch. No sample is repeated to make the shares equal, as
    PyTorch's ``DistributedSampler`` does, so sums over all processes are those of one process; a share may be empty.
    The loader itself if there is one process, or if its data set is iterable.

    Example:
        >>> loader = DataLoader(range(5), batch_size=2)
        >>> own_share(loader) is loader
        True
    """
    rank, world = process_number()
    if world == 1 or isinstance(loader.dataset, IterableDataset):
        return loader
    by_batch = loader.batch_size is None and loader.batch_sampler is not None
    samples: Any = loader.batch_sampler if by_batch else loader.sampler
    share = _Share(samples, rank, world)
    how: dict[str, Any] = {"batch_sampler" if by_batch else "sampler": share}
    if not by_batch:
        how |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    kind = DataLoader if len(samples) >= world else _Unmeasured
    found = kind(
        loader.dataset,
        **how,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
    )
    vars(found)["sampler"] = share  # beside a batch sampler nobody uses it, but Lightning looks at it
    return found


class _Unmeasured(DataLoader[Any]):
    """A loader that does not tell its length: Lightning leaves out a whole validation where it is zero."""

    def __len__(self) -> int:
        raise TypeError("this share may be empty")


class _Share(DistributedSampler[Any]):
    """Every R-th of what a sampler gives; of a class that Lightning does not divide once more."""

    def __init__(self, whole: Any, rank: int, world: int) -> None:
        super().__init__(whole, num_replicas=world, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(cast("Iterable[Any]", self.dataset)), self.rank, None, self.num_replicas)

    def __len__(self) -> int:
        return len(range(self.rank, len(cast("list[Any]", self.dataset)), self.num_replicas))
