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

_NAMES = {  # RecBole's own first; a set may have another, which RecBole is told by its configuration
    "user": ("user_id", "session_id", "uid", "userid", "user"),
    "item": ("item_id", "movie_id", "product_id", "iid", "itemid", "item"),
    "timestamp": ("timestamp", "time", "ts"),
}
_CATEGORIES = ("categories", "category", "genres", "genre", "class")


def events(path: Path, user: str = "user", item: str = "item", order: Sequence[str] = ()) -> Rows:
    """Rows of a file ``X.inter``, with all of its columns.

    The columns ``user_id``, ``item_id`` and ``timestamp`` are called ``user``, ``item`` and ``timestamp``. Without
    these a column of another usual name is taken, if there is just one: ``session_id``, ``uid``, ``userid`` or ``user``
    for users; ``movie_id``, ``product_id``, ``iid``, ``itemid`` or ``item`` for items; ``time`` or ``ts``, if they are
    floats, for times; in capitals or not. All other columns, and those that are asked for, keep their names.

    Args:
        path: The file.
        user: Column of users that is asked for, by its name in the file.
        item: Column of items that is asked for.
        order: Other columns that are asked for.

    Raises:
        ValueError: If the header has no column of users or items with the type token or several, another type than
            RecBole's, or histories instead of events; later, if a line has another number of cells, no key or no
            timestamp.
    """
    return _read(path, {"user": user, "item": item}, order)


def items(path: Path, item: str = "item") -> Items:
    """Rows of a file ``X.item``, with all of its columns and a title in one piece; names as of :func:`events`.

    The title is the first column whose name ends in ``title``, or else in ``name``; the words of a sequence are joined
    by blanks. The text of an item is its title, ``brand``, and the first of the columns ``categories``, ``category``,
    ``genres``, ``genre``, ``class``.

    Args:
        path: The file.
        item: Column of items that is asked for.

    Raises:
        ValueError: As :func:`events` does; no user is needed.
    """
    found = _read(path, {"item": item})
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
    place = names.index(item if item in names else "item")
    types = {names[place]: found.types[names[place]], **types}  # the key comes first
    rows = ([row[place], *row[:place], *row[place + 1 :]] for row in rows)
    return Items(types, rows, lambda row: joined(*(words(row, name) for name in parts)))


def _read(path: Path, asked: Mapping[str, str], order: Sequence[str] = ()) -> Rows:
    """Rows of a file, ``asked`` its columns of keys by role; with users it is one of events."""
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
    if "user" in asked and "item_id_list" in given:
        raise ValueError(
            f"expected one event per line in {str(path)!r}, got histories (item_id_list); take the file that they were "
            "made from."
        )
    wanted = {role: name for role, name in asked.items() if name != role and name in given}
    usual = {role: _usual(given, role) for role in asked if role not in wanted}
    if "user" in asked:
        times = [name for name, kind in heads if kind == "float" or name == "timestamp"]
        usual["timestamp"] = _usual(times, "timestamp")
    for role in asked:
        if role in usual and len(usual[role]) != 1:
            raise ValueError(
                f"expected one column {_NAMES[role][0]!r} in line 1 of {str(path)!r}, got {len(usual[role])} in "
                f"{shown(header)}; give the name of the column as {role}, or correct the header."
            )
    known = {found[0]: role for role, found in usual.items() if len(found) == 1 and found[0] not in order}
    names = [known.get(name, name) for name in given]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise wrong(f"one column {repeated!r}", f"{names.count(repeated)} in {shown(header)}")
    keys = [wanted.get(role, role) for role in asked]
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


def _usual(given: Sequence[str], role: str) -> list[str]:
    """Names of columns that may be the one of users, items or times, RecBole's own if it is there."""
    own, *_ = _NAMES[role]
    return [name for name in given if name == own] or [name for name in given if name.lower() in _NAMES[role]]


def _atom(cell: str, kind: str, name: str) -> Any:
    if kind.endswith("_seq"):
        return [_atom(each, kind.removesuffix("_seq"), name) for each in cell.split(" ") if each]
    if not cell.strip() or (kind == "float" and cell.strip().lower() == "nan"):
        return None
    return cell if kind == "token" else number(cell, name)
