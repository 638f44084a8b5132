"""What a finding is, in which order findings come, and the limits of usage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from gritvq.quantizers.functional import perplexity
from gritvq.quantizers.metrics import uniform_usage

__all__ = [
    "FEW",
    "SEVERITY",
    "Finding",
    "TrainingFacts",
    "least_usage",
    "most_severe_first",
    "percent",
    "power_of_two",
    "usage_findings",
    "within",
    "zipf_perplexity",
]

#: Names of all findings, causes before what they lead to: the order in which findings are returned.
SEVERITY = (
    "codes are not finite",
    "latents are not finite",
    "loss is not finite",
    "codes get no gradient",
    "codes are not in the optimizer",
    "training and evaluation differ",
    "latents do not vary",
    "latents have low rank",
    "learning rate of the codes is ignored",
    "learning rate of the codes is too low",
    "moving average is too slow",
    "too few vectors per step",
    "codes are elsewhere",
    "codes are too large",
    "codes are too small",
    "worse than the mean",
    "codes are zero",
    "codes are duplicates",
    "codes have low rank",
    "latents grow",
    "commitment loss explodes",
    "quantizer's losses vanish",
    "usage falls",
    "dead codes",
    "low perplexity",
)

FEW = 4  # vectors per code


class Finding(NamedTuple):
    """One fault, with the number that shows it.

    Attributes:
        name: One of :data:`SEVERITY`.
        says: What is wrong, in a sentence with the number.
        number: The number.
        limit: The limit that it is beyond.
        advice: What to do, in a sentence.
        part: Dotted path of the quantizer inside that has the fault; ``""`` where it is the whole.
        settings: Arguments of presets and values that mend it, the first best; not every preset has all of them.
    """

    name: str
    says: str
    number: float
    limit: float
    advice: str
    part: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


class TrainingFacts(NamedTuple):
    """How a quantizer is, or was, trained.

    Attributes:
        lr: Peak learning rate of the encoder, by AdamW or Adam.
        num_steps: Optimizer steps of the whole run.
        vectors_per_step: Latents that the quantizer sees between two steps, on all processes together.
        mean_rate: Mean of the learning rate over the run as a fraction of ``lr``; about 0.5 for a cosine.
    """

    lr: float
    num_steps: int
    vectors_per_step: int
    mean_rate: float = 1.0


def most_severe_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in the order of :data:`SEVERITY`; those of one name by part, as they came."""
    return sorted(findings, key=lambda each: SEVERITY.index(each.name))


def least_usage(codebook_size: int, num_tokens: int) -> float:
    """Usage below which codes count as dead: half of what as many even draws would show, or a fifth.

    With at least four tokens per code it is half of :func:`~gritvq.quantizers.metrics.uniform_usage`. Codes whose
    shares vary as those of random codes do (exponentially) show 0.8 of it, codes as uneven as words of a language
    (Zipf's law) 0.8 for 1,024 codes. Fewer tokens say less, so there it is a fifth, as in
    :func:`gritvq.training.callbacks.collapse_advice`.

    Example:
        >>> round(least_usage(1024, 100_000), 3), round(least_usage(1024, 1024), 3)
        (0.5, 0.126)
    """
    return (0.5 if num_tokens >= FEW * codebook_size else 0.2) * uniform_usage(codebook_size, num_tokens)


def zipf_perplexity(num_codes: int) -> float:
    """Perplexity of codes as uneven as words of a language, ``p_k`` proportional to ``1 / k``.

    Example:
        >>> round(zipf_perplexity(2), 2), round(zipf_perplexity(1024))
        (1.89, 182)
    """
    p = 1 / torch.arange(1, max(1, num_codes) + 1, dtype=torch.float64)
    return float(perplexity(p))


def usage_findings(
    size: int, num: int, usage: float, value: float, where: str = "", path: str = "", has_table: bool = True
) -> Iterator[Finding]:
    """Dead codes or, if there are few, uneven ones, by their numbers on so many tokens."""
    advice = (
        "Revive codes that are not chosen, start them from data, give them a higher learning rate, or take a shared "
        "map of the codes (preset grit_vq); or take fewer codes."
    )
    settings: tuple[tuple[str, Any], ...] = (("revival_interval", 20), ("lr_scale", 10), ("initialization", "kmeans"))
    if not has_table:
        advice = (
            "Take fewer codes, or a larger weight of the entropy that spreads vectors over them, where there is one."
        )
        settings = (
            ("entropy_weight", 1.0),
            ("codebook_size", max(2, power_of_two(size * usage))),
        )
    even = uniform_usage(size, num)
    if usage < least_usage(size, num):
        says = (
            f"{percent(usage)} of {size:,} codes{where} are in use on {num:,} tokens, of which even draws would use "
            f"{percent(even)}."
        )
        yield Finding("dead codes", says, usage, least_usage(size, num), advice, path, settings)
    elif value < (limit := 0.5 * zipf_perplexity(min(round(size * even), 2**22))):
        says = f"The perplexity{where} is {value:.1f} of {size:,} codes on {num:,} tokens: a few codes take nearly all."
        yield Finding("low perplexity", says, value, limit, advice, path, settings)


def power_of_two(number: float) -> int:
    """The next power of two."""
    return 1 << max(0, math.ceil(math.log2(max(1.0, number))))


def within(path: str) -> str:
    """The place of a part in a sentence."""
    return f" of {path}" if path else ""


def percent(share: float) -> str:
    """A share in a sentence."""
    return f"{100 * share:.3g} %"
