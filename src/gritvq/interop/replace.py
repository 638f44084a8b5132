"""Another quantizer in a model of somebody else: one call, and the model's own code stays as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.interop.codecs import from_dac, from_encodec, from_mimi
from gritvq.quantizers.base import Codebook, Quantizer, QuantizerOutput
from gritvq.quantizers.functional import perplexity
from gritvq.quantizers.structures import ProjectedQuantizer
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = ["Convention", "Layout", "QuantizerAdapter", "replace_quantizer"]

Layout = Literal["channels_first", "channels_last"]
Convention = Literal["vector-quantize-pytorch", "taming", "diffusers", "tensor"]

# Sizes of vectors, by the names that other libraries' quantizers keep them under.
_DIMS = ("dim", "e_dim", "vq_embed_dim", "embedding_dim", "input_dim", "dimension")
# Tables of codes, by the names of their tensors.
_TABLES = re.compile(
    r"((embedding|embed|codebook|embeddings|_embedding)\.weight|(_codebook\.|codebook\.)?embed|codebook)"
)


class QuantizerAdapter(nn.Module):
    """A quantizer of this library that is called, and answers, like one of another library.

    Conventions of ``returns``, with indices without their last axis where there is one index channel:

    - ``"vector-quantize-pytorch"``: ``quantized, indices, loss``; indices have the shape of the positions.
    - ``"taming"``: ``quantized, loss, (perplexity, None, indices)``; indices are flat, and the perplexity is that of
      the batch, None if there are several index channels.
    - ``"diffusers"``: the same with None for the perplexity, which their ``VectorQuantizer`` does not compute either.
    - ``"tensor"``: ``quantized`` alone. The losses are then in :attr:`losses` until the next call.
    - a function of your own, of a :class:`gritvq.QuantizerOutput` whose values are in the model's layout and whose
      indices are ours, (*positions, Q).

    The loss is the sum of the quantizer's own losses. In eval there are none, and it is 0. A model that calls other
    methods of its quantizer, or reads its parameters, needs an adapter of its own.

    Args:
        quantizer: The quantizer inside, a submodule like any other: optimizers, state dicts and callbacks find it.
        layout: Where the model has its channels: ``"channels_first"`` for (B, D, T) and (B, D, H, W), or
            ``"channels_last"``.
        returns: What a call returns.

    Raises:
        ValueError: If there is no quantizer inside, or layout or convention are unknown.

    Example:
        >>> from gritvq import grit_vq
        >>> adapter = QuantizerAdapter(grit_vq(4, 16), returns="taming")
        >>> quantized, loss, (_, _, indices) = adapter(torch.randn(2, 4, 8, 8))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 4, 8, 8]), torch.Size([128]))
        >>> torch.equal(adapter.get_codebook_entry(indices, (2, 8, 8, 4)), quantized)
        True
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        layout: Layout = "channels_first",
        returns: Convention | Callable[[QuantizerOutput], Any],
    ) -> None:
        super().__init__()
        if not isinstance(quantizer, Quantizer):
            raise ValueError(
                f"expected a quantizer of this library, got {type(quantizer).__name__}; pass one such as "
                "grit_vq(dim, codebook_size), without ChannelsFirst: the argument layout moves the channels"
            )
        if layout not in get_args(Layout):
            raise ValueError(
                f"expected a layout among {get_args(Layout)}, got {layout!r}; where does your model have D?"
            )
        if not callable(returns) and returns not in get_args(Convention):
            raise ValueError(
                f"expected a convention among {get_args(Convention)}, got {returns!r}; or pass a function that makes "
                "what your model expects of a QuantizerOutput"
            )
        self.quantizer, self.layout, self.returns = quantizer, layout, returns
        self.losses: dict[str, Tensor] = {}

    def forward(self, x: Float[Tensor, " B *layout"], mask: Tensor | None = None) -> Any:
        """Quantize, in the model's layout and convention.

        Args:
            x: Vectors (B, D, *positions), or (B, *positions, D).
            mask: True where a vector is valid, (B, *positions).

        Raises:
            ValueError: If the axis of the channels has another size than the quantizer's vectors.
        """
        first = self.layout == "channels_first"
        axis = 1 if first else -1
        if x.ndim < 2 or x.shape[axis] != self.quantizer.input_dim:
            raise ValueError(
                f"expected vectors of size {self.quantizer.input_dim} along axis {axis} ({self.layout}), got "
                f"{tuple(x.shape)}; give another layout, or put the quantizer into ProjectedQuantizer(quantizer, dim)"
            )
        output = self.quantizer(x.movedim(1, -1) if first else x, mask)
        self.losses = output.losses
        output = output._replace(quantized=self._placed(output.quantized))
        if callable(self.returns):
            return self.returns(output)
        if self.returns == "tensor":
            return output.quantized
        if self.returns == "vector-quantize-pytorch":
            return output.quantized, self._told(output.indices), output.loss
        flat = self._told(output.indices.flatten(0, -2))
        spread = None
        if self.returns == "taming" and len(self.quantizer.codebook_sizes) == 1:
            spread = perplexity(flat[flat >= 0].unique(return_counts=True)[1])
        return output.quantized, output.loss, (spread, None, flat)

    def get_codes_from_indices(self, indices: Int[Tensor, "*tokens"]) -> Float[Tensor, " B *layout"]:
        """Values of indices as the convention of vector-quantize-pytorch returns them, in the model's layout.

        Example:
            >>> from gritvq import grit_vq
            >>> adapter = QuantizerAdapter(grit_vq(4, 16), layout="channels_last", returns="vector-quantize-pytorch")
            >>> quantized, indices, loss = adapter(torch.randn(2, 10, 4))
            >>> torch.equal(adapter.get_codes_from_indices(indices), quantized)
            True
        """
        return self._placed(self.quantizer.decode(self._asked(indices)))

    def get_output_from_indices(self, indices: Int[Tensor, "*tokens"]) -> Float[Tensor, " B *layout"]:
        """The same: what comes out has passed all projections."""
        return self.get_codes_from_indices(indices)

    def get_codebook_entry(
        self, indices: Int[Tensor, "*tokens"], shape: tuple[int, ...] | None = None
    ) -> Float[Tensor, "*layout D"]:
        """Values of flat indices, as taming-transformers and diffusers ask for them.

        Args:
            indices: Flat indices (N,), or (N, Q) with several index channels.
            shape: (B, H, W, D) or (B, T, D), channels last whatever the layout; the values are then in the model's
                layout. None for (N, D).

        Raises:
            ValueError: If the shape does not fit the quantizer.
        """
        channels = len(self.quantizer.codebook_sizes)
        if shape is None:
            return self.quantizer.decode(indices.reshape(-1, channels))
        if shape[-1] != self.quantizer.dim:
            raise ValueError(
                f"expected a shape (B, *positions, {self.quantizer.dim}), channels last, got {tuple(shape)}; move the "
                "size of the vectors to the end"
            )
        tokens = self.quantizer.token_shape(tuple(shape[:-1]))
        return self._placed(self.quantizer.decode(indices.reshape(*tokens, channels)))

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the losses, which belong to a graph."""
        return {**self.__dict__, "losses": {}}

    def extra_repr(self) -> str:
        """Layout and convention, for ``print``."""
        return f"layout={self.layout!r}, returns={self.returns!r}"

    def _placed(self, values: Tensor) -> Tensor:
        """Values in the model's layout."""
        return values.movedim(-1, 1).contiguous() if self.layout == "channels_first" else values

    def _told(self, indices: Tensor) -> Tensor:
        return indices.squeeze(-1) if len(self.quantizer.codebook_sizes) == 1 else indices

    def _asked(self, indices: Tensor) -> Tensor:
        return indices.unsqueeze(-1) if len(self.quantizer.codebook_sizes) == 1 else indices


