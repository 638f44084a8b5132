"""Damaged and made-up files for every reader but that of pictures: what it reads, and how a seed changes its files.

Half of the changes know the format: other values in JSON and YAML, other descriptions of classes, other arrays in
archives, other tables in Parquet, other tensors in state dicts, other sizes in the headers of pictures. The others
change bytes. Checksums are made right, or taken away, so that the damage goes further.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.reliability.changes import (
    Files,
    Reader,
    as_json,
    changed,
    changed_archive,
    changed_json,
    changed_table,
    changed_tensors,
    damaged,
)
from safetensors.torch import load, load_file, save, save_file

import gritvq
from gritvq import Tokenizer, vq_vae
from gritvq.cli import _program
from gritvq.cli.errors import explained, parser_class
from gritvq.cli.fit import configuration
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer, TokenizerTask
from gritvq.interop import (
    from_dac,
    from_diffusers,
    from_encodec,
    from_llamagen,
    from_mimi,
    from_taming,
    from_vector_quantize_pytorch,
    tokenizer_from_llamagen,
)
from gritvq.items import DepthDecoder, GenerativeRecommender, ResidualKMeans, SemanticIds
from gritvq.priors import AutoregressivePrior, MaskedPrior, Prior
from gritvq.quantizers import presets
from gritvq.saving import saved_kind
from gritvq.text import Segmentation, Subwords, TextFormat, TraceModel, segment_tokenizer, trace
from gritvq.tokens import TokenLayout, TokenRow, iter_tokens, write_tokens
from gritvq.training import TrainingPlan
from gritvq.training.run import check_checkpoint

__all__ = ["READERS"]

CONFIGS = Path(__file__).parents[2] / "configs"


# --- artifacts --------------------------------------------------------------------------------------------------------

_ARTIFACTS: dict[str, Callable[[Path], object]] = {}


def artifact(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """One of the kinds of artifacts."""
    _ARTIFACTS[make.__name__] = make
    return make


def _small_ids() -> SemanticIds:
    return SemanticIds.assign(torch.arange(12)[:, None] // torch.tensor([4, 2]), (8, 8), [f"k{i}" for i in range(12)])


@artifact
def images(folder: Path) -> None:
    ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 8), ImageDecoder(4, width=8)).save_pretrained(folder)


@artifact
def images_grit(folder: Path) -> None:
    quantizer = presets.grit_vq(4, 8)
    ImageTokenizer(ImageEncoder(4, width=8), quantizer, ImageDecoder(4, width=8)).save_pretrained(folder)


@artifact
def images_residual(folder: Path) -> None:
    quantizer = gritvq.ResidualQuantizer([vq_vae(4, 8), vq_vae(4, 4)])
    ImageTokenizer(ImageEncoder(4, width=8), quantizer, ImageDecoder(4, width=8)).save_pretrained(folder)


@artifact
def images_fsq(folder: Path) -> None:
    quantizer = gritvq.FSQ([8, 5, 5])
    ImageTokenizer(ImageEncoder(3, width=8), quantizer, ImageDecoder(3, width=8)).save_pretrained(folder)


@artifact
def items(folder: Path) -> None:
    ResidualKMeans(codebook_size=4, num_levels=2).fit(torch.randn(32, 3)).save_pretrained(folder)


@artifact
def recommender(folder: Path) -> None:
    ids = _small_ids()
    backbone = DepthDecoder(ids.codebook_sizes, 4, num_layers=1, num_heads=1, hidden_dim=4)
    GenerativeRecommender(backbone, ids).save_pretrained(folder)


@artifact
def prior(folder: Path) -> None:
    AutoregressivePrior(TokenLayout((16,), (2, 2)), num_classes=3, width=8, depth=1, num_heads=2).save_pretrained(
        folder
    )


@artifact
def masked(folder: Path) -> None:
    MaskedPrior(TokenLayout((16,), (2, 2)), width=8, depth=1, num_heads=2, num_steps=2).save_pretrained(folder)


@artifact
def text(folder: Path) -> None:
    form = TextFormat(Subwords.train([], 256), Segmentation(max_tokens=8))
    segment_tokenizer(vq_vae(4, 8), form.vocab_size, width=8, depth=1, num_heads=2).use(form).save_pretrained(folder)


@artifact
def language(folder: Path) -> None:
    form = TextFormat(Subwords.train([], 256), Segmentation(max_tokens=8))
    trace(form.vocab_size, dim=4, width=8, depth=1, num_heads=2).use(form).save_pretrained(folder)


def make_artifacts(folder: Path) -> None:
    for name, make in _ARTIFACTS.items():
        make(folder / name)


def read_artifact(folder: Path) -> object:
    (own,) = folder.iterdir()
    kind, _ = saved_kind(own, ["tokenizer", "recommender", "prior", "text_model"])
    loaders: dict[str, Any] = {"tokenizer": Tokenizer, "recommender": GenerativeRecommender, "prior": Prior}
    return (loaders | {"text_model": TraceModel})[kind].from_pretrained(own)


def change_artifact(chance: random.Random, files: Files) -> Files:
    own = chance.choice(sorted({name.split("/")[0] for name in files}))
    files = {name: content for name, content in files.items() if name.split("/")[0] == own}
    kind = chance.random()
    if kind < 0.75:
        return changed_json(chance, files)
    for name in [name for name in files if name.endswith(".json")]:
        header = json.loads(files[name])
        header.pop("sha256", None)
        if "semantic_ids" in name:
            header["sha256"] = {
                "ids.parquet": hashlib.sha256(files[name.replace("semantic_ids.json", "ids.parquet")]).hexdigest()
            }
        files[name] = as_json(header)
    name = chance.choice(list(files))
    if name.endswith(".safetensors"):
        return files | {name: changed_tensors(chance, files[name])}
    return files | {name: damaged(files[name], chance)}


# --- tokens and ids ---------------------------------------------------------------------------------------------------


def make_tokens(folder: Path) -> None:
    rows = [TokenRow(f"{name}.png", torch.arange(6).view(2, 3, 1), {"height": 8, "label": name}) for name in "ab"]
    for ending in ("npz", "parquet"):
        write_tokens(folder / f"a.{ending}", rows)


def read_token_files(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        for _ in iter_tokens(path):
            pass


def change_tokens(chance: random.Random, files: Files) -> Files:
    name = chance.choice(sorted(files))
    kind = chance.random()
    if kind < 0.5:
        return {name: damaged(files[name], chance)}
    change = changed_archive if name.endswith("npz") else changed_table
    return {name: change(chance, files[name])}


def read_ids(folder: Path) -> None:
    ids = SemanticIds.load(folder)
    ids.trie()
    ids.items_of(ids.codes[:2])


def change_ids(chance: random.Random, files: Files) -> Files:
    table = files["ids.parquet"]
    if chance.random() < 0.6:
        table = changed_table(chance, table) if chance.random() < 0.6 else damaged(table, chance)
    header = json.loads(files["semantic_ids.json"])
    header["sha256"] = {"ids.parquet": hashlib.sha256(table).hexdigest()}
    if chance.random() < 0.5:
        header = changed(header, chance)
    return {"ids.parquet": table, "semantic_ids.json": as_json(header)}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _task() -> TokenizerTask:
    return TokenizerTask(ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 8), ImageDecoder(4, width=8)))


def _states() -> dict[str, dict[str, torch.Tensor]]:
    """State dicts of other libraries' modules, by their readers."""
    encodec = {f"quantizer.layers.{i}.codebook.embed": torch.randn(8, 4) for i in range(2)}
    dac = {"quantizer.quantizers.0.codebook.weight": torch.randn(8, 2)}
    for name, shape in (("in_proj", (2, 4, 1)), ("out_proj", (4, 2, 1))):
        dac[f"quantizer.quantizers.0.{name}.weight"] = torch.randn(shape)
        dac[f"quantizer.quantizers.0.{name}.bias"] = torch.randn(shape[0])
    mimi = {}
    for part, levels in (("semantic", 1), ("acoustic", 2)):
        for i in range(levels):
            name = f"quantizer.{part}_residual_vector_quantizer.layers.{i}.codebook."
            mimi |= {name + "embed_sum": torch.randn(8, 4), name + "cluster_usage": torch.ones(8)}
    codes = torch.randn(1, 8, 4)
    theirs = {"_codebook.initted": torch.tensor(True), "_codebook.embed": codes}
    theirs |= {"_codebook.cluster_size": torch.ones(1, 8), "_codebook.embed_avg": codes.clone()}
    vqgan = {"quantize.embedding.weight": torch.randn(8, 4)}
    for name, shape in (("quant_conv", (4, 6, 1, 1)), ("post_quant_conv", (6, 4, 1, 1))):
        vqgan[f"{name}.weight"], vqgan[f"{name}.bias"] = torch.randn(shape), torch.randn(shape[0])
    plain = {"embedding.weight": torch.randn(8, 4)}
    used = {"quantize.codebook_used": torch.zeros(65536)}
    return {
        "encodec": encodec, "dac": dac, "mimi": mimi, "vqp": theirs, "taming": vqgan, "diffusers": plain,
        "llamagen": vqgan | used, "llamagen_model": vqgan | used | {"encoder.conv_in.weight": torch.randn(32, 3, 3, 3)},
    }  # fmt: skip


