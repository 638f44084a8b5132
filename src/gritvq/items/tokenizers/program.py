"""An item tokenizer as programs that run without gritvq."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.export import Format, Program, load_program, write_programs
from gritvq.items.tokenizers.base import ItemTokenizer

__all__ = ["compare_item_programs", "write_item_tokenizer"]


class _Encoder(nn.Module):
    """Embeddings (n, D) to indices (n, L)."""

    def __init__(self, tokenizer: ItemTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        with torch.no_grad():
            self._encode = tokenizer._program_encoder()

    def forward(self, embeddings: Float[Tensor, "n D"]) -> Int[Tensor, "n L"]:
        return self._encode(embeddings)


class _Decoder(nn.Module):
    """Indices (n, L) to embeddings (n, D)."""

    def __init__(self, tokenizer: ItemTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, indices: Int[Tensor, "n L"]) -> Float[Tensor, "n D"]:
        return self.tokenizer._decode(indices)


def write_item_tokenizer(tokenizer: ItemTokenizer, folder: str | os.PathLike[str], format: Format) -> tuple[Path, Path]:
    """Write the programs of an item tokenizer; see :meth:`ItemTokenizer.export`."""
    folded = tokenizer.fold().cpu()
    batch: dict[int, Any] = {0: torch.export.Dim("batch")}
    embeddings = torch.randn(3, tokenizer.dim, generator=torch.Generator().manual_seed(0))
    indices = torch.zeros(3, len(tokenizer.codebook_sizes), dtype=torch.int64)
    programs = {
        "encoder": Program(_Encoder(folded), embeddings, batch, ("embeddings", "indices")),
        "decoder": Program(_Decoder(folded), indices, batch, ("indices", "embeddings")),
    }
    written = write_programs(folder, programs, format)
    return written["encoder"], written["decoder"]


def compare_item_programs(
    tokenizer: ItemTokenizer, encoder: Path, decoder: Path, *, num: int = 1000, seed: int = 0
) -> tuple[Bool[Tensor, "n L"], float]:
    """Exported programs against the tokenizer that they were made of, on embeddings of random indices with noise.

    Args:
        tokenizer: From which :meth:`ItemTokenizer.export` made them.
        encoder: File of the encoder.
        decoder: File of the decoder.
        num: Number of embeddings.
        seed: Their random seed.

    Returns:
        Which indices are identical, and the largest difference of decoded embeddings, relative to their standard
        deviation.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(tokenizer.codebook_sizes)
    embeddings = tokenizer.decode((torch.rand(num, len(sizes), generator=generator) * sizes).long()).cpu()
    embeddings = embeddings + embeddings.std() * torch.randn(embeddings.shape, generator=generator)
    indices = tokenizer.encode(embeddings)
    decoded = tokenizer.decode(indices).cpu()
    difference = (load_program(decoder)(indices) - decoded).abs().max() / decoded.std().clamp_min(1e-30)
    return load_program(encoder)(embeddings) == indices, float(difference)
