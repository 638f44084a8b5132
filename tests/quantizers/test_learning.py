"""Learning rules against references: Lloyd's algorithm, plain moving averages, naive sums over all pairs."""

from __future__ import annotations

import copy
import gc
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from gritvq import (
    AffineCodebook,
    Assignment,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    Context,
    DeadCodeRevival,
    EMAUpdate,
    EntropyLoss,
    FreeCodebook,
    LearningRule,
    LinearSchedule,
    MLPCodebook,
    OrthogonalityLoss,
    RadialSurrogate,
    StraightThrough,
    VectorQuantizer,
    vq_vae_ema,
)
from gritvq.quantizers.functional import effective_rank
from test_contract import assert_same, contents
from zoo import DIM, SIZE


def context(num: int = 40, masked: int = 0) -> Context:
    """Latents, codes (trained) and the nearest assignment, float64."""
    codes = torch.randn(SIZE, DIM, dtype=torch.float64, requires_grad=True)
    x = torch.randn(num, DIM, dtype=torch.float64, requires_grad=True)
    indices = torch.cdist(x, codes).argmin(1)
    return Context(x, codes[indices], indices, torch.arange(num) >= masked, codes)


class TestLosses:
    @pytest.mark.parametrize("masked", [0, 7])
    def test_commitment_and_codebook_values(self, masked: int) -> None:
        c = context(masked=masked)
        expected = (c.x - c.q)[masked:].square().mean()
        torch.testing.assert_close(CommitmentLoss(0.3).loss(c)["commitment"], 0.3 * expected)
        torch.testing.assert_close(CodebookLoss(0.7).loss(c)["codebook"], 0.7 * expected)

    def test_who_receives_gradient(self) -> None:
        for rule, encoder, codes in (
            (CommitmentLoss(), True, False),
            (CodebookLoss(), False, True),
            (EntropyLoss(), True, True),
            (OrthogonalityLoss(), False, True),
        ):
            c = context()
            (loss,) = rule.loss(c).values()
            loss.backward()
            assert (c.x.grad is not None and bool(c.x.grad.any())) == encoder, rule
            assert (c.codes.grad is not None and bool(c.codes.grad.any())) == codes, rule
            assert rule.trains_codes == codes

    @pytest.mark.parametrize("masked", [0, 7])
    def test_entropy_against_the_naive_form(self, masked: int) -> None:
        c = context(masked=masked)
        p = (-(torch.cdist(c.x, c.codes) ** 2) / 0.8).softmax(1)[masked:]
        each, mean = -(p * p.log()).sum(1).mean(), p.mean(0)
        expected = 0.2 * (each - 0.5 * -(mean * mean.log()).sum())
        loss = EntropyLoss(0.2, balance=0.5, temperature=0.8).loss(c)["entropy"]
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
        found, wanted = (torch.autograd.grad(v, (c.x, c.codes), retain_graph=True) for v in (loss, expected))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)

    def test_entropy_in_blocks_equals_entropy_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codes = torch.randn(1 << 13, 2)
        x = torch.randn(1500, 2)  # blocks of 512 rows
        c = Context(x, x, torch.zeros(1500).long(), torch.ones(1500).bool(), codes)
        p = (-(torch.cdist(x.double(), codes.double()) ** 2)).softmax(1)
        mean = p.mean(0)
        expected = -(p * p.log()).sum(1).mean() + (mean * mean.log()).sum()
        torch.testing.assert_close(EntropyLoss(1.0).loss(c)["entropy"].double(), expected, rtol=1e-4, atol=1e-4)

    def test_orthogonality_against_the_naive_form(self) -> None:
        c = context()
        unit = torch.nn.functional.normalize(c.codes, dim=1)
        expected = (unit @ unit.T - torch.eye(SIZE)).square().sum() / SIZE**2
        torch.testing.assert_close(OrthogonalityLoss(1.0).loss(c)["orthogonality"], expected)

    @pytest.mark.parametrize("rule", [CommitmentLoss, CodebookLoss, EntropyLoss, OrthogonalityLoss])
    def test_negative_weight_is_refused(self, rule: type[LearningRule]) -> None:
        with pytest.raises(ValueError, match="expected weight >= 0, got -1"):
            rule(-1)  # type: ignore[call-arg]

    def test_default_losses_depend_on_the_surrogate(self) -> None:
        x = torch.randn(20, DIM)
        assert set(VectorQuantizer(FreeCodebook(DIM, SIZE))(x).losses) == {"codebook", "commitment"}
        assert VectorQuantizer(FreeCodebook(DIM, SIZE), surrogate=RadialSurrogate())(x).losses == {}
        assert VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[])(x).losses == {}


