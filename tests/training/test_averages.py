"""Averages of the weights, stages with a frozen part, and what configurations reach of methods' schedules."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback
from torch import Tensor

from conftest import smooth_pictures
from gritvq import Tokenizer, fvq, grit_vq, ns_vq, rq, vq_vae_ema
from gritvq.cli import main
from gritvq.component import to_config
from gritvq.images import (
    AdversarialLoss,
    ImageData,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    PatchDiscriminator,
    TokenizerTask,
)
from gritvq.training import FrozenStage, TrainingPlan, WeightAverage, train
from gritvq.training.run import seed_everything


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return smooth_pictures(tmp_path_factory.mktemp("pictures"), 24)


def task_for(preset: Any = grit_vq, adversarial: bool = False, **settings: Any) -> TokenizerTask:
    seed_everything(0)
    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    tokenizer = ImageTokenizer(ImageEncoder(4, **shape), preset(4, 16), ImageDecoder(4, **shape))
    loss = AdversarialLoss(PatchDiscriminator(width=8, num_layers=1), start=2) if adversarial else None
    return TokenizerTask(tokenizer, lr=3e-3, adversarial=loss, **{"warmup_steps": 2, **settings})


def data_from(folder: str) -> ImageData:
    return ImageData(folder, batch_size=6, num_validation=6)


def plan(max_steps: int, **changes: Any) -> TrainingPlan:
    return TrainingPlan(max_steps=max_steps, **{"validate_every": 0, "accelerator": "cpu", **changes})


def weights(task: TokenizerTask) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in task.named_parameters()}


class Watch(Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.step > len(self.seen):
            self.seen.append(weights(pl_module))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.validated.append(weights(pl_module))


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_by_its_formula(warmup: bool, pictures: str, tmp_path: Path) -> None:
    """With two batches a step, a validation between, and a discriminator, which is not averaged."""
    watch, task = Watch(), task_for(adversarial=True)
    train(
        task,
        data_from(pictures),
        plan(5, accumulate=2, validate_every=3),
        folder=tmp_path,
        progress=False,
        callbacks=[WeightAverage(0.4, warmup=warmup), watch],
    )
    average, at_three = dict(watch.seen[0]), {}
    for number, now in enumerate(watch.seen, start=1):
        d = min(0.4, (1 + number) / (10 + number)) if warmup else 0.4
        average = {name: d * average[name] + (1 - d) * now[name] for name in now}
        at_three = average if number == 3 else at_three
    for name, found in weights(task).items():
        raw = name.startswith("adversarial")
        expected = watch.seen[-1][name] if raw else average[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            watch.validated[0][name], watch.seen[2][name] if raw else at_three[name], rtol=1e-5, atol=1e-6
        )
    assert not torch.equal(average["tokenizer.decoder.linear.weight"], now["tokenizer.decoder.linear.weight"])
    saved = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert torch.equal(saved.decoder.linear.weight, task.tokenizer.decoder.linear.weight)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(last[name], now[name]) for name in now)  # to go on from


def test_averages_change_nothing_of_the_training(pictures: str) -> None:
    watches = Watch(), Watch()
    for number, watch in enumerate(watches):
        task = task_for()
        callbacks: list[Callback] = [WeightAverage(0.9)] if number else []
        train(task, data_from(pictures), plan(3), progress=False, callbacks=[*callbacks, watch])
    one, other = (watch.seen[-1] for watch in watches)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_with_averages_resumes_bitwise(pictures: str, tmp_path: Path) -> None:
    """Also from the checkpoint after the last step, when the averages were in the model already."""
    long = dict(schedule="constant", adversarial=True)  # a schedule spans the plan
    straight = task_for(**long)
    settings: dict[str, Any] = dict(progress=False)
    train(straight, data_from(pictures), plan(6), callbacks=[WeightAverage(0.9)], **settings)
    train(task_for(**long), data_from(pictures), plan(3), callbacks=[WeightAverage(0.9)], folder=tmp_path, **settings)
    resumed = task_for(**long)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    average = WeightAverage(0.9)
    train(resumed, data_from(pictures), plan(6), callbacks=[average], resume=checkpoint, **settings)
    left, right = weights(straight), weights(resumed)
    assert all(torch.equal(left[name], right[name]) for name in left) and average.num_updates == 6


def test_averages_of_other_weights_are_refused(pictures: str, tmp_path: Path) -> None:
    train(task_for(), data_from(pictures), plan(2), callbacks=[WeightAverage()], folder=tmp_path, progress=False)
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if "WeightAverage" in key)
    checkpoint["callbacks"][key]["averages"].popitem()
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="expected averages of the weights that are trained"):
        train(
            task_for(),
            data_from(pictures),
            plan(3),
            callbacks=[WeightAverage()],
            resume=tmp_path / "other.ckpt",
            progress=False,
        )
    sharded: Any = dict(strategy="fsdp", devices=2)
    with pytest.raises(
        ValueError, match="expected strategy 'ddp' with WeightAverage, got 'fsdp'; leave one of them out"
    ):
        train(task_for(), data_from(pictures), plan(3, **sharded), callbacks=[WeightAverage()], progress=False)
    with pytest.raises(ValueError, match=r"expected decay in \[0, 1\), got 1.0"):
        WeightAverage(1.0)


def test_a_frozen_stage_holds_its_part_and_nothing_else(pictures: str) -> None:
    """Decayed weights too; and afterwards it learns again."""
    watch, task = Watch(), task_for(weight_decay=0.1, warmup_steps=0)
    callbacks = [FrozenStage("tokenizer.encoder", start=1, end=3), watch]
    train(task, data_from(pictures), plan(5), callbacks=callbacks, progress=False)
    moved = {
        part: [
            any(not torch.equal(now[name], after[name]) for name in now if name.startswith(f"tokenizer.{part}"))
            for now, after in zip(watch.seen, watch.seen[1:], strict=False)
        ]
        for part in ("encoder", "quantizer", "decoder")
    }
    assert moved == {"encoder": [False, False, True, True], "quantizer": [True] * 4, "decoder": [True] * 4}
    with pytest.raises(ValueError, match=r"expected a part of the task such as .*'tokenizer'.*got 'model'"):
        train(task_for(), data_from(pictures), plan(1), callbacks=[FrozenStage("model")], progress=False)
    with pytest.raises(ValueError, match="expected end >= 4, got 3"):
        FrozenStage(start=3, end=3)


@pytest.mark.parametrize("preset", [vq_vae_ema, grit_vq])
def test_codes_can_be_frozen_whatever_moves_them(preset: Any, pictures: str) -> None:
    """Gradients, moving averages, revival at every step."""
    task = task_for(functools.partial(preset, revival_interval=1), weight_decay=0.1, warmup_steps=0)
    seen = []

    class Before(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(pl_module.tokenizer.quantizer.codebook.codes().detach().clone())

    callbacks = [FrozenStage("tokenizer.quantizer", start=2, end=4), Before()]
    train(task, data_from(pictures), plan(6), callbacks=callbacks, progress=False)
    moved = [not torch.equal(now, after) for now, after in itertools.pairwise(seen)]
    assert moved[1:] == [True, False, False, True] and not task.tokenizer.quantizer.rules_rest


def test_a_discriminator_can_be_frozen_too(pictures: str) -> None:
    watch, task = Watch(), task_for(adversarial=True, warmup_steps=0)
    callbacks = [FrozenStage("adversarial.discriminator", start=1, end=3), watch]
    train(task, data_from(pictures), plan(5), callbacks=callbacks, progress=False)
    moved = {
        part: [
            any(not torch.equal(now[name], after[name]) for name in now if name.startswith(part))
            for now, after in zip(watch.seen, watch.seen[1:], strict=False)
        ]
        for part in ("adversarial.discriminator", "tokenizer.encoder")
    }
    assert moved == {"adversarial.discriminator": [False, False, True, True], "tokenizer.encoder": [True] * 4}


def test_methods_schedules_from_a_configuration(pictures: str, tmp_path: Path, capsys: Any) -> None:
    """FVQ's annealing, NS-VQ's cooling kernel and stage with a frozen encoder, and dropout of levels."""
    for preset, arguments in ((fvq, {"width": 8}), (ns_vq, {"halving_interval": 2}), (rq, {"dropout": 0.5})):
        name = preset.__name__
        quantizer = {"class_path": f"gritvq.{name}", "init_args": {"codebook_size": 16, **arguments}}
        stage = {"class_path": "gritvq.training.FrozenStage", "init_args": {"start": 1, "end": 2}}
        average = {"class_path": "gritvq.training.WeightAverage", "init_args": {"decay": 0.9}}
        settings = {
            "tokenizer": {
                "encoder": {"class_path": "gritvq.images.ImageEncoder", "init_args": {"width": 8, "num_blocks": 1}},
                "quantizer": quantizer,
                "decoder": {"class_path": "gritvq.images.ImageDecoder", "init_args": {"width": 8, "num_blocks": 1}},
            },
            "dim": 4,
            "data": {"path": pictures, "batch_size": 4, "num_validation": 4},
            "task": {"schedule": "flat_linear", "warmup_steps": 1},
            "plan": {"max_steps": 2, "validate_every": 0, "accelerator": "cpu"},
            "callbacks": [stage, average],
            "out": str(tmp_path / name),
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        assert main(["fit", "images", "--config", str(tmp_path / "run.yaml")]) == 0, capsys.readouterr().err
        made = Tokenizer.from_pretrained(tmp_path / name / "tokenizer")
        assert to_config(made.quantizer) == to_config(preset(4, 16, **arguments))
        again = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert [each["class_path"].rpartition(".")[2] for each in again["callbacks"]] == [
            "FrozenStage",
            "WeightAverage",
        ]
    instead = ["--overwrite", "true", "--plan.strategy", "fsdp", "--plan.devices", "2"]
    assert main(["fit", "images", "--config", str(tmp_path / "run.yaml"), *instead]) == 2
    assert "expected strategy 'ddp' with WeightAverage, got 'fsdp'" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / name / "config.yaml").read_text()) == again  # the old run is kept
    assert (tmp_path / name / "tokenizer").is_dir()
