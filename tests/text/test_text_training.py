"""Training of text models: the loss and its parts, runs that go on, latents that say something."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gritvq import LinearSchedule
from gritvq.text import (
    CyclicSchedule,
    Segmentation,
    Subwords,
    TextData,
    TextFormat,
    TextTask,
    TraceModel,
    gaussian_vae,
    trace,
)
from gritvq.training import RunFolder, TrainingPlan, train
from gritvq.training.optimizer import OptimizerSettings, take_steps
from gritvq.training.run import check_checkpoint
from text_common import SIZES, lively, random_batch, toy_documents

BATCH = random_batch(20, [[3, 2, 4], [5], [2, 2, 2]])


class TestLoss:
    def test_without_settings_it_is_the_bound_per_token(self) -> None:
        model = lively(trace(20, **SIZES))
        task = TextTask(model)
        torch.manual_seed(1)
        terms, _ = task.terms(BATCH)
        torch.manual_seed(1)
        bound = model.elbo(BATCH)
        torch.testing.assert_close(terms["reconstruction"] + terms["kl"], -bound.sum() / BATCH.valid.sum())

    def test_free_bits_leave_small_divergences_alone(self) -> None:
        model = lively(gaussian_vae(20, **SIZES))
        torch.manual_seed(1)
        _, kl = TextTask(model).terms(BATCH)
        means = kl.sum((0, 1)) / 7  # segments
        level = float(means.sort().values[2:4].mean())  # between the third and the fourth of six components
        task = TextTask(model, free_bits=level)
        torch.manual_seed(1)
        terms, _ = task.terms(BATCH)
        wanted = sum(max(float(mean), level) for mean in means) * 7 / 20
        assert float(terms["kl"]) == pytest.approx(wanted, rel=1e-5)
        assert model.latents is not None
        (gradient,) = torch.autograd.grad(terms["kl"], model.latents.posterior_head[2].bias)
        for component in range(6):
            touched = bool(gradient[[component, component + 6]].any())
            assert touched == (float(means[component]) > level)

    def test_bag_of_words(self) -> None:
        model = lively(trace(20, **SIZES))
        task = TextTask(model, bag_of_words=0.5)
        assert task.words is not None
        torch.manual_seed(1)
        terms, _ = task.terms(BATCH)
        torch.manual_seed(1)
        latents, wanted = model(BATCH).latents, 0.0
        for row, place in BATCH.valid.nonzero().tolist():
            scores = task.words(latents[row, BATCH.segments[row, place]]).softmax(-1)
            wanted -= float(scores[BATCH.tokens[row, place]].log()) / 20
        assert float(terms["bag_of_words"]) == pytest.approx(wanted, rel=1e-5)

    def test_annealing(self) -> None:
        model = trace(20, **SIZES)
        linear = TextTask(model, kl_weight=LinearSchedule(0.0, 1.0, num_steps=10, begin=10))
        assert [linear.kl_weight_at(step) for step in (0, 10, 15, 20, 99)] == [0, 0, 0.5, 1, 1]
        cyclic = TextTask(model, kl_weight=CyclicSchedule(0.2, 0.6, period=10, num_cycles=2, share=0.5))
        found = [round(cyclic.kl_weight_at(step), 2) for step in (0, 1, 5, 9, 10, 14, 19, 20, 50)]
        assert found == [0.2, 0.28, 0.6, 0.6, 0.2, 0.52, 0.6, 0.6, 0.6]
        with pytest.raises(ValueError, match="expected kl_weight >= 0, got -1"):
            TextTask(model, kl_weight=-1.0)
        with pytest.raises(ValueError, match=r"expected share in \[1e-06, 1\], got 0"):
            CyclicSchedule(share=0.0)

    def test_every_parameter_learns_once_and_decays_where_it_should(self) -> None:
        task = TextTask(trace(20, **SIZES), bag_of_words=0.1)
        decayed, kept = ({id(p) for p in group["params"]} for group in task.parameter_groups())
        assert decayed | kept == {id(p) for p in task.parameters()} and not decayed & kept
        model: Any = task.model
        assert {id(model.latents.recurrence.weight), id(model.decoder.transformer.embeddings)} <= kept
        assert id(model.decoder.memory.weight) in decayed


def test_latents_of_trace_say_something_and_those_of_the_plain_model_do_not() -> None:
    """The plain one starts with nats of divergence and loses them. Worth: own latents against another document's."""
    documents = toy_documents(600, 0)
    form = TextFormat(Subwords.train([" ".join(d) for d in documents], 400), Segmentation(max_tokens=10))
    rows, test = [row for own in form.tokens(documents) for row in own], form.batch(toy_documents(200, 1))
    found: dict[str, tuple[float, float, float]] = {}
    for make in (trace, gaussian_vae):
        torch.manual_seed(0)
        model = make(form.vocab_size, dim=8, width=32, depth=1, num_heads=2, length=80, dropout=0.0)
        latents: Any = model.latents
        if make is gaussian_vae:
            torch.nn.init.normal_(latents.posterior_head[2].weight, std=0.5)
        task, steps, draw = TextTask(model), 200, random.Random(0)
        optimizer, schedule = OptimizerSettings(lr=3e-3, warmup_steps=20).optimizer(task.parameter_groups(), steps)
        begun = float(model(test).kl.sum() / test.present.sum())
        losses = (sum(task.terms(form.batch_of(draw.sample(rows, 32)))[0].values()) for _ in range(steps))
        list(take_steps(losses, optimizer, schedule, gradient_clip=1.0))
        model.eval()
        with torch.no_grad():
            output = model(test)
            others = model.decoder(test, output.latents.roll(1, 0))
            gain = (output.log_probs - others).sum() / test.present.sum()
            lowest = output.kl.sum(-1)[test.present].min()
            found[make.__name__] = begun, float(output.kl.sum() / test.present.sum()), float(gain)
        if make is trace:
            assert float(lowest) >= 4 * (1 - 1e-5) and latents.recurrence.defect() < 1e-6
    assert found["trace"][1] >= 4 and found["trace"][2] > 1
    begun, kl, gain = found["gaussian_vae"]
    assert begun > 1 and kl < 0.1 * 4 and abs(gain) < 0.1