def codes_of(quantizer: VectorQuantizer) -> Tensor:
    return quantizer.codebook.codes().detach().clone()


class TestEMA:
    def test_decay_0_is_one_lloyd_step(self) -> None:
        x = torch.randn(400, DIM)
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.0)])
        quantizer.initialize_codebook(x[:SIZE])
        start = codes_of(quantizer)
        quantizer(x)
        quantizer.update_codebook()
        reference = KMeans(SIZE, init=start.numpy(), n_init=1, max_iter=1).fit(x.numpy())
        # scikit-learn moves empty clusters, we leave them: compare the others
        hit = quantizer.statistics is not None and torch.bincount(torch.cdist(x, start).argmin(1), minlength=SIZE) > 0
        np.testing.assert_allclose(codes_of(quantizer)[hit], reference.cluster_centers_[hit], rtol=1e-4, atol=1e-5)

    def test_is_the_ratio_of_two_averages(self) -> None:
        decay = 0.8
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(decay)])
        counts, sums = torch.zeros(SIZE, 1), torch.zeros(SIZE, DIM)
        codes = codes_of(quantizer)
        for seed in range(30):
            x = torch.randn(100, DIM, generator=torch.Generator().manual_seed(seed))
            one_hot = torch.nn.functional.one_hot(torch.cdist(x, codes).argmin(1), SIZE).float()
            counts = decay * counts + (1 - decay) * one_hot.sum(0)[:, None]
            sums = decay * sums + (1 - decay) * one_hot.T @ x
            codes = torch.where(counts > 0, sums / counts.clamp_min(1e-30), codes)
            quantizer(x)
            quantizer.update_codebook()
            torch.testing.assert_close(codes_of(quantizer), codes, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("trained", [0, 5])
    @pytest.mark.parametrize("pending", [False, True])
    def test_goes_on_from_what_was_written(self, trained: int, pending: bool) -> None:
        """In the long run ``c <- c + (1 - decay) (mean - c)``, whatever was counted or seen before the write."""
        decay, rows = 0.9, torch.arange(5)
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(decay)])
        for _ in range(trained):
            quantizer(torch.randn(100, DIM))
            quantizer.update_codebook()
        twin = copy.deepcopy(quantizer)
        if pending:
            quantizer(torch.randn(100, DIM))
        new = 5 + torch.randn(5, DIM)
        quantizer.codebook.write(rows, new)
        x = torch.cat([new + 0.1 * torch.randn(5, DIM), new + 0.1 * torch.randn(5, DIM)])
        for weight in (1 - decay, 1 - decay):
            before = codes_of(quantizer)
            indices = quantizer(x).indices[:, 0]
            quantizer.update_codebook()
            means = torch.stack([x[indices == k].mean(0) for k in rows])
            wanted = before[:5] + weight * (means - before[:5])
            torch.testing.assert_close(codes_of(quantizer)[:5], wanted, rtol=1e-5, atol=1e-5)
        if not pending:  # the others are as if nothing had been written
            assert torch.equal(codes_of(quantizer)[5:], codes_of(twin)[5:])

    def test_a_codebook_that_came_later_is_observed_and_old_quantizers_are_forgotten(self) -> None:
        rules = [EMAUpdate(0.9)]
        book, later = FreeCodebook(DIM, SIZE), FreeCodebook(DIM, SIZE)
        gone = weakref.ref(VectorQuantizer(book, learning=rules).statistics)
        gc.collect()
        assert gone() is None
        quantizer = VectorQuantizer(book, learning=rules)
        quantizer.codebook = later
        quantizer(torch.randn(20, DIM))
        quantizer.update_codebook()
        later.write(torch.tensor([3]), torch.ones(1, DIM))
        assert quantizer.statistics.ema_counts[3] == -1

    def test_the_way_over_the_meta_device(self) -> None:
        def make() -> VectorQuantizer:
            return VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.9), DeadCodeRevival(1)])

        quantizer, x = make(), torch.randn(3, 40, DIM)
        with torch.device("meta"):
            other, schedule = make(), LinearSchedule(1.0, 0.5, num_steps=4)
        other.to_empty(device="cpu")
        assert other.statistics.keys.tolist() == [-1] * len(other.statistics.keys) and not other.statistics.counts.any()
        other.load_state_dict(quantizer.state_dict())
        for batch in x:
            assert torch.equal(quantizer(batch).quantized, other(batch).quantized)
            quantizer.update_codebook()
            other.update_codebook()
        assert torch.equal(codes_of(quantizer), codes_of(other))
        with torch.device("meta"):
            assigned = make()
        assigned.load_state_dict(quantizer.state_dict(), assign=True)
        assert_same(contents(assigned), contents(quantizer))
        schedule.to_empty(device="cpu")
        schedule.load_state_dict(LinearSchedule(1.0, 0.5, num_steps=4).state_dict())
        schedule.see(torch.tensor([True]))
        schedule.advance()
        assert schedule().item() == 0.875

    def test_a_copy_or_a_loaded_state_goes_on_too(self) -> None:
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.9)])
        new = 5 + torch.randn(5, DIM)
        quantizer.codebook.write(torch.arange(5), new)
        loaded = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.9)])
        loaded.load_state_dict(quantizer.state_dict())
        twin = copy.deepcopy(quantizer)
        twin.codebook.write(torch.arange(5, 7), -new[:2])
        assert quantizer.statistics.ema_counts.tolist() == [-1] * 5 + [0] * (SIZE - 5)
        assert twin.statistics.ema_counts.tolist() == [-1] * 7 + [0] * (SIZE - 7)
        for each in (quantizer, loaded, twin):
            each(new + 0.01)
            each.update_codebook()
            torch.testing.assert_close(codes_of(each)[:5], new + 0.001, rtol=1e-5, atol=1e-5)

    def test_increments_survive_half_precision(self) -> None:
        quantizer = VectorQuantizer(FreeCodebook(4, 1), learning=[EMAUpdate(0.99)]).bfloat16()
        x = torch.randn(512, 4) + 3
        for _ in range(600):
            quantizer(x.bfloat16())
            quantizer.update_codebook()
        torch.testing.assert_close(codes_of(quantizer)[0], x.bfloat16().float().mean(0), rtol=0, atol=1e-2)

    def test_statistics_are_float32_under_any_default(self) -> None:
        torch.set_default_dtype(torch.bfloat16)
        try:
            quantizer = vq_vae_ema(2, 4, revival_interval=None).float()
        finally:
            torch.set_default_dtype(torch.float32)
        quantizer(torch.randn(4000, 2))
        assert quantizer.statistics.counts.dtype == torch.float32 and quantizer.statistics.counts.sum() == 4000

    def test_training_goes_on_after_inference_mode(self) -> None:
        quantizer, x = vq_vae_ema(DIM, SIZE), torch.randn(200, DIM)
        state = quantizer.state_dict()
        with torch.inference_mode():
            quantizer.load_state_dict(state)
            quantizer.initialize_codebook(x)
            quantizer.update_codebook()
        quantizer(x)
        assert quantizer.statistics.counts.sum() == 200

    def test_no_gradient_reaches_its_table(self) -> None:
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(), CommitmentLoss()])
        assert quantizer.parameter_groups(1e-3) == []

    @pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
    def test_bad_decay(self, decay: float) -> None:
        with pytest.raises(ValueError, match=r"expected decay in \[0, 1\)"):
            EMAUpdate(decay)

    def test_forgetting_to_update_is_told_once(self) -> None:
        quantizer = VectorQuantizer(FreeCodebook(2, 4), learning=[EMAUpdate()])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(600):
                quantizer(torch.randn(2, 2))
        assert len([w for w in caught if "update_codebook" in str(w.message)]) == 1


