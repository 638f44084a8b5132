"""Arguments of constructors of vector-quantize-pytorch, and what they are good for here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from gritvq.interop.weights import Weights
from gritvq.quantizers.base import Quantizer

__all__ = ["Kind", "Settings"]


class Kind(NamedTuple):
    """One of their classes.

    Attributes:
        build: Makes our quantizer.
        read: Arguments that are used here, with their defaults.
        unused: Arguments that change nothing here: k-means, synchronization, shapes of what is returned.
        training: Defaults of arguments without a counterpart that act in training only.
        fixed: Defaults of arguments without a counterpart that change indices or values.
        holds_tensors: Whether a state dict always has tensors of it.
    """

    build: Callable[[Weights, Settings], Quantizer]
    read: dict[str, Any]
    unused: tuple[str, ...]
    training: dict[str, Any]
    fixed: dict[str, Any]
    holds_tensors: bool = True


class Settings:
    """Arguments of one of their constructors, complete and checked."""

    def __init__(self, kind: str, described: Kind, given: Mapping[str, Any], trainable: bool) -> None:
        known = {**described.read, **described.training, **described.fixed}
        unknown = [name for name in given if name not in known and name not in described.unused]
        if unknown:
            raise ValueError(
                f"expected arguments that {kind} takes, got {', '.join(map(repr, unknown))}; known are "
                f"{', '.join(sorted({*known, *described.unused}))}"
            )
        given = {name: None if isinstance(value, nn.Identity) else value for name, value in given.items()}
        for name, default in described.fixed.items():
            if given.get(name, default) != default:
                raise ValueError(
                    f"expected {name}={default!r}, got {given[name]!r}: what it computes has no counterpart here, so "
                    "indices or values would differ; keep the other package for this model"
                )
        for name, default in described.training.items():
            if trainable and given.get(name, default) != default:
                raise ValueError(
                    f"expected {name}={default!r} to go on training, got {given[name]!r}, which has no counterpart "
                    "here; pass trainable=False for a quantizer to encode and decode with"
                )
        self.kind, self.trainable, self._values = kind, trainable, {**known, **given}

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name)

    def replaced(self, **values: Any) -> Settings:
        """The same settings with other values."""
        other = object.__new__(Settings)
        other.kind, other.trainable, other._values = self.kind, self.trainable, {**self._values, **values}
        return other

    def check(self, name: str, found: Any) -> None:
        """Compare an argument, where it is given, with what the tensors say.

        Raises:
            ValueError: If they differ.
        """
        wanted = self[name]
        if wanted is not None and wanted != found:
            raise ValueError(f"expected {name}={wanted!r} as given, got tensors of {found!r}; check the arguments")

    def required(self, name: str) -> Any:
        """An argument that no tensor shows.

        Raises:
            ValueError: If it is not given.
        """
        if self[name] is None:
            raise ValueError(f"expected {name} for {self.kind}, got none; pass what its constructor was given")
        return self[name]

    def channels_first(self) -> bool:
        """Whether their module takes vectors with the channels at axis 1."""
        names = ("accept_image_fmap", "accept_3d_fmap", "channel_first", "is_channel_first")
        return self["channel_last"] is False or any(bool(self[name]) for name in names)

    def dropout(self, num_levels: int) -> float:
        """Our probability of dropping levels.

        Raises:
            ValueError: If theirs draws otherwise than uniformly.
        """
        if not (self.trainable and self["quantize_dropout"] and num_levels > 1):
            return 0.0
        for name, default in (("quantize_dropout_cutoff_index", 0), ("quantize_dropout_multiple_of", 1)):
            if self[name] != default:
                raise ValueError(
                    f"expected {name}={default} to go on training, got {self[name]!r}: numbers of levels are drawn "
                    "uniformly here; pass trainable=False for a quantizer to encode and decode with"
                )
        return 1.0
