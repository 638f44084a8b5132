"""Codebooks whose codes are mapped one by one: ``codes()[k] = T(C[k])``, T the identity at the start."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer, to_config
from gritvq.quantizers.base import Codebook
from gritvq.quantizers.codebooks.recomputed import mapped_rows
from gritvq.quantizers.functional import at_least_float32, transforming

__all__ = [
    "AffineCodebook",
    "FreeCodebook",
    "Initialization",
    "MLPCodebook",
    "normal_table",
    "pair_of_scales",
    "plain_table",
]

Initialization = Literal["normal", "samples", "kmeans"]


def normal_table(dim: int, codebook_size: int, generator: torch.Generator | None) -> Tensor:
    """Codes drawn from N(0, 1/D), so that their expected squared length is 1 in any dimension."""
    return torch.randn(codebook_size, dim, generator=generator) / math.sqrt(dim)


class FreeCodebook(Codebook):
    """A free table: ``codes() = C``, every code a parameter of its own, started from N(0, 1/D).

    Args:
        dim: Size D of a code.
        codebook_size: Number of codes K.
        lr_scale: Learning rate of the codes, as a multiple of the encoder's.
        normalize: Scale codes to unit length.
        initialization: ``"samples"`` or ``"kmeans"``: the training loop initializes the codes from data.
        generator: CPU generator of the random start.

    Example:
        >>> FreeCodebook(4, 16).codes().shape
        torch.Size([16, 4])

    References:
        van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, arXiv 1711.00937.
    """

    writes = "table"

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        lr_scale: float = 1.0,
        normalize: bool = False,
        initialization: Initialization = "normal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, lr_scale=lr_scale, normalize=normalize, initialization=initialization)
        self.weight = nn.Parameter(normal_table(dim, codebook_size, generator))

    def table(self) -> Float[Tensor, "K D"]:
        """The parameter itself."""
        return self.weight

    @torch.no_grad()
    def write(self, rows: Int[Tensor, " M"], vectors: Float[Tensor, "M D"]) -> Bool[Tensor, " M"]:
        """Overwrite codes; always possible."""
        self.weight[rows] = vectors.to(self.weight)
        self.tell_overwritten(rows)
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)

    def selected(self, rows: Int[Tensor, " M"]) -> FreeCodebook:
        """A table of these codes."""
        return _with_rows(self, "weight", rows)

    def row_parameter(self) -> nn.Parameter:
        """The table."""
        return self.weight


_Rows = TypeVar("_Rows", bound=Codebook)


def _with_rows(codebook: _Rows, name: str, rows: Int[Tensor, " M"]) -> _Rows:
    """The same codebook with these rows of its parameter ``name``; what is frozen stays frozen."""
    arguments = {**to_config(codebook)["init_args"], "codebook_size": len(rows)}
    own = codebook.get_parameter(name)
    new = type(codebook)(**arguments).to(own.device, own.dtype)
    state = codebook.state_dict()
    new.load_state_dict({**state, name: state[name][rows]})
    for key, parameter in new.named_parameters():
        parameter.requires_grad_(codebook.get_parameter(key).requires_grad)
    return new


def plain_table(codes: Float[Tensor, "K D"]) -> FreeCodebook:
    """A frozen table of exactly these codes, of their type and on their device: what folding leaves.

    Example:
        >>> import torch
        >>> plain_table(torch.eye(2)).codes().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    codes = codes.detach()
    table = FreeCodebook(codes.shape[1], codes.shape[0]).to(codes.device, codes.dtype)
    table.write(torch.arange(len(codes), device=codes.device), codes)
    table.freeze()
    return table


def pair_of_scales(lr_scale: float | tuple[float, float]) -> tuple[float, float]:
    """Scales of map and base table, from one number for both or from two."""
    values = tuple(lr_scale) if isinstance(lr_scale, (tuple, list)) else (lr_scale, lr_scale)
    if len(values) != 2 or not min(values) > 0:
        raise ValueError(f"expected lr_scale > 0, or two such numbers for map and base table, got {lr_scale!r}")
    return float(values[0]), float(values[1])


