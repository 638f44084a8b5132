"""Encoders and decoders; they receive a built quantizer's dimension and know nothing else of it."""

from gritvq.models.image import ImageDecoder, ImageEncoder, num_parameters

__all__ = ["ImageDecoder", "ImageEncoder", "num_parameters"]
