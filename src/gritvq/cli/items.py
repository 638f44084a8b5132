"""What verbs for all tokenizers do with those of items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritvq.cli.output import report
from gritvq.cli.run_folder import check_places

if TYPE_CHECKING:
    from torch import Tensor

    from gritvq.bulk import VectorWork
    from gritvq.items.tokenizers import ItemTokenizer
    from gritvq.quantizers.base import Quantizer

__all__ = ["encoded", "export", "searches", "work"]


def export(tokenizer: ItemTokenizer, config: Any) -> None:
    """Export encoder and decoder, see :func:`gritvq.cli.measure.export_arguments`."""
    from gritvq.items.tokenizers.program import compare_item_programs

    ending = "onnx" if config.format == "onnx" else "pt2"
    check_places(Path(config.out), [f"{name}.{ending}" for name in ("encoder", "decoder")], config.overwrite)
    encoder, decoder = tokenizer.export(config.out, config.format)
    identical, difference = compare_item_programs(tokenizer, encoder, decoder)
    report(
        "exported",
        [
            ("identical indices of random embeddings", f"{int(identical.sum()):,} of {identical.numel():,}"),
            ("largest difference of decoded embeddings", f"{difference:.1e} of their deviation"),
        ],
        {"encoder": encoder, "decoder": decoder},
    )


def searches(tokenizer: ItemTokenizer, config: Any) -> tuple[dict[str, tuple[Quantizer, Tensor]], str]:
    """Quantizers inside, with the vectors of some items, and where these come from.

    Args:
        tokenizer: In eval mode.
        config: See :func:`gritvq.cli.doctor.doctor_arguments`.

    Raises:
        ValueError: If there is no such file, or its vectors do not fit.
    """
    import numpy as np

    from gritvq.items.catalogue import open_vectors, vectors_beside

    path = Path(config.data.path).expanduser()
    vectors = open_vectors(path if path.suffix == ".npy" else vectors_beside(path, "item") or path)
    rows = np.linspace(0, len(vectors) - 1, min(config.num_images, len(vectors))).round().astype(int)
    return tokenizer.searches(vectors[rows], config.batch_size), f"{len(rows):,} items of {config.data.path}"


def work(tokenizer: ItemTokenizer, config: Any) -> VectorWork:
    """Vectors to encode as tokens, see :func:`gritvq.cli.tokens.encode_arguments`."""
    from gritvq.bulk import ItemVectors, VectorWork

    return VectorWork(tokenizer, ItemVectors(config.data, config.column or "embedding"), config.batch_size)


def encoded(config: Any, work: VectorWork, counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """What was encoded, for the report."""
    from gritvq.bulk import bits_per_token

    bits = bits_per_token(counts, work.tokenizer.codebook_sizes)
    channels = len(work.tokenizer.codebook_sizes)
    rows = [("items", f"{counts['samples']:,}"), ("indices per item", f"{channels}")]
    return [*rows, ("bits per item", f"{bits * counts['positions'] / counts['samples']:.2f}")]
