"""Checks of codes and latents: their values, their geometry, their use, and both modes of a quantizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.canonical import canonical_eigh
from gritvq.quantizers.diagnosis.findings import Finding, percent, power_of_two, usage_findings, within
from gritvq.quantizers.diagnosis.parts import Part, leaves, tables_of
from gritvq.quantizers.functional import nearest_codes, perplexity
from gritvq.quantizers.metrics import CodebookUsage
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["of_finite_codes", "of_latents", "of_modes", "of_part", "of_rank_alone", "of_table", "of_usage"]

_MOST_QUERIES = 4096  # codes whose neighbors are looked for
_COPY, _COPIES = 0.01, 0.05  # of the typical distance; of the codes
_BLIND, _BLIND_SHARE = 0.01, 0.5  # of a direction's variance; of all variance
_RANK_ADVICE = (
    "Start the codes from data, or give them a higher learning rate; if the latents have no more directions either, "
    "take a smaller dim."
)


def of_finite_codes(quantizer: Quantizer) -> Iterator[Finding]:
    """Codes with NaN or infinity."""
    for path, part in leaves(quantizer):
        for _, codes in tables_of(part):
            share = 1 - float(torch.isfinite(codes).all(1).double().mean())
            if share > 0:
                yield Finding(
                    "codes are not finite",
                    f"{percent(share)} of the {len(codes):,} codes{within(path)} are NaN or infinite.",
                    share,
                    0,
                    "Go back to an earlier checkpoint; then lower the learning rate, or clip gradients.",
                    path,
                )


def of_table(path: str, codes: Tensor, metric: str) -> Iterator[Finding]:
    """Zeros and copies."""
    lengths = codes.norm(dim=1)
    zero = lengths <= 1e-6 * lengths.median()
    number = int(zero.sum())
    anew = "Move them onto latents: start from data (initialization), or revive codes that are not chosen."
    settings = (("revival_interval", 20), ("initialization", "kmeans"))
    if number > 1:
        says = f"{number:,} of the {len(codes):,} codes{within(path)} are zero; one at most can be of use."
        yield Finding("codes are zero", says, number, 1, anew, path, settings)
    codes = codes[~zero]
    if len(codes) < 3:
        return
    rows = F.normalize(codes, dim=1) if metric == "cosine" else codes
    asked = rows[:: -(-len(rows) // _MOST_QUERIES)]
    two = nearest_codes(asked, rows, 2)
    near = (asked[:, None] - rows[two]).norm(dim=-1).amax(1)  # the farther one is not the code itself
    spread = float((rows - rows.mean(0)).square().sum(1).mean().sqrt())
    typical = float(near.quantile(0.9))
    typical = typical if typical > 1e-3 * spread / len(rows) else spread
    share = float((near <= _COPY * typical).double().mean())
    limit = max(_COPIES, 4 / len(asked))  # one or two pairs of few codes are chance
    if share > limit:
        says = (
            f"{percent(share)} of the codes{within(path)} have another code nearer than 1 % of the typical distance "
            f"between neighbors, {typical:.3g}: two codes that say the same."
        )
        yield Finding("codes are duplicates", says, share, limit, anew, path, settings)


def of_rank_alone(path: str, codes: Tensor) -> Iterator[Finding]:
    """The rank of codes without latents to compare with."""
    dim = codes.shape[1]
    rank, limit = directions(covariance(codes)), max(1.5, dim / 32)
    if dim >= 4 and len(codes) >= 4 * dim and rank < limit:
        says = f"The codes{within(path)} lie in {rank:.1f} of {dim} directions."
        yield Finding("codes have low rank", says, rank, limit, _RANK_ADVICE, path, (("dim", power_of_two(rank)),))


def of_latents(x: Tensor, with_rank: bool) -> Iterator[Finding]:
    """The encoder's output by itself."""
    mean_square = float(x.square().sum(1).mean())
    own = covariance(x)
    variance, dim = float(own.trace()), x.shape[1]
    number = variance / mean_square if mean_square else 0.0
    if len(x) < 2:
        return
    if number < 1e-6:
        says = f"The latents are all the same: their variance is {number:.1g} of their mean square."
        advice = (
            "The encoder has collapsed. Lower the commitment weight and the learning rate, and look whether the "
            "decoder can do without the tokens."
        )
        yield Finding("latents do not vary", says, number, 1e-6, advice, settings=(("commitment_weight", 0.25),))
        return
    rank, limit = directions(own), max(1.5, dim / 32)
    if with_rank and dim >= 4 and len(x) >= 4 * dim and rank < limit:
        says = f"The latents vary in {rank:.1f} of {dim} directions: the other components repeat these."
        advice = "Take a smaller dim, or a lower commitment weight, which draws latents together."
        yield Finding("latents have low rank", says, rank, limit, advice, settings=(("dim", power_of_two(rank)),))


