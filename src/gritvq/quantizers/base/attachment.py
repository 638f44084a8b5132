"""A quantizer and an optimizer: learning rates of codes, and updates after every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer

__all__ = ["Attachment", "arrange_groups", "codebook_group", "ignored_scales", "unwrapped_optimizer"]


class Attachment:
    """What :meth:`gritvq.Quantizer.attach` returns; :meth:`remove` ends it.

    It belongs to the optimizer: neither a copy of the quantizer nor one of the optimizer has it.
    """

    _all: WeakKeyDictionary[Optimizer, list[Attachment]] = WeakKeyDictionary()

    def __init__(self, module: nn.Module, optimizer: Optimizer, update: Callable[[Optimizer], None]) -> None:
        self._module, self._update = module, update
        self._handle = optimizer.register_step_post_hook(self._after_step)
        self._siblings = self._all.setdefault(optimizer, [])
        self._siblings.append(self)

    @classmethod
    def of(cls, module: nn.Module, optimizer: Optimizer, update: Callable[[Optimizer], None]) -> Attachment:
        """The existing attachment of this module or one around it, or a new one, which replaces those of its parts."""
        for other in list(cls._all.get(optimizer, [])):
            if any(part is module for part in other._module.modules()):
                return other
            if any(part is other._module for part in module.modules()):
                other.remove()
        return cls(module, optimizer, update)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Update, unless a GradScaler made a fused optimizer skip this step; others it does not call at all."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self._update(optimizer)

    def remove(self) -> None:
        """Stop updating after steps; the optimizer keeps its groups."""
        self._handle.remove()
        if self in self._siblings:
            self._siblings.remove(self)


def unwrapped_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer that takes the steps, where one without hooks of its own is around it, as accelerate's."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, Optimizer) and not hasattr(optimizer, "_optimizer_step_post_hooks") else optimizer


def codebook_group(params: list[Any], lr: Any, scale: float) -> dict[str, Any]:
    """An optimizer group of codes with ``scale`` times the encoder's rate ``lr`` and no weight decay."""
    return {"params": params, "lr": scale * lr, "weight_decay": 0.0, "name": "codebook", "lr_scale": scale}


def _rate(group: Mapping[str, Any]) -> Any:
    """The rate that a group started with."""
    return group.get("initial_lr", group["lr"])


def _encoder_rate(optimizer: Optimizer, scales: Mapping[nn.Parameter, float]) -> Any:
    """The rate of the first group with parameters other than codes; None without such a group."""
    for group in optimizer.param_groups:
        if not _is_marked(group) and any(parameter not in scales for parameter in group["params"]):
            return _rate(group)
    return None


def _is_marked(group: Mapping[str, Any]) -> bool:
    return group.get("name") == "codebook"


def _equal(left: Any, right: Any) -> bool:
    return math.isclose(float(left), float(right), rel_tol=1e-6)


def ignored_scales(optimizer: Optimizer, scales: Mapping[nn.Parameter, float]) -> set[float]:
    """Scales, other than 1, whose parameters the optimizer nevertheless trains at the encoder's rate."""
    plain = _encoder_rate(optimizer, scales)
    plain = optimizer.defaults.get("lr") if plain is None else plain
    return {
        scales[parameter]
        for group in optimizer.param_groups
        if plain is not None and not _is_marked(group) and _equal(_rate(group), plain)
        for parameter in group["params"]
        if scales.get(parameter, 1.0) != 1.0
    }


def arrange_groups(
    optimizer: Optimizer,
    scales: Mapping[nn.Parameter, float],
    others: Iterable[nn.Parameter],
    lr: float | None,
    names: Mapping[nn.Parameter, str],
) -> None:
    """Move parameters with a wrong rate, or with weight decay, to groups of their own, and add those that are missing.

    Args:
        optimizer: Whose groups change.
        scales: Rate over the encoder's by parameter.
        others: Parameters with the encoder's rate; they are only added.
        lr: The encoder's rate; taken from the optimizer if None.
        names: For optimizers that know their parameters by name.

    Raises:
        ValueError: If groups would have to change under a learning rate schedule.
    """
    plain = _encoder_rate(optimizer, scales) if lr is None else lr
    places = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    wrong: list[tuple[dict[str, Any], float, Any, list[nn.Parameter]]] = []
    for group in optimizer.param_groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter in scales:
                by_scale.setdefault(scales[parameter], []).append(parameter)
        base = _rate(group) / group.get("lr_scale", 1.0) if plain is None else plain
        for scale, found in by_scale.items():
            if _is_marked(group) and lr is None and group.get("lr_scale", scale) == scale:
                continue
            if not _equal(_rate(group), scale * base) or (group.get("weight_decay", 0) and not _is_marked(group)):
                wrong.append((group, scale, base, found))
    added: dict[float | None, list[nn.Parameter]] = {}
    for parameter, scale in scales.items():
        if parameter not in places:
            added.setdefault(scale, []).append(parameter)
    for parameter in others:
        if parameter not in places:
            added.setdefault(None, []).append(parameter)
    if (wrong or added) and any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError(
            "expected an optimizer without a learning rate schedule, got one with a schedule; call "
            "attach(optimizer) right after creating the optimizer, and create the schedule then"
        )
    for group, scale, base, found in wrong:
        _split_off(optimizer, group, codebook_group(found, base, scale))
    plain = optimizer.defaults["lr"] if plain is None else plain
    named = any("param_names" in group for group in optimizer.param_groups)
    for wanted, params in added.items():
        listed: list[Any] = [(names[parameter], parameter) for parameter in params] if named else params
        whole = {"params": listed, "lr": plain, "name": "quantizer"}
        optimizer.add_param_group(whole if wanted is None else codebook_group(listed, plain, wanted))


def _split_off(optimizer: Optimizer, group: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Give some parameters of a group these options: in a group of their own, or in place where they are all of it."""
    moved = {id(parameter) for parameter in wanted["params"]}
    if len(moved) == len(group["params"]):
        group.update({name: value for name, value in wanted.items() if name != "params"})
        return
    stays = [id(parameter) not in moved for parameter in group["params"]]
    new = {**group, **wanted}
    for name in ("params", "param_names"):
        if name in group:
            pairs = list(zip(group[name], stays, strict=True))
            new[name] = [value for value, stay in pairs if not stay]
            group[name] = [value for value, stay in pairs if stay]
    optimizer.param_groups.append(new)
