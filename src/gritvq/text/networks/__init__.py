"""Networks of text: transformers with latents as memory, recurrence and distribution of latents, models."""

from gritvq.text.networks.latents import GaussianLatents
from gritvq.text.networks.model import TraceModel, TraceOutput, gaussian_vae, language_model, trace
from gritvq.text.networks.parts import SegmentDecoder, SegmentEncoder
from gritvq.text.networks.recurrence import IdempotentRecurrence
from gritvq.text.networks.standardize import Standardize
from gritvq.text.networks.transformer import TextTransformer

__all__ = [
    "GaussianLatents",
    "IdempotentRecurrence",
    "SegmentDecoder",
    "SegmentEncoder",
    "Standardize",
    "TextTransformer",
    "TraceModel",
    "TraceOutput",
    "gaussian_vae",
    "language_model",
    "trace",
]
