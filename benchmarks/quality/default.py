"""Is the default the best? Presets with their defaults and with their best known settings, on sixty small problems.

    python -m benchmarks.quality.default --data PATH-TO-CIFAR10 PATH-TO-FASHION-MNIST PATH-TO-AMAZON-BEAUTY ...
    python -m benchmarks.quality.default --data ... --round last

A problem, a cell of the plan (``default.yaml``), is a data set, a pair of networks, a number and a size of codes,
tokens per step, and steps. Data are pictures (CIFAR-10, Fashion-MNIST, the photographs that scikit-image bundles),
embeddings of items, and sentences (of a folder of Multi30k or Brown, as 128 components of latent semantic analysis:
TF-IDF, truncated singular values). Networks are ours, a VQGAN pair with the start of PyTorch's layers, and for vectors
multilayer perceptrons.

Every preset runs with its defaults and with its best known settings, and candidates for the default of ``grit_vq`` run
beside them. The round "choosing" is measured on held-out training data, without the data sets that are ``held_back``;
all choices are made there. The round "last" is measured on test data with other seeds. Of each run:

- ``quality``: PSNR in dB; of vectors ``10 log10(variance / squared error)``.
- ``usage`` of codes, ``uniform_usage`` that as many draws of equally likely codes would show, ``perplexity``, and
  ``entropy_bits`` per token, which an entropy coder that knows the frequencies needs.
- ``rfd`` and ``accuracy``: Frechet distance of decoded pictures from the pictures, and how many of them a classifier
  recognizes, of CIFAR-10 with ``--network`` and of Fashion-MNIST.
- ``nats_per_token`` of a small prior, in a few cells.
- Seconds per step, beside other runs, and growth of the peak memory in training, of a process that had other runs
  before: rough figures.

``regret`` in the tables is the quality of the best preset of a cell, with defaults or settings, minus that of the
method, mean over seeds.
Writes ``benchmarks/results/default_*.csv``. A run that is in the results already is not repeated, so an interrupted
benchmark goes on where it stopped; those of other networks or another rate are replaced.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from benchmarks.quality.common import HERE, RESULTS, circumstances, labelled, results_file
from benchmarks.quality.generation import Ruler, Tokens, classifier_for, encoded, nats_per_sample
from benchmarks.quality.text import documents_of
from benchmarks.report.default import IDENTITY, settings_text
from benchmarks.speed.memory import peak_growth
from rich.progress import track
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from gritvq import CodebookUsage, Quantizer
from gritvq.images import (
    ImageData,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    ReconstructionError,
    TokenizerTask,
    VQGANDecoder,
    VQGANEncoder,
    num_parameters,
    to_uint8,
)
from gritvq.items import RQVAE, ItemDecoder, ItemEncoder
from gritvq.priors import AutoregressivePrior, PriorTask
from gritvq.quantizers import presets
from gritvq.results import read_results, write_results
from gritvq.tokens import TokenLayout
from gritvq.training import TrainingPlan, seed_everything, train

UNITS = {
    **{"quality": "dB", "usage": "share", "uniform_usage": "share", "accuracy": "share", "perplexity": "codes"},
    **{"entropy_bits": "bits", "nats_per_token": "nats", "seconds_per_step": "s", "peak_bytes": "bytes"},
}
PAIRS = {"ours": (ImageEncoder, ImageDecoder), "vqgan": (VQGANEncoder, VQGANDecoder), "mlp": (ItemEncoder, ItemDecoder)}
SHAPES = {"cifar10": (3, 32), "fashion-mnist": (1, 28), "photographs": (3, 32)}  # channels, pixels per side
CLASSIFIED = ("cifar10", "fashion-mnist")
COMPONENTS = 128  # of a sentence


class Cell(NamedTuple):
    """One problem.

    Attributes:
        data: Name of the data set, that of its folder.
        network: Name of the networks.
        codebook_size: Codes K.
        dim: Size D of a latent.
        tokens: Tokens per step; pictures are whole, so there may be a few more.
        steps: Optimizer steps.
        seeds: Number of seeds.
        prior: Whether a prior is trained on the tokens.
    """

    data: str
    network: str
    codebook_size: int
    dim: int
    tokens: int
    steps: int
    seeds: int = 1
    prior: bool = False

    @property
    def name(self) -> str:
        """As in the results."""
        return f"{self.data} {self.network} K={self.codebook_size} D={self.dim} n={self.tokens} steps={self.steps}"


class Job(NamedTuple):
    """One run.

    Attributes:
        cell: The problem.
        kind: ``"default"``, ``"tuned"`` or ``"candidate"``.
        method: Name of the preset, or of the candidate.
        settings: Arguments of the preset, and ``preset`` if its name differs.
        seed: Seed.
        split: What is measured: ``"validation"`` or ``"test"``.
        plan: All of the plan.
        folder: Of the data; None for the photographs.
        network: Folder of the classifier of CIFAR-10.
    """

    cell: Cell
    kind: str
    method: str
    settings: dict[str, Any]
    seed: int
    split: str
    plan: dict[str, Any]
    folder: str | None
    network: str | None = None

    @property
    def words(self) -> str:
        """The settings as text."""
        return settings_text(self.settings)

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What its row is known by within a round."""
        return self.cell.name, self.kind, self.method, self.words, self.seed

    @property
    def classifier(self) -> tuple[str, str | None] | None:
        """Folders of the data and of the classifier; None where there is no classifier for the data."""
        if self.folder is None or self.cell.data not in CLASSIFIED:
            return None
        needed = self.cell.data == "cifar10"
        return None if needed and self.network is None else (self.folder, self.network if needed else None)

    def quantizer(self) -> Quantizer:
        """The quantizer before training."""
        settings = {name: value for name, value in self.settings.items() if name != "preset"}
        preset = getattr(presets, self.settings.get("preset", self.method))
        return preset(self.cell.dim, self.cell.codebook_size, **settings)

    def pair(self, quantizer: Quantizer, **data: int) -> tuple[Any, Any]:
        """Encoder and decoder before training."""
        encoder, decoder = PAIRS[self.cell.network]
        settings = {**self.plan["networks"][self.cell.network], **data}
        if self.cell.network == "mlp":
            return encoder(dim=quantizer.input_dim, **settings), decoder(dim=quantizer.dim, **settings)
        return encoder(quantizer.input_dim, **settings), decoder(quantizer.dim, **settings)


