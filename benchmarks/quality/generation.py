"""Image generation: priors on the tokens of several tokenizers. Whose are easier to predict?

    python -m benchmarks.quality.generation --data PATH-TO-CIFAR10 --network PATH-TO-CIFAR10-RESNET56
    python -m benchmarks.quality.generation --data PATH-TO-FASHION-MNIST
    python -m benchmarks.quality.generation --data PATH-TO-FASHION-MNIST --study large --device cuda

For each contender of a study (``generation.yaml``; ``--study`` names another one than "tokenizers") and each seed: a
tokenizer is trained, all training pictures and their mirror images become tokens, a class-conditional prior learns
them, and draws 1,000 pictures of each class, without guidance and with guidance of one or two strengths. Everything is
measured on all 10,000 test pictures and as many samples, or on ``num_pictures`` drawn at random where a study says so:

- rFD: decoded test pictures against the test pictures. gFD: samples against as many training pictures. The floor is
  that of the test pictures against those training pictures. Features are a classifier's, so no distance is an FID.
- class accuracy: of test pictures that the classifier recognizes: decoded ones, and samples.
- nats per token of the test pictures under the prior, and bits per pixel (per position, all color channels together);
  of a masked prior an estimated bound. A contender with ``prior: null`` is measured up to here: it has no prior.

The classifier of Fashion-MNIST is in ``benchmarks/networks``; ``--train-network`` trains it again. Writes
``benchmarks/results/generation_*.csv``, and pictures into ``docs/images``: samples, and decoded test pictures. A run
that is in the results already is not repeated (nor one without a strength of guidance that was added later), those of
another number of steps or other settings are replaced, and stages that are done lie in ``--work``: an interrupted
benchmark goes on where it stopped. Priors are trained in bfloat16 where the processor has instructions for it, and in
float32 elsewhere, which takes three times as long.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from benchmarks.quality.common import HERE, RESULTS, circumstances, hardware, labelled, results_file, some
from benchmarks.quality.pictures import draw_rows, keep_row, kept_row
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from gritvq import Quantizer, priors
from gritvq.cli.settings import combined
from gritvq.images import (
    CIFARResNet,
    ClassAccuracy,
    FeatureVectors,
    FrechetDistance,
    ImageData,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    TokenizerTask,
    evaluate,
    num_parameters,
    to_uint8,
)
from gritvq.priors import Prior, PriorTask, sample_seeds
from gritvq.quantizers import presets
from gritvq.results import read_results, write_results
from gritvq.tokens import TokenLayout
from gritvq.training import TrainingPlan, seed_everything, train
from gritvq.training.optimizer import OptimizerSettings, take_steps

NUM, CLASSES, BATCH = 10_000, 10, 250
FASHION = HERE.parent / "networks" / "fashion-mnist.safetensors"
DOCS = HERE.parents[1] / "docs" / "images"
IDENTITY = ("study", "method", "settings", "codebook_size", "seed")


class FashionClassifier(nn.Module):
    """Five convolutions and a linear layer for 28 x 28 gray pictures; features (B, 96, 7, 7)."""

    name, least_size = "Fashion-MNIST CNN", 28

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 96, 1)):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(96, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """The last feature maps of pictures in [0, 1]."""
        return self.layers((images - 0.2860) / 0.3530)


def train_classifier(data: str, steps: int = 2000) -> None:
    """Train the classifier on shifted and mirrored pictures, and save it."""
    seed_everything(0)
    images, labels = labelled(data, "train")
    network = FashionClassifier()
    optimizer, schedule = OptimizerSettings(lr=2e-3, warmup_steps=100, weight_decay=0.05).optimizer(
        [{"params": list(network.parameters())}], steps
    )

    def losses() -> Iterator[Tensor]:
        for _ in range(steps):
            rows = torch.randint(len(labels), (256,))
            x = F.pad(images[rows].float() / 255, (2,) * 4)
            top, left = torch.randint(5, (2,)).tolist()
            x = x[..., top : top + 28, left : left + 28]
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(3))
            yield F.cross_entropy(network.head(network(x).mean((2, 3))), labels[rows])

    for _ in track(take_steps(losses(), optimizer, schedule, gradient_clip=1.0), "classifier", total=steps):
        pass
    FASHION.parent.mkdir(exist_ok=True)
    save_file({name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}, FASHION)


class Ruler(NamedTuple):
    """What pictures are measured with.

    Attributes:
        network: Features and scores.
        test: Features of the test pictures.
        known: Features of as many training pictures, drawn at random.
        labels: Classes of the test pictures.
        device: Where the network is.
    """

    network: FeatureVectors
    test: Tensor
    known: Tensor
    labels: Tensor
    device: str = "cpu"

    def features(self, images: Tensor) -> Tensor:
        """Of pictures in 8 bits."""
        return torch.cat([self.network(part.to(self.device)).cpu() for part in images.split(BATCH)])

    def distance(self, features: Tensor, reference: Tensor) -> float:
        """Frechet distance."""
        metric = FrechetDistance(features.shape[1])
        metric.update(features, real=False)
        metric.update(reference, real=True)
        return metric.compute()

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of pictures that are recognized."""
        metric, scores = ClassAccuracy(), self.network.scores(features.to(self.device))
        assert scores is not None
        metric.update(scores.cpu(), labels)
        return metric.compute() or 0.0


