"""The one interface of every quantizer, and its result."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import Component, eval_mode
from gritvq.distributed import all_gather_rows
from gritvq.quantizers.base.attachment import (
    Attachment,
    arrange_groups,
    codebook_group,
    ignored_scales,
    unwrapped_optimizer,
)
from gritvq.quantizers.base.parts import Codebook, Exactness, LearningRule, Surrogate
from gritvq.quantizers.base.schedules import Schedule
from gritvq.quantizers.base.statistics import CodeStatistics
from gritvq.quantizers.functional import at_least_float32, bits_per_sample, check_indices

__all__ = ["Quantizer", "QuantizerOutput", "TokenScale", "check_quantizer", "least_exact"]

_EARLY, _LATE = 8, 256  # training passes without an update: before the first one, and after it
_EXACTNESS: tuple[Exactness, ...] = ("always", "eval", "never")


def least_exact(*each: Exactness) -> Exactness:
    """The weakest of several values of ``exact``; ``"always"`` for none.

    Example:
        >>> least_exact("always", "never", "eval")
        'never'
    """
    return max(each, key=_EXACTNESS.index, default="always")


class QuantizerOutput(NamedTuple):
    """Result of every quantizer; unpacks as ``quantized, indices, losses``.

    Attributes:
        quantized: The hard value (*batch, D), in the input's type, carrying the surrogate gradient.
        indices: Code indices (*tokens, Q), int64, Q = len(codebook_sizes), also if that is 1; -1 where masked.
        losses: Weighted scalars by name; empty in eval.
    """

    quantized: Float[Tensor, "*batch D"]
    indices: Int[Tensor, "*tokens Q"]
    losses: dict[str, Float[Tensor, ""]]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Sum of all losses; a zero scalar where there is none."""
        return sum(self.losses.values(), start=torch.zeros((), device=self.quantized.device))


class TokenScale(NamedTuple):
    """Tokens of one sample that describe it at one resolution.

    Attributes:
        grid: Axes of these tokens; they lie row by row.
        channels: Index channels that they have; the others are -1.
    """

    grid: tuple[int, ...]
    channels: tuple[int, ...]


