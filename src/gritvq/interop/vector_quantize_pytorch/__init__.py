"""Quantizers of the package vector-quantize-pytorch, read as ours: the same indices and values for the same latents.

Nothing of that package is imported: a state dict and the arguments of the constructor say everything. What its modules
compute in eval, as of version 1.32, is written down here class by class; what cannot be computed by quantizers of ours
is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gritvq.interop.vector_quantize_pytorch.kinds import KINDS
from gritvq.interop.vector_quantize_pytorch.settings import Settings
from gritvq.interop.weights import Weights
from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.structures import ChannelsFirst

__all__ = ["from_vector_quantize_pytorch"]


def from_vector_quantize_pytorch(
    state: Mapping[str, Tensor], kind: str, *, prefix: str = "", trainable: bool = True, **arguments: Any
) -> Quantizer | ChannelsFirst:
    """Turn a quantizer of vector-quantize-pytorch into one of ours with the same indices and values.

    In eval, indices and decoded values are those of their module, up to vectors that are equally near to two codes
    within rounding. The last axis of the indices holds the channels here, also if there is only one: their (B, N) is
    (B, N, 1), heads are channels, and groups of residual levels come group by group.

    Args:
        state: State dict of their module, or of a model that has it.
        kind: Name of their class: ``"VectorQuantize"``, ``"ResidualVQ"``, ``"GroupedResidualVQ"``, ``"SimVQ"``,
            ``"ResidualSimVQ"``, ``"FSQ"``, ``"ResidualFSQ"``, ``"LFQ"`` (binary spherical quantization with
            ``spherical=True``) or ``"ResidualLFQ"``.
        prefix: Beginning of the names that belong to the module, such as ``"quantizer."``.
        trainable: Whether training can go on, with the moving averages and losses of their settings. False gives a
            quantizer to encode and decode with, and takes also settings whose training has no counterpart here.
        arguments: What their constructor was given, by name. Those that tensors show as well are checked against them.

    Returns:
        The quantizer in training mode, in eval mode if it is not trainable; in a :class:`gritvq.ChannelsFirst` where
        theirs takes channels first.

    Raises:
        ValueError: If the class or an argument is unknown, a setting cannot be represented exactly, tensors are left
            over, missing or of another shape, or the codebook still waits for its first batch (``kmeans_init``).

    Example:
        >>> codes = torch.randn(1, 16, 4)
        >>> state = {"_codebook.initted": torch.tensor(True), "_codebook.embed": codes}
        >>> state |= {"_codebook.cluster_size": torch.ones(1, 16), "_codebook.embed_avg": codes}
        >>> quantizer = from_vector_quantize_pytorch(state, "VectorQuantize", dim=4, codebook_size=16, decay=0.99)
        >>> bool((quantizer.encode(codes[0])[:, 0] == torch.arange(16)).all())
        True
    """
    if kind not in KINDS:
        raise ValueError(f"expected a class among {', '.join(KINDS)}, got {kind!r}; others cannot be read")
    described = KINDS[kind]
    settings = Settings(kind, described, arguments, trainable)
    weights = Weights(state, prefix, required=described.holds_tensors)
    quantizer = described.build(weights, settings)
    weights.finish()
    place = next((value.device for name, value in state.items() if name.startswith(prefix)), torch.device("cpu"))
    quantizer = quantizer.to(place)
    if not trainable:
        quantizer.requires_grad_(False)
    whole = ChannelsFirst(quantizer) if settings.channels_first() else quantizer
    return whole if trainable else whole.eval()
