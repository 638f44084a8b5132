"""A trained quantizer with another number of codes."""

from __future__ import annotations

import pytest
import torch

from gritvq import (
    FSQ,
    AffineCodebook,
    Codebook,
    DeadCodeRevival,
    EMAUpdate,
    FreeCodebook,
    MLPCodebook,
    NearestAssignment,
    RadialSurrogate,
    SpaceFillingAssignment,
    TransformerCodebook,
    VectorQuantizer,
    WassersteinLoss,
    rq,
    vq_vae_ema,
)
from gritvq.component import from_config, to_config
from gritvq.interop import resize_codebook

DIM, SIZE = 4, 16
CODEBOOKS = {
    "free": FreeCodebook,
    "normalized": lambda d, k: FreeCodebook(d, k, normalize=True),
    "affine": AffineCodebook,
    "affine-frozen": lambda d, k: AffineCodebook(d, k, base="frozen", lr_scale=(2.0, 3.0)),
    "mlp": MLPCodebook,
}


def trained(codebook: Codebook) -> VectorQuantizer:
    """With a map that is not the identity any more."""
    with torch.no_grad():
        for name, parameter in codebook.named_parameters():
            if name not in ("base", "up.weight"):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    metric = "cosine" if codebook.normalize else "euclidean"
    return VectorQuantizer(codebook, NearestAssignment(metric), RadialSurrogate())


def near_codes(quantizer: VectorQuantizer, radius: float = 0.05) -> torch.Tensor:
    """A vector at every code, at most this share of its distance to the nearest other code away from it."""
    codes = quantizer.codebook.codes().detach()
    gaps = torch.cdist(codes, codes).fill_diagonal_(torch.inf).amin(1)
    step = torch.randn(codes.shape)
    return codes + radius * gaps[:, None] * step / step.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("make", CODEBOOKS.values(), ids=CODEBOOKS.keys())
def test_growing_keeps_old_indices(make: type[Codebook]) -> None:
    torch.manual_seed(0)
    quantizer = trained(make(DIM, SIZE))
    counts = torch.arange(SIZE)
    before = {name: value.clone() for name, value in quantizer.state_dict().items() if isinstance(value, torch.Tensor)}
    quantizer_new, new_indices, parents = resize_codebook(quantizer, 24, counts)
    assert quantizer_new.codebook_sizes == (24,) and torch.equal(new_indices, torch.arange(SIZE))
    assert torch.equal(quantizer_new.codebook.codes()[:SIZE], quantizer.codebook.codes())
    x = near_codes(quantizer)
    assert torch.equal(quantizer.encode(x)[:, 0], torch.arange(SIZE))
    assert torch.equal(quantizer_new.encode(x), quantizer.encode(x))
    # the new ones come from the most used, and are the nearest codes of where they lie
    assert sorted(parents[SIZE:].tolist()) == [8, 9, 10, 11, 12, 13, 14, 15]
    added = quantizer_new.codebook.codes()[SIZE:]
    assert torch.equal(quantizer_new.encode(added)[:, 0], torch.arange(SIZE, 24))
    assert torch.equal(quantizer.encode(added)[:, 0], parents[SIZE:])
    for name, value in before.items():
        assert torch.equal(value, quantizer.state_dict()[name])
    for one, two in zip(quantizer.parameters(), quantizer_new.parameters(), strict=True):
        assert one.requires_grad == two.requires_grad
    assert to_config(quantizer_new)["init_args"]["codebook"]["init_args"]["codebook_size"] == 24
    again = from_config(to_config(quantizer_new))
    again.load_state_dict(quantizer_new.state_dict())
    assert torch.equal(again.encode(x), quantizer_new.encode(x))


@pytest.mark.parametrize("make", CODEBOOKS.values(), ids=CODEBOOKS.keys())
def test_shrinking_drops_the_least_used(make: type[Codebook]) -> None:
    torch.manual_seed(0)
    quantizer = trained(make(DIM, SIZE))
    counts = torch.randperm(SIZE)
    smaller = resize_codebook(quantizer, 5, counts)
    assert smaller.parents.tolist() == sorted((counts >= SIZE - 5).nonzero().squeeze(1).tolist())
    assert torch.allclose(smaller.quantizer.codebook.codes(), quantizer.codebook.codes()[smaller.parents], atol=1e-6)
    assert smaller.new_indices[smaller.parents].tolist() == list(range(5))
    assert (smaller.new_indices == -1).sum() == SIZE - 5
    x = near_codes(quantizer)[smaller.parents]
    assert torch.equal(smaller.quantizer.encode(x)[:, 0], smaller.new_indices[quantizer.encode(x)[:, 0]])


def test_growing_and_shrinking_back_is_where_it_was() -> None:
    torch.manual_seed(0)
    quantizer = trained(FreeCodebook(DIM, SIZE))
    larger = resize_codebook(quantizer, 50, torch.full((SIZE,), 10))
    counts = torch.cat([torch.full((SIZE,), 9), torch.zeros(50 - SIZE)])
    back = resize_codebook(larger.quantizer, SIZE, counts)
    assert torch.equal(back.quantizer.codebook.codes(), quantizer.codebook.codes())
    same = resize_codebook(quantizer, SIZE, torch.zeros(SIZE))
    assert torch.equal(same.quantizer.codebook.codes(), quantizer.codebook.codes())
    assert same.quantizer is not quantizer