def classifier_for(network: str | None, device: str = "cpu") -> FeatureVectors:
    """The classifier of CIFAR-10 in a folder, or that of Fashion-MNIST."""
    if network is not None:
        classifier: nn.Module = CIFARResNet(network)
    else:
        classifier = FashionClassifier()
        classifier.load_state_dict({name: t.float() for name, t in load_file(FASHION).items()})
    return FeatureVectors(classifier.to(memory_format=torch.channels_last)).to(device)


def ruler_for(data: str, network: str | None, device: str = "cpu", num: int = NUM) -> Ruler:
    """The classifier of a data set, and features of its pictures."""
    known, _ = some(*labelled(data, "train"), num)
    test, labels = some(*labelled(data, "test"), num)
    bare = Ruler(classifier_for(network, device), test, test, labels, device)
    return bare._replace(test=bare.features(test), known=bare.features(known))


class Tokens(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches of tokens and classes, a function of (seed, step)."""

    def __init__(self, indices: Tensor, labels: Tensor, batch_size: int, seed: int) -> None:
        self.indices, self.labels, self.batch_size, self.seed = indices, labels, batch_size, seed
        self.first_step: Callable[[], int] = int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = self.first_step()
        while True:
            rows = torch.randint(
                len(self.labels),
                (self.batch_size,),
                generator=torch.Generator().manual_seed(self.seed * 10**9 + step),
            )
            yield self.indices[rows].long(), self.labels[rows]
            step += 1

    def train_dataloader(self, first_step: Callable[[], int] = int) -> DataLoader[Any]:
        """Batches from a step on."""
        self.first_step = first_step
        return DataLoader(self, batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        """Nothing: the test comes after the training."""
        return DataLoader(self, batch_size=None)


class Job(NamedTuple):
    """One run.

    Attributes:
        data: Folder of the pictures.
        network: Folder of the classifier; None for that of Fashion-MNIST.
        plan: What all runs share: ``channels`` by data set, ``tokenizer``, ``prior`` with the steps for this one,
            ``guidance``, and ``num_pictures`` where it is not all of the test.
        study: Name of the study.
        method: Name of the contender.
        settings: The contender's: ``preset`` and ``codebook_size`` if they differ, ``task`` of its tokenizer,
            ``prior`` with its own class or arguments, None for no prior; all others are the preset's.
        seed: Seed.
        work: Folder of all runs.
        device: ``"cpu"`` or ``"cuda"``.
    """

    data: str
    network: str | None
    plan: dict[str, Any]
    study: str
    method: str
    settings: dict[str, Any]
    seed: int
    work: Path
    device: str = "cpu"

    @property
    def quantizer(self) -> dict[str, Any]:
        """Arguments of the preset besides its size."""
        return {k: v for k, v in self.settings.items() if k not in ("preset", "codebook_size", "task", "prior")}

    @property
    def words(self) -> str:
        """The contender's settings as text."""
        prior = self.settings.get("prior", {})
        own: dict[str, Any] = {}
        given = self.quantizer | ({"prior": None} if prior is None else prior) | self.settings.get("task", {})
        for name, part in given.items():
            own |= _flat(name, part["init_args"]) if isinstance(part, dict) else {name: part}
        return " ".join(f"{k}={v}" for k, v in own.items()) or "-"

    @property
    def accelerator(self) -> str:
        """What a training plan calls the device."""
        return "cpu" if self.device == "cpu" else "gpu"

    @property
    def precision(self) -> Literal["bf16-mixed", "32-true"]:
        """Of the prior's training: bfloat16 where the device is fast at it."""
        if self.device == "cpu":
            fast = bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))
        else:
            fast = torch.cuda.is_bf16_supported()
        return "bf16-mixed" if fast else "32-true"

    def begin(self) -> None:
        """One thread on the CPU, where several runs share it."""
        if self.device == "cpu":
            torch.set_num_threads(1)

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What its row in the results is known by: name, settings, codes and seed."""
        return self.method, self.words, max(quantizer_of(self).codebook_sizes), self.seed

    @property
    def folders(self) -> tuple[Path, Path]:
        """Where the tokenizer and the prior lie; runs whose tokenizers are made alike share them."""
        preset = self.settings.get("preset", self.method)
        size = self.settings.get("codebook_size", self.plan["codebook_size"])
        made = [preset, size, self.quantizer, self.settings.get("task"), self.plan["tokenizer"], self.seed]
        made += [] if self.device == "cpu" else [self.device]
        begin = f"{Path(self.data).name}-{preset}-{size}-{self.seed}"
        folder = self.work / f"{begin}-{_digest(made)}"
        return folder, folder / f"prior-{_digest([self.plan['prior'], self.settings.get('prior')])}"


def _flat(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a part and of the parts inside, by dotted names."""
    found: dict[str, Any] = {}
    for key, value in arguments.items():
        inside = isinstance(value, dict) and "class_path" in value
        found[f"{name}.{key}"] = value["class_path"].rpartition(".")[2] if inside else value
        found |= _flat(f"{name}.{key}", value.get("init_args", {})) if inside else {}
    return found


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def part_of(description: Any, channels: int) -> Any:
    """What the plan describes by ``class_path`` and ``init_args``; what takes color channels gets those of the data.

    The plan is our own, so that classes that read files are allowed, which ``gritvq.from_config`` refuses.
    """
    if isinstance(description, list):
        return [part_of(each, channels) for each in description]
    if not isinstance(description, dict) or "class_path" not in description:
        return description
    module, _, name = description["class_path"].rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    given = {key: part_of(value, channels) for key, value in description.get("init_args", {}).items()}
    return cls(**({"channels": channels} if "channels" in inspect.signature(cls).parameters else {}) | given)


