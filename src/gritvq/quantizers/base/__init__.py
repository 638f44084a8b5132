"""The interfaces: a quantizer, its result, its four kinds of parts, and the statistics that learning works from."""

from gritvq.quantizers.base.attachment import Attachment
from gritvq.quantizers.base.parts import (
    Assignment,
    Codebook,
    Context,
    Exactness,
    LearningRule,
    Surrogate,
    keeping_precision,
)
from gritvq.quantizers.base.quantizer import Quantizer, QuantizerOutput, TokenScale, check_quantizer, least_exact
from gritvq.quantizers.base.schedules import DecaySchedule, LinearSchedule, Schedule, scheduled
from gritvq.quantizers.base.statistics import CodeStatistics
from gritvq.quantizers.base.wrapped import WrappedQuantizer

__all__ = [
    "Assignment",
    "Attachment",
    "CodeStatistics",
    "Codebook",
    "Context",
    "DecaySchedule",
    "Exactness",
    "LearningRule",
    "LinearSchedule",
    "Quantizer",
    "QuantizerOutput",
    "Schedule",
    "Surrogate",
    "TokenScale",
    "WrappedQuantizer",
    "check_quantizer",
    "keeping_precision",
    "least_exact",
    "scheduled",
]
