"""Stateless functions of vector quantization.

Everything is computed in float32 or wider, whatever the autocast type. Searches never build the N x K matrix; they work
in blocks of at most 64 MB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.quantizers import kernels
from gritvq.quantizers.canonical import ranked
from gritvq.quantizers.kernels.blocked import search_rows

__all__ = [
    "Metric",
    "Precision",
    "at_least_float32",
    "bits_per_sample",
    "bits_per_token",
    "central_code",
    "check_indices",
    "cluster_means",
    "code_counts",
    "code_sums",
    "effective_rank",
    "gap_length",
    "kmeans",
    "nearest_code",
    "nearest_codes",
    "perplexity",
    "rotate_to",
    "rows_or_zeros",
    "sample_rows",
    "squared_distance",
    "straight_through",
    "to_unit_length",
]

Metric = Literal["euclidean", "cosine"]
Precision = Literal["float32", "tf32", "bf16"]

_BLOCK_ENTRIES = 1 << 24  # scores per block in nearest_codes: 64 MB


def transforming() -> bool:
    """Whether a ``torch.func`` transform is active; then plain operators replace custom backward passes.

    Example:
        >>> transforming(), torch.func.vmap(lambda x: x + transforming())(torch.zeros(1))
        (False, tensor([1.]))
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def vectorizing() -> bool:
    """Whether ``torch.vmap`` is active.

    Example:
        >>> vectorizing(), torch.func.vmap(lambda x: x + vectorizing())(torch.zeros(1))
        (False, tensor([1.]))
    """
    if not transforming():
        return False
    own = torch._C._functorch
    return any(level.key() == own.TransformType.Vmap for level in own.get_interpreter_stack() or ())


def unwrapped(x: Tensor) -> Tensor:
    """The tensor without the wrappers of ``torch.func``; under ``vmap`` with the whole batch."""
    own = torch._C._functorch
    while own.is_functorch_wrapped_tensor(x):
        x = own.get_unwrapped(x)
    return x


