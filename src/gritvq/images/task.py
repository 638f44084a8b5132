"""The training task of image tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning import Callback
from torch import Tensor

from gritvq.component import eval_mode, packages_of
from gritvq.distributed import all_reduce_sum, batch_mean, mean_of_shares
from gritvq.images.callbacks import ReconstructionPlots
from gritvq.images.data import ImageData
from gritvq.images.foundation import SelfDistillation
from gritvq.images.losses import AdversarialLoss, PerceptualDistance
from gritvq.images.metrics import ReconstructionError
from gritvq.images.objectives import image_losses
from gritvq.images.tokenizer import ImageTokenizer
from gritvq.quantizers.metrics import CodebookUsage
from gritvq.training.callbacks import CodebookInitialization, CodebookUpdate, CollapseWarning
from gritvq.training.data import DataModule
from gritvq.training.objectives import Objective, objective_for
from gritvq.training.optimizer import OptimizerSettings, RateSchedule
from gritvq.training.run_folder import RunFolder
from gritvq.training.task import Task, copy_weights

__all__ = ["TokenizerTask"]

_WINDOW = 100  # steps over which the codes in use are counted


class TokenizerTask(Task):
    """Trains an image tokenizer with AdamW; logs PSNR, usage and perplexity.

    The quantizer sets the learning rates of its parameters (``parameter_groups``); the callback
    :class:`gritvq.training.CodebookUpdate` updates its codebook after each step.

    Args:
        tokenizer: The tokenizer to train.
        lr: Peak learning rate of encoder and decoder.
        warmup_steps: Steps of linear warm-up.
        schedule: Schedule after the warm-up, see :class:`gritvq.training.OptimizerSettings`.
        betas: AdamW's decay rates.
        weight_decay: Weight decay of encoder and decoder; codebooks have none.
        objective: The loss; None takes the quantizer's own (:func:`~gritvq.training.objective_for`), mostly the squared
            pixel error plus the quantizer's losses.
        perceptual: Perceptual loss of the reconstruction, in addition.
        adversarial: Adversarial loss, in addition; its discriminator has an optimizer of its own. Steps, checkpoints,
            accumulation and clipping are the same with and without it.
        distillation: Loss that keeps the encoder's features near those it has at the start, in addition.

    Raises:
        ValueError: If a number is out of range, the decoder of an adaptive adversarial loss has no last layer, or the
            encoder of a distillation does not learn.

    Example:
        >>> from gritvq import grit_vq
        >>> from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
        >>> task = TokenizerTask(ImageTokenizer(ImageEncoder(8, width=16), grit_vq(8, 64), ImageDecoder(8, width=16)))
        >>> task.objective.norm
        'l2'
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        *,
        lr: float = 1e-3,
        warmup_steps: int = 50,
        schedule: RateSchedule = "cosine",
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        objective: Objective | None = None,
        perceptual: PerceptualDistance | None = None,
        adversarial: AdversarialLoss | None = None,
        distillation: SelfDistillation | None = None,
    ) -> None:
        super().__init__(
            OptimizerSettings(
                lr=lr, warmup_steps=warmup_steps, schedule=schedule, betas=betas, weight_decay=weight_decay
            )
        )
        self.tokenizer = tokenizer
        self.objective = objective_for(tokenizer.quantizer) if objective is None else objective
        self.perceptual, self.adversarial = perceptual, adversarial
        self.num_optimizers = 1 if adversarial is None else 2
        if adversarial is not None and adversarial.adaptive and not hasattr(tokenizer.decoder, "last_layer"):
            raise ValueError(
                f"expected a decoder with the attribute last_layer, the weight of its last layer, got "
                f"{type(tokenizer.decoder).__name__} without it; set it, or adaptive=False in AdversarialLoss"
            )
        self.distillation = distillation
        if distillation is not None:
            if not any(weight.requires_grad for weight in tokenizer.encoder.parameters()):
                raise ValueError("expected an encoder that learns for a distillation, got a frozen one; set trainable")
            distillation.remember(tokenizer.encoder)
        self.codebook_usage = CodebookUsage(tokenizer.quantizer.codebook_sizes)
        self.reconstruction_error = ReconstructionError()
        self.window_usage = CodebookUsage(tokenizer.quantizer.codebook_sizes)
        self._keeps_codes, self._window = False, 0

    def start_from(self, tokenizer: ImageTokenizer | str) -> None:
        """Copy the weights of a tokenizer of the same architecture; its codebook is not initialized again.

        Raises:
            ValueError: If tensors differ in name or shape.
        """
        if isinstance(tokenizer, str):
            tokenizer = ImageTokenizer.from_pretrained(tokenizer, packages_of(self.tokenizer))
        copy_weights(self.tokenizer, tokenizer)
        if self.distillation is not None:
            self.distillation.remember(self.tokenizer.encoder)
        self._keeps_codes = True

    @torch.no_grad()
    def check_data(self, data: ImageData) -> None:
        """Check that the tokenizer accepts the images.

        Raises:
            ValueError: If their channels or their size do not fit, or they are too small for a loss.
        """
        if data.shape[0] != self.tokenizer.channels:
            raise ValueError(
                f"expected data.channels={self.tokenizer.channels} as the tokenizer's encoder has, got "
                f"{data.shape[0]}; make them equal"
            )
        with torch.random.fork_rng(), eval_mode(self.tokenizer):
            reconstruction = self.tokenizer(images := torch.zeros(1, *data.shape)).reconstruction
            if self.perceptual is not None:
                self.perceptual(reconstruction, images)
            if self.adversarial is not None:
                self.adversarial.generator(reconstruction)

    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        """Codebook initialization and updates; with a folder also a collapse warning and plots."""
        fitting: list[Callback] = [] if self._keeps_codes else [CodebookInitialization()]
        needed: list[Callback] = [*fitting, CodebookUpdate()]
        return needed if run is None else [*needed, CollapseWarning(), ReconstructionPlots(run)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the counts of the window whose usage is logged."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["window_usage"] = {"window": self._window, **self.window_usage.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also restore the counts, which checkpoints of earlier versions do not have."""
        super().on_load_checkpoint(checkpoint)
        if "window_usage" in checkpoint:
            self._window = checkpoint["window_usage"]["window"]
            self.window_usage.restore(checkpoint["window_usage"])

    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None:
        """Write ``tokenizer/``; its ``config.json`` also describes the ``ImageData`` that it was trained on."""
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        data = module.data if isinstance(module, DataModule) else module
        if isinstance(data, ImageData):
            training = {**training, "data": {**data.settings(), "splits": data.describe()["splits"]}}
        self.tokenizer.save_pretrained(run.tokenizer, training)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct."""
        return self.tokenizer(images).reconstruction

    def losses(self, images: Tensor) -> Iterator[Tensor]:
        """Sum of the tokenizer's losses, then that of the discriminator's.

        Logs each of them, and PSNR and usage of the recent batches.
        """
        adversarial = None if self.adversarial is None or self.step < self.adversarial.start else self.adversarial
        losses, output = image_losses(
            self.objective,
            self.tokenizer,
            images,
            perceptual=self.perceptual,
            adversarial=adversarial,
            distillation=self.distillation,
        )
        loss = torch.stack(list(losses.values())).sum()
        if self._window != self.step // _WINDOW:
            self._window = self.step // _WINDOW
            self.window_usage.reset()
        self.window_usage.update(output.quantization.indices)
        total = self.log_losses({**losses, "loss": loss})["loss"]
        if self.measures_now:
            advice = "lower the learning rate, clip gradients, or look for pictures with NaN"
            self.check_finite(total, advice)
            if lost := int(all_reduce_sum((~torch.isfinite(output.latents)).any(-1).sum())):
                raise ValueError(
                    f"expected finite latents, got {lost} vectors that are not finite at step {self.step}; {advice}"
                )
            error = batch_mean((output.reconstruction.detach().float().clamp(0, 1) - images).square())
            counts = self.window_usage.compute()
            self.log("train/psnr", -10 * mean_of_shares(error).clamp_min(1e-10).log10())
            self.log("train/usage", counts["usage"])
            self.log("train/perplexity", counts["perplexity"])
        yield loss
        if self.adversarial is None:
            return
        if adversarial is None:  # not yet: no parameter gets a gradient, so none moves
            yield torch.zeros((), device=self.device)
            return
        terms, scores = adversarial.judge(images, output.reconstruction, self.step)
        self.log_losses({**terms, **scores})
        yield torch.stack(list(terms.values())).sum()
        if self._batches == self.accumulate:
            adversarial.after_step()

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        super().on_validation_epoch_start()
        self.codebook_usage.reset()
        self.reconstruction_error.reset()

    def validation_step(self, images: Tensor, batch_idx: int) -> None:
        """Update the metrics."""
        output = self.tokenizer(images)
        self.codebook_usage.update(output.quantization.indices)
        self.reconstruction_error.update(output.reconstruction, images)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, which are already reduced over all processes."""
        super().on_validation_epoch_end()
        totals = {**self.reconstruction_error.compute(), **self.codebook_usage.compute()}
        self.log_dict({f"val/{name}": value for name, value in totals.items()})

    @property
    def sharded_parts(self) -> list[str]:
        """Encoder and decoder, unless the loss looks at a single weight of theirs.

        Raises:
            ValueError: If the adversarial loss is adaptive.
        """
        if self.adversarial is not None and self.adversarial.adaptive:
            raise ValueError(
                "expected adaptive=False in AdversarialLoss with strategy 'fsdp', got true, which needs the decoder's "
                "whole last layer; set it, or take 'ddp'"
            )
        return ["tokenizer.encoder", "tokenizer.decoder"]

    def configure_optimizers(self) -> Any:
        """The tokenizer's optimizer, and the discriminator's with the same settings but for its rate."""
        optimizers, schedules = super().configure_optimizers()
        if self.adversarial is not None:
            settings = replace(self.optimizer_settings, lr=self.optimizer_settings.lr * self.adversarial.lr_scale)
            parameters = [parameter for parameter in self.adversarial.parameters() if parameter.requires_grad]
            optimizer, schedule = settings.optimizer([{"params": parameters}], self.trainer.max_steps)
            optimizers, schedules = [*optimizers, optimizer], [*schedules, {"scheduler": schedule, "interval": "step"}]
        return optimizers, schedules

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and decoder, and the quantizer's parameter groups."""
        quantizer, lr = self.tokenizer.quantizer, self.optimizer_settings.lr
        owned = set(quantizer.parameters())
        if self.adversarial is not None:
            owned |= set(self.adversarial.parameters())
        rest = [p for p in self.parameters() if p.requires_grad and p not in owned]
        return [{"params": rest}, *({"weight_decay": 0.0, **group} for group in quantizer.parameter_groups(lr))]
