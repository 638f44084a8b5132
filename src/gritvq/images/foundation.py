"""Tokenizers on a vision foundation model (VQRAE): its features are what is quantized."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component, check_integer, check_number
from gritvq.distributed import batch_mean
from gritvq.lazy import hub_in_reach, optional
from gritvq.quantizers.presets import simvq
from gritvq.quantizers.structures import ProjectedQuantizer

__all__ = ["FoundationEncoder", "SelfDistillation", "pretrained_encoder", "vqrae_quantizer"]

_FETCHING = ("auto_map", "use_pretrained_backbone")  # settings of transformers that bring code or download weights
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")  # other names are those of code on the Hub
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which most models were trained with


class FoundationEncoder(Component):
    """A vision model of ``transformers`` as encoder: its last features, one vector per patch.

    Class and register tokens are left out. The model starts with random weights; :func:`pretrained_encoder` loads
    trained ones. Positions are interpolated to the pictures' size if the model can do that.

    Args:
        model_type: Such as ``"dinov2"``, ``"siglip_vision_model"``, ``"vit"`` or ``"convnext"``.
        settings: Settings of the model's configuration.
        trainable: Whether the model learns (VQRAE's stage 2); if not, it stays in eval mode and as it is (stage 1).
        mean: Subtracted from the pictures' channels in [0, 1].
        std: Divides the difference.

    Attributes:
        dim: Size D of a vector.
        factor: Pixels per vector and side.
        channels: Color channels.

    Raises:
        ValueError: If there is no such model, or it gives no vector per patch.

    Example:
        >>> settings = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
        >>> encoder = FoundationEncoder("dinov2", settings)
        >>> encoder.dim, encoder.factor, encoder(torch.rand(2, 3, 16, 8)).shape
        (16, 4, torch.Size([2, 4, 2, 16]))
    """

    def __init__(
        self,
        model_type: str,
        settings: dict[str, Any] | None = None,
        *,
        trainable: bool = False,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
    ) -> None:
        super().__init__()
        transformers = optional("transformers", "foundation", "for vision models")
        for name, value in (settings or {}).items():  # a saved model must bring no code, and fetch nothing
            if (name in _FETCHING and value) or ("attn_implementation" in name and value not in (None, *_ATTENTION)):
                raise ValueError(f"expected settings of the model's shape, got {name!r}: {value!r}; leave it out")
        try:
            config = transformers.AutoConfig.for_model(model_type, **(settings or {}))
            self.model: nn.Module = transformers.AutoModel.from_config(config, trust_remote_code=False).eval()
        except Exception as error:  # the library's many errors all mean the same to the caller
            raise ValueError(
                f"expected a vision model of transformers and its settings, got {model_type!r} "
                f"({str(error).splitlines()[0][:200]}); see its list of models"
            ) from error
        self.trainable, self.channels = trainable, int(getattr(config, "num_channels", 3))
        if len(mean) != self.channels or len(std) != self.channels:
            raise ValueError(
                f"expected mean and std of {self.channels} channels, got {len(mean)} and {len(std)}; give one "
                "number per channel"
            )
        self.register_buffer("mean", torch.tensor(tuple(mean))[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std))[:, None, None], persistent=False)
        self._settings: dict[str, Any] = (
            {"interpolate_pos_encoding": True}
            if "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
            else {}
        )
        self._measure(config)
        self.train(self.training)

    mean: Tensor
    std: Tensor

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        """Features of a batch of pictures.

        Args:
            images: Pictures with values in [0, 1]; H and W are multiples of ``factor``.

        Raises:
            ValueError: If the shape does not fit.
        """
        f = self.factor
        if images.ndim != 4 or images.shape[1] != self.channels or images.shape[2] % f or images.shape[3] % f:
            raise ValueError(
                f"expected pictures (B, {self.channels}, H, W) with sides that are multiples of {f}, got "
                f"{tuple(images.shape)}; pad or crop them"
            )
        return self._grid(self._features(images), images.shape[2] // f, images.shape[3] // f)

    def train(self, mode: bool = True) -> FoundationEncoder:
        """Training mode if the model learns; else the model stays in eval mode."""
        super().train(mode)
        self.model.train(mode and self.trainable)
        return self

    def _features(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=(images - self.mean) / self.std, **self._settings).last_hidden_state

    @staticmethod
    def _grid(features: Tensor, height: int, width: int) -> Tensor:
        if features.ndim == 4:
            return features.permute(0, 2, 3, 1)
        return features[:, features.shape[1] - height * width :].unflatten(1, (height, width))

    def _measure(self, config: Any) -> None:
        """Set ``dim`` and ``factor``, and let only weights learn that the features depend on, by one small picture."""
        size = getattr(config, "image_size", 224)
        side = int(size if isinstance(size, int) else size[0])
        with torch.random.fork_rng():
            found = self._features(torch.zeros(1, self.channels, side, side))
        if found.ndim == 4:
            grid, self.dim = found.shape[2], found.shape[1]
        else:
            patch: Any = getattr(config, "patch_size", None)
            regular = isinstance(patch, int) and found.shape[1] >= (side // patch) ** 2
            grid = side // patch if regular else math.isqrt(found.shape[1])
            self.dim = found.shape[2]
        if found.ndim not in (3, 4) or grid < 1 or side % grid:
            raise ValueError(
                f"expected a model with one vector per patch, got features {tuple(found.shape)} of a picture of "
                f"{side} x {side}; take another model or image_size"
            )
        self.factor = side // grid
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        grids = torch.autograd.grad(self._grid(found, grid, grid).sum(), weights, allow_unused=True)
        for weight, gradient in zip(weights, grids, strict=True):
            weight.requires_grad_(self.trainable and gradient is not None)


def pretrained_encoder(
    source: str, *, trainable: bool = False, mean: Sequence[float] = _MEAN, std: Sequence[float] = _STD
) -> FoundationEncoder:
    """A :class:`FoundationEncoder` with trained weights.

    Args:
        source: Folder of a model of ``transformers``, or its name on the Hugging Face Hub. For a model of pictures and
            text, its vision part.
        trainable: Whether the model learns.
        mean: Subtracted from the pictures' channels in [0, 1]: what the model was trained with.
        std: Divides the difference.

    Raises:
        ValueError: If there is no such model, or it is no vision model.
    """
    transformers = optional("transformers", "foundation", "for vision models")
    here = {"trust_remote_code": False, "local_files_only": Path(source).is_dir() or not hub_in_reach()}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **here)
        config = getattr(config, "vision_config", config)
        model = transformers.AutoModel.from_pretrained(source, config=config, **here)
    except Exception as error:  # the library's many errors all mean the same to the caller
        raise ValueError(
            f"expected the folder of a model of transformers or a reachable Hub name, got {source!r} "
            f"({str(error).splitlines()[0][:200]}); correct the path or the name"
        ) from error
    settings = {k: v for k, v in config.to_diff_dict().items() if k not in ("model_type", "transformers_version")}
    encoder = FoundationEncoder(config.model_type, settings, trainable=trainable, mean=mean, std=std)
    encoder.model.load_state_dict(model.state_dict())
    return encoder


def vqrae_quantizer(
    dim: int, codebook_size: int, *, code_dim: int | None = None, commitment_weight: float = 0.25, lr_scale: float = 1.0
) -> ProjectedQuantizer:
    """VQRAE's quantizer: features are mapped to wide codes, a frozen table under one trained linear layer (SimVQ).

    Args:
        dim: Size D of the features.
        codebook_size: Number of codes K.
        code_dim: Size of a code; four thirds of ``dim`` if None, as in the paper. Narrower codes than the features use
            fewer of their codes there.
        commitment_weight: Weight of the commitment loss.
        lr_scale: Codebook learning rate over the encoder's.

    Example:
        >>> vqrae_quantizer(48, 256).quantizer.dim
        64

    References:
        VQRAE, CVPR 2026, arXiv 2511.23386. Deviation: codes are mapped back to ``dim`` before the decoder.
    """
    check_integer("dim", dim)
    inner = -(-4 * dim // 3) if code_dim is None else code_dim
    codes = simvq(inner, codebook_size, commitment_weight=commitment_weight, lr_scale=lr_scale)
    return ProjectedQuantizer(codes, dim)


class SelfDistillation(Component):
    r"""Keeps the encoder's features near those of a frozen copy of it from before the training.

    ``weight * mean |z - T(x)|^2``, where z are the features before quantization and T is the copy, in eval mode. The
    quantizer and the decoder get no gradient.

    Args:
        weight: Weight of the loss.

    Raises:
        ValueError: If the weight is negative.

    References:
        VQRAE, CVPR 2026, arXiv 2511.23386, stage 2; the mean over components is our choice.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = check_number("weight", weight)

    def remember(self, encoder: nn.Module) -> None:
        """Make a copy of the encoder as it is now the teacher."""
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()

    def forward(self, latents: Float[Tensor, "B h w D"], images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The loss without its weight.

        Args:
            latents: The encoder's output.
            images: Its input.
        """
        with torch.no_grad():
            wanted = self.teacher(images)
        return batch_mean((latents.float() - wanted.float()).square())

    def train(self, mode: bool = True) -> SelfDistillation:
        """The teacher stays in eval mode."""
        super().train(mode)
        if "teacher" in self._modules:
            self.teacher.eval()
        return self