class TestRevival:
    def drifted(self, codebook: Codebook, *rules: LearningRule) -> tuple[VectorQuantizer, Tensor]:
        surrogate = None if any(rule.writes_codes == "table" for rule in rules) else RadialSurrogate()
        quantizer = VectorQuantizer(codebook, surrogate=surrogate, learning=rules)
        return quantizer, 8 + torch.randn(600, DIM)

    @pytest.mark.parametrize("make", [FreeCodebook, AffineCodebook, MLPCodebook])
    def test_dead_codes_move_onto_vectors_that_were_seen(self, make: type[Codebook]) -> None:
        quantizer, x = self.drifted(make(DIM, SIZE), DeadCodeRevival(1))
        used = quantizer.encode(x).unique()
        before = codes_of(quantizer)
        quantizer(x)
        quantizer.update_codebook()
        after = codes_of(quantizer)
        changed = (after != before).any(1)
        assert int(changed.sum()) >= SIZE - 2 * len(used)
        assert float(torch.cdist(after[changed], x).amin(1).max()) < 0.01 * float(x.norm(dim=1).max()) + 1e-5
        assert torch.pdist(after[changed]).min() > 1e-3  # distinct vectors
        assert quantizer.encode(x).unique().numel() > 0.9 * SIZE

    @pytest.mark.parametrize("make", [FreeCodebook, AffineCodebook])
    def test_a_code_written_just_before_a_look_stays(self, make: type[Codebook]) -> None:
        quantizer = VectorQuantizer(make(DIM, SIZE), surrogate=RadialSurrogate(), learning=[DeadCodeRevival(2)])
        quantizer(8 + torch.randn(600, DIM))
        quantizer.update_codebook()
        far = -50 - torch.rand(2, DIM)
        quantizer.codebook.write(torch.tensor([0, 3]), far)
        for stays in (True, False):  # by the second look it has had its chance
            for _ in range(1 + (not stays)):
                quantizer(8 + torch.randn(600, DIM))
                quantizer.update_codebook()
            found = (codes_of(quantizer)[[0, 3]] - far).abs().amax(1) < 1e-3
            assert found.tolist() == [stays, stays]

    def test_a_revived_code_survives_the_next_moving_average(self) -> None:
        quantizer, x = self.drifted(FreeCodebook(DIM, SIZE), EMAUpdate(0.9), DeadCodeRevival(1))
        alive = quantizer.encode(x).unique()
        quantizer(x)
        quantizer.update_codebook()
        indices = quantizer.encode(x)[:, 0]
        revived = sorted(set(indices.tolist()) - set(alive.tolist()))
        assert len(revived) > 0.8 * (SIZE - len(alive))
        quantizer(x)
        quantizer.update_codebook()
        for k in revived:  # started afresh, so the first average is the plain mean of its vectors
            torch.testing.assert_close(codes_of(quantizer)[k], x[indices == k].mean(0), rtol=1e-4, atol=1e-3)
        assert quantizer.encode(x).unique().numel() > 0.9 * SIZE

    def test_moments_of_moved_codes_are_forgotten_and_others_kept(self) -> None:
        quantizer, x = self.drifted(FreeCodebook(DIM, SIZE), DeadCodeRevival(1))
        optimizer = torch.optim.Adam(quantizer.parameter_groups(1e-3))
        parameter = next(quantizer.codebook.parameters())
        quantizer(x).quantized.sum().backward()
        optimizer.step()
        state = optimizer.state[parameter]
        state["exp_avg"].fill_(1.0)
        state["exp_avg_sq"].fill_(1.0)
        before = codes_of(quantizer)
        quantizer.update_codebook(optimizer)
        moved = (codes_of(quantizer) != before).any(1)
        assert moved.any() and not moved.all()
        for name in ("exp_avg", "exp_avg_sq"):
            assert not state[name][moved].any() and bool((state[name][~moved] == 1).all())

    def test_interval_and_threshold(self) -> None:
        quantizer, x = self.drifted(FreeCodebook(DIM, SIZE), DeadCodeRevival(3, threshold=0.0))
        start = codes_of(quantizer)
        for step in range(3):
            assert torch.equal(codes_of(quantizer), start)
            quantizer(x[200 * step : 200 * step + 200])
            quantizer.update_codebook()
        assert not torch.equal(codes_of(quantizer), start)
        for bad in (0, -3):
            with pytest.raises(ValueError, match="expected interval >= 1"):
                DeadCodeRevival(bad)

    def test_steps_without_a_vector_do_not_bring_the_look_nearer(self) -> None:
        quantizer, x = self.drifted(FreeCodebook(DIM, SIZE), DeadCodeRevival(3), EMAUpdate(0.0))
        assert quantizer.statistics is not None
        looks: list[int] = []
        for update in range(14):
            before = codes_of(quantizer)
            empty = update in (1, 4, 5, 6, 7)
            quantizer(x[: 5 + update], torch.zeros(5 + update, dtype=torch.bool) if empty else None)
            quantizer.update_codebook()
            if not quantizer.statistics.window_counts.any():
                looks.append(update)
            assert not empty or torch.equal(codes_of(quantizer), before)
        assert looks == [3, 4, 5, 6, 7, 10, 13]  # after 3, 6 and 9 updates with vectors; nothing comes between
        assert quantizer.statistics.step == 9

    def test_masked_vectors_change_no_draw(self) -> None:
        x = 8 + torch.randn(200, DIM)
        mask = torch.rand(200) < 0.5
        found = []
        for arguments in ((x, mask), (x[mask], None)):
            torch.manual_seed(0)
            quantizer, _ = self.drifted(FreeCodebook(DIM, SIZE), DeadCodeRevival(1))
            quantizer(*arguments)
            quantizer.update_codebook()
            found.append(codes_of(quantizer))
        assert torch.equal(found[0], found[1])

    def test_statistics_of_another_quantizer_are_refused(self) -> None:
        wrong = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate()]).state_dict()
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(), DeadCodeRevival(1)])
        with pytest.raises(ValueError, match=r"expected statistics of [\d,]+ bytes, got [\d,]+ numbers of torch.uint8"):
            quantizer.load_state_dict(wrong)
        wrong["statistics._extra_state"] = quantizer.state_dict()["statistics._extra_state"].float()
        with pytest.raises(ValueError, match=r"numbers of torch.float32; the saved quantizer was built with other"):
            quantizer.load_state_dict(wrong)

    def test_a_sharded_codebook_is_refused(self) -> None:
        """As ``fully_shard`` leaves it: its parameters have placements."""
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate()])
        quantizer(torch.randn(9, DIM))
        assert hasattr(torch.distributed.tensor.DTensor, "placements")
        quantizer.codebook.weight.placements = ()
        for use in (quantizer.update_codebook, quantizer.fold):
            with pytest.raises(ValueError, match="expected a codebook that is whole in every process"):
                use()

    def test_statistics_of_older_versions_load(self) -> None:
        quantizer, x = self.drifted(FreeCodebook(DIM, SIZE), DeadCodeRevival(1))
        assert quantizer.statistics is not None
        old = dict(quantizer.statistics.tensors())
        del old["num_seen"]
        old |= {"step": 7, "pending": torch.tensor([1, 300]), "keys": torch.linspace(0, 0.9, SIZE)}
        quantizer.statistics.set_extra_state(old)
        assert quantizer.statistics.step == 7 and quantizer.statistics.num_seen == 300
        quantizer(x)
        quantizer.update_codebook()
        assert quantizer.statistics.step == 8 and quantizer.statistics.num_seen == 300 + len(x)
        assert float(torch.cdist(codes_of(quantizer), x).amin(1).median()) < 1e-3  # moved onto vectors of x, not 0

    def test_the_sample_is_uniform_over_everything_seen(self) -> None:
        quantizer = VectorQuantizer(FreeCodebook(1, 400), learning=[CodebookLoss(), DeadCodeRevival(10**6)])
        stream = torch.arange(20000.0)[:, None]
        for part in stream.split(500):
            quantizer(part)
        assert quantizer.statistics is not None
        kept = quantizer.statistics.gathered_samples()[:, 0].sort().values
        assert kept.unique().numel() == 400
        # Kolmogorov distance to the uniform distribution; 1.63 / sqrt(n) is the 1 % level
        distance = (kept / 20000 - (torch.arange(400) + 0.5) / 400).abs().max()
        assert float(distance) < 1.63 / math.sqrt(400)

    def test_more_dead_codes_than_samples_wait_for_the_next_time(self) -> None:
        quantizer = VectorQuantizer(FreeCodebook(DIM, 500), learning=[EMAUpdate(), DeadCodeRevival(1)])
        x = 50 + torch.randn(20, DIM)
        before = codes_of(quantizer)
        quantizer(x)
        quantizer.update_codebook()
        assert int((codes_of(quantizer) != before).any(1).sum()) <= 21


