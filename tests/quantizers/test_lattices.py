"""Spherical lattices against all of their vectors: numbers, angles, exact choices, indices, memory."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from gritvq import SphericalLattice, from_config, spherical_lattice, to_config

KISSING = {"D4": 24, "E8": 240, "BW16": 4320, "Leech": 196560}


@pytest.fixture(scope="module", params=KISSING)
def every(request: pytest.FixtureRequest) -> tuple[SphericalLattice, Tensor]:
    """A lattice, and the codes of all indices."""
    quantizer = SphericalLattice(request.param).eval()
    return quantizer, quantizer.decode(torch.arange(*quantizer.codebook_sizes)[:, None])


def test_as_many_different_unit_vectors_as_the_lattice_has(every: tuple[SphericalLattice, Tensor]) -> None:
    quantizer, codes = every
    assert quantizer.codebook_sizes == (KISSING[quantizer.lattice],)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(len(codes)))
    whole = (codes * quantizer.norm * 2).round().long()
    torch.testing.assert_close(whole / (2 * quantizer.norm), codes)
    assert len(whole.unique(dim=0)) == len(codes) and torch.equal(whole.sum(0), torch.zeros(quantizer.dim).long())
    assert torch.equal((-whole).unique(dim=0), whole.unique(dim=0))


def test_angles_are_those_of_a_lattice(every: tuple[SphericalLattice, Tensor]) -> None:
    """Products of shortest vectors are multiples of a quarter, and none but the vector itself is within 60 degrees.

    Their squares sum to K / D for any direction: the codes are a spherical design.
    """
    quantizer, codes = every
    some = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))[:40]]
    products = some @ codes.T
    steps = (4 * products).round()
    torch.testing.assert_close(steps / 4, products, atol=1e-5, rtol=0)
    assert set(steps.unique().tolist()) <= {-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0}
    assert int((steps == 4).sum()) == len(some)
    direction = torch.nn.functional.normalize(torch.randn(5, quantizer.dim), dim=1)
    torch.testing.assert_close(
        (direction @ codes.T).square().sum(1), torch.full((5,), len(codes) / quantizer.dim), rtol=1e-4, atol=0
    )


def test_sums_of_two_codes_at_120_degrees_are_codes(every: tuple[SphericalLattice, Tensor]) -> None:
    """What a lattice is, and tables of 196,560 other vectors are not."""
    quantizer, codes = every
    first = codes[:: max(1, len(codes) // 20)]
    for one in first:
        other = codes[(codes @ one + 0.5).abs() < 1e-4][:50]
        total = one + other
        assert len(other) > 0
        torch.testing.assert_close(quantizer.decode(quantizer.encode(total)), total, atol=1e-5, rtol=0)


def test_the_nearest_of_all_codes(every: tuple[SphericalLattice, Tensor]) -> None:
    quantizer, codes = every
    x = torch.randn(300, quantizer.dim)
    x[:40, 3:] *= 0.1  # directions near few axes, where pairs win
    x[40:80] = x[40:80].sign() + 0.1 * x[40:80]  # near corners, where full vectors and words win
    x[80:90] = codes[torch.randint(len(codes), (10,))] * 7
    products = x.double() @ codes.double().T
    found = quantizer.encode(x)
    torch.testing.assert_close(products.gather(1, found)[:, 0], products.amax(1), rtol=1e-9, atol=0)
    assert torch.equal(quantizer(x).quantized, quantizer.decode(found))
    ends = torch.tensor([0, *quantizer.ends])
    kinds = torch.bucketize(found[:, 0], ends, right=True).unique()
    assert len(kinds) == len(set(quantizer.ends))  # every shape was met


def test_every_shape_comes_back(every: tuple[SphericalLattice, Tensor]) -> None:
    quantizer, codes = every
    draw = torch.Generator().manual_seed(1)
    for start, end in zip((0, *quantizer.ends[:-1]), quantizer.ends, strict=True):
        if end > start:
            index = torch.randint(start, end, (1000, 1), generator=draw)
            index[0], index[1] = start, end - 1
            assert torch.equal(quantizer.encode(codes[index[:, 0]] * torch.rand(1000, 1).add(0.1)), index)


def test_a_choice_depends_on_the_vector_alone() -> None:
    quantizer, x = SphericalLattice(), torch.randn(700, 24)
    whole = quantizer.encode(x)
    assert torch.equal(torch.cat([quantizer.encode(row[None]) for row in x[:50]]), whole[:50])
    assert torch.equal(quantizer.encode(x.flip(0)), whole.flip(0))
    assert torch.equal(quantizer.encode(x.view(7, 100, 24)), whole.view(7, 100, 1))
    codes = quantizer.decode(torch.arange(0, 196560, 600)[:, None])
    other = [codes[(codes @ one - 0.5).abs().argmin()] for one in codes]
    between = codes + torch.stack(other)  # as near to the one as to the other
    alone = torch.cat([quantizer.encode(row[None]) for row in between])
    assert torch.equal(quantizer.encode(between), alone)


def test_pairs_are_numbered_as_they_are_counted() -> None:
    quantizer = SphericalLattice("D4")
    expected = torch.zeros(24, 4)
    for number, ((low, high), signs) in enumerate(product(combinations(range(4), 2), product((1, -1), repeat=2))):
        expected[number, low], expected[number, high] = signs[0] / math.sqrt(2), signs[1] / math.sqrt(2)
    torch.testing.assert_close(quantizer.decode(torch.arange(24)[:, None]), expected)


def test_gradients_are_those_of_the_unit_vector() -> None:
    quantizer = SphericalLattice("E8")
    x = torch.randn(5, 8, requires_grad=True)
    g = torch.randn(5, 8)
    (found,) = torch.autograd.grad(quantizer(x).quantized, x, g)
    (expected,) = torch.autograd.grad(torch.nn.functional.normalize(x, dim=1), x, g)
    torch.testing.assert_close(found, expected)


def test_the_commitment_loss() -> None:
    x, mask = torch.randn(6, 16), torch.tensor([True] * 4 + [False] * 2)
    output = SphericalLattice("BW16", commitment_weight=0.5)(x, mask)
    unit = torch.nn.functional.normalize(x, dim=1)
    expected = 0.5 * (unit - output.quantized)[:4].square().mean()
    torch.testing.assert_close(output.losses["commitment"], expected)
    assert SphericalLattice("BW16")(x).losses == {}


def test_half_precision_and_saving_change_no_code() -> None:
    quantizer = SphericalLattice()
    index = torch.randint(0, 196560, (200, 1))
    codes = quantizer.decode(index)
    assert torch.equal(quantizer.bfloat16().decode(index), codes) and not quantizer.state_dict()
    assert torch.equal(from_config(to_config(quantizer)).decode(index), codes)
    assert torch.equal(quantizer.to_empty(device="cpu").decode(index), codes)
    with torch.device("meta"):
        empty = SphericalLattice()
    assert empty.positions.is_meta and torch.equal(empty.to_empty(device="cpu").decode(index), codes)


def test_memory_is_that_of_words_and_not_of_codes() -> None:
    quantizer = SphericalLattice()
    stored = sum(each.numel() * each.element_size() for each in quantizer.buffers())
    assert stored < 200_000


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="expected a lattice of D4, E8, BW16, Leech, got 'A2'"):
        SphericalLattice("A2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="commitment_weight"):
        SphericalLattice("E8", commitment_weight=-1.0)
    with pytest.raises(ValueError, match="codebook_size"):
        spherical_lattice(8, 0)


@pytest.mark.parametrize(("size", "lattice"), [(1, "D4"), (200, "E8"), (4096, "BW16"), (10**6, "Leech")])
def test_the_preset_takes_the_closest_size(size: int, lattice: str) -> None:
    quantizer = spherical_lattice(6, size)
    assert quantizer.quantizer.lattice == lattice and quantizer(torch.randn(3, 6)).quantized.shape == (3, 6)
