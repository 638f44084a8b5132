"""Training batches of tokens and classes from token files, a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gritvq.component import check_integer
from gritvq.distributed import EndlessOrder, process_number
from gritvq.tokens import TokenRow, iter_tokens, token_files

__all__ = ["TokenBatch", "TokenData"]

_log = logging.getLogger("gritvq")

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class TokenBatch(NamedTuple):
    """A batch of samples.

    Attributes:
        indices: (B, *tokens, Q), int64.
        condition: Classes (B,), int64; None if there are none.
    """

    indices: Int[Tensor, "B *tokens Q"]
    condition: Int[Tensor, " B"] | None


class TokenData:
    """Batches for a prior from token files, which ``gritvq encode`` and :func:`gritvq.tokens.write_tokens` write.

    The files are read once, row by row, into a memory-mapped temporary file of 4 bytes per token; memory holds a few
    numbers per row. The training loader is endless, starts at the step of the run, and has every row once per epoch in
    random order. With several processes each takes its part of one global order. The index -1 stands for a channel that
    a position does not have, as in hierarchical tokens, and is at the same places in all rows.

    Args:
        train: Training files: a file, several, or a folder of files.
        validation: Validation files. If None, random rows are held out. Rows whose names are equal up to ``#`` stay
            together: they are views of one sample (crops, flips), which must not be on both sides. Validation files
            with samples of the training files, of the same name up to ``#`` (of texts the same ``source``), are
            refused if at least half of them have the same tokens too; otherwise a warning names them. Names that are
            numbers say nothing.
        batch_size: Samples B per step and process.
        label: Column of the class, text or integers >= 0; None for no classes.
        num_validation: Number of validation rows, drawn at random from ``validation``, whose files may be in the order
            of the classes; of the training files at most a tenth of all. Besides them, those that stay with them.
        seed: Seed of the order and of the held-out rows, >= 0.
        length: Most positions of a sample of a ragged layout, whose tokens are sequences (T, Q) of any length T; token
            files have no empty ones. Shorter ones get -1 at their end, longer ones become several samples of ``length``
            positions, the last of them perhaps shorter, which stay together. None: all samples have one shape.
        check: Called with each row and its file; raises a ValueError for rows that are of no use, for example those of
            another tokenizer.

    Attributes:
        classes: Names of the classes 0, 1, ...; None if the first row has no label.
        shape: (*tokens, Q) of a sample.
        largest: Largest index of each channel in all rows.

    Raises:
        ValueError: If a file is missing or damaged, samples differ in shape, labels are missing or invalid, a
            validation sample is also a training sample, or a number is out of range.

    Example:
        >>> from gritvq.tokens import write_tokens
        >>> rows = (TokenRow(f"{n}", torch.full((2, 1), n), {"label": "cat"}) for n in range(5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = TokenData(write_tokens(f"{folder}/t.npz", rows), batch_size=3, num_validation=1)
        >>> data.batch(0).indices.shape, data.batch(0).condition.tolist(), data.num_rows
        (torch.Size([3, 2, 1]), [0, 0, 0], 4)
    """

    def __init__(
        self,
        train: Paths,
        validation: Paths | None = None,
        *,
        batch_size: int = 64,
        label: str | None = "label",
        num_validation: int = 2000,
        seed: int = 0,
        length: int | None = None,
        check: Callable[[TokenRow, Path], object] | None = None,
    ) -> None:
        self.batch_size, self.seed = check_integer("batch_size", batch_size), check_integer("seed", seed, 0)
        check_integer("num_validation", num_validation)
        if length is not None:
            check_integer("length", length)
        self._train = _Rows(train, label, length, check)
        self.shape, self.largest = self._train.shape, self._train.largest
        held = self._train if validation is None else _Rows(validation, label, length, check)
        if validation is not None:
            _check_apart(self._train, held, _files(validation))
        if held.shape != self.shape:
            raise ValueError(
                f"expected validation samples {self.shape} as in training, got {held.shape}; encode both alike"
            )
        if not torch.equal(held.missing, self._train.missing):
            raise ValueError("expected validation samples without the same channels as in training; encode both alike")
        self.largest = np.maximum(self.largest, held.largest)
        self.classes = _classes_of(self._train, held)
        for rows in (self._train, held):
            rows.number(self.classes)
        self._held = held
        most = num_validation if validation is not None else min(num_validation, max(1, len(held) // 10))
        is_held = held.drawn(most, seed)
        if validation is None and is_held.all():
            raise ValueError(
                f"expected tokens of at least two samples, one of them to hold out for validation, got {len(held)} "
                "rows of one; give validation files, or more samples"
            )
        self._held_rows = np.flatnonzero(is_held)
        self._rows = np.flatnonzero(~is_held) if validation is None else np.arange(len(self._train))
        self._order = EndlessOrder(len(self._rows), seed)

    @property
    def num_rows(self) -> int:
        """Number of training rows."""
        return len(self._rows)

    @property
    def num_held_out(self) -> int:
        """Number of validation samples, of which those that are parts of one sequence count once."""
        return int(self._held.begins[self._held_rows].sum())

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None if there are none."""
        return None if self.classes is None else len(self.classes)

    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[TokenBatch]:
        """Endless batches, each iteration from the step on that ``first_step`` says."""
        return DataLoader(_Stream(self.batch, first_step), batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """Validation batches, in a fixed order."""
        blocks = _Blocks(self._held, self._held_rows, self.batch_size)
        return DataLoader(blocks, batch_size=None, generator=torch.Generator())

    def batch(self, step: int) -> TokenBatch:
        """This rank's samples of batch ``step``."""
        rank, world = process_number()
        size = world * self.batch_size
        return self._train[self._rows[self._order[step * size : (step + 1) * size][rank::world]]]


class _Rows:
    """Tokens of all rows in a temporary file, and their labels."""

    def __init__(
        self,
        paths: Paths,
        label: str | None,
        length: int | None,
        check: Callable[[TokenRow, Path], object] | None,
    ) -> None:
        files = _files(paths)
        self.length = length
        self.shape: tuple[int, ...] = ()
        self.missing = torch.zeros((), dtype=torch.bool)  # which indices no sample has
        self.largest = np.zeros((), dtype=np.int64)
        self.labels: list[str | int] | None = None
        count, samples, origins, begins = 0, array("Q"), array("Q"), array("B")
        with tempfile.TemporaryFile() as scratch:  # the memory map keeps it until nothing reads it any more
            for file in files:
                for row in iter_tokens(file):
                    if check is not None:
                        check(row, file)
                    parts = self._check(row, file, label, count == 0)
                    self.largest = np.maximum(self.largest, parts.flatten(0, -2).amax(0).numpy())
                    scratch.write(parts.numpy().astype(np.int32).tobytes())
                    samples.extend(len(parts) * [_sample_of(row)])
                    origins.extend(len(parts) * [_origin_of(row)])
                    begins.extend([1] + (len(parts) - 1) * [0])
                    count += len(parts)
            scratch.flush()
            self._tokens = np.memmap(scratch, np.int32, "r", shape=(count, *self.shape))
        self.samples = np.array(samples, dtype=np.uint64)  # which sample each row is a view of
        self.origins = np.array(origins, dtype=np.uint64)  # which sample it is in any files
        self.begins = np.array(begins, dtype=bool)  # whether it is the first part of a sequence
        self._numbers: np.ndarray | None = None

    def digests(self, origins: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Origin and a digest of the tokens of each row of these origins."""
        for row in np.flatnonzero(np.isin(self.origins, origins)).tolist():
            tokens = hashlib.blake2b(np.ascontiguousarray(self._tokens[row]).tobytes(), digest_size=16)
            yield int(self.origins[row]), tokens.digest()

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, rows: np.ndarray) -> TokenBatch:
        indices = torch.from_numpy(self._tokens[rows].astype(np.int64))
        return TokenBatch(indices, None if self._numbers is None else torch.from_numpy(self._numbers[rows]))

    def drawn(self, num: int, seed: int) -> np.ndarray:
        """Which rows are those of random samples, as many as have ``num`` rows together, or a few more."""
        _, samples, sizes = np.unique(self.samples, return_inverse=True, return_counts=True)
        order = np.random.default_rng([seed, 1]).permutation(len(sizes))
        before = np.cumsum(sizes[order]) - sizes[order]
        return np.isin(samples, order[before < num])

    def number(self, classes: Sequence[str | int] | None) -> None:
        """Labels as numbers of classes."""
        if classes is not None and self.labels is not None:
            place = {name: number for number, name in enumerate(classes)}
            self._numbers = np.array([place[name] for name in self.labels], dtype=np.int64)
        self.labels = None

    def _check(self, row: TokenRow, file: Path, label: str | None, is_first: bool) -> Int[Tensor, "N *tokens Q"]:
        """Note the label of a row; returns its samples, which are several for a long sequence only.

        Raises:
            ValueError: If the row is not like the first.
        """
        found = None if label is None else row.columns.get(label)
        shape, samples = tuple(row.tokens.shape), row.tokens[None]
        if self.length is not None and len(shape) == 2:
            parts = row.tokens.split(self.length)
            samples = torch.stack([F.pad(part, (0, 0, 0, self.length - len(part)), value=-1) for part in parts])
            shape = tuple(samples.shape[1:])
        if is_first:
            self.shape = shape
            self.labels = None if found is None else []
        if shape != self.shape or (self.length is not None and len(shape) != 2):
            wanted = f"of one shape {self.shape}" if self.length is None else "(T, Q) of one number Q of channels"
            raise ValueError(
                f"expected samples {wanted}, got {tuple(row.tokens.shape)} of {row.name!r} in {file}; "
                f"encode {'pictures of one size' if self.length is None else 'sequences, with one tokenizer'}"
            )
        missing = row.tokens < 0
        if is_first and self.length is None:
            self.missing = missing
        unlike = bool(missing.any()) if self.length is not None else not torch.equal(missing, self.missing)
        if unlike or bool(((row.tokens < -1) | (row.tokens >= 2**31)).any()):
            raise ValueError(
                "expected indices 0 .. 2^31 - 1, and -1 only for channels that a position does not have in any sample, "
                f"got others in {row.name!r} of {file}; leave out masked samples"
            )
        if (found is None) != (self.labels is None):
            raise ValueError(
                f"expected a column {label!r} in all rows or in none, got {row.name!r} of {file}, which differs from "
                "the first row; give label null to learn without classes"
            )
        if self.labels is not None:
            if isinstance(found, float) and found.is_integer():
                found = int(found)  # a column that held both
            if (
                isinstance(found, float)
                or not isinstance(found, str | int)
                or (not isinstance(found, str) and found < 0)
            ):
                raise ValueError(f"expected text or integers >= 0 in the column {label!r}, got {found!r} in {file}")
            self.labels.extend(len(samples) * [found])
        return samples


class _Stream(IterableDataset[TokenBatch]):
    """Batches from a step on, for ever."""

    def __init__(self, batch: Callable[[int], TokenBatch], first_step: Callable[[], int]) -> None:
        self.batch, self.first_step = batch, first_step

    def __iter__(self) -> Iterator[TokenBatch]:
        step = self.first_step()
        while True:
            yield self.batch(step)
            step += 1


class _Blocks(Dataset[TokenBatch]):
    """Rows in blocks."""

    def __init__(self, rows: _Rows, chosen: np.ndarray, size: int) -> None:
        self.rows, self.chosen, self.size = rows, chosen, size

    def __len__(self) -> int:
        return -(-len(self.chosen) // self.size)

    def __getitem__(self, number: int) -> TokenBatch:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.rows[self.chosen[number * self.size : (number + 1) * self.size]]


def _files(paths: Paths) -> list[Path]:
    """Files of tokens, those of folders by name.

    Raises:
        ValueError: If a folder has none.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = [file for path in given for file in token_files(path)]
    if not found:
        raise ValueError("expected at least one token file, got none; give a file or a folder of files")
    return found


def _digest(text: str) -> int:
    """A number of 64 bits that is another one for another text."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _sample_of(row: TokenRow) -> int:
    """What views of one sample have in common: the name up to ``#``."""
    return _digest(row.name.partition("#")[0])


def _origin_of(row: TokenRow) -> int:
    """What a sample is known by in any files: its source, which ``encode`` notes of texts, or its name up to ``#``.

    0 if it is not known: without a source a name that is a number says nothing, since rows of any files are counted.
    """
    if (source := row.columns.get("source")) is not None:
        return _digest(str(source))
    return 0 if row.name.partition("#")[0].isdigit() else _sample_of(row)


def _check_apart(train: _Rows, held: _Rows, files: Sequence[Path]) -> None:
    """Check that no validation sample is also a training sample, by names and tokens.

    Equal names alone may be those of different pictures in two folders, or of one picture cut in different ways. They
    are reported, and refused if half of them have equal tokens too: a few simple pictures may be alike by chance.

    Raises:
        ValueError: If samples have names and tokens of training; the message names the first in the files.
    """
    shared = np.setdiff1d(np.intersect1d(train.origins, held.origins), [0])
    if not len(shared):
        return
    wanted = set(shared.tolist())
    known = set(train.digests(shared))
    leaked = {origin for origin, tokens in held.digests(shared) if (origin, tokens) in known}
    refused = 2 * len(leaked) >= len(shared)
    sought = leaked if refused else wanted
    rows = ((row, file) for file in files for row in iter_tokens(file))
    name, place = next((row.name, file) for row, file in rows if _origin_of(row) in sought)
    if not refused:
        _log.warning(
            "%d validation samples have names of training samples, %r of %s first; if they are the same samples, not "
            "others of equal names, they were trained on: leave validation out to hold out random rows",
            len(shared),
            name,
            place,
        )
        return
    raise ValueError(
        f"expected validation samples that are not in training, got {name!r} of {place} in both, with the same tokens, "
        f"and {len(leaked) - 1:,} more; leave validation out to hold out random rows, or encode two named splits of "
        "one folder"
    )


def _classes_of(train: _Rows, held: _Rows) -> list[str | int] | None:
    """Names of classes: text sorted, or all integers up to the largest.

    Raises:
        ValueError: If only one side has labels, kinds are mixed, or a class is met in validation only.
    """
    if (train.labels is None) != (held.labels is None):
        raise ValueError("expected labels in training and validation files or in neither, got one side with labels")
    if train.labels is None or held.labels is None:
        return None
    names, others = set(train.labels), set(held.labels)
    if len({isinstance(name, str) for name in names | others}) > 1:
        raise ValueError("expected labels that are all text or all integers, got both")
    if others - names:
        raise ValueError(f"expected the classes of the training files, got {sorted(map(str, others - names))[:3]} too")
    if all(isinstance(name, str) for name in names):
        return sorted(names, key=str)
    return list(range(1 + max(int(name) for name in names)))
