"""Search in one Triton kernel on NVIDIA GPUs: scores are never written to memory.

A program keeps a block of rows and loops over blocks of codes. From each block of products, every column keeps its best
score and the block it came from: four cheap operations per score and no exchange between threads. The columns are
compared once at the end. All comparisons are strict and earlier codes come first, so ties go to the lowest index. If
the rows alone cannot fill the GPU, the codes are split over programs, too; each writes one 64-bit key per row, the
score in the upper half and the index in the lower, and the smallest key of a row is the result.

Precision. A float32 number is the sum of three bfloat16 numbers, exactly: 24 bits are three times 8. With ``x = h + m +
l`` for the centered vector and the same for the code, ``"float32"`` adds the six products ``hh, hm, mh, mm, hl, lh``.
Products of bfloat16 are exact in float32, and the omitted ``ml + lm + ll`` is below ``2^-25 |x_d c_d|``, half of the
rounding error of one float32 product. So a score has the error of a float32 dot product, up to the order of its sum.
Three TF32 products would take the same time with an error of ``2^-22``. ``"tf32"`` uses one TF32 product (10 bits),
``"bf16"`` one bfloat16 product (8 bits), both of centered numbers summed in float32.

Float64 input goes to :mod:`gritvq.quantizers.kernels.blocked`; other float types are read directly. :func:`code_sums`
sorts vectors by code, and one program per code adds its rows in order, without atomic operations.

References:
    Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
    Computations", ARITH 2019, arXiv 1904.06376 (float32 as three bfloat16). Column-wise bests and keys are our choice.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from types import ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.lazy import optional
from gritvq.quantizers.kernels import blocked

__all__ = ["code_sums", "search", "supported"]

_PIECES = {"float32": 3, "tf32": 0, "bf16": 1}  # as the kernel counts them
_SPLIT_CODES = 128  # splits end at multiples of the largest block of codes


@functools.cache
def supported() -> bool:
    """Whether this machine can run the kernels: an NVIDIA GPU of compute capability 8.0, and Triton."""
    return (
        torch.cuda.is_available()
        and torch.version.hip is None
        and torch.cuda.get_device_capability() >= (8, 0)
        and importlib.util.find_spec("triton") is not None
    )


@functools.cache
def _kernels() -> ModuleType:
    optional("triton", "gpu")
    from gritvq.quantizers.kernels import _triton_kernels

    return _triton_kernels


def search(
    x: Float[Tensor, "N D"],
    codes: Float[Tensor, "K D"],
    bias: Float[Tensor, " K"],
    center: Float[Tensor, " D"],
    precision: str = "float32",
) -> Int[Tensor, " N"]:
    """``argmin_k bias_k - <x_n - center, codes_k>``; ties to the lowest index, 0 for non-finite rows."""
    if codes.dtype == torch.float64:
        return blocked.search(x, codes, bias, center)
    kernels = _kernels()
    (num, dim), size = x.shape, len(codes)
    emulated = not x.is_cuda  # by Triton's interpreter
    indices = torch.empty(num, dtype=torch.int64, device=x.device)
    if num == 0:
        return indices
    x = _rows(x)
    pieces = _PIECES[precision]
    resident = 256 if pieces == 1 else 128  # components of a row that a program can keep
    block_d = 64 if dim > resident else max(16, 1 << (dim - 1).bit_length())
    padded = -(-size // _SPLIT_CODES) * _SPLIT_CODES
    parts = _parts(codes, pieces, padded, -(-dim // block_d) * block_d)
    # As many splits of whole blocks as fill the GPU.
    wanted = max(1, _programs(x.device) // -(-num // 128))
    split_codes = -(-padded // (wanted * _SPLIT_CODES)) * _SPLIT_CODES
    splits = -(-padded // split_codes)
    keys = torch.empty(splits, num, dtype=torch.int64, device=x.device) if splits > 1 else indices
    # Autotuning may choose differently in every run, so deterministic runs do without.
    fixed = emulated or torch.are_deterministic_algorithms_enabled()
    options = _fixed_options(block_d) if fixed else {}
    with torch.cuda.device_of(x):
        launch = kernels.search if fixed else kernels.tuned_search
        launch[lambda meta: (-(-num // meta["BLOCK_N"]), splits)](
            x=x,
            codes=parts,
            bias=F.pad(bias, (0, padded - size), value=math.inf),
            center=center,
            indices=indices,
            keys=keys,
            N=num,
            K=padded,
            x_stride=x.stride(0),
            piece_stride=parts.stride(0),
            split_codes=split_codes,
            n_bucket=num.bit_length() // 3,
            k_bucket=size.bit_length() // 3,
            D=dim,
            BLOCK_D=block_d,
            PIECES=pieces,
            SPLIT=splits > 1,
            EMULATED=emulated,
            **options,
        )
        if splits > 1:
            kernels.finish[(-(-num // 32),)](keys=keys, indices=indices, N=num, num_splits=splits, BLOCK_N=32)
    return indices


def _fixed_options(block_d: int) -> dict[str, int]:
    """A configuration that fits every GPU."""
    return dict(BLOCK_N=64, BLOCK_K=64 if block_d <= 64 else 32, num_warps=4, num_stages=2)


def _rows(x: Tensor) -> Tensor:
    """Rows with contiguous components, which the kernels need."""
    return x if x.stride(1) == 1 else x.contiguous()


def _parts(codes: Tensor, pieces: int, size: int, dim: int) -> Tensor:
    """Codes for the kernel, padded with zeros: float32 (1, K, D), or their bfloat16 parts (pieces, K, D)."""
    dtype = torch.bfloat16 if pieces else torch.float32
    parts = torch.zeros(max(1, pieces), size, dim, dtype=dtype, device=codes.device)
    for part in parts[:, : len(codes), : codes.shape[1]]:
        part.copy_(codes)
        codes = codes - part
    return parts


@functools.cache
def _programs(device: torch.device) -> int:
    """Smallest number of programs that fills the GPU: two per multiprocessor."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def code_sums(x: Float[Tensor, "N D"], indices: Int[Tensor, " N"], codebook_size: int) -> Float[Tensor, "K D"]:
    """Sum of the vectors assigned to each code in float32, deterministic."""
    x = _rows(x)
    dim = x.shape[1]
    ordered, order = indices.int().sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(codebook_size + 1, dtype=torch.int32, device=x.device))
    sums = torch.empty(codebook_size, dim, dtype=torch.float32, device=x.device)
    block_d = min(128, max(16, 1 << (dim - 1).bit_length()))
    with torch.cuda.device_of(x):
        _kernels().segment_sums[(codebook_size, -(-dim // block_d))](
            x, order, bounds, sums, x.stride(0), D=dim, BLOCK_D=block_d, BLOCK_ROWS=32
        )
    return sums
