"""The house plan: who imports whom, what an import costs, how long files are."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gritvq"
FILES = sorted(SOURCE.rglob("*.py"))

# room: rooms of ours that it may import (the arrows of the house plan, written out)
SMALL = {"component", "distributed", "files", "lazy", "plotting", "results"}
PARTS = {"component", "distributed", "quantizers.base", "quantizers.canonical", "quantizers.functional"}
FOUR = {f"quantizers.{part}" for part in ("codebooks", "assignments", "surrogates", "learning")}
QUANTIZERS = PARTS | FOUR
QUANTIZERS |= {
    f"quantizers.{room}" for room in ("vector_quantizer", "structures", "lookup_free", "stochastic", "presets")
}
QUANTIZERS |= {"quantizers.metrics", "quantizers.kernels", "quantizers.diagnosis"}
ALLOWED: dict[str, set[str]] = {
    "component": set(),
    "distributed": set(),
    "files": set(),
    "lazy": set(),
    "plotting": {"files", "lazy"},
    "results": {"files"},
    "quantizers.canonical": set(),
    "quantizers.kernels": {"lazy"},
    "quantizers.functional": {"quantizers.canonical", "quantizers.kernels"},
    "quantizers.base": PARTS,
    "quantizers.codebooks": PARTS,
    "quantizers.assignments": PARTS,
    "quantizers.surrogates": PARTS,
    "quantizers.learning": PARTS | {"lazy"},
    "quantizers.vector_quantizer": PARTS | FOUR,
    "quantizers.structures": PARTS | {"quantizers.vector_quantizer"},
    "quantizers.lookup_free": PARTS | {"quantizers.surrogates"},
    "quantizers.stochastic": PARTS | {"quantizers.codebooks", "quantizers.assignments", "quantizers.vector_quantizer"},
    "quantizers.presets": QUANTIZERS,
    "quantizers.metrics": PARTS,
    "quantizers.diagnosis": PARTS | {"quantizers.learning", "quantizers.metrics", "quantizers.vector_quantizer"},
    "saving": {"component", "files", "lazy"},
    "export": {"files", "lazy", "quantizers.base"},
    "tokenizer": {"component", "export", "quantizers.base", "saving"},
    "tokens": SMALL | QUANTIZERS,
    "training": SMALL | QUANTIZERS | {"saving", "tokenizer", "tokens"},
    "images": SMALL | QUANTIZERS | {"saving", "export", "tokenizer", "tokens", "training"},
    "priors": SMALL | {"saving", "export", "tokens", "training"},
    "text": SMALL | QUANTIZERS | {"saving", "export", "tokenizer", "tokens", "training", "priors"},
    "items": SMALL | QUANTIZERS | {"saving", "export", "tokenizer", "tokens", "training", "priors"},
    "interop": SMALL
    | QUANTIZERS
    | {"saving", "export", "tokenizer", "tokens", "training", "images", "items", "priors", "text"},
    "bulk": SMALL | {"tokenizer", "tokens", "images", "items", "text"},
}
MAY_IMPORT_LIGHTNING = ("task.py", "data.py", "sequences.py", "callbacks.py")  # of a domain
HEAVY = {"lightning", "jsonargparse", "rich", "matplotlib", "PIL", "skimage", "pyarrow", "datasets", "tensorboard"}
# Triton compiles functions of a module that imports it; such a module is imported lazily itself.
TRITON_MODULE = "gritvq.quantizers.kernels._triton_kernels"
LAZY = {"triton", "ot", "transformers", "ray", "gradio", "datasets", "huggingface_hub", "matplotlib"}
LAZY |= {"onnx", "onnxscript", "onnxruntime", "pandas", "sentence_transformers", "faiss", "tokenizers", "sacrebleu"}


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
            if node.module in ("gritvq", "gritvq.quantizers"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                names.add(node.module or "")
    return names


def room(name: str) -> str:
    """Room of a module: ``quantizers.learning``, ``images``, ``files``."""
    parts = name.split(".")[1:]
    return ".".join(parts[: 2 if parts[0] == "quantizers" else 1])


def module(path: Path) -> str:
    return ".".join(["gritvq", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


def rooms_imported(path: Path) -> set[str]:
    return {room(name) for name in imported(path) if name.startswith("gritvq.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_import_directions(path: Path) -> None:
    name = module(path)
    if name not in ("gritvq", "gritvq.__main__", "gritvq.quantizers") and room(name) != "cli":
        assert room(name) in ALLOWED, f"give {name} a place in the house plan"
        assert rooms_imported(path) - {room(name)} <= ALLOWED[room(name)]
    others = {other.split(".")[0] for other in imported(path)}
    if room(name + ".") not in ("training", "cli") and path.name not in MAY_IMPORT_LIGHTNING:
        assert "lightning" not in others


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    at_import = imported(path, top_level_only=True)
    is_triton_module = path == SOURCE.joinpath(*TRITON_MODULE.split(".")[1:]).with_suffix(".py")
    assert not {module.split(".")[0] for module in at_import} & (LAZY - ({"triton"} if is_triton_module else set()))
    assert not {module for module in at_import if module.startswith("gritvq.quantizers.kernels._triton")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_import_needs_torch_and_little_else() -> None:
    code = (
        "import sys, gritvq; import gritvq.images.networks, gritvq.images.tokenizer, gritvq.quantizers.metrics;"
        "import gritvq.items.networks, gritvq.items.catalogue, gritvq.items.recommenders;"
        "import gritvq.items.tokenizers, gritvq.items.ids, gritvq.tokens, gritvq.priors.autoregressive;"
        "import gritvq.text.segments, gritvq.text.corpus;"
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

from gritvq import fsq
from gritvq.cli import main
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer

ImageTokenizer(ImageEncoder(4, width=8), fsq(4, 16), ImageDecoder(4, width=8)).save_pretrained("tokenizer")
Path("pictures").mkdir()
for number in range(8):
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(f"pictures/{number}.png")
helps = ["validate", "evaluate", "inspect", "doctor", "encode", "decode", "export", "presets", "recommend"]
helps += ["semantic-ids fit"]
lines = ["--version", "--help", *(f"{verb} --help" for verb in helps)]
lines += ["presets", "encode pictures --tokenizer tokenizer", "decode tokens.npz --tokenizer tokenizer"]
lines += [f"{verb} tokenizer --data.path pictures" for verb in ("validate", "inspect", "doctor")]
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


def test_the_program_without_its_packages_says_what_to_install() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(HEAVY | LAZY | {'yaml'})!r}))\n"
    code += "from gritvq.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "gritvq: error: expected the package jsonargparse, got none; pip install 'gritvq[train]'\n"


@pytest.mark.parametrize("wing", ["bulk", "images", "interop", "items", "priors", "text", "tokens", "training"])
def test_names_of_a_wing_are_all_there(wing: str) -> None:
    package = importlib.import_module(f"gritvq.{wing}")
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="trains"):
        _ = package.trains


def test_public_names_exist_and_are_documented() -> None:
    import gritvq

    for name in gritvq.__all__:
        value = getattr(gritvq, name)
        assert (value.__doc__ or "").strip(), name
    assert len(gritvq.__all__) == len(set(gritvq.__all__))


def test_the_house_stays_small() -> None:
    """Wings and root files, and arrows between them."""
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES} - {"__main__"}
    arrows = {
        (path.relative_to(SOURCE).parts[0].removesuffix(".py"), name.split(".")[1])
        for path in FILES
        for name in imported(path)
        if name.startswith("gritvq.") and name.split(".")[1] in rooms
    }
    # 60, and seven of the wing of priors: to component, lazy, saving, tokens, training, and from items and cli; ten of
    # text: to component, export, files, lazy, priors (sampling), quantizers, saving, tokenizer, training, and from cli;
    # one of items and one of priors, to export: their programs; four of interop: to component, images, lazy,
    # quantizers; eight of sharing, which opens every kind of artifact: interop to files, items, priors, saving, text,
    # tokenizer and training (the run's folder), and from cli; three to distributed, of items, priors and text, whose
    # losses are means over the batches of all processes; eight of bulk: to files, images, items, lazy, text,
    # tokenizer, tokens, and from cli
    assert len(rooms) <= 21 and len({(start, end) for start, end in arrows if start != end}) <= 102
