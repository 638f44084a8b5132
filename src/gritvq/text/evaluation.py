"""What a model of text is worth: likelihood, what its latents say, and how different its texts are.

A figure means little without what it was measured with, so results hold that too: the vocabulary, the numbers of
documents and samples, the settings of the sampling.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import check_integer, eval_mode
from gritvq.export import load_program
from gritvq.lazy import optional
from gritvq.quantizers.metrics import CodebookUsage
from gritvq.text.generation import Writing
from gritvq.text.networks.latents import GaussianLatents
from gritvq.text.networks.model import TraceModel
from gritvq.text.segments import TextBatch
from gritvq.text.tokenizer import TextTokenizer

__all__ = [
    "TextDiversity",
    "TextEvaluation",
    "distinct_n",
    "evaluate_text",
    "mutual_information",
    "self_bleu",
    "text_diversity",
]

Kind = Literal["model with latents", "language model", "tokenizer"]
_ACTIVE = 0.01  # variance above which a unit is active
_MOST = 2048  # segments whose posteriors are compared with each other
_WORD = re.compile(r"\w+|[^\w\s]")


class TextEvaluation(NamedTuple):
    """Figures of held-out documents, with what they were measured with.

    Attributes:
        kind: What was measured.
        values: See :func:`evaluate_text`.
        num_documents: Documents.
        num_segments: Segments of them.
        num_tokens: Tokens of them, those that end segments included.
        num_samples: Draws S of the latents per document; 0 where nothing is drawn.
        seed: Of these draws.
        vocabulary: Number of subwords and the start of their fingerprint; None if the model does not know it.
        segmentation: How documents are cut; None likewise.
    """

    kind: Kind
    values: dict[str, float]
    num_documents: int
    num_segments: int
    num_tokens: int
    num_samples: int
    seed: int
    vocabulary: str | None
    segmentation: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return self._asdict()

    def counts(self) -> dict[str, int]:
        """``documents``, ``segments`` and ``tokens``."""
        return {"documents": self.num_documents, "segments": self.num_segments, "tokens": self.num_tokens}

    def rows(self) -> list[tuple[str, str]]:
        """Everything as text, for a table."""
        drawn = f"{self.num_samples} per document, seed {self.seed}" if self.num_samples else "none: figures are exact"
        said = [(name.replace("_", " "), f"{value:,.4g}") for name, value in self.values.items()]
        counts = f"{self.num_documents:,}, of {self.num_segments:,} segments and {self.num_tokens:,} tokens"
        return [*said, ("documents", counts), ("draws of latents", drawn), ("vocabulary", self.vocabulary or "unknown")]


def evaluate_text(
    model: TraceModel | TextTokenizer, batches: Iterable[TextBatch], num_samples: int = 32, seed: int = 0
) -> TextEvaluation:
    r"""Measure a model on held-out documents, in eval mode; but for rounding, figures do not depend on the batches.

    For a model with latents, all in nats:

    - ``nats_per_token`` and ``perplexity``, its exponential: the negative log-likelihood by importance sampling, an
      upper bound in expectation that falls with S,
      ``-log p(x) <= -log 1/S sum_s p(x, z_s) / q(z_s | x)`` with z_s from q(z | x), over whole documents.
    - ``elbo_nats_per_token``: the negative bound that is trained, ``E_q[-log p(x | z)] + KL``, the expectation over the
      same draws and the divergence exact; ``reconstruction_nats_per_token`` is its first part, ``kl_per_segment`` its
      second, ``least_kl_per_segment`` what the model guarantees.
    - ``effective_samples``: ``(sum w)^2 / sum w^2`` of the S weights w, the mean over documents. Near 1 means that one
      draw decides, and a larger S would give another figure.
    - ``active_units`` of ``units``: components whose posterior mean has a variance above 0.01 over all segments.
    - ``mutual_information_per_segment``: see :func:`mutual_information`. It is at most ``information_bound``, the
      logarithm of the number of segments that were compared, and in expectation at most ``kl_per_segment``.
    - ``token_accuracy``: share of the tokens that are the most probable ones, given the true tokens before
      (teacher forcing) and the means of the posterior; ``token_accuracy_of_prior_means`` is the same given the means
      of the prior, which have not read the segment. Their difference is what the latents contribute.

    The prior of a segment depends on the text before it. So posterior means and mutual information are those of
    ``e = (u - mu_p) / s_p``, the new part of a latent in standard deviations of its prior: the prior of e is N(0, 1)
    for every segment, the divergences are the same, and what the text before says already does not count.

    A language model has ``nats_per_token``, ``perplexity`` and ``token_accuracy``, all exact. A tokenizer has, of the
    codes that it would store,

    - ``nats_per_token_given_codes``, and ``token_accuracy`` as above, given the codes.
    - ``usage``, ``uniform_usage``, ``dead_codes`` and ``perplexity_of_codes``, see
      :class:`gritvq.quantizers.metrics.CodebookUsage`; ``bits_per_segment`` at fixed length, and ``bits_per_token``,
      the same over tokens of the text.
    - ``nats_per_token_bound``: ``-log p(x | codes) + log of the number of codes``, an upper bound of -log p(x) where
      all codes are equally probable before. It compares with ``elbo_nats_per_token``.

    Figures per token compare only between models of the same vocabulary and segmentation.

    Args:
        model: The model.
        batches: Documents; each batch on any device.
        num_samples: Draws S per document, for models with latents.
        seed: Of the draws: document n has its own generator, and a larger S adds draws to those of a smaller one.

    Raises:
        ValueError: If there is no document, or S is below 1.

    Example:
        >>> from gritvq.text import language_model
        >>> model = language_model(20, width=16, depth=1, num_heads=2)
        >>> batch = TextBatch(torch.tensor([[3, 4, 18]]), torch.zeros(1, 3, dtype=torch.int64))
        >>> found = evaluate_text(model, [batch])
        >>> found.num_tokens, found.num_samples, math.isclose(found.values["perplexity"], 19, rel_tol=0.2)
        (3, 0, True)

    References:
        Burda et al., Importance weighted autoencoders, ICLR 2016, arXiv 1509.00519: the bound, and active units, there
        over the data and for one latent of a fixed prior. He et al., Lagging inference networks, ICLR 2019, arXiv
        1901.05534: mutual information beside them. That all are measured in standard deviations of the prior is ours.
    """
    check_integer("num_samples", num_samples)
    check_integer("seed", seed, 0)
    totals = Counter[str]()
    posteriors, usage = list[Tensor](), None
    if isinstance(model, TextTokenizer):
        usage = CodebookUsage(model.quantizer.codebook_sizes)
    device = next(model.parameters()).device
    latents = model.latents if isinstance(model, TraceModel) else None
    with torch.no_grad(), eval_mode(model):
        for batch in batches:
            batch = batch.to(device)
            if isinstance(model, TextTokenizer):
                assert usage is not None
                found = _of_codes(model, batch, usage)
            elif latents is None:
                found = _predicted(model, batch, None)
            else:
                found, own = _of_latents(model, latents, batch, num_samples, seed, int(totals["documents"]))
                posteriors.append(own)
            counts = {
                "documents": len(batch.tokens),
                "segments": int(batch.present.sum()),
                "tokens": int(batch.valid.sum()),
            }
            totals.update({**found, **counts})
    if not totals["tokens"]:
        raise ValueError("expected documents to measure, got none; give batches with text")
    if usage is not None:
        kind: Kind = "tokenizer"
        values = _values_of_codes(totals, usage)
    elif latents is None:
        kind, nats = "language model", totals["nats"] / totals["tokens"]
        values = {"nats_per_token": nats, "perplexity": _exp(nats)}
        values["token_accuracy"] = totals["right"] / totals["tokens"]
    else:
        kind = "model with latents"
        values = _values_of_latents(totals, torch.cat(posteriors, 1), latents.least_kl, seed)
    form = model.format
    return TextEvaluation(
        kind,
        values,
        int(totals["documents"]),
        int(totals["segments"]),
        int(totals["tokens"]),
        num_samples if kind == "model with latents" else 0,
        seed,
        None if form is None else f"{form.subwords.size:,} subwords, fingerprint {form.subwords.fingerprint[:12]}",
        None if form is None else dict(vars(form.segmentation)),
    )


def compare_program(tokenizer: TextTokenizer, encoder: Path) -> Bool[Tensor, "N Q"]:
    """An exported encoder against the tokenizer that it was made of, on documents of random tokens.

    Args:
        tokenizer: From which :meth:`TextTokenizer.export` made it.
        encoder: Its file.

    Returns:
        Which indices of all segments are identical.
    """
    form = tokenizer.format
    assert form is not None
    draw = np.random.default_rng(0)
    rows = []
    for count in range(1, form.segmentation.max_segments + 1):
        lengths = draw.integers(1, form.segmentation.max_tokens, count)
        parts = [[*draw.integers(0, form.subwords.size, length).tolist(), form.separator] for length in lengths]
        rows.append([*[token for part in parts for token in part][:-1], form.end])
    batch = form.batch_of(rows)
    found = load_program(encoder)(batch.tokens.masked_fill(~batch.valid, -1))
    with torch.no_grad(), eval_mode(tokenizer):
        own = tokenizer.quantizer.encode(tokenizer.encoder(batch), batch.present)
    return (found == own)[batch.present]


def mutual_information(
    mean: Float[Tensor, "N D"], log_scale: Float[Tensor, "N D"], seed: int = 0, most: int = _MOST
) -> float:
    r"""Information in nats that a draw of a latent has about which of N segments it is of.

    The mean divergence of the posteriors q_n from the prior, less that of their mixture:
    ``1/N sum_n KL(q_n || p) - KL(1/N sum_n q_n || p) = E[log q_n(z) - log 1/N sum_m q_m(z)]``, n uniform and z from
    q_n. The prior drops out. The expectation is a mean over one draw for each segment.

    The figure is at most log N, whatever the draws. In expectation it is at most the information between latent and
    segment over all possible texts, so near log N it says only that this is not less: take more segments then. It can
    be a little below 0 where there is no information.

    Args:
        mean: Means of the posteriors, in coordinates in which all segments have the same prior.
        log_scale: Logarithms of their standard deviations.
        seed: Of the draws, and of the choice of segments.
        most: Segments that are compared; of more, so many at random.

    Example:
        >>> apart = 100.0 * torch.arange(8)[:, None]
        >>> round(mutual_information(apart, torch.zeros(8, 1)), 4) == round(math.log(8), 4)
        True
        >>> mutual_information(torch.zeros(8, 1), torch.zeros(8, 1))
        0.0

    References:
        Hoffman and Johnson, ELBO surgery, NeurIPS 2016 workshop on approximate inference; estimated over a sample of
        segments as by He et al., ICLR 2019, arXiv 1901.05534. Theirs has the entropy of q_n in closed form in the place
        of log q_n(z): the same in expectation, but it may be above log N.
    """
    draw = np.random.default_rng([check_integer("seed", seed, 0), 3])
    chosen = np.sort(draw.permutation(len(mean))[: check_integer("most", most)], kind="stable")
    rows = torch.from_numpy(chosen)
    mean, log_scale = mean.detach().cpu().double()[rows], log_scale.detach().cpu().double()[rows]
    mean = mean - mean.mean(0)  # rounding is least around the origin
    noise = torch.from_numpy(draw.standard_normal(mean.shape))
    precision = (-2 * log_scale).exp()
    constant = -0.5 * (mean.square() * precision).sum(1) - log_scale.sum(1)
    found = 0.0
    for part in torch.arange(len(mean)).split(256):
        z = mean[part] + log_scale[part].exp() * noise[part]
        log_q = constant + z @ (mean * precision).T - 0.5 * z.square() @ precision.T
        own = log_q[torch.arange(len(part)), part]
        found += float((own - log_q.logsumexp(1)).sum())
    return found / len(mean) + math.log(len(mean))


# --- parts of the evaluation ------------------------------------------------------------------------------------------


def _predicted(model: TraceModel | TextTokenizer, batch: TextBatch, latents: Tensor | None) -> dict[str, float]:
    """``nats`` of all tokens given the latents, and how many are the most probable ones."""
    states = model.decoder.states(batch, latents)
    logits = model.decoder.logits(states).float()
    log_probs = logits.log_softmax(-1).gather(2, batch.tokens[..., None])[..., 0]
    right = (logits.argmax(-1) == batch.tokens) & batch.valid
    return {"nats": -float((log_probs * batch.valid).double().sum()), "right": float(right.sum())}


def _of_latents(
    model: TraceModel, latents: GaussianLatents, batch: TextBatch, num_samples: int, seed: int, first: int
) -> tuple[dict[str, float], Tensor]:
    """Sums over a batch, and means and log deviations of its posteriors (2, N, D) in deviations of the prior."""
    assert model.encoder is not None
    present = batch.present
    context = model.encoder(batch).float()
    before = latents.before(context)
    prior = latents.prior(before)
    posterior, kl = latents.posterior(context, before, prior, present)
    scale = prior.log_scale.exp()
    shift, log_ratio = (posterior.mean - prior.mean) / scale, posterior.log_scale - prior.log_scale
    there = present[..., None].double()
    divergence = (kl.double() * there).sum((1, 2))
    draws = [np.random.default_rng([seed, 2, first + n]) for n in range(len(present))]
    segments = present.sum(1).tolist()
    log_weights, reconstructions = [], []
    for _ in range(num_samples):
        noise = torch.zeros_like(shift)
        for row, (draw, count) in enumerate(zip(draws, segments, strict=True)):
            noise[row, :count] = torch.from_numpy(draw.standard_normal((count, latents.dim)))
        e = shift + log_ratio.exp() * noise
        log_probs = model.decoder(batch, latents.recurrence(prior.mean + scale * e)).double()
        log_px = (log_probs * batch.valid).sum(1)
        ratio = 0.5 * (noise.double().square() - e.double().square()) + log_ratio.double()  # log p(e) - log q(e)
        log_weights.append(log_px + (ratio * there).sum((1, 2)))
        reconstructions.append(log_px)
    weights, log_px = torch.stack(log_weights), torch.stack(reconstructions).mean(0)
    log_likelihood = weights.logsumexp(0) - math.log(num_samples)
    effective = (2 * weights.logsumexp(0) - (2 * weights).logsumexp(0)).exp()
    found = {
        "nats": -float(log_likelihood.sum()),
        "reconstruction": -float(log_px.sum()),
        "kl": float(divergence.sum()),
        "effective": float(effective.sum()),
        "right": _predicted(model, batch, latents.recurrence(posterior.mean))["right"],
        "right_before": _predicted(model, batch, latents.recurrence(prior.mean))["right"],
    }
    return found, torch.stack([shift[present], log_ratio[present]]).double().cpu()


def _values_of_latents(
    totals: Mapping[str, float], posteriors: Float[Tensor, "2 N D"], least_kl: float, seed: int
) -> dict[str, float]:
    tokens, segments = totals["tokens"], totals["segments"]
    nats = totals["nats"] / tokens
    mean, log_scale = posteriors
    return {
        "nats_per_token": nats,
        "perplexity": _exp(nats),
        "elbo_nats_per_token": (totals["reconstruction"] + totals["kl"]) / tokens,
        "reconstruction_nats_per_token": totals["reconstruction"] / tokens,
        "effective_samples": totals["effective"] / totals["documents"],
        "kl_per_segment": totals["kl"] / segments,
        "least_kl_per_segment": least_kl,
        "mutual_information_per_segment": mutual_information(mean, log_scale, seed),
        "information_bound": math.log(min(len(mean), _MOST)),
        "active_units": float((mean.var(0, correction=0) > _ACTIVE).sum()),
        "units": float(mean.shape[1]),
        "token_accuracy": totals["right"] / tokens,
        "token_accuracy_of_prior_means": totals["right_before"] / tokens,
    }


def _of_codes(tokenizer: TextTokenizer, batch: TextBatch, usage: CodebookUsage) -> dict[str, float]:
    """Sums over a batch, given the codes as they would be stored."""
    indices: Int[Tensor, "B T Q"] = tokenizer.quantizer.encode(tokenizer.encoder(batch), batch.present)
    usage.update(indices.cpu())
    latents = tokenizer.quantizer.decode(indices).to(next(tokenizer.decoder.parameters()).dtype)
    return _predicted(tokenizer, batch, latents)


def _values_of_codes(totals: Mapping[str, float], usage: CodebookUsage) -> dict[str, float]:
    tokens, bits, counts = totals["tokens"], usage.bits_per_token(), usage.compute()
    given, of_text = totals["nats"] / tokens, bits * totals["segments"] / tokens
    return {
        "nats_per_token_given_codes": given,
        "nats_per_token_bound": given + of_text * math.log(2),
        "token_accuracy": totals["right"] / tokens,
        **{name: counts[name] for name in ("usage", "uniform_usage", "dead_codes")},
        "perplexity_of_codes": counts["perplexity"],
        "bits_per_segment": bits,
        "bits_per_token": of_text,
    }


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


# --- written texts ----------------------------------------------------------------------------------------------------


class TextDiversity(NamedTuple):
    """How different texts are, with what decides it.

    Attributes:
        values: ``distinct_1``, ``distinct_2`` (:func:`distinct_n`), ``self_bleu`` (:func:`self_bleu`),
            ``different_texts``: the share of texts that no other equals, and ``empty_texts``: the share of those
            without a word.
        num_texts: Number of texts.
        num_words: Words and punctuation marks of all.
        num_judged: Texts that self-BLEU is the mean over, at most.
        sampling: How the texts were drawn.
    """

    values: dict[str, float]
    num_texts: int
    num_words: int
    num_judged: int
    sampling: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return self._asdict()

    def rows(self) -> list[tuple[str, str]]:
        """Everything as text, for a table."""
        said = [(name.replace("_", " "), f"{value:.4g}") for name, value in self.values.items()]
        sampling = ", ".join(f"{name} {value}" for name, value in self.sampling.items())
        return [*said, ("texts", f"{self.num_texts:,}, of {self.num_words:,} words"), ("sampling", sampling)]


def text_diversity(
    texts: Sequence[str], sampling: Writing | Mapping[str, Any], num_judged: int = 200, seed: int = 0
) -> TextDiversity:
    """Measure how different texts are.

    All figures fall or rise with the number and the length of texts, and with temperature and the like: compare them at
    equal numbers and equal sampling only, and never without a figure of quality beside them, since noise is diverse.

    Args:
        texts: The texts.
        sampling: How they were drawn, which the result keeps.
        num_judged: Texts that self-BLEU is the mean over, at random; its time grows with this times all texts.
        seed: Of that choice.

    Raises:
        ValueError: If fewer than two texts have a word, or sacrebleu is missing.

    Example:
        >>> found = text_diversity(["a cat sat", "a dog ran"], Writing(top_p=0.9, seeds=0))
        >>> round(found.values["distinct_1"], 3), found.values["different_texts"], found.sampling["top_p"]
        (0.833, 1.0, 0.9)
    """
    settings = dict(vars(sampling) if isinstance(sampling, Writing) else sampling)
    if not isinstance(settings.get("seeds"), int | None):
        settings["seeds"] = "given for each text"
    words = [_words(text) for text in texts]
    values = {
        **{f"distinct_{n}": distinct_n(texts, n) for n in (1, 2)},
        "self_bleu": self_bleu(texts, num=num_judged, seed=seed),
        "different_texts": sum(count == 1 for count in Counter(texts).values()) / len(texts),
        "empty_texts": sum(not own for own in words) / len(texts),
    }
    judged = min(num_judged, sum(map(bool, words)))
    return TextDiversity(values, len(texts), sum(map(len, words)), judged, settings)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Number of different n-grams of all texts together over the number of all: 1 if none is repeated.

    Words are runs of letters and digits; every other mark that is no white space is a word of its own. No n-gram goes
    over the end of a text.

    Args:
        texts: The texts.
        n: Words of an n-gram.

    Raises:
        ValueError: If no text has n words.

    Example:
        >>> distinct_n(["a b a b", "b a"], 2)  # ab, ba, ab; ba
        0.5

    References:
        Li et al., A diversity-promoting objective function for neural conversation models, NAACL 2016, arXiv
        1510.03055, "distinct-n", there over the number of words; over that of n-grams, as is usual now, 1 can be
        reached.
    """
    check_integer("n", n)
    grams = [tuple(words[k : k + n]) for words in map(_words, texts) for k in range(len(words) - n + 1)]
    if not grams:
        raise ValueError(f"expected a text of {n} words or more, got none in {len(texts)} texts; give longer ones")
    return len(set(grams)) / len(grams)


