"""Exact properties of the networks: recurrence, divergences, causality, the bound, saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from gritvq.component import from_config, to_config
from gritvq.text import (
    GaussianLatents,
    IdempotentRecurrence,
    SegmentDecoder,
    SegmentEncoder,
    Standardize,
    TextBatch,
    TextTransformer,
    TraceModel,
    gaussian_vae,
    language_model,
    trace,
)
from gritvq.text.networks.latents import Gaussian, layer_normalized, residual_kl
from gritvq.text.networks.model import segment_sums
from text_common import SIZES, lively, random_batch, toy_format

BATCH = random_batch(20, [[3, 2, 4], [5], [2, 2, 2]])
KINDS = {"trace": trace, "gaussian_vae": gaussian_vae, "language_model": language_model}


def made(kind: str = "trace", vocab_size: int = 20, **more: Any) -> TraceModel:
    sizes = {name: value for name, value in SIZES.items() if name != "dim" or kind != "language_model"}
    return lively(KINDS[kind](vocab_size, **{**sizes, **more}))


class TestRecurrence:
    @pytest.mark.parametrize("rank", [0, 1, 8, 16])
    def test_the_parallel_form_is_the_scan(self, rank: int) -> None:
        recurrence, u = IdempotentRecurrence(16, rank), torch.randn(4, 16, 16)
        parallel = recurrence(u)
        torch.testing.assert_close(parallel, recurrence.scan(u), rtol=0, atol=1e-5)
        state = torch.zeros(4, 16)
        for step in range(16):
            state = recurrence.step(state, u[:, step])
        torch.testing.assert_close(parallel[:, -1], state, rtol=0, atol=1e-5)
        assert torch.equal(parallel[:, 0], u[:, 0])

    def test_many_steps_are_added_up_in_another_way(self) -> None:
        recurrence, u = IdempotentRecurrence(4, 2), torch.randn(2, 100, 4)
        torch.testing.assert_close(recurrence(u), recurrence.scan(u), rtol=0, atol=1e-5)
        torch.testing.assert_close(recurrence(u)[:, :64], recurrence(u[:, :64]), rtol=0, atol=1e-5)

    def test_gradients_of_both_forms_agree(self) -> None:
        recurrence, u = IdempotentRecurrence(8, 3), torch.randn(2, 5, 8, requires_grad=True)
        found = []
        for form in (recurrence.forward, recurrence.scan):
            value = (form(u) * torch.arange(8.0)).sum()
            found.append(torch.autograd.grad(value, [u, recurrence.weight]))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def test_it_stays_idempotent_under_an_optimizer(self) -> None:
        """1,000 steps with a rate and a decay that change everything; a free matrix is far off after that."""
        recurrence, free = IdempotentRecurrence(16, 8), torch.nn.Parameter(torch.eye(16))
        target = torch.randn(16, 16)
        optimizer = torch.optim.AdamW([*recurrence.parameters(), free], lr=0.05, weight_decay=0.1)
        before = recurrence.matrix().detach()
        for _ in range(1000):
            optimizer.zero_grad()
            ((recurrence.matrix() - target).square().sum() + (free - target).square().sum()).backward()
            optimizer.step()
        assert recurrence.defect() < 1e-6 and float((recurrence.matrix() - before).detach().norm()) > 1
        assert float((free @ free - free).detach().norm()) > 1
        basis = recurrence.basis().detach()
        torch.testing.assert_close(basis.T @ basis, torch.eye(8), rtol=0, atol=1e-6)
        # The nearest projection of this rank: the best 8 directions of the symmetric part.
        best = torch.linalg.eigvalsh((target + target.T) / 2)[-8:].sum()
        torch.testing.assert_close((recurrence.matrix().detach() * target).sum(), best, rtol=1e-3, atol=0)

    def test_the_matrix_depends_on_the_space_alone(self) -> None:
        one, two = IdempotentRecurrence(6, 2), IdempotentRecurrence(6, 2)
        with torch.no_grad():
            two.weight.copy_(one.weight @ torch.tensor([[1e-3, 5.0], [0.0, 70.0]]))
        torch.testing.assert_close(one.matrix(), two.matrix(), rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="expected rank <= dim, got 7 and 6"):
            IdempotentRecurrence(6, 7)


class TestDivergences:
    def test_closed_forms(self) -> None:
        mean, scale, delta, ratio = torch.randn(4, 50, 7, dtype=torch.float64).unbind(0)
        prior = Normal(mean, scale.exp())
        wanted = kl_divergence(Normal(mean + scale.exp() * delta, (scale + ratio).exp()), prior)
        torch.testing.assert_close(residual_kl(delta, ratio), wanted)
        torch.testing.assert_close(
            Gaussian(delta, ratio).kl(Gaussian(mean, scale)), kl_divergence(Normal(delta, ratio.exp()), prior)
        )

    @pytest.mark.parametrize("dim", [2, 3, 16, 33])
    def test_normalized_vectors_have_one_length_whatever_comes(self, dim: int) -> None:
        rows = [torch.randn(dim) * 10.0**power for power in range(-9, 10, 3)]
        rows += [torch.zeros(dim), torch.full((dim,), 5.0), torch.full((dim,), -1e-20)]
        found = layer_normalized(torch.stack(rows))
        torch.testing.assert_close(found.square().sum(1), torch.full((len(rows),), float(dim)), rtol=1e-5, atol=0)
        usual = torch.nn.functional.layer_norm(rows[3], (dim,), eps=0.0)
        torch.testing.assert_close(found[3], usual, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("whitened", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
    def test_the_bound_holds_for_any_parameters(self, scale: float, training: bool, whitened: bool) -> None:
        latents = GaussianLatents(16, 12, whitened=whitened).train(training)
        with torch.no_grad():
            for weight in latents.parameters():
                weight.copy_(torch.randn_like(weight) * scale)
        if scale == 0:
            torch.nn.init.normal_(latents.recurrence.weight)
        kl = latents(torch.randn(20, 5, 12) * max(scale, 1.0)).kl.sum(-1)
        assert latents.least_kl == 8 and bool((kl >= 8 * (1 - 1e-5)).all())
        assert scale > 0 or torch.allclose(kl, torch.tensor(8.0))  # rho = 1: the bound itself

    def test_the_plain_posterior_has_no_bound(self) -> None:
        latents = GaussianLatents(16, 12, rank=0, posterior="gaussian")
        with torch.no_grad():
            for weight in latents.parameters():
                weight.zero_()
        assert latents.least_kl == 0 and float(latents(torch.randn(2, 3, 12)).kl.abs().max()) == 0

    def test_samples_have_the_mean_and_the_deviation_of_the_posterior(self) -> None:
        latents, context = GaussianLatents(4, 6, rank=0).eval(), torch.randn(1, 1, 6)
        with torch.no_grad():
            before = latents.before(context)
            posterior, _ = latents.posterior(context, before, latents.prior(before))
            drawn = latents(context.expand(20000, -1, -1)).latents[:, 0]
        torch.testing.assert_close(drawn.mean(0), posterior.mean[0, 0], rtol=0, atol=0.05)
        torch.testing.assert_close(drawn.std(0).log(), posterior.log_scale[0, 0], rtol=0, atol=0.03)

    def test_what_is_normalized_is_standardized_over_the_segments_that_there_are(self) -> None:
        """In training as PyTorch's batch normalization of them alone; in eval mode by the running values."""
        standardize, x = Standardize(5), torch.randn(4, 3, 5) * 3 + 7
        present = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
        reference = torch.nn.BatchNorm1d(5, eps=1e-8, affine=False)
        for _ in range(3):
            found, wanted = standardize(x, present), reference(x[present])
            torch.testing.assert_close(found[present], wanted, rtol=1e-4, atol=1e-5)
            x[~present] *= -5  # what is not there has no influence
        torch.testing.assert_close(standardize.mean, reference.running_mean)
        standardize.eval()
        running = (x - standardize.mean) / standardize.variance.sqrt()
        torch.testing.assert_close(standardize(x, present), running)
        before = standardize.train().variance.clone()
        assert torch.isfinite(standardize(x[:1, :1])).all()
        assert torch.equal(before, standardize.variance)  # one segment has no variance

    def test_whitened_vectors_have_the_identity_as_covariance(self) -> None:
        """In training those of the batch that there are, in eval mode all by the running covariance."""
        mixing, present = torch.eye(5) + 0.3 * torch.ones(5, 5).triu(), torch.rand(400, 3) < 0.7
        standardize, x = Standardize(5, whitened=True), torch.randn(400, 3, 5) @ mixing + 7
        for _ in range(60):
            found = standardize(x, present)[present]
            x[~present] *= -1.1  # what is not there has no influence
        for own in (found, standardize.eval()(x, present)[present]):
            torch.testing.assert_close(own.mean(0), torch.zeros(5), atol=1e-2, rtol=0)
            torch.testing.assert_close(own.T.cov(correction=0), torch.eye(5), atol=2e-2, rtol=0)
        # of all maps that do so, the symmetric one
        symmetric = torch.linalg.lstsq(x[present] - x[present].mean(0), found).solution
        torch.testing.assert_close(symmetric, symmetric.T, atol=1e-3, rtol=1e-3)

    def test_whitening_of_few_vectors_takes_running_values_which_they_change(self) -> None:
        standardize = Standardize(8, whitened=True)
        mixing = torch.eye(8) + 0.3 * torch.ones(8, 8).triu()
        for _ in range(300):
            x = 5 + torch.randn(3, 8) @ mixing
            found = standardize.train()(x)
            torch.testing.assert_close(found, standardize.eval()(x))
        many = standardize(5 + torch.randn(2000, 8) @ mixing)
        assert float(many.var(0).min()) > 0.5 and float(many.var(0).max()) < 4 and float(many.mean(0).abs().max()) < 1
        before = standardize.train().covariance.clone()
        standardize(x[:1])
        assert torch.equal(standardize.covariance, before)  # one vector has no covariance
        assert torch.isfinite(standardize(torch.ones(9, 8))).all()  # all equal: no direction has a variance

    @pytest.mark.parametrize("whitened", [False, True])
    def test_numbers_that_are_not_finite_give_nan_and_stay_out_of_the_running_values(self, whitened: bool) -> None:
        standardize, x = Standardize(3, whitened=whitened), torch.randn(40, 3)
        standardize(x)
        before = [each.clone() for each in standardize.buffers()]
        x[7, 1] = torch.nan
        assert torch.isnan(standardize(x)).any()
        assert all(torch.equal(a, b) for a, b in zip(before, standardize.buffers(), strict=True))
        there = torch.arange(40) != 7
        assert torch.isfinite(standardize(x, there)[there]).all()  # a vector that is not there has no influence

    def test_gradients_of_whitening_are_exact_for_equal_and_different_eigenvalues(self) -> None:
        standardize = Standardize(3, whitened=True).double()
        square = torch.eye(3, dtype=torch.float64)
        for x in (torch.randn(9, 3, dtype=torch.float64), torch.cat([square, -square])):
            assert torch.autograd.gradcheck(standardize, (x.requires_grad_(),))

    def test_vectors_near_a_line_reach_the_codes_once_they_are_whitened(self) -> None:
        """Each component has variance 1 in both; share of 64 normal codes that are the nearest of a vector."""
        codes, x = torch.randn(64, 8), torch.randn(2000, 1) + 0.1 * torch.randn(2000, 8)
        usage = []
        for whitened in (False, True):
            latents = Standardize(8, whitened=whitened)(x)
            torch.testing.assert_close(latents.var(0), torch.ones(8), atol=0.01, rtol=0)
            usage.append(len(torch.cdist(latents, codes).argmin(1).unique()) / 64)
        assert usage[0] < 0.6 and usage[1] > 0.9

    def test_standardizing_makes_the_posterior_differ_between_texts_from_the_start(self) -> None:
        """Vectors that are almost the same, as those of an encoder that has not learned: share of delta that varies."""
        context = torch.randn(6) + 1e-3 * torch.randn(64, 1, 6)
        shares = []
        for standardized in (True, False):
            torch.manual_seed(0)
            latents = GaussianLatents(8, 6, rank=0, standardized=standardized)
            before = latents.before(context)
            prior = latents.prior(before)
            posterior, kl = latents.posterior(context, before, prior)
            delta = (posterior.mean - prior.mean) / prior.log_scale.exp()
            shares.append(float(delta.var((0, 1)).sum()) / 8)
            assert bool((kl.sum(-1) >= 4 * (1 - 1e-5)).all())
        assert shares[0] > 0.9 and shares[1] < 0.01

    def test_wrong_settings(self) -> None:
        with pytest.raises(ValueError, match="expected posterior 'residual' or 'gaussian', got 'free'"):
            GaussianLatents(4, 6, posterior="free")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected dim >= 2, got 1"):
            GaussianLatents(1, 6)


