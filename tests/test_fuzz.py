"""Files that somebody damaged or made up: every reader gives what is there or says in one ValueError what is wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from pyarrow import csv, parquet

from gritvq import Tokenizer, vq_vae
from gritvq.cli import _program
from gritvq.cli.errors import explained, parser_class
from gritvq.cli.fit import configuration
from gritvq.cli.fit_images import spread
from gritvq.cli.output import arguments_of
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer, TokenizerTask
from gritvq.items import DepthDecoder, GenerativeRecommender, ItemTokenizer, ResidualKMeans, SemanticIds
from gritvq.items.catalogue import read_catalogue, read_interactions, read_item_data
from gritvq.tokens import TokenRow, read_tokens, write_tokens
from gritvq.training import TrainingPlan
from gritvq.training.run import check_checkpoint
from test_layouts import WRITERS

PATIENCE = 30  # seconds after which a reader hangs
TRIALS = 40  # per reader in the suite; `make soak` takes a minute each

VALUES = [None, True, 0, -1, 2**63, 2**200, 0.5, float("nan"), float("inf"), "", "x", "\0", [], [[]], {}, {"x": 1}]
VALUES += ["gritvq.FSQ", {"class_path": "os.system", "init_args": {"command": "true"}}, {"class_path": 3}, [1e308] * 3]


def small_ids() -> SemanticIds:
    return SemanticIds.assign(torch.arange(12)[:, None] // torch.tensor([4, 2]), (8, 8), [f"k{i}" for i in range(12)])


def make_tokenizer(folder: Path) -> None:
    ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 8), ImageDecoder(4, width=8)).save_pretrained(folder)


def make_items(folder: Path) -> None:
    ResidualKMeans(codebook_size=4, num_levels=2).fit(torch.randn(32, 3)).save_pretrained(folder)


def make_recommender(folder: Path) -> None:
    ids = small_ids()
    backbone = DepthDecoder(ids.codebook_sizes, 4, num_layers=1, num_heads=1, hidden_dim=4)
    GenerativeRecommender(backbone, ids).save_pretrained(folder)


def make_tokens(ending: str) -> Callable[[Path], object]:
    pictures = [TokenRow(f"{name}.png", torch.arange(6).view(2, 3, 1), {"height": 8, "label": name}) for name in "ab"]
    return lambda folder: write_tokens(folder / f"a.{ending}", pictures)


def make_table(ending: str) -> Callable[[Path], object]:
    table = pyarrow.table(
        {
            "item": [f"k{i}" for i in range(9)],
            "user": [i % 3 for i in range(9)],
            "timestamp": [9 - i for i in range(9)],
            "title": [f"thing {i}" for i in range(9)],
            "tags": pyarrow.array([str(i) for i in range(9)] if ending == "csv" else [[str(i)] for i in range(9)]),
        }
    )
    write = csv.write_csv if ending == "csv" else parquet.write_table
    return lambda folder: write(table, folder / f"a.{ending}")


def make_vectors(folder: Path) -> None:
    make_table("csv")(folder)
    np.save(folder / "a.npy", np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))


def read_vectors(folder: Path) -> object:
    return read_catalogue(folder / "a.csv", embeddings=folder / "a.npy").vectors()


def read_texts(path: Path) -> object:
    catalogue = read_catalogue(path)
    return catalogue.texts(tuple(catalogue.columns)) if catalogue.columns else None


def make_layout(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        WRITERS[name](folder, [(i % 3, i, 9 - i, 4.0) for i in range(9)], range(9))
        for path in folder.glob("*.gz"):  # so that damage goes further than the checksum
            path.write_bytes(gzip.decompress(path.read_bytes()))

    return make


def read_layout(folder: Path) -> object:
    return read_item_data(folder).catalogue.texts(("item_text",))


def a_task() -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 8), ImageDecoder(4, width=8)))


def make_checkpoint(folder: Path) -> None:
    task = a_task()
    content = {"state_dict": task.state_dict(), "global_step": 3, "settings": task.settings, "loops": {"x": [1, {}]}}
    torch.save(content, folder / "a.ckpt")


def read_checkpoint(folder: Path) -> object:
    return check_checkpoint(a_task(), TrainingPlan(max_steps=5), folder / "a.ckpt")


CONFIGURATIONS = Path(__file__).parents[1] / "configs"
LARGE = 1 << 29  # bytes that a changed size may take; more is "out of memory"


def make_configurations(*patterns: str, verb: str = "") -> Callable[[Path], object]:
    """Of the repository; without any what the verb itself prints."""

    def make(folder: Path) -> None:
        for path in (path for pattern in patterns for path in CONFIGURATIONS.glob(pattern)):
            (folder / path.name).write_bytes(path.read_bytes())
        if verb:
            parser, jobs = _program([verb])
            own = jobs[verb][0]
            (folder / "all.yaml").write_text(own.dump(parser.parse_args([verb])[verb], skip_validation=True))

    return make


def read_configurations(*words: str) -> Callable[[Path], object]:
    """Parse and build what is configured, as the verb does, and train nothing."""

    def read(folder: Path) -> None:
        for path in sorted(folder.glob("*.yaml")):
            line = [*words, "--config", str(path)]
            if words[0] == "fit":
                own, config, given = configuration(parser_class(), words[1], line[2:])
                if words[1] == "images":
                    spread(config, given)
            else:
                parser, jobs = _program(line)
                own, config = jobs[words[0]][0], parser.parse_args(line)[words[0]]
            parts = own.instantiate(config)
            if words == ("fit", "images"):
                TokenizerTask(parts.tokenizer, **arguments_of(parts.task))

    def limited(folder: Path) -> None:
        """Messages as the program gives them."""
        before = resource.getrlimit(resource.RLIMIT_AS)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + LARGE, before[1]))
        try:
            read(folder)
        except SystemExit as stop:
            raise ValueError("expected ..." if stop.code == 2 else "ends with another code than 2") from stop
        except Exception as error:
            if (said := explained(error)) is None:
                raise
            raise ValueError(said) from error
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return limited


READERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "tokenizer": (make_tokenizer, Tokenizer.from_pretrained),
    "item tokenizer": (make_items, ItemTokenizer.from_pretrained),
    "recommender": (make_recommender, GenerativeRecommender.from_pretrained),
    "ids": (lambda folder: small_ids().save(folder), lambda folder: SemanticIds.load(folder).trie()),
    "tokens npz": (make_tokens("npz"), lambda folder: read_tokens(folder / "a.npz")),
    "tokens parquet": (make_tokens("parquet"), lambda folder: read_tokens(folder / "a.parquet")),
    "catalogue csv": (make_table("csv"), lambda folder: read_texts(folder / "a.csv")),
    "catalogue parquet": (make_table("parquet"), lambda folder: read_texts(folder / "a.parquet")),
    "events csv": (make_table("csv"), lambda folder: read_interactions(folder / "a.csv")),
    "events parquet": (make_table("parquet"), lambda folder: read_interactions(folder / "a.parquet")),
    **{name: (make_layout(name), read_layout) for name in WRITERS},
    "checkpoint": (make_checkpoint, read_checkpoint),
    "vectors npy": (make_vectors, read_vectors),
    "fit yaml": (make_configurations("image/*", "methods/*"), read_configurations("fit", "images")),
    "fit recommender yaml": (make_configurations("items/beauty-[st]*"), read_configurations("fit", "items")),
    "compare yaml": (make_configurations(verb="compare"), read_configurations("compare")),
    "ids yaml": (make_configurations("items/*ids*"), read_configurations("semantic-ids", "fit")),
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Other bytes, a part gone, twice or new, an end."""
    result = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        start = chance.randrange(len(result) + 1)
        length = chance.choice([1, 2, 4, 8, 64, len(result)])
        part = bytes(result[start : start + length])
        result[start : start + length] = chance.choice(
            [
                bytes(byte ^ (1 << chance.randrange(8)) for byte in part[:1]) + part[1:],
                bytes([chance.randrange(256)]) * len(part),
                b"",
                part * 2,
                chance.randbytes(length % 100) + part,
                chance.choice([b"\0", b"\xff" * 8, b'"', b"[" * 3000, b",,\n", b"9" * 400, b"-1", b"nan"]),
            ]
        )
    return bytes(result)


