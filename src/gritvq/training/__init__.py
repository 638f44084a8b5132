"""Training: tasks, callbacks, pictures and whole runs. Needs the extra ``train``."""

from gritvq.training.callbacks import (
    CodebookInitialization,
    CodebookUpdate,
    CollapseWarning,
    Pictures,
    RandomState,
    StepProgress,
)
from gritvq.training.losses import Objective, ReconstructionObjective, TwoPathObjective
from gritvq.training.runs import TrainingPlan, evaluate, train
from gritvq.training.tasks import TokenizerTask

__all__ = [
    "CodebookInitialization",
    "CodebookUpdate",
    "CollapseWarning",
    "Objective",
    "Pictures",
    "RandomState",
    "ReconstructionObjective",
    "StepProgress",
    "TokenizerTask",
    "TrainingPlan",
    "TwoPathObjective",
    "evaluate",
    "train",
]
