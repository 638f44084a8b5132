"""Callbacks for training tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gritvq.component import check_integer
from gritvq.distributed import all_gather_rows, process_number
from gritvq.quantizers.vector_quantizer import VectorQuantizer
from gritvq.tokenizer import Autoencoder
from gritvq.training.parallel import Sharded
from gritvq.training.task import Task

__all__ = [
    "CodebookInitialization",
    "CodebookUpdate",
    "CollapseWarning",
    "FrozenStage",
    "RandomState",
    "WeightAverage",
    "check_callbacks",
    "collapse_advice",
]

log = logging.getLogger("gritvq")


def _tokenizer(task: LightningModule) -> Autoencoder:
    return cast(Autoencoder, task.tokenizer)


class CodebookInitialization(Callback):
    """Initializes the codebook from the latents of the first batches, if ``quantizer.wants_initialization``.

    Args:
        vectors_per_code: Latents collected per code.
        max_batches: Largest number of batches read.
    """

    def __init__(self, vectors_per_code: int = 4, max_batches: int = 64) -> None:
        self.vectors_per_code, self.max_batches = vectors_per_code, max_batches

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect latents and initialize; a resumed run skips this."""
        tokenizer = _tokenizer(pl_module)
        if cast(Task, pl_module).step > 0 or not tokenizer.quantizer.wants_initialization:
            return
        wanted = self.vectors_per_code * max(tokenizer.quantizer.codebook_sizes)
        latents: list[Tensor] = []
        assert trainer.train_dataloader is not None
        for number, images in enumerate(trainer.train_dataloader):
            found = tokenizer.latents(images.to(pl_module.device))
            rows = found if tokenizer.quantizer.layout else found.flatten(0, -2)  # grids stay whole
            latents.append(all_gather_rows(rows))
            vectors = sum(part.numel() // part.shape[-1] for part in latents)
            if number + 1 >= self.max_batches or vectors >= wanted:
                break
        rank, world = process_number()  # which gather their shares in the order of the ranks: that of one process
        tokenizer.quantizer.initialize_codebook(torch.cat(latents).tensor_split(world)[rank])


class CodebookUpdate(Callback):
    """Calls ``update_codebook`` once after every optimizer step, also with gradient accumulation."""

    def __init__(self) -> None:
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the first step, which is not 0 in a resumed run."""
        self.step = cast(Task, pl_module).step
        _tokenizer(pl_module).quantizer.expect_updates()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the codebook if the optimizer has stepped."""
        if cast(Task, pl_module).step != self.step:
            self.step = cast(Task, pl_module).step
            _tokenizer(pl_module).quantizer.update_codebook(trainer.optimizers[0])


class WeightAverage(Callback):
    r"""Keeps a moving average of the weights, which is what is validated, measured, saved and exported.

    After step t, ``a_t = d_t a_{t-1} + (1 - d_t) w_t`` with ``d_t = min(decay, (1 + t) / (10 + t))`` and ``a_0 = w_1``,
    where t counts updates from 1, for all weights that the model's optimizer trains. Buffers, codes that follow the
    data by themselves, and a discriminator are not averaged.

    Training goes on from the weights themselves: checkpoints hold both, and a resumed run is bitwise the same. A run
    that resumes from a checkpoint without averages starts them anew.

    Args:
        decay: Upper end of d, in [0, 1).
        warmup: Whether d grows towards it; else it is ``decay`` from the first update.

    Raises:
        ValueError: If the decay is out of range.

    References:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the growing decay is that of
        TensorFlow's ExponentialMovingAverage. Lightning's own WeightAveraging keeps no weights to go on from after the
        last step, averages the whole task, and puts averages where a checkpoint's weights are looked for.
    """

    def __init__(self, decay: float = 0.999, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"expected decay in [0, 1), got {decay!r}")
        self.decay, self.warmup = float(decay), warmup
        self._begin()

    def _begin(self) -> None:
        self.num_updates, self._step = 0, 0
        self._averages: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}  # the weights themselves, while the averages are in their place

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin; a checkpoint to go on from is read after this."""
        if stage == "fit":
            self._begin()

    def state_dict(self) -> dict[str, Any]:
        """The averages by the weights' names, and how many updates they have."""
        return {"averages": self._averages, "num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the averages of a checkpoint."""
        self._averages, self.num_updates = dict(state_dict["averages"]), int(state_dict["num_updates"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the averages to the weights' device."""
        check_callbacks([type(self)], isinstance(trainer.strategy, Sharded))  # in a trainer of one's own
        weights, self._step = _trained_weights(trainer), cast(Task, pl_module).step
        if self._averages and {name: each.shape for name, each in self._averages.items()} != {
            name: each.shape for name, each in weights.items()
        }:
            raise ValueError("expected averages of the weights that are trained, got others in the checkpoint")
        self._averages = {name: each.to(weights[name].device) for name, each in self._averages.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update if the optimizer moved."""
        if cast(Task, pl_module).step == self._step:
            return
        self._step = cast(Task, pl_module).step
        weights = _trained_weights(trainer)
        if not self._averages:
            self._averages = {name: weight.detach().clone() for name, weight in weights.items()}
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(list(self._averages.values()), list(weights.values()), self.num_updates)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages in place."""
        self._put_averages(trainer)

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        for name, weight in _trained_weights(trainer).items() if self._trained else ():
            weight.copy_(self._trained[name])
        self._trained = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the model."""
        self._put_averages(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the weights as the state, also where the averages are in place."""
        checkpoint["state_dict"].update(self._trained)

    @torch.no_grad()
    def _put_averages(self, trainer: Trainer) -> None:
        for name, weight in _trained_weights(trainer).items() if self._averages and not self._trained else ():
            self._trained[name] = weight.detach().clone()
            weight.copy_(self._averages[name])


def check_callbacks(kinds: Iterable[type], sharded: bool) -> None:
    """Check before a run begins that its callbacks go with its strategy.

    Args:
        kinds: Classes of the callbacks.
        sharded: Whether the weights are sharded.

    Raises:
        ValueError: If averages of sharded weights are asked for.
    """
    if sharded and any(issubclass(kind, WeightAverage) for kind in kinds):
        raise ValueError("expected strategy 'ddp' with WeightAverage, got 'fsdp'; leave one of them out")


def _trained_weights(trainer: Trainer) -> dict[str, nn.Parameter]:
    """What the model's optimizer trains, by its name in the task."""
    trained = {id(weight) for group in trainer.optimizers[0].param_groups for weight in group["params"]}
    return {name: each for name, each in trainer.lightning_module.named_parameters() if id(each) in trained}


class FrozenStage(Callback):
    """Holds a part of the model still from one step to another, while the rest learns.

    Its weights get no gradient at those steps, so their optimizer leaves them and its averages of them alone. In
    quantizers moving averages and revival rest as well, and take up afterwards without what was seen meanwhile.

    Args:
        part: Dotted name in the task, such as ``"tokenizer.encoder"``, or ``"adversarial.discriminator"``.
        start: First step of the stage; steps count from 0.
        end: First step after it; None for the rest of the run.

    Raises:
        ValueError: If the stage is empty, or the task has no such part.

    References:
        The stage with a frozen encoder in the training of NS-VQ's successor, arXiv 2606.11363.
    """

    def __init__(self, part: str = "tokenizer.encoder", *, start: int = 0, end: int | None = None) -> None:
        self.part, self.start, self.end = part, check_integer("start", start, least=0), end
        if end is not None:
            check_integer("end", end, least=start + 1)
        self._others: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the part."""
        try:
            pl_module.get_submodule(self.part)
        except AttributeError as error:
            parts = [name for name, _ in pl_module.named_children()]
            raise ValueError(f"expected a part of the task such as {parts}, got {self.part!r} ({error})") from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for weights of other optimizers than the model's; Lightning calls callbacks at the model's step only."""
        own = {id(weight) for group in trainer.optimizers[0].param_groups for weight in group["params"]}
        self._others = [each for each in pl_module.get_submodule(self.part).parameters() if id(each) not in own]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let rules of codes rest, or act again."""
        self._rest(pl_module, self._is_now(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let them act again."""
        self._rest(pl_module, False)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the gradients for other optimizers away."""
        if self._is_now(pl_module):
            for weight in self._others:
                weight.grad = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients for the model's optimizer away."""
        if self._is_now(pl_module):
            for weight in pl_module.get_submodule(self.part).parameters():
                weight.grad = None

    def _rest(self, pl_module: LightningModule, now: bool) -> None:
        for part in pl_module.get_submodule(self.part).modules():
            if isinstance(part, VectorQuantizer):
                part.rules_rest = now

    def _is_now(self, pl_module: LightningModule) -> bool:
        step = cast(Task, pl_module).step
        return self.start <= step and (self.end is None or step < self.end)


class RandomState(Callback):
    """Gives every process its own noise, and saves their random states, so that a resumed run draws the same."""

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The current states, one row per process; those to restore if no step has been done since."""
        if self.states:
            return self.states
        states = {"torch": all_gather_rows(torch.get_rng_state()[None])}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["cuda"] = all_gather_rows(torch.cuda.get_rng_state()[None])
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the states until training starts."""
        self.states = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states, or seed other processes than the first; other callbacks may have drawn numbers before."""
        if not self.states and trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        for name, setter in (("torch", torch.set_rng_state), ("cuda", torch.cuda.set_rng_state)):
            if name in self.states and (name == "torch" or torch.cuda.is_available()):
                rows = self.states[name].reshape(-1, self.states[name].shape[-1])  # earlier versions saved one row
                setter(rows[trainer.global_rank % len(rows)].clone())  # a view of a row crashes PyTorch
        self.states = {}


def collapse_advice(usage: float, codebook_size: int, num_tokens: float) -> str | None:
    """Advice on how to fix a collapsed codebook, or None if it has not collapsed.

    A codebook counts as collapsed if fewer than a fifth of the codes that so many tokens can use are in use.

    Args:
        usage: Fraction of codes in use.
        codebook_size: Number of codes K.
        num_tokens: Number of tokens that usage was measured on.

    Example:
        >>> collapse_advice(0.9, 1024, 1e6) is None
        True
        >>> collapse_advice(0.01, 1024, 1e6)[:40]
        'The codebook has collapsed: 1.0 % of 102'
    """
    reachable = min(1.0, num_tokens / codebook_size)
    if usage >= 0.2 * reachable:
        return None
    return (
        f"The codebook has collapsed: {100 * usage:.1f} % of {codebook_size} codes are in use. What to change, in this "
        "order: give the codebook a higher learning rate (lr_scale=10), use a shared transform (preset grit_vq or "
        "simvq), start from data (initialization='kmeans'), add DeadCodeRevival(20), or take a smaller codebook."
    )


class CollapseWarning(Callback):
    """Logs a warning after validation if the codebook has collapsed."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the usage that the validation measured."""
        values = trainer.callback_metrics
        if "val/usage" not in values or not trainer.is_global_zero:
            return
        size = max(_tokenizer(pl_module).quantizer.codebook_sizes)
        advice = collapse_advice(float(values["val/usage"]), size, float(values["val/tokens"]))
        if advice is not None:
            log.warning("%s", advice)
