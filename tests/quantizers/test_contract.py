"""What every quantizer promises, checked over the whole zoo.

A row skips a check only through an attribute it declares: ``exact`` (noise or soft codes), ``draws_indices`` (in
training chance decides, so other batches get other codes), ``writes`` (codes that cannot be overwritten), ``layout``
(vectors that are quantized together, so that rows cannot be dropped or moved).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor_config
from torch.utils.checkpoint import checkpoint

from gritvq import Codebook, CodeStatistics, Quantizer, from_config, to_config
from zoo import DIM, GRAPHS, KINDS, QUANTIZERS, SIZE, quick, trained_a_little

Make = Callable[[int, int], Quantizer]
each = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS.keys())


def made(make: Make, seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    return trained_a_little(make(DIM, SIZE))


def data(quantizer: Quantizer, *shape: int, seed: int = 1) -> Tensor:
    """Random input of this leading shape, or of about as many vectors in whole blocks of the quantizer's layout."""
    if quantizer.layout:
        blocks = math.ceil(math.prod(shape) / math.prod(quantizer.layout))
        shape = (0 if 0 in shape else max(2, blocks), *quantizer.layout)
    return torch.randn(*shape, quantizer.input_dim, generator=torch.Generator().manual_seed(seed))


def contents(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and statistics, copied."""
    found = {name: value.detach().clone() for name, value in module.named_parameters()}
    found |= {name: value.detach().clone() for name, value in module.named_buffers()}
    for name, part in module.named_modules():
        if isinstance(part, CodeStatistics):
            found |= {f"{name}.{k}": v.clone() for k, v in part.tensors().items()}
    return found


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    assert left.keys() == right.keys()
    for name in left:
        if not name.endswith(but or ("\0",)):
            assert torch.equal(left[name], right[name]), name


def optimizer_for(quantizer: Quantizer) -> torch.optim.Optimizer | None:
    groups = quantizer.parameter_groups(1e-2)
    return torch.optim.Adam(groups) if groups else None


def train_step(quantizer: Quantizer, optimizer: torch.optim.Optimizer | None, x: Tensor) -> Tensor:
    output = quantizer(x)
    loss = output.quantized.square().mean() + output.loss
    if optimizer is not None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quantizer.update_codebook(optimizer)
    return loss.detach()


@each
class TestEveryQuantizer:
    def test_shapes_and_types(self, make: Make) -> None:
        quantizer = made(make)
        for shape in ((2, 3), (5,), ()):
            x = data(quantizer, *shape)
            quantized, indices, losses = quantizer(x)
            assert quantized.shape == (*x.shape[:-1], quantizer.dim) and quantized.dtype == torch.float32
            assert indices.shape == (*quantizer.token_shape(tuple(x.shape[:-1])), len(quantizer.codebook_sizes))
            assert indices.dtype == torch.int64
            assert bool((indices >= -1).all() and (indices < torch.tensor(quantizer.codebook_sizes)).all())
            assert bool((indices >= 0).any(-1).all())
            assert quantizer.layout or bool((indices >= 0).all())
            assert all(loss.shape == () and bool(torch.isfinite(loss)) for loss in losses.values())
        output = quantizer.eval()(data(quantizer, 4))
        assert output.losses == {} and output.loss == 0

    def test_value_is_bitwise_what_the_indices_decode_to(self, make: Make) -> None:
        quantizer = made(make)
        dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        for dtype, training in itertools.product(dtypes, (True, False)):
            quantized, indices, _ = quantizer.train(training)(data(quantizer, 50).to(dtype))
            assert quantized.dtype == dtype
            if quantizer.exact == "always" or (quantizer.exact == "eval" and not training):
                assert torch.equal(quantizer.decode(indices).to(dtype), quantized)

    def test_encode_is_forward_in_eval_and_leaves_everything_as_it_was(self, make: Make) -> None:
        quantizer = made(make)
        x = data(quantizer, 2, 20)
        before = contents(quantizer)
        indices = quantizer.encode(x)
        assert all(module.training for module in quantizer.modules())
        assert_same(before, contents(quantizer))
        output = quantizer.eval()(x)
        assert torch.equal(indices, output.indices)
        if quantizer.exact != "never":
            assert torch.equal(quantizer.decode(indices), output.quantized)
        assert_same(before, contents(quantizer))

    def test_training_forward_leaves_the_codes(self, make: Make) -> None:
        quantizer = made(make)
        before = contents(quantizer)
        quantizer(data(quantizer, 64))
        assert_same(before, contents(quantizer), but=("counts", "sums", "samples", "keys", "num_seen", "pending"))

    def test_leading_shape_does_not_matter(self, make: Make) -> None:
        quantizer = made(make).eval()
        if quantizer.layout:
            x = data(quantizer, 30)
            whole, part = quantizer(x), quantizer(x[:1])
            assert torch.equal(whole.indices[:1], part.indices)
            torch.testing.assert_close(whole.quantized[:1], part.quantized)
            with pytest.raises(ValueError, match="expected"):
                quantizer(x.flatten(0, -2)[:7])
            return
        x = data(quantizer, 2, 3, 4)
        whole, flat = quantizer(x), quantizer(x.flatten(0, -2))
        assert torch.equal(whole.quantized.flatten(0, -2), flat.quantized)
        assert torch.equal(whole.indices.flatten(0, -2), flat.indices)
        last = quantizer(x[1, 2, 3])
        torch.testing.assert_close(last.quantized, whole.quantized[1, 2, 3], rtol=1e-6, atol=1e-6)
        assert torch.equal(last.indices, whole.indices[1, 2, 3])

    def test_mask_equals_dropping_the_rows(self, make: Make) -> None:
        masked, dropped = made(make), made(make)
        if masked.layout:
            return  # rows cannot be dropped; what masked ones hold must not matter, which the next test checks
        x, mask = data(masked, 3, 10), torch.rand(3, 10, generator=torch.Generator().manual_seed(5)) < 0.6
        one, two = x.clone().requires_grad_(), x[mask].clone().requires_grad_()
        if masked.draws_indices:
            masked.eval(), dropped.eval()
        a, b = masked(one, mask), dropped(two)
        assert torch.equal(a.indices[mask], b.indices) and bool((a.indices[~mask] == -1).all())
        assert bool((a.quantized[~mask] == 0).all())
        assert torch.equal(masked.decode(a.indices)[~mask], torch.zeros(int((~mask).sum()), masked.dim))
        assert a.losses.keys() == b.losses.keys()
        if masked.exact == "eval":  # chance decides in training
            masked.eval(), dropped.eval()
            a, b = masked(one, mask), dropped(two)
        for name in a.losses:
            torch.testing.assert_close(a.losses[name], b.losses[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.quantized[mask], b.quantized)
        weight = torch.randn(3, 10, masked.dim, generator=torch.Generator().manual_seed(7))
        ((a.quantized * weight).sum() + a.loss).backward()
        ((b.quantized * weight[mask]).sum() + b.loss).backward()
        assert one.grad is not None and two.grad is not None
        torch.testing.assert_close(one.grad[mask], two.grad, rtol=1e-4, atol=1e-6)
        assert bool((one.grad[~mask] == 0).all())
        for p, q in zip(masked.parameters(), dropped.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None and q.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)

    def test_what_masked_vectors_hold_does_not_matter(self, make: Make) -> None:
        results = []
        for filling in (0.0, 7.0, float("nan")):
            quantizer = made(make)
            x = data(quantizer, 30)
            mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(5)) < 0.6
            x = torch.where(mask.unsqueeze(-1), x, filling).requires_grad_()
            torch.manual_seed(3)
            output = quantizer(x, mask)
            (output.quantized.square().sum() + output.loss).backward()
            quantizer.update_codebook()
            assert x.grad is not None and bool((x.grad[~mask] == 0).all())
            found = {"quantized": output.quantized, "indices": output.indices, "gradient": x.grad}
            results.append({**found, **output.losses, **contents(quantizer)})
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])

    def test_nothing_to_learn_from_changes_nothing(self, make: Make) -> None:
        quantizer = made(make)
        for _ in range(3):  # averages, ages of codes, samples and schedules are under way
            quantizer(data(quantizer, 4, 3))
            quantizer.update_codebook()
        before = contents(quantizer)
        masked = torch.zeros(data(quantizer, 4, 3).shape[:-1], dtype=torch.bool)
        for x, mask in (
            (data(quantizer, 0, 3), None),
            (data(quantizer, 4, 3), masked),
            (data(quantizer, 4, 3) * float("nan"), None),
        ):
            output = quantizer(x.requires_grad_(), mask)
            assert float(output.loss.detach()) == 0 and not any(float(v.detach()) for v in output.losses.values())
            (output.quantized.sum() + output.loss).backward()
            assert bool((output.indices == -1).all() and (output.quantized == 0).all())
            for parameter in quantizer.parameters():
                assert parameter.grad is None or not parameter.grad.any()
            quantizer.update_codebook()
            assert_same(before, contents(quantizer))

    def test_a_vector_that_is_not_finite_cannot_poison_the_codes(self, make: Make) -> None:
        quantizer = made(make)
        x = data(quantizer, 40)
        for row, bad in ((7, float("nan")), (8, float("inf")), (9, -float("inf"))):
            x.view(-1, x.shape[-1])[row, 2] = bad
        optimizer = optimizer_for(quantizer)
        for _ in range(3):
            assert bool(torch.isfinite(train_step(quantizer, optimizer, x)))
        assert all(bool(torch.isfinite(value).all()) for value in contents(quantizer).values())
        output = quantizer.eval()(x)
        assert quantizer.layout or bool((output.indices[7:10] == -1).all() and (output.indices[:7] >= 0).all())
        assert bool(torch.isfinite(output.quantized).all())

    def test_half_precision_model_keeps_the_codes_wide(self, make: Make) -> None:
        quantizer = made(make)
        before = contents(quantizer)
        quantizer.bfloat16()
        after = contents(quantizer)
        codes = tuple(name for name, module in quantizer.named_modules() if isinstance(module, Codebook))
        assert all(after[name].dtype == before[name].dtype for name in before if name.startswith(codes))
        changed = [name for name in before if not torch.equal(after[name].to(before[name].dtype), before[name])]
        assert all(isinstance(quantizer.get_parameter(name), nn.Parameter) for name in changed)
        assert not any(name.startswith(codes) for name in changed)
        assert quantizer(data(quantizer, 5).bfloat16()).quantized.dtype == torch.bfloat16

    def test_accumulated_batches_equal_the_joined_one(self, make: Make) -> None:
        joined, parts = made(make), made(make)
        if joined.draws_indices:
            return
        x = data(joined, 60)
        joined(x)
        cut = len(x) // 3
        parts(x[:cut]), parts(x[cut:])
        for quantizer in (joined, parts):
            quantizer.update_codebook()
        left, right = contents(joined), contents(parts)
        for name in left:
            if joined.layout and name.endswith(("samples", "keys")):
                continue  # a unit that works at several levels meets its vectors in another order
            torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-5, msg=name)

    def test_fold_keeps_indices_and_values_bitwise(self, make: Make) -> None:
        quantizer = made(make)
        x = data(quantizer, 300)
        folded = quantizer.fold()
        indices = quantizer.encode(x)
        assert torch.equal(folded.encode(x), indices)
        assert torch.equal(folded.decode(indices), quantizer.decode(indices))
        assert not any(p.requires_grad for p in folded.parameters()) and not folded.training
        tables = [module for module in folded.modules() if isinstance(module, Codebook)]
        assert all([p.shape for p in t.parameters()] == [(t.codebook_size, t.dim)] for t in tables)

    def test_rebuilds_from_its_description(self, make: Make) -> None:
        quantizer = made(make)
        description = to_config(quantizer)
        other: Any = from_config(description)
        saved = safetensors.torch.save({name: value.clone() for name, value in quantizer.state_dict().items()})
        other.load_state_dict(safetensors.torch.load(saved))
        assert_same(other.state_dict(), quantizer.state_dict())
        assert type(other) is type(quantizer) and to_config(other) == description
        assert torch.equal(other.encode(data(quantizer, 50)), quantizer.encode(data(quantizer, 50)))
        clone = copy.deepcopy(quantizer)
        assert to_config(clone) == description
        assert_same(contents(clone), contents(quantizer))

    def test_initialization_fits_the_data_and_forward_never_does(self, make: Make) -> None:
        quantizer = made(make)
        x = 5 + 0.1 * data(quantizer, 400)
        before = contents(quantizer)
        quantizer.eval()(x)
        assert_same(before, contents(quantizer))
        torch.manual_seed(0)
        fresh = make(DIM, SIZE)
        fresh.initialize_codebook(x)
        books = [module for module in fresh.modules() if isinstance(module, Codebook)]
        if not books:
            assert_same(before, contents(fresh))  # nothing can be written, and nothing is
            return
        if any(book.writes is None for book in books):
            assert all(bool(((book.codes().mean(0) - 5).abs() < 0.5).all()) for book in books)
            return
        indices = fresh.encode(x)
        assert indices.unique().numel() > 0.5 * SIZE
        if len(fresh.codebook_sizes) == 1 and not fresh.layout:
            assert torch.pdist(fresh.decode(torch.arange(SIZE)[:, None])).min() > 0

    def test_bad_input_is_refused(self, make: Make) -> None:
        quantizer = made(make)
        size, channels = quantizer.codebook_sizes[0], len(quantizer.codebook_sizes)
        for x, message in (
            (data(quantizer, 3)[..., :-1], rf"expected vectors \(\*batch, {quantizer.input_dim}\), got"),
            (torch.tensor(1.0), "expected vectors"),
            (data(quantizer, 3).long(), r"expected a floating type, got torch\.int64"),
        ):
            with pytest.raises(ValueError, match=message):
                quantizer(x)
        x = data(quantizer, 3)
        with pytest.raises(ValueError, match="expected a bool mask"):
            quantizer(x, torch.ones(4, dtype=torch.bool))
        with pytest.raises(ValueError, match="expected a bool mask"):
            quantizer(x, torch.ones(x.shape[:-1]))
        for indices, message in (
            (torch.full((1, channels), size), f"got {size}"),
            (torch.full((1, channels), -2), "got -2"),
            (torch.zeros(3, channels + 1).long(), "expected integer indices"),
            (torch.zeros(3, channels), "expected integer indices"),
        ):
            with pytest.raises(ValueError, match=message):
                quantizer.decode(indices)


kinds = pytest.mark.parametrize("make", quick(*KINDS))  # what is slow; the other rows in `make soak`


@kinds
class TestEveryKind:
    def test_same_seed_same_everything(self, make: Make) -> None:
        left, right = made(make), made(make)
        assert_same(contents(left), contents(right))
        for quantizer in (left, right):
            torch.manual_seed(3)
            optimizer = optimizer_for(quantizer)
            for step in range(3):
                train_step(quantizer, optimizer, data(quantizer, 40, seed=step))
        assert_same(contents(left), contents(right))

    def test_saved_state_goes_on_exactly(self, make: Make) -> None:
        straight, first = made(make), made(make)
        optimizers = [optimizer_for(straight), optimizer_for(first)]
        for quantizer, optimizer in zip((straight, first), optimizers, strict=True):
            torch.manual_seed(3)
            for step in range(3):
                train_step(quantizer, optimizer, data(quantizer, 40, seed=step))
        state = copy.deepcopy(first.state_dict())
        moments = copy.deepcopy(optimizers[1].state_dict()) if optimizers[1] is not None else None
        random_state = torch.get_rng_state()
        resumed = made(make, seed=99)
        resumed.load_state_dict(state)
        optimizer = optimizer_for(resumed)
        if optimizer is not None:
            optimizer.load_state_dict(moments)
        for quantizer, own in ((straight, optimizers[0]), (resumed, optimizer)):
            torch.set_rng_state(random_state)
            for step in range(3, 7):
                train_step(quantizer, own, data(quantizer, 40, seed=step))
        assert_same(contents(straight), contents(resumed))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_changes_no_index(self, make: Make, dtype: torch.dtype) -> None:
        quantizer = made(make)
        x = data(quantizer, 200).to(dtype).float()
        expected = quantizer.encode(x)
        assert torch.equal(quantizer.encode(x.to(dtype)), expected)
        half = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            output = quantizer(half)
        assert quantizer.draws_indices or torch.equal(output.indices, expected)
        assert output.quantized.dtype == dtype
        (output.quantized.float().square().mean() + output.loss).backward()
        assert half.grad is not None and bool(torch.isfinite(half.grad).all())
        for parameter in quantizer.parameters():
            assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())

    def test_checkpointing_counts_once_and_gives_the_same_gradients(self, make: Make) -> None:
        results = []
        for reentrant in (None, False, True):
            quantizer = made(make)
            x = data(quantizer, 40).requires_grad_()
            torch.manual_seed(3)
            if reentrant is None:
                z = quantizer(x).quantized
            else:
                z = checkpoint(lambda v, q=quantizer: q(v).quantized, x, use_reentrant=reentrant)
            z.square().sum().backward()
            quantizer.update_codebook()
            grads: dict[str, Any] = {"x": x.grad, **{k: p.grad for k, p in quantizer.named_parameters()}}
            results.append((contents(quantizer), {k: v for k, v in grads.items() if v is not None}))
        for state, gradients in results[1:]:
            assert_same(results[0][0], state)
            assert_same(results[0][1], gradients)


GRADIENTS = {"grit_vq", "rotation_vq", "all-rules", "multiscale-ema"}  # of several kinds
# These fold into the same table as grit_vq does.
TABLES = {"all-rules", "diveq", "fvq", "gm_vq", "ns_vq", "perturbed", "rotation_vq", "transvq", "vq_wae"}


@pytest.mark.parametrize("make", quick(*(GRAPHS - TABLES)))
def test_folded_form_exports(make: Make) -> None:
    folded = made(make).fold()
    x = data(folded, 30)
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(_Encode(folded), (x,), dynamic_shapes=({0: rows},))
    for other in (x, data(folded, 77, seed=4)):
        values, indices = program.module()(other)
        assert torch.equal(indices, folded.encode(other))
        if folded.exact != "never" and not folded.layout:
            assert torch.equal(values, folded.decode(indices))
        else:
            torch.testing.assert_close(values, folded(other).quantized)


def compiled() -> Iterator[Any]:
    """Tracing shows that it is one graph; the compiler's own gradients run over some here, over all in `make soak`."""
    for row in quick(*GRAPHS):
        if row.id in GRAPHS - GRADIENTS:
            yield pytest.param(*row.values, "eager", id=f"{row.id}-eager")
        marks = () if row.id in GRADIENTS else pytest.mark.soak
        yield pytest.param(*row.values, "aot_eager", id=f"{row.id}-aot_eager", marks=marks)


@pytest.mark.parametrize(("make", "backend"), [*compiled()])
def test_one_graph_compiled_once(make: Make, backend: str) -> None:
    eager, other = made(make), made(make)
    frames = CompileCounterWithBackend(backend)
    compiled = torch.compile(other, fullgraph=True, backend=frames, dynamic=False)
    compare(eager, compiled, other)
    assert frames.frame_count == 1
    torch._dynamo.reset()


def compare(eager: Quantizer, compiled: Any, other: Quantizer) -> None:
    for step in range(2):
        results = []
        for quantizer in (eager, compiled):
            x = data(quantizer, 40, seed=step).requires_grad_()
            torch.manual_seed(3)
            output = quantizer(x)
            (output.quantized.square().sum() + output.loss).backward()
            results.append((output, x.grad))
        (a, grad_a), (b, grad_b) = results
        assert torch.equal(a.indices, b.indices)
        if eager.exact != "eval":
            torch.testing.assert_close(a.quantized, b.quantized)
            torch.testing.assert_close(grad_a, grad_b, rtol=1e-4, atol=1e-5)
    left, right = contents(eager), contents(other)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="without vector instructions PyTorch's compiler for the CPU writes some programs that g++ refuses",
)
@pytest.mark.parametrize("make", quick("grit_vq"))
def test_compiles_with_inductor(make: Make) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, other = made(make), made(make)
    compiled = torch.compile(other, fullgraph=True, dynamic=False)
    with inductor_config.patch(fallback_random=True):  # the same draws as without compiling
        compare(eager, compiled, other)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


class _Encode(nn.Module):
    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output = self.quantizer(x)
        return output.quantized, output.indices