def at_least_float32(x: Tensor) -> Tensor:
    """Cast to float32, unless ``x`` is float64.

    Example:
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def to_unit_length(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Normalize vectors to length 1; vectors shorter than 1e-6 get no gradient.

    The values are those of ``torch.nn.functional.normalize``, which multiplies gradients by up to 1e12.

    Example:
        >>> to_unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    unit = F.normalize(x, dim=-1)
    short = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True) < 1e-6
    return torch.where(short, unit.detach(), unit)


def nearest_code(
    x: Float[Tensor, "N D"],
    codes: Float[Tensor, "K D"],
    metric: Metric = "euclidean",
    precision: Precision = "float32",
) -> Int[Tensor, " N"]:
    """Index of the nearest code of every vector; ties go to the lowest index.

    Computes ``argmin_k |x_n - c_k|^2 = argmin_k |c_k|^2 / 2 - <x_n, c_k>`` in float32 (float64 for float64 input) after
    subtracting a median code from both sides, so that data far from the origin and outlying codes lose no precision.
    Additional memory is at most 64 MB. A row with a non-finite entry gets index 0.

    Args:
        x: Vectors (N, D), any floating type.
        codes: Codes (K, D), K >= 1.
        metric: ``"euclidean"``, or ``"cosine"``, which compares directions.
        precision: Minimum precision of the products on a GPU: ``"float32"``, ``"tf32"`` (10 bits) or ``"bf16"``
            (8 bits), of centered numbers, summed in float32. Lower ones are faster and may confuse codes that are about
            equally near. It has no effect on a CPU or for float64 input.

    Returns:
        Indices (N,), int64. Not differentiable.

    Raises:
        ValueError: If the shapes do not fit, or metric or precision is unknown.

    Example:
        >>> codes = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> nearest_code(torch.tensor([[0.1, 0.2], [0.9, 0.8]]), codes)
        tensor([0, 1])
    """
    _check(x, codes, metric, precision)
    x, codes = x.detach(), codes.detach()
    if torch.compiler.is_exporting():  # exported programs need plain operators
        x, codes, bias, center = _prepared(x, codes, metric == "cosine")
        return search_rows(x.to(codes.dtype) - center, codes, bias)
    return torch.ops.gritvq.nearest_code(x, codes, metric == "cosine", precision)


def _check(x: Tensor, codes: Tensor, metric: str, precision: str) -> None:
    if x.ndim != 2 or codes.ndim != 2 or x.shape[1] != codes.shape[1] or codes.shape[0] < 1:
        raise ValueError(
            f"expected vectors (N, D) and codes (K, D) with K >= 1, got {tuple(x.shape)} and {tuple(codes.shape)}; "
            "flatten the leading axes, and make the last axes equal"
        )
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"expected metric 'euclidean' or 'cosine', got {metric!r}; choose one")
    if precision not in kernels.PRECISIONS:
        raise ValueError(f"expected a precision among {kernels.PRECISIONS}, got {precision!r}; choose one")


def nearest_codes(
    x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], num_codes: int, metric: Metric = "euclidean"
) -> Int[Tensor, "N n"]:
    """Indices of the ``num_codes`` nearest codes of every vector, nearest first; ties go to the lowest index.

    Metrics are those of :func:`nearest_code`. Additional memory is one block of 64 MB of scores.

    Raises:
        ValueError: If ``num_codes`` is not in 1 .. K.

    Example:
        >>> nearest_codes(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [3.0]]), 2)
        tensor([[1, 0]])
    """
    if not 1 <= num_codes <= len(codes):
        raise ValueError(f"expected num_codes in 1 .. {len(codes)}, got {num_codes}; choose another number")
    with torch.autocast(x.device.type, enabled=False):
        x, codes, bias, center = _prepared(x.detach(), codes.detach(), metric == "cosine")
        found = [x.new_empty(0, num_codes, dtype=torch.int64)]
        for rows in x.split(max(1, _BLOCK_ENTRIES // len(codes))) if len(x) else ():
            scores = torch.addmm(bias, rows.to(codes.dtype) - center, codes.T, alpha=-1)
            found.append(ranked(scores, num_codes, largest=False))
        return torch.cat(found)


def _prepared(x: Tensor, codes: Tensor, cosine: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments of a search: vectors, centered codes, half their squared lengths, the center."""
    dtype = torch.float64 if torch.float64 in (x.dtype, codes.dtype) else torch.float32
    codes = codes.to(dtype)
    if cosine:
        x, codes = F.normalize(x.to(dtype), dim=1), F.normalize(codes, dim=1)
    center = central_code(codes)
    codes = codes - center
    return x, codes, 0.5 * (codes * codes).sum(1), center


@torch.library.custom_op("gritvq::nearest_code", mutates_args=())
def _nearest_code(x: Tensor, codes: Tensor, cosine: bool, precision: str) -> Tensor:
    """Opaque to the compiler, so that graphs neither unroll the blocks nor depend on N."""
    if len(x) == 0:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        return kernels.search(*_prepared(x, codes, cosine), precision)


@_nearest_code.register_fake
def _(x: Tensor, codes: Tensor, cosine: bool, precision: str) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


