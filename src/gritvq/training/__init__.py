"""Training: tasks, callbacks, objectives and whole runs, of any domain. Needs the extra ``train``.

Names are imported when they are first used, so that measuring a tokenizer does not wait for Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.training.callbacks import (
        CodebookInitialization,
        CodebookUpdate,
        CollapseWarning,
        FrozenStage,
        RandomState,
        StepProgress,
        WeightAverage,
    )
    from gritvq.training.data import DataModule, TrainingData
    from gritvq.training.objectives import (
        ElboObjective,
        Objective,
        ReconstructionObjective,
        TwoPathObjective,
        objective_for,
    )
    from gritvq.training.optimizer import OptimizerSettings
    from gritvq.training.run import TrainingPlan, seed_everything, train
    from gritvq.training.run_folder import RunFolder
    from gritvq.training.task import Task

__all__ = [
    "CodebookInitialization",
    "CodebookUpdate",
    "CollapseWarning",
    "DataModule",
    "ElboObjective",
    "FrozenStage",
    "Objective",
    "OptimizerSettings",
    "RandomState",
    "ReconstructionObjective",
    "RunFolder",
    "StepProgress",
    "Task",
    "TrainingData",
    "TrainingPlan",
    "TwoPathObjective",
    "WeightAverage",
    "objective_for",
    "seed_everything",
    "train",
]

__getattr__ = lazy_names(
    __name__,
    {
        "callbacks": [
            "CodebookInitialization",
            "CodebookUpdate",
            "CollapseWarning",
            "FrozenStage",
            "RandomState",
            "StepProgress",
            "WeightAverage",
        ],
        "data": ["DataModule", "TrainingData"],
        "objectives": ["ElboObjective", "Objective", "ReconstructionObjective", "TwoPathObjective", "objective_for"],
        "optimizer": ["OptimizerSettings"],
        "run": ["TrainingPlan", "seed_everything", "train"],
        "run_folder": ["RunFolder"],
        "task": ["Task"],
    },
)
