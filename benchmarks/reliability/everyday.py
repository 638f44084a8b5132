"""Everyday jobs: loading artefacts, encoding many small pictures, models of other libraries, planted faults, probes.

    python -m benchmarks.reliability.everyday

Three minutes on two idle cores. What tests count already is run by them and counted here: the faults that are planted
in quantizers and logs, and the models of other libraries with their 10,000 latents each. Kinds whose package is missing
(vector-quantize-pytorch, diffusers) are listed as not tried.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.quality.common import RESULTS
from benchmarks.reliability.figures import Figure, write_figures
from PIL import Image

from gritvq import Tokenizer, grit_vq
from gritvq.cli import main as gritvq
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.items import GenerativeRecommender, ItemTokenizer, ResidualKMeans, SemanticIds, TokenDecoder
from gritvq.priors import AutoregressivePrior, Prior
from gritvq.tokens import TokenLayout

COMMAND = "python -m benchmarks.reliability.everyday"
TESTS = Path(__file__).parents[2] / "tests"
FEW, MANY, SIDE = 1250, 5000, 32
# kind of model: tests that compare indices on 10,000 latents
CONVERTED = {
    "vector-quantize-pytorch": ("test_indices_and_values_are_theirs",),
    "EnCodec": ("test_encodec_of_transformers_in_float64", "test_encodec_of_its_own_package"),
    "DAC": ("test_dac_of_transformers", "test_dac_of_its_own_package"),
    "Mimi": ("test_mimi_in_float64", "test_mimi_of_its_own_package"),
    "diffusers": ("test_diffusers",),
    "taming-transformers": ("test_taming", "test_gumbel_of_taming_without_its_noise"),
    "LlamaGen": ("test_llamagen",),
}
FAULTS = ("test_a_planted_fault_is_named_first", "test_a_planted_fault_is_named")
HEALTHY = ("test_nothing_is_said_of_a_healthy_one", "test_nothing_is_said_of_a_healthy_run")


def run() -> None:
    """Measure everything and write the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        figures = [*loading(folder), *encoding(folder), *items_by_doctor(folder)]
        outcomes = tested(folder / "tests.xml")
    figures += [*converted(outcomes), *diagnosed(outcomes), probes()]
    print(write_figures("everyday", figures, COMMAND))


# --- loading ----------------------------------------------------------------------------------------------------------


def image_tokenizer() -> ImageTokenizer:
    """One of the size that ``gritvq fit images`` trains by default, with random weights."""
    torch.manual_seed(0)
    return ImageTokenizer(ImageEncoder(16), grit_vq(16, 1024), ImageDecoder(16)).eval()


def loading(folder: Path) -> Iterator[Figure]:
    """Seconds to load each kind of artefact, median of five, packages imported already."""
    generator = torch.Generator().manual_seed(0)
    sizes = (256, 256, 256)
    codes = torch.randint(0, 256, (50_000, 3), generator=generator)
    ids = SemanticIds.assign(codes, sizes, [f"item-{number}" for number in range(len(codes))])
    recommender = GenerativeRecommender(TokenDecoder(ids.codebook_sizes, 128), ids)
    prior = AutoregressivePrior(TokenLayout((1024,), (8, 8)), num_classes=10)
    made: list[tuple[str, Any, Callable[[Path], Any]]] = [
        ("image tokenizer of 1,024 codes", image_tokenizer().save_pretrained, Tokenizer.from_pretrained),
        ("semantic ids of 50,000 items", ids.save, SemanticIds.load),
        (
            "generative recommender of 50,000 items",
            recommender.save_pretrained,
            GenerativeRecommender.from_pretrained,
        ),
        ("prior of 64 positions, 6 layers", prior.save_pretrained, Prior.from_pretrained),
    ]
    for number, (what, save, load) in enumerate(made):
        place = folder / f"artefact{number}"
        save(place)
        load(place)  # imports
        seconds = []
        for _ in range(5):
            begun = time.perf_counter()
            load(place)
            seconds.append(time.perf_counter() - begun)
        yield Figure(what, "loading it, imports apart, median of 5", f"{statistics.median(seconds):.2f} s", "<= 1 s")


# --- encoding ---------------------------------------------------------------------------------------------------------


