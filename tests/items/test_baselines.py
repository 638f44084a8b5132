"""Baselines against dense loops and scikit-learn, their values on the real sets, and SASRec on what it must learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from conftest import DATA
from gritvq.items import CoOccurrence, Popularity, TextCosine, ranking_metrics, ranks_by_scores, top_items
from gritvq.items.catalogue import read_item_data
from gritvq.items.interactions import Histories, Interactions, Split
from gritvq.items.recommenders.sasrec import SASRec

SHARED = DATA / "recsys"


def some_histories(users: int = 30, items: int = 12, seed: int = 0) -> Histories:
    generator = np.random.default_rng(seed)
    return Histories.of([generator.integers(0, items, generator.integers(0, 9)).tolist() for _ in range(users)])


class TestBaselines:
    def test_popularity_counts(self) -> None:
        train = some_histories()
        expected = [sum(row.tolist().count(item) for row in train) for item in range(12)]
        got = Popularity(train, 12).scores(Histories.of([[3], []]))
        assert got.tolist() == [expected, expected]

    @pytest.mark.parametrize("distance", [1, 3])
    def test_co_occurrence_against_loops(self, distance: int) -> None:
        train = some_histories()
        weights, counts = np.zeros((12, 12)), np.zeros(12)
        for row in train:
            for i, first in enumerate(row.tolist()):
                counts[first] += 1
                for d, second in enumerate(row.tolist()[i + 1 : i + 1 + distance], start=1):
                    weights[first, second] += 1 / d
                    weights[second, first] += 0.5 / d
        baseline = CoOccurrence(train, 12, distance=distance)
        got = baseline.scores(Histories.of([[5, i] for i in range(12)] + [[]])).double().numpy()
        prior = got[-1]  # no last item
        assert prior.max() == pytest.approx({1: 1 / 4, 3: 1 / 24}[distance])  # half of the smallest difference
        np.testing.assert_allclose(prior / prior.max(), counts / counts.max(), rtol=1e-6)
        np.testing.assert_allclose(got[:-1] - prior, weights, atol=1e-5)

    def test_popularity_orders_large_equal_entries(self) -> None:
        baseline = CoOccurrence(Histories.of([[0, 1], [0, 2]] * 3000 + [[2]]), 3)
        got = baseline.scores(Histories.of([[0]]))[0]
        assert got[1].item() == pytest.approx(3000 + 3000 / 6000 / 24, abs=1e-9)
        assert (got[2] - got[1]).item() == pytest.approx(1 / 6000 / 24, rel=1e-6)

    def test_an_item_that_never_occurred_falls_back_to_popularity(self) -> None:
        baseline = CoOccurrence(Histories.of([[0, 1], [2, 1]]), 4)
        assert top_items(baseline.scores(Histories.of([[3]])), 4)[0, 0] == 1

    def test_cosine_against_scikit_learn(self) -> None:
        vectors = torch.randn(12, 5)
        got = TextCosine(vectors).scores(Histories.of([[3, 7], [0], []]))
        expected = cosine_similarity(vectors.numpy())[[7, 0]].astype(np.float32)
        expected[[0, 1], [7, 0]] = -np.inf
        np.testing.assert_allclose(got[:2].numpy(), expected, atol=1e-6)
        assert got[2].unique().tolist() == [0.0]

    def test_errors(self) -> None:
        train = Histories.of([[0, 5]])
        for make in (Popularity, CoOccurrence):
            with pytest.raises(ValueError, match=r"item rows in \[0, 5\), got 0 to 5"):
                make(train, 5)
        for baseline in (Popularity(train, 6), CoOccurrence(train, 6), TextCosine(torch.eye(6)), SASRec(6, 4)):
            with pytest.raises(ValueError, match="find the rows of keys"):
                baseline.scores(Histories.of([[6]]))
        with pytest.raises(ValueError, match="distance >= 1, got 0"):
            CoOccurrence(train, 6, distance=0)
        with pytest.raises(ValueError, match="expected finite embeddings"):
            TextCosine(torch.tensor([[1.0], [float("nan")]]))


@pytest.mark.parametrize(
    ("name", "popularity", "rounded", "co_occurrence", "cosine"),
    [  # R@5 N@5 R@10 N@10 in 1e-4
        ("amazon_beauty", [64, 37, 106, 51], [81, 43, 120, 55], [530, 389, 718, 449], None),
        (
            "movielens_latest_small",
            [134, 84, 238, 116],
            [134, 84, 238, 116],
            [551, 385, 924, 505],
            [298, 214, 343, 228],
        ),
    ],
)
def test_values_on_the_real_sets(
    name: str, popularity: list[int], rounded: list[int], co_occurrence: list[int], cosine: list[int] | None
) -> None:
    """The reference for popularity rounds the rank 5.5 of two items that tie for places 5 and 6 down."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"the real catalogue {name} is not in ../shared/data")
    data = read_item_data(SHARED / name)
    split = data.interactions.split()

    def measured(baseline: Popularity | CoOccurrence | TextCosine, users: slice = slice(None)) -> torch.Tensor:
        return ranks_by_scores(baseline.scores, split.test_inputs[users], split.test[users])

    def values(ranks: torch.Tensor) -> list[int]:
        return [round(1e4 * value) for value in ranking_metrics(ranks).values()]

    ranks = measured(Popularity(split.train, split.num_items))
    assert values(ranks) == popularity and values(ranks.floor()) == rounded
    assert values(measured(CoOccurrence(split.train, split.num_items))) == co_occurrence
    if cosine is not None:
        assert values(measured(TextCosine(data.catalogue.vectors()))) == cosine


