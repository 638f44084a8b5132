"""Edge cases that users of quantizers run into, tried on this library and on vector-quantize-pytorch.

    python -m benchmarks.quality.probes

Every probe is one function that sees a library only through :class:`Library`, so both run the same steps on the same
numbers. Default settings unless the probe says otherwise; a CPU, small sizes, seed 0, about two minutes. An error of a
library is a result: its type and first line. Results (``benchmarks/results/probes_*.csv``) are in ``docs/peers.md``.

The tests of the same names (``tests/test_probes.py``) hold our side in more detail and over more quantizers.
"""

from __future__ import annotations

import abc
import argparse
import contextlib
import copy
import csv
import importlib.metadata
import inspect
import pickle
import queue
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from benchmarks.quality.common import RESULTS, circumstances, hardware
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import gritvq
from gritvq import (
    AffineCodebook,
    ChannelsFirst,
    CommitmentLoss,
    DeadCodeRevival,
    EMAUpdate,
    FreeCodebook,
    OrthogonalityLoss,
    ProductQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    vq_vae,
)
from gritvq.files import replacing

COMMAND = "python -m benchmarks.quality.probes"
COLUMNS = (
    "probe",
    "asks",
    "library",
    "version",
    "result",
    "passes",
    "date",
    "command",
    "hardware",
    "commit",
    "versions",
)
DECAY, RANK_TIMEOUT = 0.8, 15.0  # the default of vector-quantize-pytorch; seconds a collective waits


class Found(NamedTuple):
    """What a probe found, in a few words, and whether that is what it asks for."""

    result: str
    passes: bool


