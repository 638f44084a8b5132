"""The probe table: what users of other libraries ran into, and what every quantizer here does instead.

One test per probe, named after it; ``benchmarks/quality/probes.py`` runs the same list against another library and
writes the table of ``docs/peers.md``. That command asks one quantizer of each library in the same words; these tests
hold the requirement with real values over every kind of quantizer that it concerns. So they share names and no code.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from benchmarks.quality.probes import PROBES
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import gritvq
from gritvq import (
    FSQ,
    AffineCodebook,
    ChannelsFirst,
    CodebookUsage,
    CommitmentLoss,
    DeadCodeRevival,
    EMAUpdate,
    FreeCodebook,
    OrthogonalityLoss,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    RotationTrick,
    VectorQuantizer,
    grit_vq,
    pq,
    rotation_vq,
    rq,
    simvq,
    vq_vae,
    vq_vae_ema,
)
from test_contract import assert_same, contents, optimizer_for, train_step
from test_distributed import on_one, on_two

DIM, SIZE = 4, 16
Make = Callable[[], Quantizer]


def _shared_heads() -> Quantizer:
    return ProductQuantizer([vq_vae_ema(2, SIZE)] * 2)


KINDS: dict[str, Make] = {
    "averages": lambda: vq_vae_ema(DIM, SIZE, decay=0.8, revival_interval=2),
    "gradients": lambda: vq_vae(DIM, SIZE),
    "rotation": lambda: rotation_vq(DIM, SIZE, decay=0.8),
    "grit_vq": lambda: grit_vq(DIM, SIZE),
    "simvq": lambda: simvq(DIM, SIZE),
    "projected": lambda: ProjectedQuantizer(vq_vae_ema(3, SIZE, decay=0.8), DIM),
    "separate heads": lambda: pq(DIM, SIZE),
    "shared heads": _shared_heads,
    "residual": lambda: rq(DIM, SIZE, num_levels=3, decay=0.8),
    "fsq": lambda: FSQ([5, 4, 3, 2]),
}
WITH_TABLES = [name for name in KINDS if name != "fsq"]
AVERAGES = ["averages", "rotation", "projected", "separate heads", "shared heads", "residual"]


def over(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [pytest.param(KINDS[name], id=name) for name in names or KINDS])


def vectors(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(quantizer: Quantizer, x: Tensor) -> None:
    """A training step without an optimizer."""
    quantizer(x)
    quantizer.update_codebook()


def test_every_probe_of_the_command_is_here() -> None:
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {probe.name for probe in PROBES} == here - {"every_probe_of_the_command_is_here"}


@over()
def test_training_output_is_what_its_indices_decode_to(make: Make) -> None:
    quantizer = make()
    for _ in range(3):
        output = quantizer(vectors(64, DIM))
        assert torch.equal(output.quantized, quantizer.decode(output.indices))
        quantizer.update_codebook()


@over("projected", "separate heads", "shared heads", "residual")
def test_mask_with_projection_or_heads(make: Make) -> None:
    masked, dropped, mask = make(), make(), torch.tensor([True] * 5 + [False] * 3).expand(2, 8)
    dropped.load_state_dict(masked.state_dict())
    x = vectors(2, 8, DIM)
    a, b = masked(x, mask), dropped(x[mask])
    assert bool((a.quantized[~mask] == 0).all() and (a.indices[~mask] == -1).all())
    assert torch.equal(a.indices[mask], b.indices)
    torch.testing.assert_close(a.loss, b.loss)


@over()
def test_lengths_with_channels_first(make: Make) -> None:
    """Lengths are given as a mask, which does not depend on where the channels are."""
    quantizer, lengths = make().eval(), torch.tensor([3, 7])
    x, mask = vectors(2, DIM, 7), torch.arange(7) < lengths[:, None]
    first, last = ChannelsFirst(quantizer)(x, mask), quantizer(x.movedim(1, -1), mask)
    assert torch.equal(first.quantized, last.quantized.movedim(-1, 1)) and torch.equal(first.indices, last.indices)
    assert bool((first.quantized[0, :, 3:] == 0).all() and (first.indices[0, 3:] == -1).all())


@over()
def test_mask_with_image_maps(make: Make) -> None:
    quantizer = ChannelsFirst(make())
    x, mask = vectors(2, DIM, 5, 6), torch.rand(2, 5, 6) < 0.5
    quantized, indices, losses = quantizer(x, mask)
    assert quantized.shape == x.shape and torch.equal((indices == -1).all(-1), ~mask)
    assert bool((quantized.movedim(1, -1)[~mask] == 0).all())
    assert all(math.isfinite(loss) for loss in losses.values())
    assert torch.equal(quantizer.decode(indices), quantized)


@over()
def test_nothing_valid_changes_nothing(make: Make) -> None:
    quantizer = make()
    stepped(quantizer, vectors(64, DIM))
    before = contents(quantizer)
    for x, mask in ((vectors(5, DIM), torch.zeros(5, dtype=torch.bool)), (vectors(0, DIM), None)):
        output = quantizer(x, mask)
        assert float(output.loss.detach()) == 0 and not output.quantized.any()
        quantizer.update_codebook()
        assert_same(before, contents(quantizer))


@over()
def test_padding_indices_decode_to_zeros(make: Make) -> None:
    quantizer, mask = make(), torch.tensor([True, True, False])
    for name, parameter in quantizer.named_parameters():
        if name.endswith("project_out.bias"):  # as after training
            nn.init.ones_(parameter)
    output = quantizer(vectors(3, DIM), mask)
    decoded = quantizer.decode(output.indices)
    assert torch.equal(decoded, output.quantized) and not decoded[2].any() and decoded[:2].any()


@over()
def test_one_vector_that_is_not_a_number(make: Make) -> None:
    """It is left out as if it had not been there: values, losses, codes and statistics are those without it."""
    with_it, without = make(), make()
    without.load_state_dict(with_it.state_dict())
    x = vectors(100, DIM)
    x[7, 2] = float("nan")
    keep = torch.arange(100) != 7
    a, b = with_it(x), without(x[keep])
    assert bool((a.indices[7] == -1).all()) and not a.quantized[7].any() and torch.equal(a.indices[keep], b.indices)
    torch.testing.assert_close(a.loss, b.loss)
    with_it.update_codebook(), without.update_codebook()
    for name, parameter in with_it.named_parameters():
        torch.testing.assert_close(parameter, without.get_parameter(name))


@pytest.mark.parametrize("mean", [0, 100, 1000])
@pytest.mark.parametrize("preset", [vq_vae_ema, vq_vae, simvq, grit_vq])
def test_data_far_from_the_origin(preset: Callable[[int, int], VectorQuantizer], mean: float) -> None:
    """The chosen code is the nearest one, but where two are equally near up to rounding of the distance."""
    quantizer = preset(32, 512).eval()
    quantizer.codebook.write(torch.arange(512), mean + vectors(512, 32))
    x = mean + vectors(1000, 32, seed=2)
    codes = quantizer.codebook.codes().detach().double()
    distances = torch.cdist(x.double(), codes, compute_mode="donot_use_mm_for_euclid_dist")
    chosen = distances.gather(1, quantizer.encode(x)).squeeze(1)
    assert bool((chosen <= distances.min(1).values * (1 + 1e-6)).all())


def test_half_precision_model_follows_the_mean() -> None:
    """600 equal steps bring the only code to the mean of its vectors, as in float32."""
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        quantizer = VectorQuantizer(FreeCodebook(DIM, 1), learning=[EMAUpdate(0.99)]).to(dtype)
        x = (2 + vectors(64, DIM)).bfloat16().half().to(dtype)
        quantizer(vectors(64, DIM).to(dtype))
        quantizer.update_codebook()
        for _ in range(600):
            quantizer(x)
            quantizer.update_codebook()
        found.append(float((quantizer.codebook.codes() - x.float().mean(0)).abs().max()))
    assert max(found) < 0.01 and found[1] == pytest.approx(found[0], abs=1e-4)


@over()
def test_autocast_changes_no_index(make: Make) -> None:
    quantizer, x = make().eval(), vectors(5000, DIM)
    expected = quantizer(x).indices
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(x).indices, expected)


@over("projected", "residual", "fsq", "grit_vq")
def test_half_precision_input_of_a_float32_module(make: Make) -> None:
    quantizer = make()
    for dtype in (torch.bfloat16, torch.float16):
        x = vectors(20, DIM).to(dtype).requires_grad_()
        output = quantizer(x)
        (output.quantized.sum() + output.loss).backward()
        assert output.quantized.dtype == dtype and x.grad is not None and x.grad.dtype == dtype
        assert torch.equal(output.indices, quantizer.encode(x.float()))


@over()
def test_activation_checkpointing_counts_once(make: Make) -> None:
    torch.manual_seed(0)
    plain = make()
    kept = copy.deepcopy(plain)
    x, y = (vectors(50, DIM).requires_grad_() for _ in range(2))
    plain(x).quantized.square().sum().backward()
    checkpoint(lambda v: kept(v).quantized, y, use_reentrant=False).square().sum().backward()
    assert x.grad is not None and y.grad is not None and torch.equal(x.grad, y.grad)
    plain.update_codebook(), kept.update_codebook()
    assert_same(contents(plain), contents(kept))


@pytest.mark.parametrize("name", ["vq_vae_ema", "rq", "pq"])
def test_initialization_with_fewer_vectors_than_codes(name: str) -> None:
    """All codes differ. Later levels see remainders that are all zero, so there one code at zero is a good one."""
    quantizer = getattr(gritvq, name)(DIM, 256)
    quantizer.initialize_codebook(vectors(100, DIM))
    tables = [module.codes().detach() for module in quantizer.modules() if isinstance(module, gritvq.Codebook)]
    assert all(len(codes.unique(dim=0)) == 256 for codes in tables)
    zeros = [int((codes == 0).all(1).sum()) for codes in tables]
    assert zeros[0] == 0 and (sum(zeros) == 0 if name == "pq" else max(zeros) <= 1)


@over()
def test_first_call_in_evaluation_fits_nothing(make: Make) -> None:
    quantizer = make().eval()
    before = contents(quantizer)
    quantizer(5 + vectors(100, DIM)), quantizer.encode(5 + vectors(100, DIM))
    assert_same(before, contents(quantizer))


@pytest.mark.parametrize("structure", ["full", "diagonal", "low_rank"])
def test_affine_codebook_loads_strictly(structure: Any) -> None:
    trained, fresh = (VectorQuantizer(AffineCodebook(DIM, SIZE, structure=structure)) for _ in range(2))
    optimizer = optimizer_for(trained)
    for step in range(3):
        train_step(trained, optimizer, vectors(64, DIM, seed=step))
    fresh.load_state_dict(trained.state_dict(), strict=True)
    assert_same(contents(trained), contents(fresh))
    assert torch.equal(trained.encode(vectors(99, DIM)), fresh.encode(vectors(99, DIM)))


@over(*WITH_TABLES)
def test_codebook_optimizer_resumes_exactly(make: Make) -> None:
    """Codes that gradients move belong to the model's optimizer, whose state is saved with it."""
    runs: list[dict[str, Tensor]] = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        quantizer = make()
        optimizer = optimizer_for(quantizer)
        for step in range(6):
            if interrupted and step == 3:
                state, old = copy.deepcopy(quantizer.state_dict()), optimizer
                quantizer = make()
                quantizer.load_state_dict(state)
                optimizer = optimizer_for(quantizer)
                if optimizer is not None and old is not None:
                    optimizer.load_state_dict(copy.deepcopy(old.state_dict()))
            train_step(quantizer, optimizer, vectors(40, DIM, seed=step))
        runs.append(contents(quantizer))
    assert_same(*runs)


