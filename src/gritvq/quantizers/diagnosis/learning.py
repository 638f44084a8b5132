"""Checks of how a quantizer is trained: gradients, rates, averages, batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.base.attachment import ignored_scales
from gritvq.quantizers.diagnosis.findings import FEW, Finding, TrainingFacts, percent, power_of_two, within
from gritvq.quantizers.diagnosis.parts import Part, leaves, tables_of
from gritvq.quantizers.learning import DeadCodeRevival, EMAUpdate
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["no_gradient", "of_optimizer", "of_training", "without_gradient"]

_LIVE = 3.0  # vectors per code between two looks for dead codes
_MOST_TIMES = 128  # the encoder's rate, which codes can still be trained at


def of_optimizer(quantizer: Quantizer, optimizer: torch.optim.Optimizer) -> Iterator[Finding]:
    """Codes that the optimizer does not hold, or trains at a wrong rate."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    advice = "Call quantizer.attach(optimizer) right after creating the optimizer."
    scales: dict[nn.Parameter, float] = {}
    for path, part in leaves(quantizer):
        own = [parameter for codebook, _ in tables_of(part) for parameter in codebook.learning_rate_scales()]
        scales |= {p: scale for codebook, _ in tables_of(part) for p, scale in codebook.learning_rate_scales().items()}
        if missing := sum(parameter not in held for parameter in own):
            says = f"{missing} trained parameters of the codes{within(path)} are in no group of the optimizer."
            yield Finding("codes are not in the optimizer", says, missing, 0, advice, path)
    if ignored := ignored_scales(optimizer, {p: scale for p, scale in scales.items() if p in held}):
        says = (
            f"Codes that need {max(ignored):g} times the encoder's learning rate (lr_scale) are trained at that rate."
        )
        yield Finding("learning rate of the codes is ignored", says, 1, max(ignored), advice)


def without_gradient(quantizer: Quantizer, latents: Tensor) -> Iterator[str]:
    """Paths of parts whose codes neither get a gradient in a training pass nor are written by a rule."""
    twin = copy.deepcopy(quantizer).train()
    twin.zero_grad()
    with torch.enable_grad():
        x = latents[:4096]
        x = x + 0.1 * (x.std() + 1e-3) * torch.randn(x.shape, device=x.device)  # on its code a vector pulls at nothing
        output = twin(x.to(latents).requires_grad_())
        probe = torch.randn(output.quantized.shape, device=latents.device)
        total = output.loss + (output.quantized * probe).sum()
        if total.requires_grad:
            total.backward()
    for path, part in leaves(twin):
        for codebook, _ in tables_of(part):
            written = isinstance(part, VectorQuantizer) and any(rule.writes_codes == "table" for rule in _rules(part))
            if not written and not any(p.grad is not None and bool(p.grad.any()) for p in codebook.parameters()):
                yield path


def no_gradient(path: str) -> Finding:
    """The finding of such a part."""
    says = f"No parameter of the codes{within(path)} gets a gradient in a training pass, and no rule moves them."
    advice = (
        "Give the quantizer a rule that trains the codes (CodebookLoss, EMAUpdate), or a surrogate that does "
        "(RadialSurrogate); and set requires_grad where it was switched off."
    )
    return Finding("codes get no gradient", says, 0, 1, advice, path)


def of_training(part: Part, training: TrainingFacts, share: float, is_ill: bool) -> Iterator[Finding]:
    """Rates, averages and batches; ``share`` is how many vectors this part has of one latent."""
    quantizer, where, path = part.quantizer, within(part.path), part.path
    if not isinstance(quantizer, VectorQuantizer):
        return
    size, per_step = quantizer.codebook_sizes[0], max(1.0, training.vectors_per_step * share)
    averages = [rule for rule in _rules(quantizer) if isinstance(rule, EMAUpdate)]
    revivals = [rule for rule in _rules(quantizer) if isinstance(rule, DeadCodeRevival)]
    scales = list(quantizer.codebook.learning_rate_scales().values())
    factor = {"table": 1.0, "rows": 1 + math.sqrt(quantizer.dim), None: math.inf}[quantizer.codebook.writes]
    if is_ill and scales and quantizer.codebook.initialization == "normal":
        reach = training.lr * max(scales) * training.mean_rate * training.num_steps * factor
        needed = float(part.x.square().mean().sqrt())
        if reach < needed:
            times = max(2, power_of_two(2 * max(scales) * needed / max(reach, 1e-12)))
            says = (
                f"In {training.num_steps:,} steps a component of a code{where} moves by {reach:.2g} at most, and the "
                f"latents' components are {needed:.2g} large: codes cannot follow."
            )
            advice = "Give the codes a higher learning rate, start them from data, or train longer."
            settings: tuple[tuple[str, Any], ...] = (("initialization", "kmeans"),)
            if times <= _MOST_TIMES:
                settings = (("lr_scale", times), *settings)
            yield Finding("learning rate of the codes is too low", says, reach, needed, advice, path, settings)
    for rule in averages:
        window = 1 / (1 - rule.decay)
        held = per_step * window / size
        if training.num_steps < window:
            best = round(max(0.0, 1 - 10 / max(training.num_steps, 10)), 3)
            says = f"The moving average{where} spans {window:,.0f} updates, the run has {training.num_steps:,}."
            advice = "Lower the decay, or train longer."
            yield Finding(
                "moving average is too slow", says, training.num_steps / window, 1, advice, path, (("decay", best),)
            )
        elif held < FEW:
            best = round(1 - min(1.0, per_step / (FEW * size)), 5)
            says = f"A code{where} is the average of {held:.2g} vectors: {per_step:,.0f} per step among {size:,} codes."
            advice = "Take larger batches or fewer codes, or raise the decay."
            yield Finding("moving average is too slow", says, held, FEW, advice, path, (("decay", best),))
    for revival in revivals:
        held = revival.interval * per_step / size
        if held < _LIVE:
            longer = math.ceil(_LIVE * size / per_step)
            says = (
                f"Between two looks for dead codes{where} a code gets {held:.2g} vectors on average, so "
                f"{percent(math.exp(-held))} of the living ones are taken for dead."
            )
            advice = "Look less often, take larger batches, or fewer codes."
            settings = (("revival_interval", longer),)
            yield Finding("too few vectors per step", says, held, _LIVE, advice, path, settings)
    alone = quantizer.codebook.writes == "table" and not averages and not revivals
    if is_ill and alone and per_step < size:
        says = f"{per_step:,.0f} vectors per step{where} choose among {size:,} codes; only chosen codes learn."
        advice = "Take larger batches or fewer codes, or a shared map of the codes (preset grit_vq or simvq)."
        settings = (("revival_interval", max(20, math.ceil(_LIVE * size / per_step))),)
        yield Finding("too few vectors per step", says, per_step, size, advice, path, settings)


def _rules(part: VectorQuantizer) -> list[Any]:
    return list(part.learning)
