"""Each promise of SECURITY.md: what a file of somebody else cannot do."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file
from torch import nn

import gritvq.images.decoding
import gritvq.images.files as pictures
from gritvq import FreeCodebook, Tokenizer, vq_vae
from gritvq.cli.errors import check_yaml, parser_class, read_yaml
from gritvq.cli.fit import configuration
from gritvq.component import from_config
from gritvq.files import _sizes_of_groups, check_footer, check_unpacked, read_header, replacing_files, write_header
from gritvq.images import (
    FileFeatures,
    ImageDecoder,
    ImageEncoder,
    ImageTokenizer,
    TokenizerTask,
    open_pictures,
    read_images,
    to_tensor,
)
from gritvq.images.foundation import FoundationEncoder, pretrained_encoder
from gritvq.interop import prepare_upload
from gritvq.items import ProductKMeans, ResidualKMeans
from gritvq.items.catalogue import read_catalogue
from gritvq.saving import rebuilt
from gritvq.tokens import TokenRow, read_tokens, write_tokens

SOURCE = Path(__file__).parents[1] / "src" / "gritvq"


class Bomb:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that exists if somebody's code has run."""
    return tmp_path / "code-has-run"


# --- no code of others: the sources -----------------------------------------------------------------------------------

UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
PROGRAMS = {"images/features.py", "export.py"}  # load TorchScript and torch.export, and say so
LOADERS = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "SentenceTransformer", "reader")


