"""Parallel ids: exact scores of all items by look-up, what every channel sees and learns, folders, bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gritvq.items import (
    Candidates,
    CatalogueDecoder,
    GenerativeRecommender,
    Histories,
    ParallelDecoder,
    ParallelScorer,
    Popularity,
    RecommenderTask,
    SemanticIds,
    SequenceData,
    Split,
    rank_in_list,
    ranking_metrics,
    ranks_by_scores,
    top_items,
)
from gritvq.items.recommenders.backbones.parallel import _drawn_before
from gritvq.items.recommenders.beam_search import exact_scores
from gritvq.items.recommenders.parallel import channel_log_probs
from gritvq.training import TrainingPlan, train
from gritvq.training.run import seed_everything

SIZES = (5, 3, 300, 2)  # the third needs two bytes per index


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_codes(count: int = 40, sizes: tuple[int, ...] = SIZES) -> Tensor:
    return torch.stack(
        [torch.randint(0, size, (count,), generator=seeded(place)) for place, size in enumerate(sizes)], 1
    )


def random_log_probs(users: int, sizes: tuple[int, ...] = SIZES, dtype: torch.dtype = torch.float32) -> Tensor:
    parts = [torch.randn(users, size, dtype=torch.float64, generator=seeded(size)).log_softmax(1) for size in sizes]
    return torch.cat(parts, 1).to(dtype)


def brute_force(codes: Tensor, log_probs: Tensor, sizes: tuple[int, ...] = SIZES) -> Tensor:
    """Scores (B, n) item by item and channel by channel, in float64."""
    parts = log_probs.double().split(list(sizes), 1)
    return torch.stack([sum(part[:, code] for part, code in zip(parts, row, strict=True)) for row in codes.tolist()], 1)


def decoder(sizes: tuple[int, ...] = SIZES, **changes: Any) -> ParallelDecoder:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = ParallelDecoder(sizes, 16, num_layers=1, num_heads=2, hidden_dim=16, **{"dropout": 0.0, **changes})
    for parameter in model.heads.parameters():  # they start at zero, where all channels have the same head
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def recommender(count: int = 40, **changes: Any) -> GenerativeRecommender:
    return GenerativeRecommender(decoder(), SemanticIds(random_codes(count), SIZES), **changes).eval()


class TestScorer:
    @pytest.mark.parametrize("sizes", [SIZES, (4,), (256,) * 20, (40000, 2)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_scores_are_those_of_brute_force(self, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
        codes, log_probs = random_codes(50, sizes), random_log_probs(7, sizes, dtype)
        scorer, wanted = ParallelScorer(codes, sizes), brute_force(codes, log_probs, sizes)
        found = scorer.scores(log_probs)
        assert found.dtype == dtype
        precision = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(found.double(), wanted, rtol=precision, atol=0)
        best = scorer.best(log_probs, 9)
        assert torch.equal(best.items, top_items(found, 9)) and torch.equal(best.scores, found.gather(1, best.items))
        assert scorer.codes.element_size() == {5: 2, 4: 1, 256: 1, 40000: 4}[sizes[0]]

    @pytest.mark.parametrize("block", [1, 7, 39, 40, 1000])
    def test_blocks_and_batches_change_no_bit(self, block: int) -> None:
        log_probs, codes = random_log_probs(11), random_codes()
        codes[30:] = codes[:10]  # so that equal scores lie in different blocks
        scorer = ParallelScorer(codes, SIZES, priority=torch.arange(40).remainder(3).float())
        scores, best = scorer.scores(log_probs), scorer.best(log_probs, 12)
        assert torch.equal(scorer.scores(log_probs, block=block), scores)
        assert all(map(torch.equal, scorer.best(log_probs, 12, block=block), best))
        for user in range(11):
            assert torch.equal(scorer.scores(log_probs[user : user + 1], block=block)[0], scores[user])
            alone = scorer.best(log_probs[user : user + 1], 12, block=block)
            assert torch.equal(alone.items[0], best.items[user])

    @pytest.mark.parametrize("block", [None, 3])
    def test_equal_scores_are_listed_by_priority_then_by_row_and_short_lists_are_padded(
        self, block: int | None
    ) -> None:
        codes = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [0, 0], [0, 1]])
        log_probs = torch.tensor([[0.9, 0.1, 0.2, 0.8], [0.5, 0.5, 0.5, 0.5]]).log()
        plain = ParallelScorer(codes, (2, 2)).best(log_probs, 9, block=block)
        assert plain.items.tolist() == [[0, 2, 4, 6, 5, 1, 3, -1, -1], [*range(7), -1, -1]]
        assert plain.scores[:, 7:].eq(-math.inf).all() and plain.scores[:, :7].isfinite().all()
        priority = torch.tensor([1.0, 0, 5, 7, 5, 1, 0])
        sorted_ones = ParallelScorer(codes, (2, 2), priority=priority).best(log_probs, 7, block=block).items
        assert sorted_ones.tolist() == [[2, 4, 0, 6, 5, 3, 1], [3, 2, 4, 0, 5, 1, 6]]

    def test_says_what_does_not_fit(self) -> None:
        scorer, log_probs = ParallelScorer(random_codes(), SIZES), random_log_probs(2)
        for call in (scorer.scores, lambda given: scorer.best(given, 3)):
            for wrong in (log_probs[:, 1:], log_probs[0], torch.cat([log_probs, log_probs], 1)):
                with pytest.raises(
                    ValueError, match=r"log-probabilities \(B, 310\) of 4 channels, got .*; use a model"
                ):
                    call(wrong)
        with pytest.raises(ValueError, match="expected k >= 1, got 0"):
            scorer.best(log_probs, 0)
        with pytest.raises(ValueError, match="at least one id"):
            ParallelScorer(random_codes(0), SIZES)
        with pytest.raises(ValueError, match=r"one column per codebook size, got \(40, 4\)"):
            ParallelScorer(random_codes(), SIZES[:3])
        with pytest.raises(ValueError, match=r"codes in \[0, 2\) in column 3, got"):
            ParallelScorer(random_codes() + torch.tensor([0, 0, 0, 2]), SIZES)
        with pytest.raises(ValueError, match=r"one priority per row, \(40,\), got \(3,\)"):
            ParallelScorer(random_codes(), SIZES, priority=torch.zeros(3))


class TestModel:
    def test_scores_are_those_of_the_formula_in_float64(self) -> None:
        """Written again, from the state of the transformer on."""
        model = recommender()
        backbone, histories = model.backbone, [[3, 7], [1, 2, 3, 9, 30], []]
        assert isinstance(backbone, ParallelDecoder)
        states = backbone.read(*model._codes(histories, 20)).states[:, 0].double()
        tables = backbone.embedding.weight[3:].double().split(list(SIZES))
        weights, biases = (part.double().chunk(4) for part in backbone.heads.parameters())
        log_probs = []
        for table, weight, bias in zip(tables, weights, biases, strict=True):
            head = states + F.silu(states @ weight.T + bias)
            cosines = (head / head.norm(dim=1, keepdim=True)) @ (table / table.norm(dim=1, keepdim=True)).T
            log_probs.append((cosines / 0.05).log_softmax(1))
        wanted = brute_force(model.codes, torch.cat(log_probs, 1))
        torch.testing.assert_close(model.scores(histories).double(), wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.recommend(histories, 10), top_items(model.scores(histories), 10))
        along_trie = exact_scores(backbone, model._read(histories), model.trie)[:, model.trie.leaves_of_rows()]
        torch.testing.assert_close(model.scores(histories), along_trie)  # the same by the general search
        assert set(model.trie.expand(model.search(histories[:1], 40).leaves, 40)[0].tolist()) == set(range(40))

    def test_probabilities_of_all_possible_ids_sum_to_one(self) -> None:
        sizes = (3, 2, 4)
        every = torch.cartesian_prod(*map(torch.arange, sizes))
        model = GenerativeRecommender(decoder(sizes), SemanticIds(every, sizes))
        torch.testing.assert_close(model.scores([[1, 2], []]).exp().sum(1), torch.ones(2))

    def test_an_item_is_the_mean_of_its_code_embeddings(self) -> None:
        model, seen = decoder(), []
        model.items.register_forward_pre_hook(
            lambda _, __, given: seen.append(given["inputs_embeds"]), with_kwargs=True
        )
        codes = random_codes()[None, :5]
        model.read(codes, torch.tensor([5]))
        tables = model.embedding.weight[3:].split(list(SIZES))
        wanted = torch.stack([table[codes[0, :, place]] for place, table in enumerate(tables)]).mean(0)
        torch.testing.assert_close(seen[0][0, 1:], wanted)
        assert torch.equal(seen[0][0, 0], model.embedding.weight[1])  # BOS

    def test_padding_and_neighbors_change_nothing_and_only_the_newest_items_count(self) -> None:
        model = recommender(max_history=4)
        histories = [[1, 2], [], [7, 8, 9, 1, 2, 3, 4], [5]]
        together = model.scores(histories)
        for user, history in enumerate(histories):
            torch.testing.assert_close(model.scores([history])[0], together[user], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.scores([[1, 2, 3, 4]])[0], together[2], rtol=1e-5, atol=1e-5)
        codes, lengths = model._codes(histories[:1], 20)
        padded = F.pad(codes, (0, 0, 0, 3), value=1)
        for given in (codes, padded):
            torch.testing.assert_close(model.backbone.read(given, lengths), model.backbone.read(codes, lengths))
        torch.testing.assert_close(model.backbone.loss(padded, lengths), model.backbone.loss(codes, lengths))

    def test_a_later_item_changes_no_earlier_prediction(self) -> None:
        model = decoder().eval()
        codes = random_codes()[None, :6].clone()
        before = model._states(codes)
        codes[0, 3] = (codes[0, 3] + 1) % torch.tensor(SIZES)
        after = model._states(codes)
        assert torch.equal(before[:, :4], after[:, :4])  # BOS and three items
        assert all(not torch.allclose(before[0, place], after[0, place]) for place in (4, 5, 6))

    def test_the_loss_is_the_mean_over_channels_and_items_whatever_the_batches_are(self) -> None:
        model = recommender()
        histories = [[4, 7, 1, 9], [3, 3], [5]]
        pieces = [(line[:place], line[place]) for line in histories for place in range(len(line))]
        log_probs = channel_log_probs(model.backbone, model._read([past for past, _ in pieces])).split(list(SIZES), 1)
        targets = model.codes[torch.tensor([item for _, item in pieces])]
        each = [F.cross_entropy(part, target) for part, target in zip(log_probs, targets.T, strict=True)]
        torch.testing.assert_close(model(histories), torch.stack(each).mean())
        alone = torch.stack([model([line]) * len(line) for line in histories]).sum() / len(pieces)
        torch.testing.assert_close(model(histories), alone)

    def test_the_log_tells_nats_per_item_whatever_the_number_of_channels(self) -> None:
        model, told = recommender(), {}
        task = RecommenderTask(model)
        task.log = lambda name, value, **_: told.update({name: value})  # type: ignore[method-assign]
        task.losses(Histories.of([[4, 7]]))
        scores = model.scores([[], [4]])
        torch.testing.assert_close(told["train/nats_per_item"], -(scores[0, 4] + scores[1, 7]) / 2)

    def test_every_channel_learns_from_its_own_index_alone(self) -> None:
        model = decoder().train()
        codes = random_codes()[None, :4]
        model.loss(codes, torch.tensor([4])).backward()
        tables = model.embedding.weight.grad[3:].split(list(SIZES))
        heads = model.heads.weight.grad.chunk(4)
        assert all(bool((grad.abs().amax() > 0).all()) for grad in (*tables, *heads))
        model.zero_grad()
        states = model._states(codes)[:, :-1].detach()
        logits = model._logits(model._heads(states, [2])[:, :, 0], 2)
        F.cross_entropy(logits.flatten(0, 1), codes[0, :, 2]).backward()
        reached = [bool(grad.abs().amax() > 0) for grad in model.embedding.weight.grad[3:].split(list(SIZES))]
        assert reached == [False, False, True, False]
        assert [bool(part.abs().amax() > 0) for part in model.heads.weight.grad.chunk(4)] == reached

    @pytest.mark.parametrize("sizes", [SIZES, (4,) * 5])
    @pytest.mark.parametrize("drawn", [1, 2])
    def test_the_mean_over_all_draws_of_channels_is_the_loss_of_all(self, sizes: tuple[int, ...], drawn: int) -> None:
        model = decoder(sizes, channels_per_step=drawn).train()
        codes, lengths = random_codes(10, sizes).unflatten(0, (2, 5)), torch.tensor([5, 2])
        losses, gradients = {}, {}
        for seed in range(100):
            torch.manual_seed(seed)
            model.zero_grad()
            loss = model.loss(codes, lengths)
            loss.backward()
            moved = [bool(part.abs().amax() > 0) for part in model.heads.weight.grad.chunk(len(sizes))]
            key = tuple(place for place, moves in enumerate(moved) if moves)
            assert losses.setdefault(key, loss.detach()) == loss  # the draw alone decides
            gradients[key] = model.embedding.weight.grad
        assert len(losses) == math.comb(len(sizes), drawn) and {len(key) for key in losses} == {drawn}
        model.eval().zero_grad()
        whole = model.loss(codes, lengths)
        whole.backward()
        torch.testing.assert_close(torch.stack(list(losses.values())).mean(), whole)
        torch.testing.assert_close(torch.stack(list(gradients.values())).mean(0), model.embedding.weight.grad)

    @pytest.mark.parametrize("drawn", [0, 5])
    def test_no_more_channels_are_drawn_than_there_are(self, drawn: int) -> None:
        with pytest.raises(ValueError, match=f"channels_per_step from 1 to the 4 channels of the ids, got {drawn}"):
            decoder(channels_per_step=drawn)

    def test_items_may_be_dropped_more_often_than_the_rest(self) -> None:
        model = decoder(dropout=0.0, input_dropout=0.5).train()
        rates = {name: part.p for name, part in model.items.named_modules() if isinstance(part, torch.nn.Dropout)}
        assert rates.pop("drop") == 0.5 and set(rates.values()) == {0.0}
        assert decoder(dropout=0.25).items.drop.p == 0.25
        codes, lengths = random_codes()[None, :4], torch.tensor([4])
        torch.manual_seed(0)
        assert len({float(model.loss(codes, lengths)) for _ in range(3)}) == 3
        model.eval()
        assert len({float(model.loss(codes, lengths)) for _ in range(3)}) == 1

    def test_temperature_divides_the_cosines(self) -> None:
        states = torch.randn(3, 16, generator=seeded())
        cold, warm = decoder(temperature=0.1), decoder(temperature=0.4)
        torch.testing.assert_close(cold._logits(states, 0), 4 * warm._logits(states, 0))
        assert cold._logits(states, 0).abs().max() <= 10 + 1e-4
        with pytest.raises(ValueError, match=r"expected temperature > 0, got 0.0; 0\.05 is usual"):
            decoder(temperature=0.0)

    def test_a_new_model_knows_nothing_but_is_not_broken(self) -> None:
        pytest.importorskip("transformers")
        sizes = (256,) * 16
        model = GenerativeRecommender(ParallelDecoder(sizes, 64), SemanticIds(random_codes(80, sizes), sizes)).eval()
        assert math.log(256) < float(model([[1, 2, 3, 4], [5, 6, 7]])) < math.log(256) + 4
        items = model.backbone.embedding.weight[3:][random_codes(80, sizes) + 256 * torch.arange(16)].mean(1)
        assert float(items.detach().std()) == pytest.approx(0.02, rel=0.1)


def walks(users: int = 150, items: int = 30) -> Split:
    """Users step from an item to the next one, so popularity knows nothing."""
    starts = torch.randint(0, items, (users,), generator=seeded(4)).tolist()
    lengths = torch.randint(2, 8, (users,), generator=seeded(5)).tolist()
    lines = [[(s + t) % items for t in range(n)] for s, n in zip(starts, lengths, strict=True)]
    targets = [torch.tensor([(s + n + t) % items for s, n in zip(starts, lengths, strict=True)]) for t in (0, 1)]
    return Split(Histories.of(lines), torch.arange(users), *targets, items, 0)


def learned(folder: Path | None, steps: int, resume: Path | None = None) -> GenerativeRecommender:
    pytest.importorskip("transformers")
    seed_everything(0, 1)
    ids, split = SemanticIds(random_codes(30, (4,) * 6), (4,) * 6), walks()
    shape: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "dropout": 0.05, "temperature": 0.2}
    model = GenerativeRecommender(ParallelDecoder(ids.codebook_sizes, 16, **shape), ids)
    task = RecommenderTask(model, lr=1e-2, warmup_steps=5, weight_decay=0.0)
    data = SequenceData(split, every_prefix=model.backbone.every_prefix, batch_size=64)
    plan = TrainingPlan(max_steps=steps, validate_every=60, checkpoint_every=60, accelerator="cpu")
    train(task, data, plan, folder=folder, resume=resume, progress=False)
    return model.eval()


def test_it_learns_to_beat_popularity_and_a_run_goes_on_bitwise(tmp_path: Path) -> None:
    split = walks()
    whole = learned(tmp_path / "a", 180)
    popularity = Popularity(split.train, split.num_items)
    numbers = ranking_metrics(rank_in_list(whole.recommend(split.test_inputs, 10), split.test))
    others = ranking_metrics(ranks_by_scores(popularity.scores, split.test_inputs, split.test))
    assert numbers["ndcg@10"] > 0.6 > 3 * others["ndcg@10"], (numbers, others)
    again = learned(tmp_path / "b", 180, tmp_path / "a" / "checkpoints" / "step-120.ckpt")
    assert all(torch.equal(own, other) for own, other in zip(whole.parameters(), again.parameters(), strict=True))
    best = GenerativeRecommender.from_pretrained(tmp_path / "a" / "recommender")
    assert isinstance(best.backbone, ParallelDecoder) and best.backbone.temperature == 0.2


class TestCatalogueDecoder:
    """One softmax over the items, whose vectors are the sums of their codes' embeddings."""

    @staticmethod
    def model(**changes: Any) -> CatalogueDecoder:
        pytest.importorskip("transformers")
        torch.manual_seed(0)
        made = CatalogueDecoder(SIZES, 16, **{"num_layers": 1, "hidden_dim": 16, "dropout": 0.0, **changes})
        torch.nn.init.normal_(made.embedding.weight, std=0.5)
        return made

    def test_the_loss_is_that_of_vectors_made_by_hand(self) -> None:
        model, codes = self.model(), random_codes()
        first = torch.tensor([0, 5, 8, 308]) + 3  # after BOS, EOS, PAD
        vectors = torch.stack([sum(model.embedding.weight[first[q] + c] for q, c in enumerate(row)) for row in codes])
        lines = torch.tensor([[3, 9, 1], [7, 2, 0]])
        lengths = torch.tensor([3, 2])
        states = model._states(codes[lines])[:, :-1]
        each = -(states @ vectors.T).log_softmax(-1).gather(2, lines[..., None])[..., 0]
        wanted = torch.cat([each[0], each[1, :2]]).mean()
        torch.testing.assert_close(model.loss(codes[lines], lengths, Candidates(codes)), wanted)
        inputs = model._with_start(vectors[lines])
        torch.testing.assert_close(model.items(inputs_embeds=inputs * 4).last_hidden_state[:, :-1], states)

    def test_scores_are_sums_over_the_channels(self) -> None:
        codes = random_codes()
        made = GenerativeRecommender(self.model(), SemanticIds(codes, SIZES)).eval()
        state = made.backbone.read(codes[torch.tensor([[1, 2]])], torch.tensor([2])).states[0, 0]
        torch.testing.assert_close(made.scores([[1, 2]])[0], made.backbone._vectors(codes) @ state)
        shared = made.scores([[1, 2]])[0, (codes == codes[4]).all(1)]
        assert bool((shared == shared[0]).all())

    def test_drawn_negatives_stand_for_all_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codes = random_codes()
        codes[3] = codes[30]  # one id, which is no negative of itself
        model = self.model(num_negatives=5).train()
        drawn = torch.tensor([30, 1, 1, 20, 8])
        monkeypatch.setattr(torch, "randint", lambda *_, **__: drawn)
        lines = torch.tensor([[3, 9]])
        scores = model._states(codes[lines])[0, :-1] @ model._vectors(codes).T
        others = [scores[0, drawn[1:]], scores[1, drawn]]
        wanted = [
            (scores[t, i].exp() + 40 / 5 * others[t].exp().sum()).log() - scores[t, i] for t, i in enumerate([3, 9])
        ]
        found = model.loss(codes[lines], torch.tensor([2]), Candidates(codes))
        torch.testing.assert_close(found, torch.stack(wanted).mean())
        exact = model.eval().loss(codes[lines], torch.tensor([2]), Candidates(codes))
        torch.testing.assert_close(exact, -scores.log_softmax(1)[[0, 1], [3, 9]].mean())

    def test_what_a_user_has_is_no_choice(self) -> None:
        """Against a softmax by hand over the items that are left at each place; a repeated target is a choice."""
        model, codes = self.model(), random_codes()
        lines = torch.tensor([[3, 9, 3, 1], [7, 2, 0, 0]])
        lengths = torch.tensor([4, 2])
        seen = torch.tensor([[3, 9, 3, 1], [7, 2, -1, -1]])
        scores = model._states(codes[lines])[:, :-1] @ model._vectors(codes).T
        wanted = []
        for b, t in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]:
            left = [i for i in range(len(codes)) if i not in lines[b, :t].tolist() or i == int(lines[b, t])]
            wanted.append(scores[b, t, left].logsumexp(0) - scores[b, t, lines[b, t]])
        found = model.loss(codes[lines], lengths, Candidates(codes, seen))
        torch.testing.assert_close(found, torch.stack(wanted).mean())
        made = GenerativeRecommender(model, SemanticIds(codes, SIZES), exclude_seen=True)
        torch.testing.assert_close(made([[3, 9, 3, 1], [7, 2]]), found)

    def test_what_a_user_has_is_drawn_in_vain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codes, drawn = random_codes(), torch.tensor([30, 1, 1, 20, 3])
        model = self.model(num_negatives=5).train()
        monkeypatch.setattr(torch, "randint", lambda *_, **__: drawn)
        scores = model._states(codes[torch.tensor([[3, 9]])])[0, :-1] @ model._vectors(codes).T
        others = [scores[0, drawn[:4]], scores[1, drawn[:4]]]  # the fifth is the target, and then an item before
        wanted = [
            (scores[t, i].exp() + 40 / 5 * others[t].exp().sum()).log() - scores[t, i] for t, i in enumerate([3, 9])
        ]
        found = model.loss(codes[torch.tensor([[3, 9]])], torch.tensor([2]), Candidates(codes, torch.tensor([[3, 9]])))
        torch.testing.assert_close(found, torch.stack(wanted).mean())

    def test_drawn_items_that_stand_before_a_place(self) -> None:
        seen = torch.tensor([[3, 9, 3, 1], [7, 2, -1, -1]])
        drawn = torch.tensor([3, 1, 2, 9, 3, 0])
        for place in (0, 1, 2, 3, 4, 5):
            line, column = divmod(place, 4)
            wanted = [
                int(item) in seen[line, :column].tolist() and int(item) != int(seen[line, column]) for item in drawn
            ]
            assert _drawn_before(seen, torch.tensor([place]), drawn).tolist() == [wanted]

    def test_learns_to_beat_popularity_in_fewer_steps(self) -> None:
        seed_everything(0, 1)
        ids, split = SemanticIds(random_codes(30, (4,) * 6), (4,) * 6), walks()
        made = GenerativeRecommender(CatalogueDecoder(ids.codebook_sizes, 16, num_layers=1, dropout=0.05), ids)
        data = SequenceData(split, every_prefix=False, batch_size=64)
        task = RecommenderTask(made, lr=1e-2, warmup_steps=5, weight_decay=0.0)
        train(task, data, TrainingPlan(max_steps=90, validate_every=90, accelerator="cpu"), progress=False)
        numbers = ranking_metrics(rank_in_list(made.eval().recommend(split.test_inputs, 10), split.test))
        assert numbers["ndcg@10"] > 0.6, numbers

    def test_says_what_is_missing(self) -> None:
        codes = random_codes()
        with pytest.raises(ValueError, match=r"expected the ids of the catalogue, got none; pass all of them"):
            self.model().loss(codes[None, :3], torch.tensor([3]))
        with pytest.raises(ValueError, match=r"num_negatives"):
            CatalogueDecoder(SIZES, 16, num_negatives=0)


