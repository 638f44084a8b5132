"""Data for training. Pictures need the extra ``images``, catalogues and interactions the extra ``items``.

The names are imported when they are first used, so that items need no packages for pictures and the other way round.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gritvq.data.image import ImageData, find_images, read_images, to_tensor
    from gritvq.data.items import (
        Catalogue,
        Histories,
        Interactions,
        ItemData,
        Split,
        embed_texts,
        read_catalogue,
        read_interactions,
        read_item_data,
    )

__all__ = [
    "Catalogue",
    "Histories",
    "ImageData",
    "Interactions",
    "ItemData",
    "Split",
    "embed_texts",
    "find_images",
    "read_catalogue",
    "read_images",
    "read_interactions",
    "read_item_data",
    "to_tensor",
]
_IMAGES = {"ImageData", "find_images", "read_images", "to_tensor"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gritvq.data.{'image' if name in _IMAGES else 'items'}"), name)
