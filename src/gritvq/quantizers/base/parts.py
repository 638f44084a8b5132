"""The four parts of a vector quantizer, as interfaces."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import Component, check_integer, check_number
from gritvq.distributed import joined_count, joined_mean, masked_mean
from gritvq.quantizers.base.statistics import CodeStatistics
from gritvq.quantizers.functional import Metric, at_least_float32, kmeans, sample_rows

__all__ = ["Assignment", "Codebook", "Context", "Exactness", "LearningRule", "Surrogate", "keeping_precision"]

Exactness = Literal["always", "eval", "never"]


def keeping_precision(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion, as ``module._apply`` hands it down, that moves tensors but never narrows them below float32.

    Example:
        >>> keeping_precision(lambda t: t.half())(torch.ones(1)).dtype
        torch.float32
    """

    def moved(tensor: Tensor) -> Tensor:
        converted = convert(tensor)
        narrowed = converted.is_floating_point() and converted.element_size() < 4 <= tensor.element_size()
        return tensor.to(converted.device) if narrowed else converted

    return moved


class Codebook(Component, ABC):
    """Where the K codes come from.

    A codebook stays in float32 (or wider) whatever ``.bfloat16()`` or ``.half()`` is called on the model around it:
    increments of a moving average, or of a small learning rate, would round away.

    The codes are computed at every call, so changed parameters take effect at once. :meth:`Quantizer.fold` computes
    them once, for speed.

    Attributes:
        dim: Size D of a code.
        codebook_size: Number K of codes.
        lr_scale: Learning rate of the parameters, as a multiple of the encoder's.
        normalize: Whether codes are scaled to unit length.
        initialization: How training should start the codes: ``"normal"`` leaves the random start, ``"samples"`` and
            ``"kmeans"`` ask for :meth:`Quantizer.initialize_codebook` on the first batches.
        writes: What can be overwritten: ``"table"`` (every code is stored directly), ``"rows"`` (single codes, by
            solving for their base row) or None.
    """

    writes: Literal["table", "rows"] | None = None
    _observers: ClassVar[WeakKeyDictionary[Codebook, WeakSet[CodeStatistics]]] = WeakKeyDictionary()

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        lr_scale: float = 1.0,
        normalize: bool = False,
        initialization: Literal["normal", "samples", "kmeans"] = "normal",
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("codebook_size", codebook_size)):
            check_integer(name, value, hint="arguments come in the order (dim, codebook_size)")
        lr_scale = check_number("lr_scale", lr_scale, inside=True, hint="to freeze codes set requires_grad_(False)")
        if initialization not in ("normal", "samples", "kmeans"):
            raise ValueError(f"expected initialization 'normal', 'samples' or 'kmeans', got {initialization!r}")
        self.dim, self.codebook_size = dim, codebook_size
        self.lr_scale, self.normalize, self.initialization = lr_scale, normalize, initialization

    @abstractmethod
    def table(self) -> Float[Tensor, "K D"]:
        """The codes before normalization, differentiable in the parameters; called outside autocast."""

    def codes(self) -> Float[Tensor, "K D"]:
        """Materialize all codes: what forward, decode and fold all read."""
        with torch.autocast(self._device_type(), enabled=False):
            codes = at_least_float32(self.table())
            return F.normalize(codes, dim=1) if self.normalize else codes

    def forward(self) -> Float[Tensor, "K D"]:
        """Same as :meth:`codes`."""
        return self.codes()

    def write(self, rows: Int[Tensor, " M"], vectors: Float[Tensor, "M D"]) -> Bool[Tensor, " M"]:
        """Make ``codes()[rows]`` equal ``vectors``; returns for each row whether that was possible.

        Moving averages continue from the new values, and earlier vectors no longer count for these codes;
        implementations call :meth:`tell_overwritten` for that.

        Raises:
            ValueError: If the codes of this class cannot be set one by one (``writes`` is None).
        """
        raise ValueError(
            f"expected a codebook whose codes can be written, got {type(self).__name__} (writes=None): its codes exist "
            "only through shared parameters; use FreeCodebook, AffineCodebook or MLPCodebook"
        )

    def selected(self, rows: Int[Tensor, " M"]) -> Codebook:
        """A new codebook of this class whose codes are these, in this order; a row may come several times.

        Raises:
            ValueError: If codes of this class do not exist one by one (``writes`` is None).
        """
        raise ValueError(
            f"expected a codebook whose codes can be selected, got {type(self).__name__}; fold the quantizer first, "
            "which leaves a plain table"
        )

    def observed_by(self, statistics: CodeStatistics) -> None:
        """Register statistics of these codes, to be notified when rows are overwritten, for as long as they exist."""
        self._observers.setdefault(self, WeakSet()).add(statistics)

    def tell_overwritten(self, rows: Int[Tensor, " M"]) -> None:
        """Notify the statistics of overwritten rows, except during their own update."""
        observers = list(self._observers.get(self, ()))
        if not any(statistics.updating for statistics in observers):
            for statistics in observers:
                statistics.overwritten(rows)

    def match_moments(self, x: Float[Tensor, "N D"]) -> None:
        """Shift and scale all codes so that their mean and spread are those of ``x``.

        For codebooks whose codes cannot be written one by one; the others do not need it.

        Raises:
            ValueError: If this codebook can do neither.
        """
        self.write(torch.zeros(0, dtype=torch.int64), x[:0])

    @torch.no_grad()
    def fit(
        self, x: Float[Tensor, "N D"], metric: Metric = "euclidean", generator: torch.Generator | None = None
    ) -> None:
        """Fit the codes to data: k-means with empty-cluster splitting, or sampled rows.

        Which of the two is the codebook's ``initialization`` (``"normal"`` means k-means here).
        Codebooks without writable codes match mean and spread of the data instead.

        Args:
            x: Finite vectors in code space (N, D), N >= 1; the same on every process.
            metric: Distance of k-means.
            generator: CPU generator for random choices.

        Raises:
            ValueError: If no code could be written.
        """
        if self.writes is None:
            self.match_moments(x)
            return
        size = self.codebook_size
        if self.initialization == "samples":
            codes = sample_rows(x, size, generator)
        else:
            codes = kmeans(x, size, generator=generator, metric=metric)
        written = int(self.write(torch.arange(size, device=codes.device), codes).sum())
        if written < size:
            told = (
                f"expected to write {size} codes, wrote {written}: the map of {type(self).__name__} cannot be inverted "
                "there; initialize before training, while it is the identity"
            )
            if written == 0:
                raise ValueError(told)
            warnings.warn(told, stacklevel=2)

    def row_parameter(self) -> nn.Parameter | None:
        """The trained K-row table, whose optimizer state is reset where a code is replaced; None without one."""
        return None

    def learning_rate_scales(self) -> dict[nn.Parameter, float]:
        """Learning rate of every trained parameter, as a multiple of the encoder's; ``lr_scale`` unless overridden."""
        return {p: self.lr_scale for p in self.parameters() if p.requires_grad}

    def freeze(self) -> None:
        """Stop gradients to all parameters, because a learning rule updates the codes."""
        self.requires_grad_(False)

    def _device_type(self) -> str:
        return next(self.parameters(), next(self.buffers(), torch.empty(0))).device.type

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        return super()._apply(keeping_precision(fn), recurse)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"dim={self.dim}, codebook_size={self.codebook_size}, lr_scale={self.lr_scale:g}"


