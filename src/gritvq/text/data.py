"""Text for training: documents as tokens, in batches that are a pure function of (seed, step)."""

from __future__ import annotations

import itertools
import tempfile
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gritvq.component import check_integer
from gritvq.distributed import EndlessOrder, process_number
from gritvq.text.corpus import DOCSTRINGS, Corpus, Document, Reading
from gritvq.text.segments import Segmentation, TextBatch, TextFormat
from gritvq.text.subwords import Subwords

__all__ = ["TextData"]

_POOL = 32  # batches that are sorted by length together


class TextData:
    r"""Batches of documents for training and validation.

    The documents are read three times: they are counted, a vocabulary is trained, and their tokens go to a
    memory-mapped temporary file of 4 bytes each; memory holds a number per document. Held out is a random sample of the
    documents, at most a tenth, which the vocabulary does not see either; of a single document, the last tenth of its
    pieces, which the vocabulary has seen. What a document becomes is said by :class:`gritvq.text.Segmentation`.

    The training loader is endless, starts at the step of the run, and has every document once per epoch in random
    order; documents of similar length share a batch. With several processes each takes its part of one global order.

    Args:
        path: Where the documents are, see :class:`gritvq.text.Corpus`; ``"docstrings"`` is on every machine.
        validation: Where held-out documents are; None holds some of ``path`` out.
        reading: How files are read.
        segmentation: How documents are cut into segments.
        vocabulary: Number of subwords of a byte-level vocabulary that is trained on the training documents, or where a
            saved one is, see :meth:`gritvq.text.Subwords.load`.
        batch_size: Documents B per step and process.
        num_validation: Most documents that are held out, or taken from ``validation``.
        seed: Seed of the order and of the held-out documents, >= 0.

    Raises:
        ValueError: If a number is out of range; from :meth:`setup`, if there is no text, or a file cannot be read.

    Example:
        >>> from gritvq.text import Reading
        >>> with tempfile.NamedTemporaryFile("w+", suffix=".txt") as file:
        ...     print("One. Two.", "Three.", "Four. Five. Six.", sep="\n", file=file, flush=True)
        ...     data = TextData(file.name, reading=Reading(unit="line"), vocabulary=256, batch_size=2)
        ...     data.num_documents, data.batch(0).tokens.shape[0], len(data.val_dataloader())
        (2, 2, 1)
    """

    def __init__(
        self,
        path: str = DOCSTRINGS,
        *,
        validation: str | None = None,
        reading: Reading = Reading(),  # noqa: B008 - frozen
        segmentation: Segmentation = Segmentation(),  # noqa: B008
        vocabulary: int | str = 4096,
        batch_size: int = 32,
        num_validation: int = 1000,
        seed: int = 0,
    ) -> None:
        self.path, self.validation, self.reading, self.segmentation = str(path), validation, reading, segmentation
        if isinstance(vocabulary, int):
            check_integer("vocabulary", vocabulary, 256, "a byte-level vocabulary has all 256 bytes")
        self.vocabulary, self.seed = vocabulary, check_integer("seed", seed, 0)
        self.batch_size = check_integer("batch_size", batch_size)
        self.num_validation = check_integer("num_validation", num_validation)
        self._found: _Found | None = None
        self._sorted = ((-1, 0), np.empty(0, dtype=np.int64))  # the current pool

    def setup(self, stage: str | None = None) -> None:
        """Reads everything; the second call does nothing.

        Args:
            stage: Ignored.

        Raises:
            ValueError: If there is no text to train on or to hold out, or a file cannot be read.
        """
        if self._found is None:
            self._found = self._read()

    @property
    def format(self) -> TextFormat:
        """Vocabulary and segmentation."""
        return self._ready().format

    @property
    def num_documents(self) -> int:
        """Training documents, as they are after cutting those with too many segments."""
        return len(self._ready().train)

    @property
    def num_tokens(self) -> int:
        """Tokens of the training documents."""
        return int(self._ready().train.lengths.sum())

    def describe(self) -> dict[str, Any]:
        """What was found, as plain values."""
        found = self._ready()
        count = {name: {"documents": len(part), "tokens": int(part.lengths.sum())} for name, part in found.parts()}
        return {"data": self.path, "vocabulary": found.format.subwords.size, "splits": count}

    def settings(self) -> dict[str, Any]:
        """The arguments that determine which documents are held out, as plain values."""
        names = ("path", "validation", "num_validation", "seed")
        return {**{name: getattr(self, name) for name in names}, "reading": asdict(self.reading)}

    def held_out(self) -> Iterator[Document]:
        """The documents that are held out, as they are read and not yet cut; the vocabulary is not needed.

        Raises:
            ValueError: If there are none, if there is a single document, of which only pieces are held out, or if a
                file cannot be read.
        """
        held = self._held(sum(1 for _ in Corpus(self.path, self.reading)) if self.validation is None else 0)
        if self.validation is None and not held:
            raise ValueError(
                f"expected two documents or more in {self.path!r}, to hold whole ones out, got fewer; of a single one "
                "the last pieces are held out in training only"
            )
        return self._held_out(held)

    def summary(self) -> str:
        """`describe` in one line."""
        said = self.describe()
        parts = [f"{name} {part['documents']:,} ({part['tokens']:,} tokens)" for name, part in said["splits"].items()]
        return f"{said['data']}: {', '.join(parts)}; {said['vocabulary']:,} subwords"

    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[TextBatch]:
        """Endless batches; each iteration starts at the step that ``first_step`` returns."""
        self.setup()
        return DataLoader(_Stream(self.batch, first_step), batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[TextBatch]:
        """The held-out documents in a fixed order."""
        found = self._ready()
        blocks = _Fixed(found.validation, found.format, self.batch_size)
        return DataLoader(blocks, batch_size=None, generator=torch.Generator())

    def batch(self, step: int) -> TextBatch:
        """This rank's part of batch ``step``."""
        found = self._ready()
        rank, world = process_number()
        size = world * self.batch_size
        pool, place = divmod(step, _POOL)
        if self._sorted[0] != (pool, size):
            rows = found.order[pool * _POOL * size : (pool + 1) * _POOL * size]
            self._sorted = ((pool, size), rows[np.argsort(-found.train.lengths[rows], kind="stable")])
        start = int(np.random.default_rng([self.seed, 2, pool]).permutation(_POOL)[place]) * size
        return found.format.batch_of([found.train[row] for row in self._sorted[1][start + rank : start + size : world]])

    def _held(self, count: int) -> frozenset[int]:
        """Numbers of the documents that are held out of so many; none of a single one."""
        order = np.random.default_rng([self.seed, 1]).permutation(count if count > 1 else 0)
        return frozenset(order[: min(self.num_validation, max(1, count // 10))].tolist())

    def _held_out(self, held: Collection[int]) -> Iterator[Document]:
        """The documents of these numbers, or the first ones of ``validation``."""
        if self.validation is not None:
            return itertools.islice(Corpus(self.validation, self.reading), self.num_validation)
        return (document for number, document in enumerate(Corpus(self.path, self.reading)) if number in held)

    def _ready(self) -> _Found:
        self.setup()
        assert self._found is not None
        return self._found

    def _read(self) -> _Found:
        corpus = Corpus(self.path, self.reading)
        count = sum(1 for _ in corpus)
        if not count:
            raise ValueError(f"expected text in {self.path!r}, got none or white space alone; add documents")
        held = self._held(count if self.validation is None else 0)

        def train_documents() -> Iterator[Document]:
            return (document for number, document in enumerate(corpus) if number not in held)

        if isinstance(self.vocabulary, str):
            subwords = Subwords.load(self.vocabulary)
        else:
            texts = itertools.chain.from_iterable(
                [document] if isinstance(document, str) else document for document in train_documents()
            )
            subwords = Subwords.train(texts, self.vocabulary)
        form = TextFormat(subwords, self.segmentation)
        train = _Rows(itertools.chain.from_iterable(form.tokens(train_documents())))
        if self.validation is not None or held:
            validation = _Rows(itertools.chain.from_iterable(form.tokens(self._held_out(held))))
        else:
            validation = train.split_off(min(self.num_validation, max(1, len(train) // 10)))
        for name, rows in (("train on", train), ("hold out", validation)):
            if not len(rows):
                place = self.validation if name == "hold out" and self.validation is not None else self.path
                raise ValueError(f"expected a document to {name}, got none in {place}; give two documents or more")
        return _Found(form, train, validation, EndlessOrder(len(train), self.seed))


class _Rows:
    """Documents as tokens in a temporary file."""

    def __init__(self, rows: Iterable[list[int]]) -> None:
        ends = array("q", [0])
        with tempfile.TemporaryFile() as scratch:  # the memory map keeps it until nothing reads it any more
            for row in rows:
                scratch.write(np.asarray(row, dtype=np.int32).tobytes())
                ends.append(ends[-1] + len(row))
            scratch.flush()
            empty = np.empty(0, dtype=np.int32)
            self._tokens = np.memmap(scratch, np.int32, "r") if ends[-1] else empty
        self._ends = np.asarray(ends, dtype=np.int64)
        self.lengths = self._ends[1:] - self._ends[:-1]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> list[int]:
        return list(map(int, self._tokens[self._ends[number] : self._ends[number + 1]]))

    def split_off(self, count: int) -> _Rows:
        """The last rows, which are no longer in this object; none if it has no other."""
        kept = max(0, len(self) - count) if len(self) > 1 else len(self)
        others = _Rows(self[number] for number in range(kept, len(self)))
        self.lengths = self.lengths[:kept]
        return others


class _Found(NamedTuple):
    format: TextFormat
    train: _Rows
    validation: _Rows
    order: EndlessOrder

    def parts(self) -> list[tuple[str, _Rows]]:
        return [("train", self.train), ("validation", self.validation)]


class _Stream(IterableDataset[TextBatch]):
    """Endless batches from a step on."""

    def __init__(self, batch: Callable[[int], TextBatch], first_step: Callable[[], int]) -> None:
        self.batch, self.first_step = batch, first_step

    def __iter__(self) -> Iterator[TextBatch]:
        return map(self.batch, itertools.count(self.first_step()))


class _Fixed(Dataset[TextBatch]):
    """Blocks of documents."""

    def __init__(self, rows: _Rows, format: TextFormat, block: int) -> None:
        self.rows, self.format, self.block = rows, format, block

    def __len__(self) -> int:
        return -(-len(self.rows) // self.block)

    def __getitem__(self, number: int) -> TextBatch:
        if not 0 <= number < len(self):
            raise IndexError(number)
        some = range(number * self.block, min(len(self.rows), (number + 1) * self.block))
        return self.format.batch_of([self.rows[row] for row in some])
