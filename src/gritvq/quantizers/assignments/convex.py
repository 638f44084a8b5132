"""Soft convex quantization: a vector becomes the best convex combination of codes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gritvq.component import check_integer, check_number
from gritvq.quantizers.assignments.operators import with_gradient
from gritvq.quantizers.base import Assignment
from gritvq.quantizers.functional import at_least_float32, nearest_code, transforming

__all__ = ["ConvexAssignment"]

# Entries of the largest block of rows times codes; some ten arrays of that size exist at a time. A CPU works fastest
# while they stay in its cache.
_CPU_BLOCK_ENTRIES = 1 << 17
_BLOCK_ENTRIES = 1 << 22
# Duality gap, over the size of the problem, at which a row's weights count as found; exact steps on the support follow.
_GAP = 1e-13
_EXCHANGES = 8


class ConvexAssignment(Assignment):
    r"""SCQ: the best convex combination of the codes, held near the nearest one.

    ``q = sum_k p_k c_k`` with ``p = argmin |x - sum_k p_k c_k|^2 + penalty |p - e|^2`` over the simplex ``p >= 0``,
    ``sum_k p_k = 1``, where e is 1 at the nearest code and 0 elsewhere. A large penalty gives the nearest code, a small
    one the projection onto the convex hull. The gradient to x and to the codes is exact, from the optimality conditions
    on the support of p (which code is nearest counts as fixed).

    **exact='never': do not store these indices.** The value takes K weights per vector, not log2 K bits; ``decode`` of
    the index gives another value, and errors must not be compared with those of hard codes of equal codebook size.
    The index is that of the nearest code, so usage is that of plain vector quantization.

    The problem is solved by a primal-dual interior-point method in float64, all rows of a block in parallel; a row
    is done when its duality gap closes, after 10 to 25 steps for any penalty and codebook, and is then solved exactly
    on its support. A step costs O(N K m^2), m = min(D, K), and the backward pass as much as one step: about a second in
    all for N = 4096, K = 256, D = 16 on one CPU core; too slow for K in the thousands. The N x K weights are kept for
    the backward pass.

    ``relaxed`` solves the linear system without the constraints and then projects onto the simplex:
    ``p = proj((C^T C + penalty Id)^{-1} (C^T x + penalty e))``, columns of C being codes; O(N K D), differentiated
    through both. Good for few codes in many dimensions, poor for K > D: it can be worse than the nearest code.

    Args:
        penalty: lambda > 0, in squared latent units.
        relaxed: Whether to use the cheap approximation.
        num_iterations: Maximum steps of the exact solver; a row that is not done by then keeps its current weights.

    Raises:
        ValueError: If the penalty is not positive or there are no iterations.

    Example:
        >>> codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> indices, q = ConvexAssignment(1e-4)(torch.tensor([[0.2, 0.3], [1.0, 1.0]]), codes)
        >>> indices.tolist(), q.round(decimals=3)
        ([0, 1], tensor([[0.2000, 0.3000],
                [0.5000, 0.5000]]))

    References:
        Gautam et al., "Soft Convex Quantization: Revisiting Vector Quantization with Convex Optimization", L4DC 2024,
        arXiv 2310.03004. The problem as written here, the default penalty 0.1 and the relaxation follow third-party
        code; that the paper has the same is not confirmed, and its penalty is not established. That code also trains
        with ``|x - q|^2`` without stop-gradient: ``learning=[CodebookLoss(1.0), CommitmentLoss(1.0)]`` has its
        gradient (and twice its value). Solver, gradient and choice of index are ours. Status: contrib.
    """

    differentiable = True
    exact = "never"

    def __init__(self, penalty: float = 0.1, *, relaxed: bool = False, num_iterations: int = 50) -> None:
        super().__init__()
        hint = "use 1e-6 for almost the projection on the hull"
        self.penalty, self.relaxed = check_number("penalty", penalty, inside=True, hint=hint), relaxed
        self.num_iterations = check_integer("num_iterations", num_iterations, hint="50 is enough")

    def forward(
        self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Nearest indices (N,) and convex combinations (N, D)."""
        indices = nearest_code(x, codes)
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(at_least_float32(x).dtype, at_least_float32(codes).dtype)
            x, codes = x.to(dtype), codes.to(dtype)
            if self.relaxed:
                return indices, _relaxed_values(x, codes, indices, self.penalty)
            q, _ = _solved(x, codes, indices, self.penalty, self.num_iterations)
            return indices, q

    @torch.no_grad()
    def weights(self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]) -> Float[Tensor, "N K"]:
        """The weights of the combinations, for inspection: rows on the simplex."""
        indices = nearest_code(x, codes)
        dtype = torch.promote_types(at_least_float32(x).dtype, at_least_float32(codes).dtype)
        x, codes = x.to(dtype), codes.to(dtype)
        if self.relaxed:
            return _relaxed_weights(x, codes, indices, _influence(codes, self.penalty))
        return torch.ops.gritvq.convex(x, codes, indices, self.penalty, self.num_iterations)[1]


