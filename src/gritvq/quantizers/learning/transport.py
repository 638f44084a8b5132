"""Optimal transport between latents and codes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import check_number
from gritvq.distributed import all_reduce_sum, joined_mean
from gritvq.lazy import optional
from gritvq.quantizers.base import Context, LearningRule, keeping_precision
from gritvq.quantizers.functional import at_least_float32, squared_distance

__all__ = ["WassersteinLoss"]


class WassersteinLoss(LearningRule):
    r"""Matches the cloud of latents to the weighted codes: ``weight * W(latents, sum_k pi_k delta_{c_k})``.

    ``W(mu, nu) = min_P sum_nk P_nk |x_n - c_k|^2`` over the plans P whose rows sum to 1/N (0 for masked vectors) and
    whose columns sum to pi: the squared 2-Wasserstein distance, summed over the D components. Every code must
    receive its share pi_k of the latents, near or far, so no code with a share is dead. Encoder, codes and, where they
    are learned, the weights get its gradient; the published methods use neither a codebook nor a commitment loss with
    it.

    The plan is found on the CPU in float64 by the network simplex of POT, in a time that grows faster than N K and
    dominates a training step: on one thread about 0.2 s for 512 vectors and 512 codes, 1 s for 2048 codes. Therefore a
    larger batch enters as a random sample. With fewer vectors than codes, uniform usage is only encouraged. Each
    process solves its own batch, and the losses are averaged over the processes by their numbers of vectors. That is
    never less than the loss of the joined batch, and equal to it where one process has all vectors.

    With ``regularization`` the cost is entropic, ``min_P <P, C> + regularization * KL(P | mu nu^T)``, found by up to
    500 Sinkhorn iterations on the device of the latents (float64; stopped where the marginals are within 1e-6). It is
    an upper bound, not 0 for equal clouds, and draws the codes together a little. On a CPU the iterations take longer
    than the simplex unless the regularization is large.

    With ``codebook_size`` the weights are ``pi = softmax(logits)``, logits being a parameter, and a second loss
    ``weights_kl = weights_penalty * KL(pi | uniform)`` (nats) keeps them near uniform weights. For fixed weights of
    your own set the logits and freeze them.

    With ``num_positions`` every position of the input (all leading axes but the first) is a problem of its own between
    B latents and K codes, and both losses are means over the positions.

    Args:
        weight: Weight of the transport cost.
        num_samples: Maximum vectors per problem; None uses all.
        regularization: None for the exact cost, else the entropic one's epsilon, in squared latent units, > 0.
        codebook_size: K, to learn the weights of the codes; None keeps them uniform.
        num_positions: Number P of positions, for inputs (B, ..., D) with P vectors per item; None for one problem.
        weights_penalty: Weight of the KL divergence of learned weights.
        initial_logit: What the logits of a position's own codes, ``K // P`` neighbors, start at; all others start at
            0. Takes both ``codebook_size`` and ``num_positions``.

    Raises:
        ValueError: If the arguments do not fit together, the input does not have P vectors per item, or a loss is
            computed without POT (the package ``ot``), which ``pip install 'gritvq[transport]'`` installs.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> context = Context(x, x, torch.arange(2), torch.ones(2).bool(), torch.tensor([[3.0], [0.0]]))
        >>> WassersteinLoss().loss(context)["wasserstein"].item()
        2.0

    References:
        Vuong et al., "Vector Quantized Wasserstein Auto-Encoder" (VQ-WAE), ICML 2023, arXiv 2302.05917. The submission
        has one problem per batch, uniform weights and weight 1. The released code has one per position (64, K = 512),
        learned weights and initial logit 1; it sums over positions and averages the divergence over codes, so its
        weights 1e-3 and 1 are ``weight=0.064`` and ``weights_penalty=0.125`` here. Its dual form with two potential
        networks is left out. Deviations: sampling, and the entropic form by Sinkhorn iterations, are ours.
        Flamary et al., "POT: Python Optimal Transport", JMLR 2021.
    """

    trains_codes = True

    def __init__(
        self,
        weight: float = 1.0,
        *,
        num_samples: int | None = 512,
        regularization: float | None = None,
        codebook_size: int | None = None,
        num_positions: int | None = None,
        weights_penalty: float = 1.0,
        initial_logit: float = 0.0,
    ) -> None:
        super().__init__()
        counts = {"num_samples": num_samples, "codebook_size": codebook_size, "num_positions": num_positions}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"expected {name} >= 1 or None, got {value!r}")
        if regularization is not None:
            check_number("regularization", regularization, inside=True, hint="None gives the exact cost")
        self.weight, self.num_samples = check_number("weight", weight), num_samples
        self.regularization, self.num_positions = regularization, num_positions
        self.weights_penalty = check_number("weights_penalty", weights_penalty)
        self.codebook_size, self.initial_logit = codebook_size, float(initial_logit)
        if initial_logit and (codebook_size is None or num_positions is None or num_positions > codebook_size):
            raise ValueError(
                "expected codebook_size >= num_positions, both given, for an initial_logit, got "
                f"{codebook_size!r} and {num_positions!r}; a position needs codes of its own"
            )
        self.logits: nn.Parameter | None = None
        if codebook_size is not None:
            logits = torch.zeros(num_positions or 1, codebook_size)
            for position, own in enumerate(logits if initial_logit else ()):
                share = codebook_size // len(logits)
                own[position * share : (position + 1) * share] = initial_logit
            self.logits = nn.Parameter(logits)

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """The weighted losses as ``wasserstein`` and, with learned weights, ``weights_kl``."""
        x, valid, num_vectors = self._problems(context)
        codes, size = at_least_float32(context.codes), len(context.codes)
        if self.codebook_size not in (None, size):
            raise ValueError(
                f"expected {self.codebook_size} codes, got {size}; give the rule the codebook_size of its codebook"
            )
        present = valid.to(x.dtype)
        of_latents = present / present.sum(1, keepdim=True).clamp_min(1)
        cost = squared_distance(x.flatten(0, 1), codes).view(*x.shape[:2], size)
        if self.logits is None:
            log_pi = x.new_full((1, size), -math.log(size))
        else:
            log_pi = F.log_softmax(at_least_float32(self.logits), dim=1).to(x.dtype)
        pi = log_pi.exp().expand(len(x), -1)
        value, plan, potential = torch.ops.gritvq.transport(
            cost.detach(), of_latents, pi.detach(), self.regularization or 0.0
        )
        # The value with the gradients of the optimum: the plan with respect to the costs, the dual potential with
        # respect to the weights.
        each = value + (plan * (cost - cost.detach())).sum((1, 2)) + (potential * (pi - pi.detach())).sum(1)
        # A problem counts on each process for its share of the vectors that the problem has on all.
        of_all = all_reduce_sum(num_vectors)
        share = num_vectors / of_all.clamp_min(1)
        num_solved = (of_all > 0).sum()
        losses = {"wasserstein": self.weight * joined_mean((share * each).sum(), num_solved)}
        if self.logits is not None:
            divergence = (log_pi.exp() * (log_pi + math.log(size))).sum(1)
            losses["weights_kl"] = self.weights_penalty * joined_mean((share * divergence).sum(), num_solved)
        return losses

    def _problems(self, context: Context) -> tuple[Float[Tensor, "P M D"], Bool[Tensor, "P M"], Int[Tensor, " P"]]:
        """Latents and their validity by problem, and how many are valid.

        Sampled where there are too many; masked ones are drawn last.
        """
        x, valid = at_least_float32(context.x), context.valid
        dim = x.shape[-1]
        if self.num_positions is None:
            x, valid = x.reshape(1, -1, dim), valid.reshape(1, -1)
        else:
            if x.ndim < 3 or math.prod(x.shape[1:-1]) != self.num_positions:
                raise ValueError(
                    f"expected vectors (B, ..., {dim}) with {self.num_positions} positions, got {tuple(x.shape)}; "
                    "num_positions is the product of all leading axes but the first"
                )
            x = x.reshape(len(x), self.num_positions, dim).transpose(0, 1)
            valid = valid.reshape(len(valid), self.num_positions).T
        num_vectors = valid.sum(1)
        if self.num_samples is not None and x.shape[1] > self.num_samples:
            keys = torch.where(valid, torch.rand(valid.shape, device=valid.device), -1)
            drawn = keys.topk(self.num_samples, dim=1).indices
            x, valid = x.gather(1, drawn.unsqueeze(-1).expand(-1, -1, dim)), valid.gather(1, drawn)
        return x, valid, num_vectors

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WassersteinLoss:
        return super()._apply(keeping_precision(fn), recurse)


@torch.library.custom_op("gritvq::transport", mutates_args=())
def _transport(
    cost: Tensor, of_latents: Tensor, of_codes: Tensor, regularization: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve P problems between N latents and K codes.

    Latents without weight are left out, problems without latents give zeros, and costs that are not finite NaN (the
    simplex would not come back).

    Returns:
        Values (P,), plans (P, N, K) and the dual potentials of the codes (P, K).
    """
    values, plans, potentials = cost.new_zeros(len(cost)), torch.zeros_like(cost), torch.zeros_like(of_codes)
    solve = _sinkhorn if regularization else _simplex
    for problem in range(len(cost)):
        rows = (of_latents[problem] > 0).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        part = cost[problem, rows].double()
        if not bool(torch.isfinite(part).all()) or not bool(torch.isfinite(of_codes[problem]).all()):
            values[problem], plans[problem], potentials[problem] = torch.nan, torch.nan, torch.nan
            continue
        a, b = of_latents[problem, rows].double(), of_codes[problem].double()
        value, plan, potential = solve(part, a / a.sum(), b / b.sum(), regularization)
        values[problem], potentials[problem] = value.to(values), potential.to(potentials)
        plans[problem, rows] = plan.to(plans)
    return values, plans, potentials


