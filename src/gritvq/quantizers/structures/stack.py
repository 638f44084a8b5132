"""Base of structures: parts that fit together, one surrogate for all, values of a part's indices."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import to_config
from gritvq.quantizers.base import Codebook, Quantizer, check_quantizer, least_exact

__all__ = [
    "Stack",
    "check_hard_part",
    "code_type",
    "drawn_depths",
    "folded_parts",
    "has_trained_maps",
    "value_of",
]


def value_of(part: Quantizer, indices: Int[Tensor, "*tokens Q"]) -> Float[Tensor, "*batch D"]:
    """What a part's indices stand for outside of it; zeros where all channels are -1."""
    return part._zero_masked(part.after(part.lookup(indices)), indices)


def code_type(part: Quantizer) -> torch.dtype:
    """Type of a part's values when they are decoded: float32, or wider where its parameters are."""
    return reduce(torch.promote_types, (p.dtype for p in part.parameters()), torch.float32)


def folded_parts(parts: Sequence[Quantizer]) -> list[Quantizer]:
    """The folded parts; one that appears several times is folded once.

    Where only some would become hard quantizers, whose surrogate or objective the others lack, those stay what they
    are, as frozen copies.
    """
    folded = {part: part.fold() for part in dict.fromkeys(parts)}
    if len({_kind(part) for part in folded.values()}) > 1:
        for part in folded:
            if _kind(folded[part]) != _kind(part):
                folded[part] = copy.deepcopy(part).requires_grad_(False).eval()
    return [folded[part] for part in parts]


def _kind(part: Quantizer) -> tuple[bool, str]:
    return part.surrogate is None, part.objective


def has_trained_maps(part: Quantizer) -> bool:
    """Whether ``before`` or ``after`` may have parameters: any that belong to no codebook count."""
    if type(part).before is Quantizer.before and type(part).after is Quantizer.after:
        return False
    owned = {p for module in part.modules() if isinstance(module, Codebook) for p in module.parameters()}
    return any(p not in owned for p in part.parameters())


def check_hard_part(part: Quantizer, where: str) -> None:
    """Check that a part's values can be summed under one surrogate for the whole.

    Raises:
        ValueError: If it has trained maps, takes larger vectors than it returns, or is differentiable itself.
    """
    check_quantizer(part)
    kind = type(part).__name__
    if part.input_dim != part.dim:
        raise ValueError(
            f"expected parts that return vectors as large as they take, got {kind} (input_dim={part.input_dim}, "
            f"dim={part.dim}); put it around the {where} instead"
        )
    if has_trained_maps(part):
        raise ValueError(
            f"expected parts whose maps before and after quantizing have no parameters, got {kind}: they would get no "
            f"gradient; put the whole {where} into a ProjectedQuantizer instead, or give all levels of a "
            "ResidualQuantizer own_surrogate=True"
        )
    if part.surrogate is None:
        raise ValueError(
            f"expected parts with a surrogate, got {kind} without one, whose values are differentiable themselves; "
            f"the encoder would get its gradient once per level of a {where}: use parts with hard assignments"
        )


class Stack(Quantizer):
    """Several quantizers under one surrogate; subclasses define how vectors are split and combined.

    A part that is differentiable itself (``surrogate`` None) needs none, if all are.
    """

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        super().__init__()
        if len(quantizers) < 1:
            raise ValueError("expected at least one quantizer, got none")
        first = quantizers[0]
        for part in quantizers:
            check_quantizer(part)
            if part.surrogate is not None:
                check_hard_part(part, type(self).__name__)
        surrogates = [None if part.surrogate is None else to_config(part.surrogate) for part in quantizers]
        if any(surrogate != surrogates[0] for surrogate in surrogates):
            names = [type(part.surrogate).__name__ for part in quantizers]
            raise ValueError(f"expected one surrogate for all parts, got {names}; give every part the same one")
        if any(part.objective != first.objective for part in quantizers):
            kinds = [part.objective for part in quantizers]
            raise ValueError(
                f"expected parts whose losses are made for one objective, got {kinds}; their losses cannot be added"
            )
        self.quantizers = nn.ModuleList(quantizers)
        self.surrogate = copy.deepcopy(first.surrogate)
        self.objective = first.objective
        self.codebook_sizes = tuple(size for part in quantizers for size in part.codebook_sizes)
        self.exact = least_exact(*(part.exact for part in quantizers))
        self.draws_indices = any(part.draws_indices for part in quantizers)

    def _parts(self) -> list[Quantizer]:
        return cast("list[Quantizer]", list(self.quantizers))

    def _channels(self, indices: Int[Tensor, "*tokens Q"]) -> list[Tensor]:
        """The index channels of each part."""
        return list(indices.split([len(part.codebook_sizes) for part in self._parts()], dim=-1))

    def fold(self) -> Quantizer:
        """The same structure of folded parts; one that appears several times is folded once."""
        return self._rebuilt(folded_parts(self._parts())).eval()

    @abstractmethod
    def _rebuilt(self, quantizers: Sequence[Quantizer]) -> Quantizer:
        """The same structure of other parts."""


def drawn_depths(num_samples: torch.Size | tuple[int, ...], dropout: float, least: int, most: int, x: Tensor) -> Tensor:
    """Levels that each sample keeps: ``most``, or with probability ``dropout`` a uniform number from ``least`` on."""
    some = torch.randint(least, most + 1, num_samples, device=x.device)
    return torch.where(torch.rand(num_samples, device=x.device) < dropout, some, most)