class TestCausality:
    @pytest.mark.parametrize("architecture", ["gpt2", "llama"])
    def test_prior_and_posterior_read_nothing_later(self, architecture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Gradients of u_t's prior reach the tokens of segments before t, those of its posterior also its own."""
        model = made(architecture=architecture)
        assert model.encoder is not None and model.latents is not None
        latents, body = model.latents, model.encoder.transformer
        embedded = body.embed(BATCH.tokens).detach().requires_grad_()
        monkeypatch.setattr(body, "embed", lambda tokens: embedded)
        context = model.encoder(BATCH)
        before = latents.before(context)
        prior = latents.prior(before)
        posterior, _ = latents.posterior(context, before, prior)
        for number in range(3):
            for distribution, reached in ((prior, number - 1), (posterior, number)):
                value = distribution.mean[:, number].sum() + distribution.log_scale[:, number].sum()
                (gradient,) = torch.autograd.grad(value, embedded, retain_graph=True, allow_unused=True)
                touched = gradient.abs().sum(-1) > 0
                present = BATCH.present[:, number : number + 1] | (BATCH.num_segments[:, None] == number)
                assert torch.equal(touched & present, BATCH.valid & (BATCH.segments <= reached) & present)

    @pytest.mark.parametrize("architecture", ["gpt2", "llama"])
    def test_tokens_are_given_earlier_ones_and_latents_up_to_their_own(
        self, architecture: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = made(architecture=architecture)
        body, latents = model.decoder.transformer, torch.randn(3, 3, 6, requires_grad=True)
        embedded = body.embed(torch.nn.functional.pad(BATCH.tokens[:, :-1], (1, 0), value=19)).detach().requires_grad_()
        monkeypatch.setattr(body, "embed", lambda tokens: embedded)
        found = model.decoder(BATCH, latents)
        for row, place in ((0, 0), (0, 2), (0, 3), (0, 8), (1, 4), (2, 5)):
            inputs, of_latents = torch.autograd.grad(found[row, place], [embedded, latents], retain_graph=True)
            own = int(BATCH.segments[row, place])
            assert (inputs[row].abs().sum(-1) > 0).tolist() == [n <= place for n in range(9)]
            assert (of_latents[row].abs().sum(-1) > 0).tolist() == [n <= own for n in range(3)]
            assert not inputs.abs().sum((1, 2))[[n for n in range(3) if n != row]].any()


class TestBound:
    @pytest.mark.parametrize("architecture", ["gpt2", "llama"])
    @pytest.mark.parametrize("kind", ["trace", "gaussian_vae"])
    def test_it_is_a_sum_over_tokens_and_segments(self, kind: str, architecture: Any) -> None:
        """Again, token by token from prefixes, and with the distributions of PyTorch for z itself."""
        model = made(kind, architecture=architecture)
        assert model.encoder is not None and model.latents is not None
        batch, latents = TextBatch(BATCH.tokens[:1], BATCH.segments[:1]), model.latents
        torch.manual_seed(3)
        found = model.elbo(batch)
        torch.manual_seed(3)
        noise = torch.randn(1, 3, 6)
        context = torch.stack([self.context(model, batch, number) for number in range(3)], 1)
        wanted = torch.zeros(3)
        z, before, drawn = torch.zeros(1, 6), latents.start[None], list[Tensor]()
        matrix = latents.recurrence.matrix() if latents.recurrence.rank else torch.zeros(6, 6)
        for number in range(3):
            prior = latents.prior(before)
            posterior, _ = latents.posterior(context[:, number], before, prior)
            carried = z @ matrix
            p = Normal(carried + prior.mean, prior.log_scale.exp())
            q = Normal(carried + posterior.mean, posterior.log_scale.exp())
            z = q.mean + q.stddev * noise[:, number]
            drawn.append(z)
            wanted[number] -= kl_divergence(q, p).sum()
            before = context[:, number]
        for place in range(9):
            number = int(batch.segments[0, place])
            prefix = TextBatch(batch.tokens[:, : place + 1], batch.segments[:, : place + 1])
            states = model.decoder.states(prefix, torch.stack(drawn[: number + 1], 1))
            wanted[number] += Categorical(logits=model.decoder.logits(states[:, -1])).log_prob(batch.tokens[:, place])[
                0
            ]
        torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-4)

    def context(self, model: TraceModel, batch: TextBatch, number: int) -> Tensor:
        """The encoder's vector of a segment, from the text up to it alone."""
        length = int((batch.segments[0] <= number).sum())
        assert model.encoder is not None
        return model.encoder(TextBatch(batch.tokens[:, :length], batch.segments[:, :length]))[:, number]

    @pytest.mark.parametrize("kind", KINDS)
    def test_documents_do_not_depend_on_their_batch(self, kind: str) -> None:
        model = made(kind)
        together = model(BATCH, sample=False)
        for row, length in enumerate((9, 5, 6)):
            alone = model(
                TextBatch(BATCH.tokens[row : row + 1, :length], BATCH.segments[row : row + 1, :length]), sample=False
            )
            count = alone.kl.shape[1]
            torch.testing.assert_close(together.log_probs[row, :length], alone.log_probs[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together.kl[row, :count], alone.kl[0], rtol=1e-4, atol=1e-5)
            assert not together.log_probs[row, length:].any() and not together.kl[row, count:].any()

    def test_a_language_model_is_a_distribution(self) -> None:
        """All documents of one token, and of two, with their probabilities: they add up to less than one together."""
        model = made("language_model", vocab_size=6)
        firsts = torch.arange(5)[:, None]
        total = float(model(TextBatch(firsts, torch.zeros(5, 1, dtype=torch.int64))).log_probs.exp().sum())
        assert abs(total - 1) < 1e-5
        pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
        segments = torch.stack([torch.zeros(25), pairs[:, 0] == 3], 1).long()  # 3 ends a segment
        assert abs(float(model(TextBatch(pairs, segments)).log_probs.sum(1).exp().sum()) - 1) < 1e-5
        torch.testing.assert_close(model.elbo(BATCH_OF_SIX), segment_sums(model(BATCH_OF_SIX).log_probs, BATCH_OF_SIX))


BATCH_OF_SIX = random_batch(6, [[3, 2], [4]])


class TestParts:
    @pytest.mark.parametrize("kind", KINDS)
    def test_saved_models_are_the_same(self, kind: str, tmp_path: Path) -> None:
        model = made(kind, vocab_size=259)
        form = toy_format()
        model.use(form).save_pretrained(tmp_path / "model", {"steps": 3})
        loaded = TraceModel.from_pretrained(tmp_path / "model")
        batch = form.batch(["a. b.", "c d"])
        assert torch.equal(loaded(batch, sample=False).log_probs, model(batch, sample=False).log_probs)
        assert loaded.format is not None and loaded.format.settings() == form.settings()
        assert loaded.trained == {"steps": 3} and to_config(loaded) == to_config(model)
        again = from_config(json.loads(json.dumps(to_config(model))))
        assert again.state_dict().keys() == model.state_dict().keys()

    @pytest.mark.parametrize("architecture", ["gpt2", "llama"])
    def test_a_pretrained_model_from_a_folder(self, architecture: str, tmp_path: Path) -> None:
        import transformers

        if architecture == "gpt2":
            given: Any = transformers.GPT2Model(
                transformers.GPT2Config(vocab_size=17, n_positions=32, n_embd=16, n_layer=2, n_head=2)
            )
        else:
            settings = dict(
                hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
            )
            given = transformers.LlamaModel(
                transformers.LlamaConfig(vocab_size=17, max_position_embeddings=32, **settings)
            )
        given.eval().save_pretrained(tmp_path / "body")
        body = TextTransformer.from_folder(tmp_path / "body", 20).eval()
        tokens = torch.randint(17, (2, 7))
        mask, positions = torch.ones(2, 7, 7).tril().bool(), torch.arange(7).expand(2, 7)
        wanted = given(tokens).last_hidden_state
        torch.testing.assert_close(body(body.embed(tokens), positions, mask), wanted, rtol=1e-5, atol=1e-5)
        again = from_config(json.loads(json.dumps(to_config(body))))
        assert isinstance(again, TextTransformer)
        again.load_state_dict(body.state_dict())
        torch.testing.assert_close(again.eval()(again.embed(tokens), positions, mask), wanted, rtol=1e-5, atol=1e-5)
        decoder = SegmentDecoder(body, 4)
        assert decoder(BATCH, torch.randn(3, 3, 4)).shape == (3, 9) and body.length == 32
        with pytest.raises(ValueError, match=r"expected at most 17 subwords as the model in .* got 18"):
            TextTransformer.from_folder(tmp_path / "body", 21)

    def test_folders_without_such_a_model(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        for folder, message in (
            (tmp_path, "expected a pretrained GPT-2 or Llama in"),
            (tmp_path / "x", "expected a folder"),
        ):
            with pytest.raises(ValueError, match=message):
                TextTransformer.from_folder(folder, 20)

    def test_what_does_not_fit_together(self) -> None:
        body, small = (
            TextTransformer(20, width=16, depth=1, num_heads=2),
            TextTransformer(19, width=16, depth=1, num_heads=2),
        )
        for parts, message in (
            ((SegmentDecoder(body, 4), SegmentEncoder(body)), "expected both encoder and latents"),
            ((SegmentDecoder(body, 4),), "expected a decoder of dim None without latents, got 4"),
            (
                (SegmentDecoder(body, 4), SegmentEncoder(body), GaussianLatents(5, 16)),
                "expected decoder.dim=5 .* got 4",
            ),
            (
                (SegmentDecoder(body, 4), SegmentEncoder(body, 3), GaussianLatents(4, 16)),
                "latents.context_dim=3 .* got 16",
            ),
            ((SegmentDecoder(body, 4), SegmentEncoder(small), GaussianLatents(4, 16)), "vocab_size=20 .* got 19"),
        ):
            with pytest.raises(ValueError, match=message):
                TraceModel(*parts)
        with pytest.raises(ValueError, match="expected latents of size 4, got none"):
            SegmentDecoder(body, 4)(BATCH)
        with pytest.raises(ValueError, match="expected a vocabulary of 20 tokens as the transformer has, got 259"):
            made().use(toy_format())
        with pytest.raises(
            ValueError, match="expected documents of at most 64 tokens as the transformer takes, got 72"
        ):
            made(vocab_size=259).use(toy_format(max_segments=9))
        with pytest.raises(ValueError, match=r"expected documents of at most 64 tokens .* got 65"):
            made()(random_batch(20, [[65]]))
        for settings, message in (
            ({"architecture": "bert"}, "expected architecture 'gpt2' or 'llama', got 'bert'"),
            ({"width": 18, "num_heads": 4}, "expected width to be a multiple of 2 num_heads, got 18 and 4"),
            ({"depth": 0}, "expected depth >= 1, got 0"),
        ):
            with pytest.raises(ValueError, match=message):
                TextTransformer(20, **settings)
