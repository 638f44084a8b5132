"""Crops of one size: which pixels they show."""

from __future__ import annotations

import pytest
import torch

from gritvq.images.crops import center_crop, free_corners, random_crops, ten_crops


def numbered(height: int, width: int) -> torch.Tensor:
    """A picture whose channels are the row and column of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)


def test_ten_crops_are_corners_and_center_and_their_mirror_images() -> None:
    crops = ten_crops(numbered(10, 14), 8, 1.25)  # the shorter side is 10 already
    corners = [tuple(crop[:2, 0, 0].tolist()) for crop in crops[:5]]
    assert corners == [(0, 0), (0, 6), (2, 0), (2, 6), (1, 3)]
    assert torch.equal(crops[5:], crops[:5].flip(-1))
    assert torch.equal(crops[4], numbered(10, 14)[:, 1:9, 3:11])


def test_a_picture_is_resized_by_its_shorter_side() -> None:
    gray = torch.full((3, 40, 80), 77, dtype=torch.uint8)
    assert ten_crops(gray, 16, 1.5).unique().tolist() == [77]
    assert torch.equal(center_crop(numbered(12, 8), 8), numbered(12, 8)[:, 2:10])
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    halved = center_crop(ramp, 32).float()
    assert (halved[0, 0, 1:-1] - (2 * torch.arange(1, 31) + 0.5)).abs().max() <= 0.5  # rounding to integers


def test_random_crops_depend_on_the_seed_and_avoid_a_square() -> None:
    picture = numbered(40, 50)
    crops = random_crops(picture, 8, 400, [3])
    assert torch.equal(crops, random_crops(picture, 8, 400, [3])) and not torch.equal(
        crops, random_crops(picture, 8, 400, [4])
    )
    for crop in crops[:20]:
        top, left = crop[:2, 0, 0].tolist()
        assert torch.equal(crop, picture[:, top : top + 8, left : left + 8])
    apart = random_crops(picture, 8, 400, [3], (10, 10, 20))
    inside = (apart[:, 0] >= 10) & (apart[:, 0] < 30) & (apart[:, 1] >= 10) & (apart[:, 1] < 30)
    assert not inside.any()
    assert len(free_corners(40, 50, 8)) == 33 * 43
    assert random_crops(numbered(4, 6), 8, 2, [0]).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda picture: ten_crops(picture, 0), "size >= 1"),
        (lambda picture: ten_crops(picture, 8, 0.5), r"scales in \[1, 10\]"),
        (lambda picture: random_crops(picture, 8, 0, [0]), "at least one random crop"),
        (lambda picture: random_crops(picture, 8, 1, [0], (0, 0, 20)), "got none"),
    ],
)
def test_wrong_numbers(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(numbered(20, 20))  # type: ignore[operator]
