"""Training: tasks, callbacks, pictures and whole runs. Needs the extra ``train``."""

from gritvq.training.callbacks import (
    CodebookInitialization,
    CodebookUpdate,
    CollapseWarning,
    Pictures,
    RandomState,
    StepProgress,
)
from gritvq.training.losses import ElboObjective, Objective, ReconstructionObjective, TwoPathObjective, objective_for
from gritvq.training.recommender import BestRecommender, RecommenderTask
from gritvq.training.runs import TrainingPlan, evaluate, train
from gritvq.training.tasks import Task, TokenizerTask

__all__ = [
    "BestRecommender",
    "CodebookInitialization",
    "CodebookUpdate",
    "CollapseWarning",
    "ElboObjective",
    "Objective",
    "Pictures",
    "RandomState",
    "RecommenderTask",
    "ReconstructionObjective",
    "StepProgress",
    "Task",
    "TokenizerTask",
    "TrainingPlan",
    "TwoPathObjective",
    "evaluate",
    "objective_for",
    "train",
]