def cyclic(users: int = 60, items: int = 8) -> Split:
    """Everybody walks round the catalogue, so the last item says the next."""
    rows = [(user, (user + step) % items, step) for user in range(users) for step in range(4 + user % 4)]
    return Interactions.from_events(*(list(column) for column in zip(*rows, strict=True))).split()


class TestSASRec:
    def test_learns_a_cycle_and_keeps_the_best_epoch(self) -> None:
        split = cyclic()
        model = SASRec(8, 16, dropout=0.0)
        log = model.fit(split, max_epochs=30, patience=5, lr=1e-2, batch_size=16)
        best = max(line["ndcg@10"] for line in log)
        got = ranking_metrics(ranks_by_scores(model.scores, split.validation_inputs, split.validation))
        assert got["ndcg@10"] == best
        assert ranking_metrics(ranks_by_scores(model.scores, split.test_inputs, split.test), (1,))["recall@1"] == 1.0

    def test_causal_and_independent_of_the_batch(self) -> None:
        model = SASRec(20, 16, max_length=6).eval()
        rows = torch.randint(20, (3, 6))
        changed = rows.clone()
        changed[:, 4:] = 0
        torch.testing.assert_close(model(rows)[:, :4], model(changed)[:, :4])
        histories = Histories.of([[1], [2, 3, 4, 5, 6, 7, 8, 9], [], [4, 4]])
        together = model.scores(histories)
        alone = torch.cat([model.scores(histories[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, alone)
        assert together[2].unique().tolist() == [0.0]
        torch.testing.assert_close(together[1], model.scores(Histories.of([[4, 5, 6, 7, 8, 9]]))[0])

    @pytest.mark.parametrize("exclude_seen", [False, True])
    def test_loss_is_the_cross_entropy_of_every_next_item(self, exclude_seen: bool) -> None:
        model = SASRec(20, 16, dropout=0.0, exclude_seen=exclude_seen)
        histories = [[1, 2, 3], [4, 5], [6]]
        assert model.scores(Histories.of([[1, 2, 1]])).isneginf().nonzero().tolist() == [[0, 1], [0, 2]] * exclude_seen
        total = []
        for row in histories:
            for end in range(1, len(row)):
                total.append(-model.scores(Histories.of([row[:end]])).log_softmax(1)[0, row[end]])
        torch.testing.assert_close(model.loss(Histories.of(histories)), torch.stack(total).mean())

    def test_same_seed_same_model(self) -> None:
        vectors = []
        for _ in range(2):
            torch.manual_seed(3)
            model = SASRec(8, 8)
            state = torch.get_rng_state()
            model.fit(cyclic(), max_epochs=2, seed=5)
            assert torch.equal(torch.get_rng_state(), state)
            vectors.append(model.item_vectors())
        assert torch.equal(*vectors) and vectors[0].shape == (8, 8) and not vectors[0].requires_grad

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="dim a multiple of num_heads"):
            SASRec(8, 7)
        with pytest.raises(ValueError, match="a split with 9 items, got 8"):
            SASRec(9, 8).fit(cyclic())
        with pytest.raises(ValueError, match="max_epochs >= 1, got 0"):
            SASRec(8, 8).fit(cyclic(), max_epochs=0)
        short = Interactions.from_events([0, 0, 0, 1], [0, 1, 2, 0]).split()
        with pytest.raises(ValueError, match="use more events"):
            SASRec(3, 8).fit(short)