# --- vectors ----------------------------------------------------------------------------------------------------------


@functools.cache
def vectors_of(folder: str, number: int) -> dict[str, Tensor]:
    """At most so many vectors of a data set, shuffled; a tenth is for validation and a tenth for the test."""
    generator = np.random.default_rng(0)
    if (Path(folder) / "item_embeddings.npy").is_file():
        rows = np.load(Path(folder) / "item_embeddings.npy").astype(np.float32)
        rows = rows[generator.permutation(len(rows))[:number]]
    else:
        sentences = sorted({sentence for each in documents_of(folder)["train"] for sentence in each})
        chosen = [sentences[n] for n in generator.permutation(len(sentences))[:number]]
        weights = TfidfVectorizer(min_df=2, sublinear_tf=True).fit_transform(chosen)
        rows = TruncatedSVD(COMPONENTS, random_state=0).fit_transform(weights).astype(np.float32)
    held = len(rows) // 10
    parts = {"validation": rows[:held], "test": rows[held : 2 * held], "train": rows[2 * held :]}
    return {name: torch.from_numpy(part.copy()) for name, part in parts.items()}


def of_vectors(job: Job) -> dict[str, float]:
    """Train on vectors, and measure."""
    assert job.folder is not None
    parts = vectors_of(job.folder, job.plan["num_vectors"])
    seed_everything(job.seed, 1)
    quantizer, rows = job.quantizer(), parts[job.split]
    encoder, decoder = job.pair(quantizer, input_dim=rows.shape[1])
    budget = {"steps": job.cell.steps, "batch_size": job.cell.tokens, "lr": job.plan["task"]["lr"]}
    tokenizer = RQVAE(quantizer, encoder=encoder, decoder=decoder, seed=job.seed, **budget)
    growth, started = peak_growth(), time.perf_counter()
    tokenizer.fit(parts["train"])
    seconds, peak = time.perf_counter() - started, growth()
    codes = tokenizer.encode(rows)
    error = (tokenizer.decode(codes) - rows).double().square().mean()
    variance = (rows - parts["train"].mean(0)).double().square().mean()
    return {
        "quality": 10 * math.log10(float(variance / error)),
        **of_codes(quantizer, [codes]),
        "parameters": num_parameters(tokenizer),
        "seconds_per_step": seconds / job.cell.steps,
        "peak_bytes": peak,
    }


