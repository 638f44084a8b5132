"""Vectors of who bought what against a dense reference; several views of an item behind one tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from gritvq import FreeCodebook, grit_vq
from gritvq.items import (
    RQVAE,
    Histories,
    ItemDecoder,
    ItemEncoder,
    ItemTokenizer,
    MultiViewTokenizer,
    ProductKMeans,
    ResidualKMeans,
    collaborative_vectors,
    joined_views,
)

SIZES = (4, 6)


def events(num_users: int = 200, num_items: int = 30, seed: int = 0) -> Histories:
    """Users who each stay within one of three groups of ten items."""
    generator = np.random.default_rng(seed)
    groups = generator.integers(num_items // 10, size=num_users)
    return Histories.of([(10 * group + generator.permutation(10)[:5]).tolist() for group in groups])


def views(count: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views, the second a linear map of the first with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    text = 3 + torch.randn(count, SIZES[0], generator=generator)
    turn = torch.randn(*SIZES, generator=torch.Generator().manual_seed(99))
    return text, text @ turn + 0.01 * torch.randn(count, SIZES[1], generator=generator)


# --- who bought what --------------------------------------------------------------------------------------------------


def test_factors_are_those_of_the_dense_matrix() -> None:
    train, n, dim, distance = events(), 30, 12, 3
    counts = np.zeros((n, n))
    for history in train:
        for a, first in enumerate(history.tolist()):
            for b, second in enumerate(history.tolist()):
                if 0 < abs(a - b) <= distance and first != second:
                    counts[first, second] += 1 / abs(a - b)
    sums = counts.sum(1)
    with np.errstate(divide="ignore"):
        information = np.maximum(0, np.log(counts * counts.sum() / np.outer(sums, sums)))
    values, turn = np.linalg.eigh(information)
    best = (turn[:, -dim:] * np.maximum(values[-dim:], 0)) @ turn[:, -dim:].T
    found = collaborative_vectors(train, n, dim, distance=distance)
    torch.testing.assert_close(found @ found.T, torch.from_numpy(best).float(), atol=1e-5, rtol=1e-4)
    near = found @ found.T
    groups = torch.arange(n) // 10
    same = groups[:, None] == groups
    assert float(near[same].mean()) > 0.5 and float(near[~same].abs().max()) < 0.05


def test_items_alone_are_unknown_and_the_last_event_of_a_user_says_nothing_it_should_not() -> None:
    train = Histories.of([[0, 1, 2], [0, 2, 1], [3]])
    found = collaborative_vectors(train, 5, 2)
    assert found[:3].isfinite().all() and found[3:].isnan().all()
    split_like = Histories.of([[0, 1, 2, 3, 4], [0, 2, 1, 4, 3], [3, 0, 1]])
    assert not torch.equal(found[:3], collaborative_vectors(split_like, 5, 2)[:3])  # other events, other vectors


def test_bad_numbers() -> None:
    train = Histories.of([[0, 1, 2]])
    with pytest.raises(ValueError, match="at least dim=4 items that users had beside others, got 3"):
        collaborative_vectors(train, 9, 4)
    with pytest.raises(ValueError, match="expected distance"):
        collaborative_vectors(train, 9, 2, distance=0)
    with pytest.raises(ValueError, match="item rows in"):
        collaborative_vectors(train, 2, 1)


def test_negative_eigenvalues_take_no_place() -> None:
    """400 items of 20 groups: almost all eigenvalues are negative, many of them larger than the 40th positive one."""
    generator = np.random.default_rng(0)
    train = Histories.of([(20 * generator.integers(20) + generator.permutation(20)[:6]).tolist() for _ in range(1500)])
    found = collaborative_vectors(train, 400, 40)
    whole = collaborative_vectors(train, 400, 200)  # its subspace is everything
    assert bool((found.square().sum(0) > 0).all()) and not bool((whole.square().sum(0) > 0).all())
    torch.testing.assert_close(found @ found.T, whole[:, :40] @ whole[:, :40].T, atol=1e-3, rtol=1e-3)


# --- several views ----------------------------------------------------------------------------------------------------


def test_views_are_joined_row_by_row() -> None:
    text, buyers = views()
    assert torch.equal(joined_views(text.double().numpy(), buyers), torch.cat([text, buyers], 1))
    for wrong in ((text, buyers[1:]), (text, buyers[:, 0]), ()):
        with pytest.raises(ValueError, match=r"expected views .* of the same n items, got shapes .* every item a row"):
            joined_views(*wrong)


def test_one_view_is_the_tokenizer_itself() -> None:
    text, _ = views()
    shifted = (text - text.mean(0)) / (text - text.mean(0)).square().sum(1).mean().sqrt()
    found = MultiViewTokenizer(ResidualKMeans(8, 2), SIZES[:1]).fit(text)
    assert torch.equal(found.encode(text), ResidualKMeans(8, 2).fit(shifted).encode(shifted))


def test_weights_are_shares_of_the_squared_error() -> None:
    x = torch.cat(views(), 1)
    scaled = torch.cat([x[:, :4], 100 * x[:, 4:] + 7], 1)

    def errors(x: Tensor, *weights: float) -> list[float]:
        tokenizer = MultiViewTokenizer(ResidualKMeans(8, 2), SIZES, weights).fit(x)
        difference = (tokenizer.decode(tokenizer.encode(x)) - x).split(SIZES, 1)
        spread = (x - x.mean(0)).split(SIZES, 1)
        return [float(d.square().sum() / s.square().sum()) for d, s in zip(difference, spread, strict=True)]

    assert errors(x, 1.0, 1.0) == pytest.approx(errors(scaled, 1.0, 1.0), rel=1e-3)  # units do not matter
    alone = ResidualKMeans(8, 2).fit(x[:, :4])
    text = x[:, :4]
    least = float((alone.decode(alone.encode(text)) - text).square().sum() / (text - text.mean(0)).square().sum())
    assert errors(x, 1.0, 0.0) == pytest.approx([least, 1.0], rel=0.1)
    assert errors(x, 1.0, 10.0)[0] > errors(x, 10.0, 1.0)[0]


def test_a_missing_view_is_the_ridge_regression_on_the_others() -> None:
    text, buyers = views()
    x = torch.cat([text, buyers], 1)
    x[200:, 4:] = torch.nan
    x[190:200, :4] = torch.nan
    tokenizer = MultiViewTokenizer(ResidualKMeans(8, 2), SIZES, ridge=0.05).fit(x)
    joined = tokenizer._joined(x)
    assert joined.isfinite().all()
    whole = joined[:190].double().numpy()
    mean = whole.mean(0)  # of these rows; the tokenizer takes that of all rows with the view
    own = whole[:, :4]
    strength = 0.05 * len(own) * np.square(own).mean()
    expected = (
        Ridge(alpha=strength, fit_intercept=False).fit(own, whole[:, 4:]).predict(joined[200:, :4].double().numpy())
    )
    np.testing.assert_allclose(joined[200:, 4:].numpy(), expected, atol=1e-5)
    assert np.abs(mean).max() < 0.2
    truth = tokenizer._joined(torch.cat(views(), 1))
    assert float((joined[200:] - truth[200:]).square().mean() / truth[200:].square().mean()) < 0.02


def test_text_alone_has_the_indices_of_text_with_nothing_beside_it() -> None:
    text, buyers = views()
    tokenizer = MultiViewTokenizer(ResidualKMeans(16, 2), SIZES).fit(torch.cat([text, buyers], 1))
    missing = torch.cat([text, torch.full_like(buyers, torch.nan)], 1)
    codes = tokenizer.encode(text)
    assert torch.equal(codes, tokenizer.encode(missing)) and torch.equal(codes, tokenizer.encode(text, batch_size=7))
    whole = tokenizer.encode(torch.cat([text, buyers], 1))
    assert float((codes[:, 0] == whole[:, 0]).float().mean()) > 0.8  # the views agree here
    rows, table = tokenizer.last_level(text)
    assert rows.shape == (len(text), sum(SIZES)) and table.shape == (16, sum(SIZES))
    assert tokenizer.perturbed_codes(missing, 0.0, 1)[0].equal(codes)


def test_noise_has_the_unit_of_each_view() -> None:
    x = torch.cat(views(), 1)
    scaled = torch.cat([x[:, :4], 1000 * x[:, 4:]], 1)
    found = [MultiViewTokenizer(ResidualKMeans(16, 2), SIZES).fit(each).perturbed_codes(each) for each in (x, scaled)]
    assert float((found[0] == found[1]).float().mean()) > 0.95  # up to rounding


def test_a_failed_fit_changes_nothing() -> None:
    x = torch.cat(views(), 1)
    tokenizer = MultiViewTokenizer(ResidualKMeans(8, 2), SIZES).fit(x)
    before = tokenizer.encode(x)
    torch.manual_seed(0)
    few = torch.randn(3, sum(SIZES)).repeat(5, 1)
    with pytest.raises(ValueError, match="expected at least 8 different"):
        tokenizer.fit(few)
    assert torch.equal(tokenizer.encode(x), before)


def test_folding_reaches_the_tokenizer_inside() -> None:
    x = torch.cat(views(), 1)
    sizes = {"input_dim": sum(SIZES), "dim": 4, "hidden": (8,)}
    inner = RQVAE(grit_vq(4, 8), encoder=ItemEncoder(**sizes), decoder=ItemDecoder(**sizes), steps=5)
    tokenizer = MultiViewTokenizer(inner, SIZES).fit(x)
    folded = tokenizer.fold()
    assert torch.equal(folded.encode(x), tokenizer.encode(x))
    assert type(folded.tokenizer.quantizer.codebook) is FreeCodebook
    assert type(tokenizer.tokenizer.quantizer.codebook) is not FreeCodebook


@pytest.mark.parametrize("inner", [ResidualKMeans(8, 2), ProductKMeans(8, 2, rotate=False)])
def test_a_saved_one_is_the_same(inner: ItemTokenizer, tmp_path: Path) -> None:
    x = torch.cat(views(), 1)
    x[::3, 4:] = torch.nan
    tokenizer = MultiViewTokenizer(inner, SIZES, (1.0, 0.5)).fit(x)
    tokenizer.save_pretrained(tmp_path / "it")
    loaded = ItemTokenizer.from_pretrained(tmp_path / "it")
    assert torch.equal(loaded.encode(x), tokenizer.encode(x)) and loaded.fingerprint() == tokenizer.fingerprint()
    torch.testing.assert_close(loaded.decode(loaded.encode(x)), tokenizer.decode(tokenizer.encode(x)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :9], "expected embeddings of 10 components, views of .4, 6., got 9"),
        (lambda x: x.index_fill(0, torch.tensor([3]), torch.nan), "got a NaN, infinite or larger one in row 3"),
        (lambda x: x.index_fill(1, torch.tensor([5]), torch.inf), "got a NaN, infinite or larger one in row 0"),
        (lambda x: torch.cat([x[:, :4], torch.full_like(x[:, 4:], torch.inf)], 1), "got a NaN, infinite or larger one"),
        (lambda x: torch.cat([x[:, :4], torch.full_like(x[:, 4:], 1e16)], 1), "got a NaN, infinite or larger one"),
        (lambda x: torch.cat([x[:, :4], torch.full_like(x[:, 4:], torch.nan)], 1), "at least two items with all views"),
        (lambda x: torch.cat([x[:, :4], torch.ones_like(x[:, 4:])], 1), "expected views that differ between items"),
    ],
)
def test_bad_views(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiViewTokenizer(ResidualKMeans(8, 2), SIZES).fit(change(torch.cat(views(), 1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": ()}, "at least one view"),
        ({"sizes": (0, 3)}, "each of sizes"),
        ({"sizes": SIZES, "weights": (1.0,)}, "one weight per view, 2"),
        ({"sizes": SIZES, "weights": (0.0, 0.0)}, "not all 0"),
        ({"sizes": SIZES, "weights": (1.0, -1.0)}, "each of weights"),
        ({"sizes": SIZES, "ridge": 0.0}, "ridge"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiViewTokenizer(ResidualKMeans(8, 2), **arguments)
