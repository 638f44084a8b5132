"""Semantic ids: items named by tuples of codes, what happens to equal ones, how good they are, and their trie."""

from gritvq.semantic_ids.artefact import FORMAT_VERSION, SemanticIds
from gritvq.semantic_ids.collisions import Policy, resolve
from gritvq.semantic_ids.trie import PrefixTrie, TrieLogitsProcessor

__all__ = ["FORMAT_VERSION", "Policy", "PrefixTrie", "SemanticIds", "TrieLogitsProcessor", "resolve"]
