"""Atomic writing: a reader sees the old files or the new ones, never a mixture.

There is one order of writing. A single file is written under another name beside its place and renamed. An artifact of
several files is written whole into a hidden folder inside its own, and that folder is renamed to ``.written``: from
this moment on the new files count. Then they are moved to their places, one by one. A process may be killed at any
point: readers ask :func:`place_of_file`, which prefers what ``.written`` still holds, and the next writer ends the
moves and removes what was left over.

There is one checksum, SHA-256. An artifact's readable file, such as ``config.json``, holds that of every other file and
of itself; a zip file of its own, such as a checkpoint, has it as its comment.

What domains share when they read is here too: :func:`regular_file`, :func:`check_footer`, :func:`tar_samples`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "check_archive",
    "check_footer",
    "check_unpacked",
    "checked_file",
    "folder_exists",
    "holds_files",
    "names_in",
    "place_of_file",
    "put_files",
    "read_header",
    "regular_file",
    "remove_folder",
    "replacing",
    "replacing_files",
    "seal_archive",
    "settle",
    "tar_samples",
    "write_header",
    "write_json",
]

_WRITTEN, _SCRATCH, _SUMS = ".written", ".writing-", "sha256"
_LARGEST_HEADER, _MOST_VALUES = 1 << 26, 1 << 22  # bytes of an artifact's readable file, and values in it
_OWN_BYTES, _TIMES = 1 << 26, 100  # what a packed file may ask for: so many bytes, and so many times its own
_ABANDONED = 86400.0  # seconds after which a scratch file of another machine has no owner any more


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends, and vanishes when it fails.

    The file has the permissions that the umask leaves.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as scratch:
        ...         _ = scratch.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent, os.getpid())
    scratch = path.parent / (_scratch_name() + path.suffix)
    scratch.touch(exist_ok=False)
    mode = stat.S_IMODE(scratch.stat().st_mode)
    try:
        yield scratch
        scratch.chmod(mode)  # some libraries make a new file, for themselves alone
        _sync(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder whose files take the places of those in ``folder`` when the block ends: all or none.

    Other files there stay. Folders and files have the permissions that the umask leaves.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing_files(folder) as scratch:
        ...         _ = (scratch / "a.txt").write_text("one"), (scratch / "b.txt").write_text("two")
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['a.txt', 'b.txt']
    """
    folder = Path(folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    scratch = folder / _scratch_name()
    scratch.mkdir()
    try:
        yield scratch
        (scratch / _WRITTEN).touch()
        mode = stat.S_IMODE((scratch / _WRITTEN).stat().st_mode)
        (scratch / _WRITTEN).unlink()
        for path in _files_below(scratch):
            path.chmod(mode)
            _sync(path)
        put_files(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def settle(folder: Path) -> None:
    """End what writers of a folder's files began that are no longer there: moves, and files that nobody wants."""
    inside = [written.parent for written in folder.glob(f"*/{_WRITTEN}")]
    for place in (folder, folder.absolute().parent, *inside):  # an artifact may hold another
        _end_moves(place)
    _sweep(folder)


def put_files(scratch: Path, folder: Path) -> None:
    """Move the files of a folder inside ``folder`` to their places there, all or none, and remove what held them."""
    os.rename(scratch, folder / _WRITTEN)
    _end_moves(folder)


def place_of_file(folder: Path, name: str) -> Path:
    """Where an artifact's file is: in its place, or on the way there if the writer was killed."""
    folder = folder.absolute()
    on_the_way = (folder / _WRITTEN / name, folder.parent / _WRITTEN / folder.name / name)
    return next((path for path in on_the_way if path.exists()), folder / name)


def folder_exists(folder: Path) -> bool:
    """Whether an artifact's folder is in its place, or on the way there."""
    folder = folder.absolute()
    return folder.is_dir() or (folder.parent / _WRITTEN / folder.name).is_dir()


def names_in(folder: Path) -> list[str]:
    """Sorted names of what is in a folder, or on the way there."""
    places = (place for place in (folder, folder / _WRITTEN) if place.is_dir())
    return sorted({path.name for place in places for path in place.iterdir()} - {_WRITTEN})


def remove_folder(folder: Path) -> None:
    """Remove a folder, if there is one; wherever the process dies, a reader sees all of it or nothing."""
    if not folder.is_dir() or folder.is_symlink():
        return
    gone = folder.parent / _scratch_name()
    try:
        os.rename(folder, gone)
    except OSError:  # another disk begins here
        gone = folder
    shutil.rmtree(gone, ignore_errors=True)


def holds_files(folder: Path) -> bool:
    """Whether there is anything in a folder but what a killed writer left over."""
    return any(not path.name.startswith(_SCRATCH) for path in folder.iterdir())


def write_json(path: str | os.PathLike[str], content: Any) -> Path:
    """Write indented JSON, whole or not at all."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Path(path)


def regular_file(path: str | os.PathLike[str], what: str = "a file") -> Path:
    """The path of a regular file that is there; reading a pipe or a device might never end.

    Args:
        path: The path.
        what: What is expected, in words.

    Raises:
        ValueError: If there is nothing, or a folder, a pipe, a socket or a device.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # also names that are too long or hold a null
        raise ValueError(f"expected {what}, got {str(path)!r}, which does not exist; correct the path.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ValueError(f"expected {what}, got {str(path)!r}, which is {kind}; give a regular file.")
    return path


def check_unpacked(what: str, unpacked: int, packed: int) -> None:
    """Refuse data that would be far larger in memory than in the file: a hundred times, and 64 MB.

    Args:
        what: The data, in words.
        unpacked: Bytes in memory.
        packed: Bytes in the file.

    Raises:
        OSError: Then, as readers of packed files do for damage.

    Example:
        >>> check_unpacked("a picture", 2**40, 2**10)
        Traceback (most recent call last):
        OSError: a picture of 1,024 bytes that would take 1,048,576 MB of memory
    """
    if unpacked > _OWN_BYTES + _TIMES * packed:
        raise OSError(f"{what} of {packed:,} bytes that would take {unpacked >> 20:,} MB of memory")


def check_footer(metadata: Any, path: str | os.PathLike[str], *, whole: bool = False) -> None:
    """Refuse a Parquet file whose groups do not add up to its rows, or that would be far larger in memory.

    A value counts as 8 bytes at least. In columns of lists there are more values than rows: their numbers are read from
    the footer here, since pyarrow ends the process when it is asked for a column whose statistics are damaged.

    Args:
        metadata: The file's, from pyarrow.
        path: The file.
        whole: Whether all groups of rows will be in memory together.

    Raises:
        OSError: Then, as pyarrow does for other damage.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    if rows != metadata.num_rows:
        raise OSError(f"damaged footer: {metadata.num_rows:,} rows in groups of {rows:,}")
    if any(group.num_rows < 0 or group.total_byte_size < 0 for group in groups):
        raise OSError("damaged footer: a group of rows of a negative size")
    sizes = [max(group.total_byte_size, 8 * group.num_rows * group.num_columns) for group in groups]
    schema = metadata.schema
    if any(schema.column(number).max_repetition_level for number in range(metadata.num_columns)):
        sizes = [max(pair) for pair in zip(sizes, _sizes_of_groups(Path(path)), strict=True)]
    for unpacked in [sum(sizes)] if whole else sizes:
        check_unpacked("all rows of a file" if whole else "a group of rows in a file", unpacked, os.path.getsize(path))


def _sizes_of_groups(path: Path) -> list[int]:
    """Bytes of the groups of a Parquet file by what its footer says of every column."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        reader = _Compact(file.read(length))
    try:
        groups = [[column[3] for column in group[1]] for group in reader.value(_STRUCT)[4]]  # numbers of parquet.thrift
        return [sum(max(each[6], 8 * each[5]) for each in columns) for columns in groups]
    except (IndexError, KeyError, TypeError, RecursionError) as error:
        raise OSError("damaged footer") from error


_STRUCT = 12


class _Compact:
    """Reads the compact protocol of Thrift: structures as values by number, no text."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def natural(self) -> int:
        """A number of any length, seven bits a byte."""
        value, shift, more = 0, 0, True
        while more:
            byte = self.byte()
            value, shift, more = value | (byte & 127) << shift, shift + 7, byte > 127
        return value

    def value(self, kind: int, inside: bool = False) -> Any:
        """A value; truth values have a byte of their own inside of lists and maps only."""
        if kind in (1, 2):
            return self.byte() == 1 if inside else kind == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            number = self.natural()
            return number >> 1 ^ -(number & 1)
        if kind in (7, 8, 13):  # a float, bytes or a UUID, which nobody asks for
            size = {7: 8, 13: 16}.get(kind) or self.natural()
            self.place += size
            return None
        if kind in (9, 10):
            head = self.byte()
            size = head >> 4 if head >> 4 < 15 else self.natural()
            return [self.value(head & 15, inside=True) for _ in range(size)]
        if kind == 11:
            size = self.natural()
            kinds = self.byte() if size else 0
            return [(self.value(kinds >> 4, inside=True), self.value(kinds & 15, inside=True)) for _ in range(size)]
        if kind != _STRUCT:
            raise TypeError(f"a value of kind {kind}")
        found: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.value(4)
            found[number] = self.value(head & 15)
        return found


def tar_samples(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """The samples of a WebDataset shard: the key of each, and where its files are, ``(offset, size)`` by ending.

    Files of a sample lie one after the other and have the same name up to the first dot. Only headers are read.

    Args:
        path: An uncompressed tar file; links, devices and hidden files in it are passed over.

    Raises:
        ValueError: While iterating, if it is missing, compressed or damaged, or a key comes twice.

    Example:
        >>> import io, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tarfile.open(f"{folder}/a.tar", "w") as archive:
        ...         for name in ("one.png", "one.cls", "two.png"):
        ...             archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        ...     [(key, sorted(parts)) for key, parts in tar_samples(f"{folder}/a.tar")]
        [('one', ['cls', 'png']), ('two', ['png'])]
    """
    path, seen = regular_file(path, "a tar file"), set[str]()
    try:
        with tarfile.open(path, "r:") as archive:
            sample: tuple[str, dict[str, tuple[int, int]]] | None = None
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # which would hold all of them
                before, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not member.isreg() or member.issparse() or not stem or not ending:
                    continue
                key = f"{before}/{stem}".lstrip("./")
                if sample is None or sample[0] != key:
                    if sample is not None:
                        yield sample
                    if key in seen:
                        raise tarfile.ReadError(f"the files of {key!r} are not together, or come twice")
                    seen.add(key)
                    sample = key, {}
                sample[1][ending.lower()] = (member.offset_data, member.size)
            if sample is not None:
                yield sample
            with path.open("rb") as file:  # a damaged header looks like the end to tarfile
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no header and no end at byte {archive.offset:,}")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"expected an uncompressed tar file, as WebDataset has them, got {str(path)!r} ({error}); copy it again, "
            "or unpack it"
        ) from error


# --- artifacts --------------------------------------------------------------------------------------------------------


def write_header(path: Path, content: Mapping[str, Any]) -> None:
    """Write an artifact's readable file with the SHA-256 of all others in its folder and of its own content."""
    sums = {other.relative_to(path.parent).as_posix(): _sum_of_file(other) for other in _files_below(path.parent)}
    sealed = json.loads(json.dumps({**content, _SUMS: sums}))
    sealed[_SUMS][path.name] = _sum_of_content(sealed, path.name)
    path.write_text(json.dumps(sealed, indent=2) + "\n", encoding="utf-8")


def read_header(
    folder: Path,
    name: str,
    what: str,
    form: str,
    newest: int,
    wanted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read an artifact's readable file and check it against its own checksum; old artifacts have none.

    Args:
        folder: The artifact.
        name: The file's name.
        what: What should be in the folder, in words.
        form: What stands under ``format``.
        newest: The largest ``format_version`` that can be read.
        wanted: What else must stand there, and its type or types, as ``isinstance`` takes them.

    Raises:
        ValueError: If it is missing, damaged, foreign, of a newer version or incomplete.
    """
    path = place_of_file(folder, name)
    if path.exists():
        regular_file(path, f"{what} with {name}")
    try:
        content = json.loads(_limited_text(path))
        own = _sums(content).get(name) if isinstance(content, dict) else None
        changed = own is not None and own != _sum_of_content(content, name)
    except (FileNotFoundError, NotADirectoryError) as error:
        within = sorted(str(own.parent) for own in folder.glob(f"*/{name}"))
        told = f"there is one in {within[0]}" if within else "correct the path"
        raise ValueError(f"expected {what} with {name}, got {folder} without one; {told}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"expected readable JSON in {path}, got a damaged file ({error}); copy it again") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or content.get("format") != form or not isinstance(version, int):
        raise ValueError(f"expected {what} of gritvq in {path}, got something else; is it another library's?")
    if version > newest:
        raise ValueError(f"expected format version {newest} or older in {path}, got {version}; update gritvq")
    if changed:
        raise ValueError(
            f"expected {path} as it was written, got a file that does not fit its checksum; it is damaged or was "
            "edited, copy the folder again"
        )
    lacking = [key for key, kind in (wanted or {}).items() if not isinstance(content.get(key), kind)]
    if lacking:
        raise ValueError(
            f"expected {', '.join(lacking)} in {path}, got {sorted(content)}; the file is incomplete, or holds another "
            "kind of artifact"
        )
    return content


def _limited_text(path: Path) -> str:
    """Text of a readable file, whose values fit into 1 GB of memory."""
    if (size := path.stat().st_size) > _LARGEST_HEADER:
        raise ValueError(f"{size:,} bytes, more than {_LARGEST_HEADER:,}")
    text = path.read_text(encoding="utf-8")
    if (values := text.count(",") + text.count("[") + text.count("{")) > _MOST_VALUES:
        raise ValueError(f"{values:,} values, more than {_MOST_VALUES:,}")
    return text


def checked_file(folder: Path, name: str, header: Mapping[str, Any]) -> Path:
    """Where an artifact's file is, checked against what the readable file says.

    Args:
        folder: The artifact.
        name: The file's path in it.
        header: From :func:`read_header`; without checksums nothing is compared.

    Raises:
        ValueError: If the file is missing or another.
    """
    path = place_of_file(folder, name)
    wanted = _sums(header).get(name)
    if not path.is_file():
        raise ValueError(f"expected {name} in {folder}, found none; copy the whole folder")
    if wanted is not None and _sum_of_file(path) != wanted:
        raise ValueError(
            f"expected the {name} that was written with the other files of {folder}, got one with another checksum; it "
            "is damaged or of another artifact, copy the whole folder again"
        )
    return path


def seal_archive(path: Path) -> None:
    """Write the SHA-256 of a zip file into its comment, which whatever reads zip files passes over."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        digest = _sum_of_bytes(file, size - 2)  # all but the length of the comment
        file.seek(size - 2)
        file.write(len(digest).to_bytes(2, "little") + digest.encode())


def check_archive(path: Path) -> None:
    """Check a zip file against the SHA-256 in its comment, or without one its records against their CRC-32.

    Raises:
        ValueError: If it is damaged, no zip file, or would be far larger in memory.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 66))
            end = file.read()
            with zipfile.ZipFile(file) as archive:
                for record in archive.infolist():
                    check_unpacked(record.filename, record.file_size, record.compress_size)
            sealed = len(end) == 66 and end[:2] == b"\x40\x00"
            plain = end[-22:-18] == b"PK\x05\x06" and end[-2:] == b"\x00\x00"  # no comment, not one cut short
            good = _sum_of_bytes(file, size - 66).encode() == end[2:] if sealed else plain and _records_are_whole(path)
    except Exception as error:  # zipfile raises many kinds on damaged files
        raise ValueError(f"expected a whole file, got {path}, which is damaged ({error}); take another one") from error
    if not good:
        raise ValueError(f"expected a whole file, got {path}, whose checksum differs; it is damaged, take another one")


def _records_are_whole(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def _sums(header: Mapping[str, Any]) -> Mapping[str, Any]:
    sums = header.get(_SUMS)
    return sums if isinstance(sums, dict) else {}


def _sum_of_content(header: Mapping[str, Any], name: str) -> str:
    """Of everything but itself, whatever the spaces and the order."""
    rest = {**header, _SUMS: {other: value for other, value in _sums(header).items() if other != name}}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sum_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return _sum_of_bytes(file, path.stat().st_size)


def _sum_of_bytes(file: BinaryIO, count: int) -> str:
    """Of the first bytes of a file."""
    digest = hashlib.sha256()
    file.seek(0)
    while count > 0 and (block := file.read(min(count, 1 << 20))):
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()


# --- scratch files ----------------------------------------------------------------------------------------------------


def _end_moves(folder: Path) -> None:
    """Move files that count already to their places."""
    written = folder / _WRITTEN
    if not written.is_dir():
        return
    for path in _files_below(written):
        place = folder / path.relative_to(written)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"expected files inside of {folder}, got the link {place.parent}; choose another folder")
        os.replace(path, place)
    shutil.rmtree(written)


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@functools.cache
def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _scratch_name() -> str:
    return f"{_SCRATCH}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


@functools.lru_cache(maxsize=1024)
def _sweep_once(folder: Path, process: int) -> None:
    """A process that writes many files into a folder looks once for what others left there."""
    _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove what writers left that are no longer there."""
    for path in folder.glob(f"{_SCRATCH}*"):
        machine, process, *_ = [*path.name.removeprefix(_SCRATCH).split("-"), "", ""]
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED
        except OSError:  # its writer was quicker
            continue
        if abandoned or (machine == _machine() and process.isdigit() and not _runs(int(process))):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether there is such a process on this machine."""
    if os.name != "posix":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync(path: Path) -> None:
    """Have the content on the disk before the name counts, for the case that the power fails."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