# --- relaxed ----------------------------------------------------------------------------------------------------------


def _influence(codes: Tensor, penalty: float) -> Tensor:
    """``(C C^T + penalty Id)^{-1} C`` (D, K): what (C^T C + penalty Id)^{-1} C^T is, by a system of size D."""
    c = codes.double()
    gram = c.T @ c + penalty * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    return torch.linalg.solve(gram, c.T).to(codes.dtype)


def _relaxed_weights(x: Tensor, codes: Tensor, indices: Tensor, influence: Tensor) -> Tensor:
    onehot = (indices[:, None] == torch.arange(len(codes), device=x.device)).to(x.dtype)
    return _onto_simplex(onehot + (x - F.embedding(indices, codes)) @ influence)


def _relaxed_values(x: Tensor, codes: Tensor, indices: Tensor, penalty: float) -> Tensor:
    influence = _influence(codes, penalty)

    def block(rows: Tensor, own: Tensor) -> Tensor:
        return _relaxed_weights(rows, codes, own, influence) @ codes

    size = _BLOCK_ENTRIES // len(codes) + 1
    if torch.compiler.is_exporting() or transforming():
        return block(x, indices)
    parts = [
        checkpoint(block, rows, own, use_reentrant=False)
        for rows, own in zip(x.split(size), indices.split(size), strict=True)
    ]
    return torch.cat(parts)


def _onto_simplex(v: Tensor) -> Tensor:
    """Nearest point of the simplex, row by row; differentiable."""
    ordered = v.detach().sort(1, descending=True).values
    ranks = torch.arange(1, v.shape[1] + 1, dtype=v.dtype, device=v.device)
    size = (ordered * ranks > ordered.cumsum(1) - 1).sum(1, keepdim=True)
    inside = v.detach() >= ordered.gather(1, size.clamp_min(1) - 1)
    threshold = (torch.where(inside, v, 0.0).sum(1, keepdim=True) - 1) / inside.sum(1, keepdim=True)
    return torch.where(inside, v - threshold, 0.0).clamp_min(0)


# --- exact ------------------------------------------------------------------------------------------------------------


