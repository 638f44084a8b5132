"""The tokenizer of text: a code, or several, for each segment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import eval_mode
from gritvq.export import Format, Program, write_programs
from gritvq.priors.sampling import sample_seeds, seeds_of
from gritvq.quantizers.base import Quantizer
from gritvq.text.corpus import Document
from gritvq.text.generation import Writing, write_documents
from gritvq.text.networks.latents import GaussianLatents
from gritvq.text.networks.model import check_format
from gritvq.text.networks.parts import SegmentDecoder, SegmentEncoder
from gritvq.text.networks.transformer import Architecture, TextTransformer
from gritvq.text.segments import TextBatch, TextFormat
from gritvq.tokenizer import Autoencoder, TokenizerOutput

__all__ = ["TextTokenizer", "segment_tokenizer"]

_AT_ONCE = 64  # documents


class TextTokenizer(Autoencoder):
    """Text into indices of segments and back: TRACE's encoder and decoder around a quantizer.

    A segment's latent is a function of the segment and of those before it. The decoder writes one segment after the
    other from the quantized latents so far and from what it has written.

    Args:
        encoder: Vectors of segments; its ``dim`` must equal the quantizer's ``input_dim``.
        quantizer: Maps them to codes.
        decoder: Tokens given latents; its ``dim`` must equal the quantizer's.

    Attributes:
        format: Vocabulary and segmentation, a :class:`gritvq.text.TextFormat`; saved and loaded with the tokenizer.

    Raises:
        ValueError: If the parts do not fit together.

    Example:
        >>> from gritvq import vq_vae
        >>> from gritvq.text import Segmentation, Subwords
        >>> form = TextFormat(Subwords.train([], 256), Segmentation(max_tokens=8))
        >>> tokenizer = segment_tokenizer(vq_vae(4, 16), form.vocab_size, width=16, depth=1, num_heads=2).use(form)
        >>> tokens = tokenizer.encode("Hello. How are you?")
        >>> tokens.shape, isinstance(tokenizer.decode(tokens), str)
        (torch.Size([3, 1]), True)

    References:
        The discrete twin of :class:`gritvq.text.TraceModel`, which is ours: TRACE has continuous latents.
    """

    encoder: SegmentEncoder
    decoder: SegmentDecoder

    def __init__(self, encoder: SegmentEncoder, quantizer: Quantizer, decoder: SegmentDecoder) -> None:
        super().__init__(encoder, quantizer, decoder)
        for name, got, wanted in (
            ("encoder.dim", encoder.dim, quantizer.input_dim),
            ("decoder.dim", decoder.dim, quantizer.dim),
            ("encoder.transformer.vocab_size", encoder.transformer.vocab_size, decoder.transformer.vocab_size),
        ):
            if got != wanted:
                raise ValueError(f"expected {name}={wanted} as the part behind it has, got {got}; make them equal")
        if quantizer.layout or quantizer.token_shape((2, 3)) != (2, 3):
            raise ValueError(
                f"expected a quantizer of single vectors, got {type(quantizer).__name__}; texts have any number of "
                "segments"
            )
        self.format: TextFormat | None = None

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the transformers read and write."""
        return self.decoder.transformer.vocab_size

    def use(self, form: TextFormat | None) -> TextTokenizer:
        """Set vocabulary and segmentation.

        Raises:
            ValueError: If the vocabulary has another size than the transformers, or documents may be too long.
        """
        if form is not None:
            check_format(form, self.decoder.transformer)
            check_format(form, self.encoder.transformer)
        self.format = form
        return self

    # --- batches ------------------------------------------------------------------------------------------------------

    def forward(self, batch: TextBatch) -> TokenizerOutput:
        """Encode, quantize, and predict every token.

        Returns:
            The reconstruction is the log-probability of each token (B, L) in nats; indices are (B, T, Q), -1 for
            segments that a document does not have.
        """
        latents = self.encoder(batch)
        quantization = self.quantizer(latents, batch.present)
        return TokenizerOutput(self.decoder(batch, quantization.quantized), quantization, latents)

    def latents(self, batch: TextBatch) -> Float[Tensor, "N D"]:
        """Latents of the N segments of a batch, before quantization."""
        return self.encoder(batch)[batch.present]

    # --- texts --------------------------------------------------------------------------------------------------------

    @overload
    def encode(self, batch: str) -> Int[Tensor, "T Q"]: ...

    @overload
    def encode(self, batch: list[str] | list[Document]) -> list[Int[Tensor, "T Q"]]: ...

    @torch.no_grad()
    def encode(self, batch: str | list[str] | list[Document]) -> Int[Tensor, "T Q"] | list[Int[Tensor, "T Q"]]:
        """Indices of each segment of a text, or of several texts, of which each may also be a list of its segments.

        A text of more segments than ``max_segments`` is encoded in parts of as many, each on its own; :meth:`decode`
        knows where they begin. A text of white space alone has no segments.

        Raises:
            ValueError: If it is no text, or the tokenizer has no vocabulary.
        """
        if isinstance(batch, str):
            return self.encode([batch])[0]
        batch = list(batch)
        if wrong := [part for text in batch for part in _parts(text) if not isinstance(part, str)]:
            raise ValueError(f"expected text, got {type(wrong[0]).__name__}; give a string or a list of strings")
        pieces = list(self._form().tokens(batch))
        rows = [piece for own in pieces for piece in own]
        found: list[Tensor] = []
        device = next(self.decoder.parameters()).device
        with eval_mode(self):
            for start in range(0, len(rows), _AT_ONCE):
                part = self._form().batch_of(rows[start : start + _AT_ONCE]).to(device)
                indices = self.quantizer.encode(self.encoder(part), part.present)
                found += [row[own] for row, own in zip(indices, part.present, strict=True)]
        each = iter(found)
        empty = torch.zeros(0, len(self.quantizer.codebook_sizes), dtype=torch.int64, device=device)
        return [torch.cat([empty, *(next(each) for _ in own)]) for own in pieces]

    @overload
    def decode(self, tokens: Tensor, writing: Writing | None = None) -> str: ...

    @overload
    def decode(self, tokens: Sequence[Tensor], writing: Writing | None = None) -> list[str]: ...

    @torch.no_grad()
    def decode(self, tokens: Tensor | Sequence[Tensor], writing: Writing | None = None) -> str | list[str]:
        """The text of indices (T, Q), or the texts of a list of such.

        Args:
            tokens: As :meth:`encode` gives them; -1 from the end of a text on is left out.
            writing: How tokens are drawn; by default the most probable ones. Its numbers of segments and tokens do not
                count: the indices and the tokenizer's segmentation say them. A text does not depend on those beside it,
                given its number or its seed.

        Raises:
            ValueError: If the shape is wrong, an index is out of range, or -1 is before another one.
        """
        if isinstance(tokens, Tensor):
            return self.decode([tokens], writing)[0]
        form, channels = self._form(), len(self.quantizer.codebook_sizes)
        for one in tokens:
            if one.ndim != 2 or one.shape[1] != channels:
                raise ValueError(f"expected indices (T, {channels}) of a text, got {tuple(one.shape)}; reshape them")
            there = (one >= 0).any(-1)
            if bool((there[1:] & ~there[:-1]).any()):
                raise ValueError("expected -1 from the end of a text on, got it before an index; leave it out")
        most = form.segmentation.max_segments
        parts = [list(one.split(most)) if len(one) else [] for one in tokens]
        rows = [part for own in parts for part in own]
        writing = replace(writing or Writing(temperature=0.0), max_segments=None, max_tokens=None)
        of_texts = seeds_of(writing.seeds, len(tokens))
        seeds = [seed for own, first in zip(parts, of_texts, strict=True) for seed in sample_seeds(first, len(own))]
        texts: list[list[int]] = []
        for start in range(0, len(rows), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            texts += self._written(rows[some], replace(writing, seeds=seeds[some]))
        each = iter(texts)
        return [form.text([token for _ in own for token in next(each)]) for own in parts]

    def _written(self, rows: Sequence[Tensor], writing: Writing) -> list[list[int]]:
        device = next(self.decoder.parameters()).device
        indices = nn.utils.rnn.pad_sequence([row.to(device) for row in rows], batch_first=True, padding_value=-1)
        with eval_mode(self):
            latents = self.quantizer.decode(indices).to(next(self.decoder.parameters()).dtype)
            present = (indices >= 0).any(-1)
            batch = write_documents(_Reader(self.decoder, self.format), None, None, (latents, present), writing, True)
        return [row[own].tolist() for row, own in zip(batch.tokens, batch.valid, strict=True)]

    # --- files --------------------------------------------------------------------------------------------------------

    def export(self, folder: str | os.PathLike[str], format: Format = "torch") -> Path:
        """Write the folded encoder as a program that runs without gritvq, for any number of texts.

        It takes what :meth:`gritvq.text.TextFormat.tokens` gives, texts of at most ``max_segments`` segments; of longer
        ones the first ``max_segments`` come back.

        ``encoder`` maps ``tokens`` (B, L), int64, -1 behind a text, to ``indices`` (B, max_segments, Q), -1 for
        segments that a text does not have. Tokens are those of :class:`gritvq.text.TextFormat`, whose subwords any
        program with the package ``tokenizers`` makes (:meth:`gritvq.text.Subwords.save`). Writing texts needs a loop
        over tokens and is not exported.

        Args:
            folder: Folder of the file; one of the same name is replaced.
            format: See :func:`gritvq.export.write_programs`.

        Raises:
            ValueError: If the tokenizer has no vocabulary, packages are missing, or an operator cannot be exported.
        """
        form = self._form()
        folded = self.fold().cpu()
        program = _TextEncoderProgram(folded.encoder, folded.quantizer, form)
        example = form.batch_of([[0, form.separator, 1, form.end], [2, 3, form.end]])
        tokens = example.tokens.masked_fill(~example.valid, -1)
        sizes = {
            0: torch.export.Dim("batch"),
            1: torch.export.Dim("length", min=2, max=self.encoder.transformer.length),
        }
        written = write_programs(folder, {"encoder": Program(program, tokens, sizes, ("tokens", "indices"))}, format)
        return written["encoder"]

    def _form(self) -> TextFormat:
        if self.format is None:
            raise ValueError("expected a tokenizer with a vocabulary, got one without; set it with use()")
        return self.format

    def _settings(self) -> dict[str, Any]:
        return {"text": None if self.format is None else self.format.settings()}

    def _restore(self, config: Mapping[str, Any]) -> None:
        settings = config.get("text")
        if settings is not None and not isinstance(settings, dict):
            raise ValueError(f"expected vocabulary and segmentation by name, got {settings!r}; the file is damaged")
        self.use(None if settings is None else TextFormat.from_settings(settings))


def _parts(text: Any) -> list[Any]:
    return text if isinstance(text, list) else [text]


class _Reader:
    """A decoder alone, for :func:`gritvq.text.generation.write_documents`."""

    def __init__(self, decoder: SegmentDecoder, form: TextFormat | None) -> None:
        self.decoder, self.format = decoder, form
        self.encoder: SegmentEncoder | None = None
        self.latents: GaussianLatents | None = None


class _TextEncoderProgram(nn.Module):
    def __init__(self, encoder: SegmentEncoder, quantizer: Quantizer, form: TextFormat) -> None:
        super().__init__()
        self.encoder, self.quantizer = encoder, quantizer
        self.separator, self.end, self.most = form.separator, form.end, form.segmentation.max_segments

    def forward(self, tokens: Tensor) -> Tensor:
        valid = tokens >= 0
        ended = ((tokens == self.separator) | (tokens == self.end)).long()
        segments = (ended.cumsum(1) - ended).masked_fill(~valid, -1)
        latents = self.encoder(TextBatch(tokens.clamp(min=0), segments), num_segments=self.most)
        indices = self.quantizer(latents).indices
        numbers = torch.arange(self.most, device=tokens.device)
        present = (segments[:, None] == numbers[:, None]).any(2)
        return torch.where(present[..., None], indices, -1)


def segment_tokenizer(
    quantizer: Quantizer,
    vocab_size: int = 4099,
    *,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    length: int = 256,
    dropout: float = 0.1,
    architecture: Architecture = "gpt2",
) -> TextTokenizer:
    """A text tokenizer with the networks of :func:`gritvq.text.trace`; latents are whitened over a batch.

    Args:
        quantizer: Any quantizer that takes one vector at a time: not one of several scales.
        vocab_size: Number of tokens.
        width: Width of the transformers.
        depth: Layers of each.
        num_heads: Attention heads of each.
        length: Most tokens of a document.
        dropout: In [0, 1).
        architecture: See :class:`gritvq.text.TextTransformer`.

    Example:
        >>> from gritvq import grit_vq
        >>> segment_tokenizer(grit_vq(8, 64), 300, width=16, depth=1, num_heads=2).encoder.dim
        8
    """

    def body() -> TextTransformer:
        return TextTransformer(
            vocab_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            length=length,
            dropout=dropout,
            architecture=architecture,
        )

    encoder = SegmentEncoder(body(), quantizer.input_dim, whitened=True)
    return TextTokenizer(encoder, quantizer, SegmentDecoder(body(), quantizer.dim))