class Library(abc.ABC):
    """What the probes need of a library; the words are those of this one."""

    name: str
    package: str

    @abc.abstractmethod
    def averages(self, dim: int, size: int, decay: float = DECAY, *, revival: bool = False) -> nn.Module:
        """A table of codes that follow moving averages, with a commitment loss."""

    @abc.abstractmethod
    def with_kmeans(self, dim: int, size: int) -> nn.Module:
        """The same, whose codes start from k-means on data."""

    @abc.abstractmethod
    def with_maps(self, dim: int, inner: int, size: int) -> nn.Module:
        """The same between two linear maps."""

    @abc.abstractmethod
    def with_heads(self, dim: int, size: int, shared: bool) -> nn.Module:
        """Two heads, with one codebook for both or one each."""

    @abc.abstractmethod
    def residual(self, dim: int, size: int, levels: int) -> nn.Module:
        """Levels of moving averages under the straight-through gradient."""

    @abc.abstractmethod
    def affine(self, dim: int, size: int) -> nn.Module:
        """A codebook under an affine map."""

    @abc.abstractmethod
    def by_gradients(self, dim: int, size: int, commitment: float = 1.0) -> nn.Module:
        """A table that a loss moves; the weight is that of the commitment term."""

    @abc.abstractmethod
    def orthogonal_averages(self, dim: int, size: int) -> nn.Module:
        """Moving averages with an orthogonality loss."""

    @abc.abstractmethod
    def grid(self, levels: list[int]) -> nn.Module:
        """Finite scalar quantization."""

    @abc.abstractmethod
    def grid_trip(self, levels: list[int], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of vectors, their indices, and the codes of these indices."""

    @abc.abstractmethod
    def with_lengths(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Values of sequences (B, D, T) of these lengths."""

    @abc.abstractmethod
    def with_masked_maps(self, x: Tensor, mask: Tensor) -> Tensor:
        """Values of maps (B, D, H, W) with a mask (B, H, W)."""

    @abc.abstractmethod
    def start_from(self, quantizer: nn.Module, x: Tensor) -> None:
        """Fit the codes of :meth:`with_kmeans` to data."""

    @abc.abstractmethod
    def learn(self, quantizer: nn.Module) -> None:
        """What follows an optimizer's step."""

    @abc.abstractmethod
    def decode(self, quantizer: nn.Module, indices: Tensor) -> Tensor:
        """Values of indices."""

    @abc.abstractmethod
    def codes(self, quantizer: nn.Module) -> Tensor:
        """The table (K, D)."""

    @abc.abstractmethod
    def write(self, quantizer: nn.Module, codes: Tensor) -> None:
        """Overwrite the table by the documented way."""

    @abc.abstractmethod
    def resumed(self, quantizer: nn.Module, state: Any) -> Callable[[Tensor], None]:
        """A function that trains :meth:`by_gradients` on a batch; the state is what an earlier one saved, or None."""

    @abc.abstractmethod
    def saved(self, quantizer: nn.Module, step: Any) -> Any:
        """What the library offers to save of such a training, with what the loop holds itself."""

    @abc.abstractmethod
    def measures_usage(self) -> bool:
        """Whether it counts the use of codes over many batches."""

    @abc.abstractmethod
    def main_parts(self) -> list[Any]:
        """Classes and functions that should say what they are."""

    def call(self, quantizer: nn.Module, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Values, indices, and the loss as a scalar."""
        output = quantizer(x) if mask is None else quantizer(x, mask=mask)
        return output[0], output[1], self._loss(output)

    @abc.abstractmethod
    def _loss(self, output: Any) -> Tensor: ...

    @property
    def version(self) -> str:
        """Of what runs here."""
        return importlib.metadata.version(self.package)


class Ours(Library):
    """This library."""

    name = package = "gritvq"

    @property
    def version(self) -> str:
        return gritvq.__version__

    def averages(self, dim: int, size: int, decay: float = DECAY, *, revival: bool = False) -> nn.Module:
        rules = [EMAUpdate(decay), CommitmentLoss(1.0), *([DeadCodeRevival(1)] if revival else [])]
        return VectorQuantizer(FreeCodebook(dim, size), learning=rules)

    def with_kmeans(self, dim: int, size: int) -> nn.Module:
        rules = [EMAUpdate(DECAY), CommitmentLoss(1.0)]
        return VectorQuantizer(FreeCodebook(dim, size, initialization="kmeans"), learning=rules)

    def with_maps(self, dim: int, inner: int, size: int) -> nn.Module:
        return ProjectedQuantizer(self.averages(inner, size), dim)  # type: ignore[arg-type]

    def with_heads(self, dim: int, size: int, shared: bool) -> nn.Module:
        parts: list[Any] = [self.averages(dim // 2, size) for _ in range(2)]
        return ProductQuantizer(parts[:1] * 2 if shared else parts)

    def residual(self, dim: int, size: int, levels: int) -> nn.Module:
        parts: list[Any] = [self.averages(dim, size) for _ in range(levels)]
        return ResidualQuantizer(parts)

    def affine(self, dim: int, size: int) -> nn.Module:
        return VectorQuantizer(AffineCodebook(dim, size))

    def by_gradients(self, dim: int, size: int, commitment: float = 1.0) -> nn.Module:
        return vq_vae(dim, size, commitment_weight=commitment)

    def orthogonal_averages(self, dim: int, size: int) -> nn.Module:
        return VectorQuantizer(FreeCodebook(dim, size), learning=[EMAUpdate(), OrthogonalityLoss()])

    def grid(self, levels: list[int]) -> nn.Module:
        return gritvq.FSQ(levels)

    def grid_trip(self, levels: list[int], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantizer = gritvq.FSQ(levels)
        values, indices, _ = quantizer(x)
        return values, indices, quantizer.decode(indices)

    def with_lengths(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(x.shape[2]) < lengths[:, None]
        return ChannelsFirst(self.averages(x.shape[1], 32))(x, mask).quantized  # type: ignore[arg-type]

    def with_masked_maps(self, x: Tensor, mask: Tensor) -> Tensor:
        return ChannelsFirst(self.averages(x.shape[1], 32))(x, mask).quantized  # type: ignore[arg-type]

    def start_from(self, quantizer: Any, x: Tensor) -> None:
        quantizer.initialize_codebook(x)

    def learn(self, quantizer: Any) -> None:
        quantizer.update_codebook()

    def decode(self, quantizer: Any, indices: Tensor) -> Tensor:
        return quantizer.decode(indices)

    def codes(self, quantizer: Any) -> Tensor:
        return quantizer.codebook.codes()

    def write(self, quantizer: Any, codes: Tensor) -> None:
        quantizer.codebook.write(torch.arange(len(codes)), codes)

    def resumed(self, quantizer: Any, state: Any) -> Callable[[Tensor], None]:
        optimizer = torch.optim.Adam(quantizer.parameter_groups(1e-2))
        if state is not None:
            quantizer.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            quantizer(x).loss.backward()
            optimizer.step()
            quantizer.update_codebook(optimizer)

        step.optimizer = optimizer  # type: ignore[attr-defined]
        return step

    def saved(self, quantizer: nn.Module, step: Any) -> Any:
        return copy.deepcopy((quantizer.state_dict(), step.optimizer.state_dict()))

    def measures_usage(self) -> bool:
        metric = gritvq.CodebookUsage((4,))
        for batch in ([0, 1], [1, 3]):
            metric.update(torch.tensor(batch)[:, None])
        return metric.compute()["usage"] == 0.75

    def main_parts(self) -> list[Any]:
        return [getattr(gritvq, name) for name in gritvq.__all__ if callable(getattr(gritvq, name))]

    def _loss(self, output: Any) -> Tensor:
        return output.loss


class Theirs(Library):
    """vector-quantize-pytorch, which the extra ``bench`` brings."""

    name = package = "vector-quantize-pytorch"

    def __init__(self) -> None:
        try:
            import vector_quantize_pytorch
        except ImportError as error:
            raise SystemExit("expected vector-quantize-pytorch, got none; pip install 'gritvq[bench]'") from error
        self.vqp = vector_quantize_pytorch

    def averages(self, dim: int, size: int, decay: float = DECAY, *, revival: bool = False) -> nn.Module:
        return self._vq(dim, size, decay=decay, threshold_ema_dead_code=2 if revival else 0)

    def with_kmeans(self, dim: int, size: int) -> nn.Module:
        return self._vq(dim, size, kmeans_init=True)

    def with_maps(self, dim: int, inner: int, size: int) -> nn.Module:
        return self._vq(dim, size, codebook_dim=inner)

    def with_heads(self, dim: int, size: int, shared: bool) -> nn.Module:
        return self._vq(dim, size, codebook_dim=dim // 2, heads=2, separate_codebook_per_head=not shared)

    def residual(self, dim: int, size: int, levels: int) -> nn.Module:
        return self.vqp.ResidualVQ(dim=dim, codebook_size=size, num_quantizers=levels, rotation_trick=False)

    def affine(self, dim: int, size: int) -> nn.Module:
        return self._vq(dim, size, affine_param=True)

    def by_gradients(self, dim: int, size: int, commitment: float = 1.0) -> nn.Module:
        return self._vq(dim, size, learnable_codebook=True, ema_update=False, commitment_weight=commitment)

    def orthogonal_averages(self, dim: int, size: int) -> nn.Module:
        return self._vq(dim, size, orthogonal_reg_weight=1.0)

    def grid(self, levels: list[int]) -> nn.Module:
        return self.vqp.FSQ(levels)

    def grid_trip(self, levels: list[int], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantizer = self.vqp.FSQ(levels, return_indices=False)  # otherwise it holds all codes: 10 GB for 2^27
        values = quantizer(x[None])[0][0]
        indices = quantizer.codes_to_indices(values)
        return values, indices, quantizer.indices_to_codes(indices)

    def with_lengths(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self._vq(x.shape[1], 32, channel_last=False)(x, lens=lengths)[0]

    def with_masked_maps(self, x: Tensor, mask: Tensor) -> Tensor:
        return self._vq(x.shape[1], 32, accept_image_fmap=True)(x, mask=mask)[0]

    def start_from(self, quantizer: nn.Module, x: Tensor) -> None:
        quantizer(x[None])

    def learn(self, quantizer: nn.Module) -> None:
        """Part of its forward."""

    def decode(self, quantizer: Any, indices: Tensor) -> Tensor:
        return quantizer.get_output_from_indices(indices)

    def codes(self, quantizer: Any) -> Tensor:
        return quantizer.codebook

    def write(self, quantizer: Any, codes: Tensor) -> None:
        quantizer.codebook = codes

    def resumed(self, quantizer: nn.Module, state: Any) -> Callable[[Tensor], None]:
        if state is not None:
            quantizer.load_state_dict(state)

        def step(x: Tensor) -> None:
            quantizer(x[None])

        return step

    def saved(self, quantizer: nn.Module, step: Any) -> Any:
        return copy.deepcopy(quantizer.state_dict())

    def measures_usage(self) -> bool:
        words = ("usage", "perplexity")
        names = [*dir(self.vqp), *dir(self._vq(4, 8)), *dir(self.vqp.VectorQuantize), *dir(self._vq(4, 8)._codebook)]
        return any(word in name.lower() for name in names for word in words)

    def main_parts(self) -> list[Any]:
        return [part for name, part in vars(self.vqp).items() if inspect.isclass(part)]

    def with_optimizer(self, dim: int, size: int) -> nn.Module:
        """A table under an optimizer of its own."""
        make = lambda parameters: torch.optim.Adam(parameters, lr=1e-2)  # noqa: E731
        return self._vq(dim, size, learnable_codebook=True, ema_update=False, in_place_codebook_optimizer=make)

    def _vq(self, dim: int, size: int, **settings: Any) -> Any:
        return self.vqp.VectorQuantize(dim, size, **settings)

    def _loss(self, output: Any) -> Tensor:
        return output[2].sum() if len(output) > 2 else torch.zeros(())


class Probe(NamedTuple):
    """A question and how it is asked."""

    name: str
    asks: str
    ask: Callable[[Library], Found]


PROBES: list[Probe] = []


def probe(asks: str) -> Callable[[Callable[[Library], Found]], Callable[[Library], Found]]:
    """Add the function to the list under its name, with what it asks for."""

    def add(function: Callable[[Library], Found]) -> Callable[[Library], Found]:
        PROBES.append(Probe(function.__name__, asks, function))
        return function

    return add


def drawn(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(quantizer: nn.Module) -> bytes:
    """All that a state dict holds, as bytes."""
    return pickle.dumps(_plain(dict(quantizer.state_dict())))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), value.float().numpy().tobytes()
    return {key: _plain(v) for key, v in value.items()} if isinstance(value, dict) else value


def said(error: BaseException) -> str:
    """Type and first line; the first two where the first only announces the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {text if len(text) <= 120 else text[:117] + '...'}"


def tried(ways: dict[str, Callable[[], str | None]]) -> Found:
    """Each way works (None), or gives what is wrong; equal answers are told once."""
    answers: dict[str, list[str]] = {}
    for name, way in ways.items():
        try:
            wrong = way()
        except Exception as error:
            wrong = said(error)
        answers.setdefault(wrong or "works", []).append(name)
    if len(answers) == 1:
        return Found(next(iter(answers)), "works" in answers)
    return Found("; ".join(f"{', '.join(names)}: {answer}" for answer, names in answers.items()), False)


@probe("In training the output is, bit for bit, what its indices decode to after the call")
def training_output_is_what_its_indices_decode_to(library: Library) -> Found:
    quantizer, x = library.averages(8, 32), drawn(1, 256, 8)
    values, indices, _ = library.call(quantizer, x)
    largest = float((values - library.decode(quantizer, indices)).abs().max())
    return Found(f"largest difference {largest:.2g}", largest == 0)


@probe("A mask works with a projection, and with heads that share a codebook or have one each")
def mask_with_projection_or_heads(library: Library) -> Found:
    x, mask = drawn(2, 6, 8), torch.tensor([[True] * 4 + [False] * 2] * 2)

    def way(make: Callable[[], nn.Module]) -> Callable[[], str | None]:
        def run() -> str | None:
            values, _, loss = library.call(make(), x, mask)
            good = not values[~mask].any() and bool(values[mask].any()) and bool(torch.isfinite(loss))
            return None if good else "masked vectors give other values than zeros"

        return run

    return tried(
        {
            "projection": way(lambda: library.with_maps(8, 4, 32)),
            "shared heads": way(lambda: library.with_heads(8, 32, True)),
            "separate heads": way(lambda: library.with_heads(8, 32, False)),
        }
    )


@probe("Sequences of several lengths work with channels first, (B, D, T)")
def lengths_with_channels_first(library: Library) -> Found:
    values = library.with_lengths(drawn(2, 8, 7), torch.tensor([3, 7]))
    return _zeros_only(values.movedim(1, -1), torch.arange(7) < torch.tensor([[3], [7]]))


@probe("A mask works with image maps, (B, D, H, W)")
def mask_with_image_maps(library: Library) -> Found:
    mask = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    return _zeros_only(library.with_masked_maps(drawn(2, 8, 5, 6), mask).movedim(1, -1), mask)


def _zeros_only(values: Tensor, mask: Tensor) -> Found:
    good = not values[~mask].any() and bool(values[mask].any(-1).all())
    return Found("works" if good else "masked vectors give other values than zeros", good)


@probe("A batch with nothing valid (all masked, or empty) has loss 0 and changes no state")
def nothing_valid_changes_nothing(library: Library) -> Found:
    def way(x: Tensor, mask: Tensor | None) -> Callable[[], str | None]:
        def run() -> str | None:
            quantizer = library.averages(8, 32)
            library.call(quantizer, drawn(1, 64, 8)), library.learn(quantizer)
            before = state(quantizer)
            loss = float(library.call(quantizer, x, mask)[2])
            library.learn(quantizer)
            changed = "" if state(quantizer) == before else ", state changes"
            return f"loss {loss:g}{changed}" if changed or loss != 0 else None

        return run

    masked = way(drawn(1, 5, 8), torch.zeros(1, 5, dtype=torch.bool))
    return tried({"all masked": masked, "empty": way(drawn(1, 0, 8), None)})


@probe("The indices of padding, -1, decode to zeros")
def padding_indices_decode_to_zeros(library: Library) -> Found:
    quantizer = library.averages(8, 32).eval()
    _, indices, _ = library.call(quantizer, drawn(1, 3, 8), torch.tensor([[True, True, False]]))
    last = library.decode(quantizer, indices)[0, 2]
    code = torch.equal(last, library.codes(quantizer)[-1])
    return Found("zeros" if not last.any() else "the last code" if code else "something else", not last.any())


@probe("One NaN among 100 vectors leaves all codes finite and in use")
def one_vector_that_is_not_a_number(library: Library) -> Found:
    quantizer, x = library.averages(8, 32), drawn(1, 100, 8)
    x[0, 7, 2] = float("nan")
    library.call(quantizer, x), library.learn(quantizer)
    broken = int((~torch.isfinite(library.codes(quantizer))).any(-1).sum())
    used = library.call(quantizer.eval(), drawn(1, 1000, 8, seed=2))[1].unique().numel()
    return Found(f"{broken} of 32 codes NaN, {used} used afterwards", broken == 0 and used > 1)


@probe("The nearest code is found for data far from the origin (mean 100 and 1000, deviation 1)")
def data_far_from_the_origin(library: Library) -> Found:
    wrong = {}
    for mean in (0, 100, 1000):
        quantizer, x = library.averages(64, 1024).eval(), mean + drawn(1, 2000, 64, seed=2)
        library.write(quantizer, mean + drawn(1024, 64))
        codes = library.codes(quantizer).detach().double()
        distances = torch.cdist(x[0].double(), codes, compute_mode="donot_use_mm_for_euclid_dist")
        chosen = distances.gather(1, library.call(quantizer, x)[1].view(-1, 1)).squeeze(1)
        wrong[mean] = float((chosen > distances.min(1).values * (1 + 1e-6)).double().mean())
    text = ", ".join(f"{100 * share:.1f} % at mean {mean}" for mean, share in wrong.items())
    return Found(f"wrong: {text}", not any(wrong.values()))


@probe(
    "After .bfloat16() a moving average (decay .99) reaches the mean, 2, in 600 equal steps, up to bf16's spacing there"
)
def half_precision_model_follows_the_mean(library: Library) -> Found:
    quantizer = library.averages(8, 1, 0.99).bfloat16()
    x = (2 + drawn(1, 64, 8)).bfloat16()
    library.call(quantizer, drawn(1, 64, 8, seed=3).bfloat16()), library.learn(quantizer)
    for _ in range(600):
        library.call(quantizer, x), library.learn(quantizer)
    away = float((library.codes(quantizer).detach().float() - x.float().mean(1)).abs().max())
    return Found(f"{away:.2g} from the mean", away < 2**-6)


@probe("bf16 autocast on a CPU changes no index")
def autocast_changes_no_index(library: Library) -> Found:
    quantizer, x = library.averages(8, 256).eval(), drawn(1, 5000, 8)
    expected = library.call(quantizer, x)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = float((library.call(quantizer, x)[1] != expected).float().mean())
    return Found(f"{100 * changed:.1f} % of the indices change", changed == 0)


@probe("A float32 module with a projection takes bf16 vectors")
def half_precision_input_of_a_float32_module(library: Library) -> Found:
    values, _, _ = library.call(library.with_maps(8, 4, 32), drawn(1, 20, 8).bfloat16())
    return Found(f"works, {str(values.dtype).removeprefix('torch.')} out", bool(torch.isfinite(values).all()))


@probe("Activation checkpointing counts a batch once and gives the same input gradient")
def activation_checkpointing_counts_once(library: Library) -> Found:
    plain = library.averages(8, 32)
    library.call(plain, drawn(1, 64, 8, seed=3)), library.learn(plain)
    other = copy.deepcopy(plain)
    x, y = (drawn(1, 64, 8).requires_grad_() for _ in range(2))
    library.call(plain, x)[0].square().sum().backward()
    checkpoint(lambda v: library.call(other, v)[0], y, use_reentrant=False).square().sum().backward()
    library.learn(plain), library.learn(other)
    assert x.grad is not None and y.grad is not None
    codes = float((library.codes(plain) - library.codes(other)).detach().abs().max())
    gradient = float((x.grad - y.grad).abs().max())
    return Found(f"differences: codes {codes:.2g}, gradient {gradient:.2g}", codes == 0 and gradient == 0)


@probe("k-means initialization with 100 vectors for 256 codes leaves no zero and no equal codes")
def initialization_with_fewer_vectors_than_codes(library: Library) -> Found:
    quantizer = library.with_kmeans(8, 256)
    library.start_from(quantizer, drawn(100, 8))
    codes = library.codes(quantizer).detach()
    zeros, distinct = int((codes == 0).all(1).sum()), len(codes.unique(dim=0))
    return Found(f"{zeros} zero, {distinct} distinct", zeros == 0 and distinct == 256)


@probe("The first call in evaluation fits nothing to its data")
def first_call_in_evaluation_fits_nothing(library: Library) -> Found:
    quantizer = library.with_kmeans(8, 32).eval()
    before = state(quantizer)
    library.call(quantizer, 5 + drawn(1, 100, 8))
    same = state(quantizer) == before
    return Found("nothing changes" if same else "the codes are fitted and kept", same)


@probe("A trained affine codebook (affine_param there, AffineCodebook here) loads strictly")
def affine_codebook_loads_strictly(library: Library) -> Found:
    trained, fresh = library.affine(8, 32), library.affine(8, 32)
    library.call(trained, drawn(1, 64, 8)), library.learn(trained)
    fresh.load_state_dict(trained.state_dict(), strict=True)
    x = drawn(1, 500, 8, seed=2)
    same = torch.equal(library.call(trained.eval(), x)[1], library.call(fresh.eval(), x)[1])
    return Found("loads" if same else "loads, but other indices", same)


@probe("A codebook trained by Adam (there by in_place_codebook_optimizer) resumes exactly from what is saved")
def codebook_optimizer_resumes_exactly(library: Library) -> Found:
    make = library.with_optimizer if isinstance(library, Theirs) else library.by_gradients
    found = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        quantizer = make(8, 32)
        step = library.resumed(quantizer, None)
        for number in range(10):
            if interrupted and number == 5:
                kept = library.saved(quantizer, step)
                quantizer = make(8, 32)
                step = library.resumed(quantizer, kept)
            step(drawn(64, 8, seed=number))
        found.append(library.codes(quantizer).detach())
    away = float((found[0] - found[1]).abs().max())
    return Found(f"codes differ by {away:.2g} five steps after resuming", away == 0)


@probe("Codes that were overwritten, and whose vectors agree with them, stay there in the next step")
def overwritten_codebook_is_learned_from(library: Library) -> Found:
    quantizer, new = library.averages(8, 32), 10 + drawn(32, 8, seed=9)
    for number in range(5):
        library.call(quantizer, drawn(1, 200, 8, seed=number)), library.learn(quantizer)
    library.write(quantizer, new.clone())
    library.call(quantizer, new[None]), library.learn(quantizer)
    moved = float((library.codes(quantizer).detach() - new).abs().max())
    return Found(f"they move by up to {moved:.2g}", moved < 1e-4)


@probe("An orthogonality loss with moving averages is refused, or one of them owns the codes")
def orthogonality_loss_with_moving_averages(library: Library) -> Found:
    try:
        quantizer = library.orthogonal_averages(8, 32)
    except Exception as error:
        return Found(f"refused: {said(error)}", True)
    before = library.codes(quantizer).detach().clone()
    _, _, loss = library.call(quantizer, drawn(1, 64, 8))
    library.learn(quantizer)
    loss.backward()
    averaged = not torch.equal(library.codes(quantizer).detach(), before)
    trained = any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in quantizer.parameters())
    both = averaged and trained
    return Found("both an average and an optimizer move the codes" if both else "one of them moves the codes", not both)


@probe("The weights of the commitment and codebook losses are separate")
def weights_of_the_codebook_and_commitment_losses(library: Library) -> Found:
    gradients = []
    for weight in (1.0, 3.0):
        torch.manual_seed(0)
        quantizer = library.by_gradients(8, 32, weight)
        library.call(quantizer, drawn(1, 64, 8))[2].backward()
        gradients.append(next(p.grad for p in quantizer.parameters() if p.grad is not None))
    times = float(gradients[1].norm() / gradients[0].norm())
    return Found(f"commitment weight times 3: gradient of the codes times {times:.3g}", abs(times - 1) < 1e-4)


@probe("Finite scalars of 8^9 and 8^11 codes: code to index to code is exact, or refused")
def large_grids_of_finite_scalars(library: Library) -> Found:
    parts, good = [], True
    for components in (9, 11):
        values, indices, back = library.grid_trip([8] * components, 2 * drawn(20_000, components))
        wrong, least = float((values != back).any(-1).double().mean()), int(indices.min())
        parts.append(f"8^{components}: {100 * wrong:.1f} % wrong{', negative indices' if least < 0 else ''}")
        good = good and wrong == 0 and least >= 0
    return Found("; ".join(parts), good)


@probe("torch.compile makes one graph (fullgraph), in training and evaluation")
def compiles_into_one_graph(library: Library) -> Found:
    def way(make: Callable[[], nn.Module], training: bool) -> Callable[[], str | None]:
        def run() -> str | None:
            torch._dynamo.reset()
            frames = CompileCounterWithBackend("eager")
            compiled = torch.compile(make().train(training), fullgraph=True, backend=frames, dynamic=False)
            for _ in range(2):
                compiled(drawn(1, 64, 8))
            return None if frames.frame_count == 1 else f"{frames.frame_count} graphs"

        return run

    averages, residual = lambda: library.averages(8, 32), lambda: library.residual(8, 32, 3)
    return tried(
        {
            "moving averages, training": way(averages, True),
            "evaluation": way(averages, False),
            "residual, evaluation": way(residual, False),
        }
    )


@probe("torch.export works in evaluation")
def exports_in_evaluation(library: Library) -> Found:
    class Whole(nn.Module):
        def __init__(self, quantizer: nn.Module) -> None:
            super().__init__()
            self.quantizer = quantizer

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            output = self.quantizer(x)
            return output[0], output[1]

    def way(make: Callable[[], nn.Module], dim: int) -> Callable[[], str | None]:
        def run() -> str | None:
            quantizer, x = make().eval(), drawn(1, 30, dim)
            found = torch.export.export(Whole(quantizer), (x,)).module()(x)[1]
            return None if torch.equal(found, library.call(quantizer, x)[1]) else "other indices"

        return run

    return tried(
        {
            "moving averages": way(lambda: library.averages(8, 32), 8),
            "residual": way(lambda: library.residual(8, 32, 3), 8),
            "finite scalars": way(lambda: library.grid([8, 5, 5, 5]), 4),
        }
    )


def built_before(library: Library, rank: int, meet: Callable[[], None]) -> Tensor:
    """Codes after ten steps of a quantizer that is older than the process group."""
    quantizer = library.averages(8, 32)
    meet()
    for number in range(10):
        library.call(quantizer, drawn(1, 64, 8, seed=10 * number + rank)), library.learn(quantizer)
    return library.codes(quantizer).detach().clone()


def built_after(library: Library, rank: int, meet: Callable[[], None]) -> Tensor:
    """Codes after k-means on even, then on uneven shares."""
    meet()
    found = []
    for shares in ((64, 64), (100, 28)):
        torch.manual_seed(rank)
        quantizer = library.with_kmeans(8, 32)
        library.start_from(quantizer, drawn(shares[rank], 8, seed=rank))
        for number in range(3):
            library.call(quantizer, drawn(1, shares[rank], 8, seed=10 * number + rank)), library.learn(quantizer)
        found.append(library.codes(quantizer).detach().clone())
    return torch.stack(found)


def one_masked(library: Library, rank: int, meet: Callable[[], None]) -> Tensor:
    """Codes after two steps with replacement of dead codes, in which the second process has nothing valid."""
    meet()
    quantizer = library.averages(8, 32, revival=True)
    for number in range(2):
        mask = torch.full((1, 64), rank == 0)
        library.call(quantizer, drawn(1, 64, 8, seed=number), mask), library.learn(quantizer)
    return library.codes(quantizer).detach().clone()


@probe("Two processes, quantizer built before the process group: codes stay equal")
def two_processes_built_before_the_group(library: Library) -> Found:
    return _equal_codes(*on_two(library, built_before))


@probe("Two processes, built after it, k-means on even and uneven shares: codes are equal")
def two_processes_built_after_the_group(library: Library) -> Found:
    return _equal_codes(*on_two(library, built_after))


@probe("Two processes, one with everything masked: no hang, codes are equal")
def one_process_with_everything_masked(library: Library) -> Found:
    return _equal_codes(*on_two(library, one_masked))


def _equal_codes(left: Tensor, right: Tensor) -> Found:
    away = float((left - right).abs().max())
    return Found("equal codes" if away == 0 else f"codes differ by {away:.2g}", away == 0)


@probe("A residual quantizer of three levels decodes the indices of the first two")
def residual_uses_its_first_levels(library: Library) -> Found:
    quantizer, x = library.residual(8, 32, 3).eval(), drawn(1, 64, 8)
    indices = library.call(quantizer, x)[1]
    coarse = library.decode(quantizer, indices[..., :2])
    good = coarse.shape == x.shape and not torch.equal(coarse, library.decode(quantizer, indices))
    return Found("works" if good else "gives all levels", good)


@probe("The input gradient of 1, 2, 4, 8 residual levels (straight-through) is the upstream gradient")
def residual_gradient_is_the_upstream_one(library: Library) -> Found:
    times = []
    for levels in (1, 2, 4, 8):
        x = drawn(1, 64, 8).requires_grad_()
        library.call(library.residual(8, 32, levels), x)[0].sum().backward()
        assert x.grad is not None
        times.append(float(x.grad.mean()))
    good = all(abs(each - 1) < 1e-6 for each in times)
    return Found(f"{', '.join(f'{each:.3g}' for each in times)} times upstream", good)


@probe("Usage can be measured over many batches, and the main classes have docstrings")
def usage_is_measured_and_everything_is_documented(library: Library) -> Found:
    parts = library.main_parts()
    told = [part for part in parts if (getattr(part, "__doc__", "") or "").strip()]
    usage = library.measures_usage()
    text = f"{'measured' if usage else 'not measured'}; {len(told)} of {len(parts)} have docstrings"
    return Found(text, usage and len(told) == len(parts))


@probe("codebook_size=0 and vectors of a wrong size raise a ValueError that says what is wrong")
def errors_say_what_is_wrong(library: Library) -> Found:
    ways: dict[str, Callable[[], Any]] = {
        "codebook_size=0": lambda: library.call(library.averages(8, 0), drawn(1, 4, 8)),
        "wrong dim": lambda: library.call(library.averages(8, 32), drawn(1, 4, 9)),
    }
    parts, good = [], True
    for name, way in ways.items():
        try:
            way()
        except Exception as error:
            parts.append(f"{name}: {said(error)}")
            good = good and isinstance(error, ValueError)
        else:
            parts.append(f"{name}: no error")
            good = False
    return Found("; ".join(parts), good)


Job = Callable[[Library, int, Callable[[], None]], Tensor]
_LATE = "a collective timed out"


class ProcessError(Exception):
    """What a process of two said of its end."""


def on_two(library: Library, job: Job) -> tuple[Tensor, Tensor]:
    """What a job gives on two processes; a collective that waits too long is an error."""
    context = mp.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(target=_serve, args=(type(library), job, rank, folder, answers), daemon=True)
            for rank in range(2)
        ]
        for worker in workers:
            worker.start()
        found: dict[int, Any] = {}
        with contextlib.suppress(queue.Empty):
            while len(found) < 2:
                rank, answer = answers.get(timeout=60 + 2 * RANK_TIMEOUT)
                found[rank] = answer
        for worker in workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
    errors = [answer for answer in found.values() if isinstance(answer, str)]
    if errors:
        raise ProcessError(min(errors, key=lambda text: _LATE not in text))  # the other one only lost its partner
    if len(found) < 2:
        raise ProcessError("a process gave no answer")
    left, right = (torch.tensor(found[rank]) for rank in range(2))
    return left, right


