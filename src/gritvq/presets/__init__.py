"""Presets: one short function per published recipe, all ``(dim, codebook_size, *, ...)``.

Each returns a plain composition of parts; copy the line to change it. Default arguments are the recipe's own, not
tuned.
"""

from gritvq.presets.grids import bsq, fsq, lfq
from gritvq.presets.structured import pq, rq
from gritvq.presets.tables import diveq, grit_vq, rotation_vq, simvq, vq_vae, vq_vae_ema

__all__ = ["bsq", "diveq", "fsq", "grit_vq", "lfq", "pq", "rotation_vq", "rq", "simvq", "vq_vae", "vq_vae_ema"]
