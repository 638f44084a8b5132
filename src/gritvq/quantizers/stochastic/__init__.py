"""Variational quantizers: latents or choices are distributions whose width is learned."""

from gritvq.quantizers.stochastic.gaussian import StochasticQuantizer
from gritvq.quantizers.stochastic.hyperbolic import HyperbolicQuantizer
from gritvq.quantizers.stochastic.mixture import GaussianMixtureQuantizer
from gritvq.quantizers.stochastic.residual import ResidualStochasticQuantizer
from gritvq.quantizers.stochastic.variational_latent import RepresentationCoherenceLoss, VariationalLatent

__all__ = [
    "GaussianMixtureQuantizer",
    "HyperbolicQuantizer",
    "RepresentationCoherenceLoss",
    "ResidualStochasticQuantizer",
    "StochasticQuantizer",
    "VariationalLatent",
]