def self_bleu(texts: Sequence[str], max_order: int = 4, num: int | None = None, seed: int = 0) -> float:
    """Mean BLEU of each text with all others as its references, 0 .. 100: high if texts repeat each other.

    BLEU is sacrebleu's for sentences: tokenizer 13a, exponential smoothing, orders that a short text does not have left
    out. Texts without a word, which nothing can repeat, are left out.

    Args:
        texts: The texts.
        max_order: Words of the longest n-grams.
        num: Judge so many texts, at random, each still against all others; all if None.
        seed: Of that choice.

    Raises:
        ValueError: If fewer than two texts have a word.

    Example:
        >>> round(self_bleu(["the cat sat on the mat"] * 3), 6), self_bleu(["a b c d", "e f g h"])
        (100.0, 0.0)

    References:
        Zhu et al., Texygen, SIGIR 2018, arXiv 1802.01886, there with NLTK's BLEU and another smoothing.
    """
    texts = [text for text in texts if _words(text)]
    if len(texts) < 2:
        raise ValueError(f"expected two texts with words or more, got {len(texts)}; each is compared with the others")
    bleu = optional("sacrebleu.metrics", "text").BLEU(
        max_ngram_order=check_integer("max_order", max_order), effective_order=True
    )
    order = np.random.default_rng(check_integer("seed", seed, 0)).permutation(len(texts))
    chosen = np.sort(order[: len(texts) if num is None else check_integer("num", num)], kind="stable").tolist()
    scores = [bleu.sentence_score(texts[n], [*texts[:n], *texts[n + 1 :]]).score for n in chosen]
    return sum(scores) / len(scores)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)
