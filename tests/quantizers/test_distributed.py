"""Two processes equal one process on the joined batch; an empty one hangs nobody."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gritvq import (
    BSQ,
    LFQ,
    CodebookUsage,
    CodeStatistics,
    CommitmentLoss,
    DeadCodeRevival,
    DriftLoss,
    EMAUpdate,
    EntropyLoss,
    FreeCodebook,
    HierarchicalQuantizer,
    LinearSchedule,
    MultiScaleQuantizer,
    Quantizer,
    ReconstructionError,
    RepresentationCoherenceLoss,
    ResidualQuantizer,
    StochasticQuantizer,
    VariationalLatent,
    VectorQuantizer,
    gm_vq,
    grit_vq,
    vq_vae,
    vq_vae_ema,
)
from gritvq.images import FrechetDistance, PrecisionRecall
from zoo import RULES

DIM, SIZE = 4, 16
Job = Callable[[Tensor], dict[str, Tensor]]


def latents(num: int = 120) -> Tensor:
    return 3 + torch.randn(num, DIM, generator=torch.Generator().manual_seed(1))


def _serve(rank: int, jobs: Any, done: Any) -> None:
    torch.set_num_threads(1)
    while True:
        job, folder, cuts, backends = jobs.get()
        try:
            for number, backend in enumerate(backends):
                dist.init_process_group(
                    backend,
                    init_method=f"file://{folder}/store{number}",
                    rank=rank,
                    world_size=2,
                    timeout=datetime.timedelta(seconds=60),
                )
                torch.manual_seed(0)
                torch.save(job(latents()[cuts[rank] : cuts[rank + 1]]), f"{folder}/{rank}.pt")
                dist.destroy_process_group()
        except BaseException:
            done.put(traceback.format_exc())
            raise
        done.put(None)


class Pair:
    """Two processes that wait for jobs; starting them for each would cost most of the tests' time."""

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self.jobs, self.done = [context.Queue() for _ in range(2)], context.Queue()
        for rank, jobs in enumerate(self.jobs):
            context.Process(target=_serve, args=(rank, jobs, self.done), daemon=True).start()

    def run(self, *job: Any) -> None:
        """Do a job on both; an error of one of them is raised here."""
        for jobs in self.jobs:
            jobs.put(job)
        for _ in self.jobs:
            error = self.done.get(timeout=180)
            assert error is None, error


pairs: list[Pair] = []


def on_two(
    job: Job, tmp_path: Path, cuts: tuple[int, ...] = (0, 60, 120), backends: tuple[str, ...] = ("gloo",)
) -> tuple[dict[str, Tensor], ...]:
    pair = pairs.pop() if pairs else Pair()
    pair.run(job, str(tmp_path), cuts, backends)
    pairs.append(pair)  # one that failed is not used again
    return torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")


def on_one(job: Job) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return job(latents())


def map_gradient(x: Tensor) -> dict[str, Tensor]:
    quantizer: Any = grit_vq(DIM, SIZE)
    if dist.is_initialized():
        quantizer = DistributedDataParallel(quantizer)
    (quantizer(x).quantized ** 2).sum(1).mean().backward()
    return {name.removeprefix("module."): p.grad for name, p in quantizer.named_parameters() if p.grad is not None}


def moving_average(x: Tensor) -> dict[str, Tensor]:
    quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.9), CommitmentLoss()])
    for _ in range(3):
        quantizer(x)
        quantizer.update_codebook()
    return {"codes": quantizer.codebook.codes().detach()}


def revival(x: Tensor) -> dict[str, Tensor]:
    quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.9), DeadCodeRevival(1)])
    for _ in range(3):
        quantizer(x)
        quantizer.update_codebook()
    codes = quantizer.codebook.codes().detach()
    return {"codes": codes, "used": torch.tensor(quantizer.encode(latents()).unique().numel())}


def initialization(x: Tensor) -> dict[str, Tensor]:
    quantizer = vq_vae_ema(DIM, SIZE)
    quantizer.initialize_codebook(x)
    return {"codes": quantizer.codebook.codes().detach()}


def entropy(x: Tensor) -> dict[str, Tensor]:
    quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EntropyLoss(1.0)])
    x = x.clone().requires_grad_()
    loss = quantizer(x).losses["entropy"]
    loss.backward()
    assert x.grad is not None
    return {"loss": loss.detach(), "grad": x.grad}


def drift(x: Tensor) -> dict[str, Tensor]:
    quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[DriftLoss(strength=1.0, relative=True)])
    model: Any = DistributedDataParallel(quantizer) if dist.is_initialized() else quantizer
    model(x).loss.backward()
    grad = next(quantizer.codebook.parameters()).grad
    assert grad is not None
    return {"grad": grad}