def test_overwritten_codebook_is_learned_from() -> None:
    """The next update starts from the new codes: each moves by at most 1 - decay of its way to its vectors' mean."""
    quantizer = vq_vae_ema(DIM, SIZE, decay=0.9, revival_interval=None)
    for step in range(5):
        stepped(quantizer, vectors(200, DIM, seed=step))
    new = 10 + vectors(SIZE, DIM, seed=9)
    quantizer.codebook.write(torch.arange(SIZE), new)
    x = 10 + vectors(200, DIM, seed=10)
    indices = quantizer.encode(x).squeeze(1)
    stepped(quantizer, x)
    means = torch.stack([x[indices == k].mean(0) if (indices == k).any() else new[k] for k in range(SIZE)])
    torch.testing.assert_close(quantizer.codebook.codes(), new + 0.1 * (means - new), rtol=1e-5, atol=1e-5)


def test_orthogonality_loss_with_moving_averages() -> None:
    with pytest.raises(ValueError, match="one source of changes to the codes, got EMAUpdate and gradients from Orthog"):
        VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(), OrthogonalityLoss()])


def test_weights_of_the_codebook_and_commitment_losses() -> None:
    """Each scales its own term alone: the commitment the encoder's gradient, the codebook loss that of the codes."""
    gradients: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}
    for commitment, codebook in ((1.0, 1.0), (3.0, 1.0), (1.0, 3.0)):
        torch.manual_seed(0)
        quantizer = vq_vae(DIM, SIZE, commitment_weight=commitment, codebook_weight=codebook)
        x = vectors(50, DIM).requires_grad_()
        output = quantizer(x)
        assert sorted(output.losses) == ["codebook", "commitment"]
        output.loss.backward()
        weight = next(quantizer.codebook.parameters())
        assert x.grad is not None and weight.grad is not None
        gradients[commitment, codebook] = x.grad, weight.grad
    for setting, factors in (((3.0, 1.0), (3, 1)), ((1.0, 3.0), (1, 3))):
        for found, base, factor in zip(gradients[setting], gradients[1.0, 1.0], factors, strict=True):
            torch.testing.assert_close(found, factor * base)


