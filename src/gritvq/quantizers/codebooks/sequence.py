"""Codebooks whose map takes the whole table at once: the codes are the input sequence of a small transformer."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import check_integer
from gritvq.quantizers.base import Codebook
from gritvq.quantizers.codebooks.rowwise import Initialization, normal_table, pair_of_scales
from gritvq.quantizers.functional import at_least_float32

__all__ = ["BridgeCodebook", "TransformerCodebook"]


class _SequenceCodebook(Codebook):
    """A map of the whole table, then a fixed scale and shift per component: ``codes() = map() * scale + shift``.

    Scale and shift are buffers, 1 and 0 unless :meth:`match_moments` sets them.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, dim: int, codebook_size: int, lr_scale: float, normalize: bool, initialization: Initialization
    ) -> None:
        super().__init__(dim, codebook_size, lr_scale=lr_scale, normalize=normalize, initialization=initialization)
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("shift", torch.zeros(dim))

    @abstractmethod
    def mapped(self) -> Float[Tensor, "K D"]:
        """The map's own output, before scale and shift."""

    def table(self) -> Float[Tensor, "K D"]:
        """The map's output, scaled and shifted."""
        return self.mapped() * self.scale + self.shift

    @torch.no_grad()
    def match_moments(self, x: Float[Tensor, "N D"]) -> None:
        """Give the codes, component by component, the mean and the standard deviation of ``x``.

        Where the codes do not differ (the zero start of a bridge), or the data do not, the scale is 1 and only the mean
        is matched. Moments are those before normalization.
        """
        with torch.autocast(self._device_type(), enabled=False):
            own, data = self.mapped(), at_least_float32(x)
        (own_std, own_mean), (std, mean) = (torch.std_mean(each, dim=0, correction=0) for each in (own, data))
        apart = (own_std > 1e-5 * own_mean.abs()) & (own_std > 0) & (std > 0)
        scale = torch.where(apart, std / torch.where(apart, own_std, 1), 1)
        self.scale.copy_(scale)
        self.shift.copy_(mean - own_mean * scale)


class TransformerCodebook(_SequenceCodebook):
    r"""Codes as the output of one transformer block over a frozen random table and a trained position table.

    With ``phi(t) = elu(t) + 1`` and linear attention ``A(h)_i = phi(q_i)^T sum_j phi(k_j) v_j^T / phi(q_i)^T sum_j
    phi(k_j)`` over the K codes as one sequence, one head: ``h = C W_in + P``, ``h <- h + A(LN(h)) W_o``, ``h <- h +
    MLP(LN(h))``, ``codes() = LN(h) W_out``. One step moves every code; time and memory are O(K width^2) and O(K width)
    per forward pass.

    **Not a low-capacity map:** the position table P (K, width) gives every code ``width`` free numbers of its own, 256
    by default, many more than the D of a free table. A count of the parameters must
    include P, which :meth:`fold` removes with everything else. Codes start at the scale of the layers (about
    ``sqrt(1/3)`` per component), not of the data: ``initialization="kmeans"`` or ``"samples"`` match the mean
    and spread of the data.

    Args:
        dim: Size D of a code.
        codebook_size: Number of codes K.
        width: Width of the block.
        lr_scale: Learning rate of block and positions, as a multiple of the encoder's. The base table is never trained.
        normalize: Scale codes to unit length.
        initialization: ``"samples"`` and ``"kmeans"`` ask the training loop to match the codes' moments to the data's.
        generator: CPU generator of base and position table.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> book = TransformerCodebook(4, 16, width=8)
        >>> book.codes().shape, book.base.requires_grad
        (torch.Size([16, 4]), False)

    References:
        Lu et al., "Beyond Stationarity: Rethinking Codebook Collapse in Vector Quantization" (TransVQ), 2026, arXiv
        2602.18896. The block follows a description of the released code: C from N(0, 1/D) and frozen, P from N(0, 1),
        width 256, attention without biases, MLP ratio 2 with GELU, in and out layers without bias. Our choice, because
        not described: default initialization of the layers, biases inside the MLP, the matching of moments.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        width: int = 256,
        lr_scale: float = 1.0,
        normalize: bool = False,
        initialization: Initialization = "normal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, lr_scale, normalize, initialization)
        check_integer("width", width)
        self.base = nn.Parameter(normal_table(dim, codebook_size, generator), requires_grad=False)
        self.positions = nn.Parameter(torch.randn(codebook_size, width, generator=generator))
        self.enter = nn.Linear(dim, width, bias=False)
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm_leave = nn.LayerNorm(width)
        self.leave = nn.Linear(width, dim, bias=False)

    def mapped(self) -> Float[Tensor, "K D"]:
        """The transformer's output."""
        h = self.enter(at_least_float32(self.base)) + self.positions
        query, key, value = self.qkv(self.norm_attention(h)).chunk(3, dim=1)
        query, key = F.elu(query) + 1, F.elu(key) + 1
        h = h + self.mix((query @ (key.T @ value)) / (query @ key.sum(0))[:, None])
        h = h + self.down(F.gelu(self.up(self.norm_mlp(h))))
        return self.leave(self.norm_leave(h))