def quantizer_of(job: Job) -> Quantizer:
    """Its quantizer, untrained."""
    preset = getattr(presets, job.settings.get("preset", job.method))
    size = job.settings.get("codebook_size", job.plan["codebook_size"])
    parts = {name: part_of(part, 0) for name, part in job.quantizer.items()}
    return preset(job.plan["tokenizer"]["dim"], size, **parts)


def tokenizer_of(job: Job) -> ImageTokenizer:
    """The trained tokenizer."""
    folder, own = job.folders[0] / "tokenizer", job.plan["tokenizer"]
    if folder.is_dir():
        return ImageTokenizer.from_pretrained(folder)
    seed_everything(job.seed)
    images = ImageData(job.data, channels=job.plan["channels"][Path(job.data).name], **own["data"])
    quantizer = quantizer_of(job)
    encoder = ImageEncoder(quantizer.input_dim, channels=images.channels, **own["network"])
    decoder = ImageDecoder(quantizer.dim, channels=images.channels, **own["network"])
    tokenizer = ImageTokenizer(encoder, quantizer, decoder)
    task = own["task"] | {name: part_of(part, images.channels) for name, part in job.settings.get("task", {}).items()}
    plan = TrainingPlan(max_steps=own["max_steps"], validate_every=0, accelerator=job.accelerator, seed=job.seed)
    train(TokenizerTask(tokenizer, **task), images, plan, progress=False)
    tokenizer.eval().save_pretrained(folder)
    return tokenizer


