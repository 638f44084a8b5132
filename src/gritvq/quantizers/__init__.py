"""The theory: quantizers, their parts, structures of them, and presets. Public names are at the top: ``gritvq.FSQ``."""
