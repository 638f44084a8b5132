"""Writing files so that a reader never sees half of one: see :mod:`gritvq.files`."""

from gritvq.files import replacing, write_json

__all__ = ["replacing", "write_json"]
