"""The single list of parts, quantizers and presets that the common tests run over. A new method adds one row."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gritvq import (
    BSQ,
    FSQ,
    LFQ,
    AffineCodebook,
    ClippedRadius,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    ConstantRadius,
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
    GaussianRadius,
    InputNormRadius,
    LearningRule,
    LogRadius,
    MahalanobisRadius,
    MLPCodebook,
    NearestAssignment,
    NoiseSubstitution,
    OrthogonalityLoss,
    PowerRadius,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    RadialSurrogate,
    Radius,
    ResidualQuantizer,
    RotationTrick,
    SaturatingRadius,
    ShiftedRadius,
    SmoothRadius,
    StraightThrough,
    Surrogate,
    TanhRadius,
    VectorQuantizer,
    WassersteinLoss,
    bsq,
    diveq,
    fsq,
    grit_vq,
    lfq,
    pq,
    rotation_vq,
    rq,
    simvq,
    vq_vae,
    vq_vae_ema,
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
    "diveq": diveq,
    "rq": rq,
    "pq": pq,
    "fsq-projected": fsq,
    "lfq-projected": lfq,
    "bsq-projected": bsq,
}


def _cosine(d: int, k: int) -> Quantizer:
    return VectorQuantizer(FreeCodebook(d, k, normalize=True), NearestAssignment("cosine"), StraightThrough())


def _all_rules(d: int, k: int) -> Quantizer:
    rules = [CodebookLoss(), CommitmentLoss(), EntropyLoss(0.1), OrthogonalityLoss(0.1), DeadCodeRevival(2)]
    return VectorQuantizer(MLPCodebook(d, k), learning=rules)


def _with_rule(name: str, surrogate: Callable[[], Surrogate]) -> Callable[[int, int], Quantizer]:
    return lambda d, k: VectorQuantizer(FreeCodebook(d, k), surrogate=surrogate(), learning=[RULES[name](d, k)])


QUANTIZERS: dict[str, Callable[[int, int], Quantizer]] = {
    **PRESETS,
    **{
        f"surrogate-{name}": (lambda d, k, make=make: VectorQuantizer(FreeCodebook(d, k), surrogate=make()))
        for name, make in SURROGATES.items()
    },
    **{
        f"codebook-{name}": (lambda d, k, make=make: VectorQuantizer(make(d, k), surrogate=RadialSurrogate()))
        for name, make in CODEBOOKS.items()
    },
    **{
        f"rule-{name}": _with_rule(name, RadialSurrogate if name == "distribution" else StraightThrough)
        for name in RULES
        if name.startswith(("drift", "wasserstein", "distribution"))
    },
    "cosine": _cosine,
    "all-rules": _all_rules,
    "fsq": lambda d, k: FSQ([5, 4, 3, 2, 2, 7][:d]),
    "lfq": lambda d, k: LFQ(d),
    "bsq": lambda d, k: BSQ(d),
    "residual": lambda d, k: ResidualQuantizer([vq_vae(d, k) for _ in range(3)]),
    "residual-radial": lambda d, k: ResidualQuantizer([grit_vq(d, k) for _ in range(3)]),
    "residual-ema": lambda d, k: ResidualQuantizer([vq_vae_ema(d, k, revival_interval=2) for _ in range(2)]),
    "residual-shared": lambda d, k: ResidualQuantizer([vq_vae(d, k)] * 3),
    "residual-lfq": lambda d, k: ResidualQuantizer([vq_vae(d, k), LFQ(d)]),
    "product": lambda d, k: ProductQuantizer([vq_vae(d // 2, k), vq_vae_ema(d // 2, k)]),
    "residual-of-products": lambda d, k: ResidualQuantizer(
        [ProductQuantizer([vq_vae(d // 2, k), vq_vae(d // 2, k)]) for _ in range(2)]
    ),
    "projected": lambda d, k: ProjectedQuantizer(grit_vq(4, k), d),
    "projected-fsq": lambda d, k: ProjectedQuantizer(FSQ([5, 4, 3]), d),
    "projected-residual": lambda d, k: ProjectedQuantizer(ResidualQuantizer([vq_vae(4, k), vq_vae(4, k)]), d),
    "ema-lloyd": lambda d, k: VectorQuantizer(FreeCodebook(d, k), learning=[EMAUpdate(0.0)]),
    "revival-every-step": lambda d, k: VectorQuantizer(
        FreeCodebook(d, k), surrogate=RadialSurrogate(), learning=[DeadCodeRevival(1)]
    ),
}


def trained_a_little(quantizer: Quantizer) -> Quantizer:
    """Moves all parameters off their special starts (identity maps, zero layers), as training does."""
    for module in quantizer.modules():
        if isinstance(module, Codebook):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.4)
    return quantizer
