"""Performance targets; only their limits are typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Measured = dict[tuple[int, int, int], dict[str, dict[str, Any]]]  # row, method, numbers
Suites = Mapping[str, Measured]

LARGE = 16384  # codes from which on the ratios count
FLOAT32_SEARCH, TWO_STAGE_SEARCH = "ours: blocked", "ours: two_stage"
PEERS = ("VQP EMA", "VQP SimVQ", "VQP SimVQ flat")
OUR_STEPS = ("grit_vq", "affine + radial", "simvq", "vq_vae", "vq_vae_ema")


@dataclass(frozen=True)
class Worst:
    """The largest value and where."""

    value: float
    where: str = ""


@dataclass(frozen=True)
class Target:
    """A limit on the worst value that ``measure`` finds; None if nothing was measured."""

    text: str
    limit: float
    measure: Callable[[Suites], Worst | None]
    unit: str = ""

    @property
    def limit_text(self) -> str:
        """With its unit."""
        return f"<= {self.limit:.4g} {self.unit}".strip()


def worst(values: Iterator[tuple[float, Any]]) -> Worst | None:
    """The largest."""
    value, where = max(values, default=(None, None), key=lambda each: each[0])
    return None if value is None else Worst(value, f"({where})" if where else "")


def name_of(row: Sequence[int]) -> str:
    """A row in words."""
    return " x ".join(str(number) for number in row)


def times(suite: str, method: str, base: str, smallest: int = LARGE) -> Callable[[Suites], Worst | None]:
    """Time over that of a base, over rows with at least so many codes where both ran."""

    def measure(suites: Suites) -> Worst | None:
        return worst(
            (methods[method]["seconds"] / methods[base]["seconds"], name_of(row))
            for row, methods in suites.get(suite, {}).items()
            if row[2] >= smallest and all("seconds" in methods.get(name, {}) for name in (method, base))
        )

    return measure


def allowance(row: Sequence[int]) -> float:
    """Bytes a step may take beside inputs and parameters: 80 MB + 6 (N D + K D) floats."""
    return 80e6 + 6 * 4 * row[1] * (row[0] + row[2])


def step_memory(suites: Suites) -> Worst | None:
    """Peak over the allowance, all of our steps and the growth rows."""
    return worst(
        (methods[method]["peak_bytes"] / allowance(row), f"{method}, {name_of(row)}")
        for suite, names in (("step", OUR_STEPS), ("growth", ("nearest_code", "affine + radial")))
        for row, methods in suites.get(suite, {}).items()
        for method in names
        if "peak_bytes" in methods.get(method, {})
    )


def residual_memory(suites: Suites) -> Worst | None:
    """Peak of eight levels over: one level's + L N D floats + L codebooks."""
    return worst(
        (
            methods["8 levels"]["peak_bytes"] / (methods["1 level"]["peak_bytes"] + 8 * 4 * row[1] * (row[0] + row[2])),
            name_of(row),
        )
        for row, methods in suites.get("residual", {}).items()
        if all("peak_bytes" in methods.get(name, {}) for name in ("1 level", "8 levels"))
    )


def growth(method: str, upwards: bool = False) -> Callable[[Suites], Worst | None]:
    """Largest over smallest time per N D K, over the rows that differ in K alone; ``upwards``: last over first."""

    def measure(suites: Suites) -> Worst | None:
        groups: dict[tuple[int, int], list[float]] = {}
        for row, methods in sorted(suites.get("growth", {}).items()):
            if "seconds" in methods.get(method, {}):
                each = methods[method]["seconds"] / (row[0] * row[1] * row[2])
                groups.setdefault((row[0], row[1]), []).append(each)
        largest = max(groups.values(), default=[], key=len)
        if len(largest) < 2:
            return None
        return Worst(largest[-1] / largest[0] if upwards else max(largest) / min(largest))

    return measure


def whole_steps(peer: str, ours: Sequence[str]) -> Callable[[Suites], Worst | None]:
    """Time of a whole step of a tokenizer over that with a peer's quantizer, in the small autoencoder."""

    def measure(suites: Suites) -> Worst | None:
        return worst(
            (methods[name + threads]["seconds"] / methods[peer + threads]["seconds"], name + threads)
            for row, methods in suites.get("tokenizer", {}).items()
            for name in ours
            for threads in ("", ", one thread")
            if row[2] >= LARGE and all("seconds" in methods.get(each + threads, {}) for each in (name, peer))
        )

    return measure


def import_seconds(suites: Suites) -> Worst | None:
    """What one import adds to the other."""
    for methods in suites.get("imports", {}).values():
        return Worst(methods["import torch, gritvq"]["seconds"] - methods["import torch"]["seconds"])
    return None


