"""The tokenizer of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.component import Component, eval_mode
from gritvq.export import DecoderProgram, EncoderProgram, Format, Program, write_programs
from gritvq.quantizers.base import Quantizer
from gritvq.tokenizer import Autoencoder, TokenizerOutput

if TYPE_CHECKING:
    from PIL import Image

    Picture: TypeAlias = Image.Image | np.ndarray

__all__ = ["ImageTokenizer"]

_PIXELS_AT_ONCE = 2**22  # largest batch of a list's images of equal size


class ImageTokenizer(Autoencoder):
    """Encoder, quantizer and decoder of images.

    Args:
        encoder: Maps images (B, C, H, W) in [0, 1] to latents (B, h, w, D); has ``factor`` and ``channels``.
        quantizer: Maps latents to indices; its ``input_dim`` must equal the encoder's ``dim``.
        decoder: Maps quantized latents back to images; its ``dim`` must equal the quantizer's, its ``factor`` and
            ``channels`` the encoder's.

    Raises:
        ValueError: If the parts do not fit together.

    Example:
        >>> from gritvq import grit_vq
        >>> from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
        >>> tokenizer = ImageTokenizer(ImageEncoder(8, width=16), grit_vq(8, 64), ImageDecoder(8, width=16))
        >>> tokens = tokenizer.encode(torch.rand(1, 3, 30, 33))
        >>> tokens.shape, tokenizer.decode(tokens, size=(30, 33)).shape
        (torch.Size([1, 8, 9, 1]), torch.Size([1, 3, 30, 33]))
    """

    def __init__(self, encoder: Component, quantizer: Quantizer, decoder: Component) -> None:
        super().__init__(encoder, quantizer, decoder)
        _check_parts(encoder, quantizer, decoder)
        if len(quantizer.layout) > 2:
            raise ValueError(
                f"expected a quantizer of vectors, sequences or grids, got {type(quantizer).__name__} with the layout "
                f"{quantizer.layout}; images have two axes, choose another layout"
            )

    @property
    def factor(self) -> int:
        """Pixels per token and side."""
        return int(self.encoder.factor)  # type: ignore[arg-type]

    @property
    def channels(self) -> int:
        """Color channels."""
        return int(self.encoder.channels)  # type: ignore[arg-type]

    @property
    def num_token_axes(self) -> int:
        """Axes of one image's tokens besides the channels: 2 for a grid (h, w), 1 for a sequence (T,)."""
        layout = self.quantizer.layout
        return len(self.quantizer.token_shape((1, *(1,) * (2 - len(layout)), *layout))) - 1

    def forward(self, images: Float[Tensor, "B C H W"]) -> TokenizerOutput:
        """Encode, quantize and decode; the reconstruction has the images' size and is not clamped.

        Raises:
            ValueError: If the images' size does not fit the quantizer's layout.
        """
        latents = self.latents(images)
        quantization = self.quantizer(latents)
        reconstruction = self.decoder(quantization.quantized)
        return TokenizerOutput(reconstruction[..., : images.shape[-2], : images.shape[-1]], quantization, latents)

    def latents(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        """Output of the encoder for images padded to multiples of ``factor``.

        Raises:
            ValueError: If the images' size does not fit the quantizer's layout.
        """
        self.check_size(images.shape[-2], images.shape[-1])
        return self.encoder(self.padded(images))

    def padded(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Images whose sides are extended to multiples of ``factor`` by repeating the border."""
        extra_h, extra_w = (-images.shape[-2] % self.factor, -images.shape[-1] % self.factor)
        return F.pad(images, (0, extra_w, 0, extra_h), mode="replicate") if extra_h or extra_w else images

    def check_size(self, height: int, width: int) -> None:
        """Check that images of this size in pixels can be tokenized; without a quantizer's layout any size can.

        Raises:
            ValueError: If it does not fit the quantizer's layout.
        """
        if not self.quantizer.layout:
            return
        grid = -(-height // self.factor), -(-width // self.factor)
        try:
            self.quantizer.token_shape((1, *grid))
        except ValueError as error:
            raise ValueError(
                f"expected images whose {grid[0]} x {grid[1]} tokens of {self.factor} x {self.factor} pixels fit the "
                f"layout {self.quantizer.layout} of {type(self.quantizer).__name__}, got {height} x {width} pixels "
                f"({error}); resize or crop them"
            ) from error

    @overload
    def encode(self, images: Tensor | Picture) -> Int[Tensor, "B *tokens Q"]: ...

    @overload
    def encode(self, images: Sequence[Tensor | Picture]) -> list[Int[Tensor, "*tokens Q"]]: ...

    @torch.no_grad()
    def encode(
        self, images: Tensor | Picture | Sequence[Tensor | Picture]
    ) -> Int[Tensor, "B *tokens Q"] | list[Int[Tensor, "*tokens Q"]]:
        """Tokens of images, of any size unless the quantizer has a layout.

        Args:
            images: A tensor (B, C, H, W) or (C, H, W), uint8 or floating point in [0, 1]; or a Pillow image or a uint8
                array (H, W), (H, W, 3) or (H, W, 4), which is converted to the tokenizer's ``channels``; or a list of
                single images of any sizes. Sides are padded to multiples of ``factor`` by repeating the border.

        Returns:
            Indices (B, ceil(H / factor), ceil(W / factor), Q), int64, without B for a single image; (B, T, Q) for
            quantizers that map a grid to a sequence (multi-scale, hierarchical). For a list, a list of indices.

        Raises:
            ValueError: If shape, type or values do not fit.

        Example:
            >>> from PIL import Image
            >>> from gritvq import vq_vae
            >>> from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
            >>> tokenizer = ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 16), ImageDecoder(4, width=8))
            >>> [tokens.shape for tokens in tokenizer.encode([Image.new("RGB", (32, 16)), Image.new("L", (8, 8))])]
            [torch.Size([4, 8, 1]), torch.Size([2, 2, 1])]
        """
        if isinstance(images, Sequence):
            return self._encode_each(images)
        images = self._as_tensor(images)
        batch = self._as_batch(images)
        with eval_mode(self):
            tokens = self.quantizer.encode(self.latents(batch))
        return tokens if images.ndim == 4 else tokens[0]

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "B *tokens Q"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Images of tokens, in [0, 1].

        Args:
            tokens: Indices (B, h, w, Q), or (h, w, Q) for a single image; (B, T, Q) or (T, Q) for quantizers that map
                a grid to a sequence.
            size: (H, W) of the original image, to crop the padding that ``encode`` added; None keeps it.

        Returns:
            (B, C, H, W), or (C, H, W) for a single image.

        Raises:
            ValueError: If the shape is wrong, an index is out of range, or ``size`` does not fit the tokens.
        """
        axes = self.num_token_axes
        if tokens.ndim not in (axes + 1, axes + 2):
            one = "h, w, Q" if axes == 2 else "T, Q"
            raise ValueError(f"expected tokens (B, {one}) or ({one}), got {tuple(tokens.shape)}; reshape them")
        single = tokens.ndim == axes + 1
        batch = tokens[None] if single else tokens
        with eval_mode(self):
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

    def export(
        self, folder: str | os.PathLike[str], format: Format = "onnx", *, size: tuple[int, int] | None = None
    ) -> tuple[Path, Path]:
        """Write the folded tokenizer as two programs that run without gritvq, for any batch size.

        ``encoder`` maps ``images`` (B, C, H, W), float32 in [0, 1], to ``indices`` (int64) as :meth:`encode` does;
        ``decoder`` maps ``indices`` to ``images`` as :meth:`decode` does. H and W must be multiples of ``factor`` and
        at least twice it; there is no padding, and inputs are not checked. The programs run on the CPU in the
        tokenizer's precision. A search needs memory for B h w x min(K, 1024) scores, or x K if the quantizer has no
        plain table.

        Args:
            folder: Folder of the files; files of the same names are replaced.
            format: ``"onnx"`` for ``encoder.onnx`` and ``decoder.onnx`` (needs the extra ``export``), ``"torch"`` for
                ``encoder.pt2`` and ``decoder.pt2``.
            size: (H, W) of all images; None for any size. Required if the quantizer has a layout.

        Returns:
            Paths of the encoder and the decoder.

        Raises:
            ValueError: If the size is wrong or missing, packages are missing, or an operator cannot be exported.

        Example:
            >>> from gritvq import vq_vae
            >>> from gritvq.export import load_program
            >>> from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
            >>> tokenizer = ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 16), ImageDecoder(4, width=8))
            >>> import tempfile
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
        tokens = folded.encode(images)  # checks the size
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

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def _encode_each(self, images: Sequence[Tensor | Picture]) -> list[Tensor]:
        """Tokens of single images, batched by size and type."""
        pictures = [self._as_tensor(image) for image in images]
        alike: dict[Any, list[int]] = {}
        for number, picture in enumerate(pictures):
            if picture.ndim != 3:
                raise ValueError(
                    f"expected single images in the list, got {tuple(picture.shape)}; a batch (B, C, H, W) needs no "
                    "list around it"
                )
            alike.setdefault((picture.shape, picture.dtype, picture.device), []).append(number)
        tokens: dict[int, Tensor] = {}
        for (shape, _, _), numbers in alike.items():
            at_once = max(1, _PIXELS_AT_ONCE // max(1, shape[1:].numel()))
            for start in range(0, len(numbers), at_once):
                part = numbers[start : start + at_once]
                tokens |= zip(part, self.encode(torch.stack([pictures[number] for number in part])), strict=True)
        return [tokens[number] for number in range(len(pictures))]

    def _as_tensor(self, image: Tensor | Picture) -> Tensor:
        """Convert an image to a uint8 tensor with the tokenizer's channels; tensors are returned unchanged."""
        if isinstance(image, Tensor):
            return image
        from PIL import Image

        from gritvq.images.decoding import to_tensor

        got = type(image).__name__
        if isinstance(image, np.ndarray):
            got = f"an array {image.shape} of {image.dtype}"
            if image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
                image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"expected a tensor, a Pillow image or an array (H, W), (H, W, 3) or (H, W, 4) of uint8, got {got}; "
                "put several images in a list"
            )
        return to_tensor(image, self.channels)

    def _as_batch(self, images: Tensor) -> Tensor:
        if images.ndim not in (3, 4) or images.shape[-3] != self.channels or 0 in images.shape[-2:]:
            raise ValueError(
                f"expected images (B, {self.channels}, H, W) or ({self.channels}, H, W), got {tuple(images.shape)}; "
                "put the color channels before height and width"
            )
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"expected uint8 images or floating ones in [0, 1], got {images.dtype}; convert them")
        elif images.numel() and not (images.amin() >= -0.01 and images.amax() <= 1.01):
            raise ValueError(
                f"expected values in [0, 1], got [{float(images.amin()):g}, {float(images.amax()):g}]; divide by 255 "
                "or map [-1, 1] to [0, 1]"
            )
        parameter = next(self.encoder.parameters())
        return (images if images.ndim == 4 else images[None]).to(parameter.device, parameter.dtype)


def _check_parts(encoder: Component, quantizer: Quantizer, decoder: Component) -> None:
    """Compare the parts' attributes; a run would not fail, since too large a reconstruction is cropped."""
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        missing = [setting for setting in ("dim", "factor", "channels") if getattr(part, setting, None) is None]
        if missing:
            raise ValueError(
                f"expected the {name} to have dim, factor and channels, got {type(part).__name__} without "
                f"{' and '.join(missing)}; set them as attributes in its constructor"
            )
    for name, setting, got, other, wanted in (
        ("encoder", "dim", encoder.dim, "quantizer", quantizer.input_dim),
        ("decoder", "dim", decoder.dim, "quantizer", quantizer.dim),
        ("decoder", "factor", decoder.factor, "encoder", encoder.factor),
        ("decoder", "channels", decoder.channels, "encoder", encoder.channels),
    ):
        if got != wanted:
            raise ValueError(
                f"expected the {name} to have {setting}={wanted} as the {other} has, got {got}; make them equal"
            )
