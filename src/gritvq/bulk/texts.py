"""Texts as work: documents, read one after the other and handed out with their shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from gritvq.bulk.work import Shard, Work, digest_of
from gritvq.text.corpus import Corpus, Document
from gritvq.text.tokenizer import TextTokenizer
from gritvq.tokens import TokenRow

__all__ = ["TextWork"]

_CHARACTERS = 2**23  # of a shard, which is in memory as a whole: about 16 MB


class TextWork(Work):
    """Documents, a row for each, named by its number.

    Args:
        tokenizer: The tokenizer.
        corpus: The documents.
        batch_size: Documents that are computed together, at most.
    """

    wanted = "text", "none or white space alone"

    def __init__(self, tokenizer: TextTokenizer, corpus: Corpus, batch_size: int = 64) -> None:
        super().__init__(tokenizer, corpus.path, batch_size)
        self.corpus = corpus

    def shards(self, rows: int) -> Iterator[Shard]:
        """Documents with their places; also fewer than so many rows, if they are long."""
        held: list[tuple[Document, str]] = []
        number = first = size = 0
        for document, place in self.corpus.with_places():
            held.append((document, place))
            size += _length(document)
            if len(held) >= rows or size >= _CHARACTERS:
                yield Shard(number, first, held)
                number, first, held, size = number + 1, first + len(held), [], 0
        if held:
            yield Shard(number, first, held)

    def settings(self) -> Mapping[str, Any]:
        """How files are read."""
        return asdict(self.corpus.reading)

    def digest(self) -> str:
        """Of the files, or of the version of Python, or of name and size of a Hub data set."""
        return digest_of(self.corpus.paths(), self.corpus.origin())

    def rows(self, shard: Shard, progress: Callable[[int], object] = int) -> Iterator[TokenRow]:
        """A row for each document."""
        for start in range(0, len(shard.samples), self.batch_size):
            group = shard.samples[start : start + self.batch_size]
            tokens = self.tokenizer.encode([document for document, _ in group])
            for number, ((document, place), own) in enumerate(zip(group, tokens, strict=True), shard.first + start):
                columns = {"source": place, "characters": _length(document), "tokenizer": self.fingerprint}
                yield TokenRow(f"{number:06}", own.cpu(), columns)
            progress(len(group))

    def __getstate__(self) -> dict[str, Any]:
        """Without the corpus: shards come with their documents."""
        return {**super().__getstate__(), "corpus": None}


def _length(document: Document) -> int:
    """Characters of a document."""
    return sum(map(len, [document] if isinstance(document, str) else document))