def quantizer_share(suites: Suites) -> Worst | None:
    """Of a step of training."""
    return worst(
        (100 * run["quantizer_share"], method)
        for row, methods in suites.get("fit", {}).items()
        for method, run in methods.items()
        if row[2] >= LARGE
    )


def worse_choices(suites: Suites) -> Worst | None:
    """Vectors of our searches that did not get the nearest code."""
    return worst(
        (run["worse_choices"], f"{method}, {name_of(row)}")
        for row, methods in suites.get("search", {}).items()
        for method, run in methods.items()
        if (method == "nearest_code" or method.startswith("ours")) and "worse_choices" in run
    )


def over_product(method: str, product: str) -> Callable[[Suites], Worst | None]:
    """Time of a search over that of the plain product at N = K = 65536."""

    def measure(suites: Suites) -> Worst | None:
        square = {row: m for row, m in suites.get("search", {}).items() if row[0] == row[2] == 65536}
        return times("search", method, product)({"search": square})

    return measure


def peak_of_million(suites: Suites) -> Worst | None:
    """Peak of a step with a million codes, in 10^9 bytes, inputs and parameters not counted."""
    return worst(
        (methods[method]["peak_bytes"] / 1e9, method)
        for row, methods in suites.get("step", {}).items()
        for method in OUR_STEPS
        if row[2] >= 1 << 20 and "peak_bytes" in methods.get(method, {})
    )


COMMON_TARGETS = (
    Target("whole step of a tokenizer / with VQP EMA", 1 / 8, whole_steps("VQP EMA", ("grit_vq", "vq_vae_ema"))),
    Target("whole step of a tokenizer / with VQP SimVQ", 1 / 4, whole_steps("VQP SimVQ", ("grit_vq", "simvq"))),
    Target("the same, its tokens flattened", 1 / 4, whole_steps("VQP SimVQ flat", ("grit_vq", "simvq"))),
    Target("vectors whose code another method's choice beats", 0, worse_choices),
    Target("peak memory of a step / (80 MB + 6 (N D + K D) floats)", 1.0, step_memory),
    Target("8 residual levels / one, time", 8.5, times("residual", "8 levels", "1 level", 0)),
    Target("8 residual levels / (one + 8 N D floats + 8 codebooks), memory", 1.0, residual_memory),
    Target("blocked search: largest / smallest time per N D K, K from 1k to 1M", 1.25, growth("ours: blocked")),
    Target("chosen search: time per N D K at K = 1M / at 1k", 1.25, growth("nearest_code", upwards=True)),
    Target("what `import gritvq` adds to `import torch`", 0.3, import_seconds, "s"),
    Target("share of the quantizer in a step of `gritvq fit`, K = 16384", 20, quantizer_share, "%"),
)

CPU_TARGETS = (
    Target("float32 search / blocked product, K >= 16384", 1.2, times("search", FLOAT32_SEARCH, "gemm")),
    Target("float32 search / faiss, K >= 16384", 1.2, times("search", FLOAT32_SEARCH, "faiss")),
    Target("two-stage search / faiss, K >= 16384", 0.6, times("search", TWO_STAGE_SEARCH, "faiss")),
    Target("chosen search / faiss, K >= 16384", 1.2, times("search", "nearest_code", "faiss")),
    Target("step of `affine + radial` / bound, K >= 16384", 1.5, times("step", "affine + radial", "bound")),
    Target("step of `grit_vq` / (bound + transform), K >= 16384", 1.3, times("step", "grit_vq", "bound + transform")),
    Target("step of `affine + radial` / VQP EMA, K >= 16384", 0.5, times("step", "affine + radial", "VQP EMA")),
    Target("step of `grit_vq` / VQP EMA, K >= 16384", 0.5, times("step", "grit_vq", "VQP EMA")),
    Target("step of `affine + radial` / VQP SimVQ, K >= 16384", 1.0, times("step", "affine + radial", "VQP SimVQ")),
    *COMMON_TARGETS,
)

GPU_TARGETS = (
    Target("TF32 search / flash-kmeans", 1.0, times("search", "nearest_code tf32", "flash-kmeans float32", 0)),
    Target("bf16 search / flash-kmeans", 1.0, times("search", "nearest_code bf16", "flash-kmeans bf16", 0)),
    Target("TF32 search / plain product, N = K = 65536", 1 / 0.6, over_product("nearest_code tf32", "matmul TF32")),
    Target("bf16 search / plain product, N = K = 65536", 1 / 0.6, over_product("nearest_code bf16", "matmul bf16")),
    Target("search / torch.cdist and argmin", 1 / 3, times("search", "nearest_code", "torch.cdist", 0)),
    Target("step of `vq_vae_ema` / VQP EMA", 1 / 5, times("step", "vq_vae_ema", "VQP EMA", 0)),
    Target("peak memory of a step with K = 1,048,576", 4, peak_of_million, "GB"),
    *COMMON_TARGETS,
)
