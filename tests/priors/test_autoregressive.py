"""Autoregressive priors: exact probabilities, causal, samples that follow them."""

from __future__ import annotations

import pytest
import torch

from gritvq.priors import AutoregressivePrior, LinearGuidance, Prior, sample_seeds
from priors_common import LAYOUTS, all_samples, frequencies_fit, prior_of, same_class

ROWS = [("grid", "softmax"), ("snake", "softmax"), ("channels", "softmax"), ("flat", "softmax"), ("delay", "softmax")]
ROWS += [("hierarchy", "softmax"), ("channels", "depth"), ("hierarchy", "depth"), ("large", "bits")]
ROWS += [("large", "parallel_bits"), ("channels", "bits")]


@pytest.fixture(params=ROWS, ids="-".join)
def prior(request: pytest.FixtureRequest) -> AutoregressivePrior:
    layout, head = request.param
    return prior_of(AutoregressivePrior, layout, head=head)


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
def test_later_tokens_do_not_change_earlier_probabilities(prior: AutoregressivePrior) -> None:
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
        (lambda: prior.loss(indices, None), "got none"),
        (lambda: prior.loss(indices, torch.tensor([0, -1])), "got -1"),
        (lambda: prior.log_prob(indices - 1, classes), "whole samples"),
        (lambda: prior.log_prob(indices + 3, classes), "indices below"),
        (lambda: prior.log_prob(indices[:, :1], classes), "a layout belongs to one size"),
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