class _TransformedCodebook(Codebook):
    """A base table under a transform; subclasses give the map and its inverse."""

    writes = "rows"

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        base: Literal["trained", "frozen"],
        lr_scale: float | tuple[float, float],
        normalize: bool,
        initialization: Initialization,
        generator: torch.Generator | None,
    ) -> None:
        of_map, of_base = pair_of_scales(lr_scale)
        super().__init__(dim, codebook_size, lr_scale=of_map, normalize=normalize, initialization=initialization)
        self.base_lr_scale = of_base
        if base not in ("trained", "frozen"):
            raise ValueError(f"expected base 'trained' or 'frozen', got {base!r}")
        self.base = nn.Parameter(normal_table(dim, codebook_size, generator), requires_grad=base == "trained")

    def transform(self, base: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """The map T, row by row."""
        raise AssertionError("subclasses define the map")

    def solve(self, vectors: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Base rows whose image is closest to ``vectors`` by the subclass's method."""
        raise AssertionError("subclasses define the inverse")

    def table(self) -> Float[Tensor, "K D"]:
        """``T(C)``; a training step keeps no graph of K rows, see ``mapped_rows``."""
        swapped = not all(isinstance(p, nn.Parameter) for p in self.parameters())  # as functional_call does
        if swapped or torch.compiler.is_compiling() or transforming():
            return self.transform(at_least_float32(self.base))
        return mapped_rows(
            self.transform, at_least_float32(self.base), [p for p in self.parameters() if p is not self.base]
        )

    @torch.no_grad()
    def write(self, rows: Int[Tensor, " M"], vectors: Float[Tensor, "M D"]) -> Bool[Tensor, " M"]:
        """Solve ``T(c) = v`` for each row; rows without a solution within 1 % of a vector's length stay."""
        vectors = vectors.to(self.base)
        with torch.autocast(self._device_type(), enabled=False):
            solved = self.solve(vectors)
            error = (self.transform(solved) - vectors).norm(dim=1)
        good = torch.isfinite(solved).all(1) & (error <= 0.01 * vectors.norm(dim=1).clamp_min(1e-6))
        self.base[rows[good]] = solved[good]
        self.tell_overwritten(rows[good])
        return good

    def selected(self, rows: Int[Tensor, " M"]) -> _TransformedCodebook:
        """The same map over these base rows."""
        return _with_rows(self, "base", rows)

    def learning_rate_scales(self) -> dict[nn.Parameter, float]:
        """``lr_scale``, and the base table's own."""
        scales = super().learning_rate_scales()
        return {p: self.base_lr_scale if p is self.base else scale for p, scale in scales.items()}

    def row_parameter(self) -> nn.Parameter | None:
        """The base table if it is trained."""
        return self.base if self.base.requires_grad else None


class AffineCodebook(_TransformedCodebook):
    """Codes under one shared affine map: ``codes() = T(C)``, T the identity at the start.

    ``structure="full"``: ``C W + b``; ``"diagonal"``: ``C * w + b``; ``"low_rank"``: ``C + C A B + b`` with rank r, A
    random and B zero. The bias matters: without it a linear map fixes the origin and cannot follow a drifting mean.

    Args:
        dim: Size D of a code.
        codebook_size: Number of codes K.
        base: Whether C is trained with the map, or frozen at its random start.
        structure: Form of the linear part.
        bias: Whether b is there.
        lr_scale: Learning rate of map and base table, as a multiple of the encoder's; two numbers set them
            separately. Published maps use 1; a
            larger value keeps more codes in use.
        normalize: Scale codes to unit length.
        initialization: ``"samples"`` or ``"kmeans"``: the training loop initializes the codes from data.

    The rank of ``"low_rank"`` is ``max(1, D // 4)``.

    Example:
        >>> book = AffineCodebook(4, 16)
        >>> torch.equal(book.codes(), book.base)
        True

    References:
        Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (SimVQ), ICCV
        2025, arXiv 2411.02038: full, frozen base, with bias. Deviation: identity start, theirs is a random linear
        layer.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        base: Literal["trained", "frozen"] = "trained",
        structure: Literal["full", "diagonal", "low_rank"] = "full",
        bias: bool = True,
        lr_scale: float | tuple[float, float] = 1.0,
        normalize: bool = False,
        initialization: Initialization = "normal",
    ) -> None:
        super().__init__(dim, codebook_size, base, lr_scale, normalize, initialization, None)
        if structure not in ("full", "diagonal", "low_rank"):
            raise ValueError(f"expected structure 'full', 'diagonal' or 'low_rank', got {structure!r}")
        self.structure = structure
        rank = max(1, dim // 4)
        if structure == "low_rank":
            self.down = nn.Parameter(torch.randn(dim, rank) / math.sqrt(dim))
            self.weight = nn.Parameter(torch.zeros(rank, dim))
        else:
            self.weight = nn.Parameter(torch.eye(dim) if structure == "full" else torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def transform(self, base: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """The affine map."""
        if self.structure == "diagonal":
            mapped = base * self.weight
        elif self.structure == "full":
            mapped = base @ self.weight
        else:
            mapped = base + base @ self.down @ self.weight
        return mapped if self.bias is None else mapped + self.bias

    def solve(self, vectors: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Exact inverse; not finite where the map is singular."""
        shifted = vectors if self.bias is None else vectors - self.bias
        matrix: Tensor
        if self.structure == "diagonal":
            return shifted / self.weight
        if self.structure == "full":
            matrix = self.weight
        else:
            matrix = torch.eye(self.dim).to(vectors) + self.down @ self.weight
        solution, info = torch.linalg.solve_ex(matrix.T, shifted.T)
        return torch.where(info == 0, solution.T, torch.nan)


class MLPCodebook(_TransformedCodebook):
    """Codes under one shared residual network: ``codes() = C + f(C) + b``, f two layers with GELU, its last one zero.

    The default codebook of the program (:func:`gritvq.grit_vq`): with a codebook learning rate of 10 times the
    encoder's it keeps nearly all codes in use without data initialization, revival or auxiliary loss.

    Args:
        dim: Size D of a code.
        codebook_size: Number of codes K.
        hidden_dim: Width of the hidden layer, 4 D by default.
        base: Whether C is trained with the map, or frozen at its random start.
        lr_scale: Learning rate of map and base table, as a multiple of the encoder's; two numbers set them
            separately.
        normalize: Scale codes to unit length.
        initialization: ``"samples"`` or ``"kmeans"``: the training loop initializes the codes from data.
        generator: CPU generator of the base table's start.

    Example:
        >>> book = MLPCodebook(4, 16)
        >>> torch.equal(book.codes(), book.base)
        True

    References:
        The paper behind this library leaves its transform open (You et al., "Generalized Radius and Integrated Codebook
        Transforms for Differentiable Vector Quantization", CPAL 2026, arXiv 2602.01140); this one is our choice.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        hidden_dim: int | None = None,
        base: Literal["trained", "frozen"] = "trained",
        lr_scale: float | tuple[float, float] = 1.0,
        normalize: bool = False,
        initialization: Initialization = "normal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, base, lr_scale, normalize, initialization, generator)
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        check_integer("hidden_dim", hidden_dim)
        self.up, self.down = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def residual(self, base: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """``f(C) + b``."""
        return self.down(F.gelu(self.up(base)))

    def transform(self, base: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """The residual map."""
        return base + self.residual(base)

    def solve(self, vectors: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Damped fixed point ``c <- c + (v - T(c)) / 2``, 50 steps; the caller checks which rows converged."""
        base = vectors.clone()
        for _ in range(50):
            base = base + 0.5 * (vectors - self.transform(base))
        return base
