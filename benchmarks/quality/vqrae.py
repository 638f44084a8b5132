"""VQRAE in small on CIFAR-10: how wide codes have to be, and what training the encoder costs its features.

    python -m benchmarks.quality.vqrae --data PATH-TO-CIFAR10

For every seed a vision transformer of width 64 (8 x 8 pixels per token) first learns to classify the training images.
Stage 1: it is frozen, and a quantizer and a ViT decoder learn, with codes of 8, 32, 64 and 96 numbers. Stage 2: from
the widest of these the encoder learns too, with the distillation weights 0, 1 and 10. Reported on 5,000 test images:
PSNR, usage and perplexity; the accuracy of a linear probe, before and after (logistic regression on the mean of the
features before quantization, fitted to 5,000 training images); and how far the features moved, over their variance.

Writes ``benchmarks/results/vqrae_*.csv``. Runs that are in it already are not repeated; delete the file to start over.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.quality.common import RESULTS, circumstances, finished, labelled, results_file
from torch import Tensor, nn

from gritvq.images import (
    FoundationEncoder,
    ImageData,
    ImageTokenizer,
    SelfDistillation,
    TokenizerTask,
    ViTDecoder,
    evaluate,
    vqrae_quantizer,
)
from gritvq.results import read_results, write_results
from gritvq.training import OptimizerSettings, TrainingPlan, seed_everything, train
from gritvq.training.optimizer import take_steps

WIDTH, CODES, NUM_PROBED = 64, 1024, 5000
CODE_WIDTHS, WEIGHTS = (8, 32, 64, 96), (0.0, 1.0, 10.0)
MODEL = dict(hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8)
STEPS = {"classifier": 1500, "stage 1": 400, "stage 2": 400}


def classifier(pictures: tuple[Tensor, Tensor], seed: int, steps: int) -> FoundationEncoder:
    """An encoder that has learned to classify."""
    seed_everything(seed)
    encoder, head = FoundationEncoder("dinov2", MODEL, trainable=True), nn.Linear(WIDTH, 10)
    settings = OptimizerSettings(lr=1e-3, warmup_steps=100, weight_decay=0.05, gradient_clip=1.0)
    weights = [each for part in (encoder, head) for each in part.parameters() if each.requires_grad]
    optimizer, schedule = settings.optimizer([{"params": weights}], steps)
    images, labels = pictures

    def losses() -> Iterator[Tensor]:
        for _ in range(steps):
            chosen = torch.randint(len(labels), (128,))
            x = images[chosen].float() / 255
            x = torch.where(torch.rand(128, 1, 1, 1) < 0.5, x, x.flip(3))
            yield F.cross_entropy(head(encoder(x).mean((1, 2))), labels[chosen])

    for _ in take_steps(losses(), optimizer, schedule, gradient_clip=settings.gradient_clip):
        pass
    return encoder.eval()


@torch.no_grad()
def features(encoder: nn.Module, images: Tensor) -> Tensor:
    """Features before quantization, (n, h, w, D)."""
    return torch.cat([encoder(part.float() / 255) for part in images.split(256)])


def probe(encoder: nn.Module, known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> float:
    """Accuracy of a logistic regression on standardized mean features; converged."""
    encoder.eval()
    x, y = (features(encoder, images).mean((1, 2)).double() for images in (known[0], asked[0]))
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, y = (x - mean) / std, (y - mean) / std
    weight = torch.zeros(x.shape[1], 10, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, known[1]) + 1e-4 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return float(((y @ weight + bias).argmax(1) == asked[1]).double().mean())


def stage(
    encoder: FoundationEncoder,
    code_width: int,
    data: ImageData,
    seed: int,
    steps: int,
    start: ImageTokenizer | None,
    weight: float,
) -> ImageTokenizer:
    """A tokenizer after stage 1, or after stage 2 where one to start from is given."""
    seed_everything(seed)
    own = FoundationEncoder("dinov2", MODEL, trainable=start is not None)
    own.load_state_dict(encoder.state_dict())
    decoder = ViTDecoder(WIDTH, width=WIDTH, factor=8, depth=2, num_heads=4)
    tokenizer = ImageTokenizer(own, vqrae_quantizer(WIDTH, CODES, code_dim=code_width, lr_scale=10), decoder)
    distillation = SelfDistillation(weight) if start is not None else None
    task = TokenizerTask(tokenizer, lr=1e-3 if start is None else 3e-4, distillation=distillation)
    if start is not None:
        task.start_from(start)
    train(task, data, TrainingPlan(max_steps=steps, validate_every=0, accelerator="cpu", seed=seed), progress=False)
    return tokenizer.eval()


def runs(folder: Path, seed: int, missing: set[str], steps: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Results as they come."""
    data = ImageData(str(folder), batch_size=64)
    data.setup("fit")
    known, asked = labelled(folder, "train", NUM_PROBED), labelled(folder, "test", NUM_PROBED)
    encoder = classifier(labelled(folder, "train"), seed, steps["classifier"])
    before = probe(encoder, known, asked)
    old = features(encoder, asked[0])

    def result(settings: str, tokenizer: ImageTokenizer) -> dict[str, Any]:
        numbers, _ = evaluate(tokenizer, (part.float() / 255 for part in asked[0].split(64)))
        moved = float((features(tokenizer.encoder, asked[0]) - old).square().mean() / old.var((0, 1, 2)).mean())
        return {
            **{
                "method": "vqrae",
                "preset": "vqrae_quantizer",
                "settings": settings,
                "codebook_size": CODES,
                "seed": seed,
            },
            **{metric: numbers[metric] for metric in ("psnr", "usage", "perplexity")},
            "probe_before": before,
            "probe": probe(tokenizer.encoder, known, asked) if moved else before,
            "feature_shift": moved,
        }

    first: ImageTokenizer | None = None
    for width in CODE_WIDTHS:
        if name_of(width) in missing or (
            width == CODE_WIDTHS[-1] and any(name_of(width, w) in missing for w in WEIGHTS)
        ):
            first = stage(encoder, width, data, seed, steps["stage 1"], None, 0.0)
            if name_of(width) in missing:
                yield result(name_of(width), first)
    for weight in WEIGHTS:
        if name_of(CODE_WIDTHS[-1], weight) in missing:
            second = stage(encoder, CODE_WIDTHS[-1], data, seed, steps["stage 2"], copy.deepcopy(first), weight)
            yield result(name_of(CODE_WIDTHS[-1], weight), second)


