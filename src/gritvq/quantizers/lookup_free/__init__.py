"""Lookup-free quantizers: fixed codes that need no table, on a grid or on a sphere."""

from gritvq.quantizers.lookup_free.grids import BSQ, FSP, FSQ, LFQ
from gritvq.quantizers.lookup_free.lattices import SphericalLattice

__all__ = ["BSQ", "FSP", "FSQ", "LFQ", "SphericalLattice"]
