"""The processes of a distributed run, before training starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ParallelStrategy

from gritvq.training.run import TrainingPlan, silence

__all__ = ["Launch"]

_Result = TypeVar("_Result")
_STARTED_BY = "GRITVQ_STARTED_BY"  # id of the process that started this one


class Launch:
    """The processes that a plan asks for, as detected by Lightning.

    Either the first process starts the others when training begins, or ``srun`` or ``torchrun`` starts all of them.
    What the first process decides for all, such as whether a folder is empty, goes through :meth:`agree`.

    Args:
        plan: Accelerator, devices, nodes and precision.

    Attributes:
        first: Whether this is the process that writes files.

    Raises:
        ValueError: If the accelerator or the devices are missing, or the plan does not fit the started processes.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        silence()
        child = os.environ.get(_STARTED_BY) == str(os.getppid())
        os.environ[_STARTED_BY] = str(os.getpid())
        asked = f"{plan.accelerator!r}, {plan.devices} devices on {plan.num_nodes} nodes and {plan.precision!r}"
        try:
            trainer = Trainer(
                accelerator=plan.accelerator,
                devices=plan.devices,
                num_nodes=plan.num_nodes,
                precision=plan.precision,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            self._strategy, self._beside = trainer.strategy, False
            if isinstance(trainer.strategy, ParallelStrategy) and trainer.strategy.cluster_environment is not None:
                environment = trainer.strategy.cluster_environment
                environment.validate_settings(plan.devices, plan.num_nodes)
                self._beside = environment.creates_processes_externally and trainer.world_size > 1 and not child
        except (MisconfigurationException, ImportError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"expected an accelerator, devices and a precision that this machine has, got {asked} ({error}); try "
                "--plan.accelerator auto"
            ) from error
        self.first = trainer.is_global_zero
        if trainer.world_size == 1 and (number := _others()):
            raise ValueError(
                f"expected one process for one device, got process {number} beside it; give --plan.devices, the "
                "processes on each node, and --plan.num_nodes"
            )

    def agree(self, job: Callable[[], None]) -> None:
        """Call ``job`` in the first process; the others wait, and all fail if it fails.

        Raises:
            ValueError: If the job raised one, or, in the other processes, an OSError.
            OSError: If the job raised one.
        """
        if self._beside and not dist.is_initialized():
            self._strategy.setup_environment()
        problem, own = None, None
        if self.first:
            try:
                job()
            except (ValueError, OSError) as error:
                problem, own = str(error), error
        if self._beside:
            problem = self._strategy.broadcast(problem)
        if own is not None:
            raise own  # which also knows the file
        if problem is not None:
            raise ValueError(problem)

    def share(self, job: Callable[[], _Result]) -> _Result | None:
        """What ``job`` returns in the first process; the others wait for it, and all fail if it fails.

        Returns:
            It, or None in a process that the first one started when training began: by then the job was done.

        Raises:
            ValueError: As :meth:`agree`.
            OSError: As :meth:`agree`.
        """
        made: list[_Result] = []
        self.agree(lambda: made.append(job()))
        found = made[0] if made else None
        return self._strategy.broadcast(found) if self._beside else found


def _others() -> int:
    """Number of this process, from 1, if it was started as one of several; else 0."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["RANK"]) + 1 if int(os.environ["WORLD_SIZE"]) > 1 else 0
    return int(os.environ.get("SLURM_PROCID", 0)) if SLURMEnvironment.detect() else 0
