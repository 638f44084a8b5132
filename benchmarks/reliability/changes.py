"""Changes of files, by random numbers: of bytes, and of what knows its format."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

import gritvq
import gritvq.images
import gritvq.items

__all__ = [
    "Files",
    "Reader",
    "as_json",
    "changed",
    "changed_archive",
    "changed_files",
    "changed_json",
    "changed_table",
    "changed_tensors",
    "damaged",
    "outcome",
]

Files = dict[str, bytes]
HUGE = [2**16, 2**20, 2**27, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 2**200, -(2**63), 10**400]
PLAIN: list[Any] = [None, True, False, 0, 1, -1, 2, 3, 255, 256, 0.5, 1e308, float("nan"), float("inf"), -0.0, "", "x"]
PLAIN += ["\0", "../x", "/etc/passwd", "a" * 300, "\ud800", "é", [], [[]], {}, {"x": 1}, [0], [1] * 50, ["x"]]
NAMES = [f"gritvq.{name}" for name in gritvq.__all__] + [f"gritvq.images.{name}" for name in gritvq.images.__all__]
NAMES += [f"gritvq.items.{name}" for name in gritvq.items.__all__]
NAMES += [
    "os.system",
    "gritvq.cli.main",
    "gritvq.__main__.main",
    "builtins.eval",
    "gritvq",
    ".",
    "gritvq.images.files.os",
]
WORDS = [b"\0", b"\xff" * 8, b'"', b"[" * 3000, b",,\n", b"9" * 400, b"-1", b"nan", b"\n- " * 50, b"&a [*a]", b"!!int "]


class Reader(NamedTuple):
    """A reader and files that it reads.

    Attributes:
        make: Writes whole files into a folder.
        read: Reads what is there as its user does.
        change: Changes the files, by a generator of random numbers.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    change: Callable[[random.Random, Files], Files]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Other bytes, other integers, a part gone, twice or new."""
    result = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        start = chance.randrange(len(result) + 1)
        if chance.random() < 0.3:  # near the ends, where headers are
            start = (
                min(start, chance.randrange(64))
                if chance.random() < 0.5
                else max(0, len(result) - chance.randrange(64))
            )
        length = chance.choice([1, 1, 2, 4, 8, 64, max(1, len(result) // 2)])
        part = bytes(result[start : start + length])
        size = chance.choice([1, 2, 4, 8])
        number = chance.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]) % (1 << 8 * size)
        result[start : start + length] = chance.choice(
            [
                bytes(byte ^ (1 << chance.randrange(8)) for byte in part[:1]) + part[1:],
                bytes([chance.randrange(256)]) * len(part),
                b"",
                part * chance.choice([2, 2, 50]) if len(part) < 4096 else part * 2,
                number.to_bytes(size, chance.choice(["little", "big"])) + part[size:],
                chance.randbytes(length % 100) + part,
                chance.choice(WORDS),
            ]
        )
    return bytes(result)


def value(chance: random.Random) -> Any:
    """A value of any kind."""
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(HUGE)
    if kind < 0.55:
        return {"class_path": chance.choice(NAMES), "init_args": arguments(chance)}
    if kind < 0.65:
        return chance.choice(NAMES)
    if kind < 0.72:
        return [value(chance) for _ in range(chance.randrange(4))]
    if kind < 0.74:
        found: Any = 0
        for _ in range(chance.choice([10, 400, 5000])):
            found = [found] if chance.random() < 0.9 else {"class_path": found}
        return found
    return chance.choice(PLAIN)


def arguments(chance: random.Random) -> dict[str, Any]:
    """Arguments of some constructor."""
    names = [
        "dim",
        "codebook_size",
        "levels",
        "width",
        "depth",
        "num_levels",
        "num_heads",
        "factor",
        "codebook",
        "path",
    ]
    names += ["quantizers", "quantizer", "encoder", "decoder", "layout", "hidden_dim", "num_blocks", "num_layers"]
    few: list[Any] = [1, 2, 4, 8, 16, [4, 4], *HUGE]
    return {
        name: chance.choice(few) if chance.random() < 0.8 else chance.choice(PLAIN)
        for name in chance.sample(names, chance.randrange(5))
    }


def changed(content: Any, chance: random.Random) -> Any:
    """Plain data with another value, without one, with one more, or with one from elsewhere."""
    places: list[tuple[Any, Any]] = []

    def walk(each: Any) -> Any:
        each = each.copy() if isinstance(each, (dict, list)) else each
        if isinstance(each, (dict, list)):
            for key in list(each) if isinstance(each, dict) else range(len(each)):
                each[key] = walk(each[key])
                places.append((each, key))
        return each

    result = walk(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        if not places:
            return value(chance)
        outer, key = chance.choice(places)
        kind = chance.random()
        with contextlib.suppress(KeyError, IndexError, AttributeError, TypeError):
            if kind < 0.1:
                del outer[key]
            elif kind < 0.2:
                other, name = chance.choice(places)
                outer[key] = other[name] if other is not outer else value(chance)
            elif kind < 0.3 and isinstance(outer, list):
                outer.insert(key, outer[key])
            elif kind < 0.3:
                outer[chance.choice(["x", "class_path", "init_args", "trusted", "dim", "sha256"])] = value(chance)
            elif kind < 0.45 and isinstance(outer[key], (int, float)):
                outer[key] = outer[key] * chance.choice([-1, 0, 2, 3, 0.5, 2**10, 2**20, 2**33])
            else:
                outer[key] = value(chance)
    return result


def as_json(content: Any) -> bytes:
    """JSON; of what is no JSON, text."""
    try:
        return json.dumps(content).encode()
    except (ValueError, TypeError, RecursionError):
        return b"[" * 100000


def changed_json(chance: random.Random, files: Files) -> Files:
    """A readable file of an artifact changed, with right checksums or none."""
    name = chance.choice([name for name in files if name.endswith(".json")])
    header = json.loads(files[name])
    if chance.random() < 0.6:
        header.pop("sha256", None)
    content = changed(header, chance)
    if isinstance(content, dict) and isinstance(content.get("sha256"), dict) and chance.random() < 0.9:
        content["sha256"].pop(Path(name).name, None)
        for other in content["sha256"]:
            if f"{Path(name).parent}/{other}".removeprefix("./") in files:
                content["sha256"][other] = hashlib.sha256(files[str(Path(name).parent / other)]).hexdigest()
    return files | {name: as_json(content)}


def changed_tensors(chance: random.Random, content: bytes) -> bytes:
    """A safetensors file with another header, or with other tensors."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if chance.random() < 0.5:
        text = as_json(changed(header, chance))
        claimed = chance.choice([len(text)] * 6 + [2**63, 2**31, 99_999_999, 0])
        return struct.pack("<Q", claimed) + text + content[8 + length :]
    return damaged(content, chance)


