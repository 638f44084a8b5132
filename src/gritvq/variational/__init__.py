"""Variational quantizers: latents or choices are distributions whose width is learned."""

from gritvq.variational.latent import RepresentationCoherenceLoss, VariationalLatent
from gritvq.variational.mixture import GaussianMixtureQuantizer
from gritvq.variational.residual import ResidualStochasticQuantizer
from gritvq.variational.stochastic import StochasticQuantizer

__all__ = [
    "GaussianMixtureQuantizer",
    "RepresentationCoherenceLoss",
    "ResidualStochasticQuantizer",
    "StochasticQuantizer",
    "VariationalLatent",
]
