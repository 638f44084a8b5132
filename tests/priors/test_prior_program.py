"""Exported priors: one step of sampling is the prior's, for every kind of prior and of head, in both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gritvq.export import load_program
from gritvq.priors import AutoregressivePrior, BitHead, MaskedPrior, NextScalePrior, Prior
from gritvq.priors.program import PriorProgram, compare_prior
from priors_common import LAYOUTS, all_samples, prior_of, same_class

# kind, layout, more settings
PRIORS: dict[str, tuple[type[Prior], str, dict[str, Any]]] = {
    "grid": (AutoregressivePrior, "grid", {}),
    "random order": (AutoregressivePrior, "grid", {"order": "random"}),
    "channels": (AutoregressivePrior, "channels", {}),
    "independent channels": (AutoregressivePrior, "channels", {"head": "softmax"}),
    "flat": (AutoregressivePrior, "flat", {"num_classes": None}),
    "delay": (AutoregressivePrior, "delay", {}),
    "hierarchy": (AutoregressivePrior, "hierarchy", {}),
    "ragged": (AutoregressivePrior, "ragged channels", {}),
    "bits": (AutoregressivePrior, "large", {"head": "bits"}),
    "parallel bits": (AutoregressivePrior, "large", {"head": "parallel_bits"}),
    "masked": (MaskedPrior, "channels", {}),
    "next scale": (NextScalePrior, "pyramid", {}),
    "next scale, channels": (NextScalePrior, "channel pyramid", {"num_classes": None}),
}
QUICK = {"channels", "masked"}  # in torch's format; the others go the same ways and are soaked


def made(name: str) -> Prior:
    torch.manual_seed(0)
    kind, layout, settings = PRIORS[name]
    return prior_of(kind, layout, **settings)


def sum_of_log_probs(prior: Prior, rows: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities of rows by these logits of each softmax."""
    digits = prior.head.digits_of(rows) if isinstance(prior.head, BitHead) else rows
    total = torch.zeros(len(rows))
    for number, part in enumerate(logits.split(prior.head.sizes, -1)):
        own = part.log_softmax(-1).gather(-1, digits[..., number, None].clamp(min=0))[..., 0]
        total += own.masked_fill(digits[..., number] < 0, 0).sum(1)
    return total


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "masked"])
def test_logits_are_those_of_the_exact_probability(name: str) -> None:
    prior = made(name)
    samples = all_samples(prior.layout)[::7][:60]
    classes = None if prior.num_classes is None else same_class(samples, 1)
    rows = prior.rows_of(samples)
    found = sum_of_log_probs(prior, rows, prior.logits(rows, classes))
    torch.testing.assert_close(found, prior.log_prob(samples, classes).detach(), rtol=1e-4, atol=1e-4)


def test_logits_of_a_masked_prior_depend_on_what_is_known() -> None:
    prior = made("masked")
    rows = prior.rows_of(all_samples(LAYOUTS["channels"])[:20])
    classes, known = same_class(rows, 0), rows.clone()
    known[:, 1] = -1
    one = prior.logits(known, classes)
    rows[:, 1] = -1
    rows[:, 0] = -1
    assert not torch.allclose(one[:, 1], prior.logits(rows, classes)[:, 1])
    with pytest.raises(ValueError, match=r"expected rows \(B, 2, 2\), got \(20, 2\)"):
        prior.logits(known[..., 0], classes)


def greedy(prior: Prior, step: Callable[[Tensor, Tensor], Tensor], num: int, classes: Tensor) -> Tensor:
    """Samples at temperature 0 by a program alone: all channels of a position, or of a scale, one after the other."""
    present = prior.present
    rows = torch.full((num, *present.shape), -1)
    groups = list(range(len(present)))
    if isinstance(prior, NextScalePrior):
        groups = prior.layout.scale_ids.tolist()
    for group in sorted(set(groups)):
        own = torch.tensor([each == group for each in groups])
        for channel in range(present.shape[1]):
            logits = step(rows, classes).split(prior.head.sizes, -1)[channel]
            wanted = own & present[:, channel]
            rows[:, wanted, channel] = logits.argmax(-1)[:, wanted]
    return rows


def cases() -> list[Any]:
    pairs = [(name, format) for name in PRIORS for format in ("onnx", "torch")]
    soak = [pytest.mark.soak]
    return [pytest.param(*p, marks=[] if p[0] in QUICK and p[1] == "torch" else soak, id="-".join(p)) for p in pairs]


@pytest.mark.parametrize(("name", "format"), cases())
def test_a_program_is_a_step_of_the_prior(name: str, format: Any, tmp_path: Path) -> None:
    prior = made(name)
    path = prior.export(tmp_path, format)
    assert path.stem == "prior"
    identical, difference = compare_prior(prior, path, num=40)
    assert identical.all() and difference < 1e-4
    run = load_program(path)
    if prior.num_classes is not None:  # the class, or none
        rows = prior.rows_of(all_samples(prior.layout))[:1]
        some = run(rows, torch.tensor([1]))
        torch.testing.assert_close(some, prior.logits(rows, torch.tensor([1])), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            without = PriorProgram(prior)(rows, torch.tensor([-1]))
        torch.testing.assert_close(run(rows, torch.tensor([-1])), without, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(some, without)
    if name in ("grid", "random order", "channels", "independent channels", "hierarchy", "next scale"):
        wanted = prior.sample(5, 1, temperature=0.0)
        found = greedy(prior, run, 5, torch.ones(5, dtype=torch.int64))
        assert torch.equal(prior.indices_of(found), wanted)
