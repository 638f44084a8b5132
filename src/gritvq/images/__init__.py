"""Images: data, networks, the tokenizer, its training, evaluation and comparison.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.images.data import ImageData
    from gritvq.images.discriminators import FeatureDiscriminator, PatchDiscriminator
    from gritvq.images.evaluation import evaluate, token_statistics
    from gritvq.images.features import (
        CIFARResNet,
        FeatureVectors,
        FileFeatures,
        Frozen,
        InceptionFeatures,
        VGG16Features,
    )
    from gritvq.images.files import Picture, Pictures, find_images, open_pictures, read_images, to_tensor
    from gritvq.images.foundation import FoundationEncoder, SelfDistillation, pretrained_encoder, vqrae_quantizer
    from gritvq.images.generation_metrics import (
        ClassAccuracy,
        Evaluation,
        FrechetDistance,
        PictureSet,
        PrecisionRecall,
        compare_pictures,
    )
    from gritvq.images.losses import R1, AdversarialLoss, LeCam, LPIPSLoss, PerceptualLoss
    from gritvq.images.metrics import ReconstructionError, StructuralSimilarity, prior_bits_per_pixel, to_uint8
    from gritvq.images.networks import (
        ImageDecoder,
        ImageEncoder,
        ViTDecoder,
        ViTEncoder,
        VQGANDecoder,
        VQGANEncoder,
        num_parameters,
    )
    from gritvq.images.objectives import image_losses
    from gritvq.images.task import TokenizerTask
    from gritvq.images.tokenizer import ImageTokenizer

__all__ = [
    "R1",
    "AdversarialLoss",
    "CIFARResNet",
    "ClassAccuracy",
    "Evaluation",
    "FeatureDiscriminator",
    "FeatureVectors",
    "FileFeatures",
    "FoundationEncoder",
    "FrechetDistance",
    "Frozen",
    "ImageData",
    "ImageDecoder",
    "ImageEncoder",
    "ImageTokenizer",
    "InceptionFeatures",
    "LPIPSLoss",
    "LeCam",
    "PatchDiscriminator",
    "PerceptualLoss",
    "Picture",
    "PictureSet",
    "Pictures",
    "PrecisionRecall",
    "ReconstructionError",
    "SelfDistillation",
    "StructuralSimilarity",
    "TokenizerTask",
    "VGG16Features",
    "VQGANDecoder",
    "VQGANEncoder",
    "ViTDecoder",
    "ViTEncoder",
    "compare_pictures",
    "evaluate",
    "find_images",
    "image_losses",
    "num_parameters",
    "open_pictures",
    "pretrained_encoder",
    "prior_bits_per_pixel",
    "read_images",
    "to_tensor",
    "to_uint8",
    "token_statistics",
    "vqrae_quantizer",
]

__getattr__ = lazy_names(
    __name__,
    {
        "data": ["ImageData"],
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
        "files": ["Picture", "Pictures", "find_images", "open_pictures", "read_images", "to_tensor"],
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
