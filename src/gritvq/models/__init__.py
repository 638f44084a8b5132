"""Encoders and decoders; they receive a built quantizer's dimension and know nothing else of it."""

from gritvq.models.image import ImageDecoder, ImageEncoder, num_parameters
from gritvq.models.items import ItemDecoder, ItemEncoder

__all__ = ["ImageDecoder", "ImageEncoder", "ItemDecoder", "ItemEncoder", "num_parameters"]
