"""Generative models of tokens, of any domain. Needs the extra ``priors``, and ``train`` to train them.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.priors.autoregressive import AutoregressivePrior
    from gritvq.priors.base import Prior
    from gritvq.priors.data import TokenData
    from gritvq.priors.heads import BitHead, DepthHead, Head, SoftmaxHead, head_for
    from gritvq.priors.masked import MaskedPrior, halton_order
    from gritvq.priors.next_scale import NextScalePrior
    from gritvq.priors.sampling import (
        ConstantGuidance,
        Guidance,
        LinearGuidance,
        PowerCosineGuidance,
        sample_seeds,
    )
    from gritvq.priors.task import PriorTask

__all__ = [
    "AutoregressivePrior",
    "BitHead",
    "ConstantGuidance",
    "DepthHead",
    "Guidance",
    "Head",
    "LinearGuidance",
    "MaskedPrior",
    "NextScalePrior",
    "PowerCosineGuidance",
    "Prior",
    "PriorTask",
    "SoftmaxHead",
    "TokenData",
    "halton_order",
    "head_for",
    "sample_seeds",
]

__getattr__ = lazy_names(
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
