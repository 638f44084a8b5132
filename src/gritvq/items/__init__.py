"""Items: catalogues, histories, semantic ids, tokenizers of embeddings, recommenders.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.items.catalogue import (
        Catalogue,
        ItemData,
        embed_texts,
        read_catalogue,
        read_interactions,
        read_item_data,
    )
    from gritvq.items.ids import Policy, PrefixTrie, SemanticIds, TrieLogitsProcessor, resolve
    from gritvq.items.interactions import Histories, Interactions, Split
    from gritvq.items.networks import ItemDecoder, ItemEncoder
    from gritvq.items.recommenders import (
        Backbone,
        Beams,
        CoOccurrence,
        DepthDecoder,
        EncoderDecoder,
        GenerativeRecommender,
        Popularity,
        SASRec,
        TextCosine,
        TokenDecoder,
        beam_search,
        exact_scores,
        rank_in_list,
        rank_of_target,
        ranking_metrics,
        ranks_by_lists,
        ranks_by_scores,
        top_items,
    )
    from gritvq.items.sequences import SequenceData
    from gritvq.items.task import BestRecommender, RecommenderTask
    from gritvq.items.tokenizers import (
        RQVAE,
        CollaborativeLoss,
        DiversityLoss,
        ItemLoss,
        ItemTokenizer,
        ProductKMeans,
        ResidualKMeans,
        grit_stack,
        residual_stack,
    )

__all__ = [
    "RQVAE",
    "Backbone",
    "Beams",
    "BestRecommender",
    "Catalogue",
    "CoOccurrence",
    "CollaborativeLoss",
    "DepthDecoder",
    "DiversityLoss",
    "EncoderDecoder",
    "GenerativeRecommender",
    "Histories",
    "Interactions",
    "ItemData",
    "ItemDecoder",
    "ItemEncoder",
    "ItemLoss",
    "ItemTokenizer",
    "Policy",
    "Popularity",
    "PrefixTrie",
    "ProductKMeans",
    "RecommenderTask",
    "ResidualKMeans",
    "SASRec",
    "SemanticIds",
    "SequenceData",
    "Split",
    "TextCosine",
    "TokenDecoder",
    "TrieLogitsProcessor",
    "beam_search",
    "embed_texts",
    "exact_scores",
    "grit_stack",
    "rank_in_list",
    "rank_of_target",
    "ranking_metrics",
    "ranks_by_lists",
    "ranks_by_scores",
    "read_catalogue",
    "read_interactions",
    "read_item_data",
    "residual_stack",
    "resolve",
    "top_items",
]

__getattr__ = lazy_names(
    __name__,
    {
        "catalogue": ["Catalogue", "ItemData", "embed_texts", "read_catalogue", "read_interactions", "read_item_data"],
        "ids": ["Policy", "PrefixTrie", "SemanticIds", "TrieLogitsProcessor", "resolve"],
        "interactions": ["Histories", "Interactions", "Split"],
        "networks": ["ItemDecoder", "ItemEncoder"],
        "recommenders": [
            "Backbone",
            "Beams",
            "CoOccurrence",
            "DepthDecoder",
            "EncoderDecoder",
            "GenerativeRecommender",
            "Popularity",
            "SASRec",
            "TextCosine",
            "TokenDecoder",
            "beam_search",
            "exact_scores",
            "rank_in_list",
            "rank_of_target",
            "ranking_metrics",
            "ranks_by_lists",
            "ranks_by_scores",
            "top_items",
        ],
        "sequences": ["SequenceData"],
        "task": ["BestRecommender", "RecommenderTask"],
        "tokenizers": [
            "RQVAE",
            "CollaborativeLoss",
            "DiversityLoss",
            "ItemLoss",
            "ItemTokenizer",
            "ProductKMeans",
            "ResidualKMeans",
            "grit_stack",
            "residual_stack",
        ],
    },
)