class Assignment(Component, ABC):
    """Which code a vector gets. Hard assignments gather rows of the table; differentiable ones mix them.

    Attributes:
        differentiable: Whether ``q`` carries a gradient to ``x`` (then no surrogate is used).
        exact: Where ``q`` is bitwise the row that the index names: ``"always"``, ``"eval"`` (soft in training only) or
            ``"never"``.
        draws_indices: Whether the index itself is random in training, so that two passes over the same vectors differ.
        takes_nearest: Whether, in eval, the index is that of the nearest code and the value that code.
        metric: Distance for the searches and clusterings of this assignment.
    """

    differentiable: bool = False
    exact: Exactness = "always"
    draws_indices: bool = False
    takes_nearest: bool = False
    metric: Metric = "euclidean"

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Return indices (N,) and values (N, D), the values differentiable in ``codes``."""


class Surrogate(Component, ABC):
    """What gradient flows through the hard choice.

    Attributes:
        exact: ``"always"`` if the value is bitwise ``q`` even in training, ``"eval"`` if noise replaces it in training.
        moves_codes: Whether the codes receive a gradient from the task; otherwise they need a learning rule.
    """

    exact: Exactness = "always"
    moves_codes: bool = False

    @abstractmethod
    def forward(self, x: Float[Tensor, "*batch D"], q: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Return a tensor of ``x``'s type with the value of ``q`` and the surrogate gradient."""

    def initialize(self, x: Float[Tensor, "N D"]) -> None:
        """Take statistics of sample latents, for surrogates whose geometry follows the data; most need none."""


