"""What codes say of items: vectors of codes against a dense solution, and scores with a part that is not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gritvq.items import (
    Candidates,
    CatalogueDecoder,
    GenerativeRecommender,
    MultiViewTokenizer,
    ParallelDecoder,
    ProductKMeans,
    SemanticIds,
    code_vectors,
)
from test_parallel import seeded

SIZES, COUNT, DIM = (6, 7, 4), 40, 5
CODES = torch.stack([torch.randint(0, size, (COUNT,), generator=seeded(place)) for place, size in enumerate(SIZES)], 1)
VECTORS = torch.randn(COUNT, 8, generator=seeded(9)) + 3
HISTORIES = [[1, 2], [3], [], [5, 6, 7, 8, 9, 10, 11]]


def sums(vectors: list[torch.Tensor], codes: torch.Tensor = CODES) -> torch.Tensor:
    return torch.stack([part[own] for part, own in zip(vectors, codes.unbind(1), strict=True)]).sum(0)


class TestCodeVectors:
    def test_they_solve_the_ridge_regression(self) -> None:
        """In double precision, of unit vectors turned: inner products do not see the turn."""
        found = sums(code_vectors(CODES, SIZES, VECTORS, 8, ridge=0.5))
        design = torch.cat([F.one_hot(own, size) for own, size in zip(CODES.unbind(1), SIZES, strict=True)], 1).double()
        x = VECTORS.double() - VECTORS.double().mean(0)
        x = F.normalize(x, dim=1)
        solution = torch.linalg.solve(design.T @ design + 0.5 * torch.eye(sum(SIZES)), design.T @ x)
        wanted = design @ solution
        torch.testing.assert_close(found @ found.T, (wanted @ wanted.T).float(), atol=1e-5, rtol=1e-4)

    def test_codes_of_product_tokenizers_get_what_they_decode_to(self) -> None:
        x = torch.randn(2000, 6, generator=seeded(3)) @ torch.diag(torch.tensor([5.0, 4, 3, 2, 1, 0.5]))
        tokenizer = ProductKMeans(8, 3, rotate=False).fit(x)
        codes = tokenizer.encode(x)
        found = sums(code_vectors(codes, tokenizer.codebook_sizes, x, 6), codes)
        decoded = tokenizer.decode(codes)
        decoded = F.normalize(decoded - x.mean(0), dim=1)
        pairs = torch.stack([(each[:300] @ each[:300].T).flatten() for each in (found, decoded)])
        assert float(pairs.corrcoef()[0, 1]) > 0.95

    def test_fewer_and_more_components_than_the_vectors_have(self) -> None:
        some, more = (code_vectors(CODES, SIZES, VECTORS, dim) for dim in (3, 11))
        torch.testing.assert_close(torch.cat(more)[:, 8:], torch.zeros(sum(SIZES), 3))
        assert [tuple(part.shape) for part in some] == [(size, 3) for size in SIZES]
        again = code_vectors(CODES, SIZES, VECTORS, 11)
        assert all(map(torch.equal, more, again))

    def test_codes_without_items_are_zero(self) -> None:
        found = code_vectors(CODES.clamp(max=2), SIZES, VECTORS, 4)
        assert [int(part[3:].count_nonzero()) for part in found] == [0, 0, 0]

    def test_wrong_vectors(self) -> None:
        for wrong in (VECTORS[1:], VECTORS[0], VECTORS.clone().fill_(torch.nan)):
            with pytest.raises(ValueError, match=r"expected finite vectors \(40, D\), one for each item"):
                code_vectors(CODES, SIZES, wrong, 4)
        with pytest.raises(ValueError, match="expected dim >= 1, got 0"):
            code_vectors(CODES, SIZES, VECTORS, 0)

    def test_a_tokenizer_decodes_views_that_have_one_unit(self) -> None:
        x = torch.randn(60, 6, generator=seeded(4)) * torch.tensor([1.0, 1, 1, 1, 100, 100]) + 7
        tokenizer = ProductKMeans(4, 2, rotate=False).fit(x)
        assert torch.equal(tokenizer.decode_joined(tokenizer.encode(x)), tokenizer.decode(tokenizer.encode(x)))
        views = MultiViewTokenizer(ProductKMeans(60, 2, rotate=False), (3, 3), (1.0, 0.25)).fit(x)
        joined = views.decode_joined(views.encode(x))
        lengths = joined[:, :3].square().sum(1).mean(), joined[:, 3:].square().sum(1).mean()
        torch.testing.assert_close(torch.stack(lengths), torch.tensor([1.0, 0.25]))
        with pytest.raises(ValueError, match="expected codes"):
            views.decode_joined(torch.full((1, 2), 99))


def pair(kind: Any, **settings: Any) -> tuple[GenerativeRecommender, GenerativeRecommender]:
    """A recommender with content, and the same without."""
    torch.manual_seed(0)
    shape = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_items": 6}
    with_content = kind(SIZES, 16, **shape, content_dim=DIM, content_weight=3.0)
    plain = kind(SIZES, 16, **shape)
    plain.load_state_dict({name: value for name, value in with_content.state_dict().items() if name != "content"})
    with_content.set_content(code_vectors(CODES, SIZES, VECTORS, DIM))
    ids = SemanticIds(CODES, SIZES)
    first, second = (GenerativeRecommender(each, ids, max_history=5, **settings) for each in (with_content, plain))
    return first.eval(), second.eval()


class TestScores:
    @pytest.mark.parametrize("kind", [CatalogueDecoder, ParallelDecoder])
    def test_the_content_of_the_last_item_is_added(self, kind: Any) -> None:
        first, second = pair(kind)
        own = sums(code_vectors(CODES, SIZES, VECTORS, DIM))
        directions = torch.stack([F.normalize(own[row[-1]], dim=0) if row else torch.zeros(DIM) for row in HISTORIES])
        added = first.scores(HISTORIES) - second.scores(HISTORIES)
        torch.testing.assert_close(added, 3.0 * directions @ own.T, atol=1e-5, rtol=1e-4)
        best = first.scores(HISTORIES).argmax(1).tolist()
        assert torch.equal(CODES[first.recommend(HISTORIES, 1)[:, 0]], CODES[best])
        everything = first.recommend(HISTORIES, 5, graph=first.graph(num_neighbors=COUNT - 1), beam=COUNT)
        assert torch.equal(everything, first.recommend(HISTORIES, 5))
        with torch.no_grad():
            assert torch.equal(first.scores([[]]), second.scores([[]]))  # nobody's last item

    @pytest.mark.parametrize("kind", [CatalogueDecoder, ParallelDecoder])
    def test_training_does_not_see_it(self, kind: Any) -> None:
        first, second = pair(kind)
        arguments = CODES[None, :4], torch.tensor([4]), Candidates(CODES)
        assert torch.equal(first.backbone.loss(*arguments), second.backbone.loss(*arguments))
        assert "content" not in dict(first.backbone.named_parameters())

    def test_new_items_are_found_by_what_they_are(self) -> None:
        """An item with the codes of the last one is the best, whatever the untrained model says, if content counts."""
        first, _ = pair(CatalogueDecoder)
        twin = first.ids.add(CODES[3:4], [1000])
        first.backbone.content_weight = 1000.0
        grown = GenerativeRecommender(first.backbone, twin, max_history=5, exclude_seen=True).eval()
        assert grown.recommend([[3]], 1).tolist() == [[COUNT]]

    def test_a_folder_keeps_it(self, tmp_path: Path) -> None:
        first, second = pair(CatalogueDecoder)
        loaded = GenerativeRecommender.from_pretrained(first.save_pretrained(tmp_path / "one"))
        assert torch.equal(loaded.scores(HISTORIES), first.scores(HISTORIES))
        assert not torch.equal(loaded.scores(HISTORIES), second.scores(HISTORIES))

    def test_vectors_of_another_shape(self) -> None:
        first, second = pair(CatalogueDecoder)
        with pytest.raises(ValueError, match=r"expected code vectors \[\(6, 5\), \(7, 5\), \(4, 5\)\]"):
            first.backbone.set_content(code_vectors(CODES, SIZES, VECTORS, DIM + 1))
        with pytest.raises(ValueError, match="for a model with content_dim"):
            second.backbone.set_content(code_vectors(CODES, SIZES, VECTORS, DIM))