def prior_of(job: Job, layout: TokenLayout, indices: Tensor, labels: Tensor) -> Prior:
    """The trained prior."""
    run, own = job.folders[1], job.plan["prior"]
    if (run / "prior").is_dir():
        return Prior.from_pretrained(run / "prior", layout=layout)
    seed_everything(job.seed)
    settings = own["network"] | job.settings.get("prior", {})
    kind = getattr(priors, settings.pop("kind", "AutoregressivePrior"))
    prior = kind(layout, num_classes=CLASSES, **settings)
    plan = TrainingPlan(
        max_steps=own["max_steps"],
        compile=own["compile"],
        precision=job.precision,
        validate_every=0,
        checkpoint_every=500,
        accelerator=job.accelerator,
        seed=job.seed,
    )
    data, last = Tokens(indices, labels, own["batch_size"], job.seed), run / "checkpoints" / "last.ckpt"
    resume = last if last.is_file() else None
    train(PriorTask(prior, **own["task"]), data, plan, folder=run, resume=resume, progress=False)
    return prior.eval()


@torch.no_grad()
def encoded(tokenizer: ImageTokenizer, images: Tensor, device: str = "cpu") -> Tensor:
    """Indices of pictures in 8 bits."""
    return torch.cat([tokenizer.encode(part.to(device).float() / 255).int().cpu() for part in images.split(BATCH)])


@torch.no_grad()
def decoded(tokenizer: ImageTokenizer, indices: Tensor, device: str = "cpu") -> Tensor:
    """Pictures in 8 bits."""
    return torch.cat([to_uint8(tokenizer.decode(part.to(device).long())).cpu() for part in indices.split(BATCH)])


@torch.no_grad()
def nats_per_sample(prior: Prior, indices: Tensor, labels: Tensor) -> float:
    """Mean negative log-probability."""
    total = 0.0
    for part, classes in zip(indices.split(BATCH), labels.split(BATCH), strict=True):
        total -= float(prior.log_prob(part.long(), classes).double().sum())
    return total / len(indices)


def samples(prior: Prior, guidance: float, num: int) -> tuple[Tensor, Tensor]:
    """Indices of as many samples of every class, and the classes; on the CPU."""
    classes = torch.arange(num) % CLASSES
    parts = [
        prior.sample(len(part), part, guidance=guidance, generator=sample_seeds(0, len(part), first=number * BATCH))
        for number, part in enumerate(classes.split(BATCH))
    ]
    return torch.cat(parts).cpu(), classes


def run(job: Job) -> dict[str, Any]:
    """Train and measure."""
    job.begin()
    tokenizer = tokenizer_of(job).to(job.device)
    num = job.plan.get("num_pictures", NUM)
    images, labels = labelled(job.data, "train")
    test, test_labels = some(*labelled(job.data, "test"), num)
    numbers, _ = evaluate(tokenizer, (part.float() / 255 for part in test.split(BATCH)), device=job.device)
    started = time.perf_counter()
    indices = torch.cat([encoded(tokenizer, part, job.device) for part in (images, images.flip(3))])
    speed = len(indices) / (time.perf_counter() - started)
    test_indices = encoded(tokenizer, test, job.device)
    ruler = ruler_for(job.data, job.network, job.device, num)
    found = ruler.features(decoded(tokenizer, test_indices, job.device))
    result = {
        "study": job.study,
        "method": job.method,
        "settings": job.words,
        "codebook_size": max(tokenizer.quantizer.codebook_sizes),
        "seed": job.seed,
        "psnr": numbers["psnr"],
        "usage": numbers["usage"],
        "perplexity": numbers["perplexity"],
        "fixed_bits_per_pixel": numbers["bits_per_pixel"],
        "fd_floor": ruler.distance(ruler.test, ruler.known),
        "rfd": ruler.distance(found, ruler.test),
        "accuracy_real": ruler.accuracy(ruler.test, ruler.labels),
        "accuracy_decoded": ruler.accuracy(found, ruler.labels),
        "encoded_per_second": speed,
    }
    if job.settings.get("prior", {}) is None:
        return result
    side = test.shape[-1] // tokenizer.factor
    prior = prior_of(job, TokenLayout.of(tokenizer.quantizer, (side, side)), indices, labels.repeat(2)).to(job.device)
    nats = nats_per_sample(prior, test_indices, test_labels)
    result |= {
        "nats_per_token": nats / prior.num_tokens,
        "bits_per_pixel": nats / (math.log(2) * test.shape[-1] * test.shape[-2]),
        "prior_parameters": num_parameters(prior),
    }
    first, *others = job.plan["guidance"]
    for name, guidance in {"": 1.0, "_guided": first, **{f"_guided_{value:g}": value for value in others}}.items():
        drawn, classes = samples(prior, guidance, num)
        pictures = decoded(tokenizer, drawn, job.device)
        np.save(job.folders[1] / f"samples{name}.npy", pictures[:80].numpy())
        found = ruler.features(pictures)
        result |= {
            f"gfd{name}": ruler.distance(found, ruler.known),
            f"accuracy{name}": ruler.accuracy(found, classes),
        }
    return result


