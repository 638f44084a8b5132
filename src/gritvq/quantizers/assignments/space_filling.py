"""Space-filling vector quantization: codes as the corners of a curve, vectors on the curve."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.quantizers.base import Assignment
from gritvq.quantizers.functional import at_least_float32, gap_length, nearest_code

__all__ = ["SpaceFillingAssignment"]

# Entries of the largest block of vectors times segments; some five arrays of that size exist at a time.
_CPU_BLOCK_ENTRIES = 1 << 19
_BLOCK_ENTRIES = 1 << 22


class SpaceFillingAssignment(Assignment):
    r"""SF-DiVeQ: the codes in their order are the corners of a polyline, and a vector goes to a point on it.

    Training draws ``l ~ U(0, 1)`` for every segment, once per pass, and takes the nearest of the K - 1 points
    ``(1 - l_i) c_i + l_i c_{i+1}``; the value is ``x + d_i sg[(1-l) v_i] + d_{i+1} sg[l v_{i+1}]`` with the distances
    ``d`` and unit directions ``v`` from x to both corners. So its value is that point, and vector and corners get
    gradients through the distances. Eval projects onto the polyline: the nearest point of all segments.

    **exact='never': do not store these indices.** Values are not among the K codes; ``decode`` gives the segment's
    first corner, the position along the segment is lost. The index is that of the first corner, so the last code is
    never an index. In eval a vector whose nearest point is a corner gets that corner's index, even though the previous
    segment is equally near, so that rounding does not decide.

    Costs O(N K D) time; the search works in blocks of at most 4 million entries and keeps none.

    Raises:
        ValueError: In forward, if there are fewer than two codes.

    Example:
        >>> codes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0]])
        >>> indices, q = SpaceFillingAssignment().eval()(torch.tensor([[0.5, 1.0], [3.0, 1.5]]), codes)
        >>> indices.tolist(), q.tolist()
        ([0, 1], [[0.5, 0.0], [2.0, 1.5]])

    References:
        Vali et al., "DiVeQ: Differentiable Vector Quantization Using the Reparameterization Trick", ICLR 2026, arXiv
        2509.26469 (the space-filling variant). Deviations: the authors train 1,000 steps without quantizing and then
        start the codes at block means of recent latents; here the start is the codebook's own, or k-means by
        ``initialize_codebook``, whose codes come in no particular order. The gradient in eval, the training formula at
        the projected position, and the choice of index are ours.
    """

    differentiable = True
    draws_indices = True
    exact = "never"

    def forward(
        self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Indices of first corners (N,), in ``[0, K - 2]``, and points on the polyline (N, D)."""
        if len(codes) < 2:
            raise ValueError(
                f"expected at least 2 codes, the ends of a segment, got {len(codes)}; use a larger codebook"
            )
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(at_least_float32(x).dtype, at_least_float32(codes).dtype)
            x, codes = x.to(dtype), codes.to(dtype)
            if self.training:
                along = torch.rand(len(codes) - 1, 1, dtype=dtype, device=codes.device)
                segments = nearest_code(x, torch.lerp(codes[:-1].detach(), codes[1:].detach(), along))
                position = along[segments]
            else:
                segments = _nearest_segment(x.detach(), codes.detach())
                position = None
            first, second = F.embedding(segments, codes), F.embedding(segments + 1, codes)
            if position is None:
                position = _projected(x.detach(), first.detach(), second.detach())
            return segments, _on_segment(x, first, second, position)


def _on_segment(x: Tensor, first: Tensor, second: Tensor, position: Tensor) -> Tensor:
    """The point at ``position`` with the gradients of ``x + d_i sg[(1-l) v_i] + d_{i+1} sg[l v_{i+1}]``."""
    point = torch.lerp(first.detach(), second.detach(), position)
    moved = x
    for corner, share in ((first, 1 - position), (second, position)):
        gap = corner - x
        distance = gap_length(gap)
        direction = torch.where(distance > 0, gap / distance, 0.0).detach()
        moved = moved + distance * (share * direction)
    return point + (moved - moved.detach())  # the second term is 0, exactly


def _projected(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Where on its segment every vector's nearest point lies, in [0, 1]; 0 on segments without length."""
    edge = second - first
    squared = edge.square().sum(1, keepdim=True)
    along = ((x - first) * edge).sum(1, keepdim=True)
    return torch.where(squared > 0, along / squared, 0.0).clamp(0, 1)


def _nearest_segment(x: Tensor, codes: Tensor) -> Tensor:
    if torch.compiler.is_exporting():  # an exported program carries plain operators only
        return _search(x, codes)
    return torch.ops.gritvq.nearest_segment(x, codes)


def _search(x: Tensor, codes: Tensor) -> Tensor:
    """First corner of the segment that comes nearest to every vector; ties go to the lowest index.

    A corner belongs to two segments, equally near but for rounding; it counts for the one that starts there.
    """
    center = codes.mean(0)
    x, first, edge = x - center, codes[:-1] - center, codes[1:] - codes[:-1]
    squared = edge.square().sum(1)
    along = torch.addmm(-(first * edge).sum(1), x, edge.T)  # <x - c_i, e_i>
    reached = torch.where(squared > 0, along / squared, 0.0).clamp(0, 1)
    # |x - c_i - t e_i|^2 / 2 without the part that all segments share
    half = torch.addmm(0.5 * first.square().sum(1), x, first.T, alpha=-1)
    nearest = (half - reached * (along - 0.5 * reached * squared)).argmin(1, keepdim=True)
    at_end = reached.gather(1, nearest) == 1
    return (nearest + at_end).clamp_max(len(edge) - 1).squeeze(1)


@torch.library.custom_op("gritvq::nearest_segment", mutates_args=())
def _nearest_segment_op(x: Tensor, codes: Tensor) -> Tensor:
    if len(x) == 0:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    entries = _CPU_BLOCK_ENTRIES if x.device.type == "cpu" else _BLOCK_ENTRIES
    with torch.autocast(x.device.type, enabled=False):
        return torch.cat([_search(rows, codes) for rows in x.split(max(1, entries // len(codes)))])


@_nearest_segment_op.register_fake
def _(x: Tensor, codes: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)
