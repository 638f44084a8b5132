"""How a model learns from batches, as Lightning runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from gritvq.component import Component
from gritvq.saving import tensors_of
from gritvq.training.optimizer import OptimizerSettings
from gritvq.training.run_folder import RunFolder

__all__ = ["LOG_EVERY", "Task", "copy_weights", "steps_done"]

LOG_EVERY = 10  # steps between those that are logged


class Task(LightningModule, ABC):
    """What a run (:func:`gritvq.training.train`) asks of the thing it trains, besides Lightning's own hooks.

    A task has one optimizer, or several: the model's first, then others such as a discriminator's. A step uses each of
    them once. Data, schedules, logs and checkpoints count steps by :attr:`step`, whatever the number of optimizers.

    Args:
        optimizer_settings: Of the model's optimizer.

    Attributes:
        num_optimizers: How many :meth:`configure_optimizers` makes.
        step: Optimizer steps of the model so far.
        accumulate: Batches per step; :func:`~gritvq.training.train` sets it from its plan.
        gradient_clip: Largest gradient norm of each optimizer's parameters, 0 for none; set like ``accumulate``.
    """

    num_optimizers = 1

    def __init__(self, optimizer_settings: OptimizerSettings) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_settings = optimizer_settings
        self.step, self.accumulate, self.gradient_clip = 0, 1, optimizer_settings.gradient_clip
        self._batches, self._log_every = 0, LOG_EVERY  # batches of the step that has begun

    @abstractmethod
    def losses(self, batch: Any) -> Iterable[Tensor]:
        """The losses of one batch, one scalar for each optimizer, in their order.

        With several optimizers write a generator: what follows a ``yield`` runs after the gradients of that loss were
        computed. While a loss is computed only its own optimizer's parameters require gradients. All optimizers step
        after the last loss.
        """

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the model's optimizer trains; groups have the settings' rate and weight decay unless they say others."""

    def configure_optimizers(self) -> Any:
        """The model's optimizer and its schedule; tasks with more of them append theirs to both lists."""
        optimizer, schedule = self.optimizer_settings.optimizer(self.parameter_groups(), self.trainer.max_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch: gradients for every optimizer, and their steps after ``accumulate`` batches.

        Returns:
            The model's loss, detached.

        Raises:
            ValueError: If there are fewer losses than optimizers, or more.
        """
        found: list[Tensor] = []
        optimizers, losses = self._optimizers(), iter(self.losses(batch))
        self._batches += 1
        for optimizer in optimizers:
            with optimizer.toggle_model(sync_grad=self._batches == self.accumulate):
                loss = next(losses, None)
                if loss is None:
                    raise ValueError(f"expected {len(optimizers)} losses, one per optimizer, got {len(found)}")
                if self._batches == 1:
                    optimizer.zero_grad()
                with torch.autocast(self.device.type, enabled=False):
                    self.manual_backward(loss / self.accumulate)
            found.append(loss.detach())
        if next(losses, None) is not None:
            raise ValueError(f"expected {len(optimizers)} losses, one per optimizer, got more")
        if self._batches == self.accumulate:
            with torch.autocast(self.device.type, enabled=False):
                self._step(optimizers)
        return found[0]

    def _step(self, optimizers: list[LightningOptimizer]) -> None:
        """Step all optimizers, the model's last: Lightning counts its step, and ends that of 16-bit runs' scaler."""
        plugin = self.trainer.precision_plugin
        scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        for other in (optimizer.optimizer for optimizer in optimizers[1:]):
            if scaler is not None:
                scaler.unscale_(other)
            self.on_before_optimizer_step(other)
            other.step() if scaler is None else scaler.step(other)
        optimizers[0].step()
        for config in self.trainer.lr_scheduler_configs:
            self.lr_scheduler_step(config.scheduler, None)
        self.step, self._batches = self.step + 1, 0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients; in 16-bit runs they are unscaled by now."""
        self.clip_gradients(optimizer, self.gradient_clip, "norm")

    def _optimizers(self) -> list[LightningOptimizer]:
        found: Any = self.optimizers()
        return found if isinstance(found, list) else [found]

    def setup(self, stage: str) -> None:
        """Begin to count; a checkpoint to go on from is read after this."""
        if stage == "fit":
            self.step = self._batches = 0

    def on_fit_start(self) -> None:
        """Tell Lightning how many batches a step has: its loggers count steps by it."""
        self.trainer.accumulate_grad_batches = self.accumulate
        self._log_every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let Lightning log a step once, with its last batch."""
        self.trainer.log_every_n_steps = 0 if self._batches else self._log_every  # type: ignore[attr-defined]

    @abstractmethod
    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        """Callbacks of a run that writes into a folder, or nothing where None."""

    @property
    def measures_now(self) -> bool:
        """Whether this step measures what costs time: the steps that are written to the logs, and the first."""
        return self.step == 0 or (self.step + 1) % LOG_EVERY == 0

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values that a run has to go on with: a checkpoint keeps them, and another value is refused."""
        kept = {**asdict(self.optimizer_settings), "betas": list(self.optimizer_settings.betas)}
        del kept["gradient_clip"]  # the plan's
        return kept

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the clock and the settings; extended by tasks that keep more."""
        checkpoint["step"], checkpoint["settings"] = self.step, self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set the clock; extended by tasks that keep more."""
        self.step = steps_done(checkpoint)
        if "step" not in checkpoint:  # earlier versions left the steps to Lightning, which counted them elsewhere
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
            progress["total"] = {"ready": self.step, "completed": self.step}

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other settings; extended by tasks whose weights may mean something else.

        Raises:
            ValueError: If a setting differs; the message names it.
        """
        began = checkpoint.get("settings", {})
        if not isinstance(began, dict):
            raise ValueError(f"expected settings by name in the checkpoint, got {began!r}; take another one")
        for name, value in self.settings.items():
            if name in began and began[name] != value:
                raise ValueError(
                    f"expected {name} {began[name]!r} as the run began with, since resuming is the same run, got "
                    f"{value!r}; leave it, or start another run from the weights of this one"
                )

    @abstractmethod
    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None:
        """Write what only the task knows, such as the model as it is loaded again; called once at the end of a run.

        Args:
            run: Where.
            training: What the model may say of the run: plain values by name.
        """


def steps_done(checkpoint: Mapping[str, Any]) -> int:
    """Optimizer steps of the model before a checkpoint; earlier versions kept only Lightning's count."""
    return int(checkpoint["step"] if "step" in checkpoint else checkpoint["global_step"])


def copy_weights(target: Component, source: Component) -> None:
    """Give a component the weights of another one of the same architecture.

    Raises:
        ValueError: If their tensors differ in name or shape; the message names the parts.
    """
    given, own = tensors_of(source), tensors_of(target)
    differing = sorted(
        name
        for name in given.keys() | own.keys()
        if name not in given or name not in own or given[name].shape != own[name].shape
    )
    if differing:
        shapes = [
            f"{name} ({tuple(own[name].shape) if name in own else 'missing'} here, "
            f"{tuple(given[name].shape) if name in given else 'missing'} there)"
            for name in differing[:3]
        ]
        raise ValueError(
            f"expected weights of the same architecture, got others at {', '.join(shapes)}"
            f"{' ...' if len(differing) > 3 else ''}; give the settings of the model that they come from"
        )
    target.load_state_dict(given, strict=False)