@pytest.mark.parametrize("components", [9, 11, 21])
def test_large_grids_of_finite_scalars(components: int) -> None:
    """Index to code to index, up to 2^63 codes; more are refused."""
    quantizer, size = FSQ([8] * components), 8**components
    drawn = torch.randint(size - 1, (100_000, 1), generator=torch.Generator().manual_seed(0))
    indices = torch.cat([drawn, torch.tensor([[0], [size - 1]])])
    codes = quantizer.decode(indices)
    digits = quantizer.digits(codes)
    assert torch.equal((digits * quantizer.weights).sum(-1, keepdim=True), indices)
    found = quantizer.encode(10 * vectors(1000, components))
    assert found.dtype == torch.int64 and int(found.min()) >= 0
    with pytest.raises(ValueError, match=r"at most 2\^63 codes"):
        FSQ([8] * 22)


@over("averages", "residual")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_into_one_graph(make: Make, training: bool) -> None:
    torch._dynamo.reset()
    quantizer = make().train(training)
    other, frames = copy.deepcopy(quantizer), CompileCounterWithBackend("eager")
    compiled = torch.compile(other, fullgraph=True, backend=frames, dynamic=False)
    for step in range(2):
        x = vectors(40, DIM, seed=step)
        expected, found = quantizer(x), compiled(x)
        assert torch.equal(found.quantized, expected.quantized) and torch.equal(found.indices, expected.indices)
        quantizer.update_codebook(), other.update_codebook()
    assert frames.frame_count == 1
    assert_same(contents(quantizer), contents(other))
    torch._dynamo.reset()