def name_of(code_width: int, weight: float | None = None) -> str:
    """What tells a run apart from others of its seed."""
    return f"stage={1 if weight is None else 2} code_dim={code_width}" + (
        "" if weight is None else f" distill={weight:g}"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None, help="of every training, for a quick look")
    parser.add_argument("--out", type=Path, default=None, help="CSV to write, that of the results if not given")
    arguments = parser.parse_args(words)
    if arguments.steps and arguments.out is None:
        parser.error("expected --out with --steps, got none; a quick look is no result: name another file for it")
    out = arguments.out or results_file(RESULTS, "vqrae")
    steps = dict.fromkeys(STEPS, arguments.steps) if arguments.steps else STEPS
    about = circumstances("python -m benchmarks.quality.vqrae", arguments.data.name)
    done = read_results(out) if out.exists() else []
    names = [*(name_of(width) for width in CODE_WIDTHS), *(name_of(CODE_WIDTHS[-1], weight) for weight in WEIGHTS)]
    for seed in arguments.seeds:
        known = finished(done, about["data"], ("settings", "seed"))
        missing = {name for name in names if (name, str(seed)) not in known}
        for found in runs(arguments.data, seed, missing, steps) if missing else ():
            done.append({**found, **about})
            write_results(out, done, about)
            print(found, flush=True)


if __name__ == "__main__":
    main()
