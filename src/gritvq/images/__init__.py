"""Images: data, networks, the tokenizer, its training, evaluation and comparison.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.images.data import ImageData
    from gritvq.images.evaluation import evaluate, token_statistics
    from gritvq.images.files import Picture, Pictures, find_images, open_pictures, read_images, to_tensor
    from gritvq.images.metrics import ReconstructionError
    from gritvq.images.networks import ImageDecoder, ImageEncoder, num_parameters
    from gritvq.images.objectives import image_losses
    from gritvq.images.task import TokenizerTask
    from gritvq.images.tokenizer import ImageTokenizer

__all__ = [
    "ImageData",
    "ImageDecoder",
    "ImageEncoder",
    "ImageTokenizer",
    "Picture",
    "Pictures",
    "ReconstructionError",
    "TokenizerTask",
    "evaluate",
    "find_images",
    "image_losses",
    "num_parameters",
    "open_pictures",
    "read_images",
    "to_tensor",
    "token_statistics",
]

__getattr__ = lazy_names(
    __name__,
    {
        "data": ["ImageData"],
        "evaluation": ["evaluate", "token_statistics"],
        "files": ["Picture", "Pictures", "find_images", "open_pictures", "read_images", "to_tensor"],
        "metrics": ["ReconstructionError"],
        "networks": ["ImageDecoder", "ImageEncoder", "num_parameters"],
        "objectives": ["image_losses"],
        "task": ["TokenizerTask"],
        "tokenizer": ["ImageTokenizer"],
    },
)
