"""Text: data, segment-wise variational transformers, the text tokenizer, and their training. Needs the extra ``text``.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.text.corpus import *
    from gritvq.text.data import *
    from gritvq.text.evaluation import *
    from gritvq.text.generation import *
    from gritvq.text.networks import *
    from gritvq.text.segments import *
    from gritvq.text.subwords import *
    from gritvq.text.task import *
    from gritvq.text.tokenizer import *

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "corpus": ["DOCSTRINGS", "Corpus", "Reading"],
        "data": ["TextData"],
        "evaluation": [
            "TextDiversity",
            "TextEvaluation",
            "distinct_n",
            "evaluate_text",
            "mutual_information",
            "self_bleu",
            "text_diversity",
        ],
        "generation": ["Writing"],
        "networks": [
            "GaussianLatents",
            "IdempotentRecurrence",
            "SegmentDecoder",
            "SegmentEncoder",
            "Standardize",
            "TextTransformer",
            "TraceModel",
            "TraceOutput",
            "gaussian_vae",
            "language_model",
            "trace",
        ],
        "segments": ["Segmentation", "TextBatch", "TextFormat"],
        "subwords": ["Subwords"],
        "task": ["CyclicSchedule", "TextTask", "TextTokenizerTask"],
        "tokenizer": ["TextTokenizer", "segment_tokenizer"],
    },
)
