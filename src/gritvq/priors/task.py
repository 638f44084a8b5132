"""Training of priors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback
from torch import Tensor, nn

from gritvq.component import check_integer
from gritvq.priors.base import Prior
from gritvq.priors.data import TokenBatch, TokenData
from gritvq.training.optimizer import OptimizerSettings, RateSchedule
from gritvq.training.run_folder import RunFolder
from gritvq.training.task import Task, copy_weights

__all__ = ["PriorTask"]


class PriorTask(Task):
    """Trains a prior with AdamW; validation logs nats per token and bits per element from ``log_prob``.

    Batches are pairs (indices, condition), see :class:`gritvq.priors.TokenData`.

    Args:
        prior: The prior to train.
        lr: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        schedule: After the warm-up, see :class:`gritvq.training.OptimizerSettings`.
        betas: AdamW's decay rates.
        weight_decay: For matrices; vectors and embeddings get none.
        num_elements: Elements of a sample for ``bits_per_element``, such as height x width x channels of an image; its
            tokens if None.

    Attributes:
        about: What the saved prior is to say of its data, plain values by name.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        prior: Prior,
        *,
        lr: float = 4e-4,
        warmup_steps: int = 100,
        schedule: RateSchedule = "cosine",
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        num_elements: int | None = None,
    ) -> None:
        super().__init__(
            OptimizerSettings(
                lr=lr, warmup_steps=warmup_steps, schedule=schedule, betas=betas, weight_decay=weight_decay
            )
        )
        self.prior = prior
        self.about: dict[str, Any] = {}
        self.num_elements = None if num_elements is None else check_integer("num_elements", num_elements)

    def check_data(self, data: TokenData) -> None:
        """Check that the tokens fit the layout of the prior, and that it has as many classes.

        Raises:
            ValueError: If they do not.
        """
        expected = (*self.prior.layout.shape, len(self.prior.layout.vocabulary.codebook_sizes))
        if data.shape != expected:
            raise ValueError(
                f"expected tokens {expected} of a sample as in the prior's layout, got {data.shape}; "
                "make a layout for the tokens of these files"
            )
        if data.num_classes != self.prior.num_classes:
            raise ValueError(
                f"expected num_classes={data.num_classes} of the prior as in the data, got {self.prior.num_classes}; "
                "label null leaves the classes out"
            )
        sizes = self.prior.layout.codebook_sizes
        if any(largest >= size for largest, size in zip(data.largest, sizes, strict=True)):
            raise ValueError(
                f"expected indices below {sizes} as in the prior's layout, got up to {data.largest.tolist()}; use "
                "the tokens of the prior's own tokenizer"
            )
        self.prior.rows_of(data.batch(0).indices)

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """The transformer."""
        return [self.prior.transformer]

    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        """No callbacks."""
        return []

    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None:
        """Write ``prior/``."""
        self.prior.save_pretrained(run.prior, {**training, **self.about})

    def start_from(self, prior: Prior) -> None:
        """Copy the weights of a prior of the same architecture.

        Raises:
            ValueError: If a part differs; the message names it.
        """
        copy_weights(self.prior, prior)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save also the fingerprint of the tokenizer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["fingerprint"] = self.prior.fingerprint

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint was trained on tokens of the same tokenizer.

        Raises:
            ValueError: If it was not.
        """
        if checkpoint.get("fingerprint") != self.prior.fingerprint:
            raise ValueError(
                "expected a checkpoint trained on the tokens of this tokenizer, got one of another, whose tokens mean "
                "something else; resume with the tokens of that run, or train anew"
            )
        super().check_checkpoint(checkpoint)

    def losses(self, batch: TokenBatch) -> list[Tensor]:
        """Loss of one batch."""
        total = self.trainer.max_steps
        self.prior.training_progress = min(1.0, self.step / total) if total > 0 else 0.0
        terms = self.prior.loss(*batch)
        loss = torch.stack(list(terms.values())).sum()
        if self.measures_now:
            self.check_finite(torch.stack(list(self.log_losses(terms).values())).sum())
        return [loss]

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log metrics of one batch."""
        indices, condition = batch
        nats = -self.prior.log_prob(indices, condition).mean()
        tokens = self.prior.count(indices)
        per_sample = tokens / len(indices)
        numbers = {
            "nats_per_token": nats / per_sample,
            "bits_per_element": nats / (math.log(2) * (self.num_elements or per_sample)),
        }
        self.log_validation(numbers, tokens)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices, and without weight decay vectors and embeddings."""
        tables = {m.weight for m in self.prior.modules() if isinstance(m, torch.nn.Embedding)}
        parameters = [p for p in self.parameters() if p.requires_grad]
        decayed = [p for p in parameters if p.ndim > 1 and p not in tables]
        kept = [p for p in parameters if p.ndim <= 1 or p in tables]
        return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
