"""What the examination of a quantizer says: planted faults by their names, and nothing about healthy ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gritvq import (
    FSQ,
    LFQ,
    EMAUpdate,
    FreeCodebook,
    NearestAssignment,
    Quantizer,
    VectorQuantizer,
    bsq,
    diveq,
    fsq,
    grit_vq,
    lfq,
    msvq,
    pq,
    rotation_vq,
    rq,
    simvq,
    transvq,
    vq_vae,
    vq_vae_2,
    vq_vae_ema,
)
from gritvq.quantizers.diagnosis import (
    SEVERITY,
    Finding,
    TrainingFacts,
    examine,
    least_usage,
    usage_findings,
    zipf_perplexity,
)
from zoo import quick

DIM, SIZE, LR, STEPS, BATCH = 6, 32, 3e-3, 150, 256


def toy(count: int, generator: torch.Generator) -> Tensor:
    """Twelve independent factors, and products of them."""
    factors = torch.randn(count, 12, generator=generator)
    return torch.cat([factors, factors[:, :6] * factors[:, 6:]], 1)


class Trained(NamedTuple):
    quantizer: Quantizer
    latents: Tensor
    optimizer: torch.optim.Optimizer
    facts: TrainingFacts


def trained(make: Callable[[], Quantizer], *, lr: float = LR, steps: int = STEPS, shift: float = 0.0) -> Trained:
    """A small autoencoder of toy data, by the quantizer's own recipe."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        quantizer = make()
        last = nn.Linear(32, quantizer.input_dim)
        encoder = nn.Sequential(nn.Linear(18, 32), nn.GELU(), last)
        decoder = nn.Sequential(nn.Linear(quantizer.dim, 32), nn.GELU(), nn.Linear(32, 18))
        nn.init.constant_(last.bias, shift)
        if quantizer.wants_initialization:
            quantizer.initialize_codebook(encoder(toy(1024, generator)).detach())
        own = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.AdamW([{"params": own}, *quantizer.parameter_groups(lr)], lr=lr)
        quantizer.expect_updates()
        for _ in range(steps):
            x = toy(BATCH, generator)
            output = quantizer(encoder(x))
            loss = (decoder(output.quantized) - x).square().mean() + output.loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            quantizer.update_codebook(optimizer)
        return Trained(quantizer, encoder(toy(4096, generator)).detach(), optimizer, TrainingFacts(lr, steps, BATCH))


RECIPES: dict[str, Callable[[], Quantizer]] = {
    "vq_vae": lambda: vq_vae(DIM, SIZE),
    "vq_vae_ema": lambda: vq_vae_ema(DIM, SIZE),
    "simvq": lambda: simvq(DIM, SIZE, lr_scale=10),
    "grit_vq": lambda: grit_vq(DIM, SIZE),
    "rq": lambda: rq(DIM, 16, num_levels=2),
    "pq": lambda: pq(DIM, 16),
    "fsq": lambda: fsq(DIM, 64),
}
MORE: dict[str, Callable[[], Quantizer]] = {
    "FSQ": lambda: FSQ([4, 4, 4]),
    "cosine": lambda: vq_vae_ema(DIM, SIZE, metric="cosine"),
    "rotation_vq": lambda: rotation_vq(DIM, SIZE),
    "diveq": lambda: diveq(DIM, SIZE),
    "transvq": lambda: transvq(DIM, SIZE, width=16),
    "lfq": lambda: lfq(DIM, SIZE),
    "bsq": lambda: bsq(DIM, SIZE),
    "revived": lambda: vq_vae(DIM, SIZE, revival_interval=20, lr_scale=10),
    "k-means": lambda: vq_vae(DIM, SIZE, initialization="kmeans"),
}

_TRAINED: dict[str, Trained] = {}


def patient(name: str) -> Trained:
    """A copy of a trained quantizer, to be spoiled."""
    if name not in _TRAINED:
        _TRAINED[name] = trained({**RECIPES, **MORE}[name])
    quantizer, latents, optimizer, facts = _TRAINED[name]
    return Trained(copy.deepcopy(quantizer), latents.clone(), optimizer, facts)