def test_a_code_that_is_used_very_often_is_split_several_times() -> None:
    quantizer = VectorQuantizer(FreeCodebook(DIM, 4))
    found = resize_codebook(quantizer, 8, torch.tensor([1, 2, 100, 3]))
    assert found.parents.tolist() == [0, 1, 2, 3, 2, 2, 2, 2]
    assert resize_codebook(quantizer, 8, torch.full((4,), 7.0)).parents.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_same_seed_gives_the_same_codes() -> None:
    quantizer = VectorQuantizer(FreeCodebook(DIM, 4))
    counts = torch.tensor([1, 2, 3, 4])

    def codes(**more: torch.Generator) -> torch.Tensor:
        return resize_codebook(quantizer, 7, counts, **more).quantizer.codebook.codes()

    assert torch.equal(codes(), codes())
    assert torch.equal(codes(generator=torch.Generator().manual_seed(0)), codes())
    assert not torch.equal(codes(generator=torch.Generator().manual_seed(1)), codes())


def test_moving_averages_say_what_is_used_and_move_over() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.9), DeadCodeRevival(100)])
    x = near_codes(quantizer).repeat_interleave(torch.arange(1, SIZE + 1), 0)
    quantizer(x)
    quantizer.update_codebook()
    past = quantizer.statistics.ema_counts
    smaller = resize_codebook(quantizer, 4)
    assert smaller.parents.tolist() == [12, 13, 14, 15]
    assert torch.equal(smaller.quantizer.statistics.ema_counts, past[12:])
    larger = resize_codebook(quantizer, 20)
    assert larger.parents[SIZE:].tolist() == [15, 14, 13, 12]
    now = larger.quantizer.statistics.ema_counts
    assert torch.allclose(now.sum(), past.sum()) and torch.equal(now[:12], past[:12])
    assert torch.equal(now[12:16], past[12:] / 2) and torch.equal(now[16:], past[12:].flip(0) / 2)
    # and training goes on
    larger.quantizer(x)
    larger.quantizer.update_codebook()
    smaller.quantizer(x)
    smaller.quantizer.update_codebook()
    assert not quantizer.codebook.weight.requires_grad and not larger.quantizer.codebook.weight.requires_grad
    assert larger.quantizer.training and not resize_codebook(quantizer.eval(), 20).quantizer.training


@pytest.mark.parametrize(
    ("quantizer", "counts", "told"),
    [
        (FSQ([5, 5]), None, "expected a VectorQuantizer, got FSQ; resize the VectorQuantizers inside it"),
        (rq(4, 8), None, "expected a VectorQuantizer, got ResidualQuantizer"),
        (VectorQuantizer(FreeCodebook(4, 8)), None, "expected counts, or a quantizer that was trained with EMAUpdate"),
        (vq_vae_ema(4, 8), None, "expected counts, or a quantizer that was trained with EMAUpdate"),
        (VectorQuantizer(FreeCodebook(4, 8)), torch.ones(7), r"expected counts \(8,\) that are finite"),
        (VectorQuantizer(FreeCodebook(4, 8)), -torch.ones(8), r"expected counts \(8,\) that are finite"),
        (
            VectorQuantizer(TransformerCodebook(4, 8, width=8)),
            torch.ones(8),
            "expected a codebook whose codes can be selected, got TransformerCodebook; fold the quantizer first",
        ),
        (
            VectorQuantizer(FreeCodebook(4, 8), SpaceFillingAssignment()),
            torch.ones(8),
            "expected an assignment that takes the nearest code, got SpaceFillingAssignment",
        ),
        (
            VectorQuantizer(FreeCodebook(4, 8), learning=[WassersteinLoss(codebook_size=8)]),
            torch.ones(8),
            "expected rules without numbers per code, got WassersteinLoss",
        ),
    ],
)
def test_what_cannot_be_resized_is_said(quantizer: VectorQuantizer, counts: torch.Tensor | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        resize_codebook(quantizer, 12, counts)


def test_numbers_out_of_range_are_said() -> None:
    quantizer = VectorQuantizer(FreeCodebook(4, 8))
    with pytest.raises(ValueError, match="expected codebook_size >= 1, got 0"):
        resize_codebook(quantizer, 0, torch.ones(8))
    with pytest.raises(ValueError, match=r"expected distance in \(0, 0.5\), got 0.5"):
        resize_codebook(quantizer, 9, torch.ones(8), distance=0.5)
    flat = VectorQuantizer(AffineCodebook(4, 8))
    with torch.no_grad():
        flat.codebook.weight[0] = 0
    with pytest.raises(ValueError, match=r"expected to write 4 new codes, wrote 0: the map of AffineCodebook cannot"):
        resize_codebook(flat, 12, torch.ones(8))
