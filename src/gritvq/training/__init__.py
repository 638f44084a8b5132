"""Training: tasks, callbacks, pictures and whole runs. Needs the extra ``train``.

The names are imported when they are first used, so that measuring a tokenizer does not wait for Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gritvq.training.callbacks import (
        CodebookInitialization,
        CodebookUpdate,
        CollapseWarning,
        Pictures,
        RandomState,
        StepProgress,
    )
    from gritvq.training.data import DataModule, TrainingData
    from gritvq.training.evaluation import evaluate, token_statistics
    from gritvq.training.losses import (
        ElboObjective,
        Objective,
        ReconstructionObjective,
        TwoPathObjective,
        objective_for,
    )
    from gritvq.training.recommender import BestRecommender, RecommenderTask
    from gritvq.training.runs import TrainingPlan, train
    from gritvq.training.tasks import Task, TokenizerTask

__all__ = [
    "BestRecommender",
    "CodebookInitialization",
    "CodebookUpdate",
    "CollapseWarning",
    "DataModule",
    "ElboObjective",
    "Objective",
    "Pictures",
    "RandomState",
    "RecommenderTask",
    "ReconstructionObjective",
    "StepProgress",
    "Task",
    "TokenizerTask",
    "TrainingData",
    "TrainingPlan",
    "TwoPathObjective",
    "evaluate",
    "objective_for",
    "token_statistics",
    "train",
]
_MODULES = {
    "callbacks": {
        "CodebookInitialization",
        "CodebookUpdate",
        "CollapseWarning",
        "Pictures",
        "RandomState",
        "StepProgress",
    },
    "data": {"DataModule", "TrainingData"},
    "evaluation": {"evaluate", "token_statistics"},
    "losses": {"ElboObjective", "Objective", "ReconstructionObjective", "TwoPathObjective", "objective_for"},
    "recommender": {"BestRecommender", "RecommenderTask"},
    "runs": {"TrainingPlan", "train"},
    "tasks": {"Task", "TokenizerTask"},
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"gritvq.training.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