def of_part(part: Part) -> Iterator[Finding]:
    """Codes against the latents that they stand for."""
    for _, codes in part.tables:
        yield from of_table(part.path, codes.double(), part.metric)
    quantizer = part.quantizer
    if not isinstance(quantizer, VectorQuantizer) or not quantizer.assignment.takes_nearest or len(part.x) < 2:
        return
    x, q, codes = part.x, part.q, part.tables[0][1].double()
    if part.metric == "cosine":
        x, q, codes = (F.normalize(each, dim=1) for each in (x, q, codes))
    of_x, of_q = covariance(x), covariance(q)
    variance, size, dim = float(of_x.trace()), len(codes), codes.shape[1]
    if variance <= 0 or size < 2:
        return
    where, path = within(part.path), part.path
    error = float((x - q).square().sum(1).mean())
    around_mean = float((codes - codes.mean(0)).square().sum(1).mean())
    ratio = math.sqrt(variance / around_mean) if around_mean else math.inf
    start: tuple[tuple[str, Any], ...] = (("initialization", "kmeans"), ("lr_scale", 10))
    if error > variance:
        away = float((x.mean(0) - q.mean(0)).square().sum()) / error
        among = float((x.mean(0) - codes.mean(0)).square().sum()) < around_mean
        if ratio < 0.25 and among:
            says = f"The codes{where} are spread {1 / ratio:.3g} times as far as the latents, which fall between them."
            advice = "Start the codes from data; if the latents shrink in training, lower the commitment weight."
            yield Finding("codes are too large", says, 1 / ratio, 4, advice, path, start)
        elif away > 0.5:
            says = (
                f"The codes{where} are not where the latents are: {percent(away)} of the squared error is the distance "
                f"between their means, {math.sqrt(away * error / variance):.2g} standard deviations of the latents."
            )
            advice = "Start the codes from data and give them a higher learning rate, or draw latents to the codes."
            settings = (*start, ("commitment_weight", 0.25))
            yield Finding("codes are elsewhere", says, away, 0.5, advice, path, settings)
        else:
            says = (
                f"The squared error{where} is {error / variance:.3g} times the variance of the latents: one code at "
                "their mean would be better."
            )
            advice = "Start the codes from data and give them a higher learning rate."
            yield Finding("worse than the mean", says, error / variance, 1, advice, path, start)
    limit = 3 / math.sqrt(-math.expm1(-2 * math.log(size) / directions(of_x)))
    if ratio > limit:
        says = f"The latents{where} are spread {ratio:.3g} times as far as the codes, which lie together in the middle."
        advice = "Start the codes from data and give them a higher learning rate, or draw latents to the codes."
        settings = (*start, ("commitment_weight", 0.25))
        yield Finding("codes are too small", says, ratio, limit, advice, path, settings)
        return
    if int(part.indices.unique().numel()) >= 4 * dim and dim > 1 and error <= variance:
        own, axes = canonical_eigh(of_q)
        theirs = ((x - x.mean(0)) @ axes).square().mean(0)
        blind = float(theirs[own < _BLIND * theirs].sum()) / variance
        if blind > _BLIND_SHARE:
            says = f"{percent(blind)} of the latents' variance is in directions that the codes{where} do not have."
            yield Finding("codes have low rank", says, blind, _BLIND_SHARE, _RANK_ADVICE, path, start)


def of_usage(part: Part) -> Iterator[Finding]:
    """Dead codes and uneven ones, per index channel."""
    used = CodebookUsage(part.quantizer.codebook_sizes)
    used.update(part.indices)
    for channel, (size, counts) in enumerate(zip(used.codebook_sizes, used.counts, strict=True)):
        counts = (counts.coalesce().values() if counts.is_sparse else counts).double()
        num, seen = int(counts.sum()), int((counts > 0).sum())
        if size == 1 or num == 0:
            continue
        where = within(part.path) + (f", channel {channel}" if len(used.counts) > 1 else "")
        yield from usage_findings(
            size, num, seen / size, float(perplexity(counts)), where, part.path, bool(part.tables)
        )


@torch.no_grad()
def of_modes(twin: Quantizer, latents: Tensor) -> Iterator[Finding]:
    """Training against evaluation, where both must be the same."""
    other = copy.deepcopy(twin).train()
    values, indices, _ = twin(latents)
    trained_values, trained_indices, _ = other(latents)
    differing = 0.0
    if not twin.draws_indices:
        differing = float((indices != trained_indices).any(-1).double().mean())
    what = "indices"
    if twin.exact == "always" and not twin.draws_indices and differing == 0:
        differing = float((values != trained_values).any(-1).double().mean())
        what = "values"
    if differing > 0:
        says = f"{percent(differing)} of the {what} of the same latents differ between training and evaluation."
        advice = (
            "Look for a layer that acts in training only (dropout, noise, a batch norm) in the codebook or the "
            "assignment, or declare it (exact, draws_indices)."
        )
        yield Finding("training and evaluation differ", says, differing, 0, advice)


def covariance(x: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    centered = x - x.mean(0)
    return centered.T @ centered / len(x)


def directions(covariance: Float[Tensor, "D D"]) -> float:
    """Effective number of directions: ``exp`` of the entropy of the eigenvalues' shares."""
    return float(perplexity(torch.linalg.eigvalsh(covariance).clamp_min(0)))
