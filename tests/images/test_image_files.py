"""Where decoded pictures go."""

from __future__ import annotations

import numpy as np
import pytest

from gritvq.images.files import picture_paths


@pytest.mark.parametrize(
    "name", ["/a", "../a", "a/../../b", "", ".", "a\0b", "x" * 300, "deep/" + "x" * 201, f"{'x' * 201}/a"]
)
def test_names_that_can_be_no_file_below_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="expected picture names"):
        picture_paths(["good.png", name])


def test_every_picture_has_a_file_of_its_own() -> None:
    """Any names from few letters: no two paths are equal, none is a folder of another."""
    chosen = np.random.default_rng(0)
    parts = ["a", "a.png", "a.png.png", "b.jpg", "a.", ".a"]
    for _ in range(300):
        names = ["/".join(chosen.choice(parts, chosen.integers(1, 4))) for _ in range(6)]
        paths = picture_paths(names)
        assert len(set(paths)) == len(names) and all(path.suffix == ".png" for path in paths)
        assert not set(paths) & {folder for path in paths for folder in path.parents}
