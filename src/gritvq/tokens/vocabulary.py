"""A vocabulary for sequence models: special tokens, then the indices of all channels."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from gritvq.files import replacing_files
from gritvq.lazy import optional

__all__ = ["BOS", "EOS", "PAD", "Vocabulary"]

PAD, BOS, EOS = 0, 1, 2
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}  # in the order of their numbers


class Vocabulary:
    """Tokens of all index channels in one range: PAD 0, BOS 1, EOS 2, then channel by channel.

    Index i of channel q is token ``first_tokens[q] + i`` with ``first_tokens[q] = first_token + sum(K_0 .. K_{q-1})``;
    -1, a masked index, is PAD.

    Args:
        codebook_sizes: Codes K of each channel, Q entries.
        first_token: Token of index 0 of channel 0; the tokens below it are special.

    Attributes:
        first_tokens: First token of each channel, then ``vocab_size``; Q + 1 entries.
        vocab_size: Number of tokens, including special ones.

    Raises:
        ValueError: If there is no channel, or a size is smaller than 1.

    Example:
        >>> vocabulary = Vocabulary((4, 8))
        >>> tokens = vocabulary.tokens_of(torch.tensor([[0, 7], [3, -1]]))
        >>> tokens.tolist(), vocabulary.vocab_size
        ([[3, 14], [6, 0]], 15)
        >>> vocabulary.indices_of(tokens).tolist()
        [[0, 7], [3, -1]]
    """

    def __init__(self, codebook_sizes: Sequence[int], *, first_token: int = EOS + 1) -> None:
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(
                f"expected at least one codebook size, all >= 1, got {list(codebook_sizes)}; pass the quantizer's"
            )
        self.first_tokens = tuple(itertools.accumulate(self.codebook_sizes, initial=first_token))
        self.vocab_size = self.first_tokens[-1]

    def tokens_of(
        self, indices: Int[Tensor, "*batch l"], channels: Int[Tensor, "*#batch l"] | None = None
    ) -> Int[Tensor, "*batch l"]:
        """Tokens of indices.

        Args:
            indices: Indices of the first l channels or of ``channels``; -1 if masked.
            channels: Channel of each index, broadcastable; None means 0 .. l - 1 along the last axis.
        """
        return (indices + self._of(self.first_tokens, indices, channels)).masked_fill_(indices < 0, PAD)

    def indices_of(
        self, tokens: Int[Tensor, "*batch l"], channels: Int[Tensor, "*#batch l"] | None = None
    ) -> Int[Tensor, "*batch l"]:
        """Indices of tokens; -1 for special tokens and tokens of another channel.

        Args:
            tokens: Tokens of the first l channels or of ``channels``.
            channels: As in :meth:`tokens_of`.
        """
        indices = tokens - self._of(self.first_tokens, tokens, channels)
        return indices.masked_fill_(indices >= self._of(self.codebook_sizes, tokens, channels), -1).clamp_(min=-1)

    def range_of(self, channel: int) -> slice:
        """Tokens of a channel: a slice of the last axis of logits, or of the rows of an embedding.

        Example:
            >>> torch.arange(15)[Vocabulary((4, 8)).range_of(0)]
            tensor([3, 4, 5, 6])
        """
        return slice(self.first_tokens[channel], self.first_tokens[channel + 1])

    # --- as words -----------------------------------------------------------------------------------------------------

    @property
    def words(self) -> list[str]:
        """A word for each token: ``<pad>``, ``<bos>``, ``<eos>``, then ``<c1_17>`` for index 17 of channel 1.

        Raises:
            ValueError: If ``first_token`` leaves no room for the special tokens.
        """
        first = self.first_tokens[0]
        if first <= EOS:
            raise ValueError(f"expected first_token >= {EOS + 1} for words of PAD, BOS and EOS, got {first}")
        special = [*_SPECIAL.values(), *(f"<special_{token}>" for token in range(EOS + 1, first))]
        return special + [f"<c{q}_{i}>" for q, size in enumerate(self.codebook_sizes) for i in range(size)]

    def text_of(self, tokens: Int[Tensor, "*T"]) -> str:
        """Tokens of one sequence as words with blanks between them, in row-major order.

        Raises:
            ValueError: If a token is out of range.

        Example:
            >>> Vocabulary((4, 8)).text_of(torch.tensor([[3, 14], [6, 0]]))
            '<c0_0> <c1_7> <c0_3> <pad>'
        """
        words, flat = self.words, tokens.reshape(-1).tolist()
        if wrong := [token for token in flat if not 0 <= token < len(words)]:
            raise ValueError(f"expected tokens in [0, {len(words)}), got {wrong[0]}; are they of another vocabulary?")
        return " ".join(words[token] for token in flat)

    def save_pretrained_tokenizer(self, folder: str | os.PathLike[str]) -> Path:
        """Write a tokenizer of ``transformers`` for text of :attr:`words`; needs ``tokenizers`` (the extra ``text``).

        ``AutoTokenizer.from_pretrained(folder)`` loads it. Its numbers are the tokens of this vocabulary; it puts BOS
        and EOS around a sequence unless ``add_special_tokens=False``, and a word that is none of these is an error.

        Args:
            folder: Any folder, such as that of a model; ``tokenizer.json`` and ``tokenizer_config.json`` are replaced.

        Raises:
            ValueError: If ``tokenizers`` is missing, or ``first_token`` leaves no room for the special tokens.
        """
        words = self.words
        tokenizers = optional("tokenizers", "text", "to write a tokenizer of transformers")
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: token for token, word in enumerate(words)}))
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        made.add_special_tokens(words[: self.first_tokens[0]])
        bos, eos = _SPECIAL["bos_token"], _SPECIAL["eos_token"]
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A {eos}", special_tokens=[(bos, BOS), (eos, EOS)]
        )
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **_SPECIAL, "clean_up_tokenization_spaces": False}
        with replacing_files(folder) as scratch:
            made.save(str(scratch / "tokenizer.json"))
            (scratch / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return Path(folder)

    @staticmethod
    def _of(numbers: Sequence[int], values: Tensor, channels: Tensor | None) -> Tensor:
        """The number of each value's channel."""
        if channels is None:
            return torch.tensor(numbers[: values.shape[-1]], dtype=torch.int64, device=values.device)
        return torch.tensor(numbers, device=values.device)[channels]
