"""VQRAE: what is frozen stays, what is distilled follows, and the quantizer changes nothing of the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from conftest import smooth_pictures

pytest.importorskip("transformers")

from gritvq import Tokenizer, fsq
from gritvq.cli import main
from gritvq.component import from_config, to_config
from gritvq.images import (
    FoundationEncoder,
    ImageData,
    ImageTokenizer,
    SelfDistillation,
    TokenizerTask,
    ViTDecoder,
    image_losses,
    pretrained_encoder,
    vqrae_quantizer,
)
from gritvq.training import TrainingPlan, train
from gritvq.training.objectives import ReconstructionObjective
from gritvq.training.run import seed_everything

SETTINGS: dict[str, Any] = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, hidden_dropout_prob=0.1
)


def encoder_for(**settings: Any) -> FoundationEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return FoundationEncoder("dinov2", SETTINGS, **settings)


def tokenizer_for(**settings: Any) -> ImageTokenizer:
    seed_everything(0)
    encoder = encoder_for(**settings)
    decoder = ViTDecoder(16, width=16, factor=4, depth=1, num_heads=2)
    return ImageTokenizer(encoder, vqrae_quantizer(16, 32, code_dim=24), decoder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return smooth_pictures(tmp_path_factory.mktemp("pictures"), 24)


def data_from(folder: str) -> ImageData:
    return ImageData(folder, batch_size=6, num_validation=6)


def plan(max_steps: int, **changes: Any) -> TrainingPlan:
    return TrainingPlan(max_steps=max_steps, **{"validate_every": 0, "accelerator": "cpu", **changes})


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "model_type, settings, prefix",
    [
        ("dinov2", {}, 1),
        ("dinov2_with_registers", {}, 5),
        ("vit", {"intermediate_size": 32}, 1),
        ("siglip_vision_model", {"intermediate_size": 32}, 0),
    ],
)
def test_a_vector_is_the_models_of_its_patch(model_type: str, settings: dict[str, Any], prefix: int) -> None:
    encoder = FoundationEncoder(model_type, {**SETTINGS, **settings}, mean=[0.5] * 3, std=[0.25] * 3).eval()
    assert (encoder.dim, encoder.factor, encoder.channels) == (16, 4, 3)
    images = torch.rand(2, 3, 16, 16)
    expected = encoder.model(pixel_values=4 * images - 2).last_hidden_state
    assert expected.shape[1] == prefix + 16
    torch.testing.assert_close(encoder(images)[:, 1, 2], expected[:, prefix + 6], rtol=1e-4, atol=1e-5)
    assert encoder(torch.rand(1, 3, 8, 24)).shape == (1, 2, 6, 16)
    again = from_config(to_config(encoder))
    assert {name: each.shape for name, each in state(again).items()} == {
        name: each.shape for name, each in state(encoder).items()
    }


def test_a_convolutional_model() -> None:
    encoder = FoundationEncoder("convnext", dict(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, image_size=32))
    assert (encoder.dim, encoder.factor) == (12, 8)
    images = torch.rand(1, 3, 16, 24)
    wanted = encoder.model(pixel_values=(images - encoder.mean) / encoder.std).last_hidden_state
    assert torch.equal(encoder(images), wanted.permute(0, 2, 3, 1))


def test_every_weight_that_learns_gets_a_gradient() -> None:
    """Else training on several devices would wait for it: mask tokens, poolers, class tokens of the last layer."""
    encoder = encoder_for(trainable=True)
    encoder(torch.rand(1, 3, 16, 16)).square().sum().backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in encoder.parameters())
    assert not encoder.model.embeddings.mask_token.requires_grad
    assert not any(weight.requires_grad for weight in encoder_for().parameters())


def test_stage_1_leaves_the_encoder_bitwise_as_it_is(pictures: str) -> None:
    tokenizer = tokenizer_for()
    before, decoder = state(tokenizer.encoder), state(tokenizer.decoder)
    task = TokenizerTask(tokenizer, lr=1e-2, warmup_steps=0, weight_decay=0.1)
    train(task, data_from(pictures), plan(3), progress=False)
    assert same(before, state(tokenizer.encoder)) and not same(decoder, state(tokenizer.decoder))
    assert all(weight.grad is None for weight in tokenizer.encoder.parameters())
    tokenizer.train()
    assert not any(part.training for part in tokenizer.encoder.model.modules())


def test_stage_2_moves_the_encoder_and_never_its_teacher(pictures: str, tmp_path: Path) -> None:
    first = tokenizer_for()
    first.encoder.model.layernorm.weight.data.add_(0.1)  # other weights than those of a new encoder
    train(TokenizerTask(first, warmup_steps=0), data_from(pictures), plan(2), progress=False)
    first.save_pretrained(tmp_path / "first")
    tokenizer = tokenizer_for(trainable=True)
    task = TokenizerTask(tokenizer, warmup_steps=0, distillation=SelfDistillation(1.0))
    new = state(task.distillation.teacher)
    task.start_from(str(tmp_path / "first"))
    assert same(state(task.tokenizer), state(first))
    teacher, before = state(task.distillation.teacher), state(tokenizer.encoder)
    assert same(teacher, state(first.encoder)) and not same(teacher, new)
    train(task, data_from(pictures), plan(3), folder=tmp_path / "run", progress=False)
    assert same(teacher, state(task.distillation.teacher)) and not same(before, state(tokenizer.encoder))
    assert same(teacher, before)
    task.train()
    assert not any(part.training for part in task.distillation.teacher.modules())
    assert tokenizer.encoder.model.training
    assert not any(weight.requires_grad for weight in task.distillation.teacher.parameters())
    saved = Tokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    assert same(state(saved), state(tokenizer))  # without the teacher


def test_a_distilled_run_resumes_bitwise_with_its_first_teacher(pictures: str, tmp_path: Path) -> None:
    def task() -> TokenizerTask:
        return TokenizerTask(tokenizer_for(trainable=True), schedule="constant", distillation=SelfDistillation(1.0))

    whole, first, second = task(), task(), task()
    for each in (whole, first, second):
        each.tokenizer.encoder.model.layernorm.weight.data.add_(0.1)  # as if started from other weights
        each.distillation.remember(each.tokenizer.encoder)
    second.tokenizer.encoder.model.layernorm.weight.data.add_(1)
    second.distillation.remember(second.tokenizer.encoder)  # a checkpoint brings the right one
    seed_everything(1)  # of the model's dropout
    train(whole, data_from(pictures), plan(4), progress=False)
    seed_everything(1)
    train(first, data_from(pictures), plan(2), folder=tmp_path, progress=False)
    resume = tmp_path / "checkpoints" / "last.ckpt"
    train(second, data_from(pictures), plan(4), resume=resume, progress=False)
    assert same(state(whole), state(second))


def test_features_are_the_same_with_and_without_the_quantizer() -> None:
    tokenizer, images = tokenizer_for(), torch.rand(2, 3, 16, 16)
    features = tokenizer.encoder(images)
    other = ImageTokenizer(tokenizer.encoder, fsq(16, 64), tokenizer.decoder)
    for each in (tokenizer, other):
        assert torch.equal(each(images).latents, features) and torch.equal(each.latents(images), features)
    assert not torch.equal(tokenizer(images).quantization.quantized, features)


def test_distillation_teaches_the_encoder_alone() -> None:
    tokenizer, distillation = tokenizer_for(trainable=True), SelfDistillation(2.0)
    distillation.remember(encoder_for())
    tokenizer.encoder.model.layernorm.weight.data.add_(0.1)
    images = torch.rand(2, 3, 14, 16)  # extended to 16
    losses, output = image_losses(ReconstructionObjective(), tokenizer.eval(), images, distillation=distillation)
    wanted = distillation.teacher(torch.cat([images, images[:, :, -1:], images[:, :, -1:]], 2))
    expected = 2 * (output.latents - wanted).square().mean()
    torch.testing.assert_close(losses["distillation"], expected)
    losses["distillation"].backward()
    assert all((w.grad is not None) == w.requires_grad for w in tokenizer.encoder.parameters())
    rest = [*tokenizer.quantizer.parameters(), *tokenizer.decoder.parameters(), *distillation.parameters()]
    assert all(weight.grad is None for weight in rest)


def test_distillation_holds_the_features_near(pictures: str) -> None:
    """A stage 2 with it ends nearer to the first features than one without."""
    moved = []
    for weight in (0.0, 10.0):
        task = TokenizerTask(tokenizer_for(trainable=True), lr=3e-3, distillation=SelfDistillation(weight))
        data = data_from(pictures)
        train(task, data, plan(12), progress=False)
        images = next(iter(data.val_dataloader()))
        with torch.no_grad():
            moved.append(float(task.distillation(task.tokenizer.eval().latents(images), images)))
    assert moved[1] < 0.5 * moved[0]


def test_decoding_indices_is_decoding_their_codes(tmp_path: Path) -> None:
    tokenizer, images = tokenizer_for().eval(), torch.rand(2, 3, 16, 16)
    output = tokenizer(images)
    indices = output.quantization.indices
    assert torch.equal(tokenizer.quantizer.decode(indices), output.quantization.quantized)
    assert torch.equal(tokenizer.quantizer.after(tokenizer.quantizer.lookup(indices)), output.quantization.quantized)
    assert torch.equal(tokenizer.decode(tokenizer.encode(images)), output.reconstruction.clamp(0, 1))
    assert tokenizer.quantizer.quantizer.dim == 24 and tuple(tokenizer.quantizer.codebook_sizes) == (32,)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert torch.equal(again.encode(images), tokenizer.encode(images))


def test_both_stages_from_the_command_line(pictures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a folder of a vision model, whose weights stage 1 keeps to the bit and stage 2 changes."""
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_config(AutoConfig.for_model("dinov2", **SETTINGS))
    model.save_pretrained(tmp_path / "model")
    encoder = {"source": str(tmp_path / "model"), "mean": [0.5] * 3, "std": [0.5] * 3}
    sizes = {"dim": 16, "width": 16, "factor": 4, "depth": 1, "num_heads": 2}
    whole: dict[str, Any] = {
        "tokenizer": {
            "encoder": {"class_path": "gritvq.images.pretrained_encoder", "init_args": encoder},
            "quantizer": {
                "class_path": "gritvq.images.vqrae_quantizer",
                "init_args": {"dim": 16, "codebook_size": 32, "code_dim": 24},
            },
            "decoder": {"class_path": "gritvq.images.ViTDecoder", "init_args": sizes},
        },
        "data": {"path": pictures, "batch_size": 6, "num_validation": 6},
        "task": {"lr": 0.01, "warmup_steps": 0},
        "plan": {"max_steps": 2, "validate_every": 0, "accelerator": "cpu"},
    }

    def run(stage: str, *more: str) -> dict[str, Tensor]:
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(whole))
        words = ["--config", f"{tmp_path}/{stage}.yaml", "--out", f"{tmp_path}/{stage}", *more]
        assert main(["fit", "images", *words]) == 0, capsys.readouterr().err
        return state(Tokenizer.from_pretrained(tmp_path / stage / "tokenizer"))

    def of(part: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix(part): each for name, each in weights.items() if name.startswith(part)}

    first = of("encoder.model.", run("first"))
    assert same(first, state(model))
    encoder["trainable"] = True
    whole["task"]["distillation"] = {"class_path": "gritvq.images.SelfDistillation", "init_args": {"weight": 1.0}}
    for weight in model.parameters():  # so that the folder's are told from those of the first stage
        weight.data.add_(1)
    model.save_pretrained(tmp_path / "model")
    second = of("encoder.model.", run("second", "--init_from", f"{tmp_path}/first/tokenizer"))
    moved = [float((second[name] - first[name]).abs().max()) for name in first]
    assert 0 < max(moved) < 0.1  # two steps of Adam, each hardly more than its rate 0.01
    checkpoint = torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)
    assert same(of("distillation.teacher.model.", checkpoint["state_dict"]), first)