def offences(code: str, place: str = "") -> list[str]:
    """What a module does that could run code of a file."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in UNPICKLERS:
            found += [f"{node.value.id}.{node.attr}"] * (node.attr != "UnpicklingError")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            found.append(f"from {node.module}")
        if isinstance(node, ast.Import):
            found += [f"import {each.name}" for each in node.names if each.name in UNPICKLERS - {"pickle"}]
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name.endswith(".fit") and "ckpt_path" in given and given.get("weights_only") != "True":
            found.append("fit of a checkpoint without weights_only=True")
        if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            found.append(f"{name}({given})")
        if given.get("trust_remote_code", "False") != "False":
            found.append("trust_remote_code")
        if name.startswith("yaml.") and name[5:] not in ("safe_load", "safe_dump", "parse"):
            found.append(name)
        if name in ("eval", "exec", "compile", "os.system", "__import__") or name.endswith((".extractall", ".extract")):
            found.append(name)
        if name in ("torch.jit.load", "torch.export.load", "torch.hub.load") and place not in PROGRAMS:
            found.append(name)
        loads = name.endswith((".from_pretrained", ".from_config")) and any(each in name for each in LOADERS)
        if (
            (loads or name.endswith("SentenceTransformer"))
            and given.get("trust_remote_code") != "False"
            and None not in given
        ):
            found.append(f"{name} without trust_remote_code=False")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_source_runs_code_of_files(path: Path) -> None:
    assert not offences(path.read_text(), path.relative_to(SOURCE).as_posix())


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)",
        "from pickle import loads",
        "import joblib",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "trainer.fit(task, ckpt_path=p)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t, Loader=yaml.Loader)",
        "yaml.unsafe_load(t)",
        "eval(t)",
        "exec(t)",
        "tar.extractall(p)",
        "torch.jit.load(p)",
        "transformers.AutoModel.from_pretrained(p)",
        "transformers.AutoModel.from_pretrained(p, trust_remote_code=True)",
        "SentenceTransformer(p)",
        "subprocess.run(t, shell=True)",
    ],
)
def test_such_sources_would_be_found(code: str) -> None:
    assert offences(code)


# --- no code of others: the files -------------------------------------------------------------------------------------


def test_a_setting_of_a_checkpoint_that_is_a_tensor() -> None:
    """Found by fuzzing: whether it differs is no single answer."""
    tokenizer = ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 8), ImageDecoder(4, width=8))
    with pytest.raises(ValueError, match=r"expected lr tensor\(\[1., 1.\]\) as at the start of the resumed run"):
        TokenizerTask(tokenizer).check_checkpoint({"settings": {"lr": torch.ones(2)}})


def test_a_checkpoint_with_a_pickle_is_refused_unread(tmp_path: Path, mark: Path) -> None:
    from gritvq.training import TrainingPlan
    from gritvq.training.run import check_checkpoint

    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it does work
    mark.unlink()
    torch.save({"state_dict": {}, "global_step": 1, "x": Bomb(mark)}, tmp_path / "a.ckpt")
    task = TokenizerTask(ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 8), ImageDecoder(4, width=8)))
    with pytest.raises(ValueError, match=r"tensors and plain data, got .* do not trust this file"):
        check_checkpoint(task, TrainingPlan(max_steps=5), tmp_path / "a.ckpt")
    assert not mark.exists()


def test_a_token_file_with_a_pickle_is_refused_unread(tmp_path: Path, mark: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"tokens/a": np.array([Bomb(mark)], object), "columns/a": np.array("{}")})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_tokens(tmp_path / "a.npz")
    assert not mark.exists()


def test_a_description_builds_components_of_ours_alone(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(f"__import__('pathlib').Path({str(mark)!r}).touch()\n")
    for name in ("os.system", "theirs.Encoder", "gritvq.files.os.system", "gritvq.saving.load_file", "builtins.eval"):
        with pytest.raises(ValueError, match="expected a"):
            from_config({"class_path": name, "init_args": {"command": "true"}})
    assert not mark.exists()
    with pytest.raises(ValueError, match=r"expected a class that exists, .*is its folder in PYTHONPATH"):
        from_config({"class_path": "theirs.Encoder"}, trusted=["theirs"])  # named: it is imported
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_description_opens_no_file(tmp_path: Path) -> None:
    torch.jit.script(nn.Identity()).save(str(tmp_path / "a.pt"))
    assert FileFeatures(str(tmp_path / "a.pt")).name == "a"
    for name in ("FileFeatures", "InceptionFeatures", "CIFARResNet", "VGG16Features"):
        with pytest.raises(ValueError, match="expected components that read no files"):
            from_config({"class_path": f"gritvq.images.{name}", "init_args": {"path": str(tmp_path / "a.pt")}})


@pytest.mark.filterwarnings("ignore")
def test_code_beside_a_model_of_transformers_is_not_run(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "evil.py").write_text(f"__import__('pathlib').Path({str(mark)!r}).touch()\nclass Config: pass\n")
    told = {"model_type": "theirs", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="expected the folder of a model of transformers"):
        pretrained_encoder(str(tmp_path))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    for more in ({"auto_map": {"AutoModel": "evil.Config"}}, {"attn_implementation": "owner/kernel"}):
        with pytest.raises(ValueError, match="expected settings of the model's shape"):
            FoundationEncoder("dinov2", {**small, **more})
    assert not mark.exists()


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../a", "/etc/a", "x/../../a", "", "a\0b", "a" * 300])
def test_names_of_decoded_pictures_stay_in_their_folder(name: str) -> None:
    with pytest.raises(ValueError, match="expected picture names"):
        pictures.picture_paths([name])


def _tokenizer(folder: Path) -> Path:
    ImageTokenizer(ImageEncoder(4, width=8), vq_vae(4, 8), ImageDecoder(4, width=8)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["notes", "../secret"])
def test_an_upload_takes_no_file_that_the_artifact_only_links_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    folder = _tokenizer(tmp_path / "tokenizer")
    (folder / "notes").symlink_to(tmp_path / "secret")
    header = json.loads((folder / "config.json").read_text())
    sums = {"config.json": None, "model.safetensors": header["sha256"]["model.safetensors"], name: None}
    (folder / "config.json").write_text(json.dumps({**header, "sha256": sums}))
    with pytest.raises(
        ValueError, match=r"expected (the checksum of 'notes'|files inside|the checksum of '../secret')"
    ):
        prepare_upload(folder, "owner/name", tmp_path / "upload", license="mit")
    assert not any(path.name in ("notes", "secret") for path in tmp_path.glob("upload/**/*"))


def test_files_on_the_way_do_not_follow_links_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    folder = tmp_path / "theirs"
    (folder / ".written" / "sub").mkdir(parents=True)
    (folder / ".written" / "sub" / "authorized").write_text("theirs")
    (folder / "sub").symlink_to(tmp_path / "home")
    with pytest.raises(ValueError, match="expected files inside of"), replacing_files(folder):
        pass
    assert not list((tmp_path / "home").iterdir())


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "description",
    [
        {"class_path": "gritvq.FreeCodebook", "init_args": {"dim": 4, "codebook_size": 2**28}},
        {"class_path": "gritvq.MLPCodebook", "init_args": {"dim": 4, "codebook_size": 8, "hidden_dim": 2**27}},
        {"class_path": "gritvq.images.ImageEncoder", "init_args": {"dim": 4, "width": 2**15}},
        {"class_path": "gritvq.images.ImageEncoder", "init_args": {"dim": 4, "width": 32, "num_blocks": 10**9}},
    ],
)
def test_a_description_asks_for_no_more_than_its_file_has(
    description: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gritvq.saving._OWN_BYTES", 2**23)
    with pytest.raises(
        ValueError, match=r"expected a description of what is in .* far more than model.safetensors has"
    ):
        rebuilt(description, tmp_path)


def test_a_large_file_may_ask_for_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritvq.saving._OWN_BYTES", 2**16)
    description = {"class_path": "gritvq.FreeCodebook", "init_args": {"dim": 4, "codebook_size": 2**16}}
    save_file({"weight": torch.zeros(2**10, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"far more than model.safetensors has"):
        rebuilt(description, tmp_path)
    save_file({"weight": torch.zeros(2**16, 4)}, tmp_path / "model.safetensors")
    built = rebuilt(description, tmp_path)
    assert isinstance(built, FreeCodebook) and built.codebook_size == 2**16


@pytest.mark.parametrize("dim", [64, 10**9])
@pytest.mark.parametrize("name", ["LFQ", "BSQ"])
def test_bits_beyond_an_index_are_refused_before_there_are_any(name: str, dim: int) -> None:
    with pytest.raises(ValueError, match=r"expected at most 2\^63 codes"):
        from_config({"class_path": f"gritvq.{name}", "init_args": {"dim": dim}})


def test_headers_of_tensors_that_claim_more_than_the_file_has(tmp_path: Path) -> None:
    folder = _tokenizer(tmp_path / "tokenizer")
    header = json.loads((folder / "config.json").read_text())
    del header["sha256"]
    (folder / "config.json").write_text(json.dumps(header))
    told = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    for length in (len(told), 2**62):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + told)
        with pytest.raises(ValueError, match="expected readable tensors"):
            Tokenizer.from_pretrained(folder)


def test_readable_files_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format": "x", "format_version": 1, "values": [0] * 100}))
    assert read_header(tmp_path, "a.json", "a file", "x", 1)["values"] == [0] * 100
    monkeypatch.setattr("gritvq.files._MOST_VALUES", 100)
    with pytest.raises(ValueError, match="103 values, more than 100"):
        read_header(tmp_path, "a.json", "a file", "x", 1)
    monkeypatch.setattr("gritvq.files._LARGEST_HEADER", 100)
    with pytest.raises(ValueError, match="bytes, more than 100"):
        read_header(tmp_path, "a.json", "a file", "x", 1)


def test_archives_that_unpack_to_far_more(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "a.npz", [TokenRow("a", torch.zeros(2, 3, 1, dtype=torch.int64))])
    assert len(read_tokens(path)) == 1
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokens/b.npy", bytes(2**27))  # into 130 kB
    with pytest.raises(ValueError, match=r"an array of .* bytes that would take 128 MB of memory"):
        read_tokens(path)


def test_a_record_of_columns_that_is_no_array(tmp_path: Path) -> None:
    """Found by fuzzing: as text, 256 MB of bytes took 1.9 GB."""
    path = write_tokens(tmp_path / "a.npz", [TokenRow("a", torch.zeros(2, 3, 1, dtype=torch.int64))])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.npz", "w") as new:
        new.writestr("tokens/a.npy", old.read("tokens/a.npy"))
        new.writestr("columns/a.npy", b'{"columns": {}, "checksum": ""}')
    with pytest.raises(ValueError, match="a record that is no text"):
        read_tokens(tmp_path / "b.npz")


def test_tables_that_unpack_to_far_more(tmp_path: Path) -> None:
    table = pyarrow.table({"x": pyarrow.array(np.zeros(2**24, bool))})
    for rows, good in ((2**24, False), (2**22, True)):
        parquet.write_table(table.slice(0, rows), tmp_path / "a.parquet", compression="zstd", row_group_size=rows)
        metadata = parquet.ParquetFile(tmp_path / "a.parquet").metadata
        if good:
            check_footer(metadata, tmp_path / "a.parquet")
            continue
        with pytest.raises(OSError, match=r"a group of rows in a file of .* bytes that would take 128 MB"):
            check_footer(metadata, tmp_path / "a.parquet")
    check_unpacked("a file", 2**40, 2**40)


def test_lists_that_unpack_to_far_more(tmp_path: Path) -> None:
    """A file of 3 kB took 4 GB: its lists of zeros are counted as they are, not by their rows."""
    zeros = pyarrow.array(np.zeros(2**20, np.float32))
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, *[2**20] * 20], pyarrow.int32()), zeros)
    table = pyarrow.table({"item": list(range(20)), "embedding": pyarrow.concat_arrays([lists[:1]] * 20)})
    parquet.write_table(table, tmp_path / "items.parquet", compression="zstd")
    assert (tmp_path / "items.parquet").stat().st_size < 5000
    with pytest.raises(ValueError, match=r"all rows of a file of .* bytes that would take 160 MB of memory"):
        read_catalogue(tmp_path / "items.parquet")


def test_groups_that_are_small_alone(tmp_path: Path) -> None:
    table = pyarrow.table({"item": np.zeros(2**24, np.int64)})
    parquet.write_table(table, tmp_path / "items.parquet", compression="zstd", row_group_size=2**22)
    metadata = parquet.ParquetFile(tmp_path / "items.parquet").metadata
    check_footer(metadata, tmp_path / "items.parquet")
    with pytest.raises(OSError, match=r"all rows of a file of .* bytes that would take 128 MB"):
        check_footer(metadata, tmp_path / "items.parquet", whole=True)


@pytest.mark.parametrize("groups", [1, 3])
def test_sizes_in_footers_are_those_that_pyarrow_says(groups: int, tmp_path: Path) -> None:
    rows = 3 * groups
    columns: dict[str, Any] = {"a": list(range(rows)), "b": [[1.0] * n for n in range(rows)], "c": [b"x"] * rows}
    columns |= {"d": [{"e": [True, False], "f": "x"}] * rows, "g": [[[n]] * 200 for n in range(rows)]}
    columns["h"] = pyarrow.array([[("x", True)]] * rows, pyarrow.map_(pyarrow.string(), pyarrow.bool_()))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    metadata = parquet.ParquetFile(path).metadata
    found = [metadata.row_group(number) for number in range(groups)]
    wanted = [[group.column(leaf) for leaf in range(group.num_columns)] for group in found]
    assert _sizes_of_groups(path) == [
        sum(max(each.total_uncompressed_size, 8 * each.num_values) for each in leaves) for leaves in wanted
    ]


# --- pictures ---------------------------------------------------------------------------------------------------------


def _png(width: int, height: int) -> bytes:
    """A PNG file of one colour, whose size is only in its header."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    parts = (
        len(body).to_bytes(4, "big") + tag + body + zlib.crc32(tag + body).to_bytes(4, "big")
        for tag, body in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(_png(8193, 8192))
    with pytest.raises(ValueError, match="8193 x 8192 pixels, more than 67,108,864; set a larger max_pixels"):
        list(read_images(tmp_path / "a.png"))
    (tmp_path / "a.png").write_bytes(_png(100_000, 100_000))
    with pytest.raises(ValueError, match=r"expected a readable picture.*decompression bomb"):
        list(read_images(tmp_path / "a.png", max_pixels=10**12))