class Context(NamedTuple):
    """Input of a learning rule: one forward pass, with the leading shape of the input.

    ``x`` carries the encoder's gradient, ``q`` and ``codes`` the codebook's; ``valid`` is False for masked rows.
    ``total`` is the number of valid rows of all processes; left out, it is counted where it is needed.
    """

    x: Float[Tensor, "*batch D"]
    q: Float[Tensor, "*batch D"]
    indices: Int[Tensor, "*batch"]
    valid: Bool[Tensor, "*batch"]
    codes: Float[Tensor, "K D"]
    total: Int[Tensor, ""] | None = None

    @property
    def num_valid(self) -> Int[Tensor, ""]:
        """Valid rows of all processes."""
        return joined_count(self.valid) if self.total is None else self.total

    def mean(self, per_vector: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
        """Mean of one number per vector over the valid rows of all processes; 0 where there is none.

        Every process gets its share, with which the average over the processes is that mean.
        """
        return masked_mean(per_vector, self.valid, self.num_valid)

    def mean_of_total(self, total: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The same from the sum over the valid rows of this process."""
        return joined_mean(total, self.num_valid)

    def of_codes(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """A loss that depends on the codes alone: as it is; 0, without a gradient, where no process has a valid row."""
        return torch.where(self.num_valid > 0, loss, 0)


class LearningRule(Component, ABC):
    """What moves or regularizes the codes: a loss in forward, an update after the optimizer's step, or both.

    Attributes:
        trains_codes: Whether :meth:`loss` sends a gradient to the codes.
        writes_codes: What :meth:`update` overwrites: ``"table"`` (all codes), ``"rows"`` (single ones) or None.
        needs: Statistics it reads: any of ``"sums"`` (per-code sums) and ``"samples"`` (recent vectors).
    """

    trains_codes: bool = False
    writes_codes: Literal["table", "rows"] | None = None
    needs: frozenset[str] = frozenset()

    def loss(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """Weighted scalars by name; an empty dict for a rule that only updates.

        Their average over the processes must be the loss of the joined batch, and 0 where that has no valid row:
        :meth:`Context.mean` and :meth:`Context.of_codes` do both.
        """
        return {}

    def update(self, codebook: Codebook, statistics: CodeStatistics) -> Int[Tensor, " M"] | None:
        """Change codes from the reduced statistics; returns the rows that were replaced, or None.

        Runs on every rank with equal statistics and must do the same on each.
        """
        return None

    def forward(self, context: Context) -> dict[str, Float[Tensor, ""]]:
        """Same as :meth:`loss`."""
        return self.loss(context)
