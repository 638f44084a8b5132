"""The quantizers that a structure is made of, and what each does with the latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gritvq.quantizers.base import Codebook, Quantizer
from gritvq.quantizers.diagnosis.findings import Finding, percent
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["Part", "finite_latents", "leaves", "metric_of", "observed", "tables_of"]

_MOST_VECTORS = 2**16  # that are looked at


class Part(NamedTuple):
    """A quantizer without quantizers inside, and what it did with the latents: rows in its own code space."""

    path: str
    quantizer: Quantizer
    tables: list[tuple[Codebook, Tensor]]
    x: Tensor
    q: Tensor
    indices: Tensor
    metric: Literal["euclidean", "cosine"]


def leaves(quantizer: Quantizer) -> Iterator[tuple[str, Quantizer]]:
    """Quantizers without quantizers inside, by their dotted paths; ``""`` for a single one."""
    found = [
        (path, part)
        for path, part in quantizer.named_modules()
        if isinstance(part, Quantizer) and not any(isinstance(e, Quantizer) for e in part.modules() if e is not part)
    ]
    yield from found if len(found) > 1 else [("", part) for _, part in found]


@torch.no_grad()
def tables_of(part: Quantizer) -> list[tuple[Codebook, Tensor]]:
    """The codebooks of a part and their codes."""
    return [(module, module.codes().detach()) for module in part.modules() if isinstance(module, Codebook)]


def metric_of(part: Quantizer) -> Literal["euclidean", "cosine"]:
    """By which the part searches."""
    return part.assignment.metric if isinstance(part, VectorQuantizer) else "euclidean"


def finite_latents(quantizer: Quantizer, latents: Tensor) -> tuple[Tensor, list[Finding]]:
    """At most so many latents, those that are finite where each is quantized on its own; and how many are not."""
    quantizer._check_input(latents, None)
    if latents.ndim == 1:
        latents = latents[None]
    good = torch.isfinite(latents).all(-1)
    share = 1 - float(good.float().mean()) if good.numel() else 1.0
    if share == 1:
        raise ValueError("expected at least one finite latent, got none; pass the encoder's output")
    if quantizer.layout:
        whole = latents[: max(1, _MOST_VECTORS * len(latents) // max(1, good.numel()))]
        latents = torch.where(torch.isfinite(whole).all(-1, keepdim=True), whole, 0)
    else:
        rows = latents.reshape(-1, latents.shape[-1])[good.reshape(-1)]
        latents = rows[:: -(-len(rows) // _MOST_VECTORS)]
    if share == 0:
        return latents, []
    says = f"{percent(share)} of the latents are NaN or infinite."
    advice = "Lower the encoder's learning rate, clip gradients (gradient_clip), or look for such values in the data."
    return latents, [Finding("latents are not finite", says, share, 0, advice)]


@torch.no_grad()
def observed(twin: Quantizer, latents: Tensor) -> Iterator[Part]:
    """What every quantizer inside does with the latents in eval."""
    calls: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def watch(path: str, part: Quantizer) -> None:
        inner, own = part.quantize, calls.setdefault(path, [])

        def watched(x: Tensor, valid: Tensor) -> Any:
            output = inner(x, valid)
            rows = valid.reshape(-1)
            indices = output.indices.reshape(-1, output.indices.shape[-1])
            own.append(
                (
                    x.reshape(-1, x.shape[-1])[rows].double(),
                    output.quantized.reshape(-1, output.quantized.shape[-1])[rows].double(),
                    indices[(indices >= 0).any(-1)],
                )
            )
            return output

        part.__dict__["quantize"] = watched

    found = list(leaves(twin))
    for path, part in found:
        watch(path, part)
    twin(latents)
    for path, part in found:
        if calls[path]:
            x, q, indices = (torch.cat(each) for each in zip(*calls[path], strict=True))
            yield Part(path, part, tables_of(part), x, q, indices, metric_of(part))
