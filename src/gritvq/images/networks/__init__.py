"""Encoders and decoders of images. None of them builds a quantizer."""

from gritvq.images.networks.convolutional import ImageDecoder, ImageEncoder, num_parameters, patch_prior
from gritvq.images.networks.vit import ViTDecoder, ViTEncoder
from gritvq.images.networks.vqgan import VQGANDecoder, VQGANEncoder

__all__ = [
    "ImageDecoder",
    "ImageEncoder",
    "VQGANDecoder",
    "VQGANEncoder",
    "ViTDecoder",
    "ViTEncoder",
    "num_parameters",
    "patch_prior",
]
