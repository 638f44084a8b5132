"""Models of text with a latent per sentence, against each other and against tokenizers with a code in its place.

    python -m benchmarks.quality.text --data PATH-TO-MULTI30K
    python -m benchmarks.quality.text --data PATH-TO-BROWN

The files say which data they are. Multi30k: ``train.1.en`` to ``train.5.en``, and likewise ``val`` and ``test_2016``;
line i of the five is a document of five sentences, whose order is shuffled, the same way in every run. Brown:
``brown.txt``, in which ``# name`` begins a document and every other line is a sentence; a tenth of the documents is for
validation and a tenth for the test, at random, the same in every run.

Each contender of the plan (``text.yaml``) is trained with each seed, and measured on all test documents:

- :func:`gritvq.text.evaluate_text`; its documentation says what the figures are.
- Of a tokenizer also what its codes cost under a prior, an autoregressive one trained on the codes of the training
  documents: ``prior_bits_per_segment``, and ``nats_per_token_with_prior`` of codes and text together.
- ``distinct_1``, ``distinct_2``, ``self_bleu`` and ``words`` per text of 200 texts that it writes,
  :func:`gritvq.text.text_diversity`, and, called ``sentence_...``, of 200 texts of one sentence: longer texts have
  smaller figures whoever writes them. A tokenizer decodes codes that its prior draws.
- Parameters, and the median seconds of a step.

The study "recurrence" has the seconds of all states at once and of one after the other, given W: forward, and backward
from a gradient of the states. A loss, which both would have alike, is no part of it.

Writes ``benchmarks/results/text_*.csv``, and texts into ``docs/text-samples.md``; ``python -m benchmarks.report`` puts
both into the documentation. A run that is in the results already is not repeated, those of another number of steps are
replaced, and what is trained lies in ``--work``: an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from benchmarks.quality.common import HERE, RESULTS, circumstances, results_file
from benchmarks.speed.measure import alternating, percentile
from lightning import Callback
from rich.progress import track
from torch import Tensor

from gritvq import LinearSchedule
from gritvq import text as models
from gritvq.files import replacing, write_json
from gritvq.images import num_parameters
from gritvq.priors import AutoregressivePrior, Prior, PriorTask, TokenData, sample_seeds
from gritvq.quantizers import presets
from gritvq.results import read_results, write_results
from gritvq.text import (
    Corpus,
    IdempotentRecurrence,
    Segmentation,
    Subwords,
    TextData,
    TextFormat,
    TextTask,
    TextTokenizer,
    TextTokenizerTask,
    TraceModel,
    Writing,
    evaluate_text,
    segment_tokenizer,
    text_diversity,
)
from gritvq.tokens import TokenLayout, TokenRow, write_tokens
from gritvq.training import RunFolder, TrainingPlan, seed_everything, train

PAGE = HERE.parents[1] / "docs" / "text-samples.md"
IDENTITY = ("study", "method", "settings", "codebook_size", "seed")
UNITS = {
    **dict.fromkeys(("seconds_per_step", "seconds", "seconds_p20", "seconds_p80"), "s"),
    **dict.fromkeys(("kl_per_segment", "least_kl_per_segment", "mutual_information_per_segment"), "nats"),
    **dict.fromkeys(("nats_per_token", "elbo_nats_per_token", "nats_per_token_given_codes"), "nats"),
    "nats_per_token_with_prior": "nats",
    **dict.fromkeys(("usage", "token_accuracy", "token_accuracy_of_prior_means"), "share"),
    **{"bits_per_segment": "bits", "prior_bits_per_segment": "bits", "perplexity_of_codes": "codes"},
}
SPLITS = {"train": "train", "validation": "val", "test": "test_2016"}  # ours, and those of Multi30k
SHOWN, SENTENCES, BATCH = 3, 5, 32
QUOTED = ("brown",)  # data that the page may quote; captions of Multi30k are for research use only
_NOT_MODELS = ("num_samples", "writing", "recurrence", "layouts", "prior")  # what a trained model does not depend on
HEAD = """# Texts of the models

