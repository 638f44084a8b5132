"""Semantic ids: items named by tuples of codes, what happens to equal ones, and how good they are."""

from gritvq.semantic_ids.artefact import FORMAT_VERSION, SemanticIds
from gritvq.semantic_ids.collisions import Policy, resolve

__all__ = ["FORMAT_VERSION", "Policy", "SemanticIds", "resolve"]
