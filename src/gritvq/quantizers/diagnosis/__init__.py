"""What is wrong with a codebook, in words: from a quantizer, vectors that it is given, and how it is trained.

:func:`examine` looks for the faults of :data:`SEVERITY`, each by one number and one limit, and says nothing about a
quantizer without them. The limits are far from what trained quantizers show, not near it: a finding is a fault, not a
hint that something could be better.
"""

from gritvq.quantizers.diagnosis.examination import examine
from gritvq.quantizers.diagnosis.findings import (
    SEVERITY,
    Finding,
    TrainingFacts,
    least_usage,
    most_severe_first,
    usage_findings,
    zipf_perplexity,
)

__all__ = [
    "SEVERITY",
    "Finding",
    "TrainingFacts",
    "examine",
    "least_usage",
    "most_severe_first",
    "usage_findings",
    "zipf_perplexity",
]
