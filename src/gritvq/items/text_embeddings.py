"""Embeddings of the texts of items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gritvq.lazy import hub_in_reach, optional

__all__ = ["embed_texts"]


def embed_texts(
    texts: Sequence[str],
    model: str | Path = "sentence-transformers/all-MiniLM-L6-v2",
    *,
    batch_size: int = 64,
    normalize: bool = True,
    device: str | None = None,
    progress: bool = False,
) -> Float[Tensor, "n D"]:
    """Embeds texts with a sentence-transformers model. Equal texts are encoded once and get equal vectors.

    Args:
        texts: Texts of n items; see :meth:`Catalogue.texts`.
        model: Name on the Hugging Face Hub, or a local folder.
        batch_size: Texts per forward pass.
        normalize: Whether to normalize vectors to length 1.
        device: Device to compute on; None lets sentence-transformers choose.
        progress: Whether to show a progress bar.

    Returns:
        Embeddings (n, D), float32, on the CPU, in the order of the texts.

    Raises:
        ValueError: If there are no texts, one is not a string, or the model cannot be loaded.
    """
    wrong = [each for each in texts if not isinstance(each, str)]
    if not texts or wrong:
        raise ValueError(f"expected at least one text, all strings, got {wrong[:1] or 'none'}; add texts.")
    sentence_transformers = optional("sentence_transformers", "items")
    here = Path(model).is_dir() or not hub_in_reach()
    try:
        encoder = sentence_transformers.SentenceTransformer(
            str(model), device=device, trust_remote_code=False, local_files_only=here
        )
    except Exception as error:  # network, authentication, naming and file errors share no class
        raise ValueError(
            f"expected a sentence-transformers model, got {str(model)!r}: {error}; correct the name, or give the "
            "folder of a downloaded model."
        ) from error
    distinct = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(distinct)}
    vectors = encoder.encode(
        distinct,
        batch_size=batch_size,
        normalize_embeddings=normalize,
        show_progress_bar=progress,
        convert_to_numpy=True,
    )
    result = torch.from_numpy(np.asarray(vectors, dtype=np.float32))
    return result[torch.tensor([place[text] for text in texts])]
