"""State dicts that are read whole or not at all."""

from __future__ import annotations

import pytest
import torch

from gritvq.interop import Weights


def test_every_tensor_must_be_read() -> None:
    state = {"a.x": torch.ones(2, 3), "a.y": torch.zeros(1), "a.z.w": torch.ones(4), "b": torch.ones(1)}
    weights = Weights(state, "a.")
    assert weights.names == ["x", "y", "z.w"] and "x" in weights and "b" not in weights
    assert torch.equal(weights.take("x", (2, None)), state["a.x"]) and "x" not in weights
    with pytest.raises(ValueError, match=r"expected no other tensors, got a\.y, a\.z\.w; the module has parts"):
        weights.finish()
    weights.ignore("y|q")
    part = weights.part("z.")
    weights.finish()
    with pytest.raises(ValueError, match=r"got a\.z\.w"):
        part.finish()
    assert part.take("w").shape == (4,)
    part.finish()


def test_what_is_missing_or_of_another_shape() -> None:
    weights = Weights({"a.x": torch.ones(2, 3)}, "a.")
    with pytest.raises(ValueError, match=r"expected a tensor a\.codes, got x; check which module"):
        weights.take("codes")
    with pytest.raises(ValueError, match=r"expected a\.x of shape \('any', 4\), got \(2, 3\)"):
        weights.take("x", (None, 4))
    with pytest.raises(ValueError, match=r"names begin with 'c\.', got a\.x"):
        Weights({"a.x": torch.ones(1)}, "c.")


def test_a_part_without_tensors_is_empty_if_it_may_be() -> None:
    weights = Weights({"other": torch.zeros(1)}, "grid.", required=False)
    assert weights.names == []
    weights.finish()