def measured(x: Tensor) -> dict[str, Tensor]:
    usage, error = CodebookUsage((SIZE,)), ReconstructionError()
    usage.update((x[:, :1].abs() * 2).long().clamp_max(SIZE - 1))
    error.update(x[:, None, None] * 0.1, x[:, None, None] * 0.11)
    numbers = {**usage.compute(), **error.compute()}
    return {name: torch.tensor(value) for name, value in numbers.items()}


def measured_sparsely(x: Tensor) -> dict[str, Tensor]:
    usage = CodebookUsage((2**40, SIZE))
    index = (x[:, :2].abs() * 2).long().clamp_max(SIZE - 1)
    usage.update(index * torch.tensor([2**35, 1]))
    counts = usage.histograms()[0]
    numbers = {name: torch.tensor(value) for name, value in usage.compute().items()}
    return {
        **numbers,
        "bits": torch.tensor(usage.bits_per_token()),
        "codes": counts.indices(),
        "counts": counts.values(),
    }


def without_parallel_wrapper(x: Tensor) -> dict[str, Tensor]:
    """Every collective there is, and none of PyTorch's own."""
    jobs: dict[str, Job] = {
        "average": moving_average,
        "start": initialization,
        "measured": measured,
        "sparse": measured_sparsely,
    }
    found = {f"{name}/{key}": value for name, job in jobs.items() for key, value in job(x).items()}
    return {**found, "entropy": entropy(x)["loss"]}


def grids(step: int) -> Tensor:
    return 2 + torch.randn(30, 2, 2, DIM, generator=torch.Generator().manual_seed(step))


def shares(scenario: str, step: int) -> tuple[Tensor, Tensor]:
    """Vectors and mask of this process; of both together where there is one. In step 1 nobody has a valid vector."""
    x = grids(step)
    mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(9)) < 0.7
    cut = {"uneven": 8, "the first is empty": 0, "the second is masked": 15}[scenario]
    mask[15 if scenario == "the second is masked" else 30 :] = False
    mask &= step != 1
    rows = slice(None) if not dist.is_initialized() else [slice(0, cut), slice(cut, 30)][dist.get_rank()]
    return x[rows], mask[rows]


SCENARIOS = ("uneven", "the first is empty", "the second is masked")
# Those whose losses no chance decides; `wasserstein` is one problem per process.
LEARNERS: dict[str, Callable[[], Quantizer]] = {
    **{
        name: (lambda make=make: VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[make(DIM, SIZE)]))
        for name, make in RULES.items()
    },
    "grit_vq": lambda: grit_vq(DIM, SIZE, revival_interval=2),
    "vq_vae_ema": lambda: vq_vae_ema(DIM, SIZE, revival_interval=1),
    "lfq": lambda: LFQ(DIM),
    "bsq": lambda: BSQ(DIM),
    "residual": lambda: ResidualQuantizer([vq_vae(DIM, SIZE), vq_vae_ema(DIM, SIZE, revival_interval=2)]),
    "multiscale": lambda: MultiScaleQuantizer(VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate()]), [1, 2]),
    "hierarchical": lambda: HierarchicalQuantizer([vq_vae(DIM, SIZE), vq_vae(DIM, SIZE)], DIM),
    "mixture": lambda: gm_vq(DIM, SIZE),
    "stochastic": lambda: StochasticQuantizer(FreeCodebook(DIM, SIZE), temperature=LinearSchedule(1, 0.5, num_steps=4)),
    "variational": lambda: VariationalLatent(
        vq_vae(DIM // 2, SIZE), choose_by="mean", coherence=RepresentationCoherenceLoss(), kl_weight=0.1
    ),
}
DRAWN = {"stochastic": ("distance",)}


def learning(_: Tensor) -> dict[str, Tensor]:
    """Losses, gradients and what `update_codebook` makes of it, for everything that learns and all scenarios."""
    found: dict[str, Tensor] = {}
    for scenario in SCENARIOS:
        for name, make in LEARNERS.items():
            torch.manual_seed(0)
            quantizer = make()
            for step in range(4):
                x, mask = shares(scenario, step)
                x.requires_grad_()
                output = quantizer(x, mask)
                losses = {key: v for key, v in output.losses.items() if key not in DRAWN.get(name, ())}
                where = f"{name}/{scenario}/step {step}"
                found |= {f"{where}/mean/{key}": value.detach() for key, value in losses.items()}
                quantizer.zero_grad()
                sum(losses.values(), start=x.sum() * 0).backward()
                assert x.grad is not None
                found[f"{where}/rows"] = x.grad
                for key, parameter in quantizer.named_parameters():
                    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    found[f"{where}/mean/gradient of {key}"] = grad.clone()
                quantizer.update_codebook()
                for key, module in quantizer.named_modules():
                    if isinstance(module, CodeStatistics):
                        for part in ("ema_counts", "window_counts", "num_seen", "step"):
                            found[f"{where}/same/{key}.{part}"] = getattr(module, part).clone()
                state = {**dict(quantizer.named_parameters()), **dict(quantizer.named_buffers())}
                found |= {f"{where}/same/{key}": value.detach().clone() for key, value in state.items()}
    return found