@_transport.register_fake
def _(cost: Tensor, of_latents: Tensor, of_codes: Tensor, regularization: float) -> tuple[Tensor, Tensor, Tensor]:
    return cost.new_empty(cost.shape[0]), torch.empty_like(cost), of_codes.new_empty(of_codes.shape)


def _simplex(cost: Tensor, a: Tensor, b: Tensor, _: float) -> tuple[Tensor, Tensor, Tensor]:
    """Exact transport of float64 problems."""
    arrays = [t.detach().cpu().numpy() for t in (a, b, cost)]
    plan, log = optional("ot", "transport").lp.emd(*arrays, numItermax=10_000_000, log=True)
    exact = torch.from_numpy(plan)
    return (exact * cost.cpu()).sum(), exact, torch.from_numpy(log["v"])


def _sinkhorn(cost: Tensor, a: Tensor, b: Tensor, regularization: float) -> tuple[Tensor, Tensor, Tensor]:
    """Entropic transport in the log domain.

    The last half step is done here, for codes without weight too: then the columns of the plan sum to exactly ``b``,
    and ``<a, f> + <b, g>`` is the value of the dual.
    """
    _, log = optional("ot", "transport").sinkhorn(
        a, b, cost, regularization, method="sinkhorn_log", numItermax=500, stopThr=1e-6, warn=False, log=True
    )
    log_a = a.log()
    scaled_f = log["log_u"] - log_a
    scaled_g = -torch.logsumexp((log_a + scaled_f)[:, None] - cost / regularization, dim=0)
    plan = b * torch.exp((log_a + scaled_f)[:, None] - cost / regularization + scaled_g)
    value = regularization * (a @ scaled_f + b @ scaled_g)
    return value, plan, regularization * scaled_g
