"""Semantic ids: items named by tuples of codes, what happens to equal ones, how good they are, and their trie."""

from gritvq.items.ids.collisions import Policy, resolve
from gritvq.items.ids.filters import FilteredOrder, ItemFilter
from gritvq.items.ids.semantic_ids import FORMAT_VERSION, SemanticIds
from gritvq.items.ids.trie import PrefixTrie, TrieLogitsProcessor

__all__ = [
    "FORMAT_VERSION",
    "FilteredOrder",
    "ItemFilter",
    "Policy",
    "PrefixTrie",
    "SemanticIds",
    "TrieLogitsProcessor",
    "resolve",
]
