"""Exported programs: the same indices and images as the tokenizer has, in both formats, for every preset.

Indices are compared for equality. A program adds in another order than PyTorch's eager kernels, so where two codes are
equally near up to float32 rounding it may take the other one; among the few thousand random vectors here (the seed is
fixed) no such pair occurs, and where it could by construction, at the corners of a space-filling curve, the quantizer
itself decides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from gritvq import FreeCodebook, Quantizer, Tokenizer, VectorQuantizer, grit_vq, to_config
from gritvq.export import Program, load_program, write_programs
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.quantizers.functional import central_code
from zoo import DIM, PRESETS, QUANTIZERS, SPECIAL_PRESETS, quick, trained_a_little

Make = Callable[[int, int], Quantizer]
SIZE = 64
# One for each thing that a program needs of its own, but for grit_vq, which is among the tokenizers below. The others
# take as long and go the same ways, so they are soaked.
QUICK = ("scq", "bsq-projected", "vq_vae_2")
TOLERANCE = {"torch": 1e-5, "onnx": 1e-4}


def forms() -> dict[str, Make]:
    """One quantizer of each kind of folded form: those that fold into the same description are the same program."""
    found: dict[str, str] = {}
    for name, make in QUANTIZERS.items():
        found.setdefault(json.dumps(to_config(make(DIM, SIZE).fold())), name)
    return {name: QUANTIZERS[name] for name in found.values()}


def made(make: Make) -> Quantizer:
    torch.manual_seed(0)
    return trained_a_little(make(DIM, SIZE)).eval()


def tokenizer_of(quantizer: Quantizer) -> Tokenizer:
    shape: dict[str, Any] = dict(width=8, num_blocks=1)
    return ImageTokenizer(
        ImageEncoder(quantizer.input_dim, **shape), quantizer, ImageDecoder(quantizer.dim, **shape)
    ).eval()


class ThereAndBack(nn.Module):
    """Indices of vectors, and the values of these indices, side by side in one tensor (B, n), float64."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        indices = self.quantizer(x).indices
        values = self.quantizer.decode(indices)
        return torch.cat([indices.flatten(1).double(), values.flatten(1).double()], 1)


def exported_alone(quantizer: Quantizer, folder: Path, format: Any) -> tuple[Callable[[Tensor], Tensor], Path]:
    example = torch.randn(3, *quantizer.layout, quantizer.input_dim)
    program = Program(ThereAndBack(quantizer.fold()), example, {0: torch.export.Dim("batch")}, ("x", "both"))
    path = write_programs(folder, {"quantizer": program}, format)["quantizer"]
    return load_program(path), path


def check_onnx(path: Path) -> None:
    """Valid, and made of ONNX's own operators of one set."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    assert {entry.domain for entry in model.opset_import} == {""} and not model.functions
    assert 18 <= model.opset_import[0].version <= 24


@pytest.mark.parametrize("format", ["onnx", pytest.param("torch", marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "make",
    quick(*QUICK, of=forms()),
)
def test_every_kind_of_quantizer(make: Make, format: str, tmp_path: Path) -> None:
    quantizer = made(make)
    run, path = exported_alone(quantizer, tmp_path, format)
    if format == "onnx":
        check_onnx(path)
    for batch in (1, 3, 70 if quantizer.layout else 1000):
        x = torch.randn(batch, *quantizer.layout, quantizer.input_dim)
        indices = quantizer.encode(x)
        expected = indices.flatten(1), quantizer.decode(indices).flatten(1)
        found = run(x).split([part.shape[1] for part in expected], 1)
        assert torch.equal(found[0], expected[0].double())
        torch.testing.assert_close(found[1].float(), expected[1].float(), rtol=1e-5, atol=1e-5)


def check_tokenizer(tokenizer: Tokenizer, folder: Path, format: Any) -> None:
    """Other batches and, where the quantizer takes them, other sizes than the program was traced with."""
    layout, sizes = tokenizer.quantizer.layout, [(8, 8), (20, 12), (32, 64)]
    if layout:
        sizes = [tuple(4 * side for side in layout)]
    encoder, decoder = tokenizer.export(folder, format, size=sizes[0] if layout else None)
    if format == "onnx":
        check_onnx(encoder), check_onnx(decoder)
    encode, decode = load_program(encoder), load_program(decoder)
    for batch, (height, width) in zip((1, 3, 5), sizes * (3 if layout else 1), strict=True):
        images = torch.rand(batch, 3, height, width)
        tokens = tokenizer.encode(images)
        assert torch.equal(encode(images), tokens)
        torch.testing.assert_close(decode(tokens), tokenizer.decode(tokens), rtol=0, atol=TOLERANCE[format])


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(m, id=n, marks=[] if n == "grit_vq" else pytest.mark.soak)
        for n, m in {**PRESETS, **SPECIAL_PRESETS}.items()
    ],
)
def test_tokenizers(make: Make, format: str, tmp_path: Path) -> None:
    check_tokenizer(tokenizer_of(made(make)), tmp_path, format)


def test_codes_in_several_blocks_far_from_the_origin(tmp_path: Path) -> None:
    quantizer = VectorQuantizer(FreeCodebook(DIM, 2100))
    with torch.no_grad():
        quantizer.codebook.weight += 1000  # type: ignore[operator]
    run, _ = exported_alone(quantizer, tmp_path, "onnx")
    x = 1000 + torch.randn(500, DIM)
    assert torch.equal(run(x)[:, :1].long(), quantizer.encode(x))


def test_the_center_of_a_search_is_the_same_in_a_program() -> None:
    class Center(nn.Module):
        def forward(self, codes: Tensor) -> Tensor:
            return central_code(codes)

    for num in (1, 2, 7, 3000):
        codes = torch.randn(num, 5)
        assert torch.equal(torch.export.export(Center(), (codes,)).module()(codes), central_code(codes))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    """A tokenizer and the folder of its programs, in torch's format."""
    tokenizer = tokenizer_of(made(grit_vq))
    folder = tmp_path_factory.mktemp("programs")
    tokenizer.export(folder, "torch", size=(8, 12))
    return tokenizer, folder