def make_checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    task = _task()
    content = {"state_dict": task.state_dict(), "global_step": 3, "settings": task.settings, "loops": {"x": [1, {}]}}
    torch.save(content, folder / "a.ckpt")
    for name, state in _states().items():
        save_file({key: each.contiguous() for key, each in state.items()}, folder / f"{name}.safetensors")


_OTHERS: dict[str, Callable[[Any], object]] = {
    "encodec": from_encodec,
    "dac": from_dac,
    "mimi": from_mimi,
    "vqp": lambda state: from_vector_quantize_pytorch(state, "VectorQuantize", dim=4, codebook_size=8, decay=0.99),
    "taming": from_taming,
    "diffusers": from_diffusers,
    "llamagen": from_llamagen,
    "llamagen_model": tokenizer_from_llamagen,
}


def read_checkpoint(folder: Path) -> None:
    (path,) = folder.iterdir()
    if path.suffix == ".ckpt":
        check_checkpoint(_task(), TrainingPlan(max_steps=5), path)
    else:
        try:
            state = load_file(path)
        except Exception as error:  # this is safetensors' reader, not one of ours
            raise ValueError(f"expected tensors, got {error}") from error
        quantizer: Any = _OTHERS[path.stem](state)
        if path.stem != "llamagen_model":
            dim = next((each.shape[-1] for each in state.values() if each.ndim > 1), 4)
            with contextlib.suppress(ValueError):
                quantizer.eval().encode(torch.zeros(1, 3, dim))


