"""Variational quantizers: the code is drawn from a distribution whose width is learned, and hardens by itself."""

from gritvq.variational.mixture import GaussianMixtureQuantizer
from gritvq.variational.residual import ResidualStochasticQuantizer
from gritvq.variational.stochastic import StochasticQuantizer

__all__ = ["GaussianMixtureQuantizer", "ResidualStochasticQuantizer", "StochasticQuantizer"]