This page is written by `python -m benchmarks.quality.text`. All texts are the models' own but for the originals, two
pieces of test documents that each of them reconstructs: its most probable tokens first, then two draws. Texts between
the two: latents in equal steps from one to the other, or of a tokenizer, more and more codes of the other. Captions of
Multi30k are not quoted here, and so neither are their reconstructions.
"""


# --- data -------------------------------------------------------------------------------------------------------------


def layout_of(data: str | Path) -> str:
    """Which data a folder has.

    Raises:
        ValueError: If it has neither.
    """
    folder = Path(data)
    if (folder / "brown.txt").is_file():
        return "brown"
    if all((folder / f"{name}.{n}.en").is_file() for name in SPLITS.values() for n in range(1, SENTENCES + 1)):
        return "multi30k"
    raise ValueError(f"expected brown.txt or the files train.1.en to test_2016.5.en, got neither in {folder}")


def documents_of(data: str | Path) -> dict[str, list[list[str]]]:
    """Documents of each split, each a list of sentences."""
    return _brown(Path(data)) if layout_of(data) == "brown" else _multi30k(Path(data))


def _multi30k(folder: Path) -> dict[str, list[list[str]]]:
    found = {}
    for place, (split, name) in enumerate(SPLITS.items()):
        files = [(folder / f"{name}.{n}.en").read_text("utf-8").strip("\n") for n in range(1, SENTENCES + 1)]
        documents = list(zip(*(file.split("\n") for file in files), strict=True))
        orders = (np.random.default_rng([0, place, n]).permutation(SENTENCES) for n in range(len(documents)))
        found[split] = [[own[n].strip() for n in order] for own, order in zip(documents, orders, strict=True)]
    return found


def _brown(folder: Path) -> dict[str, list[list[str]]]:
    documents = list[list[str]]()
    for line in (folder / "brown.txt").read_text("utf-8").split("\n"):
        if line.startswith("# "):
            documents.append([])
        elif line.strip():
            documents[-1].append(line.strip())
    held = max(1, len(documents) // 10)
    order = np.random.default_rng(0).permutation(len(documents)).tolist()
    parts = {"validation": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    return {split: [documents[n] for n in sorted(parts[split])] for split in SPLITS}


def prepared(data: str | Path, work: Path, vocabulary: int) -> Path:
    """A folder with ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``vocabulary.json``."""
    folder = work / f"{Path(data).name}-{vocabulary}"
    if not (folder / "vocabulary.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        documents = documents_of(data)
        for split, own in documents.items():
            with replacing(folder / f"{split}.jsonl") as scratch, scratch.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": each}, ensure_ascii=False) + "\n" for each in own)
        subwords = Subwords.train((sentence for each in documents["train"] for sentence in each), vocabulary)
        with replacing(folder / "vocabulary.json") as scratch:
            subwords.save(scratch)
    return folder


# --- runs -------------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """One run.

    Attributes:
        files: Folder of :func:`prepared`.
        layout: Which data it is of.
        plan: What all runs share.
        study: Name of the study.
        method: Name of the contender.
        settings: The contender's: ``model`` if its name differs, ``task``; all others are arguments of the preset.
        seed: Seed.
        work: Folder of all runs.
    """

    files: Path
    layout: str
    plan: dict[str, Any]
    study: str
    method: str
    settings: dict[str, Any]
    seed: int
    work: Path

    @property
    def model(self) -> str:
        """Name of the model's function, or of the tokenizer's preset."""
        return str(self.settings.get("model", self.method))

    @property
    def own(self) -> dict[str, Any]:
        """Arguments of the model or preset."""
        return {name: value for name, value in self.settings.items() if name not in ("model", "task")}

    @property
    def words(self) -> str:
        """The contender's settings as text."""
        return " ".join(f"{k}={v}" for k, v in (self.own | self.settings.get("task", {})).items()) or "-"

    @property
    def folder(self) -> Path:
        """Where the run lies; a plan that trains otherwise has another one."""
        shared = {k: v for k, v in self.plan.items() if k not in _NOT_MODELS}
        made = [self.settings, shared, self.plan["layouts"][self.layout], self.seed]
        name = re.sub(r"\W+", "-", self.method)
        return self.work / f"{self.files.name}-{name}-{self.seed}-{_digest(made)}"

    @property
    def segmentation(self) -> Segmentation:
        """How documents are cut."""
        return Segmentation(**self.plan["layouts"][self.layout]["segmentation"])

    def writing(self, **settings: Any) -> Writing:
        """How this run's model writes."""
        cut = self.segmentation
        return Writing(**settings, max_tokens=cut.max_tokens, max_segments=cut.max_segments)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