class TestFolders:
    def test_saved_and_loaded_it_scores_bitwise_the_same(self, tmp_path: Path) -> None:
        model = recommender(max_history=5, priority=torch.rand(40, generator=seeded()))
        model.save_pretrained(tmp_path)
        loaded = GenerativeRecommender.from_pretrained(tmp_path)
        histories = [[1, 2], []]
        assert torch.equal(loaded.scores(histories), model.scores(histories))
        assert torch.equal(loaded.recommend(histories, 40), model.recommend(histories, 40))
        assert torch.equal(loaded.order, model.order) and loaded.ids_digest == model.ids_digest

    def test_ids_of_another_catalogue_are_refused_and_added_items_scored(self, tmp_path: Path) -> None:
        model = recommender()
        model.save_pretrained(tmp_path)
        other = SemanticIds(random_codes().flip(0), SIZES)
        with pytest.raises(ValueError, match=r"expected the ids that .* was trained on"):
            GenerativeRecommender.from_pretrained(tmp_path, other)
        grown = model.ids.add(random_codes(42)[40:], [40, 41])
        loaded = GenerativeRecommender.from_pretrained(tmp_path, grown)
        torch.testing.assert_close(loaded.scores([[1, 2]])[:, :40], model.scores([[1, 2]]))
        assert sorted(loaded.recommend([[41, 3]], 42)[0].tolist()) == list(range(42))

    def test_says_what_does_not_fit(self) -> None:
        ids = SemanticIds(random_codes(), SIZES)
        with pytest.raises(ValueError, match=r"codebook sizes \[5, 3, 300, 2\], got one for \[5, 3, 300\]; build it"):
            GenerativeRecommender(decoder(SIZES[:3]), ids)
        model = recommender()
        for call in (model, model.scores, model.recommend):
            with pytest.raises(ValueError, match=r"item rows in \[0, 40\), got 3 to 40"):
                call([[3, 40]])
        with pytest.raises(ValueError, match="at least one item in each history, got none in history 1; leave it out"):
            model([[3], []])
        assert model.scores([[]]).isfinite().all()  # what comes first, as by any model of this wing
