"""A codebook, an assignment, a surrogate and learning rules composed into one quantizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import eval_mode
from gritvq.distributed import joined_place
from gritvq.quantizers.assignments import NearestAssignment
from gritvq.quantizers.base import (
    Assignment,
    Codebook,
    CodeStatistics,
    Context,
    Exactness,
    LearningRule,
    Quantizer,
    QuantizerOutput,
    Surrogate,
    least_exact,
)
from gritvq.quantizers.codebooks.rowwise import plain_table
from gritvq.quantizers.functional import at_least_float32, nearest_codes, rows_or_zeros
from gritvq.quantizers.learning import CodebookLoss, CommitmentLoss
from gritvq.quantizers.surrogates import StraightThrough

__all__ = ["VectorQuantizer"]


class VectorQuantizer(Quantizer):
    """Vector quantization from four parts: where codes come from, which one is taken, what gradient flows, what learns.

    Args:
        codebook: Where the K codes come from.
        assignment: Which code a vector gets; nearest by euclidean distance unless given.
        surrogate: The gradient through the hard choice; straight-through unless given. Must be None for a
            differentiable assignment.
        learning: Losses and updates. None means a codebook loss of weight 1 and a commitment loss of weight 0.25 where
            the surrogate gives the codes no gradient, and nothing otherwise; ``[]`` means nothing at all.

    Raises:
        ValueError: If the parts do not fit together; nothing fails later.

    Example:
        >>> from gritvq import FreeCodebook
        >>> quantizer = VectorQuantizer(FreeCodebook(4, 16))
        >>> quantized, indices, losses = quantizer(torch.randn(2, 5, 4))
        >>> quantized.shape, indices.shape, sorted(losses)
        (torch.Size([2, 5, 4]), torch.Size([2, 5, 1]), ['codebook', 'commitment'])
        >>> torch.equal(quantizer.decode(indices), quantized)
        True

    References:
        van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, arXiv 1711.00937.
    """

    rules_rest = False  # whether rules that act after the step leave the codes alone, in a stage of training

    def __init__(
        self,
        codebook: Codebook,
        assignment: Assignment | None = None,
        surrogate: Surrogate | None = None,
        learning: Sequence[LearningRule] | None = None,
    ) -> None:
        super().__init__()
        assignment = NearestAssignment() if assignment is None else assignment
        if assignment.differentiable:
            if surrogate is not None:
                raise ValueError(
                    f"expected no surrogate with the differentiable {type(assignment).__name__}, got "
                    f"{type(surrogate).__name__}; leave `surrogate` out"
                )
        elif surrogate is None:
            surrogate = StraightThrough()
        moves_codes = assignment.differentiable or (surrogate is not None and surrogate.moves_codes)
        if learning is None:
            learning = [] if moves_codes else [CodebookLoss(), CommitmentLoss()]
        _check_learning(codebook, surrogate, moves_codes, learning)
        _check_exactness(codebook, assignment, surrogate)

        self.codebook, self.assignment, self.surrogate = codebook, assignment, surrogate
        self.learning = nn.ModuleList(learning)
        self.dim, self.codebook_sizes = codebook.dim, (codebook.codebook_size,)
        self.exact = least_exact(assignment.exact, *([] if surrogate is None else [surrogate.exact]))
        self.draws_indices = assignment.draws_indices
        needs = frozenset().union(*(rule.needs for rule in learning))
        updates = any(rule.writes_codes for rule in learning)
        self.statistics = CodeStatistics(self.dim, codebook.codebook_size, needs) if updates else None
        self._observe()
        if any(rule.writes_codes == "table" for rule in learning):
            codebook.freeze()

    def _observe(self) -> None:
        """Have the statistics told of codes that are overwritten; again wherever the codebook may be another one."""
        if self.statistics is not None:
            self.codebook.observed_by(self.statistics)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, or what was pickled."""
        super().__setstate__(state)
        self._observe()

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Assign codes; in training also accumulate statistics and compute the losses."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            codes = self.codebook.codes()
            flat = x.reshape(-1, self.dim)
            chosen, values = self.assignment(flat, codes)
            indices, q = chosen.view(x.shape[:-1]), values.view(x.shape)
            losses: dict[str, Tensor] = {}
            if self.training and len(self.learning):
                first, count = joined_place(valid)
                if self.statistics is not None:
                    self.statistics.accumulate(flat, chosen, valid.reshape(-1), first, count)
                context = Context(x, q, indices, valid, codes, count)
                for rule in self._rules():
                    own = rule.loss(context)
                    if losses.keys() & own.keys():
                        raise ValueError(
                            f"expected losses of different names, got {sorted(losses.keys() & own.keys())} twice; give "
                            "one rule the whole weight or rename the loss"
                        )
                    losses.update(own)
            return QuantizerOutput(q, torch.where(valid, indices, -1).unsqueeze(-1), losses)

    def _rules(self) -> list[LearningRule]:
        return cast("list[LearningRule]", list(self.learning))

    def lookup(self, indices: Int[Tensor, "*batch 1"]) -> Float[Tensor, "*batch D"]:
        """Rows of the materialized table; zeros for -1."""
        return rows_or_zeros(indices, self.codebook.codes())

    def nearest(self, y: Float[Tensor, "*batch D"], num_codes: int) -> Int[Tensor, "*batch n"]:
        """The nearest codes by the assignment's metric."""
        found = nearest_codes(y.reshape(-1, self.dim), self.codebook.codes(), num_codes, self.assignment.metric)
        return found.view(*y.shape[:-1], num_codes)

    def level_tables(self) -> list[Tensor] | None:
        """The codes, if the assignment takes the nearest one by euclidean distance."""
        euclidean = self.assignment.takes_nearest and self.assignment.metric == "euclidean"
        return [self.codebook.codes()] if euclidean else None

    def with_learning(self, rules: Sequence[LearningRule]) -> VectorQuantizer:
        """The same codebook, assignment and surrogate with these rules in front of its own.

        Example:
            >>> from gritvq import CodebookLoss, grit_vq
            >>> sorted(grit_vq(4, 16).with_learning([CodebookLoss()])(torch.randn(3, 4)).losses)
            ['codebook']
        """
        own = self._rules()
        new = [rule for rule in rules if type(rule) not in {type(each) for each in own}]
        return VectorQuantizer(self.codebook, self.assignment, self.surrogate, [*new, *own])

    @torch.no_grad()
    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit the codebook to the data (:meth:`Codebook.fit`); the surrogate sees them too.

        Raises:
            ValueError: If no finite vector is left, or no code could be written.
        """
        self._check_input(x, None)
        rows = self._finite_rows(self.before(x))
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.codebook.fit(rows, self.assignment.metric, generator)
        if self.surrogate is not None:
            self.surrogate.initialize(rows)
        if self.statistics is not None:
            self._observe()
            self.statistics.reset()

    @torch.no_grad()
    def update(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Reduce the statistics over all ranks and let every rule act on them; drop them where rules rest."""
        if self.statistics is None:
            return
        if self.rules_rest:
            self.statistics.end_update()
            return
        _check_whole(self.codebook)
        self._observe()
        self.statistics.begin_update()
        try:
            for rule in self._rules():
                replaced = rule.update(self.codebook, self.statistics)
                if replaced is not None and len(replaced):
                    self.statistics.reset_rows(replaced)
                    _reset_moments(optimizer, self.codebook.row_parameter(), replaced)
        finally:
            self.statistics.end_update()

    def fold(self) -> VectorQuantizer:
        """Plain quantizer over the materialized codes: same indices, bitwise the same values, no training parts."""
        _check_whole(self.codebook)
        with torch.no_grad():
            codes = self.codebook.codes()
        assignment = copy.deepcopy(self.assignment)
        surrogate = None if assignment.differentiable else StraightThrough()
        return VectorQuantizer(plain_table(codes), assignment, surrogate, []).eval()