def replace_quantizer(
    model: nn.Module,
    name: str,
    quantizer: Quantizer,
    *,
    layout: Layout = "channels_first",
    returns: Convention | Callable[[QuantizerOutput], Any],
    start_from: bool | Tensor = False,
) -> QuantizerAdapter:
    """Put a quantizer in the place of the one that a model has.

    The model's code stays as it is: it finds a :class:`QuantizerAdapter` under the old name, which takes and returns
    what the old quantizer did. Replace before creating the optimizer; then ``adapter.quantizer.attach(optimizer)``
    gives the codes their learning rate and updates them after every step.

    Args:
        model: The model, which is changed.
        name: Name of the quantizer in it, such as ``"quantize"`` or ``"bottleneck.vq"``. Where the same module is used
            under several names, all of them get the new one.
        quantizer: The new quantizer, for vectors of the same size.
        layout: Where the model has its channels, as in :class:`QuantizerAdapter`.
        returns: What the model expects of its quantizer, as in :class:`QuantizerAdapter`.
        start_from: Whether the new codes start from the old ones; or the codes to start from (K, D). As many codes are
            taken over one by one, so that indices keep their meaning; fewer or more are fitted to the old ones
            (:meth:`gritvq.Quantizer.initialize_codebook`). The levels of an EnCodec, DAC or Mimi are taken over level
            by level, with their maps, by a quantizer of the same levels.

    Returns:
        The adapter; the quantizer in it is ``adapter.quantizer``. It is on the old one's device, in its mode.

    Raises:
        ValueError: If there is no such submodule, sizes differ, a setting is unknown, or there are no codes to start
            from.

    Example:
        >>> from gritvq import grit_vq
        >>> class VQ(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embedding = nn.Embedding(16, 4)
        >>> model = nn.ModuleDict({"encoder": nn.Linear(8, 4), "vq": VQ()})
        >>> codes = model["vq"].embedding.weight
        >>> adapter = replace_quantizer(model, "vq", grit_vq(4, 16), returns="tensor", start_from=True)
        >>> torch.equal(model["vq"].quantizer.codebook.codes(), codes)
        True
    """
    adapter = QuantizerAdapter(quantizer, layout=layout, returns=returns)
    old = _submodule(model, name)
    _check_dim(old, name, quantizer)
    tensors = old.state_dict()
    place = next((value.device for value in tensors.values() if isinstance(value, Tensor)), None)
    if place is not None:
        adapter.to(place)
    if isinstance(start_from, Tensor):
        _start_from_codes(quantizer, start_from)
    elif start_from:
        _start_from_old(quantizer, {n: value for n, value in tensors.items() if isinstance(value, Tensor)}, name)
    adapter.train(old.training)
    for other in [other for other, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(other, adapter)
    return adapter


def _submodule(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name and name in modules:
        return modules[name]
    alike = [
        other for other, module in modules.items() if other and "quant" in f"{other} {type(module).__name__}".lower()
    ]
    outer = [other for other in alike if not any(other.startswith(f"{more}.") for more in alike)]
    told = f"; quantizers may be {', '.join(outer[:5])}" if outer else "; print(model) shows the names"
    raise ValueError(f"expected the name of a submodule of {type(model).__name__}, got {name!r}{told}")


def _check_dim(old: nn.Module, name: str, quantizer: Quantizer) -> None:
    """Compare the sizes of vectors, where the old module says its own."""
    dims = [value for each in _DIMS if type(value := getattr(old, each, None)) is int]
    if dims and (quantizer.input_dim, quantizer.dim) != (dims[0], dims[0]):
        raise ValueError(
            f"expected a quantizer of vectors of size {dims[0]}, as {name} is, got {type(quantizer).__name__} "
            f"({quantizer.input_dim} in, {quantizer.dim} out); build it with dim={dims[0]}, or put it into "
            f"ProjectedQuantizer(quantizer, {dims[0]})"
        )


def _start_from_old(quantizer: Quantizer, tensors: dict[str, Tensor], name: str) -> None:
    """Take over the codes of another library's module."""
    if any(re.fullmatch(r"layers\.\d+\._codebook\.embed", each) and value.ndim == 3 for each, value in tensors.items()):
        raise ValueError(
            f"expected a quantizer that says itself what it is, got {name}, a residual one of vector-quantize-pytorch; "
            "read it with from_vector_quantize_pytorch(...), pass what that returns, and start_from=False"
        )
    for pattern, reader in (
        (r"(vq\.)?layers\.\d+\._?codebook\.embed", from_encodec),
        (r"quantizers\.\d+\.in_proj\..*", from_dac),
        (r"(semantic_residual_vector_quantizer|rvq_first)\..*", from_mimi),
    ):
        if any(re.fullmatch(pattern, each) for each in tensors):
            _take_over(reader(tensors, prefix=""), quantizer, name)
            return
    tables = {each: value for each, value in tensors.items() if _TABLES.fullmatch(each)}
    tables = {each: value[0] if value.ndim == 3 and len(value) == 1 else value for each, value in tables.items()}
    if len(tables) != 1:
        raise ValueError(
            f"expected one table of codes in {name}, got {', '.join(tables) or ', '.join(tensors) or 'no tensors'}; "
            "pass the codes themselves: start_from=codes"
        )
    _start_from_codes(quantizer, next(iter(tables.values())))


@torch.no_grad()
def _start_from_codes(quantizer: Quantizer, codes: Tensor) -> None:
    """These codes, one by one where there are as many; else fitted to them."""
    if codes.ndim != 2 or codes.shape[1] != quantizer.input_dim:
        raise ValueError(
            f"expected codes (K, {quantizer.input_dim}) to start from, got {tuple(codes.shape)}; those of another "
            "space cannot be taken over: pass start_from=False, and call quantizer.initialize_codebook(latents)"
        )
    if not any(isinstance(module, Codebook) for module in quantizer.modules()):
        raise ValueError(
            f"expected a quantizer with a codebook to start from codes, got {type(quantizer).__name__}, which has "
            "none; pass start_from=False"
        )
    codes = codes.detach().to(next(quantizer.parameters()).device)
    if quantizer.codebook_sizes != (len(codes),) or not _written(quantizer, codes):
        quantizer.initialize_codebook(codes)


def _written(quantizer: Quantizer, codes: Tensor) -> bool:
    """Whether all codes could be written one by one."""
    if not isinstance(quantizer, VectorQuantizer) or quantizer.codebook.writes is None:
        return False
    rows = torch.arange(len(codes), device=codes.device)
    return bool(quantizer.codebook.write(rows, codes).all())


@torch.no_grad()
def _take_over(read: Quantizer, quantizer: Quantizer, name: str) -> None:
    """Codes and maps of a quantizer that was read, by one of the same levels."""
    theirs, ours = _levels(read), _levels(quantizer)
    if [size for _, size in theirs] != [size for _, size in ours] or read.input_dim != quantizer.input_dim:
        raise ValueError(
            f"expected a quantizer of the levels of {name} to start from its codes, {_sizes(theirs)}, got "
            f"{_sizes(ours)}; build it of the same sizes, or pass start_from=False"
        )
    for (old, _), (new, _) in zip(theirs, ours, strict=True):
        if isinstance(old, ProjectedQuantizer) and isinstance(new, ProjectedQuantizer):
            new.project_in.load_state_dict(old.project_in.state_dict())
            new.project_out.load_state_dict(old.project_out.state_dict())
        elif not _written(cast("Quantizer", new), cast("VectorQuantizer", old).codebook.codes()):
            kind = type(cast("VectorQuantizer", new).codebook).__name__
            raise ValueError(
                f"expected codebooks whose codes can be written, got {kind}; use FreeCodebook, or pass start_from=False"
            )


def _levels(quantizer: Quantizer) -> list[tuple[nn.Module, tuple[str, int, int]]]:
    """Quantizers with tables and maps around them, in order, with their kinds and sizes."""
    found: list[tuple[nn.Module, tuple[str, int, int]]] = []
    for module in quantizer.modules():
        if isinstance(module, VectorQuantizer):
            found.append((module, ("codes", module.codebook.codebook_size, module.dim)))
        elif isinstance(module, ProjectedQuantizer):
            found.append((module, ("maps", module.dim, module.quantizer.input_dim)))
    return found


def _sizes(levels: list[tuple[nn.Module, tuple[str, int, int]]]) -> str:
    return ", ".join(f"{kind} {a} x {b}" for _, (kind, a, b) in levels) or "no tables"
