"""Where the time of a step of ``gritvq fit`` goes: its training loop with a stopwatch around the parts."""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from benchmarks.speed.cases import Row
from benchmarks.speed.measure import percentile
from torch import Tensor

from gritvq.component import from_config
from gritvq.images import ImageData, ImageTokenizer, TokenizerTask
from gritvq.quantizers import presets
from gritvq.training import TrainingPlan, train
from gritvq.training.run import seed_everything

QUANTIZERS = ("grit_vq", "vq_vae_ema")
CODEBOOK_SIZE = 16384
PARTS = (
    "data",
    "encoder_forward",
    "quantizer_forward",
    "decoder_forward",
    "decoder_backward",
    "quantizer_backward",
    "encoder_backward",
    "optimizer",
    "codebook_update",
    "callbacks",
    "loop",
)
QUANTIZER = ("quantizer_forward", "quantizer_backward", "codebook_update")


class Stopwatch:
    """Splits the time of a step among parts: every moment belongs to the part entered last."""

    def __init__(self) -> None:
        self.part, self.since = "loop", time.perf_counter()
        self.spent: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []

    def enter(self, part: str) -> str:
        """Go on in another part; returns the one before."""
        now = time.perf_counter()
        self.spent[self.part] += now - self.since
        before, self.part, self.since = self.part, part, now
        return before

    def end_step(self) -> None:
        """Close the account of a step."""
        self.enter("loop")
        self.steps.append(dict(self.spent))
        self.spent.clear()


class TimedData(ImageData):
    """Pictures; waiting for the next batch counts as ``data``."""

    watch: Stopwatch

    def train_dataloader(self, *first_step: Any) -> Any:
        return _Timed(super().train_dataloader(*first_step), self.watch)


class _Timed:
    def __init__(self, loader: Any, watch: Stopwatch) -> None:
        self.loader, self.watch = loader, watch

    def __iter__(self) -> Iterator[Tensor]:
        batches = iter(self.loader)
        while True:
            before = self.watch.enter("data")
            batch = next(batches, None)
            self.watch.enter(before)
            if batch is None:
                return
            yield batch


class TimedTask(TokenizerTask):
    """The task with marks where one part of a step ends and the next begins.

    Within the backward pass the marks are the gradients' arrivals: at the quantizer's value (the decoder's part is
    over) and at the latents (the quantizer's is; autograd runs what was recorded later first, so the codebook's
    transform is part of it).
    """

    watch: Stopwatch

    def observe(self, watch: Stopwatch) -> TimedTask:
        """Hang the stopwatch into the tokenizer."""
        self.watch = watch
        parts = {"encoder": self.tokenizer.encoder, "quantizer": self.tokenizer.quantizer}
        for name, module in {**parts, "decoder": self.tokenizer.decoder}.items():
            module.register_forward_pre_hook(self._opens(f"{name}_forward"))
            module.register_forward_hook(self._closes(name))
        update = self.tokenizer.quantizer.update_codebook

        def timed_update(optimizer: Any = None) -> None:
            before = watch.enter("codebook_update")
            update(optimizer)
            watch.enter(before)

        object.__setattr__(self.tokenizer.quantizer, "update_codebook", timed_update)
        return self

    def _opens(self, part: str) -> Any:
        def hook(module: Any, arguments: Any) -> None:
            self.watch.enter(part)

        return hook

    def _closes(self, name: str) -> Any:
        marks = {"encoder": "encoder_backward", "quantizer": "quantizer_backward"}

        def hook(module: Any, arguments: Any, output: Any) -> None:
            self.watch.enter("loop")
            end = output.quantized if name == "quantizer" else output
            if name in marks and end.requires_grad:
                end.register_hook(lambda _: self.watch.enter(marks[name]) and None)

        return hook

    def on_before_backward(self, loss: Tensor) -> None:
        self.watch.enter("decoder_backward")

    def on_after_backward(self) -> None:
        self.watch.enter("optimizer")

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss = super().training_step(*arguments, **named)
        self.watch.enter("callbacks")
        return loss

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        super().on_train_batch_end(*arguments, **named)
        self.watch.end_step()


def measure(
    config: Path, data: str, quantizer: str, codebook_size: int, steps: int, threads: int
) -> tuple[Row, dict[str, Any]]:
    """Medians over the second half of the steps of a run with the logs, checkpoints and pictures of ``gritvq fit``."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    parts = settings["tokenizer"]
    dim = parts["encoder"]["init_args"]["dim"]
    chosen = getattr(presets, quantizer)(dim, codebook_size)
    seed_everything(0, threads)
    watch = Stopwatch()
    images = TimedData(data, **{k: v for k, v in settings.get("data", {}).items() if k != "path"})
    images.watch = watch
    images.setup("fit")
    tokenizer = ImageTokenizer(from_config(parts["encoder"]), chosen, from_config(parts["decoder"]))
    task = TimedTask(tokenizer, **settings.get("task", {})).observe(watch)
    plan = TrainingPlan(max_steps=steps, validate_every=0, checkpoint_every=0)
    with tempfile.TemporaryDirectory() as folder:
        train(task, images, plan, folder=os.path.join(folder, "fit"), progress=False)
    kept = watch.steps[len(watch.steps) // 2 :]

    def median(parts: Sequence[str], relative: bool = False) -> float:
        return percentile(
            [sum(step.get(p, 0.0) for p in parts) / (sum(step.values()) if relative else 1) for step in kept], 0.5
        )

    result = {
        "seconds": median(PARTS),
        **{f"{part}_seconds": median([part]) for part in PARTS},
        "quantizer_share": median(QUANTIZER, relative=True),
        "data_share": median(["data"], relative=True),
        "rounds": len(kept),
    }
    tokens = settings.get("data", {}).get("batch_size", 64) * (images.shape[1] // tokenizer.factor) ** 2
    return Row(tokens, dim, codebook_size), result
