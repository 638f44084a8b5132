"""State dicts of other libraries, read without leaving anything out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["Weights"]


class Weights:
    """Tensors by name, of which none may be left over: a tensor nobody read is a setting nobody knew.

    Args:
        state: A state dict.
        prefix: Beginning of the names that belong to the part that is read, such as ``"quantizer."``; others do not
            count.
        required: Whether there must be such names; modules without parameters have none.

    Raises:
        ValueError: If no name begins like this, though one is required.

    Example:
        >>> import torch
        >>> weights = Weights({"vq.codes": torch.zeros(4, 2), "vq.steps": torch.tensor(3)}, "vq.")
        >>> weights.take("codes", (4, 2)).shape
        torch.Size([4, 2])
        >>> weights.ignore("steps")
        >>> weights.finish()
    """

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "", *, required: bool = True) -> None:
        self.prefix = prefix
        self._left = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        if required and not self._left:
            found = ", ".join(sorted(state)[:3]) or "none"
            raise ValueError(f"expected tensors whose names begin with {prefix!r}, got {found}; give another prefix")

    def __contains__(self, name: str) -> bool:
        return name in self._left

    @property
    def names(self) -> list[str]:
        """Names that nobody has read yet, without the prefix."""
        return sorted(self._left)

    def take(self, name: str, shape: Sequence[int | None] | None = None) -> Tensor:
        """A tensor, which counts as read from now on.

        Args:
            name: Its name without the prefix.
            shape: What its shape must be; None for any size.

        Raises:
            ValueError: If there is no such tensor, or its shape differs.
        """
        if name not in self._left:
            near = ", ".join(self.names[:5]) or "none left"
            raise ValueError(
                f"expected a tensor {self.prefix}{name}, got {near}; check which module the state dict is of"
            )
        value = self._left.pop(name)
        if shape is not None and (
            value.ndim != len(shape)
            or any(size not in (None, given) for size, given in zip(shape, value.shape, strict=True))
        ):
            wanted = tuple("any" if size is None else size for size in shape)
            raise ValueError(
                f"expected {self.prefix}{name} of shape {wanted}, got {tuple(value.shape)}; check the settings"
            )
        return value.detach()

    def part(self, prefix: str) -> Weights:
        """The tensors whose names begin like this, which count as read here and have to be read there.

        Raises:
            ValueError: If there are none.
        """
        found = self.names
        own = {self.prefix + name: self._left.pop(name) for name in found if name.startswith(prefix)}
        if not own:
            known = ", ".join(found[:3]) or "none"
            raise ValueError(
                f"expected tensors whose names begin with {self.prefix + prefix!r}, got {known}; check which module "
                "the state dict is of"
            )
        return Weights(own, self.prefix + prefix)

    def ignore(self, *patterns: str) -> None:
        """Leave out tensors that say nothing about indices or values, by regular expressions for whole names."""
        for name in self.names:
            if any(re.fullmatch(pattern, name) for pattern in patterns):
                del self._left[name]

    def finish(self) -> None:
        """Check that every tensor was read.

        Raises:
            ValueError: If one is left over.
        """
        if self._left:
            raise ValueError(
                f"expected no other tensors, got {', '.join(self.prefix + name for name in self.names[:3])}"
                f"{f' and {len(self._left) - 3} more' if len(self._left) > 3 else ''}; the module has parts that this "
                "reader does not know, so converted indices could differ"
            )
