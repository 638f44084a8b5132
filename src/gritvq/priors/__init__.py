"""Generative models of tokens, of any domain. Needs the extra ``priors``, and ``train`` to train them.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.priors.autoregressive import *
    from gritvq.priors.base import *
    from gritvq.priors.data import *
    from gritvq.priors.heads import *
    from gritvq.priors.masked import *
    from gritvq.priors.next_scale import *
    from gritvq.priors.sampling import *
    from gritvq.priors.task import *

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "autoregressive": ["AutoregressivePrior"],
        "base": ["Prior"],
        "data": ["TokenData"],
        "heads": ["BitHead", "DepthHead", "Head", "SoftmaxHead", "head_for"],
        "masked": ["MaskedPrior", "halton_order"],
        "next_scale": ["NextScalePrior"],
        "sampling": ["ConstantGuidance", "Guidance", "LinearGuidance", "PowerCosineGuidance", "sample_seeds"],
        "task": ["PriorTask"],
    },
)
