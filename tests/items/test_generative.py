"""Generative recommenders: what they may see, what they give back, training and saving."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import Tensor

from gritvq.cli import semantic_ids as semantic
from gritvq.cli.errors import parser_class
from gritvq.cli.fit import configuration
from gritvq.component import from_config
from gritvq.items import (
    Backbone,
    CatalogueDecoder,
    DepthDecoder,
    EncoderDecoder,
    GenerativeRecommender,
    ParallelDecoder,
    RecommenderTask,
    SemanticIds,
    TokenDecoder,
)
from gritvq.items.interactions import Histories, Split
from gritvq.items.sequences import SequenceData
from gritvq.training import TrainingPlan, train
from gritvq.training.run import seed_everything

pytest.importorskip("transformers")

SIZES = (4, 5, 3)
KINDS = [EncoderDecoder, TokenDecoder, DepthDecoder, ParallelDecoder, CatalogueDecoder]


def catalogue(count: int = 20) -> SemanticIds:
    generator = torch.Generator().manual_seed(3)
    return SemanticIds(torch.stack([torch.randint(0, k, (count,), generator=generator) for k in SIZES], 1), SIZES)


def backbone(kind: type[Backbone], dropout: float = 0.0) -> Backbone:
    torch.manual_seed(0)
    shape = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "dropout": dropout}
    own = {EncoderDecoder: {"head_dim": 8}, ParallelDecoder: {"temperature": 0.3}}
    return kind(SIZES, 16, **shape, **own.get(kind, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_of_what_the_scores_say_of_the_targets(kind: type[Backbone]) -> None:
    ids = catalogue()
    recommender = GenerativeRecommender(backbone(kind), ids).eval()
    sequences = [[4, 7, 1, 9], [3, 3], [5]]
    pairs = [(line[:place], line[place]) for line in sequences for place in range(len(line))]
    if kind is EncoderDecoder:
        pairs = [(line[:-1], line[-1]) for line in sequences]
    scores = recommender.scores([history for history, _ in pairs], block=3)
    scores = scores.log_softmax(1) if kind is CatalogueDecoder else scores
    wanted = -torch.stack([scores[number, target] for number, (_, target) in enumerate(pairs)]).mean()
    wanted = wanted / len(SIZES) if kind is ParallelDecoder else wanted
    torch.testing.assert_close(recommender(sequences), wanted)


def test_of_a_long_history_the_loss_reads_what_the_scores_read_and_the_target() -> None:
    recommender = GenerativeRecommender(backbone(EncoderDecoder), catalogue(), max_history=2).eval()
    wanted = -recommender.scores([[9, 8, 1, 2]])[0, 7]
    torch.testing.assert_close(recommender([[9, 8, 1, 2, 7]]), wanted)
    with pytest.raises(ValueError, match=r"item rows in \[0, 20\), got 1 to 20"):
        recommender([[1, 20]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_is_scored_alike_whatever_stands_beside(kind: type[Backbone]) -> None:
    recommender = GenerativeRecommender(backbone(kind), catalogue(), max_history=4)
    histories = [[1, 2], [], [7, 8, 9, 1, 2, 3, 4], [5]]
    together = recommender.scores(histories)
    for number, history in enumerate(histories):
        torch.testing.assert_close(together[number : number + 1], recommender.scores([history], block=7))
    torch.testing.assert_close(recommender.scores([[1, 2, 3, 4]]), together[2:3])  # only the newest are read
    assert not torch.allclose(together[0], together[3])
    probabilities = recommender.backbone.log_probs(
        recommender._read(histories), torch.zeros(4, 1, 0, dtype=torch.int64)
    ).exp()
    assert kind is CatalogueDecoder or probabilities.sum(-1).le(1 + 1e-5).all()
    assert recommender.training


@pytest.mark.parametrize("kind", [TokenDecoder, DepthDecoder])
def test_no_place_sees_its_target_or_what_comes_after(kind: type[Backbone]) -> None:
    model = backbone(kind).eval()
    codes = catalogue().codes[torch.tensor([[1, 2, 3, 4]])]
    embedded: list[torch.Tensor] = []

    def keep(_: object, __: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.embedding.register_forward_hook(keep)
    lengths = torch.tensor([2])  # the loss ends with the second item
    model.loss(codes, lengths).backward()
    levels = codes.shape[2]
    if kind is TokenDecoder:  # BOS, then Q tokens per item; the last code of item 2 is a target only
        reached = embedded[0].grad[0].abs().sum(-1) > 0
        assert reached.tolist() == [True] * (2 * levels) + [False] * (len(reached) - 2 * levels)
    else:  # items as inputs: the first counts, the second is a target only
        assert (embedded[0].grad[0].abs().sum((-1, -2)) > 0).tolist() == [True, False, False, False]


def test_lists_hold_every_item_once_and_follow_the_scores_with_ties_by_priority() -> None:
    ids = catalogue(60)  # as many ids as there can be, so some are shared
    priority = torch.arange(60).remainder(7).float()
    recommender = GenerativeRecommender(backbone(DepthDecoder), ids, priority=priority)
    histories = [[1, 5], [30], []]
    scores = recommender.scores(histories)
    lists = recommender.recommend(histories, 70, beam=70)
    assert lists[:, 60:].eq(-1).all() and lists[:, :60].sort(1).values.eq(torch.arange(60)).all()
    for user in range(3):
        row = lists[user, :60]
        assert (scores[user, row].diff() < 1e-5).all()
        for group in map(recommender.trie.rows_of, recommender.trie.level(3).tolist()):
            places = [row.tolist().index(item) for item in group]
            assert places == list(range(places[0], places[0] + len(group)))
            assert group == sorted(group, key=lambda item: (-priority[item], item))
    assert torch.equal(recommender.recommend(Histories.of(histories), 10, beam=60), lists[:, :10])
    assert recommender.recommend(histories, 3, beam=1).shape == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_scores_bitwise_the_same(kind: type[Backbone], tmp_path: Path) -> None:
    ids = catalogue()
    recommender = GenerativeRecommender(backbone(kind), ids, max_history=3, beam=7, priority=torch.rand(20))
    recommender.save_pretrained(tmp_path / "model")
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in (".pt", ".bin", ".pkl", ".ckpt")]
    loaded = GenerativeRecommender.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.scores([[1, 2], []]), recommender.scores([[1, 2], []]))
    assert (loaded.max_history, loaded.beam) == (3, 7) and torch.equal(loaded.priority, recommender.priority)
    assert loaded.ids == ids and not loaded.training and not loaded.exclude_seen
    other = SemanticIds(ids.codes.flip(0), SIZES)
    with pytest.raises(ValueError, match=r"expected the ids that .* was trained on"):
        GenerativeRecommender.from_pretrained(tmp_path / "model", other)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["recommender"] = {"class_path": "gritvq.FreeCodebook", "init_args": {"dim": 2, "codebook_size": 2}}
    del config["sha256"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="backbone"):
        GenerativeRecommender.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_lists_without_what_a_user_has(kind: type[Backbone], tmp_path: Path) -> None:
    """As if each history were excluded by hand, all of it, and together with what is; saved and loaded as well."""
    ids, model = catalogue(), backbone(kind)
    GenerativeRecommender(model, ids, max_history=3, exclude_seen=True).save_pretrained(tmp_path / "model")
    never = GenerativeRecommender.from_pretrained(tmp_path / "model")
    plain = GenerativeRecommender(model, ids, max_history=3).eval()
    histories = [[1, 2, 3, 4, 1], [7], []]
    for exact in (False, True):
        found = never.recommend(histories, 20, exact=exact)
        assert torch.equal(found, plain.recommend(histories, 20, exact=exact, exclude=histories))
        found = never.recommend(histories, 20, exact=exact, exclude=[[9], [], [8]])
        both = [[1, 2, 3, 4, 1, 9], [7], [8]]
        assert torch.equal(found, plain.recommend(histories, 20, exact=exact, exclude=both))
    assert torch.equal(never.scores(histories), plain.scores(histories, exclude=histories))
    with pytest.raises(ValueError, match="expected items to exclude for each of 3 lists, got them for 1"):
        never.recommend(histories, 3, exclude=[[1]])
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["sha256"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"exclude_seen": 1}))
    with pytest.raises(ValueError, match="expected exclude_seen true or false"):
        GenerativeRecommender.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("policy", ["keep", "append"])
def test_added_items_are_recommended_and_old_ones_score_as_before(policy: Any, tmp_path: Path) -> None:
    codes = torch.tensor([[0, 1], [0, 1], [2, 3], [1, 1]])
    ids = SemanticIds.assign(codes, (4, 4), list("abcd"), collisions=policy)
    backbone = DepthDecoder(ids.codebook_sizes, 8, num_layers=1, num_heads=1, hidden_dim=8)
    old = GenerativeRecommender(backbone, ids, priority=torch.tensor([1.0, 5, 2, 3])).eval()
    old.save_pretrained(tmp_path / "model")
    grown = ids.add(torch.tensor([[0, 1], [0, 1], [3, 3]]), list("efg"))
    loaded = GenerativeRecommender.from_pretrained(tmp_path / "model", grown)
    histories = [[0, 2], [], [3, 3, 1]]
    scores = loaded.scores(histories)
    torch.testing.assert_close(scores[:, :4], old.scores(histories))  # the same model, the same ids
    assert torch.equal(scores[:, 4], scores[:, 1]) and torch.equal(scores[:, 5], scores[:, 1])  # no token of their own
    assert sorted(loaded.recommend([[5, 6]], 7)[0].tolist()) == list(range(7))
    assert loaded.priority.tolist() == [1, 5, 2, 3, 0, 0, 0] and loaded.ids.items == grown.items
    assert loaded.ids == grown and (loaded.codes.max(0).values < torch.tensor(ids.codebook_sizes)).all()
    again = GenerativeRecommender.from_pretrained(loaded.save_pretrained(tmp_path / "again"))
    assert again.ids == grown and again.ids_digest == loaded.ids_digest != old.ids_digest
    assert torch.equal(again.scores(histories), scores)
    more = grown.add(torch.tensor([[0, 1]]), ["h"])  # what was grown and saved can grow again
    for later, number in ((grown, 7), (more, 8)):
        loaded_again = GenerativeRecommender.from_pretrained(tmp_path / "again", later)
        torch.testing.assert_close(loaded_again.scores(histories)[:, :7], scores)
        assert loaded_again.num_items == number and loaded_again.ids.items == later.items
    if policy == "append":  # of which sizes of the last level were declared does not matter
        wide = SemanticIds(ids.codes, (4, 4, 9), ids.items, collisions=policy)
        wide_backbone = DepthDecoder(wide.codebook_sizes, 8, num_layers=1, num_heads=1, hidden_dim=8)
        GenerativeRecommender(wide_backbone, wide).save_pretrained(tmp_path / "wide")
        assert GenerativeRecommender.from_pretrained(tmp_path / "wide", ids).codes.equal(ids.codes)
    for rows in ([2, 1, 0, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [0, 1, 2]):  # an id that moved, items that went
        other = SemanticIds(grown.codes[rows], grown.codebook_sizes, grown.items[: len(rows)], collisions=policy)
        with pytest.raises(ValueError, match=r"expected the ids that .* was trained on, .* or these with items added"):
            GenerativeRecommender.from_pretrained(tmp_path / "model", other)


@pytest.mark.parametrize("policy", ["keep", "append"])
def test_ids_are_matched_by_key_in_any_order_and_with_those_that_training_left_out(policy: Any, tmp_path: Path) -> None:
    codes = torch.tensor([[0, 1], [0, 1], [2, 3], [1, 1], [3, 0], [0, 1]])
    whole = SemanticIds.assign(codes, (4, 4), list("abcdef"), collisions=policy)
    rows = [3, 0, 4, 1]  # as a recommender of a k-core of these ids has them
    core = SemanticIds(whole.codes[rows], whole.codebook_sizes, list("daeb"), collisions=policy)
    backbone = DepthDecoder(core.codebook_sizes, 8, num_layers=1, num_heads=1, hidden_dim=8)
    old = GenerativeRecommender(backbone, core, priority=torch.tensor([4.0, 1, 5, 2])).eval()
    old.save_pretrained(tmp_path / "model")
    loaded = GenerativeRecommender.from_pretrained(tmp_path / "model", whole)
    assert loaded.ids == whole and loaded.priority.tolist() == [1, 2, 0, 4, 5, 0]  # rows are those of the given ids
    histories = [[0, 2], [], [3, 3, 1]]  # rows of the core
    moved = [[rows[row] for row in history] for history in histories]
    torch.testing.assert_close(loaded.scores(moved)[:, rows], old.scores(histories))
    for name, column, code in (("a", 0, 2), ("b", 1, 3)):  # an old item with another id
        other = whole.codes.clone()
        other[whole.items.index(name), column] = code
        with pytest.raises(ValueError, match=r"expected the ids that .* was trained on"):
            GenerativeRecommender.from_pretrained(
                tmp_path / "model", SemanticIds(other, whole.codebook_sizes, whole.items, collisions=policy)
            )
    less = SemanticIds(whole.codes[1:], whole.codebook_sizes, whole.items[1:], collisions=policy)
    with pytest.raises(ValueError, match=r"expected the ids that .* was trained on"):
        GenerativeRecommender.from_pretrained(tmp_path / "model", less)


@pytest.mark.parametrize("kind", KINDS)
def test_an_added_item_is_found_where_the_model_wants_its_id(kind: type[Backbone], tmp_path: Path) -> None:
    """Left out of the catalogue and added again without training, it comes back to its place in the lists."""
    every = torch.cartesian_prod(*map(torch.arange, SIZES))
    whole = GenerativeRecommender(backbone(kind), SemanticIds(every, SIZES, [f"a{row}" for row in range(len(every))]))
    wanted = whole.recommend([[1, 2]], 60, beam=60, exclude=[[1, 2]])[0]
    first = int(wanted[0])
    others = torch.arange(len(every)) != first
    old = SemanticIds(every[others], SIZES, [key for key in whole.ids.items if key != f"a{first}"])
    GenerativeRecommender(whole.backbone, old).save_pretrained(tmp_path / "model")
    before = GenerativeRecommender.from_pretrained(tmp_path / "model")
    grown = old.add(every[first : first + 1], [f"a{first}"])
    assert torch.equal(grown.codes[:-1], old.codes) and grown.items[:-1] == old.items
    after = GenerativeRecommender.from_pretrained(tmp_path / "model", grown)
    rows = grown.rows_of(["a1", "a2"]).tolist()
    lists = [model.recommend([rows], 60, beam=60, exclude=[rows])[0].tolist() for model in (after, before)]
    keys = [[grown.items[row] for row in found if row >= 0] for found in lists]
    assert keys[0] == [f"a{row}" for row in wanted.tolist() if row >= 0]
    assert keys[0][0] == f"a{first}" and keys[0][1:] == keys[1]
    narrow = after.recommend([rows], 3, exclude=[rows], allowed=torch.arange(60) == 59, beam=1)
    assert narrow.tolist() == [[59, -1, -1]]
    asked = after.recommend([[59]], 60, beam=60)  # as part of a history, too
    assert sorted(asked[0].tolist()) == list(range(60))


@pytest.mark.parametrize("kind", KINDS)
def test_of_no_users_there_are_no_lists_and_nan_makes_none(kind: type[Backbone]) -> None:
    recommender = GenerativeRecommender(backbone(kind), catalogue()).eval()
    nobody = torch.ones(0, 20, dtype=torch.bool)
    for more in ({}, {"exclude": []}, {"allowed": nobody}, {"exact": True, "exclude": []}):
        assert [tuple(part.shape) for part in recommender.best([], 7, **more)] == [(0, 7), (0, 7)]
    assert recommender.recommend(Histories.of([]), 7).shape == (0, 7) and recommender.scores([]).shape == (0, 20)
    assert [tuple(part.shape) for part in recommender.search([], 5)] == [(0, 5), (0, 5)]
    with pytest.raises(ValueError, match="items to exclude for each of 0 lists"):
        recommender.best([], 7, exclude=[[1]])
    for weight in recommender.backbone.parameters():
        weight.data.fill_(math.nan)
    for exact in (False, True):
        with pytest.raises(ValueError, match="expected log-probabilities, got NaN"):
            recommender.best([[1, 2]], 7, exact=exact)


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_history_is_read(kind: type[Backbone]) -> None:
    recommender = GenerativeRecommender(backbone(kind), catalogue(), max_history=20)
    assert recommender.scores([[1] * 20]).isfinite().all()
    if kind is TokenDecoder:  # alone it takes as many as it says, and the codes of the next item
        longest = recommender.backbone.read(recommender.codes[torch.ones(1, 21, dtype=torch.int64)], torch.tensor([21]))
        assert recommender.backbone.log_probs(longest, torch.tensor([[[1, 2]]])).isfinite().all()


def test_says_what_does_not_fit() -> None:
    ids = catalogue()
    with pytest.raises(ValueError, match=r"sizes \[4, 5, 3\], got one for \[4, 5\]"):
        GenerativeRecommender(DepthDecoder((4, 5), 8, num_heads=2), ids)
    with pytest.raises(ValueError, match="max_history >= 1"):
        GenerativeRecommender(backbone(DepthDecoder), ids, max_history=0)
    recommender = GenerativeRecommender(backbone(DepthDecoder), ids)
    with pytest.raises(ValueError, match=r"rows in \[0, 20\), got 3 to 20"):
        recommender.recommend([[3, 20]])
    with pytest.raises(ValueError, match=r"rows in \[0, 20\), got -1 to 5"):  # a list filled up with -1
        recommender.scores([[3, -1, 5]])
    for kind in (TokenDecoder, DepthDecoder, ParallelDecoder):
        with pytest.raises(ValueError, match=r"21 items and the next one, got one of max_items 21"):
            GenerativeRecommender(backbone(kind), ids, max_history=21)
    with pytest.raises(ValueError, match="k >= 1"):
        recommender.recommend([[3]], 0)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        TokenDecoder(SIZES, 10, num_heads=4)
    with pytest.raises(ValueError, match="at most 21 items"):
        recommender.backbone.loss(torch.zeros(1, 22, 3, dtype=torch.int64), torch.tensor([22]))
    with pytest.raises(ValueError, match="at least one codebook size"):
        DepthDecoder((), 8)
    with pytest.raises(ValueError, match="beam >= 10"):
        RecommenderTask(recommender, beam=5)
    with pytest.raises(ValueError, match="schedule"):
        RecommenderTask(recommender, schedule="linear")  # type: ignore[arg-type]


def split(users: int = 20, items: int = 20) -> Split:
    """Users walk through the items one by one, so that the next item is known."""
    generator = torch.Generator().manual_seed(4)
    starts = torch.randint(0, items, (users,), generator=generator).tolist()
    lengths = torch.randint(1, 9, (users,), generator=generator).tolist()
    walks = [[(s + t) % items for t in range(n)] for s, n in zip(starts, lengths, strict=True)]
    targets = [
        torch.tensor([(s + n + ahead) % items for s, n in zip(starts, lengths, strict=True)]) for ahead in (0, 1)
    ]
    return Split(Histories.of(walks), torch.arange(users), *targets, items, 0)


def test_batches_hold_every_row_once_per_epoch_and_nothing_held_out() -> None:
    data = split()
    windows = SequenceData(data, every_prefix=True, batch_size=3, max_history=4)
    walks = [walk.tolist() for walk in data.train]
    wanted = sorted(walk[max(0, end - 4) : end + 1] for walk in walks for end in range(1, len(walk)))
    pool = 3 * 32  # rows that are sorted by length together; so many epochs are whole pools
    batches = [windows.batch(step) for step in range(windows.rows_per_epoch * pool // 3)]
    assert sorted(line.tolist() for batch in batches for line in batch) == sorted(wanted * pool)
    whole = SequenceData(data, every_prefix=False, batch_size=4, max_history=4)
    lines = [line.tolist() for step in range(64) for line in whole.batch(step)]
    pieces = {
        tuple(walk[start : start + 5]) for walk in walks if len(walk) > 1 for start in range(max(1, len(walk) - 4))
    }
    assert {tuple(line) for line in lines} == pieces
    again = SequenceData(data, every_prefix=False, batch_size=4, max_history=4)
    assert list(map(Tensor.tolist, again.batch(7))) == list(map(Tensor.tolist, whole.batch(7)))
    histories, targets = next(iter(SequenceData(data, every_prefix=True, num_validation=9).val_dataloader()))
    assert len(histories) == len(targets) == 9
    for history, target in zip(histories, targets.tolist(), strict=True):  # whole training parts: the model cuts them
        assert history.tolist() in walks and target == data.validation[walks.index(history.tolist())]
    with pytest.raises(ValueError, match="2 training events"):
        SequenceData(Split(Histories.of([[1]]), *[torch.zeros(0, dtype=torch.int64)] * 3, 2, 1), every_prefix=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone_learns_the_walk(kind: type[Backbone]) -> None:
    recommender = GenerativeRecommender(backbone(kind), catalogue())
    data = SequenceData(split(60), every_prefix=recommender.backbone.every_prefix, batch_size=64)
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=2e-2)
    losses = []
    for step in range(90):
        loss = recommender(data.batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    chance = math.log(math.prod(SIZES)) / (len(SIZES) if kind is ParallelDecoder else 1)
    chance = math.log(len(recommender.codes)) if kind is CatalogueDecoder else chance
    # Rounding decides much where attention is young: .37 to .45 of chance, whatever the vector width of the processor.
    assert losses[0] > chance - 0.5 and min(losses[-10:]) < 0.6 * chance


def learn(folder: Path | None, steps: int, resume: Path | None = None) -> float:
    seed_everything(0, 1)
    generator = torch.Generator().manual_seed(5)
    codes = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    ids = SemanticIds(codes[torch.randperm(60, generator=generator)[:20]], SIZES)
    recommender = GenerativeRecommender(backbone(DepthDecoder, dropout=0.05), ids)
    task = RecommenderTask(recommender, lr=2e-2, warmup_steps=5, weight_decay=0.0)
    data = SequenceData(split(200), every_prefix=recommender.backbone.every_prefix, batch_size=64)
    plan = TrainingPlan(max_steps=steps, validate_every=80, checkpoint_every=80, accelerator="cpu")
    train(task, data, plan, folder=folder, resume=resume, progress=False)
    return float(sum(p.detach().double().abs().sum() for p in recommender.parameters()))


def test_a_run_goes_on_bitwise_and_keeps_the_best(tmp_path: Path) -> None:
    whole = learn(tmp_path / "a", 160)
    assert learn(tmp_path / "b", 160, tmp_path / "a" / "checkpoints" / "step-80.ckpt") == whole
    loaded = GenerativeRecommender.from_pretrained(tmp_path / "a" / "recommender")
    data = split(200)
    lists = loaded.recommend(data.test_inputs, 10)
    assert (lists[:, 0] == data.test).float().mean() > 0.9  # the walk is learned, test items were never seen as targets


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    recommender = GenerativeRecommender(backbone(DepthDecoder), catalogue())
    recommender.backbone.embedding.weight.data.fill_(math.nan)
    task = RecommenderTask(recommender)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="finite loss"):
        task.losses(Histories.of([[1, 2]]))


def test_padding_of_tokens_is_not_read() -> None:
    model = backbone(EncoderDecoder).eval()
    codes = catalogue().codes[torch.tensor([[1, 2, 3]])]
    short = model.read(codes[:, :1], torch.tensor([1]))
    padded = model.read(codes, torch.tensor([1]))
    prefixes = torch.tensor([[[0], [3]]])
    torch.testing.assert_close(model.log_probs(short, prefixes), model.log_probs(padded, prefixes))
    assert F.pad(short.states, (0, 0, 0, 6)).shape == padded.states.shape


@pytest.mark.parametrize("kind", [DepthDecoder, TokenDecoder, ParallelDecoder])
def test_products_have_few_different_sizes(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of oneDNN are kept for each size, so one per number of items would fill the memory."""
    torch.manual_seed(0)
    model = kind((4, 4, 4), 8, num_layers=1, num_heads=1, hidden_dim=8, dropout=0.0)
    sizes, losses = set(), []
    entropy = F.cross_entropy

    def counted(logits: Tensor, targets: Tensor, **how: Any) -> Tensor:
        sizes.add(len(targets) // 3)
        return entropy(logits, targets, **how)

    monkeypatch.setattr(F, "cross_entropy", counted)
    codes = torch.randint(0, 4, (30, 5, 3))
    for users in range(1, 31):
        lengths = torch.randint(1, 6, (users,))
        losses.append((model.loss(codes[:users], lengths) * lengths.sum(), lengths))
    assert sizes <= {64, 128, 192}
    for total, lengths in losses[:5]:  # the same numbers, user by user
        alone = sum(model.loss(codes[i : i + 1, :n], lengths[i : i + 1]) * n for i, n in enumerate(lengths.tolist()))
        torch.testing.assert_close(total, alone)


CONFIGS = Path(__file__).parents[2] / "configs" / "items"


@pytest.mark.parametrize(("name", "levels"), [("ids", 3), ("letter", 4)])
def test_a_configuration_of_ids_can_be_built(name: str, levels: int) -> None:
    parser = ArgumentParser()
    semantic.fit_arguments(parser)
    config = parser.parse_args(["--config", str(CONFIGS / f"beauty-{name}.yaml")])
    assert parser.instantiate(config).tokenizer.codebook_sizes == (256,) * levels


@pytest.mark.parametrize(
    ("name", "sizes", "smallest", "largest"),
    [
        ("small", (256, 256, 256, 27), 1e6, 2e6),
        ("tiger", (256, 256, 256, 27), 4e6, 6e6),
        ("parallel", (256,) * 32, 3e6, 4e6),
        ("catalogue", (256,) * 32, 5e5, 1e6),
    ],
)
def test_complete_runs_can_be_built(name: str, sizes: tuple[int, ...], smallest: float, largest: float) -> None:
    parser, config, _ = configuration(parser_class(), "items", ["--config", str(CONFIGS / f"beauty-{name}.yaml")])
    tokenizer = parser.instantiate(config).tokenizer
    assert tokenizer.codebook_sizes == (sizes[:-1] if config.collisions == "append" else sizes)
    chosen = config.backbone.as_dict()
    model = from_config(
        {"class_path": chosen["class_path"], "init_args": {"codebook_sizes": sizes, **chosen["init_args"]}}
    )
    assert isinstance(model, Backbone)
    assert smallest < sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) < largest
    codes = torch.randint(0, 27, (30, len(sizes)), generator=torch.Generator().manual_seed(0))
    recommender = GenerativeRecommender(model, SemanticIds(codes, sizes), beam=config.beam)
    RecommenderTask(recommender, **config.task.as_dict())
    batch = SequenceData(split(), every_prefix=model.every_prefix, **config.batches.as_dict()).batch(0)
    assert len(batch) == config.batches.batch_size and batch.lengths.max() <= config.batches.max_history + 1
    with torch.no_grad():
        chance = 0.9 * math.log(30) if isinstance(model, CatalogueDecoder) else math.log(256)
        assert chance < float(recommender(batch[:4])) < 100  # far from knowing, not broken
    assert TrainingPlan(**config.plan.as_dict()).max_steps >= 1000