@pytest.mark.parametrize("name", [*RECIPES, *(pytest.param(each, marks=pytest.mark.soak) for each in MORE)])
def test_nothing_is_said_of_a_healthy_one(name: str) -> None:
    found = patient(name)
    original = _TRAINED[name]  # the optimizer holds its parameters
    before = {key: value.clone() for key, value in original.quantizer.state_dict().items() if isinstance(value, Tensor)}
    state = torch.get_rng_state()
    assert examine(original.quantizer, found.latents, training=found.facts, optimizer=found.optimizer) == []
    assert examine(original.quantizer) == []
    assert torch.equal(torch.get_rng_state(), state)
    after = original.quantizer.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()) and original.quantizer.training


# --- planted faults ---------------------------------------------------------------------------------------------------


def table(quantizer: Any) -> Tensor:
    """What the codes are stored in."""
    codebook = quantizer.codebook
    return codebook.weight.data if isinstance(codebook, FreeCodebook) else codebook.base.data


def spoil(quantizer: Any, *values: tuple[slice, Any]) -> None:
    for rows, value in values:
        table(quantizer)[rows] = value


def not_finite(found: Trained, where: Any) -> Tensor:
    spoil(where(found.quantizer), (slice(0, 3), float("nan")))
    return found.latents


def infinite(found: Trained, where: Any) -> Tensor:
    spoil(where(found.quantizer), (slice(0, 3), float("inf")))
    return found.latents


