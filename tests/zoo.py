"""The single list of parts, quantizers and presets that the common tests run over. A new method adds one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import nn

from gritvq import (
    BSQ,
    FSQ,
    LFQ,
    AffineCodebook,
    Assignment,
    BoundedQuantizer,
    BridgeCodebook,
    ClippedRadius,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    ConstantRadius,
    ConvexAssignment,
    CosineRadius,
    DeadCodeRevival,
    DecaySchedule,
    DirectionalReparameterization,
    DistanceRadius,
    DistributionConsistencyLoss,
    DriftLoss,
    EMAUpdate,
    EntropyLoss,
    FreeCodebook,
    GaussianMixtureQuantizer,
    GaussianRadius,
    HierarchicalQuantizer,
    HyperbolicQuantizer,
    InputNormRadius,
    LearningRule,
    LinearSchedule,
    LogRadius,
    MahalanobisRadius,
    MLPCodebook,
    MultiScaleQuantizer,
    NearestAssignment,
    NoiseSubstitution,
    NormalizedQuantizer,
    OrthogonalityLoss,
    PerturbedQuantizer,
    PowerRadius,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    RadialSurrogate,
    Radius,
    RepresentationCoherenceLoss,
    ResidualQuantizer,
    ResidualStochasticQuantizer,
    RotationTrick,
    SampledAssignment,
    SaturatingRadius,
    ScaledQuantizer,
    ShiftedRadius,
    SmoothRadius,
    SoftAssignment,
    SpaceFillingAssignment,
    SphericalLattice,
    StochasticQuantizer,
    StraightThrough,
    Surrogate,
    TanhRadius,
    TransformerCodebook,
    VariationalLatent,
    VectorQuantizer,
    WassersteinLoss,
    bsq,
    diveq,
    fsp,
    fsq,
    fvq,
    gm_vq,
    grit_vq,
    gumbel_vq,
    hyper_vq,
    lfq,
    msvq,
    ns_vq,
    pq,
    rotation_vq,
    rq,
    rsq_vae,
    scq,
    sf_diveq,
    simvq,
    soft_vq,
    spherical_lattice,
    sq_vae,
    sq_vae_2,
    transvq,
    vaevq_paper,
    vaevq_released,
    vq_vae,
    vq_vae_2,
    vq_vae_ema,
    vq_wae,
    xq,
)

DIM, SIZE = 6, 32

DISTANCE_RADII: dict[str, Callable[[], DistanceRadius]] = {
    "constant": ConstantRadius,
    "power-0.5": lambda: PowerRadius(0.5),
    "power-1": lambda: PowerRadius(1.0),
    "power-2": lambda: PowerRadius(2.0),
    "smooth": SmoothRadius,
    "shifted": lambda: ShiftedRadius(0.7),
    "log": lambda: LogRadius(0.7),
    "saturating": lambda: SaturatingRadius(0.7),
    "tanh": lambda: TanhRadius(0.7),
    "clipped": lambda: ClippedRadius(2.0),
    "gaussian": lambda: GaussianRadius(1.5),
}

RADII: dict[str, Callable[[], Radius]] = {
    **DISTANCE_RADII,
    "input-norm": InputNormRadius,
    "cosine": CosineRadius,
    "mahalanobis": lambda: MahalanobisRadius(DIM),
}

SURROGATES: dict[str, Callable[[], Surrogate]] = {
    "straight-through": StraightThrough,
    **{f"radial-{name}": (lambda make=make: RadialSurrogate(make())) for name, make in RADII.items()},
    "rotation": RotationTrick,
    "directional": lambda: DirectionalReparameterization(0.0),
    "directional-noisy": lambda: DirectionalReparameterization(1e-2),
    "noise-substitution": NoiseSubstitution,
}

CODEBOOKS: dict[str, Callable[[int, int], Codebook]] = {
    "free": FreeCodebook,
    "free-normalized": lambda d, k: FreeCodebook(d, k, normalize=True),
    "affine": AffineCodebook,
    "affine-frozen": lambda d, k: AffineCodebook(d, k, base="frozen"),
    "affine-linear": lambda d, k: AffineCodebook(d, k, bias=False),
    "affine-diagonal": lambda d, k: AffineCodebook(d, k, structure="diagonal"),
    "affine-low-rank": lambda d, k: AffineCodebook(d, k, structure="low_rank"),
    "mlp": MLPCodebook,
    "mlp-normalized": lambda d, k: MLPCodebook(d, k, normalize=True),
    "transformer": lambda d, k: TransformerCodebook(d, k, width=16),
    "bridge": lambda d, k: BridgeCodebook(d, k, codes_per_token=4, width=16, depth=1),
    "bridge-registers": lambda d, k: BridgeCodebook(d, k, codes_per_token=5, width=8, num_registers=2, base="frozen"),
}

ASSIGNMENTS: dict[str, Callable[[], Assignment]] = {
    "nearest-euclidean": NearestAssignment,
    "nearest-cosine": lambda: NearestAssignment("cosine"),
    "soft": SoftAssignment,
    "soft-cosine": lambda: SoftAssignment(0.3, metric="cosine"),
    "soft-never": lambda: SoftAssignment(0.5, harden=False),
    "sampled": lambda: SampledAssignment(LinearSchedule(1.0, 0.5, num_steps=9)),
    "sampled-straight-through": lambda: SampledAssignment(0.8, scale=0.5, straight_through=True),
    "space-filling": SpaceFillingAssignment,
    "convex": ConvexAssignment,
    "convex-relaxed": lambda: ConvexAssignment(relaxed=True),
}

RULES: dict[str, Callable[[int, int], LearningRule]] = {
    "commitment": lambda d, k: CommitmentLoss(),
    "codebook": lambda d, k: CodebookLoss(),
    "entropy": lambda d, k: EntropyLoss(),
    "orthogonality": lambda d, k: OrthogonalityLoss(),
    "ema": lambda d, k: EMAUpdate(),
    "revival": lambda d, k: DeadCodeRevival(2),
    "drift": lambda d, k: DriftLoss(strength=0.1),
    "drift-relative": lambda d, k: DriftLoss(temperature=0.5, relative=True),
    "drift-decaying": lambda d, k: DriftLoss(
        temperature=DecaySchedule(1.0, factor=0.5, interval=2, floor=1e-8, staircase=True)
    ),
    "wasserstein": lambda d, k: WassersteinLoss(),
    "wasserstein-entropic": lambda d, k: WassersteinLoss(regularization=1.0),
    "wasserstein-learned": lambda d, k: WassersteinLoss(codebook_size=k),
    "distribution": lambda d, k: DistributionConsistencyLoss(),
}

PRESETS: dict[str, Callable[..., Quantizer]] = {
    "grit_vq": grit_vq,
    "vq_vae": vq_vae,
    "vq_vae_ema": vq_vae_ema,
    "rotation_vq": rotation_vq,
    "simvq": simvq,
    "transvq": lambda d, k: transvq(d, k, width=8),
    "fvq": lambda d, k: fvq(d, k, codes_per_token=4, width=8),
    "diveq": diveq,
    "ns_vq": ns_vq,
    "vq_wae": vq_wae,
    "rq": rq,
    "pq": pq,
    "fsq-projected": fsq,
    "fsp-projected": fsp,
    "lfq-projected": lfq,
    "bsq-projected": bsq,
    "spherical_lattice-projected": spherical_lattice,
}


# Presets that take larger inputs, grids, or every pair of vector and code.
SPECIAL_PRESETS: dict[str, Callable[[int, int], Quantizer]] = {
    "soft_vq": soft_vq,
    "gumbel_vq": gumbel_vq,
    "scq": scq,
    "sf_diveq": sf_diveq,
    "sq_vae": sq_vae,
    "sq_vae_2": sq_vae_2,
    "rsq_vae": rsq_vae,
    "gm_vq": gm_vq,
    "hyper_vq": hyper_vq,
    "vaevq_paper": lambda d, k: vaevq_paper(d // 2, k),
    "vaevq_released": lambda d, k: vaevq_released(d // 2, k),
    "msvq": lambda d, k: msvq(d, k, sides=(1, 2, 4)),
    "xq": xq,
    "vq_vae_2": vq_vae_2,
}


def _cosine(d: int, k: int) -> Quantizer:
    return VectorQuantizer(FreeCodebook(d, k, normalize=True), NearestAssignment("cosine"), StraightThrough())


def _fsq(d: int) -> Quantizer:
    return FSQ([5, 4, 3, 2, 2, 7][:d])


def _plain(d: int, k: int) -> Quantizer:
    return VectorQuantizer(FreeCodebook(d, k), learning=[])


def _all_rules(d: int, k: int) -> Quantizer:
    rules = [CodebookLoss(), CommitmentLoss(), EntropyLoss(0.1), OrthogonalityLoss(0.1), DeadCodeRevival(2)]
    return VectorQuantizer(MLPCodebook(d, k), learning=rules)


def _with_rule(name: str) -> Callable[[int, int], Quantizer]:
    """A surrogate that moves the codes, unless the rule owns or trains them."""

    def make(d: int, k: int) -> Quantizer:
        rule = RULES[name](d, k)
        alone = rule.trains_codes or rule.writes_codes == "table"
        return VectorQuantizer(FreeCodebook(d, k), surrogate=None if alone else RadialSurrogate(), learning=[rule])

    return make


QUANTIZERS: dict[str, Callable[[int, int], Quantizer]] = {
    **PRESETS,
    **SPECIAL_PRESETS,
    **{
        f"surrogate-{name}": (lambda d, k, make=make: VectorQuantizer(FreeCodebook(d, k), surrogate=make()))
        for name, make in SURROGATES.items()
    },
    **{
        f"codebook-{name}": (lambda d, k, make=make: VectorQuantizer(make(d, k), surrogate=RadialSurrogate()))
        for name, make in CODEBOOKS.items()
    },
    **{
        f"assignment-{name}": (lambda d, k, make=make: VectorQuantizer(FreeCodebook(d, k), make()))
        for name, make in ASSIGNMENTS.items()
    },
    **{f"rule-{name}": _with_rule(name) for name in RULES},
    "cosine": _cosine,
    "all-rules": _all_rules,
    "fsq": lambda d, k: _fsq(d),
    "lfq": lambda d, k: LFQ(d),
    "bsq": lambda d, k: BSQ(d),
    "lattice-leech": lambda d, k: ProjectedQuantizer(SphericalLattice("Leech", commitment_weight=0.25), d),
    "lattice-bw16": lambda d, k: ProjectedQuantizer(SphericalLattice("BW16"), d),
    "residual-e8": lambda d, k: ProjectedQuantizer(ResidualQuantizer([SphericalLattice("E8")] * 2), d),
    "residual": lambda d, k: ResidualQuantizer([vq_vae(d, k) for _ in range(3)]),
    "residual-radial": lambda d, k: ResidualQuantizer([grit_vq(d, k) for _ in range(3)]),
    "residual-ema": lambda d, k: ResidualQuantizer([vq_vae_ema(d, k, revival_interval=2) for _ in range(2)]),
    "residual-shared": lambda d, k: ResidualQuantizer([vq_vae(d, k)] * 3),
    "residual-lfq": lambda d, k: ResidualQuantizer([vq_vae(d, k), LFQ(d)]),
    "residual-fsq": lambda d, k: ResidualQuantizer([vq_vae(d, k), _fsq(d)]),
    "residual-bsq": lambda d, k: ResidualQuantizer([BSQ(d), BSQ(d)]),
    "residual-of-kinds": lambda d, k: ResidualQuantizer([vq_vae(d, k), _cosine(d, k), LFQ(d), _fsq(d), BSQ(d)]),
    "product-tokens": lambda d, k: ProductQuantizer([vq_vae(d, k), vq_vae_ema(d, k), _fsq(d)], split="tokens"),
    "product-of-residuals": lambda d, k: ProductQuantizer(
        [ResidualQuantizer([vq_vae(d // 2, k), _fsq(d // 2)]), ResidualQuantizer([vq_vae(d - d // 2, k)])]
    ),
    "product-of-multiscales": lambda d, k: ProductQuantizer(
        [MultiScaleQuantizer(_plain(d // 2, k), [1, 2, 4]), MultiScaleQuantizer(LFQ(d - d // 2), [1, 2, 4])]
    ),
    "multiscale": lambda d, k: MultiScaleQuantizer(_plain(d, k), [1, 2, 3, 4]),
    "multiscale-cosine": lambda d, k: MultiScaleQuantizer(
        VectorQuantizer(FreeCodebook(d, k), NearestAssignment("cosine"), learning=[]), [1, 2, 4]
    ),
    "multiscale-lfq": lambda d, k: MultiScaleQuantizer(LFQ(d), [1, 2, 4], level_scale=0.7),
    "multiscale-bsq": lambda d, k: MultiScaleQuantizer(BSQ(d), [2, 2, 4], ratio=0.0, level_scale=0.5),
    "multiscale-ema": lambda d, k: MultiScaleQuantizer(
        VectorQuantizer(FreeCodebook(d, k), learning=[EMAUpdate()]), [1, 4]
    ),
    "hierarchical": lambda d, k: HierarchicalQuantizer([vq_vae(d, k), grit_vq(d, k)], d),
    "hierarchical-of-kinds": lambda d, k: HierarchicalQuantizer(
        [vq_vae_ema(d, k), ResidualQuantizer([vq_vae(d, k), LFQ(d)]), ProjectedQuantizer(_fsq(3), d)], d, width=5
    ),
    "perturbed": lambda d, k: PerturbedQuantizer(
        vq_vae(d, k), share=LinearSchedule(0.9, 0.1, num_steps=4), num_neighbors=5
    ),
    "perturbed-radial": lambda d, k: PerturbedQuantizer(grit_vq(d, k), share=0.5, probability=0.5),
    "product": lambda d, k: ProductQuantizer([vq_vae(d // 2, k), vq_vae_ema(d // 2, k)]),
    "residual-of-products": lambda d, k: ResidualQuantizer(
        [ProductQuantizer([vq_vae(d // 2, k), vq_vae(d // 2, k)]) for _ in range(2)]
    ),
    "projected": lambda d, k: ProjectedQuantizer(grit_vq(4, k), d),
    "projected-fsq": lambda d, k: ProjectedQuantizer(FSQ([5, 4, 3]), d),
    "residual-projected": lambda d, k: ResidualQuantizer(
        [ProjectedQuantizer(vq_vae(4, k), d, own_surrogate=True) for _ in range(3)]
    ),
    "projected-residual": lambda d, k: ProjectedQuantizer(ResidualQuantizer([vq_vae(4, k), vq_vae(4, k)]), d),
    "normalized": lambda d, k: NormalizedQuantizer(
        VectorQuantizer(FreeCodebook(d, k, normalize=True), NearestAssignment("cosine"), learning=[EMAUpdate()])
    ),
    "mapped": lambda d, k: BoundedQuantizer(
        ResidualQuantizer(
            [
                ScaledQuantizer(
                    FSQ([4, 3, 2, 5, 2, 3][:d], symmetric=True, bound="clamp"), [0.9 + 0.1 * i for i in range(d)]
                ),
                ScaledQuantizer(LFQ(d, first_bit="highest"), 0.25),
            ]
        ),
        1.5,
    ),
    "variational-latent": lambda d, k: VariationalLatent(
        vq_vae(d // 2, k), coherence=RepresentationCoherenceLoss(), kl_weight=1e-3, initial_log_variance=-2.0
    ),
    "variational-latent-released": lambda d, k: VariationalLatent(
        VectorQuantizer(AffineCodebook(d // 2, k), learning=[]),
        choose_by="mean",
        gradient="reparameterized",
        coherence=RepresentationCoherenceLoss(reduction="mean", detach_deviation=False),
    ),
    "variational-latent-radial-residual": lambda d, k: VariationalLatent(
        ResidualQuantizer([grit_vq(d // 2, k, revival_interval=2) for _ in range(2)])
    ),
    "ema-lloyd": lambda d, k: VectorQuantizer(FreeCodebook(d, k), learning=[EMAUpdate(0.0)]),
    "revival-every-step": lambda d, k: VectorQuantizer(
        FreeCodebook(d, k), surrogate=RadialSurrogate(), learning=[DeadCodeRevival(1)]
    ),
    "stochastic": lambda d, k: StochasticQuantizer(
        FreeCodebook(d, k), temperature=LinearSchedule(1.0, 0.5, num_steps=9)
    ),
    "stochastic-position": lambda d, k: StochasticQuantizer(FreeCodebook(d - 1, k), variance="position"),
    "stochastic-channel": lambda d, k: StochasticQuantizer(FreeCodebook(d // 2, k), variance="channel"),
    "stochastic-vmf": lambda d, k: StochasticQuantizer(FreeCodebook(d, k), distribution="vmf"),
    "stochastic-mlp": lambda d, k: StochasticQuantizer(MLPCodebook(d, k)),
    "residual-stochastic": lambda d, k: ResidualStochasticQuantizer([FreeCodebook(d, k) for _ in range(3)]),
    "residual-stochastic-shared": lambda d, k: ResidualStochasticQuantizer([FreeCodebook(d, k)] * 3),
    "residual-mixture": lambda d, k: ResidualQuantizer([gm_vq(d, k), gm_vq(d, k)]),
    "mixture": lambda d, k: GaussianMixtureQuantizer(FreeCodebook(d, k)),
    "hyperbolic": HyperbolicQuantizer,
}


def trained_a_little(quantizer: Quantizer) -> Quantizer:
    """Moves all parameters off their special starts (identity maps, zero layers), as training does."""
    for module in quantizer.modules():
        if isinstance(module, Codebook):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.4)
    return quantizer


# Every preset, and one of each kind of part and structure that no preset has. The other rows differ from these in
# numbers or in parts that these hold already: what is slow, such as compiling, runs over them in `make soak`.
KINDS = {*PRESETS, *SPECIAL_PRESETS, "all-rules", "cosine", "perturbed", "projected-residual", "residual-of-kinds"}
KINDS |= {
    "product-tokens",
    "multiscale-ema",
    "variational-latent-radial-residual",
    "stochastic-vmf",
    "residual-mixture",
}


# What compiling sees: every class of part and structure once. The other kinds are made of these.
GRAPHS = KINDS - {
    "vq_vae",
    "vq_vae_ema",
    "simvq",
    "cosine",
    "fsq-projected",
    "lfq-projected",
    "bsq-projected",
    "rq",
    "pq",
}
GRAPHS -= {"xq", "vq_vae_2", "msvq", "sq_vae", "residual-mixture", "variational-latent-radial-residual"}


def quick(*names: str, of: Mapping[str, Any] = QUANTIZERS) -> list[Any]:
    """Rows as parameters of a test: these run in the suite, the others in `make soak`."""
    return [pytest.param(row, id=name, marks=() if name in names else pytest.mark.soak) for name, row in of.items()]


# A training that takes seconds: the first seed runs in the suite, the others in `make soak`.
SEEDS = [0, pytest.param(1, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.soak)]
