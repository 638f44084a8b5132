"""Semantic ids as an artifact: a tuple of indices for each item, saved and loaded exactly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.files import (
    check_footer,
    checked_file,
    holds_files,
    place_of_file,
    read_header,
    replacing_files,
    write_header,
)
from gritvq.items.ids.checks import as_codes, check_distinct, checked_codes, checked_keys, checked_sizes
from gritvq.items.ids.collisions import UNIQUE, Policy, checked_policy, resolve
from gritvq.items.ids.groups import RowTable
from gritvq.items.ids.metrics import report
from gritvq.items.ids.trie import PrefixTrie
from gritvq.items.interactions import Key
from gritvq.lazy import optional
from gritvq.saving import local_folder

__all__ = ["FORMAT_VERSION", "Key", "SemanticIds"]

FORMAT_VERSION = 2  # version 1 had only the table's checksum
_FORMAT, _TABLE, _HEADER = "gritvq-semantic-ids", "ids.parquet", "semantic_ids.json"
_WANTED = {"codebook_sizes": list, "collisions": str, "fingerprint": dict, "sha256": (dict, str)}


@final
class SemanticIds:
    """Items and their ids, tuples of Q indices, with lookup in both directions. Immutable; do not modify its tensors.

    Args:
        codes: Final ids (n, Q), integers; row i belongs to item i. Copied.
        codebook_sizes: K_q of each column; indices are in ``[0, K_q)``.
        items: Unique keys of the items, all int or all str; None means ``0 .. n-1``.
        collisions: How collisions were resolved; with ``"append"`` and ``"nearest_free"`` ids must be unique.
        fingerprint: What made the ids, such as ``{"encoder": "all-MiniLM-L6-v2", "quantizer": "sha256 ..."}``.

    Attributes:
        codes: Ids (n, Q), int64, on the CPU.
        codebook_sizes: K_q of each column.
        items: Keys in order.
        collisions: The collision policy.

    Raises:
        ValueError: If shapes, types or values are wrong, a key is repeated, or ids that must be unique are not.

    Example:
        >>> codes = torch.tensor([[0, 1], [0, 1], [3, 2]])
        >>> ids = SemanticIds.assign(codes, (4, 4), ["lipstick", "red lipstick", "comb"], collisions="append")
        >>> ids.ids_of(["red lipstick"]), ids.items_of([[3, 2, 0], [3, 3, 3]])
        (tensor([[0, 1, 1]]), [['comb'], []])
        >>> ids.add([[3, 2]], ["brush"]).ids_of(["brush", "comb"])
        tensor([[3, 2, 1],
                [3, 2, 0]])
    """

    def __init__(
        self,
        codes: Int[Tensor, "n Q"],
        codebook_sizes: Sequence[int],
        items: Sequence[Key] | None = None,
        *,
        collisions: Policy = "keep",
        fingerprint: Mapping[str, str] | None = None,
    ) -> None:
        self._sizes = checked_sizes(codebook_sizes)
        self._codes = checked_codes(codes, self._sizes)
        if not len(self._codes):
            raise ValueError("expected at least one item, got none; pass ids of items")
        self._items = checked_keys(range(len(self._codes)) if items is None else items)
        if len(self._items) != len(self._codes):
            raise ValueError(
                f"expected a key for each of {len(self._codes)} ids, got {len(self._items)} keys; make them equal"
            )
        check_distinct(self._items)
        self._collisions = checked_policy(collisions)
        self._fingerprint = dict(fingerprint or {})
        if not all(isinstance(part, str) for pair in self._fingerprint.items() for part in pair):
            raise ValueError(f"expected a fingerprint of strings by name, got {fingerprint!r}; convert its values")
        if collisions in UNIQUE and len(self._rows.counts) < len(self._codes):
            first = self._rows.order[self._rows.starts[int((self._rows.counts > 1).nonzero()[0])] :][:2].tolist()
            raise ValueError(
                f"expected unique ids for collisions={collisions!r}, got {self.codes[first[0]].tolist()} for "
                f"{self.items[first[0]]!r} and {self.items[first[1]]!r}; apply the policy with SemanticIds.assign"
            )

    @classmethod
    def assign(
        cls,
        codes: Int[Tensor, "n L"],
        codebook_sizes: Sequence[int],
        items: Sequence[Key] | None = None,
        *,
        collisions: Policy = "append",
        vectors: Float[Tensor, "n D"] | None = None,
        table: Float[Tensor, "K D"] | None = None,
        fingerprint: Mapping[str, str] | None = None,
    ) -> SemanticIds:
        """Make ids from a tokenizer's indices; collisions are resolved by :func:`gritvq.items.ids.collisions.resolve`.

        Args:
            codes: A tokenizer's indices (n, L).
            codebook_sizes: Codes per level.
            items: Keys; None means ``0 .. n-1``.
            collisions: ``"append"`` (one more token, ids are unique), ``"nearest_free"`` (another code at the last
                level, ids are unique), ``"sinkhorn"`` (another code at the last level, duplicates may remain) or
                ``"keep"``.
            vectors: Inputs of the last level (n, D), for ``"nearest_free"`` and ``"sinkhorn"``.
            table: Codes of the last level (K, D), for the same.
            fingerprint: What made the ids.

        Raises:
            ValueError: If an argument is wrong, or a unique id cannot be found.
        """
        sizes = checked_sizes(codebook_sizes)
        codes = checked_codes(codes, sizes)
        ids, sizes = resolve(checked_policy(collisions), codes, sizes, vectors=vectors, table=table)
        return cls(ids, sizes, items, collisions=collisions, fingerprint=fingerprint)

    @property
    def codes(self) -> Int[Tensor, "n Q"]:
        """Ids (n, Q), row i of item i; int64, on the CPU."""
        return self._codes

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per column."""
        return self._sizes

    @property
    def items(self) -> tuple[Key, ...]:
        """Keys of the items in order."""
        return self._items

    @property
    def collisions(self) -> Policy:
        """The collision policy."""
        return self._collisions

    @property
    def fingerprint(self) -> dict[str, str]:
        """What made the ids; a copy."""
        return dict(self._fingerprint)

    def trie(self, priority: Float[Tensor, " n"] | None = None) -> PrefixTrie:
        """The prefix trie of all ids, for constrained generation.

        Args:
            priority: Sorts items that share an id, largest first (n,); None keeps their order.
        """
        return PrefixTrie(self._codes, self._sizes, priority=priority)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SemanticIds):
            return NotImplemented
        return self._described() == other._described() and torch.equal(self._codes, other._codes)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"SemanticIds({len(self)} items, codebook_sizes={self.codebook_sizes}, collisions={self.collisions!r}, "
            f"{len(self._rows.counts)} distinct)"
        )

    @cached_property
    def prefixes(self) -> tuple[RowTable, ...]:
        """The items grouped by the first 1, 2, ..., Q codes of their ids."""
        depths = range(1, len(self._sizes))
        return *(RowTable(self._codes[:, :depth], self._sizes[:depth]) for depth in depths), self._rows

    # --- looking up ---------------------------------------------------------------------------------------------------

    def rows_of(self, items: Sequence[Key], *, unknown: Literal["error", "skip"] = "error") -> Int[Tensor, " m"]:
        """Rows of items (m,), int64.

        Args:
            items: Keys.
            unknown: ``"skip"`` gives -1 for keys without an id.

        Raises:
            ValueError: If a key is unknown, unless that is skipped, or keys are of several types.
        """
        keys = checked_keys(items)
        rows = [self._row_by_key.get(key, -1) for key in keys]
        if -1 in rows and unknown == "error":
            missing = [key for key, row in zip(keys, rows, strict=True) if row < 0]
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ValueError(
                f"expected items that have an id, got {missing[0]!r}{more}; keys here are "
                f"{type(self.items[0]).__name__}; new items get ids by 'gritvq semantic-ids add', whose folder --ids "
                "takes, in Python by add()"
            )
        return torch.tensor(rows, dtype=torch.int64)

    def ids_of(self, items: Sequence[Key]) -> Int[Tensor, "m Q"]:
        """Ids of items (m, Q), int64.

        Raises:
            ValueError: If a key is unknown or of another type.
        """
        return self._codes[self.rows_of(items)]

    def items_of(self, ids: Int[Tensor, "m Q"] | Sequence[Sequence[int]]) -> list[list[Key]]:
        """Keys of the items with each id, in item order; empty if there is none, or an index is out of range.

        Raises:
            ValueError: If the ids are not integers of shape (m, Q).
        """
        wanted = as_codes(ids, len(self.codebook_sizes))
        group = self._rows.find(wanted)
        starts, order = self._starts_and_order
        first, last = (torch.where(group >= 0, starts[group + end], 0).tolist() for end in (0, 1))
        return [[self._items[row] for row in order[a:b]] for a, b in zip(first, last, strict=True)]

    @cached_property
    def _rows(self) -> RowTable:
        return RowTable(self._codes, self._sizes)

    @cached_property
    def _starts_and_order(self) -> tuple[Tensor, list[int]]:
        return self._rows.starts, self._rows.order.tolist()

    @cached_property
    def _row_by_key(self) -> dict[Key, int]:
        return dict(zip(self._items, range(len(self._items)), strict=True))

    # --- new items and metrics ----------------------------------------------------------------------------------------

    def add(
        self,
        codes: Int[Tensor, "m L"],
        items: Sequence[Key],
        *,
        vectors: Float[Tensor, "m D"] | None = None,
        table: Float[Tensor, "K D"] | None = None,
        fingerprint: Mapping[str, str] | None = None,
    ) -> SemanticIds:
        """Ids with new items at the end, by the same policy; existing items keep their ids.

        Adding items one by one or all at once gives the same ids with ``"keep"`` and ``"append"``, but not always with
        the other policies.

        Args:
            codes: The same tokenizer's indices of the new items (m, L), without the appended token.
            items: New keys.
            vectors: Inputs of the last level (m, D), for ``"nearest_free"`` and ``"sinkhorn"``.
            table: Codes of the last level (K, D), for the same.
            fingerprint: What made the indices; must equal these ids' fingerprint. None skips the check.

        Returns:
            New ids. With ``"append"`` the last codebook size may have grown.

        Raises:
            ValueError: If an argument is wrong, a key exists already, a unique id cannot be found, or fingerprints
                differ.
        """
        if fingerprint is not None and dict(fingerprint) != self._fingerprint:
            raise ValueError(
                f"expected codes made by {self._fingerprint}, got {dict(fingerprint)}; use the tokenizer that made the "
                "ids, or assign all ids again"
            )
        levels = self._sizes[:-1] if self._collisions == "append" else self._sizes
        codes, keys = checked_codes(codes, levels), checked_keys(items)
        if len(keys) != len(codes):
            raise ValueError(f"expected a key for each of {len(codes)} new ids, got {len(keys)} keys; make them equal")
        check_distinct((*self._items, *keys))
        if not len(codes):
            return self
        ids, sizes = resolve(self._collisions, codes, self._sizes, vectors=vectors, table=table, fixed=self._codes)
        every = torch.cat([self._codes, ids])
        return SemanticIds(
            every, sizes, (*self._items, *keys), collisions=self._collisions, fingerprint=self._fingerprint
        )

    def report(
        self, categories: Sequence[Any] | None = None, embeddings: Float[Tensor, "n D"] | None = None, **options: Any
    ) -> dict[str, float]:
        """All quality metrics by name, see :mod:`gritvq.items.ids.metrics`."""
        return report(self, categories, embeddings, **options)

    # --- saving and loading -------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``ids.parquet`` (columns ``item, c0, c1, ...``) and ``semantic_ids.json`` with checksums, atomically.

        If the process is killed, the folder contains either the old ids or the new ones. Needs pyarrow (the extra
        ``items``).

        Raises:
            ValueError: If the path is a file or a folder with other files, or pyarrow is missing.
        """
        pyarrow, parquet = optional("pyarrow", "items"), optional("pyarrow.parquet", "items")
        folder = Path(folder)
        holds_other = folder.is_dir() and holds_files(folder) and not place_of_file(folder, _HEADER).exists()
        if holds_other or (folder.exists() and not folder.is_dir()):
            raise ValueError(f"expected a new folder or one that holds semantic ids, got {folder}; choose another name")
        key_type = pyarrow.int64() if isinstance(self._items[0], int) else pyarrow.string()
        columns = {"item": pyarrow.array(self._items, key_type)}
        for level, size in enumerate(self._sizes):
            columns[f"c{level}"] = self._codes[:, level].numpy().astype(np.min_scalar_type(size - 1))
        content = {"format": _FORMAT, "format_version": FORMAT_VERSION, **self._described()}
        del content["items"]
        with replacing_files(folder) as scratch:
            parquet.write_table(pyarrow.table(columns), scratch / _TABLE, compression="zstd")
            write_header(scratch / _HEADER, content)
        return folder

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str | None = None) -> SemanticIds:
        """Read ids from a folder, as :meth:`load`, or, by name, from the Hugging Face Hub.

        Args:
            source: A folder, or ``"owner/name"`` (needs ``huggingface_hub``).
            revision: Branch, tag or commit on the Hub.

        Raises:
            ValueError: As :meth:`load`, or if the Hub cannot be reached or has no such name or revision.
        """
        files = (_HEADER, _TABLE)
        return cls.load(local_folder(source, revision=revision, what="a folder of semantic ids", files=files))

    @staticmethod
    def is_saved_in(folder: str | os.PathLike[str]) -> bool:
        """Whether a folder holds what :meth:`save` wrote."""
        return place_of_file(Path(folder), _HEADER).is_file()

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SemanticIds:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If files are missing, damaged, of different artifacts, or written by a newer version, or pyarrow
                is missing.
        """
        pyarrow, parquet = optional("pyarrow", "items"), optional("pyarrow.parquet", "items")
        folder = Path(folder)
        header = read_header(folder, _HEADER, "a folder of semantic ids", _FORMAT, FORMAT_VERSION, _WANTED)
        if isinstance(header["sha256"], str):  # format version 1
            header["sha256"] = {_TABLE: header["sha256"]}
        path = checked_file(folder, _TABLE, header)
        sizes = checked_sizes(header["codebook_sizes"])
        names = ["item", *(f"c{level}" for level in range(len(sizes)))]
        try:
            with parquet.ParquetFile(path) as file:
                check_footer(file.metadata, path, whole=True)
                table = file.read(columns=names)
            columns = [table.column(name).cast(pyarrow.int64()).to_numpy() for name in names[1:]]
            if any(table.column(name).null_count for name in names):
                raise KeyError("a value for each item and level")
            items = table.column("item").to_pylist()
        except (pyarrow.ArrowException, OSError, KeyError, UnicodeError) as error:
            raise ValueError(f"expected a table with the columns {names} in {path}, got another ({error})") from error
        codes = torch.from_numpy(np.stack(columns, 1))
        return cls(codes, sizes, items, collisions=header["collisions"], fingerprint=header["fingerprint"])

    def _described(self) -> dict[str, Any]:
        return {
            "codebook_sizes": list(self._sizes),
            "collisions": self._collisions,
            "fingerprint": self._fingerprint,
            "items": self._items,
        }