@over("averages", "simvq", "residual", "fsq")
def test_exports_in_evaluation(make: Make) -> None:
    class Whole(nn.Module):
        def __init__(self, quantizer: Quantizer) -> None:
            super().__init__()
            self.quantizer = quantizer

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            output = self.quantizer(x)
            return output.quantized, output.indices

    quantizer, x = make().eval(), vectors(30, DIM)
    for each in (quantizer, quantizer.fold()):
        program = torch.export.export(Whole(each), (x,)).module()
        for found, expected in zip(program(x), quantizer(x), strict=False):
            assert torch.equal(found, expected)


BEFORE = VectorQuantizer(FreeCodebook(DIM, SIZE, generator=torch.Generator().manual_seed(3)), learning=[EMAUpdate(0.9)])


def built_before(x: Tensor) -> dict[str, Tensor]:
    """With a quantizer that is as old as this module, which a process imports before it has a process group."""
    quantizer = copy.deepcopy(BEFORE)
    for _ in range(10):
        quantizer(x)
        quantizer.update_codebook()
    return {"codes": quantizer.codebook.codes().detach()}


def built_after(x: Tensor) -> dict[str, Tensor]:
    quantizer = vq_vae_ema(DIM, SIZE, decay=0.9, revival_interval=2)
    quantizer.initialize_codebook(x)
    for _ in range(4):
        quantizer(x)
        quantizer.update_codebook()
    return {"codes": quantizer.codebook.codes().detach()}


