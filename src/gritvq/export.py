"""Programs: encoder and decoder, or a recommender, as files that run without gritvq.

Two formats: ``"onnx"`` (``.onnx``, for onnxruntime and everything else that reads ONNX; needs the extra ``export``) and
``"torch"`` (``.pt2``, of ``torch.export``, for PyTorch alone). Both contain plain operators only.
:meth:`gritvq.Tokenizer.export` and :meth:`gritvq.items.GenerativeRecommender.export` write them, :func:`load_program`
runs them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gritvq.files import place_of_file, replacing_files
from gritvq.lazy import optional
from gritvq.quantizers.base import Quantizer

__all__ = ["DecoderProgram", "EncoderProgram", "Format", "Program", "load_program", "write_programs"]

Format = Literal["onnx", "torch"]
_SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}


class EncoderProgram(nn.Module):
    """Images (B, C, H, W) in [0, 1] to indices (B, h, w, Q) or (B, T, Q).

    Args:
        encoder: Images to latents.
        quantizer: Latents to indices.
    """

    def __init__(self, encoder: nn.Module, quantizer: Quantizer) -> None:
        super().__init__()
        self.encoder, self.quantizer = encoder, quantizer

    def forward(self, images: Tensor) -> Tensor:
        """Indices, int64."""
        latents = self.encoder(images.to(next(self.encoder.parameters()).dtype))
        return self.quantizer(latents).indices


class DecoderProgram(nn.Module):
    """Indices (B, h, w, Q) or (B, T, Q) to images (B, C, H, W) in [0, 1].

    Args:
        quantizer: Indices to values.
        decoder: Values to images.
    """

    def __init__(self, quantizer: Quantizer, decoder: nn.Module) -> None:
        super().__init__()
        self.quantizer, self.decoder = quantizer, decoder

    def forward(self, indices: Tensor) -> Tensor:
        """Images, float32."""
        values = self.quantizer.decode(indices)
        return self.decoder(values.to(next(self.decoder.parameters()).dtype)).float().clamp(0, 1)


class Program(NamedTuple):
    """A program to write.

    Attributes:
        module: Takes one tensor or several, gives one or several.
        example: An input of the right shape, or all of them.
        dynamic: Sizes (``torch.export.Dim``) by axis, of the input or of each; other axes keep the example's size.
        names: Names of the inputs, then of the outputs.
    """

    module: nn.Module
    example: Tensor | tuple[Tensor, ...]
    dynamic: dict[int, Any] | tuple[dict[int, Any], ...]
    names: tuple[str, ...]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All inputs of the example."""
        return self.example if isinstance(self.example, tuple) else (self.example,)


def write_programs(
    folder: str | os.PathLike[str], programs: Mapping[str, Program], format: Format = "onnx"
) -> dict[str, Path]:
    """Write programs into a folder, one file each: all of them, or none where one fails.

    Files of these names are replaced, others stay.

    Args:
        folder: Output folder; created if missing.
        programs: Programs by name, which becomes the file's.
        format: ``"onnx"`` or ``"torch"``.

    Returns:
        The files by name.

    Raises:
        ValueError: If the format is unknown, its packages are missing, the folder is a file, or a program holds
            something that the format cannot say.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return 2 * x
        >>> program = Program(Double(), torch.ones(3), {0: torch.export.Dim("size")}, ("x", "y"))
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_programs(folder, {"double": program}, "torch")["double"]
        ...     path.name, load_program(path)(torch.arange(4.0))
        ('double.pt2', tensor([0., 2., 4., 6.]))
    """
    folder = Path(folder)
    if format not in _SUFFIXES:
        raise ValueError(f"expected the format 'onnx' or 'torch', got {format!r}; choose one of the two")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder for the programs, got the file {folder}; choose another name")
    if format == "onnx":
        optional("onnx", "export"), optional("onnxscript", "export")
    traced = {name: _traced(name, program) for name, program in programs.items()}
    with replacing_files(folder) as scratch:  # weights of more than 2 GB lie beside an .onnx file
        for name, program in programs.items():
            path = scratch / (name + _SUFFIXES[format])
            if format == "onnx":
                _converted(name, traced[name], program).save(path)
            else:
                torch.export.save(traced[name], path)
    return {name: folder / (name + _SUFFIXES[format]) for name in programs}


def load_program(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """A written program as a function of its input tensors, on the CPU; it returns a tensor, or a tuple of them.

    Args:
        path: An ``.onnx`` file, for which onnxruntime is needed, or a ``.pt2`` file. Both can hold code: load only
            files that you trust.

    Raises:
        ValueError: If there is no such file, it is damaged, its ending is another, or onnxruntime is missing.
    """
    path = place_of_file(Path(path).parent, Path(path).name)
    if path.suffix not in _SUFFIXES.values() or not path.is_file():
        raise ValueError(f"expected an .onnx or .pt2 file as export writes it, got {path}; check the name.")
    if path.suffix == ".onnx":
        runtime = optional("onnxruntime", "export")
    try:
        if path.suffix == ".pt2":
            with _quiet("torch._export"):
                module = torch.export.load(path).module()
            return torch.no_grad()(lambda *inputs: module(*inputs))
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # either library's many errors all mean the same to the caller
        raise ValueError(f"expected a readable program, got {path} ({_first_line(error)}); export it again") from error
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Any:
        given = {name: x.contiguous().numpy() for name, x in zip(names, inputs, strict=True)}
        found = tuple(map(torch.from_numpy, session.run(None, given)))
        return found if len(found) > 1 else found[0]

    return run


# --- helpers ----------------------------------------------------------------------------------------------------------


def _traced(name: str, program: Program) -> torch.export.ExportedProgram:
    """A flat graph of plain operators.

    Without gradients, and without switches of autocast (which could not be loaded again), what only makes values that
    nobody asked for drops out.
    """
    dynamic = program.dynamic if isinstance(program.dynamic, tuple) else (program.dynamic,)
    arguments: dict[str, Any] = dict(dynamic_shapes=dynamic, strict=False)
    with torch.no_grad(), warnings.catch_warnings(), _refusing(name, "torch.export can trace"):
        warnings.simplefilter("ignore")
        traced = torch.export.export(program.module.eval(), program.inputs, **arguments).run_decompositions({})
        for node in list(traced.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:  # keeps alive what it looks at
                traced.graph.erase_node(node)
        traced.graph.eliminate_dead_code()
        custom = {str(node.target) for node in traced.graph.nodes if _is_custom(node.target)}
        if custom:
            raise TypeError(f"the custom operator {', '.join(sorted(custom))}")
    return traced


def _is_custom(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace not in ("aten", "prims")


def _converted(name: str, traced: torch.export.ExportedProgram, program: Program) -> Any:
    inputs, outputs = program.names[: len(program.inputs)], program.names[len(program.inputs) :]
    quiet = _quiet("torch.onnx", "onnxscript")
    with quiet, torch.no_grad(), warnings.catch_warnings(), _refusing(name, "ONNX has operators for"):
        warnings.simplefilter("ignore")
        return torch.onnx.export(traced, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)


@contextlib.contextmanager
def _refusing(name: str, what: str) -> Iterator[None]:
    """Turn any error inside into one that says that the module cannot be exported."""
    try:
        yield
    except Exception as error:  # these libraries let every kind through
        raise ValueError(
            f"expected a module that {what}, got the {name} with something else ({_cause(error)}); use plain operators "
            "while torch.compiler.is_exporting()"
        ) from error


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


@contextlib.contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Only errors from these loggers: remarks on optional packages and on what was not simplified help nobody."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
