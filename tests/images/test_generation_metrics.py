"""The measures of generated pictures against closed forms, brute force and scipy; and what they refuse to compare."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from gritvq import vq_vae
from gritvq.images import (
    ClassAccuracy,
    FrechetDistance,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    PerceptualLoss,
    PictureSet,
    PrecisionRecall,
    StructuralSimilarity,
    compare_pictures,
    evaluate,
    open_pictures,
    prior_bits_per_pixel,
    to_uint8,
)


def exactly(mean: Tensor, covariance: Tensor, num: int = 50) -> Tensor:
    """Vectors whose own mean and covariance (over n - 1) are these."""
    x = torch.randn(num, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T).view(len(mean), -1)), x.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + mean


def distance(one: Tensor, other: Tensor, batch: int = 1000) -> float:
    metric = FrechetDistance(one.shape[1])
    for each, real in ((one, False), (other, True)):
        for part in each.split(batch):
            metric.update(part, real=real)
    return metric.compute()


# --- Frechet distance -------------------------------------------------------------------------------------------------


def test_two_gaussians_in_one_and_in_several_dimensions() -> None:
    one, other = (exactly(torch.tensor([m]).double(), torch.tensor([[s * s]]).double()) for m, s in ((1, 3), (4, 0.5)))
    assert distance(one, other) == pytest.approx(3**2 + 2.5**2, rel=1e-9)
    means, deviations = torch.randn(2, 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64) + 0.1
    one, other = (exactly(m, s.square().diag()) for m, s in zip(means, deviations, strict=True))
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert distance(one, other) == pytest.approx(float(expected), rel=1e-9)


def test_any_two_sets_against_scipy() -> None:
    one = torch.randn(40, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    other = torch.randn(70, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 2
    (m, s), (n, t) = ((x.numpy().mean(0), np.cov(x.numpy().T)) for x in (one, other))
    expected = np.square(m - n).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert distance(other, one) == pytest.approx(expected, rel=1e-9)
    assert distance(one, other, batch=7) == pytest.approx(expected, rel=1e-9)


def test_statistics_far_from_the_origin_do_not_round_away() -> None:
    one, other = torch.randn(2, 60, 3)
    far = [x.double() + 1000 for x in (one, other)]
    assert distance(*far) == pytest.approx(distance(one.double(), other.double()), rel=1e-6)


def test_the_same_set_is_at_distance_zero_also_if_features_are_constant() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    x[:, 3] = 0.25
    # the roots of eigenvalues that rounding made of 0: the square root of the smallest float64
    assert 0 <= distance(x, x) < 1e-6


def test_fewer_vectors_than_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least 5 pictures on each side .* 4 features, got 4"):
        distance(torch.randn(4, 4), torch.randn(9, 4))
    assert math.isfinite(distance(torch.randn(5, 4), torch.randn(9, 4)))
    with pytest.raises(ValueError, match=r"expected vectors \(B, 4\), got \(2, 3\)"):
        FrechetDistance(4).update(torch.zeros(2, 3), real=True)


# --- precision and recall ---------------------------------------------------------------------------------------------


def manifold(real: Tensor, fake: Tensor, neighbors: int = 3) -> dict[str, float]:
    metric = PrecisionRecall(neighbors)
    for each, is_real in ((real, True), (fake, False)):
        for part in each.split(30):
            metric.update(part, real=is_real)
    return metric.compute()


def test_precision_and_recall_of_sets_with_known_answers() -> None:
    cluster = torch.rand(40, 3)
    two = torch.cat([cluster, torch.rand(40, 3) + 100])  # two clusters
    assert manifold(two, two) == {"precision": 1, "recall": 1}
    inside = cluster.mean(0) + 0.1 * (torch.rand(80, 3) - 0.5)  # well inside of the first
    assert manifold(two, inside)["precision"] == 1 and manifold(two, inside)["recall"] < 0.5
    assert manifold(two, two + 1000) == {"precision": 0, "recall": 0}
    half = torch.cat([cluster, torch.rand(40, 3) - 100])  # as many again where no real one is
    assert manifold(two, half) == {"precision": 0.5, "recall": 0.5}


def test_precision_and_recall_by_brute_force() -> None:
    real, fake = np.random.default_rng(0).normal(size=(2, 35, 2))
    fake = 0.6 * fake + 1.5

    def among(points: np.ndarray, tested: np.ndarray) -> float:
        radii = [sorted(np.linalg.norm(points - point, axis=1))[3] for point in points]
        inside = [any(np.linalg.norm(x - p) <= r for p, r in zip(points, radii, strict=True)) for x in tested]
        return float(np.mean(inside))

    found = manifold(torch.from_numpy(real), torch.from_numpy(fake))
    assert found == {"precision": among(real, fake), "recall": among(fake, real)}
    assert 0 < found["recall"] < 1 and 0 < found["precision"] < 1
    with pytest.raises(ValueError, match="expected more than 3 pictures on each side for precision and recall, got 3"):
        manifold(torch.rand(9, 2), torch.rand(3, 2))


# --- whole evaluations ------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Means of rectified responses of random filters; recognizes which color is the brightest."""

    name, least_size = "random filters", 4

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.filters = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(8, 3, bias=False)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.weight[:, :3] = torch.eye(3)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, self.filters(images).relu()]