@pytest.fixture
def data(tmp_path: Path) -> TextData:
    lines = (json.dumps({"text": document}) for document in toy_documents(60, 2))
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    return TextData(
        str(tmp_path / "texts.jsonl"), vocabulary=280, batch_size=4, segmentation=Segmentation(max_tokens=8)
    )


def task_for(data: TextData, **settings: Any) -> TextTask:
    torch.manual_seed(0)
    task = TextTask(trace(data.format.vocab_size, **SIZES), warmup_steps=2, **settings)
    task.check_data(data)
    return task


@pytest.mark.filterwarnings("ignore")
def test_a_rate_that_is_far_too_high_is_said_as_that(data: TextData, tmp_path: Path) -> None:
    plan = TrainingPlan(max_steps=12, accelerator="cpu")
    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 9; lower the learning rate"):
        train(task_for(data, lr=1e20), data, plan, folder=tmp_path / "run", progress=False)


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_bitwise_and_leaves_a_model(data: TextData, tmp_path: Path) -> None:
    plan = TrainingPlan(max_steps=12, validate_every=6, checkpoint_every=6, accelerator="cpu")
    whole = task_for(data, kl_weight=CyclicSchedule(period=4), bag_of_words=0.1)
    train(whole, data, plan, folder=tmp_path / "run", progress=False)
    half = tmp_path / "run" / "checkpoints" / "step-6.ckpt"
    again = task_for(data, kl_weight=CyclicSchedule(period=4), bag_of_words=0.1)
    with torch.no_grad():
        for weight in again.parameters():
            weight.add_(1.0)
    train(again, data, plan, resume=half, progress=False)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    run = RunFolder(tmp_path / "run")
    model = TraceModel.from_pretrained(run.text_model)
    assert run.is_run and model.trained["steps"] == 12 and model.format is not None
    assert model.format.settings() == data.format.settings()
    logged = next(run.logs.glob("*/metrics.csv")).read_text()
    for name in ("train/kl_weight", "train/kl_per_segment", "val/nats_per_token", "val/kl_per_segment"):
        assert name in logged
    check_checkpoint(again, plan, half)
    other = task_for(data, kl_weight=CyclicSchedule(period=4), bag_of_words=0.2)
    with pytest.raises(ValueError, match=r"expected bag_of_words 0.1 as at the start of the resumed run, got 0.2"):
        check_checkpoint(other, plan, half)
    form = data.format
    merges = json.loads(form.subwords.definition)
    first, second = merges["model"]["merges"][:2]
    merges["model"]["merges"][:2] = [second, first]  # as many tokens, which mean something else
    again.model.format = TextFormat(Subwords(json.dumps(merges)), form.segmentation)
    with pytest.raises(ValueError, match=r"expected a checkpoint of this vocabulary, fingerprint .* got one of"):
        check_checkpoint(again, plan, half)
    with pytest.raises(ValueError, match="expected a model of this vocabulary"):
        again.start_from(model)
    again.model.format = form
    again.start_from(again.load(str(run.text_model)))
    assert all(torch.equal(one, other) for one, other in zip(again.model.parameters(), model.parameters(), strict=True))


def test_documents_that_the_model_does_not_take(data: TextData) -> None:
    task = TextTask(trace(data.format.vocab_size, **{**SIZES, "length": 63}))
    with pytest.raises(ValueError, match="expected documents of at most 63 tokens as the transformer takes, got 64"):
        task.check_data(data)
    with pytest.raises(ValueError, match="expected a vocabulary of 20 tokens as the transformer has, got 283"):
        TextTask(trace(20, **SIZES)).check_data(data)