def test_the_limit_is_an_argument(tmp_path: Path) -> None:
    for ending, most in (("png", 120), ("jpg", 120), ("webp", 240), ("tif", 240)):
        path = tmp_path / f"a.{ending}"
        Image.new("RGB", (12, 10)).save(path)
        assert open_pictures(path, max_pixels=most)[0].pixels.shape == (3, 10, 12)
        with pytest.raises(ValueError, match="12 x 10 pixels, more than"):
            open_pictures(path, max_pixels=most - 1)[0]
    with pytest.raises(ValueError, match="expected max_pixels >= 1"):
        open_pictures(path, max_pixels=0)
    assert open_pictures([Image.new("RGB", (12, 10))], max_pixels=1)[0].pixels.shape == (3, 10, 12)  # in memory already


@pytest.mark.parametrize("kind", ["file", "folder", "parquet", "tar"])
def test_files_have_a_limit_that_the_caller_sets(kind: str, tmp_path: Path) -> None:
    """Of pictures as they are stored, wherever that is; a larger one counts as unreadable."""
    content, path = _png(2, 2), tmp_path / "data"
    if kind == "file":
        path.write_bytes(content)
    elif kind == "folder":
        path.mkdir()
        (path / "a.png").write_bytes(content)
    elif kind == "parquet":
        path = path.with_suffix(".parquet")
        parquet.write_table(pyarrow.table({"image": [{"bytes": content, "path": "a.png"}]}), path)
    else:
        path = path.with_suffix(".tar")
        with tarfile.open(path, "w") as archive:
            header = tarfile.TarInfo("a.png")
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    assert open_pictures(path, max_bytes=len(content))[0].pixels.shape == (3, 2, 2)
    assert len(open_pictures(path).part([0])) == 1
    few = open_pictures(path, max_bytes=len(content) - 1)
    with pytest.raises(ValueError, match=rf"its file has {len(content)} bytes, more than {len(content) - 1}; set a"):
        few.part([0])[0]
    assert kind == "file" or list(few) == []
    if kind in ("file", "folder"):
        assert len(list(read_images(path, max_bytes=len(content)))) == 1
    with pytest.raises(ValueError, match="expected max_bytes >= 1"):
        open_pictures(path, max_bytes=0)


