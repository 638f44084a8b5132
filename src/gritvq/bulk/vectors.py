"""Vectors of items as work: ``.npy`` and Parquet files, tar files of WebDataset, and folders of these."""

from __future__ import annotations

import functools
import io
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from gritvq.bulk.work import Shard, Work, digest_of, numbered
from gritvq.files import check_footer, regular_file, tar_samples
from gritvq.items.catalogue import open_vectors
from gritvq.items.tokenizers import ItemTokenizer
from gritvq.lazy import optional
from gritvq.tokens import TokenRow

__all__ = ["ItemVectors", "VectorWork"]

_READ = 1024  # rows of a Parquet file that are read at a time


class _Part(ABC):
    """The vectors of one file, which is read only where it is asked for some."""

    length: int

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Names and vectors (m, D) from ``start`` to ``stop``, in blocks."""

    def _numbers(self, start: int, stop: int) -> list[str]:
        digits = len(str(max(0, self.length - 1)))
        return [f"{number:0{digits}}" for number in range(start, stop)]


class _Array(_Part):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.length = len(open_vectors(path))

    def read(self, start: int, stop: int) -> Iterator[tuple[list[str], np.ndarray]]:
        yield self._numbers(start, stop), open_vectors(self.path)[start:stop]


class _Parquet(_Part):
    def __init__(self, path: Path, column: str, item: str) -> None:
        super().__init__(path)
        pyarrow, parquet = optional("pyarrow", "items"), optional("pyarrow.parquet", "items")
        try:
            with parquet.ParquetFile(path) as file:
                check_footer(file.metadata, path)
                schema, metadata = file.schema_arrow, file.metadata
                sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"expected a Parquet file, got {str(path)!r}: {error}; replace or remove it") from error
        kind = schema.field(column).type if column in schema.names else None
        if kind is None or not any(
            is_list(kind) and pyarrow.types.is_floating(kind.value_type)
            for is_list in (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
        ):
            raise ValueError(
                f"expected a column {column!r} of lists of floats in {str(path)!r}, got {', '.join(schema.names)}; "
                "name the vectors' with --column"
            )
        self.column, self.item = column, item if item in schema.names else None
        self.ends = list(accumulate(sizes))
        self.length = self.ends[-1] if sizes else 0

    def read(self, start: int, stop: int) -> Iterator[tuple[list[str], np.ndarray]]:
        pyarrow, parquet = optional("pyarrow", "items"), optional("pyarrow.parquet", "items")
        try:
            with parquet.ParquetFile(self.path) as file:
                while start < stop:
                    group = bisect_right(self.ends, start)
                    before, end = self.ends[group - 1] if group else 0, min(stop, self.ends[group])
                    columns = [self.column, *([self.item] if self.item else [])]
                    blocks = file.iter_batches(_READ, row_groups=[group], columns=columns, use_threads=False)
                    table = pyarrow.Table.from_batches(_between(blocks, start - before, end - before))
                    table.validate(full=True)  # damaged files may have offsets outside the buffers
                    rows = table[self.column].to_pylist()
                    sizes = {len(row) if row is not None else 0 for row in rows}
                    if len(sizes) > 1:
                        raise ValueError(
                            f"expected vectors of one length in {str(self.path)!r}, got {sorted(sizes)}; correct them"
                        )
                    names = self._numbers(start, end)
                    if self.item:
                        names = [str(key) for key in table[self.item].to_pylist()]
                    yield names, np.asarray(rows, dtype=np.float32)
                    start = end
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"expected whole vectors, got {str(self.path)!r}: {error}; copy it again") from error


def _between(blocks: Iterator[Any], start: int, stop: int) -> Iterator[Any]:
    """Parts of blocks of rows, which are read up to ``stop`` and held from ``start`` on."""
    for block in blocks:
        if start < len(block):
            yield block.slice(max(0, start), stop - max(0, start))
        start, stop = start - len(block), stop - len(block)
        if stop <= 0:
            return


class _Tar(_Part):
    """A ``.npy`` file (D,) for each item, which has the key as its name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.length = len(self._places())
        if not self.length:
            raise ValueError(f"expected files that end with .npy in {str(path)!r}, got none; give another file")

    def read(self, start: int, stop: int) -> Iterator[tuple[list[str], np.ndarray]]:
        found = self._places()
        if len(found) != self.length:
            raise ValueError(
                f"expected the {self.length:,} vectors that were in {str(self.path)!r}, got {len(found):,}; leave the "
                "file as it is while it is read"
            )
        names, rows = list[str](), list[np.ndarray]()
        with self.path.open("rb") as file:
            for key, (offset, size) in found[start:stop]:
                file.seek(offset)
                names.append(key)
                rows.append(self._vector(key, file.read(size)))
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"expected vectors of one length in {str(self.path)!r}, got several; correct them")
        yield names, np.stack(rows)

    def _places(self) -> list[tuple[str, tuple[int, int]]]:
        state = regular_file(self.path, "a tar file").stat()
        return _places_in(self.path, state.st_size, state.st_mtime_ns)

    def _vector(self, key: str, content: bytes) -> np.ndarray:
        try:
            vector = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except Exception as error:  # headers of damaged files are parsed as Python
            raise ValueError(
                f"expected a vector in {key}.npy of {str(self.path)!r}, got a damaged file or objects; write it with "
                "numpy.save"
            ) from error
        if vector.ndim != 1 or vector.dtype.kind != "f":
            raise ValueError(
                f"expected a vector (D,) of floats in {key}.npy of {str(self.path)!r}, got {vector.shape} "
                f"{vector.dtype}; write one per item"
            )
        return vector


