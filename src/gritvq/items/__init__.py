"""Items: catalogues, histories, semantic ids, tokenizers of embeddings, recommenders.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.items.catalogue import *
    from gritvq.items.collaborative import *
    from gritvq.items.ids import *
    from gritvq.items.interactions import *
    from gritvq.items.layouts import *
    from gritvq.items.networks import *
    from gritvq.items.recommenders import *
    from gritvq.items.requests import *
    from gritvq.items.sequences import *
    from gritvq.items.task import *
    from gritvq.items.text_embeddings import *
    from gritvq.items.tokenizers import *

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "catalogue": ["Catalogue", "ItemData", "read_catalogue", "read_interactions", "read_item_data"],
        "collaborative": ["collaborative_vectors"],
        "ids": [
            "FilteredOrder",
            "ItemFilter",
            "Policy",
            "PrefixTrie",
            "SemanticIds",
            "TrieLogitsProcessor",
            "resolve",
        ],
        "interactions": ["Histories", "Interactions", "Split"],
        "layouts": ["convert_item_data"],
        "networks": ["ItemDecoder", "ItemEncoder"],
        "recommenders": [
            "Backbone",
            "Beams",
            "CatalogueDecoder",
            "Candidates",
            "CoOccurrence",
            "DepthDecoder",
            "EncoderDecoder",
            "GenerativeRecommender",
            "ItemGraph",
            "ParallelDecoder",
            "ParallelScorer",
            "Popularity",
            "RankedItems",
            "SASRec",
            "TextCosine",
            "TokenDecoder",
            "beam_search",
            "code_vectors",
            "exact_scores",
            "rank_in_list",
            "rank_of_target",
            "ranking_metrics",
            "ranks_by_lists",
            "ranks_by_scores",
            "top_items",
            "without_seen",
        ],
        "requests": ["Request", "iter_requests", "listed_keys"],
        "sequences": ["SequenceData"],
        "task": ["BestRecommender", "RecommenderTask"],
        "text_embeddings": ["embed_texts"],
        "tokenizers": [
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
        ],
    },
)
