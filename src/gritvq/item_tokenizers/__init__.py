"""Tokenizers of item embeddings: fit, encode, decode, save and load behind one interface."""

from gritvq.item_tokenizers.alignment import CollaborativeLoss, DiversityLoss, ItemLoss
from gritvq.item_tokenizers.base import ItemTokenizer
from gritvq.item_tokenizers.product import ProductKMeans
from gritvq.item_tokenizers.residual import ResidualKMeans
from gritvq.item_tokenizers.rqvae import RQVAE
from gritvq.item_tokenizers.stacks import grit_stack, residual_stack

__all__ = [
    "RQVAE",
    "CollaborativeLoss",
    "DiversityLoss",
    "ItemLoss",
    "ItemTokenizer",
    "ProductKMeans",
    "ResidualKMeans",
    "grit_stack",
    "residual_stack",
]