class TestInitialization:
    @pytest.mark.parametrize("initialization", ["kmeans", "samples"])
    def test_uses_the_data(self, initialization: str) -> None:
        x = 4 + torch.randn(900, DIM)
        codebook = FreeCodebook(DIM, SIZE, initialization=initialization)  # type: ignore[arg-type]
        quantizer = VectorQuantizer(codebook)
        assert quantizer.wants_initialization
        quantizer.initialize_codebook(x.view(3, 300, DIM))
        codes = codes_of(quantizer)
        assert quantizer.encode(x).unique().numel() == SIZE
        if initialization == "samples":
            assert float(torch.cdist(codes.double(), x.double()).amin(1).max()) < 1e-6
        assert effective_rank(codes) > DIM - 1

    def test_fewer_vectors_than_codes(self) -> None:
        quantizer = VectorQuantizer(FreeCodebook(DIM, 256, initialization="samples"))
        quantizer.initialize_codebook(3 + torch.randn(100, DIM))
        assert bool((codes_of(quantizer).norm(dim=1) > 3).all()) and torch.pdist(codes_of(quantizer)).min() > 0

    def test_forgets_the_statistics(self) -> None:
        quantizer = vq_vae_ema(DIM, SIZE)
        for _ in range(3):
            quantizer(torch.randn(100, DIM))
            quantizer.update_codebook()
        quantizer(torch.randn(100, DIM))
        quantizer.initialize_codebook(torch.randn(500, DIM))
        assert quantizer.statistics is not None
        for value in (quantizer.statistics.counts, quantizer.statistics.sums, quantizer.statistics.ema_counts):
            assert not value.any()

    def test_a_map_that_cannot_be_inverted_says_so(self) -> None:
        codebook = AffineCodebook(DIM, SIZE)
        torch.nn.init.zeros_(codebook.weight)
        with pytest.raises(ValueError, match=f"expected to write {SIZE} codes, wrote 0"):
            VectorQuantizer(codebook).initialize_codebook(torch.randn(100, DIM))

    def test_bad_samples(self) -> None:
        quantizer = vq_vae_ema(DIM, SIZE)
        for x in (torch.zeros(0, DIM), torch.full((5, DIM), float("nan"))):
            with pytest.raises(ValueError, match="at least one finite vector"):
                quantizer.initialize_codebook(x)
        with pytest.raises(ValueError, match="expected vectors"):
            quantizer.initialize_codebook(torch.zeros(5, DIM + 1))