def change_checkpoint(chance: random.Random, files: Files) -> Files:
    name = "a.ckpt" if chance.random() < 0.5 else chance.choice(sorted(files))
    content = files[name]
    if name.endswith(".ckpt"):
        kind = chance.random()
        if kind < 0.4:
            out = io.BytesIO()
            torch.save(changed(dict(torch.load(io.BytesIO(content), weights_only=True)), chance), out)
            return {name: out.getvalue()}
        return {name: changed_archive(chance, content) if kind < 0.75 else damaged(content, chance)}
    if chance.random() < 0.25:
        return {name: changed_tensors(chance, content)}
    state = load(content)
    for _ in range(chance.choice([1, 1, 2, 4])):
        key = chance.choice(sorted(state)) if state else "x"
        old = state.pop(key, torch.zeros(1))
        kind = chance.random()
        if kind < 0.15:
            continue
        if kind < 0.3:
            key = chance.choice([key + "x", key.replace("0", "99999999"), key.replace("0", "1"), "", key[1:]])
        shapes: list[Callable[[], torch.Tensor]] = [
            lambda old=old: old.flatten(), lambda old=old: old[None], lambda old=old: old[:0], lambda: torch.zeros(()),
            lambda old=old: old.to(torch.int64), lambda old=old: old * float("nan"), lambda old=old: old.bool(),
            lambda old=old: old.half(), lambda old=old: old.new_zeros(0, 4), lambda old=old: old.transpose(0, -1),
            lambda old=old: old.repeat(*[3] * old.ndim), lambda: torch.zeros(1, 1, 1, 1, 1), lambda: torch.randn(8, 4),
            lambda old=old: old, lambda: torch.zeros(2**20), lambda: torch.zeros(70000, 4),
            lambda: torch.zeros(4, 70000),
        ]  # fmt: skip
        with contextlib.suppress(IndexError):
            state[key] = chance.choice(shapes)().contiguous().clone()
    return {name: save(state)}