def changed_table(chance: random.Random, content: bytes) -> bytes:
    """A Parquet file with other columns, types, values or encodings."""
    table = parquet.read_table(pyarrow.BufferReader(content))
    for _ in range(chance.choice([1, 1, 2])):
        name = chance.choice(table.column_names)
        place = table.column_names.index(name)
        rows = table.num_rows
        kind = chance.random()
        if kind < 0.15 and table.num_columns > 1:
            table = table.remove_column(place)
        elif kind < 0.25:
            table = table.rename_columns([chance.choice([*table.column_names, "x", ""]) for _ in table.column_names])
        elif kind < 0.35:
            table = pyarrow.concat_tables([table] * chance.choice([2, 3, 50]))
        elif kind < 0.45:
            table = table.slice(chance.randrange(rows + 1), chance.randrange(rows + 1))
        else:
            choices: list[Callable[[], Any]] = [
                lambda rows=rows: pyarrow.array([chance.choice([*HUGE[:7], -1, 0, None])] * rows, pyarrow.int64()),
                lambda rows=rows: pyarrow.array(
                    [chance.choice(["", "x", "../../x", "/etc/passwd", "\0", None, "a" * 300])] * rows
                ),
                lambda rows=rows: pyarrow.array([[chance.choice([0, -1, 2**40, 2**62])] * chance.randrange(4)] * rows),
                lambda rows=rows: pyarrow.array([float("nan")] * rows),
                lambda rows=rows: pyarrow.array([chance.randbytes(20)] * rows),
                lambda rows=rows: pyarrow.nulls(rows),
                lambda rows=rows: pyarrow.array([{"bytes": chance.randbytes(9), "path": "x"}] * rows),
                lambda rows=rows: pyarrow.array([True] * rows),
                lambda rows=rows: pyarrow.array([[[0]]] * rows),
                lambda rows=rows: pyarrow.array(["x"] * rows).dictionary_encode(),
            ]
            table = table.set_column(place, name, chance.choice(choices)())
    out = pyarrow.BufferOutputStream()
    settings = {
        "compression": chance.choice(["none", "snappy", "zstd", "gzip"]),
        "use_dictionary": chance.random() < 0.5,
    }
    parquet.write_table(table, out, row_group_size=chance.choice([1, 2, 1000]), **settings)
    written = out.getvalue().to_pybytes()
    return damaged(written, chance) if chance.random() < 0.3 else written