def changed(content: Any, chance: random.Random) -> Any:
    """JSON with another value, or without one, at some place."""
    if isinstance(content, (dict, list)) and content and chance.random() < 0.8:
        content = content.copy()
        place = chance.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if chance.random() < 0.1:
            del content[place]
        else:
            content[place] = changed(content[place], chance)
        return content
    return chance.choice(VALUES)


def without_checksums(folder: Path, chance: random.Random, change: bool) -> None:
    """An artefact as it was before there were checksums, so that damage goes further; its header perhaps changed."""
    for path in folder.rglob("*.json"):
        header = json.loads(path.read_text())
        header.pop("sha256", None)
        header = changed(header, chance) if change and chance.random() < 0.7 else header
        if path.name == "semantic_ids.json" and isinstance(header, dict):
            header["sha256"] = {"ids.parquet": hashlib.sha256((path.parent / "ids.parquet").read_bytes()).hexdigest()}
        path.write_text(json.dumps(header))


@contextmanager
def patience() -> Iterator[None]:
    def lost(*_: Any) -> None:
        raise TimeoutError("the reader hangs")

    before = signal.signal(signal.SIGALRM, lost)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trial(kind: str, seed: int, contents: dict[str, bytes], folder: Path) -> None:
    """One reading of files that the seed changed."""
    chance = random.Random(seed)
    (change_configuration if kind.endswith("yaml") else change_files)(kind, chance, contents, folder)
    try:
        with patience():
            READERS[kind][1](folder)
    except ValueError as error:
        assert "expected" in str(error), f"seed {seed}: {error!r}"
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


