"""Atomic files of RecBole: typed columns, separated by tabs.

References:
    Zhao et al., "RecBole: Towards a Unified, Comprehensive and Efficient Framework for Recommendation Algorithms", CIKM
    2021, arXiv 2011.01731; the format is described in its documentation under "Atomic files".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gritvq.items.layouts.lines import Fault, Items, Rows, cells, joined, number, parsed, shown, text_of, texts
from gritvq.lazy import optional

__all__ = ["events", "items"]

_KEYS = {"user_id": "user", "session_id": "user", "item_id": "item", "movie_id": "item"}  # some sets have the others
_CATEGORIES = ("categories", "category", "genres", "genre", "class")


def events(path: Path) -> Rows:
    """Rows of a file ``X.inter``, with all of its columns.

    Raises:
        ValueError: If the header has no ``user_id:token`` and ``item_id:token``, another type than RecBole's, or
            histories instead of events; later, if a line has another number of cells, no key or no timestamp.
    """
    return _read(path, ("user", "item"))


def items(path: Path) -> Items:
    """Rows of a file ``X.item``, with all of its columns and a title in one piece.

    The title is the first column whose name ends in ``title``, or else in ``name``; the words of a sequence are joined
    by blanks. The text of an item is its title, ``brand``, and the first of the columns ``categories``, ``category``,
    ``genres``, ``genre``, ``class``.

    Raises:
        ValueError: As :func:`events` does; no user is needed.
    """
    found = _read(path, ("item",))
    names = list(found.types)
    titles = [name for end in ("title", "name") for name in names if name.endswith(end)]
    parts = [*titles[:1], *[name for name in ("brand",) if name in names]]
    parts += [name for name in _CATEGORIES if name in names][:1]

    def words(row: Mapping[str, Any], name: str) -> str:
        return " ".join(map(text_of, row[name])) if isinstance(row[name], list) else text_of(row[name])

    def titled(row: Sequence[Any]) -> Sequence[Any]:
        by_name = dict(zip(names, row, strict=True))
        return list({**by_name, "title": words(by_name, titles[0])}.values())

    types = {**found.types, "title": optional("pyarrow", "items").string()} if titles else found.types
    rows = map(titled, found.rows) if titles else found.rows
    return Items(types, rows, lambda row: joined(*(words(row, name) for name in parts)))


def _read(path: Path, keys: Sequence[str]) -> Rows:
    pyarrow = optional("pyarrow", "items")
    kinds = {"token": pyarrow.string(), "float": pyarrow.float64()}
    kinds |= {f"{kind}_seq": pyarrow.list_(own) for kind, own in list(kinds.items())}
    numbered = texts(path)
    _, header = next(numbered, (1, ""))

    def wrong(expected: str, got: object) -> ValueError:
        return ValueError(f"expected {expected} in line 1 of {str(path)!r}, got {got}; correct the header.")

    heads = [head.rpartition(":")[::2] for head in header.split("\t")]
    unknown = [f"{name}:{kind}".lstrip(":") for name, kind in heads if not name or kind not in kinds]
    if unknown:
        raise wrong(f"columns such as user_id:token with types of {', '.join(kinds)}", shown(unknown[0]))
    given = [name for name, _ in heads]
    if "user" in keys and "item_id_list" in given:
        raise ValueError(
            f"expected one event per line in {str(path)!r}, got histories (item_id_list); take the file that they were "
            "made from."
        )
    names = [_KEYS.get(name, name) for name in given]
    for name in (*keys, *names):
        if names.count(name) != 1:
            called = next((each for each, own in _KEYS.items() if own == name), name)
            raise wrong(f"one column {called!r}", f"{names.count(name)} in {shown(header)}")
    types = {name: kinds[kind] for name, (_, kind) in zip(names, heads, strict=True)}
    for name, kind in (*((each, "token") for each in keys), ("timestamp", "float")):
        if types.get(name, kinds[kind]) != kinds[kind]:
            raise wrong(f"a {kind} as {name}", shown(header))

    def parse(text: str) -> Sequence[Any]:
        found = cells(text, "\t", "a value of each column", len(heads))
        row = [_atom(cell, kind, name) for cell, (name, kind) in zip(found, heads, strict=True)]
        for name, value in zip(names, row, strict=True):
            if value is None and (name in keys or name == "timestamp"):
                raise Fault(f"a value of {name!r}", "an empty cell")
        return row

    return Rows(types, parsed(path, numbered, parse))


def _atom(cell: str, kind: str, name: str) -> Any:
    if kind.endswith("_seq"):
        return [_atom(each, kind.removesuffix("_seq"), name) for each in cell.split(" ") if each]
    if not cell.strip() or (kind == "float" and cell.strip().lower() == "nan"):
        return None
    return cell if kind == "token" else number(cell, name)