def array_of(chance: random.Random, content: bytes) -> bytes:
    """A .npy file with another header."""
    length = int.from_bytes(content[8:10], "little")
    header, body = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    shapes = [
        "(2, 3, 1)",
        "()",
        "(1099511627776,)",
        "(0,)",
        "(-1,)",
        "(2, 3",
        "(2**40,)",
        "(" * 200,
        "(1,)" * 5,
        "(9" * 90,
    ]
    kinds = ["<i8", "|O", "<f8", "<U1000000000", "|V9999999999", "[('a', '<i8')]", "x", "<M8[s]", "|b1", "<c16", ""]
    if chance.random() < 0.7:
        header = header.replace("(2, 3, 1)", chance.choice(shapes)).replace("<i8", chance.choice(kinds))
        header = header.replace("False", chance.choice(["False", "True", "None", "__import__('os')"]))
    raw = header.encode("latin1")
    return (
        content[:8] + len(raw).to_bytes(2, "little") + raw + (damaged(body, chance) if chance.random() < 0.3 else body)
    )


def changed_archive(chance: random.Random, content: bytes) -> bytes:
    """A zip file with other records, all with right checksums of their own."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        for name in names:
            kind, record = chance.random(), old.read(name)
            if kind < 0.1:
                continue
            if kind < 0.35:
                record = array_of(chance, record) if name.endswith(".npy") else damaged(record, chance)
            elif kind < 0.36:
                record = bytes(chance.choice([2**25, 2**28]))  # packs into 260 kB
            elif kind < 0.46:
                name = chance.choice([*names, "../x.npy", "/x.npy", "tokens/../../x.npy", "tokens/.npy", "a" * 60000])
            with contextlib.suppress(Exception):
                packing = zipfile.ZIP_STORED if len(record) < 2**20 and chance.random() < 0.5 else zipfile.ZIP_DEFLATED
                new.writestr(name, record, packing)
    written = out.getvalue()
    return damaged(written, chance) if chance.random() < 0.2 else written


def changed_files(reader: Reader, files: Files, seed: int, folder: Path) -> bool:
    """Write the files that a seed makes of whole ones; whether it makes any."""
    try:
        made = reader.change(random.Random(seed), dict(files))
    except Exception:  # such as values that a format cannot hold
        return False
    for name, content in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return True


def outcome(reader: Reader, folder: Path) -> tuple[str, str]:
    """``accepted``, ``refused`` (as it should: a ValueError that says what was expected) or ``crashed``, and why."""
    try:
        reader.read(folder)
    except ValueError as error:
        said = str(error)
        return ("refused", said[:200]) if "expected" in said else ("crashed", f"ValueError: {said[:300]}")
    except BaseException as error:
        return "crashed", f"{type(error).__name__}: {str(error)[:300]}"
    return "accepted", ""
