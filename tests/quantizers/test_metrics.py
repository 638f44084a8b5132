"""Metrics against scikit-image, numpy and the one-batch result."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from gritvq import CodebookUsage, ReconstructionError
from gritvq.quantizers.functional import bits_per_token
from gritvq.quantizers.metrics import uniform_usage


def test_psnr_against_scikit_image() -> None:
    images = torch.rand(7, 3, 16, 12)
    decoded = images + 0.1 * torch.randn_like(images)
    whole, parts = ReconstructionError(), ReconstructionError()
    whole.update(decoded, images)
    for a, b in zip(decoded.split(3), images.split(3), strict=True):
        parts.update(a, b)
    expected = peak_signal_noise_ratio(images.numpy(), decoded.clamp(0, 1).numpy(), data_range=1.0)
    each = [
        peak_signal_noise_ratio(a.numpy(), b.clamp(0, 1).numpy(), data_range=1.0)
        for a, b in zip(images, decoded, strict=True)
    ]
    assert whole.compute()["psnr"] == pytest.approx(expected, rel=1e-6)
    assert whole.compute()["psnr_per_image"] == pytest.approx(np.mean(each), rel=1e-6)
    assert whole.compute()["psnr_per_image"] >= whole.compute()["psnr"]
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12)


def test_perfect_and_absent_pictures() -> None:
    metric = ReconstructionError()
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    assert metric.compute() == {"mse": 0.0, "psnr": 100.0, "psnr_per_image": 100.0}
    with pytest.raises(ValueError, match="expected equal shapes"):
        metric.update(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))


def test_usage_over_a_whole_set() -> None:
    indices = torch.randint(0, 60, (5000, 1))
    metric = CodebookUsage((64,))
    for part in indices.split(700):
        metric.update(part)
    metric.update(torch.full((10, 1), -1))
    counts = np.bincount(indices[:, 0].numpy(), minlength=64)
    p = counts[counts > 0] / counts.sum()
    numbers = metric.compute()
    assert numbers["usage"] == pytest.approx((counts > 0).mean())
    assert numbers["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert numbers["dead_codes"] == (counts == 0).sum() and numbers["tokens"] == 5000 == metric.num_tokens
    metric.reset()
    assert metric.num_tokens == 0 and metric.compute()["perplexity"] == 0


@pytest.mark.parametrize(("size", "num"), [(3, 4), (2, 7), (5, 1), (4, 0), (1, 3), (1, 0)])
def test_what_even_draws_would_use(size: int, num: int) -> None:
    """The mean over all sequences of codes, written out."""
    every = [len(set(draws)) / size for draws in itertools.product(range(size), repeat=num)]
    assert uniform_usage(size, num) == pytest.approx(sum(every) / len(every))
    assert uniform_usage(2**63, 2**20) == pytest.approx(2**-43)
    metric = CodebookUsage((size, 2))
    metric.update(torch.tensor([[0, -1]] * num, dtype=torch.int64).reshape(num, 2))
    assert metric.compute()["uniform_usage"] == pytest.approx(sum(every) / len(every) / 2)


def test_channels_are_counted_apart() -> None:
    metric = CodebookUsage((4, 2))
    metric.update(torch.tensor([[0, 0], [1, 0], [2, 0], [3, -1]]))
    numbers = metric.compute()
    assert numbers["usage"] == pytest.approx((1.0 + 0.5) / 2) and numbers["dead_codes"] == 1
    assert numbers["perplexity"] == pytest.approx((4 + 1) / 2)
    with pytest.raises(ValueError, match="expected indices with 2 channels last"):
        metric.update(torch.zeros(5, 1, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_small_types_are_in_range(dtype: torch.dtype) -> None:
    metric = CodebookUsage((256,))
    metric.update(torch.tensor([[3], [255]], dtype=dtype))
    assert metric.num_tokens == 2 and metric.counts[0][[3, 255]].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_index_out_of_range_is_refused_and_nothing_counted(dtype: torch.dtype) -> None:
    metric = CodebookUsage((4, 2**30))
    metric.update(torch.tensor([[3, 200]], dtype=dtype))
    for wrong in ([[0, 0], [4, 1]], [[-2, 0], [1, 1]], [[0, 0], [1, -5]]):
        with pytest.raises(ValueError, match=r"expected indices below \(4, 1073741824\) and -1 .*, got [4-]"):
            metric.update(torch.tensor(wrong, dtype=dtype))
    assert metric.num_tokens == 1 and metric.counts[0].tolist() == [0, 0, 0, 1]
    assert metric.counts[1].indices().tolist() == [[200]]
    with pytest.raises(ValueError, match="got 1073741824"):
        metric.update(torch.tensor([[0, 2**30]]))


@pytest.mark.parametrize("size", [2**24 + 1, 2**40, 2**63])
def test_large_codebooks_are_counted_by_what_is_seen(size: int) -> None:
    indices = torch.randint(0, 50, (3000, 2))
    indices[:7] = -1
    large, small = CodebookUsage((size, 50)), CodebookUsage((50, 50))
    spread = indices.clone()
    spread[:, 0] = torch.where(indices[:, 0] >= 0, indices[:, 0] * ((size - 1) // 49), -1)
    for part, own in zip(spread.split(700), indices.split(700), strict=True):
        large.update(part)
        small.update(own)
    assert large.counts[0].is_sparse and not large.counts[1].is_sparse
    assert large.counts[0].shape[0] == min(size, 2**63 - 1)
    assert torch.equal(large.counts[0].values(), small.counts[0]) and large.num_tokens == 2993
    numbers, expected = large.compute(), small.compute()
    assert numbers["perplexity"] == expected["perplexity"] and numbers["tokens"] == 2993
    assert numbers["usage"] == pytest.approx((50 / size + 1) / 2)
    assert numbers["dead_codes"] == float(size - 50)
    large.reset()
    assert large.compute()["perplexity"] == 0 == large.num_tokens


def test_positions_count_where_any_channel_does() -> None:
    metric = CodebookUsage((4, 16))
    metric.update(torch.tensor([[[0, -1], [-1, 3]], [[1, -1], [-1, -1]]]))
    assert metric.num_tokens == 3 == metric.compute()["tokens"]
    assert metric.bits_per_token() == pytest.approx((2 * 2 + 1 * 4) / 3)
    full = CodebookUsage((1000, 7))
    full.update(torch.zeros(11, 2, dtype=torch.int64))
    assert full.bits_per_token() == bits_per_token((1000, 7))
    assert math.isnan(CodebookUsage((4,)).bits_per_token())
    with pytest.raises(ValueError, match="expected codebook sizes >= 1"):
        CodebookUsage((4, 0))
