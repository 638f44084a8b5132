"""Quantizers whose latents are distributions."""

from gritvq.variational.latent import RepresentationCoherenceLoss, VariationalLatent

__all__ = ["RepresentationCoherenceLoss", "VariationalLatent"]
