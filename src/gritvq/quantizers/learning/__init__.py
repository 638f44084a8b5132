"""Learning rules: what moves or regularizes the codes.

Losses average over valid vectors and, where they compare vectors, over the D components too, so that weights keep their
meaning across dimensions; a rule that does otherwise says so. Rules that act after the optimizer's step read reduced
:class:`~gritvq.CodeStatistics`.
"""

from gritvq.quantizers.learning.distribution import DistributionConsistencyLoss
from gritvq.quantizers.learning.drift import DriftLoss
from gritvq.quantizers.learning.losses import CodebookLoss, CommitmentLoss, EntropyLoss, OrthogonalityLoss
from gritvq.quantizers.learning.transport import WassersteinLoss
from gritvq.quantizers.learning.updates import DeadCodeRevival, EMAUpdate

__all__ = [
    "CodebookLoss",
    "CommitmentLoss",
    "DeadCodeRevival",
    "DistributionConsistencyLoss",
    "DriftLoss",
    "EMAUpdate",
    "EntropyLoss",
    "OrthogonalityLoss",
    "WassersteinLoss",
]
