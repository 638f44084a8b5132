"""The examination: all checks of one quantizer."""

from __future__ import annotations

import copy
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.diagnosis.checks import (
    of_finite_codes,
    of_latents,
    of_modes,
    of_part,
    of_rank_alone,
    of_table,
    of_usage,
)
from gritvq.quantizers.diagnosis.findings import Finding, TrainingFacts, most_severe_first
from gritvq.quantizers.diagnosis.learning import no_gradient, of_optimizer, of_training, without_gradient
from gritvq.quantizers.diagnosis.parts import finite_latents, leaves, metric_of, observed, tables_of

__all__ = ["examine"]

# What a rate that is too low, or too small batches, may explain.
SYMPTOMS = {"codes are elsewhere", "codes are too large", "codes are too small", "worse than the mean"}
SYMPTOMS |= {"dead codes", "low perplexity"}


def examine(
    quantizer: Quantizer,
    latents: Float[Tensor, "*batch D"] | None = None,
    *,
    training: TrainingFacts | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[Finding]:
    r"""What is wrong with a quantizer; an empty list for a healthy one.

    Works on a copy: nothing of the quantizer changes. Structures are examined part by part. With the codes ``c_k``
    (K, D) of a part, its vectors ``x_n``, what they are quantized to ``q_n`` and ``V`` the total variance
    ``mean |x_n - mean x|^2`` (for a cosine metric all at unit length):

    - *codes are not finite*, *latents are not finite*: share of rows with NaN or infinity > 0.
    - *codes are zero*: more than one ``|c_k| <= 1e-6 median |c|``. One code may be zero, two are copies.
    - *codes are duplicates*: share of codes whose nearest other code is nearer than 1 % of the 90 % quantile of these
      distances, > 5 % and more than 4 codes. Of random codes in one dimension, the worst case, 2 % are; in D dimensions
      about ``0.01^D``.
    - *codes have low rank*: share of the latents' variance in those principal directions of ``q`` in which ``q`` has
      less than 1 % of the latents' variance, > 1/2, where at least 4 D codes are in use. A code of low rate leaves out
      the directions of little variance (reverse water-filling), never those of most. Without latents: effective
      number of directions of the codes, ``exp`` of the entropy of their shares of variance, < max(1.5, D / 32).
    - *latents have low rank*: that number for the latents, < max(1.5, D / 32), where D >= 4: most of the encoder's
      output is redundant. Natural pictures differ in brightness most of all, so that healthy latents of 16 components
      have 2. Not where latents hold variances too.
    - *latents do not vary*: ``V / mean |x|^2 < 1e-6``: float32 leaves three digits to tell vectors apart.
    - *worse than the mean*, of parts that take the nearest code: ``mean |x - q|^2 / V > 1``. One code at the mean of
      the latents would be better. It is *codes are too large* where the codes' root mean square from their mean is
      more than 4 times that of the latents, which lie among them, and *codes are elsewhere* where
      ``|mean x - mean q|^2`` is more than half of that error.
    - *codes are too small*: the latents' root mean square from their mean over that of the codes, more than 3 times
      ``(1 - K^(-2/d))^(-1/2)``, with d the effective number of directions: the ratio of a Gaussian's best codes.
    - *dead codes*: usage below :func:`least_usage`.
    - *low perplexity*: below half of :func:`zipf_perplexity` of the codes that so many even draws would hit: less even
      than words of a language, by a factor of two.
    - *training and evaluation differ*: indices that differ between both modes, > 0, unless ``draws_indices``; and
      values that differ, if ``exact`` is ``"always"``.

    Where ``training`` or ``optimizer`` is given, also:

    - *codes get no gradient*: parameters of a codebook with a gradient in a training pass, = 0, and no rule writes the
      codes.
    - *codes are not in the optimizer*: trained parameters of codebooks in none of its groups, > 0.
    - *learning rate of the codes is ignored*: codes with ``lr_scale`` other than 1 at the encoder's rate, > 0.
    - *learning rate of the codes is too low*: ``lr lr_scale mean_rate num_steps``, the way that AdamW moves a component
      at most (about ``lr`` a step; ``1 + sqrt D`` times that under an affine map, whose D weights and bias all move),
      below the root mean square of the latents' components, where codes start from random numbers. Said only of a part
      with another fault that it explains: dead codes, or codes elsewhere.
    - *moving average is too slow*: ``num_steps (1 - decay) < 1``, a window longer than the run; or a code's vectors in
      its window, ``vectors_per_step / (K (1 - decay)) < 4``: half of the standard deviation of a cell would be noise.
    - *too few vectors per step*: ``interval vectors_per_step / K < 3`` under a revival: ``exp(-3)``, 5 % of the codes
      that live, get no vector between two looks and are moved. Or, where there is a fault that it
      explains, fewer vectors per step than codes, of which no revival, average or shared map moves the others.

    Args:
        quantizer: Any quantizer.
        latents: Vectors that it is given (*batch, input_dim); at most 65,536 are used. Several per code are needed to
            speak of dead codes. None examines the tables alone.
        training: How it is trained.
        optimizer: The optimizer that trains it.

    Returns:
        Findings, causes before what they lead to.

    Raises:
        ValueError: If the latents do not fit the quantizer, or none is finite.

    Example:
        >>> from gritvq import vq_vae
        >>> latents = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
        >>> quantizer = vq_vae(4, 16)
        >>> quantizer.initialize_codebook(latents)
        >>> examine(quantizer, latents)
        []
        >>> _ = quantizer.codebook.write(torch.arange(4), torch.full((4, 4), float("nan")))
        >>> [(finding.name, finding.number) for finding in examine(quantizer, latents)]
        [('codes are not finite', 0.25)]
    """
    devices = [] if latents is None or latents.device.type != "cuda" else [latents.device]
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(of_finite_codes(quantizer))
        if found:  # everything else would speak of these
            return most_severe_first(found)
        twin = copy.deepcopy(quantizer).eval()
        if optimizer is not None:
            found += of_optimizer(quantizer, optimizer)
        if latents is None:
            for path, inner in leaves(twin):
                for _, codes in tables_of(inner):
                    found += of_table(path, codes.double(), metric_of(inner))
                    found += of_rank_alone(path, codes.double())
            return most_severe_first(found)
        latents, bad = finite_latents(quantizer, latents.detach())
        found += bad
        collapsed = list(of_latents(latents.flatten(0, -2).double(), quantizer.input_dim == quantizer.dim))
        found += collapsed
        found += of_modes(twin, latents)
        symptoms: dict[str, set[str]] = {}
        parts = list(observed(twin, latents))
        for part in parts:
            own = [] if any(each.name == "latents do not vary" for each in collapsed) else list(of_part(part))
            own += of_usage(part)
            symptoms[part.path] = {each.name for each in own} & SYMPTOMS
            found += own
        if training is not None or optimizer is not None:
            still = set(without_gradient(quantizer, latents))
            for part in parts:
                if part.path in still:
                    found.append(no_gradient(part.path))
                elif training is not None:
                    share = len(part.x) / max(1, latents[..., 0].numel())
                    found += of_training(part, training, share, bool(symptoms[part.path]))
        return most_severe_first(found)
