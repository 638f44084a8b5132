"""Images: data, networks, the tokenizer, its training, evaluation and comparison.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.images.data import *
    from gritvq.images.decoding import *
    from gritvq.images.discriminators import *
    from gritvq.images.evaluation import *
    from gritvq.images.features import *
    from gritvq.images.files import *
    from gritvq.images.foundation import *
    from gritvq.images.generation_metrics import *
    from gritvq.images.losses import *
    from gritvq.images.metrics import *
    from gritvq.images.networks import *
    from gritvq.images.objectives import *
    from gritvq.images.task import *
    from gritvq.images.tokenizer import *

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "data": ["ImageData"],
        "decoding": ["to_tensor"],
        "discriminators": ["FeatureDiscriminator", "PatchDiscriminator"],
        "evaluation": ["evaluate", "token_statistics"],
        "features": [
            "CIFARResNet",
            "FeatureVectors",
            "FileFeatures",
            "Frozen",
            "InceptionFeatures",
            "VGG16Features",
        ],
        "files": ["Picture", "Pictures", "find_images", "open_pictures", "read_images"],
        "foundation": ["FoundationEncoder", "SelfDistillation", "pretrained_encoder", "vqrae_quantizer"],
        "generation_metrics": [
            "ClassAccuracy",
            "Evaluation",
            "FrechetDistance",
            "PictureSet",
            "PrecisionRecall",
            "compare_pictures",
        ],
        "losses": ["R1", "AdversarialLoss", "LPIPSLoss", "LeCam", "PerceptualLoss"],
        "metrics": ["ReconstructionError", "StructuralSimilarity", "prior_bits_per_pixel", "to_uint8"],
        "networks": [
            "ImageDecoder",
            "ImageEncoder",
            "VQGANDecoder",
            "VQGANEncoder",
            "ViTDecoder",
            "ViTEncoder",
            "num_parameters",
        ],
        "objectives": ["image_losses"],
        "task": ["TokenizerTask"],
        "tokenizer": ["ImageTokenizer"],
    },
)