def _check_whole(codebook: Codebook) -> None:
    """Check that this process has all codes: rules and tables write single rows."""
    if any(hasattr(parameter, "placements") for parameter in codebook.parameters()):
        raise ValueError(
            "expected a codebook that is whole in every process, got one that fully_shard has divided; shard encoder "
            "and decoder only, and average the quantizer's gradients over the processes yourself"
        )


def _check_learning(
    codebook: Codebook, surrogate: Surrogate | None, moves_codes: bool, learning: Sequence[LearningRule]
) -> None:
    """Check that the parts fit together, by what they declare; the only place that does."""
    kind = type(codebook).__name__
    owners = [rule for rule in learning if rule.writes_codes == "table"]
    trainers = [type(rule).__name__ for rule in learning if rule.trains_codes]
    if moves_codes:
        trainers.append(type(surrogate).__name__ if surrogate is not None else "the differentiable assignment")
    if owners:
        owner = type(owners[0]).__name__
        if len(owners) > 1:
            raise ValueError(
                f"expected one rule that sets the codes, got {[type(o).__name__ for o in owners]}; keep one"
            )
        if codebook.writes != "table":
            raise ValueError(
                f"expected a plain table under {owner}, got {kind} (writes={codebook.writes!r}); use FreeCodebook, or "
                "train this codebook by gradients"
            )
        if trainers:
            raise ValueError(
                f"expected one source of changes to the codes, got {owner} and gradients from "
                f"{', '.join(trainers)}; remove one of them"
            )
    for rule in learning:
        if rule.writes_codes == "rows" and codebook.writes is None:
            raise ValueError(
                f"expected a codebook whose codes can be written for {type(rule).__name__}, got {kind} (writes=None); "
                "remove the rule: a shared map keeps its codes in use without it"
            )