def one_side_masked(x: Tensor) -> dict[str, Tensor]:
    quantizer = VectorQuantizer(
        FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.9), CommitmentLoss(), DeadCodeRevival(1)]
    )
    if not dist.is_initialized():
        x = x[:60]
    for _ in range(3):
        quantizer(x, torch.full((len(x),), not dist.is_initialized() or dist.get_rank() == 0))
        quantizer.update_codebook()
    return {"codes": quantizer.codebook.codes().detach()}


def equal_to_one(job: Callable[[Tensor], dict[str, Tensor]], path: Path, cuts: tuple[int, ...] = (0, 60, 120)) -> None:
    """Both processes hold the same codes, which are those of one process with the joined batch."""
    expected = on_one(job)["codes"]
    left, right = on_two(job, path, cuts)
    assert torch.equal(left["codes"], right["codes"])
    torch.testing.assert_close(left["codes"], expected, rtol=1e-4, atol=1e-5)


def test_two_processes_built_before_the_group(tmp_path: Path) -> None:
    equal_to_one(built_before, tmp_path)


@pytest.mark.parametrize("cut", [60, 13])
def test_two_processes_built_after_the_group(tmp_path: Path, cut: int) -> None:
    equal_to_one(built_after, tmp_path, (0, cut, 120))


def test_one_process_with_everything_masked(tmp_path: Path) -> None:
    equal_to_one(one_side_masked, tmp_path)


def test_residual_uses_its_first_levels() -> None:
    quantizer = rq(DIM, SIZE, num_levels=3).eval()
    x = vectors(50, DIM)
    indices = quantizer.encode(x)
    parts: list[Any] = list(quantizer.quantizers)
    first, second, _ = (part.decode(indices[:, i : i + 1]) for i, part in enumerate(parts))
    assert torch.equal(quantizer.decode(indices[:, :2]), first + second)
    assert torch.equal(quantizer.encode(x, num_levels=2), indices[:, :2])


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_residual_gradient_is_the_upstream_one(levels: int) -> None:
    quantizer = rq(DIM, SIZE, num_levels=levels)
    x, upstream = vectors(50, DIM).requires_grad_(), vectors(50, DIM, seed=2)
    (quantizer(x).quantized * upstream).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, upstream)
    turned = ResidualQuantizer(
        [VectorQuantizer(FreeCodebook(DIM, SIZE), surrogate=RotationTrick(), learning=[])] * levels
    )
    x.grad, output = None, turned(x).quantized
    (output * upstream).sum().backward()
    assert x.grad is not None
    scale = output.detach().norm(dim=1) / x.detach().norm(dim=1)  # one rotation of the sum, however many levels
    torch.testing.assert_close(x.grad.norm(dim=1), scale * upstream.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_usage_is_measured_and_everything_is_documented() -> None:
    quantizer, usage = rq(DIM, SIZE, num_levels=2), CodebookUsage((SIZE, SIZE))
    usage.update(torch.tensor([[0, 3], [1, 3], [0, -1]]))
    found = usage.compute()
    entropy = math.log(3) - 2 / 3 * math.log(2)
    assert found["usage"] == pytest.approx((2 / 16 + 1 / 16) / 2) and found["dead_codes"] == 14 + 15
    assert found["perplexity"] == pytest.approx((math.exp(entropy) + 1) / 2, rel=1e-5)
    usage.update(quantizer.encode(vectors(20, DIM)))
    assert usage.num_tokens == 23
    public = [getattr(gritvq, name) for name in gritvq.__all__]
    assert not [part for part in public if callable(part) and not inspect.getdoc(part)]


def test_errors_say_what_is_wrong() -> None:
    for make in (vq_vae_ema, vq_vae, grit_vq, simvq, rq):
        for dim, size in ((DIM, 0), (0, SIZE), (DIM, -1)):
            with pytest.raises(ValueError, match=r"expected .*got (0|-1)"):
                make(dim, size)
        with pytest.raises(ValueError, match=r"expected vectors \(\*batch, 4\), got \(2, 5\); channels come last"):
            make(DIM, SIZE)(vectors(2, 5))
    with pytest.raises(ValueError, match="expected at least one level count"):
        FSQ([])
