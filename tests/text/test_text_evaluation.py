"""Evaluation of text models: closed forms, and references computed another way."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gritvq import rq, vq_vae
from gritvq.text import (
    TextBatch,
    TextEvaluation,
    TraceModel,
    Writing,
    distinct_n,
    evaluate_text,
    gaussian_vae,
    language_model,
    mutual_information,
    segment_tokenizer,
    self_bleu,
    text_diversity,
    trace,
)
from text_common import SIZES, lively, random_batch, toy_format

VOCAB = 20
COUNTS = [[3, 2, 4], [5], [2, 2], [4, 3, 2]]
PLAIN: dict[str, Any] = {name: value for name, value in SIZES.items() if name != "dim"}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def nats(found: TextEvaluation, name: str = "nats_per_token") -> float:
    """Of all documents."""
    return found.values[name] * found.num_tokens


def test_a_language_model_is_measured_exactly() -> None:
    model, batch = lively(language_model(VOCAB, **PLAIN)), random_batch(VOCAB, COUNTS)
    found = evaluate_text(model, [batch])
    with torch.no_grad():
        expected = -float(model(batch).log_probs.double().sum())
    assert nats(found) == pytest.approx(expected, rel=1e-6)
    assert found.values["perplexity"] == pytest.approx(math.exp(expected / 27))
    assert (found.kind, found.num_samples, found.num_tokens, found.num_segments) == ("language model", 0, 27, 9)
    assert (
        json.loads(json.dumps(found.to_dict()))["num_documents"] == 4
        and "exact" in dict(found.rows())["draws of latents"]
    )


def silent(model: TraceModel) -> TraceModel:
    """The decoder does not hear the latents."""
    nn.init.zeros_(model.decoder.memory.weight)
    if model.decoder.memory.bias is not None:
        nn.init.zeros_(model.decoder.memory.bias)
    return model


def test_latents_that_are_ignored_cost_nothing_where_the_posterior_is_the_prior() -> None:
    model, batch = silent(lively(gaussian_vae(VOCAB, **SIZES))), random_batch(VOCAB, COUNTS)
    assert model.latents is not None
    for head in (model.latents.prior_head, model.latents.posterior_head):
        for weight in head[2].parameters():
            nn.init.zeros_(weight)
    found = evaluate_text(model, [batch], num_samples=3).values
    with torch.no_grad():
        expected = -float(model(batch).log_probs.double().sum()) / 27
    for name in ("nats_per_token", "elbo_nats_per_token", "reconstruction_nats_per_token"):
        assert found[name] == pytest.approx(expected, rel=1e-6)
    assert found["kl_per_segment"] == found["active_units"] == 0 and found["effective_samples"] == pytest.approx(3)
    assert found["mutual_information_per_segment"] == pytest.approx(0, abs=1e-9)
    assert found["token_accuracy"] == found["token_accuracy_of_prior_means"]


def test_latents_that_are_ignored_cost_the_divergence_in_the_bound_alone() -> None:
    model, batch = silent(lively(trace(VOCAB, **{**SIZES, "dim": 2}))), random_batch(VOCAB, [[3, 2], [4]])
    found = evaluate_text(model, [batch], num_samples=1000, seed=1).values
    with torch.no_grad():
        expected = -float(model(batch).log_probs.double().sum()) / 9
    assert found["nats_per_token"] == pytest.approx(expected, abs=0.05)
    assert found["elbo_nats_per_token"] == pytest.approx(expected + found["kl_per_segment"] * 3 / 9, rel=1e-6)
    assert found["kl_per_segment"] >= found["least_kl_per_segment"] == 1


class Observed(nn.Module):
    """In the place of a decoder: numbers y_t ~ N(z_t, 1) stand behind the last token of each segment."""

    def __init__(self, model: TraceModel, y: Tensor) -> None:
        super().__init__()
        self.original, self.y = model.decoder, y

    def forward(self, batch: TextBatch, latents: Tensor) -> Tensor:
        log_py = -0.5 * ((self.y - latents).square() + math.log(2 * math.pi)).sum(-1)
        last = batch.segments != torch.nn.functional.pad(batch.segments[:, 1:], (0, 1), value=-1)
        return torch.where(last & batch.valid, log_py.gather(1, batch.segments.clamp(min=0)), 0.0)

    def states(self, *arguments: Any) -> Tensor:
        return self.original.states(*arguments)

    def logits(self, states: Tensor) -> Tensor:
        return self.original.logits(states)


def test_the_likelihood_of_a_linear_gaussian_model() -> None:
    """y = z + noise, z = R u: y is normal, and its density is known."""
    model, batch = lively(trace(VOCAB, **{**SIZES, "dim": 2})), random_batch(VOCAB, [[3, 2, 2], [4, 1]])
    latents, encoder = model.latents, model.encoder
    assert latents is not None and encoder is not None and latents.recurrence.rank == 1
    with torch.no_grad():  # where the posterior is about right: twice as far from the prior
        before = latents.recurrence(latents.prior(latents.before(encoder(batch))).mean)
        y = 2 * model.encode(batch)[0] - before + 0.3
    model.decoder = Observed(model, y)  # type: ignore[assignment]
    expected = 0.0
    with torch.no_grad():
        prior = latents.prior(latents.before(encoder(batch)))
        matrix = latents.recurrence.matrix().double()
        for row, count in enumerate((3, 2)):
            size = 2 * count
            linear = torch.eye(size, dtype=torch.float64)
            for later in range(count):  # z_t = u_t + W (u_1 + ... + u_t-1)
                for earlier in range(later):
                    linear[2 * later : 2 * later + 2, 2 * earlier : 2 * earlier + 2] = matrix
            scale = prior.log_scale[row, :count].double().exp().flatten()
            covariance = linear @ torch.diag(scale.square()) @ linear.T + torch.eye(size, dtype=torch.float64)
            mean = linear @ prior.mean[row, :count].double().flatten()
            normal = torch.distributions.MultivariateNormal(mean, covariance)
            expected -= float(normal.log_prob(y[row, :count].double().flatten()))
    found = evaluate_text(model, [batch], num_samples=4000)
    assert nats(found) == pytest.approx(expected, abs=0.1) and found.values["effective_samples"] > 300
    assert nats(found, "elbo_nats_per_token") > expected + 5  # the bound alone is far


def test_the_bound_rises_with_the_draws() -> None:
    model, batch = lively(trace(VOCAB, **SIZES)), random_batch(VOCAB, [[3, 2], [4]])
    each: dict[int, list[float]] = {count: [] for count in (1, 4, 16)}
    elbo = []
    for seed in range(30):
        found = {count: evaluate_text(model, [batch], count, seed) for count in each}
        for count, one in found.items():
            each[count].append(nats(one))
        elbo.append(nats(found[16], "elbo_nats_per_token"))
        assert 1 <= found[16].values["effective_samples"] <= 16
    means = [np.mean(each[count]) for count in (1, 4, 16)]
    assert means[0] > means[1] > means[2] and means[1] < np.mean(elbo)
    spread = np.std(np.subtract(each[1], elbo)) / 30**0.5
    assert abs(means[0] - np.mean(elbo)) < 4 * spread  # one draw: the bound itself


def test_nothing_depends_on_the_batches() -> None:
    model = lively(trace(VOCAB, **SIZES))
    batch = random_batch(VOCAB, COUNTS)
    parts = [
        TextBatch(batch.tokens[row : row + 1, : sum(own)], batch.segments[row : row + 1, : sum(own)])
        for row, own in enumerate(COUNTS)
    ]
    whole, again = evaluate_text(model, [batch], 4), evaluate_text(model, parts, 4)
    assert whole.values == pytest.approx(again.values, rel=1e-5)
    assert whole._replace(values={}) == again._replace(values={})
    assert evaluate_text(model, [batch], 4, seed=1).values["nats_per_token"] != whole.values["nats_per_token"]


def test_active_units_do_not_count_what_the_text_before_says() -> None:
    model, batch = lively(trace(VOCAB, **{**SIZES, "dim": 4})), random_batch(VOCAB, COUNTS)
    assert model.latents is not None
    found = evaluate_text(model, [batch], 1).values
    assert found["active_units"] == found["units"] == 4 and found["mutual_information_per_segment"] > 0.3
    assert found["information_bound"] == pytest.approx(math.log(9))
    last = model.latents.posterior_head[2]
    nn.init.zeros_(last.weight)  # the same delta for every segment, with priors that differ
    with torch.no_grad():
        assert float(model.encode(batch)[0][batch.present].var(0).min()) > 0.01
    found = evaluate_text(model, [batch], 1).values
    assert found["active_units"] == 0 and found["kl_per_segment"] >= 2
    assert found["mutual_information_per_segment"] == pytest.approx(0, abs=1e-5)


class TestMutualInformation:
    def test_of_posteriors_that_are_apart(self) -> None:
        for count in (2, 50):
            mean = 1000.0 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
            assert mutual_information(mean, torch.zeros(count, 3)) == pytest.approx(math.log(count))
        assert mutual_information(mean, torch.zeros(50, 3), most=10) == pytest.approx(math.log(10))

    def test_of_two_that_overlap_by_quadrature(self) -> None:
        x = np.linspace(-12, 12, 20_001)
        parts = [np.exp(-0.5 * ((x - m) / s) ** 2) / s / math.sqrt(2 * math.pi) for m, s in ((-1, 0.5), (0.7, 1.5))]
        mixture = sum(parts) / 2
        expected = np.trapezoid if hasattr(np, "trapezoid") else np.trapz  # its name before NumPy 2
        entropy = float(expected(sum(0.5 * p * np.log(np.maximum(p, 1e-300) / mixture) for p in parts), x))
        mean = torch.tensor([[-1.0], [0.7]]).repeat(1000, 1)
        scale = torch.tensor([[0.5], [1.5]]).log().repeat(1000, 1)
        found = [mutual_information(mean, scale, seed) for seed in range(5)]
        assert np.mean(found) == pytest.approx(entropy, abs=0.02)

    def test_it_is_the_mean_divergence_less_that_of_the_mixture(self) -> None:
        """In expectation; and at most the mean divergence, and log N."""
        mean = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
        scale = torch.full((400, 2), -0.5)
        kl = 0.5 * (mean.square() + (2 * scale).exp() - 2 * scale - 1).sum(1).mean()
        # a mixture of so many is nearly N(0, 1 + e^-1) in each component
        variance = 1 + math.exp(-1)
        of_mixture = 2 * 0.5 * (variance - math.log(variance) - 1)
        found = mutual_information(mean, scale)
        assert found == pytest.approx(float(kl) - of_mixture, abs=0.15)
        assert found < float(kl) and found < math.log(400)


@pytest.mark.parametrize("make", [lambda: vq_vae(4, 16), lambda: rq(4, 16, num_levels=2)])
def test_a_tokenizer(make: Any) -> None:
    form = toy_format(max_tokens=8, max_segments=3)
    torch.manual_seed(0)
    tokenizer = segment_tokenizer(make(), form.vocab_size, **{**PLAIN, "dropout": 0.0}).use(form).eval()
    nn.init.normal_(tokenizer.decoder.memory.weight)
    texts = ["One. Two!", "And three? Four.", "x"]
    batch = form.batch(texts)
    found = evaluate_text(tokenizer, [batch])
    with torch.no_grad():
        output = tokenizer(batch)
    tokens, segments = int(batch.valid.sum()), int(batch.num_segments.sum())
    given = -float(output.reconstruction.double().sum()) / tokens
    codes = torch.cat(tokenizer.encode(texts))
    bits = 4.0 * codes.shape[1]
    assert found.values["nats_per_token_given_codes"] == pytest.approx(given, rel=1e-5)
    assert found.values["bits_per_segment"] == bits and codes.shape[0] == segments
    assert found.values["nats_per_token_bound"] == pytest.approx(given + segments * bits * math.log(2) / tokens)
    used = [len(channel.unique()) for channel in codes.T]
    assert found.values["usage"] == pytest.approx(sum(used) / 16 / len(used))
    shares = [torch.bincount(channel).double() / segments for channel in codes.T]
    entropies = [-float((p * p.clamp(min=1e-300).log()).sum()) for p in shares]
    assert found.values["perplexity_of_codes"] == pytest.approx(np.mean(np.exp(entropies)), rel=1e-4)
    right = 0
    for row in range(3):  # one token after the other
        for place in range(int(batch.valid[row].sum())):
            one = TextBatch(batch.tokens[row : row + 1, : place + 1], batch.segments[row : row + 1, : place + 1])
            with torch.no_grad():
                states = tokenizer.decoder.states(one, output.quantization.quantized[row : row + 1])
                right += int(tokenizer.decoder.logits(states)[0, -1].argmax() == one.tokens[0, -1])
    assert found.values["token_accuracy"] == right / tokens
    assert found.kind == "tokenizer" and found.vocabulary is not None and "256 subwords" in found.vocabulary


def test_what_cannot_be_measured() -> None:
    model = language_model(VOCAB, **PLAIN)
    with pytest.raises(ValueError, match="expected documents to measure, got none"):
        evaluate_text(model, [])
    with pytest.raises(ValueError, match="num_samples >= 1"):
        evaluate_text(model, [], 0)


class TestDiversity:
    def test_distinct(self) -> None:
        texts = ["The cat sat. The cat ran.", "The dog ran."]
        assert distinct_n(texts, 1) == 6 / 12  # The cat sat . ran dog
        assert distinct_n(texts, 2) == 8 / 10  # twice: the cat, ran .
        assert distinct_n(["a b c"], 3) == 1
        with pytest.raises(ValueError, match="a text of 4 words or more, got none in 1 texts"):
            distinct_n(["a b c"], 4)

    def test_self_bleu_of_equal_and_of_disjoint_texts(self) -> None:
        assert self_bleu(["the cat sat on a mat"] * 4) == pytest.approx(100)
        assert self_bleu(["a cat"] * 2 + ["", " "]) == pytest.approx(100)
        assert self_bleu(["a b c d e", "f g h i j", "k l m n o"]) == 0

    def test_self_bleu_by_hand(self) -> None:
        one, other = "a b c d e f", "a b c d e g h"
        # 5 of 6, 4 of 5, 3 of 4, 2 of 3 n-grams, shorter by a word; the other way 5/7, 4/6, 3/5, 2/4
        first = math.exp(1 - 7 / 6) * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
        second = (5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25
        assert self_bleu([one, other]) == pytest.approx(50 * (first + second))
        assert self_bleu([one, other], num=1, seed=0) in (pytest.approx(100 * first), pytest.approx(100 * second))
        assert self_bleu([one, other], max_order=1) == pytest.approx(50 * (math.exp(-1 / 6) * 5 / 6 + 5 / 7))

    def test_settings_are_kept(self) -> None:
        found = text_diversity(["a b", "a b", "c d", ""], Writing(temperature=0.7, seeds=[1, 2, 3, 4]))
        assert found.sampling["temperature"] == 0.7 and found.sampling["seeds"] == "given for each text"
        assert found.values["different_texts"] == 0.5 and found.values["empty_texts"] == 0.25
        assert (found.num_texts, found.num_words, found.num_judged) == (4, 6, 3)
        assert "temperature 0.7" in dict(found.rows())["sampling"] and json.dumps(found.to_dict())
        assert text_diversity(["a b", "c d"], {"seeds": 3, "top_k": 5}).sampling == {"seeds": 3, "top_k": 5}

    def test_too_few_texts(self) -> None:
        with pytest.raises(ValueError, match="two texts with words or more, got 1"):
            self_bleu(["a", " "])