def test_a_program_by_the_name_of_a_picture_is_none(tmp_path: Path) -> None:
    """Pillow has Ghostscript run PostScript."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "EPS"
    with pytest.raises(ValueError, match="in no known format"):
        list(read_images(tmp_path / "a.png"))
    content = [{"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}]
    parquet.write_table(pyarrow.table({"image": content}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="in no known format"):
        open_pictures(tmp_path / "a.parquet")[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_converted_together_or_not(mode: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (13, 7, 4), dtype=np.uint8)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(values[..., 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 90)
    else:
        image = (
            Image.fromarray(values).convert("LA").convert(mode)
            if mode == "LA"
            else Image.fromarray(values[..., :3]).convert(mode)
        )
        image = Image.fromarray(values) if mode == "RGBA" else image
    whole = to_tensor(image, channels)
    monkeypatch.setattr(gritvq.images.decoding, "_STRIP", 7)
    assert torch.equal(to_tensor(image, channels), whole)
    assert whole.unique().numel() > 1


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["- " * 100_000 + "x", "? " * 100_000, "[" * 600, "x: '" + "- " * 100_000 + "'"])
def test_nested_configurations_do_not_crash_the_reader(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(RecursionError, match="nested too deep"):
        read_yaml(path)
    with pytest.raises((ValueError, RecursionError), match="nested"):
        configuration(parser_class(), "images", ["--config", str(path)])


def test_what_a_tokenizer_is_restored_with_has_the_same_limit(tmp_path: Path) -> None:
    ResidualKMeans(4, 2).fit(torch.randn(20, 3)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    write_header(tmp_path / "config.json", config | {"dim": 10**8})
    with pytest.raises(ValueError, match="asks for more than 256 MB of memory"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(("kind", "name"), [(ResidualKMeans, "num_levels"), (ProductKMeans, "num_parts")])
def test_levels_have_a_limit_before_there_is_a_list_of_them(kind: type, name: str) -> None:
    """Found by fuzzing: a list of 2^27 sizes took a gigabyte."""
    with pytest.raises(ValueError, match=rf"expected {name} <= 4,096, got 134,217,728; give a smaller"):
        kind(4, 2**27)


def test_footers_with_any_byte_changed_do_not_end_the_process(tmp_path: Path) -> None:
    """Found by fuzzing: asked for a damaged column of a footer, pyarrow aborts."""
    columns = {"a": list(range(12)), "b": [[n] * 3 for n in range(12)], "c": ["x"] * 12}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=6)
    program = """
