"""Recommendation of the next item: ranking metrics, baselines, SASRec, generative models with their search."""

from gritvq.items.recommenders.backbones import (
    Backbone,
    Candidates,
    CatalogueDecoder,
    DepthDecoder,
    EncoderDecoder,
    ParallelDecoder,
    TokenDecoder,
)
from gritvq.items.recommenders.baselines import CoOccurrence, Popularity, TextCosine
from gritvq.items.recommenders.beam_search import Beams, beam_search, exact_scores
from gritvq.items.recommenders.content import code_vectors
from gritvq.items.recommenders.generative import GenerativeRecommender
from gritvq.items.recommenders.graph import ItemGraph
from gritvq.items.recommenders.parallel import ParallelScorer, RankedItems
from gritvq.items.recommenders.ranking import (
    rank_in_list,
    rank_of_target,
    ranking_metrics,
    ranks_by_lists,
    ranks_by_scores,
    top_items,
    without_seen,
)
from gritvq.items.recommenders.sasrec import SASRec

__all__ = [
    "Backbone",
    "Beams",
    "Candidates",
    "CatalogueDecoder",
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
]