def test_a_program_needs_no_gritvq(small: tuple[Tokenizer, Path], tmp_path: Path) -> None:
    tokenizer, folder = small
    images = torch.rand(4, 3, 8, 12)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys; sys.modules['gritvq'] = None\n"
        "import torch\n"
        f"program = torch.export.load({str(folder / 'encoder.pt2')!r}).module()\n"
        f"print(program(torch.load({str(tmp_path / 'images.pt')!r})).flatten().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == tokenizer.encode(images).flatten().tolist()


def test_export_leaves_the_tokenizer_alone(small: tuple[Tokenizer, Path]) -> None:
    tokenizer, folder = small
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.pt2", "encoder.pt2"]
    assert not list(folder.parent.glob(f".{folder.name}*"))
    assert tokenizer.quantizer.codebook.codes().requires_grad  # type: ignore[union-attr,operator]


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Lost(nn.Module):
    """Uses an operator of ours, which no other program has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.gritvq.nearest_code(x, x, False, "float32")


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Median(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.median(0).values


def program(module: nn.Module) -> Program:
    return Program(module, torch.ones(3, 2), {0: torch.export.Dim("batch")}, ("x", "y"))


class TestRefused:
    @pytest.mark.parametrize(
        ("module", "format", "message"),
        [
            (Lost(), "torch", "torch.export can trace, .* custom operator gritvq.nearest_code"),
            (Untraceable(), "torch", "torch.export can trace, got the two with something else"),
            (Median(), "onnx", "ONNX has operators for, got the two with something else .*aten.median"),
        ],
    )
    def test_operators(self, module: nn.Module, format: Any, message: str, tmp_path: Path) -> None:
        before = write_programs(tmp_path / "here", {"one": program(Double())}, format)["one"].read_bytes()
        with pytest.raises(ValueError, match=message):
            write_programs(tmp_path / "here", {"one": program(Double()), "two": program(module)}, format)
        (only,) = tmp_path.iterdir()
        (left,) = only.iterdir()
        assert left.read_bytes() == before and left.stem == "one"

    def test_a_full_disk_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_programs(tmp_path / "here", {"one": program(Double())}, "torch")["one"]
        before = path.read_bytes()
        monkeypatch.setattr(torch.export, "save", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_programs(tmp_path / "here", {"one": program(Double())}, "torch")
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["here"]

    def test_arguments(self, tmp_path: Path) -> None:
        tokenizer = tokenizer_of(made(grit_vq))
        grids = tokenizer_of(made(SPECIAL_PRESETS["msvq"]))
        (tmp_path / "file").write_text("mine")
        for call, message in (
            (lambda: tokenizer.export(tmp_path, "keras"), "expected the format 'onnx' or 'torch', got 'keras'"),  # type: ignore[arg-type]
            (lambda: tokenizer.export(tmp_path / "file"), "expected a folder for the programs, got the file"),
            (lambda: tokenizer.export(tmp_path, size=(8, 10)), r"multiples of 4, got \(8, 10\); round it up"),
            (lambda: tokenizer.export(tmp_path, size=(0, 8)), "multiples of 4"),
            (lambda: grids.export(tmp_path), r"has the layout \(4, 4\), got none; .* such as \(16, 16\)"),
            (lambda: grids.export(tmp_path, size=(16, 8)), "expected images whose 4 x 2 tokens"),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"

    def test_missing_packages(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for missing in ("onnx", "onnxscript"):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, missing, None)
                with pytest.raises(
                    ValueError, match=rf"the package {missing}, got none; pip install 'gritvq\[export\]'"
                ):
                    tokenizer_of(made(grit_vq)).export(tmp_path)
        (tmp_path / "a.onnx").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ValueError, match="the package onnxruntime, got none"):
            load_program(tmp_path / "a.onnx")

    def test_files(self, tmp_path: Path) -> None:
        for name in ("nowhere.onnx", "nowhere.pt2"):
            with pytest.raises(ValueError, match=r"expected an \.onnx or \.pt2 file"):
                load_program(tmp_path / name)
        for name in ("half.onnx", "half.pt2", "half.txt"):
            (tmp_path / name).write_bytes(b"half")
            with pytest.raises(ValueError, match="file as export" if name == "half.txt" else "export it again"):
                load_program(tmp_path / name)
