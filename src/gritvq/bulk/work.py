"""Work: what is encoded, cut into shards, and the tokens of each shard, a pure function of it.

So a shard has the same tokens whichever process makes them, and may be made again at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gritvq.tokenizer import Tokenizer
from gritvq.tokens import TokenRow

__all__ = ["Shard", "Work", "bits_per_token", "count", "digest_of"]

ROWS = 1024  # of a shard, if the caller does not say


class Shard(NamedTuple):
    """Samples whose tokens form one file.

    Attributes:
        number: Number of the shard.
        first: Number of its first sample in all data.
        samples: The samples, or their numbers.
    """

    number: int
    first: int
    samples: Sequence[Any]


class Work(ABC):
    """A data set and the tokenizer that encodes it; what a process needs to encode any shard, so it can be pickled.

    Args:
        tokenizer: Any; it is folded, so that codes are made once.
        data: What the data is called in messages.
        batch_size: Samples that are computed together, at most.

    Attributes:
        fingerprint: That of the tokenizer before it was folded.
        num_samples: Number of samples in all shards; None if only reading shows it.
        wanted: What is expected in the data, and what is there if no sample is, in words.
    """

    num_samples: int | None = None
    wanted: tuple[str, str]

    def __init__(self, tokenizer: Tokenizer, data: str, batch_size: int = 64) -> None:
        self.fingerprint = tokenizer.fingerprint()
        self.tokenizer: Any = tokenizer.fold()
        self.data, self.batch_size = data, batch_size

    def __getstate__(self) -> dict[str, Any]:
        """With the tokenizer as its saved files; modules of other packages need not survive pickling."""
        own = {type(part).__module__.split(".")[0] for part in self.tokenizer.modules()}
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return {**self.__dict__, "tokenizer": (files, sorted(own - {"gritvq"}))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        files, trusted = state["tokenizer"]
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            self.__dict__.update(state, tokenizer=Tokenizer.from_pretrained(folder, trusted))

    @abstractmethod
    def shards(self, rows: int) -> Iterator[Shard]:
        """The shards, one after the other: always the same, each of at most so many rows."""

    @abstractmethod
    def rows(self, shard: Shard, progress: Callable[[int], object] = int) -> Iterator[TokenRow]:
        """The tokens of a shard; ``progress`` is called with the number of samples that are done."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What besides data and tokenizer determines the tokens, as plain values by name."""

    @abstractmethod
    def digest(self) -> str:
        """A digest of the data that changes with it: of names, sizes and times of its files, or what else tells it."""

    def plan(self, rows: int) -> dict[str, Any]:
        """What determines the tokens of all shards, as plain values."""
        settings = {"rows_per_file": rows, "batch_size": self.batch_size, **self.settings()}
        plan = {"tokenizer": self.fingerprint, "data": self.digest(), "settings": settings}
        return dict(json.loads(json.dumps(plan)))

    def empty(self) -> ValueError:
        """What is wrong if there is no sample."""
        wanted, got = self.wanted
        return ValueError(f"expected {wanted} in {self.data}, got {got}; nothing was written")

    def to(self, device: torch.device | str) -> Work:
        """Move the tokenizer; returns the work itself."""
        self.tokenizer = self.tokenizer.to(device)
        return self


def numbered(count: int, size: int) -> Iterator[Shard]:
    """Shards of so many numbers."""
    for number, start in enumerate(range(0, count, size)):
        yield Shard(number, start, range(start, min(start + size, count)))


def digest_of(files: Iterable[tuple[str, Path]], *more: Any) -> str:
    """SHA-256 of the names below their folder, sizes and times of change of files, and of more plain values."""
    digest = hashlib.sha256(json.dumps(more).encode())
    for name, path in files:
        state = path.stat()
        digest.update(os.fsencode(name) + f"\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def count(rows: Iterable[TokenRow], counts: Counter[str]) -> Iterator[TokenRow]:
    """The rows as they are, counted: samples, labels, pixels, characters, token positions, codes of each channel."""
    for row in rows:
        there = row.tokens >= 0
        own = {"samples": 1, "positions": int(there.any(-1).sum())}
        own |= {f"channel {q}": int(n) for q, n in enumerate(there.reshape(-1, there.shape[-1]).sum(0))}
        height, width, characters = (row.columns.get(name) for name in ("height", "width", "characters"))
        if isinstance(height, int) and isinstance(width, int):
            own["pixels"] = height * width
        if isinstance(characters, int):
            own["characters"] = characters
        own["labels"] = int(row.columns.get("label") is not None)
        counts.update(own)
        yield row


def bits_per_token(counts: Mapping[str, int], codebook_sizes: Sequence[int]) -> float:
    """Bits at fixed length per token position, of what :func:`count` has counted; NaN without tokens.

    Example:
        >>> rows = [TokenRow("a", torch.tensor([[3, 1], [2, -1]]))]
        >>> counts: Counter[str] = Counter()
        >>> _ = list(count(rows, counts))
        >>> bits_per_token(counts, (16, 4))
        5.0
    """
    if not counts.get("positions"):
        return math.nan
    bits = sum(counts.get(f"channel {q}", 0) * math.log2(size) for q, size in enumerate(codebook_sizes))
    return bits / counts["positions"]