@pytest.mark.parametrize("kind", ["dinov2", "siglip"])
def test_trained_weights_from_a_folder(kind: str, tmp_path: Path) -> None:
    """Of a model of pictures and text the vision part; and a saved tokenizer needs the folder no longer."""
    from transformers import AutoConfig, AutoModel

    vision = {**SETTINGS, "intermediate_size": 32}
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    both = dict(vision_config=vision, text_config=text)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **(vision if kind == "dinov2" else both))).eval()
    model.save_pretrained(tmp_path / "model")
    encoder = pretrained_encoder(str(tmp_path / "model"), mean=[0.5] * 3, std=[0.5] * 3).eval()
    images = torch.rand(1, 3, 16, 16)
    part = model if kind == "dinov2" else model.vision_model
    wanted = part(pixel_values=2 * images - 1).last_hidden_state[:, -16:]
    torch.testing.assert_close(encoder(images).flatten(1, 2), wanted, rtol=1e-4, atol=1e-5)
    again = from_config(to_config(encoder))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(images), encoder(images))


def test_what_is_no_vision_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a vision model of transformers and its settings, got 'no_model'"):
        FoundationEncoder("no_model")
    with pytest.raises(
        ValueError, match=r"expected the folder of a model of transformers or a .* Hub name, got .*; correct"
    ):
        pretrained_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="expected mean and std of 3 channels, got 1 and 3; give one number"):
        FoundationEncoder("dinov2", SETTINGS, mean=[0.5])
    with pytest.raises(ValueError, match="expected an encoder that learns for a distillation"):
        TokenizerTask(tokenizer_for(), distillation=SelfDistillation())
    with pytest.raises(ValueError, match="sides that are multiples of 4"):
        encoder_for()(torch.rand(1, 3, 15, 16))