def encoding(folder: Path) -> Iterator[Figure]:
    """Pictures a second of ``gritvq encode``, and the memory of few and many pictures."""
    tokenizer = folder / "tokenizer"
    image_tokenizer().save_pretrained(tokenizer)
    draw = np.random.default_rng(0)
    for count in (FEW, MANY):
        (folder / str(count)).mkdir()
        for number in range(count):
            coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / str(count) / f"{number:05}.png")
    seconds, worked, peaks = {}, {}, {}
    for count in (FEW, MANY):
        begun = time.perf_counter()
        words = ["encode", str(folder / str(count)), "--tokenizer", str(tokenizer), "--overwrite", "true"]
        words += ["--out", str(folder / f"{count}.npz")]
        process = subprocess.Popen([sys.executable, "-m", "gritvq", *words], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, words
        process.returncode = 0
        seconds[count], peaks[count] = time.perf_counter() - begun, usage.ru_maxrss / 1024
        worked[count] = usage.ru_utime + usage.ru_stime
    what = f"{MANY:,} pictures of {SIDE} x {SIDE} pixels"
    for asked, taken, wanted in (("", seconds, ">= 500/s"), (", by a second of processor time", worked, "")):
        rate = (MANY - FEW) / (taken[MANY] - taken[FEW])
        yield Figure(what, f"`gritvq encode`, start apart{asked}", f"{rate:,.0f} pictures/s", wanted)
    yield Figure(what, "`gritvq encode`, the whole command", f"{seconds[MANY]:.1f} s")
    more = peaks[MANY] - peaks[FEW]
    value = f"{peaks[MANY]:,.0f} MiB, {more:+,.0f} MiB"
    yield Figure(what, f"peak of memory, and how much more than with {FEW:,} pictures", value, "flat")


# --- doctor of item tokenizers ----------------------------------------------------------------------------------------


def items_by_doctor(folder: Path) -> Iterator[Figure]:
    """Faults planted in tables of item tokenizers, by the verb."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, 32, generator=generator)[torch.randint(0, 40, (2000,), generator=generator)]
    vectors = (vectors + 0.5 * torch.randn(vectors.shape, generator=generator)).numpy()
    np.save(folder / "vectors.npy", vectors)

    def not_finite(table: Any) -> None:
        table[:3] = torch.nan

    def copies(table: Any) -> None:
        table[32:] = table[:32] * (1 + 1e-6)

    def far(table: Any) -> None:
        table[16:] += 100 + 10 * torch.rand(table[16:].shape, generator=generator)

    planted = {not_finite: "codes are not finite", copies: "codes are duplicates", far: "dead codes"}
    healthy, named, levels = 0, 0, 3
    for seed in range(3):
        tokenizer = ResidualKMeans(64, levels, seed=seed, iterations=20).fit(vectors)
        healthy += not _findings(tokenizer, folder)
        for level in range(levels):
            fault = list(planted)[(seed + level) % 3]
            spoiled = ResidualKMeans(64, levels, seed=seed, iterations=20)
            spoiled._restore({"dim": 32})
            spoiled.tables = tokenizer.tables.clone()
            fault(spoiled.tables[level])
            found = _findings(spoiled, folder)
            named += bool(found) and (found[0]["name"], found[0]["part"]) == (planted[fault], f"level{level + 1}")
    total = 3 * levels
    yield Figure("doctor, item tokenizers", "planted faults named first", f"{named} of {total}", f"{total} of {total}")
    yield Figure("doctor, item tokenizers", "healthy ones of which nothing is said", f"{healthy} of 3", "3 of 3")


def _findings(tokenizer: ItemTokenizer, folder: Path) -> list[dict[str, Any]]:
    tokenizer.save_pretrained(folder / "items")
    words = [str(folder / "items"), "--data.path", str(folder / "vectors.npy"), "--num_images", "2000"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert gritvq(["doctor", *words, "--json", str(folder / "found.json"), "--overwrite", "true"]) == 0
    return list(json.loads((folder / "found.json").read_text())["findings"])


# --- what tests count -------------------------------------------------------------------------------------------------


def tested(report: Path) -> dict[str, list[str]]:
    """Outcomes (passed, failed, skipped) of the cases of each test."""
    names = [*FAULTS, *HEALTHY, *(name for group in CONVERTED.values() for name in group)]
    places = ["quantizers/test_diagnosis.py", "training/test_run_diagnosis.py", "interop"]
    words = [*(str(TESTS / place) for place in places), "-q", "-n0", "-p", "no:cacheprovider", "-m", "soak or not soak"]
    chosen = " or ".join(names)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-k", chosen, f"--junitxml={report}"],
        cwd=TESTS.parent,
        stdout=subprocess.DEVNULL,
    )
    assert done.returncode in (0, 1), "pytest could not run"
    outcomes: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        children = {child.tag for child in case}
        outcome = "skipped" if "skipped" in children else "failed" if children & {"failure", "error"} else "passed"
        outcomes.setdefault(case.attrib["name"].partition("[")[0], []).append(outcome)
    return outcomes


def _counted(outcomes: dict[str, list[str]], names: tuple[str, ...]) -> tuple[int, int]:
    """How many cases passed, and of how many that were tried."""
    found = [outcome for name in names for outcome in outcomes.get(name, []) if outcome != "skipped"]
    return found.count("passed"), len(found)


def converted(outcomes: dict[str, list[str]]) -> Iterator[Figure]:
    """Models of other libraries whose indices are theirs."""
    for kind, names in CONVERTED.items():
        good, tried = _counted(outcomes, names)
        value = f"{good} of {tried}" if tried else "not tried"
        asked = "forms with identical indices on 10,000 latents"
        yield Figure(f"converted, {kind}", asked, value, f"{tried} of {tried}" if tried else "all")


def diagnosed(outcomes: dict[str, list[str]]) -> Iterator[Figure]:
    """Planted faults of quantizers and of logs."""
    for what, asked, names in (
        ("doctor, quantizers", "planted faults named first", FAULTS[:1]),
        ("doctor, logs of runs", "planted faults named", FAULTS[1:]),
        ("doctor, quantizers", "healthy ones of which nothing is said", HEALTHY[:1]),
        ("doctor, logs of runs", "healthy ones of which nothing is said", HEALTHY[1:]),
    ):
        good, tried = _counted(outcomes, names)
        yield Figure(what, asked, f"{good} of {tried}", f"{tried} of {tried}")


def probes() -> Figure:
    """Probes of edge cases that this library passes, from their newest results."""
    path = max(RESULTS.glob("probes_*.csv"))
    with path.open(newline="", encoding="utf-8") as file:
        own = [row for row in csv.DictReader(file) if row["library"] == "gritvq"]
    good = sum(row["passes"] == "yes" for row in own)
    asked = f"passed on {own[0]['date']}, by `{own[0]['command']}`"
    return Figure("probes of edge cases", asked, f"{good} of {len(own)}", f"{len(own)} of {len(own)}")


if __name__ == "__main__":
    run()
