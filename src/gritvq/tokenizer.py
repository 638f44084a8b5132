"""The tokenizer: encoder, quantizer and decoder as the one thing people train, save, share, load and serve."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gritvq.base import Component, Quantizer, QuantizerOutput, build, describe, evaluating
from gritvq.export import DecoderProgram, EncoderProgram, Format, Program, write_programs

__all__ = ["FORMAT_VERSION", "Tokenizer", "TokenizerOutput"]

FORMAT_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class TokenizerOutput(NamedTuple):
    """Reconstruction of a batch together with what the quantizer said.

    Attributes:
        reconstruction: Decoded batch, of the input's shape.
        quantization: Values, indices and losses.
        latents: The encoder's output, before quantization.
    """

    reconstruction: Tensor
    quantization: QuantizerOutput
    latents: Tensor


class Tokenizer(Component):
    """Encoder, quantizer and decoder.

    Args:
        encoder: Maps images (B, C, H, W) in [0, 1] to latents (B, h, w, D); has ``factor`` and ``channels``.
        quantizer: Maps latents to codes; ``input_dim`` equals the encoder's ``dim``.
        decoder: Maps quantized latents back to images.

    Raises:
        ValueError: If the dimensions do not fit.

    Example:
        >>> from gritvq import grit_vq
        >>> from gritvq.models import ImageDecoder, ImageEncoder
        >>> tokenizer = Tokenizer(ImageEncoder(8, width=16), grit_vq(8, 64), ImageDecoder(8, width=16))
        >>> tokens = tokenizer.encode(torch.rand(1, 3, 30, 33))
        >>> tokens.shape, tokenizer.decode(tokens, size=(30, 33)).shape
        (torch.Size([1, 8, 9, 1]), torch.Size([1, 3, 30, 33]))
    """

    def __init__(self, encoder: Component, quantizer: Quantizer, decoder: Component) -> None:
        super().__init__()
        for name, got, wanted in (
            ("the encoder", encoder.dim, quantizer.input_dim),
            ("the decoder", decoder.dim, quantizer.dim),
        ):
            if got != wanted:
                raise ValueError(
                    f"expected {name} to have dim={wanted} as the quantizer has, got {got}; make them equal"
                )
        if len(quantizer.layout) > 2:
            raise ValueError(
                f"expected a quantizer of vectors, sequences or grids, got {type(quantizer).__name__} with the layout "
                f"{quantizer.layout}; an image has two axes"
            )
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    @property
    def factor(self) -> int:
        """Pixels per token and side."""
        return int(self.encoder.factor)  # type: ignore[arg-type]

    @property
    def channels(self) -> int:
        """Colour channels."""
        return int(self.encoder.channels)  # type: ignore[arg-type]

    @property
    def num_token_axes(self) -> int:
        """Axes of one image's tokens beside the channels: 2 for a grid (h, w), 1 for a sequence (T,)."""
        layout = self.quantizer.layout
        return len(self.quantizer.token_shape((1, *(1,) * (2 - len(layout)), *layout))) - 1

    def forward(self, images: Float[Tensor, "B C H W"]) -> TokenizerOutput:
        """Encode, quantize, decode; the reconstruction is not clamped and has the images' size.

        Raises:
            ValueError: If the images' size does not fit the quantizer's layout.
        """
        latents = self.latents(images)
        quantization = self.quantizer(latents)
        reconstruction = self.decoder(quantization.quantized)
        return TokenizerOutput(reconstruction[..., : images.shape[-2], : images.shape[-1]], quantization, latents)

    def latents(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        """What the encoder makes of images whose sides are extended to multiples of ``factor``.

        Raises:
            ValueError: If the images' size does not fit the quantizer's layout.
        """
        batch = self._pad(images)
        height, width = batch.shape[-2] // self.factor, batch.shape[-1] // self.factor
        if self.quantizer.layout:
            try:
                self.quantizer.token_shape((1, height, width))
            except ValueError as error:
                raise ValueError(
                    f"expected images whose {height} x {width} tokens of {self.factor} x {self.factor} pixels fit the "
                    f"layout {self.quantizer.layout} of {type(self.quantizer).__name__}, got {images.shape[-2]} x "
                    f"{images.shape[-1]} pixels ({error}); resize or crop them"
                ) from error
        return self.encoder(batch)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Int[Tensor, "B *tokens Q"]:
        """Tokens of images, of any size unless the quantizer has a layout.

        Args:
            images: (B, C, H, W) or (C, H, W): uint8, or floating in [0, 1]. Sides that are no multiple of ``factor``
                are extended by repeating the border.

        Returns:
            Indices (B, ceil(H / factor), ceil(W / factor), Q), int64, without B for a single image. A quantizer that
            makes sequences of a grid (multi-scale, hierarchical) gives (B, T, Q).

        Raises:
            ValueError: If shape, type or values do not fit.
        """
        batch = self._as_batch(images)
        with evaluating(self):
            tokens = self.quantizer.encode(self.latents(batch))
        return tokens if images.ndim == 4 else tokens[0]

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "B *tokens Q"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Images of tokens, in [0, 1].

        Args:
            tokens: (B, h, w, Q), or (h, w, Q) for a single image; (B, T, Q) or (T, Q) where the quantizer makes
                sequences.
            size: (H, W) of the original image, to cut off what ``encode`` added; all of it where None.

        Returns:
            (B, C, H, W), or (C, H, W) for a single image.

        Raises:
            ValueError: If the shape is wrong, an index is out of range, or ``size`` does not fit the tokens.
        """
        axes = self.num_token_axes
        if tokens.ndim not in (axes + 1, axes + 2):
            one = "h, w, Q" if axes == 2 else "T, Q"
            raise ValueError(f"expected tokens (B, {one}) or ({one}), got {tuple(tokens.shape)}")
        single = tokens.ndim == axes + 1
        batch = tokens[None] if single else tokens
        with evaluating(self):
            values = self.quantizer.decode(batch.to(next(self.decoder.parameters()).device))
            full = (values.shape[1] * self.factor, values.shape[2] * self.factor)
            height, width = full if size is None else size
            if not (full[0] - self.factor < height <= full[0] and full[1] - self.factor < width <= full[1]):
                raise ValueError(
                    f"expected a size within {self.factor - 1} pixels below {full[0]} x {full[1]}, got {height} x "
                    f"{width}; is it (height, width)?"
                )
            images = self.decoder(values.to(self._dtype())).float()
        images = images[..., :height, :width].clamp(0, 1)
        return images[0] if single else images

    def fold(self) -> Tokenizer:
        """A copy of the tokenizer with the codebook's transform baked in: for serving, not for training on."""
        return Tokenizer(copy.deepcopy(self.encoder), self.quantizer.fold(), copy.deepcopy(self.decoder)).eval()

    def export(
        self, folder: str | os.PathLike[str], format: Format = "onnx", *, size: tuple[int, int] | None = None
    ) -> tuple[Path, Path]:
        """Write the folded tokenizer as two programs that run without gritvq, for any batch size.

        ``encoder``: ``images`` (B, C, H, W), float32 in [0, 1], to ``indices`` as :meth:`encode` gives them, int64.
        ``decoder``: ``indices`` to ``images``, as :meth:`decode` gives them. H and W are multiples of ``factor``, at
        least twice it: nothing is extended or cut off. Inputs are not checked. The programs work in the tokenizer's
        precision and are made for the CPU; a search holds B h w x min(K, 1024) scores, or x K where a quantizer has no
        plain table.

        Where a quantizer is exact ``"never"``, the indices do not reproduce its output: then the programs do what
        :meth:`encode` and :meth:`decode` do, no more.

        Args:
            folder: Where the files go; files of the same names are replaced.
            format: ``"onnx"`` for ``encoder.onnx`` and ``decoder.onnx`` (needs the extra ``export``), ``"torch"`` for
                ``encoder.pt2`` and ``decoder.pt2``.
            size: (H, W) of all images. Any size where None, unless the quantizer has a layout, which needs one.

        Returns:
            Encoder's and decoder's file.

        Raises:
            ValueError: If the size does not fit or is missing, packages are missing, or a part holds operators that
                cannot be exported.

        Example:
            >>> from gritvq import vq_vae
            >>> from gritvq.export import load_program
            >>> from gritvq.models import ImageDecoder, ImageEncoder
            >>> tokenizer = Tokenizer(ImageEncoder(4, width=8), vq_vae(4, 16), ImageDecoder(4, width=8))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     encoder, decoder = tokenizer.export(folder, "torch")
            ...     load_program(decoder)(load_program(encoder)(torch.rand(5, 3, 32, 16))).shape
            torch.Size([5, 3, 32, 16])
        """
        layout = self.quantizer.layout
        if size is None and layout:
            raise ValueError(
                f"expected the images' size, since {type(self.quantizer).__name__} has the layout {layout}, got none; "
                f"pass size=(H, W), such as {tuple(self.factor * side for side in (layout * 2)[:2])}"
            )
        if size is not None and (len(size) != 2 or any(side < 1 or side % self.factor for side in size)):
            raise ValueError(f"expected a size (H, W) of multiples of {self.factor}, got {size}; round it up")
        folded = self.fold().cpu()
        images = torch.rand(2, self.channels, *(size or (3 * self.factor, 5 * self.factor)))
        tokens = folded.encode(images)  # says what does not fit
        batch, rows, columns = torch.export.Dim("batch"), *(torch.export.Dim(n, min=2) for n in ("rows", "columns"))
        of_images, of_tokens = {0: batch}, {0: batch}
        if size is None:
            of_images |= {2: self.factor * rows, 3: self.factor * columns}
            of_tokens |= {1: rows, 2: columns}
        encoder = EncoderProgram(folded.encoder, folded.quantizer)
        decoder = DecoderProgram(folded.quantizer, folded.decoder)
        programs = {
            "encoder": Program(encoder, images, of_images, ("images", "indices")),
            "decoder": Program(decoder, tokens, of_tokens, ("indices", "images")),
        }
        written = write_programs(folder, programs, format)
        return written["encoder"], written["decoder"]

    # --- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``config.json`` (readable, format version) and ``model.safetensors``; no pickle, nothing half-written.

        The folder is written beside its final name and moved there when complete. An existing tokenizer is replaced;
        statistics of training (moving averages) are not part of it, a training checkpoint holds those. Levels that
        share one codebook are written each on its own, and share it no longer when loaded.

        Raises:
            ValueError: If the path is a file, or a folder that holds something else than a tokenizer.
        """
        folder = Path(folder)
        if folder.exists():
            holds_other = folder.is_dir() and any(folder.iterdir()) and not (folder / _CONFIG).exists()
            if not folder.is_dir() or holds_other:
                raise ValueError(
                    f"expected a new folder or one that holds a tokenizer, got {folder}; choose another name"
                )
        config = {"format": "gritvq", "format_version": FORMAT_VERSION, "tokenizer": describe(self)}
        tensors = {
            k: v.detach().cpu().contiguous().clone() for k, v in self.state_dict().items() if isinstance(v, Tensor)
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            save_file(tensors, scratch / _WEIGHTS, metadata={"format": "pt"})
            (scratch / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            scratch.chmod(0o755)
            folder.mkdir(exist_ok=True)
            for name in (_WEIGHTS, _CONFIG):
                os.replace(scratch / name, folder / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], trusted: Iterable[str] = ()) -> Tokenizer:
        """Load a tokenizer from a folder or, by name, from the Hugging Face Hub; in eval mode.

        Args:
            source: A folder, or ``"owner/name"`` (needs ``huggingface_hub``).
            trusted: Modules besides ``gritvq`` that its classes may come from.

        Raises:
            ValueError: If there is no tokenizer, it is damaged, or written by a newer version.
        """
        folder = _local_folder(source)
        config = _read_config(folder)
        tokenizer = build(config["tokenizer"], trusted)
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError(f"expected a tokenizer in {folder}, got {type(tokenizer).__name__}")
        try:
            tensors = load_file(folder / _WEIGHTS)
        except FileNotFoundError as error:
            raise ValueError(f"expected weights in {folder / _WEIGHTS}, found none; copy the whole folder") from error
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"expected readable weights in {folder / _WEIGHTS}, got a damaged file ({error}); copy it again"
            ) from error
        expected = {k: v for k, v in tokenizer.state_dict().items() if isinstance(v, Tensor)}
        differing = sorted(
            k
            for k in expected.keys() | tensors.keys()
            if k not in expected or k not in tensors or expected[k].shape != tensors[k].shape
        )
        if differing:
            raise ValueError(
                f"expected the weights that {folder / _CONFIG} describes, got others at "
                f"{', '.join(differing[:3])}{' ...' if len(differing) > 3 else ''}; config.json and model.safetensors "
                "are not from the same tokenizer"
            )
        tokenizer.load_state_dict(tensors, strict=False)
        return tokenizer.eval()

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def _as_batch(self, images: Tensor) -> Tensor:
        if images.ndim not in (3, 4) or images.shape[-3] != self.channels or 0 in images.shape[-2:]:
            raise ValueError(
                f"expected images (B, {self.channels}, H, W) or ({self.channels}, H, W), got {tuple(images.shape)}; "
                "the colour channels come before height and width"
            )
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"expected uint8 images or floating ones in [0, 1], got {images.dtype}")
        elif images.numel() and not (images.amin() >= -0.01 and images.amax() <= 1.01):
            raise ValueError(
                f"expected values in [0, 1], got [{float(images.amin()):g}, {float(images.amax()):g}]; divide by 255 "
                "or map [-1, 1] to [0, 1]"
            )
        parameter = next(self.encoder.parameters())
        return (images if images.ndim == 4 else images[None]).to(parameter.device, parameter.dtype)

    def _pad(self, images: Tensor) -> Tensor:
        extra_h, extra_w = (-images.shape[-2] % self.factor, -images.shape[-1] % self.factor)
        return F.pad(images, (0, extra_w, 0, extra_h), mode="replicate") if extra_h or extra_w else images


def _local_folder(source: str | os.PathLike[str]) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"expected a tokenizer folder or a Hub name 'owner/name', got {name!r}, which is neither")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"expected a tokenizer folder, got {name!r}, which does not exist here; to load it from the Hub install "
            "'gritvq[images]'"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=[_CONFIG, _WEIGHTS]))
    except Exception as error:  # the client's many errors all mean the same to the caller
        raise ValueError(
            f"expected a tokenizer folder or a reachable Hub name, got {name!r} ({type(error).__name__})"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"expected a tokenizer folder with {_CONFIG}, got {folder} without one") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"expected readable JSON in {path}, got a damaged file ({error}); copy it again") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(config, dict) or config.get("format") != "gritvq" or not isinstance(version, int):
        raise ValueError(f"expected a gritvq tokenizer in {path}, got something else; is it another library's?")
    if version > FORMAT_VERSION:
        raise ValueError(f"expected format version {FORMAT_VERSION} or older in {path}, got {version}; update gritvq")
    if "tokenizer" not in config:
        raise ValueError(f"expected the key 'tokenizer' in {path}, got {sorted(config)}; the file is incomplete")
    return config