def pictures(num: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Soft patterns, each of the color of its class, uint8; and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % classes
    coarse = torch.rand(num, 1, 5, 5, generator=generator)
    pattern = F.interpolate(coarse, (12, 12), mode="bilinear") * (0.4 + 0.6 * F.one_hot(labels, 3))[..., None, None]
    return to_uint8(pattern), labels


def real(seed: int = 0, num: int = 120) -> PictureSet:
    return PictureSet([pictures(num, seed)], "real", f"made with seed {seed}")


def generated(images: Tensor, labels: Tensor | None = None) -> PictureSet:
    batches = images.split(50) if labels is None else zip(images.split(50), labels.split(50), strict=True)
    return PictureSet(list(batches), "generated", "samples")


def blurred(images: Tensor, radius: int) -> Tensor:
    padded = F.pad(images.float() / 255, (radius,) * 4, "replicate")
    return to_uint8(F.avg_pool2d(padded, 2 * radius + 1, 1))


def noisy(images: Tensor, scale: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    return to_uint8(images.float() / 255 + scale * noise)


def test_the_distance_grows_with_damage_and_the_floor_does_not_vanish() -> None:
    test, (train, _) = real(0), pictures(120, 1)

    def measured(images: Tensor) -> float:
        found = compare_pictures(generated(images), test, Network(), floor=None)
        return found.values["frechet_distance"]

    floor = compare_pictures(generated(train), test, Network(), floor=real(1)).floor
    assert floor is not None
    ladders = [
        [blurred(train, radius) for radius in (1, 2, 4)],
        [noisy(train, scale) for scale in (0.03, 0.06, 0.12, 0.24)],
        [pictures(120, 1, classes)[0] for classes in (2, 1)],
    ]
    for ladder in ladders:
        found = [floor["frechet_distance"], *map(measured, ladder)]
        assert found[0] > 0 and found == sorted(set(found))
    assert measured(pictures(120, 0)[0]) < 1e-6 < floor["frechet_distance"]


def test_an_evaluation_says_all_that_it_depends_on() -> None:
    images, labels = pictures(120, 1)
    wrong = torch.where(torch.arange(120) < 30, (labels + 1) % 3, labels)
    images[7] = images[4]
    test, train = real(0), real(2)
    found = compare_pictures(generated(images, wrong), test, Network(), floor=train, neighbors=4, name="gFD")
    assert found.metric == "gFD, random filters features" and (found.network, found.num_features) == (
        "random filters",
        8,
    )
    assert (found.reference, found.floor_pictures) == ("made with seed 0", "made with seed 2")
    assert (found.num_samples, found.num_reference, found.size, found.neighbors) == (120, 120, (12, 12), 4)
    assert found.values["class_accuracy"] == 0.75 and found.floor is not None and found.floor["class_accuracy"] == 1
    assert found.values["distinct"] == 119 / 120
    with torch.no_grad():
        maps = [Network()(x / 255) for x in (images, pictures(120, 0)[0])]
    own, others = (torch.cat([each.double().mean((2, 3)) for each in one], 1) for one in maps)
    assert found.values["frechet_distance"] == pytest.approx(distance(own, others), rel=1e-6)
    expected = manifold(others, own, 4)
    assert {name: found.values[name] for name in expected} == expected
    assert json.loads(json.dumps(found.to_dict()))["floor"] == found.floor
    said = "\n".join(f"{name}: {text}" for name, text in found.rows())
    for part in (
        "gFD, random filters features: ",
        "(floor ",
        "made with seed 0, 120 pictures",
        "12 x 12",
        "round(255 x)",
    ):
        assert part in said
    without = compare_pictures(generated(images), test, Network(), floor=None)
    assert without.floor is None and ("floor", "not measured") in without.rows() and without.neighbors == 3
    assert "class_accuracy" not in without.values  # no labels


class AnyChannels(torch.nn.Module):
    """Means of blocks, one channel standing for three equal ones."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images.expand(-1, 3, -1, -1), 2).flatten(1)


@pytest.mark.parametrize(
    "kinds, name",
    [
        (("generated", "real"), "gFD"),
        (("reconstructed", "real"), "rFD"),
        (("generated", "reconstructed"), "prior-only FD"),
        (("real", "real"), "real-real FD"),
    ],
)
def test_the_name_follows_from_what_is_compared(kinds: tuple[Any, Any], name: str) -> None:
    one, other = (PictureSet(real(seed).batches, kind, kind) for seed, kind in enumerate(kinds))
    assert compare_pictures(one, other, Network(), floor=None).metric == f"{name}, random filters features"
    for wrong in {"gFD", "rFD", "prior-only FD", "gFID", "FID"} - {name}:
        with pytest.raises(ValueError, match=f"expected the name '{name}' for .*, got '{wrong}'"):
            compare_pictures(one, other, Network(), floor=None, name=wrong)


def test_comparisons_that_mislead_are_refused() -> None:
    images, labels = pictures(120, 1)
    samples, test, network = generated(images), real(0), Network()

    def refused(message: str, one: PictureSet, other: PictureSet, **more: Any) -> None:
        with pytest.raises(ValueError, match=message):
            compare_pictures(one, other, network, **{"floor": None, **more})

    fewer = generated(images[:90])
    refused("expected as many pictures in the reference as samples, .* got 120 and 90; .*unequal", fewer, test)
    assert compare_pictures(fewer, test, network, floor=real(3, 90), unequal=True).num_samples == 90
    refused(
        "expected as many pictures in the floor as samples, .* got 120 and 90", fewer, test, floor=real(3), unequal=True
    )
    refused("both as uint8 or both as floats, got one of each", generated(images / 255), test)
    refused(r"expected floats in \[0, 1\], got -1 to .*: samples", generated(2 * images / 255 - 1), test)
    refused(r"expected floats in \[0, 1\], got .* to 25\d: samples", generated(images.float()), test)
    refused(r"expected batches .* of torch.int64: samples", generated(images.long()), test)
    refused("samples and reference of one size, got 10 x 12 and 12 x 12 pixels", generated(images[:, :, 1:-1]), test)
    gray = images[:, :1]
    with pytest.raises(ValueError, match="samples and reference of equal channels, got 1 and 3; convert"):
        compare_pictures(generated(gray), test, AnyChannels(), floor=None)
    with pytest.raises(ValueError, match="of equal channels, got 3 and 1: two"):
        compare_pictures(PictureSet([images, gray], "generated", "two"), test, AnyChannels(), floor=None)
    refused("expected at least 9 pictures on each side .* got 8", generated(images[:8]), real(0, 8))
    refused("at least 4 x 4 pixels for Network, got 3 x 12", generated(images[:, :, :3]), test)
    refused(
        "one size and type, got 12 x 12 and 9 x 12", PictureSet([images, images[:, :, :9]], "generated", "two"), test
    )
    refused("got mostly the same", samples, test, floor=real(0))
    refused("expected a floor of the reference's kind, real, got generated", samples, test, floor=generated(images))
    refused("got real against generated pictures", test, samples)
    refused("expected pictures, got none: nothing", PictureSet([], "generated", "nothing"), test)
    refused(r"labels in 0..2, the classes of the classifier, got \[3", generated(images, labels + 3), test)


def test_classes_are_read_from_names_that_generate_writes_only(tmp_path: Path) -> None:
    names = ["00000-3.png", "100000-12.png", "00003-boeing-747.png", "00004-747.jpg", "photo-7.png", "0-5.png", "7.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    pictures = PictureSet.of(open_pictures(tmp_path), "generated", "files", batch_size=1)
    found = [int(batch[1]) if isinstance(batch, tuple) else None for batch in pictures.batches]
    opened = [group[0].name for group, _ in open_pictures(tmp_path).batches(1)]
    assert dict(zip(opened, found, strict=True)) == dict.fromkeys(names) | {"00000-3.png": 3, "100000-12.png": 12}


def test_sets_from_files(tmp_path: Path) -> None:
    images, _ = pictures(40, 1)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number:02}.png")
    opened = open_pictures(tmp_path)
    whole = PictureSet.of(opened, "real", "files", batch_size=7)
    assert torch.equal(torch.cat(list(whole.batches)), images) and whole.preparation == "none"  # type: ignore[arg-type]
    chosen = [torch.cat(list(PictureSet.of(opened, "real", "files", num=25, seed=s).batches)) for s in (0, 0, 1)]  # type: ignore[arg-type]
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2]) and len(chosen[0]) == 25
    assert not torch.equal(chosen[0], images[:25])
    assert len({image.numpy().tobytes() for image in chosen[0]}) == 25
    small = PictureSet.of(open_pictures([images[0, :, :, 2:10]]), "real", "one", size=6)
    expected = F.interpolate(images[:1, :, 2:10, 2:10] / 255, (6, 6), mode="bilinear", antialias=True)
    assert torch.equal(next(iter(small.batches)), to_uint8(expected)) and "6 x 6" in small.preparation  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 1 to 40 pictures, got num=41: files has no more"):
        PictureSet.of(opened, "real", "files", num=41)
    read: list[Tensor] = []
    network = Network()
    network.register_forward_hook(lambda *given: read.append(given[1][0]))
    with pytest.raises(ValueError, match="expected as many pictures in the reference as samples"):
        compare_pictures(whole, PictureSet.of(opened, "real", "some", num=30), network, floor=None)
    assert not read  # known before the work


# --- other figures ----------------------------------------------------------------------------------------------------


def test_class_accuracy() -> None:
    metric = ClassAccuracy()
    assert metric.compute() is None
    metric.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
    metric.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 1]))
    assert metric.compute() == 0.75
    for labels in ([0, -1], [2, 0], [0]):
        with pytest.raises(ValueError, match=r"expected 2 labels in 0..1, the classes of the classifier"):
            metric.update(torch.zeros(2, 2), torch.tensor(labels))


def test_structural_similarity_against_scikit_image() -> None:
    images = torch.rand(5, 3, 20, 17)
    decoded = images + 0.2 * torch.randn_like(images)
    settings: dict[str, Any] = dict(data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5)
    each = [
        structural_similarity(
            x.double().numpy(), y.double().clamp(0, 1).numpy(), use_sample_covariance=False, **settings
        )
        for x, y in zip(images, decoded, strict=True)
    ]
    metric = StructuralSimilarity()
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(decoded[part], images[part])
    metric.update(images[:, :, :10], images[:, :, :10])  # too small to count
    assert metric.compute()["ssim"] == pytest.approx(np.mean(each), rel=1e-9)
    assert StructuralSimilarity().compute() == {}
    with pytest.raises(ValueError, match="expected equal shapes"):
        metric.update(images, images[:1])


def test_the_evaluation_of_a_tokenizer_joins_them() -> None:
    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    tokenizer = ImageTokenizer(ImageEncoder(4, **shape), vq_vae(4, 16), ImageDecoder(4, **shape))
    images, loss = torch.rand(5, 3, 16, 16), PerceptualLoss(Network())
    numbers, _ = evaluate(tokenizer, images.split(2), perceptual=loss)
    decoded = tokenizer.eval()(images).reconstruction.detach()
    assert numbers["perceptual_distance"] == pytest.approx(float(loss(decoded.clamp(0, 1), images)), rel=1e-5)
    metric = StructuralSimilarity()
    metric.update(decoded, images)
    assert numbers["ssim"] == pytest.approx(metric.compute()["ssim"], rel=1e-6)
    assert "ssim" not in evaluate(tokenizer, [images[..., :8]])[0]


def test_bits_per_pixel_under_a_prior() -> None:
    nats = torch.tensor([-10.0, -30.0])
    assert prior_bits_per_pixel(nats, 16) == pytest.approx(20 / math.log(2) / 16)
    for wrong in ((nats, 0), (nats[:0], 16)):
        with pytest.raises(ValueError, match="expected pictures of at least 1 pixel"):
            prior_bits_per_pixel(*wrong)
