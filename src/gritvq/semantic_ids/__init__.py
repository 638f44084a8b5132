"""Semantic ids: items named by tuples of codes."""

from gritvq.semantic_ids.trie import PrefixTrie, TrieLogitsProcessor

__all__ = ["PrefixTrie", "TrieLogitsProcessor"]
