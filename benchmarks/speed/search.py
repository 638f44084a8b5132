"""Contenders that name the nearest code of every vector, and what bounds them."""

from __future__ import annotations

import functools
import inspect

import torch
from benchmarks.speed.cases import Call, Contender, Row, vectors_and_codes
from torch import Tensor

from gritvq.quantizers import kernels
from gritvq.quantizers.functional import nearest_code

_BLOCK = 1024  # rows and codes of a block of scores: 4 MB


def bound(x: Tensor, codes: Tensor) -> Tensor:
    """One blocked matrix product with a running argmin, written plainly: the anchor of every ratio."""
    bias = codes.square().sum(1) / 2
    found = []
    for rows in x.split(_BLOCK):
        best = torch.full((len(rows),), torch.inf, device=x.device)
        index = torch.zeros(len(rows), dtype=torch.int64, device=x.device)
        for start in range(0, len(codes), _BLOCK):
            block = slice(start, start + _BLOCK)
            value, position = torch.addmm(bias[block], rows, codes[block].T, alpha=-1).min(1)
            index = torch.where(value < best, position + start, index)
            best = torch.minimum(value, best)
        found.append(index)
    return torch.cat(found)


def blocked_product(x: Tensor, codes: Tensor) -> None:
    """The same matrix product in the same blocks; every score is thrown away."""
    scores = x.new_empty(min(_BLOCK, len(x)), min(_BLOCK, len(codes)))
    for rows in x.split(_BLOCK):
        for block in codes.split(_BLOCK):
            torch.mm(rows, block.T, out=scores[: len(rows), : len(block)])


def _bound(row: Row, device: torch.device) -> Call:
    return functools.partial(bound, *vectors_and_codes(row, device))


def _product(row: Row, device: torch.device) -> Call:
    return functools.partial(blocked_product, *vectors_and_codes(row, device))


def _ours(row: Row, device: torch.device, **settings: str) -> Call:
    return functools.partial(nearest_code, *vectors_and_codes(row, device), **settings)


def _forced(backend: str, row: Row, device: torch.device) -> Call:
    x, codes = vectors_and_codes(row, device)

    def run() -> Tensor:
        with kernels.using(backend):
            return nearest_code(x, codes)

    return run


def _cdist(row: Row, device: torch.device) -> Call:
    x, codes = vectors_and_codes(row, device)
    return lambda: torch.cdist(x, codes).argmin(1)


def _faiss(row: Row, device: torch.device) -> Call:
    import faiss

    x, codes = (part.cpu().numpy() for part in vectors_and_codes(row, device))
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(row.dim)
    index.add(codes)
    return lambda: torch.from_numpy(index.search(x, 1)[1][:, 0])


def _matrix_product(dtype: torch.dtype, precision: str, row: Row, device: torch.device) -> Call:
    x, codes = (part.to(dtype) for part in vectors_and_codes(row, device))

    def run() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        x @ codes.T
        torch.set_float32_matmul_precision(before)

    return run


def _flash_kmeans(dtype: torch.dtype, row: Row, device: torch.device) -> Call:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    x, codes = (part.to(dtype)[None] for part in vectors_and_codes(row, device))
    given = {"x_sq": x.float().square().sum(-1)}  # older versions want it
    given = {k: v for k, v in given.items() if k in inspect.signature(euclid_assign_triton).parameters}
    return lambda: euclid_assign_triton(x, codes, **given)[0].long()


def backends(device: torch.device) -> list[str]:
    """Those of our searches that are made for such a device."""
    others = ["faiss", "fused" if device.type == "cpu" else "two_stage"]
    if not kernels.two_stage.available():
        others.append("two_stage")
    return [name for name in kernels.BACKENDS if name not in others]


def contenders(device: torch.device) -> list[Contender]:
    """Everything that can be compared on such a device."""
    ours = [
        Contender("nearest_code", _ours),
        *(Contender(f"ours: {name}", functools.partial(_forced, name)) for name in backends(device)),
    ]
    plain = [
        Contender("bound", _bound),
        Contender("gemm", _product),
        Contender("torch.cdist", _cdist, memory=lambda row: 1.3 * row.scores),
    ]
    if device.type != "cuda":
        return [*ours, *plain, Contender("faiss", _faiss, package="faiss")]
    kinds = {"bf16": torch.bfloat16, "float32": torch.float32}
    lower = [Contender(f"nearest_code {kind}", functools.partial(_ours, precision=kind)) for kind in ("tf32", "bf16")]
    products = [
        Contender("matmul bf16", functools.partial(_matrix_product, torch.bfloat16, "highest"), lambda r: r.scores / 2),
        Contender("matmul TF32", functools.partial(_matrix_product, torch.float32, "high"), lambda r: r.scores),
        Contender("matmul float32", functools.partial(_matrix_product, torch.float32, "highest"), lambda r: r.scores),
    ]
    flash = [
        Contender(
            f"flash-kmeans {kind}",
            functools.partial(_flash_kmeans, dtype),
            package="flash_kmeans",
            install="flash-kmeans",
        )
        for kind, dtype in kinds.items()
    ]
    return [*ours, *lower, *plain, *products, *flash]
