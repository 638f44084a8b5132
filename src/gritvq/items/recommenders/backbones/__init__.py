"""Sequence models, built with transformers, that predict the next item's semantic id.

All of them use the tokens of a :class:`gritvq.tokens.Vocabulary`. They have no key-value cache: what is computed once
per history is in the ``context``.
"""

from gritvq.items.recommenders.backbones.base import Backbone, Candidates, Context
from gritvq.items.recommenders.backbones.depth import DepthDecoder
from gritvq.items.recommenders.backbones.parallel import CatalogueDecoder, ParallelDecoder
from gritvq.items.recommenders.backbones.tokens import EncoderDecoder, TokenDecoder

__all__ = [
    "Backbone",
    "Candidates",
    "CatalogueDecoder",
    "Context",
    "DepthDecoder",
    "EncoderDecoder",
    "ParallelDecoder",
    "TokenDecoder",
]