class Quantizer(Component, ABC):
    """Maps continuous vectors (*batch, D) to hard codes and back.

    ``forward = after(surrogate(before(x), hard))``, where ``hard`` comes from :meth:`quantize`. Subclasses implement
    :meth:`quantize` and :meth:`lookup`, and set the attributes.

    Attributes:
        dim: Size D of the output vectors.
        codebook_sizes: Number of codes of each index channel.
        exact: Where ``quantized`` is bitwise ``decode(indices)``: ``"always"``, ``"eval"``, or ``"never"``: do not
            store these indices.
        surrogate: The gradient rule, applied once to the whole stack; None where :meth:`quantize` returns values that
            are differentiable in ``x`` themselves.
        layout: () for quantizers that process every vector on its own. For others, which depend on the arrangement of
            vectors, the last leading axes of the input must be these sizes, or multiples of them where the class says
            so.
        draws_indices: Whether the index itself is random in training, so that two passes over the same vectors differ.
        objective: The objective that the losses belong to: ``"reconstruction"`` (with a mean squared error),
            ``"arelbo"`` and ``"albo"`` (nats per vector, with a log-likelihood), ``"two_path"`` (both latents decoded).
    """

    dim: int
    codebook_sizes: tuple[int, ...]
    exact: Exactness
    surrogate: Surrogate | None
    layout: tuple[int, ...] = ()
    draws_indices: bool = False
    objective: Literal["reconstruction", "arelbo", "albo", "two_path"] = "reconstruction"

    _passes = 0  # in training since the last update, less those that an update is good for
    _rates_are_known = False  # whether the learning rates of the codes were asked for, or an optimizer's were seen

    @property
    def input_dim(self) -> int:
        """Size of the input vectors; the output's unless a subclass projects."""
        return self.dim

    def before(self, x: Tensor) -> Tensor:
        """Map the input into the space where the codes live (differentiable); the identity unless overridden."""
        return x

    def after(self, q: Tensor) -> Tensor:
        """Map code-space values to the output (differentiable); the identity unless overridden."""
        return q

    @abstractmethod
    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """Hard values in code space, detached from ``x`` and differentiable in the codes, with indices and losses."""

    @abstractmethod
    def lookup(self, indices: Int[Tensor, "*tokens Q"]) -> Float[Tensor, "*batch D"]:
        """Code-space values of indices in range; a channel of -1 contributes zeros."""

    def forward(self, x: Float[Tensor, "*batch D"], mask: Bool[Tensor, "*batch"] | None = None) -> QuantizerOutput:
        """Quantize.

        Args:
            x: Vectors (*batch, input_dim), floating. A vector with an entry that is not finite is treated as masked, so
                that it cannot corrupt the codes.
            mask: True where a vector is valid (*batch). Masked vectors give zeros and index -1 and do not count.

        Returns:
            Values, indices and losses.

        Raises:
            ValueError: If shape or type do not fit.
        """
        y, valid = self._enter(x, mask)
        return self._leave(y, valid, x.dtype)

    def _enter(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Checked input in code space, zero where masked, and where it is real."""
        self._check_input(x, mask)
        if self.training and not torch.compiler.is_compiling():
            self._count_pass()
        valid = torch.isfinite(x).all(-1) if mask is None else mask & torch.isfinite(x).all(-1)
        return self.before(torch.where(valid.unsqueeze(-1), x, 0)), valid

    def _count_pass(self) -> None:
        """Count a training pass, and warn once if update_codebook or attach was forgotten."""
        if torch._C._current_graph_task_id() != -1:  # activation checkpointing runs it for the second time
            return
        self._passes += 1
        if self._passes != _EARLY:
            return
        parts = [module for module in self.modules() if isinstance(module, Quantizer)]
        for part in parts:
            part._passes = max(part._passes, _EARLY)  # the outermost speaks for all
        forgotten = []
        if any(isinstance(module, (CodeStatistics, Schedule)) for module in self.modules()):
            forgotten.append("moving averages, revival and schedules do not advance")
        wanted = {scale for scale in self._scales().values() if scale != 1}
        if wanted and not any(part._rates_are_known for part in parts):
            forgotten.append(f"codes that need {_times(wanted)} the encoder's learning rate may not get it")
        if forgotten:
            warnings.warn(
                f"training passes, but no update_codebook(): {', and '.join(forgotten)}. Call "
                "quantizer.attach(optimizer) once before training; or create the optimizer from "
                "quantizer.parameter_groups(lr) and call quantizer.update_codebook(optimizer) after every step.",
                stacklevel=6,
            )

    def _leave(self, y: Tensor, valid: Tensor, dtype: torch.dtype) -> QuantizerOutput:
        """Everything after :meth:`before`."""
        if self.training:
            for module in self.modules():
                if isinstance(module, Schedule):
                    module.see(valid)
        hard, indices, losses = self.quantize(y, valid)
        z = self.after(hard if self.surrogate is None else self.surrogate(y, hard)).to(dtype)
        z = torch.where(valid.unsqueeze(-1), z, 0)
        return QuantizerOutput(z, indices, losses if self.training else {})

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "*batch D"], mask: Bool[Tensor, "*batch"] | None = None
    ) -> Int[Tensor, "*tokens Q"]:
        """Indices of the vectors, without gradients, losses or statistics: what :meth:`forward` gives in eval."""
        with eval_mode(self):
            return self(x, mask).indices

    def decode(self, indices: Int[Tensor, "*tokens Q"]) -> Float[Tensor, "*batch D"]:
        """Values of indices, bitwise what :meth:`forward` returned (before its cast to the input's type).

        Args:
            indices: (*tokens, Q), integers in ``[0, codebook_size)``, or -1 for a masked position, which gives zeros.

        Raises:
            ValueError: If the last axis is not Q, the type is not integer, or an index is out of range.
        """
        num_channels = len(self.codebook_sizes)
        if indices.ndim < 1 or indices.shape[-1] != num_channels or indices.is_floating_point() or indices.is_complex():
            raise ValueError(
                f"expected integer indices (*tokens, {num_channels}), got {indices.dtype} {tuple(indices.shape)}; the "
                "last axis holds the index channels, even if there is only one: use indices.unsqueeze(-1)"
            )
        indices = indices.long()
        if not torch.compiler.is_compiling():
            check_indices(indices, self.codebook_sizes, "were they made with another tokenizer?")
        return self._zero_masked(self.after(self.lookup(indices)), indices)

    def _zero_masked(self, values: Float[Tensor, "*batch D"], indices: Int[Tensor, "*tokens Q"]) -> Tensor:
        """Zeros at the masked positions of these indices, for vectors computed from their values."""
        return torch.where((indices < 0).all(-1, keepdim=True), 0, values)

    def token_shape(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """Leading shape of the indices for inputs of leading shape ``batch``.

        It equals ``batch``, except for quantizers with a ``layout``, which return another number of tokens.

        Raises:
            ValueError: If inputs of this shape do not fit the layout.
        """
        return tuple(batch)

    def token_scales(self, positions: tuple[int, ...]) -> tuple[TokenScale, ...]:
        """The scales of one sample's tokens, in order: one, unless a structure has several.

        Args:
            positions: Leading shape of one sample's vectors, such as (h, w).

        Raises:
            ValueError: If they do not fit the layout.
        """
        return (TokenScale(self.token_shape(positions), tuple(range(len(self.codebook_sizes)))),)

    def bits(self, batch: tuple[int, ...]) -> float:
        """Bits of the indices of inputs of leading shape ``batch`` at fixed length: ``sum log2 K`` over tokens.

        Example:
            >>> from gritvq import grit_vq
            >>> grit_vq(4, 16).bits((8, 8))
            256.0
        """
        tokens = math.prod(self.token_shape(batch))
        return bits_per_sample(self.codebook_sizes, [tokens] * len(self.codebook_sizes))

    def initialize_codebook(self, x: Float[Tensor, "*batch D"], generator: torch.Generator | None = None) -> None:
        """Fit the codes to data. Nothing is ever fitted inside forward.

        Args:
            x: Sample latents; fewer than K are repeated with jitter, non-finite rows are left out. With several
                processes the rows of all of them are used, and all get the same codes.
            generator: CPU generator for random choices; a fixed seed if None.
        """
        for child in self.children():
            if isinstance(child, Quantizer):
                child.initialize_codebook(x, generator)

    def nearest(self, y: Float[Tensor, "*batch D"], num_codes: int) -> Int[Tensor, "*batch n"]:
        """The ``num_codes`` nearest codes of vectors in code space, nearest first: for beams and perturbations.

        Raises:
            ValueError: If this quantizer has no table of codes.
        """
        raise ValueError(
            f"expected a quantizer with a table of codes to search, got {type(self).__name__}; use VectorQuantizer"
        )

    def level_tables(self) -> list[Float[Tensor, "K D"]] | None:
        """The tables of a quantizer whose eval takes the nearest code (euclidean) of each from what is left.

        None for all others: no table, several vectors that belong together, or maps in front.

        Example:
            >>> from gritvq import FSQ, rq
            >>> [tuple(table.shape) for table in rq(4, 16, num_levels=2).level_tables()], FSQ([3, 3]).level_tables()
            ([(16, 4), (16, 4)], None)
        """
        return None

    def with_learning(self, rules: Sequence[LearningRule]) -> Quantizer:
        """A quantizer of the same parts with these additional learning rules; itself if it takes no rules.

        Rules of a kind that it already has are left out.
        """
        return self

    @property
    def wants_initialization(self) -> bool:
        """Whether training should call :meth:`initialize_codebook` on the first batches."""
        return any(m.initialization != "normal" for m in self.modules() if isinstance(m, Codebook))

    @torch.no_grad()
    def update_codebook(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Apply what the learning rules do after a step (moving average, revival). Call after ``optimizer.step()``.

        Updates every quantizer inside, a shared one once, and advances all schedules by one step. Nothing changes if no
        process has had a valid vector since the last update.

        Args:
            optimizer: If given, the moments of replaced codes are reset in it.
        """
        if optimizer is not None and not self._rates_are_known:
            ignored = ignored_scales(optimizer, self._scales())
            if ignored:
                warnings.warn(
                    f"the optimizer moves codes at the encoder's learning rate, although they need {_times(ignored)} "
                    "that (lr_scale). Call quantizer.attach(optimizer), or create the optimizer from "
                    "quantizer.parameter_groups(lr).",
                    stacklevel=3,
                )
        for module in self.modules():
            if isinstance(module, Schedule):
                module.advance()
            elif isinstance(module, Quantizer):
                module.update(optimizer)
                module._rates_are_known |= optimizer is not None
        self.expect_updates()

    def expect_updates(self) -> None:
        """Announce that :meth:`update_codebook` will be called after every step, however many passes a step takes.

        For callbacks that call it: no warning is given before the first step.
        """
        for module in self.modules():
            if isinstance(module, Quantizer):
                module._passes = _EARLY - _LATE

    def update(self, optimizer: torch.optim.Optimizer | None) -> None:
        """The update of this quantizer itself, without its inner ones; nothing unless overridden."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups with the learning rates of this quantizer.

        Codebooks get ``lr_scale * lr`` (or their own per parameter) and no weight decay, everything else ``lr``.

        Example:
            >>> from gritvq import grit_vq
            >>> [(group["name"], group["lr"]) for group in grit_vq(4, 16).parameter_groups(1e-3)]
            [('codebook', 0.01)]
        """
        self._know_rates()
        scales = self._scales()
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter, scale in scales.items():
            groups.setdefault(scale, []).append(parameter)
        rest = [p for p in self.parameters() if p.requires_grad and p not in scales]
        made = [codebook_group(params, lr, scale) for scale, params in groups.items()]
        return made + ([{"params": rest, "lr": lr, "name": "quantizer"}] if rest else [])

    def attach(self, optimizer: torch.optim.Optimizer, lr: float | None = None) -> Attachment:
        """Give the codes their learning rate in this optimizer, and update the codebook after each of its steps.

        Changes the optimizer's groups to those of :meth:`parameter_groups`: parameters of codebooks whose learning rate
        is not ``lr_scale`` times the encoder's, or that have weight decay, get groups of their own; missing parameters
        of this quantizer are added. From then on :meth:`update_codebook` runs after every step that is not skipped by
        a ``GradScaler``. Do not call it yourself then.

        Call it right after creating the optimizer, before a schedule and before ``optimizer.load_state_dict``. A second
        call changes nothing. Copies and saved states do not contain the attachment: attach again after loading.

        Args:
            optimizer: Of the whole model, or of this quantizer; one that accelerate has wrapped is taken out.
            lr: The encoder's rate. If None, that of the first group with other parameters than codes; without one, a
                group of codes is taken to have been given the encoder's rate.

        Returns:
            An object with a method ``remove()``, which stops the updates.

        Raises:
            ValueError: If groups would have to change under a learning rate schedule.

        Example:
            >>> from gritvq import grit_vq
            >>> encoder, quantizer = nn.Linear(8, 4), grit_vq(4, 16)
            >>> optimizer = torch.optim.AdamW([*encoder.parameters(), *quantizer.parameters()], lr=1e-3)
            >>> attachment = quantizer.attach(optimizer)
            >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
            [(0.001, 0.01), (0.01, 0.0)]
        """
        optimizer = unwrapped_optimizer(optimizer)
        scales = self._scales()
        others = [p for p in self.parameters() if p.requires_grad and p not in scales]
        arrange_groups(optimizer, scales, others, lr, {p: name for name, p in self.named_parameters()})
        self._know_rates()
        self.expect_updates()
        return Attachment.of(self, optimizer, self.update_codebook)

    def _scales(self) -> dict[nn.Parameter, float]:
        """Learning rate over the encoder's of every trained parameter of the codebooks inside."""
        scales: dict[nn.Parameter, float] = {}
        for module in self.modules():
            if isinstance(module, Codebook):
                scales = {**module.learning_rate_scales(), **scales}
        return scales

    def _know_rates(self) -> None:
        for module in self.modules():
            if isinstance(module, Quantizer):
                module._rates_are_known = True

    @abstractmethod
    def fold(self) -> Quantizer:
        """The same map with transforms baked into plain tables and no training parts: same indices and values."""

    def _finite_rows(self, y: Float[Tensor, "*batch D"]) -> Float[Tensor, "N D"]:
        """Finite vectors of all processes as rows, float32 or wider.

        Raises:
            ValueError: If there is none.
        """
        rows = all_gather_rows(at_least_float32(y.detach()).reshape(-1, y.shape[-1]))
        rows = rows[torch.isfinite(rows).all(1)]
        if len(rows) == 0:
            raise ValueError(
                "expected at least one finite vector to initialize the codebook, got none; pass a non-empty batch"
            )
        return rows

    def _check_input(self, x: Tensor, mask: Tensor | None) -> None:
        if x.ndim < 1 or x.shape[-1] != self.input_dim:
            needs = f" ({self.input_dim} numbers in, {self.dim} out)" if self.input_dim != self.dim else ""
            raise ValueError(
                f"expected vectors (*batch, {self.input_dim}), got {tuple(x.shape)}{needs}; channels come last: use "
                "x.movedim(1, -1) for images (B, D, H, W), or ChannelsFirst(quantizer)"
            )
        if not x.is_floating_point():
            raise ValueError(f"expected a floating type, got {x.dtype}; use x.float()")
        if self.layout:
            self.token_shape(tuple(x.shape[:-1]))  # says what does not fit
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:-1]):
            raise ValueError(
                f"expected a bool mask {tuple(x.shape[:-1])}, True where a vector is valid, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )


def _times(scales: set[float]) -> str:
    return " or ".join(f"{scale:g} times" for scale in sorted(scales))


def check_quantizer(part: object) -> None:
    """Check that this is a quantizer of vectors with channels last.

    Raises:
        ValueError: If it is something else, such as a ``ChannelsFirst``.
    """
    if not isinstance(part, Quantizer):
        raise ValueError(
            f"expected a quantizer of vectors with channels last, got {type(part).__name__}; combine the "
            "quantizers first and wrap the whole in ChannelsFirst"
        )
