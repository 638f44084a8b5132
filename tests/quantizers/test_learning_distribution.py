"""Distribution consistency: closed forms, and the Wasserstein distance of Gaussians by another road."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from gritvq import Context, DistributionConsistencyLoss, FreeCodebook, VectorQuantizer


def distance(codes: Tensor) -> Tensor:
    c = Context(codes[:1], codes[:1], torch.zeros(1).long(), torch.ones(1).bool(), codes)
    return DistributionConsistencyLoss(1.0).loss(c)["distribution"]


def white(size: int = 50, dim: int = 5) -> Tensor:
    """Codes of mean 0 and covariance Id."""
    codes = torch.randn(size, dim, dtype=torch.float64)
    q, _ = torch.linalg.qr(codes - codes.mean(0))
    return q * (size - 1) ** 0.5


class TestDistributionConsistency:
    def test_closed_forms(self) -> None:
        codes, shift = white(), torch.randn(5, dtype=torch.float64)
        assert float(distance(codes).abs()) < 1e-12
        for scale in (0.0, 0.5, 3.0):
            torch.testing.assert_close(float(distance(scale * codes)), 5 * (scale - 1) ** 2)
        torch.testing.assert_close(distance(codes + shift), shift.square().sum())

    @pytest.mark.parametrize(("size", "dim"), [(50, 5), (6, 5), (3, 5), (2, 1)])
    def test_is_the_distance_of_gaussians(self, size: int, dim: int) -> None:
        codes = torch.randn(size, dim, dtype=torch.float64) @ torch.randn(dim, dim, dtype=torch.float64) + 0.3
        mean, covariance = codes.mean(0).numpy(), np.cov(codes.numpy(), rowvar=False).reshape(dim, dim)
        root = scipy.linalg.sqrtm(covariance).real
        expected = mean @ mean + np.trace(covariance + np.eye(dim) - 2 * root)
        np.testing.assert_allclose(float(distance(codes)), expected, rtol=1e-6)

    def test_gradient_is_that_of_the_definition(self) -> None:
        codes = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(distance, codes)

    @pytest.mark.parametrize(("size", "dim"), [(8, 3), (2, 3), (1, 3)])
    def test_equal_codes_have_a_finite_gradient(self, size: int, dim: int) -> None:
        codes = torch.full((size, dim), 0.7, requires_grad=True)
        loss = distance(codes)
        loss.backward()
        torch.testing.assert_close(float(loss.detach()), dim * (0.7**2 + 1), rtol=1e-5, atol=0)
        assert codes.grad is not None and bool(torch.isfinite(codes.grad).all()) and bool(codes.grad.any())

    def test_descent_makes_the_codes_white(self) -> None:
        codebook = FreeCodebook(3, 40)
        quantizer = VectorQuantizer(codebook, learning=[DistributionConsistencyLoss(1.0)])
        codebook.write(torch.arange(40), torch.ones(40, 3))  # all in one place
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            quantizer(torch.randn(4, 3)).loss.backward()
            optimizer.step()
        codes = codebook.codes().detach()
        torch.testing.assert_close(codes.mean(0), torch.zeros(3), rtol=0, atol=0.02)
        torch.testing.assert_close(torch.cov(codes.T), torch.eye(3), rtol=0, atol=0.05)

    def test_weight(self) -> None:
        assert DistributionConsistencyLoss().weight == 0.1
        with pytest.raises(ValueError, match="expected weight >= 0, got -1"):
            DistributionConsistencyLoss(-1)
