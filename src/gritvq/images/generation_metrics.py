"""How close two sets of pictures are: Frechet distance, precision and recall, class accuracy, and what they mean.

A figure of generated pictures means little without its network, its reference, the numbers of pictures, and what two
sets of real pictures would get. :func:`compare_pictures` measures all of it in one pass and refuses comparisons that
are known to mislead.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer
from gritvq.distributed import all_gather_rows, all_reduce_sum
from gritvq.images.features import FeatureVectors
from gritvq.images.files import Picture, Pictures
from gritvq.images.metrics import to_uint8
from gritvq.lazy import optional

__all__ = [
    "ClassAccuracy",
    "Evaluation",
    "FrechetDistance",
    "PictureSet",
    "PrecisionRecall",
    "compare_pictures",
]

Kind = Literal["real", "reconstructed", "generated"]
_NAMES = {
    ("generated", "real"): "g",
    ("reconstructed", "real"): "r",
    ("generated", "reconstructed"): "prior-only ",
    ("real", "real"): "real-real ",
}
_ROUNDING = "round(255 x), clamped to 8 bits, before the network's own preprocessing"
_GENERATED = re.compile(r"(?:^|/)\d{5,}-(\d{1,9})\.png$")  # number and class, as ``gritvq generate`` names pictures
_PAIRS_AT_ONCE = 2**23  # distances held at a time


class FrechetDistance:
    r"""Distance of two Gaussians with the means and covariances of two sets of feature vectors.

    .. math:: \|\mu_1 - \mu_2\|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

    The statistics are those of ``torchmetrics.image.FrechetInceptionDistance``: sums in float64, over all processes
    when computed.

    Args:
        num_features: Features d of a vector.

    Raises:
        ValueError: If torchmetrics is missing, or a set has fewer than d + 1 vectors, whose covariance is singular.

    Example:
        >>> metric, x = FrechetDistance(2), torch.randn(100, 2, dtype=torch.float64)
        >>> metric.update(x, real=True), metric.update(x + torch.tensor([3.0, 4.0]), real=False)
        (None, None)
        >>> round(metric.compute(), 6)
        25.0

    References:
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS
        2017, arXiv 1706.08500, equation 6.
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = check_integer("num_features", num_features)
        module = optional("torchmetrics.image.fid", "images")
        given = nn.Identity()
        given.num_features = num_features  # type: ignore[assignment]
        self._metric = module.FrechetInceptionDistance(feature=given)

    def update(self, features: Float[Tensor, "B d"], real: bool) -> None:
        """Add vectors of the reference (``real``) or of the samples."""
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"expected vectors (B, {self.num_features}), got {tuple(features.shape)}")
        self._metric.to(features.device).update(features.double(), real=real)

    def compute(self) -> float:
        """The distance, over all processes."""
        self._check_numbers()
        return max(0.0, float(self._metric.compute()))  # rounding alone makes it negative

    def _check_numbers(self) -> None:
        own = torch.stack([self._metric.fake_features_num_samples, self._metric.real_features_num_samples])
        fewest = int(all_reduce_sum(own).min())
        if fewest <= self.num_features:
            raise ValueError(
                f"expected at least {self.num_features + 1:,} pictures on each side for a Frechet distance of "
                f"{self.num_features:,} features, got {fewest:,}; take more pictures, or a network with fewer features"
            )


