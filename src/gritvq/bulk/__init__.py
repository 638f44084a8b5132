"""Encoding data sets of any size, in shards: in this process or on Ray, and on from where a run was interrupted.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gritvq.lazy import lazy_names

if TYPE_CHECKING:
    from gritvq.bulk.engines import *
    from gritvq.bulk.folder import *
    from gritvq.bulk.pictures import *
    from gritvq.bulk.texts import *
    from gritvq.bulk.vectors import *
    from gritvq.bulk.work import *

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "engines": ["encode_here", "encode_on_ray", "encode_rows", "encode_shards"],
        "folder": ["ShardFolder"],
        "pictures": ["PictureWork", "Views"],
        "texts": ["TextWork"],
        "vectors": ["ItemVectors", "VectorWork"],
        "work": ["Shard", "Work", "bits_per_token", "count"],
    },
)
