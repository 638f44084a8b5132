"""Training loops of others: their checkpoints hold the quantizer, and a run that goes on is one that never stopped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gritvq import CodeStatistics, Quantizer, grit_vq, rq, vq_vae_ema
from test_contract import assert_same, contents

DIM, SIZE = 8, 16


class Model(nn.Module):
    """An autoencoder whose loss comes with its output, as transformers wants it."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = nn.Linear(12, DIM), quantizer, nn.Linear(DIM, 12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        output = self.quantizer(self.encoder(x))
        return {"loss": (self.decoder(output.quantized) - x).square().mean() + output.loss}


def contents_in_place(model: nn.Module) -> list[Tensor]:
    """Weights, and numbers of statistics."""
    parts = [part for part in model.modules() if isinstance(part, CodeStatistics)]
    return [*model.parameters(), *(tensor for part in parts for tensor in part.tensors().values())]


@pytest.fixture(params=[vq_vae_ema, rq, grit_vq])
def model(request: pytest.FixtureRequest) -> Model:
    """One of the models."""
    torch.manual_seed(0)
    return Model(request.param(DIM, SIZE))


def test_the_trainer_of_transformers_saves_and_goes_on(model: Model, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    rows = [{"x": x} for x in torch.randn(48, 12)]
    found = []
    for folder, resume in ((tmp_path / "whole", None), (tmp_path / "resumed", tmp_path / "whole" / "checkpoint-4")):
        own = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-2)
        own.quantizer.attach(optimizer)
        settings = transformers.TrainingArguments(
            str(folder),
            per_device_train_batch_size=8,
            max_steps=6,
            save_steps=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        trainer: Any = transformers.Trainer(
            own,
            settings,
            train_dataset=rows,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        found.append(contents(own))
    assert_same(*found)
    assert any(not torch.equal(found[0][name], value) for name, value in contents(model).items())


def test_the_state_of_accelerate(model: Model, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    for x in torch.randn(3, 8, 12):
        prepared(x)
    before = contents(model)
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.save_model(prepared, str(tmp_path / "model"))
    with torch.no_grad():
        for tensor in contents_in_place(model):
            tensor.add_(1)
    accelerator.load_state(str(tmp_path / "state"))
    assert_same(contents(model), before)
    other = Model(copy.deepcopy(model.quantizer))
    accelerate.load_checkpoint_in_model(other, str(tmp_path / "model"))
    assert_same(contents(other), before)
