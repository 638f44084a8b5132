"""Data for training. Pictures need the extra ``images``, catalogues and interactions the extra ``items``.

The names are imported when they are first used, so that items need no packages for pictures and the other way round.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gritvq.data.image import ImageData
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
    from gritvq.data.pictures import Picture, Pictures, find_images, open_pictures, read_images, to_tensor

__all__ = [
    "Catalogue",
    "Histories",
    "ImageData",
    "Interactions",
    "ItemData",
    "Picture",
    "Pictures",
    "Split",
    "embed_texts",
    "find_images",
    "open_pictures",
    "read_catalogue",
    "read_images",
    "read_interactions",
    "read_item_data",
    "to_tensor",
]
_PICTURES = {"Picture", "Pictures", "find_images", "open_pictures", "read_images", "to_tensor"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "image" if name == "ImageData" else "pictures" if name in _PICTURES else "items"
    return getattr(importlib.import_module(f"gritvq.data.{module}"), name)
