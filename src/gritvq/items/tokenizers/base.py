"""The base class of item tokenizers, which map embeddings of items to tuples of indices and back."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from gritvq.component import check_integer, eval_mode
from gritvq.export import Format
from gritvq.items.ids.checks import checked_codes
from gritvq.lazy import optional
from gritvq.quantizers.base import Quantizer
from gritvq.tokenizer import Tokenizer

__all__ = ["Embeddings", "ItemTokenizer", "equal_sizes", "tracked"]

Embeddings = Tensor | NDArray[Any]
_Self = TypeVar("_Self", bound="ItemTokenizer")
_Item = TypeVar("_Item")
_MOST_LEVELS = 1 << 12
_LARGEST = 1e15  # sums of some hundred squares of this do not overflow float32


class ItemTokenizer(Tokenizer):
    """Maps item embeddings (n, D) to indices (n, L), one per level, and back.

    Embeddings are tensors or arrays of any floating type, also memory-mapped; they are read in chunks and converted to
    float32. The indices of a row do not depend on the batch size or on other rows. In the literature on semantic ids
    indices are called codes, hence the name of the argument.

    Subclasses implement :meth:`_fit`, :meth:`_encoder`, :meth:`_decode` and :meth:`_last_level`, and create their
    buffers in :meth:`_allocate` for loading.

    Attributes:
        codebook_sizes: Number of codes of each of the L levels.
    """

    codebook_sizes: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self._dim: int | None = None

    @property
    def dim(self) -> int:
        """Size D of an embedding.

        Raises:
            ValueError: Before :meth:`fit`.
        """
        if self._dim is None:
            raise ValueError(f"expected a fitted {type(self).__name__}, got a new one; call fit(embeddings) first")
        return self._dim

    def fit(self: _Self, x: Embeddings, progress: bool = False) -> _Self:
        """Learn the codes from embeddings, which are copied to memory as float32; returns the tokenizer itself.

        Args:
            x: Embeddings (n, D). A sample of some hundred rows per code is enough.
            progress: Whether to show a progress bar; needs the extra ``train``.

        Raises:
            ValueError: If the shape or type is wrong, a number is not finite or above 1e15, or there are fewer
                different rows than codes.
        """
        _check_array(x, None)
        size = max(self.codebook_sizes)
        if len(x) < size:
            raise ValueError(
                f"expected at least as many items as codes, got {len(x)} items for {size} codes; use a smaller "
                f"codebook_size, such as {max(1, len(x) // 4)}, or more items"
            )
        rows = self._rows(x, 0, len(x))
        with torch.no_grad():
            self._fit(rows, progress)
        self._dim, self._saved = rows.shape[1], None
        return self.eval()

    @torch.no_grad()
    def encode(self, x: Embeddings, batch_size: int = 2048, progress: bool = False) -> Int[Tensor, "n L"]:
        """Indices of embeddings, int64 on the CPU.

        Args:
            x: Embeddings (n, D).
            batch_size: Rows per batch; affects only memory and time.
            progress: Whether to show a progress bar; needs the extra ``train``.

        Raises:
            ValueError: Before :meth:`fit`, if the shape or type is wrong, or a number is not finite.
        """
        chunks = self._chunks(x, batch_size)
        codes = torch.empty(len(x), len(self.codebook_sizes), dtype=torch.int64)  # avoids fragmentation
        with eval_mode(self):
            encode = self._encoder()
            for place, rows in zip(tracked(codes.split(batch_size), "encoding", progress), chunks, strict=False):
                place.copy_(encode(rows))
        return codes

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n D"]:
        """Embeddings of indices, float32.

        Raises:
            ValueError: Before :meth:`fit`, or if the shape, the type or an index is wrong.
        """
        _ = self.dim
        codes = checked_codes(codes, self.codebook_sizes).to(self._device())
        with eval_mode(self):
            return self._decode(codes)

    @torch.no_grad()
    def decode_joined(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n d"]:
        """What :meth:`decode` is made of: of several views, the vectors in which all have one unit, and their weights.

        Raises:
            ValueError: As :meth:`decode`.
        """
        _ = self.dim
        codes = checked_codes(codes, self.codebook_sizes).to(self._device())
        with eval_mode(self):
            return self._decode_joined(codes)

    def export(self, folder: str | os.PathLike[str], format: Format = "onnx") -> tuple[Path, Path]:
        """Write the tokenizer as two programs that run without gritvq, for any number of items.

        ``encoder`` maps ``embeddings`` (n, D), float32, to ``indices`` (n, L), int64, as :meth:`encode` does: it
        computes in float64 what would depend on rounding. ``decoder`` maps ``indices`` to ``embeddings`` as
        :meth:`decode` does. Inputs are not checked.

        Args:
            folder: Folder of the files; files of the same names are replaced.
            format: See :func:`gritvq.export.write_programs`.

        Returns:
            Paths of the encoder and the decoder.

        Raises:
            ValueError: Before :meth:`fit`, if packages are missing, or if an operator cannot be exported.
        """
        from gritvq.items.tokenizers.program import write_item_tokenizer

        return write_item_tokenizer(self, folder, format)

    @torch.no_grad()
    def last_level(self, x: Embeddings, batch_size: int = 2048) -> tuple[Float[Tensor, "n d"], Float[Tensor, "K d"]]:
        """Inputs of the last level and its table; the last index is that of the nearest row of the table.

        For collision policies that move an item to another code of the last level.

        Raises:
            ValueError: As :meth:`encode`, or if the last level has no table.
        """
        with eval_mode(self):
            parts = [self._last_level(rows) for rows in self._chunks(x, batch_size)]
            if not parts:
                table = self._last_level(torch.zeros(1, self.dim, device=self._device()))[1].cpu()
                return table[:0], table
        return torch.cat([vectors.cpu() for vectors, _ in parts]), parts[0][1].cpu()

    @torch.no_grad()
    def perturbed_codes(
        self, x: Embeddings, scale: float = 0.1, num_draws: int = 2, seed: int = 0, batch_size: int = 2048
    ) -> Int[Tensor, "S n L"]:
        """Indices of embeddings with Gaussian noise, to measure robustness (``SemanticIds.report(perturbed=...)``).

        Args:
            x: Embeddings (n, D).
            scale: Root mean square length of the noise, relative to that of ``x - mean(x)``.
            num_draws: Number S of noisy copies of every embedding.
            seed: Seed of the noise.
            batch_size: Rows per batch; the noise does not depend on it.

        Raises:
            ValueError: As :meth:`encode`, or if a number is out of range.
        """
        if not scale >= 0 or num_draws < 1:
            raise ValueError(f"expected scale >= 0 and num_draws >= 1, got {scale} and {num_draws}; give larger ones")
        found = torch.empty(num_draws, len(x), len(self.codebook_sizes), dtype=torch.int64)
        total = torch.zeros(2, self.dim, dtype=torch.float64)
        for rows in self._chunks(x, batch_size):
            part = rows.double().cpu()
            total += torch.stack([part.sum(0), part.square().sum(0)])
        mean, square = total / max(len(x), 1)
        deviation = scale * float((square - mean.square()).clamp_min(0).mean().sqrt())
        random = np.random.default_rng(seed)  # its numbers do not depend on the shapes drawn
        with eval_mode(self):
            encode = self._encoder()
            for draw in found:
                for place, rows in zip(draw.split(batch_size), self._chunks(x, batch_size), strict=False):
                    noise = torch.from_numpy(random.standard_normal(rows.shape, dtype=np.float32))
                    place.copy_(encode(rows + deviation * noise.to(rows.device)))
        return found

    @torch.no_grad()
    def searches(self, x: Embeddings, batch_size: int = 2048) -> dict[str, tuple[Quantizer, Float[Tensor, "n d"]]]:
        """The quantizers inside and the vectors that each is given, by name, for :func:`gritvq.quantizers.diagnosis`.

        A tokenizer whose networks lead to one quantizer has that one, named ``""``; one that searches tables has
        ``level1``, ``level2``, ... or, where they are parts of a vector, ``part1``, ``part2``, ...

        Args:
            x: Embeddings (n, D), at least one.
            batch_size: Rows per batch; affects only memory and time.

        Raises:
            ValueError: As :meth:`encode`.

        Example:
            >>> from gritvq.items import ResidualKMeans
            >>> from gritvq.quantizers.diagnosis import examine
            >>> x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
            >>> found = ResidualKMeans(16, 2).fit(x).searches(x)
            >>> {name: examine(quantizer, latents) for name, (quantizer, latents) in found.items()}
            {'level1': [], 'level2': []}
        """
        with eval_mode(self):
            groups = [self._searches(rows) for rows in self._chunks(x, batch_size)]
        return {
            name: (quantizer, torch.cat([group[name][1] for group in groups]))
            for name, (quantizer, _) in groups[0].items()
        }

    def _settings(self) -> dict[str, Any]:
        """The size of an embedding, which :meth:`fit` determines."""
        return {"dim": self.dim}

    def _restore(self, config: Mapping[str, Any]) -> None:
        """Make the buffers."""
        dim = config.get("dim")
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"expected the size of an embedding as 'dim' in config.json, got {dim!r}; copy it again")
        try:
            self._allocate(dim)
        except (OverflowError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"expected sizes in config.json that fit into memory, got larger ones ({error}); copy it again"
            ) from error
        self._dim = dim

    # --- implemented by subclasses ------------------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, x: Float[Tensor, "n D"], progress: bool) -> None:
        """Learn from checked rows."""

    @abstractmethod
    def _encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        """A function that maps checked rows to indices, each row independently; made once for all batches."""

    def _program_encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        """The same for a program: traced by ``torch.export``, on the CPU and without checks."""
        return self._encoder()

    @abstractmethod
    def _decode(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n D"]:
        """Embeddings of checked indices."""

    def _decode_joined(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n d"]:
        """The same before views are taken apart."""
        return self._decode(codes)

    @abstractmethod
    def _last_level(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        """Inputs of the last level for checked rows, and its table."""

    def _searches(self, x: Float[Tensor, "n D"]) -> dict[str, tuple[Quantizer, Tensor]]:
        """The quantizers inside by name, and what each is given of checked rows."""
        raise ValueError(
            f"expected a tokenizer whose quantizers can be examined, got {type(self).__name__}, which does not say "
            "which it has; define its method _searches"
        )

    @abstractmethod
    def _allocate(self, dim: int) -> None:
        """Make the buffers of a fitted tokenizer, for loading."""

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _usable(self, rows: Float[Tensor, "m D"], good: Bool[Tensor, "m D"]) -> Bool[Tensor, " m"]:
        """Which rows can be encoded, given which of their numbers are finite and not too large."""
        return good.all(1)

    def _device(self) -> torch.device:
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def _chunks(self, x: Embeddings, batch_size: int) -> Iterator[Tensor]:
        _check_array(x, self.dim)
        check_integer("batch_size", batch_size, hint="give a larger one")
        return (self._rows(x, start, min(start + batch_size, len(x))) for start in range(0, len(x), batch_size))

    def _rows(self, x: Embeddings, start: int, stop: int) -> Float[Tensor, "m D"]:
        part = x[start:stop]
        if isinstance(part, Tensor):
            rows = part.detach().to(self._device(), torch.float32)
        else:
            rows = torch.from_numpy(np.array(part, dtype=np.float32, order="C")).to(self._device())
        usable = self._usable(rows, rows.abs() <= _LARGEST)
        if not bool(usable.all()):
            row, count = start + int((~usable).nonzero()[0]), int((~usable).sum())
            raise ValueError(
                f"expected embeddings of finite numbers up to {_LARGEST:g}, got a NaN, infinite or larger one in row "
                f"{row} and {count} such rows in its batch; encode the item's text again or remove the item"
            )
        return rows


def _check_array(x: Embeddings, dim: int | None) -> None:
    wanted = "(n, D)" if dim is None else f"(n, {dim})"
    if not isinstance(x, (Tensor, np.ndarray)):
        raise ValueError(f"expected embeddings {wanted} as a tensor or array, got {type(x).__name__}; convert them")
    if x.ndim != 2 or x.shape[1] < 1 or (dim is not None and x.shape[1] != dim):
        told = "give one row per item" if dim is None else "use the text encoder that the tokenizer was fitted with"
        raise ValueError(f"expected embeddings {wanted}, got {tuple(x.shape)}; {told}")
    floating = x.is_floating_point() if isinstance(x, Tensor) else np.issubdtype(x.dtype, np.floating)
    if not floating:
        raise ValueError(f"expected floating embeddings, got {x.dtype}; convert them to float32")


def tracked(items: Sequence[_Item], description: str, progress: bool) -> Iterable[_Item]:
    """The items, with a progress bar if asked for; raises a ValueError if rich is missing."""
    if not progress:
        return items
    console = optional("rich.console", "train", "for a progress bar").Console(stderr=True)
    return optional("rich.progress", "train").track(items, description=description, console=console)


def equal_sizes(codebook_size: int, name: str, count: int) -> tuple[int, ...]:
    """Sizes of so many codebooks, checked before there is a list of them.

    Args:
        codebook_size: Codes of each.
        name: What their number is called.
        count: Their number.

    Raises:
        ValueError: If a number is below 1, or there are more than 4,096 codebooks.

    Example:
        >>> equal_sizes(256, "num_levels", 3)
        (256, 256, 256)
    """
    for each, value in (("codebook_size", codebook_size), (name, count)):
        check_integer(each, value, hint=f"give a larger {each}")
    if count > _MOST_LEVELS:
        raise ValueError(f"expected {name} <= {_MOST_LEVELS:,}, got {count:,}; give a smaller {name}")
    return (codebook_size,) * count
