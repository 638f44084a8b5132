"""Tokenizers of item embeddings: fit, encode, decode, save and load behind one interface."""

from gritvq.items.tokenizers.base import ItemTokenizer
from gritvq.items.tokenizers.losses import CollaborativeLoss, DiversityLoss, ItemLoss
from gritvq.items.tokenizers.product import ProductKMeans
from gritvq.items.tokenizers.residual import ResidualKMeans
from gritvq.items.tokenizers.rqvae import RQVAE
from gritvq.items.tokenizers.stacks import grit_product, grit_stack, residual_stack
from gritvq.items.tokenizers.views import MultiViewTokenizer, joined_views

__all__ = [
    "RQVAE",
    "CollaborativeLoss",
    "DiversityLoss",
    "ItemLoss",
    "ItemTokenizer",
    "MultiViewTokenizer",
    "ProductKMeans",
    "ResidualKMeans",
    "grit_product",
    "grit_stack",
    "joined_views",
    "residual_stack",
]
