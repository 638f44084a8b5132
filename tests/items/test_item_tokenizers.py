"""Tokenizers of item embeddings: clustering against references, codes of a row alone, folders, bad input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import DATA
from gritvq import (
    FSQ,
    ProductQuantizer,
    Quantizer,
    QuantizerOutput,
    ResidualQuantizer,
    Tokenizer,
    gm_vq,
    grit_vq,
    rotation_vq,
    rsq_vae,
    simvq,
    vq_vae,
    vq_vae_ema,
)
from gritvq.items import (
    RQVAE,
    CollaborativeLoss,
    DiversityLoss,
    ItemDecoder,
    ItemEncoder,
    ItemLoss,
    ItemTokenizer,
    ProductKMeans,
    ResidualKMeans,
    grit_product,
    residual_stack,
)
from gritvq.items.tokenizers.kmeans import balanced_kmeans, kmeans, lloyd_step, plus_plus
from gritvq.items.tokenizers.rqvae import _cluster
from gritvq.items.tokenizers.search import CodeTable
from gritvq.quantizers.functional import code_counts, nearest_code, perplexity

BEAUTY = DATA / "recsys" / "amazon_beauty" / "item_embeddings.npy"
needs_beauty = pytest.mark.skipif(not BEAUTY.exists(), reason="the items of Amazon Beauty are not in ../shared/data")
DIM, SIZE = 12, 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int = 600, dim: int = DIM, groups: int = 40, seed: int = 0) -> Tensor:
    """Rows around group centers, with a common offset."""
    generator = seeded(seed)
    centers = torch.randn(groups, dim, generator=generator)
    rows = centers[torch.randint(groups, (count,), generator=generator)]
    return 2 + rows + 0.3 * torch.randn(count, dim, generator=generator)


def rqvae(quantizer: Quantizer | None = None, skip: bool = False, **changes: Any) -> RQVAE:
    torch.manual_seed(0)
    if quantizer is None:
        quantizer = residual_stack(lambda: grit_vq(4, SIZE, initialization="kmeans", revival_interval=5))
    sizes: dict[str, Any] = {"input_dim": DIM, "dim": quantizer.input_dim, "hidden": (32, 16), "skip": skip}
    plan = {"steps": 100, "batch_size": 128, "lr": 3e-3, **changes}
    return RQVAE(quantizer, encoder=ItemEncoder(**sizes), decoder=ItemDecoder(**sizes), **plan)


TOKENIZERS: dict[str, Callable[[], ItemTokenizer]] = {
    "residual": lambda: ResidualKMeans(SIZE, 3),
    "residual-normalized": lambda: ResidualKMeans(SIZE, 3, normalize_residuals=True),
    "residual-balanced": lambda: ResidualKMeans(SIZE, 2, balanced=True, iterations=10),
    "residual-normalized-balanced": lambda: ResidualKMeans(
        SIZE, 2, normalize_residuals=True, balanced=True, iterations=10
    ),
    "product": lambda: ProductKMeans(SIZE, 4, rotate=False),
    "product-rotated": lambda: ProductKMeans(SIZE, 4),
    "rqvae-grit": lambda: rqvae(),
    "rqvae-ema": lambda: rqvae(residual_stack(lambda: vq_vae_ema(4, SIZE), 2)),
    "rqvae-stochastic": lambda: rqvae(rsq_vae(4, SIZE, num_levels=2, initial_variance=0.01), steps=200),
    "rqvae-mixture": lambda: rqvae(residual_stack(lambda: gm_vq(4, SIZE), 2), steps=200),
    "rqvae-fsq": lambda: rqvae(FSQ([5, 5, 5])),
    "rqvae-skip": lambda: rqvae(skip=True),
    "rqvae-product": lambda: rqvae(grit_product(8, SIZE, num_parts=4)),
}
_fitted: dict[str, ItemTokenizer] = {}


@pytest.fixture(params=TOKENIZERS)
def fitted(request: pytest.FixtureRequest) -> ItemTokenizer:
    """Every kind, fitted once to the same rows."""
    return of_kind(request.param)


def of_kind(name: str) -> ItemTokenizer:
    if name.endswith("rotated"):
        pytest.importorskip("faiss")
    if name not in _fitted:
        _fitted[name] = TOKENIZERS[name]().fit(blobs())
    return _fitted[name]


class TestStartAtPrincipalAxes:
    def error_after_a_step_of_nothing(self, dim: int, x: Tensor) -> float:
        sizes: dict[str, Any] = {"input_dim": DIM, "dim": dim, "hidden": (16,), "skip": True}
        quantizer = residual_stack(lambda: grit_vq(dim, SIZE, initialization="kmeans"), 2)
        networks = ItemEncoder(**sizes), ItemDecoder(**sizes)
        tokenizer = RQVAE(quantizer, encoder=networks[0], decoder=networks[1], steps=2, lr=1e-12).fit(x)
        return float((tokenizer.decode(tokenizer.encode(x)) - x).square().sum() / (x - x.mean(0)).square().sum())

    def test_with_all_of_them_it_is_residual_kmeans(self) -> None:
        x = blobs()
        errors = []
        for seed in range(6):  # k-means ends at one of many optima
            kmeans = ResidualKMeans(SIZE, 2, seed=seed).fit(x)
            rest = (kmeans.decode(kmeans.encode(x)) - x).square().sum() / (x - x.mean(0)).square().sum()
            errors.append(float(rest))
        assert min(errors) * 0.97 < self.error_after_a_step_of_nothing(DIM, x) < max(errors) * 1.03

    def test_with_some_of_them_the_rest_is_lost(self) -> None:
        x = blobs() * torch.linspace(0.2, 3, DIM)
        values = np.linalg.eigvalsh(np.cov(x.numpy().T))
        lost = values[:-3].sum() / values.sum()
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"input_dim": DIM, "dim": 3, "hidden": (16,), "skip": True}
        encoder, decoder = ItemEncoder(**sizes), ItemDecoder(**sizes)
        tokenizer = RQVAE(vq_vae(3, 4), encoder=encoder, decoder=decoder, steps=2, lr=1e-12).fit(x)
        latents = tokenizer.encoder(x)
        torch.testing.assert_close(latents.square().mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
        found = (tokenizer.decoder(latents) - x).square().sum() / (x - x.mean(0)).square().sum()
        assert float(found) == pytest.approx(lost, rel=1e-3)

    def test_a_shared_level_is_started_once(self) -> None:
        x = blobs()
        shared = vq_vae(DIM, SIZE, initialization="kmeans")
        _cluster(ResidualQuantizer([shared, shared, shared]), x, seeded(), set())
        table, alone = shared.codebook.codes(), kmeans(x, SIZE, seeded()).codes  # not of what the level leaves
        torch.testing.assert_close(table, alone)

    def test_bad_sizes(self) -> None:
        sizes: dict[str, Any] = {"input_dim": DIM, "dim": 4}
        networks = ItemEncoder(skip=True, **sizes), ItemDecoder(**sizes)
        with pytest.raises(ValueError, match="expected encoder and decoder both with skip or both without"):
            RQVAE(vq_vae(4, 4), encoder=networks[0], decoder=networks[1], steps=2).fit(blobs())
        with pytest.raises(ValueError, match="expected latents of one size up to 12 for networks with skip, got 16"):
            self.error_after_a_step_of_nothing(16, blobs())
        with pytest.raises(ValueError, match=r"got \(3, 12\) for one without skip; set skip"):
            ItemEncoder(DIM, 3).start_linear(torch.zeros(3, DIM))


class TestEveryKind:
    def test_shapes_and_ranges(self, fitted: ItemTokenizer) -> None:
        x = blobs(50, seed=1)
        codes = fitted.encode(x)
        assert codes.shape == (50, len(fitted.codebook_sizes)) and codes.dtype == torch.int64 and fitted.dim == DIM
        assert bool((codes >= 0).all()) and bool((codes < torch.tensor(fitted.codebook_sizes)).all())
        values = fitted.decode(codes)
        assert values.shape == x.shape and values.dtype == torch.float32
        assert fitted.encode(x[:0]).shape == (0, codes.shape[1]) and fitted.decode(codes[:0]).shape == (0, DIM)

    @pytest.mark.parametrize("batch_size", [1, 64])
    def test_codes_depend_on_the_row_alone(self, fitted: ItemTokenizer, batch_size: int) -> None:
        x = blobs(70, seed=2)
        codes, order = fitted.encode(x), torch.randperm(len(x), generator=seeded())
        assert torch.equal(fitted.encode(x, batch_size=batch_size), codes)
        assert torch.equal(fitted.encode(x[order], batch_size=batch_size), codes[order])
        assert torch.equal(fitted.train().encode(x[5:9]), codes[5:9])

    def test_codes_do_not_depend_on_the_container(self, fitted: ItemTokenizer, tmp_path: Path) -> None:
        half = blobs(40, seed=3).half()
        codes = fitted.encode(half.float())
        np.save(tmp_path / "x.npy", half.numpy())
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        for same in (half, half.double(), half.numpy(), mapped, half.float().numpy()[:, ::-1].copy()[:, ::-1]):
            assert torch.equal(fitted.encode(same, batch_size=16), codes)
        transposed = half.float().T.contiguous().T
        assert torch.equal(fitted.encode(transposed), codes)

    def test_perturbed_codes(self, fitted: ItemTokenizer) -> None:
        x = blobs()
        codes, noisy = fitted.encode(x), fitted.perturbed_codes(x, 0.3, num_draws=2)
        assert noisy.shape == (2, *codes.shape)
        assert torch.equal(noisy, fitted.perturbed_codes(x.numpy(), 0.3, batch_size=7))
        assert torch.equal(fitted.perturbed_codes(x, 0.0, num_draws=1)[0], codes)
        kept = [(fitted.perturbed_codes(x, scale) == codes).double().mean() for scale in (0.01, 0.3, 3.0)]
        assert kept[0] > kept[1] > kept[2]
        assert not torch.equal(noisy[0], noisy[1])
        with pytest.raises(ValueError, match="expected scale >= 0"):
            fitted.perturbed_codes(x, -1.0)

    def test_saved_and_loaded_bit_by_bit(self, fitted: ItemTokenizer, tmp_path: Path) -> None:
        x = blobs(60, seed=4)
        folder = fitted.save_pretrained(tmp_path / "tokenizer")
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
        for cls in (Tokenizer, ItemTokenizer, type(fitted)):
            loaded = cls.from_pretrained(folder)
            assert isinstance(loaded, ItemTokenizer)  # for the type checker
            assert type(loaded) is type(fitted) and loaded.dim == DIM and not loaded.training
            assert loaded.fingerprint() == fitted.fingerprint()
            codes = fitted.encode(x)
            assert torch.equal(loaded.encode(x), codes) and torch.equal(loaded.decode(codes), fitted.decode(codes))

    def test_folded_ones_give_the_same(self, fitted: ItemTokenizer, tmp_path: Path) -> None:
        x, before = blobs(60, seed=4), fitted.fingerprint()
        codes = fitted.encode(x)
        loaded = ItemTokenizer.from_pretrained(fitted.save_pretrained(tmp_path / "tokenizer"))
        folded = loaded.fold()
        assert torch.equal(folded.encode(x), codes) and torch.equal(folded.decode(codes), fitted.decode(codes))
        again = ItemTokenizer.from_pretrained(folded.save_pretrained(tmp_path / "folded"))
        assert torch.equal(again.encode(x), codes) and again.fingerprint() == folded.fingerprint()
        assert loaded.fingerprint() == before
        if isinstance(folded, RQVAE):
            assert not any(parameter.requires_grad for parameter in folded.quantizer.parameters())

    def test_better_than_the_mean(self, fitted: ItemTokenizer) -> None:
        x = blobs()
        error = (fitted.decode(fitted.encode(x)) - x).square().sum()
        assert error < 0.9 * (x - x.mean(0)).square().sum()

    def test_refuses_bad_rows(self, fitted: ItemTokenizer) -> None:
        x = blobs(20)
        x[13, 2] = torch.nan
        with pytest.raises(ValueError, match="row 13 and 1 such"):
            fitted.encode(x, batch_size=8)
        with pytest.raises(ValueError, match=rf"\(n, {DIM}\), got \(4, {DIM + 1}\)"):
            fitted.encode(torch.zeros(4, DIM + 1))
        with pytest.raises(ValueError, match=r"floating embeddings, got torch\.int64"):
            fitted.encode(torch.zeros(4, DIM, dtype=torch.int64))
        codes = fitted.encode(blobs(4))
        for wrong in (codes + 10**6, codes - 10**6, codes[:, :1].repeat(1, 9), codes.float()):
            with pytest.raises(ValueError, match=r"expected .*codes"):
                fitted.decode(wrong)


@pytest.mark.parametrize(
    "make",
    [TOKENIZERS["residual"], TOKENIZERS["residual-normalized-balanced"], TOKENIZERS["product"], lambda: rqvae(steps=8)],
    ids=["residual", "residual-normalized-balanced", "product", "rqvae"],
)
def test_the_same_seed_gives_the_same_tokenizer(make: Callable[[], ItemTokenizer]) -> None:
    x = blobs()
    first = make().fit(x)
    torch.manual_seed(99)
    before = first.fingerprint()
    assert before == make().fit(x).fingerprint() == first.fit(x).fingerprint()


@pytest.mark.parametrize("name", [n for n in TOKENIZERS if n not in ("rqvae-fsq", "rqvae-product")])
def test_last_level_tells_what_the_last_code_is_nearest_to(name: str) -> None:
    x = blobs()
    tokenizer = of_kind(name)
    vectors, table = tokenizer.last_level(x, batch_size=100)
    assert len(vectors) == len(x) and len(table) == tokenizer.codebook_sizes[-1]
    distances = torch.cdist(vectors.double(), table.double())
    own = distances.gather(1, tokenizer.encode(x)[:, -1:]).squeeze(1)
    torch.testing.assert_close(own, distances.amin(1), rtol=1e-5, atol=1e-5)


class TestClustering:
    def test_one_step_of_lloyd_in_closed_form(self) -> None:
        x, codes = blobs(200), blobs(8, seed=5)
        indices = torch.cdist(x, codes).argmin(1)
        expected = torch.stack([x[indices == k].mean(0) for k in range(8)])
        torch.testing.assert_close(lloyd_step(x, codes, indices), expected)
        once = kmeans(x, 8, seeded(), iterations=1, start=codes)
        torch.testing.assert_close(once.codes, expected)

    def test_as_good_as_scikit_learn_from_the_same_start(self) -> None:
        from sklearn.cluster import KMeans

        x = blobs(800)
        start = plus_plus(x, SIZE, seeded(3))
        reference = KMeans(SIZE, init=start.numpy(), n_init=1, max_iter=300, tol=0).fit(x.numpy())
        codes = kmeans(x, SIZE, seeded(), iterations=300, start=start).codes
        inertia = float(torch.cdist(x, codes).square().amin(1).sum())
        assert inertia == pytest.approx(reference.inertia_, rel=1e-4)

    def test_careful_seeding_beats_random_rows(self) -> None:
        x = blobs(800, groups=SIZE)

        def error(codes: Tensor) -> float:
            return float(torch.cdist(x, codes).square().amin(1).sum())

        seeds = range(5)
        careful = [error(plus_plus(x, SIZE, seeded(s))) for s in seeds]
        plain = [error(x[torch.randperm(len(x), generator=seeded(s))[:SIZE]]) for s in seeds]
        assert max(careful) < min(plain)

    def test_an_empty_code_moves_to_the_farthest_row(self) -> None:
        x = torch.tensor([[0.0], [1.0], [2.0], [9.0], [20.0]])
        far = torch.tensor([[1.0], [100.0], [-100.0]])
        moved = lloyd_step(x, far, torch.zeros(5, dtype=torch.int64))
        assert moved.flatten().tolist() == pytest.approx([6.4, 20.0, 0.0])
        equal = torch.zeros(4, 1)
        assert lloyd_step(equal, far, torch.zeros(4, dtype=torch.int64)).flatten().tolist() == [0.0, 100.0, -100.0]

    @settings(max_examples=20, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
    def test_seeding_picks_different_rows_while_there_are_any(self, count: int, size: int, seed: int) -> None:
        x = torch.randint(0, 3, (count, 2), generator=seeded(seed)).float()
        codes = plus_plus(x, size, seeded(seed))
        assert len(codes.unique(dim=0)) == min(size, len(x.unique(dim=0)))

    def test_rows_closer_than_the_seeding_can_tell_are_still_told_apart(self) -> None:
        x = torch.tensor([[1000.0], [1000.001], [0.0], [5.0]])
        assert plus_plus(x, 4, seeded()).flatten().sort().values.tolist() == x.flatten().sort().values.tolist()

    def test_balanced_clusters_are_balanced_and_prices_are_optimal(self) -> None:
        x = torch.cat([blobs(500, groups=3), 0.1 * blobs(300, groups=30, seed=1)])
        clusters = balanced_kmeans(x, 8, seeded())
        assert clusters.prices is not None
        cost = torch.cdist(x, clusters.codes).square() / 2 + clusters.prices
        indices = nearest_code(torch.nn.functional.pad(x, (0, 1)), clusters.table())
        assert torch.equal(indices, cost.argmin(1))
        counts, plain = code_counts(indices, 8), kmeans(x, 8, seeded()).codes
        assert counts.max() <= 1.2 * 100 and code_counts(nearest_code(x, plain), 8).max() > 1.5 * 100
        # Duality: no assignment with these counts costs less (scipy solves the transport problem exactly).
        from scipy.optimize import linear_sum_assignment

        places = torch.arange(8).repeat_interleave(counts.long())
        distance = torch.cdist(x, clusters.codes).square() / 2
        rows, columns = linear_sum_assignment(distance[:, places].double().numpy())
        best = distance[torch.from_numpy(rows), places[torch.from_numpy(columns)]].sum()
        torch.testing.assert_close(distance[torch.arange(len(x)), indices].sum(), best, rtol=1e-5, atol=0)


class TestSearch:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 10**6))
    def test_ties_go_to_the_lowest_index_in_any_batch(self, count: int, size: int, seed: int) -> None:
        generator = seeded(seed)
        x = torch.randint(-2, 3, (count, 3), generator=generator).float()
        codes = torch.randint(-2, 3, (size, 3), generator=generator).float()
        exact = (x[:, None] - codes).square().sum(2)
        expected = (exact == exact.amin(1, keepdim=True)).int().argmax(1)
        assert torch.equal(CodeTable(codes).nearest(x), expected)
        assert torch.equal(torch.cat([CodeTable(codes).nearest(row[None]) for row in x]), expected)


class TestResidualKMeans:
    def test_levels_are_k_means_of_what_is_left(self) -> None:
        x = blobs()
        tokenizer = ResidualKMeans(SIZE, 2).fit(x)
        codes = tokenizer.encode(x)
        for level in range(2):
            table = tokenizer.tables[level]
            assert torch.equal(codes[:, level], torch.cdist(x, table).argmin(1))
            torch.testing.assert_close(lloyd_step(x, table, codes[:, level]), table, rtol=1e-4, atol=1e-5)
            x = x - table[codes[:, level]]

    def test_normalized_residuals_decode_to_means_of_what_is_missing(self) -> None:
        x = blobs()
        tokenizer = ResidualKMeans(SIZE, 2, normalize_residuals=True).fit(x)
        codes, missing = tokenizer.encode(x), x
        for level in range(2):
            own = codes[:, level]
            means = torch.stack([missing[own == k].mean(0) for k in own.unique()])
            torch.testing.assert_close(tokenizer.values[level][own.unique()], means, rtol=1e-4, atol=1e-5)
            missing = missing - tokenizer.values[level][own]
        torch.testing.assert_close(tokenizer.decode(codes), x - missing, rtol=1e-4, atol=1e-5)
        stretched = x * torch.rand(len(x), 1, generator=seeded()).add(0.5)
        assert (tokenizer.encode(stretched) == codes).float().mean() > 0.99

    def test_duplicates_share_codes_and_rounding_is_no_residual(self) -> None:
        different = blobs(SIZE)
        x = different.repeat(7, 1)
        for normalized in (False, True):
            tokenizer = ResidualKMeans(SIZE, 3, normalize_residuals=normalized).fit(x)
            codes = tokenizer.encode(x)
            assert len(codes.unique(dim=0)) == SIZE and len(codes[:, 0].unique()) == SIZE
            assert torch.equal(codes, codes[:SIZE].repeat(7, 1))
            if normalized:
                assert len(codes[:, 1:].unique(dim=0)) == 1
            torch.testing.assert_close(tokenizer.decode(codes), x, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("rows", "told"),
        [
            (blobs(SIZE - 1), f"got {SIZE - 1} items for {SIZE} codes"),
            (torch.ones(100, DIM), "got 1 among 100 rows"),
            (blobs(5).repeat(20, 1), "got 5 among 100 rows"),
            (torch.full((100, DIM), torch.nan), "row 0 and 100 such rows"),
            (torch.full((100, DIM), 1e39, dtype=torch.float64), r"finite numbers up to 1e\+15"),
            (torch.full((100, DIM), 1e16), "infinite or larger one in row 0"),
            (torch.zeros(100), r"\(n, D\), got \(100,\)"),
            ([[0.0]], "tensor or array, got list"),
        ],
    )
    def test_refuses_what_it_cannot_cluster(self, rows: Any, told: str) -> None:
        tokenizer = ResidualKMeans(SIZE)
        with pytest.raises(ValueError, match=told):
            tokenizer.fit(rows)
        with pytest.raises(ValueError, match="call fit"):
            tokenizer.encode(blobs())

    @needs_beauty
    def test_on_real_items(self) -> None:
        x = np.load(BEAUTY)[:3000]
        tokenizer = ResidualKMeans(64, 3, iterations=20, normalize_residuals=True).fit(x)
        codes = tokenizer.encode(x)
        assert min(float(perplexity(code_counts(codes[:, level], 64))) for level in range(3)) > 50
        assert torch.equal(tokenizer.encode(x[::-1], batch_size=100), codes.flip(0))


class TestProductKMeans:
    def test_rotation_is_orthogonal_and_helps_as_faiss_does(self) -> None:
        faiss = pytest.importorskip("faiss")
        mixing = torch.randn(DIM, DIM, generator=seeded(7)) * torch.logspace(0, -1.5, DIM)[:, None]
        x = blobs(800) @ mixing
        plain, turned = (ProductKMeans(SIZE, 4, rotate=r).fit(x) for r in (False, True))

        def error(tokenizer: ItemTokenizer) -> float:
            return float((tokenizer.decode(tokenizer.encode(x)) - x).square().sum())

        torch.testing.assert_close(turned.rotation @ turned.rotation.T, torch.eye(DIM), rtol=0, atol=1e-5)
        assert error(turned) < 0.8 * error(plain)
        for tokenizer, name in ((plain, "PQ4x4np"), (turned, "OPQ4,PQ4x4np")):
            index = faiss.index_factory(DIM, name)
            index.train(x.numpy())
            reference = index.sa_decode(index.sa_encode(x.numpy()))
            assert error(tokenizer) < 1.1 * float(np.square(reference - x.numpy()).sum())

    def test_parts_are_searched_as_faiss_does(self) -> None:
        faiss = pytest.importorskip("faiss")
        x = blobs()
        tokenizer = ProductKMeans(SIZE, 4, rotate=False).fit(x)
        reference = faiss.ProductQuantizer(DIM, 4, 4)
        faiss.copy_array_to_vector(tokenizer.tables.flatten().numpy(), reference.centroids)
        packed = reference.compute_codes(x.numpy())
        unpacked = np.stack([packed[:, 0] & 15, packed[:, 0] >> 4, packed[:, 1] & 15, packed[:, 1] >> 4], 1)
        assert torch.equal(tokenizer.encode(x), torch.from_numpy(unpacked.astype(np.int64)))

    @pytest.mark.parametrize(("size", "count", "dim"), [(150, 200, 4), (40, 40, 4), (16, 16, 64), (1, 1, 4)])
    def test_rotates_few_rows(self, size: int, count: int, dim: int) -> None:
        """Fewer than the power of two that faiss counts its codes in, and fewer than components."""
        pytest.importorskip("faiss")
        x = torch.randn(count, dim, generator=seeded())
        tokenizer = ProductKMeans(size, 2).fit(x)
        torch.testing.assert_close(tokenizer.rotation @ tokenizer.rotation.T, torch.eye(dim), rtol=0, atol=1e-5)
        error = (tokenizer.decode(tokenizer.encode(x)) - x).square().mean()
        assert error < (0.1 if size < count else 1e-8)  # as many codes as rows: each is its own

    def test_without_faiss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(ValueError, match=r"rotate=False needs none.* pip install 'gritvq\[search\]'"):
            ProductKMeans(SIZE).fit(blobs())

    def test_refuses_parts_that_do_not_divide(self) -> None:
        with pytest.raises(ValueError, match="multiple of num_parts=5, got 12"):
            ProductKMeans(SIZE, 5, rotate=False).fit(blobs())


class TestTrainedProduct:
    """An RQ-VAE with a product between its networks: long unordered ids."""

    @pytest.mark.parametrize("unit", [vq_vae, vq_vae_ema, rotation_vq, grit_vq, simvq], ids=lambda unit: unit.__name__)
    def test_of_any_units(self, unit: Callable[..., Quantizer]) -> None:
        self.check_units([unit(2, SIZE) for _ in range(5)], lr=1e-2)

    def test_of_units_without_a_table(self) -> None:
        # No loss holds the latents of FSQ: at higher rates they leave its range and saturate, see docs/log.md.
        self.check_units([FSQ([4, 4]) for _ in range(5)], lr=3e-4, skip=True)

    def check_units(self, units: list[Quantizer], **changes: Any) -> None:
        x = blobs()
        tokenizer = rqvae(ProductQuantizer(units), steps=300, **changes).fit(x)
        codes = tokenizer.encode(x)
        assert tokenizer.codebook_sizes == (SIZE,) * 5 and len(codes.unique(dim=0)) > 200
        error = (tokenizer.decode(codes) - x).square().mean()
        assert error < 0.5 * x.var(0, correction=0).mean()

    def test_more_parts_decode_better_and_each_part_reads_its_own_share(self) -> None:
        x = blobs()
        errors = []
        for parts in (2, 8):
            tokenizer = rqvae(grit_product(2 * parts, SIZE, num_parts=parts), steps=200).fit(x)
            codes = tokenizer.encode(x)
            errors.append(float((tokenizer.decode(codes) - x).square().mean()))
        assert errors[1] < 0.8 * errors[0]
        latents = tokenizer.encoder(x)
        for place, part in enumerate(tokenizer.quantizer.quantizers):
            distances = torch.cdist(latents[:, 2 * place : 2 * place + 2], part.codebook())
            own = distances.gather(1, codes[:, place : place + 1]).squeeze(1)
            torch.testing.assert_close(own, distances.amin(1), rtol=1e-4, atol=1e-4)

    def test_says_what_does_not_fit(self) -> None:
        with pytest.raises(ValueError, match="dim to be a multiple of num_parts, got 10 and 4; change"):
            grit_product(10, 16, num_parts=4)
        with pytest.raises(ValueError, match="num_parts >= 1, got 0"):
            grit_product(10, 16, num_parts=0)
        with pytest.raises(ValueError, match="last level is a table, got ProductQuantizer; choose"):
            of_kind("rqvae-product").last_level(blobs())


class Broken(ItemLoss):
    """Never a number."""

    def forward(self, items: Tensor, output: QuantizerOutput, quantizer: Quantizer) -> Tensor:
        return output.quantized.sum() * torch.nan


class TestRQVAE:
    @pytest.mark.parametrize("name", ["rqvae-grit", "rqvae-ema", "rqvae-stochastic"])
    def test_training_reduces_the_error_and_keeps_codes_alive(self, name: str) -> None:
        x = blobs()
        before, after = TOKENIZERS[name](), TOKENIZERS[name]()
        before.steps, before._arguments["steps"] = 8, 8  # type: ignore[attr-defined]
        after.steps, after._arguments["steps"] = 150, 150  # type: ignore[attr-defined]
        errors, codes = [], torch.empty(0)
        for tokenizer in (before, after):
            codes = tokenizer.fit(x).encode(x)
            errors.append(float((tokenizer.decode(codes) - x).square().mean()))
        assert errors[1] < 0.9 * errors[0]
        for level, size in enumerate(after.codebook_sizes):
            assert float(perplexity(code_counts(codes[:, level], size))) > 0.5 * size

    def test_what_decode_gives_is_what_training_saw(self) -> None:
        tokenizer, x = rqvae(steps=10).fit(blobs()), blobs(30, seed=1)
        with torch.no_grad():
            output = tokenizer.quantizer(tokenizer.encoder(x))
            expected = tokenizer.decoder(output.quantized)
        assert torch.equal(tokenizer.encode(x), output.indices)
        torch.testing.assert_close(tokenizer.decode(output.indices), expected)

    def test_a_failed_training_leaves_everything_as_it_was(self) -> None:
        x, tokenizer = blobs(), rqvae(steps=10).fit(blobs())
        before, codes = tokenizer.fingerprint(), tokenizer.encode(x)
        broken = rqvae(losses=[Broken()], steps=10)
        broken.load_state_dict(tokenizer.state_dict())
        broken._dim = DIM
        with pytest.raises(ValueError, match="finite loss, got nan at step 2"):
            broken.fit(x)
        assert torch.equal(broken.encode(x), codes) and tokenizer.fingerprint() == before
        with pytest.raises(ValueError, match=r"constant|differ"):
            tokenizer.fit(torch.ones(100, DIM))
        assert tokenizer.fingerprint() == before

    def test_progress_bar(self, capsys: pytest.CaptureFixture[str]) -> None:
        rqvae(steps=2).fit(blobs(), progress=True)
        assert "training RQ-VAE" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"encoder": ItemEncoder(DIM, 5)}, "encoder to have dim=4"),
            ({"decoder": ItemDecoder(DIM, 5)}, "decoder to have dim=4"),
            ({"decoder": ItemDecoder(DIM + 1, 4)}, "equal input_dim of encoder and decoder, got 12 and 13"),
            ({"steps": 0}, "steps >= 1"),
            ({"lr": 0.0}, "lr > 0"),
        ],
    )
    def test_refuses_parts_that_do_not_fit(self, changes: dict[str, Any], told: str) -> None:
        parts: dict[str, Any] = {"encoder": ItemEncoder(DIM, 4), "decoder": ItemDecoder(DIM, 4), **changes}
        with pytest.raises(ValueError, match=told):
            RQVAE(residual_stack(lambda: vq_vae(4, 8), 2), **parts)

    def test_stack_trains_prefixes(self) -> None:
        stack = residual_stack(lambda: grit_vq(4, 8), 2)
        assert sorted(stack(torch.randn(9, 4)).losses) == [
            f"{i}/{n}" for i in (0, 1) for n in ("codebook", "commitment")
        ]
        same = residual_stack(lambda: vq_vae_ema(4, 8), 2)
        assert sorted(same(torch.randn(9, 4)).losses) == ["0/commitment", "1/commitment"]


class TestAlignment:
    def test_collaborative_loss_is_info_nce(self, tmp_path: Path) -> None:
        vectors = torch.randn(20, 4, generator=seeded())
        np.save(tmp_path / "cf.npy", vectors.numpy())
        quantizer = ResidualQuantizer([vq_vae(4, 8) for _ in range(2)])
        loss = CollaborativeLoss(str(tmp_path / "cf.npy"), weight=0.5)
        loss.check(20, quantizer)
        items, output = torch.tensor([3, 7, 1]), quantizer(torch.randn(3, 4))
        z, h = output.quantized, vectors[items]
        each = [-(torch.exp(z[i] @ h[i]) / sum(torch.exp(z[i] @ h[j]) for j in range(3))).log() for i in range(3)]
        torch.testing.assert_close(loss(items, output, quantizer), 0.5 * torch.stack(each).mean())
        twice = quantizer(torch.randn(2, 4))
        assert loss(torch.tensor([4, 4]), twice, quantizer).item() == 0  # the same item is no negative
        with pytest.raises(ValueError, match=r"\(21, 4\)"):
            loss.check(21, quantizer)
        with pytest.raises(ValueError, match=r"nothing\.npy"):
            CollaborativeLoss(str(tmp_path / "nothing.npy")).check(20, quantizer)
        np.savez(tmp_path / "cf.npz", vectors.numpy())
        (tmp_path / "empty.npy").touch()
        for name in ("cf.npz", "empty.npy"):
            with pytest.raises(ValueError, match=rf"a \.npy file of numbers, got .*{name} .* numpy\.save"):
                CollaborativeLoss(str(tmp_path / name)).check(20, quantizer)

    def test_items_without_collaborative_vectors_are_not_aligned(self, tmp_path: Path) -> None:
        vectors = torch.randn(20, 4, generator=seeded())
        quantizer = ResidualQuantizer([vq_vae(4, 8) for _ in range(2)])
        whole = CollaborativeLoss(str(tmp_path / "whole.npy"), weight=0.5)
        parts = CollaborativeLoss(str(tmp_path / "parts.npy"), weight=0.5)
        np.save(tmp_path / "whole.npy", vectors.numpy())
        vectors[[7, 9]] = torch.nan
        np.save(tmp_path / "parts.npy", vectors.numpy())
        for loss in (whole, parts):
            loss.check(20, quantizer)
        x = torch.randn(4, 4, generator=seeded(1)).requires_grad_()
        found = parts(torch.tensor([3, 7, 1, 9]), quantizer(x), quantizer)
        torch.testing.assert_close(found, whole(torch.tensor([3, 1]), quantizer(x[[0, 2]]), quantizer))
        found.backward()
        assert x.grad is not None and not x.grad[[1, 3]].any() and x.grad[[0, 2]].any()
        assert parts(torch.tensor([7, 9]), quantizer(x[:2]), quantizer).item() == 0
        for place, value in ((slice(None), torch.nan), ((0, 1), torch.nan), ((0, 1), torch.inf)):
            wrong = vectors.clone()
            wrong[place] = value
            np.save(tmp_path / "parts.npy", wrong.numpy())
            with pytest.raises(ValueError, match="or NaN throughout where an item has none"):
                parts.check(20, quantizer)

    def test_diversity_loss_prefers_mates(self) -> None:
        quantizer = ResidualQuantizer([vq_vae(2, 8)])
        book = quantizer.quantizers[0].codebook  # type: ignore[union-attr]
        angle = torch.tensor([0.0, 0.01, 0.02, 0.03, 3.1, 3.11, 3.12, 3.13])
        tight = 3 * torch.stack([angle.cos(), angle.sin()], 1)
        loss = DiversityLoss(1.0, num_groups=2)
        values = []
        for table in (tight, 0.01 * tight):
            book.write(torch.arange(8), table)
            loss.check(8, quantizer)
            output = quantizer(table)
            assert output.indices.flatten().tolist() == list(range(8))
            values.append(loss(torch.arange(8), output, quantizer))
            values[-1].backward()
        # Groups far apart: a mate is one of 3; all codes alike: one of 7.
        assert values[0].item() == pytest.approx(np.log(3), abs=0.01)
        assert values[1].item() == pytest.approx(np.log(7), abs=0.01)
        with pytest.raises(ValueError, match="one codebook per level"):
            loss.check(8, FSQ([3, 3]))

    def test_trained_with_both(self, tmp_path: Path) -> None:
        np.save(tmp_path / "cf.npy", np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32))
        losses = [CollaborativeLoss(str(tmp_path / "cf.npy")), DiversityLoss(num_groups=4)]
        tokenizer = rqvae(losses=losses, steps=10).fit(blobs())
        (tmp_path / "cf.npy").unlink()
        loaded = RQVAE.from_pretrained(tokenizer.save_pretrained(tmp_path / "saved"))
        assert torch.equal(loaded.encode(blobs()), tokenizer.encode(blobs()))
