"""Item embeddings of verbs on catalogues: read from a file, or computed from the items' texts."""

from __future__ import annotations

from typing import Any

__all__ = ["check_texts", "given_vectors", "item_vectors", "origin_of", "text_arguments"]


def text_arguments(parser: Any) -> None:
    """The text model that computes embeddings, and the columns that it reads."""
    parser.add_argument(
        "--text_model",
        type=str | None,
        default=None,
        help="compute embeddings with this sentence-transformers model: a Hub name, or the folder of a downloaded one",
    )
    parser.add_argument(
        "--fields",
        type=list[str] | None,
        default=None,
        help="columns that make up an item's text; item_text if there is such a column, else title, if not given",
    )


def check_texts(config: Any, embeddings: str | None, option: str) -> None:
    """Check the arguments of embeddings, before anything is read.

    Args:
        config: With the arguments of :func:`text_arguments`.
        embeddings: File of embeddings, if one is given.
        option: Name of the option that gives it.

    Raises:
        ValueError: If there are both a file and a text model, or columns for no text model.
    """
    if config.text_model is None and config.fields is not None:
        raise ValueError(
            f"expected --text_model to read the columns {', '.join(config.fields)}, got none; give a model, or leave "
            "--fields out"
        )
    if config.text_model is not None and embeddings is not None:
        raise ValueError(
            f"expected --text_model or {option}, got both, {config.text_model} and {embeddings}; leave one out"
        )


def item_vectors(catalogue: Any, config: Any, option: str) -> Any:
    """Embeddings (n, D) of all items, read from a file or computed from texts.

    Args:
        catalogue: The items.
        config: With the arguments of :func:`text_arguments`.
        option: Name of the option that gives a file of embeddings.

    Raises:
        ValueError: If there is neither a file nor a text model, or texts or vectors are unusable.
    """
    import torch

    from gritvq.items.text_embeddings import embed_texts

    if config.text_model is not None:
        texts = catalogue.texts(_fields(catalogue, config))
        with torch.random.fork_rng(
            devices=range(torch.cuda.device_count())
        ):  # what is trained then does not depend on how a model is loaded
            return embed_texts(texts, config.text_model, progress=True)
    if catalogue.embeddings is None:
        raise ValueError(
            "expected item embeddings, got none; give a model that computes them from the columns of --fields with "
            f"--text_model, or their file with {option}"
        )
    return catalogue.vectors()


def origin_of(catalogue: Any, config: Any, vectors: Any) -> dict[str, str]:
    """Where the vectors come from, which must be the same for all items with ids."""
    if config.text_model is None:
        return given_vectors(vectors)
    return {"encoder": config.text_model, "fields": ", ".join(_fields(catalogue, config))}


def given_vectors(vectors: Any) -> dict[str, str]:
    """Origin of vectors of which nothing is known."""
    return {"encoder": f"given embeddings of {vectors.shape[1]} components"}


def _fields(catalogue: Any, config: Any) -> list[str]:
    """Columns that make up an item's text."""
    if config.fields is not None:
        return list(config.fields)
    found = [name for name in ("item_text", "title") if name in catalogue.columns]
    if not found:
        others = ", ".join(catalogue.columns) or "none"
        raise ValueError(
            f"expected a column item_text or title with the items' texts, got {others}; name columns with --fields"
        )
    return found[:1]
