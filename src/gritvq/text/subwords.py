"""Subwords: text into integers and back, by a vocabulary of the package ``tokenizers``."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gritvq.component import check_integer
from gritvq.lazy import optional

__all__ = ["Subwords"]

_BYTES = 256  # smallest vocabulary of a byte-level encoding
_FILE = "tokenizer.json"
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs
_LONG = re.compile(r"(\S{1000})(?=\S)")  # a word that would take the training hours
_PROBE = "\u2603"  # a character that few vocabularies know


class Subwords:
    """Text into subword ids and back.

    A byte-level vocabulary, which :meth:`train` makes, has all 256 bytes: every text can be encoded, whatever its
    language, and comes back exactly. Other vocabularies may know fewer characters, and normalize spaces or case.

    Args:
        definition: A vocabulary as JSON, as the package ``tokenizers`` writes it (``tokenizer.json``).

    Attributes:
        definition: The same.
        size: Number of ids 0, 1, ... up to the largest; those that a vocabulary leaves out are read as nothing.

    Raises:
        ValueError: If it is not such a definition.

    Example:
        >>> subwords = Subwords.train(["a text, a text, and a test"], 260)
        >>> subwords.size, subwords.decode(subwords.encode(["any text ä"])[0])
        (260, 'any text ä')
    """

    def __init__(self, definition: str) -> None:
        tokenizers = optional("tokenizers", "text")
        try:
            self._encoding: Any = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the package raises plain exceptions
            raise ValueError(
                f"expected a vocabulary as the package tokenizers writes it, got something else ({error}); see "
                f"{_FILE} of a saved one"
            ) from error
        self._encoding.no_truncation()
        self._encoding.no_padding()
        self.definition = str(self._encoding.to_str())
        self.size = 1 + max(self._encoding.get_vocab().values(), default=-1)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 4096) -> Subwords:
        """Byte-level byte-pair encoding of the texts.

        Args:
            texts: Anything, read once. Characters without white space count as words of 1,000, since time grows with
                the square of a word's length.
            vocab_size: Number of ids, at least 256 for the bytes; fewer come out where the texts have fewer pairs that
                occur twice.

        Raises:
            ValueError: If the size is too small.

        References:
            Sennrich et al., Neural machine translation of rare words with subword units, ACL 2016, arXiv 1508.07909;
            bytes and the splitting into words are those of GPT-2 (Radford et al., 2019).
        """
        check_integer("vocab_size", vocab_size, _BYTES, "a byte-level vocabulary has all 256 bytes")
        tokenizers = optional("tokenizers", "text")
        encoding = tokenizers.Tokenizer(tokenizers.models.BPE())
        encoding.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        encoding.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        encoding.train_from_iterator((_LONG.sub(r"\1\n", encodable(text)) for text in texts), trainer)
        return cls(encoding.to_str())

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Subwords:
        """A saved vocabulary.

        Args:
            source: A file ``tokenizer.json``, a folder with one or with another vocabulary of ``transformers``, or the
                name of one on the Hugging Face Hub.

        Raises:
            ValueError: If there is none, it is damaged, or it drops characters that it does not know: one without all
                bytes needs a token for them.
        """
        try:
            loaded = cls(_definition(source))
        except Exception as error:  # either package raises whatever it likes
            if isinstance(error, ValueError) and "pip install" in str(error):
                raise
            raise ValueError(
                f"expected a vocabulary in {str(source)!r}, got none that can be read ({error}); give a {_FILE}, a "
                "folder with one, the name of one on the Hub, or a size to train a new one"
            ) from error
        try:
            told = "drops them" if not loaded.encode([f"{_PROBE} {_PROBE}"])[0] else ""
        except ValueError as error:
            told = str(error)
        if told:
            raise ValueError(
                f"expected a vocabulary with a token for unknown characters, or with all bytes, got {str(source)!r}, "
                f"which has neither ({told}); text would be lost, so give another one"
            )
        return loaded

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``tokenizer.json`` for other programs; nothing of ours needs it."""
        Path(path).write_text(json.dumps(json.loads(self.definition), indent=1, ensure_ascii=False), encoding="utf-8")
        return Path(path)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; half of a surrogate pair, which is no character, becomes U+FFFD.

        Raises:
            ValueError: If the vocabulary has no id for something.
        """
        try:
            found = self._encoding.encode_batch([encodable(text) for text in texts], add_special_tokens=False)
        except Exception as error:  # the package raises plain exceptions
            raise ValueError(
                f"expected text that the vocabulary knows, got other text ({error}); take a vocabulary of bytes"
            ) from error
        return [each.ids for each in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: If an id is out of range.
        """
        if wrong := [number for number in ids if not 0 <= number < self.size]:
            raise ValueError(f"expected ids 0 .. {self.size - 1}, got {wrong[0]}; are they of another vocabulary?")
        return str(self._encoding.decode(list(ids), skip_special_tokens=False))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the definition, in hexadecimal."""
        return hashlib.sha256(self.definition.encode()).hexdigest()


def encodable(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which have no UTF-8."""
    return _HALVES.sub("\ufffd", text)


def _definition(source: str | os.PathLike[str]) -> str:
    """The text of ``tokenizer.json`` of a file, a folder or a name on the Hub."""
    path = Path(source)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if (path / _FILE).is_file():
        return (path / _FILE).read_text(encoding="utf-8")
    if path.is_dir():
        reader = optional("transformers", "text").AutoTokenizer
        loaded = reader.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return str(loaded.backend_tokenizer.to_str())
    if str(source).startswith((".", "/", "~")) or path.suffix == ".json":
        raise FileNotFoundError("no such file or folder")
    return str(optional("tokenizers", "text").Tokenizer.from_pretrained(str(source)).to_str())
