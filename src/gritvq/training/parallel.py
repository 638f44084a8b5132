"""How several processes train together: Lightning's strategies, as the tasks need them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from gritvq.distributed import all_reduce_sum, mean_of_shares

__all__ = ["DataParallel", "Sharded"]


class DataParallel(DDPStrategy):
    """Data parallelism (DDP): every process has the whole model and its own batches; gradients are averaged.

    A loss may leave parameters without a gradient: those of another optimizer, or a level that nobody drew. Buffers are
    those of the first process in validations; sending them at every step would only take time. Validation goes around
    DDP's wrapper, since processes may have different numbers of validation batches.
    """

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True, broadcast_buffers=False)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        # With find_unused_parameters the reducer prints a warning if a loss needs all parameters that it was made with.
        model.register_parameter("_unused", nn.Parameter(torch.zeros(1, device=self.root_device)))
        try:
            return super()._setup_model(model)
        finally:
            del model._unused

    def on_validation_start(self) -> None:
        """Send the buffers of the first process."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            dist.broadcast(buffer, 0)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """A validation step of the task itself."""
        assert self.lightning_module is not None
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)


class Sharded(DataParallel):
    """Fully sharded data parallelism (FSDP, PyTorch's ``fully_shard``): each process keeps a share of the weights.

    The parts of the task that are named are sharded, with gradients and the optimizer's state, block by block; a block
    is whole only while it computes. All else is whole in every process, and its gradients are averaged before a step:
    a codebook, say, whose rows moving averages and revival write. After the training the parts are whole again, but not
    after an error. Checkpoints are those of an unsharded run.

    Args:
        parts: Names of the parts in the task, such as ``"tokenizer.encoder"``.
    """

    def __init__(self, parts: Iterable[str]) -> None:
        super().__init__()
        self._names, self._whole = list(parts), dict[str, nn.Module]()

    def configure_ddp(self) -> None:
        """Put sharded copies in the place of the parts, with the weights of the first process."""
        task = self.lightning_module
        assert task is not None
        for tensor in itertools.chain(task.parameters(), task.buffers()):
            dist.broadcast(tensor.detach(), 0)
        for name in self._names:
            whole = task.get_submodule(name)
            task.set_submodule(name, _sharded(copy.deepcopy(whole)))
            self._whole[name] = whole.cpu()

    def setup_optimizers(self, trainer: Any) -> None:
        """Optimizers that take one weight after the other: PyTorch's joint steps refuse whole and sharded ones."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["foreach"] = False

    @torch.no_grad()
    def finish_gradients(self, optimizer: Optimizer, largest_norm: float) -> None:
        """Average the gradients of what is whole over the processes, and clip all by their norm (0: do not clip)."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        whole = [weight for weight in weights if not isinstance(weight, DTensor)]
        if whole:
            has = torch.tensor([weight.grad is not None for weight in whole], device=whole[0].device).float()
            gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in whole]
            joined = mean_of_shares(torch.cat([has, *(gradient.reshape(-1).float() for gradient in gradients)]))
            pieces = joined[len(whole) :].split([weight.numel() for weight in whole])
            for weight, piece, anywhere in zip(whole, pieces, joined[: len(whole)].tolist(), strict=True):
                weight.grad = piece.view_as(weight).to(weight.dtype) if anywhere else None
        if not largest_norm:
            return
        found = [weight.grad for weight in weights if weight.grad is not None]
        shares = [each.to_local() for each in found if isinstance(each, DTensor)]
        own = [each for each in found if not isinstance(each, DTensor)]
        squares = [sum((each.float().square().sum() for each in some), torch.zeros(())) for some in (shares, own)]
        norm = (all_reduce_sum(squares[0].to(self.root_device)) + squares[1]).sqrt()
        for each in (*shares, *own):
            each.mul_((largest_norm / (norm + 1e-6)).clamp(max=1))

    def on_validation_start(self) -> None:
        """Make the parts whole, too, since processes may have different numbers of validation batches."""
        super().on_validation_start()
        for part in self._blocks():
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)

    def on_validation_end(self) -> None:
        """Shard them again."""
        for part in self._blocks():
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state of the whole task, gathered."""
        return {name: _gathered(value) for name, value in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer of the whole task, gathered."""
        found: dict[str, Any] = super().optimizer_state(optimizer)
        state = {key: {name: _gathered(value) for name, value in own.items()} for key, own in found["state"].items()}
        return {"state": state, "param_groups": [{**group, "foreach": None} for group in found["param_groups"]]}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's share of what :meth:`optimizer_state` gathered."""
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {
                key: {name: _share_of(value, weights[key]) for name, value in own.items()}
                for key, own in found["state"].items()
            }
            groups = [{**group, "foreach": False} for group in found["param_groups"]]
            optimizer.load_state_dict({"state": state, "param_groups": groups})

    def teardown(self) -> None:
        """Make the parts whole, unless this process failed: the others may be anywhere, so it waits for none."""
        task = self.lightning_module
        if task is not None and self._whole and task.trainer.state.status != TrainerStatus.INTERRUPTED:
            self.make_whole()
        super().teardown()

    def make_whole(self) -> None:
        """Gather weights and optimizers' states, and put the parts themselves back; all processes must call it."""
        task = self.lightning_module
        if task is not None and self._whole:
            state = self.lightning_module_state_dict()
            sharded = {name: task.get_submodule(name) for name in self._whole}
            new: dict[Tensor, Tensor] = {}
            for name, whole in self._whole.items():
                own = {
                    key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")
                }
                whole.load_state_dict(own)
                whole.train(sharded[name].training)
                new |= dict(zip(sharded[name].parameters(), whole.parameters(), strict=True))
                task.set_submodule(name, whole)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["params"] = [new.get(weight, weight) for weight in group["params"]]
                for weight, values in list(optimizer.state.items()):
                    gathered = {key: _gathered(value) for key, value in values.items()}
                    del optimizer.state[weight]
                    optimizer.state[new.get(weight, weight)] = gathered
            self._whole = {}

    def _blocks(self) -> list[FSDPModule]:
        assert self.lightning_module is not None
        return [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]


def _sharded(part: nn.Module) -> nn.Module:
    """The part, sharded in its place: the layers of its sequences each on its own, then what is left."""
    sequences = [module for module in part.modules() if isinstance(module, (nn.Sequential, nn.ModuleList))]
    for layer in (layer for sequence in reversed(sequences) for layer in sequence):
        if not isinstance(layer, (nn.Sequential, nn.ModuleList, FSDPModule)) and any(True for _ in layer.parameters()):
            fully_shard(layer)
    fully_shard(part)
    return part


def _gathered(value: Any) -> Any:
    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def _share_of(value: Any, weight: Tensor) -> Any:
    if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value
