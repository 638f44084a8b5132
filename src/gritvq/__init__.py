"""gritvq: continuous vectors into discrete tokens and back, with codebooks that do not collapse."""

from typing import TYPE_CHECKING

from gritvq.component import Component, from_config, to_config
from gritvq.lazy import lazy_names
from gritvq.quantizers import assignments, codebooks, learning, lookup_free, presets, stochastic, structures, surrogates
from gritvq.quantizers.assignments import *
from gritvq.quantizers.base import (
    Assignment,
    Codebook,
    CodeStatistics,
    Context,
    DecaySchedule,
    LearningRule,
    LinearSchedule,
    Quantizer,
    QuantizerOutput,
    Schedule,
    Surrogate,
    WrappedQuantizer,
)
from gritvq.quantizers.codebooks import *
from gritvq.quantizers.learning import *
from gritvq.quantizers.lookup_free import *
from gritvq.quantizers.metrics import CodebookUsage
from gritvq.quantizers.presets import *
from gritvq.quantizers.stochastic import *
from gritvq.quantizers.structures import *
from gritvq.quantizers.surrogates import *
from gritvq.quantizers.vector_quantizer import VectorQuantizer
from gritvq.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gritvq.images.metrics import ReconstructionError
    from gritvq.items.ids import SemanticIds

__version__ = "0.1.0"
build, describe = from_config, to_config  # their names in earlier versions

__all__ = [
    "Assignment",
    "CodeStatistics",
    "Codebook",
    "CodebookUsage",
    "Component",
    "Context",
    "DecaySchedule",
    "LearningRule",
    "LinearSchedule",
    "Quantizer",
    "QuantizerOutput",
    "ReconstructionError",
    "Schedule",
    "SemanticIds",
    "Surrogate",
    "Tokenizer",
    "VectorQuantizer",
    "WrappedQuantizer",
    "build",
    "describe",
    "from_config",
    "to_config",
]
__all__ += assignments.__all__
__all__ += codebooks.__all__
__all__ += learning.__all__
__all__ += lookup_free.__all__
__all__ += presets.__all__
__all__ += stochastic.__all__
__all__ += structures.__all__
__all__ += surrogates.__all__

# Wings with needs of their own, and names that they keep here.
__getattr__ = lazy_names(
    __name__,
    {
        "images": ["ReconstructionError"],
        "items": ["SemanticIds"],
        "priors": [],
        "text": [],
        "tokens": [],
        "training": [],
    },
)[0]