def far(found: Trained, where: Any) -> Tensor:
    own = table(where(found.quantizer))
    gone = own[len(own) // 4 :]
    gone += 100 + 10 * torch.rand(gone.shape, generator=torch.Generator().manual_seed(0))
    return found.latents


def copies(found: Trained, where: Any) -> Tensor:
    own = table(where(found.quantizer))
    own[len(own) // 2 :] = own[: len(own) // 2] * (1 + 1e-5)
    return found.latents


def zeros(found: Trained, where: Any) -> Tensor:
    spoil(where(found.quantizer), (slice(0, 5), 0.0))
    return found.latents


def line(found: Trained, where: Any) -> Tensor:
    own, quantizer = table(where(found.quantizer)), where(found.quantizer)
    direction = F.normalize(torch.ones(own.shape[1]), dim=0)
    spread = own.norm(dim=1, keepdim=True) * torch.linspace(-1, 1, len(own))[:, None]
    own.copy_(spread * direction)
    assert quantizer is not None
    return found.latents


def flat_latents(found: Trained, where: Any) -> Tensor:
    """Latents in one direction, to which the codes are fitted."""
    latents = found.latents[:, :1] * torch.ones(DIM) + 1e-3 * found.latents
    found.quantizer.initialize_codebook(latents)
    return latents


def constant_latents(found: Trained, where: Any) -> Tensor:
    return found.latents[:1].expand(len(found.latents), -1) + 1e-6 * found.latents


def moved(found: Trained, where: Any) -> Tensor:
    return found.latents + 10 * found.latents.std()


def large(found: Trained, where: Any) -> Tensor:
    return found.latents.mean(0) + 50 * (found.latents - found.latents.mean(0))


def small(found: Trained, where: Any) -> Tensor:
    return found.latents.mean(0) + 0.02 * (found.latents - found.latents.mean(0))


def sphere(found: Trained, where: Any) -> Tensor:
    """Codes of random directions, three times as long as the latents."""
    own, x = table(where(found.quantizer)), found.latents - found.latents.mean(0)
    directions = F.normalize(torch.randn(own.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    own.copy_(found.latents.mean(0) + 3.5 * x.norm(dim=1).square().mean().sqrt() * directions)
    return found.latents


def nan_latents(found: Trained, where: Any) -> Tensor:
    found.latents[::10, 2] = float("nan")
    return found.latents


def shrunk(found: Trained, where: Any) -> Tensor:
    """All in one cell of a grid, but for a few that keep the variance up."""
    latents = 0.01 * found.latents
    return latents + 0.6 * latents.mean(0)


def crowded(found: Trained, where: Any) -> Tensor:
    """Nearly all vectors at one code."""
    kept = torch.arange(len(found.latents)) % 25 == 0
    with torch.no_grad():
        code = found.quantizer.eval()(found.latents[1]).quantized
    return torch.where(kept[:, None], found.latents, code)


def whole(quantizer: Any) -> Any:
    return quantizer


def second(quantizer: Any) -> Any:
    return quantizer.quantizers[1]


def first(quantizer: Any) -> Any:
    return quantizer.quantizers[0]


FAULTS: list[tuple[str, Callable[[Trained, Any], Tensor], Any, str, str]] = [
    ("vq_vae", not_finite, whole, "codes are not finite", ""),
    ("simvq", not_finite, whole, "codes are not finite", ""),
    ("grit_vq", infinite, whole, "codes are not finite", ""),
    ("rq", not_finite, second, "codes are not finite", "quantizers.1"),
    ("pq", infinite, first, "codes are not finite", "quantizers.0"),
    ("vq_vae_ema", nan_latents, whole, "latents are not finite", ""),
    ("fsq", nan_latents, whole, "latents are not finite", ""),
    ("rq", nan_latents, whole, "latents are not finite", ""),
    ("vq_vae", far, whole, "dead codes", ""),
    ("vq_vae_ema", far, whole, "dead codes", ""),
    ("rq", far, second, "dead codes", "quantizers.1"),
    ("pq", far, second, "dead codes", "quantizers.1"),
    ("simvq", far, whole, "dead codes", ""),
    ("fsq", shrunk, whole, "dead codes", ""),
    ("vq_vae", crowded, whole, "low perplexity", ""),
    ("grit_vq", crowded, whole, "low perplexity", ""),
    ("vq_vae", copies, whole, "codes are duplicates", ""),
    ("grit_vq", copies, whole, "codes are duplicates", ""),
    ("rq", copies, first, "codes are duplicates", "quantizers.0"),
    ("pq", copies, second, "codes are duplicates", "quantizers.1"),
    ("vq_vae", zeros, whole, "codes are zero", ""),
    ("rq", zeros, second, "codes are zero", "quantizers.1"),
    ("vq_vae", line, whole, "codes have low rank", ""),
    ("vq_vae_ema", line, whole, "codes have low rank", ""),
    ("vq_vae_ema", flat_latents, whole, "latents have low rank", ""),
    ("rq", flat_latents, whole, "latents have low rank", ""),
    ("vq_vae", constant_latents, whole, "latents do not vary", ""),
    ("fsq", constant_latents, whole, "latents do not vary", ""),
    ("vq_vae", moved, whole, "codes are elsewhere", ""),
    ("simvq", moved, whole, "codes are elsewhere", ""),
    ("grit_vq", moved, whole, "codes are elsewhere", ""),
    ("rq", moved, whole, "codes are elsewhere", "quantizers.0"),
    ("pq", moved, whole, "codes are elsewhere", "quantizers.0"),
    ("vq_vae_ema", small, whole, "codes are too large", ""),
    ("grit_vq", small, whole, "codes are too large", ""),
    ("vq_vae", large, whole, "codes are too small", ""),
    ("grit_vq", large, whole, "codes are too small", ""),
    ("vq_vae", sphere, whole, "worse than the mean", ""),
]


@pytest.mark.parametrize(
    ("name", "fault", "where", "expected", "part"), FAULTS, ids=[f"{f[0]}-{f[1].__name__}" for f in FAULTS]
)
def test_a_planted_fault_is_named_first(
    name: str, fault: Callable[[Trained, Any], Tensor], where: Any, expected: str, part: str
) -> None:
    found = patient(name)
    latents = fault(found, where)
    said = examine(found.quantizer, latents)
    assert said and (said[0].name, said[0].part) == (expected, part), [each.name for each in said]
    assert_sensible(said)
    assert expected in {each.name for each in examine(found.quantizer, latents, training=found.facts)}
    assert not expected.startswith("codes are not") or examine(found.quantizer)[0].name == expected


def assert_sensible(said: list[Finding]) -> None:
    assert [SEVERITY.index(each.name) for each in said] == sorted(SEVERITY.index(each.name) for each in said)
    assert len({(each.name, each.part) for each in said}) == len(said)
    for each in said:
        assert each.says.endswith(".") and each.advice.endswith(".") and each.number == each.number
        assert each.number != each.limit


def test_a_table_alone() -> None:
    found = patient("vq_vae")
    zeros(found, whole)
    assert [each.name for each in examine(found.quantizer)] == ["codes are zero"]
    found = patient("vq_vae_ema")
    line(found, whole)
    assert [each.name for each in examine(found.quantizer)] == ["codes have low rank"]
    assert examine(FSQ([4, 4])) == []


# --- modes and training -----------------------------------------------------------------------------------------------


class Noisy(FreeCodebook):
    """A table with dropout."""

    def table(self) -> Tensor:
        return F.dropout(self.weight, 0.2, self.training)


class Second(NearestAssignment):
    """Takes the second nearest code in training."""

    def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().forward(x, codes)
        chosen = torch.cdist(x, codes).topk(2, largest=False).indices[:, 1]
        return chosen, codes[chosen]


@pytest.mark.parametrize("part", [0, 1])
def test_modes_that_differ(part: int) -> None:
    latents = torch.randn(2048, DIM, generator=torch.Generator().manual_seed(0))
    quantizer = VectorQuantizer(Noisy(DIM, SIZE)) if part else VectorQuantizer(FreeCodebook(DIM, SIZE), Second())
    quantizer.initialize_codebook(latents)
    said = examine(quantizer, latents)
    assert [each.name for each in said] == ["training and evaluation differ"] and said[0].number > 0.3


@pytest.mark.parametrize("name", ["grit_vq", "simvq"])
def test_a_rate_that_the_optimizer_does_not_know(name: str) -> None:
    quantizer, latents, _, facts = patient(name)
    plain = torch.optim.AdamW([*nn.Linear(2, 2).parameters(), *quantizer.parameters()], lr=LR)
    said = examine(quantizer, latents, training=facts, optimizer=plain)
    assert [each.name for each in said] == ["learning rate of the codes is ignored"] and said[0].limit == 10


def test_codes_that_the_optimizer_does_not_hold() -> None:
    quantizer, latents, _, facts = patient("vq_vae")
    others = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=LR)
    said = examine(quantizer, latents, training=facts, optimizer=others)
    assert [each.name for each in said] == ["codes are not in the optimizer"]
    assert examine(patient("vq_vae_ema").quantizer, latents, training=facts, optimizer=others) == []


def test_codes_without_a_gradient() -> None:
    latents, facts = patient("vq_vae").latents, TrainingFacts(LR, STEPS, BATCH)
    bare = VectorQuantizer(FreeCodebook(DIM, SIZE), learning=[])
    frozen = patient("simvq").quantizer.requires_grad_(False)
    for quantizer in (bare, frozen):
        quantizer.initialize_codebook(latents)
        assert examine(quantizer, latents) == []
        said = examine(quantizer, latents, training=facts)
        assert [each.name for each in said] == ["codes get no gradient"]


@pytest.mark.parametrize("make", [vq_vae, simvq], ids=["vq_vae", "simvq"])
def test_rates_that_cannot_keep_codes_alive(make: Callable[..., Quantizer]) -> None:
    """The encoder starts far from the codes, and these move by a millionth a step."""
    quantizer, latents, _, facts = trained(lambda: make(DIM, SIZE, lr_scale=1e-3, commitment_weight=0.0), shift=4.0)
    said = examine(quantizer, latents, training=facts)
    assert said[0].name == "learning rate of the codes is too low", [each.name for each in said]
    assert said[0].number < 2e-3 < 2 < said[0].limit and dict(said[0].settings)["lr_scale"] > 4
    assert {"codes are elsewhere", "codes are too small"} & {each.name for each in said[1:]}
    assert_sensible(said)


def only(quantizer: Quantizer, latents: Tensor, *facts: Any) -> Finding:
    said = examine(quantizer, latents, training=TrainingFacts(*facts))
    assert len(said) == 1, [each.name for each in said]
    return said[0]


def test_averages_that_are_too_slow() -> None:
    latents = patient("vq_vae_ema").latents
    slow = vq_vae_ema(DIM, SIZE, decay=0.9999, revival_interval=None)
    few = VectorQuantizer(FreeCodebook(DIM, 1024), learning=[EMAUpdate(0.9)])
    for quantizer in (slow, few):
        quantizer.initialize_codebook(latents)
    said = only(slow, latents, LR, 300, 4096)
    assert said.name == "moving average is too slow" and said.number == pytest.approx(0.03)
    assert 0.9 < dict(said.settings)["decay"] < 0.99
    said = only(few, latents, LR, 300, 128)
    assert said.name == "moving average is too slow" and said.number == pytest.approx(1.25)
    assert 1 / (1 - dict(said.settings)["decay"]) * 128 / 1024 >= 3.99


def test_batches_that_are_too_small() -> None:
    latents = patient("vq_vae_ema").latents
    quantizer = vq_vae(DIM, 128, revival_interval=1, initialization="kmeans")
    quantizer.initialize_codebook(latents)
    said = only(quantizer, latents, LR, 300, 128)
    assert said.name == "too few vectors per step" and said.number == 1 and "36.8 %" in said.says
    assert dict(said.settings) == {"revival_interval": 3}
    found = patient("vq_vae")
    far(found, whole)
    small = examine(found.quantizer, found.latents, training=TrainingFacts(LR, 1000, 16))
    assert [each.name for each in small] == ["too few vectors per step", "dead codes"]


# --- other structures, limits and errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", quick("grit_vq", "msvq", "vq_vae_2", "gm_vq", "soft_vq", "mapped", "perturbed-radial"))
def test_every_quantizer_can_be_examined(make: Callable[[int, int], Quantizer]) -> None:
    torch.manual_seed(0)
    quantizer = make(DIM, SIZE)
    shape = {0: (128,), 1: (8, 12), 2: (8, 4, 4)}[len(quantizer.layout)]
    latents = torch.randn(*shape, quantizer.input_dim)
    quantizer.initialize_codebook(latents)
    for latent in (latents, None):
        said = examine(quantizer, latent, training=TrainingFacts(LR, 1000, 4096))
        assert "training and evaluation differ" not in {each.name for each in said}
        assert "codes get no gradient" not in {each.name for each in said}, said
        assert_sensible(said)


@pytest.mark.parametrize(("make", "part"), [(msvq, "quantizer"), (vq_vae_2, "quantizers.1")], ids=["msvq", "vq_vae_2"])
def test_parts_of_grids(make: Any, part: str) -> None:
    quantizer = msvq(DIM, SIZE, sides=(1, 2, 4)) if make is msvq else vq_vae_2(DIM, SIZE)
    latents = torch.randn(128, 4, 4, DIM, generator=torch.Generator().manual_seed(0))
    quantizer.initialize_codebook(latents)
    inner: Any = quantizer.get_submodule(part)
    inner.codebook.weight.data[3] = float("nan")
    assert [each.name for each in examine(quantizer, latents)] == ["codes are not finite"]
    inner.codebook.weight.data[3:] = 100.0
    named = {each.name for each in examine(quantizer, latents)}
    assert {"codes are duplicates", "dead codes"} <= named


def test_large_codebooks_without_a_table() -> None:
    latents = torch.randn(4096, 30, generator=torch.Generator().manual_seed(0))
    assert examine(LFQ(30), latents) == []
    said = examine(LFQ(30), latents.abs())
    assert [each.name for each in said] == ["dead codes"] and "shared map" not in said[0].advice


def test_a_few_tokens_say_little() -> None:
    assert list(usage_findings(1024, 1024, 0.3, 200)) == [] != list(usage_findings(1024, 10**6, 0.3, 200))
    assert least_usage(1024, 0) == 0
    assert zipf_perplexity(1) == 1.0


@pytest.mark.parametrize(
    ("latents", "message"),
    [(torch.full((4, DIM), float("nan")), "at least one finite latent"), (torch.zeros(4, 3), r"expected vectors")],
)
def test_latents_that_do_not_fit(latents: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        examine(vq_vae(DIM, SIZE), latents)