def of_codes(quantizer: Quantizer, indices: Sequence[Tensor]) -> dict[str, float]:
    """How codes are used."""
    used = CodebookUsage(quantizer.codebook_sizes)
    for part in indices:
        used.update(part)
    found = used.compute()
    bits = 0.0
    for counts in used.histograms():
        values = (counts.coalesce().values() if counts.is_sparse else counts).double()
        shares = values[values > 0] / values.sum()
        bits -= float((shares * shares.log2()).sum())
    return {name: found[name] for name in ("usage", "uniform_usage", "perplexity")} | {"entropy_bits": bits}


# --- pictures ---------------------------------------------------------------------------------------------------------


@functools.cache
def judge(folder: str, network: str | None, split: str, number: int) -> Ruler:
    """The classifier of a data set, and features of the pictures that are measured."""
    images, labels = labelled_part(folder, split, number)
    bare = Ruler(classifier_for(network), images, images, labels)
    features = bare.features(images)
    return bare._replace(test=features, known=features)


def labelled_part(folder: str, split: str, number: int) -> tuple[Tensor, Tensor]:
    """Pictures and classes of a split; for validation the last pictures of the training part, as :class:`ImageData`."""
    images, labels = labelled(folder, "test") if split == "test" else labelled(folder, "train")
    return (images[:number], labels[:number]) if split == "test" else (images[-number:], labels[-number:])


