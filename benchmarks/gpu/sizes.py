"""Time and memory of the shipped configurations for 256 pixels, on random pictures and random tokens.

    python -m benchmarks.gpu.sizes             the first CUDA device
    python -m benchmarks.gpu.sizes --small     tiny networks and pictures on any machine: does it run?

Each configuration is trained for a few steps by the program itself, as it is but for the data, the number of devices
and the start of the discriminator, which takes part from the second step on. The weights of VGG16 are random: time and
memory do not depend on them. Writes ``benchmarks/results/large_*.csv``: the median of the seconds between steps behind
the first five, the peak of the memory that tensors take, and the hours of the whole plan if several devices do not
slow each other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from benchmarks.quality.common import RESULTS, circumstances, hardware
from lightning import Callback
from PIL import Image

from gritvq.cli import main as gritvq
from gritvq.files import write_json
from gritvq.images import ImageTokenizer
from gritvq.results import write_results
from gritvq.tokens import TokenRow, write_tokens

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("images/vqgan-256-16384", "images/vqgan-256-262144", "priors/raster-256-16384")
IDENTITY = ("method", "settings")
UNITS = {"seconds_per_step": "s", "peak_bytes": "bytes", "hours": "h"}
FIRST, PICTURES, CLASSES = 5, 64, 10
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
SMALL: dict[str, Any] = {
    **{
        f"tokenizer.{part}.{name}": value
        for part in ("encoder", "decoder")
        for name, value in {"dim": 8, "width": 8, "num_groups": 4, "hidden_dim": 16, "num_blocks": 1}.items()
    },
    "tokenizer.quantizer.dim": 8,
    "tokenizer.quantizer.codebook_size": 64,
    "task.adversarial.discriminator.width": 8,
    "task.adversarial.discriminator.num_layers": 1,
}
SMALL_PRIOR = {"prior.width": 16, "prior.depth": 1, "prior.num_heads": 2}


class Watch(Callback):
    """Seconds between the ends of steps, and the peak of the memory, into a file."""

    def __init__(self, out: str) -> None:
        self.out, self.ends = Path(out), list[float]()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """A step ends."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write what was found."""
        seconds = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        write_json(self.out, {"seconds": seconds[FIRST:], "peak_bytes": peak})


def make_pictures(side: int) -> None:
    """A folder of smooth random pictures."""
    Path("pictures").mkdir()
    for number in range(PICTURES):
        corners = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(corners).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(f"pictures/{number:02}.png")


def make_vgg(width: int | None) -> None:
    """``vgg.h5``: random weights of VGG16 as they lie in their file; of this width in all layers, if given."""
    import h5py

    generator, layers = np.random.default_rng(0), iter(range(len(CHANNELS) - 1))
    with h5py.File("vgg.h5", "w") as file:
        for block, number in enumerate((2, 2, 3, 3, 3), start=1):
            for place in range(number):
                layer = next(layers)
                inside, outside = CHANNELS[layer], CHANNELS[layer + 1]
                if width is not None:
                    inside, outside = width if layer else 3, width
                key = f"block{block}/layers/conv2d{f'_{place}' if place else ''}/vars"
                scale = (2 / (9 * inside)) ** 0.5
                file[f"{key}/0"] = generator.normal(size=(3, 3, inside, outside), scale=scale).astype(np.float32)
                file[f"{key}/1"] = np.zeros(outside, np.float32)


def make_tokens(tokenizer: ImageTokenizer, side: int) -> None:
    """Random tokens of labelled pictures."""
    draw, grid = torch.Generator().manual_seed(0), side // tokenizer.factor
    own, (size,) = tokenizer.fingerprint(), tokenizer.quantizer.codebook_sizes

    def rows() -> Iterator[TokenRow]:
        for number in range(PICTURES * CLASSES):
            about = {"height": side, "width": side, "label": number % CLASSES, "tokenizer": own}
            yield TokenRow(f"{number}", torch.randint(size, (grid, grid, 1), generator=draw), about)

    write_tokens("tokens.npz", rows())


def measure(name: str, steps: int, batch: int | None, small: bool) -> dict[str, Any]:
    """Train one configuration in the current folder."""
    plan, side = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), 32 if small else 256
    size = (2 if small else plan["data"]["batch_size"]) if batch is None else batch
    is_prior, run = name.startswith("priors"), name.rpartition("/")[2]
    arguments = {"data.batch_size": size, "data.num_validation": 2, "plan.max_steps": steps, "plan.devices": 1}
    arguments |= {"plan.validate_every": 0, "plan.checkpoint_every": steps, "out": run}
    if is_prior:
        arguments |= {"tokenizer": "vqgan-256-16384/tokenizer", "data.train": "tokens.npz"}
        arguments |= SMALL_PRIOR if small else {}
    else:
        arguments |= {"data.path": "pictures", "data.size": side, "data.num_workers": 0 if small else 8}
        arguments |= {"task.adversarial.start": 1, "task.perceptual.features.path": "vgg.h5"}
        arguments |= SMALL if small else {}
    if not torch.cuda.is_available():
        arguments["plan.accelerator"] = "cpu"
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    watch = ["--callbacks+", "benchmarks.gpu.sizes.Watch", "--callbacks.out", f"{run}.json"]
    wing = "prior" if is_prior else "images"
    if code := gritvq(["fit", wing, "--config", str(CONFIGS / f"{name}.yaml"), *words, *watch]):
        raise SystemExit(code)
    found = yaml.safe_load(Path(f"{run}.json").read_text())
    seconds = statistics.median(found["seconds"])
    hours = {} if small else {"hours": plan["plan"]["max_steps"] * seconds / 3600}
    return {
        "method": name,
        "settings": f"{size} per step, {plan['plan']['precision']}" + (", small" if small else ""),
        "seconds_per_step": seconds,
        "samples_per_second": size / seconds,
        "peak_bytes": found["peak_bytes"],
        "steps": len(found["seconds"]),
        "devices": plan["plan"]["devices"],
        **hours,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny networks and pictures")
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES, help="a prior needs the tokenizer first")
    parser.add_argument("--steps", type=int, default=30, help="of each")
    parser.add_argument("--batch", type=int, help="samples per step, instead of those of each configuration")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args(words)
    if not given.small and not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none; --small tries the benchmark without one")
    out, rows, before = given.out.resolve(), list[dict[str, Any]](), Path.cwd()
    out.mkdir(parents=True, exist_ok=True)
    about = circumstances("python -m benchmarks.gpu.sizes, one device", "random pictures and tokens")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            make_pictures(32 if given.small else 256)
            make_vgg(4 if given.small else None)
            for name in given.names:
                if name.startswith("priors"):
                    tokenizer = ImageTokenizer.from_pretrained("vqgan-256-16384/tokenizer")
                    make_tokens(tokenizer, 32 if given.small else 256)
                rows.append(measure(name, given.steps, given.batch, given.small))
                path = out / f"large_{hardware()}_{date.today():%Y%m}.csv"
                write_results(path, rows, about, IDENTITY, UNITS)
        finally:
            os.chdir(before)


if __name__ == "__main__":
    main()