def central_code(codes: Float[Tensor, "K D"]) -> Float[Tensor, " D"]:
    """Component-wise median of 128 to 255 codes (all, if fewer), so that outliers do not affect it.

    Example:
        >>> central_code(torch.tensor([[1.0], [2.0], [900.0]]))
        tensor([2.])
    """
    sample = codes[:: max(1, len(codes) // 128)]
    if torch.compiler.is_exporting():  # the same value by an operator that all formats have
        return sample.sort(0).values[(len(sample) - 1) // 2]
    return sample.median(0).values


def gap_length(gap: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch 1"]:
    """``|gap|``; where the gap vanishes all derivatives are 0, while the second ones of a norm are NaN.

    Example:
        >>> gap_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[5.],
                [0.]])
    """
    none = torch.linalg.vector_norm(gap.detach(), dim=-1, keepdim=True) == 0  # squares that underflow included
    length = torch.linalg.vector_norm(torch.where(none, 1.0, gap), dim=-1, keepdim=True)
    return torch.where(none, 0.0, length)


def squared_distance(x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]) -> Float[Tensor, "N K"]:
    """All squared euclidean distances, with O(N K) memory, for rules that need every pair.

    Differentiable. Centered like :func:`nearest_code`; negative rounding errors are clamped to 0.

    Example:
        >>> squared_distance(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
        tensor([[25.]])
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(at_least_float32(x).dtype, codes.dtype)
        center = central_code(codes.detach()).to(dtype)
        x, codes = x.to(dtype) - center, codes.to(dtype) - center
        return ((x * x).sum(1, keepdim=True) + (codes * codes).sum(1) - 2 * x @ codes.T).clamp_min(0)


def check_indices(indices: Int[Tensor, "*tokens Q"], codebook_sizes: Sequence[int], hint: str) -> None:
    """Check that all indices are -1 or below the codebook size of their channel.

    Raises:
        ValueError: If one is out of range; ``hint`` is the advice in the message.

    Example:
        >>> check_indices(torch.tensor([[3, -1]]), (4, 2), "check the tokenizer")
    """
    largest = torch.tensor([size - 1 for size in codebook_sizes], device=indices.device)
    wrong = (indices < 0) & (indices != -1) | (indices > largest)
    if bool(wrong.any()):
        found = int(indices[wrong][0])
        raise ValueError(f"expected indices below {tuple(codebook_sizes)} and -1 for masked ones, got {found}; {hint}")


def rows_or_zeros(indices: Int[Tensor, "*batch 1"], table: Float[Tensor, "K D"]) -> Float[Tensor, "*batch D"]:
    """Rows of a table; zeros for -1.

    Example:
        >>> rows_or_zeros(torch.tensor([[1], [-1]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[3., 4.],
                [0., 0.]])
    """
    rows = F.embedding(indices.squeeze(-1).clamp_min(0), table)
    return torch.where(indices < 0, 0, rows)


def straight_through(x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """The value of ``q``, bitwise in the type of ``x``, with the gradient of ``x``: ``dz/dx = Id``, ``dz/dq = 0``.

    Surrogates use it: operations on ``x`` before it change the gradient but not the value.

    Args:
        x: Receives the gradient.
        q: The value, of the same shape.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> z = straight_through(3 * x, torch.tensor([1.0, 2.0]))
        >>> z.sum().backward()
        >>> z.detach(), x.grad
        (tensor([1., 2.]), tensor([3., 3.]))
    """
    return _StraightThrough.apply(x, q)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, q: Tensor) -> Tensor:
        return q.detach().to(x.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def rotate_to(x: Float[Tensor, "N D"], q: Float[Tensor, "N D"], g: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Apply to the gradient ``g`` the transpose of the scaled rotation that maps ``x`` to ``q``.

    With unit vectors ``a = x/|x|``, ``b = q/|q|``, ``w = (a+b)/|a+b|`` and ``s = |q|/|x|`` the map is
    ``G = s (Id - 2 w w^T + 2 b a^T)`` with ``G x = q`` and ``G G^T = s^2 Id``; this returns ``G^T g``. For antiparallel
    rows ``w = 0``, a reflection that maps ``x`` to ``q``; for ``|x|`` or ``|q|`` below 1e-6, ``G = Id``.

    Args:
        x: Start vectors (N, D).
        q: Target vectors (N, D).
        g: Vectors to map (N, D).

    Returns:
        Mapped vectors (N, D).

    Example:
        >>> x, q = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> rotate_to(x, q, torch.tensor([[0.0, 1.0]])).round(decimals=5)
        tensor([[2., 0.]])

    References:
        Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", ICLR 2025, arXiv 2410.06424.
    """
    norm_x, norm_q = x.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
    usable = (norm_x > 1e-6) & (norm_q > 1e-6)
    a = x / norm_x.clamp_min(1e-6)
    b = q / norm_q.clamp_min(1e-6)
    w = a + b
    norm_w = w.norm(dim=-1, keepdim=True)
    w = torch.where(norm_w > 1e-6, w / norm_w.clamp_min(1e-6), torch.zeros_like(w))
    mapped = g - 2 * w * (w * g).sum(-1, keepdim=True) + 2 * a * (b * g).sum(-1, keepdim=True)
    return torch.where(usable, norm_q / norm_x.clamp_min(1e-6) * mapped, g)


def code_counts(
    indices: Int[Tensor, " N"], codebook_size: int, weight: Float[Tensor, " N"] | None = None
) -> Float[Tensor, " K"]:
    """Number of times each code is chosen, float32, optionally weighted (weight 0 drops a row).

    Example:
        >>> code_counts(torch.tensor([0, 2, 2]), 4)
        tensor([1., 0., 2., 0.])
    """
    weight = torch.ones_like(indices, dtype=torch.float32) if weight is None else weight.float()
    counts = torch.zeros(codebook_size, dtype=torch.float32, device=indices.device)
    return counts.index_add_(0, indices, weight)


def code_sums(x: Float[Tensor, "N D"], indices: Int[Tensor, " N"], codebook_size: int) -> Float[Tensor, "K D"]:
    """Sum of the vectors assigned to each code, in float32 or wider, with O(N D + K D) time and memory.

    Deterministic on a CPU and on a GPU with Triton; on a GPU without Triton with
    ``torch.use_deterministic_algorithms``.

    Example:
        >>> code_sums(torch.ones(3, 1), torch.tensor([0, 1, 1]), 2)
        tensor([[1.],
                [2.]])
    """
    return torch.ops.gritvq.code_sums(at_least_float32(x), indices, codebook_size)


@torch.library.custom_op("gritvq::code_sums", mutates_args=())
def _code_sums(x: Tensor, indices: Tensor, codebook_size: int) -> Tensor:
    return kernels.code_sums(x, indices, codebook_size)


@_code_sums.register_fake
def _(x: Tensor, indices: Tensor, codebook_size: int) -> Tensor:
    return x.new_empty(codebook_size, x.shape[1])


def _keep_indices(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _code_sums_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return gradient[ctx.saved_tensors[0]], None, None


_code_sums.register_autograd(_code_sums_backward, setup_context=_keep_indices)


def cluster_means(
    x: Float[Tensor, "N D"], indices: Int[Tensor, " N"], codes: Float[Tensor, "K D"]
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """Means of the vectors assigned to each code, or the code itself if there are none; and the counts.

    Example:
        >>> x, codes = torch.tensor([[0.0], [1.0], [8.0]]), torch.tensor([[0.0], [99.0]])
        >>> cluster_means(x, torch.tensor([0, 0, 0]), codes)
        (tensor([[ 3.],
                [99.]]), tensor([3., 0.]))
    """
    counts = code_counts(indices, len(codes)).to(x.dtype)
    means = code_sums(x, indices, len(codes)) / counts[:, None].clamp_min(1)
    return torch.where(counts[:, None] > 0, means, codes), counts


def perplexity(counts: Float[Tensor, "*levels K"]) -> Float[Tensor, "*levels"]:
    """``exp`` of the entropy (nats) of the code histogram: between 1 and K, and 0 for empty histograms.

    Example:
        >>> perplexity(torch.tensor([5, 5, 0]))
        tensor(2.)
    """
    counts = counts.double()
    total = counts.sum(-1, keepdim=True)
    p = counts / torch.where(total > 0, total, 1.0)
    entropy = -torch.xlogy(p, p).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0).float()


def effective_rank(codes: Float[Tensor, "K D"]) -> float:
    """``exp`` of the entropy of the normalized singular values of the centered codes: between 1 and min(K, D).

    Zero for a single code or identical codes.

    Example:
        >>> round(effective_rank(torch.eye(3)), 3)
        2.0

    References:
        Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals((codes - codes.mean(0)).double())
    total = float(values.sum())
    if total <= 1e-12:
        return 0.0
    p = values[values > 1e-12 * values[0]] / total
    return math.exp(float(-(p * p.log()).sum()))


def bits_per_token(codebook_sizes: tuple[int, ...]) -> float:
    """Bits of one token position: ``sum_q log2 K_q``.

    Example:
        >>> bits_per_token((1024, 4))
        12.0
    """
    return float(sum(math.log2(size) for size in codebook_sizes))


def bits_per_sample(codebook_sizes: Sequence[int], tokens_per_channel: Sequence[int]) -> float:
    """Bits of one sample whose index channels have different numbers of tokens: ``sum_q n_q log2 K_q``.

    Example:
        >>> bits_per_sample((512, 512), (32**2, 64**2))
        46080.0
    """
    pairs = zip(codebook_sizes, tokens_per_channel, strict=True)
    return float(sum(tokens * math.log2(size) for size, tokens in pairs))


def sample_rows(x: Float[Tensor, "N D"], num_rows: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw ``num_rows`` rows without replacement; if N is smaller, repeat rows with a small jitter.

    The jitter's standard deviation is 1 % of the data's (1e-3 if all rows are equal).

    Args:
        x: Rows to draw from (N, D), N >= 1, finite.
        num_rows: Number of rows.
        generator: CPU generator.

    Raises:
        ValueError: If ``x`` has no rows.

    Example:
        >>> sample_rows(torch.zeros(1, 2), 3, torch.Generator().manual_seed(0)).unique(dim=0).shape
        torch.Size([3, 2])
    """
    if len(x) < 1:
        raise ValueError("expected at least one finite vector to draw codes from, got none; pass a non-empty batch")
    order = torch.randperm(len(x), generator=generator).to(x.device)
    if num_rows <= len(x):
        return x[order[:num_rows]].clone()
    rows = x[order.repeat(math.ceil(num_rows / len(x)))[:num_rows]]
    scale = 0.01 * x.std(unbiased=False)
    scale = torch.where(scale > 0, scale, torch.full_like(scale, 1e-3))
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float32).to(rows)
    noise[: len(x)] = 0
    return rows + scale * noise


def kmeans(
    x: Float[Tensor, "N D"],
    codebook_size: int,
    num_iterations: int = 10,
    generator: torch.Generator | None = None,
    metric: Metric = "euclidean",
) -> Float[Tensor, "K D"]:
    """Lloyd's k-means from sampled rows; empty clusters are filled by splitting large ones.

    The code of an empty cluster moves next to that of a cluster drawn in proportion to its size, and both move a small
    step apart.

    Args:
        x: Vectors (N, D); rows with non-finite entries are ignored.
        codebook_size: Number of codes K; if it exceeds N, rows are repeated with jitter.
        num_iterations: Number of Lloyd steps.
        generator: CPU generator.
        metric: ``"cosine"`` clusters directions and returns unit codes.

    Returns:
        Codes (K, D), float32 or float64.

    Raises:
        ValueError: If no finite row is left.

    Example:
        >>> x = torch.tensor([[0.0], [0.2], [1.0], [1.2]])
        >>> sorted(round(v, 1) for v in kmeans(x, 2, generator=torch.Generator().manual_seed(0)).flatten().tolist())
        [0.1, 1.1]
    """
    x = at_least_float32(x.detach())
    x = x[torch.isfinite(x).all(1)]
    if metric == "cosine":
        x = F.normalize(x, dim=1)
    if bool((x == x[:1]).all()):  # equal rows have no spread to split clusters by
        x = x[:1]
    codes = sample_rows(x, codebook_size, generator)
    if len(x) <= codebook_size:
        return F.normalize(codes, dim=1) if metric == "cosine" else codes
    for _ in range(num_iterations):
        indices = nearest_code(x, codes)
        codes, counts = cluster_means(x, indices, codes)
        codes = _split_crowded(codes, counts, x.std(0, unbiased=False), generator)
        if metric == "cosine":
            codes = F.normalize(codes, dim=1)
    return codes


def _split_crowded(codes: Tensor, counts: Tensor, spread: Tensor, generator: torch.Generator | None) -> Tensor:
    """Move each empty cluster next to one of at least two members, drawn in proportion to its size."""
    empty = (counts == 0).nonzero().squeeze(1)
    donors = (counts - 1).clamp_min(0).cpu()
    num_moved = min(len(empty), int((donors > 0).sum()))
    if num_moved == 0:
        return codes
    # Like torch.multinomial without replacement, whose draws depend on the processor: the largest of u^(1 / n).
    draws = torch.rand(len(donors), generator=generator, dtype=torch.float64).log() / donors
    donor = ranked(draws, num_moved).to(codes.device)
    step = 1e-2 * spread * torch.randn(num_moved, codes.shape[1], generator=generator).to(codes)
    codes = codes.clone()
    codes[empty[:num_moved]] = codes[donor] + step
    codes[donor] = codes[donor] - step
    return codes
