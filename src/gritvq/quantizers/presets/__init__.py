"""Presets: one short function per published recipe, all ``(dim, codebook_size, *, ...)``.

Each returns a plain composition of parts; copy the line to change it. Default arguments are the recipe's own, not
tuned.
"""

from gritvq.quantizers.presets.assignments import gumbel_vq, scq, sf_diveq, soft_vq
from gritvq.quantizers.presets.codebooks import fvq, grit_vq, simvq, transvq
from gritvq.quantizers.presets.learning import ns_vq, vq_vae, vq_vae_ema, vq_wae
from gritvq.quantizers.presets.lookup_free import bsq, fsp, fsq, lfq, spherical_lattice
from gritvq.quantizers.presets.stochastic import gm_vq, hyper_vq, rsq_vae, sq_vae, sq_vae_2, vaevq_paper, vaevq_released
from gritvq.quantizers.presets.structures import msvq, pq, rq, vq_vae_2, xq
from gritvq.quantizers.presets.surrogates import diveq, rotation_vq

__all__ = [
    "bsq",
    "diveq",
    "fsp",
    "fsq",
    "fvq",
    "gm_vq",
    "grit_vq",
    "gumbel_vq",
    "hyper_vq",
    "lfq",
    "msvq",
    "ns_vq",
    "pq",
    "rotation_vq",
    "rq",
    "rsq_vae",
    "scq",
    "sf_diveq",
    "simvq",
    "soft_vq",
    "spherical_lattice",
    "sq_vae",
    "sq_vae_2",
    "transvq",
    "vaevq_paper",
    "vaevq_released",
    "vq_vae",
    "vq_vae_2",
    "vq_vae_ema",
    "vq_wae",
    "xq",
]
