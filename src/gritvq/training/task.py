"""The base class of training tasks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from gritvq.component import Component
from gritvq.distributed import all_reduce_sum, mean_of_shares, process_number
from gritvq.saving import is_extra_state, tensors_of
from gritvq.training.optimizer import OptimizerSettings
from gritvq.training.parallel import Sharded
from gritvq.training.run_folder import RunFolder

__all__ = ["LOG_EVERY", "Task", "copy_weights", "differing_names", "steps_done"]

LOG_EVERY = 10  # steps between those that are logged


class Task(LightningModule, ABC):
    """A model, its losses and its optimizers: what :func:`gritvq.training.train` runs.

    The first optimizer is the model's; others, such as a discriminator's, may follow. A step uses each of them once.
    Data, schedules, logs and checkpoints count :attr:`step`, whatever the number of optimizers.

    Args:
        optimizer_settings: Settings of the model's optimizer.

    Attributes:
        num_optimizers: Number of optimizers that :meth:`configure_optimizers` returns.
        step: Optimizer steps of the model so far.
        accumulate: Batches per step; :func:`~gritvq.training.train` sets it from its plan.
        gradient_clip: Largest gradient norm of each optimizer's parameters, 0 for none; set by the plan, too.
    """

    num_optimizers = 1

    def __init__(self, optimizer_settings: OptimizerSettings) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_settings = optimizer_settings
        self.step, self.accumulate, self.gradient_clip = 0, 1, optimizer_settings.gradient_clip
        self._batches, self._log_every = 0, LOG_EVERY  # batches of the current step so far
        self._logged = False
        self._seen: dict[str, tuple[float, int]] = {}  # by loss: see _occasional
        self._measured: dict[str, list[float]] = {}  # of a validation so far: weighted sum and sum of the weights

    @abstractmethod
    def losses(self, batch: Any) -> Iterable[Tensor]:
        """The losses of one batch: one scalar per optimizer, in the same order.

        With several optimizers write a generator: the code after a ``yield`` runs after that loss's backward pass.
        While a loss is computed, only its own optimizer's parameters require gradients. All optimizers step after the
        last loss. A loss that depends on nothing, such as ``torch.zeros(())``, leaves its optimizer's parameters alone.
        """

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the model's optimizer; lr and weight decay default to the settings'."""

    def configure_optimizers(self) -> Any:
        """The model's optimizer and its schedule; subclasses with more of them append to both lists."""
        optimizer, schedule = self.optimizer_settings.optimizer(self.parameter_groups(), self.trainer.max_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Backward pass of every loss; after ``accumulate`` batches all optimizers step.

        Returns:
            The model's loss, detached.

        Raises:
            ValueError: If the number of losses is not the number of optimizers.
        """
        found: list[Tensor] = []
        optimizers, losses = self._optimizers(), iter(self.losses(batch))
        wanted = f"expected {len(optimizers)} losses, one per optimizer"
        self._batches += 1
        for optimizer in optimizers:
            with optimizer.toggle_model(sync_grad=self._batches == self.accumulate):
                loss = next(losses, None)
                if loss is None:
                    raise ValueError(f"{wanted}, got {len(found)}; yield them in losses()")
                if self._batches == 1:
                    optimizer.zero_grad()
                if loss.grad_fn is not None:  # else DDP would wait for a gradient that never comes
                    with torch.autocast(self.device.type, enabled=False):
                        self.manual_backward(loss / self.accumulate)
            found.append(loss.detach())
        if next(losses, None) is not None:
            raise ValueError(f"{wanted}, got more; set num_optimizers")
        if self._batches == self.accumulate:
            with torch.autocast(self.device.type, enabled=False):
                self._step(optimizers)
        return found[0]

    def _step(self, optimizers: list[LightningOptimizer]) -> None:
        """Step all optimizers, the model's last: Lightning counts its steps and updates the gradient scaler there."""
        plugin = self.trainer.precision_plugin
        scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        for other in (optimizer.optimizer for optimizer in optimizers[1:]):
            if scaler is not None:
                scaler.unscale_(other)
            self.on_before_optimizer_step(other)
            has_gradients = any(p.grad is not None for group in other.param_groups for p in group["params"])
            if scaler is not None and has_gradients:  # it refuses an optimizer without any
                scaler.step(other)
            else:
                other.step()
        optimizers[0].step()
        for config in self.trainer.lr_scheduler_configs:
            self.lr_scheduler_step(config.scheduler, None)
        self.step, self._batches = self.step + 1, 0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients, which are unscaled by now."""
        strategy = self.trainer.strategy
        if isinstance(strategy, Sharded):
            strategy.finish_gradients(optimizer, self.gradient_clip)
            return
        self.clip_gradients(optimizer, self.gradient_clip, "norm")

    def _optimizers(self) -> list[LightningOptimizer]:
        found: Any = self.optimizers()
        return found if isinstance(found, list) else [found]

    def setup(self, stage: str) -> None:
        """Reset the step; a checkpoint is loaded after this."""
        if stage == "fit":
            self.step = self._batches = 0
            self._seen = {}

    def on_fit_start(self) -> None:
        """Set Lightning's number of batches per step, by which its loggers count steps."""
        self.trainer.accumulate_grad_batches = self.accumulate
        self._log_every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log each step once, with its last batch."""
        silent = self._batches > 0 or self._logged
        self.trainer.log_every_n_steps = 0 if silent else self._log_every  # type: ignore[attr-defined]
        self._logged = False

    @property
    def ends_step(self) -> bool:
        """Whether the batch that has just been computed was the last one of its step."""
        return self._batches == 0

    def log_now(self) -> None:
        """Hand the metrics of this step to the loggers, as Lightning does after the callbacks of its last batch."""
        self.trainer.log_every_n_steps = self._log_every  # type: ignore[attr-defined]
        self.trainer._logger_connector.update_train_step_metrics()
        self._logged = True

    @abstractmethod
    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        """Callbacks of the run; ``run`` is None if it writes nothing."""

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """Parts of the model that a plan with ``compile`` compiles: none."""
        return []

    @property
    def sharded_parts(self) -> list[str]:
        """Names of the parts of the model that a plan with the strategy ``"fsdp"`` shards: none.

        Their parameters must be used in calls of the parts only; codebooks stay whole.
        """
        return []

    @property
    def measures_now(self) -> bool:
        """Whether to compute expensive metrics in this step: the first step and those that are logged."""
        return self.step == 0 or (self.step + 1) % LOG_EVERY == 0

    def check_finite(self, loss: Tensor, advice: str = "lower the learning rate, or clip gradients") -> None:
        """Stop a training that has failed.

        Raises:
            ValueError: If the loss is not finite; the message ends with the advice.
        """
        if not torch.isfinite(loss):
            raise ValueError(f"expected a finite loss, got {float(loss.detach())} at step {self.step}; {advice}")

    def log_losses(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log ``train/NAME``: the losses of the joined batch, which are means of the processes' shares.

        Losses that use :func:`gritvq.distributed.joined_mean` and its like are such shares. With several processes
        those that occur in every step are logged in steps in which :attr:`measures_now` holds, which the loggers write.

        Returns:
            What is logged, detached, the same on every process; in other steps the own shares.
        """
        own = {name: loss.detach() for name, loss in losses.items()}
        occasional = [name for name in losses if self._occasional(name)]
        if process_number()[1] > 1 and not self.measures_now:
            losses = {name: losses[name] for name in occasional}
            if not losses:
                return own
        joined = mean_of_shares(torch.stack([loss.detach().float() for loss in losses.values()]))
        found = dict(zip(losses, joined, strict=True))
        self.log_dict({f"train/{name}": loss for name, loss in found.items()})
        return {**own, **found}

    def _occasional(self, name: str) -> bool:
        """Whether a loss has not been in every step since its first one, or this step is its first.

        Remembers of each loss the first step, infinite once the loss has left a step out, and the last one.
        """
        first, last = self._seen.get(name, (self.step, self.step))
        first = first if self.step <= last + 1 else math.inf
        self._seen[name] = (first, self.step)
        return self.step <= first

    def log_validation(self, means: Mapping[str, Tensor | float], weight: float) -> None:
        """Add means over one validation batch to those over the whole set, ``val/NAME``, of all processes.

        Args:
            means: Means by name.
            weight: Number of things that they are means over.
        """
        for name, mean in means.items():
            sums = self._measured.setdefault(name, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + weight * float(mean), sums[1] + weight

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._measured = {}

    def on_validation_epoch_end(self) -> None:
        """Log the means over the whole set.

        The first process has a batch if any has, see :func:`gritvq.training.data.own_share`, so it knows their names.
        """
        names = self.trainer.strategy.broadcast(list(self._measured))
        if names:
            sums = torch.tensor([self._measured.get(name, (0.0, 0.0)) for name in names], dtype=torch.float64)
            total, weight = all_reduce_sum(sums).T
            means = (total / weight).float()
            self.log_dict({f"val/{name}": mean for name, mean in zip(names, means, strict=True)})

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that a resumed run must not change; saved in checkpoints as plain values."""
        kept = {**asdict(self.optimizer_settings), "betas": list(self.optimizer_settings.betas)}
        del kept["gradient_clip"]  # set by the plan
        return kept

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the step and the settings; subclasses may add more."""
        checkpoint["step"], checkpoint["settings"] = self.step, self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the step; subclasses may restore more."""
        self.step = steps_done(checkpoint)
        if "step" not in checkpoint:  # earlier versions saved Lightning's count only
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
            progress["total"] = {"ready": self.step, "completed": self.step}

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint has the same settings; subclasses may check more.

        Raises:
            ValueError: If a setting differs; the message names it.
        """
        began = checkpoint.get("settings", {})
        if not isinstance(began, dict):
            raise ValueError(f"expected settings by name in the checkpoint, got {began!r}; use another one")
        for name, value in self.settings.items():
            if name in began and _differ(began[name], value):
                raise ValueError(
                    f"expected {name} {began[name]!r} as at the start of the resumed run, got {value!r}; leave it "
                    "unchanged, or start a new run from the weights of this one"
                )

    @abstractmethod
    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None:
        """Save the trained model and other results; called once at the end of a run.

        Args:
            run: The run's folder.
            training: Version, steps and seed, to save with the model.
        """


def _differ(one: Any, other: Any) -> bool:
    """Whether two settings differ, whatever a damaged file has there."""
    try:
        return bool(one != other)
    except RuntimeError:  # a tensor of several values
        return True


def steps_done(checkpoint: Mapping[str, Any]) -> int:
    """Optimizer steps of the model in a checkpoint; earlier versions saved Lightning's count only."""
    return int(checkpoint["step"] if "step" in checkpoint else checkpoint["global_step"])


def differing_names(given: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Sorted names of tensors that are in only one of two state dicts, or have different shapes.

    Of statistics only the name counts: those of older versions are no tensors, and whoever loads them looks at sizes.
    """
    shapes = (
        {name: 0 if is_extra_state(name) else getattr(value, "shape", 0) for name, value in state.items()}
        for state in (given, own)
    )
    return sorted({name for name, _ in set.symmetric_difference(*(set(each.items()) for each in shapes))})


def copy_weights(target: Component, source: Component) -> None:
    """Copy the weights of a component of the same architecture.

    Raises:
        ValueError: If tensors differ in name or shape; the message names them.
    """
    given, own = tensors_of(source), tensors_of(target)
    if differing := differing_names(given, own):
        shapes = [
            f"{name} ({tuple(own[name].shape) if name in own else 'missing'} here, "
            f"{tuple(given[name].shape) if name in given else 'missing'} there)"
            for name in differing[:3]
        ]
        raise ValueError(
            f"expected weights of the same architecture, got others at {', '.join(shapes)}"
            f"{' ...' if len(differing) > 3 else ''}; use the settings of the model that they come from"
        )
    target.load_state_dict(given, strict=False)