def _serve(kind: type[Library], job: Job, rank: int, folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def meet() -> None:
        waits = timedelta(seconds=RANK_TIMEOUT)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=waits)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answers.put((rank, job(kind(), rank, meet).tolist()))
    except Exception as error:
        late = "imed out" in str(error) or "imeout" in str(error)
        answers.put((rank, f"hangs: {_LATE} after {RANK_TIMEOUT:g} s" if late else said(error)))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No warnings, and the same random numbers for everyone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def asked(each: Probe, library: Library) -> Found:
    """The answer of a library; an error is one."""
    with quietly():
        try:
            return each.ask(library)
        except ProcessError as error:
            return Found(str(error), False)
        except Exception as error:
            return Found(said(error), False)


def main() -> None:
    """Ask both libraries everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", nargs="*", help="only these, printed and not written")
    names = parser.parse_args().probes
    torch.set_num_threads(1)
    chosen = [each for each in PROBES if names is None or each.name in names]
    about = circumstances("", "")
    rows = []
    for each in chosen:
        for library in (Ours(), Theirs()):
            found = asked(each, library)
            print(f"{each.name}: {library.name}: {'passes' if found.passes else 'FAILS'}: {found.result}", flush=True)
            row = (each.name, each.asks, library.name, library.version, found.result, "yes" if found.passes else "no")
            rows.append((*row, f"{date.today()}", COMMAND, *(about[key] for key in ("hardware", "commit", "versions"))))
    if names is None:
        path = RESULTS / f"probes_{hardware()}_{date.today():%Y%m}.csv"
        with replacing(path) as scratch, Path(scratch).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)


if __name__ == "__main__":
    main()
