"""Segments: a text as pieces with an end token each, in batches, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gritvq.component import check_integer
from gritvq.text.corpus import Document
from gritvq.text.subwords import Subwords

__all__ = ["Segmentation", "TextBatch", "TextFormat", "sentences"]

Rule = Literal["sentence", "line", "length"]
# An end of a sentence: a mark, closing quotes or brackets, then white space before anything but a small letter.
_END = re.compile(r"(?<![.!?\u2026])[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s+[^\sa-z])|(?=\n[ \t]*\n)")
_MARKS, _CLOSING = r"\u3002\uff01\uff1f", r"\u300d\u300f\u201d\u2019"
_IDEOGRAPHIC_END = re.compile(rf"(?<![{_MARKS}])[{_MARKS}]+[{_CLOSING}]*(?=[^{_MARKS}{_CLOSING}])")
_ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "e.g", "i.e", "etc", "jr", "sr"}
_BEFORE_NUMBERS = {"no", "fig", "eq", "vol", "ch", "sec"}
_LAST_WORD = re.compile(r"[(\"'\u201c\u2018\[]*([\w.]*?)\.[\"'\u201d\u2019)\]]*$")


class TextBatch(NamedTuple):
    """Documents as rows of tokens.

    Attributes:
        tokens: (B, L), int64; each segment ends with the token ``separator``, or with ``end`` if the document ends.
        segments: (B, L), int64: number of the segment that a token belongs to, 0, 1, ...; -1 behind a document.
    """

    tokens: Int[Tensor, "B L"]
    segments: Int[Tensor, "B L"]

    @property
    def valid(self) -> Bool[Tensor, "B L"]:
        """Whether there is a token."""
        return self.segments >= 0

    @property
    def num_segments(self) -> Int[Tensor, " B"]:
        """Segments of each document."""
        return self.segments.amax(1) + 1 if self.segments.shape[1] else self.segments.new_zeros(len(self.segments))

    @property
    def present(self) -> Bool[Tensor, "B T"]:
        """Whether a document has a segment, for the most segments T of a document."""
        counts = self.num_segments
        return torch.arange(int(counts.max()) if len(counts) else 0, device=counts.device) < counts[:, None]

    def to(self, device: torch.device | str, **kwargs: Any) -> TextBatch:
        """The batch on a device."""
        return TextBatch(self.tokens.to(device, **kwargs), self.segments.to(device, **kwargs))


@dataclass(frozen=True)
class Segmentation:
    """How a document is cut into segments, of which each has a latent of its own. Nothing of a text is left out.

    A segment of more than ``max_tokens`` - 1 subwords is cut into several; a document of more than ``max_segments`` is
    cut into several documents, of which only the last has the token ``end``. So one endless line is many documents.

    Args:
        by: ``"sentence"``: at ``.``, ``!``, ``?`` and their like before white space and anything but a small letter,
            except after common abbreviations and single initials, and at empty lines; ``"line"``: at line ends;
            ``"length"``: after every ``max_tokens`` - 1 subwords. White space goes to the segment behind it.
        max_tokens: Largest number of tokens of a segment, its last one, which ends it, included; at least 2.
        max_segments: Largest number of segments of a document.

    Raises:
        ValueError: If the rule is unknown or a number too small.
    """

    by: Rule = "sentence"
    max_tokens: int = 32
    max_segments: int = 8

    def __post_init__(self) -> None:
        if self.by not in get_args(Rule):
            raise ValueError(f"expected segments by {' or '.join(map(repr, get_args(Rule)))}, got {self.by!r}")
        check_integer("max_tokens", self.max_tokens, 2, "one token ends a segment")
        check_integer("max_segments", self.max_segments)

    @property
    def max_length(self) -> int:
        """Largest number of tokens of a document: ``max_tokens * max_segments``."""
        return self.max_tokens * self.max_segments


def sentences(text: str) -> list[str]:
    """Sentences of a text, each with the white space before it; together they are the text.

    Example:
        >>> sentences("Dr. No left, e.g. by boat. Did he? Yes.")
        ['Dr. No left, e.g. by boat.', ' Did he?', ' Yes.']
    """
    ends = []
    for match in (*_END.finditer(text), *_IDEOGRAPHIC_END.finditer(text)):
        word = _LAST_WORD.search(text[max(0, match.start() - 12) : match.end()])
        name = word[1].lower() if word else ""
        initial = len(name) == 1 and name.isalpha() and name != "i"
        numbered = name in _BEFORE_NUMBERS and text[match.end() : match.end() + 2].strip().isdigit()
        if match[0] and (name in _ABBREVIATIONS or initial or numbered):
            continue
        ends.append(match.end())
    return _pieces(text, sorted({end for end in ends if 0 < end < len(text)}))


def _pieces(text: str, ends: list[int]) -> list[str]:
    """A text cut at these places; pieces of white space alone are joined to the next one, or the last."""
    found, begin, last = list[str](), 0, 0
    for end in [*ends, len(text)]:
        if text[last:end].strip():
            found.append(text[begin:end])
            begin = end
        last = end
    if begin < len(text) and found:
        found[-1] += text[begin:]
    return found


class TextFormat:
    """Text into tokens of segments, and back: a vocabulary, and the rule of the segments.

    Behind the subwords 0 .. S - 1 come three tokens that no text contains: ``separator`` S ends a segment, ``end``
    S + 1 ends a document, ``start`` S + 2 is what the model reads first and never writes.

    Args:
        subwords: The vocabulary.
        segmentation: The rule.

    Attributes:
        separator: See above.
        end: See above.
        start: See above.
        vocab_size: S + 3.

    Example:
        >>> format = TextFormat(Subwords.train(["A cat. A dog."], 256), Segmentation())
        >>> batch = format.batch(["A cat. A dog.", "One."])
        >>> batch.segments[1].tolist()[:6], batch.num_segments.tolist(), format.texts(batch)
        ([0, 0, 0, 0, 0, -1], [2, 1], ['A cat. A dog.', 'One.'])
    """

    def __init__(self, subwords: Subwords, segmentation: Segmentation) -> None:
        self.subwords, self.segmentation = subwords, segmentation
        self.separator, self.end, self.start = (subwords.size + n for n in range(3))
        self.vocab_size = subwords.size + 3

    # --- text into tokens ---------------------------------------------------------------------------------------------

    def segments(self, document: Document) -> list[str]:
        """The segments as text. A list of texts has its own, which a line end joins; empty ones are no segments."""
        if isinstance(document, list):
            own = [text for text in document if text.strip()]
            return [text if number == 0 else f"\n{text}" for number, text in enumerate(own)]
        if not document.strip():
            return []
        if self.segmentation.by == "sentence":
            return sentences(document)
        if self.segmentation.by == "line":
            return _pieces(document, [match.start() for match in re.finditer("\n", document) if match.start()])
        return [document]

    def tokens(self, documents: Iterable[Document]) -> Iterator[list[list[int]]]:
        """For each document the documents that it is cut into, mostly one, each a list of tokens.

        A document without a character other than white space gives an empty list.
        """
        longest, most = self.segmentation.max_tokens - 1, self.segmentation.max_segments
        for block in _blocks(documents, 256):
            texts = [self.segments(document) for document in block]
            ids = iter(self.subwords.encode([text for own in texts for text in own]))
            for own in texts:
                each = [next(ids) for _ in own]
                cut = [part[n : n + longest] for part in each for n in range(0, len(part), longest)]
                rows = [cut[n : n + most] for n in range(0, len(cut), most)]
                found = [[token for part in row for token in (*part, self.separator)] for row in rows]
                if found:
                    found[-1][-1] = self.end
                yield found

    def batch(self, documents: Sequence[Document]) -> TextBatch:
        """A batch of whole documents.

        Raises:
            ValueError: If a document is empty, or has more segments than ``max_segments``.
        """
        rows = list(self.tokens(documents))
        for number, row in enumerate(rows):
            if len(row) != 1:
                raise ValueError(
                    f"expected a document of 1 .. {self.segmentation.max_segments} segments of at most "
                    f"{self.segmentation.max_tokens} tokens, got {'more' if row else 'an empty one'} as number "
                    f"{number}; {'cut it, see TextFormat.tokens' if row else 'leave it out'}"
                )
        return self.batch_of([row[0] for row in rows])

    def batch_of(self, rows: Sequence[Sequence[int]]) -> TextBatch:
        """A batch of documents that are tokens already."""
        length = max(map(len, rows), default=0)
        tokens = torch.full((len(rows), length), self.end)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        for target, row in zip(tokens, rows, strict=True):
            target[: len(row)] = torch.as_tensor(row, dtype=torch.int64)
        ended = ((tokens == self.separator) | (tokens == self.end)).long()
        segments = ended.cumsum(1) - ended
        behind = torch.arange(length) >= lengths[:, None]
        return TextBatch(tokens, segments.masked_fill(behind, -1))

    # --- tokens into text ---------------------------------------------------------------------------------------------

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that end segments."""
        return self.subwords.decode([token for token in tokens if token < self.subwords.size])

    def texts(self, batch: TextBatch) -> list[str]:
        """The text of each document."""
        pairs = zip(batch.tokens.tolist(), batch.valid.tolist(), strict=True)
        return [self.text([token for token, is_one in zip(row, valid, strict=True) if is_one]) for row, valid in pairs]

    # --- settings -----------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {"subwords": self.subwords.definition, "segmentation": asdict(self.segmentation)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> TextFormat:
        """The inverse of :meth:`settings`.

        Raises:
            ValueError: If something is missing or wrong.
        """
        try:
            return cls(Subwords(settings["subwords"]), Segmentation(**settings["segmentation"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"expected subwords and segmentation of a text format, got others ({error}); the file is damaged"
            ) from error


def _blocks(items: Iterable[Document], size: int) -> Iterator[list[Document]]:
    block: list[Document] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