class _Problem:
    """Codes as all rows meet them, in float64 and about their mean, in at most K dimensions.

    Every linear system of the method is ``(C^T C + W^{-1}) dp - dy = r``, ``sum_k dp_k = 0``, for a diagonal ``W`` of
    each row's own. Eliminating dp leaves ``(Id + sum_k w_k (c_k - m)(c_k - m)^T) a = b`` for ``a = C dp``, where m is
    the weighted mean of the codes: a system of size min(D, K).
    """

    def __init__(self, codes: Tensor, penalty: float) -> None:
        self.penalty = penalty
        wide_codes = codes.double()
        self.mean = wide_codes.mean(0)
        centered = wide_codes - self.mean
        num_codes, dim = codes.shape
        self.basis = torch.linalg.qr(centered.T).Q if num_codes < dim else None
        self.codes = centered if self.basis is None else centered @ self.basis
        self.dim = self.codes.shape[1]
        self.upper = torch.triu_indices(self.dim, self.dim, device=codes.device)
        self.products = self.codes[:, self.upper[0]] * self.codes[:, self.upper[1]]
        entries = _CPU_BLOCK_ENTRIES if codes.device.type == "cpu" else _BLOCK_ENTRIES
        self.rows = max(1, entries // max(num_codes, self.dim**2))

    def enter(self, x: Tensor) -> Tensor:
        """Vectors, less the mean, in the codes' dimensions."""
        x = x.double() - self.mean
        return x if self.basis is None else x @ self.basis

    def onehot(self, indices: Tensor) -> Tensor:
        return F.one_hot(indices, len(self.codes)).double()

    def slope(self, residual: Tensor, p: Tensor, start: Tensor) -> Tensor:
        """Gradient of ``|x - C p|^2 / 2 + penalty |p - start|^2 / 2``, given the residual x - C p."""
        return torch.addmm(self.penalty * (p - start), residual, self.codes.T, alpha=-1)


class _System:
    """The factorised system for weights ``w`` (N, K), zero where a code may not move."""

    def __init__(self, problem: _Problem, w: Tensor) -> None:
        self.problem, self.w = problem, w
        self.total = w.sum(1, keepdim=True)
        self.moment = w @ problem.codes
        i, j = problem.upper
        matrix = w.new_empty(len(w), problem.dim, problem.dim)
        matrix[:, i, j] = matrix[:, j, i] = w @ problem.products
        matrix.baddbmm_(self.moment.unsqueeze(2), (self.moment / self.total).unsqueeze(1), alpha=-1)
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        self.factor = torch.linalg.cholesky_ex(matrix).L

    def reduced(self, b: Tensor) -> Tensor:
        """``(Id + sum_k w_k (c_k - m)(c_k - m)^T)^{-1} b``."""
        return torch.cholesky_solve(b.unsqueeze(2), self.factor).squeeze(2)

    def solve(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``dp`` of the problem's linear system, ``C dp``, and the multiplier ``dy``."""
        wr = self.w * r
        own = wr.sum(1, keepdim=True)
        a = self.reduced(wr @ self.problem.codes - self.moment * (own / self.total))
        dy = ((self.moment * a).sum(1, keepdim=True) - own) / self.total
        return torch.addmm(r, a, self.problem.codes.T, alpha=-1).add_(dy).mul_(self.w), a, dy


def _weights(problem: _Problem, x: Tensor, indices: Tensor, num_iterations: int) -> Tensor:
    """Optimal weights of entered rows: an interior-point method, then exactly on the support."""
    start = problem.onehot(indices)
    num_codes = len(problem.codes)
    p = torch.full_like(start, 1 / num_codes)
    slope = problem.slope(x - p @ problem.codes, p, start)
    least, most = slope.amin(1, keepdim=True), slope.amax(1, keepdim=True)
    s = slope - least + 0.1 * (most - least) + 0.01 * problem.penalty  # feasible: slope - s is one number y per row
    size = 0.5 * (x.square().sum(1) + problem.codes[indices].square().sum(1)) + problem.penalty

    found_p, found_s = p.clone(), s.clone()
    left = torch.arange(len(x), device=x.device)
    for _ in range(num_iterations):
        gap = (p * s).sum(1)  # exactly the duality gap, since p and s stay feasible
        open_rows = gap > _GAP * size
        num_open = int(open_rows.sum())
        if num_open == 0:
            break
        if num_open < 0.8 * len(left):
            found_p[left], found_s[left] = p, s
            left, p, s, gap, size = (t[open_rows] for t in (left, p, s, gap, size))
        p, s = _interior_step(problem, p, s, gap.unsqueeze(1))
    found_p[left], found_s[left] = p, s
    return _on_support(problem, x, start, found_p, found_s)


def _interior_step(problem: _Problem, p: Tensor, s: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """One predictor-corrector step (Mehrotra) toward ``p_k s_k = 0``; p and s stay positive and feasible."""
    ratio, over_p, over_s = s / p, 1 / p, 1 / s
    system = _System(problem, 1 / (problem.penalty + ratio))

    def longest(dp: Tensor, ds: Tensor, share: float) -> Tensor:
        fastest = torch.maximum((dp * over_p).amin(1, keepdim=True).neg(), (ds * over_s).amin(1, keepdim=True).neg())
        return (fastest / share).clamp_min(1).reciprocal()

    dp, _, _ = system.solve(-s)
    ds = -s - ratio * dp
    length = longest(dp, ds, 1.0)
    second_order = dp * ds
    predicted = (1 - length) * gap + length.square() * second_order.sum(1, keepdim=True)
    centering = (predicted / gap).clamp(0, 1) ** 3
    # the correction for a step that cannot be made does harm, up to endless cycles: hence its share
    share = (2 * length).clamp_max(1)
    target = (centering * gap / p.shape[1] - share * second_order) * over_p - s
    dp, _, _ = system.solve(target)
    ds = target - ratio * dp
    length = longest(dp, ds, 0.995)
    return p + length * dp, s + length * ds


def _on_support(problem: _Problem, x: Tensor, start: Tensor, p: Tensor, s: Tensor) -> Tensor:
    """Guess the support, solve on it exactly, exchange what is wrong, a few times; rows never optimal keep ``p``."""
    scale = problem.codes.square().sum(1).mean() + problem.penalty
    inside = (p * scale > s) | (p == p.amax(1, keepdim=True))
    p = torch.where(inside, p, 0.0)
    p = p / p.sum(1, keepdim=True)
    found, left = p.clone(), torch.arange(len(x), device=x.device)
    for _ in range(_EXCHANGES):
        slope = problem.slope(x - p @ problem.codes, p, start)
        y = torch.where(inside, slope, 0.0).sum(1, keepdim=True) / inside.sum(1, keepdim=True)
        system = _System(problem, inside.double() / problem.penalty)
        dp, a, dy = system.solve(torch.where(inside, y - slope, 0.0))
        moved = p + dp
        slack = torch.addmm(slope, a, problem.codes.T) - (y + dy)
        optimal = torch.where(inside, moved > -1e-9, slack > -1e-9 * scale).all(1)
        p = moved.clamp_min(0)
        p = p / p.sum(1, keepdim=True)
        found[left[optimal]] = p[optimal]
        wrong = ~optimal
        if not bool(wrong.any()):
            break
        inside = torch.where(inside, moved > 0, slack < 0)[wrong]
        left, x, start, p = (t[wrong] for t in (left, x, start, p))
    return found


@torch.library.custom_op("gritvq::convex", mutates_args=())
def _convex(x: Tensor, codes: Tensor, indices: Tensor, penalty: float, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Values and weights, in the type of ``x``."""
    with torch.autocast(x.device.type, enabled=False):
        problem = _Problem(codes, penalty)
        q, weights = torch.empty_like(x), x.new_empty(len(x), len(codes))
        for first in range(0, len(x), problem.rows):
            block = slice(first, first + problem.rows)
            p = _weights(problem, problem.enter(x[block]), indices[block], num_iterations)
            q[block], weights[block] = p @ codes.double(), p
        return q, weights


@_convex.register_fake
def _(x: Tensor, codes: Tensor, indices: Tensor, penalty: float, num_iterations: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], codes.shape[0])


@torch.library.custom_op("gritvq::convex_backward", mutates_args=())
def _convex_backward(grad: Tensor, x: Tensor, codes: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Implicit gradients, by one linear system per row.

    With u = x - C p and M the projection onto changes on the support that sum to 0, the optimality conditions give
    ``(Id + C M C^T / penalty) du = dx - dC p - C M dC^T u / penalty`` and ``dq = dx - du``; so for the solution a of
    the same system with ``grad`` on the right, x gets ``grad - a`` and code k ``p_k a + (M C^T a)_k u / penalty``.
    """
    with torch.autocast(x.device.type, enabled=False):
        problem = _Problem(codes, penalty)
        of_x, of_codes = torch.empty_like(x), torch.zeros_like(codes, dtype=torch.float64)
        for first in range(0, len(x), problem.rows):
            block = slice(first, first + problem.rows)
            g, p = grad[block].double(), weights[block].double()
            w = (p > 0).double() / penalty
            system = _System(problem, w)
            if problem.basis is None:
                a = system.reduced(g)
            else:  # the identity outside the space that the codes span
                own = g @ problem.basis
                a = g + (system.reduced(own) - own) @ problem.basis.T
            along = a @ (codes.double() - problem.mean).T
            change = w * (along - (w * along).sum(1, keepdim=True) / system.total)
            of_x[block] = g - a
            of_codes.addmm_(p.T, a).addmm_(change.T, x[block].double() - p @ codes.double())
        return of_x, of_codes.to(codes.dtype)


@_convex_backward.register_fake
def _(grad: Tensor, x: Tensor, codes: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(codes)


def _kept(inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, ...], tuple[float]]:
    x, codes, _, penalty, _ = inputs
    return (x, codes, output[1]), (penalty,)


_solved = with_gradient("convex", _convex, _kept)
