"""Training: tasks, callbacks, objectives and whole runs, of any domain. Needs the extra ``train``.

Names are imported when they are first used, so that measuring a tokenizer does not wait for Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.training.callbacks import *
    from gritvq.training.data import *
    from gritvq.training.diagnosis import *
    from gritvq.training.objectives import *
    from gritvq.training.optimizer import *
    from gritvq.training.progress import *
    from gritvq.training.run import *
    from gritvq.training.run_folder import *
    from gritvq.training.task import *

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "callbacks": [
            "CodebookInitialization",
            "CodebookUpdate",
            "CollapseWarning",
            "FrozenStage",
            "RandomState",
            "WeightAverage",
        ],
        "data": ["DataModule", "TrainingData"],
        "diagnosis": ["examine_logs", "read_logs"],
        "objectives": ["ElboObjective", "Objective", "ReconstructionObjective", "TwoPathObjective", "objective_for"],
        "optimizer": ["OptimizerSettings"],
        "progress": ["Pace", "StepProgress"],
        "run": ["TrainingPlan", "seed_everything", "train"],
        "run_folder": ["RunFolder"],
        "task": ["Task"],
    },
)
