"""Assignments: which code a vector gets.

Hard assignments name a row of the table; differentiable ones mix rows and carry their own gradient to the vector, so
that no surrogate is used.
"""

from gritvq.quantizers.assignments.convex import ConvexAssignment
from gritvq.quantizers.assignments.nearest import NearestAssignment
from gritvq.quantizers.assignments.soft import SampledAssignment, SoftAssignment
from gritvq.quantizers.assignments.space_filling import SpaceFillingAssignment

__all__ = [
    "ConvexAssignment",
    "NearestAssignment",
    "SampledAssignment",
    "SoftAssignment",
    "SpaceFillingAssignment",
]