import pathlib, sys
import pyarrow, pyarrow.parquet
from gritvq.files import check_footer
path = pathlib.Path(sys.argv[1])
whole, refused = path.read_bytes(), 0
for place in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole) - 8):
    for bit in (0, 3, 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                check_footer(file.metadata, path)
                file.read()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
            refused += 1
print(refused)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "a.parquet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    column = pyarrow.array([_png(2, 2)], pyarrow.binary())
    parquet.write_table(pyarrow.Table.from_arrays([column, column], ["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="image"):
        list(open_pictures(tmp_path / "a.parquet"))


@pytest.mark.parametrize("number", ["1" * 5000, "-" + "1_0" * 2500])
def test_integers_that_python_does_not_convert(number: str) -> None:
    with pytest.raises(ValueError, match=r"expected numbers, got one of 5,000 digits; write a shorter one"):
        check_yaml(f"steps: {number}")
    check_yaml(f"name: '{number}'")  # text may be as long


def test_aliases_that_grow_or_never_end() -> None:
    grown = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    with pytest.raises(ValueError, match="expected aliases of at most 100,000 values"):
        check_yaml(grown)
    with pytest.raises(ValueError, match=r"expected a configuration that ends, got \*a within &a"):
        check_yaml("x: &a {y: [*a]}")
    check_yaml("x: &a {y: 1}\nz: *a\n")
    check_yaml("not: [yaml")  # which the reader says


def test_configurations_make_no_objects(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"x: !!python/object/apply:os.mkdir [{mark}]\n")
    with pytest.raises(yaml.YAMLError):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(SystemExit):
        configuration(parser_class(), "images", ["--config", str(tmp_path / "a.yaml")])
    assert not mark.exists()
