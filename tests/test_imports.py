"""The house plan: who imports whom, what an import costs, how long files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gritvq"
FILES = sorted(SOURCE.rglob("*.py"))

# module: what of ours it may import (arrows of the house plan, written out)
PARTS = {"base", "canonical", "functional"}
ALLOWED: dict[str, set[str]] = {
    "canonical": set(),
    "kernels": set(),
    "functional": {"canonical", "kernels"},
    "base": {"canonical", "functional"},
    "codebooks": PARTS,
    "assignments": PARTS,
    "surrogates": PARTS,
    "learning": PARTS,
    "relaxations": {"functional"},
    "vector_quantizer": PARTS | {"codebooks", "assignments", "surrogates", "learning"},
    "structures": PARTS | {"vector_quantizer"},
    "lookup_free": PARTS | {"surrogates"},
    "variational": PARTS | {"relaxations", "codebooks", "assignments", "vector_quantizer"},
    "hyperbolic": PARTS | {"relaxations"},
    "presets": PARTS
    | {"lookup_free", "structures", "codebooks", "assignments", "surrogates", "learning", "vector_quantizer"}
    | {"variational", "hyperbolic"},
    "metrics": PARTS,
    "models": PARTS,
    "export": {"base", "files"},
    "saving": {"base", "files"},
    "tokenizer": PARTS | {"models", "export", "saving", "data"},
    "item_tokenizers": PARTS
    | {"files", "saving", "assignments", "learning", "structures", "variational", "vector_quantizer", "presets"},
    "data": {"files"},
    "files": set(),
    "figures": {"files"},
    "semantic_ids": PARTS | {"metrics", "files", "figures"},
    "recommend": {"base", "canonical", "data", "saving", "semantic_ids"},
    "training": PARTS
    | {"files", "figures", "models", "metrics", "saving", "tokenizer", "variational"}
    | {"data", "recommend", "semantic_ids"},
}
HEAVY = {"lightning", "jsonargparse", "rich", "matplotlib", "PIL", "skimage", "pyarrow", "datasets", "tensorboard"}
# Triton compiles functions of a module that imports it; such a module is imported lazily itself.
TRITON_MODULE = "gritvq.kernels._triton_kernels"
LAZY = {"triton", "ot", "transformers", "ray", "gradio", "datasets", "huggingface_hub", "matplotlib"}
LAZY |= {"onnx", "onnxscript", "onnxruntime", "pandas", "sentence_transformers", "faiss"}


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """Absolute names of imported modules; ``gritvq.x`` for ours."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            if node.module == "gritvq":
                names |= {f"gritvq.{alias.name}" for alias in node.names}
            else:
                names.add(node.module or "")
    return names


def unit(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_import_directions(path: Path) -> None:
    name = unit(path)
    ours = {module.split(".")[1] for module in imported(path) if module.startswith("gritvq.")}
    if name not in ("__init__", "__main__", "cli"):
        assert name in ALLOWED, f"give {name} a place in the house plan"
        assert ours - {name} <= ALLOWED[name]
    others = {module.split(".")[0] for module in imported(path)}
    if name not in ("training", "cli"):
        assert "lightning" not in others


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    at_import = imported(path, top_level_only=True)
    is_triton_module = path == SOURCE.joinpath(*TRITON_MODULE.split(".")[1:]).with_suffix(".py")
    assert not {module.split(".")[0] for module in at_import} & (LAZY - ({"triton"} if is_triton_module else set()))
    assert not {module for module in at_import if module.startswith("gritvq.kernels._triton")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_import_needs_torch_and_little_else() -> None:
    code = (
        "import sys, gritvq; import gritvq.models, gritvq.metrics, gritvq.data.items, gritvq.recommend;"
        "import gritvq.item_tokenizers, gritvq.semantic_ids;"
        f"print([n for n in {sorted(HEAVY | LAZY)!r} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_training_waits_for_lightning(tmp_path: Path) -> None:
    code = """
import contextlib, io, sys
from pathlib import Path

import numpy as np
from PIL import Image

from gritvq import Tokenizer, fsq
from gritvq.cli import main
from gritvq.models import ImageDecoder, ImageEncoder

Tokenizer(ImageEncoder(4, width=8), fsq(4, 16), ImageDecoder(4, width=8)).save_pretrained("tokenizer")
Path("pictures").mkdir()
for number in range(8):
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(f"pictures/{number}.png")
helps = ["validate", "inspect", "encode", "decode", "export", "presets", "recommend", "semantic-ids fit"]
lines = ["--version", "--help", *(f"{verb} --help" for verb in helps)]
lines += ["presets", "encode pictures --tokenizer tokenizer", "decode tokens.npz --tokenizer tokenizer"]
lines += [f"{verb} tokenizer --data.path pictures" for verb in ("validate", "inspect")]
for line in lines:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(line.split())
        except SystemExit as stop:
            code = stop.code
    assert code == 0 and said.getvalue(), line
    assert "lightning" not in sys.modules, line
    assert line not in lines[:2] or "skimage" not in sys.modules and "matplotlib" not in sys.modules, line
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_names_of_training_are_all_there() -> None:
    from gritvq import training

    for name in training.__all__:
        assert getattr(training, name).__name__ == name
    with pytest.raises(AttributeError, match="trains"):
        _ = training.trains


def test_public_names_exist_and_are_documented() -> None:
    import gritvq

    for name in gritvq.__all__:
        value = getattr(gritvq, name)
        assert (value.__doc__ or "").strip(), name
    assert len(gritvq.__all__) == len(set(gritvq.__all__))