class Watch(Callback):
    """Seconds between the ends of steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.before: float | None = None

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """A step ends."""
        now = time.perf_counter()
        if self.before is not None:
            self.seconds.append(now - self.before)
        self.before = now


def task_of(job: Job, vocab_size: int) -> TextTask | TextTokenizerTask:
    """The model before training, in its task."""
    plan, own = job.plan, job.own
    network = {**plan["network"], "length": job.segmentation.max_length}
    settings = {**plan["task"], **job.settings.get("task", {})}
    if hasattr(presets, job.model):
        quantizer = getattr(presets, job.model)(plan["dim"], plan["codebook_size"], **own)
        return TextTokenizerTask(segment_tokenizer(quantizer, vocab_size, **network), **settings)
    if job.model != "language_model":
        own = {"dim": plan["dim"], **own}
    annealing = LinearSchedule(0.0, 1.0, num_steps=max(1, round(plan["annealing"] * plan["max_steps"])))
    return TextTask(getattr(models, job.model)(vocab_size, **network, **own), kl_weight=annealing, **settings)


def trained(job: Job) -> tuple[TraceModel | TextTokenizer, float]:
    """The model, and the median seconds of its steps; trained now unless it was before."""
    told, is_tokenizer = job.folder / "speed.json", hasattr(presets, job.model)
    if not told.is_file():
        plan, own = job.plan, job.plan["layouts"][job.layout]
        data = TextData(
            str(job.files / "train.jsonl"),
            validation=str(job.files / "validation.jsonl"),
            segmentation=job.segmentation,
            vocabulary=str(job.files / "vocabulary.json"),
            batch_size=own["batch_size"],
            num_validation=plan["num_validation"],
            seed=job.seed,
        )
        seed_everything(job.seed)
        task = task_of(job, data.format.vocab_size)
        task.check_data(data)
        last, watch = job.folder / "checkpoints" / "last.ckpt", Watch()
        training = TrainingPlan(max_steps=plan["max_steps"], accelerator="cpu", seed=job.seed)
        resume = last if last.is_file() else None
        train(task, data, training, folder=job.folder, resume=resume, progress=False, callbacks=[watch])
        seconds = statistics.median(watch.seconds) if watch.seconds else math.nan
        write_json(told, {"seconds_per_step": seconds})
    seconds = json.loads(told.read_text())["seconds_per_step"]
    if is_tokenizer:
        return TextTokenizer.from_pretrained(job.folder / "tokenizer"), seconds
    return TraceModel.from_pretrained(job.folder / "text-model"), seconds


def prior_of(job: Job, tokenizer: TextTokenizer) -> Prior:
    """A prior of the codes of the training documents; trained now unless it was before."""
    own, length = job.plan["prior"], job.segmentation.max_segments
    run = RunFolder(job.folder / f"codes-{_digest(own)}")
    layout = TokenLayout.of(tokenizer.quantizer, (length,), ragged=True)
    if run.prior.is_dir():
        return Prior.from_pretrained(run.prior, layout=layout)
    documents = list(Corpus(str(job.files / "train.jsonl")))
    codes = (row for row in tokenizer.fold().encode(documents) if len(row))
    tokens = write_tokens(job.folder / "tokens.npz", (TokenRow(f"{n}", row) for n, row in enumerate(codes)))
    data = TokenData(tokens, batch_size=own["batch_size"], label=None, length=length, seed=job.seed)
    seed_everything(job.seed)
    prior = AutoregressivePrior(layout, **own["network"])
    plan = TrainingPlan(max_steps=own["max_steps"], validate_every=0, accelerator="cpu", seed=job.seed)
    train(PriorTask(prior, **own["task"]), data, plan, folder=run.path, progress=False)
    return prior.eval()


@torch.no_grad()
def costs_of_codes(prior: Prior, tokenizer: TextTokenizer, form: TextFormat, rows: list[list[int]]) -> float:
    """Nats of the codes of all rows under the prior."""
    nats, (length,) = 0.0, prior.layout.shape
    for start in range(0, len(rows), BATCH):
        batch = form.batch_of(rows[start : start + BATCH])
        codes = tokenizer.quantizer.encode(tokenizer.encoder(batch), batch.present)
        nats -= float(prior.log_prob(F.pad(codes, (0, 0, 0, length - codes.shape[1]), value=-1)).double().sum())
    return nats


def test_rows(job: Job, form: TextFormat) -> list[list[int]]:
    """Test documents as tokens, those with too many segments cut, shortest first."""
    corpus = Corpus(str(job.files / "test.jsonl"))
    return sorted((row for rows in form.tokens(corpus) for row in rows), key=len)


def written(
    model: TraceModel | TextTokenizer, prior: Prior | None, job: Job, form: TextFormat, sentences: int | None = None
) -> tuple[list[str], dict[str, Any]]:
    """New texts, of so many sentences at most, and how they were drawn; text n has random numbers of its own."""
    settings = dict(job.plan["writing"])
    count, texts = settings.pop("num"), list[str]()
    for start in range(0, count, 50):
        seeds = sample_seeds(0, min(50, count - start), first=start)
        writing = job.writing(**settings, seeds=seeds)
        if isinstance(model, TraceModel):
            writing = replace(writing, max_segments=sentences or writing.max_segments)
            texts += form.texts(model.generate(len(seeds), writing=writing))
        else:
            assert prior is not None
            codes = [each[:sentences] for each in prior.sample(len(seeds), generator=seeds)]
            texts += model.decode(codes, writing)
    return texts, {**settings, ("codes" if prior else "latents"): "prior", "seeds": 0}


def diversity(
    model: TraceModel | TextTokenizer, prior: Prior | None, job: Job, form: TextFormat
) -> tuple[list[str], dict[str, float]]:
    """New texts, and how different they are, whole ones and single sentences."""
    texts, how = written(model, prior, job, form)
    whole, single = text_diversity(texts, how), text_diversity(*written(model, prior, job, form, sentences=1))
    return texts, {
        **whole.values,
        "words": whole.num_words / whole.num_texts,
        **{f"sentence_{name}": value for name, value in single.values.items()},
        "sentence_words": single.num_words / single.num_texts,
    }


@torch.no_grad()
def sample_texts(
    model: TraceModel | TextTokenizer, job: Job, form: TextFormat, rows: list[list[int]]
) -> dict[str, list[str]]:
    """Texts for the page but for new ones, of the two shortest pieces of test documents that are :func:`whole`."""
    if job.layout not in QUOTED or (isinstance(model, TraceModel) and model.latents is None):
        return {}
    batches = [form.batch_of([row]) for row in rows]
    batches.sort(key=lambda batch: not whole(form.texts(batch)[0], int(batch.num_segments)))
    one, other = batches[0], batches[min(1, len(batches) - 1)]
    ways = [job.writing(temperature=0.0), *(job.writing(top_p=job.plan["writing"]["top_p"], seeds=n) for n in (0, 1))]
    found = dict[str, list[str]]()
    for batch, title in ((one, "Original"), (other, "Another original")):
        if isinstance(model, TraceModel):
            again = [form.texts(model.reconstruct(batch, way))[0] for way in ways]
        else:
            (codes,) = model.quantizer.encode(model.encoder(batch), batch.present)
            again = [model.decode(codes, way) for way in ways]
        found |= {title: form.texts(batch), f"{title}, reconstructed": again}
    if isinstance(model, TraceModel):
        between = form.texts(model.interpolate(one, other, SENTENCES, ways[0]))
    else:
        codes, others = (model.quantizer.encode(model.encoder(batch), batch.present)[0] for batch in (one, other))
        between = model.decode(_mixed(codes, others), ways[0])
    return found | {"Between the two": between}


def whole(text: str, num_segments: int) -> bool:
    """Whether a text of four sentences or more seems to begin and end where a sentence does."""
    text = text.strip()
    return num_segments > 3 and text[:1].isupper() and text.endswith((".", "?", "!"))


def _mixed(first: Tensor, second: Tensor) -> list[Tensor]:
    """Codes of the second text in the place of the first 0, 1, ... of the first text, in at most five steps."""
    count = min(len(first), len(second))
    steps = sorted({round(count * n / (SENTENCES - 1)) for n in range(SENTENCES)})
    return [torch.cat([second[:n], first[n:count]]) for n in steps]


def run(job: Job) -> dict[str, Any]:
    """Train and measure, with one thread."""
    torch.set_num_threads(1)
    model, seconds = trained(job)
    form = model.format
    assert form is not None
    rows = test_rows(job, form)
    batches = (form.batch_of(rows[n : n + BATCH]) for n in range(0, len(rows), BATCH))
    evaluation = evaluate_text(model, batches, num_samples=job.plan["num_samples"])
    more, prior = dict[str, float](), None
    if isinstance(model, TextTokenizer):
        prior = prior_of(job, model)
        nats, given = costs_of_codes(prior, model, form, rows), evaluation.values["nats_per_token_given_codes"]
        more["prior_bits_per_segment"] = nats / (math.log(2) * evaluation.num_segments)
        more["nats_per_token_with_prior"] = given + nats / evaluation.num_tokens
    texts, different = diversity(model, prior, job, form)
    write_json(job.folder / "samples.json", {"Texts": texts[:SHOWN]} | sample_texts(model, job, form, rows))
    return {
        "study": job.study,
        "method": job.method,
        "settings": job.words,
        "codebook_size": max(model.quantizer.codebook_sizes) if isinstance(model, TextTokenizer) else 0,
        "seed": job.seed,
        **evaluation.values,
        **more,
        **different,
        "parameters": num_parameters(model),
        "seconds_per_step": seconds,
        "test_documents": evaluation.num_documents,
        "test_segments": evaluation.num_segments,
        "test_tokens": evaluation.num_tokens,
    }


# --- recurrence -------------------------------------------------------------------------------------------------------


def recurrence_rows(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Seconds of both ways to compute the recurrence, which take turns; one thread."""
    torch.set_num_threads(1)
    seed_everything(0)
    recurrence = IdempotentRecurrence(plan["dim"], plan["rank"])
    for size in plan["batches"]:
        u = torch.randn(size, plan["segments"], plan["dim"], requires_grad=True)
        matrix = recurrence.matrix().detach().requires_grad_()  # a model makes it once for all that needs it
        ways: dict[str, Callable[..., Tensor]] = {"parallel": recurrence, "scan": recurrence.scan}
        torch.testing.assert_close(ways["parallel"](u, matrix), ways["scan"](u, matrix), atol=1e-5, rtol=1e-5)
        calls = {name: partial(_both_ways, way, u, matrix, torch.randn_like(u)) for name, way in ways.items()}
        for name, samples in alternating(calls, torch.device("cpu"), plan["seconds"], plan["seconds"] == 0).items():
            yield {
                "study": "recurrence",
                "method": name,
                "settings": f"B={size} T={plan['segments']} D={plan['dim']}",
                "codebook_size": 0,
                "seed": 0,
                "seconds": percentile(samples, 0.5),
                "seconds_p20": percentile(samples, 0.2),
                "seconds_p80": percentile(samples, 0.8),
                "rounds": len(samples),
            }