class _Block(nn.Module):
    """Pre-norm transformer block: full attention with biased qkv, MLP with tanh-GELU, norms without affine part."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)

    def forward(self, h: Float[Tensor, "T w"]) -> Float[Tensor, "T w"]:
        """One block; no positions, so that tokens may be permuted."""
        heads = self.qkv(_plain_norm(h)).unflatten(1, (3, self.num_heads, -1)).permute(1, 2, 0, 3)
        query, key, value = heads.unsqueeze(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        h = h + self.mix(mixed.squeeze(0).transpose(0, 1).flatten(1))
        return h + self.down(F.gelu(self.up(_plain_norm(h)), approximate="tanh"))


def _plain_norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


class BridgeCodebook(_SequenceCodebook):
    r"""Codes as the output of a small transformer over groups of base codes: compress, process, recover.

    Every ``g = codes_per_token`` consecutive rows of C, flattened, become one token by a shared affine map g D ->
    width; ``depth`` pre-norm blocks with full attention run over the ``T = ceil(K / g)`` tokens (and the registers); a
    norm and a shared affine map width -> g D give the codes. No positions, no residual around the whole: permuting
    whole groups of C permutes the codes. One step moves every code, and through the attention every row of C gets a
    gradient. Where g does not divide K the last group is filled up with zeros whose outputs are dropped.

    Time is O(T^2 width + T width^2 + T width g D) per forward pass; :meth:`fold` leaves a plain table.

    **The zero start.** As released, the last layer starts at zero, so at first all K codes are the same point and
    every vector takes code 0. The first step moves only the rows at code 0's place within a group, one in g: K/g + 1
    distinct codes. Each further step can move one more place, and C has no gradient before the second step. A place
    moves only if some vector is nearest to its codes: with data away from zero the codes that moved first take all
    vectors and usage stops at 1/g. ``quantizer.initialize_codebook(x)`` before training puts the other codes at the
    mean of the data, which avoids that. Do not measure usage before this phase is over.

    Args:
        dim: Size D of a code.
        codebook_size: Number of codes K.
        codes_per_token: g, at least 1. The released settings have T = 1024 tokens: g = K / 1024.
        width: Width of the tokens, a multiple of the 4 heads; as wide as the codes were in the paper.
        depth: Number of blocks; MLP ratio 2.
        num_registers: Extra trained tokens in addition to those of the codes.
        base: Whether C is trained along with the map, or frozen at its random start.
        lr_scale: Learning rate of map and base table over the encoder's; two numbers give each its own.

    Raises:
        ValueError: If a size is not positive or ``width`` is not a multiple of 4.

    Example:
        >>> book = BridgeCodebook(4, 10, codes_per_token=3, width=8)
        >>> book.codes().abs().max().item(), book.num_tokens
        (0.0, 4)

    References:
        Chang et al., "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization" (VQBridge, FVQ),
        ICLR 2026, arXiv 2509.10140. After a description of the released code: no norm before compressing (the paper is
        reported to have one), Xavier-uniform weights and zero biases, the last layer zero, C from U(-1/K, 1/K), depth
        2, 4 heads, width 256. Deviations: there codes lie on a square grid in square patches, so K is a square number;
        here groups are consecutive, any K. That the patch size counts codes per token is inferred. Registers are
        common practice, not the paper's. Our choice: the matching of moments.
    """

    num_heads = 4

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codes_per_token: int = 16,
        width: int = 256,
        depth: int = 2,
        num_registers: int = 0,
        base: Literal["trained", "frozen"] = "trained",
        lr_scale: float | tuple[float, float] = 1.0,
    ) -> None:
        of_map, self.base_lr_scale = pair_of_scales(lr_scale)
        super().__init__(dim, codebook_size, of_map, False, "normal")
        for name, value, least in (
            ("codes_per_token", codes_per_token, 1),
            ("depth", depth, 1),
            ("num_registers", num_registers, 0),
        ):
            if value < least:
                raise ValueError(f"expected {name} >= {least}, got {value}")
        if width < 1 or width % self.num_heads:
            raise ValueError(f"expected width > 0, a multiple of the {self.num_heads} heads, got {width}")
        if base not in ("trained", "frozen"):
            raise ValueError(f"expected base 'trained' or 'frozen', got {base!r}")
        self.codes_per_token, self.num_registers = codes_per_token, num_registers
        table = (2 * torch.rand(codebook_size, dim) - 1) / codebook_size
        self.base = nn.Parameter(table, requires_grad=base == "trained")
        self.compress = nn.Linear(codes_per_token * dim, width)
        self.registers = nn.Parameter(0.02 * torch.randn(num_registers, width)) if num_registers else None
        self.blocks = nn.ModuleList([_Block(width, self.num_heads, 2) for _ in range(depth)])
        self.recover = nn.Linear(width, codes_per_token * dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.recover.weight)

    @property
    def num_tokens(self) -> int:
        """T, the groups of codes; registers not counted."""
        return math.ceil(self.codebook_size / self.codes_per_token)

    def mapped(self) -> Float[Tensor, "K D"]:
        """The bridge's output."""
        missing = self.num_tokens * self.codes_per_token - self.codebook_size
        groups = F.pad(at_least_float32(self.base), (0, 0, 0, missing)).view(self.num_tokens, -1)
        h = self.compress(groups)
        if self.registers is not None:
            h = torch.cat([h, self.registers])
        for block in self.blocks:
            h = block(h)
        codes = self.recover(_plain_norm(h[: self.num_tokens]))
        return codes.view(-1, self.dim)[: self.codebook_size]

    def learning_rate_scales(self) -> dict[nn.Parameter, float]:
        """``lr_scale``, and the base table's own."""
        scales = super().learning_rate_scales()
        return {p: self.base_lr_scale if p is self.base else scale for p, scale in scales.items()}
