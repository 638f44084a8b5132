"""Exported recommenders: the same lists and scores as the recommender has, filters included."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gritvq.export import load_program
from gritvq.items import (
    CatalogueDecoder,
    DepthDecoder,
    EncoderDecoder,
    GenerativeRecommender,
    Histories,
    ParallelDecoder,
    SASRec,
    SemanticIds,
    TokenDecoder,
)
from gritvq.items.recommenders.program import RecommenderProgram, compare_recommender
from gritvq.items.recommenders.ranking import top_items
from test_parallel import seeded

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript"), pytest.importorskip("transformers")

SIZES, COUNT = (6, 7), 30
CODES = torch.stack([torch.randint(0, size, (COUNT,), generator=seeded(place)) for place, size in enumerate(SIZES)], 1)
SOAK = [pytest.param(kind, marks=pytest.mark.soak) for kind in (TokenDecoder, EncoderDecoder, CatalogueDecoder)]


def made(kind: Any, **settings: Any) -> GenerativeRecommender:
    """With ids that items share, and a model that does not say the same of all."""
    torch.manual_seed(0)
    shape = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "dropout": 0.2}
    own = {EncoderDecoder: {"head_dim": 8}, ParallelDecoder: {"content_dim": 4, "content_weight": 2.0}}
    backbone = kind(SIZES, 16, **shape, **own.get(kind, {}))
    if kind is ParallelDecoder:
        backbone.set_content([torch.randn(size, 4, generator=seeded(size)) for size in SIZES])
    for parameter in backbone.parameters():
        parameter.data.mul_(1.5).add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    priority = torch.arange(COUNT).remainder(7).float()
    return GenerativeRecommender(backbone, SemanticIds(CODES, SIZES), max_history=5, priority=priority, **settings)


@pytest.mark.parametrize("kind", [ParallelDecoder, DepthDecoder, *SOAK])
def test_onnxruntime_finds_what_pytorch_finds(kind: Any, tmp_path: Path) -> None:
    recommender = made(kind)
    path = recommender.export(tmp_path, k=12, beam=9)
    assert path.name == "recommender.onnx" and recommender.training  # tracing left the model as it was
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(str(path))
    assert {entry.domain for entry in graph.opset_import} == {""} and not graph.functions
    assert [each.name for each in graph.graph.input] == ["histories", "allowed"]
    assert [each.name for each in graph.graph.output] == ["items", "scores"]
    run = load_program(path)
    histories = torch.tensor([[3, 7, 7, 29, 0], [4, -1, -1, -1, -1], [-1] * 5, [9, 8, -1, -1, -1], [1, 2, 3, -1, -1]])
    allowed = torch.rand(5, COUNT, generator=seeded(1)) < 0.5
    allowed[3], allowed[4] = True, False
    rows = [row[row >= 0].tolist() for row in histories]
    wanted = recommender.best(rows, 12, beam=12, allowed=allowed)
    items, scores = run(histories, allowed)
    assert torch.equal(items, wanted.items) and items.dtype == torch.int64  # items of one id by priority as well
    torch.testing.assert_close(scores, wanted.scores, rtol=1e-4, atol=1e-4)
    assert items[4].eq(-1).all() and scores[4].eq(-math.inf).all()
    for user in range(5):
        alone = run(histories[user : user + 1], allowed[user : user + 1])
        assert torch.equal(alone[0], items[user : user + 1])
    identical, difference = compare_recommender(recommender, path, 12, 12)
    assert identical.float().mean() > 0.99 and difference < 1e-4


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_a_program_excludes_what_it_is_given(exclude_seen: bool, tmp_path: Path) -> None:
    recommender = made(CatalogueDecoder, exclude_seen=exclude_seen)
    run = load_program(recommender.export(tmp_path / "ids", k=COUNT))
    sasrec = SASRec(COUNT, 8, max_length=5, exclude_seen=exclude_seen).eval()
    other = load_program(sasrec.export(tmp_path / "items", k=COUNT))
    histories, allowed = torch.tensor([[3, 7, 7, -1, -1], [4, -1, -1, -1, -1]]), torch.ones(2, COUNT).bool()
    for items, _ in (run(histories, allowed), other(histories, allowed)):
        listed = [set(row.tolist()) - {-1} for row in items]
        assert [set(range(COUNT)) - row for row in listed] == ([{3, 7}, {4}] if exclude_seen else [set(), set()])


def test_the_torch_format_and_lists_longer_than_the_catalogue(tmp_path: Path) -> None:
    recommender = made(ParallelDecoder)
    run = load_program(recommender.export(tmp_path, "torch", k=40))
    histories, allowed = torch.tensor([[3, 7, -1, -1, -1], [4, -1, -1, -1, -1]]), torch.ones(2, COUNT).bool()
    items, scores = run(histories, allowed)
    wanted = recommender.best([[3, 7], [4]], 40)
    torch.testing.assert_close(scores, wanted.scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(items.sort().values, wanted.items.sort().values) and items[:, COUNT:].eq(-1).all()


@pytest.mark.parametrize("kind", [ParallelDecoder, CatalogueDecoder, DepthDecoder, TokenDecoder, EncoderDecoder])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_program_itself_is_the_recommender(kind: Any, exclude_seen: bool) -> None:
    recommender = made(kind, exclude_seen=exclude_seen).eval()
    histories = torch.tensor([[3, 7, 7, 29, 0], [4, -1, -1, -1, -1]])
    allowed = torch.rand(2, COUNT, generator=seeded(2)) < 0.3
    with torch.no_grad():
        items, scores = RecommenderProgram(recommender, 9, 9)(histories, allowed)
    wanted = recommender.best([[3, 7, 7, 29, 0], [4]], 9, beam=9, allowed=allowed)
    assert torch.equal(items, wanted.items)
    torch.testing.assert_close(scores, wanted.scores, rtol=1e-5, atol=1e-5)


def test_says_what_does_not_fit(tmp_path: Path) -> None:
    for told in ({"k": 0}, {"beam": 0}):
        with pytest.raises(ValueError, match="expected k >= 1 and a beam >= 1"):
            made(ParallelDecoder).export(tmp_path / "out", **told)
    with pytest.raises(ValueError, match="'onnx' or 'torch', got 'keras'"):
        made(ParallelDecoder).export(tmp_path / "out", "keras")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.soak)])
def test_sasrec_as_a_program(format: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SASRec(COUNT, 16, max_length=5, dropout=0.3)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    path = model.export(tmp_path, format, k=7)
    assert path.stem == "recommender" and model.training
    histories = torch.tensor([[3, 7, 7, 29, 0], [4, -1, -1, -1, -1], [-1] * 5, [1, 2, 3, -1, -1]])
    allowed = torch.rand(4, COUNT, generator=seeded(1)) < 0.5
    allowed[3] = False
    allowed[3, :2] = True
    items, scores = load_program(path)(histories, allowed)
    wanted = model.scores(Histories.of([row[row >= 0].tolist() for row in histories]))
    best = top_items(wanted.masked_fill(~allowed, -math.inf), 7)
    known = torch.tensor([0, 1, 3])  # an empty history has equal scores, whose order torch does not promise
    assert torch.equal(items[known], best[known]) and items.dtype == torch.int64
    torch.testing.assert_close(scores[:3], wanted.gather(1, items.clamp(min=0))[:3], rtol=1e-4, atol=1e-4)
    assert allowed[2, items[2]].all() and scores[3, 2:].eq(-math.inf).all()
    with pytest.raises(ValueError, match="expected k >= 1, got 0"):
        model.export(tmp_path / "none", k=0)