class Shared(Codebook):
    """Codes that exist only through shared parameters."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size)
        self.map = torch.nn.Linear(dim, codebook_size * dim)

    def table(self) -> Tensor:
        return self.map.bias.view(self.codebook_size, self.dim)


class Soft(Assignment):
    """A differentiable pick."""

    differentiable = True
    exact = "never"

    def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        p = (-(torch.cdist(x, codes) ** 2)).softmax(1)
        return p.argmax(1), p @ codes


class TestParts:
    def test_two_losses_of_one_name_are_refused(self) -> None:
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[CommitmentLoss(1.0), CommitmentLoss(0.5)])
        with pytest.raises(ValueError, match=r"expected losses of different names, got \['commitment'\] twice"):
            quantizer(torch.randn(5, DIM))

    @pytest.mark.parametrize(
        ("codebook", "surrogate", "learning", "message"),
        [
            (AffineCodebook, None, [EMAUpdate()], "expected a plain table under EMAUpdate, got AffineCodebook"),
            (FreeCodebook, None, [EMAUpdate(), EMAUpdate()], "expected one rule that sets the codes"),
            (FreeCodebook, RadialSurrogate(), [EMAUpdate()], "got EMAUpdate and gradients from RadialSurrogate"),
            (FreeCodebook, None, [EMAUpdate(), CodebookLoss()], "got EMAUpdate and gradients from CodebookLoss"),
            (FreeCodebook, None, [EMAUpdate(), OrthogonalityLoss()], "got EMAUpdate and gradients from Orthogonality"),
            (Shared, None, [DeadCodeRevival()], "expected a codebook whose codes can be written for DeadCodeRevival"),
        ],
    )
    def test_what_does_not_fit_is_refused_at_once(
        self, codebook: type[Codebook], surrogate: RadialSurrogate | None, learning: list[LearningRule], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            VectorQuantizer(codebook(DIM, SIZE), surrogate=surrogate, learning=learning)  # type: ignore[call-arg]

    def test_soft_assignments_take_no_surrogate(self) -> None:
        with pytest.raises(ValueError, match="expected no surrogate with the differentiable Soft, got StraightThrough"):
            VectorQuantizer(FreeCodebook(DIM, SIZE), Soft(), StraightThrough())
        quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), Soft())
        assert quantizer.exact == "never"
        x = torch.randn(10, DIM, requires_grad=True)
        quantizer(x).quantized.sum().backward()
        assert x.grad is not None and bool(x.grad.any())

    def test_codes_that_cannot_be_written_say_so(self) -> None:
        with pytest.raises(ValueError, match=r"expected a codebook whose codes can be written, got Shared"):
            VectorQuantizer(Shared(DIM, SIZE), learning=[CodebookLoss()]).initialize_codebook(torch.randn(50, DIM))


def test_input_gradient_through_straight_through_is_the_upstream_gradient() -> None:
    x, g = torch.randn(30, DIM, requires_grad=True), torch.randn(30, DIM)
    VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[])(x).quantized.backward(g)
    assert x.grad is not None and torch.equal(x.grad, g)