@torch.no_grad()
def _check_exactness(codebook: Codebook, assignment: Assignment, surrogate: Surrogate | None) -> None:
    """Verify the declared ``exact`` of assignment and surrogate on a few random vectors."""
    placed = next((t for part in (assignment, surrogate) if part is not None for t in part.state_dict().values()), None)
    device = torch.device("cpu") if placed is None else placed.device
    size, own = codebook.codebook_size * codebook.dim, torch.float32
    codes = torch.linspace(-1, 1, size, dtype=own, device=device).view(-1, codebook.dim)
    if type(codes) is not Tensor or device.type == "meta":  # no numbers to compare
        return
    x = 0.9 * codes[:4] + 0.01

    def assigned() -> tuple[Tensor, Tensor]:
        indices, values = assignment(x, codes)
        return values, nn.functional.embedding(indices, codes)

    def passed() -> tuple[Tensor, Tensor]:
        assert surrogate is not None
        return surrogate(x, codes[:4]), codes[:4]

    for part, found in ((assignment, assigned), *(() if surrogate is None else ((surrogate, passed),))):
        if part.exact not in get_args(Exactness):
            raise ValueError(f"expected exact to be one of {get_args(Exactness)}, got {part.exact!r} in {_kind(part)}")
        if part.exact == "never":
            continue
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            pairs = [found()] if part.exact == "always" else []
        with eval_mode(part):
            pairs.append(found())
        for value, code in pairs:
            if not torch.equal(value, code):
                raise ValueError(
                    f"expected the value of {_kind(part)} to be bitwise the code, which exact={part.exact!r} declares, "
                    f"got one {float((value - code).abs().max()):g} away; declare 'eval' if that holds in training "
                    "only, else 'never'"
                )


def _kind(part: nn.Module) -> str:
    return type(part).__name__


def _reset_moments(optimizer: torch.optim.Optimizer | None, table: nn.Parameter | None, rows: Tensor) -> None:
    if optimizer is None or table is None:
        return
    for value in optimizer.state.get(table, {}).values():
        if isinstance(value, Tensor) and value.shape == table.shape:
            value[rows] = 0
