"""Readers of other libraries' quantizers, a way to put ours in their place, and the Hugging Face Hub.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.interop.cards import *
    from gritvq.interop.codecs import *
    from gritvq.interop.hub import *
    from gritvq.interop.image_models import *
    from gritvq.interop.replace import *
    from gritvq.interop.resize import *
    from gritvq.interop.vector_quantize_pytorch import *
    from gritvq.interop.weights import *

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "cards": ["model_card"],
        "codecs": ["from_dac", "from_encodec", "from_mimi"],
        "hub": ["prepare_upload", "push_to_hub"],
        "image_models": [
            "LogitAssignment",
            "from_diffusers",
            "from_llamagen",
            "from_taming",
            "tokenizer_from_llamagen",
        ],
        "replace": ["Convention", "Layout", "QuantizerAdapter", "replace_quantizer"],
        "resize": ["Resized", "resize_codebook"],
        "vector_quantize_pytorch": ["from_vector_quantize_pytorch"],
        "weights": ["Weights"],
    },
)
