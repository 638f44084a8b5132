"""Tokenizers of any domain: what people train, save, share, load and serve."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from gritvq.component import Component, to_config
from gritvq.quantizers.base import Quantizer, QuantizerOutput, check_quantizer
from gritvq.saving import allowance, load_weights, local_folder, read_config, rebuilt, tensors_of, write_folder

__all__ = ["Autoencoder", "Tokenizer", "TokenizerOutput"]

_KIND = "tokenizer"
_Self = TypeVar("_Self", bound="Tokenizer")


class TokenizerOutput(NamedTuple):
    """Reconstruction of a batch together with the quantizer's output.

    Attributes:
        reconstruction: Decoded batch, of the input's shape.
        quantization: Values, indices and losses.
        latents: The encoder's output, before quantization.
    """

    reconstruction: Tensor
    quantization: QuantizerOutput
    latents: Tensor


class Tokenizer(Component, ABC):
    """Anything into tokens and back: what people fit, save, share, load and serve.

    Subclasses own their parts and implement :meth:`encode` and :meth:`decode`. One whose tensors get their shapes in
    training implements :meth:`_settings` and :meth:`_restore` too.

    Attributes:
        trained: What a loaded tokenizer says of its training, plain values by name; None if it says nothing.
    """

    trained: dict[str, Any] | None = None
    _saved: dict[str, Any] | None = None  # the description that it was built from

    @abstractmethod
    def encode(self, batch: Any) -> Any:
        """Tokens (B, *tokens, Q) of a batch, int64, in eval mode and without gradients."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Any:
        """What tokens stand for, in eval mode and without gradients."""

    def fold(self: _Self) -> _Self:
        """A copy of the tokenizer with the codebooks' transforms baked in: for serving, not for training on.

        It has another quantizer and thus another fingerprint.
        """
        parts = [part for part in self.children() if isinstance(part, (Quantizer, Tokenizer))]
        folded: dict[int, Any] = {id(part): part.fold() for part in parts}
        copied = copy.deepcopy(self, folded).eval()
        copied._saved = None  # the parts are others
        return copied

    def fingerprint(self) -> str:
        """SHA-256 of configuration and weights in hexadecimal; the same after saving and loading."""
        config = json.dumps([self._saved or to_config(self), *self._settings().values()], sort_keys=True)
        digest = hashlib.sha256(config.encode())
        for name, tensor in sorted(tensors_of(self).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    # --- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str], training: Mapping[str, Any] | None = None) -> Path:
        """Write ``config.json`` (readable, format version) and ``model.safetensors``; no pickle, nothing half-written.

        An existing tokenizer is replaced; if the process dies, the folder holds the old one or the new one, never a
        mixture. ``config.json`` has the checksums that loading compares. Statistics of training (moving averages) are
        not part of it, a training checkpoint holds those. Levels that share one codebook are written each on its own,
        and share it no longer when loaded.

        Args:
            folder: New, empty, or with a tokenizer in it.
            training: What to say of the training, plain values by name: ``training`` in ``config.json``; what a loaded
                tokenizer says already where None.

        Raises:
            ValueError: If the path is a file, or a folder that holds something else than a tokenizer.
        """
        training = self.trained if training is None else training
        more = {} if training is None else {"training": dict(training)}
        return write_folder(folder, _KIND, self, {**self._settings(), **more})

    @classmethod
    def from_pretrained(
        cls: type[_Self],
        source: str | os.PathLike[str],
        trusted: Iterable[str] = (),
        *,
        revision: str | None = None,
    ) -> _Self:
        """Load a tokenizer from a folder or, by name, from the Hugging Face Hub; in eval mode.

        ``Tokenizer.from_pretrained`` returns the class that was saved; a subclass does not accept other classes.

        Args:
            source: A folder, or ``"owner/name"`` (needs ``huggingface_hub``).
            trusted: Modules besides ``gritvq`` that its classes may come from.
            revision: Branch, tag or commit on the Hub.

        Raises:
            ValueError: If there is no tokenizer, it is damaged, or written by a newer version.
        """
        folder = local_folder(source, revision=revision)
        config = read_config(folder, _KIND)
        tokenizer = rebuilt(config[_KIND], folder, trusted)
        if not isinstance(tokenizer, cls):
            raise ValueError(f"expected a saved {cls.__name__} in {folder}, got {type(tokenizer).__name__}")
        with allowance(folder):
            tokenizer._restore(config)
        tokenizer._saved = config[_KIND]
        load_weights(tokenizer, folder, config)
        tokenizer.trained = training if isinstance(training := config.get("training"), dict) else None
        return tokenizer.eval()

    def _settings(self) -> dict[str, Any]:
        """Content of ``config.json`` besides the constructor's arguments."""
        return {}

    def _restore(self, config: Mapping[str, Any]) -> None:
        """Make a tokenizer that was built from its description ready for its weights.

        Args:
            config: All of ``config.json``.

        Raises:
            ValueError: If settings are missing or wrong.
        """


class Autoencoder(Tokenizer):
    """A tokenizer of three parts that are trained together.

    Args:
        encoder: Maps a batch to latents (B, *positions, D).
        quantizer: Maps latents to codes.
        decoder: Maps quantized latents back to a batch.
    """

    def __init__(self, encoder: Component, quantizer: Quantizer, decoder: Component) -> None:
        super().__init__()
        check_quantizer(quantizer)
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    @abstractmethod
    def forward(self, batch: Any) -> TokenizerOutput:
        """Encode, quantize, decode."""

    @abstractmethod
    def latents(self, batch: Any) -> Tensor:
        """What the encoder makes of a batch: (B, *positions, D)."""