def _both_ways(way: Callable[..., Tensor], u: Tensor, matrix: Tensor, gradient: Tensor) -> None:
    torch.autograd.grad(way(u, matrix), (u, matrix), gradient)


# --- the page of texts ------------------------------------------------------------------------------------------------


def page_with(old: str, name: str, contenders: dict[str, dict[str, list[str]]], methods: Sequence[str] = ()) -> str:
    """The page with texts of one data set made again; what it has of others of these methods stays."""
    mark, end = re.compile(rf"<!-- texts {re.escape(name)} -->.*?<!-- end -->", re.DOTALL), "\n\n<!-- end -->"
    before = mark.search(old)
    parts = {}
    for piece in before[0].removesuffix(end).split("\n\n### ")[1:] if before else ():
        method, _, texts = piece.partition("\n\n")
        parts |= {method: texts} if method in methods else {}
    for method, sections in contenders.items():
        written = []
        for title, texts in sections.items():
            written += [f"{title}:", *(f"~~~~text\n{text.strip() or '(empty)'}\n~~~~" for text in texts)]
        parts[method] = "\n\n".join(written)
    order = sorted(parts, key=lambda method: [*methods, *parts].index(method))
    section = "\n\n".join([f"<!-- texts {name} -->\n\n## {name}", *(f"### {each}\n\n{parts[each]}" for each in order)])
    old = old or HEAD
    return mark.sub(lambda _: section + end, old) if before else f"{old}\n{section}{end}\n"