@functools.lru_cache(maxsize=4)
def _places_in(path: Path, size: int, changed: int) -> list[tuple[str, tuple[int, int]]]:
    """Key, offset and size of every vector of a tar file; of the files used last it stays in memory."""
    return [(key, parts["npy"]) for key, parts in tar_samples(path) if "npy" in parts]


class ItemVectors:
    """Vectors of items by number, in files that are read where they are asked for.

    Args:
        path: A ``.npy`` file (n, D); a Parquet file with a column of lists of floats; a tar file of WebDataset with a
            ``.npy`` file (D,) for each item; or a folder of files of one of these kinds, in the order of their names.
        column: The column of a Parquet file.
        item: The column there that names items; they are named by their number where there is none.

    Raises:
        ValueError: If there is nothing, or it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.eye(3, dtype=np.float32))
        ...     vectors = ItemVectors(folder)
        ...     [(names, block.shape) for names, block in vectors.read(1, 3)]
        [(['a/1', 'a/2'], (2, 3))]
    """

    def __init__(self, path: str | Path, column: str = "embedding", item: str = "item") -> None:
        self.path, place = str(path), Path(path).expanduser()
        self.column, self.item = column, item
        makers: dict[str, Callable[[Path], _Part]] = {
            ".npy": _Array,
            ".parquet": lambda file: _Parquet(file, column, item),
            ".tar": _Tar,
        }
        files, root = [place], place.parent
        if place.is_dir():
            root, every = place, sorted(file for file in place.rglob("*") if file.is_file())
            files = next((found for ending in makers if (found := [f for f in every if f.suffix == ending])), [])
        if not files or files[0].suffix not in makers:
            raise ValueError(
                f"expected vectors of items ({', '.join(makers)}) for this tokenizer, got {self.path!r}; give such a "
                "file, or a folder of them"
            )
        self.parts = [makers[file.suffix](regular_file(file, "a file of vectors")) for file in files]
        belows = [file.relative_to(root).with_suffix("").as_posix() for file in files]
        self.names = [f"{below}/" if place.is_dir() else "" for below in belows]
        self.ends = list(accumulate(part.length for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, start: int, stop: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Names and vectors (m, D) from ``start`` to ``stop``, in blocks."""
        while start < stop:
            number = bisect_right(self.ends, start)
            before, end = self.ends[number - 1] if number else 0, min(stop, self.ends[number])
            for names, vectors in self.parts[number].read(start - before, end - before):
                yield [self.names[number] + name for name in names], vectors
            start = end


class VectorWork(Work):
    """Vectors of items; the indices of each are a row (L,).

    Args:
        tokenizer: The fitted tokenizer.
        vectors: The vectors.
        batch_size: Vectors that are computed together, at most.
    """

    wanted = "vectors of items", "none"

    def __init__(self, tokenizer: ItemTokenizer, vectors: ItemVectors, batch_size: int = 2048) -> None:
        super().__init__(tokenizer, vectors.path, batch_size)
        self.vectors, self.num_samples = vectors, len(vectors)

    def shards(self, rows: int) -> Iterator[Shard]:
        """Numbers of items."""
        return numbered(len(self.vectors), rows)

    def settings(self) -> Mapping[str, Any]:
        """The columns of Parquet files."""
        return {"column": self.vectors.column, "item": self.vectors.item}

    def digest(self) -> str:
        """Of the files."""
        parts = zip(self.vectors.names, self.vectors.parts, strict=True)
        return digest_of([(name or part.path.name, part.path) for name, part in parts], len(self.vectors))

    def rows(self, shard: Shard, progress: Callable[[int], object] = int) -> Iterator[TokenRow]:
        """A row for each item."""
        for names, vectors in self.vectors.read(shard.first, shard.first + len(shard.samples)):
            codes = self.tokenizer.encode(vectors, batch_size=self.batch_size)
            for name, own in zip(names, codes, strict=True):
                yield TokenRow(name, own, {"tokenizer": self.fingerprint})
            progress(len(names))
