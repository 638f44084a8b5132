"""Recommendation of the next item: ranking metrics, floors, SASRec."""

from gritvq.recommend.floors import CoOccurrence, Popularity, TextCosine
from gritvq.recommend.ranking import (
    rank_in_list,
    rank_of_target,
    ranking_metrics,
    ranks_by_lists,
    ranks_by_scores,
    top_items,
)
from gritvq.recommend.sasrec import SASRec

__all__ = [
    "CoOccurrence",
    "Popularity",
    "SASRec",
    "TextCosine",
    "rank_in_list",
    "rank_of_target",
    "ranking_metrics",
    "ranks_by_lists",
    "ranks_by_scores",
    "top_items",
]
