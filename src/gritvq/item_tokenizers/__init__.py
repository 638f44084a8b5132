"""Tokenizers of item embeddings: fit, encode, decode, save and load behind one interface."""

from gritvq.item_tokenizers.base import ItemTokenizer
from gritvq.item_tokenizers.residual import ResidualKMeans

__all__ = ["ItemTokenizer", "ResidualKMeans"]