# --- configurations ---------------------------------------------------------------------------------------------------

_LINES = {"images": ("fit", "images"), "items": ("fit", "items"), "text": ("fit", "text"), "priors": ("fit", "prior")}
_LINES |= {"methods": ("fit", "images"), "compare": ("compare",), "ids": ("semantic-ids", "fit")}


def make_configurations(folder: Path) -> None:
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if path.stem.startswith(("vqgan", "vqrae", "raster")):  # these take long to build
            continue
        group = "ids" if "ids" in path.stem else path.parent.name
        (folder / f"{group}-{path.stem}.yaml").write_bytes(path.read_bytes())
    parser, jobs = _program(["compare"])
    own = jobs["compare"][0]
    whole = own.dump(parser.parse_args(["compare"])["compare"], skip_validation=True)
    (folder / "compare-all.yaml").write_text(whole)


def read_configuration(folder: Path) -> None:
    """Parse what is configured, as the verb does, and build what takes no second; refusals as the program says them."""
    (path,) = folder.iterdir()
    words = _LINES[path.name.split("-")[0]]
    line = [*words, "--config", str(path)]
    try:
        if words[0] == "fit":
            configuration(parser_class(), words[1], line[2:])
        else:
            parser, _ = _program(line)
            parser.parse_args(line)
    except SystemExit as stop:
        raise ValueError("expected ..." if stop.code == 2 else "another code than 2") from stop
    except Exception as error:
        if (said := explained(error)) is None:
            raise
        raise ValueError(said) from error


def change_configuration(chance: random.Random, files: Files) -> Files:
    name = chance.choice(sorted(files))
    content = files[name]
    kind = chance.random()
    if kind < 0.55:
        with contextlib.suppress(RecursionError, ValueError):
            return {name: yaml.safe_dump(changed(yaml.safe_load(content), chance)).encode("utf-8", "surrogatepass")}
    if kind < 0.7:
        lines = content.split(b"\n")
        bombs = [
            b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i, i, i - 1, i - 1) for i in range(98, 122)),
            b"x: &x {y: *x}",
            b"x: !!python/object/apply:os.system [true]",
            b"- " * chance.choice([10, 1000, 100000]) + b"x",
            b"? " * chance.choice([10, 1000, 100000]) + b"x",
            b"x: '" + b"- " * chance.choice([10, 1000, 100000]) + b"x'",
            b"data: " + b"[" * chance.choice([10, 499, 100000]),
            b"tokenizer: '" + b"{a: " * chance.choice([10, 1000, 100000]) + b"'",
            b"x: !!binary " + b"A" * 100,
            b"plan: {max_steps: "
            + chance.choice([b"0x" + b"F" * 5000, b"1_0:59:59", b"1" * 5000, b"0b1", b".inf"])
            + b"}",
            b"<<: {a: 1}",
            b"%YAML 9.9\n---\na: 1\n---\nb: 2",
        ]
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(bombs))
        return {name: b"\n".join(lines) if chance.random() < 0.7 else chance.choice(bombs)}
    return {name: damaged(content, chance)}


READERS: dict[str, Reader] = {
    "config": Reader(make_artifacts, read_artifact, change_artifact),
    "tokens": Reader(make_tokens, read_token_files, change_tokens),
    "ids": Reader(lambda folder: _small_ids().save(folder), read_ids, change_ids),
    "checkpoints": Reader(make_checkpoints, read_checkpoint, change_checkpoint),
    "yaml": Reader(make_configurations, read_configuration, change_configuration),
}
