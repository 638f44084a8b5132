"""Recommendation of the next item: ranking metrics, floors, SASRec, generative models with their search."""

from gritvq.recommend.backbones import Backbone, DepthDecoder, EncoderDecoder, TokenDecoder
from gritvq.recommend.floors import CoOccurrence, Popularity, TextCosine
from gritvq.recommend.model import GenerativeRecommender
from gritvq.recommend.ranking import (
    rank_in_list,
    rank_of_target,
    ranking_metrics,
    ranks_by_lists,
    ranks_by_scores,
    top_items,
)
from gritvq.recommend.sasrec import SASRec
from gritvq.recommend.search import Beams, beam_search, exact_scores

__all__ = [
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
]
