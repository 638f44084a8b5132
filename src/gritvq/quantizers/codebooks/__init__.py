"""Codebooks: where the K codes come from.

Every codebook gives *effective* codes ``codes() = T(C)``: a transform T of a base table C that sees no data. With a
shared T one gradient step moves every code, chosen or not, which keeps a codebook in use while latents drift.
``rowwise`` holds the free table and the maps that take each code on its own, which start as the identity and can be
inverted for single codes; ``sequence`` the maps that see the whole table at once.
"""

from gritvq.quantizers.codebooks.rowwise import AffineCodebook, FreeCodebook, MLPCodebook
from gritvq.quantizers.codebooks.sequence import BridgeCodebook, TransformerCodebook

__all__ = [
    "AffineCodebook",
    "BridgeCodebook",
    "FreeCodebook",
    "MLPCodebook",
    "TransformerCodebook",
]
