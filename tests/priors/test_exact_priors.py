"""Autoregressive and next-scale priors: exact probabilities, causal, samples that follow them."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from gritvq.priors import AutoregressivePrior, LinearGuidance, NextScalePrior, Prior, sample_seeds
from gritvq.tokens import TokenLayout
from priors_common import LAYOUTS, all_samples, frequencies_fit, prior_of, same_class

ROWS = [
    (AutoregressivePrior, "grid", {}),
    (AutoregressivePrior, "snake", {}),
    (AutoregressivePrior, "channels", {"head": "softmax"}),
    (AutoregressivePrior, "channels", {"head": "depth"}),
    (AutoregressivePrior, "channels", {"head": "bits"}),
    (AutoregressivePrior, "flat", {}),
    (AutoregressivePrior, "delay", {}),
    (AutoregressivePrior, "hierarchy", {"head": "depth"}),
    (AutoregressivePrior, "large", {"head": "bits"}),
    (AutoregressivePrior, "large", {"head": "parallel_bits"}),
    (AutoregressivePrior, "channels", {"order": "random"}),
    (AutoregressivePrior, "ragged", {}),
    (AutoregressivePrior, "ragged channels", {"head": "softmax"}),
    (AutoregressivePrior, "ragged channels", {"head": "depth"}),
    (AutoregressivePrior, "ragged channels", {"head": "bits"}),
    (AutoregressivePrior, "ragged flat", {}),
    (NextScalePrior, "pyramid", {}),
    (NextScalePrior, "hierarchy", {}),
    (NextScalePrior, "channel pyramid", {}),
]


@pytest.fixture(params=ROWS, ids=lambda row: "-".join([row[0].__name__, row[1], *map(str, row[2].values())]))
def prior(request: pytest.FixtureRequest) -> Any:
    cls, layout, settings = request.param
    return prior_of(cls, layout, **settings)


@torch.no_grad()
def test_probabilities_of_all_samples_sum_to_one(prior: Prior) -> None:
    every = all_samples(prior.layout)
    found = prior.log_prob(every, same_class(every, 1)).double().exp()
    assert found.max() > 2 / len(every)  # far from uniform
    torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)


@torch.no_grad()
def test_samples_follow_the_probabilities(prior: Prior) -> None:
    every = all_samples(prior.layout)
    drawn = prior.sample(2000, 1, generator=0)
    own, other = (prior.log_prob(every, same_class(every, c)).exp() for c in (1, 0))
    assert frequencies_fit(drawn, every, own) > 0.01
    assert frequencies_fit(drawn, every, other) < 1e-6  # the test tells two classes apart


@torch.no_grad()
def test_a_cache_or_a_batch_changes_no_sample(prior: Prior) -> None:
    classes = torch.tensor([0, 1, 1, 0, 1])
    settings = {"guidance": 1.5, "temperature": 0.9, "top_k": 2, "top_p": 0.95}
    samples = prior.sample(5, classes, generator=7, **settings)
    torch.testing.assert_close(prior.sample(5, classes, generator=7, cache=False, **settings), samples)
    torch.testing.assert_close(prior.sample(2, classes[:2], generator=7, **settings), samples[:2])
    seeds = sample_seeds(7, 3, first=2)
    torch.testing.assert_close(prior.sample(3, classes[2:], generator=seeds, **settings), samples[2:])
    assert not torch.equal(prior.sample(5, classes, generator=8, **settings), samples)


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_probabilities(prior: Any) -> None:
    rows = prior.rows_of(all_samples(prior.layout))
    classes = prior._embedded_classes(torch.zeros(len(rows), dtype=torch.int64))
    found = prior._log_probs(rows, classes)
    for t in range(1, rows.shape[1]):
        _, group = rows[:, :t].flatten(1).unique(dim=0, return_inverse=True)
        for place in range(t):  # equal where all tokens up to it are equal
            first = torch.full((int(group.max()) + 1,), torch.nan)
            first[group] = found[:, place]
            torch.testing.assert_close(first[group], found[:, place], atol=1e-5, rtol=0)


@torch.no_grad()
def test_guidance_mixes_logits() -> None:
    """With one position ``softmax(u + s (c - u))`` is ``p_u^(1 - s) p_c^s`` up to a factor."""
    prior = prior_of(AutoregressivePrior, "large")
    every = all_samples(prior.layout)
    rows = prior.rows_of(every)
    nothing = prior._log_probs(rows, prior._embedded_classes(same_class(every, -1)))
    first = rows[:, 0, 0]
    known = prior._log_probs(rows, prior._embedded_classes(same_class(every, 1)))
    assert not torch.allclose(known[:, 0], nothing[:, 0], atol=0.1)
    for scale, expected in ((0.0, nothing), (1.0, known), (3.0, nothing + 3 * (known - nothing))):
        drawn = prior.sample(1500, 1, guidance=scale, generator=0)
        every_first = torch.arange(12).view(-1, 1)
        logits = torch.stack([expected[first == i, 0][0] for i in range(12)])
        assert frequencies_fit(drawn[:, :1].flatten(1), every_first, logits.softmax(0)) > 0.01, scale
    plain = prior.sample(50, 1, generator=0)
    assert torch.equal(prior.sample(50, 1, guidance=LinearGuidance(1.0, 1.0), generator=0), plain)
    assert not torch.equal(prior.sample(50, 1, guidance=3.0, generator=0), plain)
    rising = prior.sample(50, 1, guidance=LinearGuidance(1.0, 4.0), generator=0)
    assert torch.equal(rising[:, 0], plain[:, 0]) and not torch.equal(rising[:, 1], plain[:, 1])


@torch.no_grad()
def test_temperature_and_filters() -> None:
    prior = prior_of(AutoregressivePrior, "large", num_classes=None)
    every = all_samples(prior.layout)
    logits = torch.stack([prior.log_prob(every)[every[:, 0, 0] == i].logsumexp(0) for i in range(12)])
    best = int(logits.argmax())
    assert set(prior.sample(64, temperature=0.0, generator=0)[:, 0, 0].tolist()) == {best}
    kept = set(logits.topk(3).indices.tolist())
    assert set(prior.sample(300, top_k=3, generator=0)[:, 0, 0].tolist()) == kept
    order = logits.sort(descending=True)
    share = float(order.values[:2].exp().sum()) - 1e-3
    assert set(prior.sample(300, top_p=share, generator=0)[:, 0, 0].tolist()) == set(order.indices[:2].tolist())
    drawn = prior.sample(1500, temperature=2.0, generator=0)[:, 0]
    assert frequencies_fit(drawn, torch.arange(12).view(-1, 1), (logits / 2).softmax(0)) > 0.01


def test_a_progress_callback_counts_positions() -> None:
    prior, seen = prior_of(AutoregressivePrior, "grid"), []
    prior.sample(2, 0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n + 1, 4) for n in range(4)]


def test_wrong_inputs_are_refused_with_a_sentence() -> None:
    prior = prior_of(AutoregressivePrior, "grid")
    indices, classes = torch.zeros(2, 2, 2, 1, dtype=torch.int64), torch.tensor([0, 1])
    unconditional = prior_of(AutoregressivePrior, "grid", num_classes=None)
    never_forgets = prior_of(AutoregressivePrior, "grid", class_dropout=0.0)
    for call, said in (
        (lambda: prior.sample(2, 2), r"classes 0 \.\. 1, got 2"),
        (lambda: prior.sample(2), "got none; give condition"),
        (lambda: prior.sample(2, torch.tensor([0])), r"classes \(2,\)"),
        (lambda: prior.sample(0, 0), "num >= 1"),
        (lambda: prior.sample(2, 0, temperature=-1.0), "temperature >= 0"),
        (lambda: prior.sample(2, 0, top_k=0), "top_k >= 1"),
        (lambda: prior.sample(2, 0, top_p=1.5), "top_p in"),
        (lambda: prior.sample(2, 0, generator=[1]), "one seed >= 0 for each of 2"),
        (lambda: prior.sample(2, 0, generator=1.5), "expected a seed, one for each of 2 samples, or a generator"),
        (lambda: prior.sample(2, 0, generator=[1, 1.5]), "or a generator, got"),
        (lambda: prior.sample(2, ["cat", "dog"]), r"classes \(2,\) as integers, got \['cat', 'dog'\]"),
        (lambda: prior.sample(2, [0.0, 1.0]), r"classes \(2,\) as integers"),
        (lambda: prior.sample(2, [0]), r"classes \(2,\) as integers"),
        (lambda: prior.logits(torch.full((1, 4, 1), 3), classes[:1]), r"integers below \(3,\).* from 3 to 3"),
        (lambda: prior.logits(torch.full((1, 4, 1), -2), classes[:1]), r"integers below \(3,\)"),
        (lambda: prior.loss(indices, None), "got none"),
        (lambda: prior.loss(indices, torch.tensor([0, -1])), "got -1"),
        (lambda: prior.log_prob(indices - 1, classes), "whole samples"),
        (lambda: prior.log_prob(indices + 3, classes), "indices below"),
        (lambda: prior.log_prob(indices[:, :1], classes), "expected integers"),
        (lambda: prior.log_prob(indices[0], classes), r"expected indices \(B"),
        (lambda: unconditional.sample(2, guidance=2.0), "for an unconditional prior, got 2"),
        (lambda: unconditional.loss(indices, classes), "no classes for an unconditional"),
        (lambda: never_forgets.sample(2, 0, guidance=2.0), "class_dropout 0"),
        (lambda: AutoregressivePrior(LAYOUTS["grid"], width=10, num_heads=4), "multiple of 2 num_heads"),
        (lambda: AutoregressivePrior(LAYOUTS["grid"], dropout=1.0), "dropout in"),
        (lambda: AutoregressivePrior(LAYOUTS["grid"], num_classes=0), "num_classes >= 1"),
        (lambda: AutoregressivePrior(LAYOUTS["grid"], head="conv"), "expected head"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_classes_and_seeds_of_any_kind_of_integer() -> None:
    prior = prior_of(AutoregressivePrior, "grid")
    expected = prior.sample(2, torch.tensor([0, 1]), generator=3)
    for num, condition, seed in (
        (2, [0, 1], 3),
        (np.int64(2), np.array([0, 1]), np.int64(3)),
        (2, (0, 1), sample_seeds(3, 2)),
        (2, [np.int32(0), 1], np.array(sample_seeds(3, 2), dtype=np.uint64)),
    ):
        assert torch.equal(prior.sample(num, condition, generator=seed), expected)
    assert torch.equal(prior.sample(2, np.int64(1), generator=3), prior.sample(2, 1, generator=3))


@torch.no_grad()
def test_positions_of_a_scale_are_independent_given_the_scales_before() -> None:
    prior = prior_of(NextScalePrior, "pyramid")
    rows = prior.rows_of(all_samples(prior.layout))
    found = prior._log_probs(rows, prior._embedded_classes(torch.zeros(len(rows), dtype=torch.int64)))
    for place in range(1, 5):
        own = found[:, place].view(3, 3, 3, 3, 3).movedim(place, 1).reshape(3, 3, -1)  # scale 0, own token, the others
        torch.testing.assert_close(own, own[..., :1].expand_as(own), atol=1e-5, rtol=0)
        assert not torch.allclose(own[0], own[1], atol=0.05)  # and do depend on it


@torch.no_grad()
def test_every_order_of_positions_is_a_distribution() -> None:
    prior = prior_of(AutoregressivePrior, "grid", order="random")
    every = all_samples(prior.layout)
    classes = same_class(every, 1)
    raster, other = (prior.log_prob(every, classes, order=torch.tensor(o)) for o in ([0, 1, 2, 3], [2, 0, 3, 1]))
    torch.testing.assert_close(raster, prior.log_prob(every, classes))
    torch.testing.assert_close(other.exp().sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert not torch.allclose(raster, other, atol=0.1)
    first = [every.flatten(1)[:, place] for place in (2, 0)]  # what is read first does not see what is read later
    marginals = torch.stack([other[(first[0] == i) & (first[1] == j)].exp().sum() for i in range(3) for j in range(3)])
    torch.testing.assert_close(marginals.sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    for wrong in ([0, 1, 2], [0, 0, 1, 2]):
        with pytest.raises(ValueError, match="a permutation of"):
            prior.log_prob(every, classes, order=torch.tensor(wrong))
    with pytest.raises(ValueError, match="order 'raster'"):
        prior_of(AutoregressivePrior, "grid").log_prob(every, classes, order=torch.tensor([0, 1, 2, 3]))


def test_random_orders_are_annealed_to_the_raster() -> None:
    prior = prior_of(AutoregressivePrior, "grid", order="random", annealing=(0.4, 0.8), dropout=0.0, class_dropout=0.0)
    indices, classes = all_samples(prior.layout), same_class(all_samples(prior.layout), 0)
    raster = float(prior.loss(indices, classes)["nats_per_token"])
    prior.train()
    shares = []
    for progress in (0.0, 0.4, 0.5, 0.8, 1.0):
        prior.training_progress = progress
        shares.append(round(prior.random_share, 4))
    assert shares == [1.0, 1.0, 0.75, 0.0, 0.0]
    assert float(prior.loss(indices, classes)["nats_per_token"]) == pytest.approx(raster, abs=1e-5)
    prior.training_progress = 0.0
    orders = torch.stack([prior.log_prob(indices, classes, order=o) for o in map(torch.tensor, permutations(range(4)))])
    losses = torch.tensor([float(prior.loss(indices, classes)["nats_per_token"]) for _ in range(20)])
    expected = -float(orders.mean()) / 4
    assert abs(float(losses.mean()) - expected) < 5 * float(losses.std()) / 20**0.5
    assert abs(raster - expected) > 10 * float(losses.std()) / 20**0.5  # and not that of the raster
    for settings in ({"order": "spiral"}, {"annealing": (0.8, 0.4)}):
        with pytest.raises(ValueError, match=r"expected (order|annealing)"):
            prior_of(AutoregressivePrior, "grid", **settings)


def test_next_scale_needs_scales() -> None:
    scales = [((1,), (0,)), ((2, 2), (0,))]
    for layout, said in (
        (LAYOUTS["grid"], "at least two scales"),
        (TokenLayout((3,), (5,), scales=scales), "scales of the same 1 to 3 axes"),
        (TokenLayout((3,), (5,), scales=[((1, 1), (0,)), ((2, 2), (0,))], order="snake"), "the order 'raster'"),
        (TokenLayout((3,), (5,), scales=[((1, 1), (0,)), ((2, 2), (0,))], interleaving="flat"), "'parallel'"),
    ):
        with pytest.raises(ValueError, match=said):
            NextScalePrior(layout, width=8, depth=1, num_heads=1)