class PrecisionRecall:
    """Precision: the share of samples that lie among the real pictures. Recall: of real pictures among the samples.

    A vector lies among others if its distance to one of them is at most the distance of that one to the
    ``neighbors``-th nearest in its own set. The vectors of all pictures are kept, 8 bytes a feature; time grows with
    the square of their number.

    Args:
        neighbors: Of a vector in its own set.

    Raises:
        ValueError: If a set has no more than ``neighbors`` vectors.

    Example:
        >>> metric = PrecisionRecall(1)
        >>> metric.update(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), real=True)
        >>> metric.update(torch.tensor([[0.5], [0.7]]), real=False)
        >>> metric.compute()
        {'precision': 1.0, 'recall': 0.0}

    References:
        Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019, arXiv
        1904.06991, equations 1 and 2.
    """

    def __init__(self, neighbors: int = 3) -> None:
        self.neighbors = check_integer("neighbors", neighbors)
        self._parts: dict[bool, list[Tensor]] = {True: [], False: []}

    def update(self, features: Float[Tensor, "B d"], real: bool) -> None:
        """Add vectors of the reference (``real``) or of the samples."""
        self._parts[real].append(features.detach().double())

    def compute(self) -> dict[str, float]:
        """``precision`` and ``recall`` over all processes."""
        real, fake = (all_gather_rows(torch.cat(self._parts[side])) for side in (True, False))
        if min(len(real), len(fake)) <= self.neighbors:
            raise ValueError(
                f"expected more than {self.neighbors} pictures on each side for precision and recall, got "
                f"{min(len(real), len(fake))}; take more pictures or fewer neighbors"
            )
        middle = real.mean(0)  # rounding is least around the origin
        real, fake = real - middle, fake - middle
        return {"precision": self._covered(real, fake), "recall": self._covered(fake, real)}

    def _covered(self, points: Tensor, tested: Tensor) -> float:
        """Share of the tested vectors that lie among the points."""
        rows = max(1, _PAIRS_AT_ONCE // len(points))
        radii = torch.cat(
            [torch.cdist(part, points).kthvalue(self.neighbors + 1).values for part in points.split(rows)]
        )  # the nearest is the point itself
        inside = [(torch.cdist(part, points) <= radii).any(1) for part in tested.split(rows)]
        return float(torch.cat(inside).double().mean())


class ClassAccuracy:
    """The share of pictures that a classifier recognizes as what they were made to be.

    Example:
        >>> metric = ClassAccuracy()
        >>> metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> round(metric.compute(), 3)
        0.667
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(2, dtype=torch.int64)

    def update(self, scores: Float[Tensor, "B classes"], labels: Int[Tensor, " B"]) -> None:
        """Add a batch.

        Raises:
            ValueError: If a label is no class of the classifier.
        """
        labels = labels.to(scores.device)
        if len(labels) != len(scores) or bool(((labels < 0) | (labels >= scores.shape[1])).any()):
            raise ValueError(
                f"expected {len(scores)} labels in 0..{scores.shape[1] - 1}, the classes of the classifier, got "
                f"{labels.tolist()[:8]}; give those that the pictures were made for"
            )
        right = (scores.argmax(1) == labels).sum()
        self._counts = self._counts.to(right.device) + torch.stack([right, right.new_tensor(len(labels))])

    def compute(self) -> float | None:
        """The share over all processes; None where nothing was counted."""
        right, number = all_reduce_sum(self._counts).tolist()
        return right / number if number else None


class PictureSet(NamedTuple):
    """Pictures of one kind, and what has to be said of them beside a figure.

    Attributes:
        batches: Batches (B, C, H, W) of one size: all uint8, or all floats in [0, 1]. Or pairs of such a batch and the
            labels (B,) of its pictures. With several processes, this one's share.
        kind: ``"real"``; ``"reconstructed"``: decoded from the tokens of real pictures; ``"generated"``.
        name: What they are, such as "CIFAR-10, test split" or "samples with guidance 2".
        preparation: Crop and resizing before.
        num: Number of pictures where it is known: unequal ones are then refused before any work.
    """

    batches: Iterable[Tensor | tuple[Tensor, Tensor]]
    kind: Kind
    name: str
    preparation: str = "none"
    num: int | None = None

    @classmethod
    def of(
        cls,
        pictures: Pictures,
        kind: Kind,
        name: str,
        *,
        size: int | None = None,
        num: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> PictureSet:
        """A set from files or tables.

        Args:
            pictures: From :func:`gritvq.images.open_pictures`. Labels are those of a table where they are integers;
                for generated pictures also the numbers at the end of the files' names, as ``gritvq generate`` writes
                them: 3 for ``00042-3.png``, none for ``00042-boeing-747.png``.
            kind: See the class.
            name: See the class.
            size: Side in pixels. Pictures are cropped to the largest square in the middle and resized (bilinear,
                antialiased); None takes them as they are.
            num: How many to take at random; None for all. Folders are often sorted by class, so never the first ones.
            seed: Of that choice.
            batch_size: Pictures per batch, at most.

        Raises:
            ValueError: If there are fewer pictures.
        """
        if num is not None:
            if not 1 <= num <= len(pictures):
                raise ValueError(f"expected 1 to {len(pictures):,} pictures, got num={num:,}: {name} has no more")
            order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:num]
            pictures = pictures.part([pictures.numbers[place] for place in order.sort().values.tolist()])
        said = "none" if size is None else f"square in the middle, resized to {size} x {size} (bilinear, antialiased)"
        check_integer("batch_size", batch_size)
        batches = _Batches(pictures, size, batch_size, kind == "generated")
        return cls(batches, kind, name, said, len(pictures))


class _Batches:
    """Batches of pictures as uint8 with their labels where they have some; may be gone through again."""

    def __init__(self, pictures: Pictures, size: int | None, batch_size: int, named: bool) -> None:
        self.pictures, self.size, self.batch_size, self.named = pictures, size, batch_size, named

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for group, whole in self.pictures.batches(self.batch_size):
            images = to_uint8(whole if self.size is None else _square(whole, self.size))
            labels = [self._label(picture) for picture in group]
            yield images if None in labels else (images, torch.tensor(labels))

    def _label(self, picture: Picture) -> int | None:
        if isinstance(picture.label, int) or not self.named:
            return picture.label if isinstance(picture.label, int) else None
        found = _GENERATED.search(picture.name)
        return int(found[1]) if found else None


def _square(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[..., top : top + side, left : left + side]
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True) if side != size else square


class Evaluation(NamedTuple):
    """Figures of a set of pictures, with all that is needed to compare them with others.

    Attributes:
        metric: Name of the distance, such as "gFD, CIFAR-10 ResNet-56 features".
        values: ``frechet_distance``, ``precision``, ``recall``; ``class_accuracy`` where classifier and labels are
            there; ``distinct``: the share of samples that no other sample equals.
        floor: The same of other pictures of the reference's kind in place of the samples, at the same number: what
            cannot be told from the reference. None where it was not measured.
        network: Name of the feature network.
        num_features: Features of a vector.
        samples: What the samples are.
        reference: What the reference is.
        floor_pictures: What the floor was measured with.
        num_samples: Number of samples, and of the floor's pictures.
        num_reference: Number of pictures of the reference.
        size: Height and width that the network was given.
        preparation: Crop and resizing of samples and reference before.
        rounding: How pictures became 8 bits.
        neighbors: Neighbors of precision and recall.
    """

    metric: str
    values: dict[str, float]
    floor: dict[str, float] | None
    network: str
    num_features: int
    samples: str
    reference: str
    floor_pictures: str | None
    num_samples: int
    num_reference: int
    size: tuple[int, int]
    preparation: dict[str, str]
    rounding: str
    neighbors: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {**self._asdict(), "size": list(self.size)}

    def rows(self) -> list[tuple[str, str]]:
        """Everything as text, for a table."""
        words = {"frechet_distance": self.metric, "precision": "precision", "recall": "recall"}
        words |= {"class_accuracy": "class accuracy", "distinct": "distinct samples"}
        floor = self.floor or {}
        figures = [
            (word, f"{self.values[name]:.4g}" + (f" (floor {floor[name]:.4g})" if name in floor else ""))
            for name, word in words.items()
            if name in self.values
        ]
        return [
            *figures,
            ("floor", f"{self.floor_pictures}, {self.num_samples:,} pictures" if self.floor else "not measured"),
            ("samples", f"{self.samples}, {self.num_samples:,} pictures"),
            ("reference", f"{self.reference}, {self.num_reference:,} pictures"),
            ("network", f"{self.network}, {self.num_features:,} features"),
            ("size", f"{self.size[0]} x {self.size[1]} pixels"),
            *((f"crop and resizing of the {side}", said) for side, said in self.preparation.items()),
            ("rounding", self.rounding),
            ("neighbors for precision and recall", str(self.neighbors)),
        ]


class _Measured:
    """The vectors of a set and what was seen of its pictures."""

    def __init__(self, pictures: PictureSet, vectors: FeatureVectors, device: str | torch.device) -> None:
        self.accuracy, self.size, self.whole_numbers, self.channels = ClassAccuracy(), (0, 0), False, 0
        parts: list[Tensor] = []
        hashes: list[int] = []
        for batch in pictures.batches:
            images, labels = batch if isinstance(batch, tuple) else (batch, None)
            self._check(images, pictures.name, first=not parts)
            images = to_uint8(images).to(device)
            parts.append(vectors(images))
            scores = None if labels is None else vectors.scores(parts[-1])
            if labels is not None and scores is not None:
                self.accuracy.update(scores, labels)
            for picture in images.cpu().numpy():
                digest = hashlib.blake2b(picture.tobytes(), digest_size=8).digest()
                hashes.append(int.from_bytes(digest, "big", signed=True))
        if not parts:
            raise ValueError(f"expected pictures, got none: {pictures.name}; nothing was measured")
        self.features = torch.cat(parts)
        self.num = int(all_reduce_sum(torch.tensor(len(self.features))))
        self.hashes = all_gather_rows(torch.tensor(hashes))

    def _check(self, images: Tensor, name: str, first: bool) -> None:
        size, whole = (images.shape[-2], images.shape[-1]), images.dtype == torch.uint8
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not (whole or images.is_floating_point()):
            raise ValueError(
                f"expected batches (B, C, H, W) of 1 or 3 channels, uint8 or floats in [0, 1], got "
                f"{tuple(images.shape)} of {images.dtype}: {name}"
            )
        if not first and (size != self.size or whole != self.whole_numbers):
            raise ValueError(
                f"expected pictures of one size and type, got {self.size[0]} x {self.size[1]} and {size[0]} x "
                f"{size[1]} pixels: {name}; crop and resize them (size)"
            )
        if not whole and len(images) and not (images.amin() >= -0.5 and images.amax() <= 1.5):
            raise ValueError(
                f"expected floats in [0, 1], got {float(images.amin()):.3g} to {float(images.amax()):.3g}: {name}; "
                "scale them, and clamp what a decoder gave"
            )
        if not first and images.shape[1] != self.channels:
            raise ValueError(
                f"expected pictures of equal channels, got {self.channels} and {images.shape[1]}: {name}; convert them"
            )
        self.size, self.whole_numbers, self.channels = size, whole, images.shape[1]


def compare_pictures(
    samples: PictureSet,
    reference: PictureSet,
    network: nn.Module,
    *,
    floor: PictureSet | None,
    name: str | None = None,
    neighbors: int = 3,
    unequal: bool = False,
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Measure pictures against a reference: Frechet distance, precision, recall, class accuracy, and the floor.

    The name of the distance follows from what is compared, and from the network: ``FID`` with
    :class:`gritvq.images.InceptionFeatures`, else ``FD`` and the network's name.

    ================== ================== ============== ==========================================================
    samples            reference          name           says
    ================== ================== ============== ==========================================================
    generated          real               gFD, gFID      how good tokenizer and prior are together
    reconstructed      real               rFD, rFID      how good the tokenizer is; the limit of the one above
    generated          reconstructed      prior-only FD  how good the prior is; hides what the tokenizer loses
    real               real               real-real FD   the floor
    ================== ================== ============== ==========================================================

    Args:
        samples: What is judged.
        reference: What it is compared with.
        network: What :class:`gritvq.images.FeatureVectors` takes; with a ``head`` and labels, class accuracy is
            measured too.
        floor: Other pictures of the reference's kind, as many as there are samples: for a reference of test pictures,
            train pictures. None leaves the floor out, and the result says so.
        name: What the caller calls the distance, such as "gFID"; refused where it is another one.
        neighbors: For precision and recall.
        unequal: Whether samples and reference may be different in number, as with the statistics of a whole train set.
        device: Where the network runs.

    Raises:
        ValueError: If the comparison would mislead: different numbers on the two sides, other sizes, uint8 against
            floats, a name that is another comparison's, a floor of the reference's own pictures; or if there are too
            few or too small pictures.

    Example:
        >>> from gritvq.images import PictureSet, compare_pictures
        >>> network = nn.Conv2d(3, 4, 3)
        >>> sets = [PictureSet([torch.rand(50, 3, 8, 8)], "real", name) for name in ("train", "test")]
        >>> fakes = PictureSet([0.5 * torch.rand(50, 3, 8, 8)], "generated", "dark noise")
        >>> found = compare_pictures(fakes, sets[1], network, floor=sets[0])
        >>> found.metric, found.values["frechet_distance"] > 10 * found.floor["frechet_distance"]
        ('gFD, Conv2d features', True)
    """
    check_integer("neighbors", neighbors)
    vectors = FeatureVectors(network).to(device)
    metric = _name_of(samples.kind, reference.kind, vectors, name)
    if floor is not None and floor.kind != reference.kind:
        raise ValueError(
            f"expected a floor of the reference's kind, {reference.kind}, got {floor.kind} pictures ({floor.name})"
        )
    sets = {"samples": samples, "reference": reference, **({"floor": floor} if floor is not None else {})}
    _check_numbers({side: each.num for side, each in sets.items() if each.num is not None}, unequal)
    measured = {side: _Measured(each, vectors, device) for side, each in sets.items()}
    _check_numbers({side: each.num for side, each in measured.items()}, unequal)
    for side, each in measured.items():
        _check_alike(side, each, measured["reference"])
    own, real = measured["samples"], measured["reference"]
    if "floor" in measured and float(torch.isin(measured["floor"].hashes, real.hashes).double().mean()) > 0.5:
        raise ValueError(
            f"expected other pictures than the reference's for the floor, got mostly the same; take another split than "
            f"that of {reference.name}"
        )
    return Evaluation(
        metric=metric,
        values={**_values(own, real, neighbors), "distinct": len(own.hashes.unique()) / own.num},
        floor=_values(measured["floor"], real, neighbors) if "floor" in measured else None,
        network=vectors.name,
        num_features=own.features.shape[1],
        samples=samples.name,
        reference=reference.name,
        floor_pictures=None if floor is None else floor.name,
        num_samples=own.num,
        num_reference=real.num,
        size=own.size,
        preparation={side: each.preparation for side, each in sets.items()},
        rounding=_ROUNDING,
        neighbors=neighbors,
    )


def _name_of(samples: Kind, reference: Kind, vectors: FeatureVectors, said: str | None) -> str:
    """The distance's name, checked against what the caller calls it."""
    if (samples, reference) not in _NAMES:
        allowed = "; ".join(f"{one} against {other}" for one, other in _NAMES)
        raise ValueError(f"expected {allowed}, got {samples} against {reference} pictures; check which set is which")
    name = _NAMES[samples, reference] + vectors.distance
    short = name.partition(",")[0]
    if said is not None and said not in (name, short):
        raise ValueError(
            f"expected the name {short!r} for {samples} against {reference} pictures by {vectors.name}, got {said!r}; "
            "another name needs another reference or network"
        )
    return name


def _check_numbers(numbers: dict[str, int], unequal: bool) -> None:
    own, others = numbers.get("samples"), {side: num for side, num in numbers.items() if side != "samples"}
    for side, num in others.items():
        if own is not None and num != own and not (unequal and side == "reference"):
            hint = ", or say that they may differ (unequal)" if side == "reference" else ""
            raise ValueError(
                f"expected as many pictures in the {side} as samples, since the distance depends on the number, got "
                f"{num:,} and {own:,}; take as many of both (num){hint}"
            )


def _check_alike(side: str, one: _Measured, other: _Measured) -> None:
    if one.size != other.size:
        raise ValueError(
            f"expected {side} and reference of one size, got {one.size[0]} x {one.size[1]} and {other.size[0]} x "
            f"{other.size[1]} pixels; crop and resize both the same way (size)"
        )
    if one.channels != other.channels:
        raise ValueError(
            f"expected {side} and reference of equal channels, got {one.channels} and {other.channels}; convert "
            "both to gray (1) or to RGB (3)"
        )
    if one.whole_numbers != other.whole_numbers:
        raise ValueError(
            f"expected {side} and reference both as uint8 or both as floats, got one of each; round the floats with "
            "gritvq.images.to_uint8, as PNG files are"
        )


def _values(own: _Measured, real: _Measured, neighbors: int) -> dict[str, float]:
    distance, manifold = FrechetDistance(own.features.shape[1]), PrecisionRecall(neighbors)
    for each, is_real in ((own, False), (real, True)):
        distance.update(each.features, real=is_real)
        manifold.update(each.features, real=is_real)
    accuracy = own.accuracy.compute()
    found = {"frechet_distance": distance.compute(), **manifold.compute()}
    return found if accuracy is None else {**found, "class_accuracy": accuracy}