def image_data(job: Job) -> ImageData:
    """Pictures of a job."""
    channels, side = SHAPES[job.cell.data]
    per_picture = (side // 4) ** 2  # both pairs of networks make one token of 4 x 4 pixels
    return ImageData(
        job.folder or job.cell.data,
        size=side,
        channels=channels,
        batch_size=max(1, round(job.cell.tokens / per_picture)),
        num_validation=job.plan["num_measured"],
        seed=job.seed,
    )


def measured_pictures(job: Job, data: ImageData) -> Iterator[Tensor]:
    """Batches of the split that is measured."""
    left = job.plan["num_measured"]
    for batch in data.test_dataloader() if job.split == "test" else data.val_dataloader():
        yield batch[:left]
        left -= len(batch)
        if left <= 0:
            return


def of_pictures(job: Job) -> dict[str, float]:
    """Train on pictures, and measure."""
    seed_everything(job.seed, 1)
    data, quantizer = image_data(job), job.quantizer()
    encoder, decoder = job.pair(quantizer, channels=data.channels)
    tokenizer = ImageTokenizer(encoder, quantizer, decoder)
    task = TokenizerTask(tokenizer, **job.plan["task"])
    plan = TrainingPlan(max_steps=job.cell.steps, validate_every=0, accelerator="cpu", seed=job.seed)
    growth, started = peak_growth(), time.perf_counter()
    train(task, data, plan, progress=False)
    seconds, peak = time.perf_counter() - started, growth()
    tokenizer.eval()
    folded = ImageTokenizer(tokenizer.encoder, quantizer.fold(), tokenizer.decoder)
    error, indices, decoded = ReconstructionError(), [], []
    with torch.no_grad():
        for images in measured_pictures(job, data):
            indices.append(folded.encode(images))
            decoded.append(folded.decode(indices[-1]))
            error.update(decoded[-1], images)
    found = {"quality": error.compute()["psnr"], **of_codes(quantizer, indices)}
    if job.classifier:
        pictures = to_uint8(torch.cat(decoded))
        ruler = judge(*job.classifier, job.split, len(pictures))
        features = ruler.features(pictures)
        found |= {"rfd": ruler.distance(features, ruler.test), "accuracy": ruler.accuracy(features, ruler.labels)}
    if job.cell.prior:
        found["nats_per_token"] = of_tokens(job, folded, torch.cat(indices))
    found |= {"parameters": num_parameters(tokenizer), "seconds_per_step": seconds / job.cell.steps}
    return {**found, "peak_bytes": peak}


def of_tokens(job: Job, tokenizer: ImageTokenizer, indices: Tensor) -> float:
    """Nats per token of the measured pictures under a prior of those of training pictures."""
    assert job.folder is not None
    own = job.plan["prior"]
    images, labels = labelled(job.folder, "train", own["num_pictures"])
    _, known = labelled_part(job.folder, job.split, len(indices))
    layout = TokenLayout.of(tokenizer.quantizer, tuple(indices.shape[1:3]))
    prior = AutoregressivePrior(layout, num_classes=10, **own["network"])
    plan = TrainingPlan(max_steps=own["max_steps"], validate_every=0, accelerator="cpu", seed=job.seed)
    tokens = Tokens(encoded(tokenizer, images), labels, own["batch_size"], job.seed)
    train(PriorTask(prior, **own["task"]), tokens, plan, progress=False)
    return nats_per_sample(prior.eval(), indices, known) / prior.num_tokens


# --- runs -------------------------------------------------------------------------------------------------------------


def run(job: Job) -> dict[str, Any]:
    """Train and measure with one thread."""
    torch.set_num_threads(1)
    numbers = of_vectors(job) if job.cell.network == "mlp" else of_pictures(job)
    told = (job.cell.name, job.kind, job.method, job.words, job.cell.codebook_size, job.seed)
    return {**dict(zip(IDENTITY[1:], told, strict=True)), **numbers, "data": job.cell.data}


def methods_of(plan: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind, name and settings of all that is compared."""
    yield from (("default", name, {}) for name in plan["defaults"])
    yield from (("tuned", name, settings) for name, settings in plan["tuned"].items())
    yield from (("candidate", name, settings) for name, settings in plan["candidates"].items())


def jobs_of(plan: dict[str, Any], name: str, folders: dict[str, str], network: str | None) -> list[Job]:
    """All runs of a round on the data sets that are at hand, cell by cell."""
    own, found = plan["rounds"][name], []
    for cell in (Cell(**each) for each in plan["cells"]):
        if cell.data in folders or cell.data == "photographs":
            if name == "choosing" and cell.data in plan["held_back"]:
                continue
            for seed in own["seeds"][: cell.seeds]:
                found += [
                    Job(cell, kind, method, settings, seed, own["split"], plan, folders.get(cell.data), network)
                    for kind, method, settings in methods_of(plan)
                ]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], help="folders of data sets; cells of others are left out")
    parser.add_argument("--network", help="folder of the CIFAR-10 classifier")
    parser.add_argument("--plan", type=Path, default=HERE / "default.yaml", help="cells, methods, budget")
    parser.add_argument("--round", default="choosing", help="of the plan")
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--cells", nargs="*", default=[], help="only cells whose names have one of these words")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at once, one thread each")
    words = parser.parse_args(arguments)
    plan = yaml.safe_load(words.plan.read_text())
    if words.round not in plan["rounds"]:
        parser.error(f"expected a round of {', '.join(plan['rounds'])}, got {words.round}")
    shared = json.dumps({name: plan[name] for name in ("networks", "task", "num_measured", "num_vectors", "prior")})
    digest = hashlib.sha256(shared.encode()).hexdigest()[:6]
    about = circumstances(f"python -m benchmarks.quality.default, networks {digest}", "")
    path = results_file(words.results, "default")
    jobs = jobs_of(plan, words.round, {Path(each).name: each for each in words.data}, words.network)
    if words.methods is not None:
        jobs = [job for job in jobs if job.method in words.methods]
    if words.cells:
        jobs = [job for job in jobs if any(word in job.cell.name for word in words.cells)]
    if not jobs:
        parser.error("expected data, methods and cells of the plan, got none; see its file")
    results = [row for row in _read(path) if row["comparison"] == about["comparison"]]
    own = {key: row for key, row in _keyed(results) if row["round"] == words.round}
    missing, failed = [job for job in jobs if not _is_done(job, own)], list[str]()
    asked = {job.key for job in missing}
    results = [row for key, row in _keyed(results) if row["round"] != words.round or key not in asked]
    with ProcessPoolExecutor(words.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run, job): job for job in missing}
        for future in track(as_completed(waiting), "runs", total=len(missing)):
            job = waiting.pop(future)
            if (error := future.exception()) is not None:
                failed.append(f"{job.cell.name}, {job.method}, seed {job.seed}: {type(error).__name__}: {error}")
                print(f"failed: {failed[-1]}", file=sys.stderr)
                continue
            results.append({**about, "round": words.round, **future.result()})
            write_results(path, results, about, IDENTITY, UNITS)
    if failed:
        sys.exit(
            "\n  ".join([f"{len(failed)} of {len(missing)} runs failed; the same command tries them again:", *failed])
        )


def _is_done(job: Job, rows: dict[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Whether there is a row of it, with what a classifier says if there is one now."""
    return job.key in rows and (job.classifier is None or "rfd" in rows[job.key])


def _keyed(rows: Sequence[dict[str, Any]]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    return [(tuple(row[name] for name in (*IDENTITY[1:5], "seed")), row) for row in rows]


def _read(path: Path) -> list[dict[str, Any]]:
    return read_results(path, IDENTITY) if path.exists() else []


if __name__ == "__main__":
    main()
