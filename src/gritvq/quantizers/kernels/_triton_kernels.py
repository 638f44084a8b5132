"""Triton kernels of :mod:`gritvq.quantizers.kernels.fused`, which imports this module only if Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["finish", "search", "segment_sums", "tuned_search"]


@triton.jit
def _loaded(x, live, center, d, D: tl.constexpr):
    """Centered rows in float32, zero beyond their ends."""
    inside = d < D
    rows = tl.load(x + d[None, :], mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
    return rows - tl.load(center + d, mask=inside, other=0.0)[None, :]


@triton.jit
def _product(a, b, total, EMULATED: tl.constexpr):
    """``total + a b`` of bfloat16 tiles; float32 for Triton's interpreter, which would multiply bit patterns."""
    if EMULATED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def _products(rows, codes, piece_stride, total, PIECES: tl.constexpr, EMULATED: tl.constexpr):
    """``total + rows codes^T``; PIECES is 0 for TF32, 1 for bfloat16, 3 for all 24 bits of float32."""
    codes_high = tl.load(codes)
    if PIECES == 0:
        total = tl.dot(rows, codes_high, total, input_precision="tf32")
    else:
        high = rows.to(tl.bfloat16)
        if PIECES == 3:
            codes_middle = tl.load(codes + piece_stride)
            codes_low = tl.load(codes + 2 * piece_stride)
            rest = rows - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
            total = _product(low, codes_high, total, EMULATED)
            total = _product(high, codes_low, total, EMULATED)
            total = _product(middle, codes_middle, total, EMULATED)
            total = _product(middle, codes_high, total, EMULATED)
            total = _product(high, codes_middle, total, EMULATED)
        total = _product(high, codes_high, total, EMULATED)
    return total


@triton.jit
def _improved(products, bias, start, columns, best, block):
    """Running best of every column, and the start of the block it came from; ties go to the earlier block."""
    score = tl.load(bias + start + columns)[None, :] - products
    better = score < best  # never true of NaN
    return tl.where(better, score, best), tl.where(better, start, block)


