"""Structures: quantizers made of quantizers.

A sum (residual, multi-scale) or a concatenation (product) asks its parts for hard values only and applies one surrogate
to the whole. So the encoder gets the upstream gradient once, whatever the number of parts. Structures with trained maps
between their parts (projected, hierarchical) let every part keep its own surrogate where its codes live. Vectors have
their channels last everywhere; :class:`ChannelsFirst` goes around the whole.
"""

from gritvq.quantizers.structures.channels_first import ChannelsFirst
from gritvq.quantizers.structures.hierarchical import HierarchicalQuantizer
from gritvq.quantizers.structures.mapped import BoundedQuantizer, NormalizedQuantizer, ScaledQuantizer
from gritvq.quantizers.structures.multiscale import MultiScaleQuantizer
from gritvq.quantizers.structures.perturbed import PerturbedQuantizer
from gritvq.quantizers.structures.product import ProductQuantizer
from gritvq.quantizers.structures.projected import ProjectedQuantizer
from gritvq.quantizers.structures.residual import ResidualQuantizer

__all__ = [
    "BoundedQuantizer",
    "ChannelsFirst",
    "HierarchicalQuantizer",
    "MultiScaleQuantizer",
    "NormalizedQuantizer",
    "PerturbedQuantizer",
    "ProductQuantizer",
    "ProjectedQuantizer",
    "ResidualQuantizer",
    "ScaledQuantizer",
]