def prepare(job: Job) -> None:
    """Train the tokenizer of a run, unless that is done."""
    job.begin()
    tokenizer_of(job)


def outcomes(jobs: Sequence[Job], pool: Executor) -> Iterator[tuple[Job, dict[str, Any] | BaseException]]:
    """Results as they come, or the errors in their place.

    Runs that share a tokenizer wait for it, since all of them would write it.
    """
    groups: dict[Path, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.folders[0], []).append(job)
    waiting = {pool.submit(prepare, group[0]): group for group in groups.values()}
    running: dict[Future[dict[str, Any]], Job] = {}
    while waiting or running:
        for future in wait([*waiting, *running], return_when=FIRST_COMPLETED).done:
            error = future.exception()
            if future in running:
                yield running.pop(future), future.result() if error is None else error
                continue
            for job in waiting.pop(future):
                try:
                    if error is not None:
                        raise error
                    running[pool.submit(run, job)] = job
                except Exception as reason:  # the tokenizer's, or that of a pool whose process was killed
                    yield job, reason


def plan_of(content: dict[str, Any], study: str, data: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all runs of a study share, with the prior's steps for these pictures; and the rest of the study."""
    content = dict(content)
    own = dict(content.pop("studies")[study])
    changed = {name: own.pop(name) for name in ("tokenizer", "prior", "guidance", "num_pictures") if name in own}
    plan = combined(content, changed)
    plan["prior"] = {**plan["prior"], "max_steps": plan["prior"]["max_steps"][data]}
    plan["guidance"] = plan["guidance"][data]
    return plan, own


def pictures_of(jobs: Sequence[Job]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Test pictures, one of every class, beside the contenders' samples; and beside what their tokenizers decode.

    Those of a run are kept beside the results, so that a page can be made again when models are gone.
    """
    test, labels = labelled(jobs[0].data, "test", 200)
    test = test[[labels.tolist().index(number) for number in range(CLASSES)]]
    drawn, reconstructed = {"test pictures": test.numpy()}, {"test pictures": test.numpy()}
    for job in jobs:
        if job.method in drawn and job.method in reconstructed:  # with another seed
            continue
        samples, folder = job.folders[1] / "samples_guided.npy", job.folders[0] / "tokenizer"
        own = {
            "samples": RESULTS / "pictures" / f"{job.folders[0].name}-{job.folders[1].name}.png",
            "decoded": RESULTS / "pictures" / f"{job.folders[0].name}.png",
        }
        if samples.is_file():
            keep_row(np.load(samples)[:CLASSES], own["samples"])
        if folder.is_dir():
            tokenizer = ImageTokenizer.from_pretrained(folder)
            keep_row(decoded(tokenizer, encoded(tokenizer, test)).numpy(), own["decoded"])
        for rows, kept in ((drawn, own["samples"]), (reconstructed, own["decoded"])):
            if job.method not in rows and kept.is_file():
                rows[job.method] = kept_row(kept, CLASSES)
    return drawn, reconstructed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10 or Fashion-MNIST as Parquet")
    parser.add_argument("--network", help="folder of the CIFAR-10 classifier")
    parser.add_argument("--plan", type=Path, default=HERE / "generation.yaml", help="studies and budget")
    parser.add_argument("--study", default="tokenizers", help="study of the plan")
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--seeds", nargs="*", type=int, help="instead of the study's")
    parser.add_argument("--work", type=Path, default=Path("runs/generation"), help="folder for models and samples")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where all is trained and measured")
    parser.add_argument("--jobs", type=int, help="runs at once; as many as CPUs, one thread each, or one on a GPU")
    parser.add_argument("--train-network", action="store_true", help="train the classifier of Fashion-MNIST and stop")
    words = parser.parse_args(arguments)
    if words.train_network:
        train_classifier(words.data)
        ruler = ruler_for(words.data, None)
        print(f"{FASHION}: accuracy {ruler.accuracy(ruler.test, ruler.labels):.4f}")
        return
    name = Path(words.data).name
    plan, study = plan_of(yaml.safe_load(words.plan.read_text()), words.study, name)
    if study.get("device", words.device) != words.device:
        parser.error(f"expected --device {study['device']} for the study {words.study}, got {words.device}; give it")
    if words.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device for --device cuda, found none; take one of the studies for a CPU")
    ruler_name = FashionClassifier.name if words.network is None else "CIFAR-10 ResNet-56"
    steps = f"{plan['tokenizer']['max_steps']:,} and {plan['prior']['max_steps']:,} steps"
    steps += f", {plan['num_pictures']:,} pictures" if "num_pictures" in plan else ""
    machine = hardware(words.device)
    about = circumstances(f"python -m benchmarks.quality.generation, {ruler_name} features, {steps}", name)
    about["hardware"] = machine
    path = results_file(RESULTS, "generation", machine)
    key = (words.study, name, about["comparison"])
    done = {
        tuple(r[name] for name in IDENTITY[1:]) for r in _read(path) if (r["study"], r["data"], r["comparison"]) == key
    }
    jobs = [
        Job(words.data, words.network, plan, words.study, method, settings, seed, words.work, words.device)
        for seed in (study["seeds"] if words.seeds is None else words.seeds)
        for method, settings in study["methods"].items()
        if words.methods is None or method in words.methods
    ]
    if not jobs:
        parser.error(f"expected methods of {', '.join(study['methods'])}, got {words.methods}")
    missing = [job for job in jobs if not _is_done(job, done)]
    failed = []
    processes = words.jobs or (max(1, os.cpu_count() or 1) if words.device == "cpu" else 1)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for job, found in track(outcomes(missing, pool), "runs", total=len(missing)):
            if isinstance(found, BaseException):
                failed.append(f"{job.method}, seed {job.seed}: {type(found).__name__}: {found}")
                print(f"failed: {failed[-1]}", file=sys.stderr)
                continue
            others = [
                r
                for r in _read(path)
                if (r["study"], r["data"]) != key[:2]
                or (r["comparison"] == key[2] and (r["method"], r["seed"]) != (job.method, job.seed))
            ]
            write_results(path, [*others, {**found, **about}], about, IDENTITY)
    drawn, reconstructed = pictures_of(jobs)
    begin = f"generation_{words.study}_{name}"
    draw_rows(drawn, DOCS / f"{begin}_{machine}.png")
    draw_rows(reconstructed, DOCS / f"{begin}_decoded_{machine}.png")
    if failed:
        sys.exit(
            "\n  ".join([f"{len(failed)} of {len(missing)} runs failed; the same command tries them again:", *failed])
        )


def _is_done(job: Job, done: set[tuple[Any, ...]]) -> bool:
    try:
        return job.key in done
    except Exception:  # no such quantizer: its run says why, and costs no other one
        return False


def _read(path: Path) -> list[dict[str, Any]]:
    return read_results(path, IDENTITY) if path.exists() else []


if __name__ == "__main__":
    main()