# --- everything -------------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of Multi30k or of the Brown corpus")
    parser.add_argument("--plan", type=Path, default=HERE / "text.yaml", help="studies and budget")
    parser.add_argument("--study", default="models", help="study of the plan")
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--seeds", nargs="*", type=int, help="instead of the study's")
    parser.add_argument("--work", type=Path, default=Path("runs/text-benchmark"), help="folder for texts and models")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="page for the texts")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at once, one thread each")
    given = parser.parse_args(words)
    plan = yaml.safe_load(given.plan.read_text())
    study, name, layout = plan.pop("studies")[given.study], Path(given.data).name, layout_of(given.data)
    about = circumstances(f"python -m benchmarks.quality.text, {plan['max_steps']:,} steps", name)
    path = results_file(given.results, "text")
    timed = circumstances(
        "medians of alternating rounds, one thread, forward and backward without a loss", "random numbers"
    )
    others = [row for row in _read(path) if row["study"] != "recurrence" or row["comparison"] == timed["comparison"]]
    if not any(row["study"] == "recurrence" for row in others):
        found = [{**row, **timed} for row in recurrence_rows(plan["recurrence"])]
        write_results(path, [*others, *found], about, IDENTITY, UNITS)
    key = (given.study, name, about["comparison"])
    rows = [row for row in _read(path) if (row["study"], row["data"], row["comparison"]) == key]
    done = {  # the first rows did not have words
        (row["method"], row["settings"], row["seed"]) for row in rows if "words" in row
    }
    files = prepared(given.data, given.work, plan["vocabulary"])
    jobs = [
        Job(files, layout, plan, given.study, method, settings, seed, given.work)
        for seed in (study["seeds"] if given.seeds is None else given.seeds)
        for method, settings in study["methods"].items()
        if given.methods is None or method in given.methods
    ]
    missing = [job for job in jobs if (job.method, job.words, job.seed) not in done]
    if missing:
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(run, job): job for job in missing}
            for future in track(as_completed(futures), "runs", total=len(futures)):
                replaced = (futures[future].method, futures[future].seed)
                others = [
                    row
                    for row in _read(path)
                    if (row["study"], row["data"]) != key[:2]
                    or (row["comparison"] == key[2] and (row["method"], row["seed"]) != replaced)
                ]
                write_results(path, [*others, {**future.result(), **about}], about, IDENTITY, UNITS)
    texts = {}
    for method, settings in study["methods"].items():
        kept = Job(files, layout, plan, given.study, method, settings, study["seeds"][0], given.work).folder
        if (kept / "samples.json").is_file():
            sections = json.loads((kept / "samples.json").read_text("utf-8"))
            texts[method] = sections if layout in QUOTED else {"Texts": sections["Texts"]}
    if texts:
        old = given.page.read_text("utf-8") if given.page.is_file() else ""
        with replacing(given.page) as scratch:
            scratch.write_text(page_with(old, name, texts, list(study["methods"])), encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    return read_results(path, IDENTITY) if path.exists() else []


if __name__ == "__main__":
    main()
