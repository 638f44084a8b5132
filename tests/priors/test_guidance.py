"""Guidance ``u + s (c - u)`` of every prior, and its schedules."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch

from gritvq.priors import (
    AutoregressivePrior,
    Guidance,
    LinearGuidance,
    MaskedPrior,
    NextScalePrior,
    PowerCosineGuidance,
    Prior,
)
from priors_common import prior_of, same_class

PRIORS = {
    "autoregressive": (AutoregressivePrior, "grid", {}),
    "random order": (AutoregressivePrior, "grid", {"order": "random"}),
    "confidence": (MaskedPrior, "grid", {"num_steps": 3}),
    "halton": (MaskedPrior, "grid", {"num_steps": 3, "order": "halton"}),
    "next scale": (NextScalePrior, "pyramid", {}),
}


@pytest.fixture(params=PRIORS)
def prior(request: pytest.FixtureRequest) -> Any:
    cls, layout, settings = PRIORS[request.param]
    return prior_of(cls, layout, **settings)


def without_class(prior: Prior) -> Any:
    """The same prior, to which every class is none."""
    plain = copy.deepcopy(prior)
    with torch.no_grad():
        plain.classes.weight[:] = plain.classes.weight[-1]
    return plain


@torch.no_grad()
def test_a_scale_of_0_forgets_the_class(prior: Prior) -> None:
    plain = without_class(prior)
    for cache in (True, False):
        expected = plain.sample(60, 1, generator=0, cache=cache)
        assert torch.equal(prior.sample(60, 1, generator=0, guidance=0.0, cache=cache), expected)
        assert not torch.equal(prior.sample(60, 1, generator=0, cache=cache), expected)


@torch.no_grad()
def test_the_larger_the_scale_the_more_samples_are_of_their_class(prior: Prior) -> None:
    plain, shares = without_class(prior), []  # 12 standard errors with these weights; no law over several steps
    drawn = [prior.sample(300, 1, generator=0, guidance=scale) for scale in (0.0, 1.0, 5.0)]
    assert torch.equal(prior.sample(300, 1, generator=0), drawn[1]) and not torch.equal(drawn[1], drawn[2])
    for samples in drawn:
        classes = same_class(samples, 1)
        shares.append(prior.log_prob(samples, classes) - plain.log_prob(samples, classes))
    for less, more in itertools.pairwise(shares):
        assert float(more.mean() - less.mean()) > 4 * math.hypot(float(less.std()), float(more.std())) / 300**0.5


@torch.no_grad()
@pytest.mark.parametrize(
    "schedule", [LinearGuidance(1.0, 4.0), PowerCosineGuidance(4.0, 1.5)], ids=["linear", "cosine"]
)
def test_a_schedule_is_asked_for_the_scale_of_every_place(
    schedule: Guidance, prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 0 to 1 in equal steps over positions, steps or scales; at 0 both begin with no guidance."""
    seen: list[tuple[float, float]] = []
    own = type(schedule).at
    monkeypatch.setattr(
        type(schedule), "at", lambda self, place: seen.append((place, own(self, place))) or own(self, place)
    )
    samples = prior.sample(40, 1, generator=0, guidance=schedule)
    places = {AutoregressivePrior: [0, 1 / 3, 2 / 3, 1], MaskedPrior: [0, 1 / 2, 1], NextScalePrior: [0, 1]}[
        type(prior)
    ]
    assert [place for place, _ in seen] == pytest.approx(places)
    wanted = {
        LinearGuidance: [1 + 3 * place for place in places],
        PowerCosineGuidance: [1 + 3 * math.sin(math.pi * place**1.5 / 2) ** 2 for place in places],
    }
    assert [scale for _, scale in seen] == pytest.approx(wanted[type(schedule)])
    others = [prior.sample(40, 1, generator=0, guidance=scale) for scale in (1.0, 4.0)]
    assert not any(torch.equal(samples, each) for each in others)