@triton.jit(do_not_specialize=["n_bucket", "k_bucket"])
def search(
    x,
    codes,
    bias,
    center,
    indices,
    keys,
    N,
    K,
    x_stride,
    piece_stride,
    split_codes,
    n_bucket,
    k_bucket,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
    EMULATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N rows against ``split_codes`` codes: indices, or one key per row and split.

    Codes and bias are padded to whole blocks (K includes the padding), the bias with infinity, so loads need no mask
    and padding is never chosen.
    """
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_N
    rows = tl.arange(0, BLOCK_N)
    live = first_row + rows < N
    x += first_row * x_stride + rows[:, None].to(tl.int64) * x_stride
    columns = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    first = tl.program_id(1) * split_codes
    last = tl.minimum(first + split_codes, K)
    BLOCKS_D: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tile = columns[None, :] * (BLOCKS_D * BLOCK_D) + d[:, None]
    best = tl.full([BLOCK_N, BLOCK_K], float("inf"), tl.float32)
    block = tl.zeros([BLOCK_N, BLOCK_K], tl.int32)
    finite = tl.full([BLOCK_N], 1, tl.int32)
    if BLOCKS_D == 1:  # keep the rows and loop over the codes
        own = _loaded(x, live, center, d, D)
        finite = tl.min((tl.abs(own) < float("inf")).to(tl.int32), 1)
        for start in range(first, last, BLOCK_K):
            here = codes + tl.cast(start, tl.int64) * BLOCK_D + tile
            products = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            products = _products(own, here, piece_stride, products, PIECES, EMULATED)
            best, block = _improved(products, bias, start, columns, best, block)
    else:  # one loop over blocks of codes and of components, so that all loads overlap
        products = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for step in range(0, tl.cdiv(last - first, BLOCK_K) * BLOCKS_D):
            start = first + step // BLOCKS_D * BLOCK_K
            here_d = step % BLOCKS_D * BLOCK_D + d
            own = _loaded(x, live, center, here_d, D)
            finite = tl.minimum(finite, tl.min((tl.abs(own) < float("inf")).to(tl.int32), 1))
            here = codes + tl.cast(start, tl.int64) * (BLOCKS_D * BLOCK_D) + step % BLOCKS_D * BLOCK_D + tile
            products = _products(own, here, piece_stride, products, PIECES, EMULATED)
            if step % BLOCKS_D == BLOCKS_D - 1:
                best, block = _improved(products, bias, start, columns, best, block)
                products = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    least = tl.min(best, 1)
    index = tl.min(tl.where(best == least[:, None], block + columns[None, :], 2147483647), 1)
    index = tl.where(finite == 1, index, 0)
    if SPLIT:
        bits = least.to(tl.int32, bitcast=True)  # never those of -0, since no bias is -0
        bits = bits ^ ((bits >> 31) & 2147483647)  # integers in the order of the floats
        key = (bits.to(tl.int64) << 32) | index.to(tl.int64)
        tl.store(keys + tl.program_id(1).to(tl.int64) * N + first_row + rows, key, mask=live)
    else:
        tl.store(indices + first_row + rows, index.to(tl.int64), mask=live)


@triton.jit
def finish(keys, indices, N, num_splits, BLOCK_N: tl.constexpr):
    """Smallest key of each row over the splits: the smallest score, and the lowest index among ties."""
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_N
    rows = tl.arange(0, BLOCK_N)
    live = first_row + rows < N
    keys += first_row + rows
    key = tl.load(keys, mask=live, other=0)
    for split in range(1, num_splits):
        key = tl.minimum(key, tl.load(keys + tl.cast(split, tl.int64) * N, mask=live, other=0))
    index = key.to(tl.int32)  # the lower half
    tl.store(indices + first_row + rows, index.to(tl.int64), mask=live)


@triton.jit
def segment_sums(x, order, bounds, sums, x_stride, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Sum of the rows ``order[bounds[k] : bounds[k + 1]]``, in that order, for one code and one block of components."""
    code = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    last = tl.load(bounds + code + 1)
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    for start in range(tl.load(bounds + code), last, BLOCK_ROWS):
        place = start + tl.arange(0, BLOCK_ROWS)
        row = tl.load(order + place, mask=place < last, other=0)
        inside = (place < last)[:, None] & (d < D)[None, :]
        total += tl.load(x + row[:, None] * x_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(sums + code * D + d, tl.sum(total, 0), mask=d < D)


# No configuration changes how a score is summed, so tuning changes no index; deterministic runs are not tuned. Those
# that do not fit a GPU are skipped.
tuned_search = triton.autotune(
    [
        triton.Config({"BLOCK_N": 64, "BLOCK_K": 32}, num_warps=4, num_stages=2),
        triton.Config({"BLOCK_N": 128, "BLOCK_K": 32}, num_warps=8, num_stages=3),
        triton.Config({"BLOCK_N": 64, "BLOCK_K": 64}, num_warps=4, num_stages=2),
        triton.Config({"BLOCK_N": 64, "BLOCK_K": 64}, num_warps=4, num_stages=3),
        triton.Config({"BLOCK_N": 64, "BLOCK_K": 128}, num_warps=8, num_stages=2),
        triton.Config({"BLOCK_N": 128, "BLOCK_K": 64}, num_warps=8, num_stages=2),
        triton.Config({"BLOCK_N": 128, "BLOCK_K": 64}, num_warps=8, num_stages=3),
        triton.Config({"BLOCK_N": 128, "BLOCK_K": 128}, num_warps=8, num_stages=2),
        triton.Config({"BLOCK_N": 128, "BLOCK_K": 128}, num_warps=8, num_stages=3),
    ],
    key=["n_bucket", "k_bucket", "D", "PIECES", "SPLIT"],
)(search)