def one_side_masked(x: Tensor) -> dict[str, Tensor]:
    quantizer = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[EMAUpdate(0.9), DeadCodeRevival(1)])
    keep = not dist.is_initialized() or dist.get_rank() == 0
    for _ in range(2):
        quantizer(x, torch.full((len(x),), keep))
        quantizer.update_codebook()
    return {"codes": quantizer.codebook.codes().detach()}


def all_of_these(x: Tensor) -> dict[str, Tensor]:
    """Several jobs in a row, since starting processes takes longer than any of them."""
    results = {}
    for job in (map_gradient, moving_average, initialization, drift, measured, measured_sparsely):
        torch.manual_seed(0)
        results |= {f"{job.__name__}: {name}": value for name, value in job(x).items()}
    return results


def test_two_processes_equal_one(tmp_path: Path) -> None:
    expected = on_one(all_of_these)
    for found in on_two(all_of_these, tmp_path):
        assert found.keys() == expected.keys() and expected
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_groups_that_serve_gpus_alone_take_tensors_of_the_cpu(tmp_path: Path) -> None:
    """As NCCL's, after `fit` has moved the model to the CPU; and again in a second group after the first is gone."""
    expected = on_one(without_parallel_wrapper)
    for found in on_two(without_parallel_wrapper, tmp_path, backends=("cuda:gloo", "cuda:gloo")):
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_uneven_empty_and_masked_shares_learn_as_the_joined_batch(tmp_path: Path) -> None:
    expected = on_one(learning)
    left, right = on_two(learning, tmp_path)
    assert left.keys() == right.keys() == expected.keys()
    for name, value in expected.items():
        if "/rows" in name:
            found = torch.cat([left[name], right[name]]) / 2
        elif "/mean/" in name:
            found = (left[name] + right[name]) / 2
        else:
            assert torch.equal(left[name], right[name]), name
            found = left[name]
        if name.startswith("wasserstein/uneven") and name.endswith("/mean/wasserstein"):
            assert found >= value - 1e-5, name  # a mixture of clouds costs no more than the mixture of their costs
        elif not name.startswith("wasserstein") or "uneven" not in name or "/same/" in name or "weights_kl" in name:
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6, msg=name)
        if "/step 1/" in name and "/same/" not in name:
            assert not value.any() and not found.any(), name
        elif "/step 1/" in name:
            assert torch.equal(value, expected[name.replace("/step 1/", "/step 0/")]), name


def test_uneven_and_empty_shares(tmp_path: Path) -> None:
    expected = on_one(initialization)["codes"]
    for cuts in ((0, 13, 120), (0, 120, 120)):
        folder = tmp_path / str(cuts[1])
        folder.mkdir()
        left, right = on_two(initialization, folder, cuts)
        assert torch.equal(left["codes"], expected) and torch.equal(right["codes"], expected)


def test_revival_agrees_on_all_processes(tmp_path: Path) -> None:
    left, right = on_two(revival, tmp_path)
    assert torch.equal(left["codes"], right["codes"])
    assert int(left["used"]) > 0.8 * SIZE


def test_batch_entropy_is_that_of_the_joined_batch(tmp_path: Path) -> None:
    expected = on_one(entropy)
    left, right = on_two(entropy, tmp_path)
    torch.testing.assert_close(left["loss"], expected["loss"])
    torch.testing.assert_close(right["loss"], expected["loss"])
    # Every process holds the same loss, so its gradient counts once per process; data parallelism averages that away.
    torch.testing.assert_close(torch.cat([left["grad"], right["grad"]]) / 2, expected["grad"], rtol=1e-4, atol=1e-6)


def test_a_process_with_nothing_valid_hangs_nobody(tmp_path: Path) -> None:
    left, right = on_two(one_side_masked, tmp_path)
    assert torch.equal(left["codes"], right["codes"]) and bool(torch.isfinite(left["codes"]).all())


def generation_measures(x: Tensor) -> dict[str, Tensor]:
    """Of the first half of every process's rows against the others, moved."""
    metric, manifold = FrechetDistance(DIM), PrecisionRecall(2)
    for part, real in zip((x[::2], x[1::2] + 0.5), (True, False), strict=True):
        metric.update(part, real=real), manifold.update(part, real=real)
    numbers = {"distance": metric.compute(), **manifold.compute()}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def test_measures_of_generated_pictures(tmp_path: Path) -> None:
    expected = on_one(generation_measures)
    for found in on_two(generation_measures, tmp_path, (0, 40, 120)):  # alone, each of them would find something else
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
