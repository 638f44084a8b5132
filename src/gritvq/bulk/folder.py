"""A folder of token files that is written shard by shard, by any number of processes, and over several runs.

While files are missing, all are in ``.unfinished`` inside the folder, so that nothing reads half of them. Each is
written under another name and renamed: it is there whole, or not at all. ``manifest.json`` beside them holds the plan:
what determines the tokens. Another run with the same plan goes on; one with another is refused. When all are there, the
manifest gets their names and numbers of rows, and all move to their places. If one of these is lost later, the others
move back and another run makes it again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.bulk.work import count
from gritvq.files import put_files, remove_folder, replacing, settle, write_header
from gritvq.tokens import TokenRow, iter_tokens, write_tokens
from gritvq.tokens.files import FORMAT, FORMAT_VERSION, MANIFEST, UNFINISHED, read_manifest

__all__ = ["ShardFolder"]

_OWN = (UNFINISHED, ".writing-")
_NONE = ".none"  # ending of the mark of a shard without a row


class ShardFolder:
    """A folder of token files ``tokens-00000.parquet``, ..., one for each shard.

    Args:
        path: New, empty, or written with the same plan.
        plan: What determines the tokens, see :meth:`gritvq.bulk.Work.plan`.

    Attributes:
        totals: What the files of a finished folder hold, see :func:`gritvq.bulk.count`; None if it is not finished, or
            one is lost.

    Raises:
        ValueError: If there is something else, or tokens of another tokenizer, of other data or with other settings.

    Example:
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = ShardFolder(Path(place) / "tokens", {"tokenizer": "a", "data": "b", "settings": {}})
        ...     folder.begin()
        ...     counts = folder.write(0, iter([TokenRow("one", torch.zeros(3, 1, dtype=torch.int64))]))
        ...     folder.finish([counts])
        ...     sorted(path.name for path in folder.path.iterdir()), folder.totals["positions"]
        (['manifest.json', 'tokens-00000.parquet'], 3)
    """

    totals: Counter[str] | None = None

    def __init__(self, path: str | os.PathLike[str], plan: Mapping[str, Any]) -> None:
        self.path, self.plan = Path(path), dict(plan)
        self._held = self.path.absolute() / UNFINISHED
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"expected a folder for token files, got the file {self.path}; choose another --out")
        if self.path.is_dir():
            settle(self.path)
        if self._held.is_dir() and (self._held / MANIFEST).exists():
            self._check(read_manifest(self._held, finished=False)["plan"])
        elif (self.path / MANIFEST).exists():
            said = read_manifest(self.path)
            self._check(said["plan"])
            if all((self.path / name).exists() for name in said["files"]):
                self.totals = Counter(said["totals"])
        elif self.path.is_dir() and any(not name.startswith(_OWN) for name in os.listdir(self.path)):
            raise ValueError(f"expected a new or empty folder for token files, got {self.path}; choose another --out")

    def write(self, number: int, rows: Iterator[TokenRow]) -> Counter[str]:
        """Write the file of a shard, atomically; returns what it holds, see :func:`gritvq.bulk.count`."""
        counts: Counter[str] = Counter()
        counted = count(rows, counts)
        first = next(counted, None)
        if first is None:
            self._file(number).with_suffix(_NONE).touch()
        else:
            write_tokens(self._file(number), _chained(first, counted))
        return counts

    def counts(self, number: int) -> Counter[str] | None:
        """What a shard's file holds, read and checked; None if the shard must be made, also where it is damaged."""
        path, counts = self._file(number), Counter[str]()
        if path.exists():
            try:
                for _ in count(iter_tokens(path), counts):
                    pass
            except ValueError:
                return None
            return counts
        return counts if path.with_suffix(_NONE).exists() else None

    def finish(self, found: Sequence[Counter[str]]) -> None:
        """Move all files to their places, with the manifest.

        Args:
            found: What the file of each shard holds.

        Raises:
            ValueError: If a file is missing, or no shard has a row.
        """
        totals, files = Counter[str](), dict[str, int]()
        for number, counts in enumerate(found):
            path = self._file(number) if counts else self._file(number).with_suffix(_NONE)
            if not path.exists():
                raise ValueError(f"expected {path.name} in {self._held}, got none; run the same command again")
            totals.update(counts)
            if counts:
                files[path.name] = counts["samples"]
        if not files:
            raise ValueError("expected tokens of at least one sample, got none; nothing was written")
        self._say({"files": files, "totals": dict(totals)})
        self._put()
        self.totals = totals

    def begin(self) -> None:
        """Write the plan, unless an earlier run has done so, and take back the files of a folder that has lost one."""
        if not (self._held / MANIFEST).exists():
            remove_folder(self._held)  # files without a plan: a worker wrote them after its run had failed
            self._held.mkdir(parents=True, exist_ok=True)
            self._say({})
        if (self.path / MANIFEST).exists():
            made = read_manifest(self.path)["files"]
            for path in self.path.glob("tokens-*.parquet"):
                if path.name in made:
                    os.replace(path, self._held / path.name)

    def clear(self) -> None:
        """Remove what was begun if no shard has a file."""
        if any(path.suffix == ".parquet" for path in self._held.glob("tokens-*")):
            return
        shutil.rmtree(self._held, ignore_errors=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _say(self, more: Mapping[str, Any]) -> None:
        """Write the manifest, with a checksum of itself alone: every row of the files has its own."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "plan": self.plan, **more}
        with tempfile.TemporaryDirectory() as alone, replacing(self._held / MANIFEST) as scratch:
            write_header(Path(alone) / MANIFEST, content)
            scratch.write_bytes((Path(alone) / MANIFEST).read_bytes())

    def _put(self) -> None:
        for mark in (*self._held.glob(f"*{_NONE}"), *self._held.glob(".writing-*")):
            mark.unlink(missing_ok=True)
        put_files(self._held, self.path)

    def _file(self, number: int) -> Path:
        return self._held / f"tokens-{number:05}.parquet"

    def _check(self, made: Mapping[str, Any]) -> None:
        """Raises a ValueError if the folder was written with another plan."""
        what, place = self.plan, f"{self.path}"
        if made.get("tokenizer") != what["tokenizer"]:
            raise ValueError(
                f"expected tokens of this tokenizer, fingerprint {what['tokenizer'][:12]}, in {place}, got some of "
                f"another, {str(made.get('tokenizer'))[:12]}; choose another --out"
            )
        if made.get("data") != what["data"]:
            raise ValueError(
                f"expected tokens of this data in {place}, got some of other data, or of files that have changed since "
                "then; choose another --out"
            )
        given, before = what["settings"], made.get("settings")
        before = before if isinstance(before, dict) else {}
        if differing := [name for name in given if before.get(name) != given[name]]:
            each = ", ".join(f"--{name} {before.get(name)} (got {given[name]})" for name in differing)
            raise ValueError(f"expected the settings of the tokens in {place}: {each}; give them, or another --out")


def _chained(first: TokenRow, rest: Iterator[TokenRow]) -> Iterator[TokenRow]:
    yield first
    yield from rest