def change_configuration(kind: str, chance: random.Random, contents: dict[str, bytes], folder: Path) -> None:
    """One of them, as ``a.yaml``."""
    content = contents[chance.choice(list(contents))]
    if chance.random() < 0.7:
        content = yaml.safe_dump(changed(yaml.safe_load(content), chance)).encode()
    else:
        content = damaged(content, chance)
    folder.mkdir(exist_ok=True)
    (folder / "a.yaml").write_bytes(content)


def change_files(kind: str, chance: random.Random, contents: dict[str, bytes], folder: Path) -> None:
    """Some of an artefact's."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    binary = [name for name in contents if not name.endswith(".json")] or list(contents)
    structured = len(binary) < len(contents) and chance.random() < 0.5
    if not structured:
        name = chance.choice(binary if chance.random() < 0.8 else list(contents))
        (folder / name).write_bytes(damaged(contents[name], chance))
        if name not in binary:
            binary = []
    if kind == "checkpoint" and chance.random() < 0.7:
        content = torch.load(io.BytesIO(contents["a.ckpt"]), weights_only=True)
        torch.save(changed(dict(content), chance), folder / "a.ckpt")
    elif binary:
        without_checksums(folder, chance, structured)


def made(kind: str, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    READERS[kind][0](folder)
    READERS[kind][1](folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    contents = made(kind, tmp_path / "whole")
    for seed in range(TRIALS // 3 if kind.endswith("yaml") else TRIALS):  # to build what is configured takes long
        trial(kind, seed, contents, tmp_path / "damaged")


@pytest.mark.soak
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.filterwarnings("ignore")
def test_a_minute_of_damaged_files(kind: str, tmp_path: Path) -> None:
    contents = made(kind, tmp_path / "whole")
    end, seed = time.monotonic() + 60, TRIALS
    while time.monotonic() < end:
        trial(kind, seed, contents, tmp_path / "damaged")
        seed += 1
    print(f"{kind}: {seed - TRIALS} trials")


@pytest.mark.parametrize("kind", ["catalogue parquet", "events parquet"])
def test_a_footer_that_asks_for_half_a_terabyte(kind: str, tmp_path: Path) -> None:
    """2 ** 36 rows in the place of 9: a field of 64 bits (0x16), its zigzag varint, then the list of row groups."""
    READERS[kind][0](tmp_path)
    path = tmp_path / "a.parquet"
    content, footer = path.read_bytes(), int.from_bytes(path.read_bytes()[-8:-4], "little")
    head, foot = content[: -8 - footer], content[-8 - footer : -8]
    assert foot.count(b"\x16\x12\x19\x1c") == 1
    foot = foot.replace(b"\x16\x12\x19\x1c", b"\x16\x80\x80\x80\x80\x80\x04\x19\x1c")
    path.write_bytes(head + foot + len(foot).to_bytes(4, "little") + b"PAR1")
    assert parquet.ParquetFile(path).metadata.num_rows == 2**36
    with pytest.raises(ValueError, match="damaged footer"):
        READERS[kind][1](tmp_path)


@pytest.mark.parametrize(
    ("kind", "seed"), [("recommender", 1233), ("ids", 9264), ("fit yaml", 115), ("fit recommender yaml", 69)]
)
def test_damage_that_was_found(kind: str, seed: int, tmp_path: Path) -> None:
    trial(kind, seed, made(kind, tmp_path / "whole"), tmp_path / "damaged")
