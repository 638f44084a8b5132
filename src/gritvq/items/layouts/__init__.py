"""Item data as it is published: RecBole's atomic files, Amazon reviews of 2014, 2018 and 2023, MovieLens.

Files are read line by line into the columns of our own layout: ``user``, ``item``, ``timestamp``, ``rating`` of events;
``item``, ``title``, ``item_text`` and others of items. :func:`gritvq.items.read_item_data` and the other readers use
this package for what is neither Parquet nor a CSV file with the columns that they ask for.

Files of events, and of items:

- RecBole: ``X.inter``, ``X.item``; their columns of users, items and times may have other names, see
  :func:`gritvq.items.layouts.recbole.events`.
- Amazon 2014 and 2018: ``reviews_X_5.json`` or ``X_5.json``, or ratings without a header, ``ratings_X.csv`` or
  ``X.csv``; ``meta_X.json`` (JSON; of 2014 literals of Python).
- Amazon 2023: ``X.jsonl`` or ``X.csv``, ``meta_X.jsonl``.
- MovieLens latest, 25M, 32M: ``ratings.csv``, ``movies.csv``.
- MovieLens 1M, 10M: ``ratings.dat``, ``movies.dat``.
- MovieLens 100K: ``u.data``, ``u.item``.

All may be compressed (``.gz``). Parts of a data set for training, validation and test (``X.train.inter`` and the like,
``X.train.csv`` and the like) are joined.
"""

from __future__ import annotations

from gritvq.items.layouts.amazon import holds_reviews
from gritvq.items.layouts.conversion import convert_item_data
from gritvq.items.layouts.files import LayoutFiles, find_layout, has_events, has_items, layout_files, own_table
from gritvq.items.layouts.lines import text_of
from gritvq.items.layouts.tables import event_batches, events_table, items_table

__all__ = [
    "LayoutFiles",
    "convert_item_data",
    "event_batches",
    "events_table",
    "find_layout",
    "has_events",
    "has_items",
    "holds_reviews",
    "items_table",
    "layout_files",
    "own_table",
    "text_of",
]
