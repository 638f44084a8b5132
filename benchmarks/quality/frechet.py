"""Is the Frechet distance a measure? Known damage to CIFAR-10's train pictures, against its test pictures.

    python -m benchmarks.quality.frechet --data PATH-TO-CIFAR10 --network PATH-TO-CIFAR10-RESNET56

10,000 train pictures, drawn at random: as they are (the floor), blurred, with noise, or of fewer classes. Each set is
compared with all 10,000 test pictures, both in 8 bits. The network was trained on the train pictures. A sound distance
grows with each kind of damage, and is above the floor everywhere.

Writes ``benchmarks/results/frechet_*.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.quality.common import RESULTS, circumstances, hardware
from rich.progress import track
from torch import Tensor

from gritvq.images import (
    CIFARResNet,
    ClassAccuracy,
    FeatureVectors,
    FrechetDistance,
    PictureSet,
    PrecisionRecall,
    open_pictures,
    to_uint8,
)
from gritvq.results import write_results

NUM, SEED, BATCH = 10_000, 0, 250
IDENTITY = ("damage", "amount", "codebook_size", "seed")
Damage = Callable[[Tensor], Tensor]


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Convolved with a Gaussian; the border repeated."""
    radius = round(3 * deviation)
    window = (-0.5 * (torch.arange(-radius, radius + 1) / deviation).square()).exp()
    window = window / window.sum()
    planes = F.pad(images, (radius,) * 4, "replicate").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1)).view(images.shape)


def noisy(images: Tensor, deviation: float) -> Tensor:
    """With Gaussian noise; the same for a batch of one size."""
    return images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))


DAMAGES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "blur (pixels)": (blurred, (0.5, 1.0)),
    "noise (of 1)": (noisy, (0.02, 0.05, 0.1)),
}
CLASSES = (8, 5, 2)


def vectors_of(
    pictures: PictureSet, network: FeatureVectors, damage: Damage | None = None
) -> tuple[Tensor, float | None]:
    """Features of a set, and how many of its pictures are recognized."""
    parts, accuracy = [], ClassAccuracy()
    for images, labels in pictures.batches:
        parts.append(network(images if damage is None else to_uint8(damage(images.float() / 255))))
        scores = network.scores(parts[-1])
        assert scores is not None
        accuracy.update(scores, labels)
    return torch.cat(parts), accuracy.compute()


def train_set(data: str, num_classes: int) -> PictureSet:
    """Of the first classes, as many pictures as the others have."""
    pictures = open_pictures(data, split="train")
    if num_classes < 10:
        pictures = pictures.part([n for n in range(len(pictures)) if pictures.source.label(n) < num_classes])
    return PictureSet.of(pictures, "real", "train", num=NUM, seed=SEED, batch_size=BATCH)


def cases(data: str) -> Iterator[tuple[str, float, PictureSet, Damage | None]]:
    """Damage, its amount, the pictures before, what is done to each batch."""
    whole = train_set(data, 10)
    yield "none (floor)", 0.0, whole, None
    for name, (function, amounts) in DAMAGES.items():
        for amount in amounts:
            yield name, amount, whole, lambda images, f=function, a=amount: f(images, a)  # type: ignore[misc]
    for number in CLASSES:
        yield "classes", float(number), train_set(data, number), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with CIFAR-10")
    parser.add_argument("--network", required=True, help="folder with the classifier")
    words = parser.parse_args()
    classifier = CIFARResNet(words.network).to(memory_format=torch.channels_last)  # faster on processors
    network = FeatureVectors(classifier)
    test = open_pictures(words.data, split="test")
    reference, _ = vectors_of(PictureSet.of(test, "real", "test", batch_size=BATCH), network)
    results: list[dict[str, Any]] = []
    for name, amount, pictures, damage in track(list(cases(words.data)), "measuring"):
        own, accuracy = vectors_of(pictures, network, damage)
        distance, manifold = FrechetDistance(own.shape[1]), PrecisionRecall()
        for features, real in ((own, False), (reference, True)):
            distance.update(features, real=real)
            manifold.update(features, real=real)
        figures = {"frechet_distance": distance.compute(), **manifold.compute(), "class_accuracy": accuracy}
        results.append({"damage": name, "amount": f"{amount:g}", "codebook_size": 0, "seed": SEED, **figures})
        print(results[-1], flush=True)
    about = circumstances(
        f"{NUM} train pictures against {len(reference)} of test, {network.name}", Path(words.data).name
    )
    path = RESULTS / f"frechet_{hardware()}_{date.today():%Y%m}.csv"
    print(write_results(path, results, about, IDENTITY))


if __name__ == "__main__":
    main()
